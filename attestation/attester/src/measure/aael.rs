//! CoCo's runtime events (attestation agent event log): `<domain> <operation> <content>`, as an event of the TCG's form.
//!
//! Entry: u32 register, u32 type 6 (`EV_EVENT_TAG`), u32 1, u16 SHA-384, digest, u32 size, data. Data: u32 tag `AAEL`
//! (`0x4141454c`), u32 length of the text, text; little-endian. The digest is over the data, tag and length included.

use thiserror::Error;

use super::tcg::{SHA384, TcgEvent};
use super::{Digest, sha384};

/// Most bytes of an event's text.
pub const MAX_TEXT: usize = 8 << 10;

/// `EV_EVENT_TAG`.
pub(super) const EVENT_TAG: u32 = 6;

/// `AAEL`, which the log shows as `LEAA`.
const TAG: u32 = 0x4141_454c;

/// Domain of CoCo's own events.
pub const COCO_DOMAIN: &str = "github.com/confidential-containers";

/// Why an event is not recorded.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum EventError {
    /// A name that the text form could not carry.
    #[error("event's {member} is empty or has a blank or control character in it")]
    Name {
        /// `domain` or `operation`.
        member: &'static str,
    },
    /// A second line would look like a second event.
    #[error("event's content has a line break in it: it must be one line")]
    Line,
    /// Larger than the limit.
    #[error("event has {0} bytes, at most {MAX_TEXT} are recorded")]
    TooLong(usize),
}

/// Something that happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    domain: String,
    operation: String,
    content: String,
}

impl Event {
    /// An event that the log can carry: it reads back as it was written.
    ///
    /// # Errors
    /// [`EventError`] says what it cannot.
    pub fn new(domain: &str, operation: &str, content: &str) -> Result<Self, EventError> {
        for (member, text) in [("domain", domain), ("operation", operation)] {
            if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(EventError::Name { member });
            }
        }
        if content.contains(['\n', '\r']) {
            return Err(EventError::Line);
        }
        let length = domain.len() + operation.len() + content.len() + 2;
        if length > MAX_TEXT {
            return Err(EventError::TooLong(length));
        }
        Ok(Self { domain: domain.to_owned(), operation: operation.to_owned(), content: content.to_owned() })
    }

    /// An image was pulled in the guest (CoCo's `PullImage`).
    ///
    /// # Errors
    /// When the reference is longer than an event may be.
    pub fn pull_image(reference: &str, digest: &str) -> Result<Self, EventError> {
        // Written by hand because the order of the members is CoCo's.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let content = format!("{{\"image\":{},\"digest\":{}}}", quoted(reference), quoted(digest));
        Self::new(COCO_DOMAIN, "PullImage", &content)
    }

    /// Reads an event's text.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn parse(text: &str) -> Result<Self, EventError> {
        let (domain, rest) = text.split_once(' ').unwrap_or((text, ""));
        let (operation, content) = rest.split_once(' ').unwrap_or((rest, ""));
        Self::new(domain, operation, content)
    }

    /// The event in a log's event, if that is one of this form.
    #[must_use]
    pub fn of(event: &TcgEvent<'_>) -> Option<Self> {
        let (tag, rest) = event.data.split_first_chunk::<4>()?;
        let (length, text) = rest.split_first_chunk::<4>()?;
        let whole = u32::from_le_bytes(*length) as usize == text.len() && u32::from_le_bytes(*tag) == TAG;
        if event.kind != EVENT_TAG || !whole || event.sha384 != Some(sha384(&[event.data])) {
            return None;
        }
        Self::parse(std::str::from_utf8(text).ok()?).ok()
    }

    /// Domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Operation.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// Content.
    #[must_use]
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Text form.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {} {}", self.domain, self.operation, self.content)
    }

    /// The log's entry, and the digest by which the register is extended.
    #[must_use]
    pub fn entry(&self, register: u32) -> (Vec<u8>, Digest) {
        let text = self.text();
        let mut data = TAG.to_le_bytes().to_vec();
        data.extend((text.len() as u32).to_le_bytes());
        data.extend(text.as_bytes());
        let digest = sha384(&[&data]);
        let mut out = [register, EVENT_TAG, 1].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        out.extend(SHA384.to_le_bytes());
        out.extend(digest);
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
        (out, digest)
    }
}

/// On TDX: the log's register number of a PCR (a `CCMR`; RTMRn has the number n + 1).
#[must_use]
pub const fn ccmr_of_pcr(pcr: u64) -> u32 {
    match pcr {
        0 => 0,
        1 | 7 => 1,
        2..=6 => 2,
        8..=15 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tcg;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_text_form_cannot_carry_is_refused() {
        let refused = |d, o, c| Event::new(d, o, c).expect_err("refused");
        assert_eq!(refused("a", "b", "line\nbreak"), EventError::Line);
        assert_eq!(refused("a b", "c", ""), EventError::Name { member: "domain" });
        assert_eq!(refused("a", "b\tc", ""), EventError::Name { member: "operation" });
        assert_eq!(refused("", "b", ""), EventError::Name { member: "domain" });
        assert!(matches!(refused("a", "b", &"x".repeat(MAX_TEXT)), EventError::TooLong(_)));
    }

    #[test]
    fn pcrs_map_to_tdx_registers() {
        assert_eq!([1, 7, 2, 6, 8, 15, 17, 16].map(ccmr_of_pcr), [1, 1, 2, 2, 3, 3, 4, 4]);
    }

    proptest! {
        #[test]
        fn an_entry_reads_back(domain in "[a-z./]{1,20}", operation in "[A-Za-z]{1,20}", content in "[ -~é]{0,60}") {
            let event = Event::new(&domain, &operation, &content).expect("event");
            let (entry, digest) = event.entry(4);
            let log = [tcg::header(), entry].concat();
            let read: Vec<_> = tcg::events(&log).collect::<Result<_, _>>().expect("log");
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!(Event::of(&read[1]), Some(event));
            prop_assert_eq!(tcg::replay(&log, 4).expect("log"), super::super::extended(&[0; 48], &digest));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for event in tcg::events(&bytes).flatten() {
                let _ = Event::of(&event);
            }
        }
    }
}
