//! The embedded store: one SQLite file with a write-ahead log, for one process.
//!
//! The log is copied into the database (a checkpoint) beside the writes: left to SQLite, every thousandth page makes the one who commits
//! it wait for two syncs of the whole file, which guests see as a tenth of a second.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::sync::Mutex;

use crate::StoreError;
use crate::db::Engine;
use crate::secret_file::write_secret;

/// Between two copies of the log into the database.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Pages (4 KiB) of the log at which SQLite copies it itself, so that it starts over also under a load that never pauses.
const LARGEST_LOG: &str = "16384";

/// Opens the database at `path`; makes it with mode 0600 when it is absent.
pub(crate) async fn open(path: &Path) -> Result<Engine, StoreError> {
    match write_secret(path, b"") {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(StoreError::File { path: path.to_owned(), source }),
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // What was acknowledged is on disk, also when the power fails.
        .synchronous(SqliteSynchronous::Full)
        .pragma("secure_delete", "ON")
        .pragma("wal_autocheckpoint", LARGEST_LOG)
        .busy_timeout(Duration::from_secs(10));
    let engine = connect(options, 4).await?;
    if let Engine::Sqlite(pool, turn) = &engine {
        tokio::spawn(checkpoints(pool.clone(), Arc::downgrade(turn)));
    }
    Ok(engine)
}

/// Copies the log into the database from time to time, without making anybody wait, until the store is closed or dropped.
async fn checkpoints(pool: SqlitePool, store: Weak<Mutex<()>>) {
    loop {
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        if pool.is_closed() || store.strong_count() == 0 {
            return;
        }
        // What it cannot copy now (others read it) it copies the next time, or SQLite does when the log is at its largest.
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&pool).await
            && !pool.is_closed()
        {
            tracing::warn!(%error, "the write-ahead log of the store was not copied into the database");
        }
    }
}

/// A database that is forgotten with the process.
pub(crate) async fn in_memory() -> Result<Engine, StoreError> {
    connect(SqliteConnectOptions::from_str("sqlite::memory:")?, 1).await
}

async fn connect(options: SqliteConnectOptions, connections: u32) -> Result<Engine, StoreError> {
    let pool = SqlitePoolOptions::new()
        .max_connections(connections)
        // An idle connection of a memory database must not be dropped: it is the database.
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?;
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let migrations = vec![
        migration(1, "entries", include_str!("../migrations/sqlite/0001_entries.sql")),
        migration(2, "versions", include_str!("../migrations/sqlite/0002_versions.sql")),
        migration(3, "once and anchor", include_str!("../migrations/sqlite/0003_once_and_anchor.sql")),
    ];
    Migrator::with_migrations(migrations).run(&pool).await?;
    Ok(Engine::Sqlite(pool, Arc::new(Mutex::new(()))))
}
