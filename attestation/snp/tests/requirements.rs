//! Demands on a report: each that is not met is told, all of them together, and none that is met.
#![allow(clippy::unwrap_used, missing_docs)]

mod authority;

use authority::{Authority, Chip, NOW};
use kata_cc_snp::requirements::{AbiVersion, Difference};
use kata_cc_snp::{HexBytes, Report, ReportError, Requirements, Tcb, VekKind, Verified, VerifyError, verify};
use serde_json::{Value, json};

fn verified(of: &Authority, report: &Report) -> Verified {
    verify(&of.sign(report), &of.endorsements(), &of.anchor(), NOW).unwrap()
}

fn requirements(value: Value) -> Requirements {
    serde_json::from_value(value).unwrap()
}

fn claims(differences: &[Difference]) -> Vec<&'static str> {
    differences.iter().map(|difference| difference.claim).collect()
}

/// Every demand by itself: one that the report meets, one that it does not, and the claim that is told.
fn each() -> Vec<(Value, Value, &'static str)> {
    let hex = |byte: u8, len: usize| hex::encode(vec![byte; len]);
    vec![
        (
            json!({"policy": {"debug_allowed": false}}),
            json!({"policy": {"debug_allowed": true}}),
            "policy_debug_allowed",
        ),
        (
            json!({"policy": {"migration_agent_allowed": false}}),
            json!({"policy": {"migration_agent_allowed": true}}),
            "policy_migrate_ma",
        ),
        (
            json!({"policy": {"smt_allowed": true}}),
            json!({"policy": {"smt_allowed": false}}),
            "policy_smt_allowed",
        ),
        (
            json!({"policy": {"single_socket": false}}),
            json!({"policy": {"single_socket": true}}),
            "policy_single_socket",
        ),
        (
            json!({"policy": {"cxl_allowed": false}}),
            json!({"policy": {"cxl_allowed": true}}),
            "policy_cxl_allowed",
        ),
        (
            json!({"policy": {"aes_256_xts_required": false}}),
            json!({"policy": {"aes_256_xts_required": true}}),
            "policy_aes_256_xts_required",
        ),
        (
            json!({"policy": {"rapl_disabled_required": false}}),
            json!({"policy": {"rapl_disabled_required": true}}),
            "policy_rapl_disabled_required",
        ),
        (
            json!({"policy": {"ciphertext_hiding_required": false}}),
            json!({"policy": {"ciphertext_hiding_required": true}}),
            "policy_ciphertext_hiding_required",
        ),
        (
            json!({"policy": {"page_swap_disabled": false}}),
            json!({"policy": {"page_swap_disabled": true}}),
            "policy_page_swap_disabled",
        ),
        (
            json!({"minimum_abi": {"major": 1, "minor": 0x37}}),
            json!({"minimum_abi": {"major": 2, "minor": 0}}),
            "policy_abi",
        ),
        (
            json!({"platform": {"smt_enabled": true}}),
            json!({"platform": {"smt_enabled": false}}),
            "platform_smt_enabled",
        ),
        (
            json!({"platform": {"tsme_enabled": false}}),
            json!({"platform": {"tsme_enabled": true}}),
            "platform_tsme_enabled",
        ),
        (
            json!({"platform": {"ecc_enabled": true}}),
            json!({"platform": {"ecc_enabled": false}}),
            "platform_ecc_enabled",
        ),
        (
            json!({"platform": {"rapl_disabled": false}}),
            json!({"platform": {"rapl_disabled": true}}),
            "platform_rapl_disabled",
        ),
        (
            json!({"platform": {"ciphertext_hiding": false}}),
            json!({"platform": {"ciphertext_hiding": true}}),
            "platform_ciphertext_hiding",
        ),
        (
            json!({"platform": {"alias_check_complete": true}}),
            json!({"platform": {"alias_check_complete": false}}),
            "platform_alias_check_complete",
        ),
        (
            json!({"platform": {"tio_enabled": false}}),
            json!({"platform": {"tio_enabled": true}}),
            "platform_tio_enabled",
        ),
        (
            json!({"minimum_firmware": {"current": {"major": 1, "minor": 55, "build": 30}}}),
            json!({"minimum_firmware": {"current": {"major": 1, "minor": 56, "build": 0}}}),
            "current_version",
        ),
        (
            json!({"minimum_firmware": {"committed": {"major": 1, "minor": 55, "build": 29}}}),
            json!({"minimum_firmware": {"committed": {"major": 1, "minor": 55, "build": 30}}}),
            "committed_version",
        ),
        (
            json!({"minimum_tcb": {"reported": {"fmc": 1}}}),
            json!({"minimum_tcb": {"reported": {"fmc": 2}}}),
            "reported_tcb_fmc",
        ),
        (
            json!({"minimum_tcb": {"committed": {"bootloader": 1}}}),
            json!({"minimum_tcb": {"committed": {"bootloader": 2}}}),
            "committed_tcb_bootloader",
        ),
        (
            json!({"minimum_tcb": {"launch": {"tee": 2}}}),
            json!({"minimum_tcb": {"launch": {"tee": 3}}}),
            "launch_tcb_tee",
        ),
        (
            json!({"minimum_tcb": {"current": {"snp": 3}}}),
            json!({"minimum_tcb": {"current": {"snp": 4}}}),
            "current_tcb_snp",
        ),
        (
            json!({"minimum_tcb": {"current": {"microcode": 72}}}),
            json!({"minimum_tcb": {"current": {"microcode": 73}}}),
            "current_tcb_microcode",
        ),
        (json!({"minimum_guest_svn": 7}), json!({"minimum_guest_svn": 8}), "guest_svn"),
        (json!({"family_ids": [hex(9, 16), hex(1, 16)]}), json!({"family_ids": [hex(9, 16)]}), "family_id"),
        (json!({"image_ids": [hex(2, 16)]}), json!({"image_ids": [hex(9, 16)]}), "image_id"),
        (json!({"id_key_digests": [hex(6, 48)]}), json!({"id_key_digests": [hex(9, 48)]}), "id_key_digest"),
        (
            json!({"author_key_digests": [hex(7, 48)]}),
            json!({"author_key_digests": [hex(9, 48)]}),
            "author_key_digest",
        ),
        (
            json!({"measurements": [hex(4, 48)]}),
            json!({"measurements": [hex(9, 48), hex(8, 48)]}),
            "measurement",
        ),
        (json!({"host_data": hex(5, 32)}), json!({"host_data": hex(9, 32)}), "init_data"),
        (json!({"report_data": hex(3, 64)}), json!({"report_data": hex(9, 64)}), "report_data"),
        (json!({"launch_mitigations": 1}), json!({"launch_mitigations": 2}), "launch_mit_vector"),
        (json!({"current_mitigations": 3}), json!({"current_mitigations": 4}), "current_mit_vector"),
        (json!({"vek_kind": "vcek"}), json!({"vek_kind": "vlek"}), "vek_kind"),
        (json!({"max_vmpl": 0}), json!({"csp_ids": ["CN=provider.test"]}), "csp_id"),
        (json!({}), json!({"committed_firmware_only": true}), "committed_tcb"),
        (json!({"known_policy_bits_only": true}), json!({"chip_ids": [hex(1, 64)]}), "chip_id"),
    ]
}

