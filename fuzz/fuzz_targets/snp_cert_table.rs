//! Certificate tables from the host: parsed or refused, and what was parsed survives writing and reading.
#![no_main]

use kata_cc_snp::CertTable;
use kata_cc_snp::certs::{AMD_SIGNATURE, Certificate, VekExtensions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(table) = CertTable::parse(data) else { return };
    for (_, blob) in &table.entries {
        if let Ok(cert) = Certificate::from_der_or_pem(blob) {
            let _ = (VekExtensions::of(&cert), cert.check_authority(), cert.signed_by(&cert, AMD_SIGNATURE));
        }
    }
    let written = table.to_bytes();
    if written.len() <= kata_cc_snp::cert_table::MAX_TABLE {
        assert_eq!(CertTable::parse(&written), Ok(table));
    }
});
