//! `kata-cc explain` of tokens and of evidence: every comparison with rule and reference value, exit codes, and what is never believed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::{Node, Ran};
use kata_cc_attestation_service::api::Api;
use kata_cc_attestation_service::ear::{FINDINGS, POLICY_DIGEST};
use kata_cc_attestation_service::gate::AdminGate;
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_attestation_service::rest::router;
use kata_cc_attestation_service::service::AttestationService;
use kata_cc_attestation_service::store::{Store, StoreKey};
use kata_cc_attestation_service::token::TokenBroker;
use kata_cc_attestation_service::verify::SampleVerifier;
use serde_json::{Value, json};

/// Within the validity of all recorded certificates.
const THEN: &str = "2025-09-01";

fn vector(name: &str) -> Option<String> {
    Some(kata_cc_test_vectors::path(name)?.to_str().unwrap().to_owned())
}

/// `kata-cc explain ARGUMENTS`, expecting an exit code.
fn explain(node: &Node, code: i32, arguments: &[&str]) -> Ran {
    let ran = node.run(&[&["explain"], arguments].concat());
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(!ran.stderr.contains("panicked") && !ran.stdout.contains('\x1b'), "{ran:?}");
    ran
}

fn as_json(node: &Node, code: i32, arguments: &[&str]) -> Value {
    let ran = explain(node, code, &[&["--json"], arguments].concat());
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn has(text: &str, words: &[&str]) {
    for words in words {
        assert!(text.contains(words), "{words:?} is missing in {text}");
    }
}

fn broker() -> TokenBroker {
    let key = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
    TokenBroker::new(key, "me", 5)
}

fn submod(status: &str, vector: &Value, findings: &Value) -> Value {
    let mut submod = json!({
        "ear.status": status, "ear.trustworthiness-vector": vector, "ear.appraisal-policy-id": "default",
        "ear.veraison.annotated-evidence": {"snp": {"measurement": "aa"}, "init_data": "00"},
    });
    if !findings.is_null() {
        submod[FINDINGS] = findings.clone();
        submod[POLICY_DIGEST] = "dd".repeat(32).into();
    }
    submod
}

#[test]
fn a_token_is_explained_and_believed_by_its_keys_alone() {
    let node = Node::new();
    let (ours, theirs) = (broker(), broker());
    let now = kata_cc_attestation_service::now();
    let issue = |name: &str, submods: &Value| node.file(name, ours.issue(submods, now).unwrap());
    let good = json!({"cpu0": submod("affirming", &json!({"executables": 3, "hardware": 2, "file-system": 0}), &json!(null))});
    let finding = json!({"rule": "executables", "claim": "measurement", "seen": "aa", "expected": ["bb", "cc"],
        "reference": "snp_launch_measurement", "what_to_do": "register it\u{1b}[2J"});
    let bad =
        json!({"cpu0": submod("warning", &json!({"executables": 33, "hardware": 2}), &json!([finding]))});
    let (good, bad) = (issue("good", &good), issue("bad", &bad));
    let jwks = node.file("jwks.json", ours.jwks().to_string());
    let other = node.file("other.json", theirs.jwks().to_string());

    let text = explain(&node, 1, &["--token", &bad, "--jwks", &jwks]).stdout;
    has(
        &text,
        &[
            "verdict    warning\n",
            "cpu0 (snp)  warning",
            "claim",
            "seen",
            "expected",
            "rule",
            "reference value",
            "  differs  measurement",
            "  ok       hardware",
            "  expected         one of bb, cc\n",
            "  rule             executables\n",
            &format!("  policy           default (SHA-256 {})\n", "dd".repeat(32)),
            "  reference value  snp_launch_measurement\n",
            "  what to do       register it",
        ],
    );
    let answer = as_json(&node, 1, &["--token", &bad, "--jwks", &jwks]);
    assert_eq!((&answer["verified"], &answer["status"]), (&json!(true), &json!("warning")));
    let rows = answer["submods"]["cpu0"]["explanation"].as_array().unwrap();
    assert_eq!((&rows[0]["claim"], &rows[0]["ok"]), (&json!("measurement"), &json!(false)));
    assert_eq!((&rows[1]["claim"], &rows[1]["ok"]), (&json!("hardware"), &json!(true)));
    assert_eq!(rows.len(), 2, "a member whose findings are told is not told again: {answer}");
    assert_eq!(explain(&node, 0, &["--token", &good, "--jwks", &other, "--jwks", &jwks]).stderr, "");

    // Nobody has checked it: said plainly, and never exit code 0.
    let text = explain(&node, 1, &["--token", &good]).stdout;
    has(&text, &["UNVERIFIED", "--jwks", "affirming by its own word"]);
    let answer = as_json(&node, 1, &["--token", &good]);
    assert_eq!((&answer["verified"], &answer["status"]), (&json!(false), &json!("affirming")));
    // Refused: nothing is told of what it says.
    for (arguments, reason) in [
        (&["--token", &good, "--jwks", &other][..], "untrusted-key"),
        (&["--token", &good, "--jwks", &jwks, "--at", "2099-01-01"], "expired"),
    ] {
        let answer = as_json(&node, 1, arguments);
        assert_eq!((&answer["status"], &answer["verified"]), (&json!("refused"), &json!(false)), "{answer}");
        assert_eq!(answer["refusals"][0]["reason"], reason);
        assert_eq!(answer["submods"], json!({}));
        has(&explain(&node, 1, arguments).stdout, &["verdict    refused\n", reason, "what to do"]);
    }
    // Devices count too; a token without findings, as Trustee's, tells its vector; without submods it is nothing.
    let two = issue(
        "two",
        &json!({"cpu0": submod("affirming", &json!({"hardware": 2}), &json!(null)),
        "gpu0": submod("contraindicated", &json!({"hardware": 97}), &json!(null))}),
    );
    let answer = as_json(&node, 1, &["--token", &two, "--jwks", &jwks]);
    assert_eq!(answer["status"], "contraindicated");
    assert_eq!(answer["submods"]["gpu0"]["explanation"][0]["seen"], 97);
    has(answer["submods"]["gpu0"]["explanation"][0]["what_to_do"].as_str().unwrap(), &["does not say"]);
    let empty = issue("empty", &json!({}));
    assert_eq!(as_json(&node, 1, &["--token", &empty, "--jwks", &jwks])["status"], "none");
    // What cannot be read, and options of evidence.
    let damaged = node.file("damaged", "a.b.c");
    for arguments in [
        &["--token", &damaged][..],
        &["--token", &damaged, "--jwks", &jwks],
        &["--token", "/nonexistent"],
        &["--token", &good, "--jwks", "/nonexistent"],
        &["--token", &good, "--jwks", &good],
        &["--token", &good, "--endorsements", &good],
        &["x", "--at", THEN],
    ] {
        let ran = explain(&node, 2, arguments);
        assert!(ran.stdout.is_empty() && ran.stderr.starts_with("kata-cc: "), "{ran:?}");
    }
}

/// Values under which the recorded report is as it should be.
fn values(node: &Node, evidence: &[&str]) -> Value {
    let ran = node.run(&[&["--json", "evidence", "verify"], evidence].concat());
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let (claims, snp) = (&answer["claims"], &answer["claims"]["snp"]);
    json!({
        "snp_launch_measurement": [snp["measurement"]], "init_data": [claims["init_data"]],
        "snp_bootloader": [snp["reported_tcb_bootloader"]], "snp_microcode": [snp["reported_tcb_microcode"]],
        "snp_snp_svn": [snp["reported_tcb_snp"]], "snp_tee_svn": [snp["reported_tcb_tee"]],
    })
}

#[test]
fn evidence_is_appraised_offline() {
    let Some(report) = vector("snp/reports/milan-v3-a/report.bin") else { return };
    let vcek = vector("snp/reports/milan-v3-a/vcek.der").unwrap();
    let node = Node::new();
    let good = values(&node, &[&report, "--endorsements", &vcek, "--at", THEN]);
    let values = node.file("values.json", good.to_string());
    let evidence = ["--evidence", &report, "--endorsements", &vcek, "--at", THEN];
    let with = |more: &[&'static str], values: &str| -> Vec<String> {
        let values = ["--reference-values", values];
        let all = evidence.iter().chain(&values).chain(more);
        all.map(|word| (*word).to_owned()).collect()
    };
    let run = |code: i32, arguments: &[String]| {
        as_json(&node, code, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let answer = run(0, &with(&[], &values));
    assert_eq!((&answer["status"], &answer["verified"]), (&json!("affirming"), &json!(true)), "{answer}");
    let rows = answer["submods"]["cpu0"]["explanation"].as_array().unwrap();
    assert!(rows.len() >= 8 && rows.iter().all(|row| row["ok"] == true), "{answer}");
    has(&answer["warnings"].to_string(), &["--report-data"]);

    // Another measurement is registered; the answer names rule, reference value, policy and what to do.
    let mut other = good.clone();
    other["snp_launch_measurement"] = json!(["00", "11"]);
    let other = node.file("other.json", other.to_string());
    let answer = run(1, &with(&[], &other));
    assert_eq!(answer["status"], "warning");
    let row = &answer["submods"]["cpu0"]["explanation"][0];
    assert_eq!(
        (&row["claim"], &row["ok"], &row["rule"]),
        (&json!("measurement"), &json!(false), &json!("executables"))
    );
    assert_eq!((&row["seen"], &row["expected"]), (&good["snp_launch_measurement"][0], &json!(["00", "11"])));
    assert_eq!(
        (&row["reference"]["name"], &row["reference"]["state"]),
        (&json!("snp_launch_measurement"), &json!("valid"))
    );
    assert_eq!(
        (&row["policy"]["id"], row["policy"]["digest"].as_str().unwrap().len()),
        (&json!("default_cpu"), 64)
    );
    has(row["what_to_do"].as_str().unwrap(), &["kata-cc measure --register"]);
    let text = explain(&node, 1, &[&evidence[..], &["--reference-values", &other]].concat()).stdout;
    has(
        &text,
        &[
            "explained  SNP attestation report\n",
            "verdict    warning\n",
            "cpu0 (snp)  warning",
            "measurement is not as it should be",
            good["snp_launch_measurement"][0].as_str().unwrap(),
            "one of 00, 11",
            "from file: --reference-values",
        ],
    );
    // Nothing is registered.
    let answer = as_json(&node, 1, &evidence);
    assert_eq!(answer["status"], "contraindicated");
    let states: Vec<&Value> = answer["submods"]["cpu0"]["explanation"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["reference"]["state"])
        .collect();
    assert!(states.contains(&&json!("not-registered")), "{answer}");
    has(&answer["warnings"].to_string(), &["--reference-values"]);

    // A policy of one's own, and one that explains nothing.
    let own = node.file("own.rego", "package policy\ntrust_claims := {\"hardware\": 2}\n");
    let answer = as_json(&node, 0, &[&evidence[..], &["--policy", &own]].concat());
    assert_eq!(answer["submods"]["cpu0"]["explanation"][0]["policy"]["id"], "own");
    for (text, code, words) in [
        ("package policy\nx if {", 2, "does not compile"),
        ("package policy\ntrust_claims := {\"colour\": 2}", 2, "colour"),
        ("package policy\ntrust_claims := {\"hardware\": 97}", 1, ""),
        ("package policy", 1, ""),
    ] {
        let policy = node.file("policy.rego", text);
        let ran = explain(&node, code, &[&evidence[..], &["--policy", &policy]].concat());
        has(&ran.stderr, &[words]);
    }

    // Evidence that does not verify is refused, and nothing is appraised.
    let mut bytes = std::fs::read(&report).unwrap();
    bytes[0x90] ^= 1;
    let changed = node.file("changed.bin", bytes);
    let arguments = ["--evidence", &changed, "--endorsements", &vcek, "--at", THEN, "--policy", &own];
    let answer = as_json(&node, 1, &arguments);
    assert_eq!((&answer["status"], &answer["verified"]), (&json!("refused"), &json!(false)));
    assert_eq!((&answer["refusals"][0]["reason"], &answer["submods"]), (&json!("signature"), &json!({})));
    has(
        &explain(&node, 1, &arguments).stdout,
        &["verdict    refused\n", "refused by signature", "what to do"],
    );
    let sample = node.file("sample.json", r#"{"svn": "1", "report_data": "AA=="}"#);
    assert_eq!(
        as_json(&node, 1, &["--evidence", &sample, "--policy", &own])["refusals"][0]["reason"],
        "sample-not-enabled"
    );
    for file in ["/nonexistent", own.as_str()] {
        explain(&node, 2, &["--evidence", file]);
    }
}

/// An attestation service on loopback.
async fn service(enabled: bool) -> String {
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let verifier = Box::new(SampleVerifier { enabled });
    let service = AttestationService::new(store, verifier, broker()).await.unwrap();
    let values = [("svn", json!(["1"])), ("launch_digest", json!(["other"]))];
    let values = values.map(|(name, value)| (name.to_owned(), value)).into();
    service.set_reference_values(&values).await.unwrap();
    let api = Api::new(Arc::new(service), AdminGate::closed()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router(Arc::new(api))).await.unwrap() });
    url
}

#[test]
fn an_attestation_service_explains_evidence() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (open, strict) = runtime.block_on(async { (service(true).await, service(false).await) });
    let node = Node::new();
    let sample = node.file("sample.json", r#"{"svn": "1", "report_data": "AA=="}"#);
    let answer = as_json(&node, 1, &["--evidence", &sample, "--as", &open]);
    assert_eq!((&answer["verified"], &answer["status"]), (&json!(true), &json!("warning")), "{answer}");
    let rows = answer["submods"]["cpu0"]["explanation"].as_array().unwrap();
    assert_eq!((&rows[0]["claim"], &rows[0]["rule"]), (&json!("launch_digest"), &json!("executables")));
    assert!(rows.iter().any(|row| row["claim"] == "svn" && row["ok"] == true), "{answer}");
    let text = explain(&node, 1, &["--evidence", &sample, "--as", &open]).stdout;
    has(&text, &[&format!("by {open}"), "launch_digest is not as it should be", "from rvps"]);
    let refused = as_json(&node, 1, &["--evidence", &sample, "--as", &strict]);
    assert_eq!(
        (&refused["status"], &refused["refusals"][0]["reason"]),
        (&json!("refused"), &json!("sample-not-enabled"))
    );
    let nobody = format!("http://127.0.0.1:{}", common::closed_port());
    for arguments in [
        &["--evidence", &sample, "--as", &nobody][..],
        &["--evidence", &sample, "--as", "ftp://x"],
        &["--evidence", &sample, "--as", "https://127.0.0.1:1"],
        &["--evidence", &sample, "--as", &open, "--at", THEN],
        &["--evidence", &sample, "--as", &open, "--report-data", "00"],
    ] {
        let ran = explain(&node, 2, arguments);
        assert!(ran.stdout.is_empty() && ran.stderr.starts_with("kata-cc: "), "{ran:?}");
    }
}
