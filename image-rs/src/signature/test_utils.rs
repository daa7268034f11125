//! Makes what a signer, Fulcio and Rekor make, for tests here and in `tests/`: keys, certificates, log entries, payloads, bundles.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SignatureAlgorithm, SigningKey as _,
    date_time_ymd,
};
use serde_json::{Value, json};

/// The time at which everything here is logged, in seconds since 1970.
pub const NOW: u64 = 1_700_000_000;
pub const ISSUER: &str = "https://login.example/oauth";
pub const SUBJECT: &str = "builder@example.com";
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A key pair of any kind.
pub struct Key(pub KeyPair);

impl Key {
    pub fn new() -> Self {
        Self::of(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub fn of(kind: &'static SignatureAlgorithm) -> Self {
        Self(KeyPair::generate_for(kind).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// As `keyData` of a policy.
    pub fn data(&self) -> String {
        STANDARD.encode(self.pem())
    }

    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).unwrap()
    }
}

pub fn hash(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// What a signer says of an image.
pub fn payload(digest: &str, reference: &str) -> Vec<u8> {
    let critical = json!({"identity": {"docker-reference": reference}, "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature"});
    json!({"critical": critical, "optional": null}).to_string().into_bytes()
}

/// A statement that cosign 3 signs.
pub fn statement(digest: &str) -> Vec<u8> {
    let hash = digest.trim_start_matches("sha256:");
    json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": hash}, "annotations": {}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}})
    .to_string()
    .into_bytes()
}

/// A transparency log.
pub struct Log(pub Key);

impl Log {
    pub fn new() -> Self {
        Self(Key::new())
    }

    /// What it says of an entry: id, and signed timestamp.
    fn stamp(&self, body: &str, time: u64) -> (String, Vec<u8>) {
        let id = hash(&self.0.0.subject_public_key_info());
        let signed = format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":7}}"#);
        (id, self.0.sign(signed.as_bytes()))
    }

    /// The annotation of an entry with this body.
    pub fn annotation(&self, body: &Value, time: u64) -> String {
        let body = STANDARD.encode(body.to_string());
        let (id, set) = self.stamp(&body, time);
        let payload = json!({"body": body, "integratedTime": time, "logIndex": 7, "logID": id});
        json!({"SignedEntryTimestamp": STANDARD.encode(set), "Payload": payload}).to_string()
    }

    /// The same, as a bundle has it.
    pub fn entry(&self, body: &Value, time: u64) -> Value {
        let body = STANDARD.encode(body.to_string());
        let (id, set) = self.stamp(&body, time);
        json!({"logIndex": "7", "logId": {"keyId": STANDARD.encode(hex::decode(id).unwrap())},
            "kindVersion": {"kind": "any", "version": "0.0.1"}, "integratedTime": time.to_string(),
            "inclusionPromise": {"signedEntryTimestamp": STANDARD.encode(set)}, "canonicalizedBody": body})
    }
}

/// The body of an entry for a payload; `signer` is PEM of a key or certificate.
pub fn hashed(payload: &[u8], signature: &[u8], signer: &str) -> Value {
    json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
        "data": {"hash": {"algorithm": "sha256", "value": hash(payload)}},
        "signature": {"content": STANDARD.encode(signature), "publicKey": {"content": STANDARD.encode(signer)}}}})
}

/// The same for an envelope.
pub fn enveloped(payload: &[u8], signature: &[u8], signer: &str) -> Value {
    json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
        "envelopeHash": {"algorithm": "sha256", "value": hash(b"envelope")},
        "payloadHash": {"algorithm": "sha256", "value": hash(payload)},
        "signatures": [{"signature": STANDARD.encode(signature), "verifier": STANDARD.encode(signer)}]}})
}

/// What Fulcio certifies.
pub struct Person {
    pub san: SanType,
    pub issuer: Option<&'static str>,
    pub old_issuer: Option<&'static str>,
    pub from: u64,
    pub to: u64,
    pub usage: Option<ExtendedKeyUsagePurpose>,
}

