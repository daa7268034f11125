//! The chain of hashes, its signed states, and the one check of both, for databases, exports and backups.
//!
//! `hash(0)` = SHA-256("kata-cc audit genesis\0" ‖ public key); `hash(n)` = SHA-256("kata-cc audit record\0" ‖ `hash(n-1)` ‖ n as 8
//! bytes, big endian ‖ canonical record). The state after the last append is signed with Ed25519, and so is, for good, one state of
//! every [`CHECKPOINT_EVERY`] records: who has no key can neither change a record nor drop the last ones, unless to a state that was
//! once the last. That (an old copy of everything) only somebody finds who noted a later state elsewhere.

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::record::{Kind, Record};
use crate::StoreError;

/// Records between two signed states that are kept.
pub(crate) const CHECKPOINT_EVERY: u64 = 256;
/// DER of an Ed25519 SubjectPublicKeyInfo (RFC 8410) before the key itself.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What was changed in an audit log from outside.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Tampered {
    /// A record's hash is not that of its text.
    #[error("record {seq} was edited: its hash is {seen}, its text gives {expected}")]
    Edited {
        /// Number of the record.
        seq: u64,
        /// Hash beside it.
        seen: String,
        /// Hash of its text after all before it.
        expected: String,
    },
    /// A record follows another than the one before it.
    #[error("record {expected} is missing: record {seen} stands in its place (removed, inserted or moved)")]
    Order {
        /// Number that is due.
        expected: u64,
        /// Number that is there.
        seen: u64,
    },
    /// The log ends before the state that was signed.
    #[error("records from {from} on are missing: the signed end is record {to}")]
    Truncated {
        /// First that is missing.
        from: u64,
        /// Last that was signed.
        to: u64,
    },
    /// The log goes on after the state that was signed.
    #[error("record {from} was inserted: the signed end is record {to}")]
    Inserted {
        /// First that is too much.
        from: u64,
        /// Last that was signed.
        to: u64,
    },
    /// The log ends with records that no signed state covers.
    #[error("no signed state covers records from {from} on: the end was cut off, or they were added")]
    Unsigned {
        /// First that is not covered.
        from: u64,
    },
    /// Hashes fit one another, but not what was signed.
    #[error(
        "records between {after} and {seq} were rewritten: the hash of record {seq} is not the signed one"
    )]
    Rewritten {
        /// Last record that a signature vouches for.
        after: u64,
        /// Record whose hash is another than the signed one.
        seq: u64,
    },
    /// A signature is not by the key.
    #[error("state at record {seq} is not signed by the key of this log")]
    Signature {
        /// Number of the last record of the state.
        seq: u64,
    },
    /// The log is of another key than expected.
    #[error("the log is signed by the key {seen}, expected was {expected}")]
    OtherKey {
        /// Key in the log, hex.
        seen: String,
        /// Expected key, hex.
        expected: String,
    },
    /// The log begins with an anchor that was not made with its key, or that none of its records names.
    #[error(
        "the log begins after record {seq}, but no archiving of records up to {seq} is signed and on record"
    )]
    Anchor {
        /// Number of the last record that is not there.
        seq: u64,
    },
    /// What is known from elsewhere is older than where the log begins.
    #[error("record {seq} was archived, the log begins after record {anchor}: compare it with the archive")]
    Archived {
        /// Number of the known record.
        seq: u64,
        /// Number of the last record that was archived.
        anchor: u64,
    },
    /// The log does not reach a state that is known from elsewhere.
    #[error(
        "record {seq} is not the one known from elsewhere: the log was replaced by an older or another one"
    )]
    Known {
        /// Number of the known record.
        seq: u64,
    },
}

impl Tampered {
    /// Number of the first record that is known to be bad.
    #[must_use]
    pub fn first_bad(&self) -> u64 {
        match self {
            Self::Edited { seq, .. }
            | Self::Signature { seq }
            | Self::Known { seq }
            | Self::Archived { seq, .. } => *seq,
            Self::Anchor { seq } => seq.saturating_add(1),
            Self::Order { expected, .. } => *expected,
            Self::Truncated { from, .. } | Self::Inserted { from, .. } | Self::Unsigned { from } => *from,
            Self::Rewritten { after, .. } => after + 1,
            Self::OtherKey { .. } => 0,
        }
    }
}

