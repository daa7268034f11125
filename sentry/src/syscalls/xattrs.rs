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
    Entry::full(SYS_getxattr, "getxattr", |call, a| get(call, Of::Path, a)),
    Entry::full(SYS_lgetxattr, "lgetxattr", |call, a| get(call, Of::Link, a)),
    Entry::full(SYS_fgetxattr, "fgetxattr", |call, a| get(call, Of::Descriptor, a)),
    Entry::full(SYS_setxattr, "setxattr", |call, a| set(call, Of::Path, a)),
    Entry::full(SYS_lsetxattr, "lsetxattr", |call, a| set(call, Of::Link, a)),
    Entry::full(SYS_fsetxattr, "fsetxattr", |call, a| set(call, Of::Descriptor, a)),
    Entry::full(SYS_listxattr, "listxattr", |call, a| list(call, Of::Path, a)),
    Entry::full(SYS_llistxattr, "llistxattr", |call, a| list(call, Of::Link, a)),
    Entry::full(SYS_flistxattr, "flistxattr", |call, a| list(call, Of::Descriptor, a)),
    Entry::full(SYS_removexattr, "removexattr", |call, a| remove(call, Of::Path, a)),
    Entry::full(SYS_lremovexattr, "lremovexattr", |call, a| remove(call, Of::Link, a)),
    Entry::full(SYS_fremovexattr, "fremovexattr", |call, a| remove(call, Of::Descriptor, a)),
];

/// Longest name (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;
/// Largest value (`XATTR_SIZE_MAX`).
const VALUE_MAX: u64 = 65_536;

/// What the first argument of a call stands for.
#[derive(Clone, Copy)]
enum Of {
    /// A path, links followed.
    Path,
    /// A path, the last link not followed.
    Link,
    /// A descriptor.
    Descriptor,
}

impl Of {
    fn find(self, call: &Call<'_>, argument: u64) -> Result<Target, Errno> {
        match self {
            Self::Path => target(call, &caller(call), CWD, argument, 0),
            Self::Link => target(call, &caller(call), CWD, argument, libc::AT_SYMLINK_NOFOLLOW),
            Self::Descriptor => Ok(Target::of_file(&*file(call, argument)?)),
        }
    }
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

/// Whether an attribute may be read or changed, and is one: `user.` alone is not (`xattr_permission`, `xattr_resolve_name`).
fn check(caller: &Caller, target: &Target, name: &[u8], change: bool) -> Result<(), Errno> {
    if change {
        target.writable()?;
    }
    if target.inode.anonymous() && name.starts_with(b"user.") {
        return Err(if change { Errno::EPERM } else { Errno::ENODATA });
    }
    access::xattr(caller, &target.inode.attributes()?, name, change)?;
    if matches!(name, b"user." | b"trusted." | b"security.") { Err(Errno::EINVAL) } else { Ok(()) }
}

fn get(call: &Call<'_>, of: Of, [file, at, to, size, ..]: [u64; 6]) -> SysResult {
    let name = name(call, at)?;
    let target = of.find(call, file)?;
    check(&caller(call), &target, &name, false)?;
    give(call, to, size, &target.inode.xattr(&name)?)
}

/// Flags, name and value are looked at before the file (`setxattr_copy`). Both flags at once ask for what cannot be: that it is there and
/// that it is not.
fn set(call: &Call<'_>, of: Of, [file, at, from, size, flags, _]: [u64; 6]) -> SysResult {
    let (create, replace) = (libc::XATTR_CREATE.cast_unsigned(), libc::XATTR_REPLACE.cast_unsigned());
    let flags = uint(flags);
    if flags & !(create | replace) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let name = name(call, at)?;
    if size > VALUE_MAX {
        return Err(Errno::E2BIG.into());
    }
    let mut value = vec![0; usize::try_from(size).map_err(|_| Errno::E2BIG)?];
    call.read(from, &mut value)?;
    let target = of.find(call, file)?;
    check(&caller(call), &target, &name, true)?;
    let mode = match (flags & create != 0, flags & replace != 0) {
        (true, true) => {
            target.inode.xattr(&name)?;
            return Err(Errno::EEXIST.into());
        }
        (true, false) => XattrMode::Create,
        (false, true) => XattrMode::Replace,
        (false, false) => XattrMode::Any,
    };
    target.inode.set_xattr(&name, &value, mode)?;
    target.tell(mask::ATTRIB);
    Ok(0)
}

fn list(call: &Call<'_>, of: Of, [file, to, size, ..]: [u64; 6]) -> SysResult {
    let target = of.find(call, file)?;
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

fn remove(call: &Call<'_>, of: Of, [file, at, ..]: [u64; 6]) -> SysResult {
    let name = name(call, at)?;
    let target = of.find(call, file)?;
    check(&caller(call), &target, &name, true)?;
    target.inode.remove_xattr(&name)?;
    target.tell(mask::ATTRIB);
    Ok(0)
}
