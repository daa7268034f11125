//! Every bit of a quote's header and body, flipped one at a time: without a new signature it is refused; with one, exactly
//! the claim of its field changes, or the quote is refused for what the field says.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use kata_cc_sim_tee::tdx::{QuoteRequest, TEE_TCB_SVN, TdxPlatform};
use kata_cc_tdx::quote::HEADER_LEN;
use kata_cc_tdx::report::TD15_LEN;
use kata_cc_tdx::{
    Options, Quote, TdReportBody, Trailing, TrustAnchor, TrustedCollateral, VerifyError, claims, verify,
};
use kata_cc_x509::Certificate;
use serde_json::Value;

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;

/// Fields of a body of TDX 1.5: first byte and claim.
const FIELDS: [(usize, &str); 18] = [
    (0, "/quote/body/tcb_svn"),
    (16, "/quote/body/mr_seam"),
    (64, "/quote/body/mrsigner_seam"),
    (112, "/quote/body/seam_attributes"),
    (120, "/quote/body/td_attributes"),
    (128, "/quote/body/xfam"),
    (136, "/quote/body/mr_td"),
    (184, "/quote/body/mr_config_id"),
    (232, "/quote/body/mr_owner"),
    (280, "/quote/body/mr_owner_config"),
    (328, "/quote/body/rtmr_0"),
    (376, "/quote/body/rtmr_1"),
    (424, "/quote/body/rtmr_2"),
    (472, "/quote/body/rtmr_3"),
    (520, "/quote/body/report_data"),
    (584, "/quote/body/tee_tcb_svn2"),
    (600, "/quote/body/mr_servicetd"),
    (TD15_LEN, ""),
];

struct Bench {
    platform: TdxPlatform,
    trusted: TrustedCollateral,
    quote: Quote,
    bytes: Vec<u8>,
    claims: BTreeMap<String, Value>,
}

impl Bench {
    fn new() -> Self {
        let platform = TdxPlatform::create(NOW - 1).unwrap();
        let root = Certificate::from_der_or_pem(platform.root_pem().as_bytes()).unwrap();
        let anchor = TrustAnchor::Simulated(Box::new(root));
        let trusted = TrustedCollateral::new(&platform.collateral().unwrap(), &anchor).unwrap();
        let request = QuoteRequest { version: 5, tee_tcb_svn2: Some(TEE_TCB_SVN), ..QuoteRequest::default() };
        let bytes = platform.quote(&request).unwrap();
        let verified = verify(&bytes, &trusted, &Options::at(NOW)).unwrap();
        let claims = leaves(&claims::tee_claims(&verified, None));
        Self { platform, trusted, quote: verified.quote, bytes, claims }
    }

    fn verify(&self, quote: &[u8]) -> Result<BTreeMap<String, Value>, VerifyError> {
        let verified = verify(quote, &self.trusted, &Options::at(NOW))?;
        Ok(leaves(&claims::tee_claims(&verified, None)))
    }

    /// Names of the claims that are others than those of the quote unchanged.
    fn changed(&self, claims: &BTreeMap<String, Value>) -> BTreeSet<String> {
        let names = self.claims.keys().chain(claims.keys());
        names.filter(|name| self.claims.get(*name) != claims.get(*name)).cloned().collect()
    }
}

/// Each claim that is no object, by its path.
fn leaves(value: &Value) -> BTreeMap<String, Value> {
    fn walk(path: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    walk(&format!("{path}/{name}"), value, out);
                }
            }
            leaf => {
                out.insert(path.to_owned(), leaf.clone());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", value, &mut out);
    out
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// What a flag of the attributes is called.
fn flag(bit: usize) -> Option<BTreeSet<String>> {
    Some(match bit {
        0 => set(["/td_attributes/debug", "/td_attributes/untrusted"]),
        1..8 => set(["/td_attributes/untrusted"]),
        28 => set(["/td_attributes/septve_disable"]),
        29 => set(["/td_attributes/migratable"]),
        30 => set(["/td_attributes/protection_keys"]),
        31 => set(["/td_attributes/key_locker"]),
        63 => set(["/td_attributes/perfmon"]),
        _ => return None,
    })
}

#[test]
fn without_a_new_signature_every_bit_is_refused() {
    let bench = Bench::new();
    for bit in 0..bench.quote.signed.len() * 8 {
        let mut changed = bench.bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        match bench.verify(&changed).unwrap_err() {
            VerifyError::Quote(_) | VerifyError::QuoteSignature => {}
            other => panic!("bit {bit}: {other}"),
        }
    }
}

#[test]
fn with_a_new_signature_every_bit_changes_its_claim() {
    let bench = Bench::new();
    let body = bench.quote.body.to_bytes();
    assert_eq!(body.len(), TD15_LEN);
    for pair in FIELDS.windows(2) {
        let [(start, claim), (end, _)] = [pair[0], pair[1]];
        for bit in start * 8..end * 8 {
            let mut changed = body.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let changed = TdReportBody::from_bytes(&changed).unwrap();
            let quote = bench.platform.sign(bench.quote.header.clone(), changed).unwrap();
            match (claim, bench.verify(&quote)) {
                // Signer and attributes of the module are Intel's, or it is none.
                ("/quote/body/mrsigner_seam" | "/quote/body/seam_attributes", Err(error)) => {
                    assert!(matches!(error, VerifyError::Identity { .. }), "bit {bit}: {error}");
                }
                // Versions lead to another level, or to none.
                ("/quote/body/tcb_svn", Err(error)) => {
                    let none = matches!(error, VerifyError::NoTcbLevel { .. } | VerifyError::Identity { .. });
                    assert!(none, "bit {bit}: {error}");
                }
                ("/quote/body/tcb_svn", Ok(claims)) => {
                    let mut seen = bench.changed(&claims);
                    assert!(seen.remove(claim), "bit {bit}");
                    for name in [
                        "/tcb_status",
                        "/tcb_date",
                        "/advisory_ids",
                        "/platform_tcb_status",
                        "/tdx_module_tcb_status",
                    ] {
                        seen.remove(name);
                    }
                    assert!(seen.is_empty(), "bit {bit}: {seen:?}");
                }
                ("/quote/body/td_attributes", Ok(claims)) => {
                    let mut expected = flag(bit - start * 8).unwrap_or_default();
                    expected.insert(claim.to_owned());
                    assert_eq!(bench.changed(&claims), expected, "bit {bit}");
                }
                (claim, Ok(claims)) => assert_eq!(bench.changed(&claims), set([claim]), "bit {bit}"),
                (claim, Err(error)) => panic!("bit {bit} of {claim}: {error}"),
            }
        }
    }
}

#[test]
fn with_a_new_signature_the_free_bits_of_the_header_change_their_claim() {
    let bench = Bench::new();
    for (bytes, claim) in [(8..12, "/quote/header/reserved"), (28..HEADER_LEN, "/quote/header/user_data")] {
        for bit in bytes.start * 8..bytes.end * 8 {
            let mut header = bench.quote.header.clone();
            match claim {
                "/quote/header/reserved" => header.reserved[bit / 8 - 8] ^= 1 << (bit % 8),
                _ => header.user_data[bit / 8 - 28] ^= 1 << (bit % 8),
            }
            let quote = bench.platform.sign(header, bench.quote.body.clone()).unwrap();
            let mut expected = bench.quote.signed.clone();
            expected[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Quote::parse(&quote, Trailing::Refused).unwrap().signed, expected);
            assert_eq!(bench.changed(&bench.verify(&quote).unwrap()), set([claim]), "bit {bit}");
        }
    }
}
