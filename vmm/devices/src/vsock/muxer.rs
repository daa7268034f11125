//! All connections: who is who, whose turn it is, and the host's sockets.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Produced};
use super::device::LocalPort;
use super::handshake::{Handshake, Step};
use super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PACKET, TYPE_STREAM, op};
use super::{MAX_CONNECTIONS, TOTAL_BUFFER};
use crate::GuestRam;
use crate::queue::{Chain, Segment, slice};
use crate::sys;

/// Ports of the host's ends of connections that the host asks for.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;
/// Resets for unknown connections that may wait; a guest that provokes more gets silence.
const MAX_RESETS: usize = 256;
const LISTENER: u64 = 0;
const EVENTS_PER_POLL: usize = 64;
/// More than a listener's backlog holds (`somaxconn`), so that one turn empties it.
const ACCEPTS_PER_TURN: usize = 8192;

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) opened_by_host: u64,
    pub(super) opened_by_guest: u64,
    pub(super) refused: u64,
    pub(super) tx_packets: u64,
    pub(super) tx_bytes: u64,
    pub(super) tx_malformed: u64,
    pub(super) rx_packets: u64,
    pub(super) rx_bytes: u64,
    pub(super) rx_too_small: u64,
    pub(super) resets_dropped: u64,
}

pub(super) struct Muxer {
    cid: u64,
    uds: PathBuf,
    listener: UnixListener,
    listening: bool,
    /// Clients may stand in the listener's backlog, of which its edge has told already.
    clients_waiting: bool,
    epoll: Epoll,
    local_ports: HashMap<u32, LocalPort>,
    connections: HashMap<Key, Connection>,
    by_token: HashMap<u64, Key>,
    handshakes: HashMap<u64, (UnixStream, Handshake)>,
    /// Connections that may have something to send; each at most once.
    ready: VecDeque<Key>,
    resets: VecDeque<Key>,
    next_token: u64,
    next_host_port: u32,
    backlog: usize,
    pub(super) counters: Counters,
}

