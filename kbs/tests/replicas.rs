//! Three key brokers on one PostgreSQL behind a balancer that sends every connection to another of them, while one after the other is
//! killed: no acknowledged write is lost, nobody is stuck, no nonce is good twice, the audit log is whole.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "../../attestation/store/tests/common/mod.rs"]
mod database;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::client::{ATTEMPTS, Client, Cookie};
use common::load::{configure, logged, open_to_guests, platform, policy, value};
use common::records::Records;
use common::{Guest, Server};
use database::Postgres;
use kata_cc_kbs_client::{AdminAuth, AdminClient, Endpoint};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_store::audit::{session_label, verify_export};
use kata_cc_store::{Store, StoreKey};
use tokio::net::{TcpListener, TcpStream};

const REPLICAS: usize = 3;
/// Sends each connection to the next replica that takes it.
#[derive(Default)]
struct Balancer {
    replicas: Mutex<[Option<SocketAddr>; REPLICAS]>,
    next: AtomicUsize,
}

impl Balancer {
    fn set(&self, replica: usize, address: Option<SocketAddr>) {
        self.replicas.lock().unwrap()[replica] = address;
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((mut client, _)) = listener.accept().await else { return };
            let balancer = Arc::clone(&self);
            tokio::spawn(async move {
                for _ in 0..REPLICAS {
                    let turn = balancer.next.fetch_add(1, Ordering::Relaxed) % REPLICAS;
                    // Of a replica that was killed the balancer knows as little as any other.
                    let Some(address) = balancer.replicas.lock().unwrap()[turn] else { continue };
                    let Ok(mut server) = TcpStream::connect(address).await else { continue };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    return;
                }
            });
        }
    }
}

/// What the load did.
#[derive(Default)]
struct Done {
    handshakes: AtomicUsize,
    reads: AtomicUsize,
    writes: AtomicUsize,
    retried: AtomicUsize,
    /// Acknowledged releases by resource.
    released: Mutex<HashMap<String, u64>>,
    /// Sessions of which the evidence was accepted.
    attested: Mutex<Vec<Cookie>>,
}

/// What a writer did: the last number, of which each was acknowledged, and how often any was sent.
#[derive(Debug, Clone, Copy)]
struct Wrote {
    acknowledged: u64,
    sent: u64,
}

