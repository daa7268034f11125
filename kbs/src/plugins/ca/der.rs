//! Writing DER (ITU-T X.690), no more of it than certificates and revocation lists need.
//!
//! Written by hand because issuer names and keys are copied byte for byte, and because an object identifier under 2.25 has an arc
//! of 128 bits, which the parser's types do not hold.

/// SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// SET.
const SET: u8 = 0x31;

/// Tag, length, contents.
pub(crate) fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = contents.len().to_be_bytes();
    let significant: Vec<u8> = length.iter().copied().skip_while(|b| *b == 0).collect();
    match significant[..] {
        [] => out.push(0),
        [short] if short < 0x80 => out.push(short),
        // At most eight bytes.
        _ => {
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(0x7f));
            out.extend_from_slice(&significant);
        }
    }
    out.extend_from_slice(contents);
    out
}

/// SEQUENCE of what is already DER.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

/// SET of one.
pub(crate) fn set_of_one(part: &[u8]) -> Vec<u8> {
    tlv(SET, part)
}

/// INTEGER from unsigned big-endian bytes.
pub(crate) fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let mut contents: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
    if contents.first().is_none_or(|first| *first & 0x80 != 0) {
        contents.insert(0, 0);
    }
    tlv(0x02, &contents)
}

/// BOOLEAN TRUE.
pub(crate) fn boolean(value: bool) -> Vec<u8> {
    tlv(0x01, &[if value { 0xff } else { 0 }])
}

/// OBJECT IDENTIFIER from its encoded contents.
pub(crate) fn oid(contents: &[u8]) -> Vec<u8> {
    tlv(0x06, contents)
}

/// OCTET STRING.
pub(crate) fn octets(contents: &[u8]) -> Vec<u8> {
    tlv(0x04, contents)
}

/// BIT STRING without unused bits.
pub(crate) fn bits(contents: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0], contents].concat())
}

/// BIT STRING of named bits, the first one highest; trailing zero bits are left out (X.690, 11.2.2).
pub(crate) fn named_bits(mask: u8) -> Vec<u8> {
    let unused = u8::try_from(mask.trailing_zeros()).unwrap_or(0).min(7);
    tlv(0x03, &[unused, mask])
}

/// UTF8String.
pub(crate) fn utf8(text: &str) -> Vec<u8> {
    tlv(0x0c, text.as_bytes())
}

/// `[number]` around what is already DER.
pub(crate) fn explicit(number: u8, part: &[u8]) -> Vec<u8> {
    tlv(0xa0 | number, part)
}

/// `[number]` in place of the tag of a primitive.
pub(crate) fn implicit(number: u8, contents: &[u8]) -> Vec<u8> {
    tlv(0x80 | number, contents)
}

/// Time as RFC 5280, 4.1.2.5 wants it: UTCTime up to 2049, then GeneralizedTime. Seconds since 1970.
pub(crate) fn time(seconds: i64) -> Option<Vec<u8>> {
    use time::macros::format_description;
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let (tag, text) = if (1950..2050).contains(&at.year()) {
        let form = format_description!("[year repr:last_two][month][day][hour][minute][second]Z");
        (0x17, at.format(form).ok()?)
    } else {
        (0x18, at.format(format_description!("[year][month][day][hour][minute][second]Z")).ok()?)
    };
    Some(tlv(tag, text.as_bytes()))
}

/// An extension (RFC 5280, 4.1). `id` is the encoded contents of its identifier.
pub(crate) fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    if critical {
        sequence(&[&oid(id), &boolean(true), &octets(value)])
    } else {
        sequence(&[&oid(id), &octets(value)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_standard_says() {
        assert_eq!(tlv(4, &[]), [4, 0]);
        assert_eq!(tlv(4, &[7; 127])[..3], [4, 127, 7]);
        assert_eq!(tlv(4, &[7; 128])[..4], [4, 0x81, 128, 7]);
        assert_eq!(tlv(4, &[7; 256])[..5], [4, 0x82, 1, 0, 7]);
        assert_eq!(unsigned(&[0, 0, 5]), [2, 1, 5]);
        assert_eq!(unsigned(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[]), [2, 1, 0]);
        assert_eq!(named_bits(0b1000_0000), [3, 2, 7, 0x80]);
        assert_eq!(named_bits(0b0000_0110), [3, 2, 1, 0b110]);
        assert_eq!(time(0).unwrap(), b"\x17\x0d700101000000Z");
        assert_eq!(time(2_524_608_000).unwrap(), b"\x18\x0f20500101000000Z");
        assert!(time(i64::MAX).is_none());
    }
}
