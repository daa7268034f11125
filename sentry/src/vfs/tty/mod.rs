//! Terminals (`drivers/tty`; `man 7 pty`, `man 2 ioctl_tty`).
//!
//! | file | what is in it |
//! |---|---|
//! | `termios` | settings |
//! | `discipline` | the line discipline: bytes in, bytes and signals out |
//! | `pair` | a pseudoterminal: its two ends' buffers |
//! | `files` | the ends as open files; waiting by `VMIN` and `VTIME` |
//! | `control` | `ioctl` |
//! | `sessions` | controlling terminals and job control |
//! | `devpts` | the file system of slaves |
//! | `console` | a container's terminal seen from outside |
//! | `host` | a terminal of the host as the container's stdin and stdout |
//!
//! **Locks**: the table of pairs is a leaf, and so is a pair's state, under which only the discipline runs; signals are sent and queues told
//! with neither held. The table of sessions is a leaf, too.

mod console;
mod control;
mod devpts;
mod discipline;
mod files;
pub(super) mod host;
mod pair;
#[cfg(test)]
mod property_tests;
mod sessions;
mod termios;

pub use console::Console;
pub use devpts::DevPts;
pub(crate) use host::{adopt, size as host_size};
pub use sessions::{Sessions, Terminal, session_ended};

use super::{File, Flags};
use crate::error::Errno;
use crate::task::current;

/// Opens the caller's controlling terminal (`/dev/tty`).
///
/// # Errors
/// ENXIO where it has none; EIO where that hung up.
pub(super) fn open_controlling(flags: Flags) -> Result<Box<dyn File>, Errno> {
    let task = current().ok_or(Errno::ENXIO)?;
    match task.tasks().terminals().terminal(task.session()).ok_or(Errno::ENXIO)? {
        Terminal::Pair(pair) => {
            let pair = pair.upgrade().ok_or(Errno::ENXIO)?;
            let flags = Flags(flags.0 | libc::O_NOCTTY.cast_unsigned());
            Ok(Box::new(devpts::open_slave(&pair, flags)?))
        }
        Terminal::Host(fd) => {
            Ok(Box::new(super::host_io::HostIo::file(fd.try_clone().map_err(|_| Errno::EMFILE)?)?))
        }
    }
}
