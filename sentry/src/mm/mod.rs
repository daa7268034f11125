//! What lies where in an address space.
//!
//! The memory itself belongs to the stub ([`crate::platform`]): each change here is one host call there at exact addresses, and the host
//! does paging and copy-on-write. What is kept here is the tree of [areas](Area): it decides where things go, what may be changed, and
//! what is counted.
//!
//! **Agreement.** A change is checked and planned first, then the host is asked, then the tree is changed. Where the host fails in a way
//! that may have done half of it (`mmap` over something), that range is unmapped on both sides, as `mmap(2)` allows.
//!
//! **Stacks.** The first thread's stack is mapped whole at its limit, without reserve: the sentry itself reads and writes it (signal
//! frames, arguments) below what was touched, and growth by the host would be unknown to the tree. Areas that a guest maps with
//! `MAP_GROWSDOWN` grow in [`AddressSpace::grow`], which whoever handles a fault calls first; the host never grows anything.
//!
//! **Locks.** One for each address space, held over the host call, so that tree and stub change together. Under it no other lock is taken
//! but the platform's own and those of a mapped file's `host_file`. Locks of futex buckets are taken without it.

mod advise;
pub mod area;
pub mod barrier;
mod brk;
mod forced;
pub mod futex;
mod lock;
mod map;
mod maps;
mod random;
mod remap;
mod saved;
mod tree;

#[cfg(test)]
pub(crate) mod test_utils;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use area::{Area, AreaFlags, Backing, FileIdentity, MappedFile, Protection, VdsoPart};
pub use map::{MapRequest, Source};
pub use maps::Summary;
pub use random::pages_below as random_pages;
pub use remap::RemapRequest;
pub(crate) use saved::Sources;
pub use tree::Areas;

use crate::error::Errno;
use crate::platform::{RemoteMemory, Thread};
use crate::task::Pid;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Most areas of one address space (`vm.max_map_count`).
pub const MAX_AREAS: usize = 65530;

/// Where Linux' own user addresses end (`TASK_SIZE` with four levels of tables).
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// Largest stack that is mapped, whatever the limit.
pub const MAX_STACK: u64 = 1 << 30;

/// What a task may have, as numbers of bytes (`man 2 getrlimit`).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `RLIMIT_AS`.
    pub address_space: u64,
    /// `RLIMIT_DATA`.
    pub data: u64,
    /// `RLIMIT_STACK`.
    pub stack: u64,
    /// `RLIMIT_MEMLOCK`.
    pub locked: u64,
    /// `CAP_IPC_LOCK`: that limit does not count.
    pub may_lock: bool,
}

impl Default for Limits {
    /// As a container gets them: a stack of 8 MiB, locks of 8 MiB, the rest without limit.
    fn default() -> Self {
        Self { address_space: u64::MAX, data: u64::MAX, stack: 8 << 20, locked: 8 << 20, may_lock: false }
    }
}

/// The page that `address` is in.
#[must_use]
pub const fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// The first page at or behind `address`; `None` behind the last.
#[must_use]
pub const fn page_up(address: u64) -> Option<u64> {
    match address.checked_add(PAGE - 1) {
        Some(sum) => Some(page_down(sum)),
        None => None,
    }
}

/// `length` bytes from `start`, both made whole pages.
pub(crate) fn pages(start: u64, length: u64) -> Option<Range<u64>> {
    Some(start..start.checked_add(page_up(length)?)?)
}

/// Numbers of address spaces and of shared memory: never the same twice.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An address space: areas, `brk`, and what its tasks share because they share it.
pub struct AddressSpace {
    id: u64,
    memory: Option<Arc<dyn RemoteMemory>>,
    futexes: Arc<futex::Table>,
    layout: Mutex<Layout>,
    robust_lists: Mutex<BTreeMap<Pid, u64>>,
    barriers: AtomicU64,
    program: Mutex<Option<Arc<dyn MappedFile>>>,
    asynchronous: Mutex<BTreeMap<u64, Arc<crate::aio::Context>>>,
}

/// What the lock of an address space is for.
#[derive(Debug, Clone)]
struct Layout {
    /// Addresses that can be mapped.
    range: Range<u64>,
    /// Below it `mmap` places what has no place.
    mmap_base: u64,
    /// End of the room for the stack.
    stack_top: u64,
    areas: Areas,
    /// First byte and first byte behind the heap.
    heap: Range<u64>,
    /// Bytes of a program's own data, for `RLIMIT_DATA`.
    program_data: u64,
    /// `MCL_FUTURE`.
    lock_future: bool,
    /// Where strings of arguments and of the environment lie.
    strings: Strings,
}

/// Where the first stack holds what `/proc/PID/cmdline`, `environ` and `auxv` show.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Strings {
    /// Arguments.
    pub arguments: Range<u64>,
    /// Environment.
    pub environment: Range<u64>,
    /// The auxiliary vector.
    pub auxiliary: Range<u64>,
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self::new(PAGE * 16..TASK_SIZE, Limits::default().stack, None, Arc::default())
    }
}

