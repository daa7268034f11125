//! Real reports and certificates from AMD hardware: each verifies under AMD's roots with every field as
//! expected, and each way of tampering is refused for its own reason.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_snp::certs::{AMD_SIGNATURE, CertError, Certificate, VekExtensions};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::report::SIGNED_LEN;
use kata_cc_snp::verify::{AnchorKind, Blame, Product, Role, VekKind};
use kata_cc_snp::{
    Endorsements, Report, ReportError, SigningKey, Tcb, TrustAnchor, Verified, VerifyError, roots, verify,
};
use kata_cc_x509::ChainError;
use serde_json::Value;

/// 2025-09-01: within the validity of every certificate here, also the one-year VLEK.
const NOW: u64 = 1_756_684_800;

const REPORTS: [&str; 6] =
    ["genoa-v5", "milan-v2-a", "milan-v2-b", "milan-v3-a", "milan-v3-vlek", "turin-v5"];

struct Case {
    name: &'static str,
    report: Vec<u8>,
    given: Endorsements,
    expected: Value,
    product: Product,
}

fn case(dir: &Path, name: &'static str) -> Case {
    let dir = dir.join("reports").join(name);
    let vek = if name.ends_with("vlek") { "vlek.der" } else { "vcek.der" };
    let expected: Value = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let product = expected["product"].as_str().unwrap();
    let product = Product::ALL.into_iter().find(|known| product.starts_with(known.name())).unwrap();
    Case {
        name,
        report: std::fs::read(dir.join("report.bin")).unwrap(),
        given: Endorsements { vek: std::fs::read(dir.join(vek)).unwrap(), ask: None, ark: None },
        expected,
        product,
    }
}

fn cases() -> Vec<Case> {
    kata_cc_test_vectors::path("snp").map_or_else(Vec::new, |dir| REPORTS.map(|name| case(&dir, name)).into())
}

impl Case {
    fn verify(&self, report: &[u8], given: &Endorsements) -> Result<Verified, VerifyError> {
        verify(report, given, &TrustAnchor::Amd(self.product), NOW)
    }
}

fn hex_number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

fn tcb(value: &Value) -> Tcb {
    let part = |name: &str| value[name].as_u64().map(|part| u8::try_from(part).unwrap());
    Tcb {
        fmc: part("fmc"),
        bootloader: part("bl").unwrap(),
        tee: part("tee").unwrap(),
        snp: part("snp").unwrap(),
        microcode: part("ucode").unwrap(),
    }
}

#[test]
fn real_reports_verify_and_every_field_matches() {
    for case in cases() {
        let verified =
            case.verify(&case.report, &case.given).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(verified.anchor, AnchorKind::Amd(case.product));
        check_report(&verified.report, &case.expected);
        check_certificate(&verified, &case.expected);
        assert_eq!(verified.report.to_bytes().as_slice(), case.report, "{}: round trip", case.name);
    }
}

fn check_report(report: &Report, expected: &Value) {
    let hex_of = |name: &str| expected[name].as_str().unwrap().to_owned();
    assert_eq!(u64::from(report.version), expected["report_version"].as_u64().unwrap());
    let key = if expected["signing_key"] == "VLEK" { SigningKey::Vlek } else { SigningKey::Vcek };
    assert_eq!(report.key_info.signing_key(), key);
    assert_eq!(u64::from(report.key_info.0), hex_number(&expected["flags"]));
    assert_eq!(report.policy.0, hex_number(&expected["policy"]));
    assert_eq!(u64::from(report.vmpl), expected["vmpl"].as_u64().unwrap());
    assert_eq!(u64::from(report.signature_algo), expected["sig_algo"].as_u64().unwrap());
    assert_eq!(report.platform_info.0, hex_number(&expected["platform_info"]));
    assert_eq!(u64::from(report.guest_svn), expected["guest_svn"].as_u64().unwrap());
    assert_eq!(hex::encode(report.measurement), hex_of("measurement"));
    assert_eq!(hex::encode(report.report_data), hex_of("report_data"));
    assert_eq!(hex::encode(report.host_data), hex_of("host_data"));
    assert_eq!(hex::encode(report.id_key_digest), hex_of("id_key_digest"));
    assert_eq!(hex::encode(report.author_key_digest), hex_of("author_key_digest"));
    assert_eq!(hex::encode(report.report_id), hex_of("report_id"));

    assert_eq!(hex::encode(report.chip_id), hex_of("chip_id"));
    assert_eq!(report.current_tcb, tcb(&expected["current_tcb"]));
    assert_eq!(report.reported_tcb, tcb(&expected["reported_tcb"]));
    assert_eq!(report.committed_tcb, tcb(&expected["committed_tcb"]));
    assert_eq!(report.launch_tcb, tcb(&expected["launch_tcb"]));
    assert_eq!(report.current_version.to_string(), hex_of("current_fw"));
    assert_eq!(report.committed_version.to_string(), hex_of("committed_fw"));
    let cpuid = report.cpuid.map(|cpu| serde_json::json!([cpu.family, cpu.model, cpu.stepping]));
    assert_eq!(cpuid.as_ref(), expected.get("cpuid_fam_mod_step"));
    for (have, name) in
        [(report.launch_mit_vector, "launch_mit_vector"), (report.current_mit_vector, "current_mit_vector")]
    {
        assert_eq!(have, expected.get(name).map(hex_number), "{name}");
    }
}

