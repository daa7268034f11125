//! Mounts that share what happens to them (`fs/pnode.c`; "shared subtrees" in `man 7 mount_namespaces`).
//!
//! A *peer group* is a number. What is mounted in, or taken away from, a member happens in all of them and, one way, in the slaves of the
//! group.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::super::sync::lock;
use super::Mount;

/// What all groups are, under the lock of all changes.
#[derive(Default)]
pub(super) struct Groups {
    groups: BTreeMap<u64, Group>,
}

#[derive(Default)]
struct Group {
    members: Vec<Weak<Mount>>,
    slaves: Vec<Weak<Mount>>,
}

static CHANGE: Mutex<Groups> = Mutex::new(Groups { groups: BTreeMap::new() });

/// The lock under which trees of mounts change. Whatever falls out meanwhile must be dropped after it: a mount can be the last to hold a
/// namespace.
pub(super) fn change() -> MutexGuard<'static, Groups> {
    lock(&CHANGE)
}

/// What a mount is in which group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Membership {
    /// 0: not shared.
    pub(super) group: u64,
    /// 0: no slave.
    pub(super) master: u64,
    pub(super) unbindable: bool,
}

/// How a mount shares what happens to it (`man 5 proc_pid_mountinfo`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Propagation {
    /// Its peer group.
    pub shared: Option<u64>,
    /// The group that it hears of.
    pub master: Option<u64>,
    /// It cannot be bound elsewhere.
    pub unbindable: bool,
}

/// What a mount can be made (`MS_SHARED` and so on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Of a peer group.
    Shared,
    /// By itself.
    Private,
    /// One that hears, and is not heard of.
    Slave,
    /// By itself, and not to be bound elsewhere.
    Unbindable,
}

impl Membership {
    pub(super) fn seen(self) -> Propagation {
        let some = |number: u64| (number != 0).then_some(number);
        Propagation { shared: some(self.group), master: some(self.master), unbindable: self.unbindable }
    }
}

pub(super) fn of(mount: &Mount) -> Membership {
    lock(&mount.inner).peers
}

fn without(list: &mut Vec<Weak<Mount>>, mount: &Arc<Mount>) {
    list.retain(|one| one.strong_count() > 0 && !std::ptr::eq(one.as_ptr(), Arc::as_ptr(mount)));
}

impl Groups {
    /// A group of its own for a mount that has none.
    pub(super) fn share(&mut self, mount: &Arc<Mount>) {
        let mut own = of(mount);
        if own.group == 0 {
            own.group = (1..).find(|number| !self.groups.contains_key(number)).unwrap_or(u64::MAX);
            own.unbindable = false;
            self.put(mount, own);
        }
    }

    /// Makes a mount a member and a slave as said, and nothing else.
    pub(super) fn put(&mut self, mount: &Arc<Mount>, new: Membership) {
        let old = std::mem::replace(&mut lock(&mount.inner).peers, new);
        if old.group != new.group {
            if let Some(group) = self.groups.get_mut(&old.group) {
                without(&mut group.members, mount);
            }
            if new.group != 0 {
                self.groups.entry(new.group).or_default().members.push(Arc::downgrade(mount));
            }
        }
        if old.master != new.master {
            if let Some(group) = self.groups.get_mut(&old.master) {
                without(&mut group.slaves, mount);
            }
            if new.master != 0 {
                self.groups.entry(new.master).or_default().slaves.push(Arc::downgrade(mount));
            }
        }
        if old.group != 0 && old.group != new.group {
            self.settle(old.group, old.master);
        }
        if old.master != 0 && old.master != new.master {
            self.tidy(old.master);
        }
    }

    /// A group may have lost its last member: its slaves then hear of that one's master.
    fn settle(&mut self, number: u64, master: u64) {
        let Some(group) = self.groups.get_mut(&number) else { return };
        group.members.retain(|member| member.strong_count() > 0);
        if !group.members.is_empty() {
            return;
        }
        let slaves: Vec<_> = group.slaves.iter().filter_map(Weak::upgrade).collect();
        for slave in slaves {
            let own = Membership { master, ..of(&slave) };
            self.put(&slave, own);
        }
        self.tidy(number);
    }

    fn tidy(&mut self, number: u64) {
        if let Some(group) = self.groups.get_mut(&number) {
            group.members.retain(|member| member.strong_count() > 0);
            group.slaves.retain(|slave| slave.strong_count() > 0);
            if group.members.is_empty() && group.slaves.is_empty() {
                self.groups.remove(&number);
            }
        }
    }

    /// `change_mnt_propagation`.
    pub(super) fn make(&mut self, mount: &Arc<Mount>, sharing: Sharing) {
        let own = of(mount);
        let new = match sharing {
            Sharing::Shared => return self.share(mount),
            Sharing::Private => Membership::default(),
            Sharing::Unbindable => Membership { unbindable: true, ..Membership::default() },
            Sharing::Slave => {
                let alone = self.members(own.group).len() <= 1;
                // Without a peer there is nobody to hear of but whom it heard of before.
                let master = if own.group == 0 || alone { own.master } else { own.group };
                Membership { master, group: 0, unbindable: own.unbindable }
            }
        };
        self.put(mount, new);
    }

    fn members(&self, number: u64) -> Vec<Arc<Mount>> {
        let group = self.groups.get(&number).filter(|_| number != 0);
        group.map(|group| group.members.iter().filter_map(Weak::upgrade).collect()).unwrap_or_default()
    }

    fn slaves(&self, number: u64) -> Vec<Arc<Mount>> {
        let group = self.groups.get(&number).filter(|_| number != 0);
        group.map(|group| group.slaves.iter().filter_map(Weak::upgrade).collect()).unwrap_or_default()
    }

    /// Every other mount in which what happens in this one happens too: peers first, then slaves, and theirs.
    pub(super) fn receivers(&self, of_mount: &Arc<Mount>) -> Vec<Arc<Mount>> {
        let mut found: Vec<Arc<Mount>> = Vec::new();
        let mut groups = vec![of(of_mount).group];
        let mut next = 0;
        while let Some(number) = groups.get(next).copied() {
            next += 1;
            for mount in self.members(number).into_iter().chain(self.slaves(number)) {
                let known = |other: &Arc<Mount>| Arc::ptr_eq(other, &mount);
                if known(of_mount) || found.iter().any(known) {
                    continue;
                }
                let group = of(&mount).group;
                if group != 0 && !groups.contains(&group) {
                    groups.push(group);
                }
                found.push(mount);
            }
        }
        found
    }
}
