//! Manifests of Contrast (`manifest.json`), as far as they say what our services can hold guests to.
//!
//! A Contrast manifest binds a deployment: digests of agent policies, as they stand in the launch's host data, and values of the
//! platforms it may run on. Both map to reference values here, lowest TCB versions and chips to settings of the attestation service.
//! What concerns Contrast's coordinator (who may change the manifest, names in its certificates) has no place here and is told.
//!
//! Read are the form with lists per TEE (`ReferenceValues.snp`, `.tdx`) and the older one with a single measurement.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

/// Longest manifest.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Bytes of a launch digest of SNP, and of a register of TDX.
const LAUNCH: usize = 48;
/// Bytes of SHA-256 and of SNP's host data; TDX's `MRCONFIGID` has zeros behind it, up to [`LAUNCH`].
const HOST_DATA: usize = 32;

/// Why a manifest is not read.
#[derive(Debug, thiserror::Error)]
pub enum ContrastError {
    /// Too long.
    #[error("the manifest has {0} bytes, at most {MAX_MANIFEST} are read")]
    TooLong(usize),
    /// Not JSON of that form.
    #[error("this is no manifest of Contrast: {0}")]
    Form(#[from] serde_json::Error),
    /// A value is not what it must be.
    #[error("{path} is {seen:?}, expected {bytes} bytes in hex")]
    Value {
        /// Where.
        path: String,
        /// What stands there.
        seen: String,
        /// How many bytes it must have.
        bytes: usize,
    },
    /// Nothing in it can be held.
    #[error("the manifest names no platform: ReferenceValues has neither snp nor tdx nor TrustedMeasurement")]
    NoPlatform,
}

/// What a manifest says, in our terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Reference values by name.
    pub values: BTreeMap<String, BTreeSet<String>>,
    /// Lines for the service's configuration (TOML) that say what reference values cannot.
    pub settings: Vec<String>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    #[serde(default)]
    policies: BTreeMap<String, Value>,
    reference_values: References,
    #[serde(default)]
    workload_owner_key_digests: Vec<Value>,
    #[serde(default)]
    seedshare_owner_pub_keys: Vec<Value>,
}

