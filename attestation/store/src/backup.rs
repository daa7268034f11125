//! Backup and restore: one file for both databases, so that it also moves a store from one to the other.
//!
//! JSON Lines: a header, one line per row (values as they are sealed, audit records in clear), a trailer with an HMAC-SHA-256, under a
//! key derived from the store's, of all lines before it. Made from one state of the database, whatever is written
//! meanwhile. It is as secret as the database is: without the key it reveals names, sizes, times and the audit log.

use std::io::{BufRead, Write};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::audit::{Chain, Checkpoint, Head, Item, Signer, follow, walk};
use crate::db::{Tx, column, values};
use crate::key::StoreKey;
use crate::store::{AUDIT_KEY, Store, check_key, each_row, key_check};
use crate::versions::{State, Stored, VersionInfo};

/// Version of the format.
const FORMAT: u64 = 1;
/// Most bytes of a line: a value of 64 MiB in base64, and what stands beside it.
const MAX_LINE: u64 = 96 << 20;

/// A line of a backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    /// The first.
    Header { format: u64, made: String, generation: i64, key_check: String },
    /// A row of values.
    Value {
        namespace: String,
        name: String,
        version: u64,
        state: i64,
        size: u64,
        content_type: String,
        modified: String,
        who: String,
        sealed: String,
    },
    /// Where the audit log begins, when older records were archived.
    Anchor(Checkpoint),
    /// A record of the audit log.
    Record { seq: u64, hash: String, record: String },
    /// A signed state of it; the last is its end.
    State(Checkpoint),
    /// The last: code over all lines before it.
    End { hmac: String },
}

/// What was restored, or backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Rows of values, with all their versions.
    pub values: u64,
    /// Records of the audit log, those that were archived among them.
    pub records: u64,
}

fn bad(why: impl std::fmt::Display) -> StoreError {
    StoreError::Backup(why.to_string())
}

/// Writes lines and authenticates them.
struct Writer<'a> {
    out: &'a mut (dyn Write + Send),
    mac: hmac::Context,
}

impl Writer<'_> {
    fn line(&mut self, line: &Line) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec(line).map_err(bad)?;
        text.push(b'\n');
        if text.len() as u64 > MAX_LINE {
            return Err(bad("a value is too large"));
        }
        self.mac.update(&text);
        self.out.write_all(&text).map_err(bad)
    }
}

impl Store {
    /// Writes a backup while the store is in use. The audit log in it is checked: one that was changed is not backed up.
    pub async fn backup(&self, out: &mut (dyn Write + Send)) -> Result<Restored, StoreError> {
        let mut tx = self.engine().snapshot().await?;
        let head = Head::of(&mut tx).await?.ok_or(StoreError::WrongKey)?;
        let mut writer = Writer { out, mac: hmac::Context::with_key(self.key().mac()) };
        writer.line(&Line::Header {
            format: FORMAT,
            made: crate::now_rfc3339(),
            generation: head.generation,
            key_check: STANDARD.encode(&head.key_check),
        })?;
        let mut done = Restored { values: 0, records: 0 };
        each_row(&mut tx, |row| {
            done.values += 1;
            writer.line(&Line::Value {
                namespace: row.namespace,
                name: row.name,
                version: row.info.version,
                state: row.info.state.number(),
                size: row.info.size,
                content_type: row.info.content_type,
                modified: row.info.modified,
                who: row.info.who,
                sealed: STANDARD.encode(row.sealed),
            })
        })
        .await?;
        let mut chain = Chain::new(self.audit().public_key(), None);
        walk(&mut tx, |item| {
            let line = match &item {
                Item::Anchor(anchor) => Line::Anchor(anchor.clone()),
                Item::Record { seq, record, hash } => {
                    Line::Record { seq: *seq, hash: hex::encode(hash), record: record.clone() }
                }
                Item::State(state) => Line::State(state.clone()),
            };
            follow(&mut chain, item)?;
            writer.line(&line)
        })
        .await?;
        done.records = chain.end()?;
        let mac = hex::encode(writer.mac.sign());
        let end = serde_json::to_string(&Line::End { hmac: mac }).map_err(bad)?;
        writeln!(writer.out, "{end}").and_then(|()| writer.out.flush()).map_err(bad)?;
        Ok(done)
    }

