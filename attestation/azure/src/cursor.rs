//! Reading fixed and length-prefixed fields without ever looking beyond the end.

/// The bytes that are left.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next `len` bytes, if there are as many.
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// TPM numbers are big-endian.
    pub(crate) fn be16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// See [`Self::be16`].
    pub(crate) fn be32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// See [`Self::be16`].
    pub(crate) fn be64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Numbers of the HCL are little-endian.
    pub(crate) fn le32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// TPM2B: a 16-bit length and as many bytes, at most `max`.
    pub(crate) fn sized(&mut self, max: usize) -> Option<&'a [u8]> {
        let len = usize::from(self.be16()?);
        if len > max { None } else { self.take(len) }
    }
}
