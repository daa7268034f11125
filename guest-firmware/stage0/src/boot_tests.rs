//! Whole boots on the machine of [`crate::fake`]: what is booted, and every refusal by its number.

use kata_cc_stage0_abi::{BootInfo, KernelKind, MemoryRange, PlatformKind, Sealed};

use crate::boot::{Entry, boot, boot_block};
use crate::fake::{FakeMemory, FakePlatform, State};
use crate::platform::{BootBlock, Handover, Payload, Termination, layout};
use crate::sha256::{Engine, Sha256};

const MIB: u64 = 1 << 20;
const RAM: u64 = 48 * MIB;
const KERNEL: u64 = 32 * MIB;
const INITRAMFS: u64 = 36 * MIB;
pub(crate) const ENTRY: u64 = 16 * MIB;

fn seal(bytes: &[u8]) -> Sealed {
    let mut hash = Sha256::new(Engine::Portable);
    hash.update(bytes);
    Sealed { length: bytes.len() as u64, sha256: hash.finish() }
}

/// A `vmlinux` of two segments, the second with memory that the file does not fill.
fn vmlinux() -> Vec<u8> {
    let mut file = vec![0; 3 * 4096 + 100];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(24, &(ENTRY + 8).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 3, 0]);
    let mut segment = |index: usize, kind: u32, fields: [u64; 4]| {
        put(64 + index * 56, &kind.to_le_bytes());
        let [offset, address, content, memory] = fields;
        for (at, field) in [(8, offset), (24, address), (32, content), (40, memory)] {
            put(64 + index * 56 + at, &field.to_le_bytes());
        }
    };
    // out of order, and a note between them
    segment(0, 1, [8192, ENTRY + 3 * MIB, 4196, 2 * MIB]);
    segment(1, 4, [1, 2, 3, 4]);
    segment(2, 1, [4096, ENTRY, 4096, 4096]);
    for (at, byte) in file.iter_mut().enumerate().skip(4096) {
        *byte = (at / 7) as u8 | 1;
    }
    file
}

fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 3000];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f4, &187_u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &[3, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &ENTRY.to_le_bytes());
    put(0x260, &(4 * MIB as u32).to_le_bytes());
    file[5 * 512..].fill(0x90);
    file
}

/// A launch that boots, to be spoilt.
#[derive(Clone)]
pub(crate) struct Launch {
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    command_line: Vec<u8>,
    pub(crate) block: BootBlock,
    info: Vec<u8>,
    pub(crate) handover: Handover,
}

impl Launch {
    fn new(kernel: Vec<u8>, kind: KernelKind) -> Self {
        let (initramfs, command_line) = (vec![0x77; 3 * 65536 + 17], b"console=ttyS0 quiet".to_vec());
        let block = BootBlock {
            platform: PlatformKind::Plain,
            vcpus: 4,
            memory_bit: 0,
            acpi_devices: false,
            kernel_kind: kind,
            kernel: seal(&kernel),
            initramfs: Some(seal(&initramfs)),
            command_line: seal(&command_line),
        };
        let info = info(KERNEL, INITRAMFS, &[(0, RAM)]);
        let handover = Handover { cc_blob: true, lazy_memory: true, ..Handover::default() };
        Self { kernel, initramfs, command_line, block, info, handover }
    }

    pub(crate) fn vmlinux() -> Self {
        Self::new(vmlinux(), KernelKind::Vmlinux)
    }

    pub(crate) fn bzimage() -> Self {
        Self::new(bzimage(), KernelKind::BzImage)
    }

    pub(crate) fn memory(&self) -> FakeMemory {
        self.memory_over(&mut |page| page.fill(0xa5))
    }

    /// Memory with the payloads, and with what was in it before.
    pub(crate) fn memory_over(&self, fill: &mut dyn FnMut(&mut [u8])) -> FakeMemory {
        let mut memory = FakeMemory::new(RAM as usize, fill);
        memory.host_writes(layout::COMMAND_LINE, &self.command_line);
        memory.host_writes(layout::BOOT_INFO, &self.info);
        memory.host_writes(KERNEL, &self.kernel);
        memory.host_writes(INITRAMFS, &self.initramfs);
        memory.set(KERNEL, 2 * MIB, State::Shared);
        memory.set(INITRAMFS, 2 * MIB, State::Shared);
        memory
    }

