//! What folders of the host remember of names.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::node::Node;
use super::{OPENING, REMEMBERED, Sharing};
use crate::error::Errno;
use crate::gofer::wire::Found;
use crate::vfs::sync::lock;
use crate::vfs::{DirEntry, RenameMode};

/// After so many names of a folder were asked for one by one, all are asked for at once, where there are no more than that: first few, then
/// many.
const LIST: [(u32, u32); 2] = [(8, 128), (64, 2048)];
/// Whoever lists a folder looks at what is in it next, at the folders at least: so many come with what they are like.
pub(super) const LISTED: u32 = 512;

/// What a folder remembers.
#[derive(Default)]
pub(super) struct Names {
    /// Of a tree that never changes: what is there, and what is not.
    pub(super) known: HashMap<Vec<u8>, Option<Found>>,
    /// All that is there is in `known`.
    pub(super) complete: bool,
    asked: u32,
    /// Of others: files in use.
    pub(super) children: HashMap<Vec<u8>, Weak<Node>>,
}

impl Node {
    pub(super) fn remember_child(&self, node: &Arc<Self>, name: &[u8]) {
        match self.shared.sharing {
            Sharing::Exclusive => {
                lock(&self.shared.nodes).insert(node.identity, Arc::downgrade(node));
            }
            Sharing::Shared => {
                let mut names = lock(&self.names);
                if names.children.len() >= 64 && names.children.len().is_power_of_two() {
                    names.children.retain(|_, child| child.strong_count() > 0);
                }
                names.children.insert(name.to_vec(), Arc::downgrade(node));
            }
        }
    }

    /// A file of a tree that never changes.
    pub(super) fn lookup_known(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Self>, Errno> {
        let asked = {
            let mut names = lock(&self.names);
            match names.known.get(name) {
                Some(Some(found)) => return Ok(self.child(found.clone(), name)),
                Some(None) => return Err(Errno::ENOENT),
                None if names.complete => return Err(Errno::ENOENT),
                None => names.asked = names.asked.saturating_add(1),
            }
            names.asked
        };
        if let Some((_, most)) = LIST.iter().find(|(after, _)| *after == asked) {
            self.learn(*most)?;
            let names = lock(&self.names);
            match names.known.get(name) {
                Some(Some(found)) => return Ok(self.child(found.clone(), name)),
                None if !names.complete => {}
                _ => return Err(Errno::ENOENT),
            }
        }
        let at = self.below(name)?;
        let answer = match OPENING.get() {
            true => self.shared.client.peek(at),
            false => self.shared.client.look(at).map(|found| (found, None)),
        };
        let (found, file) = match answer {
            Ok((found, file)) => (Some(found), file),
            Err(Errno::ENOENT) => (None, None),
            Err(errno) => return Err(errno),
        };
        if self.take_room(1) {
            let before = lock(&self.names).known.insert(name.to_vec(), found.clone());
            self.give_room(usize::from(before.is_some()));
        }
        let node = self.child(found.ok_or(Errno::ENOENT)?, name);
        lock(&node.contents).peeked = file.map(Arc::new);
        Ok(node)
    }

    fn child(self: &Arc<Self>, found: Found, name: &[u8]) -> Arc<Self> {
        Self::build(&self.shared, found, Some((Arc::clone(self), name.to_vec())))
    }

    /// Asks for all that is in this folder, and remembers what it is like where it is no more than so much.
    pub(super) fn learn(self: &Arc<Self>, most: u32) -> Result<Vec<DirEntry>, Errno> {
        let listed = self.shared.client.list(self.place()?, most)?;
        let remembers = listed.len() <= most as usize && self.take_room(listed.len());
        let (mut entries, mut known) = (Vec::with_capacity(listed.len()), HashMap::new());
        let mut complete = true;
        for one in listed {
            match one.found {
                Some(found) if remembers => drop(known.insert(one.entry.name.clone(), Some(found))),
                _ => complete = false,
            }
            entries.push(one.entry);
        }
        if remembers {
            let mut names = lock(&self.names);
            let before = std::mem::replace(&mut names.known, known);
            names.complete = complete;
            drop(names);
            // Names that are twice in the list, which no host gives, are the gofer's fault and cost room.
            self.give_room(before.len());
        }
        Ok(entries)
    }

    /// What a folder has of which all is known.
    pub(super) fn known_entries(&self) -> Result<Vec<DirEntry>, Errno> {
        let entry = |(name, found): (&Vec<u8>, &Option<Found>)| {
            let attributes = found.as_ref()?.attributes;
            Some(DirEntry { name: name.clone(), inode: attributes.inode, kind: attributes.kind })
        };
        Ok(lock(&self.names).known.iter().filter_map(entry).collect())
    }

    fn take_room(&self, count: usize) -> bool {
        let remembered = &self.shared.remembered;
        let more = |now: usize| now.checked_add(count).filter(|sum| *sum <= REMEMBERED);
        remembered.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    pub(super) fn give_room(&self, count: usize) {
        let less = |now: usize| Some(now.saturating_sub(count));
        let _ = self.shared.remembered.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Moves what is known of a name when it gets another.
    pub(super) fn child_moved(
        self: &Arc<Self>,
        name: &[u8],
        to: &Arc<Self>,
        to_name: &[u8],
        mode: RenameMode,
    ) {
        let take = |of: &Self, name: &[u8]| lock(&of.names).children.remove(name).and_then(|it| it.upgrade());
        let put = |node: Option<Arc<Self>>, folder: &Arc<Self>, name: &[u8]| {
            let Some(node) = node else { return };
            let before = lock(&node.found).replace((Arc::clone(folder), name.to_vec()));
            drop(before);
            node.changed();
            lock(&folder.names).children.insert(name.to_vec(), Arc::downgrade(&node));
        };
        let (moved, other) = (take(self, name), take(to, to_name));
        put(moved, to, to_name);
        if mode == RenameMode::Exchange {
            put(other, self, name);
        }
    }
}
