//! Pipes, with and without a name (`fs/pipe.c` of Linux, `man 7 pipe`).

mod slots;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use self::slots::Slots;
use super::sync::lock;
use super::{File, Flags, Inode, OpenFile, anon};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};

/// What is written in one go up to this is never torn (`PIPE_BUF`).
pub const ATOMIC: usize = 4096;
/// Bytes that a pipe holds unless told otherwise.
const CAPACITY: usize = 65_536;
/// Most that an unprivileged process may ask for (`fs.pipe-max-size`).
pub const CAPACITY_MAX: usize = 1 << 20;

/// A pipe.
pub struct Pipe {
    state: Mutex<State>,
    queue: WaitQueue,
}

struct State {
    slots: Slots,
    capacity: usize,
    readers: u32,
    writers: u32,
    /// How often it was opened for reading and for writing.
    opened: (u64, u64),
}

impl State {
    /// Bytes that can be written however they come: whole buffers.
    fn room(&self) -> usize {
        (self.capacity / ATOMIC).saturating_sub(self.slots.used()).saturating_mul(ATOMIC)
    }
}

impl Pipe {
    /// Empty, with both ends closed.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let state =
            State { slots: Slots::default(), capacity: CAPACITY, readers: 0, writers: 0, opened: (0, 0) };
        Arc::new(Self { state: Mutex::new(state), queue: WaitQueue::new() })
    }

    /// Both ends of a new pipe, for reading and for writing. Of `flags` only `O_NONBLOCK` and `O_DIRECT` matter.
    ///
    /// # Errors
    /// None today.
    pub fn pair(flags: Flags) -> Result<[Arc<OpenFile>; 2], Errno> {
        let pipe = Self::new();
        let inode = anon::of_pipe(&pipe);
        let end = |access: i32| -> Result<Arc<OpenFile>, Errno> {
            let flags = Flags(flags.0 & !3 | access.cast_unsigned());
            let file = PipeFile::new(&pipe, flags);
            Ok(OpenFile::nameless(Arc::clone(&inode) as Arc<dyn Inode>, Box::new(file), flags))
        };
        Ok([end(libc::O_RDONLY)?, end(libc::O_WRONLY)?])
    }

    /// An end of a FIFO.
    ///
    /// # Errors
    /// ENXIO for writing without waiting where nobody reads.
    pub fn open(self: &Arc<Self>, flags: Flags) -> Result<PipeFile, Errno> {
        let only_writes = flags.writable() && !flags.readable();
        if only_writes && flags.nonblocking() && lock(&self.state).readers == 0 {
            return Err(Errno::ENXIO);
        }
        Ok(PipeFile::new(self, flags))
    }

    /// A further end of a pipe without a name (`/proc/self/fd`): nobody waits for the other end, which may have gone for good
    /// (`fifo_open` in `fs/pipe.c`).
    pub(super) fn reopen(self: &Arc<Self>, flags: Flags) -> PipeFile {
        let mut file = PipeFile::new(self, flags);
        file.opened = MET;
        file
    }
}

impl Pipe {
    /// How much it takes, and what is in it.
    pub(crate) fn saved(&self) -> (u64, Vec<(Vec<u8>, bool)>) {
        let state = lock(&self.state);
        (state.capacity as u64, state.slots.saved())
    }

    /// A pipe with this in it, and its inode; `None` for more than a pipe takes.
    pub(crate) fn restored(capacity: u64, slots: &[(Vec<u8>, bool)]) -> Option<(Arc<Self>, Arc<dyn Inode>)> {
        let pipe = Self::new();
        {
            let mut state = lock(&pipe.state);
            state.capacity = usize::try_from(capacity).ok().filter(|capacity| {
                capacity.is_power_of_two() && (ATOMIC..=CAPACITY_MAX).contains(capacity)
            })?;
            state.slots = Slots::restored(slots)?;
            if state.slots.used() > state.capacity / ATOMIC {
                return None;
            }
        }
        let inode = anon::of_pipe(&pipe);
        Some((pipe, inode))
    }

    /// One more end of it.
    pub(crate) fn end(self: &Arc<Self>, inode: &Arc<dyn Inode>, flags: Flags) -> Arc<OpenFile> {
        OpenFile::nameless(Arc::clone(inode), Box::new(self.reopen(flags)), flags)
    }
}

