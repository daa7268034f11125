//! An address space as a checkpoint keeps it: the areas, without what is in them.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::area::{Area, AreaFlags, Backing, MappedFile, Protection, VdsoPart};
use super::map::host_protection;
use super::{AddressSpace, Areas, Layout, MAX_AREAS, PAGE, futex};
use crate::checkpoint::state::{SavedArea, SavedBacking, SavedSpace};
use crate::error::Errno;
use crate::platform::{MemoryCall, Thread};

/// What areas show, when an address space is made anew.
pub(crate) trait Sources {
    /// An open file by its number in the image.
    fn file(&self, number: u32, runs: bool) -> Result<Arc<dyn MappedFile>, Errno>;

    /// A part of the vDSO.
    fn vdso(&self, part: VdsoPart) -> Result<Arc<dyn MappedFile>, Errno>;

    /// Memory that was shared when it was made: the file that stands for it, and its number from now on.
    fn shared(&self, number: u64) -> Result<(Arc<OwnedFd>, u64), Errno>;
}

/// Gives a number to a file that is mapped, and hears whether its bytes have to stay what they are.
type Numbering<'a> = &'a mut dyn FnMut(&Arc<dyn MappedFile>, bool) -> Option<u32>;

impl AddressSpace {
    /// What is to be kept. `file` gives a number to each file that is mapped, and hears whether its bytes have to stay what they are: where they
    /// are shown without being shared.
    ///
    /// # Errors
    /// The name of a mapping that cannot be kept.
    pub(crate) fn saved(&self, file: Numbering<'_>) -> Result<SavedSpace, String> {
        let layout = self.layout().clone();
        let mut areas = Vec::with_capacity(layout.areas.count());
        for area in layout.areas.iter() {
            let backing = match &area.backing {
                Backing::Anonymous => SavedBacking::Anonymous,
                Backing::SharedAnonymous { id, offset } => SavedBacking::Shared { id: *id, offset: *offset },
                Backing::File { file: mapped, offset } => {
                    if let Some(part) = mapped.vdso_part() {
                        areas.push(saved_area(area, SavedBacking::Vdso { part, offset: *offset }));
                        continue;
                    }
                    let private = !area.flags.contains(AreaFlags::SHARED);
                    let name = || String::from_utf8_lossy(&mapped.name()).into_owned();
                    SavedBacking::File { file: file(mapped, private).ok_or_else(name)?, offset: *offset }
                }
                Backing::Special(name) => return Err((*name).to_owned()),
            };
            areas.push(saved_area(area, backing));
        }
        let program = self.program().as_ref().and_then(|program| file(program, true));
        Ok(SavedSpace {
            range: layout.range,
            mmap_base: layout.mmap_base,
            stack_top: layout.stack_top,
            heap: layout.heap,
            program_data: layout.program_data,
            lock_future: layout.lock_future,
            strings: layout.strings,
            barriers: self.barriers().load(Ordering::Relaxed),
            program,
            areas,
            extents: Vec::new(),
            kept: Vec::new(),
        })
    }

    /// A number for memory that is shared.
    pub(crate) fn number_of_shared() -> u64 {
        super::next_id()
    }

    /// The same once more, in `thread`'s address space, which has nothing yet. `fill` puts in what was in it, while all private areas can be
    /// written.
    ///
    /// # Errors
    /// EINVAL for what cannot be; what the host says.
    pub(crate) fn restored(
        saved: &SavedSpace,
        thread: &mut dyn Thread,
        futexes: &Arc<futex::Table>,
        sources: &dyn Sources,
        fill: &mut dyn FnMut(&Self) -> Result<(), Errno>,
    ) -> Result<Self, Errno> {
        if saved.areas.len() > MAX_AREAS {
            return Err(Errno::EINVAL);
        }
        let layout = Layout {
            range: saved.range.clone(),
            mmap_base: saved.mmap_base,
            stack_top: saved.stack_top,
            areas: Areas::default(),
            heap: saved.heap.clone(),
            program_data: saved.program_data,
            lock_future: saved.lock_future,
            strings: saved.strings.clone(),
        };
        let space = Self::with_layout(layout, Some(thread.remote()), Arc::clone(futexes));
        space.barriers().store(saved.barriers, Ordering::Relaxed);
        if let Some(program) = saved.program {
            space.set_program(Some(sources.file(program, true)?));
        }
        for area in &saved.areas {
            space.map_saved(thread, area, sources)?;
        }
        fill(&space)?;
        let areas: Vec<Area> = space.layout().areas.iter().cloned().collect();
        for area in areas {
            finish(thread, &area)?;
        }
        Ok(space)
    }

