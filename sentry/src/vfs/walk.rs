//! From a path to a place (`man 7 path_resolution`, `man 2 openat2`).

use std::ops::Range;
use std::sync::Arc;

use bitflags::bitflags;

use super::access::{self, EXECUTE};
use super::{Caller, Dentry, FileKind, LINKS_MAX, MountFlags, Place};
use crate::error::Errno;

bitflags! {
    /// What a walk must not do, with the numbers of `openat2` (`include/uapi/linux/openat2.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Resolve: u64 {
        /// Go to another mount.
        const NO_XDEV = 0x01;
        /// Follow links that are no paths.
        const NO_MAGICLINKS = 0x02;
        /// Follow symbolic links.
        const NO_SYMLINKS = 0x04;
        /// Leave the folder where it begins.
        const BENEATH = 0x08;
        /// The folder where it begins is `/`.
        const IN_ROOT = 0x10;
        /// Ask a file system.
        const CACHED = 0x20;
    }
}

/// The last part of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Last {
    /// A name in the folder where the walk stands.
    Name(Vec<u8>),
    /// `.`: that folder itself.
    Dot,
    /// `..`: the folder above it.
    DotDot,
    /// Nothing: the path was `/`.
    Root,
}

/// A walk along a path.
pub struct Walk<'a> {
    caller: &'a Caller,
    root: Place,
    /// Where it stands.
    pub at: Place,
    rest: Vec<u8>,
    next: usize,
    links: u32,
    resolve: Resolve,
    /// Whether slashes followed the last part: it must be a folder.
    pub trailing: bool,
    /// Whether it was in such file systems alone whose names change by calls of the sandbox's programs alone ([`super::Inode::steady`]).
    pub steady: bool,
}

