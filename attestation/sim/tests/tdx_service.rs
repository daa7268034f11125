//! The kept quoter and the simulated TDX module's answers: what a guest gets verifies, and what it may not is refused.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use kata_cc_sim_tee::SimError;
use kata_cc_sim_tee::service::{RESPONSE_HEADER_LEN, STATUS_INVALID_PARAM, STATUS_OK};
use kata_cc_sim_tee::tdx::service::{EXTEND, QUOTE, READ_REGISTERS};
use kata_cc_sim_tee::tdx::{Quoter, TdxLaunch, TdxService};
use kata_cc_tdx::{Collateral, Options, TrustAnchor, TrustedCollateral, verify};
use kata_cc_x509::Certificate;

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const YEAR: u64 = 365 * 24 * 3600;
const LAUNCH: TdxLaunch = TdxLaunch { mr_td: [7; 48], mr_config_id: [3; 48] };

fn request(data: &[u8], operation: u32) -> Vec<u8> {
    let mut request = vec![0; 96];
    request[..data.len()].copy_from_slice(data);
    request[64..68].copy_from_slice(&operation.to_le_bytes());
    request
}

/// Status and the two parts.
fn parts(answer: &[u8]) -> (u32, Vec<u8>, Vec<u8>) {
    let number = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
    let (first, second) = answer[RESPONSE_HEADER_LEN..].split_at(number(4) as usize);
    assert_eq!(second.len(), number(8) as usize);
    (number(0), first.to_vec(), second.to_vec())
}

fn service() -> (tempfile::TempDir, TdxService) {
    let folder = tempfile::tempdir().unwrap();
    let quoter = Quoter::create(&folder.path().join("tdx"), NOW).unwrap();
    (folder, TdxService::new(Arc::new(quoter), LAUNCH))
}

#[test]
fn a_quote_verifies_with_what_comes_beside_it_years_later_too() {
    let (folder, service) = service();
    let (status, quote, collateral) = parts(&service.respond(&request(&[9; 64], QUOTE)));
    assert_eq!(status, STATUS_OK);
    let root = std::fs::read(folder.path().join("tdx/root.pem")).unwrap();
    let anchor = TrustAnchor::Simulated(Box::new(Certificate::from_der_or_pem(&root).unwrap()));
    let collateral = Collateral::from_value(&serde_json::from_slice(&collateral).unwrap()).unwrap();
    let trusted = TrustedCollateral::new(&collateral, &anchor).unwrap();
    for now in [NOW, NOW + 6 * YEAR] {
        let body = verify(&quote, &trusted, &Options::at(now)).unwrap().quote.body;
        assert_eq!((body.mr_td, body.mr_config_id, body.report_data), ([7; 48], [3; 48], [9; 64]));
        assert_eq!(body.rtmr, [[0; 48]; 4]);
    }
}

#[test]
fn registers_are_extended_at_run_time_and_stand_in_the_quote() {
    let (_folder, service) = service();
    let zeros = parts(&service.respond(&request(&[], READ_REGISTERS))).1;
    assert_eq!(zeros, [0; 192]);
    let (status, value, _) = parts(&service.respond(&request(&[5; 48], EXTEND + 3)));
    let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, &[[0; 48], [5; 48]].concat());
    assert_eq!((status, &value[..]), (STATUS_OK, expected.as_ref()));
    let registers = parts(&service.respond(&request(&[], READ_REGISTERS))).1;
    assert_eq!(registers, [&[0; 144][..], &value].concat());
    let quote = parts(&service.respond(&request(&[1; 64], QUOTE))).1;
    assert!(quote.windows(48).any(|window| window == value));
}

#[test]
fn what_is_no_request_is_refused_and_changes_nothing() {
    let (_folder, service) = service();
    let mut reserved = request(&[5; 48], EXTEND + 2);
    reserved[95] = 1;
    for refused in [
        request(&[5; 48], EXTEND),         // the firmware's
        request(&[5; 48], EXTEND + 1),     // the firmware's
        request(&[5; 48], EXTEND + 4),     // no such register
        request(&[5; 49], EXTEND + 2),     // longer than a digest
        request(&[1], READ_REGISTERS),     // data where there is none
        request(&[], 2),                   // no such operation
        reserved,                          // reserved bytes
        request(&[], QUOTE)[1..].to_vec(), // too short
        Vec::new(),
    ] {
        assert_eq!(parts(&service.respond(&refused)), (STATUS_INVALID_PARAM, vec![], vec![]));
    }
    assert_eq!(parts(&service.respond(&request(&[], READ_REGISTERS))).1, [0; 192]);
}

#[test]
fn a_kept_quoter_is_found_again_and_a_damaged_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("tdx");
    Quoter::load_or_create(&dir, NOW).unwrap();
    let root = std::fs::read(dir.join("root.pem")).unwrap();
    Quoter::load_or_create(&dir, NOW).unwrap();
    assert_eq!(std::fs::read(dir.join("root.pem")).unwrap(), root, "the same platform");
    assert!(matches!(Quoter::create(&dir, NOW), Err(SimError::Exists { .. })));

    let told = || Quoter::load(&dir).unwrap_err().to_string();
    let key = dir.join("attestation.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(told().contains("attestation.key has mode 640"), "{}", told());
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let whole = std::fs::read(dir.join("qe-report.bin")).unwrap();
    std::fs::write(dir.join("qe-report.bin"), &whole[1..]).unwrap();
    assert!(told().contains("qe-report.bin is out of form: it has 447 bytes"), "{}", told());
    std::fs::write(dir.join("qe-report.bin"), whole).unwrap();
    std::fs::write(dir.join("collateral.json"), "{").unwrap();
    assert!(told().contains("collateral.json is out of form"), "{}", told());
    let other = folder.path().join("other");
    Quoter::create(&other, NOW).unwrap();
    std::fs::copy(other.join("attestation.key"), &key).unwrap();
    assert!(told().contains("attestation.key is not the key"), "another platform's: {}", told());
    std::fs::write(&key, "no key").unwrap();
    assert!(told().contains("attestation.key is not the key"), "{}", told());
}
