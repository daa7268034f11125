//! Chains that were verified, so that an unchanging certificate is not verified again.
//!
//! The key is a digest of everything that the verification of the chain depends on: anchor, certificates, revocation lists
//! and what is demanded of them. Only success is kept. An entry counts only while it holds at the time of the
//! check ([`VerifiedChain::holds_at`]); else the chain is verified anew, with the error that this brings. Bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

use crate::chain::{Anchor, AnchorKind, Endorsements, Revocation, VerifiedChain};
use crate::error::VerifyError;

/// Chains kept unless told otherwise: one for each host (chip and TCB) of a large site. Some 600 bytes each.
pub const DEFAULT_CHAINS: usize = 4096;

type Key = [u8; 32];

/// The cache. Shared by threads.
#[derive(Debug)]
pub struct ChainCache {
    inner: Mutex<Inner>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Inner {
    chains: HashMap<Key, (Arc<VerifiedChain>, u64)>,
    by_use: BTreeMap<u64, Key>,
    clock: u64,
}

impl Default for ChainCache {
    fn default() -> Self {
        Self::new(DEFAULT_CHAINS)
    }
}

impl ChainCache {
    /// A cache of at most `capacity` chains, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { inner: Mutex::default(), capacity: capacity.max(1) }
    }

    /// The verified chain, from the cache or by verifying it now. `now` in seconds since 1970.
    ///
    /// # Errors
    /// As [`VerifiedChain::verify`].
    pub fn chain(
        &self,
        endorsements: &Endorsements,
        anchor: Anchor<'_>,
        revocation: &Revocation<'_>,
        now: u64,
    ) -> Result<Arc<VerifiedChain>, VerifyError> {
        let key = key(endorsements, anchor, revocation);
        if let Some(chain) = self.lock().get(&key).filter(|chain| chain.holds_at(now)) {
            return Ok(chain);
        }
        let chain = Arc::new(VerifiedChain::verify(endorsements, anchor, revocation, now)?);
        self.lock().put(key, Arc::clone(&chain), self.capacity);
        Ok(chain)
    }

    /// Chains in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().chains.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn get(&mut self, key: &Key) -> Option<Arc<VerifiedChain>> {
        let (chain, used) = self.chains.get_mut(key)?;
        self.clock += 1;
        self.by_use.remove(used);
        *used = self.clock;
        self.by_use.insert(self.clock, *key);
        Some(Arc::clone(chain))
    }

    fn put(&mut self, key: Key, chain: Arc<VerifiedChain>, capacity: usize) {
        if let Some((_, used)) = self.chains.remove(&key) {
            self.by_use.remove(&used);
        }
        while self.chains.len() >= capacity {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.chains.remove(&oldest);
        }
        self.clock += 1;
        self.by_use.insert(self.clock, key);
        self.chains.insert(key, (chain, self.clock));
    }
}

/// Digest of all that a chain's verification depends on, each part with its length.
fn key(endorsements: &Endorsements, anchor: Anchor<'_>, revocation: &Revocation<'_>) -> Key {
    let mut context = Context::new(&SHA256);
    let mut part = |bytes: Option<&[u8]>| {
        let len = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        context.update(&len.to_le_bytes());
        context.update(bytes.unwrap_or_default());
    };
    // A simulated root with the bytes of a built-in one is still a simulated root.
    part(Some(match anchor.kind() {
        AnchorKind::Amd(product) => product.name().as_bytes(),
        AnchorKind::Simulated => b"simulated",
    }));
    part(Some(anchor.der()));
    part(Some(&endorsements.vek));
    part(endorsements.ask.as_deref());
    part(endorsements.ark.as_deref());
    part(Some(&[u8::from(revocation.required), u8::from(revocation.refuse_expired)]));
    for list in revocation.lists {
        part(Some(list));
    }
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    out
}
