//! The token broker: claims to a signed EAR token, and back.
//!
//! Header as Trustee's: `typ`, `alg` (ES256 by default, ES384 or EdDSA when the key is of that kind), `jwk` (with `x5c` when
//! there are certificates for the key); `kid` (RFC 7638 thumbprint) besides. A token is trusted when its signing key is one
//! of ours or of a configured key set, or when its `x5c` leads to a trusted certificate: a key in the header alone is not.
//!
//! Keys are rotated with overlap: the newest signs, older ones stay published until what they signed has expired.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use kata_cc_kbs_protocol::{base64_standard, from_base64_standard, from_base64_url};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use crate::chain::{self, ChainError, ParsedCertificate};
use crate::ear;
use crate::jws::{JwsError, MAX_TOKEN, SigningKey, Unverified, VerifyingKey};

/// Seconds of tolerance when the expiry of a token is checked.
pub const LEEWAY: i64 = 60;

/// Why a token was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// Form, key or signature.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// Its certificates lead to nothing that is trusted.
    #[error("token is signed by a key that is not trusted: {0}")]
    Chain(#[from] ChainError),
    /// Its key is in the header, without certificates, and only certificates are trusted.
    #[error(
        "token is signed by a key that is not trusted: its header has no x5c that leads to a trusted certificate"
    )]
    NoCertificates,
    /// Longer than any verifier reads.
    #[error(
        "the token would have {0} bytes, at most {MAX_TOKEN} are read: it holds the init-data, make that smaller (policy_data of policy.rego, certificates)"
    )]
    TooLarge(usize),
    /// No expiry.
    #[error("token has no expiry")]
    NoExpiry,
    /// Too old.
    #[error("token expired {0} seconds ago")]
    Expired(i64),
    /// Not yet valid.
    #[error("token is not valid yet, for another {0} seconds")]
    NotYet(i64),
    /// The certificates are for another key.
    #[error("the first certificate is for another key than the one that signs tokens")]
    Certificate,
}

impl TokenError {
    /// Stable name of the reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Jws(JwsError::UnknownKey) | Self::Chain(_) | Self::NoCertificates => "untrusted-key",
            Self::Jws(JwsError::Signature | JwsError::Algorithm { .. }) => "signature",
            Self::Jws(_) => "malformed",
            Self::NoExpiry => "no-expiry",
            Self::Expired(_) => "expired",
            Self::NotYet(_) => "not-yet-valid",
            Self::TooLarge(_) => "too-large",
            Self::Certificate => "certificate",
        }
    }
}

/// A key that tokens are checked with, as it is published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedKey {
    /// Public key with `kid` and `alg`.
    pub jwk: Value,
    /// Until when it is published, seconds since 1970.
    pub until: i64,
    /// Whether it signs no more.
    #[serde(default)]
    pub retired: bool,
}

impl PublishedKey {
    /// Its `kid`.
    pub fn kid(&self) -> &str {
        self.jwk.get("kid").and_then(Value::as_str).unwrap_or_default()
    }
}

/// The key that signs.
#[derive(Debug)]
pub(crate) struct Signer {
    key: SigningKey,
    jwk: Value,
    /// Header of every token.
    header: String,
}

impl Signer {
    fn new(key: SigningKey, certificates: &[ParsedCertificate]) -> Self {
        let mut jwk = key.jwk();
        if !certificates.is_empty() {
            jwk["x5c"] = certificates.iter().map(|one| base64_standard(one.der())).collect();
        }
        let header = key.encode_header(&json!({"typ": "JWT", "kid": jwk["kid"], "jwk": jwk}));
        Self { key, jwk, header }
    }
}

/// Tells sets of keys apart ([`TokenBroker::key_set`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySet {
    epoch: u64,
    /// How many keys besides the signing one have not run out.
    published: usize,
}

/// How tokens are made.
#[derive(Debug)]
pub struct TokenBroker {
    signer: ArcSwap<Signer>,
    /// Other keys that are published: retired ones, and those of other replicas.
    others: ArcSwap<Vec<PublishedKey>>,
    /// Counts changes of the keys.
    epoch: AtomicU64,
    issuer: String,
    minutes: u32,
}

