//! Malformed quotes and collateral: each is refused for its own reason, and nothing panics.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Case, read};
use kata_cc_tdx::collateral::{CollateralError, MAX_COLLATERAL, files};
use kata_cc_tdx::quote::{HEADER_LEN, MAX_QUOTE, Trailing};
use kata_cc_tdx::{Collateral, Quote, QuoteError, TdReport, TrustAnchor, TrustedCollateral, VerifyError};
use kata_cc_x509::ChainError;

fn with(quote: &[u8], offset: usize, bytes: &[u8]) -> Result<Quote, QuoteError> {
    let mut changed = quote.to_vec();
    changed[offset..offset + bytes.len()].copy_from_slice(bytes);
    Quote::parse(&changed, Trailing::Zeros)
}

#[test]
fn headers_are_checked() {
    for case in common::cases() {
        let quote = &case.quote;
        assert_eq!(with(quote, 0, &[6, 0]), Err(QuoteError::Version { seen: 6 }));
        assert_eq!(with(quote, 0, &[1, 0]), Err(QuoteError::Version { seen: 1 }));
        assert_eq!(with(quote, 0, &[3, 0]), Err(QuoteError::Sgx { version: 3 }));
        assert_eq!(with(quote, 2, &[3, 0]), Err(QuoteError::KeyType { seen: 3 }));
        assert!(matches!(with(quote, 4, &[0; 4]), Err(QuoteError::Sgx { .. })));
        assert_eq!(with(quote, 4, &[0x82, 0, 0, 0]), Err(QuoteError::TeeType { seen: 0x82 }));
        let vendor = QuoteError::Vendor { seen: "00".repeat(16) };
        assert_eq!(with(quote, 12, &[0; 16]), Err(vendor));
    }
}

#[test]
fn bodies_of_version_5_are_checked() {
    let Some(case) = Case::load("v5-td15") else { return };
    let quote = &case.quote;
    assert_eq!(with(quote, HEADER_LEN, &[1, 0]), Err(QuoteError::Sgx { version: 5 }));
    assert_eq!(with(quote, HEADER_LEN, &[4, 0]), Err(QuoteError::BodyType { seen: 4 }));
    let size = QuoteError::BodySize { seen: 648, expected: 584 };
    assert_eq!(with(quote, HEADER_LEN, &[2, 0]), Err(size));
    let size = QuoteError::BodySize { seen: 0xFFFF_FFFF, expected: 648 };
    assert_eq!(with(quote, HEADER_LEN + 2, &[0xFF; 4]), Err(size));
}

#[test]
fn signature_data_is_whole_and_nothing_more() {
    let Some(case) = Case::load("v4-a") else { return };
    let (quote, signed) = (&case.quote, HEADER_LEN + 584);
    let truncated = |part| Err(QuoteError::Truncated { part });
    assert_eq!(with(quote, signed, &[0xFF; 4]), truncated("signature data"));
    // Shorter than what it holds.
    assert_eq!(
        with(quote, signed, &10u32.to_le_bytes()).unwrap_err(),
        QuoteError::Trailing { seen: 4290, zeros: false }
    );
    let outer = signed + 4 + 128;
    assert_eq!(with(quote, outer, &[5, 0]), Err(QuoteError::CertificationType { seen: 5, expected: 6 }));
    let left = QuoteError::LeftOver { part: "signature data", seen: 1 };
    assert_eq!(with(quote, outer + 2, &4165u32.to_le_bytes()), Err(left));
    assert_eq!(with(quote, outer + 2, &[0xFF; 4]), truncated("certification data"));
    let auth = outer + 6 + 384 + 64;
    assert_eq!(with(quote, auth, &[0xFF; 2]), truncated("authentication data"));
    let inner = auth + 2 + 32;
    assert_eq!(with(quote, inner, &[1, 0]), Err(QuoteError::CertificationType { seen: 1, expected: 5 }));
    let left = QuoteError::LeftOver { part: "certification data", seen: 1 };
    assert_eq!(with(quote, inner + 2, &3677u32.to_le_bytes()), Err(left));
    let long = vec![0; MAX_QUOTE + 1];
    assert_eq!(Quote::parse(&long, Trailing::Zeros), Err(QuoteError::TooLong { seen: MAX_QUOTE + 1 }));
}

