//! Talks to a registry.
//!
//! oci-client does authentication, blob streams and pushes. Manifests are fetched here, since oci-client reads a body of any
//! length into memory and the sender of that body is not trusted (`docs/decisions/0005-image-registry.md`). Every manifest's digest is
//! computed from its bytes; a digest in the reference must be met. Plain HTTP is spoken only to
//! registries named in `insecure_registries`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use kata_cc_causes::causes;
use oci_client::Reference;
use oci_client::RegistryOperation;
use oci_client::client::{Certificate, CertificateEncoding, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio_util::bytes::Bytes;

use crate::digest::Digest;
use crate::media;

/// What can go wrong between here and the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The reference is none.
    #[error(
        "{reference:?} is no image reference: {why}; write [HOST[:PORT]/]NAME[:TAG][@DIGEST] in lower case"
    )]
    Reference {
        /// As given.
        reference: String,
        /// What is wrong.
        why: String,
    },
    /// Certificates, proxy or the like cannot be used.
    #[error("the registry client cannot be set up: {0}")]
    Setup(String),
    /// Wrong or missing credentials.
    #[error("registry {registry} refuses access to {what}: {why}; give credentials for it")]
    Unauthorized {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its words.
        why: String,
    },
    /// The registry does not have it.
    #[error("registry {registry} has no {what}")]
    NotFound {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Any other failure of the exchange.
    #[error("asking registry {registry} for {what} failed: {why}")]
    Transport {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
        /// What happened.
        why: String,
    },
    /// The body is longer than allowed.
    #[error("registry {registry} sends more than {max} bytes for {what}")]
    TooLarge {
        /// The registry's host.
        registry: String,
        /// What was asked for.
        what: String,
        /// The bound.
        max: u64,
    },
    /// The manifest's bytes do not have the digest asked for.
    #[error("the registry serves another manifest: asked for {expected}, got {seen}")]
    ManifestDigest {
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        seen: Digest,
    },
}

/// Credentials as Docker's `config.json` and containers' `auth.json` hold them.
#[derive(Clone, Default, Deserialize)]
pub struct DockerAuthConfig {
    /// Per registry host (a scheme and a path are ignored).
    #[serde(default)]
    pub auths: BTreeMap<String, DockerAuth>,
}

/// Credentials for one registry.
#[derive(Clone, Default, Deserialize)]
pub struct DockerAuth {
    /// Base64 of `user:password`.
    #[serde(default)]
    pub auth: Option<String>,
    /// User, where `auth` is absent.
    #[serde(default)]
    pub username: Option<String>,
    /// Password, where `auth` is absent.
    #[serde(default)]
    pub password: Option<String>,
    /// A bearer token used as it is.
    #[serde(default)]
    pub registrytoken: Option<String>,
}

impl fmt::Debug for DockerAuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.auths.keys()).finish()
    }
}

impl fmt::Debug for DockerAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DockerAuth(redacted)")
    }
}

impl DockerAuthConfig {
    fn for_registry(&self, registry: &str) -> RegistryAuth {
        let host = |key: &str| {
            let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
            rest.split('/').next().unwrap_or(rest).to_owned()
        };
        let same = |key: &str| {
            let host = host(key);
            host == registry || (host == "index.docker.io" && registry == "docker.io")
        };
        let Some((_, entry)) = self.auths.iter().find(|(key, _)| same(key)) else {
            return RegistryAuth::Anonymous;
        };
        if let Some(token) = &entry.registrytoken {
            return RegistryAuth::Bearer(token.clone());
        }
        if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
            return RegistryAuth::Basic(user.clone(), password.clone());
        }
        let decoded = entry.auth.as_ref().and_then(|text| STANDARD.decode(text.trim()).ok());
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        match text.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) => RegistryAuth::Basic(user.to_owned(), password.to_owned()),
            None => RegistryAuth::Anonymous,
        }
    }
}

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// HTTP proxy for everything.
    pub proxy: Option<String>,
    /// Certificates (PEM) trusted beside the system's.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// Registries (`host:port`) spoken to in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Credentials.
    pub auth: Option<DockerAuthConfig>,
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

/// An answer.
struct Body {
    status: u16,
    bytes: Vec<u8>,
    media_type: String,
}

