//! User namespaces (`man 7 user_namespaces`; `kernel/user_namespace.c`).
//!
//! Everywhere in the sentry a user or group is the number that the root namespace has for it (`kuid_t` of Linux). What a program of another
//! namespace says or is shown is translated where it enters or leaves: [`UserNamespace::uid`] and its kin.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use super::super::{Credentials, capability, lock};
use super::{Charge, Kind, Meta};
use crate::error::Errno;

/// How deep namespaces of users and of processes may lie in each other (`MAX_PID_NS_LEVEL`, and as much for users).
pub const DEPTH_MAX: u32 = 32;
/// No user, no group: what has no number in a namespace.
pub const INVALID: u32 = u32::MAX;
/// What is shown in place of a number that a namespace does not have (`overflowuid`).
pub const OVERFLOW: u32 = 65_534;
/// Lines of a map (`UID_GID_MAP_MAX_EXTENTS`).
const EXTENTS_MAX: usize = 340;

/// A stretch of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    first: u32,
    /// Of the root namespace.
    below: u32,
    count: u32,
}

/// Numbers of a namespace and what they are in the root namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Map(Vec<Extent>);

impl Map {
    fn down(&self, id: u32) -> u32 {
        let found = self.0.iter().find(|extent| id >= extent.first && id - extent.first < extent.count);
        found.map_or(INVALID, |extent| extent.below + (id - extent.first))
    }

    fn up(&self, id: u32) -> u32 {
        let found = self.0.iter().find(|extent| id >= extent.below && id - extent.below < extent.count);
        found.map_or(INVALID, |extent| extent.first + (id - extent.below))
    }
}

/// Which map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// `uid_map`.
    Users,
    /// `gid_map`.
    Groups,
    /// `projid_map`.
    Projects,
}

/// A namespace of users.
pub struct UserNamespace {
    meta: Meta,
    parent: Option<Arc<Self>>,
    level: u32,
    /// Who made it.
    owner: u32,
    maps: [OnceLock<Map>; 3],
    may_set_groups: AtomicBool,
    /// Whether who made it had `CAP_SETFCAP`, without which user 0 of the parent is not to be mapped.
    parent_had_setfcap: bool,
    changing: Mutex<()>,
    _charge: Option<Charge>,
}

impl std::fmt::Debug for UserNamespace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "user:[{}]", self.meta.number())
    }
}

impl PartialEq for UserNamespace {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for UserNamespace {}

impl UserNamespace {
    /// The first one, in which a number is what it is. There is one, whatever kernels there are: it never changes.
    #[must_use]
    pub fn root() -> &'static Arc<Self> {
        static ROOT: LazyLock<Arc<UserNamespace>> = LazyLock::new(|| {
            Arc::new(UserNamespace {
                meta: Meta::first(Kind::User),
                parent: None,
                level: 0,
                owner: 0,
                maps: Default::default(),
                may_set_groups: AtomicBool::new(true),
                parent_had_setfcap: true,
                changing: Mutex::default(),
                _charge: None,
            })
        });
        &ROOT
    }

    /// A new one, made by who has these credentials (`create_user_ns`).
    ///
    /// # Errors
    /// ENOSPC: too deep, or too many; EPERM where its maker has no number in its own.
    pub(crate) fn new(by: &Credentials) -> Result<Arc<Self>, Errno> {
        let parent = Arc::clone(&by.user_ns);
        if parent.level > DEPTH_MAX {
            return Err(Errno::ENOSPC);
        }
        if parent.uid_up(by.euid) == INVALID || parent.gid_up(by.egid) == INVALID {
            return Err(Errno::EPERM);
        }
        Ok(Arc::new(Self {
            meta: Meta::new(Kind::User),
            level: parent.level + 1,
            owner: by.euid,
            maps: Default::default(),
            may_set_groups: AtomicBool::new(parent.may_set_groups.load(Ordering::Relaxed)),
            parent_had_setfcap: by.capable_here(capability::SETFCAP),
            parent: Some(parent),
            changing: Mutex::default(),
            _charge: Some(Charge::take(Kind::User)?),
        }))
    }

    /// Its number and kind.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The one that it lies in.
    #[must_use]
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Who made it.
    #[must_use]
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Whether it is the first one.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// Whether this is it, or lies in it.
    #[must_use]
    pub fn is_within(&self, outer: &Self) -> bool {
        let mut at = Some(self);
        while let Some(namespace) = at {
            if namespace == outer {
                return true;
            }
            at = namespace.parent.as_deref();
        }
        false
    }

