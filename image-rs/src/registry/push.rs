//! Uploads. They go to the registry that the reference names, never to a mirror.

use std::path::Path;

use futures::StreamExt as _;
use kata_cc_causes::causes;
use oci_client::errors::OciDistributionError;
use oci_client::{Reference, RegistryOperation};
use tokio::io::AsyncReadExt as _;
use tokio_util::bytes::Bytes;

use super::error::explain;
use super::{Registry, RegistryError};
use crate::digest::Digest;

impl Registry {
    async fn log_in_to_push(&self, reference: &Reference) -> Result<(), RegistryError> {
        let auth = self.auth_for(reference);
        let answer = self.client.auth(reference, &auth, RegistryOperation::Push).await;
        answer.map(drop).map_err(|error| explain(reference, "access", &error))
    }

    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// When the registry fails.
    pub async fn has_blob(&self, reference: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        self.log_in_to_push(reference).await?;
        self.client
            .blob_exists(reference, digest.as_str())
            .await
            .map_err(|error| explain(reference, "blob", &error))
    }

    /// Uploads the file `path` as a blob.
    ///
    /// # Errors
    /// When the registry or the file fails.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        path: &Path,
        size: u64,
    ) -> Result<(), RegistryError> {
        self.log_in_to_push(reference).await?;
        let file = tokio::fs::File::open(path).await.map_err(|error| RegistryError::Setup(causes(&error)))?;
        let stream = tokio_util::io::ReaderStream::with_capacity(file.take(size), 128 << 10)
            .map(|piece| piece.map_err(OciDistributionError::from));
        self.client
            .push_blob_stream(reference, stream, digest.as_str(), Some(size))
            .await
            .map(drop)
            .map_err(|error| explain(reference, "upload of a blob", &error))
    }

    /// Uploads a few bytes as a blob, unless the repository has it.
    ///
    /// # Errors
    /// When the registry fails.
    pub async fn push_bytes(&self, reference: &Reference, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let digest = Digest::sha256(bytes);
        if !self.has_blob(reference, &digest).await? {
            self.client
                .push_blob(reference, Bytes::copy_from_slice(bytes), digest.as_str())
                .await
                .map_err(|error| explain(reference, "upload of a blob", &error))?;
        }
        Ok(digest)
    }

    /// Uploads a manifest under the reference's tag (or digest).
    ///
    /// # Errors
    /// When the registry fails.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        bytes: Vec<u8>,
        media_type: &str,
    ) -> Result<(), RegistryError> {
        self.log_in_to_push(reference).await?;
        let media_type = reqwest::header::HeaderValue::from_str(media_type)
            .map_err(|e| RegistryError::Setup(e.to_string()))?;
        self.client
            .push_manifest_raw(reference, bytes, media_type)
            .await
            .map(drop)
            .map_err(|error| explain(reference, "upload of the manifest", &error))
    }
}
