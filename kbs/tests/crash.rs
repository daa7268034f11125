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

use common::client::Client;
use common::load::{Chance, Written, configure, logged, open_to_guests, platform, policy, value};
use common::records::Records;
use common::{Guest, Server};
use kata_cc_kbs_client::{AdminClient, KbsClient, KbsConfig, RetryPolicy};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_store::audit::{PublicKey, session_label, verify_export};
use kata_cc_store::{Store, StoreKey, VersionInfo};
use tokio::task::JoinHandle;

const ROUNDS: u64 = 200;
/// Most steps that are acknowledged before the end, and the longest time after them in microseconds: the end comes anywhere in the
/// step that is under way then.
const STEPS: u64 = 24;
const LONGEST: u64 = 5_000;
const WRITERS: [&str; 2] = ["default/writer/a", "default/writer/b"];

type Shared<T> = Arc<Mutex<T>>;

fn path(text: &str) -> ResourcePath {
    format!("kbs:///{text}").parse().unwrap()
}

fn guest(server: &Server, guest: &Guest) -> KbsClient {
    // Who is killed is not asked again: the next round has another.
    let retry = RetryPolicy { deadline: Duration::ZERO, ..RetryPolicy::default() };
    let config =
        KbsConfig { endpoint: server.endpoint.clone(), allow_http: true, retry, ..KbsConfig::default() };
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

/// Every writer's last acknowledged value is there, or the one that was under way; so for the policy.
async fn nothing_is_lost(client: &KbsClient, admin: &AdminClient, load: &Load, when: &str) {
    for (name, state) in WRITERS.iter().zip(&load.written) {
        let (last, sent) = state.lock().map(|state| (state.last(), state.sent)).unwrap();
        let seen = client.get_resource(&path(name)).await.unwrap_or_else(|e| panic!("{when}: {e}"));
        let found = (last..=sent).find(|n| value(name, *n) == *seen);
        let found = found
            .unwrap_or_else(|| panic!("{when}: {name} is not one of {last}..={sent} ({} bytes)", seen.len()));
        // From now on this one is what must be there.
        state.lock().unwrap().found(found);
    }
    let (last, sent) = load.policies.lock().map(|state| (state.last(), state.sent)).unwrap();
    let seen = admin.resource_policy().await.unwrap().policy;
    let found = (last..=sent).find(|n| policy(*n) == seen);
    let found = found.unwrap_or_else(|| panic!("{when}: the policy is not one of {last}..={sent}: {seen}"));
    load.policies.lock().unwrap().found(found);
}

/// What the load knows it did. Its reader has attested before, or it would seldom get to its first release.
#[derive(Default, Clone)]
struct Load {
    written: [Shared<Written>; 2],
    policies: Shared<Written>,
    /// Acknowledged releases by resource.
    released: Shared<HashMap<String, u64>>,
    /// Sessions whose evidence was sent, and whether it was accepted.
    attested: Shared<HashMap<String, bool>>,
}

impl Load {
    /// Starts all of it on a server. Each task ends when its server does; `steps` counts what was acknowledged.
    fn start(
        &self,
        server: &Server,
        dir: &Path,
        (guests, reader): (&Guests, KbsClient),
        round: u64,
        steps: &Arc<AtomicU64>,
    ) -> Vec<JoinHandle<()>> {
        let mut tasks = Vec::new();
        let counted = || {
            let steps = Arc::clone(steps);
            move || {
                steps.fetch_add(1, Ordering::Relaxed);
            }
        };
        for (name, state) in WRITERS.into_iter().zip(&self.written) {
            let (admin, state, count) = (server.admin(dir), Arc::clone(state), counted());
            tasks.push(tokio::spawn(async move {
                loop {
                    let n = state.lock().unwrap().next();
                    if admin.put_resource(&path(name), &value(name, n)).await.is_err() {
                        return;
                    }
                    state.lock().unwrap().found(n);
                    count();
                }
            }));
        }
        let (admin, state, count) = (server.admin(dir), Arc::clone(&self.policies), counted());
        tasks.push(tokio::spawn(async move {
            loop {
                let n = state.lock().unwrap().next();
                if admin.set_resource_policy(&policy(n)).await.is_err() {
                    return;
                }
                state.lock().unwrap().found(n);
                count();
            }
        }));
        let (client, released) = (reader, Arc::clone(&self.released));
        let (name, count) = (format!("default/round/{round}"), counted());
        tasks.push(tokio::spawn(async move {
            while let Ok(seen) = client.get_resource(&path(&name)).await {
                assert_eq!(*seen, value(&name, 1));
                *released.lock().unwrap().entry(name.clone()).or_default() += 1;
                count();
            }
        }));
        let (client, attested, count) = (guests.client.clone(), Arc::clone(&self.attested), counted());
        let base = server.endpoint.url.clone();
        tasks.push(tokio::spawn(async move {
            while let Ok((challenge, cookie)) = client.auth(&base).await {
                let evidence = client.evidence(challenge).await;
                attested.lock().unwrap().insert(cookie.clone(), false);
                let Ok((status, text)) = client.attest(&base, &cookie, &evidence).await else { return };
                assert_eq!(status, 200, "{text}");
                attested.lock().unwrap().insert(cookie, true);
                count();
            }
        }));
        tasks
    }
}

/// Guests of the load: one that keeps its session and reads, one that attests again and again.
struct Guests {
    evidence: Guest,
    client: Client,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut chance = Chance::new();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kbs");
    let platform = platform(folder.path());
    configure(&dir, &platform, "[storage_backend]\nstorage_type = \"Sqlite\"\n");
    let evidence = Guest::new(&platform, 1);
    let load = Load::default();

    let server = Server::start(&dir);
    let guests = Guests { client: Client::new(&evidence), evidence };
    let admin = server.admin(&dir);
    admin.set_resource_policy(&policy(0)).await.unwrap();
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
        let client = guest(&server, &guests.evidence);
        nothing_is_lost(&client, &server.admin(&dir), &load, &format!("round {round}")).await;
        let steps = Arc::new(AtomicU64::new(0));
        let tasks = load.start(&server, &dir, (&guests, client), round, &steps);
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
        // To their ends, which are near: what is acknowledged after the kill was sent before it, and counts.
        for task in tasks {
            let ended = tokio::time::timeout(Duration::from_secs(60), task).await;
            ended.unwrap_or_else(|_| panic!("round {round}: a client hangs")).unwrap();
        }
    }
    // With the write-ahead log that the last kill left.
    let secrets = [value(WRITERS[0], 0), value("default/round/7", 1)];
    for secret in &secrets {
        database::assert_not_below(&dir, &secret[..32]);
        assert!(!database::holds(logs.as_bytes(), &secret[..32]));
    }

    let server = Server::start(&dir);
    nothing_is_lost(&guest(&server, &guests.evidence), &server.admin(&dir), &load, "at the end").await;
    let (code, _) = server.stop();
    assert_eq!(code, Some(0));
    let (code, text) = kbs(&dir, &["audit", "verify"]);
    assert_eq!(code, Some(0), "{text}");
    on_record(&dir, &load).await;
}

