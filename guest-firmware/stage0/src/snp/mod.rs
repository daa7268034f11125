//! SEV-SNP: what stage0 asks of the processor and of the host, and what it does not believe.
//!
//! | module | what |
//! |---|---|
//! | [`instructions`] | PVALIDATE, RMPADJUST, VMGEXIT and the MSRs as a trait; the only unsafe code |
//! | [`msr`] | GHCB MSR protocol: version, features, registration, single pages, termination |
//! | [`ghcb`] | GHCB page: page state changes, AP creation |
//! | [`memory`] | the order of page state change and validation |
//! | [`cpuid`] | the CPUID page, which stands for the CPUID instruction |
//! | [`vc`] | the #VC exception |
//! | [`secrets`] | the secrets page |
//! | [`ap`] | further vCPUs |
//!
//! Sources: AMD 56421 (GHCB), 56860 (Firmware ABI), 24593 (APM volume 2, 15.36); Linux arch/x86/coco/sev for what a
//! kernel expects. Not yet run on hardware: `docs/stage0-snp-tdx.md`.

pub mod ap;
pub mod cpuid;
mod error;
pub mod ghcb;
pub mod instructions;
pub mod memory;
pub mod msr;
pub mod secrets;
pub mod vc;
mod xsave;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod platform_tests;

use core::arch::x86_64::CpuidResult;

use kata_cc_stage0_abi::PlatformKind;

use self::cpuid::CpuidTable;
pub use self::error::Error;
use self::ghcb::{Ghcb, Step};
use self::instructions::{Instructions, MSR_SEV_STATUS, RMPADJUST_VMPL1};
use self::msr::PageState;
use crate::platform::{BootBlock, Handover, PhysRange, Platform, PlatformError, Termination, layout};
use crate::private_pages::PrivatePages;

/// SEV_STATUS: SEV, SEV-ES, SEV-SNP.
const STATUS_SNP: u64 = 0b111;
/// SEV_STATUS: what may be on beside. Debug register swap, host IBS off, branch target isolation, secure TSC and SMT
/// protection ask nothing of a guest. The rest (virtual TOM, reflected #VC, restricted or alternate injection, VMSA
/// register protection, …) changes how a guest has to run, and neither stage0 nor Linux would.
const STATUS_HARMLESS: u64 = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 17;

/// First address that stage0 has not mapped.
const MAPPED_END: u64 = 4 << 30;

/// Stage0 under SEV-SNP.
#[derive(Debug)]
pub struct Snp<'a, H> {
    hardware: &'a H,
    cpuid_page: &'a [u8; 4096],
    secrets_page: &'a [u8; 4096],
    ghcb: PhysRange,
    pages: PrivatePages,
    table: Option<CpuidTable<'a>>,
    /// What the host can, once the GHCB is open.
    host_features: Option<u64>,
}

impl<'a, H: Instructions> Snp<'a, H> {
    /// Before [`Platform::init`].
    ///
    /// `working_memory` is what the launch made private for the image: image and zeros behind it. `ghcb` is a page of
    /// it that nothing else uses.
    pub fn new(
        hardware: &'a H,
        cpuid_page: &'a [u8; 4096],
        secrets_page: &'a [u8; 4096],
        working_memory: PhysRange,
        ghcb: PhysRange,
    ) -> Result<Self, Error> {
        let mut pages = PrivatePages::default();
        pages.enter(working_memory)?;
        let special = [layout::SECRETS, layout::CPUID, layout::BOOT_BLOCK];
        for page in special.into_iter().filter_map(|page| PhysRange::covering(page, 1)) {
            pages.enter(page)?;
        }
        if ghcb.length() != layout::PAGE_SIZE || !working_memory.contains(ghcb) {
            return Err(Error::Range(ghcb.start()));
        }
        Ok(Self { hardware, cpuid_page, secrets_page, ghcb, pages, table: None, host_features: None })
    }

