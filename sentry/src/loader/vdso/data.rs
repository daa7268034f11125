//! The data of the vDSO: one page, which guests can read and nobody can write once it is made.

use std::time::Duration;

use crate::mm::PAGE;
use crate::platform::HostVdso;

// Where in the page things lie.
/// Which data it is: no other page has this number.
pub(super) const NUMBER: usize = 0;
/// Address of the host's function; 0 where it has none.
pub(super) const CLOCK_GETTIME: usize = 8;
/// The same.
pub(super) const GETTIMEOFDAY: usize = 16;
/// The same.
pub(super) const TIME: usize = 24;
/// The same.
pub(super) const GETCPU: usize = 32;
/// Nanoseconds between two times of a coarse clock.
pub(super) const COARSE: usize = 40;
/// What the monotonic clock shows more than the host's: seconds, which may be below 0, and nanoseconds, which are not.
pub(super) const MONOTONIC: usize = 64;
/// The same of the raw one.
pub(super) const RAW: usize = 80;

/// What clocks of a sandbox show more than the host's, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Differences {
    /// `CLOCK_MONOTONIC` and what is like it.
    pub monotonic: i64,
    /// `CLOCK_MONOTONIC_RAW`.
    pub raw: i64,
}

/// The page.
pub(super) fn page(
    host: Option<&HostVdso>,
    number: u64,
    coarse: Duration,
    differences: Differences,
) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let mut put = |at: usize, value: u64| {
        page.iter_mut().skip(at).zip(value.to_le_bytes()).for_each(|(place, byte)| *place = byte);
    };
    put(NUMBER, number);
    let names = ["__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu"];
    let functions = host.map_or([None; 4], |host| host.functions(names));
    for (at, function) in [CLOCK_GETTIME, GETTIMEOFDAY, TIME, GETCPU].into_iter().zip(functions) {
        put(at, function.unwrap_or(0));
    }
    put(COARSE, u64::from(coarse.subsec_nanos()));
    for (at, more) in [(MONOTONIC, differences.monotonic), (RAW, differences.raw)] {
        const SECOND: i64 = 1_000_000_000;
        put(at, more.div_euclid(SECOND).cast_unsigned());
        put(at + 8, more.rem_euclid(SECOND).cast_unsigned());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_never_below_0() {
        let differences = Differences { monotonic: -1, raw: 2_500_000_000 };
        let page = page(None, 7, Duration::from_millis(4), differences);
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        assert_eq!((word(NUMBER), word(COARSE), word(CLOCK_GETTIME)), (7, 4_000_000, 0));
        assert_eq!((word(MONOTONIC).cast_signed(), word(MONOTONIC + 8)), (-1, 999_999_999));
        assert_eq!((word(RAW), word(RAW + 8)), (2, 500_000_000));
    }
}
