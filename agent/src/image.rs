//! Glue to image-rs: the storage driver `image_guest_pull`.
//!
//! The image is pulled into a file system of its own (encrypted scratch space, else memory) below the container's
//! bundle. What the host's configuration leaves open (program, environment, folder, user) comes from the image; the
//! policy is asked whether what is to run is what the image says (see [`crate::gate`]): once its configuration is known
//! ([`Images::examine`]), so that no key is asked for an image that may not run, and again when its files are there, which
//! alone tell the numbers of its user.

mod progress;
mod settings;
mod space;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use kata_cc_agent_protocol::agent::{Storage, StringUser};
use kata_cc_agent_protocol::oci;
use kata_cc_causes::causes;
use kata_cc_image::digest::Digest;
use kata_cc_image::{
    BrokerKeys, ClientConfig, Companions, DockerAuthConfig, ExaminedImage, ImageClient, ImageConfiguration,
    KeyProvider, NoKeys, Progress, PullTarget, PulledImage, RunningTier, Scratch,
};
use kata_cc_sealed_image::{ManifestError, SealManifest};
use thiserror::Error;
use tracing::{debug, info, warn};

use crate::confidential::{Broker, Settings};
use crate::config::Tee;
use crate::container::spec;
use crate::corruption::CorruptionWatch;
use crate::creating::GivenUp;
use crate::measure::Measurements;
use crate::memory;
use crate::sealed_image::{self, SealedError, Seals};
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
    /// The sealed image that the host offers is not what the seal says.
    #[error("image {image} does not run: {source}")]
    Sealed {
        /// Reference.
        image: String,
        /// Why.
        source: SealedError,
    },
    /// A system call failed.
    #[error("space for the image: {0}")]
    Space(std::io::Error),
}

/// What an image says is to run; `None` for the pause program.
#[derive(Debug, Clone)]
pub(crate) struct Program(Option<(Digest, ImageConfiguration)>);

/// An image whose configuration is known and of which no key was asked for yet.
pub(crate) struct Examined {
    reference: String,
    /// What it says is to run.
    pub(crate) program: Program,
    image: Option<(Arc<ImageClient>, ExaminedImage)>,
    /// With the host's copy of it.
    device: Option<String>,
}

/// What a pull gave.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// Root file system.
    pub(crate) rootfs: PathBuf,
    /// Digest of the manifest; `None` for the pause program.
    pub(crate) digest: Option<String>,
}

