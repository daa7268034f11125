//! Changing what is known about files: `chmod`, `chown`, `utimensat`, sizes; the umask; what becomes of buffers.

use libc::{
    SYS_chmod, SYS_chown, SYS_fadvise64, SYS_fallocate, SYS_fchmod, SYS_fchmodat, SYS_fchmodat2, SYS_fchown,
    SYS_fchownat, SYS_fdatasync, SYS_fsync, SYS_ftruncate, SYS_futimesat, SYS_lchown, SYS_readahead,
    SYS_sync, SYS_sync_file_range, SYS_syncfs, SYS_truncate, SYS_umask, SYS_utime, SYS_utimensat, SYS_utimes,
};

use super::file_args::{CWD, Target, caller, file, int, moment, place, stamp, target, uint};
use super::limits::may_have_size;
use super::{Entry, leases};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::namespaces::INVALID;
use crate::vfs::access::{self, WRITE};
use crate::vfs::inotify::mask;
use crate::vfs::{AttributeChange, Caller, FileKind, Flags, Timestamp, WriteAccess};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_chmod, "chmod", chmod),
    Entry::full(SYS_fchmod, "fchmod", fchmod),
    Entry::full(SYS_fchmodat, "fchmodat", fchmodat),
    Entry::full(SYS_fchmodat2, "fchmodat2", fchmodat2),
    Entry::full(SYS_chown, "chown", chown),
    Entry::full(SYS_lchown, "lchown", lchown),
    Entry::full(SYS_fchown, "fchown", fchown),
    Entry::full(SYS_fchownat, "fchownat", fchownat),
    Entry::full(SYS_utime, "utime", utime),
    Entry::full(SYS_utimes, "utimes", utimes),
    Entry::full(SYS_futimesat, "futimesat", futimesat),
    Entry::full(SYS_utimensat, "utimensat", utimensat),
    Entry::full(SYS_truncate, "truncate", truncate),
    Entry::full(SYS_ftruncate, "ftruncate", ftruncate),
    Entry::partial(SYS_fallocate, "fallocate", fallocate, "COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE"),
    Entry::full(SYS_umask, "umask", umask),
    Entry::full(SYS_fsync, "fsync", fsync),
    Entry::full(SYS_fdatasync, "fdatasync", fsync),
    Entry::full(SYS_sync, "sync", |_, _| Ok(0)),
    Entry::full(SYS_syncfs, "syncfs", syncfs),
    Entry::full(SYS_sync_file_range, "sync_file_range", sync_file_range),
    Entry::full(SYS_fadvise64, "fadvise64", fadvise64),
    Entry::full(SYS_readahead, "readahead", readahead),
];

fn set_mode(caller: &Caller, target: &Target, mode: u64) -> SysResult {
    target.writable()?;
    if target.inode.kind() == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let change = access::chmod(caller, &target.inode.attributes()?, uint(mode))?;
    target.change(&change)?;
    Ok(0)
}

fn chmod(call: &mut Call<'_>, [path, mode, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    set_mode(&caller, &target(call, &caller, CWD, path, 0)?, mode)
}

fn fchmod(call: &mut Call<'_>, [fd, mode, ..]: [u64; 6]) -> SysResult {
    set_mode(&caller(call), &Target::of_file(&*file(call, fd)?), mode)
}

fn fchmodat(call: &mut Call<'_>, [dirfd, path, mode, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    set_mode(&caller, &target(call, &caller, dirfd, path, 0)?, mode)
}

fn fchmodat2(call: &mut Call<'_>, [dirfd, path, mode, flags, ..]: [u64; 6]) -> SysResult {
    if int(flags) & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let caller = caller(call);
    set_mode(&caller, &target(call, &caller, dirfd, path, int(flags))?, mode)
}

fn set_owner(caller: &Caller, target: &Target, uid: u64, gid: u64) -> SysResult {
    target.writable()?;
    let users = &caller.credentials.user_ns;
    let wanted = |id: u64| Some(uint(id)).filter(|id| *id != INVALID);
    let (uid, gid) = (wanted(uid).map(|uid| users.uid(uid)), wanted(gid).map(|gid| users.gid(gid)));
    if [uid, gid].contains(&Some(INVALID)) {
        return Err(Errno::EINVAL.into());
    }
    let change = access::chown(caller, &target.inode.attributes()?, uid, gid)?;
    target.change(&change)?;
    Ok(0)
}

fn chown(call: &mut Call<'_>, [path, uid, gid, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    set_owner(&caller, &target(call, &caller, CWD, path, 0)?, uid, gid)
}