    fn boot(&self) -> (Result<Entry, Termination>, FakeMemory, FakePlatform) {
        let mut memory = self.memory();
        let mut platform = FakePlatform::new(&memory, self.handover);
        let result = boot(&mut platform, &mut memory, &self.block);
        (result, memory, platform)
    }

    fn refusal(&self) -> Option<Termination> {
        self.boot().0.err()
    }
}

fn info(kernel: u64, initramfs: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let ranges: Vec<_> = ranges.iter().map(|&(start, length)| MemoryRange { start, length }).collect();
    BootInfo::new(kernel, initramfs, &ranges).expect("well-formed").to_page().to_vec()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

#[test]
fn a_vmlinux_is_put_where_its_segments_say() {
    let launch = Launch::vmlinux();
    let (result, memory, platform) = launch.boot();
    assert_eq!(result, Ok(Entry { address: ENTRY + 8, parameters: 0x7000 }));
    assert_eq!(memory.bytes(ENTRY, 4096), &launch.kernel[4096..8192]);
    assert_eq!(memory.bytes(ENTRY + 3 * MIB, 4196), &launch.kernel[8192..8192 + 4196]);
    assert!(memory.bytes(ENTRY + 3 * MIB + 4196, 2 * MIB - 4196).iter().all(|byte| *byte == 0));
    assert_eq!(platform.measured, [Payload::Kernel, Payload::CommandLine, Payload::Initramfs]);
    assert!(platform.left);
}

#[test]
fn a_bzimage_is_put_where_it_prefers_to_be() {
    let launch = Launch::new(bzimage(), KernelKind::BzImage);
    let (result, memory, _) = launch.boot();
    assert_eq!(result, Ok(Entry { address: ENTRY + 0x200, parameters: 0x7000 }));
    assert_eq!(memory.bytes(ENTRY, 3000), &launch.kernel[5 * 512..]);
    let page = memory.bytes(0x7000, 4096);
    assert_eq!(page[0x1f1..0x210], launch.kernel[0x1f1..0x210]);
    assert_eq!(page[0x210], 0xff);
}

#[test]
fn the_guest_is_told_of_everything() {
    let launch = Launch::vmlinux();
    let (result, memory, platform) = launch.boot();
    assert!(result.is_ok());
    let page = memory.bytes(0x7000, 4096);
    assert_eq!(u32_at(page, 0x228), 0x2_0000);
    assert_eq!(memory.bytes(0x2_0000, 20), b"console=ttyS0 quiet\0");
    let (address, bytes) = (u32_at(page, 0x218), u32_at(page, 0x21c));
    assert_eq!(memory.bytes(address.into(), bytes.into()), launch.initramfs);
    let entries: Vec<_> = page[0x2d0..].chunks(20).take(page[0x1e8].into()).collect();
    let map: Vec<_> = entries.iter().map(|e| (u64_at(e, 0), u64_at(e, 8), u32_at(e, 16))).collect();
    // Linux maps types 3 and 4 as private memory, 2 as the host's: tables, mailbox and event log must not be in 2.
    let (image, tables, end) = (layout::IMAGE, layout::TABLES, layout::TABLES_END);
    assert_eq!(
        map,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, image - 0x9_fc00, 2),
            (image, tables - image, 4),
            (tables, end - tables, 3),
            (end, layout::RESERVED_END - end, 2),
            (2 * MIB, RAM - 2 * MIB, 1)
        ]
    );
    assert_eq!(memory.bytes(u64_at(page, 0x70), 8), b"RSD PTR ");
    let blob = u64::from(u32_at(page, 0x13c));
    assert_eq!(memory.bytes(blob, 4), b"AMDE");
    assert_eq!(u32_at(memory.bytes(u64_at(page, 0x250), 20), 16), blob as u32);
    assert_eq!(memory.bytes(0xF_0000, 4), b"_MP_");
    assert_eq!(&page[0x1c0..0x1c4], b"EL64");
    assert_eq!(memory.bytes(u32_at(page, 0x1c4).into(), 8), b"IBI SYST");

    // what the table of unaccepted memory says is what is so, for each unit beyond the first
    let bitmap = memory.bytes(layout::UNACCEPTED + 24, 8);
    for unit in 1..RAM / (2 * MIB) {
        let pages = platform.pages.borrow();
        let pages = &pages[(unit * 512) as usize..][..512];
        let unaccepted = u64_at(bitmap, 0) >> unit & 1 == 1;
        let state = if unaccepted { State::Unaccepted } else { State::Private };
        assert!(pages.iter().all(|page| *page == state), "unit {unit} is not {state:?}");
    }
    assert_eq!(u64_at(bitmap, 0).count_ones(), 24 - 7, "low, two sources, three of the kernel, the end");
}

