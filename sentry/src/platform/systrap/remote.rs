//! The memory of a stub, reached through the host's kernel instead of the stub's own hand (`man 2 process_vm_readv`).

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::layout::{CODE, END};
use crate::error::Errno;
use crate::platform::{Memory, RemoteMemory};

const PAGE: usize = 4096;

/// A stub, whatever its platform.
pub(in crate::platform) trait Process: Send + Sync {
    /// The host's number of it.
    fn pid(&self) -> Pid;

    /// Whether it has ended.
    fn is_dead(&self) -> bool;

    /// What the platform keeps about its memory and in it, which `memory` reads ([`super::kept`]).
    fn kept(&self, memory: &StubMemory<Self>) -> Result<Vec<u8>, Errno>
    where
        Self: Sized,
    {
        let _ = memory;
        Ok(Vec::new())
    }
}

/// A stub's memory, without what is the stub's own.
pub(in crate::platform) struct StubMemory<P>(pub(in crate::platform) Arc<P>);

/// A range below `end` as one part: Linux copies page by page and tells how far it came, though its manual page promises that for whole parts
/// only; so where it stops short, [`pages`] finds out where exactly.
fn whole(address: u64, length: usize, end: u64) -> Option<RemoteIoVec> {
    let room = usize::try_from(end.saturating_sub(address)).unwrap_or(0);
    let len = length.min(room);
    let base = usize::try_from(address).ok()?;
    (len > 0).then_some(RemoteIoVec { base, len })
}

/// The parts of a range below `end` that lie in one page each, so that a copy stops exactly before the first page that is not there.
fn pages(address: u64, length: usize, end: u64) -> Vec<RemoteIoVec> {
    let Ok(mut base) = usize::try_from(address) else { return Vec::new() };
    let room = usize::try_from(end.saturating_sub(address)).unwrap_or(0);
    let mut left = length.min(room);
    let mut parts = Vec::new();
    while left > 0 {
        let len = (PAGE - base % PAGE).min(left);
        parts.push(RemoteIoVec { base, len });
        base += len;
        left -= len;
    }
    parts
}

/// A word of a process, wherever it lies.
pub(in crate::platform) fn word(process: Pid, address: u64) -> Option<u64> {
    let part = RemoteIoVec { base: usize::try_from(address).ok()?, len: 8 };
    let mut bytes = [0; 8];
    let got = process_vm_readv(process, &mut [IoSliceMut::new(&mut bytes)], &[part]).ok()?;
    (got == bytes.len()).then(|| u64::from_le_bytes(bytes))
}

/// Most parts of one call (`UIO_MAXIOV`).
const PARTS: usize = 1024;

impl<P: Process> Memory for StubMemory<P> {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        self.read_below(CODE, address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        self.write_below(CODE, address, from)
    }
}

impl<P: Process> StubMemory<P> {
    /// As [`Memory::read`], of what is the stub's own.
    pub(in crate::platform) fn read_own(&self, address: u64, to: &mut [u8]) -> usize {
        self.read_below(END, address, to)
    }

    /// As [`Memory::write`], to what is the stub's own.
    pub(in crate::platform) fn write_own(&self, address: u64, from: &[u8]) -> usize {
        self.write_below(END, address, from)
    }

    fn read_below(&self, end: u64, address: u64, to: &mut [u8]) -> usize {
        if self.0.is_dead() {
            return 0;
        }
        let Some(part) = whole(address, to.len(), end) else { return 0 };
        let got = process_vm_readv(self.0.pid(), &mut [IoSliceMut::new(&mut to[..part.len])], &[part]);
        let mut done = got.unwrap_or(0).min(part.len);
        if done == part.len {
            return done;
        }
        let length = to.len() - done;
        for parts in pages(address + done as u64, length, end).chunks(PARTS) {
            let want: usize = parts.iter().map(|part| part.len).sum();
            if self.0.is_dead() {
                break;
            }
            let local = &mut [IoSliceMut::new(&mut to[done..done + want])];
            let got = process_vm_readv(self.0.pid(), local, parts).unwrap_or(0);
            done += got.min(want);
            if got < want {
                break;
            }
        }
        done
    }

    fn write_below(&self, end: u64, address: u64, from: &[u8]) -> usize {
        if self.0.is_dead() {
            return 0;
        }
        let Some(part) = whole(address, from.len(), end) else { return 0 };
        let got = process_vm_writev(self.0.pid(), &[IoSlice::new(&from[..part.len])], &[part]);
        let mut done = got.unwrap_or(0).min(part.len);
        if done == part.len {
            return done;
        }
        let length = from.len() - done;
        for parts in pages(address + done as u64, length, end).chunks(PARTS) {
            let want: usize = parts.iter().map(|part| part.len).sum();
            if self.0.is_dead() {
                break;
            }
            let local = [IoSlice::new(&from[done..done + want])];
            let got = process_vm_writev(self.0.pid(), &local, parts).unwrap_or(0);
            done += got.min(want);
            if got < want {
                break;
            }
        }
        done
    }
}

impl<P: Process> RemoteMemory for StubMemory<P> {
    fn resident(&self) -> Option<(u64, u64)> {
        if self.0.is_dead() {
            return None;
        }
        let text = crate::outside::memory_of(self.0.pid())?;
        let mut pages = text.split(' ').skip(1).map(|word| word.trim().parse::<u64>().ok());
        let mut bytes = || pages.next().flatten().map(|pages| pages.saturating_mul(PAGE as u64));
        Some((bytes()?, bytes()?))
    }

    fn own_pages(&self, range: std::ops::Range<u64>) -> Result<Vec<std::ops::Range<u64>>, Errno> {
        if self.0.is_dead() {
            return Err(Errno::EFAULT);
        }
        crate::outside::own_pages(self.0.pid(), range.start..range.end.min(CODE))
    }

    fn read_protected(&self, address: u64, to: &mut [u8]) -> usize {
        let done = self.read(address, to);
        if done == to.len() || self.0.is_dead() {
            return done;
        }
        let end = usize::try_from(CODE.saturating_sub(address)).unwrap_or(0).min(to.len());
        let to = to.get_mut(..end).unwrap_or_default();
        crate::outside::read_memory(self.0.pid(), address, to).unwrap_or(0)
    }

    fn kept(&self) -> Result<Vec<u8>, Errno> {
        if self.0.is_dead() {
            return Err(Errno::EFAULT);
        }
        self.0.kept(self)
    }
}
