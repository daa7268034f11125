//! Tokens of type `coco_as`: what is sent to Trustee's REST attestation service, and what is made of its answers.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_kbs_client::{ClientError, Endpoint, EvidenceProvider, RetryPolicy, ServiceClient};
use kata_cc_kbs_protocol::{Tee, base64_url, from_base64_url};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Evidence that shows what it was asked to bind.
struct Showing;

#[async_trait]
impl EvidenceProvider for Showing {
    fn tee(&self) -> Tee {
        Tee::Snp
    }

    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String> {
        Ok(json!({"bound": report_data}))
    }
}

/// Answers with `replies` in turn, then closes connections; gives address and what it was asked.
async fn server(replies: Vec<(u16, String)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        for (status, body) in replies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            while !text.ends_with("}") {
                let mut piece = [0; 4096];
                let count = stream.read(&mut piece).await.unwrap();
                text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
            }
            kept.lock().unwrap().push(text);
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (address, seen)
}

fn client(url: &str, init_data: Option<&str>) -> ServiceClient {
    let endpoint = Endpoint { url: url.to_owned(), ..Endpoint::default() };
    let short = Duration::from_millis(20);
    let retry = RetryPolicy { first: short, longest: short, deadline: Duration::from_millis(200) };
    ServiceClient::new(&endpoint, init_data.map(str::to_owned), retry, Arc::new(Showing)).unwrap()
}

fn token(life: u64) -> String {
    format!("h.{}.s", base64_url(json!({"iat": 1000, "exp": 1000 + life}).to_string().as_bytes()))
}

#[tokio::test]
async fn the_request_is_the_attestation_agents_and_the_token_is_kept() {
    let (url, seen) = server(vec![(503, "busy".to_owned()), (200, token(300))]).await;
    let client = client(&url, Some("version = \"0.1.0\""));
    assert_eq!(*client.token().await.unwrap(), token(300));
    assert_eq!(*client.token().await.unwrap(), token(300), "the one that is kept: nobody listens any more");
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    let (head, body) = seen[1].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /attestation HTTP/1.1"), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["policy_ids"], json!([]));
    let request = &body["verification_requests"][0];
    assert_eq!((&request["tee"], request.get("runtime_data")), (&json!("snp"), None));
    assert_eq!(request["init_data"], json!({"init_data_toml": "version = \"0.1.0\""}));
    let evidence = from_base64_url(request["evidence"].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&evidence).unwrap(), json!({"bound": []}));
}

#[tokio::test]
async fn a_token_near_its_end_is_asked_for_anew() {
    let (url, seen) = server(vec![(200, token(10)), (200, token(300))]).await;
    let client = client(&url, None);
    assert_eq!(*client.token().await.unwrap(), token(10));
    assert_eq!(*client.token().await.unwrap(), token(300));
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert!(!seen.lock().unwrap()[0].contains("init_data"));
}

#[tokio::test]
async fn refusals_name_the_service_and_its_reason() {
    for (reply, reason) in [
        ((500, "no reference values".to_owned()), "answers 500: no reference values"),
        ((200, "{\"token\": 1}".to_owned()), "is no JWT"),
        ((200, "a.b".to_owned()), "is no JWT"),
        ((200, "a.b.c d".to_owned()), "is no JWT"),
        ((200, "..".to_owned()), "is no JWT"),
    ] {
        let (url, _) = server(vec![reply]).await;
        let refused = client(&url, None).token().await.unwrap_err();
        assert!(matches!(refused, ClientError::Service { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("attestation service") && text.contains(reason), "{text}");
    }
    let gone = client("http://127.0.0.1:9", None).token().await.unwrap_err().to_string();
    assert!(gone.contains("was not reached"), "{gone}");
}
