//! Three key brokers on one PostgreSQL behind a balancer that sends every connection to another of them, while one after the other is
//! killed: no acknowledged write is lost, nobody is stuck, no nonce is good twice, the audit log is whole.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "../../attestation/store/tests/common/mod.rs"]
mod database;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::load::{configure, logged, open_to_guests, platform, value};
use common::{Guest, Server};
use database::Postgres;
use kata_cc_kbs_client::{
    AdminAuth, AdminClient, Endpoint, EvidenceProvider as _, KeyAlgorithm, TeeKey, jwe,
};
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::{
    Attestation, Challenge, CompositeEvidence, JweResponse, PROTOCOL_VERSION, Request, ResourcePath,
    RuntimeData, SESSION_COOKIE,
};
use kata_cc_store::audit::verify_export;
use kata_cc_store::{Store, StoreKey};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

const REPLICAS: usize = 3;
/// Attempts of one step until the client counts as stuck.
const ATTEMPTS: u32 = 40;

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

/// A client that makes a new connection for each call, so that each goes to another replica.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    evidence: Guest,
    key: Arc<TeeKey>,
}

/// An attested session.
type Cookie = String;

impl Client {
    fn new(evidence: &Guest) -> Self {
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap();
        let key = Arc::new(TeeKey::generate(KeyAlgorithm::default()).unwrap());
        Self { http, evidence: evidence.clone(), key }
    }

    /// Asks for a challenge; returns it with the session's cookie. The error says what happened.
    async fn auth(&self, base: &str) -> Result<(Challenge, Cookie), String> {
        let tee = self.evidence.tee;
        let request = Request { version: PROTOCOL_VERSION.to_owned(), tee, extra_params: json!({}) };
        let sent = self.http.post(format!("{base}/kbs/v0/auth")).json(&request).send().await;
        let answer = sent.map_err(|e| e.to_string())?;
        if answer.status() != 200 {
            return Err(format!("auth: {}", answer.status()));
        }
        let cookie = answer.headers().get("set-cookie").unwrap().to_str().unwrap().to_owned();
        let cookie = cookie.strip_prefix(&format!("{SESSION_COOKIE}=")).unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        Ok((answer.json().await.map_err(|e| e.to_string())?, cookie))
    }

