//! Files of the host for a container: what a gofer is to export, looked at by path in the monitor's own tree of mounts.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use kata_cc_sentry::gofer::{EXPORTS_MAX, Export};
use thiserror::Error;

/// Why a file of the host is not given to a container.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    /// It cannot be looked at.
    #[error("{path}: {error}")]
    Host {
        /// Its path.
        path: String,
        /// What the host says.
        error: std::io::Error,
    },
    /// It is neither a folder nor a regular file.
    #[error("{path} is {what}: only folders and regular files of the host can be given to a container")]
    Kind {
        /// Its path.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// It is no absolute path.
    #[error("{0:?} is no absolute path")]
    Relative(String),
    /// There are too many.
    #[error("more than {EXPORTS_MAX} files and folders of the host")]
    Full,
}

/// What one gofer exports, in this order.
#[derive(Debug, Default)]
pub(crate) struct Exports(Vec<Export>);

impl Exports {
    /// Adds what is at an absolute path: its number, and whether it is a folder.
    pub(crate) fn add(&mut self, path: &str, writable: bool) -> Result<(u32, bool), OpenError> {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(OpenError::Relative(path.to_owned()));
        }
        let found = std::fs::metadata(path);
        let kind = found.map_err(|error| OpenError::Host { path: path.to_owned(), error })?.file_type();
        if !kind.is_dir() && !kind.is_file() {
            let what = match kind {
                kind if kind.is_socket() => "a socket",
                kind if kind.is_fifo() => "a named pipe",
                _ => "a device",
            };
            return Err(OpenError::Kind { path: path.to_owned(), what });
        }
        let number = u32::try_from(self.0.len()).map_err(|_| OpenError::Full)?;
        if self.0.len() >= EXPORTS_MAX {
            return Err(OpenError::Full);
        }
        self.0.push(Export { path: PathBuf::from(path), writable });
        Ok((number, kind.is_dir()))
    }

    /// All of them.
    pub(crate) fn as_slice(&self) -> &[Export] {
        &self.0
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
        nix::unistd::mkfifo(at("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut exports = Exports::default();
        let mut add = |path: &str| exports.add(path, false);
        assert_eq!(add(&at("file")).unwrap(), (0, false));
        assert_eq!(add(folder.path().to_str().unwrap()).unwrap(), (1, true));
        assert!(add(&at("pipe")).unwrap_err().to_string().contains("a named pipe"));
        assert!(add("/dev/null").unwrap_err().to_string().contains("a device"));
        assert!(add(&at("none")).unwrap_err().to_string().contains("No such file"));
        assert!(matches!(add("file"), Err(OpenError::Relative(_))));
        for _ in 2..EXPORTS_MAX {
            add("/").unwrap();
        }
        assert!(matches!(add("/"), Err(OpenError::Full)));
    }
}
