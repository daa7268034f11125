//! What the guest's client puts on the wire, byte for byte, against the facts of protocol 0.4.0; and what it makes of each
//! answer, in the forms of Trustee's server. The server here plays recorded answers and keeps what it was asked.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_kbs_client::{
    ClientError, Endpoint, EvidenceProvider, KbsClient, KbsConfig, KeyAlgorithm, RetryPolicy, TeeKey,
};
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_kbs_protocol::{ResourcePath, Tee, base64_url};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// One request as it came.
#[derive(Debug, Clone)]
struct Seen {
    line: String,
    head: String,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// An answer: status, further header lines, body.
#[derive(Clone)]
struct Reply(u16, String, String);

fn reply(status: u16, body: impl ToString) -> Reply {
    Reply(status, String::new(), body.to_string())
}

/// `Set-Cookie` as Trustee's server writes it.
const COOKIE: &str =
    "set-cookie: kbs-session-id=0123456789abcdef0123456789abcdef; Expires=Thu, 26 Nov 2026 08:00:00 GMT\r\n";
const NONCE: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

fn challenge(extra: &Value) -> Reply {
    Reply(200, COOKIE.to_owned(), json!({"nonce": NONCE, "extra-params": extra}).to_string())
}

fn token() -> String {
    format!("h.{}.s", base64_url(br#"{"iat": 1000, "exp": 1300}"#))
}

fn attested() -> Reply {
    Reply(200, COOKIE.to_owned(), json!({"token": token()}).to_string())
}

/// An error in the form of Trustee's server.
fn error(status: u16, name: &str, detail: &str) -> Reply {
    let kind = format!("https://github.com/confidential-containers/kbs/errors/{name}");
    reply(status, json!({"type": kind, "detail": detail}))
}

/// Answers with `replies` in turn (then 500), and gives back what it was asked.
async fn server(replies: Vec<Reply>) -> (String, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut replies = replies.into_iter();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            let request = loop {
                let mut piece = [0; 4096];
                let count = stream.read(&mut piece).await.unwrap();
                bytes.extend_from_slice(&piece[..count]);
                let text = String::from_utf8(bytes.clone()).unwrap();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let line = head.lines().next().unwrap().to_owned();
                let seen = Seen { line, head: head.to_owned(), body: body.to_owned() };
                let length: usize = seen.header("content-length").map_or(0, |l| l.parse().unwrap());
                if body.len() == length || count == 0 {
                    break seen;
                }
            };
            kept.lock().unwrap().push(request);
            let Reply(status, headers, body) = replies.next().unwrap_or(reply(500, "no more replies"));
            let head = format!(
                "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            // A status of zero is a connection that breaks.
            if status != 0 {
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(body.as_bytes()).await.unwrap();
            }
        }
    });
    (address, seen)
}

/// Evidence that shows what it was asked to bind.
#[derive(Default)]
struct Showing {
    devices: bool,
    asked: Mutex<Vec<Vec<u8>>>,
}

#[async_trait]
impl EvidenceProvider for Showing {
    fn tee(&self) -> Tee {
        Tee::Snp
    }

    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String> {
        self.asked.lock().unwrap().push(report_data.to_vec());
        Ok(json!({"shown": hex::encode(report_data)}))
    }

    async fn additional_evidence(&self, report_data: &[u8]) -> Result<Option<Value>, String> {
        Ok(self.devices.then(|| json!({"nvidia": {"bound": hex::encode(report_data)}})))
    }
}

fn config(url: &str) -> KbsConfig {
    KbsConfig {
        endpoint: Endpoint { url: url.to_owned(), ..Endpoint::default() },
        allow_http: true,
        retry: RetryPolicy {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(20),
            deadline: Duration::from_secs(60),
        },
        ..KbsConfig::default()
    }
}

fn client(url: &str) -> KbsClient {
    KbsClient::new(config(url), Arc::new(Showing::default())).unwrap()
}

fn path() -> ResourcePath {
    "kbs:///default/key/1".parse().unwrap()
}

#[tokio::test]
async fn the_requests_are_these_bytes() {
    let (url, seen) = server(vec![
        challenge(&json!("")),
        attested(),
        error(404, "PluginNotFound", "Plugin resource not found"),
    ])
    .await;
    let init_data = "algorithm = \"sha384\"\n";
    let config = KbsConfig { init_data: Some(init_data.to_owned()), ..config(&url) };
    let client = KbsClient::new(config, Arc::new(Showing::default())).unwrap();
    let refused = client.get_resource(&path()).await.unwrap_err();
    assert!(matches!(refused, ClientError::NotFound { .. }), "{refused}");
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3, "404 ends at once");

