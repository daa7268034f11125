//! Arguments that calls on files have in common: descriptors, paths, buffers, moments; and waiting for a file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::{Call, Unready};
use crate::error::{Errno, SysError};
use crate::events::Events;
use crate::mm::TASK_SIZE;
use crate::platform::generation::{self, Mark};
use crate::vfs::{
    AttributeChange, Caller, FileKind, Inode, OpenFile, Place, Resolve, Timestamp, Walk, inotify,
};

/// Bytes that one call moves at most (`MAX_RW_COUNT`).
pub(super) const COUNT_MAX: u64 = 0x7fff_f000;
/// Parts of a buffer (`UIO_MAXIOV`).
pub(super) const PARTS_MAX: u64 = 1024;

/// An `int`.
pub(super) fn int(argument: u64) -> i32 {
    (argument & 0xffff_ffff) as u32 as i32
}

/// An `unsigned int`.
pub(super) fn uint(argument: u64) -> u32 {
    (argument & 0xffff_ffff) as u32
}

/// A signed offset that must not be negative.
pub(super) fn offset(argument: u64) -> Result<u64, Errno> {
    if argument.cast_signed() < 0 { Err(Errno::EINVAL) } else { Ok(argument) }
}

/// Who calls.
pub(super) fn caller(call: &Call<'_>) -> Caller {
    Caller::of(call.task)
}

/// An open file that is no `O_PATH`.
pub(super) fn file(call: &Call<'_>, fd: u64) -> Result<Arc<OpenFile>, Errno> {
    call.task.files().get(int(fd))
}

/// The place that a `dirfd` stands for.
pub(super) fn start(call: &Call<'_>, dirfd: i32) -> Result<Place, Errno> {
    if dirfd == libc::AT_FDCWD {
        return Ok(call.task.fs().cwd());
    }
    call.task.files().find(dirfd)?.place().cloned().ok_or(Errno::ENOTDIR)
}

/// A walk along a path that has been read.
pub(super) fn walk_of<'a>(
    call: &Call<'_>,
    caller: &'a Caller,
    dirfd: u64,
    path: &[u8],
    resolve: Resolve,
) -> Result<Walk<'a>, Errno> {
    let root = call.task.fs().root();
    let absolute = path.first() == Some(&b'/');
    let scoped = resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT | Resolve::NO_XDEV);
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let start = if absolute && !scoped { root.clone() } else { start(call, int(dirfd))? };
    Walk::new(caller, &root, &start, path, resolve)
}

/// A walk along a path of the guest's.
pub(super) fn walk<'a>(
    call: &Call<'_>,
    caller: &'a Caller,
    dirfd: u64,
    path: u64,
) -> Result<Walk<'a>, Errno> {
    walk_of(call, caller, dirfd, &call.read_path(path)?, Resolve::empty())
}

/// `AT_FDCWD` as an argument.
pub(super) const CWD: u64 = libc::AT_FDCWD as u64;

/// A file that a call is about.
pub(super) struct Target {
    /// Its name, if it has one.
    pub(super) place: Option<Place>,
    /// The file.
    pub(super) inode: Arc<dyn Inode>,
}

impl Target {
    fn of_place(place: Place) -> Self {
        let inode = Arc::clone(place.dentry.inode());
        Self { place: Some(place), inode }
    }

    /// Of an open file.
    pub(super) fn of_file(file: &OpenFile) -> Self {
        Self { place: file.place().cloned(), inode: Arc::clone(file.inode()) }
    }

    /// Changes attributes and tells who watches.
    pub(super) fn change(&self, change: &AttributeChange) -> Result<(), Errno> {
        self.inode.change(change)?;
        self.tell(inotify::attributes_changed(change));
        Ok(())
    }

    /// Tells who watches that something of it changed.
    pub(super) fn tell(&self, what: u32) {
        match &self.place {
            Some(place) => inotify::changed(&place.dentry, what),
            None => inotify::only_changed(&self.inode, what),
        }
    }

    /// EROFS where the mount allows no changes.
    pub(super) fn writable(&self) -> Result<(), Errno> {
        self.place.as_ref().map_or(Ok(()), Place::writable)
    }
}

/// The file that `dirfd`, `path` and flags (`AT_EMPTY_PATH`, `AT_SYMLINK_NOFOLLOW`) stand for.
pub(super) fn target(
    call: &Call<'_>,
    caller: &Caller,
    dirfd: u64,
    path: u64,
    flags: i32,
) -> Result<Target, Errno> {
    reach(call, caller, (dirfd, path, flags), &mut false)
}

