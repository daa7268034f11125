//! The calls themselves: switches, limits, and what an answer is made of. [`crate::rest`] and [`crate::rpc`] only carry them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kata_cc_attester::measure::Event;
use kata_cc_image::crypto::CryptoError;
use kata_cc_kbs_protocol::{ResourcePath, ResourceUri};
use serde_json::json;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::guest::{Guest, GuestError, Measured};
use crate::keyprovider::{self, KeyProviderError};
use crate::limits::RateLimit;
use crate::sealed::{self, ResourceSource, SealedError};
use crate::volume::{KeySource, Volume, VolumeError};

/// Most bytes of runtime data: the TEEs' field.
const MAX_RUNTIME_DATA: usize = 64;

/// Most bytes of a file with a key of a volume.
const MAX_KEY_FILE: u64 = 1 << 20;

/// Which of the APIs are served. Names as of api-server-rest: `resource`, `attestation`, `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// `/aa/…` and the attestation agent's service.
    pub attestation: bool,
    /// `/cdh/…` and the confidential data hub's services.
    pub resource: bool,
}

impl Features {
    /// Everything.
    pub const ALL: Self = Self { attestation: true, resource: true };

    /// What is served when nothing is said, as by api-server-rest and Kata's agent: whoever has a token of `/aa/token` is this
    /// guest for the key broker, so that has to be asked for.
    pub const DEFAULT: Self = Self { attestation: false, resource: true };

    /// Reads the name; `None` when it is not known.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let (attestation, resource) = match name {
            "all" => (true, true),
            "attestation" => (true, false),
            "resource" => (false, true),
            "none" => (false, false),
            _ => return None,
        };
        Some(Self { attestation, resource })
    }

    /// Name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.attestation, self.resource) {
            (true, true) => "all",
            (true, false) => "attestation",
            (false, true) => "resource",
            (false, false) => "none",
        }
    }
}

/// How the APIs behave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which are served.
    pub features: Features,
    /// What sealed secrets must be.
    pub sealed: sealed::Settings,
    /// Below which folder files lie that hold keys of volumes.
    pub key_files: PathBuf,
}

impl Settings {
    /// The features that CoCo serves when nothing is said: resources. Sealed secrets must be signed, keys of their signers, and files
    /// with keys of volumes, may lie in `credentials`.
    #[must_use]
    pub fn new(credentials: PathBuf) -> Self {
        let key_files = credentials.clone();
        let sealed = sealed::Settings { credentials, allow_unsigned: false };
        Self { features: Features::DEFAULT, sealed, key_files }
    }
}

/// Why a call was not answered.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The feature is switched off.
    #[error("{0} Feature Not Enabled")]
    Disabled(&'static str),
    /// Too many calls.
    #[error("too many calls: try again in a second")]
    Busy,
    /// What was given is out of form.
    #[error("{0}")]
    Input(String),
    /// The guest said no.
    #[error(transparent)]
    Guest(GuestError),
    /// A sealed secret was not opened.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// A key of an image was not opened or wrapped.
    #[error(transparent)]
    Key(#[from] KeyProviderError),
    /// A volume is not mounted.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What the protocol has and this guest has not.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl From<GuestError> for ApiError {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Input(why) => Self::Input(why),
            other => Self::Guest(other),
        }
    }
}

impl From<CryptoError> for ApiError {
    fn from(error: CryptoError) -> Self {
        Self::Key(error.into())
    }
}

/// The calls.
pub struct GuestApi {
    guest: Arc<dyn Guest>,
    settings: Settings,
    /// Of all calls.
    calls: RateLimit,
    /// Of those that make the security processor or the key broker work: they have others to serve.
    costly: RateLimit,
}

