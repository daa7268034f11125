//! The quote generation service of Intel's DCAP: one exchange over vsock or a unix socket gives a quote for a TD report.
//!
//! For guests whose kernel has no `configfs` TSM reports. Source: Intel's `qgs_msg_lib`, QEMU's `tdx-quote-generator`. Each
//! message is preceded on the stream by its length, 4 bytes big-endian; the rest is little-endian:
//!
//! ```text
//! header            u16 major 1, u16 minor, u32 type, u32 size of all, u32 error code (of answers)
//! GET_QUOTE_REQ 0   header, u32 report size (1024), u32 id list size, report, id list
//! GET_QUOTE_RESP 1  header, u32 selected id size, u32 quote size, id, quote
//! ```
//!
//! The host answers: everything is read with a limit ([`MAX_MESSAGE`]) and each size is compared with the others.

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::AttestError;
use crate::quote::{MAX_QUOTE, TD_REPORT_LEN};

/// Port on which the service listens at the host.
pub const PORT: u32 = 4050;

/// Most bytes of an answer.
pub const MAX_MESSAGE: usize = MAX_QUOTE + 1024;

const MAJOR: u16 = 1;
const MINOR: u16 = 1;
const GET_QUOTE_REQ: u32 = 0;
const GET_QUOTE_RESP: u32 = 1;
const HEADER: usize = 16;

/// Why the service's answer is not taken.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum QgsError {
    /// The service says no.
    #[error("quote generation service refused with {code:#x}: {}", error_words(*code))]
    Refused {
        /// Its error code.
        code: u32,
    },
    /// The answer ends early.
    #[error("quote generation service's answer ends at byte {len} within {part}")]
    Truncated {
        /// Bytes there are.
        len: usize,
        /// The part that is not whole.
        part: &'static str,
    },
    /// More than any answer has.
    #[error("quote generation service announces {0} bytes, at most {MAX_MESSAGE} are read")]
    TooLong(usize),
    /// A member of the header or a size that does not fit.
    #[error("quote generation service's answer has {what} {seen}, expected {expected}")]
    Member {
        /// Which member.
        what: &'static str,
        /// Its value.
        seen: u64,
        /// The value it should have.
        expected: u64,
    },
}

/// What an error code of the service means.
const fn error_words(code: u32) -> &'static str {
    match code {
        0x0001_2001 => "unexpected error",
        0x0001_2002 => "out of memory",
        0x0001_2003 => "invalid parameter",
        0x0001_2004 => "message version is not supported",
        0x0001_2005 => "message type is not known",
        0x0001_2006 => "message size is wrong",
        0x0001_2007 => "error code is wrong",
        _ => "see the log of qgsd on the host",
    }
}

/// The request for a quote of a TD report, with the length that precedes it.
#[must_use]
pub fn get_quote_request(td_report: &[u8; TD_REPORT_LEN]) -> Vec<u8> {
    let size = (HEADER + 8 + TD_REPORT_LEN) as u32;
    let mut out = size.to_be_bytes().to_vec();
    out.extend(MAJOR.to_le_bytes());
    out.extend(MINOR.to_le_bytes());
    for word in [GET_QUOTE_REQ, size, 0, TD_REPORT_LEN as u32, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(td_report);
    out
}

/// Takes a message off the length that precedes it, when it is whole and within the limit.
///
/// # Errors
/// [`QgsError`] when it is too long or cut.
pub fn framed(bytes: &[u8]) -> Result<&[u8], QgsError> {
    let truncated = |part| QgsError::Truncated { len: bytes.len(), part };
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| truncated("the length"))?;
    let length = message_len(*length)?;
    if rest.len() > length {
        let (seen, expected) = (rest.len() as u64, length as u64);
        return Err(QgsError::Member { what: "a length of", seen, expected });
    }
    rest.get(..length).ok_or_else(|| truncated("the message"))
}

fn message_len(prefix: [u8; 4]) -> Result<usize, QgsError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_MESSAGE { Err(QgsError::TooLong(length)) } else { Ok(length) }
}

/// The quote within an answer (without the preceding length).
///
/// # Errors
/// [`QgsError`] when the service refused, or a member does not fit the others.
pub fn quote_of(answer: &[u8]) -> Result<&[u8], QgsError> {
    let truncated = |part| QgsError::Truncated { len: answer.len(), part };
    let word = |at: usize, part| {
        let bytes = answer.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map(|b| u32::from_le_bytes(*b)).ok_or_else(|| truncated(part))
    };
    let expect = |what, seen: u64, expected: u64| {
        if seen == expected { Ok(()) } else { Err(QgsError::Member { what, seen, expected }) }
    };
    let version = word(0, "the header")?;
    // Minor versions add messages, they do not change this one.
    expect("major version", u64::from(version & 0xffff), u64::from(MAJOR))?;
    expect("type", u64::from(word(4, "the header")?), u64::from(GET_QUOTE_RESP))?;
    let size = word(8, "the header")?;
    let code = word(12, "the header")?;
    if code != 0 {
        return Err(QgsError::Refused { code });
    }
    expect("size", u64::from(size), answer.len() as u64)?;
    let id = word(16, "the sizes")? as usize;
    let quote = word(20, "the sizes")? as usize;
    let rest = answer.get(24..).ok_or_else(|| truncated("the sizes"))?;
    expect("sizes of id and quote of", (id as u64) + (quote as u64), rest.len() as u64)?;
    rest.get(id..).ok_or_else(|| truncated("the quote"))
}

