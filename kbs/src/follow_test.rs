//! A key broker that follows a folder: its resource policy is the bundle's, and nobody else sets it.

use std::path::Path;

use serde_json::json;

use crate::test_utils::{call, kbs, router};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A resource policy that gives `default/...` to all, or nothing to anybody.
fn policy(allow: bool) -> String {
    format!("package policy\nimport rego.v1\ndefault allow := {allow}\n")
}

#[tokio::test]
async fn the_resource_policy_is_the_bundles() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("policies");
    write(&root, "kata-cc-policy.yaml", "format: 1\nname: shop\n");
    write(&root, "resource/policy.rego", &policy(true));
    write(&root, "reference-values/a.json", r#"{"values": {"svn": ["1"]}}"#);
    let kbs = kbs(folder.path(), "[policy_source]\ndirectory = 'policies'\n").await;
    let router = router(&kbs);
    let source = "/kbs/v0/admin/attestation/policy-source";
    let follower = kbs.follower().unwrap();
    follower.start().await.unwrap();
    kbs.take_resource_policy().await;
    let allows = async || {
        let path = ["default", "a", "b"].map(str::to_owned);
        kbs.policy.decide(&json!({}).into(), "resource", &path, &Default::default()).await.unwrap().allow
    };
    assert!(allows().await);
    let status = call(&router, "GET", source, None).await.json();
    assert_eq!((&status["condition"], &status["signed"]), (&json!("in-force"), &json!(false)), "{status}");
    // The three ways to what it sets.
    let encoded = kata_cc_kbs_protocol::base64_url(policy(true).as_bytes());
    let body = json!({"policy": encoded});
    let answer = call(&router, "POST", "/kbs/v0/resource-policy", Some(&body)).await;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 409, "{text}");
    assert!(text.contains("is set by the policy bundle shop") && text.contains("Conflict"), "{text}");
    let value = json!({"version": "0.1.0", "type": "sample", "payload": kata_cc_kbs_protocol::base64_standard(br#"{"svn": ["2"]}"#)});
    assert_eq!(call(&router, "POST", "/kbs/v0/reference-value", Some(&value)).await.status, 409);
    assert_eq!(call(&router, "DELETE", "/kbs/v0/reference-value/svn", None).await.status, 409);
    // Another one, back, and on again.
    write(&root, "resource/policy.rego", &policy(false));
    follower.look().await;
    kbs.take_resource_policy().await;
    assert!(!allows().await);
    let pin = format!("{source}/pin");
    let wrong = call(&router, "PUT", &pin, Some(&json!({"digest": "zz"}))).await;
    assert_eq!(wrong.status, 404, "{}", String::from_utf8_lossy(&wrong.body));
    let pinned = call(&router, "PUT", &pin, Some(&json!({}))).await.json();
    assert_eq!(pinned["condition"], "pinned", "{pinned}");
    assert!(allows().await, "in force as the call returns");
    let resumed = call(&router, "DELETE", &pin, None).await.json();
    assert_eq!(resumed["condition"], "in-force", "{resumed}");
    assert!(!allows().await);
    write(&root, "resource/policy.rego", "package policy\nallow if {");
    follower.look().await;
    let status = call(&router, "GET", source, None).await.json();
    assert_eq!(status["condition"], "failing");
    assert!(status["last_error"].as_str().unwrap().contains("resource/policy.rego"), "{status}");
    let metrics = kbs.metrics.render();
    for line in [
        "kbs_policy_source_failing 1",
        "kbs_policy_source_looks_total{outcome=\"failed\"} 1",
        "kbs_policy_source_pinned 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!allows().await, "the last good one stays");
}

#[tokio::test]
async fn without_a_source_there_is_nothing_to_pin() {
    let folder = tempfile::tempdir().unwrap();
    let kbs = kbs(folder.path(), "").await;
    let router = router(&kbs);
    let source = "/kbs/v0/admin/attestation/policy-source";
    assert_eq!(call(&router, "GET", source, None).await.json(), json!({"followed": false}));
    let answer = call(&router, "PUT", &format!("{source}/pin"), Some(&json!({}))).await;
    assert_eq!(answer.status, 404);
    assert!(String::from_utf8_lossy(&answer.body).contains("policy_source"));
}

#[test]
fn policies_come_from_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kbs.toml");
    let read = |more: &str| {
        std::fs::write(&path, format!("[http_server]\ninsecure_http = true\n{more}")).unwrap();
        crate::config::Config::read(&path).map_err(|error| error.to_string())
    };
    read("[policy_source]\ndirectory = 'a'\n").unwrap();
    let both = read("[policies]\nresource = 'r'\n[policy_source]\ndirectory = 'a'\n").unwrap_err();
    assert!(both.contains("not from both"), "{both}");
    assert!(read("[policy_source]\nreference = 'a/b:1'\n").unwrap_err().contains("public_key"));
}
