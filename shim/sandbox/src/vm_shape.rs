//! What every VM is made of: always the same devices, in the same order, so that the command line, and with it the
//! launch digest, depends on nothing but tier and size. Launching and `kata-cc measure` both take the shape from here.

use std::path::{Path, PathBuf};

use kata_cc_kbs_protocol::initdata::fit;
use kata_cc_vmm_api::{
    BlockConfig, BootConfig, NetConfig, SnpOptions, TdxOptions, TeeConfig, VmConfig, VsockConfig,
};

use crate::config::NodeConfig;
use crate::paths;
use crate::root_image::RootImage;
use crate::sizing::Size;
use crate::tier::Tier;

/// Spare block devices for root file systems: `rootfs-0` is `/dev/vdc`.
pub const ROOTFS_SLOTS: usize = 6;
/// Virtual network interfaces.
pub const NETWORK_SLOTS: usize = 2;
/// Devices of every VM: vsock, rng, init-data, scratch, root file systems, the guest's own root, network.
pub const DEVICES: usize = 2 + 2 + ROOTFS_SLOTS + 1 + NETWORK_SLOTS;
/// Device in the guest of its own root, which comes after those of containers.
const ROOT_DEVICE: &str = "/dev/vdi";
/// The guest's context id; it means nothing outside of its own VMM.
pub const GUEST_CID: u32 = 3;

/// Where Intel's quoting service listens.
const QUOTING_SOCKET: &str = "/var/run/tdx-qgs/qgs.socket";

/// What differs between VMs of one tier and size.
#[derive(Clone, Debug)]
pub struct Instance<'a> {
    /// Sandbox id.
    pub id: &'a str,
    /// Run-time folder.
    pub dir: &'a Path,
    /// The guest's root image; none when it has an initramfs.
    pub root: Option<&'a RootImage>,
    /// Block image with the init-data.
    pub initdata: Option<PathBuf>,
    /// Its digest, which the launch carries: SNP `HOST_DATA`, TDX `MRCONFIGID`.
    pub init_data_digest: Vec<u8>,
    /// Scratch disk.
    pub scratch: Option<PathBuf>,
    /// Tap interfaces, at most [`NETWORK_SLOTS`].
    pub taps: &'a [Tap],
}

/// One tap interface for the VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Interface name.
    pub name: String,
    /// MAC address of the guest's side.
    pub mac: String,
}

/// The guest's command line without device words.
#[must_use]
pub fn command_line(config: &NodeConfig, tier: Tier, root: Option<&RootImage>) -> String {
    let base = kata_cc_vmm_api::command_line(tier.name());
    let seal = |root| tier.is_confidential().then_some(root);
    let root = root.map(|root| kata_cc_vmm_api::root_words(ROOT_DEVICE, seal(&root.seal)));
    let more = Some(config.cmdline_append.trim()).filter(|more| !more.is_empty()).map(str::to_owned);
    std::iter::once(base).chain(root).chain(more).collect::<Vec<_>>().join(" ")
}

/// The guest's serial console in its run-time folder: a FIFO.
#[must_use]
pub(crate) fn console(dir: &Path) -> PathBuf {
    dir.join("console")
}

/// Device name in the guest of a root file system slot.
#[must_use]
pub fn rootfs_device(slot: usize) -> String {
    format!("/dev/vd{}", char::from(b'c' + u8::try_from(slot % ROOTFS_SLOTS).unwrap_or(0)))
}

/// Name of a root file system slot.
#[must_use]
pub fn rootfs_slot(slot: usize) -> String {
    format!("rootfs-{slot}")
}

/// The VM's configuration.
#[must_use]
pub fn vm_config(config: &NodeConfig, tier: Tier, size: Size, instance: &Instance<'_>) -> VmConfig {
    let mut block = vec![
        BlockConfig { id: "initdata".into(), path: instance.initdata.clone(), read_only: true },
        BlockConfig { id: "scratch".into(), path: instance.scratch.clone(), read_only: false },
    ];
    block.extend((0..ROOTFS_SLOTS).map(|slot| BlockConfig {
        id: rootfs_slot(slot),
        path: None,
        read_only: true,
    }));
    let root = instance.root.map(|root| root.image.clone());
    block.push(BlockConfig { id: "root".into(), path: root, read_only: true });
    let net = instance.taps.iter().enumerate().map(|(n, tap)| NetConfig {
        id: format!("net-{n}"),
        tap: tap.name.clone(),
        mac: tap.mac.clone(),
    });
    VmConfig {
        id: instance.id.to_owned(),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        boot: BootConfig {
            kernel: config.kernel(tier),
            initramfs: config.initramfs.clone(),
            cmdline: command_line(config, tier, instance.root),
            firmware: config.firmware(tier),
            digest_cache: (config.digest_cache && tier.is_confidential()).then(paths::digests),
        },
        tee: tee(config, tier, &instance.init_data_digest),
        console: Some(console(instance.dir)),
        control_socket: instance.dir.join("vmm.sock"),
        block,
        net: net.collect(),
        vsock: Some(VsockConfig { cid: GUEST_CID, uds: instance.dir.join("vsock") }),
        rng: true,
    }
}