    fn map(&self, kind: MapKind) -> Option<&Map> {
        self.maps[kind as usize].get()
    }

    fn down(&self, kind: MapKind, id: u32) -> u32 {
        if self.is_root() { id } else { self.map(kind).map_or(INVALID, |map| map.down(id)) }
    }

    fn up(&self, kind: MapKind, id: u32) -> u32 {
        if self.is_root() { id } else { self.map(kind).map_or(INVALID, |map| map.up(id)) }
    }

    /// The user that a program here names (`make_kuid`); [`INVALID`] for none.
    #[must_use]
    pub fn uid(&self, id: u32) -> u32 {
        self.down(MapKind::Users, id)
    }

    /// The group that a program here names.
    #[must_use]
    pub fn gid(&self, id: u32) -> u32 {
        self.down(MapKind::Groups, id)
    }

    /// A user's number here (`from_kuid`); [`INVALID`] where it has none.
    #[must_use]
    pub fn uid_up(&self, id: u32) -> u32 {
        self.up(MapKind::Users, id)
    }

    /// A group's number here.
    #[must_use]
    pub fn gid_up(&self, id: u32) -> u32 {
        self.up(MapKind::Groups, id)
    }

    /// A user as a program here is shown it (`from_kuid_munged`).
    #[must_use]
    pub fn shown_uid(&self, id: u32) -> u32 {
        Some(self.uid_up(id)).filter(|id| *id != INVALID).unwrap_or(OVERFLOW)
    }

    /// A group as a program here is shown it.
    #[must_use]
    pub fn shown_gid(&self, id: u32) -> u32 {
        Some(self.gid_up(id)).filter(|id| *id != INVALID).unwrap_or(OVERFLOW)
    }

