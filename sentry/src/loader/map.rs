//! Puts a prepared program into an empty address space (`load_elf_binary`).

use std::sync::Arc;

use super::elf::{Image, Segment};
use super::stack::{self, Contents};
use super::{Prepared, Program, Vdso, host};
use crate::error::Errno;
use crate::mm::{
    AddressSpace, Limits, MapRequest, MappedFile, PAGE, Protection, Source, page_down, page_up, random_pages,
};
use crate::platform::{Regs, Thread};

/// Room above the program within which the heap begins (`arch_randomize_brk`).
const HEAP_ROOM: u64 = 32 << 20;
/// `eflags` of a new program: the bit that is always set, and interrupts.
const EFLAGS: u64 = 0x202;

/// Who runs the program, for the auxiliary vector.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective group.
    pub egid: u32,
    /// `AT_SECURE`: it may do more than who started it.
    pub secure: bool,
    /// The vDSO that it gets.
    pub vdso: Option<Vdso>,
}

impl Prepared {
    /// Maps the program with its interpreter and its stack, and sets the registers of `thread`, whose address space `space` is. All of it
    /// is empty before.
    ///
    /// # Errors
    /// ENOMEM, EINVAL, EFAULT: the address space is of no use then.
    pub fn load(
        &self,
        space: &AddressSpace,
        thread: &mut dyn Thread,
        limits: &Limits,
        identity: &Identity,
    ) -> Result<(), Errno> {
        thread.gather(true)?;
        let top = space.map_stack(thread, self.image.executable_stack, limits)?;
        let bias = place_program(space, &self.image)?;
        let mut rests = map_image(space, thread, &self.program, &self.image, bias, limits)?;
        set_heap(space, &self.image, bias)?;
        let entry = self.image.entry.checked_add(bias).ok_or(Errno::EINVAL)?;
        let mut start = (entry, 0);
        if let Some((file, image)) = &self.interpreter {
            let bias = place_interpreter(space, image)?;
            rests.extend(map_image(space, thread, file, image, bias, limits)?);
            start = (image.entry.checked_add(bias).ok_or(Errno::EINVAL)?, bias);
        }
        let vdso = identity.vdso.as_ref().map(|vdso| vdso.map(space, thread, limits)).transpose()?;
        thread.gather(false)?;
        for rest in &rests {
            rest.clear(thread)?;
        }
        if start.0 >= crate::mm::TASK_SIZE {
            return Err(Errno::EINVAL);
        }
        let mut random = [0; stack::RANDOM_BYTES];
        crate::random::fill(&mut random)?;
        let mut auxiliary = self.auxiliary(bias, start.1, entry, identity);
        auxiliary.extend(vdso.map(|header| (libc::AT_SYSINFO_EHDR, header)));
        let contents = Contents { strings: &self.strings, name: &self.name, random, auxiliary: &auxiliary };
        let stack = stack::build(top, &contents)?;
        if thread.write(stack.pointer, &stack.bytes) != stack.bytes.len() {
            return Err(Errno::EFAULT);
        }
        space.set_strings(stack.places);
        space.set_program(Some(Arc::clone(&self.program) as Arc<dyn crate::mm::MappedFile>));
        *thread.regs() = Regs { rip: start.0, rsp: stack.pointer, eflags: EFLAGS, ..Regs::default() };
        *thread.fs_base() = 0;
        Ok(())
    }

    fn auxiliary(&self, bias: u64, base: u64, entry: u64, identity: &Identity) -> Vec<(u64, u64)> {
        let (table, entries) = self.image.table;
        let table = if table == 0 { 0 } else { table.saturating_add(bias) };
        vec![
            // A signal frame has the processor's whole state.
            (libc::AT_MINSIGSTKSZ, host::auxiliary(libc::AT_MINSIGSTKSZ)),
            (libc::AT_HWCAP, host::auxiliary(libc::AT_HWCAP)),
            (libc::AT_PAGESZ, PAGE),
            (libc::AT_CLKTCK, 100),
            (libc::AT_PHDR, table),
            (libc::AT_PHENT, super::elf::PROGRAM_HEADER_BYTES as u64),
            (libc::AT_PHNUM, u64::from(entries)),
            (libc::AT_BASE, base),
            (libc::AT_FLAGS, 0),
            (libc::AT_ENTRY, entry),
            (libc::AT_UID, u64::from(identity.uid)),
            (libc::AT_EUID, u64::from(identity.euid)),
            (libc::AT_GID, u64::from(identity.gid)),
            (libc::AT_EGID, u64::from(identity.egid)),
            (libc::AT_SECURE, u64::from(identity.secure)),
            // Instructions that set fs and gs are not told of: the platform keeps those.
            (libc::AT_HWCAP2, 0),
        ]
    }
}

