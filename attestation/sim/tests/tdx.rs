//! The simulated TDX platform under the real verifier: every status, every way to be revoked, every wrong identity.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::LazyLock;

use kata_cc_sim_tee::SimError;
use kata_cc_sim_tee::tdx::{PCE_SVN, QE_SVN, QuoteRequest, Revoked, TEE_TCB_SVN, TdxPlatform};
use kata_cc_tdx::error::{Blame, Part, Role};
use kata_cc_tdx::{
    AnchorKind, Collateral, CollateralKey, Expiry, Options, Quote, TcbStatus, Trailing, TrustAnchor,
    TrustedCollateral, Verified, VerifyError, claims, verify,
};
use kata_cc_x509::{Certificate, ChainError};
use serde_json::{Value, json};

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const DAY: u64 = 24 * 3600;

static PLATFORM: LazyLock<TdxPlatform> = LazyLock::new(|| TdxPlatform::create(NOW - DAY).unwrap());

fn anchor(platform: &TdxPlatform) -> TrustAnchor {
    let root = Certificate::from_der_or_pem(platform.root_pem().as_bytes()).unwrap();
    TrustAnchor::Simulated(Box::new(root))
}

fn under(collateral: &Collateral, request: &QuoteRequest) -> Result<Verified, VerifyError> {
    let trusted = TrustedCollateral::new(collateral, &anchor(&PLATFORM))?;
    verify(&PLATFORM.quote(request).unwrap(), &trusted, &Options::at(NOW))
}

/// Verifies with documents that were changed.
fn with(
    change: impl FnOnce(&mut Value, &mut Value),
    request: &QuoteRequest,
) -> Result<Verified, VerifyError> {
    let (mut tcb_info, mut qe_identity) = (PLATFORM.tcb_info(), PLATFORM.qe_identity());
    change(&mut tcb_info, &mut qe_identity);
    under(&PLATFORM.collateral_of(&tcb_info, &qe_identity, &[]).unwrap(), request)
}

fn version(version: u16) -> QuoteRequest {
    QuoteRequest { version, ..QuoteRequest::default() }
}

#[test]
fn both_versions_and_bodies_verify_and_are_simulated() {
    let collateral = PLATFORM.collateral().unwrap();
    let td15 = QuoteRequest { tee_tcb_svn2: Some(TEE_TCB_SVN), ..version(5) };
    for request in [version(4), version(5), td15] {
        let request = QuoteRequest { mr_td: [7; 48], report_data: [9; 64], ..request };
        let verified = under(&collateral, &request).unwrap();
        assert_eq!(verified.anchor, AnchorKind::Simulated);
        assert_eq!((verified.quote.body.mr_td, verified.quote.body.report_data), ([7; 48], [9; 64]));
        assert_eq!(verified.quote.header.version, request.version);
        assert_eq!(verified.quote.body.td15.is_some(), request.tee_tcb_svn2.is_some());
        assert_eq!((verified.tcb.status, verified.pck.pce_svn), (TcbStatus::UpToDate, PCE_SVN));
        let quote = PLATFORM.quote(&request).unwrap();
        let parsed = Quote::parse(&quote, Trailing::Refused).unwrap();
        assert_eq!(CollateralKey::of(&parsed), Ok(PLATFORM.collateral_key()));
        let claims = claims::tee_claims(&verified, None);
        assert_eq!(claims["is_smt_enabled"], true);
        assert_eq!(claims["quote"]["type"].is_string(), request.version == 5);
    }
    assert!(matches!(PLATFORM.quote(&version(3)), Err(SimError::QuoteVersion { seen: 3 })));
}

#[test]
fn another_root_vouches_for_nothing() {
    let other = TdxPlatform::create(NOW - DAY).unwrap();
    let collateral = PLATFORM.collateral().unwrap();
    for anchor in [anchor(&other), TrustAnchor::Intel] {
        let refused = TrustedCollateral::new(&collateral, &anchor).unwrap_err();
        assert_eq!(refused.blame(), Blame::Root, "{refused}");
    }
    // Its collateral is for the same kind of platform, but the quote's chain ends elsewhere.
    let trusted = TrustedCollateral::new(&other.collateral().unwrap(), &anchor(&other)).unwrap();
    let quote = PLATFORM.quote(&version(4)).unwrap();
    let refused = verify(&quote, &trusted, &Options::at(NOW)).unwrap_err();
    assert!(matches!(refused, VerifyError::Chain(ChainError::Root { .. })), "{refused}");
}

