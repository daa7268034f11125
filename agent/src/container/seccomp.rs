//! Filters of system calls of the agent's containers: an OCI profile's, and the agent's own.

use std::sync::LazyLock;

use kata_cc_agent_protocol::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall, linux_syscall};
pub(crate) use kata_cc_seccomp::SeccompError;

use crate::stage::message::Seccomp;

const ENOSYS: u32 = 38;

/// Compiles a profile; `None` when it allows everything.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Option<Seccomp>, SeccompError> {
    let filter = kata_cc_seccomp::compile(profile)?;
    Ok(filter.map(|filter| Seccomp { program: filter.program, flags: filter.flags }))
}

/// What no container may do, whatever its own profile says: open the sandbox's channels to the host. The agent's vsock
/// connections are for the agent: behind them the host takes whoever speaks for the guest. `io_uring` makes sockets without
/// the call that is looked at here. The guest's kernel runs no 32-bit programs (`guest-image/kernel/microvm.config`), whose
/// `socketcall` could not be looked into.
pub(crate) fn channels_shut() -> Seccomp {
    /// Always the same, and wanted at each start of a process.
    static COMPILED: LazyLock<Seccomp> = LazyLock::new(compile_channels_shut);
    COMPILED.clone()
}

fn compile_channels_shut() -> Seccomp {
    const EAFNOSUPPORT: u32 = 97;
    let refuse = |name: &str, errno, args| LinuxSyscall {
        Names: vec![name.to_owned()],
        Action: "SCMP_ACT_ERRNO".to_owned(),
        ErrnoRet: Some(linux_syscall::ErrnoRet::Errnoret(errno)),
        Args: args,
        ..Default::default()
    };
    let vsock = LinuxSeccompArg {
        Index: 0,
        Value: u64::from(u32::MAX),
        ValueTwo: u64::from(libc::AF_VSOCK.unsigned_abs()),
        // The kernel looks at the lower half alone.
        Op: "SCMP_CMP_MASKED_EQ".to_owned(),
        ..Default::default()
    };
    let profile = LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ALLOW".to_owned(),
        Syscalls: vec![
            refuse("socket", EAFNOSUPPORT, vec![vsock]),
            refuse("io_uring_setup", ENOSYS, Vec::new()),
        ],
        ..Default::default()
    };
    let compiled = compile(&profile).ok().flatten();
    compiled.unwrap_or_else(|| unreachable!("a fixed profile, which a test compiles"))
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