    /// Evidence for a challenge.
    async fn evidence(&self, challenge: Challenge) -> Attestation {
        let hash = challenge.hash_algorithm().unwrap_or(HashAlgorithm::Sha384);
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: self.key.public().clone() };
        let report_data = hash.digest(&runtime_data.canonical_primary(""));
        let primary_evidence = self.evidence.evidence(&report_data).await.unwrap();
        let additional_evidence = String::new();
        let tee_evidence = CompositeEvidence { primary_evidence, additional_evidence };
        Attestation { init_data: None, runtime_data, tee_evidence }
    }

    /// Sends evidence; returns status and body.
    async fn attest(
        &self,
        base: &str,
        cookie: &str,
        evidence: &Attestation,
    ) -> Result<(u16, String), String> {
        let request = self.http.post(format!("{base}/kbs/v0/attest")).json(evidence);
        let answer = request.header("cookie", format!("{SESSION_COOKIE}={cookie}")).send().await;
        let answer = answer.map_err(|e| e.to_string())?;
        Ok((answer.status().as_u16(), answer.text().await.map_err(|e| e.to_string())?))
    }

    /// Fetches a resource.
    async fn get(&self, base: &str, cookie: &str, name: &str) -> Result<Vec<u8>, String> {
        let request = self.http.get(format!("{base}/kbs/v0/resource/{name}"));
        let answer = request.header("cookie", format!("{SESSION_COOKIE}={cookie}")).send().await;
        let answer = answer.map_err(|e| e.to_string())?;
        let (status, text) = (answer.status().as_u16(), answer.text().await.map_err(|e| e.to_string())?);
        if status != 200 {
            return Err(format!("get: {status} {text}"));
        }
        let response: JweResponse = serde_json::from_str(&text).unwrap();
        Ok(jwe::decrypt(&self.key, &response).unwrap().to_vec())
    }

    /// A whole handshake, tried again from the beginning when anything fails.
    async fn handshake(&self, base: &str) -> Cookie {
        let mut errors = Vec::new();
        for _ in 0..ATTEMPTS {
            let tried = async {
                let (challenge, cookie) = self.auth(base).await?;
                let evidence = self.evidence(challenge).await;
                match self.attest(base, &cookie, &evidence).await? {
                    (200, _) => Ok(cookie),
                    (status, text) => Err(format!("attest: {status} {text}")),
                }
            };
            match tried.await {
                Ok(cookie) => return cookie,
                Err(error) => errors.push(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("a client is stuck in the handshake: {errors:?}");
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
}

async fn read_for_ever(client: Client, base: String, name: String, done: Arc<Done>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let cookie = client.handshake(&base).await;
        done.handshakes.fetch_add(1, Ordering::Relaxed);
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

/// Writes number after number; returns the last acknowledged one, and the one that was sent last.
async fn write_for_ever(
    admin: impl Fn() -> AdminClient,
    name: String,
    done: Arc<Done>,
    stop: Arc<AtomicBool>,
) -> (u64, u64) {
    let path: ResourcePath = format!("kbs:///{name}").parse().unwrap();
    let (mut acknowledged, mut n) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let mut errors = Vec::new();
        // A new client, so a new connection, for each.
        while let Err(error) = admin().put_resource(&path, &value(&name, n)).await {
            errors.push(error.to_string());
            done.retried.fetch_add(1, Ordering::Relaxed);
            assert!((errors.len() as u32) < ATTEMPTS, "a writer is stuck: {errors:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        acknowledged = n;
        done.writes.fetch_add(1, Ordering::Relaxed);
    }
    (acknowledged, n)
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
    for n in 0..2 {
        let (base, key) = (base.clone(), admin_key.clone());
        let admin = move || {
            let endpoint = Endpoint { url: base.clone(), ..Endpoint::default() };
            AdminClient::new(&endpoint, AdminAuth::from_key_pem(&key, "admin").unwrap()).unwrap()
        };
        let name = format!("default/write/{n}");
        writers.push(tokio::spawn(write_for_ever(admin, name, Arc::clone(&done), Arc::clone(&stop))));
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
    for (n, writer) in writers.into_iter().enumerate() {
        let (acknowledged, sent) = writer.await.unwrap();
        assert_eq!(acknowledged, sent);
        let name = format!("default/write/{n}");
        let cookie = client.handshake(&base).await;
        for replica in 0..REPLICAS {
            let seen = client.get(&direct(&servers, replica), &cookie, &name).await.unwrap();
            assert_eq!(seen, value(&name, acknowledged), "{name} at replica {replica}");
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
    check_records(&dir, &postgres, &done).await;
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

/// The audit log in the database is whole, and holds every release that was acknowledged.
async fn check_records(dir: &std::path::Path, postgres: &Postgres, done: &Done) {
    let key = StoreKey::from_existing_file(&dir.join("store.key")).unwrap();
    let store = Store::postgres(&postgres.options(), key).await.unwrap();
    store.verify_values().await.unwrap();
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    verify_export(export.as_slice(), Some(&store.audit().public_key()), None).unwrap();
    let mut recorded: HashMap<String, u64> = HashMap::new();
    for line in String::from_utf8(export).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["record"]["kind"] == "release" {
            *recorded.entry(line["record"]["resource"]["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    for (name, told) in done.released.lock().unwrap().iter() {
        let recorded = recorded.get(name).copied().unwrap_or(0);
        assert!(recorded >= *told, "{name}: {told} released, {recorded} on record");
    }
    store.close().await;
}
