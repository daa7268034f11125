//! Whole launches against the fake kernel. Each digest is known three times: the fake keeps it as the hardware
//! would, `kata-cc-measurement` predicts it, and [`naive`] writes it down by hand.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use kata_cc_measurement::snp::SnpLaunch;
use kata_cc_measurement::stage0::Stage0Launch;
use kata_cc_measurement::tdx::TdLaunch;
use kata_cc_measurement::{CpuSignature, PageType, VmsaRegisters};
use kata_cc_snp::id_block::{IdAuth, IdBlock};
use kata_cc_snp::policy::GuestPolicy;
use kata_cc_stage0_abi::{BootBlock, KernelKind, PlatformKind, Sealed};
use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_memory_attributes, kvm_sev_init, kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
};

use super::abi::{Cpuid2, SnpReqCerts, TdxInitMemRegion, TdxInitVm, VM_TYPE_SNP, VM_TYPE_TDX};
use super::fake::{FakeKernel, Host};
use super::ioctls::{Page, Refusal, Side, TeeIoctls};
use super::memory::{Conversion, MemoryBook};
use super::sim::{SimLaunch, SimTee};
use super::snp::{SnpConfig, SnpTee, certificates};
use super::tdx::{TdxConfig, TdxTee};
use super::{NoTee, Tee, TeeError, convert, launch};

mod refusals;

const MIB: u64 = 1 << 20;
const VCPUS: u32 = 3;
const CPU: CpuSignature = CpuSignature(0xA00F11);

/// Five pages of image, three of working memory.
fn image() -> Vec<u8> {
    let mut image: Vec<u8> = (0..0x5000u32).map(|n| (n.wrapping_mul(2_246_822_519) >> 23) as u8).collect();
    image[16..24].copy_from_slice(b"KCCIMG0\0");
    for (at, value) in [(24, 1u32), (28, 0x5000), (32, 0x3000), (36, 0)] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    image
}

fn block(platform: PlatformKind) -> BootBlock {
    let sealed = |length, byte| Sealed { length, sha256: [byte; 32] };
    BootBlock {
        platform,
        vcpus: VCPUS,
        memory_bit: match platform {
            PlatformKind::Snp => 51,
            PlatformKind::Tdx => 47,
            _ => 0,
        },
        acpi_devices: false,
        kernel_kind: KernelKind::BzImage,
        kernel: sealed(9_000_000, 1),
        initramfs: None,
        command_line: sealed(60, 3),
    }
}

fn cpuid() -> CpuId {
    let entry = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    // x2APIC, and bits that SNP and TDX do not take
    CpuId::from_entries(&[entry(1, 0xA00F11, 0, 1 << 21 | 1 << 24, 0), entry(7, 0, 0xFFFF, 0, 0xFFFF_FFFF)])
        .unwrap()
}

fn book() -> MemoryBook {
    MemoryBook::new(&[(0, 64 * MIB), (4096 * MIB, 16 * MIB)])
}

fn snp_launch(platform: PlatformKind) -> (SnpLaunch<'static>, VmsaRegisters) {
    let image = image().leak();
    let launch = Stage0Launch::new(image, &block(platform)).unwrap().with_cpu(CPU);
    (launch.snp().unwrap(), launch.registers())
}

fn snp_with(config: SnpConfig) -> SnpTee<'static> {
    let (launch, registers) = snp_launch(PlatformKind::Snp);
    SnpTee::new(config, launch, registers, vec![cpuid()])
}

fn snp() -> SnpTee<'static> {
    snp_with(SnpConfig { shared: vec![(0x20_0000, 8 * MIB)], ..SnpConfig::new([7; 32]) })
}

fn td_launch(platform: PlatformKind) -> TdLaunch<'static> {
    Stage0Launch::new(image().leak(), &block(platform)).unwrap().tdx().unwrap()
}

fn tdx_with(config: TdxConfig) -> TdxTee<'static> {
    TdxTee::new(config, td_launch(PlatformKind::Tdx), VCPUS, vec![cpuid()])
}

fn tdx() -> TdxTee<'static> {
    tdx_with(TdxConfig { shared: vec![(0x20_0000, 8 * MIB)], ..TdxConfig::new([9; 48]) })
}

/// The digests once more, from the images' bytes and addresses.
mod naive {
    use super::*;