/// The environment of a tier.
fn tee(config: &NodeConfig, tier: Tier, init_data_digest: &[u8]) -> TeeConfig {
    let host_data = || hex::encode(fit::<32>(init_data_digest));
    let mrconfigid = || hex::encode(fit::<48>(init_data_digest));
    match tier {
        Tier::SimSnp => {
            TeeConfig::SimSnp { platform: config.sim_platform(), host_data: host_data(), policy: None }
        }
        Tier::Snp => TeeConfig::Snp(SnpOptions {
            host_data: host_data(),
            certificates: config.tee.certificates.clone(),
            ..SnpOptions::default()
        }),
        Tier::SimTdx => TeeConfig::SimTdx { platform: config.sim_tdx_platform(), mrconfigid: mrconfigid() },
        Tier::Tdx => TeeConfig::Tdx(TdxOptions {
            mrconfigid: mrconfigid(),
            quoting_socket: Some(config.tee.quoting_socket.clone().unwrap_or_else(|| QUOTING_SOCKET.into())),
            ..TdxOptions::default()
        }),
        Tier::Vm | Tier::Sentry => TeeConfig::None,
    }
}

#[cfg(test)]
mod tests {
    use kata_cc_vmm_api::RootSeal;

    use super::*;

    /// An instance whose init-data has a digest of these bytes.
    fn instance(digest: u8, taps: &[Tap]) -> Instance<'_> {
        Instance {
            id: "x",
            dir: Path::new("/run/x"),
            root: None,
            initdata: None,
            init_data_digest: vec![digest; 32],
            scratch: None,
            taps,
        }
    }

    /// A confidential tier never gives a configuration without its TEE, nor a TEE without the firmware.
    #[test]
    fn each_tier_has_its_environment() {
        let instance = instance(0x5a, &[]);
        let size = Size { vcpus: 1, memory_mib: 256 };
        for tier in Tier::ALL {
            let vm = vm_config(&NodeConfig::default(), tier, size, &instance);
            let expected = if tier.is_confidential() { tier.name() } else { "none" };
            assert_eq!((vm.tee.name(), vm.boot.firmware.is_some()), (expected, tier.is_confidential()));
            let digest = match &vm.tee {
                TeeConfig::None => continue,
                TeeConfig::SimSnp { host_data, .. } => host_data,
                TeeConfig::SimTdx { mrconfigid, .. } => mrconfigid,
                TeeConfig::Snp(snp) => &snp.host_data,
                TeeConfig::Tdx(tdx) => &tdx.mrconfigid,
            };
            assert!(digest.starts_with(&"5a".repeat(32)), "{tier}: {digest}");
            assert!([64, 96].contains(&digest.len()));
        }
    }

    #[test]
    fn digests_are_kept_for_confidential_guests_unless_the_node_says_otherwise() {
        let instance = instance(0, &[]);
        let size = Size { vcpus: 1, memory_mib: 256 };
        for (on, tier) in Tier::ALL.into_iter().flat_map(|tier| [(true, tier), (false, tier)]) {
            let config = NodeConfig { digest_cache: on, ..NodeConfig::default() };
            let cache = vm_config(&config, tier, size, &instance).boot.digest_cache;
            assert_eq!(cache, (on && tier.is_confidential()).then(paths::digests), "{tier}");
        }
        assert!(NodeConfig::default().digest_cache);
    }

    #[test]
    fn the_shape_has_as_many_devices_as_is_measured() {
        let taps: Vec<Tap> = (0..NETWORK_SLOTS)
            .map(|n| Tap { name: format!("t{n}"), mac: "02:00:00:00:00:01".into() })
            .collect();
        let instance = instance(0, &taps);
        let size = Size { vcpus: 1, memory_mib: 256 };
        let vm = vm_config(&NodeConfig::default(), Tier::SimSnp, size, &instance);
        assert_eq!(vm.block.len() + vm.net.len() + 2, DEVICES);
        assert!(vm.boot.cmdline.ends_with("kata_cc.tee=sim-snp"));
        assert_eq!(rootfs_device(0), "/dev/vdc");
    }

    #[test]
    fn the_root_of_a_confidential_guest_is_verified_and_last_of_the_disks() {
        let seal = RootSeal { data_blocks: 5000, root_hash: "ab".repeat(32) };
        let root = RootImage { image: "/g/root.erofs".into(), seal };
        let instance = Instance { root: Some(&root), ..instance(0, &[]) };
        let size = Size { vcpus: 1, memory_mib: 256 };
        for tier in Tier::ALL {
            let vm = vm_config(&NodeConfig::default(), tier, size, &instance);
            let last = vm.block.last().unwrap();
            assert_eq!((last.path.as_deref(), last.read_only), (Some(root.image.as_path()), true));
            let letter = char::from(b'a' + u8::try_from(vm.block.len()).unwrap() - 1);
            assert_eq!(ROOT_DEVICE, format!("/dev/vd{letter}"));
            assert_eq!(vm.boot.cmdline.contains(&"ab".repeat(32)), tier.is_confidential(), "{tier}");
            assert!(vm.boot.cmdline.contains(" root=/dev/"));
        }
    }
}
