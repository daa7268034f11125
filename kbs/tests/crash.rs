//! A key broker that is killed at 200 random points while it writes and releases: what it acknowledged is there afterwards, whole, and
//! on record.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "../../attestation/store/tests/common/mod.rs"]
mod database;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::load::{Chance, configure, logged, open_to_guests, platform, value};
use common::{Guest, Server};
use kata_cc_kbs_client::{KbsClient, KbsConfig};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_store::audit::{PublicKey, verify_export};
use serde_json::Value;

const ROUNDS: u64 = 200;
/// Most steps that are acknowledged before the end, and the longest time after them in microseconds: the end comes anywhere in the
/// step that is under way then.
const STEPS: u64 = 8;
const LONGEST: u64 = 5_000;
const WRITERS: [&str; 2] = ["default/writer/a", "default/writer/b"];

/// What one writer knows: the last number that was acknowledged, and the last that was sent.
#[derive(Debug, Default, Clone, Copy)]
struct Written {
    acknowledged: u64,
    sent: u64,
}

type Shared<T> = Arc<Mutex<T>>;

fn path(text: &str) -> ResourcePath {
    format!("kbs:///{text}").parse().unwrap()
}

fn guest(server: &Server, guest: &Guest) -> KbsClient {
    let config = KbsConfig { endpoint: server.endpoint.clone(), allow_http: true, ..KbsConfig::default() };
    KbsClient::new(config, Arc::new(guest.clone())).unwrap()
}

