//! File systems that a guest can mount, by their names.

use std::sync::Arc;

use crate::call::Call;
use crate::error::Errno;
use crate::task::namespaces::INVALID;
use crate::task::{UserNamespace, capability};
use crate::vfs::mount::MountNamespace;
use crate::vfs::proc::Proc;
use crate::vfs::sys::Sysfs;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::tty::DevPts;
use crate::vfs::{Caller, Dentry, MountFlags, Tree};

/// A kind of file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tmpfs,
    Proc,
    Sysfs,
    DevPts,
}

impl Kind {
    /// ENODEV for one that there is not.
    pub(super) fn named(name: &[u8]) -> Result<Self, Errno> {
        match name {
            b"tmpfs" | b"ramfs" => Ok(Self::Tmpfs),
            b"proc" => Ok(Self::Proc),
            b"sysfs" => Ok(Self::Sysfs),
            b"devpts" => Ok(Self::DevPts),
            _ => Err(Errno::ENODEV),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Proc => "proc",
            Self::Sysfs => "sysfs",
            Self::DevPts => "devpts",
        }
    }

    /// Whose capabilities are needed for one more (`mount_capable`): those of what it shows.
    fn owner(self, call: &Call<'_>) -> Arc<UserNamespace> {
        let task = call.task;
        match self {
            Self::Proc => Arc::clone(task.pid_namespace().owner()),
            Self::Sysfs => Arc::clone(task.namespaces().net.owner()),
            _ => Arc::clone(&task.credentials().user_ns),
        }
    }

    /// Makes one.
    ///
    /// # Errors
    /// EPERM without the capability; EINVAL for options that it does not have.
    pub(super) fn make(self, call: &Call<'_>, caller: &Caller, options: &[u8]) -> Result<Arc<Dentry>, Errno> {
        if !caller.credentials.capable_in(&self.owner(call), capability::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        Ok(match self {
            Self::Tmpfs => {
                let options = TmpfsOptions::parse(options, caller)?;
                let fs = Tmpfs::with_root(options.limit, options.mode, options.uid, options.gid);
                Tree::of(Box::new(fs))
            }
            Self::Proc => Proc::of_namespace(call.kernel, call.task.pid_namespace()),
            Self::Sysfs => Sysfs::tree(),
            Self::DevPts => DevPts::tree(),
        })
    }

    /// Whether one more would uncover what is covered in this namespace (`mount_too_revealing`): where less privileged users have it, one
    /// must be seen as a whole already.
    pub(super) fn reveals(self, namespace: &MountNamespace, flags: MountFlags) -> bool {
        if !matches!(self, Self::Proc | Self::Sysfs) || namespace.owner().is_root() {
            return false;
        }
        !namespace.mounts().iter().any(|mount| {
            let whole = mount.root().parent().is_none() && mount.root().tree().fs.name() == self.name();
            whole
                && flags.contains(mount.locked_flags() & MountFlags::READ_ONLY)
                && !mount.children().iter().any(|child| child.is_locked())
        })
    }
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

/// A user or group that the namespace has.
fn id(text: &str, known: impl Fn(u32) -> u32) -> Result<u32, Errno> {
    let id = known(text.parse().map_err(|_| Errno::EINVAL)?);
    if id == INVALID { Err(Errno::EINVAL) } else { Ok(id) }
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
                "uid" => options.uid = id(value, |id| who.user_ns.uid(id))?,
                "gid" => options.gid = id(value, |id| who.user_ns.gid(id))?,
                "nr_inodes" | "huge" | "mpol" | "inode32" | "inode64" => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(options)
    }
}
