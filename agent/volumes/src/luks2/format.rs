//! A new volume: one keyslot, a fresh key, the layout that `cryptsetup luksFormat` makes.

use std::io::{Seek, SeekFrom, Write};
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use zeroize::Zeroizing;

use super::error::Luks2Error;
use super::metadata::{CIPHER, Hash, Kdf};
use super::{Limits, Volume, af, check_key, header, kdf, xts};
use crate::random;

const HEADER: u64 = 16 << 10;
/// Where the data begins, as with `cryptsetup`.
const DATA: u64 = 16 << 20;
/// Least bytes of a device that is made into a volume.
pub const SMALLEST: u64 = DATA + (1 << 20);
const SECTOR_SIZE: u32 = 4096;
const KEY: usize = 64;
/// Argon2id, 64 MiB, four passes: a guest has that much. A key of the key broker's is random anyhow.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 4;
/// Of the digest, by which nothing can be guessed: the volume key is random.
const DIGEST_ITERATIONS: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// A random UUID (RFC 9562, version 4).
pub(crate) fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Makes a device of `size` bytes into a volume that opens with `key`, and gives it open. What was on it is lost: the first 16 MiB
/// are written over, the rest is noise under the new key.
///
/// The open volume comes from memory: what the host makes of the header in the meantime does not matter.
///
/// # Errors
/// [`Luks2Error`] says why not.
pub fn format<D: Write + Seek>(
    device: &mut D,
    size: u64,
    key: &[u8],
    limits: Limits,
) -> Result<Volume, Luks2Error> {
    check_key(key)?;
    if size < SMALLEST {
        return Err(Luks2Error::TooSmall { seen: size, wanted: SMALLEST });
    }
    let volume_key = Zeroizing::new(random::<KEY>()?.to_vec());
    let salt = random::<32>()?.to_vec();
    let memory = MEMORY_KIB.min(limits.argon2_memory_kib).max(8);
    let kdf = Kdf::Argon2 { id: true, time: PASSES, memory, cpus: 1, salt };
    let mut area = af::split(Hash::Sha256.algorithm(), &volume_key)?;
    xts::apply(xts::Way::Encrypt, &kdf::derive(&kdf, key, KEY)?, &mut area)?;
    let uuid = uuid(*random::<16>()?);
    let json = metadata(&kdf, &volume_key, area.len().next_multiple_of(4096))?;
    let copies = header::write(HEADER, &uuid, json.as_bytes(), &[*random::<64>()?, *random::<64>()?]);

    let put = |device: &mut D, at: u64, bytes: &[u8]| {
        device.seek(SeekFrom::Start(at))?;
        device.write_all(bytes)
    };
    // All of it first: no old second copy, and no old keyslot, may be found beside the new ones.
    let zeros = vec![0; 1 << 20];
    for at in (0..DATA).step_by(zeros.len()) {
        put(device, at, &zeros).map_err(Luks2Error::io("wiping"))?;
    }
    put(device, 2 * HEADER, &area).map_err(Luks2Error::io("writing the keyslot to"))?;
    put(device, 0, &copies).map_err(Luks2Error::io("writing the header to"))?;
    device.flush().map_err(Luks2Error::io("writing the header to"))?;
    let sector = u64::from(SECTOR_SIZE);
    let length = (size - DATA) / sector * sector;
    Ok(Volume { key: volume_key, offset: DATA, length, sector_size: SECTOR_SIZE, uuid })
}

/// The JSON area.
fn metadata(kdf: &Kdf, volume_key: &[u8], area: usize) -> Result<String, Luks2Error> {
    let kdf = match kdf {
        Kdf::Argon2 { time, memory, cpus, salt, .. } => json!({
            "type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": STANDARD.encode(salt)
        }),
        Kdf::Pbkdf2 { iterations, salt, .. } => json!({
            "type": "pbkdf2", "hash": "sha256", "iterations": iterations, "salt": STANDARD.encode(salt)
        }),
    };
    let salt = random::<32>()?;
    let mut digest = [0; 32];
    kdf::pbkdf2(Hash::Sha256, DIGEST_ITERATIONS, &*salt, volume_key, &mut digest);
    let keyslots_size = DATA - 2 * HEADER;
    let json = json!({
        "keyslots": {"0": {
            "type": "luks2", "key_size": KEY,
            "af": {"type": "luks1", "stripes": af::STRIPES, "hash": "sha256"},
            "area": {
                "type": "raw", "offset": (2 * HEADER).to_string(), "size": area.to_string(),
                "encryption": CIPHER, "key_size": KEY
            },
            "kdf": kdf
        }},
        "tokens": {},
        "segments": {"0": {
            "type": "crypt", "offset": DATA.to_string(), "size": "dynamic", "iv_tweak": "0",
            "encryption": CIPHER, "sector_size": SECTOR_SIZE
        }},
        "digests": {"0": {
            "type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256",
            "iterations": DIGEST_ITERATIONS, "salt": STANDARD.encode(*salt), "digest": STANDARD.encode(digest)
        }},
        "config": {
            "json_size": (HEADER - header::BINARY as u64).to_string(), "keyslots_size": keyslots_size.to_string()
        }
    });
    Ok(json.to_string())
}
