//! The one way to both databases: statements with `$1` parameters, which SQLite and PostgreSQL both read, and values of three
//! types. What differs between them (locks, how a transaction begins) is here and nowhere else.

use std::sync::Arc;

use sqlx::postgres::{PgPool, PgRow};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Postgres, Row as _, Sqlite, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::StoreError;

/// A parameter of a statement.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Bytes(Vec<u8>),
    Int(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// A row of an answer.
#[derive(Debug)]
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// Column `at` as text.
    pub(crate) fn text(&self, at: usize) -> Result<String, StoreError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(at)?,
            Self::Postgres(row) => row.try_get(at)?,
        })
    }

    /// Column `at` as bytes.
    pub(crate) fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(at)?,
            Self::Postgres(row) => row.try_get(at)?,
        })
    }

    /// Column `at` as a number.
    pub(crate) fn int(&self, at: usize) -> Result<i64, StoreError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(at)?,
            Self::Postgres(row) => row.try_get(at)?,
        })
    }

    /// Column `at` as a number that is not negative; a negative one was not written by us.
    pub(crate) fn count(&self, at: usize) -> Result<u64, StoreError> {
        let number = self.int(at)?;
        u64::try_from(number)
            .map_err(|_| StoreError::Database(sqlx::Error::Decode(format!("{number} is negative").into())))
    }
}

/// A number that a column can hold. Ours all can: they count what is in memory or in a database.
pub(crate) fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A statement with its parameters.
macro_rules! query {
    ($sql:expr, $parameters:expr) => {{
        let mut query = sqlx::query($sql);
        for value in $parameters {
            query = match value {
                Value::Text(text) => query.bind(text),
                Value::Bytes(bytes) => query.bind(bytes),
                Value::Int(number) => query.bind(number),
            };
        }
        query
    }};
}

/// Parameters of a statement, of any of the three types.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::db::Value::from($value)),*] };
}
pub(crate) use values;

/// A database.
#[derive(Debug, Clone)]
pub(crate) enum Engine {
    /// With the turn of who writes: waiting for a mutex is fair, waiting for a lock of SQLite is polling.
    Sqlite(SqlitePool, Arc<Mutex<()>>),
    Postgres(PgPool),
}

