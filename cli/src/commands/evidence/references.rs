//! Reference values and requirements: which claim each is for, and whether the claim is as it should be.
//!
//! Names of reference values are those of the built-in attestation policy and of Trustee's
//! (`attestation/service/src/policies/`); here they are compared without a policy, so that a file can be judged offline.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use kata_cc_attestation_service::sources::launch_value;
use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::admin::{ReferenceValueList, ReferenceValueMessage};
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::read_input;

const MAX_REFERENCES: u64 = 1 << 20;

const MEASURED: &str =
    "launch what was measured, or measure what was launched (kata-cc measure) and use that digest";
const FIRMWARE: &str =
    "update the platform's firmware, or add this version to the reference values if it is acceptable";
const SETTING: &str = "change the setting of platform or guest, or the reference value";
const INIT_DATA: &str = "start the guest with the init-data that was registered, or add the digest of this one (kata-cc measure --init-data)";
const BOOTED: &str = "boot what was measured, or add this value to the reference values";

/// Reference values of SNP, with the claim that each is for and what to do when it differs.
const SNP: [(&str, &str, &str); 11] = [
    ("snp_launch_measurement", "measurement", MEASURED),
    ("snp_bootloader", "reported_tcb_bootloader", FIRMWARE),
    ("snp_tee_svn", "reported_tcb_tee", FIRMWARE),
    ("snp_snp_svn", "reported_tcb_snp", FIRMWARE),
    ("snp_microcode", "reported_tcb_microcode", FIRMWARE),
    ("snp_smt_enabled", "platform_smt_enabled", SETTING),
    ("snp_tsme_enabled", "platform_tsme_enabled", SETTING),
    ("snp_guest_abi_major", "policy_abi_major", SETTING),
    ("snp_guest_abi_minor", "policy_abi_minor", SETTING),
    ("snp_single_socket", "policy_single_socket", SETTING),
    ("snp_smt_allowed", "policy_smt_allowed", SETTING),
];

const AZ_SNP: [(&str, &str, &str); 11] = [
    ("measurement", "measurement", BOOTED),
    ("tcb_bootloader", "reported_tcb_bootloader", FIRMWARE),
    ("tcb_tee", "reported_tcb_tee", FIRMWARE),
    ("tcb_snp", "reported_tcb_snp", FIRMWARE),
    ("tcb_microcode", "reported_tcb_microcode", FIRMWARE),
    ("smt_enabled", "platform_smt_enabled", SETTING),
    ("tsme_enabled", "platform_tsme_enabled", SETTING),
    ("abi_major", "policy_abi_major", SETTING),
    ("abi_minor", "policy_abi_minor", SETTING),
    ("single_socket", "policy_single_socket", SETTING),
    ("smt_allowed", "policy_smt_allowed", SETTING),
];

const TDX: [(&str, &str, &str); 7] = [
    ("mr_td", "quote.body.mr_td", MEASURED),
    ("mr_seam", "quote.body.mr_seam", FIRMWARE),
    ("rtmr_0", "quote.body.rtmr_0", BOOTED),
    ("rtmr_1", "quote.body.rtmr_1", BOOTED),
    ("rtmr_2", "quote.body.rtmr_2", BOOTED),
    ("rtmr_3", "quote.body.rtmr_3", BOOTED),
    ("xfam", "quote.body.xfam", SETTING),
];

/// One comparison.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Check {
    /// Claim, as a path below the TEE's member.
    pub(super) claim: String,
    /// Its value; null when there is none.
    pub(super) seen: Value,
    /// What it should be.
    pub(super) expected: Value,
    /// Whether it is.
    pub(super) holds: bool,
    /// Name of the reference value, or the requirement as it was written.
    pub(super) by: String,
    /// What to do when it does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) what_to_do: Option<String>,
}

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Is,
    AtLeast,
    AtMost,
}

/// `KEY=VALUE`, `KEY>=NUMBER` or `KEY<=NUMBER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirement {
    text: String,
    claim: String,
    relation: Relation,
    value: String,
}

