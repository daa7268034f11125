//! Launches of our own firmware, stage0: what is measured, where it lies, in which state the vCPUs start.
//!
//! The same pages are launched under SNP and TDX (`docs/measurement.md` has the table):
//!
//! | order | what | SNP page type | TDX | address |
//! |---|---|---|---|---|
//! | 1 | stage0 image | normal | measured | [`IMAGE`] |
//! | 2 | boot block | normal | measured | [`BOOT_BLOCK`] |
//! | 3 | working memory | zero | measured zeros | end of the image … [`WORKING_END`] |
//! | 4 | secrets, CPUID page | secrets, CPUID | none | [`SECRETS`], [`CPUID`] |
//! | 5 | reset page | none | measured | [`RESET_PAGE`] |
//! | 6 | first state of each vCPU | VMSA | fixed by the TDX module | |
//!
//! All else that the guest finds in memory is not measured, and stage0 treats it as the host's word.
//!
//! vCPUs start in 32-bit protected mode without paging, as a TDX module starts them; under TDX at the
//! architectural reset address, where the reset page jumps to the image's entry.

use std::borrow::Cow;

use crate::bytes::page_up;
use crate::snp::SnpLaunch;
use crate::tdx::TdLaunch;
use crate::{CpuSignature, MeasureError, PAGE_SIZE, PageType, VmsaRegisters};

/// Guest address of the image.
pub const IMAGE: u64 = 0x10_0000;
/// End of the working memory that follows the image.
pub const WORKING_END: u64 = 0x1F_0000;
/// Guest address of the SNP secrets page.
pub const SECRETS: u64 = 0x1F_D000;
/// Guest address of the SNP CPUID page.
pub const CPUID: u64 = 0x1F_E000;
/// Guest address of the boot block.
pub const BOOT_BLOCK: u64 = 0x1F_F000;
/// Guest address of the TDX reset page.
pub const RESET_PAGE: u64 = 0xFFFF_F000;
/// Most vCPUs, as of the VMM.
pub const MAX_VCPUS: u32 = 64;

/// Offset of the reset vector in its page.
const RESET_OFFSET: usize = 0xFF0;

/// A stage0 launch that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stage0Error {
    /// The image does not lie between its address and the end of its working memory.
    #[error(
        "stage0 image of {image} bytes and working memory up to {end:#x} do not fit below {WORKING_END:#x}"
    )]
    Image {
        /// Bytes of the image.
        image: u64,
        /// Where the working memory ends.
        end: u64,
    },
    /// The entry is not in the image.
    #[error("entry {entry:#x} is not within the stage0 image of {image} bytes")]
    Entry {
        /// Offset of the entry.
        entry: u32,
        /// Bytes of the image.
        image: u64,
    },
    /// Number of vCPUs out of range.
    #[error("{0} vCPUs: give 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// Pages that do not hold together.
    #[error(transparent)]
    Measure(#[from] MeasureError),
}

/// What a stage0 launch depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage0Launch<'a> {
    /// The image, as it lies in memory from [`IMAGE`] on.
    pub image: Cow<'a, [u8]>,
    /// Offset of the entry in the image.
    pub entry: u32,
    /// End of the working memory (stack, zeroed data, page tables); pages after the image up to here start
    /// as zeros.
    pub working_end: u64,
    /// The boot block: hashes of kernel, initramfs and command line, and the platform that is launched.
    pub boot_block: Cow<'a, [u8; PAGE_SIZE]>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Processor that the launch is bound to (RDX at start); any when there is none.
    pub cpu: Option<CpuSignature>,
    /// SEV_FEATURES; SNP-active is bit 0.
    pub sev_features: u64,
}

