//! A simulated platform end to end: created once, then reports verified by the same code as real ones.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use kata_cc_sim_tee::service::{REQUEST_LEN, RESPONSE_HEADER_LEN, STATUS_INVALID_PARAM};
use kata_cc_sim_tee::{REPLAY_FILE, ReportRequest, SimError, SimLaunch, SimPlatform, SimService};
use kata_cc_snp::certs::CertError;
use kata_cc_snp::report::{ReportError, SIGNED_LEN, Signature};
use kata_cc_snp::verify::{AnchorKind, Product, Role, VekKind};
use kata_cc_snp::{CertKind, CertTable, Endorsements, TrustAnchor, VerifyError, verify};
use kata_cc_snp::{KeyInfo, Report, SigningKey};
use kata_cc_x509::ChainError;

/// RSA-4096 keys are slow to make: one platform for all tests of this process.
static PLATFORM: LazyLock<(tempfile::TempDir, Arc<SimPlatform>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let platform = Arc::new(SimPlatform::create(&dir.path().join("sim")).unwrap());
    (dir, platform)
});

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn endorsements(table: &[u8]) -> Endorsements {
    let table = CertTable::parse(table).unwrap();
    let get = |kind| table.find(kind).map(<[u8]>::to_vec);
    Endorsements { vek: get(CertKind::Vcek).unwrap(), ask: get(CertKind::Ask), ark: get(CertKind::Ark) }
}

fn anchor(platform: &SimPlatform) -> TrustAnchor {
    TrustAnchor::Simulated(Box::new(platform.ark().clone()))
}

// One test: a process per test would make a platform each.
#[test]
fn a_platform_signs_what_its_own_root_verifies() {
    let (dir, platform) = (&PLATFORM.0, &PLATFORM.1);
    reports_verify_under_the_configured_root(platform);
    reports_do_not_verify_under_another_root(platform);
    service_answers(platform);
    the_endorsement_key_is_bound_to_tcb_chip_and_kind(&dir.path().join("sim"), platform);
    a_replaying_platform_replays(dir.path(), platform);
    files_are_safe(dir.path(), platform);
}

fn reports_verify_under_the_configured_root(platform: &SimPlatform) {
    let request = ReportRequest {
        report_data: [1; 64],
        measurement: [2; 48],
        host_data: [3; 32],
        ..ReportRequest::default()
    };
    let report = platform.report(&request).unwrap();
    let given = endorsements(&platform.certificate_table());
    let verified = verify(&report, &given, &anchor(platform), now()).unwrap();
    assert_eq!(verified.anchor, AnchorKind::Simulated);
    assert_eq!(verified.report.report_data, [1; 64]);
    assert_eq!(verified.report.measurement, [2; 48]);
    assert_eq!(verified.report.host_data, [3; 32]);
    assert!(!verified.report.policy.debug_allowed());
    let mut changed = report;
    changed[0x90] ^= 1;
    let refused = verify(&changed, &given, &anchor(platform), now());
    assert!(matches!(refused, Err(VerifyError::Signature { .. })), "{refused:?}");
    assert!(matches!(
        platform.report(&ReportRequest { vmpl: 4, ..request }),
        Err(SimError::Vmpl { seen: 4 })
    ));
}

fn reports_do_not_verify_under_another_root(platform: &SimPlatform) {
    let report = platform.report(&ReportRequest::default()).unwrap();
    let given = endorsements(&platform.certificate_table());
    let amd = TrustAnchor::Amd(Product::Milan);
    let refused = verify(&report, &given, &amd, now());
    assert!(
        matches!(&refused, Err(VerifyError::Chain(ChainError::Root { seen, .. })) if seen.contains("ARK-Simulated")),
        "{refused:?}"
    );
    let without_root = Endorsements { ark: None, ..given.clone() };
    let refused = verify(&report, &without_root, &amd, now());
    assert!(
        matches!(refused, Err(VerifyError::Chain(ChainError::Issuer { role: Role::Ask, .. }))),
        "{refused:?}"
    );
    let without_ask = Endorsements { ask: None, ..given.clone() };
    let refused = verify(&report, &without_ask, &anchor(platform), now());
    assert_eq!(refused, Err(VerifyError::MissingCertificate { role: Role::Ask }));

    // A second simulated platform has the same names and another key.
    let dir = tempfile::tempdir().unwrap();
    let other = SimPlatform::create(&dir.path().join("other")).unwrap();
    let refused = verify(&report, &given, &anchor(&other), now());
    assert!(matches!(refused, Err(VerifyError::Chain(ChainError::Root { .. }))), "{refused:?}");
    let refused = verify(&report, &without_root, &anchor(&other), now());
    assert!(
        matches!(refused, Err(VerifyError::Chain(ChainError::Signature { role: Role::Ask, .. }))),
        "{refused:?}"
    );
}