impl Requirement {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("{why}: expected CLAIM=VALUE, CLAIM>=NUMBER or CLAIM<=NUMBER, seen {text:?}");
        let (claim, value) = text.split_once('=').ok_or_else(|| wrong("no '='"))?;
        let (claim, relation) = match (claim.strip_suffix('>'), claim.strip_suffix('<')) {
            (Some(claim), _) => (claim, Relation::AtLeast),
            (_, Some(claim)) => (claim, Relation::AtMost),
            _ => (claim, Relation::Is),
        };
        if claim.is_empty() || claim.len() > 128 || value.len() > 1024 {
            return Err(wrong("no claim, or one or a value that is too long"));
        }
        if relation != Relation::Is && value.parse::<u64>().is_err() {
            return Err(wrong("no number"));
        }
        Ok(Self { text: text.to_owned(), claim: claim.to_owned(), relation, value: value.to_owned() })
    }

    /// Compare with the claims.
    pub(super) fn check(&self, tee: Tee, claims: &Value) -> Check {
        let seen = find(tee, claims, &self.claim);
        let number = |text: &str| text.parse::<u64>().ok();
        let seen_number = seen.as_u64().or_else(|| number(seen.as_str()?));
        let holds = match self.relation {
            Relation::Is => text_of(&seen).eq_ignore_ascii_case(&self.value) && !seen.is_null(),
            Relation::AtLeast => seen_number.zip(number(&self.value)).is_some_and(|(seen, min)| seen >= min),
            Relation::AtMost => seen_number.zip(number(&self.value)).is_some_and(|(seen, max)| seen <= max),
        };
        let expected = match self.relation {
            Relation::Is => self.value.clone(),
            Relation::AtLeast => format!("at least {}", self.value),
            Relation::AtMost => format!("at most {}", self.value),
        };
        let advice = if seen.is_null() {
            "this evidence has no such claim: docs/claims.md lists them".to_owned()
        } else {
            "the evidence is not as required: change the guest or its platform, or the requirement".to_owned()
        };
        Check {
            claim: self.claim.clone(),
            seen,
            expected: expected.into(),
            holds,
            by: format!("--require {}", self.text),
            what_to_do: (!holds).then_some(advice),
        }
    }
}

/// Value of a claim: below the TEE's member, or beside it (`report_data`, `init_data`).
fn find(tee: Tee, claims: &Value, path: &str) -> Value {
    let pointer = format!("/{}", path.replace('~', "~0").replace('/', "~1").replace('.', "/"));
    let below = claims.get(tee.name()).and_then(|claims| claims.pointer(&pointer));
    below.or_else(|| claims.pointer(&pointer)).cloned().unwrap_or(Value::Null)
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Reference values from a file.
pub(in crate::commands) fn read(file: &Path) -> anyhow::Result<BTreeMap<String, Value>> {
    let bytes = read_input(Some(file), MAX_REFERENCES)?;
    parse(&bytes).with_context(|| format!("{} has no reference values", file.display()))
}

/// An RVPS message, what `kata-cc measure --json` printed, the key broker's list, or a plain object.
fn parse(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Value>> {
    let value: Value = serde_json::from_slice(bytes).context("it is no JSON")?;
    let object = value.as_object().context("it is no JSON object from names to values")?;
    let has = |name: &str| object.get(name).is_some_and(Value::is_string);
    let values = if has("payload") {
        serde_json::from_value::<ReferenceValueMessage>(value)?.values()?
    } else if has("launch_digest") {
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let digest = text("tier").and_then(launch_value).unwrap_or("snp_launch_measurement");
        let pairs = [(digest, text("launch_digest")), ("init_data", text("host_data"))];
        pairs.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!([text?])))).collect()
    } else if object.contains_key("reference_values") {
        serde_json::from_value::<ReferenceValueList>(value)?.reference_values
    } else {
        object.clone().into_iter().collect()
    };
    anyhow::ensure!(!values.is_empty(), "there are none in it");
    Ok(values)
}

/// The claim that a reference value is for, and what to do when it differs.
fn claim_of(tee: Tee, name: &str) -> Option<(String, &'static str)> {
    let table: &[(&str, &str, &str)] = match tee {
        Tee::Snp | Tee::SimSnp => &SNP,
        Tee::AzSnpVtpm => &AZ_SNP,
        Tee::Tdx | Tee::SimTdx | Tee::AzTdxVtpm => &TDX,
        _ => &[],
    };
    // What a simulated launch was measured as has names of its own, and the others are not for it.
    let name = match (tee, name) {
        (Tee::SimSnp, "sim_snp_launch_measurement") => "snp_launch_measurement",
        (Tee::SimTdx, "sim_mr_td") => "mr_td",
        (Tee::SimSnp, "snp_launch_measurement") | (Tee::SimTdx, "mr_td") => return None,
        (_, name) => name,
    };
    if let Some((_, claim, advice)) = table.iter().find(|(known, _, _)| *known == name) {
        return Some(((*claim).to_owned(), advice));
    }
    if name == "init_data" {
        return Some((name.to_owned(), INIT_DATA));
    }
    let prefix = match tee {
        Tee::AzSnpVtpm => "snp_",
        Tee::AzTdxVtpm => "tdx_",
        _ => return None,
    };
    let pcr = name.strip_prefix(prefix).filter(|rest| rest.starts_with("pcr") && rest.len() == 5)?;
    Some((format!("tpm.{pcr}"), BOOTED))
}

