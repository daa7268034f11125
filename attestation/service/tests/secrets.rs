//! What the service must never write down, with its log at its most talkative: neither log nor store has a key, a token that it gave, or
//! a credential of an administrator, in any form.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../store/tests/common/mod.rs"]
mod database;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use database::holds;
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_kbs_protocol::{base64_standard, from_base64_standard, from_base64_url};
use serde_json::{Value, json};

/// What is looked for: a name for messages, and the bytes.
type Secret = (String, Vec<u8>);

/// A running service whose log is a file; ended when dropped.
struct Service {
    child: Child,
    address: String,
}

impl Service {
    fn start(dir: &Path, log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attestation-service"));
        command.args(["--socket", "127.0.0.1:0", "-c"]).arg(dir.join("as.toml"));
        command.arg("--work-dir").arg(dir.join("work")).arg("--admin-key").arg(dir.join("admin.pem"));
        command.env("RUST_LOG", "trace").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        let file = std::fs::File::create(log).unwrap();
        let mut service = Self {
            child: command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap(),
            address: String::new(),
        };
        let end = Instant::now() + Duration::from_secs(60);
        while service.address.is_empty() {
            let text = std::fs::read_to_string(log).unwrap();
            assert!(Instant::now() < end, "it did not start: {text}");
            // A line that is not whole yet may break off within the number.
            let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some((_, rest)) = whole.split_once("address=") {
                rest.split_whitespace().next().unwrap().clone_into(&mut service.address);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        service
    }

    /// Status and body of one request.
    fn ask(&self, token: &str, line: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let bearer =
            if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let head = format!(
            "{line} HTTP/1.1\r\nHost: x\r\n{bearer}Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_else(|_| Value::from(body)))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The 32 bytes of a private key in PKCS#8 PEM: a P-256 scalar, or an Ed25519 seed.
fn private(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = from_base64_standard(&body).unwrap();
    let marks: [&[u8]; 2] = [&[2, 1, 1, 4, 32], &[4, 34, 4, 32]];
    let at =
        marks.iter().find_map(|mark| Some(der.windows(mark.len()).position(|w| w == *mark)? + mark.len()));
    let at = at.unwrap_or_else(|| panic!("no private key is found in {} bytes", der.len()));
    der[at..at + 32].to_vec()
}

/// The part of a token that nobody can make up.
fn signature(token: &str) -> Vec<u8> {
    from_base64_url(token.rsplit('.').next().unwrap()).unwrap()
}

/// A token over sample evidence.
fn evaluated(service: &Service) -> String {
    let bound = json!({"nonce": "bm9uY2U="});
    let digest = HashAlgorithm::Sha384.digest(&canonical(&bound));
    let evidence = json!({"svn": "1", "report_data": base64_standard(&digest)});
    let one = json!({"tee": "sample", "evidence": evidence, "runtime_data": {"structured": bound}});
    let request = json!({"verification_requests": [one]}).to_string();
    let (status, answer) = service.ask("", "POST /api/v1/evaluate", &request);
    assert_eq!(status, 200, "{answer}");
    answer["token"].as_str().unwrap().to_owned()
}

/// No file below the folder has any of them; `token.key` and `store.key` are there for that.
fn none_below(folder: &Path, secrets: &[Secret]) {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let known =
            ["token.key", "store.key"].iter().any(|name| path.file_name().is_some_and(|file| file == *name));
        if known || !path.is_file() {
            continue;
        }
        files += 1;
        let bytes = std::fs::read(&path).unwrap();
        for (name, secret) in secrets {
            assert!(!holds(&bytes, secret), "{} holds: {name}", path.display());
        }
    }
    assert!(files > 0, "there is no store");
}

#[test]
fn neither_log_nor_store_has_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("as.toml"), "allow_sample = true\n").unwrap();
    let pem = SigningKey::generate_pem("EdDSA").unwrap();
    let admin = SigningKey::from_pem(pem.as_bytes()).unwrap();
    std::fs::write(dir.join("admin.pem"), admin.public_pem().unwrap()).unwrap();
    let (log, work) = (dir.join("log"), dir.join("work"));
    let service = Service::start(dir, &log);
    let mut secrets: Vec<Secret> = vec![("administrator's key".to_owned(), private(&pem))];
    let mut keep = |name: &str, bytes: Vec<u8>| secrets.push((name.to_owned(), bytes));
    let text = |name: &str| std::fs::read_to_string(work.join(name)).unwrap();

    let now = kata_cc_attestation_service::now();
    for (name, claims, status) in [
        ("token of an administrator", json!({"role": "admin", "exp": now + 600}), 200),
        ("token that has expired", json!({"role": "admin", "exp": now - 3600}), 401),
    ] {
        let token = admin.sign(&json!({}), &claims).unwrap();
        keep(name, signature(&token));
        let policy = json!({"policy_id": "mine_cpu", "policy": "cGFja2FnZSBwb2xpY3k"}).to_string();
        let (seen, answer) = service.ask(&token, "POST /policy", &policy);
        assert_eq!(seen, status, "{name}: {answer}");
        // Where no credential of this kind belongs.
        let (seen, answer) =
            service.ask(&token, "POST /api/v1/tokens/verify", &json!({"token": token}).to_string());
        assert!((200..500).contains(&seen), "{name}: {answer}");
    }
    let token = evaluated(&service);
    keep("attestation token", signature(&token));
    let (status, answer) =
        service.ask("", "POST /api/v1/tokens/verify", &json!({"token": token}).to_string());
    assert_eq!(status, 200, "{answer}");
    service.ask(&token, "POST /policy", "{}");
    service.ask("", "POST /api/v1/tokens/verify", &json!({"token": format!("{token}A")}).to_string());

    keep("token.key", private(&text("token.key")));
    let by = admin.sign(&json!({}), &json!({"role": "admin", "exp": now + 600})).unwrap();
    let (status, answer) = service.ask(&by, "POST /api/v1/tokens/keys/rotate", "{}");
    assert_eq!(status, 200, "{answer}");
    keep("token.key after the rotation", private(&text("token.key")));
    keep("attestation token after the rotation", signature(&evaluated(&service)));
    let store = std::fs::read(work.join("store.key")).unwrap();
    let trimmed = store.trim_ascii();
    keep("store.key", hex::decode(trimmed).unwrap_or_else(|_| trimmed.to_vec()));

    none_below(&work, &secrets);
    assert!(Command::new("kill").arg(service.child.id().to_string()).status().unwrap().success());
    let mut service = service;
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    none_below(&work, &secrets);
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(told.contains("DEBUG") || told.contains("TRACE"), "the log is not as talkative as it can be");
    for (name, secret) in &secrets {
        if let Some(line) = told.lines().find(|line| holds(line.as_bytes(), secret)) {
            panic!("the log holds: {name}: {line}");
        }
        assert!(
            holds(format!("x {}", base64_standard(secret)).as_bytes(), secret),
            "{name} would not be found"
        );
    }
}
