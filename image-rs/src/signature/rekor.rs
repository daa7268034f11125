//! The transparency log's word that it took a signature in, and when.
//!
//! Rekor signs, for each entry, the canonical JSON of `{body, integratedTime, logID, logIndex}`: the signed entry timestamp (SET). cosign
//! puts it beside the signature, so nobody has to be asked. The body says what was logged: this signature, by this key or certificate,
//! over a payload of this digest. All three are compared, since a SET of another entry would else give any certificate any time.
//!
//! Sources: Rekor's `hashedrekord` and `dsse` schemas 0.0.1; cosign's `bundle` annotation; RFC 8785. Inclusion proofs and the second
//! version of Rekor, which signs no entry timestamps, are not read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;

use super::error::Reason;
use super::key::{PublicKey, names};
use crate::digest::Digest;

/// Largest number that JSON's canonical form writes as it is (RFC 8785, 3.2.2.3).
const MAX_NUMBER: u64 = 1 << 53;

/// An entry as it came with a signature: not believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Base64 of the body.
    pub(super) body: String,
    /// Seconds since 1970.
    pub(super) time: u64,
    pub(super) index: u64,
    /// Hex of the log's key.
    pub(super) log: String,
    /// The log's signature.
    pub(super) set: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotation {
    #[serde(rename = "SignedEntryTimestamp")]
    set: String,
    #[serde(rename = "Payload")]
    payload: Payload,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    body: String,
    #[serde(rename = "integratedTime")]
    time: u64,
    #[serde(rename = "logIndex")]
    index: u64,
    #[serde(rename = "logID")]
    log: String,
}

/// What was logged, with the log's time; believed.
pub(super) struct Logged {
    pub(super) time: u64,
    record: Record,
}

/// What an entry has to be about.
pub(super) struct About<'a> {
    pub(super) signature: &'a [u8],
    /// The key or the certificate, DER.
    pub(super) signer: &'a [u8],
    /// What was signed.
    pub(super) payload: &'a [u8],
}

fn malformed(why: impl std::fmt::Display) -> Reason {
    Reason::malformed("log entry", why)
}

fn not_logged(seen: impl Into<String>, expected: &'static str) -> Reason {
    Reason::NotLogged { seen: seen.into(), expected }
}

impl Entry {
    /// Reads cosign's annotation `dev.sigstore.cosign/bundle`.
    ///
    /// # Errors
    /// [`Reason::Malformed`].
    pub fn from_annotation(text: &str) -> Result<Self, Reason> {
        let Annotation { set, payload } = serde_json::from_str(text).map_err(malformed)?;
        let set = STANDARD.decode(&set).map_err(malformed)?;
        Self::new(payload.body, payload.time, payload.index, payload.log, set)
    }

    /// From its members, which must have the one form that canonical JSON needs no rules for.
    pub(super) fn new(
        body: String,
        time: u64,
        index: u64,
        log: String,
        set: Vec<u8>,
    ) -> Result<Self, Reason> {
        let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        if !body.bytes().all(base64) {
            return Err(malformed("its body is no base64"));
        }
        if log.is_empty() || !log.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(malformed("its logID is no hex"));
        }
        if time > MAX_NUMBER || index > MAX_NUMBER {
            return Err(malformed("its numbers are too large"));
        }
        Ok(Self { body, time, index, log, set })
    }

    /// The bytes that the log signed.
    fn signed(&self) -> String {
        let Self { body, time, index, log, .. } = self;
        format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{log}","logIndex":{index}}}"#)
    }

    /// Believes the entry when one of `keys` signed it.
    pub(super) fn verify(&self, keys: &[PublicKey]) -> Result<Logged, Reason> {
        let signed = self.signed();
        if !keys.iter().any(|key| key.verifies(signed.as_bytes(), &self.set)) {
            let seen = format!("an entry that does not verify with {}", names(keys));
            return Err(not_logged(seen, "an entry signed by a Rekor key of the policy"));
        }
        let body = STANDARD.decode(&self.body).map_err(malformed)?;
        Ok(Logged { time: self.time, record: Record::parse(&body)? })
    }
}

