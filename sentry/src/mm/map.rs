//! `mmap`, `munmap`, `mprotect` (`mm/mmap.c`, `mm/vma.c`, `mm/mprotect.c`).

use std::os::fd::AsFd;
use std::sync::Arc;

use super::area::{Area, AreaFlags, Backing, MappedFile, Protection};
use super::{AddressSpace, Layout, Limits, MAX_AREAS, PAGE, TASK_SIZE, page_down, page_up, pages};
use crate::error::Errno;
use crate::platform::{MemoryCall, Thread};

/// Lowest address that a mapping gets without being asked for (`vm.mmap_min_addr`).
const LOWEST: u64 = 0x1_0000;

/// What is to be mapped.
#[derive(Clone)]
pub enum Source {
    /// Memory of its own.
    Anonymous,
    /// A file from an offset on, which is whole pages.
    File(Arc<dyn MappedFile>, u64),
    /// Memory of its own under a name of the kernel's.
    Special(&'static str),
}

/// Arguments of `mmap`.
#[derive(Clone)]
pub struct MapRequest {
    /// Where, or a hint.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// What guest code can do there.
    pub protection: Protection,
    /// `MAP_*`.
    pub flags: i32,
    /// What.
    pub source: Source,
}

/// How an area is mapped on the host: `PROT_*` and `MAP_*` of [`MemoryCall::Map`].
pub(super) fn host_flags(flags: AreaFlags) -> i32 {
    let sharing = if flags.contains(AreaFlags::SHARED) { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let reserve = if flags.contains(AreaFlags::NO_RESERVE) { libc::MAP_NORESERVE } else { 0 };
    sharing | reserve
}

pub(super) fn host_protection(protection: Protection) -> i32 {
    protection.bits().cast_signed()
}

impl AddressSpace {
    /// `mmap`. The address.
    ///
    /// # Errors
    /// As `man 2 mmap`: EINVAL, ENOMEM, EEXIST, EACCES, EPERM, EAGAIN, EOVERFLOW, ENODEV.
    pub fn map(&self, thread: &mut dyn Thread, request: &MapRequest, limits: &Limits) -> Result<u64, Errno> {
        let mut layout = self.layout();
        if request.length == 0 {
            return Err(Errno::EINVAL);
        }
        let length = page_up(request.length).ok_or(Errno::ENOMEM)?;
        if layout.areas.count() > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        let address = layout.place(request, length)?;
        if let Source::File(_, offset) = &request.source
            && offset.checked_add(length).is_none()
        {
            return Err(Errno::EOVERFLOW);
        }
        let flags = area_flags(request, &layout)?;
        if let Source::File(file, offset) = &request.source {
            // What cannot be mapped says so, wherever in it that would be.
            file.host_file()?;
            offset
                .checked_add(length)
                .filter(|end| *end <= i64::MAX.unsigned_abs())
                .ok_or(Errno::EOVERFLOW)?;
        }
        if flags.contains(AreaFlags::LOCKED) {
            layout.check_lock(length, request.flags & libc::MAP_LOCKED != 0, limits)?;
        }
        let backing = match &request.source {
            Source::Anonymous if flags.contains(AreaFlags::SHARED) => {
                Backing::SharedAnonymous { id: super::next_id(), offset: 0 }
            }
            Source::Anonymous => Backing::Anonymous,
            Source::File(file, offset) => Backing::File { file: Arc::clone(file), offset: *offset },
            Source::Special(name) => Backing::Special(name),
        };
        let area = Area {
            start: address,
            end: address + length,
            protection: request.protection,
            flags: flags.difference(AreaFlags::MAIN_STACK),
            backing,
        };
        layout.check_growth(&area, limits)?;
        layout.map_area(thread, area)?;
        let populate = request.flags & libc::MAP_POPULATE != 0 && request.flags & libc::MAP_NONBLOCK == 0;
        if populate || flags.contains(AreaFlags::LOCKED) {
            layout.populate(thread, &(address..address + length));
        }
        Ok(address)
    }

    /// `munmap`.
    ///
    /// # Errors
    /// EINVAL; ENOMEM where an area would become two and there are too many; what the host says.
    pub fn unmap(&self, thread: &mut dyn Thread, address: u64, length: u64) -> Result<(), Errno> {
        self.layout().unmap(thread, address, length)
    }

    /// `mprotect`. `grows` is [`PROT_GROWSDOWN`](libc::PROT_GROWSDOWN) or [`PROT_GROWSUP`](libc::PROT_GROWSUP), or 0.
    ///
    /// # Errors
    /// EINVAL, ENOMEM (a gap: what lies before it is changed all the same), EACCES (a file that was not opened for that).
    pub fn protect(
        &self,
        thread: &mut dyn Thread,
        address: u64,
        length: u64,
        protection: Protection,
        grows: i32,
        limits: &Limits,
    ) -> Result<(), Errno> {
        let mut layout = self.layout();
        if !address.is_multiple_of(PAGE) || grows == libc::PROT_GROWSDOWN | libc::PROT_GROWSUP {
            return Err(Errno::EINVAL);
        }
        if length == 0 {
            return Ok(());
        }
        let mut range = pages(address, length).filter(|range| !range.is_empty()).ok_or(Errno::ENOMEM)?;
        if grows == libc::PROT_GROWSDOWN {
            let area = layout.areas.find_or_next(range.start).filter(|area| area.start < range.end);
            let area = area.ok_or(Errno::ENOMEM)?;
            if !area.flags.intersects(AreaFlags::GROWS_DOWN | AreaFlags::MAIN_STACK) {
                return Err(Errno::EINVAL);
            }
            range.start = area.start;
        } else if layout.areas.find(range.start).is_none() {
            return Err(Errno::ENOMEM);
        } else if grows != 0 {
            // No area grows up on this machine.
            return Err(Errno::EINVAL);
        }
        let end = layout.areas.covered_until(&range);
        let pieces: Vec<Area> =
            layout.areas.touching(&(range.start..end)).map(|area| area.part(&range)).collect();
        for piece in pieces {
            layout.protect_piece(thread, &piece, protection, limits)?;
        }
        if end < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Lets an area that grows down reach `address`, where a fault was: `true` when it does and the access can be tried again.
    /// The limit is that of the stack (`expand_downwards` in `mm/vma.c`).
    pub fn grow(&self, thread: &mut dyn Thread, address: u64, limits: &Limits) -> bool {
        let mut layout = self.layout();
        let start = page_down(address);
        if start < layout.range.start.max(LOWEST) || layout.areas.find(address).is_some() {
            return false;
        }
        let Some(area) = layout.areas.find_or_next(address).cloned() else { return false };
        let range = start..area.start;
        let below =
            layout.areas.iter().take_while(|other| other.end <= start).last().map_or(0, |area| area.end);
        let room = start.checked_sub(below).is_some_and(|room| below == 0 || room >= super::tree::GUARD_GAP);
        if !area.flags.contains(AreaFlags::GROWS_DOWN) || !room || area.end - start > limits.stack {
            return false;
        }
        let more = Area { start, end: area.start, ..area };
        if more.flags.contains(AreaFlags::LOCKED) && layout.check_lock(more.length(), false, limits).is_err()
        {
            return false;
        }
        debug_assert!(layout.areas.is_free(&range));
        layout.check_growth(&more, limits).is_ok() && layout.map_area(thread, more).is_ok()
    }
}

impl Layout {
    /// Where `length` bytes go (`get_unmapped_area`).
    fn place(&self, request: &MapRequest, length: u64) -> Result<u64, Errno> {
        if length > TASK_SIZE {
            return Err(Errno::ENOMEM);
        }
        let keep = request.flags & libc::MAP_FIXED_NOREPLACE != 0;
        if keep || request.flags & libc::MAP_FIXED != 0 {
            let end = request.address.checked_add(length).ok_or(Errno::ENOMEM)?;
            if end > TASK_SIZE {
                return Err(Errno::ENOMEM);
            }
            if !request.address.is_multiple_of(PAGE) {
                return Err(Errno::EINVAL);
            }
            if request.address < LOWEST {
                return Err(Errno::EPERM);
            }
            let range = request.address..end;
            if range.start < self.range.start || range.end > self.range.end {
                return Err(Errno::ENOMEM);
            }
            if keep && !self.areas.is_free(&range) {
                return Err(Errno::EEXIST);
            }
            return Ok(request.address);
        }
        // A hint below the lowest address is as good as that address (`round_hint_to_min`).
        let hint = page_down(request.address);
        let hint = if hint != 0 && hint < LOWEST { LOWEST } else { hint };
        self.find_place(hint, length, request.flags & libc::MAP_32BIT != 0)
    }

    /// Room for `length` bytes, at `hint` where that is free.
    pub(super) fn find_place(&self, hint: u64, length: u64, low: bool) -> Result<u64, Errno> {
        if low {
            // `find_start_end` in `arch/x86/kernel/sys_x86_64.c`: from 1 to 2 GiB.
            let range = 0x4000_0000.max(self.range.start)..0x8000_0000.min(self.range.end);
            return self.areas.lowest_gap(&range, length).ok_or(Errno::ENOMEM);
        }
        if let Some(end) = hint.checked_add(length)
            && hint != 0
            && hint >= self.range.start
            && end <= self.range.end
            && self.areas.is_free_and_unguarded(&(hint..end))
        {
            return Ok(hint);
        }
        let bottom = self.range.start.max(LOWEST);
        let below = self.areas.highest_gap(&(bottom..self.mmap_base.max(bottom)), length);
        // As Linux: bottom-up from a third of the room on where top-down fails.
        let above = || {
            let start = (self.range.end / 3).max(bottom);
            self.areas.lowest_gap(&(start..self.range.end.max(start)), length)
        };
        below.or_else(above).ok_or(Errno::ENOMEM)
    }

    /// Whether there may be that much more (`may_expand_vm`), what lies under `area` not counted twice.
    pub(super) fn check_growth(&self, area: &Area, limits: &Limits) -> Result<(), Errno> {
        let replaced = self.areas.taken(&area.range());
        let total = (self.areas.total() - replaced).saturating_add(area.length());
        if total > limits.address_space {
            return Err(Errno::ENOMEM);
        }
        let data = self.areas.data().saturating_add(area.length());
        if area.is_data() && data > limits.data { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Whether `length` bytes more may be locked (`can_do_mlock`, `mlock_future_ok`); `asked` by the call itself.
    pub(super) fn check_lock(&self, length: u64, asked: bool, limits: &Limits) -> Result<(), Errno> {
        if limits.may_lock {
            return Ok(());
        }
        if asked && limits.locked == 0 {
            return Err(Errno::EPERM);
        }
        let locked = self.areas.locked().saturating_add(length);
        if locked > limits.locked { Err(Errno::EAGAIN) } else { Ok(()) }
    }

    /// Maps an area in place of what is there, on the host and here.
    pub(super) fn map_area(&mut self, thread: &mut dyn Thread, area: Area) -> Result<(), Errno> {
        let host = match &area.backing {
            Backing::File { file, offset } => {
                let (descriptor, base) = file.host_file()?;
                Some((descriptor, base.checked_add(*offset).ok_or(Errno::EOVERFLOW)?))
            }
            _ => None,
        };
        let call = MemoryCall::Map {
            address: area.start,
            length: area.length(),
            protection: host_protection(area.protection),
            flags: host_flags(area.flags),
            file: host.as_ref().map(|(descriptor, offset)| (descriptor.as_fd(), *offset)),
        };
        match thread.map_kept(&call, host.as_ref().map(|(descriptor, _)| descriptor)) {
            Ok(_) => {
                self.areas.remove(&area.range());
                self.areas.insert(area);
                Ok(())
            }
            Err(errno) => {
                self.give_up(thread, &area.range(), errno);
                Err(errno)
            }
        }
    }

    /// After a host call that failed and may have unmapped `range` first: what was there goes on both sides.
    pub(super) fn give_up(&mut self, thread: &mut dyn Thread, range: &std::ops::Range<u64>, errno: Errno) {
        // The host looks at descriptor and rights before it unmaps anything.
        if matches!(errno, Errno::EBADF | Errno::EACCES) || self.areas.is_free(range) {
            return;
        }
        let call = MemoryCall::Unmap { address: range.start, length: range.end - range.start };
        if thread.change_memory(&call).is_ok() {
            self.areas.remove(range);
        }
    }

    pub(super) fn unmap(&mut self, thread: &mut dyn Thread, address: u64, length: u64) -> Result<(), Errno> {
        if !address.is_multiple_of(PAGE) || address > TASK_SIZE || length > TASK_SIZE - address {
            return Err(Errno::EINVAL);
        }
        let range = pages(address, length).filter(|range| !range.is_empty()).ok_or(Errno::EINVAL)?;
        // Only what was mapped here: around it may lie what is the platform's.
        let Some(first) = self.areas.touching(&range).next().map(|area| area.part(&range).start) else {
            return Ok(());
        };
        let last = self.areas.touching(&range).next_back().map_or(first, |area| area.part(&range).end);
        if self.areas.count() >= MAX_AREAS && self.areas.cuts(&range) {
            return Err(Errno::ENOMEM);
        }
        thread.change_memory(&MemoryCall::Unmap { address: first, length: last - first })?;
        self.areas.remove(&(first..last));
        Ok(())
    }

    fn protect_piece(
        &mut self,
        thread: &mut dyn Thread,
        piece: &Area,
        protection: Protection,
        limits: &Limits,
    ) -> Result<(), Errno> {
        if piece.forbids(protection) {
            return Err(Errno::EACCES);
        }
        if piece.protection == protection {
            return Ok(());
        }
        let changed = Area { protection, ..piece.clone() };
        // Private memory that becomes writable is data from now on.
        if changed.is_data()
            && !piece.is_data()
            && self.areas.data().saturating_add(piece.length()) > limits.data
        {
            return Err(Errno::ENOMEM);
        }
        if self.areas.count() + self.areas.splits(&piece.range()) > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        thread.change_memory(&MemoryCall::Protect {
            address: piece.start,
            length: piece.length(),
            protection: host_protection(protection),
        })?;
        self.areas.update(&piece.range(), |area| area.protection = protection);
        Ok(())
    }
}

/// What is true of a new area, and whether its kind is one (`do_mmap`).
fn area_flags(request: &MapRequest, layout: &Layout) -> Result<AreaFlags, Errno> {
    let kind = request.flags & libc::MAP_TYPE;
    let mut flags = AreaFlags::empty();
    flags.set(AreaFlags::LOCKED, request.flags & libc::MAP_LOCKED != 0 || layout.lock_future);
    flags.set(AreaFlags::NO_RESERVE, request.flags & libc::MAP_NORESERVE != 0);
    flags.set(AreaFlags::GROWS_DOWN, request.flags & libc::MAP_GROWSDOWN != 0);
    let grows = flags.contains(AreaFlags::GROWS_DOWN);
    match (&request.source, kind) {
        (Source::Anonymous | Source::Special(_), libc::MAP_PRIVATE) => {}
        (Source::Anonymous, libc::MAP_SHARED) if !grows => flags |= AreaFlags::SHARED,
        (Source::File(file, _), libc::MAP_PRIVATE) if !grows => {
            if !file.readable() {
                return Err(Errno::EACCES);
            }
            flags.set(AreaFlags::NEVER_WRITE, file.vdso_part().is_some() && !file.writable());
        }
        (Source::File(file, _), libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE) if !grows => {
            flags |= AreaFlags::SHARED;
            check_validated(kind, request.flags)?;
            if !file.readable() || (request.protection.contains(Protection::WRITE) && !file.writable()) {
                return Err(Errno::EACCES);
            }
            flags.set(AreaFlags::NEVER_WRITE, !file.writable());
        }
        _ => return Err(Errno::EINVAL),
    }
    if let Source::File(file, _) = &request.source
        && !file.executable()
    {
        if request.protection.contains(Protection::EXEC) {
            return Err(Errno::EPERM);
        }
        flags |= AreaFlags::NEVER_EXEC;
    }
    Ok(flags)
}

/// `MAP_SHARED_VALIDATE` refuses flags that it does not know, and `MAP_SYNC` without a file that has it.
fn check_validated(kind: i32, flags: i32) -> Result<(), Errno> {
    let known = libc::MAP_TYPE
        | libc::MAP_FIXED
        | libc::MAP_ANONYMOUS
        | libc::MAP_DENYWRITE
        | libc::MAP_EXECUTABLE
        | libc::MAP_GROWSDOWN
        | libc::MAP_LOCKED
        | libc::MAP_NORESERVE
        | libc::MAP_POPULATE
        | libc::MAP_NONBLOCK
        | libc::MAP_STACK
        | libc::MAP_HUGETLB
        | libc::MAP_32BIT
        | libc::MAP_FIXED_NOREPLACE;
    if kind == libc::MAP_SHARED_VALIDATE && flags & !known != 0 { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}
