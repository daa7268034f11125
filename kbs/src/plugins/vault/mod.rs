//! The plugin `vault`: secrets and keys of a Vault-compatible server (HashiCorp Vault, OpenBao).
//!
//! | path | method | who | answer |
//! |---|---|---|---|
//! | `kv/{engine}/{path…}` | GET `?field=&version=&encoding=` | guest | the secret as a JSON object, or one field of it |
//! | `transit/{engine}/{key}/decrypt` | GET `?ciphertext=&context=`, or POST the same as JSON | guest | the plain bytes |
//! | `transit/{engine}/{key}/datakey` | GET or POST `?bits=&context=` | guest | `{"plaintext", "ciphertext"}`, base64 and `vault:v1:…` |
//!
//! Every answer is encrypted to the guest. The broker's token does not leave it, and guests reach only the engines, prefixes
//! and keys that the configuration names, by the resource policy. Tested against a contract server (`tests`) that
//! follows HashiCorp's documented HTTP API, not against a real server: Debian 12 packages none.

mod auth;
mod client;
mod config;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tracing::warn;
use zeroize::Zeroizing;

pub(crate) use config::{NAME, VaultConfig};

use self::auth::Auth;
use self::client::{Client, SecretText, VaultError, parse};
use self::config::{KvConfig, TransitConfig};
use super::registry::{Context, SetupError};
use super::request::cut;
use super::{Access, Caller, Plugin, PluginError, PluginRequest, PluginResponse};

/// Lengths of a data key that transit makes.
const BITS: [&str; 3] = ["128", "256", "512"];

/// The plugin.
#[derive(Debug)]
pub(crate) struct Vault {
    config: VaultConfig,
    auth: Arc<Auth>,
}

/// What a path asks for.
enum Target<'a> {
    Kv { engine: &'a KvConfig, path: String },
    Decrypt { engine: &'a TransitConfig, key: &'a str },
    DataKey { engine: &'a TransitConfig, key: &'a str },
}

/// Body of a request to transit.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TransitBody {
    ciphertext: Option<String>,
    context: Option<String>,
    bits: Option<u32>,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct Versioned<'a> {
    /// Null when the version was deleted.
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Plain {
    plaintext: SecretText,
}

#[derive(Deserialize)]
struct DataKey {
    plaintext: SecretText,
    ciphertext: String,
}

impl Vault {
    /// Checks the configuration and tries to log in. A server that is not reachable yet is told in the log only.
    pub(crate) async fn new(config: VaultConfig, context: &Context) -> Result<Self, SetupError> {
        config.check()?;
        let client = Client::new(&config, &context.base)?;
        let auth = Auth::new(client, config.auth.clone(), &context.base);
        auth.check().map_err(|e| config::value(e.to_string()))?;
        if let Err(error) = auth.call(Method::GET, "auth/token/lookup-self", None).await {
            warn!(%error, address = config.address, "the vault cannot be used now; each call tries again");
        }
        Ok(Self { config, auth })
    }

    fn target<'a>(&'a self, request: &'a PluginRequest) -> Result<Target<'a>, PluginError> {
        let unknown = |kind: &str, name: &str| {
            PluginError::NotFound(format!(
                "no engine {:?} is configured under [plugins.{kind}] of vault",
                cut(name)
            ))
        };
        let path = || {
            PluginError::Path(
                "vault has kv/engine/path, transit/engine/key/decrypt and transit/engine/key/datakey"
                    .to_owned(),
            )
        };
        match request.segments()[..] {
            ["kv", engine, _, ..] => {
                let config = self.config.kv.get(engine).ok_or_else(|| unknown("kv", engine))?;
                let rest = request.path.get(2..).unwrap_or_default().join("/");
                let prefix = &config.prefix;
                let path = if prefix.is_empty() { rest } else { format!("{prefix}/{rest}") };
                Ok(Target::Kv { engine: config, path })
            }
            ["transit", engine, key, action] => {
                let config = self.config.transit.get(engine).ok_or_else(|| unknown("transit", engine))?;
                let known = config.keys.iter().find(|known| *known == key);
                let key = known.ok_or_else(|| {
                    PluginError::NotFound(format!(
                        "key {:?} of engine {engine} is not given to guests",
                        cut(key)
                    ))
                })?;
                match action {
                    "decrypt" => Ok(Target::Decrypt { engine: config, key }),
                    "datakey" => Ok(Target::DataKey { engine: config, key }),
                    _ => Err(path()),
                }
            }
            _ => Err(path()),
        }
    }