/// The body of an entry.
enum Record {
    /// `hashedrekord`: signature, key or certificate, SHA-256 of the payload.
    Hashed { signature: Vec<u8>, signer: Vec<u8>, payload: String },
    /// `dsse`: the same, of an envelope that several may have signed.
    Dsse { signatures: Vec<(Vec<u8>, Vec<u8>)>, payload: String },
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "apiVersion")]
    version: String,
    kind: String,
    spec: serde_json::Value,
}

#[derive(Deserialize)]
struct HashedSpec {
    data: Data,
    signature: HashedSignature,
}

#[derive(Deserialize)]
struct Data {
    hash: Hash,
}

#[derive(Deserialize)]
struct Hash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
struct HashedSignature {
    content: String,
    #[serde(rename = "publicKey")]
    key: Content,
}

#[derive(Deserialize)]
struct Content {
    content: String,
}

#[derive(Deserialize)]
struct DsseSpec {
    #[serde(rename = "payloadHash")]
    payload: Hash,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
struct DsseSignature {
    signature: String,
    verifier: String,
}

impl Hash {
    fn sha256(self) -> Result<String, Reason> {
        if self.algorithm == "sha256" {
            Ok(self.value)
        } else {
            Err(malformed("its hash is not of kind sha256"))
        }
    }
}

/// Base64 of PEM text of one key or certificate.
fn signer(text: &str) -> Result<Vec<u8>, Reason> {
    let pem = STANDARD.decode(text).map_err(malformed)?;
    pem_der(&pem).ok_or_else(|| malformed("its key is no PEM text"))
}

/// The bytes of the first certificate or else key in a PEM text.
fn pem_der(pem: &[u8]) -> Option<Vec<u8>> {
    match CertificateDer::from_pem_slice(pem) {
        Ok(certificate) => Some(certificate.to_vec()),
        Err(_) => SubjectPublicKeyInfoDer::from_pem_slice(pem).ok().map(|key| key.to_vec()),
    }
}

impl Record {
    fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let body: Body = serde_json::from_slice(bytes).map_err(malformed)?;
        let decode = |text: &str| STANDARD.decode(text).map_err(malformed);
        match (body.kind.as_str(), body.version.as_str()) {
            ("hashedrekord", "0.0.1") => {
                let HashedSpec { data, signature } = serde_json::from_value(body.spec).map_err(malformed)?;
                let (content, signer) = (decode(&signature.content)?, signer(&signature.key.content)?);
                Ok(Self::Hashed { signature: content, signer, payload: data.hash.sha256()? })
            }
            ("dsse", "0.0.1") => {
                let DsseSpec { payload, signatures } =
                    serde_json::from_value(body.spec).map_err(malformed)?;
                let one = |one: &DsseSignature| Ok((decode(&one.signature)?, signer(&one.verifier)?));
                let signatures = signatures.iter().take(8).map(one).collect::<Result<_, Reason>>()?;
                Ok(Self::Dsse { signatures, payload: payload.sha256()? })
            }
            (kind, version) => {
                let seen = super::json::cut(&format!("an entry of kind {kind} {version}"));
                Err(not_logged(seen, "one of kind hashedrekord 0.0.1 or dsse 0.0.1"))
            }
        }
    }
}

impl Logged {
    /// Whether the entry is about this very signature.
    pub(super) fn check(&self, about: &About<'_>) -> Result<(), Reason> {
        let other =
            |what: &str| Err(not_logged(format!("an entry of another {what}"), "one of this very signature"));
        let digest = Digest::sha256(about.payload);
        let (named, payload) = match &self.record {
            Record::Hashed { signature, signer, payload } => {
                (signature == about.signature && signer == about.signer, payload)
            }
            Record::Dsse { signatures, payload } => {
                let same = |(signature, signer): &(Vec<u8>, Vec<u8>)| {
                    signature == about.signature && signer == about.signer
                };
                (signatures.iter().any(same), payload)
            }
        };
        if !payload.eq_ignore_ascii_case(digest.hex()) {
            return other("payload");
        }
        if named { Ok(()) } else { other("signature, key or certificate") }
    }
}
