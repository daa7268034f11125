//! What comes: put in order, told of by ACK and SACK, within a window that grows with who reads it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::{BLOCKS, Range, Segment, Seq};
use crate::net::Budget;
use crate::net::buffer::ByteQueue;

/// Our scale of windows: 8 MiB can be told.
pub(super) const SCALE: u8 = 7;
/// Bytes that a buffer grows to by itself (as `net.ipv4.tcp_rmem` has it, 6 MiB).
pub(crate) const MOST: usize = 6 << 20;
/// Pieces that wait for what comes before them.
const PIECES: usize = 8192;
/// What a piece counts for beyond its bytes.
const OVERHEAD: usize = 64;
/// Segments that are acknowledged at once at the beginning (`TCP_MAX_QUICKACKS`).
const QUICK: u32 = 16;
/// How long an ACK waits for company (`TCP_DELACK_MIN`).
pub(super) const DELAY: Duration = Duration::from_millis(40);
/// A timestamp is not believed to be newer than one that is so old (`TCP_PAWS_24DAYS`).
const OLD: Duration = Duration::from_secs(24 * 24 * 3600);

/// What a segment brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) bytes: bool,
    pub(super) urgent: bool,
    pub(super) end: bool,
}

/// State of the receiving side.
pub(super) struct Receiving {
    /// What is expected next.
    pub(super) nxt: Seq,
    /// The end of the window that was told.
    edge: Seq,
    pub(super) scale: u8,
    mss: usize,
    /// Latest timestamp of theirs, and when it came.
    pub(super) stamp: u32,
    stamp_time: Option<Instant>,
    /// What the last ACK acknowledged.
    told: Seq,
    /// Out of order, in order of sequence, without overlaps.
    pieces: VecDeque<(Seq, Vec<u8>)>,
    /// What they are counted by, and how much of it they take.
    budget: Arc<Budget>,
    counted: usize,
    /// The same as ranges, in order; and those that were changed last.
    ranges: Vec<Range>,
    recent: Vec<Seq>,
    /// Received twice, to be told once (RFC 2883).
    twice: Option<Range>,
    fin: Option<Seq>,
    quick: u32,
    now: bool,
    /// Bytes since the last ACK.
    unacknowledged: usize,
    pub(super) delayed: Option<Instant>,
    /// Where measuring what is received in a round began.
    marked: Option<(Instant, Seq)>,
}

impl Receiving {
    pub(super) fn new(mss: usize, budget: &Arc<Budget>) -> Self {
        Self {
            nxt: Seq::default(),
            edge: Seq::default(),
            scale: SCALE,
            mss,
            stamp: 0,
            stamp_time: None,
            told: Seq::default(),
            pieces: VecDeque::new(),
            budget: Arc::clone(budget),
            counted: 0,
            ranges: Vec::new(),
            recent: Vec::new(),
            twice: None,
            fin: None,
            quick: QUICK,
            now: false,
            unacknowledged: 0,
            delayed: None,
            marked: None,
        }
    }

    /// The SYN of the other side.
    pub(super) fn begin(&mut self, syn: &Segment<'_>, now: Instant) {
        self.nxt = syn.seq.plus(1);
        self.edge = self.nxt;
        self.told = self.nxt;
        if let Some((value, _)) = syn.timestamp {
            (self.stamp, self.stamp_time) = (value, Some(now));
        }
    }

    pub(super) fn mark(&mut self, now: Instant) {
        self.marked = Some((now, self.nxt));
    }

    pub(super) fn acknowledge_now(&mut self) {
        self.now = true;
    }

    /// Whether a segment is not from before (PAWS, RFC 7323, 5).
    pub(super) fn is_young(&self, segment: &Segment<'_>, stamps: bool, now: Instant) -> bool {
        let (true, Some((value, _)), Some(time)) = (stamps, segment.timestamp, self.stamp_time) else {
            return true;
        };
        value.wrapping_sub(self.stamp).cast_signed() >= 0 || now.saturating_duration_since(time) > OLD
    }

    pub(super) fn note_stamp(&mut self, segment: &Segment<'_>, stamps: bool, now: Instant) {
        if let (true, Some((value, _))) = (stamps, segment.timestamp)
            && segment.seq.since(self.told) <= 0
        {
            (self.stamp, self.stamp_time) = (value, Some(now));
        }
    }

    /// Whether any of a segment lies in the window (RFC 9293, 3.4).
    pub(super) fn fits(&self, segment: &Segment<'_>) -> bool {
        let end = segment.seq.plus(segment.length());
        !end.is_before(self.nxt)
            && segment.seq.since(self.edge.later(self.nxt)) <= 0
            && (segment.length() == 0 || end != self.nxt || segment.seq == self.nxt)
    }

