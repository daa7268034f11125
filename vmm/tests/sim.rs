//! The simulated security processor without a guest: exchanges on what vsock port 1027 is connected to.

mod common;

use std::io::{Read, Write};
use std::path::Path;

use kata_cc_boot::{DescriptorTable, Hashes, KernelFormat, LaunchPlan, PlatformKind, Segment, StartState};
use kata_cc_measurement::stage0::Stage0Launch;
use kata_cc_stage0_abi::{BootBlock, KernelKind, Sealed};
use kata_cc_vmm::sim::Processor;
use kata_cc_vmm_api::TeeConfig;

const REPORT: usize = 12;

/// One page of image, none of working memory.
fn image() -> Vec<u8> {
    let mut image = vec![0x90; 4096];
    image[16..24].copy_from_slice(b"KCCIMG0\0");
    for (at, value) in [(24, 1_u32), (28, 4096), (32, 0), (36, 0)] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    image
}

fn plan() -> LaunchPlan<'static> {
    let block = BootBlock {
        platform: PlatformKind::SimSnp,
        vcpus: 1,
        memory_bit: 0,
        acpi_devices: false,
        kernel_kind: KernelKind::Vmlinux,
        kernel: Sealed { length: 4096, sha256: [1; 32] },
        initramfs: None,
        command_line: Sealed::default(),
    };
    let launch = Stage0Launch::new(image().leak(), &block).expect("a launch");
    LaunchPlan {
        regions: Vec::new(),
        unmeasured: Vec::new(),
        stage0: Some(Box::new(launch)),
        hashes: Hashes::default(),
        start: StartState::flat32(0x10_0000),
        vcpus: 1,
        cmdline: String::new(),
        format: KernelFormat::Vmlinux,
    }
}

fn exchange(processor: &Processor, request: &[u8]) -> Vec<u8> {
    let mut connect = processor.local_port();
    let mut guest = connect().expect("connection");
    guest.write_all(request).expect("sent");
    let mut answer = Vec::new();
    guest.read_to_end(&mut answer).expect("answer");
    answer
}

#[test]
fn reports_carry_digest_host_data_and_the_guests_bytes() {
    let folder = common::folder();
    let platform = folder.path().join("sim");
    kata_cc_sim_tee::SimPlatform::create(&platform).expect("platform");
    let mut config = common::config(folder.path(), Path::new("/kernel"));
    assert!(Processor::create(&config, &plan()).expect("no tee").is_none());
    config.tee = TeeConfig::SimSnp { platform, host_data: "5a".repeat(32), policy: Some(0x30000) };
    let processor = Processor::create(&config, &plan()).expect("processor").expect("asked for");
    assert_eq!(Some(*processor.launch_digest()), plan().launch_digest());

    let mut request = [0u8; 96];
    request[..64].fill(0xab);
    let answer = exchange(&processor, &request);
    let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().expect("four bytes"));
    assert_eq!((word(0), word(4)), (0, 1184));
    assert_eq!(answer.len(), REPORT + 1184 + word(8) as usize);
    let report = &answer[REPORT..REPORT + 1184];
    assert_eq!(&report[0x50..0x90], &[0xab; 64]);
    assert_eq!(&report[0x90..0xc0], processor.launch_digest());
    assert_eq!(&report[0xc0..0xe0], &[0x5a; 32]);
    assert_eq!(&report[0x08..0x10], &0x30000u64.to_le_bytes());

    request[64] = 9;
    let refused = exchange(&processor, &request);
    assert_eq!(refused[..4], 0x16u32.to_le_bytes(), "vmpl 9");
}

#[test]
fn a_platform_that_is_not_there_is_named() {
    let folder = common::folder();
    let mut config = common::config(folder.path(), Path::new("/kernel"));
    let platform = folder.path().join("none");
    config.tee = TeeConfig::SimSnp { platform: platform.clone(), host_data: "00".repeat(32), policy: None };
    let error = Processor::create(&config, &plan()).map(|_| ()).expect_err("refused").to_string();
    assert!(error.contains(&*platform.to_string_lossy()), "{error}");
}

#[test]
fn the_start_state_is_that_of_the_64_bit_protocol() {
    let start = StartState::linux64(0x100_0000);
    assert_eq!(start.cs, Segment { selector: 0x10, base: 0, limit: 0xffff_ffff, attributes: 0xa9b });
    assert_eq!(start.data.selector, 0x18);
    assert_eq!(start.idt, DescriptorTable::default());
}
