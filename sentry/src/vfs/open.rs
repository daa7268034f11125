//! `open` (`fs/namei.c`, `do_open` and `may_open`; `man 2 open`).

use std::sync::Arc;

use super::access::{self, EXECUTE, READ, WRITE};
use super::folder::Folder;
use super::inotify::{self, mask};
use super::names::{may_create, new_node};
use super::{
    AttributeChange, Caller, Content, File, FileKind, Flags, Inode, Last, MountFlags, OpenFile, Place, Walk,
    WriteAccess, dev,
};
use crate::error::Errno;

/// Opens what a walk leads to, whoever has a lease of it. `mode` is that of a file which has to be made.
///
/// A FIFO is opened at once; whoever may wait then waits for the other end ([`super::pipe::PipeFile::met`]).
///
/// # Errors
/// As the manual page says.
pub fn open(caller: &Caller, walk: &mut Walk<'_>, flags: Flags, mode: u32) -> Result<Arc<OpenFile>, Errno> {
    match begin(caller, walk, flags, mode)? {
        Opening::Done(open) => Ok(open),
        Opening::Ready(ready) => ready.finish(caller),
    }
}

/// How far an `open` comes without waiting.
pub enum Opening {
    /// It is open.
    Done(Arc<OpenFile>),
    /// Nothing is left but leases of others.
    Ready(Ready),
}

/// A file that may be opened and counts as open, of which others may have leases ([`super::leases`]).
pub struct Ready {
    place: Place,
    flags: Flags,
    counted: Option<WriteAccess>,
}

impl Ready {
    /// One at a place.
    ///
    /// # Errors
    /// ETXTBSY.
    pub fn new(place: Place, flags: Flags) -> Result<Self, Errno> {
        let counted = WriteAccess::open(place.dentry.inode(), flags)?;
        Ok(Self { place, flags, counted })
    }

    /// The file.
    #[must_use]
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.place.dentry.inode()
    }
}

/// Begins to open what a walk leads to.
///
/// # Errors
/// As [`open`].
pub fn begin(caller: &Caller, walk: &mut Walk<'_>, flags: Flags, mode: u32) -> Result<Opening, Errno> {
    let by_itself = libc::O_TMPFILE & !libc::O_DIRECTORY;
    if flags.has(by_itself) && (!flags.has(libc::O_DIRECTORY) || flags.has(libc::O_CREAT)) {
        return Err(Errno::EINVAL);
    }
    if flags.has(libc::O_TMPFILE) {
        return temporary(caller, walk, flags, mode).map(Opening::Done);
    }
    if flags.has(libc::O_CREAT) && flags.has(libc::O_DIRECTORY) {
        return Err(Errno::EINVAL);
    }
    let creates = flags.has(libc::O_CREAT) && !flags.path();
    let (place, created) = reach(caller, walk, flags, mode, creates)?;
    let folder = place.dentry.is_folder();
    if creates && flags.has(libc::O_EXCL) && !created {
        return Err(Errno::EEXIST);
    }
    if !folder && (walk.trailing || flags.has(libc::O_DIRECTORY)) {
        return Err(Errno::ENOTDIR);
    }
    if flags.path() {
        return Ok(Opening::Done(OpenFile::path_only(place, flags)));
    }
    if folder && creates {
        return Err(Errno::EISDIR);
    }
    if created {
        // What is new is empty: nothing is cut off, and nobody told so.
        return Ready::new(place, Flags(flags.0 & !libc::O_TRUNC.cast_unsigned())).map(Opening::Ready);
    }
    may_open(caller, &place, flags)?;
    Ready::new(place, flags).map(Opening::Ready)
}

/// Goes to the file, making it where that is wanted.
fn reach(
    caller: &Caller,
    walk: &mut Walk<'_>,
    flags: Flags,
    mode: u32,
    creates: bool,
) -> Result<(Place, bool), Errno> {
    loop {
        let name = match walk.parent()? {
            Last::Name(name) => name,
            Last::DotDot => {
                walk.up()?;
                return Ok((walk.at.clone(), false));
            }
            Last::Dot | Last::Root => return Ok((walk.at.clone(), false)),
        };
        if creates && walk.trailing {
            return Err(Errno::EISDIR);
        }
        match super::host::opening(|| walk.child(&name)) {
            Ok(_) if creates && flags.has(libc::O_EXCL) => return Err(Errno::EEXIST),
            Ok(child) if child.dentry.inode().kind() == FileKind::Symlink => {
                if flags.has(libc::O_NOFOLLOW) && !walk.trailing {
                    let kept = flags.path() && !flags.has(libc::O_DIRECTORY);
                    let errno = if flags.has(libc::O_DIRECTORY) { Errno::ENOTDIR } else { Errno::ELOOP };
                    return if kept { Ok((child, false)) } else { Err(errno) };
                }
                if !walk.follow(&child)? {
                    return Ok((walk.at.clone(), false));
                }
            }
            Ok(child) => return Ok((child, false)),
            Err(Errno::ENOENT) if creates => match make(caller, &walk.at, &name, mode) {
                Err(Errno::EEXIST) if !flags.has(libc::O_EXCL) => {
                    // Somebody was quicker: what they made is opened.
                    return Ok((walk.child(&name)?, false));
                }
                made => return made.map(|place| (place, true)),
            },
            Err(errno) => return Err(errno),
        }
    }
}

