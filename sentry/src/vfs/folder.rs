//! Open folders. What is in one is looked at once, when reading begins at its start: names that come later need not appear, names that
//! have gone may (`man 3 readdir`).

use std::sync::{Arc, Mutex};

use super::sync::lock;
use super::{Dentry, DirEntry, File, FileKind};
use crate::error::Errno;

/// An open folder.
pub(super) struct Folder {
    dentry: Arc<Dentry>,
    seen: Mutex<Option<Arc<Vec<DirEntry>>>>,
}

impl Folder {
    /// Of this name.
    #[must_use]
    pub(super) fn new(dentry: Arc<Dentry>) -> Self {
        Self { dentry, seen: Mutex::default() }
    }

    fn look(&self) -> Result<Vec<DirEntry>, Errno> {
        let own = self.dentry.inode().attributes()?.inode;
        let above = match self.dentry.parent() {
            Some(parent) => parent.inode().attributes()?.inode,
            None => own,
        };
        let dot = |name: &[u8], inode| DirEntry { name: name.to_vec(), inode, kind: FileKind::Folder };
        let mut entries = vec![dot(b".", own), dot(b"..", above)];
        if !self.dentry.unlinked() {
            entries.append(&mut self.dentry.inode().list()?);
        }
        Ok(entries)
    }
}

impl File for Folder {
    fn read(&self, _to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EISDIR)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn entries(&self, from: u64, visit: &mut dyn FnMut(&DirEntry, u64) -> bool) -> Result<(), Errno> {
        let entries = {
            let mut seen = lock(&self.seen);
            match &*seen {
                Some(entries) if from != 0 => Arc::clone(entries),
                _ => Arc::clone(seen.insert(Arc::new(self.look()?))),
            }
        };
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        for (index, entry) in entries.iter().enumerate().skip(from) {
            if !visit(entry, index as u64 + 1) {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Errno> {
        self.dentry.inode().sync()
    }
}
