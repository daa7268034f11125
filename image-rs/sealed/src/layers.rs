//! Puts layers on top of one another: archive entries into a [`Tree`], contents to where the image keeps them.
//!
//! The same rules as when the guest unpacks layers itself (`kata_cc_image::unpack::rules`): whiteouts act on lower layers only, a folder
//! stays when a later layer names it again, links in parents are followed within the root, `..` in a name is refused.
//! Contents of files that a later layer hides stay in the image: they were written when they came by.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use kata_cc_erofs::Contents;
use kata_cc_erofs::tree::{Attributes, Content, Kind, Node, NodeId, Tree, Unresolved};
use kata_cc_image::Limits;
use kata_cc_image::unpack::rules::{self, Step};
use kata_cc_image::unpack::{Budget, Entry, TarStream, UnpackError};
use kata_cc_image::unpack::{Kind as EntryKind, components, show};

use crate::SealError;

/// Bytes of one read.
const PIECE: usize = 128 << 10;

/// The layers of one image so far.
pub(crate) struct Layers<W> {
    tree: Tree,
    contents: Contents<W>,
    budget: Budget,
    layer: usize,
    buffer: Vec<u8>,
}

fn path_error(path: &[u8], why: &'static str) -> SealError {
    SealError::Unpack(UnpackError::Path { path: show(path), why })
}

impl<W: Write> Layers<W> {
    pub(crate) fn new(contents: Contents<W>, limits: Limits) -> Self {
        Self {
            tree: Tree::default(),
            contents,
            budget: Budget::new(limits),
            layer: 0,
            buffer: vec![0; PIECE],
        }
    }

    /// The tree, and the contents.
    pub(crate) fn finish(self) -> (Tree, Contents<W>) {
        (self.tree, self.contents)
    }

    /// Puts a layer on top, and reads its archive to the end.
    pub(crate) fn apply(&mut self, archive: impl Read) -> Result<(), SealError> {
        self.layer += 1;
        let mut stream = TarStream::new(archive, self.budget.limits());
        while let Some(entry) = stream.next_entry()? {
            self.budget.take_file()?;
            self.entry(&mut stream, &entry)?;
        }
        let mut rest = stream.into_inner();
        loop {
            let count = rest.read(&mut self.buffer).map_err(UnpackError::Read)?;
            if count == 0 {
                return Ok(());
            }
            self.budget.take_bytes(count as u64)?;
        }
    }

    fn entry(&mut self, stream: &mut TarStream<impl Read>, entry: &Entry) -> Result<(), SealError> {
        let layer = self.layer;
        let of_this_layer = move |node: &Node| node.layer == layer;
        match rules::step(entry, self.budget.limits())? {
            Step::Nothing => Ok(()),
            Step::Root => self.describe(NodeId::ROOT, entry),
            Step::Opaque { folder } => {
                let folder = self.parent(&folder)?;
                self.tree.clear(folder, &of_this_layer);
                Ok(())
            }
            Step::Whiteout { folder, name } => {
                let folder = self.parent(&folder)?;
                self.tree.remove(folder, name, &of_this_layer);
                Ok(())
            }
            Step::Make { folder, name } => {
                let parent = self.parent(&folder)?;
                self.make(stream, entry, parent, name)
            }
        }
    }

    fn make(
        &mut self,
        stream: &mut TarStream<impl Read>,
        entry: &Entry,
        parent: NodeId,
        last: &[u8],
    ) -> Result<(), SealError> {
        if entry.kind == EntryKind::HardLink {
            return self.hard_link(entry, parent, last);
        }
        let known = self.tree.child(parent, last).filter(|id| self.tree.names(*id).is_some());
        let id = match known.filter(|_| entry.kind == EntryKind::Dir) {
            Some(folder) => folder,
            None => {
                let kind = self.kind(stream, entry)?;
                let attributes = Attributes::implied_folder();
                let id = self.tree.add(Node { kind, attributes, layer: self.layer });
                self.tree.remove(parent, last, &|_: &Node| false);
                self.tree.link(parent, last, id);
                id
            }
        };
        self.describe(id, entry)
    }