impl std::fmt::Debug for GuestApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestApi").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl GuestApi {
    /// The API of a guest.
    #[must_use]
    pub fn new(guest: Arc<dyn Guest>, settings: Settings) -> Self {
        let (calls, costly) = (RateLimit::new(400, 200), RateLimit::new(32, 8));
        Self { guest, settings, calls, costly }
    }

    /// As [`Self::new`], with limits: of all calls, and of those that ask the security processor or the event log.
    #[must_use]
    pub fn with_limits(
        guest: Arc<dyn Guest>,
        settings: Settings,
        calls: RateLimit,
        costly: RateLimit,
    ) -> Self {
        Self { guest, settings, calls, costly }
    }

    /// Which features are served.
    #[must_use]
    pub fn features(&self) -> Features {
        self.settings.features
    }

    /// Name of the TEE.
    #[must_use]
    pub fn tee(&self) -> &str {
        self.guest.tee()
    }

    /// Names of the TEEs of devices.
    #[must_use]
    pub fn additional_tees(&self) -> Vec<String> {
        self.guest.additional_tees()
    }

    fn attestation(&self) -> Result<(), ApiError> {
        if !self.settings.features.attestation {
            return Err(ApiError::Disabled("Attestation"));
        }
        self.pass()
    }

    fn for_resources(&self) -> Result<(), ApiError> {
        if !self.settings.features.resource {
            return Err(ApiError::Disabled("Resource"));
        }
        self.pass()
    }

    fn pass(&self) -> Result<(), ApiError> {
        if self.calls.take(Instant::now()) { Ok(()) } else { Err(ApiError::Busy) }
    }

    fn costly(&self) -> Result<(), ApiError> {
        if self.costly.take(Instant::now()) { Ok(()) } else { Err(ApiError::Busy) }
    }

    /// Evidence bound to `runtime_data`, as JSON bytes.
    ///
    /// # Errors
    /// When the data is too long, the feature off, or the guest has no evidence.
    pub async fn evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, ApiError> {
        self.attestation()?;
        let report_data = report_data(runtime_data)?;
        self.costly()?;
        Ok(self.guest.evidence(report_data).await?.to_string().into_bytes())
    }

    /// Evidence of devices, as JSON bytes; empty where there are none.
    ///
    /// # Errors
    /// As [`Self::evidence`].
    pub async fn additional_evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, ApiError> {
        self.attestation()?;
        let report_data = report_data(runtime_data)?;
        self.costly()?;
        let evidence = self.guest.additional_evidence(report_data).await?;
        Ok(evidence.map(|value| value.to_string().into_bytes()).unwrap_or_default())
    }

    /// A token: of type `kbs` `{"token": …, "tee_keypair": PEM}`, of type `coco_as` the JWT alone.
    ///
    /// # Errors
    /// When the type is another, the feature off, or key broker or attestation service refuse.
    pub async fn token(&self, token_type: &str) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        self.attestation()?;
        match token_type {
            "kbs" => {}
            "coco_as" => {
                let token = self.guest.service_token().await?;
                return Ok(Zeroizing::new(token.as_bytes().to_vec()));
            }
            other => {
                let seen: String = other.chars().take(32).collect();
                return Err(ApiError::Input(format!(
                    "token type {seen:?} is not known, known are kbs and coco_as"
                )));
            }
        }
        let token = self.guest.token().await?;
        let json = json!({"token": token.token.as_str(), "tee_keypair": token.key_pem.as_str()});
        Ok(zeroized(json))
    }

    /// Records an event.
    ///
    /// # Errors
    /// When it is out of form, too much, or the feature is off.
    pub async fn record(&self, domain: &str, operation: &str, content: &str) -> Result<Measured, ApiError> {
        self.attestation()?;
        let event =
            Event::new(domain, operation, content).map_err(|error| ApiError::Input(error.to_string()))?;
        self.costly()?;
        Ok(self.guest.record(&event).await?)
    }

    /// Whether `digest` is what the guest was launched with: binding happens at the launch, and only there.
    ///
    /// # Errors
    /// When it is not, or it is not known.
    pub fn bind_init_data(&self, digest: &[u8]) -> Result<(), ApiError> {
        self.attestation()?;
        let Some(field) = self.guest.init_data_field() else {
            return Err(ApiError::Unsupported("init-data is bound when the guest is launched, not later"));
        };
        // Cut or padded with zeros to the TEE's field, as at the launch.
        let padded = digest.iter().copied().chain(std::iter::repeat(0)).take(field.len());
        if digest.is_empty() || !padded.eq(field.iter().copied()) {
            return Err(ApiError::Input("the guest was launched with other init-data".to_owned()));
        }
        Ok(())
    }

    /// `PullImage`: the image, into the folder `rootfs` below `bundle`; gives the digest of its manifest.
    ///
    /// # Errors
    /// When the feature is off, the folder is none for images, or the image is not pulled.
    pub async fn pull_image(&self, image: &str, bundle: &str) -> Result<String, ApiError> {
        self.for_resources()?;
        self.costly()?;
        Ok(self.guest.pull_image(image, Path::new(bundle)).await?)
    }

    /// `SecureMount`: the volume that is asked for, to where it is asked to be. The agent policy is asked before its key is fetched.
    ///
    /// # Errors
    /// When the feature is off, the request out of form or not supported, the policy against it, the key not to be had, or the
    /// volume not opened or made.
    pub async fn secure_mount(
        &self,
        kind: &str,
        options: &HashMap<String, String>,
        flags: &[String],
        mount_point: &str,
    ) -> Result<(), ApiError> {
        self.for_resources()?;
        let volume = Volume::parse(kind, options, flags, mount_point)?;
        self.costly()?;
        self.guest.may_mount(&volume).await?;
        let key = match &volume.key {
            None => None,
            Some(KeySource::Sealed(sealed)) => Some(self.unseal_for_agent(sealed.as_bytes()).await?),
            Some(KeySource::Resource(path)) => Some(self.guest.resource(path).await?),
            Some(KeySource::File(path)) => Some(key_file(&self.settings.key_files, path).await?),
        };
        Ok(self.guest.secure_mount(&volume, key).await?)
    }

    /// A resource by its path `repository/type/tag`, or URI `kbs:///repository/type/tag`.
    ///
    /// # Errors
    /// When it is neither, the feature off, or the key broker refuses.
    pub async fn resource(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        self.for_resources()?;
        let path = resource_path(name).map_err(ApiError::Input)?;
        Ok(self.guest.resource(&path).await?)
    }

    /// Opens a sealed secret that somebody in the guest holds.
    ///
    /// # Errors
    /// [`ApiError::Sealed`] says why not.
    pub async fn unseal(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        self.for_resources()?;
        Ok(self.unseal_for_agent(sealed).await?)
    }

    /// As [`Self::unseal`], whatever is switched on: for the agent itself.
    ///
    /// # Errors
    /// [`SealedError`] says why not.
    pub async fn unseal_for_agent(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealedError> {
        sealed::unseal(sealed, &self.settings.sealed, self).await
    }

    /// `UnWrapKey`: the private options of an encrypted layer.
    ///
    /// # Errors
    /// When the packet is out of form or its key is not released.
    pub async fn unwrap_key(&self, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        self.for_resources()?;
        Ok(keyprovider::unwrap(input, self).await?)
    }

    /// `WrapKey`: a packet for private options.
    ///
    /// # Errors
    /// When the parameters are out of form or the key is not released.
    pub async fn wrap_key(&self, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        self.for_resources()?;
        Ok(keyprovider::wrap(input, self).await?)
    }
}

