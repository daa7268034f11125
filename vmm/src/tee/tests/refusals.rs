//! Each documented refusal of the kernel, met by calling it wrongly.

use super::*;

const EINVAL: Refusal = Refusal::kernel(libc::EINVAL);

fn snp_kernel() -> FakeKernel {
    FakeKernel::new(VM_TYPE_SNP, Host::default())
}

fn init() -> kvm_sev_init {
    kvm_sev_init { ghcb_version: 2, ..Default::default() }
}

fn start(policy: u64) -> kvm_sev_snp_launch_start {
    kvm_sev_snp_launch_start { policy, ..Default::default() }
}

/// One slot of 1 MiB at 0 with its first 16 pages private.
fn with_memory(io: &FakeKernel) {
    let memfd = io.create_guest_memfd(MIB).unwrap();
    io.set_memory_region(0, 0, MIB, memfd).unwrap();
    io.set_memory_attributes(&attributes(0, 0x1_0000, 8)).unwrap();
}

fn attributes(address: u64, size: u64, attributes: u64) -> kvm_memory_attributes {
    kvm_memory_attributes { address, size, attributes, flags: 0 }
}

fn started() -> FakeKernel {
    let io = snp_kernel();
    io.sev_init2(&init()).unwrap();
    io.snp_launch_start(&start(0x3_0000)).unwrap();
    with_memory(&io);
    io
}

fn update(io: &FakeKernel, page: u64, len: u64, type_: u8) -> Result<(), Refusal> {
    let mut call = kvm_sev_snp_launch_update { gfn_start: page, len, type_, ..Default::default() };
    let mut source = vec![Page([1; 4096]); 16];
    io.snp_launch_update(&mut call, if type_ == 3 { &mut [] } else { &mut source })
}

#[test]
fn memory() {
    let io = snp_kernel();
    assert_eq!(io.create_guest_memfd(100), Err(EINVAL));
    assert_eq!(io.create_guest_memfd(0), Err(EINVAL));
    let memfd = io.create_guest_memfd(MIB).unwrap();
    assert_eq!(io.set_memory_region(0, 0x100, MIB, memfd), Err(EINVAL));
    assert_eq!(io.set_memory_region(0, 0, 2 * MIB, memfd), Err(EINVAL));
    assert_eq!(io.set_memory_region(0, 0, MIB, 99), Err(Refusal::kernel(libc::EBADF)));
    io.set_memory_region(0, 0, MIB, memfd).unwrap();
    assert_eq!(io.set_memory_region(1, 2 * MIB, MIB, memfd), Err(Refusal::kernel(libc::EEXIST)));
    let other = io.create_guest_memfd(MIB).unwrap();
    assert_eq!(io.set_memory_region(1, MIB / 2, MIB, other), Err(Refusal::kernel(libc::EEXIST)));
    for wrong in [attributes(1, 4096, 8), attributes(0, 100, 8), attributes(0, 0, 8), attributes(0, 4096, 1)]
    {
        assert_eq!(io.set_memory_attributes(&wrong), Err(EINVAL));
    }
}

#[test]
fn init2_comes_once_and_before_vcpus() {
    let io = snp_kernel();
    io.create_vcpu(0).unwrap();
    assert_eq!(io.sev_init2(&init()), Err(EINVAL));
    let io = snp_kernel();
    for wrong in [
        kvm_sev_init { flags: 1, ..init() },
        kvm_sev_init { ghcb_version: 1, ..init() },
        kvm_sev_init { vmsa_features: 1, ..init() },
        kvm_sev_init { vmsa_features: 1 << 9, ..init() },
    ] {
        assert_eq!(io.sev_init2(&wrong), Err(EINVAL));
    }
    io.sev_init2(&init()).unwrap();
    assert_eq!(io.sev_init2(&init()), Err(EINVAL));
    assert_eq!(FakeKernel::new(VM_TYPE_TDX, Host::default()).sev_init2(&init()), Err(EINVAL));
}

#[test]
fn launch_start() {
    let io = snp_kernel();
    assert_eq!(io.snp_launch_start(&start(0x3_0000)), Err(Refusal::kernel(libc::ENOTTY)));
    io.sev_init2(&init()).unwrap();
    assert_eq!(io.snp_launch_start(&start(0x1_0000)), Err(EINVAL));
    assert_eq!(io.snp_launch_start(&start(1 << 40 | 0x3_0000)), Err(EINVAL));
    let flags = kvm_sev_snp_launch_start { flags: 1, ..start(0x3_0000) };
    assert_eq!(io.snp_launch_start(&flags), Err(EINVAL));
    io.snp_launch_start(&start(0x3_0000)).unwrap();
    assert_eq!(io.snp_launch_start(&start(0x3_0000)), Err(EINVAL));
}

