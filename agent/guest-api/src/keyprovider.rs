//! The key provider of encrypted images (ocicrypt): JSON in, JSON out.
//!
//! Base64 text comes in, arrays of numbers go out: the Rust clients read nothing else, the Go ones read both. A packet is
//! image-rs' ([`kata_cc_image::crypto::packet`]); its key is a resource of the key broker.

use kata_cc_image::crypto::CryptoError;
use kata_cc_image::crypto::packet::Packet;
use kata_cc_kbs_protocol::{ResourcePath, from_base64_standard};
use serde::Deserialize;
#[cfg(test)]
use serde_json::json;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::sealed::ResourceSource;

/// Most bytes of a request.
pub const MAX_INPUT: usize = 256 << 10;

/// Name of the provider among the parameters.
const NAME: &str = "attestation-agent";

/// Why a key was not wrapped or unwrapped.
#[derive(Debug, Error)]
pub enum KeyProviderError {
    /// The request is out of form.
    #[error("key provider request is out of form: {0}")]
    Form(&'static str),
    /// The name of the wrapping key is none of the key broker.
    #[error("key {name:?} is no resource of the key broker: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The key broker did not give the key.
    #[error("key {name}: {why}")]
    Refused {
        /// Its URI.
        name: String,
        /// What the key broker says.
        why: String,
    },
    /// The packet does not open.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Input {
    op: String,
    keywrapparams: Wrap,
    keyunwrapparams: Unwrap,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wrap {
    ec: Option<Config>,
    optsdata: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Unwrap {
    annotation: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    parameters: std::collections::BTreeMap<String, Vec<String>>,
}

fn parse(input: &[u8]) -> Result<Input, KeyProviderError> {
    if input.len() > MAX_INPUT {
        return Err(KeyProviderError::Form("it is longer than 256 KiB"));
    }
    // The parser's own words could repeat contents.
    serde_json::from_slice(input).map_err(|_| KeyProviderError::Form("it is not the JSON of one"))
}

async fn key<S: ResourceSource + ?Sized>(
    name: &str,
    source: &S,
) -> Result<Zeroizing<Vec<u8>>, KeyProviderError> {
    let path: ResourcePath =
        name.parse().map_err(|error: kata_cc_kbs_protocol::resource::ResourceError| {
            KeyProviderError::Name { name: name.chars().take(200).collect(), why: error.to_string() }
        })?;
    source.resource(&path).await.map_err(|why| KeyProviderError::Refused { name: path.uri(), why })
}

/// An array of numbers as text, without copies of what it holds.
fn numbers(bytes: &[u8], before: &str, after: &str) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() * 4 + before.len() + after.len() + 2));
    out.extend_from_slice(before.as_bytes());
    out.push(b'[');
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let (hundreds, tens, ones) = (byte / 100, byte / 10 % 10, byte % 10);
        if hundreds > 0 {
            out.push(b'0' + hundreds);
        }
        if hundreds > 0 || tens > 0 {
            out.push(b'0' + tens);
        }
        out.push(b'0' + ones);
    }
    out.push(b']');
    out.extend_from_slice(after.as_bytes());
    out
}

