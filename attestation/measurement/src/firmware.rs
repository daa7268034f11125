//! Firmware images of the OVMF family: the GUID table at their end and the SEV and TDX metadata that it
//! leads to.
//!
//! Sources: edk2 `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm` (GUID table, read backwards from 32 bytes
//! before the end), `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`, TDX Virtual Firmware Design Guide
//! chapter 11 (TDVF metadata).
//!
//! Images are untrusted input: every offset and size is checked before use, and limits keep a made-up
//! table from costing more than the image itself.

use crate::PAGE_SIZE;
use crate::bytes::{array, u16_at, u32_at, u64_at};
use crate::guid::Guid;

const FOUR_GIB: u64 = 1 << 32;
/// Largest image that is read: real ones have 1 to 8 MiB.
pub const MAX_IMAGE: usize = 64 << 20;
/// Most sections of a metadata table.
const MAX_SECTIONS: u32 = 64;
/// Most memory that one section may span.
const MAX_SECTION: u64 = 64 << 20;

const FOOTER: Guid = Guid::new("96b582de-1fb2-45f7-baea-a366c55a082d");
const HASH_BLOCK: Guid = Guid::new("7255371f-3a3b-4b04-927b-1da6efa8d454");
const SEV_ES_RESET: Guid = Guid::new("00f771de-1a7e-4fcb-890e-68c77e2fb44e");
const SEV_METADATA: Guid = Guid::new("dc886566-984a-4798-a75e-5585a7bf67cc");
const TDX_METADATA: Guid = Guid::new("e47a6535-984a-4798-865e-4685a7bf8ec2");

/// A firmware image that cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirmwareError {
    /// Images consist of whole pages.
    #[error("firmware image has {0} bytes: expected whole pages of 4096 bytes, at most 64 MiB")]
    Size(usize),
    /// No table of GUIDs at its end.
    #[error("firmware image has no table of GUIDs 32 bytes before its end: it is not of the OVMF family")]
    NoTable,
    /// The table of GUIDs does not hold together.
    #[error("firmware image's table of GUIDs is broken {0} bytes before the end of the image")]
    BrokenTable(usize),
    /// What is needed is not in the table.
    #[error("firmware image has no {0}: build it with that support")]
    Missing(&'static str),
    /// A metadata table with a wrong signature, version or length.
    #[error("{table} metadata at offset {at:#x} of the firmware image is broken: {what}")]
    Metadata {
        /// `SEV` or `TDVF`.
        table: &'static str,
        /// Where it starts.
        at: usize,
        /// What does not hold.
        what: &'static str,
    },
    /// A section that cannot be part of a launch.
    #[error("{table} section {index} at {gpa:#x} of {size:#x} bytes: {what}")]
    Section {
        /// `SEV` or `TDVF`.
        table: &'static str,
        /// Its number in the table.
        index: u32,
        /// Guest address.
        gpa: u64,
        /// Bytes in memory.
        size: u64,
        /// What does not hold.
        what: &'static str,
    },
    /// A kernel is given, but the firmware does not check its hash.
    #[error(
        "firmware image has no section for kernel hashes, so it would boot any kernel: use OVMF's AmdSev build"
    )]
    NoKernelHashes,
    /// The block for the hashes table does not hold it.
    #[error("firmware's hash block at {gpa:#x} of {size} bytes has no room for the hashes table")]
    HashBlock {
        /// Guest address.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// A launch without vCPUs, or with more than KVM takes.
    #[error("{0} vCPUs: give 1 to 1024")]
    Vcpus(u32),
    /// Regions that are not whole pages.
    #[error(transparent)]
    Measure(#[from] crate::MeasureError),
}

/// What a section of the SEV metadata is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SevSectionKind {
    /// Working memory of the firmware, validated before it runs.
    Memory,
    /// Secrets page.
    Secrets,
    /// CPUID page.
    Cpuid,
    /// Calling area of an SVSM.
    SvsmCaa,
    /// Page with the hashes table.
    KernelHashes,
}

/// A section of the SEV metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SevSection {
    /// What it is for.
    pub kind: SevSectionKind,
    /// Guest address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
}

/// What a section of the TDVF metadata is for (design guide, table 11-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdvfSectionKind {
    /// Boot firmware volume.
    Bfv,
    /// Configuration firmware volume.
    Cfv,
    /// Hand-off block that the VMM writes.
    TdHob,
    /// Memory that the firmware uses and gives back.
    TempMem,
}

