//! Several changes that happen together or not at all, with the records that tell of them.

use zeroize::Zeroizing;

use crate::StoreError;
use crate::audit::Record;
use crate::db::{Tx, values};
use crate::store::Store;
use crate::versions::{State, Write, latest, numbered};

/// One change of several.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    namespace: &'a str,
    name: &'a str,
    what: What<'a>,
}

#[derive(Debug, Clone)]
enum What<'a> {
    Put(Write<'a>),
    Version(Write<'a>),
    Delete { must_be_there: bool },
}

impl<'a> Change<'a> {
    /// Stores a value, replacing an older one.
    #[must_use]
    pub fn put(namespace: &'a str, name: &'a str, value: &'a [u8]) -> Self {
        let write = Write { value, content_type: "", who: "" };
        Self { namespace, name, what: What::Put(write) }
    }

    /// Stores a value as the next version of its name. The first record is given the version of the first of these.
    #[must_use]
    pub fn version(namespace: &'a str, name: &'a str, write: Write<'a>) -> Self {
        Self { namespace, name, what: What::Version(write) }
    }

    /// Removes a value with its history. When there is none, none of the changes happens.
    #[must_use]
    pub fn remove(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name, what: What::Delete { must_be_there: true } }
    }

    /// Removes a value with its history, if there is one.
    #[must_use]
    pub fn forget(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name, what: What::Delete { must_be_there: false } }
    }
}

impl Store {
    /// Makes all changes and appends `records` to the audit log, in one transaction. False, and nothing of it happened, when a
    /// value that is to be [removed](Change::remove) is not there.
    pub async fn apply(&self, changes: &[Change<'_>], mut records: Vec<Record>) -> Result<bool, StoreError> {
        let (mut tx, head) = self.audit().begin().await?;
        let mut first = None;
        for Change { namespace, name, what } in changes {
            match what {
                What::Put(write) => {
                    self.write_version(&mut tx, namespace, name, *write, 1).await?;
                }
                What::Version(write) => {
                    let version = self.write_version(&mut tx, namespace, name, *write, self.kept()).await?;
                    first.get_or_insert(version);
                }
                What::Delete { must_be_there } => {
                    if !delete(&mut tx, namespace, name).await? && *must_be_there {
                        return Ok(false);
                    }
                }
            }
        }
        if let (Some(version), Some(record)) = (first, records.first_mut()) {
            *record = numbered(record.clone(), version);
        }
        self.audit().commit(tx, head, &records).await?;
        Ok(true)
    }

    /// The value of a name; of any number of processes that find none, one stores what it has `made`, and all get that.
    pub async fn get_or_put(
        &self,
        namespace: &str,
        name: &str,
        made: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        if let Some(value) = self.get(namespace, name).await? {
            return Ok(value);
        }
        let (mut tx, head) = self.audit().begin().await?;
        let there = latest(&mut tx, namespace, name).await?;
        if let Some(there) = there.filter(|there| there.info.state == State::Live) {
            return Ok(there.unseal(self.key())?.value);
        }
        let write = Write { value: made, content_type: "", who: "" };
        self.write_version(&mut tx, namespace, name, write, 1).await?;
        self.audit().commit(tx, head, &[]).await?;
        Ok(Zeroizing::new(made.to_vec()))
    }
}

/// Removes a name with its history; false when it has no value.
pub(crate) async fn delete(tx: &mut Tx, namespace: &str, name: &str) -> Result<bool, StoreError> {
    let last = latest(tx, namespace, name).await?;
    if last.is_none_or(|last| last.info.state != State::Live) {
        return Ok(false);
    }
    let sql = "DELETE FROM versions WHERE namespace = $1 AND name = $2";
    tx.execute(sql, values![namespace, name]).await?;
    Ok(true)
}