#[test]
fn without_a_tee_all_memory_is_ram() {
    let mut launch = Launch::vmlinux();
    launch.handover = Handover::default();
    let (result, memory, _) = launch.boot();
    assert!(result.is_ok());
    let page = memory.bytes(0x7000, 4096);
    assert_eq!(page[0x1c0..0x1e0], [0; 32], "no EFI");
    assert_eq!((u32_at(page, 0x13c), u64_at(page, 0x250)), (0, 0), "no CC blob");
}

/// What is not needed is left to Linux: with lazy acceptance as many pages change hands in a guest of 16 GiB as in one of 48 MiB.
#[test]
fn the_work_does_not_grow_with_memory() {
    const GIB: u64 = 1 << 30;
    let touched = |high: u64| {
        let mut launch = Launch::vmlinux();
        let ranges = [(0, RAM), (4 * GIB, high)];
        launch.info = info(KERNEL, INITRAMFS, if high == 0 { &ranges[..1] } else { &ranges });
        // The fake has no memory above `RAM`: a step there would not even find a page.
        let (result, _, platform) = launch.boot();
        assert!(result.is_ok(), "{high:#x}: {result:?}");
        let pages = platform.pages.borrow();
        pages.iter().filter(|state| **state != State::Unaccepted).count()
    };
    let small = touched(0);
    for high in [GIB / 4, GIB, 16 * GIB] {
        assert_eq!(touched(high), small, "{high:#x} bytes above 4 GiB");
    }
    // The table for Linux has a bit for each 2 MiB: of 64 GiB it takes a second page.
    assert_eq!(touched(60 * GIB), small + 1);
}

#[test]
fn every_byte_of_the_host_is_read_once_at_most() {
    // the fake changes a byte once it was read and panics at a second reading
    let launch = Launch::vmlinux();
    let (result, memory, _) = launch.boot();
    assert!(result.is_ok());
    let read = |start: u64, length: usize| memory.reads[start as usize..][..length].iter().all(|n| *n == 1);
    assert!(read(KERNEL, launch.kernel.len()));
    assert!(read(INITRAMFS, launch.initramfs.len()));
    assert!(read(layout::COMMAND_LINE, launch.command_line.len()));
    assert!(read(layout::BOOT_INFO, 4096));
    let all = launch.kernel.len() + launch.initramfs.len() + launch.command_line.len() + 4096;
    assert_eq!(memory.reads.iter().filter(|n| **n > 0).count(), all, "and nothing beside");
}

#[test]
fn what_was_used_on_the_way_is_wiped_and_given_back() {
    let launch = Launch::vmlinux();
    let (result, memory, platform) = launch.boot();
    assert!(result.is_ok());
    for (place, bytes) in [(KERNEL, &launch.kernel), (INITRAMFS, &launch.initramfs)] {
        assert!(memory.shared[place as usize..][..bytes.len()].iter().all(|byte| *byte == 0));
        assert_eq!(platform.pages.borrow()[place as usize / 4096], State::Private);
    }
    // the kernel file was verified at the end of memory; the initramfs came there afterwards
    let file = RAM - 2 * MIB;
    let rest = memory.bytes(file + launch.initramfs.len() as u64, launch.kernel.len() as u64);
    assert!(!rest.windows(64).any(|w| w == &launch.kernel[4096..4160]));
}

#[test]
fn nothing_stays_in_the_hosts_reach() {
    for handover in [Handover::default(), Handover { lazy_memory: true, ..Handover::default() }] {
        let launch = Launch { handover, ..Launch::vmlinux() };
        let (result, memory, platform) = launch.boot();
        assert!(result.is_ok());
        let shared = platform.pages.borrow().iter().position(|page| *page == State::Shared);
        assert_eq!(shared, None, "a page is shared still");
        let low = layout::COMMAND_LINE as usize..layout::SHARED_END as usize;
        assert!(memory.shared[low].iter().all(|byte| *byte == 0), "wiped before it was given back");
    }
}

