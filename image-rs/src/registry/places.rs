//! The places of a blob: the node's copy of it, mirrors, the registry itself. They are asked one after another, each for what is still missing.

use std::fmt;
use std::sync::atomic::Ordering;

use oci_client::Reference;
use tokio_util::bytes::Bytes;

use super::endpoints::Endpoint;
use super::error::check_status;
use super::exchange::{Question, Stopped};
use super::{Registry, RegistryError, no_place};
use crate::digest::Digest;
use crate::kept::KeptLayer;

/// One place of a blob.
pub(crate) enum BlobPlace {
    /// What the node keeps of it.
    Copy(KeptLayer),
    /// A mirror, or the image's registry.
    Registry(Endpoint),
}

impl fmt::Display for BlobPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy(_) => f.write_str("the node's copy"),
            Self::Registry(endpoint) => write!(f, "registry {}", endpoint.host),
        }
    }
}

/// Why a place sends no more.
pub(crate) enum Ended<E> {
    /// The place's doing.
    Place(RegistryError),
    /// The reader's.
    Sink(E),
}

impl Registry {
    /// The places of a blob of `reference`, in the order in which they are asked.
    ///
    /// # Errors
    /// When the settings block the registry, and the node keeps nothing of the blob.
    pub(crate) fn blob_places(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Vec<BlobPlace>, RegistryError> {
        let kept = self.config.companions.kept(digest).map(BlobPlace::Copy);
        let registries = match self.endpoints(reference) {
            Ok(endpoints) => endpoints,
            Err(_) if kept.is_some() => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(kept.into_iter().chain(registries.into_iter().map(BlobPlace::Registry)).collect())
    }

    /// Streams a blob from `place` to `sink`, from byte `have` on, which is kept up to date. A transfer from a registry that breaks off is
    /// tried again from there.
    pub(crate) async fn blob_from<E>(
        &self,
        place: &BlobPlace,
        digest: &Digest,
        have: &mut u64,
        sink: &mut impl AsyncFnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), Ended<E>> {
        let what = format!("blob {digest}");
        match place {
            BlobPlace::Registry(endpoint) => {
                let sent = self.stream(endpoint, &what, digest.as_str(), have, sink).await;
                sent.map_err(|stopped| match stopped {
                    Stopped::Registry(failure) => Ended::Place(failure.error),
                    Stopped::Sink(error) => Ended::Sink(error),
                })
            }
            BlobPlace::Copy(kept) => loop {
                let piece = kept.piece(*have).await.map_err(|error| {
                    Ended::Place(RegistryError::Copy { what: what.clone(), why: error.to_string() })
                })?;
                let Some(piece) = piece else { return Ok(()) };
                *have += piece.len() as u64;
                self.kept_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                sink(piece).await.map_err(Ended::Sink)?;
            },
        }
    }

    /// Streams a blob to `sink` from as many places as it takes.
    pub(super) async fn asked_blob<E: From<RegistryError>>(
        &self,
        reference: &Reference,
        digest: &Digest,
        mut sink: impl AsyncFnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut have, mut last) = (0, None);
        for place in self.blob_places(reference, digest)? {
            if let Some(error) = &last {
                tracing::warn!(%error, next = %place, have, "another place of the image is asked");
            }
            match self.blob_from(&place, digest, &mut have, &mut sink).await {
                Ok(()) => return Ok(()),
                Err(Ended::Sink(error)) => return Err(error),
                Err(Ended::Place(error)) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| no_place(reference)).into())
    }

    /// A blob of at most `max` bytes with its digest checked: a place that sends other bytes is as one that has none.
    ///
    /// # Errors
    /// See [`RegistryError`]; that of the place that was asked last.
    pub(crate) async fn checked_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        max: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        if let Some(bytes) = self.config.companions.blob(digest) {
            return Ok(bytes);
        }
        let (what, path) = (format!("blob {digest}"), format!("blobs/{digest}"));
        self.of_any(reference, async |endpoint| {
            let question = Question { path: &path, accept: "*/*", what: &what, from: 0 };
            let body = self.small(endpoint, &question, max).await?;
            check_status(body.status, &endpoint.host, &what)?;
            let seen = digest.of_same_kind(&body.bytes);
            if seen == *digest {
                return Ok(body.bytes);
            }
            Err(RegistryError::BlobDigest { registry: endpoint.host.clone(), expected: digest.clone(), seen })
        })
        .await
    }
}
