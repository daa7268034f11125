//! An SNP launch as a whole: its sections in the order in which they are measured, so that one description
//! serves the VMM (which launches it), the prediction of its digest, and the explanation of that digest.

use std::borrow::Cow;

use crate::bytes::{page, page_up};
use crate::explain::{Explanation, Step, StepKind, Tee};
use crate::{
    DIGEST_LEN, LaunchDigest, MeasureError, PAGE_SIZE, PageType, VMSA_GPA, VmsaRegisters, hash_page,
};

/// Contiguous pages of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnpSection<'a> {
    /// What it is, for people.
    pub name: Cow<'static, str>,
    /// How its pages enter the guest.
    pub page_type: PageType,
    /// Guest address of its first page.
    pub gpa: u64,
    /// Bytes in memory, whole pages.
    pub len: u64,
    /// Contents, for the types that are measured with theirs; zeros follow up to `len`.
    pub bytes: Cow<'a, [u8]>,
}

impl SnpSection<'_> {
    /// Its pages with their addresses. Those without contents of their own are zero.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Cow<'_, [u8; PAGE_SIZE]>)> {
        (0..self.len / PAGE_SIZE as u64).map(|index| {
            // the VMSAs are all measured under one address
            let offset = if self.page_type == PageType::Vmsa { 0 } else { index * PAGE_SIZE as u64 };
            (self.gpa + offset, page(&self.bytes, index))
        })
    }
}

/// Everything that a guest starts from.
///
/// ```
/// use kata_cc_measurement::snp::SnpLaunch;
/// use kata_cc_measurement::{PageType, VmsaRegisters};
/// let mut launch = SnpLaunch::new();
/// launch.normal("firmware", 0x10_0000, &[0x90; 5000]).unwrap();
/// launch.pages("secrets", PageType::Secrets, 0x1f_d000, 0x1000).unwrap();
/// launch.vcpu(&VmsaRegisters::flat32(0x10_0000, 0, 1));
/// assert_eq!(launch.digest(), launch.explain(true).digest);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnpLaunch<'a> {
    seed: Option<[u8; DIGEST_LEN]>,
    sections: Vec<SnpSection<'a>>,
    vcpus: u32,
}

impl<'a> SnpLaunch<'a> {
    /// A launch of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A launch whose first pages are known only by their digest (`ovmf-hash` of sev-snp-measure).
    #[must_use]
    pub fn with_seed(seed: [u8; DIGEST_LEN]) -> Self {
        Self { seed: Some(seed), ..Self::default() }
    }

    /// Adds pages that are measured with their contents; the last is filled up with zeros.
    ///
    /// # Errors
    /// When the address is not that of a page or the region leaves the address space.
    pub fn normal(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        gpa: u64,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), MeasureError> {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        let len = page_up(len).ok_or(MeasureError::AddressOverflow { gpa, len })?;
        self.push(name.into(), PageType::Normal, gpa, len, bytes)
    }

    /// Adds pages whose contents are not measured.
    ///
    /// # Errors
    /// As [`Self::normal`], and when the type is one that is measured with its contents.
    pub fn pages(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        page_type: PageType,
        gpa: u64,
        len: u64,
    ) -> Result<(), MeasureError> {
        if page_type.has_contents() {
            return Err(MeasureError::ContentsMissing { gpa });
        }
        self.push(name.into(), page_type, gpa, len, Cow::Borrowed(&[]))
    }

    /// Adds the next vCPU. All of them follow all other pages, as KVM measures them when it finishes.
    pub fn vcpu(&mut self, registers: &VmsaRegisters) {
        let name = format!("vmsa {}", self.vcpus);
        self.vcpus += 1;
        self.sections.push(SnpSection {
            name: name.into(),
            page_type: PageType::Vmsa,
            gpa: VMSA_GPA,
            len: PAGE_SIZE as u64,
            bytes: Cow::Owned(registers.to_page().to_vec()),
        });
    }

    fn push(
        &mut self,
        name: Cow<'static, str>,
        page_type: PageType,
        gpa: u64,
        len: u64,
        bytes: Cow<'a, [u8]>,
    ) -> Result<(), MeasureError> {
        crate::check_region(gpa, len)?;
        if self.vcpus != 0 {
            return Err(MeasureError::AfterVcpus { gpa });
        }
        self.sections.push(SnpSection { name, page_type, gpa, len, bytes });
        Ok(())
    }

    /// All sections, the VMSAs last.
    #[must_use]
    pub fn sections(&self) -> &[SnpSection<'a>] {
        &self.sections
    }

    /// Number of vCPUs.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Pages that the security processor has to measure one by one.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.sections.iter().map(|section| section.len / PAGE_SIZE as u64).sum()
    }

    /// The launch digest.
    #[must_use]
    pub fn digest(&self) -> [u8; DIGEST_LEN] {
        let mut digest = self.start();
        for section in &self.sections {
            for (gpa, page) in section.pages() {
                digest.update_page(section.page_type, gpa, &page);
            }
        }
        digest.finish()
    }

    /// The launch digest with every page's share in it; `contents` adds the measured bytes themselves.
    #[must_use]
    pub fn explain(&self, contents: bool) -> Explanation {
        let mut digest = self.start();
        let mut steps = Vec::new();
        for section in &self.sections {
            for (gpa, page) in section.pages() {
                digest.update_page(section.page_type, gpa, &page);
                let measured = section.page_type.has_contents();
                steps.push(Step {
                    section: section.name.clone().into_owned(),
                    gpa,
                    kind: StepKind::from(section.page_type),
                    content_sha384: measured.then(|| hash_page(&page)),
                    digest_after: digest.clone().finish(),
                    contents: (measured && contents).then(|| page.to_vec()),
                });
            }
        }
        Explanation { tee: Tee::Snp, seed: self.seed, digest: digest.finish(), steps }
    }

    fn start(&self) -> LaunchDigest {
        self.seed.map_or_else(LaunchDigest::new, LaunchDigest::with_seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_after_the_vcpus() {
        let mut launch = SnpLaunch::new();
        launch.vcpu(&VmsaRegisters::cleared());
        assert_eq!(
            launch.pages("late", PageType::Zero, 0x1000, 0x1000),
            Err(MeasureError::AfterVcpus { gpa: 0x1000 })
        );
    }

    #[test]
    fn measured_pages_need_their_contents() {
        let mut launch = SnpLaunch::new();
        for page_type in [PageType::Normal, PageType::Vmsa] {
            assert_eq!(
                launch.pages("x", page_type, 0x1000, 0x1000),
                Err(MeasureError::ContentsMissing { gpa: 0x1000 })
            );
        }
    }
}
