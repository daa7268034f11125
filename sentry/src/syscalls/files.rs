//! Descriptors: opening, closing, duplicating, positions.

use std::sync::Arc;

use libc::{
    SYS_close, SYS_close_range, SYS_creat, SYS_dup, SYS_dup2, SYS_dup3, SYS_lseek, SYS_open, SYS_openat,
    SYS_openat2,
};

use super::Entry;
use super::file_args::{CWD, Look, caller, file, int, uint, walk_of};
use super::leases;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::events::Events;
use crate::platform::generation;
use crate::vfs::open::{Opening, begin};
use crate::vfs::pipe::PipeFile;
use crate::vfs::{Flags, Resolve, SeekTo};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_open, "open", open),
    Entry::full(SYS_openat, "openat", openat),
    Entry::full(SYS_openat2, "openat2", openat2),
    Entry::full(SYS_creat, "creat", creat),
    Entry::full(SYS_close, "close", close),
    Entry::full(SYS_close_range, "close_range", close_range),
    Entry::full(SYS_lseek, "lseek", lseek),
    Entry::full(SYS_dup, "dup", dup),
    Entry::full(SYS_dup2, "dup2", dup2),
    Entry::full(SYS_dup3, "dup3", dup3),
];

/// Flags that `openat2` takes (`VALID_OPEN_FLAGS`).
const OPEN_FLAGS: i32 = libc::O_RDONLY
    | libc::O_WRONLY
    | libc::O_RDWR
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_ASYNC
    | libc::O_DIRECT
    | 0o100_000
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_CLOEXEC
    | libc::O_PATH
    | libc::O_TMPFILE;

/// `__O_SYNC`, which is `O_SYNC` without `O_DSYNC`.
const SYNC: u32 = (libc::O_SYNC & !libc::O_DSYNC).cast_unsigned();

/// Flags of an `open` that may change something, at once or by what may be written later.
const CHANGING: u32 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).cast_unsigned();

fn do_open(call: &mut Call<'_>, dirfd: u64, path: u64, flags: u32, mode: u32, resolve: Resolve) -> SysResult {
    let result = open_path(call, dirfd, path, flags, mode, resolve);
    if flags & CHANGING != 0 {
        generation::changed();
    }
    result
}

