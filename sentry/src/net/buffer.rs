//! Bytes of a stream on their way: a queue of chunks. What is sent is copied into a chunk and out of it, and chunks are used again, so that a
//! stream of large writes allocates nothing.
//!
//! One thread copies in and another out at the same time: `writer` and `reader` each make one of their kind wait for the other, and the
//! queue itself is locked only to put chunks in and take them out. A small write that has room in the last chunk is copied there with the
//! queue locked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::control::Rights;
use super::{Budget, Identity, lock};
use crate::error::Errno;

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 32 * 1024;
/// Chunks that are kept for use again.
const SPARE: usize = 256;

static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Where bytes come from: a guest's memory, or ours.
pub(crate) trait Source {
    /// Bytes that are left.
    fn left(&self) -> usize;
    /// Takes the next; fewer than fit only at the end or where memory cannot be read.
    fn take(&mut self, to: &mut [u8]) -> usize;
}

impl Source for &[u8] {
    fn left(&self) -> usize {
        self.len()
    }

    fn take(&mut self, to: &mut [u8]) -> usize {
        let count = self.len().min(to.len());
        let (now, later) = self.split_at(count);
        to[..count].copy_from_slice(now);
        *self = later;
        count
    }
}

/// Where bytes go.
pub(crate) trait Sink {
    /// Bytes that fit.
    fn room(&self) -> usize;
    /// Puts the next; fewer than there are only at the end or where memory cannot be written.
    fn put(&mut self, from: &[u8]) -> usize;
    /// Leaves room for bytes that are not copied.
    fn skip(&mut self, count: usize);
}

impl Sink for &mut [u8] {
    fn room(&self) -> usize {
        self.len()
    }

    fn put(&mut self, from: &[u8]) -> usize {
        let count = self.len().min(from.len());
        let (now, later) = std::mem::take(self).split_at_mut(count);
        now.copy_from_slice(&from[..count]);
        *self = later;
        count
    }

    fn skip(&mut self, count: usize) {
        let count = count.min(self.len());
        *self = std::mem::take(self).split_at_mut(count).1;
    }
}

/// What goes with bytes of a UNIX socket.
#[derive(Default)]
pub(crate) struct Tag {
    pub(crate) sender: Identity,
    pub(crate) rights: Option<Rights>,
}

struct Chunk {
    data: Box<[u8]>,
    start: usize,
    end: usize,
    sender: Identity,
    rights: Option<Rights>,
    /// Began with descriptors: nothing is appended, and what is received ends with it.
    sealed: bool,
    budget: Arc<Budget>,
}

impl Chunk {
    fn new(budget: &Arc<Budget>) -> Result<Self, Errno> {
        if !budget.take(CHUNK) {
            return Err(Errno::ENOBUFS);
        }
        let data = lock(&POOL).pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice());
        let sender = Identity::default();
        Ok(Self { data, start: 0, end: 0, sender, rights: None, sealed: false, budget: Arc::clone(budget) })
    }

    fn bytes(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    fn space(&mut self) -> &mut [u8] {
        self.data.get_mut(self.end..).unwrap_or_default()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.budget.give(CHUNK);
        let data = std::mem::take(&mut self.data);
        let mut pool = lock(&POOL);
        if pool.len() < SPARE {
            pool.push(data);
        }
    }
}

/// How bytes are taken.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// They stay.
    pub(crate) peek: bool,
    /// They are not copied (`MSG_TRUNC` of TCP).
    pub(crate) discard: bool,
    /// What different senders sent is not given in one (`SO_PASSCRED`).
    pub(crate) apart: bool,
    /// Urgent data is given where it stands (`SO_OOBINLINE`).
    pub(crate) urgent_inline: bool,
}

impl How {
    fn copy(self, sink: &mut dyn Sink, part: &[u8], wanted: usize) -> usize {
        if !self.discard {
            return sink.put(part);
        }
        sink.skip(wanted);
        wanted
    }
}

/// What was taken.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) count: usize,
    pub(crate) sender: Option<Identity>,
    /// Descriptors, taken out of flight.
    pub(crate) rights: Option<Rights>,
    /// The same when they stay.
    pub(crate) peeked: Vec<Arc<crate::vfs::OpenFile>>,
    /// What comes next does not go with this.
    pub(crate) boundary: bool,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    limit: usize,
    /// Bytes ever taken.
    taken: u64,
    /// Where the urgent byte is, and the byte until it is fetched.
    urgent: Option<(u64, Option<u8>)>,
    flags: Flags,
}

