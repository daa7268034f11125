//! SHA-256 of files that were hashed before, so that a start under stage0 need not read kernel and initramfs once more.
//!
//! A digest belongs to a file as the system describes it: device, inode, size, times of change to the nanosecond. Another
//! description is another file. Which digest is launched with decides nothing about trust: it goes into the measured
//! boot block, and stage0 hashes what it finds. A digest that is out of date gives a launch that stage0 refuses
//! (`KernelHash`, `InitramfsHash`); so does one that somebody has planted, who has to be root.
//!
//! Kept in `digests` of a folder that is root's alone (mode 0700): a first line that names the format, then a line for
//! each file: device, inode, size, seconds and nanoseconds of `mtime` and `ctime`, digest, and the first eight bytes of
//! the line's own SHA-256. What is not as written here is left out and written anew; newest first, at most [`MOST`].
//! A file that changed within [`SETTLED`] is not entered, since a second change may come with the same time.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kata_cc_boot::{Hashes, sha256};

const NAME: &str = "digests";
const FORMAT: &str = "kata-cc digests 1";
/// Files that are kept: kernels and initramfs of some versions.
const MOST: usize = 32;
/// Most bytes that are read; twice what [`MOST`] lines can have.
const MAX_BYTES: u64 = 32 << 10;
const SETTLED: Duration = Duration::from_secs(2);
/// Bytes of a line's own digest.
const CHECK: usize = 8;

/// What tells a file from others, and from itself before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKey([i64; 7]);

impl FileKey {
    /// Of an open file.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        let number = |number: u64| number.cast_signed();
        Self([
            number(metadata.dev()),
            number(metadata.ino()),
            number(metadata.size()),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ])
    }

    /// Whether the last change is long enough ago that another one would have another time.
    fn is_settled(&self, now: SystemTime) -> bool {
        let [.., seconds, nanoseconds] = self.0;
        let since = u64::try_from(seconds).ok().zip(u32::try_from(nanoseconds).ok());
        let changed = since.map(|(seconds, nanoseconds)| UNIX_EPOCH + Duration::new(seconds, nanoseconds));
        changed.and_then(|changed| now.duration_since(changed).ok()).is_some_and(|age| age >= SETTLED)
    }
}

/// A file and its digest.
type Entry = (FileKey, [u8; 32]);

fn check(line: &str) -> String {
    hex::encode(sha256(line.as_bytes()).first_chunk::<CHECK>().copied().unwrap_or_default())
}

fn line((FileKey(numbers), digest): &Entry) -> String {
    let line = format!("{} {}", numbers.map(|number| number.to_string()).join(" "), hex::encode(digest));
    let check = check(&line);
    format!("{line} {check}\n")
}

/// A line that [`line`] would have written; nothing else.
fn entry(text: &str) -> Option<Entry> {
    let (content, own) = text.rsplit_once(' ')?;
    let (numbers, digest) = content.rsplit_once(' ')?;
    let mut sha256 = [0; 32];
    hex::decode_to_slice(digest, &mut sha256).ok()?;
    let numbers: Result<Vec<i64>, _> = numbers.split(' ').map(str::parse).collect();
    let key = FileKey(numbers.ok()?.try_into().ok()?);
    (own == check(content) && line(&(key, sha256)).trim_end() == text).then_some((key, sha256))
}

/// The folder, when it can be used.
#[derive(Debug)]
pub struct DigestCache {
    dir: PathBuf,
    entries: Vec<Entry>,
}

