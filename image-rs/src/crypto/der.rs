//! Elements of DER, written: tag, length in its shortest form, contents.

use zeroize::Zeroizing;

/// Tags used here.
pub(super) mod tag {
    pub(in crate::crypto) const INTEGER: u8 = 0x02;
    pub(in crate::crypto) const OCTETS: u8 = 0x04;
    pub(in crate::crypto) const SEQUENCE: u8 = 0x30;
    pub(in crate::crypto) const SET: u8 = 0x31;
    /// `[0]`, with elements in it.
    pub(in crate::crypto) const CONTEXT_0: u8 = 0xa0;
}

/// An element whose contents are the parts, one after the other. It may hold a key, so it is wiped.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 10));
    out.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let leading = bytes.iter().take_while(|byte| **byte == 0).count();
            let digits = &bytes[leading..];
            out.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            out.extend_from_slice(digits);
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_their_shortest_form() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
        ] {
            let contents = vec![7; length];
            let made = element(tag::OCTETS, &[&contents]);
            assert_eq!((&made[..head.len()], made.len()), (head, head.len() + length));
        }
    }
}
