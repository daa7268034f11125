//! Names: making, linking, renaming, taking away; folders and where a process is.

use libc::{
    SYS_chdir, SYS_chroot, SYS_fchdir, SYS_getcwd, SYS_getdents, SYS_getdents64, SYS_link, SYS_linkat,
    SYS_mkdir, SYS_mkdirat, SYS_mknod, SYS_mknodat, SYS_readlink, SYS_readlinkat, SYS_rename, SYS_renameat,
    SYS_renameat2, SYS_rmdir, SYS_symlink, SYS_symlinkat, SYS_unlink, SYS_unlinkat,
};

use super::Entry;
use super::file_args::{CWD, Look, caller, file, int, place, target, uint, walk};
use crate::call::{Call, PATH_MAX};
use crate::error::{Errno, SysResult};
use crate::vfs::access::{self, CAP_SYS_CHROOT, EXECUTE};
use crate::vfs::{Caller, Content, DirEntry, FileKind, Place, RenameMode, device, names};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_mkdir, "mkdir", mkdir),
    Entry::full(SYS_mkdirat, "mkdirat", mkdirat),
    Entry::full(SYS_mknod, "mknod", mknod),
    Entry::full(SYS_mknodat, "mknodat", mknodat),
    Entry::full(SYS_symlink, "symlink", symlink),
    Entry::full(SYS_symlinkat, "symlinkat", symlinkat),
    Entry::full(SYS_link, "link", link),
    Entry::full(SYS_linkat, "linkat", linkat),
    Entry::full(SYS_unlink, "unlink", unlink),
    Entry::full(SYS_rmdir, "rmdir", rmdir),
    Entry::full(SYS_unlinkat, "unlinkat", unlinkat),
    Entry::full(SYS_rename, "rename", rename),
    Entry::full(SYS_renameat, "renameat", renameat),
    Entry::full(SYS_renameat2, "renameat2", renameat2),
    Entry::full(SYS_readlink, "readlink", readlink),
    Entry::full(SYS_readlinkat, "readlinkat", readlinkat),
    Entry::full(SYS_getdents, "getdents", getdents),
    Entry::full(SYS_getdents64, "getdents64", getdents64),
    Entry::full(SYS_getcwd, "getcwd", getcwd),
    Entry::full(SYS_chdir, "chdir", chdir),
    Entry::full(SYS_fchdir, "fchdir", fchdir),
    Entry::full(SYS_chroot, "chroot", chroot),
];

fn mkdirat(call: &mut Call<'_>, [dirfd, path, mode, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    names::create(&caller, &mut walk(call, &caller, dirfd, path)?, Content::Folder, uint(mode))?;
    Ok(0)
}

fn mkdir(call: &mut Call<'_>, [path, mode, ..]: [u64; 6]) -> SysResult {
    mkdirat(call, [CWD, path, mode, 0, 0, 0])
}

fn mknodat(call: &mut Call<'_>, [dirfd, path, mode, dev, ..]: [u64; 6]) -> SysResult {
    let (mode, dev) = (uint(mode), uint(dev));
    // As the kernel packs it: 12 bits of the major number, 20 of the minor (`new_decode_dev`).
    let rdev = device((dev >> 8) & 0xfff, dev & 0xff | (dev >> 12) & 0xf_ff00);
    let content = match FileKind::from_mode(mode) {
        Some(FileKind::Regular) => Content::Regular,
        Some(FileKind::Fifo) => Content::Fifo,
        Some(FileKind::Socket) => Content::Socket,
        Some(FileKind::CharDevice) => Content::CharDevice(rdev),
        Some(FileKind::BlockDevice) => Content::BlockDevice(rdev),
        Some(FileKind::Folder) => return Err(Errno::EPERM.into()),
        None if mode & 0o170_000 == 0 => Content::Regular,
        _ => return Err(Errno::EINVAL.into()),
    };
    let caller = caller(call);
    names::create(&caller, &mut walk(call, &caller, dirfd, path)?, content, mode)?;
    Ok(0)
}

fn mknod(call: &mut Call<'_>, [path, mode, dev, ..]: [u64; 6]) -> SysResult {
    mknodat(call, [CWD, path, mode, dev, 0, 0])
}

