//! Open files: what a kind of file does, and the description with flags and position that descriptors share.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::inotify::{self, mask};
use super::io_signal::IoSignal;
use super::locks::Owner;
use super::sync::lock;
use super::{Caller, DirEntry, FileKind, Inode, MountFlags, Place, WriteAccess, access};
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::events::{Events, WaitQueue};
use crate::platform::generation;

/// Flags of an open file, with the numbers of `open` (`O_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// `O_RDONLY`.
    pub const READ: Self = Self(0);
    /// `O_RDWR`.
    pub const READ_WRITE: Self = Self(libc::O_RDWR as u32);
    /// What `fcntl(F_SETFL)` can change.
    pub const SETTABLE: u32 =
        (libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK) as u32;

    /// Whether this flag (one of `O_*`, all its bits) is set.
    #[must_use]
    pub fn has(self, flag: i32) -> bool {
        let flag = flag.cast_unsigned();
        self.0 & flag == flag
    }

    /// Whether it is only a place in the tree of names (`O_PATH`).
    #[must_use]
    pub fn path(self) -> bool {
        self.has(libc::O_PATH)
    }

    /// Whether it may be read.
    #[must_use]
    pub fn readable(self) -> bool {
        !self.path() && self.0 & 3 != libc::O_WRONLY.cast_unsigned() && self.0 & 3 != 3
    }

    /// Whether it may be written.
    #[must_use]
    pub fn writable(self) -> bool {
        !self.path() && matches!(self.0 & 3, 1 | 2)
    }

    /// Whether nobody waits for it.
    #[must_use]
    pub fn nonblocking(self) -> bool {
        self.has(libc::O_NONBLOCK)
    }
}

/// Where `lseek` counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The beginning.
    Start,
    /// Where it is.
    Current,
    /// The end.
    End,
    /// The next data at or after the offset.
    Data,
    /// The next hole at or after the offset.
    Hole,
}

/// What an open file of some kind does. Nothing waits: EAGAIN where something would have to, and [`queue`](Self::queue) tells when to try
/// again.
#[allow(clippy::missing_errors_doc, reason = "errors are those of the system call of the same name")]
pub trait File: Any + Send + Sync {
    /// Reads, `offset` being ignored by what has no positions. 0 at the end.
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let _ = (to, offset);
        Err(Errno::EINVAL)
    }

    /// Writes as much as there is room for without waiting, at least one byte.
    fn write(&self, from: &[u8], offset: u64) -> Result<usize, Errno> {
        let _ = (from, offset);
        Err(Errno::EINVAL)
    }

    /// Writes at the end; how much, and where the end is then.
    fn append(&self, from: &[u8]) -> Result<(usize, u64), Errno> {
        self.write(from, 0).map(|count| (count, 0))
    }

    /// Whether it has a way to read and one to write at all, whatever it was opened for (`FMODE_CAN_READ`, `FMODE_CAN_WRITE`).
    fn transfers(&self) -> (bool, bool) {
        (true, true)
    }

    /// Takes back what was read and could not be given to the guest, where it has no positions.
    fn put_back(&self, bytes: &[u8]) {
        let _ = bytes;
    }

    /// The flags of its description changed (`F_SETFL`).
    fn flags_changed(&self, flags: Flags) {
        let _ = flags;
    }

    /// A read that waits by rules of its own: a terminal's (`VMIN`, `VTIME`, job control). `None` for all others.
    fn read_waiting(&self, call: &mut Call<'_>, to: &mut [u8], nonblocking: bool) -> Option<SysResult> {
        let _ = (call, to, nonblocking);
        None
    }

    /// Whether the caller may write now: a terminal has a say in that.
    fn before_write(&self, call: &Call<'_>) -> Result<(), SysError> {
        let _ = call;
        Ok(())
    }

    /// What could be done now.
    fn ready(&self) -> Events {
        Events::IN | Events::OUT | Events::RDNORM | Events::WRNORM
    }

    /// Who waits for it. `None` for what is always ready.
    fn queue(&self) -> Option<&WaitQueue> {
        None
    }

    /// Whether it is a stream of bytes: a write goes on until all is written, a read takes what there is however it was written.
    fn stream(&self) -> bool {
        false
    }

    /// Whether it has positions.
    fn seekable(&self) -> bool {
        false
    }

    /// Whether `lseek` on it does nothing and tells 0 (`noop_llseek`, `null_lseek`).
    fn ignores_seek(&self) -> bool {
        false
    }

    /// The next data, or hole, at or after a position below `size`.
    fn seek_data(&self, offset: u64, hole: bool, size: u64) -> Result<u64, Errno> {
        Ok(if hole { size } else { offset })
    }

    /// The host file that holds the contents, and where in it they begin: by it `mmap` maps the file.
    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        Err(Errno::ENODEV)
    }

    /// The host file that is the contents, where a guest that may read them may have a descriptor of it: one that shows nothing else and
    /// changes nothing.
    fn readable_file(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// `fallocate`; the range is within what a file can have.
    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        let _ = (mode, offset, length);
        Err(Errno::ENODEV)
    }

    /// Entries of a folder from a position on, until `visit` wants no more. It gets the position behind the entry.
    fn entries(&self, from: u64, visit: &mut dyn FnMut(&DirEntry, u64) -> bool) -> Result<(), Errno> {
        let _ = (from, visit);
        Err(Errno::ENOTDIR)
    }

    /// Bytes that can be read at once (`FIONREAD`).
    fn available(&self) -> Result<u64, Errno> {
        Err(Errno::ENOTTY)
    }

    /// `fsync`.
    fn sync(&self) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// `F_GET_SEALS`.
    fn seals(&self) -> Result<u32, Errno> {
        Err(Errno::EINVAL)
    }

    /// `F_ADD_SEALS`.
    fn add_seals(&self, seals: u32) -> Result<(), Errno> {
        let _ = seals;
        Err(Errno::EINVAL)
    }

    /// What `/proc/PID/fdinfo` tells besides position and flags: whole lines.
    fn details(&self) -> String {
        String::new()
    }

    /// `ioctl` beyond what all files have.
    fn control(&self, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
        let _ = (call, request, argument);
        Err(Errno::ENOTTY.into())
    }
}