    /// Whether users and groups have their numbers for good.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.is_root() || self.map(MapKind::Users).is_some() && self.map(MapKind::Groups).is_some()
    }

    /// Whether `setgroups` may be called: once groups are mapped, and it was not forbidden.
    #[must_use]
    pub fn may_set_groups(&self) -> bool {
        self.is_root() || self.map(MapKind::Groups).is_some() && self.may_set_groups.load(Ordering::Relaxed)
    }

    /// The text of `setgroups`.
    #[must_use]
    pub fn set_groups_text(&self) -> &'static str {
        if self.may_set_groups.load(Ordering::Relaxed) { "allow\n" } else { "deny\n" }
    }

    /// Writes `setgroups` (`proc_setgroups_write`).
    ///
    /// # Errors
    /// EINVAL for any other text, EPERM once it is too late.
    pub fn write_set_groups(&self, text: &[u8]) -> Result<(), Errno> {
        let text = text.trim_ascii_end();
        let _changing = lock(&self.changing);
        match text {
            b"allow" if self.may_set_groups.load(Ordering::Relaxed) => Ok(()),
            b"deny" if self.is_root() || self.map(MapKind::Groups).is_some() => Err(Errno::EPERM),
            b"deny" => {
                self.may_set_groups.store(false, Ordering::Relaxed);
                Ok(())
            }
            b"allow" => Err(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }

    /// A map as text, for a reader in `reader`'s namespace: what lies below is shown as that one numbers it, or as the parent does where the
    /// reader is in this very namespace (`m_start` and `uid_m_show`).
    #[must_use]
    pub fn map_text(&self, kind: MapKind, reader: &Self) -> String {
        let lower = match &self.parent {
            Some(parent) if reader == self => parent,
            _ => reader,
        };
        let line = |first: u32, below: u32, count: u32| format!("{first:10} {below:10} {count:10}\n");
        if self.is_root() {
            return line(0, lower.up(kind, 0), INVALID);
        }
        let extents = self.map(kind).map(|map| map.0.as_slice()).unwrap_or_default();
        extents.iter().map(|extent| line(extent.first, lower.up(kind, extent.below), extent.count)).collect()
    }

    /// Writes a map, once (`map_write`). `opener`: who opened the file; `writer`: who writes.
    ///
    /// # Errors
    /// EPERM where it was written already or the writer may not; EINVAL for a text that is none.
    pub fn write_map(
        &self,
        kind: MapKind,
        text: &[u8],
        opener: &Credentials,
        writer: &Credentials,
    ) -> Result<(), Errno> {
        let Some(parent) = &self.parent else { return Err(Errno::EPERM) };
        if *opener.user_ns != *self && opener.user_ns != *parent {
            return Err(Errno::EPERM);
        }
        let _changing = lock(&self.changing);
        if self.map(kind).is_some() {
            return Err(Errno::EPERM);
        }
        if kind != MapKind::Projects && !opener.capable_in(self, capability::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let mut extents = parse(text)?;
        self.check_map(kind, &extents, opener, writer, parent)?;
        for extent in &mut extents {
            // All of a stretch is in one stretch of the parent, or there is no such number.
            let last = parent.down(kind, extent.below.saturating_add(extent.count - 1));
            let first = parent.down(kind, extent.below);
            if first == INVALID || last == INVALID || last.wrapping_sub(first) != extent.count - 1 {
                return Err(Errno::EPERM);
            }
            extent.below = first;
        }
        let _ = self.maps[kind as usize].set(Map(extents));
        Ok(())
    }

    /// `new_idmap_permitted`.
    fn check_map(
        &self,
        kind: MapKind,
        extents: &[Extent],
        opener: &Credentials,
        writer: &Credentials,
        parent: &Arc<Self>,
    ) -> Result<(), Errno> {
        if kind == MapKind::Users && extents.iter().any(|extent| extent.below == 0) {
            let by_itself = *opener.user_ns == *self;
            let privileged = if by_itself {
                self.parent_had_setfcap
            } else {
                opener.capable_in(parent, capability::SETFCAP)
            };
            if !privileged {
                return Err(Errno::EPERM);
            }
        }
        if let [one] = extents
            && one.count == 1
            && opener.euid == self.owner
        {
            let alone = match kind {
                MapKind::Users => parent.uid(one.below) == opener.euid,
                MapKind::Groups => {
                    !self.may_set_groups.load(Ordering::Relaxed) && parent.gid(one.below) == opener.egid
                }
                MapKind::Projects => false,
            };
            if alone {
                return Ok(());
            }
        }
        let needed = match kind {
            MapKind::Users => capability::SETUID,
            MapKind::Groups => capability::SETGID,
            MapKind::Projects => return Ok(()),
        };
        if writer.capable_in(parent, needed) && opener.capable_in(parent, needed) {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }
}

fn parse(text: &[u8]) -> Result<Vec<Extent>, Errno> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let mut extents = Vec::new();
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        let mut words = line.split_ascii_whitespace().map(|word| word.parse::<u32>().ok());
        let mut word = || words.next().flatten().ok_or(Errno::EINVAL);
        let extent = Extent { first: word()?, below: word()?, count: word()? };
        if line.split_ascii_whitespace().count() != 3 || extent.count == 0 {
            return Err(Errno::EINVAL);
        }
        let ends = |first: u32| first != INVALID && first.checked_add(extent.count).is_some();
        if !ends(extent.first) || !ends(extent.below) || extents.iter().any(|other| overlaps(&extent, other))
        {
            return Err(Errno::EINVAL);
        }
        extents.push(extent);
        if extents.len() > EXTENTS_MAX {
            return Err(Errno::EINVAL);
        }
    }
    Ok(extents)
}

fn overlaps(one: &Extent, other: &Extent) -> bool {
    let meet = |a: u32, b: u32| a < b.saturating_add(other.count) && b < a.saturating_add(one.count);
    meet(one.first, other.first) || meet(one.below, other.below)
}

impl Credentials {
    /// Whether a capability is in force in a namespace: in one's own and those in it; who made a namespace has all in it (`cap_capable`).
    #[must_use]
    pub fn capable_in(&self, namespace: &UserNamespace, capability: u32) -> bool {
        let mut at = namespace;
        loop {
            if *at == *self.user_ns {
                return self.effective.has(capability);
            }
            if at.level <= self.user_ns.level {
                return false;
            }
            let Some(parent) = at.parent.as_deref() else { return false };
            if *parent == *self.user_ns && at.owner == self.euid {
                return true;
            }
            at = parent;
        }
    }

    /// Whether a capability is in force in one's own namespace.
    #[must_use]
    pub fn capable_here(&self, capability: u32) -> bool {
        self.effective.has(capability)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn user(uid: u32) -> Credentials {
        let root = Credentials::root();
        Credentials { gid: uid, egid: uid, sgid: uid, fsgid: uid, ..root.with_users(uid, uid, uid) }
    }

    fn inside(space: &Arc<UserNamespace>, by: &Credentials) -> Credentials {
        by.in_user_namespace(Arc::clone(space))
    }

    #[test]
    fn a_user_maps_itself_and_no_one_else() {
        let outside = user(1000);
        let space = UserNamespace::new(&outside).unwrap();
        let who = inside(&space, &outside);
        assert_eq!(space.shown_uid(1000), OVERFLOW);
        let users = |text: &[u8]| space.write_map(MapKind::Users, text, &who, &who);
        assert_eq!(users(b"0 0 1\n"), Err(Errno::EPERM));
        assert_eq!(users(b"0 1001 1\n"), Err(Errno::EPERM));
        assert_eq!(users(b"0 1000 2\n"), Err(Errno::EPERM));
        assert_eq!(users(b"0 1000 1\n"), Ok(()));
        assert_eq!(users(b"0 1000 1\n"), Err(Errno::EPERM));
        assert_eq!((space.shown_uid(1000), space.uid(0), space.uid(1)), (0, 1000, INVALID));
        let groups = || space.write_map(MapKind::Groups, b"0 1000 1", &who, &who);
        assert_eq!(groups(), Err(Errno::EPERM));
        assert_eq!(space.write_set_groups(b"deny"), Ok(()));
        assert_eq!(groups(), Ok(()));
        assert_eq!(space.write_set_groups(b"deny"), Err(Errno::EPERM));
        assert!(!space.may_set_groups() && space.is_mapped());
        assert_eq!(space.map_text(MapKind::Users, &space), "         0       1000          1\n");
    }

    #[test]
    fn root_maps_ranges_of_its_own() {
        let root = Credentials::root();
        let space = UserNamespace::new(&root).unwrap();
        let users = |text: &[u8]| space.write_map(MapKind::Users, text, &root, &root);
        for bad in [
            &b""[..],
            b"0 0",
            b"0 0 0",
            b"0 0 1 1",
            b"a 0 1",
            b"0 5 2\n1 9 1",
            b"0 5 2\n9 6 1",
            b"4294967295 0 1",
        ] {
            assert_eq!(users(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(users(b"0 100000 1000\n1000 5 1\n"), Ok(()));
        let who = inside(&space, &root);
        let inner = UserNamespace::new(&Credentials { euid: 100_000, egid: 100_000, ..who.clone() });
        assert_eq!(inner.err(), Some(Errno::EPERM), "its group has no number yet");
        assert_eq!(space.write_map(MapKind::Groups, b"0 100000 1000", &root, &root), Ok(()));
        let maker = Credentials { euid: 100_000, egid: 100_000, ..who };
        let inner = UserNamespace::new(&maker).unwrap();
        assert_eq!(inner.write_map(MapKind::Users, b"0 999 2", &maker, &maker), Err(Errno::EPERM));
        assert_eq!(inner.write_map(MapKind::Users, b"7 999 1", &maker, &maker), Ok(()));
        assert_eq!((inner.uid(7), inner.shown_uid(100_999)), (100_999, 7));
        assert_eq!(
            inner.map_text(MapKind::Users, UserNamespace::root()),
            "         7     100999          1\n"
        );
    }

    #[test]
    fn capabilities_count_in_the_own_namespace_and_those_below() {
        let outside = user(1000);
        let space = UserNamespace::new(&outside).unwrap();
        let who = inside(&space, &outside);
        assert!(who.capable_in(&space, capability::SYS_ADMIN) && !who.capable(capability::SYS_ADMIN));
        assert!(outside.capable_in(&space, capability::SYS_ADMIN), "its maker");
        assert!(!user(1001).capable_in(&space, capability::SYS_ADMIN));
        assert!(Credentials::root().capable_in(&space, capability::KILL));
        assert_eq!(UserNamespace::new(&who).err(), Some(Errno::EPERM), "nobody there has a number");
    }

    #[test]
    fn there_is_a_bound_of_depth() {
        let root = Credentials::root();
        let mut who = root.clone();
        let error = loop {
            match UserNamespace::new(&who) {
                Ok(next) => {
                    for kind in [MapKind::Users, MapKind::Groups] {
                        next.write_map(kind, b"0 0 10", &who, &who).unwrap();
                    }
                    who = inside(&next, &who);
                }
                Err(errno) => break errno,
            }
        };
        assert_eq!((error, who.user_ns.level), (Errno::ENOSPC, DEPTH_MAX + 1));
    }
}
