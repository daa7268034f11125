//! The certificate table that travels beside a report (GHCB 4.1.8.1; `auxblob` in configfs).
//!
//! 24-byte entries {GUID in RFC 4122 order, u32 offset from the start of the table, u32 length},
//! ended by an all-zero entry, then the certificates. It comes from the host, so it is read with
//! limits: at most [`MAX_ENTRIES`] entries, [`MAX_TABLE`] bytes altogether.

use kata_cc_bytes::{Cursor, Truncated};

/// Most entries that a table may have.
pub const MAX_ENTRIES: usize = 16;

/// Most bytes that a table may have.
pub const MAX_TABLE: usize = 128 * 1024;

const ENTRY_LEN: usize = 24;

const VCEK: [u8; 16] = *b"\x63\xda\x75\x8d\xe6\x64\x45\x64\xad\xc5\xf4\xb9\x3b\xe8\xac\xcd";
const VLEK: [u8; 16] = *b"\xa8\x07\x4b\xc2\xa2\x5a\x48\x3e\xaa\xe6\x39\xc0\x45\xa0\xb8\xa1";
const ASK: [u8; 16] = *b"\x4a\xb7\xb3\x79\xbb\xac\x4f\xe4\xa0\x2f\x05\xae\xf3\x27\xc7\x82";
const ARK: [u8; 16] = *b"\xc0\xb4\x06\xa4\xa8\x03\x49\x52\x97\x43\x3f\xb6\x01\x4c\xd0\xae";
const CRL: [u8; 16] = *b"\x92\xf8\x1b\xc3\x58\x11\x4d\x3d\x97\xff\xd1\x9f\x88\xdc\x67\xea";

/// What a blob of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertKind {
    /// Chip endorsement key.
    Vcek,
    /// Loaded endorsement key.
    Vlek,
    /// Intermediate (ASK or ASVK).
    Ask,
    /// Root.
    Ark,
    /// Revocation list.
    Crl,
    /// Another GUID.
    Other([u8; 16]),
}

impl CertKind {
    /// From the GUID, bytes in the order of its text form.
    #[must_use]
    pub const fn from_guid(guid: [u8; 16]) -> Self {
        match guid {
            VCEK => Self::Vcek,
            VLEK => Self::Vlek,
            ASK => Self::Ask,
            ARK => Self::Ark,
            CRL => Self::Crl,
            other => Self::Other(other),
        }
    }

    /// The GUID, bytes in the order of its text form.
    #[must_use]
    pub const fn guid(self) -> [u8; 16] {
        match self {
            Self::Vcek => VCEK,
            Self::Vlek => VLEK,
            Self::Ask => ASK,
            Self::Ark => ARK,
            Self::Crl => CRL,
            Self::Other(guid) => guid,
        }
    }
}

/// A table that breaks the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertTableError {
    /// Longer than the limit.
    #[error("certificate table has {seen} bytes, at most {MAX_TABLE} are taken")]
    TooLong {
        /// Bytes seen.
        seen: usize,
    },
    /// More entries than the limit, or no end.
    #[error("certificate table has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// Ends within its entries.
    #[error("certificate table ends before its closing entry")]
    Truncated,
    /// A blob lies outside of the table or over its entries.
    #[error("certificate {index} lies at {offset} with {len} bytes, outside of the table's {table} bytes")]
    OutOfBounds {
        /// Which entry.
        index: usize,
        /// Offset seen.
        offset: u32,
        /// Length seen.
        len: u32,
        /// Bytes of the table.
        table: usize,
    },
}

impl From<Truncated> for CertTableError {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// A parsed table: blobs in the table's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertTable {
    /// Kind and bytes of each.
    pub entries: Vec<(CertKind, Vec<u8>)>,
}

impl CertTable {
    /// Reads a table. No bytes at all are an empty table (a host that supplies none).
    ///
    /// # Errors
    /// [`CertTableError`] says which rule the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, CertTableError> {
        if bytes.len() > MAX_TABLE {
            return Err(CertTableError::TooLong { seen: bytes.len() });
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Self::default());
        }
        let mut cursor = Cursor::new(bytes);
        let mut found = Vec::new();
        loop {
            let guid: [u8; 16] = cursor.array()?;
            let (offset, len) = (cursor.u32()?, cursor.u32()?);
            if guid == [0; 16] && offset == 0 && len == 0 {
                break;
            }
            if found.len() == MAX_ENTRIES {
                return Err(CertTableError::TooManyEntries);
            }
            found.push((CertKind::from_guid(guid), offset, len));
        }
        let first_blob = (found.len() + 1) * ENTRY_LEN;
        let mut entries = Vec::with_capacity(found.len());
        for (index, (kind, offset, len)) in found.into_iter().enumerate() {
            let blob = (offset as usize >= first_blob)
                .then(|| bytes.get(offset as usize..)?.get(..len as usize))
                .flatten()
                .ok_or(CertTableError::OutOfBounds { index, offset, len, table: bytes.len() })?;
            entries.push((kind, blob.to_vec()));
        }
        Ok(Self { entries })
    }

    /// Writes the table.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut offset = (self.entries.len() + 1) * ENTRY_LEN;
        let mut out = Vec::new();
        for (kind, blob) in &self.entries {
            out.extend(kind.guid());
            out.extend((offset as u32).to_le_bytes());
            out.extend((blob.len() as u32).to_le_bytes());
            offset += blob.len();
        }
        out.extend([0; ENTRY_LEN]);
        for (_, blob) in &self.entries {
            out.extend(blob);
        }
        out
    }

    /// The first blob of a kind.
    #[must_use]
    pub fn find(&self, kind: CertKind) -> Option<&[u8]> {
        self.entries.iter().find(|(entry, _)| *entry == kind).map(|(_, blob)| blob.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CertTable {
        CertTable {
            entries: vec![
                (CertKind::Vcek, vec![1, 2, 3]),
                (CertKind::Ask, vec![4; 100]),
                (CertKind::Other([9; 16]), vec![]),
            ],
        }
    }

    #[test]
    fn round_trips() {
        assert_eq!(CertTable::parse(&sample().to_bytes()), Ok(sample()));
        assert_eq!(sample().find(CertKind::Ask), Some([4; 100].as_slice()));
        assert_eq!(CertTable::parse(&[]), Ok(CertTable::default()));
        assert_eq!(CertTable::parse(&[0; 4096]), Ok(CertTable::default()));
    }

    #[test]
    fn refuses_what_points_elsewhere() {
        let good = sample().to_bytes();
        let mut beyond = good.clone();
        beyond[20] = 0xFF;
        beyond[21] = 0xFF;
        assert!(matches!(CertTable::parse(&beyond), Err(CertTableError::OutOfBounds { index: 0, .. })));
        let mut over_entries = good.clone();
        over_entries[16] = 0;
        assert!(matches!(CertTable::parse(&over_entries), Err(CertTableError::OutOfBounds { .. })));
        assert_eq!(CertTable::parse(&good[..40]), Err(CertTableError::Truncated));
        assert_eq!(
            CertTable::parse(&vec![1; MAX_TABLE + 1]),
            Err(CertTableError::TooLong { seen: MAX_TABLE + 1 })
        );
        let endless = [[1u8; ENTRY_LEN]; MAX_ENTRIES + 1].concat();
        assert_eq!(CertTable::parse(&endless), Err(CertTableError::TooManyEntries));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            if let Ok(table) = CertTable::parse(&bytes) {
                proptest::prop_assert_eq!(CertTable::parse(&table.to_bytes()), Ok(table));
            }
        }
    }
}
