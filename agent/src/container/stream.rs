//! Standard streams of a process: pipes, or the master of a pseudo terminal, without blocking a thread.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// Most bytes of one read: keeps the answer below ttrpc's 4 MiB.
pub(crate) const MAX_READ: usize = 1 << 20;

/// Our end of a pipe, or a terminal's master.
#[derive(Debug)]
pub(crate) struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Takes the descriptor over and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(crate::sys::watch(fd)?))
    }

    /// Waits for output; empty at the end of the stream.
    pub(crate) async fn read(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; most.clamp(1, MAX_READ)];
        loop {
            let mut ready = self.0.readable().await?;
            let result = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?));
            match result {
                Ok(Ok(count)) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                // A terminal whose last user is gone says EIO: that is its end of stream.
                Ok(Err(e)) if e.raw_os_error() == Some(Errno::EIO as i32) => return Ok(Vec::new()),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of `data`.
    pub(crate) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), data)?)) {
                Ok(Ok(count)) => data = data.get(count..).unwrap_or_default(),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// The descriptor, for terminal ioctls.
    pub(crate) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}
