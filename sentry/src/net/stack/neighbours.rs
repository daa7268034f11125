//! Whose hardware address is which (RFC 826, 4861): what was learned, and what waits for an answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Neighbours that are remembered (`net.ipv4.neigh.default.gc_thresh3`).
const MOST: usize = 1024;
/// Frames, and bytes of them, that wait for an answer.
const FRAMES: usize = 128;
const BYTES: usize = 256 * 1024;
/// How often and how long apart it is asked (`mcast_solicit`, `retrans_time_ms`).
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(1);
/// How long an answer is believed (`base_reachable_time_ms`).
const BELIEVED: Duration = Duration::from_secs(30);

#[derive(Debug)]
enum State {
    Asked { frames: Vec<Vec<u8>>, bytes: usize },
    Known { mac: [u8; 6], since: Instant },
    Permanent([u8; 6]),
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// How often it was asked, and when it is asked again.
    asked: Option<(u32, Instant)>,
}

/// What to do with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It can be sent; whether it is to be asked anew.
    Known([u8; 6], bool),
    /// It waits; whether it is to be asked.
    Waits(bool),
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// To be asked, by its hardware address if there is one.
    Ask(IpAddr, Option<[u8; 6]>),
    /// It does not answer: these frames were for it.
    Silent(IpAddr, Vec<Vec<u8>>),
}

/// Neighbours of an interface.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    entries: HashMap<IpAddr, Entry>,
}

impl Neighbours {
    /// One that was known before.
    pub(crate) fn insert(&mut self, ip: IpAddr, mac: [u8; 6], permanent: bool, now: Instant) {
        if self.entries.len() < MOST {
            // What was known is asked for when it is used.
            let since = now.checked_sub(BELIEVED).unwrap_or(now);
            let state = if permanent { State::Permanent(mac) } else { State::Known { mac, since } };
            self.entries.insert(ip, Entry { state, asked: None });
        }
    }

    /// A frame is for somebody. It is left in `frame` where it can be sent, else taken out.
    pub(crate) fn find(&mut self, ip: IpAddr, frame: &mut Vec<u8>, now: Instant) -> Found {
        if !self.entries.contains_key(&ip) {
            self.make_room();
        }
        let first = || Entry { state: State::Asked { frames: Vec::new(), bytes: 0 }, asked: None };
        let entry = self.entries.entry(ip).or_insert_with(first);
        let asks = entry.asked.is_none();
        match &mut entry.state {
            State::Permanent(mac) => Found::Known(*mac, false),
            State::Known { mac, since } => {
                let asks = asks && now.saturating_duration_since(*since) >= BELIEVED;
                if asks {
                    entry.asked = now.checked_add(BETWEEN).map(|at| (1, at));
                }
                Found::Known(*mac, asks)
            }
            State::Asked { frames, bytes } => {
                if frames.len() < FRAMES && bytes.saturating_add(frame.len()) <= BYTES {
                    *bytes = bytes.saturating_add(frame.len());
                    frames.push(std::mem::take(frame));
                }
                if asks {
                    entry.asked = now.checked_add(BETWEEN).map(|at| (1, at));
                }
                Found::Waits(asks)
            }
        }
    }

    /// Forgets who was heard of longest ago, where there are too many.
    fn make_room(&mut self) {
        if self.entries.len() < MOST {
            return;
        }
        let age = |entry: &Entry| match entry.state {
            State::Known { since, .. } => Some(since),
            _ => None,
        };
        let oldest = self.entries.iter().filter_map(|(ip, entry)| Some((age(entry)?, *ip))).min();
        let any = self.entries.iter().find(|(_, entry)| matches!(entry.state, State::Asked { .. }));
        if let Some(ip) = oldest.map(|(_, ip)| ip).or(any.map(|(ip, _)| *ip)) {
            self.entries.remove(&ip);
        }
    }