    /// The window to be told, as bytes: it never shrinks.
    pub(super) fn window(&self, queue: &ByteQueue) -> usize {
        let (room, limit) = queue.room();
        // Less than a segment, or than half of a small buffer, is none (RFC 9293, 3.8.6.2.2).
        let room = if room < self.mss.min(limit / 2) { 0 } else { room };
        let unit = (1_usize << self.scale) - 1;
        let most = usize::from(u16::MAX) << self.scale;
        room.min(most).max(self.edge.after(self.nxt)).saturating_add(unit) & !unit
    }

    /// A window is put into a segment that is sent: what it acknowledges, it acknowledges.
    pub(super) fn tell(&mut self, window: usize) -> u16 {
        let told = window >> self.scale;
        self.edge = self.edge.later(self.nxt.plus(window));
        self.told = self.nxt;
        (self.now, self.unacknowledged, self.delayed) = (false, 0, None);
        u16::try_from(told).unwrap_or(u16::MAX)
    }

    /// The same for a SYN, whose window has no scale.
    pub(super) fn tell_plain(&mut self, window: usize) {
        self.edge = self.edge.later(self.nxt.plus(window));
        self.told = self.nxt;
    }

    /// What is told to be the longest segment.
    pub(super) fn mss(&self) -> usize {
        self.mss
    }

    /// Room of the queue from which on the other side is to be told of it.
    pub(super) fn worth_telling(&self, queue: &ByteQueue) -> usize {
        let left = self.edge.after(self.nxt);
        let (_, limit) = queue.room();
        left.saturating_add((limit / 4).max(self.mss.min(limit / 2)).max(1))
    }

    /// Whether an ACK is due, now or at a time.
    pub(super) fn is_due(&self) -> bool {
        self.now
    }

    /// Blocks of SACK: first what was told twice, then what changed last.
    pub(super) fn blocks(&mut self) -> [Option<Range>; BLOCKS] {
        let mut blocks = [None; BLOCKS];
        let recent = self.recent.iter().filter_map(|seq| {
            self.ranges.iter().find(|range| range.0.since(*seq) <= 0 && seq.is_before(range.1))
        });
        let all = self.twice.iter().chain(recent);
        for (place, range) in blocks.iter_mut().zip(all) {
            *place = Some(*range);
        }
        self.twice = None;
        blocks
    }

    pub(super) fn has_gaps(&self) -> bool {
        !self.ranges.is_empty() || self.twice.is_some()
    }

    /// Takes bytes and FIN.
    pub(super) fn take(
        &mut self,
        segment: &Segment<'_>,
        queue: &ByteQueue,
        round: Duration,
        fixed: bool,
        now: Instant,
    ) -> Came {
        let mut came = Came::default();
        let end = segment.seq.plus(segment.payload.len());
        let skipped = self.nxt.after(segment.seq).min(segment.payload.len());
        let fresh = segment.payload.get(skipped..).unwrap_or_default();
        if skipped > 0 {
            self.twice = Some((segment.seq, segment.seq.plus(skipped)));
            self.now = true;
        }
        let start = segment.seq.plus(skipped);
        let room = self.edge.later(self.nxt).after(start);
        let fresh = fresh.get(..room).unwrap_or(fresh);
        if segment.fin && fresh.len().saturating_add(skipped) == segment.payload.len() {
            self.fin = Some(end);
        }
        if fresh.is_empty() {
            // Beyond the window, or a FIN before whose bytes others are missing.
            self.now |= segment.length() > 0;
        } else {
            if start == self.nxt {
                came.bytes = self.append(fresh, queue);
                self.unacknowledged = self.unacknowledged.saturating_add(fresh.len());
                came.bytes |= self.join(queue);
                self.urgent(segment, queue, &mut came);
                self.schedule(now);
                self.grow(queue, round, fixed, now);
            } else {
                self.now = true;
                self.keep(start, fresh);
            }
        }
        if self.fin == Some(self.nxt) {
            self.nxt = self.nxt.plus(1);
            self.fin = None;
            came.end = true;
        }
        came
    }

    /// Puts bytes where the program reads them. What the queue does not take, for want of memory, did not come.
    fn append(&mut self, mut bytes: &[u8], queue: &ByteQueue) -> bool {
        let put = queue.put(&mut bytes, &mut crate::net::buffer::Tag::default()).unwrap_or(0);
        self.nxt = self.nxt.plus(put);
        put > 0
    }