#[test]
fn a_flipped_bit_of_each_payload_is_refused_by_name_and_the_copy_is_wiped() {
    let flip = |change: fn(&mut Launch)| {
        let mut launch = Launch::vmlinux();
        change(&mut launch);
        let (result, memory, platform) = launch.boot();
        assert!(!platform.left);
        (result.expect_err("refused"), memory, launch)
    };
    let (why, memory, launch) = flip(|launch| launch.kernel[5000] ^= 1);
    assert_eq!(why, Termination::KernelHash);
    assert!(memory.bytes(RAM - 2 * MIB, launch.kernel.len() as u64).iter().all(|byte| *byte == 0));
    let (why, memory, launch) = flip(|launch| *launch.initramfs.last_mut().expect("byte") ^= 0x80);
    assert_eq!(why, Termination::InitramfsHash);
    assert!(memory.bytes(RAM - 2 * MIB, launch.initramfs.len() as u64).iter().all(|byte| *byte == 0));
    let (why, memory, _) = flip(|launch| launch.command_line[0] ^= 4);
    assert_eq!(why, Termination::CommandLineHash);
    assert!(memory.bytes(0x2_0000, 19).iter().all(|byte| *byte == 0));
    for byte in [0, 31] {
        let mut launch = Launch::vmlinux();
        launch.block.kernel.sha256[byte] ^= 1;
        assert_eq!(launch.refusal(), Some(Termination::KernelHash));
    }
}

#[test]
fn a_device_of_another_form_is_refused_by_its_own_number() {
    let with = |line: &str| {
        let mut launch = Launch::vmlinux();
        launch.block.acpi_devices = true;
        launch.command_line = line.into();
        launch.block.command_line = seal(&launch.command_line);
        launch.refusal()
    };
    assert_eq!(with("quiet virtio_mmio.device=4K@0xd0000000:5"), None);
    let refused = Some(Termination::CommandLineDevice);
    assert_eq!(with("quiet virtio_mmio.device=8K@0xd0000000:5"), refused);
    assert_eq!(with(&"virtio_mmio.device=4K@0xd0000000:5 ".repeat(25)), refused, "more than there are lines");
}

#[test]
fn a_payload_shorter_or_longer_than_measured_is_another() {
    let mut launch = Launch::vmlinux();
    launch.block.initramfs.as_mut().expect("one").length -= 1;
    assert_eq!(launch.refusal(), Some(Termination::InitramfsHash));
    let mut launch = Launch::vmlinux();
    launch.block.kernel.length += 1;
    assert_eq!(launch.refusal(), Some(Termination::KernelHash));
}

#[test]
fn payloads_must_lie_in_ram_apart_from_the_firmware_and_each_other() {
    let placed = |kernel, initramfs, ranges: &[(u64, u64)]| {
        let launch = Launch { info: info(kernel, initramfs, ranges), ..Launch::vmlinux() };
        launch.refusal()
    };
    let ram = [(0, RAM)];
    assert_eq!(placed(0, INITRAMFS, &ram), Some(Termination::PayloadInReservedMemory));
    assert_eq!(placed(RAM, INITRAMFS, &ram), Some(Termination::PayloadOutsideMemory));
    assert_eq!(placed(layout::MMIO_HOLE, INITRAMFS, &ram), Some(Termination::PayloadOutsideMemory));
    let high = [(0, RAM), (layout::MMIO_HOLE_END, RAM)];
    let above = layout::MMIO_HOLE_END;
    assert_eq!(placed(above, INITRAMFS, &high), Some(Termination::PayloadOutsideMemory));
    assert_eq!(placed(!(2 * MIB - 1), INITRAMFS, &ram), Some(Termination::PayloadOutsideMemory));
    let hole = [(0, KERNEL), (KERNEL + 2 * MIB, 8 * MIB)];
    assert_eq!(placed(KERNEL, INITRAMFS, &hole), Some(Termination::PayloadOutsideMemory));
    // the rest of the last unit is not there
    let cut = [(0, KERNEL + MIB), (INITRAMFS, 8 * MIB)];
    assert_eq!(placed(KERNEL, INITRAMFS, &cut), Some(Termination::PayloadOutsideMemory));
    assert_eq!(placed(KERNEL, KERNEL, &ram), Some(Termination::PayloadsOverlap));
    assert_eq!(placed(KERNEL, 0, &ram), Some(Termination::InitramfsMismatch));
    let mut launch = Launch::vmlinux();
    launch.block.initramfs = None;
    assert_eq!(launch.refusal(), Some(Termination::InitramfsMismatch));
}