    let [auth, attest, get] = [&seen[0], &seen[1], &seen[2]];
    assert_eq!(auth.line, "POST /kbs/v0/auth HTTP/1.1");
    assert_eq!(auth.header("content-type"), Some("application/json"));
    assert!(auth.header("user-agent").unwrap().starts_with("kata-cc-kbs-client/"));
    assert_eq!(
        auth.body,
        r#"{"version":"0.4.0","tee":"snp","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512"]}}"#
    );

    assert_eq!(attest.line, "POST /kbs/v0/attest HTTP/1.1");
    assert_eq!(attest.header("cookie"), Some("kbs-session-id=0123456789abcdef0123456789abcdef"));
    let key = serde_json::to_value(client.key().public()).unwrap();
    let (x, y) = (key["x"].as_str().unwrap(), key["y"].as_str().unwrap());
    assert_eq!((x.len(), y.len()), (43, 43), "fixed length, no padding");
    let shown = {
        // Written out by hand: sorted keys, no blanks, the third key there though it is empty.
        let canonical = format!(
            r#"{{"additional-evidence":"","nonce":"{NONCE}","tee-pubkey":{{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}}}"#
        );
        hex::encode(HashAlgorithm::Sha384.digest(canonical.as_bytes()))
    };
    let expected = json!({
        "init-data": {"format": "toml", "body": init_data},
        "runtime-data": {"nonce": NONCE, "tee-pubkey": key},
        "tee-evidence": {"primary_evidence": {"shown": shown}, "additional_evidence": ""},
    });
    assert_eq!(serde_json::from_str::<Value>(&attest.body).unwrap(), expected);
    let members = serde_json::from_str::<Value>(&attest.body).unwrap()["runtime-data"]["tee-pubkey"].clone();
    assert_eq!(members.as_object().unwrap().len(), 5, "a further member would not be hashed by the server");

    assert_eq!(get.line, "GET /kbs/v0/resource/default/key/1 HTTP/1.1");
    assert_eq!(get.header("cookie"), Some("kbs-session-id=0123456789abcdef0123456789abcdef"));
    assert_eq!(get.body, "");
}

#[tokio::test]
async fn without_init_data_there_is_none_on_the_wire_that_a_server_could_misread() {
    let (url, seen) = server(vec![challenge(&json!("")), attested()]).await;
    client(&url).attest().await.unwrap();
    let body: Value = serde_json::from_str(&seen.lock().unwrap()[1].body).unwrap();
    assert!(body.get("init-data").is_none_or(Value::is_null), "{body}");
}

#[tokio::test]
async fn the_selected_hash_is_used_and_unknown_ones_are_refused() {
    for (selected, bytes) in [("sha256", 32), ("SHA384", 48), ("sha512", 64)] {
        let (url, _) =
            server(vec![challenge(&json!({"selected-hash-algorithm": selected})), attested()]).await;
        let evidence = Arc::new(Showing::default());
        KbsClient::new(config(&url), evidence.clone()).unwrap().attest().await.unwrap();
        assert_eq!(evidence.asked.lock().unwrap()[0].len(), bytes, "{selected}");
    }
    for selected in [json!("sm3"), json!(7)] {
        let (url, _) = server(vec![challenge(&json!({"selected-hash-algorithm": selected}))]).await;
        let refused = client(&url).attest().await.unwrap_err();
        assert!(matches!(&refused, ClientError::Protocol { why, .. } if why.contains("hash")), "{refused}");
    }
}

