//! A descriptor chain, copied out of the guest's memory and checked.

use vm_memory::{Address, Bytes, GuestAddress};

use crate::GuestRam;

/// A stretch of guest memory that was inside memory when the chain was walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub address: GuestAddress,
    /// Number of bytes, never zero.
    pub len: u32,
}

/// A chain: first what the device reads, then what it writes. Devices look at byte offsets, never at the
/// borders between descriptors (VIRTIO 1.2, section 2.7.4.2: no assumption about framing).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub(super) head: u16,
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
    pub(super) readable_len: u64,
    pub(super) writable_len: u64,
}

impl Chain {
    /// Index of the first descriptor: what goes into the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// What the device may read.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Copies `data.len()` readable bytes from `offset`; `None` when there are fewer.
    pub fn read_at(&self, ram: &GuestRam, offset: u64, data: &mut [u8]) -> Option<()> {
        let mut parts = Vec::new();
        slice(&self.readable, offset, data.len() as u64, &mut parts)?;
        let mut rest = data;
        for part in parts {
            let (now, later) = rest.split_at_mut_checked(part.len as usize)?;
            ram.read_slice(now, part.address).ok()?;
            rest = later;
        }
        Some(())
    }

    /// Copies `data` to the writable bytes from `offset`; `None` when there are too few.
    pub fn write_at(&self, ram: &GuestRam, offset: u64, data: &[u8]) -> Option<()> {
        let mut parts = Vec::new();
        slice(&self.writable, offset, data.len() as u64, &mut parts)?;
        let mut rest = data;
        for part in parts {
            let (now, later) = rest.split_at_checked(part.len as usize)?;
            ram.write_slice(now, part.address).ok()?;
            rest = later;
        }
        Some(())
    }

    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

/// Puts the `len` bytes from `offset` of `segments` into `out` (which is cleared). `None` when there are fewer.
pub(crate) fn slice(segments: &[Segment], offset: u64, len: u64, out: &mut Vec<Segment>) -> Option<()> {
    out.clear();
    let (mut skip, mut want) = (offset, len);
    for segment in segments {
        if want == 0 {
            break;
        }
        let have = u64::from(segment.len);
        if skip >= have {
            skip -= have;
            continue;
        }
        let take = want.min(have - skip);
        out.push(Segment { address: segment.address.checked_add(skip)?, len: u32::try_from(take).ok()? });
        skip = 0;
        want -= take;
    }
    (want == 0).then_some(())
}
