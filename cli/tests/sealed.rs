//! `kata-cc secret seal|unseal|keygen` as a user calls them, and CoCo's recorded secrets opened by it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::Node;

#[test]
fn a_secret_is_sealed_and_opened_with_the_right_keys_alone() {
    let node = Node::new();
    let dir = node.path("keys").display().to_string();
    let made = node.json(&["secret", "keygen", "--kid", "owner", "--output-dir", &dir]);
    let (private, public) = (made["private"].as_str().unwrap(), made["public"].as_str().unwrap());
    assert_eq!(std::fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(public).unwrap().contains("\"d\""));
    node.fails(&["secret", "keygen", "--kid", "owner", "--output-dir", &dir], &["exists", "owner-private"]);
    node.fails(&["secret", "keygen", "--kid", "../x", "--output-dir", &dir], &["no name of a key"]);

    let kid = "kbs:///default/signing/owner";
    let signer = ["--signing-kid", kid, "--signing-jwk-path", private];
    let vault = ["secret", "seal", "vault", "--resource-uri", "kbs:///app/password/1"];
    let sealed = node.ok(&[&vault[..], &signer].concat());
    assert!(sealed.starts_with("sealed.eyJ"), "{sealed}");
    let file = node.file("sealed", &sealed);
    let secret = node.file("secret", "hunter2");
    let unseal = ["secret", "unseal", "--file-path", &file, "--key-path", public];
    let resource = format!("kbs:///app/password/1={secret}");
    assert_eq!(node.ok(&[&unseal[..], &["--resource", &resource]].concat()), "hunter2");
    node.fails(&unseal, &["kbs:///app/password/1", "not at hand"]);

    let key = node.file("kek", [7; 32]);
    let envelope = ["secret", "seal", "envelope", "--key-id", "kbs:///app/kek/1"];
    let with = ["--key-file", &key, "--file-path", &secret];
    let sealed = node.ok(&[&envelope[..], &with, &signer].concat());
    assert!(!sealed.contains("hunter2"));
    let file = node.file("sealed-envelope", &sealed);
    let unseal = ["secret", "unseal", "--file-path", &file, "--key-path", public];
    let resource = format!("kbs:///app/kek/1={key}");
    assert_eq!(node.ok(&[&unseal[..], &["--resource", &resource]].concat()), "hunter2");
    let other = node.file("other-kek", [8; 32]);
    let resource = format!("kbs:///app/kek/1={other}");
    node.fails(&[&unseal[..], &["--resource", &resource]].concat(), &["does not open", "kbs:///app/kek/1"]);
    let short = node.file("short-kek", [8; 16]);
    let with = ["--key-file", &short, "--file-path", &secret];
    node.fails(&[&envelope[..], &with, &signer].concat(), &["16 bytes", "32"]);

    node.json(&["secret", "keygen", "--kid", "stranger", "--output-dir", &dir]);
    let stranger = node.path("keys/stranger-public.json").display().to_string();
    let unseal = ["secret", "unseal", "--file-path", &file, "--key-path", &stranger];
    node.fails(&unseal, &["signature does not verify"]);
    let nonsense = node.file("nonsense", "nonsense");
    node.fails(&["secret", "unseal", "--file-path", &nonsense, "--key-path", public], &["sealed."]);
    let ran = node.run(&["secret", "unseal", "--file-path", &nonsense]);
    assert_eq!(ran.code, 2, "a signer's key must be given: {ran:?}");
}

#[test]
fn the_recorded_secrets_open_with_cocos_key() {
    let vector = |name: &str| kata_cc_test_vectors::read(&format!("coco/sealed/{name}"));
    let (Some(cases), Some(jwk)) = (vector("sealed.json"), vector("test-key.json")) else { return };
    let node = Node::new();
    let (key, resource) =
        (node.file("key", String::from_utf8(jwk).unwrap()), node.file("resource", "resource"));
    let resource = format!("kbs:///one/2/trois={resource}");
    let cases: serde_json::Value = serde_json::from_slice(&cases).unwrap();
    for case in cases["secrets"].as_array().unwrap() {
        let file = node.file("sealed", case["sealed"].as_str().unwrap());
        let arguments =
            ["secret", "unseal", "--file-path", &file, "--key-path", &key, "--resource", &resource];
        let ran = node.run(&arguments);
        let accepted = case["verdict_with_test-key"] == "accept";
        assert_eq!(ran.code == 0, accepted, "{}: {ran:?}", case["name"]);
        assert_eq!(ran.stdout == "resource", accepted, "{ran:?}");
        if case["name"] == "vault, unsigned old form" {
            let lax =
                ["secret", "unseal", "--file-path", &file, "--skip-verification", "--resource", &resource];
            assert_eq!(node.ok(&lax), "resource");
        }
    }
}
