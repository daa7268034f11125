//! The one system call that no safe wrapper exists for.
#![allow(unsafe_code, reason = "prctl(PR_SCHED_CORE) has no safe wrapper")]

use std::io;

const PR_SCHED_CORE: libc::c_int = 62;
const CREATE: libc::c_ulong = 1;
const SCOPE_THREAD_GROUP: libc::c_ulong = 1;

/// Give this process (and what it starts) a core-scheduling cookie of its own: hyper-threads of one core are then
/// never shared with another pod.
pub(crate) fn share_core_with_nobody() -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: PR_SCHED_CORE with CREATE on the own process takes integers only and touches no memory of ours.
    let result = unsafe { libc::prctl(PR_SCHED_CORE, CREATE, zero, SCOPE_THREAD_GROUP, zero) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
