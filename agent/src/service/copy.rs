//! CopyFile: files, folders and links that the host puts below the shared folder.
//!
//! Every path is resolved by the kernel inside that folder (`openat2`, no links followed), so neither `..` nor a
//! link made by an earlier call or by a container leads out of it. A regular file grows beside its place under
//! `<name>.tmp` and takes its place when it is complete.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kata_cc_agent_protocol::agent::CopyFileRequest;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use thiserror::Error;

/// Longest path below the shared folder.
const MAX_PATH: usize = 4096;
/// Largest file: what is copied lies in memory.
const MAX_FILE: i64 = 256 << 20;

/// Why a copy was refused or failed.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    /// A path outside of the shared folder.
    #[error("path {0:?} must be below {base}/ and have no `..`", base = crate::paths::SHARED)]
    Path(String),
    /// A kind of file that is not copied.
    #[error("file mode {0:o} is neither regular file, folder nor link")]
    Kind(u32),
    /// Sizes that contradict each other or exceed the limit.
    #[error("offset {offset} + {length} bytes does not fit a file of {size} (at most {MAX_FILE} are taken)")]
    Size {
        /// Where the data starts.
        offset: i64,
        /// How much there is.
        length: usize,
        /// How long the file is to be.
        size: i64,
    },
    /// A link that would lead out of the shared folder.
    #[error("link target {0:?} must be relative, have no `..`, and be text")]
    Link(String),
    /// A system call failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
}

fn kind_of(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

/// Components below `root`.
fn parts<'a>(root: &Path, path: &'a str) -> Result<Vec<&'a str>, CopyError> {
    let refuse = || CopyError::Path(path.chars().take(256).collect());
    let rest = root
        .to_str()
        .and_then(|r| path.strip_prefix(r))
        .filter(|r| r.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0'))
        .ok_or_else(refuse)?;
    let parts: Vec<&str> = rest.split('/').filter(|p| !p.is_empty()).collect();
    match parts.iter().any(|p| matches!(*p, "." | "..")) || parts.is_empty() {
        true => Err(refuse()),
        false => Ok(parts),
    }
}

fn open_folder(at: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(at, name, how)
}

/// Carries a request out below `root`.
pub(crate) fn copy(root: &Path, r: &CopyFileRequest) -> Result<(), CopyError> {
    let parts = parts(root, &r.path)?;
    let fail = |what: &'static str| {
        let path = r.path.clone();
        move |e: Errno| CopyError::Io { what, path, source: e.into() }
    };
    let owner = (u32::try_from(r.uid).ok().map(Uid::from_raw), u32::try_from(r.gid).ok().map(Gid::from_raw));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut folder =
        nix::fcntl::open(root, flags, Mode::empty()).map_err(fail("open the shared folder for"))?;
    let Some((name, parents)) = parts.split_last() else {
        return Err(CopyError::Path(r.path.clone()));
    };
    for (depth, parent) in parents.iter().enumerate() {
        folder = match open_folder(&folder, parent) {
            Err(Errno::ENOENT) => {
                let mode = Mode::from_bits_truncate(r.dir_mode & 0o777);
                mkdirat(&folder, *parent, mode).map_err(fail("make a parent of"))?;
                fchmodat(&folder, *parent, mode, FchmodatFlags::FollowSymlink)
                    .map_err(fail("set mode of a parent of"))?;
                if depth + 1 == parents.len() {
                    fchownat(&folder, *parent, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)
                        .map_err(fail("set owner of a parent of"))?;
                }
                open_folder(&folder, parent).map_err(fail("open a parent of"))?
            }
            other => other.map_err(fail("open a parent of"))?,
        };
    }
    let mode = Mode::from_bits_truncate(r.file_mode & 0o7777);
    let own = |at: &OwnedFd, name: &str| fchownat(at, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW);
    match kind_of(r.file_mode) {
        SFlag::S_IFDIR => {
            match mkdirat(&folder, *name, mode) {
                Ok(()) => {}
                Err(Errno::EEXIST) => drop(open_folder(&folder, name).map_err(fail("open the existing"))?),
                Err(e) => return Err(fail("make")(e)),
            }
            fchmodat(&folder, *name, mode, FchmodatFlags::FollowSymlink).map_err(fail("set mode of"))?;
            own(&folder, name).map_err(fail("set owner of"))
        }
        SFlag::S_IFLNK => {
            let target = link_target(&r.data)?;
            let temporary = format!("{name}.tmp");
            remove(&folder, &temporary);
            symlinkat(target, &folder, temporary.as_str()).map_err(fail("make link"))?;
            own(&folder, &temporary).map_err(fail("set owner of"))?;
            renameat(&folder, temporary.as_str(), &folder, *name).map_err(fail("put into place"))
        }
        SFlag::S_IFREG => regular(&folder, name, r, mode, own),
        _ => Err(CopyError::Kind(r.file_mode)),
    }
}

fn link_target(data: &[u8]) -> Result<&str, CopyError> {
    let refuse = || CopyError::Link(String::from_utf8_lossy(data).chars().take(256).collect());
    let target = std::str::from_utf8(data).map_err(|_| refuse())?;
    let fine = !target.is_empty()
        && target.len() <= MAX_PATH
        && !target.starts_with('/')
        && !target.contains('\0')
        && target.split('/').all(|p| p != "..");
    if fine { Ok(target) } else { Err(refuse()) }
}

