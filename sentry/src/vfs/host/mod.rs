//! Files of the host, as a gofer gives them ([`crate::gofer`]).
//!
//! A tree is *exclusive* when nobody but this sandbox changes it as long as it is mounted, and *shared* otherwise:
//!
//! | | exclusive | shared |
//! |---|---|---|
//! | names | what was seen once stays, also that a name is nobody's | looked at again each time they are used, after [`FRESH`] |
//! | attributes | asked for once, and again after changes of our own | no older than [`FRESH`] |
//! | an open file | the host's own descriptor: always as the host has it | the same |
//!
//! Of an exclusive tree that cannot be written the gofer holds nothing but the root: a file is known by the names that lead to it. Elsewhere it
//! holds each file that the sentry knows, since names change.

mod names;
mod node;
mod opened;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use node::Node;

use super::kept::Kept;
use super::{Dentry, FileSystem, FsStatus, Inode, Tree};
use crate::error::Errno;
use crate::gofer::Client;

/// How old what is known of a shared tree may be: less than it takes to tell somebody else that it changed.
const FRESH: Duration = Duration::from_millis(1);
/// Names that one tree remembers besides those in use.
const REMEMBERED: usize = 32_768;

thread_local! {
    /// What this thread looks up it is going to open.
    static OPENING: Cell<bool> = const { Cell::new(false) };
}

/// Looks a name up to open it: what the gofer is asked is then both at once.
pub(super) fn opening<T>(look: impl FnOnce() -> T) -> T {
    OPENING.set(true);
    let found = look();
    OPENING.set(false);
    found
}

/// Who changes a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody but who has mounted it.
    Exclusive,
    /// Others, too.
    Shared,
}

/// What all files of one mount share.
struct Shared {
    client: Arc<Client>,
    device: u64,
    sharing: Sharing,
    writable: bool,
    /// Files of an exclusive tree that can be written, by the host's numbers: a file with several names is one.
    nodes: Mutex<HashMap<(u64, u64), Weak<Node>>>,
    remembered: AtomicUsize,
    kept: Kept,
}

impl Shared {
    /// Whether the gofer holds each file.
    fn pinned(&self) -> bool {
        self.writable || self.sharing == Sharing::Shared
    }
}

/// A tree of files of the host.
pub struct HostFs {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl HostFs {
    /// The `export`th of what a gofer exports. It can be `writable` where that says so, too.
    ///
    /// # Errors
    /// Of the gofer.
    pub fn new(client: Arc<Client>, export: u32, writable: bool, sharing: Sharing) -> Result<Self, Errno> {
        let found = client.attach(export)?;
        let shared = Arc::new(Shared {
            client,
            device: super::tmpfs::next_device(),
            sharing,
            writable,
            nodes: Mutex::default(),
            remembered: AtomicUsize::new(0),
            kept: Kept::default(),
        });
        let root = Node::root(&shared, found);
        Ok(Self { shared, root })
    }

    /// Ready to be mounted.
    ///
    /// # Errors
    /// Of the gofer.
    pub fn tree(
        client: Arc<Client>,
        export: u32,
        writable: bool,
        sharing: Sharing,
    ) -> Result<Arc<Dentry>, Errno> {
        Ok(Tree::of(Box::new(Self::new(client, export, writable, sharing)?)))
    }
}

impl FileSystem for HostFs {
    fn name(&self) -> &'static str {
        "9p"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        let status = FsStatus { magic: 0x0102_1997, ..self.root.host_status()? };
        if self.shared.writable {
            Ok(status)
        } else {
            Ok(FsStatus { blocks_free: 0, files_free: 0, ..status })
        }
    }

    fn read_only(&self) -> bool {
        !self.shared.writable
    }
}
