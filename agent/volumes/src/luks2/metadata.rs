//! The JSON area, read as hostile text: every number is bounded, and one way of encrypting is taken.
//!
//! Source: LUKS2 On-Disk Format Specification 1.1, section 3. Objects and members that the format may get one day are
//! passed over, as the specification asks; *requirements* that are not understood refuse the volume, as it asks too.
//!
//! What is not taken although the format has it: any cipher but `aes-xts-plain64` (a header with `cipher_null` opens with every key,
//! and hands what is then written to whoever wrote the header), authenticated encryption (dm-integrity), more than one
//! segment (an interrupted re-encryption), segments of hardware encryption, hashes but SHA-256 and SHA-512.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::af::STRIPES;
use super::error::Luks2Error;
use super::header::{BINARY, Header};

/// The one cipher.
pub(super) const CIPHER: &str = "aes-xts-plain64";
const ONE_CIPHER: &str = "only aes-xts-plain64 is taken";
const KEY_SIZES: &str = "32 or 64 bytes are taken";
const MAX_KEYSLOTS: usize = 32;
/// Most bytes of all keyslots' areas (`LUKS2_MAX_KEYSLOTS_SIZE` of cryptsetup).
const MAX_AREA: u64 = 128 << 20;
const ALIGNED: u64 = 4096;

/// A hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn named(place: &str, name: &str) -> Result<Self, Luks2Error> {
        match name {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            other => Err(Luks2Error::refused(place, other, "hashes taken are sha256 and sha512")),
        }
    }

    pub(super) const fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    pub(super) fn algorithm(self) -> &'static aws_lc_rs::digest::Algorithm {
        match self {
            Self::Sha256 => &aws_lc_rs::digest::SHA256,
            Self::Sha512 => &aws_lc_rs::digest::SHA512,
        }
    }
}

/// How a keyslot's key comes from what its owner knows.
#[derive(Debug, Clone)]
pub(super) enum Kdf {
    Pbkdf2 { hash: Hash, iterations: NonZeroU32, salt: Vec<u8> },
    Argon2 { id: bool, time: u32, memory: u32, cpus: u32, salt: Vec<u8> },
}

/// A keyslot that can be tried.
#[derive(Debug, Clone)]
pub(super) struct Keyslot {
    pub(super) id: String,
    pub(super) priority: u8,
    pub(super) key_size: usize,
    pub(super) hash: Hash,
    pub(super) offset: u64,
    pub(super) area_key_size: usize,
    pub(super) kdf: Kdf,
}

/// By what a volume key is recognised.
#[derive(Debug, Clone)]
pub(super) struct Digest {
    pub(super) hash: Hash,
    pub(super) iterations: NonZeroU32,
    pub(super) salt: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// What of the metadata is needed to open the volume.
#[derive(Debug, Clone)]
pub(super) struct Metadata {
    pub(super) uuid: String,
    /// In the order in which they are tried.
    pub(super) keyslots: Vec<Keyslot>,
    pub(super) digest: Digest,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) sector_size: u32,
}

#[derive(Deserialize)]
struct JsonKeyslot {
    key_size: usize,
    af: JsonAf,
    area: JsonArea,
    kdf: JsonKdf,
    priority: Option<u8>,
}

#[derive(Deserialize)]
struct JsonAf {
    r#type: String,
    stripes: usize,
    hash: String,
}

#[derive(Deserialize)]
struct JsonArea {
    r#type: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: usize,
}

#[derive(Deserialize)]
struct JsonKdf {
    r#type: String,
    salt: String,
    hash: Option<String>,
    iterations: Option<NonZeroU32>,
    time: Option<u32>,
    memory: Option<u32>,
    cpus: Option<u32>,
}

#[derive(Deserialize)]
struct JsonSegment {
    r#type: String,
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u32,
    integrity: Option<Value>,
}

#[derive(Deserialize)]
struct JsonDigest {
    r#type: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    salt: String,
    digest: String,
    hash: String,
    iterations: NonZeroU32,
}

#[derive(Deserialize)]
struct JsonConfig {
    json_size: String,
    keyslots_size: String,
    requirements: Option<JsonRequirements>,
}

#[derive(Deserialize)]
struct JsonRequirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

