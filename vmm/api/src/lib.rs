//! What the shim, the command line and the VMM say to each other: the VMM's configuration file and
//! the messages of its control socket. Types only; no I/O.
//!
//! The configuration is one JSON (or TOML) document, read once at start and never again. The control
//! socket is a Unix stream socket: one JSON [`ControlRequest`] per line, one JSON [`ControlReply`] per
//! line back, in order, any number per connection.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything a microVM is made of. Unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Sandbox id: 1 to 128 characters of `[A-Za-z0-9_.-]`. It names threads and log lines.
    pub id: String,
    /// Number of vCPUs, 1 to 64.
    pub vcpus: u8,
    /// Guest memory in MiB, 64 to 1 TiB.
    pub memory_mib: u64,
    /// What is booted.
    pub boot: BootConfig,
    /// Which trusted execution environment protects the guest.
    #[serde(default)]
    pub tee: TeeConfig,
    /// File (or FIFO) that the serial console is appended to; nothing is kept without it.
    #[serde(default)]
    pub console: Option<PathBuf>,
    /// Unix socket of the control interface; created mode 0600, removed at exit.
    pub control_socket: PathBuf,
    /// virtio-blk devices in the order in which the guest names them (`/dev/vda`, `/dev/vdb`, ...).
    #[serde(default)]
    pub block: Vec<BlockConfig>,
    /// virtio-net devices in the order in which the guest sees them.
    #[serde(default)]
    pub net: Vec<NetConfig>,
    /// virtio-vsock device.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Whether there is a virtio-rng device.
    #[serde(default)]
    pub rng: bool,
}

/// Kernel, initramfs and command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// `vmlinux` (ELF) or `bzImage`.
    pub kernel: PathBuf,
    /// cpio archive, compressed or not.
    #[serde(default)]
    pub initramfs: Option<PathBuf>,
    /// Command line, without the `virtio_mmio.device=` words that the VMM adds for each device.
    #[serde(default)]
    pub cmdline: String,
    /// Image of the guest firmware stage0, which verifies and boots the kernel. Every guest under a TEE has one;
    /// without it the kernel is entered directly.
    #[serde(default)]
    pub firmware: Option<PathBuf>,
    /// Folder, root's alone (mode 0700, made when it is missing), in which the digests of kernel and initramfs are kept, so that a
    /// start under stage0 need not hash them again; without it they are hashed at each start.
    #[serde(default)]
    pub digest_cache: Option<PathBuf>,
}

/// The trusted execution environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", from = "strict::TeeConfig")]
pub enum TeeConfig {
    /// A plain microVM: the host can read the guest's memory.
    #[default]
    None,
    /// A simulated SEV-SNP: the launch is measured with the real algorithm and reports are signed in the
    /// real format, under a throw-away root. It protects nothing.
    SimSnp {
        /// Folder made by `kata_cc_sim_tee::SimPlatform::create`: the chip's key and certificates.
        platform: PathBuf,
        /// SNP `HOST_DATA`, 32 bytes in hex: the digest of the init-data.
        host_data: String,
        /// SNP guest policy (ABI, GUEST_POLICY); `0x30000` when absent.
        policy: Option<u64>,
    },
    /// A simulated TDX: the launch is measured with the real algorithm and quotes are signed in the real format, under a
    /// throw-away root. It protects nothing.
    SimTdx {
        /// Folder made by `kata_cc_sim_tee::tdx::Quoter::create`.
        platform: PathBuf,
        /// MRCONFIGID, 48 bytes in hex: the digest of the init-data, padded with zeros.
        mrconfigid: String,
    },
    /// AMD SEV-SNP. Not yet run on hardware.
    Snp(SnpOptions),
    /// Intel TDX. Not yet run on hardware.
    Tdx(TdxOptions),
}

impl TeeConfig {
    /// Name in logs and in the monitor's state.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SimSnp { .. } => "sim-snp",
            Self::SimTdx { .. } => "sim-tdx",
            Self::Snp(_) => "snp",
            Self::Tdx(_) => "tdx",
        }
    }

    /// Whether what it says about protection is true of no hardware.
    #[must_use]
    pub const fn is_simulated(&self) -> bool {
        matches!(self, Self::SimSnp { .. } | Self::SimTdx { .. })
    }
}

