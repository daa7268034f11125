//! One connection: a Unix stream on the host's side, credit and shutdown states on the guest's.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vm_memory::Bytes;
use vmm_sys_util::epoll::EventSet;

use super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PACKET, SHUT_RECEIVE, SHUT_SEND, TYPE_STREAM, op};
use super::{BUFFER, muxer::Key};
use crate::queue::{Chain, Segment, slice};
use crate::{GuestRam, sys};

/// The guest hears of consumed bytes at the latest when this many were consumed.
const UPDATE_THRESHOLD: u32 = BUFFER / 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The guest has not answered our request.
    Requested,
    Established,
    /// The guest is gone; what it sent before is still on its way to the host.
    Draining,
}

/// Packets that wait to be sent.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    reset: bool,
    shutdown: bool,
    credit_update: bool,
    credit_request: bool,
}

pub(super) struct Connection {
    pub(super) token: u64,
    pub(super) state: State,
    /// Whether it stands in the muxer's queue of those with something to send.
    pub(super) queued: bool,
    key: Key,
    stream: UnixStream,
    pending: Pending,
    /// What the stream can do as far as we know; cleared by `EAGAIN`, set by the next edge.
    readable: bool,
    writable: bool,
    /// The host's end is closed in both directions.
    hung_up: bool,
    /// The host sends no more (end of stream was read).
    host_sends_no_more: bool,
    /// The host receives no more.
    host_receives_no_more: bool,
    /// The guest's end of stream was passed on.
    write_shut: bool,
    /// SHUTDOWN flags that the guest sent.
    guest_shutdown: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Bytes sent to the guest, wrapping.
    sent: u32,
    /// Bytes of the guest that were taken over by the host, wrapping.
    forwarded: u32,
    forwarded_told: u32,
    credit_requested: bool,
    backlog: VecDeque<u8>,
}

/// What became of a receive buffer of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Produced {
    /// A packet of this many bytes in all.
    Packet(u32),
    /// The last packet of the connection.
    Last(u32),
    /// There was nothing to send after all.
    Nothing,
    /// The buffer has no room for any payload.
    TooSmall,
}

impl Connection {
    /// A connection that the host asks for.
    pub(super) fn request(key: Key, token: u64, stream: UnixStream) -> Self {
        let mut connection = Self::new(key, token, stream, State::Requested);
        connection.pending.request = true;
        connection
    }

    /// A connection that the guest asked for and the host accepted.
    pub(super) fn accepted(key: Key, token: u64, stream: UnixStream, header: &Header) -> Self {
        let mut connection = Self::new(key, token, stream, State::Established);
        connection.pending.response = true;
        connection.take_credit(header);
        connection
    }

    fn new(key: Key, token: u64, stream: UnixStream, state: State) -> Self {
        Self {
            token,
            state,
            queued: false,
            key,
            stream,
            pending: Pending::default(),
            readable: true,
            writable: true,
            hung_up: false,
            host_sends_no_more: false,
            host_receives_no_more: false,
            write_shut: false,
            guest_shutdown: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            sent: 0,
            forwarded: 0,
            forwarded_told: 0,
            credit_requested: false,
            backlog: VecDeque::new(),
        }
    }

    pub(super) fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Ends the connection: the guest gets a reset.
    pub(super) fn reset(&mut self) {
        self.pending = Pending { reset: true, ..Pending::default() };
        self.backlog = VecDeque::new();
    }

    /// Whether the muxer should offer a receive buffer.
    pub(super) fn wants_to_send(&mut self) -> bool {
        if self.state == State::Draining {
            return false;
        }
        if self.state == State::Established && !self.pending.reset {
            let unread = self.readable && !self.host_sends_no_more;
            if unread && self.guest_shutdown & SHUT_RECEIVE != 0 && self.hung_up {
                // Nobody will read to the end of the stream.
                self.end_of_stream();
            }
            if unread && self.free() == 0 && !self.credit_requested {
                self.pending.credit_request = true;
                self.credit_requested = true;
            }
            if self.forwarded.wrapping_sub(self.forwarded_told) >= UPDATE_THRESHOLD {
                self.pending.credit_update = true;
            }
        }
        let p = &self.pending;
        p.request
            || p.response
            || p.reset
            || p.shutdown
            || p.credit_update
            || p.credit_request
            || self.can_read()
    }

