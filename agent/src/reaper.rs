//! One place that waits for children, so that no exit is lost and none is collected twice.
//!
//! PID 1 inherits every orphan of the guest; a blanket `waitpid(-1)` would race with code that waits for its own
//! child. Here only the reaper waits. Whoever starts a process does so under the reaper's lock and registers it
//! before the lock is released ([`Reaper::spawn`]); the numbers of processes that others forked (the stage's
//! child) are registered later, and an exit that came first is kept for them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::watch;

/// Exits of processes nobody asked about yet.
const KEPT: usize = 1024;

/// Exit status once known: the code, or 128 + signal.
pub(crate) type Exit = watch::Receiver<Option<i32>>;

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<i32, watch::Sender<Option<i32>>>,
    early: VecDeque<(i32, i32)>,
}

/// Waits for all children of the agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<State>>);

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process and registers it.
    pub(crate) fn spawn(
        &self,
        start: impl FnOnce() -> io::Result<std::process::Child>,
    ) -> io::Result<(i32, Exit)> {
        let mut state = self.lock();
        let pid = start()?.id().cast_signed();
        let (sender, exit) = watch::channel(None);
        state.waiting.insert(pid, sender);
        Ok((pid, exit))
    }

    /// Registers a process that becomes our child when its parent ends.
    pub(crate) fn adopt(&self, pid: i32) -> Exit {
        let mut state = self.lock();
        if let Some(at) = state.early.iter().position(|(p, _)| *p == pid) {
            let code = state.early.remove(at).map(|(_, code)| code);
            return watch::channel(code).1;
        }
        let (sender, exit) = watch::channel(None);
        state.waiting.insert(pid, sender);
        exit
    }

    /// Collects all that have ended.
    pub(crate) fn collect(&self) {
        let mut state = self.lock();
        loop {
            let (pid, code) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            match state.waiting.remove(&pid) {
                // Nobody may be left who waits; the status is then of no use.
                Some(sender) => drop(sender.send(Some(code))),
                None => {
                    if state.early.len() == KEPT {
                        state.early.pop_front();
                    }
                    state.early.push_back((pid, code));
                }
            }
        }
    }

    /// Collects whenever a child ends, until the runtime stops.
    pub(crate) fn run(&self) -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut signals = signal(SignalKind::child())?;
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                this.collect();
                if signals.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(())
    }
}

/// Waits for the status.
pub(crate) async fn wait(mut exit: Exit) -> Option<i32> {
    exit.wait_for(Option::is_some).await.ok().and_then(|v| *v)
}
