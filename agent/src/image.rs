//! Glue to image-rs: the storage driver `image_guest_pull`.
//!
//! The image is pulled into a file system of its own (encrypted scratch space, else memory) below the container's
//! bundle. What the host's configuration leaves open (program, environment, folder, user) comes from the image; the
//! policy is then asked whether what is to run is what the image says (see [`crate::gate`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_cc_agent_protocol::agent::{Storage, StringUser};
use kata_cc_agent_protocol::oci;
use kata_cc_image::{
    BrokerKeys, ClientConfig, DockerAuthConfig, ImageClient, KeyProvider, NoKeys, Progress, PullTarget,
    PulledImage, RunningTier, Scratch,
};
use thiserror::Error;
use tracing::{debug, info};

use crate::confidential::{Broker, Settings};
use crate::config::Tee;
use crate::container::spec;
use crate::measure::Measurements;
use crate::stage::users;

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
    /// It was pulled and could not be recorded.
    #[error("image {image} does not run: it cannot be recorded in the event log, {source}")]
    NotMeasured {
        /// Reference.
        image: String,
        /// Why not.
        source: kata_cc_attester::measure::LogError,
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
        // The search path that runtimes write where they were told of none says nothing: the image's own holds.
        if config.env().iter().flatten().any(|e| e.starts_with("PATH=")) {
            process.Env.retain(|e| e != RUNTIMES_PATH);
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

/// `PATH` that containerd and docker give to a container that brings none.
const RUNTIMES_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Pulled {
    /// What the policy is asked about a completed process: what the image says, and what is to run. `None` for the pause
    /// program: it is the agent's own, and [`Pulled::complete`] has overwritten whatever the host said of it.
    pub(crate) fn question(
        &self,
        container: &str,
        reference: &str,
        process: &oci::Process,
        names: Option<&StringUser>,
    ) -> Option<serde_json::Value> {
        let image = self.image.as_ref()?;
        let config = image.config.config().clone().unwrap_or_default();
        let args: Vec<&String> =
            [config.entrypoint(), config.cmd()].into_iter().flatten().flatten().collect();
        let cwd = config.working_dir().clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "/".to_owned());
        let named = config.user().clone().unwrap_or_default();
        // A user that the image does not know has no numbers, and none are right.
        let ids = users::resolve_below(&self.rootfs, &named).ok();
        let user = process.User.clone().unwrap_or_default();
        Some(serde_json::json!({
            "container_id": container,
            "image": {
                "reference": reference,
                "manifest_digest": image.manifest_digest.to_string(),
                "args": args,
                "env": config.env().clone().unwrap_or_default(),
                "cwd": cwd,
                "user": named,
                "uid": ids.as_ref().map(|i| i.uid),
                "gid": ids.as_ref().map(|i| i.gid),
                "groups": ids.map(|i| i.groups).unwrap_or_default(),
            },
            "process": {
                "Args": process.Args,
                "Env": process.Env,
                "Cwd": process.Cwd,
                "User": {
                    "Username": spec::user_name(process, names),
                    "UID": user.UID,
                    "GID": user.GID,
                    "AdditionalGids": user.AdditionalGids,
                },
            },
        }))
    }
}

/// Pulls images.
#[derive(Debug)]
pub(crate) struct Images {
    settings: Settings,
    broker: Option<Broker>,
    tee: Tee,
    proxy: Option<String>,
    measurements: Arc<Measurements>,
    scratch: tokio::sync::OnceCell<Scratch>,
}

/// Kata's name for the sandbox container's image, which is not pulled: the agent is that program.
const PAUSE: &str = "pause";
/// The scratch disk.
const SCRATCH: &str = "/dev/vdb";

impl Images {
    /// With the settings of the init-data.
    pub(crate) fn new(
        settings: Settings,
        broker: Option<Broker>,
        tee: Tee,
        proxy: Option<String>,
        measurements: Arc<Measurements>,
    ) -> Self {
        Self { settings, broker, tee, proxy, measurements, scratch: tokio::sync::OnceCell::new() }
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
                if let Err(source) =
                    self.measurements.pulled(reference, &image.manifest_digest.to_string()).await
                {
                    let _ = fs::remove_dir_all(&base);
                    return Err(PullError::NotMeasured { image: reference.to_owned(), source });
                }
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
            allowed: image.allowed.clone(),
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
                let made = prefer_disk(memory_size(), disk_size(), |disk_wanted, size| {
                    Scratch::setup(disk_wanted.then_some(disk), dir, size)
                });
                if let Ok(scratch) = &made {
                    info!(encrypted_disk = scratch.has_disk(), "space for images");
                }
                made.map_err(std::io::Error::other)
            })
            .await
            .map_err(std::io::Error::other)?
        });
        made.await.map(|s| s.dir().to_owned()).map_err(PullError::Space)
    }
}

