//! The node's configuration: `/etc/kata-cc/config.toml`, or the file that `KATA_CC_CONFIG` names.
//!
//! Everything has a default, so no file is needed; an unknown key is refused by name, since a misspelt security
//! setting must not be passed over. Example:
//!
//! ```toml
//! auto_order = ["snp", "tdx", "vm"]
//!
//! [tee]
//! simulated = "sim-snp"                 # never on a node with real secrets
//!
//! [egress]
//! allow = ["kbs.example:8080", "registry.example:443"]
//!
//! [kbs]
//! url = "https://kbs.example:8080"
//! certificate = "/etc/kata-cc/kbs.pem"
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::sizing::Overhead;
use crate::tier::Tier;
use crate::{paths, tier};

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is not what is expected.
    #[error("configuration {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
}

/// The node's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// `kata-cc-vmm`; beside the running program or in `PATH` when absent.
    pub vmm: Option<PathBuf>,
    /// `kata-cc-sentry`; likewise.
    pub sentry: Option<PathBuf>,
    /// Kernel of plain guests; `vmlinux` of the guest image when absent.
    pub kernel: Option<PathBuf>,
    /// Kernel of confidential guests, which has ACPI and the drivers of the TEEs; `vmlinux-tee` of the guest image when absent.
    pub tee_kernel: Option<PathBuf>,
    /// The guest's root image, its seal beside it in a file of the same name that ends in `.json`; `root.erofs` of
    /// the guest image when neither it nor an initramfs is named.
    pub root: Option<PathBuf>,
    /// Initramfs of the guest; none when absent.
    pub initramfs: Option<PathBuf>,
    /// Image of the firmware of confidential guests, which verifies kernel and initramfs; `stage0` of the guest image when absent.
    pub firmware: Option<PathBuf>,
    /// Whether digests of kernel and initramfs are kept in the state folder's `digests`, so that a confidential guest starts without
    /// hashing them again.
    pub digest_cache: bool,
    /// Words added to the guest's command line; they are measured.
    pub cmdline_append: String,
    /// Order of tiers for class `kata-cc-auto`, the first that can run is taken.
    pub auto_order: Vec<Tier>,
    /// Trusted execution environment.
    pub tee: TeeSettings,
    /// Size of VMs.
    pub vm: Overhead,
    /// The guest's way out.
    pub egress: EgressSettings,
    /// Key broker for pods that bring no init-data of their own.
    pub kbs: Option<KbsSettings>,
    /// Image settings for pods that bring no init-data of their own.
    pub image: ImageSettings,
    /// Whether requests to guests are kept beside the sandboxes' records, for `kata-cc policy simulate --sandbox`: with the variables and arguments of
    /// containers, for root alone, 16 MiB of each sandbox at most.
    pub record_requests: bool,
    /// Seconds that a guest may take until its agent answers.
    pub agent_timeout_s: u64,
    /// MiB of the scratch disk (sparse) on which images are unpacked; 0 for memory only.
    pub scratch_mib: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            vmm: None,
            sentry: None,
            kernel: None,
            tee_kernel: None,
            root: None,
            initramfs: None,
            firmware: None,
            digest_cache: true,
            cmdline_append: String::new(),
            auto_order: vec![Tier::Snp, Tier::Tdx, Tier::Vm],
            tee: TeeSettings::default(),
            vm: Overhead::default(),
            egress: EgressSettings::default(),
            kbs: None,
            image: ImageSettings::default(),
            record_requests: false,
            agent_timeout_s: 120,
            scratch_mib: 4096,
        }
    }
}