    fn map_saved(
        &self,
        thread: &mut dyn Thread,
        saved: &SavedArea,
        sources: &dyn Sources,
    ) -> Result<(), Errno> {
        let mut layout = self.layout();
        let range = area_range(saved, &layout)?;
        let (backing, host) = match &saved.backing {
            SavedBacking::Anonymous => (Backing::Anonymous, None),
            SavedBacking::Shared { id, offset } => {
                let (descriptor, id) = sources.shared(*id)?;
                (Backing::SharedAnonymous { id, offset: *offset }, Some((descriptor, *offset)))
            }
            SavedBacking::File { file, offset } => shown(sources.file(*file, false)?, *offset)?,
            SavedBacking::Vdso { part, offset } => {
                // It is two files of a page each.
                if *offset != 0 || range.end - range.start != PAGE {
                    return Err(Errno::EINVAL);
                }
                shown(sources.vdso(*part)?, 0)?
            }
        };
        let area = Area {
            start: range.start,
            end: range.end,
            protection: Protection::from_bits(saved.protection).ok_or(Errno::EINVAL)?,
            flags: AreaFlags::from_bits(saved.flags).ok_or(Errno::EINVAL)?,
            backing,
        };
        let shared = area.flags.contains(AreaFlags::SHARED);
        if !shared && matches!(area.backing, Backing::SharedAnonymous { .. }) {
            return Err(Errno::EINVAL);
        }
        thread.change_memory(&MemoryCall::Map {
            address: area.start,
            length: area.length(),
            protection: host_protection(if shared { area.protection } else { filled(&area) }),
            flags: super::map::host_flags(area.flags),
            file: host.as_ref().map(|(descriptor, offset)| (descriptor.as_fd(), *offset)),
        })?;
        layout.areas.insert(area);
        Ok(())
    }
}

fn saved_area(area: &Area, backing: SavedBacking) -> SavedArea {
    SavedArea {
        start: area.start,
        end: area.end,
        protection: area.protection.bits(),
        flags: area.flags.bits(),
        backing,
    }
}

/// What shows a file from an offset on, and where that lies on the host.
type Mapping = (Backing, Option<(Arc<OwnedFd>, u64)>);

fn shown(file: Arc<dyn MappedFile>, offset: u64) -> Result<Mapping, Errno> {
    let (descriptor, base) = file.host_file()?;
    let at = base.checked_add(offset).ok_or(Errno::EINVAL)?;
    Ok((Backing::File { file, offset }, Some((descriptor, at))))
}

/// The protection of a private area while it is filled.
fn filled(area: &Area) -> Protection {
    area.protection | Protection::READ | Protection::WRITE
}

/// Where it lies: whole pages of the address space, and nothing there yet.
fn area_range(saved: &SavedArea, layout: &Layout) -> Result<Range<u64>, Errno> {
    let range = saved.start..saved.end;
    let whole = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
    let within = range.start >= layout.range.start && range.end <= layout.range.end;
    if range.is_empty() || !whole || !within || !layout.areas.is_free(&range) {
        return Err(Errno::EINVAL);
    }
    Ok(range)
}

/// Gives an area what it is to be like when guest code runs.
fn finish(thread: &mut dyn Thread, area: &Area) -> Result<(), Errno> {
    let (address, length) = (area.start, area.length());
    if !area.flags.contains(AreaFlags::SHARED) && filled(area) != area.protection {
        let protection = host_protection(area.protection);
        thread.change_memory(&MemoryCall::Protect { address, length, protection })?;
    }
    let marks =
        [(AreaFlags::DONT_FORK, libc::MADV_DONTFORK), (AreaFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK)];
    for (_, advice) in marks.into_iter().filter(|(mark, _)| area.flags.contains(*mark)) {
        thread.change_memory(&MemoryCall::Advise { address, length, advice })?;
    }
    Ok(())
}
