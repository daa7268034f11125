//! One virtual machine: the memory and the processors of one address space. It belongs to a stub, whose memory is the guest's, and is made when a
//! guest first runs there: a copy that is made ahead, or ends at once, has none.
//!
//! An address of the guest is the same address in the stub. A machine has fewer bits of them, so each gigabyte that is used gets a slot of
//! the machine's memory, and page tables lead there.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::host::{Host, ask, ask_with};
use super::interrupt::KvmInterrupt;
use super::ranges::Ranges;
use super::requests;
use super::tables::{CHUNK, REGION, Tables};
use crate::error::Errno;
use crate::platform::host_vdso::HostVdso;
use crate::platform::systrap::layout::{CODE, TASK_SIZE, at, context_address};
use crate::platform::systrap::thread::StubThread;
use crate::platform::{MemoryCall, Thread as _};
use crate::sync::lock;

/// Page faults that are looked at one by one after the host did not give what tables said.
const CAREFUL: u32 = 64;

/// Gigabytes that one instruction may need before it is done: where it cannot have so many at a time, it might never be.
pub(super) const LEAST_CHUNKS: u64 = 8;

/// The machine of an address space.
pub(super) struct Machine {
    /// What the host is like.
    pub(super) host: Arc<Host>,
    state: Mutex<State>,
    /// How often tables were thrown away.
    generation: AtomicU64,
    /// They are about to be: no processor begins to run. Whoever says so holds the state.
    changing: AtomicBool,
    threads: Mutex<Vec<Weak<KvmInterrupt>>>,
}

/// What is there of it.
struct State {
    /// What the guest may do where.
    ranges: Ranges,
    made: Option<Made>,
    careful: u32,
}

/// Of a machine that was made.
struct Made {
    vm: u64,
    /// Descriptors of processors, by context.
    processors: BTreeMap<usize, u64>,
    /// Where in the machine's memory gigabytes of the stub's lie, by their number.
    chunks: HashMap<u64, u64>,
    /// Most of them at a time: fewer than [`Host::most_chunks`] where the host had no memory for more.
    most: u64,
    tables: Tables,
}

/// What becomes of a page fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// The guest has the page now.
    There,
    /// It may not: a signal and its `si_code`.
    Refused(i32, i32),
}

// `si_code` of SIGSEGV and SIGBUS (`include/uapi/asm-generic/siginfo.h`).
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRERR: i32 = 2;

// Error code of a page fault.
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;

impl Machine {
    /// One of a new address space, which has nothing but the host's vDSO.
    pub(super) fn new(host: &Arc<Host>, vdso: &HostVdso) -> Self {
        let mut ranges = Ranges::default();
        ranges.set(&vdso.range(), libc::PROT_READ);
        ranges.set(&vdso.code(), libc::PROT_READ | libc::PROT_EXEC);
        Self::with(host, ranges)
    }

    fn with(host: &Arc<Host>, ranges: Ranges) -> Self {
        Self {
            host: Arc::clone(host),
            state: Mutex::new(State { ranges, made: None, careful: 0 }),
            generation: AtomicU64::new(0),
            changing: AtomicBool::new(false),
            threads: Mutex::default(),
        }
    }

    /// A copy of the stub, which gives the descriptors of this machine back, and a machine for it. Nothing changes here meanwhile.
    pub(super) fn fork(&self, stub: &mut StubThread) -> Result<(StubThread, Self), Errno> {
        let state = lock(&self.state);
        let child = stub.fork_stub()?;
        for descriptor in state.made.iter().flat_map(|made| made.processors.values().chain([&made.vm])) {
            let _ = child.call(libc::SYS_close, [*descriptor, 0, 0, 0, 0, 0]);
        }
        Ok((child, Self::with(&self.host, state.ranges.clone())))
    }

    /// A thread that may run in it.
    pub(super) fn enter(&self, thread: &Arc<KvmInterrupt>) {
        let mut threads = lock(&self.threads);
        threads.retain(|thread| thread.strong_count() > 0);
        threads.push(Arc::downgrade(thread));
    }

    /// How often tables were thrown away: a processor that has seen fewer must look anew. Asked by who has said that its processor is about to
    /// run; `None`: it has to take that back and [`wait`](Self::wait).
    pub(super) fn generation(&self) -> Option<u64> {
        (!self.changing.load(Ordering::SeqCst)).then(|| self.generation.load(Ordering::SeqCst))
    }

    /// Waits until tables do not change.
    pub(super) fn wait(&self) {
        drop(lock(&self.state));
    }

