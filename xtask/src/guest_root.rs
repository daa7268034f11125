//! The files of the guest's root, named by their paths. Everything is root's, of time 0.

use std::collections::BTreeMap;
use std::io::Write;

use kata_cc_erofs::tree::{Attributes, Kind, Node, NodeId, Tree};
use kata_cc_erofs::{Contents, ErofsError};

/// A root under construction.
pub(crate) struct GuestRoot<W> {
    tree: Tree,
    contents: Contents<W>,
}

impl<W: Write> GuestRoot<W> {
    /// An empty one, whose contents go there.
    pub(crate) fn new(contents: Contents<W>) -> Self {
        Self { tree: Tree::default(), contents }
    }

    /// An empty folder, and those on the way to it.
    pub(crate) fn folder(&mut self, path: &str) -> NodeId {
        path.split('/').fold(NodeId::ROOT, |parent, name| {
            let known = self.tree.child(parent, name.as_bytes());
            known.unwrap_or_else(|| self.put(parent, name, Kind::Folder(BTreeMap::new()), 0o755))
        })
    }

    /// A regular file with these bytes; `mode` is the permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u16, bytes: &[u8]) -> Result<(), ErofsError> {
        let mut writer = self.contents.file(bytes.len() as u64, &BTreeMap::new())?;
        writer.write(bytes)?;
        let kind = Kind::File(writer.finish()?);
        self.name(path, kind, mode);
        Ok(())
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.name(path, Kind::Symlink(target.into()), 0o777);
    }

    /// The tree, and the contents.
    pub(crate) fn finish(self) -> (Tree, Contents<W>) {
        (self.tree, self.contents)
    }

    fn name(&mut self, path: &str, kind: Kind, mode: u16) {
        let (parent, name) =
            path.rsplit_once('/').map_or((NodeId::ROOT, path), |(parent, name)| (self.folder(parent), name));
        self.put(parent, name, kind, mode);
    }

    fn put(&mut self, parent: NodeId, name: &str, kind: Kind, mode: u16) -> NodeId {
        let attributes = Attributes { mode, ..Attributes::implied_folder() };
        let node = self.tree.add(Node { kind, attributes, layer: 0 });
        self.tree.link(parent, name.as_bytes(), node);
        node
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn paths_become_folders_and_the_same_files_the_same_bytes() {
        let make = |text: &[u8]| {
            let mut image = Cursor::new(Vec::new());
            let seal = kata_cc_erofs::seal(&mut image, |contents| {
                let mut root = GuestRoot::new(contents);
                root.file("a/b/c", 0o444, text)?;
                root.link("a/l", "/run/l");
                root.folder("a/b/d");
                let folder = root.folder("a");
                let names = root.tree.names(folder).unwrap().len();
                assert_eq!((names, root.tree.len()), (2, 6));
                Ok::<_, ErofsError>(root.finish())
            });
            (seal.unwrap().root_hash, image.into_inner())
        };
        assert_eq!(make(b"text"), make(b"text"));
        assert_ne!(make(b"text").0, make(b"tesT").0);
    }
}
