//! Sigstore bundles, version 0.3: what cosign 3 attaches to an image as an OCI 1.1 referrer.
//!
//! A bundle holds a signature (over an in-toto statement in a DSSE envelope, or over the manifest itself), the certificate where there is
//! one, and log entries. Source: sigstore/protobuf-specs, `sigstore_bundle.proto` in its JSON form; DSSE `protocol.md`; in-toto
//! Statement v1. Fields that are not used are passed over: what is used is signed.
//!
//! Of statements only cosign's own "this image is signed" counts: an attestation of a scan or a build says something else about the image,
//! and whoever may make those must not thereby approve it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use super::certificate::Presented;
use super::error::Reason;
use super::json::cut;
use super::rekor::Entry;

/// Media type of a bundle that is read.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The same, as version 0.3.0 of the tools wrote it.
const BUNDLE_OLD: &str = "application/vnd.dev.sigstore.bundle+json;version=0.3";
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Type of the statement that an image is signed.
pub(super) const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
/// Most signatures of an envelope, entries of a bundle, subjects of a statement.
const MAX_PARTS: usize = 16;

/// A bundle: nothing of it is believed yet.
pub struct Bundle {
    pub(super) certificate: Option<Presented>,
    pub(super) entries: Vec<Entry>,
    /// Log entries without a signed timestamp.
    pub(super) without_set: usize,
    pub(super) content: Content,
}

