//! Everything about a tree of files that a layer carries, to be compared.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// One file, but for its content's place on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub device: u64,
    /// Content, or a link's target.
    pub content: Vec<u8>,
    /// The first of its names: files that are one have the same.
    pub same_as: Vec<u8>,
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tree by paths, and the blocks that its files take.
#[derive(Debug, Default)]
pub struct Tree {
    pub files: BTreeMap<Vec<u8>, Facts>,
    pub blocks: BTreeMap<Vec<u8>, u64>,
}

impl Tree {
    pub fn read(root: &Path) -> Self {
        let mut tree = Self::default();
        tree.walk(root, root);
        let mut first = BTreeMap::new();
        let ids: Vec<_> = tree
            .files
            .keys()
            .map(|path| {
                let meta = std::fs::symlink_metadata(root.join(std::ffi::OsStr::from_bytes(path))).unwrap();
                (path.clone(), meta.ino())
            })
            .collect();
        for (path, inode) in ids {
            let same = first.entry(inode).or_insert_with(|| path.clone()).clone();
            tree.files.get_mut(&path).unwrap().same_as = same;
        }
        tree
    }

    fn walk(&mut self, root: &Path, path: &Path) {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let kind = match meta.file_type() {
            kind if kind.is_dir() => 'd',
            kind if kind.is_symlink() => 'l',
            kind if kind.is_char_device() => 'c',
            kind if kind.is_block_device() => 'b',
            kind if kind.is_fifo() => 'p',
            _ => 'f',
        };
        let content = match kind {
            'f' => std::fs::read(path).unwrap(),
            'l' => std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let mut attributes: Vec<_> = xattr::list(path)
            .map(|names| {
                let value =
                    |name: &std::ffi::OsStr| xattr::get(path, name).ok().flatten().unwrap_or_default();
                names.map(|name| (name.as_bytes().to_vec(), value(&name))).collect()
            })
            .unwrap_or_default();
        attributes.sort();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let facts = Facts {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            device: meta.rdev(),
            content,
            same_as: Vec::new(),
            attributes,
        };
        if kind == 'f' {
            self.blocks.insert(name.clone(), meta.blocks());
        }
        self.files.insert(name, facts);
        if kind == 'd' {
            for entry in std::fs::read_dir(path).unwrap() {
                self.walk(root, &entry.unwrap().path());
            }
        }
    }
}

/// What differs between two trees, one line each; empty when nothing does.
pub fn differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let paths: std::collections::BTreeSet<_> = ours.files.keys().chain(theirs.files.keys()).collect();
    for path in paths {
        let name = String::from_utf8_lossy(path);
        match (ours.files.get(path), theirs.files.get(path)) {
            (Some(one), Some(other)) if one != other => {
                found.push(format!("{name}: ours {}, theirs {}", short(one), short(other)));
            }
            (Some(one), None) => found.push(format!("{name}: ours alone, {}", short(one))),
            (None, Some(other)) => found.push(format!("{name}: theirs alone, {}", short(other))),
            _ => {}
        }
    }
    found
}

/// Files of ours that take more of the disk than theirs, but for the ends of pieces: holes that were filled.
pub fn filled(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, blocks) in &ours.blocks {
        let theirs = theirs.blocks.get(path).copied().unwrap_or_default();
        if *blocks > theirs + 64 {
            found.push(format!("{}: {blocks} blocks, theirs {theirs}", String::from_utf8_lossy(path)));
        }
    }
    found
}

fn short(facts: &Facts) -> String {
    let Facts { kind, mode, owner, mtime, device, content, same_as, attributes } = facts;
    let start = String::from_utf8_lossy(&content[..content.len().min(16)]).into_owned();
    let same = String::from_utf8_lossy(same_as);
    format!(
        "{kind} {mode:o} {owner:?} {mtime:?} dev {device:x} {} bytes {start:?} same as {same:?} {attributes:x?}",
        content.len()
    )
}
