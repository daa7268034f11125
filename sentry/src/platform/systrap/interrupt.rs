//! What reaches a guest thread from elsewhere: interrupts and signals of the host, and what others say of its calls and turns.
//!
//! `unsafe`: one `tgkill`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::unistd::Pid;

use super::apart::{here, wake_elsewhere};
use super::context::{Context, futex_wake};
use super::layout::{INTERRUPT, at, state};
use super::leaving::{self, wake_as_it_leaves};
use super::remote::Process;
use super::stub::Stub;
use super::{remember, sleepers, waiting};
use crate::platform::{ANSWERED, Interrupt};

/// Interrupts a stub's thread.
pub(in crate::platform) struct StubInterrupt {
    stub: Arc<Stub>,
    slot: usize,
    context: Arc<Context>,
    pub(in crate::platform) thread: Pid,
    pub(super) requested: AtomicBool,
    pub(super) in_guest: AtomicBool,
    /// The guest is to end.
    ending: AtomicBool,
    /// Where the sentry's thread rested at last ([`here`]).
    rests_at: AtomicU32,
    /// Where others can wake the stub ([`leaving`]); 0 for nowhere.
    bell: u64,
    /// Whether the stub was told of that.
    hung: AtomicBool,
    /// Another stub, which is about to sleep, was told to wake this one.
    comes: AtomicBool,
}

impl StubInterrupt {
    /// Of a thread that does not run yet.
    pub(super) fn new(stub: &Arc<Stub>, (slot, context): (usize, &Arc<Context>), thread: Pid) -> Self {
        Self {
            stub: Arc::clone(stub),
            slot,
            context: Arc::clone(context),
            thread,
            requested: AtomicBool::new(false),
            in_guest: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            rests_at: AtomicU32::new(0),
            bell: leaving::bell(stub.pid(), slot),
            hung: AtomicBool::new(false),
            comes: AtomicBool::new(false),
        }
    }

    /// Where the stub of another process, which the calling thread serves and which leaves, can wake this one. It is told to sleep there when
    /// that is first asked for: to sleep on two words costs more.
    pub(super) fn bell_for_others(&self) -> u64 {
        if self.bell == 0 || !leaving::is_of_another(&self.stub) {
            return 0;
        }
        if self.hung.swap(true, Ordering::Relaxed) {
            return self.bell;
        }
        leaving::hang(&self.context, self.slot, self.bell);
        0
    }

    /// Somebody else wakes the stub.
    pub(super) fn is_to_come(&self) {
        self.comes.store(true, Ordering::Relaxed);
    }

    /// Whether somebody else wakes the stub since it sleeps: asked once.
    pub(super) fn takes_coming(&self) -> bool {
        self.comes.load(Ordering::Relaxed) && self.comes.swap(false, Ordering::Relaxed)
    }

    /// Tells the stub, which waits for the turn, that it will be long. Called by who has the turn.
    pub(super) fn let_sleep(&self) {
        // Not over what the host's kernel writes when the thread ends.
        self.tell(state::SENTRY, state::LONG);
    }

    /// Changes what the stub, which waits for the turn, is told of the time that it takes. Whether it was told `from` until now.
    fn tell(&self, from: u32, to: u32) -> bool {
        let word = self.context.u32_at(at::STATE);
        word.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Whether the guest is to end.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Wakes the stub, if it was told that the turn will be long: it comes soon. Called by anybody. Not one that sleeps where the sentry's thread
    /// does, which needs the processor first.
    fn wake_early(&self) {
        let slept = self.context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst);
        if slept == 0 || slept == self.rests_at.load(Ordering::Relaxed) {
            return;
        }
        if !self.tell(state::LONG, state::SENTRY) {
            return;
        }
        let is_elsewhere = slept != here();
        let bell = if is_elsewhere { self.bell_for_others() } else { 0 };
        if wake_as_it_leaves(&self.stub, (self.slot, &self.context), bell) {
            self.is_to_come();
            return;
        }
        let word = self.context.u32_at(at::STATE);
        if !is_elsewhere {
            // The caller leaves this processor to who serves that stub: the two are not to share it.
            wake_elsewhere(self.stub.pid(), self.thread, || futex_wake(word));
        } else {
            futex_wake(word);
        }
    }
}

/// Bits of [`at::ANSWERED`] for what a thread may do by itself.
pub(super) const BY_ITSELF: u64 = remember::KEEPS | sleepers::WAITS;

/// Where the answer to a call has its place.
pub(super) fn answer_of(number: u64) -> Option<usize> {
    ANSWERED.iter().position(|answered| answered.unsigned_abs() == number)
}

