//! The memory of a stub, reached through the host's kernel instead of the stub's own hand (`man 2 process_vm_readv`).

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::layout::CODE;
use super::stub::Stub;
use crate::platform::{Memory, RemoteMemory};

const PAGE: usize = 4096;

/// A stub's memory, without what is the stub's own.
pub(super) struct StubMemory(pub(super) Arc<Stub>);

/// The parts of a range that lie in one page each, so that a copy stops exactly before the first page that is not there.
fn pages(address: u64, length: usize) -> Vec<RemoteIoVec> {
    let Ok(mut base) = usize::try_from(address) else { return Vec::new() };
    let room = usize::try_from(CODE.saturating_sub(address)).unwrap_or(0);
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
pub(super) fn word(process: Pid, address: u64) -> Option<u64> {
    let part = RemoteIoVec { base: usize::try_from(address).ok()?, len: 8 };
    let mut bytes = [0; 8];
    let got = process_vm_readv(process, &mut [IoSliceMut::new(&mut bytes)], &[part]).ok()?;
    (got == bytes.len()).then(|| u64::from_le_bytes(bytes))
}

/// Most parts of one call (`UIO_MAXIOV`).
const PARTS: usize = 1024;

impl Memory for StubMemory {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        for parts in pages(address, to.len()).chunks(PARTS) {
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

    fn write(&self, address: u64, from: &[u8]) -> usize {
        let mut done = 0;
        for parts in pages(address, from.len()).chunks(PARTS) {
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

impl RemoteMemory for StubMemory {
    fn resident(&self) -> Option<(u64, u64)> {
        if self.0.is_dead() {
            return None;
        }
        let text = crate::outside::memory_of(self.0.pid())?;
        let mut pages = text.split(' ').skip(1).map(|word| word.trim().parse::<u64>().ok());
        let mut bytes = || pages.next().flatten().map(|pages| pages.saturating_mul(PAGE as u64));
        Some((bytes()?, bytes()?))
    }
}
