//! The monitor's ends of pipes to and from a process, without a thread that waits.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;

/// Most bytes of one read: keeps the answer below the 4 MiB of a ttrpc message.
const READ_MAX: usize = 1 << 20;

/// One end of a pipe.
#[derive(Debug)]
pub(crate) struct Stream(AsyncFd<OwnedFd>);

/// A pipe: what is read from and what is written to.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

impl Stream {
    /// Takes an end over, which nobody else has.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd is open and always gives the same number for as long as it lives.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Waits for output; empty at the end of the stream.
    pub(crate) async fn read(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; most.clamp(1, READ_MAX)];
        loop {
            let mut ready = self.0.readable().await?;
            let result = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?));
            match result {
                Ok(Ok(count)) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of it.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}
