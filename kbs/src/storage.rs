//! Opens the store that the configuration names.

use anyhow::Context as _;
use kata_cc_store::{KeySource, PostgresOptions, PostgresTls, Store, StoreKey, read_secret};
use zeroize::Zeroizing;

use crate::config::{Config, StorageType, Tls};
use crate::plugins::pkcs11::{Token, store_key};
use crate::plugins::registry::open_token;

/// Environment variable with the store's key in hex.
pub(crate) const STORE_KEY: &str = "KBS_STORE_KEY";

/// Where the store's key is kept; `None` for a store that is forgotten.
pub(crate) fn key_source(config: &Config) -> Option<KeySource> {
    let storage = &config.storage_backend;
    let path = match storage.storage_type {
        StorageType::Memory => return None,
        StorageType::Sqlite => &storage.backends.sqlite.key_path,
        StorageType::Postgres => &storage.backends.postgres.key_path,
    };
    if let Ok(text) = std::env::var(STORE_KEY) {
        return Some(KeySource::Hex(Zeroizing::new(text)));
    }
    Some(match &storage.key_credential {
        Some(name) => KeySource::Credential(name.clone()),
        None => KeySource::File(config.path(path)),
    })
}

/// Opens the store with its key, and the token that the key may be wrapped by.
pub(crate) async fn open(config: &Config) -> anyhow::Result<Store> {
    let token = open_token(&config.plugins, &config.base).await?;
    open_by(config, token.as_deref()).await
}

/// Opens the store with its key, which a key of `token` may wrap. `KBS_STORE_KEY` wins.
pub(crate) async fn open_by(config: &Config, token: Option<&Token>) -> anyhow::Result<Store> {
    let sqlite = &config.storage_backend.backends.sqlite;
    if let (StorageType::Sqlite, Some(by)) = (config.storage_backend.storage_type, &sqlite.key_wrapped_by)
        && std::env::var_os(STORE_KEY).is_none()
    {
        let token = token.context("key_wrapped_by needs [[plugins]] name = \"pkcs11\"")?;
        let path = config.path(&sqlite.key_path);
        let key = store_key::load(token, &by.label, by.algorithm, &path).await?;
        return open_with(config, key).await;
    }
    let key = match key_source(config) {
        Some(source) => source.load().await?,
        None => StoreKey::ephemeral(),
    };
    open_with(config, key).await
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
        None => postgres.password.clone(),
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
