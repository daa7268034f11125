//! Packets that come in parts (RFC 791, 8200 4.5). Parts that overlap spoil their packet (RFC 5722).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Packets that are being put together, and bytes of them all (`net.ipv4.ipfrag_high_thresh`).
const PACKETS: usize = 256;
const BYTES: usize = 4 << 20;
/// Parts of one.
const PARTS: usize = 2048;
/// How long the parts may take (`net.ipv4.ipfrag_time`).
const TIME: Duration = Duration::from_secs(30);

/// What parts of one packet have in common.
pub(crate) type Key = (IpAddr, IpAddr, u32, u8);

struct Parts {
    since: Instant,
    /// In order.
    parts: Vec<(usize, Vec<u8>)>,
    bytes: usize,
    end: Option<usize>,
}

/// Packets that are being put together.
#[derive(Default)]
pub(crate) struct Fragments {
    packets: HashMap<Key, Parts>,
    bytes: usize,
}

impl Fragments {
    fn drop_packet(&mut self, key: &Key) {
        if let Some(parts) = self.packets.remove(key) {
            self.bytes = self.bytes.saturating_sub(parts.bytes);
        }
    }

    fn make_room(&mut self, now: Instant) {
        let old: Vec<_> = self
            .packets
            .iter()
            .filter(|(_, parts)| now.saturating_duration_since(parts.since) > TIME)
            .map(|(key, _)| *key)
            .collect();
        old.iter().for_each(|key| self.drop_packet(key));
        while self.packets.len() >= PACKETS || self.bytes > BYTES {
            let Some(oldest) = self.packets.iter().min_by_key(|(_, parts)| parts.since).map(|(key, _)| *key)
            else {
                break;
            };
            self.drop_packet(&oldest);
        }
    }

    /// A part came, at an offset, with `more` after it: the whole packet, if it was the last that was missing.
    pub(crate) fn add(
        &mut self,
        key: Key,
        offset: usize,
        more: bool,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Vec<u8>> {
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= 65_535)?;
        if bytes.is_empty() || more && !bytes.len().is_multiple_of(8) {
            return None;
        }
        if !self.packets.contains_key(&key) {
            self.make_room(now);
        }
        let first = || Parts { since: now, parts: Vec::new(), bytes: 0, end: None };
        let parts = self.packets.entry(key).or_insert_with(first);
        let at = parts.parts.partition_point(|(start, _)| *start < offset);
        let before = at.checked_sub(1).and_then(|at| parts.parts.get(at));
        let overlaps = before.is_some_and(|(start, part)| start.saturating_add(part.len()) > offset)
            || parts.parts.get(at).is_some_and(|(start, _)| *start < end);
        let contradicts = match parts.end {
            Some(known) => end > known || !more && end != known,
            None => {
                !more
                    && parts.parts.last().is_some_and(|(start, part)| start.saturating_add(part.len()) > end)
            }
        };
        if parts.parts.get(at).is_some_and(|(start, part)| *start == offset && part == bytes) {
            // The same once more.
            return None;
        }
        if overlaps || contradicts || parts.parts.len() >= PARTS {
            self.drop_packet(&key);
            return None;
        }
        parts.parts.insert(at, (offset, bytes.to_vec()));
        parts.bytes = parts.bytes.saturating_add(bytes.len());
        self.bytes = self.bytes.saturating_add(bytes.len());
        if !more {
            parts.end = Some(end);
        }
        if parts.end != Some(parts.bytes) {
            return None;
        }
        let parts = self.packets.remove(&key)?;
        self.bytes = self.bytes.saturating_sub(parts.bytes);
        Some(parts.parts.into_iter().flat_map(|(_, part)| part).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u32) -> Key {
        (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]), number, 17)
    }

    #[test]
    fn parts_are_put_together_in_any_order() {
        let mut fragments = Fragments::default();
        let now = Instant::now();
        assert_eq!(fragments.add(key(1), 16, false, b"end", now), None);
        assert_eq!(fragments.add(key(1), 0, true, b"01234567", now), None);
        assert_eq!(fragments.add(key(1), 0, true, b"01234567", now), None);
        let whole = fragments.add(key(1), 8, true, b"89abcdef", now);
        assert_eq!(whole.as_deref(), Some(b"0123456789abcdefend".as_slice()));
        assert_eq!((fragments.bytes, fragments.packets.len()), (0, 0));
    }

    #[test]
    fn parts_that_overlap_spoil_it_and_old_ones_go() {
        let mut fragments = Fragments::default();
        let now = Instant::now();
        assert_eq!(fragments.add(key(1), 0, true, b"0123456789abcdef", now), None);
        assert_eq!(fragments.add(key(1), 8, false, b"89abcdef", now), None);
        assert_eq!(fragments.packets.len(), 0);
        for number in 0..1000 {
            fragments.add(key(number), 0, true, &[0; 8], now);
        }
        assert!(fragments.packets.len() <= PACKETS);
        fragments.add(key(5000), 0, true, &[0; 8], now + TIME * 2);
        assert_eq!(fragments.packets.len(), 1);
    }

    proptest! {
        #[test]
        fn any_parts(parts in proptest::collection::vec((0usize..300, any::<bool>(), 0usize..70), 0..60)) {
            let mut fragments = Fragments::default();
            for (offset, more, count) in parts {
                let bytes = vec![0; count];
                if let Some(whole) = fragments.add(key(1), offset * 8, more, &bytes, Instant::now()) {
                    prop_assert!(whole.len() <= 65_535);
                }
            }
            let kept: usize = fragments.packets.values().map(|parts| parts.bytes).sum();
            prop_assert_eq!(kept, fragments.bytes);
        }
    }
}