/// One exchange over any connection; `address` is for errors.
///
/// # Errors
/// [`AttestError`] when the connection breaks, the service refuses, or sizes are out of bounds.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    address: &str,
    td_report: &[u8; TD_REPORT_LEN],
) -> Result<Vec<u8>, AttestError> {
    let failed = |action| move |source| AttestError::Qgs { action, address: address.to_owned(), source };
    stream.write_all(&get_quote_request(td_report)).await.map_err(failed("ask"))?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(failed("read the answer of"))?;
    let mut answer = vec![0; message_len(length)?];
    stream.read_exact(&mut answer).await.map_err(failed("read the answer of"))?;
    Ok(quote_of(&answer)?.to_vec())
}

/// The port that `/etc/tdx-attest.conf` names (a line `port=4050`), Intel's way to say that quotes come over vsock.
#[must_use]
pub fn configured_port(text: &str) -> Option<u32> {
    let values =
        text.lines().filter_map(|line| line.trim().strip_prefix("port")?.trim_start().strip_prefix('='));
    values.filter_map(|value| value.trim().parse().ok()).next_back().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(id: &[u8], quote: &[u8]) -> Vec<u8> {
        let mut out = [1u16, 1].into_iter().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        let size = 24 + id.len() + quote.len();
        for word in [1, size as u32, 0, id.len() as u32, quote.len() as u32] {
            out.extend(word.to_le_bytes());
        }
        out.extend(id);
        out.extend(quote);
        out
    }

    #[test]
    fn the_quote_is_taken_out_of_the_answer() {
        assert_eq!(quote_of(&answer(b"", b"quote")).expect("quote"), b"quote");
        assert_eq!(quote_of(&answer(&[7; 16], b"quote")).expect("quote"), b"quote");
    }

    #[test]
    fn refusals_and_sizes_that_do_not_fit_are_told() {
        let with = |at: usize, value: u32| {
            let mut bytes = answer(b"", b"quote");
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            quote_of(&bytes).expect_err("refused").to_string()
        };
        assert!(with(0, 2).contains("major version 2"));
        assert!(with(4, 3).contains("type 3"));
        assert!(with(8, 1000).contains("size 1000"));
        assert!(with(12, 0x0001_2002).contains("out of memory"));
        assert!(with(16, u32::MAX).contains("sizes"));
        assert!(with(20, u32::MAX).contains("sizes"));
        let whole = answer(b"", b"quote");
        for cut in 0..whole.len() {
            assert!(quote_of(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(matches!(framed(&[0xff; 8]), Err(QgsError::TooLong(_))));
        assert!(matches!(framed(&[0, 0, 0, 1, 2, 3]), Err(QgsError::Member { .. })));
        assert!(matches!(framed(&[0, 0, 0, 9, 2, 3]), Err(QgsError::Truncated { .. })));
    }

    #[test]
    fn the_port_comes_from_intels_file() {
        assert_eq!(configured_port("# comment\nport=4050\n"), Some(4050));
        assert_eq!(configured_port("port = 5000"), Some(5000));
        for none in ["", "port=", "port=0", "port=x", "report=4050"] {
            assert_eq!(configured_port(none), None, "{none:?}");
        }
    }

    #[tokio::test]
    async fn a_hostile_service_gets_no_further_than_an_error() {
        for served in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x20ab", b"\0", b"\0\0\0\x02ab"] {
            let (guest, mut host) = tokio::io::duplex(64);
            let serve = async move {
                let mut request = vec![0; 1052];
                host.read_exact(&mut request).await.expect("request");
                host.write_all(served).await.expect("answered");
            };
            let (got, ()) = tokio::join!(exchange(guest, "test", &[1; TD_REPORT_LEN]), serve);
            assert!(got.is_err(), "{served:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (framed(&bytes), quote_of(&bytes));
        }

        #[test]
        fn what_is_written_is_read(id in proptest::collection::vec(any::<u8>(), 0..40),
                                   quote in proptest::collection::vec(any::<u8>(), 0..100)) {
            let whole = answer(&id, &quote);
            prop_assert_eq!(quote_of(&whole).expect("quote"), &quote[..]);
        }
    }
}