#[tokio::test]
async fn evidence_of_devices_is_bound_as_the_text_that_is_sent() {
    let (url, seen) = server(vec![challenge(&json!("")), attested()]).await;
    let evidence = Arc::new(Showing { devices: true, ..Showing::default() });
    let client = KbsClient::new(config(&url), evidence.clone()).unwrap();
    client.attest().await.unwrap();
    let body: Value = serde_json::from_str(&seen.lock().unwrap()[1].body).unwrap();
    let sent = body["tee-evidence"]["additional_evidence"].as_str().unwrap();
    let key = serde_json::to_value(client.key().public()).unwrap();
    let device = canonical(&json!({"nonce": NONCE, "tee-pubkey": key}));
    let bound = hex::encode(HashAlgorithm::Sha384.digest(&device));
    assert_eq!(sent, json!({"nvidia": {"bound": bound}}).to_string());
    let primary = canonical(&json!({"additional-evidence": sent, "nonce": NONCE, "tee-pubkey": key}));
    assert_eq!(evidence.asked.lock().unwrap()[0], HashAlgorithm::Sha384.digest(&primary));
}

#[tokio::test]
async fn keys_are_trustees() {
    for (algorithm, members) in [
        (KeyAlgorithm::EcdhP256, json!(["EC", "ECDH-ES+A256KW", "P-256", 43])),
        (KeyAlgorithm::EcdhP521, json!(["EC", "ECDH-ES+A256KW", "P-521", 88])),
        (KeyAlgorithm::RsaOaep256, json!(["RSA", "RSA-OAEP-256", null, 342])),
    ] {
        let (url, seen) = server(vec![challenge(&json!("")), attested()]).await;
        let config = KbsConfig { key_algorithm: algorithm, ..config(&url) };
        KbsClient::new(config, Arc::new(Showing::default())).unwrap().attest().await.unwrap();
        let body: Value = serde_json::from_str(&seen.lock().unwrap()[1].body).unwrap();
        let key = &body["runtime-data"]["tee-pubkey"];
        let length = key["x"].as_str().or(key["n"].as_str()).unwrap().len();
        assert_eq!(json!([key["kty"], key["alg"], key["crv"], length]), members);
    }
}

/// An answer whose protected header is in an order of its own: what was received is what is authenticated.
#[tokio::test]
async fn an_encrypted_answer_is_opened_whatever_the_order_of_its_header() {
    let Some(text) = kata_cc_test_vectors::read("coco/jwe/cases.json") else { return };
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
    for case in cases.iter().filter(|case| case["strict_jose_valid"] == true) {
        let (url, _) = server(vec![challenge(&json!("")), attested(), reply(200, &case["jwe"])]).await;
        let key = TeeKey::from_pem(case["private_key_pem"].as_str().unwrap().as_bytes()).unwrap();
        let client = KbsClient::with_key(config(&url), key, Arc::new(Showing::default())).unwrap();
        let got = client.get_resource(&path()).await.unwrap();
        let expected =
            kata_cc_kbs_protocol::from_base64_standard(case["plaintext_b64"].as_str().unwrap()).unwrap();
        assert_eq!(*got, expected, "{}", case["name"]);
    }
}

fn lines(seen: &Mutex<Vec<Seen>>) -> Vec<String> {
    let seen = seen.lock().unwrap();
    seen.iter().map(|s| s.line.split(' ').nth(1).unwrap().trim_start_matches("/kbs/v0/").to_owned()).collect()
}

const RESOURCE: &str = "resource/default/key/1";

#[tokio::test]
async fn a_session_that_ended_is_made_again_once() {
    let no_session = || error(401, "TokenNotFound", "Attestation Token not found");
    let (url, seen) = server(vec![
        challenge(&json!("")),
        attested(),
        no_session(),
        challenge(&json!("")),
        attested(),
        no_session(),
    ])
    .await;
    let refused = client(&url).get_resource(&path()).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Refused { status: 401, .. }), "{refused}");
    assert_eq!(lines(&seen), ["auth", "attest", RESOURCE, "auth", "attest", RESOURCE]);
}