#[test]
fn launch_update() {
    let io = snp_kernel();
    with_memory(&io);
    assert_eq!(update(&io, 1, 4096, 1), Err(EINVAL), "before LAUNCH_START");
    let io = started();
    for (page, len, type_, errno) in [
        (1, 0, 1, libc::EINVAL),
        (1, 100, 1, libc::EINVAL),
        (1, 4096, 2, libc::EINVAL),
        (1, 4096, 7, libc::EINVAL),
        (0x200, 4096, 1, libc::EINVAL),
        (0x10, 4096, 1, libc::EINVAL),
    ] {
        assert_eq!(update(&io, page, len, type_), Err(Refusal::kernel(errno)), "{page:#x} {len} {type_}");
    }
    update(&io, 1, 0x2000, 1).unwrap();
    assert_eq!(update(&io, 2, 4096, 1), Err(Refusal::kernel(libc::EEXIST)), "the same page twice");
    update(&io, 3, 4096, 3).unwrap();
    let mut call = kvm_sev_snp_launch_update { gfn_start: 4, len: 4096, type_: 1, ..Default::default() };
    assert_eq!(io.snp_launch_update(&mut call, &mut []), Err(EINVAL), "no contents");
    call.flags = 1;
    assert_eq!(io.snp_launch_update(&mut call, &mut [Page([0; 4096])]), Err(EINVAL));
}

#[test]
fn launch_finish() {
    let finish = kvm_sev_snp_launch_finish::default();
    assert_eq!(snp_kernel().snp_launch_finish(&finish, None), Err(EINVAL));
    let io = started();
    let flags = kvm_sev_snp_launch_finish { flags: 1, ..finish };
    assert_eq!(io.snp_launch_finish(&flags, None), Err(EINVAL));
    let without = kvm_sev_snp_launch_finish { id_block_en: 1, ..finish };
    assert_eq!(io.snp_launch_finish(&without, None), Err(Refusal::kernel(libc::EFAULT)));
    io.create_vcpu(0).unwrap();
    io.snp_launch_finish(&finish, None).unwrap();
    let finished = Refusal { errno: libc::EIO, firmware: 2 };
    assert_eq!(io.snp_launch_finish(&finish, None), Err(finished));
    assert_eq!(update(&io, 1, 4096, 1), Err(finished));
    let (sregs, regs) = (io.sregs(0).unwrap(), Default::default());
    assert_eq!(io.set_registers(0, &sregs, &regs), Err(EINVAL), "the VMSA is encrypted");
}

#[test]
fn the_processor_compares_with_the_id_block() {
    let key = key();
    let attempt = |change: fn(&mut IdBlock, &mut [u8; 4096])| {
        let io = started();
        let digest = io.state().snp.digest;
        let mut block = IdBlock {
            launch_digest: digest,
            family_id: [0; 16],
            image_id: [0; 16],
            guest_svn: 0,
            policy: GuestPolicy(0x3_0000),
        };
        change(&mut block, &mut [0; 4096]);
        let mut auth = IdAuth::sign(&block, &key, None).unwrap().to_bytes();
        change(&mut block.clone(), &mut auth);
        let finish = kvm_sev_snp_launch_finish { id_block_en: 1, ..Default::default() };
        io.snp_launch_finish(&finish, Some((&block.to_bytes(), &auth))).map_err(|refusal| refusal.firmware)
    };
    assert_eq!(attempt(|_, _| {}), Ok(()));
    assert_eq!(attempt(|block, _| block.launch_digest[0] ^= 1), Err(0xB));
    assert_eq!(attempt(|block, _| block.policy = GuestPolicy(0x13_0000)), Err(7));
    assert_eq!(attempt(|_, auth| auth[0x50] ^= 1), Err(0xA));
}

fn td() -> FakeKernel {
    FakeKernel::new(VM_TYPE_TDX, Host::default())
}

fn td_init() -> TdxInitVm {
    TdxInitVm {
        attributes: 1 << 28,
        xfam: 0xE7,
        mrconfigid: [0; 48],
        mrowner: [0; 48],
        mrownerconfig: [0; 48],
        reserved: [0; 12],
        cpuid: Cpuid2::empty(),
    }
}

