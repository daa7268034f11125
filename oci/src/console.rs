//! Terminals: one that is made for an engine, which gets its master over a socket; or the user's own.
#![allow(unsafe_code, reason = "the size of a terminal is asked for by ioctl")]

use std::io::{IoSlice, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{self, SetArg, Termios};
use serde_json::Value;

use crate::error::{OciError, io, sys};

/// Makes a terminal, sends its master to a socket as runc does (its name is the message), and gives its slave.
///
/// # Errors
/// What the host says.
pub fn make(socket: &Path, process: &Value) -> Result<OwnedFd, OciError> {
    let what = || format!("cannot hand the terminal to {}", socket.display());
    let peer = UnixStream::connect(socket).map_err(io(what()))?;
    let size = &process["consoleSize"];
    let cells =
        |name: &str| size[name].as_u64().and_then(|cells| u16::try_from(cells).ok()).unwrap_or_default();
    let size = Winsize { ws_row: cells("height"), ws_col: cells("width"), ws_xpixel: 0, ws_ypixel: 0 };
    let size = (size.ws_row > 0 && size.ws_col > 0).then_some(size);
    let pty = openpty(size.as_ref(), None).map_err(sys("cannot make a terminal"))?;
    let name = nix::unistd::ttyname(&pty.slave).map_err(sys("cannot name a terminal"))?;
    let name = name.to_string_lossy().into_owned();
    let rights = [pty.master.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&rights)];
    let bytes = [IoSlice::new(name.as_bytes())];
    sendmsg::<()>(peer.as_raw_fd(), &bytes, &rights, MsgFlags::MSG_NOSIGNAL, None).map_err(sys(what()))?;
    Ok(pty.slave)
}

nix::ioctl_read_bad!(
    /// Size of a terminal (ioctl_tty(2)).
    window_size,
    libc::TIOCGWINSZ,
    Winsize
);

/// Rows and columns of a terminal.
#[must_use]
pub fn size(terminal: &impl AsFd) -> Option<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call writes one `Winsize`, which `size` is, through a descriptor that lives as long as this.
    unsafe { window_size(terminal.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    Some(size)
}

/// The user's own terminal, which is as it was when this is dropped.
#[derive(Debug)]
pub struct Own {
    /// A descriptor of it.
    pub terminal: OwnedFd,
    before: Termios,
}

impl Own {
    /// The one that standard input is.
    ///
    /// # Errors
    /// It is none.
    pub fn of_stdin() -> Result<Self, OciError> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            let reason = "the process wants a terminal and standard input is none: run this from one, or set terminal to false";
            return Err(OciError::Usage(reason.into()));
        }
        let terminal = stdin.as_fd().try_clone_to_owned().map_err(io("cannot copy standard input"))?;
        let before = termios::tcgetattr(&terminal).map_err(sys("cannot read the terminal's settings"))?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use serde_json::json;
    use std::os::fd::RawFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_master_goes_to_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let slave = make(&path, &json!({"consoleSize": {"height": 24, "width": 80}})).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let mut text = [0; 64];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        let received =
            recvmsg::<()>(peer.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let sent: usize = received
            .cmsgs()
            .unwrap()
            .map(|message| if let ControlMessageOwned::ScmRights(all) = message { all.len() } else { 0 })
            .sum();
        let length = received.bytes;
        assert_eq!(sent, 1);
        let name = String::from_utf8_lossy(&text[..length]).into_owned();
        assert_eq!(nix::unistd::ttyname(&slave).unwrap().to_str().unwrap(), name);
    }

    #[test]
    fn without_a_socket_it_says_which() {
        let error = make(Path::new("/nowhere"), &json!({})).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