fn read<T: DeserializeOwned>(place: &str, value: Option<&Value>) -> Result<T, Luks2Error> {
    let value = value.unwrap_or(&Value::Null);
    T::deserialize(value).map_err(|e| Luks2Error::Form { place: place.to_owned(), why: e.to_string() })
}

fn object<'a>(json: &'a Map<String, Value>, name: &str) -> Result<&'a Map<String, Value>, Luks2Error> {
    let missing = || Luks2Error::Form { place: name.to_owned(), why: "it is no object".to_owned() };
    json.get(name).and_then(Value::as_object).ok_or_else(missing)
}

/// Numbers of 64 bits are decimal text.
fn number(place: &str, text: &str) -> Result<u64, Luks2Error> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| Luks2Error::refused(place, text, "a decimal number below 2^64 is taken"))
}

fn bytes(place: &str, text: &str, most: usize) -> Result<Vec<u8>, Luks2Error> {
    let bytes = STANDARD.decode(text.as_bytes()).unwrap_or_default();
    if bytes.is_empty() || bytes.len() > most {
        return Err(Luks2Error::refused(place, text, "base64 of 1 to 128 bytes is taken"));
    }
    Ok(bytes)
}

fn key_size(place: &str, size: usize) -> Result<usize, Luks2Error> {
    if matches!(size, 32 | 64) { Ok(size) } else { Err(Luks2Error::refused(place, size, KEY_SIZES)) }
}

fn is(place: &str, seen: &str, wanted: &str, allowed: &'static str) -> Result<(), Luks2Error> {
    if seen == wanted { Ok(()) } else { Err(Luks2Error::refused(place, seen, allowed)) }
}

impl Metadata {
    /// Reads the metadata of a header, of a device of `device_size` bytes.
    pub(super) fn read(header: &Header, device_size: u64) -> Result<Self, Luks2Error> {
        let area = config(header)?;
        let (segment_id, segment) = segment(&header.json)?;
        let (offset, length) = data(&segment, area.end, device_size)?;
        let (digest, bound) = digest(&header.json, &segment_id)?;
        let keyslots = keyslots(&header.json, &bound, &area)?;
        if area.end > device_size {
            let allowed = "the keyslots must lie on the device";
            return Err(Luks2Error::refused("config.keyslots_size", area.end - area.start, allowed));
        }
        let sector_size = segment.sector_size;
        Ok(Self { uuid: header.uuid.clone(), keyslots, digest, offset, length, sector_size })
    }
}

/// Where the keyslots lie.
fn config(header: &Header) -> Result<std::ops::Range<u64>, Luks2Error> {
    let config: JsonConfig = read("config", header.json.get("config"))?;
    let mandatory = config.requirements.map(|r| r.mandatory).unwrap_or_default();
    if !mandatory.is_empty() {
        let allowed = "the volume demands of whoever opens it what this guest does not do (finish a re-encryption with `cryptsetup reencrypt --resume-only`)";
        return Err(Luks2Error::refused("config.requirements.mandatory", mandatory.join(", "), allowed));
    }
    let json_size = number("config.json_size", &config.json_size)?;
    if json_size != header.size - BINARY as u64 {
        return Err(Luks2Error::refused("config.json_size", json_size, "it must be what the header says"));
    }
    let size = number("config.keyslots_size", &config.keyslots_size)?;
    if size > MAX_AREA || !size.is_multiple_of(ALIGNED) {
        let allowed = "at most 128 MiB in steps of 4096 are taken";
        return Err(Luks2Error::refused("config.keyslots_size", size, allowed));
    }
    let start = 2 * header.size;
    Ok(start..start + size)
}

