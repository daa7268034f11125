//! Opens the store that the configuration names, with its key.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kata_cc_store::{KeySource, PostgresOptions, PostgresTls, Store, StoreKey, read_secret};
use zeroize::Zeroizing;

use crate::config::{Config, KeyWrappedBy, StorageType, Tls};
use crate::plugins::pkcs11::{Token, store_key};
use crate::plugins::registry::open_token;

/// Environment variable with the store's key in hex.
const STORE_KEY: &str = "KBS_STORE_KEY";

/// Where the store's key is kept.
pub(crate) enum KeyPlace {
    /// Nowhere: the store is forgotten at the end.
    Nowhere,
    /// With somebody else: environment, credential.
    Elsewhere(KeySource),
    /// In a file, perhaps wrapped by a key of a token.
    File { path: PathBuf, wrapped: Option<KeyWrappedBy> },
}

impl KeyPlace {
    pub(crate) fn of(config: &Config) -> Self {
        let storage = &config.storage_backend;
        let (path, wrapped) = match storage.storage_type {
            StorageType::Memory => return Self::Nowhere,
            StorageType::Sqlite => {
                let sqlite = &storage.backends.sqlite;
                (&sqlite.key_path, &sqlite.key_wrapped_by)
            }
            StorageType::Postgres => {
                let postgres = &storage.backends.postgres;
                (&postgres.key_path, &postgres.key_wrapped_by)
            }
        };
        if let Ok(text) = std::env::var(STORE_KEY) {
            return Self::Elsewhere(KeySource::Hex(Zeroizing::new(text)));
        }
        match &storage.key_credential {
            Some(name) => Self::Elsewhere(KeySource::Credential(name.clone())),
            None => Self::File { path: config.path(path), wrapped: wrapped.clone() },
        }
    }

    /// Gets the key; makes one where it is in a file that does not exist.
    pub(crate) async fn load(&self, token: Option<&Token>) -> anyhow::Result<StoreKey> {
        match self {
            Self::Nowhere => Ok(StoreKey::ephemeral()),
            Self::Elsewhere(source) => Ok(source.load().await?),
            Self::File { path, wrapped } => key_file(path, wrapped.as_ref(), token).await,
        }
    }
}

/// The key in a file; makes both where the file does not exist.
pub(crate) async fn key_file(
    path: &Path,
    wrapped: Option<&KeyWrappedBy>,
    token: Option<&Token>,
) -> anyhow::Result<StoreKey> {
    let Some(by) = wrapped else { return Ok(StoreKey::from_file(path)?) };
    let token = token.context("key_wrapped_by needs [[plugins]] name = \"pkcs11\"")?;
    Ok(store_key::load(token, &by.label, by.algorithm, path).await?)
}

/// Opens the store with its key, and the token that the key may be wrapped by.
pub(crate) async fn open(config: &Config) -> anyhow::Result<Store> {
    let token = open_token(&config.plugins, &config.base).await?;
    open_by(config, token.as_deref()).await
}

/// Opens the store with its key, which a key of `token` may wrap.
pub(crate) async fn open_by(config: &Config, token: Option<&Token>) -> anyhow::Result<Store> {
    open_with(config, KeyPlace::of(config).load(token).await?).await
}

/// Opens the store with a key.
pub(crate) async fn open_with(config: &Config, key: StoreKey) -> anyhow::Result<Store> {
    let storage = &config.storage_backend;
    let store = match storage.storage_type {
        StorageType::Memory => Store::in_memory(key).await?,
        StorageType::Sqlite => Store::open(&config.path(&storage.backends.sqlite.file_path), key).await?,
        StorageType::Postgres => Store::postgres(&postgres(config)?, key).await?,
    };
    Ok(store.keep_versions(storage.kept_versions))
}

fn postgres(config: &Config) -> anyhow::Result<PostgresOptions> {
    let postgres = &config.storage_backend.backends.postgres;
    let password = match &postgres.password_file {
        Some(path) => {
            let path = config.path(path);
            let contents = read_secret(&path)?;
            let text =
                std::str::from_utf8(&contents).with_context(|| format!("{} is not UTF-8", path.display()))?;
            Some(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
        }
        None => postgres.password.as_ref().map(|password| password.0.clone()),
    };
    Ok(PostgresOptions {
        host: postgres.host.clone(),
        port: postgres.port,
        db: postgres.db.clone(),
        username: postgres.username.clone(),
        password,
        tls: postgres.tls.map(|tls| match tls {
            Tls::Disable => PostgresTls::Disable,
            Tls::VerifyCa => PostgresTls::VerifyCa,
            Tls::VerifyFull => PostgresTls::VerifyFull,
        }),
        root_certificates: postgres.tls_root_certificates.as_ref().map(|path| config.path(path)),
        connections: postgres.connections,
    })
}
