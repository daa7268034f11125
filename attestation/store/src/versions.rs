//! Values with their history: rows, how they are sealed, and what is done with them.

use zeroize::Zeroizing;

use crate::StoreError;
use crate::audit::Record;
use crate::db::{Row, Tx, column, values};
use crate::key::{StoreKey, associated};
use crate::store::Store;

/// Columns of a row, in the order in which [`Stored`] reads them.
macro_rules! columns {
    () => {
        "namespace, name, version, state, value, size, content_type, modified, who"
    };
}
pub(crate) use columns;

/// What a version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has a value.
    Live,
    /// Its value was removed by a later deletion.
    Erased,
    /// It is the deletion.
    Deleted,
}

impl State {
    pub(crate) fn number(self) -> i64 {
        match self {
            Self::Live => 0,
            Self::Erased => 1,
            Self::Deleted => 2,
        }
    }

    pub(crate) fn of(number: i64) -> Option<Self> {
        [Self::Live, Self::Erased, Self::Deleted].into_iter().find(|state| state.number() == number)
    }
}

/// A value to be stored.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    /// The value.
    pub value: &'a [u8],
    /// Its media type; empty when it is not known.
    pub content_type: &'a str,
    /// Who writes it.
    pub who: &'a str,
}

impl std::fmt::Debug for Write<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Write").field("content_type", &self.content_type).finish_non_exhaustive()
    }
}

/// What a history tells of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its number, from 1.
    pub version: u64,
    /// What it is.
    pub state: State,
    /// Bytes of its value, also when that was erased.
    pub size: u64,
    /// Media type; empty when it is not known.
    pub content_type: String,
    /// When it was written, RFC 3339.
    pub modified: String,
    /// Who wrote it; empty when it is not known.
    pub who: String,
}

/// A version with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Version {
    /// The value.
    pub value: Zeroizing<Vec<u8>>,
    /// What is known of it.
    pub info: VersionInfo,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version").field("info", &self.info).finish_non_exhaustive()
    }
}

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) info: VersionInfo,
    pub(crate) sealed: Vec<u8>,
}

impl Stored {
    pub(crate) fn read(row: &Row) -> Result<Self, StoreError> {
        let (namespace, name) = (row.text(0)?, row.text(1)?);
        let strange = || StoreError::Sealed { namespace: namespace.clone(), name: name.clone() };
        let info = VersionInfo {
            version: row.count(2)?,
            state: State::of(row.int(3)?).ok_or_else(strange)?,
            size: row.count(5)?,
            content_type: row.text(6)?,
            modified: row.text(7)?,
            who: row.text(8)?,
        };
        Ok(Self { sealed: row.bytes(4)?, namespace, name, info })
    }

    /// A row with `value` sealed in it.
    pub(crate) fn seal(
        key: &StoreKey,
        (namespace, name): (&str, &str),
        info: VersionInfo,
        value: &[u8],
    ) -> Result<Self, StoreError> {
        let sealed = key.seal(&row_of(namespace, name, &info), value)?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), info, sealed })
    }

    /// The value; every other column is checked by it.
    pub(crate) fn unseal(self, key: &StoreKey) -> Result<Version, StoreError> {
        let row = row_of(&self.namespace, &self.name, &self.info);
        // Rows of before there were versions became live first versions of nobody.
        let old = self.info.version == 1 && self.info.state == State::Live && self.info.who.is_empty();
        let named = old.then_some((self.namespace.as_str(), self.name.as_str()));
        match key.unseal(&row, named, self.sealed) {
            Some(value) => Ok(Version { value, info: self.info }),
            None => Err(StoreError::Sealed { namespace: self.namespace, name: self.name }),
        }
    }

    /// Writes it, over what has its namespace, name and version.
    pub(crate) async fn write(self, tx: &mut Tx) -> Result<(), StoreError> {
        let sql = concat!(
            "INSERT INTO versions (",
            columns!(),
            ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (namespace, name, version) \
             DO UPDATE SET state = excluded.state, value = excluded.value, size = excluded.size, \
             content_type = excluded.content_type, modified = excluded.modified, who = excluded.who"
        );
        let (namespace, name, info) = (self.namespace.as_str(), self.name.as_str(), &self.info);
        let row = values![
            namespace,
            name,
            column(info.version),
            info.state.number(),
            self.sealed,
            column(info.size),
            info.content_type.as_str(),
            info.modified.as_str(),
            info.who.as_str(),
        ];
        tx.execute(sql, row).await.map(|_| ())
    }
}

/// Associated data of a row.
fn row_of(namespace: &str, name: &str, info: &VersionInfo) -> Vec<u8> {
    associated(
        "value",
        &[
            namespace.as_bytes(),
            name.as_bytes(),
            &info.version.to_be_bytes(),
            &info.state.number().to_be_bytes(),
            &info.size.to_be_bytes(),
            info.content_type.as_bytes(),
            info.modified.as_bytes(),
            info.who.as_bytes(),
        ],
    )
}

/// The latest version of a name, whatever it is.
pub(crate) async fn latest(tx: &mut Tx, namespace: &str, name: &str) -> Result<Option<Stored>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM versions WHERE namespace = $1 AND name = $2 ORDER BY version DESC LIMIT 1"
    );
    tx.row(sql, values![namespace, name]).await?.as_ref().map(Stored::read).transpose()
}