    /// The processor of a thread's context: its descriptor, and whether it is new.
    pub(super) fn processor(&self, stub: &StubThread) -> Result<(u64, bool), Errno> {
        let mut state = lock(&self.state);
        if state.made.is_none() {
            let vm = ask(stub, self.host.device, requests::CREATE_VM, 0)?;
            let mut own = requests::region(0, 0, CHUNK, CODE);
            ask_with(stub, vm, requests::SET_USER_MEMORY_REGION, &mut own)?;
            let tables = Tables::new(&stub.stub)?;
            state.made = Some(Made {
                vm,
                processors: BTreeMap::new(),
                chunks: HashMap::new(),
                most: self.host.most_chunks(),
                tables,
            });
        }
        let made = state.made.as_mut().ok_or(Errno::EFAULT)?;
        if let Some(known) = made.processors.get(&stub.slot) {
            return Ok((*known, false));
        }
        let new = ask(stub, made.vm, requests::CREATE_VCPU, stub.slot as u64)?;
        made.processors.insert(stub.slot, new);
        Ok((new, true))
    }

    /// Carries out a change of memory and notes what may be done there now.
    pub(super) fn change(&self, stub: &mut StubThread, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        let mut state = lock(&self.state);
        let value = stub.change_memory(call)?;
        let pages = |address: u64, length: u64| {
            address..address.saturating_add(length).checked_next_multiple_of(4096).unwrap_or(u64::MAX)
        };
        let ranges = &mut state.ranges;
        let lost = match *call {
            MemoryCall::Map { address, length, protection, .. } => {
                ranges.set(&pages(address, length), protection)
            }
            MemoryCall::Unmap { address, length } => ranges.clear(&pages(address, length)),
            MemoryCall::Protect { address, length, protection } => {
                ranges.protect(&pages(address, length), protection)
            }
            MemoryCall::Move { address, length, new_address, new_length, keep } => {
                moved(ranges, &pages(address, length), &pages(new_address, new_length), keep)
            }
            MemoryCall::Advise { .. } => false,
        };
        if lost {
            // The host does not see to it that what it maps is not run.
            self.forget(&mut state, stub)?;
        }
        Ok(value)
    }