impl Interrupt for StubInterrupt {
    fn interrupt(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if self.in_guest.load(Ordering::SeqCst) && !self.stub.is_dead() {
            signal_thread(self.stub.pid(), self.thread);
        }
    }

    fn rest(&self) {
        waiting::rest();
        self.rests_at.store(here(), Ordering::Relaxed);
        self.takes_coming();
        self.let_sleep();
    }

    fn leave_to(&self, wake: &mut dyn FnMut()) {
        let sleeps = || self.context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst) != 0;
        let leaves = !sleeps();
        if leaves {
            leaving::begin(&self.stub);
        }
        wake();
        let woken = if leaves { leaving::end() } else { None };
        if let Some(woken) = &woken {
            self.context.store(at::WAKES, woken.word());
        }
        self.rest();
        // It may be asleep, or about to be. One of the two takes it.
        if let Some(woken) = woken.filter(|_| sleeps() && self.context.take(at::WAKES) != 0) {
            woken.wake();
        }
    }

    fn asks(&self) {
        if !waiting::is_crowded() {
            self.tell(state::SENTRY, state::ASKS);
        }
    }

    fn is_answered(&self) {
        self.tell(state::ASKS, state::SENTRY);
    }

    fn goes_on_soon(&self) {
        self.wake_early();
    }

    fn slept(&self) -> (u64, bool) {
        sleepers::slept(&self.context)
    }

    fn forbid_by_itself(&self) {
        self.context.store(at::ANSWERED, self.context.load(at::ANSWERED) & !BY_ITSELF);
    }

    fn ends(&self) {
        self.ending.store(true, Ordering::SeqCst);
        // Who waits for its turn waits no longer for ever.
        futex_wake(self.context.u32_at(at::STATE));
    }

    fn set_answer(&self, number: u64, value: u64) {
        if let Some(place) = answer_of(number) {
            self.context.store(at::ANSWERS + 8 * place, value);
        }
    }
}

/// Sends [`INTERRUPT`] to a thread of a stub. What does not exist any more needs none.
pub(in crate::platform) fn signal_thread(process: Pid, thread: Pid) {
    let _ = send(process, thread, INTERRUPT);
}

/// Whether a process has a thread of this number.
pub(super) fn is_thread_of(process: Pid, thread: Pid) -> bool {
    send(process, thread, 0)
}

/// Sends a signal, or none if it is 0; whether that could be done.
fn send(process: Pid, thread: Pid, signal: i32) -> bool {
    // SAFETY: the call reads and writes no memory of ours, and signals a thread of a stub alone: the host looks whether it is of that process.
    unsafe { libc::syscall(libc::SYS_tgkill, process.as_raw(), thread.as_raw(), signal) == 0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::leaving::tests::goes_on_and_looks;
    use super::super::resting::tests::{guest, wait_until};
    use super::*;
    use crate::platform::{Thread, Trap};

    /// The shortest time, of some, for which a stub that looks without end goes on with that when it is told something.
    fn looks_on(told: u32) -> Duration {
        let mut thread = guest();
        let context = Arc::clone(&thread.context);
        let asleep = || context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst) != 0;
        let time = |_| {
            goes_on_and_looks(&mut thread);
            let begin = Instant::now();
            thread.interrupt.tell(state::SENTRY, told);
            while !asleep() {
                std::hint::spin_loop();
            }
            let time = begin.elapsed();
            thread.interrupt.tell(told, state::SENTRY);
            time
        };
        (0..20).map(time).min().unwrap()
    }

    #[test]
    fn a_stub_looks_longer_while_a_gofer_is_asked() {
        let (long, asks) = (looks_on(state::LONG), looks_on(state::ASKS));
        // Two thousand looks take that long on any processor.
        assert!(asks > Duration::from_micros(4) && asks > 2 * long, "{long:?}, {asks:?}");
    }

    #[test]
    fn a_stub_looks_on_while_a_gofer_is_asked_but_not_for_ever() {
        let mut thread = guest();
        let context = Arc::clone(&thread.context);
        let state = || context.u32_at(at::STATE).load(Ordering::SeqCst);
        for answered in [true, false] {
            assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
            thread.interrupt.tell(state::SENTRY, state::ASKS);
            wait_until(|| context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst) != 0);
            if answered {
                thread.interrupt.is_answered();
                assert_eq!(state(), state::SENTRY);
                assert!(thread.has_turn());
            }
        }
        // Nothing but the turn is what it was told.
        thread.interrupt.is_answered();
        thread.interrupt.is_answered();
        thread.interrupt.rest();
        thread.interrupt.is_answered();
        assert_eq!(state(), state::LONG);
        assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    }
}
