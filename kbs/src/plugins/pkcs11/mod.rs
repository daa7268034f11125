//! The plugin `pkcs11`: secrets whose keys a hardware security module holds.
//!
//! | path | method | who | |
//! |---|---|---|---|
//! | `{key}/{blob}` | GET | guest | the secret: the token unwraps its key ([`blob`]) |
//! | `{key}/{blob}` | POST | admin | wraps and stores the body |
//! | `{key}/{blob}` | DELETE | admin | |
//! | `resource/{repository}/{type}/{tag}` | GET, POST | guest, admin | a secret object on the token itself (Trustee) |
//! | `wrap-key` | POST, GET | admin, guest | wraps, unwraps the body under `lookup_label` (Trustee) |
//!
//! The module runs in a helper process ([`helper`]).

mod blob;
mod config;
mod helper;
pub(crate) mod store_key;
#[cfg(test)]
pub(crate) mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Method;
use kata_cc_kbs_pkcs11::{
    Answer, Bytes, ErrorKind, HelperError, KeyName, MAX_SECRET, MAX_WRAP, Operation, Secret,
};
use kata_cc_kbs_protocol::ResourcePath;
use serde_json::json;
use zeroize::Zeroizing;

pub(crate) use config::{NAME, Pkcs11Config};
pub(crate) use helper::{Token, TokenError};

use self::blob::Sealed;
use self::config::KeyConfig;
use self::helper::Launch;
use super::registry::{Context, SetupError};
use super::request::cut;
use super::{Access, BlobStore, Caller, Plugin, PluginError, PluginRequest, PluginResponse};

/// Namespace of wrapped blobs in the store.
const NAMESPACE: &str = "pkcs11";

/// The plugin.
#[derive(Debug)]
pub(crate) struct Pkcs11 {
    config: Pkcs11Config,
    token: Arc<Token>,
    store: Arc<dyn BlobStore>,
}

/// What a path asks for.
#[derive(Debug)]
enum Target<'a> {
    Blob { name: &'a str, key: &'a KeyConfig, blob: &'a str },
    Object(ResourcePath),
    Body(KeyName),
}

/// Opens the token that the configuration names.
pub(crate) async fn open(config: &Pkcs11Config, base: &Path) -> Result<Arc<Token>, SetupError> {
    let token = Token::closed(launch(config, base)?);
    token.open().await.map_err(|e| config::value(e.to_string()))?;
    Ok(Arc::new(token))
}

fn launch(config: &Pkcs11Config, base: &Path) -> Result<Launch, SetupError> {
    config.check()?;
    Ok(Launch {
        program: config.program(base),
        environment: config.environment.clone(),
        module: base.join(&config.module).to_string_lossy().into_owned(),
        token: config.token()?,
        pin: config.pin(base)?,
        time: Duration::from_secs(config.operation_seconds),
    })
}

impl Pkcs11 {
    /// The plugin on an open token.
    pub(crate) fn new(config: Pkcs11Config, token: Arc<Token>, context: &Context) -> Self {
        Self { config, token, store: Arc::clone(&context.store) }
    }

    fn target<'a>(&'a self, request: &'a PluginRequest) -> Result<Target<'a>, PluginError> {
        match request.segments()[..] {
            ["wrap-key"] => match &self.config.lookup_label {
                Some(label) => Ok(Target::Body(KeyName::Label(label.clone()))),
                None => Err(PluginError::Path(
                    "wrap-key is off: [[plugins]] pkcs11 has no lookup_label".to_owned(),
                )),
            },
            ["resource", repository, kind, tag] => {
                let path = ResourcePath::new(repository, kind, tag);
                Ok(Target::Object(path.map_err(|e| PluginError::Path(e.to_string()))?))
            }
            [name, blob] => {
                let (Some((name, key)), Some(blob)) =
                    (self.config.keys.get_key_value(name), request.path.get(1))
                else {
                    return Err(PluginError::NotFound(format!(
                        "no key {:?} is configured under [plugins.keys] of pkcs11, blob {:?} cannot be under it",
                        cut(name),
                        cut(blob)
                    )));
                };
                Ok(Target::Blob { name, key, blob })
            }
            _ => Err(PluginError::Path(
                "pkcs11 has key/blob, resource/repository/type/tag and wrap-key".to_owned(),
            )),
        }
    }

