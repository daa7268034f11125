//! `bzImage`: kernel documentation, `arch/x86/boot.rst`. The real-mode part is not used but for the
//! setup header; the rest is loaded where the kernel prefers to be and entered at its 64-bit entry.

use crate::kernel::{Fields, Kernel, KernelError, KernelFormat, check_range};
use crate::layout::{CMDLINE_MAX, MMIO_HOLE, PAGE_SIZE, page_up};

const HEADER_START: u64 = 0x1f1;
/// The boot parameters have room for the header up to here.
const HEADER_LIMIT: u64 = 0x290;
const SECTOR: u64 = 512;
const HDRS: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Protocol 2.12 brought `xloadflags`.
const LEAST_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

pub(crate) fn looks_like(file: &[u8]) -> bool {
    let header = Fields { file, what: "setup header" };
    header.u16(0x1fe) == Ok(BOOT_FLAG) && header.u32(0x202) == Ok(HDRS)
}

pub(crate) fn parse(file: &[u8]) -> Result<Kernel<'_>, KernelError> {
    let header = Fields { file, what: "setup header" };
    let bad = |field, value| KernelError::BadField { field, value };

    let version = header.u16(0x206)?;
    if version < LEAST_VERSION {
        return Err(bad("version", version.into()));
    }
    let loadflags = header.u8(0x211)?;
    if loadflags & LOADED_HIGH == 0 {
        return Err(bad("loadflags", loadflags.into()));
    }
    if header.u16(0x236)? & KERNEL_64 == 0 {
        return Err(KernelError::No64BitEntry);
    }
    let header_end = 0x202 + u64::from(header.u8(0x201)?);
    // must reach beyond init_size, which is read below
    if !(0x264..=HEADER_LIMIT).contains(&header_end) {
        return Err(bad("header length", header_end));
    }
    let setup_header = header.bytes(HEADER_START, header_end - HEADER_START)?;

    let address = header.u64(0x258)?;
    let init_size = u64::from(header.u32(0x260)?);
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(KernelError::Unaligned { address });
    }
    let content = protected_mode_part(file, &header)?;
    let in_memory = init_size.max(content.len() as u64);
    let end = check_range(address, in_memory)?;
    let entry = address + ENTRY_64;
    if content.len() as u64 <= ENTRY_64 {
        return Err(KernelError::EntryOutside(entry));
    }
    let cmdline_size = u64::from(header.u32(0x238)?);
    Ok(Kernel {
        format: KernelFormat::BzImage,
        segments: vec![(address, content)],
        entry,
        end: page_up(end).unwrap_or(u64::MAX),
        setup_header: Some(setup_header),
        // the header's number is without the final zero
        cmdline_max: CMDLINE_MAX.min(usize::try_from(cmdline_size + 1).unwrap_or(CMDLINE_MAX)),
        initramfs_max: u64::from(header.u32(0x22c)?).min(MMIO_HOLE - 1),
    })
}

fn protected_mode_part<'a>(file: &'a [u8], header: &Fields<'a>) -> Result<&'a [u8], KernelError> {
    let setup_sectors = match header.u8(0x1f1)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (setup_sectors + 1) * SECTOR;
    let bytes = u64::from(header.u32(0x1f4)?) * 16;
    let body = Fields { file, what: "protected-mode part" };
    // syssize counts whole paragraphs: the last may be cut short at the end of the file
    let available =
        (file.len() as u64).checked_sub(offset).ok_or(KernelError::Truncated { what: body.what })?;
    if bytes > available + 15 {
        return Err(KernelError::Truncated { what: body.what });
    }
    body.bytes(offset, available)
}