impl Store {
    /// Stores a value as the next version of its name, whose number it returns, and forgets the oldest when there are more
    /// than are kept. `record` is appended to the audit log, or nothing is stored; its resource is given the version.
    pub async fn put_version(
        &self,
        namespace: &str,
        name: &str,
        write: Write<'_>,
        record: Option<Record>,
    ) -> Result<u64, StoreError> {
        self.put_keeping(namespace, name, write, record, self.kept()).await
    }

    pub(crate) async fn put_keeping(
        &self,
        namespace: &str,
        name: &str,
        write: Write<'_>,
        record: Option<Record>,
        kept: u64,
    ) -> Result<u64, StoreError> {
        let (mut tx, head) = self.audit().begin().await?;
        let version = self.write_version(&mut tx, namespace, name, write, kept).await?;
        let record = record.map(|record| numbered(record, version));
        self.audit().commit(tx, head, record.as_slice()).await?;
        Ok(version)
    }

    /// Stores a value as the next version of its name, of which `kept` are kept. Returns its number.
    pub(crate) async fn write_version(
        &self,
        tx: &mut Tx,
        namespace: &str,
        name: &str,
        write: Write<'_>,
        kept: u64,
    ) -> Result<u64, StoreError> {
        let before = latest(tx, namespace, name).await?.map_or(0, |stored| stored.info.version);
        let version = before.saturating_add(1);
        let info = VersionInfo {
            version,
            state: State::Live,
            size: write.value.len() as u64,
            content_type: write.content_type.to_owned(),
            modified: crate::now_rfc3339(),
            who: write.who.to_owned(),
        };
        Stored::seal(self.key(), (namespace, name), info, write.value)?.write(tx).await?;
        forget(tx, namespace, name, version.saturating_sub(kept)).await?;
        Ok(version)
    }

    /// The latest version of a name, or a numbered one. `None` when there is no such version, or it was deleted.
    pub async fn get_version(
        &self,
        namespace: &str,
        name: &str,
        version: Option<u64>,
    ) -> Result<Option<Version>, StoreError> {
        let latest = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE namespace = $1 AND name = $2 ORDER BY version DESC LIMIT 1"
        );
        let numbered = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE namespace = $1 AND name = $2 AND version = $3"
        );
        let row = match version {
            None => self.engine().row(latest, values![namespace, name]).await?,
            Some(version) => self.engine().row(numbered, values![namespace, name, column(version)]).await?,
        };
        let Some(row) = row else { return Ok(None) };
        // Unsealed also when it is a deletion: who makes one of a row by hand is found out.
        let version = Stored::read(&row)?.unseal(self.key())?;
        Ok((version.info.state == State::Live).then_some(version))
    }

    /// The versions of a name that are kept, the latest first. Empty for a name that there never was.
    pub async fn history(&self, namespace: &str, name: &str) -> Result<Vec<VersionInfo>, StoreError> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE namespace = $1 AND name = $2 ORDER BY version DESC"
        );
        let rows = self.engine().rows(sql, values![namespace, name]).await?;
        rows.iter().map(|row| Ok(Stored::read(row)?.unseal(self.key())?.info)).collect()
    }

    /// Deletes a name: all its values are removed for good, its history stays, with the deletion as its latest version, whose
    /// number is returned. `None` when there was nothing to delete; then `record` is not appended.
    pub async fn erase(
        &self,
        namespace: &str,
        name: &str,
        who: &str,
        record: Option<Record>,
    ) -> Result<Option<u64>, StoreError> {
        let (mut tx, head) = self.audit().begin().await?;
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE namespace = $1 AND name = $2 ORDER BY version"
        );
        let rows = tx.rows(sql, values![namespace, name]).await?;
        let rows = rows.iter().map(Stored::read).collect::<Result<Vec<_>, _>>()?;
        let Some(last) = rows.last().filter(|row| row.info.state == State::Live) else { return Ok(None) };
        let version = last.info.version.saturating_add(1);
        for row in rows {
            // Unsealed first: what somebody changed must not be sealed anew.
            let info = row.unseal(self.key())?.info;
            if info.state == State::Live {
                let info = VersionInfo { state: State::Erased, ..info };
                Stored::seal(self.key(), (namespace, name), info, b"")?.write(&mut tx).await?;
            }
        }
        let info = VersionInfo {
            version,
            state: State::Deleted,
            size: 0,
            content_type: String::new(),
            modified: crate::now_rfc3339(),
            who: who.to_owned(),
        };
        Stored::seal(self.key(), (namespace, name), info, b"")?.write(&mut tx).await?;
        forget(&mut tx, namespace, name, version.saturating_sub(self.kept())).await?;
        let record = record.map(|record| numbered(record, version));
        self.audit().commit(tx, head, record.as_slice()).await?;
        Ok(Some(version))
    }
}

/// Forgets versions up to `upto`.
async fn forget(tx: &mut Tx, namespace: &str, name: &str, upto: u64) -> Result<(), StoreError> {
    let sql = "DELETE FROM versions WHERE namespace = $1 AND name = $2 AND version <= $3";
    tx.execute(sql, values![namespace, name, column(upto)]).await.map(|_| ())
}

/// Says in a record which version of its resource it is about.
pub(crate) fn numbered(mut record: Record, version: u64) -> Record {
    if let Some(resource) = &mut record.resource {
        resource.version = Some(version);
    }
    record
}
