//! Real quotes, collateral and event logs: each verifies under Intel's root with every field as expected.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Case, NOW, cases, read};
use kata_cc_tdx::error::{Blame, Item, Part, Role};
use kata_cc_tdx::quote::Trailing;
use kata_cc_tdx::tcb::Timestamp;
use kata_cc_tdx::{
    Collateral, CollateralKey, Expiry, Options, PckCa, PckExtension, Quote, QuoteError, TcbStatus, TdReport,
    TdReportError, TrustAnchor, TrustedCollateral, VerifyError, claims, verify,
};
use kata_cc_x509::{Certificate, ChainError};
use serde_json::{Value, json};

/// 2026-02-25: within the dates of the collateral of v5-no-tcb-level.
const NOW_2026: u64 = 1_771_977_600;

fn trusted(case: &Case) -> TrustedCollateral {
    TrustedCollateral::new(&case.collateral(), &TrustAnchor::Intel).unwrap()
}

fn lenient(now: u64) -> Options {
    Options { expiry: Expiry::Published, ..Options::at(now) }
}

#[test]
fn every_field_is_as_expected() {
    for case in cases() {
        let quote = Quote::parse(&case.quote, Trailing::Zeros).unwrap();
        let (body, expected) = (&quote.body, &case.expected);
        let [rtmr0, rtmr1, rtmr2, rtmr3] = body.rtmr.map(hex::encode);
        let seen = [
            ("tee_tcb_svn", hex::encode(body.tee_tcb_svn)),
            ("mrseam", hex::encode(body.mr_seam)),
            ("mrsignerseam", hex::encode(body.mrsigner_seam)),
            ("seamattr", hex::encode(body.seam_attributes)),
            ("tdattr", hex::encode(body.td_attributes)),
            ("xfam", hex::encode(body.xfam)),
            ("mrtd", hex::encode(body.mr_td)),
            ("mrconfigid", hex::encode(body.mr_config_id)),
            ("mrowner", hex::encode(body.mr_owner)),
            ("mrownerconfig", hex::encode(body.mr_owner_config)),
            ("rtmr0", rtmr0),
            ("rtmr1", rtmr1),
            ("rtmr2", rtmr2),
            ("rtmr3", rtmr3),
            ("reportdata", hex::encode(body.report_data)),
            ("hdr_8", hex::encode(quote.header.reserved)),
            ("user_data", hex::encode(quote.header.user_data)),
            ("qe_mrsigner", hex::encode(quote.qe_report.mr_signer)),
            ("qe_mrenclave", hex::encode(quote.qe_report.mr_enclave)),
            ("qe_miscselect", hex::encode(quote.qe_report.misc_select)),
            ("qe_attr", hex::encode(quote.qe_report.attributes)),
        ];
        for (name, seen) in seen {
            assert_eq!(seen, expected[name].as_str().unwrap(), "{} {name}", case.name);
        }
        let td15 = body.td15.as_ref();
        assert_eq!(
            td15.map(|td15| hex::encode(td15.tee_tcb_svn2)).as_deref(),
            expected["tee_tcb_svn2"].as_str()
        );
        assert_eq!(
            td15.map(|td15| hex::encode(td15.mr_servicetd)).as_deref(),
            expected["mrservicetd"].as_str()
        );
        assert_eq!(quote.signed.len() as u64, expected["signed_len"].as_u64().unwrap());
        assert_eq!(json!(quote.header.version), expected["version"]);
        assert_eq!(json!(quote.qe_report.isv_svn), expected["qe_isvsvn"]);
        assert_eq!(json!(quote.qe_report.isv_prod_id), expected["qe_isvprodid"]);
        assert_eq!(json!(quote.qe_auth_data.len()), expected["qe_auth_len"]);
        let unpadded = case.quote.len() - expected["trailing"].as_u64().unwrap() as usize;
        assert_eq!(quote.to_bytes(), case.quote[..unpadded], "{}", case.name);
        assert_eq!(Quote::signed_bytes(&quote.header, &quote.body), quote.signed, "{}", case.name);
        check_pck(&case, &quote);
    }
}

