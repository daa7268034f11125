//! Files of a tree of the host.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use super::names::{LISTED, Names};
use super::opened::Opened;
use super::{FRESH, Shared, Sharing};
use crate::error::Errno;
use crate::gofer::wire::{Access, At, Found, Handle, Made, NAMES_MAX, PATH_MAX};
use crate::vfs::inode::downcast;
use crate::vfs::kept::SMALL;
use crate::vfs::locks::FileLocks;
use crate::vfs::pipe::Pipe;
use crate::vfs::sync::lock;
use crate::vfs::{
    AttributeChange, Attributes, Caller, Content, DirEntry, File, FileKind, Flags, FsStatus, Inode, NewNode,
    RenameMode, Timestamp, XattrMode,
};

/// A file.
pub(super) struct Node {
    me: Weak<Node>,
    pub(super) shared: Arc<Shared>,
    /// The host's numbers of its file system and of itself.
    pub(super) identity: (u64, u64),
    kind: FileKind,
    target: Vec<u8>,
    handle: OnceLock<Handle>,
    /// The folder it was found in and its name there; `None` for the root and what has no name.
    pub(super) found: Mutex<Option<(Arc<Node>, Vec<u8>)>>,
    seen: Mutex<Seen>,
    pub(super) contents: Mutex<Contents>,
    pub(super) names: Mutex<Names>,
    pub(super) append: Mutex<()>,
    fifo: OnceLock<Arc<Pipe>>,
    locks: FileLocks,
}

/// Attributes, and when they were asked for; `None` when they are known to have changed. And when it was found by its name at last.
struct Seen {
    attributes: Attributes,
    at: Option<Instant>,
    named: Instant,
}

/// Descriptors of the host, as long as somebody has them open. What may be read only has one of its own: a guest's mapping can do what
/// its descriptor can.
#[derive(Default)]
pub(super) struct Contents {
    read: Weak<OwnedFd>,
    write: Weak<OwnedFd>,
    /// Came when the file was made, to be written: it will be opened at once.
    new: Option<Arc<OwnedFd>>,
    /// Came when the file was looked up to be opened, to be read.
    pub(super) peeked: Option<Arc<OwnedFd>>,
    /// What is in it.
    small: Weak<Vec<u8>>,
}

impl Node {
    pub(super) fn root(shared: &Arc<Shared>, found: Found) -> Arc<Self> {
        Self::build(shared, found, None)
    }

