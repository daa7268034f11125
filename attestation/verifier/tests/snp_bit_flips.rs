//! Every bit of every field of a report, flipped and signed again by the simulated platform: it is refused for a reason of
//! that field, or changes exactly the claims of that field and no other.
//!
//! Without signing again every flip is refused; that is `kata-cc-snp`'s `bit_flips` test.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use kata_cc_kbs_protocol::Tee;
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::verify::Product;
use kata_cc_snp::{CertTable, Report, Tcb};
use kata_cc_verifier::{Evidence, Refusal, VerifierConfig, verify};
use serde_json::Value;

/// Bytes that are signed.
const SIGNED: usize = 0x2A0;

/// What a flip may come to.
enum Outcome {
    /// Exactly these claims change.
    Claims(Vec<String>),
    /// Refused, and the refusal names this claim.
    Refused(&'static str),
    /// A reserved place: no report.
    NotAReport,
    /// Refused as the second when it makes the report inconsistent, else the claims change.
    Either(Vec<String>, &'static str),
    /// Decides how the others are read.
    Layout,
}

fn named(names: &[&str]) -> Outcome {
    Outcome::Claims(names.iter().map(|name| (*name).to_owned()).collect())
}

/// How a report is laid out.
#[derive(Clone, Copy, Debug)]
struct Layout {
    version: u32,
    /// Turin's TCBs, which have the FMC in front.
    fmc: bool,
}

impl Layout {
    /// The claims of a part of a TCB, or a reserved place.
    fn tcb(self, name: &str, byte: usize) -> Option<Vec<String>> {
        let parts = match self.fmc {
            false => ["bootloader", "tee", "", "", "", "", "snp", "microcode"],
            true => ["fmc", "bootloader", "tee", "snp", "", "", "", "microcode"],
        };
        (!parts[byte].is_empty()).then(|| vec![format!("{name}_{}", parts[byte])])
    }
}

/// Offset of a byte, its bit, and the report's layout: the firmware ABI's table ATTESTATION_REPORT.
fn expected(at: usize, bit: u32, layout: Layout) -> Outcome {
    let (version, tcb) = (layout.version, |name, byte| layout.tcb(name, byte));
    let or_reserved = |claims: Option<Vec<String>>| claims.map_or(Outcome::NotAReport, Outcome::Claims);
    match at {
        0x000..0x004 => Outcome::Layout,
        0x004..0x008 => named(&["guest_svn"]),
        0x008 => named(&["policy", "policy_abi_minor"]),
        0x009 => named(&["policy", "policy_abi_major"]),
        0x00A..0x010 => policy((at - 0x008) * 8 + bit as usize),
        0x010..0x020 => named(&["family_id"]),
        0x020..0x030 => named(&["image_id"]),
        0x030..0x034 => Outcome::Refused("vmpl"),
        0x034..0x038 => Outcome::Refused("sig_algo"),
        0x038..0x040 => tcb("current_tcb", at - 0x038)
            .map_or(Outcome::NotAReport, |claims| Outcome::Either(claims, "committed_tcb")),
        0x040..0x048 => platform((at - 0x040) * 8 + bit as usize),
        0x048 => match bit {
            0 => named(&["author_key_enabled"]),
            1 => named(&["chip_key_masked"]),
            // Selects the key: another one, or an undefined one.
            2 => Outcome::Refused("key_info"),
            _ => Outcome::NotAReport,
        },
        0x049..0x050 => Outcome::NotAReport,
        0x050..0x090 => named(&["report_data"]),
        0x090..0x0C0 => named(&["measurement"]),
        0x0C0..0x0E0 => named(&["init_data"]),
        0x0E0..0x110 => named(&["id_key_digest"]),
        0x110..0x140 => named(&["author_key_digest"]),
        0x140..0x160 => named(&["report_id"]),
        0x160..0x180 => named(&["report_id_ma"]),
        0x180..0x188 => {
            tcb("reported_tcb", at - 0x180).map_or(Outcome::NotAReport, |_| Outcome::Refused("reported_tcb"))
        }
        0x188 => Outcome::Layout,
        0x189 if version > 2 => named(&["cpuid_model"]),
        0x18A if version > 2 => named(&["cpuid_stepping"]),
        0x1A0..0x1E0 => Outcome::Refused("chip_id"),
        0x1E0..0x1E8 => tcb("committed_tcb", at - 0x1E0)
            .map_or(Outcome::NotAReport, |claims| Outcome::Either(claims, "committed_tcb")),
        0x1E8..=0x1EA => firmware("current_version", at - 0x1E8),
        0x1EC..=0x1EE => firmware("committed_version", at - 0x1EC),
        0x1F0..0x1F8 => or_reserved(tcb("launch_tcb", at - 0x1F0)),
        0x1F8..0x200 if version > 4 => named(&["launch_mit_vector"]),
        0x200..0x208 if version > 4 => named(&["current_mit_vector"]),
        _ => Outcome::NotAReport,
    }
}

fn policy(bit: usize) -> Outcome {
    let flag = match bit {
        16 => "policy_smt_allowed",
        18 => "policy_migrate_ma",
        19 => "policy_debug_allowed",
        20 => "policy_single_socket",
        21 => "policy_cxl_allowed",
        22 => "policy_aes_256_xts_required",
        23 => "policy_rapl_disabled_required",
        24 => "policy_ciphertext_hiding_required",
        25 => "policy_page_swap_disabled",
        // Bit 17, and those without a meaning so far: the whole field shows them.
        _ => return named(&["policy"]),
    };
    named(&["policy", flag])
}

fn platform(bit: usize) -> Outcome {
    let flag = match bit {
        0 => "platform_smt_enabled",
        1 => "platform_tsme_enabled",
        2 => "platform_ecc_enabled",
        3 => "platform_rapl_disabled",
        4 => "platform_ciphertext_hiding",
        5 => "platform_alias_check_complete",
        7 => "platform_tio_enabled",
        _ => return named(&["platform_info"]),
    };
    named(&["platform_info", flag])
}

fn firmware(name: &str, byte: usize) -> Outcome {
    let part = ["build", "minor", "major"][byte];
    Outcome::Either(vec![name.to_owned(), format!("{name}_{part}")], "committed_tcb")
}

struct Bench {
    platform: SimPlatform,
    config: VerifierConfig,
    table: CertTable,
    now: u64,
}

impl Bench {
    /// Claims by name, those beside the TEE's included.
    fn claims(&self, report: &Report) -> Result<serde_json::Map<String, Value>, Refusal> {
        let signed = Report::parse(&self.platform.sign_report(report).unwrap()).unwrap();
        let evidence = serde_json::to_value(SnpEvidence::new(&signed, &self.table)).unwrap();
        let input = Evidence { tee: Tee::SimSnp, evidence: &evidence, report_data: None, init_data: None };
        let verdict = verify(&self.config, &input, self.now)?;
        let mut all = verdict.claims.as_object().unwrap().clone();
        let of_tee = all.remove("sim-snp").unwrap();
        all.extend(of_tee.as_object().unwrap().clone());
        Ok(all)
    }

    fn check(&self, report: &Report) {
        let base = self.claims(report).unwrap();
        let bytes = report.to_bytes();
        let layout = Layout { version: report.version, fmc: report.reported_tcb.fmc.is_some() };
        for at in 0..SIGNED {
            for bit in 0..8 {
                let mut flipped = bytes;
                flipped[at] ^= 1 << bit;
                self.check_flip(&base, &flipped, at, bit, layout);
            }
        }
    }

    fn check_flip(
        &self,
        base: &serde_json::Map<String, Value>,
        flipped: &[u8],
        at: usize,
        bit: u32,
        layout: Layout,
    ) {
        let place = format!("{layout:?}, byte {at:#x}, bit {bit}");
        let expected = expected(at, bit, layout);
        let Ok(report) = Report::parse(flipped) else {
            assert!(
                matches!(expected, Outcome::NotAReport | Outcome::Layout | Outcome::Refused("key_info")),
                "{place}: no report"
            );
            return;
        };
        let result = self.claims(&report);
        match (expected, result) {
            (Outcome::Claims(claims) | Outcome::Either(claims, _), Ok(seen)) => {
                assert_eq!(changed(base, &seen), claims.into_iter().collect(), "{place}");
            }
            (Outcome::Refused(claim) | Outcome::Either(_, claim), Err(refusal)) => {
                assert_eq!(refusal.claim(), claim, "{place}: {refusal}");
            }
            // Another version, or a processor of another family with another TCB layout.
            (Outcome::Layout, Err(_)) => {}
            (Outcome::Layout, Ok(seen)) => {
                let may = [
                    "report_version",
                    "cpuid_family",
                    "cpuid_model",
                    "cpuid_stepping",
                    "launch_mit_vector",
                    "current_mit_vector",
                ];
                let changed = changed(base, &seen);
                assert!(!changed.is_empty(), "{place}: no effect");
                assert!(changed.iter().all(|claim| may.contains(&claim.as_str())), "{place}: {changed:?}");
            }
            (_, Ok(seen)) => panic!("{place}: accepted, with {:?} changed", changed(base, &seen)),
            (_, Err(refusal)) => panic!("{place}: refused: {refusal}"),
        }
    }
}

fn changed(base: &serde_json::Map<String, Value>, seen: &serde_json::Map<String, Value>) -> BTreeSet<String> {
    base.keys().chain(seen.keys()).filter(|name| base.get(*name) != seen.get(*name)).cloned().collect()
}

// One test for all versions of a platform: it has RSA keys, which are slow to make.
fn every_bit_counts(tcb: &Tcb, versions: &[u32]) {
    let dir = tempfile::tempdir().unwrap();
    let platform = SimPlatform::create_at(&dir.path().join("platform"), tcb).unwrap();
    let mut config = VerifierConfig::default();
    config.add_simulated_roots(platform.ark_pem().unwrap().as_bytes()).unwrap();
    config.snp.settings.v2_product = Some(Product::Milan);
    let request = ReportRequest { measurement: [8; 48], report_data: [9; 64], ..ReportRequest::default() };
    let mut report = Report::parse(&platform.report(&request).unwrap()).unwrap();
    assert_eq!(report.reported_tcb, *tcb);
    // So that flips of what is committed go both ways.
    report.current_tcb.microcode += 1;
    report.current_version.build += 1;
    let cpuid = report.cpuid.unwrap();
    let table = CertTable::parse(&platform.certificate_table()).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let bench = Bench { platform, config, table, now };
    for version in versions.iter().copied() {
        report.version = version;
        report.cpuid = (version > 2).then_some(cpuid);
        report.launch_mit_vector = (version > 4).then_some(1);
        report.current_mit_vector = (version > 4).then_some(3);
        bench.check(&report);
    }
}

#[test]
fn every_bit_of_a_field_changes_the_claims_of_that_field_and_no_other() {
    every_bit_counts(&kata_cc_sim_tee::TCB, &[2, 3, 4, 5]);
}

/// Turin's reports begin with version 3.
#[test]
fn every_bit_of_a_field_of_turin_changes_the_claims_of_that_field_and_no_other() {
    let tcb = Tcb { fmc: Some(1), bootloader: 1, tee: 1, snp: 4, microcode: 76 };
    every_bit_counts(&tcb, &[3, 4, 5]);
}
