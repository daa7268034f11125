//! Habits of a service: it says when clients can come, and keeps no terminal.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use anyhow::{Context, bail};

/// Who is told that clients can come.
pub(crate) struct Ready(Option<OwnedFd>);

impl Ready {
    /// Takes over a descriptor that this process was started with.
    pub(crate) fn take(number: Option<RawFd>) -> anyhow::Result<Self> {
        let Some(number) = number else { return Ok(Self(None)) };
        if number < 3 {
            bail!("--ready-fd {number} is a standard stream");
        }
        // SAFETY: it looks at a number.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            bail!("--ready-fd {number} is not open");
        }
        // SAFETY: it is open, and nothing in this process has it yet.
        Ok(Self(Some(unsafe { OwnedFd::from_raw_fd(number) })))
    }

    /// Lets go of it without closing its number.
    pub(crate) fn forget(self) {
        if let Some(fd) = self.0 {
            let _ = fd.into_raw_fd();
        }
    }

    /// Clients can come. Who started this may be gone.
    pub(crate) fn tell(self) {
        if let Some(fd) = self.0 {
            let _ = nix::unistd::write(&fd, b"\n");
        }
        if let Err(error) = notify() {
            tracing::warn!(%error, "NOTIFY_SOCKET is not told");
        }
    }
}

/// `man 3 sd_notify`.
fn notify() -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_encoded_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

/// Puts `/dev/null` in the place of input and output: neither process has a use for them.
pub(crate) fn leave_streams() -> anyhow::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    for number in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        // SAFETY: both numbers are those of standard streams, which stay open.
        nix::errno::Errno::result(unsafe { libc::dup2(null.as_raw_fd(), number) })?;
    }
    Ok(())
}
