//! What must never be written down, with logs at their most talkative: neither log nor database nor export has a secret, a credential
//! of a guest or of an administrator, or a key, in any form.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "../../attestation/store/tests/common/mod.rs"]
mod database;

use std::path::Path;

use common::client::Client;
use common::load::{configure, open_to_guests, platform, value};
use common::raw::{exchange, request};
use common::{Guest, Server};
use database::{Postgres, each_file_below, holds};
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_kbs_protocol::{base64_standard, from_base64_standard, from_base64_url};
use kata_cc_sim_tee::SimPlatform;
use kata_cc_store::StoreKey;
use serde_json::{Value, json};

/// Files that hold keys on purpose, beside the configuration; nothing else in the folder may.
const KEY_FILES: [&str; 3] = ["store.key", "token.key", "admin.key"];

/// What is looked for: a name for messages, and the bytes.
type Secret = (String, Vec<u8>);

/// The 32 bytes of a private key in PKCS#8 PEM: a P-256 scalar, or an Ed25519 seed.
fn private(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = from_base64_standard(&body).unwrap();
    let before: &[&[u8]] = &[&[2, 1, 1, 4, 32], &[4, 34, 4, 32]];
    let at =
        before.iter().find_map(|mark| Some(der.windows(mark.len()).position(|w| w == *mark)? + mark.len()));
    let at = at.unwrap_or_else(|| panic!("no private key is found in {} bytes", der.len()));
    der[at..at + 32].to_vec()
}

/// The part of a token that nobody can make up.
fn signature(token: &str) -> Vec<u8> {
    from_base64_url(token.rsplit('.').next().unwrap()).unwrap()
}

/// Everything that a guest and an administrator do; gives what they had that nobody may know.
async fn use_it(server: &Server, dir: &Path, evidence: &Guest) -> Vec<Secret> {
    let base = server.endpoint.url.clone();
    let to = base.strip_prefix("http://").unwrap().parse().unwrap();
    let mut secrets = Vec::new();
    let mut keep = |name: &str, bytes: Vec<u8>| secrets.push((name.to_owned(), bytes));

    let key = SigningKey::from_pem(&std::fs::read(dir.join("admin.key")).unwrap()).unwrap();
    let now = kata_cc_attestation_service::now();
    let send = |token: &str, line: &str, body: &[u8]| {
        let bearer = format!("authorization: Bearer {token}");
        exchange(to, &request(line, &["host: x", &bearer], body)).status
    };
    for (name, claims, status) in [
        ("token of an administrator", json!({"role": "admin", "exp": now + 600}), 200),
        ("token that has expired", json!({"role": "admin", "exp": now - 3600}), 401),
        ("token of nobody", json!({"role": "nobody", "exp": now + 600}), 403),
    ] {
        let token = key.sign(&json!({}), &claims).unwrap();
        keep(name, signature(&token));
        assert_eq!(send(&token, "POST /kbs/v0/resource/default/a/b", &value("secret", 3)), status, "{name}");
        send(&token, "GET /kbs/v0/admin/audit", b"");
        send(&token, "GET /kbs/v0/admin/resources", b"");
        // A credential where none belongs.
        send(&token, &format!("GET /kbs/v0/{}/x", "no-plugin"), token.as_bytes());
        let try_out = json!({"resource": "default/a/b", "token": token}).to_string();
        send(&token, "POST /kbs/v0/admin/resource-policy/dry-run", try_out.as_bytes());
    }
    keep("resource", value("secret", 3)[..32].to_vec());

    let client = Client::new(evidence);
    let (challenge, cookie) = client.auth(&base).await.unwrap();
    let attestation = client.evidence(challenge).await;
    let (status, text) = client.attest(&base, &cookie, &attestation).await.unwrap();
    assert_eq!(status, 200, "{text}");
    let token = serde_json::from_str::<Value>(&text).unwrap()["token"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&base, &cookie, "default/a/b").await.unwrap(), value("secret", 3));
    client.get(&base, &cookie, "default/no/thing").await.unwrap_err();
    client.get(&base, &cookie, "other/a/b").await.unwrap_err();
    assert_eq!(send(&token, "GET /kbs/v0/resource/default/a/b", b""), 200);
    // Nearly right ones: a token that is damaged, the cookie in another's place.
    send(&format!("{token}A"), "GET /kbs/v0/resource/default/a/b", b"");
    send(&cookie, "GET /kbs/v0/resource/default/a/b", b"");
    client.get(&base, &token, "default/a/b").await.unwrap_err();
    keep("attestation token", signature(&token));
    keep("session id", cookie.clone().into_bytes());
    keep("session id in bytes", hex::decode(&cookie).unwrap());
    // One that is refused, whose session is as good a credential until then.
    let (challenge, cookie) = client.auth(&base).await.unwrap();
    let mut attestation = client.evidence(challenge).await;
    attestation.tee_evidence.primary_evidence = json!({});
    assert_eq!(client.attest(&base, &cookie, &attestation).await.unwrap().0, 401);
    keep("session id of a refused guest", cookie.into_bytes());

    let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    for name in ["token.key", "admin.key"] {
        keep(name, private(&text(name)));
    }
    let store = std::fs::read(dir.join("store.key")).unwrap();
    let trimmed = store.trim_ascii();
    keep("store.key", hex::decode(trimmed).unwrap_or_else(|_| trimmed.to_vec()));
    secrets
}