    async fn kv(
        &self,
        request: &PluginRequest,
        engine: &KvConfig,
        path: &str,
    ) -> Result<PluginResponse, PluginError> {
        request.only(if engine.version == 2 {
            &["field", "encoding", "version"]
        } else {
            &["field", "encoding"]
        })?;
        let mount = &engine.mount;
        let mut target =
            if engine.version == 2 { format!("{mount}/data/{path}") } else { format!("{mount}/{path}") };
        if let Some(version) = request.query.get("version") {
            if version.is_empty() || version.len() > 10 || !version.bytes().all(|b| b.is_ascii_digit()) {
                return Err(PluginError::BadRequest("version must be a number".to_owned()));
            }
            target = format!("{target}?version={version}");
        }
        let missing = || PluginError::NotFound(format!("there is no secret {}", request.joined()));
        let answer = match self.auth.call(Method::GET, &target, None).await {
            Err(error) if error.status().is_some_and(|s| s.as_u16() == 404) => return Err(missing()),
            other => other.map_err(vault_error)?,
        };
        let secret: &RawValue = if engine.version == 2 {
            let data = parse::<Data<Versioned<'_>>>(&target, &answer).map_err(vault_error)?.data;
            data.data.ok_or_else(missing)?
        } else {
            parse::<Data<&RawValue>>(&target, &answer).map_err(vault_error)?.data
        };
        let response = match request.query.get("field") {
            Some(field) => {
                one_field(&target, secret, field, request.query.get("encoding").map(String::as_str))?
            }
            None if request.query.contains_key("encoding") => {
                return Err(PluginError::BadRequest("encoding goes with field".to_owned()));
            }
            None => PluginResponse::ok("application/json", secret.get().as_bytes().to_vec()),
        };
        let details = json!({
            "mount": mount, "version": request.query.get("version"), "field": request.query.get("field"),
        });
        Ok(response.with_event("secret-read", path, details))
    }

    async fn decrypt(
        &self,
        request: &PluginRequest,
        engine: &TransitConfig,
        key: &str,
    ) -> Result<PluginResponse, PluginError> {
        let body = transit_body(request, &["ciphertext", "context"])?;
        let Some(ciphertext) = &body.ciphertext else {
            return Err(PluginError::BadRequest("ciphertext (vault:v1:…) is missing".to_owned()));
        };
        let mut call = json!({"ciphertext": ciphertext});
        if let Some(context) = &body.context {
            call["context"] = json!(context);
        }
        let target = format!("{}/decrypt/{key}", engine.mount);
        let answer = self.auth.call(Method::POST, &target, Some(&call)).await.map_err(transit_error)?;
        let data = parse::<Data<Plain>>(&target, &answer).map_err(vault_error)?.data;
        let response = PluginResponse::ok("application/octet-stream", decode(&target, &data.plaintext.0)?);
        Ok(response.with_event("transit-decrypted", key, json!({"mount": engine.mount})))
    }

    async fn data_key(
        &self,
        request: &PluginRequest,
        engine: &TransitConfig,
        key: &str,
    ) -> Result<PluginResponse, PluginError> {
        let body = transit_body(request, &["bits", "context"])?;
        let mut call = json!({"bits": body.bits.unwrap_or(256)});
        if let Some(context) = &body.context {
            call["context"] = json!(context);
        }
        let target = format!("{}/datakey/plaintext/{key}", engine.mount);
        let answer = self.auth.call(Method::POST, &target, Some(&call)).await.map_err(transit_error)?;
        let data = parse::<Data<DataKey>>(&target, &answer).map_err(vault_error)?.data;
        // Checked, so that what goes out is what it says.
        decode(&target, &data.plaintext.0)?;
        let body = json!({"plaintext": *data.plaintext.0, "ciphertext": data.ciphertext}).to_string();
        let response = PluginResponse::ok("application/json", body.into_bytes());
        Ok(response.with_event("data-key-made", key, json!({"mount": engine.mount})))
    }
}

