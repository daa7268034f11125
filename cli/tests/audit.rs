//! `kata-cc audit verify` on exports of a real log.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;

use kata_cc_store::audit::{Kind, Record};
use kata_cc_store::{Store, StoreKey};

fn verify(arguments: &[&str], file: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kata-cc"))
        .args(["audit", "verify", "--file"])
        .arg(file)
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test]
async fn an_export_is_checked_offline() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    for n in 0..5 {
        store.audit().append(Record::new(Kind::Release).resource("a/b/c", Some(n))).await.unwrap();
    }
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    let (file, key) = (folder.path().join("log"), folder.path().join("key.pem"));
    std::fs::write(&file, &export).unwrap();
    std::fs::write(&key, store.audit().public_key().pem()).unwrap();
    let key = key.to_str().unwrap();
    let (code, text) = verify(&["--key", key], &file);
    assert!(code == Some(0) && text.contains("5 records, whole"), "{text}");
    let noted = text.split("note ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(verify(&["--key", key, "--after", noted], &file).0, Some(0));
    let (code, text) = verify(&[], &file);
    assert!(code == Some(0) && text.contains("no --key"), "{text}");
    let (code, text) = verify(&["--json"], &file);
    assert!(code == Some(0) && text.contains("\"records\":5") || text.contains("\"records\": 5"), "{text}");

    let text = String::from_utf8(export).unwrap();
    let change = |from: &str, to: &str| std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
    change("\"version\":3", "\"version\":9");
    let (code, said) = verify(&["--key", key], &file);
    assert!(code == Some(1) && said.contains("first bad record 4"), "{said}");
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&file, [&lines[..2], &lines[3..]].concat().join("\n")).unwrap();
    let (code, said) = verify(&["--key", key], &file);
    assert!(code == Some(1) && said.contains("first bad record 2"), "{said}");
    std::fs::write(&file, &text).unwrap();
    let other = folder.path().join("other.pem");
    let stranger = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    std::fs::write(&other, stranger.audit().public_key().hex()).unwrap();
    let (code, said) = verify(&["--key", other.to_str().unwrap()], &file);
    assert!(code == Some(1) && said.contains("expected was"), "{said}");
    change("{\"seq\":2", "{\"seq\":two");
    let (code, said) = verify(&["--key", key], &file);
    assert!(code == Some(2) && said.contains("line 3"), "{said}");
    assert_eq!(verify(&[], &folder.path().join("absent")).0, Some(2));
}
