//! Boots through the guest firmware stage0: `share/stage0` of the build cache, or what
//! `KATA_CC_SHARE_DIR` has. What a host could change between the plan and the guest is changed here by a
//! bit of the plan: what a VMM does with a plan is all that it can do before the guest runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use kata_cc_boot::{Firmware, LaunchInput, LaunchPlan, PlatformKind, TERMINATION_PORT, Termination};
use kata_cc_devices::Memory;
use kata_cc_vmm::error::VmmError;
use kata_cc_vmm::kvm::{Machine, start};
use kata_cc_vmm::memory;
use kata_cc_vmm::tee::TeeKind;
use kata_cc_vmm_api::{BlockConfig, ControlReply, ControlRequest, TeeConfig, VsockConfig, exit};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::common::{cache, share, wait_for};
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
    let console = wait_for(&guest.path("console"), "END");
    assert_eq!(vm.exit_code(), exit::GUEST_RESET);
    console
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

/// Debian's cloud kernel, which the lab has: it knows both TEEs, has ACPI, and cannot read an MP table. So
/// it finds its vCPUs and their interrupts by stage0's ACPI tables or not at all.
#[test]
fn stage0_boots_a_kernel_that_has_acpi_only() {
    let folder = cache().join("lab/l1/boot");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut kernels = files.filter(|path| path.to_string_lossy().contains("/vmlinuz-"));
    let Some(kernel) = kernels.next() else {
        eprintln!("stage0 acpi skips: the lab's kernel is not there");
        return;
    };
    let script = "echo CPUS $(nproc); ls /sys/firmware/acpi/tables | tr '\\n' ' '; echo END; reboot -f";
    let Some(mut guest) = guest("stage0 acpi", "bzImage", script) else { return };
    guest.config.boot.kernel = kernel;
    guest.config.boot.cmdline = "console=ttyS0 reboot=k panic=-1 earlyprintk=serial".into();
    guest.config.vcpus = 2;
    guest.config.memory_mib = 256;
    let console = boot(&guest);
    assert!(console.contains("CPUS 2") && console.contains("APIC DSDT FACP"), "{console}");
}

/// Puts a guest under the simulated TEE.
fn simulated(guest: &mut Guest) {
    let platform = guest.path("sim");
    kata_cc_sim_tee::SimPlatform::create(&platform).expect("platform");
    guest.config.tee = TeeConfig::SimSnp { platform, host_data: "5a".repeat(32), policy: None };
    guest.config.vsock = Some(VsockConfig { cid: 3, uds: guest.path("vsock") });
}

/// The kernel of confidential guests finds its devices by stage0's DSDT, also those whose interrupt lines a PC's kernel would not
/// set up by itself (16 and more); their words are gone from its command line.
#[test]
fn stage0_tells_a_confidential_guest_of_its_devices_by_acpi() {
    let script = "dd if=/dev/vdn bs=5 count=1 2>/dev/null; echo; grep virtio /proc/interrupts; echo CPUS $(nproc); \
                  cat /proc/cmdline; ls /sys/firmware/acpi/tables | tr '\\n' ' '; echo END; reboot -f";
    let Some(mut guest) = guest("stage0 acpi devices", "vmlinux-tee", script) else { return };
    simulated(&mut guest);
    guest.config.vcpus = 2;
    let disk = guest.path("disk");
    std::fs::write(&disk, b"hello".repeat(4096)).expect("disk");
    // vsock is the first device, with line 5; the fourteenth disk, vdn, has line 19
    guest.config.block = (0..14)
        .map(|n| BlockConfig { id: format!("b{n}"), path: (n == 13).then(|| disk.clone()), read_only: true })
        .collect();
    let console = boot(&guest);
    assert!(console.contains("hello"), "{console}");
    let line = console.lines().find(|line| line.trim_start().starts_with("19:")).unwrap_or_default();
    assert!(line.contains("virtio14"), "{console}");
    assert!(console.contains("CPUS 2") && console.contains("DSDT"), "{console}");
    assert!(console.contains("quiet") && !console.contains("virtio_mmio.device"), "{console}");
}