impl<'a> Walk<'a> {
    /// Begins at `start` for a relative path, at `root` for another.
    ///
    /// # Errors
    /// ENOENT for an empty path; EXDEV for an absolute one with [`Resolve::BENEATH`].
    pub fn new(
        caller: &'a Caller,
        root: &Place,
        start: &Place,
        path: &[u8],
        resolve: Resolve,
    ) -> Result<Self, Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let absolute = path.first() == Some(&b'/');
        let scoped = resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT);
        if absolute && resolve.contains(Resolve::BENEATH) {
            return Err(Errno::EXDEV);
        }
        let root = if scoped { start } else { root };
        if absolute && resolve.contains(Resolve::NO_XDEV) && !Arc::ptr_eq(&root.mount, &start.mount) {
            return Err(Errno::EXDEV);
        }
        let at = if absolute { root.clone() } else { start.clone() };
        let (rest, steady) = (path.to_vec(), at.dentry.tree().steady);
        let root = root.clone();
        Ok(Self { caller, root, at, rest, next: 0, links: 0, resolve, trailing: false, steady })
    }

    fn go(&mut self, to: Place) {
        self.steady &= to.dentry.tree().steady;
        self.at = to;
    }

    /// Takes the next part; `None` at the end.
    fn part(&mut self) -> Option<Range<usize>> {
        let rest = self.rest.get(self.next..).unwrap_or_default();
        let start = self.next + rest.iter().position(|byte| *byte != b'/')?;
        let rest = self.rest.get(start..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        self.next = start + length;
        Some(start..self.next)
    }

    fn at_end(&self) -> bool {
        self.rest.get(self.next..).unwrap_or_default().iter().all(|byte| *byte == b'/')
    }

    /// Goes to the folder that the last part is looked up in.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG, EXDEV.
    pub fn parent(&mut self) -> Result<Last, Errno> {
        loop {
            let Some(part) = self.part() else { return Ok(Last::Root) };
            if self.at_end() {
                self.trailing = self.next < self.rest.len();
                self.enterable()?;
                return match self.rest.get(part).unwrap_or_default() {
                    b"." => Ok(Last::Dot),
                    b".." => Ok(Last::DotDot),
                    name => Ok(Last::Name(name.to_vec())),
                };
            }
            match self.rest.get(part).unwrap_or_default() {
                b"." => self.enterable()?,
                b".." => self.up()?,
                name => {
                    let child = self.child(name)?;
                    if child.dentry.inode().kind() == FileKind::Symlink {
                        self.follow(&child)?;
                    } else {
                        self.go(child);
                    }
                }
            }
        }
    }

    /// Goes to the end. A symbolic link there is followed if `follow` says so, or if slashes come after it.
    ///
    /// # Errors
    /// As [`parent`](Self::parent).
    pub fn finish(&mut self, follow: bool) -> Result<Place, Errno> {
        loop {
            match self.parent()? {
                Last::Root => {}
                Last::Dot => self.enterable()?,
                Last::DotDot => self.up()?,
                Last::Name(name) => {
                    let child = self.child(&name)?;
                    if child.dentry.inode().kind() == FileKind::Symlink && (follow || self.trailing) {
                        if self.follow(&child)? {
                            continue;
                        }
                    } else {
                        self.go(child);
                    }
                }
            }
            if self.trailing && !self.at.dentry.is_folder() {
                return Err(Errno::ENOTDIR);
            }
            return Ok(self.at.clone());
        }
    }

    /// Whether names may be looked up where the walk stands.
    fn enterable(&self) -> Result<(), Errno> {
        if !self.at.dentry.is_folder() {
            return Err(Errno::ENOTDIR);
        }
        access::check(self.caller, &self.at.dentry.inode().attributes()?, EXECUTE)
    }

    /// A child of where the walk stands, with what is mounted on it.
    ///
    /// # Errors
    /// As [`parent`](Self::parent).
    pub fn child(&self, name: &[u8]) -> Result<Place, Errno> {
        self.enterable()?;
        let below = self.at.with(self.at.dentry.lookup(name)?).down();
        self.same_mount(&below)?;
        Ok(below)
    }

    fn same_mount(&self, next: &Place) -> Result<(), Errno> {
        let crossed = !Arc::ptr_eq(&next.mount, &self.at.mount);
        if crossed && self.resolve.contains(Resolve::NO_XDEV) { Err(Errno::EXDEV) } else { Ok(()) }
    }

    /// Goes to the folder above.
    ///
    /// # Errors
    /// EXDEV with [`Resolve::BENEATH`] at the top; EACCES, ENOTDIR.
    pub fn up(&mut self) -> Result<(), Errno> {
        self.enterable()?;
        if self.resolve.contains(Resolve::BENEATH) && self.at.same(&self.root) {
            return Err(Errno::EXDEV);
        }
        let above = self.at.up(&self.root);
        self.same_mount(&above)?;
        self.go(above);
        Ok(())
    }

    /// Follows a symbolic link in the folder where the walk stands: its target is walked before what is left. `false` when the link
    /// was no path and the walk already stands where it leads.
    ///
    /// # Errors
    /// ELOOP, and as [`parent`](Self::parent).
    pub fn follow(&mut self, link: &Place) -> Result<bool, Errno> {
        self.links = self.links.saturating_add(1);
        let unseen = link.mount.flags().contains(MountFlags::NO_SYMFOLLOW);
        if self.links > LINKS_MAX || self.resolve.contains(Resolve::NO_SYMLINKS) || unseen {
            return Err(Errno::ELOOP);
        }
        let inode: &Arc<dyn super::Inode> = Dentry::inode(&link.dentry);
        if let Some(target) = inode.magic_link(self.caller) {
            if self.resolve.contains(Resolve::NO_MAGICLINKS) {
                return Err(Errno::ELOOP);
            }
            if self.resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT) {
                return Err(Errno::EXDEV);
            }
            let target = target?;
            self.same_mount(&target)?;
            self.steady = false;
            self.at = target;
            return Ok(false);
        }
        let target = inode.readlink(self.caller)?;
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.first() == Some(&b'/') {
            if self.resolve.contains(Resolve::BENEATH) {
                return Err(Errno::EXDEV);
            }
            let root = self.root.clone();
            self.same_mount(&root)?;
            self.go(root);
        }
        let left = self.rest.get(self.next..).unwrap_or_default();
        let mut rest = target;
        rest.extend_from_slice(left);
        self.rest = rest;
        self.next = 0;
        Ok(true)
    }
}
