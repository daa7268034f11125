//! A service that follows a folder: taken whole or not at all, owned, kept, pinned.

use std::path::Path;

use kata_cc_policy_bundle::sign::Signer;
use serde_json::json;

use super::*;
use crate::service::{Evaluate, POLICY_NAMESPACE};
use crate::store::{Store, StoreKey};
use crate::token::TokenBroker;
use crate::verify::SampleVerifier;

const PLACE: ResourcePolicyPlace =
    ResourcePolicyPlace { namespace: "kbs", name: "resource-policy", default: "package policy\n" };

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn policy(hardware: i8) -> String {
    format!("package policy\nimport rego.v1\ntrust_claims := {{\"hardware\": {hardware}}}\n")
}

/// A bundle with every part that a service follows.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let key = crate::jws::SigningKey::generate_pem("ES256").unwrap();
    let key = crate::jws::SigningKey::from_pem(key.as_bytes()).unwrap();
    write(
        root,
        "kata-cc-policy.yaml",
        "format: 1\nname: shop\nversion: '1'\ntrust: [{name: ci, key: trust/ci.pem}]\n",
    );
    write(root, "trust/ci.pem", &key.public_pem().unwrap());
    write(root, "attestation/default_cpu.rego", &policy(2));
    write(root, "attestation/default_cpu.test.yaml", "cases: [{name: a, claims: {}, status: affirming}]\n");
    write(root, "resource/policy.rego", "package policy\nimport rego.v1\ndefault allow := false\n");
    write(
        root,
        "reference-values/a.json",
        r#"{"values": {"svn": ["1"], "launch": ["x"]}, "expires": "2099-01-01T00:00:00Z"}"#,
    );
    folder
}

async fn service(store: &Store) -> Arc<AttestationService> {
    let pem = crate::jws::SigningKey::generate_pem("ES256").unwrap();
    let key = crate::jws::SigningKey::from_pem(pem.as_bytes()).unwrap();
    let verifier = Box::new(SampleVerifier { enabled: true });
    let service = AttestationService::new(store.clone(), verifier, TokenBroker::new(key, "test", 5));
    Arc::new(service.await.unwrap())
}

async fn store() -> Store {
    Store::in_memory(StoreKey::ephemeral()).await.unwrap()
}

fn follower(service: &Arc<AttestationService>, folder: &Path, key: Option<Vec<u8>>) -> Follower {
    let source = Source::Folder { path: folder.to_owned(), key };
    let every = Duration::from_secs(60);
    Follower::new(Arc::clone(service), source, every, Some(PLACE), FollowMetrics::default())
}

async fn resource_policy(store: &Store) -> String {
    let text = store.get(PLACE.namespace, PLACE.name).await.unwrap();
    text.map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
}

/// What guests with any evidence are found to be.
async fn verdict(service: &AttestationService) -> &'static str {
    let request = Evaluate {
        tee: kata_cc_kbs_protocol::Tee::Sample,
        evidence: json!({"svn": "1", "report_data": ""}),
        binding: None,
        hash: kata_cc_kbs_protocol::rcar::HashAlgorithm::Sha384,
        init_data: None,
        policy_id: String::new(),
    };
    service.evaluate(&request).await.unwrap().vector.status().name()
}

