//! Every bit of a quote's header and body, flipped one at a time: without a new signature it is refused; with one, exactly
//! the claim of its field changes, or the quote is refused for what the field says. So for each layout that a quote may have, and for
//! the report of the quoting enclave.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use kata_cc_sim_tee::tdx::{QE_SVN, QuoteRequest, TEE_TCB_SVN, TdxPlatform};
use kata_cc_tdx::error::Part;
use kata_cc_tdx::quote::{HEADER_LEN, QE_REPORT_LEN};
use kata_cc_tdx::report::{TD10_LEN, TD15_LEN};
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

/// Layouts of a quote: its version, and whether its body is of TDX 1.5.
const LAYOUTS: [(u16, bool); 3] = [(4, false), (5, false), (5, true)];

struct Bench {
    platform: TdxPlatform,
    trusted: TrustedCollateral,
    quote: Quote,
    bytes: Vec<u8>,
    claims: BTreeMap<String, Value>,
}

impl Bench {
    fn new((version, td15): (u16, bool)) -> Self {
        let platform = TdxPlatform::create(NOW - 1).unwrap();
        let root = Certificate::from_der_or_pem(platform.root_pem().as_bytes()).unwrap();
        let anchor = TrustAnchor::Simulated(Box::new(root));
        let trusted = TrustedCollateral::new(&platform.collateral().unwrap(), &anchor).unwrap();
        let tee_tcb_svn2 = td15.then_some(TEE_TCB_SVN);
        let request = QuoteRequest { version, tee_tcb_svn2, ..QuoteRequest::default() };
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
    for layout in LAYOUTS {
        let bench = Bench::new(layout);
        for bit in 0..bench.quote.signed.len() * 8 {
            let mut changed = bench.bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            match bench.verify(&changed).unwrap_err() {
                VerifyError::Quote(_) | VerifyError::QuoteSignature => {}
                other => panic!("{layout:?}, bit {bit}: {other}"),
            }
        }
    }
}

#[test]
fn with_a_new_signature_every_bit_changes_its_claim() {
    for (version, td15) in LAYOUTS {
        let bench = Bench::new((version, td15));
        let length = bench.quote.body.to_bytes().len();
        assert_eq!(length, if td15 { TD15_LEN } else { TD10_LEN });
        let mut flips = 0;
        for pair in FIELDS.windows(2) {
            let [(start, claim), (end, _)] = [pair[0], pair[1]];
            if start >= length {
                continue;
            }
            for bit in start * 8..end * 8 {
                bench.flip_signed(
                    bit,
                    claim,
                    start,
                    &format!("version {version}, {length} bytes, bit {bit}"),
                );
                flips += 1;
            }
        }
        assert_eq!(flips, length * 8, "all of the body");
    }
}

impl Bench {
    /// Flips a bit of the body, in the field of `claim` that begins at `start`, and signs it again.
    fn flip_signed(&self, bit: usize, claim: &str, start: usize, place: &str) {
        let mut changed = self.quote.body.to_bytes();
        changed[bit / 8] ^= 1 << (bit % 8);
        let changed = TdReportBody::from_bytes(&changed).unwrap();
        let quote = self.platform.sign(self.quote.header.clone(), changed).unwrap();
        match (claim, self.verify(&quote)) {
            // Signer and attributes of the module are Intel's, or it is none.
            ("/quote/body/mrsigner_seam" | "/quote/body/seam_attributes", Err(error)) => {
                assert!(matches!(error, VerifyError::Identity { .. }), "{place}: {error}");
            }
            ("/quote/body/mrsigner_seam" | "/quote/body/seam_attributes", Ok(_)) => {
                panic!("{place}: accepted")
            }
            // Versions lead to another level, or to none.
            ("/quote/body/tcb_svn", Err(error)) => {
                let none = matches!(error, VerifyError::NoTcbLevel { .. } | VerifyError::Identity { .. });
                assert!(none, "{place}: {error}");
            }
            ("/quote/body/tcb_svn", Ok(claims)) => {
                let mut seen = self.changed(&claims);
                assert!(seen.remove(claim), "{place}");
                for name in [
                    "/tcb_status",
                    "/tcb_date",
                    "/advisory_ids",
                    "/platform_tcb_status",
                    "/tdx_module_tcb_status",
                ] {
                    seen.remove(name);
                }
                assert!(seen.is_empty(), "{place}: {seen:?}");
            }
            ("/quote/body/td_attributes", Ok(claims)) => {
                let mut expected = flag(bit - start * 8).unwrap_or_default();
                expected.insert(claim.to_owned());
                assert_eq!(self.changed(&claims), expected, "{place}");
            }
            (claim, Ok(claims)) => assert_eq!(self.changed(&claims), set([claim]), "{place}"),
            (claim, Err(error)) => panic!("{place} of {claim}: {error}"),
        }
    }
}

/// Why a bit of the quoting enclave's report is refused after a new signature: the name of the field that does not fit.
fn refused_in_enclave(byte: usize, bit: usize, attributes_mask: &[u8]) -> Option<&'static str> {
    match byte {
        16..20 => Some("MISCSELECT"),
        48..64 => (attributes_mask[byte - 48] & 1 << bit != 0).then_some("ATTRIBUTES"),
        128..160 => Some("MRSIGNER"),
        256..258 => Some("ISVPRODID"),
        // Version 6 is the lowest that has a level.
        258 if bit == 1 || bit == 2 => Some("ISVSVN"),
        320..384 => Some("REPORTDATA"),
        _ => None,
    }
}