fn check_pck(case: &Case, quote: &Quote) {
    let pck = Certificate::from_der_or_pem(&quote.certificates).unwrap();
    let extension = PckExtension::of(&pck).unwrap();
    let expected = &case.expected["pck"];
    assert_eq!(hex::encode(extension.ppid), case.expected["pck_ppid"].as_str().unwrap());
    assert_eq!(hex::encode(extension.fmspc), expected["fmspc"].as_str().unwrap());
    assert_eq!(hex::encode(extension.pce_id), expected["pceid"].as_str().unwrap());
    assert_eq!(hex::encode(extension.cpu_svn), expected["cpusvn"].as_str().unwrap());
    assert_eq!(json!(extension.components), expected["sgx_tcb_components"]);
    assert_eq!(json!(extension.pce_svn), expected["pcesvn"]);
    assert_eq!(json!(extension.platform_instance.map(hex::encode)), expected["platform_instance"]);
    assert_eq!(extension.sgx_type.name(), "Scalable");
    assert!(extension.configuration.is_some());
    let key = CollateralKey::of(quote).unwrap();
    assert_eq!(key, CollateralKey { fmspc: extension.fmspc, ca: PckCa::Platform });
}

#[test]
fn padding_is_accepted_only_when_asked_for() {
    for case in cases() {
        let trailing = case.expected["trailing"].as_u64().unwrap() as usize;
        let strict = Quote::parse(&case.quote, Trailing::Refused);
        match trailing {
            0 => assert!(strict.is_ok(), "{}", case.name),
            seen => assert_eq!(strict, Err(QuoteError::Trailing { seen, zeros: true }), "{}", case.name),
        }
        let mut other = case.quote.clone();
        other.push(1);
        let seen = trailing + 1;
        assert_eq!(Quote::parse(&other, Trailing::Zeros), Err(QuoteError::Trailing { seen, zeros: false }));
    }
}

#[test]
fn an_up_to_date_platform_verifies() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let verified = verify(&case.quote, &trusted(&case), &Options::at(NOW)).unwrap();
    assert_eq!(verified.tcb.status, TcbStatus::UpToDate);
    assert_eq!(verified.tcb.platform.date.to_string(), "2024-03-13T00:00:00Z");
    assert_eq!(verified.tcb.module.as_ref().unwrap().status, TcbStatus::UpToDate);
    assert_eq!(verified.tcb.qe.status, TcbStatus::UpToDate);
    assert!(verified.tcb.advisory_ids().is_empty() && !verified.collateral.expired);
    assert_eq!(verified.collateral.tcb_evaluation_data_number, 17);
    assert_eq!(verified.collateral.earliest_expiration.to_string(), "2025-07-19T10:00:35Z");
    assert_eq!(verified.collateral.earliest_issue.to_string(), "2018-05-21T10:45:10Z");
    assert!(verified.collateral.root_key_id.starts_with("46e403bd34f05a3f2817ab9badcaacc7"));
    let claims = claims::tee_claims(&verified, None);
    assert_eq!(claims["tcb_status"], "UpToDate");
    assert_eq!(claims["collateral_expiration_status"], "0");
    assert_eq!(claims["sgx_type"], "Scalable");
}

#[test]
fn collateral_is_refused_outside_of_its_dates() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let trusted = trusted(&case);
    let end = Timestamp(1_752_919_235);
    assert!(verify(&case.quote, &trusted, &Options::at(end.0)).is_ok());
    let late = end.0 + 1;
    let refused = verify(&case.quote, &trusted, &Options::at(late)).unwrap_err();
    assert_eq!(refused, VerifyError::Expired { item: Item::PckCrl, until: end, now: Timestamp(late) });
    assert_eq!(refused.blame(), Blame::Collateral);
    let published = verify(&case.quote, &trusted, &lenient(late)).unwrap();
    assert!(published.collateral.expired);
    assert_eq!(claims::tee_claims(&published, None)["collateral_expiration_status"], "1");
    // Earlier than issued is no question of age.
    for options in [Options::at(1_700_000_000), lenient(1_700_000_000)] {
        let refused = verify(&case.quote, &trusted, &options).unwrap_err();
        assert!(matches!(refused, VerifyError::NotYetValid { item: Item::TcbInfo, .. }), "{refused}");
    }
    // The PCK itself has to be valid, whatever is asked for.
    let refused = verify(&case.quote, &trusted, &lenient(2_000_000_000)).unwrap_err();
    assert!(refused.to_string().starts_with("PCK certificate: certificate is valid from"), "{refused}");
}

#[test]
fn a_platform_without_level_is_refused() {
    let Some(case) = Case::load("v5-no-tcb-level") else { return };
    let trusted = trusted(&case);
    let refused = verify(&case.quote, &trusted, &Options::at(NOW_2026)).unwrap_err();
    assert!(matches!(refused, VerifyError::NoTcbLevel { part: Part::Platform, .. }), "{refused}");
    assert_eq!(refused.blame(), Blame::Platform);
    // All else is in order: the module has its level.
    let quote = Quote::parse(&case.quote, Trailing::Zeros).unwrap();
    let module = trusted.tcb_info().module(quote.body.tee_tcb_svn[1]).unwrap();
    assert_eq!((module.id.as_str(), module.tcb_levels[0].tcb_status), ("TDX_01", TcbStatus::UpToDate));
}

