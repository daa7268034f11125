//! What the audit log of the store tells of changes of policies and reference values, and that there is no change without it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::references::Source;
use crate::registry::{Mode, Registration};
use crate::service::{AttestationService, ServiceError};
use crate::store::{Store, StoreError, StoreKey};
use crate::token::TokenBroker;
use crate::verify::SampleVerifier;

const POLICY: &str = "package policy\ntrust_claims := {\"hardware\": 2}";

async fn service(store: &Store) -> AttestationService {
    let key = crate::jws::SigningKey::generate_pem("ES256").unwrap();
    let key = crate::jws::SigningKey::from_pem(key.as_bytes()).unwrap();
    let verifier = Box::new(SampleVerifier { enabled: true });
    AttestationService::new(store.clone(), verifier, TokenBroker::new(key, "test", 5)).await.unwrap()
}

/// What is on record, the oldest first.
pub(crate) async fn records(store: &Store) -> Vec<Value> {
    let mut export = Vec::new();
    store.audit().export(&mut export).await.unwrap();
    let lines = String::from_utf8(export).unwrap();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|mut line| line.get_mut("record").map(Value::take)).collect()
}

fn values(names: &[&str], value: &Value) -> BTreeMap<String, Value> {
    names.iter().map(|name| ((*name).to_owned(), value.clone())).collect()
}

#[tokio::test]
async fn changes_are_on_record_with_who_and_what() {
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let service = service(&store).await;
    assert!(records(&store).await.is_empty(), "nobody changed anything");
    service.set_policy_by("mine_cpu", POLICY, "anna (policy)").await.unwrap();
    service.delete_policy("mine_cpu", "bert (policy)").await.unwrap();
    service.set_reference_values_by(&values(&["a", "b"], &json!(["x"])), "anna").await.unwrap();
    let signed = Registration {
        values: values(&["c"], &json!(1)),
        expires: Some(4_000_000_000),
        source: Source {
            kind: "signed".to_owned(),
            signer: Some("release".to_owned()),
            detail: None,
            signed_at: Some(crate::now()),
        },
        mode: Mode::Add,
        by: "release".to_owned(),
    };
    service.register(&signed).await.unwrap();
    service.expire_reference_value("a", Some(4_000_000_000), "bert").await.unwrap();
    assert!(service.delete_reference_value("b", "carl").await.unwrap());
    let records = records(&store).await;
    let told: Vec<_> = records
        .iter()
        .map(|one| {
            ["who", "reason"].map(|name| one[name].as_str().unwrap()).join(": ")
                + " "
                + one["resource"]["id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(
        told,
        [
            "anna (policy): set attestation policy mine_cpu",
            "bert (policy): delete attestation policy mine_cpu",
            "anna: set reference value a",
            "anna: set reference value b",
            "release: set reference value c",
            "bert: change expiration of reference value a",
            "carl: delete reference value b",
        ]
    );
    assert!(records.iter().all(|one| one["kind"] == "admin" && one["verdict"] == "done"), "{records:#?}");
    assert_eq!(records[0]["policy"], crate::state::digest(POLICY));
    assert_eq!(records[2]["details"]["value"], crate::state::digest("[\"x\"]"));
    assert_eq!(records[4]["details"]["source"], "signed by release");
    assert_eq!(records[5]["details"]["expiration"], "2096-10-02T07:06:40Z");
    store.audit().verify(None).await.unwrap();
}

#[tokio::test]
async fn what_is_refused_is_not_told_as_done() {
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let service = service(&store).await;
    assert!(service.set_policy_by("mine_cpu", "package policy\nx if {", "anna").await.is_err());
    assert!(matches!(service.delete_policy("mine_cpu", "anna").await, Err(ServiceError::PolicyId(_))));
    assert!(service.policy_versions("mine_cpu").await.is_err(), "a deletion of nothing is no version");
    // All of a message or none of it.
    let mut half = values(&["good"], &json!(1));
    half.insert("bad".to_owned(), Value::Null);
    assert!(service.set_reference_values_by(&half, "anna").await.is_err());
    assert!(!service.delete_reference_value("good", "anna").await.unwrap());
    assert!(service.reference_values().await.unwrap().is_empty());
    assert!(records(&store).await.is_empty());
}

/// A log that takes no record any more: then there is no change either, wherever the process ends.
#[tokio::test]
async fn without_a_record_there_is_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, StoreKey::ephemeral()).await.unwrap();
    let service = service(&store).await;
    service.set_policy_by("mine_cpu", POLICY, "anna").await.unwrap();
    service.set_reference_values_by(&values(&["a"], &json!(1)), "anna").await.unwrap();
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    sqlx::query("DELETE FROM audit WHERE seq = 2").execute(&pool).await.unwrap();
    sqlx::query("UPDATE store_state SET audit_seq = 1").execute(&pool).await.unwrap();
    let refused = |result: Result<(), ServiceError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, ServiceError::Store(StoreError::Audit(_))), "{error}");
    };
    refused(service.set_policy_by("mine_cpu", "package policy", "anna").await.map(drop));
    refused(service.set_policy_by("other_cpu", POLICY, "anna").await.map(drop));
    refused(service.delete_policy("mine_cpu", "anna").await);
    refused(service.set_reference_values_by(&values(&["a", "b"], &json!(2)), "anna").await);
    refused(service.expire_reference_value("a", Some(1), "anna").await.map(drop));
    refused(service.delete_reference_value("a", "anna").await.map(drop));
    service.reload().await.unwrap();
    assert_eq!(service.policy("mine_cpu").await.unwrap().0, POLICY);
    assert_eq!(service.policy_versions("mine_cpu").await.unwrap().len(), 1);
    assert!(service.policy("other_cpu").await.is_err());
    assert_eq!(service.reference_values().await.unwrap(), values(&["a"], &json!(1)));
}