    pub(super) fn build(shared: &Arc<Shared>, found: Found, at: Option<(Arc<Self>, Vec<u8>)>) -> Arc<Self> {
        let identity = (found.attributes.device, found.attributes.inode);
        let handle = OnceLock::new();
        if found.handle != 0 {
            let _ = handle.set(found.handle);
        }
        let attributes = Attributes { device: shared.device, ..found.attributes };
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            shared: Arc::clone(shared),
            identity,
            kind: attributes.kind,
            target: found.target,
            handle,
            found: Mutex::new(at),
            seen: Mutex::new(Seen { attributes, at: Some(Instant::now()), named: Instant::now() }),
            contents: Mutex::default(),
            names: Mutex::default(),
            append: Mutex::default(),
            fifo: OnceLock::new(),
            locks: FileLocks::default(),
        })
    }

    fn me(&self) -> Result<Arc<Self>, Errno> {
        self.me.upgrade().ok_or(Errno::EIO)
    }

    /// The same file always by the same node, where that can be told.
    fn pinned(self: &Arc<Self>, found: Found, name: &[u8]) -> Arc<Self> {
        let identity = (found.attributes.device, found.attributes.inode);
        let known = match self.shared.sharing {
            Sharing::Exclusive => lock(&self.shared.nodes).get(&identity).and_then(Weak::upgrade),
            Sharing::Shared => lock(&self.names).children.get(name).and_then(Weak::upgrade),
        };
        let known = known.filter(|node| node.identity == identity && node.kind == found.attributes.kind);
        if let Some(node) = known {
            self.shared.client.close(found.handle);
            node.see(&found.attributes);
            lock(&node.seen).named = Instant::now();
            return node;
        }
        let node = Self::build(&self.shared, found, Some((Arc::clone(self), name.to_vec())));
        self.remember_child(&node, name);
        node
    }

    /// How the gofer finds it: from the nearest folder above that it holds, or by its own handle. A way that is too long for one request is
    /// made shorter by having the gofer hold a folder on it.
    pub(super) fn place(self: &Arc<Self>) -> Result<At, Errno> {
        let mut names = Vec::new();
        let mut bytes = 0;
        let mut at = Arc::clone(self);
        loop {
            if let Some(handle) = at.handle.get() {
                names.reverse();
                return Ok(At { handle: *handle, names });
            }
            let (above, name) = lock(&at.found).clone().ok_or(Errno::ESTALE)?;
            bytes += name.len() + 1;
            // One is left for a name below.
            if names.len() + 2 > NAMES_MAX || bytes + crate::vfs::NAME_MAX + 1 > PATH_MAX {
                let handle = at.own_handle()?;
                names.reverse();
                return Ok(At { handle, names });
            }
            names.push(name);
            at = above;
        }
    }

    /// Has the gofer hold it.
    fn own_handle(self: &Arc<Self>) -> Result<Handle, Errno> {
        if let Some(handle) = self.handle.get() {
            return Ok(*handle);
        }
        // Those above first, from the top, so that no way is too long.
        let mut chain = vec![Arc::clone(self)];
        while let Some(above) = chain.last().and_then(|node| lock(&node.found).clone()) {
            if above.0.handle.get().is_some() {
                break;
            }
            chain.push(above.0);
        }
        // Every so many names is enough.
        let steps = chain.len();
        for (number, node) in chain.iter().enumerate().rev() {
            let needed = number == 0 || (steps - number).is_multiple_of(4);
            if needed && node.handle.get().is_none() {
                let found = self.shared.client.walk(node.place_of_name()?)?;
                node.same(&found)?;
                if node.handle.set(found.handle).is_err() {
                    self.shared.client.close(found.handle);
                }
            }
        }
        self.handle.get().copied().ok_or(Errno::ESTALE)
    }

    fn place_of_name(self: &Arc<Self>) -> Result<At, Errno> {
        let (above, name) = lock(&self.found).clone().ok_or(Errno::ESTALE)?;
        above.below(&name)
    }

    /// A name in it.
    pub(super) fn below(self: &Arc<Self>, name: &[u8]) -> Result<At, Errno> {
        let mut at = self.place()?;
        at.names.push(name.to_vec());
        Ok(at)
    }

    fn pinned_handle(&self) -> Result<Handle, Errno> {
        self.handle.get().copied().ok_or(Errno::EIO)
    }

    /// ESTALE where the gofer speaks of another file.
    fn same(&self, found: &Found) -> Result<(), Errno> {
        let same = (found.attributes.device, found.attributes.inode) == self.identity;
        if same && found.attributes.kind == self.kind { Ok(()) } else { Err(Errno::ESTALE) }
    }

    /// Notes what the gofer told.
    fn see(&self, attributes: &Attributes) {
        let mut seen = lock(&self.seen);
        seen.attributes = Attributes { device: self.shared.device, ..*attributes };
        seen.at = Some(Instant::now());
    }

    /// What is known of it is no longer so.
    pub(super) fn changed(&self) {
        lock(&self.seen).at = None;
    }

    /// A file that one of our own changes concerned.
    fn changed_other(&self, identity: (u64, u64)) {
        let node = lock(&self.shared.nodes).get(&identity).and_then(Weak::upgrade);
        if let Some(node) = node {
            node.changed();
        }
    }

    /// What is known and can be believed still.
    fn known(&self) -> Option<Attributes> {
        let seen = lock(&self.seen);
        let at = seen.at?;
        let fresh = self.shared.sharing == Sharing::Exclusive || at.elapsed() < FRESH;
        fresh.then_some(seen.attributes)
    }

    /// A descriptor that somebody has open.
    fn open_descriptor(&self) -> Option<Arc<OwnedFd>> {
        let contents = lock(&self.contents);
        contents.write.upgrade().or_else(|| contents.read.upgrade())
    }

    /// What the host says of an open file.
    pub(super) fn see_open(&self, fd: &OwnedFd) -> Result<Attributes, Errno> {
        let status = nix::sys::stat::fstat(fd)?;
        let stamp = |seconds, nanoseconds| Timestamp {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        let mut seen = lock(&self.seen);
        seen.attributes = Attributes {
            mode: status.st_mode & 0o7777,
            links: u32::try_from(status.st_nlink).unwrap_or(u32::MAX),
            uid: status.st_uid,
            gid: status.st_gid,
            size: u64::try_from(status.st_size).unwrap_or(0),
            blocks: u64::try_from(status.st_blocks).unwrap_or(0),
            accessed: stamp(status.st_atime, status.st_atime_nsec),
            modified: stamp(status.st_mtime, status.st_mtime_nsec),
            changed: stamp(status.st_ctime, status.st_ctime_nsec),
            ..seen.attributes
        };
        seen.at = Some(Instant::now());
        Ok(seen.attributes)
    }

    /// A descriptor of its contents.
    fn descriptor(self: &Arc<Self>, access: Access) -> Result<Arc<OwnedFd>, Errno> {
        let mut contents = lock(&self.contents);
        let new = contents.new.take();
        let peeked = contents.peeked.take();
        let known = match access {
            Access::Read => peeked.or_else(|| contents.read.upgrade()),
            Access::Write => new.or_else(|| contents.write.upgrade()),
        };
        let file = match known {
            Some(file) => file,
            None => {
                let (found, file) = self.shared.client.open(self.place()?, access)?;
                self.same(&found)?;
                self.see(&found.attributes);
                let file = Arc::new(file);
                if access == Access::Read && self.shared.sharing == Sharing::Exclusive {
                    self.shared.kept.keep(&file);
                }
                file
            }
        };
        let slot = match access {
            Access::Read => &mut contents.read,
            Access::Write => &mut contents.write,
        };
        *slot = Arc::downgrade(&file);
        Ok(file)
    }

    /// What is in it, where that is little and nobody ever changes it.
    pub(super) fn small_contents(&self, fd: &OwnedFd) -> Option<Arc<Vec<u8>>> {
        if self.shared.pinned() {
            return None;
        }
        let size = usize::try_from(lock(&self.seen).attributes.size).ok().filter(|size| *size <= SMALL)?;
        if let Some(known) = lock(&self.contents).small.upgrade() {
            return Some(known);
        }
        let mut bytes = vec![0; size];
        // Another length is that of a file that changed after all.
        if nix::sys::uio::pread(fd, &mut bytes, 0) != Ok(size) {
            return None;
        }
        let contents = Arc::new(bytes);
        lock(&self.contents).small = Arc::downgrade(&contents);
        self.shared.kept.keep_small(&contents);
        Some(contents)
    }

    /// How full its file system is.
    pub(super) fn host_status(self: &Arc<Self>) -> Result<FsStatus, Errno> {
        self.shared.client.status(self.own_handle()?)
    }

    fn folder(&self) -> Result<(), Errno> {
        if self.kind == FileKind::Folder { Ok(()) } else { Err(Errno::ENOTDIR) }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.shared.writable { Ok(()) } else { Err(Errno::EROFS) }
    }

    fn made(new: &NewNode<'_>) -> Made {
        let (rdev, target) = match new.content {
            Content::Symlink(target) => (0, target.to_vec()),
            Content::CharDevice(rdev) | Content::BlockDevice(rdev) => (rdev, Vec::new()),
            _ => (0, Vec::new()),
        };
        let kind = new.content.kind();
        Made { kind, mode: new.mode & 0o7777, uid: new.uid, gid: new.gid, rdev, target }
    }
}

