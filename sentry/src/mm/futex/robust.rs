//! Robust lists: the locks that a thread holds when it ends (`man 2 set_robust_list`, `kernel/futex/core.c`).

use super::super::AddressSpace;
use super::key::Key;
use super::priority::tid;
use super::{ANY, OWNER_DIED, TID_MASK, Table, WAITERS, exchange, word};
use crate::error::Errno;
use crate::platform::Thread;
use crate::task::Pid;

/// Most locks that are looked at (`ROBUST_LIST_LIMIT`): a list may be a ring.
const LIMIT: usize = 2048;

/// Bytes of `struct robust_list_head`.
pub const HEAD_BYTES: u64 = 24;

impl AddressSpace {
    /// Where the robust list of a task begins; 0 where it has none.
    #[must_use]
    pub fn robust_list(&self, task: Pid) -> u64 {
        self.robust_lists().get(&task).copied().unwrap_or(0)
    }

    /// Says where the robust list of a task begins.
    pub fn set_robust_list(&self, task: Pid, head: u64) {
        let mut lists = self.robust_lists();
        if head == 0 {
            lists.remove(&task);
        } else {
            lists.insert(task, head);
        }
    }
}

/// What a thread that ends, or that makes way for another program, still holds: each lock is marked with `FUTEX_OWNER_DIED`, and one who
/// waits for it is woken. Then [`Table::owner_died`]. Before the thread's memory is gone.
/// `task`: by which the list is known, how words name it, and in which namespace.
pub fn exit_robust_list(space: &AddressSpace, thread: &mut dyn Thread, (id, task, of): (Pid, Pid, u64)) {
    let table = space.futexes();
    let head = space.robust_lists().remove(&id).unwrap_or(0);
    if head != 0 {
        // What of the list cannot be read ends it.
        let _ = walk(table, space, thread, task, head);
    }
    table.owner_died(task, of);
}

/// So many numbers, at most three.
fn numbers<const N: usize>(thread: &dyn Thread, address: u64) -> Result<[u64; N], Errno> {
    let mut bytes = [0; HEAD_BYTES as usize];
    let bytes = bytes.get_mut(..8 * N).ok_or(Errno::EFAULT)?;
    if thread.read(address, bytes) < bytes.len() {
        return Err(Errno::EFAULT);
    }
    let mut words = bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes);
    Ok(std::array::from_fn(|_| words.next().unwrap_or_default()))
}

fn walk(
    table: &Table,
    space: &AddressSpace,
    thread: &mut dyn Thread,
    task: Pid,
    head: u64,
) -> Result<(), Errno> {
    let [mut entry, offset, pending] = numbers(thread, head)?;
    // The lowest bit of a link tells a lock with an owner in its word that the kernel hands on.
    for _ in 0..LIMIT {
        let place = entry & !1;
        if place == head {
            break;
        }
        let next = numbers(thread, place).map(|[next]| next);
        if place != pending & !1 {
            owner_died_at(table, space, thread, task, (place.wrapping_add(offset), entry & 1 != 0, false))?;
        }
        entry = next?;
    }
    if pending & !1 != 0 {
        let place = (pending & !1).wrapping_add(offset);
        owner_died_at(table, space, thread, task, (place, pending & 1 != 0, true))?;
    }
    Ok(())
}

/// `handle_futex_death`.
fn owner_died_at(
    table: &Table,
    space: &AddressSpace,
    thread: &mut dyn Thread,
    task: Pid,
    (address, handed_on, pending): (u64, bool, bool),
) -> Result<(), Errno> {
    let key = Key::of(space, address, false)?;
    let seen = word(thread, address)?;
    if pending && !handed_on && seen == 0 {
        // It was given back, but whoever waits may not have been woken.
        let _ = table.wake(key, 1, ANY);
        return Ok(());
    }
    if seen & TID_MASK != tid(task) {
        return Ok(());
    }
    let seen = exchange(thread, address, |seen| {
        Ok(if seen & TID_MASK == tid(task) { (seen & WAITERS) | OWNER_DIED } else { seen })
    })?;
    if !handed_on && seen & WAITERS != 0 && seen & TID_MASK == tid(task) {
        let _ = table.wake(key, 1, ANY);
    }
    Ok(())
}
