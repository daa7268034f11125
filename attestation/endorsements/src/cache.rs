//! Documents kept in memory and, when a folder is given, on disk; both bounded.
//!
//! The folder has the layout of [`Item::path`], so it can be taken to another site as it is. When a document was got
//! is its file's modification time. A file that is broken is as good as none. What is oldest goes first.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::warn;

use crate::document::{Document, MAX_DOCUMENT};
use crate::item::Item;

/// Most documents in memory.
const MEMORY_ENTRIES: usize = 4096;
/// Most bytes of documents in memory.
const MEMORY_BYTES: usize = 16 * 1024 * 1024;
/// Most files in the folder.
pub(crate) const DISK_FILES: usize = 65_536;
/// Most bytes of files in the folder.
pub(crate) const DISK_BYTES: u64 = 256 * 1024 * 1024;

/// A document and when it was got.
#[derive(Clone, Debug)]
pub(crate) struct Cached {
    pub(crate) document: Document,
    pub(crate) fresh_until: SystemTime,
}

impl Cached {
    pub(crate) fn is_fresh(&self) -> bool {
        SystemTime::now() < self.fresh_until
    }
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    memory: Mutex<Memory>,
    disk: Option<Disk>,
}

impl Cache {
    /// In memory only, or also in `folder`, which is made when it is absent.
    pub(crate) fn new(folder: Option<&Path>) -> std::io::Result<Self> {
        let disk = folder.map(|folder| Disk::open(folder, DISK_FILES, DISK_BYTES)).transpose()?;
        Ok(Self { memory: Mutex::new(Memory::new(MEMORY_ENTRIES, MEMORY_BYTES)), disk })
    }

    /// What is kept, fresh or not. Reads at most one small file.
    pub(crate) async fn get(&self, item: &Item) -> Option<Cached> {
        let path = item.path();
        if let Some(cached) = lock(&self.memory).get(&path) {
            return Some(cached);
        }
        let cached = self.disk.as_ref()?.read(item, &path).await?;
        lock(&self.memory).put(path, cached.clone());
        Some(cached)
    }

    /// Keeps a document that was got now.
    pub(crate) async fn put(&self, item: &Item, document: &Document) {
        let now = SystemTime::now();
        let cached = Cached { document: document.clone(), fresh_until: document.fresh_until(item, now) };
        let path = item.path();
        if let Some(disk) = &self.disk
            && let Err(error) = disk.write(&path, document).await
        {
            // A full disk must not stop attestation.
            warn!(path, %error, "cannot keep an endorsement on disk");
        }
        lock(&self.memory).put(path, cached);
    }

    /// What is in memory, fresh or not.
    pub(crate) fn in_memory(&self, item: &Item) -> Option<Document> {
        lock(&self.memory).get(&item.path()).map(|cached| cached.document)
    }

