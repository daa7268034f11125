//! Reading and writing: `read`, `write` and their kin.

use std::os::fd::AsFd;
use std::sync::Arc;

use libc::{
    SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readv,
    SYS_write, SYS_writev,
};

use super::Entry;
use super::file_args::{Buffer, caller, file, offset, uint, wait};
use super::limits::within_file_size;
use super::{scratch, sockets};
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::events::{self, Events};
use crate::net::SocketFile;
use crate::vfs::{FileKind, OpenFile};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_read, "read", read),
    Entry::full(SYS_write, "write", write),
    Entry::full(SYS_readv, "readv", readv),
    Entry::full(SYS_writev, "writev", writev),
    Entry::full(SYS_pread64, "pread64", pread64),
    Entry::full(SYS_pwrite64, "pwrite64", pwrite64),
    Entry::full(SYS_preadv, "preadv", preadv),
    Entry::full(SYS_pwritev, "pwritev", pwritev),
    Entry::full(SYS_preadv2, "preadv2", preadv2),
    Entry::full(SYS_pwritev2, "pwritev2", pwritev2),
];

/// Bytes that are written at a time.
const CHUNK: usize = 256 * 1024;
/// Bytes that are read at a time: they stay in the processor's cache on their way.
const READ_CHUNK: usize = 64 * 1024;

const RWF_NOWAIT: u32 = 8;
const RWF_APPEND: u32 = 16;
const RWF_NOAPPEND: u32 = 32;
/// `RWF_HIPRI`, `RWF_DSYNC`, `RWF_SYNC`, `RWF_NOWAIT`, `RWF_APPEND`, `RWF_NOAPPEND`.
const RWF_KNOWN: u32 = 0x3f;

/// Where a transfer takes place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// At the position, which it moves.
    Position,
    /// Elsewhere.
    Offset(u64),
    /// At the end.
    End,
}

/// Somebody writes to what nobody reads: EPIPE, and the signal, which not all sockets send.
pub(super) fn broken_pipe(call: &mut Call<'_>, file: &OpenFile, error: SysError) -> SysError {
    let signals = file.downcast::<SocketFile>().is_none_or(SocketFile::has_sigpipe);
    if signals && error == SysError::Errno(Errno::EPIPE) {
        call.task.send_sigpipe();
    }
    error
}

/// What nobody waits for may take the host long: nobody is woken later meanwhile.
fn wake_before(file: &OpenFile) {
    if file.file().queue().is_none() {
        events::may_put_off(false);
    }
}

