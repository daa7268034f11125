//! Reading numbers from untrusted bytes without indexing, and numbers as people write them.

use std::borrow::Cow;

use crate::PAGE_SIZE;

/// `N` bytes at an offset; `None` when they are not all there.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Little-endian `u16` at an offset.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Little-endian `u32` at an offset.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Little-endian `u64` at an offset.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Rounds up to whole pages; `None` beyond the address space.
pub(crate) fn page_up(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE_SIZE as u64)
}

/// Page number `index` of some bytes, with zeros where they end.
pub(crate) fn page(bytes: &[u8], index: u64) -> Cow<'_, [u8; PAGE_SIZE]> {
    let start = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(PAGE_SIZE);
    let rest = bytes.get(start..).unwrap_or_default();
    match rest.first_chunk() {
        Some(page) => Cow::Borrowed(page),
        None => {
            let mut page = [0; PAGE_SIZE];
            page[..rest.len()].copy_from_slice(rest);
            Cow::Owned(page)
        }
    }
}

/// Addresses in JSON, as `0x…` text: JSON's numbers end at 2^53.
pub(crate) mod address {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:#x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        let digits =
            text.strip_prefix("0x").ok_or_else(|| D::Error::custom(format!("{text}: expected 0x…")))?;
        u64::from_str_radix(digits, 16).map_err(D::Error::custom)
    }
}

/// Bytes in JSON, as hex.
pub(crate) mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<Vec<u8>>>(
        from: D,
    ) -> Result<T, D::Error> {
        let bytes = hex::decode(String::deserialize(from)?).map_err(D::Error::custom)?;
        let seen = bytes.len();
        T::try_from(bytes).map_err(|_| D::Error::custom(format!("{seen} bytes are not the expected number")))
    }
}

/// Bytes in JSON that may be left out, as hex.
pub(crate) mod optional_hex {
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer, T: AsRef<[u8]>>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(bytes) => super::hex_bytes::serialize(bytes.as_ref(), to),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<Vec<u8>>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        super::hex_bytes::deserialize(from).map(Some)
    }
}
