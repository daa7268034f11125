//! Who may administrate: Trustee's `[admin]` section, and more ways to be known.
//!
//! `DenyAll` unless configured. `AuthenticatedAuthorization`: a bearer JWT with `exp`, the configured `iss` and `aud`, and a role, signed
//! by a key from a file, a JWKS or an OpenID provider ([`keys`]); or a TLS certificate ([`certificate`]). What a role may call:
//! [`roles`]. An address that is refused too often is told to wait, and no more of it is put on record; a good token or certificate
//! passes all the same: signatures cannot be guessed, and nobody's mistakes lock an administrator out who shares the address.
//! `InsecureAllowAll` says so in the log at every start.

pub(crate) mod certificate;
pub(crate) mod keys;
pub(crate) mod roles;

use std::time::Instant;

use axum::http::{HeaderMap, Method, Uri};
pub(crate) use kata_cc_attestation_service::gate::bearer;
use kata_cc_attestation_service::jws::{JwsError, Unverified};
use kata_cc_attestation_service::serve::{ClientCertificate, Peer};
use kata_cc_attestation_service::token::check_times;
use serde_json::Value;

use crate::config::{AuthorizationMode, CertificateIdentity, Config, ConfigError};
use crate::error::ApiError;
use crate::limits::Budget;

use keys::Keys;
use roles::Roles;

/// Most roles of a token that are looked at.
const MAX_ROLES: usize = 64;

#[derive(Debug)]
struct Provider {
    issuer: Option<String>,
    audience: Option<String>,
    role_claim: String,
    keys: Keys,
}

/// A call that wants to pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) certificate: Option<&'a ClientCertificate>,
    pub(crate) peer: Option<Peer>,
}

/// An administrator who passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Administrator {
    /// The role by which he may.
    pub(crate) role: String,
    /// Who he is, as far as that is said: `sub` of the token, or the name in the certificate.
    pub(crate) name: String,
}

impl std::fmt::Display for Administrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.role)
    }
}

/// The gate that every admin call passes.
#[derive(Debug)]
pub(crate) struct AdminGate {
    mode: AuthorizationMode,
    providers: Vec<Provider>,
    identities: Vec<CertificateIdentity>,
    roles: Roles,
}

impl AdminGate {
    /// Reads keys and rules.
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let admin = &config.admin;
        let mut providers = Vec::new();
        for provider in &admin.authentication.bearer_jwt.identity_providers {
            providers.push(Provider {
                issuer: provider.issuer.clone().or_else(|| provider.oidc_issuer.clone()),
                audience: provider.audience.clone(),
                role_claim: provider.role_claim.clone().unwrap_or_else(|| "role".to_owned()),
                keys: Keys::new(config, provider)?,
            });
        }
        let identities = admin.authentication.mutual_tls.identities.clone();
        let roles = Roles::new(admin)?;
        if admin.authorization_mode == AuthorizationMode::AuthenticatedAuthorization
            && ((providers.is_empty() && identities.is_empty()) || roles.is_empty())
        {
            return Err(ConfigError::Value(
                "AuthenticatedAuthorization needs at least one identity provider (or identity of mutual_tls) and one acl or role"
                    .to_owned(),
            ));
        }
        Ok(Self { mode: admin.authorization_mode, providers, identities, roles })
    }

    /// Fetches keys of identity providers that are elsewhere.
    pub(crate) async fn warm(&self) {
        for provider in &self.providers {
            provider.keys.warm().await;
        }
    }

    /// Lets an admin call pass, or says why not. `failures` is what the caller's address may still get wrong.
    pub(crate) async fn check(
        &self,
        call: Call<'_>,
        failures: &Budget,
        now: i64,
    ) -> Result<Administrator, ApiError> {
        let deny = |why: String| ApiError::Admin { endpoint: call.uri.path().to_owned(), why };
        match self.mode {
            AuthorizationMode::InsecureAllowAll => {
                return Ok(Administrator { role: "anybody".to_owned(), name: "anybody".to_owned() });
            }
            AuthorizationMode::DenyAll => {
                return Err(deny(
                    "the key broker is configured to let no administrator in ([admin] authorization_mode)"
                        .to_owned(),
                ));
            }
            AuthorizationMode::AuthenticatedAuthorization => {}
        }
        let (roles, name) = match self.authenticate(call, now).await {
            Ok(known) => known,
            Err(why) => {
                let what = "administrators were refused too often at this address";
                let clock = Instant::now();
                let left = call.peer.map_or(Ok(()), |peer| failures.take(peer, clock));
                return Err(left.map_or_else(|seconds| ApiError::TooMany { what, seconds }, |()| deny(why)));
            }
        };
        if let Some(role) = roles.iter().find(|role| self.roles.allow(role, call.method, call.uri.path())) {
            return Ok(Administrator { role: role.clone(), name });
        }
        let roles: Vec<String> = roles.iter().map(|role| role.chars().take(64).collect()).collect();
        let why = format!("role {} may not {} it", roles.join(", "), call.method);
        Err(ApiError::Role { endpoint: call.uri.path().to_owned(), why })
    }

    async fn authenticate(&self, call: Call<'_>, now: i64) -> Result<(Vec<String>, String), String> {
        if let Some(token) = bearer(call.headers) {
            return self.token(token, now).await;
        }
        if let Some(certificate) = call.certificate {
            let known = certificate::role(&certificate.0, &self.identities);
            let (role, name) = known.ok_or("the certificate is of nobody who is configured")?;
            return Ok((vec![role], name));
        }
        Err("there is no bearer token and no certificate".to_owned())
    }

    async fn token(&self, token: &str, now: i64) -> Result<(Vec<String>, String), String> {
        let parsed = Unverified::parse(token).map_err(|e| e.to_string())?;
        let kid = parsed.header.get("kid").and_then(Value::as_str);
        let mut last = JwsError::UnknownKey.to_string();
        for provider in &self.providers {
            let Some(key) = provider.keys.find(kid, Instant::now()).await else { continue };
            let claims = match key.verify(&parsed) {
                Ok(claims) => claims,
                Err(e) => {
                    last = e.to_string();
                    continue;
                }
            };
            check_times(&claims, now).map_err(|e| e.to_string())?;
            match provider.judge(&claims) {
                Ok(known) => return Ok(known),
                Err(why) => last = why.to_owned(),
            }
        }
        Err(last)
    }
}