    /// The folder of that name, made where it is missing.
    fn parent(&mut self, components: &[&[u8]]) -> Result<NodeId, SealError> {
        let refused = |why| path_error(&components.join(&b'/'), why);
        match self.tree.folder(components) {
            Ok(folder) => return Ok(folder),
            Err(Unresolved::Missing) => {}
            Err(error) => return Err(refused(words(error))),
        }
        let mut here = NodeId::ROOT;
        for end in 1..=components.len() {
            here = match self.tree.folder(&components[..end]) {
                Ok(folder) => folder,
                Err(Unresolved::Missing) if self.tree.child(here, components[end - 1]).is_some() => {
                    return Err(refused("a parent is a link that leads nowhere"));
                }
                Err(Unresolved::Missing) => {
                    self.budget.take_file()?;
                    let attributes = Attributes::implied_folder();
                    let node = Node { kind: Kind::Folder(BTreeMap::new()), attributes, layer: self.layer };
                    let made = self.tree.add(node);
                    self.tree.link(here, components[end - 1], made);
                    made
                }
                Err(error) => return Err(refused(words(error))),
            };
        }
        // made folders count, too
        self.tree.folder(components).map_err(|error| refused(words(error)))
    }

    fn hard_link(&mut self, entry: &Entry, parent: NodeId, last: &[u8]) -> Result<(), SealError> {
        let refused = |why: &str| {
            let (path, target) = (show(&entry.path), show(&entry.link));
            SealError::Unpack(UnpackError::HardLink { path, target, why: why.to_owned() })
        };
        let parts = components(&entry.link, self.budget.limits())?;
        let Some((name, parents)) = parts.split_last() else {
            return Err(refused("its target is the root"));
        };
        let folder = self.tree.folder(parents).map_err(|error| refused(words(error)))?;
        let target = self.tree.child(folder, name).ok_or_else(|| refused("its target is not there"))?;
        if self.tree.names(target).is_some() {
            return Err(refused("its target is a folder"));
        }
        self.tree.node_mut(target).layer = self.layer;
        self.tree.remove(parent, last, &|_: &Node| false);
        self.tree.link(parent, last, target);
        Ok(())
    }

    /// What is made of an entry; contents go to the image.
    fn kind(&mut self, stream: &mut TarStream<impl Read>, entry: &Entry) -> Result<Kind, SealError> {
        Ok(match entry.kind {
            EntryKind::Dir => Kind::Folder(BTreeMap::new()),
            EntryKind::File => Kind::File(self.file(stream, entry)?),
            EntryKind::Symlink => Kind::Symlink(entry.link.clone()),
            EntryKind::Char => Kind::Char(entry.device.0, entry.device.1),
            EntryKind::Block => Kind::Block(entry.device.0, entry.device.1),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink => return Err(path_error(&entry.path, "a hard link is no file of its own")),
        })
    }

    fn file(&mut self, stream: &mut TarStream<impl Read>, entry: &Entry) -> Result<Content, SealError> {
        self.budget.take_bytes(entry.size)?;
        let xattrs = entry.xattrs.iter().cloned().collect();
        let mut writer = self.contents.file(entry.size, &xattrs)?;
        let whole = [(0, entry.size)];
        let pieces = entry.sparse.as_ref().map_or(&whole[..], |map| &map.pieces);
        for (offset, length) in pieces {
            writer.zeros_until(*offset)?;
            let mut left = *length;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let count = stream.read_data(&mut self.buffer[..want])?;
                if count == 0 {
                    let why = "a file has less data than its size says";
                    return Err(UnpackError::Malformed { at: 0, why }.into());
                }
                writer.write(&self.buffer[..count])?;
                left -= count as u64;
            }
        }
        Ok(writer.finish()?)
    }

    fn describe(&mut self, id: NodeId, entry: &Entry) -> Result<(), SealError> {
        let (uid, gid) = rules::owner(entry)?;
        let symlink = entry.kind == EntryKind::Symlink;
        let attributes = Attributes {
            mode: if symlink { 0o777 } else { (entry.mode & 0o7777) as u16 },
            uid,
            gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.iter().cloned().collect(),
        };
        let node = self.tree.node_mut(id);
        (node.attributes, node.layer) = (attributes, self.layer);
        Ok(())
    }
}

const fn words(error: Unresolved) -> &'static str {
    match error {
        Unresolved::Missing => "a parent is not there",
        Unresolved::NotAFolder => "a parent is not a folder",
        Unresolved::Circle => "its links go round in circles",
        Unresolved::TooDeep => "its folders are in one another too deep",
    }
}