/// A launch under SEV-SNP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpOptions {
    /// SNP `HOST_DATA`, 32 bytes in hex: the digest of the init-data.
    pub host_data: String,
    /// SNP guest policy (ABI, GUEST_POLICY); `0x30000` when absent.
    #[serde(default)]
    pub policy: Option<u64>,
    /// Whether a policy is accepted that lets the host read the guest's memory.
    #[serde(default)]
    pub allow_debug: bool,
    /// What the guest's owner signed: ID block (96 bytes) and ID authentication information (4096 bytes).
    #[serde(default)]
    pub id_block: Option<IdBlockFiles>,
    /// Certificates that the guest gets with its reports: a table as GHCB 4.1.8.1 has it.
    #[serde(default)]
    pub certificates: Option<PathBuf>,
    /// Whether the launch digest names the processor's model (RDX at start); `kata-cc measure --cpu` foretells it. Without, one
    /// digest is good for all models.
    #[serde(default)]
    pub bind_processor: bool,
    /// Whether reports are signed by the cloud's key (VLEK) only.
    #[serde(default)]
    pub vcek_disabled: bool,
}

/// Files of an ID block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdBlockFiles {
    /// ID block.
    pub block: PathBuf,
    /// ID authentication information.
    pub auth: PathBuf,
}

/// A launch under TDX.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxOptions {
    /// MRCONFIGID, 48 bytes in hex: the digest of the init-data, padded with zeros.
    pub mrconfigid: String,
    /// MROWNER, 48 bytes in hex; zeros when absent.
    #[serde(default)]
    pub mrowner: Option<String>,
    /// MROWNERCONFIG, 48 bytes in hex; zeros when absent.
    #[serde(default)]
    pub mrownerconfig: Option<String>,
    /// ATTRIBUTES; SEPT_VE_DISABLE alone when absent.
    #[serde(default)]
    pub attributes: Option<u64>,
    /// Whether attributes are accepted that let the host read the guest's memory.
    #[serde(default)]
    pub allow_debug: bool,
    /// Unix socket of the host's quoting service; without it and `quoting_vsock_port` the guest gets no quotes from this monitor.
    #[serde(default)]
    pub quoting_socket: Option<PathBuf>,
    /// vsock port of the host's quoting service (context 2).
    #[serde(default)]
    pub quoting_vsock_port: Option<u32>,
}

/// One virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// Name for logs and [`ControlRequest::AttachBlock`]; also the serial number that the guest reads
    /// (at most 20 bytes).
    pub id: String,
    /// Raw file or block device; without it the slot starts empty (capacity 0).
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
}

/// One virtio-net device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Name for logs.
    pub id: String,
    /// Name of an existing tap interface in the network namespace that the VMM is started in.
    pub tap: String,
    /// Guest's MAC address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
}

/// The virtio-vsock device, in user space.
///
/// Host to guest: connect to `uds`, send `CONNECT <port>\n`, read `OK <hostport>\n`. Guest to host: the
/// device connects to `<uds>_<port>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Guest's context id, 3 or more.
    pub cid: u32,
    /// Path of the host's Unix socket.
    pub uds: PathBuf,
}

/// The guest's command line for a tier (`vm`, or the name of a TEE), without the words of the root ([`root_words`]) and of the devices
/// (`virtio_mmio.device=`).
///
/// It is measured: the launcher, `kata-cc measure` and the guest image's manifest all take it from here.
#[must_use]
pub fn command_line(tier: &str) -> String {
    const BASE: &str = "console=ttyS0 reboot=k panic=-1 quiet loglevel=4 agent.log=info";
    match tier {
        "vm" => BASE.to_owned(),
        tee => format!("{BASE} kata_cc.tee={tee}"),
    }
}

/// What vouches for the guest's root image, an EROFS file system with the hash tree of dm-verity behind it; `root.json` beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootSeal {
    /// Blocks of 4 KiB of the file system; the hash tree follows them.
    pub data_blocks: u64,
    /// Root hash of the tree (SHA-256, no salt), 64 digits in hex.
    pub root_hash: String,
}

impl RootSeal {
    /// Whether its words can stand on a command line: a host that writes others changes what is measured, and must not break it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let digits = self.root_hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        self.data_blocks > 1 && self.data_blocks <= u64::MAX / SECTORS && self.root_hash.len() == 64 && digits
    }
}

