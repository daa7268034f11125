//! Talks to registries.
//!
//! oci-client does authentication and uploads. What is fetched is fetched here: oci-client reads a manifest of any length into memory,
//! and the sender of that body is not trusted (`docs/decisions/0005-image-registry.md`); and it neither resumes a blob nor
//! asks mirrors. Every manifest's digest is computed from its bytes; a digest in the reference must be met. Plain HTTP is
//! spoken only to registries that are named as insecure.

mod auth;
mod endpoints;
mod error;
mod exchange;
mod places;
mod push;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kata_cc_causes::causes;
use oci_client::Reference;
use oci_client::client::{Certificate, CertificateEncoding, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use tokio_util::bytes::Bytes;

pub use self::auth::{DockerAuth, DockerAuthConfig};
use self::endpoints::Endpoint;
pub use self::endpoints::{Mirror, PullFromMirror, Registries, RegistryRule};
pub use self::error::RegistryError;
use self::error::check_status;
pub use self::exchange::Retry;
use self::exchange::{Body, Question};
pub(crate) use self::places::{BlobPlace, Ended};
use crate::digest::Digest;
use crate::documents::{Companions, NOTED};
use crate::media;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// HTTP proxy for everything.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, as in the variable `no_proxy`: names, addresses, networks, with commas between.
    pub no_proxy: Option<String>,
    /// Certificates (PEM) trusted beside the system's.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// Registries (`host:port`) spoken to in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Mirrors, other locations, blocked registries.
    pub registries: Registries,
    /// Credentials.
    pub auth: Option<DockerAuthConfig>,
    /// How often is tried again.
    pub retry: Retry,
    /// Small documents that came with an image, or that are collected.
    pub companions: Companions,
}

/// A manifest as the registry sent it, digest checked.
#[derive(Debug, Clone)]
pub struct RawManifest {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// `Content-Type` of the answer.
    pub media_type: String,
}

/// A client of any number of registries.
pub struct Registry {
    client: oci_client::Client,
    http: reqwest::Client,
    config: RegistryConfig,
    /// By host and repository; `None` where none is wanted.
    tokens: tokio::sync::Mutex<HashMap<(String, String), Option<String>>>,
    /// Bytes of layers that were read of the node's copy.
    kept_bytes: AtomicU64,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Reads an image reference; `docker://` in front is allowed.
///
/// # Errors
/// When it is none.
pub fn parse_reference(text: &str) -> Result<Reference, RegistryError> {
    let bare = text.strip_prefix("docker://").unwrap_or(text);
    bare.parse().map_err(|error: oci_client::ParseError| RegistryError::Reference {
        reference: text.chars().take(300).collect(),
        why: error.to_string(),
    })
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

impl Registry {
    /// Sets up the clients.
    ///
    /// # Errors
    /// When a certificate, the proxy or the rules for registries cannot be used.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        config.registries.check().map_err(RegistryError::Setup)?;
        // Fails when another part of the process chose first: that is the same provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = match oci_client::Client::try_from(Self::client_config(&config, false)) {
            Ok(client) => client,
            // A guest has no certificates of its own: then only plain registries can be reached, which needs no error here.
            Err(_) if config.extra_roots_pem.is_empty() => {
                oci_client::Client::try_from(Self::client_config(&config, true))
                    .map_err(|e| RegistryError::Setup(causes(&e)))?
            }
            Err(error) => return Err(RegistryError::Setup(causes(&error))),
        };
        let http = match Self::http(&config, false) {
            Ok(http) => http,
            Err(_) if config.extra_roots_pem.is_empty() => {
                Self::http(&config, true).map_err(|e| RegistryError::Setup(causes(&e)))?
            }
            Err(error) => return Err(RegistryError::Setup(causes(&error))),
        };
        Ok(Self {
            client,
            http,
            config,
            tokens: tokio::sync::Mutex::default(),
            kept_bytes: AtomicU64::new(0),
        })
    }

