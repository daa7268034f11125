//! Connections that are over, so that what is still on its way to them is not taken for something else (TIME_WAIT; RFC 9293, 3.10.7.4).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::tcp::Names;
use super::tcp::segment::{Header, Segment, Seq};

/// How long (`TCP_TIMEWAIT_LEN`), and how many (`net.ipv4.tcp_max_tw_buckets`).
const TIME: Duration = Duration::from_secs(60);
const MOST: usize = 16_384;

/// What is left of a connection: what it sent and expected, and their last timestamp with the clock of ours.
pub(crate) type Left = ([Seq; 2], Option<(u32, u32, Instant)>);

/// What to do with a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ignore,
    Send(Header),
    /// It belongs to nothing that is over.
    Unknown,
}

struct Entry {
    left: Left,
    until: Instant,
}

/// Connections that are over.
#[derive(Default)]
pub(crate) struct Past {
    entries: HashMap<Names, Entry>,
    order: VecDeque<(Instant, Names)>,
}

impl Past {
    pub(crate) fn remember(&mut self, names: Names, left: Left, now: Instant) {
        self.expire(now);
        let Some(until) = now.checked_add(TIME) else { return };
        if self.entries.len() < MOST {
            self.entries.insert(names, Entry { left, until });
            self.order.push_back((until, names));
        }
    }

    pub(crate) fn forget(&mut self, names: Names) {
        self.entries.remove(&names);
    }

    pub(crate) fn names(&self) -> Vec<Names> {
        self.entries.keys().copied().collect()
    }

    fn expire(&mut self, now: Instant) {
        while let Some((until, names)) = self.order.pop_front_if(|(until, _)| *until <= now) {
            if self.entries.get(&names).is_some_and(|entry| entry.until <= until) {
                self.entries.remove(&names);
            }
        }
        if self.order.len() > MOST * 2 {
            let entries = &self.entries;
            self.order.retain(|(until, names)| entries.get(names).is_some_and(|entry| entry.until == *until));
        }
    }

    /// A segment that belongs to no connection.
    pub(crate) fn arrive(&mut self, names: Names, segment: &Segment<'_>, now: Instant) -> Answer {
        self.expire(now);
        let Some(entry) = self.entries.get_mut(&names) else { return Answer::Unknown };
        let ([sent, expected], stamps) = entry.left;
        // RFC 1337: an RST does not end the waiting.
        if segment.rst {
            return Answer::Ignore;
        }
        let newer = match (stamps, segment.timestamp) {
            (Some((last, ..)), Some((value, _))) => value.wrapping_sub(last).cast_signed() > 0,
            _ => false,
        };
        if segment.syn && segment.ack.is_none() && (newer || segment.seq.since(expected) > 0) {
            // RFC 6191: a new connection.
            self.entries.remove(&names);
            return Answer::Unknown;
        }
        if segment.length() == 0 && segment.seq == expected {
            return Answer::Ignore;
        }
        let timestamp = stamps.map(|(last, base, began)| {
            let time = now.saturating_duration_since(began).as_millis();
            (base.wrapping_add((time & u128::from(u32::MAX)) as u32), last)
        });
        Answer::Send(Header { seq: sent, ack: Some(expected), timestamp, ..Header::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(header: Header) -> Segment<'static> {
        Segment { header, payload: &[] }
    }

    #[test]
    fn the_end_is_acknowledged_again_and_a_new_beginning_let_in() {
        let names: Names = ["10.0.0.1:80".parse().unwrap(), "10.0.0.2:1000".parse().unwrap()];
        let (mut past, now) = (Past::default(), Instant::now());
        let fin = of(Header { seq: Seq(99), ack: Some(Seq(7)), fin: true, ..Header::default() });
        assert_eq!(past.arrive(names, &fin, now), Answer::Unknown);
        past.remember(names, ([Seq(7), Seq(100)], None), now);
        let Answer::Send(header) = past.arrive(names, &fin, now) else { panic!() };
        assert_eq!((header.seq, header.ack), (Seq(7), Some(Seq(100))));
        let rst = of(Header { seq: Seq(100), rst: true, ..Header::default() });
        assert_eq!(past.arrive(names, &rst, now), Answer::Ignore);
        let old = of(Header { seq: Seq(50), syn: true, ..Header::default() });
        assert!(matches!(past.arrive(names, &old, now), Answer::Send(_)));
        let fresh = of(Header { seq: Seq(5000), syn: true, ..Header::default() });
        assert_eq!(past.arrive(names, &fresh, now), Answer::Unknown);
        past.remember(names, ([Seq(7), Seq(100)], None), now);
        assert_eq!(past.arrive(names, &fin, now + TIME), Answer::Unknown);
        assert_eq!(past.names().len(), 0);
    }
}