    fn host_page(&self) -> Result<Ghcb<'a, H>, Error> {
        self.host_features.map(|_| Ghcb::new(self.hardware, self.ghcb.start())).ok_or(Error::NotReady)
    }

    fn begin(&mut self, block: &BootBlock) -> Result<(), Error> {
        if block.platform != PlatformKind::Snp {
            return Err(Error::Platform);
        }
        let status = self.hardware.read_msr(MSR_SEV_STATUS);
        if status & STATUS_SNP != STATUS_SNP {
            return Err(Error::NotSnp(status));
        }
        let unknown = status & !(STATUS_SNP | STATUS_HARMLESS);
        if unknown != 0 {
            return Err(Error::SevFeatures(unknown));
        }
        let [c_bit, ..] = block.memory_bit.to_le_bytes();
        let table = CpuidTable::parse(self.cpuid_page)?;
        table.check(c_bit)?;
        // The page is private memory: it stays as it was checked.
        self.table = Some(table);
        secrets::check(self.secrets_page)?;
        msr::negotiate(self.hardware, c_bit)?;
        let host_features = msr::features(self.hardware)?;
        // Only level 0 may change what level 1 may do; no access is given.
        let level = self.hardware.rmpadjust(self.ghcb.start(), RMPADJUST_VMPL1);
        if level != 0 {
            return Err(Error::NotVmpl0(level));
        }
        self.open_ghcb()?;
        self.host_features = Some(host_features);
        Ok(())
    }

    fn ghcb_step(&self) -> Step {
        Step { page: self.ghcb.start(), large: false }
    }

    fn open_ghcb(&mut self) -> Result<(), Error> {
        self.pages.remove(self.ghcb)?;
        memory::validate(self.hardware, self.ghcb_step(), false)?;
        msr::change_page(self.hardware, self.ghcb.start(), PageState::Shared)?;
        msr::register(self.hardware, self.ghcb.start())?;
        Ghcb::new(self.hardware, self.ghcb.start()).clear();
        Ok(())
    }

    /// Takes the page back: Linux brings one of its own, and the MSR protocol goes on without.
    fn close_ghcb(&mut self) -> Result<(), Error> {
        self.host_page()?.clear();
        self.host_features = None;
        self.pages.enter(self.ghcb)?;
        msr::change_page(self.hardware, self.ghcb.start(), PageState::Private)?;
        memory::validate(self.hardware, self.ghcb_step(), true)?;
        for offset in (0..layout::PAGE_SIZE).step_by(8) {
            self.hardware.write_private(self.ghcb.start() + offset, 0);
        }
        Ok(())
    }

    fn make_private(&mut self, range: PhysRange) -> Result<(), Error> {
        let ghcb = self.host_page()?;
        let reserved = range.overlaps(self.ghcb);
        if range.end() > MAPPED_END || reserved {
            return Err(Error::Range(range.start()));
        }
        self.pages.enter(range)?;
        memory::make_private(self.hardware, &ghcb, range)
    }

    fn make_shared(&mut self, range: PhysRange) -> Result<(), Error> {
        let ghcb = self.host_page()?;
        if range.end() > MAPPED_END {
            return Err(Error::Range(range.start()));
        }
        self.pages.remove(range)?;
        memory::make_shared(self.hardware, &ghcb, range)
    }
}

impl<H: Instructions> Platform for Snp<'_, H> {
    fn init(&mut self, block: &BootBlock) -> Result<(), PlatformError> {
        Ok(self.begin(block)?)
    }

    fn accept(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        Ok(self.make_private(range)?)
    }

    fn share(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.make_shared(range).map_err(|error| PlatformError::from(error).of_sharing())
    }

    fn unshare(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        // What was shared at launch was never validated, so this is no other step than the first acceptance.
        Ok(self.make_private(range)?)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        let answer = self.table.map(|table| table.lookup(leaf, subleaf)).unwrap_or_default();
        CpuidResult { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
    }

    fn prepare_aps(&mut self, vcpus: u32) -> Result<(), PlatformError> {
        // Linux makes the others' state itself; the host has to be one that runs it.
        let host_features = self.host_features.ok_or(Error::NotReady)?;
        let alone = vcpus <= 1;
        if alone || host_features & msr::FEATURE_AP_CREATION != 0 {
            Ok(())
        } else {
            Err(Error::NoApCreation.into())
        }
    }

    fn handover(&self) -> Handover {
        Handover { cc_blob: true, event_log: None, ap_mailbox: None, lazy_memory: true }
    }

    fn leave(&mut self) -> Result<(), PlatformError> {
        Ok(self.close_ghcb()?)
    }

    fn terminate(&self, why: Termination) -> ! {
        msr::terminate(self.hardware, why)
    }
}