/// Sectors of 512 bytes of a block of 4 KiB.
const SECTORS: u64 = 8;

/// Words of the command line by which the kernel finds its root on `device` (`/dev/vda`).
///
/// With a seal each block is checked when it is read, and one that is not what the root hash vouches for, or that the host does not
/// give, ends the guest; a plain guest trusts its host and is given none. Sources: Linux, `Documentation/admin-guide/device-mapper/dm-init.rst`, `verity.rst`.
#[must_use]
pub fn root_words(device: &str, seal: Option<&RootSeal>) -> String {
    let Some(RootSeal { data_blocks, root_hash }) = seal else {
        return format!("root={device} rootfstype=erofs");
    };
    let sectors = data_blocks * SECTORS;
    format!(
        "root=/dev/dm-0 rootfstype=erofs dm-mod.create=\"root,,0,ro,0 {sectors} verity 1 {device} {device} 4096 4096 \
         {data_blocks} {data_blocks} sha256 {root_hash} - 2 panic_on_corruption panic_on_error\""
    )
}

/// A question to a running VMM. Unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", from = "strict::ControlRequest")]
pub enum ControlRequest {
    /// What is the VM doing?
    State,
    /// Stop the vCPUs until `resume`.
    Pause,
    /// Let the vCPUs go on.
    Resume,
    /// End the VM at once; the VMM exits after answering.
    Stop,
    /// Counters of the VMM and its devices.
    Metrics,
    /// Put a file behind an empty block slot; the guest is told by a configuration change.
    AttachBlock {
        /// The slot's `id`.
        slot: String,
        /// Raw file or block device.
        path: PathBuf,
    },
    /// Empty a block slot again.
    DetachBlock {
        /// The slot's `id`.
        slot: String,
    },
}

/// How the tagged enums are read: serde's `deny_unknown_fields` passes over fields beside the tag of a variant without
/// fields (serde issue 2294), but not of one with an empty list of them.
mod strict {
    use std::path::PathBuf;

    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
    pub(super) enum TeeConfig {
        None {},
        SimSnp {
            platform: PathBuf,
            host_data: String,
            #[serde(default)]
            policy: Option<u64>,
        },
        SimTdx {
            platform: PathBuf,
            mrconfigid: String,
        },
        Snp(super::SnpOptions),
        Tdx(super::TdxOptions),
    }

    impl From<TeeConfig> for super::TeeConfig {
        fn from(read: TeeConfig) -> Self {
            match read {
                TeeConfig::None {} => Self::None,
                TeeConfig::SimSnp { platform, host_data, policy } => {
                    Self::SimSnp { platform, host_data, policy }
                }
                TeeConfig::SimTdx { platform, mrconfigid } => Self::SimTdx { platform, mrconfigid },
                TeeConfig::Snp(options) => Self::Snp(options),
                TeeConfig::Tdx(options) => Self::Tdx(options),
            }
        }
    }

    #[derive(Deserialize)]
    #[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
    pub(super) enum ControlRequest {
        State {},
        Pause {},
        Resume {},
        Stop {},
        Metrics {},
        AttachBlock { slot: String, path: PathBuf },
        DetachBlock { slot: String },
    }

    impl From<ControlRequest> for super::ControlRequest {
        fn from(read: ControlRequest) -> Self {
            match read {
                ControlRequest::State {} => Self::State,
                ControlRequest::Pause {} => Self::Pause,
                ControlRequest::Resume {} => Self::Resume,
                ControlRequest::Stop {} => Self::Stop,
                ControlRequest::Metrics {} => Self::Metrics,
                ControlRequest::AttachBlock { slot, path } => Self::AttachBlock { slot, path },
                ControlRequest::DetachBlock { slot } => Self::DetachBlock { slot },
            }
        }
    }
}

/// The answer to a [`ControlRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// Done; nothing more to say.
    Done,
    /// Answer to [`ControlRequest::State`].
    State(VmState),
    /// Answer to [`ControlRequest::Metrics`]: a flat map of counters, names in snake case.
    Metrics(std::collections::BTreeMap<String, u64>),
    /// The request was refused or failed.
    Error {
        /// What failed, what was seen, what to do.
        message: String,
    },
}

