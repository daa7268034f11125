//! The store of replicas: PostgreSQL, 15 or later.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use zeroize::Zeroizing;

use crate::StoreError;
use crate::db::Engine;

/// How the connection to the database is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresTls {
    /// Not. For a socket of this machine.
    Disable,
    /// TLS; the certificate must be by a known root, for whatever name.
    VerifyCa,
    /// TLS; the certificate must be by a known root, for the name of the host.
    VerifyFull,
}

/// How to reach the database.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Name or address; a path is the folder of a Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Database, which must exist.
    pub db: String,
    /// User, who must be allowed to make tables in it.
    pub username: String,
    /// Password; none for authentication by peer or certificate.
    pub password: Option<Zeroizing<String>>,
    /// Protection; `None` is [`PostgresTls::VerifyFull`], but for this machine [`PostgresTls::Disable`].
    pub tls: Option<PostgresTls>,
    /// PEM of the roots that are trusted; the usual ones without it.
    pub root_certificates: Option<PathBuf>,
    /// Most connections.
    pub connections: u32,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 5432,
            db: "kbs".to_owned(),
            username: "kbs".to_owned(),
            password: None,
            tls: None,
            root_certificates: None,
            connections: 16,
        }
    }
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("db", &self.db)
            .field("username", &self.username)
            .field("tls", &self.tls())
            .finish_non_exhaustive()
    }
}

impl PostgresOptions {
    /// Whether the database is on this machine.
    fn is_local(&self) -> bool {
        let address = self.host.parse::<std::net::IpAddr>();
        self.host.starts_with('/') || self.host == "localhost" || address.is_ok_and(|a| a.is_loopback())
    }

    fn tls(&self) -> PostgresTls {
        let default = if self.is_local() { PostgresTls::Disable } else { PostgresTls::VerifyFull };
        self.tls.unwrap_or(default)
    }

    /// Says what to look at when there is no connection. The library's words name neither server nor setting; none has the password.
    fn connect_error(&self, error: sqlx::Error) -> StoreError {
        let Self { host, port, db, username, .. } = self;
        let why = match &error {
            sqlx::Error::Database(told) => match told.code().as_deref() {
                // Appendix A of PostgreSQL's manual: invalid_password, invalid_authorization_specification, invalid_catalog_name.
                Some("28P01") => format!("it refuses the password of {username:?}"),
                Some("28000") => {
                    format!("it does not let {username:?} in so: {} (its pg_hba.conf)", told.message())
                }
                Some("3D000") => format!("it has no database {db:?}"),
                _ => told.message().to_owned(),
            },
            error if certificate_refused(error) => format!(
                "its certificate is not trusted: {error} (tls_root_certificates names the roots that are, tls whether the name counts)"
            ),
            sqlx::Error::PoolTimedOut => "it does not answer in time".to_owned(),
            other => other.to_string(),
        };
        StoreError::Connect { server: format!("{host}:{port}"), why }
    }

    fn connect_options(&self) -> Result<PgConnectOptions, StoreError> {
        if self.host.is_empty() || self.db.is_empty() || self.username.is_empty() {
            return Err(StoreError::Options("postgres needs host, db and username".to_owned()));
        }
        if self.tls() == PostgresTls::Disable && !self.is_local() {
            tracing::warn!(
                host = self.host,
                "the connection to the database is not protected: tls is disabled"
            );
        }
        let mode = match self.tls() {
            PostgresTls::Disable => PgSslMode::Disable,
            PostgresTls::VerifyCa => PgSslMode::VerifyCa,
            PostgresTls::VerifyFull => PgSslMode::VerifyFull,
        };
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .database(&self.db)
            .username(&self.username)
            .password(self.password.as_deref().map_or("", |text| text.as_str()))
            .application_name("kata-cc")
            .ssl_mode(mode)
            // A replica that hangs must not hold the end of the audit log for ever.
            .options([
                ("lock_timeout", "10s"),
                ("statement_timeout", "30s"),
                ("idle_in_transaction_session_timeout", "10s"),
                ("tcp_keepalives_idle", "10"),
            ]);
        if self.host.starts_with('/') {
            options = options.socket(&self.host);
        }
        if let Some(path) = &self.root_certificates {
            options = options.ssl_root_cert(path);
        }
        Ok(options)
    }
}

/// Whether the server's certificate is the reason. The TLS library's error comes wrapped in one of input and output.
fn certificate_refused(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Tls(_) | sqlx::Error::Io(_)) && error.to_string().contains("certificate")
}

/// Connects and brings the schema up to date. Replicas that start together wait for one another.
pub(crate) async fn open(options: &PostgresOptions) -> Result<Engine, StoreError> {
    let pool = PgPoolOptions::new()
        .max_connections(options.connections.clamp(2, 1000))
        .acquire_timeout(Duration::from_secs(10))
        .connect_with(options.connect_options()?)
        .await
        .map_err(|error| options.connect_error(error))?;
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let migrations = vec![
        migration(1, "store", include_str!("../migrations/postgres/0001_store.sql")),
        migration(2, "once and anchor", include_str!("../migrations/postgres/0002_once_and_anchor.sql")),
    ];
    Migrator::with_migrations(migrations).run(&pool).await?;
    Ok(Engine::Postgres(pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_this_machine_is_reached_by_tls() {
        let tls = |host: &str| PostgresOptions { host: host.to_owned(), ..PostgresOptions::default() }.tls();
        for host in ["127.0.0.1", "::1", "localhost", "/run/postgresql"] {
            assert_eq!(tls(host), PostgresTls::Disable, "{host}");
        }
        for host in ["db.example", "10.0.0.1", "localhost.example"] {
            assert_eq!(tls(host), PostgresTls::VerifyFull, "{host}");
        }
        let empty = PostgresOptions { host: String::new(), ..PostgresOptions::default() };
        assert!(matches!(empty.connect_options(), Err(StoreError::Options(_))));
    }

    #[test]
    fn a_password_is_not_printed() {
        let password = Some(Zeroizing::new("hunter2".to_owned()));
        let options = PostgresOptions { password, ..PostgresOptions::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