/// A section of the TDVF metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdvfSection<'a> {
    /// What it is for.
    pub kind: TdvfSectionKind,
    /// Guest address.
    pub gpa: u64,
    /// Bytes in memory.
    pub size: u64,
    /// Bytes of the image; the rest of `size` is zero.
    pub data: &'a [u8],
    /// MR.EXTEND: contents are measured.
    pub extend: bool,
    /// PAGE.AUG: not part of the launch, accepted by the guest.
    pub augmented: bool,
}

/// A firmware image that ends at 4 GiB.
#[derive(Clone, Debug)]
pub struct Firmware<'a> {
    image: &'a [u8],
    entries: Vec<(Guid, &'a [u8])>,
}

impl<'a> Firmware<'a> {
    /// Reads the table of GUIDs.
    ///
    /// # Errors
    /// [`FirmwareError`] says what is wrong with the image.
    pub fn parse(image: &'a [u8]) -> Result<Self, FirmwareError> {
        if image.is_empty() || !image.len().is_multiple_of(PAGE_SIZE) || image.len() > MAX_IMAGE {
            return Err(FirmwareError::Size(image.len()));
        }
        // whole pages: there are more than 32 bytes
        let end = image.len() - 32;
        let (footer, data) = entry_before(image, end).ok_or(FirmwareError::NoTable)?;
        if footer != FOOTER {
            return Err(FirmwareError::NoTable);
        }
        // the footer's data is the rest of the table
        let start = end - 18 - data.len();
        let mut at = end - 18;
        let mut entries = Vec::new();
        while at > start {
            let broken = FirmwareError::BrokenTable(image.len() - at);
            let (guid, data) = entry_before(image, at).ok_or_else(|| broken.clone())?;
            at = at.checked_sub(18 + data.len()).filter(|next| *next >= start).ok_or(broken)?;
            entries.push((guid, data));
        }
        Ok(Self { image, entries })
    }

