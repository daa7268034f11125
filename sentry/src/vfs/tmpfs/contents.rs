//! Bytes of a regular file in memory.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, ftruncate, lseek};

use super::{PAGE, SEAL_SEAL, Shared};
use crate::error::Errno;
use crate::platform::generation;

const PAGE_BYTES: usize = PAGE as usize;
/// More than this is not taken out of the sentry's own memory at one stroke, but from a memfd.
const LARGE: u64 = 1 << 20;

const SEAL_SHRINK: u32 = 2;
const SEAL_GROW: u32 = 4;
const SEAL_WRITE: u32 = 8;
const SEAL_FUTURE_WRITE: u32 = 16;

/// Bytes of a regular file.
pub(super) struct Contents {
    shared: Arc<Shared>,
    pub(super) size: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
    host: Option<Arc<OwnedFd>>,
    charged: u64,
    pub(super) seals: u32,
}

/// As the host counts; what is too large for it has been refused before.
fn signed(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::EFBIG)
}

/// Parts of a range, page by page: number of the page, where in it, how many bytes.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let within = at % PAGE;
        let count = (PAGE - within).min(end - at);
        let part = (at / PAGE, within as usize, count as usize);
        at = at.saturating_add(count);
        Some(part)
    })
}

impl Contents {
    pub(super) fn new(shared: &Arc<Shared>, seals: u32) -> Self {
        let shared = Arc::clone(shared);
        Self { shared, size: 0, pages: BTreeMap::new(), host: None, charged: 0, seals }
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.charged
    }

