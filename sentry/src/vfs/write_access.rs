//! A file is written or run, not both: ETXTBSY (`get_write_access` and `deny_write_access` in `include/linux/fs.h`).

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::{FileKind, Inode};
use crate::error::Errno;

/// How many write a file; below 0, how many run it.
#[derive(Default)]
pub(super) struct Writers(AtomicI32);

impl Writers {
    /// Counts one more of `step`, unless there are some of the other sort.
    fn begin(&self, step: i32) -> Result<(), Errno> {
        let more = |count: i32| {
            if count.signum() == -step { None } else { count.checked_add(step) }
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).map(drop).map_err(|_| Errno::ETXTBSY)
    }

    fn end(&self, step: i32) {
        self.0.fetch_sub(step, Ordering::AcqRel);
    }
}

/// Somebody who writes a file, or runs it, as long as this lives.
pub struct WriteAccess {
    inode: Arc<dyn Inode>,
    step: i32,
}

impl WriteAccess {
    /// Somebody writes. `None` where nobody counts: what is no regular file cannot be run.
    ///
    /// # Errors
    /// ETXTBSY where it runs.
    pub fn write(inode: &Arc<dyn Inode>) -> Result<Option<Self>, Errno> {
        Self::begin(inode, 1)
    }

    /// Somebody runs it.
    ///
    /// # Errors
    /// ETXTBSY where it is open for writing.
    pub fn deny(inode: &Arc<dyn Inode>) -> Result<Option<Self>, Errno> {
        Self::begin(inode, -1)
    }

    fn begin(inode: &Arc<dyn Inode>, step: i32) -> Result<Option<Self>, Errno> {
        let Some(locks) = inode.locks().filter(|_| inode.kind() == FileKind::Regular) else {
            return Ok(None);
        };
        locks.writers.begin(step)?;
        Ok(Some(Self { inode: Arc::clone(inode), step }))
    }
}

impl Drop for WriteAccess {
    fn drop(&mut self) {
        if let Some(locks) = self.inode.locks() {
            locks.writers.end(self.step);
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
        writers.end(1);
        writers.end(1);
        assert_eq!((writers.begin(-1), writers.begin(1)), (Ok(()), Err(Errno::ETXTBSY)));
    }
}
