//! What a guest thread does without the sentry, where a platform can.

/// Calls that a platform may answer by itself: their value depends on nothing that the caller says.
pub const ANSWERED: [i64; 7] = [
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getppid,
];

/// Calls that a platform may answer as it was told before ([`Thread::remember`](super::Thread::remember)).
pub const REMEMBERED: [i64; 11] = [
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
];

/// What a thread may do without the sentry, besides [`ANSWERED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByItself {
    /// Answer calls of [`REMEMBERED`] from what is kept.
    pub remembers: bool,
    /// Wait for and wake threads of its address space ([`Thread::count_sleepers`](super::Thread::count_sleepers)).
    pub waits: bool,
}