    /// Whether nothing more will happen, so that it can be forgotten without a word.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Draining
            && (self.backlog.is_empty() || self.hung_up || self.host_receives_no_more)
    }

    /// Puts the next packet into a receive buffer of the guest (of at least a header's length).
    pub(super) fn produce(
        &mut self,
        cid: u64,
        ram: &GuestRam,
        chain: &Chain,
        parts: &mut Vec<Segment>,
    ) -> Produced {
        if std::mem::take(&mut self.pending.reset) {
            return self.emit(cid, ram, chain, op::RST, 0, 0, true);
        }
        if std::mem::take(&mut self.pending.request) {
            return self.emit(cid, ram, chain, op::REQUEST, 0, 0, false);
        }
        if std::mem::take(&mut self.pending.response) {
            return self.emit(cid, ram, chain, op::RESPONSE, 0, 0, false);
        }
        if self.can_read() {
            match self.read(ram, chain, parts) {
                Ok(0) => self.end_of_stream(),
                Ok(len) => {
                    self.sent = self.sent.wrapping_add(len);
                    return self.emit(cid, ram, chain, op::RW, 0, len, false);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::StorageFull => return Produced::TooSmall,
                Err(_) => {
                    self.hung_up = true;
                    self.end_of_stream();
                }
            }
        }
        if std::mem::take(&mut self.pending.shutdown) {
            let mut flags = 0;
            if self.host_sends_no_more {
                flags |= SHUT_SEND;
            }
            if self.host_receives_no_more || (self.hung_up && self.host_sends_no_more) {
                flags |= SHUT_RECEIVE;
            }
            // After both, Linux has no use for the connection: what it still sends gets a reset as unknown.
            let last = flags == SHUT_SEND | SHUT_RECEIVE;
            return self.emit(cid, ram, chain, op::SHUTDOWN, flags, 0, last);
        }
        if std::mem::take(&mut self.pending.credit_request) {
            return self.emit(cid, ram, chain, op::CREDIT_REQUEST, 0, 0, false);
        }
        if std::mem::take(&mut self.pending.credit_update) {
            return self.emit(cid, ram, chain, op::CREDIT_UPDATE, 0, 0, false);
        }
        Produced::Nothing
    }

    /// A packet of the guest for this connection, other than RST and RW.
    pub(super) fn receive(&mut self, header: &Header) {
        self.take_credit(header);
        match (header.op, self.state) {
            (op::RESPONSE, State::Requested) => {
                self.state = State::Established;
                let answer = format!("OK {}\n", self.key.host_port);
                // The first bytes ever written: they fit, or the client is gone.
                if sys::send(self.stream.as_fd(), answer.as_bytes()).ok() != Some(answer.len()) {
                    self.reset();
                }
            }
            (op::CREDIT_UPDATE, State::Established) => {}
            (op::CREDIT_REQUEST, State::Established) => self.pending.credit_update = true,
            (op::SHUTDOWN, State::Established) => {
                self.guest_shutdown |= header.flags & (SHUT_RECEIVE | SHUT_SEND);
                if self.guest_shutdown & SHUT_RECEIVE != 0 {
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                self.finish_sending();
            }
            _ => self.reset(),
        }
    }

    /// Data of the guest: `data` was checked to be in memory, and to be as long as the header says.
    pub(super) fn receive_data(&mut self, header: &Header, ram: &GuestRam, data: &[Segment]) {
        self.take_credit(header);
        // No overflow: both are bounded by the limits of queue and buffer.
        let room = (BUFFER as usize).saturating_sub(self.backlog.len());
        let breach = self.state != State::Established
            || self.guest_shutdown & SHUT_SEND != 0
            || header.len as usize > room;
        if breach {
            self.reset();
            return;
        }
        if self.host_receives_no_more {
            self.forwarded = self.forwarded.wrapping_add(header.len);
            return;
        }
        let mut done = 0;
        if self.backlog.is_empty() && self.writable && header.len > 0 {
            match sys::send_from(self.stream.as_fd(), ram, data) {
                Ok(sent) => done = sent as u32,
                Err(e) => self.write_failed(&e),
            }
            self.forwarded = self.forwarded.wrapping_add(done);
        }
        let rest = header.len.saturating_sub(done);
        let mut parts = Vec::new();
        if rest == 0 || slice(data, u64::from(done), u64::from(rest), &mut parts).is_none() {
            return;
        }
        if self.host_receives_no_more {
            self.forwarded = self.forwarded.wrapping_add(rest);
            return;
        }
        for part in parts {
            let mut bytes = vec![0; part.len as usize];
            if ram.read_slice(&mut bytes, part.address).is_ok() {
                self.backlog.extend(bytes);
            }
        }
        if done > 0 {
            // A short write means a full socket; ask, so that the next edge is not missed.
            self.flush();
        }
    }

    /// The guest ended the connection. What it had sent and shut down properly still reaches the host.
    pub(super) fn receive_reset(&mut self) {
        if self.guest_shutdown & SHUT_SEND == 0 {
            self.backlog = VecDeque::new();
        }
        self.state = State::Draining;
    }

    /// The host's stream has news.
    pub(super) fn stream_event(&mut self, events: EventSet) {
        if events.contains(EventSet::OUT) {
            self.writable = true;
            self.flush();
        }
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
            self.hung_up = true;
            match self.state {
                State::Requested => self.reset(),
                // End of stream was told; now the other direction is closed as well.
                State::Established if self.host_sends_no_more => self.pending.shutdown = true,
                _ => {}
            }
        }
    }

    /// Bytes that the guest can take. A guest that claims to have taken more than was sent has none
    /// (the subtraction must not wrap into a huge credit).
    fn free(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    fn can_read(&self) -> bool {
        self.state == State::Established
            && self.readable
            && !self.host_sends_no_more
            && self.guest_shutdown & SHUT_RECEIVE == 0
            && self.free() > 0
    }

    fn take_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if self.free() > 0 {
            self.credit_requested = false;
        }
    }

    fn read(&self, ram: &GuestRam, chain: &Chain, parts: &mut Vec<Segment>) -> io::Result<u32> {
        let room = chain.writable_len().saturating_sub(HEADER_LEN as u64);
        let want = u64::from(self.free().min(MAX_PACKET)).min(room);
        if want == 0 || slice(chain.writable(), HEADER_LEN as u64, want, parts).is_none() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        sys::read_into(self.stream.as_fd(), ram, parts, None).map(|len| len as u32)
    }

    fn end_of_stream(&mut self) {
        self.host_sends_no_more = true;
        self.pending.shutdown = true;
    }

    fn flush(&mut self) {
        while self.writable && !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            match sys::send(self.stream.as_fd(), front) {
                Ok(sent) => {
                    self.backlog.drain(..sent.min(self.backlog.len()));
                    self.forwarded = self.forwarded.wrapping_add(sent as u32);
                }
                Err(e) => self.write_failed(&e),
            }
        }
        if self.backlog.is_empty() {
            // An idle connection holds no buffer.
            self.backlog = VecDeque::new();
            self.finish_sending();
        }
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.writable = false,
            _ => {
                // The host reads no more, but may have sent something that the guest has not read: no reset yet.
                self.host_receives_no_more = true;
                self.forwarded = self.forwarded.wrapping_add(self.backlog.len() as u32);
                self.backlog = VecDeque::new();
                self.pending.shutdown = self.state == State::Established;
                self.finish_sending();
            }
        }
    }

    /// Passes the guest's shutdown on, once everything before it is with the host.
    fn finish_sending(&mut self) {
        if self.guest_shutdown & SHUT_SEND == 0 || !self.backlog.is_empty() {
            return;
        }
        // Once: each call is an event of the socket, which would bring us here again.
        if !std::mem::replace(&mut self.write_shut, true) {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest_shutdown == SHUT_SEND | SHUT_RECEIVE && self.state == State::Established {
            // The answer that the guest waits for.
            self.reset();
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one packet")]
    fn emit(
        &mut self,
        cid: u64,
        ram: &GuestRam,
        chain: &Chain,
        op: u16,
        flags: u32,
        len: u32,
        last: bool,
    ) -> Produced {
        self.forwarded_told = self.forwarded;
        self.pending.credit_update = false;
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        };
        if chain.write_at(ram, 0, &header.bytes()).is_none() {
            return Produced::TooSmall;
        }
        let total = HEADER_LEN as u32 + len;
        if last { Produced::Last(total) } else { Produced::Packet(total) }
    }
}
