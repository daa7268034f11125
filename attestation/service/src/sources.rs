//! Messages that bring reference values, and who may send them.
//!
//! The outer form is Trustee's: `{"version": "0.1.0", "type": …, "payload": …}`. Types:
//!
//! | type | payload | who |
//! |---|---|---|
//! | `sample` | base64 of an object from name to a value or an array | an administrator |
//! | `manifest` (ours) | base64 of what `kata-cc measure --json` prints | an administrator |
//! | `signed` (ours) | compact JWS, see [`SignedClaims`] | whoever has a message of a trusted key |
//! | `in-toto` (ours) | base64 of a DSSE envelope with an in-toto statement of a trusted key | an administrator: a statement does not say when it was signed, so an old one could bring back what was deleted |
//!
//! A trusted key may be bound to names: it then sets these and no others. Signatures are checked before anything else of a
//! payload is believed.

use std::collections::BTreeMap;

use kata_cc_kbs_protocol::admin::{MAX_REFERENCE_VALUES, ReferenceValueError, ReferenceValueMessage};
use kata_cc_kbs_protocol::{from_base64_standard, from_base64_url};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::jws::{JwsError, SignatureForm, Unverified, VerifyingKey};
use crate::references::{self, ReferenceError, Source};
use crate::registry::{Mode, Registration};

/// Most bytes of a payload after decoding.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Most signatures of an envelope.
const MAX_SIGNATURES: usize = 16;
/// Most subjects of a statement.
const MAX_SUBJECTS: usize = 1024;
/// Seconds that the clock of whoever signs may be ahead.
const LEEWAY: i64 = 300;
/// `payloadType` of an in-toto statement.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// `_type` of the statements that are read (the two versions have the same members).
const STATEMENTS: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// `predicateType` of SLSA provenance.
const PROVENANCE: [&str; 2] = ["https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v0.2"];

/// Why a message was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SourceError {
    /// A message that must come from an administrator, of somebody who is no administrator.
    #[error("a message of type {0:?} may only be registered by an administrator")]
    Unsigned(String),
    /// The message.
    #[error(transparent)]
    Message(#[from] ReferenceValueError),
    /// A value in it.
    #[error(transparent)]
    Value(#[from] ReferenceError),
    /// The type.
    #[error("reference value message has type {0:?}, known are sample, manifest, signed, in-toto")]
    Kind(String),
    /// The payload.
    #[error("payload of a {kind} message is not what it should be: {why}")]
    Payload {
        /// Type of the message.
        kind: &'static str,
        /// Why.
        why: String,
    },
    /// No key is trusted.
    #[error("no key is trusted to sign reference values: configure one ([[reference_values.trusted]])")]
    NoKeys,
    /// Signed, but not by one of the keys.
    #[error("no signature of the message is by a key that is trusted to sign reference values: {0}")]
    Signature(JwsError),
    /// The signed message is not, or no more, to be used.
    #[error("signed message: {0}")]
    Time(String),
    /// The key may not set this name.
    #[error("key {signer:?} may not set the reference value {name:?}")]
    NotAllowed {
        /// Name of the key.
        signer: String,
        /// Name of the value.
        name: String,
    },
    /// No subject of the statement is one that is looked for.
    #[error(
        "the statement has the subjects {seen}, none is configured to become a reference value of key {signer:?}"
    )]
    NoSubject {
        /// Name of the key.
        signer: String,
        /// The first of them.
        seen: String,
    },
}

/// A key that may sign reference values.
#[derive(Debug, Clone)]
pub struct TrustedSource {
    /// What it is called in records and logs.
    pub name: String,
    /// The key.
    pub key: VerifyingKey,
    /// Names that it may set; all when empty.
    pub names: Vec<String>,
    /// Name of a subject of a statement to the name of the reference value that its digest becomes.
    pub subjects: BTreeMap<String, String>,
    /// `builder.id` that a provenance must name, if it must.
    pub builder: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Keys.
    pub trusted: Vec<TrustedSource>,
}

/// Claims of a `signed` message (JWS, EdDSA, ES256 or ES384, by the kind of the key).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedClaims {
    /// When it was signed, seconds since 1970. A message that is older than what it would change is refused.
    pub iat: i64,
    /// Until when it may be registered.
    #[serde(default)]
    pub exp: Option<i64>,
    /// Who says so; for people.
    #[serde(default)]
    pub iss: Option<String>,
    /// When the values end, RFC 3339.
    #[serde(default)]
    pub expiration: Option<String>,
    /// Name to a value or an array of values.
    pub reference_values: BTreeMap<String, Value>,
}

/// A DSSE envelope.
#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

/// An in-toto statement.
#[derive(Debug, Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    #[serde(default)]
    predicate: Value,
}

#[derive(Debug, Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    digest: BTreeMap<String, String>,
}

fn payload_error(kind: &'static str, why: impl std::fmt::Display) -> SourceError {
    SourceError::Payload { kind, why: why.to_string().chars().take(300).collect() }
}

