//! Why the store could not be used.

use std::path::PathBuf;

use thiserror::Error;

use crate::audit::Tampered;

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
    /// The key could not be had from where it is kept.
    #[error("store key cannot be had: {0}")]
    KeySource(String),
    /// The database was sealed under another key.
    #[error("the store was sealed under another key than the one given")]
    WrongKey,
    /// Another process sealed the store under a new key while this one had it open.
    #[error("the store was sealed under a new key since it was opened: restart with the new key")]
    Rekeyed,
    /// A value could not be sealed.
    #[error("value cannot be sealed")]
    Seal,
    /// There is no connection to the database.
    #[error("no connection to PostgreSQL at {server}: {why}")]
    Connect {
        /// Its host and port.
        server: String,
        /// Why, and what to look at.
        why: String,
    },
    /// The database failed.
    #[error("store database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("store schema cannot be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// How to reach the database does not go.
    #[error("store configuration: {0}")]
    Options(String),
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
    /// The audit log was changed from outside. Nothing is appended to it any more, so that the trace stays.
    #[error("audit log: {0}")]
    Audit(#[from] Tampered),
    /// The audit log takes no records any more.
    #[error("audit log: record was not written: {0}")]
    AuditWrite(String),
    /// Records of the audit log are not removed.
    #[error("audit log: nothing was removed: {0}")]
    Prune(String),
    /// A backup cannot be made, read or restored.
    #[error("backup: {0}")]
    Backup(String),
    /// A backup is restored only over an empty store, unless forced.
    #[error(
        "the store is not empty: {values} values and {records} audit records would be lost (force it to replace them)"
    )]
    NotEmpty {
        /// Rows of values.
        values: u64,
        /// Records of the audit log.
        records: u64,
    },
}
