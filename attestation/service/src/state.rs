//! What evaluations need of the store, kept in memory: policies compiled, reference values in the form in which policies read them.
//!
//! Several replicas may share a store. Whoever writes leaves a new mark there (`generation`) in the transaction of the change; everybody
//! looks at it at most once a second, and reads everything again when it changed, and once a minute in any case (older
//! versions left the mark after the change). So a change is in force everywhere after about a second. While the store cannot be read, what is
//! known stays in force for a minute; after that evaluations fail.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tracing::{error, info, warn};

use crate::appraisal::{self, Policy, References};
use crate::references::{InForce, Record};
use crate::service::{POLICY_NAMESPACE, REFERENCE_NAMESPACE, ServiceError};
use crate::store::audit::Record as AuditRecord;
use crate::store::{Applied, Change, Store, StoreError};
use crate::token::PublishedKey;

/// Namespace of the mark.
const GENERATION_NAMESPACE: &str = "generation";
/// Its name.
const GENERATION_NAME: &str = "attestation";
/// Namespace of the public keys that tokens are checked with.
pub(crate) const KEY_NAMESPACE: &str = "token_key";
/// Milliseconds between two looks at the mark.
const LOOK: u64 = 1_000;
/// Milliseconds after which everything is read again.
const READ: u64 = 60_000;

/// Everything as of one reading.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The mark that was there before the reading began.
    generation: Option<Vec<u8>>,
    /// When it was read, in [`State::elapsed`].
    read: u64,
    /// Reference values by name, also those that have ended.
    pub(crate) references: BTreeMap<String, Record>,
    in_force: ArcSwap<InForce>,
    /// Policies by id.
    pub(crate) policies: BTreeMap<String, Arc<Policy>>,
    /// Public keys.
    pub(crate) keys: Vec<PublishedKey>,
}

impl Snapshot {
    /// The reference values that are in force at `now`.
    pub(crate) fn in_force(&self, now: i64) -> Arc<InForce> {
        let current = self.in_force.load_full();
        if current.holds_at(now) {
            return current;
        }
        let next = Arc::new(InForce::at(&self.references, now));
        self.in_force.store(Arc::clone(&next));
        next
    }

    /// Appraises evidence by a policy of this snapshot.
    pub(crate) fn appraise(
        &self,
        policy: &Policy,
        evidence: &serde_json::Value,
        now: i64,
    ) -> Result<crate::ear::Appraisal, appraisal::AppraisalError> {
        let in_force = self.in_force(now);
        appraisal::appraise(
            policy,
            evidence,
            References { records: &self.references, in_force: &in_force, now },
        )
    }
}

/// The store and the latest snapshot of it.
pub(crate) struct State {
    pub(crate) store: Store,
    snapshot: ArcSwap<Snapshot>,
    /// When the mark was last looked at, in milliseconds since `start`.
    looked: AtomicU64,
    start: Instant,
    /// How often everything was read.
    readings: AtomicU64,
    /// Held while everything is read.
    reading: tokio::sync::Mutex<()>,
    /// Held while something is changed, so that changes of one process do not meet; those of others do ([`Tries`]).
    changing: tokio::sync::Mutex<()>,
    #[cfg(test)]
    pub(crate) interruption: tokio::sync::Mutex<Option<Interruption>>,
}

impl State {
    /// Reads everything; policies that are in the store must compile.
    pub(crate) async fn new(store: Store) -> Result<Self, ServiceError> {
        let snapshot = read(&store, 0, None).await?;
        Ok(Self {
            store,
            snapshot: ArcSwap::from_pointee(snapshot),
            looked: AtomicU64::new(0),
            start: Instant::now(),
            readings: AtomicU64::new(1),
            reading: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            #[cfg(test)]
            interruption: tokio::sync::Mutex::default(),
        })
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What is in force, not older than about a second.
    pub(crate) async fn current(&self) -> Result<Arc<Snapshot>, ServiceError> {
        let (now, looked) = (self.elapsed(), self.looked.load(Ordering::Acquire));
        let due = now.saturating_sub(looked) >= LOOK;
        // One looks, the others go on with what there is.
        if !due || self.looked.compare_exchange(looked, now, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Ok(self.snapshot.load_full());
        }
        match self.refresh(false).await {
            Ok(()) => {}
            Err(why) if now.saturating_sub(self.snapshot.load().read) < READ => {
                warn!(%why, "the store cannot be read; what is known stays in force for a minute");
            }
            Err(why) => return Err(why),
        }
        Ok(self.snapshot.load_full())
    }

    /// Reads everything when it changed, has not been read for long, or `always`.
    async fn refresh(&self, always: bool) -> Result<(), ServiceError> {
        let _reading = self.reading.lock().await;
        let (old, now) = (self.snapshot.load_full(), self.elapsed());
        let generation = generation(&self.store).await?;
        if !always && generation == old.generation && now.saturating_sub(old.read) < READ {
            return Ok(());
        }
        self.snapshot.store(Arc::new(read(&self.store, now, Some(&old)).await?));
        self.readings.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// How often everything was read. Another number than before: the mark was another one, or a minute has passed.
    pub(crate) fn readings(&self) -> u64 {
        self.readings.load(Ordering::Acquire)
    }

    /// Reads everything again, because of a signal or a change that others made.
    pub(crate) async fn reload(&self) -> Result<(), ServiceError> {
        self.refresh(true).await
    }

    /// Begins a change; the store is written to while the answer is held.
    pub(crate) async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// What is in force now: looks at the mark whenever it was looked at last.
    pub(crate) async fn look(&self) -> Result<Arc<Snapshot>, ServiceError> {
        self.refresh(false).await?;
        Ok(self.snapshot.load_full())
    }

    /// Makes changes, leaves the mark and appends `records` to the audit log, in one transaction. When it was done, it is in force here
    /// as this returns, and elsewhere after a second.
    pub(crate) async fn commit(
        &self,
        mut changes: Vec<Change<'_>>,
        records: Vec<AuditRecord>,
    ) -> Result<Applied, ServiceError> {
        #[cfg(test)]
        self.interrupted().await;
        let mark = new_mark()?;
        changes.push(mark_change(&mark));
        let applied = self.store.apply(&changes, records).await?;
        if applied == Applied::Done {
            self.refresh(true).await?;
        }
        Ok(applied)
    }

    /// Lets a test do something between what was read for a change and the change.
    #[cfg(test)]
    async fn interrupted(&self) {
        let mut interruption = self.interruption.lock().await;
        if let Some(interruption) = interruption.as_mut() {
            interruption().await;
        }
    }
}

/// What a test does between reading and writing.
#[cfg(test)]
pub(crate) type Interruption = Box<dyn FnMut() -> futures::future::BoxFuture<'static, ()> + Send>;

/// How often a change is tried when others change the same at the same time.
const TRIES: u32 = 8;
/// Most milliseconds before another try, times the number of the try.
const PAUSE: u64 = 8;

/// Counts the tries of a change that depends on what it read.
pub(crate) struct Tries<'a> {
    what: &'a str,
    made: u32,
}

impl<'a> Tries<'a> {
    /// Of a change of `what`.
    pub(crate) fn of(what: &'a str) -> Self {
        Self { what, made: 0 }
    }