#[test]
fn lengths_that_overflow_or_do_not_fit_are_refused() {
    let mut launch = Launch::vmlinux();
    launch.block.kernel.length = u64::MAX - KERNEL;
    assert_eq!(launch.refusal(), Some(Termination::PayloadOutsideMemory));
    let mut launch = Launch::vmlinux();
    launch.block.kernel.length = 3 * MIB;
    launch.block.initramfs = Some(Sealed { length: 12 * MIB + 1, sha256: [0; 32] });
    assert_eq!(launch.refusal(), Some(Termination::PayloadOutsideMemory));
    // no room for a private copy beside the host's
    let mut launch = Launch::vmlinux();
    launch.info = info(KERNEL, 2 * MIB, &[(0, KERNEL + 2 * MIB)]);
    launch.block.initramfs = Some(Sealed { length: 30 * MIB, sha256: [0; 32] });
    assert_eq!(launch.refusal(), Some(Termination::OutOfMemory));
}

#[test]
fn the_kernels_place_must_be_free() {
    // the host's initramfs lies there
    let mut launch = Launch::vmlinux();
    launch.info = info(KERNEL, 16 * MIB, &[(0, RAM)]);
    assert_eq!(launch.refusal(), Some(Termination::KernelPlace));
    // no RAM there
    let mut launch = Launch::vmlinux();
    launch.info = info(KERNEL, INITRAMFS, &[(0, 17 * MIB), (KERNEL, 16 * MIB)]);
    assert_eq!(launch.refusal(), Some(Termination::KernelPlace));
}

#[test]
fn a_boot_info_that_is_none_is_refused_by_its_own_number() {
    let spoilt = |change: fn(&mut Vec<u8>)| {
        let mut launch = Launch::vmlinux();
        change(&mut launch.info);
        launch.refusal()
    };
    assert_eq!(spoilt(|info| info[0] = 0), Some(Termination::BootInfoMagic));
    assert_eq!(spoilt(|info| info[8] = 9), Some(Termination::BootInfoVersion));
    assert_eq!(spoilt(|info| info[12] = 0), Some(Termination::BootInfoRangeCount));
    assert_eq!(spoilt(|info| info[16] = 1), Some(Termination::BootInfoPayloadAlignment));
    assert_eq!(spoilt(|info| info[40] = 1), Some(Termination::BootInfoReserved));
    assert_eq!(spoilt(|info| info[64] = 1), Some(Termination::BootInfoRangeBounds));
    assert_eq!(spoilt(|info| info[66] = 0x10), Some(Termination::BootInfoFirstRange));
    assert_eq!(spoilt(|info| info[79] = 0xff), Some(Termination::BootInfoRangeBounds));
}

#[test]
fn a_spoilt_boot_block_is_refused_before_the_host_is_asked_anything() {
    let refusal = |change: fn(&mut [u8; 4096])| {
        let mut memory = Launch::vmlinux().memory();
        let mut page = Launch::vmlinux().block.to_page().expect("well-formed");
        change(&mut page);
        memory.private[layout::BOOT_BLOCK as usize..][..4096].copy_from_slice(&page);
        let result = boot_block(&mut memory);
        assert!(memory.reads.iter().all(|reads| *reads == 0));
        result.err()
    };
    assert_eq!(refusal(|_| {}), None);
    assert_eq!(refusal(|page| page[0] = 0), Some(Termination::BootBlockMagic));
    assert_eq!(refusal(|page| page[16] = 0), Some(Termination::BootBlockVcpus));
    assert_eq!(refusal(|page| page[4095] = 1), Some(Termination::BootBlockReserved));
}

