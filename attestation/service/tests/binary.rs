//! The real `attestation-service` on loopback: start, answers, end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kata_cc_attestation_service::jws::SigningKey;
use serde_json::{Value, json};

fn command(work: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attestation-service"));
    command.args(["--socket", "127.0.0.1:0", "--work-dir"]).arg(work).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A running service; ended when dropped.
struct Service {
    child: Child,
    address: String,
    log: BufReader<std::process::ChildStderr>,
}

impl Service {
    #[allow(
        clippy::zombie_processes,
        reason = "without an address the test fails; with one it is waited for"
    )]
    fn start_with(work: &Path, arguments: &[&str]) -> Self {
        let mut child = command(work).args(arguments).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it did not start: {seen}");
            if let Some((_, rest)) = line.split_once("address=") {
                let address = rest.split_whitespace().next().unwrap().to_owned();
                return Self { child, address, log };
            }
            seen += &line;
        }
    }

    fn start(work: &Path) -> Self {
        Self::start_with(work, &[])
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// One request on a connection of its own.
    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_as("", method, path, body)
    }

    /// The same with more header lines.
    fn ask_as(&self, headers: &str, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = self.connect();
        send(&mut stream, headers, method, path, body);
        receive(&mut stream)
    }

    /// Asks it to end, as systemd does.
    fn terminate(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Exit code and the rest of the log.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails when it has ended already, which is the usual case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    kind: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn send(stream: &mut TcpStream, headers: &str, method: &str, path: &str, body: &str) {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // A body that is too large is refused before it has been read.
    let _ = stream.write_all(body.as_bytes());
}

fn receive(stream: &mut TcpStream) -> Answer {
    let mut lines = BufReader::new(stream);
    let mut read = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let status = read().split(' ').nth(1).expect("a status line").parse().unwrap();
    let (mut kind, mut length) = (String::new(), 0);
    loop {
        let line = read();
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-type" => value.clone_into(&mut kind),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body).unwrap();
    Answer { status, kind, body }
}

#[test]
fn it_answers_and_refuses_with_problems() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("work"));
    assert_eq!(service.ask("GET", "/healthz", "").status, 200);
    assert_eq!(service.ask("GET", "/.well-known/jwks.json", "").json()["keys"].as_array().unwrap().len(), 1);
    assert_eq!(service.ask("GET", "/policy", "").json()[0]["policy-id"], "default_cpu");
    let request = |evidence: &str| {
        json!({"verification_requests": [{"tee": "snp", "evidence": evidence}], "policy_ids": []}).to_string()
    };
    let large = "x".repeat(kata_cc_kbs_protocol::MAX_BODY + 1);
    for (method, path, body, status, words) in [
        ("POST", "/attestation", "", 400, "JSON"),
        ("POST", "/attestation", "{}", 400, "verification_requests"),
        (
            "POST",
            "/attestation",
            r#"{"verification_requests": []}"#,
            400,
            "at least one verification request",
        ),
        ("POST", "/attestation", &request("!"), 400, "base64url"),
        ("POST", "/attestation", &request("e30"), 422, "evidence"),
        ("POST", "/attestation", &large, 413, "bytes"),
        ("GET", "/attestation", "", 405, "method"),
        ("POST", "/policy", r#"{"policy_id": "x_cpu", "policy": "eA"}"#, 401, "--admin-key"),
        ("GET", "/policy/none", "", 404, "none"),
        ("GET", "/policy/%ff", "", 400, "not understood"),
        ("POST", "/reference-value", "[]", 401, "--admin-key"),
        ("GET", "/nothing", "", 404, "path"),
    ] {
        let answer = service.ask(method, path, body);
        let what = format!("{method} {path}: {answer:?}");
        assert_eq!((answer.status, answer.kind.as_str()), (status, "application/problem+json"), "{what}");
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{what}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{words:?} is missing: {what}");
        assert!(problem["type"].as_str().unwrap().starts_with("urn:kata-cc:attestation-service:"), "{what}");
    }
}

/// A request of Trustee's own tests, to the byte: this service has no verifier for enclaves, and says so.
#[test]
fn trustees_request_with_evidence_of_an_enclave_is_refused_by_name() {
    let Some(bytes) = kata_cc_test_vectors::read("coco/evidence/as-rest-request-sgx.json") else { return };
    let body = String::from_utf8(bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("work"));
    let answer = service.ask_as("Content-Type: application/json\r\n", "POST", "/attestation", &body);
    assert_eq!((answer.status, answer.kind.as_str()), (422, "application/problem+json"), "{answer:?}");
    let problem = answer.json();
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("no verifier for evidence of 'sgx'"), "{problem}");
}

