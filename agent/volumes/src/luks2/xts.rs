//! AES in XTS mode (IEEE 1619) over sectors, with the sector's number as tweak: `aes-xts-plain64`.
//!
//! aws-lc-rs has the block cipher but not the mode, so the mode is here: a sector is masked with its tweaks, goes through ECB as a
//! whole, and is masked again. Only for keyslots; what is on the volume the kernel encrypts.

use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey,
};

use super::error::Luks2Error;

/// Sectors of a keyslot's area, whatever those of the data are.
pub(super) const SECTOR: usize = 512;
const BLOCK: usize = 16;

fn failed(_: aws_lc_rs::error::Unspecified) -> Luks2Error {
    Luks2Error::Crypto("AES-XTS")
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Encrypt,
    Decrypt,
}

/// Puts `data`, of whole sectors counted from 0, through the cipher in place. The key is two keys of the same length.
pub(super) fn apply(way: Way, key: &[u8], data: &mut [u8]) -> Result<(), Luks2Error> {
    let (algorithm, half): (&Algorithm, usize) = match key.len() {
        32 => (&AES_128, 16),
        64 => (&AES_256, 32),
        _ => return Err(Luks2Error::Crypto("AES-XTS with a key of this length")),
    };
    if !data.len().is_multiple_of(SECTOR) {
        return Err(Luks2Error::Crypto("AES-XTS of a part of a sector"));
    }
    let (first, second) = key.split_at(half);
    let bind = |half: &[u8]| UnboundCipherKey::new(algorithm, half).map_err(failed);
    let tweaker = EncryptingKey::ecb(bind(second)?).map_err(failed)?;
    let encrypting = EncryptingKey::ecb(bind(first)?).map_err(failed)?;
    let decrypting = DecryptingKey::ecb(bind(first)?).map_err(failed)?;
    for (number, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
        let tweaks = tweaks(&tweaker, number as u64)?;
        mask(sector, &tweaks);
        match way {
            Way::Encrypt => drop(encrypting.encrypt(sector).map_err(failed)?),
            Way::Decrypt => drop(decrypting.decrypt(sector, DecryptionContext::None).map_err(failed)?),
        }
        mask(sector, &tweaks);
    }
    Ok(())
}

fn mask(sector: &mut [u8], tweaks: &[u8; SECTOR]) {
    for (byte, tweak) in sector.iter_mut().zip(tweaks) {
        *byte ^= tweak;
    }
}

/// The encrypted number of a sector, and for each block after the first one the double of the one before, in GF(2^128).
fn tweaks(tweaker: &EncryptingKey, number: u64) -> Result<[u8; SECTOR], Luks2Error> {
    let mut first = [0; BLOCK];
    first[..8].copy_from_slice(&number.to_le_bytes());
    tweaker.encrypt(&mut first).map_err(failed)?;
    let mut tweak = u128::from_le_bytes(first);
    let mut all = [0; SECTOR];
    for block in all.chunks_exact_mut(BLOCK) {
        block.copy_from_slice(&tweak.to_le_bytes());
        let carry = if tweak >> 127 == 1 { 0x87 } else { 0 };
        tweak = (tweak << 1) ^ carry;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE 1619-2007, vector 4, its first blocks; that later sectors have their own tweaks the tests against `cryptsetup` show.
    #[test]
    fn encrypts_as_the_standard_says() {
        let key = hex::decode("2718281828459045235360287471352631415926535897932384626433832795").unwrap();
        let mut data: Vec<u8> = (0..=255).chain(0..=255).collect();
        let plain = data.clone();
        apply(Way::Encrypt, &key, &mut data).unwrap();
        assert_eq!(
            hex::encode(&data[..64]),
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c\
             c78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412"
        );
        apply(Way::Decrypt, &key, &mut data).unwrap();
        assert_eq!(data, plain);
    }

    #[test]
    fn other_lengths_are_refused() {
        assert!(apply(Way::Decrypt, &[0; 48], &mut [0; 512]).is_err());
        assert!(apply(Way::Decrypt, &[0; 64], &mut [0; 500]).is_err());
    }
}
