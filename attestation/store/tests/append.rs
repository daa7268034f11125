//! Appending to the audit log at its known end, in one exchange with the database: what happens when the end is another by now, and
//! when the exchange fails halfway.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Postgres;
use kata_cc_store::audit::Kind;
use kata_cc_store::{Record, Store, StoreError, StoreKey};

async fn append(store: &Store) -> Result<u64, StoreError> {
    store.audit().append(Record::new(Kind::Release).resource("a/b/c", Some(1))).await
}

/// Two processes that append by turns, and at the same time: each finds that the log has grown.
async fn two_append(one: &Store, other: &Store) {
    for n in 0..20 {
        let store = if n % 3 == 0 { one } else { other };
        assert_eq!(append(store).await.unwrap(), n + 1);
    }
    let (a, b) = tokio::join!(
        async {
            for _ in 0..300 {
                append(one).await.unwrap();
            }
        },
        async {
            for _ in 0..300 {
                append(other).await.unwrap();
            }
        }
    );
    let ((), ()) = (a, b);
    for store in [one, other] {
        assert_eq!(store.audit().verify(None).await.unwrap().records, 620);
    }
}

#[tokio::test]
async fn two_processes_on_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key) = (folder.path().join("db"), StoreKey::ephemeral());
    let one = Store::open(&path, key.clone()).await.unwrap();
    two_append(&one, &Store::open(&path, key).await.unwrap()).await;
}

#[tokio::test]
async fn two_processes_on_postgres() {
    let Some(postgres) = Postgres::start() else { return };
    let key = StoreKey::ephemeral();
    let one = Store::postgres(&postgres.options(), key.clone()).await.unwrap();
    two_append(&one, &Store::postgres(&postgres.options(), key).await.unwrap()).await;
}

/// A record that somebody put in the place of the next one: nothing is appended, nothing stays half done, and once it is gone the log
/// goes on.
#[tokio::test]
async fn a_place_that_is_taken_fails_the_whole_append() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, StoreKey::ephemeral()).await.unwrap();
    append(&store).await.unwrap();
    append(&store).await.unwrap();
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    let edit = async |sql: &'static str| sqlx::query(sql).execute(&pool).await.unwrap();
    edit("INSERT INTO audit SELECT 3, record, hash FROM audit WHERE seq = 2").await;
    // More often than the pool has connections: none of them is left in a transaction that never ends.
    for _ in 0..10 {
        let error = append(&store).await.unwrap_err();
        assert!(matches!(error, StoreError::AuditWrite(_)), "{error}");
    }
    edit("DELETE FROM audit WHERE seq = 3").await;
    assert_eq!(append(&store).await.unwrap(), 3);
    assert_eq!(store.audit().verify(None).await.unwrap().records, 3);
}

/// An end that was set back is not appended to, whoever's signature it bears.
#[tokio::test]
async fn an_end_that_was_set_back_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, StoreKey::ephemeral()).await.unwrap();
    append(&store).await.unwrap();
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    let edit = async |sql: &'static str| sqlx::query(sql).execute(&pool).await.unwrap();
    edit("CREATE TABLE copy AS SELECT * FROM store_state").await;
    append(&store).await.unwrap();
    for column in [
        "UPDATE store_state SET audit_seq = (SELECT audit_seq FROM copy)",
        "UPDATE store_state SET audit_hash = (SELECT audit_hash FROM copy)",
    ] {
        edit(column).await;
        let error = append(&store).await.unwrap_err().to_string();
        assert!(error.contains("audit log"), "{error}");
    }
}
