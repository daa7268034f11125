//! What an owner demands of a verified report, and everything in which a report falls short of it.
//!
//! [`Requirements`] are all optional: what is not demanded is not looked at. [`Requirements::check`] returns *all*
//! differences, not the first, each with the claim, what was seen, what was expected and what to do about it.
//! A report has to be verified before it is worth checking ([`crate::verify`]).
//!
//! Sources: firmware ABI, GUEST_POLICY, PLATFORM_INFO, ATTESTATION_REPORT.

use serde::{Deserialize, Serialize};

use crate::hex_bytes::HexBytes;
use crate::report::{FirmwareVersion, Report};
use crate::tcb::Tcb;
use crate::verify::{VekKind, Verified};

/// One way in which a report is not as demanded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Name of the claim, as the verifier publishes it.
    pub claim: &'static str,
    /// Its value.
    pub seen: String,
    /// What was demanded.
    pub expected: String,
    /// What to do.
    pub advice: &'static str,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, expected {}: {}", self.claim, self.seen, self.expected, self.advice)
    }
}

/// Demands on the guest policy's bits: what a launch under that policy may and has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyBits {
    /// The host may debug the guest.
    pub debug_allowed: Option<bool>,
    /// A migration agent may be associated.
    pub migration_agent_allowed: Option<bool>,
    /// Hyper-threading may be on.
    pub smt_allowed: Option<bool>,
    /// One socket only.
    pub single_socket: Option<bool>,
    /// CXL devices may be present.
    pub cxl_allowed: Option<bool>,
    /// AES-256-XTS is demanded of the platform.
    pub aes_256_xts_required: Option<bool>,
    /// RAPL has to be off.
    pub rapl_disabled_required: Option<bool>,
    /// Ciphertext hiding has to be on.
    pub ciphertext_hiding_required: Option<bool>,
    /// The host may not swap guest pages.
    pub page_swap_disabled: Option<bool>,
}

/// Demands on what the platform runs with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlatformBits {
    /// Hyper-threading is on.
    pub smt_enabled: Option<bool>,
    /// Transparent SME is on.
    pub tsme_enabled: Option<bool>,
    /// Memory has error correction.
    pub ecc_enabled: Option<bool>,
    /// RAPL is off.
    pub rapl_disabled: Option<bool>,
    /// Ciphertext hiding is on.
    pub ciphertext_hiding: Option<bool>,
    /// The check for aliased memory was done (BadRAM).
    pub alias_check_complete: Option<bool>,
    /// SEV-TIO is on.
    pub tio_enabled: Option<bool>,
}

/// Version of the firmware's ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbiVersion {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
}

/// Lowest versions, part by part; a part that is not named is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinimumTcb {
    /// FMC (Turin and later).
    pub fmc: Option<u8>,
    /// Boot loader.
    pub bootloader: Option<u8>,
    /// PSP operating system.
    pub tee: Option<u8>,
    /// SNP firmware.
    pub snp: Option<u8>,
    /// CPU microcode.
    pub microcode: Option<u8>,
}

/// Lowest versions for each of the four TCBs of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinimumTcbs {
    /// What the host has the key derived for; it can be lowered by the host.
    pub reported: MinimumTcb,
    /// Below this the firmware cannot be rolled back.
    pub committed: MinimumTcb,
    /// When the guest was launched.
    pub launch: MinimumTcb,
    /// When the report was made.
    pub current: MinimumTcb,
}

/// Lowest firmware builds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinimumFirmware {
    /// When the report was made.
    pub current: Option<FirmwareVersion>,
    /// Below this the firmware cannot be rolled back.
    pub committed: Option<FirmwareVersion>,
}

