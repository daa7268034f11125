//! Semaphores (`man 2 semop`; `ipc/sem.c`).

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::{Object, Permissions, now};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::task::{Pid, lock};

/// Most semaphores of a set (`SEMMSL`).
pub(super) const SET_MAX: usize = 32_000;
/// The highest value (`SEMVMX`).
pub(super) const VALUE_MAX: i32 = 32_767;

/// One operation (`struct sembuf`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Which semaphore.
    pub number: u16,
    /// Added; 0 to wait for 0.
    pub change: i16,
    /// `IPC_NOWAIT`.
    pub nowait: bool,
    /// `SEM_UNDO`.
    pub undo: bool,
}

/// What comes of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All are done.
    Done,
    /// None is: this one has to wait.
    Wait(Operation),
}

/// Does all operations or none.
///
/// # Errors
/// EAGAIN for one that would wait and must not, ERANGE beyond the highest value, EFBIG for a semaphore that is not there.
pub fn apply(values: &mut [i32], operations: &[Operation]) -> Result<Outcome, Errno> {
    let mut new = values.to_vec();
    if operations.iter().any(|operation| usize::from(operation.number) >= new.len()) {
        return Err(Errno::EFBIG);
    }
    for operation in operations {
        let value = new.get_mut(usize::from(operation.number)).ok_or(Errno::EFBIG)?;
        let change = i32::from(operation.change);
        if change == 0 && *value != 0 || value.saturating_add(change) < 0 {
            return if operation.nowait { Err(Errno::EAGAIN) } else { Ok(Outcome::Wait(*operation)) };
        }
        *value = value.saturating_add(change);
        if *value > VALUE_MAX {
            return Err(Errno::ERANGE);
        }
    }
    values.copy_from_slice(&new);
    Ok(Outcome::Done)
}

/// A set of semaphores.
pub struct SemaphoreSet {
    state: Mutex<State>,
    queue: WaitQueue,
}

struct State {
    permissions: Permissions,
    values: Vec<i32>,
    /// Who changed each last.
    processes: Vec<Pid>,
    /// What is added to each when a process ends.
    undo: BTreeMap<Pid, Vec<i32>>,
    waiting: Vec<Operation>,
    operated: i64,
    changed: i64,
    removed: bool,
}

impl Object for SemaphoreSet {
    fn permissions(&self) -> Permissions {
        lock(&self.state).permissions
    }
}