/// As [`target`]; whether all of the way was steady ([`Inode::steady`]).
fn reach(
    call: &Call<'_>,
    caller: &Caller,
    (dirfd, path, flags): (u64, u64, i32),
    steady: &mut bool,
) -> Result<Target, Errno> {
    let empty = flags & libc::AT_EMPTY_PATH != 0;
    let path = if empty && path == 0 { Vec::new() } else { call.read_path(path)? };
    if path.is_empty() && empty {
        if int(dirfd) == libc::AT_FDCWD {
            return Ok(Target::of_place(call.task.fs().cwd()));
        }
        return Ok(Target::of_file(&*call.task.files().find(int(dirfd))?));
    }
    let mut walk = walk_of(call, caller, dirfd, &path, Resolve::empty())?;
    let place = walk.finish(flags & libc::AT_SYMLINK_NOFOLLOW == 0);
    *steady = walk.steady;
    Ok(Target::of_place(place?))
}

/// A look at a path by a call that changes nothing: what comes of it can be kept ([`Thread::remember`](crate::platform::Thread::remember)).
pub(super) struct Look {
    mark: Mark,
    steady: bool,
}

impl Look {
    /// Begins one, before anything is looked at.
    pub(super) fn begin() -> Self {
        Self { mark: generation::mark(), steady: false }
    }

    /// As [`target`]. That there is nothing of that name is kept.
    pub(super) fn target(
        &mut self,
        call: &mut Call<'_>,
        caller: &Caller,
        (dirfd, path, flags): (u64, u64, i32),
    ) -> Result<Target, Errno> {
        let mut steady = false;
        let found = reach(call, caller, (dirfd, path, flags), &mut steady);
        // What other descriptors stand for changes without a trace.
        self.steady = steady && int(dirfd) == libc::AT_FDCWD;
        match &found {
            Ok(target) => {
                use FileKind::{Folder, Regular, Symlink};
                let plain = matches!(target.inode.kind(), Regular | Folder | Symlink);
                self.steady &= plain && target.inode.steady();
            }
            Err(errno) => self.nothing(call, *errno),
        }
        found
    }

    /// Keeps that a walk did not find what it looked for.
    pub(super) fn walk_failed(mut self, call: &mut Call<'_>, dirfd: u64, walk: &Walk<'_>, errno: Errno) {
        self.steady = walk.steady && int(dirfd) == libc::AT_FDCWD;
        self.nothing(call, errno);
    }

    fn nothing(&self, call: &mut Call<'_>, errno: Errno) {
        if self.steady && errno == Errno::ENOENT {
            call.thread.remember(self.mark, -i64::from(libc::ENOENT), &[]);
        }
    }

    /// Keeps what the call gives, and these bytes for its buffer.
    pub(super) fn keep(&self, call: &mut Call<'_>, result: u32, bytes: &[u8]) {
        if self.steady {
            call.thread.remember(self.mark, result.into(), bytes);
        }
    }
}

/// The place of a path, symbolic links followed.
pub(super) fn place(call: &Call<'_>, caller: &Caller, path: u64) -> Result<Place, Errno> {
    walk(call, caller, CWD, path)?.finish(true)
}

