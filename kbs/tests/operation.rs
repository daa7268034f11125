//! How the real `kbs` is run: reload, roles, OpenID, certificates, budgets, traces, readiness, memory.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::body::Bytes;
use axum::routing::{get, post};
use common::raw::{exchange, request};
use common::{Server, init};
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_attestation_service::serve::{self, Limits};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

const PLAIN: &str = "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\n\
    [storage_backend]\nstorage_type = \"Memory\"\n";

fn start(folder: &Path, config: &str) -> (Server, SocketAddr) {
    std::fs::write(folder.join("kbs.toml"), config).unwrap();
    let server = Server::start(folder);
    let address = server.endpoint.url.rsplit('/').next().unwrap().parse().unwrap();
    (server, address)
}

fn key() -> SigningKey {
    SigningKey::from_pem(SigningKey::generate_pem("EdDSA").unwrap().as_bytes()).unwrap()
}

fn token(key: &SigningKey, header: Value, claims: Value) -> String {
    let mut claims = claims;
    claims["exp"] = json!(kata_cc_attestation_service::now() + 600);
    key.sign(&header, &claims).unwrap()
}

fn call(to: SocketAddr, line: &str, token: &str, body: &[u8]) -> u16 {
    let bearer = format!("authorization: Bearer {token}");
    exchange(to, &request(line, &["host: x", &bearer], body)).status
}

