//! Changes that depend on what was read: nobody's change is lost, whatever two handles do at the same time, on both databases.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Postgres;
use kata_cc_store::audit::{Kind, verify_export};
use kata_cc_store::{Applied, Change, Record, Store, StoreKey};

fn record(reason: &str) -> Record {
    Record::new(Kind::Admin).reason(reason)
}

async fn put(store: &Store, value: &[u8], read: Option<&[u8]>) -> Applied {
    let change = Change::put("n", "x", value).expecting(read);
    store.apply(&[change], vec![record("put")]).await.unwrap()
}

/// `one` and `other` are handles of one empty store.
async fn behave(one: &Store, other: &Store) {
    assert_eq!(put(one, b"first", Some(b"anything")).await, Applied::Changed, "there is no value");
    assert_eq!(put(one, b"first", None).await, Applied::Done);
    assert_eq!(put(other, b"second", None).await, Applied::Changed, "there is one by now");
    let records = one.audit().checkpoint().await.unwrap().seq;
    // Both read "first"; the second to write must not undo what the first wrote.
    let read = other.get("n", "x").await.unwrap().unwrap();
    assert_eq!(put(one, b"second", Some(b"first")).await, Applied::Done);
    assert_eq!(put(other, b"third", Some(&read)).await, Applied::Changed);
    assert_eq!(one.get("n", "x").await.unwrap().unwrap().as_slice(), b"second");
    assert_eq!(one.audit().checkpoint().await.unwrap().seq, records + 1, "nothing happened, nothing is told");
    // One expectation that fails is all that fails.
    let changes = [Change::put("n", "y", b"beside"), Change::unchanged("n", "x", Some(b"first"))];
    assert_eq!(other.apply(&changes, vec![record("beside")]).await.unwrap(), Applied::Changed);
    assert!(one.get("n", "y").await.unwrap().is_none());
    let changes = [Change::put("n", "y", b"beside"), Change::unchanged("n", "x", Some(b"second"))];
    assert_eq!(other.apply(&changes, Vec::new()).await.unwrap(), Applied::Done);
    assert_eq!(one.get("n", "x").await.unwrap().unwrap().as_slice(), b"second", "that changes nothing");
    // What is expected is expected of the time before all of the changes.
    let changes = [Change::put("n", "x", b"fourth"), Change::put("n", "y", b"z").expecting(Some(b"beside"))];
    assert_eq!(one.apply(&changes, Vec::new()).await.unwrap(), Applied::Done);
    let changes = [Change::put("n", "x", b"fifth"), Change::unchanged("n", "x", Some(b"fourth"))];
    assert_eq!(one.apply(&changes, Vec::new()).await.unwrap(), Applied::Done);
    // What was removed, in either way, is no value.
    let gone = Change::remove("n", "x").expecting(Some(b"fourth"));
    assert_eq!(one.apply(&[gone], Vec::new()).await.unwrap(), Applied::Changed);
    let gone = Change::remove("n", "x").expecting(Some(b"fifth"));
    assert_eq!(one.apply(&[gone], Vec::new()).await.unwrap(), Applied::Done);
    assert_eq!(put(other, b"sixth", Some(b"fifth")).await, Applied::Changed);
    one.erase("n", "y", "anna", None).await.unwrap().unwrap();
    let changes = [Change::put("n", "x", b"sixth").expecting(None), Change::unchanged("n", "y", None)];
    assert_eq!(other.apply(&changes, Vec::new()).await.unwrap(), Applied::Done);
    counted(one, other).await;
}

/// Two handles add to one number at the same time, each to what it read.
async fn counted(one: &Store, other: &Store) {
    const EACH: u64 = 30;
    let add = async |store: &Store| {
        let mut again = 0_u64;
        for _ in 0..EACH {
            loop {
                let read = store.get("n", "count").await.unwrap();
                let number = read
                    .as_ref()
                    .map_or(0, |read| std::str::from_utf8(read).unwrap().parse::<u64>().unwrap());
                let next = (number + 1).to_string();
                let change = Change::put("n", "count", next.as_bytes());
                let change = change.expecting(read.as_ref().map(|read| read.as_slice()));
                match store.apply(&[change], vec![record("add")]).await.unwrap() {
                    Applied::Done => break,
                    Applied::Changed => again += 1,
                    Applied::NotThere => panic!("nothing is removed"),
                }
            }
        }
        again
    };
    let (a, b) = tokio::join!(add(one), add(other));
    assert_eq!(one.get("n", "count").await.unwrap().unwrap().as_slice(), (2 * EACH).to_string().as_bytes());
    assert!(a + b > 0, "they were never in one another's way: the test shows nothing");
    one.audit().verify(None).await.unwrap();
}

#[tokio::test]
async fn sqlite_loses_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store.db"), StoreKey::ephemeral()).await.unwrap();
    behave(&store, &store.clone()).await;
}

#[tokio::test]
async fn postgres_loses_no_change() {
    let Some(postgres) = Postgres::start() else { return };
    let key = StoreKey::ephemeral();
    let one = Store::postgres(&postgres.options(), key.clone()).await.unwrap();
    let other = Store::postgres(&postgres.options(), key).await.unwrap();
    behave(&one, &other).await;
}

/// A record with more details than are kept is a record of the chain like any other, and says so itself.
#[tokio::test]
async fn a_record_tells_what_was_left_out_of_it() {
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let record = (0..40).fold(record("many"), |record, n| record.detail(format!("d{n:02}"), "x"));
    store.audit().append(record).await.unwrap();
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    assert!(String::from_utf8_lossy(&export).contains(r#""d15":"x","left_out":"24"}"#));
    verify_export(export.as_slice(), Some(&store.audit().public_key()), None).unwrap();
}

#[tokio::test]
async fn a_name_that_was_taken_is_kept_for_longer() {
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    assert!(!store.keep_once("n", "a", 500).await.unwrap(), "nobody took it");
    assert!(store.take_once("n", "a", 100, 10).await.unwrap());
    assert!(store.keep_once("n", "a", 500).await.unwrap());
    assert!(!store.take_once("n", "a", 600, 200).await.unwrap());
    assert!(store.take_once("n", "a", 600, 500).await.unwrap());
}
