//! Challenges: nonces that are answered once, so that a relying party needs no KBS to know that evidence is fresh.
//!
//! A nonce is 16 bytes of time and chance and 16 bytes of HMAC-SHA-256 over them, under a key that is made once and kept in the
//! store. So a flood of requests for nonces costs nothing; only those that came back are remembered, in the store, until they
//! would have expired. Processes on one store take each other's nonces, and of any number that are sent the same one, one takes it.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::hmac;
use kata_cc_kbs_protocol::{base64_url, from_base64_url};
use thiserror::Error;

use crate::store::{Store, StoreError};

/// Seconds that a nonce may be answered.
pub const LIFETIME: i64 = 300;
/// Most answered nonces that are remembered, as far as replicas that count now and then know.
const MAX_ANSWERED: u64 = 1 << 18;
/// Answers between two counts.
const EVERY: u64 = 64;
/// Namespace of the key, and of the nonces that were answered.
const NAMESPACE: &str = "challenge";
/// Name of the key.
const KEY: &str = "key";
/// Bytes of time and chance.
const MESSAGE: usize = 16;
/// Bytes of the HMAC that are kept.
const TAG: usize = 16;

/// Why a nonce is not taken.
#[derive(Debug, Error)]
pub enum ChallengeError {
    /// Not one of ours.
    #[error("the challenge is not one that this service gave: ask for one")]
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
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ChallengeError {
    /// Stable name of the reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unknown => "challenge-unknown",
            Self::Expired(_) => "challenge-expired",
            Self::Answered => "challenge-answered",
            Self::Busy => "busy",
            Self::Random | Self::Store(_) => "internal",
        }
    }
}

/// Gives and takes nonces.
pub struct Challenges {
    key: hmac::Key,
    store: Store,
    answers: AtomicU64,
    /// How many answered nonces were remembered when they were counted last.
    remembered: AtomicU64,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenges(..)")
    }
}

impl Challenges {
    /// With the key that is in the store, which is made when it is absent.
    ///
    /// # Errors
    /// When there are no random numbers, or the store fails.
    pub async fn open(store: Store) -> Result<Self, ChallengeError> {
        let mut fresh = zeroize::Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *fresh).map_err(|_| ChallengeError::Random)?;
        let key = store.get_or_put(NAMESPACE, KEY, &*fresh).await?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Ok(Self { key, store, answers: AtomicU64::new(0), remembered: AtomicU64::new(0) })
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

    /// Takes a nonce, once.
    ///
    /// # Errors
    /// Why it is not taken.
    pub async fn take(&self, nonce: &str, now: i64) -> Result<(), ChallengeError> {
        let bytes = from_base64_url(nonce).filter(|bytes| bytes.len() == MESSAGE + TAG);
        let bytes = bytes.ok_or(ChallengeError::Unknown)?;
        let (message, tag) = bytes.split_at(MESSAGE);
        let signed = hmac::sign(&self.key, message);
        let expected = signed.as_ref().get(..TAG).unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(tag, expected)
            .map_err(|_| ChallengeError::Unknown)?;
        let end = message.first_chunk::<8>().map_or(0, |time| i64::from_be_bytes(*time));
        if end <= now {
            return Err(ChallengeError::Expired(now - end));
        }
        let count = self.answers.fetch_add(1, Ordering::Relaxed);
        if count % EVERY == EVERY - 1 || self.remembered.load(Ordering::Relaxed) >= MAX_ANSWERED {
            let left = self.store.sweep_once(NAMESPACE, now).await?;
            self.remembered.store(left, Ordering::Relaxed);
            if left >= MAX_ANSWERED {
                return Err(ChallengeError::Busy);
            }
        }
        // Remembered for as long as it could be taken, by the clock of whichever replica is slowest.
        let until = end.saturating_add(LIFETIME);
        match self.store.take_once(NAMESPACE, &hex::encode(message), until, now).await? {
            true => Ok(()),
            false => Err(ChallengeError::Answered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreKey;

    async fn store() -> Store {
        Store::in_memory(StoreKey::ephemeral()).await.unwrap()
    }

    async fn reason(challenges: &Challenges, nonce: &str, now: i64) -> &'static str {
        challenges.take(nonce, now).await.map_or_else(|e| e.reason(), |()| "taken")
    }

    #[tokio::test]
    async fn a_nonce_is_taken_once_and_in_time() {
        let challenges = Challenges::open(store().await).await.unwrap();
        let (nonce, end) = challenges.give(1000).unwrap();
        assert_eq!((end, nonce.len()), (1300, 43));
        assert_eq!(reason(&challenges, &nonce, 1300).await, "challenge-expired");
        assert_eq!(reason(&challenges, &nonce, 1299).await, "taken");
        assert_eq!(reason(&challenges, &nonce, 1299).await, "challenge-answered");
        let (next, _) = challenges.give(1000).unwrap();
        assert_ne!(nonce, next);
        assert_eq!(reason(&challenges, &next, 1000).await, "taken");
    }

    #[tokio::test]
    async fn replicas_take_each_others_nonces_and_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        let open = async || {
            let path = folder.path().join("db");
            let store = Store::open(&path, StoreKey::from_file(&key).unwrap()).await.unwrap();
            Challenges::open(store).await.unwrap()
        };
        let (one, other) = (open().await, open().await);
        let (nonce, _) = one.give(1000).unwrap();
        assert_eq!(reason(&other, &nonce, 1001).await, "taken");
        assert_eq!(reason(&one, &nonce, 1001).await, "challenge-answered");
        assert_eq!(reason(&other, &nonce, 1001).await, "challenge-answered");
        // At the same moment at both: one of them takes it.
        for _ in 0..20 {
            let (nonce, _) = other.give(1000).unwrap();
            let mut both: [_; 2] =
                tokio::join!(reason(&one, &nonce, 1001), reason(&other, &nonce, 1001)).into();
            both.sort_unstable();
            assert_eq!(both, ["challenge-answered", "taken"]);
        }
        // Also by one that was started since, and by a slow clock after a quick one forgot what has expired.
        let third = open().await;
        assert_eq!(reason(&third, &nonce, 1001).await, "challenge-answered");
        third.store.sweep_once(NAMESPACE, 1400).await.unwrap();
        assert_eq!(reason(&third, &nonce, 1299).await, "challenge-answered");
        assert_eq!(third.store.sweep_once(NAMESPACE, 1600).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_was_not_given_is_not_taken() {
        let challenges = Challenges::open(store().await).await.unwrap();
        let (nonce, _) = challenges.give(1000).unwrap();
        let stranger = Challenges::open(store().await).await.unwrap();
        assert_eq!(reason(&stranger, &nonce, 1000).await, "challenge-unknown");
        for position in 0..32 {
            let mut bytes = from_base64_url(&nonce).unwrap();
            bytes[position] ^= 1;
            assert_eq!(
                reason(&challenges, &base64_url(&bytes), 1000).await,
                "challenge-unknown",
                "{position}"
            );
        }
        for text in ["", "x", "!", &"A".repeat(1 << 16)] {
            assert_eq!(reason(&challenges, text, 1000).await, "challenge-unknown");
        }
        assert_eq!(reason(&challenges, &nonce, 1000).await, "taken");
    }
}
