//! `fcntl`, `flock`, `ioctl`.

use libc::{SYS_fcntl, SYS_flock, SYS_ioctl};

use super::Entry;
use super::file_args::{file, int, uint};
use super::file_owner::{self as owner, F_GETOWN_EX, F_GETSIG, F_SETOWN_EX, F_SETSIG};
use super::leases;
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
use crate::sync::lock;
use crate::vfs::locks::{FileLocks, Owner, Record, Whole};
use crate::vfs::pipe::PipeFile;
use crate::vfs::{FileKind, Flags, OpenFile, inotify, lock_list};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::partial(SYS_fcntl, "fcntl", fcntl, "F_SET_RW_HINT; the signal of O_ASYNC"),
    Entry::full(SYS_flock, "flock", flock),
    Entry::full(SYS_ioctl, "ioctl", ioctl),
];

/// How long what is written will live: nobody ever said (`RWH_WRITE_LIFE_NOT_SET`).
const F_GET_RW_HINT: i32 = 1035;
/// Bytes of a block (`include/uapi/linux/fs.h`).
const FIGETBSZ: u64 = 2;

fn fcntl(call: &mut Call<'_>, [fd, command, argument, ..]: [u64; 6]) -> SysResult {
    let files = call.task.files();
    let open = files.find(int(fd))?;
    match int(command) {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            let from = u64::from(uint(argument));
            let new = files.insert_from(open, int(command) == libc::F_DUPFD_CLOEXEC, from)?;
            Ok(u64::from(new.cast_unsigned()))
        }
        libc::F_GETFD => Ok(u64::from(files.is_close_on_exec(int(fd))?)),
        libc::F_SETFD => {
            files.set_close_on_exec(int(fd), argument & 1 != 0)?;
            Ok(0)
        }
        libc::F_GETFL => Ok(u64::from(open.flags().0 | large(&open))),
        _ if open.flags().path() => Err(Errno::EBADF.into()),
        _ => of_file(call, (int(fd), &open), int(command), argument),
    }
}

/// `O_LARGEFILE`, which a 64-bit open always has (`force_o_largefile`), and what was never opened by a name has not.
fn large(open: &OpenFile) -> u32 {
    let made =
        open.place().is_none() && (open.inode().kind() != FileKind::Regular || open.inode().anonymous());
    if made || open.flags().path() { 0 } else { 0o100_000 }
}

