//! A Unix socket with length-prefixed JSON messages and descriptors beside them. Blocking on purpose: the stage
//! has one thread, the agent uses it from its blocking pool.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message: a configuration with a large environment and seccomp profile stays far below.
const MAX_MESSAGE: u32 = 16 << 20;
/// Most descriptors with one message.
const MAX_FDS: usize = 8;

/// One end of the conversation between agent and stage.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

impl Channel {
    /// A connected pair: the agent's end, and what becomes the stage's standard input.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self(ours), theirs.into()))
    }

    /// The stage's end.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        let fd = nix::fcntl::fcntl(io::stdin(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))?;
        let socket = UnixStream::from(crate::sys::adopt_received(fd));
        socket.local_addr()?;
        Ok(Self(socket))
    }

    /// Bounds the wait for the next message.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(timeout)
    }

    /// Sends one message and descriptors with it.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len())
            .ok()
            .filter(|l| *l <= MAX_MESSAGE)
            .ok_or_else(|| io::Error::other(format!("message of {} bytes", body.len())))?;
        // One call for both: parent and child of the stage's fork write to the same socket at the same time, and
        // small messages that are sent whole do not mix.
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let sent = retry(|| {
            sendmsg::<UnixAddr>(
                self.0.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
        })?;
        self.0.write_all(bytes.get(sent..).unwrap_or_default())
    }

    /// Receives one message; `UnexpectedEof` when the other side is gone.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut header = [0_u8; 4];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut fds = Vec::new();
        let got = {
            let mut slices = [IoSliceMut::new(&mut header)];
            let message = loop {
                match recvmsg::<UnixAddr>(
                    self.0.as_raw_fd(),
                    &mut slices,
                    Some(&mut space),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                ) {
                    Err(nix::errno::Errno::EINTR) => {}
                    other => break other?,
                }
            };
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(received) = control {
                    fds.extend(received.into_iter().map(crate::sys::adopt_received));
                }
            }
            message.bytes
        };
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.read_exact(header.get_mut(got..).unwrap_or_default())?;
        let length = u32::from_le_bytes(header);
        if length > MAX_MESSAGE {
            return Err(io::Error::other(format!("message of {length} bytes")));
        }
        let mut body = vec![0; length as usize];
        self.0.read_exact(&mut body)?;
        Ok((serde_json::from_slice(&body)?, fds))
    }
}

/// Calls again what a signal (SIGCHLD of another child) interrupted.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel(UnixStream::from(theirs));
        let (reader, writer) = io::pipe().unwrap();
        ours.send(&vec!["x".repeat(100_000)], &[reader.as_fd()]).unwrap_or_else(|e| panic!("{e}"));
        let (message, fds) = theirs.receive::<Vec<String>>().unwrap();
        assert_eq!(message[0].len(), 100_000);
        drop(reader);
        (&writer).write_all(b"hi").unwrap();
        let mut buffer = [0; 2];
        std::fs::File::from(fds.into_iter().next().unwrap()).read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"hi");
    }

    #[test]
    fn a_closed_peer_is_end_of_stream() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        drop(theirs);
        let error = ours.receive::<String>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
