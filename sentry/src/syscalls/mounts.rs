//! `mount`, `umount2`, `pivot_root` (`fs/namespace.c`).

use std::sync::Arc;

use libc::{SYS_mount, SYS_pivot_root, SYS_umount2};

use super::Entry;
use super::file_args::{CWD, caller, int, place, walk, walk_of};
use super::file_systems::Kind;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::capability;
use crate::vfs::mount::{MountNamespace, Sharing, Unmount};
use crate::vfs::nsfs;
use crate::vfs::{Caller, Mount, MountFlags, Place, Resolve};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::partial(
        SYS_mount,
        "mount",
        mount,
        "file systems but tmpfs, ramfs, proc, sysfs, devpts; options of a file system at MS_REMOUNT",
    ),
    Entry::full(SYS_umount2, "umount2", umount2),
    Entry::full(SYS_pivot_root, "pivot_root", pivot_root),
];

/// Whether the caller may change mounts of its namespace (`may_mount`).
///
/// # Errors
/// EPERM.
pub(super) fn entitled(call: &Call<'_>) -> Result<(), Errno> {
    let mounts = Arc::clone(&call.task.namespaces().mounts);
    let may = call.task.credentials().capable_in(mounts.owner(), capability::SYS_ADMIN);
    if may { Ok(()) } else { Err(Errno::EPERM) }
}

/// The caller's namespace, if the mount is in it (`check_mnt`).
///
/// # Errors
/// EINVAL.
pub(super) fn own(call: &Call<'_>, mount: &Mount) -> Result<Arc<MountNamespace>, Errno> {
    let mounts = Arc::clone(&call.task.namespaces().mounts);
    if mounts.has(mount) { Ok(mounts) } else { Err(Errno::EINVAL) }
}

/// Flags of a mount out of those of `mount`; what of the last read is noted stays as it was where nothing is said of it.
fn mount_flags(flags: u64, before: Option<MountFlags>) -> MountFlags {
    const OF_ATIME: u64 = libc::MS_NOATIME | libc::MS_NODIRATIME | libc::MS_RELATIME | libc::MS_STRICTATIME;
    let mut new = MountFlags::from_bits_truncate((flags & 0xffff_ffff) as u32);
    if let Some(before) = before
        && flags & OF_ATIME == 0
    {
        let atime = MountFlags::NO_ATIME | MountFlags::NO_DIR_ATIME | MountFlags::STRICT_ATIME;
        new |= before & atime;
    }
    new
}

/// How a mount shall share what happens to it: one kind, and nothing else but MS_REC and MS_SILENT.
fn sharing(flags: u64) -> Result<Sharing, Errno> {
    match flags & !(libc::MS_REC | libc::MS_SILENT) {
        libc::MS_SHARED => Ok(Sharing::Shared),
        libc::MS_PRIVATE => Ok(Sharing::Private),
        libc::MS_SLAVE => Ok(Sharing::Slave),
        libc::MS_UNBINDABLE => Ok(Sharing::Unbindable),
        _ => Err(Errno::EINVAL),
    }
}

