//! What `fuzz/` drives: bytes of somebody who means harm, put to the parts that such bytes reach. Nothing of it may panic, hang, or take
//! memory without end.

mod bytes;
mod calls;
mod stub;

use bytes::Bytes;
pub use calls::calls;
pub use stub::stub;

use crate::loader::elf;
use crate::mm::TASK_SIZE;

/// A program's file: what is to be mapped lies in a program's half of the addresses, in order, and the name of its interpreter is a short one.
///
/// # Panics
/// Where a promise of the parser is broken.
pub fn program(data: &[u8]) {
    let Ok(image) = elf::parse(data) else { return };
    let mut end = 0;
    for segment in &image.segments {
        assert!(segment.address >= end && segment.end() <= TASK_SIZE, "{image:?}");
        assert!(segment.file_bytes <= segment.memory_bytes, "{image:?}");
        end = segment.end();
    }
    let pages = image.pages();
    assert!(pages.start <= pages.end && pages.end <= TASK_SIZE && pages.end >= end, "{image:?}");
    assert!(image.alignment.is_power_of_two(), "{image:?}");
    assert!(image.interpreter.is_none_or(|(_, length)| (2..=4096).contains(&length)), "{image:?}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Bytes that look random and are always the same.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2) + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn random_calls_end() {
        for seed in 0..40 {
            calls(&noise(seed, 400));
        }
    }

    #[test]
    fn a_hostile_stub_hurts_nobody() {
        for seed in 0..40 {
            stub(&noise(seed, 600));
        }
    }

    #[test]
    fn a_real_program_keeps_the_promises() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(elf::parse(&own).is_ok());
        program(&own);
        program(&noise(1, 500));
    }
}