    fn sha384(bytes: &[u8]) -> [u8; 48] {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, bytes).as_ref().try_into().unwrap()
    }

    fn pages(platform: PlatformKind) -> Vec<(u64, Vec<u8>)> {
        let image = image();
        let mut pages: Vec<_> =
            image.chunks(4096).zip(0u64..).map(|(page, n)| (0x10_0000 + n * 4096, page.to_vec())).collect();
        pages.push((0x1F_F000, block(platform).to_page().unwrap().to_vec()));
        pages
    }

    pub(super) fn snp(platform: PlatformKind) -> [u8; 48] {
        let mut list: Vec<(u8, u64, [u8; 48])> =
            pages(platform).into_iter().map(|(gpa, page)| (1, gpa, sha384(&page))).collect();
        list.extend([0x10_5000, 0x10_6000, 0x10_7000].map(|gpa| (3, gpa, [0; 48])));
        list.push((5, 0x1F_D000, [0; 48]));
        list.push((6, 0x1F_E000, [0; 48]));
        let mut vmsa = vec![0u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| vmsa[at..at + bytes.len()].copy_from_slice(bytes);
        for at in [0x00, 0x20, 0x30, 0x40, 0x50] {
            put(at, &[16, 0, 0x93, 0x0C, 0xFF, 0xFF, 0xFF, 0xFF]);
        }
        put(0x10, &[8, 0, 0x9B, 0x0C, 0xFF, 0xFF, 0xFF, 0xFF]);
        for (at, attributes) in [(0x70, 0x82), (0x90, 0x8B)] {
            put(at + 2, &[attributes, 0, 0xFF, 0xFF]);
        }
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
            (0x410, 0x37F),
        ] {
            put(at, &value.to_le_bytes());
        }
        list.extend((0..VCPUS).map(|_| (2, 0xFFFF_FFFF_F000, sha384(&vmsa))));
        list.into_iter().fold([0; 48], |digest, (page_type, gpa, hash)| {
            let middle = [0x70, 0, page_type, 0, 0, 0, 0, 0];
            sha384(&[digest.as_slice(), &hash, &middle, &gpa.to_le_bytes()].concat())
        })
    }

    pub(super) fn mrtd(platform: PlatformKind) -> [u8; 48] {
        let mut list = pages(platform);
        // added, and nothing of their contents measured
        list.extend([0x10_5000, 0x10_6000, 0x10_7000].map(|gpa| (gpa, Vec::new())));
        let mut reset = vec![0; 4096];
        reset[0xFF0..0xFF7].copy_from_slice(&[0xBF, 0, 0, 0x10, 0, 0xFF, 0xE7]);
        list.push((0xFFFF_F000, reset));
        let mut stream = Vec::new();
        for (gpa, page) in list {
            let mut line = [0; 128];
            line[..12].copy_from_slice(b"MEM.PAGE.ADD");
            line[16..24].copy_from_slice(&gpa.to_le_bytes());
            stream.extend(line);
            for (chunk, at) in page.chunks(256).zip((gpa..).step_by(256)) {
                let mut line = [0; 128];
                line[..9].copy_from_slice(b"MR.EXTEND");
                line[16..24].copy_from_slice(&at.to_le_bytes());
                stream.extend(line);
                stream.extend(chunk);
            }
        }
        sha384(&stream)
    }
}

/// Runs a launch on a fake; the digest that this side knows.
fn run(tee: &mut dyn Tee, io: &FakeKernel) -> Result<Option<[u8; 48]>, TeeError> {
    launch(tee, io, &mut book(), VCPUS)
}