impl Engine {
    /// Rows that a statement answers, outside of any transaction.
    pub(crate) async fn rows(
        &self,
        sql: &'static str,
        parameters: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(match self {
            Self::Sqlite(pool, _) => {
                query!(sql, parameters).fetch_all(pool).await?.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres(pool) => {
                query!(sql, parameters).fetch_all(pool).await?.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// The first row, if there is one.
    pub(crate) async fn row(
        &self,
        sql: &'static str,
        parameters: Vec<Value>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, parameters).await?.into_iter().next())
    }

    /// Begins a transaction that writes. In SQLite it is the only one.
    pub(crate) async fn write(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Self::Sqlite(pool, turn) => {
                let turn = Arc::clone(turn).lock_owned().await;
                Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?, Some(turn))
            }
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await?),
        })
    }

    /// Begins a transaction that sees one state of the database, whatever is written meanwhile.
    pub(crate) async fn snapshot(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Self::Sqlite(pool, _) => Tx::Sqlite(pool.begin().await?, None),
            Self::Postgres(pool) => {
                Tx::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        })
    }

    /// Appends records if the log still ends as is expected, and commits: one exchange with the database, since whoever waits for it on
    /// a busy runtime waits for his turn after each. False when the log ends otherwise, and nothing was done.
    pub(crate) async fn append_audit(&self, append: AuditAppend<'_>) -> Result<bool, StoreError> {
        let AuditAppend { generation, before, after, time, signature, rows } = append;
        let (before, after) = ((column(before.0), before.1.to_vec()), (column(after.0), after.1.to_vec()));
        let state = values![after.0, after.1, time, signature, generation, before.0, before.1];
        match self {
            Self::Sqlite(pool, turn) => {
                let _turn = Arc::clone(turn).lock_owned().await;
                let mut connection = pool.acquire().await?;
                let sql = "BEGIN IMMEDIATE; \
                           UPDATE store_state SET audit_seq = $1, audit_hash = $2, audit_time = $3, audit_signature = $4 \
                           WHERE id = 1 AND generation = $5 AND audit_seq = $6 AND audit_hash = $7 RETURNING id; \
                           INSERT INTO audit (seq, record, hash) \
                           SELECT value ->> 0, value ->> 1, unhex(value ->> 2) FROM json_each($8) WHERE changes() = 1; \
                           COMMIT";
                let done = query!(sql, state).bind(json_rows(&rows)).fetch_all(&mut *connection).await;
                if done.is_err() {
                    // It may hold a transaction that did not end; closed, it does not.
                    let _ = connection.close().await;
                }
                Ok(!done?.is_empty())
            }
            Self::Postgres(pool) => {
                let sql = "WITH head AS (UPDATE store_state \
                           SET audit_seq = $1, audit_hash = $2, audit_time = $3, audit_signature = $4 \
                           WHERE id = 1 AND generation = $5 AND audit_seq = $6 AND audit_hash = $7 RETURNING id) \
                           INSERT INTO audit (seq, record, hash) \
                           SELECT * FROM UNNEST($8::bigint[], $9::text[], $10::bytea[]) WHERE EXISTS (SELECT 1 FROM head)";
                let (numbers, records, hashes) = columns(rows);
                let query = query!(sql, state).bind(numbers).bind(records).bind(hashes);
                Ok(query.execute(pool).await?.rows_affected() > 0)
            }
        }
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(pool, _) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// Number, text and hash of an audit record.
pub(crate) type AuditRow = (i64, String, Vec<u8>);

/// What is appended to the audit log at once, and between which ends (number and hash) of it.
#[derive(Debug)]
pub(crate) struct AuditAppend<'a> {
    pub(crate) generation: i64,
    pub(crate) before: (u64, &'a [u8]),
    pub(crate) after: (u64, &'a [u8]),
    pub(crate) time: &'a str,
    pub(crate) signature: Vec<u8>,
    pub(crate) rows: Vec<AuditRow>,
}

/// Records as SQLite takes them: an array of arrays, hashes in hexadecimal.
fn json_rows(rows: &[AuditRow]) -> String {
    let rows: Vec<_> = rows.iter().map(|(seq, record, hash)| (seq, record, hex::encode(hash))).collect();
    serde_json::to_string(&rows).unwrap_or_default()
}

/// Records as PostgreSQL takes them: an array of each column.
fn columns(rows: Vec<AuditRow>) -> (Vec<i64>, Vec<String>, Vec<Vec<u8>>) {
    let (mut numbers, mut records, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
    for (seq, record, hash) in rows {
        numbers.push(seq);
        records.push(record);
        hashes.push(hash);
    }
    (numbers, records, hashes)
}

/// A transaction; dropped without [`commit`](Self::commit) it did not happen.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>, Option<OwnedMutexGuard<()>>),
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    /// Rows that a statement answers.
    pub(crate) async fn rows(
        &mut self,
        sql: &'static str,
        parameters: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(match self {
            Self::Sqlite(tx, _) => {
                query!(sql, parameters).fetch_all(&mut **tx).await?.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres(tx) => {
                query!(sql, parameters).fetch_all(&mut **tx).await?.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// The first row, if there is one.
    pub(crate) async fn row(
        &mut self,
        sql: &'static str,
        parameters: Vec<Value>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, parameters).await?.into_iter().next())
    }

    /// Runs a statement; returns how many rows it changed.
    pub(crate) async fn execute(
        &mut self,
        sql: &'static str,
        parameters: Vec<Value>,
    ) -> Result<u64, StoreError> {
        Ok(match self {
            Self::Sqlite(tx, _) => query!(sql, parameters).execute(&mut **tx).await?.rows_affected(),
            Self::Postgres(tx) => query!(sql, parameters).execute(&mut **tx).await?.rows_affected(),
        })
    }

    /// Inserts records of the audit log, all with one statement.
    pub(crate) async fn insert_audit(&mut self, rows: Vec<AuditRow>) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx, _) => {
                let sql = "INSERT INTO audit (seq, record, hash) \
                           SELECT value ->> 0, value ->> 1, unhex(value ->> 2) FROM json_each($1)";
                sqlx::query(sql).bind(json_rows(&rows)).execute(&mut **tx).await?;
            }
            Self::Postgres(tx) => {
                let (numbers, records, hashes) = columns(rows);
                let sql = "INSERT INTO audit (seq, record, hash) \
                           SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::bytea[])";
                sqlx::query(sql).bind(numbers).bind(records).bind(hashes).execute(&mut **tx).await?;
            }
        }
        Ok(())
    }

    /// Forgets the sessions that replicas share, where there are some.
    pub(crate) async fn forget_sessions(&mut self) -> Result<(), StoreError> {
        if let Self::Postgres(tx) = self {
            sqlx::query("DELETE FROM sessions").execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// Of two texts of a statement, the one for this database.
    pub(crate) fn either(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self {
            Self::Sqlite(..) => sqlite,
            Self::Postgres(_) => postgres,
        }
    }

    /// Makes it happen.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx, _turn) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}
