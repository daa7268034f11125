//! The filter of the sentry's host calls. What is not in the table ends the sentry, which says what it was; stubs have a filter of their
//! own (`platform/systrap/filter.rs`) and are not under this one.

use std::sync::atomic::{AtomicBool, Ordering};

use libc::{
    BPF_JEQ, BPF_JGE, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP,
    c_int, c_long, c_void, siginfo_t, sock_filter,
};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Refused;
use super::calls::{self, HostCall, name};
use crate::bpf::{ARCH, AUDIT_ARCH_X86_64, NUMBER, jump, load, ret, rule};
use crate::error::Errno;
use crate::platform::Kind;
use crate::say::Brief;

/// Calls that change the machine: nothing of the sentry's runs after them, not even to say so.
const DEADLY: &[c_long] = &[
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_iopl,
    libc::SYS_ioperm,
];

/// Numbers from here on are calls of other ways to call (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;

/// Who says it.
static GOFER: AtomicBool = AtomicBool::new(false);

/// Exit code when a call was not in the table: as shells show SIGSYS.
const FORBIDDEN: c_int = 128 + libc::SIGSYS;

/// The filter that lets these calls through.
fn program_of<'a>(calls: impl IntoIterator<Item = &'a HostCall>) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCH),
        jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        ret(SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(BPF_JGE, X32, 0, 1),
        ret(SECCOMP_RET_KILL_PROCESS),
    ];
    for call in calls {
        let admitted = match call.error {
            Some(errno) => SECCOMP_RET_ERRNO | errno.cast_unsigned(),
            None => SECCOMP_RET_ALLOW,
        };
        rule(call.number, call.checks, admitted, SECCOMP_RET_TRAP, &mut program);
    }
    for number in DEADLY {
        rule(*number, &[], SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_PROCESS, &mut program);
    }
    program.push(ret(SECCOMP_RET_TRAP));
    program
}

fn program(platform: Kind) -> Vec<sock_filter> {
    program_of(calls::of(platform))
}

/// Says which call it was, with what only a handler of signals may use, and ends the process.
extern "C" fn forbidden(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    /// Where `_sigsys._syscall` lies (`include/uapi/asm-generic/siginfo.h`).
    const CALL: usize = 24;
    // SAFETY: the kernel gives a whole `siginfo_t`, in which a SIGSYS of seccomp has the number of the call there.
    let number = c_long::from(unsafe { info.cast::<u8>().add(CALL).cast::<c_int>().read() });
    let mut line = Brief::new();
    line.push(if GOFER.load(Ordering::Relaxed) { b"kata-cc-gofer" } else { b"kata-cc-sentry" });
    line.push(b": the host call ");
    line.push(name(number).as_bytes());
    line.push(b" (");
    line.push_number(number.unsigned_abs());
    line.push(b") is not one that it makes: it ends\n");
    line.say();
    // SAFETY: ends the process. `abort` would not: number 1 of a namespace of processes gets no SIGABRT.
    unsafe { libc::_exit(FORBIDDEN) }
}

/// Puts all threads of the sentry under its filter.
pub(super) fn install(platform: Kind) -> Result<(), Refused> {
    install_program(&program(platform))
}

/// Puts all threads of a gofer under one that lets these calls through.
pub(crate) fn install_for_gofer<'a>(calls: impl IntoIterator<Item = &'a HostCall>) -> Result<(), Refused> {
    GOFER.store(true, Ordering::Relaxed);
    install_program(&program_of(calls))
}