/// One field: a text as it is, or decoded; anything else as JSON.
fn one_field(
    target: &str,
    secret: &RawValue,
    field: &str,
    encoding: Option<&str>,
) -> Result<PluginResponse, PluginError> {
    let fields: BTreeMap<Cow<'_, str>, &RawValue> =
        parse(target, secret.get().as_bytes()).map_err(vault_error)?;
    let value = fields
        .get(field)
        .ok_or_else(|| PluginError::NotFound(format!("the secret has no field {:?}", cut(field))))?;
    let text = serde_json::from_str::<SecretText>(value.get()).ok().map(|text| text.0);
    let bytes = match (text, encoding) {
        (Some(text), None | Some("text")) => Zeroizing::new(text.as_bytes().to_vec()),
        (Some(text), Some("base64")) => decode(target, &text)?,
        (None, None) => Zeroizing::new(value.get().as_bytes().to_vec()),
        (None, Some("text" | "base64")) => {
            return Err(PluginError::BadRequest("the field is no text, so it has no encoding".to_owned()));
        }
        (_, Some(_)) => return Err(PluginError::BadRequest("encoding must be text or base64".to_owned())),
    };
    Ok(PluginResponse::ok("application/octet-stream", bytes))
}

fn decode(target: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, PluginError> {
    STANDARD.decode(text).map(Zeroizing::new).map_err(|_| {
        PluginError::upstream("what the vault holds is not base64", format!("{target}: value is not base64"))
    })
}

/// Members of a call to transit, from the query or from a JSON body, not from both.
fn transit_body(request: &PluginRequest, known: &[&str]) -> Result<TransitBody, PluginError> {
    request.only(known)?;
    let body: TransitBody = if request.body.is_empty() {
        let text = |name: &str| request.query.get(name).cloned();
        let bits = match request.query.get("bits").map(String::as_str) {
            None => None,
            Some(bits) if BITS.contains(&bits) => bits.parse().ok(),
            Some(_) => return Err(PluginError::BadRequest("bits must be 128, 256 or 512".to_owned())),
        };
        TransitBody { ciphertext: text("ciphertext"), context: text("context"), bits }
    } else if request.query.is_empty() {
        serde_json::from_slice(&request.body).map_err(|e| PluginError::BadRequest(format!("body: {e}")))?
    } else {
        return Err(PluginError::BadRequest("a query or a body, not both".to_owned()));
    };
    if body.bits.is_some_and(|bits| !BITS.contains(&bits.to_string().as_str())) {
        return Err(PluginError::BadRequest("bits must be 128, 256 or 512".to_owned()));
    }
    if body.context.as_ref().is_some_and(|context| STANDARD.decode(context).is_err()) {
        return Err(PluginError::BadRequest("context must be base64".to_owned()));
    }
    Ok(body)
}

/// What a caller is told. Addresses, mounts and the broker's rights are the operator's alone.
fn vault_error(error: VaultError) -> PluginError {
    let told = match &error {
        VaultError::Connect { .. } => "the vault is not reachable at the moment, try again",
        VaultError::Answer { .. } => "the vault answered something that is not understood",
        VaultError::File(_) => "the key broker cannot log in at the vault",
        VaultError::Status { status, .. } => match status.as_u16() {
            403 => "the vault does not let the key broker do this",
            503 => "the vault is sealed or in maintenance, try again later",
            _ => "the vault failed, the reason is in the log of the key broker",
        },
    };
    PluginError::upstream(told, error)
}

/// A 400 of transit is about what the guest sent.
fn transit_error(error: VaultError) -> PluginError {
    match error {
        VaultError::Status { status, words, .. } if status.as_u16() == 400 => {
            PluginError::BadRequest(format!("the vault refuses it: {words}"))
        }
        VaultError::Status { status, .. } if status.as_u16() == 404 => {
            PluginError::NotFound("the vault has no such key".to_owned())
        }
        other => vault_error(other),
    }
}

#[async_trait]
impl Plugin for Vault {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate_auth(&self, request: &PluginRequest) -> Result<Access, PluginError> {
        if let Err(error @ PluginError::Path(_)) = self.target(request) {
            return Err(error);
        }
        let kv = request.path.first().is_some_and(|first| first == "kv");
        match request.method {
            Method::GET => Ok(Access::Guest),
            Method::POST if !kv => Ok(Access::Guest),
            ref other => Err(PluginError::method(other, if kv { "GET" } else { "GET or POST" })),
        }
    }

    fn needs_encryption(&self, _: &PluginRequest) -> bool {
        true
    }

    async fn handle(&self, request: &PluginRequest, _: Caller<'_>) -> Result<PluginResponse, PluginError> {
        match self.target(request)? {
            Target::Kv { engine, path } => self.kv(request, engine, &path).await,
            Target::Decrypt { engine, key } => self.decrypt(request, engine, key).await,
            Target::DataKey { engine, key } => self.data_key(request, engine, key).await,
        }
    }
}
