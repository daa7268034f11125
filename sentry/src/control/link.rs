//! The sentry's end of the socket: it blocks the thread that reads, and for a moment one that writes.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Mutex;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::Serialize;
use thiserror::Error;

use super::frame::{self, ASKED_MAX, DESCRIPTORS_MAX, FrameError, Frames, TOLD_MAX};
use super::message::Request;
use crate::error::Errno;
use crate::sync::lock;

/// Bytes that are read at once.
const PART: usize = 64 << 10;

/// Why the monitor is heard no more.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Of the host.
    #[error("the socket to the monitor: {0}")]
    Host(Errno),
    /// What it says is no message.
    #[error("the monitor sent {0}")]
    Frame(#[from] FrameError),
    /// Descriptors are not those that the message says.
    #[error("a message of the monitor came with {came} descriptors instead of {said}")]
    Descriptors {
        /// As the message says.
        said: usize,
        /// Those there are.
        came: usize,
    },
}

/// The reading half.
pub struct Reader {
    socket: OwnedFd,
    frames: Frames,
    descriptors: VecDeque<OwnedFd>,
    part: Vec<u8>,
}

/// The writing half, for all threads.
pub struct Writer {
    socket: Mutex<OwnedFd>,
}

/// Both halves of a socket. It is read by its own number, which is the one that the filter of host calls knows.
///
/// # Errors
/// The host gives no descriptor.
pub fn open(socket: OwnedFd) -> Result<(Reader, Writer), LinkError> {
    let copy = socket.try_clone().map_err(|_| LinkError::Host(Errno::EMFILE))?;
    let reader =
        Reader { socket, frames: Frames::new(ASKED_MAX), descriptors: VecDeque::new(), part: vec![0; PART] };
    Ok((reader, Writer { socket: Mutex::new(copy) }))
}

impl Reader {
    /// Waits for a request, with its descriptors; `None` once the monitor is gone.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn request(&mut self) -> Result<Option<(Request, Vec<OwnedFd>)>, LinkError> {
        loop {
            if let Some(frame) = self.frames.take()? {
                // Those of a message that follows may have arrived already, but not without bytes of it.
                let (said, came) = (frame.descriptors, self.descriptors.len());
                if came < said || self.frames.is_empty() && came > said {
                    return Err(LinkError::Descriptors { said, came });
                }
                let request = frame::decode(&frame.body)?;
                return Ok(Some((request, self.descriptors.drain(..said).collect())));
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    fn receive(&mut self) -> Result<bool, LinkError> {
        let mut room = nix::cmsg_space!([std::os::fd::RawFd; DESCRIPTORS_MAX]);
        let mut slices = [IoSliceMut::new(&mut self.part)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = loop {
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut room), flags) {
                Ok(received) => break received,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(LinkError::Host(errno)),
            }
        };
        let count = received.bytes;
        for message in received.cmsgs().map_err(LinkError::Host)? {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                // SAFETY: the kernel has just made these descriptors for this process.
                let owned = numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) });
                self.descriptors.extend(owned);
            }
        }
        self.frames.push(self.part.get(..count).unwrap_or_default());
        Ok(count > 0)
    }
}

impl Writer {
    /// Sends a message as a whole. When the monitor is gone nobody hears it.
    pub fn tell<T: Serialize>(&self, message: &T) {
        let bytes = match frame::encode(message, 0, TOLD_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "something cannot be told to the monitor");
                return;
            }
        };
        let socket = lock(&self.socket);
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match nix::unistd::write(socket.as_fd(), left) {
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::debug!(%errno, "the monitor hears nothing any more");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;
    use crate::control::message::{Answer, Ask, ProcessNumber, Told};

    fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[std::os::fd::RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights };
        let sent =
            sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(bytes.len()));
    }

    #[test]
    fn descriptors_come_with_their_message() {
        let (monitor, sentry) = UnixStream::pair().unwrap();
        let (mut reader, writer) = open(sentry.into()).unwrap();
        let request = |number| Request { number, ask: Ask::Signal(ProcessNumber(1), 15) };
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        send(&monitor, &frame::encode(&request(1), 2, ASKED_MAX).unwrap(), &[fd, fd]);
        send(&monitor, &frame::encode(&request(2), 0, ASKED_MAX).unwrap(), &[]);
        let (first, descriptors) = reader.request().unwrap().unwrap();
        assert_eq!((first, descriptors.len()), (request(1), 2));
        let (second, descriptors) = reader.request().unwrap().unwrap();
        assert_eq!((second, descriptors.len()), (request(2), 0));
        let told = Told::Answer { number: 2, result: Ok(Answer::Process(5)) };
        writer.tell(&told);
        let mut bytes = [0; 64];
        let count = (&monitor).read(&mut bytes).unwrap();
        assert_eq!(frame::decode::<Told>(&bytes[frame::HEAD..count]), Ok(told));
        drop(monitor);
        assert!(reader.request().unwrap().is_none());
    }

    #[test]
    fn descriptors_that_nobody_speaks_of_are_refused() {
        for (said, sent) in [(0, 1), (2, 1), (1, 0)] {
            let (monitor, sentry) = UnixStream::pair().unwrap();
            let (mut reader, _) = open(sentry.into()).unwrap();
            let request = Request { number: 1, ask: Ask::Forget(ProcessNumber(1)) };
            let file = std::fs::File::open("/dev/null").unwrap();
            let bytes = frame::encode(&request, said, ASKED_MAX).unwrap();
            send(&monitor, &bytes, &vec![file.as_raw_fd(); sent]);
            let seen = reader.request();
            assert!(matches!(seen, Err(LinkError::Descriptors { .. })), "{said} {sent}");
        }
    }
}
