//! TDX: the build-time measurement (MRTD) and what goes into it.
//!
//! Source: TDX Module Base Architecture Specification, "MRTD: Build-Time Measurement Register": SHA-384 over a
//! stream of 128-byte blocks. TDH.MEM.PAGE.ADD contributes `MEM.PAGE.ADD` and the page's address;
//! TDH.MR.EXTEND, for each 256 bytes of a page, `MR.EXTEND`, the address, and the 256 bytes.
//!
//! Order: mainline KVM (6.16) adds a page and measures it at once; older trees added all pages of a region
//! first. The same firmware has a different MRTD under each ([`PassOrder`]).

use std::borrow::Cow;

use aws_lc_rs::digest::{Context, SHA384};

use crate::bytes::{page, page_up};
use crate::explain::{Explanation, Step, StepKind, Tee};
use crate::firmware::{Firmware, FirmwareError, TdvfSectionKind};
use crate::{DIGEST_LEN, MeasureError, PAGE_SIZE, hash_page};

/// Bytes that one TDH.MR.EXTEND measures.
const CHUNK: usize = 256;

/// In which order a hypervisor adds and measures the pages of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassOrder {
    /// Each page is measured as it is added: mainline KVM.
    #[default]
    Single,
    /// All pages of a region are added, then all are measured: trees before the mainline.
    Two,
}

/// The stream that MRTD is the hash of, while it grows.
#[derive(Clone)]
pub struct MrtdStream(Context);

impl Default for MrtdStream {
    fn default() -> Self {
        Self::new()
    }
}

impl MrtdStream {
    /// TDH.MNG.INIT: nothing was added yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Context::new(&SHA384))
    }

    /// TDH.MEM.PAGE.ADD of the page at `gpa`.
    pub fn page_add(&mut self, gpa: u64) {
        self.0.update(&block(b"MEM.PAGE.ADD", gpa));
    }

    /// TDH.MR.EXTEND of one chunk of 256 bytes at `gpa`.
    pub fn extend(&mut self, gpa: u64, chunk: &[u8; CHUNK]) {
        self.0.update(&block(b"MR.EXTEND", gpa));
        self.0.update(chunk);
    }

    /// TDH.MR.EXTEND of all chunks of a page.
    pub fn page_extend(&mut self, gpa: u64, page: &[u8; PAGE_SIZE]) {
        let (chunks, _) = page.as_chunks::<CHUNK>();
        let mut at = gpa;
        for chunk in chunks {
            self.extend(at, chunk);
            // a page does not end the address space before its last chunk
            at = at.wrapping_add(CHUNK as u64);
        }
    }

    /// TDH.MR.FINALIZE: the MRTD.
    #[must_use]
    pub fn finish(self) -> [u8; DIGEST_LEN] {
        let mut out = [0; DIGEST_LEN];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

/// A block: what is done and to which address.
fn block(operation: &[u8], gpa: u64) -> [u8; 128] {
    let mut block = [0; 128];
    block[..operation.len()].copy_from_slice(operation);
    block[16..24].copy_from_slice(&gpa.to_le_bytes());
    block
}

/// Contiguous pages of a TD's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdRegion<'a> {
    /// What it is, for people.
    pub name: Cow<'static, str>,
    /// Guest address of its first page.
    pub gpa: u64,
    /// Bytes in memory, whole pages.
    pub len: u64,
    /// Contents; zeros follow up to `len`.
    pub bytes: Cow<'a, [u8]>,
    /// Whether the contents are measured; the address always is.
    pub measured: bool,
}

impl TdRegion<'_> {
    /// Its pages with their addresses.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Cow<'_, [u8; PAGE_SIZE]>)> {
        (0..self.len / PAGE_SIZE as u64)
            .map(|index| (self.gpa + index * PAGE_SIZE as u64, page(&self.bytes, index)))
    }
}

/// Everything that a TD starts from, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TdLaunch<'a> {
    regions: Vec<TdRegion<'a>>,
}

