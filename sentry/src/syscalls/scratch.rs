//! Room for bytes on their way between a file and a guest, kept by the thread that serves the guest: to get it anew for each call takes longer
//! than to copy them.

use std::cell::Cell;

/// Most bytes that are kept.
const KEPT: usize = 64 * 1024;

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Room for some bytes. What is in it is left from others that this thread served.
pub(super) struct Room {
    all: Vec<u8>,
    length: usize,
}

/// Takes room for so many bytes.
pub(super) fn take(length: usize) -> Room {
    let mut all = ROOM.take();
    if all.len() < length {
        all.resize(length, 0);
    }
    Room { all, length }
}

impl Room {
    /// The bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.all.get_mut(..self.length).unwrap_or_default()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.all.len() <= KEPT {
            ROOM.set(std::mem::take(&mut self.all));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_as_long_as_asked_for_and_kept() {
        let mut room = take(100);
        room.bytes().fill(7);
        assert_eq!(room.bytes().len(), 100);
        let mut other = take(10);
        assert_eq!(other.bytes(), [0; 10]);
        drop(room);
        drop(other);
        assert_eq!(take(4).bytes().len(), 4);
        drop(take(KEPT + 1));
        assert!(take(0).all.len() <= KEPT);
    }
}
