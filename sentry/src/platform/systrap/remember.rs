//! Answers that a stub keeps: of calls that look at a path and change nothing (`stat`, `access`, an `open` of what is not there). When its thread
//! makes the same call again, and nothing changed meanwhile ([`generation`](crate::platform::generation)), the stub answers it itself.
//!
//! They lie in the thread's own context, where the guest could write what it likes: it would be telling itself. What it cannot write is the number of
//! the generation. Kept is what a thread asks for a second time within one generation, since each costs some lines that change their processor.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::register::{R8, R10, RAX, RDI, RDX, RSI};
use super::layout::{CONTEXT_SIZE, at, kind};
use super::stage;
use super::thread::StubThread;
use crate::platform::REMEMBERED;
use crate::platform::generation::Mark;

/// Answers that a thread has room for, each at the place that its hash says.
pub(super) const PLACES: usize = 16;
/// Most bytes of a path with its 0.
pub(super) const TEXT_SIZE: usize = 192;
/// Most bytes for a buffer: `struct statx`.
const BYTES_SIZE: usize = 256;
/// In [`at::ANSWERED`]: this thread's calls may be answered from here.
pub(super) const KEEPS: u64 = 1 << 32;
/// Of the hash.
pub(super) const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// An answer: offsets of 64-bit words, and of what is longer.
pub(super) mod entry {
    /// Its generation and the context's user, added up.
    pub(crate) const GENERATION: usize = 0;
    /// Number of the call and three more of its arguments.
    pub(crate) const KEY: usize = 8;
    /// What the call gives.
    pub(crate) const RESULT: usize = 40;
    /// How many bytes for its buffer.
    pub(crate) const LENGTH: usize = 48;
    /// The path, with zeros up to a whole word.
    pub(crate) const TEXT: usize = 56;
    /// The bytes.
    pub(crate) const BYTES: usize = 248;
    /// Bytes of all.
    pub(crate) const SIZE: usize = 512;
}

/// Calls: number, register with the buffer's address, and the registers that decide what is told besides the path. RAX, which holds the number, stands
/// for none.
const CALLS: [(i64, u16, [u16; 3]); REMEMBERED.len()] = [
    (libc::SYS_stat, RSI, [RAX; 3]),
    (libc::SYS_lstat, RSI, [RAX; 3]),
    (libc::SYS_newfstatat, RDX, [RDI, R10, RAX]),
    (libc::SYS_statx, R8, [RDI, RDX, R10]),
    (libc::SYS_access, RAX, [RSI, RAX, RAX]),
    (libc::SYS_faccessat, RAX, [RDI, RDX, RAX]),
    (libc::SYS_faccessat2, RAX, [RDI, RDX, R10]),
    (libc::SYS_open, RAX, [RSI, RAX, RAX]),
    (libc::SYS_openat, RAX, [RDI, RDX, RAX]),
    (libc::SYS_readlink, RSI, [RDX, RAX, RAX]),
    (libc::SYS_readlinkat, RDX, [RDI, R10, RAX]),
];

/// Where the table of them lies behind the stub's code: two bytes each, the buffer's register and the three others.
pub(super) const TABLE: usize = stage::TABLE - 2 * CALLS.len();

const _: () = {
    assert!(entry::TEXT + TEXT_SIZE == entry::BYTES && entry::BYTES + BYTES_SIZE <= entry::SIZE);
    assert!(at::KEPT + PLACES * entry::SIZE <= CONTEXT_SIZE && PLACES.is_power_of_two());
    assert!(at::LATE_BYTES + at::LATE_SIZE <= at::KEPT && TEXT_SIZE <= stage::TEXT_SIZE);
};

/// Which of the calls this is, from 1 on; 0 if its answers are not kept.
pub(super) const fn number_of(call: i64) -> u16 {
    let mut n = 0;
    while n < CALLS.len() {
        if CALLS[n].0 == call {
            return n as u16 + 1;
        }
        n += 1;
    }
    0
}

const _: () = {
    let mut n = 0;
    while n < CALLS.len() {
        assert!(CALLS[n].0 == REMEMBERED[n], "calls that are kept are those that a filter is asked for");
        n += 1;
    }
};

/// The table as the stub reads it.
pub(super) fn table() -> Vec<u8> {
    let word = |(_, buffer, [a, b, c]): (i64, u16, [u16; 3])| buffer | a << 4 | b << 8 | c << 12;
    CALLS.into_iter().flat_map(|call| word(call).to_le_bytes()).collect()
}

/// A word for the next user of a context: its lower bits are a generation's.
pub(super) fn next_user() -> u64 {
    static USERS: AtomicU64 = AtomicU64::new(0);
    USERS.fetch_add(1, Ordering::Relaxed) << 40
}