    pub(super) fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let count = self.size.saturating_sub(offset).min(to.len() as u64);
        let Some(to) = to.get_mut(..count as usize) else { return Ok(0) };
        if to.is_empty() {
            return Ok(0);
        }
        if let Some(host) = &self.host {
            return pread(host, to, signed(offset)?);
        }
        let mut left = to;
        for (page, within, count) in parts(offset, count) {
            let (part, rest) = left.split_at_mut(count.min(left.len()));
            match self.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + count]),
                None => part.fill(0),
            }
            left = rest;
        }
        Ok(count as usize)
    }

    pub(super) fn write(&mut self, from: &[u8], offset: u64) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        let end = offset.checked_add(from.len() as u64).ok_or(Errno::EFBIG)?;
        signed(end)?;
        if self.seals & (SEAL_WRITE | SEAL_FUTURE_WRITE) != 0
            || self.seals & SEAL_GROW != 0 && end > self.size
        {
            return Err(Errno::EPERM);
        }
        let count = if self.host.is_some() {
            self.write_host(from, offset)?
        } else {
            self.write_pages(from, offset)?
        };
        self.size = self.size.max(offset.saturating_add(count as u64));
        Ok(count)
    }

    fn write_pages(&mut self, from: &[u8], offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        for (page, within, count) in parts(offset, from.len() as u64) {
            let Some(part) = from.get(done..done + count) else { break };
            if !self.pages.contains_key(&page)
                && let Err(errno) = self.add_page(page)
            {
                return if done == 0 { Err(errno) } else { Ok(done) };
            }
            if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[within..within + count].copy_from_slice(part);
            }
            done += count;
        }
        Ok(done)
    }

    fn add_page(&mut self, page: u64) -> Result<(), Errno> {
        self.shared.charge(PAGE)?;
        self.charged = self.charged.saturating_add(PAGE);
        self.pages.insert(page, Box::new([0; PAGE_BYTES]));
        Ok(())
    }

    fn write_host(&mut self, from: &[u8], offset: u64) -> Result<usize, Errno> {
        let Some(host) = self.host.clone() else { return Err(Errno::EIO) };
        let most = (from.len() as u64).saturating_add(2 * PAGE);
        self.shared.charge(most)?;
        let result = pwrite(&host, from, signed(offset)?);
        self.shared.uncharge(most);
        self.settle();
        result
    }

    /// Charges what the host says that the file takes.
    fn settle(&mut self) {
        let Some(host) = &self.host else { return };
        let Ok(status) = fstat(host) else { return };
        let used = u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512);
        if used > self.charged {
            // Pages that came by mappings are in use whether there was room for them or not.
            let more = used - self.charged;
            if self.shared.charge(more).is_err() {
                return;
            }
        } else {
            self.shared.uncharge(self.charged - used);
        }
        if used != self.charged {
            generation::changed();
        }
        self.charged = used;
    }

    pub(super) fn resize(&mut self, size: u64) -> Result<(), Errno> {
        signed(size)?;
        let (shrinks, grows) = (size < self.size, size > self.size);
        if shrinks && self.seals & SEAL_SHRINK != 0 || grows && self.seals & SEAL_GROW != 0 {
            return Err(Errno::EPERM);
        }
        if let Some(host) = &self.host {
            ftruncate(host, signed(size)?)?;
            self.settle();
        } else if shrinks {
            self.clear_pages(size, self.size);
        }
        self.size = size;
        Ok(())
    }

    /// Frees whole pages of a range and zeroes the rest of it.
    fn clear_pages(&mut self, start: u64, end: u64) {
        let (first_whole, behind_whole) = (start.div_ceil(PAGE), end.div_ceil(PAGE));
        let mut behind = self.pages.split_off(&first_whole);
        let whole_end = if end >= self.size { behind_whole } else { end / PAGE };
        let mut kept = behind.split_off(&whole_end.max(first_whole));
        let freed = (behind.len() as u64).saturating_mul(PAGE);
        self.pages.append(&mut kept);
        self.shared.uncharge(freed);
        self.charged = self.charged.saturating_sub(freed);
        // At most a part of the first page and of the last one is left.
        for edge in [start / PAGE, end / PAGE] {
            let base = edge.saturating_mul(PAGE);
            let from = start.max(base).saturating_sub(base).min(PAGE) as usize;
            let to = end.saturating_sub(base).min(PAGE) as usize;
            if let Some(bytes) = self.pages.get_mut(&edge)
                && let Some(part) = bytes.get_mut(from..to.max(from))
            {
                part.fill(0);
            }
        }
    }

    pub(super) fn allocate(&mut self, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        let end = offset.checked_add(length).ok_or(Errno::EFBIG)?;
        signed(end)?;
        let keeps = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode {
            0 | libc::FALLOC_FL_KEEP_SIZE => {
                if self.seals & SEAL_GROW != 0 && end > self.size {
                    return Err(Errno::EPERM);
                }
                self.reserve(offset, length, if keeps { self.size } else { self.size.max(end) })?;
                if !keeps {
                    self.size = self.size.max(end);
                }
                Ok(())
            }
            mode if mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE => {
                if self.seals & (SEAL_WRITE | SEAL_FUTURE_WRITE) != 0 {
                    return Err(Errno::EPERM);
                }
                self.punch(offset, end)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn reserve(&mut self, offset: u64, length: u64, size: u64) -> Result<(), Errno> {
        if length > LARGE {
            self.become_host()?;
        }
        let Some(host) = self.host.clone() else {
            for (page, _, _) in parts(offset, length) {
                if !self.pages.contains_key(&page) {
                    self.add_page(page)?;
                }
            }
            return Ok(());
        };
        let most = length.saturating_add(2 * PAGE);
        self.shared.charge(most)?;
        let mut result =
            fallocate(&host, FallocateFlags::FALLOC_FL_KEEP_SIZE, signed(offset)?, signed(length)?);
        if result.is_ok() && size > self.size {
            // The host file is always as long as the contents.
            result = ftruncate(&host, signed(size)?);
        }
        self.shared.uncharge(most);
        self.settle();
        result
    }

    fn punch(&mut self, offset: u64, end: u64) -> Result<(), Errno> {
        let Some(host) = &self.host else {
            if offset < end {
                self.clear_pages(offset, end);
            }
            return Ok(());
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(host, flags, signed(offset)?, signed(end - offset)?)?;
        self.settle();
        Ok(())
    }

    /// The memfd that holds the contents; from now on it does.
    pub(super) fn become_host(&mut self) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(host) = &self.host {
            return Ok(Arc::clone(host));
        }
        let host = memfd_create(c"sentry-file", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&host, signed(self.size)?)?;
        for (page, bytes) in &self.pages {
            let base = page.saturating_mul(PAGE);
            let count = self.size.saturating_sub(base).min(PAGE) as usize;
            let mut done = 0;
            while let Some(part) = bytes.get(done..count).filter(|part| !part.is_empty()) {
                done += pwrite(&host, part, signed(base.saturating_add(done as u64))?)?;
            }
        }
        seal_host(&host, self.seals)?;
        self.pages = BTreeMap::new();
        self.host = Some(Arc::new(host));
        self.settle();
        self.host.clone().ok_or(Errno::EIO)
    }

    pub(super) fn add_seals(&mut self, seals: u32) -> Result<(), Errno> {
        if self.seals & SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        if seals & !0x3f != 0 {
            return Err(Errno::EINVAL);
        }
        if let Some(host) = &self.host {
            seal_host(host, seals)?;
        }
        self.seals |= seals;
        Ok(())
    }

    pub(super) fn seek(&self, offset: u64, hole: bool) -> Result<u64, Errno> {
        if let Some(host) = &self.host {
            let whence = if hole { Whence::SeekHole } else { Whence::SeekData };
            let found = lseek(host.as_fd(), signed(offset)?, whence)?;
            return u64::try_from(found).map_err(|_| Errno::EOVERFLOW);
        }
        let page = offset / PAGE;
        if !hole {
            let next = self.pages.range(page..).next().ok_or(Errno::ENXIO)?;
            let found = next.0.saturating_mul(PAGE).max(offset);
            return if found < self.size { Ok(found) } else { Err(Errno::ENXIO) };
        }
        let mut at = page;
        for (number, _) in self.pages.range(page..) {
            if *number != at {
                break;
            }
            at = at.saturating_add(1);
        }
        Ok(at.saturating_mul(PAGE).max(offset).min(self.size))
    }
}

/// Those seals that keep guests from writing by way of mappings; the others are looked after by the contents' own methods.
fn seal_host(host: &OwnedFd, seals: u32) -> Result<(), Errno> {
    let mut flags = SealFlag::empty();
    if seals & SEAL_WRITE != 0 {
        flags |= SealFlag::F_SEAL_WRITE;
    }
    if seals & SEAL_FUTURE_WRITE != 0 {
        flags |= SealFlag::from_bits_retain(SEAL_FUTURE_WRITE.cast_signed());
    }
    if !flags.is_empty() {
        fcntl(host, FcntlArg::F_ADD_SEALS(flags))?;
    }
    Ok(())
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.shared.uncharge(self.charged);
    }
}
