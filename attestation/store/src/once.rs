//! Names that are taken once: answered challenges, slots of a limit. One statement each, so that of any number of processes on one
//! database one gets the name; no lock of the whole store is held.
//!
//! They are of this database: a backup does not have them.

use crate::StoreError;
use crate::db::values;
use crate::store::Store;

impl Store {
    /// Takes a name until `expires` (seconds since 1970); false when somebody has it `now`.
    pub async fn take_once(
        &self,
        namespace: &str,
        name: &str,
        expires: i64,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.engine().write().await?;
        // A conflict waits for the other's end, then looks at the row that it left.
        let sql = "INSERT INTO once (namespace, name, expires) VALUES ($1, $2, $3) \
                   ON CONFLICT (namespace, name) DO UPDATE SET expires = excluded.expires \
                   WHERE once.expires <= $4";
        let taken = tx.execute(sql, values![namespace, name, expires, now]).await?;
        tx.commit().await?;
        Ok(taken == 1)
    }

    /// Keeps a name that was taken until `expires`, in place of what was said before; false when it was given back meanwhile.
    pub async fn keep_once(&self, namespace: &str, name: &str, expires: i64) -> Result<bool, StoreError> {
        let mut tx = self.engine().write().await?;
        let sql = "UPDATE once SET expires = $3 WHERE namespace = $1 AND name = $2";
        let kept = tx.execute(sql, values![namespace, name, expires]).await?;
        tx.commit().await?;
        Ok(kept == 1)
    }

    /// Gives a name back before it expires.
    pub async fn give_back(&self, namespace: &str, name: &str) -> Result<(), StoreError> {
        let mut tx = self.engine().write().await?;
        tx.execute("DELETE FROM once WHERE namespace = $1 AND name = $2", values![namespace, name]).await?;
        tx.commit().await
    }

    /// Forgets what has expired; returns how many of the namespace are left.
    pub async fn sweep_once(&self, namespace: &str, now: i64) -> Result<u64, StoreError> {
        let mut tx = self.engine().write().await?;
        tx.execute("DELETE FROM once WHERE expires <= $1", values![now]).await?;
        let left = tx.row("SELECT count(*) FROM once WHERE namespace = $1", values![namespace]).await?;
        tx.commit().await?;
        left.map_or(Ok(0), |row| row.count(0))
    }
}
