//! Numbers of calls that programs let through whatever the arguments (`struct action_cache` in `kernel/seccomp.c`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Program, action};

const WORDS: usize = 8;
/// Numbers that are kept: all that there are, and some.
const NUMBERS: u32 = 64 * WORDS as u32;

/// A set of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) struct Allowed([u64; WORDS]);

impl Allowed {
    pub(super) const ALL: Self = Self([u64::MAX; WORDS]);
    pub(super) const NONE: Self = Self([0; WORDS]);

    /// Those of them that this program lets through, too.
    pub(super) fn and(mut self, program: &Program) -> Self {
        for (word, first) in self.0.iter_mut().zip((0..NUMBERS).step_by(64)) {
            for bit in 0..64 {
                // What another program may refuse needs no look.
                if *word >> bit & 1 != 0 && program.run_blind(first + bit) != Some(action::ALLOW) {
                    *word &= !(1 << bit);
                }
            }
        }
        self
    }
}

/// What a task keeps at hand of its filters, so that a call that is let through takes no lock.
#[derive(Debug, Default)]
pub(in crate::task) struct Cached {
    any: AtomicBool,
    allowed: [AtomicU64; WORDS],
}

impl Cached {
    /// Whether there are filters.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Filters, and what they always allow: never more than before, so that it does not matter in which order another thread sees it.
    pub(super) fn set(&self, any: bool, allowed: Allowed) {
        for (place, word) in self.allowed.iter().zip(allowed.0) {
            place.store(word, Ordering::SeqCst);
        }
        self.any.store(any, Ordering::SeqCst);
    }

    /// Whether a call is let through, whatever its arguments. Its number is what the lower half of a register says (`seccomp_data.nr`).
    pub(super) fn always_allows(&self, number: u64) -> bool {
        let number = (number & 0xffff_ffff) as usize;
        let word = self.allowed.get(number / 64).map_or(0, |word| word.load(Ordering::Relaxed));
        word >> (number % 64) & 1 != 0
    }
}
