//! Claims under the names that Trustee's verifiers give them, so that its policies work unchanged.
//!
//! The same names stand under `snp` and `sim-snp`; the member that holds them tells which it is. Numbers
//! are numbers, flags are booleans, byte strings are lower-case hex. What Trustee does not publish stands beside its names.

use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::{Report, Verified};
use serde_json::{Map, Value};

/// The annotated evidence: the TEE's claims and what stands beside them.
#[must_use]
pub fn annotated(
    tee: Tee,
    tee_claims: Value,
    report_data: &[u8],
    init_data: &[u8],
    init_data_claims: Option<Value>,
) -> Value {
    let mut out = Map::new();
    out.insert(tee.name().to_owned(), tee_claims);
    out.insert("report_data".to_owned(), hex::encode(report_data).into());
    out.insert("init_data".to_owned(), hex::encode(init_data).into());
    if let Some(claims) = init_data_claims {
        out.insert("init_data_claims".to_owned(), claims);
    }
    out.into()
}

/// What an SNP report says, for the member named after the TEE.
#[must_use]
pub fn snp(report: &Report) -> Value {
    crate::snp_claims::of_report(report).into()
}

/// What a verified SNP report and its endorsements say, for the member named after the TEE.
#[must_use]
pub fn snp_verified(verified: &Verified) -> Value {
    crate::snp_claims::of_verified(verified).into()
}