/// Tries; where the file would have to be waited for, and may be, waits for `events` of it and tries again.
pub(super) fn wait<T>(
    call: &mut Call<'_>,
    file: &OpenFile,
    events: Events,
    nonblocking: bool,
    mut attempt: impl FnMut(&mut Call<'_>) -> Result<T, Errno>,
) -> Result<T, SysError> {
    let first = attempt(call);
    let Some(queue) = file.file().queue().filter(|_| !nonblocking && !file.flags().nonblocking()) else {
        return Ok(first?);
    };
    match first {
        Err(Errno::EAGAIN) => {}
        done => return Ok(done?),
    }
    let result = call.block(&[(queue, events)], None, |call| match attempt(call) {
        Err(Errno::EAGAIN) => None,
        done => Some(done),
    });
    Ok(result??)
}

/// EFAULT where the range ends beyond what a process can have (`access_ok`).
fn accessible(address: u64, length: u64) -> Result<(), Errno> {
    address.checked_add(length).filter(|end| *end <= TASK_SIZE).map(drop).ok_or(Errno::EFAULT)
}

/// A buffer of a guest, in parts.
pub(super) struct Buffer {
    parts: Vec<(u64, u64)>,
    /// Bytes of all.
    pub(super) length: u64,
}

impl Buffer {
    /// In one part.
    pub(super) fn one(address: u64, length: u64) -> Result<Self, Errno> {
        accessible(address, length)?;
        let length = length.min(COUNT_MAX);
        Ok(Self { parts: vec![(address, length)], length })
    }

    /// Of a `struct iovec` array (`__import_iovec` in `lib/iov_iter.c`: a single part is cut before it is looked at, several after that).
    pub(super) fn vector(call: &Call<'_>, address: u64, count: u64) -> Result<Self, Errno> {
        let count = count & 0xffff_ffff;
        if count > PARTS_MAX {
            return Err(Errno::EINVAL);
        }
        let mut bytes = vec![0; (count as usize).saturating_mul(16)];
        call.read_early(address, &mut bytes)?;
        let (mut parts, mut length) = (Vec::new(), 0u64);
        let given = bytes.as_chunks::<8>().0.as_chunks::<2>().0;
        if given.iter().any(|[_, size]| u64::from_le_bytes(*size).cast_signed() < 0) {
            return Err(Errno::EINVAL);
        }
        for part in given {
            let [start, size] = part.map(u64::from_le_bytes);
            let clipped = size.min(COUNT_MAX.saturating_sub(length));
            accessible(start, if count == 1 { clipped } else { size })?;
            let size = clipped;
            length = length.saturating_add(size);
            parts.push((start, size));
        }
        Ok(Self { parts, length })
    }

    /// Its parts: address and length.
    pub(super) fn parts(&self) -> &[(u64, u64)] {
        &self.parts
    }

    /// Runs over parts from `skip` on: `visit` gets the address and the range of `length` bytes that lies there, and tells how much it did.
    fn each(
        &self,
        skip: u64,
        length: usize,
        mut visit: impl FnMut(u64, std::ops::Range<usize>) -> usize,
    ) -> usize {
        let (mut skip, mut done) = (skip, 0usize);
        for (start, size) in &self.parts {
            if skip >= *size {
                skip -= *size;
                continue;
            }
            let here = usize::try_from(*size - skip).unwrap_or(usize::MAX).min(length - done);
            if here == 0 {
                break;
            }
            let Some(address) = start.checked_add(skip) else { break };
            let moved = visit(address, done..done + here).min(here);
            done += moved;
            if moved < here {
                break;
            }
            skip = 0;
        }
        done
    }

    /// Takes at most `most` bytes out of the guest, from `skip` on.
    pub(super) fn gather(&self, call: &Call<'_>, skip: u64, most: usize) -> Vec<u8> {
        let length = usize::try_from(self.length.saturating_sub(skip)).unwrap_or(usize::MAX).min(most);
        let mut bytes = vec![0; length];
        let done = self.each(skip, length, |address, range| match bytes.get_mut(range) {
            Some(part) => call.thread.read_early(address, part),
            None => 0,
        });
        bytes.truncate(done);
        bytes
    }

    /// As [`scatter`](Self::scatter) of all that the call gives, for the last that it does.
    pub(super) fn give(&self, call: &Call<'_>, bytes: &[u8]) -> usize {
        let late = match *self.parts.as_slice() {
            [(address, size)] if bytes.len() as u64 <= size => {
                call.thread.says_writable(address, bytes.len()) && call.thread.write_late(address, bytes)
            }
            _ => false,
        };
        if late { bytes.len() } else { self.scatter(call, 0, bytes) }
    }

    /// Puts bytes into the guest, from `skip` on; how many could be.
    pub(super) fn scatter(&self, call: &Call<'_>, skip: u64, bytes: &[u8]) -> usize {
        self.each(skip, bytes.len(), |address, range| match bytes.get(range) {
            Some(part) => call.thread.write(address, part),
            None => 0,
        })
    }
}

/// A `struct timespec` that is a time to wait.
pub(super) fn duration(call: &Call<'_>, address: u64) -> Result<Option<Duration>, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let (seconds, nanoseconds) = (call.read_u64(address)?, call.read_u64(address.wrapping_add(8))?);
    if seconds.cast_signed() < 0 || nanoseconds >= 1_000_000_000 {
        return Err(Errno::EINVAL);
    }
    Ok(Some(Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or(0))))
}

/// When a wait that begins now ends; `None` for never.
pub(super) fn deadline(wait: Option<Duration>) -> Option<Instant> {
    wait.and_then(|wait| Instant::now().checked_add(wait))
}

/// A `struct timespec` that is a moment of real time.
pub(super) fn moment(call: &Call<'_>, address: u64) -> Result<(i64, i64), Errno> {
    let seconds = call.read_u64(address)?.cast_signed();
    Ok((seconds, call.read_u64(address.wrapping_add(8))?.cast_signed()))
}

/// A moment as a file's stamp.
pub(super) fn stamp(seconds: i64, nanoseconds: i64) -> Result<Timestamp, Errno> {
    let nanoseconds = u32::try_from(nanoseconds).ok().filter(|nanoseconds| *nanoseconds < 1_000_000_000);
    Ok(Timestamp { seconds, nanoseconds: nanoseconds.ok_or(Errno::EINVAL)? })
}

/// EINTR whatever the handler: of calls that are never made again.
pub(super) fn or_eintr(unready: Unready) -> SysError {
    match unready {
        Unready::Interrupted => Errno::EINTR.into(),
        Unready::TimedOut => unready.into(),
    }
}
