//! Threads of a stub whose guest thread has ended: a few rest, and run the next one that is made. A thread of the host is made, and ends, in
//! 15 us; one that rests is woken in two.
//!
//! Who is new begins when its maker goes on: the maker's stub puts into memory what the call left (the new thread's number, which that one
//! looks for), gives it the turn ([`state::GIVEN`] until then) and wakes it, on the processor that its maker is about to leave. So nobody has to be woken on another
//! processor, and the sentry's thread that will serve it need not be there yet ([`crate::platform::Thread::start`]).

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::unistd::Pid;

use super::context::{Context, futex_wake};
use super::layout::{at, context_address, op, state};
use super::leaving::{self, Woken};
use super::stub::Stub;
use super::thread::{Place, StubThread, prepare_again};
use crate::error::Errno;

/// Most of one stub that rest.
const MOST: usize = 4;

/// A thread that rests.
pub(super) struct Resting {
    slot: usize,
    context: Arc<Context>,
    thread: Pid,
}

/// A thread that begins when its maker goes on.
pub(super) struct Made {
    context: Arc<Context>,
    slot: usize,
    /// Which of its users the context has: others may follow.
    user: u64,
}

impl Made {
    /// Where its context lies.
    pub(super) fn address(&self) -> u64 {
        context_address(self.slot)
    }

    /// It begins now.
    pub(super) fn begin(&self) {
        give(&self.context);
    }
}

/// What a guest thread has to do with that.
#[derive(Default)]
pub(super) struct Rest {
    /// Its stub's thread rests when it has ended.
    pub(super) rests: bool,
    /// Its vector registers lie in the context, and are to be loaded first of all.
    loads: Cell<bool>,
    /// Whom it made: it may begin when this one goes on.
    made: Cell<Option<Made>>,
}

impl Stub {
    /// Takes one out. It rests once its state says so.
    fn take_resting(&self) -> Option<Resting> {
        let mut resting = self.resting();
        // The latter where somebody still woke the guest before, by its interrupt.
        let is_there = |resting: &Resting| {
            matches!(resting.context.u32_at(at::STATE).load(Ordering::Acquire), state::LONG | state::SENTRY)
        };
        let place = resting.iter().rposition(is_there)?;
        Some(resting.remove(place))
    }
}

impl StubThread {
    /// A guest thread in one that rests, if there is one. It has the vector registers of this one, which must not have stopped by a signal: else
    /// they are in the host's frame.
    pub(super) fn spawn_resting(&mut self) -> Result<Option<Self>, Errno> {
        if self.context.load(at::FRAME) != 0 {
            return Ok(None);
        }
        let Some(Resting { slot, context, thread }) = self.stub.take_resting() else { return Ok(None) };
        self.ask(op::SAVE_FOR, &[context_address(slot)])?;
        self.stub.enter();
        prepare_again(&context, slot, 0);
        let place = Place { stub: Arc::clone(&self.stub), slot, context };
        let mut child = Self::begin(&self.processes, place, thread, self.socket);
        child.rest.loads.set(true);
        self.pass_state_to(&mut child)?;
        Ok(Some(child))
    }

    /// This one was made just now: it may begin when the caller goes on.
    pub(super) fn has_made(&self, child: &Self) {
        let context = Arc::clone(&child.context);
        let user = context.load(at::USER);
        self.rest.made.set(Some(Made { context, slot: child.slot, user }));
    }

    /// Who is to begin when this one goes on.
    pub(super) fn take_made(&self) -> Option<Made> {
        self.rest.made.take().filter(|made| {
            made.context.u32_at(at::STATE).load(Ordering::Relaxed) == state::GIVEN
                && made.context.load(at::USER) == made.user
        })
    }

    /// Lets whom it made begin now, since it may not go on for long.
    pub(super) fn let_begin(&self) {
        if let Some(made) = self.take_made() {
            self.finish_late();
            made.begin();
        }
    }

    /// How its guest runs for the first time, and with all registers: once the vector registers were loaded.
    pub(super) fn resume_all(&self) -> u32 {
        if self.rest.loads.take() { op::RESUME_NEW } else { op::RESUME_ALL }
    }

    /// Loads its vector registers, for whoever wants to see them.
    pub(super) fn load_now(&self) {
        if self.rest.loads.take() && self.ask(op::LOAD_VECTOR, &[]) != Ok(0) {
            self.stub.kill();
        }
    }

    /// Its guest thread is about to end: who is woken from now on may be woken by it.
    pub(super) fn is_about_to_rest(&self) {
        if self.rest.rests && self.has_turn() {
            leaving::begin(&self.stub);
        }
    }