/// Compare all reference values that are for this TEE; gives the names of the others too.
pub(super) fn compare(
    tee: Tee,
    claims: &Value,
    values: &BTreeMap<String, Value>,
) -> (Vec<Check>, Vec<String>) {
    let (mut checks, mut others) = (Vec::new(), Vec::new());
    for (name, expected) in values {
        let Some((claim, advice)) = claim_of(tee, name) else {
            others.push(name.clone());
            continue;
        };
        let seen = find(tee, claims, &claim);
        // Azure's claims are texts, whatever the value was.
        let equal = |value: &Value| *value == seen || (!seen.is_null() && text_of(value) == text_of(&seen));
        let holds = match expected {
            Value::Array(all) => all.iter().any(equal),
            one => equal(one),
        };
        let what_to_do = (!holds).then(|| advice.to_owned());
        checks.push(Check { claim, seen, expected: expected.clone(), holds, by: name.clone(), what_to_do });
    }
    (checks, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Value {
        json!({"snp": {"measurement": "ab", "reported_tcb_snp": 24, "policy_debug_allowed": false},
            "init_data": "00", "report_data": "11"})
    }

    #[test]
    fn requirements_compare_texts_flags_and_numbers() {
        let holds = |text: &str| Requirement::parse(text).unwrap().check(Tee::Snp, &claims()).holds;
        for text in [
            "measurement=AB",
            "policy_debug_allowed=false",
            "reported_tcb_snp=24",
            "reported_tcb_snp>=24",
            "reported_tcb_snp<=24",
            "init_data=00",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            "measurement=abc",
            "policy_debug_allowed=true",
            "reported_tcb_snp>=25",
            "reported_tcb_snp<=23",
            "measurement>=1",
            "missing=null",
            "missing>=0",
        ] {
            let check = Requirement::parse(text).unwrap().check(Tee::Snp, &claims());
            assert!(!check.holds && check.what_to_do.is_some(), "{check:?}");
        }
        for text in ["x", "=1", ">=1", "x>=y", "x<="] {
            assert!(Requirement::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            find(Tee::AzSnpVtpm, &json!({"az-snp-vtpm": {"tpm": {"pcr11": "x"}}}), "tpm.pcr11"),
            json!("x")
        );
    }

    #[test]
    fn reference_values_come_in_four_forms() {
        let plain = json!({"snp_launch_measurement": ["ab"]});
        let message = ReferenceValueMessage::sample(&serde_json::from_value(plain.clone()).unwrap());
        let forms = [
            plain.clone(),
            serde_json::to_value(message).unwrap(),
            json!({"reference_values": plain}),
            json!({"tier": "snp", "launch_digest": "ab"}),
        ];
        for form in forms {
            let read = parse(form.to_string().as_bytes()).unwrap();
            assert_eq!(read["snp_launch_measurement"], json!(["ab"]), "{form}");
        }
        let simulated = parse(br#"{"tier": "sim-snp", "launch_digest": "ab"}"#).unwrap();
        assert_eq!(simulated["sim_snp_launch_measurement"], json!(["ab"]));
        assert_eq!(claim_of(Tee::SimSnp, "sim_snp_launch_measurement").unwrap().0, "measurement");
        assert!(claim_of(Tee::SimSnp, "snp_launch_measurement").is_none());
        assert!(claim_of(Tee::Snp, "sim_snp_launch_measurement").is_none());
        let manifest = parse(br#"{"launch_digest": "ab", "host_data": "00"}"#).unwrap();
        assert_eq!(manifest["init_data"], json!(["00"]));
        for (text, why) in [
            ("", "no JSON"),
            ("[]", "no JSON object"),
            ("{}", "there are none"),
            (r#"{"type": "sample", "payload": "!"}"#, "base64"),
            (r#"{"type": "corim", "payload": ""}"#, "only sample"),
        ] {
            let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn reference_values_are_compared_with_their_claims() {
        let values = serde_json::from_value(json!({
            "snp_launch_measurement": ["cd", "ab"], "snp_snp_svn": 25, "init_data": "00", "mr_td": ["x"],
            "snp_microcode": [1],
        }))
        .unwrap();
        let (checks, others) = compare(Tee::Snp, &claims(), &values);
        let result = |by: &str| checks.iter().find(|check| check.by == by).map(|check| check.holds);
        assert_eq!(result("snp_launch_measurement"), Some(true));
        assert_eq!(result("init_data"), Some(true));
        assert_eq!(result("snp_snp_svn"), Some(false));
        assert_eq!(result("snp_microcode"), Some(false), "a claim that is missing");
        assert_eq!(others, ["mr_td"]);
        let azure = json!({"az-snp-vtpm": {"reported_tcb_snp": "24", "tpm": {"pcr11": "aa"}}});
        let values =
            serde_json::from_value(json!({"tcb_snp": [24], "snp_pcr11": ["aa"], "snp_pcr1": 1})).unwrap();
        let (checks, others) = compare(Tee::AzSnpVtpm, &azure, &values);
        assert!(checks.len() == 2 && checks.iter().all(|check| check.holds), "{checks:?}");
        assert_eq!(others, ["snp_pcr1"]);
    }
}
