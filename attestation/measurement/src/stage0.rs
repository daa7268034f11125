//! Launches of our own firmware, stage0: what is measured, where it lies, in which state the vCPUs start.
//!
//! The same pages are launched under SNP and TDX; addresses are those of [`kata_cc_stage0_abi::layout`]:
//!
//! | order | what | SNP page type | TDX |
//! |---|---|---|---|
//! | 1 | stage0 image | normal | measured |
//! | 2 | boot block | normal | measured |
//! | 3 | working memory after the image | zero | added, not measured: the image fills it with zeros first |
//! | 4 | secrets page, CPUID page | secrets, CPUID | none |
//! | 5 | reset page | none | measured |
//! | 6 | first state of each vCPU | VMSA | fixed by the TDX module |
//!
//! All else that the guest finds in memory is not measured, and stage0 treats it as the host's word.
//!
//! vCPUs start in 32-bit protected mode without paging, as a TDX module starts them; under TDX at the
//! architectural reset address, where the reset page jumps to the image's entry.

use std::borrow::Cow;

use kata_cc_stage0_abi::layout::{BOOT_BLOCK, CPUID, IMAGE, RESET_CODE, RESET_PAGE, SECRETS};
use kata_cc_stage0_abi::{
    BootBlock, BootBlockError, ImageError, ImageHeader, Measured, PlatformKind, Sealed,
};

use crate::rtmr::{RtmrError, Rtmrs};
use crate::snp::SnpLaunch;
use crate::tdx::TdLaunch;
use crate::vmsa::SEV_FEATURE_SNP_ACTIVE;
use crate::{CpuSignature, MeasureError, PAGE_SIZE, PageType, VmsaRegisters};

/// Where the reset code lies in its page: 16 bytes before 4 GiB.
const RESET_OFFSET: usize = 0xFF0;