/// No count of openings: who was met at once is not waited for, though it may be gone before somebody looks.
const MET: (u64, u64) = (u64::MAX, u64::MAX);

/// An end of a pipe, or both.
pub struct PipeFile {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    /// Whether what is written stays together (`O_DIRECT`).
    packets: AtomicBool,
    /// How often it had been opened when this was; [`MET`] where the other end was there then.
    opened: (u64, u64),
}

impl PipeFile {
    fn new(pipe: &Arc<Pipe>, flags: Flags) -> Self {
        let (reads, writes) = (flags.readable(), flags.writable());
        let mut state = lock(&pipe.state);
        state.readers = state.readers.saturating_add(u32::from(reads));
        state.writers = state.writers.saturating_add(u32::from(writes));
        let met = (!reads || state.writers > 0) && (!writes || state.readers > 0);
        let opened = if met { MET } else { state.opened };
        state.opened.0 = state.opened.0.saturating_add(u64::from(reads));
        state.opened.1 = state.opened.1.saturating_add(u64::from(writes));
        drop(state);
        pipe.queue.notify(Events::IN | Events::OUT | Events::CHANGED);
        let packets = AtomicBool::new(flags.has(libc::O_DIRECT));
        Self { pipe: Arc::clone(pipe), reads, writes, packets, opened }
    }

    /// Whether the other end is there, or was there since this end was opened: what opening a FIFO waits for.
    #[must_use]
    pub fn met(&self) -> bool {
        let state = lock(&self.pipe.state);
        (!self.reads || state.writers > 0 || state.opened.1 != self.opened.1)
            && (!self.writes || state.readers > 0 || state.opened.0 != self.opened.0)
    }

    /// The pipe that it is an end of.
    pub(crate) fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Whether both are ends of the same pipe.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pipe, &other.pipe)
    }

    /// Copies what would be read, and leaves it there (`tee`).
    ///
    /// # Errors
    /// EAGAIN where there is nothing.
    pub fn peek(&self, to: &mut [u8]) -> Result<usize, Errno> {
        let state = lock(&self.pipe.state);
        if state.slots.is_empty() && state.writers > 0 {
            return Err(Errno::EAGAIN);
        }
        Ok(state.slots.peek(to))
    }

    /// Bytes that can be written without waiting, however they come.
    #[must_use]
    pub fn room(&self) -> usize {
        lock(&self.pipe.state).room()
    }

    /// Bytes that it can hold (`F_GETPIPE_SZ`).
    #[must_use]
    pub fn capacity(&self) -> usize {
        lock(&self.pipe.state).capacity
    }

    /// Changes what it can hold (`F_SETPIPE_SZ`); what it is then.
    ///
    /// # Errors
    /// EPERM beyond what anybody may have; EBUSY where more is in it; EINVAL.
    pub fn set_capacity(&self, wanted: usize) -> Result<usize, Errno> {
        if wanted > CAPACITY_MAX {
            return Err(Errno::EPERM);
        }
        let capacity = wanted.max(ATOMIC).next_power_of_two();
        let mut state = lock(&self.pipe.state);
        if state.slots.used() > capacity / ATOMIC {
            return Err(Errno::EBUSY);
        }
        state.capacity = capacity;
        drop(state);
        self.pipe.queue.notify(Events::OUT | Events::WRNORM);
        Ok(capacity)
    }
}

