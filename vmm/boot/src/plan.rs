//! Puts the parts together.

use std::borrow::Cow;

use kata_cc_measurement::stage0::Stage0Launch;
use kata_cc_measurement::tdx::PassOrder;

use crate::cmdline::{self, CmdlineError};
use crate::kernel::{Kernel, KernelError, KernelFormat};
use crate::layout::{
    self, CMDLINE, GDT, MAX_DEVICES, MEMORY_MIB, MIB, MMIO_HOLE, MP_TABLE, PAGE_SIZE, PAGE_TABLES, VCPUS,
    ZERO_PAGE,
};
use crate::stage0::{self, Firmware, FirmwareError, Hashes};
use crate::start::StartState;
use crate::{mptable, params, start};

/// All that a launch depends on.
#[derive(Clone, Copy, Debug)]
pub struct LaunchInput<'a> {
    /// Content of the kernel file.
    pub kernel: &'a [u8],
    /// Content of the initramfs file.
    pub initramfs: Option<&'a [u8]>,
    /// Command line without the devices' words.
    pub cmdline: &'a str,
    /// Guest memory.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Number of virtio-mmio devices; they sit at [`layout::device`]`(0..devices)`.
    pub devices: usize,
    /// Guest firmware that verifies and boots the kernel; without it the kernel is entered directly.
    pub firmware: Option<Firmware<'a>>,
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The kernel was refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line was refused.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Too little or too much memory.
    #[error("{0} MiB of memory: give 64 to 1048576")]
    Memory(u64),
    /// No vCPU or too many.
    #[error("{0} vcpus: give 1 to 64")]
    Vcpus(u8),
    /// More devices than interrupts.
    #[error("{0} devices: there are interrupts for {MAX_DEVICES}")]
    Devices(usize),
    /// Kernel and initramfs do not fit into memory.
    #[error(
        "kernel ends at {kernel_end:#x} and an initramfs of {initramfs} bytes must end by {limit:#x}: give the guest more memory"
    )]
    DoesNotFit {
        /// End of the kernel.
        kernel_end: u64,
        /// Bytes of the initramfs.
        initramfs: usize,
        /// End of the memory that both may use.
        limit: u64,
    },
    /// The launch by the guest firmware was refused.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
}

/// Bytes that the guest finds at an address when it starts.
#[derive(Clone, Debug)]
pub struct Region<'a> {
    /// What it is, for logs.
    pub name: &'static str,
    /// Address; a multiple of 4096.
    pub gpa: u64,
    /// Content. The rest of its last page is zero and belongs to the region.
    pub bytes: Cow<'a, [u8]>,
}

impl Region<'_> {
    /// First address after the region's last page.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.gpa + (self.bytes.len() as u64).next_multiple_of(PAGE_SIZE)
    }
}

/// What the VMM writes into guest memory, and how the vCPUs start.
#[derive(Clone, Debug)]
pub struct LaunchPlan<'a> {
    /// What the guest starts from: measured where anything is. They do not overlap.
    pub regions: Vec<Region<'a>>,
    /// What the guest finds beside in shared memory, and verifies itself.
    pub unmeasured: Vec<Region<'a>>,
    /// What is measured of a launch by stage0.
    pub stage0: Option<Box<Stage0Launch<'a>>>,
    /// Hashes of what stage0 verifies, as the boot block has them; none without stage0.
    pub hashes: Hashes,
    /// First state of vCPU 0.
    pub start: StartState,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The whole command line.
    pub cmdline: String,
    /// Which kind of kernel it is.
    pub format: KernelFormat,
}

impl<'a> LaunchPlan<'a> {
    /// Makes the plan.
    ///
    /// # Errors
    /// When a part is malformed or the parts do not fit; nothing has happened then.
    pub fn new(input: &LaunchInput<'a>) -> Result<Self, PlanError> {
        if !MEMORY_MIB.contains(&input.memory_mib) {
            return Err(PlanError::Memory(input.memory_mib));
        }
        if !VCPUS.contains(&input.vcpus) {
            return Err(PlanError::Vcpus(input.vcpus));
        }
        if input.devices > MAX_DEVICES {
            return Err(PlanError::Devices(input.devices));
        }
        let kernel = Kernel::parse(input.kernel)?;
        let longest = match input.firmware {
            None => kernel.cmdline_max,
            Some(_) => kernel.cmdline_max.min(stage0::CMDLINE_MAX),
        };
        let cmdline = cmdline::build(input.cmdline, input.devices, longest)?;
        if let Some(firmware) = &input.firmware {
            return stage0::plan(input, firmware, &kernel, cmdline);
        }
        let initramfs = place_initramfs(input, &kernel)?;

        let owned = |name, gpa, bytes: Vec<u8>| Region { name, gpa, bytes: Cow::Owned(bytes) };
        let mut line = cmdline.clone().into_bytes();
        line.push(0);
        let sized = initramfs.map(|(gpa, bytes)| (gpa, bytes.len() as u64));
        let zero_page = params::build(&kernel, input.memory_mib, sized);
        let mut regions = vec![
            owned("boot parameters", ZERO_PAGE, zero_page.to_vec()),
            owned("gdt", GDT, start::gdt()),
            owned("page tables", PAGE_TABLES, start::page_tables()),
            owned("command line", CMDLINE, line),
            owned("mp table", MP_TABLE, mptable::build(input.vcpus)),
        ];
        let borrowed = |name, gpa, bytes: &'a [u8]| Region { name, gpa, bytes: Cow::Borrowed(bytes) };
        for (gpa, bytes) in &kernel.segments {
            regions.push(borrowed("kernel", *gpa, bytes));
        }
        if let Some((gpa, bytes)) = initramfs {
            regions.push(borrowed("initramfs", gpa, bytes));
        }
        Ok(Self {
            regions,
            unmeasured: Vec::new(),
            stage0: None,
            hashes: Hashes::default(),
            start: StartState::linux64(kernel.entry),
            vcpus: input.vcpus,
            cmdline,
            format: kernel.format,
        })
    }

    /// What the platform of this plan measures of its launch: launch digest (SNP) or MRTD (TDX). `None` for a launch that
    /// nothing measures.
    #[must_use]
    pub fn launch_digest(&self) -> Option<[u8; 48]> {
        let launch = self.stage0.as_ref()?;
        let snp = || launch.snp().ok().map(|launch| launch.digest());
        let tdx = || launch.tdx().ok().map(|launch| launch.mrtd(PassOrder::Single));
        snp().or_else(tdx)
    }
}

/// Puts the initramfs at the end of low memory, away from where the kernel unpacks itself.
fn place_initramfs<'a>(
    input: &LaunchInput<'a>,
    kernel: &Kernel<'_>,
) -> Result<Option<(u64, &'a [u8])>, PlanError> {
    let bytes = input.initramfs.unwrap_or_default();
    let limit = (input.memory_mib * MIB).min(MMIO_HOLE).min(kernel.initramfs_max.saturating_add(1));
    let refused = PlanError::DoesNotFit { kernel_end: kernel.end, initramfs: bytes.len(), limit };
    let start = layout::page_up(bytes.len() as u64)
        .and_then(|pages| limit.checked_sub(pages))
        .map(|start| start & !(PAGE_SIZE - 1))
        .ok_or(refused)?;
    if start < kernel.end {
        return Err(refused);
    }
    Ok((!bytes.is_empty()).then_some((start, bytes)))
}