impl DigestCache {
    /// Opens the folder, or makes it, and reads what is known. A folder or file that others than root could have written is
    /// not used.
    ///
    /// # Errors
    /// Why there is no cache; a start does without.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_of(dir, 0)
    }

    /// The same for another owner than root.
    fn open_of(dir: &Path, owner: u32) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let metadata = std::fs::symlink_metadata(dir)?;
        if !metadata.is_dir() || metadata.uid() != owner || metadata.mode() & 0o7777 != 0o700 {
            return Err(io::Error::other("not a folder that is root's alone (mode 0700)"));
        }
        let entries = match OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(dir.join(NAME))
        {
            Ok(file) => entries(&file, owner)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { dir: dir.to_owned(), entries })
    }

    /// The digest of a file.
    #[must_use]
    pub fn get(&self, key: &FileKey) -> Option<[u8; 32]> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, digest)| *digest)
    }

    /// Enters digests, unless they are there, and writes the file anew: as a whole, by another name first. Of two monitors
    /// that write at the same time one is overtaken, whose files are hashed once more.
    ///
    /// # Errors
    /// What the system said.
    pub fn put(&mut self, new: &[Entry], now: SystemTime) -> io::Result<()> {
        let new: Vec<Entry> =
            new.iter().filter(|(key, _)| key.is_settled(now) && self.get(key).is_none()).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        self.entries.splice(0..0, new);
        self.entries.truncate(MOST);
        let text: String = self.entries.iter().map(line).collect();
        let temporary = self.dir.join(format!("{NAME}.{}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(format!("{FORMAT}\n{text}").as_bytes()))
            .and_then(|()| std::fs::rename(&temporary, self.dir.join(NAME)));
        if written.is_err() {
            // also one that a monitor with that number left behind
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

/// Kernel and initramfs of a start, with what is known of them. Nothing here ends a start: without a cache all is hashed.
#[derive(Debug)]
pub struct KnownFiles {
    cache: Option<DigestCache>,
    files: Keys,
}

/// Of kernel and initramfs.
type Keys = (Option<FileKey>, Option<FileKey>);

impl KnownFiles {
    /// Of the files with these keys; a file without one is not looked up.
    #[must_use]
    pub fn new(dir: Option<&Path>, files: Keys) -> Self {
        let cache = dir.and_then(|dir| {
            DigestCache::open(dir)
                .inspect_err(|error| tracing::warn!(dir = %dir.display(), %error, "no cache of digests"))
                .ok()
        });
        Self { cache, files }
    }

    /// What is known.
    #[must_use]
    pub fn hashes(&self) -> Hashes {
        let known =
            |key: Option<FileKey>| self.cache.as_ref().zip(key).and_then(|(cache, key)| cache.get(&key));
        Hashes { kernel: known(self.files.0), initramfs: known(self.files.1) }
    }

    /// Keeps what a launch was planned with, of files whose keys are the same `now` that they were read.
    pub fn keep(&mut self, planned: &Hashes, now: Keys) {
        let Some(cache) = &mut self.cache else { return };
        let same =
            |before: Option<FileKey>, now: Option<FileKey>| before.filter(|before| Some(*before) == now);
        let entries =
            [same(self.files.0, now.0).zip(planned.kernel), same(self.files.1, now.1).zip(planned.initramfs)];
        let entries: Vec<Entry> = entries.into_iter().flatten().collect();
        if let Err(error) = cache.put(&entries, SystemTime::now()) {
            tracing::warn!(%error, "digests were not kept");
        }
    }
}

/// What a file holds, as far as it is well-formed.
fn entries(file: &File, owner: u32) -> io::Result<Vec<Entry>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("its file is not root's alone"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) {
        return Ok(Vec::new());
    }
    Ok(lines.filter_map(entry).take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn own() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(60)
    }

    fn key(path: &Path) -> FileKey {
        FileKey::of(&std::fs::metadata(path).expect("file"))
    }

    struct Fixture {
        root: tempfile::TempDir,
        dir: PathBuf,
        kernel: PathBuf,
    }

    impl Fixture {
        /// A folder with the digest of a file in it.
        fn new() -> Self {
            let root = tempfile::tempdir().expect("folder");
            let (dir, kernel) = (root.path().join("digests"), root.path().join("kernel"));
            std::fs::write(&kernel, b"kernel").expect("written");
            let new = Self { root, dir, kernel };
            new.open().put(&[(key(&new.kernel), [0x5a; 32])], later()).expect("kept");
            new
        }

        fn open(&self) -> DigestCache {
            DigestCache::open_of(&self.dir, own()).expect("usable")
        }

        fn file(&self) -> PathBuf {
            self.dir.join(NAME)
        }

        fn known(&self) -> Option<[u8; 32]> {
            self.open().get(&key(&self.kernel))
        }
    }

    #[test]
    fn a_file_is_known_until_it_changes() {
        let at = Fixture::new();
        assert_eq!(at.known(), Some([0x5a; 32]));
        let before = key(&at.kernel);
        // longer than a tick of the file system's clock
        std::thread::sleep(Duration::from_millis(30));
        std::fs::write(&at.kernel, b"kernfl").expect("same length");
        let changed = std::fs::metadata(&at.kernel).expect("file");
        let again = nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            &at.kernel,
            &nix::sys::time::TimeSpec::new(before.0[3], before.0[4]),
            &nix::sys::time::TimeSpec::new(before.0[3], before.0[4]),
            nix::sys::stat::UtimensatFlags::FollowSymlink,
        );
        again.expect("the old time of change is put back");
        assert_eq!(changed.ino(), std::fs::metadata(&at.kernel).expect("file").ino());
        assert_eq!(at.known(), None, "ctime cannot be put back");
        std::fs::copy(&at.kernel, at.root.path().join("copy")).expect("copied");
        std::fs::rename(at.root.path().join("copy"), &at.kernel).expect("in its place");
        assert_eq!(at.known(), None, "another inode");
    }

    #[test]
    fn a_start_looks_up_what_it_can_and_goes_on_without() {
        let at = Fixture::new();
        let known = |kernel, initramfs| KnownFiles { cache: Some(at.open()), files: (kernel, initramfs) };
        let kernel = Some(key(&at.kernel));
        assert_eq!(known(kernel, None).hashes(), Hashes { kernel: Some([0x5a; 32]), initramfs: None });
        assert_eq!(known(None, kernel).hashes(), Hashes { kernel: None, initramfs: Some([0x5a; 32]) });
        let old = at.root.path().join("initramfs");
        std::fs::write(&old, b"initramfs").expect("written");
        let initramfs = FileKey(key(&old).0.map(|number| number - 1000));
        let planned = Hashes { kernel: Some([0x5a; 32]), initramfs: Some([3; 32]) };
        let changed = (kernel, Some(FileKey(initramfs.0.map(|number| number + 1))));
        known(kernel, Some(initramfs)).keep(&planned, changed);
        assert_eq!(known(kernel, Some(initramfs)).hashes().initramfs, None, "changed while it was hashed");
        known(kernel, Some(initramfs)).keep(&planned, (kernel, Some(initramfs)));
        assert_eq!(known(kernel, Some(initramfs)).hashes(), planned);
        let mut none = KnownFiles::new(None, (kernel, Some(initramfs)));
        none.keep(&planned, (kernel, Some(initramfs)));
        assert_eq!(none.hashes(), Hashes::default());
        // the folder of a file
        let bad = KnownFiles::new(Some(&at.kernel), (kernel, None));
        assert_eq!(bad.hashes(), Hashes::default());
    }

    #[test]
    fn each_number_of_a_key_counts() {
        let at = Fixture::new();
        for number in 0..7 {
            let mut other = key(&at.kernel);
            other.0[number] += 1;
            assert_eq!(at.open().get(&other), None, "{number}");
        }
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_entered() {
        let at = Fixture::new();
        std::fs::write(&at.kernel, b"another").expect("written");
        let entry = [(key(&at.kernel), [1; 32])];
        for now in [SystemTime::now(), UNIX_EPOCH] {
            at.open().put(&entry, now).expect("nothing to do");
            assert_eq!(at.known(), None);
        }
        at.open().put(&entry, later()).expect("kept");
        assert_eq!(at.known(), Some([1; 32]));
    }

    #[test]
    fn what_is_spoilt_is_left_out_and_written_anew() {
        let at = Fixture::new();
        let good = std::fs::read(at.file()).expect("file");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(at.file(), &bad).expect("written");
            assert_eq!(at.known(), None, "bit {bit}");
        }
        for bad in [&b""[..], &good[..good.len() / 2], &[0xff; 100], &vec![b'\n'; 40 << 10]] {
            std::fs::write(at.file(), bad).expect("written");
            assert_eq!(at.known(), None);
        }
        at.open().put(&[(key(&at.kernel), [0x5a; 32])], later()).expect("kept");
        assert_eq!(std::fs::read(at.file()).expect("file"), good);
        // a spoilt line leaves the others
        std::fs::write(at.file(), [&good[..], b"1 2 3\n"].concat()).expect("written");
        assert_eq!(at.known(), Some([0x5a; 32]));
    }

    #[test]
    fn the_newest_are_kept_and_the_file_stays_small() {
        let at = Fixture::new();
        let numbered = |number| (FileKey([number, i64::MIN, i64::MIN, i64::MIN, 0, 1, 999_999_999]), [7; 32]);
        for number in 0..100 {
            at.open().put(&[numbered(number)], later()).expect("kept");
        }
        let open = at.open();
        assert_eq!(open.entries.len(), MOST);
        assert_eq!((open.get(&numbered(99).0), open.get(&numbered(50).0)), (Some([7; 32]), None));
        assert!(std::fs::metadata(at.file()).expect("file").len() < MAX_BYTES / 2);
        assert_eq!(std::fs::read_dir(&at.dir).expect("folder").count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_folder_or_file_that_others_can_write_is_not_used() {
        let at = Fixture::new();
        let refused = |owner| DigestCache::open_of(&at.dir, owner).expect_err("refused").to_string();
        assert!(refused(own() + 1).contains("root's alone"));
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
        };
        for mode in [0o755, 0o770, 0o707, 0o1700] {
            set(&at.dir, mode);
            assert!(refused(own()).contains("0700"), "{mode:o}");
        }
        set(&at.dir, 0o700);
        set(&at.file(), 0o620);
        assert!(refused(own()).contains("file"));
        set(&at.file(), 0o600);
        assert_eq!(at.known(), Some([0x5a; 32]));
        let moved = at.root.path().join("moved");
        std::fs::rename(at.file(), &moved).expect("moved");
        symlink(&moved, at.file()).expect("link");
        assert!(DigestCache::open_of(&at.dir, own()).is_err(), "a link in place of the file");
        let linked = at.root.path().join("linked");
        symlink(&at.dir, &linked).expect("link");
        assert!(DigestCache::open_of(&linked, own()).is_err(), "a link in place of the folder");
        assert!(DigestCache::open_of(&at.root.path().join("none/below"), own()).is_err());
    }
}
