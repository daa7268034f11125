//! The audit log: append-only, each record chained to all before it by SHA-256, its end signed.
//!
//! Records are in clear, since they hold no secrets, so that they can be checked by whoever may not read the store. The signing
//! key is made with the store and sealed in it; replicas share it. Appends are serialised by the row that holds the end of the log: a
//! replica locks it, extends the chain, signs, commits. [`AuditLog::append`] gathers what many callers append into one transaction,
//! so that throughput is not that of single commits.
//!
//! Before the chain is extended its end is checked: a log that was changed is not signed anew, the append fails
//! ([`StoreError::Audit`]), and a service that releases nothing without a record then releases nothing.

mod chain;
mod export;
mod prune;
mod record;

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};

pub(crate) use chain::{Chain, Hash, Signer};
pub use chain::{Checkpoint, PublicKey, Tampered};
pub use export::{Known, VerifyError, Whole, verify_export};
pub use prune::{Archive, Pruned};
pub use record::{Kind, Record, Resource, digest_hex, session_label};

use crate::StoreError;
use crate::db::{AuditAppend, AuditRow, Engine, Row, Tx, column, values};

/// Most records of one transaction.
const GROUP: usize = 512;
/// Rows that are read at once.
const PAGE: i64 = 1000;

/// What the store's one row says; while a transaction holds it nobody else writes.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) generation: i64,
    pub(crate) key_check: Vec<u8>,
    pub(crate) seq: u64,
    pub(crate) hash: Vec<u8>,
    pub(crate) time: String,
    pub(crate) signature: Vec<u8>,
}

impl Head {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            generation: row.int(0)?,
            key_check: row.bytes(1)?,
            seq: row.count(2)?,
            hash: row.bytes(3)?,
            time: row.text(4)?,
            signature: row.bytes(5)?,
        })
    }

    /// Reads the row; `None` in a store that is new.
    pub(crate) async fn of(tx: &mut Tx) -> Result<Option<Self>, StoreError> {
        let sql = "SELECT generation, key_check, audit_seq, audit_hash, audit_time, audit_signature \
                   FROM store_state WHERE id = 1";
        tx.row(sql, vec![]).await?.as_ref().map(Self::read).transpose()
    }

    /// Reads and locks the row.
    pub(crate) async fn lock(tx: &mut Tx) -> Result<Option<Self>, StoreError> {
        // In SQLite the transaction is the only one that writes.
        let lock = tx.either("SELECT 1", "SELECT id FROM store_state WHERE id = 1 FOR UPDATE");
        tx.execute(lock, vec![]).await?;
        Self::of(tx).await
    }
}

/// A record that waits for its transaction, and who waits for it.
struct Job {
    record: Record,
    done: oneshot::Sender<Result<u64, String>>,
}

/// What all handles of one log share.
#[derive(Debug)]
struct Shared {
    engine: Engine,
    signer: Signer,
    generation: i64,
    /// The last end of the log that this process signed or checked.
    trusted: Mutex<Option<(u64, Hash)>>,
}

/// The audit log of a store.
#[derive(Debug, Clone)]
pub struct AuditLog {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
}

impl AuditLog {
    /// The log of a store whose values are sealed under key number `generation`. Must be called on a runtime.
    pub(crate) fn new(engine: Engine, signer: Signer, generation: i64) -> Self {
        let shared = Arc::new(Shared { engine, signer, generation, trusted: Mutex::new(None) });
        let (queue, jobs) = mpsc::channel(2 * GROUP);
        tokio::spawn(commit_groups(Arc::clone(&shared), jobs));
        Self { shared, queue }
    }

    /// Appends a record; returns its number once it is on disk. Its time is set here.
    pub async fn append(&self, record: Record) -> Result<u64, StoreError> {
        let (done, outcome) = oneshot::channel();
        let ended = || StoreError::AuditWrite("the store was closed".to_owned());
        self.queue.send(Job { record, done }).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?.map_err(StoreError::AuditWrite)
    }

    /// Begins a transaction that may append, holding the end of the log.
    pub(crate) async fn begin(&self) -> Result<(Tx, Head), StoreError> {
        self.shared.begin().await
    }

    /// Appends records in a transaction that [`begin`](Self::begin) began, and commits.
    pub(crate) async fn commit(&self, tx: Tx, head: Head, records: &[Record]) -> Result<(), StoreError> {
        match records {
            [] => tx.commit().await,
            records => self.shared.extend(tx, head, records).await.map(|_| ()),
        }
    }