fn message(result: Result<Option<[u8; 48]>, TeeError>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn snp_fake_prediction_and_hand_agree() {
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    let mut tee = snp();
    let predicted = tee.predicted().unwrap();
    let told = run(&mut tee, &io).unwrap().unwrap();
    let state = io.state();
    assert_eq!(hex::encode(state.snp.digest), hex::encode(predicted));
    assert_eq!(hex::encode(state.snp.digest), hex::encode(naive::snp(PlatformKind::Snp)));
    assert_eq!(told, predicted);
    assert_eq!(state.snp.host_data, [7; 32]);
    assert!(!tee.serves_certificates(), "nobody asked for certificates");
}

#[test]
fn snp_takes_one_call_per_contiguous_range() {
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    run(&mut snp(), &io).unwrap();
    let state = io.state();
    let updates = state.calls.iter().filter(|call| **call == "SNP_LAUNCH_UPDATE").count();
    // image, boot block, working memory, secrets, CPUID
    assert_eq!(updates, 5);
    let order: Vec<_> = state.snp.updates.iter().map(|(page_type, _)| *page_type).collect();
    assert_eq!(order, [1, 1, 1, 1, 1, 1, 3, 3, 3, 5, 6, 2, 2, 2]);
}

#[test]
fn tdx_fake_prediction_and_hand_agree() {
    let io = FakeKernel::new(VM_TYPE_TDX, Host::default());
    let mut tee = tdx();
    let predicted = tee.predicted().unwrap();
    let told = run(&mut tee, &io).unwrap().unwrap();
    let state = io.state();
    assert_eq!(hex::encode(state.tdx.mrtd), hex::encode(predicted));
    assert_eq!(hex::encode(state.tdx.mrtd), hex::encode(naive::mrtd(PlatformKind::Tdx)));
    assert_eq!(told, predicted);
    assert_eq!(state.tdx.mrconfigid, Some([9; 48]));
    assert_eq!((state.tdx.attributes, state.tdx.xfam), (1 << 28, 0x6_02E7));
}

#[test]
fn simulated_snp_keeps_the_digest_and_private_pages_are_not_written_by_others() {
    let io = FakeKernel::new(0, Host::default());
    let (description, _) = snp_launch(PlatformKind::SimSnp);
    let mut tee = SimTee::new(SimLaunch::Snp(description));
    let mut book = book();
    let told = launch(&mut tee, &io, &mut book, VCPUS).unwrap();
    assert_eq!(told, tee.predicted());
    assert_eq!(told, Some(naive::snp(PlatformKind::SimSnp)));
    // image and boot block were written, secrets and CPUID page were not
    assert_eq!(io.state().memory.shared.len(), 6);
    assert_eq!(io.state().memory.shared[&0x1F_F000], block(PlatformKind::SimSnp).to_page().unwrap());
    for private in [0x10_0000, 0x10_7FFF, 0x1F_D000, 0x1F_FFFF] {
        assert!(book.check_shared(private, 1).unwrap_err().to_string().contains("private"), "{private:#x}");
    }
    for shared in [0xF_FFFF, 0x10_8000, 0x1F_C000, 0x20_0000] {
        assert_eq!(book.check_shared(shared, 1), Ok(()), "{shared:#x}");
    }
}

#[test]
fn simulated_tdx_keeps_the_digest() {
    let io = FakeKernel::new(0, Host::default());
    let mut tee = SimTee::new(SimLaunch::Tdx(td_launch(PlatformKind::SimTdx), VCPUS));
    let told = run(&mut tee, &io).unwrap();
    assert_eq!(told, Some(naive::mrtd(PlatformKind::SimTdx)));
    assert_eq!(told, tee.predicted());
    assert!(!io.state().memory.shared.contains_key(&0xFFFF_F000));
}

#[test]
fn no_tee_has_no_digest() {
    let io = FakeKernel::new(0, Host::default());
    assert_eq!(run(&mut NoTee, &io).unwrap(), None);
    assert_eq!(io.state().calls, ["CREATE_VCPU"; 3]);
}

#[test]
fn partial_progress_changes_no_digest() {
    for (pages_per_call, says_eagain) in [(1, false), (1, true), (2, true), (3, false)] {
        let host = Host { pages_per_call, says_eagain, ..Host::default() };
        let io = FakeKernel::new(VM_TYPE_SNP, host.clone());
        run(&mut snp(), &io).unwrap();
        assert_eq!(io.state().snp.digest, naive::snp(PlatformKind::Snp), "{pages_per_call} {says_eagain}");
        let io = FakeKernel::new(VM_TYPE_TDX, host);
        run(&mut tdx(), &io).unwrap();
        assert_eq!(io.state().tdx.mrtd, naive::mrtd(PlatformKind::Tdx), "{pages_per_call} {says_eagain}");
    }
}

#[test]
fn a_corrected_cpuid_page_is_tried_once_more() {
    let io = FakeKernel::new(VM_TYPE_SNP, Host { cpuid_corrections: 1, ..Host::default() });
    run(&mut snp(), &io).unwrap();
    assert_eq!(io.state().snp.digest, naive::snp(PlatformKind::Snp));

    let io = FakeKernel::new(VM_TYPE_SNP, Host { cpuid_corrections: 2, ..Host::default() });
    let seen = message(run(&mut snp(), &io));
    assert!(seen.contains("refuses the CPUID page: leaf 0x1"), "{seen}");
}

#[test]
fn a_host_that_lacks_something_is_told_what_and_what_to_change() {
    let lacks = |host: Host, tee: &mut dyn Tee, vm_type| message(run(tee, &FakeKernel::new(vm_type, host)));
    let none = Host { vm_types: 1, ..Host::default() };
    let seen = lacks(none.clone(), &mut snp(), VM_TYPE_SNP);
    assert!(seen.contains("VMs of type SNP") && seen.contains("kvm_amd.sev_snp=1"), "{seen}");
    let seen = lacks(none, &mut tdx(), VM_TYPE_TDX);
    assert!(seen.contains("VMs of type TDX") && seen.contains("kvm_intel.tdx=1"), "{seen}");
    let seen = lacks(Host { private_memory: false, ..Host::default() }, &mut snp(), VM_TYPE_SNP);
    assert!(seen.contains("guest_memfd"), "{seen}");
    let seen = lacks(Host { max_vcpus: 2, ..Host::default() }, &mut tdx(), VM_TYPE_TDX);
    assert!(seen.contains("as many vCPUs"), "{seen}");
    let features = SnpConfig { features: 0x201, ..SnpConfig::new([0; 32]) };
    let seen = lacks(Host::default(), &mut snp_with(features), VM_TYPE_SNP);
    assert!(seen.contains("SEV_FEATURES 0x200"), "{seen}");
    let td = TdxConfig { attributes: 1 << 28 | 1 << 63, ..TdxConfig::new([0; 48]) };
    let seen = lacks(Host::default(), &mut tdx_with(td), VM_TYPE_TDX);
    assert!(seen.contains("ATTRIBUTES 0x8000000010000000"), "{seen}");
    let policy = SnpConfig { policy: GuestPolicy(0x103_0000), ..SnpConfig::new([0; 32]) };
    let seen =
        lacks(Host { policy_bits: Some(0x1F_FFFF), ..Host::default() }, &mut snp_with(policy), VM_TYPE_SNP);
    assert!(seen.contains("policy 0x1030000"), "{seen}");
    let no_smt = SnpConfig { policy: GuestPolicy(0x2_0000), ..SnpConfig::new([0; 32]) };
    let seen = lacks(Host::default(), &mut snp_with(no_smt.clone()), VM_TYPE_SNP);
    assert!(seen.contains("LAUNCH_START") && seen.contains("policy does not allow"), "{seen}");
    let io = FakeKernel::new(VM_TYPE_SNP, Host { smt: false, ..Host::default() });
    assert!(run(&mut snp_with(no_smt), &io).is_ok());
}

#[test]
fn debugging_is_refused_before_anything_is_started() {
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    let debug = SnpConfig { policy: GuestPolicy(0xB_0000), ..SnpConfig::new([0; 32]) };
    assert!(message(run(&mut snp_with(debug.clone()), &io)).contains("bit 19"));
    assert!(io.state().calls.is_empty());
    assert!(run(&mut snp_with(SnpConfig { allow_debug: true, ..debug }), &io).is_ok());

    let io = FakeKernel::new(VM_TYPE_TDX, Host::default());
    for (attributes, word) in
        [(1 << 28 | 1, "bit 0"), (1 << 28 | 1 << 4, "bits 1 to 7"), (0, "SEPT_VE_DISABLE")]
    {
        let config = TdxConfig { attributes, ..TdxConfig::new([0; 48]) };
        let seen = message(run(&mut tdx_with(config), &io));
        assert!(seen.contains(word), "{seen}");
    }
    assert!(io.state().calls.is_empty());
}

#[test]
fn an_id_block_is_checked_before_the_processor_does() {
    let (id_key, author) = (key(), key());
    let digest = snp().predicted().unwrap();
    let signed = |digest, policy| {
        let block = IdBlock {
            launch_digest: digest,
            family_id: [1; 16],
            image_id: [2; 16],
            guest_svn: 3,
            policy: GuestPolicy(policy),
        };
        let auth = IdAuth::sign(&block, &id_key, Some(&author)).unwrap();
        (block, auth)
    };
    let with = |id| snp_with(SnpConfig { id: Some(id), ..SnpConfig::new([7; 32]) });
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    run(&mut with(signed(digest, 0x3_0000)), &io).unwrap();

    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    let seen = message(run(&mut with(signed([1; 48], 0x3_0000)), &io));
    assert!(seen.contains("sign one for this launch"), "{seen}");
    let seen = message(run(&mut with(signed(digest, 0x13_0000)), &io));
    assert!(seen.contains("policy 0x130000"), "{seen}");
    let (mut block, auth) = signed(digest, 0x3_0000);
    block.guest_svn += 1;
    let seen = message(run(&mut with((block, auth)), &io));
    assert!(seen.contains("not signed by the ID key"), "{seen}");
    assert!(io.state().calls.is_empty());
}

fn key() -> EcdsaKeyPair {
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, document.as_ref()).unwrap()
}

