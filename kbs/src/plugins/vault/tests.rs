//! Against a contract server: the paths, bodies, codes and errors of HashiCorp's documented HTTP API (KV version 1 and 2, transit,
//! AppRole, token), over TLS. It is no Vault: Debian 12 packages none.

use std::net::SocketAddr;
use std::sync::Mutex;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use kata_cc_attestation_service::serve::{self, Limits};
use kata_cc_attestation_service::store::{Store, StoreKey, write_secret};
use serde_json::Value;
use tokio::sync::watch;

use super::*;
use crate::plugins::request::tests::request;

/// What the server is, and what it saw.
#[derive(Default)]
struct Contract {
    /// Tokens that are valid now.
    tokens: Vec<String>,
    /// Life of a token in seconds.
    ttl: u64,
    /// Answers every call so, when set.
    fault: Option<Fault>,
    calls: Vec<String>,
}

#[derive(Clone, Copy)]
enum Fault {
    Sealed,
    Redirect,
    Garbage,
    Huge,
    Hang,
}

type Shared = Arc<Mutex<Contract>>;

fn errors(status: u16, words: &[&str]) -> Response<Body> {
    answer(status, json!({"errors": words}))
}

fn answer(status: u16, body: Value) -> Response<Body> {
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    response.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap()
}

fn secret(data: Value) -> Response<Body> {
    answer(
        200,
        json!({"request_id": "x", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data}),
    )
}

fn granted(token: &str, ttl: u64) -> Response<Body> {
    answer(
        200,
        json!({"auth": {"client_token": token, "lease_duration": ttl, "renewable": true, "policies": ["kbs"]}}),
    )
}

async fn contract(State(shared): State<Shared>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let header = |name: &str| parts.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    let path = parts.uri.path().strip_prefix("/v1/").unwrap().to_owned();
    let fault = {
        let mut state = shared.lock().unwrap();
        state.calls.push(format!("{} {path}", parts.method));
        state.fault
    };
    match fault {
        Some(Fault::Sealed) => return errors(503, &["Vault is sealed"]),
        Some(Fault::Redirect) => {
            let response = Response::builder().status(307).header("location", "https://elsewhere.example/");
            return response.body(Body::empty()).unwrap();
        }
        Some(Fault::Garbage) => return answer(200, json!({"data": 7})),
        Some(Fault::Huge) => return answer(200, json!({"data": {"x": "y".repeat(3 << 20)}})),
        Some(Fault::Hang) => std::future::pending().await,
        None => {}
    }
    let mut state = shared.lock().unwrap();
    assert_eq!(header("x-vault-request").as_deref(), Some("true"));
    if header("x-vault-namespace").as_deref() != Some("team-a") {
        return errors(404, &["no handler for route"]);
    }
    if path == "auth/approle/login" {
        assert_eq!(header("x-vault-token"), None);
        if (body["role_id"].as_str(), body["secret_id"].as_str()) != (Some("role"), Some("secret-id")) {
            return errors(400, &["invalid role or secret ID"]);
        }
        let token = format!("approle-{}", state.calls.len());
        state.tokens.push(token.clone());
        return granted(&token, state.ttl);
    }
    let token = header("x-vault-token").unwrap_or_default();
    if !state.tokens.contains(&token) {
        return errors(403, &["permission denied", "invalid token"]);
    }
    let query = parts.uri.query().unwrap_or("");
    match (parts.method.as_str(), path.as_str(), query) {
        ("GET", "auth/token/lookup-self", "") => {
            secret(json!({"ttl": state.ttl, "renewable": true, "id": token}))
        }
        ("POST", "auth/token/renew-self", "") => granted(&token, state.ttl),
        ("GET", "kv1/kbs/db", "") => secret(json!({"data": "aGVsbG8=", "n": 7})),
        ("GET", "team/kv2/data/db", "") => {
            secret(json!({"data": {"password": "s3cret \" \\ \u{e9}"}, "metadata": {"version": 2}}))
        }
        ("GET", "team/kv2/data/db", "version=1") => {
            secret(json!({"data": {"password": "old"}, "metadata": {"version": 1}}))
        }
        ("GET", "team/kv2/data/gone", "") => answer(
            404,
            json!({"data": {"data": null, "metadata": {"deletion_time": "2026-01-01T00:00:00Z"}}}),
        ),
        ("GET", "team/kv2/data/forbidden", "") => {
            errors(403, &["1 error occurred:\n\t* permission denied\n\n"])
        }
        ("POST", "transit/decrypt/image", "") => match body["ciphertext"].as_str() {
            Some("vault:v1:good") if body["context"].is_null() => secret(json!({"plaintext": "cGxhaW4="})),
            Some("vault:v1:derived") if body["context"] == "Y3R4" => {
                secret(json!({"plaintext": "ZGVyaXZlZA=="}))
            }
            Some("vault:v1:odd") => secret(json!({"plaintext": "%%%"})),
            _ => errors(400, &["invalid ciphertext: no prefix"]),
        },
        ("POST", "transit/datakey/plaintext/image", "") if body["bits"] == 256 => {
            secret(json!({"plaintext": "AAECAw==", "ciphertext": "vault:v1:wrapped", "key_version": 1}))
        }
        _ => errors(404, &[]),
    }
}