    /// The end of urgent data, where this segment has it: the byte before it is the urgent one, as Linux has it.
    fn urgent(&self, segment: &Segment<'_>, queue: &ByteQueue, came: &mut Came) {
        let Some(urgent) = segment.urgent.filter(|at| *at > 0) else { return };
        let end = segment.seq.plus(usize::from(urgent));
        if end.since(segment.seq.plus(segment.payload.len())) <= 0 && end.since(self.nxt) <= 0 {
            queue.mark_urgent_before_end(self.nxt.after(end));
            came.urgent = true;
        }
    }

    fn schedule(&mut self, now: Instant) {
        if self.quick > 0 || self.unacknowledged >= self.mss.saturating_mul(2) || !self.ranges.is_empty() {
            self.quick = self.quick.saturating_sub(1);
            self.now = true;
        } else if self.delayed.is_none() {
            self.delayed = now.checked_add(DELAY);
        }
    }

    fn give_back(&mut self, cost: usize) {
        self.counted = self.counted.saturating_sub(cost);
        self.budget.give(cost);
    }

    /// Keeps what came out of order.
    fn keep(&mut self, start: Seq, bytes: &[u8]) {
        let end = start.plus(bytes.len());
        if self.pieces.len() >= PIECES {
            return;
        }
        // Most often it comes after all others.
        let at = match self.pieces.back() {
            Some((seq, piece)) if !start.is_before(seq.plus(piece.len())) => self.pieces.len(),
            _ => self.pieces.partition_point(|(seq, piece)| !start.is_before(seq.plus(piece.len()))),
        };
        let until = self.pieces.get(at).map_or(end, |(seq, _)| seq.earlier(end));
        // The part before the next piece that is there; what that one covers is not looked at again.
        let count = until.after(start);
        if count == 0 {
            self.twice = Some((start, end));
            return;
        }
        let cost = count.saturating_add(OVERHEAD);
        if let Some(part) = bytes.get(..count)
            && self.budget.take(cost)
        {
            self.counted = self.counted.saturating_add(cost);
            self.pieces.insert(at, (start, part.to_vec()));
            self.note((start, until));
        }
        if let Some((seq, piece)) = self.pieces.get(at.saturating_add(1)) {
            let next = seq.plus(piece.len());
            if let Some(rest) =
                bytes.get(next.after(start)..).filter(|rest| !rest.is_empty() && next.since(end) < 0)
            {
                self.keep(next, rest);
            }
        }
    }

    /// Adds a range, joined with its neighbours.
    fn note(&mut self, mut range: Range) {
        let first = self.ranges.partition_point(|other| other.1.is_before(range.0));
        let touching = self.ranges.iter().skip(first).take_while(|other| other.0.since(range.1) <= 0).count();
        for other in self.ranges.drain(first..first.saturating_add(touching)) {
            range = (range.0.earlier(other.0), range.1.later(other.1));
        }
        self.ranges.insert(first, range);
        self.recent.retain(|seq| seq.is_before(range.0) || !seq.is_before(range.1));
        self.recent.insert(0, range.0);
        self.recent.truncate(BLOCKS + 1);
    }

    /// Moves what is now in order to the program.
    fn join(&mut self, queue: &ByteQueue) -> bool {
        let mut moved = false;
        while let Some((seq, _)) = self.pieces.front()
            && seq.since(self.nxt) <= 0
        {
            let Some((seq, piece)) = self.pieces.pop_front() else { break };
            self.give_back(piece.len().saturating_add(OVERHEAD));
            let fresh = piece.get(self.nxt.after(seq)..).unwrap_or_default();
            if fresh.is_empty() {
                continue;
            }
            let end = seq.plus(piece.len());
            moved |= self.append(fresh, queue);
            if self.nxt.is_before(end) {
                // No memory: the rest is as if it had not come.
                self.pieces.clear();
                self.give_back(self.counted);
            }
        }
        let nxt = self.nxt;
        if self.pieces.is_empty() {
            self.ranges.clear();
        } else {
            self.ranges.retain(|range| nxt.is_before(range.1));
        }
        let ranges = &self.ranges;
        self.recent
            .retain(|seq| ranges.iter().any(|range| range.0.since(*seq) <= 0 && seq.is_before(range.1)));
        moved
    }

    /// A buffer that was filled within a round or two, and read, is doubled (`tcp_rcv_space_adjust`).
    fn grow(&mut self, queue: &ByteQueue, round: Duration, fixed: bool, now: Instant) {
        let (room, limit) = queue.room();
        let Some((began, seq)) = self.marked else { return };
        if fixed || limit >= MOST || self.nxt.after(seq) < limit {
            return;
        }
        let time = now.saturating_duration_since(began);
        if time < round.saturating_mul(2).saturating_add(Duration::from_millis(50)) && room > limit / 4 {
            queue.set_limit(limit.saturating_mul(2).min(MOST));
        }
        self.marked = Some((now, self.nxt));
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.budget.give(self.counted);
    }
}
