//! The VMM's plan and the firmware's code together, without a machine: what is planned is booted by the
//! library of stage0 on a piece of memory, and what it says must be what the plan meant.

use core::arch::x86_64::CpuidResult;

use kata_cc_boot::{
    Firmware, FirmwareError, Hashes, LaunchInput, LaunchPlan, PlanError, PlatformKind, StartState,
};
use kata_cc_measurement::VmsaRegisters;
use kata_cc_stage0::boot::{Entry, boot, boot_block};
use kata_cc_stage0::memory::GuestMemory;
use kata_cc_stage0::platform::{
    BootBlock, Handover, PhysRange, Platform, PlatformError, Termination, layout,
};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const PLACE: u64 = 16 * MIB;

/// Memory that is private and shared at once, as without a TEE.
struct Ram(Vec<u8>);

impl GuestMemory for Ram {
    fn read_shared(&mut self, from: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.0[from as usize..][..into.len()]);
    }

    fn copy_in(&mut self, shared: u64, private: u64, length: u64) {
        self.0.copy_within(shared as usize..(shared + length) as usize, private as usize);
    }

    fn wipe_shared(&mut self, from: u64, length: u64) {
        self.0[from as usize..][..length as usize].fill(0);
    }

    fn private(&mut self, start: u64, length: u64) -> &mut [u8] {
        &mut self.0[start as usize..][..length as usize]
    }

    fn copy_private(&mut self, from: u64, to: u64, length: u64) {
        self.0.copy_within(from as usize..(from + length) as usize, to as usize);
    }
}

struct Nothing;

impl Platform for Nothing {
    fn init(&mut self, _: &BootBlock) -> Result<(), PlatformError> {
        Ok(())
    }

    fn accept(&mut self, _: PhysRange) -> Result<(), PlatformError> {
        Ok(())
    }

    fn share(&mut self, _: PhysRange) -> Result<(), PlatformError> {
        Ok(())
    }

    fn unshare(&mut self, _: PhysRange) -> Result<(), PlatformError> {
        Ok(())
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        core::arch::x86_64::__cpuid_count(leaf, subleaf)
    }

    fn handover(&self) -> Handover {
        Handover::default()
    }

    fn terminate(&self, why: Termination) -> ! {
        panic!("{why}")
    }
}

/// An image that is one in name only: nothing of it runs here.
fn image() -> Vec<u8> {
    let mut image = vec![0; 8192];
    image[16..24].copy_from_slice(b"KCCIMG0\0");
    image[24] = 1;
    image[28..32].copy_from_slice(&8192_u32.to_le_bytes());
    image[32..36].copy_from_slice(&0x1_5000_u32.to_le_bytes());
    image
}

/// A `vmlinux` of one segment with so many bytes in the file and in memory.
fn vmlinux(content: usize, memory: u64) -> Vec<u8> {
    let mut file = vec![0; 4096];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&PLACE.to_le_bytes());
    file[32] = 64;
    file[54..58].copy_from_slice(&[56, 0, 1, 0]);
    file[64] = 1;
    for (at, field) in [(72, 4096), (88, PLACE), (96, content as u64), (104, memory)] {
        file[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }
    file.resize(4096 + content, 0x90);
    file
}

fn input<'a>(kernel: &'a [u8], initramfs: &'a [u8], image: &'a [u8], memory_mib: u64) -> LaunchInput<'a> {
    LaunchInput {
        kernel,
        initramfs: Some(initramfs),
        cmdline: "quiet",
        memory_mib,
        vcpus: 3,
        devices: 1,
        firmware: Some(Firmware::new(image, PlatformKind::SimSnp, 0)),
    }
}

