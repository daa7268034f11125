//! Namespaces (`man 7 namespaces`; `kernel/nsproxy.c`).
//!
//! | kind | where it is |
//! |---|---|
//! | users | [`UserNamespace`], part of [`Credentials`](super::Credentials) |
//! | processes | [`PidNamespace`]: that of a task is its [`ThreadGroup`](super::ThreadGroup)'s; that of its children is here |
//! | mounts | [`crate::vfs::mount::MountNamespace`] |
//! | names of the machine, IPC, network, control groups | [`Names`], [`IpcNamespace`], [`NetNamespace`], [`Cgroups`] |
//! | time | there is one; none can be made (as Linux without `CONFIG_TIME_NS`) |
//!
//! A task holds one [`Namespaces`], which never changes: `unshare` and `setns` put another in its place.
//!
//! **Locks** here are leaves: nothing is called under them.

mod enter;
mod pid;
mod user;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(super) use enter::for_clone;
pub use enter::{all_of_task, enter, of_task, unshare};
pub use pid::PidNamespace;
pub(super) use pid::{Numbers, PID_MAX, RESERVED};
pub use user::{DEPTH_MAX, INVALID, MapKind, OVERFLOW, UserNamespace};

use super::lock;
use crate::error::Errno;
use crate::ipc::Ipc;
use crate::net::Net;
use crate::vfs::mount::MountNamespace;

/// Namespaces of one kind that there can be at once.
const EACH_MAX: usize = 4096;

/// A kind of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Control groups.
    Cgroup,
    /// System V IPC, POSIX message queues.
    Ipc,
    /// Mounts.
    Mount,
    /// Network.
    Net,
    /// Processes.
    Pid,
    /// Users.
    User,
    /// Names of the machine.
    Uts,
    /// Time.
    Time,
}

impl Kind {
    /// Its flag of `clone`, which `NS_GET_NSTYPE` gives too.
    #[must_use]
    pub fn flag(self) -> u64 {
        match self {
            Self::Cgroup => 0x200_0000,
            Self::Ipc => 0x800_0000,
            Self::Mount => 0x2_0000,
            Self::Net => 0x4000_0000,
            Self::Pid => 0x2000_0000,
            Self::User => 0x1000_0000,
            Self::Uts => 0x400_0000,
            Self::Time => 0x80,
        }
    }

    /// What a link to one shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mount => "mnt",
            Self::Net => "net",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Uts => "uts",
            Self::Time => "time",
        }
    }

    /// Number of the first one (`include/linux/proc_ns.h`; those of mounts and the network as a kernel counts on).
    fn first(self) -> u64 {
        match self {
            Self::Time => 4_026_531_834,
            Self::Cgroup => 4_026_531_835,
            Self::Pid => 4_026_531_836,
            Self::User => 4_026_531_837,
            Self::Uts => 4_026_531_838,
            Self::Ipc => 4_026_531_839,
            Self::Net => 4_026_531_840,
            Self::Mount => 4_026_531_841,
        }
    }
}

/// What is true of every namespace.
#[derive(Debug)]
pub struct Meta {
    kind: Kind,
    number: u64,
}

impl Meta {
    /// Of the first one of a kind.
    pub(crate) fn first(kind: Kind) -> Self {
        Self { kind, number: kind.first() }
    }

