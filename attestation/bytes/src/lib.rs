//! Reading fixed structures out of untrusted bytes without indexing: every step says whether the bytes are there.
//!
//! Numbers of AMD's and Intel's structures are little-endian ([`Cursor::u32`]), those of a TPM big-endian ([`Cursor::be32`]).
#![forbid(unsafe_code)]

/// The bytes ended before the structure did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

/// Position in a byte string. A step that fails leaves it where it was.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// At the beginning.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`Truncated`] when there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`Truncated`] when there are fewer.
    pub fn slice(&mut self, len: usize) -> Result<&'a [u8], Truncated> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`Truncated`] at the end.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array::<1>().map(|[byte]| byte)
    }
}

/// A number of each width, in both orders.
macro_rules! numbers {
    ($($number:ident $big:ident),*) => {
        impl Cursor<'_> {
            $(
                /// The next number, little-endian.
                ///
                /// # Errors
                /// [`Truncated`] when there are fewer bytes than it has.
                pub fn $number(&mut self) -> Result<$number, Truncated> {
                    self.array().map($number::from_le_bytes)
                }

                /// The next number, big-endian.
                ///
                /// # Errors
                /// [`Truncated`] when there are fewer bytes than it has.
                pub fn $big(&mut self) -> Result<$number, Truncated> {
                    self.array().map($number::from_be_bytes)
                }
            )*
        }
    };
}

numbers!(u16 be16, u32 be32, u64 be64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_goes_on_by_its_width_or_not_at_all() {
        let bytes: Vec<u8> = (1..=21).collect();
        let mut cursor = Cursor::new(&bytes);
        assert_eq!(cursor.u8(), Ok(1));
        assert_eq!(cursor.u16(), Ok(0x0302));
        assert_eq!(cursor.be16(), Ok(0x0405));
        assert_eq!(cursor.u32(), Ok(0x0908_0706));
        assert_eq!(cursor.be32(), Ok(0x0A0B_0C0D));
        assert_eq!(cursor.clone().u64(), Ok(0x1514_1312_1110_0F0E));
        assert_eq!(cursor.clone().be64(), Ok(0x0E0F_1011_1213_1415));
        assert_eq!(cursor.slice(2), Ok(&[14, 15][..]));
        assert_eq!(cursor.array(), Ok([16, 17, 18]));
        let refused =
            (cursor.u32(), cursor.be64(), cursor.slice(4), cursor.slice(usize::MAX), cursor.array::<4>());
        assert_eq!(refused, (Err(Truncated), Err(Truncated), Err(Truncated), Err(Truncated), Err(Truncated)));
        assert_eq!(cursor.rest(), [19, 20, 21], "a failed step takes nothing");
        assert_eq!((cursor.slice(3), cursor.u8()), (Ok(&[19, 20, 21][..]), Err(Truncated)));
    }
}
