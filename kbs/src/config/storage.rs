//! `[storage_backend]`: where things are kept, and under which key.

use std::path::PathBuf;

use kata_cc_kbs_pkcs11::WrapAlgorithm;
use serde::Deserialize;
use zeroize::Zeroizing;

/// `[storage_backend]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StorageBackend {
    pub(crate) storage_type: StorageType,
    /// Ours: versions of a resource that are kept, 1 to 1000.
    pub(crate) kept_versions: u32,
    /// Ours: name of the systemd credential that holds the store's key. `KBS_STORE_KEY` wins over it, it over `key_path`.
    pub(crate) key_credential: Option<String>,
    pub(crate) backends: Backends,
}

impl Default for StorageBackend {
    fn default() -> Self {
        Self {
            storage_type: StorageType::default(),
            kept_versions: 16,
            key_credential: None,
            backends: Backends::default(),
        }
    }
}

/// Where things are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum StorageType {
    /// Ours: an SQLite file with sealed values.
    #[default]
    #[serde(alias = "sqlite")]
    Sqlite,
    /// PostgreSQL, which replicas share.
    #[serde(alias = "postgres")]
    Postgres,
    /// Forgotten at the end.
    #[serde(alias = "memory")]
    Memory,
}

/// `[storage_backend.backends]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Backends {
    pub(crate) sqlite: Sqlite,
    pub(crate) postgres: Postgres,
}

/// `[storage_backend.backends.sqlite]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Sqlite {
    pub(crate) file_path: PathBuf,
    /// Key of the store, 64 hexadecimal digits, mode 0600; made at the first start. `KBS_STORE_KEY` wins.
    pub(crate) key_path: PathBuf,
    /// Key of the token of `[[plugins]]` `pkcs11` that wraps the key in `key_path`.
    pub(crate) key_wrapped_by: Option<KeyWrappedBy>,
}

/// `key_wrapped_by = { label, algorithm }`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyWrappedBy {
    /// `CKA_LABEL`.
    pub(crate) label: String,
    pub(crate) algorithm: WrapAlgorithm,
}

impl Default for Sqlite {
    fn default() -> Self {
        Self { file_path: "kbs.db".into(), key_path: "store.key".into(), key_wrapped_by: None }
    }
}

/// A password, which is not printed.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub(crate) struct Password(pub(crate) Zeroizing<String>);

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

/// `[storage_backend.backends.postgres]`.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Postgres {
    /// Name or address; a path is the folder of a Unix socket.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) db: String,
    pub(crate) username: String,
    /// Better in `password_file`.
    pub(crate) password: Option<Password>,
    /// Ours: a file of mode 0600 with the password; a newline at its end is no part of it.
    pub(crate) password_file: Option<PathBuf>,
    /// Ours: how the connection is protected; `verify-full` unless set, but `disable` to this machine.
    pub(crate) tls: Option<Tls>,
    /// Ours: PEM of the roots that are trusted.
    pub(crate) tls_root_certificates: Option<PathBuf>,
    /// Ours: most connections of this replica.
    pub(crate) connections: u32,
    /// Ours: key of the store, the same for all replicas; made at the first start.
    pub(crate) key_path: PathBuf,
    /// Ours: key of the token of `[[plugins]]` `pkcs11` that wraps the key in `key_path`.
    pub(crate) key_wrapped_by: Option<KeyWrappedBy>,
}

impl Default for Postgres {
    fn default() -> Self {
        let usual = kata_cc_store::PostgresOptions::default();
        Self {
            host: usual.host,
            port: usual.port,
            db: usual.db,
            username: usual.username,
            password: None,
            password_file: None,
            tls: None,
            tls_root_certificates: None,
            connections: usual.connections,
            key_path: "store.key".into(),
            key_wrapped_by: None,
        }
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("host", &self.host).field("db", &self.db).finish_non_exhaustive()
    }
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tls {
    /// Not.
    Disable,
    /// The certificate must be by a known root.
    VerifyCa,
    /// And for the name of the host.
    VerifyFull,
}

impl StorageBackend {
    /// What does not go, if something does not.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if !(1..=1000).contains(&self.kept_versions) {
            return Err("storage_backend.kept_versions must be 1 to 1000");
        }
        let postgres = &self.backends.postgres;
        if postgres.password.is_some() && postgres.password_file.is_some() {
            return Err("storage_backend.backends.postgres: give password or password_file, not both");
        }
        if !(2..=1000).contains(&postgres.connections) {
            return Err("storage_backend.backends.postgres.connections must be 2 to 1000");
        }
        Ok(())
    }
}
