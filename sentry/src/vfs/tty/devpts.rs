//! The file system of pseudoterminals (`fs/devpts/inode.c`; `man 4 pts`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use super::files::{Master, Slave};
use super::pair::Pair;
use super::sessions;
use crate::error::Errno;
use crate::task::{capability, current};
use crate::vfs::sync::lock;
use crate::vfs::tmpfs::next_device;
use crate::vfs::{
    AttributeChange, Attributes, Caller, Dentry, DirEntry, File, FileKind, FileSystem, Flags, FsStatus,
    Inode, Timestamp, Tree, device,
};

/// Pseudoterminals of a sandbox (`kernel.pty.max`).
const MOST: usize = 4096;
/// Group `tty`, which a slave belongs to (`gid=5`).
const TTY_GROUP: u32 = 5;
/// Major number of slaves (`UNIX98_PTY_SLAVE_MAJOR`).
const MAJOR: u32 = 136;

/// Pseudoterminals by number. Its lock is a leaf.
pub(super) struct Registry {
    device: u64,
    made: Timestamp,
    pairs: Mutex<BTreeMap<u32, Weak<Pair>>>,
    ptmx_mode: Mutex<u32>,
}

impl Registry {
    /// A pair with the lowest free number.
    pub(super) fn make(self: &Arc<Self>, caller: &Caller) -> Result<Arc<Pair>, Errno> {
        let mut pairs = lock(&self.pairs);
        if pairs.len() >= MOST {
            return Err(Errno::ENOSPC);
        }
        let number = (0..).zip(pairs.keys()).find(|(free, taken)| free != *taken).map(|(free, _)| free);
        let number = number.unwrap_or(u32::try_from(pairs.len()).map_err(|_| Errno::ENOSPC)?);
        let pair = Pair::new(number, self, caller.credentials.fsuid, TTY_GROUP);
        pairs.insert(number, Arc::downgrade(&pair));
        Ok(pair)
    }

    pub(super) fn free(&self, number: u32) {
        lock(&self.pairs).remove(&number);
    }

    /// The pair of this number, as long as its master is open.
    fn find(&self, number: u32) -> Result<Arc<Pair>, Errno> {
        let pair = lock(&self.pairs).get(&number).and_then(Weak::upgrade);
        pair.filter(|pair| pair.is_there()).ok_or(Errno::ENOENT)
    }

    fn numbers(&self) -> Vec<u32> {
        let all: Vec<_> = lock(&self.pairs).values().filter_map(Weak::upgrade).collect();
        all.iter().filter(|pair| pair.is_there()).map(|pair| pair.number()).collect()
    }
}

/// The file system.
pub struct DevPts {
    registry: Arc<Registry>,
}

impl DevPts {
    /// Without a pseudoterminal, ready to be mounted; everybody may open `ptmx`, as container engines mount it.
    #[must_use]
    pub fn tree() -> Arc<Dentry> {
        let registry = Arc::new(Registry {
            device: next_device(),
            made: Timestamp::now(),
            pairs: Mutex::default(),
            ptmx_mode: Mutex::new(0o666),
        });
        Tree::of(Box::new(Self { registry }))
    }
}

impl FileSystem for DevPts {
    fn name(&self) -> &'static str {
        "devpts"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::new(Node { registry: Arc::clone(&self.registry), what: What::Root })
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        Ok(FsStatus { magic: 0x1cd1, block_size: 4096, ..FsStatus::default() })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Root,
    Ptmx,
    Slave(u32),
}

/// A file of it. A slave's is known by its number alone: the name outlives the pair that it is for.
pub(super) struct Node {
    registry: Arc<Registry>,
    what: What,
}

impl Node {
    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
}

/// The inode of a pair's slave.
pub(super) fn slave_inode(registry: &Arc<Registry>, number: u32) -> Arc<dyn Inode> {
    Arc::new(Node { registry: Arc::clone(registry), what: What::Slave(number) })
}