#[test]
fn bundles_are_checked() {
    let Some(case) = Case::load("v4-uptodate") else { return };
    let bundle: serde_json::Value = serde_json::from_slice(&read(&case.dir, "collateral.json")).unwrap();
    let whole = Collateral::from_value(&bundle).unwrap();
    assert_eq!(whole.to_value(), bundle);
    let with = |name: &str, value: &str| {
        let mut changed = bundle.clone();
        changed[name] = value.into();
        Collateral::from_value(&changed)
    };
    let hex = |what, signature| Err(CollateralError::Hex { what, signature });
    assert_eq!(with("tcb_info_signature", "00"), hex("TCB info", true));
    assert_eq!(with("qe_identity_signature", "x"), hex("QE identity", true));
    assert_eq!(with("pck_crl", "0"), hex("PCK CRL", false));
    let mut fewer = bundle.clone();
    fewer.as_object_mut().unwrap().remove("tcb_info");
    assert!(matches!(Collateral::from_value(&fewer), Err(CollateralError::Json { .. })));
    assert!(matches!(Collateral::from_bundle(b"[]"), Err(CollateralError::Json { .. })));
    let long = vec![b' '; MAX_COLLATERAL + 1];
    assert!(matches!(Collateral::from_bundle(&long), Err(CollateralError::TooLong { .. })));
    let long = "x".repeat(kata_cc_tdx::tcb::MAX_DOCUMENT + 1);
    assert!(matches!(with("tcb_info", &long), Err(CollateralError::TooLong { what: "TCB info", .. })));
}

#[test]
fn files_of_the_service_are_read() {
    let Some(case) = Case::load("v5-gcollateral") else { return };
    let dir = case.dir.join("collateral");
    let whole = case.collateral();
    let names = [
        files::TCB_INFO,
        files::TCB_INFO_ISSUER_CHAIN,
        files::QE_IDENTITY,
        files::QE_IDENTITY_ISSUER_CHAIN,
        files::PCK_CRL,
        files::PCK_CRL_ISSUER_CHAIN,
        files::ROOT_CA_CRL,
    ];
    for missing in names {
        let read = |name: &str| (name != missing).then(|| read(&dir, name));
        assert_eq!(Collateral::from_files(read), Err(CollateralError::Missing { name: missing }));
    }
    // Caching services give lists in hex.
    let in_hex = Collateral::from_files(|name| {
        let bytes = read(&dir, name);
        Some(if name.ends_with(".crl") { hex::encode(bytes).into_bytes() } else { bytes })
    });
    assert_eq!(in_hex.as_ref(), Ok(&whole));
    // The exact bytes are what is signed: the same document written otherwise is another.
    let spaced = Collateral::from_files(|name| {
        let text = String::from_utf8(read(&dir, name));
        match (name, text) {
            (files::TCB_INFO, Ok(text)) => Some(text.replace("\"version\":3", "\"version\": 3").into_bytes()),
            _ => Some(read(&dir, name)),
        }
    })
    .unwrap();
    let refused = TrustedCollateral::new(&spaced, &TrustAnchor::Intel).unwrap_err();
    assert!(matches!(refused, VerifyError::CollateralSignature { .. }), "{refused}");
    assert!(TrustedCollateral::new(&whole, &TrustAnchor::Intel).is_ok());
}

#[test]
fn parts_of_other_collateral_do_not_fit() {
    let (Some(one), Some(other)) = (Case::load("v4-uptodate"), Case::load("v5-no-tcb-level")) else { return };
    let (one, other) = (one.collateral(), other.collateral());
    let refused =
        |collateral: &Collateral| TrustedCollateral::new(collateral, &TrustAnchor::Intel).unwrap_err();
    let mut mixed = one.clone();
    mixed.tcb_info.signature = other.tcb_info.signature;
    assert!(matches!(refused(&mixed), VerifyError::CollateralSignature { .. }));
    let mut mixed = one.clone();
    mixed.tcb_info = one.qe_identity.clone();
    assert_eq!(refused(&mixed).to_string(), "TCB info says its id is TD_QE, expected TDX");
    let mut mixed = one.clone();
    (mixed.pck_crl, mixed.root_ca_crl) = (one.root_ca_crl.clone(), one.pck_crl.clone());
    assert!(matches!(refused(&mixed), VerifyError::CrlIssuer { .. }));
    let mut mixed = one.clone();
    mixed.tcb_info.issuer_chain = one.pck_crl_issuer_chain.clone();
    assert!(refused(&mixed).to_string().contains("authority"), "{}", refused(&mixed));
    let mut mixed = one.clone();
    mixed.pck_crl_issuer_chain = one.tcb_info.issuer_chain.clone();
    assert!(refused(&mixed).to_string().contains("may not sign certificates"), "{}", refused(&mixed));
    let mut mixed = one;
    mixed.pck_crl_issuer_chain.clear();
    assert!(matches!(refused(&mixed), VerifyError::Chain(ChainError::Certificate { .. })));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..1200)) {
        let _ = (TdReport::parse(&bytes), Collateral::from_bundle(&bytes));
        if let Ok(quote) = Quote::parse(&bytes, Trailing::Zeros) {
            proptest::prop_assert_eq!(Quote::parse(&quote.to_bytes(), Trailing::Refused), Ok(quote));
        }
    }

    /// From a well-formed quote, so that the inner parts are reached.
    #[test]
    fn any_damage_is_parsed_or_refused(
        at in 0..5000usize,
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..8),
    ) {
        let Some(case) = Case::load("v5-td15") else { return Ok(()) };
        let mut changed = case.quote;
        for (to, from) in changed.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
        if let Ok(quote) = Quote::parse(&changed, Trailing::Refused) {
            proptest::prop_assert_eq!(quote.to_bytes(), changed);
        }
    }
}
