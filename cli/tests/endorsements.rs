//! `kata-cc endorsements`: what is exported is what `evidence verify` then takes, offline, and a changed layout is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
/// The server that plays AMD's KDS and Intel's PCS, of the tests of the crate that asks them.
#[path = "../../attestation/endorsements/tests/common/mod.rs"]
mod services;

use std::path::{Path, PathBuf};

use common::{Node, Ran};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::certs::Certificate;
use kata_cc_snp::{CertKind, CertTable};
use serde_json::{Value, json};
use services::{Server, bytes, collateral, pccs, recorded, status};

/// Within the validity of the recorded certificates.
const THEN: &str = "2025-09-01";
/// Within that of the recorded collateral.
const COLLATERAL_THEN: &str = "2025-07-01";

fn vector(name: &str) -> Option<String> {
    Some(kata_cc_test_vectors::path(name)?.to_str().unwrap().to_owned())
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

fn endorsements(node: &Node, code: i32, arguments: &[&str]) -> Ran {
    let ran = node.run(&[&["endorsements"], arguments].concat());
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    ran
}

fn json_of(node: &Node, arguments: &[&str]) -> Value {
    let ran = endorsements(node, 0, &[&["--json"], arguments].concat());
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn has(text: &str, words: &[&str]) {
    for words in words {
        assert!(text.contains(words), "{words:?} is missing in {text}");
    }
}

fn verify(node: &Node, file: &str, endorsements: &str, at: &str) -> Ran {
    node.run(&["evidence", "verify", file, "--endorsements", endorsements, "--at", at])
}

fn paths(answer: &Value) -> Vec<String> {
    let documents = answer["documents"].as_array().unwrap().iter();
    documents.map(|one| one["path"].as_str().unwrap().to_owned()).collect()
}

/// The blob of a layout that holds `part`.
fn blob_with(layout: &Path, part: &[u8]) -> PathBuf {
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let holds =
        |path: &PathBuf| std::fs::read(path).unwrap().windows(part.len()).any(|window| window == part);
    blobs.filter(holds).min_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
}

#[test]
fn what_is_exported_verifies_offline_and_a_changed_blob_is_refused() {
    let Some(report) = vector("snp/reports/milan-v3-a/report.bin") else { return };
    let vcek = vector("snp/reports/milan-v3-a/vcek.der").unwrap();
    let (quote, tdx) =
        (vector("tdx/quotes/v4-uptodate/quote.bin").unwrap(), vector("tdx/quotes/v4-uptodate").unwrap());
    let node = Node::new();
    let (folder, oci) = (text(node.path("folder")), text(node.path("oci")));
    let written = json_of(&node, &["export", "--out", &folder, &vcek, &tdx]);
    assert_eq!((&written["form"], &written["digest"]), (&json!("folder"), &json!(null)));
    let all = paths(&written);
    assert_eq!(all.len(), 5, "{all:?}");
    has(&all.join("\n"), &["intel/tdx-tcb-B0C06F000000.json", "intel/root-ca.crl", "_vcek.der"]);
    let written = json_of(&node, &["export", "--oci", "--out", &oci, &vcek, &tdx]);
    has(written["digest"].as_str().unwrap(), &["sha256:"]);
    let index: Value = serde_json::from_slice(&std::fs::read(node.path("oci/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], written["digest"]);

    for (form, name) in [(&folder, "folder"), (&oci, "OCI layout")] {
        for (file, at) in [(&report, THEN), (&quote, COLLATERAL_THEN)] {
            let ran = verify(&node, file, form, at);
            assert_eq!(ran.code, 0, "{name}: {ran:?}");
            has(&ran.stdout, &["verdict   verified\n"]);
        }
        // Shown and exported again it is the same.
        let shown = json_of(&node, &["show", form]);
        assert_eq!((paths(&shown), &shown["skipped"]), (all.clone(), &json!([])));
        let again = text(node.path(&format!("again-{}", name.len())));
        assert_eq!(paths(&json_of(&node, &["export", "--out", &again, form])), all);
        assert_eq!(verify(&node, &quote, &again, COLLATERAL_THEN).code, 0);
    }
    // Without them nothing verifies.
    assert_eq!(node.run(&["evidence", "verify", &report, "--at", THEN]).code, 1);
    assert_eq!(node.run(&["evidence", "verify", &quote, "--at", COLLATERAL_THEN]).code, 1);
    // An OCI layout is not written over, and no folder into it.
    for form in [&["--oci"][..], &[]] {
        let ran = endorsements(&node, 1, &[&["export", "--out", &oci], form, &[vcek.as_str()]].concat());
        has(&ran.stderr, &["layout", "name another folder"]);
    }

    // A blob is changed: refused by its digest, whoever reads it, and whatever it is needed for.
    let der = std::fs::read(&vcek).unwrap();
    for part in [&der[..], b"tcbInfo", b"application/vnd.kata-cc.endorsement.v1"] {
        let blob = blob_with(&node.path("oci"), part);
        let good = std::fs::read(&blob).unwrap();
        let mut changed = good.clone();
        *changed.last_mut().unwrap() ^= 1;
        std::fs::write(&blob, changed).unwrap();
        for ran in [
            verify(&node, &report, &oci, THEN),
            endorsements(&node, 2, &["show", &oci]),
            endorsements(&node, 2, &["export", "--out", &text(node.path("from-changed")), &oci]),
        ] {
            assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
            has(&ran.stderr, &["OCI layout", "has digest sha256:"]);
        }
        std::fs::write(&blob, good).unwrap();
    }
    assert!(!node.path("from-changed").exists(), "nothing is written");
    assert_eq!(verify(&node, &report, &oci, THEN).code, 0, "as it was");
    // In a folder there are no digests: what was changed there is found by the signatures.
    let file = node.path("folder/intel/tdx-tcb-B0C06F000000.json");
    let body = std::fs::read_to_string(&file).unwrap();
    let changed = body.replace("UpToDate", "OutOfDat");
    assert_ne!(changed, body);
    std::fs::write(&file, changed).unwrap();
    let ran = verify(&node, &quote, &folder, COLLATERAL_THEN);
    assert_eq!(ran.code, 1, "{ran:?}");
    has(&ran.stdout, &["refused by"]);
    std::fs::write(&file, "{}").unwrap();
    let ran = verify(&node, &quote, &folder, COLLATERAL_THEN);
    assert_eq!(ran.code, 2, "{ran:?}");
    has(&ran.stderr, &["tdx-tcb-B0C06F000000.json", "is no envelope"]);
}

#[test]
fn what_is_there_is_told() {
    let Some(milan) = vector("snp/reports/milan-v3-a/vcek.der") else { return };
    let vlek = vector("snp/reports/milan-v3-vlek/vlek.der").unwrap();
    let certs = vector("snp/certs").unwrap();
    let tdx = vector("tdx/quotes/v4-uptodate/collateral.json").unwrap();
    let node = Node::new();
    let shown = json_of(&node, &["show", &milan, &vlek, &tdx, "--at", THEN]);
    let of = |kind: &str| {
        shown["documents"].as_array().unwrap().iter().find(|one| one["kind"] == kind).unwrap().clone()
    };
    let vcek = of("vcek");
    assert_eq!((&vcek["product"], &vcek["state"]), (&json!("Milan"), &json!("current")), "{vcek}");
    assert!(vcek["chip_id"].as_str().unwrap().starts_with("a3fdc2c64dc299ab"), "{vcek}");
    assert_eq!((&vcek["tcb"]["snp"], &vcek["tcb"]["microcode"]), (&json!(24), &json!(219)));
    assert_eq!((&of("vlek")["product"], of("vlek").get("chip_id")), (&json!("Milan"), None));
    assert_eq!((&of("tcb-info")["fmspc"], &of("tcb-info")["tee"]), (&json!("B0C06F000000"), &json!("tdx")));
    assert_eq!(of("tcb-info")["state"], "expired", "its next one was due in July");
    for kind in ["qe-identity", "pck-crl", "root-crl"] {
        assert!(of(kind)["until"].as_str().unwrap().starts_with("202"), "{shown}");
    }
    let told = endorsements(&node, 0, &["show", &milan, "--at", "2099-01-01"]).stdout;
    has(
        &told,
        &[
            "VCEK of Milan chip a3fdc2c64dc299ab",
            "chip    a3fdc2c6",
            "boot loader 4, tee 0, snp 24",
            "(expired)",
        ],
    );
    // Intermediates and roots that lie in files of their own are put together; a report without certificates has none.
    let shown = json_of(&node, &["show", &certs]);
    let chains = paths(&shown);
    assert_eq!(chains.len(), 6, "{chains:?}");
    for product in ["Milan", "Genoa", "Turin"] {
        has(
            &chains.join("\n"),
            &[&format!("chain/vcek-{product}.pem"), &format!("chain/vlek-{product}.pem")],
        );
    }
    let alone = vector("snp/certs/milan-ask.pem").unwrap();
    let ran = endorsements(&node, 0, &["show", &alone]);
    has(&ran.stderr, &["lacks its other part"]);
    // What is none.
    let elf = node.file("elf", b"\x7fELF\x02\x01\x01\0 and more");
    let other = node.file("other.json", r#"{"a": 1}"#);
    let sample = node.file("sample.json", r#"{"svn": "1", "report_data": "AA=="}"#);
    for (file, words) in [
        (elf.as_str(), "holds no endorsement"),
        (&other, "holds no endorsement"),
        (&sample, "evidence of sample"),
        ("/nonexistent", "cannot read /nonexistent"),
        ("/dev/zero", "more than 4194304 bytes"),
    ] {
        let ran = endorsements(&node, 2, &["show", file]);
        assert!(ran.stdout.is_empty(), "{ran:?}");
        has(&ran.stderr, &[words]);
    }
}

#[test]
fn the_certificates_that_evidence_brings_are_exported() {
    let Some(recorded) = recorded("milan-v3-a") else { return };
    let node = Node::new();
    let der = |name: &str| {
        let pem = kata_cc_test_vectors::read(&format!("snp/certs/{name}.pem")).unwrap();
        Certificate::from_der_or_pem(&pem).unwrap().der().to_vec()
    };
    let entries = vec![
        (CertKind::Vcek, recorded.vcek.clone()),
        (CertKind::Ark, der("milan-ark")),
        (CertKind::Ask, der("milan-ask")),
    ];
    let table = CertTable { entries }.to_bytes();
    let extended = node.file("extended.bin", [recorded.report.clone(), table.clone()].concat());
    let raw = node.file("report.bin", &recorded.report);
    let table = node.file("table.bin", table);
    let json_form = vector("snp/evidence/coco-snp-evidence-v3.json").unwrap();
    for (index, source) in [&extended, &table].into_iter().enumerate() {
        let out = text(node.path(&format!("out-{index}")));
        let written = json_of(&node, &["export", "--oci", "--out", &out, source]);
        let all = paths(&written);
        assert!(all.len() == 2 && all[0] == "chain/vcek-Milan.pem", "{written}");
        assert_eq!(verify(&node, &raw, &out, THEN).code, 0);
    }
    let out = text(node.path("of-json"));
    assert_eq!(paths(&json_of(&node, &["export", "--out", &out, &json_form])).len(), 1);
    // A report alone brings nothing, and nothing is written.
    let out = text(node.path("none"));
    let ran = endorsements(&node, 1, &["export", "--out", &out, &raw]);
    has(&ran.stderr, &["there is no VCEK of Milan chip a3fdc2c64dc299ab", "--config"]);
    assert!(!node.path("none").exists());
    // Of another chip is not of this one.
    let genoa = vector("snp/reports/genoa-v5/vcek.der").unwrap();
    has(
        &endorsements(&node, 1, &["export", "--out", &out, &raw, &genoa]).stderr,
        &["there is no VCEK of Milan"],
    );
    // A simulated platform's are of no line that could be told apart.
    let platform = SimPlatform::create(&node.path("sim")).unwrap();
    let report = platform.report(&ReportRequest::default()).unwrap();
    let simulated = node.file("sim.bin", [report.to_vec(), platform.certificate_table()].concat());
    has(
        &endorsements(&node, 2, &["export", "--out", &out, &simulated]).stderr,
        &["Simulated", "simulated platform"],
    );
}

#[test]
fn what_evidence_lacks_comes_from_services_and_from_the_cache() {
    let (Some(recorded), Some(json)) = (recorded("milan-v3-a"), collateral()) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let vcek = recorded.vcek.clone();
    let server = runtime.block_on(Server::start(move |_, path| match path {
        path if path.starts_with("/vcek/v1/Milan/a3fdc2c6") => bytes(&vcek),
        path if path.starts_with("/vcek") => status(404),
        path => pccs(&json, path),
    }));
    let node = Node::new();
    let section = |more: &str| {
        format!(
            "cache_dir = \"cache\"\n{more}kds = {{ enabled = true, url = \"{0}\" }}\npccs = {{ enabled = true, url = \"{0}\" }}\n",
            server.url
        )
    };
    let broker = format!("[http_server]\nsockets = []\n[endorsements]\n{}", section(""));
    let broker = node.file("kbs.toml", broker);
    let report = node.file("report.bin", &recorded.report);
    let quote = vector("tdx/quotes/v4-uptodate/quote.bin").unwrap();
    let out = text(node.path("fetched"));
    let written = json_of(&node, &["export", "--oci", "--out", &out, "--config", &broker, &report, &quote]);
    assert_eq!(paths(&written).len(), 5, "{written}");
    has(&written["problems"].to_string(), &["does not have the VCEK revocation list of Milan"]);
    assert_eq!(server.hits(), 6, "certificate, list, and four of Intel's: {:?}", server.seen());
    assert_eq!(verify(&node, &report, &out, THEN).code, 0);
    assert_eq!(verify(&node, &quote, &out, COLLATERAL_THEN).code, 0);

    // All that the cache holds by now, without a service.
    let quiet = node.file("endorsements.toml", section("air_gapped = true\n"));
    let cached = text(node.path("cached"));
    let again = json_of(&node, &["export", "--out", &cached, "--config", &quiet]);
    assert_eq!(paths(&again), paths(&written));
    assert_eq!(verify(&node, &report, &cached, THEN).code, 0);
    assert_eq!(server.hits(), 6);

    // What nobody has: told, and nothing is written.
    let turin = vector("snp/reports/turin-v5/report.bin").unwrap();
    let none = text(node.path("none"));
    let ran = endorsements(&node, 1, &["export", "--out", &none, "--config", &broker, &turin]);
    has(&ran.stderr, &["there is no VCEK of Turin", "does not have"]);
    let ran = endorsements(&node, 1, &["export", "--out", &none, "--config", &quiet, &turin]);
    has(&ran.stderr, &["there is no VCEK of Turin", "no source has"]);
    let empty = node.file("empty.toml", "");
    let ran = endorsements(&node, 1, &["export", "--out", &none, "--config", &empty]);
    has(&ran.stderr, &["there is nothing to export"]);
    let wrong = node.file("wrong.toml", "[endorsements]\nkds = 1\n");
    let ran = endorsements(&node, 2, &["export", "--out", &none, "--config", &wrong]);
    has(&ran.stderr, &["wrong.toml"]);
    assert!(!node.path("none").exists());
}
