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
    expected: Option<Expected<'a>>,
}

#[derive(Debug, Clone)]
enum What<'a> {
    Put(Write<'a>),
    Version(Write<'a>),
    Delete { must_be_there: bool },
    Nothing,
}

/// The value that a name must have, or that it must have none.
#[derive(Clone, Copy)]
struct Expected<'a>(Option<&'a [u8]>);

impl std::fmt::Debug for Expected<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Expected(..)" } else { "Expected(nothing)" })
    }
}

/// What came of changes that happen together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "nothing happened unless it is Done"]
pub enum Applied {
    /// All of them happened.
    Done,
    /// None happened: a value that was to be [removed](Change::remove) is not there.
    NotThere,
    /// None happened: a value is not the [expected](Change::expecting) one. Read it again.
    Changed,
}

impl<'a> Change<'a> {
    /// Stores a value, replacing an older one.
    #[must_use]
    pub fn put(namespace: &'a str, name: &'a str, value: &'a [u8]) -> Self {
        let write = Write { value, content_type: "", who: "" };
        Self { namespace, name, what: What::Put(write), expected: None }
    }

    /// Stores a value as the next version of its name. The first record is given the version of the first of these.
    #[must_use]
    pub fn version(namespace: &'a str, name: &'a str, write: Write<'a>) -> Self {
        Self { namespace, name, what: What::Version(write), expected: None }
    }

    /// Removes a value with its history. When there is none, none of the changes happens.
    #[must_use]
    pub fn remove(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name, what: What::Delete { must_be_there: true }, expected: None }
    }

    /// Removes a value with its history, if there is one.
    #[must_use]
    pub fn forget(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name, what: What::Delete { must_be_there: false }, expected: None }
    }

    /// Changes nothing, but none of the others happens unless the name has `value` (or has none).
    #[must_use]
    pub fn unchanged(namespace: &'a str, name: &'a str, value: Option<&'a [u8]>) -> Self {
        Self { namespace, name, what: What::Nothing, expected: Some(Expected(value)) }
    }

    /// Only if its name has `value` (or has none) before any of the changes: what was read when this one was decided on. Whoever else
    /// changes it in between, at whichever replica, makes [`Store::apply`] answer [`Applied::Changed`].
    #[must_use]
    pub fn expecting(self, value: Option<&'a [u8]>) -> Self {
        Self { expected: Some(Expected(value)), ..self }
    }
}

impl Store {
    /// Makes all changes and appends `records` to the audit log, in one transaction, or does nothing of it and says why.
    pub async fn apply(
        &self,
        changes: &[Change<'_>],
        mut records: Vec<Record>,
    ) -> Result<Applied, StoreError> {
        // Who holds the end of the log is the only one that writes values: what is looked at below stays so until the commit.
        let (mut tx, head) = self.audit().begin().await?;
        for Change { namespace, name, expected, .. } in changes {
            if let Some(Expected(expected)) = expected
                && self.value(&mut tx, namespace, name).await?.as_ref().map(|value| value.as_slice())
                    != *expected
            {
                return Ok(Applied::Changed);
            }
        }
        let mut first = None;
        for Change { namespace, name, what, .. } in changes {
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
                        return Ok(Applied::NotThere);
                    }
                }
                What::Nothing => {}
            }
        }
        if let (Some(version), Some(record)) = (first, records.first_mut()) {
            *record = numbered(record.clone(), version);
        }
        self.audit().commit(tx, head, &records).await?;
        Ok(Applied::Done)
    }

    /// The value of a name as a transaction sees it.
    async fn value(
        &self,
        tx: &mut Tx,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let Some(stored) = latest(tx, namespace, name).await? else { return Ok(None) };
        // Unsealed also when it is a deletion: who makes one of a row by hand is found out.
        let version = stored.unseal(self.key())?;
        Ok((version.info.state == State::Live).then_some(version.value))
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
        if let Some(there) = self.value(&mut tx, namespace, name).await? {
            return Ok(there);
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
