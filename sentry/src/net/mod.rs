//! Sockets (`man 7 socket`): UNIX domain, the sandbox's own Internet addresses, netlink.
//!
//! | part | what it is |
//! |---|---|
//! | [`Net`] | what all sockets of a sandbox share: names, ports, limits |
//! | [`Socket`], [`SocketFile`] | what a socket of some family does; its open file |
//! | [`Common`] | what every socket has: type, options, pending error, who waits |
//! | `buffer`, `messages` | a stream's bytes; datagrams that wait to be received |
//! | [`unix`], [`inet`], [`netlink`] | families |
//! | `message`, `control` | `msghdr` and control messages between guest memory and the above |
//! | [`stack`] | packets: what is outside the sandbox |
//! | [`interfaces`] | `SIOCGIF*` |
//! | [`proc`] | texts of `/proc/net` |
//!
//! **The short path.** A connection between two sockets of the sandbox has no packets and no TCP machine: it is two queues of bytes. What is
//! sent is copied once, out of the sender's memory, and once more into the receiver's. What has another destination than the
//! sandbox' own addresses goes by [`stack`], into and out of the same queues.
//!
//! **Nothing here waits**, as in [`crate::vfs`]: EAGAIN, and system calls wait in `syscalls::sockets` on [`Common::queue`].
//!
//! **Limits.** Sockets of a kernel: [`SOCKETS`]. Bytes in all queues: [`QUEUED`]. Descriptors in flight: [`IN_FLIGHT`]. A socket that is in its
//! own queue, or two in each other's, are never received nor closed: Linux collects them (`net/unix/garbage.c`), here they count as in
//! flight until the sandbox ends, so that [`IN_FLIGHT`] bounds them.
//!
//! **Locks**, each taken before those below it:
//!
//! 1. name of a UNIX socket (held while its file is made: locks of [`crate::vfs`] come after it);
//! 2. state of a socket, one at a time: who connects says so in its own state, lets go of it, and then looks at the listener's;
//! 3. addresses or peer of a socket, one at a time;
//! 4. `reader` of a byte queue, `writer` of a byte queue (never both by one thread);
//! 5. contents of a queue (one at a time), guest memory being copied under it only for small writes;
//! 6. options of a socket; names, ports and the list of sockets in [`Net`] (moments: nothing is called under them);
//! 7. a wait queue.
//!
//! Descriptors that were in flight are dropped with no lock held, one after the other and never nested ([`control::Rights`]).

pub(crate) mod address;
pub(crate) mod buffer;
pub(crate) mod common;
pub(crate) mod control;
pub mod inet;
pub mod interfaces;
pub(crate) mod message;
pub(crate) mod messages;
pub mod netlink;
pub(crate) mod options;
pub(crate) mod pair;
pub mod proc;
mod socket;
pub mod stack;
pub mod unix;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

pub(crate) use crate::sync::lock;
use crate::sync::{read, write};
use crate::task::UserNamespace;

pub use common::{Common, Identity};
pub(crate) use options::Options;
pub use socket::SocketFile;
pub(crate) use socket::{Context, Outgoing, Receive, Socket, create, create_pair, option, set_option};

/// Sockets that a kernel can have.
pub const SOCKETS: usize = 262_144;
/// Bytes of memory that all queues of a kernel take.
pub const QUEUED: usize = 1 << 30;
/// Descriptors of a kernel that are in flight.
pub const IN_FLIGHT: usize = 16_384;
/// Longest backlog (`net.core.somaxconn`).
pub const BACKLOG: usize = 4096;

