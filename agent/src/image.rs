//! Glue to image-rs: the storage driver `image_guest_pull`.
//!
//! The image is pulled into a file system of its own (encrypted scratch space, else memory) below the container's
//! bundle. What the host's configuration leaves open (program, environment, folder, user) comes from the image; a
//! policy decides whether it may leave it open, and whether what it says is right.

use std::fs;
use std::path::{Path, PathBuf};

use kata_cc_agent_protocol::agent::Storage;
use kata_cc_agent_protocol::oci;
use kata_cc_image::{
    BrokerKeys, ClientConfig, DockerAuthConfig, ImageClient, KeyProvider, NoKeys, Progress, PullTarget,
    PulledImage, RunningTier, Scratch,
};
use thiserror::Error;
use tracing::{debug, info};

use crate::confidential::{Broker, Settings};
use crate::config::Tee;

/// Why an image was not pulled.
#[derive(Debug, Error)]
pub(crate) enum PullError {
    /// image-rs says why.
    #[error("image {image} was not pulled: {reason}")]
    Refused {
        /// Reference.
        image: String,
        /// The whole chain of causes.
        reason: String,
    },
    /// A system call failed.
    #[error("space for the image: {0}")]
    Space(std::io::Error),
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let part = e.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = e.source();
    }
    text
}

/// What a pull gave.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// Root file system.
    pub(crate) rootfs: PathBuf,
    /// `None` for the pause program.
    image: Option<PulledImage>,
}

impl Pulled {
    /// Fills in from the image what the host's configuration leaves open.
    pub(crate) fn complete(&self, spec: &mut oci::Spec) {
        let process = spec.Process.mut_or_insert_default();
        let Some(image) = &self.image else {
            // Kata's rule: the guest's own pause program takes the place of the host's.
            process.Args = ["/pause", "pause"].map(str::to_owned).to_vec();
            process.Env.clear();
            process.Cwd = "/".to_owned();
            let mut program = oci::Mount::new();
            program.destination = "/pause".to_owned();
            program.type_ = "bind".to_owned();
            program.source = std::env::current_exe().unwrap_or_default().display().to_string();
            program.options = ["bind", "ro"].map(str::to_owned).to_vec();
            spec.Mounts.push(program);
            return;
        };
        let Some(config) = image.config.config() else { return };
        if process.Args.is_empty() {
            process.Args = config.entrypoint().clone().unwrap_or_default();
            process.Args.extend(config.cmd().clone().unwrap_or_default());
            let user = config.user().clone().unwrap_or_default();
            let ids = process.User.mut_or_insert_default();
            if ids.UID == 0 && ids.GID == 0 && ids.Username.is_empty() {
                ids.Username = user;
            }
        }
        // The host's values win one by one: it may add to the environment without repeating the image's.
        for entry in config.env().iter().flatten() {
            let name = entry.split('=').next().unwrap_or_default();
            let set = |e: &String| e.split('=').next() == Some(name);
            if !process.Env.iter().any(set) {
                process.Env.push(entry.clone());
            }
        }
        if process.Cwd.is_empty() {
            process.Cwd =
                config.working_dir().clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "/".to_owned());
        }
    }
}

/// Pulls images.
#[derive(Debug)]
pub(crate) struct Images {
    settings: Settings,
    broker: Option<Broker>,
    tee: Tee,
    proxy: Option<String>,
    scratch: tokio::sync::OnceCell<Scratch>,
}

/// Kata's name for the sandbox container's image, which is not pulled: the agent is that program.
const PAUSE: &str = "pause";
/// The scratch disk.
const SCRATCH: &str = "/dev/vdb";

impl Images {
    /// With the settings of the init-data.
    pub(crate) fn new(settings: Settings, broker: Option<Broker>, tee: Tee, proxy: Option<String>) -> Self {
        Self { settings, broker, tee, proxy, scratch: tokio::sync::OnceCell::new() }
    }

    fn tier(&self) -> RunningTier {
        match self.tee {
            Tee::None => RunningTier::None,
            Tee::SimSnp => RunningTier::SimSnp { allowed: self.settings.cdh.image.allow_simulated_tee },
            Tee::Snp => RunningTier::Snp,
            Tee::Tdx => RunningTier::Tdx,
        }
    }

    async fn auth(&self) -> Result<Option<DockerAuthConfig>, String> {
        let uri = self.settings.cdh.image.authenticated_registry_credentials_uri.as_deref();
        let (Some(uri), Some(broker)) = (uri, &self.broker) else {
            return Ok(None);
        };
        let bytes = broker.resource(uri).await.map_err(|e| chain(&*e))?;
        // The error of the parser could repeat credentials: it is not passed on.
        serde_json::from_slice(&bytes).map(Some).map_err(|_| format!("{uri} is no docker configuration"))
    }