/// The one segment.
fn segment(json: &Map<String, Value>) -> Result<(String, JsonSegment), Luks2Error> {
    let all = object(json, "segments")?;
    let mut entries = all.iter();
    let (Some((id, value)), None) = (entries.next(), entries.next()) else {
        let allowed = "one segment is taken, more belong to a re-encryption";
        return Err(Luks2Error::refused("segments", format!("{} segments", all.len()), allowed));
    };
    let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
    is(&format!("segment {id}: type"), kind, "crypt", "only crypt is taken")?;
    let segment: JsonSegment = read(&format!("segment {id}"), Some(value))?;
    debug_assert_eq!(segment.r#type, "crypt");
    let place = |member: &str| format!("segment {id}: {member}");
    if let Some(integrity) = &segment.integrity {
        let allowed = "dm-integrity below the encryption (dataIntegrity) is not supported";
        return Err(Luks2Error::refused(place("integrity"), integrity, allowed));
    }
    is(&place("encryption"), &segment.encryption, CIPHER, ONE_CIPHER)?;
    if number(&place("iv_tweak"), &segment.iv_tweak)? != 0 {
        return Err(Luks2Error::refused(place("iv_tweak"), segment.iv_tweak, "only 0 is taken"));
    }
    if !matches!(segment.sector_size, 512 | 1024 | 2048 | 4096) {
        let allowed = "512, 1024, 2048 and 4096 are taken";
        return Err(Luks2Error::refused(place("sector_size"), segment.sector_size, allowed));
    }
    Ok((id.clone(), segment))
}

/// Where the data lies: begin and length in bytes.
fn data(segment: &JsonSegment, after: u64, device_size: u64) -> Result<(u64, u64), Luks2Error> {
    let sector = u64::from(segment.sector_size);
    let offset = number("segment: offset", &segment.offset)?;
    if offset < after || offset >= device_size || !offset.is_multiple_of(sector) {
        let allowed = "it must be a whole number of sectors, behind the keyslots and before the device's end";
        return Err(Luks2Error::refused("segment: offset", offset, allowed));
    }
    let room = (device_size - offset) / sector * sector;
    let length = match segment.size.as_str() {
        "dynamic" => room,
        text => number("segment: size", text)?,
    };
    if length == 0 || length > room || !length.is_multiple_of(sector) {
        let allowed = "it must be a whole number of sectors, at least one, and end with the device";
        return Err(Luks2Error::refused("segment: size", length, allowed));
    }
    Ok((offset, length))
}

/// The digest of the segment's key, and the keyslots that hold that key.
fn digest(json: &Map<String, Value>, segment: &str) -> Result<(Digest, Vec<String>), Luks2Error> {
    let of_it = |value: &Value| {
        value.get("segments").and_then(Value::as_array).is_some_and(|all| all.iter().any(|s| s == segment))
    };
    let mut found = object(json, "digests")?.iter().filter(|(_, value)| of_it(value));
    let (Some((id, value)), None) = (found.next(), found.next()) else {
        let allowed = "one digest for the segment is taken";
        return Err(Luks2Error::refused("digests", "none or more than one", allowed));
    };
    let digest: JsonDigest = read(&format!("digest {id}"), Some(value))?;
    debug_assert!(digest.segments.iter().any(|s| s == segment));
    let place = |member: &str| format!("digest {id}: {member}");
    is(&place("type"), &digest.r#type, "pbkdf2", "only pbkdf2 is taken")?;
    let hash = Hash::named(&place("hash"), &digest.hash)?;
    let value = bytes(&place("digest"), &digest.digest, 128)?;
    // A short one would match keys that it should not.
    if value.len() != hash.length() {
        let seen = format!("{} bytes", value.len());
        return Err(Luks2Error::refused(place("digest"), seen, "it must be as long as its hash"));
    }
    let salt = bytes(&place("salt"), &digest.salt, 128)?;
    Ok((Digest { hash, iterations: digest.iterations, salt, value }, digest.keyslots))
}

/// The keyslots of `bound` that are of a known type and not switched off, best priority first.
fn keyslots(
    json: &Map<String, Value>,
    bound: &[String],
    area: &std::ops::Range<u64>,
) -> Result<Vec<Keyslot>, Luks2Error> {
    let all = object(json, "keyslots")?;
    if all.len() > MAX_KEYSLOTS || bound.len() > MAX_KEYSLOTS {
        return Err(Luks2Error::refused("keyslots", all.len(), "at most 32 are taken"));
    }
    let mut usable = Vec::new();
    let mut areas: Vec<(u64, u64)> = Vec::new();
    for (id, value) in all {
        if value.get("type").and_then(Value::as_str) != Some("luks2") {
            continue;
        }
        let (keyslot, place) = keyslot(id, value, area)?;
        areas.push(place);
        if bound.contains(id) && keyslot.priority > 0 {
            usable.push(keyslot);
        }
    }
    areas.sort_unstable();
    if let Some(pair) = areas.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(Luks2Error::refused("keyslot: area", pair[1].0, "areas must not overlap"));
    }
    usable.sort_by_key(|keyslot| (u8::MAX - keyslot.priority, keyslot.id.parse::<u8>().unwrap_or(u8::MAX)));
    Ok(usable)
}

/// Reads a keyslot; gives begin and end of its area too.
fn keyslot(
    id: &str,
    value: &Value,
    area: &std::ops::Range<u64>,
) -> Result<(Keyslot, (u64, u64)), Luks2Error> {
    let id: String = id.chars().take(16).collect();
    let seen: JsonKeyslot = read(&format!("keyslot {id}"), Some(value))?;
    let place = |member: &str| format!("keyslot {id}: {member}");
    let size = key_size(&place("key_size"), seen.key_size)?;
    is(&place("af.type"), &seen.af.r#type, "luks1", "only luks1 is taken")?;
    if seen.af.stripes != STRIPES {
        return Err(Luks2Error::refused(place("af.stripes"), seen.af.stripes, "only 4000 is taken"));
    }
    let hash = Hash::named(&place("af.hash"), &seen.af.hash)?;
    is(&place("area.type"), &seen.area.r#type, "raw", "only raw is taken")?;
    is(&place("area.encryption"), &seen.area.encryption, CIPHER, ONE_CIPHER)?;
    let area_key_size = key_size(&place("area.key_size"), seen.area.key_size)?;
    let offset = number(&place("area.offset"), &seen.area.offset)?;
    let length = number(&place("area.size"), &seen.area.size)?;
    let end = offset.checked_add(length).filter(|end| *end <= area.end && offset >= area.start);
    let Some(end) = end.filter(|_| offset.is_multiple_of(ALIGNED)) else {
        let allowed = "it must lie in the area of the keyslots, in steps of 4096";
        return Err(Luks2Error::refused(place("area"), format!("{offset}+{length}"), allowed));
    };
    if length < (size * STRIPES) as u64 {
        return Err(Luks2Error::refused(place("area.size"), length, "it must hold 4000 stripes of the key"));
    }
    let kdf = kdf(&id, &seen.kdf)?;
    let priority = seen.priority.unwrap_or(1).min(2);
    Ok((Keyslot { id, priority, key_size: size, hash, offset, area_key_size, kdf }, (offset, end)))
}

fn kdf(id: &str, seen: &JsonKdf) -> Result<Kdf, Luks2Error> {
    let place = |member: &str| format!("keyslot {id}: kdf.{member}");
    let missing = |member: &str| Luks2Error::Form { place: place(member), why: "it is missing".to_owned() };
    let salt = bytes(&place("salt"), &seen.salt, 128)?;
    match seen.r#type.as_str() {
        "pbkdf2" => {
            let name = seen.hash.as_deref().ok_or_else(|| missing("hash"))?;
            let hash = Hash::named(&place("hash"), name)?;
            let iterations = seen.iterations.ok_or_else(|| missing("iterations"))?;
            Ok(Kdf::Pbkdf2 { hash, iterations, salt })
        }
        kind @ ("argon2i" | "argon2id") => {
            let time = seen.time.ok_or_else(|| missing("time"))?;
            let memory = seen.memory.ok_or_else(|| missing("memory"))?;
            let cpus = seen.cpus.ok_or_else(|| missing("cpus"))?;
            // The upper ends are the limits'; Argon2 itself needs 8 KiB a lane, and 8 bytes of salt.
            if !(1..=16).contains(&cpus) || memory < 8 * cpus || time == 0 || salt.len() < 8 {
                let seen = format!("time {time}, memory {memory}, cpus {cpus}");
                let allowed = "1 to 16 cpus, 8 KiB for each, one pass and 8 bytes of salt at least are taken";
                return Err(Luks2Error::refused(place("cost"), seen, allowed));
            }
            Ok(Kdf::Argon2 { id: kind == "argon2id", time, memory, cpus, salt })
        }
        other => Err(Luks2Error::refused(place("type"), other, "pbkdf2, argon2i and argon2id are taken")),
    }
}
