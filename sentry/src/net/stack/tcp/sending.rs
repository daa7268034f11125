//! What is sent, and sent again: windows, Nagle's algorithm (RFC 896, as Minshall has it), SACK (RFC 6675), probes of the tail (RFC 8985, 7).

use std::time::{Duration, Instant};

use super::machine::{Bytes, Machine, Output, Phase};
use super::receiving::SCALE;
use super::segment::{Header, Range, Segment, Seq};
use crate::events::Events;

/// Bytes that a buffer grows to by itself (as `net.ipv4.tcp_wmem` has it).
const MOST: usize = 4 << 20;
/// Ranges that are remembered of what arrived out of order.
const RANGES: usize = 1024;
/// Duplicate ACKs after which something is lost.
const DUPLICATES: u32 = 3;

/// State of the sending side.
pub(super) struct Sending {
    /// The first that was not acknowledged, what comes next, the end of what was ever sent.
    pub(super) una: Seq,
    pub(super) nxt: Seq,
    pub(super) max: Seq,
    pub(super) mss: usize,
    /// Shift of the windows that the other side tells.
    pub(super) scale: u8,
    /// The end of its window, and the segment that said so.
    limit: Seq,
    said: (Seq, Seq),
    largest: usize,
    /// The SYN was not acknowledged.
    pub(super) syn: bool,
    fin: Option<Seq>,
    /// What arrived out of order, in order and without overlaps.
    sacked: Vec<Range>,
    /// What of the lost is sent again next; all that did not arrive before `lost` is lost.
    again: Seq,
    lost: Seq,
    /// End of what was sent when the loss was found; whether no answer at all came.
    recover: Option<(Seq, bool)>,
    duplicates: u32,
    /// When the first hole was sent again.
    hole: Option<Instant>,
    /// What measures the next round: its end, when it was sent.
    timed: Option<(Seq, Instant)>,
    /// End of the last segment that was smaller than it could be.
    small: Seq,
    /// The congestion window is what limits.
    limited: bool,
    /// The program sends more soon (`MSG_MORE`).
    pub(super) more: bool,
    /// Small segments and windows are no reason to wait.
    pub(super) force: bool,
    /// The device had no room.
    pub(super) blocked: bool,
    /// An RST is to be sent, and then nothing.
    pub(super) abort: bool,
}

impl Sending {
    pub(super) fn new(first: Seq, mss: usize) -> Self {
        Self {
            una: first,
            nxt: first,
            max: first,
            mss,
            scale: 0,
            limit: first,
            said: (Seq::default(), first),
            largest: 0,
            syn: true,
            fin: None,
            sacked: Vec::new(),
            again: first,
            lost: first,
            recover: None,
            duplicates: 0,
            hole: None,
            timed: None,
            small: first,
            limited: false,
            more: false,
            force: false,
            blocked: false,
            abort: false,
        }
    }

    /// A window of the other side.
    pub(super) fn window_says(&mut self, seq: Seq, ack: Seq, window: usize) {
        self.limit = ack.plus(window);
        self.said = (seq, ack);
        self.largest = self.largest.max(window);
    }

    pub(super) fn outstanding(&self) -> usize {
        self.nxt.after(self.una)
    }

    pub(super) fn fin_is_acknowledged(&self) -> bool {
        self.fin.is_some_and(|fin| fin.is_before(self.una))
    }

    /// How long what measures took, if it was acknowledged.
    pub(super) fn measured(&mut self, ack: Seq, now: Instant) -> Option<Duration> {
        let (_, sent) = self.timed.take_if(|(end, _)| end.since(ack) <= 0)?;
        Some(now.saturating_duration_since(sent))
    }

    /// Bytes of what lies between two that did not arrive.
    fn missing(&self, from: Seq, to: Seq) -> usize {
        let overlaps = self.sacked.iter().map(|range| range.1.earlier(to).after(range.0.later(from)));
        to.after(from).saturating_sub(overlaps.sum())
    }

    /// Bytes that are on their way, as far as is known.
    fn in_flight(&self) -> usize {
        let lost = self.lost.earlier(self.nxt);
        let waiting = self.missing(self.again.later(self.una), lost);
        self.missing(self.una, self.nxt).saturating_sub(waiting)
    }