/// Reports that the platform itself would never make, signed with its key: the signature is good, so
/// what refuses them is the comparison with the certificate.
fn the_endorsement_key_is_bound_to_tcb_chip_and_kind(dir: &std::path::Path, platform: &SimPlatform) {
    let pkcs8 = std::fs::read(dir.join("vcek.key")).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &pkcs8).unwrap();
    let given = endorsements(&platform.certificate_table());
    let good = Report::parse(&platform.report(&ReportRequest::default()).unwrap()).unwrap();
    let signed = |change: &dyn Fn(&mut Report)| {
        let mut report = good.clone();
        change(&mut report);
        let signature = key.sign(&SystemRandom::new(), &report.to_bytes()[..SIGNED_LEN]).unwrap();
        report.signature = Signature::from_fixed(&signature.as_ref().try_into().unwrap());
        verify(&report.to_bytes(), &given, &anchor(platform), now())
    };
    assert!(signed(&|_| {}).is_ok());
    let refused = signed(&|report| report.reported_tcb.bootloader += 1).unwrap_err();
    assert!(
        matches!(&refused, VerifyError::Tcb { seen, expected } if seen.bootloader == expected.bootloader + 1)
    );
    assert!(
        signed(&|report| report.current_tcb.microcode += 1).is_ok(),
        "only the reported one derives the key"
    );
    let refused = signed(&|report| report.chip_id[63] ^= 1).unwrap_err();
    assert!(matches!(refused, VerifyError::ChipId { .. }), "{refused}");
    assert!(signed(&|report| report.chip_id = [0; 64]).is_ok(), "a masked chip id is not compared");
    let refused = signed(&|report| report.key_info = KeyInfo(1 << 2)).unwrap_err();
    assert_eq!(refused, VerifyError::SigningKey { seen: SigningKey::Vlek, expected: VekKind::Vcek });
    assert_eq!(signed(&|report| report.key_info = KeyInfo(7 << 2)), Err(VerifyError::Unsigned));
    let refused = signed(&|report| report.version = 6).unwrap_err();
    assert!(matches!(refused, VerifyError::Report(ReportError::NewerVersion { seen: 6 })), "{refused}");
    // The chain's validity counts at the time of the check.
    let late = verify(&good.to_bytes(), &given, &anchor(platform), now() + 6 * 365 * 24 * 3600).unwrap_err();
    assert!(
        matches!(
            late,
            VerifyError::Chain(ChainError::Certificate { source: CertError::Validity { .. }, .. })
        ),
        "{late}"
    );
}

fn service_answers(platform: &Arc<SimPlatform>) {
    let launch = SimLaunch::new([5; 48], [6; 32]).unwrap();
    let service = SimService::new(Arc::clone(platform), launch);
    let mut request = [0; REQUEST_LEN];
    request[..64].fill(7);
    let answer = service.respond(&request);
    assert_eq!(answer[..8], [0, 0, 0, 0, 0xA0, 4, 0, 0]);
    let report = &answer[RESPONSE_HEADER_LEN..RESPONSE_HEADER_LEN + 1184];
    let given = endorsements(&answer[RESPONSE_HEADER_LEN + 1184..]);
    let verified = verify(report, &given, &anchor(platform), now()).unwrap();
    assert_eq!(verified.report.report_data, [7; 64]);
    assert_eq!((verified.report.measurement, verified.report.host_data), ([5; 48], [6; 32]));
    assert_eq!(verified.report.report_id, launch.report_id);

    let invalid = [STATUS_INVALID_PARAM.to_le_bytes().as_slice(), &[0; 8]].concat();
    for bad in [&request[..95], &[request.as_slice(), &[0]].concat(), &[]] {
        assert_eq!(service.respond(bad), invalid);
    }
    request[64] = 4;
    assert_eq!(service.respond(&request), invalid, "no such VMPL");
    request[64] = 0;
    request[95] = 1;
    assert_eq!(service.respond(&request), invalid, "reserved bytes");
}

/// The report is genuine, and not about what was asked: whoever compares the report data sees it.
fn a_replaying_platform_replays(parent: &std::path::Path, platform: &SimPlatform) {
    let dir = parent.join("replay");
    std::fs::create_dir(&dir).unwrap();
    for name in ["ark.pem", "ask.pem", "vcek.pem", "vcek.key"] {
        std::fs::copy(parent.join("sim").join(name), dir.join(name)).unwrap();
    }
    let recorded = platform.report(&ReportRequest { report_data: [1; 64], ..Default::default() }).unwrap();
    std::fs::write(dir.join(REPLAY_FILE), recorded).unwrap();
    let replaying = SimPlatform::load(&dir).unwrap();
    let asked = ReportRequest { report_data: [2; 64], ..Default::default() };
    assert_eq!(replaying.report(&asked).unwrap(), recorded);
    let given = endorsements(&replaying.certificate_table());
    assert_eq!(verify(&recorded, &given, &anchor(platform), now()).unwrap().report.report_data, [1; 64]);
    std::fs::write(dir.join(REPLAY_FILE), &recorded[1..]).unwrap();
    assert!(matches!(SimPlatform::load(&dir), Err(SimError::Replay { seen: 1183, .. })));
    std::fs::remove_dir_all(&dir).unwrap();
}

fn files_are_safe(parent: &std::path::Path, platform: &SimPlatform) {
    let dir = parent.join("sim");
    let key = dir.join("vcek.key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4, "no key of root or intermediate is kept");
    assert_eq!(std::fs::read_dir(parent).unwrap().count(), 1, "nothing staged is left");
    assert!(platform.ark_pem().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(matches!(SimPlatform::create(&dir), Err(SimError::Exists { .. })));
    let again = SimPlatform::load_or_create(&dir).unwrap();
    assert_eq!(again.ark(), platform.ark());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(SimPlatform::load(&dir), Err(SimError::KeyMode { mode: 0o640, .. })));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, b"no key").unwrap();
    assert!(matches!(SimPlatform::load(&dir), Err(SimError::Key { .. })));
}