    /// The host did not give what tables say: they are thrown away, and it is asked about each page for a while.
    ///
    /// # Errors
    /// As [`forget`](Self::forget).
    pub(super) fn doubt(&self, stub: &StubThread) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        state.careful = CAREFUL;
        self.forget(&mut state, stub)
    }

    /// Throws tables away, once no processor uses them.
    ///
    /// # Errors
    /// EFAULT: the host may still know them, so the stub is ended.
    fn forget(&self, state: &mut State, stub: &StubThread) -> Result<(), Errno> {
        self.changing.store(true, Ordering::SeqCst);
        let threads: Vec<_> = lock(&self.threads).iter().filter_map(Weak::upgrade).collect();
        for thread in threads {
            thread.come_out();
        }
        let mut forgotten = Ok(());
        if let Some(made) = &mut state.made {
            made.tables.reset();
            if self.host.remembers() {
                forgotten = made.have_host_forget(&self.host, stub);
            }
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.changing.store(false, Ordering::SeqCst);
        forgotten.map_err(|error| {
            self.host.warn(None, error, "page tables that the host remembers");
            stub.stub.kill();
            Errno::EFAULT
        })
    }

    /// Throws tables away and tells the host nothing of it: what it does then says what it is like ([`Host::remembers`]).
    pub(super) fn forget_quietly(&self) {
        if let Some(made) = &mut lock(&self.state).made {
            made.tables.reset();
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether no page was missed since tables were thrown away.
    pub(super) fn has_no_tables(&self) -> bool {
        lock(&self.state).made.as_ref().is_some_and(|made| made.tables.are_empty())
    }

    /// A page fault of the guest's.
    pub(super) fn page_fault(&self, stub: &StubThread, address: u64, error: u64) -> Result<Page, Errno> {
        if address >= TASK_SIZE || (CODE..CODE + CHUNK).contains(&address) {
            return Ok(Page::Refused(libc::SIGSEGV, SEGV_MAPERR));
        }
        let mut state = lock(&self.state);
        let (write, fetch) = (error & WRITE != 0, error & FETCH != 0);
        let protection = state.ranges.at(address);
        let needed = match (fetch, write) {
            (true, _) => libc::PROT_EXEC,
            (_, true) => libc::PROT_WRITE,
            _ => libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        };
        let allowed = protection.is_some_and(|protection| protection & needed != 0);
        let careful = state.careful > 0;
        state.careful = state.careful.saturating_sub(1);
        if careful || !allowed {
            // By the stub's own hand: an area that grows down grows.
            if fetch && !allowed || !touch(stub, address, write) {
                return Ok(match protection {
                    _ if allowed => Page::Refused(libc::SIGBUS, BUS_ADRERR),
                    Some(_) => Page::Refused(libc::SIGSEGV, SEGV_ACCERR),
                    None => Page::Refused(libc::SIGSEGV, SEGV_MAPERR),
                });
            }
        }
        // One page of it, as the stub found it; else all that is known around it.
        let alone = (careful || !allowed).then(|| {
            let read_write = if write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
            read_write | protection.unwrap_or(0) & libc::PROT_EXEC
        });
        let mut led = self.lead_to(&mut state, stub, address, alone);
        if led.is_err() && state.made.as_ref().is_some_and(|made| made.most >= LEAST_CHUNKS) {
            // No room for tables, or for slots: the guest goes on with those that it needs now.
            self.give_back(&mut state, stub)?;
            led = self.lead_to(&mut state, stub, address, alone);
        }
        Ok(match led {
            Ok(()) => Page::There,
            Err(error) => {
                self.host.warn(None, error, "memory that a guest has and its machine cannot have");
                Page::Refused(libc::SIGBUS, BUS_ADRERR)
            }
        })
    }

    /// Has tables lead to an address: to one page with this protection, or to what there is around it.
    fn lead_to(
        &self,
        state: &mut State,
        stub: &StubThread,
        address: u64,
        alone: Option<i32>,
    ) -> Result<(), Errno> {
        let chunk = self.chunk(state, stub, address)?;
        let State { ranges, made, .. } = state;
        let tables = &mut made.as_mut().ok_or(Errno::EFAULT)?.tables;
        match alone {
            Some(protection) => tables.page(address, chunk, protection),
            None => tables.fill(address, chunk, ranges),
        }
    }

    /// Where in the machine's memory the gigabyte of an address lies. ENOSPC: as many as there may be have their place.
    fn chunk(&self, state: &mut State, stub: &StubThread, address: u64) -> Result<u64, Errno> {
        let number = address / CHUNK;
        let made = state.made.as_mut().ok_or(Errno::EFAULT)?;
        if let Some(known) = made.chunks.get(&number) {
            return Ok(*known);
        }
        let slot = made.chunks.len() as u64 + 1;
        if slot > made.most {
            return Err(Errno::ENOSPC);
        }
        let (host, guest) = (number * CHUNK, slot * CHUNK);
        let size = CHUNK.min(TASK_SIZE - host);
        made.set_slot(stub, slot, size, host).inspect_err(|_| made.most = slot - 1)?;
        made.chunks.insert(number, guest);
        Ok(guest)
    }

    /// Gives all slots of memory back.
    fn give_back(&self, state: &mut State, stub: &StubThread) -> Result<(), Errno> {
        self.forget(state, stub)?;
        let Some(made) = &mut state.made else { return Ok(()) };
        for guest in std::mem::take(&mut made.chunks).into_values() {
            made.set_slot(stub, guest / CHUNK, 0, 0)?;
        }
        Ok(())
    }

    /// How many gigabytes have a slot of the machine's memory.
    #[cfg(test)]
    pub(super) fn chunks(&self) -> usize {
        lock(&self.state).made.as_ref().map_or(0, |made| made.chunks.len())
    }
}

impl Made {
    /// A slot of memory: where it lies in the machine follows from its number. Without a size it is given back.
    fn set_slot(&self, stub: &StubThread, slot: u64, size: u64, host: u64) -> Result<(), Errno> {
        let number = u32::try_from(slot).map_err(|_| Errno::EINVAL)?;
        let mut region = requests::region(number, slot * CHUNK, size, host);
        ask_with(stub, self.vm, requests::SET_USER_MEMORY_REGION, &mut region).map(drop)
    }

    /// Has the host forget what it knows of page tables: it does when a slot of memory goes.
    fn have_host_forget(&self, host: &Host, stub: &StubThread) -> Result<(), Errno> {
        self.set_slot(stub, host.spare_slot(), 4096, CODE)?;
        self.set_slot(stub, host.spare_slot(), 0, 0)
    }
}

const _: () = assert!(CHUNK.is_multiple_of(REGION) && CODE.is_multiple_of(CHUNK));

/// What `mremap` makes of ranges. Whether something could be run that cannot now.
fn moved(ranges: &mut Ranges, from: &Range<u64>, to: &Range<u64>, keep: bool) -> bool {
    let parts = ranges.within(from);
    let Some((_, last)) = parts.last().cloned() else { return false };
    let mut lost = !keep && ranges.clear(from);
    lost |= ranges.set(to, last);
    for (part, protection) in parts {
        let at = |address: u64| (address - from.start).saturating_add(to.start).min(to.end);
        ranges.set(&(at(part.start)..at(part.end)), protection);
    }
    lost
}

/// Whether the stub can read or write there.
fn touch(stub: &StubThread, address: u64, write: bool) -> bool {
    if write {
        return stub.swap(address & !3, 0, 0).is_ok();
    }
    stub.copy(context_address(stub.slot) + at::WINDOW as u64, address, 1) == 1
}