fn of_file(call: &mut Call<'_>, (fd, open): (i32, &OpenFile), command: i32, argument: u64) -> SysResult {
    let pipe = || open.downcast::<PipeFile>().ok_or(Errno::EBADF);
    match command {
        libc::F_SETFL => {
            open.set_flags(uint(argument));
            Ok(0)
        }
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW => {
            record_lock(call, open, command, argument, call.task.files().owner())
        }
        libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => {
            let command = command - libc::F_OFD_GETLK + libc::F_GETLK;
            record_lock(call, open, command, argument, Owner::Description(open.id()))
        }
        libc::F_GETPIPE_SZ => Ok(pipe()?.capacity() as u64),
        libc::F_SETPIPE_SZ => Ok(pipe()?.set_capacity(uint(argument) as usize)? as u64),
        libc::F_GET_SEALS => Ok(u64::from(open.file().seals()?)),
        libc::F_ADD_SEALS => {
            if !open.flags().writable() {
                return Err(Errno::EPERM.into());
            }
            open.file().add_seals(uint(argument))?;
            Ok(0)
        }
        libc::F_GETOWN | libc::F_SETOWN | F_GETOWN_EX | F_SETOWN_EX | F_GETSIG | F_SETSIG => {
            owner::fcntl(call, open, command, argument)
        }
        F_GET_RW_HINT => {
            call.write(argument, &0u64.to_le_bytes())?;
            Ok(0)
        }
        libc::F_SETLEASE => leases::set(call, (fd, open), int(argument)),
        libc::F_NOTIFY => notify(call, (fd, open), uint(argument)),
        libc::F_GETLEASE => Ok(leases::of(open)),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// `F_NOTIFY`: news of a folder by signals (`fcntl_dirnotify`).
fn notify(call: &Call<'_>, (fd, open): (i32, &OpenFile), wanted: u32) -> SysResult {
    const MULTISHOT: u32 = 0x8000_0000;
    if call.kernel.proc.number("sys/fs/dir-notify-enable") == Some(0) {
        return Err(Errno::EINVAL.into());
    }
    let owner = call.task.files().owner();
    if wanted & !MULTISHOT == 0 {
        inotify::unwatch_folder(open, owner);
        return Ok(0);
    }
    if open.inode().kind() != FileKind::Folder {
        return Err(Errno::ENOTDIR.into());
    }
    let (process, who) = (call.task.group().pid(), call.task.credentials());
    lock(open.io_signal()).set_owner_if_none(process, &who);
    inotify::watch_folder(open, (owner, fd), wanted, call.task.tasks());
    Ok(0)
}

/// `struct flock`: type, whence, start, length, process.
struct Flock {
    kind: i16,
    whence: i16,
    start: i64,
    length: i64,
    process: i32,
}

impl Flock {
    fn read(call: &Call<'_>, address: u64) -> Result<Self, Errno> {
        let at = |offset| address.wrapping_add(offset);
        Ok(Self {
            kind: i16::from_le_bytes(call.read_array(address)?),
            whence: i16::from_le_bytes(call.read_array(at(2))?),
            start: call.read_u64(at(8))?.cast_signed(),
            length: call.read_u64(at(16))?.cast_signed(),
            process: call.read_u32(at(24))?.cast_signed(),
        })
    }

    fn write(&self, call: &Call<'_>, address: u64) -> Result<(), Errno> {
        let mut bytes = [0; 28];
        bytes[..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.whence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.start.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..].copy_from_slice(&self.process.to_le_bytes());
        call.write(address, &bytes)
    }

    /// First and last byte (`flock_to_posix_lock`).
    fn range(&self, open: &OpenFile) -> Result<(u64, u64), Errno> {
        let base = match i32::from(self.whence) {
            libc::SEEK_SET => 0,
            libc::SEEK_CUR => open.position(),
            libc::SEEK_END => open.inode().attributes()?.size,
            _ => return Err(Errno::EINVAL),
        };
        let base = i64::try_from(base).map_err(|_| Errno::EOVERFLOW)?;
        let start = base.checked_add(self.start).ok_or(Errno::EOVERFLOW)?;
        let (start, behind) = match self.length {
            0 => (start, None),
            1.. => (start, Some(start.checked_add(self.length - 1).ok_or(Errno::EOVERFLOW)?)),
            _ => (start.checked_add(self.length).ok_or(Errno::EINVAL)?, Some(start.saturating_sub(1))),
        };
        let start = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
        let last = behind.map_or(Ok(u64::MAX), |last| u64::try_from(last).map_err(|_| Errno::EINVAL))?;
        Ok((start, last))
    }
}

fn record_lock(call: &mut Call<'_>, open: &OpenFile, command: i32, address: u64, owner: Owner) -> SysResult {
    let mut flock = Flock::read(call, address)?;
    let locks = open.inode().locks().ok_or(Errno::ENOLCK)?;
    let of_description = matches!(owner, Owner::Description(_));
    if of_description && flock.process != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (start, last) = flock.range(open)?;
    let exclusive = match i32::from(flock.kind) {
        libc::F_RDLCK => false,
        libc::F_WRLCK => true,
        libc::F_UNLCK if command != libc::F_GETLK => {
            locks.unlock(owner, start, last)?;
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL.into()),
    };
    let process = if of_description { -1 } else { call.task.group().pid() };
    let wanted = Record { owner, process, exclusive, start, last };
    if command == libc::F_GETLK {
        match locks.conflict(&wanted) {
            None => flock.kind = libc::F_UNLCK as i16,
            Some(other) => {
                flock.kind = if other.exclusive { libc::F_WRLCK as i16 } else { libc::F_RDLCK as i16 };
                flock.whence = libc::SEEK_SET as i16;
                flock.start = i64::try_from(other.start).unwrap_or(i64::MAX);
                let length = other.last.saturating_sub(other.start).saturating_add(1);
                flock.length =
                    if other.last == u64::MAX { 0 } else { i64::try_from(length).unwrap_or(i64::MAX) };
                flock.process = if other.process < 0 { -1 } else { call.task.shown(other.process) };
            }
        }
        flock.write(call, address)?;
        return Ok(0);
    }
    if exclusive && !open.flags().writable() || !exclusive && !open.flags().readable() {
        return Err(Errno::EBADF.into());
    }
    lock_list::enter(open.inode());
    set_record(call, locks, wanted, command == libc::F_SETLKW)
}

fn set_record(call: &mut Call<'_>, locks: &FileLocks, wanted: Record, waits: bool) -> SysResult {
    match locks.lock(wanted) {
        Err(Errno::EAGAIN) if waits => {}
        done => return Ok(done.map(|()| 0)?),
    }
    let result = call.block(&[(locks.queue(), Events::CHANGED)], None, |_| match locks.lock(wanted) {
        Err(Errno::EAGAIN) => locks.waiting(&wanted).err().map(Err),
        done => Some(done),
    });
    FileLocks::waited(wanted.owner);
    result??;
    Ok(0)
}

/// Mandatory locks, which are no more: asking for them does nothing (`fs/locks.c`).
const LOCK_MAND: i32 = 32;

fn flock(call: &mut Call<'_>, [fd, operation, ..]: [u64; 6]) -> SysResult {
    let operation = int(operation);
    if operation & LOCK_MAND != 0 {
        return Ok(0);
    }
    let exclusive = match operation & !libc::LOCK_NB {
        libc::LOCK_SH => Some(false),
        libc::LOCK_EX => Some(true),
        libc::LOCK_UN => None,
        _ => return Err(Errno::EINVAL.into()),
    };
    let open = file(call, fd)?;
    let owner = Owner::Description(open.id());
    let Some(exclusive) = exclusive else {
        if let Some(locks) = open.inode().locks() {
            locks.unlock_whole(owner);
        }
        return Ok(0);
    };
    let locks = open.inode().locks().ok_or(Errno::ENOLCK)?;
    let wanted = Whole { owner, process: call.task.group().pid(), exclusive };
    lock_list::enter(open.inode());
    match locks.lock_whole(wanted) {
        Err(Errno::EAGAIN) if operation & libc::LOCK_NB == 0 => {}
        done => return Ok(done.map(|()| 0)?),
    }
    let attempt = |_: &mut Call<'_>| match locks.lock_whole(wanted) {
        Err(Errno::EAGAIN) => None,
        done => Some(done),
    };
    call.block(&[(locks.queue(), Events::CHANGED)], None, attempt)?.map_err(SysError::from)?;
    Ok(0)
}

/// `O_ASYNC`: not for what is always ready (`ioctl_fioasync`).
fn set_async(open: &OpenFile, on: bool) -> Result<(), Errno> {
    let Flags(flags) = open.flags();
    let bit = libc::O_ASYNC.cast_unsigned();
    if (flags & bit != 0) != on {
        open.file().queue().ok_or(Errno::ENOTTY)?;
        open.set_flags(flags ^ bit);
    }
    Ok(())
}

fn ioctl(call: &mut Call<'_>, [fd, request, argument, ..]: [u64; 6]) -> SysResult {
    let open = file(call, fd)?;
    let request = uint(request);
    match u64::from(request) {
        libc::FIOCLEX => call.task.files().set_close_on_exec(int(fd), true)?,
        libc::FIONCLEX => call.task.files().set_close_on_exec(int(fd), false)?,
        libc::FIONBIO => {
            let on = call.read_u32(argument)? != 0;
            let wait = libc::O_NONBLOCK.cast_unsigned();
            let Flags(flags) = open.flags();
            open.set_flags(if on { flags | wait } else { flags & !wait });
        }
        FIGETBSZ => {
            let size = i32::try_from(open.inode().attributes()?.block_size).unwrap_or(i32::MAX);
            call.write(argument, &size.to_le_bytes())?;
        }
        libc::FIOASYNC => set_async(&open, call.read_u32(argument)? != 0)?,
        libc::FIONREAD if open.inode().kind() == FileKind::Regular && open.file().seekable() => {
            let left = open.inode().attributes()?.size.saturating_sub(open.position());
            call.write(argument, &i32::try_from(left).unwrap_or(i32::MAX).to_le_bytes())?;
        }
        libc::FIONREAD => match open.file().available() {
            Ok(count) => call.write(argument, &i32::try_from(count).unwrap_or(i32::MAX).to_le_bytes())?,
            Err(_) => return open.file().control(call, request, argument),
        },
        _ => return open.file().control(call, request, argument),
    }
    Ok(0)
}
