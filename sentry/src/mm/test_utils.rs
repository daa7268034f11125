//! A thread that carries changes of memory out on the test's own process, within a scratch region, or only notes them.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};

use crate::error::Errno;
use crate::platform::{Interrupt, Memory, MemoryCall, Regs, RemoteMemory, Thread, Trap};
use crate::testing::FlatThread;

/// Notes changes of memory; where `host` is set, makes them in this process.
pub(crate) struct FakeThread {
    flat: FlatThread,
    pub(crate) calls: Vec<String>,
    /// Errors to give at the next calls, before any is carried out.
    pub(crate) failures: Vec<Errno>,
    host: bool,
}

impl FakeThread {
    pub(crate) fn noting() -> Self {
        Self { flat: FlatThread::new(0), calls: Vec::new(), failures: Vec::new(), host: false }
    }

    pub(crate) fn on_host() -> Self {
        Self { host: true, ..Self::noting() }
    }
}

fn host(call: &MemoryCall<'_>) -> Result<u64, Errno> {
    let pointer = |address: u64| address as *mut libc::c_void;
    // SAFETY: tests use addresses within a region that they have reserved and that holds no object of this process.
    let result = unsafe {
        match *call {
            MemoryCall::Map { address, length, protection, flags, file } => libc::mmap(
                pointer(address),
                length as usize,
                protection,
                flags | libc::MAP_FIXED | if file.is_none() { libc::MAP_ANONYMOUS } else { 0 },
                file.map_or(-1, |(fd, _)| fd.as_raw_fd()),
                file.map_or(0, |(_, offset)| offset.cast_signed()),
            ) as i64,
            MemoryCall::Unmap { address, length } => {
                i64::from(libc::munmap(pointer(address), length as usize))
            }
            MemoryCall::Protect { address, length, protection } => {
                i64::from(libc::mprotect(pointer(address), length as usize, protection))
            }
            MemoryCall::Move { address, length, new_address, new_length, keep } => {
                let flags = if address == new_address {
                    0
                } else {
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | if keep { libc::MREMAP_DONTUNMAP } else { 0 }
                };
                libc::mremap(
                    pointer(address),
                    length as usize,
                    new_length as usize,
                    flags,
                    pointer(new_address),
                ) as i64
            }
            MemoryCall::Advise { address, length, advice } => {
                i64::from(libc::madvise(pointer(address), length as usize, advice))
            }
        }
    };
    if result == -1 { Err(Errno::last()) } else { Ok(result.cast_unsigned()) }
}

impl Memory for FakeThread {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        if !self.host {
            return self.flat.read(address, to);
        }
        let remote = RemoteIoVec { base: address as usize, len: to.len() };
        process_vm_readv(nix::unistd::getpid(), &mut [IoSliceMut::new(to)], &[remote]).unwrap_or(0)
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        if !self.host {
            return self.flat.write(address, from);
        }
        let remote = RemoteIoVec { base: address as usize, len: from.len() };
        process_vm_writev(nix::unistd::getpid(), &[IoSlice::new(from)], &[remote]).unwrap_or(0)
    }
}

impl Thread for FakeThread {
    fn resume(&mut self) -> Trap {
        self.flat.resume()
    }

    fn regs(&mut self) -> &mut Regs {
        self.flat.regs()
    }

    fn fs_base(&mut self) -> &mut u64 {
        self.flat.fs_base()
    }

    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        self.flat.vector_state()
    }

    fn set_vector_state(&mut self, state: &[u8]) -> Result<(), Errno> {
        self.flat.set_vector_state(state)
    }

    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        self.calls.push(format!("{call:x?}"));
        if let Some(errno) = self.failures.pop() {
            return Err(errno);
        }
        if self.host { host(call) } else { self.flat.change_memory(call) }
    }

    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        self.flat.compare_exchange(address, expected, new)
    }

    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        self.flat.fork()
    }

    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        self.flat.spawn()
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.flat.interrupt()
    }

    fn remote(&self) -> Arc<dyn RemoteMemory> {
        self.flat.remote()
    }
}
