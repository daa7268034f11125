//! Everything that an encrypted image needs to run: registry, key broker, policy, reference values, a node.
//!
//! [`prepare`] makes what is slow and needs no virtual machine (keys, certificates, an image); [`World::start`] starts the
//! services and does what a user would do by hand, with the `kata-cc` command. [`World::run`] then runs the image, and each
//! field of [`Tampering`] changes one thing that must make the run fail.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use kata_cc_sim_tee::tdx::{Quoter, ROOT_FILE};
use kata_cc_sim_tee::{REPLAY_FILE, ReportRequest, SimPlatform};

use crate::kbs::Kbs;
use crate::pki::Pki;
use crate::process::{Finished, run};
use crate::registry::{Registry, RegistryOptions};
use crate::traces::{RUN, STATE};
use crate::{binaries, image, share};

/// File that says that the material is whole, and of which form.
const READY: &str = "ready-2";
/// Where the layer key lies in the key broker.
pub const KEY_PATH: &str = "default/key/demo";
/// Longest that one run may take, in seconds; the lab is slow.
const RUN_SECONDS: u64 = 240;

/// The resource policy: only an affirmed simulated guest, and only with the init-data whose digest is filled in; see [`World::resource_policy`].
const RESOURCE_POLICY: &str = r#"package policy
import rego.v1
default allow := false
evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
allow if {
    data.plugin == "resource"
    input.submods.cpu0["ear.status"] == "affirming"
    evidence["@TEE@"]
    evidence.init_data == "@INIT_DATA@"
}
"#;

/// Make keys, certificates and the image in `dir`, once.
pub fn prepare(dir: &Path) -> anyhow::Result<()> {
    if dir.join(READY).exists() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir)?;
    Pki::create(dir)?;
    for name in ["sim", "other-sim"] {
        let platform = SimPlatform::create(&dir.join(name)).context("cannot make a simulated platform")?;
        let tdx = dir.join(name).join("tdx");
        Quoter::create(&tdx, now()?).context("cannot make a simulated TDX platform")?;
        let roots = platform.ark_pem()? + &std::fs::read_to_string(tdx.join(ROOT_FILE))?;
        std::fs::write(dir.join(format!("{name}.roots.pem")), roots)?;
    }
    image::busybox_layout(&dir.join("image"))?;
    std::fs::write(dir.join(READY), "")?;
    Ok(())
}

/// Seconds since 1970, a minute ago: certificates hold from then.
fn now() -> anyhow::Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() - 60)
}

/// What differs from the run that works.
#[derive(Clone, Debug, Default)]
pub struct Tampering {
    /// Guest image from another folder.
    pub share: Option<PathBuf>,
    /// Words added to the guest's command line.
    pub cmdline: Option<String>,
    /// Simulated platform from another folder: another root.
    pub platform: Option<PathBuf>,
    /// Other image settings in the node's configuration: other init-data.
    pub insecure_registry: Option<String>,
    /// Tier.
    pub tier: Option<String>,
    /// Image reference.
    pub image: Option<String>,
    /// Seals of images in the node's configuration.
    pub seals: Vec<PathBuf>,
    /// Signature policy in the node's configuration.
    pub signatures: Option<PathBuf>,
    /// Whether the node makes a copy of an image at its first use.
    pub seal_at_first_use: bool,
}

/// Registry, key broker and a node that uses them.
#[derive(Debug)]
pub struct World {
    /// What [`prepare`] made.
    pub material: PathBuf,
    /// Folder of this world, below `/run`: sockets live here.
    pub dir: PathBuf,
    /// The registry.
    pub registry: Registry,
    /// The key broker.
    pub kbs: Kbs,
    /// The encrypted image.
    pub image: String,
    /// Agent policy that the node's configuration names.
    agent_policy: Option<PathBuf>,
    /// Which TEE is simulated.
    pub tee: &'static str,
    /// What `kata-cc measure` predicts for the node's guest: launch digest and digest of the init-data, in hex.
    pub measured: (String, String),
}

