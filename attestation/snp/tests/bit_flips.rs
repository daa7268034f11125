//! Every bit of real reports, flipped one at a time: each of the 9,472 flips is refused, and why is known for each place.
//!
//! The signature covers the first 672 bytes. Of the rest, the numbers of the signature are checked by verifying it, their
//! padding and the reserved tail by having to be zero: no byte of a report is without effect.
#![allow(clippy::unwrap_used, missing_docs)]

use kata_cc_snp::report::SIGNED_LEN;
use kata_cc_snp::verify::{Anchor, Product, verify_with};
use kata_cc_snp::{
    ChainCache, Endorsements, REPORT_LEN, Report, ReportError, Revocation, SigningKey, VerifyError,
};

/// 2025-09-01: within the validity of every certificate here.
const NOW: u64 = 1_756_684_800;

/// Start and end of places that have to be zero, whatever the version.
const RESERVED: [(usize, usize); 6] =
    [(0x49, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, SIGNED_LEN), (0x330, REPORT_LEN)];

/// Why the flip of a bit at a place is refused.
fn is_expected(refused: &VerifyError, at: usize, bit: u32, whole: &Report) -> bool {
    let reserved = matches!(refused, VerifyError::Report(ReportError::ReservedNotZero { .. }));
    let signature = matches!(refused, VerifyError::Signature { .. });
    let tcb_reserved = |start: usize| {
        let part = at - start;
        if whole.reported_tcb.fmc.is_some() { (4..7).contains(&part) } else { (2..6).contains(&part) }
    };
    if RESERVED.iter().any(|(start, end)| (*start..*end).contains(&at)) {
        return reserved;
    }
    match at {
        // Another version reads other places: newer, older, a reserved place that is used, or the signature.
        0x000..0x004 => matches!(refused, VerifyError::Report(_)) || signature,
        0x034..0x038 => matches!(refused, VerifyError::SignatureAlgorithm { .. }),
        0x048 => match whole.key_info.signing_key() {
            _ if bit < 2 => signature,
            _ if bit > 4 => reserved,
            SigningKey::Vcek if bit == 2 => signature,
            SigningKey::Vlek if bit == 2 => signature,
            _ => matches!(refused, VerifyError::Report(ReportError::SigningKeySelector { .. })),
        },
        0x038..0x040 if tcb_reserved(0x038) => reserved,
        0x180..0x188 if tcb_reserved(0x180) => reserved,
        0x1E0..0x1E8 if tcb_reserved(0x1E0) => reserved,
        0x1F0..0x1F8 if tcb_reserved(0x1F0) => reserved,
        0x188..0x18B if whole.version < 3 => reserved,
        // Family and model say which root is asked for, and how TCBs are read.
        0x188 | 0x189 => matches!(refused, VerifyError::Report(_) | VerifyError::Product { .. }) || signature,
        0x1F8..0x208 if whole.version < 5 => reserved,
        _ => signature,
    }
}

fn every_flip_is_refused(name: &str) {
    let Some(dir) = kata_cc_test_vectors::path(&format!("snp/reports/{name}")) else { return };
    let report = std::fs::read(dir.join("report.bin")).unwrap();
    let vek = std::fs::read(dir.join(if name.ends_with("vlek") { "vlek.der" } else { "vcek.der" })).unwrap();
    let given = Endorsements { vek, ..Endorsements::default() };
    let product = Product::ALL.into_iter().find(|one| name.starts_with(&one.name().to_lowercase())).unwrap();
    let (anchor, cache) = (Anchor::Amd(product), ChainCache::default());
    let verify = |bytes: &[u8]| {
        verify_with(bytes, anchor, || cache.chain(&given, anchor, &Revocation::default(), NOW))
    };

    let whole = verify(&report).unwrap().report;
    let mut flips = 0;
    for at in 0..REPORT_LEN {
        for bit in 0..8 {
            let mut flipped = report.clone();
            flipped[at] ^= 1 << bit;
            let refused = verify(&flipped).map(|_| ()).expect_err("a flipped report is not believed");
            assert!(is_expected(&refused, at, bit, &whole), "{name}: byte {at:#x}, bit {bit}: {refused}");
            flips += 1;
        }
    }
    assert_eq!(flips, 1184 * 8);
}

#[test]
fn version_2_of_milan() {
    every_flip_is_refused("milan-v2-a");
}

#[test]
fn another_version_2_of_milan() {
    every_flip_is_refused("milan-v2-b");
}

#[test]
fn version_3_of_milan() {
    every_flip_is_refused("milan-v3-a");
}

#[test]
fn version_3_with_vlek() {
    every_flip_is_refused("milan-v3-vlek");
}

#[test]
fn version_5_of_genoa() {
    every_flip_is_refused("genoa-v5");
}

#[test]
fn version_5_of_turin() {
    every_flip_is_refused("turin-v5");
}