fn mount(call: &mut Call<'_>, [source, path, kind, flags, data, _]: [u64; 6]) -> SysResult {
    const PROPAGATION: u64 = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
    const MAGIC: u64 = 0xc0ed_0000;
    const MAGIC_MASK: u64 = 0xffff_0000;
    let flags = if flags & MAGIC_MASK == MAGIC { flags & !MAGIC_MASK } else { flags };
    let caller = caller(call);
    // All texts are read before anything is looked up.
    let kind = if kind == 0 { None } else { Some(call.read_path(kind)?) };
    let name = if source == 0 { None } else { Some(call.read_path(source)?) };
    let data = if data == 0 { Vec::new() } else { call.read_path(data)? };
    let at = place(call, &caller, path)?;
    entitled(call)?;
    if flags & libc::MS_REMOUNT != 0 {
        own(call, &at.mount)?;
        if !at.is_root_of_mount() {
            return Err(Errno::EINVAL.into());
        }
        at.mount.change_flags(mount_flags(flags, Some(at.mount.flags())))?;
    } else if flags & libc::MS_BIND != 0 {
        let from = name.filter(|name| !name.is_empty()).ok_or(Errno::EINVAL)?;
        let from = walk_of(call, &caller, CWD, &from, Resolve::empty())?.finish(true)?;
        bind(call, &at, &from, flags & libc::MS_REC != 0)?;
    } else if flags & PROPAGATION != 0 {
        let sharing = sharing(flags)?;
        own(call, &at.mount)?;
        if !at.is_root_of_mount() {
            return Err(Errno::EINVAL.into());
        }
        Mount::share(&at.mount, sharing, flags & libc::MS_REC != 0);
    } else if flags & libc::MS_MOVE != 0 {
        let from = name.filter(|name| !name.is_empty()).ok_or(Errno::EINVAL)?;
        let from = walk_of(call, &caller, CWD, &from, Resolve::empty())?.finish(true)?;
        own(call, &from.mount)?;
        own(call, &at.mount)?;
        if !from.is_root_of_mount() {
            return Err(Errno::EINVAL.into());
        }
        Mount::move_to(&from.mount, &at)?;
    } else {
        let kind = Kind::named(&kind.ok_or(Errno::EINVAL)?)?;
        let tree = kind.make(call, &caller, &data)?;
        let flags = mount_flags(flags, None);
        let mounts = own(call, &at.mount)?;
        if kind.reveals(&mounts, flags) {
            return Err(Errno::EPERM.into());
        }
        let mount = Mount::detached(tree, flags, name.unwrap_or_else(|| b"none".to_vec()))?;
        Mount::place(&mount, &at)?;
    }
    Ok(0)
}

/// What of a place may be shown elsewhere: of the caller's own mounts, and files of namespaces, unless the namespace would hold itself
/// (`mnt_ns_loop`).
///
/// # Errors
/// EINVAL.
pub(super) fn may_show(call: &Call<'_>, from: &Place) -> Result<(), Errno> {
    if let Some(namespace) = from.dentry.inode().downcast::<nsfs::NamespaceInode>() {
        let own = call.task.namespaces().mounts.meta().number();
        let of_mounts = nsfs::of_mounts(&from.dentry).is_some();
        let older = namespace.namespace().number() <= own;
        return if of_mounts && older { Err(Errno::EINVAL) } else { Ok(()) };
    }
    own(call, &from.mount).map(drop)
}

fn bind(call: &Call<'_>, at: &Place, from: &Place, recursive: bool) -> Result<(), Errno> {
    may_show(call, from)?;
    own(call, &at.mount)?;
    Mount::bind(at, from, recursive).map(drop)
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
    // What is mounted over where one stands is what is meant (`LOOKUP_MOUNTPOINT`).
    let at = at.down();
    entitled(call)?;
    if !at.is_root_of_mount() {
        return Err(Errno::EINVAL.into());
    }
    own(call, &at.mount)?;
    if flags & libc::MNT_FORCE != 0 && !caller.credentials.capable(capability::SYS_ADMIN) {
        return Err(Errno::EPERM.into());
    }
    let expire = flags & libc::MNT_EXPIRE != 0;
    if expire && flags & (libc::MNT_FORCE | libc::MNT_DETACH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let mount = at.mount;
    mount.unmount(Unmount { lazy: flags & libc::MNT_DETACH != 0, expire })?;
    Ok(0)
}

fn folder(caller: &Caller, call: &Call<'_>, path: u64) -> Result<Place, Errno> {
    let place = walk(call, caller, CWD, path)?.finish(true)?;
    if place.dentry.is_folder() { Ok(place) } else { Err(Errno::ENOTDIR) }
}

fn pivot_root(call: &mut Call<'_>, [new, old, ..]: [u64; 6]) -> SysResult {
    let caller = caller(call);
    entitled(call)?;
    let (new, old) = (folder(&caller, call, new)?, folder(&caller, call, old)?);
    let root = call.task.fs().root();
    let mounts = Arc::clone(&call.task.namespaces().mounts);
    Mount::pivot(&mounts, &root, &new, &old)?;
    // Whoever stood at the old root stands at the new one (`chroot_fs_refs`).
    for fs in call.task.tasks().select(|task, _| Some(task.fs())) {
        if fs.cwd().same(&root) {
            fs.set_cwd(new.clone());
        }
        if fs.root().same(&root) {
            fs.set_root(new.clone());
        }
    }
    Ok(0)
}
