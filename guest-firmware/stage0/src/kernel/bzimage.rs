//! `bzImage`: kernel documentation, `arch/x86/boot.rst`. Its protected-mode part goes where the kernel
//! prefers to be, and is entered at its 64-bit entry.

use super::{Fields, Kernel, SETUP_HEADER_MAX, Segment, Termination, require};
use crate::platform::layout::{COMMAND_LINE_MAX, MMIO_HOLE, PAGE_SIZE};

const HEADER_START: u64 = 0x1f1;
const SECTOR: u64 = 512;
const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = 0x5372_6448;
/// Protocol 2.12 brought `xloadflags`.
const LEAST_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

pub(super) fn parse(file: &[u8]) -> Result<Kernel, Termination> {
    let header = Fields(file);
    require(header.u16(0x1fe) == Ok(BOOT_FLAG) && header.u32(0x202) == Ok(HDRS), Termination::KernelFormat)?;
    require(header.u16(0x206)? >= LEAST_VERSION, Termination::KernelHeader)?;
    require(header.u8(0x211)? & LOADED_HIGH != 0, Termination::KernelHeader)?;
    require(header.u16(0x236)? & KERNEL_64 != 0, Termination::KernelHeader)?;

    let mut kernel = Kernel::empty();
    copy_setup_header(&mut kernel, header)?;
    let address = header.u64(0x258)?;
    let init_size = u64::from(header.u32(0x260)?);
    require(address.is_multiple_of(PAGE_SIZE), Termination::KernelSegments)?;
    let (offset, content) = protected_mode_part(header)?;
    require(content > ENTRY_64, Termination::KernelHeader)?;
    kernel.add(Segment { offset, address, content, memory: content }, file)?;
    // the rest of `init_size` is the kernel's own to fill
    kernel.end = address.checked_add(init_size).ok_or(Termination::KernelSegments)?.max(kernel.end);
    require(kernel.end <= super::KERNEL_END, Termination::KernelSegments)?;
    kernel.entry = address + ENTRY_64;
    kernel.command_line_max = COMMAND_LINE_MAX.min(header.u32(0x238)?.into());
    kernel.initramfs_end = (u64::from(header.u32(0x22c)?) + 1).min(MMIO_HOLE);
    Ok(kernel)
}

fn copy_setup_header(kernel: &mut Kernel, header: Fields<'_>) -> Result<(), Termination> {
    let end = 0x202 + u64::from(header.u8(0x201)?);
    // must reach beyond init_size
    let length = end.checked_sub(HEADER_START).filter(|_| end >= 0x264).ok_or(Termination::KernelHeader)?;
    let length = usize::try_from(length).map_err(|_| Termination::KernelHeader)?;
    require(length <= SETUP_HEADER_MAX, Termination::KernelHeader)?;
    let from = header.0.get(HEADER_START as usize..).and_then(|rest| rest.get(..length));
    let to = kernel.setup_header.get_mut(..length);
    match (to, from) {
        (Some(to), Some(from)) => to.copy_from_slice(from),
        _ => return Err(Termination::KernelHeader),
    }
    kernel.setup_header_length = length;
    Ok(())
}

/// Offset and length.
fn protected_mode_part(header: Fields<'_>) -> Result<(u64, u64), Termination> {
    let setup_sectors = match header.u8(0x1f1)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (setup_sectors + 1) * SECTOR;
    let available = (header.0.len() as u64).checked_sub(offset).ok_or(Termination::KernelHeader)?;
    // syssize counts whole paragraphs: the last may be cut short at the end of the file
    let stated = u64::from(header.u32(0x1f4)?) * 16;
    require(stated <= available + 15, Termination::KernelHeader)?;
    Ok((offset, available))
}
