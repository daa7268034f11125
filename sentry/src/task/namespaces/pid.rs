//! Namespaces of processes (`man 7 pid_namespaces`; `kernel/pid.c`, `kernel/pid_namespace.c`).
//!
//! Everywhere in the sentry a task is called by its number in the root namespace. A task of another namespace has a number there and in each
//! between: [`PidNamespace::shown`] and [`PidNamespace::named`] translate, which in the root namespace costs nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::super::{Pid, lock};
use super::{Charge, DEPTH_MAX, Kind, Meta, UserNamespace};
use crate::error::Errno;

/// One more than the highest number (`pid_max` of 64-bit machines).
pub(in crate::task) const PID_MAX: Pid = 4 << 20;
/// Numbers below are not given out a second time (`RESERVED_PIDS`).
pub(in crate::task) const RESERVED: Pid = 300;

/// A namespace of processes.
pub struct PidNamespace {
    meta: Meta,
    owner: Arc<UserNamespace>,
    parent: Option<Arc<Self>>,
    level: u32,
    inner: Mutex<Inner>,
    _charge: Option<Charge>,
}

#[derive(Default)]
struct Inner {
    /// In the root namespace all are what they are: both maps are empty there.
    by_number: BTreeMap<Pid, Pid>,
    by_task: BTreeMap<Pid, Pid>,
    last: Pid,
    /// The process that takes orphans, and with which all others end; 0 before there was one.
    init: Pid,
    /// That ended: nobody comes any more.
    closed: bool,
}

impl PidNamespace {
    pub(in crate::task) fn first() -> Arc<Self> {
        Arc::new(Self {
            meta: Meta::first(Kind::Pid),
            owner: Arc::clone(UserNamespace::root()),
            parent: None,
            level: 0,
            inner: Mutex::default(),
            _charge: None,
        })
    }

    /// One in another (`create_pid_namespace`).
    ///
    /// # Errors
    /// ENOSPC: too deep, or too many; EINVAL where the owner is not one in the owner of the other.
    pub(crate) fn below(parent: &Arc<Self>, owner: &Arc<UserNamespace>) -> Result<Arc<Self>, Errno> {
        if !owner.is_within(&parent.owner) {
            return Err(Errno::EINVAL);
        }
        if parent.level >= DEPTH_MAX {
            return Err(Errno::ENOSPC);
        }
        Ok(Arc::new(Self {
            meta: Meta::new(Kind::Pid),
            owner: Arc::clone(owner),
            parent: Some(Arc::clone(parent)),
            level: parent.level + 1,
            inner: Mutex::default(),
            _charge: Some(Charge::take(Kind::Pid)?),
        }))
    }

    /// Its number and kind.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whose capabilities count in it.
    #[must_use]
    pub fn owner(&self) -> &Arc<UserNamespace> {
        &self.owner
    }

    /// The one that it lies in.
    #[must_use]
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// How many it lies in.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Whether this is it, or lies in it.
    #[must_use]
    pub fn is_within(&self, outer: &Self) -> bool {
        let mut at = Some(self);
        while let Some(namespace) = at {
            if std::ptr::eq(namespace, outer) {
                return true;
            }
            at = namespace.parent.as_deref();
        }
        false
    }

    /// Number that a task, or a process group or session, has here; 0 where it has none.
    #[must_use]
    pub fn shown(&self, pid: Pid) -> Pid {
        if self.level == 0 {
            return pid;
        }
        lock(&self.inner).by_task.get(&pid).copied().unwrap_or(0)
    }

    /// Whom a number here is; `None` for nobody.
    #[must_use]
    pub fn named(&self, number: Pid) -> Option<Pid> {
        if self.level == 0 {
            return Some(number);
        }
        lock(&self.inner).by_number.get(&number).copied()
    }

    /// Numbers of a task here and in those between this one and that of the task, which is given: what `NSpid` shows.
    #[must_use]
    pub fn all_shown(&self, of: &Self, pid: Pid) -> Vec<Pid> {
        let mut numbers = Vec::new();
        let mut at = Some(of);
        while let Some(namespace) = at {
            numbers.push(namespace.shown(pid));
            if std::ptr::eq(namespace, self) {
                break;
            }
            at = namespace.parent.as_deref();
        }
        numbers.reverse();
        numbers
    }

