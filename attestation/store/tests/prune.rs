//! Removing archived records: what is refused, that the rest proves itself, and that a change after it is found. And the calls that
//! make several changes at once, or succeed once whoever asks.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Postgres;
use kata_cc_store::audit::{Archive, Kind, Known, Pruned, Tampered, VerifyError, verify_export};
use kata_cc_store::{Applied, Change, Record, Store, StoreError, StoreKey, Write};

async fn append(store: &Store, count: u64) {
    for n in 0..count {
        store.audit().append(Record::new(Kind::Release).resource("a/b/c", Some(n))).await.unwrap();
    }
}

async fn export(store: &Store) -> Vec<u8> {
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    export
}

async fn archive(store: &Store) -> Archive {
    Archive::verify(export(store).await.as_slice(), &store.audit().public_key()).unwrap()
}

async fn prune(store: &Store, archive: &Archive, upto: Option<u64>) -> Result<Pruned, StoreError> {
    store.audit().prune(archive, upto, "operator").await
}

fn refused(result: Result<Pruned, StoreError>, why: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Prune(_)) && error.to_string().contains(why), "{why}: {error}");
}

async fn tampered(store: &Store, known: Option<&Known>) -> Tampered {
    match store.audit().verify(known).await {
        Err(StoreError::Audit(tampered)) => tampered,
        other => panic!("{other:?}"),
    }
}

fn known(seq: u64, hash: &str) -> Known {
    Known { seq, hash: hex::decode(hash).unwrap().try_into().unwrap() }
}

