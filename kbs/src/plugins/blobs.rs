//! What plugins need of a store: named values in a namespace. The broker's store seals them at rest.

use async_trait::async_trait;
use kata_cc_attestation_service::store::{Applied, Change, Store, StoreError};
use zeroize::Zeroizing;

use super::PluginError;

/// Named values.
#[async_trait]
pub(crate) trait BlobStore: Send + Sync + std::fmt::Debug {
    /// Value of a name; `None` when there is none.
    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, PluginError>;
    /// Stores a value, replacing an older one.
    async fn put(&self, namespace: &str, name: &str, value: &[u8]) -> Result<(), PluginError>;
    /// Removes a value; false when there was none.
    async fn delete(&self, namespace: &str, name: &str) -> Result<bool, PluginError>;
    /// Names of a namespace, in order.
    async fn names(&self, namespace: &str) -> Result<Vec<String>, PluginError>;
    /// Takes a name until `expires`; false when somebody, also at another replica, has it `now`.
    async fn take_once(
        &self,
        namespace: &str,
        name: &str,
        expires: i64,
        now: i64,
    ) -> Result<bool, PluginError>;
    /// Keeps a name that was taken until `expires`; false when nobody has it any more.
    async fn keep_once(&self, namespace: &str, name: &str, expires: i64) -> Result<bool, PluginError>;
    /// Gives a name back that was taken.
    async fn give_back(&self, namespace: &str, name: &str) -> Result<(), PluginError>;
    /// Stores values, all or none: each where its name has the value (or has none) that is expected, if one is. False when one has another.
    async fn put_all(&self, puts: &[Put<'_>]) -> Result<bool, PluginError>;
}

/// A value of [`BlobStore::put_all`].
#[derive(Clone, Copy)]
pub(crate) struct Put<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) value: &'a [u8],
    /// What was read of the name before, where that matters.
    pub(crate) expected: Option<Option<&'a [u8]>>,
}

impl From<StoreError> for PluginError {
    fn from(error: StoreError) -> Self {
        Self::Internal(error.to_string())
    }
}

#[async_trait]
impl BlobStore for Store {
    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, PluginError> {
        Ok(Self::get(self, namespace, name).await?)
    }

    async fn put(&self, namespace: &str, name: &str, value: &[u8]) -> Result<(), PluginError> {
        Ok(Self::put(self, namespace, name, value).await?)
    }

    async fn delete(&self, namespace: &str, name: &str) -> Result<bool, PluginError> {
        Ok(Self::delete(self, namespace, name).await?)
    }

    async fn names(&self, namespace: &str) -> Result<Vec<String>, PluginError> {
        Ok(self.list(namespace).await?.into_iter().map(|entry| entry.name).collect())
    }

    async fn take_once(
        &self,
        namespace: &str,
        name: &str,
        expires: i64,
        now: i64,
    ) -> Result<bool, PluginError> {
        Ok(Self::take_once(self, namespace, name, expires, now).await?)
    }

    async fn keep_once(&self, namespace: &str, name: &str, expires: i64) -> Result<bool, PluginError> {
        Ok(Self::keep_once(self, namespace, name, expires).await?)
    }

    async fn give_back(&self, namespace: &str, name: &str) -> Result<(), PluginError> {
        Ok(Self::give_back(self, namespace, name).await?)
    }

    async fn put_all(&self, puts: &[Put<'_>]) -> Result<bool, PluginError> {
        let changes: Vec<_> = puts
            .iter()
            .map(|Put { namespace, name, value, expected }| {
                let change = Change::put(namespace, name, value);
                match expected {
                    None => change,
                    Some(expected) => change.expecting(*expected),
                }
            })
            .collect();
        Ok(self.apply(&changes, Vec::new()).await? == Applied::Done)
    }
}