    /// The next hole that is to be sent again.
    fn hole(&self) -> Option<Range> {
        let mut start = self.again.later(self.una);
        let end = self.lost.earlier(self.nxt);
        for range in &self.sacked {
            if range.0.since(start) <= 0 {
                start = start.later(range.1);
            } else {
                return start.is_before(end).then(|| (start, range.0.earlier(end)));
            }
        }
        start.is_before(end).then_some((start, end))
    }

    /// All that did not arrive is lost.
    pub(super) fn lose_all(&mut self) {
        // A receiver may drop what it had told of (RFC 2018, 8).
        if self.sacked.first().is_some_and(|range| range.0.since(self.una) <= 0) {
            self.sacked.clear();
        }
        (self.again, self.lost) = (self.una, self.nxt);
        self.recover = Some((self.nxt, true));
        (self.timed, self.hole) = (None, None);
    }

    fn note(&mut self, mut range: Range) -> bool {
        let known =
            self.sacked.iter().any(|other| other.0.since(range.0) <= 0 && range.1.since(other.1) <= 0);
        if known || range.0.is_before(self.una) || range.1.since(self.max) > 0 || !range.0.is_before(range.1)
        {
            return false;
        }
        let first = self.sacked.partition_point(|other| other.1.is_before(range.0));
        let touching = self.sacked.iter().skip(first).take_while(|other| other.0.since(range.1) <= 0).count();
        if touching == 0 && self.sacked.len() >= RANGES {
            return false;
        }
        for other in self.sacked.drain(first..first.saturating_add(touching)) {
            range = (range.0.earlier(other.0), range.1.later(other.1));
        }
        self.sacked.insert(first, range);
        true
    }

    /// Where what has enough after it that arrived ends (`IsLost` of RFC 6675, 4).
    fn judged_lost(&self) -> Seq {
        let mut above = 0_usize;
        for range in self.sacked.iter().rev() {
            above = above.saturating_add(range.1.after(range.0));
            if above > self.mss.saturating_mul(2) {
                return range.0;
            }
        }
        self.una
    }
}

impl Machine {
    /// An ACK that fits.
    pub(super) fn acknowledged(&mut self, segment: &Segment<'_>, ack: Seq, now: Instant) {
        let window = usize::from(segment.window) << self.sending.scale;
        let (seq, before) = self.sending.said;
        let same = self.sending.limit == ack.plus(window);
        if seq.is_before(segment.seq) || seq == segment.seq && before.since(ack) <= 0 {
            self.sending.window_says(segment.seq, ack, window);
        }
        let flight = self.sending.in_flight();
        let fresh = ack.after(self.sending.una);
        if fresh > 0 {
            self.advance(ack, now);
        }
        let mut news = false;
        if self.sack {
            for range in segment.blocks.iter().flatten() {
                news |= self.sending.note(*range);
            }
        } else if fresh == 0 && same && segment.payload.is_empty() && self.sending.outstanding() > 0 {
            self.sending.duplicates = self.sending.duplicates.saturating_add(1);
        }
        self.find_losses(fresh, news, now);
        let recovering = self.sending.recover.is_some_and(|(_, slow)| !slow);
        if fresh > 0 && !recovering && self.sending.limited {
            let bytes = fresh.min(flight.max(self.sending.mss));
            self.congestion.acknowledged(bytes, self.sending.mss, self.rounds.smooth(), now);
        }
        if fresh > 0 {
            self.make_room();
        }
    }

    /// Everything before `ack` arrived.
    fn advance(&mut self, ack: Seq, now: Instant) {
        let sending = &mut self.sending;
        let syn = usize::from(std::mem::take(&mut sending.syn));
        let fin = usize::from(sending.fin.is_some_and(|fin| fin.is_before(ack)));
        let bytes = ack.after(sending.una).saturating_sub(syn).saturating_sub(fin);
        self.end.incoming().acknowledge(bytes);
        sending.una = ack;
        sending.nxt = sending.nxt.later(ack);
        sending.again = sending.again.later(ack);
        sending.lost = sending.lost.later(ack);
        sending.small = sending.small.later(ack);
        sending.sacked.retain_mut(|range| {
            range.0 = range.0.later(ack);
            range.0.is_before(range.1)
        });
        sending.duplicates = 0;
        sending.hole = None;
        if let Some(time) = sending.measured(ack, now) {
            self.rounds.measured(time);
        }
        if sending.recover.is_some_and(|(end, _)| end.since(ack) <= 0) {
            sending.recover = None;
            sending.lost = ack;
        } else if sending.recover.is_some() && !self.sack {
            // The next hole (RFC 6582, 3.2).
            sending.again = ack;
            sending.lost = sending.lost.later(ack.plus(sending.mss)).earlier(sending.nxt);
        }
        self.timing.progress(sending.outstanding() > 0, &self.rounds, now);
        self.soft = None;
    }