    async fn read_blob(
        &self,
        name: &str,
        key: &KeyConfig,
        blob: &str,
    ) -> Result<PluginResponse, PluginError> {
        let stored = self.store.get(NAMESPACE, &format!("{name}/{blob}")).await?;
        let stored = stored.ok_or_else(|| missing(name, blob))?;
        let broken = |e: blob::BlobError| PluginError::Internal(format!("blob {name}/{blob}: {e}"));
        let sealed = Sealed::read(&stored, name, blob).map_err(broken)?;
        let operation = Operation::Unwrap {
            key: key.key(name),
            algorithm: sealed.algorithm,
            wrapped: Bytes(sealed.encrypted_key.clone()),
        };
        let unwrapped = secret(self.token.ask(operation).await)?;
        let details = json!({"key": key.key(name).to_string(), "algorithm": sealed.algorithm.name()});
        let plain = sealed.open(&unwrapped).map_err(broken)?;
        Ok(PluginResponse::ok("application/octet-stream", plain).with_event(
            "blob-unwrapped",
            format!("{name}/{blob}"),
            details,
        ))
    }

    async fn write_blob(
        &self,
        name: &str,
        key: &KeyConfig,
        blob: &str,
        plain: &[u8],
    ) -> Result<PluginResponse, PluginError> {
        let failed = |e: blob::BlobError| PluginError::Internal(e.to_string());
        let fresh = blob::fresh_key().map_err(failed)?;
        let algorithm = key.algorithm;
        let data = Secret(fresh.clone());
        let wrapped = public(self.token.ask(Operation::Wrap { key: key.key(name), algorithm, data }).await)?;
        let sealed = blob::seal(algorithm, name, blob, &fresh, &wrapped, plain).map_err(failed)?;
        self.store.put(NAMESPACE, &format!("{name}/{blob}"), &sealed).await?;
        let details = json!({"key": key.key(name).to_string(), "algorithm": algorithm.name()});
        Ok(PluginResponse::empty().with_event("blob-wrapped", format!("{name}/{blob}"), details))
    }

    async fn object(
        &self,
        request: &PluginRequest,
        path: &ResourcePath,
    ) -> Result<PluginResponse, PluginError> {
        let label = path.to_string();
        if request.method == Method::GET {
            let value = secret(self.token.ask(Operation::ReadSecret { label }).await)?;
            let response = PluginResponse::ok("application/octet-stream", value);
            return Ok(response.with_event("object-read", path.to_string(), json!({})));
        }
        if request.body.is_empty() || request.body.len() > MAX_SECRET {
            let why =
                format!("a secret on the token has 1 to {MAX_SECRET} bytes, seen {}", request.body.len());
            return Err(PluginError::BadRequest(why));
        }
        let value = Secret::new(request.body.to_vec());
        self.token.ask(Operation::WriteSecret { label: label.clone(), value }).await.map_err(token_error)?;
        Ok(PluginResponse::empty().with_event("object-written", label, json!({})))
    }

    async fn body(&self, request: &PluginRequest, key: KeyName) -> Result<PluginResponse, PluginError> {
        if request.body.is_empty() || request.body.len() > MAX_WRAP {
            let why = format!("wrap-key takes 1 to {MAX_WRAP} bytes as body, seen {}", request.body.len());
            return Err(PluginError::BadRequest(why));
        }
        let algorithm = self.config.rsa_mechanism.algorithm();
        let (subject, details) = (key.to_string(), json!({"algorithm": algorithm.name()}));
        let (action, bytes) = if request.method == Method::GET {
            let wrapped = Bytes(request.body.to_vec());
            ("key-unwrapped", secret(self.token.ask(Operation::Unwrap { key, algorithm, wrapped }).await)?)
        } else {
            let data = Secret::new(request.body.to_vec());
            ("key-wrapped", public(self.token.ask(Operation::Wrap { key, algorithm, data }).await)?.into())
        };
        Ok(PluginResponse::ok("application/octet-stream", bytes).with_event(action, subject, details))
    }
}

