//! The two sides of a turn on two processors.
//!
//! The host's scheduler wakes a thread where the one runs that wakes it, unless another processor with the same cache is known to be idle: on a
//! machine whose processors share none (most virtual ones), or whose caches look busy, the two come to lie on one processor while another has
//! nothing to do. Each looks for its turn then in the way of the other, and a hand-over takes 30 us instead of one third of one. So a stub that sleeps
//! where the sentry runs is woken elsewhere, as long as there are two processors for each pair that is at work; and one that is woken early, by a
//! thread of the sentry that is about to sleep, never where that one runs: who serves the stub will be there. Else two processes that hand something to and fro
//! were now and then for seconds on processors crosswise, and each message woke a processor that was idle (a pipe 80 us instead of 22).

use std::sync::OnceLock;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::interrupt::is_thread_of;
use super::layout::CPUNODE;

/// Bits of the number of the processor in the limit of [`CPUNODE`]'s segment (`VDSO_CPUNODE_BITS`); its node lies above.
const NUMBER: u32 = 0xfff;

/// All processors. `None` where the sentry was told to run on some only: which they are is not ours to change.
static ALL: OnceLock<Option<CpuSet>> = OnceLock::new();

/// Finds out where threads may be woken: before the sentry gives up reading files of the host.
pub(super) fn prepare() {
    ALL.get_or_init(|| {
        let own = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let mine = (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu).unwrap_or(false)).count();
        let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok()??;
        (mine > 1 && usize::try_from(online) == Ok(mine)).then(every)
    });
}

/// Also those that are not there, or not yet.
fn every() -> CpuSet {
    let mut all = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        let _ = all.set(cpu);
    }
    all
}

/// The processor that this runs on, as [`super::layout::at::STUB_SLEEPS`] tells it.
pub(crate) fn here() -> u32 {
    let limit: u32;
    // SAFETY: it reads the limit of a segment, whatever there is of it, and changes the flags alone.
    unsafe { core::arch::asm!("lsl {0:e}, {1:e}", inout(reg) 0 => limit, in(reg) CPUNODE) };
    limit.wrapping_add(1)
}

/// Has `wake` wake a thread of a stub, which sleeps, on any other processor than this. The thread's number is what its guest told.
pub(super) fn wake_elsewhere(stub: Pid, thread: Pid, wake: impl FnOnce()) {
    let Some(Some(all)) = ALL.get() else { return wake() };
    let mut others = *all;
    let number = here().wrapping_sub(1) & NUMBER;
    let moved = is_thread_of(stub, thread)
        && usize::try_from(number).is_ok_and(|cpu| others.unset(cpu).is_ok())
        && sched_setaffinity(thread, &others).is_ok();
    wake();
    if moved {
        let _ = sched_setaffinity(thread, all);
    }
}

/// Has `wake` wake a thread of the sentry, which slept on that processor ([`here`]), on this one: its caller is about to leave it.
pub(crate) fn wake_here(thread: Pid, slept_at: u32, wake: impl FnOnce()) {
    let here = here();
    let Some(Some(all)) = ALL.get().filter(|_| slept_at != here) else { return wake() };
    let mut this = CpuSet::new();
    let number = here.wrapping_sub(1) & NUMBER;
    let moved = usize::try_from(number).is_ok_and(|cpu| this.set(cpu).is_ok())
        && sched_setaffinity(thread, &this).is_ok();
    wake();
    if moved {
        let _ = sched_setaffinity(thread, all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_the_one_that_the_host_tells() {
        let same = || here().wrapping_sub(1) & NUMBER == nix::sched::sched_getcpu().unwrap() as u32;
        // It may change between the two.
        assert!((0..100).any(|_| same()));
    }

    #[test]
    fn a_thread_is_woken_on_another_processor_and_may_go_anywhere_then() {
        prepare();
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            receiver.recv().unwrap();
        });
        let thread_id = told.recv().unwrap();
        let mut seen = None;
        wake_elsewhere(Pid::this(), thread_id, || seen = sched_getaffinity(thread_id).ok());
        let after = sched_getaffinity(thread_id).unwrap();
        let own = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let count = |set: &CpuSet| (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).count();
        assert_eq!(count(&after), count(&own));
        if ALL.get().is_some_and(Option::is_some) {
            assert_eq!(count(seen.as_ref().unwrap()), count(&own) - 1);
        }
        // Whoever it is, a thread of another process is left where it is.
        wake_elsewhere(Pid::parent(), thread_id, || seen = sched_getaffinity(thread_id).ok());
        assert_eq!(count(&seen.unwrap()), count(&own));
        sender.send(()).unwrap();
        thread.join().unwrap();
    }
}
