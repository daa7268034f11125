//! LUKS2 volumes: opened and made.
//!
//! Source: LUKS2 On-Disk Format Specification 1.1. What is read was written by whoever has the disk, in a confidential guest
//! the adversary: see [`metadata`](self) for what is taken. Without the key nobody can make a header that opens: a volume key is
//! believed when it came out of a keyslot under the owner's key *and* matches the digest. An old header with its old data, though,
//! opens as it did.
//!
//! Nothing is repaired: of two copies of the header the newer whole one is used, the other one is left as it is.
#![forbid(unsafe_code)]

mod af;
mod error;
mod format;
mod header;
mod kdf;
mod metadata;
mod xts;

use std::io::{Read, Seek};

use zeroize::Zeroizing;

pub use error::{HeaderFault, Luks2Error};
pub use format::{SMALLEST, format};
pub use header::Header;
pub use kdf::Limits;
use metadata::{CIPHER, Keyslot, Metadata};

/// Most bytes of a key (`cryptsetup`'s for key files).
const MAX_KEY: usize = 8 << 20;
const KERNEL_SECTOR: u64 = 512;

/// An open volume: what the kernel must know to map it.
pub struct Volume {
    key: Zeroizing<Vec<u8>>,
    offset: u64,
    length: u64,
    sector_size: u32,
    uuid: String,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { offset, length, sector_size, uuid, key: _ } = self;
        f.debug_struct("Volume")
            .field("uuid", uuid)
            .field("offset", offset)
            .field("length", length)
            .field("sector_size", sector_size)
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// The volume's name, as its header has it: of printable ASCII, and anybody's choice.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its length in the kernel's sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.length / KERNEL_SECTOR
    }

    /// Parameters of the target `crypt` over the device with these numbers: they hold the key.
    #[must_use]
    pub fn crypt_parameters(&self, (major, minor): (u64, u64)) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(320));
        text.extend_from_slice(CIPHER.as_bytes());
        text.push(b' ');
        let mut digits = Zeroizing::new([0; 128]);
        let digits = &mut digits[..2 * self.key.len()];
        // Twice the length was just taken.
        let _ = hex::encode_to_slice(&*self.key, digits);
        text.extend_from_slice(digits);
        let tail =
            format!(" 0 {major}:{minor} {} 1 sector_size:{}", self.offset / KERNEL_SECTOR, self.sector_size);
        text.extend_from_slice(tail.as_bytes());
        text
    }
}

/// Opens the volume on a device of `size` bytes with `key`, a passphrase or the bytes of a key file.
///
/// # Errors
/// [`Luks2Error`] says why not.
pub fn open<D: Read + Seek>(
    device: &mut D,
    size: u64,
    key: &[u8],
    mut limits: Limits,
) -> Result<Volume, Luks2Error> {
    check_key(key)?;
    let metadata = Metadata::read(&header::read(device)?, size)?;
    if metadata.keyslots.is_empty() {
        return Err(Luks2Error::NoKeyslot { uuid: metadata.uuid });
    }
    let mut denied = None;
    let mut tried = 0;
    for keyslot in &metadata.keyslots {
        // One that is too costly is passed over: another one may be the key's.
        if let Err(error) = limits
            .spend(&keyslot.id, &keyslot.kdf)
            .and_then(|()| recognising(&mut limits, &metadata, keyslot))
        {
            denied.get_or_insert(error);
            continue;
        }
        tried += 1;
        let volume_key = unlock(device, keyslot, key)?;
        let digest = &metadata.digest;
        if kdf::pbkdf2_is(digest.hash, digest.iterations, &digest.salt, &volume_key, &digest.value) {
            return Ok(Volume {
                key: volume_key,
                offset: metadata.offset,
                length: metadata.length,
                sector_size: metadata.sector_size,
                uuid: metadata.uuid,
            });
        }
    }
    Err(denied.unwrap_or(Luks2Error::NoMatch { uuid: metadata.uuid, tried }))
}

fn check_key(key: &[u8]) -> Result<(), Luks2Error> {
    if (1..=MAX_KEY).contains(&key.len()) { Ok(()) } else { Err(Luks2Error::KeyLength(key.len())) }
}

/// Takes the cost of recognising a volume key off the limits.
fn recognising(limits: &mut Limits, metadata: &Metadata, keyslot: &Keyslot) -> Result<(), Luks2Error> {
    let digest = &metadata.digest;
    let (hash, iterations) = (digest.hash, digest.iterations);
    limits.spend(&keyslot.id, &metadata::Kdf::Pbkdf2 { hash, iterations, salt: Vec::new() })
}

/// What the keyslot holds when the key is the right one, else noise.
fn unlock<D: Read + Seek>(
    device: &mut D,
    keyslot: &Keyslot,
    key: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Luks2Error> {
    let length = keyslot.key_size * af::STRIPES;
    let mut area = Zeroizing::new(vec![0; length.next_multiple_of(xts::SECTOR)]);
    if !header::read_at(device, keyslot.offset, &mut area)? {
        return Err(Luks2Error::refused(
            format!("keyslot {}: area.offset", keyslot.id),
            keyslot.offset,
            "it must lie on the device",
        ));
    }
    let area_key = kdf::derive(&keyslot.kdf, key, keyslot.area_key_size)?;
    xts::apply(xts::Way::Decrypt, &area_key, &mut area)?;
    af::merge(keyslot.hash.algorithm(), &area[..length], keyslot.key_size)
}

/// Reads header and metadata without a key: whether [`open`] would try.
///
/// # Errors
/// [`Luks2Error`] says why not.
pub fn inspect<D: Read + Seek>(device: &mut D, size: u64) -> Result<Header, Luks2Error> {
    let header = header::read(device)?;
    Metadata::read(&header, size)?;
    Ok(header)
}

/// Both copies of a header with `json` in its JSON area and checksums that are right: for fuzzers, which cannot find those.
#[doc(hidden)]
#[must_use]
pub fn header_of(json: &[u8]) -> Option<Vec<u8>> {
    const SIZE: u64 = 16 << 10;
    let room = usize::try_from(SIZE).ok()? - header::BINARY;
    (json.len() <= room).then(|| header::write(SIZE, "fuzzed", json, &[[0; 64], [0; 64]]))
}

#[cfg(test)]
mod tests;
