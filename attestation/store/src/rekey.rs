//! A new key for the store.

use crate::StoreError;
use crate::audit::Head;
use crate::db::values;
use crate::key::StoreKey;
use crate::store::{Store, check_key, each_row, key_check};
use crate::versions::Stored;

impl Store {
    /// Seals every value under `new`, in one transaction, and closes the store: afterwards it is opened with the new key only.
    /// Other processes that have it open can write no more ([`StoreError::Rekeyed`]). Sessions that replicas share are forgotten,
    /// their guests attest again. Returns how many values there are.
    pub async fn rekey(self, new: &StoreKey) -> Result<u64, StoreError> {
        let (mut tx, head) = self.audit().begin().await?;
        let mut rows = Vec::new();
        each_row(&mut tx, |row| {
            let (namespace, name) = (row.namespace.clone(), row.name.clone());
            let version = row.unseal(self.key())?;
            rows.push(Stored::seal(new, (&namespace, &name), version.info, &version.value)?);
            Ok(())
        })
        .await?;
        let count = rows.len() as u64;
        for row in rows {
            row.write(&mut tx).await?;
        }
        let generation = head.generation.saturating_add(1);
        let sql = "UPDATE store_state SET generation = $1, key_check = $2 WHERE id = 1";
        tx.execute(sql, values![generation, key_check(new, generation)?]).await?;
        tx.forget_sessions().await?;
        tx.commit().await?;
        self.close().await;
        Ok(count)
    }

    /// Whether a database is sealed under `key`, when it is another than the one this store was opened with.
    pub async fn is_sealed_under(&self, key: &StoreKey) -> Result<bool, StoreError> {
        let mut tx = self.engine().snapshot().await?;
        let head = Head::of(&mut tx).await?.ok_or(StoreError::WrongKey)?;
        Ok(check_key(key, head.generation, head.key_check).is_ok())
    }
}
