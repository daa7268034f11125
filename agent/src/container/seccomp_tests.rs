//! Filters as an interpreter sees them, and as the kernel runs them in a thread.

use kata_cc_seccomp::{AUDIT_X86_64, Filter};

use super::*;

const ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;

#[test]
fn the_sandboxes_channels_are_shut_to_containers_and_nothing_else_is() {
    let Seccomp { program, flags } = channels_shut();
    let guard = Filter { program, flags };
    let run = |number: i64, args| guard.judge(AUDIT_X86_64, u32::try_from(number).unwrap(), args).unwrap();
    let vsock = libc::AF_VSOCK.unsigned_abs().into();
    let no_family = RET_ERRNO | 97;
    assert_eq!(run(libc::SYS_socket, [vsock, 1, 0, 0, 0, 0]), no_family);
    // The kernel takes an int: what stands in the upper half does not help.
    assert_eq!(run(libc::SYS_socket, [vsock | 1 << 32, 1, 0, 0, 0, 0]), no_family);
    for family in (0..64).filter(|family| *family != vsock) {
        assert_eq!(run(libc::SYS_socket, [family, 1, 0, 0, 0, 0]), ALLOW, "{family}");
    }
    assert_eq!(run(libc::SYS_io_uring_setup, [8, 0, 0, 0, 0, 0]), RET_ERRNO | ENOSYS);
    for other in
        [libc::SYS_connect, libc::SYS_socketpair, libc::SYS_openat, libc::SYS_seccomp, libc::SYS_execve]
    {
        assert_eq!(run(other, [vsock; 6]), ALLOW, "{other}");
    }
}

#[test]
fn the_kernel_runs_it() {
    let call = |name: &str, errno: u32, args: Vec<LinuxSeccompArg>| LinuxSyscall {
        Names: vec![name.to_owned()],
        Action: "SCMP_ACT_ERRNO".to_owned(),
        ErrnoRet: Some(linux_syscall::ErrnoRet::Errnoret(errno)),
        Args: args,
        ..Default::default()
    };
    let signal =
        LinuxSeccompArg { Index: 1, Value: 12345, Op: "SCMP_CMP_EQ".to_owned(), ..Default::default() };
    let p = LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ALLOW".to_owned(),
        Syscalls: vec![call("getppid", 99, Vec::new()), call("kill", 77, vec![signal])],
        ..Default::default()
    };
    let filter = compile(&p).unwrap().unwrap();
    // A thread of its own: the filter stays with it.
    let seen = std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        crate::sys::install_seccomp(&filter.program, filter.flags).unwrap();
        // SAFETY: neither call touches memory.
        unsafe {
            let a = (libc::syscall(libc::SYS_getppid), *libc::__errno_location());
            let b = (libc::syscall(libc::SYS_kill, 0, 12345), *libc::__errno_location());
            let c = libc::syscall(libc::SYS_kill, std::process::id(), 0);
            (a, b, c)
        }
    });
    assert_eq!(seen.join().unwrap(), ((-1, 99), (-1, 77), 0));
}
