//! Extended attributes (`man 7 xattr`).

use libc::{
    SYS_fgetxattr, SYS_flistxattr, SYS_fremovexattr, SYS_fsetxattr, SYS_getxattr, SYS_lgetxattr,
    SYS_listxattr, SYS_llistxattr, SYS_lremovexattr, SYS_lsetxattr, SYS_removexattr, SYS_setxattr,
};

use super::Entry;
use super::file_args::{CWD, Target, caller, file, target, uint};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::vfs::access::{self, CAP_SYS_ADMIN};
use crate::vfs::inotify::mask;
use crate::vfs::{Caller, XattrMode};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_getxattr, "getxattr", |call, a| get(call, &of_path(call, a[0], true)?, a)),
    Entry::full(SYS_lgetxattr, "lgetxattr", |call, a| get(call, &of_path(call, a[0], false)?, a)),
    Entry::full(SYS_fgetxattr, "fgetxattr", |call, a| get(call, &of_fd(call, a[0])?, a)),
    Entry::full(SYS_setxattr, "setxattr", |call, a| set(call, &of_path(call, a[0], true)?, a)),
    Entry::full(SYS_lsetxattr, "lsetxattr", |call, a| set(call, &of_path(call, a[0], false)?, a)),
    Entry::full(SYS_fsetxattr, "fsetxattr", |call, a| set(call, &of_fd(call, a[0])?, a)),
    Entry::full(SYS_listxattr, "listxattr", |call, a| list(call, &of_path(call, a[0], true)?, a)),
    Entry::full(SYS_llistxattr, "llistxattr", |call, a| list(call, &of_path(call, a[0], false)?, a)),
    Entry::full(SYS_flistxattr, "flistxattr", |call, a| list(call, &of_fd(call, a[0])?, a)),
    Entry::full(SYS_removexattr, "removexattr", |call, a| remove(call, &of_path(call, a[0], true)?, a)),
    Entry::full(SYS_lremovexattr, "lremovexattr", |call, a| remove(call, &of_path(call, a[0], false)?, a)),
    Entry::full(SYS_fremovexattr, "fremovexattr", |call, a| remove(call, &of_fd(call, a[0])?, a)),
];

/// Longest name (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;
/// Largest value (`XATTR_SIZE_MAX`).
const VALUE_MAX: u64 = 65_536;

fn of_path(call: &Call<'_>, path: u64, follow: bool) -> Result<Target, Errno> {
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    target(call, &caller(call), CWD, path, flags)
}

fn of_fd(call: &Call<'_>, fd: u64) -> Result<Target, Errno> {
    Ok(Target::of_file(&*file(call, fd)?))
}

/// The name of an attribute.
fn name(call: &Call<'_>, address: u64) -> Result<Vec<u8>, Errno> {
    match call.read_text(address, NAME_MAX + 1) {
        Ok(name) if name.is_empty() => Err(Errno::ERANGE),
        Err(Errno::ENAMETOOLONG) => Err(Errno::ERANGE),
        other => other,
    }
}

/// Gives bytes to the guest, or only their number where it has no room for any.
fn give(call: &Call<'_>, to: u64, size: u64, bytes: &[u8]) -> SysResult {
    if size != 0 {
        if bytes.len() as u64 > size {
            return Err(Errno::ERANGE.into());
        }
        call.write(to, bytes)?;
    }
    Ok(bytes.len() as u64)
}

fn check(caller: &Caller, target: &Target, name: &[u8], change: bool) -> Result<(), Errno> {
    if change {
        target.writable()?;
    }
    access::xattr(caller, &target.inode.attributes()?, name, change)
}

fn get(call: &Call<'_>, target: &Target, [_, at, to, size, ..]: [u64; 6]) -> SysResult {
    let name = name(call, at)?;
    check(&caller(call), target, &name, false)?;
    give(call, to, size, &target.inode.xattr(&name)?)
}

fn set(call: &Call<'_>, target: &Target, [_, at, from, size, flags, _]: [u64; 6]) -> SysResult {
    let mode = match uint(flags).cast_signed() {
        0 => XattrMode::Any,
        libc::XATTR_CREATE => XattrMode::Create,
        libc::XATTR_REPLACE => XattrMode::Replace,
        _ => return Err(Errno::EINVAL.into()),
    };
    let name = name(call, at)?;
    if size > VALUE_MAX {
        return Err(Errno::E2BIG.into());
    }
    let mut value = vec![0; usize::try_from(size).map_err(|_| Errno::E2BIG)?];
    call.read(from, &mut value)?;
    check(&caller(call), target, &name, true)?;
    target.inode.set_xattr(&name, &value, mode)?;
    target.tell(mask::ATTRIB);
    Ok(0)
}

fn list(call: &Call<'_>, target: &Target, [_, to, size, ..]: [u64; 6]) -> SysResult {
    let trusted = caller(call).credentials.capable(CAP_SYS_ADMIN);
    let mut bytes = Vec::new();
    for name in target.inode.xattrs()? {
        if trusted || !name.starts_with(b"trusted.") {
            bytes.extend_from_slice(&name);
            bytes.push(0);
        }
    }
    give(call, to, size, &bytes)
}

fn remove(call: &Call<'_>, target: &Target, [_, at, ..]: [u64; 6]) -> SysResult {
    let name = name(call, at)?;
    check(&caller(call), target, &name, true)?;
    target.inode.remove_xattr(&name)?;
    target.tell(mask::ATTRIB);
    Ok(0)
}
