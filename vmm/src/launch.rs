//! From a configuration to a launch: which [`Tee`] with what, and the plan's bytes in guest memory.

use std::path::Path;

use kata_cc_boot::{LaunchPlan, Region, layout};
use kata_cc_measurement::CpuSignature;
use kata_cc_measurement::stage0::Stage0Launch;
use kata_cc_snp::id_block::{IdAuth, IdBlock};
use kata_cc_snp::policy::GuestPolicy;
use kata_cc_stage0_abi::PlatformKind;
use kata_cc_vmm_api::{IdBlockFiles, SnpOptions, TdxOptions, TeeConfig, VmConfig};
use kvm_bindings::CpuId;

use crate::config::{DEFAULT_POLICY, hex_bytes};
use crate::error::VmmError;
use crate::kvm::{Machine, start};
use crate::tee::ioctls::TeeIoctls;
use crate::tee::memory::MemoryBook;
use crate::tee::sim::{SimLaunch, SimTee};
use crate::tee::snp::{SnpConfig, SnpTee};
use crate::tee::tdx::{TdxConfig, TdxTee};
use crate::tee::{NoTee, Tee, TeeError, TeeKind, launch};

/// Leaf whose EBX[5:0] is the position of the bit that marks private memory (APM volume 3, appendix E.4.17).
const LEAF_MEMORY_ENCRYPTION: u32 = 0x8000_001F;
/// Leaf whose EAX[23:16] is the number of the guest's physical address bits.
const LEAF_ADDRESS_BITS: u32 = 0x8000_0008;
/// Address bits of a TD: with 48 the shared bit is bit 47, which every host with TDX can give.
const TD_ADDRESS_BITS: u32 = 48;

/// Which environment a configuration asks for.
pub(crate) const fn kind(tee: &TeeConfig) -> TeeKind {
    match tee {
        TeeConfig::None => TeeKind::None,
        TeeConfig::SimSnp { .. } => TeeKind::SimSnp,
        TeeConfig::SimTdx { .. } => TeeKind::SimTdx,
        TeeConfig::Snp(_) => TeeKind::Snp,
        TeeConfig::Tdx(_) => TeeKind::Tdx,
    }
}

/// What the boot block names: the platform, and the position of the bit that marks private (SNP) or shared (TDX)
/// memory on this host.
pub(crate) fn platform(tee: &TeeConfig) -> (PlatformKind, u32) {
    match tee {
        TeeConfig::None => (PlatformKind::Plain, 0),
        TeeConfig::SimSnp { .. } => (PlatformKind::SimSnp, 0),
        TeeConfig::SimTdx { .. } => (PlatformKind::SimTdx, 0),
        TeeConfig::Snp(_) => {
            (PlatformKind::Snp, std::arch::x86_64::__cpuid(LEAF_MEMORY_ENCRYPTION).ebx & 0x3F)
        }
        TeeConfig::Tdx(_) => (PlatformKind::Tdx, TD_ADDRESS_BITS - 1),
    }
}

/// A guest that is ready to run.
pub(crate) struct Launched {
    /// Launch digest or MRTD.
    pub(crate) digest: Option<[u8; 48]>,
    /// Which memory is private.
    pub(crate) book: MemoryBook,
}

