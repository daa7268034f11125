//! Memory barriers on every processor.

use crate::error::Errno;

/// `MEMBARRIER_CMD_GLOBAL` (`include/uapi/linux/membarrier.h`).
const GLOBAL: i32 = 1;

fn host(command: i32) -> Result<i64, Errno> {
    // SAFETY: the call takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// Whether the host has [`everywhere`].
#[must_use]
pub fn available() -> bool {
    host(0).is_ok_and(|commands| commands & i64::from(GLOBAL) != 0)
}

/// Every thread of the machine, guest threads among them, passes a full barrier before this returns.
///
/// Guest threads are host threads of a stub. The cheap commands reach threads of the calling process only, and that is the sentry; this
/// one reaches all, at the price of an RCU grace period (milliseconds).
///
/// # Errors
/// EINVAL where the host does not have it (`nohz_full`), ENOSYS.
pub fn everywhere() -> Result<(), Errno> {
    host(GLOBAL).map(|_| ())
}
