//! What is known about files: `stat`, `statx`, `access`, `statfs`.

use libc::{
    SYS_access, SYS_faccessat, SYS_faccessat2, SYS_fstat, SYS_fstatfs, SYS_lstat, SYS_name_to_handle_at,
    SYS_newfstatat, SYS_open_by_handle_at, SYS_stat, SYS_statfs, SYS_statx,
};

use super::Entry;
use super::file_args::{CWD, Look, Target, caller, int, place, target, uint};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::capability;
use crate::vfs::access::{self, EXECUTE, WRITE};
use crate::vfs::{Attributes, Caller, FileKind, FsStatus, MountFlags, Place, Timestamp, device_parts};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_stat, "stat", stat),
    Entry::full(SYS_lstat, "lstat", lstat),
    Entry::full(SYS_fstat, "fstat", fstat),
    Entry::full(SYS_newfstatat, "newfstatat", newfstatat),
    Entry::full(SYS_statx, "statx", statx),
    Entry::full(SYS_access, "access", access),
    Entry::full(SYS_faccessat, "faccessat", faccessat),
    Entry::full(SYS_faccessat2, "faccessat2", faccessat2),
    Entry::full(SYS_statfs, "statfs", statfs),
    Entry::full(SYS_fstatfs, "fstatfs", fstatfs),
    Entry::partial(SYS_name_to_handle_at, "name_to_handle_at", name_to_handle_at, NO_HANDLES),
    Entry::partial(SYS_open_by_handle_at, "open_by_handle_at", open_by_handle_at, NO_HANDLES),
];

/// As on a file system of Linux that exports none (`overlay`).
const NO_HANDLES: &str = "no file system has handles: EOPNOTSUPP";

/// Bytes one after another, as the ABI has them.
struct Record(Vec<u8>);

impl Default for Record {
    fn default() -> Self {
        Self(Vec::with_capacity(256))
    }
}

impl Record {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn padded(mut self, length: usize) -> Vec<u8> {
        self.0.resize(length, 0);
        self.0
    }
}

/// Attributes with the users and groups that whoever asks has numbers for.
fn seen(caller: &Caller, file: Attributes) -> Attributes {
    let users = &caller.credentials.user_ns;
    if users.is_root() {
        return file;
    }
    Attributes { uid: users.shown_uid(file.uid), gid: users.shown_gid(file.gid), ..file }
}

/// `struct stat` (`arch/x86/include/uapi/asm/stat.h`).
fn stat_bytes(file: &Attributes) -> Vec<u8> {
    let stamp = |record: Record, stamp: Timestamp| {
        record.u64(stamp.seconds.cast_unsigned()).u64(u64::from(stamp.nanoseconds))
    };
    let record = Record::default()
        .u64(file.device)
        .u64(file.inode)
        .u64(u64::from(file.links))
        .u32(file.full_mode())
        .u32(file.uid)
        .u32(file.gid)
        .u32(0)
        .u64(file.rdev)
        .u64(file.size)
        .u64(u64::from(file.block_size))
        .u64(file.blocks);
    stamp(stamp(stamp(record, file.accessed), file.modified), file.changed).padded(144)
}

fn do_stat(call: &mut Call<'_>, dirfd: u64, path: u64, to: u64, flags: i32) -> SysResult {
    let (caller, mut look) = (caller(call), Look::begin());
    let target = look.target(call, &caller, (dirfd, path, flags))?;
    let bytes = stat_bytes(&seen(&caller, target.inode.attributes()?));
    look.keep(call, 0, &bytes);
    call.write_result(to, &bytes)?;
    Ok(0)
}

fn stat(call: &mut Call<'_>, [path, to, ..]: [u64; 6]) -> SysResult {
    do_stat(call, CWD, path, to, 0)
}

fn lstat(call: &mut Call<'_>, [path, to, ..]: [u64; 6]) -> SysResult {
    do_stat(call, CWD, path, to, libc::AT_SYMLINK_NOFOLLOW)
}

