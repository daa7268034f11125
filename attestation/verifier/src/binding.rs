//! Report data: how evidence is bound to one exchange, that is, to its nonce and the guest's key.
//!
//! Trustee: the report data is a hash (SHA-384 unless the challenge selected another) over the canonical
//! JSON (RFC 8785) of `additional-evidence`, `nonce` and `tee-pubkey`, written at the front of the TEE's
//! field and padded with zeros. A digest longer than the field is cut.

use kata_cc_kbs_protocol::initdata::fit;
use kata_cc_kbs_protocol::rcar::{HashAlgorithm, RuntimeData};

use crate::Refusal;

/// The report data that evidence for this exchange has to carry. Guest and verifier both compute it.
#[must_use]
pub fn report_data(runtime: &RuntimeData, additional_evidence: &str, hash: HashAlgorithm) -> [u8; 64] {
    fit(&hash.digest(&runtime.canonical_primary(additional_evidence)))
}

/// Compares the field with the digest expected, after fitting it to the field.
pub(crate) fn check_report_data(seen: &[u8; 64], expected: &[u8]) -> Result<(), Refusal> {
    let expected: [u8; 64] = fit(expected);
    if *seen == expected {
        return Ok(());
    }
    Err(Refusal::ReportData { seen: hex::encode(seen), expected: hex::encode(expected) })
}
