//! Registers as a tracer sees them: `struct user_regs_struct`, `struct user` (`arch/x86/include/asm/user_64.h`), and vector state as
//! `NT_X86_XSTATE` has it (`arch/x86/kernel/ptrace.c`, `fpu/regset.c`).

use super::Shown;
use crate::error::Errno;
use crate::platform::Regs;

/// Words of `struct user_regs_struct`.
pub const WORDS: usize = 27;
/// Bytes of it.
pub const SIZE: u64 = 8 * WORDS as u64;
/// Bytes of `struct user`.
pub const USER_SIZE: u64 = 928;
/// Where in it the debug registers are.
pub const DEBUG_REGISTERS: std::ops::Range<u64> = 848..912;
/// Bytes of what FXSAVE saves.
pub const LEGACY: usize = 512;

/// Segments of a 64-bit program: its code, its stack.
const USER_CS: u64 = 0x33;
const USER_DS: u64 = 0x2b;
/// Where software has its say in an XSAVE area; there a tracer finds which parts there are.
const SOFTWARE: usize = 464;
/// What a program may set of its flags (`FLAG_MASK`), and what is always set.
const FLAGS: u64 = 0x5_4dd5;
const FIXED_FLAGS: u64 = 0x202;
/// Where addresses of programs end.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// All words, in the order of the structure.
#[must_use]
pub fn words(shown: &Shown) -> [u64; WORDS] {
    let r = &shown.regs;
    [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        shown.called.cast_unsigned(),
        r.rip,
        USER_CS,
        r.eflags | FIXED_FLAGS,
        r.rsp,
        USER_DS,
        shown.fs_base,
        0,
        0,
        0,
        0,
        0,
    ]
}

/// Sets one word (`putreg`). Segments and the base of `gs` are what they are: other values are taken and forgotten.
///
/// # Errors
/// EIO for what no program can have there.
pub fn set_word(shown: &mut Shown, at: usize, value: u64) -> Result<(), Errno> {
    let Shown { regs, fs_base, called } = shown;
    let place = match register(regs, at) {
        Some(place) => place,
        None => match at {
            15 => {
                *called = value.cast_signed();
                return Ok(());
            }
            18 => {
                regs.eflags = value & FLAGS | FIXED_FLAGS;
                return Ok(());
            }
            17 | 20 => return if value & 3 == 3 { Ok(()) } else { Err(Errno::EIO) },
            21 | 22 if value >= TASK_SIZE => return Err(Errno::EIO),
            21 => fs_base,
            22 => return Ok(()),
            23..=26 => return if value == 0 || value & 3 == 3 { Ok(()) } else { Err(Errno::EIO) },
            _ => return Err(Errno::EIO),
        },
    };
    *place = value;
    Ok(())
}

fn register(regs: &mut Regs, at: usize) -> Option<&mut u64> {
    Some(match at {
        0 => &mut regs.r15,
        1 => &mut regs.r14,
        2 => &mut regs.r13,
        3 => &mut regs.r12,
        4 => &mut regs.rbp,
        5 => &mut regs.rbx,
        6 => &mut regs.r11,
        7 => &mut regs.r10,
        8 => &mut regs.r9,
        9 => &mut regs.r8,
        10 => &mut regs.rax,
        11 => &mut regs.rcx,
        12 => &mut regs.rdx,
        13 => &mut regs.rsi,
        14 => &mut regs.rdi,
        16 => &mut regs.rip,
        19 => &mut regs.rsp,
        _ => return None,
    })
}

/// All words as bytes.
#[must_use]
pub fn bytes(shown: &Shown) -> Vec<u8> {
    words(shown).iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Sets the first words by bytes; half a word is left out.
///
/// # Errors
/// As [`set_word`].
pub fn set_bytes(shown: &mut Shown, bytes: &[u8]) -> Result<(), Errno> {
    for (at, word) in bytes.as_chunks::<8>().0.iter().take(WORDS).enumerate() {
        set_word(shown, at, u64::from_le_bytes(*word))?;
    }
    Ok(())
}

/// Vector state as a tracer sees it: parts that are as after a reset have the values of that, and where software has its say is which parts
/// there are.
#[must_use]
pub fn vector(mut state: Vec<u8>) -> Vec<u8> {
    const HEADER: usize = 512;
    let word = |state: &[u8], at: usize| {
        state.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    if state.len() < HEADER + 8 {
        return state;
    }
    let present = word(&state, HEADER);
    if present & 1 == 0 {
        state[..24].fill(0);
        state[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        state[32..160].fill(0);
    }
    if present & 2 == 0 {
        state[160..416].fill(0);
    }
    if present & 6 == 0 {
        state[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    }
    state[SOFTWARE..HEADER].fill(0);
    state[SOFTWARE..SOFTWARE + 8].copy_from_slice(&features().to_le_bytes());
    state
}

/// The parts of vector state that programs have here (`XCR0`), as far as tracers know them.
fn features() -> u64 {
    /// `OSPKE` of leaf 7.
    const KEYS: u32 = 1 << 4;
    let bits = |there: bool, bits: u64| if there { bits } else { 0 };
    let avx = std::arch::is_x86_feature_detected!("avx");
    let avx512 = std::arch::is_x86_feature_detected!("avx512f");
    let keys =
        std::arch::x86_64::__cpuid(0).eax >= 7 && std::arch::x86_64::__cpuid_count(7, 0).ecx & KEYS != 0;
    3 | bits(avx, 4) | bits(avx512, 0xe0) | bits(keys, 0x200)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_what_is_seen() {
        let mut shown = Shown::default();
        for at in (0..=16).chain([19, 21]) {
            set_word(&mut shown, at, 0x1000 + at as u64).unwrap();
        }
        let words = words(&shown);
        for at in (0..=16).chain([19, 21]) {
            assert_eq!(words[at], 0x1000 + at as u64, "{at}");
        }
        assert_eq!((words[17], words[20], shown.called), (0x33, 0x2b, 0x100f));
        assert_eq!(set_word(&mut shown, 17, 0), Err(Errno::EIO));
        assert_eq!(set_word(&mut shown, 21, TASK_SIZE), Err(Errno::EIO));
        assert_eq!(set_word(&mut shown, WORDS, 0), Err(Errno::EIO));
        set_word(&mut shown, 18, u64::MAX).unwrap();
        assert_eq!(shown.regs.eflags, FLAGS | FIXED_FLAGS);
        let mut other = Shown::default();
        set_bytes(&mut other, &bytes(&shown)).unwrap();
        assert_eq!(bytes(&other), bytes(&shown));
    }

    #[test]
    fn parts_as_after_a_reset_have_its_values() {
        let mut state = vec![0xee; 832];
        state[512..520].copy_from_slice(&4_u64.to_le_bytes());
        let seen = vector(state);
        assert_eq!(
            (seen[0], seen[1], seen[24], seen[160], seen[464] & 3, seen[480], seen[576]),
            (0x7f, 3, 0xee, 0, 3, 0, 0xee)
        );
        assert_eq!(vector(vec![1; 100]), vec![1; 100]);
    }
}