/// Sets up space with the disk of `disk_size` bytes, else in memory alone.
///
/// Why a disk that fails does not end the guest, in no tier: nothing can reach the host that way. Swap header
/// and pages are written to the dm-crypt device, never to the disk itself, so each failing step (opening, keying, header,
/// swapon) leaves a disk without plaintext, and the tmpfs that follows keeps to the
/// guest's memory, which the TEE encrypts. A host that breaks the disk on purpose gains what it has anyhow: it can stop the
/// guest. What is lost is room, and that must not be silent: it is an error with its reason, and the tmpfs is no larger
/// than memory, so that an image which no longer fits fails as "no space left on device", not by a guest out of memory. It
/// is no `refused` stage: no decision was taken, and the start goes on.
fn prefer_disk<T, E: std::error::Error>(
    memory_size: u64,
    disk_size: u64,
    setup: impl Fn(bool, u64) -> Result<T, E>,
) -> Result<T, E> {
    setup(true, memory_size.saturating_add(disk_size)).or_else(|e| {
        tracing::error!(
            reason = %chain(&e),
            lost_mib = disk_size >> 20,
            left_mib = memory_size >> 20,
            what_to_do = "images that do not fit in memory will not be pulled: give the pod more memory, or see why the \
                          scratch disk fails (dm-crypt in the guest's kernel, the host's disk)",
            "the scratch disk failed: images go to memory alone"
        );
        setup(false, memory_size)
    })
}

/// Memory, less what the guest needs itself.
fn memory_size() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|t| {
        let line = t.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    memory.unwrap_or(256 << 10).saturating_mul(1024) / 10 * 8
}

fn disk_size() -> u64 {
    let sectors = fs::read_to_string("/sys/class/block/vdb/size");
    let sectors: u64 = sectors.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    sectors.saturating_mul(512)
}

#[cfg(test)]
mod space_tests {
    use std::cell::RefCell;

    use super::*;

    const MEMORY: u64 = 100 << 20;
    const DISK: u64 = 4 << 30;

    fn tried(disk_works: bool) -> Vec<(bool, u64)> {
        let tried = RefCell::new(Vec::new());
        let made = prefer_disk(MEMORY, DISK, |disk, size| {
            tried.borrow_mut().push((disk, size));
            if disk && !disk_works { Err(std::io::Error::other("no dm-crypt")) } else { Ok(()) }
        });
        made.unwrap();
        tried.into_inner()
    }

    #[test]
    fn without_its_disk_the_space_is_no_larger_than_memory() {
        assert_eq!(tried(true), [(true, MEMORY + DISK)]);
        assert_eq!(tried(false), [(true, MEMORY + DISK), (false, MEMORY)]);
    }

    #[test]
    fn a_disk_that_fails_is_an_error_with_its_reason_and_no_refusal() {
        use tracing_subscriber::fmt::MakeWriter;
        #[derive(Clone, Default)]
        struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        impl MakeWriter<'_> for Lines {
            type Writer = Self;
            fn make_writer(&self) -> Self {
                self.clone()
            }
        }
        let lines = Lines::default();
        let log = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(log, || tried(false));
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("ERROR") && text.contains("reason=no dm-crypt") && text.contains("lost_mib=4096")
        );
        assert!(!text.contains("stage="), "{text}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An image with this configuration, pulled to `rootfs`.
    pub(crate) fn pulled(config: &serde_json::Value, rootfs: &Path) -> Pulled {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let image = PulledImage {
            manifest_digest: kata_cc_image::digest::Digest::sha256(b"manifest"),
            index_digest: None,
            config: serde_json::from_value(config).unwrap(),
            rootfs: rootfs.to_owned(),
            layers: Vec::new(),
            encrypted: true,
            required_tier: None,
            bytes: 0,
            unpacked_bytes: 0,
        };
        Pulled { rootfs: rootfs.to_owned(), image: Some(image) }
    }

    /// The pause program.
    pub(crate) fn pause() -> Pulled {
        Pulled { rootfs: PathBuf::from("/nowhere"), image: None }
    }

    #[test]
    fn the_search_path_of_runtimes_gives_way_to_the_images_own() {
        let image =
            |env: &[&str]| pulled(&serde_json::json!({"Env": env, "Cmd": ["x"]}), Path::new("/nowhere"));
        let mut spec = oci::Spec::new();
        spec.Process.mut_or_insert_default().Env = vec![RUNTIMES_PATH.to_owned()];
        image(&[]).complete(&mut spec);
        assert_eq!(spec.Process.Env, [RUNTIMES_PATH]);
        image(&["PATH=/bin"]).complete(&mut spec);
        assert_eq!(spec.Process.Env, ["PATH=/bin"]);
    }
}