    fn find_losses(&mut self, fresh: usize, news: bool, now: Instant) {
        let sending = &mut self.sending;
        let probed = sending.sacked.last().filter(|range| self.timing.probed && range.1 == sending.nxt);
        let lost = if let (true, Some(range)) = (self.sack, probed) {
            range.0
        } else if self.sack {
            sending.judged_lost()
        } else if sending.duplicates >= DUPLICATES {
            sending.una.plus(sending.mss).earlier(sending.nxt)
        } else {
            sending.una
        };
        sending.lost = sending.lost.later(lost);
        if sending.una.is_before(sending.lost) && sending.recover.is_none() {
            sending.recover = Some((sending.nxt, false));
            sending.again = sending.una;
            (sending.timed, sending.hole) = (None, None);
            self.congestion.lost(true);
            self.timing.repeated = self.timing.repeated.saturating_add(1);
        }
        // What was sent again was lost again, where so much later something else arrives.
        let round = self.rounds.smooth().saturating_add(self.rounds.deviation().saturating_mul(4));
        let overdue = sending.hole.is_some_and(|sent| now.saturating_duration_since(sent) > round);
        if sending.recover.is_some() && fresh == 0 && news && overdue {
            (sending.again, sending.hole) = (sending.una, None);
        }
    }

    /// Room for who waits to send, more of it where the path takes more.
    fn make_room(&mut self) {
        let queue = self.end.incoming();
        let (room, limit) = queue.room();
        let wanted = self.congestion.bytes(self.sending.mss).saturating_mul(2);
        if !self.settings.fixed[0] && limit < MOST && wanted > limit && self.sending.limited {
            queue.set_limit(limit.saturating_mul(2).min(MOST));
        }
        if room > limit / 3 {
            self.news.events |= Events::OUT | Events::WRNORM;
        }
    }

    /// Sends what is to be sent now.
    pub(crate) fn pump(&mut self, now: Instant, output: &mut dyn Output) {
        self.sending.blocked = false;
        if self.sending.abort {
            if self.phase != Phase::Closed {
                let rst = self.rst();
                self.emit(rst, 0, output);
                self.finish();
            }
            return;
        }
        match self.phase {
            Phase::Closed => return,
            Phase::SynSent | Phase::SynReceived => return self.open(now, output),
            _ => {}
        }
        if self.timing.is_quiet(&self.rounds, now) && self.sending.outstanding() == 0 {
            self.congestion.idle();
        }
        // With gaps the ACK has no company: blocks would make segments longer.
        if self.receiving.is_due() && self.receiving.has_gaps() {
            self.acknowledge(now, output);
        }
        while self.send_again(now, output) {}
        while self.send_new(now, output) {}
        if self.receiving.is_due() {
            self.acknowledge(now, output);
        }
        let idle = self.sending.outstanding() == 0;
        let unsent = self.unsent();
        let narrow = self.sending.limit.after(self.sending.nxt) < unsent.min(self.sending.mss);
        let waiting = idle && narrow && !self.sending.blocked;
        self.timing.arrange(idle, waiting, &self.rounds, now);
        if !idle && self.sending.recover.is_none() && self.sending.sacked.is_empty() {
            let alone = self.sending.outstanding() <= self.sending.mss;
            self.timing.arrange_probe(alone, &self.rounds, now);
        }
    }

    /// Bytes that the program gave and that were never sent.
    fn unsent(&self) -> usize {
        if self.sending.fin.is_some() {
            return 0;
        }
        self.end.incoming().len().saturating_sub(self.sending.outstanding())
    }

