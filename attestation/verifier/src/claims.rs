//! Claims under the names that Trustee's verifiers give them, so that its policies work unchanged.
//!
//! The same names stand under `snp` and `sim-snp`; the member that holds them tells which it is. Numbers
//! are numbers, flags are booleans, byte strings are lower-case hex. `vmpl`, `guest_svn` and what follows
//! in [`snp()`] after the comment are additions: Trustee does not publish them.

use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::Report;
use serde_json::{Map, Value, json};

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
    json!({
        "policy_abi_major": report.policy.abi_major(),
        "policy_abi_minor": report.policy.abi_minor(),
        "policy_smt_allowed": report.policy.smt_allowed(),
        "policy_migrate_ma": report.policy.migration_agent_allowed(),
        "policy_debug_allowed": report.policy.debug_allowed(),
        "policy_single_socket": report.policy.single_socket(),
        "reported_tcb_bootloader": report.reported_tcb.bootloader,
        "reported_tcb_tee": report.reported_tcb.tee,
        "reported_tcb_snp": report.reported_tcb.snp,
        "reported_tcb_microcode": report.reported_tcb.microcode,
        "platform_tsme_enabled": report.platform_info.tsme_enabled(),
        "platform_smt_enabled": report.platform_info.smt_enabled(),
        "measurement": hex::encode(report.measurement),
        "chip_id": hex::encode(report.chip_id),
        // Additions. The host can lower the reported TCB; committed and launch TCB show what it was.
        "report_version": report.version,
        "vmpl": report.vmpl,
        "guest_svn": report.guest_svn,
        "committed_tcb_bootloader": report.committed_tcb.bootloader,
        "committed_tcb_tee": report.committed_tcb.tee,
        "committed_tcb_snp": report.committed_tcb.snp,
        "committed_tcb_microcode": report.committed_tcb.microcode,
        "launch_tcb_bootloader": report.launch_tcb.bootloader,
        "launch_tcb_tee": report.launch_tcb.tee,
        "launch_tcb_snp": report.launch_tcb.snp,
        "launch_tcb_microcode": report.launch_tcb.microcode,
        "platform_alias_check_complete": report.platform_info.alias_check_complete(),
        "platform_ciphertext_hiding": report.platform_info.ciphertext_hiding(),
        "id_key_digest": hex::encode(report.id_key_digest),
        "author_key_digest": hex::encode(report.author_key_digest),
    })
}
