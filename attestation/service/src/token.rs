//! The token broker: claims to a signed EAR token, and back.
//!
//! Header as Trustee's: `typ`, `alg` (ES256 by default, ES384 when the key is P-384), `jwk`; `kid` besides. A token is
//! trusted when its signing key is one of ours or of a configured key set: the key in the header only helps to find it.

use serde_json::{Value, json};
use thiserror::Error;

use crate::ear;
use crate::jws::{JwsError, MAX_TOKEN, SigningKey, Unverified, VerifyingKey};

/// Seconds of tolerance when the expiry of a token is checked.
const LEEWAY: i64 = 60;

/// Why a token was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// Form, key or signature.
    #[error(transparent)]
    Jws(#[from] JwsError),
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
}

/// How tokens are made.
#[derive(Debug)]
pub struct TokenBroker {
    key: SigningKey,
    issuer: String,
    minutes: u32,
}

impl TokenBroker {
    /// A broker that signs with `key`; its tokens are valid for `minutes`.
    pub fn new(key: SigningKey, issuer: &str, minutes: u32) -> Self {
        Self { key, issuer: issuer.to_owned(), minutes }
    }

    /// Signs an EAR with these submods.
    pub fn issue(&self, submods: &Value, now: i64) -> Result<String, TokenError> {
        let claims = json!({
            "eat_profile": ear::PROFILE,
            "iss": self.issuer,
            "iat": now,
            "exp": now + i64::from(self.minutes) * 60,
            "ear.verifier-id": {
                "developer": "https://confidentialcontainers.org",
                "build": concat!("attestation-service ", env!("CARGO_PKG_VERSION"), " (kata-cc)"),
            },
            "submods": submods,
        });
        let jwk = self.key.jwk();
        let token = self.key.sign(&json!({"typ": "JWT", "kid": jwk["kid"], "jwk": jwk}), &claims)?;
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLarge(token.len()));
        }
        Ok(token)
    }

    /// JWKS with the public key.
    pub fn jwks(&self) -> Value {
        let mut jwk = self.key.jwk();
        jwk["use"] = json!("sig");
        json!({"keys": [jwk]})
    }
}

/// Checks tokens against a set of keys.
#[derive(Debug, Clone, Default)]
pub struct TokenVerifier {
    keys: Vec<VerifyingKey>,
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

    /// Checks signature and times; returns the claims.
    pub fn verify(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        let parsed = Unverified::parse(token)?;
        let named = parsed.header.get("jwk").and_then(|jwk| VerifyingKey::from_jwk(jwk).ok());
        let kid = parsed.header.get("kid").and_then(Value::as_str);
        let key = match &named {
            Some(named) => self.keys.iter().find(|key| key.same_key(named)),
            None => self.keys.iter().find(|key| kid.is_some() && key.kid() == kid),
        };
        let claims = key.ok_or(JwsError::UnknownKey)?.verify(&parsed)?;
        check_times(&claims, now)?;
        Ok(claims)
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
        for algorithm in ["ES256", "ES384"] {
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
        let Some(folder) = crate::test_utils::vectors("coco/ear") else { return };
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
}