/// Trusted execution environment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeeSettings {
    /// `sim-snp` or `sim-tdx` lets class `kata-cc` run under the simulated TEE where there is no real one.
    pub simulated: Option<Simulated>,
    /// Its throw-away platform; the state folder's `sim` when absent.
    pub platform: Option<PathBuf>,
    /// Certificates that SNP guests get with their reports (a table as GHCB 4.1.8.1 has it, `kata-cc endorsements` makes it);
    /// without it the key broker has to know the chip's.
    pub certificates: Option<PathBuf>,
    /// Unix socket of the quoting service, for guests under TDX; `/var/run/tdx-qgs/qgs.socket` when absent.
    pub quoting_socket: Option<PathBuf>,
}

/// Which TEE is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Simulated {
    /// AMD SEV-SNP.
    SimSnp,
    /// Intel TDX.
    SimTdx,
}

impl Simulated {
    /// The tier that it makes.
    #[must_use]
    pub const fn tier(self) -> Tier {
        match self {
            Self::SimSnp => Tier::SimSnp,
            Self::SimTdx => Tier::SimTdx,
        }
    }
}

/// Where the guest may connect through the shim.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressSettings {
    /// `host:port`, or `*:port` for any host. Empty: nowhere.
    pub allow: Vec<String>,
    /// Proxy of the site, `http://host:port`, by which what is allowed is reached; none when the node reaches it itself. It sees where
    /// the guest goes, not what it says there by TLS.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy; an entry with a dot before it (`.cluster.local`) is the end of a name.
    pub direct: Vec<String>,
}

/// A key broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KbsSettings {
    /// `https://host:port`.
    pub url: String,
    /// PEM of the certificates that the guest pins.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
}

/// How the guest pulls images.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSettings {
    /// PEM files of further roots for registries.
    pub registry_roots: Vec<PathBuf>,
    /// Registries spoken to without TLS, by `host:port`.
    pub insecure_registries: Vec<String>,
    /// File with mirrors and other locations of registries (containers-registries.conf(5), `[[registry]]`); none without.
    pub registries: Option<PathBuf>,
    /// Whether the simulated TEE may open what demands confidentiality; for trying things out.
    pub allow_simulated_tee: bool,
    /// The only images that a guest may pull, `host/repository@sha256:…` (digest of the manifest or of the index); any
    /// without. Images that other programs than `kata-cc image encrypt` encrypted must be listed.
    pub allowed: Option<Vec<String>>,
    /// Files with seals of images (`kata-cc image seal`), which become part of the init-data: where the node has such an image, guests take
    /// it from there instead of pulling its layers.
    pub seals: Vec<PathBuf>,
    /// Files with pins of chunk lists (`kata-cc image chunks --pin`), which become part of the init-data: guests believe these lists without a
    /// signature.
    pub chunk_pins: Vec<PathBuf>,
    /// Whether the node makes a copy of an image when a guest first asks for one that it has none of: a sealed one, or of an encrypted image
    /// its layers as they are.
    pub seal_at_first_use: bool,
    /// Docker's configuration (`{"auths": …}`) with the node's own credentials for copies of encrypted images; without, only images that anybody
    /// may pull have one, as plain images always. Guests never see it: they have theirs from the key broker.
    pub seal_credentials: Option<PathBuf>,
    /// Most bytes of copies of images that this node keeps: those wanted longest ago go first. 64 GiB without.
    pub sealed_bytes: Option<u64>,
    /// File with the signature policy (`policy.json`) that every image of a guest has to meet; none without.
    pub security_policy: Option<PathBuf>,
    /// Resource of the key broker with that policy, `kbs:///repository/type/tag`, in place of the file.
    pub security_policy_uri: Option<String>,
    /// Agent policy (Rego) that replaces the guest image's.
    pub agent_policy: Option<PathBuf>,
}

impl ImageSettings {
    /// Most bytes of sealed images that this node keeps.
    #[must_use]
    pub fn most_sealed_bytes(&self) -> u64 {
        self.sealed_bytes.unwrap_or(64 << 30)
    }
}