/// What became of a direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// Nothing more will be written.
    pub(crate) ended: bool,
    /// Nobody wants to read any more.
    pub(crate) unwanted: bool,
    /// The reader is gone.
    pub(crate) gone: bool,
    /// The connection was reset.
    pub(crate) broken: bool,
}

/// One direction of a stream.
pub(crate) struct ByteQueue {
    reader: Mutex<()>,
    writer: Mutex<()>,
    state: Mutex<State>,
    budget: Arc<Budget>,
}

impl ByteQueue {
    pub(crate) fn new(limit: usize, budget: &Arc<Budget>) -> Self {
        let state = Mutex::new(State { limit, ..State::default() });
        Self { reader: Mutex::default(), writer: Mutex::default(), state, budget: Arc::clone(budget) }
    }

    /// What its bytes are counted by.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        lock(&self.state).limit = limit;
    }

    pub(crate) fn flags(&self) -> Flags {
        lock(&self.state).flags
    }

    /// Changes the flags; what they were.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Flags)) -> Flags {
        let mut state = lock(&self.state);
        let before = state.flags;
        change(&mut state.flags);
        before
    }

    /// Bytes that can be read.
    pub(crate) fn len(&self) -> usize {
        lock(&self.state).bytes
    }

    /// Bytes that fit, and how many could at most.
    pub(crate) fn room(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.limit.saturating_sub(state.bytes), state.limit)
    }

    /// The reader goes: what is there is dropped. How much it was.
    pub(crate) fn close(&self) -> usize {
        let (chunks, bytes) = {
            let mut state = lock(&self.state);
            state.flags.gone = true;
            state.flags.unwanted = true;
            (std::mem::take(&mut state.chunks), std::mem::take(&mut state.bytes))
        };
        drop(chunks);
        bytes
    }

    /// Puts in what there is room for.
    ///
    /// # Errors
    /// EAGAIN where there is none; EPIPE where it was ended or nobody wants it; EFAULT where no byte could be read; ENOBUFS.
    pub(crate) fn put(&self, source: &mut dyn Source, tag: &mut Tag) -> Result<usize, Errno> {
        let _one = lock(&self.writer);
        let mut total = 0usize;
        while source.left() > 0 {
            match self.put_chunk(source, tag) {
                Ok(count) => total = total.saturating_add(count),
                Err(_) if total > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(total)
    }

    fn put_chunk(&self, source: &mut dyn Source, tag: &mut Tag) -> Result<usize, Errno> {
        let want = {
            let mut state = lock(&self.state);
            let room = Self::writable(&state)?;
            let want = source.left().min(room).min(CHUNK);
            if tag.rights.is_none()
                && let Some(last) = state.chunks.back_mut()
                && !last.sealed
                && last.sender == tag.sender
                && last.space().len() >= want
            {
                let space = last.space().get_mut(..want).unwrap_or_default();
                let count = source.take(space);
                last.end = last.end.saturating_add(count);
                state.bytes = state.bytes.saturating_add(count);
                return if count > 0 { Ok(count) } else { Err(Errno::EFAULT) };
            }
            want
        };
        let mut chunk = Chunk::new(&self.budget)?;
        let count = source.take(chunk.space().get_mut(..want).unwrap_or_default());
        if count == 0 {
            return Err(Errno::EFAULT);
        }
        chunk.end = count;
        chunk.sender = tag.sender;
        let mut state = lock(&self.state);
        Self::writable(&state)?;
        chunk.rights = tag.rights.take();
        chunk.sealed = chunk.rights.is_some();
        state.bytes = state.bytes.saturating_add(count);
        state.chunks.push_back(chunk);
        Ok(count)
    }

    /// Room that there is.
    fn writable(state: &State) -> Result<usize, Errno> {
        if state.flags.ended || state.flags.gone {
            return Err(Errno::EPIPE);
        }
        match state.limit.saturating_sub(state.bytes) {
            0 => Err(Errno::EAGAIN),
            room => Ok(room),
        }
    }

    /// Takes what there is, up to a boundary. 0 bytes where there is nothing, which `boundary` does not tell apart from an end.
    ///
    /// # Errors
    /// EFAULT where no byte could be written.
    pub(crate) fn take(&self, sink: &mut dyn Sink, how: How) -> Result<Taken, Errno> {
        let _one = lock(&self.reader);
        if how.peek {
            return self.peek(sink, how);
        }
        let mut taken = Taken::default();
        while sink.room() > 0 && !taken.boundary {
            let Some((mut chunk, most)) = self.front(&mut taken, how) else { break };
            let part = chunk.bytes().get(..most).unwrap_or_else(|| chunk.bytes());
            let wanted = part.len().min(sink.room());
            let count = how.copy(sink, part, wanted);
            chunk.start = chunk.start.saturating_add(count);
            if let Some(rights) = chunk.rights.take_if(|_| count > 0) {
                taken.rights = Some(rights);
            }
            taken.boundary |= chunk.sealed;
            taken.count = taken.count.saturating_add(count);
            self.put_back(chunk, count);
            if count < wanted {
                if taken.count == 0 {
                    return Err(Errno::EFAULT);
                }
                break;
            }
        }
        Ok(taken)
    }

    /// Takes the first chunk out, and how much of it may be read: up to the urgent byte.
    fn front(&self, taken: &mut Taken, how: How) -> Option<(Chunk, usize)> {
        let mut state = lock(&self.state);
        if let Some((at, _)) = state.urgent
            && at == state.taken
            && !how.urgent_inline
        {
            if taken.count > 0 {
                taken.boundary = true;
                return None;
            }
            state.skip_urgent();
        }
        let chunk = state.chunks.front()?;
        if how.apart && taken.sender.is_some_and(|sender| sender != chunk.sender) {
            taken.boundary = true;
            return None;
        }
        let before_urgent = match state.urgent {
            Some((at, _)) if at > state.taken => usize::try_from(at - state.taken).unwrap_or(usize::MAX),
            Some((at, _)) if at == state.taken && taken.count > 0 => {
                taken.boundary = true;
                return None;
            }
            _ => usize::MAX,
        };
        taken.sender.get_or_insert(chunk.sender);
        let chunk = state.chunks.pop_front()?;
        Some((chunk, before_urgent))
    }

    /// Puts the rest of a chunk back, `count` bytes of it having been taken.
    fn put_back(&self, chunk: Chunk, count: usize) {
        let mut state = lock(&self.state);
        state.bytes = state.bytes.saturating_sub(count);
        state.taken = state.taken.saturating_add(count as u64);
        state.forget_urgent();
        if !chunk.bytes().is_empty() && !state.flags.gone {
            state.chunks.push_front(chunk);
            return;
        }
        drop(state);
        drop(chunk);
    }

    fn peek(&self, sink: &mut dyn Sink, how: How) -> Result<Taken, Errno> {
        let mut taken = Taken::default();
        let state = lock(&self.state);
        let mut skip =
            usize::from(state.urgent.is_some_and(|(at, _)| at == state.taken) && !how.urgent_inline);
        let mut left = match state.urgent {
            Some((at, _)) if at > state.taken => usize::try_from(at - state.taken).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        for chunk in &state.chunks {
            if sink.room() == 0 || left == 0 || taken.boundary {
                break;
            }
            if how.apart && taken.sender.is_some_and(|sender| sender != chunk.sender) {
                break;
            }
            taken.sender.get_or_insert(chunk.sender);
            let part = chunk.bytes().get(skip..).unwrap_or_default();
            let part = part.get(..left).unwrap_or(part);
            skip = skip.saturating_sub(chunk.bytes().len());
            let wanted = part.len().min(sink.room());
            let count = how.copy(sink, part, wanted);
            taken.peeked.extend(chunk.rights.as_ref().map(Rights::files).into_iter().flatten());
            taken.boundary |= chunk.sealed;
            taken.count = taken.count.saturating_add(count);
            left = left.saturating_sub(count);
            if count < wanted {
                if taken.count == 0 {
                    return Err(Errno::EFAULT);
                }
                break;
            }
        }
        Ok(taken)
    }

    /// The byte that was put last is urgent.
    pub(crate) fn mark_urgent(&self) {
        self.mark_urgent_before_end(0);
    }

    /// The byte that has so many after it is urgent.
    pub(crate) fn mark_urgent_before_end(&self, after: usize) {
        let mut state = lock(&self.state);
        let mut byte = [0];
        let Some(at) = state.bytes.checked_sub(after).and_then(|end| end.checked_sub(1)) else { return };
        if state.copy_at(at, &mut byte) == 1 {
            let at = state.taken.saturating_add(at as u64);
            state.urgent = Some((at, Some(byte[0])));
        }
    }

    /// Copies what lies so many bytes after the first, which stays: how much it was.
    pub(crate) fn copy_at(&self, start: usize, to: &mut [u8]) -> usize {
        lock(&self.state).copy_at(start, to)
    }

    /// The first bytes are not needed any more.
    pub(crate) fn acknowledge(&self, mut count: usize) {
        let mut done = Vec::new();
        let mut state = lock(&self.state);
        while count > 0
            && let Some(first) = state.chunks.front_mut()
        {
            let part = first.bytes().len().min(count);
            first.start = first.start.saturating_add(part);
            let empty = first.bytes().is_empty();
            count = count.saturating_sub(part);
            state.bytes = state.bytes.saturating_sub(part);
            state.taken = state.taken.saturating_add(part as u64);
            if empty {
                done.extend(state.chunks.pop_front());
            }
        }
        drop(state);
    }

    /// Bytes up to the end of urgent data, where there is some that was not taken.
    pub(crate) fn urgent_end(&self) -> Option<usize> {
        let state = lock(&self.state);
        let after = state.urgent?.0.checked_sub(state.taken)?;
        usize::try_from(after).ok()?.checked_add(1)
    }

    /// Fetches the urgent byte (`MSG_OOB`).
    ///
    /// # Errors
    /// EINVAL where there is none, or it was fetched.
    pub(crate) fn take_urgent(&self, peek: bool) -> Result<u8, Errno> {
        let mut state = lock(&self.state);
        let (_, byte) = state.urgent.as_mut().ok_or(Errno::EINVAL)?;
        let found = byte.ok_or(Errno::EINVAL)?;
        if !peek {
            *byte = None;
        }
        Ok(found)
    }

    /// Whether an urgent byte waits to be fetched; whether what is read next is at the mark (`SIOCATMARK`).
    pub(crate) fn urgent(&self) -> (bool, bool) {
        let state = lock(&self.state);
        let waits = state.urgent.is_some_and(|(_, byte)| byte.is_some());
        (waits, state.urgent.is_some_and(|(at, _)| at == state.taken))
    }
}

impl State {
    fn copy_at(&self, mut start: usize, to: &mut [u8]) -> usize {
        let mut done = 0_usize;
        for chunk in &self.chunks {
            let bytes = chunk.bytes();
            let Some(part) = bytes.get(start..).filter(|part| !part.is_empty()) else {
                start = start.saturating_sub(bytes.len());
                continue;
            };
            start = 0;
            let Some(place) = to.get_mut(done..).filter(|place| !place.is_empty()) else { break };
            let count = part.len().min(place.len());
            let (place, _) = place.split_at_mut(count);
            let (part, _) = part.split_at(count);
            place.copy_from_slice(part);
            done = done.saturating_add(count);
        }
        done
    }

    /// Passes over the urgent byte, which is the first.
    fn skip_urgent(&mut self) {
        let Some(first) = self.chunks.front_mut() else { return };
        first.start = first.start.saturating_add(1);
        self.bytes = self.bytes.saturating_sub(1);
        self.taken = self.taken.saturating_add(1);
        self.forget_urgent();
        let Some(first) = self.chunks.front_mut() else { return };
        if first.bytes().is_empty() {
            // TCP has no descriptors: nothing is dropped here but memory.
            self.chunks.pop_front();
        }
    }

    /// Once what is behind the urgent byte is read, there is none (`tcp_recvmsg`).
    fn forget_urgent(&mut self) {
        if self.urgent.is_some_and(|(at, _)| at < self.taken) {
            self.urgent = None;
        }
    }
}

#[cfg(test)]
#[path = "buffer_tests.rs"]
mod tests;