    /// Somebody was faster. Waits for a moment (of chance, so that two do not go on meeting), or says that it was tried enough.
    pub(crate) async fn again(&mut self) -> Result<(), ServiceError> {
        self.made += 1;
        if self.made >= TRIES {
            return Err(ServiceError::Conflict { what: self.what.to_owned(), tries: self.made });
        }
        let mut chance = [0; 2];
        aws_lc_rs::rand::fill(&mut chance).map_err(|_| ServiceError::Random)?;
        let most = PAUSE * u64::from(self.made);
        let pause = u64::from(u16::from_le_bytes(chance)) % most;
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        Ok(())
    }
}

/// A mark that was never there.
pub(crate) fn new_mark() -> Result<[u8; 16], ServiceError> {
    let mut mark = [0; 16];
    aws_lc_rs::rand::fill(&mut mark).map_err(|_| ServiceError::Random)?;
    Ok(mark)
}

/// Leaves a mark, for the transaction of what it is the mark of.
pub(crate) fn mark_change(mark: &[u8; 16]) -> Change<'_> {
    Change::put(GENERATION_NAMESPACE, GENERATION_NAME, mark)
}

async fn generation(store: &Store) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(store.get(GENERATION_NAMESPACE, GENERATION_NAME).await?.map(|mark| mark.to_vec()))
}

async fn read(store: &Store, now: u64, old: Option<&Snapshot>) -> Result<Snapshot, ServiceError> {
    // The mark first: what is written while the rest is read gives another mark, and is read again.
    let generation = generation(store).await?;
    let mut policies = BTreeMap::new();
    for (id, text) in appraisal::BUILT_IN {
        policies.insert(id.to_owned(), built_in(id, text)?);
    }
    for (id, text) in store.all(POLICY_NAMESPACE).await? {
        let text = String::from_utf8_lossy(&text);
        let known = old.and_then(|old| old.policies.get(&id));
        if let Some(known) = known.filter(|known| known.name().digest == digest(&text)) {
            policies.insert(id, Arc::clone(known));
            continue;
        }
        match appraisal::compile(&id, &text) {
            Ok(policy) => {
                policies.insert(id, Arc::new(policy));
            }
            Err(why) if old.is_none() => return Err(why.into()),
            // Without it, what asks for it is refused.
            Err(why) => {
                error!(%id, %why, "a policy in the store does not compile and is not in force");
                policies.remove(&id);
            }
        }
    }
    let references: BTreeMap<_, _> = store
        .all(REFERENCE_NAMESPACE)
        .await?
        .into_iter()
        .map(|(name, bytes)| {
            let record = Record::from_stored(&name, &bytes);
            (name, record)
        })
        .collect();
    let keys = store.all(KEY_NAMESPACE).await?;
    let keys = keys.into_iter().filter_map(|(_, bytes)| serde_json::from_slice(&bytes).ok()).collect();
    if old.is_some_and(|old| old.generation != generation) {
        info!(
            policies = policies.len(),
            reference_values = references.len(),
            "policies and reference values were read"
        );
    }
    let in_force = ArcSwap::from_pointee(InForce::at(&references, crate::now()));
    Ok(Snapshot { generation, read: now, references, in_force, policies, keys })
}

/// SHA-256 of a text in hexadecimal.
pub(crate) fn digest(text: &str) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
}

/// A built-in policy, compiled once in the life of the process.
fn built_in(id: &'static str, text: &'static str) -> Result<Arc<Policy>, ServiceError> {
    static COMPILED: Mutex<BTreeMap<&str, Arc<Policy>>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(policy) = compiled.get(id) {
        return Ok(Arc::clone(policy));
    }
    let policy = Arc::new(appraisal::compile(id, text)?);
    compiled.insert(id, Arc::clone(&policy));
    Ok(policy)
}