pub(crate) type Hash = [u8; 32];

/// A public key by which an audit log is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub(crate) [u8; 32]);

impl PublicKey {
    /// Reads PEM (SubjectPublicKeyInfo of Ed25519) or 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let text = text.trim();
        let error =
            || StoreError::KeySource("an audit key is Ed25519: PEM or 64 hexadecimal digits".to_owned());
        let body = text.strip_prefix("-----BEGIN PUBLIC KEY-----");
        let body = body.and_then(|rest| rest.strip_suffix("-----END PUBLIC KEY-----"));
        let key = match body {
            None => hex::decode(text).map_err(|_| error())?,
            Some(body) => {
                let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                let der = STANDARD.decode(body).map_err(|_| error())?;
                der.strip_prefix(&SPKI).ok_or_else(error)?.to_vec()
            }
        };
        Ok(Self(key.try_into().map_err(|_| error())?))
    }

    /// The key in hex.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The key as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        let der = [SPKI.as_slice(), &self.0].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    /// Hash before the first record.
    pub(crate) fn genesis(&self) -> Hash {
        let mut context = Context::new(&SHA256);
        context.update(b"kata-cc audit genesis\0");
        context.update(&self.0);
        finish(context)
    }
}

fn finish(context: Context) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Hash of record `seq` after the one whose hash is `previous`.
pub(crate) fn link(previous: &Hash, seq: u64, record: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(b"kata-cc audit record\0");
    context.update(previous);
    context.update(&seq.to_be_bytes());
    context.update(record);
    finish(context)
}

/// A signed state of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Number of the last record; 0 when there is none.
    pub seq: u64,
    /// Its hash, hex.
    pub hash: String,
    /// When it was signed, RFC 3339.
    pub time: String,
    /// Ed25519 signature, hex.
    pub signature: String,
}

fn signed_bytes(seq: u64, hash: &[u8], time: &str) -> Vec<u8> {
    crate::key::associated("audit checkpoint", &[&seq.to_be_bytes(), hash, time.as_bytes()])
}

/// Whether a state is signed by a key.
pub(crate) fn is_signed(key: &PublicKey, seq: u64, hash: &[u8], time: &str, signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key.0).verify(&signed_bytes(seq, hash, time), signature).is_ok()
}

fn anchor_bytes(seq: u64, hash: &[u8], time: &str) -> Vec<u8> {
    crate::key::associated("audit anchor", &[&seq.to_be_bytes(), hash, time.as_bytes()])
}

/// Signs states.
pub(crate) struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("public", &self.public.hex()).finish_non_exhaustive()
    }
}

impl Signer {
    /// Makes a key; returns it as PKCS#8.
    pub(crate) fn generate() -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let document =
            Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| StoreError::KeyForm)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// Reads PKCS#8.
    pub(crate) fn new(pkcs8: &[u8]) -> Result<Self, StoreError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| StoreError::KeyForm)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| StoreError::KeyForm)?;
        Ok(Self { pair, public: PublicKey(public) })
    }

    pub(crate) fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs a state.
    pub(crate) fn sign(&self, seq: u64, hash: &Hash, time: &str) -> Vec<u8> {
        self.pair.sign(&signed_bytes(seq, hash, time)).as_ref().to_vec()
    }

    /// Signs where the log begins once older records were archived.
    pub(crate) fn sign_anchor(&self, seq: u64, hash: &Hash, time: &str) -> Vec<u8> {
        self.pair.sign(&anchor_bytes(seq, hash, time)).as_ref().to_vec()
    }
}

/// What a record of kind `prune` names: number and hash of the last record that was removed.
fn pruned(record: &[u8]) -> Option<(u64, Hash)> {
    let record: Record = serde_json::from_slice(record).ok()?;
    let details = record.details.filter(|_| record.kind == Kind::Prune)?;
    let hash = hex::decode(details.get("hash")?).ok()?.try_into().ok()?;
    Some((details.get("upto")?.parse().ok()?, hash))
}

