//! The turn between a stub's thread and the sentry's thread: giving it away, waiting for it, and what passes with it.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::apart::{here, wake_elsewhere};
use super::context::{futex_wait, futex_wake};
use super::layout::{ANYWHERE, CODE, FLAGS, INTERRUPT, at, context_address, kind, op, state};
use super::patch::flags_of_comparison;
use super::remote::Process;
use super::resting::give;
use super::stage;
use super::step::TRAP_FLAG;
use super::thread::StubThread;
use super::waiting::Waiting;
use crate::error::Errno;
use crate::events;
use crate::platform::{Memory, Regs, Trap};
use crate::ticks;

/// Bytes that are put into the guest's memory when it goes on.
#[derive(Default)]
pub(super) struct Late {
    /// Where to, and how many; they lie in the context.
    pending: Cell<Option<(u64, usize)>>,
    /// That it could not be done.
    failed: Cell<bool>,
    /// That this is nothing to the guest.
    aside: Cell<bool>,
}

/// For what the sentry's thread waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// For guest code: it is interrupted by a signal. For ever, but for [`BREATHS`] once it is to end.
    Guest,
    /// The same for a new thread, whose turn may not have been given yet ([`state::GIVEN`]).
    NewGuest,
    /// For what the stub was asked, which may take the host long (files, memory): for [`BREATHS`] once the guest is to end, which no signal brings
    /// to its stub then. A guest that has got hold of its stub's code can be killed so, and whoever waits for it goes on.
    Task,
    /// For what takes no time, and is done under a lock that others want: for [`BREATHS`].
    Moment,
}

impl Patience {
    fn is_for_guest(self) -> bool {
        matches!(self, Self::Guest | Self::NewGuest)
    }

    /// Whether the turn is the stub's, or about to be. What else a stub says is no reason to wait.
    fn is_away(self, state: u32) -> bool {
        state == state::STUB || state == state::GIVEN && self == Self::NewGuest
    }
}

/// Seconds, of which one that was longer, as the sandbox stood still with stub and all, counts once.
const BREATHS: u32 = if cfg!(test) { 3 } else { 20 };
const BREATH: Duration = Duration::from_secs(1);

/// After so many looks the guest does not seem to wait for anything: others are woken that its call woke.
const PUT_OFF: u32 = 240;

/// After so many looks another stub should have woken this one, as it was told to.
const COMES: u32 = 160;

const EFAULT: u64 = (-(libc::EFAULT as i64)).cast_unsigned();

impl StubThread {
    /// Gives the turn to the stub, and waits for it to come back. `false` when the stub is gone.
    fn pass(&self, what: u32, patience: Patience) -> bool {
        self.tell_looks();
        let slept = self.put_turn(what);
        if self.is_to_be_woken(slept) {
            self.wake_stub(slept, what);
        }
        self.wait(self.waiting.looks_for(slept != 0), patience)
    }

    /// Tells the stub for how long it is to look for its turn, where that is new.
    pub(super) fn tell_looks(&self) {
        if let Some((awake, woken)) = self.waiting.begin() {
            self.context.u32_at(at::SPIN).store(awake, Ordering::Relaxed);
            self.context.u32_at(at::SPIN_WOKEN).store(woken, Ordering::Relaxed);
        }
    }

    /// Gives the turn to the stub.
    pub(super) fn give_turn(&self, what: u32) {
        let slept = self.put_turn(what);
        if slept != 0 {
            self.wake_stub(slept, what);
        }
    }

