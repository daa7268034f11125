//! The built-in policy on TDX, Azure's guests and the sample; and policies that were written for Trustee.

use super::tests::{judge, values};
use super::*;
use crate::ear::Tier;

fn run(evidence: &Value, references: &Value) -> Appraisal {
    judge(&compile("default_cpu", DEFAULT_CPU).unwrap(), evidence, &values(references)).unwrap()
}

/// Each reference value is needed: without it, or with another, the verdict is worse and names it.
fn every_value_counts(evidence: &Value, references: &Value) {
    let good = run(evidence, references);
    assert_eq!(good.vector.status(), Tier::Affirming, "{:?}", good.findings);
    assert!(good.findings.is_empty() && good.checks.iter().all(|check| check.ok));
    for name in references.as_object().unwrap().keys() {
        for other in [None, Some(json!(["other"])), Some(json!("other")), Some(json!([]))] {
            let mut references = references.clone();
            match other {
                None => references.as_object_mut().unwrap().remove(name),
                Some(other) => references.as_object_mut().unwrap().insert(name.clone(), other),
            };
            let bad = run(evidence, &references);
            assert_ne!(bad.vector.status(), Tier::Affirming, "{name}");
            let named = bad
                .checks
                .iter()
                .any(|check| !check.ok && check.reference.as_ref().is_some_and(|used| used.name == *name));
            assert!(named, "{name}: {:?}", bad.findings);
        }
    }
}

/// Each claim at these pointers is needed.
fn every_claim_counts(evidence: &Value, references: &Value, pointers: &[&str]) {
    for pointer in pointers {
        for other in [json!(null), json!("other"), json!(true)] {
            let mut changed = evidence.clone();
            *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = other.clone();
            let bad = run(&changed, references);
            assert_ne!(bad.vector.status(), Tier::Affirming, "{pointer} {other}");
            assert!(!bad.findings.is_empty(), "{pointer}");
        }
    }
}

fn tdx() -> Value {
    json!({
        "quote": {
            "header": {"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"},
            "body": {"mr_td": "aa", "rtmr_1": "b1", "rtmr_2": "b2", "xfam": "e7"},
        },
        "td_attributes": {"debug": false},
        "tcb_status": "UpToDate",
        "collateral_expiration_status": "0",
    })
}

#[test]
fn tdx_on_hardware_and_simulated() {
    let of = |name: &str| json!({name: ["aa"], "rtmr_1": ["b1"], "rtmr_2": ["b2"], "xfam": ["e7"], "init_data": ["1d"]});
    let references = of("mr_td");
    for (tee, references) in [("tdx", &references), ("sim-tdx", &of("sim_mr_td"))] {
        let evidence = json!({tee: tdx(), "init_data": "1d"});
        every_value_counts(&evidence, references);
        let pointers = [
            "quote/header/tee_type",
            "quote/header/vendor_id",
            "quote/body/mr_td",
            "quote/body/rtmr_1",
            "quote/body/rtmr_2",
            "quote/body/xfam",
            "td_attributes/debug",
            "tcb_status",
            "collateral_expiration_status",
        ];
        let pointers = pointers.map(|pointer| format!("/{tee}/{pointer}"));
        let mut pointers: Vec<_> = pointers.iter().map(String::as_str).collect();
        pointers.push("/init_data");
        every_claim_counts(&evidence, references, &pointers);
        // As a boot loader leaves the registers; with the firmware's events, 3.
        assert_eq!(run(&evidence, references).vector.get("executables"), Some(4));
        events_raise_the_boot_to_three(tee, &evidence, references);
    }
    let late = {
        let mut evidence = json!({"tdx": tdx(), "init_data": "1d"});
        evidence["tdx"]["tcb_status"] = json!("OutOfDate");
        run(&evidence, &references)
    };
    assert_eq!(late.vector.get("hardware"), Some(97));
    assert!(late.findings[0].to_string().contains("tcb_status is OutOfDate, expected UpToDate: update"));
}

/// Kernel and parameters by their events; an event that no register holds, or whose registered digest is of another hash, counts nothing.
fn events_raise_the_boot_to_three(tee: &str, evidence: &Value, references: &Value) {
    let mut events = evidence.clone();
    events[tee]["uefi_event_logs"] = json!([
        {"index": 2, "type_name": "EV_EFI_BOOT_SERVICES_APPLICATION", "details": {"device_paths": ["x", "File(kernel)"]},
            "digests": [{"alg": "SHA-384", "digest": "k"}]},
        {"index": 3, "type_name": "EV_EVENT_TAG", "details": {"string": "LOADED_IMAGE::LoadOptions"},
            "digests": [{"alg": "SHA-384", "digest": "p"}]},
    ]);
    let mut more = references.clone();
    more["tdvfkernel"] = json!("k");
    assert_eq!(run(&events, &more).vector.get("executables"), Some(4), "the parameters are another's");
    more["tdvfkernelparams"] = json!(["p"]);
    assert_eq!(run(&events, &more).vector.get("executables"), Some(3));
    for event in [0, 1] {
        for (member, other) in
            [("index", json!(0)), ("index", json!(5)), ("index", json!(4)), ("type_name", json!("EV_IPL"))]
        {
            let mut forged = events.clone();
            forged[tee]["uefi_event_logs"][event][member] = other;
            assert_eq!(run(&forged, &more).vector.get("executables"), Some(4), "{event} {member}");
        }
        let mut forged = events.clone();
        let digests = &mut forged[tee]["uefi_event_logs"][event]["digests"];
        let registered = digests[0]["digest"].clone();
        *digests = json!([{"alg": "SHA-384", "digest": "x"}, {"alg": "0x99", "digest": registered}]);
        assert_eq!(run(&forged, &more).vector.get("executables"), Some(4), "{event}: another hash");
    }
}