impl Default for Person {
    fn default() -> Self {
        Self {
            san: SanType::Rfc822Name(SUBJECT.try_into().unwrap()),
            issuer: Some(ISSUER),
            old_issuer: Some(ISSUER),
            from: NOW - 60,
            to: NOW + 600,
            usage: Some(ExtendedKeyUsagePurpose::CodeSigning),
        }
    }
}

/// A Fulcio of two tiers.
pub struct Fulcio {
    root: CertifiedIssuer<'static, KeyPair>,
    middle: CertifiedIssuer<'static, KeyPair>,
}

fn authority(name: &str, from: u64, to: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    valid(&mut params, from, to);
    params
}

fn valid(params: &mut CertificateParams, from: u64, to: u64) {
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(from);
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(to);
}

impl Fulcio {
    pub fn new() -> Self {
        Self::valid(NOW - 10_000, NOW + 100_000)
    }

    /// Whose authorities are valid from and to these times.
    pub fn valid(from: u64, to: u64) -> Self {
        let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let root = CertifiedIssuer::self_signed(authority("test root", from, to), key()).unwrap();
        let middle =
            CertifiedIssuer::signed_by(authority("test intermediate", from, to), key(), &root).unwrap();
        Self { root, middle }
    }

    /// As `caData` of a policy.
    pub fn data(&self) -> String {
        STANDARD.encode(self.root.pem())
    }

    /// Intermediate and root, as cosign attaches them.
    pub fn chain(&self) -> String {
        format!("{}{}", self.middle.pem(), self.root.pem())
    }

    pub fn middle_der(&self) -> Vec<u8> {
        self.middle.der().to_vec()
    }

    /// A certificate for a new key: key, PEM, DER.
    pub fn issue(&self, person: &Person) -> (Key, String, Vec<u8>) {
        let key = Key::new();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![person.san.clone()];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = person.usage.iter().cloned().collect();
        if let Some(issuer) = person.issuer {
            let der = [&[0x0c, u8::try_from(issuer.len()).unwrap()], issuer.as_bytes()].concat();
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], der));
        }
        if let Some(issuer) = person.old_issuer {
            let text = issuer.as_bytes().to_vec();
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 1], text));
        }
        valid(&mut params, person.from, person.to);
        let certificate = params.signed_by(&key.0, &self.middle).unwrap();
        (key, certificate.pem(), certificate.der().to_vec())
    }
}

/// A bundle over a statement; `material` is `{"publicKey": …}` or `{"certificate": …}`.
pub fn envelope_bundle(payload: &[u8], key: &Key, mut material: Value, entries: &[Value]) -> Vec<u8> {
    material["tlogEntries"] = json!(entries);
    let signature = key.sign(&pre_authentication(payload));
    json!({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": {
        "payload": STANDARD.encode(payload), "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": STANDARD.encode(signature)}]}})
    .to_string()
    .into_bytes()
}

/// What the signature of an envelope covers.
pub fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 28 application/vnd.in-toto+json {} ", payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// A policy with one scope for everything.
pub fn policy(requirement: &Value) -> String {
    json!({"default": [{"type": "reject"}], "transports": {"docker": {"": [requirement]}}}).to_string()
}

/// `sigstoreSigned` by a key.
pub fn by_key(key: &Key, identity: &str) -> Value {
    json!({"type": "sigstoreSigned", "keyData": key.data(), "signedIdentity": {"type": identity}})
}

/// `sigstoreSigned` by a certificate for `subject`.
pub fn by_fulcio(fulcio: &Fulcio, log: &Log, subject: &str, identity: &str) -> Value {
    json!({"type": "sigstoreSigned", "rekorPublicKeyData": log.0.data(), "signedIdentity": {"type": identity},
        "fulcio": {"caData": fulcio.data(), "oidcIssuer": ISSUER, "subjectEmail": subject}})
}