fn check_certificate(verified: &Verified, expected: &Value) {
    let expected = &expected["cert_ext"];
    let extensions = &verified.extensions;
    assert_eq!(u64::from(extensions.struct_version), expected["struct_version"].as_u64().unwrap());
    assert_eq!(extensions.product_name, expected["product"].as_str().unwrap());
    assert_eq!(extensions.tcb, tcb(expected));
    assert_eq!(extensions.hw_id.as_ref().map(hex::encode).as_deref(), expected["hwid"][1].as_str());
    assert_eq!(extensions.csp_id.as_deref(), expected["csp_id"].as_str());
    assert_eq!(verified.vek == VekKind::Vlek, extensions.csp_id.is_some());
}

#[test]
fn policy_bits_of_real_reports() {
    for case in cases() {
        let report = Report::parse(&case.report).unwrap();
        assert_eq!(report.policy.debug_allowed(), case.name == "milan-v2-b", "{}", case.name);
        assert!(report.policy.reserved_one() && report.policy.smt_allowed());
        assert!(report.platform_info.smt_enabled());
    }
}

#[test]
fn a_flip_of_any_signed_byte_is_refused() {
    for case in cases() {
        for at in 0..SIGNED_LEN {
            let mut report = case.report.clone();
            report[at] ^= 1;
            assert!(case.verify(&report, &case.given).is_err(), "{}: byte {at:#x}", case.name);
        }
        // Bytes that no other rule looks at: the signature is what refuses them.
        for at in [0x4, 0x10, 0x20, 0x50, 0x8F, 0x90, 0xC0, 0xE0, 0x110, 0x140, 0x160, 0x1E8] {
            let mut report = case.report.clone();
            report[at] ^= 1;
            let refused = case.verify(&report, &case.given).unwrap_err();
            assert!(
                matches!(refused, VerifyError::Signature { .. }),
                "{}: byte {at:#x}: {refused}",
                case.name
            );
            assert_eq!(refused.blame(), Blame::Binding);
        }
    }
}

#[test]
fn a_changed_signature_is_refused() {
    for case in cases() {
        for at in [0x2A0, 0x2A0 + 47, 0x2A0 + 48, 0x2E8, 0x2E8 + 71] {
            let mut report = case.report.clone();
            report[at] ^= 1;
            assert!(
                matches!(case.verify(&report, &case.given), Err(VerifyError::Signature { .. })),
                "{at:#x}"
            );
        }
        let mut report = case.report.clone();
        report[0x34] = 2;
        assert_eq!(case.verify(&report, &case.given), Err(VerifyError::SignatureAlgorithm { seen: 2 }));
        let mut report = case.report.clone();
        report[0x48] |= 7 << 2;
        assert_eq!(case.verify(&report, &case.given), Err(VerifyError::Unsigned));
    }
}

