//! `kata-cc image verify`: exit codes, text and JSON, against a server that has one image without signatures.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use common::Node;
use serde_json::{Value, json};

/// A registry with one image, whatever is asked for; gives its host.
fn registry() -> String {
    let empty = format!("sha256:{}", "0".repeat(64));
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": empty, "size": 2});
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media, "config": config, "layers": []}).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
            let (status, body) = match path.ends_with("/manifests/1") {
                true => (200, manifest.as_str()),
                false => (if path == "/v2/" { 200 } else { 404 }, "{}"),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} x\r\ncontent-type: {media}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    host
}

#[test]
fn an_image_is_verified_by_a_policy() {
    let (node, host) = (Node::new(), registry());
    let image = format!("{host}/team/app:1");
    let key = node.file("cosign.pub", "no key");
    let policy =
        |name: &str, requirement: Value| node.file(name, json!({"default": [requirement]}).to_string());
    let open = policy("open.json", json!({"type": "insecureAcceptAnything"}));
    let verify = |policy: &str, more: &[&str]| {
        node.run(
            &[&["image", "verify", &image, "--policy", policy, "--insecure-registry", &host], more].concat(),
        )
    };
    let passed = verify(&open, &[]);
    assert!(passed.code == 0 && passed.stdout.contains("the scope demands none"), "{passed:?}");
    let closed = policy("closed.json", json!({"type": "reject"}));
    let refused = verify(&closed, &[]);
    assert!(
        refused.code == 1 && refused.stdout.contains("scope default, requirement 0 (reject)"),
        "{refused:?}"
    );
    let refused = verify(&closed, &["--json"]);
    let answer: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!((refused.code, &answer["verified"]), (1, &json!(false)));
    assert_eq!(answer["reasons"][0]["reason"], "scope-rejects");
    // What cannot be read or reached.
    let resource = "kbs:///default/key/1";
    let keyed = policy("keyed.json", json!({"type": "sigstoreSigned", "keyPath": resource}));
    let by_file = format!("{resource}={key}");
    let malformed = policy("malformed.json", json!({"type": "odd"}));
    for (policy, more, words) in [
        ("/nonexistent/policy.json", &[][..], "cannot read"),
        (&malformed, &[], "default[0].type"),
        (&keyed, &[], "only files are read here"),
        (&keyed, &["--key", &by_file], "holds no PEM text"),
    ] {
        let ran = verify(policy, more);
        assert!(ran.code == 2 && ran.stdout.is_empty() && ran.stderr.contains(words), "{words}: {ran:?}");
    }
    let gone = "127.0.0.1:1/team/app:1";
    let ran = node.run(&["image", "verify", gone, "--policy", &open, "--insecure-registry", "127.0.0.1:1"]);
    assert!(ran.code == 2 && !ran.stderr.is_empty(), "{ran:?}");
}