fn lchown(call: &mut Call<'_>, [path, uid, gid, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    set_owner(&caller, &target(call, &caller, CWD, path, libc::AT_SYMLINK_NOFOLLOW)?, uid, gid)
}

fn fchown(call: &mut Call<'_>, [fd, uid, gid, ..]: [u64; 6]) -> SysResult {
    set_owner(&caller(call), &Target::of_file(&*file(call, fd)?), uid, gid)
}

fn fchownat(call: &mut Call<'_>, [dirfd, path, uid, gid, flags, _]: [u64; 6]) -> SysResult {
    if int(flags) & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let caller = caller(call);
    set_owner(&caller, &target(call, &caller, dirfd, path, int(flags))?, uid, gid)
}

/// Stamps: `None` for "leave it"; and whether both are the present.
type Stamps = ([Option<Timestamp>; 2], bool);

fn set_stamps(caller: &Caller, target: &Target, (stamps, now): Stamps) -> SysResult {
    target.writable()?;
    if stamps == [None, None] {
        return Ok(0);
    }
    let change = access::utimes(caller, &target.inode.attributes()?, stamps, now)?;
    target.change(&change)?;
    Ok(0)
}

fn present() -> Stamps {
    ([Some(Timestamp::now()); 2], true)
}

fn utime(call: &mut Call<'_>, [path, times, ..]: [u64; 6]) -> SysResult {
    let stamps = if times == 0 {
        present()
    } else {
        let (accessed, modified) = (call.read_u64(times)?, call.read_u64(times.wrapping_add(8))?);
        ([Some(stamp(accessed.cast_signed(), 0)?), Some(stamp(modified.cast_signed(), 0)?)], false)
    };
    let caller = caller(call);
    set_stamps(&caller, &target(call, &caller, CWD, path, 0)?, stamps)
}

/// The file whose stamps are set: with no path at all that of a descriptor, which must not be `AT_FDCWD` (`do_utimes`).
fn stamped(call: &Call<'_>, caller: &Caller, dirfd: u64, path: u64, flags: i32) -> Result<Target, Errno> {
    if path != 0 || int(dirfd) == libc::AT_FDCWD {
        return target(
            call,
            caller,
            dirfd,
            path,
            if path == 0 { flags & !libc::AT_EMPTY_PATH } else { flags },
        );
    }
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Target::of_file(&*file(call, dirfd)?))
}

fn futimesat(call: &mut Call<'_>, [dirfd, path, times, ..]: [u64; 6]) -> SysResult {
    let stamps = if times == 0 {
        present()
    } else {
        let mut stamps = [None; 2];
        for (place, address) in stamps.iter_mut().zip([times, times.wrapping_add(16)]) {
            let (seconds, microseconds) = moment(call, address)?;
            *place = Some(stamp(seconds, microseconds.checked_mul(1000).ok_or(Errno::EINVAL)?)?);
        }
        (stamps, false)
    };
    let caller = caller(call);
    set_stamps(&caller, &stamped(call, &caller, dirfd, path, 0)?, stamps)
}

fn utimes(call: &mut Call<'_>, [path, times, ..]: [u64; 6]) -> SysResult {
    futimesat(call, [CWD, path, times, 0, 0, 0])
}

/// Where both stamps are to stay, nothing is looked at; whether the others are ones is found out after the path.
fn utimensat(call: &mut Call<'_>, [dirfd, path, times, flags, ..]: [u64; 6]) -> SysResult {
    let moments = if times == 0 {
        None
    } else {
        let moments = [moment(call, times)?, moment(call, times.wrapping_add(16))?];
        if moments.iter().all(|(_, nanoseconds)| *nanoseconds == libc::UTIME_OMIT) {
            return Ok(0);
        }
        Some(moments)
    };
    if int(flags) & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let caller = caller(call);
    let target = stamped(call, &caller, dirfd, path, int(flags))?;
    let stamps = moments.map_or_else(|| Ok(present()), explicit_stamps)?;
    set_stamps(&caller, &target, stamps)
}

fn explicit_stamps(moments: [(i64, i64); 2]) -> Result<Stamps, Errno> {
    let one = |(seconds, nanoseconds)| match nanoseconds {
        libc::UTIME_NOW => Ok(Some(Timestamp::now())),
        libc::UTIME_OMIT => Ok(None),
        _ => stamp(seconds, nanoseconds).map(Some),
    };
    let now = moments.iter().all(|(_, nanoseconds)| *nanoseconds == libc::UTIME_NOW);
    Ok(([one(moments[0])?, one(moments[1])?], now))
}