fn open_path(
    call: &mut Call<'_>,
    dirfd: u64,
    path: u64,
    flags: u32,
    mode: u32,
    resolve: Resolve,
) -> SysResult {
    let look = Look::begin();
    let path = call.read_path(path)?;
    let caller = caller(call);
    let flags = if flags & libc::O_PATH.cast_unsigned() != 0 {
        let kept = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        Flags(flags & kept.cast_unsigned())
    } else {
        // Who waits for all that is known of a file waits for its contents (`build_open_flags`).
        Flags(if flags & SYNC != 0 { flags | libc::O_DSYNC.cast_unsigned() } else { flags })
    };
    if resolve.contains(Resolve::CACHED) {
        return Err(Errno::EAGAIN.into());
    }
    let mut walk = walk_of(call, &caller, dirfd, &path, resolve)?;
    let opened = match begin(&caller, &mut walk, flags, mode) {
        Err(errno) => {
            if flags.0 & CHANGING == 0 {
                look.walk_failed(call, dirfd, &walk, errno);
            }
            return Err(errno.into());
        }
        Ok(Opening::Done(opened)) => opened,
        Ok(Opening::Ready(ready)) => {
            leases::wait(call, ready.inode(), flags)?;
            ready.finish(&caller)?
        }
    };
    if let Some(pipe) = opened.downcast::<PipeFile>()
        && !flags.nonblocking()
        && let Some(queue) = opened.file().queue()
    {
        call.block(&[(queue, Events::CHANGED)], None, |_| pipe.met().then_some(()))?;
    }
    let fd = call.task.files().insert(opened, flags.has(libc::O_CLOEXEC))?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn known(flags: u64) -> u32 {
    uint(flags) & OPEN_FLAGS.cast_unsigned()
}

fn open(call: &mut Call<'_>, [path, flags, mode, ..]: [u64; 6]) -> SysResult {
    do_open(call, CWD, path, known(flags), uint(mode) & 0o7777, Resolve::empty())
}

fn openat(call: &mut Call<'_>, [dirfd, path, flags, mode, ..]: [u64; 6]) -> SysResult {
    do_open(call, dirfd, path, known(flags), uint(mode) & 0o7777, Resolve::empty())
}

fn creat(call: &mut Call<'_>, [path, mode, ..]: [u64; 6]) -> SysResult {
    let flags = (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC).cast_unsigned();
    do_open(call, CWD, path, flags, uint(mode) & 0o7777, Resolve::empty())
}

fn openat2(call: &mut Call<'_>, [dirfd, path, how, size, ..]: [u64; 6]) -> SysResult {
    const KNOWN_SIZE: u64 = 24;
    if size < KNOWN_SIZE {
        return Err(Errno::EINVAL.into());
    }
    let extra = usize::try_from(size - KNOWN_SIZE).ok().filter(|extra| *extra <= 4096 - 24);
    let mut rest = vec![0; extra.ok_or(Errno::E2BIG)?];
    call.read(how.wrapping_add(KNOWN_SIZE), &mut rest)?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG.into());
    }
    let [flags, mode, resolve] =
        [call.read_u64(how)?, call.read_u64(how.wrapping_add(8))?, call.read_u64(how.wrapping_add(16))?];
    let resolve = Resolve::from_bits(resolve).ok_or(Errno::EINVAL)?;
    let creates = flags & (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u64 != 0;
    let unknown = flags & !(OPEN_FLAGS as u64) != 0;
    if unknown || mode & !0o7777 != 0 || (!creates && mode != 0) {
        return Err(Errno::EINVAL.into());
    }
    if resolve.contains(Resolve::BENEATH | Resolve::IN_ROOT) {
        return Err(Errno::EINVAL.into());
    }
    if flags & libc::O_PATH as u64 != 0 {
        let kept = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        if flags & !(kept as u64) != 0 {
            return Err(Errno::EINVAL.into());
        }
    }
    do_open(call, dirfd, path, uint(flags), uint(mode), resolve)
}

fn close(call: &mut Call<'_>, [fd, ..]: [u64; 6]) -> SysResult {
    call.task.files().close(int(fd))?;
    Ok(0)
}

fn close_range(call: &mut Call<'_>, [first, last, flags, ..]: [u64; 6]) -> SysResult {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    let (first, last, flags) = (uint(first), uint(last), uint(flags));
    if flags & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL.into());
    }
    if flags & UNSHARE != 0 && Arc::strong_count(&call.task.files()) > 2 {
        let own = call.task.files().copy();
        drop(call.task.set_files(Arc::new(own)));
    }
    call.task.files().close_range(first, last, flags & CLOEXEC != 0);
    Ok(0)
}

fn lseek(call: &mut Call<'_>, [fd, offset, whence, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    let to = match int(whence) {
        libc::SEEK_SET => SeekTo::Start,
        libc::SEEK_CUR => SeekTo::Current,
        libc::SEEK_END => SeekTo::End,
        libc::SEEK_DATA => SeekTo::Data,
        libc::SEEK_HOLE => SeekTo::Hole,
        _ => return Err(Errno::EINVAL.into()),
    };
    Ok(file.seek(to, offset.cast_signed())?)
}

fn dup(call: &mut Call<'_>, [fd, ..]: [u64; 6]) -> SysResult {
    let files = call.task.files();
    let new = files.insert(files.find(int(fd))?, false)?;
    Ok(u64::from(new.cast_unsigned()))
}

fn dup2(call: &mut Call<'_>, [old, new, ..]: [u64; 6]) -> SysResult {
    let files = call.task.files();
    let file = files.find(int(old))?;
    if int(old) != int(new) {
        files.replace(int(new), file, false)?;
    }
    Ok(u64::from(uint(new)))
}

fn dup3(call: &mut Call<'_>, [old, new, flags, ..]: [u64; 6]) -> SysResult {
    if int(flags) & !libc::O_CLOEXEC != 0 || int(old) == int(new) {
        return Err(Errno::EINVAL.into());
    }
    let files = call.task.files();
    let file = files.find(int(old))?;
    files.replace(int(new), file, int(flags) & libc::O_CLOEXEC != 0)?;
    Ok(u64::from(uint(new)))
}