/// Launches the guest: private memory, vCPUs in their first state, measured pages, then what the guest finds beside
/// them in shared memory. `cpuid` gives the list of a vCPU; it is asked only where the launch sets it.
///
/// # Errors
/// What the host lacks or refused. The VM is of no use then.
pub(crate) fn run(
    config: &VmConfig,
    plan: &LaunchPlan<'_>,
    io: &dyn TeeIoctls,
    cpuid: &dyn Fn(u8) -> CpuId,
) -> Result<Launched, VmmError> {
    let mut book = MemoryBook::new(&layout::memory_ranges(config.memory_mib));
    let mut tee = tee(config, plan, cpuid)?;
    let digest = launch(&mut *tee, io, &mut book, config.vcpus.into())?;
    // a TEE has loaded what is measured itself
    let measured: &[Region<'_>] = if tee.kind() == TeeKind::None { &plan.regions } else { &[] };
    for region in measured.iter().chain(&plan.unmeasured) {
        book.check_shared(region.gpa, region.bytes.len() as u64).map_err(TeeError::from)?;
        io.write_shared(region.gpa, &region.bytes).map_err(TeeError::refused("writing guest memory"))?;
    }
    Ok(Launched { digest, book })
}

/// The vCPUs of a launched guest, in order. Those of a guest whose registers the host may set are given them.
///
/// # Errors
/// What KVM said.
pub(crate) fn vcpus(
    kind: TeeKind,
    plan: &LaunchPlan<'_>,
    machine: &Machine,
) -> Result<Vec<kvm_ioctls::VcpuFd>, VmmError> {
    let vcpus = machine.io().take_vcpus();
    if kind.has_private_memory() {
        return Ok(vcpus);
    }
    for (id, vcpu) in (0u8..).zip(&vcpus) {
        machine.prepare_vcpu(vcpu, id, plan.vcpus)?;
        if id == 0 {
            start::set_registers(vcpu, &plan.start)?;
        }
    }
    Ok(vcpus)
}

fn tee<'a>(
    config: &VmConfig,
    plan: &LaunchPlan<'a>,
    cpuid: &dyn Fn(u8) -> CpuId,
) -> Result<Box<dyn Tee + 'a>, VmmError> {
    let cpuid = || (0..config.vcpus).map(cpuid).collect::<Vec<_>>();
    let shared = || plan.unmeasured.iter().map(|region| (region.gpa, region.end() - region.gpa)).collect();
    Ok(match &config.tee {
        TeeConfig::None => Box::new(NoTee),
        TeeConfig::SimSnp { .. } => Box::new(SimTee::new(SimLaunch::Snp(stage0(plan)?.snp()?))),
        TeeConfig::SimTdx { .. } => {
            Box::new(SimTee::new(SimLaunch::Tdx(stage0(plan)?.tdx()?, config.vcpus.into())))
        }
        TeeConfig::Snp(options) => {
            let cpuid = cpuid();
            let launch = match signature(&cpuid).filter(|_| options.bind_processor) {
                Some(cpu) => stage0(plan)?.with_cpu(cpu),
                None => stage0(plan)?,
            };
            let settings = SnpConfig { shared: shared(), ..snp_config(options)? };
            Box::new(SnpTee::new(settings, launch.snp()?, launch.registers(), cpuid))
        }
        TeeConfig::Tdx(options) => {
            let mut cpuid = cpuid();
            cpuid.iter_mut().for_each(set_address_bits);
            let settings = TdxConfig { shared: shared(), ..tdx_config(options)? };
            Box::new(TdxTee::new(settings, stage0(plan)?.tdx()?, config.vcpus.into(), cpuid))
        }
    })
}

/// The firmware's launch. A configuration with a TEE always has one: [`crate::config::validate`].
fn stage0<'a>(plan: &LaunchPlan<'a>) -> Result<Stage0Launch<'a>, VmmError> {
    plan.stage0.as_deref().cloned().ok_or(VmmError::NoFirmware)
}

/// Family, model and stepping as leaf 1 tells them, which KVM puts into RDX of a vCPU at reset.
fn signature(cpuid: &[CpuId]) -> Option<CpuSignature> {
    let first = cpuid.first()?.as_slice().iter().find(|entry| entry.function == 1)?;
    Some(CpuSignature(first.eax))
}

fn set_address_bits(cpuid: &mut CpuId) {
    for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == LEAF_ADDRESS_BITS) {
        entry.eax = entry.eax & !(0xFF << 16) | TD_ADDRESS_BITS << 16;
    }
}

fn snp_config(options: &SnpOptions) -> Result<SnpConfig, VmmError> {
    let defaults = SnpConfig::new(hex_bytes("tee.host_data", &options.host_data)?);
    Ok(SnpConfig {
        policy: GuestPolicy(options.policy.unwrap_or(DEFAULT_POLICY)),
        allow_debug: options.allow_debug,
        id: options.id_block.as_ref().map(id_block).transpose()?,
        vcek_disabled: options.vcek_disabled,
        certificates: options.certificates.is_some(),
        ..defaults
    })
}

fn id_block(files: &IdBlockFiles) -> Result<(IdBlock, IdAuth), VmmError> {
    let block = IdBlock::parse(&read("ID block", &files.block)?).map_err(TeeError::from)?;
    let auth = IdAuth::parse(&read("ID authentication", &files.auth)?).map_err(TeeError::from)?;
    Ok((block, auth))
}