impl<'a> Stage0Launch<'a> {
    fn check(&self) -> Result<u64, Stage0Error> {
        let image = self.image.len() as u64;
        let wrong = Stage0Error::Image { image, end: self.working_end };
        let end = page_up(image).and_then(|len| IMAGE.checked_add(len)).ok_or(wrong)?;
        let fits = image != 0 && end <= self.working_end && self.working_end <= WORKING_END;
        if !fits || !self.working_end.is_multiple_of(PAGE_SIZE as u64) {
            return Err(wrong);
        }
        if u64::from(self.entry) >= image {
            return Err(Stage0Error::Entry { entry: self.entry, image });
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Stage0Error::Vcpus(self.vcpus));
        }
        Ok(end)
    }

    /// Guest address of the first instruction. The image lies far below 4 GiB.
    #[must_use]
    pub const fn entry_address(&self) -> u32 {
        (IMAGE as u32).wrapping_add(self.entry)
    }

    /// First state of every vCPU under SNP.
    #[must_use]
    pub fn registers(&self) -> VmsaRegisters {
        VmsaRegisters::flat32(self.entry_address(), self.cpu.map_or(0, |cpu| cpu.0), self.sev_features)
    }

    /// The launch under SNP.
    ///
    /// # Errors
    /// [`Stage0Error`] says what does not fit.
    pub fn snp(&self) -> Result<SnpLaunch<'a>, Stage0Error> {
        let end = self.check()?;
        let mut launch = SnpLaunch::new();
        launch.normal("stage0 image", IMAGE, self.image.clone())?;
        launch.normal("boot block", BOOT_BLOCK, self.block())?;
        if end < self.working_end {
            launch.pages("working memory", PageType::Zero, end, self.working_end - end)?;
        }
        launch.pages("secrets", PageType::Secrets, SECRETS, PAGE_SIZE as u64)?;
        launch.pages("cpuid", PageType::Cpuid, CPUID, PAGE_SIZE as u64)?;
        for _ in 0..self.vcpus {
            launch.vcpu(&self.registers());
        }
        Ok(launch)
    }

    /// The launch under TDX. Working memory is measured, since a page that is added is otherwise of the host's
    /// choice.
    ///
    /// # Errors
    /// [`Stage0Error`] says what does not fit.
    pub fn tdx(&self) -> Result<TdLaunch<'a>, Stage0Error> {
        let end = self.check()?;
        let mut launch = TdLaunch::new();
        launch.measured("stage0 image", IMAGE, self.image.clone())?;
        launch.measured("boot block", BOOT_BLOCK, self.block())?;
        if end < self.working_end {
            launch.region("working memory", end, self.working_end - end, Cow::Borrowed(&[][..]), true)?;
        }
        launch.measured("reset page", RESET_PAGE, reset_page(self.entry_address()).to_vec())?;
        Ok(launch)
    }

    fn block(&self) -> Cow<'a, [u8]> {
        match &self.boot_block {
            Cow::Borrowed(block) => Cow::Borrowed(block.as_slice()),
            Cow::Owned(block) => Cow::Owned(block.to_vec()),
        }
    }
}

/// The page below 4 GiB with a jump to `entry` at the reset vector, in 32-bit code. What is not the jump traps.
#[must_use]
pub fn reset_page(entry: u32) -> [u8; PAGE_SIZE] {
    const INT3: u8 = 0xCC;
    let mut page = [INT3; PAGE_SIZE];
    // jmp rel32: relative to the instruction's end
    let end = RESET_PAGE as u32 + RESET_OFFSET as u32 + 5;
    page[RESET_OFFSET] = 0xE9;
    page[RESET_OFFSET + 1..RESET_OFFSET + 5].copy_from_slice(&entry.wrapping_sub(end).to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> Stage0Launch<'static> {
        Stage0Launch {
            image: Cow::Owned(vec![0x90; 0x2345]),
            entry: 0,
            working_end: 0x12_0000,
            boot_block: Cow::Owned([7; PAGE_SIZE]),
            vcpus: 2,
            cpu: None,
            sev_features: 1,
        }
    }

    #[test]
    fn sections_are_those_of_the_table() {
        let snp = launch().snp().unwrap();
        let seen: Vec<_> =
            snp.sections().iter().map(|s| (s.name.as_ref(), s.page_type, s.gpa, s.len)).collect();
        assert_eq!(
            seen,
            [
                ("stage0 image", PageType::Normal, 0x10_0000, 0x3000),
                ("boot block", PageType::Normal, 0x1F_F000, 0x1000),
                ("working memory", PageType::Zero, 0x10_3000, 0x1_D000),
                ("secrets", PageType::Secrets, 0x1F_D000, 0x1000),
                ("cpuid", PageType::Cpuid, 0x1F_E000, 0x1000),
                ("vmsa 0", PageType::Vmsa, crate::VMSA_GPA, 0x1000),
                ("vmsa 1", PageType::Vmsa, crate::VMSA_GPA, 0x1000),
            ]
        );
        let names: Vec<_> = launch().tdx().unwrap().regions().iter().map(|r| r.name.to_string()).collect();
        assert_eq!(names, ["stage0 image", "boot block", "working memory", "reset page"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let too_long = Stage0Launch { image: Cow::Owned(vec![0; 0x2_0001]), ..launch() };
        assert_eq!(too_long.snp(), Err(Stage0Error::Image { image: 0x2_0001, end: 0x12_0000 }));
        let empty = Stage0Launch { image: Cow::Borrowed(&[]), ..launch() };
        assert_eq!(empty.tdx(), Err(Stage0Error::Image { image: 0, end: 0x12_0000 }));
        let over = Stage0Launch { working_end: WORKING_END + 0x1000, ..launch() };
        assert_eq!(over.snp(), Err(Stage0Error::Image { image: 0x2345, end: 0x1F_1000 }));
        let entry = Stage0Launch { entry: 0x2345, ..launch() };
        assert_eq!(entry.snp(), Err(Stage0Error::Entry { entry: 0x2345, image: 0x2345 }));
        for vcpus in [0, 65] {
            assert_eq!(Stage0Launch { vcpus, ..launch() }.snp(), Err(Stage0Error::Vcpus(vcpus)));
        }
    }

    #[test]
    fn the_reset_vector_leads_to_the_entry() {
        let page = reset_page(0x10_0040);
        assert_eq!(page[0xFF0], 0xE9);
        let relative = u32::from_le_bytes(page[0xFF1..0xFF5].try_into().unwrap());
        assert_eq!(0xFFFF_FFF5u32.wrapping_add(relative), 0x10_0040);
        assert!(page[..0xFF0].iter().chain(&page[0xFF5..]).all(|byte| *byte == 0xCC));
    }
}