#[test]
fn stage0_under_the_simulated_tee_is_what_is_measured() {
    let Some(mut guest) = guest("stage0 sim", "vmlinux-tee", "echo UP; sleep 1000") else { return };
    simulated(&mut guest);
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
        firmware: Some(Firmware::new(&image, PlatformKind::SimSnp, 0)),
    });
    let plan = plan.expect("plan");
    let predicted = plan.launch_digest().expect("measured");
    assert_eq!(
        (state.tee.as_str(), state.launch_digest),
        ("sim-snp", Some(hex::encode(predicted))),
        "predicted offline"
    );
    assert!(std::fs::read_to_string(guest.path("log")).expect("log").contains("the tee is simulated"));
    let measured: usize = plan.regions.iter().map(|region| region.bytes.len()).sum();
    assert!(measured <= 60 << 10, "{measured} bytes beside secrets and CPUID page");
    assert_eq!(control.ask(&ControlRequest::Stop), ControlReply::Done);
    assert_eq!(vm.exit_code(), exit::OK);
}

/// A `vmlinux` of one segment, entered at its first byte.
fn elf(address: u64, content: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 4096];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&address.to_le_bytes());
    file[32] = 64;
    file[54..58].copy_from_slice(&[56, 0, 1, 0]);
    file[64] = 1;
    let bytes = content.len() as u64;
    for (at, field) in [(72, 4096), (88, address), (96, bytes), (104, bytes)] {
        file[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }
    file.extend_from_slice(content);
    file
}

/// How a guest ended.
#[derive(Debug, PartialEq)]
enum End {
    /// stage0 refused.
    Refused(Termination),
    /// The kernel of the test wrote to [`KERNEL_PORT`].
    Booted,
}

/// Where the kernel of the test says that it runs.
const KERNEL_PORT: u16 = 0x4C4;

/// Starts a plan as a hostile host may have changed it, and gives how it ends. `host` is what the host does
/// meanwhile, again and again.
fn end(plan: &LaunchPlan<'_>, ram: &Memory, host: impl Fn(&Memory) + Sync) -> Result<End, String> {
    end_on(|_| {}, plan, ram, host)
}

/// The same on a processor of another CPUID.
fn end_on(
    processor: impl FnOnce(&mut Vec<kvm_cpuid_entry2>),
    plan: &LaunchPlan<'_>,
    ram: &Memory,
    host: impl Fn(&Memory) + Sync,
) -> Result<End, String> {
    let text = |error: VmmError| error.to_string();
    let machine = Machine::create(TeeKind::None, ram.clone()).map_err(text)?;
    memory::load(ram, &plan.regions).map_err(text)?;
    memory::load(ram, &plan.unmeasured).map_err(text)?;
    let mut vcpu = machine.single_vcpu().map_err(text)?;
    let list = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(|error| error.to_string())?;
    let mut entries = list.as_slice().to_vec();
    processor(&mut entries);
    let list = CpuId::from_entries(&entries).map_err(|_| "entries".to_owned())?;
    vcpu.set_cpuid2(&list).map_err(|error| error.to_string())?;
    start::set_registers(&vcpu, &plan.start).map_err(text)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                host(ram);
            }
        });
        let exit = vcpu.run().map_err(|error| error.to_string());
        done.store(true, Ordering::Relaxed);
        match exit? {
            VcpuExit::IoOut(TERMINATION_PORT, &[code, 0, 0, 0]) => {
                Termination::from_code(code).map(End::Refused).ok_or_else(|| format!("number {code:#x}"))
            }
            VcpuExit::IoOut(KERNEL_PORT, _) => Ok(End::Booted),
            other => Err(format!("{other:?}")),
        }
    })
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
        firmware: Some(Firmware::new(&image, PlatformKind::Plain, 0)),
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
        let ram = memory::create(128).expect("memory");
        assert_eq!(end(&plan, &ram, |_| {}), Ok(End::Refused(expected)), "{region} at {offset}");
    }
}

