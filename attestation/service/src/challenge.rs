//! Challenges: nonces that are answered once, so that a relying party needs no KBS to know that evidence is fresh.
//!
//! A nonce is 16 bytes of time and chance and 16 bytes of HMAC-SHA-256 over them, under a key that this process made. So a flood of
//! requests for nonces costs no memory; only those that came back are remembered, until they would have expired. A nonce is good at
//! the process that gave it and nowhere else: behind a balancer, both calls have to reach the same replica.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::hmac;
use kata_cc_kbs_protocol::{base64_url, from_base64_url};
use thiserror::Error;

/// Seconds that a nonce may be answered.
pub const LIFETIME: i64 = 300;
/// Most answered nonces that are remembered.
const MAX_ANSWERED: usize = 1 << 18;
/// Bytes of time and chance.
const MESSAGE: usize = 16;
/// Bytes of the HMAC that are kept.
const TAG: usize = 16;

/// Why a nonce is not taken.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ChallengeError {
    /// Not one of ours.
    #[error(
        "the challenge is not one that this process gave: ask for one, and send evidence to the same replica"
    )]
    Unknown,
    /// Too old.
    #[error("the challenge expired {0} seconds ago: ask for a new one")]
    Expired(i64),
    /// Used before.
    #[error("the challenge was answered before: ask for a new one")]
    Answered,
    /// Too many answers.
    #[error("too many challenges are being answered: try again in some minutes")]
    Busy,
    /// No random numbers.
    #[error("no random numbers")]
    Random,
}

impl ChallengeError {
    /// Stable name of the reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unknown => "challenge-unknown",
            Self::Expired(_) => "challenge-expired",
            Self::Answered => "challenge-answered",
            Self::Busy => "busy",
            Self::Random => "internal",
        }
    }
}

/// Gives and takes nonces.
pub struct Challenges {
    key: hmac::Key,
    /// Answered nonces and when they end.
    answered: Mutex<HashMap<[u8; MESSAGE], i64>>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenges(..)")
    }
}

impl Challenges {
    /// With a new key.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new() -> Result<Self, ChallengeError> {
        let mut key = zeroize::Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| ChallengeError::Random)?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &*key), answered: Mutex::default() })
    }

    /// A nonce (b64url of 32 bytes) and when it ends, seconds since 1970.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn give(&self, now: i64) -> Result<(String, i64), ChallengeError> {
        let end = now.saturating_add(LIFETIME);
        let mut nonce = [0; MESSAGE + TAG];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| ChallengeError::Random)?;
        let (message, tag) = nonce.split_at_mut(MESSAGE);
        if let Some(time) = message.first_chunk_mut::<8>() {
            *time = end.to_be_bytes();
        }
        let signed = hmac::sign(&self.key, message);
        tag.iter_mut().zip(signed.as_ref()).for_each(|(to, from)| *to = *from);
        Ok((base64_url(&nonce), end))
    }

    /// Takes a nonce, once. Whatever becomes of the evidence, it is then used up.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn take(&self, nonce: &str, now: i64) -> Result<(), ChallengeError> {
        let bytes = from_base64_url(nonce).filter(|bytes| bytes.len() == MESSAGE + TAG);
        let bytes = bytes.ok_or(ChallengeError::Unknown)?;
        let (message, tag) = bytes.split_at(MESSAGE);
        let signed = hmac::sign(&self.key, message);
        let expected = signed.as_ref().get(..TAG).unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(tag, expected)
            .map_err(|_| ChallengeError::Unknown)?;
        let message: [u8; MESSAGE] = message.try_into().map_err(|_| ChallengeError::Unknown)?;
        let end = message.first_chunk::<8>().map_or(0, |time| i64::from_be_bytes(*time));
        if end <= now {
            return Err(ChallengeError::Expired(now - end));
        }
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.len() >= MAX_ANSWERED {
            answered.retain(|_, end| *end > now);
        }
        if answered.len() >= MAX_ANSWERED {
            return Err(ChallengeError::Busy);
        }
        match answered.insert(message, end) {
            None => Ok(()),
            Some(_) => Err(ChallengeError::Answered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_taken_once_and_in_time() {
        let challenges = Challenges::new().unwrap();
        let (nonce, end) = challenges.give(1000).unwrap();
        assert_eq!((end, nonce.len()), (1300, 43));
        assert_eq!(challenges.take(&nonce, 1300), Err(ChallengeError::Expired(0)));
        challenges.take(&nonce, 1299).unwrap();
        assert_eq!(challenges.take(&nonce, 1299), Err(ChallengeError::Answered));
        let (next, _) = challenges.give(1000).unwrap();
        assert_ne!(nonce, next);
        challenges.take(&next, 1000).unwrap();
    }

    #[test]
    fn what_was_not_given_is_not_taken() {
        let challenges = Challenges::new().unwrap();
        let (nonce, _) = challenges.give(1000).unwrap();
        assert_eq!(Challenges::new().unwrap().take(&nonce, 1000), Err(ChallengeError::Unknown));
        for position in 0..32 {
            let mut bytes = from_base64_url(&nonce).unwrap();
            bytes[position] ^= 1;
            assert_eq!(
                challenges.take(&base64_url(&bytes), 1000),
                Err(ChallengeError::Unknown),
                "{position}"
            );
        }
        for text in ["", "x", "!", &"A".repeat(1 << 16)] {
            assert_eq!(challenges.take(text, 1000), Err(ChallengeError::Unknown));
        }
        challenges.take(&nonce, 1000).unwrap();
    }
}
