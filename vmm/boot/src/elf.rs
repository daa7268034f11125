//! ELF `vmlinux`: System V ABI, chapters 4 and 5, and its x86-64 supplement. Only the ELF header and
//! the `PT_LOAD` program headers are read; sections and notes are ignored.

use crate::kernel::{Fields, Kernel, KernelError, KernelFormat, check_range};
use crate::layout::{self, CMDLINE_MAX, MMIO_HOLE, PAGE_SIZE};

pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER_BYTES: u16 = 56;
const PT_LOAD: u32 = 1;
/// Linux has five program headers.
const MAX_PROGRAM_HEADERS: u16 = 32;

pub(crate) fn parse(file: &[u8]) -> Result<Kernel<'_>, KernelError> {
    let header = Fields { file, what: "ELF header" };
    let expect = |field, value: u64, wanted: u64| {
        if value == wanted { Ok(()) } else { Err(KernelError::BadField { field, value }) }
    };
    expect("EI_CLASS", header.u8(4)?.into(), CLASS_64.into())?;
    expect("EI_DATA", header.u8(5)?.into(), LITTLE_ENDIAN.into())?;
    expect("e_type", header.u16(16)?.into(), TYPE_EXEC.into())?;
    expect("e_machine", header.u16(18)?.into(), MACHINE_X86_64.into())?;
    expect("e_phentsize", header.u16(54)?.into(), PROGRAM_HEADER_BYTES.into())?;
    let entry = header.u64(24)?;
    let table = header.u64(32)?;
    let count = header.u16(56)?;
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(KernelError::BadField { field: "e_phnum", value: count.into() });
    }

    let mut loaded = Vec::new();
    for index in 0..count {
        let offset = table
            .checked_add(u64::from(index) * u64::from(PROGRAM_HEADER_BYTES))
            .ok_or(KernelError::Truncated { what: "program headers" })?;
        if let Some(segment) = load_segment(file, offset)? {
            loaded.push(segment);
        }
    }
    assemble(loaded, entry)
}

/// A part of the kernel in memory.
struct Loaded<'a> {
    address: u64,
    content: &'a [u8],
    end: u64,
}

fn load_segment(file: &[u8], offset: u64) -> Result<Option<Loaded<'_>>, KernelError> {
    let fields = Fields { file, what: "program headers" };
    if fields.u32(offset)? != PT_LOAD {
        // reads to the end of the entry, so that a table cut off in its last entry is refused
        fields.u64(offset.saturating_add(48))?;
        return Ok(None);
    }
    let field = |at: u64| fields.u64(offset.saturating_add(at));
    let (file_offset, address) = (field(8)?, field(24)?);
    let (file_bytes, memory_bytes) = (field(32)?, field(40)?);
    if memory_bytes == 0 {
        return Ok(None);
    }
    if file_bytes > memory_bytes {
        return Err(KernelError::BadField { field: "p_filesz", value: file_bytes });
    }
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(KernelError::Unaligned { address });
    }
    let end = check_range(address, memory_bytes)?;
    let content = Fields { file, what: "segments" }.bytes(file_offset, file_bytes)?;
    Ok(Some(Loaded { address, content, end }))
}

fn assemble(mut loaded: Vec<Loaded<'_>>, entry: u64) -> Result<Kernel<'_>, KernelError> {
    loaded.sort_by_key(|segment| segment.address);
    let mut end = 0;
    for segment in &loaded {
        if segment.address < end {
            return Err(KernelError::Overlap { address: segment.address });
        }
        // below IDENTITY_MAP_END by check_range, so this cannot fail
        end = layout::page_up(segment.end).unwrap_or(u64::MAX);
    }
    let inside = |segment: &Loaded<'_>| {
        entry >= segment.address && entry - segment.address < segment.content.len() as u64
    };
    if !loaded.iter().any(inside) {
        return Err(KernelError::EntryOutside(entry));
    }
    Ok(Kernel {
        format: KernelFormat::Vmlinux,
        segments: loaded
            .iter()
            .filter(|segment| !segment.content.is_empty())
            .map(|segment| (segment.address, segment.content))
            .collect(),
        entry,
        end,
        setup_header: None,
        cmdline_max: CMDLINE_MAX,
        initramfs_max: MMIO_HOLE - 1,
    })
}
