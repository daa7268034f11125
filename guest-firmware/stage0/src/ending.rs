//! How the guest ends, when ending it fails: the instruction that would tell the host why may itself raise an exception
//! (OUT under SNP, TDCALL elsewhere), or the host may let the guest run on; and to an exception that nothing expects,
//! stage0 knows no other answer than to end the guest.
//!
//! So each way is tried once. The last one cannot fail: with no gate left, an exception is a shutdown of the processor,
//! which under every platform ends the guest without asking it (APM volume 2, 15.14.3; SDM volume 3, 26.2).

use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::platform::Termination;

/// A way to end the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As the platform that the boot block names does it.
    Platform(Termination),
    /// By the number to the port that a VMM without a TEE listens to: the boot block's platform is not there.
    Port(u8),
    /// Without a word: shutdown.
    Shutdown,
}

/// What was tried. Only one vCPU runs Rust, so the order of the accesses is the program's.
#[derive(Debug, Default)]
pub struct Ending {
    tries: AtomicU8,
    why: AtomicU8,
}

impl Ending {
    /// Nothing was tried yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { tries: AtomicU8::new(0), why: AtomicU8::new(0) }
    }

    /// The way to try now. The reason stays the first one: what comes later is a consequence of the trying.
    pub fn next(&self, why: Termination) -> Way {
        let tries = self.tries.load(Relaxed);
        self.tries.store(tries.saturating_add(1), Relaxed);
        match tries {
            0 => {
                self.why.store(why.code(), Relaxed);
                Way::Platform(why)
            }
            1 => Way::Port(self.why.load(Relaxed)),
            _ => Way::Shutdown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_tried_once_with_the_first_reason() {
        let ending = Ending::new();
        assert_eq!(ending.next(Termination::KernelHash), Way::Platform(Termination::KernelHash));
        let later = Termination::UnexpectedException;
        assert_eq!(ending.next(later), Way::Port(Termination::KernelHash.code()), "what began it");
        for _ in 0..600 {
            assert_eq!(ending.next(later), Way::Shutdown, "and never round again");
        }
    }
}
