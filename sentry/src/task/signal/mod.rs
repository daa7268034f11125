//! Signals (`man 7 signal`; Linux: `kernel/signal.c`).
//!
//! | file | what is in it |
//! |---|---|
//! | `info` | a signal with what it tells (`siginfo_t`) |
//! | `pending` | the queue of those that were sent and not yet taken |
//! | `action` | what a process does about each |
//! | `send` | from a sender into a queue, and who is woken |
//! | `kill` | who may send what to whom |
//! | `io` | of what happens to files (SIGIO) |
//! | `deliver` | from a queue to the guest: stop, end, or handler |
//! | `frame` | what a handler finds on its stack, and the way back |

mod action;
mod api;
mod deliver;
mod frame;
mod info;
mod io;
mod kill;
mod pending;
mod send;

pub use action::{Actions, AltStack, SS_AUTODISARM, SigAction};
pub(super) use deliver::{Flow, deliver, force_fault, make_call_again};
pub use frame::{pop_frame, push_frame};
pub use info::{Payload, SI_KERNEL, SI_QUEUE, SI_TIMER, SI_TKILL, SI_USER, SignalInfo};
pub(super) use pending::Charge;
pub use pending::Pending;
pub(super) use send::Target;

/// Signals are 1 to 64.
pub const SIGNALS: i32 = 64;
/// The first realtime signal as the kernel counts (the C library keeps the first two for itself).
pub const FIRST_REALTIME: i32 = 32;

/// Whether there is a signal of this number.
#[must_use]
pub fn is_signal(signal: i32) -> bool {
    (1..=SIGNALS).contains(&signal)
}

/// A set of signals, as `sigset_t` of the kernel: bit 0 is signal 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// All.
    pub const ALL: Self = Self(u64::MAX);
    /// Those that can neither be blocked nor handled.
    pub const UNBLOCKABLE: Self = Self::of(&[libc::SIGKILL, libc::SIGSTOP]);
    /// Those that code brings upon itself: taken before all others.
    pub const SYNCHRONOUS: Self =
        Self::of(&[libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE, libc::SIGSYS]);
    /// Those that stop a process unless it says otherwise.
    pub const STOPPING: Self = Self::of(&[libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]);

    /// Of these signals.
    #[must_use]
    pub const fn of(signals: &[i32]) -> Self {
        let mut bits = 0;
        let mut at = 0;
        while at < signals.len() {
            bits |= Self::bit(signals[at]);
            at += 1;
        }
        Self(bits)
    }

    const fn bit(signal: i32) -> u64 {
        if signal >= 1 && signal <= SIGNALS { 1 << (signal - 1) } else { 0 }
    }

    /// Whether `signal` is in it.
    #[must_use]
    pub const fn has(self, signal: i32) -> bool {
        self.0 & Self::bit(signal) != 0
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this one alone.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest signal in it.
    #[must_use]
    pub fn lowest(self) -> Option<i32> {
        if self.is_empty() { None } else { i32::try_from(self.0.trailing_zeros()).ok().map(|bit| bit + 1) }
    }

    /// Puts a signal in.
    pub fn insert(&mut self, signal: i32) {
        self.0 |= Self::bit(signal);
    }

    /// Takes a signal out.
    pub fn remove(&mut self, signal: i32) {
        self.0 &= !Self::bit(signal);
    }
}

/// What a signal does to a process that has not said what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Nothing.
    Ignore,
    /// It ends.
    Terminate,
    /// It ends, and leaves an image of itself where there is a limit for it.
    Core,
    /// It stops.
    Stop,
}

/// The default of each signal (`man 7 signal`; the sets in `include/linux/signal.h`). That SIGCONT lets a stopped process go on is no
/// action: it happens when it is sent.
#[must_use]
pub fn default_action(signal: i32) -> Default {
    match signal {
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT => Default::Ignore,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Default::Stop,
        libc::SIGQUIT
        | libc::SIGILL
        | libc::SIGTRAP
        | libc::SIGABRT
        | libc::SIGFPE
        | libc::SIGSEGV
        | libc::SIGBUS
        | libc::SIGSYS
        | libc::SIGXCPU
        | libc::SIGXFSZ => Default::Core,
        _ => Default::Terminate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_the_kernels_bits() {
        let set = SignalSet::of(&[1, 9, 64]);
        assert_eq!(set.0, 1 | 1 << 8 | 1 << 63);
        assert!(set.has(9) && !set.has(10) && !set.has(0) && !set.has(65) && !set.has(-1));
        assert_eq!(set.without(SignalSet::of(&[1])).lowest(), Some(9));
        assert_eq!(SignalSet::of(&[64]).lowest(), Some(64));
        assert_eq!(SignalSet::EMPTY.lowest(), None);
    }

    #[test]
    fn defaults_are_those_of_signal_7() {
        let of =
            |wanted| (1..=SIGNALS).filter(|signal| default_action(*signal) == wanted).collect::<Vec<_>>();
        assert_eq!(of(Default::Ignore), [17, 18, 23, 28]);
        assert_eq!(of(Default::Stop), [19, 20, 21, 22]);
        assert_eq!(of(Default::Core), [3, 4, 5, 6, 7, 8, 11, 24, 25, 31]);
        assert_eq!(of(Default::Terminate).len(), 64 - 4 - 4 - 10);
    }
}
