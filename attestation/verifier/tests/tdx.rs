//! Verdicts and refusals over simulated TDX evidence, and over real quotes.
#![allow(clippy::unwrap_used, missing_docs)]

mod runtime_log;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use kata_cc_kbs_protocol::initdata::InitData;
use kata_cc_kbs_protocol::{Tee, base64_standard};
use kata_cc_sim_tee::tdx::{QuoteRequest, TdxPlatform};
use kata_cc_tdx::{Collateral, VerifyError};
use kata_cc_verifier::tdx::collateral_key;
use kata_cc_verifier::{
    Evidence, ExpectedInitData, MAX_SIMULATED_ROOTS, Reason, Refusal, TdxConfig, Verdict, VerifierConfig,
    verify,
};
use serde_json::{Value, json};

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;

const DOCUMENT: &str = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\nother = \"text\"\n";

static PLATFORM: LazyLock<TdxPlatform> = LazyLock::new(|| TdxPlatform::create(NOW - 1).unwrap());

fn trusting(platforms: &[&TdxPlatform]) -> VerifierConfig {
    let mut config = VerifierConfig::default();
    for platform in platforms {
        config.add_simulated_roots(platform.root_pem().as_bytes()).unwrap();
    }
    config
}

fn looking_up(mut config: VerifierConfig, collateral: Collateral) -> VerifierConfig {
    let known = BTreeMap::from([(PLATFORM.collateral_key(), Arc::new(collateral))]);
    config.tdx = TdxConfig { collateral: Some(Arc::new(known)), ..TdxConfig::default() };
    config
}

/// One event measured into RTMR3, in a log.
fn log() -> (Vec<u8>, [[u8; 48]; 4]) {
    let (log, value) = runtime_log::log();
    (log, [[0; 48], [0; 48], [0; 48], value])
}

fn request() -> QuoteRequest {
    let mut report_data = [0; 64];
    report_data[..48].fill(9);
    let mr_config_id = InitData::parse(DOCUMENT).unwrap().digest().try_into().unwrap();
    QuoteRequest { report_data, mr_config_id, mr_td: [8; 48], rtmr: log().1, ..QuoteRequest::default() }
}

fn evidence_of(platform: &TdxPlatform, request: &QuoteRequest) -> Value {
    json!({
        "quote": base64_standard(&platform.quote(request).unwrap()),
        "cc_eventlog": base64_standard(&log().0),
        "collateral": platform.collateral().unwrap().to_value(),
    })
}

fn check(config: &VerifierConfig, tee: Tee, evidence: &Value) -> Result<Verdict, Refusal> {
    let init_data = Some(ExpectedInitData::Toml(DOCUMENT));
    verify(config, &Evidence { tee, evidence, report_data: Some(&[9; 48]), init_data }, NOW)
}

#[test]
fn simulated_evidence_is_accepted_and_labelled() {
    let verdict = check(&trusting(&[&PLATFORM]), Tee::SimTdx, &evidence_of(&PLATFORM, &request())).unwrap();
    assert_eq!(verdict.tee, Tee::SimTdx);
    assert!(verdict.claims.get("tdx").is_none(), "never called tdx");
    assert_eq!((verdict.measurement.as_slice(), verdict.report_data.len()), (&[8; 48][..], 64));
    let claims = verdict.tee_claims();
    assert_eq!(claims["quote"]["body"]["mr_td"], hex::encode([8; 48]));
    assert_eq!(
        (&claims["tcb_status"], &claims["td_attributes"]["debug"]),
        (&json!("UpToDate"), &json!(false))
    );
    assert_eq!(claims["uefi_event_logs"][0]["details"]["data"]["content"], json!({"image": "shop"}));
    assert_eq!(verdict.claims["init_data"], hex::encode(request().mr_config_id));
    assert_eq!(verdict.claims["init_data_claims"], json!({"other": "text"}));
}

