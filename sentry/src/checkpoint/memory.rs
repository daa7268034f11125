//! What is in address spaces: pages that are theirs alone, and memory that several share.
//!
//! A page that only shows a file is not kept: the file is. Pages that processes have in common by `fork` become a copy for each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pwrite;
use nix::unistd::ftruncate;

use super::image::{ImageError, PART, Reader, Source, Writer};
use super::state::{Extent, SavedBacking, SavedShared, SavedSpace};
use crate::error::Errno;
use crate::mm::{AddressSpace, AreaFlags, PAGE};
use crate::platform::RemoteMemory;

/// Most bytes of memory that was shared when it was made: all of it is read.
const SHARED_MAX: u64 = 8 << 30;

/// Adds bytes to a list of extents, whole pages of zeros apart: as holes, or as zeros that have to be written.
pub(super) fn put(
    out: &mut Writer,
    extents: &mut Vec<Extent>,
    (at, bytes): (u64, &[u8]),
    holes: bool,
) -> Result<(), ImageError> {
    let mut at = at;
    for page in bytes.chunks(PAGE as usize) {
        let length = page.len() as u64;
        let zero = page.iter().all(|byte| *byte == 0);
        if !zero || !holes {
            let from = if zero { None } else { Some(out.put(page)?) };
            match extents.last_mut() {
                Some(last) if last.at + last.length == at && follows(last, from) => last.length += length,
                _ => extents.push(Extent { at, length, from }),
            }
        }
        at = at.saturating_add(length);
    }
    Ok(())
}

fn follows(last: &Extent, from: Option<u64>) -> bool {
    match (last.from, from) {
        (None, None) => true,
        (Some(first), Some(from)) => first.saturating_add(last.length) == from,
        _ => false,
    }
}

fn read(
    memory: &dyn RemoteMemory,
    range: &Range<u64>,
    mut put: impl FnMut(u64, &[u8]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut part = vec![0; PART];
    let mut at = range.start;
    while at < range.end {
        let count = usize::try_from(range.end - at).unwrap_or(PART).min(PART);
        let to = part.get_mut(..count).unwrap_or_default();
        if memory.read_protected(at, to) != count {
            return Err(ImageError::Host { what: "reading memory for", errno: Errno::EFAULT });
        }
        put(at, to)?;
        at = at.saturating_add(count as u64);
    }
    Ok(())
}

/// Shared memory that was met.
#[derive(Default)]
pub(super) struct SharedMemory {
    known: BTreeMap<u64, (SavedShared, BTreeSet<u64>)>,
    total: u64,
}

impl SharedMemory {
    pub(super) fn into_saved(self) -> Vec<SavedShared> {
        self.known.into_values().map(|(saved, _)| saved).collect()
    }

    fn save(
        &mut self,
        out: &mut Writer,
        memory: &dyn RemoteMemory,
        (id, offset): (u64, u64),
        range: &Range<u64>,
    ) -> Result<(), ImageError> {
        let new = || (SavedShared { id, size: 0, extents: Vec::new() }, BTreeSet::new());
        let (saved, done) = self.known.entry(id).or_insert_with(new);
        saved.size = saved.size.max(offset.saturating_add(range.end - range.start));
        let pages = (range.end - range.start) / PAGE;
        let fresh = (0..pages).any(|page| !done.contains(&(offset / PAGE + page)));
        if !fresh {
            return Ok(());
        }
        self.total = self.total.saturating_add(range.end - range.start);
        if self.total > SHARED_MAX {
            return Err(ImageError::Length("shared memory"));
        }
        read(memory, range, |at, bytes| {
            for (n, page) in (0..).zip(bytes.chunks(PAGE as usize)) {
                let place = offset + (at - range.start) + n * PAGE;
                if done.insert(place / PAGE) {
                    put(out, &mut saved.extents, (place, page), true)?;
                }
            }
            Ok(())
        })
    }
}

/// Saves what is in an address space.
pub(super) fn save(
    out: &mut Writer,
    space: &AddressSpace,
    saved: &mut SavedSpace,
    shared: &mut SharedMemory,
) -> Result<(), ImageError> {
    let fail = |errno| ImageError::Host { what: "reading memory for", errno };
    let memory = space.memory().ok_or_else(|| fail(Errno::EFAULT))?;
    saved.kept = memory.kept().map_err(fail)?;
    let mut extents = Vec::new();
    for area in &saved.areas {
        let range = area.start..area.end;
        match area.backing {
            SavedBacking::Shared { id, offset } => {
                shared.save(out, memory.as_ref(), (id, offset), &range)?;
            }
            _ if area.flags & AreaFlags::SHARED.bits() != 0 => {}
            _ => {
                let holes = area.backing == SavedBacking::Anonymous;
                for pages in memory.own_pages(range).map_err(fail)? {
                    read(memory.as_ref(), &pages, |at, bytes| put(out, &mut extents, (at, bytes), holes))?;
                }
            }
        }
    }
    saved.extents = extents;
    Ok(())
}

/// Makes shared memory anew: files that stand for it.
pub(super) fn restore_shared<S: Source>(
    image: &Reader<S>,
    shared: &[SavedShared],
) -> Result<BTreeMap<u64, (Arc<OwnedFd>, u64)>, ImageError> {
    let fail = |errno| ImageError::Host { what: "making shared memory of", errno };
    let mut made = BTreeMap::new();
    for saved in shared {
        let file = memfd_create(c"shared", MFdFlags::MFD_CLOEXEC).map_err(fail)?;
        let size = i64::try_from(saved.size).map_err(|_| ImageError::Length("shared memory"))?;
        ftruncate(&file, size).map_err(fail)?;
        for extent in saved.extents.iter().filter(|extent| extent.from.is_some()) {
            image.each::<ImageError>(extent, |at, bytes| write_all(&file, bytes, at).map_err(fail))?;
        }
        made.insert(saved.id, (Arc::new(file), AddressSpace::number_of_shared()));
    }
    Ok(made)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let count = pwrite(file, bytes, i64::try_from(at).map_err(|_| Errno::EFBIG)?)?;
        bytes = bytes.get(count..).unwrap_or_default();
        at = at.saturating_add(count as u64);
    }
    Ok(())
}

/// Puts in what was in an address space.
pub(super) fn fill<S: Source>(
    image: &Reader<S>,
    space: &AddressSpace,
    saved: &SavedSpace,
) -> Result<(), ImageError> {
    let fail = |errno| ImageError::Host { what: "putting back memory of", errno };
    let memory = space.memory().ok_or_else(|| fail(Errno::EFAULT))?;
    for extent in &saved.extents {
        image.each::<ImageError>(extent, |at, bytes| match memory.write(at, bytes) == bytes.len() {
            true => Ok(()),
            false => Err(fail(Errno::EFAULT)),
        })?;
    }
    Ok(())
}
