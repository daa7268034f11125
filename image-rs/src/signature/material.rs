//! Where the keys and certificates come from that a policy names by a path.
//!
//! CoCo's policies name resources of the key broker (`kbs:///default/cosign-public-key/test`), those of a machine name files. Which of
//! the two may be read is the caller's to say: a guest must not take a key from a path that the host can write to.

use async_trait::async_trait;

use super::key::MAX_KEY;
use crate::keys::SecretSource;

/// Why a path gave no bytes.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// This caller does not read paths of that kind.
    #[error("{path:?} is not read here; {instead}")]
    Kind {
        /// The path.
        path: String,
        /// What can be used.
        instead: &'static str,
    },
    /// It was asked for and not had.
    #[error("{path} was not had: {source}")]
    Refused {
        /// The path.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Reads the keys and certificates that a policy names by path. What comes is public; that it is the right one is what counts.
#[async_trait]
pub trait KeyMaterial: Send + Sync {
    /// The bytes at `path`, as it stands in the policy.
    ///
    /// # Errors
    /// See [`MaterialError`]; the image is then refused.
    async fn read(&self, path: &str) -> Result<Vec<u8>, MaterialError>;
}

fn kind(path: &str, instead: &'static str) -> MaterialError {
    MaterialError::Kind { path: super::json::cut(path), instead }
}

/// No paths: keys stand in the policy itself.
pub struct NoMaterial;

#[async_trait]
impl KeyMaterial for NoMaterial {
    async fn read(&self, path: &str) -> Result<Vec<u8>, MaterialError> {
        Err(kind(path, "write the key into the policy as keyData"))
    }
}

/// Resources of the key broker, `kbs:///repository/type/tag`.
pub struct BrokerMaterial<S>(pub S);

#[async_trait]
impl<S: SecretSource> KeyMaterial for BrokerMaterial<S> {
    async fn read(&self, path: &str) -> Result<Vec<u8>, MaterialError> {
        if !path.starts_with("kbs://") {
            return Err(kind(
                path,
                "name a resource of the key broker, kbs:///repository/type/tag, or use keyData",
            ));
        }
        let refused = |source| MaterialError::Refused { path: path.to_owned(), source };
        Ok(self.0.get(path).await.map_err(refused)?.to_vec())
    }
}

/// Files of this machine, as `/path` or `file:///path`.
pub struct FileMaterial;

#[async_trait]
impl KeyMaterial for FileMaterial {
    async fn read(&self, path: &str) -> Result<Vec<u8>, MaterialError> {
        use tokio::io::AsyncReadExt as _;
        let file = path.strip_prefix("file://").unwrap_or(path);
        if file.contains("://") {
            return Err(kind(path, "only files are read here: fetch it, and name the file"));
        }
        let refused =
            |source: std::io::Error| MaterialError::Refused { path: path.to_owned(), source: source.into() };
        let mut bytes = Vec::new();
        let opened = tokio::fs::File::open(file).await.map_err(refused)?;
        // One byte more than the bound: a longer one is told from one that just fits.
        opened.take(MAX_KEY as u64 + 1).read_to_end(&mut bytes).await.map_err(refused)?;
        Ok(bytes)
    }
}
