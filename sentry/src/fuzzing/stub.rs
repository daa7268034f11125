//! A stub that answers with garbage, and everything that the kernel asks of a guest thread.

use std::os::fd::AsFd;

use super::Bytes;
use crate::platform::systrap::hostile::{Answer, Hostile};
use crate::platform::{ByItself, MemoryCall, Regs, Thread, generation};

/// Answers and questions of one sequence.
const ANSWERS: usize = 64;
const QUESTIONS: usize = 40;

/// Offsets that mean something: most of them words that the sentry reads back (`platform/systrap/layout.rs`).
const PLACES: [u16; 22] = [
    0, 0x40, 0x48, 0x2f0, 0x80, 0x88, 0xc0, 0x100, 0x108, 0x110, 0x118, 0x120, 0x138, 0x140, 0x180, 0x1f0,
    0x200, 0x240, 0x300, 0x40e0, 0x4000, 0x8090,
];

/// Values that mean something: turns, kinds, signals, errors, addresses of the first context and around it.
const VALUES: [u64; 20] = [
    0,
    1,
    2,
    3,
    4,
    8,
    11,
    31,
    u64::MAX,
    u64::MAX - 4095,
    0x6000_0010_0000,
    0x6000_0010_4000,
    0x6000_0010_7ff8,
    0x6000_0010_8000,
    0x6000_0011_0000,
    0x7fff_ffff_f000,
    i64::MAX as u64,
    i64::MIN as u64,
    i32::MAX as u64,
    0x40_0000,
];

/// Why a stub may say that it gives the turn away (`kind` in `platform/systrap/layout.rs`), and what is none.
const KINDS: [u64; 12] =
    [0x101, 0x102, 0x103, 0x104, 0x105, 0x200, 0x201, 0x202, 0x204, 0x206, 0x207, 0xffff];

fn words(data: &mut Bytes<'_>) -> Vec<(u16, u64)> {
    let mut word = |_| {
        let place = if data.u8() > 63 { data.one_of(&PLACES) } else { data.u16() };
        let value = if data.u8() > 63 { data.one_of(&VALUES) } else { data.u64() };
        (place, value)
    };
    let count = 4;
    (0..count).map(&mut word).collect()
}

fn answer(data: &mut Bytes<'_>) -> Answer {
    let how = data.u8();
    let mut answer = Answer::done(if how & 1 == 0 { data.one_of(&VALUES) } else { data.u64() });
    if how & 2 != 0 {
        answer.writes.extend(words(data));
    }
    if how & 4 != 0 {
        // Why the guest stopped, in the upper half of the turn's word; a call may have any flags.
        let kind = data.one_of(&KINDS) | if how & 16 != 0 { u64::from(data.u16()) << 16 } else { 0 };
        answer.writes.push((0, kind << 32 | 1));
        answer.writes.push((0x110, data.one_of(&[31, 11, 7, 8, 5, 4, 23, 0, u64::MAX])));
    }
    if how & 8 != 0 {
        answer.late = words(data);
    }
    if how >= 250 {
        answer.turn = u32::from(data.u8() % 7);
    }
    answer
}

/// What the kernel asks of a guest thread.
fn ask(thread: &mut dyn Thread, data: &mut Bytes<'_>) {
    let address = if data.u8() > 127 { data.one_of(&VALUES) } else { data.u64() };
    let length = usize::from(data.u16());
    match data.u8() % 21 {
        0 | 1 => {
            let _ = thread.resume();
        }
        2 => assert!(thread.read(address, &mut vec![0; length]) <= length),
        3 => assert!(thread.write(address, &vec![1; length]) <= length),
        4 => {
            let _ = thread.compare_exchange(address, 1, 2);
        }
        5 => {
            let length = thread.vector_state().map_or(0, |state| state.len());
            assert!(length <= 0x4000, "{length}");
        }
        6 => {
            let _ = thread.set_vector_state(&vec![data.u8(); length]);
        }
        7 => drop(thread.spawn()),
        8 => drop(thread.fork()),
        9 => {
            let null = std::fs::File::open("/dev/null").ok();
            let file = null.as_ref().map(|null| (null.as_fd(), 0));
            let map =
                MemoryCall::Map { address, length: 4096, protection: 3, flags: libc::MAP_PRIVATE, file };
            let _ = thread.change_memory(&map);
        }
        10 => {
            let _ = thread.change_memory(&MemoryCall::Unmap { address, length: length as u64 });
        }
        11 => {
            let (new_address, new_length, keep) = (address, length as u64, length.is_multiple_of(2));
            let moved = MemoryCall::Move { address, length: 4096, new_address, new_length, keep };
            let _ = thread.change_memory(&moved);
        }
        12 => thread.set_answers(&[(39, address), (u64::from(data.u8()), 1), (186, 2)]),
        13 => *thread.regs() = Regs { rip: address, ..Regs::from_array(std::array::from_fn(|_| data.u64())) },
        14 => {
            // as the kernel does it: in code that it knows, below the end of memory
            if thread.replaceable().is_some_and(|place| place < 0x6000_0000_0000) {
                let _ = thread.replace(libc::PROT_READ | libc::PROT_EXEC);
            }
        }
        15 => {
            thread.let_by_itself(ByItself { remembers: true, waits: true });
            thread.remember(generation::mark(), i64::from(data.u8()), &vec![1; length % 300]);
            assert!(thread.read_text(address, &mut vec![0; length]) <= length);
        }
        16 => {
            thread.count_sleepers(address, 1);
            assert!(thread.wake_sleepers(address, length, u32::MAX) <= length);
            assert!(thread.move_sleepers((address, address), (length, length), Some(1)) <= 2 * length);
            let _ = thread.slept();
            thread.clear_slept();
        }
        17 => {
            // What the kernel says of waits: of its own, of one that another's is over, of a gofer.
            let interrupt = thread.interrupt();
            interrupt.asks();
            interrupt.is_answered();
            interrupt.rest();
            interrupt.goes_on_soon();
            interrupt.leave_to(&mut || interrupt.goes_on_soon());
        }
        18 => {
            if let Ok(mut child) = thread.spawn() {
                let begins = child.start();
                thread.settle();
                if begins {
                    let _ = child.resume();
                }
                child.retire();
                thread.interrupt().goes_on_soon();
            }
        }
        19 => {
            let bytes = vec![2; length];
            thread.write_aside(address, &bytes);
            let _ = (thread.write_late(address, &bytes), thread.says_writable(address, length));
            let _ = (thread.read_early(address, &mut vec![0; length]), thread.called_from());
            let _ = (
                thread.push_frame(address, address ^ 0x40, &bytes[..length.min(600)]),
                thread.load_state(address),
            );
        }
        _ => {
            thread.interrupt().interrupt();
            assert!(thread.remote().read(address, &mut vec![0; length]) <= length);
        }
    }
}

/// A stub that answers with garbage, whatever the kernel asks of it.
///
/// # Panics
/// Where the platform gives the kernel what it must not.
pub fn stub(data: &[u8]) {
    let mut data = Bytes::new(data);
    let count = usize::from(data.u8()) % ANSWERS;
    let mut answers = vec![Answer::done(0)];
    answers.extend((0..count).map(|_| answer(&mut data)));
    let Ok(mut hostile) = Hostile::new(answers) else { return };
    for _ in 0..QUESTIONS {
        if data.is_empty() {
            break;
        }
        ask(hostile.thread(), &mut data);
    }
}