impl File for PipeFile {
    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        let mut state = lock(&self.pipe.state);
        if state.slots.is_empty() {
            return if state.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN) };
        }
        let count = state.slots.take(to);
        drop(state);
        self.pipe.queue.notify(Events::OUT | Events::WRNORM);
        Ok(count)
    }

    fn put_back(&self, bytes: &[u8]) {
        let packet = self.packets.load(Ordering::Relaxed);
        lock(&self.pipe.state).slots.put_back(bytes, packet);
        self.pipe.queue.notify(Events::IN | Events::RDNORM);
    }

    fn flags_changed(&self, flags: Flags) {
        self.packets.store(flags.has(libc::O_DIRECT), Ordering::Relaxed);
    }

    /// Writes of up to a page go as a whole or not at all, others as far as there is room. Nothing can always be written.
    fn write(&self, from: &[u8], _offset: u64) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        let mut state = lock(&self.pipe.state);
        if state.readers == 0 {
            return Err(Errno::EPIPE);
        }
        let most = state.capacity / ATOMIC;
        let count = state.slots.put(from, most, self.packets.load(Ordering::Relaxed));
        drop(state);
        if count == 0 {
            return Err(Errno::EAGAIN);
        }
        self.pipe.queue.notify(Events::IN | Events::RDNORM);
        Ok(count)
    }

    fn ready(&self) -> Events {
        let state = lock(&self.pipe.state);
        let mut ready = Events::empty();
        if self.reads {
            if !state.slots.is_empty() {
                ready |= Events::IN | Events::RDNORM;
            }
            // A FIFO that nobody has written to yet is not hung up.
            if state.writers == 0 && state.opened.1 != self.opened.1 {
                ready |= Events::HUP;
            }
        }
        if self.writes {
            if state.room() > 0 {
                ready |= Events::OUT | Events::WRNORM;
            }
            if state.readers == 0 {
                ready |= Events::ERR;
            }
        }
        ready
    }

    fn stream(&self) -> bool {
        true
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.pipe.queue)
    }

    fn available(&self) -> Result<u64, Errno> {
        Ok(lock(&self.pipe.state).slots.bytes() as u64)
    }
}

impl Drop for PipeFile {
    fn drop(&mut self) {
        let mut state = lock(&self.pipe.state);
        state.readers = state.readers.saturating_sub(u32::from(self.reads));
        state.writers = state.writers.saturating_sub(u32::from(self.writes));
        if state.readers == 0 && state.writers == 0 {
            state.slots = Slots::default();
        }
        drop(state);
        self.pipe.queue.notify(Events::HUP | Events::ERR | Events::IN | Events::OUT | Events::CHANGED);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vfs::Caller;

    #[test]
    fn small_writes_are_whole_and_large_ones_fill_it() {
        let [reader, writer] = Pipe::pair(Flags::default()).unwrap();
        let root = Caller::root();
        assert_eq!(reader.read(&mut [0; 8]), Err(Errno::EAGAIN));
        assert_eq!(writer.write(&root, &[1; 100_000]), Ok(65_536));
        assert_eq!(writer.write(&root, &[2]), Err(Errno::EAGAIN));
        assert_eq!(reader.read(&mut [0; 4095]), Ok(4095));
        assert!(!writer.file().ready().contains(Events::OUT));
        assert_eq!(writer.write(&root, &[2; 4096]), Err(Errno::EAGAIN));
        assert_eq!(reader.read(&mut [0; 1]), Ok(1));
        assert_eq!(writer.write(&root, &[2; 4097]), Ok(4096));
        assert_eq!(reader.file().available(), Ok(65_536));
    }

    #[test]
    fn an_end_that_goes_is_told() {
        let [reader, writer] = Pipe::pair(Flags::default()).unwrap();
        let root = Caller::root();
        assert_eq!(writer.write(&root, b"last"), Ok(4));
        drop(writer);
        assert!(reader.file().ready().contains(Events::IN | Events::HUP));
        assert_eq!(reader.read(&mut [0; 8]), Ok(4));
        assert_eq!(reader.read(&mut [0; 8]), Ok(0));
        let [reader, writer] = Pipe::pair(Flags::default()).unwrap();
        drop(reader);
        assert_eq!(writer.write(&root, b"x"), Err(Errno::EPIPE));
        assert_eq!(writer.write(&root, b""), Ok(0));
        assert!(writer.file().ready().contains(Events::ERR));
    }

    #[test]
    fn a_fifo_meets() {
        let pipe = Pipe::new();
        let write = Flags(libc::O_WRONLY.cast_unsigned());
        let now = Flags((libc::O_WRONLY | libc::O_NONBLOCK).cast_unsigned());
        assert_eq!(pipe.open(now).err(), Some(Errno::ENXIO));
        let reader = pipe.open(Flags::READ).unwrap();
        assert!(!reader.met());
        assert!(reader.ready().is_empty());
        drop(pipe.open(write).unwrap());
        assert!(reader.met());
        assert!(reader.ready().contains(Events::HUP));
        // Who was there when it was opened may be gone before anybody looks.
        let writer = pipe.open(write).unwrap();
        let late = pipe.open(Flags::READ).unwrap();
        drop(writer);
        assert!(late.met());
    }
}
