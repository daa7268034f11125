//! ELF `vmlinux`: System V ABI, chapters 4 and 5, and its x86-64 supplement. Only the ELF header and the
//! `PT_LOAD` program headers are read; sections and notes are ignored.

use super::{Fields, Kernel, MAX_SEGMENTS, Segment, Termination, require};
use crate::platform::layout::PAGE_SIZE;

const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER_BYTES: u16 = 56;
const PT_LOAD: u32 = 1;

pub(super) fn parse(file: &[u8]) -> Result<Kernel, Termination> {
    let header = Fields(file);
    require(header.array(0) == Ok(MAGIC), Termination::KernelFormat)?;
    let right = header.u8(4)? == CLASS_64
        && header.u8(5)? == LITTLE_ENDIAN
        && header.u16(16)? == TYPE_EXEC
        && header.u16(18)? == MACHINE_X86_64
        && header.u16(54)? == PROGRAM_HEADER_BYTES;
    require(right, Termination::KernelHeader)?;
    let (table, count) = (header.u64(32)?, header.u16(56)?);
    require((1..=MAX_SEGMENTS).contains(&usize::from(count)), Termination::KernelHeader)?;

    let mut found = [Segment::default(); MAX_SEGMENTS];
    let mut loaded = 0;
    for index in 0..u64::from(count) {
        let offset = index * u64::from(PROGRAM_HEADER_BYTES);
        let offset = table.checked_add(offset).ok_or(Termination::KernelHeader)?;
        if let (Some(segment), Some(place)) = (load_segment(header, offset)?, found.get_mut(loaded)) {
            *place = segment;
            loaded += 1;
        }
    }
    let found = found.get_mut(..loaded).unwrap_or_default();
    sort_by_address(found);

    let mut kernel = Kernel::empty();
    kernel.entry = header.u64(24)?;
    for segment in found.iter() {
        kernel.add(*segment, file)?;
    }
    let inside = |segment: &Segment| {
        kernel.entry >= segment.address && kernel.entry - segment.address < segment.content
    };
    require(kernel.segments().iter().any(inside), Termination::KernelHeader)?;
    Ok(kernel)
}

fn load_segment(file: Fields<'_>, offset: u64) -> Result<Option<Segment>, Termination> {
    let bytes: [u8; PROGRAM_HEADER_BYTES as usize] = file.array(offset)?;
    let fields = Fields(&bytes);
    let segment = Segment {
        offset: fields.u64(8)?,
        address: fields.u64(24)?,
        content: fields.u64(32)?,
        memory: fields.u64(40)?,
    };
    if fields.u32(0)? != PT_LOAD || segment.memory == 0 {
        return Ok(None);
    }
    require(segment.address.is_multiple_of(PAGE_SIZE), Termination::KernelSegments)?;
    Ok(Some(segment))
}

/// By insertion: five entries, mostly in order, are not worth the code of a general sort.
fn sort_by_address(segments: &mut [Segment]) {
    for end in 1..segments.len() {
        for at in (1..=end).rev() {
            match segments.get_mut(at - 1..=at) {
                Some([one, two]) if one.address > two.address => core::mem::swap(one, two),
                _ => break,
            }
        }
    }
}