/// Counts what there is a limit for.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Takes some, if it is there.
    pub(crate) fn take(&self, amount: usize) -> bool {
        let fits = |used: usize| used.checked_add(amount).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Gives back what was taken.
    pub(crate) fn give(&self, amount: usize) {
        let less = |used: usize| Some(used.saturating_sub(amount));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What all sockets of a sandbox share.
pub struct Net {
    pub(crate) sockets: Arc<Budget>,
    pub(crate) bytes: Arc<Budget>,
    pub(crate) flight: Arc<Budget>,
    pub(crate) unix: unix::Names,
    pub(crate) inet: inet::Ports,
    pub(crate) netlink: netlink::Ports,
    addresses: RwLock<Vec<IpAddr>>,
    all: Mutex<BTreeMap<u64, Weak<dyn Socket>>>,
    stack: OnceLock<Arc<stack::Stack>>,
    /// Whose capabilities count for it.
    owner: Arc<UserNamespace>,
}

impl Net {
    /// With loopback alone.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            sockets: Arc::new(Budget::new(SOCKETS)),
            owner: Arc::clone(UserNamespace::root()),
            bytes: Arc::new(Budget::new(QUEUED)),
            flight: Arc::new(Budget::new(IN_FLIGHT)),
            unix: unix::Names::default(),
            inet: inet::Ports::default(),
            netlink: netlink::Ports::default(),
            addresses: RwLock::default(),
            all: Mutex::default(),
            stack: OnceLock::new(),
        })
    }

    /// Another network of the same sandbox, with loopback alone (`CLONE_NEWNET`). Bounds are common to all, and so are sockets' names
    /// that are files.
    #[must_use]
    pub fn beside(&self, owner: &Arc<UserNamespace>) -> Arc<Self> {
        Arc::new(Self {
            sockets: Arc::clone(&self.sockets),
            bytes: Arc::clone(&self.bytes),
            flight: Arc::clone(&self.flight),
            unix: self.unix.beside(),
            inet: inet::Ports::default(),
            netlink: netlink::Ports::default(),
            addresses: RwLock::default(),
            all: Mutex::default(),
            stack: OnceLock::new(),
            owner: Arc::clone(owner),
        })
    }

    /// Whose capabilities count for it.
    pub(crate) fn owner(&self) -> &Arc<UserNamespace> {
        &self.owner
    }

    /// Addresses of the sandbox besides 127.0.0.0/8 and ::1: those of its pod.
    pub fn set_addresses(&self, addresses: Vec<IpAddr>) {
        *write(&self.addresses) = addresses;
    }

    /// Those addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        read(&self.addresses).clone()
    }

    /// Whether an address is one of the sandbox'.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            address if address.is_loopback() => true,
            address => {
                let addresses = read(&self.addresses);
                addresses.contains(&address)
            }
        }
    }

    /// The stack for what is outside, where there is an interface.
    pub(crate) fn stack(&self) -> Option<&Arc<stack::Stack>> {
        self.stack.get()
    }

    /// Interfaces besides loopback.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Arc<stack::Interface>> {
        self.stack().map(|stack| stack.interfaces()).unwrap_or_default()
    }

    /// Attaches an interface of the pod, whose frames are at a descriptor: a packet socket that is bound to it, or a tap. A thread is started
    /// with the first one.
    ///
    /// # Errors
    /// See [`stack::AttachError`].
    pub fn attach(
        self: &Arc<Self>,
        config: stack::LinkConfig,
        fd: OwnedFd,
    ) -> Result<(), stack::AttachError> {
        if self.stack().is_none() {
            let started = stack::Stack::start(self)?;
            let _ = self.stack.set(started);
        }
        self.stack().map_or(Ok(()), |stack| stack.attach(config, fd))
    }

    /// Gives an interface, by its name, other addresses, routes and neighbours.
    ///
    /// # Errors
    /// There is none of this name; the configuration is no good.
    pub fn configure(&self, config: stack::LinkConfig) -> Result<(), stack::AttachError> {
        let missing = || stack::AttachError::Missing(config.name.clone());
        self.stack().ok_or_else(missing)?.configure(config)
    }

    /// Lets an interface go.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn detach(&self, name: &str) -> Result<(), stack::AttachError> {
        let missing = || stack::AttachError::Missing(name.to_owned());
        self.stack().ok_or_else(missing)?.detach(name)
    }

    /// Every socket, in the order of making.
    pub(crate) fn all(&self) -> Vec<Arc<dyn Socket>> {
        lock(&self.all).values().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn register(&self, socket: &Arc<dyn Socket>) {
        lock(&self.all).insert(socket.common().id(), Arc::downgrade(socket));
    }

    pub(crate) fn forget(&self, id: u64) {
        let gone = lock(&self.all).remove(&id);
        drop(gone);
    }
}

/// A signal that the caller writes where nobody reads (`man 7 pipe`): SIGPIPE, to the thread itself. The one place where sockets send it.
pub(crate) fn send_sigpipe(call: &mut crate::call::Call<'_>) {
    call.task.send_sigpipe();
}

#[cfg(test)]
mod host_tests;
