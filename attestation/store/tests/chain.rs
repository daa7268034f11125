//! The chain of the audit log, by property: whatever is done to an export without the key, the check finds it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use kata_cc_store::audit::{Kind, PublicKey, VerifyError, verify_export};
use kata_cc_store::{Record, Store, StoreKey};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What somebody does with the lines of an export. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Change {
    Remove(usize),
    Swap(usize, usize),
    Repeat(usize, usize),
    Cut(usize),
    /// Another character at a place of a line.
    Edit(usize, usize, u8),
    /// A line of the log of another key.
    Foreign(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let any = || 0..10_000_usize;
    prop_oneof![
        any().prop_map(Change::Remove),
        (any(), any()).prop_map(|(a, b)| Change::Swap(a, b)),
        (any(), any()).prop_map(|(a, b)| Change::Repeat(a, b)),
        any().prop_map(Change::Cut),
        (any(), any(), 0x20..0x7f_u8).prop_map(|(a, b, c)| Change::Edit(a, b, c)),
        (any(), any()).prop_map(|(a, b)| Change::Foreign(a, b)),
    ]
}

fn apply(lines: &mut Vec<String>, foreign: &[String], change: &Change) {
    let count = lines.len();
    if count == 0 {
        return;
    }
    match change {
        Change::Remove(at) => drop(lines.remove(at % count)),
        Change::Swap(a, b) => lines.swap(a % count, b % count),
        Change::Repeat(from, to) => lines.insert(to % (count + 1), lines[from % count].clone()),
        Change::Cut(at) => lines.truncate(at % count),
        Change::Edit(line, at, byte) => {
            let line = &mut lines[line % count];
            let at = line.floor_char_boundary(at % line.len());
            let old = line[at..].chars().next().unwrap();
            line.replace_range(at..at + old.len_utf8(), std::str::from_utf8(&[*byte]).unwrap());
        }
        Change::Foreign(from, to) => lines[to % count] = foreign[from % foreign.len()].clone(),
    }
}

/// What a log says: its lines, however they are written, in order.
fn meaning(lines: &[String]) -> Option<Vec<serde_json::Value>> {
    lines.iter().map(|line| serde_json::from_str(line).ok()).collect()
}

async fn log(records: usize) -> (Vec<String>, PublicKey) {
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let mut all = Vec::new();
    for n in 0..records {
        let record = Record::new(Kind::Release).resource(format!("a/b/{n}"), Some(1)).reason("é\u{7f}\"\\");
        let audit = store.audit().clone();
        all.push(tokio::spawn(async move { audit.append(record).await.unwrap() }));
    }
    for one in all {
        one.await.unwrap();
    }
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    let lines = String::from_utf8(export).unwrap().lines().map(str::to_owned).collect();
    (lines, store.audit().public_key())
}

#[test]
fn whatever_is_changed_is_found() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ((lines, key), (foreign, _)) = runtime.block_on(async { (log(30).await, log(30).await) });
    let whole = verify_export(lines.join("\n").as_bytes(), Some(&key), None).unwrap();
    assert_eq!(whole.records, 30);
    let config = Config { cases: 4000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    runner
        .run(&prop::collection::vec(change(), 1..4), |changes| {
            let mut changed = lines.clone();
            changes.iter().for_each(|change| apply(&mut changed, &foreign, change));
            let same = meaning(&changed) == meaning(&lines);
            let checked = verify_export(changed.join("\n").as_bytes(), Some(&key), None);
            // Changes can undo one another; a signed state that is repeated where it stands says nothing new.
            let repeated = || {
                let mut left = changed.clone();
                left.dedup();
                left == lines
            };
            prop_assert!(checked.is_err() || same || repeated(), "{changed:#?}");
            if same {
                prop_assert!(checked.is_ok());
            }
            Ok(())
        })
        .unwrap();
}

/// Who rewrites everything after a change has no key: what was signed does not fit.
#[test]
fn a_log_rewritten_to_its_end_is_found_with_the_key() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (lines, key) = runtime.block_on(log(5));
    let (other, _) = runtime.block_on(log(5));
    // A whole log, but of another key: without the key it fits itself.
    verify_export(other.join("\n").as_bytes(), None, None).unwrap();
    let error = verify_export(other.join("\n").as_bytes(), Some(&key), None).unwrap_err();
    assert!(matches!(error, VerifyError::Tampered(_)), "{error}");
    // Under the right key's name.
    let mut disguised = other;
    disguised[0] = lines[0].clone();
    let error = verify_export(disguised.join("\n").as_bytes(), Some(&key), None).unwrap_err();
    assert!(matches!(error, VerifyError::Tampered(_)), "{error}");
}

#[test]
fn a_line_written_anew_by_a_tool_is_the_same_line() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (lines, key) = runtime.block_on(log(5));
    let again: Vec<String> = meaning(&lines).unwrap().iter().map(ToString::to_string).collect();
    verify_export(again.join("\n").as_bytes(), Some(&key), None).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is given, there is an answer, and it is no.
    #[test]
    fn nonsense_is_refused(
        head in "(\\{\"audit\":1,\"public_key\":\"[0-9a-f]{64}\"\\}\n)?",
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let text = [head.as_bytes(), &bytes].concat();
        prop_assert!(verify_export(text.as_slice(), None, None).is_err());
    }
}
