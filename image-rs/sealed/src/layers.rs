//! Puts layers on top of one another: archive entries into a [`Tree`], contents to where the image keeps them.
//!
//! The same rules as when the guest unpacks layers itself (`kata_cc_image::unpack`): whiteouts act on lower layers only, a folder
//! stays when a later layer names it again, links in parents are followed within the root, `..` in a name is refused.
//! Contents of files that a later layer hides stay in the image: they were written when they came by.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use kata_cc_image::Limits;
use kata_cc_image::unpack::{Budget, Entry, TarStream, UnpackError};
use kata_cc_image::unpack::{Kind as EntryKind, components, show};

use crate::SealError;
use crate::erofs::Contents;
use crate::tree::{Attributes, Kind, Node, NodeId, Tree, Unresolved};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
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
        let parts = components(&entry.path, self.budget.limits())?;
        let Some((last, parents)) = parts.split_last() else {
            if entry.kind != EntryKind::Dir {
                return Err(path_error(&entry.path, "it names the root, which is a folder"));
            }
            return self.describe(NodeId::ROOT, entry);
        };
        let parent = self.parent(parents)?;
        if last.starts_with(WHITEOUT) {
            return self.whiteout(entry, last, parent);
        }
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

    fn whiteout(&mut self, entry: &Entry, last: &[u8], parent: NodeId) -> Result<(), SealError> {
        let layer = self.layer;
        let of_this_layer = move |node: &Node| node.layer == layer;
        if last == OPAQUE {
            self.tree.clear(parent, &of_this_layer);
            return Ok(());
        }
        match last.get(WHITEOUT.len()..).unwrap_or_default() {
            b"" | b"." | b".." => Err(path_error(&entry.path, "it is a whiteout of the folder it stands in")),
            // AUFS keeps its own records under such names; they are no content.
            target if target.starts_with(WHITEOUT) => Ok(()),
            target => {
                self.tree.remove(parent, target, &of_this_layer);
                Ok(())
            }
        }
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
            EntryKind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() > 4095 {
                    let why = "its link target is empty, too long, or holds a zero byte";
                    return Err(path_error(&entry.path, why));
                }
                Kind::Symlink(entry.link.clone())
            }
            EntryKind::Char => Kind::Char(entry.device.0, entry.device.1),
            EntryKind::Block => Kind::Block(entry.device.0, entry.device.1),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink => return Err(path_error(&entry.path, "a hard link is no file of its own")),
        })
    }

    fn file(
        &mut self,
        stream: &mut TarStream<impl Read>,
        entry: &Entry,
    ) -> Result<crate::tree::Content, SealError> {
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
        writer.finish()
    }

    fn describe(&mut self, id: NodeId, entry: &Entry) -> Result<(), SealError> {
        let id_of = |value: u64| {
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| path_error(&entry.path, "its owner or group does not fit 32 bits"))
        };
        for (name, _) in &entry.xattrs {
            // The guest's own overlay mounts obey these: a layer could make them show other files.
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                let (path, name) = (show(&entry.path), show(name));
                return Err(UnpackError::Attribute { path, name }.into());
            }
        }
        let symlink = entry.kind == EntryKind::Symlink;
        let attributes = Attributes {
            mode: if symlink { 0o777 } else { (entry.mode & 0o7777) as u16 },
            uid: id_of(entry.uid)?,
            gid: id_of(entry.gid)?,
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
