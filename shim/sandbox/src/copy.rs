//! Small files of the host for the guest: what a bind mount's source holds, one thing after another, without reading a
//! whole file or following a link of its content.
//!
//! Whom to trust with links: the source itself was named by whoever wrote the specification, who is root on this host and
//! could as well name what a link leads to (`/etc/localtime` is one on most nodes): it is followed. What lies *below* it was
//! written by others, in a volume perhaps by the tenant, and the shim reads as root: a link `x -> /etc/shadow`, put
//! there before or swapped in while we look, would hand a file of the host to the guest. So below the source every name is
//! opened relative to its folder with `O_NOFOLLOW`, first with `O_PATH`, which neither waits on a pipe nor wakes a device; the
//! kind is told from that descriptor, and the content is read through the same descriptor. Links go into the guest
//! as links, if they stay below the source there (kubelet's `token -> ..data/token`); others are refused.
//!
//! [`MAX_BYTES`] and [`MAX_ENTRIES`] are counted while it goes on, not beforehand: files grow.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use thiserror::Error;

/// Largest sum of files of one mount.
pub const MAX_BYTES: u64 = 1 << 20;
/// Most files, folders and links of one mount.
pub const MAX_ENTRIES: usize = 256;
/// Bytes read at a time.
pub const CHUNK: usize = 512 << 10;

