//! The binary header: 4096 bytes, twice, each before its own copy of the JSON area.
//!
//! Source: LUKS2 On-Disk Format Specification 1.1, sections 2.1 to 2.3. Big endian:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 6 | `LUKS\xba\xbe` of the first copy, `SKUL\xba\xbe` of the second |
//! | 6 | 2 | version, 2 |
//! | 8 | 8 | size of header and JSON area |
//! | 16 | 8 | number of the last change |
//! | 72 | 32 | algorithm of the checksum |
//! | 104 | 64 | salt of the checksum |
//! | 168 | 40 | UUID |
//! | 256 | 8 | where the copy lies |
//! | 448 | 64 | checksum of header and JSON area, this field taken as zeros |
//!
//! The checksum proves nothing against whoever writes the disk: it finds torn writes, nothing else.

use std::io::{self, Read, Seek, SeekFrom};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};

use super::error::{HeaderFault, Luks2Error};

/// Bytes of the binary header.
pub(super) const BINARY: usize = 4096;
const FIRST_MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// Sizes of header and JSON area, which are also the places where the second copy can lie.
const SIZES: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

/// A copy of the header whose checksum is right and whose JSON area holds an object.
#[derive(Debug, Clone)]
pub struct Header {
    /// Size of a copy: binary header and JSON area.
    pub size: u64,
    /// Number of the last change: the higher one counts.
    pub sequence: u64,
    /// The volume's name.
    pub uuid: String,
    /// What the JSON area holds.
    pub json: Map<String, Value>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(seen) = bytes.get(at..at + N) {
        out.copy_from_slice(seen);
    }
    out
}

/// Text that ends at the first NUL, of printable ASCII: it goes to logs.
fn text(bytes: &[u8], at: usize, length: usize) -> String {
    let field = bytes.get(at..at + length).unwrap_or_default();
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    field[..end].iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '?' }).collect()
}

/// Reads a copy at `at` of a device.
fn read_copy<D: Read + Seek>(
    device: &mut D,
    at: u64,
    magic: &[u8; 6],
) -> Result<Result<Header, HeaderFault>, Luks2Error> {
    let mut bytes = vec![0; BINARY];
    if !read_at(device, at, &mut bytes)? {
        return Ok(Err(HeaderFault::Short));
    }
    let size = match check_binary(&bytes, at, magic) {
        Ok(size) => size,
        Err(fault) => return Ok(Err(fault)),
    };
    // At most 4 MiB: the size is one of the format's.
    bytes.resize(usize::try_from(size).unwrap_or(BINARY), 0);
    if !read_at(device, at + BINARY as u64, &mut bytes[BINARY..])? {
        return Ok(Err(HeaderFault::Short));
    }
    Ok(parse(bytes, size))
}

/// What can be said before the JSON area was read; gives the size.
fn check_binary(bytes: &[u8], at: u64, magic: &[u8; 6]) -> Result<u64, HeaderFault> {
    if !bytes.starts_with(magic) {
        return Err(HeaderFault::Magic);
    }
    let version = u16::from_be_bytes(number(bytes, 6));
    if version != 2 {
        return Err(HeaderFault::Version(version));
    }
    let size = u64::from_be_bytes(number(bytes, 8));
    if !SIZES.contains(&size) || at != 0 && at != size {
        return Err(HeaderFault::Size(size));
    }
    let seen = u64::from_be_bytes(number(bytes, 256));
    if seen != at {
        return Err(HeaderFault::Place { seen, at });
    }
    let kind = text(bytes, 72, 32);
    if kind != "sha256" {
        return Err(HeaderFault::ChecksumKind(kind));
    }
    Ok(size)
}

fn parse(mut bytes: Vec<u8>, size: u64) -> Result<Header, HeaderFault> {
    let stated: [u8; 64] = number(&bytes, CHECKSUM.start);
    bytes[CHECKSUM].fill(0);
    let computed = digest(&SHA256, &bytes);
    if stated[..32] != *computed.as_ref() {
        return Err(HeaderFault::Checksum);
    }
    let area = &bytes[BINARY..];
    let end = area.iter().position(|b| *b == 0).unwrap_or(area.len());
    let (json, rest) = area.split_at(end);
    if rest.iter().any(|b| *b != 0) {
        return Err(HeaderFault::Json("bytes follow its end".to_owned()));
    }
    let json = serde_json::from_slice(json).map_err(|e| HeaderFault::Json(e.to_string()))?;
    let sequence = u64::from_be_bytes(number(&bytes, 16));
    Ok(Header { size, sequence, uuid: text(&bytes, 168, 40), json })
}

/// Fills `bytes` from `at`; `false` when the device ends before.
pub(super) fn read_at<D: Read + Seek>(device: &mut D, at: u64, bytes: &mut [u8]) -> Result<bool, Luks2Error> {
    device.seek(SeekFrom::Start(at)).map_err(Luks2Error::io("reading"))?;
    match device.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Luks2Error::io("reading")(error)),
    }
}

/// Reads both copies; gives the one that was written last of those that are whole.
///
/// The second copy is looked for where the first one says, or, when that one is damaged, at every place of the format.
///
/// # Errors
/// When the device fails or neither copy is whole.
pub(super) fn read<D: Read + Seek>(device: &mut D) -> Result<Header, Luks2Error> {
    let first = read_copy(device, 0, FIRST_MAGIC)?;
    let places = match &first {
        Ok(header) => vec![header.size],
        Err(_) => SIZES.to_vec(),
    };
    let mut second = Err(HeaderFault::Magic);
    for place in places {
        second = match read_copy(device, place, SECOND_MAGIC)? {
            // What was found damaged says more than what was not found.
            Err(HeaderFault::Magic | HeaderFault::Short) => second,
            found => found,
        };
        if second.is_ok() {
            break;
        }
    }
    match (first, second) {
        (Ok(first), Ok(second)) if second.sequence > first.sequence => Ok(second),
        (Ok(header), _) | (Err(_), Ok(header)) => Ok(header),
        (Err(first), Err(second)) => Err(Luks2Error::NoHeader { first, second }),
    }
}

/// The bytes of both copies, one after the other, of a new header.
pub(super) fn write(size: u64, uuid: &str, json: &[u8], salts: &[[u8; 64]; 2]) -> Vec<u8> {
    let length = usize::try_from(size).unwrap_or(BINARY);
    let mut both = Vec::with_capacity(2 * length);
    for (magic, at, salt) in [(FIRST_MAGIC, 0, &salts[0]), (SECOND_MAGIC, size, &salts[1])] {
        let mut copy = vec![0; length];
        let mut put = |at: usize, bytes: &[u8]| copy[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, magic);
        put(6, &2u16.to_be_bytes());
        put(8, &size.to_be_bytes());
        put(16, &1u64.to_be_bytes());
        put(72, b"sha256");
        put(104, salt);
        put(168, uuid.as_bytes());
        put(256, &at.to_be_bytes());
        put(BINARY, json);
        let checksum = digest(&SHA256, &copy);
        copy[CHECKSUM][..32].copy_from_slice(checksum.as_ref());
        both.extend_from_slice(&copy);
    }
    both
}