/// A launch in little memory, of a kernel alone.
fn small_plan<'a>(kernel: &'a [u8], image: &'a [u8], platform: PlatformKind) -> LaunchPlan<'a> {
    LaunchPlan::new(&LaunchInput {
        kernel,
        initramfs: None,
        cmdline: "",
        memory_mib: 64,
        vcpus: 1,
        devices: 0,
        firmware: Some(Firmware::new(image, platform, 0)),
    })
    .expect("plan")
}

/// A boot block of a TEE that is not there: its way to give up (TDCALL) raises an exception, whose handler gives up in turn. The
/// number of the first reason comes by the port. SNP's way (VMGEXIT) is a hypercall to a KVM of AMD, which answers that it does
/// not know it: then the guest halts, as it should under a host that does not end it.
#[test]
fn stage0_tells_its_number_where_the_platforms_own_way_fails() {
    let Some(guest) = guest("stage0 ends", "bzImage", "") else { return };
    let boot = &guest.config.boot;
    let read = |path: &Path| std::fs::read(path).expect("file");
    let (kernel, image) = (read(&boot.kernel), read(boot.firmware.as_deref().expect("image")));
    let mut plan = small_plan(&kernel, &image, PlatformKind::Plain);
    // without a memory bit the page tables are good on any machine, and the block is refused for it
    let block = plan.regions.iter_mut().find(|one| one.name == "boot block").expect("region");
    block.bytes.to_mut()[12] = PlatformKind::Tdx as u8;
    let ram = memory::create(64).expect("memory");
    let expected = End::Refused(Termination::BootBlockMemoryBit);
    assert_eq!(end(&plan, &ram, |_| {}), Ok(expected));
}

/// A processor that says that it is in a trust domain, and a boot block that names none. There is no TDX module here, so the number
/// comes by the port.
#[test]
fn stage0_refuses_a_boot_block_without_a_tee_in_a_trust_domain() {
    let Some(guest) = guest("stage0 in a td", "bzImage", "") else { return };
    let boot = &guest.config.boot;
    let read = |path: &Path| std::fs::read(path).expect("file");
    let (kernel, image) = (read(&boot.kernel), read(boot.firmware.as_deref().expect("image")));
    for platform in [PlatformKind::Plain, PlatformKind::SimSnp, PlatformKind::SimTdx] {
        let plan = small_plan(&kernel, &image, platform);
        let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        let named = kvm_cpuid_entry2 {
            function: 0x21,
            ebx: word(b"Inte"),
            edx: word(b"lTDX"),
            ecx: word(b"    "),
            ..Default::default()
        };
        let ram = memory::create(64).expect("memory");
        let ended = end_on(|entries| entries.push(named), &plan, &ram, |_| {});
        assert_eq!(ended, Ok(End::Refused(Termination::UnnamedTee)), "{platform:?}");
    }
}

/// The host changes the kernel all the time. What boots is the measured kernel or nothing, wherever the
/// change falls between stage0's reading, hashing and using.
#[test]
fn a_host_that_changes_the_kernel_meanwhile_wins_nothing() {
    let Some(guest) = guest("stage0 race", "vmlinux", "") else { return };
    let image = std::fs::read(guest.config.boot.firmware.as_deref().expect("image")).expect("file");
    const PLACE: u64 = 16 << 20;
    // mov dx, KERNEL_PORT; out dx, al; then bytes that nothing executes
    let mut content = vec![0x5a; 3 << 20];
    content[..5].copy_from_slice(&[0x66, 0xba, 0xc4, 0x04, 0xee]);
    let kernel = elf(PLACE, &content);
    let plan = small_plan(&kernel, &image, PlatformKind::Plain);
    let file = plan.unmeasured.iter().find(|region| region.name == "kernel file").expect("region").gpa;
    let change = |ram: &Memory| {
        for value in [0xff_u8, 0x5a] {
            for at in [4096 + 64, 1 << 20, kernel.len() as u64 - 1] {
                ram.memory().write_obj(value, GuestAddress(file + at)).expect("in memory");
            }
        }
    };
    let (mut booted, mut refused) = (0, 0);
    for _ in 0..12 {
        let ram = memory::create(64).expect("memory");
        match end(&plan, &ram, change).expect("an end") {
            End::Refused(why) => {
                assert_eq!(why, Termination::KernelHash);
                refused += 1;
            }
            End::Booted => {
                let mut there = vec![0; content.len()];
                ram.memory().read_slice(&mut there, GuestAddress(PLACE)).expect("in memory");
                assert!(there == content, "another kernel than the measured one was booted");
                booted += 1;
            }
        }
    }
    eprintln!("stage0 race: {booted} booted the measured kernel, {refused} refused");
    let ram = memory::create(64).expect("memory");
    assert_eq!(end(&plan, &ram, |_| {}), Ok(End::Booted), "without a race");
}

