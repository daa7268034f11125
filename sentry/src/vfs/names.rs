//! What changes names, with checks in the order of Linux (`fs/namei.c`), so that the same errno comes out.

use std::sync::Arc;

use super::access::{self, CAP_MKNOD, EXECUTE, WRITE};
use super::inotify::{self, Removal};
use super::sync::lock;
use super::{Attributes, Caller, Content, Dentry, FileKind, Inode, Last, NewNode, Place, RenameMode, Walk};
use crate::error::Errno;

/// The folder and the name that something new is to have.
struct Slot {
    folder: Place,
    name: Vec<u8>,
}

impl Slot {
    /// EEXIST where the name is taken (`filename_create`).
    fn new(walk: &mut Walk<'_>, of_folder: bool) -> Result<Self, Errno> {
        let Last::Name(name) = walk.parent()? else { return Err(Errno::EEXIST) };
        let folder = walk.at.clone();
        match folder.dentry.lookup(&name) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) if walk.trailing && !of_folder => return Err(Errno::ENOENT),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        folder.writable()?;
        Ok(Self { folder, name })
    }
}

/// Whether a name may be made in a folder (`may_create`).
pub(super) fn may_create(caller: &Caller, folder: &Arc<Dentry>) -> Result<Attributes, Errno> {
    if folder.unlinked() {
        return Err(Errno::ENOENT);
    }
    let attributes = folder.inode().attributes()?;
    access::check(caller, &attributes, WRITE | EXECUTE)?;
    Ok(attributes)
}

/// What a new file in a folder is like.
pub(super) fn new_node<'a>(
    caller: &Caller,
    folder: &Attributes,
    content: Content<'a>,
    mode: u32,
) -> NewNode<'a> {
    let permissions = match content {
        Content::Symlink(_) => 0o777,
        Content::Folder => mode & 0o1777 & !caller.umask,
        _ => mode & 0o7777 & !caller.umask,
    };
    let (mode, gid) = access::of_new_file(caller, folder, content.kind(), permissions);
    NewNode { content, mode, uid: caller.credentials.fsuid, gid }
}

/// `mkdir`, `mknod`, `symlink`.
///
/// # Errors
/// As their manual pages say.
pub fn create(caller: &Caller, walk: &mut Walk<'_>, content: Content<'_>, mode: u32) -> Result<Place, Errno> {
    let slot = Slot::new(walk, matches!(content, Content::Folder))?;
    let folder = may_create(caller, &slot.folder.dentry)?;
    let whiteout = matches!(content, Content::CharDevice(0));
    if matches!(content, Content::CharDevice(_) | Content::BlockDevice(_))
        && !whiteout
        && !caller.credentials.capable(CAP_MKNOD)
    {
        return Err(Errno::EPERM);
    }
    let new = new_node(caller, &folder, content, mode);
    let made = slot.folder.dentry.create(&slot.name, &new)?;
    inotify::created(&slot.folder.dentry, &slot.name, made.inode());
    Ok(slot.folder.with(made))
}

/// Nobody links what is somebody else's and not theirs to write, or a program that runs as another user (`may_linkat` with
/// `fs.protected_hardlinks` = 1; `man 5 proc_sys_fs`).
fn may_link(caller: &Caller, old: &Place) -> Result<(), Errno> {
    let file = old.dentry.inode().attributes()?;
    let runs_as_other = file.mode & 0o4000 != 0 || file.mode & 0o2010 == 0o2010;
    let safe = file.kind == FileKind::Regular
        && !runs_as_other
        && access::check(caller, &file, access::READ | WRITE).is_ok();
    if safe || access::owner(caller, &file) { Ok(()) } else { Err(Errno::EPERM) }
}

/// `link`: a further name for `old`. `nameless` files can be given one, too, where the file system allows it.
///
/// # Errors
/// As its manual page says.
pub fn link(caller: &Caller, old: &Place, walk: &mut Walk<'_>) -> Result<(), Errno> {
    let slot = Slot::new(walk, false)?;
    if !Arc::ptr_eq(&slot.folder.mount, &old.mount) {
        return Err(Errno::EXDEV);
    }
    may_link(caller, old)?;
    may_create(caller, &slot.folder.dentry)?;
    if old.dentry.is_folder() {
        return Err(Errno::EPERM);
    }
    if old.dentry.unlinkable() {
        return Err(Errno::ENOENT);
    }
    slot.folder.dentry.link(&slot.name, &old.dentry)?;
    inotify::linked(&slot.folder.dentry, &slot.name, old.dentry.inode());
    Ok(())
}

