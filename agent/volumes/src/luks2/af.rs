//! The anti-forensic splitter of LUKS: a key spread over many stripes, all of which are needed to have it back.
//!
//! Source: LUKS1 on-disk format specification, section 2.4. The last stripe is the key masked with what the others diffuse to.

use aws_lc_rs::digest::{Algorithm, Context};
use zeroize::Zeroizing;

use super::error::Luks2Error;

/// Stripes of a keyslot: the format knows no other number.
pub(super) const STRIPES: usize = 4000;

/// Each piece of the block as long as a digest is replaced by the digest of its number and itself, the last one cut.
fn diffuse(hash: &'static Algorithm, block: &mut [u8]) {
    for (number, piece) in (0u32..).zip(block.chunks_mut(hash.output_len())) {
        let mut context = Context::new(hash);
        context.update(&number.to_be_bytes());
        context.update(piece);
        let length = piece.len();
        piece.copy_from_slice(&context.finish().as_ref()[..length]);
    }
}

fn mask(block: &mut [u8], stripe: &[u8]) {
    for (byte, other) in block.iter_mut().zip(stripe) {
        *byte ^= other;
    }
}

/// What all stripes but the last diffuse to.
fn diffused(hash: &'static Algorithm, stripes: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let mut block = Zeroizing::new(vec![0; length]);
    for stripe in stripes.chunks_exact(length).take(STRIPES - 1) {
        mask(&mut block, stripe);
        diffuse(hash, &mut block);
    }
    block
}

/// The key of `length` bytes from its stripes.
pub(super) fn merge(
    hash: &'static Algorithm,
    stripes: &[u8],
    length: usize,
) -> Result<Zeroizing<Vec<u8>>, Luks2Error> {
    let last = length
        .checked_mul(STRIPES - 1)
        .filter(|_| length > 0)
        .and_then(|at| stripes.get(at..at + length))
        .ok_or(Luks2Error::Crypto("merging a key"))?;
    let mut key = diffused(hash, stripes, length);
    mask(&mut key, last);
    Ok(key)
}

/// The stripes of a key, with fresh random bytes.
pub(super) fn split(hash: &'static Algorithm, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, Luks2Error> {
    let mut stripes = Zeroizing::new(vec![0; key.len() * STRIPES]);
    let at = key.len() * (STRIPES - 1);
    aws_lc_rs::rand::fill(&mut stripes[..at]).map_err(|_| Luks2Error::Crypto("making random bytes"))?;
    let mut last = diffused(hash, &stripes, key.len());
    mask(&mut last, key);
    stripes[at..].copy_from_slice(&last);
    Ok(stripes)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, SHA512};

    use super::*;

    #[test]
    fn a_key_comes_back_from_all_its_stripes_alone() {
        for (hash, length) in [(&SHA256, 32), (&SHA256, 64), (&SHA512, 64), (&SHA256, 48)] {
            let key: Vec<u8> = (0..length).collect();
            let mut stripes = split(hash, &key).unwrap();
            assert_eq!(*merge(hash, &stripes, key.len()).unwrap(), key);
            stripes[7] ^= 1;
            assert_ne!(*merge(hash, &stripes, key.len()).unwrap(), key);
        }
    }

    #[test]
    fn stripes_that_are_missing_are_an_error() {
        assert!(merge(&SHA256, &[0; 31 * STRIPES], 32).is_err());
        assert!(merge(&SHA256, &[], 0).is_err());
    }
}