/// What `O_PATH` opens.
struct PathOnly;

impl File for PathOnly {
    fn read(&self, _to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn write(&self, _from: &[u8], _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn ready(&self) -> Events {
        Events::NVAL
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// An open file description (`man 2 open`).
pub struct OpenFile {
    id: u64,
    place: Option<Place>,
    inode: Arc<dyn Inode>,
    file: Box<dyn File>,
    flags: AtomicU32,
    position: Mutex<u64>,
    /// Who is told of it by a signal, once somebody said so.
    io_signal: OnceLock<Arc<Mutex<IoSignal>>>,
    /// That it is written or read, for who would run it or have a lease of it.
    writes: OnceLock<WriteAccess>,
}

impl OpenFile {
    /// Of a file that has a name.
    #[must_use]
    pub fn new(place: Place, file: Box<dyn File>, flags: Flags) -> Arc<Self> {
        let inode = Arc::clone(place.dentry.inode());
        Self::build(Some(place), inode, file, flags)
    }

    /// Of what has no name, like an `eventfd`. `label` is what `/proc/self/fd` shows: `anon_inode:[eventfd]`.
    #[must_use]
    pub fn anonymous(file: Box<dyn File>, flags: Flags, label: &'static str) -> Arc<Self> {
        Self::build(None, super::anon::inode(label), file, flags)
    }

    /// Of what has no name but an inode of its own.
    #[must_use]
    pub fn nameless(inode: Arc<dyn Inode>, file: Box<dyn File>, flags: Flags) -> Arc<Self> {
        Self::build(None, inode, file, flags)
    }

    /// A place in the tree of names, without access to the file (`O_PATH`).
    #[must_use]
    pub fn path_only(place: Place, flags: Flags) -> Arc<Self> {
        let kept = (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW).cast_unsigned();
        Self::new(place, Box::new(PathOnly), Flags(flags.0 & kept))
    }

    fn build(place: Option<Place>, inode: Arc<dyn Inode>, file: Box<dyn File>, flags: Flags) -> Arc<Self> {
        if let Some(place) = &place {
            place.dentry.opens.fetch_add(1, Ordering::AcqRel);
        }
        let once = libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC | libc::O_CLOEXEC;
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            place,
            inode,
            file,
            flags: AtomicU32::new(flags.0 & !once.cast_unsigned()),
            position: Mutex::new(0),
            io_signal: OnceLock::new(),
            writes: OnceLock::new(),
        })
    }

    /// Says as long as it is open what it is open for.
    pub(super) fn keep(&self, writes: WriteAccess) {
        let _ = self.writes.set(writes);
    }

    /// A number that no other description has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// The file that is open.
    #[must_use]
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    /// What it does.
    #[must_use]
    pub fn file(&self) -> &dyn File {
        &*self.file
    }

    /// What it does, if it is of this kind.
    #[must_use]
    pub fn downcast<T: File>(&self) -> Option<&T> {
        (&*self.file as &dyn Any).downcast_ref()
    }

    /// Its flags.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags(self.flags.load(Ordering::Relaxed))
    }

    /// Changes those of [`Flags::SETTABLE`].
    pub fn set_flags(&self, flags: u32) {
        let fixed = self.flags.load(Ordering::Relaxed) & !Flags::SETTABLE;
        let flags = fixed | flags & Flags::SETTABLE;
        self.flags.store(flags, Ordering::Relaxed);
        self.file.flags_changed(Flags(flags));
    }

    /// Who gets which signal, for `F_SETOWN` and all that tells by one.
    #[must_use]
    pub fn io_signal(&self) -> &Arc<Mutex<IoSignal>> {
        self.io_signal.get_or_init(Arc::default)
    }

    /// Takes back what was read at the position and could not be given to the guest.
    pub fn put_back(&self, bytes: &[u8]) {
        if self.file.seekable() {
            let mut position = lock(&self.position);
            *position = position.saturating_sub(bytes.len() as u64);
        } else {
            self.file.put_back(bytes);
        }
    }

    /// Reads at the position and moves it.
    ///
    /// # Errors
    /// EBADF where it is not open for reading; what the file says.
    pub fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        if !self.file.seekable() {
            return self.read_at(to, 0);
        }
        let mut position = lock(&self.position);
        let count = self.read_at(to, *position)?;
        *position = position.saturating_add(count as u64);
        Ok(count)
    }