/// What every store does. `store` is empty.
async fn behave(store: &Store) {
    append(store, 300).await;
    let noted = store.audit().verify(None).await.unwrap();
    let whole = export(store).await;
    let kept = archive(store).await;
    assert_eq!(kept.last(), 300);
    append(store, 10).await;
    refused(prune(store, &kept, Some(301)).await, "ends with record 300, it does not have up to 301");
    refused(prune(store, &kept, Some(0)).await, "nothing to remove up to record 0");
    let pruned = prune(store, &kept, Some(290)).await.unwrap();
    assert_eq!((pruned.removed, pruned.upto), (290, 290));
    let rest = store.audit().verify(None).await.unwrap();
    assert_eq!((rest.first, rest.records), (291, 311));
    // Known from elsewhere: what is still there, the anchor itself, and what is only in the archive.
    store.audit().verify(Some(&known(300, &noted.head))).await.unwrap();
    store.audit().verify(Some(&known(290, &pruned.hash))).await.unwrap();
    let other = tampered(store, Some(&known(290, &noted.head))).await;
    assert_eq!(other, Tampered::Known { seq: 290 });
    let gone = tampered(store, Some(&known(289, &noted.head))).await;
    assert_eq!(gone, Tampered::Archived { seq: 289, anchor: 290 });
    // As a file, and the archive by itself.
    let lines = String::from_utf8(export(store).await).unwrap();
    let key = store.audit().public_key();
    let checked = verify_export(lines.as_bytes(), Some(&key), None).unwrap();
    assert_eq!((checked.first, checked.records), (291, 311));
    assert!(lines.contains(r#""kind":"prune""#) && lines.contains(&pruned.hash), "{lines}");
    verify_export(whole.as_slice(), Some(&key), Some(&known(290, &pruned.hash))).unwrap();
    // Again, by a newer export.
    append(store, 5).await;
    let newer = archive(store).await;
    refused(prune(store, &newer, Some(316)).await, "record 316 is the last one and stays");
    refused(prune(store, &newer, Some(290)).await, "nothing to remove up to record 290");
    let again = prune(store, &newer, None).await.unwrap();
    assert_eq!((again.removed, again.upto), (25, 315));
    let rest = store.audit().verify(None).await.unwrap();
    assert_eq!((rest.first, rest.records), (316, 317));
    // What the end of an older export cannot be compared with is no proof.
    append(store, 2).await;
    refused(prune(store, &kept, Some(317)).await, "is not in the log");
    // By time: all of these are younger than a time that has passed, and older than one to come.
    let at = |seconds| time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    assert_eq!(store.audit().last_before(at(1_000_000_000)).await.unwrap(), None);
    assert_eq!(store.audit().last_before(at(4_000_000_000)).await.unwrap(), Some(319));

    together_or_not_at_all(store).await;
    taken_once(store).await;
}

async fn together_or_not_at_all(store: &Store) {
    let before = store.audit().checkpoint().await.unwrap().seq;
    let record = |what: &str| Record::new(Kind::Admin).resource("x", None).reason(what);
    let write = Write { value: b"first", content_type: "", who: "anna" };
    let changes = [Change::version("c", "x", write), Change::put("c", "y", b"why"), Change::forget("c", "z")];
    let applied = store.apply(&changes, vec![record("one"), record("two")]).await.unwrap();
    assert_eq!(applied, Applied::Done);
    assert_eq!(store.audit().checkpoint().await.unwrap().seq, before + 2);
    let log = String::from_utf8(export(store).await).unwrap();
    assert!(log.contains(r#""reason":"one","resource":{"id":"x","version":1}"#), "{log}");
    // What is to be removed is not there: nothing happens, and nothing is on record.
    let changes = [Change::put("c", "y", b"other"), Change::remove("c", "z")];
    assert_eq!(store.apply(&changes, vec![record("three")]).await.unwrap(), Applied::NotThere);
    assert_eq!(store.get("c", "y").await.unwrap().unwrap().as_slice(), b"why");
    assert_eq!(store.audit().checkpoint().await.unwrap().seq, before + 2);
    let changes = [Change::put("c", "y", b"other"), Change::remove("c", "x")];
    assert_eq!(store.apply(&changes, Vec::new()).await.unwrap(), Applied::Done);
    assert!(store.get("c", "x").await.unwrap().is_none());
    assert_eq!(store.get_or_put("c", "new", b"made").await.unwrap().as_slice(), b"made");
    assert_eq!(store.get_or_put("c", "new", b"made again").await.unwrap().as_slice(), b"made");
}

async fn taken_once(store: &Store) {
    assert!(store.take_once("n", "a", 100, 10).await.unwrap());
    assert!(!store.take_once("n", "a", 200, 99).await.unwrap());
    assert!(store.take_once("m", "a", 100, 10).await.unwrap(), "another namespace");
    assert!(store.take_once("n", "a", 300, 100).await.unwrap(), "it has expired");
    store.give_back("n", "a").await.unwrap();
    let all = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.take_once("n", "a", 300, 100).await.unwrap() })
    });
    let mut taken = 0;
    for one in all.collect::<Vec<_>>() {
        taken += u32::from(one.await.unwrap());
    }
    assert_eq!(taken, 1);
    assert_eq!(store.sweep_once("n", 299).await.unwrap(), 1);
    assert_eq!(store.sweep_once("n", 300).await.unwrap(), 0);
}

#[tokio::test]
async fn memory_behaves() {
    behave(&Store::in_memory(StoreKey::ephemeral()).await.unwrap()).await;
}

#[tokio::test]
async fn postgres_behaves() {
    let Some(postgres) = Postgres::start() else { return };
    let key = StoreKey::ephemeral();
    let store = Store::postgres(&postgres.options(), key.clone()).await.unwrap();
    behave(&store).await;
    // Another process goes on with the log that begins with an anchor.
    let other = Store::postgres(&postgres.options(), key).await.unwrap();
    append(&other, 1).await;
    other.audit().verify(None).await.unwrap();
    store.audit().verify(None).await.unwrap();
}