    /// The key by which the log is checked.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.shared.signer.public()
    }

    /// Checks every record and every signed state. `known` is a state noted elsewhere, without which an old copy of the whole
    /// database cannot be told from the store.
    pub async fn verify(&self, known: Option<&Known>) -> Result<Whole, StoreError> {
        let mut chain = Chain::new(self.public_key(), known.map(Known::pair));
        let mut tx = self.shared.engine.snapshot().await?;
        let mut last = None;
        walk(&mut tx, |item| {
            last = follow(&mut chain, item)?.or(last.take());
            Ok(())
        })
        .await?;
        let records = chain.end()?;
        let last: Checkpoint = last.ok_or(Tampered::Unsigned { from: 1 })?;
        Ok(Whole {
            first: chain.first(),
            records,
            head: last.hash,
            public_key: self.public_key().hex(),
            signed: last.time,
        })
    }

    /// Writes the log as JSON Lines, as [`verify_export`] reads them, as it is: it is not checked here.
    pub async fn export(&self, out: &mut (dyn Write + Send)) -> Result<(), StoreError> {
        self.export_page(out, 0, u64::MAX).await
    }

    /// Writes the records after number `after`, at most `limit`, as [`export`](Self::export) does. The signed end is there when
    /// fewer than `limit` were left.
    pub async fn export_page(
        &self,
        out: &mut (dyn Write + Send),
        after: u64,
        limit: u64,
    ) -> Result<(), StoreError> {
        let error = |e: std::io::Error| StoreError::AuditWrite(format!("export: {e}"));
        writeln!(out, "{}", json!({"audit": 1, "public_key": self.public_key().hex()})).map_err(error)?;
        let mut tx = self.shared.engine.snapshot().await?;
        walk_page(&mut tx, after, limit, |item| {
            match item {
                Item::Anchor(anchor) => writeln!(out, "{}", json!({"anchor": anchor})),
                Item::Record { seq, record, hash } => {
                    writeln!(out, r#"{{"seq":{seq},"hash":"{}","record":{record}}}"#, hex::encode(hash))
                }
                Item::State(state) => writeln!(out, "{}", json!({"checkpoint": state})),
            }
            .map_err(error)
        })
        .await
    }

    /// The signed end of the log.
    pub async fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        let mut tx = self.shared.engine.snapshot().await?;
        let head = Head::of(&mut tx).await?.ok_or(Tampered::Truncated { from: 1, to: 1 })?;
        Ok(head.into())
    }
}

impl From<Head> for Checkpoint {
    fn from(head: Head) -> Self {
        Self {
            seq: head.seq,
            hash: hex::encode(head.hash),
            time: head.time,
            signature: hex::encode(head.signature),
        }
    }
}

/// Follows one item of a log; returns the state if it is one.
pub(crate) fn follow(chain: &mut Chain, item: Item) -> Result<Option<Checkpoint>, StoreError> {
    match item {
        Item::Record { seq, record, hash } => {
            chain.record(seq, record.as_bytes(), &hash)?;
            Ok(None)
        }
        Item::Anchor(anchor) => {
            let bytes = |text: &str| hex::decode(text).unwrap_or_default();
            chain.anchor(anchor.seq, &bytes(&anchor.hash), &anchor.time, &bytes(&anchor.signature))?;
            Ok(None)
        }
        Item::State(state) => {
            // What is not hexadecimal was not written by us, and signs nothing.
            let bytes = |text: &str| hex::decode(text).unwrap_or_default();
            chain.checkpoint(state.seq, &bytes(&state.hash), &state.time, &bytes(&state.signature))?;
            Ok(Some(state))
        }
    }
}

/// Takes what waits and writes it together, until nobody holds the log any more.
async fn commit_groups(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) {
    let mut group = Vec::new();
    while jobs.recv_many(&mut group, GROUP).await > 0 {
        let (records, waiting): (Vec<_>, Vec<_>) = group.drain(..).map(|job| (job.record, job.done)).unzip();
        let outcome = shared.append(&records).await.map_err(|error| error.to_string());
        if let Err(why) = &outcome {
            tracing::error!(%why, records = records.len(), "audit records were not written");
        }
        for (number, done) in (0..).zip(waiting) {
            // Who went away does not want to know.
            let _ = done.send(outcome.clone().map(|first: u64| first.saturating_add(number)));
        }
    }
}

/// Records with their numbers and hashes, and the end of the log after them.
struct Linked {
    rows: Vec<AuditRow>,
    seq: u64,
    hash: Hash,
}

