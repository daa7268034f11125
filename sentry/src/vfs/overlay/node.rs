//! Files of an overlay, and what is looked at without a change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::{OPAQUE, PRIVATE, Shared};
use crate::error::Errno;
use crate::vfs::dev::is_whiteout;
use crate::vfs::inode::downcast;
use crate::vfs::locks::FileLocks;
use crate::vfs::pipe::Pipe;
use crate::vfs::sync::{lock, read};
use crate::vfs::{
    AttributeChange, Attributes, Caller, DirEntry, File, FileKind, Flags, Inode, NewNode, RenameMode,
    XattrMode,
};

/// Numbers of files that were never in a lower layer are kept apart from those that were.
const UPPER_NUMBERS: u64 = 1 << 48;

/// A file of an overlay.
pub(super) struct Node {
    me: Weak<Node>,
    pub(super) shared: Arc<Shared>,
    pub(super) kind: FileKind,
    number: u64,
    /// The folder it is in and its name there; `None` for the root and for what has no name any more.
    pub(super) at: Mutex<Option<(Arc<Node>, Vec<u8>)>>,
    pub(super) upper: RwLock<Option<Arc<dyn Inode>>>,
    /// What it is in lower layers: one file, or all folders that are merged.
    pub(super) lower: Vec<Arc<dyn Inode>>,
    /// Files of this folder that only lower layers have.
    below: Mutex<HashMap<Vec<u8>, Weak<Node>>>,
    locks: FileLocks,
}

pub(super) fn is_opaque(folder: &Arc<dyn Inode>) -> bool {
    folder.xattr(OPAQUE).is_ok_and(|value| value == b"y")
}

