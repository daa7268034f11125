//! What a stub fetches together with a call, so that the sentry need not ask for it: a path, a few bytes of a buffer. And where a call
//! will write, the stub finds out whether it can.
//!
//! All of it is a hint about the guest's own memory by the guest's own process: a lie spoils that guest's call. The sentry takes what was
//! fetched for what it would have read at the moment of the call, so only arguments that Linux reads once are asked for here, never words
//! that a call looks at again (a futex).

use super::layout::register::{R10, RDI, RDX, RSI};
use super::layout::{CODE_SIZE, at};
use super::remember;
use crate::platform::{ANSWERED, Regs};

/// Where the table lies behind the stub's code.
pub(super) const TABLE: usize = 0x1c00;
/// Calls that it has a word for.
pub(super) const CALLS: usize = 512;
/// Most bytes of a text, which ends before that or at the end of its page, or is fetched otherwise.
pub(super) const TEXT_SIZE: usize = 256;
/// A text up to its 0.
pub(super) const TEXT: u16 = 1;
/// Bytes.
const BYTES: u16 = 2;
/// Bytes that will be written: the first and the last of at most a page's length are tried.
pub(super) const PROBE: u16 = 3;
/// No memory: a call that is answered by the stub, where the sentry said with what.
pub(super) const ANSWER: u16 = 4;
/// No memory that is fetched: `futex`, of which the host does some.
pub(super) const FUTEX: u16 = 5;

/// A length that is in a register, in units of `1 << shift` bytes.
const fn of(register: u16, shift: u16) -> u16 {
    register | shift << 4
}

/// A length that is always the same.
const fn fixed(bytes: u16) -> u16 {
    assert!(bytes < 0x80);
    bytes | 0x80
}

const PATHS: &[(i64, u16)] = &[
    (libc::SYS_open, RDI),
    (libc::SYS_stat, RDI),
    (libc::SYS_lstat, RDI),
    (libc::SYS_access, RDI),
    (libc::SYS_execve, RDI),
    (libc::SYS_chdir, RDI),
    (libc::SYS_rename, RDI),
    (libc::SYS_mkdir, RDI),
    (libc::SYS_rmdir, RDI),
    (libc::SYS_creat, RDI),
    (libc::SYS_unlink, RDI),
    (libc::SYS_readlink, RDI),
    (libc::SYS_chmod, RDI),
    (libc::SYS_statfs, RDI),
    (libc::SYS_openat, RSI),
    (libc::SYS_openat2, RSI),
    (libc::SYS_mkdirat, RSI),
    (libc::SYS_newfstatat, RSI),
    (libc::SYS_unlinkat, RSI),
    (libc::SYS_renameat, RSI),
    (libc::SYS_renameat2, RSI),
    (libc::SYS_readlinkat, RSI),
    (libc::SYS_fchmodat, RSI),
    (libc::SYS_faccessat, RSI),
    (libc::SYS_faccessat2, RSI),
    (libc::SYS_utimensat, RSI),
    (libc::SYS_statx, RSI),
];

/// Call, register with the address, length.
const READ: &[(i64, u16, u16)] = &[
    (libc::SYS_write, RSI, of(RDX, 0)),
    (libc::SYS_pwrite64, RSI, of(RDX, 0)),
    (libc::SYS_sendto, RSI, of(RDX, 0)),
    (libc::SYS_writev, RSI, of(RDX, 4)),
    (libc::SYS_readv, RSI, of(RDX, 4)),
    (libc::SYS_sendmsg, RSI, fixed(56)),
    (libc::SYS_recvmsg, RSI, fixed(56)),
    (libc::SYS_epoll_ctl, R10, fixed(12)),
    (libc::SYS_poll, RDI, of(RSI, 3)),
    (libc::SYS_rt_sigaction, RSI, fixed(32)),
    (libc::SYS_rt_sigprocmask, RSI, fixed(8)),
    (libc::SYS_nanosleep, RDI, fixed(16)),
    (libc::SYS_clock_nanosleep, RDX, fixed(16)),
    (libc::SYS_clone3, RDI, of(RSI, 0)),
];

