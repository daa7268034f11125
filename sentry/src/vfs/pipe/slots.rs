//! What is in a pipe: up to so many buffers of a page each, as Linux keeps it (`fs/pipe.c`). A pipe is full when all are in use, however
//! little is in them; a small write goes to the last one where it fits as a whole.

use std::collections::VecDeque;

use super::ATOMIC;

/// A buffer.
struct Slot {
    bytes: Vec<u8>,
    /// How many have been read.
    taken: usize,
    /// Written with `O_DIRECT`: read alone, and what a read has no room for is lost.
    packet: bool,
}

impl Slot {
    fn left(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }
}

/// The buffers of a pipe.
#[derive(Default)]
pub(super) struct Slots {
    slots: VecDeque<Slot>,
}

impl Slots {
    /// What is left in each, and whether it is a packet.
    pub(super) fn saved(&self) -> Vec<(Vec<u8>, bool)> {
        self.slots.iter().map(|slot| (slot.left().to_vec(), slot.packet)).collect()
    }

    /// `None` where one holds more than a page, or nothing.
    pub(super) fn restored(saved: &[(Vec<u8>, bool)]) -> Option<Self> {
        let slot = |(bytes, packet): &(Vec<u8>, bool)| {
            let fits = (1..=ATOMIC).contains(&bytes.len());
            fits.then(|| Slot { bytes: bytes.clone(), taken: 0, packet: *packet })
        };
        Some(Self { slots: saved.iter().map(slot).collect::<Option<_>>()? })
    }

    /// Buffers in use.
    pub(super) fn used(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes in it.
    pub(super) fn bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.left().len()).fold(0, usize::saturating_add)
    }

    /// Copies what would be read, and leaves it there; up to the end of the first packet.
    pub(super) fn peek(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slot in &self.slots {
            let left = slot.left();
            let Some(place) = to.get_mut(done..).filter(|place| !place.is_empty()) else { break };
            let count = left.len().min(place.len());
            place[..count].copy_from_slice(&left[..count]);
            done += count;
            if slot.packet {
                break;
            }
        }
        done
    }

    /// Reads; 0 only where there is nothing or no room.
    pub(super) fn take(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(slot) = self.slots.front_mut() {
            let Some(place) = to.get_mut(done..).filter(|place| !place.is_empty()) else { break };
            let left = slot.left();
            let count = left.len().min(place.len());
            place[..count].copy_from_slice(&left[..count]);
            done += count;
            let packet = slot.packet;
            slot.taken = slot.taken.saturating_add(count);
            if packet || slot.left().is_empty() {
                self.slots.pop_front();
            }
            if packet {
                break;
            }
        }
        done
    }

    /// Puts back in front what was read and could not be given to whoever read it.
    pub(super) fn put_back(&mut self, bytes: &[u8], packet: bool) {
        if !bytes.is_empty() {
            self.slots.push_front(Slot { bytes: bytes.to_vec(), taken: 0, packet });
        }
    }

    /// Writes as much as `most` buffers have room for; 0 where that is nothing.
    pub(super) fn put(&mut self, from: &[u8], most: usize, packet: bool) -> usize {
        let mut done = self.merge(from);
        while self.slots.len() < most {
            let left = from.get(done..).unwrap_or_default();
            let Some(part) = left.get(..left.len().min(ATOMIC)).filter(|part| !part.is_empty()) else {
                break;
            };
            self.slots.push_back(Slot { bytes: part.to_vec(), taken: 0, packet });
            done += part.len();
        }
        done
    }

    /// Puts what exceeds whole pages into the last buffer, if all of that fits there.
    fn merge(&mut self, from: &[u8]) -> usize {
        let odd = from.len() % ATOMIC;
        match self.slots.back_mut() {
            Some(last) if odd > 0 && !last.packet && last.bytes.len().saturating_add(odd) <= ATOMIC => {
                last.bytes.extend_from_slice(from.get(..odd).unwrap_or_default());
                odd
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_writes_share_a_buffer_and_packets_do_not() {
        let mut slots = Slots::default();
        assert_eq!((slots.put(b"one", 2, false), slots.put(b"two", 2, false)), (3, 3));
        assert_eq!((slots.used(), slots.bytes()), (1, 6));
        let mut packets = Slots::default();
        let mut put = |text| packets.put(text, 2, true);
        assert_eq!((put(b"three"), put(b"x"), put(b"y")), (5, 1, 0));
        let mut to = [0; 4];
        assert_eq!((packets.peek(&mut to), packets.take(&mut to)), (4, 4));
        assert_eq!((&to, packets.take(&mut to.clone()), packets.is_empty()), (b"thre", 1, true));
    }

    #[test]
    fn large_writes_fill_what_was_begun_only_with_their_odd_part() {
        let mut slots = Slots::default();
        assert_eq!(slots.put(&[1; 10], 3, false), 10);
        assert_eq!(slots.put(&[2; ATOMIC + 5], 3, false), ATOMIC + 5);
        assert_eq!((slots.used(), slots.bytes()), (2, ATOMIC + 15));
        assert_eq!(slots.put(&[3; 3 * ATOMIC], 3, false), ATOMIC);
        let mut to = [0; 12];
        assert_eq!(slots.take(&mut to), 12);
        slots.put_back(&to, false);
        assert_eq!(slots.bytes(), 2 * ATOMIC + 15);
    }
}
