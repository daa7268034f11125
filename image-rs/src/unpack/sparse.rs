//! Maps of sparse files: GNU's own header form, and PAX forms 0.0, 0.1, 1.0.
//!
//! Source: GNU tar manual, appendix "Storing Sparse Files". A map is a list of (offset, length) of data; it must ascend, not
//! overlap, stay within the file's size, and add up to the data stored.

use std::io::Read;

use super::UnpackError;
use super::pax::decimal;

/// Where the stored bytes of a sparse file belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    /// (offset, length) of each piece of data.
    pub pieces: Vec<(u64, u64)>,
    /// Size of the file.
    pub size: u64,
}

/// Pieces of one file; a file of more is refused.
pub(super) const MAX_PIECES: usize = 1 << 18;

impl SparseMap {
    /// Checks the map against the `stored` bytes.
    pub(super) fn checked(
        pieces: Vec<(u64, u64)>,
        size: u64,
        stored: u64,
        at: u64,
    ) -> Result<Self, UnpackError> {
        let bad = |why| UnpackError::Malformed { at, why };
        let mut end = 0;
        let mut sum = 0u64;
        for (offset, length) in &pieces {
            if *offset < end {
                return Err(bad("a sparse map overlaps or descends"));
            }
            end = offset.checked_add(*length).ok_or(bad("a sparse map overflows"))?;
            sum = sum.checked_add(*length).ok_or(bad("a sparse map overflows"))?;
        }
        if end > size || size > i64::MAX as u64 {
            return Err(bad("a sparse map exceeds the file's size"));
        }
        if sum != stored {
            return Err(bad("a sparse map does not match the data stored"));
        }
        Ok(Self { pieces, size })
    }
}

/// Pairs up the numbers of PAX forms 0.0 and 0.1.
pub(super) fn pairs(numbers: &[u64], at: u64) -> Result<Vec<(u64, u64)>, UnpackError> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MAX_PIECES {
        return Err(UnpackError::Malformed {
            at,
            why: "a sparse map has an odd or too large number of values",
        });
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Reads the map of PAX form 1.0, which stands before the data; gives it and the bytes it took (whole blocks).
pub(super) fn read_v1(
    input: &mut impl Read,
    stored: u64,
    at: u64,
) -> Result<(Vec<(u64, u64)>, u64), UnpackError> {
    let bad = |why| UnpackError::Malformed { at, why };
    let mut reader = Numbers { input, block: [0; 512], position: 512, taken: 0, stored, at };
    let count = usize::try_from(reader.next()?).unwrap_or(usize::MAX);
    if count > MAX_PIECES {
        return Err(bad("a sparse map has too many pieces"));
    }
    let mut pieces = Vec::new();
    for _ in 0..count {
        pieces.push((reader.next()?, reader.next()?));
    }
    Ok((pieces, reader.taken))
}

struct Numbers<'a, R> {
    input: &'a mut R,
    block: [u8; 512],
    position: usize,
    taken: u64,
    stored: u64,
    at: u64,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self) -> Result<u64, UnpackError> {
        let bad = |why| UnpackError::Malformed { at: self.at, why };
        let mut digits = Vec::with_capacity(20);
        loop {
            if self.position == self.block.len() {
                if self.stored - self.taken < 512 {
                    return Err(bad("a sparse map does not end"));
                }
                self.input.read_exact(&mut self.block).map_err(UnpackError::Read)?;
                self.taken += 512;
                self.position = 0;
            }
            let byte = self.block[self.position];
            self.position += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or(bad("a sparse map holds no number"));
            }
            if digits.len() >= 20 {
                return Err(bad("a sparse map holds no number"));
            }
            digits.push(byte);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn checks_maps() {
        assert!(SparseMap::checked(vec![(0, 5), (10, 5)], 20, 10, 0).is_ok());
        for (pieces, size, stored) in [
            (vec![(5, 5), (0, 5)], 20, 10),
            (vec![(0, 6), (5, 5)], 20, 11),
            (vec![(0, 5)], 4, 5),
            (vec![(0, 5)], 9, 6),
            (vec![(u64::MAX, 2)], 9, 2),
        ] {
            assert!(SparseMap::checked(pieces, size, stored, 0).is_err());
        }
    }

    #[test]
    fn reads_form_one() {
        let mut block = b"2\n0\n5\n1024\n3\n".to_vec();
        block.resize(512, 0);
        let (pieces, taken) = read_v1(&mut block.as_slice(), 520, 0).unwrap();
        assert_eq!((pieces, taken), (vec![(0, 5), (1024, 3)], 512));
        assert!(read_v1(&mut [b'1'; 512].as_slice(), 512, 0).is_err());
        assert!(read_v1(&mut b"9999999\n".as_slice(), 8, 0).is_err());
    }
}
