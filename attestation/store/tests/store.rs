//! The store over both databases: the same calls, the same answers, and what somebody with the database but without the key
//! can do.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Postgres, assert_not_below};
use kata_cc_store::audit::{Kind, Known, Tampered, VerifyError, verify_export};
use kata_cc_store::{Record, State, Store, StoreError, StoreKey, Write};

const MARKER: &[u8] = b"plain marker text of a secret";

fn write<'a>(value: &'a [u8], who: &'a str) -> Write<'a> {
    Write { value, content_type: "text/plain", who }
}

fn record(reason: &str) -> Record {
    Record::new(Kind::Admin).resource("a/b/c", None).who("admin").reason(reason)
}

/// What every store does. `store` is empty.
async fn behave(store: &Store) {
    store.put("n", "a/b/c", MARKER).await.unwrap();
    store.put("n", "a/b/d", b"other").await.unwrap();
    store.put("m", "a/b/c", b"elsewhere").await.unwrap();
    assert_eq!(store.get("n", "a/b/c").await.unwrap().unwrap().as_slice(), MARKER);
    assert!(store.get("n", "a/b").await.unwrap().is_none());
    let entries = store.list("n").await.unwrap();
    let names: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.size)).collect();
    assert_eq!(names, [("a/b/c", MARKER.len() as u64), ("a/b/d", 5)]);
    store.put("n", "a/b/d", b"new").await.unwrap();
    assert_eq!(store.all("n").await.unwrap()[1].1.as_slice(), b"new");
    assert!(store.delete("n", "a/b/d").await.unwrap());
    assert!(!store.delete("n", "a/b/d").await.unwrap());
    assert!(store.get("n", "a/b/d").await.unwrap().is_none());

    for n in 1..=5_u8 {
        let version = store.put_version("v", "x", write(&[n], "anna"), Some(record("put"))).await.unwrap();
        assert_eq!(version, u64::from(n));
    }
    let latest = store.get_version("v", "x", None).await.unwrap().unwrap();
    assert_eq!((latest.value.as_slice(), latest.info.version), ([5].as_slice(), 5));
    assert_eq!((latest.info.who.as_str(), latest.info.content_type.as_str()), ("anna", "text/plain"));
    assert_eq!(store.get_version("v", "x", Some(4)).await.unwrap().unwrap().value.as_slice(), [4]);
    // Three are kept.
    assert!(store.get_version("v", "x", Some(2)).await.unwrap().is_none());
    assert!(store.get_version("v", "x", Some(6)).await.unwrap().is_none());
    assert_eq!(store.history("v", "x").await.unwrap().len(), 3);

    assert_eq!(store.erase("v", "x", "bert", Some(record("delete"))).await.unwrap(), Some(6));
    assert_eq!(store.erase("v", "x", "bert", Some(record("delete"))).await.unwrap(), None);
    assert!(store.get_version("v", "x", None).await.unwrap().is_none());
    assert!(store.get_version("v", "x", Some(5)).await.unwrap().is_none(), "a deleted value is gone");
    assert!(store.list("v").await.unwrap().is_empty() && store.all("v").await.unwrap().is_empty());
    let history = store.history("v", "x").await.unwrap();
    let told: Vec<_> = history.iter().map(|v| (v.version, v.state, v.who.as_str())).collect();
    let expected = [(6, State::Deleted, "bert"), (5, State::Erased, "anna"), (4, State::Erased, "anna")];
    assert_eq!(told, expected);
    assert_eq!(store.put_version("v", "x", write(b"again", "anna"), None).await.unwrap(), 7);
    assert!(store.history("v", "y").await.unwrap().is_empty());

    // Records of the changes, then many at once.
    assert_eq!(store.audit().checkpoint().await.unwrap().seq, 6);
    let tasks: Vec<_> = (0..700)
        .map(|n| {
            let audit = store.audit().clone();
            let record = Record::new(Kind::Release).session(&format!("id {n}")).resource("a/b/c", Some(1));
            tokio::spawn(async move { audit.append(record).await.unwrap() })
        })
        .collect();
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.push(task.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (7..=706).collect::<Vec<_>>());
    let whole = store.audit().verify(None).await.unwrap();
    assert_eq!(whole.records, 706);
    let text = export(store).await;
    let key = store.audit().public_key();
    assert_eq!(verify_export(text.as_bytes(), Some(&key), None).unwrap(), whole);
    assert!(!text.contains("id 5"), "ids of sessions are credentials");
    assert!(text.contains(r#""resource":{"id":"a/b/c","version":5}"#), "{}", &text[..1000]);
    let hash: [u8; 32] = hex::decode(&whole.head).unwrap().try_into().unwrap();
    store.audit().verify(Some(&Known { seq: 706, hash })).await.unwrap();
    let error = store.audit().verify(Some(&Known { seq: 707, hash })).await.unwrap_err();
    assert!(matches!(error, StoreError::Audit(Tampered::Known { seq: 707 })), "{error}");
    store.verify_values().await.unwrap();
    store.ready().await.unwrap();
}

async fn export(store: &Store) -> String {
    let mut out = Vec::new();
    store.audit().export(&mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

async fn backup(store: &Store) -> Vec<u8> {
    let mut out = Vec::new();
    store.backup(&mut out).await.unwrap();
    out
}

#[tokio::test]
async fn memory_behaves() {
    behave(&Store::in_memory(StoreKey::ephemeral()).await.unwrap().keep_versions(3)).await;
}

#[tokio::test]
async fn sqlite_behaves_and_reveals_nothing() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kbs.db");
    let key = StoreKey::from_bytes(&[1; 32]).unwrap();
    let store = Store::open(&path, key.clone()).await.unwrap().keep_versions(3);
    behave(&store).await;
    // With the write-ahead log.
    assert_not_below(folder.path(), MARKER);
    store.close().await;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o077, 0, "{path:?}");
    }
    assert!(matches!(Store::open(&path, StoreKey::ephemeral()).await, Err(StoreError::WrongKey)));
    let store = Store::open(&path, key).await.unwrap();
    assert_eq!(store.get("n", "a/b/c").await.unwrap().unwrap().as_slice(), MARKER);
    store.audit().verify(None).await.unwrap();
}