/// A client of any number of registries.
pub struct Registry {
    client: oci_client::Client,
    http: reqwest::Client,
    config: RegistryConfig,
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
    /// When a certificate or the proxy cannot be used.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
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
        Ok(Self { client, http, config })
    }

    fn client_config(config: &RegistryConfig, no_roots: bool) -> oci_client::client::ClientConfig {
        let certificate =
            |pem: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() };
        oci_client::client::ClientConfig {
            protocol: ClientProtocol::HttpsExcept(config.insecure_registries.clone()),
            extra_root_certificates: config.extra_roots_pem.iter().map(certificate).collect(),
            // A PEM text without certificates: "these roots only, and there are none".
            tls_certs_only: if no_roots { vec![certificate(&Vec::new())] } else { Vec::new() },
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: "kata-cc",
            https_proxy: config.proxy.clone(),
            http_proxy: config.proxy.clone(),
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
            builder = builder.proxy(reqwest::Proxy::all(proxy)?);
        }
        builder.build()
    }

    fn auth_for(&self, reference: &Reference) -> RegistryAuth {
        let registry = reference.registry();
        self.config.auth.as_ref().map_or(RegistryAuth::Anonymous, |auth| auth.for_registry(registry))
    }

    async fn log_in(
        &self,
        reference: &Reference,
        operation: RegistryOperation,
    ) -> Result<Option<String>, RegistryError> {
        let auth = self.auth_for(reference);
        self.client
            .auth(reference, &auth, operation)
            .await
            .map_err(|error| explain(reference, "access", &error))
    }

    fn scheme(&self, registry: &str) -> &'static str {
        if self.config.insecure_registries.iter().any(|name| name == registry) { "http" } else { "https" }
    }

    /// Fetches the manifest or index `reference` names; a digest in it is checked.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn manifest(&self, reference: &Reference, max: u64) -> Result<RawManifest, RegistryError> {
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
        let Body { status, bytes, media_type } =
            self.get(reference, &format!("manifests/{name}"), &accept, &what, max).await?;
        check_status(status, reference.resolve_registry(), &what)?;
        let digest = match expected {
            Some(expected) => {
                let seen = expected.of_same_kind(&bytes);
                if seen != expected {
                    return Err(RegistryError::ManifestDigest { expected, seen });
                }
                seen
            }
            None => Digest::sha256(&bytes),
        };
        Ok(RawManifest { bytes, digest, media_type })
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
        let what = format!("referrers of {digest}");
        let body = self.get(reference, &format!("referrers/{digest}"), media::OCI_INDEX, &what, max).await?;
        // 404 is what the specification wants of registries that know no referrers; older ones have other words for it.
        if matches!(body.status, 400 | 404 | 405 | 501) {
            return Ok(None);
        }
        check_status(body.status, reference.resolve_registry(), &what)?;
        Ok(Some(body.bytes))
    }

    /// Asks for a path below the repository. The body is read when the answer is a good one.
    async fn get(
        &self,
        reference: &Reference,
        path: &str,
        accept: &str,
        what: &str,
        max: u64,
    ) -> Result<Body, RegistryError> {
        let token = self.log_in(reference, RegistryOperation::Pull).await?;
        let registry = reference.resolve_registry();
        let url = format!("{}://{registry}/v2/{}/{path}", self.scheme(registry), reference.repository());
        let mut request = self.http.get(&url).header("accept", accept);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        } else if let RegistryAuth::Basic(user, password) = self.auth_for(reference) {
            request = request.basic_auth(user, Some(password));
        }
        let fail = |error: reqwest::Error| RegistryError::Transport {
            registry: registry.to_owned(),
            what: what.to_owned(),
            why: causes(&error),
        };
        let mut response = request.send().await.map_err(fail)?;
        let status = response.status().as_u16();
        let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        let mut bytes = Vec::new();
        while (200..300).contains(&status)
            && let Some(piece) = response.chunk().await.map_err(fail)?
        {
            if (bytes.len() + piece.len()) as u64 > max {
                return Err(RegistryError::TooLarge {
                    registry: registry.to_owned(),
                    what: what.to_owned(),
                    max,
                });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Body { status, bytes, media_type })
    }

    /// Streams a blob to `sink`, piece by piece; the caller checks digest and size.
    ///
    /// # Errors
    /// When the registry fails or `sink` does.
    pub async fn blob<E: From<RegistryError>>(
        &self,
        reference: &Reference,
        digest: &Digest,
        mut sink: impl AsyncFnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        self.log_in(reference, RegistryOperation::Pull).await?;
        let what = format!("blob {digest}");
        let mut stream = self
            .client
            .pull_blob_stream(reference, digest.as_str())
            .await
            .map_err(|error| explain(reference, &what, &error))?
            .stream;
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => sink(piece).await?,
                // The client's own digest check speaks up at the very end; the caller's says the same with both digests.
                Err(error) if is_digest_error(&error) => break,
                Err(error) => {
                    return Err(RegistryError::Transport {
                        registry: reference.registry().to_owned(),
                        what,
                        why: causes(&error),
                    }
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// When the registry fails.
    pub async fn has_blob(&self, reference: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        self.log_in(reference, RegistryOperation::Push).await?;
        self.client
            .blob_exists(reference, digest.as_str())
            .await
            .map_err(|error| explain(reference, "blob", &error))
    }

    /// Uploads the file `path` as a blob.
    ///
    /// # Errors
    /// When the registry or the file fails.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        path: &Path,
        size: u64,
    ) -> Result<(), RegistryError> {
        self.log_in(reference, RegistryOperation::Push).await?;
        let file = tokio::fs::File::open(path).await.map_err(|error| RegistryError::Setup(causes(&error)))?;
        let stream = tokio_util::io::ReaderStream::with_capacity(file.take(size), 128 << 10)
            .map(|piece| piece.map_err(OciDistributionError::from));
        self.client
            .push_blob_stream(reference, stream, digest.as_str(), Some(size))
            .await
            .map(drop)
            .map_err(|error| explain(reference, "upload of a blob", &error))
    }

    /// Uploads a few bytes as a blob, unless the repository has it.
    ///
    /// # Errors
    /// When the registry fails.
    pub async fn push_bytes(&self, reference: &Reference, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let digest = Digest::sha256(bytes);
        if !self.has_blob(reference, &digest).await? {
            self.client
                .push_blob(reference, Bytes::copy_from_slice(bytes), digest.as_str())
                .await
                .map_err(|error| explain(reference, "upload of a blob", &error))?;
        }
        Ok(digest)
    }

    /// Uploads a manifest under the reference's tag (or digest).
    ///
    /// # Errors
    /// When the registry fails.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        bytes: Vec<u8>,
        media_type: &str,
    ) -> Result<(), RegistryError> {
        self.log_in(reference, RegistryOperation::Push).await?;
        let media_type = reqwest::header::HeaderValue::from_str(media_type)
            .map_err(|e| RegistryError::Setup(e.to_string()))?;
        self.client
            .push_manifest_raw(reference, bytes, media_type)
            .await
            .map(drop)
            .map_err(|error| explain(reference, "upload of the manifest", &error))
    }
}