#[test]
fn old_collateral_gives_its_level_only_when_expiry_is_published() {
    let Some(case) = Case::load("v5-gcollateral") else { return };
    let trusted = trusted(&case);
    // 2026-02-10: within the dates of the TCB info.
    let now = 1_770_681_600;
    let refused = verify(&case.quote, &trusted, &Options::at(now)).unwrap_err();
    assert!(matches!(refused, VerifyError::Expired { item: Item::QeIdentity, .. }), "{refused}");
    let verified = verify(&case.quote, &trusted, &lenient(now)).unwrap();
    assert!(verified.collateral.expired);
    assert_eq!((verified.tcb.status, verified.tcb.qe.status), (TcbStatus::UpToDate, TcbStatus::UpToDate));
    assert_eq!(verified.tcb.platform.date.to_string(), "2024-11-13T00:00:00Z");
    let refused = verify(&case.quote, &trusted, &lenient(1_688_000_000)).unwrap_err();
    assert!(matches!(refused, VerifyError::NotYetValid { item: Item::TcbInfo, .. }), "{refused}");
}

/// Of these no collateral was recorded, so their verdict is that they are of another platform than the collateral is about. That is
/// judged after the chain and all signatures: at a time when the PCK is valid it says that these verify under Intel's root. Chain and
/// signatures are each seen refused when they are wrong.
#[test]
fn signatures_of_quotes_without_collateral_verify() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let trusted = trusted(&case);
    for name in ["v4-a", "v4-gcp-cos113", "v5-td15"] {
        let other = Case::load(name).unwrap();
        let quote = Quote::parse(&other.quote, Trailing::Zeros).unwrap();
        let pck = Certificate::from_der_or_pem(&quote.certificates).unwrap();
        assert!((pck.not_before()..pck.not_after()).contains(&NOW), "{name}: another time is needed");
        let seen = other.expected["pck"]["fmspc"].as_str().unwrap().to_owned();
        let expected = "b0c06f000000".to_owned();
        let verdict = VerifyError::OtherPlatform { field: "FMSPC", seen, expected };
        assert_eq!(verify(&other.quote, &trusted, &Options::at(NOW)).unwrap_err(), verdict, "{name}");

        let refused = |change: fn(&mut Quote)| {
            let mut changed = quote.clone();
            change(&mut changed);
            verify(&changed.to_bytes(), &trusted, &Options::at(NOW)).unwrap_err()
        };
        assert_eq!(refused(|_| ()), verdict, "{name}: as it was");
        assert_eq!(refused(|quote| quote.signature[0] ^= 0x10), VerifyError::QuoteSignature, "{name}");
        assert_eq!(refused(|quote| quote.signature[63] ^= 1), VerifyError::QuoteSignature, "{name}");
        let of_the_enclave = VerifyError::QeReportSignature;
        assert_eq!(refused(|quote| quote.qe_report_signature[0] ^= 0x10), of_the_enclave, "{name}");
        assert_eq!(refused(|quote| quote.qe_report_signature[63] ^= 1), of_the_enclave, "{name}");
        let unbound = refused(|quote| quote.qe_auth_data[0] ^= 1);
        assert!(matches!(unbound, VerifyError::QeBinding { .. }), "{name}: {unbound}");
        // Of the chain: the signature over the PCK certificate.
        let mut forged = quote.clone();
        forged.certificates = with_pck_signature_flipped(&quote.certificates);
        let refused = verify(&forged.to_bytes(), &trusted, &Options::at(NOW)).unwrap_err();
        let of_the_pck = matches!(refused, VerifyError::Chain(ChainError::Signature { role: Role::Pck, .. }));
        assert!(of_the_pck, "{name}: {refused}");
        // After the PCK's end it is that which is told.
        let late = verify(&other.quote, &trusted, &lenient(pck.not_after() + 86_400)).unwrap_err();
        assert!(late.to_string().starts_with("PCK certificate: certificate is valid from"), "{name}: {late}");
    }
}

/// The chain with a bit flipped in the signature of its first certificate, which is the end of its DER.
fn with_pck_signature_flipped(chain: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let text = std::str::from_utf8(chain).unwrap();
    let (first, rest) = text.split_once("-----END CERTIFICATE-----").unwrap();
    let body: String = first.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    let mut der = STANDARD.decode(body).unwrap();
    let last = der.len() - 1;
    der[last] ^= 0x10;
    let body = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----{rest}").into_bytes()
}

