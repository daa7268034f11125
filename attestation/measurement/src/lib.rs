//! Launch measurement: the digests that the SNP security processor and the TDX module compute over
//! everything a guest starts from.
//!
//! Purpose: one implementation for the VMM (which launches, and simulates the security processor), for
//! `kata-cc measure` (offline prediction) and for reference values, so that they cannot differ.
//!
//! Parts: [`LaunchDigest`] is SNP's algorithm, [`tdx::MrtdStream`] TDX's, [`rtmr::Rtmrs`] the run-time
//! registers; [`snp::SnpLaunch`] and [`tdx::TdLaunch`] describe whole launches, made by [`stage0`] for our own
//! firmware and by [`ovmf`] and [`tdx::TdLaunch::of_firmware`] for images of the OVMF family ([`firmware`]);
//! [`explain`] says what a digest is made of and what two launches differ in.
//!
//! SNP's algorithm (SEV-SNP Firmware ABI, 8.17.2 `SNP_LAUNCH_UPDATE`): the digest starts as 48 zero
//! bytes; for each 4 KiB page a 0x70-byte `PAGE_INFO` (digest so far, SHA-384 of the contents or
//! zeros, page type, permissions, guest address) is hashed with SHA-384 and becomes the new digest.
//! The order of the calls is part of the measurement.
//!
//! Limits: IMI and VMPL permissions are always zero, as KVM sets them. No input or output happens
//! here; the caller reads the pages, and may hash their contents in parallel ([`hash_page`]) before
//! it feeds them in order ([`LaunchDigest::update_hashed`]).
#![forbid(unsafe_code)]

mod bytes;
mod cpu;
pub mod explain;
pub mod firmware;
mod guid;
mod hashes;
pub mod ovmf;
pub mod rtmr;
pub mod snp;
pub mod stage0;
pub mod tdx;
pub mod vmsa;

use aws_lc_rs::digest::{SHA384, digest};

pub use cpu::{CpuSignature, UnknownCpu};
pub use firmware::FirmwareError;
pub use hashes::SevHashes;
pub use vmsa::VmsaRegisters;

/// Bytes of a page: the unit of measurement.
pub const PAGE_SIZE: usize = 4096;

/// Guest address under which the security processor measures VMSA pages.
pub const VMSA_GPA: u64 = 0xFFFF_FFFF_F000;

/// Length of a launch digest and of a page's content hash (SHA-384).
pub const DIGEST_LEN: usize = 48;

/// SHA-384 over the contents of one page.
pub type PageHash = [u8; DIGEST_LEN];

/// `PAGE_INFO` length, which is also written into it.
const PAGE_INFO_LEN: usize = 0x70;

/// How a page enters the guest (firmware ABI, `PAGE_TYPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum PageType {
    /// Contents are measured.
    Normal = 1,
    /// First state of a vCPU, measured under [`VMSA_GPA`].
    Vmsa = 2,
    /// The firmware clears the page; only its address is measured.
    Zero = 3,
    /// Only the address is measured, the host chooses the contents.
    Unmeasured = 4,
    /// The firmware fills in the secrets page.
    Secrets = 5,
    /// CPUID values, checked by the firmware instead of measured.
    Cpuid = 6,
}

impl PageType {
    /// True when the contents are part of the digest.
    #[must_use]
    pub const fn has_contents(self) -> bool {
        matches!(self, Self::Normal | Self::Vmsa)
    }
}

/// A region that cannot be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// Regions start at a page boundary.
    #[error("guest address {gpa:#x} is not a multiple of 4096")]
    UnalignedAddress {
        /// The address seen.
        gpa: u64,
    },
    /// Regions consist of whole pages.
    #[error("length {len:#x} at guest address {gpa:#x} is not a multiple of 4096: pad it with zeros")]
    UnalignedLength {
        /// Start of the region.
        gpa: u64,
        /// The length seen.
        len: u64,
    },
    /// Regions end within the 64-bit address space.
    #[error("region at {gpa:#x} of {len:#x} bytes goes beyond the address space")]
    AddressOverflow {
        /// Start of the region.
        gpa: u64,
        /// Its length.
        len: u64,
    },
    /// Normal and VMSA pages are measured with their contents.
    #[error("pages at {gpa:#x} are of a type that is measured with its contents: give them")]
    ContentsMissing {
        /// Start of the region.
        gpa: u64,
    },
    /// The VMSAs are measured last.
    #[error("pages at {gpa:#x} cannot follow the vCPUs, which are measured last")]
    AfterVcpus {
        /// Start of the region.
        gpa: u64,
    },
}