#[test]
fn a_status_is_a_claim_unless_revoked() {
    let statuses = [
        TcbStatus::UpToDate,
        TcbStatus::SwHardeningNeeded,
        TcbStatus::ConfigurationNeeded,
        TcbStatus::ConfigurationAndSwHardeningNeeded,
        TcbStatus::OutOfDate,
        TcbStatus::OutOfDateConfigurationNeeded,
    ];
    for status in statuses {
        let verified = with(
            |tcb, _| {
                tcb["tcbLevels"][0]["tcbStatus"] = status.name().into();
                tcb["tcbLevels"][0]["advisoryIDs"] = json!(["SIM-SA-2", "SIM-SA-1"]);
            },
            &version(4),
        )
        .unwrap();
        assert_eq!((verified.tcb.status, verified.tcb.platform.status), (status, status));
        let claims = claims::tee_claims(&verified, None);
        assert_eq!(claims["tcb_status"], status.name());
        assert_eq!(claims["advisory_ids"], json!(["SIM-SA-1", "SIM-SA-2"]));
    }
    let revoked = [
        (Part::Platform, "/tcbLevels/0/tcbStatus"),
        (Part::Module, "/tdxModuleIdentities/0/tcbLevels/0/tcbStatus"),
    ];
    for (part, path) in revoked {
        let refused =
            with(|tcb, _| *tcb.pointer_mut(path).unwrap() = "Revoked".into(), &version(4)).unwrap_err();
        assert!(matches!(refused, VerifyError::TcbRevoked { part: seen, .. } if seen == part), "{refused}");
    }
    let refused = with(|_, qe| qe["tcbLevels"][0]["tcbStatus"] = "Revoked".into(), &version(4)).unwrap_err();
    assert!(matches!(refused, VerifyError::TcbRevoked { part: Part::Qe, .. }), "{refused}");
    // Only computed, never signed.
    let refused = with(|tcb, _| tcb["tcbLevels"][0]["tcbStatus"] = "TDRelaunchAdvised".into(), &version(4));
    assert!(matches!(refused, Err(VerifyError::Collateral(_))));
}

#[test]
fn the_worst_part_makes_the_status() {
    let module = |status: &'static str| {
        move |tcb: &mut Value, _: &mut Value| {
            tcb["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = status.into();
        }
    };
    let verified = with(module("OutOfDate"), &version(4)).unwrap();
    assert_eq!(
        (verified.tcb.status, verified.tcb.platform.status),
        (TcbStatus::OutOfDate, TcbStatus::UpToDate)
    );
    let verified = with(
        |tcb, qe| {
            tcb["tcbLevels"][0]["tcbStatus"] = "ConfigurationNeeded".into();
            qe["tcbLevels"][0]["tcbStatus"] = "OutOfDate".into();
        },
        &version(4),
    )
    .unwrap();
    assert_eq!(verified.tcb.status, TcbStatus::OutOfDateConfigurationNeeded);
    // A lower module: the second level of its list.
    let older = QuoteRequest { tee_tcb_svn: older_module(), ..version(4) };
    let verified = with(|_, _| {}, &older).unwrap();
    assert_eq!(verified.tcb.status, TcbStatus::OutOfDate);
    assert_eq!(verified.tcb.advisory_ids(), ["SIM-SA-00001"]);
    assert_eq!(verified.tcb.platform.status, TcbStatus::UpToDate, "the module's versions are its own");
}

fn older_module() -> [u8; 16] {
    let mut svn = TEE_TCB_SVN;
    svn[0] = 3;
    svn
}

