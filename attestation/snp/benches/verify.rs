//! What the verification of one report costs, beside the bare signature checks that it needs.
//!
//! `cargo bench -p kata-cc-snp` prints the figures. Target: a verification costs at most 1.2 times its signature checks, warm
//! (the chain is known: one P-384 check) and cold (three RSA-4096 checks and that one).
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, ParsedPublicKey};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::certs::{AMD_SIGNATURE, Certificate};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::report::SIGNED_LEN;
use kata_cc_snp::verify::{Anchor, verify_with};
use kata_cc_snp::{CertKind, CertTable, ChainCache, Endorsements, Report, Revocation, TrustAnchor, verify};

const TARGET: f64 = 1.2;

/// Rounds of each measurement, taken in turn so that all see the same machine.
const ROUNDS: usize = 400;

fn main() {
    // Cargo passes options of its own test harness.
    let dir = std::env::temp_dir().join(format!("kata-cc-bench-{}", std::process::id()));
    let platform = SimPlatform::create(&dir).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let report = platform.report(&ReportRequest::default()).unwrap();
    let table = CertTable::parse(&platform.certificate_table()).unwrap();
    let get = |kind| table.find(kind).unwrap().to_vec();
    let given = Endorsements { vek: get(CertKind::Vcek), ask: Some(get(CertKind::Ask)), ark: None };
    let anchor = TrustAnchor::Simulated(Box::new(platform.ark().clone()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();

    let ark = platform.ark().clone();
    let [ask, vek] = [CertKind::Ask, CertKind::Vcek].map(|kind| Certificate::from_der(&get(kind)).unwrap());
    let key = ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, vek.p384_public_key().unwrap()).unwrap();
    let signature = Report::parse(&report).unwrap().signature.to_fixed().unwrap();
    let evidence = SnpEvidence::new(&Report::parse(&report).unwrap(), &table);
    let evidence = serde_json::to_string(&evidence).unwrap();

    let cache = ChainCache::default();
    let anchor_ref: Anchor<'_> = (&anchor).into();
    let mut p384 = || key.verify_sig(&report[..SIGNED_LEN], &signature).unwrap();
    let mut rsa = || {
        assert!(ark.signed_by(&ark, AMD_SIGNATURE).unwrap());
        assert!(ask.signed_by(&ark, AMD_SIGNATURE).unwrap());
        assert!(vek.signed_by(&ask, AMD_SIGNATURE).unwrap());
    };
    let mut cold = || {
        black_box(verify(&report, &given, &anchor, now).unwrap());
    };
    let mut warm = || {
        let chain = || cache.chain(&given, anchor_ref, &Revocation::default(), now);
        black_box(verify_with(&report, anchor_ref, chain).unwrap());
    };
    let mut json = || {
        let evidence: SnpEvidence = serde_json::from_str(&evidence).unwrap();
        black_box((evidence.attestation_report.to_report().unwrap(), evidence.endorsements()));
    };
    let [p384, rsa, cold, warm, json] = medians([&mut p384, &mut rsa, &mut cold, &mut warm, &mut json]);

    println!("bare P-384 check of the report          {:>9.1} µs", micros(p384));
    println!("bare RSA-4096 checks of the chain (3)   {:>9.1} µs", micros(rsa));
    println!("reading evidence from its JSON text     {:>9.1} µs", micros(json));
    ratio("cold: chain and report", cold, p384 + rsa);
    ratio("warm: report, chain known", warm, p384);
}

fn ratio(what: &str, measured: Duration, floor: Duration) {
    let ratio = measured.as_secs_f64() / floor.as_secs_f64();
    let verdict = if ratio <= TARGET { "reached" } else { "missed" };
    let micros = micros(measured);
    println!(
        "{what:<38}  {micros:>9.1} µs, {ratio:.2} times its signature checks (target {TARGET}: {verdict})"
    );
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn medians<const N: usize>(mut steps: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let mut times = vec![Vec::with_capacity(ROUNDS); N];
    for _ in 0..ROUNDS {
        for (step, times) in steps.iter_mut().zip(&mut times) {
            let start = Instant::now();
            step();
            times.push(start.elapsed());
        }
    }
    let mut out = [Duration::ZERO; N];
    for (out, times) in out.iter_mut().zip(&mut times) {
        times.sort_unstable();
        *out = times[ROUNDS / 2];
    }
    out
}
