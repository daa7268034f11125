//! GUIDs as EFI stores them: the first three fields little-endian.

use std::fmt;

/// A GUID in EFI's byte order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guid([u8; 16]);

impl Guid {
    /// From its text form; evaluated at compile time for the constants of this crate.
    pub(crate) const fn new(text: &str) -> Self {
        let text = text.as_bytes();
        assert!(text.len() == 36, "a GUID has 36 characters");
        let mut raw = [0u8; 16];
        let (mut at, mut out) = (0, 0);
        while at < 36 {
            if text[at] == b'-' {
                at += 1;
            } else {
                raw[out] = digit(text[at]) << 4 | digit(text[at + 1]);
                (at, out) = (at + 2, out + 1);
            }
        }
        let [a, b, c, d, e, f, g, h, ..] = raw;
        let mut bytes = raw;
        (bytes[0], bytes[1], bytes[2], bytes[3]) = (d, c, b, a);
        (bytes[4], bytes[5], bytes[6], bytes[7]) = (f, e, h, g);
        Self(bytes)
    }

    /// As it lies in a file.
    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// As it lies in a file.
    #[must_use]
    pub(crate) const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

const fn digit(c: u8) -> u8 {
    match c {
        b'0'..=b'9' => c - b'0',
        b'a'..=b'f' => c - b'a' + 10,
        _ => panic!("a GUID has lower-case hex digits"),
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        let tail = hex::encode(rest);
        let (clock, node) = tail.split_at(4);
        let first = u32::from_le_bytes([a, b, c, d]);
        let (second, third) = (u16::from_le_bytes([e, g]), u16::from_le_bytes([h, i]));
        write!(f, "{first:08x}-{second:04x}-{third:04x}-{clock}-{node}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives() {
        const ID: Guid = Guid::new("96b582de-1fb2-45f7-baea-a366c55a082d");
        assert_eq!(ID.to_bytes()[..8], [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45]);
        assert_eq!(format!("{ID:?}"), "96b582de-1fb2-45f7-baea-a366c55a082d");
    }
}
