//! The host calls of the sentry, once guests run: what each is needed for, and what its arguments must be.

use std::fmt::Write as _;

use libc::c_long;

use super::rooms::{CPUS, PROCESSES};
use crate::bpf::Check::{self, Is, Natural, OneOf, Within};
use crate::platform::Kind;
use crate::platform::systrap::INTERRUPT;
use crate::syscalls::names;

/// A call and what is asked of its arguments, by their place.
pub(crate) struct HostCall {
    pub(crate) number: c_long,
    pub(crate) checks: &'static [(u32, Check)],
    /// It is answered with this error and not made.
    pub(crate) error: Option<i32>,
    /// Where only one platform makes it.
    pub(crate) platform: Option<Kind>,
    arguments: &'static str,
    why: &'static str,
}

pub(crate) const fn any(number: c_long, why: &'static str) -> HostCall {
    HostCall { number, checks: &[], error: None, platform: None, arguments: "", why }
}

pub(crate) const fn only(
    number: c_long,
    checks: &'static [(u32, Check)],
    arguments: &'static str,
    why: &'static str,
) -> HostCall {
    HostCall { number, checks, error: None, platform: None, arguments, why }
}

/// The C library takes `clone` then, whose flags a filter can see.
pub(crate) const NO_CLONE3: HostCall = HostCall {
    number: libc::SYS_clone3,
    checks: &[],
    error: Some(libc::ENOSYS),
    platform: None,
    arguments: "always ENOSYS",
    why: "its flags lie in memory; the C library takes `clone` then",
};

pub(crate) const PROTECTION: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

pub(crate) const MAP_FLAGS: u32 = (libc::MAP_SHARED
    | libc::MAP_PRIVATE
    | libc::MAP_FIXED
    | libc::MAP_ANONYMOUS
    | libc::MAP_NORESERVE
    | libc::MAP_STACK) as u32;

/// Flags of the C library's threads (glibc's `sysdeps/unix/sysv/linux/createthread.c`, musl's `pthread_create.c`).
pub(crate) const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

const TERMINAL: &[u32] = &[
    libc::TCGETS as u32,
    libc::TCSETS as u32,
    libc::TCSETSW as u32,
    libc::TCSETSF as u32,
    libc::TIOCGWINSZ as u32,
    libc::TIOCSWINSZ as u32,
];

const FCNTL: &[u32] = &[
    libc::F_GETFD as u32,
    libc::F_SETFD as u32,
    libc::F_GETFL as u32,
    libc::F_DUPFD_CLOEXEC as u32,
    libc::F_ADD_SEALS as u32,
];

/// WAIT, WAKE, and the private WAIT_BITSET, with either clock, that the standard library waits by.
pub(crate) const FUTEX: &[u32] = &[0, 1, 128, 129, 9 | 128, 9 | 128 | 256];

const MEMORY_FILE: u32 = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_NOEXEC_SEAL;

const SOCKET: u64 = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;

const READ_ONLY: u64 = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;

/// What a tracer asks of stubs (`include/uapi/linux/ptrace.h`).
const TRACING: &[u32] = &[
    libc::PTRACE_SEIZE,
    libc::PTRACE_INTERRUPT,
    libc::PTRACE_CONT,
    libc::PTRACE_SYSEMU,
    libc::PTRACE_SYSEMU_SINGLESTEP,
    libc::PTRACE_GETREGS,
    libc::PTRACE_SETREGS,
    libc::PTRACE_GETREGSET,
    libc::PTRACE_SETREGSET,
    libc::PTRACE_GETSIGINFO,
    libc::PTRACE_DETACH,
];