    /// The SYN, with an ACK where one came.
    fn open(&mut self, now: Instant, output: &mut dyn Output) {
        if self.sending.nxt != self.sending.una {
            if self.receiving.is_due() && self.phase == Phase::SynReceived {
                self.acknowledge(now, output);
            }
            return;
        }
        let answers = self.phase == Phase::SynReceived;
        let (room, _) = self.end.outgoing().room();
        let window = room.min(usize::from(u16::MAX));
        let scaled = !answers || self.receiving.scale > 0;
        let header = Header {
            seq: self.sending.una,
            ack: answers.then_some(self.receiving.nxt),
            window: u16::try_from(window).unwrap_or(u16::MAX),
            syn: true,
            mss: Some(u16::try_from(self.receiving.mss()).unwrap_or(u16::MAX)),
            scale: scaled.then_some(SCALE),
            sack_permitted: self.sack,
            timestamp: self.stamps.then(|| (self.stamp(now), self.receiving.stamp)),
            ..Header::default()
        };
        if answers {
            self.receiving.tell_plain(window);
        }
        self.emit(header, 0, output);
        self.sending.nxt = self.sending.una.plus(1);
        if self.sending.max == self.sending.una {
            self.sending.timed = Some((self.sending.nxt, now));
        } else {
            self.sending.timed = None;
        }
        self.sending.max = self.sending.max.later(self.sending.nxt);
        self.timing.arrange(false, false, &self.rounds, now);
    }

    /// A header with what every segment tells.
    pub(super) fn header(&mut self, seq: Seq, now: Instant) -> Header {
        let window = self.receiving.window(self.end.outgoing());
        Header {
            seq,
            window: self.receiving.tell(window),
            ack: Some(self.receiving.nxt),
            timestamp: self.stamps.then(|| (self.stamp(now), self.receiving.stamp)),
            ..Header::default()
        }
    }

    pub(super) fn acknowledge(&mut self, now: Instant, output: &mut dyn Output) {
        let mut header = self.header(self.sending.max, now);
        if self.sack {
            header.blocks = self.receiving.blocks();
        }
        self.emit(header, 0, output);
    }

    /// Sends a segment with so many bytes of the queue.
    fn emit(&mut self, header: Header, count: usize, output: &mut dyn Output) -> bool {
        let queue = self.end.incoming();
        let start = header.seq.after(self.sending.una);
        let sent = output.send(&header, Bytes { queue, start, count, mss: self.sending.mss });
        if !sent {
            self.sending.blocked = true;
            self.receiving.acknowledge_now();
        }
        sent
    }

    /// Bytes that the congestion window leaves.
    fn allowance(&self) -> usize {
        self.congestion.bytes(self.sending.mss).saturating_sub(self.sending.in_flight())
    }

    /// Sends one segment of what is lost.
    fn send_again(&mut self, now: Instant, output: &mut dyn Output) -> bool {
        let Some((start, end)) = self.sending.hole() else { return false };
        let mss = self.sending.mss;
        let allowed = self.allowance();
        let first = start == self.sending.una && self.sending.hole.is_none();
        if allowed < mss && !first || self.sending.blocked {
            return false;
        }
        let data_end = self.sending.fin.map_or(end, |fin| fin.earlier(end));
        let most = output.most().max(mss);
        let count = data_end.after(start).min(most).min(allowed.max(mss));
        let count = if count > mss { count - count % mss } else { count };
        let fin = self.sending.fin.is_some_and(|fin| fin == start.plus(count) && fin.is_before(end));
        let mut header = self.header(start, now);
        (header.fin, header.push) = (fin, true);
        if !self.emit(header, count, output) {
            return false;
        }
        if first {
            self.sending.hole = Some(now);
        }
        self.timing.repeated = self.timing.repeated.saturating_add(1);
        self.sending.again = start.plus(count).plus(usize::from(fin));
        self.sending.timed = None;
        self.timing.arrange(false, false, &self.rounds, now);
        count > 0 || fin
    }

    /// How many bytes that were never sent may be sent now, in one segment or several.
    fn fresh(&mut self, unsent: usize, ended: bool) -> usize {
        let mss = self.sending.mss;
        let allowed = self.allowance();
        let window = self.sending.limit.after(self.sending.nxt);
        self.sending.limited |= allowed < unsent.min(window);
        let want = unsent.min(allowed).min(window);
        if self.sending.force && want > 0 {
            return want;
        }
        let idle = self.sending.outstanding() == 0;
        let cork = self.settings.cork || self.sending.more;
        let small_waits = self.sending.una.is_before(self.sending.small);
        let partial = want == unsent && (ended || !cork && (self.settings.no_delay || idle || !small_waits));
        if partial
            || want < mss && want < unsent && want >= (self.sending.largest / 2).max(1) && want == window
        {
            return want;
        }
        want - want % mss
    }

