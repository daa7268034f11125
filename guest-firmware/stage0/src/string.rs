//! Copies and fills by string instructions: every processor with a TEE has them fast, they are a few bytes, and they read each byte
//! once, unlike a copy that the compiler makes of loads. In words of eight bytes, then the rest: to a processor that is the same, and
//! an emulated one takes as long for a byte as for a word.

use core::arch::asm;

const WORD: usize = size_of::<u64>();

/// Copies forwards.
///
/// # Safety
/// `length` bytes may be read at `from` and written at `to`, and the second do not begin within the first.
pub unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: the caller's promise; the direction flag is clear, as the calling convention demands, and the second instruction
    // goes on where the first ended.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb",
            rest = in(reg) length % WORD,
            inout("rcx") length / WORD => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

/// Writes `byte` to each of `length` bytes.
///
/// # Safety
/// They may be written.
pub unsafe fn fill(to: *mut u8, byte: u8, length: usize) {
    // SAFETY: as for `copy`.
    unsafe {
        asm!("rep stosq", "mov rcx, {rest}", "rep stosb",
            rest = in(reg) length % WORD,
            inout("rcx") length / WORD => _, inout("rdi") to => _, in("rax") u64::from_ne_bytes([byte; WORD]),
            options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 64;

    /// Every length and every way to lie within words, with the bytes around untouched.
    #[test]
    fn exactly_the_bytes_asked_for_are_written() {
        let source: [u8; ROOM] = core::array::from_fn(|at| at as u8 + 1);
        for length in 0..=40 {
            for (from, to) in (0..WORD).flat_map(|from| (0..WORD).map(move |to| (from, to))) {
                let (mut copied, mut filled) = ([0xee; ROOM], [0xee; ROOM]);
                // SAFETY: 8 + 40 bytes are within each array, and the arrays are apart.
                unsafe {
                    copy(source.as_ptr().add(from), copied.as_mut_ptr().add(to), length);
                    fill(filled.as_mut_ptr().add(to), 0x5a, length);
                }
                for at in 0..ROOM {
                    let within = (to..to + length).contains(&at);
                    assert_eq!(copied[at], if within { source[at - to + from] } else { 0xee });
                    assert_eq!(filled[at], if within { 0x5a } else { 0xee });
                }
            }
        }
    }

    #[test]
    fn a_place_that_begins_before_its_source_may_overlap_it() {
        for distance in 1..=2 * WORD {
            let mut bytes: [u8; ROOM] = core::array::from_fn(|at| at as u8);
            let at = bytes.as_mut_ptr();
            // SAFETY: within the array; forwards, no byte is overwritten before it is read.
            unsafe { copy(at.add(distance), at, 40) };
            assert!(bytes.iter().take(40).enumerate().all(|(at, byte)| usize::from(*byte) == at + distance));
        }
    }
}