impl TokenBroker {
    /// A broker that signs with `key`; its tokens are valid for `minutes`.
    pub fn new(key: SigningKey, issuer: &str, minutes: u32) -> Self {
        Self {
            signer: ArcSwap::from_pointee(Signer::new(key, &[])),
            others: ArcSwap::default(),
            epoch: AtomicU64::new(0),
            issuer: issuer.to_owned(),
            minutes,
        }
    }

    /// Signs with `key` from now on, whose certificates (PEM, its own first; may be empty) go into the header of tokens as `x5c`.
    ///
    /// # Errors
    /// When the first certificate is for another key.
    pub fn replace(&self, key: SigningKey, certificates: &[u8]) -> Result<(), TokenError> {
        self.sign_with(Self::signer(key, certificates)?);
        Ok(())
    }

    /// A key that could sign.
    pub(crate) fn signer(key: SigningKey, certificates: &[u8]) -> Result<Signer, TokenError> {
        let certificates = ParsedCertificate::all_from_pem(certificates)?;
        if let Some(first) = certificates.first() {
            let ours = VerifyingKey::from_jwk(&key.jwk())?;
            if !first.key().is_some_and(|key| key.same_key(&ours)) {
                return Err(TokenError::Certificate);
            }
        }
        Ok(Signer::new(key, &certificates))
    }

