//! Reading and writing: `read`, `write` and their kin.

use std::sync::Arc;

use libc::{
    SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readv,
    SYS_write, SYS_writev,
};

use super::Entry;
use super::file_args::{Buffer, caller, file, offset, uint, wait};
use super::limits::within_file_size;
use super::sockets;
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
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

/// Bytes that are moved at a time.
const CHUNK: usize = 256 * 1024;

const RWF_NOWAIT: u32 = 8;
const RWF_APPEND: u32 = 16;
/// `RWF_HIPRI`, `RWF_DSYNC`, `RWF_SYNC`, `RWF_NOWAIT`, `RWF_APPEND`.
const RWF_KNOWN: u32 = 0x1f;

/// Where a transfer takes place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
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

fn read_to(call: &mut Call<'_>, file: &Arc<OpenFile>, buffer: &Buffer, at: At, nowait: bool) -> SysResult {
    if !file.flags().readable() {
        return Err(Errno::EBADF.into());
    }
    if let Some(target) = sockets::Target::of(file) {
        return sockets::read(call, &target, buffer.parts(), nowait);
    }
    let (mut done, mut at) = (0u64, at);
    let repeats = file.file().seekable() || file.file().stream();
    loop {
        let left = buffer.length.saturating_sub(done);
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
        let nonblocking = nowait || done > 0 || file.flags().nonblocking();
        if let Some(result) = file.file().read_waiting(call, &mut chunk, nonblocking) {
            let count = usize::try_from(result?).map_err(|_| Errno::EIO)?;
            let bytes = chunk.get(..count).unwrap_or_default();
            let moved = buffer.scatter(call, 0, bytes);
            return if moved < count { Err(Errno::EFAULT.into()) } else { Ok(count as u64) };
        }
        let attempt = |_: &mut Call<'_>| match at {
            At::Offset(offset) => file.read_at(&mut chunk, offset),
            _ => file.read(&mut chunk),
        };
        let result = wait(call, file, Events::IN | Events::RDNORM, nowait || done > 0, attempt);
        let count = match result {
            Ok(count) => count,
            Err(error) => return if done > 0 { Ok(done) } else { Err(error) },
        };
        let moved = buffer.scatter(call, done, chunk.get(..count).unwrap_or_default());
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

fn write_from(call: &mut Call<'_>, file: &Arc<OpenFile>, buffer: &Buffer, at: At, nowait: bool) -> SysResult {
    if !file.flags().writable() {
        return Err(Errno::EBADF.into());
    }
    if let Some(target) = sockets::Target::of(file) {
        return sockets::write(call, &target, buffer.parts(), nowait);
    }
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
    read_to(call, &file, &Buffer::one(address, length)?, At::Position, false)
}

fn write(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    write_from(call, &file, &Buffer::one(address, length)?, At::Position, false)
}

fn readv(call: &mut Call<'_>, [fd, address, count, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    let buffer = Buffer::vector(call, address, count)?;
    read_to(call, &file, &buffer, At::Position, false)
}

fn writev(call: &mut Call<'_>, [fd, address, count, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    let buffer = Buffer::vector(call, address, count)?;
    write_from(call, &file, &buffer, At::Position, false)
}

/// ESPIPE where there are no positions.
fn positional(file: &OpenFile) -> Result<(), Errno> {
    if file.file().seekable() { Ok(()) } else { Err(Errno::ESPIPE) }
}

/// `pwrite` on what was opened with `O_APPEND` appends (`man 2 pwrite`, BUGS).
fn write_place(file: &OpenFile, offset: u64) -> At {
    if file.flags().has(libc::O_APPEND) { At::End } else { At::Offset(offset) }
}

fn pread64(call: &mut Call<'_>, [fd, address, length, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    read_to(call, &file, &Buffer::one(address, length)?, At::Offset(at), false)
}

fn pwrite64(call: &mut Call<'_>, [fd, address, length, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    let place = write_place(&file, at);
    write_from(call, &file, &Buffer::one(address, length)?, place, false)
}

fn preadv(call: &mut Call<'_>, [fd, address, count, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    let buffer = Buffer::vector(call, address, count)?;
    read_to(call, &file, &buffer, At::Offset(at), false)
}

fn pwritev(call: &mut Call<'_>, [fd, address, count, at, ..]: [u64; 6]) -> SysResult {
    let at = offset(at)?;
    let file = file(call, fd)?;
    positional(&file)?;
    let buffer = Buffer::vector(call, address, count)?;
    let place = write_place(&file, at);
    write_from(call, &file, &buffer, place, false)
}

/// The place of `preadv2` and `pwritev2`: -1 stands for the position.
fn place_or_position(file: &OpenFile, at: u64) -> Result<At, Errno> {
    if at == u64::MAX {
        return Ok(At::Position);
    }
    positional(file)?;
    Ok(At::Offset(offset(at)?))
}

fn preadv2(call: &mut Call<'_>, [fd, address, count, at, _, flags]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    let place = place_or_position(&file, at)?;
    let flags = uint(flags);
    if flags & !RWF_KNOWN != 0 || flags & RWF_APPEND != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let buffer = Buffer::vector(call, address, count)?;
    read_to(call, &file, &buffer, place, flags & RWF_NOWAIT != 0)
}

fn pwritev2(call: &mut Call<'_>, [fd, address, count, at, _, flags]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    let mut place = place_or_position(&file, at)?;
    let flags = uint(flags);
    if flags & !RWF_KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let appends = flags & RWF_APPEND != 0 || file.flags().has(libc::O_APPEND);
    if appends && matches!(place, At::Offset(_)) {
        place = At::End;
    }
    let buffer = Buffer::vector(call, address, count)?;
    write_from(call, &file, &buffer, place, flags & RWF_NOWAIT != 0)
}
