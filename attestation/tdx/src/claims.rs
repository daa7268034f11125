//! Claims under the names that Trustee's `tdx` verifier gives them, so that its policies work unchanged.
//!
//! Byte strings are lower-case hex of the bytes as they stand in memory, numbers of the collateral are numbers, flags
//! are booleans. Additions, which Trustee does not publish: more of `td_attributes`, `fmspc`, `pce_svn`,
//! `qe_isv_svn`, and the status of each part (`platform_tcb_status`, `tdx_module_tcb_status`, `qe_tcb_status`).

use serde_json::{Map, Value, json};

use crate::event_details;
use crate::event_log::EventLog;
use crate::quote::{INTEL_QE_VENDOR, KEY_TYPE_ECDSA_P256, Quote, TEE_TYPE_TDX};
use crate::report::TdReportBody;
use crate::verify::Verified;

/// What quote, collateral and log say, for the member named after the TEE. `report_data` and `init_data` are not
/// among them: they stand beside it.
#[must_use]
pub fn tee_claims(verified: &Verified, log: Option<&EventLog>) -> Value {
    let mut out = quote_claims(&verified.quote, log);
    out.extend(platform_claims(verified));
    out.into()
}

/// What a quote says, verified or not: only to be shown.
#[must_use]
pub fn quote_claims(quote: &Quote, log: Option<&EventLog>) -> Map<String, Value> {
    let header = json!({
        "version": hex::encode(quote.header.version.to_le_bytes()),
        "att_key_type": hex::encode(KEY_TYPE_ECDSA_P256.to_le_bytes()),
        "tee_type": hex::encode(TEE_TYPE_TDX.to_le_bytes()),
        "reserved": hex::encode(quote.header.reserved),
        "vendor_id": hex::encode(INTEL_QE_VENDOR),
        "user_data": hex::encode(quote.header.user_data),
    });
    let mut members = Map::from_iter([("header".to_owned(), header), ("body".to_owned(), body(&quote.body))]);
    if let Some((kind, size)) = quote.body_type() {
        members.insert("type".to_owned(), hex::encode(kind.to_le_bytes()).into());
        members.insert("size".to_owned(), hex::encode(size.to_le_bytes()).into());
    }
    let mut out = Map::from_iter([
        ("quote".to_owned(), members.into()),
        ("td_attributes".to_owned(), attributes(&quote.body)),
    ]);
    if let Some(log) = log {
        let events: Vec<Value> = log.events.iter().map(event_details::claim).collect();
        out.insert("uefi_event_logs".to_owned(), events.into());
    }
    out
}

fn body(body: &TdReportBody) -> Value {
    let [rtmr_0, rtmr_1, rtmr_2, rtmr_3] = body.rtmr.map(hex::encode);
    let mut out = json!({
        "tcb_svn": hex::encode(body.tee_tcb_svn),
        "mr_seam": hex::encode(body.mr_seam),
        "mrsigner_seam": hex::encode(body.mrsigner_seam),
        "seam_attributes": hex::encode(body.seam_attributes),
        "td_attributes": hex::encode(body.td_attributes),
        "xfam": hex::encode(body.xfam),
        "mr_td": hex::encode(body.mr_td),
        "mr_config_id": hex::encode(body.mr_config_id),
        "mr_owner": hex::encode(body.mr_owner),
        "mr_owner_config": hex::encode(body.mr_owner_config),
        "rtmr_0": rtmr_0,
        "rtmr_1": rtmr_1,
        "rtmr_2": rtmr_2,
        "rtmr_3": rtmr_3,
        "report_data": hex::encode(body.report_data),
    });
    if let (Some(td15), Some(members)) = (&body.td15, out.as_object_mut()) {
        members.insert("tee_tcb_svn2".to_owned(), hex::encode(td15.tee_tcb_svn2).into());
        members.insert("mr_servicetd".to_owned(), hex::encode(td15.mr_servicetd).into());
    }
    out
}

fn attributes(body: &TdReportBody) -> Value {
    let attributes = body.attributes();
    json!({
        "debug": attributes.debug(),
        "septve_disable": attributes.septve_disable(),
        "protection_keys": attributes.protection_keys(),
        "key_locker": attributes.key_locker(),
        "perfmon": attributes.perfmon(),
        // Additions.
        "untrusted": attributes.untrusted(),
        "migratable": attributes.migratable(),
    })
}

fn platform_claims(verified: &Verified) -> Map<String, Value> {
    let (pck, tcb, collateral) = (&verified.pck, &verified.tcb, &verified.collateral);
    let mut out = Map::new();
    let mut add = |name: &str, value: Value| {
        out.insert(name.to_owned(), value);
    };
    add("tcb_status", tcb.status.name().into());
    add("tcb_date", tcb.platform.date.to_string().into());
    add("advisory_ids", tcb.advisory_ids().into());
    // A text, as in Trustee: "0" when all collateral is current, "1" when some has expired.
    add("collateral_expiration_status", if collateral.expired { "1" } else { "0" }.into());
    add("earliest_issue_date", collateral.earliest_issue.to_string().into());
    add("latest_issue_date", collateral.latest_issue.to_string().into());
    add("earliest_expiration_date", collateral.earliest_expiration.to_string().into());
    add("pck_crl_num", collateral.pck_crl_number.into());
    add("root_ca_crl_num", collateral.root_crl_number.into());
    add("tcb_eval_num", collateral.tcb_evaluation_data_number.into());
    add("root_key_id", collateral.root_key_id.clone().into());
    add("platform_provider_id", hex::encode(pck.ppid).into());
    add("sgx_type", pck.sgx_type.name().into());
    if let Some(mut id) = pck.platform_instance {
        // Trustee writes the bytes in reverse.
        id.reverse();
        add("platform_instance_id", hex::encode(id).into());
    }
    if let Some(flags) = pck.configuration {
        add("is_dynamic_platform", flags.dynamic_platform.into());
        // Trustee has had both names.
        add("is_cached_keys", flags.cached_keys.into());
        add("is_cached_keys_policy", flags.cached_keys.into());
        add("is_smt_enabled", flags.smt_enabled.into());
    }
    // Additions.
    add("fmspc", hex::encode(pck.fmspc).into());
    add("pce_svn", pck.pce_svn.into());
    add("qe_isv_svn", verified.quote.qe_report.isv_svn.into());
    add("platform_tcb_status", tcb.platform.status.name().into());
    add("tdx_module_tcb_status", tcb.module.as_ref().map(|level| level.status.name()).into());
    add("qe_tcb_status", tcb.qe.status.name().into());
    out
}