    /// Replaces everything in the store by a backup that was made under the same key, in one transaction. Refuses when there is
    /// something to lose, unless `force`d, and when the backup was changed: not a byte of it is stored before all of it is checked.
    /// The store is closed and must be opened anew. `open` gives the backup from its beginning each time it is called.
    pub async fn restore<R: BufRead>(
        self,
        open: impl Fn() -> std::io::Result<R>,
        force: bool,
    ) -> Result<Restored, StoreError> {
        let checked = check(self.key(), open().map_err(bad)?)?;
        let (mut tx, head) = self.audit().begin().await?;
        let sql = "SELECT count(*) FROM versions WHERE NOT (namespace = $1 AND name = $2)";
        let values = tx.row(sql, values![AUDIT_KEY.0, AUDIT_KEY.1]).await?;
        let values = values.map(|row| row.count(0)).transpose()?.unwrap_or(0);
        if !force && (values > 0 || head.seq > 0) {
            return Err(StoreError::NotEmpty { values, records: head.seq });
        }
        for sql in [
            "DELETE FROM versions",
            "DELETE FROM audit",
            "DELETE FROM audit_checkpoints",
            "DELETE FROM audit_anchor",
        ] {
            tx.execute(sql, vec![]).await?;
        }
        tx.forget_sessions().await?;
        let mut lines = Lines::new(self.key(), open().map_err(bad)?);
        let (mut records, mut last) = (Vec::new(), None);
        while let Some(line) = lines.next()? {
            match line {
                Line::Record { seq, hash, record } => {
                    records.push((column(seq), record, hex::decode(hash).map_err(bad)?));
                    if records.len() == 500 {
                        tx.insert_audit(std::mem::take(&mut records)).await?;
                    }
                }
                Line::Anchor(anchor) => insert_anchor(&mut tx, &anchor).await?,
                Line::State(state) => {
                    if let Some(state) = last.replace(state) {
                        insert_state(&mut tx, &state).await?;
                    }
                }
                line => {
                    if let Some(row) = stored(line)? {
                        row.write(&mut tx).await?;
                    }
                }
            }
        }
        tx.insert_audit(records).await?;
        // Others that have the store open must notice that it is another one now.
        let generation = head.generation.max(checked.generation).saturating_add(1);
        let last = last.ok_or_else(|| bad("it has no end of the audit log"))?;
        let bytes = |text: &str| hex::decode(text).map_err(bad);
        let sql = "UPDATE store_state SET generation = $1, key_check = $2, audit_seq = $3, audit_hash = $4, \
                   audit_time = $5, audit_signature = $6 WHERE id = 1";
        let row = values![
            generation,
            key_check(self.key(), generation)?,
            column(last.seq),
            bytes(&last.hash)?,
            last.time.as_str(),
            bytes(&last.signature)?,
        ];
        tx.execute(sql, row).await?;
        lines.finish()?;
        tx.commit().await?;
        self.close().await;
        Ok(checked.contents)
    }
}

async fn insert_anchor(tx: &mut Tx, anchor: &Checkpoint) -> Result<(), StoreError> {
    let bytes = |text: &str| hex::decode(text).map_err(bad);
    let sql = "INSERT INTO audit_anchor (id, seq, hash, time, signature) VALUES (1, $1, $2, $3, $4)";
    let row =
        values![column(anchor.seq), bytes(&anchor.hash)?, anchor.time.as_str(), bytes(&anchor.signature)?];
    tx.execute(sql, row).await.map(|_| ())
}

async fn insert_state(tx: &mut Tx, state: &Checkpoint) -> Result<(), StoreError> {
    let bytes = |text: &str| hex::decode(text).map_err(bad);
    let sql = "INSERT INTO audit_checkpoints (seq, hash, time, signature) VALUES ($1, $2, $3, $4)";
    let row = values![column(state.seq), bytes(&state.hash)?, state.time.as_str(), bytes(&state.signature)?];
    tx.execute(sql, row).await.map(|_| ())
}

