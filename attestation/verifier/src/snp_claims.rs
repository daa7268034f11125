//! Claims of an SNP report: Trustee's names first, then ours. `docs/claims-snp.md` lists them all.
//!
//! What a report does not have (mitigation vectors before version 5, FMC before Turin) has no claim.

use kata_cc_snp::verify::AnchorKind;
use kata_cc_snp::{CrlStatus, GuestPolicy, PlatformInfo, Report, Tcb, VekKind, Verified};
use serde_json::{Map, Value};

/// What the report says.
pub(crate) fn of_report(report: &Report) -> Map<String, Value> {
    let mut out = Map::new();
    put_policy(&mut out, report.policy);
    put_platform(&mut out, report.platform_info);
    put_tcb(&mut out, "reported_tcb", &report.reported_tcb);
    // The host can lower the reported TCB; the others show what it was.
    put_tcb(&mut out, "committed_tcb", &report.committed_tcb);
    put_tcb(&mut out, "launch_tcb", &report.launch_tcb);
    put_tcb(&mut out, "current_tcb", &report.current_tcb);
    for (name, version) in
        [("current_version", report.current_version), ("committed_version", report.committed_version)]
    {
        put(&mut out, name, version.to_string());
        // A text cannot be compared by a policy.
        put(&mut out, &format!("{name}_major"), version.major);
        put(&mut out, &format!("{name}_minor"), version.minor);
        put(&mut out, &format!("{name}_build"), version.build);
    }
    put(&mut out, "report_version", report.version);
    put(&mut out, "vmpl", report.vmpl);
    put(&mut out, "guest_svn", report.guest_svn);
    put(&mut out, "author_key_enabled", report.key_info.author_key_enabled());
    put(&mut out, "chip_key_masked", report.key_info.chip_key_masked());
    for (name, bytes) in [
        ("measurement", report.measurement.as_slice()),
        ("chip_id", &report.chip_id),
        ("id_key_digest", &report.id_key_digest),
        ("author_key_digest", &report.author_key_digest),
        ("family_id", &report.family_id),
        ("image_id", &report.image_id),
        ("report_id", &report.report_id),
        ("report_id_ma", &report.report_id_ma),
    ] {
        put(&mut out, name, hex::encode(bytes));
    }
    if let Some(cpu) = report.cpuid {
        put(&mut out, "cpuid_family", cpu.family);
        put(&mut out, "cpuid_model", cpu.model);
        put(&mut out, "cpuid_stepping", cpu.stepping);
    }
    for (name, vector) in
        [("launch_mit_vector", report.launch_mit_vector), ("current_mit_vector", report.current_mit_vector)]
    {
        if let Some(vector) = vector {
            put(&mut out, name, bits(vector));
        }
    }
    out
}

/// What the report says, and what its endorsements say.
pub(crate) fn of_verified(verified: &Verified) -> Map<String, Value> {
    let mut out = of_report(&verified.report);
    let kind = match verified.vek {
        VekKind::Vcek => "vcek",
        VekKind::Vlek => "vlek",
    };
    put(&mut out, "vek_kind", kind);
    put(&mut out, "vek_product", verified.extensions.product_name.clone());
    if let AnchorKind::Amd(product) = verified.anchor {
        put(&mut out, "product", product.name());
    }
    if let Some(id) = &verified.extensions.csp_id {
        put(&mut out, "csp_id", id.clone());
    }
    let status = match verified.crl {
        CrlStatus::Absent => "absent",
        CrlStatus::Checked => "checked",
        CrlStatus::Expired => "expired",
    };
    put(&mut out, "crl_checked", verified.crl == CrlStatus::Checked);
    put(&mut out, "crl_status", status);
    out
}

fn put_policy(out: &mut Map<String, Value>, policy: GuestPolicy) {
    put(out, "policy", bits(policy.0));
    put(out, "policy_abi_major", policy.abi_major());
    put(out, "policy_abi_minor", policy.abi_minor());
    for (name, flag) in [
        ("policy_smt_allowed", policy.smt_allowed()),
        ("policy_migrate_ma", policy.migration_agent_allowed()),
        ("policy_debug_allowed", policy.debug_allowed()),
        ("policy_single_socket", policy.single_socket()),
        ("policy_cxl_allowed", policy.cxl_allowed()),
        ("policy_aes_256_xts_required", policy.aes_256_xts_required()),
        ("policy_rapl_disabled_required", policy.rapl_disabled_required()),
        ("policy_ciphertext_hiding_required", policy.ciphertext_hiding_required()),
        ("policy_page_swap_disabled", policy.page_swap_disabled()),
    ] {
        put(out, name, flag);
    }
}

fn put_platform(out: &mut Map<String, Value>, info: PlatformInfo) {
    put(out, "platform_info", bits(info.0));
    for (name, flag) in [
        ("platform_smt_enabled", info.smt_enabled()),
        ("platform_tsme_enabled", info.tsme_enabled()),
        ("platform_ecc_enabled", info.ecc_enabled()),
        ("platform_rapl_disabled", info.rapl_disabled()),
        ("platform_ciphertext_hiding", info.ciphertext_hiding()),
        ("platform_alias_check_complete", info.alias_check_complete()),
        ("platform_tio_enabled", info.tio_enabled()),
    ] {
        put(out, name, flag);
    }
}

fn put_tcb(out: &mut Map<String, Value>, name: &str, tcb: &Tcb) {
    if let Some(fmc) = tcb.fmc {
        put(out, &format!("{name}_fmc"), fmc);
    }
    put(out, &format!("{name}_bootloader"), tcb.bootloader);
    put(out, &format!("{name}_tee"), tcb.tee);
    put(out, &format!("{name}_snp"), tcb.snp);
    put(out, &format!("{name}_microcode"), tcb.microcode);
}

fn put(out: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    out.insert(name.to_owned(), value.into());
}

/// Fields of 64 bits are texts: JSON readers may take numbers of more than 53 bits for others.
fn bits(value: u64) -> String {
    format!("{value:#x}")
}
