//! `mount`, `umount2`, `pivot_root`.

use libc::{SYS_mount, SYS_pivot_root, SYS_umount2};

use super::Entry;
use super::file_args::{CWD, caller, int, place, walk, walk_of};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::vfs::access::CAP_SYS_ADMIN;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::{Caller, Mount, MountFlags, Resolve, Tree};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::partial(
        SYS_mount,
        "mount",
        mount,
        "file systems but tmpfs, proc and sysfs; MS_MOVE; propagation has no effect",
    ),
    Entry::full(SYS_umount2, "umount2", umount2),
    Entry::full(SYS_pivot_root, "pivot_root", pivot_root),
];

fn entitled(caller: &Caller) -> Result<(), Errno> {
    if caller.credentials.capable(CAP_SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Options of a `tmpfs`: its bytes and its root.
struct TmpfsOptions {
    limit: Option<u64>,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// A number with the suffix `k`, `m` or `g`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)? {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

impl TmpfsOptions {
    fn parse(data: &[u8], caller: &Caller) -> Result<Self, Errno> {
        let who = &caller.credentials;
        let mut options = Self { limit: None, mode: 0o1777, uid: who.fsuid, gid: who.fsgid };
        let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "size" => options.limit = Some(bytes(value).ok_or(Errno::EINVAL)?).filter(|size| *size > 0),
                "nr_blocks" => {
                    options.limit = bytes(value).ok_or(Errno::EINVAL)?.checked_mul(4096);
                }
                "mode" => {
                    options.mode = u32::from_str_radix(value, 8).map_err(|_| Errno::EINVAL)? & 0o7777;
                }
                "uid" => options.uid = value.parse().map_err(|_| Errno::EINVAL)?,
                "gid" => options.gid = value.parse().map_err(|_| Errno::EINVAL)?,
                "nr_inodes" | "huge" | "mpol" | "inode32" | "inode64" => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(options)
    }
}

fn mount(call: &mut Call<'_>, [source, path, kind, flags, data, _]: [u64; 6]) -> SysResult {
    const PROPAGATION: u64 = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
    let caller = caller(call);
    let at = place(call, &caller, path)?;
    entitled(&caller)?;
    let mount_flags = MountFlags::from_bits_truncate((flags & 0xffff_ffff) as u32);
    let is_root = std::sync::Arc::ptr_eq(at.mount.root(), &at.dentry);
    if flags & libc::MS_REMOUNT != 0 {
        if !is_root {
            return Err(Errno::EINVAL.into());
        }
        at.mount.set_flags(mount_flags);
        return Ok(0);
    }
    if flags & libc::MS_BIND != 0 {
        let source = walk(call, &caller, CWD, source)?.finish(true)?;
        Mount::bind(&at, &source, flags & libc::MS_REC != 0)?;
        return Ok(0);
    }
    if flags & PROPAGATION != 0 {
        return if is_root { Ok(0) } else { Err(Errno::EINVAL.into()) };
    }
    if flags & libc::MS_MOVE != 0 {
        return Err(Errno::EINVAL.into());
    }
    let made = match call.read_path(kind)?.as_slice() {
        b"tmpfs" => None,
        b"proc" => Some(crate::vfs::proc::Proc::tree(call.kernel)),
        b"sysfs" => Some(crate::vfs::sys::Sysfs::tree()),
        _ => return Err(Errno::ENODEV.into()),
    };
    if let Some(made) = made {
        Mount::add(&at, made, mount_flags)?;
        return Ok(0);
    }
    let data = if data == 0 { Vec::new() } else { call.read_path(data)? };
    let options = TmpfsOptions::parse(&data, &caller)?;
    let fs = Tmpfs::with_root(options.limit, options.mode, options.uid, options.gid);
    Mount::add(&at, Tree::of(Box::new(fs)), mount_flags)?;
    Ok(0)
}

fn umount2(call: &mut Call<'_>, [path, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    if flags & !(libc::MNT_FORCE | libc::MNT_DETACH | libc::MNT_EXPIRE | libc::UMOUNT_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let caller = caller(call);
    let path = call.read_path(path)?;
    let at =
        walk_of(call, &caller, CWD, &path, Resolve::empty())?.finish(flags & libc::UMOUNT_NOFOLLOW == 0)?;
    entitled(&caller)?;
    if !std::sync::Arc::ptr_eq(at.mount.root(), &at.dentry) {
        return Err(Errno::EINVAL.into());
    }
    let mount = at.mount;
    mount.unmount(flags & libc::MNT_DETACH != 0)?;
    Ok(0)
}

fn pivot_root(call: &mut Call<'_>, [new, old, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    entitled(&caller)?;
    let (new, old) = (place(call, &caller, new)?, place(call, &caller, old)?);
    if !new.dentry.is_folder() || !old.dentry.is_folder() {
        return Err(Errno::ENOTDIR.into());
    }
    let fs = call.task.fs();
    let root = fs.root();
    Mount::pivot(&root, &new, &old)?;
    // Whoever stood at the old root stands at the new one.
    if fs.cwd().same(&root) {
        fs.set_cwd(new.clone());
    }
    fs.set_root(new);
    Ok(0)
}
