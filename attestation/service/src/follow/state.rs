//! What the store remembers of a followed source: which bundle is in force, whether it is pinned, and the last bundles whole.

use kata_cc_policy_bundle::Bundle;
use serde::{Deserialize, Serialize};

use crate::service::ServiceError;
use crate::store::{Store, StoreError};

/// Namespace of the state.
pub(super) const NAMESPACE: &str = "policy_source";
/// Its name.
pub(super) const NAME: &str = "state";
/// Namespace of bundles in packed form, by digest.
pub(super) const ARCHIVE_NAMESPACE: &str = "policy_source_bundle";
/// Bundles that are kept.
pub(super) const MAX_HISTORY: usize = 10;

/// A bundle that was put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Digest of the bundle.
    pub digest: String,
    /// Its name, and its version if it has one.
    pub title: String,
    /// What whoever published it calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Where it was taken from.
    pub source: String,
    /// When it was put in force, RFC 3339.
    pub applied_at: String,
    /// How many policies and values were changed for it.
    pub changes: usize,
}

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    /// What is in force.
    pub(super) in_force: Option<Revision>,
    /// Digest that is held in force.
    pub(super) pinned: Option<String>,
    /// The last ones, the newest first.
    pub(super) history: Vec<Revision>,
    /// As it was read, for a change that depends on it.
    #[serde(skip)]
    pub(super) bytes: Option<Vec<u8>>,
}

impl Stored {
    pub(super) async fn read(store: &Store) -> Result<Self, StoreError> {
        let Some(bytes) = store.get(NAMESPACE, NAME).await? else { return Ok(Self::default()) };
        // Only this module writes it. One of a later version is taken as none: the source says anew what is in force.
        let read: Self = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(Self { bytes: Some(bytes.to_vec()), ..read })
    }

    /// A bundle that is kept.
    pub(super) async fn bundle(&self, store: &Store, digest: &str) -> Result<Bundle, ServiceError> {
        let missing = || ServiceError::NotFound(format!("policy bundle {digest}"));
        let bytes = store.get(ARCHIVE_NAMESPACE, digest).await?.ok_or_else(missing)?;
        let bundle = Bundle::from_archive(&bytes);
        bundle.map_err(|error| ServiceError::Request(format!("policy bundle {digest}: {error}")))
    }

    /// The kept one whose digest begins with `digest`; without that, the one before what is in force.
    pub(super) fn choose(&self, digest: Option<&str>) -> Result<&Revision, ServiceError> {
        let Some(digest) = digest else {
            let current = self.in_force.as_ref().map(|one| one.digest.as_str());
            let at = self.history.iter().position(|one| Some(one.digest.as_str()) == current);
            let before = at.and_then(|at| self.history.get(at + 1));
            return before.ok_or_else(|| ServiceError::NotFound("an earlier policy bundle".to_owned()));
        };
        let mut fits = self.history.iter().filter(|one| !digest.is_empty() && one.digest.starts_with(digest));
        match (fits.next(), fits.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(ServiceError::Request(format!(
                "several policy bundles that are kept begin with {digest}"
            ))),
            (None, _) => {
                let shown: String = digest.chars().take(64).collect();
                Err(ServiceError::NotFound(format!(
                    "policy bundle {shown}, of the {} that are kept,",
                    self.history.len()
                )))
            }
        }
    }
}