/// State of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// Phase of its life.
    pub phase: Phase,
    /// Launch digest in hex, when a TEE measured it.
    #[serde(default)]
    pub launch_digest: Option<String>,
    /// Name of the TEE, `none` without one.
    pub tee: String,
}

/// Phase of a VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// vCPUs run.
    Running,
    /// vCPUs are stopped and can be resumed.
    Paused,
    /// The VM has ended, or is about to.
    Stopped,
}

/// Exit codes of the `kata-cc-vmm` process.
pub mod exit {
    /// The guest shut down or `stop` was asked.
    pub const OK: i32 = 0;
    /// The VMM itself failed; the log says where.
    pub const FAILED: i32 = 1;
    /// The configuration or the command line was refused; nothing was started.
    pub const BAD_CONFIG: i32 = 2;
    /// The guest reset itself (a panic of its kernel does that).
    pub const GUEST_RESET: i32 = 3;
    /// KVM is missing or cannot run the guest.
    pub const NO_KVM: i32 = 4;
    /// The guest broke a device's contract so that it cannot go on (a triple fault, a bad virtqueue).
    pub const GUEST_FAULT: i32 = 5;
}

/// virtio-vsock ports that have a meaning.
pub mod port {
    /// Agent's ttrpc API: the guest listens (Kata's number).
    pub const AGENT: u32 = 1024;
    /// Agent's log, JSON lines: the host listens on `<uds>_1025`.
    pub const LOG: u32 = 1025;
    /// Egress: an HTTP proxy (CONNECT and absolute-form) that the host offers on `<uds>_1026`.
    pub const EGRESS: u32 = 1026;
    /// The simulated security processor, served inside the VMM.
    pub const SIM_TEE: u32 = 1027;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_survives_the_wire_and_none_takes_an_unknown_field() {
        let slot = || "rootfs-0".to_owned();
        for request in [
            ControlRequest::State,
            ControlRequest::Pause,
            ControlRequest::Resume,
            ControlRequest::Stop,
            ControlRequest::Metrics,
            ControlRequest::AttachBlock { slot: slot(), path: "/x".into() },
            ControlRequest::DetachBlock { slot: slot() },
        ] {
            let mut value = serde_json::to_value(&request).unwrap();
            assert_eq!(serde_json::from_value::<ControlRequest>(value.clone()).unwrap(), request);
            value["force"] = true.into();
            let error = serde_json::from_value::<ControlRequest>(value).unwrap_err().to_string();
            assert!(error.contains("force"), "{request:?}: {error}");
        }
    }

    #[test]
    fn the_words_of_a_root_are_those_of_the_kernels_parsers() {
        let seal = RootSeal { data_blocks: 6010, root_hash: "8f".repeat(32) };
        let hash = &seal.root_hash;
        assert_eq!(root_words("/dev/vda", None), "root=/dev/vda rootfstype=erofs");
        assert_eq!(
            root_words("/dev/vdi", Some(&seal)),
            format!(
                "root=/dev/dm-0 rootfstype=erofs dm-mod.create=\"root,,0,ro,0 48080 verity 1 /dev/vdi /dev/vdi 4096 4096 6010 6010 \
                 sha256 {hash} - 2 panic_on_corruption panic_on_error\""
            )
        );
        let sound = |data_blocks| RootSeal { data_blocks, ..seal.clone() }.is_sound();
        assert_eq!([1, 2, u64::MAX / 8, u64::MAX / 8 + 1].map(sound), [false, true, true, false]);
    }

    #[test]
    fn no_tee_takes_no_settings_of_one() {
        let snp = TeeConfig::SimSnp { platform: "/p".into(), host_data: "00".into(), policy: None };
        let tdx = TeeConfig::SimTdx { platform: "/p".into(), mrconfigid: "00".into() };
        for tee in [TeeConfig::None, snp, tdx] {
            let mut value = serde_json::to_value(&tee).unwrap();
            assert_eq!(serde_json::from_value::<TeeConfig>(value.clone()).unwrap(), tee);
            value["platfrom"] = "/p".into();
            assert!(serde_json::from_value::<TeeConfig>(value).is_err(), "{tee:?}");
        }
    }
}