impl NodeConfig {
    /// Read the node's file; the defaults when there is none.
    ///
    /// # Errors
    /// When a file is there and cannot be read or is not as expected, or `KATA_CC_CONFIG` names one that is not there.
    pub fn load() -> Result<Self, ConfigError> {
        let path = paths::config_file();
        if !path.exists() && std::env::var_os("KATA_CC_CONFIG").is_none() {
            return Ok(Self::default());
        }
        Self::read(&path)
    }

    /// Read one file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|error: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            message: kata_cc_kbs_protocol::toml_error(&text, &error),
        })
    }

    /// The guest kernel of a tier.
    #[must_use]
    pub fn kernel(&self, tier: Tier) -> PathBuf {
        let (named, file) = match tier.is_confidential() {
            true => (&self.tee_kernel, "vmlinux-tee"),
            false => (&self.kernel, "vmlinux"),
        };
        named.clone().unwrap_or_else(|| paths::share_dir().join(file))
    }

    /// The guest firmware. Confidential guests always have it: what it measures is all that vouches for them. Plain guests enter their
    /// kernel directly.
    #[must_use]
    pub fn firmware(&self, tier: Tier) -> Option<PathBuf> {
        let own = || self.firmware.clone().unwrap_or_else(|| paths::share_dir().join("stage0"));
        tier.is_confidential().then(own)
    }

    /// The monitor.
    #[must_use]
    pub fn vmm(&self) -> PathBuf {
        self.vmm.clone().unwrap_or_else(|| paths::program("kata-cc-vmm"))
    }

    /// The sentry.
    #[must_use]
    pub fn sentry(&self) -> PathBuf {
        self.sentry.clone().unwrap_or_else(|| paths::program("kata-cc-sentry"))
    }

    /// The throw-away platform of the simulated SEV-SNP.
    #[must_use]
    pub fn sim_platform(&self) -> PathBuf {
        self.tee.platform.clone().unwrap_or_else(paths::sim_platform)
    }

    /// That of the simulated TDX: a folder within.
    #[must_use]
    pub fn sim_tdx_platform(&self) -> PathBuf {
        self.sim_platform().join("tdx")
    }

    /// Whether a simulated TEE is named, and its platform (of which `root` is a file) there.
    fn simulated(&self, tee: Simulated, root: &Path) -> tier::Availability {
        use tier::Availability::{Available, Missing};
        match self.tee.simulated {
            None => Missing("the node's configuration does not name a simulated TEE".into()),
            Some(named) if named != tee => Missing("the node's configuration names another one".into()),
            Some(_) if root.exists() => Available,
            Some(_) => {
                let dir = root.parent().unwrap_or(root).display();
                Missing(format!("there is no platform in {dir}"))
            }
        }
    }

    /// What this node can do. Looks at files only: whether KVM really runs a guest shows when one is launched, and
    /// `kata-cc doctor` tries it.
    #[must_use]
    pub fn ability(&self) -> tier::NodeAbility {
        use tier::Availability::{Available, Missing};
        let kvm =
            if Path::new("/dev/kvm").exists() { Available } else { Missing("there is no /dev/kvm".into()) };
        tier::NodeAbility {
            kvm,
            snp: snp_at(Path::new("/")),
            tdx: tdx_at(Path::new("/")),
            sim_snp: self.simulated(Simulated::SimSnp, &self.sim_platform().join("ark.pem")),
            sim_tdx: self.simulated(Simulated::SimTdx, &self.sim_tdx_platform().join("root.pem")),
            sentry: sentry_at(&self.sentry()),
        }
    }
}

/// Whether there is a sentry, which needs nothing of the node but a kernel that lets it be.
fn sentry_at(program: &Path) -> tier::Availability {
    use tier::Availability::{Available, Missing};
    if !cfg!(target_arch = "x86_64") {
        return Missing("the sentry runs on x86-64 only".into());
    }
    match paths::find(program) {
        Some(_) => Available,
        None => Missing(format!("there is no {}", program.display())),
    }
}