/// What [`prepare`] made, or makes: `KATA_CC_MATERIAL`, or a folder among the temporary ones.
#[must_use]
pub fn material() -> PathBuf {
    std::env::var_os("KATA_CC_MATERIAL")
        .map_or_else(|| std::env::temp_dir().join("kata-cc-material"), PathBuf::from)
}

impl World {
    /// A test's own, of the shared material, in a folder of this name.
    pub fn of_test(name: &str) -> anyhow::Result<Self> {
        Self::of_test_with(name, None, "sim-snp")
    }

    /// Like [`World::of_test`], with what [`World::start_with`] takes.
    pub fn of_test_with(name: &str, agent_policy: Option<&str>, tee: &'static str) -> anyhow::Result<Self> {
        let material = material();
        prepare(&material)?;
        let dir = PathBuf::from(format!("/run/kct-{name}-{}", std::process::id()));
        Self::start_with(&material, &dir, agent_policy, tee)
    }

    /// Start the services, encrypt and push the image, and give key, policy and reference values to the key broker.
    pub fn start(material: &Path, dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(material, dir, None, "sim-snp")
    }

    /// Like [`World::start`], with an agent policy in place of the guest's default, and under the simulated TEE of that name.
    pub fn start_with(
        material: &Path,
        dir: &Path,
        agent_policy: Option<&str>,
        tee: &'static str,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let agent_policy = match agent_policy {
            Some(text) => {
                let file = dir.join("agent.rego");
                std::fs::write(&file, text)?;
                Some(file)
            }
            None => None,
        };
        let pki = Pki::at(material);
        let options = RegistryOptions { tls: Some(&pki), basic: None };
        let registry = Registry::start(&dir.join("registry"), &options)?;
        let kbs = Kbs::start(&dir.join("kbs"), Some(&material.join("sim.roots.pem")))?;
        let image = format!("{}/demo/secret:1", registry.host);
        let measured = Default::default();
        let (material, dir) = (material.to_owned(), dir.to_owned());
        let mut world = Self { material, dir, registry, kbs, image, agent_policy, tee, measured };
        world.encrypt(&world.image, &[])?;
        world.put_key()?;
        world.admit(&Tampering::default())?;
        Ok(world)
    }

    /// Make the key broker release the key to the guest of these settings, and to no other.
    pub fn admit(&mut self, settings: &Tampering) -> anyhow::Result<()> {
        self.measured = self.register(settings)?;
        self.set_resource_policy(&self.resource_policy(&self.measured.1))
    }

    /// [`RESOURCE_POLICY`] for this world's TEE and a digest of init-data, in hex.
    #[must_use]
    pub fn resource_policy(&self, init_data: &str) -> String {
        RESOURCE_POLICY.replace("@TEE@", self.tee).replace("@INIT_DATA@", init_data)
    }

    /// The layer key's file on the user's side.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("layer.key")
    }

    /// Encrypt the plain image into the registry under another name or with further options.
    pub fn encrypt(&self, to: &str, options: &[&str]) -> anyhow::Result<Finished> {
        let source = format!("oci:{}:latest", self.material.join("image").display());
        let target = format!("docker://{to}");
        let key_id = format!("kbs:///{KEY_PATH}");
        let mut command = self.kata_cc(&Tampering::default())?;
        command.args(["image", "encrypt", &source, &target, "--key-id", &key_id, "--key-file"]);
        command.arg(self.key_file()).arg("--registry-ca").arg(Pki::at(&self.material).ca).args(options);
        run(&mut command, 120)?.ok().context("image encrypt")
    }

    /// Push the plain image under another name.
    pub fn push_plain(&self, to: &str) -> anyhow::Result<Finished> {
        let source = format!("oci:{}:latest", self.material.join("image").display());
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--quiet", "--insecure-policy", &source, &format!("docker://{to}")]);
        skopeo.env("SSL_CERT_FILE", Pki::at(&self.material).ca);
        run(&mut skopeo, 120)?.ok().context("skopeo copy")
    }

    /// Put the layer key into the key broker.
    pub fn put_key(&self) -> anyhow::Result<Finished> {
        let mut command = self.kata_cc(&Tampering::default())?;
        command.args(["secret", "put", KEY_PATH, "--file"]).arg(self.key_file());
        run(&mut command, 60)?.ok().context("secret put")
    }

    /// Remove the layer key from the key broker.
    pub fn remove_key(&self) -> anyhow::Result<Finished> {
        run(self.kata_cc(&Tampering::default())?.args(["secret", "rm", KEY_PATH]), 60)?.ok()
    }

    /// Register what `kata-cc measure` predicts, launch digest and init-data's digest; gives both.
    fn register(&self, settings: &Tampering) -> anyhow::Result<(String, String)> {
        let mut command = self.kata_cc(settings)?;
        let measured = run(command.args(["--json", "measure", "--register", "--tier", self.tee]), 120)?
            .ok()
            .context("measure")?;
        let measured: serde_json::Value = serde_json::from_str(&measured.stdout)
            .with_context(|| format!("measure printed {:?}", measured.stdout))?;
        let field = |name: &str| {
            measured[name].as_str().map(str::to_owned).with_context(|| format!("measure gave no {name}"))
        };
        Ok((field("launch_digest")?, field("host_data")?))
    }

    /// Set the key broker's resource policy.
    pub fn set_resource_policy(&self, text: &str) -> anyhow::Result<()> {
        let file = self.dir.join("resource.rego");
        std::fs::write(&file, text)?;
        run(
            self.kata_cc(&Tampering::default())?.args(["policy", "set", "resource", "--file"]).arg(&file),
            60,
        )?
        .ok()
        .map(drop)
    }

    /// The `kata-cc` command with this world's node and key broker.
    pub fn kata_cc(&self, tampering: &Tampering) -> anyhow::Result<Command> {
        let config = self.dir.join("config.toml");
        std::fs::write(&config, self.config(tampering))?;
        let mut command = Command::new(binaries().join("kata-cc"));
        command
            .env("KATA_CC_CONFIG", &config)
            .env("KATA_CC_RUN_DIR", self.dir.join(RUN))
            .env("KATA_CC_STATE_DIR", self.state_dir())
            .env("KATA_CC_SHARE_DIR", tampering.share.clone().unwrap_or_else(share))
            .env("KATA_CC_KBS", &self.kbs.url)
            .env("KATA_CC_KBS_CERT", self.kbs.dir.join("tls.crt"))
            .env("KATA_CC_KBS_ADMIN_KEY", self.kbs.dir.join("admin.key"));
        Ok(command)
    }

    /// Records of this world's sandboxes.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// The node's configuration (TOML).
    #[must_use]
    pub fn config(&self, tampering: &Tampering) -> String {
        let platform = tampering.platform.clone().unwrap_or_else(|| self.material.join("sim"));
        let insecure =
            tampering.insecure_registry.iter().map(|host| format!("\"{host}\"")).collect::<String>();
        format!(
            "cmdline_append = \"{cmdline}\"\n\
             [tee]\nsimulated = \"{tee}\"\nplatform = \"{platform}\"\n\
             [egress]\nallow = [\"{registry}\", \"{kbs}\"]\n\
             [kbs]\nurl = \"{url}\"\ncertificate = \"{certificate}\"\n\
             [image]\nregistry_roots = [\"{ca}\"]\ninsecure_registries = [{insecure}]\nallow_simulated_tee = true\nseals = {seals:?}\nseal_at_first_use = {at_first_use}\n{signatures}{policy}",
            seals = tampering.seals,
            at_first_use = tampering.seal_at_first_use,
            signatures = tampering
                .signatures
                .iter()
                .map(|file| format!("security_policy = \"{}\"\n", file.display()))
                .collect::<String>(),
            policy = self
                .agent_policy
                .iter()
                .map(|file| format!("agent_policy = \"{}\"\n", file.display()))
                .collect::<String>(),
            cmdline = tampering.cmdline.as_deref().unwrap_or_default(),
            tee = self.tee,
            platform = platform.display(),
            registry = self.registry.host,
            kbs = self.kbs.authority(),
            url = self.kbs.url,
            certificate = self.kbs.dir.join("tls.crt").display(),
            ca = Pki::at(&self.material).ca.display(),
        )
    }

    /// `kata-cc run` of the image with a command (the image's own without).
    pub fn run(&self, name: &str, tampering: &Tampering, command: &[&str]) -> anyhow::Result<Finished> {
        run(&mut self.run_command(name, tampering, command)?, RUN_SECONDS)
    }

    /// The command that [`World::run`] runs.
    pub fn run_command(&self, name: &str, tampering: &Tampering, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.kata_cc(tampering)?;
        let tier = tampering.tier.as_deref().unwrap_or("confidential");
        command.args(["run", "--tier", tier, "--name", name]);
        command.arg(tampering.image.as_ref().unwrap_or(&self.image)).args(words);
        Ok(command)
    }

    /// A copy of the simulated platform that answers every request with one genuine report of this very guest, made for
    /// an earlier nonce.
    pub fn replaying_platform(&self) -> anyhow::Result<PathBuf> {
        let own = self.material.join("sim");
        let dir = self.dir.join("sim-replay");
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&own)? {
            let file = entry?;
            if file.file_type()?.is_file() {
                std::fs::copy(file.path(), dir.join(file.file_name()))?;
            }
        }
        let mut request = ReportRequest { report_data: [0x5A; 64], ..Default::default() };
        hex::decode_to_slice(&self.measured.0, &mut request.measurement)?;
        hex::decode_to_slice(&self.measured.1, &mut request.host_data)?;
        std::fs::write(dir.join(REPLAY_FILE), SimPlatform::load(&own)?.report(&request)?)?;
        Ok(dir)
    }

    /// A copy of the guest image in which one byte differs: the first of `pattern` in `file`, changed in its case.
    pub fn tampered_share(&self, file: &str, pattern: &[u8]) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(format!("share-{file}"));
        std::fs::create_dir_all(&dir)?;
        for name in ["vmlinux", "vmlinux-tee", "root.erofs", "root.json", "stage0", "manifest.json"] {
            std::fs::copy(share().join(name), dir.join(name))
                .with_context(|| format!("cannot copy {name}"))?;
        }
        let path = dir.join(file);
        let mut bytes = std::fs::read(&path)?;
        let at = bytes.windows(pattern.len()).position(|window| window == pattern);
        let at =
            at.with_context(|| format!("{file} does not hold {:?}", String::from_utf8_lossy(pattern)))?;
        bytes[at] ^= 0x20;
        std::fs::write(&path, bytes)?;
        Ok(dir)
    }

    /// Change one byte of the image's layer in the registry's own storage; gives back what undoes it.
    pub fn tamper_blob(&self, digest: &str) -> anyhow::Result<Restore> {
        let path = self.registry.blob(digest);
        let original = std::fs::read(&path).with_context(|| format!("no blob {}", path.display()))?;
        ensure!(!original.is_empty(), "the blob is empty");
        let mut changed = original.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        std::fs::write(&path, changed)?;
        Ok(Restore { path, original })
    }

    /// Digests of the image's manifest and of its first layer, as the registry holds them.
    pub fn digests(&self) -> anyhow::Result<(String, String)> {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", self.image)]);
        let raw = run(&mut skopeo, 60)?.ok()?.stdout;
        let manifest: serde_json::Value = serde_json::from_str(&raw)?;
        let layer = manifest["layers"][0]["digest"].as_str().context("the manifest has no layer")?;
        Ok((image::sha256(raw.as_bytes()), layer.to_owned()))
    }
}

/// Puts a file back as it was.
#[derive(Debug)]
pub struct Restore {
    path: PathBuf,
    original: Vec<u8>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.path, &self.original);
    }
}