/// Boots a plan and checks what it led to.
fn boots(input: &LaunchInput<'_>) -> Result<(), PlanError> {
    let plan = LaunchPlan::new(input)?;
    let mut ram = Ram(vec![0; (input.memory_mib * MIB) as usize]);
    for region in plan.regions.iter().chain(&plan.unmeasured) {
        ram.0[region.gpa as usize..][..region.bytes.len()].copy_from_slice(&region.bytes);
    }
    let block = boot_block(&mut ram).expect("the plan's boot block");
    let entry = boot(&mut Nothing, &mut ram, &block);
    assert_eq!(entry, Ok(Entry { address: PLACE, parameters: 0x7000 }));
    let content = &input.kernel[4096..];
    assert!(ram.0[PLACE as usize..][..content.len()] == *content, "the kernel is not where it belongs");
    let word = |at: usize| u32::from_le_bytes(ram.0[at..at + 4].try_into().expect("four"));
    let initramfs = input.initramfs.unwrap_or_default();
    assert_eq!(word(0x721c) as usize, initramfs.len());
    assert!(ram.0[word(0x7218) as usize..][..initramfs.len()] == *initramfs, "the initramfs is not whole");
    // the devices are in the DSDT
    let (words, devices) = plan.cmdline.split_once(" virtio_mmio.device=").expect("a device");
    let line = [words.as_bytes(), b"\0"].concat();
    assert_eq!(&ram.0[word(0x7228) as usize..][..line.len()], line);
    assert!(!devices.is_empty() && ram.0.windows(8).any(|bytes| bytes == b"LNRO0005"));
    Ok(())
}

#[test]
fn only_the_firmware_and_a_page_of_hashes_are_measured() {
    let (kernel, initramfs, image) = (vmlinux(100_000, 200_000), vec![7; 5000], image());
    let input = input(&kernel, &initramfs, &image, 64);
    let plan = LaunchPlan::new(&input).expect("plan");
    let measured: Vec<_> = plan.regions.iter().map(|region| (region.name, region.gpa)).collect();
    assert_eq!(measured, [("stage0 image", layout::IMAGE), ("boot block", layout::BOOT_BLOCK)]);
    let digest = |change: fn(&mut LaunchInput<'_>)| {
        let mut input = input;
        change(&mut input);
        LaunchPlan::new(&input).expect("plan").launch_digest().expect("measured")
    };
    let as_planned = digest(|_| {});
    assert_eq!(digest(|input| input.memory_mib = 512), as_planned, "memory is the host's to give");
    assert_ne!(digest(|input| input.vcpus = 2), as_planned);
    assert_ne!(digest(|input| input.cmdline = "quieu"), as_planned);
    assert_ne!(digest(|input| input.devices = 2), as_planned);
    assert_ne!(digest(|input| input.initramfs = Some(&[7; 4999])), as_planned);
    assert_ne!(digest(|input| input.initramfs = None), as_planned);
    let mut other = kernel.clone();
    *other.last_mut().expect("byte") ^= 1;
    let changed = LaunchPlan::new(&LaunchInput { kernel: &other, ..input }).expect("plan");
    assert_ne!(changed.launch_digest(), Some(as_planned));
    let plain = Firmware::new(&image, PlatformKind::Plain, 0);
    let plain = LaunchPlan::new(&LaunchInput { firmware: Some(plain), ..input }).expect("plan");
    assert_eq!(plain.launch_digest(), None, "nobody measures it");
}

#[test]
fn vcpus_start_as_they_are_measured() {
    let start = StartState::flat32(layout::IMAGE);
    let measured = VmsaRegisters::flat32(layout::IMAGE as u32, 0, 1);
    assert_eq!((start.rip, start.cr0, start.rflags), (measured.rip, measured.cr0, measured.rflags));
    assert_eq!((start.cs.attributes, start.cs.selector), (measured.cs.attributes, measured.cs.selector));
    assert_eq!((start.data.attributes, start.data.limit), (measured.ds.attributes, measured.ds.limit));
}