fn make(caller: &Caller, folder: &Place, name: &[u8], mode: u32) -> Result<Place, Errno> {
    folder.writable()?;
    let attributes = may_create(caller, &folder.dentry)?;
    let new = new_node(caller, &attributes, Content::Regular, mode);
    let made = folder.dentry.create(name, &new)?;
    inotify::created(&folder.dentry, name, made.inode());
    Ok(folder.with(made))
}

/// What access opening with these flags asks for.
fn wanted(flags: Flags) -> u32 {
    let mut wanted = 0;
    if flags.0 & 3 == 3 {
        return READ | WRITE;
    }
    if flags.readable() {
        wanted |= READ;
    }
    if flags.writable() || flags.has(libc::O_TRUNC) {
        wanted |= WRITE;
    }
    wanted
}

fn may_open(caller: &Caller, place: &Place, flags: Flags) -> Result<(), Errno> {
    let inode = place.dentry.inode();
    let attributes = inode.attributes()?;
    let wanted = wanted(flags);
    match inode.kind() {
        FileKind::Symlink => return Err(Errno::ELOOP),
        FileKind::Folder if wanted & WRITE != 0 => return Err(Errno::EISDIR),
        FileKind::CharDevice | FileKind::BlockDevice if place.mount.flags().contains(MountFlags::NO_DEV) => {
            return Err(Errno::EACCES);
        }
        _ => {}
    }
    access::check(caller, &attributes, wanted)?;
    if flags.has(libc::O_NOATIME) && !access::owner(caller, &attributes) {
        return Err(Errno::EPERM);
    }
    if wanted & WRITE != 0 && inode.kind() == FileKind::Regular {
        place.writable()?;
    }
    Ok(())
}

/// Opens a file that may be opened, whoever has a lease of it.
///
/// # Errors
/// ENXIO where nothing is behind a device or socket; what the file system says.
pub fn open_place(caller: &Caller, place: Place, flags: Flags) -> Result<Arc<OpenFile>, Errno> {
    Ready::new(place, flags)?.finish(caller)
}

impl Ready {
    /// Opens it, whoever has a lease of it.
    ///
    /// # Errors
    /// As [`open_place`].
    pub fn finish(self, caller: &Caller) -> Result<Arc<OpenFile>, Errno> {
        let Self { place, flags, counted } = self;
        let inode = Arc::clone(place.dentry.inode());
        let file: Box<dyn File> = match inode.kind() {
            FileKind::Folder => Box::new(Folder::new(Arc::clone(&place.dentry))),
            FileKind::Fifo => match inode.fifo() {
                Some(pipe) => Box::new(pipe.open(flags)?),
                None => Arc::clone(&inode).open(flags, caller)?,
            },
            FileKind::CharDevice => match dev::open(inode.attributes()?.rdev, flags) {
                Err(Errno::ENXIO) => Arc::clone(&inode).open(flags, caller)?,
                opened => opened?,
            },
            _ => Arc::clone(&inode).open(flags, caller)?,
        };
        inotify::changed(&place.dentry, mask::OPEN);
        if flags.has(libc::O_TRUNC) && inode.kind() == FileKind::Regular {
            truncate(caller, &place, 0)?;
        }
        let open = OpenFile::new(place, file, flags);
        if let Some(counted) = counted {
            open.keep(counted);
        }
        Ok(open)
    }
}

/// Sets the size of a file, as its owner may; set-id bits go as at a write.
///
/// # Errors
/// What the file system says.
pub fn truncate(caller: &Caller, place: &Place, size: u64) -> Result<(), Errno> {
    let inode = place.dentry.inode();
    let mode = access::mode_after_write(caller, &inode.attributes()?);
    inode.change(&AttributeChange { size: Some(size), mode, ..AttributeChange::default() })?;
    inotify::changed(&place.dentry, mask::MODIFY);
    Ok(())
}

/// `O_TMPFILE`.
fn temporary(caller: &Caller, walk: &mut Walk<'_>, flags: Flags, mode: u32) -> Result<Arc<OpenFile>, Errno> {
    if !flags.writable() {
        return Err(Errno::EINVAL);
    }
    let folder = walk.finish(!flags.has(libc::O_NOFOLLOW))?;
    if !folder.dentry.is_folder() {
        return Err(Errno::ENOTDIR);
    }
    folder.writable()?;
    let attributes = folder.dentry.inode().attributes()?;
    access::check(caller, &attributes, WRITE | EXECUTE)?;
    let new = new_node(caller, &attributes, Content::Regular, mode);
    let inode = folder.dentry.inode().temporary(&new)?;
    let name = format!("#{}", inode.attributes()?.inode).into_bytes();
    let place = folder.with(folder.dentry.nameless(Arc::clone(&inode), name));
    if flags.has(libc::O_EXCL) {
        place.dentry.forbid_links();
    }
    let kept = Flags(flags.0 & !(libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned());
    let counted = WriteAccess::open(&inode, kept)?;
    let open = OpenFile::new(place, inode.open(kept, caller)?, kept);
    if let Some(counted) = counted {
        open.keep(counted);
    }
    Ok(open)
}
