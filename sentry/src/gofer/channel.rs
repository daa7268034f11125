//! Messages with descriptors over a socket that keeps them apart (SOCK_SEQPACKET).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use super::wire::MESSAGE_MAX;
use crate::error::Errno;

/// Descriptors that come with one message at most.
const FILES_MAX: usize = 1;

/// What a message was.
pub(super) struct Message<'a> {
    pub(super) bytes: &'a [u8],
    /// The descriptor that came with it.
    pub(super) file: Option<OwnedFd>,
    /// There was one for which this process has no number left.
    pub(super) file_lost: bool,
}

/// One end of a connection, with room for a message.
pub(super) struct Channel {
    socket: OwnedFd,
    room: Box<[u8]>,
}

/// Two ends of a new connection.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        // Pages of it that no message fills are never there.
        Self { socket, room: vec![0; MESSAGE_MAX].into_boxed_slice() }
    }

    /// Sends one message; waits while the other end has not read the ones before.
    pub(super) fn send(&self, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let message = [IoSlice::new(bytes)];
        let raw = file.map(|file| [file.as_raw_fd()]);
        let control = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &message, control.as_slice(), flags, None) {
                Ok(count) if count == bytes.len() => return Ok(()),
                Ok(_) => return Err(Errno::EMSGSIZE),
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Waits so long for a message to come; whether one did, or the other end went.
    pub(super) fn wait(&self, time: PollTimeout) -> Result<bool, Errno> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, time) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The next message; `None` when the other end is closed.
    ///
    /// # Errors
    /// EMSGSIZE for one that is too long or has more descriptors than any may have; of the host.
    pub(super) fn receive(&mut self) -> Result<Option<Message<'_>>, Errno> {
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; FILES_MAX]);
        let (count, file, truncated, file_lost) = loop {
            let mut iov = [IoSliceMut::new(&mut self.room)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = match recvmsg::<()>(self.socket.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            let mut file = None;
            // Where there was no number or no room for a descriptor there are none to look at.
            for message in received.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(numbers) = message {
                    for number in numbers {
                        // SAFETY: the kernel has just put this descriptor into this process.
                        file = Some(unsafe { OwnedFd::from_raw_fd(number) });
                    }
                }
            }
            let lost = received.flags.contains(MsgFlags::MSG_CTRUNC);
            break (received.bytes, file, received.flags.contains(MsgFlags::MSG_TRUNC), lost);
        };
        if truncated {
            return Err(Errno::EMSGSIZE);
        }
        // No message is empty: this is the end.
        if count == 0 {
            return Ok(None);
        }
        let bytes = self.room.get(..count).ok_or(Errno::EMSGSIZE)?;
        Ok(Some(Message { bytes, file, file_lost }))
    }
}