/// Whether KVM uses SEV-SNP, by its own word. `kata-cc doctor` looks closer and says what to change.
fn snp_at(root: &Path) -> tier::Availability {
    use tier::Availability::{Available, Missing};
    let parameter = root.join("sys/module/kvm_amd/parameters/sev_snp");
    let says = std::fs::read_to_string(&parameter).unwrap_or_default();
    match says.trim() {
        "Y" | "1" if root.join("dev/sev").exists() => Available,
        "Y" | "1" => Missing("there is no /dev/sev (the kernel's driver ccp makes it)".into()),
        "" => Missing("KVM here knows no SEV-SNP (kvm_amd is not loaded, or older than Linux 6.11)".into()),
        _ => Missing("kvm_amd does not use SEV-SNP (sev_snp=N)".into()),
    }
}

/// Whether KVM uses TDX, by its own word.
fn tdx_at(root: &Path) -> tier::Availability {
    use tier::Availability::{Available, Missing};
    let says = std::fs::read_to_string(root.join("sys/module/kvm_intel/parameters/tdx")).unwrap_or_default();
    match says.trim() {
        "Y" | "1" => Available,
        "" => Missing("KVM here knows no TDX (kvm_intel is not loaded, or older than Linux 6.16)".into()),
        _ => Missing("kvm_intel does not use TDX (tdx=N)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snp_is_there_when_kvm_says_so() {
        let root = tempfile::tempdir().unwrap();
        let said = || match snp_at(root.path()) {
            tier::Availability::Available => "available".to_owned(),
            tier::Availability::Missing(why) => why,
        };
        assert!(said().contains("knows no SEV-SNP"));
        let folder = root.path().join("sys/module/kvm_amd/parameters");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("sev_snp"), "N\n").unwrap();
        assert!(said().contains("sev_snp=N"));
        std::fs::write(folder.join("sev_snp"), "Y\n").unwrap();
        assert!(said().contains("/dev/sev"));
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/sev"), "").unwrap();
        assert_eq!(said(), "available");
        assert!(
            matches!(tdx_at(root.path()), tier::Availability::Missing(why) if why.contains("knows no TDX"))
        );
        let folder = root.path().join("sys/module/kvm_intel/parameters");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tdx"), "Y\n").unwrap();
        assert_eq!(tdx_at(root.path()), tier::Availability::Available);
    }

    #[test]
    fn confidential_guests_have_a_kernel_of_their_own() {
        let config = parse("kernel = \"/plain\"\ntee_kernel = \"/tee\"\n").unwrap();
        for tier in Tier::ALL {
            let expected = if tier.is_confidential() { "/tee" } else { "/plain" };
            assert_eq!(config.kernel(tier), Path::new(expected), "{tier}");
        }
        let default = NodeConfig::default();
        assert!(
            default.kernel(Tier::SimSnp).ends_with("vmlinux-tee")
                && default.kernel(Tier::Vm).ends_with("vmlinux")
        );
    }

    fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        NodeConfig::read(&path)
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = parse("").unwrap();
        assert!(config.egress.allow.is_empty() && config.tee.simulated.is_none());
        assert!(matches!(config.ability().sim_snp, tier::Availability::Missing(_)));
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let text = include_str!("config.rs");
        let example: String = text
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| format!("{}\n", line.trim_start_matches("//!").trim_start()))
            .collect();
        let config = parse(&example).unwrap();
        assert_eq!(config.tee.simulated, Some(Simulated::SimSnp));
        assert_eq!(config.auto_order, [Tier::Snp, Tier::Tdx, Tier::Vm]);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = parse("[tee]\nsimulatd = \"sim-snp\"\n").unwrap_err().to_string();
        assert!(error.contains("line 2, column 1: ") && error.contains("simulatd"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        let error = parse("[tee]\nsimulated = \"snp\"\n").unwrap_err().to_string();
        assert!(error.contains("sim-snp"), "{error}");
    }
}