    /// Somebody told its hardware address: the frames that waited for it. Only who is known or asked for is listened to, unless `asks`.
    pub(crate) fn learn(&mut self, ip: IpAddr, mac: [u8; 6], asks: bool, now: Instant) -> Vec<Vec<u8>> {
        if !self.entries.contains_key(&ip) {
            if !asks {
                return Vec::new();
            }
            self.make_room();
        }
        let known = || State::Known { mac, since: now };
        let entry = self.entries.entry(ip).or_insert_with(|| Entry { state: known(), asked: None });
        if matches!(entry.state, State::Permanent(_)) {
            return Vec::new();
        }
        entry.asked = None;
        match std::mem::replace(&mut entry.state, known()) {
            State::Asked { frames, .. } => frames,
            _ => Vec::new(),
        }
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.asked.map(|(_, at)| at)).min()
    }

    /// What is due.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        self.entries.retain(|ip, entry| {
            let Some((tries, at)) = entry.asked else { return true };
            if at > now {
                return true;
            }
            if tries < TRIES {
                entry.asked = now.checked_add(BETWEEN).map(|at| (tries + 1, at));
                let mac = match entry.state {
                    // The last time everybody is asked: it may have another hardware address.
                    State::Known { mac, .. } if tries + 1 < TRIES => Some(mac),
                    _ => None,
                };
                due.push(Due::Ask(*ip, mac));
                return true;
            }
            let frames = match &mut entry.state {
                State::Asked { frames, .. } => std::mem::take(frames),
                _ => Vec::new(),
            };
            due.push(Due::Silent(*ip, frames));
            false
        });
        due
    }

    /// All that are known, whether for ever, and whether lately.
    pub(crate) fn list(&self, now: Instant) -> Vec<(IpAddr, [u8; 6], bool, bool)> {
        let told = |(ip, entry): (&IpAddr, &Entry)| match entry.state {
            State::Known { mac, since } => {
                Some((*ip, mac, false, now.saturating_duration_since(since) < BELIEVED))
            }
            State::Permanent(mac) => Some((*ip, mac, true, true)),
            State::Asked { .. } => None,
        };
        let mut all: Vec<_> = self.entries.iter().filter_map(told).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_wait_for_an_answer_or_for_none() {
        let mut neighbours = Neighbours::default();
        let (ip, now): (IpAddr, _) = ("10.0.0.1".parse().unwrap(), Instant::now());
        assert_eq!(neighbours.find(ip, &mut vec![1], now), Found::Waits(true));
        assert_eq!(neighbours.find(ip, &mut vec![2], now), Found::Waits(false));
        assert_eq!(neighbours.learn(ip, [1; 6], false, now), [vec![1], vec![2]]);
        let mut frame = vec![3];
        assert_eq!(neighbours.find(ip, &mut frame, now), Found::Known([1; 6], false));
        assert_eq!(frame, [3]);
        let later = now + BELIEVED;
        assert_eq!(neighbours.find(ip, &mut frame, later), Found::Known([1; 6], true));
        assert_eq!(neighbours.tick(later), []);
        assert_eq!(neighbours.tick(later + BETWEEN), [Due::Ask(ip, Some([1; 6]))]);
        assert_eq!(neighbours.tick(later + BETWEEN * 2), [Due::Ask(ip, None)]);
        assert_eq!(neighbours.tick(later + BETWEEN * 3), [Due::Silent(ip, vec![])]);
        assert_eq!(neighbours.deadline(), None);
    }

    #[test]
    fn strangers_are_not_listened_to_and_too_many_are_forgotten() {
        let mut neighbours = Neighbours::default();
        let now = Instant::now();
        let ip = |number: u32| IpAddr::from(number.to_be_bytes());
        assert!(neighbours.learn(ip(1), [1; 6], false, now).is_empty());
        assert!(neighbours.list(now).is_empty());
        for number in 0..3000 {
            neighbours.learn(ip(number), [1; 6], true, now);
            neighbours.find(ip(number + 10_000), &mut vec![0; 1500], now);
        }
        assert!(neighbours.entries.len() <= MOST);
        neighbours.insert(ip(5), [9; 6], true, now);
    }
}
