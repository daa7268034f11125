//! Who may do what to a file (`fs/namei.c`, `fs/attr.c` and `security/commoncap.c` of Linux; `man 7 path_resolution`).

use super::{AttributeChange, Attributes, Caller, FileKind, Timestamp};
use crate::error::Errno;
use crate::task::Credentials;
use crate::task::namespaces::INVALID;

/// `CAP_CHOWN`.
pub const CAP_CHOWN: u32 = 0;
/// `CAP_DAC_OVERRIDE`.
pub const CAP_DAC_OVERRIDE: u32 = 1;
/// `CAP_DAC_READ_SEARCH`.
pub const CAP_DAC_READ_SEARCH: u32 = 2;
/// `CAP_FOWNER`.
pub const CAP_FOWNER: u32 = 3;
/// `CAP_FSETID`.
pub const CAP_FSETID: u32 = 4;
/// `CAP_SYS_CHROOT`.
pub const CAP_SYS_CHROOT: u32 = 18;
/// `CAP_SYS_ADMIN`.
pub const CAP_SYS_ADMIN: u32 = 21;
/// `CAP_SYS_RESOURCE`.
pub const CAP_SYS_RESOURCE: u32 = 24;
/// `CAP_MKNOD`.
pub const CAP_MKNOD: u32 = 27;
/// `CAP_LEASE`.
pub const CAP_LEASE: u32 = 28;
/// `CAP_SETFCAP`.
pub const CAP_SETFCAP: u32 = 31;

/// Reading.
pub const READ: u32 = 4;
/// Writing.
pub const WRITE: u32 = 2;
/// Executing; in a folder, looking names up.
pub const EXECUTE: u32 = 1;

/// Whether a capability is in force for a file: in the caller's own namespace, which has numbers for the file's owner and group
/// (`capable_wrt_inode_uidgid`).
fn capable(who: &Credentials, file: &Attributes, capability: u32) -> bool {
    let users = &who.user_ns;
    who.capable_here(capability)
        && (users.is_root() || users.uid_up(file.uid) != INVALID && users.gid_up(file.gid) != INVALID)
}

/// Whether all of `wanted` (of [`READ`], [`WRITE`], [`EXECUTE`]) is allowed.
///
/// # Errors
/// EACCES.
pub fn check(caller: &Caller, file: &Attributes, wanted: u32) -> Result<(), Errno> {
    let who = &caller.credentials;
    let bits = if who.fsuid == file.uid {
        file.mode >> 6
    } else if who.in_group(file.gid) {
        file.mode >> 3
    } else {
        file.mode
    };
    if wanted & !bits & 7 == 0 {
        return Ok(());
    }
    let folder = file.kind == FileKind::Folder;
    if capable(who, file, CAP_DAC_OVERRIDE) && (folder || wanted & EXECUTE == 0 || file.mode & 0o111 != 0) {
        return Ok(());
    }
    let reads = wanted == READ || (folder && wanted & WRITE == 0);
    if reads && capable(who, file, CAP_DAC_READ_SEARCH) { Ok(()) } else { Err(Errno::EACCES) }
}

/// Whether the caller is the owner or acts as one.
#[must_use]
pub fn owner(caller: &Caller, file: &Attributes) -> bool {
    caller.credentials.fsuid == file.uid || capable(&caller.credentials, file, CAP_FOWNER)
}

/// Whether a name may be taken out of `folder`, as `victim` being its file.
///
/// # Errors
/// EACCES; EPERM for somebody else's file in a sticky folder.
pub fn check_removal(caller: &Caller, folder: &Attributes, victim: &Attributes) -> Result<(), Errno> {
    check(caller, folder, WRITE | EXECUTE)?;
    let sticky = folder.mode & 0o1000 != 0;
    let own = [victim.uid, folder.uid].contains(&caller.credentials.fsuid);
    if sticky && !own && !capable(&caller.credentials, victim, CAP_FOWNER) {
        Err(Errno::EPERM)
    } else {
        Ok(())
    }
}

/// Mode and group that a new file gets in `folder` (`inode_init_owner`). The umask is already taken off.
#[must_use]
pub fn of_new_file(caller: &Caller, folder: &Attributes, kind: FileKind, mode: u32) -> (u32, u32) {
    if folder.mode & 0o2000 == 0 {
        return (mode, caller.credentials.fsgid);
    }
    let who = &caller.credentials;
    let mode = if kind == FileKind::Folder {
        mode | 0o2000
    } else if mode & 0o2010 == 0o2010 && !who.in_group(folder.gid) && !capable(who, folder, CAP_FSETID) {
        mode & !0o2000
    } else {
        mode
    };
    (mode, folder.gid)
}

/// What `chmod` makes of a file.
///
/// # Errors
/// EPERM.
pub fn chmod(caller: &Caller, file: &Attributes, mode: u32) -> Result<AttributeChange, Errno> {
    if !owner(caller, file) {
        return Err(Errno::EPERM);
    }
    let who = &caller.credentials;
    let foreign = !who.in_group(file.gid) && !capable(who, file, CAP_FSETID);
    let mode = if foreign { mode & !0o2000 } else { mode };
    Ok(AttributeChange { mode: Some(mode & 0o7777), ..AttributeChange::default() })
}