#[test]
fn roles_may_what_their_lists_say() {
    let folder = tempfile::tempdir().unwrap();
    let key = key();
    std::fs::write(folder.path().join("admin.pub"), key.public_pem().unwrap()).unwrap();
    let config = format!(
        "{PLAIN}[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n[admin.authentication.bearer_jwt]\n\
         identity_providers = [{{ public_key_uri = \"admin.pub\" }}]\n[admin.authorization]\n\
         roles = [{{ role = \"ops\", acl = \"operator\" }}, {{ role = \"sec\", acl = \"policy-editor\" }}, {{ role = \"audit\", acl = \"auditor\" }}]\n"
    );
    let (server, to) = start(folder.path(), &config);
    let by = |role: &str| token(&key, json!({}), json!({"role": role, "sub": format!("{role}-person")}));
    let (ops, sec, audit) = (by("ops"), by("sec"), by("audit"));
    let policy = br#"{"policy":"cGFja2FnZSBwb2xpY3k"}"#;
    for (line, body, allowed) in [
        ("POST /kbs/v0/resource/a/b/c", &b"secret one"[..], [200, 403, 403]),
        ("POST /kbs/v0/resource/a/b/c", b"secret two", [200, 403, 403]),
        ("GET /kbs/v0/admin/resources", b"", [200, 403, 200]),
        ("GET /kbs/v0/admin/resources/a/b/c/history", b"", [200, 403, 200]),
        ("POST /kbs/v0/resource-policy", policy, [403, 200, 403]),
        ("GET /kbs/v0/resource-policy/text", b"", [403, 200, 200]),
        ("GET /kbs/v0/admin/resource-policy/history", b"", [403, 200, 200]),
        ("GET /kbs/v0/admin/audit", b"", [403, 403, 200]),
        ("DELETE /kbs/v0/resource/a/b/c", b"", [200, 403, 403]),
    ] {
        for (token, expected) in [&ops, &sec, &audit].into_iter().zip(allowed) {
            assert_eq!(call(to, line, token, body), expected, "{line}");
        }
    }
    let read = |path: &str| {
        let bearer = format!("authorization: Bearer {audit}");
        exchange(to, &request(&format!("GET {path}"), &["host: x", &bearer], b""))
    };
    let history = read("/kbs/v0/admin/resources/a/b/c/history").json();
    let states: Vec<&str> =
        history["versions"].as_array().unwrap().iter().map(|v| v["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["deleted", "erased", "erased"]);
    assert_eq!(history["versions"][1]["who"], "ops-person (ops)");
    assert_eq!(history["versions"][1]["content_type"], "application/octet-stream");
    // Who did what, and who was not let, is on record; secrets and tokens are not.
    let log = read("/kbs/v0/admin/audit");
    assert_eq!(log.header("content-type"), Some("application/jsonl"));
    let log = log.text();
    for part in [
        "ops-person (ops)",
        "write resource",
        "a/b/c",
        "may not POST it",
        "sec-person (sec)",
        "set resource policy",
    ] {
        assert!(log.contains(part), "{part} is not in\n{log}");
    }
    assert!(!log.contains("secret one") && !log.contains(&ops));
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn a_flood_and_guesses_are_slowed_down() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("{PLAIN}[limits]\nrequests_per_second = 0.01\nburst = 5\n");
    let (server, to) = start(folder.path(), &config);
    let ask = |path: &str| exchange(to, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    for _ in 0..5 {
        assert_eq!(ask("/kbs/v0/resource/a/b/c").status, 401);
    }
    let refused = ask("/kbs/v0/resource/a/b/c");
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((50..=100).contains(&wait), "{wait}");
    assert!(refused.json()["type"].as_str().unwrap().ends_with("/TooManyRequests"));
    // Who watches is not shut out.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask(path).status, 200, "{path}");
    }
    assert!(ask("/metrics").text().contains("kbs_calls_total{call=\"limit\",outcome=\"requests\"} 1"));
    assert_eq!(server.stop().0, Some(0));

    let key = key();
    std::fs::write(folder.path().join("admin.pub"), key.public_pem().unwrap()).unwrap();
    let config = format!(
        "{PLAIN}[limits]\nadmin_failures = 3\nadmin_failure_seconds = 1000\n[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n\
         [admin.authentication.bearer_jwt]\nidentity_providers = [{{ public_key_uri = \"admin.pub\" }}]\n\
         [admin.authorization]\nroles = [{{ role = \"admin\", acl = \"admin\" }}]\n"
    );
    let (server, to) = start(folder.path(), &config);
    let good = token(&key, json!({}), json!({"role": "admin"}));
    let line = "GET /kbs/v0/resource-policy";
    assert_eq!(call(to, line, &good, b""), 200);
    for _ in 0..3 {
        assert_eq!(call(to, line, "a.b.c", b""), 401);
    }
    assert_eq!(call(to, line, "a.b.c", b""), 429);
    // Who shares the address with the guesser is let in.
    assert_eq!(call(to, line, &good, b""), 200);
    assert_eq!(call(to, line, "a.b.c", b""), 429);
    assert_eq!(server.stop().0, Some(0));
}

/// What the service's unit and the image need: the configuration can be read-only.
#[test]
fn with_a_folder_of_state_nothing_is_written_beside_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (configuration, state) = (folder.path().join("etc"), folder.path().join("var/lib/kbs"));
    let kbs = |arguments: &[&std::ffi::OsStr]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_kbs")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let names = |folder: &std::path::Path| {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    kbs(&["init".as_ref(), configuration.as_os_str(), "--state".as_ref(), state.as_os_str()]);
    let before = names(&configuration);
    assert_eq!(before, ["admin.key", "admin.pub", "kbs.toml", "tls.crt", "tls.key"]);
    kbs(&["-c".as_ref(), configuration.join("kbs.toml").as_os_str(), "--check".as_ref()]);
    assert_eq!(names(&configuration), before);
    let written = names(&state);
    for name in ["kbs.db", "store.key", "token.key"] {
        assert!(written.iter().any(|file| file == name), "{name} is not among {written:?}");
    }
}

/// Reads a URL over TLS that trusts `root`, with a certificate of the caller's if there is one.
async fn over_tls(
    url: &str,
    root: &CertificateDer<'static>,
    identity: Option<(CertificateDer<'static>, &KeyPair)>,
) -> Result<u16, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let tls = match identity {
        None => tls.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            tls.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
    let answer = client.get(url).send().await.map_err(|e| format!("{e:?}"))?;
    Ok(answer.status().as_u16())
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate under an authority, with its key.
fn issue(
    by: &CertifiedIssuer<'static, KeyPair>,
    dns: &str,
    uri: Option<&str>,
) -> (rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
    if let Some(uri) = uri {
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    }
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, by).unwrap(), key)
}

#[tokio::test]
async fn administrators_by_certificate_and_a_reload_of_everything() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (servers, people, strangers) = (authority("servers"), authority("people"), authority("strangers"));
    let write_tls = |(certificate, key): &(rcgen::Certificate, KeyPair)| {
        std::fs::write(dir.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
    };
    write_tls(&issue(&servers, "localhost", None));
    std::fs::write(dir.join("people.pem"), people.pem()).unwrap();
    let config = |more: &str| {
        format!(
            "[http_server]\nsockets = [\"127.0.0.1:0\"]\nprivate_key = \"tls.key\"\ncertificate = \"tls.crt\"\nclient_ca = \"people.pem\"\n\
             [storage_backend]\nstorage_type = \"Memory\"\n[policies]\nresource = \"resource.rego\"\n\
             [admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n[admin.authentication.mutual_tls]\n\
             identities = [{{ san = \"URI:spiffe://example/ops\", role = \"ops\" }}]\n[admin.authorization]\nroles = [{{ role = \"ops\", acl = \"{more}\" }}]\n"
        )
    };
    std::fs::write(dir.join("resource.rego"), "package policy\n# first").unwrap();
    let (server, to) = start(dir, &config("admin"));
    let text = format!("https://{to}/kbs/v0/resource-policy/text");
    let root = servers.der().clone();
    let (alice, alice_key) = issue(&people, "alice", Some("spiffe://example/ops"));
    let (bob, bob_key) = issue(&people, "bob", Some("spiffe://example/dev"));
    let (mallory, mallory_key) = issue(&strangers, "mallory", Some("spiffe://example/ops"));
    let alice = (alice.der().clone(), &alice_key);
    assert_eq!(over_tls(&text, &root, Some(alice.clone())).await, Ok(200));
    assert_eq!(over_tls(&text, &root, Some((bob.der().clone(), &bob_key))).await, Ok(401));
    assert_eq!(over_tls(&text, &root, None).await, Ok(401));
    let forged = over_tls(&text, &root, Some((mallory.der().clone(), &mallory_key))).await;
    assert!(forged.is_err(), "a certificate of another authority was taken: {forged:?}");

    // Everything that is wrong leaves everything as it is.
    let others = authority("new servers");
    let renewed = issue(&others, "localhost", None);
    std::fs::write(dir.join("resource.rego"), "package policy\n# second").unwrap();
    for (wrong, why) in [
        (config("admin").replace("acl =", "acls ="), "unknown field `acls`"),
        (config("admin").replace("people.pem", "nobody.pem"), "client_ca"),
        (
            config("admin").replace("client_ca = \"people.pem\"\n", ""),
            "mutual_tls needs http_server.client_ca",
        ),
        (config("admin").replace("resource.rego", "none.rego"), "none.rego"),
        (config("admin") + "[log]\nlevel = \"kbs=loud\"\n", "log level"),
        (config("admin") + "[limits]\nburst = 0\n", "limits.burst"),
    ] {
        std::fs::write(dir.join("kbs.toml"), wrong).unwrap();
        let said = server.reload();
        assert!(said.contains("was refused, the old one stays in use") && said.contains(why), "{said}");
    }
    write_tls(&(renewed.0, KeyPair::generate().unwrap()));
    std::fs::write(dir.join("kbs.toml"), config("auditor")).unwrap();
    assert!(server.reload().contains("refused"), "a key of another certificate");
    assert_eq!(over_tls(&text, &root, Some(alice.clone())).await, Ok(200));
    let history = format!("https://{to}/kbs/v0/admin/resource-policy/history");
    assert_eq!(over_tls(&history, &root, Some(alice.clone())).await, Ok(200));

    // And what is right is taken into use, all of it.
    write_tls(&issue(&others, "localhost", None));
    std::fs::write(dir.join("kbs.toml"), config("operator") + "[log]\nlevel = \"debug\"\n").unwrap();
    let said = server.reload();
    assert!(said.contains("taken into use"), "{said}");
    assert!(over_tls(&text, &root, Some(alice.clone())).await.is_err(), "the old certificate is still shown");
    let new_root = others.der().clone();
    assert_eq!(over_tls(&text, &new_root, Some(alice)).await, Ok(403), "an operator reads no policy");
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert!(log.contains("resource policy was taken from its file") && log.contains("DEBUG"), "{log}");
}

#[tokio::test]
async fn administrators_by_openid() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let ca = authority("identity");
    let (certificate, tls_key) = issue(&ca, "localhost", None);
    std::fs::write(dir.join("idp.pem"), ca.pem()).unwrap();
    // A provider: discovery document and keys, over TLS.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let first = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
    let second = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
    let keys = Arc::new(Mutex::new(vec![first.jwk(), json!({"kty": "oct", "k": "AA"})]));
    let asked = Arc::new(Mutex::new(0));
    let document = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
    let (shown, count) = (Arc::clone(&keys), Arc::clone(&asked));
    let router = axum::Router::new()
        .route("/.well-known/openid-configuration", get(async move || Json(document)))
        .route(
            "/keys",
            get(async move || {
                *count.lock().unwrap() += 1;
                Json(json!({"keys": *shown.lock().unwrap()}))
            }),
        );
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(tls_key.serialize_der()));
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], pkcs8)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let idp = tokio::spawn(async move {
        serve::serve(vec![listener], Some(acceptor), router, Limits::default(), &stopped).await;
    });

    let config = format!(
        "{PLAIN}[limits]\nadmin_failures = 1000\n[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n[admin.authentication.bearer_jwt]\n\
         identity_providers = [{{ oidc_issuer = \"{issuer}\", audience = \"kbs\", ca_certificate = \"idp.pem\", role_claim = \"/realm_access/roles\" }}]\n\
         [admin.authorization]\nroles = [{{ role = \"kbs-audit\", acl = \"auditor\" }}]\n"
    );
    let folder = dir.to_owned();
    let keys_changed = Arc::clone(&keys);
    let results = tokio::task::spawn_blocking(move || {
        let (server, to) = start(&folder, &config);
        let signed = |key: &SigningKey, claims: Value| token(key, json!({"kid": key.jwk()["kid"]}), claims);
        let good =
            json!({"iss": issuer, "aud": ["kbs", "other"], "realm_access": {"roles": ["x", "kbs-audit"]}});
        let with = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            claims
        };
        let line = "GET /kbs/v0/resource-policy";
        let ask = |token: &str| call(to, line, token, b"");
        assert_eq!(ask(&signed(&first, good.clone())), 200);
        assert_eq!(call(to, "POST /kbs/v0/resource/a/b/c", &signed(&first, good.clone()), b"x"), 403);
        for (what, claims, status) in [
            ("issuer", with("iss", json!("https://elsewhere.example")), 401),
            ("audience", with("aud", json!("other")), 401),
            ("roles", with("realm_access", json!({"roles": ["x"]})), 403),
            ("no roles", with("realm_access", json!({})), 401),
        ] {
            assert_eq!(ask(&signed(&first, claims)), status, "{what}");
        }
        // A key that was added: the token's kid is unknown, so the keys are fetched anew, though not as often as strangers like.
        keys_changed.lock().unwrap().push(second.jwk());
        let unknown = signed(&second, good.clone());
        let mut status = ask(&unknown);
        for _ in 0..80 {
            if status == 200 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(500));
            status = ask(&unknown);
        }
        assert_eq!(status, 200, "the new key is not fetched");
        assert_eq!(server.stop().0, Some(0));
    })
    .await;
    idp.abort();
    results.unwrap();
    assert!((2..=6).contains(&*asked.lock().unwrap()), "fetched {} times", asked.lock().unwrap());
}