#[tokio::test]
async fn postgres_behaves_and_reveals_nothing() {
    let Some(mut postgres) = Postgres::start() else { return };
    let key = StoreKey::from_bytes(&[1; 32]).unwrap();
    let store = Store::postgres(&postgres.options(), key.clone()).await.unwrap().keep_versions(3);
    behave(&store).await;
    postgres.sql("kbs", "CHECKPOINT");
    assert_not_below(postgres.folder(), MARKER);
    let other = Store::postgres(&postgres.options(), StoreKey::ephemeral()).await;
    assert!(matches!(other, Err(StoreError::WrongKey)));
    // The connections of the pool are gone with the server; it makes new ones.
    postgres.crash_and_restart();
    assert_eq!(store.get("n", "a/b/c").await.unwrap().unwrap().as_slice(), MARKER);
    assert_eq!(store.audit().verify(None).await.unwrap().records, 706);
    store.audit().append(Record::new(Kind::Start)).await.unwrap();
    store.close().await;
}

/// Each edit that can be made with the database alone, and what finds it.
async fn edits_are_found(store: &Store, edit: impl AsyncFn(&str)) {
    for n in 0..600 {
        store.audit().append(Record::new(Kind::Release).reason(format!("{n}"))).await.unwrap();
    }
    let verify = async || match store.audit().verify(None).await {
        Err(StoreError::Audit(tampered)) => tampered,
        other => panic!("{other:?}"),
    };
    // Each with the statement that undoes it.
    let copy = "CREATE TABLE copy AS SELECT * FROM audit";
    edit(copy).await;
    let restore = async || {
        edit("DELETE FROM audit").await;
        edit("INSERT INTO audit SELECT * FROM copy").await;
        store.audit().verify(None).await.unwrap();
    };
    restore().await;
    edit("UPDATE audit SET record = replace(record, 'release', 'refusal') WHERE seq = 300").await;
    assert!(matches!(verify().await, Tampered::Edited { seq: 300, .. }));
    restore().await;
    edit("DELETE FROM audit WHERE seq = 300").await;
    assert_eq!(verify().await, Tampered::Order { expected: 300, seen: 301 });
    restore().await;
    edit("UPDATE audit SET seq = CASE seq WHEN 10 THEN -1 ELSE 10 END WHERE seq IN (10, 11)").await;
    assert!(matches!(verify().await, Tampered::Order { .. }));
    restore().await;
    edit("DELETE FROM audit WHERE seq = 600").await;
    assert!(matches!(verify().await, Tampered::Truncated { from: 600, to: 600 }));
    restore().await;
    edit("INSERT INTO audit SELECT 601, record, hash FROM audit WHERE seq = 600").await;
    assert!(matches!(verify().await, Tampered::Edited { seq: 601, .. }));
    restore().await;
    // Back to the last kept state, as a former end of the log.
    edit("DELETE FROM audit WHERE seq > 512").await;
    edit("UPDATE store_state SET audit_seq = 512, audit_hash = (SELECT hash FROM audit_checkpoints WHERE seq = 512)")
        .await;
    assert!(matches!(verify().await, Tampered::Signature { seq: 512 }));
    // And the log does not grow on what was changed.
    let error = store.audit().append(Record::new(Kind::Release)).await.unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    assert!(store.put_version("v", "x", write(b"x", ""), Some(record("put"))).await.is_err());
}

