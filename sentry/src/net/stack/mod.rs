//! The network outside the sandbox: a TCP/IP stack below the sockets (decision 0027).
//!
//! | part | what it is |
//! |---|---|
//! | [`LinkConfig`] | an interface as it is handed in: names, addresses, routes |
//! | `device` | frames at a descriptor: packet socket or tap |
//! | `frame` | headers and checksums |
//! | `interface` | an interface that is attached; `neighbours`: whose hardware address is which |
//! | `route` | where packets go |
//! | `input`, `icmp`, `fragments` | what comes |
//! | `output` | datagrams that go |
//! | `tcp` | connections |
//! | `past` | connections that are over and not forgotten |
//! | `thread`, `timers`, `wake` | the thread that receives, and does what is to be done at a time |
//!
//! **Threads.** Whoever sends writes frames to the device by itself. One thread receives, for all interfaces, and sleeps in `poll` otherwise: where
//! nothing comes and nothing is due, nothing runs.
//!
//! **What is believed.** Nothing that comes: every header is parsed by `smoltcp` or by code without indexing, every table has a limit, and
//! what does not fit is dropped.
//!
//! **Locks**, between those of a socket's state and of its queues (see [`crate::net`]): a connection's machine; then, for a moment each and
//! none within another: tables of connections and of the past, neighbours, fragments, timers. When it has news for a socket, a machine is
//! unlocked first.

mod config;
mod device;
mod fragments;
mod frame;
mod icmp;
mod input;
mod interface;
mod neighbours;
mod output;
mod past;
mod route;
mod tcp;
mod thread;
mod timers;
mod wake;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Instant;

pub use config::{ConfigError, LinkConfig, NeighbourConfig, Prefix, RouteConfig};
pub(crate) use icmp::echo_answer;
pub use interface::{Counters, Interface};
pub(crate) use output::{Datagram, udp_header};
pub(crate) use route::Path;
pub(crate) use tcp::machine::Settings;
pub(crate) use tcp::{Connection, Measures};

use super::buffer::ByteQueue;
use super::inet::Tcp;
use super::pair::End;
use super::{Common, Net, lock};
use crate::error::Errno;
use crate::sync::{read, write};
use tcp::segment::{Header, Segment, Seq};
use tcp::{Begin, Machine, Names, Opening};

/// Checksum of an ICMPv6 message whose own field is 0.
pub(crate) fn icmp6_checksum(from: std::net::IpAddr, to: std::net::IpAddr, bytes: &[u8]) -> u16 {
    frame::checksum(from, to, smoltcp::wire::IpProtocol::Icmpv6, bytes)
}

/// Connections at one time.
const CONNECTIONS: usize = 65_536;
/// Those of them whose opening has not ended (`net.ipv4.tcp_max_syn_backlog`).
const OPENINGS: usize = 4096;
/// Interfaces.
const INTERFACES: usize = 16;

/// Why an interface cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Its configuration is no good.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is one of this name.
    #[error("there is an interface {0} already: take another name, or detach it first")]
    Exists(String),
    /// There is none of this name.
    #[error("there is no interface {0}")]
    Missing(String),
    /// Too many.
    #[error("a sandbox has at most {INTERFACES} interfaces")]
    Many,
    /// Reading it would wait.
    #[error("the descriptor of interface {0} must not wait: open it with O_NONBLOCK")]
    Waits(String),
    /// The host refuses something.
    #[error("the thread of the network: {0}")]
    Thread(Errno),
}

/// The stack of a sandbox.
pub struct Stack {
    net: Weak<Net>,
    interfaces: RwLock<Vec<Arc<Interface>>>,
    /// Numbers of interfaces that were given.
    numbers: AtomicUsize,
    /// Counts changes of addresses, routes and of how long packets may be.
    generation: AtomicU64,
    connections: Mutex<HashMap<Names, Arc<Connection>>>,
    openings: AtomicUsize,
    past: Mutex<past::Past>,
    mtus: Mutex<route::Mtus>,
    fragments: Mutex<fragments::Fragments>,
    /// Those that wait until a device takes frames again.
    waiting: Mutex<Vec<Weak<Connection>>>,
    timers: Arc<timers::Timers>,
    errors: Mutex<icmp::Allowance>,
    secret: RandomState,
    began: Instant,
    idents: AtomicUsize,
}

