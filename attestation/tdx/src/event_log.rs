//! The event log of a confidential guest (CCEL): what was measured into the runtime registers, in which order.
//!
//! TCG PC client platform firmware profile: one event of the old form that names the algorithms, then crypto-agile
//! events. The registers of the log: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3 (UEFI 2.10, 38.4.1). The log itself proves
//! nothing; replayed, its digests have to lead to the registers of the quote ([`EventLog::check`]).

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};

use crate::report::Digest;
use kata_cc_bytes::{Cursor, Truncated};

/// Most bytes of a log; firmware reserves up to 1 MiB.
pub const MAX_LOG: usize = 4 * 1024 * 1024;

/// Most events of a log.
pub const MAX_EVENTS: usize = 16 * 1024;

/// Most algorithms that a log may name, and digests of an event.
const MAX_ALGORITHMS: usize = 16;

/// `EV_NO_ACTION`: says something and is not measured.
pub const EV_NO_ACTION: u32 = 3;
/// `EV_EVENT_TAG`.
pub const EV_EVENT_TAG: u32 = 6;

const SIGNATURE: [u8; 16] = *b"Spec ID Event03\0";

/// Index of the log for RTMR0.
const FIRST_RTMR: u32 = 1;

/// A log that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// Longer than the limit.
    #[error("event log has {seen} bytes, at most {MAX_LOG} are taken")]
    TooLong {
        /// Bytes seen.
        seen: usize,
    },
    /// More events than the limit.
    #[error("event log has more than {MAX_EVENTS} events")]
    TooManyEvents,
    /// Ends within an event.
    #[error("event log ends within event {index}")]
    Truncated {
        /// Which; the header is 0.
        index: usize,
    },
    /// The first event does not name the algorithms.
    #[error("event log does not begin with the event that names its algorithms (Spec ID Event03)")]
    Header,
    /// More algorithms or digests than the limit.
    #[error("event {index} of the log has {seen} digests or algorithms, at most {MAX_ALGORITHMS} are taken")]
    TooManyDigests {
        /// Which; the header is 0.
        index: usize,
        /// Number seen.
        seen: u32,
    },
    /// A digest of an algorithm that the header does not name.
    #[error("event {index} of the log has a digest of algorithm {seen:#x}, which its header does not name")]
    Algorithm {
        /// Which.
        index: usize,
        /// Identifier seen.
        seen: u16,
    },
    /// An algorithm with a digest of another size than it has.
    #[error("event log says that digests of algorithm {algorithm:#x} have {seen} bytes, expected {expected}")]
    DigestSize {
        /// Identifier.
        algorithm: u16,
        /// Size named.
        seen: u16,
        /// Size it has.
        expected: u16,
    },
    /// An event of a register that TDX measures into has no SHA-384 digest.
    #[error("event {index} of the log has no single SHA-384 digest")]
    NoSha384 {
        /// Which.
        index: usize,
    },
}

/// A log that does not belong to the quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("RTMR{register} is {} in the quote, the event log leads to {}", hex::encode(.seen), hex::encode(.expected))]
pub struct ReplayError {
    /// Which register.
    pub register: u8,
    /// In the quote.
    pub seen: Digest,
    /// What the log leads to.
    pub expected: Digest,
}

/// Identifiers of hash algorithms (TCG algorithm registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Algorithm(pub u16);

impl Algorithm {
    /// SHA-384, that of TDX's registers.
    pub const SHA384: Self = Self(0xC);

    /// Name as Trustee writes it.
    #[must_use]
    pub fn name(self) -> String {
        match self.0 {
            0x4 => "SHA-1".to_owned(),
            0xB => "SHA-256".to_owned(),
            0xC => "SHA-384".to_owned(),
            0xD => "SHA-512".to_owned(),
            0x12 => "SM3".to_owned(),
            other => format!("{other:#x}"),
        }
    }

    /// Bytes of a digest, where it is known.
    const fn size(self) -> Option<u16> {
        match self.0 {
            0x4 => Some(20),
            0xB | 0x12 => Some(32),
            0xC => Some(48),
            0xD => Some(64),
            _ => None,
        }
    }

    /// Hashes, where the algorithm is here.
    fn hash(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let algorithm = match self.0 {
            0x4 => &SHA1_FOR_LEGACY_USE_ONLY,
            0xB => &SHA256,
            0xC => &SHA384,
            0xD => &SHA512,
            _ => return None,
        };
        let mut context = Context::new(algorithm);
        context.update(bytes);
        Some(context.finish().as_ref().to_vec())
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Register: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3.
    pub register: u32,
    /// Type (TCG).
    pub event_type: u32,
    /// What was measured.
    pub digests: Vec<(Algorithm, Vec<u8>)>,
    /// What it says of itself. Only the digests are measured: this may be anything, unless they match.
    pub data: Vec<u8>,
}

impl Event {
    /// True when each digest is the hash of the data, so that the data is measured, too.
    #[must_use]
    pub fn digests_match(&self) -> bool {
        self.digests.iter().all(|(algorithm, digest)| algorithm.hash(&self.data).as_ref() == Some(digest))
    }

    fn sha384(&self) -> Option<Digest> {
        let mut found = self.digests.iter().filter(|(algorithm, _)| *algorithm == Algorithm::SHA384);
        let digest = found.next()?.1.as_slice().try_into().ok();
        digest.filter(|_| found.next().is_none())
    }
}

/// A parsed log, without its header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventLog {
    /// In order.
    pub events: Vec<Event>,
}

