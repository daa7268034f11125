//! The trust vector of TDX guests as the service gives it: event logs and quotes as they were recorded, reference values that match and
//! that do not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::Arc;

use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_attestation_service::service::{AttestationService, Evaluate, ServiceError, Verdict};
use kata_cc_attestation_service::store::{Store, StoreKey};
use kata_cc_attestation_service::token::TokenBroker;
use kata_cc_attestation_service::verify::{
    Evidence, EvidenceVerifier, Reason, Refusal, SampleVerifier, Verified, Verifiers,
};
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::{Tee, base64_standard};
use kata_cc_sim_tee::tdx::{QuoteRequest, TdxPlatform};
use kata_cc_tdx::event_log::Algorithm;
use kata_cc_tdx::{Collateral, EventLog, Quote, Trailing};
use kata_cc_verifier::VerifierConfig;
use serde_json::{Value, json};

/// The verifiers at a time of their own: recorded collateral is current at its time only.
struct At(Verifiers, i64);

impl EvidenceVerifier for At {
    fn verify(&self, evidence: &Evidence<'_>, _now: i64) -> Result<Verified, Refusal> {
        self.0.verify(evidence, self.1)
    }
}

async fn evaluate(
    (config, now): (&VerifierConfig, i64),
    (tee, evidence): (Tee, &Value),
    references: &Value,
) -> Result<Verdict, ServiceError> {
    let sample = SampleVerifier { enabled: false };
    let verifier = Box::new(At(Verifiers { config: config.clone(), sample }, now));
    let key = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let service = AttestationService::new(store, verifier, TokenBroker::new(key, "test", 5)).await.unwrap();
    let values: BTreeMap<String, Value> = serde_json::from_value(references.clone()).unwrap();
    service.set_reference_values(&values).await.unwrap();
    let request = Evaluate {
        tee,
        evidence: evidence.clone(),
        binding: None,
        hash: HashAlgorithm::Sha384,
        init_data: None,
        policy_id: String::new(),
    };
    service.evaluate(&request).await
}

/// Executables, hardware, configuration.
fn vector(verdict: &Verdict) -> [i8; 3] {
    ["executables", "hardware", "configuration"].map(|name| verdict.vector.get(name).unwrap())
}

/// The platform, now.
fn simulated() -> (TdxPlatform, VerifierConfig, i64) {
    let now = kata_cc_attestation_service::now();
    let platform = TdxPlatform::create(now.unsigned_abs() - 1).unwrap();
    let mut config = VerifierConfig::default();
    config.add_simulated_roots(platform.root_pem().as_bytes()).unwrap();
    (platform, config, now)
}

/// Evidence of a guest that the log was recorded in: its registers are those that the log leads to.
fn evidence_of(platform: &TdxPlatform, log: &[u8]) -> (Value, Quote) {
    let rtmr = EventLog::parse(log).unwrap().replay().unwrap();
    let quote = platform.quote(&QuoteRequest { mr_td: [8; 48], rtmr, ..QuoteRequest::default() }).unwrap();
    let evidence = json!({
        "quote": base64_standard(&quote),
        "cc_eventlog": base64_standard(log),
        "collateral": platform.collateral().unwrap().to_value(),
    });
    (evidence, Quote::parse(&quote, Trailing::Zeros).unwrap())
}

/// Reference values that a quote meets.
fn references_of(quote: &Quote) -> Value {
    let body = &quote.body;
    json!({
        "mr_td": [hex::encode(body.mr_td)], "sim_mr_td": [hex::encode(body.mr_td)], "xfam": [hex::encode(body.xfam)],
        "rtmr_1": [hex::encode(body.rtmr[1])], "rtmr_2": [hex::encode(body.rtmr[2])],
        "init_data": [hex::encode(body.mr_config_id)],
    })
}

