//! The audit log as a file: JSON Lines that anybody can check who has the public key, without the store.
//!
//! First line `{"audit":1,"public_key":HEX}`; one line per record `{"seq":N,"hash":HEX,"record":{…}}`; between them and at the end
//! `{"checkpoint":{"seq","hash","time","signature"}}`. When older records were archived, the second line is `{"anchor":…}` with the
//! same members: number and hash of the last record that is not there. Records are hashed in canonical form (RFC 8785), so that a file whose lines
//! were written anew by a JSON tool is still the same log.

use std::io::BufRead;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::chain::{Chain, Checkpoint, Hash, PublicKey, Tampered};

/// Why hash or signature are none.
const HEX: &str = "hash and signature must be hexadecimal, in lower case";
/// Most bytes of a line.
const MAX_LINE: u64 = 64 << 10;

/// What is wrong with an export.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The log was changed.
    #[error("the audit log was tampered with: {0}")]
    Tampered(#[from] Tampered),
    /// The file is no export.
    #[error("line {line} is not a line of an audit log: {why}")]
    Unreadable {
        /// Number of the line, from 1.
        line: u64,
        /// Why.
        why: String,
    },
}

/// A log that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// Number of its first record: 1, unless older ones were archived.
    pub first: u64,
    /// Number of its last record, so how many there are and were.
    pub records: u64,
    /// Hash of the last one, hex. Note it with the number elsewhere: a later check can demand it.
    pub head: String,
    /// Key by which it was checked, hex.
    pub public_key: String,
    /// When the end was signed.
    pub signed: String,
}

/// A state of the log that is known from elsewhere: number and hash (hex) of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Number of the record.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl std::str::FromStr for Known {
    type Err = String;

    /// Reads `NUMBER:HASH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let known = parts.and_then(|(seq, hash)| {
            let hash = hex::decode(hash).ok()?.try_into().ok()?;
            Some(Self { seq: seq.parse().ok()?, hash })
        });
        known.ok_or_else(|| {
            format!("{:?} is not NUMBER:HASH of a record", text.chars().take(100).collect::<String>())
        })
    }
}

impl Known {
    pub(crate) fn pair(&self) -> (u64, Hash) {
        (self.seq, self.hash)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    audit: Option<u64>,
    public_key: Option<String>,
    seq: Option<u64>,
    hash: Option<String>,
    record: Option<Value>,
    checkpoint: Option<Checkpoint>,
    anchor: Option<Checkpoint>,
}

/// Checks an export. Without `key` the key in the file is taken, which only proves that the file fits itself.
pub fn verify_export(
    reader: impl BufRead,
    key: Option<&PublicKey>,
    known: Option<&Known>,
) -> Result<Whole, VerifyError> {
    let mut reader = Lines { reader, number: 0 };
    let bad = |line, why: &str| VerifyError::Unreadable { line, why: why.to_owned() };
    let Some((number, Line { audit: Some(1), public_key: Some(seen), .. })) = reader.next()? else {
        return Err(bad(1, "the first line must be {\"audit\":1,\"public_key\":...}"));
    };
    let seen = bytes(&seen).and_then(|key| key.try_into().ok()).map(PublicKey);
    let seen = seen.ok_or_else(|| bad(number, "public_key is not 64 hexadecimal digits in lower case"))?;
    if let Some(key) = key
        && *key != seen
    {
        return Err(Tampered::OtherKey { seen: seen.hex(), expected: key.hex() }.into());
    }
    let mut chain = Chain::new(seen, known.map(Known::pair));
    let mut last = None;
    while let Some((number, line)) = reader.next()? {
        match line {
            Line {
                seq: Some(seq),
                hash: Some(hash),
                record: Some(record),
                checkpoint: None,
                anchor: None,
                audit: None,
                ..
            } => {
                let hash = bytes(&hash).ok_or_else(|| bad(number, HEX))?;
                let record =
                    serde_json_canonicalizer::to_vec(&record).map_err(|e| bad(number, &e.to_string()))?;
                chain.record(seq, &record, &hash)?;
            }
            Line { anchor: Some(anchor), seq: None, record: None, checkpoint: None, audit: None, .. } => {
                let hash = bytes(&anchor.hash).ok_or_else(|| bad(number, HEX))?;
                let signature = bytes(&anchor.signature).ok_or_else(|| bad(number, HEX))?;
                chain.anchor(anchor.seq, &hash, &anchor.time, &signature)?;
            }
            Line { checkpoint: Some(state), seq: None, record: None, anchor: None, audit: None, .. } => {
                let hash = bytes(&state.hash).ok_or_else(|| bad(number, HEX))?;
                let signature = bytes(&state.signature).ok_or_else(|| bad(number, HEX))?;
                chain.checkpoint(state.seq, &hash, &state.time, &signature)?;
                last = Some(state);
            }
            _ => return Err(bad(number, "neither a record nor a checkpoint nor an anchor")),
        }
    }
    let Some(last) = last else {
        return Err(Tampered::Unsigned { from: 1 }.into());
    };
    let records = chain.end()?;
    Ok(Whole { first: chain.first(), records, head: last.hash, public_key: seen.hex(), signed: last.time })
}

/// Bytes of the one hexadecimal form that is written.
fn bytes(text: &str) -> Option<Vec<u8>> {
    hex::decode(text).ok().filter(|bytes| hex::encode(bytes) == text)
}

/// Lines of bounded length.
struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<(u64, Line)>, VerifyError> {
        self.number = self.number.saturating_add(1);
        let number = self.number;
        let bad = |why: String| VerifyError::Unreadable { line: number, why };
        let mut bytes = Vec::new();
        let mut limited = std::io::Read::take(&mut self.reader, MAX_LINE + 1);
        limited.read_until(b'\n', &mut bytes).map_err(|e| bad(e.to_string()))?;
        if bytes.len() as u64 > MAX_LINE {
            return Err(bad(format!("it has more than {MAX_LINE} bytes")));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(|line| Some((number, line))).map_err(|e| bad(e.to_string()))
    }
}
