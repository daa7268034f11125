//! The one system call of the device mapper, which no safe crate wraps.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::HEADER;

/// Sends one device mapper request; the answer replaces it.
pub(super) fn device_mapper(mapper: &File, command: u8, request: &mut [u8]) -> io::Result<()> {
    let said = request.get(12..16).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    if request.len() < HEADER || said != u32::try_from(request.len()).ok() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // _IOWR(0xfd, command, struct dm_ioctl)
    let number = (3u64 << 30) | ((HEADER as u64) << 16) | (0xfd << 8) | u64::from(command);
    // SAFETY: the kernel reads and writes at most `data_size` bytes at the pointer; that field was just checked to be
    // the length of the buffer, which is borrowed mutably for the call and at least as long as the header.
    let result = unsafe { libc::ioctl(mapper.as_raw_fd(), number, request.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
