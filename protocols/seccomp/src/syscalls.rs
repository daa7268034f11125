//! Names of system calls → numbers, for the two ABIs of this machine.

use std::collections::HashMap;

/// An ABI's system calls.
#[derive(Debug)]
pub(crate) struct Table {
    numbers: HashMap<&'static str, u32>,
    /// The largest number that was known when the table was made.
    pub(crate) last: u32,
}

impl Table {
    fn parse(text: &'static str) -> Self {
        let entry = |line: &'static str| {
            let (name, number) = line.split_once(' ')?;
            Some((name, number.parse().ok()?))
        };
        let numbers: HashMap<_, _> = text.lines().filter(|l| !l.starts_with('#')).filter_map(entry).collect();
        let last = numbers.values().copied().max().unwrap_or(0);
        Self { numbers, last }
    }

    /// 64-bit calls.
    pub(crate) fn x86_64() -> Self {
        Self::parse(include_str!("syscalls_x86_64.txt"))
    }

    /// 32-bit calls.
    pub(crate) fn i386() -> Self {
        Self::parse(include_str!("syscalls_i386.txt"))
    }

    /// Number of a call.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        let table = Table::x86_64();
        assert_eq!(table.number("read"), Some(0));
        assert_eq!(table.number("openat2").map(i64::from), Some(libc::SYS_openat2));
        assert_eq!(table.number("execve").map(i64::from), Some(libc::SYS_execve));
        assert_eq!(Table::i386().number("read"), Some(3));
        assert_eq!(table.number("nonsense"), None);
    }
}
