//! `eventfd` (`man 2 eventfd`).

use std::sync::{Arc, Mutex};

use super::sync::lock;
use super::{File, Flags, OpenFile};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};

/// The most that the counter can be.
const MAX: u64 = u64::MAX - 1;

/// A counter as a file.
pub struct EventFd {
    count: Mutex<u64>,
    semaphore: bool,
    queue: WaitQueue,
}

impl EventFd {
    /// With a first count; as a `semaphore` each read takes 1.
    #[must_use]
    pub fn open(count: u32, semaphore: bool, nonblocking: bool) -> Arc<OpenFile> {
        let file = Self { count: Mutex::new(u64::from(count)), semaphore, queue: WaitQueue::new() };
        let wait = if nonblocking { libc::O_NONBLOCK } else { 0 };
        let flags = Flags((libc::O_RDWR | wait).cast_unsigned());
        OpenFile::anonymous(Box::new(file), flags, "anon_inode:[eventfd]")
    }
}

impl EventFd {
    /// Its count, and whether it is a semaphore.
    pub(crate) fn saved(&self) -> (u64, bool) {
        (*lock(&self.count), self.semaphore)
    }

    /// One with any count.
    pub(crate) fn restored(count: u64, semaphore: bool, flags: Flags) -> Arc<OpenFile> {
        let file = Self { count: Mutex::new(count.min(MAX)), semaphore, queue: WaitQueue::new() };
        OpenFile::anonymous(Box::new(file), flags, "anon_inode:[eventfd]")
    }
}

impl File for EventFd {
    fn ignores_seek(&self) -> bool {
        true
    }

    fn details(&self) -> String {
        format!("eventfd-count: {:16x}\n", *lock(&self.count))
    }

    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        let Some(to) = to.get_mut(..8) else { return Err(Errno::EINVAL) };
        let value = {
            let mut count = lock(&self.count);
            let value = match *count {
                0 => return Err(Errno::EAGAIN),
                _ if self.semaphore => 1,
                all => all,
            };
            *count = count.saturating_sub(value);
            value
        };
        to.copy_from_slice(&value.to_ne_bytes());
        self.queue.notify(Events::OUT | Events::WRNORM);
        Ok(8)
    }

    fn write(&self, from: &[u8], _offset: u64) -> Result<usize, Errno> {
        let bytes = <[u8; 8]>::try_from(from).map_err(|_| Errno::EINVAL)?;
        let value = u64::from_ne_bytes(bytes);
        if value > MAX {
            return Err(Errno::EINVAL);
        }
        {
            let mut count = lock(&self.count);
            let sum = count.checked_add(value).filter(|sum| *sum <= MAX).ok_or(Errno::EAGAIN)?;
            *count = sum;
        }
        self.queue.notify(Events::IN | Events::RDNORM);
        Ok(8)
    }

    fn ready(&self) -> Events {
        let count = *lock(&self.count);
        let mut ready = Events::empty();
        if count > 0 {
            ready |= Events::IN | Events::RDNORM;
        }
        if count < MAX {
            ready |= Events::OUT | Events::WRNORM;
        }
        ready
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::Caller;

    #[test]
    fn counts() {
        let root = Caller::root();
        let file = EventFd::open(3, false, true);
        let mut bytes = [0; 8];
        assert_eq!(file.write(&root, &4u64.to_ne_bytes()), Ok(8));
        assert_eq!(file.read(&mut bytes), Ok(8));
        assert_eq!(u64::from_ne_bytes(bytes), 7);
        assert_eq!(file.read(&mut bytes), Err(Errno::EAGAIN));
        assert_eq!(file.read(&mut bytes[..7]), Err(Errno::EINVAL));
        assert_eq!(file.write(&root, &u64::MAX.to_ne_bytes()), Err(Errno::EINVAL));
        assert_eq!(file.write(&root, &MAX.to_ne_bytes()), Ok(8));
        assert_eq!(file.write(&root, &1u64.to_ne_bytes()), Err(Errno::EAGAIN));
        let file = EventFd::open(2, true, true);
        assert_eq!(file.read(&mut bytes), Ok(8));
        assert_eq!((u64::from_ne_bytes(bytes), file.file().ready().contains(Events::IN)), (1, true));
    }
}
