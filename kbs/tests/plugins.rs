//! Plugins of the real `kbs` over TLS: a guest of a simulated platform attests, gets a secret that a SoftHSM token unwraps and
//! a certificate for its key, and each call that must be refused is, for its reason.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA384, digest};
use common::{Guest, Server, init};
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_kbs_client::{EvidenceProvider as _, TeeKey, jwe};
use kata_cc_kbs_protocol::initdata::{Algorithm, InitData, fit};
use kata_cc_kbs_protocol::rcar::RuntimeData;
use kata_cc_kbs_protocol::{base64_url, from_base64_url};
use kata_cc_sim_tee::SimPlatform;
use reqwest::{Method, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

const SECRET: &[u8] = b"unwrapped by the token alone";
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

const POLICY: &str = r#"package policy
import rego.v1
default allow := false
real if {
    input.submods.cpu0["ear.status"] == "affirming"
    input.submods.cpu0["ear.veraison.annotated-evidence"]["sim-snp"]
}
allow if { real; data.plugin == "ca"; data["resource-path"] == ["certificate"]; not data.query.hours }
allow if { real; data.plugin == "pkcs11"; data["resource-path"][1] == "db" }
"#;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A token with an AES key, and the entry of the configuration for it. `None` where the helper was not built.
fn token(dir: &Path) -> Option<String> {
    let Some(bin) = std::env::var_os("KATA_CC_BIN_DIR") else {
        let missing = "KATA_CC_BIN_DIR does not say where kata-cc-kbs-pkcs11 is (./x test builds it)";
        kata_cc_test_vectors::skip("pkcs11", missing);
        return None;
    };
    let helper = PathBuf::from(bin).join("kata-cc-kbs-pkcs11");
    assert!(helper.exists(), "{} is missing", helper.display());
    std::fs::create_dir(dir.join("tokens")).unwrap();
    let conf = dir.join("softhsm2.conf");
    std::fs::write(&conf, format!("directories.tokendir = {}\n", dir.join("tokens").display())).unwrap();
    std::fs::write(dir.join("aes"), [7; 32]).unwrap();
    let util = |arguments: &[&str]| {
        let mut command = Command::new("softhsm2-util");
        run(command.env("SOFTHSM2_CONF", &conf).current_dir(dir).args(["--pin", "4711"]).args(arguments));
    };
    util(&["--init-token", "--free", "--label", "test", "--so-pin", "12345678"]);
    util(&["--import", "aes", "--aes", "--token", "test", "--label", "wrap", "--id", "01"]);
    kata_cc_attestation_service::store::write_secret(&dir.join("pin"), b"4711\n").unwrap();
    Some(format!(
        "[[plugins]]\nname = \"pkcs11\"\nmodule = {MODULE:?}\ntoken_label = \"test\"\npin_file = \"pin\"\nhelper = {helper:?}\n\
         environment = {{ SOFTHSM2_CONF = {conf:?} }}\nkeys = {{ wrap = {{ algorithm = \"A256KW\" }} }}\n"
    ))
}

/// What is asked of the server, and its answers.
struct Caller {
    http: reqwest::Client,
    url: String,
}

impl Caller {
    fn new(server: &Server) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        for pem in &server.endpoint.certificates {
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).cookie_store(true);
        Self { http: http.build().unwrap(), url: server.endpoint.url.clone() }
    }

    async fn call(
        &self,
        method: Method,
        target: &str,
        token: Option<&str>,
        body: impl Into<reqwest::Body>,
    ) -> (StatusCode, Vec<u8>) {
        let mut request = self.http.request(method, format!("{}{target}", self.url)).body(body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        (response.status(), response.bytes().await.unwrap().to_vec())
    }

    /// The handshake, with a key of ours. Returns the token.
    async fn attest(&self, guest: &Guest, key: &TeeKey, init_data: &InitData) -> String {
        let request = json!({"version": "0.4.0", "tee": "sim-snp", "extra-params": ""}).to_string();
        let (status, body) = self.call(Method::POST, "/kbs/v0/auth", None, request).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        let challenge: Value = serde_json::from_slice(&body).unwrap();
        let nonce = challenge["nonce"].as_str().unwrap().to_owned();
        let runtime = RuntimeData { nonce, tee_pubkey: key.public().clone() };
        let report_data = digest(&SHA384, &runtime.canonical_primary(""));
        let evidence = guest.evidence(report_data.as_ref()).await.unwrap();
        let attestation = json!({
            "init-data": {"format": "toml", "body": init_data.text()},
            "runtime-data": runtime,
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        });
        let (status, body) = self.call(Method::POST, "/kbs/v0/attest", None, attestation.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<Value>(&body).unwrap()["token"].as_str().unwrap().to_owned()
    }
}

/// Claims of a token.
fn claims(token: &str) -> Value {
    serde_json::from_slice(&from_base64_url(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

fn csr(key: &rcgen::KeyPair, names: &[&str]) -> rcgen::CertificateSigningRequest {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    rcgen::CertificateParams::new(names).unwrap().serialize_request(key).unwrap()
}

/// The error's name, and its text.
fn error(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    format!("{} {}", text("type").rsplit('/').next().unwrap(), text("detail"))
}

/// `kbs ARGUMENTS` on the configuration of `dir`: its exit code, and what it said.
fn kbs(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kbs"));
    let output = command.arg("-c").arg(dir.join("kbs.toml")).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Records of the audit log of a key broker that has ended.
fn audited(dir: &Path) -> Vec<Value> {
    let (code, log) = kbs(dir, &["audit", "export"]);
    assert_eq!(code, Some(0), "{log}");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|mut line| line.get_mut("record").map(Value::take)).collect()
}

/// `kbs rekey` where a key of a token wraps the store's.
#[tokio::test]
async fn a_store_key_that_a_token_wraps_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let Some(pkcs11) = token(dir) else { return };
    let text = format!(
        "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\n[admin]\nauthorization_mode = \"InsecureAllowAll\"\n\
         [storage_backend.backends.sqlite]\nkey_wrapped_by = {{ label = \"wrap\", algorithm = \"A256KW\" }}\n{pkcs11}"
    );
    std::fs::write(dir.join("kbs.toml"), &text).unwrap();
    let path: kata_cc_kbs_protocol::ResourcePath = "a/b/c".parse().unwrap();
    let client = |server: &Server| {
        kata_cc_kbs_client::AdminClient::new(&server.endpoint, kata_cc_kbs_client::AdminAuth::None).unwrap()
    };
    let server = Server::start(dir);
    client(&server).put_resource(&path, SECRET).await.unwrap();
    assert_eq!(server.stop().0, Some(0));
    let key = dir.join("store.key");
    let first = std::fs::read(&key).unwrap();
    assert!(first.starts_with(b"{"), "an envelope, not the key itself: {}", String::from_utf8_lossy(&first));

    let (code, said) = kbs(dir, &["rekey"]);
    assert!(code == Some(0) && said.contains("are sealed under the new key"), "{said}");
    let (second, old) = (std::fs::read(&key).unwrap(), dir.join("store.key.old"));
    assert_ne!(first, second);
    assert_eq!(std::fs::read(&old).unwrap(), first);
    assert!(second.starts_with(b"{") && !dir.join("store.key.new").exists());
    let (code, said) = kbs(dir, &["audit", "verify"]);
    assert!(code == Some(0) && said.contains("are whole"), "{said}");
    let server = Server::start(dir);
    let listed = client(&server).list_resources().await.unwrap();
    assert_eq!((listed.len(), listed[0].size), (1, SECRET.len() as u64));
    assert_eq!(server.stop().0, Some(0));

    // It was interrupted after everything was sealed anew: the next run finishes it.
    std::fs::rename(&key, dir.join("store.key.new")).unwrap();
    std::fs::write(&key, &first).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (code, said) = kbs(dir, &["--check"]);
    assert!(
        code == Some(1) && said.contains("sealed under another key"),
        "the old key opens nothing: {said}"
    );
    let (code, said) = kbs(dir, &["rekey"]);
    assert!(code == Some(0) && said.contains("was sealed under the new key already"), "{said}");
    assert_eq!(std::fs::read(&key).unwrap(), second);
    assert_eq!(kbs(dir, &["audit", "verify"]).0, Some(0));

    // Another token cannot unwrap it, and nothing is changed by the attempt.
    std::fs::remove_dir_all(dir.join("tokens")).unwrap();
    let other = tempfile::tempdir().unwrap();
    token(other.path()).unwrap();
    let foreign = text.replace(dir.to_str().unwrap(), other.path().to_str().unwrap());
    std::fs::write(other.path().join("aes"), [8; 32]).unwrap();
    let mut delete = Command::new("softhsm2-util");
    delete.env("SOFTHSM2_CONF", other.path().join("softhsm2.conf")).current_dir(other.path());
    run(delete.args([
        "--pin", "4711", "--import", "aes", "--aes", "--token", "test", "--label", "other", "--id", "02",
    ]));
    std::fs::write(dir.join("kbs.toml"), foreign.replace("label = \"wrap\"", "label = \"other\"")).unwrap();
    let (code, said) = kbs(dir, &["rekey"]);
    assert!(code == Some(1) && said.contains("store key"), "{said}");
    assert_eq!(std::fs::read(&key).unwrap(), second);
    assert!(!said.contains("4711"), "{said}");
}

#[tokio::test]
async fn a_guest_uses_plugins_and_what_must_be_refused_is() {
    let folder = tempfile::tempdir().unwrap();
    let platform = Arc::new(SimPlatform::create(&folder.path().join("sim")).unwrap());
    let ark = folder.path().join("ark.pem");
    std::fs::write(&ark, platform.ark_pem().unwrap()).unwrap();
    let dir = folder.path().join("kbs");
    init(&dir, &["--simulated", ark.to_str().unwrap()]);
    let pkcs11 = token(&dir);
    let mut config = std::fs::OpenOptions::new().append(true).open(dir.join("kbs.toml")).unwrap();
    let ca = "[[plugins]]\nname = \"ca\"\nallow_simulated_tee = true\n\
        names = [\"dns:{/submods/cpu0/ear.veraison.annotated-evidence/init_data_claims/pod}.pods.example\"]\n";
    write!(config, "\n{ca}{}", pkcs11.as_deref().unwrap_or_default()).unwrap();
    let server = Server::start(&dir);

    let data = BTreeMap::from([("pod".to_owned(), "shop".to_owned())]);
    let init_data = InitData::build(Algorithm::Sha256, &data).unwrap();
    let host_data: [u8; 32] = fit(&init_data.digest());
    let admin = server.admin(&dir);
    let values = BTreeMap::from([
        ("sim_snp_launch_measurement".to_owned(), json!([hex::encode([1; 48])])),
        ("init_data".to_owned(), json!([hex::encode(host_data)])),
    ]);
    admin.set_reference_values(&values).await.unwrap();
    let guest = Guest { host_data, ..Guest::new(&platform, 1) };
    let pair = rcgen::KeyPair::generate().unwrap();
    let key = TeeKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
    let caller = Caller::new(&server);
    let attested = caller.attest(&guest, &key, &init_data).await;
    // From here on with the token alone, so that no cookie speaks for the caller.
    let caller = Caller::new(&server);
    let bearer = Some(attested.as_str());
    let operator = SigningKey::from_pem(&std::fs::read(dir.join("admin.key")).unwrap()).unwrap();
    let now = kata_cc_attestation_service::now();
    let operator =
        operator.sign(&json!({}), &json!({"role": "admin", "iat": now, "exp": now + 600})).unwrap();
    let operator = Some(operator.as_str());
    let signing_request = csr(&pair, &[]).pem().unwrap();
    let certificate = "/kbs/v0/ca/certificate";

    // The default policy lets guests have resources only.
    let (status, body) = caller.call(Method::POST, certificate, bearer, signing_request.clone()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(error(&body).contains("does not hold for kbs+ca:///certificate"), "{}", error(&body));
    admin.set_resource_policy(POLICY).await.unwrap();

    // A certificate for the key that the evidence bound.
    let (status, body) = caller.call(Method::POST, certificate, bearer, signing_request.clone()).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    std::fs::write(dir.join("guest.pem"), &body).unwrap();
    let (status, chain) = caller.call(Method::GET, "/kbs/v0/ca/chain", None, "").await;
    assert_eq!(status, StatusCode::OK);
    std::fs::write(dir.join("chain.pem"), &chain).unwrap();
    let openssl = |arguments: &[&str]| run(Command::new("openssl").args(arguments).current_dir(&dir));
    openssl(&["verify", "-x509_strict", "-CAfile", "chain.pem", "guest.pem"]);
    let text = openssl(&["x509", "-in", "guest.pem", "-noout", "-text"]);
    for expected in ["DNS:shop.pods.example", "OU = tee sim-snp", "simulated TEE, protects nothing"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    // The same by GET, encrypted, as guest components ask.
    let target = format!("{certificate}?csr={}", base64_url(csr(&pair, &["shop.pods.example"]).der()));
    let (status, body) = caller.call(Method::GET, &target, bearer, "").await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let plain = jwe::decrypt(&key, &serde_json::from_slice(&body).unwrap()).unwrap();
    assert!(plain.starts_with(b"-----BEGIN CERTIFICATE-----"));

    // What is refused, and why.
    let mut old = claims(&attested);
    old["exp"] = json!(now - 600);
    let signer = SigningKey::from_pem(&std::fs::read(dir.join("token.key")).unwrap()).unwrap();
    let expired =
        signer.sign(&json!({"typ": "JWT", "jwk": signer.jwk(), "kid": signer.jwk()["kid"]}), &old).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let (strange, name) =
        (csr(&other, &[]).pem().unwrap(), csr(&pair, &["bank.pods.example"]).pem().unwrap());
    for (token, target, body, status, why) in [
        (None, certificate, &signing_request, 401, "TokenNotFound"),
        (Some(expired.as_str()), certificate, &signing_request, 401, "TokenVerifierError"),
        (bearer, certificate, &strange, 403, "PluginDeny"),
        (bearer, certificate, &name, 403, "asks for dns:bank.pods.example"),
        (bearer, "/kbs/v0/ca/certificate?hours=1", &signing_request, 403, "PolicyDeny"),
        (bearer, "/kbs/v0/ca/revoke", &signing_request, 401, "AdminAuthAccess"),
        (bearer, "/kbs/v0/ca/nothing", &signing_request, 404, "InvalidRequestPath"),
        (bearer, "/kbs/v0/ca/crl", &signing_request, 405, "MethodNotAllowed"),
        (bearer, "/kbs/v0/nothing/x", &signing_request, 404, "PluginNotFound"),
    ] {
        let (seen, body) = caller.call(Method::POST, target, token, body.clone()).await;
        assert_eq!(seen.as_u16(), status, "{target}: {}", String::from_utf8_lossy(&body));
        assert!(error(&body).contains(why), "{target}: {}", error(&body));
    }

    // Revoked by the administrator, and so on the list that anybody can get.
    let serial = openssl(&["x509", "-in", "guest.pem", "-noout", "-serial"]);
    let serial = serial.trim().split_once('=').unwrap().1.to_owned();
    let revoke = json!({"serial": serial, "reason": "superseded"}).to_string();
    let (status, body) = caller.call(Method::POST, "/kbs/v0/ca/revoke", operator, revoke).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let (status, list) = caller.call(Method::GET, "/kbs/v0/ca/crl", None, "").await;
    assert_eq!(status, StatusCode::OK);
    std::fs::write(dir.join("list.der"), &list).unwrap();
    let text =
        openssl(&["crl", "-inform", "DER", "-in", "list.der", "-noout", "-text", "-CAfile", "chain.pem"]);
    assert!(text.contains(&serial) && text.contains("Superseded"), "{text}");

    if pkcs11.is_some() {
        let target = "/kbs/v0/pkcs11/wrap/db";
        let (status, body) = caller.call(Method::POST, target, operator, SECRET).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        let (status, body) = caller.call(Method::GET, target, bearer, "").await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        let plain = jwe::decrypt(&key, &serde_json::from_slice(&body).unwrap()).unwrap();
        assert_eq!(plain.as_slice(), SECRET);
        for (method, token, target, status, why) in [
            (Method::GET, bearer, "/kbs/v0/pkcs11/wrap/other", 403, "PolicyDeny"),
            (Method::GET, bearer, "/kbs/v0/pkcs11/nokey/db", 404, "no key \"nokey\""),
            (Method::POST, bearer, target, 401, "AdminAuthAccess"),
            (Method::GET, None, target, 401, "TokenNotFound"),
        ] {
            let (seen, body) = caller.call(method, target, token, "x").await;
            assert_eq!(seen.as_u16(), status, "{target}: {}", String::from_utf8_lossy(&body));
            assert!(error(&body).contains(why), "{target}: {}", error(&body));
        }
    }

    let (_, metrics) = caller.call(Method::GET, "/metrics", operator, "").await;
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("kbs_plugin_calls_total{plugin=\"ca\",outcome=\"PluginDeny\"} 2"), "{metrics}");
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    for expected in ["certificate-issued", "certificate-revoked", &serial.to_lowercase()] {
        assert!(log.contains(expected), "{expected} is not in the log:\n{log}");
    }
    let records = audited(&dir);
    let told = |event: &str| {
        let found = records.iter().find(|record| record["details"]["event"] == event);
        found.unwrap_or_else(|| panic!("{event} is not on record: {records:#?}"))
    };
    let (issued, revoked) = (told("certificate-issued"), told("certificate-revoked"));
    assert_eq!(issued["kind"], "release");
    assert_eq!(issued["details"]["serial"], serial.to_lowercase());
    assert_eq!(issued["details"]["names"], "dns:shop.pods.example");
    assert_eq!((&revoked["kind"], &revoked["verdict"]), (&json!("admin"), &json!("done")));
    assert_eq!(revoked["details"]["subject"], serial.to_lowercase());
    // Before it was done it was asked for, by the same person.
    let asked = records
        .iter()
        .position(|record| record["verdict"] == "asked" && record["resource"]["id"] == "revoke");
    let done = records.iter().position(|record| record == revoked);
    assert!(asked.is_some() && asked < done, "{records:#?}");
    if pkcs11.is_some() {
        assert_eq!(told("blob-wrapped")["details"]["key"], "\"wrap\"");
        let unwrapped = told("blob-unwrapped");
        assert_eq!(
            (&unwrapped["kind"], &unwrapped["details"]["key"]),
            (&json!("release"), &json!("\"wrap\""))
        );
        assert_eq!(unwrapped["details"]["subject"], "wrap/db");
    }
    // The change of reference values names who, what and which value, not only that somebody asked.
    let set = records
        .iter()
        .find(|record| record["reason"] == "set reference value" && record["resource"]["id"] == "init_data");
    let set = set.unwrap_or_else(|| panic!("{records:#?}"));
    assert_eq!((&set["verdict"], &set["details"]["source"]), (&json!("done"), &json!("rvps")));
    assert!(
        set["who"].as_str().unwrap().contains("admin")
            && set["details"]["value"].as_str().unwrap().len() == 64
    );
    let secret = String::from_utf8_lossy(SECRET);
    assert!(!log.contains(secret.as_ref()) && !log.contains("4711"), "a secret is in the log");
    for file in
        std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file())
    {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|w| w == SECRET), "{}", file.display());
    }
}