#[async_trait::async_trait]
impl ResourceSource for GuestApi {
    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, String> {
        self.guest.resource(path).await.map_err(|error| error.to_string())
    }
}

/// A path in either form. CoCo's clients also write `kbs://` before an absolute path.
pub(crate) fn resource_path(name: &str) -> Result<ResourcePath, String> {
    if name.contains("://") {
        return name.parse::<ResourceUri>().map(|uri| uri.path).map_err(|error| error.to_string());
    }
    name.parse().map_err(|error: kata_cc_kbs_protocol::resource::ResourceError| error.to_string())
}

/// A file with a key: below `folder`, also when links on the way were followed.
async fn key_file(folder: &Path, path: &Path) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    use tokio::io::AsyncReadExt as _;

    let failed = |why: String| ApiError::Input(format!("key file {}: {why}", path.display()));
    let told = |error: std::io::Error| failed(error.to_string());
    if !path.starts_with(folder) {
        return Err(failed(format!("files with keys are taken from below {} only", folder.display())));
    }
    let real = tokio::fs::canonicalize(path).await.map_err(told)?;
    if !real.starts_with(tokio::fs::canonicalize(folder).await.map_err(told)?) {
        return Err(failed("it leads out of its folder".to_owned()));
    }
    let file = tokio::fs::File::open(&real).await.map_err(told)?;
    let seen = file.metadata().await.map_err(told)?;
    if !seen.is_file() || seen.len() > MAX_KEY_FILE {
        return Err(failed(format!("it is no file, or has more than {MAX_KEY_FILE} bytes")));
    }
    // Room from the start: a buffer that grows leaves copies behind.
    let room = usize::try_from(MAX_KEY_FILE.min(seen.len()) + 1).unwrap_or(0);
    let mut key = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_KEY_FILE).read_to_end(&mut key).await.map_err(told)?;
    Ok(key)
}