#[tokio::test]
async fn traces_go_out_with_the_callers_parent_and_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = listener.local_addr().unwrap();
    let received = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&received);
    let router = axum::Router::new().route(
        "/v1/traces",
        post(async move |body: Bytes| {
            sink.lock().unwrap().extend_from_slice(&body);
        }),
    );
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let collecting = tokio::spawn(async move {
        serve::serve(vec![listener], None, router, Limits::default(), &stopped).await;
    });
    let config = format!(
        "{PLAIN}[telemetry]\notlp_endpoint = \"http://{collector}/v1/traces\"\nservice_name = \"broker-a\"\n"
    );
    let trace =
        [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
    tokio::task::spawn_blocking(move || {
        let (server, to) = start(&dir, &config);
        let headers = [
            "host: x",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "authorization: Bearer hidden.secret.token",
            "cookie: kbs-session-id=hidden-session",
        ];
        let reply = exchange(
            to,
            &request("GET /kbs/v0/resource/default/key/hidden-tag?hidden-query=1", &headers, b""),
        );
        assert_eq!(reply.status, 401);
        assert_eq!(server.stop().0, Some(0));
    })
    .await
    .unwrap();
    collecting.abort();
    let bytes = received.lock().unwrap().clone();
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(has(&trace), "the caller's trace id is not in {} bytes", bytes.len());
    for part in ["broker-a", "GET /kbs/v0/resource/{repository}/{type}/{tag}"] {
        assert!(has(part.as_bytes()), "{part} was not sent");
    }
    assert!(!has(b"hidden"), "what a caller sent is in the traces");
}

#[test]
fn memory_is_kept_and_the_end_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (server, to) = start(folder.path(), PLAIN);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    let ready = exchange(to, b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(
        ready.json(),
        json!({"ready": true, "checks": {"keys": true, "policies": true, "serving": true, "store": true}})
    );
    assert_eq!(server.stop().0, Some(0));
}

/// A JSON file does what a TOML file does, and `--check` tells what is wrong with either.
#[test]
fn a_configuration_may_be_json() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path(), &[]);
    let check = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_kbs"))
            .arg("-c")
            .arg(&path)
            .arg("--check")
            .env("KBS__LOG__LEVEL", "warn")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let good = r#"{"http_server": {"private_key": "tls.key", "certificate": "tls.crt"}, "storage_backend": {"storage_type": "Memory"}}"#;
    let (code, why) = check("kbs.json", good);
    assert_eq!(code, Some(0), "{why}");
    let (code, why) = check("kbs.json", &good.replace("certificate", "certificat"));
    assert!(code == Some(1) && why.contains("did you mean `certificate`?"), "{why}");
}
