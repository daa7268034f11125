//! `madvise`, `mincore`, `msync` (`mm/madvise.c`, `mm/mincore.c`, `mm/msync.c`).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::area::{Area, AreaFlags, Backing, Protection};
use super::{AddressSpace, Layout, MAX_AREAS, PAGE, page_up, pages};
use crate::error::Errno;
use crate::platform::{MemoryCall, Thread};

/// `MADV_DONTNEED_LOCKED` (`include/uapi/asm-generic/mman-common.h`).
const DONTNEED_LOCKED: i32 = 24;
/// `MADV_COLLAPSE`.
const COLLAPSE: i32 = 25;

/// What an advice asks for.
#[derive(Clone, Copy)]
enum Advice {
    /// Nothing that a program can tell.
    Hint,
    /// The host's call alone.
    Host(i32),
    /// The host's call, and a mark on the area.
    Mark { host: Option<i32>, flag: AreaFlags, set: bool },
}

fn advice(number: i32) -> Result<Advice, Errno> {
    Ok(match number {
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_WILLNEED
        | libc::MADV_COLD
        | libc::MADV_PAGEOUT
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | COLLAPSE => Advice::Hint,
        libc::MADV_DONTNEED
        | libc::MADV_FREE
        | libc::MADV_REMOVE
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_POPULATE_READ
        | libc::MADV_POPULATE_WRITE => Advice::Host(number),
        DONTNEED_LOCKED => Advice::Host(libc::MADV_DONTNEED),
        libc::MADV_DONTFORK | libc::MADV_DOFORK => Advice::Mark {
            host: Some(number),
            flag: AreaFlags::DONT_FORK,
            set: number == libc::MADV_DONTFORK,
        },
        libc::MADV_WIPEONFORK | libc::MADV_KEEPONFORK => Advice::Mark {
            host: Some(number),
            flag: AreaFlags::WIPE_ON_FORK,
            set: number == libc::MADV_WIPEONFORK,
        },
        libc::MADV_DONTDUMP | libc::MADV_DODUMP => {
            Advice::Mark { host: None, flag: AreaFlags::DONT_DUMP, set: number == libc::MADV_DONTDUMP }
        }
        libc::MADV_HWPOISON | libc::MADV_SOFT_OFFLINE => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    })
}

/// Whether an area takes that advice.
fn check(number: i32, area: &Area) -> Result<(), Errno> {
    let shared = area.flags.contains(AreaFlags::SHARED);
    let locked = area.flags.contains(AreaFlags::LOCKED);
    let anonymous = matches!(area.backing, Backing::Anonymous);
    match number {
        libc::MADV_DONTNEED | libc::MADV_COLD | libc::MADV_PAGEOUT if locked => Err(Errno::EINVAL),
        libc::MADV_FREE if locked || !anonymous => Err(Errno::EINVAL),
        libc::MADV_WIPEONFORK if shared || !anonymous => Err(Errno::EINVAL),
        libc::MADV_REMOVE if locked || anonymous || matches!(area.backing, Backing::Special(_)) => {
            Err(Errno::EINVAL)
        }
        libc::MADV_REMOVE if !shared || area.flags.contains(AreaFlags::NEVER_WRITE) => Err(Errno::EACCES),
        libc::MADV_POPULATE_WRITE if !area.protection.contains(Protection::WRITE) => Err(Errno::EINVAL),
        libc::MADV_POPULATE_READ if !area.protection.contains(Protection::READ) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

impl AddressSpace {
    /// `madvise`.
    ///
    /// # Errors
    /// EINVAL, EACCES, EPERM, ENOMEM (a gap; what is mapped in the range is advised all the same), EFAULT (populating).
    pub fn advise(
        &self,
        thread: &mut dyn Thread,
        address: u64,
        length: u64,
        number: i32,
    ) -> Result<(), Errno> {
        let what = advice(number)?;
        if !address.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let range = pages(address, length).ok_or(Errno::EINVAL)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut layout = self.layout();
        let parts: Vec<Area> = layout.areas.touching(&range).map(|area| area.part(&range)).collect();
        let mut next = range.start;
        let mut gap = false;
        let stops_at_gap = matches!(number, libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE);
        for part in parts {
            gap |= part.start > next;
            if gap && stops_at_gap {
                break;
            }
            check(number, &part)?;
            layout.advise_part(thread, &part, what)?;
            next = part.end;
        }
        if gap || next < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// `mincore`: how many pages the range has, when all of it is mapped.
    ///
    /// # Errors
    /// EINVAL, ENOMEM.
    pub fn resident(&self, address: u64, length: u64) -> Result<u64, Errno> {
        if !address.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let range = pages(address, length).ok_or(Errno::ENOMEM)?;
        let end = self.layout().areas.covered_until(&range);
        if end < range.end { Err(Errno::ENOMEM) } else { Ok((range.end - range.start) / PAGE) }
    }

    /// `msync`: the host files whose shared mappings lie in the range, and whether all of it is mapped. They are synchronised without
    /// the lock.
    ///
    /// # Errors
    /// EINVAL (place), EBUSY (`invalidate` of locked memory), ENOMEM where the range is none.
    pub fn files_in(
        &self,
        address: u64,
        length: u64,
        invalidate: bool,
    ) -> Result<(Vec<Arc<OwnedFd>>, bool), Errno> {
        if !address.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        // A length that is rounded up past the last is none.
        let end = address.checked_add(page_up(length).unwrap_or(0)).ok_or(Errno::ENOMEM)?;
        let range = address..end;
        if range.is_empty() {
            return Ok((Vec::new(), true));
        }
        let layout = self.layout();
        let mut files = Vec::new();
        for area in layout.areas.touching(&range) {
            if invalidate && area.flags.contains(AreaFlags::LOCKED) {
                return Err(Errno::EBUSY);
            }
            if let Backing::File { file, .. } = &area.backing
                && area.flags.contains(AreaFlags::SHARED)
            {
                files.push(file.host_file()?.0);
            }
        }
        Ok((files, layout.areas.covered_until(&range) >= range.end))
    }
}

impl Layout {
    fn advise_part(&mut self, thread: &mut dyn Thread, part: &Area, what: Advice) -> Result<(), Errno> {
        let host = match what {
            Advice::Hint => None,
            Advice::Host(number) => Some(number),
            Advice::Mark { host, .. } => host,
        };
        if let Advice::Mark { .. } = what
            && self.areas.count() + self.areas.splits(&part.range()) > MAX_AREAS
        {
            return Err(Errno::ENOMEM);
        }
        if let Some(advice) = host {
            thread.change_memory(&MemoryCall::Advise {
                address: part.start,
                length: part.length(),
                advice,
            })?;
        }
        if let Advice::Mark { flag, set, .. } = what {
            self.areas.update(&part.range(), |area| area.flags.set(flag, set));
        }
        Ok(())
    }
}
