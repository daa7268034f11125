//! `kata-cc token`: exit codes, text and JSON, on tokens made here and on the shared vectors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Node;
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_attestation_service::token::TokenBroker;
use serde_json::{Value, json};

#[test]
fn a_token_is_verified_by_its_key_set() {
    let node = Node::new();
    let key = || SigningKey::from_pem(SigningKey::generate_pem("ES384").unwrap().as_bytes()).unwrap();
    let (ours, theirs) = (TokenBroker::new(key(), "me", 5), TokenBroker::new(key(), "me", 5));
    let now = kata_cc_attestation_service::now();
    let submods = json!({"cpu0": {"ear.status": "affirming"}});
    let token = node.file("token", format!("{}\n", ours.issue(&submods, now).unwrap()));
    let jwks = node.file("jwks.json", ours.jwks().to_string());
    let other = node.file("other.json", theirs.jwks().to_string());
    let text = node.ok(&["token", "verify", &token, "--jwks", &jwks]);
    assert!(text.starts_with("verified\n") && text.contains("cpu0      affirming"), "{text}");
    let answer = node.json(&["token", "verify", &token, "--jwks", &other, "--jwks", &jwks]);
    assert_eq!((&answer["valid"], &answer["claims"]["iss"]), (&json!(true), &json!("me")));
    let refused = node.run(&["token", "verify", &token, "--jwks", &other]);
    assert!(refused.code == 1 && refused.stdout.contains("not trusted"), "{refused:?}");
    let late =
        node.run(&["--json", "token", "verify", &token, "--jwks", &jwks, "--at", "2099-01-01T00:00:00Z"]);
    let answer: Value = serde_json::from_str(&late.stdout).unwrap();
    assert_eq!((late.code, &answer["valid"], &answer["reason"]), (1, &json!(false), &json!("expired")));
    let shown = node.json(&["token", "show", &token]);
    assert_eq!((&shown["header"]["alg"], &shown["claims"]["iss"]), (&json!("ES384"), &json!("me")));
    assert!(node.ok(&["token", "show", &token]).contains("algorithm ES384"));
    // What cannot be read.
    let damaged = node.file("damaged", "a.b.c");
    let empty = node.file("empty.json", r#"{"keys": []}"#);
    for arguments in [
        &["token", "verify", &damaged, "--jwks", &jwks][..],
        &["token", "verify", "/nonexistent/x", "--jwks", &jwks],
        &["token", "verify", &token, "--jwks", &empty],
        &["token", "verify", &token, "--jwks", &token],
        &["token", "verify", &token, "--cert", &jwks],
        &["token", "verify", &token],
        &["token", "verify", &token, "--jwks", &jwks, "--at", "tomorrow"],
        &["token", "show", &damaged],
    ] {
        let ran = node.run(arguments);
        assert!(ran.code == 2 && !ran.stderr.is_empty() && ran.stdout.is_empty(), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn vectors_by_their_certificates() {
    let Some(bytes) = kata_cc_test_vectors::read("coco/ear/tokens.json") else { return };
    let cases: Value = serde_json::from_slice(&bytes).unwrap();
    let node = Node::new();
    let pem = node.file("root.pem", cases["root_pem"].as_str().unwrap());
    // `now` of the vectors.
    assert_eq!(cases["now"], 1_760_000_000);
    for case in cases["tokens"].as_array().unwrap() {
        let token = node.file("token", case["token"].as_str().unwrap());
        let arguments = ["token", "verify", &token, "--cert", &pem, "--at", "2025-10-09T08:53:20Z"];
        let expected = if case["verdict_trusted_root"] == "accept" { 0 } else { 1 };
        let ran = node.run(&arguments);
        assert_eq!(ran.code, expected, "{}: {ran:?}", case["name"]);
    }
}