/// Those that are made most come first, as the filter looks at one after the other.
pub(super) const CALLS: &[HostCall] = &[
    only(libc::SYS_futex, &[(1, OneOf(FUTEX))], "WAIT, WAKE, WAIT_BITSET", "turns with stubs; locks"),
    only(libc::SYS_process_vm_readv, &[(0, Natural), (5, Is(0))], "one process", "reading a guest's memory"),
    only(libc::SYS_process_vm_writev, &[(0, Natural), (5, Is(0))], "one process", "writing a guest's memory"),
    any(libc::SYS_read, "the standard streams; pipes"),
    any(libc::SYS_write, "the standard streams; what it logs"),
    any(libc::SYS_pread64, "open files of the host, and in memory"),
    any(libc::SYS_pwrite64, "the same"),
    any(libc::SYS_poll, "whether a stream would wait"),
    any(libc::SYS_epoll_wait, "news of the standard streams"),
    any(libc::SYS_epoll_ctl, "news of the standard streams"),
    only(
        libc::SYS_epoll_create1,
        &[(0, Is(libc::EPOLL_CLOEXEC as u64))],
        "CLOEXEC",
        "the same, at the start",
    ),
    only(
        libc::SYS_openat,
        &[(0, OneOf(&[PROCESSES as u32, CPUS as u32])), (2, Is(READ_ONLY))],
        "below descriptors 3 and 4, to read",
        "memory that a stub uses, and that memory for a checkpoint; what CPUs are like",
    ),
    any(libc::SYS_close, "files that are not used any more"),
    only(
        libc::SYS_newfstatat,
        &[(0, Natural), (3, Is(libc::AT_EMPTY_PATH as u64))],
        "of a descriptor",
        "attributes of open files",
    ),
    any(libc::SYS_fstat, "the same"),
    any(libc::SYS_lseek, "holes of files"),
    only(
        libc::SYS_fcntl,
        &[(1, OneOf(FCNTL))],
        "GETFD, SETFD, GETFL, DUPFD_CLOEXEC, ADD_SEALS",
        "copies of descriptors",
    ),
    only(
        libc::SYS_ioctl,
        &[(1, OneOf(TERMINAL))],
        "settings and size of a terminal",
        "a terminal as standard stream",
    ),
    only(
        libc::SYS_memfd_create,
        &[(1, Within(MEMORY_FILE))],
        "CLOEXEC, seals",
        "contexts of stubs; files in memory",
    ),
    any(libc::SYS_ftruncate, "their sizes"),
    any(libc::SYS_fallocate, "holes in them"),
    any(libc::SYS_fdatasync, "`fsync` and `msync` of a file"),
    only(
        libc::SYS_mmap,
        &[(2, Within(PROTECTION)), (3, Within(MAP_FLAGS))],
        "nothing executable",
        "contexts of stubs; the heap; stacks of threads",
    ),
    only(libc::SYS_mprotect, &[(2, Within(PROTECTION))], "nothing executable", "the heap; stacks of threads"),
    any(libc::SYS_munmap, "contexts of stubs; the heap"),
    any(libc::SYS_mremap, "the heap"),
    any(libc::SYS_brk, "the heap"),
    only(
        libc::SYS_madvise,
        &[(2, OneOf(&[libc::MADV_DONTNEED as u32, libc::MADV_FREE as u32, libc::MADV_HUGEPAGE as u32]))],
        "DONTNEED, FREE, HUGEPAGE",
        "stacks of threads that ended; the heap",
    ),
    any(libc::SYS_membarrier, "`membarrier` of a guest"),
    only(libc::SYS_clone, &[(0, Is(THREAD_FLAGS))], "a thread", "threads that serve guest threads"),
    NO_CLONE3,
    any(libc::SYS_set_robust_list, "the C library's start of a thread"),
    any(libc::SYS_rseq, "the C library's start of a thread"),
    any(libc::SYS_gettid, "a thread's own clock; locks"),
    any(libc::SYS_getpid, "`abort`"),
    any(libc::SYS_sched_getaffinity, "which CPUs there are"),
    only(
        libc::SYS_sched_setaffinity,
        &[(0, Natural), (1, Is(size_of::<libc::cpu_set_t>() as u64))],
        "one thread",
        "waking a stub on another processor than the sentry's",
    ),
    any(libc::SYS_sched_yield, "waiting for a moment"),
    any(libc::SYS_getcpu, "`getcpu` of a guest"),
    only(libc::SYS_prctl, &[(0, OneOf(&[libc::PR_SET_NAME as u32]))], "SET_NAME", "names of threads"),
    any(libc::SYS_exit, "end of a thread"),
    any(libc::SYS_exit_group, "end of the sandbox"),
    only(
        libc::SYS_kill,
        &[(0, Natural), (1, Is(libc::SIGKILL as u64))],
        "SIGKILL, one process",
        "end of a stub; there are no others in its namespace",
    ),
    only(
        libc::SYS_tgkill,
        &[(0, Natural), (2, OneOf(&[0, INTERRUPT as u32, libc::SIGABRT as u32]))],
        "none, SIGURG, SIGABRT",
        "whether a stub has a thread; interrupting a guest thread; `abort`",
    ),
    any(libc::SYS_waitid, "end of stubs"),
    any(libc::SYS_wait4, "end of stubs"),
    only(
        libc::SYS_socketpair,
        &[(0, Is(libc::AF_UNIX as u64)), (1, Is(SOCKET))],
        "AF_UNIX, SOCK_DGRAM",
        "the way of files to a new stub",
    ),
    only(
        libc::SYS_sendmsg,
        &[(2, Is((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64))],
        "DONTWAIT, NOSIGNAL",
        "files that a stub maps; requests to the gofer",
    ),
    only(
        libc::SYS_recvmsg,
        &[(2, Is(libc::MSG_CMSG_CLOEXEC as u64))],
        "CMSG_CLOEXEC",
        "files from the gofer; orders of the monitor",
    ),
    HostCall {
        number: libc::SYS_ptrace,
        checks: &[(0, OneOf(TRACING)), (1, Natural)],
        error: None,
        platform: Some(Kind::Ptrace),
        arguments: "starting, stopping, registers of one process; with `--platform ptrace` only",
        why: "running guest code",
    },
    any(libc::SYS_getrandom, "random bytes; seeds of hash tables"),
    any(libc::SYS_clock_gettime, "clocks of threads, and those that the vDSO does not have"),
    any(libc::SYS_sysinfo, "memory and load of the machine"),
    any(libc::SYS_rt_sigaction, "`abort`; the end of a thread that ran out of stack"),
    any(libc::SYS_rt_sigprocmask, "making a thread; `abort`"),
    any(libc::SYS_rt_sigreturn, "end of a handler of signals"),
    any(libc::SYS_sigaltstack, "the standard library's threads"),
    any(libc::SYS_restart_syscall, "waiting that a stop of the process interrupted"),
];

/// Those that the sentry makes with a platform.
pub(super) fn of(platform: Kind) -> impl Iterator<Item = &'static HostCall> {
    CALLS.iter().filter(move |call| call.platform.is_none_or(|only| only == platform))
}

/// How many calls there are with a platform.
#[must_use]
pub fn count(platform: Kind) -> usize {
    of(platform).count()
}

/// The name of a call of the host.
pub(crate) fn name(number: c_long) -> &'static str {
    u64::try_from(number).ok().and_then(names::name).unwrap_or("?")
}

/// The table for the documentation.
#[must_use]
pub fn markdown() -> String {
    table(CALLS)
}

/// Some calls as a table.
pub(crate) fn table<'a>(calls: impl IntoIterator<Item = &'a HostCall>) -> String {
    let mut text = "| call | arguments | why |\n|---|---|---|\n".to_owned();
    for call in calls {
        let _ = writeln!(text, "| `{}` | {} | {} |", name(call.number), call.arguments, call.why);
    }
    text
}