impl Stack {
    /// Without an interface; its thread runs.
    ///
    /// # Errors
    /// The host refuses descriptors or a thread.
    pub(crate) fn start(net: &Arc<Net>) -> Result<Arc<Self>, AttachError> {
        let waker = wake::Waker::new().map_err(AttachError::Thread)?;
        let stack = Arc::new(Self {
            net: Arc::downgrade(net),
            interfaces: RwLock::default(),
            numbers: AtomicUsize::new(2),
            generation: AtomicU64::new(0),
            connections: Mutex::default(),
            openings: AtomicUsize::new(0),
            past: Mutex::default(),
            mtus: Mutex::default(),
            fragments: Mutex::default(),
            waiting: Mutex::default(),
            timers: Arc::new(timers::Timers::new(waker)),
            errors: Mutex::default(),
            secret: RandomState::new(),
            began: Instant::now(),
            idents: AtomicUsize::new(0),
        });
        thread::start(&stack).map_err(AttachError::Thread)?;
        Ok(stack)
    }

    /// Interfaces, in the order of their numbers.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Arc<Interface>> {
        read(&self.interfaces).clone()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(net) = self.net.upgrade() {
            let all = self.interfaces();
            let addresses = all.iter().flat_map(|link| link.config().addresses).map(|prefix| prefix.ip);
            net.set_addresses(addresses.collect());
        }
    }

    /// Attaches an interface whose frames are at a descriptor.
    pub(crate) fn attach(&self, config: LinkConfig, fd: OwnedFd) -> Result<(), AttachError> {
        config.check()?;
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL).map_err(AttachError::Thread)?;
        if flags & libc::O_NONBLOCK == 0 {
            return Err(AttachError::Waits(config.name));
        }
        let mut interfaces = write(&self.interfaces);
        if interfaces.iter().any(|link| link.name() == config.name) {
            return Err(AttachError::Exists(config.name));
        }
        if interfaces.len() >= INTERFACES {
            return Err(AttachError::Many);
        }
        let number = u32::try_from(self.numbers.fetch_add(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
        let link = Arc::new(Interface::new(number, config, fd));
        interfaces.push(Arc::clone(&link));
        drop(interfaces);
        self.changed();
        self.tell_own_groups(&link);
        self.timers.waker().wake();
        Ok(())
    }

    /// Gives an interface other addresses, routes and neighbours; its name and hardware address stay.
    pub(crate) fn configure(&self, config: LinkConfig) -> Result<(), AttachError> {
        config.check()?;
        let link = self.interfaces().into_iter().find(|link| link.name() == config.name);
        let link = link.ok_or(AttachError::Missing(config.name.clone()))?;
        link.configure(config);
        self.changed();
        Ok(())
    }

    /// Lets an interface go.
    pub(crate) fn detach(&self, name: &str) -> Result<(), AttachError> {
        let mut interfaces = write(&self.interfaces);
        let at = interfaces.iter().position(|link| link.name() == name);
        let gone = interfaces.remove(at.ok_or_else(|| AttachError::Missing(name.to_owned()))?);
        drop(interfaces);
        drop(gone);
        self.changed();
        self.timers.waker().wake();
        Ok(())
    }

    pub(crate) fn next_ident(&self) -> u16 {
        (self.idents.fetch_add(1, Ordering::Relaxed) & 0xffff) as u16
    }

    /// First sequence number of a connection (RFC 6528), and what its timestamps begin with.
    fn first_numbers(&self, names: Names) -> (Seq, u32) {
        let hash = self.secret.hash_one(names);
        let clock = self.began.elapsed().as_micros() / 4;
        let first = (hash as u32).wrapping_add((clock & u128::from(u32::MAX)) as u32);
        (Seq(first), (hash >> 32) as u32)
    }

    fn begin(&self, names: Names, path: &Path, common: &Common) -> Begin {
        let (first, stamp) = self.first_numbers(names);
        let overhead = frame::header_length(names[1].ip()).saturating_add(20);
        let settings = super::inet::settings(common);
        Begin { first, stamp, mss: path.mtu.saturating_sub(overhead), settings, now: Instant::now() }
    }

    fn insert(&self, connection: &Arc<Connection>) -> Result<(), Errno> {
        let mut connections = lock(&self.connections);
        if connections.len() >= CONNECTIONS {
            return Err(Errno::ENOBUFS);
        }
        if connections.contains_key(&connection.names()) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        connections.insert(connection.names(), Arc::clone(connection));
        Ok(())
    }

    /// Begins to connect a socket: the end that it gets when the connection is there.
    ///
    /// # Errors
    /// EADDRNOTAVAIL where there is such a connection; ENOBUFS.
    pub(crate) fn connect(
        self: &Arc<Self>,
        client: &Arc<Tcp>,
        common: &Arc<Common>,
        names: Names,
        path: Path,
        queues: [ByteQueue; 2],
    ) -> Result<End<ByteQueue>, Errno> {
        let [ours, theirs] = End::pair([common, common], queues);
        let machine = Machine::connect(theirs, &self.begin(names, &path, common));
        let opening = Opening::Active(Arc::downgrade(client), ours.clone());
        let connection = Connection::new(self, names, common, (machine, ours.clone()), (path, opening));
        lock(&self.past).forget(names);
        self.insert(&connection)?;
        self.openings.fetch_add(1, Ordering::Relaxed);
        connection.pump();
        Ok(ours)
    }

    /// An opening has ended, one way or the other.
    pub(crate) fn opened(&self, opening: Option<&Opening>) {
        if opening.is_some() {
            let less = |count: usize| Some(count.saturating_sub(1));
            let _ = self.openings.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// A SYN for whoever listens there.
    fn knock(self: &Arc<Self>, net: &Net, names: Names, segment: &Segment<'_>) {
        let [local, remote] = names;
        let found = net.inet.tcp.find(local, remote, true);
        let Some(listener) = found.as_deref().and_then(|found| found.downcast::<Tcp>()) else {
            return self.answer_reset(names, segment);
        };
        if self.openings.load(Ordering::Relaxed) >= OPENINGS || listener.is_full() {
            return;
        }
        let Ok(path) = self.path(remote.ip(), Some(local.ip())) else { return };
        let Ok((child, [ours, theirs])) = listener.child_from_outside(names) else { return };
        let common = Arc::clone(super::socket::Socket::common(child.as_ref()));
        let machine = Machine::accept(theirs, &self.begin(names, &path, &common), segment);
        let opening = Opening::Passive(listener.weak(), Arc::clone(&child));
        let connection = Connection::new(self, names, &common, (machine, ours), (path, opening));
        if self.insert(&connection).is_err() {
            child.close_quietly();
            return;
        }
        self.openings.fetch_add(1, Ordering::Relaxed);
        connection.pump();
    }

    /// Whose connection a segment belongs to.
    fn connection(&self, names: Names) -> Option<Arc<Connection>> {
        lock(&self.connections).get(&names).cloned()
    }

    /// A segment came.
    fn segment(self: &Arc<Self>, net: &Net, names: Names, segment: &Segment<'_>) {
        if let Some(connection) = self.connection(names) {
            return connection.arrive(segment);
        }
        let answer = lock(&self.past).arrive(names, segment, Instant::now());
        match answer {
            past::Answer::Ignore => {}
            past::Answer::Send(header) => self.send_alone(names, &header),
            past::Answer::Unknown if segment.syn && segment.ack.is_none() => self.knock(net, names, segment),
            past::Answer::Unknown => self.answer_reset(names, segment),
        }
    }

    fn send_alone(&self, names: Names, header: &Header) {
        if let Ok(path) = self.path(names[1].ip(), Some(names[0].ip())) {
            tcp::send_alone(self, &path, names, header);
        }
    }

    /// Nobody waits for a segment (RFC 9293, 3.10.7.1).
    pub(crate) fn answer_reset(&self, names: Names, segment: &Segment<'_>) {
        if segment.rst {
            return;
        }
        let header = match segment.ack {
            Some(ack) => Header { seq: ack, rst: true, ..Header::default() },
            None => {
                let ack = Some(segment.seq.plus(segment.length()));
                Header { ack, rst: true, ..Header::default() }
            }
        };
        self.send_alone(names, &header);
    }

    /// A connection is over: where it closed first it is remembered (TIME_WAIT).
    pub(crate) fn forget(&self, names: Names, past: Option<past::Left>) {
        let gone = lock(&self.connections).remove(&names);
        if let (Some(_), Some(left)) = (&gone, past) {
            lock(&self.past).remember(names, left, Instant::now());
        }
        drop(gone);
    }

    /// Goes on with a connection when a device takes frames again.
    pub(crate) fn wait_for_room(&self, connection: &Weak<Connection>) {
        lock(&self.waiting).push(Weak::clone(connection));
        self.timers.waker().wake();
    }

    /// Connections in TIME_WAIT, for `/proc`.
    pub(crate) fn past(&self) -> Vec<Names> {
        lock(&self.past).names()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.timers.waker().wake();
    }
}
