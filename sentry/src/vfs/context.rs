//! Who walks, and from where.

use std::sync::{Arc, Mutex};

use super::sync::lock;
use super::tmpfs::Tmpfs;
use super::{Mount, Place};
use crate::task::{Credentials, Pid, Task};

/// Who asks for something: what access to files is decided by.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Users, groups and capabilities.
    pub credentials: Arc<Credentials>,
    /// The process, for links like `/proc/self`.
    pub process: Pid,
    /// Permissions that new files do not get.
    pub umask: u32,
}

impl Caller {
    /// A task.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        Self { credentials: task.credentials(), process: task.group().pid(), umask: task.fs().umask() }
    }

    /// Root with every capability, as process 1.
    #[must_use]
    pub fn root() -> Self {
        Self { credentials: Arc::new(Credentials::root()), process: 1, umask: 0o022 }
    }
}

/// Root, working folder and umask of a process.
pub struct FsContext {
    inner: Mutex<Inner>,
}

#[derive(Clone)]
struct Inner {
    root: Place,
    cwd: Place,
    umask: u32,
}

impl Default for FsContext {
    /// In an empty `tmpfs` of its own.
    fn default() -> Self {
        Self::new(Mount::namespace(Tmpfs::tree(None)).root_place())
    }
}

impl FsContext {
    /// At the root of a mount namespace.
    #[must_use]
    pub fn new(root: Place) -> Self {
        Self { inner: Mutex::new(Inner { cwd: root.clone(), root, umask: 0o022 }) }
    }

    /// A copy that changes by itself (`fork`, `unshare(CLONE_FS)`).
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { inner: Mutex::new(lock(&self.inner).clone()) }
    }

    /// Where `/` is.
    #[must_use]
    pub fn root(&self) -> Place {
        lock(&self.inner).root.clone()
    }

    /// The working folder.
    #[must_use]
    pub fn cwd(&self) -> Place {
        lock(&self.inner).cwd.clone()
    }

    /// Permissions that new files do not get.
    #[must_use]
    pub fn umask(&self) -> u32 {
        lock(&self.inner).umask
    }

    /// Changes where `/` is (`chroot`).
    pub fn set_root(&self, root: Place) {
        let before = std::mem::replace(&mut lock(&self.inner).root, root);
        drop(before);
    }

    /// Changes the working folder.
    pub fn set_cwd(&self, cwd: Place) {
        let before = std::mem::replace(&mut lock(&self.inner).cwd, cwd);
        drop(before);
    }

    /// Changes the umask; the one before.
    pub fn set_umask(&self, umask: u32) -> u32 {
        std::mem::replace(&mut lock(&self.inner).umask, umask & 0o777)
    }
}
