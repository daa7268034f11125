//! `[admin]`: who may administrate, and what.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// `[admin]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    pub(crate) authorization_mode: AuthorizationMode,
    pub(crate) authentication: Authentication,
    pub(crate) authorization: Authorization,
}

/// Who may administrate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum AuthorizationMode {
    /// Everybody. For tests on loopback.
    InsecureAllowAll,
    /// Nobody.
    #[default]
    DenyAll,
    /// Bearers of a signed token, by role.
    AuthenticatedAuthorization,
}

/// `[admin.authentication]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Authentication {
    pub(crate) bearer_jwt: BearerJwt,
    pub(crate) mutual_tls: MutualTls,
}

/// `[admin.authentication.bearer_jwt]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BearerJwt {
    pub(crate) identity_providers: Vec<IdentityProvider>,
}

/// One identity provider.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IdentityProvider {
    /// `iss` that its tokens must carry.
    pub(crate) issuer: Option<String>,
    /// `aud` that its tokens must contain.
    pub(crate) audience: Option<String>,
    /// Path or `file://` of a PEM public key.
    pub(crate) public_key_uri: Option<String>,
    /// Path, `file://` or `https://` of a JWKS.
    pub(crate) jwk_set_uri: Option<String>,
    /// Ours: `https://` address of an OpenID provider, whose keys are found by its discovery document. Its tokens must name it as
    /// `iss`, and `audience` must be given.
    pub(crate) oidc_issuer: Option<String>,
    /// Ours: PEM certificates that `https://` addresses are trusted by; those of the system when absent.
    pub(crate) ca_certificate: Option<PathBuf>,
    /// Ours: claim with the role, or with a list of roles; a name, or a JSON pointer. `role` when absent.
    pub(crate) role_claim: Option<String>,
}

/// `[admin.authentication.mutual_tls]`, ours.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MutualTls {
    pub(crate) identities: Vec<CertificateIdentity>,
}

/// Role of the holder of a certificate that `http_server.client_ca` issued. Exactly one of `subject` and `san`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CertificateIdentity {
    /// Whole subject, RFC 4514, as `openssl x509 -subject -nameopt RFC2253` prints it: `CN=alice,O=example`.
    pub(crate) subject: Option<String>,
    /// A subject alternative name: `URI:spiffe://example/ops`, `DNS:ops.example` or `EMAIL:alice@example`.
    pub(crate) san: Option<String>,
    pub(crate) role: String,
}

/// `[admin.authorization]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Authorization {
    pub(crate) regex_acl: RegexAcl,
    /// Ours: roles with a built-in list of what they may call.
    pub(crate) roles: Vec<RoleAcl>,
}

/// A role with a built-in list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoleAcl {
    /// As tokens name it.
    pub(crate) role: String,
    pub(crate) acl: BuiltinAcl,
}

/// Built-in lists of what a role may call ([`crate::admin::roles`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BuiltinAcl {
    /// Reads everything that is no secret, the audit log too; changes nothing.
    Auditor,
    /// Resources and reference values.
    Operator,
    /// Policies.
    PolicyEditor,
    /// Everything.
    Admin,
}

/// `[admin.authorization.regex_acl]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RegexAcl {
    pub(crate) acls: Vec<Acl>,
}

/// What a role may call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Acl {
    pub(crate) role: String,
    /// Regular expression over the path, without its query; starts with `^/kbs`, ends with `$`.
    pub(crate) allowed_endpoints: String,
}

impl Admin {
    pub(super) fn check(&self, client_ca: bool) -> Result<(), ConfigError> {
        let refuse = |why: String| Err(ConfigError::Value(why));
        for provider in &self.authentication.bearer_jwt.identity_providers {
            let sources = [&provider.public_key_uri, &provider.jwk_set_uri, &provider.oidc_issuer];
            if sources.iter().all(|source| source.is_none()) {
                return refuse(
                    "an identity provider needs public_key_uri, jwk_set_uri or oidc_issuer".to_owned(),
                );
            }
            let Some(issuer) = &provider.oidc_issuer else { continue };
            if !issuer.starts_with("https://") {
                return refuse(format!("oidc_issuer {issuer:?} must be https://"));
            }
            if provider.audience.is_none() {
                return refuse(format!(
                    "oidc_issuer {issuer:?} needs an audience, or its tokens for any other service would do"
                ));
            }
        }
        for identity in &self.authentication.mutual_tls.identities {
            if identity.subject.is_some() == identity.san.is_some() {
                return refuse("an identity of mutual_tls needs either subject or san".to_owned());
            }
            let kinds = ["URI:", "DNS:", "EMAIL:"];
            if let Some(san) = &identity.san
                && !kinds.iter().any(|kind| san.starts_with(kind) && san.len() > kind.len())
            {
                return refuse(format!("san {san:?} must start with URI:, DNS: or EMAIL:"));
            }
            if !client_ca {
                return refuse("mutual_tls needs http_server.client_ca".to_owned());
            }
        }
        Ok(())
    }
}
