//! Reads and writes little-endian fields of one page. Offsets are constants of this crate: an offset
//! outside of the page reads as zero and writes nothing, and no test of the crate would pass then.

pub(crate) struct Page<'a>(pub(crate) &'a [u8; 4096]);

impl Page<'_> {
    pub(crate) fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0.get(offset..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    pub(crate) fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    pub(crate) fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    /// Offset of the first byte from `start` on that is not zero.
    pub(crate) fn first_nonzero(&self, start: usize) -> Option<usize> {
        self.0.iter().skip(start).position(|byte| *byte != 0).map(|at| start + at)
    }
}

pub(crate) fn put(page: &mut [u8; 4096], offset: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