struct Server {
    folder: tempfile::TempDir,
    shared: Shared,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cert = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(folder.path().join("ca.pem"), cert.cert.pem()).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(cert.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.cert.der().clone()], key.into())
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::default();
        shared.lock().unwrap().tokens.push("hvs.first".to_owned());
        write_secret(&folder.path().join("token"), b"hvs.first\n").unwrap();
        write_secret(&folder.path().join("role"), b"role").unwrap();
        write_secret(&folder.path().join("secret"), b"secret-id").unwrap();
        let router = Router::new().fallback(contract).with_state(Arc::clone(&shared));
        let (stop, stopped) = watch::channel(false);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(async move {
            serve::serve(vec![listener], Some(acceptor), router, Limits::default(), &stopped).await;
        });
        Self { folder, shared, address, stop }
    }

    fn config(&self, auth: &str) -> String {
        format!(
            "address = \"https://{}\"\nca_certificates = [\"ca.pem\"]\nnamespace = \"team-a/\"\nrequest_seconds = 1\n\
             auth = {{ {auth} }}\n\
             [kv.old]\nmount = \"kv1\"\nversion = 1\nprefix = \"kbs\"\n[kv.new]\nmount = \"team/kv2\"\nversion = 2\n\
             [transit.main]\nmount = \"transit\"\nkeys = [\"image\", \"unknown\"]\n",
            self.address
        )
    }

    async fn plugin_with(&self, text: &str) -> Result<Vault, SetupError> {
        let store = Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap());
        let context = Context { base: self.folder.path().to_owned(), store, token: None };
        Vault::new(toml::from_str(text).unwrap(), &context).await
    }

    async fn plugin(&self) -> Vault {
        self.plugin_with(&self.config("method = \"token\", token_file = \"token\"")).await.unwrap()
    }

    fn called(&self, call: &str) -> usize {
        self.shared.lock().unwrap().calls.iter().filter(|seen| *seen == call).count()
    }

    fn fault(&self, fault: Option<Fault>) {
        self.shared.lock().unwrap().fault = fault;
    }
}

async fn ask(plugin: &Vault, method: Method, target: &str, body: &str) -> Result<String, PluginError> {
    let request = request(method, target, body.as_bytes());
    assert_eq!(plugin.validate_auth(&request)?, Access::Guest);
    assert!(plugin.needs_encryption(&request));
    let response = plugin.handle(&request, Caller::Anyone).await?;
    Ok(String::from_utf8(response.body.to_vec()).unwrap())
}

async fn get(plugin: &Vault, target: &str) -> Result<String, PluginError> {
    ask(plugin, Method::GET, target, "").await
}

