//! Who is about to sleep wakes the next one on the processor that it leaves.
//!
//! To wake a thread on another processor takes the waker 7 to 10 us where that needs an interrupt of that processor, which on virtual machines is an exit, and the thread
//! runs 14 to 22 us later; to wake one on the own processor takes one and three. So where a guest thread is about to wait for another one, to which it has just handed something, the two threads of the host
//! that serve it each wake their like: its stub's thread is told whom ([`super::layout::at::WAKES`]), and does it when it goes to sleep.
//!
//! A stub can name no word in the memory of another one. But all stubs of a sandbox have one page mapped, to read it ([`generation`]), and each of its words is a *bell*: a thread sleeps
//! on its turn and on a bell (`futex_waitv`), whose value never changes. Whoever rings one that is not meant, or waits for one that is not his, costs others a
//! look at their turn, or the time until the sentry's own thread wakes them ([`super::turn`]), which it does whenever that does not happen by itself.
//!
//! `unsafe`: one `futex_waitv` of nothing, to find out whether there is one.

use std::cell::RefCell;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};

use nix::unistd::Pid;

use super::context::{Context, futex_wake};
use super::layout::{GENERATION, at, context_address};
use super::stub::Stub;
use crate::platform::generation;

/// Offset of the first bell in the page: its line is not the one of what changes.
const FIRST: u64 = 64;
/// So many.
const COUNT: u64 = (generation::SIZE - FIRST) / 4;

/// `FUTEX2_SIZE_U32`, shared between processes.
const SIZE_U32: u32 = 2;

/// Whether the host has `futex_waitv` (Linux 5.16).
static WAITS_FOR_TWO: OnceLock<bool> = OnceLock::new();

/// Finds that out, before the sentry gives the call up.
pub(super) fn prepare() {
    WAITS_FOR_TWO.get_or_init(|| {
        // SAFETY: no words, no memory.
        let result = unsafe { libc::syscall(libc::SYS_futex_waitv, 0, 0, 0, 0, 0) };
        result == -1 && nix::errno::Errno::last() == nix::errno::Errno::EINVAL
    });
}

/// Address of a thread's bell in every stub; 0 where there are none. Others may have the same.
pub(super) fn bell(stub: Pid, slot: usize) -> u64 {
    if generation::page().is_none() || WAITS_FOR_TWO.get() != Some(&true) {
        return 0;
    }
    // One after the other for processes that are made one after the other.
    let number = u64::from(stub.as_raw().unsigned_abs()).wrapping_add(37 * slot as u64) % COUNT;
    GENERATION + FIRST + 4 * number
}

/// Tells a stub's thread on what it is to sleep.
pub(super) fn hang(context: &Context, slot: usize, bell: u64) {
    let (turn, second) = (at::WAITERS, at::WAITERS + 24);
    context.store(turn + 8, context_address(slot) + at::STATE as u64);
    context.u32_at(turn + 16).store(SIZE_U32, Ordering::Relaxed);
    context.u32_at(second + 16).store(SIZE_U32, Ordering::Relaxed);
    context.store(second, 0);
    // Last: the stub may be about to sleep.
    fence(Ordering::Release);
    context.store(at::BELL, bell);
}

/// Another thread, which one that is about to sleep wakes then.
pub(super) struct Woken {
    context: Arc<Context>,
    word: u64,
}

impl Woken {
    /// Where it sleeps, in the memory of who is to wake it.
    pub(super) fn word(&self) -> u64 {
        self.word
    }

    /// Wakes it from here.
    pub(super) fn wake(&self) {
        futex_wake(self.context.u32_at(at::STATE));
    }
}

thread_local! {
    /// The stub whose thread is about to sleep, served by the calling thread of the sentry; and whom it wakes.
    static LEAVES: RefCell<Option<(Arc<Stub>, Option<Woken>)>> = const { RefCell::new(None) };
}

/// A thread of that stub, which the calling thread serves, is about to sleep.
pub(super) fn begin(stub: &Arc<Stub>) {
    LEAVES.set(Some((Arc::clone(stub), None)));
}

/// It does now: whom it is to wake.
pub(super) fn end() -> Option<Woken> {
    LEAVES.take().and_then(|(_, woken)| woken)
}

/// Whether one is that is of another process.
pub(super) fn is_of_another(stub: &Arc<Stub>) -> bool {
    LEAVES.with_borrow(|leaves| matches!(leaves, Some((left, None)) if !Arc::ptr_eq(left, stub)))
}