/// SHA-384 digest of the one event whose data holds this text in the encoding that it has there.
fn digest_of(log: &EventLog, register: u32, text: &[u8]) -> String {
    let mut found = log.events.iter().filter(|event| {
        event.register == register && event.data.windows(text.len()).any(|window| window == text)
    });
    let event = found.next().unwrap();
    assert!(found.next().is_none());
    hex::encode(&event.digests.iter().find(|(algorithm, _)| *algorithm == Algorithm::SHA384).unwrap().1)
}

/// A log of OVMF that booted a kernel directly, recorded by others: kernel and command line have events of their own.
#[tokio::test]
async fn a_direct_boot_is_recognised_by_the_firmwares_events() {
    let Some(bytes) = kata_cc_test_vectors::read("tdx/eventlogs/ccel-ovmf.bin") else { return };
    let (platform, config, now) = simulated();
    let (evidence, quote) = evidence_of(&platform, &bytes);
    let log = EventLog::parse(&bytes).unwrap();
    let wide: Vec<u8> = "kernel\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let kernel = digest_of(&log, 2, &wide);
    let parameters = digest_of(&log, 3, b"LOADED_IMAGE::LoadOptions");

    let mut references = references_of(&quote);
    let at = (&config, now);
    let given = (Tee::SimTdx, &evidence);
    let verdict = evaluate(at, given, &references).await.unwrap();
    assert_eq!(vector(&verdict), [4, 2, 2], "by the registers alone: {:?}", verdict.findings);
    references["tdvfkernel"] = json!([kernel]);
    references["tdvfkernelparams"] = json!([parameters]);
    let verdict = evaluate(at, given, &references).await.unwrap();
    assert_eq!(vector(&verdict), [3, 2, 2], "{:?}", verdict.findings);
    for (name, expected) in [
        ("tdvfkernel", [4, 2, 2]),
        ("tdvfkernelparams", [4, 2, 2]),
        ("rtmr_1", [33, 2, 2]),
        ("rtmr_2", [33, 2, 2]),
        ("sim_mr_td", [3, 97, 2]),
        ("xfam", [3, 2, 36]),
        ("init_data", [3, 2, 36]),
    ] {
        let mut other = references.clone();
        other[name] = json!(["00"]);
        let verdict = evaluate(at, given, &other).await.unwrap();
        assert_eq!(vector(&verdict), expected, "{name}");
    }
}

/// What no register holds can be written into a log by whoever hands it over; it must not make a kernel a known one.
#[tokio::test]
async fn events_that_were_not_measured_prove_nothing() {
    let Some(bytes) = kata_cc_test_vectors::read("tdx/eventlogs/ccel-ovmf.bin") else { return };
    let (platform, config, now) = simulated();
    let log = EventLog::parse(&bytes).unwrap();
    // The log ends where nothing is written.
    let written: usize = 65
        + log
            .events
            .iter()
            .map(|e| 12 + e.digests.iter().map(|(_, d)| 2 + d.len()).sum::<usize>() + 4 + e.data.len())
            .sum::<usize>();
    let mut forged = bytes[..written].to_vec();
    assert_eq!(EventLog::parse(&forged).unwrap(), log);
    for (found, digest) in [(2, [0xAA; 48]), (3, [0xBB; 48])] {
        let kind = if found == 2 { "EV_EFI_BOOT_SERVICES_APPLICATION" } else { "EV_EVENT_TAG" };
        let real = log.events.iter().rfind(|event| {
            let claim = kata_cc_tdx::event_details::claim(event);
            let named = claim["details"]["string"] == "LOADED_IMAGE::LoadOptions";
            event.register == found && claim["type_name"] == kind && (found == 2 || named)
        });
        let real = real.unwrap();
        // As the real one, of the register of MRTD: nothing is measured there after the launch.
        forged.extend(0_u32.to_le_bytes());
        forged.extend(real.event_type.to_le_bytes());
        forged.extend([1, 0, 0, 0, 0x0C, 0]);
        forged.extend(digest);
        forged.extend((real.data.len() as u32).to_le_bytes());
        forged.extend(&real.data);
    }
    let (evidence, quote) = evidence_of(&platform, &forged);
    let mut references = references_of(&quote);
    references["tdvfkernel"] = json!([hex::encode([0xAA; 48])]);
    references["tdvfkernelparams"] = json!([hex::encode([0xBB; 48])]);
    let verdict = evaluate((&config, now), (Tee::SimTdx, &evidence), &references).await.unwrap();
    assert_eq!(vector(&verdict), [4, 2, 2], "the replay cannot refuse it, the policy must not count it");
    // In a register, the replay refuses it.
    let mut measured = evidence.clone();
    forged[written] = 2;
    measured["cc_eventlog"] = base64_standard(&forged).into();
    let refused = evaluate((&config, now), (Tee::SimTdx, &measured), &references).await.unwrap_err();
    assert!(matches!(&refused, ServiceError::Refused(Refusal { reason: Reason::EventLog, .. })), "{refused}");
}