#[test]
fn azure_guests() {
    let snp = json!({
        "measurement": "bWVhc3VyZW1lbnQ=", "reported_tcb_bootloader": "3", "reported_tcb_microcode": "115",
        "reported_tcb_snp": "8", "reported_tcb_tee": "0", "platform_smt_enabled": "true",
        "platform_tsme_enabled": "false", "policy_abi_major": "0", "policy_abi_minor": "31",
        "policy_single_socket": "false", "policy_smt_allowed": "true", "tpm": {"pcr11": "11"},
    });
    let references = json!({
        "measurement": ["bWVhc3VyZW1lbnQ="], "snp_pcr11": ["11"], "tcb_bootloader": ["3"], "tcb_microcode": [115],
        "tcb_snp": [8], "tcb_tee": ["0"], "smt_enabled": [true], "tsme_enabled": ["false"], "abi_major": [0],
        "abi_minor": ["31"], "single_socket": [false], "smt_allowed": ["true"], "init_data": ["1d"],
    });
    let evidence = json!({"az-snp-vtpm": snp, "init_data": "1d"});
    every_value_counts(&evidence, &references);
    let pointers: Vec<String> =
        snp.as_object().unwrap().keys().map(|name| format!("/az-snp-vtpm/{name}")).collect();
    let pointers: Vec<&str> = pointers
        .iter()
        .map(String::as_str)
        .filter(|p| !p.ends_with("smt_enabled") && !p.ends_with("smt_allowed"))
        .collect();
    every_claim_counts(&evidence, &references, &pointers);

    let mut tdx = tdx();
    tdx["tpm"] = json!({"pcr11": "11"});
    let references = json!({"mr_td": ["aa"], "tdx_pcr11": ["11"], "xfam": ["e7"], "init_data": ["1d"]});
    let evidence = json!({"az-tdx-vtpm": tdx, "init_data": "1d"});
    every_value_counts(&evidence, &references);
    let pointers =
        ["/az-tdx-vtpm/quote/body/mr_td", "/az-tdx-vtpm/tcb_status", "/az-tdx-vtpm/tpm/pcr11", "/init_data"];
    every_claim_counts(&evidence, &references, &pointers);
}

/// Reference values of one TEE say nothing about another.
#[test]
fn values_are_of_their_tee() {
    let all = json!({"measurement": ["x"], "snp_pcr11": ["x"], "tdx_pcr11": ["x"], "rtmr_1": ["x"], "mr_td": ["x"],
        "snp_launch_measurement": ["y"], "init_data": ["1d"], "launch_digest": ["x"], "svn": ["x"]});
    for tee in ["snp", "sim-snp"] {
        let appraisal = run(&json!({tee: {"measurement": "x"}, "init_data": "1d"}), &all);
        assert_eq!(appraisal.vector.get("executables"), Some(33), "{tee}");
    }
    for unknown in ["sgx", "cca", "tpm", "made-up"] {
        let appraisal = run(&json!({unknown: {"measurement": "y"}, "init_data": "1d"}), &all);
        assert_eq!(appraisal.vector.status(), Tier::Contraindicated, "{unknown}");
    }
}

/// A policy in the form that Trustee's documentation shows, and one of before `query_reference_value`.
#[test]
fn policies_of_trustee_run_unchanged() {
    let now = "package policy\nimport rego.v1\n\
        default executables := 33\ndefault hardware := 97\ndefault configuration := 36\n\
        trust_claims := {\"executables\": executables, \"hardware\": hardware, \"configuration\": configuration}\n\
        executables := 3 if { input.snp\n input.snp.measurement in query_reference_value(\"snp_launch_measurement\") }\n\
        hardware := 2 if { input.snp\n input.snp.reported_tcb_snp in query_reference_value(\"snp_snp_svn\") }\n\
        configuration := 2 if { input.snp\n input.snp.policy_debug_allowed == false\n\
          input.snp.platform_smt_enabled == query_reference_value(\"snp_smt_enabled\") }\n\
        extensions := [{\"name\": \"ear.trustee.identifiers\", \"key\": -18, \"value\": {\"validated\": {}}}]";
    let before = "package policy\nimport future.keywords.if\nimport future.keywords.in\n\
        default executables = 33\ndefault hardware = 97\ndefault configuration = 36\n\
        trust_claims = {\"executables\": executables, \"hardware\": hardware, \"configuration\": configuration}\n\
        executables = 3 if { input.snp.measurement in data.reference.snp_launch_measurement }\n\
        hardware = 2 if { input.snp.reported_tcb_snp in data.reference.snp_snp_svn }\n\
        configuration = 2 if { input.snp.policy_debug_allowed == false }";
    let evidence = json!({"snp": {"measurement": "ab", "reported_tcb_snp": 8, "policy_debug_allowed": false,
        "platform_smt_enabled": true}});
    let references =
        values(&json!({"snp_launch_measurement": ["ab"], "snp_snp_svn": [8], "snp_smt_enabled": true}));
    for text in [now, before] {
        let policy = compile("trustee_cpu", text).unwrap();
        let good = judge(&policy, &evidence, &references).unwrap();
        assert_eq!(good.vector.status(), Tier::Affirming, "{:?}", good.findings);
        let bad = judge(&policy, &evidence, &values(&json!({"snp_launch_measurement": ["ab"]}))).unwrap();
        assert_eq!((bad.vector.get("executables"), bad.vector.get("hardware")), (Some(3), Some(97)));
        assert!(bad.findings.iter().any(|finding| finding.claim == "hardware"), "{:?}", bad.findings);
    }
    let good = judge(&compile("trustee_cpu", now).unwrap(), &evidence, &references).unwrap();
    assert!(good.extensions.contains_key("ear.trustee.identifiers"));
}