impl Provider {
    /// Roles and name out of claims whose signature and times are good.
    fn judge(&self, claims: &Value) -> Result<(Vec<String>, String), &'static str> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if let Some(issuer) = &self.issuer
            && text("iss").map(|iss| iss.trim_end_matches('/')) != Some(issuer.trim_end_matches('/'))
        {
            return Err("the token is of another issuer");
        }
        if let Some(audience) = &self.audience {
            let listed = claims.get("aud").and_then(Value::as_array);
            let named = text("aud") == Some(audience)
                || listed.is_some_and(|all| all.iter().any(|aud| aud == audience));
            if !named {
                return Err("the token is for another audience");
            }
        }
        let claim = if self.role_claim.starts_with('/') {
            claims.pointer(&self.role_claim)
        } else {
            claims.get(&self.role_claim)
        };
        let roles: Vec<String> = match claim {
            Some(Value::String(role)) => vec![role.clone()],
            Some(Value::Array(roles)) => {
                roles.iter().filter_map(Value::as_str).take(MAX_ROLES).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        if roles.is_empty() {
            return Err("the token names no role");
        }
        let name = text("sub").unwrap_or("administrator").chars().filter(|c| !c.is_control()).take(128);
        Ok((roles, name.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::header;
    use kata_cc_attestation_service::jws::SigningKey;
    use serde_json::json;

    fn gate(folder: &std::path::Path, endpoints: &str) -> (SigningKey, Result<AdminGate, ConfigError>) {
        let key = SigningKey::from_pem(SigningKey::generate_pem("EdDSA").unwrap().as_bytes()).unwrap();
        std::fs::write(folder.join("admin.pub"), key.public_pem().unwrap()).unwrap();
        let text = format!(
            "[http_server]\ninsecure_http = true\n[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n\
             [admin.authentication.bearer_jwt]\nidentity_providers = [{{ public_key_uri = \"admin.pub\", issuer = \"me\" }}]\n\
             [admin.authorization.regex_acl]\nacls = [{{ role = \"admin\", allowed_endpoints = '{endpoints}' }}]\n"
        );
        std::fs::write(folder.join("kbs.toml"), text).unwrap();
        (key, AdminGate::new(&Config::read(&folder.join("kbs.toml")).unwrap()))
    }

    fn headers(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        headers
    }

    fn budget() -> Budget {
        Budget::new(crate::limits::Rate { per_second: 0.01, burst: 3.0 })
    }

    async fn check(gate: &AdminGate, headers: &HeaderMap, target: &str) -> Result<Administrator, ApiError> {
        let (method, uri) = (Method::GET, target.parse().unwrap());
        let call = Call { method: &method, uri: &uri, headers, certificate: None, peer: None };
        gate.check(call, &budget(), 1000).await
    }

    #[tokio::test]
    async fn only_a_valid_token_of_the_right_role_passes() {
        let folder = tempfile::tempdir().unwrap();
        let (key, gate) = gate(folder.path(), "^/kbs/v0/resource/a|/kbs/v0/resource/b/.+$");
        let gate = gate.unwrap();
        let path = "/kbs/v0/resource/b/c/d";
        let sign = |claims: Value| key.sign(&json!({}), &claims).unwrap();
        let good = sign(json!({"role": "admin", "exp": 2000, "iss": "me", "sub": "alice"}));
        let passed = check(&gate, &headers(&good), path).await.unwrap();
        assert_eq!((passed.role.as_str(), passed.name.as_str()), ("admin", "alice"));
        let several = sign(json!({"role": ["x", "admin"], "exp": 2000, "iss": "me"}));
        assert_eq!(check(&gate, &headers(&several), path).await.unwrap().role, "admin");
        let why = async |token: &str, path: &str| check(&gate, &headers(token), path).await.unwrap_err();
        for path in ["/kbs/v0/resource-policy", "/kbs/v0/resource/a/x"] {
            let error = why(&good, path).await;
            assert!(matches!(&error, ApiError::Role { .. }) && error.to_string().contains("may not GET it"));
        }
        for (claims, expected) in [
            (json!({"role": "admin", "exp": 900, "iss": "me"}), "expired"),
            (json!({"role": "admin", "iss": "me"}), "no expiry"),
            (json!({"role": "admin", "exp": 2000}), "another issuer"),
            (json!({"exp": 2000, "iss": "me"}), "no role"),
            (json!({"exp": 2000, "iss": "me", "role": {"admin": 1}}), "no role"),
        ] {
            let error = why(&sign(claims), path).await;
            assert!(matches!(&error, ApiError::Admin { why, .. } if why.contains(expected)), "{error}");
        }
        let error = why(&sign(json!({"role": "other", "exp": 2000, "iss": "me"})), path).await;
        assert!(matches!(error, ApiError::Role { .. }));
        let other = SigningKey::from_pem(SigningKey::generate_pem("EdDSA").unwrap().as_bytes()).unwrap();
        let forged = other.sign(&json!({}), &json!({"role": "admin", "exp": 2000, "iss": "me"})).unwrap();
        assert!(why(&forged, path).await.to_string().contains("signature"));
        let error = check(&gate, &HeaderMap::new(), path).await.unwrap_err().to_string();
        assert!(error.contains("no bearer token"), "{error}");
    }

    #[tokio::test]
    async fn who_is_refused_too_often_has_to_wait_and_others_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let (key, gate) = gate(folder.path(), "^/kbs/.+$");
        let (gate, failures) = (gate.unwrap(), budget());
        let good = key.sign(&json!({}), &json!({"role": "admin", "exp": 2000, "iss": "me"})).unwrap();
        let (method, uri) = (Method::GET, "/kbs/v0/x".parse().unwrap());
        let call = async |headers: &HeaderMap, address: u8| {
            let peer = Some(Peer::of([127, 0, 0, address].into()));
            let call = Call { method: &method, uri: &uri, headers, certificate: None, peer };
            gate.check(call, &failures, 1000).await
        };
        for _ in 0..3 {
            call(&headers(&good), 1).await.unwrap();
            assert!(matches!(call(&headers("a.b.c"), 1).await, Err(ApiError::Admin { .. })));
        }
        let bad = headers("a.b.c");
        assert!(matches!(call(&bad, 1).await, Err(ApiError::TooMany { seconds: 1.., .. })));
        // Neither who shares the address, nor others.
        call(&headers(&good), 1).await.unwrap();
        assert!(matches!(call(&bad, 2).await, Err(ApiError::Admin { .. })));
        assert!(matches!(call(&bad, 1).await, Err(ApiError::TooMany { .. })));
    }

    #[tokio::test]
    async fn a_query_makes_no_other_path() {
        let folder = tempfile::tempdir().unwrap();
        let (key, gate) = gate(folder.path(), "^/kbs/v0/resource/.+/test$");
        let gate = gate.unwrap();
        let token = key.sign(&json!({}), &json!({"role": "admin", "exp": 2000, "iss": "me"})).unwrap();
        let check = async |target: &str| check(&gate, &headers(&token), target).await;
        check("/kbs/v0/resource/prod/key/test").await.unwrap();
        check("/kbs/v0/resource/prod/key/test?x=1").await.unwrap();
        let error = check("/kbs/v0/resource/prod/key/1?/test").await.unwrap_err().to_string();
        assert!(error.contains("may not GET"), "{error}");
    }

    #[test]
    fn expressions_must_be_anchored() {
        let folder = tempfile::tempdir().unwrap();
        for endpoints in [".*", "^/kbs/(.*$", "^", "$", "^/other$", "^/kbs"] {
            assert!(gate(folder.path(), endpoints).1.is_err(), "{endpoints}");
        }
    }
}
