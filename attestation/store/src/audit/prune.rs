//! Removing old records that were archived, so that the rest still proves itself.
//!
//! An [`Archive`] is an export that was checked; nothing else lets records be removed. In a transaction (of bounded size: a long log takes several)
//! the records up to a number are removed, their place is taken by an anchor (number and hash of the last of them, signed by the log's key), and a record
//! of kind `prune` that names the same number and hash is chained to the log. A log with an anchor is whole when its first record follows
//! the anchor's hash and one of its records names the anchor: so nobody without the key can remove records in this way, and
//! the removal itself cannot be taken back out of the log.

use std::io::BufRead;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::chain::{Hash, PublicKey};
use super::export::{VerifyError, Whole, verify_export};
use super::record::{Kind, Record};
use super::{AuditLog, Head, anchor_of};
use crate::StoreError;
use crate::db::{Tx, column, values};

/// An export of the log that was found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    whole: Whole,
    last: Hash,
}

impl Archive {
    /// Checks an export by the key of the log that is to be pruned.
    ///
    /// # Errors
    /// When it is not whole, or of another log.
    pub fn verify(export: impl BufRead, key: &PublicKey) -> Result<Self, VerifyError> {
        let whole = verify_export(export, Some(key), None)?;
        let last = hex::decode(&whole.head).ok().and_then(|hash| hash.try_into().ok());
        let last = last.ok_or(super::Tampered::Unsigned { from: whole.records })?;
        Ok(Self { whole, last })
    }

    /// Number of the last record in it.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.whole.records
    }
}

/// Records that one transaction removes.
const STEP: u64 = 2000;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(50);

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// How many records.
    pub removed: u64,
    /// Number of the last of them.
    pub upto: u64,
    /// Its hash, hex.
    pub hash: String,
}

fn refuse(why: impl Into<String>) -> StoreError {
    StoreError::Prune(why.into())
}

impl AuditLog {
    /// Removes the records up to number `upto` (all that the archive has, without it), but never the last one. The log is checked
    /// before: one that was changed keeps its traces. Whoever appends waits for [`STEP`] records at most; what was removed when a later step
    /// fails stays removed, and the log whole.
    ///
    /// # Errors
    /// When the archive does not have what would be removed, or the log is not whole.
    pub async fn prune(&self, archive: &Archive, upto: Option<u64>, who: &str) -> Result<Pruned, StoreError> {
        self.verify(None).await?;
        let mut removed = 0;
        loop {
            let (step, end) = self.prune_step(archive, upto, who).await?;
            removed += step.removed;
            if step.upto >= end {
                return Ok(Pruned { removed, ..step });
            }
            // The lock of SQLite is not fair between processes: those that wait for it look again within this time.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Removes the next [`STEP`] records in a transaction; returns what was removed and up to where records are to be removed.
    async fn prune_step(
        &self,
        archive: &Archive,
        upto: Option<u64>,
        who: &str,
    ) -> Result<(Pruned, u64), StoreError> {
        let (mut tx, head) = self.begin().await?;
        let begin = anchor_of(&mut tx).await?.map_or(0, |anchor| anchor.seq);
        let end = upto.unwrap_or(archive.last().min(head.seq.saturating_sub(1)));
        self.refuse_unless_archived(&mut tx, &head, archive, begin, end).await?;
        let upto = end.min(begin.saturating_add(STEP));
        let hash =
            hash_of(&mut tx, upto).await?.ok_or_else(|| refuse(format!("there is no record {upto}")))?;
        for sql in ["DELETE FROM audit WHERE seq <= $1", "DELETE FROM audit_checkpoints WHERE seq <= $1"] {
            tx.execute(sql, values![column(upto)]).await?;
        }
        let time = crate::now_rfc3339_milliseconds();
        let signature = self.shared.signer.sign_anchor(upto, &hash, &time);
        tx.execute("DELETE FROM audit_anchor", vec![]).await?;
        let sql = "INSERT INTO audit_anchor (id, seq, hash, time, signature) VALUES (1, $1, $2, $3, $4)";
        tx.execute(sql, values![column(upto), hash.to_vec(), time.as_str(), signature]).await?;
        let pruned = Pruned { removed: upto - begin, upto, hash: hex::encode(hash) };
        let record = Record::new(Kind::Prune).who(who).verdict("done").reason("archived records removed");
        let record = record
            .detail("records", pruned.removed.to_string())
            .detail("upto", upto.to_string())
            .detail("hash", pruned.hash.as_str());
        self.commit(tx, head, &[record]).await?;
        Ok((pruned, end))
    }

    async fn refuse_unless_archived(
        &self,
        tx: &mut Tx,
        head: &Head,
        archive: &Archive,
        begin: u64,
        upto: u64,
    ) -> Result<(), StoreError> {
        let (first, last) = (archive.whole.first, archive.last());
        // Hashes are chained: who has the same one at one number has the same records up to there.
        if last > head.seq || hash_of(tx, last).await?.is_none_or(|hash| hash != archive.last) {
            return Err(refuse(format!(
                "the export ends with a record {last} that is not in the log: it is of another log, or older than what was removed before"
            )));
        }
        if upto > last {
            return Err(refuse(format!("the export ends with record {last}, it does not have up to {upto}")));
        }
        if first > begin.saturating_add(1) {
            return Err(refuse(format!("the export begins with record {first}, the log with {}", begin + 1)));
        }
        if upto <= begin {
            return Err(refuse(format!("there is nothing to remove up to record {upto}")));
        }
        if upto >= head.seq {
            return Err(refuse(format!("record {} is the last one and stays", head.seq)));
        }
        Ok(())
    }

    /// Number of the last record that was appended before `time`; `None` when none was. By halving: records are in the order of
    /// their times, as far as the clocks of replicas agree.
    pub async fn last_before(&self, time: OffsetDateTime) -> Result<Option<u64>, StoreError> {
        let mut tx = self.shared.engine.snapshot().await?;
        let begin = anchor_of(&mut tx).await?.map_or(0, |anchor| anchor.seq);
        let end = Head::of(&mut tx).await?.map_or(0, |head| head.seq);
        let (mut low, mut high) = (begin, end);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let row = tx.row("SELECT record FROM audit WHERE seq = $1", values![column(middle)]).await?;
            let text = row.map(|row| row.text(0)).transpose()?.unwrap_or_default();
            let record: Option<Record> = serde_json::from_str(&text).ok();
            let at = record.and_then(|record| OffsetDateTime::parse(&record.time, &Rfc3339).ok());
            let at = at.ok_or_else(|| refuse(format!("record {middle} cannot be read")))?;
            if at < time { low = middle } else { high = middle - 1 }
        }
        Ok((low > begin).then_some(low))
    }
}

async fn hash_of(tx: &mut Tx, seq: u64) -> Result<Option<Hash>, StoreError> {
    let row = tx.row("SELECT hash FROM audit WHERE seq = $1", values![column(seq)]).await?;
    let hash = row.map(|row| row.bytes(0)).transpose()?;
    Ok(hash.and_then(|hash| hash.try_into().ok()))
}
