//! Files of the host for a container, opened by path in the monitor's own tree of mounts.

use std::os::fd::OwnedFd;
use std::path::Path;

use kata_cc_sentry::defence::{self, Strength};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use thiserror::Error;

/// Why a file of the host is not given to a container.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    /// It cannot be opened.
    #[error("{path}: {errno}")]
    Host {
        /// Its path.
        path: String,
        /// What the host says.
        errno: Errno,
    },
    /// It is neither a folder nor a regular file.
    #[error("{path} is {what}: only folders and regular files of the host can be given to a container")]
    Kind {
        /// Its path.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// Its mounts cannot be had by themselves.
    #[error("{path}: {refused}")]
    Tree {
        /// Its path.
        path: String,
        /// What the host says.
        refused: defence::Refused,
    },
    /// It is no absolute path.
    #[error("{0:?} is no absolute path")]
    Relative(String),
}

/// A file of the host.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A folder with what is mounted in it, which can only be read.
    Folder(OwnedFd),
    /// A regular file, open for reading.
    File(OwnedFd),
}

/// Opens what is at an absolute path.
pub(crate) fn source(path: &str, strength: Strength) -> Result<Opened, OpenError> {
    if !path.starts_with('/') {
        return Err(OpenError::Relative(path.to_owned()));
    }
    let host = |errno| OpenError::Host { path: path.to_owned(), errno };
    let place = open(Path::new(path), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(host)?;
    let mode = SFlag::from_bits_truncate(fstat(&place).map_err(host)?.st_mode & SFlag::S_IFMT.bits());
    let what = match mode {
        SFlag::S_IFDIR => return folder(path, place, strength).map(Opened::Folder),
        SFlag::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            return open(Path::new(path), flags, Mode::empty()).map(Opened::File).map_err(host);
        }
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFIFO => "a named pipe",
        SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
        _ => "something else",
    };
    Err(OpenError::Kind { path: path.to_owned(), what })
}

/// The mounts at a folder as a tree of their own, out of which no name leads.
fn folder(path: &str, place: OwnedFd, strength: Strength) -> Result<OwnedFd, OpenError> {
    match defence::read_only_tree(&place) {
        Ok(tree) => Ok(tree),
        Err(refused) if strength == Strength::Full => Err(OpenError::Tree { path: path.to_owned(), refused }),
        Err(refused) => {
            tracing::debug!("{path} is not a tree of its own: {refused}");
            Ok(place)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_folders_and_files_are_given() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("file"), b"x").unwrap();
        nix::unistd::mkfifo(at("pipe").as_str(), Mode::S_IRWXU).unwrap();
        let open = |path: &str| source(path, Strength::Off);
        assert!(matches!(open(&at("file")), Ok(Opened::File(_))));
        assert!(matches!(open(folder.path().to_str().unwrap()), Ok(Opened::Folder(_))));
        assert!(open(&at("pipe")).unwrap_err().to_string().contains("a named pipe"));
        assert!(open("/dev/null").unwrap_err().to_string().contains("a device"));
        assert!(open(&at("none")).unwrap_err().to_string().contains("ENOENT"));
        assert!(matches!(open("file"), Err(OpenError::Relative(_))));
    }
}