#[test]
fn each_demand_is_met_or_told() {
    let of = Authority::new(Chip::TURIN);
    let verified = verified(&of, &of.unsigned());
    for (met, not_met, claim) in each() {
        assert_eq!(requirements(met.clone()).check(&verified), [], "{met}");
        let differences = requirements(not_met.clone()).check(&verified);
        assert_eq!(claims(&differences), [claim], "{not_met}");
        let one = &differences[0];
        assert!(
            !one.seen.is_empty()
                && !one.expected.is_empty()
                && !one.advice.is_empty()
                && one.seen != one.expected
        );
    }
}

#[test]
fn all_differences_are_told_at_once() {
    let of = Authority::new(Chip::TURIN);
    let verified = verified(&of, &of.unsigned());
    let mut all = json!({});
    let merge = |into: &mut Value, from: Value| {
        for (name, value) in from.as_object().unwrap() {
            match into.get_mut(name).and_then(Value::as_object_mut) {
                Some(object) => object.extend(value.as_object().unwrap().clone()),
                None => into[name] = value.clone(),
            }
        }
    };
    for (_, not_met, _) in each() {
        merge(&mut all, not_met);
    }
    let told = requirements(all).check(&verified);
    let mut claims = claims(&told);
    claims.sort_unstable();
    claims.dedup();
    // The two TCBs of `current` overlap in one object, so one row is not there.
    assert!(claims.len() >= each().len() - 2, "{claims:?}");
}