/// What a thread asked for, by place: hash and generation. What comes a second time is kept.
#[derive(Default)]
pub(super) struct Noted([(u64, u64); PLACES]);

impl Noted {
    /// Whether this came before, in this generation.
    fn again(&mut self, hash: u64, generation: u64) -> bool {
        let noted = &mut self.0[place(hash)];
        std::mem::replace(noted, (hash, generation)) == (hash, generation)
    }
}

fn place(hash: u64) -> usize {
    (hash >> (64 - PLACES.trailing_zeros())) as usize
}

/// The stub's hash.
fn hash(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0, |hash, word| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR))
}

/// Words of a path, up to the one with its 0, with zeros behind that; `None` where there is none.
struct Words {
    all: [u64; TEXT_SIZE / 8],
    count: usize,
}

impl Words {
    fn of(text: &[u8]) -> Option<Self> {
        let length = text.iter().position(|byte| *byte == 0).filter(|length| *length < TEXT_SIZE)?;
        let mut bytes = [0; TEXT_SIZE];
        bytes[..length].copy_from_slice(&text[..length]);
        let words = bytes.as_chunks::<8>().0;
        let all = std::array::from_fn(|n| words.get(n).map_or(0, |word| u64::from_le_bytes(*word)));
        Some(Self { all, count: length / 8 + 1 })
    }

    fn words(&self) -> &[u64] {
        &self.all[..self.count]
    }
}

impl StubThread {
    /// Keeps the answer to the call that its guest makes.
    pub(super) fn keep_answer(&mut self, mark: Mark, result: i64, bytes: &[u8]) {
        let plain = self.came_with & (kind::STAGED | kind::TRAPPED) == kind::STAGED;
        if !plain || self.answered & KEEPS == 0 || bytes.len() > BYTES_SIZE {
            return;
        }
        let number = number_of(self.called.cast_signed());
        let Some((_, _, others)) = usize::from(number).checked_sub(1).and_then(|n| CALLS.get(n)) else {
            return;
        };
        let registers = self.regs.to_array();
        let register = |place: u16| registers.get(usize::from(place)).copied().unwrap_or_default();
        // Behind what was fetched is what another call left, and in lines that the other processor has.
        let Some((_, fetched)) = self.told(kind::STAGED) else { return };
        let mut text = [0; TEXT_SIZE];
        let text = &mut text[..fetched.min(TEXT_SIZE)];
        self.context.read(at::STAGE, text);
        let Some(words) = Words::of(text) else { return };
        let words = words.words();
        let key = [self.called, register(others[0]), register(others[1]), register(others[2])];
        let hash = hash(key.iter().chain(words).copied());
        if !self.noted.again(hash, mark.generation()) {
            return;
        }
        let entry = at::KEPT + entry::SIZE * place(hash);
        let store = |offset: usize, words: &[u64]| {
            words.iter().enumerate().for_each(|(n, word)| self.context.store(entry + offset + 8 * n, *word));
        };
        let user = self.context.load(at::USER);
        store(entry::GENERATION, &[mark.generation().wrapping_add(user)]);
        store(entry::KEY, &key);
        store(entry::RESULT, &[result.cast_unsigned()]);
        store(entry::LENGTH, &[bytes.len() as u64]);
        store(entry::TEXT, words);
        self.context.write(entry + entry::BYTES, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_up_to_their_end() {
        let text = |path: &[u8]| {
            let mut text = [b'x'; TEXT_SIZE];
            text[..path.len()].copy_from_slice(path);
            text
        };
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        let words = |path: &[u8]| Words::of(&text(path)).map(|words| words.words().to_vec());
        assert_eq!(words(b"/a\0"), Some(vec![word(b"/a\0\0\0\0\0\0")]));
        assert_eq!(words(b"/234567\0"), Some(vec![word(b"/234567\0")]));
        assert_eq!(words(b"/2345678\0"), Some(vec![word(b"/2345678"), 0]));
        assert_eq!(words(b"/no end"), None);
        let longest = [&[b'x'; TEXT_SIZE - 1][..], &[0]].concat();
        assert_eq!(words(&longest).map(|words| words.len()), Some(TEXT_SIZE / 8));
    }

    #[test]
    fn only_what_comes_twice_in_a_generation_is_kept() {
        let mut noted = Noted::default();
        assert!(!noted.again(1, 1));
        assert!(noted.again(1, 1));
        assert!(!noted.again(1, 2));
        assert!(!noted.again(2, 2), "another one at its place");
        assert!(!noted.again(1, 2));
    }
}
