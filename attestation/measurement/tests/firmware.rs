//! Firmware images that lie about themselves: each is refused, and none panics.
#![allow(clippy::unwrap_used, missing_docs)]

use kata_cc_measurement::firmware::Firmware;
use kata_cc_measurement::ovmf::{Monitor, OvmfGuest};
use kata_cc_measurement::{CpuSignature, FirmwareError, SevHashes};
use kata_cc_test_vectors::path as vectors;

fn image() -> Option<Vec<u8>> {
    Some(std::fs::read(vectors("snp/launch-digest")?.join("ovmf_AmdSev_suffix.bin")).unwrap())
}

/// Where the SEV metadata of the image are.
fn metadata(image: &[u8]) -> usize {
    image.windows(4).position(|window| window == b"ASEV").unwrap()
}

fn refused(image: &[u8]) -> String {
    Firmware::parse(image).and_then(|firmware| firmware.sev_sections()).unwrap_err().to_string()
}

#[test]
fn what_is_no_image_is_refused() {
    assert_eq!(Firmware::parse(&[]).unwrap_err(), FirmwareError::Size(0));
    assert_eq!(Firmware::parse(&[0; 5000]).unwrap_err(), FirmwareError::Size(5000));
    assert_eq!(Firmware::parse(&[0; 8192]).unwrap_err(), FirmwareError::NoTable);
}

#[test]
fn broken_metadata_are_refused_by_what_is_broken() {
    let Some(good) = image() else { return };
    let at = metadata(&good);
    for (offset, value, word) in [
        (0, 0, "signature is missing"),
        (8, 2, "version is not 1"),
        (12, 0, "no sections, or more than 64"),
        (12, 65, "no sections, or more than 64"),
        (4, 17, "length does not fit"),
        (16 + 8, 99, "type is not known"),
        (16, 0x801, "not whole pages"),
        (20, 0, "not whole pages"),
        (20, 0x8000_0000, "larger than 64 MiB"),
    ] {
        let mut image = good.clone();
        image[at + offset..at + offset + 4].copy_from_slice(&u32::to_le_bytes(value));
        let seen = refused(&image);
        assert!(seen.contains(word), "offset {offset}: {seen}");
    }
}

#[test]
fn a_secrets_section_of_two_pages_is_refused() {
    let Some(mut image) = image() else { return };
    let at = metadata(&image);
    let count = u32::from_le_bytes(image[at + 12..at + 16].try_into().unwrap()) as usize;
    let section = (0..count).map(|n| at + 16 + 12 * n).find(|entry| image[entry + 8] == 2).unwrap();
    image[section + 5] = 0x20;
    assert!(refused(&image).contains("one page"));
}

/// Any single changed byte of the image's last page either is refused or changes the digest or is not looked at; it
/// never panics.
#[test]
fn no_byte_of_the_tables_makes_it_panic() {
    let Some(good) = image() else { return };
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut image = good.clone();
            image[at] ^= flip;
            let Ok(firmware) = Firmware::parse(&image) else { continue };
            let _ = firmware.tdvf_sections();
            let _ = firmware.sev_sections();
            let _ = firmware.hash_block();
        }
    }
}

#[test]
fn a_kernel_needs_firmware_that_checks_it() {
    let Some(dir) = vectors("snp/launch-digest") else { return };
    let stock = std::fs::read(dir.join("ovmf_OvmfX64_suffix.bin")).unwrap();
    let firmware = Firmware::parse(&stock).unwrap();
    let guest = OvmfGuest {
        firmware: &firmware,
        image_digest: None,
        hashes: Some(SevHashes::new(b"kernel", b"", "")),
        vcpus: 1,
        cpu: CpuSignature(0x800F12),
        features: 1,
        monitor: Monitor::Qemu,
    };
    assert_eq!(guest.snp(), Err(FirmwareError::NoKernelHashes));
    assert_eq!(OvmfGuest { hashes: None, vcpus: 0, ..guest }.snp(), Err(FirmwareError::Vcpus(0)));
    assert_eq!(OvmfGuest { hashes: None, vcpus: 1025, ..guest }.snp(), Err(FirmwareError::Vcpus(1025)));
}

#[test]
fn a_hash_block_without_room_is_refused() {
    let hashes = SevHashes::new(b"", b"", "");
    assert!(hashes.to_page(0x1_0C00, 0x400).is_ok());
    assert_eq!(hashes.to_page(0x1_0C00, 175), Err(FirmwareError::HashBlock { gpa: 0x1_0C00, size: 175 }));
    assert_eq!(hashes.to_page(0x1_0FF0, 0x400), Err(FirmwareError::HashBlock { gpa: 0x1_0FF0, size: 0x400 }));
}
