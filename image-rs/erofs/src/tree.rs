//! The files of an image without their contents: what its layers amount to.
//!
//! Names are resolved as a container would resolve them: symbolic links in parents are followed within the root, never out of it.
//! A node may have several names (hard links). Nodes that have lost their last name stay in the arena and are not written.

use std::collections::BTreeMap;

/// Most symbolic links that one name may lead through (Linux, `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Most folders in one another. Names of a layer are shorter, but links in them may lead from one deep folder on.
const MAX_DEPTH: usize = 512;

/// What a node is known by within its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(usize);

impl NodeId {
    /// The root folder.
    pub const ROOT: Self = Self(0);

    /// Place in a table of all nodes.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// What a file has beside its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-user-id, set-group-id and sticky: the lowest twelve of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by their whole names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Attributes {
    /// A folder that no layer describes: root's, readable by all.
    #[must_use]
    pub const fn implied_folder() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new() }
    }
}

/// Where a file's contents lie in the image that is being written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// First of the blocks that hold it.
    pub first_block: u32,
    /// Where what is left of it after its whole blocks stands among the tails, when it lies beside the inode.
    pub inline: Option<usize>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder and its names.
    Folder(BTreeMap<Vec<u8>, NodeId>),
    /// A regular file.
    File(Content),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// What it has besides.
    pub attributes: Attributes,
    /// The layer that made it or last described it.
    pub layer: usize,
}

/// Why a name leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// There is nothing of that name.
    Missing,
    /// A parent is no folder.
    NotAFolder,
    /// Too many symbolic links.
    Circle,
    /// Too many folders in one another.
    TooDeep,
}

/// A tree of files.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        let root =
            Node { kind: Kind::Folder(BTreeMap::new()), attributes: Attributes::implied_folder(), layer: 0 };
        Self { nodes: vec![root] }
    }
}

impl Tree {
    /// A node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// A node, to be changed.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// Number of nodes that were ever made.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is always a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Makes a node without a name.
    pub fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// Names in a folder; none of anything else.
    #[must_use]
    pub fn names(&self, folder: NodeId) -> Option<&BTreeMap<Vec<u8>, NodeId>> {
        match &self.node(folder).kind {
            Kind::Folder(names) => Some(names),
            _ => None,
        }
    }

    fn names_mut(&mut self, folder: NodeId) -> Option<&mut BTreeMap<Vec<u8>, NodeId>> {
        match &mut self.node_mut(folder).kind {
            Kind::Folder(names) => Some(names),
            _ => None,
        }
    }

    /// What `name` in `folder` is, links not followed.
    #[must_use]
    pub fn child(&self, folder: NodeId, name: &[u8]) -> Option<NodeId> {
        self.names(folder)?.get(name).copied()
    }

    /// Gives a node a name, in place of what had it.
    pub fn link(&mut self, folder: NodeId, name: &[u8], node: NodeId) {
        if let Some(names) = self.names_mut(folder) {
            names.insert(name.to_vec(), node);
        }
    }

    /// Takes a name and all below it away, but what `keep` says and the folders it stands in. Tells whether it is gone.
    pub fn remove(&mut self, folder: NodeId, name: &[u8], keep: &impl Fn(&Node) -> bool) -> bool {
        let Some(id) = self.child(folder, name) else { return true };
        let empty = self.names(id).is_none() || self.clear(id, keep);
        let gone = empty && !keep(self.node(id));
        if gone && let Some(names) = self.names_mut(folder) {
            names.remove(name);
        }
        gone
    }

    /// Takes everything in a folder away but what `keep` says. Tells whether nothing is left. Folders are in one another at
    /// most as deep as [`Self::folder`] finds any.
    pub fn clear(&mut self, folder: NodeId, keep: &impl Fn(&Node) -> bool) -> bool {
        let names: Vec<Vec<u8>> =
            self.names(folder).map(|names| names.keys().cloned().collect()).unwrap_or_default();
        let mut empty = true;
        for name in names {
            empty &= self.remove(folder, &name, keep);
        }
        empty
    }

