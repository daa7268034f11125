//! Images that cosign and skopeo signed, and that these programs' own checks would let pass.
//!
//! cosign comes with Debian from trixie on; where it lies elsewhere, `KATA_CC_COSIGN` names it, and `KATA_CC_SKOPEO` names a skopeo: that of
//! bookworm was built without Sigstore.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../src/signature/test_utils.rs"]
mod sign;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Guard, Image, RegistryServer, missing, run};
use kata_cc_image::signature::{FileMaterial, SignatureError};
use kata_cc_image::{ClientConfig, ImageClient, PullError, SignaturePolicy, Verified};
use kata_cc_test_vectors::skip;
use serde_json::{Value, json};

/// The program, by a variable or at its place.
fn program(variable: &str, name: &str, part: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| Path::new("/usr/bin").join(name), PathBuf::from);
    if !path.exists() {
        skip(
            part,
            &format!(
                "{name} is not installed ({} is not there; {variable} can name another)",
                path.display()
            ),
        );
        return None;
    }
    Some(path)
}

/// A registry with the sample image as `test:1`.
fn place(dir: &Path) -> Option<RegistryServer> {
    if missing(&["docker-registry", "skopeo"]) {
        return None;
    }
    let server = RegistryServer::start(Guard::Open);
    Image::sample().layout(&dir.join("layout"));
    let from = format!("oci:{}:t", dir.join("layout").display());
    run(
        "skopeo",
        &["copy", "-q", "--dest-tls-verify=false", &from, &format!("docker://{}/test:1", server.host)],
    );
    Some(server)
}

async fn verify(server: &RegistryServer, requirement: &Value) -> Result<Verified, PullError> {
    let policy = SignaturePolicy::new(sign::policy(requirement).as_bytes(), Arc::new(FileMaterial)).unwrap();
    let config = ClientConfig {
        insecure_registries: vec![server.host.clone()],
        signatures: Some(Arc::new(policy)),
        ..ClientConfig::default()
    };
    let verified = ImageClient::new(config)?.verify(&format!("{}/test:1", server.host)).await?;
    Ok(verified.1.unwrap())
}

fn word(error: &PullError) -> &'static str {
    match error {
        PullError::Signature(SignatureError::Refused(refusal)) => refusal.reasons[0].reason.word(),
        other => panic!("{other}"),
    }
}

fn by_file(file: &Path, identity: &str) -> Value {
    json!({"type": "sigstoreSigned", "keyPath": file, "signedIdentity": {"type": identity}})
}

fn cosign(program: &Path, dir: &Path, args: &[&str]) -> (bool, String) {
    let output =
        Command::new(program).args(args).current_dir(dir).env("COSIGN_PASSWORD", "test").output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn signed_by_cosign() {
    let Some(program) = program("KATA_CC_COSIGN", "cosign", "cosign") else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = place(dir.path()) else { return };
    let cosign = |args: &[&str]| cosign(&program, dir.path(), args);
    let (made, why) = cosign(&["generate-key-pair"]);
    assert!(made, "{why}");
    let image = format!("{}/test:1", server.host);
    let common = ["sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--key", "cosign.key"];
    // Nothing may be asked of the public services; how that is said differs between version 2 and 3.
    let (new, why_new) =
        cosign(&[&common[..], &["--use-signing-config=false", "--new-bundle-format", &image]].concat());
    let (old, why_old) = match new {
        true => (false, String::new()),
        false => cosign(&[&common[..], &[&image]].concat()),
    };
    assert!(new || old, "{why_new}\n{why_old}");
    let key = dir.path().join("cosign.pub");
    let named = verify(&server, &by_file(&key, "matchRepository")).await;
    if new {
        assert_eq!(word(&named.unwrap_err()), "wrong-identity");
        let verified = verify(&server, &by_file(&key, "matchDigestOnly")).await.unwrap();
        assert!(verified.signatures[0].contains("referrer"), "{verified:?}");
        let old = ["--use-signing-config=false", "--new-bundle-format=false", &image];
        let (made, why) = cosign(&[&common[..], &old].concat());
        assert!(made, "{why}");
    }
    let verified = verify(&server, &by_file(&key, "matchRepository")).await.unwrap();
    assert!(verified.signatures[0].contains(".sig"), "{verified:?}");
    let other = sign::Key::new();
    let refused = verify(&server, &sign::by_key(&other, "matchRepository")).await.unwrap_err();
    assert_eq!(word(&refused), "wrong-key");
}

#[tokio::test]
async fn signed_by_skopeo() {
    let Some(program) = program("KATA_CC_SKOPEO", "skopeo", "skopeo-sigstore") else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = place(dir.path()) else { return };
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("pass"), "test").unwrap();
    std::fs::create_dir(at("registries.d")).unwrap();
    let use_attachments = "default-docker:\n  use-sigstore-attachments: true\n";
    std::fs::write(at("registries.d/default.yaml"), use_attachments).unwrap();
    let skopeo = |args: &[&str]| {
        let output = Command::new(&program).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (made, why) =
        skopeo(&["generate-sigstore-key", "--output-prefix", &at("key"), "--passphrase-file", &at("pass")]);
    if !made {
        skip("skopeo-sigstore", &format!("this skopeo makes no Sigstore keys: {}", why.trim()));
        return;
    }
    let (from, to) = (format!("oci:{}:t", at("layout")), format!("docker://{}/test:1", server.host));
    let (made, why) = skopeo(&[
        "--registries.d",
        &at("registries.d"),
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--sign-by-sigstore-private-key",
        &at("key.private"),
        "--sign-passphrase-file",
        &at("pass"),
        &from,
        &to,
    ]);
    assert!(made, "{why}");
    // skopeo names the tag: the default identity holds.
    let key = dir.path().join("key.pub");
    for identity in ["matchExact", "matchRepoDigestOrExact", "matchRepository"] {
        verify(&server, &by_file(&key, identity)).await.unwrap();
    }
    let other = sign::Key::new();
    let refused = verify(&server, &sign::by_key(&other, "matchExact")).await.unwrap_err();
    assert_eq!(word(&refused), "wrong-key");
}
