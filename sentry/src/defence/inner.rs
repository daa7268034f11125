//! The sentry is a process of its own, made by the command and as long as it: signals that end the command end the sentry too.

use std::os::fd::OwnedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, pipe};

use super::{Defence, Helper, Refused, Side, drop_privileges};
use crate::error::Errno;

fn refused(errno: Errno) -> Refused {
    Refused { step: "a process for the sentry", errno, way_out: "the host has no processes left" }
}

/// Makes the process. The one that called waits for its end and comes back with how it was.
pub(super) fn fork(defence: Defence, mut kept: Vec<OwnedFd>, helpers: &[Helper]) -> Result<Side, Refused> {
    let (reader, writer) = pipe().map_err(refused)?;
    // SAFETY: the caller has one thread: nothing is half done that the copy would wait for.
    match unsafe { nix::unistd::fork() }.map_err(refused)? {
        ForkResult::Child => {
            drop(writer);
            follow(reader)?;
            defence.settle(&mut kept)?;
            Ok(Side::Sentry(defence, kept))
        }
        ForkResult::Parent { child } => {
            drop((reader, kept));
            let _ = drop_privileges();
            let code = wait(child, helpers).map_err(refused)?;
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

/// Exit code when a process ended without which there is no sandbox.
const BROKEN: u8 = 125;

/// Waits for the end of the sentry, and ends it when a helper of its has ended.
fn wait(child: Pid, helpers: &[Helper]) -> Result<u8, Errno> {
    let mut broken = false;
    loop {
        let status = match waitpid(None, None) {
            Err(Errno::EINTR) => continue,
            status => status?,
        };
        let pid = status.pid();
        if pid != Some(child) {
            let helper = helpers
                .iter()
                .find(|helper| pid.is_some_and(|pid| pid.as_raw().unsigned_abs() == helper.pid));
            if let Some(how) = ending(&status)
                && let Some(helper) = helper
            {
                eprintln!("kata-cc-sentry: {} {how}: the sandbox is ended", helper.what);
                broken = true;
                let _ = kill(child, Signal::SIGKILL);
            }
            continue;
        }
        match status {
            WaitStatus::Exited(_, code) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            WaitStatus::Signaled(..) if broken => return Ok(BROKEN),
            WaitStatus::Signaled(_, signal, _) => {
                eprintln!("kata-cc-sentry: the sentry was ended by {signal}");
                return Ok(128_u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0)));
            }
            _ => {}
        }
    }
}

fn ending(status: &WaitStatus) -> Option<String> {
    match status {
        WaitStatus::Exited(_, code) => Some(format!("ended with {code}")),
        WaitStatus::Signaled(_, signal, _) => Some(format!("was ended by {signal}")),
        _ => None,
    }
}