#[tokio::test]
async fn secrets_of_both_versions_are_read() {
    let server = Server::start().await;
    let plugin = server.plugin().await;
    let whole: Value = serde_json::from_str(&get(&plugin, "kv/old/db").await.unwrap()).unwrap();
    assert_eq!(whole, json!({"data": "aGVsbG8=", "n": 7}));
    assert_eq!(get(&plugin, "kv/old/db?field=data&encoding=base64").await.unwrap(), "hello");
    assert_eq!(get(&plugin, "kv/old/db?field=data").await.unwrap(), "aGVsbG8=");
    assert_eq!(get(&plugin, "kv/old/db?field=n").await.unwrap(), "7");
    assert_eq!(get(&plugin, "kv/new/db?field=password&encoding=text").await.unwrap(), "s3cret \" \\ \u{e9}");
    assert_eq!(get(&plugin, "kv/new/db?field=password&version=1").await.unwrap(), "old");
    for (target, status, why) in [
        ("kv/new/absent", 404, "there is no secret"),
        ("kv/new/gone", 404, "there is no secret"),
        ("kv/new/db?field=user", 404, "no field \"user\""),
        ("kv/other/db", 404, "no engine \"other\""),
        ("kv/old/db?version=1", 400, "not known here"),
        ("kv/new/db?version=x", 400, "version must be a number"),
        ("kv/old/db?encoding=base64", 400, "goes with field"),
        ("kv/old/db?field=n&encoding=base64", 400, "no text"),
        ("kv/old/db?field=data&encoding=hex", 400, "encoding must be"),
        ("kv/new/db?field=password&encoding=base64", 502, "not base64"),
        ("kv/new/forbidden", 502, "does not let the key broker"),
    ] {
        let error = get(&plugin, target).await.unwrap_err();
        assert_eq!(error.parts().0.as_u16(), status, "{target}: {error}");
        assert!(error.to_string().contains(why), "{target}: {error}");
    }
    for (method, target) in [(Method::POST, "kv/new/db"), (Method::DELETE, "kv/new/db")] {
        let error = ask(&plugin, method, target, "").await.unwrap_err();
        assert!(matches!(error, PluginError::Method { .. }), "{error}");
    }
    for target in ["kv", "kv/new", "x/y", "transit/main/image", "transit/main/image/encrypt"] {
        let error = get(&plugin, target).await.unwrap_err();
        assert!(matches!(error, PluginError::Path(_)), "{target}: {error}");
    }
}