/// The row of a line; `None` for a line that is none.
fn stored(line: Line) -> Result<Option<Stored>, StoreError> {
    let Line::Value { namespace, name, version, state, size, content_type, modified, who, sealed } = line
    else {
        return Ok(None);
    };
    let state = State::of(state).ok_or_else(|| bad(format!("{namespace}/{name} has no known state")))?;
    let info = VersionInfo { version, state, size, content_type, modified, who };
    Ok(Some(Stored { namespace, name, info, sealed: STANDARD.decode(sealed).map_err(bad)? }))
}

struct Checked {
    generation: i64,
    contents: Restored,
}

/// Reads a backup to its end: its code, its key, every value, the whole audit log.
fn check(key: &StoreKey, reader: impl BufRead) -> Result<Checked, StoreError> {
    let mut lines = Lines::new(key, reader);
    let Some(Line::Header { format: FORMAT, generation, key_check, .. }) = lines.next()? else {
        return Err(bad(format!("the file does not begin with a header of format {FORMAT}")));
    };
    check_key(key, generation, STANDARD.decode(key_check).map_err(bad)?)?;
    let mut contents = Restored { values: 0, records: 0 };
    let mut chain = None;
    while let Some(line) = lines.next()? {
        let item = match line {
            Line::Record { seq, hash, record } => {
                Item::Record { seq, record, hash: hex::decode(hash).map_err(bad)? }
            }
            Line::Anchor(anchor) => Item::Anchor(anchor),
            Line::State(state) => Item::State(state),
            Line::Header { .. } => return Err(bad("it has a second header")),
            line => {
                let Some(row) = stored(line)? else { continue };
                let is_audit_key = (row.namespace.as_str(), row.name.as_str()) == AUDIT_KEY;
                let version = row.unseal(key)?;
                if is_audit_key {
                    chain = Some(Chain::new(Signer::new(&version.value)?.public(), None));
                }
                contents.values += 1;
                continue;
            }
        };
        let Some(chain) = &mut chain else { return Err(bad("the key of the audit log is missing")) };
        follow(chain, item)?;
    }
    lines.finish()?;
    contents.records = chain.ok_or_else(|| bad("the key of the audit log is missing"))?.end()?;
    Ok(Checked { generation, contents })
}

/// Lines of a backup, authenticated at their end.
struct Lines<R> {
    reader: R,
    mac: hmac::Context,
    key: hmac::Key,
    number: u64,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    fn new(key: &StoreKey, reader: R) -> Self {
        let key = key.mac().clone();
        Self { reader, mac: hmac::Context::with_key(&key), key, number: 0, ended: false }
    }

    /// The next line before the trailer.
    fn next(&mut self) -> Result<Option<Line>, StoreError> {
        let mut bytes = Vec::new();
        self.number = self.number.saturating_add(1);
        let number = self.number;
        let at = |why: &dyn std::fmt::Display| bad(format!("line {number}: {why}"));
        let mut limited = std::io::Read::take(&mut self.reader, MAX_LINE + 1);
        limited.read_until(b'\n', &mut bytes).map_err(|e| at(&e))?;
        if bytes.len() as u64 > MAX_LINE {
            return Err(at(&"it is too long"));
        }
        if bytes.is_empty() {
            return Err(at(&"the file was cut off"));
        }
        let line = serde_json::from_slice(&bytes).map_err(|e| at(&e))?;
        if let Line::End { hmac } = line {
            let code = hex::decode(hmac).map_err(|e| at(&e))?;
            let own = std::mem::replace(&mut self.mac, hmac::Context::with_key(&self.key)).sign();
            aws_lc_rs::constant_time::verify_slices_are_equal(own.as_ref(), &code)
                .map_err(|_| at(&"the file was changed, or made under another key"))?;
            self.ended = true;
            return Ok(None);
        }
        self.mac.update(&bytes);
        Ok(Some(line))
    }

    /// Nothing may follow the trailer.
    fn finish(&mut self) -> Result<(), StoreError> {
        let more = !self.reader.fill_buf().map_err(bad)?.is_empty();
        if more || !self.ended { Err(bad("something follows its end")) } else { Ok(()) }
    }
}