fn fstat(call: &mut Call<'_>, [fd, to, ..]: [u64; 6]) -> SysResult {
    let file = call.task.files().find(int(fd))?;
    call.write_result(to, &stat_bytes(&seen(&caller(call), file.inode().attributes()?)))?;
    Ok(0)
}

fn newfstatat(call: &mut Call<'_>, [dirfd, path, to, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    // Without a path it is `fstat`, and other flags are not looked at (`vfs_fstatat`).
    if path == 0 && flags & libc::AT_EMPTY_PATH != 0 && int(dirfd) >= 0 {
        return fstat(call, [dirfd, to, 0, 0, 0, 0]);
    }
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL.into());
    }
    do_stat(call, dirfd, path, to, flags)
}

/// `struct statx` (`include/uapi/linux/stat.h`).
fn statx_bytes(file: &Attributes, target: &Target) -> Vec<u8> {
    const BASIC: u32 = 0x7ff;
    const BTIME: u32 = 0x800;
    const MNT_ID: u32 = 0x1000;
    const MOUNT_ROOT: u64 = 0x2000;
    let stamp = |record: Record, stamp: Timestamp| {
        record.u64(stamp.seconds.cast_unsigned()).u32(stamp.nanoseconds).u32(0)
    };
    let has = |flag: u32, there: bool| if there { flag } else { 0 };
    let place = target.place.as_ref();
    let top = place.is_some_and(|place| std::sync::Arc::ptr_eq(place.mount.root(), &place.dentry));
    let record = Record::default()
        .u32(BASIC | has(BTIME, file.created.is_some()) | has(MNT_ID, place.is_some()))
        .u32(file.block_size)
        .u64(if top { MOUNT_ROOT } else { 0 })
        .u32(file.links)
        .u32(file.uid)
        .u32(file.gid)
        .u16((file.full_mode() & 0xffff) as u16)
        .u16(0)
        .u64(file.inode)
        .u64(file.size)
        .u64(file.blocks)
        .u64(MOUNT_ROOT);
    let record = stamp(stamp(record, file.accessed), file.created.unwrap_or_default());
    let record = stamp(stamp(record, file.changed), file.modified);
    let (of_file, of_fs) = (device_parts(file.rdev), device_parts(file.device));
    record
        .u32(of_file.0)
        .u32(of_file.1)
        .u32(of_fs.0)
        .u32(of_fs.1)
        .u64(place.map_or(0, |place| place.mount.id()))
        .padded(256)
}

fn statx(call: &mut Call<'_>, [dirfd, path, flags, mask, to, _]: [u64; 6]) -> SysResult {
    const SYNC: i32 = libc::AT_STATX_SYNC_TYPE;
    let flags = int(flags);
    let known = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | SYNC;
    if flags & !known != 0 || flags & SYNC == SYNC || uint(mask) & 0x8000_0000 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (caller, mut look) = (caller(call), Look::begin());
    let target = look.target(call, &caller, (dirfd, path, flags))?;
    let bytes = statx_bytes(&seen(&caller, target.inode.attributes()?), &target);
    look.keep(call, 0, &bytes);
    call.write_result(to, &bytes)?;
    Ok(0)
}

/// Who calls, by their real user and group: what `access` asks about.
fn real(caller: &Caller) -> Caller {
    let mut who = (*caller.credentials).clone();
    who.fsuid = who.uid;
    who.fsgid = who.gid;
    let zero = who.user_ns.uid(0);
    who.effective = if who.uid == zero { who.permitted } else { crate::task::Capabilities::default() };
    Caller { credentials: std::sync::Arc::new(who), ..caller.clone() }
}