impl Linked {
    /// Chains records to an end of the log.
    fn new((mut seq, mut hash): (u64, Hash), records: &[Record], time: &str) -> Result<Self, StoreError> {
        let mut rows = Vec::with_capacity(records.len());
        for record in records {
            seq = seq.saturating_add(1);
            let text = record.canonical(time)?;
            hash = chain::link(&hash, seq, text.as_bytes());
            rows.push((column(seq), text, hash.to_vec()));
        }
        Ok(Self { rows, seq, hash })
    }

    /// Whether the state after these records is kept: one of every so many.
    fn is_kept(&self, before: u64) -> bool {
        self.seq / chain::CHECKPOINT_EVERY != before / chain::CHECKPOINT_EVERY
    }
}

impl Shared {
    /// Appends records in a transaction of their own; returns the number of the first.
    async fn append(&self, records: &[Record]) -> Result<u64, StoreError> {
        if let Some(end) = self.trusted()
            && self.append_to(end, records).await?
        {
            return Ok(end.0.saturating_add(1));
        }
        let (tx, head) = self.begin().await?;
        self.extend(tx, head, records).await
    }

    /// Appends to the end that this process knows; false when it is not that any more, or more is to be written.
    async fn append_to(&self, end: (u64, Hash), records: &[Record]) -> Result<bool, StoreError> {
        let time = crate::now_rfc3339_milliseconds();
        let linked = Linked::new(end, records, &time)?;
        if linked.is_kept(end.0) {
            return Ok(false);
        }
        let (seq, hash) = (linked.seq, linked.hash);
        let append = AuditAppend {
            generation: self.generation,
            before: (end.0, &end.1),
            after: (seq, &hash),
            time: &time,
            signature: self.signer.sign(seq, &hash, &time),
            rows: linked.rows,
        };
        let done = self.engine.append_audit(append).await?;
        if done {
            self.trust(seq, hash);
        }
        Ok(done)
    }

    /// Notes an end of the log that this process signed.
    fn trust(&self, seq: u64, hash: Hash) {
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        if trusted.is_none_or(|known| known.0 <= seq) {
            *trusted = Some((seq, hash));
        }
    }

    async fn begin(&self) -> Result<(Tx, Head), StoreError> {
        let mut tx = self.engine.write().await?;
        let head = Head::lock(&mut tx).await?.ok_or(Tampered::Truncated { from: 1, to: 1 })?;
        if head.generation != self.generation {
            return Err(StoreError::Rekeyed);
        }
        Ok((tx, head))
    }