/// The exported log is whole, and holds everything that was acknowledged, and nothing that was not asked for.
async fn on_record(dir: &Path, load: &Load) {
    let (code, key) = kbs(dir, &["audit", "key"]);
    assert_eq!(code, Some(0), "{key}");
    let (code, export) = kbs(dir, &["audit", "export"]);
    assert_eq!(code, Some(0));
    let key = PublicKey::parse(&key).unwrap();
    let whole = verify_export(export.as_bytes(), Some(&key), None).unwrap();
    let records = Records::of(&export);

    let mut releases = 0;
    for (name, told) in load.released.lock().unwrap().iter() {
        let recorded = records.releases.get(name).copied().unwrap_or(0);
        releases += told;
        // One may have been under way.
        assert!((*told..=told + 1).contains(&recorded), "{name}: {told} released, {recorded} on record");
    }
    let key = StoreKey::from_existing_file(&dir.join("store.key")).unwrap();
    let store = Store::open(&dir.join("kbs.db"), key).await.unwrap();
    let mut writes = 0;
    for (name, state) in WRITERS.iter().zip(&load.written) {
        let Written { done, sent } = state.lock().unwrap().clone();
        // The first was written before the load.
        let recorded = records.versions_without_gaps(name) - 1;
        let acknowledged = done.len() as u64;
        assert!(
            acknowledged <= recorded && recorded <= sent,
            "{name}: {acknowledged} acknowledged, {recorded} on record, {sent} sent"
        );
        // What was under way at a kill was looked for after it: there is none of which it is not known.
        assert_eq!(recorded, acknowledged, "{name}: {sent} sent");
        without_gaps(&store.history("repository", name).await.unwrap(), recorded + 1, name);
        writes += recorded;
    }
    let Written { done, sent } = load.policies.lock().unwrap().clone();
    assert_eq!(
        records.policy_numbers(sent),
        done,
        "policies on record, and those that are known to have been set"
    );
    without_gaps(&store.history("kbs", "resource-policy").await.unwrap(), done.len() as u64 + 1, "policy");
    store.close().await;

    let mut handshakes = 0;
    for (session, accepted) in load.attested.lock().unwrap().iter() {
        let recorded = records.attested.get(&session_label(session)).copied().unwrap_or(0);
        let least = u64::from(*accepted);
        assert!(
            (least..=1).contains(&recorded),
            "session {session}: accepted {accepted}, {recorded} on record"
        );
        handshakes += least;
    }
    println!(
        "{ROUNDS} kills, {writes} writes, {} policies, {releases} releases, {handshakes} handshakes, {} audit records",
        done.len(),
        whole.records
    );
    let least = [writes, done.len() as u64, releases, handshakes].into_iter().min().unwrap();
    assert!(least > ROUNDS / 4, "there was hardly any load of some kind");
}

/// A history, the latest first, ends at `latest` and goes down one by one as far as it is kept.
fn without_gaps(history: &[VersionInfo], latest: u64, name: &str) {
    let seen: Vec<u64> = history.iter().map(|version| version.version).collect();
    let expected: Vec<u64> = (1..=latest).rev().take(seen.len()).collect();
    assert!(!seen.is_empty() && seen == expected, "{name}: versions {seen:?}, the latest should be {latest}");
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