#[test]
fn a_launch_for_another_number_of_vcpus_or_of_shared_pages_is_refused() {
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    let seen = message(launch(&mut snp(), &io, &mut book(), 2));
    assert_eq!(seen, "2 vCPUs, but 3 are measured");
    let config = SnpConfig { shared: vec![(0x1F_F000, 4096)], ..SnpConfig::new([0; 32]) };
    let seen = message(run(&mut snp_with(config), &io));
    assert!(seen.contains("0x1ff000"), "{seen}");
    let mut twice = SnpLaunch::new();
    twice.pages("a", PageType::Zero, 0x1000, 0x3000).unwrap();
    twice.normal("b", 0x2000, &[1; 1]).unwrap();
    (0..VCPUS).for_each(|_| twice.vcpu(&VmsaRegisters::cleared()));
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    let mut tee = SnpTee::new(SnpConfig::new([0; 32]), twice, VmsaRegisters::cleared(), vec![cpuid()]);
    assert!(message(run(&mut tee, &io)).contains("page at 0x2000 is in the launch twice"));
}

#[test]
fn guests_change_pages_and_stale_copies_are_given_back() {
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    let mut book = book();
    launch(&mut snp(), &io, &mut book, VCPUS).unwrap();
    let change =
        |pages, attributes| Conversion::from_hypercall(12, [0x30_0000, pages, attributes, 0, 0, 0]).unwrap();
    assert_eq!(book.check_shared(0x30_0000, 4096), Ok(()));
    convert(&io, &mut book, &change(2, 0x10)).unwrap();
    assert!(book.check_shared(0x30_0000, 4096).is_err());
    assert!(io.state().memory.private.contains(&0x301));
    convert(&io, &mut book, &change(1, 0)).unwrap();
    assert_eq!(book.check_shared(0x30_0000, 4096), Ok(()));
    assert_eq!(
        io.state().memory.discarded,
        [(0x30_0000, 0x2000, Side::Shared), (0x30_0000, 0x1000, Side::Private)]
    );
    let outside = Conversion { gpa: 128 * MIB, size: 4096, private: true };
    let before = book.clone();
    assert!(convert(&io, &mut book, &outside).unwrap_err().to_string().contains("RAM"));
    assert_eq!(book, before);
}