#[test]
fn what_only_some_reports_have_is_missed_in_others() {
    let of = Authority::new(Chip::MILAN);
    let mut report = of.unsigned();
    let checked = verified(&of, &report);
    let old =
        requirements(json!({"launch_mitigations": 1, "minimum_tcb": {"launch": {"fmc": 0}}})).check(&checked);
    assert_eq!(claims(&old), ["launch_mit_vector", "launch_tcb_fmc"]);
    assert!(old.iter().all(|one| one.seen == "none"));

    // A digest of an author key that is not in force is no author.
    report.key_info.0 = 0;
    let no_author = Requirements { author_key_digests: vec![HexBytes([7; 48])], ..Requirements::default() };
    assert_eq!(claims(&no_author.check(&verified(&of, &report))), ["author_key_digest"]);

    report.launch_tcb = Tcb { microcode: 255, ..report.launch_tcb };
    let rolled_back = Requirements { deny_rollback_since_launch: true, ..Requirements::default() };
    assert_eq!(claims(&rolled_back.check(&verified(&of, &report))), ["current_tcb"]);

    report.policy.0 |= 1 << 40;
    report.vmpl = 2;
    let strict = Requirements {
        known_policy_bits_only: true,
        max_vmpl: Some(1),
        minimum_abi: Some(AbiVersion { major: 1, minor: 0x38 }),
        ..Requirements::default()
    };
    assert_eq!(claims(&strict.check(&verified(&of, &report))), ["policy", "policy_abi", "vmpl"]);

    let vlek = Authority::new(Chip { kind: VekKind::Vlek, ..Chip::MILAN });
    let provider = requirements(json!({"csp_ids": ["CN=provider.test"], "vek_kind": "vlek"}));
    assert_eq!(provider.check(&verified(&vlek, &vlek.unsigned())), []);
}

#[test]
fn reports_that_no_firmware_makes_are_refused() {
    let of = Authority::new(Chip::MILAN);
    let refused =
        |report: &Report| verify(&of.sign(report), &of.endorsements(), &of.anchor(), NOW).unwrap_err();
    let mut report = of.unsigned();
    report.committed_tcb.microcode = report.current_tcb.microcode + 1;
    assert!(matches!(refused(&report), VerifyError::NotCommitted { what: "TCB", .. }));
    let mut report = of.unsigned();
    report.committed_version.build = report.current_version.build + 1;
    let text = refused(&report).to_string();
    assert!(text.contains("current firmware is 1.55.30, older than the committed one, 1.55.31"), "{text}");
    let mut report = of.unsigned();
    report.key_info.0 |= 1 << 5;
    assert_eq!(Report::parse(&report.to_bytes()), Err(ReportError::ReservedNotZero { section: "0x48" }));
    let mut report = of.unsigned();
    report.version = 6;
    assert_eq!(
        Report::parse(&report.to_bytes()).unwrap_err().to_string(),
        "report version is 6, newer than the newest known, 5: update this verifier"
    );
}

#[test]
fn all_versions_and_kinds_of_key_verify() {
    for version in 2..=5 {
        for kind in [VekKind::Vcek, VekKind::Vlek] {
            let of = Authority::new(Chip { version, kind, ..Chip::MILAN });
            let verified = verified(&of, &of.unsigned());
            assert_eq!((verified.report.version, verified.vek), (version, kind));
        }
    }
}

#[test]
fn unknown_demands_and_broken_hex_are_refused() {
    for (value, why) in [
        (json!({"colour": 1}), "unknown field"),
        (json!({"policy": {"debug": true}}), "unknown field"),
        (json!({"host_data": "00"}), "expected 32 bytes as 64 hex digits"),
        (json!({"vek_kind": "rsa"}), "unknown variant"),
    ] {
        let error = serde_json::from_value::<Requirements>(value).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
