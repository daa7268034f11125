//! What the verification of one SNP report costs, beside the bare signature checks that it needs: warm (the chain is known: one P-384
//! check) and cold (three RSA-4096 checks and that one).

use std::hint::black_box;
use std::time::Instant;

use anyhow::Context as _;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, ParsedPublicKey};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::certs::{AMD_SIGNATURE, Certificate};
use kata_cc_snp::report::SIGNED_LEN;
use kata_cc_snp::verify::{Anchor, verify_with};
use kata_cc_snp::{CertKind, CertTable, ChainCache, Endorsements, Report, Revocation, TrustAnchor, verify};
use serde_json::{Value, json};

use crate::median_and_least;

const TARGET: f64 = 1.2;

/// Rounds of each measurement, taken in turn so that all see the same machine.
const ROUNDS: usize = 400;

/// Measures; JSON rows for `./x bench`.
pub(crate) fn snp() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let platform = SimPlatform::create(folder.path())?;
    let report = platform.report(&ReportRequest::default())?;
    let table = CertTable::parse(&platform.certificate_table())?;
    let get = |kind| table.find(kind).map(<[u8]>::to_vec).context("the platform has no such certificate");
    let given = Endorsements { vek: get(CertKind::Vcek)?, ask: Some(get(CertKind::Ask)?), ark: None };
    let anchor = TrustAnchor::Simulated(Box::new(platform.ark().clone()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let ark = platform.ark().clone();
    let (ask, vek) =
        (Certificate::from_der(&get(CertKind::Ask)?)?, Certificate::from_der(&get(CertKind::Vcek)?)?);
    let key = ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, vek.p384_public_key()?)?;
    let signature = Report::parse(&report)?.signature.to_fixed().context("the signature is none of P-384")?;

    let cache = ChainCache::default();
    let anchor_ref: Anchor<'_> = (&anchor).into();
    let mut p384 = || assert!(key.verify_sig(&report[..SIGNED_LEN], &signature).is_ok());
    let mut rsa = || {
        for (signed, by) in [(&ark, &ark), (&ask, &ark), (&vek, &ask)] {
            assert!(matches!(signed.signed_by(by, AMD_SIGNATURE), Ok(true)));
        }
    };
    let mut cold = || assert!(black_box(verify(&report, &given, &anchor, now)).is_ok());
    let mut warm = || {
        let chain = || cache.chain(&given, anchor_ref, &Revocation::default(), now);
        assert!(black_box(verify_with(&report, anchor_ref, chain)).is_ok());
    };
    let [p384, rsa, cold, warm] = medians([&mut p384, &mut rsa, &mut cold, &mut warm]);
    let rows = [
        row("report, chain known", warm, p384),
        row("report and chain", cold, (p384.0 + rsa.0, p384.1 + rsa.1)),
    ];
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

/// A row; each figure is a median and the least, in microseconds.
fn row(metric: &str, ours: (f64, f64), floor: (f64, f64)) -> Value {
    let ratio = ours.0 / floor.0;
    json!({
        "metric": metric, "unit": "us", "ours": ours.0, "ours_min": ours.1, "peer": floor.0, "peer_min": floor.1,
        "peer_name": "the bare signature checks (aws-lc)", "ratio": ratio,
        "target": format!("ratio <= {TARGET}"), "met": ratio <= TARGET, "repeated": ROUNDS,
    })
}

/// Median and least of each step, in microseconds.
fn medians<const N: usize>(mut steps: [&mut dyn FnMut(); N]) -> [(f64, f64); N] {
    let mut times = vec![Vec::with_capacity(ROUNDS); N];
    for _ in 0..ROUNDS {
        for (step, times) in steps.iter_mut().zip(&mut times) {
            let start = Instant::now();
            step();
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    std::array::from_fn(|step| median_and_least(times[step].iter().copied()))
}
