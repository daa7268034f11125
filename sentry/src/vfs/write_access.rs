//! A file is written or run, not both: ETXTBSY (`get_write_access` and `deny_write_access` in `include/linux/fs.h`). And who only reads
//! it is counted, for leases (`i_readcount`).

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::{FileKind, Flags, Inode};
use crate::error::Errno;

/// How many write a file, below 0 how many run it; and how many have it open for reading alone.
///
/// Who opens a file counts itself and then looks for leases; who wants a lease says so and then looks here. So that one of them sees the
/// other, both do it in the one order that all agree on.
#[derive(Default)]
pub(super) struct Writers {
    writers: AtomicI32,
    readers: AtomicI32,
}

impl Writers {
    /// Counts one more of `step`, unless there are some of the other sort.
    fn begin(&self, step: i32) -> Result<(), Errno> {
        let more = |count: i32| {
            if count.signum() == -step { None } else { count.checked_add(step) }
        };
        let counted = self.writers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        counted.map(drop).map_err(|_| Errno::ETXTBSY)
    }

    /// Whether nobody writes it.
    pub(super) fn unwritten(&self) -> bool {
        self.writers.load(Ordering::SeqCst) <= 0
    }

    /// Whether nobody has it open, and nobody runs it, but by one description with these flags.
    pub(super) fn only(&self, flags: Flags) -> bool {
        let own = match Use::of(flags) {
            Some(Use::Write) => (1, 0),
            Some(Use::Read) => (0, 1),
            _ => (0, 0),
        };
        own == (self.writers.load(Ordering::SeqCst), self.readers.load(Ordering::SeqCst))
    }
}

/// What somebody does with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    Run,
}

impl Use {
    /// What an open description is for.
    fn of(flags: Flags) -> Option<Self> {
        if flags.writable() { Some(Self::Write) } else { flags.readable().then_some(Self::Read) }
    }
}

/// Somebody who writes a file, runs it, or has it open for reading alone, as long as this lives.
pub struct WriteAccess {
    inode: Arc<dyn Inode>,
    of: Use,
}

impl WriteAccess {
    /// Somebody writes. `None` where nobody counts: what is no regular file cannot be run.
    ///
    /// # Errors
    /// ETXTBSY where it runs.
    pub fn write(inode: &Arc<dyn Inode>) -> Result<Option<Self>, Errno> {
        Self::begin(inode, Use::Write)
    }

    /// Somebody opens it. `None` also where that is for neither reading nor writing.
    ///
    /// # Errors
    /// ETXTBSY where it runs and is to be written.
    pub fn open(inode: &Arc<dyn Inode>, flags: Flags) -> Result<Option<Self>, Errno> {
        Use::of(flags).map_or(Ok(None), |of| Self::begin(inode, of))
    }

    /// Somebody runs it.
    ///
    /// # Errors
    /// ETXTBSY where it is open for writing.
    pub fn deny(inode: &Arc<dyn Inode>) -> Result<Option<Self>, Errno> {
        Self::begin(inode, Use::Run)
    }

    fn begin(inode: &Arc<dyn Inode>, of: Use) -> Result<Option<Self>, Errno> {
        let Some(locks) = inode.locks().filter(|_| inode.kind() == FileKind::Regular) else {
            return Ok(None);
        };
        match of {
            Use::Read => {
                locks.writers.readers.fetch_add(1, Ordering::SeqCst);
            }
            Use::Write => locks.writers.begin(1)?,
            Use::Run => locks.writers.begin(-1)?,
        }
        Ok(Some(Self { inode: Arc::clone(inode), of }))
    }
}

impl Drop for WriteAccess {
    fn drop(&mut self) {
        if let Some(locks) = self.inode.locks() {
            let (count, step) = match self.of {
                Use::Read => (&locks.writers.readers, 1),
                Use::Write => (&locks.writers.writers, 1),
                Use::Run => (&locks.writers.writers, -1),
            };
            count.fetch_sub(step, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_and_runners_keep_each_other_out() {
        let writers = Writers::default();
        assert_eq!((writers.begin(1), writers.begin(1)), (Ok(()), Ok(())));
        assert_eq!(writers.begin(-1), Err(Errno::ETXTBSY));
        assert!(!writers.unwritten() && !writers.only(Flags::READ_WRITE));
        writers.writers.fetch_sub(2, Ordering::SeqCst);
        assert_eq!((writers.begin(-1), writers.begin(1)), (Ok(()), Err(Errno::ETXTBSY)));
        // What runs is not written, but somebody has it.
        assert!(writers.unwritten() && !writers.only(Flags(3)));
    }
}