/// `UnWrapKey`: the private options within an annotation.
///
/// # Errors
/// [`KeyProviderError`] says why not.
pub async fn unwrap<S: ResourceSource + ?Sized>(
    input: &[u8],
    source: &S,
) -> Result<Zeroizing<Vec<u8>>, KeyProviderError> {
    let packet = packet_of(input)?;
    let options = packet.unwrap(&key(&packet.kid, source).await?)?;
    Ok(numbers(&options, r#"{"keywrapresults":{"annotation":null},"keyunwrapresults":{"optsdata":"#, "}}"))
}

/// The packet that a request to unwrap brings.
///
/// # Errors
/// When the request is out of form.
pub fn packet_of(input: &[u8]) -> Result<Packet, KeyProviderError> {
    let input = parse(input)?;
    let annotation =
        input.keyunwrapparams.annotation.ok_or(KeyProviderError::Form("it has no annotation"))?;
    let packet =
        from_base64_standard(&annotation).ok_or(KeyProviderError::Form("its annotation is no base64"))?;
    Ok(Packet::parse(&packet)?)
}

/// `WrapKey`: an annotation for private options, under the key that the parameters name:
/// `provider:attestation-agent:keyid=kbs:///…::algorithm=A256GCM`.
///
/// # Errors
/// [`KeyProviderError`] says why not.
pub async fn wrap<S: ResourceSource + ?Sized>(
    input: &[u8],
    source: &S,
) -> Result<Zeroizing<Vec<u8>>, KeyProviderError> {
    let mut input = parse(input)?;
    let options = input.keywrapparams.optsdata.take().map(Zeroizing::new);
    let parameters = Parameters::of(&input)?;
    let options = options.and_then(|text| from_base64_standard(&text));
    let options = Zeroizing::new(options.ok_or(KeyProviderError::Form("its optsdata is no base64"))?);
    let name = &parameters.key_id;
    let packet = Packet::wrap(name, &key(name, source).await?, &options)?;
    Ok(numbers(
        packet.to_json().as_bytes(),
        r#"{"keywrapresults":{"annotation":"#,
        r#"},"keyunwrapresults":{"optsdata":null}}"#,
    ))
}

/// Whether a request asks to wrap (`keywrap`); where gRPC or ttrpc name the operation, its own word for it is not looked at.
///
/// # Errors
/// When the request is out of form or asks for something else.
pub fn asks_to_wrap(input: &[u8]) -> Result<bool, KeyProviderError> {
    match parse(input)?.op.as_str() {
        "keywrap" => Ok(true),
        "keyunwrap" => Ok(false),
        _ => Err(KeyProviderError::Form("its op is neither keywrap nor keyunwrap")),
    }
}

/// What a request to wrap says of the key.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Name of the wrapping key.
    pub key_id: String,
    /// File with the key's bytes: a matter of tools, a guest does not look at it.
    pub key_path: Option<String>,
}

/// The parameters of a request to wrap.
///
/// # Errors
/// When the request or its parameters are out of form.
pub fn parameters_of(input: &[u8]) -> Result<Parameters, KeyProviderError> {
    Parameters::of(&parse(input)?)
}

impl Parameters {
    fn of(input: &Input) -> Result<Self, KeyProviderError> {
        let config = input.keywrapparams.ec.as_ref().ok_or(KeyProviderError::Form("it has no ec"))?;
        let text = config.parameters.get(NAME).and_then(|all| all.first());
        let text = text
            .and_then(|text| String::from_utf8(from_base64_standard(text)?).ok())
            .ok_or(KeyProviderError::Form("its ec has no base64 parameters for attestation-agent"))?;
        let (mut key_id, mut key_path) = (None, None);
        for part in text.trim_start_matches("provider:attestation-agent:").split("::") {
            match part.split_once('=') {
                Some(("keyid", value)) => key_id = Some(value.to_owned()),
                Some(("keypath", value)) => key_path = Some(value.to_owned()),
                Some(("algorithm", "A256GCM")) | None => {}
                Some(("algorithm", _)) => {
                    return Err(KeyProviderError::Form("its algorithm is not A256GCM"));
                }
                Some(_) => {}
            }
        }
        let key_id = key_id.ok_or(KeyProviderError::Form("its parameters name no keyid"))?;
        Ok(Self { key_id, key_path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_kbs_protocol::base64_standard;
    use serde_json::Value;

    struct One(Vec<u8>);

    #[async_trait::async_trait]
    impl ResourceSource for One {
        async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, String> {
            match path.to_string().as_str() {
                "default/key/1" => Ok(Zeroizing::new(self.0.clone())),
                other => Err(format!("no {other}")),
            }
        }
    }

    fn bytes(value: &Value) -> Vec<u8> {
        value.as_array().unwrap().iter().map(|n| u8::try_from(n.as_u64().unwrap()).unwrap()).collect()
    }

    fn wrap_request(parameters: &str, options: &[u8]) -> Vec<u8> {
        let ec =
            json!({"Parameters": {NAME: [base64_standard(parameters.as_bytes())]}, "DecryptConfig": null});
        let wrap = json!({"ec": ec, "optsdata": base64_standard(options)});
        let unwrap = json!({"dc": null, "annotation": null});
        json!({"op": "keywrap", "keywrapparams": wrap, "keyunwrapparams": unwrap}).to_string().into_bytes()
    }

    #[tokio::test]
    async fn what_is_wrapped_is_unwrapped_and_answers_are_numbers() {
        let source = One(vec![7; 32]);
        let all: Vec<u8> = (0..=255).collect();
        let parameters =
            "provider:attestation-agent:keypath=/x::keyid=kbs:///default/key/1::algorithm=A256GCM";
        let wrapped = wrap(&wrap_request(parameters, &all), &source).await.unwrap();
        let wrapped: Value = serde_json::from_slice(&wrapped).unwrap();
        let annotation = bytes(&wrapped["keywrapresults"]["annotation"]);
        assert_eq!(wrapped["keyunwrapresults"]["optsdata"], Value::Null);
        let dc = json!({"Parameters": {NAME: [base64_standard(b"x")]}});
        let request = json!({
            "op": "keyunwrap", "keywrapparams": {"ec": null, "optsdata": null},
            "keyunwrapparams": {"dc": dc, "annotation": base64_standard(&annotation)},
        });
        let opened = unwrap(request.to_string().as_bytes(), &source).await.unwrap();
        let opened: Value = serde_json::from_slice(&opened).unwrap();
        assert_eq!(bytes(&opened["keyunwrapresults"]["optsdata"]), all);
        assert_eq!(opened["keywrapresults"]["annotation"], Value::Null);
        let other = unwrap(request.to_string().as_bytes(), &One(vec![8; 32])).await.unwrap_err();
        assert!(matches!(other, KeyProviderError::Crypto(_)), "{other}");
    }

    #[tokio::test]
    async fn requests_out_of_form_are_refused_with_their_reason() {
        let source = One(vec![7; 32]);
        let words = |error: KeyProviderError| error.to_string();
        assert!(words(unwrap(b"{}", &source).await.unwrap_err()).contains("no annotation"));
        assert!(words(unwrap(b"[", &source).await.unwrap_err()).contains("not the JSON"));
        let long = vec![b' '; MAX_INPUT + 1];
        assert!(words(unwrap(&long, &source).await.unwrap_err()).contains("longer than"));
        assert!(asks_to_wrap(&wrap_request("keyid=x", b"")).unwrap());
        assert!(!asks_to_wrap(br#"{"op":"keyunwrap"}"#).unwrap());
        assert!(words(asks_to_wrap(b"{}").unwrap_err()).contains("neither"));
        let path = parameters_of(&wrap_request("keyid=x::keypath=/a", b"")).unwrap().key_path;
        assert_eq!(path.as_deref(), Some("/a"));
        for (parameters, reason) in [
            ("algorithm=A256GCM", "no keyid"),
            ("keyid=kbs:///default/key/1::algorithm=A128CBC", "not A256GCM"),
            ("keyid=nowhere", "no resource"),
            ("keyid=kbs:///default/key/2", "no default/key/2"),
        ] {
            let refused = words(wrap(&wrap_request(parameters, b"x"), &source).await.unwrap_err());
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