/// SHA-384 of a page's contents; pure, so that many pages can be hashed at once.
#[must_use]
pub fn hash_page(contents: &[u8; PAGE_SIZE]) -> PageHash {
    sha384(contents)
}

/// The digest while the launch goes on.
///
/// ```
/// use kata_cc_measurement::{LaunchDigest, PageType};
/// let mut digest = LaunchDigest::new();
/// digest.update_page(PageType::Normal, 0x1000, &[0; 4096]);
/// assert_ne!(digest.finish(), [0; 48]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchDigest {
    current: [u8; DIGEST_LEN],
}

impl Default for LaunchDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl LaunchDigest {
    /// A launch with nothing in it yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { current: [0; DIGEST_LEN] }
    }

    /// A launch that continues after pages whose digest is known (for example a firmware image
    /// measured before).
    #[must_use]
    pub const fn with_seed(seed: [u8; DIGEST_LEN]) -> Self {
        Self { current: seed }
    }

    /// Measures one page. For types whose contents are not measured, `contents` is not looked at.
    pub fn update_page(&mut self, page_type: PageType, gpa: u64, contents: &[u8; PAGE_SIZE]) {
        if page_type.has_contents() {
            self.update_hashed(page_type, gpa, &hash_page(contents));
        } else {
            self.update_without_contents(page_type, gpa);
        }
    }

    /// Measures one page whose contents were hashed before by [`hash_page`].
    pub fn update_hashed(&mut self, page_type: PageType, gpa: u64, page_hash: &PageHash) {
        let contents = if page_type.has_contents() { *page_hash } else { [0; DIGEST_LEN] };
        self.extend(page_type, gpa, &contents);
    }

    /// Measures a region of [`PageType::Normal`] pages, ascending.
    ///
    /// # Errors
    /// When address or length are not whole pages or the region leaves the address space.
    pub fn update_normal_region(&mut self, gpa: u64, contents: &[u8]) -> Result<(), MeasureError> {
        let len = contents.len() as u64;
        check_region(gpa, len)?;
        let (pages, _) = contents.as_chunks::<PAGE_SIZE>();
        for (address, page) in page_addresses(gpa, len).zip(pages) {
            self.update_page(PageType::Normal, address, page);
        }
        Ok(())
    }

    /// Measures `len` bytes of [`PageType::Zero`] pages from `gpa` on.
    ///
    /// # Errors
    /// As [`Self::update_normal_region`].
    pub fn update_zero_pages(&mut self, gpa: u64, len: u64) -> Result<(), MeasureError> {
        self.update_region_without_contents(PageType::Zero, gpa, len)
    }

    /// Measures `len` bytes of [`PageType::Unmeasured`] pages from `gpa` on.
    ///
    /// # Errors
    /// As [`Self::update_normal_region`].
    pub fn update_unmeasured_pages(&mut self, gpa: u64, len: u64) -> Result<(), MeasureError> {
        self.update_region_without_contents(PageType::Unmeasured, gpa, len)
    }

    /// Measures the secrets page.
    pub fn update_secrets_page(&mut self, gpa: u64) {
        self.update_without_contents(PageType::Secrets, gpa);
    }

    /// Measures the CPUID page.
    pub fn update_cpuid_page(&mut self, gpa: u64) {
        self.update_without_contents(PageType::Cpuid, gpa);
    }

    /// Measures the VMSA of one vCPU; call in vCPU order, after all other pages.
    pub fn update_vmsa_page(&mut self, vmsa: &[u8; PAGE_SIZE]) {
        self.update_page(PageType::Vmsa, VMSA_GPA, vmsa);
    }

    /// The launch digest, as it stands in `MEASUREMENT` of a report.
    #[must_use]
    pub const fn finish(self) -> [u8; DIGEST_LEN] {
        self.current
    }

    fn update_region_without_contents(
        &mut self,
        page_type: PageType,
        gpa: u64,
        len: u64,
    ) -> Result<(), MeasureError> {
        check_region(gpa, len)?;
        for address in page_addresses(gpa, len) {
            self.update_without_contents(page_type, address);
        }
        Ok(())
    }

    fn update_without_contents(&mut self, page_type: PageType, gpa: u64) {
        self.extend(page_type, gpa, &[0; DIGEST_LEN]);
    }

    /// Builds `PAGE_INFO` and folds it into the digest.
    fn extend(&mut self, page_type: PageType, gpa: u64, contents: &[u8; DIGEST_LEN]) {
        let mut info = [0u8; PAGE_INFO_LEN];
        info[..0x30].copy_from_slice(&self.current);
        info[0x30..0x60].copy_from_slice(contents);
        info[0x60..0x62].copy_from_slice(&(PAGE_INFO_LEN as u16).to_le_bytes());
        info[0x62] = page_type as u8;
        // 0x63 IMI, 0x64..0x67 VMPL permissions, 0x67 reserved: zero under KVM.
        info[0x68..0x70].copy_from_slice(&gpa.to_le_bytes());
        self.current = sha384(&info);
    }
}