    /// Sends one segment that was never sent.
    fn send_new(&mut self, now: Instant, output: &mut dyn Output) -> bool {
        if !matches!(self.phase, Phase::Established | Phase::CloseWait) || self.sending.blocked {
            return false;
        }
        // In this order: once it has ended nothing is added.
        let ended = self.end.incoming().flags().ended;
        let unsent = self.unsent();
        let mss = self.sending.mss;
        let count = self.fresh(unsent, ended).min(output.most().max(mss));
        let count = if count > mss && count < unsent { count - count % mss } else { count };
        let fin = ended && count == unsent;
        if count == 0 && !fin {
            if unsent == 0 && self.sending.in_flight() < self.congestion.bytes(mss) / 2 {
                self.sending.limited = false;
            }
            self.timing.arrange_cork(unsent > 0 && self.sending.limit.after(self.sending.nxt) > 0, now);
            return false;
        }
        let start = self.sending.nxt;
        let mut header = self.header(start, now);
        (header.fin, header.push) = (fin, count == unsent);
        header.urgent = self.urgent(start);
        if !self.emit(header, count, output) {
            return false;
        }
        let end = start.plus(count).plus(usize::from(fin));
        if fin {
            self.sending.fin = Some(start.plus(count));
            self.phase = if self.phase == Phase::CloseWait { Phase::LastAck } else { Phase::FinWait1 };
        }
        if count % mss != 0 {
            self.sending.small = end;
        }
        self.sending.force = false;
        (self.sending.nxt, self.sending.max) = (end, self.sending.max.later(end));
        if self.sending.timed.is_none() && self.sending.recover.is_none() {
            self.sending.timed = Some((end, now));
        }
        self.timing.sent(now);
        self.timing.arrange(false, false, &self.rounds, now);
        true
    }

    fn urgent(&self, start: Seq) -> Option<u16> {
        let end = self.sending.una.plus(self.end.incoming().urgent_end()?);
        if end.since(start) <= 0 { None } else { u16::try_from(end.after(start)).ok() }
    }

    /// The last segment once more, so that the other side tells what it has.
    pub(super) fn probe_tail(&mut self, now: Instant, output: &mut dyn Output) {
        let sending = &self.sending;
        let end = sending.fin.map_or(sending.nxt, |fin| fin.earlier(sending.nxt));
        let count = end.after(sending.una).min(sending.mss);
        let start = Seq(end.0.wrapping_sub(count as u32));
        let fin = sending.fin == Some(end) && end.is_before(sending.nxt);
        let mut header = self.header(start, now);
        (header.fin, header.push) = (fin, true);
        self.sending.timed = None;
        self.emit(header, count, output);
    }

    /// A segment that nobody takes, which is answered with what is expected (`tcp_xmit_probe_skb`).
    pub(super) fn probe(&mut self, now: Instant, output: &mut dyn Output) {
        let seq = Seq(self.sending.una.0.wrapping_sub(1));
        let header = self.header(seq, now);
        self.emit(header, 0, output);
    }

    /// Round trip, deviation, windows, what is on its way, as `tcp_info` tells them.
    pub(crate) fn measures(&self) -> Measures {
        Measures {
            mss: self.sending.mss,
            round: self.rounds.smooth(),
            deviation: self.rounds.deviation(),
            timeout: self.rounds.timeout(),
            window: self.congestion.segments(),
            threshold: self.congestion.threshold(),
            outstanding: self.sending.outstanding(),
            repeated: self.timing.repeated,
            stamps: self.stamps,
            sack: self.sack,
            scales: [self.sending.scale, self.receiving.scale],
        }
    }
}

/// What [`Machine::measures`] tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measures {
    pub(crate) mss: usize,
    pub(crate) round: Duration,
    pub(crate) deviation: Duration,
    pub(crate) timeout: Duration,
    pub(crate) window: u32,
    pub(crate) threshold: u32,
    pub(crate) outstanding: usize,
    pub(crate) repeated: u32,
    pub(crate) stamps: bool,
    pub(crate) sack: bool,
    pub(crate) scales: [u8; 2],
}