fn do_access(call: &mut Call<'_>, dirfd: u64, path: u64, mode: u64, flags: i32) -> SysResult {
    let mode = uint(mode);
    if mode & !7 != 0 || flags & !(libc::AT_EACCESS | libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (caller, mut look) = (caller(call), Look::begin());
    let caller = if flags & libc::AT_EACCESS == 0 { real(&caller) } else { caller };
    let target = look.target(call, &caller, (dirfd, path, flags))?;
    let attributes = target.inode.attributes()?;
    let no_exec =
        target.place.as_ref().is_some_and(|place| place.mount.flags().contains(MountFlags::NO_EXEC));
    if mode & EXECUTE != 0 && attributes.kind == FileKind::Regular && no_exec {
        return Err(Errno::EACCES.into());
    }
    access::check(&caller, &attributes, mode)?;
    let special = !matches!(attributes.kind, FileKind::Regular | FileKind::Folder | FileKind::Symlink);
    if mode & WRITE != 0 && !special {
        target.writable()?;
    }
    look.keep(call, 0, &[]);
    Ok(0)
}

fn access(call: &mut Call<'_>, [path, mode, ..]: [u64; 6]) -> SysResult {
    do_access(call, CWD, path, mode, 0)
}

fn faccessat(call: &mut Call<'_>, [dirfd, path, mode, ..]: [u64; 6]) -> SysResult {
    do_access(call, dirfd, path, mode, 0)
}

fn faccessat2(call: &mut Call<'_>, [dirfd, path, mode, flags, ..]: [u64; 6]) -> SysResult {
    do_access(call, dirfd, path, mode, int(flags))
}

/// `struct statfs` (`include/uapi/asm-generic/statfs.h`).
fn statfs_bytes(status: &FsStatus, place: Option<&Place>) -> Vec<u8> {
    const VALID: u64 = 0x20;
    let flags = place.map(|place| place.mount.flags()).unwrap_or_default();
    let read_only = place.is_some_and(|place| place.writable().is_err());
    let shown = VALID | u64::from(flags.bits() & 0xf) | u64::from(read_only);
    Record::default()
        .u64(status.magic)
        .u64(status.block_size)
        .u64(status.blocks)
        .u64(status.blocks_free)
        .u64(status.blocks_free)
        .u64(status.files)
        .u64(status.files_free)
        .u64(0)
        .u64(255)
        .u64(status.block_size)
        .u64(shown)
        .padded(120)
}

fn statfs(call: &mut Call<'_>, [path, to, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    let place = place(call, &caller, path)?;
    let status = place.dentry.tree().fs.status()?;
    call.write_result(to, &statfs_bytes(&status, Some(&place)))?;
    Ok(0)
}

fn fstatfs(call: &mut Call<'_>, [fd, to, ..]: [u64; 6]) -> SysResult {
    const ANON: u64 = 0x0904_1934;
    let file = call.task.files().find(int(fd))?;
    let status = match file.place() {
        Some(place) => place.dentry.tree().fs.status()?,
        None => FsStatus { magic: ANON, block_size: 4096, ..FsStatus::default() },
    };
    call.write_result(to, &statfs_bytes(&status, file.place()))?;
    Ok(0)
}

fn name_to_handle_at(call: &mut Call<'_>, [dirfd, path, _, _, flags, _]: [u64; 6]) -> SysResult {
    /// `AT_SYMLINK_FOLLOW`, `AT_EMPTY_PATH`, `AT_HANDLE_FID`, `AT_HANDLE_MNT_ID_UNIQUE`, `AT_HANDLE_CONNECTABLE`.
    const KNOWN: i32 = 0x400 | 0x1000 | 0x200 | 1 | 2;
    let flags = int(flags);
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL.into());
    }
    let follow = if flags & libc::AT_SYMLINK_FOLLOW != 0 { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    target(call, &caller(call), dirfd, path, flags & libc::AT_EMPTY_PATH | follow)?;
    Err(Errno::EOPNOTSUPP.into())
}

fn open_by_handle_at(call: &mut Call<'_>, [_, handle, ..]: [u64; 6]) -> SysResult {
    const SIZE_MAX: u32 = 128;
    if !call.task.credentials().capable(capability::DAC_READ_SEARCH) {
        return Err(Errno::EPERM.into());
    }
    let size = call.read_u32(handle)?;
    if size == 0 || size > SIZE_MAX {
        return Err(Errno::EINVAL.into());
    }
    // Nobody was given one.
    Err(Errno::ESTALE.into())
}