fn symlinkat(call: &mut Call<'_>, [text, dirfd, path, ..]: [u64; 6]) -> SysResult {
    let text = call.read_path(text)?;
    if text.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    let caller = caller(call);
    names::create(&caller, &mut walk(call, &caller, dirfd, path)?, Content::Symlink(&text), 0o777)?;
    Ok(0)
}

fn symlink(call: &mut Call<'_>, [text, path, ..]: [u64; 6]) -> SysResult {
    symlinkat(call, [text, CWD, path, 0, 0, 0])
}

fn linkat(call: &mut Call<'_>, [old_dirfd, old, new_dirfd, new, flags, _]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let caller = caller(call);
    let follow = if flags & libc::AT_SYMLINK_FOLLOW == 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    let old = target(call, &caller, old_dirfd, old, flags & libc::AT_EMPTY_PATH | follow)?;
    let mut to = walk(call, &caller, new_dirfd, new)?;
    names::link(&caller, &old.place.ok_or(Errno::EXDEV)?, &mut to)?;
    Ok(0)
}

fn link(call: &mut Call<'_>, [old, new, ..]: [u64; 6]) -> SysResult {
    linkat(call, [CWD, old, CWD, new, 0, 0])
}

fn unlinkat(call: &mut Call<'_>, [dirfd, path, flags, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    match int(flags) {
        0 => names::unlink(&caller, &mut walk(call, &caller, dirfd, path)?)?,
        libc::AT_REMOVEDIR => names::rmdir(&caller, &mut walk(call, &caller, dirfd, path)?)?,
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

fn unlink(call: &mut Call<'_>, [path, ..]: [u64; 6]) -> SysResult {
    unlinkat(call, [CWD, path, 0, 0, 0, 0])
}

fn rmdir(call: &mut Call<'_>, [path, ..]: [u64; 6]) -> SysResult {
    unlinkat(call, [CWD, path, libc::AT_REMOVEDIR as u64, 0, 0, 0])
}

fn renameat2(call: &mut Call<'_>, [old_dirfd, old, new_dirfd, new, flags, _]: [u64; 6]) -> SysResult {
    let whiteout = uint(flags) & libc::RENAME_WHITEOUT != 0;
    let mode = match uint(flags) & !libc::RENAME_WHITEOUT {
        0 => RenameMode::Replace,
        libc::RENAME_NOREPLACE => RenameMode::Keep,
        libc::RENAME_EXCHANGE if !whiteout => RenameMode::Exchange,
        _ => return Err(Errno::EINVAL.into()),
    };
    let caller = caller(call);
    let mut from = walk(call, &caller, old_dirfd, old)?;
    // The way to the old name is gone before the new one is looked at (`do_renameat2`).
    let last = from.parent()?;
    let mut to = walk(call, &caller, new_dirfd, new)?;
    names::rename_last(&caller, (&mut from, last), &mut to, mode, whiteout)?;
    Ok(0)
}

fn renameat(call: &mut Call<'_>, [old_dirfd, old, new_dirfd, new, ..]: [u64; 6]) -> SysResult {
    renameat2(call, [old_dirfd, old, new_dirfd, new, 0, 0])
}

fn rename(call: &mut Call<'_>, [old, new, ..]: [u64; 6]) -> SysResult {
    renameat2(call, [CWD, old, CWD, new, 0, 0])
}

fn readlinkat(call: &mut Call<'_>, [dirfd, path, to, size, ..]: [u64; 6]) -> SysResult {
    let size = usize::try_from(int(size)).ok().filter(|size| *size > 0).ok_or(Errno::EINVAL)?;
    let (caller, mut look) = (caller(call), Look::begin());
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    let empty = call.read_path(path)?.is_empty();
    let link = look.target(call, &caller, (dirfd, path, flags))?.place.ok_or(Errno::ENOENT)?;
    if link.dentry.inode().kind() != FileKind::Symlink {
        return Err(if empty { Errno::ENOENT.into() } else { Errno::EINVAL.into() });
    }
    let text = link.dentry.inode().readlink(&caller)?;
    let part = text.get(..size).unwrap_or(&text);
    look.keep(call, u32::try_from(part.len()).unwrap_or(u32::MAX), part);
    call.write(to, part)?;
    Ok(part.len() as u64)
}

fn readlink(call: &mut Call<'_>, [path, to, size, ..]: [u64; 6]) -> SysResult {
    if int(size) <= 0 {
        return Err(Errno::EINVAL.into());
    }
    if call.read_path(path)?.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    readlinkat(call, [CWD, path, to, size, 0, 0])
}

/// Most bytes that one reading of a folder gives.
const ENTRIES_MAX: usize = 1 << 20;

/// Reads a folder: `form` makes the record of an entry.
fn entries(
    call: &mut Call<'_>,
    [fd, to, size, ..]: [u64; 6],
    form: fn(&DirEntry, u64) -> Vec<u8>,
) -> SysResult {
    let file = file(call, fd)?;
    if file.place().is_some_and(|place| place.dentry.unlinked()) {
        return Err(Errno::ENOENT.into());
    }
    let room = (uint(size) as usize).min(ENTRIES_MAX);
    let (mut bytes, mut full) = (Vec::new(), false);
    file.entries(&mut |entry, next| {
        let record = form(entry, next);
        full = bytes.len().saturating_add(record.len()) > room;
        if !full {
            bytes.extend_from_slice(&record);
        }
        !full
    })?;
    if bytes.is_empty() && full {
        return Err(Errno::EINVAL.into());
    }
    call.write(to, &bytes)?;
    Ok(bytes.len() as u64)
}

/// The head of a record: number, position behind it, its length.
fn head(entry: &DirEntry, next: u64, length: usize) -> Vec<u8> {
    let mut record = Vec::with_capacity(length);
    record.extend(entry.inode.to_le_bytes());
    record.extend(next.to_le_bytes());
    record.extend(u16::try_from(length).unwrap_or(0).to_le_bytes());
    record
}

fn getdents64(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    entries(call, arguments, |entry, next| {
        let length = (19 + entry.name.len() + 1).next_multiple_of(8);
        let mut record = head(entry, next, length);
        record.push(entry.kind.entry_type());
        record.extend_from_slice(&entry.name);
        record.resize(length, 0);
        record
    })
}

fn getdents(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    entries(call, arguments, |entry, next| {
        let length = (18 + entry.name.len() + 2).next_multiple_of(8);
        let mut record = head(entry, next, length);
        record.extend_from_slice(&entry.name);
        record.resize(length - 1, 0);
        record.push(entry.kind.entry_type());
        record
    })
}

fn getcwd(call: &mut Call<'_>, [to, size, ..]: [u64; 6]) -> SysResult {
    let fs = call.task.fs();
    let cwd = fs.cwd();
    if cwd.dentry.unlinked() {
        return Err(Errno::ENOENT.into());
    }
    let mut path = match cwd.path(&fs.root()) {
        Some(path) => path,
        None => b"(unreachable)".to_vec(),
    };
    path.push(0);
    if path.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if path.len() as u64 > size {
        return Err(Errno::ERANGE.into());
    }
    call.write(to, &path)?;
    Ok(path.len() as u64)
}

/// A folder that a process may go to.
fn enterable(caller: &Caller, place: &Place) -> Result<(), Errno> {
    if !place.dentry.is_folder() {
        return Err(Errno::ENOTDIR);
    }
    access::check(caller, &place.dentry.inode().attributes()?, EXECUTE)
}

fn chdir(call: &mut Call<'_>, [path, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    let place = place(call, &caller, path)?;
    enterable(&caller, &place)?;
    call.task.fs().set_cwd(place);
    Ok(0)
}

fn fchdir(call: &mut Call<'_>, [fd, ..]: [u64; 6]) -> SysResult {
    let file = call.task.files().find(int(fd))?;
    let place = file.place().ok_or(Errno::ENOTDIR)?;
    enterable(&caller(call), place)?;
    call.task.fs().set_cwd(place.clone());
    Ok(0)
}

fn chroot(call: &mut Call<'_>, [path, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    let place = place(call, &caller, path)?;
    enterable(&caller, &place)?;
    if !caller.credentials.capable_here(CAP_SYS_CHROOT) {
        return Err(Errno::EPERM.into());
    }
    call.task.fs().set_root(place);
    Ok(0)
}