/// No file below a folder but those that hold keys on purpose has any of them.
fn none_below(folder: &Path, secrets: &[Secret]) -> usize {
    let mut files = 0;
    each_file_below(folder, |path, bytes| {
        if KEY_FILES.into_iter().any(|known| path.file_name().is_some_and(|name| name == known)) {
            return;
        }
        files += 1;
        for (name, secret) in secrets {
            assert!(!holds(bytes, secret), "{} holds: {name}", path.display());
        }
    });
    files
}

async fn nothing_is_written_down(
    dir: &Path,
    platform: &SimPlatform,
    evidence: &Guest,
    storage: &str,
    data: &Path,
) {
    configure(dir, platform, storage);
    let server = Server::start_with(dir, &[("RUST_LOG", "trace")]);
    open_to_guests(&server.admin(dir)).await;
    let secrets = use_it(&server, dir, evidence).await;
    // While it runs, with whatever write-ahead log there is, and after its end.
    assert!(none_below(data, &secrets) > 0);
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert!(none_below(dir, &secrets) > 0 && none_below(data, &secrets) > 0);
    assert!(log.contains("DEBUG") || log.contains("TRACE"), "the log is not as talkative as it can be");
    let export = std::process::Command::new(env!("CARGO_BIN_EXE_kbs"))
        .arg("-c")
        .arg(dir.join("kbs.toml"))
        .args(["audit", "export"])
        .env("RUST_LOG", "trace")
        .output()
        .unwrap();
    assert!(export.status.success());
    let export = [export.stdout, export.stderr].concat();
    for (name, secret) in &secrets {
        if let Some(line) = log.lines().find(|line| holds(line.as_bytes(), secret)) {
            panic!("the log holds: {name}: {line}");
        }
        assert!(!holds(&export, secret), "the export of the audit log holds: {name}");
    }
    // The search finds what is there.
    for (name, secret) in &secrets {
        let shown = format!("x {}", base64_standard(secret));
        assert!(holds(shown.as_bytes(), secret), "{name} would not be found");
    }
    assert!(StoreKey::from_existing_file(&dir.join("store.key")).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_log_nor_database_has_a_secret() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(folder.path());
    let evidence = Guest::new(&platform, 1);
    let dir = folder.path().join("sqlite");
    let sqlite = "[storage_backend]\nstorage_type = \"Sqlite\"\n";
    nothing_is_written_down(&dir, &platform, &evidence, sqlite, &dir).await;
    // Sessions are rows of the database here.
    let Some(postgres) = Postgres::start() else { return };
    let storage = format!(
        "[storage_backend]\nstorage_type = \"Postgres\"\n\
         backends.postgres = {{ host = {:?}, db = \"kbs\", username = \"kbs\", connections = 6 }}\n",
        postgres.folder().to_str().unwrap()
    );
    let dir = folder.path().join("postgres");
    nothing_is_written_down(&dir, &platform, &evidence, &storage, postgres.folder()).await;
}
