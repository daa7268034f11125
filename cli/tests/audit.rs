//! `kata-cc audit verify` on exports of a real log, and on pages of one as a key broker gives them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
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

/// Answers like `GET /kbs/v0/admin/audit` of a key broker, or another path; each call puts a record into the log, as others do meanwhile.
fn serve(store: Store, runtime: tokio::runtime::Handle, path: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> =
                lines.by_ref().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
            let number = |name: &str| {
                let rest = head[0].split(&format!("{name}=")).nth(1)?;
                rest.split(['&', ' ']).next()?.parse::<u64>().ok()
            };
            let allowed =
                head.iter().any(|line| line.eq_ignore_ascii_case("authorization: bearer the-token"));
            let mut body = Vec::new();
            let status = match (allowed, number("after"), number("limit")) {
                (true, Some(after), Some(limit)) if head[0].starts_with(&format!("GET {path}?")) => {
                    let page = async {
                        store.audit().append(Record::new(Kind::Admin).reason("meanwhile")).await.unwrap();
                        store.audit().export_page(&mut body, after, limit).await.unwrap();
                    };
                    runtime.block_on(page);
                    "200 OK"
                }
                _ => "401 Unauthorized",
            };
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_running_key_broker_is_read_by_pages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, StoreKey::ephemeral()).await.unwrap();
    for n in 0..1300 {
        store.audit().append(Record::new(Kind::Release).resource("a/b/c", Some(n))).await.unwrap();
    }
    let runtime = tokio::runtime::Handle::current();
    let url = serve(store.clone(), runtime.clone(), "/kbs/v0/admin/audit");
    let attestation = serve(store.clone(), runtime, "/api/v1/audit");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (token, wrong) = (file("token", "the-token\n"), file("wrong", "other\n"));
    let key = file("key", &store.audit().public_key().pem());
    let verify = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        let output = command.args(["audit", "verify"]).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = verify(&["--url", &url, "--token", &token, "--key", &key]);
    // Eleven pages, each with one record more in the log.
    assert!(code == Some(0) && text.contains("1311 records, whole"), "{text}");
    let noted = text.split("note ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let (code, text) = verify(&["--url", &url, "--token", &token, "--key", &key, "--after", &noted]);
    assert_eq!(code, Some(0), "{text}");
    // An attestation service has it elsewhere.
    let (code, text) = verify(&["--url", &attestation, "--token", &token, "--key", &key]);
    assert!(code == Some(2) && text.contains("401"), "{text}");
    let service =
        ["--service", "attestation-service", "--url", &attestation, "--token", &token, "--key", &key];
    let (code, text) = verify(&[&service[..], &["--after", &noted]].concat());
    assert!(code == Some(0) && text.contains("records, whole"), "{text}");
    let (code, text) = verify(&["--service", "attestation-service"]);
    assert!(code == Some(2) && text.contains("--url"), "{text}");
    // After some were archived, which the text says.
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    let archive =
        kata_cc_store::audit::Archive::verify(export.as_slice(), &store.audit().public_key()).unwrap();
    store.audit().prune(&archive, Some(700), "operator").await.unwrap();
    let (code, text) = verify(&["--url", &url, "--token", &token, "--key", &key]);
    assert!(code == Some(0) && text.contains("records up to 700 were archived"), "{text}");
    // Who may not, and nobody there: not a log that was changed.
    for (url, token, words) in [(&*url, &wrong, "401"), ("http://127.0.0.1:9", &token, "127.0.0.1:9")] {
        let (code, text) = verify(&["--url", url, "--token", token]);
        assert!(code == Some(2) && text.contains(words), "{words}: {text}");
    }
    let (code, text) = verify(&["--url", &url, "--file", "x"]);
    assert!(code == Some(2) && text.contains("cannot be used with"), "{text}");
    // A change that is found on the second page.
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    sqlx::query("UPDATE audit SET record = replace(record, 'release', 'refusal') WHERE seq = 1250")
        .execute(&pool)
        .await
        .unwrap();
    let (code, text) = verify(&["--url", &url, "--token", &token, "--key", &key]);
    assert!(code == Some(1) && text.contains("first bad record 1250"), "{text}");
}
