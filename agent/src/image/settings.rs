//! How images are pulled, as the measured init-data says (`[image]` of `cdh.toml`).
//!
//! Texts stand in it, or in the key broker under a name that stands in it. What is named and not had, or not understood, refuses
//! every image: a guest that ignored it would pull by weaker rules than its owner's.

use std::sync::Arc;

use kata_cc_causes::causes;
use kata_cc_image::chunks::ChunkPins;
use kata_cc_image::signature::{BrokerMaterial, KeyMaterial, NoMaterial};
use kata_cc_image::{ClientConfig, Limits, Registries, SignaturePolicy};

use crate::confidential::{Broker, Image};

/// What the init-data says of pulls; credentials, proxy and tier are the caller's.
pub(super) async fn client_config(image: &Image, broker: Option<&Broker>) -> Result<ClientConfig, String> {
    // Of files nothing is read: what lies in the guest can be the host's.
    let material: Arc<dyn KeyMaterial> = match broker {
        Some(broker) => Arc::new(BrokerMaterial(broker.clone())),
        None => Arc::new(NoMaterial),
    };
    let mut limits = Limits::default();
    if let Some(most) = image.max_concurrent_layer_downloads_per_image {
        limits.max_parallel = most.clamp(1, limits.max_layers);
    }
    Ok(ClientConfig {
        extra_roots_pem: image.extra_root_certificates.iter().map(|c| c.clone().into_bytes()).collect(),
        insecure_registries: image.insecure_registries.clone(),
        registries: registries(image, broker.is_some(), &*material).await?,
        allowed: image.allowed.clone(),
        signatures: signature_policy(image, broker.is_some(), material).await?,
        chunk_pins: ChunkPins::parse(&image.chunk_pins).map_err(|error| causes(&error))?,
        limits,
        ..ClientConfig::default()
    })
}

/// A text of the init-data, or the resource that it names in its place; `None` when it has neither.
struct TextOrResource<'i> {
    /// Its name in `cdh.toml`, and that of the resource's.
    names: (&'static str, &'static str),
    text: Option<&'i str>,
    uri: Option<&'i str>,
}

impl TextOrResource<'_> {
    async fn read(self, broker: bool, material: &dyn KeyMaterial) -> Result<Option<Vec<u8>>, String> {
        let (text_name, uri_name) = self.names;
        match (self.text, self.uri) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(format!("cdh.toml has {text_name} and {uri_name}: keep one")),
            (Some(text), None) => Ok(Some(text.as_bytes().to_vec())),
            (None, Some(uri)) if !broker => {
                Err(format!("{uri} of {uri_name} was not had: this guest has no key broker"))
            }
            (None, Some(uri)) => {
                let had = material.read(uri).await;
                had.map(Some).map_err(|e| format!("the resource of {uri_name}: {}", causes(&e)))
            }
        }
    }
}

async fn signature_policy(
    image: &Image,
    broker: bool,
    material: Arc<dyn KeyMaterial>,
) -> Result<Option<Arc<SignaturePolicy>>, String> {
    let source = TextOrResource {
        names: ("image_security_policy", "image_security_policy_uri"),
        text: image.image_security_policy.as_deref(),
        uri: image.image_security_policy_uri.as_deref(),
    };
    let Some(text) = source.read(broker, &*material).await? else { return Ok(None) };
    SignaturePolicy::new(&text, material).map(|policy| Some(Arc::new(policy))).map_err(|e| causes(&e))
}

async fn registries(image: &Image, broker: bool, material: &dyn KeyMaterial) -> Result<Registries, String> {
    let source = TextOrResource {
        names: ("registry_config", "registry_configuration_uri"),
        text: image.registry_config.as_deref(),
        uri: image.registry_configuration_uri.as_deref(),
    };
    match source.read(broker, material).await? {
        None => Ok(Registries::default()),
        Some(text) => Registries::parse(&String::from_utf8_lossy(&text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signature_policy_that_is_named_and_not_had_refuses() {
        let image = |text: Option<&str>, uri: Option<&str>| Image {
            image_security_policy: text.map(str::to_owned),
            image_security_policy_uri: uri.map(str::to_owned),
            ..Image::default()
        };
        let policy = async |text, uri| client_config(&image(text, uri), None).await.map(|c| c.signatures);
        assert!(policy(None, None).await.unwrap().is_none());
        let good = r#"{"default": [{"type": "reject"}]}"#;
        assert!(policy(Some(good), None).await.unwrap().is_some());
        let uri = Some("kbs:///default/security-policy/test");
        for (text, uri, why) in [
            (Some(""), None, "malformed"),
            (Some(r#"{"default": []}"#), None, "at default"),
            (Some(good), uri, "keep one"),
            (None, uri, "has no key broker"),
            (None, Some(""), "has no key broker"),
        ] {
            let error = policy(text, uri).await.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn mirrors_that_are_named_and_not_had_or_not_understood_refuse() {
        let image = |text: Option<&str>, uri: Option<&str>| Image {
            registry_config: text.map(str::to_owned),
            registry_configuration_uri: uri.map(str::to_owned),
            ..Image::default()
        };
        let rules = async |text, uri| client_config(&image(text, uri), None).await.map(|c| c.registries);
        assert!(rules(None, None).await.unwrap().registry.is_empty());
        let good = "[[registry]]\nprefix = 'a'\n[[registry.mirror]]\nlocation = 'b:5000'";
        assert_eq!(rules(Some(good), None).await.unwrap().registry[0].mirror[0].location, "b:5000");
        for (text, uri, why) in [
            (Some("[[registry]]\nprefx = 'a'"), None, "prefx"),
            (Some("[[registry]]"), None, "neither prefix nor location"),
            (Some(good), Some("kbs:///a/b/c"), "keep one"),
            (None, Some("kbs:///a/b/c"), "has no key broker"),
        ] {
            let error = rules(text, uri).await.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn a_pin_of_a_chunk_list_that_is_none_refuses() {
        let image = |pin: &str| Image { chunk_pins: vec![pin.to_owned()], ..Image::default() };
        let digest = format!("sha256:{}", "ab".repeat(32));
        let good = format!(r#"{{"version": 1, "manifest": "{digest}", "list": "{digest}"}}"#);
        client_config(&image(&good), None).await.unwrap();
        for (wrong, why) in [("", "pins no chunk list"), (&good.replace('1', "2"), "the version is 2")] {
            let error = client_config(&image(wrong), None).await.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