    /// Has `read` read, at the position, which it moves, or elsewhere.
    ///
    /// # Errors
    /// EBADF where it is not open for reading; what `read` says.
    pub fn read_by(
        &self,
        offset: Option<u64>,
        read: impl FnOnce(u64) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        if !self.flags().readable() {
            return Err(Errno::EBADF);
        }
        let count = match offset {
            Some(offset) => read(offset)?,
            None => {
                let mut position = lock(&self.position);
                let count = read(*position)?;
                *position = position.saturating_add(count as u64);
                count
            }
        };
        self.tell(mask::ACCESS, count);
        Ok(count)
    }

    /// Reads elsewhere.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        if !self.flags().readable() {
            return Err(Errno::EBADF);
        }
        let count = self.file.read(to, offset)?;
        self.tell(mask::ACCESS, count);
        Ok(count)
    }

    /// Writes at the position, or at the end with `O_APPEND`, and moves it.
    ///
    /// # Errors
    /// EBADF where it is not open for writing; what the file says.
    pub fn write(&self, caller: &Caller, from: &[u8]) -> Result<usize, Errno> {
        if !self.file.seekable() {
            return self.write_at(caller, from, 0);
        }
        let mut position = lock(&self.position);
        if self.flags().has(libc::O_APPEND) {
            let (count, end) = self.append(caller, from)?;
            *position = end;
            return Ok(count);
        }
        let count = self.write_at(caller, from, *position)?;
        *position = position.saturating_add(count as u64);
        Ok(count)
    }

    /// Writes at the end; how much, and where the end is then.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn append(&self, caller: &Caller, from: &[u8]) -> Result<(usize, u64), Errno> {
        self.before_write(caller)?;
        let done = self.file.append(from)?;
        self.tell(mask::MODIFY, done.0);
        Ok(done)
    }

    /// Writes elsewhere.
    ///
    /// # Errors
    /// As [`write`](Self::write); EFBIG beyond what a file can have.
    pub fn write_at(&self, caller: &Caller, from: &[u8], offset: u64) -> Result<usize, Errno> {
        self.before_write(caller)?;
        let room = (i64::MAX as u64).saturating_sub(offset);
        if room == 0 && !from.is_empty() && self.file.seekable() {
            return Err(Errno::EFBIG);
        }
        let length = usize::try_from(room).unwrap_or(usize::MAX).min(from.len());
        let count = self.file.write(from.get(..length).unwrap_or(from), offset)?;
        self.tell(mask::MODIFY, count);
        Ok(count)
    }

    /// Tells who watches it that so many bytes were moved.
    fn tell(&self, what: u32, count: usize) {
        if let (Some(place), true) = (&self.place, count > 0) {
            inotify::changed(&place.dentry, what);
        }
    }

    fn before_write(&self, caller: &Caller) -> Result<(), Errno> {
        if !self.flags().writable() {
            return Err(Errno::EBADF);
        }
        if self.inode.has_set_id()
            && let Some(mode) = access::mode_after_write(caller, &self.inode.attributes()?)
        {
            let change = super::AttributeChange { mode: Some(mode), ..Default::default() };
            self.inode.change(&change)?;
            generation::changed();
        }
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> u64 {
        *lock(&self.position)
    }

    /// Where it is, unless somebody reads or writes just now: what `/proc/PID/fdinfo` can ask for while it is read itself.
    #[must_use]
    pub fn position_if_free(&self) -> Option<u64> {
        self.position.try_lock().ok().map(|position| *position)
    }

    /// Sets the position of a file that is made anew.
    pub(crate) fn restore_position(&self, position: u64) {
        *lock(&self.position) = position.min(i64::MAX.unsigned_abs());
    }

    /// Moves the position.
    ///
    /// # Errors
    /// ESPIPE without positions; EINVAL before the beginning and beyond what a file can have; ENXIO behind the end for data and holes.
    pub fn seek(&self, to: SeekTo, offset: i64) -> Result<u64, Errno> {
        if self.flags().path() {
            return Err(Errno::EBADF);
        }
        if self.file.ignores_seek() {
            return Ok(0);
        }
        if !self.file.seekable() {
            return Err(Errno::ESPIPE);
        }
        let mut position = lock(&self.position);
        let from = |base: u64| {
            let base = i64::try_from(base).map_err(|_| Errno::EINVAL)?;
            let sum = base.checked_add(offset).ok_or(Errno::EINVAL)?;
            u64::try_from(sum).map_err(|_| Errno::EINVAL)
        };
        let size = || self.inode.attributes().map(|attributes| attributes.size);
        let new = match to {
            SeekTo::Start => from(0)?,
            SeekTo::Current => from(*position)?,
            SeekTo::End => from(size()?)?,
            SeekTo::Data | SeekTo::Hole if self.inode.kind() == FileKind::Folder => {
                return Err(Errno::EINVAL);
            }
            SeekTo::Data | SeekTo::Hole => {
                let (offset, size) = (u64::try_from(offset).map_err(|_| Errno::ENXIO)?, size()?);
                if offset >= size {
                    return Err(Errno::ENXIO);
                }
                self.file.seek_data(offset, to == SeekTo::Hole, size)?
            }
        };
        *position = new;
        Ok(new)
    }

    /// Visits entries of a folder from the position on and moves it behind the last that `visit` took.
    ///
    /// # Errors
    /// ENOTDIR; what the file system says.
    pub fn entries(&self, visit: &mut dyn FnMut(&DirEntry, u64) -> bool) -> Result<(), Errno> {
        if self.flags().path() {
            return Err(Errno::EBADF);
        }
        let mut position = lock(&self.position);
        let start = *position;
        self.tell(mask::ACCESS, 1);
        self.file.entries(start, &mut |entry, next| {
            let taken = visit(entry, next);
            if taken {
                *position = next;
            }
            taken
        })
    }

    /// EROFS where the mount allows no changes.
    ///
    /// # Errors
    /// EROFS.
    pub fn mount_writable(&self) -> Result<(), Errno> {
        self.place.as_ref().map_or(Ok(()), Place::writable)
    }

    /// What its mount forbids.
    #[must_use]
    pub fn mount_flags(&self) -> MountFlags {
        self.place.as_ref().map(|place| place.mount.flags()).unwrap_or_default()
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(locks) = self.inode.locks() {
            locks.release(Owner::Description(self.id));
            let _ = locks.unlease(self.id);
        }
        inotify::description_gone(&self.inode, self.id);
        if let Some(place) = &self.place {
            let last = place.dentry.opens.fetch_sub(1, Ordering::AcqRel) == 1;
            let flags = self.flags();
            if !flags.path() {
                inotify::closed(&place.dentry, last, flags.writable());
            }
        }
    }
}
