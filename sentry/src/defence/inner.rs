//! The sentry is a process of its own, made by the command and as long as it: signals that end the command end the sentry too.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, pipe};

use super::{Defence, Helper, Refused, Served, Side, Strength, drop_privileges, namespaces, privileges};
use crate::error::Errno;
use crate::say;

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
pub(super) fn fork(strength: Strength, mut kept: Vec<OwnedFd>, helpers: &[Helper]) -> Result<Side, Refused> {
    namespaces::leave_processes(strength)?;
    match split()? {
        None => Ok(Side::Sentry(Defence::settle(strength, &mut kept)?, kept)),
        Some(sentry) => {
            drop(kept);
            let _ = drop_privileges();
            let code = wait(sentry.pid, helpers).map_err(refused)?;
            Ok(Side::Outer(code))
        }
    }
}

/// Makes the process, and a socket between the two. With `network` the caller keeps what interfaces need.
pub(super) fn fork_served(strength: Strength, network: bool) -> Result<Served, Refused> {
    let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
    let (ours, theirs) = pair.map_err(refused)?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let own_processes = open(c"/proc/self/ns/pid_for_children", flags, Mode::empty());
    if strength != Strength::Off && namespaces::leave_processes(strength)? {
        strength.judge(namespaces::follow_mounts())?;
    }
    match split()? {
        None => {
            // Its number is another's once all is closed.
            drop((ours, own_processes));
            let mut kept = vec![theirs];
            let defence = Defence::settle(strength, &mut kept)?;
            let control = kept.pop().ok_or_else(|| refused(Errno::EBADF))?;
            Ok(Served::Sentry(defence, control))
        }
        Some(sentry) => {
            drop(theirs);
            // Other processes that this one makes are none of the sentry's. Who is not root cannot go back: theirs end with the sentry.
            if let Ok(own) = own_processes {
                let _ = setns(own, CloneFlags::CLONE_NEWPID);
            }
            if strength != Strength::Off {
                let for_network = privileges::OF_NETWORK.iter().filter(|_| network);
                let kept: Vec<u32> = privileges::OF_MONITOR.iter().chain(for_network).copied().collect();
                strength.judge(privileges::keep_capabilities(&kept))?;
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
    /// Ends it, if it has not ended.
    pub fn kill(&self) {
        // It is a child that was not waited for: the number is its own.
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    /// Waits for its end: its exit code, or 128 and the number of the signal that ended it, which is said.
    ///
    /// # Errors
    /// Of the host.
    pub fn wait(&self) -> Result<u8, Errno> {
        loop {
            match waitpid(self.pid, None) {
                Ok(status) => {
                    if let Some(code) = outcome(&status) {
                        return Ok(code);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Exit code when a process ended without which there is no sandbox.
const BROKEN: u8 = 125;

/// How long a sentry may be on its way out that has let go of its helper already.
const LEAVING: Duration = Duration::from_secs(2);

/// Waits for the end of the sentry, and ends it when a helper of its has ended.
fn wait(child: Pid, helpers: &[Helper]) -> Result<u8, Errno> {
    let mut broken = false;
    loop {
        let status = match waitpid(None, None) {
            Err(Errno::EINTR) => continue,
            status => status?,
        };
        let pid = status.pid().map(Pid::as_raw);
        if pid == Some(child.as_raw()) {
            match status {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) if broken => return Ok(BROKEN),
                _ => {}
            }
            match outcome(&status) {
                Some(code) => return Ok(code),
                None => continue,
            }
        }
        let helper = helpers.iter().find(|helper| pid.is_some_and(|pid| pid.unsigned_abs() == helper.pid));
        let (Some(helper), Some(how)) = (helper, ending(&status)) else { continue };
        // A helper that has nobody left to help ends by itself, sometimes before the sentry is quite gone; and where it does not start the
        // sentry knows why, and says so.
        if matches!(status, WaitStatus::Exited(..))
            && let Some(code) = leaving(child)?
        {
            return Ok(code);
        }
        say::line(format_args!("kata-cc-sentry: {} {how}: the sandbox is ended", helper.what));
        broken = true;
        let _ = kill(child, Signal::SIGKILL);
    }
}

/// How the sentry ends that is about to.
fn leaving(child: Pid) -> Result<Option<u8>, Errno> {
    let begin = Instant::now();
    while begin.elapsed() < LEAVING {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(2)),
            Ok(status) => return Ok(outcome(&status)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// The exit code for the end of the sentry.
fn outcome(status: &WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => Some(u8::try_from(*code).unwrap_or(u8::MAX)),
        WaitStatus::Signaled(_, signal, _) => {
            say::line(format_args!("kata-cc-sentry: the sentry was ended by {signal}"));
            Some(128_u8.saturating_add(u8::try_from(*signal as i32).unwrap_or(0)))
        }
        _ => None,
    }
}

fn ending(status: &WaitStatus) -> Option<String> {
    match status {
        WaitStatus::Exited(_, code) => Some(format!("ended with {code}")),
        WaitStatus::Signaled(_, signal, _) => Some(format!("was ended by {signal}")),
        _ => None,
    }
}