fn length(argument: u64) -> Result<u64, Errno> {
    if argument.cast_signed() < 0 { Err(Errno::EINVAL) } else { Ok(argument) }
}

fn truncate(call: &mut Call<'_>, [path, size, ..]: [u64; 6]) -> SysResult {
    let size = length(size)?;
    let caller = caller(call);
    let place = place(call, &caller, path)?;
    match place.dentry.inode().kind() {
        FileKind::Folder => return Err(Errno::EISDIR.into()),
        FileKind::Regular => {}
        _ => return Err(Errno::EINVAL.into()),
    }
    place.writable()?;
    let attributes = place.dentry.inode().attributes()?;
    access::check(&caller, &attributes, WRITE)?;
    if size > attributes.size {
        may_have_size(call, size)?;
    }
    let _writes = WriteAccess::write(place.dentry.inode())?;
    leases::wait(call, place.dentry.inode(), Flags(libc::O_WRONLY.cast_unsigned()))?;
    crate::vfs::open::truncate(&caller, &place, size)?;
    Ok(0)
}

fn ftruncate(call: &mut Call<'_>, [fd, size, ..]: [u64; 6]) -> SysResult {
    let size = length(size)?;
    let file = file(call, fd)?;
    if file.inode().kind() != FileKind::Regular || !file.flags().writable() || !file.file().seekable() {
        return Err(Errno::EINVAL.into());
    }
    let attributes = file.inode().attributes()?;
    if size > attributes.size {
        may_have_size(call, size)?;
    }
    let mode = access::mode_after_write(&caller(call), &attributes);
    Target::of_file(&file).change(&AttributeChange {
        size: Some(size),
        mode,
        ..AttributeChange::default()
    })?;
    Ok(0)
}

fn fallocate(call: &mut Call<'_>, [fd, mode, offset, size, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    if offset.cast_signed() < 0 || size.cast_signed() <= 0 {
        return Err(Errno::EINVAL.into());
    }
    let mode = int(mode);
    let known = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    if mode & !known != 0 || mode == libc::FALLOC_FL_PUNCH_HOLE {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if !file.flags().writable() {
        return Err(Errno::EBADF.into());
    }
    match file.inode().kind() {
        FileKind::Regular if !file.inode().anonymous() => {}
        FileKind::Fifo => return Err(Errno::ESPIPE.into()),
        FileKind::Folder => return Err(Errno::EISDIR.into()),
        _ => return Err(Errno::ENODEV.into()),
    }
    if offset.checked_add(size).is_none_or(|end| end.cast_signed() < 0) {
        return Err(Errno::EFBIG.into());
    }
    if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 {
        may_have_size(call, offset.saturating_add(size))?;
    }
    file.file().allocate(mode, offset, size)?;
    Target::of_file(&file).tell(mask::MODIFY);
    Ok(0)
}

fn umask(call: &mut Call<'_>, [mask, ..]: [u64; 6]) -> SysResult {
    Ok(u64::from(call.task.fs().set_umask(uint(mask))))
}

fn fsync(call: &mut Call<'_>, [fd, ..]: [u64; 6]) -> SysResult {
    file(call, fd)?.file().sync()?;
    Ok(0)
}

fn syncfs(call: &mut Call<'_>, [fd, ..]: [u64; 6]) -> SysResult {
    file(call, fd)?;
    Ok(0)
}

fn sync_file_range(call: &mut Call<'_>, [fd, offset, size, flags, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    let end = offset.cast_signed().checked_add(size.cast_signed());
    if uint(flags) & !7 != 0 || offset.cast_signed() < 0 || end.is_none_or(|end| end < 0) {
        return Err(Errno::EINVAL.into());
    }
    if !file.file().seekable() {
        return Err(Errno::ESPIPE.into());
    }
    Ok(0)
}

fn fadvise64(call: &mut Call<'_>, [fd, _, size, advice, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    if file.inode().kind() == FileKind::Fifo {
        return Err(Errno::ESPIPE.into());
    }
    if size.cast_signed() < 0 || !(0..=5).contains(&int(advice)) {
        return Err(Errno::EINVAL.into());
    }
    Ok(0)
}

fn readahead(call: &mut Call<'_>, [fd, _, count, ..]: [u64; 6]) -> SysResult {
    let file = file(call, fd)?;
    if !file.flags().readable() {
        return Err(Errno::EBADF.into());
    }
    let regular = file.inode().kind() == FileKind::Regular && !file.inode().anonymous();
    if !regular || count.cast_signed() < 0 { Err(Errno::EINVAL.into()) } else { Ok(0) }
}