/// What was signed.
pub(super) enum Content {
    /// A DSSE envelope: type, payload, signatures.
    Envelope(String, Vec<u8>, Vec<Vec<u8>>),
    /// The manifest: its SHA-256, and the signature.
    Message(Vec<u8>, Vec<u8>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<Message>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    certificate: Option<Bytes>,
    x509_certificate_chain: Option<Chain>,
    #[serde(default)]
    tlog_entries: Vec<LogEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bytes {
    raw_bytes: String,
}

#[derive(Deserialize)]
struct Chain {
    certificates: Vec<Bytes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogEntry {
    log_index: Number,
    log_id: LogId,
    #[serde(default)]
    integrated_time: Number,
    inclusion_promise: Option<Promise>,
    canonicalized_body: String,
}

/// 64-bit numbers are strings in protobuf's JSON; readers must take both.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Text(String),
    Number(u64),
}

impl Default for Number {
    fn default() -> Self {
        Self::Number(0)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogId {
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Promise {
    signed_entry_timestamp: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    message_digest: MessageDigest,
    signature: String,
}

#[derive(Deserialize)]
struct MessageDigest {
    algorithm: String,
    digest: String,
}

fn malformed(why: impl std::fmt::Display) -> Reason {
    Reason::malformed("bundle", why)
}

fn decode(text: &str) -> Result<Vec<u8>, Reason> {
    STANDARD.decode(text).map_err(malformed)
}

fn bounded(limit: &'static str, seen: usize) -> Result<(), Reason> {
    if seen <= MAX_PARTS {
        Ok(())
    } else {
        Err(Reason::Limit { limit, max: MAX_PARTS as u64, seen: seen as u64 })
    }
}

impl Number {
    fn value(&self) -> Result<u64, Reason> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => text.parse().map_err(malformed),
        }
    }
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`Reason::Malformed`] and [`Reason::Limit`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let document: Document = serde_json::from_slice(bytes).map_err(malformed)?;
        if ![BUNDLE, BUNDLE_OLD].contains(&document.media_type.as_str()) {
            return Err(malformed(format!("it is of type {:?}, expected {BUNDLE}", document.media_type)));
        }
        let material = document.verification_material;
        bounded("log entries of a bundle", material.tlog_entries.len())?;
        let mut entries = Vec::new();
        for entry in &material.tlog_entries {
            entries.extend(entry.read()?);
        }
        let content = match (document.dsse_envelope, document.message_signature) {
            (Some(envelope), None) => envelope.read()?,
            (None, Some(message)) => message.read()?,
            _ => return Err(malformed("expected one of dsseEnvelope and messageSignature")),
        };
        let without_set = material.tlog_entries.len() - entries.len();
        Ok(Self { certificate: certificate(material)?, entries, without_set, content })
    }
}

fn certificate(material: Material) -> Result<Option<Presented>, Reason> {
    let all = match (material.certificate, material.x509_certificate_chain) {
        (Some(one), None) => vec![one],
        (None, Some(chain)) => chain.certificates,
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(malformed("it has certificates in two places")),
    };
    bounded("certificates of a bundle", all.len())?;
    let mut all = all.iter().map(|one| decode(&one.raw_bytes).map(CertificateDer::from));
    let leaf = all.next().ok_or_else(|| malformed("its chain is empty"))??;
    Ok(Some(Presented { leaf, chain: all.collect::<Result<_, _>>()? }))
}

impl LogEntry {
    /// The entry, when the log signed a time for it.
    fn read(&self) -> Result<Option<Entry>, Reason> {
        let Some(promise) = &self.inclusion_promise else { return Ok(None) };
        let log = hex::encode(decode(&self.log_id.key_id)?);
        let set = decode(&promise.signed_entry_timestamp)?;
        let (time, index) = (self.integrated_time.value()?, self.log_index.value()?);
        Entry::new(self.canonicalized_body.clone(), time, index, log, set).map(Some)
    }
}

impl Envelope {
    fn read(self) -> Result<Content, Reason> {
        bounded("signatures of an envelope", self.signatures.len())?;
        let signatures = self.signatures.iter().map(|one| decode(&one.sig)).collect::<Result<_, _>>()?;
        Ok(Content::Envelope(self.payload_type, decode(&self.payload)?, signatures))
    }
}

impl Message {
    fn read(self) -> Result<Content, Reason> {
        if self.message_digest.algorithm != "SHA2_256" {
            return Err(malformed(format!(
                "its digest is of kind {:?}, expected SHA2_256",
                self.message_digest.algorithm
            )));
        }
        Ok(Content::Message(decode(&self.message_digest.digest)?, decode(&self.signature)?))
    }
}

/// The bytes that a signature of an envelope covers (DSSE, "pre-authentication encoding").
pub(super) fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// An in-toto statement that an image is signed.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// Of each subject: the name, empty when there is none, and the SHA-256 in hex.
    pub(super) subjects: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatementDocument {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<StatementSubject>,
}

#[derive(Deserialize)]
struct StatementSubject {
    #[serde(default)]
    name: String,
    digest: StatementDigest,
}

#[derive(Deserialize)]
struct StatementDigest {
    sha256: String,
}

impl Statement {
    /// Reads the payload of an envelope of type `kind`.
    ///
    /// # Errors
    /// [`Reason::Malformed`], also for statements that say something else.
    pub fn parse(kind: &str, payload: &[u8]) -> Result<Self, Reason> {
        let malformed = |why: &dyn std::fmt::Display| Reason::malformed("statement", why);
        if kind != IN_TOTO {
            return Err(malformed(&format!("its type is {:?}, expected {IN_TOTO}", cut(kind))));
        }
        let document: StatementDocument =
            serde_json::from_slice(payload).map_err(|error| malformed(&error))?;
        if document.kind != "https://in-toto.io/Statement/v1"
            && document.kind != "https://in-toto.io/Statement/v0.1"
        {
            return Err(malformed(&format!("it is a {:?}", document.kind)));
        }
        if document.predicate_type != SIGNED {
            let seen = cut(&document.predicate_type);
            return Err(malformed(&format!("it attests {seen:?}, which is no signature; expected {SIGNED}")));
        }
        bounded("subjects of a statement", document.subject.len())?;
        let subjects = document.subject.into_iter().map(|one| (one.name, one.digest.sha256));
        Ok(Self { subjects: subjects.collect() })
    }
}