    /// Keeps a document of this machine for a moment.
    pub(crate) fn put_in_memory(&self, item: &Item, document: &Document, fresh_until: SystemTime) {
        lock(&self.memory).put(item.path(), Cached { document: document.clone(), fresh_until });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Least recently used goes first.
#[derive(Debug)]
struct Memory {
    entries: HashMap<String, (Cached, u64)>,
    by_use: BTreeMap<u64, String>,
    clock: u64,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
}

impl Memory {
    fn new(max_entries: usize, max_bytes: usize) -> Self {
        let (entries, by_use) = (HashMap::new(), BTreeMap::new());
        Self { entries, by_use, clock: 0, bytes: 0, max_entries, max_bytes }
    }

    fn get(&mut self, path: &str) -> Option<Cached> {
        let (cached, used) = self.entries.get_mut(path)?;
        self.clock += 1;
        self.by_use.remove(used);
        *used = self.clock;
        self.by_use.insert(self.clock, path.to_owned());
        Some(cached.clone())
    }

    fn put(&mut self, path: String, cached: Cached) {
        self.remove(&path);
        let len = cached.document.len();
        if len > self.max_bytes {
            return;
        }
        while self.entries.len() >= self.max_entries || self.bytes + len > self.max_bytes {
            let Some(oldest) = self.by_use.first_key_value().map(|(_, path)| path.clone()) else { break };
            self.remove(&oldest);
        }
        self.clock += 1;
        self.bytes += len;
        self.by_use.insert(self.clock, path.clone());
        self.entries.insert(path, (cached, self.clock));
    }

    fn remove(&mut self, path: &str) {
        if let Some((cached, used)) = self.entries.remove(path) {
            self.by_use.remove(&used);
            self.bytes -= cached.document.len();
        }
    }
}

/// Files and their sizes, oldest first.
#[derive(Debug)]
struct Disk {
    folder: PathBuf,
    index: Mutex<DiskIndex>,
    max_files: usize,
    max_bytes: u64,
}

#[derive(Debug, Default)]
struct DiskIndex {
    /// Order of arrival to path.
    by_age: BTreeMap<u64, String>,
    /// Path to order and size.
    files: HashMap<String, (u64, u64)>,
    clock: u64,
    bytes: u64,
}

impl DiskIndex {
    fn insert(&mut self, path: String, size: u64) {
        self.remove(&path);
        self.clock += 1;
        self.bytes += size;
        self.by_age.insert(self.clock, path.clone());
        self.files.insert(path, (self.clock, size));
    }

    fn remove(&mut self, path: &str) {
        if let Some((age, size)) = self.files.remove(path) {
            self.by_age.remove(&age);
            self.bytes -= size;
        }
    }
}

impl Disk {
    fn open(folder: &Path, max_files: usize, max_bytes: u64) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut found = Vec::new();
        scan(folder, folder, 0, &mut found)?;
        found.sort();
        let mut index = DiskIndex::default();
        for (_, path, size) in found {
            index.insert(path, size);
        }
        let disk = Self { folder: folder.to_owned(), index: Mutex::new(index), max_files, max_bytes };
        for path in disk.take_surplus() {
            std::fs::remove_file(folder.join(path)).ok();
        }
        Ok(disk)
    }

    async fn read(&self, item: &Item, path: &str) -> Option<Cached> {
        let file = self.folder.join(path);
        let metadata = tokio::fs::metadata(&file).await.ok()?;
        if metadata.len() > 2 * MAX_DOCUMENT as u64 {
            return None;
        }
        let bytes = tokio::fs::read(&file).await.ok()?;
        match Document::from_file(item, bytes) {
            Ok(document) => {
                // A clock that was set back must not make a document fresh for years.
                let fetched = metadata.modified().ok()?.min(SystemTime::now());
                Some(Cached { fresh_until: document.fresh_until(item, fetched), document })
            }
            Err(why) => {
                warn!(path, why, "an endorsement on disk is broken and is got anew");
                None
            }
        }
    }

    /// Written beside and renamed: a reader, also of another process, sees all or nothing.
    async fn write(&self, path: &str, document: &Document) -> std::io::Result<()> {
        let file = self.folder.join(path);
        let bytes = document.to_file();
        if let Some(parent) = file.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let staged = staged_name(&file);
        tokio::fs::write(&staged, &bytes).await?;
        if let Err(error) = tokio::fs::rename(&staged, &file).await {
            tokio::fs::remove_file(&staged).await.ok();
            return Err(error);
        }
        lock(&self.index).insert(path.to_owned(), bytes.len() as u64);
        for surplus in self.take_surplus() {
            tokio::fs::remove_file(self.folder.join(surplus)).await.ok();
        }
        Ok(())
    }

    /// Takes what is too much out of the index.
    fn take_surplus(&self) -> Vec<String> {
        let mut index = lock(&self.index);
        let mut surplus = Vec::new();
        while index.files.len() > self.max_files || index.bytes > self.max_bytes {
            let Some(oldest) = index.by_age.first_key_value().map(|(_, path)| path.clone()) else { break };
            index.remove(&oldest);
            surplus.push(oldest);
        }
        surplus
    }
}

/// A name of its own for each write, of this process and of others.
pub(crate) fn staged_name(file: &Path) -> PathBuf {
    static COUNTER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}-{count}", std::process::id()));
    file.with_file_name(name)
}

/// Files of the layout below `folder`, with modification time and size. What another process left half written goes.
fn scan(
    root: &Path,
    folder: &Path,
    depth: usize,
    found: &mut Vec<(SystemTime, String, u64)>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let metadata = entry.metadata()?;
        if metadata.is_dir() && depth < 2 {
            scan(root, &path, depth + 1, found)?;
        } else if metadata.is_file() {
            let modified = metadata.modified()?;
            let abandoned = modified.elapsed().is_ok_and(|age| age > Duration::from_secs(3600));
            if path.to_string_lossy().contains(".new-") && abandoned {
                std::fs::remove_file(&path).ok();
            }
            let relative = path.strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default();
            if Item::from_path(relative).is_some() {
                found.push((modified, relative.to_owned(), metadata.len()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(len: usize) -> Cached {
        Cached { document: Document::plain(vec![0; len]), fresh_until: SystemTime::now() }
    }

    #[test]
    fn memory_is_bounded_and_drops_what_was_not_used_longest() {
        let mut memory = Memory::new(3, 100);
        for name in ["a", "b", "c"] {
            memory.put(name.to_owned(), cached(10));
        }
        memory.get("a").unwrap();
        memory.put("d".to_owned(), cached(10));
        assert!(memory.get("b").is_none() && memory.get("a").is_some());
        memory.put("e".to_owned(), cached(85));
        assert!(memory.get("e").is_some());
        assert!(memory.bytes <= 100 && memory.entries.len() == memory.by_use.len());
        memory.put("f".to_owned(), cached(101));
        assert!(memory.get("f").is_none());
    }

    #[tokio::test]
    async fn the_folder_is_bounded_also_when_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<String> =
            (0..4u8).map(|n| format!("vcek/{:016x}/bl0{n}_tee00_snp00_ucode00_vcek.der", n)).collect();
        {
            let disk = Disk::open(folder.path(), 3, 1000).unwrap();
            for path in &paths {
                disk.write(path, &Document::plain(vec![1; 10])).await.unwrap();
            }
            assert!(!folder.path().join(&paths[0]).exists(), "the oldest is gone");
            assert!(folder.path().join(&paths[3]).exists());
        }
        Disk::open(folder.path(), 1, 1000).unwrap();
        let left = paths.iter().filter(|path| folder.path().join(path).exists()).count();
        assert_eq!(left, 1);
    }
}