/// Rows of values that are swapped, rolled into one another or edited.
async fn edited_values_are_found(store: &Store, edit: impl AsyncFn(&str)) {
    for (name, value) in [("x", b"one"), ("y", b"two")] {
        store.put_version("v", name, write(value, "anna"), None).await.unwrap();
        store.put_version("v", name, write(value, "anna"), None).await.unwrap();
    }
    store.verify_values().await.unwrap();
    edit("CREATE TABLE values_copy AS SELECT * FROM versions").await;
    for change in [
        "UPDATE versions SET value = (SELECT value FROM values_copy WHERE name = 'y' AND version = 2) WHERE name = 'x'",
        "UPDATE versions SET value = (SELECT value FROM values_copy WHERE name = 'x' AND version = 1) \
         WHERE name = 'x' AND version = 2",
        "UPDATE versions SET version = version + 1 WHERE name = 'x' AND version = 2",
        "UPDATE versions SET who = 'bert' WHERE name = 'x'",
        "UPDATE versions SET modified = '1970-01-01T00:00:00Z' WHERE name = 'x'",
        "UPDATE versions SET content_type = 'text/html' WHERE name = 'x'",
        "UPDATE versions SET state = 2 WHERE name = 'x'",
        "UPDATE versions SET size = 1 WHERE name = 'x'",
    ] {
        edit(change).await;
        let error = store.get_version("v", "x", None).await.unwrap_err();
        assert!(matches!(error, StoreError::Sealed { .. }), "{change}: {error}");
        assert!(store.verify_values().await.is_err(), "{change}");
        edit("DELETE FROM versions").await;
        edit("INSERT INTO versions SELECT * FROM values_copy").await;
        store.verify_values().await.unwrap();
    }
}

#[tokio::test]
async fn edits_of_sqlite_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kbs.db");
    let store = Store::open(&path, StoreKey::ephemeral()).await.unwrap();
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    let edit = async |sql: &str| {
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&pool).await.unwrap();
    };
    edited_values_are_found(&store, edit).await;
    edits_are_found(&store, edit).await;
}

#[tokio::test]
async fn edits_of_postgres_are_found() {
    let Some(postgres) = Postgres::start() else { return };
    let store = Store::postgres(&postgres.options(), StoreKey::ephemeral()).await.unwrap();
    let edit = async |sql: &str| drop(postgres.sql("kbs", sql));
    edited_values_are_found(&store, edit).await;
    edits_are_found(&store, edit).await;
    store.close().await;
}

#[tokio::test]
async fn a_restarted_service_finds_a_shortened_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kbs.db");
    let key = StoreKey::from_bytes(&[2; 32]).unwrap();
    let store = Store::open(&path, key.clone()).await.unwrap();
    for _ in 0..3 {
        store.audit().append(Record::new(Kind::Release)).await.unwrap();
    }
    store.close().await;
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    sqlx::query("DELETE FROM audit WHERE seq = 3").execute(&pool).await.unwrap();
    pool.close().await;
    let store = Store::open(&path, key).await.unwrap();
    let error = store.audit().append(Record::new(Kind::Start)).await.unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

/// A store of the first schema is taken over with its values.
#[tokio::test]
async fn the_first_schema_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kbs.db");
    // Made by the code of before there were versions: key of 32 times 7, put("repository", "a/b/c", "old value").
    let fixture: &[u8] = include_bytes!("fixtures/first-schema.sql");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let fixture = std::str::from_utf8(fixture).unwrap().to_owned();
    sqlx::raw_sql(sqlx::AssertSqlSafe(fixture)).execute(&pool).await.unwrap();
    pool.close().await;
    assert!(matches!(Store::open(&path, StoreKey::ephemeral()).await, Err(StoreError::WrongKey)));
    let store = Store::open(&path, StoreKey::from_bytes(&[7; 32]).unwrap()).await.unwrap();
    assert_eq!(store.get("repository", "a/b/c").await.unwrap().unwrap().as_slice(), b"old value");
    assert_eq!(store.put_version("repository", "a/b/c", write(b"new", ""), None).await.unwrap(), 2);
    assert_eq!(store.get_version("repository", "a/b/c", Some(1)).await.unwrap().unwrap().value.len(), 9);
    store.verify_values().await.unwrap();
}

