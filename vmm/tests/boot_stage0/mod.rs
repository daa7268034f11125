//! Boots through the guest firmware stage0: `share/stage0` of the build cache, or what
//! `KATA_CC_SHARE_DIR` has. What a host could change between the plan and the guest is changed here by a
//! bit of the plan: what a VMM does with a plan is all that it can do before the guest runs.

use std::path::{Path, PathBuf};

use kata_cc_boot::{Firmware, LaunchInput, LaunchPlan, PlatformKind, TERMINATION_PORT, Termination};
use kata_cc_vmm::error::VmmError;
use kata_cc_vmm::kvm::{Machine, start};
use kata_cc_vmm::memory;
use kata_cc_vmm_api::{ControlReply, ControlRequest, TeeConfig, VsockConfig, exit};

use kvm_ioctls::VcpuExit;

use super::common::{share, wait_for};
use super::{Control, Guest};

const SCRIPT: &str =
    "echo CPUS $(nproc); grep MemTotal /proc/meminfo; cat /proc/cmdline; echo END; reboot -f";

fn image() -> Option<PathBuf> {
    Some(share().join("stage0")).filter(|path| path.is_file())
}

/// A guest that boots through stage0, or the reason why there is none.
fn guest(name: &str, kernel: &str, script: &str) -> Option<Guest> {
    let Some(image) = image() else {
        eprintln!("{name} skips: no stage0 in {}", share().display());
        return None;
    };
    let mut guest = Guest::new(name, kernel, script)?;
    guest.config.boot.firmware = Some(image);
    Some(guest)
}

/// Boots to the end and gives the console.
fn boot(guest: &Guest) -> String {
    let mut vm = guest.start();
    let code = vm.exit_code();
    let log = std::fs::read_to_string(guest.path("log")).expect("log");
    assert_eq!(code, exit::GUEST_RESET, "{log}");
    wait_for(&guest.path("console"), "END")
}

fn memory_kib(console: &str) -> u64 {
    let mut words = console.split_whitespace().skip_while(|word| *word != "MemTotal:");
    words.nth(1).and_then(|word| word.parse().ok()).expect("MemTotal")
}

#[test]
fn stage0_boots_a_vmlinux_with_one_vcpu() {
    let Some(mut guest) = guest("stage0 vmlinux", "vmlinux", SCRIPT) else { return };
    guest.config.rng = true;
    let console = boot(&guest);
    assert!(console.contains("CPUS 1"), "{console}");
    assert!(console.contains("quiet virtio_mmio.device=4K@0xd0000000:5"), "{console}");
}

#[test]
fn stage0_boots_a_vmlinux_with_four_vcpus_and_memory_above_the_hole() {
    let Some(mut guest) = guest("stage0 large", "vmlinux", SCRIPT) else { return };
    guest.config.vcpus = 4;
    guest.config.memory_mib = 3074;
    let console = boot(&guest);
    assert!(console.contains("CPUS 4"), "{console}");
    assert!(memory_kib(&console) > 2_900_000, "{console}");
}

#[test]
fn stage0_boots_a_bzimage_with_four_vcpus_in_little_memory() {
    let Some(mut guest) = guest("stage0 bzimage", "bzImage", SCRIPT) else { return };
    guest.config.vcpus = 4;
    guest.config.memory_mib = 64;
    let console = boot(&guest);
    assert!(console.contains("CPUS 4"), "{console}");
    assert!(memory_kib(&console) < 64 << 10, "{console}");
}

#[test]
fn stage0_under_the_simulated_tee_is_what_is_measured() {
    let Some(mut guest) = guest("stage0 sim", "vmlinux", "echo UP; sleep 1000") else { return };
    let platform = guest.path("sim");
    kata_cc_sim_tee::SimPlatform::create(&platform).expect("platform");
    guest.config.tee = TeeConfig::SimSnp { platform, host_data: "5a".repeat(32), policy: None };
    guest.config.vsock = Some(VsockConfig { cid: 3, uds: guest.path("vsock") });
    guest.config.vcpus = 2;
    let mut vm = guest.start();
    wait_for(&guest.path("console"), "UP");
    let mut control = Control::connect(&guest);
    let ControlReply::State(state) = control.ask(&ControlRequest::State) else { panic!("no state") };
    let boot = &guest.config.boot;
    let read = |path: &Path| std::fs::read(path).expect("file");
    let (kernel, image) = (read(&boot.kernel), read(boot.firmware.as_deref().expect("image")));
    let initramfs = read(boot.initramfs.as_deref().expect("initramfs"));
    let plan = LaunchPlan::new(&LaunchInput {
        kernel: &kernel,
        initramfs: Some(&initramfs),
        cmdline: &boot.cmdline,
        memory_mib: guest.config.memory_mib,
        vcpus: guest.config.vcpus,
        devices: 1,
        firmware: Some(Firmware { image: &image, platform: PlatformKind::SimSnp, memory_bit: 0 }),
    });
    let plan = plan.expect("plan");
    let predicted = plan.launch_digest().expect("measured");
    assert_eq!(state.launch_digest, Some(hex::encode(predicted)), "predicted offline");
    let measured: usize = plan.regions.iter().map(|region| region.bytes.len()).sum();
    assert!(measured <= 60 << 10, "{measured} bytes beside secrets and CPUID page");
    assert_eq!(control.ask(&ControlRequest::Stop), ControlReply::Done);
    assert_eq!(vm.exit_code(), exit::OK);
}

