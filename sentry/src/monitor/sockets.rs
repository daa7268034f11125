//! Sockets of the host that clients come to: for this user alone.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
#[cfg(test)]
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{Stream, unfold};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};

/// How long nobody is let in after the host let nobody in.
const PAUSE: Duration = Duration::from_millis(100);

/// The name of a socket, which goes with it.
#[derive(Debug)]
pub(crate) struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        // Somebody may have removed it, or the folder.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens. A socket of this name that nobody listens on any more gives way; anything else does not.
pub(crate) fn listen(path: &Path) -> io::Result<(UnixListener, Name)> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and is no socket"));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens on it")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Nobody may come before the permissions are right.
    let mask = umask(Mode::from_bits_truncate(0o177));
    let listener = StdListener::bind(path);
    umask(mask);
    let (listener, name) = (listener?, Name(path.to_owned()));
    listener.set_nonblocking(true)?;
    Ok((UnixListener::from_std(listener)?, name))
}

/// Whether who connected is this user, or root.
pub(crate) fn is_own(connection: &UnixStream) -> bool {
    match getsockopt(&connection.as_fd(), PeerCredentials) {
        Ok(peer) if peer.uid() == geteuid().as_raw() || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "a client of another user was dropped");
            false
        }
        Err(errno) => {
            tracing::warn!(%errno, "a client was dropped: nobody says who it is");
            false
        }
    }
}

/// Connections of this user, one after the other.
pub(crate) fn connections(
    listener: UnixListener,
) -> impl Stream<Item = io::Result<UnixStream>> + Send + 'static {
    unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) if is_own(&connection) => return Some((Ok(connection), listener)),
                // The connection ends with the stream.
                Ok(_) => {}
                Err(error) => {
                    // Without descriptors left it would be asked again at once, and again.
                    tokio::time::sleep(PAUSE).await;
                    return Some((Err(error), listener));
                }
            }
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_taken_from_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, name) = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::mem::drop(listener);
        let (_listener, second) = listen(&path).unwrap();
        drop(second);
        assert!(!path.exists());
        drop(name);
        std::fs::write(&path, b"data").unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }
}