    /// The image.
    #[must_use]
    pub const fn image(&self) -> &'a [u8] {
        self.image
    }

    /// Guest address of its first byte: it ends at 4 GiB.
    #[must_use]
    pub const fn gpa(&self) -> u64 {
        FOUR_GIB - self.image.len() as u64
    }

    fn entry(&self, guid: Guid) -> Option<&'a [u8]> {
        self.entries.iter().find(|(id, _)| *id == guid).map(|(_, data)| *data)
    }

    /// Where the application processors start (SEV-ES reset block).
    ///
    /// # Errors
    /// When the image has none.
    pub fn ap_reset_eip(&self) -> Result<u32, FirmwareError> {
        self.entry(SEV_ES_RESET)
            .and_then(|data| u32_at(data, 0))
            .ok_or(FirmwareError::Missing("SEV-ES reset block"))
    }

    /// Address and size of the block for the hashes table.
    ///
    /// # Errors
    /// When the image has none.
    pub fn hash_block(&self) -> Result<(u64, u64), FirmwareError> {
        self.entry(HASH_BLOCK)
            .and_then(|data| Some((u32_at(data, 0)?.into(), u32_at(data, 4)?.into())))
            .ok_or(FirmwareError::Missing("SEV hash table block"))
    }

    /// Start of a metadata table whose distance from the end the entry `guid` holds.
    fn metadata_at(&self, guid: Guid, table: &'static str) -> Result<usize, FirmwareError> {
        let distance =
            self.entry(guid).and_then(|data| u32_at(data, 0)).ok_or(FirmwareError::Missing(table))?;
        self.image.len().checked_sub(distance as usize).ok_or(FirmwareError::Missing(table))
    }

    /// Sections of the SEV metadata in table order.
    ///
    /// # Errors
    /// When there are none or they are broken.
    pub fn sev_sections(&self) -> Result<Vec<SevSection>, FirmwareError> {
        const TABLE: &str = "SEV";
        let at = self.metadata_at(SEV_METADATA, "SEV metadata")?;
        let broken = |what| FirmwareError::Metadata { table: TABLE, at, what };
        let word = |offset: usize| u32_at(self.image, at.saturating_add(offset));
        let count = header(self.image, at, *b"ASEV", 12).map_err(broken)?;
        if word(4) != Some(16 + 12 * count) {
            return Err(broken("its length does not fit its number of sections"));
        }
        (0..count)
            .map(|index| {
                let entry = 16 + 12 * index as usize;
                let (Some(gpa), Some(size), Some(kind)) = (word(entry), word(entry + 4), word(entry + 8))
                else {
                    return Err(broken("it goes beyond the image"));
                };
                let (gpa, size) = (u64::from(gpa), u64::from(size));
                let refuse = |what| FirmwareError::Section { table: TABLE, index, gpa, size, what };
                let kind = match kind {
                    1 => SevSectionKind::Memory,
                    2 => SevSectionKind::Secrets,
                    3 => SevSectionKind::Cpuid,
                    4 => SevSectionKind::SvsmCaa,
                    0x10 => SevSectionKind::KernelHashes,
                    _ => return Err(refuse("its type is not known")),
                };
                whole_pages(gpa, size).map_err(refuse)?;
                let one_page = matches!(
                    kind,
                    SevSectionKind::Secrets | SevSectionKind::Cpuid | SevSectionKind::KernelHashes
                );
                if one_page && size != PAGE_SIZE as u64 {
                    return Err(refuse("it has to be one page"));
                }
                Ok(SevSection { kind, gpa, size })
            })
            .collect()
    }

    /// Sections of the TDVF metadata in table order.
    ///
    /// # Errors
    /// When there are none or they are broken.
    pub fn tdvf_sections(&self) -> Result<Vec<TdvfSection<'a>>, FirmwareError> {
        const TABLE: &str = "TDVF";
        let at = self.metadata_at(TDX_METADATA, "TDVF metadata")?;
        let broken = |what| FirmwareError::Metadata { table: TABLE, at, what };
        let count = header(self.image, at, *b"TDVF", 12).map_err(broken)?;
        if u32_at(self.image, at.saturating_add(4)) != Some(16 + 32 * count) {
            return Err(broken("its length does not fit its number of sections"));
        }
        (0..count)
            .map(|index| {
                let entry = at + 16 + 32 * index as usize;
                self.tdvf_section(index, entry).ok_or_else(|| broken("it goes beyond the image"))?
            })
            .collect()
    }

    fn tdvf_section(&self, index: u32, at: usize) -> Option<Result<TdvfSection<'a>, FirmwareError>> {
        let (offset, raw) = (u32_at(self.image, at)? as usize, u32_at(self.image, at + 4)? as usize);
        let (gpa, size) = (u64_at(self.image, at + 8)?, u64_at(self.image, at + 16)?);
        let (kind, attributes) = (u32_at(self.image, at + 24)?, u32_at(self.image, at + 28)?);
        let refuse = |what| Some(Err(FirmwareError::Section { table: "TDVF", index, gpa, size, what }));
        let kind = match kind {
            0 => TdvfSectionKind::Bfv,
            1 => TdvfSectionKind::Cfv,
            2 => TdvfSectionKind::TdHob,
            3 => TdvfSectionKind::TempMem,
            _ => return refuse("its type is not known"),
        };
        if let Err(what) = whole_pages(gpa, size) {
            return refuse(what);
        }
        if attributes & !3 != 0 {
            return refuse("its attributes are not known");
        }
        let has_data = matches!(kind, TdvfSectionKind::Bfv | TdvfSectionKind::Cfv);
        if has_data != (raw != 0) {
            return refuse(if has_data { "it has no data" } else { "it must not have data" });
        }
        if raw as u64 > size {
            return refuse("its data is larger than its memory");
        }
        let Some(data) = offset.checked_add(raw).and_then(|end| self.image.get(offset..end)) else {
            return refuse("its data goes beyond the image");
        };
        let data = if has_data { data } else { &[] };
        Some(Ok(TdvfSection {
            kind,
            gpa,
            size,
            data,
            extend: attributes & 1 != 0,
            augmented: attributes & 2 != 0,
        }))
    }
}

/// The entry that ends at `end`: its GUID and its data.
fn entry_before(image: &[u8], end: usize) -> Option<(Guid, &[u8])> {
    let guid = Guid::from_bytes(array(image, end.checked_sub(16)?)?);
    let header = end.checked_sub(18)?;
    let len = usize::from(u16_at(image, header)?);
    Some((guid, image.get(header.checked_sub(len.checked_sub(18)?)?..header)?))
}

/// Checks signature and version of a metadata table; its number of sections.
fn header(image: &[u8], at: usize, signature: [u8; 4], count_at: usize) -> Result<u32, &'static str> {
    if array(image, at) != Some(signature) {
        return Err("its signature is missing");
    }
    let word = |offset: usize| u32_at(image, at.saturating_add(offset)).ok_or("it goes beyond the image");
    if word(8)? != 1 {
        return Err("its version is not 1");
    }
    let count = word(count_at)?;
    if count == 0 || count > MAX_SECTIONS {
        return Err("it has no sections, or more than 64");
    }
    Ok(count)
}

fn whole_pages(gpa: u64, size: u64) -> Result<(), &'static str> {
    const PAGE: u64 = PAGE_SIZE as u64;
    if size == 0 || !gpa.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
        return Err("it is not whole pages");
    }
    if size > MAX_SECTION || gpa.checked_add(size).is_none() {
        return Err("it is larger than 64 MiB or leaves the address space");
    }
    Ok(())
}