#[tokio::test]
async fn a_bundle_is_in_force_whole_and_nobody_else_sets_what_it_sets() {
    let (folder, store) = (folder(), store().await);
    let service = service(&store).await;
    service.set_reference_values(&[("mine".to_owned(), json!("m"))].into()).await.unwrap();
    let follower = follower(&service, folder.path(), None);
    follower.start().await.unwrap();
    let status = follower.status().await.unwrap();
    assert_eq!(status.condition, Condition::InForce, "{status:?}");
    assert_eq!(status.in_force.as_ref().unwrap().changes, 4);
    assert_eq!(verdict(&service).await, "affirming");
    assert!(resource_policy(&store).await.contains("default allow := false"));
    let record = service.reference_record("svn").await.unwrap();
    assert_eq!((record.source.kind.as_str(), record.value.clone()), (KIND, json!(["1"])));
    assert_eq!(record.expiration.as_deref(), Some("2099-01-01T00:00:00Z"));
    assert_eq!(service.owned.load().trusted[0].name, "ci");

    let refused = |result: Result<(), ServiceError>| match result {
        Err(error @ ServiceError::Owned { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let told = refused(service.set_policy("default_cpu", &policy(97)).await);
    assert!(told.contains("attestation policy default_cpu is set by the policy bundle shop 1"), "{told}");
    refused(service.delete_policy("default_cpu", "me").await);
    refused(service.set_reference_values(&[("svn".to_owned(), json!("2"))].into()).await);
    refused(service.delete_reference_value("svn", "me").await.map(drop));
    refused(service.expire_reference_value("svn", Some(1), "me").await.map(drop));
    refused(service.check_resource_policy_free());
    // What it does not name is free.
    service.set_policy("other_cpu", &policy(2)).await.unwrap();
    service.set_reference_values(&[("mine".to_owned(), json!("n"))].into()).await.unwrap();

    // The same again changes nothing, also after a restart.
    let records = async || store.audit().verify(None).await.unwrap().records;
    let before = records().await;
    follower.look().await;
    let again = self::follower(&service, folder.path(), None);
    again.start().await.unwrap();
    assert_eq!(records().await, before, "nothing was written");
}

#[tokio::test]
async fn what_is_taken_out_of_the_bundle_is_taken_away() {
    let (folder, store) = (folder(), store().await);
    let service = service(&store).await;
    service.set_reference_values(&[("mine".to_owned(), json!("m"))].into()).await.unwrap();
    write(folder.path(), "attestation/gone_cpu.rego", &policy(2));
    let follower = follower(&service, folder.path(), None);
    follower.start().await.unwrap();
    assert!(service.policy_ids().await.contains(&"gone_cpu".to_owned()));
    std::fs::remove_file(folder.path().join("attestation/gone_cpu.rego")).unwrap();
    std::fs::remove_file(folder.path().join("resource/policy.rego")).unwrap();
    write(folder.path(), "reference-values/a.json", r#"{"values": {"svn": ["2"]}}"#);
    follower.look().await;
    assert_eq!(follower.status().await.unwrap().in_force.unwrap().changes, 4);
    assert!(!service.policy_ids().await.contains(&"gone_cpu".to_owned()));
    assert_eq!(resource_policy(&store).await, PLACE.default);
    let values = service.reference_values().await.unwrap();
    assert_eq!(values, [("mine".to_owned(), json!("m")), ("svn".to_owned(), json!(["2"]))].into());
    service.check_resource_policy_free().unwrap();
}

#[tokio::test]
async fn a_bad_bundle_changes_nothing_and_is_told() {
    let (folder, store) = (folder(), store().await);
    let service = service(&store).await;
    let follower = follower(&service, folder.path(), None);
    follower.start().await.unwrap();
    let good = follower.status().await.unwrap().in_force.unwrap();
    for (path, text, told) in [
        // Its own case says that it should not come out so; a value beside it is new, and stays out too.
        ("attestation/default_cpu.rego", policy(97), "expected affirming, seen contraindicated"),
        (
            "attestation/default_cpu.rego",
            "package policy\nx := 1".to_owned(),
            "no rule data.policy.trust_claims",
        ),
        ("attestation/default_cpu.rego", "package policy\nx if {".to_owned(), "default_cpu"),
        ("reference-values/b.json", r#"{"values": {"n": null}}"#.to_owned(), "null"),
        ("reference-values/b.json", r#"{"values": {"n": 1}, "expires": "soon"}"#.to_owned(), "soon"),
        ("trust/ci.pem", "no key".to_owned(), "trust/ci.pem"),
        ("kata-cc-policy.yaml", "format: 2\nname: x".to_owned(), "format 2"),
    ] {
        let kept = std::fs::read_to_string(folder.path().join(path)).ok();
        write(folder.path(), path, &text);
        write(folder.path(), "reference-values/new.json", r#"{"values": {"new": 1}}"#);
        follower.look().await;
        let status = follower.status().await.unwrap();
        assert_eq!(status.condition, Condition::Failing, "{path}: {text}");
        let why = status.last_error.unwrap();
        assert!(why.contains(told), "{told}: {why}");
        assert_eq!(status.in_force.as_ref(), Some(&good));
        assert!(service.reference_record("new").await.is_err());
        assert_eq!(verdict(&service).await, "affirming");
        // A restart in this state keeps the last good one, without the source.
        let restarted = self::service(&store).await;
        let again = self::follower(&restarted, folder.path(), None);
        again.start().await.unwrap();
        assert_eq!(again.status().await.unwrap().in_force.as_ref(), Some(&good));
        assert!(restarted.set_policy("default_cpu", &policy(97)).await.is_err(), "still owned");
        match kept {
            Some(text) => write(folder.path(), path, &text),
            None => std::fs::remove_file(folder.path().join(path)).unwrap(),
        }
        std::fs::remove_file(folder.path().join("reference-values/new.json")).unwrap();
    }
    let mut shown = prometheus_client::registry::Registry::default();
    follower.metrics.register(&mut shown);
    let render = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &shown).unwrap();
        text
    };
    assert!(
        render().contains("policy_source_failing 1") && render().contains("outcome=\"failed\"} 7"),
        "{}",
        render()
    );
    follower.look().await;
    let status = follower.status().await.unwrap();
    assert_eq!((status.condition, status.last_error), (Condition::InForce, None));
    assert!(render().contains("policy_source_failing 0"));
}

#[tokio::test]
async fn an_earlier_bundle_is_pinned_until_the_source_is_followed_again() {
    let (folder, store) = (folder(), store().await);
    let service = service(&store).await;
    let follower = follower(&service, folder.path(), None);
    follower.start().await.unwrap();
    let first = follower.status().await.unwrap().in_force.unwrap();
    assert!(follower.pin(None, "anna").await.is_err(), "there is none before the first");
    let second = |value: &str| {
        write(folder.path(), "reference-values/a.json", &format!(r#"{{"values": {{"svn": ["{value}"]}}}}"#));
    };
    let svn = async || service.reference_values().await.unwrap()["svn"][0].as_str().unwrap().to_owned();
    second("2");
    follower.look().await;
    assert_eq!(svn().await, "2");
    assert!(follower.pin(Some("00"), "anna").await.is_err());
    let status = follower.pin(None, "anna").await.unwrap();
    assert_eq!(
        (status.condition, status.pinned.as_deref()),
        (Condition::Pinned, Some(first.digest.as_str()))
    );
    assert_eq!(svn().await, "1");
    // Whatever the source has, and after a restart.
    second("3");
    follower.look().await;
    let again = self::follower(&service, folder.path(), None);
    again.start().await.unwrap();
    assert_eq!(svn().await, "1");
    let status = again.status().await.unwrap();
    assert_ne!(status.offered.unwrap().digest, first.digest);
    let status = follower.resume("anna").await.unwrap();
    assert_eq!((status.condition, svn().await.as_str()), (Condition::InForce, "3"));
    assert_eq!(status.history.len(), 3);
    let status = follower.pin(Some(first.digest.get(..12).unwrap()), "anna").await.unwrap();
    assert_eq!(status.in_force.unwrap().digest, first.digest);
    let mut log = Vec::new();
    store.audit().export(&mut log).await.unwrap();
    let log = String::from_utf8(log).unwrap();
    for told in ["apply policy bundle", "pin policy bundle", "resume policy source", "anna"] {
        assert!(log.contains(told), "{told}");
    }
}

#[tokio::test]
async fn replicas_learn_from_the_store_what_one_took() {
    let (folder, store) = (folder(), store().await);
    let (one, other) = (service(&store).await, service(&store).await);
    let (first, second) = (follower(&one, folder.path(), None), follower(&other, folder.path(), None));
    first.start().await.unwrap();
    second.start().await.unwrap();
    let stale = self::folder();
    let third_service = service(&store).await;
    let third = follower(&third_service, stale.path(), None);
    third.start().await.unwrap();
    write(folder.path(), "attestation/new_cpu.rego", &policy(2));
    first.look().await;
    let digest = first.status().await.unwrap().in_force.unwrap().digest;
    // One whose checkout is behind does not put the old one back, and owns what is in force.
    third.look().await;
    assert_eq!(third.status().await.unwrap().in_force.unwrap().digest, digest);
    assert!(matches!(third_service.set_policy("new_cpu", &policy(2)).await, Err(ServiceError::Owned { .. })));
    second.look().await;
    assert_eq!(second.status().await.unwrap().in_force.unwrap().digest, digest);
    assert!(store.get(POLICY_NAMESPACE, "new_cpu").await.unwrap().is_some());
}

#[tokio::test]
async fn a_folder_that_must_be_signed_is_not_taken_unsigned() {
    let (folder, store) = (folder(), store().await);
    let pem = crate::jws::SigningKey::generate_pem("ES256").unwrap();
    let public = crate::jws::SigningKey::from_pem(pem.as_bytes()).unwrap().public_pem().unwrap();
    let service = service(&store).await;
    let follower = follower(&service, folder.path(), Some(public.into_bytes()));
    follower.start().await.unwrap();
    let status = follower.status().await.unwrap();
    assert_eq!((status.condition, status.in_force), (Condition::Failing, None));
    assert!(status.last_error.unwrap().contains("is not signed"));
    assert!(follower.try_out().await.is_err());
    let bundle = kata_cc_policy_bundle::source::from_folder(folder.path(), None).unwrap().bundle;
    let signature = Signer::from_pem(pem.as_bytes()).unwrap().sign(bundle.archive()).unwrap();
    write(folder.path(), "kata-cc-policy.sig", &signature);
    follower.look().await;
    assert_eq!(follower.status().await.unwrap().condition, Condition::InForce);
    follower.try_out().await.unwrap();
    write(folder.path(), "reference-values/a.json", r#"{"values": {}}"#);
    follower.look().await;
    assert!(follower.status().await.unwrap().last_error.unwrap().contains("over something else"));
}

#[test]
fn a_configuration_says_one_source_and_who_signs() {
    let read = |text: &str| toml::from_str::<PolicySourceConfig>(text).unwrap();
    let told = |text: &str| read(text).source(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(told("").contains("one of directory and reference"));
    assert!(told("directory = 'a'\nreference = 'b/c:1'\npublic_key = 'k'").contains("one of"));
    assert!(told("reference = 'b/c:1'").contains("needs public_key"));
    assert!(told("reference = 'B C'\npublic_key = 'k'").contains("no image reference"));
    assert!(told("directory = 'a'\npoll_seconds = 1").contains("5 to 86400"));
    assert!(told("directory = 'a'\npublic_key = 'k'").contains("/nonexistent/k"));
    let source = read("directory = 'a'").source(Path::new("/base")).unwrap();
    assert_eq!((source.to_string().as_str(), source.is_signed()), ("/base/a", false));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "k", "no key");
    let error = read("directory = 'a'\npublic_key = 'k'").source(folder.path()).unwrap_err().to_string();
    assert!(error.contains("public key cannot be used"), "{error}");
    assert!(toml::from_str::<PolicySourceConfig>("folder = 'a'").is_err());
}
