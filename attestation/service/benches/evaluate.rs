//! Where the time of an evaluation goes: `cargo bench --profile release -p kata-cc-attestation-service`.
//!
//! One thread, simulated SEV-SNP evidence with its certificates, the built-in policy, and reference values as a small installation has
//! them. Printed are the means of the steps as the service itself tells them, and beside them the floor: the signatures that the
//! evaluation needs, made by the same library.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic, and prints")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    KeyPair as _, UnparsedPublicKey,
};
use kata_cc_attestation_service::jws::SigningKey;
use kata_cc_attestation_service::service::{AttestationService, Binding, Evaluate, ExpectedInitData};
use kata_cc_attestation_service::store::{Store, StoreKey};
use kata_cc_attestation_service::token::TokenBroker;
use kata_cc_attestation_service::verify::{SampleVerifier, Verifiers};
use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::initdata::InitData;
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, canonical};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report};
use serde_json::json;

const ROUNDS: u32 = 500;
const INIT_DATA: &str = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"aa.toml\" = \"[token_configs.kbs]\\nurl = \\\"https://kbs.example\\\"\"\n";

fn mean(total: Duration, rounds: u32) -> f64 {
    total.as_secs_f64() * 1e6 / f64::from(rounds)
}

fn floor() -> (f64, f64) {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, document.as_ref()).unwrap();
    let message = [7; 672];
    let signature = key.sign(&random, &message).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.public_key().as_ref().to_vec());
    let start = Instant::now();
    for _ in 0..ROUNDS {
        public.verify(&message, signature.as_ref()).unwrap();
    }
    let verify = mean(start.elapsed(), ROUNDS);
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        key.sign(&random, &message).unwrap();
    }
    (verify, mean(start.elapsed(), ROUNDS))
}

async fn service(platform: &SimPlatform, measurement: &str, init_data: &str) -> AttestationService {
    let mut config = kata_cc_verifier::VerifierConfig::default();
    config.add_simulated_roots(platform.ark_pem().unwrap().as_bytes()).unwrap();
    let verifiers = Verifiers { config, sample: SampleVerifier { enabled: false } };
    let key = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
    let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
    let broker = TokenBroker::new(key, "bench", 5);
    let service = AttestationService::new(store, Box::new(verifiers), broker).await.unwrap();
    let mut measurements: Vec<String> = (0..99).map(|n| format!("{n:096x}")).collect();
    measurements.push(measurement.to_owned());
    let mut values = BTreeMap::from([
        ("sim_snp_launch_measurement".to_owned(), json!(measurements)),
        ("init_data".to_owned(), json!([init_data])),
    ]);
    values.extend((0..100).map(|n| (format!("other_{n}"), json!([n]))));
    service.set_reference_values(&values).await.unwrap();
    service
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let platform = SimPlatform::create(&folder.path().join("sim")).unwrap();
    let document = InitData::parse(INIT_DATA).unwrap();
    let host_data: [u8; 32] = kata_cc_kbs_protocol::initdata::fit(&document.digest());
    let measurement = [0xab; 48];
    let service = service(&platform, &hex::encode(measurement), &hex::encode(host_data)).await;
    let bound = json!({"nonce": "bm9uY2U=", "additional-evidence": "", "tee-pubkey": {"kty": "EC", "crv": "P-256",
        "alg": "ECDH-ES+A256KW", "x": "A".repeat(43), "y": "B".repeat(43)}});
    let mut report_data = [0; 64];
    report_data[..48].copy_from_slice(&HashAlgorithm::Sha384.digest(&canonical(&bound)));
    let request = Evaluate {
        tee: Tee::SimSnp,
        evidence: evidence(
            &platform,
            &ReportRequest { report_data, measurement, host_data, ..ReportRequest::default() },
        ),
        binding: Some(Binding::Structured(bound)),
        hash: HashAlgorithm::Sha384,
        init_data: Some(ExpectedInitData::Toml(INIT_DATA.to_owned())),
        policy_id: String::new(),
    };
    let verdict = service.evaluate(&request).await.unwrap();
    assert_eq!(verdict.vector.status().name(), "affirming", "{:?}", verdict.findings);
    let (mut verify, mut appraise, mut issue) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let verdict = service.evaluate(&request).await.unwrap();
        verify += verdict.timings.verify;
        appraise += verdict.timings.appraise;
        issue += verdict.timings.issue;
    }
    let total = mean(start.elapsed(), ROUNDS);
    let (verify_floor, sign_floor) = floor();
    println!("one evaluation of simulated SNP evidence, mean of {ROUNDS}, one thread, µs");
    println!("  verify    {:8.1}   (floor: one P-384 verification {verify_floor:.1})", mean(verify, ROUNDS));
    println!("  appraise  {:8.1}   ({} comparisons)", mean(appraise, ROUNDS), verdict.explanation.len());
    println!("  issue     {:8.1}   (floor: one P-256 signature {sign_floor:.1})", mean(issue, ROUNDS));
    println!(
        "  all       {total:8.1}   = {:.0} evaluations a second; token of {} bytes",
        1e6 / total,
        verdict.token.len()
    );
}

fn evidence(platform: &SimPlatform, request: &ReportRequest) -> serde_json::Value {
    let report = Report::parse(&platform.report(request).unwrap()).unwrap();
    let table = CertTable::parse(&platform.certificate_table()).unwrap();
    serde_json::to_value(SnpEvidence::new(&report, &table)).unwrap()
}

fn main() {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run());
}