#[tokio::test]
async fn transit_decrypts_and_makes_keys() {
    let server = Server::start().await;
    let plugin = server.plugin().await;
    assert_eq!(get(&plugin, "transit/main/image/decrypt?ciphertext=vault:v1:good").await.unwrap(), "plain");
    let body = json!({"ciphertext": "vault:v1:derived", "context": "Y3R4"}).to_string();
    assert_eq!(ask(&plugin, Method::POST, "transit/main/image/decrypt", &body).await.unwrap(), "derived");
    let made: Value =
        serde_json::from_str(&get(&plugin, "transit/main/image/datakey").await.unwrap()).unwrap();
    assert_eq!(made, json!({"plaintext": "AAECAw==", "ciphertext": "vault:v1:wrapped"}));
    for (target, body, status, why) in [
        ("transit/main/image/decrypt?ciphertext=x", "", 400, "invalid ciphertext: no prefix"),
        ("transit/main/image/decrypt", "", 400, "ciphertext (vault:v1:…) is missing"),
        ("transit/main/image/decrypt", "{\"colour\": 1}", 400, "body: unknown field"),
        ("transit/main/image/decrypt?ciphertext=x", "{}", 400, "not both"),
        ("transit/main/image/decrypt?ciphertext=x&context=%25", "", 400, "context must be base64"),
        ("transit/main/image/decrypt?ciphertext=vault:v1:odd", "", 502, "not base64"),
        ("transit/main/image/datakey?bits=100", "", 400, "bits must be"),
        ("transit/main/image/datakey", "{\"bits\": 100}", 400, "bits must be"),
        ("transit/main/other/decrypt?ciphertext=x", "", 404, "not given to guests"),
        ("transit/main/unknown/decrypt?ciphertext=x", "", 404, "no such key"),
        ("transit/absent/image/decrypt?ciphertext=x", "", 404, "no engine"),
    ] {
        let error = ask(&plugin, Method::POST, target, body).await.unwrap_err();
        assert_eq!(error.parts().0.as_u16(), status, "{target}: {error}");
        assert!(error.to_string().contains(why), "{target}: {error}");
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced() {
    let server = Server::start().await;
    let plugin = server.plugin().await;
    // Another agent has put a new token into the file, and the old one is over.
    server.shared.lock().unwrap().tokens = vec!["hvs.second".to_owned()];
    let error = get(&plugin, "kv/old/db").await.unwrap_err();
    assert!(error.to_string().contains("does not let the key broker"), "{error}");
    std::fs::write(server.folder.path().join("token"), "hvs.second").unwrap();
    get(&plugin, "kv/old/db").await.unwrap();
    // AppRole logs in again by itself.
    let approle = server.config("method = \"approle\", role_id_file = \"role\", secret_id_file = \"secret\"");
    let plugin = server.plugin_with(&approle).await.unwrap();
    get(&plugin, "kv/old/db").await.unwrap();
    server.shared.lock().unwrap().tokens.clear();
    get(&plugin, "kv/old/db").await.unwrap();
    assert_eq!(server.called("POST auth/approle/login"), 2);
    // One that is wrong.
    std::fs::write(server.folder.path().join("secret"), "other").unwrap();
    server.shared.lock().unwrap().tokens.clear();
    let PluginError::Upstream { logged, .. } = get(&plugin, "kv/old/db").await.unwrap_err() else { panic!() };
    assert!(logged.contains("403") && !logged.contains("secret-id"), "{logged}");
}

#[tokio::test]
async fn a_token_is_renewed_while_nobody_asks() {
    let server = Server::start().await;
    server.shared.lock().unwrap().ttl = 2;
    let _plugin = server.plugin().await;
    while server.called("POST auth/token/renew-self") < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_fails_is_told_apart() {
    let server = Server::start().await;
    let plugin = server.plugin().await;
    for (fault, told, logged_why) in [
        (Fault::Sealed, "sealed or in maintenance", "Vault is sealed"),
        (Fault::Redirect, "the vault failed", "a redirect, which is not followed"),
        (Fault::Garbage, "not understood", "differs at line 1"),
        (Fault::Huge, "not understood", "larger than 2097152 bytes"),
        (Fault::Hang, "not reachable at the moment", "timed out"),
    ] {
        server.fault(Some(fault));
        let error = get(&plugin, "kv/old/db?field=data").await.unwrap_err();
        assert_eq!(error.parts().0.as_u16(), 502);
        assert!(error.to_string().contains(told), "{error}");
        let PluginError::Upstream { logged, .. } = error else { panic!() };
        assert!(logged.contains(logged_why), "{logged}");
        assert!(!logged.contains("hvs."), "{logged}");
    }
    server.fault(None);
    get(&plugin, "kv/old/db").await.unwrap();
}

#[tokio::test]
async fn nothing_but_the_configured_certificate_is_trusted() {
    let (server, other) = (Server::start().await, Server::start().await);
    std::fs::copy(other.folder.path().join("ca.pem"), server.folder.path().join("ca.pem")).unwrap();
    let plugin = server.plugin().await;
    let PluginError::Upstream { logged, told } = get(&plugin, "kv/old/db").await.unwrap_err() else {
        panic!()
    };
    assert!(told.contains("not reachable") && logged.contains("certificate"), "{told}: {logged}");
    assert!(server.shared.lock().unwrap().calls.is_empty());
    // Files that are not there, or are no certificate, are told at the start.
    let token = server.config("method = \"token\", token_file = \"token\"");
    let absent =
        server.plugin_with(&token.replace("token_file = \"token\"", "token_file = \"absent\"")).await;
    assert!(absent.unwrap_err().to_string().contains("absent"));
    std::fs::write(server.folder.path().join("ca.pem"), "nothing").unwrap();
    assert!(server.plugin_with(&token).await.unwrap_err().to_string().contains("hold no certificate"));
    std::fs::remove_file(server.folder.path().join("ca.pem")).unwrap();
    assert!(server.plugin_with(&token).await.unwrap_err().to_string().contains("cannot be read"));
}