/// What Google's tool asked for when it took the quote.
#[test]
fn the_report_data_asked_for_is_in_the_quote() {
    let Some(case) = Case::load("v4-gcp-cos113") else { return };
    let quote = Quote::parse(&case.quote, Trailing::Zeros).unwrap();
    assert_eq!(quote.body.report_data.as_slice(), read(&case.dir, "nonce.bin"));
}

#[test]
fn quotes_of_enclaves_are_refused_by_name() {
    let Some(dir) = kata_cc_test_vectors::path("tdx/quotes/sgx-v3") else { return };
    let quote = read(&dir, "quote.bin");
    assert_eq!(Quote::parse(&quote, Trailing::Zeros), Err(QuoteError::Sgx { version: 3 }));
    let collateral = Collateral::from_bundle(&read(&dir, "collateral.json")).unwrap();
    let refused = TrustedCollateral::new(&collateral, &TrustAnchor::Intel).unwrap_err();
    assert_eq!(refused.to_string(), "TCB info says its id is SGX, expected TDX");
}

/// A quote of version 3 as Occlum's enclaves make it.
#[test]
fn quotes_of_occlum_are_refused_by_name() {
    let Some(quote) = kata_cc_test_vectors::read("sgx/occlum-quote-v3.bin") else { return };
    for trailing in [Trailing::Zeros, Trailing::Refused] {
        let refused = Quote::parse(&quote, trailing).unwrap_err();
        assert_eq!(refused, QuoteError::Sgx { version: 3 });
        assert!(refused.to_string().contains("SGX"), "{refused}");
    }
}

#[test]
fn a_simulated_anchor_is_not_intels() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let chain = Certificate::chain_from_pem(&case.collateral().pck_crl_issuer_chain).unwrap();
    let anchor = TrustAnchor::Simulated(Box::new(chain[0].clone()));
    let refused = TrustedCollateral::new(&case.collateral(), &anchor).unwrap_err();
    assert_eq!(refused.blame(), Blame::Root, "{refused}");
}

#[test]
fn a_td_report_is_read() {
    let Some(dir) = kata_cc_test_vectors::path("tdx/tdreport") else { return };
    let bytes = read(&dir, "report-a.bin");
    let report = TdReport::parse(&bytes).unwrap();
    assert_eq!(report.version, 1);
    assert!(hex::encode(report.body.mr_td).starts_with("98bbc39e3e27b4cb27ed6d21870b1877"));
    assert!(hex::encode(report.body.rtmr[0]).starts_with("f4ec1a04670fe7926cd5de4aef9aaa76"));
    assert_eq!(hex::encode(report.body.xfam), "e742060000000000");
    assert!(report.body.td15.is_some() && report.body.attributes().septve_disable());
    assert_eq!(TdReport::parse(&bytes[1..]), Err(TdReportError::Length { seen: 1023 }));
    for (at, part) in [(300, "TEE_TCB_INFO"), (600, "TDINFO")] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_eq!(TdReport::parse(&changed), Err(TdReportError::Hash { part }));
    }
    let mut sgx = bytes;
    sgx[0] = 0;
    assert!(matches!(TdReport::parse(&sgx), Err(TdReportError::ReportType { .. })));
}

#[test]
fn claims_are_trustees() {
    let Some(dir) = kata_cc_test_vectors::path("tdx") else { return };
    let case = Case::load("v4-a").unwrap();
    let mut expected: Value =
        serde_json::from_slice(&read(&dir, "quotes/v4-a/expected-claims.json")).unwrap();
    let quote = Quote::parse(&case.quote, Trailing::Refused).unwrap();
    let log = kata_cc_tdx::EventLog::parse(&read(&dir, "eventlogs/ccel-a.bin")).unwrap();
    let claims = claims::quote_claims(&quote, Some(&log));
    let members = expected.as_object_mut().unwrap();
    // These stand a level above, or come from the certificate.
    assert_eq!(members.remove("report_data").unwrap(), hex::encode(quote.body.report_data));
    assert_eq!(members.remove("init_data").unwrap(), hex::encode(quote.body.mr_config_id));
    let pck = PckExtension::of(&Certificate::from_der_or_pem(&quote.certificates).unwrap()).unwrap();
    let mut id = pck.platform_instance.unwrap();
    id.reverse();
    assert_eq!(members.remove("platform_instance_id").unwrap(), hex::encode(id));
    for (name, value) in members {
        if name == "td_attributes" {
            for (name, value) in value.as_object().unwrap() {
                assert_eq!(claims["td_attributes"][name], *value, "{name}");
            }
            continue;
        }
        assert_eq!(claims[name], *value, "{name}");
    }
}