    /// Of another one.
    pub(crate) fn new(kind: Kind) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(4_026_532_000);
        Self { kind, number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its number (that of its inode).
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// A namespace counts against the bound of its kind.
#[derive(Debug)]
pub(crate) struct Charge(Kind);

static COUNTS: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];

impl Charge {
    /// ENOSPC where there are too many.
    pub(crate) fn take(kind: Kind) -> Result<Self, Errno> {
        let count = &COUNTS[kind as usize];
        if count.fetch_add(1, Ordering::Relaxed) >= EACH_MAX {
            count.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        Ok(Self(kind))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        COUNTS[self.0 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Names of the machine (`man 2 uname`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uts {
    /// `nodename`: up to 64 bytes.
    pub host: Vec<u8>,
    /// `domainname`: up to 64 bytes.
    pub domain: Vec<u8>,
}

impl Default for Uts {
    fn default() -> Self {
        Self { host: b"localhost".to_vec(), domain: b"(none)".to_vec() }
    }
}

macro_rules! namespace {
    ($(#[$doc:meta])* $name:ident, $kind:expr, $content:ident: $type:ty) => {
        $(#[$doc])*
        pub struct $name {
            meta: Meta,
            owner: Arc<UserNamespace>,
            $content: $type,
            _charge: Option<Charge>,
        }

        impl $name {
            fn first($content: $type) -> Arc<Self> {
                let owner = Arc::clone(UserNamespace::root());
                Arc::new(Self { meta: Meta::first($kind), owner, $content, _charge: None })
            }

            fn new(owner: &Arc<UserNamespace>, $content: $type) -> Result<Arc<Self>, Errno> {
                let (meta, owner) = (Meta::new($kind), Arc::clone(owner));
                Ok(Arc::new(Self { meta, owner, $content, _charge: Some(Charge::take($kind)?) }))
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

            /// What is in it.
            #[must_use]
            pub fn $content(&self) -> &$type {
                &self.$content
            }
        }
    };
}

namespace!(
    /// A namespace of the machine's names.
    Names, Kind::Uts, uts: Mutex<Uts>
);
namespace!(
    /// A namespace of System V IPC and POSIX message queues.
    IpcNamespace, Kind::Ipc, ipc: Arc<Ipc>
);
namespace!(
    /// A network: addresses, ports, abstract names.
    NetNamespace, Kind::Net, net: Arc<Net>
);
namespace!(
    /// A view of the control groups; there is one group, so that all look alike.
    Cgroups, Kind::Cgroup, root: ()
);

/// The namespaces of a task (`struct nsproxy`).
#[derive(Clone)]
pub struct Namespaces {
    /// Names of the machine.
    pub names: Arc<Names>,
    /// IPC.
    pub ipc: Arc<IpcNamespace>,
    /// Network.
    pub net: Arc<NetNamespace>,
    /// Control groups.
    pub cgroups: Arc<Cgroups>,
    /// Mounts.
    pub mounts: Arc<MountNamespace>,
    /// Processes that the task makes.
    pub pids_for_children: Arc<PidNamespace>,
}

impl Namespaces {
    /// Those that a kernel begins with, with an empty tree of mounts.
    pub(super) fn first(pids: &Arc<PidNamespace>) -> Self {
        Self {
            names: Names::first(Mutex::default()),
            ipc: IpcNamespace::first(Arc::default()),
            net: NetNamespace::first(Net::new()),
            cgroups: Cgroups::first(()),
            mounts: MountNamespace::empty(),
            pids_for_children: Arc::clone(pids),
        }
    }

    /// A copy of which everything that `flags` of `clone` name is new, and its owner `owner`. Mounts and processes are the caller's to
    /// replace.
    ///
    /// # Errors
    /// ENOSPC: too many.
    pub(crate) fn renewed(&self, flags: u64, owner: &Arc<UserNamespace>) -> Result<Self, Errno> {
        let wants = |kind: Kind| flags & kind.flag() != 0;
        let mut new = self.clone();
        if wants(Kind::Uts) {
            let names = lock(self.names.uts()).clone();
            new.names = Names::new(owner, Mutex::new(names))?;
        }
        if wants(Kind::Ipc) {
            new.ipc = IpcNamespace::new(owner, Arc::default())?;
        }
        if wants(Kind::Net) {
            let net = self.net.net().beside(owner);
            new.net = NetNamespace::new(owner, net)?;
        }
        if wants(Kind::Cgroup) {
            new.cgroups = Cgroups::new(owner, ())?;
        }
        Ok(new)
    }
}

/// Any namespace, as a file of `/proc/…/ns` holds it.
#[derive(Clone)]
#[allow(missing_docs, reason = "the kinds")]
pub enum AnyNamespace {
    Cgroup(Arc<Cgroups>),
    Ipc(Arc<IpcNamespace>),
    Mount(Arc<MountNamespace>),
    Net(Arc<NetNamespace>),
    Pid(Arc<PidNamespace>),
    User(Arc<UserNamespace>),
    Uts(Arc<Names>),
    Time,
}

impl AnyNamespace {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cgroup(_) => Kind::Cgroup,
            Self::Ipc(_) => Kind::Ipc,
            Self::Mount(_) => Kind::Mount,
            Self::Net(_) => Kind::Net,
            Self::Pid(_) => Kind::Pid,
            Self::User(_) => Kind::User,
            Self::Uts(_) => Kind::Uts,
            Self::Time => Kind::Time,
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        match self {
            Self::Cgroup(space) => space.meta().number(),
            Self::Ipc(space) => space.meta().number(),
            Self::Mount(space) => space.meta().number(),
            Self::Net(space) => space.meta().number(),
            Self::Pid(space) => space.meta().number(),
            Self::User(space) => space.meta().number(),
            Self::Uts(space) => space.meta().number(),
            Self::Time => Kind::Time.first(),
        }
    }

    /// Whose capabilities count in it; for users the one that it lies in.
    #[must_use]
    pub fn owner(&self) -> Option<Arc<UserNamespace>> {
        Some(Arc::clone(match self {
            Self::Cgroup(space) => space.owner(),
            Self::Ipc(space) => space.owner(),
            Self::Mount(space) => space.owner(),
            Self::Net(space) => space.owner(),
            Self::Pid(space) => space.owner(),
            Self::User(space) => space.parent()?,
            Self::Uts(space) => space.owner(),
            Self::Time => UserNamespace::root(),
        }))
    }
}
