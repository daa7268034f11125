//! Events that the attestation agent measures while the guest runs (AAEL): which image was pulled, which program was
//! started. They stand in the same log, as tagged events of RTMR3.
//!
//! An event is `<domain> <operation> <content>`, on one line; neither domain nor operation has a space.

use aws_lc_rs::digest::{SHA384, digest};

use crate::event_log::{Algorithm, EV_EVENT_TAG, Event};

/// Register of the log: RTMR3.
pub const REGISTER: u32 = 4;

/// Tag of the event, `AAEL` as a number.
pub const TAG: u32 = 0x4141_454C;

/// Most bytes of an event's text.
pub const MAX_TEXT: usize = 64 * 1024;

/// Text that is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AaelError {
    /// A line break, or a space where none may be.
    #[error("{part} of a runtime event has {seen:?}, which it must not")]
    Character {
        /// Domain, operation or content.
        part: &'static str,
        /// The character.
        seen: char,
    },
    /// No domain or no operation.
    #[error("{part} of a runtime event is empty")]
    Empty {
        /// Which.
        part: &'static str,
    },
    /// Longer than the limit.
    #[error("runtime event has {seen} bytes, at most {MAX_TEXT} are taken")]
    TooLong {
        /// Bytes seen.
        seen: usize,
    },
}

/// A runtime event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    /// Who defines the operation, for example `github.com/confidential-containers`.
    pub domain: String,
    /// What happened, for example `PullImage`.
    pub operation: String,
    /// With what; often JSON.
    pub content: String,
}

impl RuntimeEvent {
    /// A new event.
    ///
    /// # Errors
    /// [`AaelError`] when a part could be mistaken for another.
    pub fn new(domain: &str, operation: &str, content: &str) -> Result<Self, AaelError> {
        for (part, text, forbidden) in [
            ("domain", domain, &[' ', '\n', '\r'][..]),
            ("operation", operation, &[' ', '\n', '\r']),
            ("content", content, &['\n', '\r']),
        ] {
            if let Some(seen) = text.chars().find(|character| forbidden.contains(character)) {
                return Err(AaelError::Character { part, seen });
            }
            if part != "content" && text.is_empty() {
                return Err(AaelError::Empty { part });
            }
        }
        let seen = domain.len() + operation.len() + content.len() + 2;
        if seen > MAX_TEXT {
            return Err(AaelError::TooLong { seen });
        }
        Ok(Self { domain: domain.to_owned(), operation: operation.to_owned(), content: content.to_owned() })
    }

    /// The event of a log, if it is one of these.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        if event.event_type != EV_EVENT_TAG {
            return None;
        }
        Self::from_data(&event.data)
    }

    pub(crate) fn from_data(data: &[u8]) -> Option<Self> {
        let (tag, rest) = data.split_first_chunk()?;
        let (length, text) = rest.split_first_chunk()?;
        if u32::from_le_bytes(*tag) != TAG || u32::from_le_bytes(*length) as usize != text.len() {
            return None;
        }
        let mut parts = std::str::from_utf8(text).ok()?.splitn(3, ' ');
        Self::new(parts.next()?, parts.next()?, parts.next()?).ok()
    }

    /// The text that is measured.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {} {}", self.domain, self.operation, self.content)
    }

    /// Data of the event: tag, length, text.
    #[must_use]
    pub fn data(&self) -> Vec<u8> {
        let text = self.text();
        let mut data = TAG.to_le_bytes().to_vec();
        data.extend((text.len() as u32).to_le_bytes());
        data.extend(text.as_bytes());
        data
    }

    /// What is measured into the register.
    #[must_use]
    pub fn digest(&self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes.copy_from_slice(digest(&SHA384, &self.data()).as_ref());
        bytes
    }

    /// The entry as it is written at the end of the log.
    #[must_use]
    pub fn entry(&self) -> Vec<u8> {
        let data = self.data();
        let mut entry = REGISTER.to_le_bytes().to_vec();
        entry.extend(EV_EVENT_TAG.to_le_bytes());
        entry.extend(1u32.to_le_bytes());
        entry.extend(Algorithm::SHA384.0.to_le_bytes());
        entry.extend(self.digest());
        entry.extend((data.len() as u32).to_le_bytes());
        entry.extend(data);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_mistaken_for_each_other() {
        let character = |part, seen| Err(AaelError::Character { part, seen });
        assert_eq!(RuntimeEvent::new("a b", "c", ""), character("domain", ' '));
        assert_eq!(RuntimeEvent::new("a", "b c", ""), character("operation", ' '));
        assert_eq!(RuntimeEvent::new("a", "b", "line\nbreak"), character("content", '\n'));
        assert_eq!(RuntimeEvent::new("", "b", ""), Err(AaelError::Empty { part: "domain" }));
        let long = "x".repeat(MAX_TEXT);
        assert_eq!(RuntimeEvent::new("a", "b", &long), Err(AaelError::TooLong { seen: MAX_TEXT + 4 }));
    }

    #[test]
    fn reads_back_what_it_writes() {
        let event = RuntimeEvent::new("d", "o", "content with spaces").unwrap();
        assert_eq!(RuntimeEvent::from_data(&event.data()), Some(event.clone()));
        let mut trailing = event.data();
        trailing.push(0);
        assert_eq!(RuntimeEvent::from_data(&trailing), None);
        assert_eq!(RuntimeEvent::from_data(&event.data()[1..]), None);
    }
}
