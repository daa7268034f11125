//! `process_vm_readv` and `process_vm_writev` (`mm/process_vm_access.c`).

use std::sync::Arc;

use super::Entry;
use super::memory::check_user;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::platform::RemoteMemory;

/// Most parts of one vector (`UIO_MAXIOV`).
const MAX_PARTS: u64 = 1024;
/// Most bytes of one call (`MAX_RW_COUNT`).
const MAX_BYTES: u64 = 0x7fff_f000;
/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_process_vm_readv, "process_vm_readv", process_vm_readv),
    Entry::full(libc::SYS_process_vm_writev, "process_vm_writev", process_vm_writev),
];

/// A vector of addresses and lengths, walked from its start.
struct Parts {
    parts: Vec<(u64, u64)>,
    next: usize,
}

impl Parts {
    fn read(call: &Call<'_>, address: u64, count: u64, check: bool) -> Result<Self, Errno> {
        if count > MAX_PARTS {
            return Err(Errno::EINVAL);
        }
        let mut bytes = vec![0; count as usize * 16];
        call.read(address, &mut bytes)?;
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let mut total: u64 = 0;
        let mut parts = Vec::with_capacity(count as usize);
        for part in bytes.chunks_exact(16) {
            let (address, length) = (number(&part[..8]), number(&part[8..]));
            if length > i64::MAX.unsigned_abs() {
                return Err(Errno::EINVAL);
            }
            if check {
                check_user(address, length)?;
            }
            let length = length.min(MAX_BYTES - total);
            total += length;
            parts.push((address, length));
        }
        Ok(Self { parts, next: 0 })
    }

    /// The address from which bytes come next, and how many.
    fn current(&mut self) -> Option<(u64, u64)> {
        while let Some(part) = self.parts.get(self.next) {
            if part.1 > 0 {
                return Some(*part);
            }
            self.next += 1;
        }
        None
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(part) = self.parts.get_mut(self.next) {
            part.0 = part.0.saturating_add(bytes);
            part.1 = part.1.saturating_sub(bytes);
        }
    }
}

fn other_memory(call: &Call<'_>, pid: i32) -> Result<Arc<dyn RemoteMemory>, Errno> {
    if pid == call.task.own_number() {
        return Ok(call.thread.remote());
    }
    let other = call.task.find(pid).ok_or(Errno::ESRCH)?;
    // That of before an `execve` where who it is changes while it is asked.
    let space = other.space();
    let same_space = space.id() == call.task.space().id();
    if !same_space && !call.task.may_access(&other) {
        return Err(Errno::EPERM);
    }
    if same_space {
        return Ok(call.thread.remote());
    }
    space.memory().cloned().ok_or(Errno::ESRCH)
}

/// Copies between the caller and another until one vector ends or something cannot be had.
fn transfer(
    call: &Call<'_>,
    other: &dyn RemoteMemory,
    local: &mut Parts,
    remote: &mut Parts,
    write: bool,
) -> u64 {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while let (Some((here, here_left)), Some((there, there_left))) = (local.current(), remote.current()) {
        let want = here_left.min(there_left).min(CHUNK as u64) as usize;
        let part = &mut buffer[..want];
        let moved = if write {
            let got = call.thread.read(here, part);
            other.write(there, &part[..got])
        } else {
            let got = other.read(there, part);
            call.thread.write(here, &part[..got])
        };
        done += moved as u64;
        local.advance(moved as u64);
        remote.advance(moved as u64);
        if moved < want {
            break;
        }
    }
    done
}

fn process_vm(
    call: &mut Call<'_>,
    [pid, local, locals, remote, remotes, flags]: [u64; 6],
    write: bool,
) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut local = Parts::read(call, local, locals, true)?;
    let mut remote = Parts::read(call, remote, remotes, false)?;
    if local.current().is_none() || remote.current().is_none() {
        return Ok(0);
    }
    let other = other_memory(call, (pid as u32).cast_signed())?;
    match transfer(call, other.as_ref(), &mut local, &mut remote, write) {
        0 => Err(Errno::EFAULT.into()),
        done => Ok(done),
    }
}

fn process_vm_readv(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    process_vm(call, arguments, false)
}

fn process_vm_writev(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    process_vm(call, arguments, true)
}
