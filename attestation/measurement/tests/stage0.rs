//! Launches of stage0: their digests computed once more by hand, and what changes them.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{naive_mrtd, naive_snp};
use kata_cc_measurement::CpuSignature;
use kata_cc_measurement::explain::{Difference, ExplainError, Explanation, StepKind, Tee, diff};
use kata_cc_measurement::stage0::{Stage0Error, Stage0Launch};
use kata_cc_measurement::tdx::PassOrder;
use kata_cc_stage0_abi::{BootBlock, ImageError, KernelKind, PlatformKind, Sealed};

const MILAN: CpuSignature = CpuSignature(0xA00F11);

/// An image of six pages with two pages of working memory.
fn image() -> Vec<u8> {
    let mut image: Vec<u8> = (0..0x6000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    image[16..24].copy_from_slice(b"KCCIMG0\0");
    for (at, value) in [(24, 1u32), (28, 0x6000), (32, 0x2000), (36, 0)] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    image
}

fn more_working_memory() -> Vec<u8> {
    let mut image = image();
    image[33] = 0x30;
    image
}

fn block(platform: PlatformKind) -> BootBlock {
    let sealed = |length, byte| Sealed { length, sha256: [byte; 32] };
    BootBlock {
        platform,
        vcpus: 3,
        memory_bit: if platform.has_memory_bit() { 51 } else { 0 },
        acpi_devices: false,
        kernel_kind: KernelKind::BzImage,
        kernel: sealed(9_000_000, 1),
        initramfs: Some(sealed(4_000_000, 2)),
        command_line: sealed(60, 3),
    }
}

fn snp(image: &[u8], block: &BootBlock, cpu: CpuSignature) -> [u8; 48] {
    Stage0Launch::new(image, block).unwrap().with_cpu(cpu).snp().unwrap().digest()
}

fn mrtd(image: &[u8], block: &BootBlock) -> [u8; 48] {
    Stage0Launch::new(image, block).unwrap().tdx().unwrap().mrtd(PassOrder::Single)
}

fn explained(image: &[u8], block: &BootBlock, cpu: CpuSignature, contents: bool) -> Explanation {
    Stage0Launch::new(image, block).unwrap().with_cpu(cpu).snp().unwrap().explain(contents)
}

fn snp_explained(contents: bool) -> Explanation {
    explained(&image(), &block(PlatformKind::Snp), MILAN, contents)
}

fn td_explained(order: PassOrder, contents: bool) -> Explanation {
    let (image, block) = (image(), block(PlatformKind::Tdx));
    Stage0Launch::new(&image, &block).unwrap().tdx().unwrap().explain(order, contents)
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
    put(0x72, &[0x82, 0, 0xFF, 0xFF]);
    put(0x92, &[0x8B, 0, 0xFF, 0xFF]);
    for (at, value) in [
        (0xD0, 0x1000u64),
        (0x148, 0x40),
        (0x158, 0x11),
        (0x160, 0x400),
        (0x168, 0xFFFF_0FF0),
        (0x170, 2),
        (0x178, 0x10_0000),
        (0x268, 0x0007_0406_0007_0406),
        (0x310, 0xA00F11),
        (0x3B0, 1),
        (0x3E8, 1),
        (0x408, 0x1F80),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(0x410, &[0x7F, 0x03]);
    page
}

#[test]
fn snp_digest_is_what_one_computes_by_hand() {
    let (image, block) = (image(), block(PlatformKind::Snp));
    let mut pages: Vec<(u8, u64, Vec<u8>)> = Vec::new();
    for index in 0..6 {
        pages.push((1, 0x10_0000 + index as u64 * 4096, page(&image, index * 4096)));
    }
    pages.push((1, 0x1F_F000, block.to_page().unwrap().to_vec()));
    pages.push((3, 0x10_6000, vec![]));
    pages.push((3, 0x10_7000, vec![]));
    pages.push((5, 0x1F_D000, vec![]));
    pages.push((6, 0x1F_E000, vec![]));
    for _ in 0..3 {
        pages.push((2, 0xFFFF_FFFF_F000, vmsa()));
    }
    assert_eq!(hex::encode(snp(&image, &block, MILAN)), hex::encode(naive_snp(&pages)));
}

#[test]
fn mrtd_is_what_one_computes_by_hand() {
    let (image, block) = (image(), block(PlatformKind::Tdx));
    let mut pages: Vec<(u64, Vec<u8>, bool)> = Vec::new();
    for index in 0..6 {
        pages.push((0x10_0000 + index as u64 * 4096, page(&image, index * 4096), true));
    }
    pages.push((0x1F_F000, block.to_page().unwrap().to_vec(), true));
    pages.push((0x10_6000, vec![], false));
    pages.push((0x10_7000, vec![], false));
    let mut reset = vec![0; 4096];
    // mov edi, 0x100000; jmp edi
    reset[0xFF0..0xFF7].copy_from_slice(&[0xBF, 0, 0, 0x10, 0, 0xFF, 0xE7]);
    pages.push((0xFFFF_F000, reset, true));
    assert_eq!(hex::encode(mrtd(&image, &block)), hex::encode(naive_mrtd(&pages)));
}

#[test]
fn every_bit_that_is_measured_changes_the_digests() {
    let flipped = |at: usize| {
        let mut image = image();
        image[at] ^= 1;
        image
    };
    let change = |change: fn(&mut BootBlock)| {
        [PlatformKind::Snp, PlatformKind::Tdx].map(|platform| {
            let mut block = block(platform);
            change(&mut block);
            block
        })
    };
    let same = change(|_| {});
    let variants = [
        ("image, first byte", flipped(0), same),
        ("image, last byte", flipped(0x5FFF), same),
        ("working memory", more_working_memory(), same),
        ("vcpus", image(), change(|block| block.vcpus = 2)),
        ("memory bit", image(), change(|block| block.memory_bit = 47)),
        ("kernel hash", image(), change(|block| block.kernel.sha256[31] ^= 1)),
        ("kernel length", image(), change(|block| block.kernel.length ^= 1)),
        ("devices", image(), change(|block| block.acpi_devices = true)),
        ("kernel kind", image(), change(|block| block.kernel_kind = KernelKind::Vmlinux)),
        ("initramfs", image(), change(|block| block.initramfs = None)),
        ("command line", image(), change(|block| block.command_line.sha256[0] ^= 1)),
    ];
    let (base_snp, base_mrtd) = (snp(&image(), &same[0], MILAN), mrtd(&image(), &same[1]));
    for (what, image, [for_snp, for_tdx]) in &variants {
        assert_ne!(base_snp, snp(image, for_snp, MILAN), "{what}");
        assert_ne!(base_mrtd, mrtd(image, for_tdx), "{what}");
    }
    assert_ne!(base_snp, snp(&image(), &same[0], CpuSignature(0xA10F10)), "cpu");
    let bytes = image();
    let launch = Stage0Launch::new(&bytes, &same[0]).unwrap().with_cpu(MILAN);
    let other = launch.clone().with_features(0x21).unwrap();
    assert_ne!(base_snp, other.snp().unwrap().digest(), "guest features");
    assert_eq!(launch.with_features(0x20), Err(Stage0Error::Features(0x20)));
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (bytes, snp) = (image(), block(PlatformKind::Snp));
    assert_eq!(Stage0Launch::new(&bytes[..0x5000], &snp), Err(Stage0Error::Image(ImageError::Length)));
    let none = BootBlock { vcpus: 0, ..snp };
    assert!(matches!(Stage0Launch::new(&bytes, &none), Err(Stage0Error::BootBlock(_))));
    let launch = Stage0Launch::new(&bytes, &snp).unwrap();
    assert_eq!(launch.tdx(), Err(Stage0Error::Platform(PlatformKind::Snp)));
    let td = block(PlatformKind::Tdx);
    let launch = Stage0Launch::new(&bytes, &td).unwrap();
    assert_eq!(launch.snp(), Err(Stage0Error::Platform(PlatformKind::Tdx)));
    let plain = block(PlatformKind::Plain);
    let launch = Stage0Launch::new(&bytes, &plain).unwrap();
    assert_eq!(launch.snp(), Err(Stage0Error::Platform(PlatformKind::Plain)));
}

#[test]
fn a_difference_is_found_to_the_byte() {
    let (bytes, mut other) = (image(), image());
    other[0x2010] ^= 0x40;
    other[0x2015] ^= 0x01;
    let (mine, theirs) = (block(PlatformKind::Snp), BootBlock { vcpus: 4, ..block(PlatformKind::Snp) });
    let a = explained(&bytes, &mine, MILAN, true);
    let b = explained(&other, &theirs, CpuSignature(0xA10F10), true);
    let differences = serde_json::to_value(diff(&a, &b)).unwrap();
    assert_eq!(
        differences[0],
        serde_json::json!({"what": "contents", "section": "stage0 image", "gpa": "0x102000", "bytes": 2,
            "first": {"offset": "0x10", "a": bytes[0x2010], "b": other[0x2010]}})
    );
    assert_eq!(differences[1]["section"], "boot block");
    assert_eq!(differences[1]["first"], serde_json::json!({"offset": "0x10", "a": 3, "b": 4}));
    for vcpu in 0..3 {
        let found = &differences[2 + vcpu];
        assert_eq!(found["section"], format!("vmsa {vcpu}"));
        assert_eq!(found["first"]["register"], "RDX (CPU family, model and stepping)");
    }
    assert_eq!(
        differences[5],
        serde_json::json!({"what": "only-in", "side": "b", "section": "vmsa 3", "gpa": "0xfffffffff000"})
    );
    assert_eq!(differences.as_array().unwrap().len(), 6);
    assert!(diff(&a, &a).is_empty());
}

#[test]
fn without_contents_the_page_is_named() {
    let mut other = block(PlatformKind::Snp);
    other.kernel.sha256[0] ^= 1;
    let (a, b) = (snp_explained(false), explained(&image(), &other, MILAN, true));
    assert_eq!(
        diff(&a, &b),
        [Difference::Contents { section: "boot block".into(), gpa: 0x1F_F000, first: None, bytes: None }]
    );
    let td = td_explained(PassOrder::Single, true);
    assert_eq!(diff(&a, &td), [Difference::Tee { a: Tee::Snp, b: Tee::Tdx }]);
}

#[test]
fn other_kinds_and_orders_are_told() {
    let a = snp_explained(false);
    let mut b = a.clone();
    b.steps[8].kind = StepKind::Unmeasured;
    assert!(matches!(diff(&a, &b)[..], [Difference::Kind { gpa: 0x10_7000, .. }]));
    let mut b = a.clone();
    b.steps.swap(7, 8);
    assert_eq!(diff(&a, &b), [Difference::Order { step: 7 }]);
}

#[test]
fn an_explanation_that_lies_is_found_out() {
    let good = snp_explained(true);
    let text = serde_json::to_string(&good).unwrap();
    let read: Explanation = serde_json::from_str(&text).unwrap();
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
    for order in [PassOrder::Single, PassOrder::Two] {
        td_explained(order, true).check().unwrap();
        assert_eq!(td_explained(order, false).check(), Err(ExplainError::NoContents));
    }
}

/// By the definition: SHA-384 of value and digest, the digest that of tag, length and text.
#[test]
fn registers_of_a_td_are_foretold() {
    let bytes = image();
    let launch = |block| Stage0Launch::new(&bytes, &block).unwrap();
    let sha384 = |data: &[u8]| {
        <[u8; 48]>::try_from(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, data).as_ref()).unwrap()
    };
    let extended = |value: [u8; 48], name: &str, byte: &str| {
        let text = format!("kata-cc {name} sha256:{}", byte.repeat(32));
        let data = [b"KCC0", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        sha384(&[value, sha384(&data)].concat())
    };
    let [block_register, kernel, given, run_time] =
        launch(block(PlatformKind::Tdx)).rtmrs().unwrap().values();
    assert_eq!(kernel, extended([0; 48], "kernel", "01"));
    assert_eq!(given, extended(extended([0; 48], "command line", "03"), "initramfs", "02"));
    assert!(block_register != [0; 48] && run_time == [0; 48]);
    let without = BootBlock { initramfs: None, ..block(PlatformKind::Tdx) };
    let [other_block, _, given, _] = launch(without).rtmrs().unwrap().values();
    assert_eq!(given, extended([0; 48], "command line", "03"));
    assert_ne!(other_block, block_register);
    assert_eq!(launch(block(PlatformKind::SimTdx)).rtmrs().unwrap().values(), [[0; 48]; 4]);
    let refused = launch(block(PlatformKind::Snp)).rtmrs().unwrap_err();
    assert_eq!(refused, Stage0Error::Platform(PlatformKind::Snp));
}