#[tokio::test]
async fn what_attesting_again_cannot_mend_is_told_at_once() {
    for (reply, words) in [
        (error(401, "PolicyDeny", "Access denied by policy"), "denies"),
        (error(403, "PolicyDeny", "rule x does not hold"), "rule x"),
        (error(404, "PluginNotFound", "Plugin resource not found"), "has no"),
        (error(401, "PluginInternalError", "Plugin internal error"), "PluginInternalError"),
        (error(500, "SerdeError", "serde"), "500"),
    ] {
        let (url, seen) = server(vec![challenge(&json!("")), attested(), reply]).await;
        let refused = client(&url).get_resource(&path()).await.unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        assert_eq!(lines(&seen), ["auth", "attest", RESOURCE], "{refused}");
    }
}

#[tokio::test]
async fn another_protocol_version_is_told_as_that() {
    let detail = "Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect \
                  =0.2.0 while the request is 0.4.0";
    let (url, seen) = server(vec![error(401, "AttestationError", detail)]).await;
    let refused = client(&url).attest().await.unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, ClientError::Version { .. }), "{text}");
    assert!(text.contains("0.4.0") && text.contains("expect =0.2.0") && text.contains("update"), "{text}");
    assert_eq!(lines(&seen), ["auth"]);
}

#[tokio::test]
async fn refused_evidence_is_final() {
    let detail = "Attestation error: RCAR handshake Attest failed";
    let (url, seen) = server(vec![challenge(&json!("")), error(401, "AttestationError", detail)]).await;
    let refused = client(&url).get_resource(&path()).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Attestation { status: 401, .. }), "{refused}");
    assert_eq!(lines(&seen), ["auth", "attest"]);
}

#[tokio::test]
async fn a_busy_or_broken_way_is_gone_again() {
    let busy = || Reply(503, "retry-after: 1\r\n".to_owned(), "down".to_owned());
    let broken = || reply(0, "");
    let (url, seen) = server(vec![
        busy(),
        challenge(&json!("")),
        // What was sent with this nonce is not sent again.
        broken(),
        challenge(&json!("")),
        reply(429, ""),
        challenge(&json!("")),
        attested(),
        broken(),
        busy(),
        error(404, "PluginNotFound", "none"),
    ])
    .await;
    let refused = client(&url).get_resource(&path()).await.unwrap_err();
    assert!(matches!(refused, ClientError::NotFound { .. }), "{refused}");
    let expected =
        ["auth", "auth", "attest", "auth", "attest", "auth", "attest", RESOURCE, RESOURCE, RESOURCE];
    assert_eq!(lines(&seen), expected);
}

#[tokio::test]
async fn there_is_an_end_to_trying() {
    let (url, seen) = server(vec![reply(503, "down"); 1000]).await;
    let retry = RetryPolicy {
        first: Duration::from_millis(5),
        longest: Duration::from_millis(5),
        deadline: Duration::from_millis(50),
    };
    let client = KbsClient::new(KbsConfig { retry, ..config(&url) }, Arc::new(Showing::default())).unwrap();
    let refused = client.get_resource(&path()).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Busy { status: 503, .. }), "{refused}");
    assert!((1..=40).contains(&lines(&seen).len()));
}

#[tokio::test]
async fn many_calls_attest_once_and_the_token_is_kept() {
    let (url, seen) = server(vec![challenge(&json!("")), attested()]).await;
    let client = Arc::new(client(&url));
    let calls = (0..8).map(|_| {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.token().await.unwrap() })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        assert_eq!(call.await.unwrap().as_str(), token());
    }
    assert_eq!(lines(&seen), ["auth", "attest"]);
    // One that is over is not handed out.
    let short = format!("h.{}.s", base64_url(br#"{"iat": 1000, "exp": 1010}"#));
    let over = || Reply(200, COOKIE.to_owned(), json!({"token": short}).to_string());
    let (url, seen) = server(vec![challenge(&json!("")), over(), challenge(&json!("")), over()]).await;
    let client = self::client(&url);
    client.token().await.unwrap();
    client.token().await.unwrap();
    assert_eq!(lines(&seen).len(), 4);
}
