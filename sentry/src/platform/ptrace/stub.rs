//! A stub process as the sentry sees it: its memory's owner, the way of files to it, and its end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::Errno;
use crate::platform::systrap::remote::Process;
use crate::platform::systrap::send_files;
use crate::sync::lock;

/// A stub process: one guest address space.
pub(super) struct Stub {
    pid: Pid,
    socket: Mutex<OwnedFd>,
    live: Mutex<usize>,
    dead: AtomicBool,
}

impl Process for Stub {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }
}

impl Stub {
    /// A process that just began, with one thread.
    pub(super) fn new(pid: Pid, socket: OwnedFd) -> Self {
        Self { pid, socket: Mutex::new(socket), live: Mutex::new(1), dead: AtomicBool::new(false) }
    }

    /// A thread more.
    pub(super) fn enter(&self) {
        *lock(&self.live) += 1;
    }

    /// A thread less; `true` when it was the last.
    pub(super) fn leave(&self) -> bool {
        let mut live = lock(&self.live);
        *live = live.saturating_sub(1);
        *live == 0
    }

    /// It was seen to be gone.
    pub(super) fn died(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Sends a file to it; as long as the lock is held that is given back, nobody else sends, or has it receive.
    pub(super) fn send_file(&self, file: BorrowedFd<'_>) -> Result<MutexGuard<'_, OwnedFd>, Errno> {
        let socket = lock(&self.socket);
        send_files(&socket, &[file])?;
        Ok(socket)
    }
}

impl Drop for Stub {
    /// Ends it, and waits until it has: its number stays its own until then.
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        while let Ok(status) = waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
            if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
                return;
            }
        }
    }
}
