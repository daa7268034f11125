//! Reading TCG event logs: the firmware's (CCEL) and ours, which continues it.
//!
//! TCG PC Client Platform Firmware Profile, crypto-agile form; facts in UEFI 2.10 section 38. The first event may be the old
//! form (`TCG_EfiSpecIdEvent`: u32 register, u32 type 3, 20 bytes digest, u32 size, data). The others: u32 register, u32 type, u32
//! number of digests, each u16 algorithm and digest, u32 size, data. All little-endian. The end is marked by 0xFF bytes
//! or zeros, or is the end of the bytes.

use thiserror::Error;

use super::{DIGEST_LEN, Digest, extended};

/// Event type that is not extended into a register.
const NO_ACTION: u32 = 3;
/// Most digests of an event.
const MAX_DIGESTS: u32 = 8;
/// SHA-384.
pub(super) const SHA384: u16 = 0x000C;
/// Begin of the first event's data.
const SPEC_ID: &[u8] = b"Spec ID Event03\0";

/// Why a log cannot be read.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TcgError {
    /// It ends within an event.
    #[error("event log is truncated: it ends within the event at byte {at}")]
    Truncated {
        /// Where the event begins.
        at: usize,
    },
    /// A digest of an unknown kind, whose length is not known either.
    #[error("event at byte {at} has a digest of the unknown algorithm {seen:#x}")]
    Algorithm {
        /// Where the event begins.
        at: usize,
        /// Identifier of the TCG registry.
        seen: u16,
    },
    /// More digests than any event has.
    #[error("event at byte {at} has {seen} digests, at most {MAX_DIGESTS} are read")]
    Digests {
        /// Where the event begins.
        at: usize,
        /// How many it says it has.
        seen: u32,
    },
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcgEvent<'a> {
    /// Register in the log's count (on TDX: 1 to 4 for RTMR0 to RTMR3).
    pub register: u32,
    /// Event type.
    pub kind: u32,
    /// SHA-384 digest, when it has one.
    pub sha384: Option<Digest>,
    /// Event data.
    pub data: &'a [u8],
}

/// The events of a log, in order; ends after the first that cannot be read.
#[derive(Debug, Clone)]
pub struct Events<'a> {
    log: &'a [u8],
    at: usize,
    over: bool,
}

/// Reads a log.
#[must_use]
pub const fn events(log: &[u8]) -> Events<'_> {
    Events { log, at: 0, over: false }
}

impl<'a> Events<'a> {
    /// Where the next event begins; after the last: where the log's used part ends.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    fn take(&mut self, length: usize, start: usize) -> Result<&'a [u8], TcgError> {
        let end = self.at.checked_add(length);
        let bytes =
            end.and_then(|end| self.log.get(self.at..end)).ok_or(TcgError::Truncated { at: start })?;
        self.at += length;
        Ok(bytes)
    }

    fn word(&mut self, start: usize) -> Result<u32, TcgError> {
        let bytes = self.take(4, start)?.first_chunk().ok_or(TcgError::Truncated { at: start })?;
        Ok(u32::from_le_bytes(*bytes))
    }

    fn digest(&mut self, start: usize) -> Result<Option<Digest>, TcgError> {
        let algorithm = self.take(2, start)?.first_chunk().ok_or(TcgError::Truncated { at: start })?;
        let seen = u16::from_le_bytes(*algorithm);
        let length = match seen {
            0x0004 => 20,
            0x000B | 0x0012 => 32,
            SHA384 => DIGEST_LEN,
            0x000D => 64,
            _ => return Err(TcgError::Algorithm { at: start, seen }),
        };
        let digest = self.take(length, start)?;
        Ok(digest.first_chunk().filter(|_| seen == SHA384).copied())
    }

    fn event(&mut self) -> Result<TcgEvent<'a>, TcgError> {
        let start = self.at;
        let (register, kind) = (self.word(start)?, self.word(start)?);
        // Only the first event has the old form, and only when its data says that it is that one.
        let rest = self.log.get(self.at..).unwrap_or_default();
        let old = start == 0 && kind == NO_ACTION && rest.get(24..40) == Some(SPEC_ID);
        let mut sha384 = None;
        if old {
            self.take(20, start)?;
        } else {
            let count = self.word(start)?;
            if count > MAX_DIGESTS {
                return Err(TcgError::Digests { at: start, seen: count });
            }
            for _ in 0..count {
                sha384 = self.digest(start)?.or(sha384);
            }
        }
        let size = self.word(start)? as usize;
        let data = self.take(size, start)?;
        Ok(TcgEvent { register, kind, sha384, data })
    }

    /// Whether what follows is filling, or nothing.
    fn is_at_end(&self) -> bool {
        let rest = self.log.get(self.at..).unwrap_or_default();
        match rest.first_chunk::<8>() {
            None => rest.iter().all(|byte| *byte == 0xFF) || rest.iter().all(|byte| *byte == 0),
            Some(head) => head.starts_with(&[0xFF; 4]) || head.ends_with(&[0xFF; 4]) || *head == [0; 8],
        }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<TcgEvent<'a>, TcgError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over || self.is_at_end() {
            return None;
        }
        let start = self.at;
        let event = self.event();
        if event.is_err() {
            (self.over, self.at) = (true, start);
        }
        Some(event)
    }
}

/// Bytes of the log that hold events; `None` when it cannot be read to its end.
#[must_use]
pub fn used_length(log: &[u8]) -> Option<usize> {
    let mut all = events(log);
    all.by_ref().all(|event| event.is_ok()).then(|| all.position())
}

/// The value that a register, zero at first, has after the events of the log.
///
/// # Errors
/// When the log cannot be read.
pub fn replay(log: &[u8], register: u32) -> Result<Digest, TcgError> {
    let mut value = [0; DIGEST_LEN];
    for event in events(log) {
        let event = event?;
        if event.register == register
            && event.kind != NO_ACTION
            && let Some(digest) = &event.sha384
        {
            value = extended(&value, digest);
        }
    }
    Ok(value)
}

/// The first event of a log that the firmware did not begin: it names the one algorithm.
#[must_use]
pub fn header() -> Vec<u8> {
    let mut data = SPEC_ID.to_vec();
    // Platform class 0, version 2.0 errata 0, 64-bit integers.
    data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    data.extend(1u32.to_le_bytes());
    data.extend(SHA384.to_le_bytes());
    data.extend((DIGEST_LEN as u16).to_le_bytes());
    data.push(0);
    let mut out = [0u32, NO_ACTION].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
    out.extend([0; 20]);
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}
