//! Page tables of a virtual machine. They lie behind the contexts of the stub, which the sentry has, too, and say of each page no more than
//! the sentry had the stub map. What really lies there is the host's to say, by its own tables below these: so nothing here has to change
//! when memory is copied, swapped, or taken away.

use std::ops::Range;
use std::sync::Arc;

use super::ranges::Ranges;
use crate::error::Errno;
use crate::platform::systrap::context::Context;
use crate::platform::systrap::layout::{CODE, CONTEXT_SIZE, CONTEXTS, CONTEXTS_SIZE, MAX_THREADS};
use crate::platform::systrap::stub::Stub;

const PAGE: u64 = 4096;

/// Addresses of one table of the lowest level, and of one page of the next.
pub(super) const REGION: u64 = 2 << 20;

/// Addresses that have one slot of memory in the machine.
pub(super) const CHUNK: u64 = 1 << 30;

/// Contexts in whose place tables lie: as many megabytes are for threads as are left.
const ROOMS: usize = 256;

/// The first of them; no thread has this context or a higher one.
pub(super) const FIRST_ROOM: usize = MAX_THREADS - ROOMS;

/// Tables that lie in one.
const IN_ROOM: usize = CONTEXT_SIZE / PAGE as usize;

/// So many are there from the beginning: one instruction may need eight pages, each by three tables of its own, before it is done.
const LEAST_ROOMS: usize = 2;
const _: () = assert!(LEAST_ROOMS * IN_ROOM >= FIXED + 8 * 3);

/// Tables that stay: the root, and two that lead to the contexts.
const FIXED: usize = 3;

/// The slot of memory of the stub's own lies at the beginning of the machine's.
const FIRST_TABLE: u64 = CONTEXTS - CODE + (FIRST_ROOM * CONTEXT_SIZE) as u64;

/// Where the root lies, in the machine's memory.
pub(super) const ROOT: u64 = FIRST_TABLE;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Accessed and dirty: the processor need not say so itself.
const USED: u64 = 1 << 5 | 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_RUN: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page tables.
pub(super) struct Tables {
    stub: Arc<Stub>,
    rooms: Vec<Context>,
    used: usize,
}

/// Bits of an entry for what may be done with a page.
fn bits(protection: i32) -> u64 {
    if protection & (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) == 0 {
        return 0;
    }
    let writable = if protection & libc::PROT_WRITE == 0 { 0 } else { WRITABLE };
    let run = if protection & libc::PROT_EXEC == 0 { NO_RUN } else { 0 };
    PRESENT | USER | USED | writable | run
}

/// Which entry of a table is for an address; `level` 0 is the lowest.
fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level) & 511) as usize
}

impl Tables {
    /// Tables with nothing but the contexts, which ring 3 does not have.
    pub(super) fn new(stub: &Arc<Stub>) -> Result<Self, Errno> {
        let mut tables = Self { stub: Arc::clone(stub), rooms: Vec::new(), used: 0 };
        for room in FIRST_ROOM..FIRST_ROOM + LEAST_ROOMS {
            tables.rooms.push(stub.map_context(room)?);
        }
        for _ in 0..FIXED {
            tables.take()?;
        }
        let lead = PRESENT | WRITABLE | USED;
        tables.set(0, index(CODE, 3), (FIRST_TABLE + PAGE) | lead);
        tables.set(1, index(CODE, 2), (FIRST_TABLE + 2 * PAGE) | lead);
        let end = CONTEXTS - CODE + CONTEXTS_SIZE as u64;
        for (n, place) in (0..end).step_by(REGION as usize).enumerate() {
            tables.set(2, n, place | lead | LARGE);
        }
        Ok(tables)
    }

    /// A table with nothing in it.
    fn take(&mut self) -> Result<usize, Errno> {
        let table = self.used;
        if table / IN_ROOM >= ROOMS {
            return Err(Errno::ENOMEM);
        }
        if table / IN_ROOM >= self.rooms.len() {
            self.rooms.push(self.stub.map_context(FIRST_ROOM + self.rooms.len())?);
        }
        self.used += 1;
        for n in 0..512 {
            self.set(table, n, 0);
        }
        Ok(table)
    }

    fn offset(table: usize, entry: usize) -> usize {
        table % IN_ROOM * PAGE as usize + 8 * entry
    }

    fn set(&self, table: usize, entry: usize, value: u64) {
        if let Some(room) = self.rooms.get(table / IN_ROOM) {
            room.store(Self::offset(table, entry), value);
        }
    }

    fn get(&self, table: usize, entry: usize) -> u64 {
        self.rooms.get(table / IN_ROOM).map_or(0, |room| room.load(Self::offset(table, entry)))
    }

    /// The table below an entry; a new one where there is none, or a large page.
    fn below(&mut self, table: usize, entry: usize) -> Result<usize, Errno> {
        let found = self.get(table, entry);
        let place = (found & ADDRESS).checked_sub(FIRST_TABLE).map(|offset| (offset / PAGE) as usize);
        match place {
            // It lies in memory that the guest may have got at: a number like another.
            Some(place) if found & (PRESENT | LARGE) == PRESENT && (FIXED..self.used).contains(&place) => {
                Ok(place)
            }
            _ => {
                let new = self.take()?;
                let lead = PRESENT | WRITABLE | USER | USED;
                self.set(table, entry, (FIRST_TABLE + new as u64 * PAGE) | lead);
                Ok(new)
            }
        }
    }

    /// The table of an address' region among others, and the entry that is for the region.
    fn region(&mut self, address: u64) -> Result<(usize, usize), Errno> {
        let third = self.below(0, index(address, 3))?;
        let second = self.below(third, index(address, 2))?;
        Ok((second, index(address, 1)))
    }

    /// Lets the machine have what `ranges` say of the region of an address; `chunk` is where the gigabyte around it lies in the machine's memory.
    pub(super) fn fill(&mut self, address: u64, chunk: u64, ranges: &Ranges) -> Result<(), Errno> {
        let start = address - address % REGION;
        let place = |address: u64| chunk + address % CHUNK;
        let parts = ranges.within(&(start..start + REGION));
        let (table, entry) = self.region(address)?;
        if let [(Range { start: from, end }, protection)] = parts.as_slice()
            && end - from == REGION
        {
            self.set(table, entry, place(start) | bits(*protection) | LARGE);
            return Ok(());
        }
        let lowest = self.below(table, entry)?;
        for (part, protection) in parts {
            for page in part.step_by(PAGE as usize) {
                self.set(lowest, index(page, 0), place(page) | bits(protection));
            }
        }
        Ok(())
    }

    /// Lets the machine have one page.
    pub(super) fn page(&mut self, address: u64, chunk: u64, protection: i32) -> Result<(), Errno> {
        let (table, entry) = self.region(address)?;
        let lowest = self.below(table, entry)?;
        let page = address - address % PAGE;
        self.set(lowest, index(page, 0), (chunk + page % CHUNK) | bits(protection));
        Ok(())
    }

    /// Whether they lead nowhere but to the contexts.
    pub(super) fn are_empty(&self) -> bool {
        self.used == FIXED
    }

    /// Forgets all but the contexts. No processor of the machine may use the tables meanwhile.
    pub(super) fn reset(&mut self) {
        for n in (0..512).filter(|n| *n != index(CODE, 3)) {
            self.set(0, n, 0);
        }
        self.used = FIXED;
    }
}
