//! Digests with known results: SNP, SEV-ES and SEV launches of OVMF images under QEMU, EC2 and GCE, MRTD of TDVF
//! images in both page orders, RTMRs of a real event log, from public vectors.
#![allow(clippy::unwrap_used, missing_docs)]

use kata_cc_measurement::firmware::Firmware;
use kata_cc_measurement::ovmf::{Monitor, OvmfGuest};
use kata_cc_measurement::rtmr::Rtmrs;
use kata_cc_measurement::tdx::{PassOrder, TdLaunch};
use kata_cc_measurement::{CpuSignature, FirmwareError, SevHashes};
use kata_cc_test_vectors::path as vectors;

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
    image_digest: String,
    cases: Vec<Case>,
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

fn digest_of(case: &Case, firmware: &Firmware<'_>) -> Result<String, FirmwareError> {
    let bytes = |hex: &Option<String>| hex::decode(hex.as_deref().unwrap_or_default()).unwrap();
    let hashes = case.kernel_hex.as_ref().map(|_| {
        let cmdline = case.cmdline.as_deref().unwrap_or_default();
        SevHashes::new(&bytes(&case.kernel_hex), &bytes(&case.initrd_hex), cmdline)
    });
    let guest = OvmfGuest {
        firmware,
        image_digest: case.ovmf_hash.as_ref().map(|hex| hex::decode(hex).unwrap().try_into().unwrap()),
        hashes,
        vcpus: case.vcpus,
        cpu: CpuSignature(case.vcpu_sig.as_deref().map_or(0, number) as u32),
        features: number(&case.guest_features),
        monitor: match case.vmm.as_str() {
            "ec2" => Monitor::Ec2,
            "gce" => Monitor::Gce,
            _ => Monitor::Qemu,
        },
    };
    match case.mode.as_str() {
        "snp" => {
            let launch = guest.snp()?;
            let explained = launch.explain(true);
            explained.check().unwrap();
            assert_eq!(explained.digest, launch.digest());
            Ok(hex::encode(launch.digest()))
        }
        "seves" => Ok(hex::encode(guest.sev_es_digest()?)),
        "sev" => Ok(hex::encode(guest.sev_digest())),
        other => panic!("mode {other}"),
    }
}

#[test]
fn launch_digests_of_ovmf_guests() {
    let Some(dir) = vectors("snp/launch-digest") else { return };
    let cases: Cases = serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap();
    assert_eq!(cases.image_digest.len(), 96);
    assert!(cases.cases.len() >= 14, "only {} cases", cases.cases.len());
    for case in &cases.cases {
        let image = std::fs::read(dir.join(&case.firmware)).unwrap();
        let seen = digest_of(case, &Firmware::parse(&image).unwrap());
        match &case.expected {
            Some(expected) => assert_eq!(seen.as_ref(), Ok(expected), "case {}", case.name),
            None => assert_eq!(seen, Err(FirmwareError::NoKernelHashes), "case {}", case.name),
        }
    }
}

fn mrtds(image: &[u8]) -> [String; 2] {
    let firmware = Firmware::parse(image).unwrap();
    let launch = TdLaunch::of_firmware(&firmware).unwrap();
    [PassOrder::Single, PassOrder::Two].map(|order| {
        let digest = launch.mrtd(order);
        let explained = launch.explain(order, true);
        assert_eq!(explained.digest, digest);
        explained.check().unwrap();
        hex::encode(digest)
    })
}

#[test]
fn mrtd_of_a_synthetic_image_in_both_orders() {
    let Some(dir) = vectors("tdx/mrtd") else { return };
    assert_eq!(
        mrtds(&std::fs::read(dir.join("synthetic-a.fd")).unwrap()),
        [
            "a6566f92fe975589e06596082824f36ee0639005082a3bc5db6d72210b8d11e9c6977f8d36e3115e39fcdcef3b03d675",
            "86398398bfda30445fc81bb2cd3dee70023f5cce6299d553fda25f9798dfc3f69d75c4cfa8e5cf50eb8ed4247b2ea28c",
        ]
    );
}

