//! Takes the pod's interface over for a sandbox: before the sentry defends itself, while it may still ask the host for such things.
//!
//! [`open`] enters the pod's network namespace, reads by netlink what its interface is like, takes the addresses off it, so that the host's own
//! kernel does not answer for them, and opens a packet socket that is bound to it. A tap is opened the same way, but what it is like has to
//! be said. What comes back is a descriptor and a [`LinkConfig`], which [`crate::net::Net::attach`] wants.
//!
//! [`Pod`] takes over all interfaces of the namespace that the calling thread is in, sees what is new there later, and gives back what it took.

mod before;
mod look;
mod netlink;
mod packet;
mod pod;
mod spec;
mod tap;
mod users;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

use before::Before;
pub use netlink::news;
pub use pod::{Change, Found, Pod};
pub use spec::{Network, SpecError, Tap};

use crate::error::Errno;
use crate::net::stack::LinkConfig;

/// Why an interface cannot be taken over.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Its namespace cannot be entered.
    #[error("network namespace {path}: {error}; it must be there, and entering it needs CAP_SYS_ADMIN")]
    Namespace {
        /// Where it was looked for.
        path: PathBuf,
        /// What the host says.
        error: std::io::Error,
    },
    /// There is no such interface.
    #[error("there is no interface {0} in the network namespace: `ip link` lists those that there are")]
    Missing(String),
    /// It is of another kind.
    #[error("interface {0} is no Ethernet: a veth, a tap or a card is wanted")]
    Kind(String),
    /// It is down.
    #[error("interface {0} is down: `ip link set {0} up`")]
    Down(String),
    /// It is one that works by the addresses that the host's side has.
    #[error(
        "interface {0} is an ipvlan, to which the host's kernel gives packets by addresses that it would not have any more: \
         use a bridge, ptp or macvlan network"
    )]
    Shared(String),
    /// A process outside the sandbox would lose it.
    #[error(
        "interface {interface}: process {pid} ({name}), which is outside the sandbox, uses this network namespace as well, and would have no addresses \
         there any more: give the sandbox a namespace of its own, end that process, or allow it by `--network sandbox,seize` or by the \
         annotation dev.kata-cc.sentry.network: sandbox,seize"
    )]
    Used {
        /// The interface.
        interface: String,
        /// The process.
        pid: u32,
        /// What it is called.
        name: String,
    },
    /// It is the machine's own network.
    #[error(
        "this is the network namespace of process 1, the machine's own, which would be cut off: start the sandbox in a pod's namespace \
         (`ip netns exec POD …`), or name one interface (host-veth=…)"
    )]
    Machine,
    /// A step that the host refuses.
    #[error("interface {name}: {step}: {errno}; {way_out}")]
    Refused {
        /// The interface.
        name: String,
        /// What was to be done.
        step: &'static str,
        /// What the host says.
        errno: Errno,
        /// What could be done about it.
        way_out: &'static str,
    },
}

/// Makes errors of steps that the host refuses.
fn refused(name: &str, step: &'static str) -> impl Fn(Errno) -> LinkError {
    let name = name.to_owned();
    move |errno| {
        let way_out = match errno {
            Errno::EPERM | Errno::EACCES => "it needs CAP_NET_ADMIN and CAP_NET_RAW in the network namespace",
            Errno::ENOENT => "has the host's kernel the driver?",
            Errno::EBUSY => "is another process using it?",
            _ => "is it still there?",
        };
        LinkError::Refused { name: name.clone(), step, errno, way_out }
    }
}

/// An interface that was taken over.
#[derive(Debug)]
pub struct Opened {
    /// What it is like.
    pub config: LinkConfig,
    /// Where its frames are.
    pub fd: OwnedFd,
}

/// The network namespace that this thread is in until it is dropped.
struct Inside {
    back: Option<File>,
}

impl Inside {
    fn enter(path: Option<&Path>) -> Result<Self, LinkError> {
        let Some(path) = path else { return Ok(Self { back: None }) };
        let fail = |error| LinkError::Namespace { path: path.to_owned(), error };
        let back = File::open("/proc/thread-self/ns/net").map_err(fail)?;
        let target = File::open(path).map_err(fail)?;
        setns(&target, CloneFlags::CLONE_NEWNET).map_err(|errno| fail(errno.into()))?;
        Ok(Self { back: Some(back) })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(back) = &self.back
            && let Err(errno) = setns(back, CloneFlags::CLONE_NEWNET)
        {
            tracing::warn!(%errno, "the network namespace cannot be left again");
        }
    }
}

/// Whether this thread's network namespace is the machine's own, that of process 1. Where that cannot be told, it is: nothing of it is taken then.
fn is_of_machine() -> bool {
    let identity = |path: &str| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (identity("/proc/thread-self/ns/net"), identity("/proc/1/ns/net")) {
        (Ok(own), Ok(first)) => own == first,
        // Process 1 may not be looked at. The second setting is one of the first namespace alone (`net_core_table` in
        // `net/core/sysctl_net_core.c`), the first of all.
        _ => {
            let has = |setting: &str| Path::new("/proc/sys/net/core").join(setting).exists();
            has("netdev_budget") || !has("somaxconn")
        }
    }
}

/// All interfaces of this thread's network namespace, unless that is the machine's own. With `seize` they are taken from processes outside the
/// sandbox, too.
///
/// # Errors
/// [`LinkError::Machine`].
pub fn pod(seize: bool) -> Result<Pod, LinkError> {
    if is_of_machine() {
        return Err(LinkError::Machine);
    }
    let mut pod = Pod::default();
    if seize {
        pod.seize();
    }
    Ok(pod)
}

/// All that a pod has, or nothing of it.
fn take_all(mut pod: Pod) -> Result<Vec<Opened>, LinkError> {
    let Found { changes, failed } = pod.look(true)?;
    if let Some(error) = failed.into_iter().next() {
        pod.give_all_back();
        return Err(error);
    }
    let taken = |change| if let Change::Taken(opened) = change { Some(opened) } else { None };
    Ok(changes.into_iter().filter_map(taken).collect())
}

/// Takes over what a sandbox is to have. The calling thread is in the same network namespace afterwards.
///
/// # Errors
/// See [`LinkError`].
pub fn open(network: &Network) -> Result<Vec<Opened>, LinkError> {
    match network {
        Network::None => Ok(Vec::new()),
        Network::Sandbox { seize } => take_all(pod(*seize)?),
        Network::Interface { name, namespace } => {
            let _inside = Inside::enter(namespace.as_deref())?;
            packet::open(name).map(|opened| vec![opened])
        }
        Network::Tap { tap, namespace } => {
            let _inside = Inside::enter(namespace.as_deref())?;
            tap::open(tap).map(|opened| vec![opened])
        }
    }
}
