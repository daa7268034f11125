//! Launch digests with known results: QEMU, EC2 and GCE layouts over OVMF images, from public
//! vectors. The OVMF reading here is test code only: the product boots kernels directly.
#![allow(clippy::unwrap_used, missing_docs)]

use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_measurement::{LaunchDigest, VmsaRegisters, vmsa::Segment};

const FOUR_GIB: u64 = 1 << 32;

fn guid(text: &str) -> [u8; 16] {
    let raw: [u8; 16] = hex::decode(text.replace('-', "")).unwrap().try_into().unwrap();
    let mut out = raw;
    out[0..4].reverse();
    out[4..6].reverse();
    out[6..8].reverse();
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// What the test needs of an OVMF image.
struct Ovmf {
    image: Vec<u8>,
    /// Metadata sections: address, size, type.
    sections: Vec<(u64, u64, u32)>,
    ap_eip: u32,
    hashes_gpa: Option<u64>,
}

impl Ovmf {
    fn parse(image: Vec<u8>) -> Self {
        let mut end = image.len() - 32;
        let table_len = u16_at(&image, end - 18) as usize;
        let start = end - table_len;
        end -= 18;
        let (mut sections, mut ap_eip, mut hashes_gpa) = (Vec::new(), 0, None);
        while end > start {
            let id: [u8; 16] = image[end - 16..end].try_into().unwrap();
            let len = u16_at(&image, end - 18) as usize;
            let data = &image[end - len..end - 18];
            if id == guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e") {
                ap_eip = u32_at(data, 0);
            } else if id == guid("7255371f-3a3b-4b04-927b-1da6efa8d454") {
                hashes_gpa = Some(u64::from(u32_at(data, 0)));
            } else if id == guid("dc886566-984a-4798-a75e-5585a7bf67cc") {
                let at = image.len() - u32_at(data, 0) as usize;
                assert_eq!(&image[at..at + 4], b"ASEV");
                for section in 0..u32_at(&image, at + 12) as usize {
                    let entry = at + 16 + section * 12;
                    sections.push((
                        u64::from(u32_at(&image, entry)),
                        u64::from(u32_at(&image, entry + 4)),
                        u32_at(&image, entry + 8),
                    ));
                }
            }
            end -= len;
        }
        Self { image, sections, ap_eip, hashes_gpa }
    }
}

fn hashes_page(gpa: u64, kernel: &[u8], initrd: &[u8], cmdline: &str) -> [u8; 4096] {
    let mut terminated = cmdline.as_bytes().to_vec();
    terminated.push(0);
    let mut table = guid("9438d606-4f22-4cc9-b479-a793d411fd21").to_vec();
    table.extend(168u16.to_le_bytes());
    for (id, bytes) in [
        ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", terminated.as_slice()),
        ("44baf731-3a2f-4bd7-9af1-41e29169781d", initrd),
        ("4de79437-abd2-427f-b835-d5b172d2045b", kernel),
    ] {
        table.extend(guid(id));
        table.extend(50u16.to_le_bytes());
        table.extend(digest(&SHA256, bytes).as_ref());
    }
    let mut page = [0; 4096];
    let at = (gpa & 0xFFF) as usize;
    page[at..at + table.len()].copy_from_slice(&table);
    page
}

/// VMSA registers as each monitor sets them.
fn registers(vmm: &str, eip: u32, boot: bool, signature: u32, features: u64) -> VmsaRegisters {
    let mut registers = VmsaRegisters::reset(eip, signature, features);
    match vmm {
        "ec2" => {
            if boot {
                registers.cs.attributes = 0x9A;
            }
            registers.ss.attributes = 0x92;
            registers.tr = Segment { attributes: 0x83, ..registers.tr };
        }
        "gce" => registers.g_pat = 0x70106,
        _ => return registers,
    }
    registers.rdx = 0x600;
    registers.mxcsr = 0;
    registers.fcw = 0;
    registers
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    mode: String,
    firmware: String,
    vcpus: u32,
    vcpu_sig: Option<String>,
    guest_features: String,
    kernel_hex: Option<String>,
    initrd_hex: Option<String>,
    cmdline: Option<String>,
    vmm: String,
    ovmf_hash: Option<String>,
    expected: Option<String>,
}

#[derive(serde::Deserialize)]
struct Cases {
    #[serde(rename = "ovmf_hash_AmdSev")]
    ovmf_hash_amd_sev: String,
    cases: Vec<Case>,
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

fn measure(ovmf: &Ovmf, case: &Case) -> Option<[u8; 48]> {
    let mut digest = match &case.ovmf_hash {
        Some(seed) => LaunchDigest::with_seed(hex::decode(seed).unwrap().try_into().unwrap()),
        None => {
            let mut digest = LaunchDigest::new();
            digest.update_normal_region(FOUR_GIB - ovmf.image.len() as u64, &ovmf.image).unwrap();
            digest
        }
    };
    let mut cpuid_last = None;
    let mut hashes_seen = false;
    for (gpa, size, kind) in ovmf.sections.iter().copied() {
        match kind {
            1 if case.vmm == "gce" => digest.update_unmeasured_pages(gpa, size).unwrap(),
            1 | 4 => digest.update_zero_pages(gpa, size).unwrap(),
            2 => digest.update_secrets_page(gpa),
            3 if case.vmm == "ec2" => cpuid_last = Some(gpa),
            3 => digest.update_cpuid_page(gpa),
            0x10 => {
                hashes_seen = true;
                match &case.kernel_hex {
                    Some(kernel) => {
                        let page = hashes_page(
                            ovmf.hashes_gpa.unwrap(),
                            &hex::decode(kernel).unwrap(),
                            &hex::decode(case.initrd_hex.as_deref().unwrap_or_default()).unwrap(),
                            case.cmdline.as_deref().unwrap_or_default(),
                        );
                        digest.update_normal_region(gpa, &page).unwrap();
                    }
                    None => digest.update_zero_pages(gpa, size).unwrap(),
                }
            }
            other => panic!("unknown section {other}"),
        }
    }
    if let Some(gpa) = cpuid_last {
        digest.update_cpuid_page(gpa);
    }
    if case.kernel_hex.is_some() && !hashes_seen {
        return None;
    }
    let signature = case.vcpu_sig.as_deref().map_or(0, number) as u32;
    for cpu in 0..case.vcpus {
        let eip = if cpu == 0 { 0xFFFF_FFF0 } else { ovmf.ap_eip };
        let features = number(&case.guest_features);
        digest.update_vmsa_page(&registers(&case.vmm, eip, cpu == 0, signature, features).to_page());
    }
    Some(digest.finish())
}

#[test]
fn snp_launch_digests_match() {
    let Some(dir) = kata_cc_test_vectors::path("snp/launch-digest") else { return };
    let cases: Cases = serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap();
    assert_eq!(cases.ovmf_hash_amd_sev.len(), 96);
    let mut checked = 0;
    for case in cases.cases.iter().filter(|case| case.mode == "snp") {
        let ovmf = Ovmf::parse(std::fs::read(dir.join(&case.firmware)).unwrap());
        assert_eq!(measure(&ovmf, case).map(hex::encode), case.expected, "case {}", case.name);
        checked += 1;
    }
    assert!(checked >= 12, "only {checked} SNP cases");
}