async fn read_for_ever(client: Client, base: String, name: String, done: Arc<Done>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let cookie = client.handshake(&base).await;
        done.handshakes.fetch_add(1, Ordering::Relaxed);
        done.attested.lock().unwrap().push(cookie.clone());
        for _ in 0..5 {
            let mut errors = Vec::new();
            loop {
                match client.get(&base, &cookie, &name).await {
                    Ok(seen) => {
                        assert_eq!(seen, value(&name, 1));
                        *done.released.lock().unwrap().entry(name.clone()).or_default() += 1;
                        break;
                    }
                    Err(error) => errors.push(error),
                }
                done.retried.fetch_add(1, Ordering::Relaxed);
                // The session outlives the replica that made it: there is no reason to attest again.
                assert!((errors.len() as u32) < ATTEMPTS, "a session is stuck: {errors:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done.reads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes number after number, each until it is acknowledged: values of a resource, or of `None` the policy.
async fn write_for_ever(
    admin: impl Fn() -> AdminClient,
    name: Option<String>,
    done: Arc<Done>,
    stop: Arc<AtomicBool>,
) -> Wrote {
    let mut wrote = Wrote { acknowledged: 0, sent: 0 };
    while !stop.load(Ordering::Relaxed) {
        let n = wrote.acknowledged + 1;
        let mut errors = Vec::new();
        loop {
            wrote.sent += 1;
            // A new client, so a new connection, for each.
            let answer = match &name {
                Some(name) => {
                    let path: ResourcePath = format!("kbs:///{name}").parse().unwrap();
                    admin().put_resource(&path, &value(name, n)).await
                }
                None => admin().set_resource_policy(&policy(n)).await,
            };
            let Err(error) = answer else { break };
            errors.push(error.to_string());
            done.retried.fetch_add(1, Ordering::Relaxed);
            assert!((errors.len() as u32) < ATTEMPTS, "a writer is stuck: {errors:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        wrote.acknowledged = n;
        done.writes.fetch_add(1, Ordering::Relaxed);
    }
    wrote
}

fn address(server: &Server) -> SocketAddr {
    server.endpoint.url.strip_prefix("http://").unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_may_die_under_load() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Some(postgres) = Postgres::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kbs");
    let platform = platform(folder.path());
    let storage = format!(
        "[storage_backend]\nstorage_type = \"Postgres\"\n\
         backends.postgres = {{ host = {:?}, db = \"kbs\", username = \"kbs\", connections = 6 }}\n",
        postgres.folder().to_str().unwrap()
    );
    configure(&dir, &platform, &storage);
    let evidence = Guest::new(&platform, 1);
    // The first makes the keys that all share.
    let mut servers = vec![Server::start(&dir)];
    servers.extend((1..REPLICAS).map(|_| Server::start(&dir)));
    let direct = |servers: &[Server], replica: usize| servers[replica].endpoint.url.clone();
    let admin_key = std::fs::read(dir.join("admin.key")).unwrap();
    open_to_guests(&servers[0].admin(&dir)).await;
    let names: Vec<String> = (0..3).map(|n| format!("default/read/{n}")).collect();
    for name in &names {
        let path: ResourcePath = format!("kbs:///{name}").parse().unwrap();
        servers[1].admin(&dir).put_resource(&path, &value(name, 1)).await.unwrap();
    }
    // Policies are read anew by the other replicas after a while at most.
    let client = Client::new(&evidence);
    for replica in 0..REPLICAS {
        let base = direct(&servers, replica);
        let cookie = client.handshake(&base).await;
        let mut errors = Vec::new();
        while let Err(error) = client.get(&base, &cookie, &names[0]).await {
            errors.push(error);
            assert!(errors.len() < 600, "replica {replica} does not take the policy over: {errors:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    // A session of one replica is one of all; evidence that one refused no other takes.
    let (challenge, cookie) = client.auth(&direct(&servers, 0)).await.unwrap();
    let attestation = client.evidence(challenge).await;
    let (status, text) = client.attest(&direct(&servers, 1), &cookie, &attestation).await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert_eq!(client.get(&direct(&servers, 2), &cookie, &names[0]).await.unwrap(), value(&names[0], 1));
    let (challenge, cookie) = client.auth(&direct(&servers, 0)).await.unwrap();
    let good = client.evidence(challenge).await;
    let mut bad = client.evidence(client.auth(&direct(&servers, 0)).await.unwrap().0).await;
    bad.runtime_data = good.runtime_data.clone();
    let (status, _) = client.attest(&direct(&servers, 1), &cookie, &bad).await.unwrap();
    assert_eq!(status, 401);
    for replica in 0..REPLICAS {
        let (status, text) = client.attest(&direct(&servers, replica), &cookie, &good).await.unwrap();
        assert!(status == 401 && text.contains("used before"), "replica {replica}: {status} {text}");
    }

    // The load, through the balancer, while one after the other is killed.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let balancer = Arc::new(Balancer::default());
    for (replica, server) in servers.iter().enumerate() {
        balancer.set(replica, Some(address(server)));
    }
    let balancing = tokio::spawn(Arc::clone(&balancer).serve(listener));
    let (done, stop) = (Arc::new(Done::default()), Arc::new(AtomicBool::new(false)));
    let mut readers = Vec::new();
    for name in &names {
        let client = Client::new(&evidence);
        let load = read_for_ever(client, base.clone(), name.clone(), Arc::clone(&done), Arc::clone(&stop));
        readers.push(tokio::spawn(load));
    }
    let mut writers = Vec::new();
    let written = [Some("default/write/0".to_owned()), Some("default/write/1".to_owned()), None];
    for name in &written {
        let (base, key) = (base.clone(), admin_key.clone());
        let admin = move || {
            let endpoint = Endpoint { url: base.clone(), ..Endpoint::default() };
            AdminClient::new(&endpoint, AdminAuth::from_key_pem(&key, "admin").unwrap()).unwrap()
        };
        writers.push(tokio::spawn(write_for_ever(admin, name.clone(), Arc::clone(&done), Arc::clone(&stop))));
    }
    let mut logs = String::new();
    for round in 0..6 {
        let replica = round % REPLICAS;
        // Not by the clock: until everything has moved on by some steps.
        progress(&done, 20).await;
        logs += &logged(&servers[replica]);
        drop(servers.remove(replica));
        progress(&done, 20).await;
        servers.insert(replica, Server::start(&dir));
        balancer.set(replica, Some(address(&servers[replica])));
    }
    progress(&done, 20).await;
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    let mut wrote = Vec::new();
    for (name, writer) in written.into_iter().zip(writers) {
        let told = writer.await.unwrap();
        wrote.push((name.clone(), told));
        let Some(name) = name else {
            for server in &servers {
                let seen = server.admin(&dir).resource_policy().await.unwrap().policy;
                assert_eq!(seen, policy(told.acknowledged), "at {}", server.endpoint.url);
            }
            continue;
        };
        let cookie = client.handshake(&base).await;
        for replica in 0..REPLICAS {
            let seen = client.get(&direct(&servers, replica), &cookie, &name).await.unwrap();
            assert_eq!(seen, value(&name, told.acknowledged), "{name} at replica {replica}");
        }
    }
    balancing.abort();
    for server in servers {
        let (code, log) = server.stop();
        assert_eq!(code, Some(0), "{log}");
        logs += &log;
    }
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (handshakes, reads) = (count(&done.handshakes), count(&done.reads));
    let (writes, retried) = (count(&done.writes), count(&done.retried));
    println!("6 kills, {handshakes} handshakes, {reads} reads, {writes} writes, {retried} tried again");
    check_records(&dir, &postgres, &done, &wrote).await;
    let secret = value(&names[0], 1);
    assert!(!database::holds(logs.as_bytes(), &secret[..32]));
    postgres.sql("kbs", "CHECKPOINT");
    database::assert_not_below(postgres.folder(), &secret[..32]);
}

/// Waits until the load did `steps` more reads and handshakes and some writes.
async fn progress(done: &Done, steps: usize) {
    let all = || done.reads.load(Ordering::Relaxed) + done.writes.load(Ordering::Relaxed);
    let target = all() + steps;
    for _ in 0..6000 {
        if all() >= target {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the load does not move on");
}

/// The audit log in the database is whole, and holds everything that was acknowledged, and nothing that was not asked for.
async fn check_records(dir: &Path, postgres: &Postgres, done: &Done, wrote: &[(Option<String>, Wrote)]) {
    let key = StoreKey::from_existing_file(&dir.join("store.key")).unwrap();
    let store = Store::postgres(&postgres.options(), key).await.unwrap();
    store.verify_values().await.unwrap();
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    verify_export(export.as_slice(), Some(&store.audit().public_key()), None).unwrap();
    let records = Records::of(std::str::from_utf8(&export).unwrap());
    for (name, told) in done.released.lock().unwrap().iter() {
        let recorded = records.releases.get(name).copied().unwrap_or(0);
        assert!(recorded >= *told, "{name}: {told} released, {recorded} on record");
    }
    for session in done.attested.lock().unwrap().iter() {
        let recorded = records.attested.get(&session_label(session)).copied();
        assert_eq!(recorded, Some(1), "session {session}: accepted, and on record so often");
    }
    for (name, Wrote { acknowledged, sent }) in wrote {
        // What was sent again after its connection was lost may have been done twice.
        let (recorded, before, kept) = match name {
            Some(name) => (records.versions_without_gaps(name), 0, ("repository", name.as_str())),
            None => {
                let numbers = records.policy_numbers(*sent);
                assert!(numbers.is_sorted(), "policies in another order than they were set: {numbers:?}");
                let each: BTreeSet<u64> = numbers.iter().copied().collect();
                assert_eq!(each, (1..=*acknowledged).collect(), "policies on record");
                (numbers.len() as u64, 1, ("kbs", "resource-policy"))
            }
        };
        assert!(
            *acknowledged <= recorded && recorded <= *sent,
            "{kept:?}: {acknowledged} acknowledged, {recorded} on record, {sent} sent"
        );
        let history = store.history(kept.0, kept.1).await.unwrap();
        let seen: Vec<u64> = history.iter().map(|version| version.version).collect();
        let expected: Vec<u64> = (1..=recorded + before).rev().take(seen.len()).collect();
        assert!(
            !seen.is_empty() && seen == expected,
            "{kept:?}: versions {seen:?}, the latest is {recorded} on record"
        );
    }
    store.close().await;
}