/// What `chown` makes of a file.
///
/// # Errors
/// EPERM.
pub fn chown(
    caller: &Caller,
    file: &Attributes,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<AttributeChange, Errno> {
    let who = &caller.credentials;
    let chowner = capable(who, file, CAP_CHOWN);
    let own = who.fsuid == file.uid;
    if uid.is_some_and(|uid| !(chowner || own && uid == file.uid)) {
        return Err(Errno::EPERM);
    }
    if gid.is_some_and(|gid| !(chowner || own && (gid == file.gid || who.in_group(gid)))) {
        return Err(Errno::EPERM);
    }
    let mode = (file.kind != FileKind::Folder).then(|| without_set_id(file.mode)).filter(|m| *m != file.mode);
    Ok(AttributeChange { mode, uid, gid, ..AttributeChange::default() })
}

/// A mode after a change by somebody else: no set-user-id, and no set-group-id where the group may execute
/// (`should_remove_suid`, `setattr_should_drop_sgid`).
#[must_use]
pub fn without_set_id(mode: u32) -> u32 {
    let mode = mode & !0o4000;
    if mode & 0o2010 == 0o2010 { mode & !0o2000 } else { mode }
}

/// The mode that a regular file has after the caller wrote to it; `None` where nothing changes.
#[must_use]
pub fn mode_after_write(caller: &Caller, file: &Attributes) -> Option<u32> {
    let mode = without_set_id(file.mode);
    (file.kind == FileKind::Regular && mode != file.mode && !capable(&caller.credentials, file, CAP_FSETID))
        .then_some(mode)
}

/// What `utimensat` makes of a file: `None` leaves a stamp alone. `now`: both stamps are the present.
///
/// # Errors
/// EACCES and EPERM, as the manual page says.
pub fn utimes(
    caller: &Caller,
    file: &Attributes,
    stamps: [Option<Timestamp>; 2],
    now: bool,
) -> Result<AttributeChange, Errno> {
    if !owner(caller, file) {
        if !now {
            return Err(Errno::EPERM);
        }
        check(caller, file, WRITE)?;
    }
    Ok(AttributeChange { accessed: stamps[0], modified: stamps[1], ..AttributeChange::default() })
}

/// Whether an extended attribute may be read or, with `change`, set (`fs/xattr.c`, `xattr_permission`).
///
/// # Errors
/// EPERM, EACCES, ENODATA, EOPNOTSUPP.
pub fn xattr(caller: &Caller, file: &Attributes, name: &[u8], change: bool) -> Result<(), Errno> {
    let who = &caller.credentials;
    if name.starts_with(b"trusted.") {
        let refused = if change { Errno::EPERM } else { Errno::ENODATA };
        return if who.capable(CAP_SYS_ADMIN) { Ok(()) } else { Err(refused) };
    }
    if name.starts_with(b"user.") {
        if !matches!(file.kind, FileKind::Regular | FileKind::Folder) {
            return Err(if change { Errno::EPERM } else { Errno::ENODATA });
        }
        if change && file.kind == FileKind::Folder && file.mode & 0o1000 != 0 && !owner(caller, file) {
            return Err(Errno::EPERM);
        }
        return check(caller, file, if change { WRITE } else { READ });
    }
    if name.starts_with(b"security.") {
        let capability = if name == b"security.capability" { CAP_SETFCAP } else { CAP_SYS_ADMIN };
        let may =
            if capability == CAP_SETFCAP { capable(who, file, capability) } else { who.capable(capability) };
        return if change && !may { Err(Errno::EPERM) } else { Ok(()) };
    }
    Err(Errno::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::task::{Capabilities, Credentials};

    fn file(kind: FileKind, mode: u32, uid: u32, gid: u32) -> Attributes {
        let zero = Timestamp::default();
        Attributes {
            device: 1,
            inode: 1,
            kind,
            mode,
            links: 1,
            uid,
            gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            accessed: zero,
            modified: zero,
            changed: zero,
            created: None,
        }
    }

    fn user(uid: u32, gid: u32) -> Caller {
        let none = Capabilities::default();
        let credentials =
            Credentials { fsuid: uid, fsgid: gid, effective: none, permitted: none, ..Credentials::root() };
        Caller { credentials: Arc::new(credentials), process: 1, umask: 0o022 }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let private = file(FileKind::Regular, 0o077, 5, 6);
        assert_eq!(check(&user(5, 9), &private, READ), Err(Errno::EACCES));
        assert_eq!(check(&user(9, 6), &private, READ | WRITE | EXECUTE), Ok(()));
        let root = Caller::root();
        assert_eq!(check(&root, &file(FileKind::Regular, 0, 5, 6), READ | WRITE), Ok(()));
        assert_eq!(check(&root, &file(FileKind::Regular, 0, 5, 6), EXECUTE), Err(Errno::EACCES));
    }

    #[test]
    fn sticky_and_set_id() {
        let folder = file(FileKind::Folder, 0o1777, 0, 0);
        let theirs = file(FileKind::Regular, 0o666, 5, 6);
        assert_eq!(check_removal(&user(7, 7), &folder, &theirs), Err(Errno::EPERM));
        assert_eq!(check_removal(&user(5, 7), &folder, &theirs), Ok(()));
        let shared = file(FileKind::Folder, 0o2777, 0, 3);
        assert_eq!(of_new_file(&user(5, 5), &shared, FileKind::Folder, 0o755), (0o2755, 3));
        assert_eq!(of_new_file(&user(5, 5), &shared, FileKind::Regular, 0o2755), (0o755, 3));
        let program = file(FileKind::Regular, 0o6755, 5, 5);
        assert_eq!(mode_after_write(&user(5, 5), &program), Some(0o755));
        assert_eq!(mode_after_write(&Caller::root(), &program), None);
        assert_eq!(chown(&user(5, 5), &program, Some(6), None).err(), Some(Errno::EPERM));
        assert_eq!(chown(&Caller::root(), &program, Some(6), None).ok().and_then(|c| c.mode), Some(0o755));
    }
}