/// Why something is not copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// Too much.
    #[error("it is larger than {MAX_ENTRIES} files or {MAX_BYTES} bytes")]
    Large,
    /// Not a file, folder or link.
    #[error("it holds a device, socket or pipe ({0})")]
    Kind(PathBuf),
    /// A link to elsewhere.
    #[error("{link} is a link that leads out of it, to {target}")]
    Link {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// It was written to meanwhile.
    #[error("{0} became shorter while it was copied")]
    Changed(PathBuf),
    /// The system refused.
    #[error("{path} {what}: {source}")]
    Io {
        /// What was looked at.
        path: PathBuf,
        /// What could not be done.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |source| CopyError::Io { path, what, source }
}

/// Something to copy.
#[derive(Debug)]
pub struct Item {
    /// Where, below the source; empty for the source itself.
    pub below: PathBuf,
    /// Mode and owner, of the very thing that was opened.
    pub metadata: Metadata,
    /// What is in it.
    pub content: Content,
}

/// The content of an [`Item`].
#[derive(Debug)]
pub enum Content {
    /// A folder; what is in it follows.
    Folder,
    /// A link and its target.
    Link(PathBuf),
    /// A file.
    File(Chunks),
}

/// A file's content, in pieces of [`CHUNK`]: as many bytes as it had when it was opened.
#[derive(Debug)]
pub struct Chunks {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Chunks {
    /// The next piece; empty at the end.
    ///
    /// # Errors
    /// When it cannot be read, or has become shorter.
    pub fn next_piece(&mut self) -> Result<Vec<u8>, CopyError> {
        let wanted = self.left.min(CHUNK as u64);
        let mut piece = Vec::new();
        let read = (&self.file).take(wanted).read_to_end(&mut piece);
        if read.map_err(failed(&self.path, "cannot be read"))? as u64 != wanted {
            return Err(CopyError::Changed(self.path.clone()));
        }
        self.left -= wanted;
        Ok(piece)
    }
}

/// Walks a source; a folder comes before what is in it.
#[derive(Debug)]
pub struct Walk {
    source: PathBuf,
    /// Folders that are open, with the names in them that are still to come.
    open: Vec<(OwnedFd, PathBuf, Vec<OsString>)>,
    first: bool,
    entries: usize,
    bytes: u64,
}

impl Walk {
    /// Of this file or folder.
    #[must_use]
    pub fn new(source: &Path) -> Self {
        Self { source: source.to_owned(), open: Vec::new(), first: true, entries: 0, bytes: 0 }
    }

    /// The next thing; none at the end.
    ///
    /// # Errors
    /// See [`CopyError`].
    #[allow(clippy::should_implement_trait, reason = "an iterator would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Item>, CopyError> {
        let (found, path, below) = if std::mem::take(&mut self.first) {
            let found = openat(AT_FDCWD, &self.source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
            (found, self.source.clone(), PathBuf::new())
        } else {
            loop {
                let Some((folder, below, names)) = self.open.last_mut() else { return Ok(None) };
                let Some(name) = names.pop() else {
                    self.open.pop();
                    continue;
                };
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let below = below.join(&name);
                break (
                    openat(&*folder, name.as_os_str(), flags, Mode::empty()),
                    self.source.join(&below),
                    below,
                );
            }
        };
        let found = found.map_err(|errno| failed(&path, "cannot be looked at")(errno.into()))?;
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(CopyError::Large);
        }
        let metadata = File::from(found.try_clone().map_err(failed(&path, "cannot be looked at"))?)
            .metadata()
            .map_err(failed(&path, "cannot be looked at"))?;
        let content = self.content(found, &metadata, &path, &below)?;
        Ok(Some(Item { below, metadata, content }))
    }

    fn content(
        &mut self,
        found: OwnedFd,
        metadata: &Metadata,
        path: &Path,
        below: &Path,
    ) -> Result<Content, CopyError> {
        if metadata.is_file() {
            self.bytes = self.bytes.saturating_add(metadata.len());
            if self.bytes > MAX_BYTES {
                return Err(CopyError::Large);
            }
            let file = reopen(&found, OFlag::O_RDONLY).map_err(failed(path, "cannot be read"))?;
            let file = Chunks { file: file.into(), path: path.to_owned(), left: metadata.len() };
            return Ok(Content::File(file));
        }
        if metadata.is_symlink() {
            let target = readlinkat(&found, "").map_err(|e| failed(path, "cannot be read")(e.into()))?;
            let target = PathBuf::from(target);
            let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
            if !target.components().all(inside) {
                return Err(CopyError::Link { link: path.to_owned(), target });
            }
            return Ok(Content::Link(target));
        }
        if !metadata.is_dir() {
            return Err(CopyError::Kind(path.to_owned()));
        }
        let folder =
            reopen(&found, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed(path, "cannot be read"))?;
        let names = names(&folder, MAX_ENTRIES - self.entries).map_err(failed(path, "cannot be read"))?;
        self.open.push((folder, below.to_owned(), names.ok_or(CopyError::Large)?));
        Ok(Content::Folder)
    }
}

/// The same file, open to be read.
fn reopen(found: &OwnedFd, flags: OFlag) -> std::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(openat(AT_FDCWD, path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The names in a folder, the last first; none when there are more than `most`.
fn names(folder: &OwnedFd, most: usize) -> std::io::Result<Option<Vec<OsString>>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
        if names.len() >= most {
            return Ok(None);
        }
        names.push(entry?.file_name());
    }
    names.sort_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
    Ok(Some(names))
}

/// Whether a source can be copied: small enough, and made of regular files, folders and inner links only.
///
/// # Errors
/// Why not.
pub fn check(source: &Path) -> Result<(), CopyError> {
    let mut walk = Walk::new(source);
    while walk.next()?.is_some() {}
    Ok(())
}

/// Read a small regular file of the host; never waits on a pipe, never more than `limit` bytes.
///
/// # Errors
/// When it is not regular, or cannot be read.
pub fn read_small(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let found = openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let file = File::from(found.try_clone()?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::from(reopen(&found, OFlag::O_RDONLY)?).take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Mode, user and group as a CopyFile request has them.
pub(crate) fn attributes(metadata: &Metadata) -> (u32, i32, i32) {
    let id = |id: u32| i32::try_from(id).unwrap_or(0);
    (metadata.mode(), id(metadata.uid()), id(metadata.gid()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn all(source: &Path) -> Result<Vec<(String, String)>, CopyError> {
        let mut walk = Walk::new(source);
        let mut items = Vec::new();
        while let Some(item) = walk.next()? {
            let content = match item.content {
                Content::Folder => "folder".into(),
                Content::Link(target) => format!("-> {}", target.display()),
                Content::File(mut chunks) => {
                    let mut bytes = Vec::new();
                    loop {
                        let piece = chunks.next_piece()?;
                        if piece.is_empty() {
                            break;
                        }
                        assert!(piece.len() <= CHUNK);
                        bytes.extend(piece);
                    }
                    String::from_utf8_lossy(&bytes).into_owned()
                }
            };
            items.push((item.below.display().to_string(), content));
        }
        Ok(items)
    }

    fn pair(a: &str, b: &str) -> (String, String) {
        (a.into(), b.into())
    }

    #[test]
    fn a_volume_of_kubelet_is_copied_with_its_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("..2026")).unwrap();
        std::fs::write(dir.path().join("..2026/token"), "secret").unwrap();
        symlink("..2026", dir.path().join("..data")).unwrap();
        symlink("..data/token", dir.path().join("token")).unwrap();
        let items = all(dir.path()).unwrap();
        assert_eq!(
            items,
            [
                pair("", "folder"),
                pair("..2026", "folder"),
                pair("..2026/token", "secret"),
                pair("..data", "-> ..2026"),
                pair("token", "-> ..data/token"),
            ]
        );
    }

    #[test]
    fn links_of_the_content_never_lead_to_files_of_the_host() {
        for target in ["/etc/passwd", "../outside", "a/../../outside"] {
            let dir = tempfile::tempdir().unwrap();
            let volume = dir.path().join("volume");
            std::fs::create_dir(&volume).unwrap();
            std::fs::write(dir.path().join("outside"), "host's").unwrap();
            symlink(target, volume.join("x")).unwrap();
            let error = all(&volume).unwrap_err();
            assert!(matches!(error, CopyError::Link { .. }), "{error}");
            assert!(check(&volume).is_err());
        }
    }

    #[test]
    fn the_source_itself_may_be_a_link() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("zone"), "UTC").unwrap();
        symlink("zone", dir.path().join("localtime")).unwrap();
        assert_eq!(all(&dir.path().join("localtime")).unwrap(), [pair("", "UTC")]);
    }

    #[test]
    fn limits_hold_for_what_is_there_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), vec![b'x'; CHUNK + 1]).unwrap();
        assert_eq!(all(dir.path()).unwrap()[1].1.len(), CHUNK + 1);
        std::fs::write(dir.path().join("b"), vec![b'x'; CHUNK]).unwrap();
        assert!(matches!(all(dir.path()), Err(CopyError::Large)));
        let many = tempfile::tempdir().unwrap();
        for n in 0..MAX_ENTRIES {
            std::fs::write(many.path().join(n.to_string()), "").unwrap();
        }
        assert!(matches!(all(many.path()), Err(CopyError::Large)));
    }

    #[test]
    fn a_file_that_grows_or_shrinks_meanwhile_is_not_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let chunks = |becomes: &str| {
            std::fs::write(&file, "12345").unwrap();
            let Some(Item { content: Content::File(chunks), .. }) = Walk::new(&file).next().unwrap() else {
                panic!("no file");
            };
            std::fs::write(&file, becomes).unwrap();
            chunks
        };
        assert_eq!(chunks("1234567890").next_piece().unwrap(), b"12345");
        assert!(matches!(chunks("1").next_piece(), Err(CopyError::Changed(_))));
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(matches!(all(dir.path()), Err(CopyError::Kind(_))));
        assert!(read_small(&pipe, 10).is_err());
        std::fs::write(dir.path().join("f"), "12345").unwrap();
        assert_eq!(read_small(&dir.path().join("f"), 3).unwrap(), b"123");
    }
}
