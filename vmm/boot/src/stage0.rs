//! Launches by the guest firmware stage0 (`docs/stage0.md`): what is measured is the firmware and one page
//! of hashes; kernel, initramfs and command line lie in shared memory, where stage0 finds, copies and
//! verifies them.
//!
//! Kernel and initramfs are put at the end of low memory, in whole units of 2 MiB. stage0 takes the highest
//! free memory for its own copies, so what must fit is known here and refused before a guest is started.

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_measurement::stage0::{Stage0Error, Stage0Launch};
use kata_cc_stage0_abi::layout::{BOOT_BLOCK, BOOT_INFO, COMMAND_LINE, COMMAND_LINE_MAX, IMAGE, LARGE_PAGE};
use kata_cc_stage0_abi::{BootBlock, BootInfo, BootInfoError, KernelKind, MemoryRange, PlatformKind, Sealed};

use crate::kernel::{Kernel, KernelFormat};
use crate::layout::{MIB, MMIO_HOLE, memory_ranges};
use crate::plan::{LaunchInput, LaunchPlan, PlanError, Region};
use crate::start::StartState;

/// The guest firmware and the platform that it shall find.
#[derive(Clone, Copy, Debug)]
pub struct Firmware<'a> {
    /// Content of the image file.
    pub image: &'a [u8],
    /// Platform, as the boot block names it.
    pub platform: PlatformKind,
    /// Position of the bit that marks private (SNP) or shared (TDX) memory; 0 on other platforms.
    pub memory_bit: u32,
    /// Whether stage0 tells the guest of its devices by ACPI, for kernels that have it.
    pub acpi_devices: bool,
    /// Hashes that need not be made.
    pub known: Hashes,
}

/// SHA-256 of kernel and initramfs, where it is known. It goes into the measured boot block as it is; stage0 hashes what it finds, so a wrong one
/// gives a launch that stage0 refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    /// Of the kernel file.
    pub kernel: Option<[u8; 32]>,
    /// Of the initramfs file.
    pub initramfs: Option<[u8; 32]>,
}

impl<'a> Firmware<'a> {
    /// An image on a platform. The kernel of confidential guests, simulated ones too, has ACPI (the drivers of both TEEs depend on
    /// it), that of plain ones has not.
    #[must_use]
    pub const fn new(image: &'a [u8], platform: PlatformKind, memory_bit: u32) -> Self {
        let acpi_devices = !matches!(platform, PlatformKind::Plain);
        Self { image, platform, memory_bit, acpi_devices, known: Hashes { kernel: None, initramfs: None } }
    }

    /// The same with hashes that were made before.
    #[must_use]
    pub const fn with_hashes(self, known: Hashes) -> Self {
        Self { known, ..self }
    }
}

/// Why there is no plan for a launch by stage0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirmwareError {
    /// The image or what it shall be told cannot be launched.
    #[error(transparent)]
    Launch(#[from] Stage0Error),
    /// The places of memory and payloads contradict each other.
    #[error(transparent)]
    Info(#[from] BootInfoError),
    /// Kernel, initramfs, and the private copies that stage0 makes of them.
    #[error(
        "kernel and initramfs need {needed} MiB while stage0 verifies them, there are {there} MiB below 3 GiB: give the guest more memory"
    )]
    DoesNotFit {
        /// MiB that are needed.
        needed: u64,
        /// MiB that there are.
        there: u64,
    },
}

