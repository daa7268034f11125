//! The system calls of x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`): a file for each family, each with the list of what it has.

pub(crate) mod absent;
mod aio;
mod attributes;
mod clocks;
mod control;
mod copying;
mod exec;
mod exec_rooms;
mod file_args;
mod file_owner;
mod file_systems;
#[cfg(test)]
mod file_tests;
mod files;
mod futexes;
mod identity;
mod io;
mod keys;
mod leases;
mod limits;
mod made_files;
mod memory;
mod memory_policy;
mod memory_remote;
mod mounts;
mod mqueues;
pub mod names;
mod namespaces;
mod new_mounts;
mod page;
mod paths;
mod polling;
mod prctl;
mod processes;
mod ptrace;
mod scheduling;
mod scratch;
mod seccomp;
mod signals;
mod sockets;
mod special_files;
mod stat;
pub(crate) mod steady;
mod system;
mod sysv;
mod timers;
mod watching;
mod xattrs;

use crate::call::Call;
use crate::error::SysResult;

/// What carries a call out: its six arguments as registers hold them.
pub type Handler = fn(&mut Call<'_>, [u64; 6]) -> SysResult;

/// How much of a call is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As Linux has it, as far as a program can tell.
    Full,
    /// Without something, which this says.
    Partial(&'static str),
}

/// One system call.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its number.
    pub number: usize,
    /// Its name.
    pub name: &'static str,
    /// Carries it out.
    pub handler: Handler,
    /// How much of it is there.
    pub status: Status,
}

impl Entry {
    /// A call that is there as a whole.
    #[must_use]
    pub const fn full(number: i64, name: &'static str, handler: Handler) -> Self {
        Self { number: number.unsigned_abs() as usize, name, handler, status: Status::Full }
    }

    /// A call without what `missing` says.
    #[must_use]
    pub const fn partial(number: i64, name: &'static str, handler: Handler, missing: &'static str) -> Self {
        Self { number: number.unsigned_abs() as usize, name, handler, status: Status::Partial(missing) }
    }
}

/// Numbers from 0 to the highest that has a meaning.
pub const NUMBERS: usize = 470;

/// Every family's calls.
const FAMILIES: &[&[Entry]] = &[
    aio::CALLS,
    attributes::CALLS,
    clocks::CALLS,
    control::CALLS,
    copying::CALLS,
    exec::CALLS,
    files::CALLS,
    futexes::CALLS,
    identity::CALLS,
    io::CALLS,
    keys::CALLS,
    limits::CALLS,
    made_files::CALLS,
    memory::CALLS,
    memory_policy::CALLS,
    memory_remote::CALLS,
    mounts::CALLS,
    mqueues::CALLS,
    namespaces::CALLS,
    new_mounts::CALLS,
    paths::CALLS,
    polling::CALLS,
    prctl::CALLS,
    processes::CALLS,
    ptrace::CALLS,
    scheduling::CALLS,
    seccomp::CALLS,
    signals::CALLS,
    special_files::CALLS,
    sockets::CALLS,
    stat::CALLS,
    system::CALLS,
    sysv::CALLS,
    timers::CALLS,
    watching::CALLS,
    xattrs::CALLS,
];

pub(crate) use exec_rooms::{map_again, run_place};
pub use page::markdown;

/// All calls by number.
#[must_use]
pub fn table() -> [Option<Entry>; NUMBERS] {
    let mut table = [None; NUMBERS];
    for entry in FAMILIES.iter().copied().flatten() {
        table[entry.number] = Some(*entry);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_has_two_handlers() {
        let mut seen = std::collections::BTreeMap::new();
        for entry in FAMILIES.iter().copied().flatten() {
            assert!(entry.number < NUMBERS, "{}", entry.name);
            assert_eq!(seen.insert(entry.number, entry.name), None, "{} {}", entry.number, entry.name);
        }
    }
}