    fn client_config(config: &RegistryConfig, no_roots: bool) -> oci_client::client::ClientConfig {
        let certificate =
            |pem: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() };
        oci_client::client::ClientConfig {
            protocol: ClientProtocol::HttpsExcept(config.insecure_hosts()),
            extra_root_certificates: config.extra_roots_pem.iter().map(certificate).collect(),
            // A PEM text without certificates: "these roots only, and there are none".
            tls_certs_only: if no_roots { vec![certificate(&Vec::new())] } else { Vec::new() },
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: "kata-cc",
            https_proxy: config.proxy.clone(),
            http_proxy: config.proxy.clone(),
            no_proxy: config.no_proxy.clone(),
            ..Default::default()
        }
    }

    fn http(config: &RegistryConfig, no_roots: bool) -> reqwest::Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .user_agent("kata-cc")
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        let mut roots = Vec::new();
        for pem in &config.extra_roots_pem {
            roots.push(reqwest::Certificate::from_pem(pem)?);
        }
        builder = if no_roots { builder.tls_certs_only([]) } else { builder.tls_certs_merge(roots) };
        if let Some(proxy) = &config.proxy {
            let except = config.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
            builder = builder.proxy(reqwest::Proxy::all(proxy)?.no_proxy(except));
        }
        builder.build()
    }

    fn auth_for(&self, reference: &Reference) -> RegistryAuth {
        let registry = reference.registry();
        self.config.auth.as_ref().map_or(RegistryAuth::Anonymous, |auth| auth.for_registry(registry))
    }

    /// Asks the places of `reference` one after another until one has an answer that `ask` takes.
    async fn of_any<T>(
        &self,
        reference: &Reference,
        mut ask: impl AsyncFnMut(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut last = None;
        for endpoint in self.endpoints(reference)? {
            if let Some(error) = &last {
                tracing::warn!(%error, next = endpoint.host, "another place of the image is asked");
            }
            match ask(&endpoint).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| no_place(reference)))
    }

    fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistryError> {
        self.config.registries.endpoints(reference, &self.config.insecure_registries)
    }

    /// Fetches the manifest or index `reference` names; a digest in it is checked.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn manifest(&self, reference: &Reference, max: u64) -> Result<RawManifest, RegistryError> {
        let companions = &self.config.companions;
        if let Some(answer) = companions.manifest(reference) {
            return answer;
        }
        let answer = self.asked_manifest(reference, max).await;
        companions.note_manifest(reference, &answer);
        answer
    }

    async fn asked_manifest(&self, reference: &Reference, max: u64) -> Result<RawManifest, RegistryError> {
        let expected = match reference.digest() {
            Some(text) => Some(text.parse::<Digest>().map_err(|error| RegistryError::Reference {
                reference: reference.to_string(),
                why: error.to_string(),
            })?),
            None => None,
        };
        let name = expected.as_ref().map_or(reference.tag().unwrap_or("latest"), Digest::as_str);
        let what = format!("manifest {}:{name}", reference.repository());
        let accept =
            [media::OCI_MANIFEST, media::OCI_INDEX, media::DOCKER_MANIFEST, media::DOCKER_INDEX].join(", ");
        let path = format!("manifests/{name}");
        self.of_any(reference, async |endpoint| {
            let question = Question { path: &path, accept: &accept, what: &what, from: 0 };
            let Body { status, bytes, media_type } = self.small(endpoint, &question, max).await?;
            check_status(status, &endpoint.host, &what)?;
            let digest = match &expected {
                Some(expected) => {
                    let seen = expected.of_same_kind(&bytes);
                    if seen != *expected {
                        return Err(RegistryError::ManifestDigest { expected: expected.clone(), seen });
                    }
                    seen
                }
                None => Digest::sha256(&bytes),
            };
            Ok(RawManifest { bytes, digest, media_type })
        })
        .await
    }

    /// The list of manifests that refer to `digest` (an index); `None` when the registry keeps no such list.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn referrers(
        &self,
        reference: &Reference,
        digest: &Digest,
        max: u64,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        if let Some(list) = self.config.companions.referrers(digest) {
            return Ok(list);
        }
        let what = format!("referrers of {digest}");
        let path = format!("referrers/{digest}");
        let asked = self.of_any(reference, async |endpoint| {
            let question = Question { path: &path, accept: media::OCI_INDEX, what: &what, from: 0 };
            let body = self.small(endpoint, &question, max).await?;
            // 404 is what the specification wants of registries that know no referrers; older ones have other words for it.
            let status = if matches!(body.status, 400 | 405 | 501) { 404 } else { body.status };
            check_status(status, &endpoint.host, &what)?;
            Ok(body.bytes)
        });
        let list = match asked.await {
            Ok(bytes) => Some(bytes),
            Err(RegistryError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        self.config.companions.note_referrers(digest, list.as_deref());
        Ok(list)
    }

    /// Streams a blob to `sink`, piece by piece; the caller checks digest and size. A transfer that breaks off goes on from
    /// there, at another place of the image if need be.
    ///
    /// # Errors
    /// When the registry fails or `sink` does.
    pub async fn blob<E: From<RegistryError>>(
        &self,
        reference: &Reference,
        digest: &Digest,
        mut sink: impl AsyncFnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let companions = &self.config.companions;
        if let Some(bytes) = companions.blob(digest) {
            return sink(bytes.into()).await;
        }
        if !companions.are_noted() {
            return self.asked_blob(reference, digest, &mut sink).await;
        }
        let mut noted = Vec::new();
        let copying = async |piece: Bytes| {
            if noted.len() <= NOTED {
                noted.extend_from_slice(&piece);
            }
            sink(piece).await
        };
        self.asked_blob(reference, digest, copying).await?;
        if noted.len() <= NOTED {
            companions.note_blob(digest, noted);
        }
        Ok(())
    }

    /// Bytes of layers that were read of the node's copy so far.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }
}

impl RegistryConfig {
    /// Hosts spoken to in plain HTTP.
    fn insecure_hosts(&self) -> Vec<String> {
        let rules = self.registries.registry.iter();
        let said = rules.flat_map(|rule| {
            let itself = rule.location.as_ref().or(rule.prefix.as_ref()).filter(|_| rule.insecure);
            let mirrors = rule.mirror.iter().filter(|mirror| mirror.insecure).map(|mirror| &mirror.location);
            itself.into_iter().chain(mirrors)
        });
        let hosts = said.map(|place| place.split('/').next().unwrap_or(place).to_owned());
        hosts.chain(self.insecure_registries.iter().cloned()).collect()
    }
}

fn no_place(reference: &Reference) -> RegistryError {
    RegistryError::Reference {
        reference: reference.to_string(),
        why: "the settings give it no location of the form host/repository".to_owned(),
    }
}