/// EBADF for what is not open for reading, EINVAL for what has no way to read: before the buffer is looked at (`vfs_read`).
pub(super) fn may_read(file: &OpenFile) -> Result<(), Errno> {
    match file.file().transfers() {
        _ if !file.flags().readable() => Err(Errno::EBADF),
        (false, _) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// The same for writing.
pub(super) fn may_write(file: &OpenFile) -> Result<(), Errno> {
    match file.file().transfers() {
        _ if !file.flags().writable() => Err(Errno::EBADF),
        (_, false) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// EINVAL where bytes would lie beyond what an offset can be (`rw_verify_area`).
pub(super) fn verify_range(file: &OpenFile, at: Option<u64>, length: u64) -> Result<(), Errno> {
    let start = match at {
        Some(offset) => offset,
        None if file.file().seekable() => file.position(),
        None => 0,
    };
    let end = start.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
    end.map(drop).ok_or(Errno::EINVAL)
}

fn verify_place(file: &OpenFile, at: At, length: u64) -> Result<(), Errno> {
    let offset = if let At::Offset(offset) = at { Some(offset) } else { None };
    verify_range(file, offset, length)
}

/// How much of `length` bytes `RLIMIT_FSIZE` lets a write put into a regular file (`generic_write_check_limits`).
fn room_for(call: &Call<'_>, file: &OpenFile, at: At, length: u64) -> Result<u64, Errno> {
    if file.inode().kind() != FileKind::Regular || !file.file().seekable() || length == 0 {
        return Ok(length);
    }
    within_file_size(call, length, || match at {
        At::Offset(offset) => Ok(offset),
        At::Position if !file.flags().has(libc::O_APPEND) => Ok(file.position()),
        _ => file.inode().attributes().map(|attributes| attributes.size),
    })
}

/// Bytes from which on a guest's own thread reads a file of the host: to hand it the descriptor takes longer than to copy fewer bytes twice.
const BY_GUEST: u64 = 32 * 1024;
/// Bytes that it reads at a time: meanwhile nobody gives its stub another descriptor, and nobody else reads at the position.
const BY_GUEST_MOST: u64 = 4 << 20;

/// Reads by the guest's own thread, where that is possible and pays.
fn read_by_guest(call: &mut Call<'_>, file: &OpenFile, buffer: &Buffer, at: At) -> Option<SysResult> {
    let [(address, length)] = *buffer.parts() else { return None };
    if length < BY_GUEST {
        return None;
    }
    let descriptor = file.file().readable_file()?;
    let size = file.inode().attributes().ok()?.size;
    let mut done = 0u64;
    loop {
        let offset = match at {
            At::Offset(offset) => Some(offset.checked_add(done)?),
            _ => None,
        };
        let wanted = length.saturating_sub(done).min(BY_GUEST_MOST);
        let least = if done == 0 { BY_GUEST } else { 1 };
        let mut asked = 0;
        let read = |offset: u64| {
            asked = wanted.min(size.saturating_sub(offset));
            let length = usize::try_from(asked).ok().filter(|_| asked >= least).ok_or(Errno::ENOSYS)?;
            call.thread.read_file(address.saturating_add(done), length, descriptor.as_fd(), offset)
        };
        match file.read_by(offset, read) {
            Ok(count) => done = done.saturating_add(count as u64),
            Err(_) if done > 0 => return Some(Ok(done)),
            Err(Errno::EFAULT) => return Some(Err(Errno::EFAULT.into())),
            // Whatever it is, it is found out again on the other way.
            Err(_) => return None,
        }
        let short = asked < BY_GUEST_MOST || !done.is_multiple_of(BY_GUEST_MOST);
        if short || done >= length || call.task.signal_pending() {
            return Some(Ok(done));
        }
    }
}

pub(super) fn read_to(
    call: &mut Call<'_>,
    file: &Arc<OpenFile>,
    buffer: &Buffer,
    at: At,
    nowait: bool,
) -> SysResult {
    may_read(file)?;
    wake_before(file);
    if let Some(target) = sockets::Target::of(file) {
        return sockets::read(call, &target, buffer.parts(), nowait);
    }
    verify_place(file, at, buffer.length)?;
    if let Some(result) = read_by_guest(call, file, buffer, at) {
        return result;
    }
    let (mut done, mut at) = (0u64, at);
    let repeats = file.file().seekable() || file.file().stream();
    loop {
        let left = buffer.length.saturating_sub(done);
        let mut room = scratch::take(usize::try_from(left).unwrap_or(READ_CHUNK).min(READ_CHUNK));
        let chunk = room.bytes();
        let nonblocking = nowait || done > 0 || file.flags().nonblocking();
        if let Some(result) = file.file().read_waiting(call, chunk, nonblocking) {
            let count = usize::try_from(result?).map_err(|_| Errno::EIO)?;
            let bytes = chunk.get(..count).unwrap_or_default();
            let moved = buffer.scatter(call, 0, bytes);
            return if moved < count { Err(Errno::EFAULT.into()) } else { Ok(count as u64) };
        }
        let attempt = |_: &mut Call<'_>| match at {
            At::Offset(offset) => file.read_at(chunk, offset),
            _ => file.read(chunk),
        };
        let result = wait(call, file, Events::IN | Events::RDNORM, nowait || done > 0, attempt);
        let count = match result {
            Ok(count) => count,
            Err(error) => return if done > 0 { Ok(done) } else { Err(error) },
        };
        let bytes = chunk.get(..count).unwrap_or_default();
        let moved = if done == 0 { buffer.give(call, bytes) } else { buffer.scatter(call, done, bytes) };
        if let (At::Position, Some(rest)) = (at, chunk.get(moved..count).filter(|rest| !rest.is_empty())) {
            file.put_back(rest);
        }
        done = done.saturating_add(moved as u64);
        if let At::Offset(offset) = &mut at {
            *offset = offset.saturating_add(moved as u64);
        }
        if moved < count {
            return if done > 0 { Ok(done) } else { Err(Errno::EFAULT.into()) };
        }
        if count < chunk.len() || done >= buffer.length || !repeats {
            return Ok(done);
        }
    }
}

pub(super) fn write_from(
    call: &mut Call<'_>,
    file: &Arc<OpenFile>,
    buffer: &Buffer,
    at: At,
    nowait: bool,
) -> SysResult {
    may_write(file)?;
    wake_before(file);
    if let Some(target) = sockets::Target::of(file) {
        return sockets::write(call, &target, buffer.parts(), nowait);
    }
    verify_place(file, at, buffer.length)?;
    file.file().before_write(call)?;
    let (mut done, mut at) = (0u64, at);
    let caller = caller(call);
    loop {
        let most = match room_for(call, file, at, buffer.length.saturating_sub(done)) {
            Ok(room) => usize::try_from(room).unwrap_or(CHUNK).min(CHUNK),
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error.into()),
        };
        let chunk = buffer.gather(call, done, most);
        if chunk.is_empty() && done < buffer.length {
            return if done > 0 { Ok(done) } else { Err(Errno::EFAULT.into()) };
        }
        let attempt = |_: &mut Call<'_>| match at {
            At::Position => file.write(&caller, &chunk),
            At::Offset(offset) => file.write_at(&caller, &chunk, offset),
            At::End => file.append(&caller, &chunk).map(|(count, _)| count),
        };
        let count = match wait(call, file, Events::OUT | Events::WRNORM, nowait, attempt) {
            Ok(count) => count,
            Err(error) => {
                let error = broken_pipe(call, file, error);
                return if done > 0 { Ok(done) } else { Err(error) };
            }
        };
        done = done.saturating_add(count as u64);
        if let At::Offset(offset) = &mut at {
            *offset = offset.saturating_add(count as u64);
        }
        let short = count < most.min(chunk.len()) && !file.file().stream();
        let whole = file.file().seekable() || file.file().stream();
        if done >= buffer.length || short || !whole || count == 0 {
            return Ok(done);
        }
    }
}

fn read(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    may_read(&file)?;
    read_to(call, &file, &Buffer::one(address, length)?, At::Position, false)
}

fn write(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    may_write(&file)?;
    write_from(call, &file, &Buffer::one(address, length)?, At::Position, false)
}

/// The buffer of a vector. `None` for one of no bytes: nothing more is asked of the file then, and flags that it lacks are not found out.
fn vector_buffer(
    call: &Call<'_>,
    file: &OpenFile,
    vector: (u64, u64),
    at: At,
    flags: u32,
) -> Result<Option<Buffer>, Errno> {
    let buffer = Buffer::vector(call, vector.0, vector.1)?;
    if buffer.length == 0 {
        return Ok(None);
    }
    verify_place(file, at, buffer.length)?;
    check_flags(file, flags)?;
    Ok(Some(buffer))
}

/// `vfs_readv`.
fn read_vector(
    call: &mut Call<'_>,
    file: &Arc<OpenFile>,
    vector: (u64, u64),
    at: At,
    flags: u32,
) -> SysResult {
    may_read(file)?;
    let Some(buffer) = vector_buffer(call, file, vector, at, flags)? else { return Ok(0) };
    read_to(call, file, &buffer, at, flags & RWF_NOWAIT != 0)
}

/// `vfs_writev`.
fn write_vector(
    call: &mut Call<'_>,
    file: &Arc<OpenFile>,
    vector: (u64, u64),
    at: At,
    flags: u32,
) -> SysResult {
    may_write(file)?;
    let Some(buffer) = vector_buffer(call, file, vector, at, flags)? else { return Ok(0) };
    write_from(call, file, &buffer, at, flags & RWF_NOWAIT != 0)
}

/// EOPNOTSUPP for flags that are not known, and for `RWF_NOWAIT` where the bytes of a file may have to be waited for
/// (`kiocb_set_rw_flags`).
pub(super) fn check_flags(file: &OpenFile, flags: u32) -> Result<(), Errno> {
    let regular = file.inode().kind() == FileKind::Regular && file.file().seekable();
    if flags & !RWF_KNOWN != 0 || flags & RWF_NOWAIT != 0 && regular {
        return Err(Errno::EOPNOTSUPP);
    }
    if flags & (RWF_APPEND | RWF_NOAPPEND) == RWF_APPEND | RWF_NOAPPEND { Err(Errno::EINVAL) } else { Ok(()) }
}

fn readv(call: &mut Call<'_>, [fd, address, count, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    read_vector(call, &file, (address, count), At::Position, 0)
}

fn writev(call: &mut Call<'_>, [fd, address, count, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    write_vector(call, &file, (address, count), At::Position, 0)
}

/// ESPIPE where there are no positions.
fn positional(file: &OpenFile) -> Result<(), Errno> {
    if file.file().seekable() { Ok(()) } else { Err(Errno::ESPIPE) }
}

/// `pwrite` on what was opened with `O_APPEND` appends (`man 2 pwrite`, BUGS).
pub(super) fn write_place(file: &OpenFile, offset: u64) -> At {
    if file.flags().has(libc::O_APPEND) { At::End } else { At::Offset(offset) }
}

fn pread64(call: &mut Call<'_>, [fd, address, length, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    may_read(&file)?;
    read_to(call, &file, &Buffer::one(address, length)?, At::Offset(at), false)
}

fn pwrite64(call: &mut Call<'_>, [fd, address, length, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    may_write(&file)?;
    let buffer = Buffer::one(address, length)?;
    verify_range(&file, Some(at), buffer.length)?;
    write_from(call, &file, &buffer, write_place(&file, at), false)
}

fn preadv(call: &mut Call<'_>, [fd, address, count, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    read_vector(call, &file, (address, count), At::Offset(at), 0)
}

fn pwritev(call: &mut Call<'_>, [fd, address, count, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    write_vector(call, &file, (address, count), write_place(&file, at), 0)
}

/// The file and the place of `preadv2` and `pwritev2`: -1 stands for the position.
fn file_and_place(call: &Call<'_>, fd: u64, at: u64) -> Result<(Arc<OpenFile>, At), Errno> {
    if at == u64::MAX {
        return Ok((file(call, fd)?, At::Position));
    }
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    Ok((file, At::Offset(at)))
}

/// `RWF_APPEND` means nothing here.
fn preadv2(call: &mut Call<'_>, [fd, address, count, at, _, flags]: [u64; 6]) -> SysResult {
    let (file, place) = file_and_place(call, fd, at)?;
    read_vector(call, &file, (address, count), place, uint(flags))
}

fn pwritev2(call: &mut Call<'_>, [fd, address, count, at, _, flags]: [u64; 6]) -> SysResult {
    let (file, mut place) = file_and_place(call, fd, at)?;
    let flags = uint(flags);
    let appends = flags & RWF_APPEND != 0 || file.flags().has(libc::O_APPEND) && flags & RWF_NOAPPEND == 0;
    if appends && matches!(place, At::Offset(_)) {
        place = At::End;
    }
    write_vector(call, &file, (address, count), place, flags)
}
