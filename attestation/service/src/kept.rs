//! Evidence that administrators keep by a name, to try policies on it. Whether it verifies does not matter: what is refused is as good
//! to try with. It is sealed in the store like everything there.

use serde_json::Value;

use crate::policies::recorded;
use crate::service::{AttestationService, ServiceError};
use crate::store::{Applied, Change, Entry};

/// Namespace in the store.
const NAMESPACE: &str = "evidence";
/// Most pieces that are kept.
const MAX_KEPT: usize = 256;
/// Most bytes of a name.
const MAX_NAME: usize = 64;

fn missing(name: &str) -> ServiceError {
    ServiceError::NotFound(format!("evidence {:?}", name.chars().take(MAX_NAME).collect::<String>()))
}

fn check_name(name: &str) -> Result<(), ServiceError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        let seen: String = name.chars().take(MAX_NAME).collect();
        let why = format!("evidence {seen:?} is no name of 1 to {MAX_NAME} letters, digits, _, - and .");
        return Err(ServiceError::Request(why));
    }
    Ok(())
}

impl AttestationService {
    /// Keeps evidence with what it is to bind, as a request of `/api/v1/evaluate` has it; replaces what had the name.
    ///
    /// # Errors
    /// A name that is none, too much that is kept, a store that fails.
    pub async fn keep_evidence(&self, name: &str, request: &Value, by: &str) -> Result<(), ServiceError> {
        check_name(name)?;
        let known = self.kept_evidence().await?;
        if known.len() >= MAX_KEPT && !known.iter().any(|entry| entry.name == name) {
            let why = format!("{MAX_KEPT} pieces of evidence are kept, which is the most: delete one");
            return Err(ServiceError::Request(why));
        }
        let bytes = serde_json::to_vec(request).map_err(|e| ServiceError::Request(e.to_string()))?;
        let record = recorded("keep evidence", name, by);
        // Nothing is expected of what was there, so it happens.
        let _ = self.state.store.apply(&[Change::put(NAMESPACE, name, &bytes)], vec![record]).await?;
        Ok(())
    }

    /// What is kept: names, sizes, times.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn kept_evidence(&self) -> Result<Vec<Entry>, ServiceError> {
        Ok(self.state.store.list(NAMESPACE).await?)
    }

    /// Evidence that is kept.
    ///
    /// # Errors
    /// None of that name; a store that fails.
    pub async fn evidence(&self, name: &str) -> Result<Value, ServiceError> {
        let bytes = self.state.store.get(NAMESPACE, name).await?.ok_or_else(|| missing(name))?;
        serde_json::from_slice(&bytes).map_err(|e| ServiceError::Request(format!("evidence {name}: {e}")))
    }

    /// Forgets evidence.
    ///
    /// # Errors
    /// None of that name; a store that fails.
    pub async fn forget_evidence(&self, name: &str, by: &str) -> Result<(), ServiceError> {
        let record = recorded("delete evidence", name, by);
        match self.state.store.apply(&[Change::remove(NAMESPACE, name)], vec![record]).await? {
            Applied::Done => Ok(()),
            _ => Err(missing(name)),
        }
    }
}