    /// Whether there was no process in it yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.level > 0 && self.init() == 0
    }

    /// The process that takes orphans; 0 for none.
    pub(in crate::task) fn init(&self) -> Pid {
        lock(&self.inner).init
    }

    pub(in crate::task) fn set_init(&self, pid: Pid) {
        lock(&self.inner).init = pid;
    }

    /// Whether its first process ends or ended.
    /// Numbers up to this one were given: the next is another.
    pub(in crate::task) fn gave(&self, number: Pid) {
        let mut inner = lock(&self.inner);
        inner.last = inner.last.max(number).min(PID_MAX);
    }

    pub(in crate::task) fn is_closed(&self) -> bool {
        lock(&self.inner).closed
    }

    /// Its first process ends: nobody comes any more.
    pub(in crate::task) fn close(&self) {
        lock(&self.inner).closed = true;
    }

    /// Gives a task a number, `wanted` or the next that is free.
    fn claim(&self, task: Pid, wanted: Option<Pid>) -> Result<(), Errno> {
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(Errno::ENOMEM);
        }
        let number = match wanted {
            Some(number) => number,
            None => next_free(&mut inner)?,
        };
        if inner.by_number.contains_key(&number) {
            return Err(Errno::EEXIST);
        }
        inner.by_number.insert(number, task);
        inner.by_task.insert(task, number);
        Ok(())
    }

    fn release(&self, task: Pid) {
        let mut inner = lock(&self.inner);
        if let Some(number) = inner.by_task.remove(&task) {
            inner.by_number.remove(&number);
        }
    }
}

fn next_free(inner: &mut Inner) -> Result<Pid, Errno> {
    for _ in 0..=inner.by_number.len() {
        inner.last = if inner.last + 1 >= PID_MAX { RESERVED } else { inner.last + 1 };
        if !inner.by_number.contains_key(&inner.last) {
            return Ok(inner.last);
        }
    }
    Err(Errno::EAGAIN)
}

/// Numbers that something has in namespaces besides the root one: a task, and whatever process group or session bears its number.
/// They are free once the last of these is gone.
pub(in crate::task) struct Numbers {
    task: Pid,
    spaces: Vec<Arc<PidNamespace>>,
}

impl Numbers {
    /// Numbers for a task in `space` and those above it, `None` in the root namespace. `wanted`: numbers that are asked for, those of the
    /// innermost first (`set_tid` of `clone3`), as far as they are not the root namespace's.
    ///
    /// # Errors
    /// ENOMEM where the namespace's first process ended, EEXIST where a number is taken, EINVAL for the first number not being 1.
    pub(in crate::task) fn claim(
        task: Pid,
        space: &Arc<PidNamespace>,
        wanted: &[Pid],
    ) -> Result<Option<Arc<Self>>, Errno> {
        let mut numbers = Self { task, spaces: Vec::new() };
        let mut wanted = wanted.iter().copied();
        let mut at = space;
        while let Some(parent) = &at.parent {
            let number = wanted.next();
            if number.is_some_and(|number| number != 1) && at.init() == 0 {
                return Err(Errno::EINVAL);
            }
            // What was claimed before is given back as this is dropped.
            at.claim(task, number)?;
            numbers.spaces.push(Arc::clone(at));
            at = parent;
        }
        Ok(if numbers.spaces.is_empty() { None } else { Some(Arc::new(numbers)) })
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        for space in &self.spaces {
            space.release(self.task);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_a_number_in_each_namespace_around_it() {
        let root = PidNamespace::first();
        let outer = PidNamespace::below(&root, UserNamespace::root()).unwrap();
        let inner = PidNamespace::below(&outer, UserNamespace::root()).unwrap();
        assert!(Numbers::claim(7, &root, &[]).unwrap().is_none());
        let first = Numbers::claim(100, &outer, &[]).unwrap();
        let second = Numbers::claim(101, &inner, &[]).unwrap();
        assert_eq!((outer.shown(100), outer.shown(101), inner.shown(101), inner.shown(100)), (1, 2, 1, 0));
        assert_eq!(
            (root.shown(101), inner.named(1), inner.named(2), outer.named(2)),
            (101, Some(101), None, Some(101))
        );
        assert_eq!(root.all_shown(&inner, 101), [101, 2, 1]);
        assert_eq!(inner.all_shown(&inner, 101), [1]);
        drop(second);
        assert_eq!((outer.named(2), inner.named(1)), (None, None));
        let next = Numbers::claim(102, &outer, &[]).unwrap();
        assert_eq!(outer.shown(102), 3);
        drop((first, next));
    }

    #[test]
    fn numbers_can_be_asked_for_and_end_with_the_first_process() {
        let root = PidNamespace::first();
        let space = PidNamespace::below(&root, UserNamespace::root()).unwrap();
        assert_eq!(Numbers::claim(5, &space, &[9]).err(), Some(Errno::EINVAL));
        let first = Numbers::claim(5, &space, &[1]).unwrap();
        space.set_init(5);
        let other = Numbers::claim(6, &space, &[9]).unwrap();
        assert_eq!(Numbers::claim(7, &space, &[9]).err(), Some(Errno::EEXIST));
        space.close();
        assert_eq!(Numbers::claim(8, &space, &[]).err(), Some(Errno::ENOMEM));
        drop((first, other));
    }

    #[test]
    fn there_is_a_bound_of_depth() {
        let mut space = PidNamespace::first();
        let error = loop {
            match PidNamespace::below(&space, UserNamespace::root()) {
                Ok(next) => space = next,
                Err(errno) => break errno,
            }
        };
        assert_eq!((error, space.level()), (Errno::ENOSPC, DEPTH_MAX));
    }
}
