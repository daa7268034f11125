//! Extended attributes beside an inode: a header of 12 bytes, then entries, each filled to a multiple of four.

use std::collections::BTreeMap;

use crate::ErofsError;

/// Bytes of `struct erofs_xattr_ibody_header`.
const HEADER: usize = 12;
/// Most units of four bytes that `i_xattr_icount` counts, the header being one.
const MAX_UNITS: usize = u16::MAX as usize;

/// Kinds of names that the format has numbers for (`EROFS_XATTR_INDEX_*`).
const PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The attributes as they lie beside the inode; nothing where there are none.
pub(crate) fn bytes(attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, ErofsError> {
    if attributes.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = vec![0; HEADER];
    for (name, value) in attributes {
        let (rest, index) = split(name)?;
        let limit = |what, seen: usize, most: usize| {
            (seen > most).then_some(ErofsError::TooLarge { what, seen: seen as u64, most: most as u64 })
        };
        let too_large = limit("bytes of the name of an extended attribute", rest.len(), u8::MAX.into())
            .or_else(|| limit("bytes of an extended attribute", value.len(), u16::MAX.into()));
        if let Some(error) = too_large {
            return Err(error);
        }
        out.extend([rest.len() as u8, index]);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    let most = HEADER + (MAX_UNITS - 1) * 4;
    if out.len() > most {
        let what = "bytes of the extended attributes of one file";
        return Err(ErofsError::TooLarge { what, seen: out.len() as u64, most: most as u64 });
    }
    Ok(out)
}

/// `i_xattr_icount` of that many bytes.
pub(crate) const fn count(bytes: usize) -> u16 {
    if bytes == 0 { 0 } else { ((bytes - HEADER) / 4 + 1) as u16 }
}

fn split(name: &[u8]) -> Result<(&[u8], u8), ErofsError> {
    PREFIXES
        .iter()
        .find_map(|(prefix, index)| {
            let rest = name.strip_prefix(*prefix)?;
            // the names of ACLs are whole, the others need more
            (rest.is_empty() == prefix.starts_with(b"system.")).then_some((rest, *index))
        })
        .ok_or_else(|| ErofsError::Attribute(String::from_utf8_lossy(name).chars().take(200).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_and_filled() {
        let one = BTreeMap::from([(b"user.ab".to_vec(), b"xyz".to_vec())]);
        let bytes = bytes(&one).expect("fits");
        assert_eq!(bytes[HEADER..], [2, 1, 3, 0, b'a', b'b', b'x', b'y', b'z', 0, 0, 0]);
        assert_eq!(count(bytes.len()), 4);
        assert_eq!((super::bytes(&BTreeMap::new()).expect("none").len(), count(0)), (0, 0));
    }

    #[test]
    fn what_has_no_number_or_no_room_is_refused() {
        let refused = |name: &[u8], length: usize| {
            bytes(&BTreeMap::from([(name.to_vec(), vec![1; length])])).expect_err("refused").to_string()
        };
        assert!(refused(b"system.other", 1).contains("system.other"));
        assert!(refused(b"user.", 1).contains("no place"));
        assert!(refused(b"system.posix_acl_access.x", 1).contains("no place"));
        assert!(refused(b"user.a", 70_000).contains("65535"));
        assert!(refused(&[b"user.".as_slice(), &[b'n'; 256]].concat(), 1).contains("255"));
    }
}
