//! The sentry is a process of its own, made by the command and as long as it: signals that end the command end the sentry too.

use std::os::fd::OwnedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, pipe};

use super::{Defence, Refused, Served, Side, Strength, drop_privileges, privileges};
use crate::error::Errno;

fn refused(errno: Errno) -> Refused {
    Refused { step: "a process for the sentry", errno, way_out: "the host has no processes left" }
}

/// The sentry's process, as its monitor knows it.
#[derive(Debug)]
pub struct SentryProcess {
    pid: Pid,
    /// Held open as long as the monitor lives.
    _alive: OwnedFd,
}

/// Makes the process. The one that called waits for its end and comes back with how it was.
pub(super) fn fork(strength: Strength) -> Result<Side, Refused> {
    match split()? {
        None => Defence::settle(strength, None).map(|(defence, _)| Side::Sentry(defence)),
        Some(sentry) => {
            let _ = drop_privileges();
            let code = sentry.wait().map_err(refused)?;
            Ok(Side::Outer(code))
        }
    }
}

/// Makes the process, and a socket between the two.
pub(super) fn fork_served(strength: Strength) -> Result<Served, Refused> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).map_err(refused)?;
    let (ours, theirs) = pair;
    match split()? {
        None => {
            drop(ours);
            match Defence::settle(strength, Some(theirs))? {
                (defence, Some(control)) => Ok(Served::Sentry(defence, control)),
                (_, None) => Err(refused(Errno::EBADF)),
            }
        }
        Some(sentry) => {
            drop(theirs);
            if strength != Strength::Off {
                strength.judge(privileges::keep_capabilities(&privileges::OF_MONITOR))?;
            }
            Ok(Served::Monitor(sentry, ours))
        }
    }
}

/// Two processes out of one: `None` in the new one.
fn split() -> Result<Option<SentryProcess>, Refused> {
    let (reader, writer) = pipe().map_err(refused)?;
    // SAFETY: the caller has one thread: nothing is half done that the copy would wait for.
    match unsafe { nix::unistd::fork() }.map_err(refused)? {
        ForkResult::Child => {
            drop(writer);
            follow(reader)?;
            Ok(None)
        }
        ForkResult::Parent { child } => {
            drop(reader);
            Ok(Some(SentryProcess { pid: child, _alive: writer }))
        }
    }
}

/// Ends with the parent, also when that has ended already.
fn follow(alive: OwnedFd) -> Result<(), Refused> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(refused)?;
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&alive), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).map_err(refused)?;
    let events = fds[0].revents().unwrap_or(PollFlags::empty());
    if events.contains(PollFlags::POLLHUP) { Err(refused(Errno::ESRCH)) } else { Ok(()) }
}

impl SentryProcess {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Ends it, if it has not ended.
    pub fn kill(&self) {
        // It is a child that was not waited for: the number is its own.
        let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
    }

    /// Waits for its end: its exit code, or 128 and the number of the signal that ended it, which is said.
    ///
    /// # Errors
    /// Of the host.
    pub fn wait(&self) -> Result<u8, Errno> {
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    eprintln!("kata-cc-sentry: the sentry was ended by {signal}");
                    return Ok(128_u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0)));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}
