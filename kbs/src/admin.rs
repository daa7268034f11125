//! Who may administrate: Trustee's `[admin]` section.
//!
//! `DenyAll` unless configured. `AuthenticatedAuthorization`: a bearer JWT, signed by a configured key, with `exp`, the
//! configured `iss` and `aud`, and a `role`; the role's regular expressions are matched against the whole path. A query is no part of
//! it: no call reads one, so it could only make another path look like an allowed one.
//! `InsecureAllowAll` says so in the log at every start.

use axum::http::{HeaderMap, Uri};
pub(crate) use kata_cc_attestation_service::gate::bearer;
use kata_cc_attestation_service::jws::{JwsError, Unverified, VerifyingKey};
use kata_cc_attestation_service::token::check_times;
use regex::Regex;
use serde_json::Value;

use crate::config::{AuthorizationMode, Config, ConfigError};
use crate::error::ApiError;

/// Largest compiled expression in bytes.
const MAX_REGEX: usize = 1 << 20;

#[derive(Debug)]
struct Provider {
    issuer: Option<String>,
    audience: Option<String>,
    /// From a PEM; used whatever `kid` says.
    key: Option<VerifyingKey>,
    /// From a JWKS; chosen by `kid`.
    keys: Vec<VerifyingKey>,
}

/// The gate that every admin call passes.
#[derive(Debug)]
pub(crate) struct AdminGate {
    mode: AuthorizationMode,
    providers: Vec<Provider>,
    acls: Vec<(String, Regex)>,
}