#[test]
fn an_image_that_cannot_be_launched_is_refused() {
    let (kernel, initramfs) = (vmlinux(100, 100), vec![7; 50]);
    let refused = |image: &[u8]| LaunchPlan::new(&input(&kernel, &initramfs, image, 64)).err();
    assert!(matches!(refused(&[0; 4096]), Some(PlanError::Firmware(FirmwareError::Launch(_)))));
    let image = image();
    assert!(matches!(refused(&image[..4096]), Some(PlanError::Firmware(FirmwareError::Launch(_)))));
    let firmware = Firmware::new(&image, PlatformKind::Snp, 0);
    let input = LaunchInput { firmware: Some(firmware), ..input(&kernel, &initramfs, &image, 64) };
    let refused = LaunchPlan::new(&input).err();
    assert!(matches!(refused, Some(PlanError::Firmware(FirmwareError::Launch(_)))), "{refused:?}");
}

#[test]
fn hashes_that_are_known_are_taken_and_stage0_refuses_stale_ones() {
    let (kernel, initramfs, image) = (vmlinux(100, 100), vec![7; 50], image());
    let fresh = LaunchPlan::new(&input(&kernel, &initramfs, &image, 64)).expect("plan");
    let end = |known| {
        let firmware = Firmware::new(&image, PlatformKind::SimSnp, 0).with_hashes(known);
        let input = LaunchInput { firmware: Some(firmware), ..input(&kernel, &initramfs, &image, 64) };
        let plan = LaunchPlan::new(&input).expect("plan");
        let mut ram = Ram(vec![0; 64 << 20]);
        for region in plan.regions.iter().chain(&plan.unmeasured) {
            ram.0[region.gpa as usize..][..region.bytes.len()].copy_from_slice(&region.bytes);
        }
        let block = boot_block(&mut ram).expect("the plan's boot block");
        (boot(&mut Nothing, &mut ram, &block).err(), plan.launch_digest(), plan.hashes)
    };
    let same = (None, fresh.launch_digest(), fresh.hashes);
    assert_eq!(end(fresh.hashes), same);
    assert_eq!(end(Hashes::default()), same);
    assert_eq!(end(Hashes { kernel: None, ..fresh.hashes }), same);
    let stale = Hashes { kernel: Some([9; 32]), ..fresh.hashes };
    let (refused, digest, _) = end(stale);
    assert_eq!(refused, Some(Termination::KernelHash));
    assert_ne!(digest, fresh.launch_digest(), "what is foretold and launched is the stale one's");
    let stale = Hashes { initramfs: Some([9; 32]), ..fresh.hashes };
    assert_eq!(end(stale).0, Some(Termination::InitramfsHash));
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_started() {
    let image = image();
    let initramfs = vec![7; 20 << 20];
    let kernel = vmlinux(1 << 20, 4 << 20);
    // the kernel to 20 MiB, the host's and the private initramfs: 60 MiB
    assert_eq!(boots(&input(&kernel, &initramfs, &image, 64)), Ok(()));
    let larger = vec![7; (22 << 20) + 1];
    assert_eq!(
        boots(&input(&kernel, &larger, &image, 64)),
        Err(PlanError::Firmware(FirmwareError::DoesNotFit { needed: 68, there: 64 }))
    );
    let words = boots(&input(&kernel, &larger, &image, 64)).expect_err("refused").to_string();
    assert!(words.contains("need 68 MiB") && words.ends_with("give the guest more memory"), "{words}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The plan's own check of what fits is never more generous than stage0 is, nor less so by much.
    #[test]
    fn what_is_planned_boots(
        content in 1_usize..9 << 20,
        zeros in 0_u64..12 << 20,
        initramfs in 1_usize..20 << 20,
        memory_mib in 64_u64..80,
    ) {
        let (kernel, initramfs, image) =
            (vmlinux(content, content as u64 + zeros), vec![0x77; initramfs], image());
        match boots(&input(&kernel, &initramfs, &image, memory_mib)) {
            Ok(()) => {}
            Err(PlanError::Firmware(FirmwareError::DoesNotFit { needed, there })) => {
                prop_assert!(needed > there);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