impl<'a> TdLaunch<'a> {
    /// A launch of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds pages; `bytes` is filled up with zeros to `len`.
    ///
    /// # Errors
    /// When the region is not whole pages or leaves the address space, or the bytes do not fit.
    pub fn region(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        gpa: u64,
        len: u64,
        bytes: impl Into<Cow<'a, [u8]>>,
        measured: bool,
    ) -> Result<(), MeasureError> {
        let bytes = bytes.into();
        crate::check_region(gpa, len)?;
        if bytes.len() as u64 > len {
            return Err(MeasureError::UnalignedLength { gpa, len: bytes.len() as u64 });
        }
        self.regions.push(TdRegion { name: name.into(), gpa, len, bytes, measured });
        Ok(())
    }

    /// Adds pages with these contents, measured, filled up with zeros to whole pages.
    ///
    /// # Errors
    /// As [`Self::region`].
    pub fn measured(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        gpa: u64,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), MeasureError> {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        let len = page_up(len).ok_or(MeasureError::AddressOverflow { gpa, len })?;
        self.region(name, gpa, len, bytes, true)
    }

    /// The regions that a TDVF image asks for. The hand-off block is added without contents: it is written
    /// by the VMM and not measured.
    ///
    /// # Errors
    /// When the image's metadata are broken.
    pub fn of_firmware(firmware: &Firmware<'a>) -> Result<Self, FirmwareError> {
        let mut launch = Self::new();
        for section in firmware.tdvf_sections()? {
            if section.augmented {
                continue;
            }
            let name = match section.kind {
                TdvfSectionKind::Bfv => "boot firmware volume",
                TdvfSectionKind::Cfv => "configuration firmware volume",
                TdvfSectionKind::TdHob => "td hob",
                TdvfSectionKind::TempMem => "temporary memory",
            };
            launch.region(name, section.gpa, section.size, section.data, section.extend)?;
        }
        Ok(launch)
    }

    /// All regions in order.
    #[must_use]
    pub fn regions(&self) -> &[TdRegion<'a>] {
        &self.regions
    }

    /// The MRTD.
    #[must_use]
    pub fn mrtd(&self, order: PassOrder) -> [u8; DIGEST_LEN] {
        let mut stream = MrtdStream::new();
        for region in &self.regions {
            for (gpa, page) in region.pages() {
                stream.page_add(gpa);
                if region.measured && order == PassOrder::Single {
                    stream.page_extend(gpa, &page);
                }
            }
            if region.measured && order == PassOrder::Two {
                region.pages().for_each(|(gpa, page)| stream.page_extend(gpa, &page));
            }
        }
        stream.finish()
    }

    /// The MRTD with every page's share in it; `contents` adds the measured bytes themselves.
    #[must_use]
    pub fn explain(&self, order: PassOrder, contents: bool) -> Explanation {
        let mut stream = MrtdStream::new();
        let mut steps = Vec::new();
        let mut record = |region: &TdRegion<'_>, gpa, page: &[u8; PAGE_SIZE], kind| {
            if kind != StepKind::Extend {
                stream.page_add(gpa);
            }
            let measured = kind != StepKind::PageAdd;
            if measured {
                stream.page_extend(gpa, page);
            }
            steps.push(Step {
                section: region.name.clone().into_owned(),
                gpa,
                kind,
                content_sha384: measured.then(|| hash_page(page)),
                digest_after: stream.clone().finish(),
                contents: (measured && contents).then(|| page.to_vec()),
            });
        };
        for region in &self.regions {
            let first = if region.measured && order == PassOrder::Single {
                StepKind::PageAddExtend
            } else {
                StepKind::PageAdd
            };
            region.pages().for_each(|(gpa, page)| record(region, gpa, &page, first));
            if region.measured && order == PassOrder::Two {
                region.pages().for_each(|(gpa, page)| record(region, gpa, &page, StepKind::Extend));
            }
        }
        Explanation { tee: Tee::Tdx, seed: None, digest: stream.finish(), steps }
    }
}