impl SemaphoreSet {
    /// All 0.
    ///
    /// # Errors
    /// EINVAL for none or too many.
    pub fn new(permissions: Permissions, count: usize) -> Result<Self, Errno> {
        if count == 0 || count > SET_MAX {
            return Err(Errno::EINVAL);
        }
        let state = State {
            permissions,
            values: vec![0; count],
            processes: vec![0; count],
            undo: BTreeMap::new(),
            waiting: Vec::new(),
            operated: 0,
            changed: now(),
            removed: false,
        };
        Ok(Self { state: Mutex::new(state), queue: WaitQueue::new() })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.state).values.len()
    }

    /// Told when a value changes, and at the end of the set.
    #[must_use]
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    fn told(&self) {
        self.queue.notify(Events::CHANGED);
    }

    /// Tries operations.
    ///
    /// # Errors
    /// As [`apply`]; EIDRM once it is removed.
    pub fn operate(&self, process: Pid, operations: &[Operation]) -> Result<Outcome, Errno> {
        let mut state = lock(&self.state);
        if state.removed {
            return Err(Errno::EIDRM);
        }
        let outcome = apply(&mut state.values, operations)?;
        if outcome != Outcome::Done {
            return Ok(outcome);
        }
        let count = state.values.len();
        for operation in operations {
            let at = usize::from(operation.number);
            if let Some(last) = state.processes.get_mut(at) {
                *last = process;
            }
            if operation.undo && operation.change != 0 {
                let undo = state.undo.entry(process).or_insert_with(|| vec![0; count]);
                if let Some(sum) = undo.get_mut(at) {
                    let change = sum.saturating_sub(i32::from(operation.change));
                    *sum = change.clamp(-VALUE_MAX - 1, VALUE_MAX);
                }
            }
        }
        state.operated = now();
        drop(state);
        self.told();
        Ok(outcome)
    }

    /// A process begins or ends to wait with an operation, for `GETNCNT` and `GETZCNT`.
    pub fn wait(&self, operation: Operation, begins: bool) {
        let mut state = lock(&self.state);
        if begins {
            state.waiting.push(operation);
        } else if let Some(at) = state.waiting.iter().position(|other| *other == operation) {
            state.waiting.swap_remove(at);
        }
    }

    /// How many wait for a semaphore to grow, or to be 0.
    #[must_use]
    pub fn waiting(&self, number: u16, zero: bool) -> u64 {
        let state = lock(&self.state);
        let those = state.waiting.iter().filter(|op| op.number == number && (op.change == 0) == zero);
        those.count() as u64
    }

    /// A process ended.
    pub fn undo(&self, process: Pid) {
        let mut state = lock(&self.state);
        let Some(undo) = state.undo.remove(&process) else { return };
        for (value, change) in state.values.iter_mut().zip(undo) {
            *value = value.saturating_add(change).clamp(0, VALUE_MAX);
        }
        drop(state);
        self.told();
    }

    /// All values.
    #[must_use]
    pub fn values(&self) -> Vec<i32> {
        lock(&self.state).values.clone()
    }

    /// Who changed a semaphore last.
    #[must_use]
    pub fn process(&self, number: usize) -> Option<Pid> {
        lock(&self.state).processes.get(number).copied()
    }

    /// Sets values from `first` on; what was to be undone of them is forgotten.
    ///
    /// # Errors
    /// ERANGE, EINVAL.
    pub fn set(&self, first: usize, values: &[i32], process: Pid) -> Result<(), Errno> {
        if values.iter().any(|value| !(0..=VALUE_MAX).contains(value)) {
            return Err(Errno::ERANGE);
        }
        let mut state = lock(&self.state);
        let range = first..first.checked_add(values.len()).ok_or(Errno::EINVAL)?;
        state.values.get_mut(range.clone()).ok_or(Errno::EINVAL)?.copy_from_slice(values);
        if let Some(processes) = state.processes.get_mut(range.clone()) {
            processes.fill(process);
        }
        for undo in state.undo.values_mut() {
            if let Some(undo) = undo.get_mut(range.clone()) {
                undo.fill(0);
            }
        }
        state.changed = now();
        drop(state);
        self.told();
        Ok(())
    }

    /// Changes owner and mode.
    ///
    /// # Errors
    /// What `change` says.
    pub fn change(&self, change: impl FnOnce(&mut Permissions) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        change(&mut state.permissions)?;
        state.changed = now();
        Ok(())
    }

    /// It was taken out of the table: who waits hears of it.
    pub fn removed(&self) {
        lock(&self.state).removed = true;
        self.told();
    }

    /// As `struct semid64_ds`.
    #[must_use]
    pub fn to_bytes(&self, id: i32) -> [u8; 104] {
        let state = lock(&self.state);
        let mut bytes = [0; 104];
        bytes[..48].copy_from_slice(&state.permissions.to_bytes(id));
        bytes[48..56].copy_from_slice(&state.operated.to_le_bytes());
        bytes[64..72].copy_from_slice(&state.changed.to_le_bytes());
        bytes[80..88].copy_from_slice(&(state.values.len() as u64).to_le_bytes());
        bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::task::Credentials;

    fn operation() -> impl Strategy<Value = Operation> {
        (0..4u16, -3..4i16, any::<bool>(), any::<bool>())
            .prop_map(|(number, change, nowait, undo)| Operation { number, change, nowait, undo })
    }

    /// One at a time, and back again when one cannot be done.
    fn naive(values: &mut Vec<i32>, operations: &[Operation]) -> Result<bool, Errno> {
        let before = values.clone();
        for operation in operations {
            let value = values[usize::from(operation.number)];
            let change = i32::from(operation.change);
            let blocked = if change == 0 { value != 0 } else { value + change < 0 };
            if blocked {
                *values = before;
                return if operation.nowait { Err(Errno::EAGAIN) } else { Ok(false) };
            }
            values[usize::from(operation.number)] = value + change;
        }
        Ok(true)
    }

    proptest! {
        #[test]
        fn a_set_does_as_the_naive_model(all in prop::collection::vec((1..4i32, prop::collection::vec(operation(), 1..5)), 1..30)) {
            let permissions = Permissions::new(0, &Credentials::root(), 0o600);
            let set = SemaphoreSet::new(permissions, 4).unwrap();
            let (mut values, mut undo) = (vec![0; 4], BTreeMap::<i32, Vec<i32>>::new());
            for (process, operations) in &all {
                let expected = naive(&mut values, operations);
                let got = set.operate(*process, operations).map(|outcome| outcome == Outcome::Done);
                prop_assert_eq!(got, expected);
                prop_assert_eq!(set.values(), values.clone());
                if expected == Ok(true) {
                    let undo = undo.entry(*process).or_insert_with(|| vec![0; 4]);
                    for operation in operations.iter().filter(|operation| operation.undo) {
                        undo[usize::from(operation.number)] -= i32::from(operation.change);
                    }
                }
            }
            for process in 1..4 {
                for (value, change) in values.iter_mut().zip(undo.get(&process).into_iter().flatten()) {
                    *value = (*value + change).max(0);
                }
                set.undo(process);
                prop_assert_eq!(set.values(), values.clone());
            }
        }
    }
}
