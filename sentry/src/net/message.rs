//! `struct msghdr`, `struct iovec` and addresses in a guest's memory (`man 2 sendmsg`, `recvmsg`). Whatever a guest writes there, it is but
//! numbers: all of it is checked here.

use super::buffer::{Sink, Source};
use super::control::CONTROL_MAX;
use crate::error::Errno;
use crate::platform::Memory;

/// Most parts of a message (`UIO_MAXIOV`).
pub(crate) const PARTS_MAX: usize = 1024;
/// Most bytes of a call (`MAX_RW_COUNT`).
const BYTES_MAX: usize = 0x7fff_f000;
/// `sizeof(struct msghdr)`.
const HEADER: usize = 56;
/// `sizeof(struct mmsghdr)`.
pub(crate) const HEADER_MANY: u64 = 64;

/// Where in guest memory the bytes of a message are, and how far they were taken.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    parts: Vec<(u64, usize)>,
    at: usize,
    left: usize,
}

impl Cursor {
    /// One part.
    pub(crate) fn one(address: u64, length: u64) -> Self {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(BYTES_MAX);
        Self { parts: vec![(address, length)], at: 0, left: length }
    }

    /// Parts whose lengths are known to be no more than a call moves.
    pub(crate) fn of_parts(parts: &[(u64, u64)]) -> Self {
        let mut cursor = Self::default();
        for (address, length) in parts {
            let length = usize::try_from(*length).unwrap_or(usize::MAX);
            let length = length.min(BYTES_MAX.saturating_sub(cursor.left));
            cursor.left = cursor.left.saturating_add(length);
            cursor.parts.push((*address, length));
        }
        cursor
    }

    /// Parts as a `struct iovec` array has them.
    ///
    /// # Errors
    /// EINVAL for negative lengths.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        let mut cursor = Self::default();
        for entry in bytes.chunks_exact(16) {
            let [address, length]: [[u8; 8]; 2] =
                entry.as_chunks().0.try_into().map_err(|_| Errno::EINVAL)?;
            let length = i64::from_ne_bytes(length);
            let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
            let length = length.min(BYTES_MAX.saturating_sub(cursor.left));
            cursor.left = cursor.left.saturating_add(length);
            cursor.parts.push((u64::from_ne_bytes(address), length));
        }
        Ok(cursor)
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// The next part with bytes in it.
    fn part(&mut self) -> Option<(u64, usize)> {
        loop {
            match self.parts.get(self.at) {
                Some((_, 0)) => self.at = self.at.saturating_add(1),
                Some(part) => return Some(*part),
                None => return None,
            }
        }
    }

    fn advance(&mut self, count: usize) {
        if let Some((address, length)) = self.parts.get_mut(self.at) {
            *address = address.wrapping_add(count as u64);
            *length = length.saturating_sub(count);
        }
        self.left = self.left.saturating_sub(count);
    }

    fn each(&mut self, total: usize, mut copy: impl FnMut(u64, std::ops::Range<usize>) -> usize) -> usize {
        let mut done = 0usize;
        while done < total {
            let Some((address, length)) = self.part() else { break };
            let want = length.min(total.saturating_sub(done));
            let count = copy(address, done..done.saturating_add(want)).min(want);
            self.advance(count);
            done = done.saturating_add(count);
            if count < want {
                break;
            }
        }
        done
    }
}

/// A cursor's bytes, read out of a guest.
pub(crate) struct GuestSource<'a> {
    pub(crate) memory: &'a dyn Memory,
    pub(crate) cursor: &'a mut Cursor,
}

impl Source for GuestSource<'_> {
    fn left(&self) -> usize {
        self.cursor.left()
    }

    fn take(&mut self, to: &mut [u8]) -> usize {
        let memory = self.memory;
        self.cursor
            .each(to.len(), |address, range| memory.read(address, to.get_mut(range).unwrap_or_default()))
    }
}

/// A cursor's bytes, written into a guest.
pub(crate) struct GuestSink<'a> {
    pub(crate) memory: &'a dyn Memory,
    pub(crate) cursor: &'a mut Cursor,
}

