//! `F_SETLEASE` and `F_GETLEASE`, and waiting for those who have leases (`fs/locks.c`, `man 2 fcntl`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::{Call, Unready};
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
use crate::sync::lock;
use crate::vfs::access::CAP_LEASE;
use crate::vfs::leases::{Kind, Lease};
use crate::vfs::{FileKind, Flags, Inode, OpenFile, lock_list};

/// Seconds that a holder has (`lease_break_time`), unless somebody sets others.
const BREAK_TIME: i64 = 45;

/// `F_SETLEASE`.
pub(super) fn set(call: &Call<'_>, (fd, open): (i32, &OpenFile), argument: i32) -> SysResult {
    let kind = match argument {
        libc::F_RDLCK => Some(Kind::Read),
        libc::F_WRLCK => Some(Kind::Write),
        libc::F_UNLCK => None,
        _ => return Err(Errno::EINVAL.into()),
    };
    let (inode, who) = (open.inode(), call.task.credentials());
    if who.fsuid != inode.attributes()?.uid && !who.capable(CAP_LEASE) {
        return Err(Errno::EACCES.into());
    }
    if inode.kind() != FileKind::Regular || inode.anonymous() {
        return Err(Errno::EINVAL.into());
    }
    let locks = inode.locks().ok_or(Errno::ENOLCK)?;
    let Some(kind) = kind else {
        locks.unlease(open.id())?;
        return Ok(0);
    };
    let process = call.task.group().pid();
    let enabled = call.kernel.proc.number("sys/fs/leases-enable") != Some(0);
    lock_list::enter(inode);
    locks.lease(Lease::new(open, fd, process, kind), open.flags(), enabled)?;
    lock(open.io_signal()).set_owner_if_none(process, &who);
    Ok(0)
}

