//! What a confidential guest is started with: the pod's own init-data, or one made from the node's configuration.
//!
//! Keys are Trustee's and Kata's: `aa.toml` (where to attest), `cdh.toml` (key broker, image settings), `policy.rego`
//! (agent policy). Its digest goes into the launch (`HOST_DATA`), so the key broker sees exactly which one it was.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use kata_cc_kbs_protocol::initdata::{self, Algorithm, InitData, InitDataError};
use serde::Serialize;
use thiserror::Error;

use crate::config::NodeConfig;

/// Why there is no init-data.
#[derive(Debug, Error)]
pub enum InitDataSourceError {
    /// A file that the configuration names cannot be read.
    #[error("cannot read {path}, which the node's configuration names: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The document was refused.
    #[error(transparent)]
    Document(#[from] InitDataError),
    /// It cannot be written as TOML.
    #[error("init-data cannot be written: {0}")]
    Write(#[from] toml::ser::Error),
}

/// Init-data ready for a launch.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The exact document.
    pub text: String,
    /// Its digest, by its own algorithm.
    pub digest: Vec<u8>,
    /// Block image for the guest.
    pub image: Vec<u8>,
}

impl Prepared {
    fn new(document: &InitData) -> Self {
        Self {
            text: document.text().to_owned(),
            digest: document.digest(),
            image: initdata::to_image(document.text()),
        }
    }
}

/// The pod's init-data from its annotation, when it has one.
///
/// # Errors
/// When the annotation is there and damaged.
pub fn of_pod(annotations: &HashMap<String, String>) -> Result<Option<Prepared>, InitDataSourceError> {
    let Some(annotation) = annotations.get(initdata::ANNOTATION) else { return Ok(None) };
    from_text(&initdata::from_annotation(annotation)?).map(Some)
}

/// From a document as it stands.
///
/// # Errors
/// When it is no init-data.
pub fn from_text(text: &str) -> Result<Prepared, InitDataSourceError> {
    Ok(Prepared::new(&InitData::parse(text)?))
}

#[derive(Serialize)]
struct AaToml {
    token_configs: TokenConfigs,
}

#[derive(Serialize)]
struct TokenConfigs {
    kbs: KbsToken,
}

#[derive(Serialize)]
struct KbsToken {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<String>,
}

#[derive(Serialize)]
struct CdhToml {
    #[serde(skip_serializing_if = "Option::is_none")]
    kbc: Option<Kbc>,
    image: Image,
}

#[derive(Serialize)]
struct Kbc {
    name: &'static str,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kbs_cert: Option<String>,
}

#[derive(Serialize)]
struct Image {
    extra_root_certificates: Vec<String>,
    insecure_registries: Vec<String>,
    allow_simulated_tee: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chunk_pins: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_security_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_security_policy_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_config: Option<String>,
}

/// From the node's configuration: key broker, registries, agent policy.
///
/// # Errors
/// When a file that it names cannot be read.
pub fn of_node(config: &NodeConfig) -> Result<Prepared, InitDataSourceError> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path)
            .map_err(|source| InitDataSourceError::Read { path: path.clone(), source })
    };
    let mut data = BTreeMap::new();
    let mut kbc = None;
    if let Some(kbs) = &config.kbs {
        let cert = kbs.certificate.as_ref().map(read).transpose()?;
        let token = KbsToken { url: kbs.url.clone(), cert: cert.clone() };
        data.insert(
            "aa.toml".to_owned(),
            toml::to_string(&AaToml { token_configs: TokenConfigs { kbs: token } })?,
        );
        kbc = Some(Kbc { name: "cc_kbc", url: kbs.url.clone(), kbs_cert: cert });
    }
    let roots = config.image.registry_roots.iter().map(read).collect::<Result<_, _>>()?;
    let image = Image {
        extra_root_certificates: roots,
        insecure_registries: config.image.insecure_registries.clone(),
        allow_simulated_tee: config.image.allow_simulated_tee,
        allowed: config.image.allowed.clone(),
        seals: config.image.seals.iter().map(read).collect::<Result<_, _>>()?,
        chunk_pins: config.image.chunk_pins.iter().map(read).collect::<Result<_, _>>()?,
        image_security_policy: config.image.security_policy.as_ref().map(read).transpose()?,
        image_security_policy_uri: config.image.security_policy_uri.clone(),
        registry_config: config.image.registries.as_ref().map(read).transpose()?,
    };
    data.insert("cdh.toml".to_owned(), toml::to_string(&CdhToml { kbc, image })?);
    if let Some(policy) = &config.image.agent_policy {
        data.insert("policy.rego".to_owned(), read(policy)?);
    }
    Ok(Prepared::new(&InitData::build(Algorithm::Sha256, &data)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ImageSettings, KbsSettings};

    #[test]
    fn the_nodes_configuration_becomes_trustees_keys() {
        let config = NodeConfig {
            kbs: Some(KbsSettings { url: "https://kbs:8080".into(), certificate: None }),
            image: ImageSettings { insecure_registries: vec!["127.0.0.1:5000".into()], ..Default::default() },
            ..Default::default()
        };
        let prepared = of_node(&config).unwrap();
        let document = InitData::parse(&prepared.text).unwrap();
        let aa: toml::Table = document.get("aa.toml").unwrap().parse().unwrap();
        assert_eq!(aa["token_configs"]["kbs"]["url"].as_str(), Some("https://kbs:8080"));
        let cdh: toml::Table = document.get("cdh.toml").unwrap().parse().unwrap();
        assert_eq!(cdh["image"]["allow_simulated_tee"].as_bool(), Some(false));
        assert!(!cdh["image"].as_table().unwrap().contains_key("allowed"));
        let pin = format!("host/app@sha256:{}", "0".repeat(64));
        for allowed in [vec![], vec![pin]] {
            let image = ImageSettings { allowed: Some(allowed.clone()), ..Default::default() };
            let pinned = of_node(&NodeConfig { image, ..Default::default() }).unwrap();
            let cdh = InitData::parse(&pinned.text).unwrap().get("cdh.toml").unwrap().to_owned();
            let cdh: toml::Table = cdh.parse().unwrap();
            assert_eq!(cdh["image"]["allowed"].clone().try_into::<Vec<String>>().unwrap(), allowed);
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.json");
        std::fs::write(&file, r#"{"default": [{"type": "reject"}]}"#).unwrap();
        assert!(!cdh["image"].as_table().unwrap().contains_key("chunk_pins"));
        let image =
            ImageSettings { chunk_pins: vec![file.clone()], seals: vec![file.clone()], ..Default::default() };
        let pinned = of_node(&NodeConfig { image, ..Default::default() }).unwrap();
        let cdh: toml::Table =
            InitData::parse(&pinned.text).unwrap().get("cdh.toml").unwrap().parse().unwrap();
        for key in ["chunk_pins", "seals"] {
            assert_eq!(cdh["image"][key][0].as_str(), Some(r#"{"default": [{"type": "reject"}]}"#), "{key}");
        }
        let image = ImageSettings { security_policy: Some(file), ..Default::default() };
        let signed = of_node(&NodeConfig { image, ..Default::default() }).unwrap();
        let cdh: toml::Table =
            InitData::parse(&signed.text).unwrap().get("cdh.toml").unwrap().parse().unwrap();
        assert_eq!(
            cdh["image"]["image_security_policy"].as_str(),
            Some(r#"{"default": [{"type": "reject"}]}"#)
        );
        assert_eq!(prepared.digest, document.digest());
        assert_eq!(prepared.image.len() % 512, 0);
        // the same configuration gives the same digest
        assert_eq!(of_node(&config).unwrap().digest, prepared.digest);
    }

    #[test]
    fn a_pods_annotation_wins_and_a_damaged_one_is_refused() {
        let text = of_node(&NodeConfig::default()).unwrap().text;
        let good = HashMap::from([(initdata::ANNOTATION.to_owned(), initdata::to_annotation(&text))]);
        assert_eq!(of_pod(&good).unwrap().unwrap().text, text);
        assert!(of_pod(&HashMap::new()).unwrap().is_none());
        let bad = HashMap::from([(initdata::ANNOTATION.to_owned(), "!".to_owned())]);
        assert!(of_pod(&bad).is_err());
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let config = NodeConfig {
            kbs: Some(KbsSettings {
                url: "https://x".into(),
                certificate: Some("/nonexistent/kbs.pem".into()),
            }),
            ..Default::default()
        };
        assert!(of_node(&config).unwrap_err().to_string().contains("/nonexistent/kbs.pem"));
    }
}