impl Sink for GuestSink<'_> {
    fn room(&self) -> usize {
        self.cursor.left()
    }

    fn put(&mut self, from: &[u8]) -> usize {
        let memory = self.memory;
        self.cursor
            .each(from.len(), |address, range| memory.write(address, from.get(range).unwrap_or_default()))
    }

    fn skip(&mut self, count: usize) {
        self.cursor.each(count, |_, range| range.len());
    }
}

/// `struct msghdr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: u64,
    pub(crate) name_length: u32,
    parts: u64,
    count: usize,
    pub(crate) control: u64,
    pub(crate) control_length: usize,
}

fn part<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn fill(memory: &dyn Memory, address: u64, to: &mut [u8]) -> Result<(), Errno> {
    if memory.read(address, to) == to.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

impl Header {
    /// Of its bytes.
    ///
    /// # Errors
    /// EINVAL for a negative length; EMSGSIZE for too many parts.
    fn parse(bytes: &[u8; HEADER]) -> Result<Self, Errno> {
        let name_length = i32::from_ne_bytes(part(bytes, 8));
        let count = usize::try_from(u64::from_ne_bytes(part(bytes, 24))).map_err(|_| Errno::EMSGSIZE)?;
        if count > PARTS_MAX {
            return Err(Errno::EMSGSIZE);
        }
        Ok(Self {
            name: u64::from_ne_bytes(part(bytes, 0)),
            name_length: u32::try_from(name_length).map_err(|_| Errno::EINVAL)?,
            parts: u64::from_ne_bytes(part(bytes, 16)),
            count,
            control: u64::from_ne_bytes(part(bytes, 32)),
            control_length: usize::try_from(u64::from_ne_bytes(part(bytes, 40))).unwrap_or(usize::MAX),
        })
    }

    /// Reads it, and where its bytes are.
    ///
    /// # Errors
    /// EFAULT, EINVAL, EMSGSIZE.
    pub(crate) fn read(memory: &dyn Memory, address: u64) -> Result<(Self, Cursor), Errno> {
        let mut bytes = [0; HEADER];
        fill(memory, address, &mut bytes)?;
        let header = Self::parse(&bytes)?;
        let mut parts = vec![0; header.count.saturating_mul(16)];
        fill(memory, header.parts, &mut parts)?;
        Ok((header, Cursor::parse(&parts)?))
    }

    /// Reads control data to be sent.
    ///
    /// # Errors
    /// EFAULT; ENOBUFS where it is too long.
    pub(crate) fn read_control(&self, memory: &dyn Memory) -> Result<Vec<u8>, Errno> {
        if self.control_length > CONTROL_MAX {
            return Err(Errno::ENOBUFS);
        }
        let mut bytes = vec![0; self.control_length];
        fill(memory, self.control, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn parts_one_after_the_other() {
        let memory = FlatThread::new(100);
        memory.write(BASE, b"abcdef");
        let entries = [BASE, 2, BASE + 3, 0, BASE + 4, 2].map(u64::to_ne_bytes).concat();
        let mut cursor = Cursor::parse(&entries).unwrap();
        let mut bytes = [0; 3];
        let mut source = GuestSource { memory: &memory, cursor: &mut cursor };
        assert_eq!((source.left(), source.take(&mut bytes), &bytes), (4, 3, b"abe"));
        assert_eq!((source.take(&mut bytes), bytes[0], cursor.left()), (1, b'f', 0));
    }

    #[test]
    fn what_cannot_be_reached_is_not_taken() {
        let memory = FlatThread::new(10);
        let mut cursor = Cursor::one(BASE + 8, 5);
        let mut sink = GuestSink { memory: &memory, cursor: &mut cursor };
        assert_eq!((sink.put(b"12345"), sink.room()), (2, 3));
        assert_eq!(Cursor::parse(&[[0xff; 8], [0xff; 8]].concat()).err(), Some(Errno::EINVAL));
    }

    proptest! {
        #[test]
        fn any_header(bytes in proptest::collection::vec(any::<u8>(), 600), at in 0u64..700) {
            let memory = FlatThread::new(600);
            memory.write(BASE, &bytes);
            if let Ok((header, mut cursor)) = Header::read(&memory, BASE + at) {
                let _ = header.read_control(&memory);
                let mut to = [0; 64];
                GuestSource { memory: &memory, cursor: &mut cursor }.take(&mut to);
                GuestSink { memory: &memory, cursor: &mut cursor }.put(&to);
            }
        }
    }
}