/// An export that proves nothing lets nothing be removed.
#[tokio::test]
async fn only_an_export_that_is_whole_is_an_archive() {
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    append(&store, 5).await;
    let (text, key) = (String::from_utf8(export(&store).await).unwrap(), store.audit().public_key());
    let why = |text: &str| Archive::verify(text.as_bytes(), &key).unwrap_err();
    let edited = text.replacen("\"version\":3", "\"version\":4", 1);
    assert!(matches!(why(&edited), VerifyError::Tampered(Tampered::Edited { seq: 4, .. })));
    let cut = text.lines().take(4).collect::<Vec<_>>().join("\n");
    assert!(matches!(why(&cut), VerifyError::Tampered(Tampered::Unsigned { .. })));
    assert!(matches!(why("nothing"), VerifyError::Unreadable { .. }));
    // Of another log: by its key, and, of a store that was restored and went on elsewhere, by its records.
    let other = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    append(&other, 5).await;
    let foreign = String::from_utf8(export(&other).await).unwrap();
    assert!(matches!(why(&foreign), VerifyError::Tampered(Tampered::OtherKey { .. })));
    let key = StoreKey::ephemeral();
    let (one, two) = (Store::in_memory(key.clone()).await.unwrap(), tempfile::tempdir().unwrap());
    append(&one, 3).await;
    let mut backup = Vec::new();
    one.backup(&mut backup).await.unwrap();
    let path = two.path().join("db");
    let two = Store::open(&path, key.clone()).await.unwrap();
    two.restore(|| Ok(backup.as_slice()), true).await.unwrap();
    let two = Store::open(&path, key).await.unwrap();
    one.audit().append(Record::new(Kind::Release).reason("here")).await.unwrap();
    two.audit().append(Record::new(Kind::Release).reason("there")).await.unwrap();
    append(&two, 1).await;
    refused(prune(&two, &archive(&one).await, Some(2)).await, "is not in the log");
}