#[tokio::test]
async fn a_backup_restores_everything_and_nothing_else() {
    let key = StoreKey::from_bytes(&[3; 32]).unwrap();
    let store = Store::in_memory(key.clone()).await.unwrap().keep_versions(3);
    behave(&store).await;
    let file = backup(&store).await;
    assert!(!file.windows(MARKER.len()).any(|w| w == MARKER));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restored.db");
    let open = async |key: &StoreKey| Store::open(&path, key.clone()).await.unwrap();
    let restored = open(&key).await.restore(|| Ok(file.as_slice()), false).await.unwrap();
    assert_eq!(restored.records, 706);
    let again = open(&key).await;
    assert_eq!(export(&again).await, export(&store).await);
    assert_eq!(again.all("n").await.unwrap(), store.all("n").await.unwrap());
    assert_eq!(again.history("v", "x").await.unwrap(), store.history("v", "x").await.unwrap());
    again.audit().append(Record::new(Kind::Start)).await.unwrap();
    again.audit().verify(None).await.unwrap();
    // A store with something in it is not replaced unless forced.
    let error = open(&key).await.restore(|| Ok(file.as_slice()), false).await.unwrap_err();
    assert!(matches!(error, StoreError::NotEmpty { records: 707, .. }), "{error}");
    open(&key).await.restore(|| Ok(file.as_slice()), true).await.unwrap();
    assert_eq!(open(&key).await.audit().verify(None).await.unwrap().records, 706);
    // A handle from before sees that the store is another one.
    let error = again.put("n", "z", b"").await.unwrap_err();
    assert!(matches!(error, StoreError::Rekeyed), "{error}");

    // Changed, cut, of another key: refused, and the store stays what it was.
    let mut changed = file.clone();
    let at = file.len() / 2;
    changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
    let longer = [file.as_slice(), b"{}\n"].concat();
    for bad in [&changed, &file[..file.len() / 2].to_vec(), &longer, &Vec::new()] {
        let error = open(&key).await.restore(|| Ok(bad.as_slice()), true).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Backup(_) | StoreError::Audit(_) | StoreError::Sealed { .. }),
            "{error}"
        );
    }
    let other = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let error = other.restore(|| Ok(file.as_slice()), true).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongKey), "{error}");
    assert_eq!(open(&key).await.audit().verify(None).await.unwrap().records, 706);
}

#[tokio::test]
async fn a_backup_moves_a_store_to_postgres() {
    let Some(postgres) = Postgres::start() else { return };
    let key = StoreKey::from_bytes(&[4; 32]).unwrap();
    let store = Store::in_memory(key.clone()).await.unwrap().keep_versions(3);
    behave(&store).await;
    let file = backup(&store).await;
    let target = Store::postgres(&postgres.options(), key.clone()).await.unwrap();
    target.restore(|| Ok(file.as_slice()), false).await.unwrap();
    let target = Store::postgres(&postgres.options(), key).await.unwrap();
    assert_eq!(target.all("n").await.unwrap(), store.all("n").await.unwrap());
    assert_eq!(target.audit().verify(None).await.unwrap(), store.audit().verify(None).await.unwrap());
    assert_eq!(export(&target).await, export(&store).await);
    target.close().await;
}

#[tokio::test]
async fn a_new_key_shuts_the_old_one_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kbs.db");
    let (old, new) = (StoreKey::from_bytes(&[5; 32]).unwrap(), StoreKey::from_bytes(&[6; 32]).unwrap());
    let store = Store::open(&path, old.clone()).await.unwrap();
    let running = Store::open(&path, old.clone()).await.unwrap();
    store.put("n", "x", MARKER).await.unwrap();
    store.audit().append(Record::new(Kind::Start)).await.unwrap();
    assert_eq!(store.rekey(&new).await.unwrap(), 2);
    assert!(matches!(Store::open(&path, old).await, Err(StoreError::WrongKey)));
    // Who still runs with the old key writes nothing that could not be read any more.
    assert!(matches!(running.put("n", "y", b"").await, Err(StoreError::Rekeyed)));
    assert!(running.audit().append(Record::new(Kind::Release)).await.is_err());
    assert!(running.ready().await.is_err());
    let store = Store::open(&path, new).await.unwrap();
    assert_eq!(store.get("n", "x").await.unwrap().unwrap().as_slice(), MARKER);
    assert_eq!(store.audit().verify(None).await.unwrap().records, 1);
    assert!(store.get("n", "y").await.unwrap().is_none());
}

#[test]
fn what_is_no_export_is_unreadable() {
    for text in
        ["", "{}", "nonsense", "{\"audit\":2,\"public_key\":\"\"}", "{\"audit\":1,\"public_key\":\"00\"}"]
    {
        let error = verify_export(text.as_bytes(), None, None).unwrap_err();
        assert!(matches!(error, VerifyError::Unreadable { line: 1, .. }), "{text}: {error}");
    }
}