    /// The folder that `components` lead to from the root.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn folder(&self, components: &[&[u8]]) -> Result<NodeId, Unresolved> {
        let mut links = 0;
        let id = self.walk(components.iter().map(|part| part.to_vec()).collect(), &mut links)?;
        self.names(id).map(|_| id).ok_or(Unresolved::NotAFolder)
    }

    /// Walks components from the root, following links.
    fn walk(&self, components: Vec<Vec<u8>>, links: &mut usize) -> Result<NodeId, Unresolved> {
        // Folders on the way, so that `..` of a link's target leads back, and never above the root.
        let mut way = vec![NodeId::ROOT];
        let mut rest: Vec<Vec<u8>> = components;
        rest.reverse();
        while let Some(part) = rest.pop() {
            let here = way.last().copied().unwrap_or(NodeId::ROOT);
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let names = self.names(here).ok_or(Unresolved::NotAFolder)?;
            let next = names.get(&part).copied().ok_or(Unresolved::Missing)?;
            let Kind::Symlink(target) = &self.node(next).kind else {
                way.push(next);
                if way.len() > MAX_DEPTH {
                    return Err(Unresolved::TooDeep);
                }
                continue;
            };
            *links += 1;
            if *links > MAX_LINKS {
                return Err(Unresolved::Circle);
            }
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        Ok(way.last().copied().unwrap_or(NodeId::ROOT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(kind: Kind) -> Node {
        Node { kind, attributes: Attributes::implied_folder(), layer: 0 }
    }

    fn folder(tree: &mut Tree, parent: NodeId, name: &[u8]) -> NodeId {
        let id = tree.add(node(Kind::Folder(BTreeMap::new())));
        tree.link(parent, name, id);
        id
    }

    fn symlink(tree: &mut Tree, parent: NodeId, name: &[u8], target: &[u8]) {
        let id = tree.add(node(Kind::Symlink(target.to_vec())));
        tree.link(parent, name, id);
    }

    #[test]
    fn links_stay_within_the_root() {
        let mut tree = Tree::default();
        let run = folder(&mut tree, NodeId::ROOT, b"run");
        let var = folder(&mut tree, NodeId::ROOT, b"var");
        symlink(&mut tree, var, b"run", b"/run");
        symlink(&mut tree, var, b"up", b"../../../run");
        symlink(&mut tree, var, b"a", b"b");
        symlink(&mut tree, var, b"b", b"a");
        symlink(&mut tree, var, b"nowhere", b"/none");
        let at = |name: &[u8]| tree.folder(&[b"var", name]);
        assert_eq!((at(b"run"), at(b"up")), (Ok(run), Ok(run)));
        assert_eq!(
            (at(b"a"), at(b"nowhere"), at(b"x")),
            (Err(Unresolved::Circle), Err(Unresolved::Missing), Err(Unresolved::Missing))
        );
        let fifo = tree.add(node(Kind::Fifo));
        tree.link(var, b"pipe", fifo);
        assert_eq!(tree.folder(&[b"var", b"pipe"]), Err(Unresolved::NotAFolder));
        assert_eq!(tree.folder(&[b"var", b"pipe", b"x"]), Err(Unresolved::NotAFolder));
    }

    #[test]
    fn what_is_kept_keeps_its_folders() {
        let mut tree = Tree::default();
        let lower = folder(&mut tree, NodeId::ROOT, b"lower");
        let fifo = tree.add(Node { layer: 1, ..node(Kind::Fifo) });
        tree.link(lower, b"made", fifo);
        let other = tree.add(node(Kind::Fifo));
        tree.link(lower, b"old", other);
        assert!(!tree.remove(NodeId::ROOT, b"lower", &|node: &Node| node.layer == 1));
        assert_eq!((tree.child(lower, b"made"), tree.child(lower, b"old")), (Some(fifo), None));
        assert!(tree.remove(NodeId::ROOT, b"lower", &|_: &Node| false));
        assert_eq!(tree.child(NodeId::ROOT, b"lower"), None);
    }
}