fn remove(folder: &OwnedFd, name: &str) {
    // What is not there need not be removed; what cannot be fails the next step with a clear error.
    let _ = unlinkat(folder, name, UnlinkatFlags::NoRemoveDir);
}

fn regular(
    folder: &OwnedFd,
    name: &str,
    r: &CopyFileRequest,
    mode: Mode,
    own: impl Fn(&OwnedFd, &str) -> nix::Result<()>,
) -> Result<(), CopyError> {
    let length = i64::try_from(r.data.len()).unwrap_or(i64::MAX);
    let end = r.offset.checked_add(length).filter(|e| r.offset >= 0 && *e <= r.file_size);
    let Some(end) = end.filter(|_| r.file_size <= MAX_FILE) else {
        return Err(CopyError::Size { offset: r.offset, length: r.data.len(), size: r.file_size });
    };
    let fail = |what: &'static str| {
        let path = r.path.clone();
        move |source: io::Error| CopyError::Io { what, path, source }
    };
    let temporary = format!("{name}.tmp");
    let first = r.offset == 0;
    if first {
        remove(folder, &temporary);
    }
    let create = if first { OFlag::O_CREAT | OFlag::O_EXCL } else { OFlag::empty() };
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | create;
    let file = nix::fcntl::openat(folder, temporary.as_str(), flags, Mode::from_bits_truncate(0o600))
        .map_err(io::Error::from)
        .map_err(fail("open a temporary for"))?;
    let file = std::fs::File::from(file);
    file.write_all_at(&r.data, r.offset.cast_unsigned()).map_err(fail("write"))?;
    if end < r.file_size {
        return Ok(());
    }
    let place = || -> nix::Result<()> {
        own(folder, &temporary)?;
        fchmodat(folder, temporary.as_str(), mode, FchmodatFlags::FollowSymlink)?;
        renameat(folder, temporary.as_str(), folder, name)
    };
    place().map_err(io::Error::from).map_err(fail("put into place"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(root: &Path, name: &str, mode: u32, data: &[u8]) -> CopyFileRequest {
        let mut r = CopyFileRequest::new();
        r.path = format!("{}/{name}", root.display());
        r.file_mode = mode;
        r.dir_mode = 0o755;
        r.data = data.to_vec();
        r.file_size = i64::try_from(data.len()).unwrap();
        r.uid = nix::unistd::getuid().as_raw().cast_signed();
        r.gid = nix::unistd::getgid().as_raw().cast_signed();
        r
    }

    fn folder() -> std::path::PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kata-cc-copy-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn chunks_become_a_file_at_once() {
        let root = folder();
        let mut r = request(&root, "a/b/file", 0o100_640, b"hello ");
        r.file_size = 11;
        copy(&root, &r).unwrap();
        assert!(!root.join("a/b/file").exists());
        (r.offset, r.data) = (6, b"world".to_vec());
        copy(&root, &r).unwrap();
        assert_eq!(std::fs::read(root.join("a/b/file")).unwrap(), b"hello world");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn paths_out_of_the_folder_are_refused() {
        let root = folder();
        for name in ["../x", "a/../../x", ".", "", "a/./b"] {
            let r = request(&root, name, 0o100_644, b"x");
            assert!(matches!(copy(&root, &r), Err(CopyError::Path(_))), "{name}");
        }
        let mut r = request(&root, "x", 0o100_644, b"x");
        r.path = "/etc/passwd".to_owned();
        assert!(matches!(copy(&root, &r), Err(CopyError::Path(_))));
        r.path = format!("{}evil/x", root.display());
        assert!(matches!(copy(&root, &r), Err(CopyError::Path(_))));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn links_are_neither_followed_nor_lead_out() {
        let root = folder();
        let outside = folder();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let r = request(&root, "link/file", 0o100_644, b"x");
        assert!(matches!(copy(&root, &r), Err(CopyError::Io { .. })));
        assert!(!outside.join("file").exists());
        for target in [&b"/etc"[..], b"../up", b"a/../../b", b"", b"\xff"] {
            let r = request(&root, "l", 0o120_777, target);
            assert!(matches!(copy(&root, &r), Err(CopyError::Link(_))));
        }
        copy(&root, &request(&root, "l", 0o120_777, b"..data/x")).unwrap();
        assert_eq!(std::fs::read_link(root.join("l")).unwrap(), Path::new("..data/x"));
        std::fs::remove_dir_all(root).unwrap();
        std::fs::remove_dir_all(outside).unwrap();
    }

    #[test]
    fn sizes_and_kinds_are_checked() {
        let root = folder();
        let mut r = request(&root, "x", 0o100_644, b"xyz");
        r.file_size = 2;
        assert!(matches!(copy(&root, &r), Err(CopyError::Size { .. })));
        r.file_size = i64::MAX;
        assert!(matches!(copy(&root, &r), Err(CopyError::Size { .. })));
        (r.file_size, r.offset) = (3, -1);
        assert!(matches!(copy(&root, &r), Err(CopyError::Size { .. })));
        let r = request(&root, "fifo", 0o010_644, b"");
        assert!(matches!(copy(&root, &r), Err(CopyError::Kind(_))));
        std::fs::remove_dir_all(root).unwrap();
    }
}