impl AddressSpace {
    /// An empty one within `range` ([`crate::platform::Platform::guest_range`]), for a stack of at most `stack` bytes, with what reads
    /// its memory ([`Thread::remote`]) and the sandbox's futexes. Where things go is random (`mmap_base` in `arch/x86/mm/mmap.c`).
    #[must_use]
    pub fn new(
        range: Range<u64>,
        stack: u64,
        memory: Option<Arc<dyn RemoteMemory>>,
        futexes: Arc<futex::Table>,
    ) -> Self {
        let room = range.end.saturating_sub(range.start);
        let gap = stack.clamp(128 << 20, MAX_STACK + (128 << 20)).min(room / 6 * 5);
        let random = (room / 64).min(1 << 40);
        let stack_top = page_down(range.end.saturating_sub(random::pages_below(random.min(16 << 30))));
        let base = page_down(stack_top.saturating_sub(gap).saturating_sub(random::pages_below(random)));
        let layout = Layout {
            mmap_base: base.max(range.start),
            stack_top,
            areas: Areas::default(),
            heap: 0..0,
            program_data: 0,
            lock_future: false,
            strings: Strings::default(),
            range,
        };
        Self::with_layout(layout, memory, futexes)
    }

    fn with_layout(
        layout: Layout,
        memory: Option<Arc<dyn RemoteMemory>>,
        futexes: Arc<futex::Table>,
    ) -> Self {
        Self {
            id: next_id(),
            memory,
            futexes,
            layout: Mutex::new(layout),
            robust_lists: Mutex::default(),
            barriers: AtomicU64::new(0),
            program: Mutex::new(None),
            asynchronous: Mutex::default(),
        }
    }

    /// Its contexts of asynchronous transfers by number, which a `fork` does not copy (`mm_struct::ioctx_table`).
    pub(crate) fn asynchronous(&self) -> &Mutex<BTreeMap<u64, Arc<crate::aio::Context>>> {
        &self.asynchronous
    }

    /// Copies it with its stub (`fork`): `thread`'s memory and the tree at one moment. Areas with `MADV_DONTFORK` stay behind, as the
    /// host does it; locks are not inherited (`man 2 mlock`).
    ///
    /// # Errors
    /// As [`Thread::fork`].
    pub fn fork(&self, thread: &mut dyn Thread) -> Result<(Self, Box<dyn Thread>), Errno> {
        let layout = self.layout();
        let child = thread.fork()?;
        let mut copy = Layout { areas: Areas::default(), lock_future: false, ..layout.clone() };
        for area in layout.areas.iter() {
            if !area.flags.contains(AreaFlags::DONT_FORK) {
                let flags = area.flags.difference(AreaFlags::LOCKED);
                copy.areas.insert(Area { flags, ..area.clone() });
            }
        }
        let space = Self::with_layout(copy, Some(child.remote()), Arc::clone(&self.futexes));
        space.barriers.store(self.barriers.load(Ordering::Relaxed), Ordering::Relaxed);
        space.set_program(self.program());
        Ok((space, child))
    }

    /// A number that no other address space has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its memory for other tasks (`process_vm_readv`, `/proc/PID/mem`).
    #[must_use]
    pub fn memory(&self) -> Option<&Arc<dyn RemoteMemory>> {
        self.memory.as_ref()
    }

    /// The sandbox's futexes: every address space has the same table.
    #[must_use]
    pub fn futexes(&self) -> &Arc<futex::Table> {
        &self.futexes
    }

    /// Commands of `membarrier` that were registered, as its bits.
    pub(crate) fn barriers(&self) -> &AtomicU64 {
        &self.barriers
    }

    /// The file that runs in it (`/proc/PID/exe`).
    #[must_use]
    pub fn program(&self) -> Option<Arc<dyn MappedFile>> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says which file runs in it. A loader does it once.
    pub fn set_program(&self, program: Option<Arc<dyn MappedFile>>) {
        let before =
            std::mem::replace(&mut *self.program.lock().unwrap_or_else(PoisonError::into_inner), program);
        drop(before);
    }

    /// Where the strings of the first stack lie.
    #[must_use]
    pub fn strings(&self) -> Strings {
        self.layout().strings.clone()
    }

    /// Says where the strings of the first stack lie (a loader, `PR_SET_MM`).
    pub fn set_strings(&self, strings: Strings) {
        self.layout().strings = strings;
    }

    /// The area that holds `address`.
    #[must_use]
    pub fn area_at(&self, address: u64) -> Option<Area> {
        self.layout().areas.find(address).cloned()
    }

    /// Bytes of all areas, and of those that are locked (`VmSize`, `VmLck`).
    #[must_use]
    pub fn sizes(&self) -> (u64, u64) {
        let layout = self.layout();
        (layout.areas.total(), layout.areas.locked())
    }

    /// Addresses that can be mapped.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.layout().range.clone()
    }

    /// Where `mmap` would put so many bytes now.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn free_place(&self, length: u64) -> Result<u64, Errno> {
        self.layout().find_place(0, length, false)
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn robust_lists(&self) -> MutexGuard<'_, BTreeMap<Pid, u64>> {
        self.robust_lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