#[test]
fn certificates_go_to_shared_memory_only() {
    let io = FakeKernel::new(VM_TYPE_SNP, Host::default());
    let mut book = book();
    let config = SnpConfig { certificates: true, shared: vec![(0x20_0000, MIB)], ..SnpConfig::new([0; 32]) };
    let mut tee = snp_with(config);
    launch(&mut tee, &io, &mut book, VCPUS).unwrap();
    assert!(tee.serves_certificates());
    let table = vec![5; 5000];
    let serve = |gpa, npages| {
        let mut request = SnpReqCerts { gpa, npages, ret: 0 };
        let served = certificates::serve(&mut request, &table, &io, &book).map_err(|error| error.to_string());
        (request.npages, request.ret as i32, served)
    };
    assert_eq!(serve(0x20_0000, 1), (2, libc::ENOSPC, Ok(())));
    assert_eq!(serve(0x20_0000, 2), (2, 0, Ok(())));
    assert_eq!(io.state().memory.shared[&0x20_0000], table);
    for (gpa, word) in [(0x10_0000, "private"), (0x20_0010, "whole pages"), (2 * 64 * MIB, "RAM")] {
        let (_, ret, served) = serve(gpa, 2);
        assert_eq!(ret, libc::EIO);
        assert!(served.unwrap_err().contains(word));
    }
}

/// A kernel that never gets on is given up on, with the place.
#[test]
fn a_call_without_progress_is_given_up() {
    for (vm_type, tee) in [(VM_TYPE_SNP, &mut snp() as &mut dyn Tee), (VM_TYPE_TDX, &mut tdx())] {
        let io = FakeKernel::new(vm_type, Host { stuck: true, ..Host::default() });
        let seen = message(run(tee, &io));
        assert!(seen.contains("no progress in 1000 attempts at guest address 0x100000"), "{seen}");
    }
}
