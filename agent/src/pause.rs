//! The program of a pod's sandbox container: holds the PID namespace, reaps orphans, ends when told to.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Runs until SIGTERM or SIGINT.
pub(crate) fn main() -> i32 {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    if sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).is_err() {
        return 1;
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                let any = Pid::from_raw(-1);
                while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
                    waitpid(any, Some(WaitPidFlag::WNOHANG))
                {}
            }
            Ok(_) => return 0,
            Err(_) => return 1,
        }
    }
}