#[derive(Deserialize, Default)]
struct References {
    #[serde(default)]
    snp: Vec<Snp>,
    #[serde(default)]
    tdx: Vec<Tdx>,
    /// The older form.
    #[serde(default, rename = "SNP")]
    only_snp: Option<OnlySnp>,
    #[serde(default, rename = "TrustedMeasurement")]
    measurement: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OnlySnp {
    #[serde(rename = "MinimumTCB", default)]
    minimum_tcb: Tcb,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Snp {
    trusted_measurement: String,
    #[serde(rename = "MinimumTCB", default)]
    minimum_tcb: Tcb,
    #[serde(default)]
    guest_policy: GuestPolicy,
    #[serde(default, rename = "AllowedChipIDs")]
    chips: Option<Vec<String>>,
    #[serde(default)]
    platform_info: Option<Value>,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
struct Tcb {
    bootloader_version: Option<u8>,
    #[serde(rename = "TEEVersion")]
    tee_version: Option<u8>,
    #[serde(rename = "SNPVersion")]
    snp_version: Option<u8>,
    microcode_version: Option<u8>,
}

#[derive(Deserialize, Default)]
struct GuestPolicy {
    #[serde(rename = "SMT")]
    smt: Option<bool>,
    #[serde(rename = "SingleSocket")]
    single_socket: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tdx {
    mr_td: String,
    #[serde(default)]
    mr_seam: Option<String>,
    rtmrs: Vec<String>,
    xfam: String,
}

/// Reads a manifest.
///
/// # Errors
/// See [`ContrastError`].
pub fn import(text: &[u8]) -> Result<Imported, ContrastError> {
    if text.len() > MAX_MANIFEST {
        return Err(ContrastError::TooLong(text.len()));
    }
    let manifest: Manifest = serde_json::from_slice(text)?;
    let references = &manifest.reference_values;
    let mut imported = Imported::default();
    if references.snp.is_empty() && references.tdx.is_empty() && references.measurement.is_none() {
        return Err(ContrastError::NoPlatform);
    }
    for digest in manifest.policies.keys() {
        let digest = hex_of("Policies", digest, HOST_DATA)?;
        if !references.tdx.is_empty() {
            imported.value("init_data", format!("{digest}{}", "00".repeat(LAUNCH - HOST_DATA)));
        }
        if !references.snp.is_empty() || references.measurement.is_some() {
            imported.value("init_data", digest);
        }
    }
    imported.snp(references)?;
    imported.tdx(&references.tdx)?;
    let coordinators = [
        (!manifest.workload_owner_key_digests.is_empty(), "WorkloadOwnerKeyDigests"),
        (!manifest.seedshare_owner_pub_keys.is_empty(), "SeedshareOwnerPubKeys"),
        (!manifest.policies.is_empty(), "Policies: names in certificates, secret ids and roles"),
    ];
    for (_, what) in coordinators.iter().filter(|(there, _)| *there) {
        imported.notes.push(format!("{what}: Contrast's coordinator's business, left out"));
    }
    Ok(imported)
}

impl Imported {
    fn value(&mut self, name: &str, value: String) {
        self.values.entry(name.to_owned()).or_default().insert(value);
    }

    fn snp(&mut self, references: &References) -> Result<(), ContrastError> {
        let mut lowest = Vec::new();
        let mut chips = BTreeSet::new();
        if let Some(measurement) = &references.measurement {
            let measurement = hex_of("ReferenceValues.TrustedMeasurement", measurement, LAUNCH)?;
            self.value("snp_launch_measurement", measurement);
            lowest.extend(references.only_snp.as_ref().map(|snp| snp.minimum_tcb));
        }
        let mut any_chip = references.snp.is_empty();
        for (number, snp) in references.snp.iter().enumerate() {
            let at = |member: &str| format!("ReferenceValues.snp[{number}].{member}");
            let measurement = hex_of(&at("TrustedMeasurement"), &snp.trusted_measurement, LAUNCH)?;
            self.value("snp_launch_measurement", measurement);
            lowest.push(snp.minimum_tcb);
            let settings = [
                ("snp_smt_allowed", snp.guest_policy.smt),
                ("snp_single_socket", snp.guest_policy.single_socket),
            ];
            for (name, value) in settings {
                if let Some(value) = value {
                    self.value(name, value.to_string());
                }
            }
            if snp.platform_info.as_ref().is_some_and(|info| !info.is_null()) {
                self.notes.push(format!("{}: set [attestation.snp] platform by hand", at("PlatformInfo")));
            }
            let own = snp.chips.as_deref().unwrap_or_default();
            any_chip |= own.is_empty();
            for chip in own {
                chips.insert(hex_of(&at("AllowedChipIDs"), chip, 64)?);
            }
        }
        self.tcb(&lowest);
        // Where one platform may be any chip, the list of another one would refuse it.
        match (chips.is_empty(), any_chip) {
            (true, _) => {}
            (false, false) => {
                let list: Vec<_> = chips.iter().map(|chip| format!("\"{chip}\"")).collect();
                self.settings.push(format!("chip_ids = [{}]", list.join(", ")));
            }
            (false, true) => self.notes.push(
                "AllowedChipIDs: one entry of snp names chips and another none; ours hold for all, left out"
                    .to_owned(),
            ),
        }
        Ok(())
    }

    /// Lowest versions hold for all platforms here, so they can be told only when all entries have the same.
    fn tcb(&mut self, lowest: &[Tcb]) {
        let Some(first) = lowest.first() else { return };
        if lowest.iter().any(|tcb| tcb != first) {
            let why = "MinimumTCB: entries of snp differ; ours holds for all: set [attestation.snp] minimum_tcb by hand";
            self.notes.push(why.to_owned());
            return;
        }
        let members = [
            ("bootloader", first.bootloader_version),
            ("tee", first.tee_version),
            ("snp", first.snp_version),
            ("microcode", first.microcode_version),
        ];
        let members = members.iter().filter_map(|(name, value)| Some(format!("{name} = {}", (*value)?)));
        let members: Vec<_> = members.collect();
        if members.is_empty() {
            self.notes.push("MinimumTCB: empty, nothing is demanded of the firmware".to_owned());
            return;
        }
        self.settings.push(format!("minimum_tcb.reported = {{ {} }}", members.join(", ")));
        let why = "MinimumTCB: the default policy compares with snp_bootloader, snp_microcode, snp_snp_svn and snp_tee_svn besides; \
                   register what your platforms report";
        self.notes.push(why.to_owned());
    }

    fn tdx(&mut self, platforms: &[Tdx]) -> Result<(), ContrastError> {
        for (number, tdx) in platforms.iter().enumerate() {
            let at = |member: &str| format!("ReferenceValues.tdx[{number}].{member}");
            self.value("mr_td", hex_of(&at("MrTd"), &tdx.mr_td, LAUNCH)?);
            self.value("xfam", hex_of(&at("Xfam"), &tdx.xfam, 8)?);
            for register in [1, 2] {
                let path = at(&format!("Rtmrs[{register}]"));
                let value = tdx.rtmrs.get(register).map_or("", String::as_str);
                self.value(&format!("rtmr_{register}"), hex_of(&path, value, LAUNCH)?);
            }
            if tdx.mr_seam.as_deref().is_some_and(|value| !value.is_empty()) {
                let what = at("MrSeam");
                self.notes.push(format!(
                    "{what}: the module's version is judged by Intel's collateral (tcb_status) here"
                ));
            }
            self.notes
                .push(format!("{}: RTMR0 and RTMR3 are not compared by the default policy", at("Rtmrs")));
        }
        Ok(())
    }
}

/// Hex of so many bytes, in lower case.
fn hex_of(path: &str, text: &str, bytes: usize) -> Result<String, ContrastError> {
    let good = text.len() == bytes * 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !good {
        let seen = text.chars().take(200).collect();
        return Err(ContrastError::Value { path: path.to_owned(), seen, bytes });
    }
    Ok(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hex(byte: &str, bytes: usize) -> String {
        byte.repeat(bytes)
    }

    fn manifest() -> Value {
        json!({
            "Policies": {
                hex("A1", 32): {"SANs": ["web", "*"], "WorkloadSecretID": "web", "Role": ""},
                hex("b2", 32): {"SANs": ["coordinator"], "Role": "coordinator"},
            },
            "ReferenceValues": {
                "snp": [{
                    "Platform": "Metal-QEMU-SNP", "ProductName": "Milan", "TrustedMeasurement": hex("c3", 48),
                    "MinimumTCB": {"BootloaderVersion": 4, "TEEVersion": 0, "SNPVersion": 24, "MicrocodeVersion": 219},
                    "GuestPolicy": {"SMT": true, "SingleSocket": false, "Debug": false}, "AllowedChipIDs": [hex("d4", 64)],
                    "PlatformInfo": null, "CPUs": 1,
                }],
                "tdx": [{
                    "Platform": "Metal-QEMU-TDX", "MrTd": hex("e5", 48), "MrSeam": hex("f6", 48),
                    "Rtmrs": [hex("00", 48), hex("11", 48), hex("22", 48), hex("33", 48)], "Xfam": hex("e7", 8),
                }],
            },
            "WorkloadOwnerKeyDigests": [hex("77", 32)],
            "SeedshareOwnerPubKeys": [],
        })
    }

    fn read(manifest: &Value) -> Result<Imported, ContrastError> {
        import(manifest.to_string().as_bytes())
    }

    #[test]
    fn policies_and_platforms_become_reference_values() {
        let imported = read(&manifest()).expect("good");
        let values = |name: &str| imported.values[name].iter().cloned().collect::<Vec<_>>();
        let zeros = hex("00", 16);
        let (a, b) = (hex("a1", 32), hex("b2", 32));
        assert_eq!(values("init_data"), [a.clone(), format!("{a}{zeros}"), b.clone(), format!("{b}{zeros}")]);
        assert_eq!(values("snp_launch_measurement"), [hex("c3", 48)]);
        assert_eq!(values("snp_smt_allowed"), ["true"]);
        assert_eq!((values("mr_td"), values("rtmr_1")), (vec![hex("e5", 48)], vec![hex("11", 48)]));
        assert_eq!((values("rtmr_2"), values("xfam")), (vec![hex("22", 48)], vec![hex("e7", 8)]));
        let tcb = "minimum_tcb.reported = { bootloader = 4, tee = 0, snp = 24, microcode = 219 }";
        assert_eq!(imported.settings, [tcb.to_owned(), format!("chip_ids = [\"{}\"]", hex("d4", 64))]);
        let notes = imported.notes.join("\n");
        for told in ["WorkloadOwnerKeyDigests", "MrSeam", "names in certificates"] {
            assert!(notes.contains(told), "{told}: {notes}");
        }
        assert!(!notes.contains("SeedshareOwnerPubKeys"), "there are none");
    }

    #[test]
    fn what_would_hold_for_the_wrong_platform_is_left_out_and_told() {
        let mut two = manifest();
        let mut second = two["ReferenceValues"]["snp"][0].clone();
        second["MinimumTCB"]["SNPVersion"] = json!(25);
        second["AllowedChipIDs"] = json!([]);
        two["ReferenceValues"]["snp"].as_array_mut().expect("a list").push(second);
        let imported = read(&two).expect("good");
        assert!(imported.settings.is_empty(), "{:?}", imported.settings);
        let notes = imported.notes.join("\n");
        assert!(
            notes.contains("entries of snp differ") && notes.contains("names chips and another none"),
            "{notes}"
        );
    }

    #[test]
    fn the_older_form_is_read() {
        let old = json!({
            "Policies": {hex("a1", 32): ["web"]},
            "ReferenceValues": {
                "SNP": {"MinimumTCB": {"BootloaderVersion": 3}}, "TrustedMeasurement": hex("c3", 48)},
        });
        let imported = read(&old).expect("good");
        assert_eq!(imported.values["init_data"].len(), 1);
        assert_eq!(imported.settings, ["minimum_tcb.reported = { bootloader = 3 }"]);
    }

    #[test]
    fn what_is_not_as_it_must_be_is_refused_with_its_place() {
        let path = |pointer: &str, value: Value| {
            let mut bad = manifest();
            *bad.pointer_mut(pointer).expect("there") = value;
            read(&bad).expect_err("refused").to_string()
        };
        let short = path("/ReferenceValues/snp/0/TrustedMeasurement", json!("c3"));
        assert!(
            short.contains("ReferenceValues.snp[0].TrustedMeasurement is \"c3\", expected 48 bytes"),
            "{short}"
        );
        let missing = path("/ReferenceValues/tdx/0/Rtmrs", json!([hex("00", 48)]));
        assert!(missing.contains("ReferenceValues.tdx[0].Rtmrs[1]"), "{missing}");
        assert!(path("/ReferenceValues/tdx/0/Xfam", json!("zz".repeat(8))).contains("Xfam"));
        assert!(path("/ReferenceValues", json!({})).contains("names no platform"));
        assert!(path("/Policies", json!({"12": []})).contains("Policies"));
        assert!(import(b"[]").is_err() && import(&vec![b' '; MAX_MANIFEST + 1]).is_err());
    }
}