impl EventLog {
    /// Reads a log. It ends with its bytes, or where the rest is not written: eight bytes of zeros or ones.
    ///
    /// # Errors
    /// [`EventLogError`] says which rule the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        if bytes.len() > MAX_LOG {
            return Err(EventLogError::TooLong { seen: bytes.len() });
        }
        let mut cursor = Cursor::new(bytes);
        let sizes = parse_header(&mut cursor)?;
        let mut events = Vec::new();
        while !at_end(cursor.rest()) {
            if events.len() == MAX_EVENTS {
                return Err(EventLogError::TooManyEvents);
            }
            events.push(parse_event(&mut cursor, &sizes, events.len() + 1)?);
        }
        Ok(Self { events })
    }

    /// What the registers RTMR0 to RTMR3 are after all events.
    ///
    /// # Errors
    /// [`EventLogError::NoSha384`] when an event of one of them has no digest of its algorithm.
    pub fn replay(&self) -> Result<[Digest; 4], EventLogError> {
        let mut registers = [[0; 48]; 4];
        for (number, register) in (FIRST_RTMR..).zip(&mut registers) {
            *register = self.replay_register(number)?;
        }
        Ok(registers)
    }

    /// What a register is after all its events, by its number in the log.
    ///
    /// # Errors
    /// [`EventLogError::NoSha384`] when one of them has no digest of that algorithm.
    pub fn replay_register(&self, number: u32) -> Result<Digest, EventLogError> {
        let mut register = [0; 48];
        for (index, event) in self.events.iter().enumerate() {
            if event.register == number && event.event_type != EV_NO_ACTION {
                let digest = event.sha384().ok_or(EventLogError::NoSha384 { index: index + 1 })?;
                register = extend(&register, &digest);
            }
        }
        Ok(register)
    }

    /// Compares the registers with those of a quote. The inner error names the first that differs.
    ///
    /// # Errors
    /// [`EventLogError`] when the log cannot be replayed.
    pub fn check(&self, rtmr: &[Digest; 4]) -> Result<Result<(), ReplayError>, EventLogError> {
        let replayed = self.replay()?;
        for (register, (seen, expected)) in (0..).zip(rtmr.iter().zip(replayed)) {
            if *seen != expected {
                return Ok(Err(ReplayError { register, seen: *seen, expected }));
            }
        }
        Ok(Ok(()))
    }
}

/// The value of a register after a digest was measured into it.
#[must_use]
pub fn extend(register: &Digest, digest: &Digest) -> Digest {
    let mut context = Context::new(&SHA384);
    context.update(register);
    context.update(digest);
    let mut value = [0; 48];
    value.copy_from_slice(context.finish().as_ref());
    value
}

/// What follows is not written: firmware fills the area with ones or zeros.
fn at_end(rest: &[u8]) -> bool {
    match rest.first_chunk::<8>() {
        Some(head) => *head == [0; 8] || *head == [0xFF; 8],
        None => rest.iter().all(|byte| *byte == 0) || rest.iter().all(|byte| *byte == 0xFF),
    }
}

fn parse_header(cursor: &mut Cursor<'_>) -> Result<Vec<(Algorithm, u16)>, EventLogError> {
    let truncated = |Truncated| EventLogError::Truncated { index: 0 };
    cursor.u32().map_err(truncated)?;
    let event_type = cursor.u32().map_err(truncated)?;
    cursor.slice(20).map_err(truncated)?;
    let length = cursor.u32().map_err(truncated)?;
    let mut data = Cursor::new(cursor.slice(length as usize).map_err(truncated)?);
    if event_type != EV_NO_ACTION || data.array() != Ok(SIGNATURE) {
        return Err(EventLogError::Header);
    }
    // Platform class, version of the specification, size of a machine word.
    data.slice(8).map_err(truncated)?;
    let count = data.u32().map_err(truncated)?;
    check_count(count, 0)?;
    let mut sizes = Vec::new();
    for _ in 0..count {
        let algorithm = Algorithm(data.u16().map_err(truncated)?);
        let size = data.u16().map_err(truncated)?;
        if let Some(expected) = algorithm.size().filter(|expected| *expected != size) {
            return Err(EventLogError::DigestSize { algorithm: algorithm.0, seen: size, expected });
        }
        sizes.push((algorithm, size));
    }
    Ok(sizes)
}

fn check_count(seen: u32, index: usize) -> Result<(), EventLogError> {
    if seen as usize > MAX_ALGORITHMS {
        return Err(EventLogError::TooManyDigests { index, seen });
    }
    Ok(())
}

fn parse_event(
    cursor: &mut Cursor<'_>,
    sizes: &[(Algorithm, u16)],
    index: usize,
) -> Result<Event, EventLogError> {
    let truncated = |Truncated| EventLogError::Truncated { index };
    let register = cursor.u32().map_err(truncated)?;
    let event_type = cursor.u32().map_err(truncated)?;
    let count = cursor.u32().map_err(truncated)?;
    check_count(count, index)?;
    let mut digests = Vec::new();
    for _ in 0..count {
        let algorithm = Algorithm(cursor.u16().map_err(truncated)?);
        let (_, size) = sizes
            .iter()
            .find(|(named, _)| *named == algorithm)
            .ok_or(EventLogError::Algorithm { index, seen: algorithm.0 })?;
        digests.push((algorithm, cursor.slice((*size).into()).map_err(truncated)?.to_vec()));
    }
    let length = cursor.u32().map_err(truncated)?;
    let data = cursor.slice(length as usize).map_err(truncated)?.to_vec();
    Ok(Event { register, event_type, digests, data })
}
