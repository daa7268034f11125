//! A terminal of the host as the container's own: its settings and size are the host's, who is in front of it is ours.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::control::{TIOCGPGRP, TIOCGSID, TIOCNOTTY, TIOCSCTTY, TIOCSPGRP};
use super::sessions::{self, Terminal};
use crate::call::Call;
use crate::error::{Errno, SysResult};

/// Bytes of `struct termios` of the kernel.
const TERMIOS: usize = 36;
/// Bytes of `struct winsize`.
const SIZE: usize = 8;

/// An `ioctl` of the host whose argument is at most [`TERMIOS`] bytes.
fn ask(fd: &OwnedFd, request: libc::Ioctl, bytes: &mut [u8; TERMIOS]) -> Result<(), Errno> {
    // SAFETY: the descriptor is open; all requests that come here read or write at most `TERMIOS` bytes, which are there.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, bytes.as_mut_ptr()) };
    Errno::result(result).map(drop)
}

/// Whether a descriptor of the host is a terminal.
pub(in crate::vfs) fn is_terminal(fd: &OwnedFd) -> bool {
    ask(fd, libc::TCGETS, &mut [0; TERMIOS]).is_ok()
}

/// `ioctl` of a terminal of the host: what is not named here is not there.
pub(in crate::vfs) fn control(
    fd: &Arc<OwnedFd>,
    call: &mut Call<'_>,
    request: u32,
    argument: u64,
) -> SysResult {
    let terminal = Terminal::Host(Arc::clone(fd));
    let give = |call: &Call<'_>, value: i32| call.write(argument, &value.to_le_bytes());
    let mut bytes = [0; TERMIOS];
    match libc::Ioctl::from(request) {
        libc::TCGETS => {
            ask(fd, libc::TCGETS, &mut bytes)?;
            call.write(argument, &bytes)?;
        }
        set @ (libc::TCSETS | libc::TCSETSW | libc::TCSETSF) => {
            sessions::check(call.task, &terminal, libc::SIGTTOU)?;
            call.read(argument, &mut bytes)?;
            ask(fd, set, &mut bytes)?;
        }
        libc::TIOCGWINSZ => {
            ask(fd, libc::TIOCGWINSZ, &mut bytes)?;
            call.write(argument, &bytes[..SIZE])?;
        }
        libc::TIOCSWINSZ => {
            call.read(argument, &mut bytes[..SIZE])?;
            ask(fd, libc::TIOCSWINSZ, &mut bytes)?;
        }
        _ => return session_control(call, &terminal, request, argument, give),
    }
    Ok(0)
}

fn session_control(
    call: &mut Call<'_>,
    terminal: &Terminal,
    request: u32,
    argument: u64,
    give: impl Fn(&Call<'_>, i32) -> Result<(), Errno>,
) -> SysResult {
    match request {
        TIOCSCTTY => sessions::take(call.task, terminal, argument == 1, true)?,
        TIOCNOTTY => sessions::give_up(call.task, terminal)?,
        TIOCGPGRP => give(call, call.task.shown(sessions::owner(call.task, terminal, false)?.1))?,
        TIOCGSID => give(call, call.task.shown(sessions::owner(call.task, terminal, false)?.0))?,
        TIOCSPGRP => {
            let pgid = call.read_u32(argument)?.cast_signed();
            sessions::set_foreground(call.task, terminal, pgid)?;
        }
        _ => return Err(Errno::ENOTTY.into()),
    }
    Ok(0)
}

/// The first process of a container has its standard input as controlling terminal, if that is one.
pub(crate) fn adopt(fd: &OwnedFd, task: &crate::task::Task) {
    if is_terminal(fd)
        && let Ok(copy) = fd.try_clone()
    {
        let terminal = Terminal::Host(Arc::new(copy));
        task.tasks().terminals().set(task.session(), task.process_group(), terminal);
    }
}

/// Rows and columns of a terminal of the host; `None` where it is none.
pub(crate) fn size(fd: &OwnedFd) -> Option<(u16, u16)> {
    let mut bytes = [0; TERMIOS];
    ask(fd, libc::TIOCGWINSZ, &mut bytes).ok()?;
    let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Some((number(0), number(2)))
}
