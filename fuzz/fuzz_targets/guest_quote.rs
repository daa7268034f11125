//! `outblob` of the kernel's TSM interface, made by the host: SNP report or TDX quote, or refused.
#![no_main]

use kata_cc_attester::quote::{Quote, TdReport};
use kata_cc_attester::{RawReport, snp_evidence, tdx};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = TdReport::parse(data);
    if let Ok(quote) = Quote::parse(data) {
        let report_data = quote.report_data;
        assert!(tdx::checked(data.to_vec(), &report_data).is_ok());
        let mut other = report_data;
        other[0] ^= 1;
        assert!(tdx::checked(data.to_vec(), &other).is_err());
    }
    let (report, certificates) = data.split_at(data.len().min(1184));
    let Some(report_data) = report.get(0x50..0x90).and_then(|d| d.try_into().ok()) else { return };
    let raw = RawReport { report: report.to_vec(), certificates: certificates.to_vec() };
    let _ = snp_evidence(&raw, report_data, None);
});
