//! The embedded store: SQLite, one table, every value sealed.
//!
//! Values are encrypted with AES-256-GCM under the store key, with namespace and name as associated data, so that
//! neither a copy of the file nor a swap of two rows in it yields anything. Form: version 1, 12 bytes of random nonce,
//! ciphertext, tag. Names are in the clear.
//!
//! The key is 32 bytes: from a file of mode 0600 that is made at the first start ([`StoreKey::from_file`]), or given in hex
//! ([`StoreKey::from_hex`]). Whoever loses it loses the store.
//!
//! Limit: random nonces bound the number of writes under one key to about 2^32.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use sqlx::{Row as _, SqlSafeStr as _};
use thiserror::Error;
use zeroize::Zeroizing;

/// First byte of a sealed value.
const VERSION: u8 = 1;

/// Why the store could not be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file could not be read or made.
    #[error("store file {path} cannot be used: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The key file is open to others.
    #[error("key file {path} has mode {mode:o}, it must not be readable by group or others (chmod 600)")]
    KeyMode {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key is not 32 bytes in hex.
    #[error("store key must be 64 hexadecimal digits")]
    KeyForm,
    /// The database failed.
    #[error("store database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("store schema cannot be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A value cannot be unsealed: wrong key, or changed from outside.
    #[error(
        "stored value {namespace}/{name} cannot be unsealed: the store key is another one, or the store was changed"
    )]
    Sealed {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
}

/// The key under which values are sealed.
#[derive(Clone)]
pub struct StoreKey(Arc<LessSafeKey>);

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

impl StoreKey {
    fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| StoreError::KeyForm)?;
        Ok(Self(Arc::new(LessSafeKey::new(key))))
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, StoreError> {
        let bytes = hex::decode(text.trim()).map(Zeroizing::new);
        Self::from_bytes(&bytes.map_err(|_| StoreError::KeyForm)?)
    }

    /// A key that is forgotten with the process.
    pub fn ephemeral() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        fill(bytes.as_mut());
        // 32 bytes are always a key.
        Self::from_bytes(bytes.as_ref()).unwrap_or_else(|_| unreachable!())
    }

    /// Reads the key file, or makes it with a new key when it does not exist.
    pub fn from_file(path: &Path) -> Result<Self, StoreError> {
        let error = |source| StoreError::File { path: path.to_owned(), source };
        match read_secret(path) {
            Ok(text) => Self::from_hex(std::str::from_utf8(&text).map_err(|_| StoreError::KeyForm)?),
            Err(StoreError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = Zeroizing::new([0; 32]);
                fill(bytes.as_mut());
                let mut text = Zeroizing::new(hex::encode(bytes.as_ref()));
                text.push('\n');
                write_secret(path, text.as_bytes()).map_err(error)?;
                Self::from_hex(&text)
            }
            Err(other) => Err(other),
        }
    }

    fn seal(&self, namespace: &str, name: &str, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce);
        let mut body = plain.to_vec();
        // Fails only above 64 GiB; what could not be sealed is never stored in clear.
        if self.0.seal_in_place_append_tag(Nonce::from(&nonce), aad(namespace, name), &mut body).is_err() {
            body.clear();
        }
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&body);
        sealed
    }

    fn unseal(&self, namespace: &str, name: &str, sealed: Vec<u8>) -> Option<Zeroizing<Vec<u8>>> {
        let mut sealed = Zeroizing::new(sealed);
        let (version, rest) = sealed.split_first_mut()?;
        let (nonce, body) = rest.split_first_chunk_mut::<NONCE_LEN>()?;
        if *version != VERSION {
            return None;
        }
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.0.open_in_place(nonce, aad(namespace, name), body).ok()?;
        Some(Zeroizing::new(plain.to_vec()))
    }
}

fn aad(namespace: &str, name: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("kata-cc store\0{namespace}\0{name}").into_bytes())
}

/// Random bytes. The generator of aws-lc does not fail once it is seeded; a process without entropy must not go on.
fn fill(bytes: &mut [u8]) {
    rand::fill(bytes).unwrap_or_else(|_| std::process::abort());
}

/// Reads a file that nobody but its owner may read.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let error = |source| StoreError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(error)?;
    let mode = file.metadata().map_err(error)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StoreError::KeyMode { path: path.to_owned(), mode });
    }
    let mut contents = Zeroizing::new(Vec::new());
    file.read_to_end(&mut contents).map_err(error)?;
    Ok(contents)
}

/// Writes a new file of mode 0600; an existing one is an error.
pub fn write_secret(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

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
    pool: SqlitePool,
    key: StoreKey,
}

