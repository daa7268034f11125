//! Report bytes from anywhere: parsed or refused, and what was parsed survives writing and reading.
#![no_main]

use kata_cc_snp::verify::Product;
use kata_cc_snp::{Endorsements, Report, Reserved, TrustAnchor, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(report) = Report::parse_with(data, Reserved::Ignore) {
        assert_eq!(Report::parse(&report.to_bytes()), Ok(report));
    }
    let vek = data.get(1184..).unwrap_or_default().to_vec();
    let given = Endorsements { vek, ask: None, ark: None };
    let report = data.get(..1184).unwrap_or(data);
    // A real report with its real key, as a seed, may well verify.
    let _ = verify(report, &given, &TrustAnchor::Amd(Product::Milan), 1_756_684_800);
});