fn found(result: Result<Arc<dyn Inode>, Errno>) -> Result<Option<Arc<dyn Inode>>, Errno> {
    match result {
        Ok(inode) => Ok(Some(inode)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Node {
    pub(super) fn root(
        shared: &Arc<Shared>,
        upper: Arc<dyn Inode>,
        lower: Vec<Arc<dyn Inode>>,
    ) -> Result<Arc<Self>, Errno> {
        Self::build(shared, None, Some(upper), lower)
    }

    fn build(
        shared: &Arc<Shared>,
        at: Option<(Arc<Self>, Vec<u8>)>,
        upper: Option<Arc<dyn Inode>>,
        lower: Vec<Arc<dyn Inode>>,
    ) -> Result<Arc<Self>, Errno> {
        let kind = upper.as_ref().or(lower.first()).ok_or(Errno::ENOENT)?.kind();
        let number = match (lower.first(), &upper) {
            (Some(lower), _) => lower.attributes()?.inode,
            (None, Some(upper)) => shared.number_of(upper.attributes()?.inode),
            (None, None) => return Err(Errno::ENOENT),
        };
        let upper_number = upper.as_ref().map(|upper| upper.attributes()).transpose()?.map(|a| a.inode);
        let node = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            shared: Arc::clone(shared),
            kind,
            number,
            at: Mutex::new(at),
            upper: RwLock::new(upper),
            lower,
            below: Mutex::default(),
            locks: FileLocks::default(),
        });
        if let Some(number) = upper_number {
            lock(&shared.known).insert(number, Arc::downgrade(&node));
        }
        Ok(node)
    }

    /// A file of the upper layer, always by the same node.
    pub(super) fn of_upper(
        self: &Arc<Self>,
        name: &[u8],
        upper: Arc<dyn Inode>,
        lower: Vec<Arc<dyn Inode>>,
    ) -> Result<Arc<Self>, Errno> {
        let number = upper.attributes()?.inode;
        let _one_at_a_time = lock(&self.shared.building);
        let known = lock(&self.shared.known).get(&number).and_then(Weak::upgrade);
        match known {
            Some(node) => Ok(node),
            None => Self::build(&self.shared, Some((Arc::clone(self), name.to_vec())), Some(upper), lower),
        }
    }

    /// What it is in the upper layer.
    pub(super) fn upper(&self) -> Option<Arc<dyn Inode>> {
        read(&self.upper).clone()
    }

    /// The uppermost that there is of it.
    pub(super) fn real(&self) -> Result<Arc<dyn Inode>, Errno> {
        self.upper().or_else(|| self.lower.first().cloned()).ok_or(Errno::EIO)
    }

    /// What lower layers have of that name: at the first place one file, or folders to be merged.
    pub(super) fn lower_of(&self, name: &[u8]) -> Result<Vec<Arc<dyn Inode>>, Errno> {
        let mut layers = Vec::new();
        for folder in &self.lower {
            let Some(inode) = found(folder.lookup(name))? else { continue };
            let is_folder = inode.kind() == FileKind::Folder;
            if is_whiteout(&inode) || (!is_folder && !layers.is_empty()) {
                break;
            }
            let last = !is_folder || is_opaque(&inode);
            layers.push(inode);
            if last {
                break;
            }
        }
        Ok(layers)
    }

    /// Whether a lower layer shows something of that name where the upper has nothing.
    pub(super) fn lower_has(&self, name: &[u8]) -> Result<bool, Errno> {
        Ok(!self.lower_of(name)?.is_empty())
    }

    /// What the upper layer has of that name, whiteouts included.
    pub(super) fn upper_of(&self, name: &[u8]) -> Result<Option<Arc<dyn Inode>>, Errno> {
        match self.upper() {
            Some(upper) => found(upper.lookup(name)),
            None => Ok(None),
        }
    }

    pub(super) fn find(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Self>, Errno> {
        if self.kind != FileKind::Folder {
            return Err(Errno::ENOTDIR);
        }
        let upper = self.upper_of(name)?;
        if upper.as_ref().is_some_and(is_whiteout) {
            return Err(Errno::ENOENT);
        }
        let Some(upper) = upper else { return self.of_lower(name) };
        let merges = upper.kind() == FileKind::Folder && !is_opaque(&upper);
        let mut lower = if merges { self.lower_of(name)? } else { Vec::new() };
        if lower.first().is_some_and(|lower| lower.kind() != FileKind::Folder) {
            lower.clear();
        }
        self.of_upper(name, upper, lower)
    }

    /// A file that only lower layers have, always by the same node: a copy to the upper layer must be seen by all who hold it.
    fn of_lower(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Self>, Errno> {
        let mut below = lock(&self.below);
        let known = below.get(name).and_then(Weak::upgrade);
        if let Some(node) = known.filter(|node| node.upper().is_none()) {
            return Ok(node);
        }
        let lower = self.lower_of(name)?;
        let node = Self::build(&self.shared, Some((Arc::clone(self), name.to_vec())), None, lower)?;
        if below.len() >= 64 && below.len().is_power_of_two() {
            below.retain(|_, node| node.strong_count() > 0);
        }
        below.insert(name.to_vec(), Arc::downgrade(&node));
        Ok(node)
    }

    fn merged(&self) -> bool {
        self.kind == FileKind::Folder && self.lower.len() + usize::from(self.upper().is_some()) > 1
    }

    /// This node, shared.
    pub(super) fn me(&self) -> Result<Arc<Self>, Errno> {
        self.me.upgrade().ok_or(Errno::EIO)
    }
}

impl Shared {
    /// The number that a file of the upper layer shows.
    pub(super) fn number_of(&self, upper: u64) -> u64 {
        lock(&self.origins).get(&upper).copied().unwrap_or(upper | UPPER_NUMBERS)
    }
}

impl Node {
    pub(super) fn list_merged(&self) -> Result<Vec<DirEntry>, Errno> {
        let mut names: BTreeMap<Vec<u8>, Option<DirEntry>> = BTreeMap::new();
        let upper = self.upper();
        for (is_upper, folder) in
            upper.iter().map(|upper| (true, upper)).chain(self.lower.iter().map(|lower| (false, lower)))
        {
            for mut entry in folder.list()? {
                if names.contains_key(&entry.name) {
                    continue;
                }
                let hidden = entry.kind == FileKind::CharDevice
                    && found(folder.lookup(&entry.name))?.is_none_or(|inode| is_whiteout(&inode));
                if is_upper {
                    entry.inode = self.number_of_entry(&entry)?;
                }
                names.insert(entry.name.clone(), (!hidden).then_some(entry));
            }
        }
        Ok(names.into_values().flatten().collect())
    }

    /// A merged folder has the number of the uppermost of its lower ones.
    fn number_of_entry(&self, entry: &DirEntry) -> Result<u64, Errno> {
        if entry.kind == FileKind::Folder
            && !self.lower.is_empty()
            && self.upper_of(&entry.name)?.is_some_and(|upper| !is_opaque(&upper))
            && let Some(lower) = self.lower_of(&entry.name)?.first()
            && lower.kind() == FileKind::Folder
        {
            return Ok(lower.attributes()?.inode);
        }
        Ok(self.shared.number_of(entry.inode))
    }
}

impl Drop for Node {
    /// Chains of folders go one by one, not by recursion.
    fn drop(&mut self) {
        let upper = self.upper.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(upper) = upper.and_then(|upper| upper.attributes().ok()) {
            let mut known = lock(&self.shared.known);
            if known.get(&upper.inode).is_some_and(|node| node.strong_count() == 0) {
                known.remove(&upper.inode);
            }
            drop(known);
            if upper.links == 0 {
                lock(&self.shared.origins).remove(&upper.inode);
            }
        }
        let take = |at: &mut Mutex<Option<(Arc<Self>, Vec<u8>)>>| {
            at.get_mut().unwrap_or_else(PoisonError::into_inner).take()
        };
        let mut next = take(&mut self.at);
        while let Some(mut parent) = next.take().and_then(|(parent, _)| Arc::into_inner(parent)) {
            next = take(&mut parent.at);
        }
    }
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let real = self.real()?.attributes()?;
        let links = if self.merged() { 1 } else { real.links };
        Ok(Attributes { device: self.shared.device, inode: self.number, links, ..real })
    }

    fn steady(&self) -> bool {
        self.shared.steady && self.real().is_ok_and(|real| real.steady())
    }

    fn change(&self, change: &AttributeChange) -> Result<(), Errno> {
        self.copied_up()?.change(change)
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        Ok(self.me()?.find(name)?)
    }

    fn create(&self, name: &[u8], new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Ok(self.me()?.make(name, new)?)
    }

    fn temporary(&self, new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        let upper = self.copied_up()?.temporary(new)?;
        let node = Self::build(&self.shared, None, Some(upper), Vec::new())?;
        Ok(node)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<(), Errno> {
        let target = downcast::<Self>(target).filter(|node| Arc::ptr_eq(&node.shared, &self.shared));
        self.add_link(name, &*target.ok_or(Errno::EXDEV)?)
    }

    fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        self.me()?.take_away(name, false)
    }

    fn rmdir(&self, name: &[u8]) -> Result<(), Errno> {
        self.me()?.take_away(name, true)
    }

    fn rename(
        &self,
        name: &[u8],
        to: &Arc<dyn Inode>,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let to = downcast::<Self>(to).filter(|node| Arc::ptr_eq(&node.shared, &self.shared));
        self.me()?.move_to(name, &to.ok_or(Errno::EXDEV)?, to_name, mode)
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        if self.kind == FileKind::Folder { self.list_merged() } else { Err(Errno::ENOTDIR) }
    }

    fn readlink(&self, caller: &Caller) -> Result<Vec<u8>, Errno> {
        self.real()?.readlink(caller)
    }

    fn open(self: Arc<Self>, flags: Flags, caller: &Caller) -> Result<Box<dyn File>, Errno> {
        let changes = flags.writable() || flags.has(libc::O_TRUNC);
        let real = if changes { self.copied_up()? } else { self.real()? };
        real.open(flags, caller)
    }

    fn fifo(&self) -> Option<Arc<Pipe>> {
        self.real().ok()?.fifo()
    }

    fn has_set_id(&self) -> bool {
        self.real().is_ok_and(|real| real.has_set_id())
    }

    fn locks(&self) -> Option<&FileLocks> {
        Some(&self.locks)
    }

    fn xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if name.starts_with(PRIVATE) { Err(Errno::ENODATA) } else { self.real()?.xattr(name) }
    }

    fn xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = self.real()?.xattrs()?;
        names.retain(|name| !name.starts_with(PRIVATE));
        Ok(names)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), Errno> {
        if name.starts_with(PRIVATE) {
            return Err(Errno::EPERM);
        }
        self.copied_up()?.set_xattr(name, value, mode)
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        self.xattr(name)?;
        self.copied_up()?.remove_xattr(name)
    }
}