#[test]
fn levels_are_compared_component_by_component() {
    let lower = |index: usize| {
        let mut tee_tcb_svn = TEE_TCB_SVN;
        tee_tcb_svn[index] -= 1;
        QuoteRequest { tee_tcb_svn, ..version(4) }
    };
    // The loader's version is the platform's: the second level.
    let verified = with(|_, _| {}, &lower(2)).unwrap();
    assert_eq!(
        (verified.tcb.status, verified.tcb.advisory_ids()),
        (TcbStatus::OutOfDate, vec!["SIM-SA-00002"])
    );
    // Of the first module, which has no versions, components 0 and 1 are compared as well.
    let mut first = lower(1);
    first.tee_tcb_svn[0] = TEE_TCB_SVN[0] - 1;
    let verified = with(|_, _| {}, &first).unwrap();
    assert_eq!((verified.tcb.status, verified.tcb.module), (TcbStatus::OutOfDate, None));
    first.tee_tcb_svn[0] = 0;
    let refused = with(|_, _| {}, &first).unwrap_err();
    assert!(matches!(refused, VerifyError::NoTcbLevel { part: Part::Platform, .. }), "{refused}");
    // Each component of the certificate counts, and the PCE.
    for index in 0..16 {
        let refused = with(
            |tcb, _| {
                for level in 0..2 {
                    tcb["tcbLevels"][level]["tcb"]["sgxtcbcomponents"][index]["svn"] = 200.into();
                }
            },
            &version(4),
        );
        assert!(matches!(refused, Err(VerifyError::NoTcbLevel { .. })), "component {index}");
    }
    let verified =
        with(|tcb, _| tcb["tcbLevels"][0]["tcb"]["pcesvn"] = (PCE_SVN + 1).into(), &version(4)).unwrap();
    assert_eq!(verified.tcb.status, TcbStatus::OutOfDate);
    let refused = with(|_, qe| qe["tcbLevels"][0]["tcb"]["isvsvn"] = (QE_SVN + 1).into(), &version(4));
    assert!(matches!(refused, Err(VerifyError::NoTcbLevel { part: Part::Qe, .. })));
    let mut unknown = version(4);
    unknown.tee_tcb_svn[1] = 9;
    let refused = with(|_, _| {}, &unknown).unwrap_err();
    assert!(refused.to_string().contains("TDX_09"), "{refused}");
}

#[test]
fn a_guest_of_an_older_module_should_start_again() {
    let request = QuoteRequest { tee_tcb_svn: older_module(), tee_tcb_svn2: Some(TEE_TCB_SVN), ..version(5) };
    let verified = with(|_, _| {}, &request).unwrap();
    assert_eq!(verified.tcb.status, TcbStatus::TdRelaunchAdvised);
    assert_eq!(verified.tcb.advisory_ids(), ["SIM-SA-00001"]);
    let verified =
        with(|tcb, _| tcb["tcbLevels"][0]["tcbStatus"] = "ConfigurationNeeded".into(), &request).unwrap();
    assert_eq!(verified.tcb.status, TcbStatus::TdRelaunchAdvisedConfigurationNeeded);
    // What runs now is out of date as well.
    let request = QuoteRequest { tee_tcb_svn2: Some(older_module()), ..request };
    assert_eq!(with(|_, _| {}, &request).unwrap().tcb.status, TcbStatus::OutOfDate);
    // The QE stays what it is.
    let request = QuoteRequest { tee_tcb_svn2: Some(TEE_TCB_SVN), ..request };
    let verified = with(|_, qe| qe["tcbLevels"][0]["tcbStatus"] = "OutOfDate".into(), &request).unwrap();
    assert_eq!(verified.tcb.status, TcbStatus::OutOfDate);
}

#[test]
fn revoked_certificates_are_refused() {
    let cases =
        [(Revoked::Pck, Role::Pck), (Revoked::PckCa, Role::PckCa), (Revoked::TcbSigning, Role::TcbSigning)];
    for (revoked, expected) in cases {
        let collateral =
            PLATFORM.collateral_of(&PLATFORM.tcb_info(), &PLATFORM.qe_identity(), &[revoked]).unwrap();
        let refused = under(&collateral, &version(4)).unwrap_err();
        assert!(
            matches!(&refused, VerifyError::Chain(ChainError::Revoked { role, .. }) if *role == expected),
            "{refused}"
        );
    }
}

