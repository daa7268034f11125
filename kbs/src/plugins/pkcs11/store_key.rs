//! The store's key wrapped by a key of the token: a file that opens nothing without the token.
//!
//! The file is the envelope of a blob ([`super::blob`]) named `store-key`, whose contents are the 32 bytes. It is made with a new key
//! when it does not exist.

use std::path::{Path, PathBuf};

use kata_cc_attestation_service::store::{StoreError, StoreKey, read_secret, write_secret};
use kata_cc_kbs_pkcs11::{Answer, Bytes, KeyName, Operation, Secret, WrapAlgorithm};
use thiserror::Error;
use zeroize::Zeroizing;

use super::blob::{self, BlobError, Sealed};
use super::{Token, TokenError};

/// Name in the envelope.
const BLOB: &str = "store-key";

/// Why there is no store key.
#[derive(Debug, Error)]
pub(crate) enum StoreKeyError {
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its contents.
    #[error("wrapped store key {path}: {source}")]
    Blob {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: BlobError,
    },
    /// The token.
    #[error("wrapped store key {path}: {source}")]
    Token {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: TokenError,
    },
}

/// Unwraps the store's key, or makes it, wrapped by key `label` of the token.
pub(crate) async fn load(
    token: &Token,
    label: &str,
    algorithm: WrapAlgorithm,
    path: &Path,
) -> Result<StoreKey, StoreKeyError> {
    let key = KeyName::Label(label.to_owned());
    let token_error = |source| StoreKeyError::Token { path: path.to_owned(), source };
    let blob_error = |source| StoreKeyError::Blob { path: path.to_owned(), source };
    let kind = || token_error(TokenError::Nonsense("an answer of another kind".to_owned()));
    let stored = match read_secret(path) {
        Ok(stored) => Some(stored),
        Err(StoreError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(other) => return Err(other.into()),
    };
    let plain = match stored {
        Some(stored) => {
            let sealed = Sealed::read(&stored, label, BLOB).map_err(blob_error)?;
            let wrapped = Bytes(sealed.encrypted_key.clone());
            let operation = Operation::Unwrap { key, algorithm: sealed.algorithm, wrapped };
            let Answer::Secret { bytes } = token.ask(operation).await.map_err(token_error)? else {
                return Err(kind());
            };
            sealed.open(&bytes.0).map_err(blob_error)?
        }
        None => {
            let (plain, fresh) =
                (blob::fresh_key().map_err(blob_error)?, blob::fresh_key().map_err(blob_error)?);
            let operation = Operation::Wrap { key, algorithm, data: Secret(fresh.clone()) };
            let Answer::Public { bytes } = token.ask(operation).await.map_err(token_error)? else {
                return Err(kind());
            };
            let sealed = blob::seal(algorithm, label, BLOB, &fresh, &bytes.0, &plain).map_err(blob_error)?;
            write_secret(path, &sealed)
                .map_err(|source| StoreError::File { path: path.to_owned(), source })?;
            plain
        }
    };
    Ok(StoreKey::from_hex(&Zeroizing::new(hex::encode(&*plain)))?)
}
