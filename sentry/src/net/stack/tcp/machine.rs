//! One TCP connection without its packets: segments and times in, segments out (RFC 9293). What a program sends and receives lies in the
//! same queues of bytes as of a connection within the sandbox: `sent` keeps bytes until they are acknowledged.
//!
//! | part | what it does |
//! |---|---|
//! | here | states, openings and ends |
//! | `sending` | what is sent when, what is sent again |
//! | `receiving` | putting in order, windows, when to acknowledge |
//! | `timing` | everything that happens by itself |

use std::time::{Duration, Instant};

use super::congestion::{Congestion, Rounds};
use super::receiving::Receiving;
use super::segment::{Header, Segment, Seq};
use super::sending::Sending;
use super::timing::Timing;
use crate::error::Errno;
use crate::events::Events;
use crate::net::buffer::ByteQueue;
use crate::net::pair::End;

/// The smallest segments that are believed (`TCP_MIN_MSS` of old, 48 and more options).
pub(crate) const LEAST_MSS: usize = 88;

/// States of RFC 9293, with the numbers of `include/net/tcp_states.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Closed = 7,
    CloseWait = 8,
    LastAck = 9,
    Closing = 11,
}

/// What the program decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) no_delay: bool,
    pub(crate) cork: bool,
    /// Idle time, time between probes, how many.
    pub(crate) keep_alive: Option<(Duration, Duration, u32)>,
    /// `TCP_USER_TIMEOUT`.
    pub(crate) patience: Option<Duration>,
    /// How often a SYN is repeated.
    pub(crate) syn_retries: u32,
    /// `TCP_MAXSEG`.
    pub(crate) most: Option<usize>,
    /// Whether buffers have the size that the program gave them: the sender's, the receiver's.
    pub(crate) fixed: [bool; 2],
    /// How long the other side may take to end, once this one has (`TCP_LINGER2`).
    pub(crate) linger: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            no_delay: false,
            cork: false,
            keep_alive: None,
            patience: None,
            syn_retries: 6,
            most: None,
            fixed: [false; 2],
            linger: Duration::from_secs(60),
        }
    }
}

/// What became of a connection, to be told when nothing is locked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) events: Events,
    pub(crate) established: bool,
    /// It failed: before it was there, or while it was.
    pub(crate) failed: Option<Errno>,
    /// The segment is answered by an RST, as one that nobody waits for.
    pub(crate) reset: bool,
    /// Nothing is left of it but, perhaps, the time until its last segments are gone from the net.
    pub(crate) over: bool,
}

/// Sends a segment with bytes out of the queue: `false` where the device has no room.
pub(crate) trait Output {
    fn send(&mut self, header: &Header, bytes: Bytes<'_>) -> bool;
    /// Most bytes of one segment that the device cuts into smaller ones; 0 where it does not.
    fn most(&self) -> usize;
}

/// A part of a queue.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    pub(crate) queue: &'a ByteQueue,
    pub(crate) start: usize,
    pub(crate) count: usize,
    /// Segments are no longer than this.
    pub(crate) mss: usize,
}

/// How a connection begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    /// Our first sequence number.
    pub(crate) first: Seq,
    /// What is added to the clock for timestamps.
    pub(crate) stamp: u32,
    /// Bytes of a segment that fit into a packet to there.
    pub(crate) mss: usize,
    pub(crate) settings: Settings,
    pub(crate) now: Instant,
}

/// A connection.
pub(crate) struct Machine {
    pub(super) phase: Phase,
    /// The stack's end of the connection: it reads what is to be sent.
    pub(super) end: End<ByteQueue>,
    pub(super) settings: Settings,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    pub(super) congestion: Congestion,
    pub(super) rounds: Rounds,
    pub(super) timing: Timing,
    /// Whether both sides have them.
    pub(super) stamps: bool,
    pub(super) sack: bool,
    pub(super) stamp_base: u32,
    pub(super) began: Instant,
    pub(super) news: News,
    /// An error that is not the end, told if it ends (`sk_err_soft`).
    pub(super) soft: Option<Errno>,
}

