//! Evidence as JSON from a guest: a refusal, whatever it says, as its report data is not what was asked for.
#![no_main]

use kata_cc_kbs_protocol::Tee;
use kata_cc_verifier::{Evidence, ExpectedInitData, VerifierConfig, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(evidence) = serde_json::from_slice(data) else { return };
    let text = String::from_utf8_lossy(data);
    for tee in [Tee::Snp, Tee::SimSnp, Tee::Tdx, Tee::SimTdx] {
        let input = Evidence {
            tee,
            evidence: &evidence,
            report_data: Some(&[0; 48]),
            init_data: Some(ExpectedInitData::Toml(&text)),
        };
        assert!(verify(&VerifierConfig::default(), &input, 1_756_684_800).is_err());
    }
});