#[test]
fn at_its_end_running_requests_finish_and_idle_connections_do_not_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("work"));
    let mut idle = service.connect();
    send(&mut idle, "", "GET", "/healthz", "");
    assert_eq!(receive(&mut idle).status, 200);
    let mut running = service.connect();
    running.write_all(b"POST /attestation HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{").unwrap();
    // Until its head has been read, a connection is not running a request.
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    service.terminate();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection is closed");
    running.write_all(b"}").unwrap();
    assert_eq!(receive(&mut running).status, 400);
    let (code, log) = service.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("draining") && log.contains("stopped") && !log.contains("cut off"), "{log}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn what_is_stored_is_there_after_a_new_start() {
    let dir = tempfile::tempdir().unwrap();
    let keys = |service: &Service| service.ask("GET", "/.well-known/jwks.json", "").json();
    let pem = SigningKey::generate_pem("EdDSA").unwrap();
    let admin = SigningKey::from_pem(pem.as_bytes()).unwrap();
    let public = dir.path().join("admin.pem");
    std::fs::write(&public, admin.public_pem().unwrap()).unwrap();
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    let token = admin.sign(&json!({}), &json!({"role": "admin", "exp": expires})).unwrap();
    let first = Service::start_with(dir.path(), &["--admin-key", public.to_str().unwrap()]);
    let key = keys(&first);
    // base64url of `package policy`
    let policy = r#"{"policy_id": "mine_cpu", "policy": "cGFja2FnZSBwb2xpY3k"}"#;
    assert_eq!(first.ask("POST", "/policy", policy).status, 401);
    let set = first.ask_as(&format!("Authorization: Bearer {token}\r\n"), "POST", "/policy", policy);
    assert_eq!(set.status, 200, "{set:?}");
    first.terminate();
    assert_eq!(first.ended().0, Some(0));
    let second = Service::start(dir.path());
    assert_eq!(keys(&second), key, "tokens stay verifiable");
    assert_eq!(second.ask("GET", "/policy/mine_cpu", "").json()["policy"], "package policy");
}

/// What an operator does: new values of the token key by signal, a look whether it would start.
#[test]
fn at_sighup_a_new_key_signs_and_the_old_one_stays_published() {
    let dir = tempfile::tempdir().unwrap();
    let kids = |service: &Service| -> Vec<Value> {
        let jwks = service.ask("GET", "/.well-known/jwks.json", "").json();
        jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect()
    };
    let checked = command(dir.path()).arg("--check").output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let service = Service::start(dir.path());
    let old = kids(&service);
    let file = dir.path().join("token.key");
    let pem = SigningKey::generate_pem("ES384").unwrap();
    let new = SigningKey::from_pem(pem.as_bytes()).unwrap().jwk()["kid"].clone();
    std::fs::write(&file, pem.as_bytes()).unwrap();
    assert!(Command::new("kill").args(["-HUP", &service.child.id().to_string()]).status().unwrap().success());
    let end = Instant::now() + Duration::from_secs(60);
    while kids(&service)[0] != new {
        assert!(Instant::now() < end, "it was not read again");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(kids(&service), [new, old[0].clone()]);
    assert_eq!(service.ask("GET", "/readyz", "").status, 200);
    service.terminate();
    assert_eq!(service.ended().0, Some(0));
}

fn refused(arguments: &[&str], work: &Path) -> Output {
    command(work).args(arguments).output().unwrap()
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad = write("bad.pem", "no certificate");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let work = dir.path().join("work");
    let nothing = "/nonexistent/x";
    for (arguments, code, words) in [
        (&["--simulated-trust-anchor", nothing][..], 1, &["trust anchor /nonexistent/x", "No such file"][..]),
        (&["--simulated-trust-anchor", &bad], 1, &["trust anchor", "bad.pem"]),
        (&["-t", nothing, "-k", nothing], 1, &["certificate /nonexistent/x"]),
        (&["-t", &bad, "-k", &bad], 1, &["bad.pem"]),
        (&["--socket", &taken], 1, &["listening on 127.0.0.1:", "in use"]),
        (&["--work-dir", &bad], 1, &["making ", "bad.pem"]),
        (&["-t", &bad], 2, &["--https-prikey"]),
        (&["--socket", "nowhere"], 2, &["--socket"]),
        (&["--token-algorithm", "RS256"], 2, &["RS256", "ES384", "EdDSA"]),
        (&["--config-file", nothing], 1, &["configuration file /nonexistent/x"]),
        (&["--config-file", &bad], 1, &["configuration file", "bad.pem"]),
        (&["--token-minutes", "0"], 2, &["1..=1440"]),
    ] {
        // clap takes an option once.
        let mut command = Command::new(env!("CARGO_BIN_EXE_attestation-service"));
        for (name, value) in [("--socket", "127.0.0.1:0"), ("--work-dir", work.to_str().unwrap())] {
            if !arguments.contains(&name) {
                command.args([name, value]);
            }
        }
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(words.iter().all(|word| told.contains(word)), "{words:?} of {arguments:?}: {told}");
        assert!(!told.contains("panicked"), "{told}");
    }
    // Keys that others could read, or that are damaged, are not used.
    let ran = Service::start(&work);
    ran.terminate();
    assert_eq!(ran.ended().0, Some(0));
    std::fs::write(work.join("token.key"), "damaged").unwrap();
    let output = refused(&[], &work);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("token.key"), "{told}");
    std::fs::write(work.join("store.key"), "damaged").unwrap();
    let output = refused(&[], &work);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("store.key"), "{told}");
}