/// A stage0 launch that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stage0Error {
    /// The image is refused.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The boot block is refused.
    #[error(transparent)]
    BootBlock(#[from] BootBlockError),
    /// The boot block is that of another platform.
    #[error("boot block is for {0:?}, which is not measured this way")]
    Platform(PlatformKind),
    /// Guest features without SNP.
    #[error("guest features {0:#x} lack bit 0 (SNP active), which KVM always sets")]
    Features(u64),
    /// An event for a register that there is not.
    #[error(transparent)]
    Register(#[from] RtmrError),
    /// Pages that do not hold together.
    #[error(transparent)]
    Measure(#[from] MeasureError),
}

/// What a stage0 launch depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage0Launch<'a> {
    image: &'a [u8],
    header: ImageHeader,
    block: BootBlock,
    page: [u8; PAGE_SIZE],
    cpu: Option<CpuSignature>,
    features: u64,
}

impl<'a> Stage0Launch<'a> {
    /// A launch of an image with a boot block, on any processor, without optional features.
    ///
    /// # Errors
    /// When the image or the boot block would be refused.
    pub fn new(image: &'a [u8], block: &BootBlock) -> Result<Self, Stage0Error> {
        let header = ImageHeader::parse(image)?;
        let page = block.to_page()?;
        Ok(Self { image, header, block: *block, page, cpu: None, features: SEV_FEATURE_SNP_ACTIVE })
    }

    /// Binds an SNP launch to a processor model: its signature is in RDX at start.
    #[must_use]
    pub const fn with_cpu(mut self, cpu: CpuSignature) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Sets SEV_FEATURES of an SNP launch.
    ///
    /// # Errors
    /// When SNP-active is not among them.
    pub const fn with_features(mut self, features: u64) -> Result<Self, Stage0Error> {
        if features & SEV_FEATURE_SNP_ACTIVE == 0 {
            return Err(Stage0Error::Features(features));
        }
        self.features = features;
        Ok(self)
    }

    /// The boot block.
    #[must_use]
    pub const fn boot_block(&self) -> &BootBlock {
        &self.block
    }

    /// First state of every vCPU under SNP.
    #[must_use]
    pub fn registers(&self) -> VmsaRegisters {
        VmsaRegisters::flat32(IMAGE as u32, self.cpu.map_or(0, |cpu| cpu.0), self.features)
    }

    /// Bytes of measured contents: image, boot block and one page of the platform's own.
    #[must_use]
    pub const fn measured_bytes(&self) -> u64 {
        self.image.len() as u64 + 2 * PAGE_SIZE as u64
    }

    /// The launch under SNP or simulated SNP.
    ///
    /// # Errors
    /// When the boot block is that of another platform.
    pub fn snp(&self) -> Result<SnpLaunch<'a>, Stage0Error> {
        if !matches!(self.block.platform, PlatformKind::Snp | PlatformKind::SimSnp) {
            return Err(Stage0Error::Platform(self.block.platform));
        }
        let mut launch = SnpLaunch::new();
        launch.normal("stage0 image", IMAGE, self.image)?;
        launch.normal("boot block", BOOT_BLOCK, self.page.to_vec())?;
        if let Some((start, len)) = self.working_memory() {
            launch.pages("working memory", PageType::Zero, start, len)?;
        }
        launch.pages("secrets", PageType::Secrets, SECRETS, PAGE_SIZE as u64)?;
        launch.pages("cpuid", PageType::Cpuid, CPUID, PAGE_SIZE as u64)?;
        for _ in 0..self.block.vcpus {
            launch.vcpu(&self.registers());
        }
        Ok(launch)
    }

    /// The launch under TDX or simulated TDX. What working memory holds is the host's choice, since it is added without being
    /// measured: the image overwrites it before it reads any of it.
    ///
    /// # Errors
    /// When the boot block is that of another platform.
    pub fn tdx(&self) -> Result<TdLaunch<'a>, Stage0Error> {
        if !matches!(self.block.platform, PlatformKind::Tdx | PlatformKind::SimTdx) {
            return Err(Stage0Error::Platform(self.block.platform));
        }
        let mut launch = TdLaunch::new();
        launch.measured("stage0 image", IMAGE, self.image)?;
        launch.measured("boot block", BOOT_BLOCK, self.page.to_vec())?;
        if let Some((start, len)) = self.working_memory() {
            launch.region("working memory", start, len, Cow::Borrowed(&[][..]), false)?;
        }
        launch.measured("reset page", RESET_PAGE, reset_page().to_vec())?;
        Ok(launch)
    }

    /// Run-time registers of a TD when its kernel starts: stage0 extends them by the boot block, the kernel, the command line and
    /// the initramfs ([`kata_cc_stage0_abi::event`]). The firmware of a simulated TD extends none.
    ///
    /// # Errors
    /// When the boot block is that of another platform.
    pub fn rtmrs(&self) -> Result<Rtmrs, Stage0Error> {
        let mut registers = Rtmrs::new();
        match self.block.platform {
            PlatformKind::SimTdx => return Ok(registers),
            PlatformKind::Tdx => {}
            other => return Err(Stage0Error::Platform(other)),
        }
        let payload = |what: Measured, sealed: &Sealed| (what, what.payload_event(&sealed.sha256));
        let events = [
            Some((Measured::BootBlock, Measured::block_event(&self.page))),
            Some(payload(Measured::Kernel, &self.block.kernel)),
            Some(payload(Measured::CommandLine, &self.block.command_line)),
            self.block.initramfs.as_ref().map(|sealed| payload(Measured::Initramfs, sealed)),
        ];
        for (what, data) in events.into_iter().flatten() {
            registers.extend_data(what.register() as usize, data.bytes())?;
        }
        Ok(registers)
    }

    /// Start and length of the working memory, if there is any.
    const fn working_memory(&self) -> Option<(u64, u64)> {
        let (start, len) = (self.header.working_memory_start(), self.header.working_memory as u64);
        if len == 0 { None } else { Some((start, len)) }
    }
}

/// The page below 4 GiB: zeros and, at the reset vector, the jump to the image.
#[must_use]
pub fn reset_page() -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    page[RESET_OFFSET..RESET_OFFSET + RESET_CODE.len()].copy_from_slice(&RESET_CODE);
    page
}