/// How far a program is moved: to two thirds of the room and a random number of pages more (`ELF_ET_DYN_BASE`), or not at all.
fn place_program(space: &AddressSpace, image: &Image) -> Result<u64, Errno> {
    let pages = image.pages();
    let range = space.range();
    if !image.moves {
        let inside = range.start <= pages.start && pages.end <= range.end;
        return if inside { Ok(0) } else { Err(Errno::ENOMEM) };
    }
    let length = pages.end - pages.start;
    let room = range.end - range.start;
    let base =
        range.start.saturating_add(room / 3 * 2).saturating_add(random_pages((room / 64).min(1 << 40)));
    let start = align_up(base, image.alignment).ok_or(Errno::ENOMEM)?;
    let end = start.checked_add(length).filter(|end| *end <= range.end).ok_or(Errno::ENOMEM)?;
    debug_assert!(end >= start);
    Ok(start.wrapping_sub(page_down(pages.start) & !(image.alignment - 1)))
}

/// An interpreter goes where `mmap` puts it.
fn place_interpreter(space: &AddressSpace, image: &Image) -> Result<u64, Errno> {
    if !image.moves {
        return place_program(space, image);
    }
    let pages = image.pages();
    let first = pages.start & !(image.alignment - 1);
    let length = (pages.end - first).checked_add(image.alignment - PAGE).ok_or(Errno::ENOMEM)?;
    let start = align_up(space.free_place(length)?, image.alignment).ok_or(Errno::ENOMEM)?;
    Ok(start.wrapping_sub(first))
}

fn align_up(address: u64, alignment: u64) -> Option<u64> {
    Some(address.checked_add(alignment - 1)? & !(alignment - 1))
}

fn set_heap(space: &AddressSpace, image: &Image, bias: u64) -> Result<(), Errno> {
    let end = bias.wrapping_add(image.pages().end);
    let data = image.segments.iter().filter(|segment| segment.protection.contains(Protection::WRITE));
    let data = data.fold(0u64, |sum, segment| sum.saturating_add(segment.memory_bytes));
    let start = end.checked_add(random_pages(HEAP_ROOM)).ok_or(Errno::ENOMEM)?;
    space.start_heap(start, data);
    Ok(())
}

/// What the file does not have of a segment's last page of it: it is cleared when all segments are mapped.
struct Rest {
    address: u64,
    length: u64,
    writable: bool,
}

impl Rest {
    fn clear(&self, thread: &mut dyn Thread) -> Result<(), Errno> {
        let zeros = [0; PAGE as usize];
        // Where it cannot be written nobody relies on it: Linux leaves it as well.
        let written = thread.write(self.address, &zeros[..self.length as usize]);
        if written as u64 != self.length && self.writable { Err(Errno::EFAULT) } else { Ok(()) }
    }
}

/// Maps all segments; of what they leave to be cleared, what is not cleared yet.
fn map_image(
    space: &AddressSpace,
    thread: &mut dyn Thread,
    file: &Arc<dyn Program>,
    image: &Image,
    bias: u64,
    limits: &Limits,
) -> Result<Vec<Rest>, Errno> {
    let mut rests: Vec<Rest> = Vec::new();
    for segment in &image.segments {
        // One that lies over a page that is still to be cleared comes after that, as in Linux.
        let start = page_down(segment.address.wrapping_add(bias));
        while let Some(rest) = rests.pop_if(|rest| start < rest.address + rest.length) {
            rest.clear(thread)?;
        }
        rests.extend(map_segment(space, thread, file, segment, bias, limits)?);
    }
    Ok(rests)
}

/// One segment: its pages of the file, and memory behind; and what is to be cleared of the last page of the file.
fn map_segment(
    space: &AddressSpace,
    thread: &mut dyn Thread,
    file: &Arc<dyn Program>,
    segment: &Segment,
    bias: u64,
    limits: &Limits,
) -> Result<Option<Rest>, Errno> {
    // A bias may be "negative": the sum is what counts, and that lies among the guest's addresses or is refused.
    let address = segment.address.wrapping_add(bias);
    let file_end = address.checked_add(segment.file_bytes).ok_or(Errno::ENOMEM)?;
    let end = address.checked_add(segment.memory_bytes).and_then(page_up).ok_or(Errno::ENOMEM)?;
    let start = page_down(address);
    let mut map = |range: std::ops::Range<u64>, source| {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let length = range.end - range.start;
        let protection = segment.protection;
        space.map(thread, &MapRequest { address: range.start, length, protection, flags, source }, limits)
    };
    let mut next = start;
    if segment.file_bytes > 0 {
        next = page_up(file_end).ok_or(Errno::ENOMEM)?;
        let offset = page_down(segment.offset);
        let mapped: Arc<dyn MappedFile> = Arc::<dyn Program>::clone(file);
        map(start..next, Source::File(mapped, offset))?;
    }
    if next < end {
        map(next..end, Source::Anonymous)?;
    }
    let length = next.saturating_sub(file_end);
    let clears = segment.memory_bytes > segment.file_bytes && segment.file_bytes > 0 && length > 0;
    let writable = segment.protection.contains(Protection::WRITE);
    Ok(clears.then_some(Rest { address: file_end, length, writable }))
}