/// The same launch in memory that was full of zeros and in memory that was not: where the two guests differ when their kernel
/// begins, stage0 has written nothing.
#[test]
fn what_was_in_memory_before_does_not_reach_the_kernel() {
    let Some(guest) = guest("stage0 fills", "vmlinux", "") else { return };
    let image = std::fs::read(guest.config.boot.firmware.as_deref().expect("image")).expect("file");
    let header = kata_cc_stage0_abi::ImageHeader::parse(&image).expect("image");
    // mov dx, KERNEL_PORT; out dx, al
    let kernel = elf(16 << 20, &[0x66, 0xba, 0xc4, 0x04, 0xee]);
    let initramfs = vec![0x77; 300_000];
    let mut ends = Vec::new();
    for (platform, fill) in
        [PlatformKind::Plain, PlatformKind::SimSnp].into_iter().flat_map(|kind| [(kind, 0_u8), (kind, 0xA5)])
    {
        let plan = LaunchPlan::new(&LaunchInput {
            kernel: &kernel,
            initramfs: Some(&initramfs),
            cmdline: "quiet",
            memory_mib: 64,
            vcpus: 1,
            devices: 2,
            firmware: Some(Firmware::new(&image, platform, 0)),
        })
        .expect("plan");
        let ram = memory::create(64).expect("memory");
        // the image's place too: what is behind it, its working memory, is the host's choice on TDX
        let mut before = vec![fill; 64 << 20];
        before[1 << 20..][..image.len()].copy_from_slice(&image);
        ram.memory().write_slice(&before, GuestAddress(0)).expect("in memory");
        assert_eq!(end(&plan, &ram, |_| {}), Ok(End::Booted));
        let mut after = vec![0; before.len()];
        ram.memory().read_slice(&mut after, GuestAddress(0)).expect("in memory");
        ends.push((before, after));
    }
    for pair in ends.chunks(2) {
        let [(zeros, one), (ones, other)] = pair else { panic!("pairs") };
        let written = |at: &usize| one[*at] != zeros[*at] || other[*at] != ones[*at];
        // filled by the image itself before it read any of it
        let working = usize::try_from(header.working_memory_start()).expect("fits")
            ..usize::try_from(header.working_memory_end()).expect("fits");
        assert!(one[working.clone()] == other[working], "working memory holds what was there before");
        // its stack holds what it has read of the boot info, but nothing of the rest: it is compared too
        let carried = (0..one.len()).find(|at| one[*at] != other[*at] && written(at));
        assert_eq!(carried.map(|at| format!("{at:#x}")), None);
    }
}

#[test]
fn the_vmm_tells_in_words_why_stage0_refused() {
    let Some(mut guest) = guest("stage0 words", "vmlinux", "") else { return };
    // a segment at 1 MiB, where a direct boot has room and stage0 has itself
    let kernel = elf(0x10_0000, &[0; 4096]);
    guest.config.boot.kernel = guest.path("kernel");
    std::fs::write(&guest.config.boot.kernel, kernel).expect("written");
    let mut vm = guest.start();
    assert_eq!(vm.exit_code(), exit::GUEST_FAULT);
    wait_for(
        &guest.path("log"),
        "stage0 refused to boot: the kernel's segments lie where they must not (KernelSegments, 0x25)",
    );
}
