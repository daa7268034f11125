//! Simulated SEV-SNP and TDX: plain memory, the real algorithms. They protect nothing; what they enforce, this
//! process enforces against itself.
//!
//! The measured pages are entered in the book as private and written by this launch only. Everything else that
//! the VMM writes goes through [`MemoryBook::check_shared`] first, so that nothing but measured pages starts in
//! private memory, as on hardware.

use kata_cc_measurement::snp::SnpLaunch;
use kata_cc_measurement::tdx::{MrtdStream, TdLaunch};
use kata_cc_measurement::{LaunchDigest, PageType};

use super::ioctls::TeeIoctls;
use super::memory::{Conversion, MemoryBook};
use super::{Tee, TeeError, TeeKind};

/// What is launched.
#[derive(Debug)]
pub enum SimLaunch<'a> {
    /// Simulated SEV-SNP.
    Snp(SnpLaunch<'a>),
    /// Simulated TDX and its number of vCPUs.
    Tdx(TdLaunch<'a>, u32),
}

/// A guest under a simulated TEE.
#[derive(Debug)]
pub struct SimTee<'a> {
    launch: SimLaunch<'a>,
    /// Digest so far, kept page by page as the pages are written.
    digest: Option<[u8; 48]>,
}

impl<'a> SimTee<'a> {
    /// A launch of these pages.
    #[must_use]
    pub const fn new(launch: SimLaunch<'a>) -> Self {
        Self { launch, digest: None }
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        match &self.launch {
            SimLaunch::Snp(launch) => {
                let measured = launch.sections().iter().filter(|s| s.page_type != PageType::Vmsa);
                measured.map(|section| (section.gpa, section.len)).collect()
            }
            SimLaunch::Tdx(launch, _) => launch.regions().iter().map(|r| (r.gpa, r.len)).collect(),
        }
    }
}

/// The TDX reset page is measured, but no RAM is there, and no simulated vCPU starts there.
const fn is_reset_page(gpa: u64) -> bool {
    gpa == kata_cc_stage0_abi::layout::RESET_PAGE
}

impl Tee for SimTee<'_> {
    fn kind(&self) -> TeeKind {
        match self.launch {
            SimLaunch::Snp(_) => TeeKind::SimSnp,
            SimLaunch::Tdx(..) => TeeKind::SimTdx,
        }
    }

    fn vcpus(&self) -> Option<u32> {
        Some(match &self.launch {
            SimLaunch::Snp(launch) => launch.vcpus(),
            SimLaunch::Tdx(_, vcpus) => *vcpus,
        })
    }

    fn predicted(&self) -> Option<[u8; 48]> {
        Some(match &self.launch {
            SimLaunch::Snp(launch) => launch.digest(),
            SimLaunch::Tdx(launch, _) => launch.mrtd(kata_cc_measurement::tdx::PassOrder::Single),
        })
    }

    fn prepare(&mut self, _: &dyn TeeIoctls, book: &mut MemoryBook) -> Result<(), TeeError> {
        for (gpa, size) in self.ranges().into_iter().filter(|(gpa, _)| !is_reset_page(*gpa)) {
            book.convert(&Conversion { gpa, size, private: true })?;
        }
        Ok(())
    }

    fn start_vcpu(&mut self, _: &dyn TeeIoctls, _: u32) -> Result<(), TeeError> {
        // registers are those of a plain guest that starts in the same state
        Ok(())
    }

    fn load(&mut self, io: &dyn TeeIoctls) -> Result<(), TeeError> {
        let write = |gpa, bytes: &[u8]| {
            io.write_shared(gpa, bytes).map_err(TeeError::refused("writing a measured page"))
        };
        self.digest = Some(match &self.launch {
            SimLaunch::Snp(launch) => {
                let mut digest = LaunchDigest::new();
                for section in launch.sections() {
                    for (gpa, page) in section.pages() {
                        if section.page_type == PageType::Normal {
                            write(gpa, page.as_slice())?;
                        }
                        digest.update_page(section.page_type, gpa, &page);
                    }
                }
                digest.finish()
            }
            SimLaunch::Tdx(launch, _) => {
                let mut stream = MrtdStream::new();
                for region in launch.regions() {
                    for (gpa, page) in region.pages() {
                        if !is_reset_page(gpa) {
                            write(gpa, page.as_slice())?;
                        }
                        stream.page_add(gpa);
                        if region.measured {
                            stream.page_extend(gpa, &page);
                        }
                    }
                }
                stream.finish()
            }
        });
        Ok(())
    }

    fn finish(&mut self, _: &dyn TeeIoctls) -> Result<Option<[u8; 48]>, TeeError> {
        Ok(self.digest)
    }
}