#[test]
fn certificates_of_another_chip_or_firmware_are_refused() {
    let cases = cases();
    let Some(milan_a) = cases.iter().find(|case| case.name == "milan-v2-a") else { return };
    let milan_b = cases.iter().find(|case| case.name == "milan-v2-b").unwrap();
    let vlek = cases.iter().find(|case| case.name == "milan-v3-vlek").unwrap();
    let turin = cases.iter().find(|case| case.name == "turin-v5").unwrap();
    let milan_v3 = cases.iter().find(|case| case.name == "milan-v3-a").unwrap();
    let refused = milan_a.verify(&milan_a.report, &milan_b.given).unwrap_err();
    assert_eq!(refused, VerifyError::Signature { kind: VekKind::Vcek });
    let refused = milan_a.verify(&milan_a.report, &vlek.given).unwrap_err();
    assert_eq!(refused, VerifyError::Signature { kind: VekKind::Vlek });
    let refused = milan_v3.verify(&milan_v3.report, &turin.given).unwrap_err();
    assert!(
        matches!(&refused, VerifyError::Chain(ChainError::Issuer { role: Role::Vek, seen, expected }) if seen == "SEV-Turin" && expected == "SEV-Milan"),
        "{refused}"
    );
    let refused = verify(&turin.report, &turin.given, &TrustAnchor::Amd(Product::Genoa), NOW).unwrap_err();
    assert_eq!(refused, VerifyError::Product { seen: "Turin".into(), expected: "Genoa" });
}

#[test]
fn tampered_certificates_are_refused() {
    let Some(dir) = kata_cc_test_vectors::path("snp") else { return };
    let milan = case(&dir, "milan-v2-a");
    for name in ["vcek-bad-legacy.der", "vcek-bad-new.der"] {
        let vek = std::fs::read(dir.join("reports/milan-v2-a").join(name)).unwrap();
        let refused =
            milan.verify(&milan.report, &Endorsements { vek, ..Endorsements::default() }).unwrap_err();
        assert_eq!(
            refused,
            VerifyError::Chain(ChainError::Signature { role: Role::Vek, issuer: "SEV-Milan".into() }),
            "{name}"
        );
        assert_eq!(refused.blame(), Blame::Endorsements);
    }
    let mut vek = milan.given.vek.clone();
    vek.pop();
    let refused = milan.verify(&milan.report, &Endorsements { vek, ..Endorsements::default() }).unwrap_err();
    assert!(
        matches!(
            refused,
            VerifyError::Chain(ChainError::Certificate { role: Role::Vek, source: CertError::Der(_) })
        ),
        "{refused}"
    );
    let refused = milan.verify(&milan.report, &Endorsements::default()).unwrap_err();
    assert_eq!(refused, VerifyError::MissingCertificate { role: Role::Vek });
}

#[test]
fn the_wrong_intermediate_or_root_is_refused() {
    let Some(dir) = kata_cc_test_vectors::path("snp") else { return };
    let pem = |name: &str| Some(std::fs::read(dir.join("certs").join(name)).unwrap());
    let milan = case(&dir, "milan-v3-a");
    let vlek = case(&dir, "milan-v3-vlek");
    let own = Endorsements { ask: pem("milan-ask.pem"), ark: pem("milan-ark.pem"), ..milan.given.clone() };
    milan.verify(&milan.report, &own).unwrap();
    for (case, wrong) in [(&milan, "milan-asvk-ark-chain.pem"), (&vlek, "milan-ask-ark-chain.pem")] {
        let swapped = Endorsements { ask: pem(wrong), ..case.given.clone() };
        let refused = case.verify(&case.report, &swapped).unwrap_err();
        assert!(
            matches!(refused, VerifyError::Chain(ChainError::Issuer { role: Role::Vek, .. })),
            "{refused}"
        );
    }
    let other_ask = Endorsements { ask: pem("genoa-ask.pem"), ..milan.given.clone() };
    let refused = milan.verify(&milan.report, &other_ask).unwrap_err();
    assert!(matches!(refused, VerifyError::Chain(ChainError::Issuer { role: Role::Ask, .. })), "{refused}");
    let other_root = Endorsements { ark: pem("genoa-ark.pem"), ..milan.given.clone() };
    let refused = milan.verify(&milan.report, &other_root).unwrap_err();
    assert!(
        matches!(&refused, VerifyError::Chain(ChainError::Root { seen, .. }) if seen.contains("ARK-Genoa")),
        "{refused}"
    );
    // An endorsement key cannot take the place of an intermediate.
    let vek_as_ask = Endorsements { ask: Some(milan.given.vek.clone()), ..milan.given.clone() };
    let refused = milan.verify(&milan.report, &vek_as_ask).unwrap_err();
    assert!(
        matches!(refused, VerifyError::Chain(ChainError::Certificate { role: Role::Ask, .. })),
        "{refused}"
    );
}

