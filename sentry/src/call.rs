//! What a handler of a system call gets, and how it reaches the guest's memory.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Errno, Restart, SysError};
use crate::events::{Events, WaitQueue, Wake};
use crate::kernel::Kernel;
use crate::platform::Thread;
use crate::task::Task;

/// Longest path that a call takes, with its 0 (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;

/// A system call in progress.
pub struct Call<'a> {
    /// The kernel.
    pub kernel: &'a Arc<Kernel>,
    /// Who calls.
    pub task: &'a Arc<Task>,
    /// Its registers and memory.
    pub thread: &'a mut dyn Thread,
}

/// Why a wait ended without what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// A signal is to be delivered.
    Interrupted,
    /// The deadline came.
    TimedOut,
}

impl From<Unready> for SysError {
    /// A signal: ERESTARTSYS. A deadline: EAGAIN (who means something else says so itself).
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Interrupted => Self::Interrupted(Restart::IfAsked),
            Unready::TimedOut => Self::Errno(Errno::EAGAIN),
        }
    }
}

impl Call<'_> {
    /// Fills `to` from the guest.
    ///
    /// # Errors
    /// EFAULT unless all of it is there.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Errno> {
        if self.thread.read(address, to) == to.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Writes `from` to the guest.
    ///
    /// # Errors
    /// EFAULT unless all of it could be written.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        if self.thread.write(address, from) == from.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// As [`read`](Self::read), for an argument that the call reads once: it may be what was there when the call was made.
    ///
    /// # Errors
    /// EFAULT unless all of it is there.
    pub fn read_early(&self, address: u64, to: &mut [u8]) -> Result<(), Errno> {
        if self.thread.read_early(address, to) == to.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// As [`write`](Self::write), for the last thing that the call does, and where a failure changes nothing but its result: EFAULT may come
    /// when the guest goes on.
    ///
    /// # Errors
    /// EFAULT unless all of it could be written.
    pub fn write_result(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        if self.thread.write_late(address, from) { Ok(()) } else { self.write(address, from) }
    }

    /// Whether a range lies in a program's half of the addresses (`access_ok`): what Linux asks of a buffer before anything else, also of
    /// one without bytes.
    ///
    /// # Errors
    /// EFAULT.
    pub fn check_range(&self, address: u64, length: u64) -> Result<(), Errno> {
        const END: u64 = 0x7fff_ffff_f000;
        address.checked_add(length).filter(|end| *end <= END).map(|_| ()).ok_or(Errno::EFAULT)
    }

    /// A fixed number of bytes.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_array<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`read_array`](Self::read_array), for an argument that the call reads once.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_array_early<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        self.read_early(address, &mut bytes)?;
        Ok(bytes)
    }

    /// A 32-bit number.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_u32(&self, address: u64) -> Result<u32, Errno> {
        self.read_array(address).map(u32::from_le_bytes)
    }

    /// A 64-bit number.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_u64(&self, address: u64) -> Result<u64, Errno> {
        self.read_array(address).map(u64::from_le_bytes)
    }

    /// Text up to a 0, which is not part of it, of at most `limit` bytes with it.
    ///
    /// # Errors
    /// EFAULT; ENAMETOOLONG where there is no 0 within the limit.
    pub fn read_text(&self, address: u64, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        while text.len() < limit {
            // Never past the end of a page in one go: the text may end just before what is not mapped.
            let at = address.checked_add(text.len() as u64).ok_or(Errno::EFAULT)?;
            let in_page = 4096 - (at % 4096) as usize;
            let mut part = [0; 256];
            let want = in_page.min(part.len()).min(limit - text.len());
            let got = self.thread.read_text(at, &mut part[..want]);
            if let Some(end) = part[..got].iter().position(|byte| *byte == 0) {
                text.extend_from_slice(&part[..end]);
                return Ok(text);
            }
            if got < want {
                return Err(Errno::EFAULT);
            }
            text.extend_from_slice(&part[..got]);
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// A path.
    ///
    /// # Errors
    /// As [`read_text`](Self::read_text) with [`PATH_MAX`].
    pub fn read_path(&self, address: u64) -> Result<Vec<u8>, Errno> {
        self.read_text(address, PATH_MAX)
    }

    /// Tries until `attempt` gives something, sleeping in between until one of `queues` has news, at most until the deadline.
    ///
    /// # Errors
    /// When a signal comes that the task does not block, or the deadline.
    pub fn block<T>(
        &mut self,
        queues: &[(&WaitQueue, Events)],
        deadline: Option<Instant>,
        mut attempt: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, Unready> {
        let task = self.task;
        wait_on(task, queues, deadline, || attempt(self))
    }

    /// As [`block`](Self::block), for what has no need of the guest's memory.
    ///
    /// # Errors
    /// As there.
    pub fn wait_until<T>(
        &self,
        queues: &[(&WaitQueue, Events)],
        deadline: Option<Instant>,
        attempt: impl FnMut() -> Option<T>,
    ) -> Result<T, Unready> {
        wait_on(self.task, queues, deadline, attempt)
    }
}

fn wait_on<T>(
    task: &Task,
    queues: &[(&WaitQueue, Events)],
    deadline: Option<Instant>,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T, Unready> {
    if let Some(value) = attempt() {
        return Ok(value);
    }
    let waiter = Arc::clone(task.waiter());
    let wake: Arc<dyn Wake> = waiter.clone();
    for (queue, events) in queues {
        queue.add(*events, &wake);
    }
    let result = loop {
        waiter.clear();
        if let Some(value) = attempt() {
            break Ok(value);
        }
        if task.signal_pending() {
            break Err(Unready::Interrupted);
        }
        if !waiter.wait(deadline) {
            break Err(Unready::TimedOut);
        }
    };
    for (queue, _) in queues {
        queue.remove(&wake);
    }
    result
}