fn missing(name: &str, blob: &str) -> PluginError {
    PluginError::NotFound(format!("blob kbs+pkcs11:///{name}/{blob} does not exist"))
}

fn secret(answer: Result<Answer, TokenError>) -> Result<Zeroizing<Vec<u8>>, PluginError> {
    match answer.map_err(token_error)? {
        Answer::Secret { bytes } => Ok(bytes.0),
        _ => Err(PluginError::Internal("the helper gave an answer of another kind".to_owned())),
    }
}

fn public(answer: Result<Answer, TokenError>) -> Result<Vec<u8>, PluginError> {
    match answer.map_err(token_error)? {
        Answer::Public { bytes } => Ok(bytes.0),
        _ => Err(PluginError::Internal("the helper gave an answer of another kind".to_owned())),
    }
}

/// What a caller is told of a token's failure. Names of module and token are the operator's alone.
pub(crate) fn token_error(error: TokenError) -> PluginError {
    let told = match &error {
        TokenError::Refused(HelperError { kind, .. }) => match kind {
            ErrorKind::NotFound => {
                "the token does not have the key or object that is configured or asked for"
            }
            ErrorKind::Ambiguous => "the token has more than one key of that name",
            ErrorKind::Algorithm => "the token, or the key, does not do the configured algorithm",
            ErrorKind::Wrapped => "the token cannot unwrap it: it was not wrapped so, under this key",
            ErrorKind::Pin => "the token refuses the PIN of the key broker",
            ErrorKind::Module | ErrorKind::Token | ErrorKind::Request | ErrorKind::Device => {
                "the token failed, the reason is in the log of the key broker"
            }
        },
        TokenError::Locked(_) => "the token refuses the PIN of the key broker",
        TokenError::Start { .. }
        | TokenError::Died(_)
        | TokenError::Timeout(_)
        | TokenError::Nonsense(_)
        | TokenError::Pause(..) => "the token is not reachable at the moment, try again",
    };
    PluginError::upstream(told, error)
}

#[async_trait]
impl Plugin for Pkcs11 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate_auth(&self, request: &PluginRequest) -> Result<Access, PluginError> {
        let blob = match self.target(request) {
            Err(error @ PluginError::Path(_)) => return Err(error),
            // A key that is not configured is told after the policy was asked, as a blob that does not exist.
            Ok(Target::Blob { .. }) | Err(_) => true,
            Ok(Target::Object(_) | Target::Body(_)) => false,
        };
        match request.method {
            Method::GET => Ok(Access::Guest),
            Method::POST => Ok(Access::Admin),
            Method::DELETE if blob => Ok(Access::Admin),
            ref other => {
                Err(PluginError::method(other, if blob { "GET, POST or DELETE" } else { "GET or POST" }))
            }
        }
    }

    fn needs_encryption(&self, _: &PluginRequest) -> bool {
        true
    }

    async fn handle(&self, request: &PluginRequest, _: Caller<'_>) -> Result<PluginResponse, PluginError> {
        request.only(&[])?;
        match self.target(request)? {
            Target::Object(path) => self.object(request, &path).await,
            Target::Body(key) => self.body(request, key).await,
            Target::Blob { name, key, blob } => match request.method {
                Method::GET => self.read_blob(name, key, blob).await,
                Method::DELETE => {
                    if !self.store.delete(NAMESPACE, &format!("{name}/{blob}")).await? {
                        return Err(missing(name, blob));
                    }
                    Ok(PluginResponse::empty().with_event(
                        "blob-deleted",
                        format!("{name}/{blob}"),
                        json!({}),
                    ))
                }
                _ => self.write_blob(name, key, blob, &request.body).await,
            },
        }
    }
}
