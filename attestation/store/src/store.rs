//! The store: opening it, and one value per namespace and name.

use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::audit::{AuditLog, Head, Record, Signer};
use crate::db::{Engine, Tx, column, values};
use crate::key::{StoreKey, associated};
use crate::session::{MemorySessions, PostgresSessions, SessionStore};
use crate::versions::{State, Stored, VersionInfo, Write, columns, latest};
use crate::{PostgresOptions, StoreError, postgres, sqlite};

/// Namespace and name of the key that signs the audit log.
pub(crate) const AUDIT_KEY: (&str, &str) = ("store", "audit-key");
/// What is sealed to tell the right key from others.
const KEY_CHECK: &[u8] = b"kata-cc store";
/// Versions that are kept of a name, unless told otherwise.
const KEPT: u64 = 16;

/// What a listing tells of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Bytes of the value.
    pub size: u64,
    /// When it was written, RFC 3339.
    pub modified: String,
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    engine: Engine,
    key: StoreKey,
    audit: AuditLog,
    sessions: Arc<dyn SessionStore>,
    kept: u64,
}

impl Store {
    /// Opens the SQLite database at `path` and brings its schema up to date; makes it with mode 0600 when it is absent.
    pub async fn open(path: &Path, key: StoreKey) -> Result<Self, StoreError> {
        Self::with(sqlite::open(path).await?, key).await
    }

    /// Opens a PostgreSQL database and brings its schema up to date.
    pub async fn postgres(options: &PostgresOptions, key: StoreKey) -> Result<Self, StoreError> {
        Self::with(postgres::open(options).await?, key).await
    }

    /// A store that is forgotten with the process.
    pub async fn in_memory(key: StoreKey) -> Result<Self, StoreError> {
        Self::with(sqlite::in_memory().await?, key).await
    }

    async fn with(engine: Engine, key: StoreKey) -> Result<Self, StoreError> {
        let (signer, generation) = prepare(&engine, &key).await?;
        let audit = AuditLog::new(engine.clone(), signer, generation);
        let sessions: Arc<dyn SessionStore> = match &engine {
            Engine::Sqlite(..) => Arc::new(MemorySessions::default()),
            Engine::Postgres(_) => Arc::new(PostgresSessions::new(engine.clone(), key.clone())),
        };
        Ok(Self { engine, key, audit, sessions, kept: KEPT })
    }

    /// Sets how many versions of a name are kept, at least one; 16 unless set.
    #[must_use]
    pub fn keep_versions(mut self, kept: u32) -> Self {
        self.kept = u64::from(kept.max(1));
        self
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Where sessions are.
    #[must_use]
    pub fn sessions(&self) -> Arc<dyn SessionStore> {
        Arc::clone(&self.sessions)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn key(&self) -> &StoreKey {
        &self.key
    }

    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// Value of a name; `None` when there is none.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        Ok(self.get_version(namespace, name, None).await?.map(|version| version.value))
    }

    /// Stores a value, replacing an older one.
    pub async fn put(&self, namespace: &str, name: &str, value: &[u8]) -> Result<(), StoreError> {
        self.put_with(namespace, name, value, None).await
    }

    /// Stores a value, replacing an older one, and appends `record` to the audit log, or does neither.
    pub async fn put_with(
        &self,
        namespace: &str,
        name: &str,
        value: &[u8],
        record: Option<Record>,
    ) -> Result<(), StoreError> {
        let write = Write { value, content_type: "", who: "" };
        self.put_keeping(namespace, name, write, record, 1).await.map(|_| ())
    }

    /// Removes a value and its history; false when there was none.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<bool, StoreError> {
        self.delete_with(namespace, name, None).await
    }

    /// Removes a value and its history, and appends `record` to the audit log, or does neither; false when there was no value,
    /// then nothing is appended.
    pub async fn delete_with(
        &self,
        namespace: &str,
        name: &str,
        record: Option<Record>,
    ) -> Result<bool, StoreError> {
        let (mut tx, head) = self.audit.begin().await?;
        if !crate::change::delete(&mut tx, namespace, name).await? {
            return Ok(false);
        }
        self.audit.commit(tx, head, record.as_slice()).await?;
        Ok(true)
    }

    /// Names of a namespace, in order.
    pub async fn list(&self, namespace: &str) -> Result<Vec<Entry>, StoreError> {
        let sql = "SELECT name, size, modified FROM versions AS v WHERE namespace = $1 AND state = 0 \
                   AND version = (SELECT max(version) FROM versions AS w \
                   WHERE w.namespace = v.namespace AND w.name = v.name) ORDER BY name";
        let rows = self.engine.rows(sql, values![namespace]).await?;
        let entry = |row: &crate::db::Row| {
            Ok(Entry { name: row.text(0)?, size: row.count(1)?, modified: row.text(2)? })
        };
        rows.iter().map(entry).collect()
    }

