//! The server's socket: where it is, who listens, and getting it into the server's hands.
//!
//! `start` makes the listener and hands it to the server as its standard input, so connections wait in the backlog
//! from the moment the address is answered and nobody has to poll for the server to come up.

use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use aws_lc_rs::digest::{SHA256, digest};

/// containerd's folder for shim sockets.
const FOLDER: &str = "/run/containerd/s";
/// Longest path that a Unix socket address holds.
const LONGEST: usize = 106;

/// containerd's rule: the hash of its address, the namespace and the group's id.
pub fn path(folder: Option<&str>, containerd: &str, namespace: &str, group: &str) -> anyhow::Result<PathBuf> {
    let joined = clean_join(&[containerd, namespace, group]);
    let hash = hex::encode(digest(&SHA256, joined.as_bytes()));
    let path = Path::new(folder.unwrap_or(FOLDER)).join(hash);
    if path.as_os_str().len() > LONGEST {
        bail!("socket path {} is longer than {LONGEST} bytes: use a shorter socket_dir", path.display());
    }
    Ok(path)
}

/// Go's `filepath.Join` for what is joined here: no empty parts, no doubled slashes.
fn clean_join(parts: &[&str]) -> String {
    let rooted = parts.iter().find(|part| !part.is_empty()).is_some_and(|first| first.starts_with('/'));
    let mut names: Vec<&str> = Vec::new();
    for name in parts.iter().flat_map(|part| part.split('/')) {
        match name {
            "" | "." => (),
            ".." if !names.is_empty() => drop(names.pop()),
            ".." if rooted => (),
            name => names.push(name),
        }
    }
    format!("{}{}", if rooted { "/" } else { "" }, names.join("/"))
}

/// The address that is told to containerd.
#[must_use]
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Whether a server accepts connections there.
#[must_use]
pub fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// What was found at the socket's path.
#[derive(Debug)]
pub enum Claim {
    /// A server of the group already runs.
    Served,
    /// The path is ours now.
    Ours(UnixListener),
}

/// Listen at `path`, unless somebody already does. A socket left by a dead server is replaced.
pub fn claim(path: &Path) -> anyhow::Result<Claim> {
    let folder = path.parent().context("the socket's path has no folder")?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    for _ in 0..3 {
        match UnixListener::bind(path) {
            Ok(listener) => {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                    .with_context(|| format!("cannot restrict {}", path.display()))?;
                return Ok(Claim::Ours(listener));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                if is_served(path) {
                    return Ok(Claim::Served);
                }
                remove(path);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot listen at {}", path.display())),
        }
    }
    bail!("another shim keeps taking {}", path.display())
}

/// The listener that this process was started with as standard input.
pub fn inherited() -> anyhow::Result<UnixListener> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("cannot take over standard input")?;
    let listener = UnixListener::from(stdin);
    let accepts = nix::sys::socket::getsockopt(&listener, nix::sys::socket::sockopt::AcceptConn);
    if accepts != Ok(true) {
        bail!("standard input is not a listening socket: the server is started by `start`");
    }
    Ok(listener)
}

/// Remove a socket; one that is already gone is fine.
pub fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_containerds() {
        // sha256 of "/run/containerd/containerd.sock/default/c1"
        let expected = hex::encode(digest(&SHA256, b"/run/containerd/containerd.sock/default/c1"));
        let path = path(None, "/run/containerd/containerd.sock", "default", "c1").unwrap();
        assert_eq!(path, Path::new("/run/containerd/s").join(expected));
    }

    #[test]
    fn joins_as_go_does() {
        assert_eq!(clean_join(&["/run//c.sock", "ns", "id"]), "/run/c.sock/ns/id");
        assert_eq!(clean_join(&["", "ns", "id"]), "ns/id");
        assert_eq!(clean_join(&["/a/../../b", "x"]), "/b/x");
    }

    #[test]
    fn too_long_a_folder_is_refused() {
        assert!(path(Some(&format!("/{}", "x".repeat(60))), "a", "b", "c").is_err());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s/one");
        let first = claim(&path).unwrap();
        assert!(matches!(claim(&path).unwrap(), Claim::Served));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(first);
        assert!(path.exists() && !is_served(&path));
        assert!(matches!(claim(&path).unwrap(), Claim::Ours(_)));
    }
}