/// Makes the plan of a launch whose kernel and command line were checked.
pub(crate) fn plan<'a>(
    input: &LaunchInput<'a>,
    firmware: &Firmware<'a>,
    kernel: &Kernel<'_>,
    cmdline: String,
) -> Result<LaunchPlan<'a>, PlanError> {
    let initramfs = input.initramfs.unwrap_or_default();
    let places = Places::new(input, kernel)?;
    let block = BootBlock {
        platform: firmware.platform,
        vcpus: input.vcpus.into(),
        memory_bit: firmware.memory_bit,
        acpi_devices: firmware.acpi_devices,
        kernel_kind: match kernel.format {
            KernelFormat::BzImage => KernelKind::BzImage,
            KernelFormat::Vmlinux => KernelKind::Vmlinux,
        },
        command_line: seal(cmdline.as_bytes()),
        ..hashes(input.kernel, initramfs, &firmware.known)
    };
    let hashes = Hashes {
        kernel: Some(block.kernel.sha256),
        initramfs: block.initramfs.map(|initramfs| initramfs.sha256),
    };
    let launch = Stage0Launch::new(firmware.image, &block).map_err(FirmwareError::from)?;
    let page = block.to_page().map_err(|error| FirmwareError::Launch(error.into()))?;
    let ranges: Vec<_> = memory_ranges(input.memory_mib)
        .into_iter()
        .map(|(start, length)| MemoryRange { start, length })
        .collect();
    let info = BootInfo::new(places.kernel, places.initramfs, &ranges).map_err(FirmwareError::from)?;

    let owned = |name, gpa, bytes: Vec<u8>| Region { name, gpa, bytes: Cow::Owned(bytes) };
    let borrowed = |name, gpa, bytes: &'a [u8]| Region { name, gpa, bytes: Cow::Borrowed(bytes) };
    let regions =
        vec![borrowed("stage0 image", IMAGE, firmware.image), owned("boot block", BOOT_BLOCK, page.to_vec())];
    let mut unmeasured = vec![
        owned("boot info", BOOT_INFO, info.to_page().to_vec()),
        borrowed("kernel file", places.kernel, input.kernel),
    ];
    if !cmdline.is_empty() {
        unmeasured.push(owned("command line", COMMAND_LINE, cmdline.clone().into_bytes()));
    }
    if !initramfs.is_empty() {
        unmeasured.push(borrowed("initramfs file", places.initramfs, initramfs));
    }
    Ok(LaunchPlan {
        regions,
        unmeasured,
        stage0: Some(Box::new(launch)),
        hashes,
        start: StartState::flat32(IMAGE),
        vcpus: input.vcpus,
        cmdline,
        format: kernel.format,
    })
}

/// Most bytes of a command line with its final zero.
pub(crate) const CMDLINE_MAX: usize = COMMAND_LINE_MAX as usize + 1;

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sha256
}

fn seal(bytes: &[u8]) -> Sealed {
    seal_known(bytes, None)
}

fn seal_known(bytes: &[u8], known: Option<[u8; 32]>) -> Sealed {
    Sealed { length: bytes.len() as u64, sha256: known.unwrap_or_else(|| sha256(bytes)) }
}

/// A boot block with the two large hashes; those that are not known are made side by side.
fn hashes(kernel: &[u8], initramfs: &[u8], known: &Hashes) -> BootBlock {
    let initramfs = || (!initramfs.is_empty()).then(|| seal_known(initramfs, known.initramfs));
    let (kernel, initramfs) = std::thread::scope(|scope| {
        let other = scope.spawn(initramfs);
        let kernel = seal_known(kernel, known.kernel);
        // a thread that only hashes cannot panic; if it did, its work is done here
        (kernel, other.join().unwrap_or_else(|_| initramfs()))
    });
    BootBlock {
        platform: PlatformKind::Plain,
        vcpus: 1,
        memory_bit: 0,
        acpi_devices: false,
        kernel_kind: KernelKind::Vmlinux,
        kernel,
        initramfs,
        command_line: Sealed::default(),
    }
}

/// Where the payloads lie when stage0 starts.
struct Places {
    kernel: u64,
    initramfs: u64,
}

impl Places {
    fn new(input: &LaunchInput<'_>, kernel: &Kernel<'_>) -> Result<Self, FirmwareError> {
        let units = |bytes: u64| bytes.next_multiple_of(LARGE_PAGE);
        let end = (input.memory_mib * MIB).min(MMIO_HOLE) & !(LARGE_PAGE - 1);
        let file = units(input.kernel.len() as u64);
        let initramfs = units(input.initramfs.map_or(0, <[u8]>::len) as u64);
        // first the kernel is copied, then, when the host's kernel is gone, the initramfs; a copy of the
        // initramfs must lie where the kernel can reach it
        let reach = end.saturating_sub(kernel.initramfs_max.saturating_add(1) & !(LARGE_PAGE - 1));
        let beside = (2 * file).max(file.min(reach) + initramfs);
        let needed = units(kernel.end) + initramfs + beside;
        if needed > end {
            return Err(FirmwareError::DoesNotFit { needed: needed / MIB, there: end / MIB });
        }
        let kernel = end - initramfs - file;
        Ok(Self { kernel, initramfs: if initramfs == 0 { 0 } else { end - initramfs } })
    }
}
