//! Reads on a thread of its own, a little ahead of who uses the bytes: decompressing and unpacking a layer then keep two processors busy.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes that are handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces that may wait.
const AHEAD: usize = 2;

/// What a reader gives, read ahead by [`AHEAD`] pieces. When it is dropped the thread ends with its next piece, and nobody waits for that.
pub(crate) struct ReadAhead {
    full: Receiver<io::Result<Vec<u8>>>,
    /// Where used pieces go back to; room for all there are, so that nobody waits here.
    empty: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    used: usize,
    ended: bool,
}

impl ReadAhead {
    /// Begins to read.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(crate) fn new(mut reader: Box<dyn Read + Send>) -> io::Result<Self> {
        let (fill, full) = sync_channel(AHEAD);
        let (empty, spare) = sync_channel::<Vec<u8>>(AHEAD + 2);
        std::thread::Builder::new().name("layer".to_owned()).spawn(move || {
            loop {
                let mut piece = spare.try_recv().unwrap_or_default();
                piece.resize(PIECE, 0);
                let (length, failed) = fill_up(&mut reader, &mut piece);
                piece.truncate(length);
                // An empty piece is the end.
                let more = !piece.is_empty();
                if (more || failed.is_none()) && fill.send(Ok(piece)).is_err() {
                    return;
                }
                if let Some(error) = failed {
                    let _ = fill.send(Err(error));
                    return;
                }
                if !more {
                    return;
                }
            }
        })?;
        Ok(Self { full, empty, piece: Vec::new(), used: 0, ended: false })
    }
}

/// Reads until `piece` is full, there is no more, or an error comes: readers tell of one once, and of an end afterwards.
fn fill_up(reader: &mut dyn Read, piece: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut length = 0;
    while let Some(rest) = piece.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(error)),
        }
    }
    (length, None)
}

impl Read for ReadAhead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.piece.len() && !self.ended {
            let _ = self.empty.try_send(std::mem::take(&mut self.piece));
            // A thread that is gone without an end has panicked.
            let next = self.full.recv().map_err(|_| io::Error::other("reading ahead failed"));
            (self.piece, self.used) = (next.and_then(|piece| piece).inspect_err(|_| self.ended = true)?, 0);
            self.ended = self.piece.is_empty();
        }
        let rest = self.piece.get(self.used..).unwrap_or_default();
        let count = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.used += count;
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives its bytes in pieces of some length, then ends, or fails once.
    struct Source {
        bytes: Vec<u8>,
        at: usize,
        step: usize,
        fails: bool,
    }

    impl Read for Source {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = out.len().min(self.step).min(self.bytes.len() - self.at);
            if count == 0 && std::mem::take(&mut self.fails) {
                return Err(io::Error::other("the archive is broken"));
            }
            out[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            Ok(count)
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_the_reader_gave(
            length in 0..(3 * PIECE), step in 1..PIECE * 2, take in 1..PIECE, fails: bool,
        ) {
            let bytes: Vec<u8> = (0..length).map(|n| (n / 7) as u8).collect();
            let source = Source { bytes: bytes.clone(), at: 0, step, fails };
            let mut ahead = ReadAhead::new(Box::new(source)).unwrap();
            let (mut read, mut buffer) = (Vec::new(), vec![0; take]);
            let ended = loop {
                match ahead.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(count) => read.extend_from_slice(&buffer[..count]),
                    Err(error) => break Err(error.to_string()),
                }
            };
            prop_assert!(read == bytes);
            prop_assert_eq!(ended, if fails { Err("the archive is broken".to_owned()) } else { Ok(()) });
            prop_assert_eq!(ahead.read(&mut buffer).unwrap(), 0, "an end stays one");
        }
    }

    #[test]
    fn who_needs_no_more_waits_for_nobody() {
        struct Endless;
        impl Read for Endless {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                out.fill(1);
                Ok(out.len())
            }
        }
        let mut ahead = ReadAhead::new(Box::new(Endless)).unwrap();
        ahead.read_exact(&mut [0; 10]).unwrap();
        drop(ahead);
    }
}
