//! The published schemas: every claims tree that the verifiers make is as they say, and nothing is promised that is never there.
#![allow(clippy::unwrap_used, missing_docs)]

mod runtime_log;
mod schema;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kata_cc_kbs_protocol::Tee;
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report};
use kata_cc_tdx::Collateral;
use kata_cc_verifier::{Evidence, ExpectedInitData, Verdict, VerifierConfig, verify};
use schema::{Seen, check, properties};
use serde_json::{Value, json};

/// 2025-09-01: within the validity of the certificates.
const THEN: u64 = 1_756_684_800;

const DOCUMENT: &str = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = \"x = 1\"\n";

/// Checks a verdict's whole tree.
fn as_published(verdict: &Verdict, seen: &mut Seen) {
    let errors = check("evidence.json", &verdict.claims, seen);
    assert!(errors.is_empty(), "{}: {errors:#?}", verdict.tee);
    let named: Vec<_> =
        verdict.claims.as_object().unwrap().keys().filter_map(|name| Tee::from_name(name)).collect();
    assert_eq!(named, [verdict.tee], "exactly one member is named after a TEE");
}

/// Every property of a file was produced, or is optional.
fn nothing_is_promised(file: &str, seen: &Seen) {
    for (path, required) in properties(file) {
        assert!(!required || seen.produced.contains(&path), "{path} is required and was never produced");
    }
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn accepted(tee: Tee, evidence: &Value, now: u64) -> Verdict {
    let input = Evidence { tee, evidence, report_data: None, init_data: None };
    // One of the recorded reports was asked for from a less privileged level.
    let config = VerifierConfig { max_vmpl: 3, ..VerifierConfig::default() };
    verify(&config, &input, now).unwrap()
}

#[test]
fn snp() {
    let Some(dir) = kata_cc_test_vectors::path("snp") else { return };
    let mut seen = Seen::default();
    let mut evidence = json_file(&dir.join("evidence/coco-snp-evidence-v3.json"));
    as_published(&accepted(Tee::Snp, &evidence, THEN), &mut seen);
    evidence["runtime_measurements"] = runtime_log::member();
    as_published(&accepted(Tee::Snp, &evidence, THEN), &mut seen);
    for name in ["genoa-v5", "milan-v3-a", "milan-v3-vlek", "turin-v5"] {
        let folder = dir.join("reports").join(name);
        let report = Report::parse(&std::fs::read(folder.join("report.bin")).unwrap()).unwrap();
        let mut evidence = serde_json::to_value(SnpEvidence::new(&report, &CertTable::default())).unwrap();
        let (kind, file) = if name.ends_with("vlek") { ("VLEK", "vlek.der") } else { ("VCEK", "vcek.der") };
        let data = std::fs::read(folder.join(file)).unwrap();
        evidence["cert_chain"] = json!([{"cert_type": kind, "data": data}]);
        as_published(&accepted(Tee::Snp, &evidence, THEN), &mut seen);
    }
    nothing_is_promised("snp.json", &seen);
}

#[test]
fn simulated_snp_by_reference() {
    let dir = tempfile::tempdir().unwrap();
    let platform = SimPlatform::create(&dir.path().join("sim")).unwrap();
    let document = kata_cc_kbs_protocol::initdata::InitData::parse(DOCUMENT).unwrap();
    let request =
        ReportRequest { host_data: document.digest().try_into().unwrap(), ..ReportRequest::default() };
    let report = Report::parse(&platform.report(&request).unwrap()).unwrap();
    let table = CertTable::parse(&platform.certificate_table()).unwrap();
    let evidence = serde_json::to_value(SnpEvidence::new(&report, &table)).unwrap();
    let mut config = VerifierConfig::default();
    config.add_simulated_roots(platform.ark_pem().unwrap().as_bytes()).unwrap();
    let init_data = Some(ExpectedInitData::Toml(DOCUMENT));
    let input = Evidence { tee: Tee::SimSnp, evidence: &evidence, report_data: None, init_data };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut seen = Seen::default();
    as_published(&verify(&config, &input, now).unwrap(), &mut seen);
    assert_eq!(schema::load("sim-snp.json")["$ref"], "snp.json");
    assert!(seen.produced.contains("evidence.json#/init_data_claims"));
}

#[test]
fn azure_snp() {
    let Some(dir) = kata_cc_test_vectors::path("snp/evidence") else { return };
    let mut seen = Seen::default();
    for name in ["az-snp-vtpm-evidence-v0.json", "az-snp-vtpm-evidence-v1.json"] {
        as_published(&accepted(Tee::AzSnpVtpm, &json_file(&dir.join(name)), THEN), &mut seen);
    }
    nothing_is_promised("az-snp-vtpm.json", &seen);
}

/// Recorded quotes with collateral of their time.
fn tdx_verdicts() -> Option<Vec<Verdict>> {
    let dir = kata_cc_test_vectors::path("tdx/quotes")?;
    let folder = dir.join("v5-gcollateral/collateral");
    let newer = Collateral::from_files(|name| std::fs::read(folder.join(name)).ok()).unwrap();
    let older = std::fs::read(dir.join("v4-uptodate/collateral.json")).unwrap();
    let older = Collateral::from_bundle(&older).unwrap();
    // 2025-07-01 and 2026-02-20: within the validity of each.
    let cases = [("v4-uptodate", &older, 1_751_328_000), ("v5-gcollateral", &newer, 1_771_545_600)];
    let verdict = |(name, collateral, now): (&str, &Collateral, u64)| {
        let quote = std::fs::read(dir.join(name).join("quote.bin")).unwrap();
        let evidence = json!({"quote": kata_cc_kbs_protocol::base64_standard(&quote), "cc_eventlog": null});
        let key = kata_cc_verifier::tdx::collateral_key(&evidence).unwrap();
        let mut config = VerifierConfig::default();
        // Of the second, no moment makes every piece current.
        config.tdx.settings.allow_expired_collateral = true;
        config.tdx.collateral = Some(Arc::new(BTreeMap::from([(key, Arc::new(collateral.clone()))])));
        let input = Evidence { tee: Tee::Tdx, evidence: &evidence, report_data: None, init_data: None };
        verify(&config, &input, now).unwrap_or_else(|refused| panic!("{name}: {refused}"))
    };
    Some(cases.into_iter().map(verdict).collect())
}

#[test]
fn tdx() {
    let Some(mut verdicts) = tdx_verdicts() else { return };
    let mut seen = Seen::default();
    for verdict in &verdicts {
        as_published(verdict, &mut seen);
    }
    assert_eq!(schema::load("sim-tdx.json")["$ref"], "tdx.json");
    // An event log beside the same quote, which is not that of its guest: only its form is looked at.
    let log = kata_cc_test_vectors::read("tdx/eventlogs/ccel-ovmf.bin").unwrap();
    let log = kata_cc_tdx::EventLog::parse(&log).unwrap();
    let events: Vec<Value> = log.events.iter().map(kata_cc_tdx::event_details::claim).collect();
    assert!(!events.is_empty());
    let mut verdict = verdicts.remove(0);
    verdict.claims["tdx"]["uefi_event_logs"] = events.into();
    as_published(&verdict, &mut seen);
    nothing_is_promised("tdx.json", &seen);
}

/// No collateral was recorded for the platform of Azure's TDX evidence, so its claims are put together from their two parts.
#[test]
fn azure_tdx() {
    let Some(tdx) = tdx_verdicts() else { return };
    let azure = kata_cc_test_vectors::path("snp/evidence/az-snp-vtpm-evidence-v1.json").unwrap();
    let azure = accepted(Tee::AzSnpVtpm, &json_file(&azure), THEN);
    let mut seen = Seen::default();
    for verdict in tdx {
        let mut claims = verdict.tee_claims().clone();
        for name in ["tpm", "hcl"] {
            claims[name] = azure.tee_claims()[name].clone();
        }
        let errors = check("az-tdx-vtpm.json", &claims, &mut seen);
        assert!(errors.is_empty(), "{errors:#?}");
    }
    nothing_is_promised("az-tdx-vtpm.json", &seen);
}

/// The document for people names every claim of every schema.
#[test]
fn every_claim_is_documented() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/claims.md")).unwrap();
    for entry in std::fs::read_dir(schema::folder()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        assert!(text.contains(&file), "{file} is not named in docs/claims.md");
        for (path, _) in properties(&file) {
            let name = path.rsplit('/').next().unwrap();
            let told = text.contains(&format!("`{name}`")) || name.starts_with("pcr");
            assert!(told, "{path} is not told in docs/claims.md");
        }
    }
}
