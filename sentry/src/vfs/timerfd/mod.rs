//! `timerfd` as a file (`man 2 timerfd_create`): the timer itself is in [`crate::time`].

use std::sync::Arc;

use super::{File, Flags, OpenFile};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::time::TimerFd;

/// A timer that is read.
pub struct TimerFile {
    timer: TimerFd,
}

impl TimerFile {
    /// A description of a timer.
    #[must_use]
    pub fn open(timer: TimerFd, nonblocking: bool) -> Arc<OpenFile> {
        let wait = if nonblocking { libc::O_NONBLOCK } else { 0 };
        let flags = Flags((libc::O_RDWR | wait).cast_unsigned());
        OpenFile::anonymous(Box::new(Self { timer }), flags, "anon_inode:[timerfd]")
    }

    /// The timer.
    #[must_use]
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }
}

impl File for TimerFile {
    fn transfers(&self) -> (bool, bool) {
        (true, false)
    }

    fn ignores_seek(&self) -> bool {
        true
    }

    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        let to = to.get_mut(..8).ok_or(Errno::EINVAL)?;
        let count = self.timer.take().ok_or(Errno::EAGAIN)?;
        to.copy_from_slice(&count.to_ne_bytes());
        Ok(8)
    }

    fn ready(&self) -> Events {
        self.timer.ready()
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(self.timer.events())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::time::{Clock, Clocks, Setting, Timers};

    #[test]
    fn a_read_takes_all_expirations() {
        let timer = TimerFd::new(&Timers::default(), Clocks::new(), &Clock::Monotonic);
        let file = TimerFile::open(timer, true);
        let mut bytes = [0; 8];
        assert_eq!(file.read(&mut bytes), Err(Errno::EAGAIN));
        assert_eq!(file.read(&mut bytes[..7]), Err(Errno::EINVAL));
        let Some(timer) = file.downcast::<TimerFile>() else { panic!("another file") };
        let ms = Duration::from_millis(2);
        timer.timer().set(Setting { value: ms, interval: ms }, false);
        std::thread::sleep(Duration::from_millis(30));
        assert!(file.file().ready().contains(Events::IN));
        assert_eq!(file.read(&mut bytes), Ok(8));
        assert!(u64::from_ne_bytes(bytes) >= 5, "{bytes:?}");
    }
}