/// Opens the slave of a pair.
pub(super) fn open_slave(pair: &Arc<Pair>, flags: Flags) -> Result<Slave, Errno> {
    let task = current();
    let privileged = task.as_ref().is_none_or(|task| task.credentials().capable(capability::SYS_ADMIN));
    let slave = Slave::new(pair, pair.open_slave(privileged)?);
    if let Some(task) = task.filter(|_| !flags.has(libc::O_NOCTTY) && flags.readable()) {
        let (session, terminals) = (task.session(), task.tasks().terminals());
        let free = terminals.terminal(session).is_none() && terminals.of(&pair.terminal()).is_none();
        if session == task.group().pid() && free {
            sessions::take(&task, &pair.terminal(), false, true)?;
        }
    }
    Ok(slave)
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        if self.what == What::Root { FileKind::Folder } else { FileKind::CharDevice }
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let made = self.registry.made;
        let base = Attributes {
            device: self.registry.device,
            inode: 1,
            kind: self.kind(),
            mode: 0o755,
            links: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 1024,
            accessed: made,
            modified: made,
            changed: made,
            created: None,
        };
        Ok(match self.what {
            What::Root => base,
            What::Ptmx => Attributes {
                inode: 2,
                mode: *lock(&self.registry.ptmx_mode),
                links: 1,
                rdev: device(5, 2),
                ..base
            },
            What::Slave(number) => {
                let owner = *lock(&self.registry.find(number)?.owner);
                Attributes {
                    inode: u64::from(number).saturating_add(3),
                    mode: owner.mode,
                    links: 1,
                    uid: owner.uid,
                    gid: owner.gid,
                    rdev: device(MAJOR, number),
                    accessed: owner.changed,
                    modified: owner.changed,
                    changed: owner.changed,
                    ..base
                }
            }
        })
    }

    fn change(&self, change: &AttributeChange) -> Result<(), Errno> {
        match self.what {
            What::Root => return Err(Errno::EPERM),
            What::Ptmx => {
                let mut mode = lock(&self.registry.ptmx_mode);
                *mode = change.mode.unwrap_or(*mode) & 0o7777;
            }
            What::Slave(number) => {
                let pair = self.registry.find(number)?;
                let mut owner = lock(&pair.owner);
                owner.mode = change.mode.unwrap_or(owner.mode) & 0o7777;
                owner.uid = change.uid.unwrap_or(owner.uid);
                owner.gid = change.gid.unwrap_or(owner.gid);
                owner.changed = Timestamp::now();
            }
        }
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        if self.what != What::Root {
            return Err(Errno::ENOTDIR);
        }
        let what = if name == b"ptmx" {
            What::Ptmx
        } else {
            let number = std::str::from_utf8(name).ok().and_then(|name| name.parse::<u32>().ok());
            let number = number.filter(|number| number.to_string().as_bytes() == name);
            What::Slave(self.registry.find(number.ok_or(Errno::ENOENT)?)?.number())
        };
        Ok(Arc::new(Self { registry: Arc::clone(&self.registry), what }))
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        if self.what != What::Root {
            return Err(Errno::ENOTDIR);
        }
        let entry =
            |name: String, inode| DirEntry { name: name.into_bytes(), inode, kind: FileKind::CharDevice };
        let slaves = self.registry.numbers().into_iter();
        let slaves = slaves.map(|number| entry(number.to_string(), u64::from(number).saturating_add(3)));
        Ok(std::iter::once(entry("ptmx".to_owned(), 2)).chain(slaves).collect())
    }

    fn open(self: Arc<Self>, flags: Flags, caller: &Caller) -> Result<Box<dyn File>, Errno> {
        match self.what {
            What::Root => Err(Errno::EISDIR),
            What::Ptmx => {
                let pair = self.registry.make(caller)?;
                Ok(Box::new(Master::new(&pair, &self.registry)))
            }
            What::Slave(number) => {
                let pair = self.registry.find(number).map_err(|_| Errno::EIO)?;
                Ok(Box::new(open_slave(&pair, flags)?))
            }
        }
    }
}
