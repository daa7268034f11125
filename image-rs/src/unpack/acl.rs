//! Access control lists in archives: text in the PAX records `SCHILY.acl.access` and `SCHILY.acl.default`, bytes in the file system.
//!
//! Sources: star and GNU tar (`--acls`) for the records, `acl(5)` for the text, Linux' `posix_acl_xattr.h` for the bytes: version 2, then tag,
//! permissions and id of each entry, the tags in ascending order. Which number a user's name stands for is not known while
//! an image is unpacked (its own `etc/passwd` would have to be believed): lists with names are left out, and counted.

use super::pax::decimal;

const VERSION: u32 = 2;
/// Id of entries that name nobody.
const NOBODY: u32 = u32::MAX;
/// Most entries of one list; file systems hold fewer.
const MAX_ENTRIES: usize = 1024;

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acl {
    /// The value of the extended attribute.
    Bytes(Vec<u8>),
    /// Nothing beyond the permission bits of the file.
    ModeOnly,
    /// It has names instead of numbers.
    Names,
}

/// Reads the text of a list; `None` when it is none.
pub(super) fn read(text: &[u8]) -> Option<Acl> {
    let mut entries = Vec::new();
    let mut names = false;
    for line in text.split(|byte| matches!(byte, b'\n' | b',')) {
        // `#effective:` and other remarks
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if line.is_empty() {
            continue;
        }
        if entries.len() == MAX_ENTRIES {
            return None;
        }
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').map(<[u8]>::trim_ascii).collect();
        let (kind, who, permissions, number) = match fields.as_slice() {
            [kind, who, permissions] => (*kind, *who, *permissions, None),
            // star adds the number where a name stands
            [kind, who, permissions, number] => (*kind, *who, *permissions, Some(*number)),
            _ => return None,
        };
        let tag = match (kind, who.is_empty()) {
            (b"user" | b"u", true) => 0x01,
            (b"user" | b"u", false) => 0x02,
            (b"group" | b"g", true) => 0x04,
            (b"group" | b"g", false) => 0x08,
            (b"mask" | b"m", true) => 0x10,
            (b"other" | b"o", true) => 0x20,
            _ => return None,
        };
        let id = match who {
            b"" => NOBODY,
            _ => match number.or(Some(who)).and_then(decimal).map(u32::try_from) {
                Some(id) => id.ok().filter(|id| *id != NOBODY)?,
                None => {
                    names = true;
                    0
                }
            },
        };
        entries.push((tag, bits(permissions)?, id));
    }
    if names {
        return Some(Acl::Names);
    }
    if entries.iter().all(|(tag, _, _)| matches!(tag, 0x01 | 0x04 | 0x20)) {
        return Some(Acl::ModeOnly);
    }
    entries.sort_by_key(|(tag, _, id)| (*tag, *id));
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&u16::to_le_bytes(tag));
        bytes.extend_from_slice(&u16::to_le_bytes(permissions));
        bytes.extend_from_slice(&u32::to_le_bytes(id));
    }
    Some(Acl::Bytes(bytes))
}

fn bits(text: &[u8]) -> Option<u16> {
    text.iter().try_fold(0, |sum, letter| match letter {
        b'r' => Some(sum | 4),
        b'w' => Some(sum | 2),
        b'x' => Some(sum | 1),
        b'-' => Some(sum),
        _ => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Option<Acl> {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        Some(Acl::Bytes(bytes))
    }

    #[test]
    fn lists_become_the_kernels_bytes() {
        let entries =
            [(1, 6, NOBODY), (2, 5, 12345), (4, 4, NOBODY), (8, 7, 23456), (16, 5, NOBODY), (32, 0, NOBODY)];
        let text = b"user::rw-\nuser:12345:r-x\ngroup::r--\ngroup:23456:rwx\t#effective:r-x\nmask::r-x\nother::---\n";
        assert_eq!(read(text), bytes(&entries));
        // In another order, with short names, commas, and star's numbers.
        let text = b"o::---,g:staff:rwx:23456,g::r--,u:daemon:r-x:12345,m::r-x,u::rw-";
        assert_eq!(read(text), bytes(&entries));
        assert_eq!(read(b"user::rw-,group::r--,other::---"), Some(Acl::ModeOnly));
        assert_eq!(read(b"user::rw-,user:daemon:r--,group::r--,mask::r--,other::---"), Some(Acl::Names));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let many = b"user:1:r--,".repeat(MAX_ENTRIES + 1);
        for text in [
            &b"user"[..],
            b"user:1",
            b"owner::rwx",
            b"mask:1:rwx",
            b"user::rwz",
            b"user:1:r--:2:3",
            b"user:4294967295:r--",
            b"user:99999999999:r--",
            &many,
        ] {
            assert_eq!(read(text), None, "{}", String::from_utf8_lossy(text));
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = read(&text);
        }
    }
}