#[test]
fn roots_decide() {
    let evidence = evidence_of(&PLATFORM, &request());
    let refused = check(&VerifierConfig::default(), Tee::SimTdx, &evidence).unwrap_err();
    assert_eq!(refused, Refusal::SimulatedNotConfigured { tee: Tee::SimTdx });
    assert!(refused.to_string().contains("sim-tdx protects nothing"), "{refused}");
    let other = TdxPlatform::create(NOW - 1).unwrap();
    let refused = check(&trusting(&[&other]), Tee::SimTdx, &evidence).unwrap_err();
    assert_eq!(refused.reason(), Reason::UntrustedRoot, "{refused}");
    assert!(check(&trusting(&[&other, &PLATFORM]), Tee::SimTdx, &evidence).is_ok(), "any of the roots");
    // Called by the hardware's name it meets Intel's root, whatever is configured and whatever it brings along.
    let config = trusting(&[&PLATFORM]);
    let refused = check(&config, Tee::Tdx, &evidence).unwrap_err();
    assert_eq!(refused, Refusal::CollateralMissing { key: PLATFORM.collateral_key() });
    assert_eq!((refused.reason(), refused.claim()), (Reason::Collateral, "collateral"));
    let config = looking_up(config, PLATFORM.collateral().unwrap());
    let refused = check(&config, Tee::Tdx, &evidence).unwrap_err();
    assert_eq!(refused.reason(), Reason::UntrustedRoot, "{refused}");
    // A root of TDX is none of SNP.
    let refused = check(&trusting(&[&PLATFORM]), Tee::SimSnp, &evidence).unwrap_err();
    assert_eq!(refused, Refusal::SimulatedNotConfigured { tee: Tee::SimSnp });
    let mut many = VerifierConfig::default();
    for _ in 0..MAX_SIMULATED_ROOTS {
        many.add_simulated_roots(PLATFORM.root_pem().as_bytes()).unwrap();
    }
    assert!(many.add_simulated_roots(PLATFORM.root_pem().as_bytes()).is_err());
    // All of a bundle, not only its first.
    let bundle = [TdxPlatform::create(NOW).unwrap().root_pem(), PLATFORM.root_pem()].concat();
    let mut both = VerifierConfig::default();
    both.add_simulated_roots(bundle.as_bytes()).unwrap();
    assert_eq!(both.simulated_tdx_roots.len(), 2);
}

#[test]
fn collateral_is_looked_up_when_none_is_brought() {
    let mut evidence = evidence_of(&PLATFORM, &request());
    evidence.as_object_mut().unwrap().remove("collateral");
    assert_eq!(collateral_key(&evidence), Ok(PLATFORM.collateral_key()));
    let refused = check(&trusting(&[&PLATFORM]), Tee::SimTdx, &evidence).unwrap_err();
    assert_eq!(refused.reason(), Reason::Collateral, "{refused}");
    let config = looking_up(trusting(&[&PLATFORM]), PLATFORM.collateral().unwrap());
    assert!(check(&config, Tee::SimTdx, &evidence).is_ok());
    let mut old = PLATFORM.tcb_info();
    old["nextUpdate"] = "2025-12-31T23:59:59Z".into();
    let old = PLATFORM.collateral_of(&old, &PLATFORM.qe_identity(), &[]).unwrap();
    let mut config = looking_up(trusting(&[&PLATFORM]), old);
    let refused = check(&config, Tee::SimTdx, &evidence).unwrap_err();
    assert!(matches!(refused, Refusal::Tdx(VerifyError::Expired { .. })), "{refused}");
    assert_eq!((refused.reason(), refused.claim()), (Reason::Collateral, "collateral_expiration_status"));
    config.tdx.settings.allow_expired_collateral = true;
    let verdict = check(&config, Tee::SimTdx, &evidence).unwrap();
    assert_eq!(verdict.tee_claims()["collateral_expiration_status"], "1");
}

#[test]
fn bindings_are_checked() {
    let config = trusting(&[&PLATFORM]);
    let refused =
        |request: &QuoteRequest| check(&config, Tee::SimTdx, &evidence_of(&PLATFORM, request)).unwrap_err();
    let mut replayed = request();
    replayed.report_data[0] = 1;
    assert_eq!(refused(&replayed).reason(), Reason::ReportData);
    let trailing = QuoteRequest { report_data: [9; 64], ..request() };
    assert_eq!(refused(&trailing).reason(), Reason::ReportData, "the padding is compared too");
    let other = refused(&QuoteRequest { mr_config_id: [1; 48], ..request() });
    assert_eq!((other.reason(), other.claim()), (Reason::InitData, "init_data"));
    assert!(other.to_string().starts_with("MRCONFIGID is 0101"), "{other}");
    let mut rtmr = request().rtmr;
    rtmr[2][0] = 1;
    let other = refused(&QuoteRequest { rtmr, ..request() });
    assert_eq!((other.reason(), other.claim()), (Reason::EventLog, "uefi_event_logs"));
    assert!(other.to_string().starts_with("RTMR2 is 01"), "{other}");
    assert_eq!(other.expected(), Some("00".repeat(48)));
    // Shorter digests are padded: an init-data document may name SHA-256.
    let mut padded = request();
    padded.mr_config_id = [0; 48];
    padded.mr_config_id[..32].fill(3);
    let evidence = evidence_of(&PLATFORM, &padded);
    let input = |digest| Evidence {
        tee: Tee::SimTdx,
        evidence: &evidence,
        report_data: None,
        init_data: Some(ExpectedInitData::Digest(digest)),
    };
    assert!(verify(&config, &input(&[3; 32]), NOW).is_ok());
    assert!(verify(&config, &input(&[3; 33]), NOW).is_err());
}