/// All that can be demanded of a report. A list that is empty demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requirements {
    /// Bits of the guest policy.
    pub policy: PolicyBits,
    /// Refuse policy bits that this software does not know.
    pub known_policy_bits_only: bool,
    /// The policy has to demand at least this ABI of the firmware.
    pub minimum_abi: Option<AbiVersion>,
    /// Bits of the platform information.
    pub platform: PlatformBits,
    /// Highest VMPL.
    pub max_vmpl: Option<u32>,
    /// Lowest firmware builds.
    pub minimum_firmware: MinimumFirmware,
    /// Lowest TCBs.
    pub minimum_tcb: MinimumTcbs,
    /// Refuse firmware that is not committed: it can still be rolled back.
    pub committed_firmware_only: bool,
    /// Refuse firmware older than at the guest's launch.
    pub deny_rollback_since_launch: bool,
    /// Lowest security version of the guest (from its ID block).
    pub minimum_guest_svn: Option<u32>,
    /// Acceptable family ids.
    pub family_ids: Vec<HexBytes<16>>,
    /// Acceptable image ids.
    pub image_ids: Vec<HexBytes<16>>,
    /// Acceptable digests of the ID key.
    pub id_key_digests: Vec<HexBytes<48>>,
    /// Acceptable digests of the author key; only a report whose author key is in force passes.
    pub author_key_digests: Vec<HexBytes<48>>,
    /// Acceptable launch digests.
    pub measurements: Vec<HexBytes<48>>,
    /// Acceptable chip ids.
    pub chip_ids: Vec<HexBytes<64>>,
    /// Host data.
    pub host_data: Option<HexBytes<32>>,
    /// Report data.
    pub report_data: Option<HexBytes<64>>,
    /// Mitigations (bits) that were in force at launch; version 5 reports only.
    pub launch_mitigations: Option<u64>,
    /// Mitigations (bits) that are in force; version 5 reports only.
    pub current_mitigations: Option<u64>,
    /// Kind of the signing key.
    pub vek_kind: Option<VekKind>,
    /// Acceptable provider ids of a VLEK; a VCEK, which names none, does not pass.
    pub csp_ids: Vec<String>,
}

impl Requirements {
    /// All differences; none means that the report is as demanded.
    #[must_use]
    pub fn check(&self, verified: &Verified) -> Vec<Difference> {
        let mut found = Findings::default();
        self.check_policy(&verified.report, &mut found);
        self.check_platform(&verified.report, &mut found);
        self.check_firmware(&verified.report, &mut found);
        self.check_identity(&verified.report, &mut found);
        self.check_key(verified, &mut found);
        found.all
    }

    fn check_policy(&self, report: &Report, found: &mut Findings) {
        let (policy, want) = (report.policy, &self.policy);
        let rows = [
            ("policy_debug_allowed", policy.debug_allowed(), want.debug_allowed),
            ("policy_migrate_ma", policy.migration_agent_allowed(), want.migration_agent_allowed),
            ("policy_smt_allowed", policy.smt_allowed(), want.smt_allowed),
            ("policy_single_socket", policy.single_socket(), want.single_socket),
            ("policy_cxl_allowed", policy.cxl_allowed(), want.cxl_allowed),
            ("policy_aes_256_xts_required", policy.aes_256_xts_required(), want.aes_256_xts_required),
            ("policy_rapl_disabled_required", policy.rapl_disabled_required(), want.rapl_disabled_required),
            (
                "policy_ciphertext_hiding_required",
                policy.ciphertext_hiding_required(),
                want.ciphertext_hiding_required,
            ),
            ("policy_page_swap_disabled", policy.page_swap_disabled(), want.page_swap_disabled),
        ];
        for (claim, seen, want) in rows {
            found.flag(claim, seen, want, "launch the guest with this bit of its policy changed");
        }
        let unknown = policy.unknown_bits();
        if self.known_policy_bits_only && unknown != 0 {
            found.add(
                "policy",
                format!("{:#x}", policy.0),
                format!("no bits but {:#x}", crate::GuestPolicy::KNOWN_BITS),
                "launch the guest with a policy of known bits, or update this verifier",
            );
        }
        if let Some(minimum) = self.minimum_abi {
            let seen = AbiVersion { major: policy.abi_major(), minor: policy.abi_minor() };
            if seen < minimum {
                found.add(
                    "policy_abi",
                    format!("{}.{}", seen.major, seen.minor),
                    format!("at least {}.{}", minimum.major, minimum.minor),
                    "launch the guest with a policy that demands a newer firmware ABI",
                );
            }
        }
        if let Some(max) = self.max_vmpl
            && report.vmpl > max
        {
            found.add(
                "vmpl",
                report.vmpl.to_string(),
                format!("at most {max}"),
                "ask for the report from a more privileged level of the guest",
            );
        }
    }

