//! Frames at a descriptor: a packet socket that is bound to an interface, or a tap. Both are read and written like files, a frame each time,
//! so that neither needs a host call that the sentry does not make anyway.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::Errno;

/// `sizeof(struct virtio_net_hdr)` (`include/uapi/linux/virtio_net.h`).
pub(crate) const HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_IS_GOOD: u8 = 2;
const CUT_TCP4: u8 = 1;
const CUT_TCP6: u8 = 4;
const CUT_UDP: u8 = 5;
/// Longest frame: what is cut later may be as long as an IP packet can be.
pub(crate) const FRAME: usize = HEADER + 14 + 65_535 + 40;

/// What the host is to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offload {
    /// Nothing: it is complete.
    None,
    /// The checksum over what begins at `start` is to be put `offset` bytes after that; `cut` are the length of all headers and of a
    /// segment, and whether it is IPv6.
    Tcp { start: u16, offset: u16, cut: Option<(u16, u16, bool)> },
}

/// Where frames go and come from.
pub(crate) struct Device {
    fd: OwnedFd,
    offload: bool,
}

impl Device {
    pub(crate) fn new(fd: OwnedFd, offload: bool) -> Self {
        Self { fd, offload }
    }

    pub(crate) fn offload(&self) -> bool {
        self.offload
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends a frame, which begins after [`HEADER`] bytes that [`mark`] has written.
    ///
    /// # Errors
    /// EAGAIN where there is no room now; what else the host says.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), Errno> {
        let bytes = if self.offload { frame } else { frame.get(HEADER..).unwrap_or_default() };
        loop {
            match nix::unistd::write(&self.fd, bytes) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Receives a frame. `None` where there is none now.
    ///
    /// # Errors
    /// What the host says: ENETDOWN where the interface is gone or down.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<Frame<'a>>, Errno> {
        let count = match nix::unistd::read(&self.fd, buffer) {
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        if !self.offload {
            return Ok(Some(Frame { bytes, trusted: false, datagrams: 0 }));
        }
        let Some((header, bytes)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(Some(Frame::default()));
        };
        let trusted = header[0] & (NEEDS_CHECKSUM | CHECKSUM_IS_GOOD) != 0;
        let datagrams = if header[1] == CUT_UDP { u16::from_ne_bytes([header[4], header[5]]) } else { 0 };
        Ok(Some(Frame { bytes, trusted, datagrams }))
    }
}

/// A frame that came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Frame<'a> {
    pub(crate) bytes: &'a [u8],
    /// Its checksums are right, or were never written since it never left the host.
    pub(crate) trusted: bool,
    /// It is several datagrams, of this size each; 0: it is not.
    pub(crate) datagrams: u16,
}

/// Writes before a frame what the host is to do with it.
pub(crate) fn mark(frame: &mut [u8], how: Offload) {
    let Some(header) = frame.first_chunk_mut::<HEADER>() else { return };
    header.fill(0);
    let Offload::Tcp { start, offset, cut } = how else { return };
    header[0] = NEEDS_CHECKSUM;
    if let Some((headers, size, wide)) = cut {
        header[1] = if wide { CUT_TCP6 } else { CUT_TCP4 };
        header[2..4].copy_from_slice(&headers.to_ne_bytes());
        header[4..6].copy_from_slice(&size.to_ne_bytes());
    }
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
}