/// `F_GETLEASE`.
pub(super) fn of(open: &OpenFile) -> u64 {
    let kind = open.inode().locks().and_then(|locks| locks.lease_of(open.id()));
    let shown = match kind {
        Some(Kind::Read) => libc::F_RDLCK,
        Some(Kind::Write) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    i64::from(shown).cast_unsigned()
}

/// Waits until nobody has a lease any more that somebody who opens the file with these flags would break; the caller is counted as one who
/// has it open.
///
/// # Errors
/// EAGAIN instead of waiting with `O_NONBLOCK`; that a signal came.
pub(super) fn wait(call: &Call<'_>, inode: &Arc<dyn Inode>, flags: Flags) -> Result<(), SysError> {
    let Some(locks) = inode.locks().filter(|locks| locks.leased()) else { return Ok(()) };
    let writes = flags.0 & 3 != 0;
    let seconds = call.kernel.proc.number("sys/fs/lease-break-time").unwrap_or(BREAK_TIME);
    // With no time at all a holder has all there is.
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    let until = seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    for (told, fd) in locks.break_leases(writes, until) {
        call.task.tasks().tell_owner(&told, fd);
    }
    while let Some(until) = locks.lease_waits(writes) {
        if flags.nonblocking() {
            return Err(Errno::EAGAIN.into());
        }
        let gone = || locks.lease_waits(writes).is_none().then_some(());
        match call.wait_until(&[(locks.queue(), Events::CHANGED)], until, gone) {
            Ok(()) => break,
            Err(Unready::TimedOut) => {}
            Err(interrupted) => return Err(interrupted.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Restart;
    use crate::testing::Guest;
    use crate::vfs::FsContext;

    const SET: u64 = libc::F_SETLEASE as u64;
    const READ: u64 = libc::F_RDLCK as u64;
    const WRITE: u64 = libc::F_WRLCK as u64;
    const NONE: u64 = libc::F_UNLCK as u64;

    struct Holder {
        guest: Guest,
        name: u64,
        fd: u64,
    }

    impl Holder {
        /// A process that has a lease of a file, and takes its signals when it likes.
        fn new(kind: u64) -> Self {
            let mut guest = Guest::new(1 << 20, FsContext::default());
            let name = guest.text("/file");
            let made =
                guest.call(libc::SYS_open, &[name, (libc::O_CREAT | libc::O_RDWR) as u64, 0o644]).unwrap();
            guest.call(libc::SYS_close, &[made]).unwrap();
            let set = guest.put(&u64::MAX.to_le_bytes());
            assert_eq!(guest.call(libc::SYS_rt_sigprocmask, &[0, set, 0, 8]), Ok(0));
            let fd = guest.call(libc::SYS_open, &[name, libc::O_RDONLY as u64]).unwrap();
            assert_eq!(guest.call(libc::SYS_fcntl, &[fd, SET, kind]), Ok(0));
            Self { guest, name, fd }
        }

        fn open(&mut self, flags: i32) -> SysResult {
            self.guest.call(libc::SYS_open, &[self.name, flags as u64])
        }

        fn lease(&mut self) -> SysResult {
            self.guest.call(libc::SYS_fcntl, &[self.fd, libc::F_GETLEASE as u64])
        }

        fn break_time(&self, seconds: &str) {
            self.guest.kernel.proc.set("sys/fs/lease-break-time", seconds.into());
        }
    }

    #[test]
    fn a_lease_goes_when_its_time_is_over() {
        let mut holder = Holder::new(WRITE);
        holder.break_time("1");
        let start = Instant::now();
        assert!(holder.open(libc::O_RDONLY).is_ok() && start.elapsed() >= Duration::from_secs(1));
        assert_eq!(holder.lease(), Ok(READ));
        assert!(holder.open(libc::O_WRONLY).is_ok() && start.elapsed() >= Duration::from_secs(2));
        assert_eq!(holder.lease(), Ok(NONE));
        assert_eq!(holder.guest.call(libc::SYS_fcntl, &[holder.fd, libc::F_GETOWN as u64]), Ok(0));
    }

    #[test]
    fn who_does_not_wait_is_told_and_so_is_the_holder() {
        let mut holder = Holder::new(READ);
        assert_eq!(holder.open(libc::O_RDWR | libc::O_NONBLOCK), Err(Errno::EAGAIN.into()));
        assert_eq!(holder.lease(), Ok(NONE));
        let set = holder.guest.put(&(1u64 << (libc::SIGIO - 1)).to_le_bytes());
        let now = holder.guest.put(&[0; 16]);
        let came = holder.guest.call(libc::SYS_rt_sigtimedwait, &[set, 0, now, 8]);
        assert_eq!(came, Ok(libc::SIGIO as u64));
        // Who opens it only to read takes nothing from one who reads.
        let mut holder = Holder::new(READ);
        assert!(holder.open(libc::O_RDONLY).is_ok());
        assert_eq!(holder.lease(), Ok(READ));
    }

    #[test]
    fn with_no_time_at_all_it_stays_until_a_signal_comes() {
        let mut holder = Holder::new(WRITE);
        holder.break_time("0");
        // The first process of all hears of what it has a handler for alone.
        let action = holder.guest.put(&[8, 0, 0, 0].map(u64::to_le_bytes).concat());
        let handled = holder.guest.call(libc::SYS_rt_sigaction, &[libc::SIGIO as u64, action, 0, 8]);
        assert_eq!(handled, Ok(0));
        let set = holder.guest.put(&0u64.to_le_bytes());
        assert_eq!(holder.guest.call(libc::SYS_rt_sigprocmask, &[2, set, 0, 8]), Ok(0));
        // The signal that tells of the lease is its own.
        assert_eq!(holder.open(libc::O_RDONLY), Err(SysError::Interrupted(Restart::IfAsked)));
        assert_eq!(holder.lease(), Ok(READ));
        let locks = holder.guest.task.files().get(0).unwrap();
        assert_eq!(locks.inode().locks().unwrap().lease_waits(false), Some(None));
    }

    #[test]
    fn there_are_no_new_ones_where_they_are_switched_off() {
        let mut holder = Holder::new(WRITE);
        holder.guest.kernel.proc.set("sys/fs/leases-enable", "0".into());
        let fd = holder.fd;
        assert_eq!(holder.guest.call(libc::SYS_fcntl, &[fd, SET, READ]), Ok(0));
        assert_eq!(holder.guest.call(libc::SYS_fcntl, &[fd, SET, NONE]), Ok(0));
        assert_eq!(holder.guest.call(libc::SYS_fcntl, &[fd, SET, READ]), Err(Errno::EINVAL.into()));
    }
}