    fn check_platform(&self, report: &Report, found: &mut Findings) {
        let (info, want) = (report.platform_info, &self.platform);
        for (claim, seen, want) in [
            ("platform_smt_enabled", info.smt_enabled(), want.smt_enabled),
            ("platform_tsme_enabled", info.tsme_enabled(), want.tsme_enabled),
            ("platform_ecc_enabled", info.ecc_enabled(), want.ecc_enabled),
            ("platform_rapl_disabled", info.rapl_disabled(), want.rapl_disabled),
            ("platform_ciphertext_hiding", info.ciphertext_hiding(), want.ciphertext_hiding),
            ("platform_alias_check_complete", info.alias_check_complete(), want.alias_check_complete),
            ("platform_tio_enabled", info.tio_enabled(), want.tio_enabled),
        ] {
            found.flag(claim, seen, want, "run the guest on a host whose BIOS and firmware are set up so");
        }
        for (claim, seen, want) in [
            ("launch_mit_vector", report.launch_mit_vector, self.launch_mitigations),
            ("current_mit_vector", report.current_mit_vector, self.current_mitigations),
        ] {
            let Some(want) = want else { continue };
            if seen.is_none_or(|seen| seen & want != want) {
                found.add(
                    claim,
                    seen.map_or_else(|| "none".to_owned(), |seen| format!("{seen:#x}")),
                    format!("all bits of {want:#x}"),
                    "update the host's SNP firmware (1.58 or later reports mitigations)",
                );
            }
        }
    }

    fn check_firmware(&self, report: &Report, found: &mut Findings) {
        let update = "update the host's SNP firmware";
        for (claim, seen, want) in [
            ("current_version", report.current_version, self.minimum_firmware.current),
            ("committed_version", report.committed_version, self.minimum_firmware.committed),
        ] {
            if let Some(want) = want
                && seen < want
            {
                found.add(claim, seen.to_string(), format!("at least {want}"), update);
            }
        }
        let minimum = &self.minimum_tcb;
        found.tcb(&REPORTED_TCB, &report.reported_tcb, &minimum.reported);
        found.tcb(&COMMITTED_TCB, &report.committed_tcb, &minimum.committed);
        found.tcb(&LAUNCH_TCB, &report.launch_tcb, &minimum.launch);
        found.tcb(&CURRENT_TCB, &report.current_tcb, &minimum.current);
        let (current, committed) = (&report.current_tcb, &report.committed_tcb);
        if self.committed_firmware_only
            && (current != committed || report.current_version != report.committed_version)
        {
            found.add(
                "committed_tcb",
                format!("{committed}, version {}", report.committed_version),
                format!("as the current one: {current}, version {}", report.current_version),
                "commit the firmware on the host (SNP_COMMIT), so that it cannot be rolled back",
            );
        }
        if self.deny_rollback_since_launch && !current.at_least(&report.launch_tcb) {
            found.add(
                "current_tcb",
                current.to_string(),
                format!("at least that of the launch: {}", report.launch_tcb),
                "the host rolled its firmware back after the guest's launch: update it and launch again",
            );
        }
    }

    fn check_identity(&self, report: &Report, found: &mut Findings) {
        if let Some(minimum) = self.minimum_guest_svn
            && report.guest_svn < minimum
        {
            let expected = format!("at least {minimum}");
            found.add(
                "guest_svn",
                report.guest_svn.to_string(),
                expected,
                "launch a newer version of the guest",
            );
        }
        let image = "launch the image that is expected, or add this one to the list";
        let key = "sign the guest's ID block with an expected key, or add this one to the list";
        found.one_of("measurement", &report.measurement, &self.measurements, image);
        found.one_of("family_id", &report.family_id, &self.family_ids, image);
        found.one_of("image_id", &report.image_id, &self.image_ids, image);
        found.one_of("id_key_digest", &report.id_key_digest, &self.id_key_digests, key);
        let author = if report.key_info.author_key_enabled() { report.author_key_digest } else { [0; 48] };
        found.one_of("author_key_digest", &author, &self.author_key_digests, key);
        found.one_of(
            "chip_id",
            &report.chip_id,
            &self.chip_ids,
            "run the guest on one of the expected hosts",
        );
        let host_data = self.host_data.as_slice();
        found.one_of(
            "init_data",
            &report.host_data,
            host_data,
            "launch the guest with the expected host data",
        );
        let report_data = self.report_data.as_slice();
        found.one_of("report_data", &report.report_data, report_data, "ask the guest for a new report");
    }