fn page_addresses(gpa: u64, len: u64) -> impl Iterator<Item = u64> {
    (0..len / PAGE_SIZE as u64).map(move |page| gpa + page * PAGE_SIZE as u64)
}

fn check_region(gpa: u64, len: u64) -> Result<(), MeasureError> {
    const PAGE: u64 = PAGE_SIZE as u64;
    if !gpa.is_multiple_of(PAGE) {
        return Err(MeasureError::UnalignedAddress { gpa });
    }
    if !len.is_multiple_of(PAGE) {
        return Err(MeasureError::UnalignedLength { gpa, len });
    }
    if gpa.checked_add(len).is_none() {
        return Err(MeasureError::AddressOverflow { gpa, len });
    }
    Ok(())
}

fn sha384(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    let mut out = [0; DIGEST_LEN];
    out.copy_from_slice(digest(&SHA384, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_ahead_gives_the_same_digest() {
        let page = [7u8; PAGE_SIZE];
        let (mut one, mut two) = (LaunchDigest::new(), LaunchDigest::new());
        one.update_page(PageType::Normal, 0x2000, &page);
        two.update_hashed(PageType::Normal, 0x2000, &hash_page(&page));
        assert_eq!(one, two);
    }

    #[test]
    fn every_input_matters() {
        let base = |page_type, gpa, byte| {
            let mut digest = LaunchDigest::new();
            digest.update_page(page_type, gpa, &[byte; PAGE_SIZE]);
            digest.finish()
        };
        let reference = base(PageType::Normal, 0x1000, 1);
        assert_ne!(reference, base(PageType::Vmsa, 0x1000, 1));
        assert_ne!(reference, base(PageType::Normal, 0x2000, 1));
        assert_ne!(reference, base(PageType::Normal, 0x1000, 2));
        // Contents of a page that the firmware fills in do not enter the digest.
        assert_eq!(base(PageType::Secrets, 0x1000, 1), base(PageType::Secrets, 0x1000, 2));
    }

    #[test]
    fn regions_are_sequences_of_pages() {
        let bytes: Vec<u8> = (0..3 * PAGE_SIZE).map(|i| (i / PAGE_SIZE) as u8).collect();
        let (mut region, mut pages) = (LaunchDigest::new(), LaunchDigest::new());
        region.update_normal_region(0x10000, &bytes).expect("aligned");
        region.update_zero_pages(0x20000, 0x2000).expect("aligned");
        for page in 0..3u8 {
            pages.update_page(PageType::Normal, 0x10000 + u64::from(page) * 0x1000, &[page; PAGE_SIZE]);
        }
        pages.update_page(PageType::Zero, 0x20000, &[0; PAGE_SIZE]);
        pages.update_page(PageType::Zero, 0x21000, &[0; PAGE_SIZE]);
        assert_eq!(region, pages);
    }

    #[test]
    fn refuses_what_is_not_whole_pages() {
        let mut digest = LaunchDigest::new();
        assert_eq!(
            digest.update_zero_pages(0x1001, 0x1000),
            Err(MeasureError::UnalignedAddress { gpa: 0x1001 })
        );
        assert_eq!(
            digest.update_normal_region(0x1000, &[0; 100]),
            Err(MeasureError::UnalignedLength { gpa: 0x1000, len: 100 })
        );
        assert_eq!(
            digest.update_unmeasured_pages(u64::MAX - 0xFFF, 0x1000),
            Err(MeasureError::AddressOverflow { gpa: u64::MAX - 0xFFF, len: 0x1000 })
        );
        assert_eq!(digest, LaunchDigest::new());
    }
}
