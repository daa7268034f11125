//! Fixed byte strings as hex text, for configuration files.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `N` bytes, written as lower-case hex and read in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HexBytes<const N: usize>(pub [u8; N]);

impl<const N: usize> std::fmt::Display for HexBytes<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> Serialize for HexBytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for HexBytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let mut bytes = [0; N];
        hex::decode_to_slice(text.as_ref(), &mut bytes).map_err(|error| {
            de::Error::custom(format!("{error}, expected {N} bytes as {} hex digits", 2 * N))
        })?;
        Ok(Self(bytes))
    }
}