/// What can be done with the database alone after records were removed, and what finds it.
#[tokio::test]
async fn edits_after_a_prune_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let key = StoreKey::ephemeral();
    let store = Store::open(&path, key.clone()).await.unwrap();
    append(&store, 600).await;
    prune(&store, &archive(&store).await, Some(400)).await.unwrap();
    append(&store, 5).await;
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    let edit = async |sql: &str| {
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&pool).await.unwrap();
    };
    edit("CREATE TABLE copy AS SELECT * FROM audit").await;
    edit("CREATE TABLE anchor_copy AS SELECT * FROM audit_anchor").await;
    let restore = async || {
        edit("DELETE FROM audit").await;
        edit("INSERT INTO audit SELECT * FROM copy").await;
        edit("DELETE FROM audit_anchor").await;
        edit("INSERT INTO audit_anchor SELECT * FROM anchor_copy").await;
        store.audit().verify(None).await.unwrap();
    };
    edit("UPDATE audit SET record = replace(record, 'release', 'refusal') WHERE seq = 450").await;
    assert!(matches!(tampered(&store, None).await, Tampered::Edited { seq: 450, .. }));
    let error = store.audit().prune(&archive_of(&folder, &store).await, Some(410), "x").await.unwrap_err();
    assert!(matches!(error, StoreError::Audit(Tampered::Edited { seq: 450, .. })), "{error}");
    restore().await;
    edit("DELETE FROM audit WHERE seq = 450").await;
    assert_eq!(tampered(&store, None).await, Tampered::Order { expected: 450, seen: 451 });
    restore().await;
    // The first ones, as if they had been archived too.
    edit("DELETE FROM audit WHERE seq <= 410").await;
    assert_eq!(tampered(&store, None).await, Tampered::Order { expected: 401, seen: 411 });
    edit("UPDATE audit_anchor SET seq = 410, hash = (SELECT hash FROM copy WHERE seq = 410)").await;
    assert_eq!(tampered(&store, None).await, Tampered::Anchor { seq: 410 });
    // Nor by a state of the log that was signed, which is no anchor.
    edit("DELETE FROM audit WHERE seq <= 512").await;
    edit(
        "UPDATE audit_anchor SET seq = 512, hash = (SELECT hash FROM copy WHERE seq = 512), \
         time = (SELECT time FROM audit_checkpoints WHERE seq = 512), \
         signature = (SELECT signature FROM audit_checkpoints WHERE seq = 512)",
    )
    .await;
    assert_eq!(tampered(&store, None).await, Tampered::Anchor { seq: 512 });
    restore().await;
    // Without the anchor nothing says that records may be missing.
    edit("DELETE FROM audit_anchor").await;
    assert_eq!(tampered(&store, None).await, Tampered::Order { expected: 1, seen: 401 });
    restore().await;
    // An anchor without its record: the log of before, under the anchor of after.
    edit("DELETE FROM audit WHERE seq > 600").await;
    assert!(matches!(tampered(&store, None).await, Tampered::Truncated { from: 601, .. }));
    restore().await;

    // In a file, too; and a backup keeps the anchor.
    let text = String::from_utf8(export(&store).await).unwrap();
    let key_of_log = store.audit().public_key();
    let check = |lines: Vec<&str>| verify_export(lines.join("\n").as_bytes(), Some(&key_of_log), None);
    let lines: Vec<&str> = text.lines().collect();
    check(lines.clone()).unwrap();
    let without = [&lines[..1], &lines[2..]].concat();
    assert!(matches!(check(without), Err(VerifyError::Tampered(Tampered::Order { expected: 1, seen: 401 }))));
    let later = [&lines[..1], &lines[2..4], &lines[1..2], &lines[4..]].concat();
    assert!(check(later).is_err());
    let twice = [&lines[..2], &lines[1..]].concat();
    assert!(matches!(check(twice), Err(VerifyError::Tampered(Tampered::Anchor { seq: 400 }))));
    let mut backup = Vec::new();
    let saved = store.backup(&mut backup).await.unwrap();
    assert_eq!(saved.records, 606);
    let other = folder.path().join("other");
    let restored = Store::open(&other, key.clone()).await.unwrap();
    restored.restore(|| Ok(backup.as_slice()), true).await.unwrap();
    let whole = Store::open(&other, key).await.unwrap().audit().verify(None).await.unwrap();
    assert_eq!((whole.first, whole.records), (401, 606));
}

/// An archive that was made before the edit.
async fn archive_of(folder: &tempfile::TempDir, store: &Store) -> Archive {
    let text = folder.path().join("archive");
    if !text.exists() {
        // The edited store exports what it has; undone here, as the copy that an operator had made.
        let mut lines = String::from_utf8(export(store).await).unwrap();
        lines = lines
            .lines()
            .map(|line| match line.contains("\"seq\":450,") {
                true => line.replace("refusal", "release") + "\n",
                false => line.to_owned() + "\n",
            })
            .collect();
        std::fs::write(&text, lines).unwrap();
    }
    Archive::verify(std::fs::read(text).unwrap().as_slice(), &store.audit().public_key()).unwrap()
}

/// More than one transaction removes, while others append.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_is_pruned_in_steps_beside_who_appends() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("db"), StoreKey::ephemeral()).await.unwrap();
    let records = |count: u64| {
        let store = store.clone();
        async move {
            let all: Vec<_> = (0..count)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move { store.audit().append(Record::new(Kind::Release)).await })
                })
                .collect();
            for one in all {
                one.await.unwrap().unwrap();
            }
        }
    };
    records(4500).await;
    let kept = archive(&store).await;
    let (pruned, ()) = tokio::join!(prune(&store, &kept, Some(4400)), records(300));
    let pruned = pruned.unwrap();
    assert_eq!((pruned.removed, pruned.upto), (4400, 4400));
    let rest = store.audit().verify(None).await.unwrap();
    // Each of the three steps left its record.
    assert_eq!((rest.first, rest.records), (4401, 4500 + 300 + 3));
}