fn report_data(runtime_data: &[u8]) -> Result<[u8; 64], ApiError> {
    let mut field = [0; MAX_RUNTIME_DATA];
    let seen = runtime_data.len();
    let part = field.get_mut(..seen).ok_or_else(|| {
        ApiError::Input(format!("runtime data has {seen} bytes, at most {MAX_RUNTIME_DATA} fit the evidence"))
    })?;
    part.copy_from_slice(runtime_data);
    Ok(field)
}

/// JSON bytes of a value that holds secrets; the value's own texts are wiped too.
pub(crate) fn zeroized(mut value: serde_json::Value) -> Zeroizing<Vec<u8>> {
    fn length(value: &serde_json::Value) -> usize {
        value.as_object().map_or(0, |members| {
            members.values().map(|v| v.as_str().map_or(0, |text| text.len() * 2)).sum::<usize>()
        })
    }
    // Room from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length(&value) + 256));
    // Writing to memory does not fail, and a value has no other errors.
    let _ = serde_json::to_writer(&mut *bytes, &value);
    if let Some(members) = value.as_object_mut() {
        for text in members.values_mut() {
            if let serde_json::Value::String(text) = text {
                zeroize::Zeroize::zeroize(text);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_the_names_of_the_rest_server() {
        for name in ["all", "attestation", "resource", "none"] {
            assert_eq!(Features::from_name(name).map(Features::name), Some(name));
        }
        assert_eq!(Features::from_name("ALL"), None);
    }

    #[test]
    fn runtime_data_is_padded_and_not_cut() {
        assert_eq!(report_data(b"ab").unwrap()[..3], *b"ab\0");
        assert_eq!(report_data(&[7; 64]).unwrap(), [7; 64]);
        assert!(report_data(&[7; 65]).unwrap_err().to_string().contains("65 bytes"));
    }

    #[tokio::test]
    async fn a_key_file_lies_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, outside) = (dir.path().join("keys"), dir.path().join("outside"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("good"), b"key\n").unwrap();
        std::fs::write(&outside, b"secret").unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("link")).unwrap();
        std::fs::File::create(folder.join("huge")).unwrap().set_len(MAX_KEY_FILE + 1).unwrap();
        assert_eq!(**key_file(&folder, &folder.join("good")).await.unwrap(), *b"key\n");
        for (path, reason) in [
            (outside.clone(), "from below"),
            (folder.join("link"), "leads out"),
            (folder.join("../outside"), "leads out"),
            (folder.join("huge"), "more than"),
            (folder.clone(), "is no file"),
            (folder.join("none"), "No such file"),
        ] {
            let words = key_file(&folder, &path).await.unwrap_err().to_string();
            assert!(words.contains(reason), "{path:?}: {words}");
        }
    }

    #[test]
    fn a_resource_is_named_either_way() {
        for name in ["a/b/c", "kbs:///a/b/c", "kbs://host/a/b/c"] {
            assert_eq!(resource_path(name).unwrap().to_string(), "a/b/c", "{name}");
        }
        for name in ["", "a/b", "../b/c", "http://x/a/b/c", "kbs:///a/b"] {
            assert!(resource_path(name).is_err(), "{name}");
        }
    }
}