/// Runs a command of `kbs` on the folder; returns its exit code and what it printed.
fn kbs(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kbs"))
        .arg("-c")
        .arg(dir.join("kbs.toml"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Every writer's last acknowledged value is there, or the one that was under way.
async fn nothing_is_lost(client: &KbsClient, written: &[Shared<Written>; 2], when: &str) {
    for (name, state) in WRITERS.iter().zip(written) {
        let Written { acknowledged, sent } = *state.lock().unwrap();
        let seen = client.get_resource(&path(name)).await.unwrap_or_else(|e| panic!("{when}: {e}"));
        let found = (acknowledged..=sent).find(|n| value(name, *n) == *seen);
        let found = found.unwrap_or_else(|| {
            panic!("{when}: {name} is not one of {acknowledged}..={sent} ({} bytes)", seen.len())
        });
        // From now on this one is what must be there.
        state.lock().unwrap().acknowledged = found;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let mut chance = Chance::new();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kbs");
    let platform = platform(folder.path());
    configure(&dir, &platform, "[storage_backend]\nstorage_type = \"Sqlite\"\n");
    let evidence = Guest::new(&platform, 1);
    let written: [Shared<Written>; 2] = Default::default();
    let released: Shared<HashMap<String, u64>> = Arc::default();

    let server = Server::start(&dir);
    let admin = server.admin(&dir);
    open_to_guests(&admin).await;
    for name in WRITERS {
        admin.put_resource(&path(name), &value(name, 0)).await.unwrap();
    }
    for round in 0..ROUNDS {
        let name = format!("default/round/{round}");
        admin.put_resource(&path(&name), &value(&name, 1)).await.unwrap();
    }
    drop(server);

    let mut logs = String::new();
    for round in 0..ROUNDS {
        let server = Server::start(&dir);
        let client = Arc::new(guest(&server, &evidence));
        nothing_is_lost(&client, &written, &format!("round {round}")).await;
        let mut tasks = Vec::new();
        let steps = Arc::new(AtomicU64::new(0));
        for (name, state) in WRITERS.into_iter().zip(&written) {
            let (admin, state, steps) = (server.admin(&dir), Arc::clone(state), Arc::clone(&steps));
            tasks.push(tokio::spawn(async move {
                loop {
                    let n = {
                        let mut state = state.lock().unwrap();
                        state.sent += 1;
                        state.sent
                    };
                    if admin.put_resource(&path(name), &value(name, n)).await.is_err() {
                        return;
                    }
                    state.lock().unwrap().acknowledged = n;
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let (released, name) = (Arc::clone(&released), format!("default/round/{round}"));
        let counted = Arc::clone(&steps);
        tasks.push(tokio::spawn(async move {
            while let Ok(seen) = client.get_resource(&path(&name)).await {
                assert_eq!(*seen, value(&name, 1));
                *released.lock().unwrap().entry(name.clone()).or_default() += 1;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let enough = chance.below(STEPS);
        for _ in 0..60_000 {
            if steps.load(Ordering::Relaxed) >= enough {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(steps.load(Ordering::Relaxed) >= enough, "round {round}: the load stands still");
        tokio::time::sleep(Duration::from_micros(chance.below(LONGEST))).await;
        logs += &logged(&server);
        drop(server);
        for task in tasks {
            task.abort();
            if let Err(error) = task.await {
                assert!(error.is_cancelled(), "round {round}: {error}");
            }
        }
    }
    // With the write-ahead log that the last kill left.
    let secrets = [value(WRITERS[0], 0), value("default/round/7", 1)];
    for secret in &secrets {
        database::assert_not_below(&dir, &secret[..32]);
        assert!(!database::holds(logs.as_bytes(), &secret[..32]));
    }

    let server = Server::start(&dir);
    nothing_is_lost(&guest(&server, &evidence), &written, "at the end").await;
    let (code, _) = server.stop();
    assert_eq!(code, Some(0));
    let (code, text) = kbs(&dir, &["audit", "verify"]);
    assert_eq!(code, Some(0), "{text}");
    on_record(&dir, &released.lock().unwrap(), &written);
}

/// The exported log is whole, and holds every release and every write that was acknowledged.
fn on_record(dir: &Path, released: &HashMap<String, u64>, written: &[Shared<Written>; 2]) {
    let (code, key) = kbs(dir, &["audit", "key"]);
    assert_eq!(code, Some(0), "{key}");
    let (code, export) = kbs(dir, &["audit", "export"]);
    assert_eq!(code, Some(0));
    let key = PublicKey::parse(&key).unwrap();
    let whole = verify_export(export.as_bytes(), Some(&key), None).unwrap();
    let (mut releases, mut writes) = (HashMap::new(), HashMap::new());
    for line in export.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let record = &line["record"];
        let name = record["resource"]["id"].as_str().unwrap_or_default().to_owned();
        match record["kind"].as_str() {
            Some("release") => *releases.entry(name).or_insert(0_u64) += 1,
            Some("admin") => *writes.entry(name).or_insert(0_u64) += 1,
            _ => {}
        }
    }
    let mut total = 0;
    for (name, told) in released {
        let recorded = releases.get(name).copied().unwrap_or(0);
        total += told;
        // One may have been under way.
        assert!((*told..=told + 1).contains(&recorded), "{name}: {told} released, {recorded} on record");
    }
    let mut puts = 0;
    for (name, state) in WRITERS.iter().zip(written) {
        let sent = state.lock().unwrap().sent;
        let recorded = writes.get(*name).copied().unwrap_or(0);
        // The first, and at most one a round that was sent and not acknowledged.
        assert!(
            recorded <= sent + 1 && recorded + ROUNDS > sent,
            "{name}: {sent} sent, {recorded} on record"
        );
        puts += recorded;
    }
    println!("{ROUNDS} kills, {puts} writes, {total} releases, {} audit records", whole.records);
    assert!(puts + total > ROUNDS && total > 0, "there was hardly any load");
}

#[tokio::test]
async fn backup_restore_and_rekey_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kbs");
    let platform = platform(folder.path());
    configure(&dir, &platform, "[storage_backend]\nstorage_type = \"Sqlite\"\n");
    let server = Server::start(&dir);
    let admin = server.admin(&dir);
    open_to_guests(&admin).await;
    let secret = value("backup", 3);
    let name = path("default/key/1");
    admin.put_resource(&name, &secret).await.unwrap();
    let evidence = Guest::new(&platform, 1);
    // While it runs.
    let file = folder.path().join("backup");
    let file = file.to_str().unwrap();
    let (code, text) = kbs(&dir, &["backup", file]);
    assert_eq!(code, Some(0), "{text}");
    assert!(!database::holds(&std::fs::read(file).unwrap(), &secret[..32]));
    let (code, text) = kbs(&dir, &["backup", file]);
    assert!(code == Some(1) && text.contains("not overwritten"), "{text}");
    admin.put_resource(&name, b"later").await.unwrap();
    let (code, _) = server.stop();
    assert_eq!(code, Some(0));

    let (code, text) = kbs(&dir, &["restore", file]);
    assert!(code == Some(1) && text.contains("not empty"), "{text}");
    let (code, text) = kbs(&dir, &["restore", "--force", file]);
    assert_eq!(code, Some(0), "{text}");
    let read = async || {
        let server = Server::start(&dir);
        let seen = guest(&server, &evidence).get_resource(&name).await.unwrap();
        assert_eq!(*seen, secret);
        server.stop();
    };
    read().await;

    let key = std::fs::read(dir.join("store.key")).unwrap();
    let (code, text) = kbs(&dir, &["rekey"]);
    assert_eq!(code, Some(0), "{text}");
    assert_ne!(std::fs::read(dir.join("store.key")).unwrap(), key);
    assert_eq!(std::fs::read(dir.join("store.key.old")).unwrap(), key);
    read().await;
    // The old key is of no use for the store, but it is for the backup.
    let (code, text) = kbs(&dir, &["restore", "--force", file]);
    assert!(code == Some(1) && text.contains("another key"), "{text}");
    // Interrupted after everything was sealed anew: the key at its place is the old one. Doing it again completes it.
    std::fs::rename(dir.join("store.key"), dir.join("store.key.new")).unwrap();
    std::fs::rename(dir.join("store.key.old"), dir.join("store.key")).unwrap();
    let (code, text) = kbs(&dir, &["audit", "verify"]);
    assert!(code == Some(2) && text.contains("another key"), "{text}");
    let (code, text) = kbs(&dir, &["rekey"]);
    assert!(code == Some(0) && text.contains("already"), "{text}");
    read().await;
    let (code, text) = kbs(&dir, &["audit", "verify"]);
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test]
async fn a_changed_log_is_found_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kbs");
    std::fs::create_dir_all(&dir).unwrap();
    let config = "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\n";
    std::fs::write(dir.join("kbs.toml"), config).unwrap();
    for _ in 0..3 {
        Server::start(&dir).stop();
    }
    let (code, text) = kbs(&dir, &["audit", "verify"]);
    assert_eq!(code, Some(0), "{text}");
    let (_, text) = text.split_once("noted elsewhere, ").unwrap();
    let noted = text.split_whitespace().next().unwrap().to_owned();
    let (code, text) = kbs(&dir, &["audit", "verify", "--after", &noted]);
    assert_eq!(code, Some(0), "{text}");
    let copy = std::fs::read(dir.join("kbs.db")).unwrap();
    Server::start(&dir).stop();
    let (_, text) = kbs(&dir, &["audit", "verify"]);
    let (_, text) = text.split_once("noted elsewhere, ").unwrap();
    let later = text.split_whitespace().next().unwrap().to_owned();
    // An old copy of the database fits itself: only who noted a later state finds it.
    std::fs::write(dir.join("kbs.db"), copy).unwrap();
    let (code, text) = kbs(&dir, &["audit", "verify", "--after", &later]);
    assert!(code == Some(1) && text.contains("known from elsewhere"), "{text}");
    let (code, text) = kbs(&dir, &["audit", "verify", "--after", "nonsense"]);
    assert!(code == Some(2), "{text}");
    std::fs::write(dir.join("kbs.db"), b"no database").unwrap();
    let (code, text) = kbs(&dir, &["audit", "verify"]);
    assert_eq!(code, Some(2), "{text}");
}
