//! Who may change policies and reference values of the standalone attestation service: whoever holds the administrator's key.
//!
//! A KBS elsewhere may trust this service's tokens, so what makes it say "affirming" must not be settable by anybody who
//! reaches its port, as every local user does. Nobody may without a key. The token is the one that the key broker's
//! administrators send: a JWT signed by the key, with `exp` and the role `admin`. Inside of the key broker, whoever passed that one's
//! gate is [admitted].

use axum::http::{HeaderMap, header};
use serde_json::Value;

use crate::jws::{JwsError, Unverified, VerifyingKey};
use crate::token::check_times;

tokio::task_local! {
    /// Who was let in elsewhere.
    static ADMITTED: String;
}

/// Does `work` for an administrator whom somebody else has let in: the key broker, which has a gate of its own.
pub async fn admitted<F: Future>(who: String, work: F) -> F::Output {
    ADMITTED.scope(who, work).await
}

/// Role that the token must name.
const ROLE: &str = "admin";

/// Lets administrators through.
#[derive(Debug, Default)]
pub struct AdminGate {
    key: Option<VerifyingKey>,
}

impl AdminGate {
    /// A gate that nobody passes.
    #[must_use]
    pub fn closed() -> Self {
        Self::default()
    }

    /// A gate for holders of the private key of `public_key` (PEM).
    ///
    /// # Errors
    /// When that is no public key that is supported.
    pub fn for_key(public_key: &[u8]) -> Result<Self, JwsError> {
        Ok(Self { key: Some(VerifyingKey::from_pem(public_key)?) })
    }

    /// Lets a call pass and gives who makes it (`sub` of the token), or says why not.
    ///
    /// # Errors
    /// A sentence, when the caller is no administrator.
    pub fn check(&self, headers: &HeaderMap, now: i64) -> Result<String, String> {
        self.check_token(bearer(headers), now)
    }

    /// The same for a bearer token.
    ///
    /// # Errors
    /// A sentence, when it is not an administrator's.
    pub fn check_token(&self, token: Option<&str>, now: i64) -> Result<String, String> {
        if let Ok(who) = ADMITTED.try_with(Clone::clone) {
            return Ok(who);
        }
        let key = self.key.as_ref().ok_or(
            "this service was started without an administrator's key (--admin-key), so nobody may change it",
        )?;
        let token = token.ok_or("there is no bearer token")?;
        let parsed = Unverified::parse(token).map_err(|e| e.to_string())?;
        let claims = key.verify(&parsed).map_err(|e| e.to_string())?;
        check_times(&claims, now).map_err(|e| e.to_string())?;
        if claims.get("role").and_then(Value::as_str) == Some(ROLE) {
            let who = claims.get("sub").and_then(Value::as_str).unwrap_or("administrator");
            return Ok(who.chars().take(128).collect());
        }
        Err(format!("the token does not name the role {ROLE}"))
    }
}

/// Bearer token of a request.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    bearer_of(headers.get(header::AUTHORIZATION)?.to_str().ok()?)
}

/// Bearer token of the value of an `authorization` header.
#[must_use]
pub fn bearer_of(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::SigningKey;
    use serde_json::json;

    #[test]
    fn only_the_administrators_key_opens() {
        let key = || SigningKey::from_pem(SigningKey::generate_pem("EdDSA").unwrap().as_bytes()).unwrap();
        let (ours, theirs) = (key(), key());
        let gate = AdminGate::for_key(ours.public_pem().unwrap().as_bytes()).unwrap();
        let why = |gate: &AdminGate, key: &SigningKey, claims: Value| {
            let token = key.sign(&json!({}), &claims).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
            gate.check(&headers, 1000).err().unwrap_or_default()
        };
        let good = json!({"role": "admin", "exp": 2000});
        assert_eq!(why(&gate, &ours, good.clone()), "");
        assert!(why(&gate, &theirs, good.clone()).contains("signature"));
        assert!(why(&gate, &ours, json!({"role": "admin", "exp": 900})).contains("expired"));
        assert!(why(&gate, &ours, json!({"role": "admin"})).contains("no expiry"));
        assert!(why(&gate, &ours, json!({"role": "user", "exp": 2000})).contains("role"));
        assert!(why(&AdminGate::closed(), &ours, good).contains("--admin-key"));
        assert!(gate.check(&HeaderMap::new(), 1000).unwrap_err().contains("no bearer token"));
    }
}
