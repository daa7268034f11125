//! The system calls that take pointers: scatter/gather I/O between descriptors and guest memory, the tap's
//! ioctls, and connecting a Unix socket without waiting. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vm_memory::GuestMemoryBackend;

use crate::GuestRam;
use crate::queue::Segment;

/// The kernel's limit on one call (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

/// Reads into guest memory, in one call; at `offset` of a file, or from a stream when `None`. What does not fit in
/// one call is left to the next.
pub(crate) fn read_into(
    fd: BorrowedFd<'_>,
    ram: &GuestRam,
    segments: &[Segment],
    offset: Option<u64>,
) -> io::Result<usize> {
    let iovecs = iovecs(ram, segments)?;
    let count = iovecs.len() as libc::c_int;
    let n = match offset {
        // SAFETY: the iovecs point into memory mapped for as long as `ram` is borrowed, and `count` is their number. The
        // guest may write there at the same time; the kernel copies, no Rust reference to it exists.
        None => unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), count) },
        // SAFETY: as above.
        Some(at) => unsafe { libc::preadv(fd.as_raw_fd(), iovecs.as_ptr(), count, file_offset(at)?) },
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Writes from guest memory, in one call; the counterpart of [`read_into`].
pub(crate) fn write_from(
    fd: BorrowedFd<'_>,
    ram: &GuestRam,
    segments: &[Segment],
    offset: Option<u64>,
) -> io::Result<usize> {
    let iovecs = iovecs(ram, segments)?;
    let count = iovecs.len() as libc::c_int;
    let n = match offset {
        // SAFETY: as in `read_into`; the kernel only reads.
        None => unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), count) },
        // SAFETY: as above.
        Some(at) => unsafe { libc::pwritev(fd.as_raw_fd(), iovecs.as_ptr(), count, file_offset(at)?) },
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sends from guest memory to a socket, without `SIGPIPE`.
pub(crate) fn send_from(fd: BorrowedFd<'_>, ram: &GuestRam, segments: &[Segment]) -> io::Result<usize> {
    let mut iovecs = iovecs(ram, segments)?;
    // SAFETY: an all-zero msghdr is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    // SAFETY: `message` points to `iovecs`, which point into memory mapped for as long as `ram` is borrowed; the kernel
    // only reads them.
    let n = unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sends bytes of our own to a socket, without `SIGPIPE`.
pub(crate) fn send(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: `data` is valid for its length during the call.
    let n = unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Reads once into memory of our own.
pub(crate) fn read(fd: BorrowedFd<'_>, data: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `data` is ours alone for the call, and its length is given.
    let n = unsafe { libc::read(fd.as_raw_fd(), data.as_mut_ptr().cast(), data.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Fills guest memory with random bytes.
pub(crate) fn random_into(ram: &GuestRam, segments: &[Segment]) -> io::Result<usize> {
    let mut done = 0;
    for iovec in iovecs(ram, segments)? {
        // SAFETY: the iovec points to `iov_len` bytes that are mapped for as long as `ram` is borrowed.
        let n = unsafe { libc::getrandom(iovec.iov_base, iovec.iov_len, 0) };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        done += n;
        if n < iovec.iov_len {
            break;
        }
    }
    Ok(done)
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn iovecs(ram: &GuestRam, segments: &[Segment]) -> io::Result<Vec<libc::iovec>> {
    let mut iovecs = Vec::with_capacity(segments.len());
    for segment in segments {
        // A segment may cross from one region of memory into the next.
        for slice in GuestMemoryBackend::get_slices(ram, segment.address, segment.len as usize) {
            let slice = slice.map_err(io::Error::other)?;
            if iovecs.len() == MAX_IOVECS {
                return Ok(iovecs);
            }
            iovecs
                .push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
    }
    Ok(iovecs)
}

/// Length of the vnet header of VIRTIO 1 devices.
const VNET_HDR_LEN: libc::c_int = 12;

/// Opens an existing tap interface of the network namespace of this thread, non-blocking, with vnet headers.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/', '%']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an interface name"));
    }
    let c_name = CString::new(name)?;
    // SAFETY: a string with its NUL that outlives the call.
    if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
        // Below, the kernel would make a new interface, which nobody has wired up.
        return Err(io::Error::new(io::ErrorKind::NotFound, "no such interface"));
    }
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &VNET_HDR_LEN) })?;
    let fd = OwnedFd::from(file);
    set_nonblocking(&fd)?;
    Ok(fd)
}

/// Sets which offloads the reader of a tap understands (`TUN_F_*`).
pub(crate) fn set_tap_offloads(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor that we own, without pointers.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

/// Connects to a Unix stream socket. Never waits: a listener whose backlog is full is an error (`EAGAIN`).
pub(crate) fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let bytes = CString::new(path.as_os_str().as_bytes())?.into_bytes_with_nul();
    // SAFETY: an all-zero sockaddr_un is a valid one.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if bytes.len() > address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path is too long"));
    }
    for (to, from) in address.sun_path.iter_mut().zip(&bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(fd)?;
    // SAFETY: `fd` was just made and belongs to nobody else.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let len = (std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len()) as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_un of which `len` bytes are set, and outlives the call.
    check(unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(stream)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