    /// Its guest thread has ended: it rests if it `may`, unless enough do.
    pub(super) fn let_rest(&self, may: bool) -> bool {
        let woken = leaving::end();
        let rests = may && self.restartable.is_none() && self.rest(woken.as_ref());
        if let Some(woken) = woken.filter(|_| !rests) {
            woken.wake();
        }
        rests
    }

    fn rest(&self, woken: Option<&Woken>) -> bool {
        if !self.rest.rests || !self.has_turn() {
            return false;
        }
        let mut resting = self.stub.resting();
        if resting.len() >= MOST {
            return false;
        }
        if let Some(woken) = woken {
            self.context.store(at::WAKES, woken.word());
        }
        self.give_turn(op::REST);
        resting.push(Resting {
            slot: self.slot,
            context: Arc::clone(&self.context),
            thread: self.interrupt.thread,
        });
        true
    }
}

/// Gives a turn that its owner was to get a little later, unless it has got it.
pub(super) fn give(context: &Context) {
    let word = context.u32_at(at::STATE);
    if word.compare_exchange(state::GIVEN, state::STUB, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        futex_wake(word);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
pub(super) mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::super::layout::kind;
    use super::super::patch::HITS;
    use super::super::remote::Process as _;
    use super::super::tests::{PLATFORM, RX};
    use super::*;
    use crate::platform::tests::{DATA, TEXT, give_code};
    use crate::platform::{Interrupt as _, Memory, MemoryCall, Thread, Trap};

    /// `1: movq %rdi, %xmm3; mov $39, %eax; syscall; movq %xmm3, %rsi; jmp 1b`
    const LOOP: &[u8] = &[
        0x66, 0x48, 0x0f, 0x6e, 0xdf, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x66, 0x48, 0x0f, 0x7e, 0xde, 0xeb, 0xed,
    ];
    /// `1: syscall; jmp 1b`, which always traps.
    const TRAPS: (u64, &[u8]) = (TEXT + 0x200, &[0x0f, 0x05, 0xeb, 0xfc]);
    /// `mov DATA, %edi; syscall; jmp .`
    const LOOKS: (u64, &[u8]) = (TEXT + 0x240, &[0x8b, 0x3c, 0x25, 0, 0, 0x50, 0, 0x0f, 0x05, 0xeb, 0xfe]);

    /// `ud2`
    const BREAKS: (u64, &[u8]) = (TEXT + 0x280, &[0x0f, 0x0b]);

    /// `jmp .`
    const SPINS: (u64, &[u8]) = (TEXT + 0x2c0, &[0xeb, 0xfe]);

    /// A guest in the loop, which makes its calls without traps.
    pub(in super::super) fn guest() -> StubThread {
        let mut thread = PLATFORM.spare.take().unwrap();
        give_code(&mut thread, LOOP);
        for (place, code) in [TRAPS, LOOKS, BREAKS, SPINS] {
            assert_eq!(thread.write(place, code), code.len());
        }
        thread.regs().rdi = 0x4321;
        let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: RX };
        thread.change_memory(&protect).unwrap();
        for _ in 0..=HITS {
            assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
            if thread.replaceable().is_some() {
                thread.replace(RX).unwrap();
            }
        }
        assert_eq!(thread.came_with & kind::TRAPPED, 0);
        thread
    }

    pub(in super::super) fn spawn(maker: &mut StubThread) -> StubThread {
        let mut child = maker.spawn_thread().unwrap();
        child.rest.rests = true;
        maker.has_made(&child);
        child
    }

    fn end(mut thread: StubThread) -> Pid {
        let id = thread.interrupt.thread;
        thread.retire();
        drop(thread);
        id
    }

    pub(in super::super) fn wait_until(mut so: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !so() {
            assert!(begin.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn spawn_resting(maker: &mut StubThread) -> StubThread {
        let mut child = None;
        wait_until(|| {
            child = maker.spawn_resting().unwrap();
            child.is_some()
        });
        let mut child = child.unwrap();
        child.rest.rests = true;
        maker.has_made(&child);
        child
    }

    /// Wherever the guest before it stopped, the next one has its maker's registers, and calls as ever.
    #[test]
    fn a_thread_that_rested_runs_another_guest() {
        for traps in [true, false, true] {
            let mut maker = guest();
            let mut first = spawn(&mut maker);
            if traps {
                first.regs().rip = TRAPS.0;
                first.regs().rax = 77;
            }
            first.regs().rdi = 0x99;
            assert_eq!(first.resume(), Trap::Syscall { number: if traps { 77 } else { 39 } });
            let id = end(first);
            let mut again = spawn_resting(&mut maker);
            assert_eq!(again.interrupt.thread, id);
            assert_eq!(again.regs().rdi, 0x4321);
            for _ in 0..3 {
                assert_eq!(again.resume(), Trap::Syscall { number: 39 });
                assert_eq!(again.regs().rsi, 0x4321);
            }
            again.regs().rip = TRAPS.0;
            again.regs().rax = 78;
            assert_eq!(again.resume(), Trap::Syscall { number: 78 });
            // Signals of the host are not blocked as they were where the first one stopped.
            again.regs().rip = BREAKS.0;
            assert!(matches!(again.resume(), Trap::Fault { signal: libc::SIGILL, .. }));
        }
    }

    #[test]
    fn its_vector_registers_are_its_makers_for_whoever_asks_first() {
        let mut maker = guest();
        let first = spawn(&mut maker);
        end(first);
        let mut again = spawn_resting(&mut maker);
        let state = again.vector_state().unwrap();
        assert_eq!(state[160 + 48..160 + 50], [0x21, 0x43]);
        assert_eq!(again.resume(), Trap::Syscall { number: 39 });
        assert_eq!(again.regs().rsi, 0x4321);
    }

    #[test]
    fn few_rest_and_none_of_a_guest_that_is_gone() {
        let mut maker = guest();
        let threads: Vec<_> = (0..MOST + 3).map(|_| spawn(&mut maker)).collect();
        for thread in threads {
            end(thread);
        }
        assert_eq!(maker.stub.resting().len(), MOST);
        // Somebody may still read its memory.
        let stub = Arc::clone(&maker.stub);
        let pid = stub.pid();
        let last = spawn_resting(&mut maker);
        drop(maker);
        assert!(nix::sys::signal::kill(pid, None).is_ok());
        drop(last);
        wait_until(|| nix::sys::signal::kill(pid, None).is_err());
    }

    /// Waits for the call of a thread that was started.
    fn served(mut thread: StubThread) -> mpsc::Receiver<(Trap, u64)> {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let trap = thread.resume();
            let argument = thread.arguments()[0];
            sender.send((trap, argument)).unwrap();
        });
        receiver
    }

    pub(in super::super) const SOON: Duration = Duration::from_millis(30);
    const LATE: Duration = Duration::from_secs(10);

    /// A new thread, in a thread of the host that is new or that rested, with the number 7 on its way to where it looks for it.
    fn started(maker: &mut StubThread, rested: bool) -> mpsc::Receiver<(Trap, u64)> {
        assert_eq!(maker.write(DATA, &[0; 4]), 4);
        let mut child = spawn(maker);
        if rested {
            end(child);
            child = spawn_resting(maker);
        }
        child.regs().rip = LOOKS.0;
        child.regs().rax = 79;
        assert!(Thread::start(&mut child));
        assert!(maker.put_late(DATA, &7_u32.to_le_bytes()));
        served(child)
    }

    /// Its number is there before it looks: it begins when its maker goes on, or no longer does.
    #[test]
    fn a_new_thread_begins_when_its_maker_goes_on() {
        for rested in [false, true] {
            let mut maker = guest();
            let child = started(&mut maker, rested);
            assert!(child.recv_timeout(SOON).is_err(), "its maker stands still");
            assert_eq!(maker.resume(), Trap::Syscall { number: 39 });
            assert_eq!(child.recv_timeout(LATE).unwrap(), (Trap::Syscall { number: 79 }, 7));

            let child = started(&mut maker, rested);
            maker.regs().rip = TEXT;
            assert_eq!(maker.resume(), Trap::Syscall { number: 39 }, "all registers are new");
            assert_eq!(child.recv_timeout(LATE).unwrap(), (Trap::Syscall { number: 79 }, 7));

            let child = started(&mut maker, rested);
            maker.settle();
            assert_eq!(child.recv_timeout(LATE).unwrap(), (Trap::Syscall { number: 79 }, 7));

            let child = started(&mut maker, rested);
            drop(maker);
            assert_eq!(child.recv_timeout(LATE).unwrap(), (Trap::Syscall { number: 79 }, 7));
        }
    }

    /// Where the number cannot be written it begins all the same, and its maker's call is none the worse.
    #[test]
    fn a_number_without_a_place_is_nothing() {
        for all in [false, true] {
            let mut maker = guest();
            let mut child = spawn(&mut maker);
            assert!(Thread::start(&mut child));
            assert!(maker.put_late(0x666_000, &[7; 4]));
            let child = served(child);
            maker.set_result(5);
            if all {
                maker.regs().rbx = 1;
            }
            assert_eq!(maker.resume(), Trap::Syscall { number: 39 });
            assert!(child.recv_timeout(LATE).is_ok());
        }
    }

    /// A guest that has got hold of its stub's code can keep the turn from a thread: not for long.
    #[test]
    fn who_is_not_given_the_turn_takes_it() {
        let mut maker = guest();
        let mut child = spawn(&mut maker);
        assert!(Thread::start(&mut child));
        drop(maker.rest.made.take());
        let context = Arc::clone(&child.context);
        let interrupt = Arc::clone(&child.interrupt);
        let child = served(child);
        assert_eq!(maker.resume(), Trap::Syscall { number: 39 });
        let later = Duration::from_millis(1200);
        assert!(
            child.recv_timeout(later).is_err(),
            "it is not for long by itself: its maker may only be slow"
        );
        assert_eq!(context.u32_at(at::STATE).load(Ordering::Relaxed), state::GIVEN);
        interrupt.interrupt();
        assert_eq!(child.recv_timeout(LATE).unwrap().0, Trap::Interrupted);
    }

    /// Nor does it help a guest that is to end to have no thread where a turn was given.
    #[test]
    fn a_guest_without_a_thread_can_be_ended() {
        let mut maker = guest();
        let mut child = spawn(&mut maker);
        child.regs().rip = SPINS.0;
        let (interrupt, context) = (Arc::clone(&child.interrupt), Arc::clone(&child.context));
        let child = served(child);
        wait_until(|| context.u32_at(at::STATE).load(Ordering::Relaxed) == state::STUB);
        // What it has instead is stopped by the host, and no signal is heard.
        let stopped = nix::sys::signal::Signal::SIGSTOP;
        nix::sys::signal::kill(maker.stub.pid(), stopped).unwrap();
        assert!(child.recv_timeout(SOON).is_err());
        interrupt.ends();
        interrupt.interrupt();
        assert_eq!(child.recv_timeout(LATE).unwrap().0, Trap::Gone);
    }

    /// How often the host's thread has gone to sleep.
    pub(in super::super) fn times_asleep(thread: &StubThread) -> u64 {
        let path = format!("/proc/{}/task/{}/status", thread.stub.pid(), thread.interrupt.thread);
        let status = std::fs::read_to_string(path).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse().unwrap()
    }

    /// An interrupt may come before a new thread of the host has said where its signal stack is: it must not find its maker's.
    #[test]
    fn a_thread_is_interrupted_as_it_begins() {
        let mut maker = guest();
        for _ in 0..300 {
            let mut child = maker.spawn_thread().unwrap();
            assert!(Thread::start(&mut child));
            child.interrupt.interrupt();
            give(&child.context);
            assert_eq!(child.resume(), Trap::Interrupted);
            assert_eq!(maker.resume(), Trap::Syscall { number: 39 });
        }
    }

    /// A context that another guest thread has by now is not given its turn by the maker of the one before.
    #[test]
    fn whom_another_made_is_not_given_its_turn() {
        let mut maker = guest();
        let mut other = spawn(&mut maker);
        assert_eq!(other.resume(), Trap::Syscall { number: 39 });
        let first = spawn(&mut maker);
        let slot = first.slot;
        end(first);
        let mut child = spawn_resting(&mut other);
        assert_eq!(child.slot, slot);
        assert!(Thread::start(&mut child));
        assert_eq!(maker.resume(), Trap::Syscall { number: 39 });
        assert_eq!(child.context.u32_at(at::STATE).load(Ordering::Relaxed), state::GIVEN);
        assert_eq!(other.resume(), Trap::Syscall { number: 39 });
        assert_eq!(child.resume(), Trap::Syscall { number: 39 });
    }

    /// One that is about to rest wakes another then; one that cannot rest has it woken.
    #[test]
    fn who_leaves_wakes_who_waits() {
        for rests in [true, false] {
            let mut waits = guest();
            let mut ends = spawn(&mut waits);
            ends.rest.rests = rests;
            assert_eq!(ends.resume(), Trap::Syscall { number: 39 });
            waits.let_sleep();
            let sleeps = Arc::clone(&waits.context);
            let asleep = || sleeps.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst) != 0;
            wait_until(asleep);
            if !rests {
                ends.rest.rests = true;
                for _ in 0..MOST {
                    let full = Resting { slot: 99, context: Arc::clone(&ends.context), thread: Pid::this() };
                    waits.stub.resting().push(full);
                }
            }
            ends.retire();
            waits.interrupt.goes_on_soon();
            assert!(leaving::tests::wakes_somebody());
            std::thread::sleep(SOON);
            let before = times_asleep(&waits);
            assert!(asleep(), "nobody has woken it yet");
            drop(ends);
            // It looks for its turn for some microseconds, and sleeps again.
            wait_until(|| times_asleep(&waits) > before);
            assert!(leaving::end().is_none());
            waits.stub.resting().retain(|resting| resting.slot != 99);
        }
    }
}