#[test]
fn validity_is_checked_at_the_given_time() {
    let Some(dir) = kata_cc_test_vectors::path("snp") else { return };
    let vlek = case(&dir, "milan-v3-vlek");
    // 2024-12-01 and 2026-01-01, outside of the VLEK's year.
    for time in [1_733_011_200, 1_767_225_600] {
        let refused = verify(&vlek.report, &vlek.given, &TrustAnchor::Amd(Product::Milan), time).unwrap_err();
        assert!(
            matches!(
                &refused,
                VerifyError::Chain(ChainError::Certificate {
                    role: Role::Vek,
                    source: CertError::Validity { .. }
                })
            ),
            "{refused}"
        );
    }
}

#[test]
fn a_reported_tcb_that_is_not_the_certificates_is_refused() {
    // Nobody can sign such a report here, so the comparison is shown on the parts.
    for case in cases() {
        let report = Report::parse(&case.report).unwrap();
        let extensions = VekExtensions::of(&Certificate::from_der(&case.given.vek).unwrap()).unwrap();
        assert_eq!(report.reported_tcb, extensions.tcb);
        let mut changed = case.report.clone();
        changed[0x180] += 1;
        assert_ne!(Report::parse(&changed).unwrap().reported_tcb, extensions.tcb);
    }
}

#[test]
fn other_lengths_and_versions_are_refused() {
    for case in cases() {
        let short = &case.report[..case.report.len() - 1];
        let refused = case.verify(short, &case.given).unwrap_err();
        assert_eq!(refused, VerifyError::Report(ReportError::Length { seen: 1183 }));
        assert_eq!(refused.blame(), Blame::Report);
        for seen in [0, 1, 6, u32::MAX] {
            let mut report = case.report.clone();
            report[..4].copy_from_slice(&seen.to_le_bytes());
            let expected =
                if seen > 5 { ReportError::NewerVersion { seen } } else { ReportError::Version { seen } };
            assert_eq!(Report::parse(&report), Err(expected));
        }
        let mut report = case.report.clone();
        report[0x210] = 1;
        assert_eq!(Report::parse(&report), Err(ReportError::ReservedNotZero { section: "0x208" }));
        assert!(Report::parse_with(&report, kata_cc_snp::Reserved::Ignore).is_ok());
        let mut report = case.report.clone();
        report[0x48] |= 2 << 2;
        assert!(matches!(Report::parse(&report), Err(ReportError::SigningKeySelector { seen: 2 | 3 })));
    }
}

#[test]
fn json_evidence_is_the_same_report() {
    let Some(dir) = kata_cc_test_vectors::path("snp") else { return };
    let text = std::fs::read(dir.join("evidence/coco-snp-evidence-v3.json")).unwrap();
    let evidence: SnpEvidence = serde_json::from_slice(&text).unwrap();
    let report = evidence.attestation_report.to_report().unwrap();
    let given = evidence.endorsements();
    let product = Product::of(&report, None).unwrap();
    assert_eq!(product, Product::Genoa);
    let verified = verify(&report.to_bytes(), &given, &TrustAnchor::Amd(product), NOW).unwrap();
    assert_eq!(verified.vek, VekKind::Vcek);
    // And back: nothing is added but the two members that newer reports have.
    let again: SnpEvidence = serde_json::from_value(serde_json::to_value(&evidence).unwrap()).unwrap();
    assert_eq!(again, evidence);
    for case in cases() {
        let report = Report::parse(&case.report).unwrap();
        let json =
            serde_json::to_string(&SnpEvidence::new(&report, &kata_cc_snp::CertTable::default())).unwrap();
        let back: SnpEvidence = serde_json::from_str(&json).unwrap();
        assert_eq!(
            back.attestation_report.to_report().unwrap().to_bytes().as_slice(),
            case.report,
            "{}",
            case.name
        );
    }
}