#[test]
fn with_a_new_signature_every_bit_of_the_enclaves_report_counts_as_it_should() {
    let bench = Bench::new((4, false));
    assert_eq!(QE_SVN, 0b110);
    let identity = bench.platform.qe_identity();
    let mask = hex::decode(identity["attributesMask"].as_str().unwrap()).unwrap();
    let mut refusals = 0;
    for (byte, bit) in (0..QE_REPORT_LEN).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        let place = format!("byte {byte}, bit {bit}");
        let (header, body) = (bench.quote.header.clone(), bench.quote.body.clone());
        let quote = bench.platform.sign_with(header, body, |report| report[byte] ^= 1 << bit).unwrap();
        // Without the new signature it is refused for that, before anything in it is looked at.
        let mut unsigned = Quote::parse(&quote, Trailing::Refused).unwrap();
        unsigned.qe_report_signature = bench.quote.qe_report_signature;
        assert_eq!(
            bench.verify(&unsigned.to_bytes()).unwrap_err(),
            VerifyError::QeReportSignature,
            "{place}"
        );
        let expected = refused_in_enclave(byte, bit, &mask);
        refusals += usize::from(expected.is_some());
        match (expected, bench.verify(&quote)) {
            (Some("ISVSVN"), Err(VerifyError::NoTcbLevel { part: Part::Qe, .. }))
            | (Some("REPORTDATA"), Err(VerifyError::QeBinding { .. })) => {}
            (Some(expected), Err(VerifyError::Identity { part: Part::Qe, field, .. })) => {
                assert_eq!(field, expected, "{place}");
            }
            (None, Ok(claims)) => {
                let expected =
                    if (258..260).contains(&byte) { set(["/qe_isv_svn"]) } else { BTreeSet::new() };
                assert_eq!(bench.changed(&claims), expected, "{place}");
            }
            (expected, Ok(_)) => panic!("{place}: accepted, {expected:?} is wrong"),
            (expected, Err(error)) => panic!("{place}: {expected:?}, {error}"),
        }
    }
    // MISCSELECT, attributes under their mask, signer, product, two bits of the version, what it vouches for.
    let masked: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(refusals, 32 + masked as usize + 256 + 16 + 2 + 512);
}

#[test]
fn with_a_new_signature_the_free_bits_of_the_header_change_their_claim() {
    for layout in LAYOUTS {
        let bench = Bench::new(layout);
        for (bytes, claim) in [(8..12, "/quote/header/reserved"), (28..HEADER_LEN, "/quote/header/user_data")]
        {
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
                assert_eq!(
                    bench.changed(&bench.verify(&quote).unwrap()),
                    set([claim]),
                    "{layout:?}, bit {bit}"
                );
            }
        }
    }
}