#[test]
fn init_vm() {
    let entry = |eax| kvm_cpuid_entry2 { function: 1, eax, ..Default::default() };
    let mut reserved = td_init();
    reserved.reserved[3] = 1;
    let mut padding = td_init();
    padding.cpuid.padding = 1;
    let mut many = td_init();
    many.cpuid.nent = 257;
    let refused = |init: TdxInitVm| td().tdx_init_vm(&init).map_err(|refusal| refusal.errno);
    assert_eq!(refused(reserved), Err(libc::EINVAL));
    assert_eq!(refused(padding), Err(libc::EINVAL));
    assert_eq!(refused(many), Err(libc::E2BIG));
    assert_eq!(refused(TdxInitVm { attributes: 1 << 63, ..td_init() }), Err(libc::EINVAL));
    assert_eq!(refused(TdxInitVm { xfam: 1 << 40 | 3, ..td_init() }), Err(libc::EINVAL));
    assert_eq!(refused(TdxInitVm { xfam: 2, ..td_init() }), Err(libc::EINVAL));
    let fixed = TdxInitVm { cpuid: Cpuid2::from_slice(&[entry(0x1_0000)]).unwrap(), ..td_init() };
    assert_eq!(
        td().tdx_init_vm(&fixed),
        Err(Refusal { errno: libc::EINVAL, firmware: 0xC000_0100_0000_0000 })
    );
    let io = td();
    io.tdx_init_vm(&td_init()).unwrap();
    assert_eq!(io.tdx_init_vm(&td_init()), Err(EINVAL));
    assert_eq!(snp_kernel().tdx_init_vm(&td_init()), Err(EINVAL));
}

#[test]
fn vcpus_of_a_td() {
    let io = td();
    assert_eq!(io.create_vcpu(0), Err(Refusal::kernel(libc::EIO)), "before INIT_VM");
    io.tdx_init_vm(&td_init()).unwrap();
    assert_eq!(io.create_vcpu(0), Err(EINVAL), "without a split irqchip");
    io.enable_capability(121, 24).unwrap();
    io.create_vcpu(0).unwrap();
    assert_eq!(io.tdx_init_vcpu(0, 0), Err(EINVAL), "without x2APIC in its CPUID");
    io.set_cpuid(0, &cpuid()).unwrap();
    io.tdx_init_vcpu(0, 0).unwrap();
    assert_eq!(io.tdx_init_vcpu(0, 0), Err(EINVAL), "twice");
    assert_eq!(io.sregs(0).unwrap_err(), EINVAL);
    io.tdx_finalize().unwrap();
    assert_eq!(io.create_vcpu(1), Err(Refusal::kernel(libc::EIO)), "after the end");
}

#[test]
fn pages_of_a_td() {
    let io = td();
    io.tdx_init_vm(&td_init()).unwrap();
    io.enable_capability(121, 24).unwrap();
    with_memory(&io);
    io.create_vcpu(0).unwrap();
    io.set_cpuid(0, &cpuid()).unwrap();
    let add = |gpa, nr_pages, flags| {
        let mut region = TdxInitMemRegion { source_addr: 0, gpa, nr_pages };
        io.tdx_init_mem_region(0, &mut region, flags, &mut [Page([0; 4096])])
    };
    assert_eq!(add(0x1000, 1, 1), Err(EINVAL), "before INIT_VCPU");
    io.tdx_init_vcpu(0, 0).unwrap();
    for (gpa, pages, flags) in
        [(0x1001, 1, 1), (0x1000, 0, 1), (0x1000, 1, 2), (0x1000, 2, 1), (1 << 47, 1, 1)]
    {
        assert_eq!(add(gpa, pages, flags), Err(EINVAL), "{gpa:#x} {pages} {flags}");
    }
    assert_eq!(add(0x1_0000, 1, 1), Err(EINVAL), "shared");
    assert_eq!(add(0x20_0000, 1, 1), Err(Refusal::kernel(libc::EFAULT)), "no memory");
    add(0x1000, 1, 1).unwrap();
    assert_eq!(add(0x1000, 1, 1), Err(Refusal::kernel(libc::EEXIST)), "twice");
    io.tdx_finalize().unwrap();
    assert_eq!(add(0x2000, 1, 1), Err(EINVAL), "after the end");
    assert_eq!(io.tdx_finalize(), Err(EINVAL), "twice");
    assert_eq!(td().tdx_finalize(), Err(EINVAL), "before INIT_VM");
}
