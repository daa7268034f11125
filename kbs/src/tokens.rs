//! Tokens that guests showed lately, read and verified once.
//!
//! A guest shows the same token with every request, by its session or as a bearer. Checking its signature, parsing it and making it a
//! document for policies costs more than the rest of a release, so what came of it is remembered: until the token expires, and only
//! while the keys in force are those that it was checked under ([`KeySet`]). Nothing is remembered of a token that was refused.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_attestation_service::token::{KeySet, check_times};
use kata_cc_kbs_protocol::{TeePubKey, from_base64_url};
use kata_cc_policy::engine::Document;
use serde_json::Value;

use crate::error::ApiError;

/// Most bytes of tokens that are remembered. What is kept of one is about ten times its size.
const MAX_BYTES: usize = 2 << 20;

type Hash = [u8; 32];

fn sha256(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// By what the audit log and certificates name the claims of a token: SHA-256 of its payload, the bytes between the dots after
/// base64url.
pub(crate) fn claims_digest(token: &str) -> Hash {
    sha256(&token.split('.').nth(1).and_then(from_base64_url).unwrap_or_default())
}

/// A token that was good, and what is asked of it with every request.
#[derive(Debug)]
pub(crate) struct KnownToken {
    /// Its claims.
    pub(crate) claims: Value,
    /// The same, as policies read them.
    pub(crate) document: Document,
    /// [`claims_digest`].
    pub(crate) claims_digest: Hash,
    /// The guest's key.
    pub(crate) key: TeePubKey,
}

impl KnownToken {
    /// Reads the guest's key from verified claims; `key_paths` are JSON pointers to where it may be.
    pub(crate) fn new(token: &str, claims: Value, key_paths: &[String]) -> Result<Self, ApiError> {
        let refuse = |why: String| ApiError::TokenVerifier(why);
        let key = key_paths.iter().find_map(|path| claims.pointer(path));
        let key = key.ok_or_else(|| refuse("the token names no key of the guest".to_owned()))?;
        let key =
            serde_json::from_value(key.clone()).map_err(|e| refuse(format!("key of the guest: {e}")))?;
        let document = Document::from(claims.clone());
        Ok(Self { document, claims_digest: claims_digest(token), key, claims })
    }
}

#[derive(Debug, Default)]
struct Inner {
    tokens: HashMap<Hash, (Arc<KnownToken>, KeySet, usize)>,
    /// In the order in which they came.
    order: VecDeque<Hash>,
    bytes: usize,
}

/// What is remembered, bounded by [`MAX_BYTES`]; the oldest goes first.
#[derive(Debug, Default)]
pub(crate) struct KnownTokens(Mutex<Inner>);

impl KnownTokens {
    /// The token, if it was good under `keys`, else what `read` makes of it. Its times are checked either way.
    pub(crate) fn get(
        &self,
        token: &str,
        now: i64,
        keys: KeySet,
        read: impl FnOnce() -> Result<KnownToken, ApiError>,
    ) -> Result<Arc<KnownToken>, ApiError> {
        // By its hash: comparing must not tell how much of a guessed token is right.
        let hash = sha256(token.as_bytes());
        let known = self.with(|inner| {
            let (known, checked, _) = inner.tokens.get(&hash)?;
            (*checked == keys).then(|| Arc::clone(known))
        });
        if let Some(known) = known {
            check_times(&known.claims, now).map_err(|e| ApiError::TokenVerifier(e.to_string()))?;
            return Ok(known);
        }
        let known = Arc::new(read()?);
        self.with(|inner| inner.put(hash, Arc::clone(&known), keys, token.len()));
        Ok(known)
    }

    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn put(&mut self, hash: Hash, token: Arc<KnownToken>, keys: KeySet, bytes: usize) {
        match self.tokens.insert(hash, (token, keys, bytes)) {
            // Two requests read it side by side, or the keys changed: its place in the order stays.
            Some((_, _, before)) => self.bytes -= before,
            None => self.order.push_back(hash),
        }
        self.bytes += bytes;
        while self.bytes > MAX_BYTES
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.tokens.remove(&oldest).map_or(0, |(_, _, bytes)| bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_attestation_service::jws::SigningKey;
    use kata_cc_attestation_service::token::{PublishedKey, TokenBroker};
    use serde_json::json;

    fn broker() -> TokenBroker {
        TokenBroker::new(key(), "test", 5)
    }

    fn key() -> SigningKey {
        SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap()
    }

    fn token(broker: &TokenBroker, number: usize) -> String {
        broker.issue(&json!({"number": number, "padding": "x".repeat(4000)}), 1000).unwrap()
    }

    fn read(broker: &TokenBroker, token: &str, now: i64) -> Result<KnownToken, ApiError> {
        let claims = broker.verify(token, now).map_err(|e| ApiError::TokenVerifier(e.to_string()))?;
        let key = TeePubKey::RSA { alg: "RSA-OAEP-256".to_owned(), n: String::new(), e: String::new() };
        let document = Document::from(claims.clone());
        Ok(KnownToken { claims_digest: claims_digest(token), document, key, claims })
    }

    #[test]
    fn a_known_token_is_not_read_again_and_still_expires() {
        let (broker, known) = (broker(), KnownTokens::default());
        let token = token(&broker, 1);
        let keys = broker.key_set(1000);
        let first = known.get(&token, 1000, keys, || read(&broker, &token, 1000)).unwrap();
        let again = known.get(&token, 1001, keys, || unreachable!("it is known")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let payload = from_base64_url(token.split('.').nth(1).unwrap()).unwrap();
        assert_eq!(again.claims_digest, sha256(&payload));
        let late = known.get(&token, 2000, keys, || unreachable!("it is known")).unwrap_err();
        assert!(late.to_string().contains("expired"), "{late}");
        // Another signature is another token.
        let (rest, signature) = token.rsplit_once('.').unwrap();
        let forged = format!("{rest}.{}", signature.chars().rev().collect::<String>());
        assert!(known.get(&forged, 1000, keys, || read(&broker, &forged, 1000)).is_err());
        assert!(
            known.get(&forged, 1000, keys, || read(&broker, &forged, 1000)).is_err(),
            "refusals are not kept"
        );
    }

    #[test]
    fn keys_that_changed_let_nothing_pass_that_was_good_before() {
        let (broker, known) = (broker(), KnownTokens::default());
        let token = token(&broker, 1);
        let get = |now| known.get(&token, now, broker.key_set(now), || read(&broker, &token, now));
        get(1000).unwrap();
        broker.replace(key(), b"").unwrap();
        let error = get(1000).unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
    }

    /// Nothing changes in the store when a retired key's time is over: the clock alone tells.
    #[test]
    fn the_end_of_a_retired_key_ends_its_tokens() {
        let (retired, known) = (broker(), KnownTokens::default());
        let token = token(&retired, 1);
        let broker = broker();
        let until = 1200;
        broker.publish(vec![PublishedKey { jwk: retired.signing_jwk(), until, retired: true }]);
        let get = |now| known.get(&token, now, broker.key_set(now), || read(&broker, &token, now));
        let first = get(until - 2).unwrap();
        assert!(Arc::ptr_eq(&first, &get(until - 1).unwrap()), "it is known");
        assert!(get(until).unwrap_err().to_string().contains("key"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (broker, known) = (broker(), KnownTokens::default());
        let keys = broker.key_set(1000);
        let tokens: Vec<String> = (0..500).map(|number| token(&broker, number)).collect();
        for token in tokens.iter().chain(&tokens[490..]) {
            known.get(token, 1000, keys, || read(&broker, token, 1000)).unwrap();
            known.with(|inner| {
                assert!(inner.bytes <= MAX_BYTES);
                assert_eq!(inner.order.len(), inner.tokens.len());
            });
        }
        let held: usize = known.with(|inner| inner.tokens.len());
        assert!((100..500).contains(&held), "{held}");
        let mut reads = 0;
        known
            .get(&tokens[0], 1000, keys, || {
                reads += 1;
                read(&broker, &tokens[0], 1000)
            })
            .unwrap();
        assert_eq!(reads, 1, "the oldest went first");
    }
}