fn is_digest_error(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<oci_client::errors::DigestError>())
}

fn check_status(status: u16, registry: &str, what: &str) -> Result<(), RegistryError> {
    let (registry, what) = (registry.to_owned(), what.to_owned());
    match status {
        200..=299 => Ok(()),
        401 | 403 => Err(RegistryError::Unauthorized { registry, what, why: format!("status {status}") }),
        404 => Err(RegistryError::NotFound { registry, what }),
        _ => Err(RegistryError::Transport { registry, what, why: format!("status {status}") }),
    }
}

fn explain(reference: &Reference, what: &str, error: &OciDistributionError) -> RegistryError {
    let registry = reference.registry().to_owned();
    let what = format!("{what} ({})", reference.repository());
    let why: String = causes(error).chars().take(500).collect();
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            RegistryError::Unauthorized { registry, what, why }
        }
        OciDistributionError::ServerError { code: 404, .. } => RegistryError::NotFound { registry, what },
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|e| is_absent(&e.code)) =>
        {
            RegistryError::NotFound { registry, what }
        }
        _ => RegistryError::Transport { registry, what, why },
    }
}

fn is_absent(code: &oci_client::errors::OciErrorCode) -> bool {
    use oci_client::errors::OciErrorCode as Code;
    matches!(code, Code::BlobUnknown | Code::ManifestUnknown | Code::NameUnknown)
}
