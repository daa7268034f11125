//! The embedded store: one SQLite file with a write-ahead log, for one process.

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::Mutex;

use crate::StoreError;
use crate::db::Engine;
use crate::secret_file::write_secret;

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
        .busy_timeout(Duration::from_secs(10));
    connect(options, 4).await
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
