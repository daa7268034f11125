//! TCP with the outside: a [`Machine`] for each connection, who drives it, and the way of its segments.
//!
//! A guest's thread that sends, reads or closes drives the machine itself and writes frames to the device; the stack's thread drives it with
//! what comes and when it is time. What becomes of it is told when the machine is not locked ([`machine::News`]).

mod congestion;
pub(crate) mod machine;
mod receiving;
pub(crate) mod segment;
mod sending;
mod timing;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use smoltcp::wire::IpProtocol;

pub(crate) use machine::{Machine, Opening as Begin, Phase};
pub(crate) use sending::Measures;

use super::device::Offload;
use super::frame::{self, Packet};
use super::{Path, Stack};
use crate::error::Errno;
use crate::net::buffer::ByteQueue;
use crate::net::inet::{Tcp, settings};
use crate::net::pair::End;
use crate::net::{Common, lock};
use machine::{Bytes, News, Output};
use segment::{Header, Segment};

/// Most bytes of a segment that the device cuts: with its headers it is a packet.
const CUT: usize = 65_535 - 120;

/// A connection's names: ours, theirs.
pub(crate) type Names = [SocketAddr; 2];

/// Who is told when a connection is there.
pub(crate) enum Opening {
    /// Who connects, and its end.
    Active(Weak<Tcp>, End<ByteQueue>),
    /// Who listens, and what it accepts then.
    Passive(Weak<Tcp>, Arc<Tcp>),
}

struct Inner {
    machine: Machine,
    path: Path,
    /// For when the stack's thread knows that something is to be done.
    armed: Option<Instant>,
    hops: Option<u8>,
    class: u8,
}

/// A connection.
pub(crate) struct Connection {
    me: Weak<Self>,
    stack: Weak<Stack>,
    names: Names,
    common: Arc<Common>,
    inner: Mutex<Inner>,
    opening: Mutex<Option<Opening>>,
    /// Room of the reader's queue from which on the other side is told.
    threshold: AtomicUsize,
    reads: End<ByteQueue>,
}

impl Connection {
    /// Carries an end by a machine.
    pub(crate) fn new(
        stack: &Arc<Stack>,
        names: Names,
        common: &Arc<Common>,
        (machine, reads): (Machine, End<ByteQueue>),
        (path, opening): (Path, Opening),
    ) -> Arc<Self> {
        let inner = Inner { machine, path, armed: None, hops: None, class: 0 };
        let connection = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            stack: Arc::downgrade(stack),
            names,
            common: Arc::clone(common),
            inner: Mutex::new(inner),
            opening: Mutex::new(Some(opening)),
            threshold: AtomicUsize::new(usize::MAX),
            reads: reads.clone(),
        });
        reads.carry(&connection);
        connection.set_header();
        connection
    }

    pub(crate) fn names(&self) -> Names {
        self.names
    }

    pub(crate) fn phase(&self) -> Phase {
        lock(&self.inner).machine.phase()
    }

    pub(crate) fn measures(&self) -> Measures {
        lock(&self.inner).machine.measures()
    }

    /// Longest packet to there.
    pub(crate) fn mtu(&self) -> usize {
        lock(&self.inner).path.mtu
    }

    fn set_header(&self) {
        let (hops, class) = crate::net::inet::header_of(&self.common, self.names[1].ip());
        let mut inner = lock(&self.inner);
        (inner.hops, inner.class) = (hops, class);
    }

    /// Options of the socket changed.
    pub(crate) fn options_changed(&self) {
        let settings = settings(&self.common);
        self.set_header();
        self.drive(None, |machine, now, output| {
            machine.set(settings, now);
            machine.pump(now, output);
        });
    }

    /// Something is to be sent, or the program closed.
    pub(crate) fn kick(&self) {
        self.drive(None, |machine, now, output| {
            machine.kicked(now);
            machine.pump(now, output);
        });
    }

    /// The program has put bytes, and perhaps more come soon.
    pub(crate) fn was_written(&self, more: bool) {
        self.drive(None, |machine, now, output| {
            machine.set_more(more);
            machine.pump(now, output);
        });
    }

    /// The program has read.
    pub(crate) fn was_read(&self) {
        if self.reads.incoming().room().0 >= self.threshold.load(Ordering::Relaxed) {
            self.drive(None, |machine, now, output| machine.window_opened(now, output));
        }
    }

    /// It is time.
    pub(crate) fn tick(&self) {
        self.drive(None, |machine, now, output| machine.tick(now, output));
    }

    /// A segment came.
    pub(crate) fn arrive(&self, segment: &Segment<'_>) {
        // A connection that could not be accepted is not there yet: its last ACK did not come (`tcp_v4_syn_recv_sock`).
        let completes = segment.ack.is_some() && !segment.syn && !segment.rst;
        let full = match &*lock(&self.opening) {
            Some(Opening::Passive(listener, _)) if completes => Some(Weak::clone(listener)),
            _ => None,
        };
        if full.is_some_and(|listener| listener.upgrade().is_some_and(|listener| listener.is_full())) {
            return;
        }
        self.drive(Some(segment), |machine, now, output| {
            machine.arrive(segment, now);
            machine.pump(now, output);
        });
    }

    /// An ICMP message about a segment of ours.
    pub(crate) fn unreachable(&self, seq: segment::Seq, errno: Errno, hard: bool) {
        self.drive(None, |machine, _, _| machine.unreachable(seq, errno, hard));
    }

    /// Packets to there may be only so long.
    pub(crate) fn shrink(&self, mtu: usize) {
        let overhead = frame::header_length(self.names[1].ip()).saturating_add(20);
        self.drive(None, |machine, now, output| {
            machine.shrink(mtu.saturating_sub(overhead));
            machine.pump(now, output);
        });
    }

    /// Begins, or goes on.
    pub(crate) fn pump(&self) {
        self.drive(None, Machine::pump);
    }

    fn drive(&self, segment: Option<&Segment<'_>>, act: impl FnOnce(&mut Machine, Instant, &mut dyn Output)) {
        let Some(stack) = self.stack.upgrade() else { return };
        let now = Instant::now();
        let mut inner = lock(&self.inner);
        let Inner { machine, path, armed, hops, class } = &mut *inner;
        if path.generation != stack.generation()
            && let Ok(found) = stack.path(self.names[1].ip(), Some(self.names[0].ip()))
        {
            *path = found;
        }
        act(machine, now, &mut Wire { stack: &stack, path, names: self.names, hops: *hops, class: *class });
        let news = machine.take_news();
        self.threshold.store(machine.worth_telling(), Ordering::Relaxed);
        let deadline = machine.deadline();
        if let Some(deadline) = deadline.filter(|at| armed.is_none_or(|armed| *at < armed || armed <= now)) {
            *armed = Some(deadline);
            stack.timers.arm(deadline, &self.me);
        }
        let blocked = machine.is_blocked();
        drop(inner);
        if blocked {
            stack.wait_for_room(&self.me);
        }
        self.tell(&stack, news, segment);
    }

    fn tell(&self, stack: &Arc<Stack>, news: News, segment: Option<&Segment<'_>>) {
        let mut news = news;
        if news.established {
            let opening = lock(&self.opening).take();
            stack.opened(opening.as_ref());
            match opening {
                Some(Opening::Active(client, end)) => {
                    if let Some(client) = client.upgrade() {
                        client.reached(end);
                    }
                }
                Some(Opening::Passive(listener, child)) => {
                    let listener = listener.upgrade();
                    let admitted = listener.is_some_and(|listener| listener.admit_from_outside(&child));
                    if !admitted {
                        child.abort();
                    }
                }
                None => {}
            }
        }
        if let Some(errno) = news.failed {
            let opening = lock(&self.opening).take();
            stack.opened(opening.as_ref());
            match opening {
                Some(Opening::Active(client, _)) => {
                    if let Some(client) = client.upgrade() {
                        client.refuse(errno);
                    }
                }
                Some(Opening::Passive(_, child)) => child.close_quietly(),
                None => self.common.fail(errno),
            }
        }
        if let (true, Some(segment)) = (news.reset, segment) {
            stack.answer_reset(self.names, segment);
        }
        if news.over {
            self.over(stack);
            news.events |= crate::events::Events::HUP;
        }
        if !news.events.is_empty() {
            self.common.notify(news.events);
        }
    }

    fn over(&self, stack: &Stack) {
        let opening = lock(&self.opening).take();
        stack.opened(opening.as_ref());
        if let Some(Opening::Passive(_, child)) = opening {
            child.close_quietly();
        }
        let inner = lock(&self.inner);
        let waits = inner.machine.phase() == Phase::TimeWait;
        let past = waits.then(|| (inner.machine.sequences(), inner.machine.time_stamps()));
        drop(inner);
        stack.forget(self.names, past);
    }
}