/// Has the thread that is about to sleep wake that one, if there is one that can. It is where that one is wanted: to wake it from here would take another
/// processor's interrupt.
pub(super) fn wake_as_it_leaves(
    stub: &Arc<Stub>,
    (slot, context): (usize, &Arc<Context>),
    bell: u64,
) -> bool {
    LEAVES.with_borrow_mut(|leaves| match leaves {
        Some((left, woken @ None)) => {
            let word = if Arc::ptr_eq(left, stub) { context_address(slot) + at::STATE as u64 } else { bell };
            if word != 0 {
                *woken = Some(Woken { context: Arc::clone(context), word });
            }
            word != 0
        }
        _ => false,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
pub(super) mod tests {
    use super::super::layout::state;
    use super::super::remote::Process as _;
    use super::super::resting::tests::{SOON, guest, spawn, times_asleep, wait_until};
    use super::super::thread::StubThread;
    use super::*;
    use crate::platform::{Interrupt, Thread, Trap};

    /// Whether the guest thread that the calling one serves will wake another.
    pub(in super::super) fn wakes_somebody() -> bool {
        LEAVES.with_borrow(|leaves| matches!(leaves, Some((_, Some(_)))))
    }

    fn is_asleep(thread: &StubThread) -> bool {
        thread.context.u32_at(at::STUB_SLEEPS).load(Ordering::SeqCst) != 0
    }

    /// Has the stub sleep; how often it went to sleep.
    fn asleep(thread: &StubThread) -> u64 {
        thread.let_sleep();
        wait_until(|| is_asleep(thread));
        // It says so before it does.
        std::thread::sleep(SOON);
        times_asleep(thread)
    }

    fn goes_on(thread: &mut StubThread) {
        assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    }

    /// Has `leaves` wake `other` as it leaves, whoever of the two would be nearer.
    fn hand_over(leaves: &StubThread, other: &StubThread, bell: u64) {
        leaves.interrupt.leave_to(&mut || {
            assert!(wake_as_it_leaves(&other.stub, (other.slot, &other.context), bell));
            assert!(!wake_as_it_leaves(&other.stub, (other.slot, &other.context), bell), "one alone");
        });
    }

    /// Its guest makes calls until the stub stays awake thereafter, as it does unless it woke the sentry on its own processor.
    pub(in super::super) fn goes_on_and_looks(thread: &mut StubThread) {
        wait_until(|| {
            thread.tell_looks();
            let context = Arc::clone(&thread.context);
            let looks = [at::SPIN, at::SPIN_WOKEN].map(|place| context.u32_at(place));
            let told = looks.map(|looks| looks.swap(u32::MAX, Ordering::SeqCst));
            goes_on(thread);
            std::thread::sleep(SOON / 10);
            looks.iter().zip(told).for_each(|(looks, told)| looks.store(told, Ordering::SeqCst));
            !is_asleep(thread)
        });
    }

    #[test]
    fn a_stub_that_leaves_wakes_one_of_another_process() {
        let (mut leaves, mut other) = (guest(), guest());
        let own = bell(other.stub.pid(), other.slot);
        if own == 0 {
            return eprintln!("skipped: this host has no futex_waitv");
        }
        hang(&other.context, other.slot, own);
        // From now on it sleeps there.
        goes_on(&mut other);
        for _ in 0..3 {
            let before = asleep(&other);
            goes_on_and_looks(&mut leaves);
            hand_over(&leaves, &other, own);
            wait_until(|| times_asleep(&other) > before);
            wait_until(|| is_asleep(&leaves));
            assert_eq!(leaves.context.load(at::WAKES), 0);
            goes_on(&mut leaves);
            goes_on(&mut other);
        }
    }

    /// Where it goes to sleep before it is told whom to wake, its thread of the sentry does; and where it sleeps already nobody is left to it.
    #[test]
    fn one_that_sleeps_already_is_not_waited_for() {
        let (mut leaves, mut other) = (guest(), guest());
        let before = asleep(&other);
        goes_on_and_looks(&mut leaves);
        leaves.interrupt.leave_to(&mut || {
            assert!(wake_as_it_leaves(&other.stub, (other.slot, &other.context), 0x1234));
            asleep(&leaves);
        });
        assert_eq!(leaves.context.load(at::WAKES), 0);
        wait_until(|| times_asleep(&other) > before);
        leaves.interrupt.leave_to(&mut || {
            assert!(!wake_as_it_leaves(&other.stub, (other.slot, &other.context), 0x1234));
        });
        goes_on(&mut leaves);
        goes_on(&mut other);
    }

    /// Nor is one waited for that never does what it was told.
    #[test]
    fn whom_nobody_wakes_is_woken_by_its_own_side() {
        let mut other = guest();
        for _ in 0..3 {
            asleep(&other);
            other.interrupt.is_to_come();
            goes_on(&mut other);
            // Nor is it forgotten when it waits again.
            asleep(&other);
            other.interrupt.is_to_come();
            other.interrupt.rest();
            assert!(!other.interrupt.takes_coming());
            goes_on(&mut other);
        }
    }

    #[test]
    fn whom_another_wakes_is_not_woken_at_once() {
        let thread = guest();
        assert!(thread.is_to_be_woken(1));
        thread.interrupt.is_to_come();
        assert!(!thread.is_to_be_woken(1) && thread.waiting.comes.get());
        // That is over when it has happened.
        assert!(thread.is_to_be_woken(1) && !thread.waiting.comes.get());
        thread.interrupt.is_to_come();
        assert!(!thread.is_to_be_woken(0) && thread.is_to_be_woken(1));
    }

    /// Whoever rings, a stub whose turn does not come sleeps again, and does not look for it.
    #[test]
    fn a_ring_that_is_not_meant_is_slept_over() {
        let mut thread = guest();
        for told in [state::LONG, state::SENTRY, state::ASKS] {
            let word = Arc::clone(&thread.context);
            let word = word.u32_at(at::STATE);
            asleep(&thread);
            word.store(told, Ordering::SeqCst);
            // It sleeps on what it is told from now on.
            futex_wake(word);
            std::thread::sleep(SOON);
            let context = Arc::clone(&thread.context);
            // If it looked, it would do so without end.
            let looks = context.u32_at(at::SPIN_WOKEN).swap(u32::MAX, Ordering::SeqCst);
            for _ in 0..3 {
                let before = times_asleep(&thread);
                futex_wake(word);
                wait_until(|| times_asleep(&thread) > before);
                assert!(is_asleep(&thread), "{told}");
            }
            context.u32_at(at::SPIN_WOKEN).store(looks, Ordering::SeqCst);
            word.store(state::SENTRY, Ordering::SeqCst);
            goes_on_and_looks(&mut thread);
        }
    }

    /// A guest that changes what its stub waits for does not keep it from sleeping.
    #[test]
    fn what_can_never_be_waited_for_is_given_up() {
        let mut thread = guest();
        let context = Arc::clone(&thread.context);
        hang(&context, thread.slot, GENERATION + FIRST);
        context.store(at::WAITERS + 24, 1);
        goes_on(&mut thread);
        asleep(&thread);
        let before = times_asleep(&thread);
        std::thread::sleep(SOON);
        assert_eq!(times_asleep(&thread), before);
        assert_eq!(context.load(at::BELL), 0);
        goes_on(&mut thread);
    }

    /// It sleeps on two words once somebody of another process wanted to wake it.
    #[test]
    fn a_bell_is_hung_for_others() {
        let (leaves, other) = (guest(), guest());
        prepare();
        let own = bell(other.stub.pid(), other.slot);
        assert_eq!(other.interrupt.bell_for_others(), 0, "nobody leaves");
        begin(&other.stub);
        assert_eq!(other.interrupt.bell_for_others(), 0, "of the same process");
        assert_eq!(other.context.load(at::BELL), 0);
        begin(&leaves.stub);
        assert_eq!(other.interrupt.bell_for_others(), 0, "not yet");
        assert_eq!(other.context.load(at::BELL), own);
        assert_eq!(other.interrupt.bell_for_others(), own);
        assert!(end().is_none());
        // What was begun elsewhere is not ended here.
        begin(&leaves.stub);
        asleep(&other);
        other.interrupt.leave_to(&mut || ());
        assert!(is_of_another(&other.stub) && end().is_none());
    }

    #[test]
    fn without_bells_stubs_sleep_on_their_turn_alone() {
        let mut thread = guest();
        let context = Arc::clone(&thread.context);
        hang(&context, thread.slot, GENERATION + FIRST);
        let flags = context.u32_at(at::WAITERS + 16);
        // A host that refuses the call, or a guest that breaks it.
        flags.store(u32::MAX, Ordering::SeqCst);
        goes_on(&mut thread);
        asleep(&thread);
        assert_eq!(thread.context.load(at::BELL), 0);
        goes_on(&mut thread);
        asleep(&thread);
        goes_on(&mut thread);
    }

    #[test]
    fn threads_of_one_process_need_no_bell() {
        let mut maker = guest();
        let mut other = spawn(&mut maker);
        goes_on(&mut other);
        let before = asleep(&other);
        begin(&maker.stub);
        assert!(wake_as_it_leaves(&other.stub, (other.slot, &other.context), 0));
        let woken = end().unwrap();
        assert_eq!(woken.word(), context_address(other.slot) + at::STATE as u64);
        woken.wake();
        wait_until(|| times_asleep(&other) > before);
        let stranger = guest();
        begin(&stranger.stub);
        assert!(!wake_as_it_leaves(&other.stub, (other.slot, &other.context), 0), "no word that both have");
        assert!(end().is_none());
        goes_on(&mut other);
    }

    #[test]
    fn bells_lie_in_the_page_behind_what_changes() {
        prepare();
        if WAITS_FOR_TWO.get() != Some(&true) {
            return eprintln!("skipped: this host has no futex_waitv");
        }
        let (mut least, mut most) = (u64::MAX, 0);
        for number in 1..5000 {
            let bell = bell(Pid::from_raw(number), number as usize % 7);
            (least, most) = (least.min(bell), most.max(bell));
            assert_eq!(bell % 4, 0);
        }
        assert_eq!((least, most), (GENERATION + FIRST, GENERATION + generation::SIZE - 4));
    }
}