#[test]
fn built_in_roots_are_those_of_amd() {
    for product in Product::ALL {
        let ark = roots::ark(product).unwrap();
        assert_eq!(ark.subject_cn(), format!("ARK-{}", product.name()));
        assert!(ark.signed_by(&ark, AMD_SIGNATURE).unwrap());
        let certs = roots::product_certs(product);
        for (bytes, cn) in [(certs.ask, "SEV-"), (certs.asvk, "SEV-VLEK-")] {
            let cert = Certificate::from_der(bytes).unwrap();
            assert_eq!(cert.subject_cn(), format!("{cn}{}", product.name()));
            assert!(cert.signed_by(&ark, AMD_SIGNATURE).unwrap() && cert.names_issuer(&ark));
        }
        let Some(dir) = kata_cc_test_vectors::path("snp") else { continue };
        let lower = product.name().to_lowercase();
        let pem = std::fs::read(dir.join(format!("certs/{lower}-ark.pem"))).unwrap();
        assert_eq!(Certificate::from_der_or_pem(&pem).unwrap().der(), ark.der());
    }
}

/// What AMD's service answers for each product is what is built in: the intermediate, then the root, of VCEKs and of VLEKs.
#[test]
fn the_built_in_intermediates_are_those_that_amd_publishes() {
    let Some(dir) = kata_cc_test_vectors::path("snp/certs") else { return };
    for product in Product::ALL {
        let lower = product.name().to_lowercase();
        let read = |name: &str| std::fs::read(dir.join(format!("{lower}-{name}.pem"))).unwrap();
        let certs = roots::product_certs(product);
        for (kind, built_in) in [("ask", certs.ask), ("asvk", certs.asvk)] {
            let chain = Certificate::chain_from_pem(&read(&format!("{kind}-ark-chain"))).unwrap();
            let ders: Vec<&[u8]> = chain.iter().map(Certificate::der).collect();
            assert_eq!(ders, [built_in, certs.ark], "{lower} {kind}");
        }
        assert_eq!(Certificate::from_der_or_pem(&read("ask")).unwrap().der(), certs.ask, "{lower}");
        assert_eq!(Certificate::from_der_or_pem(&read("ark")).unwrap().der(), certs.ark, "{lower}");
    }
}

/// A certificate as PEM text.
fn pem(der: &[u8]) -> Vec<u8> {
    let lines: String = der.chunks(48).map(|line| STANDARD.encode(line) + "\n").collect();
    format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n").into_bytes()
}

#[test]
fn a_pem_that_ends_within_its_certificate_is_refused_and_not_read_for_ever() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let ark = roots::ark(Product::Milan).unwrap();
        assert_eq!(Certificate::from_der_or_pem(&pem(ark.der())).unwrap().der(), ark.der());
        for cut in (0..40).chain([ark.der().len() - 1]) {
            Certificate::from_der_or_pem(&pem(&ark.der()[..cut])).unwrap_err();
        }
        // A length of which the first byte is there.
        Certificate::from_der_or_pem(&pem(&[0x30, 0x81])).unwrap_err();
        done.send(()).unwrap();
    });
    ended.recv_timeout(std::time::Duration::from_secs(60)).expect("it ends, and without a panic");
}

#[test]
fn a_bundle_has_one_to_eight_certificates() {
    let ark = roots::ark(Product::Milan).unwrap();
    let bundle = |count| Certificate::chain_from_pem(&pem(ark.der()).repeat(count));
    assert_eq!(bundle(8).unwrap().len(), 8);
    assert_eq!(bundle(9).unwrap_err(), CertError::Bundle { seen: 9 });
    for empty in [&b""[..], b"\n", b"\r\n\r\n", b"-----BEGIN", b"no PEM"] {
        assert_eq!(
            Certificate::chain_from_pem(empty).unwrap_err(),
            CertError::Bundle { seen: 0 },
            "{empty:?}"
        );
    }
    let broken = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    assert!(matches!(Certificate::chain_from_pem(broken), Err(CertError::Pem { .. })));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 1184), version in 0u32..7, family in 0x17u8..0x1C) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        bytes[0x188] = family;
        if let Ok(report) = Report::parse_with(&bytes, kata_cc_snp::Reserved::Ignore) {
            let clean = report.to_bytes();
            proptest::prop_assert_eq!(Report::parse(&clean), Ok(report));
        }
        let _ = verify(&bytes, &Endorsements::default(), &TrustAnchor::Amd(Product::Milan), NOW);
    }

    #[test]
    fn any_certificate_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = Certificate::from_der_or_pem(&bytes);
    }
}