impl Program {
    /// Fills in from the image what the host's configuration leaves open.
    pub(crate) fn complete(&self, spec: &mut oci::Spec) {
        let process = spec.Process.mut_or_insert_default();
        let Some((_, configuration)) = &self.0 else {
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
        let Some(config) = configuration.config() else { return };
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

impl Program {
    /// What the policy is asked about a completed process: what the image says, and what is to run. `None` for the pause
    /// program: it is the agent's own, and [`Program::complete`] has overwritten whatever the host said of it.
    ///
    /// Before the image's files are there (`rootfs` is `None`, and `image.pulled` false) nobody knows the numbers of its user:
    /// the process's own stand there, so that this first question decides on everything else. The second one decides on all.
    pub(crate) fn question(
        &self,
        container: &str,
        reference: &str,
        process: &oci::Process,
        names: Option<&StringUser>,
        rootfs: Option<&Path>,
    ) -> Option<serde_json::Value> {
        let (digest, configuration) = self.0.as_ref()?;
        let config = configuration.config().clone().unwrap_or_default();
        let args: Vec<&String> =
            [config.entrypoint(), config.cmd()].into_iter().flatten().flatten().collect();
        let cwd = config.working_dir().clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "/".to_owned());
        let named = config.user().clone().unwrap_or_default();
        let user = process.User.clone().unwrap_or_default();
        let ids = match rootfs {
            // A user that the image does not know has no numbers, and none are right.
            Some(rootfs) => users::resolve_below(rootfs, &named).ok().map(|i| (i.uid, i.gid, i.groups)),
            None => Some((user.UID, user.GID, user.AdditionalGids.clone())),
        };
        Some(serde_json::json!({
            "container_id": container,
            "image": {
                "reference": reference,
                "manifest_digest": digest.to_string(),
                "pulled": rootfs.is_some(),
                "args": args,
                "env": config.env().clone().unwrap_or_default(),
                "cwd": cwd,
                "user": named,
                "uid": ids.as_ref().map(|i| i.0),
                "gid": ids.as_ref().map(|i| i.1),
                "groups": ids.map(|i| i.2).unwrap_or_default(),
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
    settings: Arc<Settings>,
    broker: Option<Broker>,
    tee: Tee,
    proxy: Option<String>,
    measurements: Arc<Measurements>,
    scratch: tokio::sync::OnceCell<Scratch>,
    seals: Seals,
    corruption: CorruptionWatch,
    /// Held by the one [`Images::pull_to`] that runs.
    pulling_for_the_hub: tokio::sync::Mutex<()>,
}

/// Tells of an image that is not pulled.
fn refused(image: &str, reason: String) -> PullError {
    tracing::error!(
        stage = "refused",
        by = "image",
        image,
        reason,
        expected = "an image whose digests match, whose signatures the policy demands, whose keys the key broker releases, and whose tier this guest has",
        seen = reason,
        what_to_do = "see the reason; `kata-cc image inspect` shows what the image demands",
        "image not pulled"
    );
    PullError::Refused { image: image.to_owned(), reason }
}

/// Tells of a copy of an image that the host offers and that is not taken.
fn refused_copy(image: &str, source: SealedError) -> PullError {
    let error = PullError::Sealed { image: image.to_owned(), source };
    refused(image, error.to_string());
    error
}

/// Why a pull ended that nobody waits for any more.
const GIVEN_UP: &str = "the creation of its container was given up";
/// Kata's name for the sandbox container's image, which is not pulled: the agent is that program.
const PAUSE: &str = "pause";
/// The scratch disk.
const SCRATCH: &str = "/dev/vdb";

impl Images {
    /// With the settings of the init-data.
    ///
    /// # Errors
    /// When a seal in it is none.
    pub(crate) fn new(
        settings: Arc<Settings>,
        broker: Option<Broker>,
        tee: Tee,
        proxy: Option<String>,
        measurements: Arc<Measurements>,
    ) -> Result<Self, ManifestError> {
        let seals = Seals::parse(&settings.cdh.image.seals)?;
        Ok(Self {
            settings,
            broker,
            tee,
            proxy,
            measurements,
            seals,
            corruption: CorruptionWatch::default(),
            scratch: tokio::sync::OnceCell::new(),
            pulling_for_the_hub: tokio::sync::Mutex::new(()),
        })
    }

    fn tier(&self) -> RunningTier {
        match self.tee {
            Tee::None => RunningTier::None,
            Tee::SimSnp | Tee::SimTdx => RunningTier::Simulated {
                tee: self.tee.name(),
                allowed: self.settings.cdh.image.allow_simulated_tee,
            },
            Tee::Snp => RunningTier::Snp,
            Tee::Tdx => RunningTier::Tdx,
        }
    }

    async fn auth(&self) -> Result<Option<DockerAuthConfig>, String> {
        let uri = self.settings.cdh.image.authenticated_registry_credentials_uri.as_deref();
        let (Some(uri), Some(broker)) = (uri, &self.broker) else {
            return Ok(None);
        };
        let bytes = broker.resource(uri).await.map_err(|e| causes(&*e))?;
        let parsed = DockerAuthConfig::parse(&bytes);
        parsed.map(Some).ok_or_else(|| format!("{uri} is no docker configuration"))
    }

    /// Looks at the image that a storage names: manifest, list of those allowed, signatures, configuration and tier. No key of it is
    /// asked for. Documents that the host offers with its copy of the image are looked at before the registry is asked.
    pub(crate) async fn examine(&self, storage: &Storage, given_up: &GivenUp) -> Result<Examined, PullError> {
        let reference = &storage.source;
        if reference == PAUSE {
            return Ok(Examined {
                reference: reference.clone(),
                program: Program(None),
                image: None,
                device: None,
            });
        }
        let device =
            sealed_image::offered(storage).await.map_err(|error| refused_copy(reference, error.into()))?;
        let companions = match &device {
            Some(device) => sealed_image::companions(device).await,
            None => None,
        };
        if let Some(companions) = companions {
            match self.examine_with(reference, companions, given_up).await {
                Ok(examined) => return Ok(Examined { device, ..examined }),
                // They may be of another day than the image's signatures; the registry's word is the newest.
                Err(reason) => warn!(
                    image = reference,
                    reason, "documents of the host's copy do not do: the registry is asked"
                ),
            }
        }
        self.examine_in_registry(reference, device, given_up).await
    }

    async fn examine_in_registry(
        &self,
        reference: &str,
        device: Option<String>,
        given_up: &GivenUp,
    ) -> Result<Examined, PullError> {
        let examined = self.examine_with(reference, Companions::None, given_up).await;
        let examined = examined.map_err(|reason| refused(reference, reason))?;
        Ok(Examined { device, ..examined })
    }

    async fn examine_with(
        &self,
        reference: &str,
        companions: Companions,
        given_up: &GivenUp,
    ) -> Result<Examined, String> {
        let config = ClientConfig { companions, ..self.client_config().await? };
        let (name, runtime) = (reference.to_owned(), tokio::runtime::Handle::current());
        let given_up = given_up.clone();
        // On a thread of its own, as the rest of the pull.
        let examining = tokio::task::spawn_blocking(move || {
            let client = ImageClient::new(config).map_err(|e| causes(&e))?;
            let progress = |p: Progress| debug!(progress = ?p, "examining");
            let examined = runtime.block_on(given_up.unless(client.examine(&name, &progress)));
            let image = examined.ok_or(GIVEN_UP)?.map_err(|e| causes(&e))?;
            Ok((Arc::new(client), image))
        });
        let (client, image) = examining.await.map_err(|e| causes(&e)).and_then(|r| r)?;
        let program = Program(Some((image.manifest_digest.clone(), image.config.clone())));
        Ok(Examined { reference: reference.to_owned(), program, image: Some((client, image)), device: None })
    }

    /// The root of what was examined, for the container of `bundle`: from the device that the host offers when there is a seal of the
    /// image, else pulled.
    pub(crate) async fn root(
        &self,
        examined: Examined,
        bundle: &Path,
        given_up: &GivenUp,
    ) -> Result<Pulled, PullError> {
        let Examined { reference, image, device, .. } = &examined;
        // Encrypted images have no seal: who could read their layers to make one?
        let image = image.as_ref().filter(|(_, image)| !image.is_encrypted());
        let (Some((client, image)), Some(device)) = (image, device.clone()) else {
            return self.pull(examined, bundle, given_up).await;
        };
        let seal = match self.seals.of_image(image).cloned() {
            Some(seal) => Some(seal),
            None => self.signed_seal(client, image, given_up).await,
        };
        let Some(seal) = seal else { return self.pull(examined, bundle, given_up).await };
        let base = self.space().await?.join(bundle.file_name().unwrap_or_default());
        let digest = seal.manifest.clone();
        self.corruption.add(reference, &device, &seal);
        let mounting = tokio::task::spawn_blocking(move || sealed_image::mount(&seal, &device, &base));
        let mounted = mounting.await.map_err(|error| PullError::Space(io::Error::other(error)))?;
        let rootfs = mounted.map_err(|source| refused_copy(reference, source))?;
        info!(
            stage = "pulled",
            image = reference,
            digest,
            sealed = true,
            bytes = 0,
            "image taken from the host's copy"
        );
        self.recorded(reference, &digest).await?;
        Ok(Pulled { rootfs, digest: Some(digest) })
    }

    /// The seal that lies beside the image. When the documents that the host offered have none that counts, the registry may have: they
    /// may be older than the seal or its signature.
    async fn signed_seal(
        &self,
        client: &Arc<ImageClient>,
        image: &ExaminedImage,
        given_up: &GivenUp,
    ) -> Option<SealManifest> {
        let seal = sealed_image::signed_seal(Arc::clone(client), image.clone()).await;
        if seal.is_some() || !client.has_companions() {
            return seal;
        }
        let examined =
            self.examine_with(&image.reference().to_string(), Companions::None, given_up).await.ok()?;
        let (client, again) =
            examined.image.filter(|(_, again)| again.manifest_digest == image.manifest_digest)?;
        sealed_image::signed_seal(client, again).await
    }

    /// Pulls what was examined, for the container of `bundle`.
    async fn pull(&self, examined: Examined, bundle: &Path, given_up: &GivenUp) -> Result<Pulled, PullError> {
        let Examined { reference, image, .. } = examined;
        let Some((client, image)) = image else {
            let rootfs = bundle.join(".pause");
            fs::create_dir_all(&rootfs).map_err(PullError::Space)?;
            return Ok(Pulled { rootfs, digest: None });
        };
        let base = self.space().await?.join(bundle.file_name().unwrap_or_default());
        fs::create_dir_all(&base).map_err(PullError::Space)?;
        let made = async {
            let fetched = self.fetch(Arc::clone(&client), image, &base, given_up).await;
            let node_bytes = client.kept_bytes();
            let pulled = fetched.map_err(|reason| match node_bytes {
                0 => refused(&reference, reason),
                _ => refused(&reference, format!("{reason} ({node_bytes} bytes came from the node's copy)")),
            })?;
            self.measured(&reference, &pulled, node_bytes).await?;
            Ok(pulled)
        };
        match made.await {
            Ok(image) => Ok(Pulled { rootfs: image.rootfs, digest: Some(image.manifest_digest.to_string()) }),
            Err(error) => {
                // Layers that did not make an image are only in the way.
                let _ = fs::remove_dir_all(&base);
                Err(error)
            }
        }
    }

    /// Pulls for the data hub's `PullImage`: to the folder `rootfs` below `bundle`; gives the digest of the manifest. List of allowed
    /// images and tier hold as for a container; the policy is not asked, since nothing is run by it.
    pub(crate) async fn pull_to(&self, reference: &str, bundle: &Path) -> Result<String, PullError> {
        let (image, bundle) = (reference.to_owned(), bundle.display().to_string());
        let target = crate::storage::check_mount_point(&bundle).map(|bundle| bundle.join("rootfs"));
        let target = target.map_err(|e| refused(&image, e.to_string()))?;
        if reference == PAUSE || target.exists() {
            let reason = match reference {
                PAUSE => "the pause program is the agent's own and no image".to_owned(),
                _ => format!("{} is there already", target.display()),
            };
            return Err(refused(&image, reason));
        }
        // Nobody gives these up: a container of the guest's own asks for them.
        let given_up = GivenUp::never();
        let examined = self.examine_in_registry(reference, None, &given_up).await?;
        // One at a time: two of one bundle would unpack into one folder.
        let _turn = self.pulling_for_the_hub.lock().await;
        if target.exists() {
            return Err(refused(&image, format!("{} is there already", target.display())));
        }
        // A name of its own in the space for images, which no container has: those have no dots in front.
        let name = format!(".{}", Digest::sha256(bundle.as_bytes()).as_str().trim_start_matches("sha256:"));
        let pulled = self.pull(examined, &Path::new(crate::paths::BASE).join(name), &given_up).await?;
        let source = pulled.rootfs.display().to_string();
        if let Err(error) = crate::storage::mount_on(&source, &target, "none", &["bind"]) {
            // Nobody could get at it, and it would fill the guest's memory.
            let _ = pulled.rootfs.parent().map(fs::remove_dir_all);
            return Err(PullError::Space(error));
        }
        Ok(pulled.digest.unwrap_or_default())
    }

    async fn measured(&self, reference: &str, image: &PulledImage, node_bytes: u64) -> Result<(), PullError> {
        info!(
            stage = "pulled",
            image = reference,
            digest = %image.manifest_digest,
            layers = image.layers.len() as u64,
            bytes = image.bytes.saturating_sub(node_bytes),
            node_bytes,
            encrypted = image.encrypted,
            "image pulled"
        );
        self.recorded(reference, &image.manifest_digest.to_string()).await
    }

    async fn recorded(&self, reference: &str, digest: &str) -> Result<(), PullError> {
        let recorded = self.measurements.pulled(reference, digest).await;
        recorded.map_err(|source| PullError::NotMeasured { image: reference.to_owned(), source })
    }

    async fn client_config(&self) -> Result<ClientConfig, String> {
        let image = &self.settings.cdh.image;
        let settings = settings::client_config(image, self.broker.as_ref()).await?;
        Ok(ClientConfig {
            proxy: self.proxy.clone(),
            auth: self.auth().await?,
            running_tier: Some(self.tier()),
            ..settings
        })
    }

    async fn fetch(
        &self,
        client: Arc<ImageClient>,
        image: ExaminedImage,
        base: &Path,
        given_up: &GivenUp,
    ) -> Result<PulledImage, String> {
        let work_dir = base.join("work");
        fs::create_dir_all(&work_dir).map_err(|e| e.to_string())?;
        let target = PullTarget { work_dir: work_dir.clone(), rootfs_dir: base.join("root") };
        let keys: Box<dyn KeyProvider> = match &self.broker {
            Some(broker) => Box::new(BrokerKeys(broker.clone())),
            None => Box::new(NoKeys),
        };
        let told = progress::PullProgress::new(&image.reference().to_string(), image.bytes());
        let (runtime, given_up) = (tokio::runtime::Handle::current(), given_up.clone());
        // Unpacking keeps a thread busy: it gets one of its own, and the ttrpc threads stay free.
        let pulling = tokio::task::spawn_blocking(move || {
            let progress = |step: Progress| told.note(&step);
            let fetched = runtime.block_on(given_up.unless(client.fetch(image, &target, &*keys, &progress)));
            fetched.ok_or(GIVEN_UP)?.map_err(|e| causes(&e))
        });
        let pulled = pulling.await.map_err(|e| causes(&e)).and_then(|r| r);
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
                let made =
                    space::prefer_disk(memory::for_files(), space::disk_size(), |disk_wanted, size| {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What an image with this configuration says.
    pub(crate) fn program(config: &serde_json::Value) -> Program {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        Program(Some((Digest::sha256(b"manifest"), serde_json::from_value(config).unwrap())))
    }

    /// The pause program.
    pub(crate) fn pause() -> Program {
        Program(None)
    }

    #[test]
    fn the_search_path_of_runtimes_gives_way_to_the_images_own() {
        let image = |env: &[&str]| program(&serde_json::json!({"Env": env, "Cmd": ["x"]}));
        let mut spec = oci::Spec::new();
        spec.Process.mut_or_insert_default().Env = vec![RUNTIMES_PATH.to_owned()];
        image(&[]).complete(&mut spec);
        assert_eq!(spec.Process.Env, [RUNTIMES_PATH]);
        image(&["PATH=/bin"]).complete(&mut spec);
        assert_eq!(spec.Process.Env, ["PATH=/bin"]);
    }
}