fn tdx_config(options: &TdxOptions) -> Result<TdxConfig, VmmError> {
    let defaults = TdxConfig::new(hex_bytes("tee.mrconfigid", &options.mrconfigid)?);
    let owner = |name, text: &Option<String>| text.as_ref().map_or(Ok([0; 48]), |text| hex_bytes(name, text));
    Ok(TdxConfig {
        attributes: options.attributes.unwrap_or(defaults.attributes),
        allow_debug: options.allow_debug,
        mrowner: owner("tee.mrowner", &options.mrowner)?,
        mrownerconfig: owner("tee.mrownerconfig", &options.mrownerconfig)?,
        ..defaults
    })
}

/// Largest file that a launch takes besides what it boots.
const MAX_FILE: u64 = 1 << 20;

/// A small file that the configuration names.
///
/// # Errors
/// Names it.
pub(crate) fn read(what: &str, path: &Path) -> Result<Vec<u8>, VmmError> {
    let file = |source| VmmError::File { what: what.to_owned(), path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(file)?.len();
    if length > MAX_FILE {
        return Err(file(std::io::Error::other(format!("{length} bytes, at most {MAX_FILE} are read"))));
    }
    std::fs::read(path).map_err(file)
}

#[cfg(test)]
mod tests {
    use kata_cc_boot::{Firmware, LaunchInput};
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;
    use crate::tee::fake::{FakeKernel, Host};

    const SIGNATURE: u32 = 0xA0_0F11;

    fn list(function: u32, eax: u32, ecx: u32) -> CpuId {
        CpuId::from_entries(&[kvm_cpuid_entry2 { function, eax, ecx, ..Default::default() }])
            .expect("one entry")
    }

    /// An ELF kernel of one segment.
    fn kernel() -> Vec<u8> {
        let mut file = vec![0; 4096];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..20].copy_from_slice(&[2, 0, 62, 0]);
        file[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        (file[32], file[64]) = (64, 1);
        file[54..58].copy_from_slice(&[56, 0, 1, 0]);
        for (at, field) in [(72, 4096_u64), (88, 0x100_0000), (96, 64), (104, 64)] {
            file[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        file.extend([0x90; 64]);
        file
    }

    fn image() -> Vec<u8> {
        let mut image: Vec<u8> =
            (0..0x5000_u32).map(|n| (n.wrapping_mul(2_246_822_519) >> 23) as u8).collect();
        image[16..24].copy_from_slice(b"KCCIMG0\0");
        for (at, value) in [(24, 1_u32), (28, 0x5000), (32, 0x3000), (36, 0)] {
            image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        image
    }

    fn config(tee: serde_json::Value) -> VmConfig {
        serde_json::from_value(serde_json::json!({
            "id": "test", "vcpus": 2, "memory_mib": 128, "control_socket": "/run/x",
            "boot": {"kernel": "/kernel", "firmware": "/stage0"}, "tee": tee,
            "vsock": {"cid": 3, "uds": "/run/v"},
        }))
        .expect("a configuration")
    }

    /// What a host hands over in shared memory: address and bytes.
    type Payloads = Vec<(u64, Vec<u8>)>;

    /// A launch by configuration against a kernel of that type: the digest that the launch gave, the kernel, and what was handed over
    /// in shared memory. The digest is the plan's, which `kata-cc measure` foretells, unless the processor is bound.
    fn launched(
        tee: serde_json::Value,
        platform: (PlatformKind, u32),
        bound: bool,
    ) -> (Option<[u8; 48]>, FakeKernel, Payloads) {
        let config = config(tee);
        crate::config::validate(&config).expect("valid");
        let (kernel, image) = (kernel(), image());
        let plan = LaunchPlan::new(&LaunchInput {
            kernel: &kernel,
            initramfs: Some(&[7; 5000]),
            cmdline: "quiet",
            memory_mib: 128,
            vcpus: 2,
            devices: 1,
            firmware: Some(Firmware::new(&image, platform.0, platform.1)),
        })
        .expect("plan");
        let io = FakeKernel::new(kind(&config.tee).vm_type(), Host::default());
        let done = run(&config, &plan, &io, &|_| list(1, SIGNATURE, 1 << 21)).expect("launched");
        let measured = plan.stage0.as_ref().expect("by stage0");
        let foretold = match platform.0 {
            PlatformKind::Tdx | PlatformKind::SimTdx => {
                measured.tdx().map(|td| td.mrtd(kata_cc_measurement::tdx::PassOrder::Single))
            }
            _ => measured.snp().map(|snp| snp.digest()),
        };
        assert_eq!(done.digest == foretold.ok(), !bound, "foretold offline");
        for region in &plan.unmeasured {
            done.book.check_shared(region.gpa, region.bytes.len() as u64).expect("shared");
        }
        let payloads = plan.unmeasured.iter().map(|region| (region.gpa, region.bytes.to_vec())).collect();
        (done.digest, io, payloads)
    }

    fn assert_written(io: &FakeKernel, payloads: &[(u64, Vec<u8>)]) {
        for (gpa, bytes) in payloads {
            assert_eq!(io.state().memory.shared.get(gpa), Some(bytes), "{gpa:#x}");
        }
    }

    #[test]
    fn snp_is_launched_as_it_is_measured() {
        let tee = serde_json::json!({"kind": "snp", "host_data": "5a".repeat(32)});
        let (digest, io, payloads) = launched(tee, (PlatformKind::Snp, 51), false);
        assert_eq!(Some(io.state().snp.digest), digest, "by the fake's security processor");
        assert_eq!(io.state().snp.host_data, [0x5a; 32]);
        assert_written(&io, &payloads);
        let tee = serde_json::json!({"kind": "snp", "host_data": "5a".repeat(32), "bind_processor": true});
        let (bound, io, _) = launched(tee, (PlatformKind::Snp, 51), true);
        assert!(bound != digest && Some(io.state().snp.digest) == bound, "another digest, the fake's too");
    }

    #[test]
    fn tdx_is_launched_as_it_is_measured() {
        let tee = serde_json::json!({"kind": "tdx", "mrconfigid": "5a".repeat(48)});
        let (digest, io, payloads) = launched(tee, (PlatformKind::Tdx, 47), false);
        assert_eq!(Some(io.state().tdx.mrtd), digest, "by the fake's TDX module");
        assert_written(&io, &payloads);
    }

    #[test]
    fn simulated_guests_are_launched_as_they_are_measured() {
        let tee = serde_json::json!({"kind": "sim-tdx", "platform": "/p", "mrconfigid": "5a".repeat(48)});
        let (tdx, io, payloads) = launched(tee, (PlatformKind::SimTdx, 0), false);
        assert_written(&io, &payloads);
        let tee = serde_json::json!({"kind": "sim-snp", "platform": "/p", "host_data": "5a".repeat(32)});
        let (snp, io, payloads) = launched(tee, (PlatformKind::SimSnp, 0), false);
        assert_written(&io, &payloads);
        assert!(tdx.is_some() && snp.is_some() && tdx != snp);
    }

    #[test]
    fn what_the_host_lacks_is_told_and_nothing_is_weakened() {
        let host = Host { vm_types: 1, ..Host::default() };
        let config = config(serde_json::json!({"kind": "snp", "host_data": "00".repeat(32)}));
        let (kernel, image) = (kernel(), image());
        let plan = LaunchPlan::new(&LaunchInput {
            kernel: &kernel,
            initramfs: None,
            cmdline: "",
            memory_mib: 128,
            vcpus: 2,
            devices: 0,
            firmware: Some(Firmware::new(&image, PlatformKind::Snp, 51)),
        })
        .expect("plan");
        let io = FakeKernel::new(4, host);
        let error = run(&config, &plan, &io, &|_| list(1, SIGNATURE, 0)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("VMs of type SNP"), "{error}");
        assert_eq!(error.exit_code(), kata_cc_vmm_api::exit::NO_KVM);
    }

    #[test]
    fn a_td_has_its_address_bits_and_an_snp_guest_its_processor() {
        let mut cpuid = list(LEAF_ADDRESS_BITS, 0x00_34_30_2E, 0);
        set_address_bits(&mut cpuid);
        assert_eq!(cpuid.as_slice()[0].eax, 0x00_30_30_2E);
        assert_eq!(signature(&[list(1, SIGNATURE, 0)]), Some(CpuSignature(SIGNATURE)));
        assert_eq!(signature(&[list(2, 1, 0)]), None);
    }

    #[test]
    fn fields_in_hex_and_files_are_named_when_they_are_wrong() {
        let error = tdx_config(&TdxOptions { mrconfigid: "00".into(), ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains("tee.mrconfigid"), "{error}");
        let none = IdBlockFiles { block: "/none/block".into(), auth: "/none/auth".into() };
        let options = SnpOptions { host_data: "5a".repeat(32), id_block: Some(none), ..Default::default() };
        let error = snp_config(&options).unwrap_err().to_string();
        assert!(error.contains("ID block") && error.contains("/none/block"), "{error}");
    }
}
