//! Messages as bytes: a length and how many descriptors come with it, four bytes each, low one first; then the message (postcard).
//!
//! Either end may be a liar: a length is bounded before a byte is kept, descriptors are bounded, and a message that has anything behind
//! its end is none.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Most bytes of a message to the sentry: a specification with as many arguments and variables as a program may have.
pub const ASKED_MAX: usize = 8 << 20;
/// Most bytes of a message to the monitor.
pub const TOLD_MAX: usize = 4 << 20;
/// Most descriptors of a message (the host's kernel takes 253: `SCM_MAX_FD`).
pub const DESCRIPTORS_MAX: usize = 250;
/// Bytes before a message.
pub const HEAD: usize = 8;

/// Why bytes are no message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// It says that it is longer than a message may be.
    #[error("a message of {length} bytes; at most {limit} are taken")]
    Length {
        /// What it says.
        length: usize,
        /// What there may be.
        limit: usize,
    },
    /// It says that more descriptors come with it than may.
    #[error("a message with {0} descriptors; at most {DESCRIPTORS_MAX} are taken")]
    Descriptors(usize),
    /// It is none.
    #[error("bytes that are no message: {0}")]
    Message(postcard::Error),
    /// Something is behind its end.
    #[error("{0} bytes behind the end of a message")]
    Trailing(usize),
}

/// A message as bytes.
///
/// # Errors
/// It is longer than it may be, or has more descriptors.
pub fn encode<T: Serialize>(message: &T, descriptors: usize, limit: usize) -> Result<Vec<u8>, FrameError> {
    if descriptors > DESCRIPTORS_MAX {
        return Err(FrameError::Descriptors(descriptors));
    }
    let bytes = postcard::to_extend(message, vec![0; HEAD]).map_err(FrameError::Message)?;
    let length = bytes.len().saturating_sub(HEAD);
    let too_long = FrameError::Length { length, limit };
    let short = u32::try_from(length).ok().filter(|_| length <= limit).ok_or(too_long)?;
    let count = u32::try_from(descriptors).map_err(|_| FrameError::Descriptors(descriptors))?;
    let mut bytes = bytes;
    if let Some(head) = bytes.first_chunk_mut::<HEAD>() {
        head[..4].copy_from_slice(&short.to_le_bytes());
        head[4..].copy_from_slice(&count.to_le_bytes());
    }
    Ok(bytes)
}

/// A message out of its bytes.
///
/// # Errors
/// They are none, or more than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(bytes).map_err(FrameError::Message)?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Trailing(rest.len())) }
}

/// A message that arrived, still as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message.
    pub body: Vec<u8>,
    /// How many descriptors came with it.
    pub descriptors: usize,
}

/// Messages out of a stream of bytes.
#[derive(Debug)]
pub struct Frames {
    bytes: Vec<u8>,
    limit: usize,
}

impl Frames {
    /// Of messages of at most so many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether all that arrived was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next whole message.
    ///
    /// # Errors
    /// What arrived cannot be one. Nothing sensible can follow.
    pub fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(head) = self.bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let (length, descriptors) = (number(&head[..4]), number(&head[4..]));
        if length > self.limit {
            return Err(FrameError::Length { length, limit: self.limit });
        }
        if descriptors > DESCRIPTORS_MAX {
            return Err(FrameError::Descriptors(descriptors));
        }
        let end = HEAD.saturating_add(length);
        let Some(body) = self.bytes.get(HEAD..end) else { return Ok(None) };
        let body = body.to_vec();
        self.bytes.drain(..end);
        if self.bytes.is_empty() {
            // A long message is rare: its room is given back.
            self.bytes = Vec::new();
        }
        Ok(Some(Frame { body, descriptors }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::message::{Answer, Ask, ContainerNumber, Request, Told};

    #[test]
    fn what_is_too_much_is_refused_before_it_is_kept() {
        let mut frames = Frames::new(100);
        frames.push(&[101, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(frames.take(), Err(FrameError::Length { length: 101, limit: 100 }));
        let mut frames = Frames::new(100);
        frames.push(&[1, 0, 0, 0, 251, 0, 0, 0]);
        assert_eq!(frames.take(), Err(FrameError::Descriptors(251)));
        let long = encode(&"x".repeat(200), 0, 100);
        assert!(matches!(long, Err(FrameError::Length { limit: 100, .. })), "{long:?}");
        assert_eq!(encode(&"x", 251, 100), Err(FrameError::Descriptors(251)));
    }

    #[test]
    fn what_is_behind_a_message_makes_it_none() {
        let request = Request { number: 7, ask: Ask::Start(ContainerNumber(3)) };
        let mut bytes = encode(&request, 0, ASKED_MAX).unwrap().split_off(HEAD);
        assert_eq!(decode::<Request>(&bytes), Ok(request));
        bytes.push(0);
        assert_eq!(decode::<Request>(&bytes), Err(FrameError::Trailing(1)));
    }

    proptest! {
        #[test]
        fn messages_arrive_however_they_are_cut(numbers in prop::collection::vec((any::<u64>(), 0_usize..9), 1..8), cut in 1_usize..40) {
            let told = |number| Told::Answer { number, result: Ok(Answer::Done) };
            let mut bytes = Vec::new();
            for (number, descriptors) in &numbers {
                bytes.extend(encode(&told(*number), *descriptors, TOLD_MAX).unwrap());
            }
            let (mut frames, mut seen) = (Frames::new(TOLD_MAX), Vec::new());
            for part in bytes.chunks(cut) {
                frames.push(part);
                while let Some(frame) = frames.take().unwrap() {
                    seen.push((decode::<Told>(&frame.body).unwrap(), frame.descriptors));
                }
            }
            let sent: Vec<_> = numbers.iter().map(|(number, count)| (told(*number), *count)).collect();
            prop_assert_eq!(seen, sent);
        }

        #[test]
        fn garbage_is_an_error_or_a_message_but_never_the_end(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut frames = Frames::new(4096);
            frames.push(&bytes);
            while let Ok(Some(frame)) = frames.take() {
                let _ = decode::<Told>(&frame.body);
                let _ = decode::<Request>(&frame.body);
            }
            let _ = decode::<Told>(&bytes);
            let _ = decode::<Request>(&bytes);
        }
    }
}