impl Drop for Node {
    /// Chains of folders go one by one, not by recursion.
    fn drop(&mut self) {
        if let Some(handle) = self.handle.get() {
            self.shared.client.close(*handle);
        }
        let known = self.names.get_mut().unwrap_or_else(PoisonError::into_inner).known.len();
        self.give_room(known);
        if self.shared.pinned() {
            let mut nodes = lock(&self.shared.nodes);
            if nodes.get(&self.identity).is_some_and(|node| node.strong_count() == 0) {
                nodes.remove(&self.identity);
            }
        }
        let take = |found: &mut Mutex<Option<(Arc<Self>, Vec<u8>)>>| {
            found.get_mut().unwrap_or_else(PoisonError::into_inner).take()
        };
        let mut next = take(&mut self.found);
        while let Some(mut parent) = next.take().and_then(|(parent, _)| Arc::into_inner(parent)) {
            next = take(&mut parent.found);
        }
    }
}

/// Attributes of the host's own security modules and of its root are not the guest's.
fn shown(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        if self.shared.pinned()
            && let Some(fd) = self.open_descriptor()
        {
            return self.see_open(&fd);
        }
        if let Some(attributes) = self.known() {
            return Ok(attributes);
        }
        let found = self.shared.client.look(At::handle(self.pinned_handle()?))?;
        self.same(&found).map_err(|_| Errno::EIO)?;
        self.see(&found.attributes);
        Ok(Attributes { device: self.shared.device, ..found.attributes })
    }

    fn steady(&self) -> bool {
        // A mapping writes without a call.
        self.shared.sharing == Sharing::Exclusive && lock(&self.contents).write.strong_count() == 0
    }

    fn change(&self, change: &AttributeChange) -> Result<(), Errno> {
        self.writable()?;
        let found = self.shared.client.change(self.pinned_handle()?, change)?;
        self.same(&found).map_err(|_| Errno::EIO)?;
        self.see(&found.attributes);
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        self.folder()?;
        if !self.shared.pinned() {
            return Ok(self.me()?.lookup_known(name)?);
        }
        let at = At { handle: self.pinned_handle()?, names: vec![name.to_vec()] };
        let found = self.shared.client.walk(at)?;
        Ok(self.me()?.pinned(found, name))
    }

    fn create(&self, name: &[u8], new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        self.writable()?;
        let (found, file) = self.shared.client.create(self.pinned_handle()?, name, Self::made(new))?;
        self.changed();
        if found.attributes.kind != new.content.kind() {
            return Err(Errno::EIO);
        }
        let node = self.me()?.pinned(found, name);
        lock(&node.contents).new = file.map(Arc::new);
        Ok(node)
    }

    fn temporary(&self, new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        self.writable()?;
        let (found, file) = self.shared.client.temporary(self.pinned_handle()?, Self::made(new))?;
        if found.attributes.kind != FileKind::Regular {
            return Err(Errno::EIO);
        }
        let node = Self::build(&self.shared, found, None);
        if self.shared.sharing == Sharing::Exclusive {
            lock(&self.shared.nodes).insert(node.identity, Arc::downgrade(&node));
        }
        lock(&node.contents).new = Some(Arc::new(file));
        Ok(node)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<(), Errno> {
        self.writable()?;
        let target = downcast::<Self>(target).filter(|node| Arc::ptr_eq(&node.shared, &self.shared));
        let target = target.ok_or(Errno::EXDEV)?;
        self.shared.client.link(self.pinned_handle()?, name, target.pinned_handle()?)?;
        self.changed();
        target.changed();
        Ok(())
    }

    fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        self.take_away(name, false)
    }

    fn rmdir(&self, name: &[u8]) -> Result<(), Errno> {
        self.take_away(name, true)
    }

    fn rename(
        &self,
        name: &[u8],
        to: &Arc<dyn Inode>,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        self.writable()?;
        let to = downcast::<Self>(to).filter(|node| Arc::ptr_eq(&node.shared, &self.shared));
        let to = to.ok_or(Errno::EXDEV)?;
        let (from_at, to_at) = (self.pinned_handle()?, to.pinned_handle()?);
        let victim = self.shared.client.rename((from_at, name), (to_at, to_name), mode)?;
        self.me()?.child_moved(name, &to, to_name, mode);
        self.changed();
        to.changed();
        self.changed_other(victim);
        Ok(())
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        self.folder()?;
        if !self.shared.pinned() {
            return if lock(&self.names).complete { self.known_entries() } else { self.me()?.learn(LISTED) };
        }
        let listed = self.shared.client.list(self.me()?.place()?, 0)?;
        Ok(listed.into_iter().map(|listed| listed.entry).collect())
    }

    fn readlink(&self, _caller: &Caller) -> Result<Vec<u8>, Errno> {
        if self.kind == FileKind::Symlink { Ok(self.target.clone()) } else { Err(Errno::EINVAL) }
    }

    fn valid(&self) -> bool {
        if self.shared.sharing == Sharing::Exclusive {
            return true;
        }
        let Some((above, name)) = lock(&self.found).clone() else { return true };
        if lock(&self.seen).named.elapsed() < FRESH {
            return true;
        }
        let Ok(handle) = above.pinned_handle() else { return true };
        match self.shared.client.look(At { handle, names: vec![name] }) {
            Ok(found) if self.same(&found).is_ok() => {
                self.see(&found.attributes);
                lock(&self.seen).named = Instant::now();
                true
            }
            // Without a gofer nothing is known, and whatever is done says so.
            Err(Errno::EIO) => true,
            _ => false,
        }
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Caller) -> Result<Box<dyn File>, Errno> {
        if self.kind != FileKind::Regular {
            return Err(Errno::ENXIO);
        }
        if flags.writable() {
            self.writable()?;
        }
        let access = if flags.writable() { Access::Write } else { Access::Read };
        Ok(Box::new(Opened::new(&self, self.descriptor(access)?, flags.writable())))
    }

    fn fifo(&self) -> Option<Arc<Pipe>> {
        (self.kind == FileKind::Fifo).then(|| Arc::clone(self.fifo.get_or_init(Pipe::new)))
    }

    fn has_set_id(&self) -> bool {
        lock(&self.seen).attributes.mode & 0o6000 != 0
    }

    fn locks(&self) -> Option<&FileLocks> {
        Some(&self.locks)
    }

    fn sync(&self) -> Result<(), Errno> {
        if self.shared.writable { self.shared.client.sync(self.pinned_handle()?) } else { Ok(()) }
    }

    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if shown(name) { self.shared.client.xattr(self.me()?.place()?, name) } else { Err(Errno::ENODATA) }
    }

    fn xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let names = match self.shared.client.xattrs(self.me()?.place()?) {
            Err(Errno::EOPNOTSUPP) => Vec::new(),
            names => names?,
        };
        Ok(names.into_iter().filter(|name| shown(name)).collect())
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), Errno> {
        self.writable()?;
        if !shown(name) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.shared.client.set_xattr(self.pinned_handle()?, name, value, mode)?;
        self.changed();
        Ok(())
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        self.writable()?;
        if !shown(name) {
            return Err(Errno::ENODATA);
        }
        self.shared.client.remove_xattr(self.pinned_handle()?, name)?;
        self.changed();
        Ok(())
    }
}

impl Node {
    fn take_away(&self, name: &[u8], as_folder: bool) -> Result<(), Errno> {
        self.writable()?;
        let victim = self.shared.client.unlink(self.pinned_handle()?, name, as_folder)?;
        lock(&self.names).children.remove(name);
        self.changed();
        self.changed_other(victim);
        Ok(())
    }
}