impl Muxer {
    pub(super) fn new(cid: u32, uds: PathBuf, local_ports: HashMap<u32, LocalPort>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let listener = UnixListener::bind(&uds)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            cid: u64::from(cid),
            uds,
            listener,
            listening: false,
            clients_waiting: false,
            epoll,
            local_ports,
            connections: HashMap::new(),
            by_token: HashMap::new(),
            handshakes: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: LISTENER + 1,
            next_host_port: HOST_PORTS.start,
            backlog: 0,
            counters: Counters::default(),
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len() + self.handshakes.len()
    }

    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Takes clients from now on. Before, they wait in the listener's backlog.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        if !self.listening {
            // Edge-triggered: when the process has no descriptor left for a client, a level would keep the loop spinning.
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER);
            self.epoll.ctl(ControlOperation::Add, self.listener.as_raw_fd(), event)?;
            self.listening = true;
        }
        Ok(())
    }

    /// Drops every connection and stops taking clients.
    pub(super) fn reset(&mut self) {
        if self.listening {
            let event = EpollEvent::default();
            let _ = self.epoll.ctl(ControlOperation::Delete, self.listener.as_raw_fd(), event);
            self.listening = false;
        }
        self.clients_waiting = false;
        self.connections.clear();
        self.by_token.clear();
        self.handshakes.clear();
        self.ready.clear();
        self.resets.clear();
        self.backlog = 0;
    }

    /// Handles what happened to the host's sockets.
    pub(super) fn poll(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS_PER_POLL];
        // The outer loop is level-triggered: what is left over comes back.
        let Ok(count) = self.epoll.wait(0, &mut events) else { return };
        for event in events.iter().take(count) {
            let token = event.data();
            if token == LISTENER {
                self.clients_waiting = true;
            } else if self.handshakes.contains_key(&token) {
                self.shake_hands(token);
            } else if let Some(key) = self.by_token.get(&token).copied() {
                self.update(key, |connection| connection.stream_event(event.event_set()));
            }
        }
        self.accept_waiting();
    }

    pub(super) fn has_rx(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Fills a receive buffer of the guest; `None` when there is nothing to send, the number of bytes otherwise.
    pub(super) fn next_rx(&mut self, ram: &GuestRam, chain: &Chain, parts: &mut Vec<Segment>) -> Option<u32> {
        if chain.writable_len() < HEADER_LEN as u64 {
            self.counters.rx_too_small += 1;
            return Some(0);
        }
        if let Some(key) = self.resets.pop_front() {
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                op: op::RST,
                ..Header::default()
            };
            self.counters.rx_packets += 1;
            return Some(chain.write_at(ram, 0, &header.bytes()).map_or(0, |()| HEADER_LEN as u32));
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            match connection.produce(self.cid, ram, chain, parts) {
                Produced::Packet(len) => {
                    self.sent(len);
                    self.update(key, |_| {});
                    return Some(len);
                }
                Produced::Last(len) => {
                    self.sent(len);
                    self.remove(key);
                    return Some(len);
                }
                Produced::TooSmall => {
                    self.counters.rx_too_small += 1;
                    self.update(key, |_| {});
                    return Some(0);
                }
                // What it waited in the queue for is gone, but there may be a reason of another kind (credit to ask for).
                Produced::Nothing => self.update(key, |_| {}),
            }
        }
        None
    }

    /// Handles a packet of the guest.
    pub(super) fn handle_tx(&mut self, ram: &GuestRam, chain: &Chain, parts: &mut Vec<Segment>) {
        let mut bytes = [0; HEADER_LEN];
        if chain.read_at(ram, 0, &mut bytes).is_none() {
            self.counters.tx_malformed += 1;
            return;
        }
        let header = Header::parse(&bytes);
        let len = u64::from(header.len);
        // Another CID, a datagram, more payload than the packet or the protocol holds: nobody to answer.
        let sane = header.src_cid == self.cid
            && header.dst_cid == HOST_CID
            && header.kind == TYPE_STREAM
            && header.len <= MAX_PACKET
            && slice(chain.readable(), HEADER_LEN as u64, len, parts).is_some();
        if !sane {
            self.counters.tx_malformed += 1;
            return;
        }
        self.counters.tx_packets += 1;
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        if !self.connections.contains_key(&key) {
            match header.op {
                op::REQUEST => self.connect(key, &header),
                // Never a reset for a reset.
                op::RST => {}
                _ => self.refuse(key),
            }
            return;
        }
        match header.op {
            op::RW => {
                self.counters.tx_bytes += len;
                self.update(key, |connection| connection.receive_data(&header, ram, parts));
                if self.backlog > TOTAL_BUFFER {
                    // The one that went over the limit pays.
                    self.update(key, Connection::reset);
                }
            }
            op::RST => self.update(key, Connection::receive_reset),
            _ => self.update(key, |connection| connection.receive(&header)),
        }
    }

    /// Changes a connection, then settles what follows: its place in the queue, the sum of backlogs, its end.
    fn update(&mut self, key: Key, change: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let before = connection.backlog();
        change(connection);
        self.backlog = self.backlog + connection.backlog() - before;
        if connection.is_over() {
            self.remove(key);
        } else if !connection.queued && connection.wants_to_send() {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            self.backlog -= connection.backlog();
            self.by_token.remove(&connection.token);
            if connection.queued {
                // Its name may come back for another connection, which must not be queued twice.
                self.ready.retain(|other| *other != key);
            }
        }
    }

    fn refuse(&mut self, key: Key) {
        self.counters.refused += 1;
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(key);
        } else {
            self.counters.resets_dropped += 1;
        }
    }

    /// The guest asks for a connection to a port of the host.
    fn connect(&mut self, key: Key, header: &Header) {
        if self.connections() >= MAX_CONNECTIONS {
            self.refuse(key);
            return;
        }
        let stream = match self.local_ports.get_mut(&key.host_port) {
            Some(service) => service().and_then(|stream| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            }),
            None => {
                let mut path = self.uds.clone().into_os_string();
                path.push(format!("_{}", key.host_port));
                sys::connect_unix(path.as_ref())
            }
        };
        let token = self.token();
        match stream.and_then(|stream| self.watch(&stream, token).map(|()| stream)) {
            Ok(stream) => {
                self.counters.opened_by_guest += 1;
                self.insert(key, Connection::accepted(key, token, stream, header));
            }
            Err(error) => {
                tracing::debug!(port = key.host_port, %error, "guest's connection to the host was refused");
                self.refuse(key);
            }
        }
    }

    /// Takes the clients that wait, if any. Called in every turn of the guest or the host, so that those for whom there was
    /// no descriptor get their chance when others have gone.
    pub(super) fn accept_waiting(&mut self) {
        if !self.clients_waiting {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) => {
                    self.clients_waiting = e.kind() != io::ErrorKind::WouldBlock;
                    return;
                }
            };
            if self.connections() >= MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
                self.counters.refused += 1;
                continue;
            }
            let token = self.token();
            if self.watch(&stream, token).is_ok() {
                self.handshakes.insert(token, (stream, Handshake::default()));
                // The line may be there already.
                self.shake_hands(token);
            }
        }
    }

    fn shake_hands(&mut self, token: u64) {
        let Some((stream, handshake)) = self.handshakes.get_mut(&token) else { return };
        let port = loop {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => match handshake.push(byte[0]) {
                    Step::More => {}
                    Step::Port(port) => break port,
                    Step::Bad => {
                        tracing::debug!("client of the vsock socket did not say CONNECT <port>");
                        self.counters.refused += 1;
                        self.handshakes.remove(&token);
                        return;
                    }
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.handshakes.remove(&token);
                    return;
                }
            }
        };
        let Some((stream, _)) = self.handshakes.remove(&token) else { return };
        if let Some(host_port) = self.host_port(port) {
            let key = Key { host_port, guest_port: port };
            self.counters.opened_by_host += 1;
            self.insert(key, Connection::request(key, token, stream));
        }
    }

    fn insert(&mut self, key: Key, connection: Connection) {
        self.by_token.insert(connection.token, key);
        self.connections.insert(key, connection);
        self.update(key, |_| {});
    }

    /// A host port that is free towards that guest port. There are more ports than connections.
    fn host_port(&mut self, guest_port: u32) -> Option<u32> {
        for _ in 0..=MAX_CONNECTIONS {
            let host_port = self.next_host_port;
            self.next_host_port += 1;
            if self.next_host_port == HOST_PORTS.end {
                self.next_host_port = HOST_PORTS.start;
            }
            if !self.connections.contains_key(&Key { host_port, guest_port }) {
                return Some(host_port);
            }
        }
        None
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Watches a stream for all that can happen to it. Closing it ends the watch.
    fn watch(&self, stream: &UnixStream, token: u64) -> io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(events, token))
    }

    fn sent(&mut self, len: u32) {
        self.counters.rx_packets += 1;
        self.counters.rx_bytes += u64::from(len.saturating_sub(HEADER_LEN as u32));
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // We made it: `bind` fails when there is something.
        let _ = std::fs::remove_file(&self.uds);
    }
}