impl Machine {
    fn new(phase: Phase, end: End<ByteQueue>, opening: &Opening) -> Self {
        let mss = opening.settings.most.map_or(opening.mss, |most| most.min(opening.mss)).max(LEAST_MSS);
        Self {
            phase,
            settings: opening.settings,
            sending: Sending::new(opening.first, mss),
            receiving: Receiving::new(mss, end.incoming().budget()),
            end,
            congestion: Congestion::new(),
            rounds: Rounds::new(),
            timing: Timing::new(opening.now),
            stamps: true,
            sack: true,
            stamp_base: opening.stamp,
            began: opening.now,
            news: News::default(),
            soft: None,
        }
    }

    /// Begins to connect: the SYN is sent by the next [`pump`](Self::pump).
    pub(crate) fn connect(end: End<ByteQueue>, opening: &Opening) -> Self {
        Self::new(Phase::SynSent, end, opening)
    }

    /// A SYN came to somebody who listens.
    pub(crate) fn accept(end: End<ByteQueue>, opening: &Opening, syn: &Segment<'_>) -> Self {
        let mut machine = Self::new(Phase::SynReceived, end, opening);
        machine.agree(syn, opening.now);
        machine
    }

    /// Takes over what the SYN of the other side says.
    fn agree(&mut self, syn: &Segment<'_>, now: Instant) {
        let theirs = usize::from(syn.mss.unwrap_or(536)).max(LEAST_MSS);
        self.sending.mss = self.sending.mss.min(theirs);
        self.stamps &= syn.timestamp.is_some();
        self.sack &= syn.sack_permitted;
        self.receiving.begin(syn, now);
        self.sending.scale = syn.scale.unwrap_or(0).min(14);
        if syn.scale.is_none() {
            self.receiving.scale = 0;
        }
        // The window of a SYN is not scaled.
        self.sending.window_says(syn.seq, syn.ack.unwrap_or(self.sending.una), usize::from(syn.window));
        if self.stamps {
            self.sending.mss = self.sending.mss.saturating_sub(12).max(LEAST_MSS - 12);
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// A clock of milliseconds for timestamps.
    pub(super) fn stamp(&self, now: Instant) -> u32 {
        let time = now.saturating_duration_since(self.began).as_millis();
        self.stamp_base.wrapping_add((time & u128::from(u32::MAX)) as u32)
    }

    /// A segment came.
    pub(crate) fn arrive(&mut self, segment: &Segment<'_>, now: Instant) {
        match self.phase {
            Phase::SynSent => self.arrive_opening(segment, now),
            Phase::Closed | Phase::TimeWait => self.news.reset = !segment.rst,
            _ => self.arrive_open(segment, now),
        }
    }

    /// RFC 9293, 3.10.7.3.
    fn arrive_opening(&mut self, segment: &Segment<'_>, now: Instant) {
        let acknowledged = match segment.ack {
            Some(ack) if ack != self.sending.nxt || self.sending.nxt == self.sending.una => {
                self.news.reset = !segment.rst;
                return;
            }
            ack => ack.is_some(),
        };
        if segment.rst {
            if acknowledged {
                self.fail(Errno::ECONNREFUSED);
            }
            return;
        }
        if !segment.syn {
            return;
        }
        self.agree(segment, now);
        self.timing.heard(now);
        if acknowledged {
            (self.sending.una, self.sending.syn) = (self.sending.nxt, false);
            if let Some(time) = self.sending.measured(self.sending.una, now) {
                self.rounds.measured(time);
            }
            self.establish(now);
            self.receiving.acknowledge_now();
        } else {
            // Both sides connect at once: the SYN is sent once more, with an ACK.
            self.phase = Phase::SynReceived;
            self.sending.nxt = self.sending.una;
        }
    }

    fn establish(&mut self, now: Instant) {
        self.phase = Phase::Established;
        self.timing.settled();
        self.news.established = true;
        self.news.events |= Events::OUT | Events::WRNORM;
        self.receiving.mark(now);
    }

    /// RFC 9293, 3.10.7.4.
    fn arrive_open(&mut self, segment: &Segment<'_>, now: Instant) {
        if !self.receiving.is_young(segment, self.stamps, now) && !segment.rst {
            self.receiving.acknowledge_now();
            return;
        }
        if !self.receiving.fits(segment) {
            // The last ACK of the opening was lost, or it is a probe: it is told again what is expected.
            if !segment.rst {
                self.receiving.acknowledge_now();
                if self.phase == Phase::SynReceived && segment.syn {
                    self.sending.nxt = self.sending.una;
                }
            }
            return;
        }
        if segment.rst {
            // RFC 5961, 3.2: only what is exactly expected ends a connection.
            if segment.seq == self.receiving.nxt {
                self.reset();
            } else {
                self.receiving.acknowledge_now();
            }
            return;
        }
        if segment.syn {
            // RFC 5961, 4.2.
            self.receiving.acknowledge_now();
            return;
        }
        let Some(ack) = segment.ack else { return };
        self.timing.heard(now);
        if self.phase == Phase::SynReceived {
            if ack != self.sending.max || self.sending.max == self.sending.una {
                self.news.reset = true;
                return;
            }
            self.establish(now);
        }
        if ack.since(self.sending.max) > 0 {
            self.receiving.acknowledge_now();
            return;
        }
        self.receiving.note_stamp(segment, self.stamps, now);
        self.acknowledged(segment, ack, now);
        self.fin_acknowledged(now);
        if self.phase != Phase::Closed {
            self.text(segment, now);
        }
    }

    /// Whether our FIN was acknowledged decides about states.
    fn fin_acknowledged(&mut self, now: Instant) {
        if !self.sending.fin_is_acknowledged() {
            return;
        }
        match self.phase {
            Phase::FinWait1 => {
                self.phase = Phase::FinWait2;
                self.timing.wait_for_end(now, self.settings.linger);
            }
            Phase::Closing => self.time_wait(),
            Phase::LastAck => self.finish(),
            _ => {}
        }
    }

    /// Bytes and FIN of a segment.
    fn text(&mut self, segment: &Segment<'_>, now: Instant) {
        if matches!(self.phase, Phase::CloseWait | Phase::LastAck | Phase::Closing | Phase::Closed) {
            if segment.length() > 0 {
                self.receiving.acknowledge_now();
            }
            return;
        }
        if !segment.payload.is_empty() && self.end.outgoing().flags().gone {
            // Nobody will read it (RFC 2525, 2.17).
            self.news.reset = true;
            self.finish();
            return;
        }
        let queue = self.end.outgoing();
        let came = self.receiving.take(segment, queue, self.rounds.smooth(), self.settings.fixed[1], now);
        if came.bytes {
            self.news.events |= Events::IN | Events::RDNORM;
        }
        if came.urgent {
            self.news.events |= Events::PRI;
        }
        if came.end {
            self.ended();
        }
    }

    /// The other side's FIN, with all that came before it.
    fn ended(&mut self) {
        self.end.outgoing().change(|flags| flags.ended = true);
        self.news.events |= Events::IN | Events::RDNORM | Events::RDHUP;
        self.receiving.acknowledge_now();
        match self.phase {
            Phase::Established => self.phase = Phase::CloseWait,
            Phase::FinWait1 => self.phase = Phase::Closing,
            Phase::FinWait2 => self.time_wait(),
            _ => {}
        }
        if self.end.incoming().flags().ended {
            self.news.events |= Events::HUP;
        }
    }

    fn time_wait(&mut self) {
        self.phase = Phase::TimeWait;
        self.news.over = true;
    }

    /// Nothing of it is left.
    pub(super) fn finish(&mut self) {
        self.phase = Phase::Closed;
        self.news.over = true;
    }

    /// An RST came (`tcp_reset`).
    fn reset(&mut self) {
        match self.phase {
            Phase::SynReceived => self.fail(Errno::ECONNREFUSED),
            Phase::CloseWait => self.fail(Errno::EPIPE),
            // Nobody is there to be told.
            Phase::LastAck | Phase::Closing => self.fail_quietly(),
            _ => self.fail(Errno::ECONNRESET),
        }
    }

    fn fail_quietly(&mut self) {
        self.end.outgoing().change(|flags| flags.broken = true);
        self.end.incoming().change(|flags| flags.broken = true);
        self.news.events |= Events::IN | Events::OUT | Events::HUP | Events::RDHUP;
        self.finish();
    }

    pub(super) fn fail(&mut self, errno: Errno) {
        self.fail_quietly();
        self.news.failed = Some(errno);
    }

    /// An ICMP message about a segment of this connection (`tcp_v4_err`): `hard` ones end what has not begun.
    pub(crate) fn unreachable(&mut self, seq: Seq, errno: Errno, hard: bool) {
        let outstanding = !seq.is_before(self.sending.una) && seq.is_before(self.sending.max);
        if !outstanding && !matches!(self.phase, Phase::SynSent | Phase::SynReceived) {
            return;
        }
        match self.phase {
            Phase::SynSent | Phase::SynReceived if hard => self.fail(errno),
            _ => self.soft = Some(errno),
        }
    }

    /// Packets to there may be no longer than so many bytes of a segment.
    pub(crate) fn shrink(&mut self, mss: usize) {
        let options = if self.stamps { 12 } else { 0 };
        let mss = mss.saturating_sub(options).max(LEAST_MSS - 12);
        if mss < self.sending.mss {
            self.sending.mss = mss;
            self.sending.lose_all();
        }
    }

    /// The program did something: it closed, it broke off, it changed its mind about options.
    pub(crate) fn kicked(&mut self, now: Instant) {
        let flags = self.end.incoming().flags();
        if flags.broken {
            match self.phase {
                Phase::Closed | Phase::TimeWait => {}
                Phase::SynSent => self.finish(),
                _ => self.sending.abort = true,
            }
            return;
        }
        let gone = self.end.outgoing().flags().gone;
        if flags.ended && self.phase == Phase::SynSent && gone {
            self.finish();
        }
        if self.phase == Phase::FinWait2 && gone {
            self.timing.wait_for_end(now, self.settings.linger);
        }
    }

    pub(crate) fn set(&mut self, settings: Settings, now: Instant) {
        let woken = settings.keep_alive.is_some() && self.settings.keep_alive.is_none();
        self.settings = settings;
        if woken {
            self.timing.heard(now);
        }
    }

    /// An RST for this connection, whatever its state.
    pub(super) fn rst(&self) -> Header {
        Header { seq: self.sending.nxt, ack: Some(self.receiving.nxt), rst: true, ..Header::default() }
    }

    /// What is sent and what is expected next.
    pub(crate) fn sequences(&self) -> [Seq; 2] {
        [self.sending.max, self.receiving.nxt]
    }

    /// Their last timestamp, and what is added to the clock for ours, where there are timestamps.
    pub(crate) fn time_stamps(&self) -> Option<(u32, u32, Instant)> {
        self.stamps.then_some((self.receiving.stamp, self.stamp_base, self.began))
    }

    pub(crate) fn set_more(&mut self, more: bool) {
        self.sending.more = more;
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.sending.blocked
    }

    /// Room of the program's queue from which on the other side is to be told of it.
    pub(crate) fn worth_telling(&self) -> usize {
        self.receiving.worth_telling(self.end.outgoing())
    }

    /// The program has read so much that the other side is told.
    pub(crate) fn window_opened(&mut self, now: Instant, output: &mut dyn Output) {
        let reads = matches!(self.phase, Phase::Established | Phase::FinWait1 | Phase::FinWait2);
        if reads && self.end.outgoing().room().0 >= self.worth_telling() {
            self.acknowledge(now, output);
        }
    }
}