#[test]
fn wrong_identities_are_refused() {
    let ones = "F".repeat(96);
    let identity = |refused: VerifyError| match refused {
        VerifyError::Identity { part, field, .. } => (part, field),
        other => panic!("{other}"),
    };
    let qe: [(&str, Value, &str); 4] = [
        ("mrsigner", "0".repeat(64).into(), "MRSIGNER"),
        ("isvprodid", 1.into(), "ISVPRODID"),
        ("miscselect", "00000001".into(), "MISCSELECT"),
        ("attributes", "13000000000000000000000000000000".into(), "ATTRIBUTES"),
    ];
    for (name, value, field) in qe {
        let refused = with(|_, qe| qe[name] = value, &version(4)).unwrap_err();
        assert_eq!(identity(refused), (Part::Qe, field));
    }
    let module = |name: &'static str, value: &str| {
        with(|tcb, _| tcb["tdxModuleIdentities"][0][name] = value.into(), &version(4)).unwrap_err()
    };
    assert_eq!(identity(module("mrsigner", &ones)), (Part::Module, "MRSIGNERSEAM"));
    assert_eq!(identity(module("attributes", &ones[..16])), (Part::Module, "SEAMATTRIBUTES"));
    // What the mask leaves out is not compared.
    let masked = |tcb: &mut Value, _: &mut Value| {
        tcb["tdxModuleIdentities"][0]["attributes"] = "F".repeat(16).into();
        tcb["tdxModuleIdentities"][0]["attributesMask"] = "0".repeat(16).into();
    };
    assert!(with(masked, &version(4)).is_ok());
    for (name, value) in [("fmspc", "000000000000"), ("pceId", "0001")] {
        let refused = with(|tcb, _| tcb[name] = value.into(), &version(4)).unwrap_err();
        assert!(matches!(refused, VerifyError::OtherPlatform { .. }), "{refused}");
    }
    for (name, value) in [("id", json!("SGX")), ("version", json!(2)), ("tcbType", json!(1))] {
        let refused = with(|tcb, _| tcb[name] = value, &version(4)).unwrap_err();
        assert!(matches!(refused, VerifyError::CollateralKind { field, .. } if field == name), "{refused}");
    }
    let refused = with(|_, qe| qe["id"] = "QE".into(), &version(4)).unwrap_err();
    assert_eq!(refused.compared(), Some(("QE".to_owned(), "TD_QE".to_owned())));
}

#[test]
fn each_date_is_compared() {
    let options = Options::at(NOW);
    let old = with(|tcb, _| tcb["nextUpdate"] = "2025-12-31T23:59:59Z".into(), &version(4)).unwrap_err();
    assert_eq!(
        old.to_string(),
        "TCB info expired at 2025-12-31T23:59:59Z, the time is 2026-01-01T00:00:00Z: fetch the platform's collateral again"
    );
    let early = with(|_, qe| qe["issueDate"] = "2026-01-01T00:00:01Z".into(), &version(4)).unwrap_err();
    assert!(matches!(early, VerifyError::NotYetValid { .. }), "{early}");
    // After 30 days all of it is too old.
    let trusted = TrustedCollateral::new(&PLATFORM.collateral().unwrap(), &anchor(&PLATFORM)).unwrap();
    let quote = PLATFORM.quote(&version(4)).unwrap();
    let late = Options { now: NOW + 30 * DAY, ..options };
    assert!(matches!(verify(&quote, &trusted, &late), Err(VerifyError::Expired { .. })));
    let published = Options { expiry: Expiry::Published, ..late };
    assert!(verify(&quote, &trusted, &published).unwrap().collateral.expired);
}

#[test]
fn documents_out_of_form_are_refused() {
    let refused = |change: &dyn Fn(&mut Value)| with(|tcb, _| change(tcb), &version(4)).unwrap_err();
    let changes: [&dyn Fn(&mut Value); 6] = [
        &|tcb| tcb["fmspc"] = "12".into(),
        &|tcb| tcb["issueDate"] = "yesterday".into(),
        &|tcb| tcb["tcbLevels"] = json!({}),
        &|tcb| tcb["tcbLevels"][0]["tcb"]["sgxtcbcomponents"] = json!([]),
        &|tcb| tcb["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][3]["svn"] = 256.into(),
        &|tcb| tcb["tcbLevels"] = Value::Array(vec![tcb["tcbLevels"][0].clone(); 257]),
    ];
    for change in changes {
        let error = refused(change);
        assert!(matches!(error, VerifyError::Collateral(_)), "{error}");
        assert!(error.to_string().starts_with("TCB info cannot be read"), "{error}");
    }
}