#[test]
fn a_log_is_no_duty() {
    let config = trusting(&[&PLATFORM]);
    let mut evidence = evidence_of(&PLATFORM, &request());
    for none in [Value::Null, json!("")] {
        evidence["cc_eventlog"] = none;
        let verdict = check(&config, Tee::SimTdx, &evidence).unwrap();
        assert!(verdict.tee_claims().get("uefi_event_logs").is_none());
    }
}

#[test]
fn malformed_evidence_is_refused() {
    let config = trusting(&[&PLATFORM]);
    let evidence = evidence_of(&PLATFORM, &request());
    let with = |name: &str, value: Value| {
        let mut changed = evidence.clone();
        changed[name] = value;
        check(&config, Tee::SimTdx, &changed).unwrap_err().reason()
    };
    for quote in [json!(""), json!("!"), json!(7), json!("AAAA"), Value::Null] {
        assert_eq!(with("quote", quote), Reason::Malformed);
    }
    for log in [json!("!"), json!("AAAA"), json!(7)] {
        assert_eq!(with("cc_eventlog", log), Reason::Malformed);
    }
    assert_eq!(with("collateral", json!({})), Reason::Collateral);
    assert_eq!(check(&config, Tee::SimTdx, &json!([])).unwrap_err().reason(), Reason::Malformed);
    let mut changed = PLATFORM.quote(&request()).unwrap();
    changed[200] ^= 1;
    assert_eq!(with("quote", base64_standard(&changed).into()), Reason::Signature);
}

#[test]
fn real_quotes_are_tdx() {
    let Some(dir) = kata_cc_test_vectors::path("tdx/quotes/v4-uptodate") else { return };
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let evidence = json!({"quote": base64_standard(&read("quote.bin")), "cc_eventlog": null});
    let key = collateral_key(&evidence).unwrap();
    assert_eq!(key.to_string(), "FMSPC B0C06F000000 (PCK authority: platform)");
    let collateral = Arc::new(Collateral::from_bundle(&read("collateral.json")).unwrap());
    let mut config = VerifierConfig::default();
    config.tdx.collateral = Some(Arc::new(BTreeMap::from([(key, collateral)])));
    let input = Evidence { tee: Tee::Tdx, evidence: &evidence, report_data: None, init_data: None };
    // 2025-07-01, and a month later.
    let verdict = verify(&config, &input, 1_751_328_000).unwrap();
    assert_eq!((verdict.tee, &verdict.tee_claims()["tcb_status"]), (Tee::Tdx, &json!("UpToDate")));
    assert_eq!(verify(&config, &input, 1_754_006_400).unwrap_err().reason(), Reason::Collateral);
    let zeros = Evidence { init_data: Some(ExpectedInitData::Digest(&[0; 48])), ..input };
    assert!(verify(&config, &zeros, 1_751_328_000).is_ok());
    let other = Evidence { report_data: Some(&[0; 48]), ..input };
    assert_eq!(verify(&config, &other, 1_751_328_000).unwrap_err().reason(), Reason::ReportData);
    // With the label of a simulated platform it is not accepted.
    let simulated = Evidence { tee: Tee::SimTdx, ..input };
    let mut config = trusting(&[&PLATFORM]);
    config.tdx.collateral = Some(Arc::new(BTreeMap::from([(
        key,
        Arc::new(Collateral::from_bundle(&read("collateral.json")).unwrap()),
    )])));
    assert_eq!(verify(&config, &simulated, 1_751_328_000).unwrap_err().reason(), Reason::UntrustedRoot);
}