/// The real image is kept compressed; `xz` unpacks it where there is one.
#[test]
fn mrtd_of_a_real_tdvf_image_in_both_orders() {
    let Some(dir) = vectors("tdx/mrtd") else { return };
    let unpacked = std::process::Command::new("xz").arg("-dc").arg(dir.join("OVMF.inteltdx.fd.xz")).output();
    let Ok(unpacked) = unpacked else {
        kata_cc_test_vectors::skip("xz", "there is no xz (apt-get install xz-utils)");
        return;
    };
    assert!(unpacked.status.success(), "xz: {}", String::from_utf8_lossy(&unpacked.stderr));
    assert_eq!(unpacked.stdout.len(), 2 << 20);
    assert_eq!(
        mrtds(&unpacked.stdout),
        [
            "88c63708f207ab01a46b4d9424ea92ab11f8826be30d208afbb58f174f2a19cdcfafb2b12a6a2c98be0740b808894d55",
            "307c9a6831bdd6e6f56d9305f9598d238d42e864a9144f11c0a46ee42e62ed81eb9845511a80fa77b200743d85d977e3",
        ]
    );
}

/// Events of a CCEL log as (index, type, SHA-384 digest); the first event has the old form.
fn events(log: &[u8]) -> Vec<(u32, u32, [u8; 48])> {
    let word = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().unwrap());
    let mut at = 32 + word(28) as usize;
    let mut events = Vec::new();
    while at + 12 < log.len() && !matches!(word(at), 0xFFFF_FFFF) && word(at + 8) != 0 {
        let (index, event_type, digests) = (word(at), word(at + 4), word(at + 8));
        at += 12;
        let mut sha384 = None;
        for _ in 0..digests {
            let (id, len) = match u16::from_le_bytes(log[at..at + 2].try_into().unwrap()) {
                0xC => (0xC, 48),
                0xB => (0xB, 32),
                other => panic!("algorithm {other}"),
            };
            if id == 0xC {
                sha384 = Some(log[at + 2..at + 50].try_into().unwrap());
            }
            at += 2 + len;
        }
        at += 4 + word(at) as usize;
        events.push((index, event_type, sha384.unwrap()));
    }
    events
}

#[test]
fn rtmrs_of_a_real_event_log_are_those_of_the_quote() {
    let (Some(logs), Some(quote)) = (vectors("tdx/eventlogs"), vectors("tdx/quotes/v4-gcp-cos113")) else {
        return;
    };
    let log = std::fs::read(logs.join("ccel-gcp-cos113.bin")).unwrap();
    let mut registers = Rtmrs::new();
    let events = events(&log);
    for (index, event_type, digest) in &events {
        registers.replay(*index, *event_type, digest).unwrap();
    }
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(quote.join("expected.json")).unwrap()).unwrap();
    assert!(events.len() > 10, "only {} events", events.len());
    for (index, value) in registers.values().iter().enumerate() {
        assert_eq!(hex::encode(value), expected[format!("rtmr{index}")], "RTMR{index}");
    }
}

#[test]
fn rtmr3_of_runtime_events() {
    let Some(dir) = vectors("coco/aael") else { return };
    let file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("events.json")).unwrap()).unwrap();
    let mut registers = Rtmrs::new();
    let events = file["events"].as_array().unwrap();
    for event in events {
        let text = |name: &str| event[name].as_str().unwrap();
        // index, type, count, algorithm, digest and size come before the data
        let entry = hex::decode(text("entry_hex")).unwrap();
        registers.extend_data(3, &entry[66..]).unwrap();
        assert_eq!(hex::encode(registers.values()[3]), text("register_after_hex"), "{event}");
    }
    assert!(events.len() >= 2);
}