/// Follows a log record by record.
#[derive(Debug)]
pub(crate) struct Chain {
    key: PublicKey,
    seq: u64,
    hash: Hash,
    /// Last record that a signature vouches for.
    vouched: u64,
    /// The anchor that the log begins with, and whether a record named it.
    anchor: Option<((u64, Hash), bool)>,
    /// A state known from elsewhere, which the log must go through.
    known: Option<(u64, Hash)>,
}

impl Chain {
    pub(crate) fn new(key: PublicKey, known: Option<(u64, Hash)>) -> Self {
        Self { key, seq: 0, hash: key.genesis(), vouched: 0, anchor: None, known }
    }

    /// The anchor, before anything else: the log begins after its record.
    pub(crate) fn anchor(
        &mut self,
        seq: u64,
        hash: &[u8],
        time: &str,
        signature: &[u8],
    ) -> Result<(), Tampered> {
        let forged = Tampered::Anchor { seq };
        if self.seq != 0 || self.anchor.is_some() || seq == 0 {
            return Err(forged);
        }
        let signed = anchor_bytes(seq, hash, time);
        UnparsedPublicKey::new(&ED25519, self.key.0)
            .verify(&signed, signature)
            .map_err(|_| forged.clone())?;
        let hash = Hash::try_from(hash).map_err(|_| forged)?;
        (self.seq, self.hash, self.vouched, self.anchor) = (seq, hash, seq, Some(((seq, hash), false)));
        match self.known {
            Some((known, _)) if known < seq => Err(Tampered::Archived { seq: known, anchor: seq }),
            Some((known, other)) if known == seq && other != hash => Err(Tampered::Known { seq }),
            _ => Ok(()),
        }
    }

    /// Number of the first record, or of the one that would be.
    pub(crate) fn first(&self) -> u64 {
        self.anchor.map_or(1, |((seq, _), _)| seq.saturating_add(1))
    }

    /// The next record, with its number and hash as they stand beside it.
    pub(crate) fn record(&mut self, seq: u64, record: &[u8], hash: &[u8]) -> Result<(), Tampered> {
        let due = self.seq.saturating_add(1);
        if seq != due {
            return Err(Tampered::Order { expected: due, seen: seq });
        }
        let expected = link(&self.hash, seq, record);
        if hash != expected {
            return Err(Tampered::Edited { seq, seen: hex::encode(hash), expected: hex::encode(expected) });
        }
        (self.seq, self.hash) = (seq, expected);
        if let Some((anchor, named)) = &mut self.anchor
            && !*named
        {
            *named = pruned(record).as_ref() == Some(anchor);
        }
        match self.known {
            Some((known, other)) if known == seq && other != expected => Err(Tampered::Known { seq }),
            _ => Ok(()),
        }
    }

    /// A signed state, which must be that after the last record.
    pub(crate) fn checkpoint(
        &mut self,
        seq: u64,
        hash: &[u8],
        time: &str,
        signature: &[u8],
    ) -> Result<(), Tampered> {
        if !is_signed(&self.key, seq, hash, time, signature) {
            return Err(Tampered::Signature { seq });
        }
        if seq > self.seq {
            return Err(Tampered::Truncated { from: self.seq.saturating_add(1), to: seq });
        }
        if seq < self.seq {
            return Err(Tampered::Inserted { from: seq.saturating_add(1), to: seq });
        }
        if hash != self.hash {
            return Err(Tampered::Rewritten { after: self.vouched, seq });
        }
        self.vouched = seq;
        Ok(())
    }

    /// The end: the last record must be vouched for, and what is known from elsewhere must have been passed.
    pub(crate) fn end(&self) -> Result<u64, Tampered> {
        if self.vouched != self.seq {
            return Err(Tampered::Unsigned { from: self.vouched.saturating_add(1) });
        }
        if let Some(((seq, _), false)) = self.anchor {
            return Err(Tampered::Anchor { seq });
        }
        match self.known {
            Some((known, _)) if known > self.seq => Err(Tampered::Known { seq: known }),
            _ => Ok(self.seq),
        }
    }
}