/// A quote of hardware with the collateral of its time; its log was not recorded.
#[tokio::test]
async fn a_recorded_quote_is_judged_by_its_registers() {
    let Some(dir) = kata_cc_test_vectors::path("tdx/quotes/v4-uptodate") else { return };
    let bytes = std::fs::read(dir.join("quote.bin")).unwrap();
    let evidence = json!({"quote": base64_standard(&bytes), "cc_eventlog": null});
    let collateral = Collateral::from_bundle(&std::fs::read(dir.join("collateral.json")).unwrap()).unwrap();
    let key = kata_cc_verifier::tdx::collateral_key(&evidence).unwrap();
    let mut config = VerifierConfig::default();
    config.tdx.collateral = Some(Arc::new(BTreeMap::from([(key, Arc::new(collateral))])));
    // 2025-07-01.
    let at = (&config, 1_751_328_000);
    let references = references_of(&Quote::parse(&bytes, Trailing::Zeros).unwrap());
    let given = (Tee::Tdx, &evidence);
    let verdict = evaluate(at, given, &references).await.unwrap();
    assert_eq!(vector(&verdict), [4, 2, 2], "{:?}", verdict.findings);
    for (name, expected) in [("rtmr_2", [33, 2, 2]), ("mr_td", [4, 97, 2]), ("xfam", [4, 2, 36])] {
        let mut other = references.clone();
        other[name] = json!(["00"]);
        assert_eq!(vector(&evaluate(at, given, &other).await.unwrap()), expected, "{name}");
    }
    let verdict = evaluate(at, given, &json!({})).await.unwrap();
    assert_eq!(vector(&verdict), [33, 97, 36]);
}

/// The recorded quote and log of one guest of hardware belong together, and a boot through GRUB is told by its registers.
#[tokio::test]
async fn a_recorded_boot_loader_is_judged_by_its_registers() {
    let (Some(bytes), Some(quote)) = (
        kata_cc_test_vectors::read("tdx/eventlogs/ccel-gcp-cos113.bin"),
        kata_cc_test_vectors::read("tdx/quotes/v4-gcp-cos113/quote.bin"),
    ) else {
        return;
    };
    let recorded = Quote::parse(&quote, Trailing::Zeros).unwrap();
    EventLog::parse(&bytes).unwrap().check(&recorded.body.rtmr).unwrap().unwrap();
    // No collateral was recorded for it: a simulated quote has its registers.
    let (platform, config, now) = simulated();
    let (evidence, quote) = evidence_of(&platform, &bytes);
    assert_eq!(quote.body.rtmr, recorded.body.rtmr);
    let mut references = references_of(&quote);
    let log = EventLog::parse(&bytes).unwrap();
    references["tdvfkernel"] = log.events.iter().map(|event| hex::encode(&event.digests[0].1)).collect();
    references["tdvfkernelparams"] = references["tdvfkernel"].clone();
    let verdict = evaluate((&config, now), (Tee::SimTdx, &evidence), &references).await.unwrap();
    assert_eq!(vector(&verdict), [4, 2, 2], "no event of it is one of a kernel booted directly");
}