    /// Signs with it from now on.
    pub(crate) fn sign_with(&self, signer: Signer) {
        self.signer.store(Arc::new(signer));
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether a token names a key that is none of those in force.
    pub(crate) fn lacks_key(&self, token: &str, now: i64) -> bool {
        matches!(self.verify(token, now), Err(TokenError::Jws(JwsError::UnknownKey)))
    }

    /// Signs an EAR with these submods.
    pub fn issue(&self, submods: &Value, now: i64) -> Result<String, TokenError> {
        let claims = json!({
            "eat_profile": ear::PROFILE,
            "iss": self.issuer,
            "iat": now,
            "exp": now + self.lifetime(),
            "ear.verifier-id": {
                "developer": "https://confidentialcontainers.org",
                "build": concat!("attestation-service ", env!("CARGO_PKG_VERSION"), " (kata-cc)"),
            },
            "submods": submods,
        });
        let signer = self.signer.load();
        let token = signer.key.sign_encoded(&signer.header, &claims)?;
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLarge(token.len()));
        }
        Ok(token)
    }

    /// Seconds that a token is valid.
    pub fn lifetime(&self) -> i64 {
        i64::from(self.minutes) * 60
    }

    /// `iss` of the tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Public half of the key that signs, with `kid` and `alg`.
    pub fn signing_jwk(&self) -> Value {
        self.signer.load().jwk.clone()
    }

    /// Publishes other keys besides the one that signs, in place of those before.
    pub fn publish(&self, others: Vec<PublishedKey>) {
        if **self.others.load() != others {
            self.others.store(Arc::new(others));
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Which keys are in force at `now`: while this stays the same, a token whose signature was good is good until it expires.
    pub fn key_set(&self, now: i64) -> KeySet {
        // The epoch first: keys that are newer than it only make what is remembered under it be checked once more.
        let epoch = self.epoch.load(Ordering::Acquire);
        let others = self.others.load();
        KeySet { epoch, published: others.iter().filter(|key| key.until > now).count() }
    }

    /// Every key that tokens may be signed with, the one that signs first.
    fn keys(&self, now: i64) -> Vec<Value> {
        let signing = self.signing_jwk();
        let kid = signing.get("kid").cloned();
        let others = self.others.load();
        let others = others.iter().filter(|key| key.until > now && key.jwk.get("kid") != kid.as_ref());
        std::iter::once(signing).chain(others.map(|key| key.jwk.clone())).collect()
    }

    /// JWKS with the public keys, the one that signs first.
    pub fn jwks(&self) -> Value {
        let mut keys = self.keys(crate::now());
        for key in &mut keys {
            key["use"] = json!("sig");
        }
        json!({ "keys": keys })
    }

    /// Checks a token of ours, also one that a retired key or another replica signed.
    pub fn verify(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        let mut verifier = TokenVerifier::default();
        verifier.trust_jwks(&json!({"keys": self.keys(now)}));
        verifier.verify(token, now)
    }
}

/// Checks tokens against a set of keys and certificates.
#[derive(Debug, Clone, Default)]
pub struct TokenVerifier {
    keys: Vec<VerifyingKey>,
    certificates: Vec<ParsedCertificate>,
}

impl TokenVerifier {
    /// Adds the keys of a JWKS; keys of kinds that are not read are skipped. Returns how many were added.
    pub fn trust_jwks(&mut self, jwks: &Value) -> usize {
        let keys = jwks.get("keys").and_then(Value::as_array);
        let before = self.keys.len();
        self.keys.extend(keys.into_iter().flatten().filter_map(|jwk| VerifyingKey::from_jwk(jwk).ok()));
        self.keys.len() - before
    }

    /// Adds a key.
    pub fn trust(&mut self, key: VerifyingKey) {
        self.keys.push(key);
    }

    /// Adds certificates (PEM) to which the `x5c` of a token may lead. Returns how many were added.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn trust_certificates(&mut self, pem: &[u8]) -> Result<usize, ChainError> {
        let certificates = ParsedCertificate::all_from_pem(pem)?;
        let count = certificates.len();
        self.certificates.extend(certificates);
        Ok(count)
    }

    /// Checks signature and times; returns the claims.
    pub fn verify(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        let parsed = Unverified::parse(token)?;
        let claims = self.key(&parsed.header, now)?.verify(&parsed)?;
        check_times(&claims, now)?;
        Ok(claims)
    }

    /// The trusted key that a header names.
    fn key(&self, header: &Value, now: i64) -> Result<VerifyingKey, TokenError> {
        let Some(jwk) = header.get("jwk") else {
            let kid = header.get("kid").and_then(Value::as_str);
            let key = self.keys.iter().find(|key| kid.is_some() && key.kid() == kid);
            return Ok(key.ok_or(JwsError::UnknownKey)?.clone());
        };
        let named = VerifyingKey::from_jwk(jwk)?;
        if let Some(key) = self.keys.iter().find(|key| key.same_key(&named)) {
            return Ok(key.clone());
        }
        if self.certificates.is_empty() {
            return Err(JwsError::UnknownKey.into());
        }
        self.chain(jwk, &named, now)
    }

    /// Checks the `x5c` of a header's `jwk` against the trusted certificates.
    fn chain(&self, jwk: &Value, named: &VerifyingKey, now: i64) -> Result<VerifyingKey, TokenError> {
        let given = jwk.get("x5c").and_then(Value::as_array).filter(|all| !all.is_empty());
        let given = given.ok_or(TokenError::NoCertificates)?;
        if given.len() > chain::MAX_CERTIFICATES {
            return Err(ChainError::TooMany(given.len()).into());
        }
        let given = given
            .iter()
            .map(|one| {
                let text = one.as_str().unwrap_or_default();
                let der = from_base64_standard(text).or_else(|| from_base64_url(text));
                der.ok_or(ChainError::Base64).and_then(|der| ParsedCertificate::from_der(&der))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let first = given.first().and_then(ParsedCertificate::key);
        if !first.is_some_and(|key| key.same_key(named)) {
            return Err(ChainError::OtherKey.into());
        }
        Ok(chain::verify(&given, &self.certificates, now)?)
    }
}

/// Checks `exp`, which must be there, and `nbf`, if it is.
pub fn check_times(claims: &Value, now: i64) -> Result<(), TokenError> {
    let exp = claims.get("exp").and_then(Value::as_i64).ok_or(TokenError::NoExpiry)?;
    if now.saturating_sub(LEEWAY) >= exp {
        return Err(TokenError::Expired(now.saturating_sub(exp)));
    }
    match claims.get("nbf").and_then(Value::as_i64) {
        Some(nbf) if nbf > now.saturating_add(LEEWAY) => Err(TokenError::NotYet(nbf.saturating_sub(now))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(algorithm: &str) -> TokenBroker {
        let pem = SigningKey::generate_pem(algorithm).unwrap();
        TokenBroker::new(SigningKey::from_pem(pem.as_bytes()).unwrap(), ear::DEFAULT_ISSUER, 5)
    }

    #[test]
    fn tokens_are_trusted_by_their_key_until_they_expire() {
        for algorithm in ["ES256", "ES384", "EdDSA"] {
            let broker = broker(algorithm);
            let token = broker.issue(&json!({"cpu0": {}}), 1000).unwrap();
            let mut verifier = TokenVerifier::default();
            assert_eq!(verifier.verify(&token, 1000), Err(JwsError::UnknownKey.into()));
            assert_eq!(verifier.trust_jwks(&broker.jwks()), 1);
            assert_eq!(verifier.verify(&token, 1000).unwrap()["eat_profile"], ear::PROFILE);
            assert!(verifier.verify(&token, 1000 + 300 + LEEWAY - 1).is_ok());
            assert_eq!(verifier.verify(&token, 1000 + 300 + LEEWAY), Err(TokenError::Expired(LEEWAY)));
        }
    }

    #[test]
    fn no_token_is_issued_that_nobody_reads() {
        let broker = broker("ES256");
        let mut verifier = TokenVerifier::default();
        verifier.trust_jwks(&broker.jwks());
        let issue = |bytes: usize| broker.issue(&json!({"cpu0": {"x": "y".repeat(bytes)}}), 1000);
        let token = issue(90 << 10).unwrap();
        verifier.verify(&token, 1000).unwrap();
        let error = issue(MAX_TOKEN).unwrap_err();
        assert!(matches!(error, TokenError::TooLarge(seen) if seen > MAX_TOKEN));
        assert!(error.to_string().contains("init-data"), "{error}");
    }

    #[test]
    fn a_key_in_the_header_is_not_trusted_by_itself() {
        let (ours, theirs) = (broker("ES256"), broker("ES256"));
        let mut verifier = TokenVerifier::default();
        verifier.trust_jwks(&ours.jwks());
        let token = theirs.issue(&json!({}), 1000).unwrap();
        assert_eq!(verifier.verify(&token, 1000), Err(JwsError::UnknownKey.into()));
    }

    #[test]
    fn vectors_by_their_header_keys() {
        let Some(folder) = kata_cc_test_vectors::path("coco/ear") else { return };
        let cases: Value =
            serde_json::from_slice(&std::fs::read(folder.join("tokens.json")).unwrap()).unwrap();
        let now = cases["now"].as_i64().unwrap();
        for case in cases["tokens"].as_array().unwrap() {
            let token = case["token"].as_str().unwrap();
            let mut verifier = TokenVerifier::default();
            // "insecure_header_jwk": the key in the header is taken for good.
            if let Ok(parsed) = Unverified::parse(token)
                && let Ok(key) = VerifyingKey::from_jwk(&parsed.header["jwk"])
            {
                verifier.trust(key);
            }
            let accepted = verifier.verify(token, now);
            let expected = case["verdict_insecure_header_jwk"] == "accept";
            assert_eq!(accepted.is_ok(), expected, "{}: {accepted:?}", case["name"]);
        }
    }

    #[test]
    fn vectors_by_their_certificates() {
        let Some(folder) = kata_cc_test_vectors::path("coco/ear") else { return };
        let cases: Value =
            serde_json::from_slice(&std::fs::read(folder.join("tokens.json")).unwrap()).unwrap();
        let now = cases["now"].as_i64().unwrap();
        let mut verifier = TokenVerifier::default();
        let added = verifier.trust_certificates(cases["root_pem"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(added, 1);
        for case in cases["tokens"].as_array().unwrap() {
            let seen = verifier.verify(case["token"].as_str().unwrap(), now);
            assert_eq!(seen.is_ok(), case["verdict_trusted_root"] == "accept", "{}: {seen:?}", case["name"]);
        }
        // The certificates end as well as the token does.
        let token = cases["tokens"][0]["token"].as_str().unwrap();
        let late = verifier.verify(token, now + 50 * 365 * 86_400).unwrap_err();
        assert!(matches!(late, TokenError::Chain(ChainError::Time { .. })), "{late:?}");
    }

    #[test]
    fn vectors_of_header_keys_and_trusted_certificates() {
        let Some(folder) = kata_cc_test_vectors::path("coco/token-jwk") else { return };
        // 2027; the certificates are valid from 2026 to 2036.
        let now = 1_800_000_000;
        for (number, accepted) in [("01", true), ("02", false), ("03", false), ("05", true), ("07", true)] {
            let read = |name: &str| std::fs::read(folder.join(format!("scenario{number}-{name}"))).unwrap();
            let jwk: Value = serde_json::from_slice(&read("jwk.json")).unwrap();
            let mut verifier = TokenVerifier::default();
            verifier.trust_certificates(&read("trust.pem")).unwrap();
            let seen = verifier.key(&json!({ "jwk": jwk }), now);
            assert_eq!(seen.is_ok(), accepted, "{number}: {seen:?}");
            assert!(verifier.key(&json!({ "jwk": jwk }), 1_000_000_000).is_err(), "{number}: not yet valid");
            if number == "05" {
                // Without the one between, there is no way to the root.
                let mut short = jwk.clone();
                short["x5c"].as_array_mut().unwrap().truncate(1);
                let why = verifier.key(&json!({ "jwk": short }), now).unwrap_err();
                assert!(matches!(why, TokenError::Chain(ChainError::NoPath(_))), "{why:?}");
                // A certificate is as good as its signature.
                let der = from_base64_standard(jwk["x5c"][0].as_str().unwrap()).unwrap();
                let mut changed = der.clone();
                *changed.last_mut().unwrap() ^= 1;
                short["x5c"] = json!([base64_standard(&changed), jwk["x5c"][1]]);
                assert!(verifier.key(&json!({ "jwk": short }), now).is_err());
            }
        }
    }

    #[test]
    fn vectors_of_trustees_signer() {
        let Some(folder) = kata_cc_test_vectors::path("coco/ear") else { return };
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let key = SigningKey::from_pem(&read("jwks-signing-key.pem")).unwrap();
        let broker = broker("ES256");
        broker.replace(key, &read("jwks-cert-chain.pem")).unwrap();
        let expected: Value = serde_json::from_slice(&read("jwks-expected-jwks.json")).unwrap();
        for (name, value) in expected["keys"][0].as_object().unwrap() {
            assert_eq!(&broker.jwks()["keys"][0][name], value, "{name}");
        }
        // A relying party that knows the certificate needs no key set.
        let token = broker.issue(&json!({}), 1_760_000_000).unwrap();
        let mut verifier = TokenVerifier::default();
        verifier.trust_certificates(&read("jwks-cert-chain.pem")).unwrap();
        verifier.verify(&token, 1_760_000_000).unwrap();
        let other = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
        assert_eq!(broker.replace(other, &read("jwks-cert-chain.pem")), Err(TokenError::Certificate));
        // Tokens of other makers.
        let jwk: Value = serde_json::from_slice(&read("veraison-key.jwk")).unwrap();
        for name in ["veraison-testJWT.jwt", "veraison-testJWT_JWK.jwt"] {
            let text = String::from_utf8(read(name)).unwrap();
            let parsed = Unverified::parse(text.trim()).unwrap();
            let key = parsed.header.get("jwk").unwrap_or(&jwk);
            let claims = VerifyingKey::from_jwk(key).unwrap().verify(&parsed).unwrap();
            assert!(claims["submods"].is_object(), "{name}");
        }
    }

    #[test]
    fn keys_are_rotated_with_overlap() {
        let broker = broker("ES256");
        let now = crate::now();
        let old = broker.issue(&json!({}), now).unwrap();
        let retired = PublishedKey { jwk: broker.signing_jwk(), until: now + 300, retired: true };
        let next = SigningKey::from_pem(SigningKey::generate_pem("ES384").unwrap().as_bytes()).unwrap();
        broker.replace(next, b"").unwrap();
        assert_eq!(broker.verify(&old, now), Err(JwsError::UnknownKey.into()));
        broker.publish(vec![retired.clone()]);
        let new = broker.issue(&json!({}), now).unwrap();
        broker.verify(&old, now).unwrap();
        broker.verify(&new, now).unwrap();
        let jwks = broker.jwks();
        let kids: Vec<_> = jwks["keys"].as_array().unwrap().iter().map(|key| &key["kid"]).collect();
        assert_eq!((kids.len(), kids[1]), (2, &retired.jwk["kid"]));
        assert_eq!(jwks["keys"][0]["alg"], "ES384");
        // What the retired key signed has expired by then.
        assert_eq!(broker.verify(&old, now + 300), Err(JwsError::UnknownKey.into()));
    }
}
