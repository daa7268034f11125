//! Starting, pausing and stopping the vCPU threads.
//!
//! A vCPU passes the gate before each entry into the guest. To bring it out of the guest it is sent a
//! signal whose handler does nothing: `KVM_RUN` returns `EINTR`. A signal that comes between the gate and
//! `KVM_RUN` is lost, so it is sent again every few milliseconds until all have arrived at the gate.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;
const KICK_EVERY: Duration = Duration::from_millis(2);

/// What a vCPU has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    /// Enter the guest.
    Run,
    /// Enter the guest after a pause: its clock stood still.
    RunAfterPause,
    /// End.
    Stop,
}

#[derive(Default)]
struct Count {
    waiting: usize,
    ended: usize,
}

/// Where vCPUs wait.
#[derive(Default)]
pub(crate) struct Gate {
    wish: AtomicU8,
    count: Mutex<Count>,
    changed: Condvar,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

extern "C" fn wake(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes the wake-up signal harmless; before any vCPU thread starts.
pub(crate) fn install_wake_signal() -> std::io::Result<()> {
    register_signal_handler(SIGRTMIN(), wake).map_err(Into::into)
}

impl Gate {
    /// A gate that lets nobody through before [`Gate::resume`].
    pub(crate) fn closed() -> Self {
        let gate = Self::default();
        gate.wish.store(PAUSE, Ordering::SeqCst);
        gate
    }

    pub(crate) fn add(&self, handle: JoinHandle<()>) {
        lock(&self.handles).push(handle);
    }

    /// Called by a vCPU before each entry into the guest.
    pub(crate) fn pass(&self) -> Go {
        if self.wish.load(Ordering::SeqCst) == RUN {
            return Go::Run;
        }
        let mut count = lock(&self.count);
        count.waiting += 1;
        self.changed.notify_all();
        while self.wish.load(Ordering::SeqCst) == PAUSE {
            count = self.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        count.waiting -= 1;
        if self.wish.load(Ordering::SeqCst) == STOP { Go::Stop } else { Go::RunAfterPause }
    }

    /// Called by a vCPU thread at its end.
    pub(crate) fn leave(&self) {
        lock(&self.count).ended += 1;
        self.changed.notify_all();
    }

    /// Returns when every vCPU waits or has ended. `false` when the VM is being stopped.
    pub(crate) fn pause(&self) -> bool {
        if !self.wish(PAUSE) {
            return false;
        }
        self.gather();
        true
    }

    pub(crate) fn resume(&self) -> bool {
        self.wish(RUN)
    }

    /// Ends and joins all vCPU threads; a stop is final.
    pub(crate) fn stop(&self) {
        self.wish(STOP);
        self.gather();
        for handle in lock(&self.handles).drain(..) {
            if handle.join().is_err() {
                tracing::error!("a vcpu thread panicked");
            }
        }
    }

    fn wish(&self, wish: u8) -> bool {
        let _count = lock(&self.count);
        if self.wish.load(Ordering::SeqCst) == STOP {
            return false;
        }
        self.wish.store(wish, Ordering::SeqCst);
        self.changed.notify_all();
        true
    }

    /// Kicks the vCPUs until all wait or have ended.
    fn gather(&self) {
        let handles = lock(&self.handles);
        let mut count = lock(&self.count);
        loop {
            let stopping = self.wish.load(Ordering::SeqCst) == STOP;
            let arrived = if stopping { 0 } else { count.waiting } + count.ended;
            if arrived >= handles.len() {
                return;
            }
            for handle in handles.iter().filter(|handle| !handle.is_finished()) {
                let _ = handle.kill(SIGRTMIN());
            }
            (count, _) = self.changed.wait_timeout(count, KICK_EVERY).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
