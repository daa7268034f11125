//! PAX extended headers: records `<length> <key>=<value>\n`.
//!
//! Source: POSIX.1-2017 `pax`, "pax Extended Header"; GNU tar manual, "Storing Sparse Files"; star's `SCHILY.xattr`. Values are
//! bytes: an extended attribute may hold newlines and zeros, so records are cut by their length only.

use super::UnpackError;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the records of one entry say.
#[derive(Debug, Default, Clone)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) atime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) acl_access: Option<Vec<u8>>,
    pub(super) acl_default: Option<Vec<u8>>,
    pub(super) sparse_major: Option<u64>,
    pub(super) sparse_minor: Option<u64>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_map: Vec<u64>,
    pub(super) sparse: bool,
}

/// Reads all records of `data`, which began at offset `at`.
pub(super) fn parse(mut data: &[u8], at: u64) -> Result<Pax, UnpackError> {
    let bad = |why| UnpackError::Malformed { at, why };
    let mut pax = Pax::default();
    while !data.is_empty() {
        if data.iter().all(|byte| *byte == 0) {
            break;
        }
        let space = data
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or(bad("an extended header record has no length"))?;
        let length = decimal(&data[..space]).ok_or(bad("an extended header record's length is no number"))?;
        let length = usize::try_from(length).map_err(|_| bad("an extended header record is too long"))?;
        if length > data.len() || length < space + 3 {
            return Err(bad("an extended header record's length is wrong"));
        }
        let record = &data[space + 1..length];
        let Some((b'\n', record)) = record.split_last() else {
            return Err(bad("an extended header record has no newline"));
        };
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or(bad("an extended header record has no value"))?;
        record_into(&mut pax, &record[..equals], &record[equals + 1..])
            .ok_or(bad("an extended header value is no number"))?;
        data = &data[length..];
    }
    Ok(pax)
}

/// Takes one record over; `None` when its number is none.
fn record_into(pax: &mut Pax, key: &[u8], value: &[u8]) -> Option<()> {
    if let Some(name) = key.strip_prefix(XATTR) {
        pax.xattrs.push((name.to_vec(), value.to_vec()));
        return Some(());
    }
    // An empty value takes the record back (POSIX).
    let text = (!value.is_empty()).then(|| value.to_vec());
    match key {
        b"path" => pax.path = text,
        b"linkpath" => pax.link = text,
        b"size" => pax.size = Some(decimal(value)?),
        b"uid" => pax.uid = Some(decimal(value)?),
        b"gid" => pax.gid = Some(decimal(value)?),
        b"mtime" => pax.mtime = Some(time(value)?),
        b"atime" => pax.atime = Some(time(value)?),
        b"SCHILY.acl.access" => pax.acl_access = text,
        b"SCHILY.acl.default" => pax.acl_default = text,
        b"GNU.sparse.major" => pax.sparse_major = Some(decimal(value)?),
        b"GNU.sparse.minor" => pax.sparse_minor = Some(decimal(value)?),
        b"GNU.sparse.name" => pax.sparse_name = text,
        b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
            pax.sparse_size = Some(decimal(value)?);
            pax.sparse = true;
        }
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            pax.sparse_map.push(decimal(value)?);
            pax.sparse = true;
        }
        b"GNU.sparse.map" => {
            pax.sparse = true;
            pax.sparse_map = value
                .split(|byte| *byte == b',')
                .filter(|part| !part.is_empty())
                .map(decimal)
                .collect::<Option<_>>()?;
        }
        _ => {}
    }
    Some(())
}

/// An unsigned decimal number without sign or spaces.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction, also before 1970: `(floor, nanoseconds)`.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next() {
        let mut scale = 100_000_000;
        for byte in fraction {
            if !byte.is_ascii_digit() {
                return None;
            }
            nanos += u32::from(byte - b'0') * scale;
            scale /= 10;
        }
    }
    if !negative {
        return Some((seconds, nanos));
    }
    if nanos == 0 {
        return Some((-seconds, 0));
    }
    Some((-seconds - 1, 1_000_000_000 - nanos))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        let mut out = format!("{length} {key}=").into_bytes();
        out.extend_from_slice(value);
        out.push(b'\n');
        out
    }

    #[test]
    fn keeps_binary_values() {
        let mut data = record("SCHILY.xattr.security.capability", b"\x01\0\n=\n\0");
        data.extend(record("path", "ä/x".as_bytes()));
        let pax = parse(&data, 0).unwrap();
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), b"\x01\0\n=\n\0".to_vec())]);
        assert_eq!(pax.path.unwrap(), "ä/x".as_bytes());
    }

    #[test]
    fn reads_times() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"7.1234567891"), Some((7, 123_456_789)));
        assert_eq!(time(b"x"), None);
    }

    #[test]
    fn refuses_broken_records() {
        for data in [
            &b"5 a=b"[..],
            b"999 path=x\n",
            b"3 =\n",
            b"x path=1\n",
            b"11 pathxxx\n",
            b"99999999999999999999 path=1\n",
            b"10 size=x\n",
        ] {
            assert!(parse(data, 0).is_err(), "{:?}", String::from_utf8_lossy(data));
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(data: Vec<u8>) {
            let _ = parse(&data, 0);
        }
    }
}