const WRITTEN: &[(i64, u16, u16)] = &[
    (libc::SYS_read, RSI, of(RDX, 0)),
    (libc::SYS_pread64, RSI, of(RDX, 0)),
    (libc::SYS_recvfrom, RSI, of(RDX, 0)),
    (libc::SYS_getdents64, RSI, of(RDX, 0)),
];

const fn words() -> [u16; CALLS] {
    let mut words = [0; CALLS];
    let mut n = 0;
    while n < PATHS.len() {
        words[PATHS[n].0 as usize] = TEXT | PATHS[n].1 << 4 | remember::number_of(PATHS[n].0) << 8;
        n += 1;
    }
    n = 0;
    while n < READ.len() {
        words[READ[n].0 as usize] = BYTES | READ[n].1 << 4 | READ[n].2 << 8;
        n += 1;
    }
    n = 0;
    while n < WRITTEN.len() {
        words[WRITTEN[n].0 as usize] = PROBE | WRITTEN[n].1 << 4 | WRITTEN[n].2 << 8;
        n += 1;
    }
    n = 0;
    while n < ANSWERED.len() {
        words[ANSWERED[n] as usize] = ANSWER | (n as u16) << 4;
        n += 1;
    }
    words[libc::SYS_futex as usize] = FUTEX;
    words
}

static WORDS: [u16; CALLS] = words();

/// The table as the stub reads it.
pub(super) fn table() -> Vec<u8> {
    WORDS.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Whether that is a text, of which the stub fetches no more than the word with its end.
pub(super) fn is_text(number: u64) -> bool {
    let word = usize::try_from(number).ok().and_then(|number| WORDS.get(number));
    word.is_some_and(|word| word & 0xf == TEXT)
}

/// What the stub fetches, or tries, with this call: address and length. The same as its code finds.
pub(super) fn range(number: u64, regs: &Regs) -> Option<(u64, usize)> {
    let word = *WORDS.get(usize::try_from(number).ok()?)?;
    let registers = regs.to_array();
    let register = |place: u16| registers.get(usize::from(place & 0xf)).copied().unwrap_or_default();
    let (address, length) = (register(word >> 4), word >> 8);
    let length = match word & 0xf {
        TEXT => (0x1000 - address % 0x1000).min(TEXT_SIZE as u64),
        BYTES | PROBE if length & 0x80 != 0 => u64::from(length & 0x7f),
        BYTES | PROBE => register(length).wrapping_shl(u32::from(length >> 4)),
        _ => return None,
    };
    let most = if word & 0xf == PROBE { 0x1000 } else { at::STAGE_SIZE as u64 };
    Some((address, usize::try_from(length.min(most)).ok()?))
}

const _: () = {
    assert!(TABLE + CALLS * 2 <= CODE_SIZE as usize);
    assert!(TEXT_SIZE <= at::STAGE_SIZE && at::STAGE + at::STAGE_SIZE <= at::VECTOR);
    assert!(ANSWERED.len() <= 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_arguments() {
        let regs = Regs { rdi: 0x1ff0, rsi: 0x5000, rdx: 300, r10: 0x6000, ..Regs::default() };
        let of = |call: i64| range(call.unsigned_abs(), &regs);
        assert_eq!(of(libc::SYS_stat), Some((0x1ff0, 16)));
        assert_eq!(of(libc::SYS_openat), Some((0x5000, TEXT_SIZE)));
        assert_eq!(of(libc::SYS_write), Some((0x5000, 300)));
        assert_eq!(of(libc::SYS_writev), Some((0x5000, at::STAGE_SIZE)));
        assert_eq!(of(libc::SYS_epoll_ctl), Some((0x6000, 12)));
        assert_eq!(of(libc::SYS_read), Some((0x5000, 300)));
        assert_eq!(of(libc::SYS_getpid), None);
        assert_eq!(range(u64::MAX, &regs), None);
    }
}