#[test]
fn a_measured_kernel_that_asks_for_the_impossible_is_refused() {
    let with = |kernel: Vec<u8>, kind| Launch::new(kernel, kind).refusal();
    let elf = |change: fn(&mut Vec<u8>)| {
        let mut file = vmlinux();
        change(&mut file);
        with(file, KernelKind::Vmlinux)
    };
    assert_eq!(with(vmlinux(), KernelKind::BzImage), Some(Termination::KernelFormat));
    assert_eq!(with(bzimage(), KernelKind::Vmlinux), Some(Termination::KernelFormat));
    assert_eq!(with(vec![1], KernelKind::Vmlinux), Some(Termination::KernelFormat));
    assert_eq!(elf(|file| file[4] = 1), Some(Termination::KernelHeader));
    assert_eq!(elf(|file| file[56] = 33), Some(Termination::KernelHeader));
    assert_eq!(elf(|file| file[32..40].fill(0xff)), Some(Termination::KernelHeader));
    assert_eq!(elf(|file| file[24] = 0xff), None, "an entry within the segment");
    assert_eq!(elf(|file| file[26] = 0xff), Some(Termination::KernelHeader));
    let second = 64 + 2 * 56;
    assert_eq!(second, 176);
    assert_eq!(elf(|file| file[176 + 24] = 1), Some(Termination::KernelSegments));
    let low = |file: &mut Vec<u8>| file[176 + 24..176 + 28].copy_from_slice(&[0, 0, 0x10, 0]);
    assert_eq!(elf(low), Some(Termination::KernelSegments), "over the firmware");
    assert_eq!(elf(|file| file[176 + 27] = 0x40), Some(Termination::KernelSegments), "beyond 1 GiB");
    assert_eq!(elf(|file| file[176 + 40..176 + 48].fill(0xff)), Some(Termination::KernelSegments));
    assert_eq!(elf(|file| file[176 + 42] = 0x31), Some(Termination::KernelSegments), "they overlap");
    assert_eq!(elf(|file| file[176 + 32..176 + 40].fill(0xff)), Some(Termination::KernelHeader));
    assert_eq!(elf(|file| file[176 + 8..176 + 16].fill(0xff)), Some(Termination::KernelHeader));

    let bz = |change: fn(&mut Vec<u8>)| {
        let mut file = bzimage();
        change(&mut file);
        with(file, KernelKind::BzImage)
    };
    assert_eq!(bz(|file| file[0x206] = 0x0b), Some(Termination::KernelHeader));
    assert_eq!(bz(|file| file[0x211] = 0), Some(Termination::KernelHeader));
    assert_eq!(bz(|file| file[0x236] = 0), Some(Termination::KernelHeader));
    assert_eq!(bz(|file| file[0x201] = 0xff), Some(Termination::KernelHeader));
    assert_eq!(bz(|file| file[0x201] = 0x10), Some(Termination::KernelHeader));
    assert_eq!(bz(|file| file[0x1f6] = 1), Some(Termination::KernelHeader), "cut off");
    assert_eq!(bz(|file| file[0x258] = 1), Some(Termination::KernelSegments));
    assert_eq!(bz(|file| file[0x258..0x260].fill(0)), Some(Termination::KernelSegments));
    assert_eq!(bz(|file| file[0x263] = 0xff), Some(Termination::KernelSegments));
    assert_eq!(bz(|file| file[0x238..0x23c].fill(0)), Some(Termination::CommandLineTooLong));
    assert_eq!(
        bz(|file| file[0x22c..0x230].copy_from_slice(&[0, 0, 0x20, 0])),
        Some(Termination::OutOfMemory)
    );
}

#[test]
fn a_platform_that_refuses_ends_the_boot() {
    let low = [0x7000, 0xF_0000, layout::TABLES, layout::UNACCEPTED, layout::COMMAND_LINE, layout::BOOT_INFO];
    for at in low.into_iter().chain([ENTRY, RAM - 4096, KERNEL, INITRAMFS]) {
        let launch = Launch::vmlinux();
        let mut memory = launch.memory();
        let mut platform = FakePlatform::new(&memory, launch.handover);
        platform.refused = Some(at);
        let result = boot(&mut platform, &mut memory, &launch.block);
        assert_eq!(result, Err(Termination::ValidationFailed), "{at:#x}");
        assert!(!platform.left);
    }
}