/// Base64 of either alphabet, as DSSE allows.
fn any_base64(text: &str) -> Option<Vec<u8>> {
    let bytes = from_base64_standard(text).or_else(|| from_base64_url(text.trim_end_matches('=')));
    bytes.filter(|bytes| bytes.len() <= MAX_PAYLOAD)
}

/// DSSE's pre-authentication encoding (DSSE 1.0, protocol).
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Sources {
    /// Reads a message (JSON text). `administrator` is who passed the gate, if somebody did; `expires` when values end of which the
    /// message does not say it.
    pub fn read(
        &self,
        message: &[u8],
        administrator: Option<&str>,
        expires: Option<i64>,
        now: i64,
    ) -> Result<Registration, SourceError> {
        let message: ReferenceValueMessage =
            serde_json::from_slice(message).map_err(|e| payload_error("reference value", e))?;
        if message.version != "0.1.0" {
            return Err(ReferenceValueError::Version(message.version.chars().take(64).collect()).into());
        }
        let by = || {
            administrator
                .map(str::to_owned)
                .ok_or_else(|| SourceError::Unsigned(message.kind.chars().take(64).collect()))
        };
        match message.kind.as_str() {
            "sample" => Ok(Registration {
                by: by()?,
                values: message.values()?,
                expires,
                source: Source::administrator(),
                mode: Mode::Replace,
            }),
            "manifest" => Ok(Registration { by: by()?, ..manifest(&message.payload, expires)? }),
            "signed" => self.signed(&message.payload, expires, now),
            "in-toto" => Ok(Registration { by: by()?, ..self.in_toto(&message.payload, expires)? }),
            kind => Err(SourceError::Kind(kind.chars().take(64).collect())),
        }
    }

    fn signer(
        &self,
        check: impl Fn(&TrustedSource) -> Result<(), JwsError>,
    ) -> Result<&TrustedSource, SourceError> {
        if self.trusted.is_empty() {
            return Err(SourceError::NoKeys);
        }
        let mut last = JwsError::UnknownKey;
        for source in &self.trusted {
            match check(source) {
                Ok(()) => return Ok(source),
                Err(why) => last = why,
            }
        }
        Err(SourceError::Signature(last))
    }

    fn signed(&self, token: &str, expires: Option<i64>, now: i64) -> Result<Registration, SourceError> {
        let parsed = Unverified::parse(token).map_err(|e| payload_error("signed", e))?;
        let signer = self.signer(|source| source.key.verify(&parsed).map(|_| ()))?;
        let claims: SignedClaims =
            serde_json::from_value(parsed.claims().clone()).map_err(|e| payload_error("signed", e))?;
        if claims.iat > now + LEEWAY {
            return Err(SourceError::Time(format!(
                "it was signed in the future, at {}",
                references::format_time(claims.iat)
            )));
        }
        if let Some(end) = claims.exp.filter(|end| *end <= now) {
            return Err(SourceError::Time(format!(
                "it may be registered until {}",
                references::format_time(end)
            )));
        }
        let expires = match &claims.expiration {
            Some(text) => Some(references::parse_time(text)?),
            None => expires,
        };
        check_names(claims.reference_values.keys(), signer)?;
        Ok(Registration {
            values: claims.reference_values,
            expires,
            source: Source {
                kind: "signed".to_owned(),
                signer: Some(signer.name.clone()),
                detail: claims.iss.map(|issuer| issuer.chars().take(256).collect()),
                signed_at: Some(claims.iat),
            },
            mode: Mode::Replace,
            by: signer.name.clone(),
        })
    }

    fn in_toto(&self, payload: &str, expires: Option<i64>) -> Result<Registration, SourceError> {
        let wrong = |why: &dyn std::fmt::Display| payload_error("in-toto", why);
        let envelope = any_base64(payload).ok_or_else(|| wrong(&"it is not base64 of at most 1 MiB"))?;
        let envelope: Envelope = serde_json::from_slice(&envelope).map_err(|e| wrong(&e))?;
        if envelope.payload_type != IN_TOTO {
            return Err(wrong(&format_args!("payloadType is not {IN_TOTO}")));
        }
        let statement = any_base64(&envelope.payload)
            .ok_or_else(|| wrong(&"the payload of the envelope is not base64"))?;
        let message = pre_authentication(&envelope.payload_type, &statement);
        let signatures: Vec<_> = envelope
            .signatures
            .iter()
            .take(MAX_SIGNATURES)
            .filter_map(|signature| any_base64(&signature.sig))
            .collect();
        let signer = self.signer(|source| {
            let good = |signature: &Vec<u8>| {
                [SignatureForm::Der, SignatureForm::Fixed]
                    .iter()
                    .any(|form| source.key.verify_bytes(&message, signature, *form).is_ok())
            };
            if signatures.iter().any(good) { Ok(()) } else { Err(JwsError::Signature) }
        })?;
        let statement: Statement = serde_json::from_slice(&statement).map_err(|e| wrong(&e))?;
        subjects(&statement, signer, expires)
    }
}