    fn check_key(&self, verified: &Verified, found: &mut Findings) {
        if let Some(want) = self.vek_kind
            && verified.vek != want
        {
            let advice = "run the guest where reports are signed by this kind of key";
            found.add("vek_kind", verified.vek.to_string(), want.to_string(), advice);
        }
        if !self.csp_ids.is_empty() {
            let seen = verified.extensions.csp_id.as_deref();
            if !self.csp_ids.iter().any(|id| Some(id.as_str()) == seen) {
                let advice = "run the guest at one of the expected providers";
                found.add("csp_id", seen.unwrap_or("none").to_owned(), self.csp_ids.join(" or "), advice);
            }
        }
    }
}

/// Names of the claims of one TCB: whole, then part by part.
struct TcbClaims {
    fmc: &'static str,
    bootloader: &'static str,
    tee: &'static str,
    snp: &'static str,
    microcode: &'static str,
}

macro_rules! tcb_claims {
    ($name:ident, $prefix:literal) => {
        const $name: TcbClaims = TcbClaims {
            fmc: concat!($prefix, "_fmc"),
            bootloader: concat!($prefix, "_bootloader"),
            tee: concat!($prefix, "_tee"),
            snp: concat!($prefix, "_snp"),
            microcode: concat!($prefix, "_microcode"),
        };
    };
}

tcb_claims!(REPORTED_TCB, "reported_tcb");
tcb_claims!(COMMITTED_TCB, "committed_tcb");
tcb_claims!(LAUNCH_TCB, "launch_tcb");
tcb_claims!(CURRENT_TCB, "current_tcb");

/// Collects differences.
#[derive(Default)]
struct Findings {
    all: Vec<Difference>,
}

impl Findings {
    fn add(&mut self, claim: &'static str, seen: String, expected: String, advice: &'static str) {
        self.all.push(Difference { claim, seen, expected, advice });
    }

    fn flag(&mut self, claim: &'static str, seen: bool, want: Option<bool>, advice: &'static str) {
        if let Some(want) = want
            && seen != want
        {
            self.add(claim, seen.to_string(), want.to_string(), advice);
        }
    }

    fn tcb(&mut self, claims: &TcbClaims, seen: &Tcb, minimum: &MinimumTcb) {
        let rows = [
            (claims.fmc, seen.fmc, minimum.fmc),
            (claims.bootloader, Some(seen.bootloader), minimum.bootloader),
            (claims.tee, Some(seen.tee), minimum.tee),
            (claims.snp, Some(seen.snp), minimum.snp),
            (claims.microcode, Some(seen.microcode), minimum.microcode),
        ];
        for (claim, seen, want) in rows {
            let Some(want) = want else { continue };
            if seen.is_none_or(|seen| seen < want) {
                let seen = seen.map_or_else(|| "none".to_owned(), |seen| seen.to_string());
                let advice = "update the host's firmware (BIOS) and commit it";
                self.add(claim, seen, format!("at least {want}"), advice);
            }
        }
    }

    fn one_of<const N: usize>(
        &mut self,
        claim: &'static str,
        seen: &[u8; N],
        accepted: &[HexBytes<N>],
        advice: &'static str,
    ) {
        if accepted.is_empty() || accepted.iter().any(|one| one.0 == *seen) {
            return;
        }
        let expected = accepted.iter().map(HexBytes::to_string).collect::<Vec<_>>().join(" or ");
        self.add(claim, hex::encode(seen), expected, advice);
    }
}