/// Two processes on one store: what one gave is answered at the other, once, and then nowhere.
#[test]
fn a_challenge_is_good_at_any_replica_and_once() {
    use kata_cc_kbs_protocol::base64_standard;
    use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("as.toml");
    std::fs::write(&config, "allow_sample = true\n").unwrap();
    let work = folder.path().join("work");
    let start = || Service::start_with(&work, &["-c", config.to_str().unwrap()]);
    let (one, other) = (start(), start());
    let challenge = |at: &Service| {
        let answer = at.ask("POST", "/api/v1/challenge", "{}");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["challenge"].as_str().unwrap().to_owned()
    };
    let evaluate = |challenge: &str| {
        let bound = json!({"nonce": challenge});
        let digest = HashAlgorithm::Sha384.digest(&canonical(&bound));
        let evidence = json!({"svn": "1", "report_data": base64_standard(&digest)});
        let one = json!({"tee": "sample", "evidence": evidence, "runtime_data": {"structured": bound}});
        json!({"verification_requests": [one], "challenge": challenge}).to_string()
    };
    let reason = |at: &Service, request: &str| {
        let answer = at.ask("POST", "/api/v1/evaluate", request);
        (answer.status, answer.json()["reason"].as_str().unwrap_or_default().to_owned())
    };
    for (gave, took) in [(&one, &other), (&other, &one), (&one, &one)] {
        let request = evaluate(&challenge(gave));
        assert_eq!(reason(took, &request), (200, String::new()));
        for replay in [&one, &other] {
            assert_eq!(reason(replay, &request), (422, "challenge-answered".to_owned()));
        }
    }
    // What another service gave is nobody's here, and one that starts later knows what was answered.
    let stranger = Service::start_with(&folder.path().join("elsewhere"), &[]);
    let request = evaluate(&challenge(&stranger));
    assert_eq!(reason(&one, &request), (422, "challenge-unknown".to_owned()));
    let request = evaluate(&challenge(&one));
    assert_eq!(reason(&other, &request), (200, String::new()));
    assert_eq!(reason(&start(), &request), (422, "challenge-answered".to_owned()));
}

/// Takes what is posted to it, and answers 200 to all.
fn collector() -> (String, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let received = std::sync::Arc::<std::sync::Mutex<Vec<u8>>>::default();
    let sink = std::sync::Arc::clone(&received);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut bytes = [0; 65_536];
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                sink.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (address, received)
}

#[test]
fn traces_go_out_with_the_callers_parent_and_memory_is_kept() {
    let work = tempfile::tempdir().unwrap();
    let (collector, received) = collector();
    let file = work.path().join("as.toml");
    std::fs::write(&file, format!("[telemetry]\notlp_endpoint = \"http://{collector}/v1/traces\"\n"))
        .unwrap();
    let service = Service::start_with(work.path(), &["-c", file.to_str().unwrap()]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", service.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    let headers = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
                   authorization: Bearer hidden.secret.token\r\n";
    assert_eq!(service.ask_as(headers, "GET", "/api/v1/policies/hidden-id?hidden=1", "").status, 404);
    service.terminate();
    assert_eq!(service.ended().0, Some(0));
    let bytes = received.lock().unwrap().clone();
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let trace = hex::decode("4bf92f3577b34da6a3ce929d0e0e4736").unwrap();
    assert!(has(&trace), "the caller's trace id is not in {} bytes", bytes.len());
    assert!(has(b"attestation-service") && has(b"GET /api/v1/policies/{id}"), "{}", bytes.len());
    assert!(!has(b"hidden"), "what a caller sent is in the traces");
}
