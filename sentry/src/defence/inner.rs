//! The sentry is a process of its own, made by the command and as long as it: signals that end the command end the sentry too.

use std::os::fd::{OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, pipe};

use super::{Defence, Refused, Side, drop_privileges};
use crate::error::Errno;

fn refused(errno: Errno) -> Refused {
    Refused { step: "a process for the sentry", errno, way_out: "the host has no processes left" }
}

/// Makes the process. The one that called waits for its end and comes back with how it was.
pub(super) fn fork(defence: Defence, keep: &[RawFd]) -> Result<Side, Refused> {
    let (reader, writer) = pipe().map_err(refused)?;
    // SAFETY: the caller has one thread: nothing is half done that the copy would wait for.
    match unsafe { nix::unistd::fork() }.map_err(refused)? {
        ForkResult::Child => {
            drop(writer);
            follow(reader)?;
            defence.settle(keep)?;
            Ok(Side::Sentry(defence))
        }
        ForkResult::Parent { child } => {
            drop(reader);
            let _ = drop_privileges();
            let code = wait(child).map_err(refused)?;
            drop(writer);
            Ok(Side::Outer(code))
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

fn wait(child: Pid) -> Result<u8, Errno> {
    loop {
        match waitpid(child, None) {
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