    fn trusted(&self) -> Option<(u64, Hash)> {
        *self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the end of the log before it is extended; returns its hash.
    async fn check(&self, tx: &mut Tx, head: &Head) -> Result<Hash, StoreError> {
        let forged = Tampered::Signature { seq: head.seq };
        let hash = Hash::try_from(head.hash.as_slice()).map_err(|_| forged.clone())?;
        let trusted = self.trusted();
        if trusted == Some((head.seq, hash)) {
            return Ok(hash);
        }
        if let Some((seq, _)) = trusted
            && seq >= head.seq
        {
            return Err(Tampered::Truncated { from: head.seq.saturating_add(1), to: seq }.into());
        }
        if !chain::is_signed(&self.signer.public(), head.seq, &hash, &head.time, &head.signature) {
            return Err(forged.into());
        }
        let after = tx.row("SELECT count(*) FROM audit WHERE seq > $1", values![column(head.seq)]).await?;
        let last = tx.row("SELECT hash FROM audit WHERE seq = $1", values![column(head.seq)]).await?;
        match last {
            None if head.seq == 0 => {}
            None => return Err(Tampered::Truncated { from: head.seq, to: head.seq }.into()),
            Some(last) if last.bytes(0)? != hash => {
                return Err(Tampered::Rewritten { after: 0, seq: head.seq }.into());
            }
            Some(_) => {}
        }
        if after.map(|row| row.int(0)).transpose()?.unwrap_or(0) > 0 {
            return Err(Tampered::Inserted { from: head.seq.saturating_add(1), to: head.seq }.into());
        }
        Ok(hash)
    }

    /// Appends records and commits; returns the number of the first.
    async fn extend(&self, mut tx: Tx, head: Head, records: &[Record]) -> Result<u64, StoreError> {
        let hash = self.check(&mut tx, &head).await?;
        let time = crate::now_rfc3339_milliseconds();
        let linked = Linked::new((head.seq, hash), records, &time)?;
        let kept = linked.is_kept(head.seq);
        let Linked { rows, seq, hash } = linked;
        tx.insert_audit(rows).await?;
        let signature = self.signer.sign(seq, &hash, &time);
        if kept {
            let sql = "INSERT INTO audit_checkpoints (seq, hash, time, signature) VALUES ($1, $2, $3, $4)";
            let row = values![column(seq), hash.to_vec(), time.as_str(), signature.clone()];
            tx.execute(sql, row).await?;
        }
        let sql = "UPDATE store_state SET audit_seq = $1, audit_hash = $2, audit_time = $3, \
                   audit_signature = $4 WHERE id = 1";
        tx.execute(sql, values![column(seq), hash.to_vec(), time.as_str(), signature]).await?;
        tx.commit().await?;
        self.trust(seq, hash);
        Ok(head.seq.saturating_add(1))
    }
}

/// A part of a stored log.
#[derive(Debug)]
pub(crate) enum Item {
    /// Where the log begins when older records were archived.
    Anchor(Checkpoint),
    Record {
        seq: u64,
        record: String,
        hash: Vec<u8>,
    },
    State(Checkpoint),
}

/// The anchor, if older records were archived.
pub(crate) async fn anchor_of(tx: &mut Tx) -> Result<Option<Checkpoint>, StoreError> {
    let row = tx.row("SELECT seq, hash, time, signature FROM audit_anchor WHERE id = 1", vec![]).await?;
    row.as_ref().map(state).transpose()
}

/// A signed state, or an anchor, as it is stored.
fn state(row: &Row) -> Result<Checkpoint, StoreError> {
    Ok(Checkpoint {
        // A number below zero is not ours, and fits nothing.
        seq: u64::try_from(row.int(0)?).unwrap_or(0),
        hash: hex::encode(row.bytes(1)?),
        time: row.text(2)?,
        signature: hex::encode(row.bytes(3)?),
    })
}

/// Goes through a stored log in order: the anchor, records, kept states where they belong, the signed end.
pub(crate) async fn walk(
    tx: &mut Tx,
    visit: impl FnMut(Item) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    walk_page(tx, 0, u64::MAX, visit).await
}

/// The same after record `after`, for at most `limit` records; the signed end only when that is reached.
async fn walk_page(
    tx: &mut Tx,
    after: u64,
    limit: u64,
    mut visit: impl FnMut(Item) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let head = Head::of(tx).await?.ok_or(Tampered::Truncated { from: 1, to: 1 })?;
    if let Some(anchor) = anchor_of(tx).await?.filter(|anchor| anchor.seq > after) {
        visit(Item::Anchor(anchor))?;
    }
    // From the very beginning also what is not ours is shown, e.g. a record 0.
    let (mut after, mut last) = (if after == 0 { i64::MIN } else { column(after) }, None);
    let mut left = limit;
    loop {
        let page = column(left).min(PAGE);
        let sql = "SELECT seq, record, hash FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";
        let rows = tx.rows(sql, values![after, page]).await?;
        let full = rows.len() as i64 == page;
        left = left.saturating_sub(rows.len() as u64);
        let upto = if full { rows.last().map_or(Ok(i64::MAX), |row| row.int(0))? } else { i64::MAX };
        let sql = "SELECT seq, hash, time, signature FROM audit_checkpoints \
                   WHERE seq > $1 AND seq <= $2 ORDER BY seq";
        let mut states = tx.rows(sql, values![after, upto]).await?.into_iter().peekable();
        for row in &rows {
            let seq = row.int(0)?;
            while let Some(state) = next_before(&mut states, seq)? {
                visit(Item::State(state))?;
            }
            // A number below zero is not ours; as 0 it is out of order.
            let seq = u64::try_from(seq).unwrap_or(0);
            visit(Item::Record { seq, record: row.text(1)?, hash: row.bytes(2)? })?;
        }
        while let Some(state) = next_before(&mut states, i64::MAX)? {
            last = Some(state.clone());
            visit(Item::State(state))?;
        }
        after = upto;
        if !full {
            break;
        }
        if left == 0 {
            return Ok(());
        }
    }
    let head = Checkpoint::from(head);
    if last.as_ref() != Some(&head) { visit(Item::State(head)) } else { Ok(()) }
}

/// The next kept state whose number is below `seq`.
fn next_before(
    states: &mut std::iter::Peekable<impl Iterator<Item = Row>>,
    seq: i64,
) -> Result<Option<Checkpoint>, StoreError> {
    let Some(row) = states.peek() else { return Ok(None) };
    if row.int(0)? >= seq {
        return Ok(None);
    }
    let state = state(row)?;
    states.next();
    Ok(Some(state))
}