    /// All values of a namespace, in the order of their names.
    pub async fn all(&self, namespace: &str) -> Result<Vec<(String, Zeroizing<Vec<u8>>)>, StoreError> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM versions AS v WHERE namespace = $1 AND state = 0 AND version = (SELECT max(version) \
             FROM versions AS w WHERE w.namespace = v.namespace AND w.name = v.name) ORDER BY name"
        );
        let rows = self.engine.rows(sql, values![namespace]).await?;
        let value = |row: &crate::db::Row| {
            let stored = Stored::read(row)?;
            Ok((stored.name.clone(), stored.unseal(&self.key)?.value))
        };
        rows.iter().map(value).collect()
    }

    /// Unseals every row: finds each that was changed from outside. Returns how many there are.
    pub async fn verify_values(&self) -> Result<u64, StoreError> {
        let mut tx = self.engine.snapshot().await?;
        let mut count = 0;
        each_row(&mut tx, |row| {
            row.unseal(&self.key)?;
            count += 1;
            Ok(())
        })
        .await?;
        Ok(count)
    }

    /// Whether the database answers and is sealed under this store's key.
    pub async fn ready(&self) -> Result<(), StoreError> {
        let row =
            self.engine.row("SELECT generation, key_check FROM store_state WHERE id = 1", vec![]).await?;
        let row = row.ok_or(StoreError::WrongKey)?;
        check_key(&self.key, row.int(0)?, row.bytes(1)?)
    }

    /// Closes the database, after which its journal is merged.
    pub async fn close(&self) {
        self.engine.close().await;
    }
}

/// Gives every row of values to `visit`, in order, few at a time.
pub(crate) async fn each_row(
    tx: &mut Tx,
    mut visit: impl FnMut(Stored) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after = (String::new(), String::new(), i64::MIN);
    loop {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM versions WHERE (namespace, name, version) > ($1, $2, $3) \
             ORDER BY namespace, name, version LIMIT 100"
        );
        let rows = tx.rows(sql, values![after.0.as_str(), after.1.as_str(), after.2]).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &rows {
            let stored = Stored::read(row)?;
            after = (stored.namespace.clone(), stored.name.clone(), column(stored.info.version));
            visit(stored)?;
        }
    }
}

/// The sealed text by which the right key is known.
pub(crate) fn key_check(key: &StoreKey, generation: i64) -> Result<Vec<u8>, StoreError> {
    key.seal(&associated("key check", &[&generation.to_be_bytes()]), KEY_CHECK)
}

pub(crate) fn check_key(key: &StoreKey, generation: i64, sealed: Vec<u8>) -> Result<(), StoreError> {
    let row = associated("key check", &[&generation.to_be_bytes()]);
    match key.unseal(&row, None, sealed) {
        Some(text) if text.as_slice() == KEY_CHECK => Ok(()),
        _ => Err(StoreError::WrongKey),
    }
}

/// Checks the key of a store; makes what a new one needs. Returns the audit log's signer and the number of the key.
async fn prepare(engine: &Engine, key: &StoreKey) -> Result<(Signer, i64), StoreError> {
    // Without the lock first: a maintenance command does not wait for a service that writes all the time.
    let mut tx = engine.snapshot().await?;
    if let Some(head) = Head::of(&mut tx).await?.filter(|head| head.generation > 0) {
        return signer(&mut tx, key, head).await;
    }
    drop(tx);
    let mut tx = engine.write().await?;
    // The first replica inserts, others wait for it here.
    let sql = "INSERT INTO store_state (id, generation, key_check, audit_seq, audit_hash, audit_time, \
               audit_signature) VALUES (1, 0, $1, 0, $1, '', $1) ON CONFLICT (id) DO NOTHING";
    tx.execute(sql, values![Vec::new()]).await?;
    let head = Head::lock(&mut tx).await?.ok_or(StoreError::WrongKey)?;
    if head.generation == 0 {
        let signer = claim(&mut tx, key).await?;
        tx.commit().await?;
        return Ok((signer, 1));
    }
    signer(&mut tx, key, head).await
}

/// Checks the key of a store that has one, and reads the audit log's signer.
async fn signer(tx: &mut Tx, key: &StoreKey, head: Head) -> Result<(Signer, i64), StoreError> {
    check_key(key, head.generation, head.key_check)?;
    let (namespace, name) = AUDIT_KEY;
    let missing = || StoreError::Sealed { namespace: namespace.to_owned(), name: name.to_owned() };
    let stored = latest(tx, namespace, name).await?.ok_or_else(missing)?;
    Ok((Signer::new(&stored.unseal(key)?.value)?, head.generation))
}

/// Makes a store of an empty database, or of one of before there was an audit log.
async fn claim(tx: &mut Tx, key: &StoreKey) -> Result<Signer, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM versions ORDER BY namespace, name, version LIMIT 1");
    if let Some(row) = tx.row(sql, vec![]).await?
        && Stored::read(&row)?.unseal(key).is_err()
    {
        return Err(StoreError::WrongKey);
    }
    let pkcs8 = Signer::generate()?;
    let signer = Signer::new(&pkcs8)?;
    let info = VersionInfo {
        version: 1,
        state: State::Live,
        size: pkcs8.len() as u64,
        content_type: "application/pkcs8".to_owned(),
        modified: crate::now_rfc3339(),
        who: String::new(),
    };
    Stored::seal(key, AUDIT_KEY, info, &pkcs8)?.write(tx).await?;
    let (genesis, time) = (signer.public().genesis(), crate::now_rfc3339_milliseconds());
    let signature = signer.sign(0, &genesis, &time);
    let sql = "UPDATE store_state SET generation = 1, key_check = $1, audit_seq = 0, audit_hash = $2, \
               audit_time = $3, audit_signature = $4 WHERE id = 1";
    let row = values![key_check(key, 1)?, genesis.to_vec(), time.as_str(), signature];
    tx.execute(sql, row).await?;
    Ok(signer)
}
