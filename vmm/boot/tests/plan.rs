//! The plan as a whole: layout, digest, refusals. Kernels are made here, byte by byte.

use kata_cc_boot::layout::{GIB, MIB};
use kata_cc_boot::{CmdlineError, Kernel, KernelError, KernelFormat, LaunchInput, LaunchPlan, PlanError};
use proptest::prelude::*;

/// A segment of a made-up vmlinux: physical address, content, bytes in memory.
struct Segment<'a>(u64, &'a [u8], u64);

fn elf(entry: u64, segments: &[Segment<'_>]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, segments.len() as u16, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = 64 + 56 * segments.len() as u64;
    for Segment(address, content, in_memory) in segments {
        file.extend(1u32.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [offset, u64::MAX << 31, *address, content.len() as u64, *in_memory, 4096] {
            file.extend(word.to_le_bytes());
        }
        offset += content.len() as u64;
    }
    for Segment(_, content, _) in segments {
        file.extend_from_slice(content);
    }
    file
}

fn vmlinux() -> Vec<u8> {
    elf(0x100_0010, &[Segment(0x100_0000, &[0x90; 5000], 5000), Segment(0x120_0000, &[7; 100], 0x30_0000)])
}

fn bzimage() -> Vec<u8> {
    let mut file = vec![0u8; 1024 + 8192];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &(8192u32 / 16).to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x250, &0xdead_beefu64.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    put(1024, &[0x55; 8192]);
    file
}

fn input<'a>(kernel: &'a [u8], initramfs: &'a [u8]) -> LaunchInput<'a> {
    LaunchInput {
        kernel,
        initramfs: Some(initramfs),
        cmdline: "console=ttyS0 quiet",
        memory_mib: 128,
        vcpus: 2,
        devices: 3,
        firmware: None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[test]
fn vmlinux_layout() {
    let kernel = vmlinux();
    let plan = LaunchPlan::new(&input(&kernel, &[3; 4097])).expect("valid");
    let places: Vec<_> = plan.regions.iter().map(|r| (r.name, r.gpa, r.end())).collect();
    assert_eq!(
        places,
        [
            ("boot parameters", 0x7000, 0x8000),
            ("gdt", 0x8000, 0x9000),
            ("page tables", 0x9000, 0xc000),
            ("command line", 0x20000, 0x21000),
            ("mp table", 0xf0000, 0xf1000),
            ("kernel", 0x100_0000, 0x100_2000),
            ("kernel", 0x120_0000, 0x120_1000),
            ("initramfs", 0x7ff_e000, 0x800_0000),
        ]
    );
    assert_eq!(plan.format, KernelFormat::Vmlinux);
    assert_eq!((plan.start.rip, plan.start.rsi), (0x100_0010, 0x7000));
    assert!(plan.cmdline.starts_with("console=ttyS0 quiet virtio_mmio.device=4K@0xd0000000:5 "));
    assert!(plan.cmdline.ends_with("virtio_mmio.device=4K@0xd0002000:7"));

    let zero_page = &plan.regions[0].bytes;
    assert_eq!(u32_at(zero_page, 0x218), 0x7ff_e000, "ramdisk_image");
    assert_eq!(u32_at(zero_page, 0x21c), 4097, "ramdisk_size");
    assert_eq!(u32_at(zero_page, 0x228), 0x20000, "cmd_line_ptr");
    assert_eq!(zero_page[0x1ef], 0, "sentinel");
    assert_eq!(zero_page[0x1e8], 3, "e820 entries");
    assert_eq!(zero_page[0x210], 0xff, "type_of_loader");
}

#[test]
fn bzimage_is_entered_at_its_64_bit_entry_and_brings_no_setup_data() {
    let kernel = bzimage();
    let plan = LaunchPlan::new(&input(&kernel, &[3; 10])).expect("valid");
    assert_eq!(plan.format, KernelFormat::BzImage);
    assert_eq!(plan.start.rip, 0x100_0200);
    let zero_page = &plan.regions[0].bytes;
    assert_eq!(&zero_page[0x202..0x206], b"HdrS");
    assert_eq!(zero_page[0x250..0x258], [0; 8], "setup_data of the image is dropped");
    assert_eq!(plan.regions[5].bytes.len(), 8192);
}

#[test]
fn no_regions_overlap_whatever_the_memory() {
    let kernel = vmlinux();
    for memory_mib in [64, 128, 3070, 3072, 3074, 8192, 300 * 1024] {
        let input = LaunchInput { memory_mib, vcpus: 64, devices: 19, ..input(&kernel, &[1; 12345]) };
        let plan = LaunchPlan::new(&input).expect("valid");
        let mut places: Vec<_> = plan.regions.iter().map(|r| (r.gpa, r.end())).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{memory_mib}: {places:x?}");
        let end = places.last().expect("regions").1;
        assert!(end <= (memory_mib * MIB).min(3 * GIB));
    }
}

#[test]
fn hostile_vmlinux_is_refused_by_reason() {
    let refused = |file: &[u8]| Kernel::parse(file).expect_err("hostile");
    let code: &[u8] = &[0x90; 4096];
    let at = |address| elf(address, &[Segment(address, code, 4096)]);
    assert_eq!(refused(b""), KernelError::UnknownFormat);
    assert_eq!(refused(b"\x7fELF"), KernelError::Truncated { what: "ELF header" });
    assert_eq!(refused(&at(0x1000)), KernelError::OutOfRange { address: 0x1000, bytes: 4096 });
    assert_eq!(refused(&at(GIB)), KernelError::OutOfRange { address: GIB, bytes: 4096 });
    assert_eq!(refused(&at(0x10_0800)), KernelError::Unaligned { address: 0x10_0800 });
    let wraps = 0u64.wrapping_sub(4096);
    assert_eq!(refused(&at(wraps)), KernelError::OutOfRange { address: wraps, bytes: 4096 });
    let huge = elf(MIB, &[Segment(MIB, code, u64::MAX)]);
    assert_eq!(refused(&huge), KernelError::OutOfRange { address: MIB, bytes: u64::MAX });
    let overlap = elf(MIB, &[Segment(MIB, code, 4097), Segment(MIB + 4096, code, 4096)]);
    assert_eq!(refused(&overlap), KernelError::Overlap { address: MIB + 4096 });
    let entry_in_bss = elf(MIB + 5000, &[Segment(MIB, code, 0x10000)]);
    assert_eq!(refused(&entry_in_bss), KernelError::EntryOutside(MIB + 5000));
    let mut cut = at(MIB);
    cut.truncate(cut.len() - 1);
    assert_eq!(refused(&cut), KernelError::Truncated { what: "segments" });
    let mut many = at(MIB);
    many[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(refused(&many), KernelError::BadField { field: "e_phnum", value: 0xffff });
    let mut far = at(MIB);
    far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(refused(&far), KernelError::Truncated { what: "program headers" });
    let mut arm = at(MIB);
    arm[18] = 183;
    assert_eq!(refused(&arm), KernelError::BadField { field: "e_machine", value: 183 });
    let more_in_file = elf(MIB, &[Segment(MIB, code, 100)]);
    assert_eq!(refused(&more_in_file), KernelError::BadField { field: "p_filesz", value: 4096 });
}

#[test]
fn notes_are_never_read() {
    // the note of GHSA-52h2-m2cf-9jh6: sizes of 2^32-1 in a PT_NOTE
    let mut file = elf(MIB, &[Segment(MIB, &[0x90; 64], 64), Segment(MIB * 2, &[0xff; 64], 64)]);
    file[64 + 56] = 4;
    assert!(Kernel::parse(&file).is_ok());
}

#[test]
fn hostile_bzimage_is_refused_by_reason() {
    let broken = |at: usize, bytes: &[u8]| {
        let mut file = bzimage();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Kernel::parse(&file).map(|_| ()).expect_err("hostile")
    };
    assert_eq!(broken(0x206, &[0x0b, 2]), KernelError::BadField { field: "version", value: 0x20b });
    assert_eq!(broken(0x211, &[0]), KernelError::BadField { field: "loadflags", value: 0 });
    assert_eq!(broken(0x236, &[0]), KernelError::No64BitEntry);
    assert_eq!(broken(0x201, &[0xff]), KernelError::BadField { field: "header length", value: 0x301 });
    assert_eq!(broken(0x201, &[1]), KernelError::BadField { field: "header length", value: 0x203 });
    assert_eq!(
        broken(0x260, &[0xff; 4]),
        KernelError::OutOfRange { address: 0x100_0000, bytes: 0xffff_ffff }
    );
    assert_eq!(broken(0x1f4, &[0xff; 4]), KernelError::Truncated { what: "protected-mode part" });
    assert_eq!(broken(0x1f1, &[0xff]), KernelError::Truncated { what: "protected-mode part" });
    assert_eq!(broken(0x258, &[1]), KernelError::Unaligned { address: 0x100_0001 });
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = vmlinux();
    let initramfs = vec![0; 64 << 20];
    let base = input(&kernel, &initramfs);
    let refused = |input: LaunchInput<'_>| LaunchPlan::new(&input).map(|_| ()).expect_err("refused");
    assert!(matches!(refused(LaunchInput { memory_mib: 64, ..base }), PlanError::DoesNotFit { .. }));
    assert_eq!(refused(LaunchInput { memory_mib: 63, ..base }), PlanError::Memory(63));
    assert_eq!(refused(LaunchInput { memory_mib: u64::MAX, ..base }), PlanError::Memory(u64::MAX));
    assert_eq!(refused(LaunchInput { vcpus: 0, ..base }), PlanError::Vcpus(0));
    assert_eq!(refused(LaunchInput { vcpus: 65, ..base }), PlanError::Vcpus(65));
    assert_eq!(refused(LaunchInput { devices: 20, ..base }), PlanError::Devices(20));
    assert_eq!(
        refused(LaunchInput { cmdline: "a\tb", ..base }),
        PlanError::Cmdline(CmdlineError::BadByte { byte: 9, position: 1 })
    );
}

proptest! {
    /// Any damage to a kernel gives a plan within bounds or an error, never a panic.
    #[test]
    fn damaged_kernels_never_panic(
        bz in any::<bool>(),
        damage in prop::collection::vec((0usize..700, any::<u8>()), 0..12),
        cut in 0usize..20_000,
    ) {
        let mut file = if bz { bzimage() } else { vmlinux() };
        for (at, byte) in damage {
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        file.truncate(cut);
        if let Ok(plan) = LaunchPlan::new(&input(&file, &[1; 100])) {
            for region in &plan.regions {
                prop_assert!(region.gpa.is_multiple_of(4096));
                prop_assert!(region.end() <= 128 * MIB);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(file in prop::collection::vec(any::<u8>(), 0..2000), magic in 0u8..3) {
        let mut file = file;
        if magic == 1 && file.len() > 4 {
            file[..4].copy_from_slice(b"\x7fELF");
        }
        if magic == 2 && file.len() > 0x206 {
            file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            file[0x202..0x206].copy_from_slice(b"HdrS");
        }
        let _ = Kernel::parse(&file);
    }
}