impl Store {
    /// Opens the database at `path` and brings its schema up to date; makes it with mode 0600 when it is absent.
    pub async fn open(path: &Path, key: StoreKey) -> Result<Self, StoreError> {
        match write_secret(path, b"") {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(StoreError::File { path: path.to_owned(), source }),
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("secure_delete", "ON")
            .busy_timeout(Duration::from_secs(10));
        Self::connect(options, 4, key).await
    }

    /// A store that is forgotten with the process.
    pub async fn in_memory(key: StoreKey) -> Result<Self, StoreError> {
        Self::connect(SqliteConnectOptions::from_str("sqlite::memory:")?, 1, key).await
    }

    async fn connect(
        options: SqliteConnectOptions,
        connections: u32,
        key: StoreKey,
    ) -> Result<Self, StoreError> {
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            // An idle connection of a memory database must not be dropped: it is the database.
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await?;
        let entries = Migration::new(
            1,
            "entries".into(),
            MigrationType::Simple,
            include_str!("../migrations/0001_entries.sql").into_sql_str(),
            false,
        );
        Migrator::with_migrations(vec![entries]).run(&pool).await?;
        Ok(Self { pool, key })
    }

    /// Value of a name; `None` when there is none.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let row = sqlx::query("SELECT value FROM entries WHERE namespace = ? AND name = ?")
            .bind(namespace)
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        self.unseal(namespace, name, row.try_get(0)?).map(Some)
    }

    fn unseal(&self, namespace: &str, name: &str, sealed: Vec<u8>) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        self.key
            .unseal(namespace, name, sealed)
            .ok_or_else(|| StoreError::Sealed { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Stores a value, replacing an older one.
    pub async fn put(&self, namespace: &str, name: &str, value: &[u8]) -> Result<(), StoreError> {
        let sealed = self.key.seal(namespace, name, value);
        sqlx::query(
            "INSERT INTO entries (namespace, name, value, size, modified) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (namespace, name) DO UPDATE SET value = excluded.value, size = excluded.size, \
             modified = excluded.modified",
        )
        .bind(namespace)
        .bind(name)
        .bind(sealed)
        .bind(i64::try_from(value.len()).unwrap_or(i64::MAX))
        .bind(crate::now_rfc3339())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Removes a value; false when there was none.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM entries WHERE namespace = ? AND name = ?")
            .bind(namespace)
            .bind(name)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Names of a namespace, in order.
    pub async fn list(&self, namespace: &str) -> Result<Vec<Entry>, StoreError> {
        let rows = sqlx::query("SELECT name, size, modified FROM entries WHERE namespace = ? ORDER BY name")
            .bind(namespace)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Entry {
                    name: row.try_get(0)?,
                    size: u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or(0),
                    modified: row.try_get(2)?,
                })
            })
            .collect()
    }

    /// All values of a namespace, in the order of their names.
    pub async fn all(&self, namespace: &str) -> Result<Vec<(String, Zeroizing<Vec<u8>>)>, StoreError> {
        let rows = sqlx::query("SELECT name, value FROM entries WHERE namespace = ? ORDER BY name")
            .bind(namespace)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter()
            .map(|row| {
                let name: String = row.try_get(0)?;
                let value = self.unseal(namespace, &name, row.try_get(1)?)?;
                Ok((name, value))
            })
            .collect()
    }

    /// Closes the database, after which its journal is merged.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_survive_and_are_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let (database, key_file) = (folder.path().join("kbs.db"), folder.path().join("store.key"));
        let marker = b"plain marker text";
        let store = Store::open(&database, StoreKey::from_file(&key_file).unwrap()).await.unwrap();
        store.put("repository", "a/b/c", marker).await.unwrap();
        store.put("repository", "a/b/d", b"other").await.unwrap();
        store.close().await;
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(marker.len()).any(|w| w == marker), "{path:?}");
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o077, 0, "{path:?}");
        }
        let store = Store::open(&database, StoreKey::from_file(&key_file).unwrap()).await.unwrap();
        assert_eq!(store.get("repository", "a/b/c").await.unwrap().unwrap().as_slice(), marker);
        let entries = store.list("repository").await.unwrap();
        assert_eq!((entries.len(), entries[0].size), (2, 17));
        assert!(store.delete("repository", "a/b/d").await.unwrap());
        assert!(!store.delete("repository", "a/b/d").await.unwrap());
        // Swapping rows is noticed: the name is authenticated.
        sqlx::query("UPDATE entries SET name = 'x/y/z'").execute(&store.pool).await.unwrap();
        assert!(matches!(store.get("repository", "x/y/z").await, Err(StoreError::Sealed { .. })));
        store.close().await;
        let store = Store::open(&database, StoreKey::ephemeral()).await.unwrap();
        assert!(matches!(store.all("repository").await, Err(StoreError::Sealed { .. })));
    }

    #[test]
    fn an_open_key_file_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        StoreKey::from_file(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(StoreKey::from_file(&path), Err(StoreError::KeyMode { mode: 0o640, .. })));
        assert!(StoreKey::from_hex("00").is_err());
    }
}
