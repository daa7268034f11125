//! Launches of stage0: their digests computed once more by hand, and what changes them.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::borrow::Cow;

use common::{naive_mrtd, naive_snp};
use kata_cc_measurement::CpuSignature;
use kata_cc_measurement::explain::{Difference, ExplainError, StepKind, Tee, diff};
use kata_cc_measurement::stage0::Stage0Launch;
use kata_cc_measurement::tdx::PassOrder;

fn launch() -> Stage0Launch<'static> {
    Stage0Launch {
        image: Cow::Owned((0..0x5123u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        entry: 0x40,
        working_end: 0x10_8000,
        boot_block: Cow::Owned(std::array::from_fn(|n| n as u8)),
        vcpus: 3,
        cpu: Some(CpuSignature(0xA00F11)),
        sev_features: 1,
    }
}

/// A page of `bytes` from `at` on, filled up with zeros.
fn page(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut page = bytes[at.min(bytes.len())..(at + 4096).min(bytes.len())].to_vec();
    page.resize(4096, 0);
    page
}

/// The first state, by the offsets of the APM.
fn vmsa() -> Vec<u8> {
    let mut page = vec![0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    for at in [0x00, 0x20, 0x30, 0x40, 0x50] {
        put(at, &[16, 0, 0x93, 0x0C, 0xFF, 0xFF, 0xFF, 0xFF]);
    }
    put(0x10, &[8, 0, 0x9B, 0x0C, 0xFF, 0xFF, 0xFF, 0xFF]);
    put(0x64, &[0xFF, 0xFF]);
    put(0x72, &[0x82, 0, 0xFF, 0xFF]);
    put(0x84, &[0xFF, 0xFF]);
    put(0x92, &[0x8B, 0, 0xFF, 0xFF]);
    for (at, value) in [
        (0xD0, 0x1000u64),
        (0x148, 0x40),
        (0x158, 0x11),
        (0x160, 0x400),
        (0x168, 0xFFFF_0FF0),
        (0x170, 2),
        (0x178, 0x10_0040),
        (0x268, 0x0007_0406_0007_0406),
        (0x310, 0xA00F11),
        (0x3B0, 1),
        (0x3E8, 1),
        (0x408, 0x037F_0000_0000_1F80 & 0xFFFF_FFFF),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(0x410, &[0x7F, 0x03]);
    page
}

#[test]
fn snp_digest_is_what_one_computes_by_hand() {
    let launch = launch();
    let mut pages: Vec<(u8, u64, Vec<u8>)> = Vec::new();
    for index in 0..6 {
        pages.push((1, 0x10_0000 + index as u64 * 4096, page(&launch.image, index * 4096)));
    }
    pages.push((1, 0x1F_F000, launch.boot_block.to_vec()));
    pages.push((3, 0x10_6000, vec![]));
    pages.push((3, 0x10_7000, vec![]));
    pages.push((5, 0x1F_D000, vec![]));
    pages.push((6, 0x1F_E000, vec![]));
    for _ in 0..3 {
        pages.push((2, 0xFFFF_FFFF_F000, vmsa()));
    }
    assert_eq!(hex::encode(launch.snp().unwrap().digest()), hex::encode(naive_snp(&pages)));
}

#[test]
fn mrtd_is_what_one_computes_by_hand() {
    let launch = launch();
    let mut pages: Vec<(u64, Vec<u8>, bool)> = Vec::new();
    for index in 0..6 {
        pages.push((0x10_0000 + index as u64 * 4096, page(&launch.image, index * 4096), true));
    }
    pages.push((0x1F_F000, launch.boot_block.to_vec(), true));
    pages.push((0x10_6000, vec![0; 4096], true));
    pages.push((0x10_7000, vec![0; 4096], true));
    let mut reset = vec![0xCC; 4096];
    reset[0xFF0] = 0xE9;
    reset[0xFF1..0xFF5].copy_from_slice(&0x10_0040u32.wrapping_sub(0xFFFF_FFF5).to_le_bytes());
    pages.push((0xFFFF_F000, reset, true));
    assert_eq!(hex::encode(launch.tdx().unwrap().mrtd(PassOrder::Single)), hex::encode(naive_mrtd(&pages)));
}

#[test]
fn every_input_that_is_measured_changes_the_digest() {
    let flipped = |bytes: &[u8], bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    let base = launch();
    let last_bit = base.image.len() * 8 - 1;
    let mut block = *base.boot_block;
    block[100] ^= 1;
    let changed = [
        ("image, first bit", Stage0Launch { image: flipped(&base.image, 0).into(), ..launch() }, true),
        ("image, last bit", Stage0Launch { image: flipped(&base.image, last_bit).into(), ..launch() }, true),
        ("boot block", Stage0Launch { boot_block: Cow::Owned(block), ..launch() }, true),
        ("entry", Stage0Launch { entry: 0x41, ..launch() }, true),
        ("working memory", Stage0Launch { working_end: 0x10_9000, ..launch() }, true),
        // MRTD does not know of vCPUs: the boot block has to state their number
        ("vcpus", Stage0Launch { vcpus: 2, ..launch() }, false),
        ("cpu", Stage0Launch { cpu: None, ..launch() }, false),
        ("features", Stage0Launch { sev_features: 0x21, ..launch() }, false),
    ];
    let digests = |launch: &Stage0Launch<'_>| {
        (launch.snp().unwrap().digest(), launch.tdx().unwrap().mrtd(PassOrder::Single))
    };
    let (snp, mrtd) = digests(&base);
    for (what, launch, in_mrtd) in &changed {
        let (other_snp, other_mrtd) = digests(launch);
        assert_ne!(snp, other_snp, "{what}");
        assert_eq!(mrtd != other_mrtd, *in_mrtd, "{what}");
    }
}

#[test]
fn a_difference_is_found_to_the_byte() {
    let base = launch();
    let mut image = base.image.to_vec();
    image[0x2010] ^= 0x40;
    image[0x2015] ^= 0x01;
    let other = Stage0Launch { image: image.into(), cpu: Some(CpuSignature(0xA10F10)), vcpus: 4, ..launch() };
    let (a, b) = (base.snp().unwrap().explain(true), other.snp().unwrap().explain(true));
    let differences = serde_json::to_value(diff(&a, &b)).unwrap();
    let (old, new) = (base.image[0x2010], base.image[0x2010] ^ 0x40);
    assert_eq!(
        differences[0],
        serde_json::json!({"what": "contents", "section": "stage0 image", "gpa": "0x102000", "bytes": 2,
            "first": {"offset": "0x10", "a": old, "b": new}})
    );
    for vcpu in 0..3 {
        let found = &differences[1 + vcpu];
        assert_eq!(found["section"], format!("vmsa {vcpu}"));
        assert_eq!(found["first"]["register"], "RDX (CPU family, model and stepping)");
    }
    assert_eq!(
        differences[4],
        serde_json::json!({"what": "only-in", "side": "b", "section": "vmsa 3", "gpa": "0xfffffffff000"})
    );
    assert_eq!(differences.as_array().unwrap().len(), 5);
    assert!(diff(&a, &a).is_empty());
}

#[test]
fn without_contents_the_page_is_named() {
    let mut block = *launch().boot_block;
    block[0] ^= 1;
    let other = Stage0Launch { boot_block: Cow::Owned(block), ..launch() };
    let (a, b) = (launch().snp().unwrap().explain(false), other.snp().unwrap().explain(true));
    assert_eq!(
        diff(&a, &b),
        [Difference::Contents { section: "boot block".into(), gpa: 0x1F_F000, first: None, bytes: None }]
    );
    let td = launch().tdx().unwrap().explain(PassOrder::Single, true);
    assert_eq!(diff(&a, &td), [Difference::Tee { a: Tee::Snp, b: Tee::Tdx }]);
}

#[test]
fn other_kinds_and_orders_are_told() {
    let a = launch().snp().unwrap().explain(false);
    let mut b = a.clone();
    b.steps[8].kind = StepKind::Unmeasured;
    assert!(matches!(diff(&a, &b)[..], [Difference::Kind { gpa: 0x10_7000, .. }]));
    let mut b = a.clone();
    b.steps.swap(7, 8);
    assert_eq!(diff(&a, &b), [Difference::Order { step: 7 }]);
}

#[test]
fn an_explanation_that_lies_is_found_out() {
    let good = launch().snp().unwrap().explain(true);
    let text = serde_json::to_string(&good).unwrap();
    let read: kata_cc_measurement::explain::Explanation = serde_json::from_str(&text).unwrap();
    assert_eq!(read, good);
    read.check().unwrap();

    let mut lie = good.clone();
    lie.steps[2].contents.as_mut().unwrap()[0] ^= 1;
    assert!(matches!(lie.check(), Err(ExplainError::Contents { index: 2, .. })));
    let mut lie = good.clone();
    lie.steps[9].gpa += 0x1000;
    assert!(matches!(lie.check(), Err(ExplainError::Digest { index: 9, .. })));
    let mut lie = good.clone();
    lie.digest[0] ^= 1;
    assert!(matches!(lie.check(), Err(ExplainError::Digest { .. })));
    let mut lie = good.clone();
    lie.steps[0].kind = StepKind::PageAdd;
    assert!(matches!(lie.check(), Err(ExplainError::OtherTee { index: 0, .. })));
    let td = launch().tdx().unwrap().explain(PassOrder::Two, false);
    assert_eq!(td.check(), Err(ExplainError::NoContents));
}