fn check_names<'a>(
    names: impl ExactSizeIterator<Item = &'a String>,
    signer: &TrustedSource,
) -> Result<(), SourceError> {
    if names.len() > MAX_REFERENCE_VALUES {
        return Err(ReferenceValueError::TooMany(names.len()).into());
    }
    for name in names {
        if !signer.names.is_empty() && !signer.names.contains(name) {
            let name = name.chars().take(64).collect();
            return Err(SourceError::NotAllowed { signer: signer.name.clone(), name });
        }
    }
    Ok(())
}

/// Digests of the subjects that `signer` may bring.
fn subjects(
    statement: &Statement,
    signer: &TrustedSource,
    expires: Option<i64>,
) -> Result<Registration, SourceError> {
    let wrong = |why: String| payload_error("in-toto", why);
    if !STATEMENTS.contains(&statement.kind.as_str()) {
        return Err(wrong(format!("_type {:?} is no in-toto statement", statement.kind)));
    }
    if statement.subject.len() > MAX_SUBJECTS {
        return Err(wrong(format!("{} subjects, at most {MAX_SUBJECTS} are read", statement.subject.len())));
    }
    let pointers = ["/runDetails/builder/id", "/builder/id"];
    let builder = pointers.iter().find_map(|at| statement.predicate.pointer(at)?.as_str());
    if let Some(expected) = &signer.builder {
        if !PROVENANCE.contains(&statement.predicate_type.as_str()) {
            return Err(wrong(format!("predicateType {:?} is no SLSA provenance", statement.predicate_type)));
        }
        if builder != Some(expected) {
            return Err(wrong(format!("the builder is {builder:?}, expected {expected:?}")));
        }
    }
    let mut values: BTreeMap<String, Value> = BTreeMap::new();
    for subject in &statement.subject {
        let Some(name) = signer.subjects.get(&subject.name) else { continue };
        let digest = ["sha384", "sha256", "sha512"].iter().find_map(|kind| subject.digest.get(*kind));
        let digest = digest.filter(|text| text.len() <= 128 && hex::decode(text).is_ok());
        let digest = digest.ok_or_else(|| {
            wrong(format!("subject {:?} has no digest sha384, sha256 or sha512 in hexadecimal", subject.name))
        })?;
        let known = values.get(name);
        let value = references::union(known, &json!(digest.to_lowercase()));
        values.insert(name.clone(), value);
    }
    if values.is_empty() {
        let seen: Vec<_> = statement.subject.iter().take(5).map(|subject| subject.name.as_str()).collect();
        let seen = format!("{seen:?}").chars().take(200).collect();
        return Err(SourceError::NoSubject { signer: signer.name.clone(), seen });
    }
    check_names(values.keys(), signer)?;
    Ok(Registration {
        values,
        expires,
        source: Source {
            kind: "in-toto".to_owned(),
            signer: Some(signer.name.clone()),
            detail: builder.map(|builder| builder.chars().take(256).collect()),
            signed_at: None,
        },
        mode: Mode::Add,
        by: signer.name.clone(),
    })
}

/// What `kata-cc measure --json` prints.
#[derive(Debug, Deserialize)]
struct Manifest {
    tier: String,
    launch_digest: String,
    host_data: String,
    #[serde(default)]
    kernel: Option<String>,
}

/// Name of the reference value that the launch digest of a tier becomes. Simulated tiers have names of their own: what was
/// registered for a test says nothing about hardware.
#[must_use]
pub fn launch_value(tier: &str) -> Option<&'static str> {
    Some(match tier {
        "snp" => "snp_launch_measurement",
        "tdx" => "mr_td",
        "sim-snp" => "sim_snp_launch_measurement",
        "sim-tdx" => "sim_mr_td",
        _ => return None,
    })
}

fn manifest(payload: &str, expires: Option<i64>) -> Result<Registration, SourceError> {
    let wrong = |why: &dyn std::fmt::Display| payload_error("manifest", why);
    let bytes = any_base64(payload).ok_or_else(|| wrong(&"it is not base64 of at most 1 MiB"))?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| wrong(&e))?;
    let tier = manifest.tier.as_str();
    let name =
        launch_value(tier).ok_or_else(|| wrong(&format_args!("tier {tier:?} has no launch digest")))?;
    for (what, text, bytes) in
        [("launch_digest", &manifest.launch_digest, 48..=48), ("host_data", &manifest.host_data, 32..=48)]
    {
        if !hex::decode(text).is_ok_and(|digest| bytes.contains(&digest.len())) {
            return Err(wrong(&format_args!("{what} is no digest in hexadecimal")));
        }
    }
    let values = BTreeMap::from([
        (name.to_owned(), json!([manifest.launch_digest.to_lowercase()])),
        ("init_data".to_owned(), json!([manifest.host_data.to_lowercase()])),
    ]);
    let detail =
        manifest.kernel.map(|kernel| format!("{} {kernel}", manifest.tier).chars().take(256).collect());
    let source = Source { kind: "manifest".to_owned(), signer: None, detail, signed_at: None };
    Ok(Registration { values, expires, source, mode: Mode::Add, by: String::new() })
}

#[cfg(test)]
#[path = "sources_test.rs"]
mod tests;