    /// Makes the turn the stub's, and tells where that sleeps, if it does.
    fn put_turn(&self, what: u32) -> u32 {
        self.context.u32_at(at::WHAT).store(what, Ordering::Relaxed);
        // A whole barrier: whether the stub sleeps is looked at after this.
        self.context.u32_at(at::STATE).swap(state::STUB, Ordering::SeqCst);
        self.context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst)
    }

    /// Whether a stub that got the turn, and slept there if it slept, is to be woken now, as no other stub does.
    pub(super) fn is_to_be_woken(&self, slept: u32) -> bool {
        let comes = self.interrupt.takes_coming() && slept != 0;
        self.waiting.comes.set(comes);
        slept != 0 && !comes
    }

    fn wake_stub(&self, slept: u32, what: u32) {
        let word = self.context.u32_at(at::STATE);
        // Not for a copy of itself, which would be bound as it is for that moment.
        let copies = matches!(what, op::FORK | op::SPAWN);
        if slept == here() && !copies && self.waiting.is_alone() {
            wake_elsewhere(self.stub.pid(), self.interrupt.thread, || futex_wake(word));
        } else {
            futex_wake(word);
        }
    }

    /// Another stub was to wake this one: it is woken if that did not happen.
    fn wake_if_nobody_did(&self) {
        if self.waiting.comes.take() && self.context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst) != 0 {
            futex_wake(self.context.u32_at(at::STATE));
        }
    }

    /// Waits for the turn, and looks so often before it sleeps. `false` when the stub is gone, or was ended since it did not come back.
    pub(super) fn wait(&self, looks: u32, patience: Patience) -> bool {
        let word = self.context.u32_at(at::STATE);
        for look in 0..looks {
            if !patience.is_away(word.load(Ordering::Acquire)) {
                self.waiting.came(look);
                return self.has_turn();
            }
            if look == COMES {
                self.wake_if_nobody_did();
            }
            if look == PUT_OFF {
                events::wake_put_off();
            }
            std::hint::spin_loop();
        }
        self.wake_if_nobody_did();
        events::wake_put_off();
        Waiting::sleeps();
        let begin = ticks::now();
        let sleeps = self.context.u32_at(at::SENTRY_SLEEPS);
        sleeps.store(if self.waiting.is_alone() { here() } else { ANYWHERE }, Ordering::SeqCst);
        let (mut breath, mut breaths) = (begin, 0);
        let away = || {
            Some(word.load(Ordering::SeqCst)).filter(|state| patience.is_away(*state) && !self.stub.is_dead())
        };
        while let Some(state) = away() {
            let has_end = !patience.is_for_guest() || self.interrupt.is_ending();
            futex_wait(word, state, (has_end || state == state::GIVEN).then_some(BREATH));
            let now = ticks::now();
            if ticks::duration(now.saturating_sub(breath)) < BREATH * 9 / 10 {
                continue;
            }
            breath = now;
            if state == state::GIVEN && self.interrupt.requested.load(Ordering::Relaxed) {
                // Who was to give it does not, and somebody wants this guest to stop.
                give(&self.context);
            }
            breaths += u32::from(patience == Patience::Moment || self.interrupt.is_ending());
            if has_end && breaths >= BREATHS && away().is_some() {
                tracing::warn!("a stub does not do what it is asked: its guest is ended");
                self.stub.kill();
            }
        }
        sleeps.store(0, Ordering::SeqCst);
        self.waiting.slept(ticks::now().saturating_sub(begin));
        self.has_turn()
    }

    pub(super) fn has_turn(&self) -> bool {
        let state = self.context.u32_at(at::STATE).load(Ordering::Acquire);
        matches!(state, state::SENTRY | state::LONG) && !self.stub.is_dead()
    }

    /// What the stub says that it gives the turn away for.
    fn what(&self) -> u32 {
        self.context.u32_at(at::WHAT).load(Ordering::Relaxed)
    }

    /// Asks the stub for something other than to run the guest. What it says is whatever the guest wants it to be.
    pub(super) fn ask(&self, what: u32, arguments: &[u64]) -> Result<u64, Errno> {
        self.make_mappings()?;
        if !self.has_turn() {
            return Err(Errno::EFAULT);
        }
        for (n, argument) in arguments.iter().enumerate() {
            self.context.store(at::ARGUMENTS + 8 * n, *argument);
        }
        let patience = if what == op::COMPARE_EXCHANGE { Patience::Moment } else { Patience::Task };
        if self.pass(what, patience) && self.what() == kind::DONE {
            Ok(self.context.load(at::TURN))
        } else {
            Err(Errno::EFAULT)
        }
    }

    /// Takes the guest's registers out of the context, where they have not been taken yet.
    pub(super) fn take_registers(&mut self) {
        self.finish_late();
        if self.late.failed.take() {
            self.regs.rax = EFAULT;
        }
        if !self.all {
            let called = self.regs;
            self.take_all();
            self.regs = with_call(self.regs, &called);
        }
    }

    /// Registers and the base of `fs`, as they are: those of this guest stay where they are.
    pub(super) fn peek_registers(&self) -> (Regs, u64) {
        if self.all {
            (self.regs, self.fs_base)
        } else {
            (with_call(self.context.regs(), &self.regs), self.context.load(at::FS_BASE))
        }
    }

    fn take_all(&mut self) {
        self.regs = self.context.regs();
        self.fs_base = self.context.load(at::FS_BASE);
        self.all = true;
    }

    /// Takes what a call says of itself.
    fn take_call(&mut self) -> Trap {
        let word = |n: usize| self.context.load(at::TURN + 8 * n);
        let [rax, rdi, rsi, rdx, r10, r8, r9] = std::array::from_fn(word);
        self.regs = Regs { rax, rdi, rsi, rdx, r10, r8, r9, ..self.regs };
        self.all = false;
        self.called = rax;
        if self.came_with & (kind::STAGED | kind::WRITABLE) != 0 {
            // What such calls give is often put there.
            self.context.prefetch(at::LATE, 3);
        }
        Trap::Syscall { number: rax }
    }

    /// Lets the guest run until it stops.
    pub(super) fn run_guest(&mut self) -> Trap {
        let first = if std::mem::take(&mut self.started) {
            self.tell_looks();
            self.stopped(self.wait(self.waiting.looks_for(false), Patience::NewGuest))
        } else {
            if let Err(trap) = self.enter_guest() {
                return trap;
            }
            self.go_on()
        };
        let trap = first.unwrap_or_else(|| {
            loop {
                if let Some(trap) = self.go_on() {
                    break trap;
                }
            }
        });
        self.interrupt.in_guest.store(false, Ordering::SeqCst);
        trap
    }

    /// Lets the guest of a new thread run, for [`run_guest`](Self::run_guest) to wait for.
    pub(super) fn start_guest(&mut self) -> bool {
        if self.enter_guest().is_err() {
            return false;
        }
        let what = self.lay_out();
        self.context.u32_at(at::WHAT).store(what, Ordering::Relaxed);
        self.context.u32_at(at::STATE).store(state::GIVEN, Ordering::SeqCst);
        self.started = true;
        true
    }

    /// From now on interrupts stop the guest. What it stops for already, if it does.
    fn enter_guest(&self) -> Result<(), Trap> {
        if self.make_mappings().is_err() || !self.has_turn() {
            return Err(Trap::Gone);
        }
        let interrupted = self.context.u32_at(at::INTERRUPTED);
        if interrupted.load(Ordering::Relaxed) != 0 {
            interrupted.store(0, Ordering::SeqCst);
        }
        self.interrupt.in_guest.store(true, Ordering::SeqCst);
        if self.interrupt.requested.load(Ordering::SeqCst) {
            self.interrupt.requested.store(false, Ordering::SeqCst);
            self.interrupt.in_guest.store(false, Ordering::SeqCst);
            return Err(Trap::Interrupted);
        }
        Ok(())
    }

    /// Lets the guest run; `None` where it has to go on, since what it stopped for concerns nobody else.
    fn go_on(&mut self) -> Option<Trap> {
        let what = self.lay_out();
        let came = self.pass(what, Patience::Guest);
        self.stopped(came)
    }

    /// Puts into the context what the guest goes on with, and says how it does.
    fn lay_out(&mut self) -> u32 {
        if self.all {
            self.let_begin();
            self.finish_late();
        }
        if self.late.failed.take() {
            self.regs.rax = EFAULT;
        }
        self.context.store(at::TURN, self.regs.rax);
        self.came_with = 0;
        if self.all {
            // The stub's own code would run under any other flag, too.
            let trap = if self.stepping { TRAP_FLAG } else { 0 };
            let eflags = (self.regs.eflags & FLAGS) | 0x202 | trap;
            self.context.set_regs(&Regs { eflags, ..self.regs });
            self.context.store(at::FS_BASE, self.fs_base);
            self.resume_all()
        } else if let Some(made) = self.take_made() {
            let (to, length) = self.late.pending.take().unwrap_or_default();
            self.context.store(at::LATE, to);
            self.context.store(at::LATE + 8, length as u64);
            self.context.store(at::ARGUMENTS, made.address());
            op::RESUME_GIVING
        } else if let Some((to, length)) = self.late.pending.take() {
            self.context.store(at::LATE, to);
            self.context.store(at::LATE + 8, length as u64);
            op::RESUME_LATE
        } else {
            op::RESUME
        }
    }

    /// Why the guest stopped, where the turn came back; `None` where it has to go on.
    fn stopped(&mut self, came: bool) -> Option<Trap> {
        if !came {
            return Some(Trap::Gone);
        }
        match self.what() {
            kind::NOT_WRITTEN => {
                self.regs.rax = EFAULT;
                None
            }
            kind::INTERRUPTED => {
                self.take_all();
                Some(Trap::Interrupted)
            }
            kind::SIGNAL => {
                self.take_all();
                self.signal()
            }
            what if what & kind::CALL != 0 => {
                self.came_with = what;
                Some(self.take_call())
            }
            _ => Some(Trap::Gone),
        }
    }

    /// What the context says of the signal by which the guest stopped.
    fn signal(&mut self) -> Option<Trap> {
        let trap = match i32::try_from(self.context.load(at::SIGNAL)) {
            Ok(INTERRUPT) => Trap::Interrupted,
            Ok(libc::SIGILL) if self.stub.patches().entered_inside(self.regs.rip) => {
                self.regs.rip += 2;
                Trap::Syscall { number: self.regs.rax }
            }
            Ok(libc::SIGTRAP) if self.met_guard(self.regs.rip) => {
                self.regs.rip -= 1;
                return None;
            }
            Ok(libc::SIGSEGV)
                if let Some((behind, with)) = self.stub.patches().behind_comparison(self.regs.rip) =>
            {
                self.regs.eflags = flags_of_comparison(self.regs.rax, with, self.regs.eflags);
                self.regs.rip = behind;
                return None;
            }
            Ok(signal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGTRAP | libc::SIGILL)) => {
                Trap::Fault {
                    signal,
                    code: self.context.load(at::CODE) as u32 as i32,
                    address: self.context.load(at::ADDRESS),
                    exception: (self.context.load(at::EXCEPTION), self.context.load(at::ERROR)),
                }
            }
            _ => Trap::Gone,
        };
        Some(trap)
    }

    /// Where the stub fetched or tried memory of the guest's, if it says that it did: first byte and length.
    pub(super) fn told(&self, flag: u32) -> Option<(u64, usize)> {
        if self.came_with & flag == 0 {
            return None;
        }
        let (start, length) = stage::range(self.called, &self.regs)?;
        let fetched = if stage::is_text(self.called) {
            (self.came_with >> kind::FETCHED_BIT) as usize
        } else {
            usize::MAX
        };
        Some((start, length.min(fetched)))
    }

    /// Takes of a text that was fetched with the call as much as there is, if that is all of it.
    pub(super) fn staged_text(&self, address: u64, to: &mut [u8]) -> Option<usize> {
        let told = self.told(kind::STAGED).filter(|(start, _)| *start == address)?;
        let part = to.get_mut(..told.1)?;
        (self.take_staged(told, address, part) && part.contains(&0)).then_some(part.len())
    }

    /// Takes bytes that were fetched with the call. Whether they were.
    pub(super) fn staged(&self, address: u64, to: &mut [u8]) -> bool {
        self.told(kind::STAGED).is_some_and(|told| self.take_staged(told, address, to))
    }

    fn take_staged(&self, (start, length): (u64, usize), address: u64, to: &mut [u8]) -> bool {
        let Some(skip) = address.checked_sub(start).and_then(|skip| usize::try_from(skip).ok()) else {
            return false;
        };
        let inside = skip.checked_add(to.len()).is_some_and(|end| end <= length.min(at::STAGE_SIZE))
            && ends_before_stub(address, to.len());
        if inside {
            self.context.read(at::STAGE + skip, to);
        }
        inside
    }

    /// Whether the stub says that these bytes can be written.
    pub(super) fn is_writable(&self, address: u64, length: usize) -> bool {
        let told = self.told(kind::WRITABLE);
        told.is_some_and(|(start, most)| start == address && length <= most)
            && ends_before_stub(address, length)
    }

    /// Puts bytes into the guest's memory when it goes on. `false` where that cannot be.
    pub(super) fn put_late(&self, address: u64, from: &[u8]) -> bool {
        if self.late.pending.get().is_some()
            || from.is_empty()
            || from.len() > at::LATE_SIZE
            || !ends_before_stub(address, from.len())
        {
            return false;
        }
        self.context.write(at::LATE_BYTES, from);
        self.late.pending.set(Some((address, from.len())));
        self.late.aside.set(false);
        true
    }

    /// The same, or at once; where it cannot be done that is nothing to the guest.
    pub(super) fn put_aside(&self, address: u64, from: &[u8]) {
        if self.put_late(address, from) {
            self.late.aside.set(true);
        } else {
            self.write(address, from);
        }
    }

    /// Has the stub put them there now: somebody wants to see the guest as it will be.
    pub(super) fn finish_late(&self) {
        if let Some((to, length)) = self.late.pending.take() {
            let from = context_address(self.slot) + at::LATE_BYTES as u64;
            if self.copy(to, from, length) < length && !self.late.aside.get() {
                self.late.failed.set(true);
            }
        }
    }
}

/// Registers, with those that a call told.
fn with_call(all: Regs, called: &Regs) -> Regs {
    let Regs { rax, rdi, rsi, rdx, r10, r8, r9, .. } = *called;
    Regs { rax, rdi, rsi, rdx, r10, r8, r9, ..all }
}

pub(super) fn ends_before_stub(address: u64, length: usize) -> bool {
    address.checked_add(length as u64).is_some_and(|end| end <= CODE)
}