/// Starts a plan as a hostile host may have changed it, and gives the number with which stage0 ends.
fn termination(plan: &LaunchPlan<'_>, memory_mib: u64) -> Result<Termination, String> {
    let text = |error: VmmError| error.to_string();
    let ram = memory::create(memory_mib).map_err(text)?;
    let machine = Machine::create(ram.clone()).map_err(text)?;
    memory::load(&ram, plan).map_err(text)?;
    let mut vcpu = machine.create_vcpu(0, 1).map_err(text)?;
    start::set_registers(&vcpu, &plan.start).map_err(text)?;
    loop {
        match vcpu.run().map_err(|error| error.to_string())? {
            VcpuExit::IoOut(TERMINATION_PORT, &[code, 0, 0, 0]) => {
                return Termination::from_code(code).ok_or_else(|| format!("number {code:#x}"));
            }
            other => return Err(format!("{other:?}")),
        }
    }
}

#[test]
fn stage0_refuses_each_flipped_bit_by_name() {
    let Some(guest) = guest("stage0 refusals", "bzImage", "") else { return };
    let boot = &guest.config.boot;
    let read = |path: &Path| std::fs::read(path).expect("file");
    let (kernel, image) = (read(&boot.kernel), read(boot.firmware.as_deref().expect("image")));
    let initramfs = read(boot.initramfs.as_deref().expect("initramfs"));
    let input = LaunchInput {
        kernel: &kernel,
        initramfs: Some(&initramfs),
        cmdline: &boot.cmdline,
        memory_mib: 128,
        vcpus: 1,
        devices: 1,
        firmware: Some(Firmware { image: &image, platform: PlatformKind::Plain, memory_bit: 0 }),
    };
    for (region, offset, expected) in [
        ("kernel file", 5_000_000, Termination::KernelHash),
        ("initramfs file", 500_000, Termination::InitramfsHash),
        ("command line", 3, Termination::CommandLineHash),
        ("boot block", 45, Termination::KernelHash),
        ("boot block", 85, Termination::InitramfsHash),
        ("boot block", 125, Termination::CommandLineHash),
        ("boot block", 4000, Termination::BootBlockReserved),
        ("boot info", 40, Termination::BootInfoReserved),
        ("boot info", 16, Termination::BootInfoPayloadAlignment),
    ] {
        let mut plan = LaunchPlan::new(&input).expect("plan");
        let mut regions = plan.regions.iter_mut().chain(&mut plan.unmeasured);
        let spoilt = regions.find(|one| one.name == region).expect("region");
        spoilt.bytes.to_mut()[offset] ^= 1;
        assert_eq!(termination(&plan, 128), Ok(expected), "{region} at {offset}");
    }
}

#[test]
fn the_vmm_tells_in_words_why_stage0_refused() {
    let Some(mut guest) = guest("stage0 words", "vmlinux", "") else { return };
    // a segment at 1 MiB, where a direct boot has room and stage0 has itself
    let mut kernel = vec![0; 8192];
    kernel[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    kernel[16..20].copy_from_slice(&[2, 0, 62, 0]);
    kernel[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    kernel[32] = 64;
    kernel[54..58].copy_from_slice(&[56, 0, 1, 0]);
    kernel[64] = 1;
    for (at, field) in [(72, 4096), (88, 0x10_0000), (96, 4096), (104, 4096_u64)] {
        kernel[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }
    guest.config.boot.kernel = guest.path("kernel");
    std::fs::write(&guest.config.boot.kernel, kernel).expect("written");
    let mut vm = guest.start();
    assert_eq!(vm.exit_code(), exit::GUEST_FAULT);
    wait_for(
        &guest.path("log"),
        "stage0 refused to boot: the kernel's segments lie where they must not (KernelSegments, 0x25)",
    );
}