thread_local! {
    static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The way out of a connection's segments.
struct Wire<'a> {
    stack: &'a Stack,
    path: &'a Path,
    names: Names,
    hops: Option<u8>,
    class: u8,
}

impl Output for Wire<'_> {
    fn send(&mut self, header: &Header, bytes: Bytes<'_>) -> bool {
        FRAME.with_borrow_mut(|buffer| self.write(buffer, header, Some(bytes)))
    }

    fn most(&self) -> usize {
        if self.path.link.device.offload() { CUT } else { 0 }
    }
}

impl Wire<'_> {
    fn write(&self, buffer: &mut Vec<u8>, header: &Header, bytes: Option<Bytes<'_>>) -> bool {
        let [local, remote] = self.names;
        let length = header.size();
        let count = bytes.map_or(0, |bytes| bytes.count);
        let mut packet = Packet::new(local.ip(), remote.ip(), IpProtocol::Tcp);
        (packet.hops, packet.class, packet.ident) = (self.hops, self.class, self.stack.next_ident());
        let start = frame::begin(buffer, &packet, length.saturating_add(count));
        let offload = self.path.link.device.offload();
        let Some(segment) = buffer.get_mut(start..) else { return true };
        let mut how = Offload::None;
        if offload {
            let at = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
            let begins = start.saturating_sub(super::device::HEADER);
            let headers = begins.saturating_add(length);
            let cut = bytes
                .filter(|bytes| bytes.count > bytes.mss)
                .map(|bytes| (at(headers), at(bytes.mss), remote.is_ipv6()));
            how = Offload::Tcp { start: at(begins), offset: 16, cut };
        }
        if let (Some(bytes), Some(place)) = (bytes, segment.get_mut(length..))
            && bytes.queue.copy_at(bytes.start, place) < count
        {
            return true;
        }
        header.emit(self.names, segment, offload);
        super::device::mark(buffer, how);
        self.stack.transmit(&self.path.link, self.path.next_hop, buffer) != Err(Errno::EAGAIN)
    }
}

/// Sends a segment that belongs to no connection.
pub(crate) fn send_alone(stack: &Stack, path: &Path, names: Names, header: &Header) {
    let wire = Wire { stack, path, names, hops: None, class: 0 };
    FRAME.with_borrow_mut(|buffer| wire.write(buffer, header, None));
}