fn install_program(filter: &[sock_filter]) -> Result<(), Refused> {
    let way_out = "the host's kernel must have CONFIG_SECCOMP_FILTER";
    let refused = |errno| Refused { step: "the filter of host calls", errno, way_out };
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(forbidden), flags, SigSet::all());
    // SAFETY: the handler makes two calls to the kernel and touches nothing else.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map_err(refused)?;
    let length = u16::try_from(filter.len()).map_err(|_| refused(Errno::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC;
    // SAFETY: the program lives during the call, and the kernel copies it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match Errno::result(result).map_err(refused)? {
        0 => Ok(()),
        // The number of a thread that has another filter.
        _ => Err(refused(Errno::ESRCH)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::calls::{CALLS, THREAD_FLAGS, count};
    use super::*;
    use crate::bpf::{run, run_on};

    fn answer(number: c_long, arguments: [u64; 6]) -> u32 {
        run(&program(Kind::Systrap), number, 0x1234, arguments)
    }

    #[test]
    fn the_list_is_short_and_names_each_once() {
        let numbers: std::collections::BTreeSet<_> = CALLS.iter().map(|call| call.number).collect();
        assert_eq!(numbers.len(), CALLS.len());
        assert!(DEADLY.iter().all(|number| !numbers.contains(number)));
        for platform in Kind::ALL {
            assert!(count(platform) <= 60, "{platform}: {} calls", count(platform));
            assert!(program(platform).len() <= 4096, "BPF_MAXINSNS");
        }
    }

    #[test]
    fn what_one_platform_makes_the_others_may_not() {
        for (request, admitted) in [(libc::PTRACE_SYSEMU, true), (libc::PTRACE_POKEDATA, false)] {
            let arguments = [u64::from(request), 7, 0, 0, 0, 0];
            let expected = if admitted { SECCOMP_RET_ALLOW } else { SECCOMP_RET_TRAP };
            let answer = run(&program(Kind::Ptrace), libc::SYS_ptrace, 0x1234, arguments);
            assert_eq!(answer, expected, "{request}");
        }
        assert_eq!(answer(libc::SYS_ptrace, [31, 7, 0, 0, 0, 0]), SECCOMP_RET_TRAP);
    }

    #[test]
    fn what_is_not_in_the_table_traps() {
        for number in 0..600 {
            if !calls::of(Kind::Systrap).any(|call| call.number == number) && !DEADLY.contains(&number) {
                assert_eq!(answer(number, [0; 6]), SECCOMP_RET_TRAP, "{}", name(number));
            }
        }
        for number in DEADLY {
            assert_eq!(answer(*number, [0; 6]), SECCOMP_RET_KILL_PROCESS);
        }
        assert_eq!(answer(i64::from(X32) + libc::SYS_read, [0; 6]), SECCOMP_RET_KILL_PROCESS);
        const I386: u32 = 0x4000_0003;
        assert_eq!(
            run_on(I386, &program(Kind::Systrap), libc::SYS_read, 0, [0; 6]),
            SECCOMP_RET_KILL_PROCESS
        );
    }

    #[test]
    fn arguments_decide() {
        let at_cwd = u64::from(libc::AT_FDCWD.cast_unsigned());
        let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let read_only = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
        for (number, arguments, admitted) in [
            (libc::SYS_openat, [3, 1, read_only, 0, 0, 0], true),
            (libc::SYS_openat, [5, 1, read_only, 0, 0, 0], false),
            (libc::SYS_openat, [3, 1, read_only | 1, 0, 0, 0], false),
            (libc::SYS_openat, [at_cwd, 1, read_only, 0, 0, 0], false),
            (libc::SYS_newfstatat, [7, 1, 1, libc::AT_EMPTY_PATH as u64, 0, 0], true),
            (libc::SYS_newfstatat, [7, 1, 1, 0, 0, 0], false),
            (libc::SYS_newfstatat, [u64::MAX - 99, 1, 1, libc::AT_EMPTY_PATH as u64, 0, 0], false),
            (libc::SYS_sendmsg, [7, 1, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64, 0, 0, 0], true),
            (libc::SYS_sendmsg, [7, 1, libc::MSG_NOSIGNAL as u64, 0, 0, 0], false),
            (libc::SYS_recvmsg, [7, 1, libc::MSG_CMSG_CLOEXEC as u64, 0, 0, 0], true),
            (libc::SYS_recvmsg, [7, 1, 0, 0, 0, 0], false),
            (libc::SYS_mmap, [0, 4096, 3, private, u64::MAX, 0], true),
            (libc::SYS_mmap, [0, 4096, executable, private, u64::MAX, 0], false),
            (libc::SYS_mprotect, [0, 4096, executable, 0, 0, 0], false),
            (libc::SYS_clone, [THREAD_FLAGS, 0, 0, 0, 0, 0], true),
            (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0], false),
            (libc::SYS_clone, [THREAD_FLAGS | libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0], false),
            (libc::SYS_kill, [7, 9, 0, 0, 0, 0], true),
            (libc::SYS_kill, [7, 15, 0, 0, 0, 0], false),
            (libc::SYS_kill, [u64::MAX, 9, 0, 0, 0, 0], false),
            (libc::SYS_kill, [u64::from(u32::MAX), 9, 0, 0, 0, 0], false),
            (libc::SYS_tgkill, [7, 8, 23, 0, 0, 0], true),
            (libc::SYS_tgkill, [7, 8, 9, 0, 0, 0], false),
            (libc::SYS_prctl, [15, 1, 0, 0, 0, 0], true),
            (libc::SYS_prctl, [4, 1, 0, 0, 0, 0], false),
            (libc::SYS_ioctl, [0, 0x5401, 0, 0, 0, 0], true),
            // TIOCSTI puts bytes into the input of whoever has the terminal.
            (libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0], false),
            (libc::SYS_fcntl, [0, libc::F_SETOWN as u64, 0, 0, 0, 0], false),
            (libc::SYS_socketpair, [1, 0x8_0002, 0, 0, 0, 0], true),
            (libc::SYS_socketpair, [2, 0x8_0002, 0, 0, 0, 0], false),
        ] {
            let expected = if admitted { SECCOMP_RET_ALLOW } else { SECCOMP_RET_TRAP };
            assert_eq!(answer(number, arguments), expected, "{} {arguments:x?}", name(number));
        }
        assert_eq!(answer(libc::SYS_clone3, [0; 6]), SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned());
    }
}
