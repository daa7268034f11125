//! Terminals of the host that carry what a container's own terminal shows.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// Master and slave of a new one.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = openpty(None, None)?;
    for fd in [&pair.master, &pair.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok((pair.master, pair.slave))
}

/// Bytes go through as they are: the container's own terminal has settings.
pub(crate) fn make_raw(slave: &OwnedFd) -> io::Result<()> {
    let mut settings = tcgetattr(slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(slave, SetArg::TCSANOW, &settings)?;
    // Whoever carries bytes must not wait for one end.
    let flags = OFlag::from_bits_retain(fcntl(slave, FcntlArg::F_GETFL)?);
    fcntl(slave, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Takes a terminal as this process' own, so that it hears of a new size (SIGWINCH). It has one at most: whether this is it.
pub(crate) fn follow(slave: &OwnedFd) -> bool {
    // The leader of a group of processes cannot, and has a terminal then.
    let _ = nix::unistd::setsid();
    // SAFETY: the request takes a number.
    unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) == 0 }
}

/// Rows and columns.
pub(crate) fn size(slave: &OwnedFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the structure lives during the call.
    let result = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Gives this process' terminal up.
pub(crate) fn leave(slave: &OwnedFd) {
    // SAFETY: the request takes nothing. What it says when there is no terminal does not matter.
    unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCNOTTY) };
}