/// Whether `victim` may be taken out of `folder` (`may_delete`).
fn may_delete(
    caller: &Caller,
    folder: &Arc<Dentry>,
    victim: &Arc<dyn Inode>,
    as_folder: bool,
) -> Result<(), Errno> {
    access::check_removal(caller, &folder.inode().attributes()?, &victim.attributes()?)?;
    match (as_folder, victim.kind() == FileKind::Folder) {
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}

/// `unlink`.
///
/// # Errors
/// As its manual page says.
pub fn unlink(caller: &Caller, walk: &mut Walk<'_>) -> Result<(), Errno> {
    let Last::Name(name) = walk.parent()? else { return Err(Errno::EISDIR) };
    let folder = &walk.at.dentry;
    let victim = folder.lookup(&name)?;
    if walk.trailing {
        return Err(if victim.is_folder() { Errno::EISDIR } else { Errno::ENOTDIR });
    }
    walk.at.writable()?;
    may_delete(caller, folder, victim.inode(), false)?;
    remove(folder, &name, &victim)
}

/// `rmdir`.
///
/// # Errors
/// As its manual page says.
pub fn rmdir(caller: &Caller, walk: &mut Walk<'_>) -> Result<(), Errno> {
    let name = match walk.parent()? {
        Last::Name(name) => name,
        Last::Dot => return Err(Errno::EINVAL),
        Last::DotDot => return Err(Errno::ENOTEMPTY),
        Last::Root => return Err(Errno::EBUSY),
    };
    let folder = &walk.at.dentry;
    let victim = folder.lookup(&name)?;
    walk.at.writable()?;
    may_delete(caller, folder, victim.inode(), true)?;
    remove(folder, &name, &victim)
}

/// Takes a name away and tells who watches.
fn remove(folder: &Arc<Dentry>, name: &[u8], victim: &Arc<Dentry>) -> Result<(), Errno> {
    let removal = Removal::of(victim);
    folder.remove(name, victim)?;
    removal.done(victim);
    inotify::deleted(folder, name, victim.inode());
    Ok(())
}

/// `renameat2`.
///
/// # Errors
/// As its manual page says.
pub fn rename(
    caller: &Caller,
    from: &mut Walk<'_>,
    to: &mut Walk<'_>,
    mode: RenameMode,
) -> Result<(), Errno> {
    let last = from.parent()?;
    rename_last(caller, (from, last), to, mode, false)
}

/// The same, where the walk to the old name already stands in its folder. `whiteout` leaves there what an overlay takes for a name that
/// is gone (`RENAME_WHITEOUT`).
///
/// # Errors
/// As the manual page of `renameat2` says.
pub fn rename_last(
    caller: &Caller,
    (from, old_last): (&mut Walk<'_>, Last),
    to: &mut Walk<'_>,
    mode: RenameMode,
    whiteout: bool,
) -> Result<(), Errno> {
    let new_last = to.parent()?;
    let (old_folder, new_folder) = (from.at.clone(), to.at.clone());
    if !Arc::ptr_eq(&old_folder.mount, &new_folder.mount) {
        return Err(Errno::EXDEV);
    }
    let Last::Name(old_name) = old_last else { return Err(Errno::EBUSY) };
    let Last::Name(new_name) = new_last else {
        return Err(if mode == RenameMode::Keep { Errno::EEXIST } else { Errno::EBUSY });
    };
    old_folder.writable()?;
    let tree = Arc::clone(old_folder.dentry.tree());
    let one_at_a_time = lock(&tree.renames);
    let old = old_folder.dentry.lookup(&old_name)?;
    let target = match new_folder.dentry.lookup(&new_name) {
        Ok(_) if mode == RenameMode::Keep => return Err(Errno::EEXIST),
        Ok(target) => Some(target),
        Err(Errno::ENOENT) if mode != RenameMode::Exchange => None,
        Err(errno) => return Err(errno),
    };
    let trailing = match (mode, &target) {
        (RenameMode::Exchange, Some(target)) => {
            from.trailing && !old.is_folder() || to.trailing && !target.is_folder()
        }
        _ => !old.is_folder() && (from.trailing || to.trailing),
    };
    if trailing {
        return Err(Errno::ENOTDIR);
    }
    if old.contains(&new_folder.dentry) {
        return Err(Errno::EINVAL);
    }
    if let Some(target) = &target
        && target.contains(&old_folder.dentry)
    {
        return Err(if mode == RenameMode::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    if target.as_ref().is_some_and(|target| same_file(&old, target)) {
        return Ok(());
    }
    may_rename(caller, (&old_folder.dentry, &old), (&new_folder.dentry, target.as_ref()), mode)?;
    let removal = target.as_ref().filter(|_| mode == RenameMode::Replace).map(Removal::of);
    old_folder.dentry.rename(&old, &new_folder.dentry, &new_name, target.as_ref(), mode)?;
    if whiteout {
        let content = Content::CharDevice(0);
        let folder = old_folder.dentry.inode().attributes()?;
        old_folder.dentry.create(&old_name, &new_node(caller, &folder, content, 0))?;
    }
    drop(one_at_a_time);
    let names = ((&old_folder.dentry, &*old_name), (&new_folder.dentry, &*new_name));
    inotify::moved(&old, target.as_ref(), names, mode);
    if let (Some(removal), Some(target)) = (removal, &target) {
        removal.done(target);
    }
    Ok(())
}

fn same_file(one: &Arc<Dentry>, other: &Arc<Dentry>) -> bool {
    if Arc::ptr_eq(one.inode(), other.inode()) {
        return true;
    }
    match (one.inode().attributes(), other.inode().attributes()) {
        (Ok(one), Ok(other)) => {
            one.kind != FileKind::Folder && (one.device, one.inode) == (other.device, other.inode)
        }
        _ => false,
    }
}

/// Permissions and kinds (`vfs_rename`).
fn may_rename(
    caller: &Caller,
    (old_folder, old): (&Arc<Dentry>, &Arc<Dentry>),
    (new_folder, target): (&Arc<Dentry>, Option<&Arc<Dentry>>),
    mode: RenameMode,
) -> Result<(), Errno> {
    let exchange = mode == RenameMode::Exchange;
    may_delete(caller, old_folder, old.inode(), old.is_folder())?;
    match target {
        None => drop(may_create(caller, new_folder)?),
        Some(target) => {
            let as_folder = if exchange { target.is_folder() } else { old.is_folder() };
            may_delete(caller, new_folder, target.inode(), as_folder)?;
        }
    }
    // A folder that gets another parent has its `..` changed.
    if !Arc::ptr_eq(old_folder, new_folder) {
        let others = target.filter(|_| exchange);
        for moved in std::iter::once(old).chain(others).filter(|moved| moved.is_folder()) {
            access::check(caller, &moved.inode().attributes()?, WRITE)?;
        }
    }
    Ok(())
}