    /// Pulls into `bundle`.
    pub(crate) async fn pull(&self, storage: &Storage, bundle: &Path) -> Result<Pulled, PullError> {
        let reference = storage.source.as_str();
        if reference == PAUSE {
            let rootfs = bundle.join(".pause");
            fs::create_dir_all(&rootfs).map_err(PullError::Space)?;
            return Ok(Pulled { rootfs, image: None });
        }
        let base = self.space().await?.join(bundle.file_name().unwrap_or_default());
        fs::create_dir_all(&base).map_err(PullError::Space)?;
        let pulled = self.pull_into(reference, &base).await;
        match pulled {
            Ok(image) => {
                info!(
                    stage = "pulled",
                    image = reference,
                    digest = %image.manifest_digest,
                    layers = image.layers.len() as u64,
                    bytes = image.bytes,
                    encrypted = image.encrypted,
                    "image pulled"
                );
                Ok(Pulled { rootfs: image.rootfs.clone(), image: Some(image) })
            }
            Err(reason) => {
                // Layers that did not make an image are only in the way.
                let _ = fs::remove_dir_all(&base);
                tracing::error!(
                    stage = "refused",
                    by = "image",
                    image = reference,
                    reason,
                    expected = "an image whose digests match, whose keys the key broker releases, and whose tier this guest has",
                    seen = reason,
                    what_to_do = "see the reason; `kata-cc image inspect` shows what the image demands",
                    "image not pulled"
                );
                Err(PullError::Refused { image: reference.to_owned(), reason })
            }
        }
    }

    async fn pull_into(&self, reference: &str, base: &Path) -> Result<PulledImage, String> {
        let image = &self.settings.cdh.image;
        let config = ClientConfig {
            proxy: self.proxy.clone(),
            extra_roots_pem: image.extra_root_certificates.iter().map(|c| c.clone().into_bytes()).collect(),
            insecure_registries: image.insecure_registries.clone(),
            auth: self.auth().await?,
            running_tier: Some(self.tier()),
            ..ClientConfig::default()
        };
        let client = ImageClient::new(config).map_err(|e| chain(&e))?;
        let work_dir = base.join("work");
        fs::create_dir_all(&work_dir).map_err(|e| e.to_string())?;
        let target = PullTarget { work_dir: work_dir.clone(), rootfs_dir: base.join("root") };
        let keys: Box<dyn KeyProvider> = match &self.broker {
            Some(broker) => Box::new(BrokerKeys(broker.clone())),
            None => Box::new(NoKeys),
        };
        let reference = reference.to_owned();
        let runtime = tokio::runtime::Handle::current();
        // Unpacking keeps a thread busy: it gets one of its own, and the ttrpc threads stay free.
        let pulling = tokio::task::spawn_blocking(move || {
            let progress = |p: Progress| debug!(progress = ?p, "pulling");
            runtime.block_on(client.pull(&reference, &target, &*keys, &progress)).map_err(|e| chain(&e))
        });
        let pulled = pulling.await.map_err(|e| chain(&e)).and_then(|r| r);
        // What is left there is memory that the container could use.
        let _ = fs::remove_dir_all(&work_dir);
        pulled
    }

    /// The space for images, made at the first pull: encrypted swap over the scratch disk, else memory alone.
    async fn space(&self) -> Result<PathBuf, PullError> {
        let made = self.scratch.get_or_try_init(|| async {
            tokio::task::spawn_blocking(|| {
                let dir = Path::new(crate::paths::IMAGES);
                let disk = Path::new(SCRATCH);
                match Scratch::setup(Some(disk), dir, scratch_size()) {
                    Ok(scratch) => {
                        info!(encrypted_disk = scratch.has_disk(), "space for images");
                        Ok(scratch)
                    }
                    // Memory keeps what the disk would have: less room, not less secret.
                    Err(e) => {
                        tracing::warn!(error = %chain(&e), "no scratch disk: images go to memory");
                        Scratch::setup(None, dir, scratch_size()).map_err(std::io::Error::other)
                    }
                }
            })
            .await
            .map_err(std::io::Error::other)?
        });
        made.await.map(|s| s.dir().to_owned()).map_err(PullError::Space)
    }
}

/// Memory and scratch disk, less what the guest needs itself.
fn scratch_size() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|t| {
        let line = t.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    let sectors = fs::read_to_string("/sys/class/block/vdb/size");
    let sectors: u64 = sectors.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let memory = memory.unwrap_or(256 << 10).saturating_mul(1024);
    (memory / 10 * 8).saturating_add(sectors.saturating_mul(512))
}