impl AdminGate {
    /// Reads keys and rules.
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let admin = &config.admin;
        let value = |e: &dyn std::fmt::Display, what: &str| ConfigError::Value(format!("{what}: {e}"));
        let mut providers = Vec::new();
        for provider in &admin.authentication.bearer_jwt.identity_providers {
            let key = match &provider.public_key_uri {
                None => None,
                Some(uri) => {
                    Some(VerifyingKey::from_pem(&config.read_uri(uri)?).map_err(|e| value(&e, uri))?)
                }
            };
            let mut keys = Vec::new();
            if let Some(uri) = &provider.jwk_set_uri {
                let set: Value =
                    serde_json::from_slice(&config.read_uri(uri)?).map_err(|e| value(&e, uri))?;
                for jwk in set.get("keys").and_then(Value::as_array).into_iter().flatten() {
                    keys.push(VerifyingKey::from_jwk(jwk).map_err(|e| value(&e, uri))?);
                }
            }
            if key.is_none() && keys.is_empty() {
                return Err(ConfigError::Value(
                    "identity provider without public_key_uri or jwk_set_uri".to_owned(),
                ));
            }
            let (issuer, audience) = (provider.issuer.clone(), provider.audience.clone());
            providers.push(Provider { issuer, audience, key, keys });
        }
        let mut acls = Vec::new();
        for acl in &admin.authorization.regex_acl.acls {
            let text = &acl.allowed_endpoints;
            if !text.starts_with("^/kbs") || !text.ends_with('$') {
                return Err(ConfigError::Value(format!(
                    "allowed_endpoints {text:?} must start with ^/kbs and end with $"
                )));
            }
            // Alternation binds weaker than the anchors: without the group `^/kbs/a|.*$` would allow everything.
            let inner = format!("^(?:{})$", &text[1..text.len() - 1]);
            let regex = regex::RegexBuilder::new(&inner).size_limit(MAX_REGEX).build();
            acls.push((acl.role.clone(), regex.map_err(|e| value(&e, text))?));
        }
        if admin.authorization_mode == AuthorizationMode::AuthenticatedAuthorization
            && (providers.is_empty() || acls.is_empty())
        {
            return Err(ConfigError::Value(
                "AuthenticatedAuthorization needs at least one identity provider and one acl".to_owned(),
            ));
        }
        Ok(Self { mode: admin.authorization_mode, providers, acls })
    }

    /// Lets an admin call pass, or says why not. Returns the role, for the log.
    pub(crate) fn check(&self, headers: &HeaderMap, uri: &Uri, now: i64) -> Result<String, ApiError> {
        let deny = |why: String| ApiError::Admin { endpoint: uri.path().to_owned(), why };
        match self.mode {
            AuthorizationMode::InsecureAllowAll => return Ok("anybody".to_owned()),
            AuthorizationMode::DenyAll => {
                return Err(deny(
                    "the key broker is configured to let no administrator in ([admin] authorization_mode)"
                        .to_owned(),
                ));
            }
            AuthorizationMode::AuthenticatedAuthorization => {}
        }
        let token = bearer(headers).ok_or_else(|| deny("there is no bearer token".to_owned()))?;
        let claims = self.authenticate(token, now).map_err(deny)?;
        let role = claims.get("role").and_then(Value::as_str);
        let role = role.ok_or_else(|| deny("the token names no role".to_owned()))?;
        if self.acls.iter().any(|(name, regex)| name == role && regex.is_match(uri.path())) {
            return Ok(role.to_owned());
        }
        Err(deny(format!("role {:?} may not call it", role.chars().take(64).collect::<String>())))
    }

    fn authenticate(&self, token: &str, now: i64) -> Result<Value, String> {
        let parsed = Unverified::parse(token).map_err(|e| e.to_string())?;
        let kid = parsed.header.get("kid").and_then(Value::as_str);
        let mut last = JwsError::UnknownKey.to_string();
        for provider in &self.providers {
            let by_kid = provider.keys.iter().find(|key| kid.is_some() && key.kid() == kid);
            let Some(key) = by_kid.or(provider.key.as_ref()) else { continue };
            let claims = match key.verify(&parsed) {
                Ok(claims) => claims,
                Err(e) => {
                    last = e.to_string();
                    continue;
                }
            };
            check_times(&claims, now).map_err(|e| e.to_string())?;
            let text = |name: &str| claims.get(name).and_then(Value::as_str);
            if provider.issuer.is_some() && text("iss") != provider.issuer.as_deref() {
                last = "the token is of another issuer".to_owned();
                continue;
            }
            if let Some(audience) = &provider.audience {
                let named = text("aud") == Some(audience)
                    || claims
                        .get("aud")
                        .and_then(Value::as_array)
                        .is_some_and(|all| all.iter().any(|a| a == audience));
                if !named {
                    last = "the token is for another audience".to_owned();
                    continue;
                }
            }
            return Ok(claims);
        }
        Err(last)
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

    #[test]
    fn only_a_valid_token_of_the_right_role_passes() {
        let folder = tempfile::tempdir().unwrap();
        let (key, gate) = gate(folder.path(), "^/kbs/v0/resource/a|/kbs/v0/resource/b/.+$");
        let gate = gate.unwrap();
        let uri: Uri = "/kbs/v0/resource/b/c/d".parse().unwrap();
        let sign = |claims: Value| key.sign(&json!({}), &claims).unwrap();
        let good = sign(json!({"role": "admin", "exp": 2000, "iss": "me"}));
        assert_eq!(gate.check(&headers(&good), &uri, 1000).unwrap(), "admin");
        let why = |token: &str, uri: &Uri| gate.check(&headers(token), uri, 1000).unwrap_err().to_string();
        assert!(why(&good, &"/kbs/v0/resource-policy".parse().unwrap()).contains("may not call"));
        assert!(why(&good, &"/kbs/v0/resource/a/x".parse().unwrap()).contains("may not call"));
        assert!(why(&sign(json!({"role": "admin", "exp": 900, "iss": "me"})), &uri).contains("expired"));
        assert!(why(&sign(json!({"role": "admin", "iss": "me"})), &uri).contains("no expiry"));
        assert!(why(&sign(json!({"role": "admin", "exp": 2000})), &uri).contains("another issuer"));
        assert!(
            why(&sign(json!({"role": "other", "exp": 2000, "iss": "me"})), &uri).contains("may not call")
        );
        assert!(why(&sign(json!({"exp": 2000, "iss": "me"})), &uri).contains("no role"));
        let other = SigningKey::from_pem(SigningKey::generate_pem("EdDSA").unwrap().as_bytes()).unwrap();
        let forged = other.sign(&json!({}), &json!({"role": "admin", "exp": 2000, "iss": "me"})).unwrap();
        assert!(why(&forged, &uri).contains("signature"));
        assert!(
            gate.check(&HeaderMap::new(), &uri, 1000).unwrap_err().to_string().contains("no bearer token")
        );
    }

    #[test]
    fn a_query_makes_no_other_path() {
        let folder = tempfile::tempdir().unwrap();
        let (key, gate) = gate(folder.path(), "^/kbs/v0/resource/.+/test$");
        let gate = gate.unwrap();
        let token = key.sign(&json!({}), &json!({"role": "admin", "exp": 2000, "iss": "me"})).unwrap();
        let check = |target: &str| gate.check(&headers(&token), &target.parse().unwrap(), 1000);
        check("/kbs/v0/resource/prod/key/test").unwrap();
        check("/kbs/v0/resource/prod/key/test?x=1").unwrap();
        let error = check("/kbs/v0/resource/prod/key/1?/test").unwrap_err().to_string();
        assert!(error.contains("may not call"), "{error}");
    }

    #[test]
    fn expressions_must_be_anchored() {
        let folder = tempfile::tempdir().unwrap();
        assert!(gate(folder.path(), ".*").1.is_err());
        assert!(gate(folder.path(), "^/kbs/(.*$").1.is_err());
    }
}
