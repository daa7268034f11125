//! A process as a file (`man 2 pidfd_open`; `fs/pidfs.c`): readable once it ended.

use std::sync::Arc;

use super::{File, Flags, OpenFile};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::task::ThreadGroup;

/// A process as a file.
pub struct PidFd {
    group: Arc<ThreadGroup>,
}

impl PidFd {
    /// A description of a process.
    #[must_use]
    pub fn open(group: &Arc<ThreadGroup>, nonblocking: bool) -> Arc<OpenFile> {
        let wait = if nonblocking { libc::O_NONBLOCK } else { 0 };
        let flags = Flags((libc::O_RDWR | wait).cast_unsigned());
        OpenFile::anonymous(Box::new(Self { group: Arc::clone(group) }), flags, "anon_inode:[pidfd]")
    }

    /// The process.
    #[must_use]
    pub fn group(&self) -> &Arc<ThreadGroup> {
        &self.group
    }
}

impl File for PidFd {
    fn transfers(&self) -> (bool, bool) {
        (false, false)
    }

    fn read(&self, _to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn ready(&self) -> Events {
        if self.group.exit_status().is_some() { Events::IN | Events::RDNORM } else { Events::empty() }
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(self.group.exit_events())
    }
}
