//! A kernel with SNP and TDX that exists only here: it refuses what the real one refuses, keeps the launch
//! digest as the security processor and the TDX module would, and can be told to misbehave as the real one may
//! (partial progress, a corrected CPUID page).
//!
//! Rules are those of Linux 6.16: `virt/kvm/guest_memfd.c` and `kvm_main.c` (memory), `arch/x86/kvm/svm/sev.c`,
//! `arch/x86/kvm/vmx/tdx.c`. Each refusal has a test in `tests.rs`. The digests are computed here without
//! `kata-cc-measurement`, so that a mistake there is not repeated here.

mod memory;
mod snp;
mod tdx;

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA384, digest};
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_GUEST_MEMFD, KVM_CAP_MAX_VCPUS, KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_VM_TYPES, kvm_cpuid_entry2, kvm_memory_attributes, kvm_regs, kvm_segment,
    kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update, kvm_sregs,
};

use super::abi::{TdxCapabilities, TdxInitMemRegion, TdxInitVm};
use super::ioctls::{IdPages, Page, Refusal, Side, TeeIoctls};
use memory::FakeMemory;
use snp::FakeSnp;
use tdx::FakeTdx;

type Answer<T = ()> = Result<T, Refusal>;

const INVALID: Refusal = Refusal::kernel(libc::EINVAL);

fn refuse_unless(holds: bool, errno: i32) -> Answer {
    if holds { Ok(()) } else { Err(Refusal::kernel(errno)) }
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    digest(&SHA384, bytes).as_ref().try_into().unwrap()
}

/// What the fake host is like; public so that tests can change it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) vm_types: u32,
    pub(crate) private_memory: bool,
    pub(crate) max_vcpus: u32,
    pub(crate) sev_features: u64,
    /// Policy bits of kernels that tell them.
    pub(crate) policy_bits: Option<u64>,
    /// SMT is on: a policy without it is refused.
    pub(crate) smt: bool,
    pub(crate) certificates: bool,
    /// How often the CPUID page is refused with corrections.
    pub(crate) cpuid_corrections: u32,
    /// Pages that one call does before it asks to come again; 0: all.
    pub(crate) pages_per_call: u64,
    /// Whether a call that is not done says EAGAIN, or returns 0 with what is left.
    pub(crate) says_eagain: bool,
    /// No call ever gets on.
    pub(crate) stuck: bool,
    pub(crate) td_attributes: u64,
    pub(crate) td_xfam: u64,
    pub(crate) td_cpuid: Vec<kvm_cpuid_entry2>,
    /// TDVMCALLs: R11 of kernel and user space, R12 of both.
    pub(crate) tdvmcalls: [u64; 4],
}

impl Default for Host {
    fn default() -> Self {
        let mask = |function, eax, ebx| kvm_cpuid_entry2 { function, eax, ebx, ..Default::default() };
        Self {
            vm_types: 0b11_0011,
            private_memory: true,
            max_vcpus: 64,
            sev_features: 0x3E,
            policy_bits: None,
            smt: true,
            certificates: true,
            cpuid_corrections: 0,
            pages_per_call: 0,
            says_eagain: false,
            stuck: false,
            td_attributes: 1 << 28 | 1 << 30 | 1,
            td_xfam: 0x6_02E7,
            // more than the first attempt has room for
            td_cpuid: (0..70).map(|leaf| mask(leaf, 0xFFFF, 0xFF)).collect(),
            tdvmcalls: [0, 0b10, 0, 0],
        }
    }
}

#[derive(Clone, Copy, Default)]
pub(crate) struct FakeVcpu {
    pub(crate) sregs: kvm_sregs,
    pub(crate) regs: kvm_regs,
    pub(crate) x2apic: bool,
    td_initialised: bool,
}

/// State of the fake.
pub(crate) struct State {
    pub(crate) host: Host,
    vm_type: u64,
    pub(crate) calls: Vec<&'static str>,
    pub(crate) memory: FakeMemory,
    vcpus: Vec<FakeVcpu>,
    enabled: BTreeMap<u32, u64>,
    /// Interrupts by message: address and data.
    pub(crate) messages: Vec<(u32, u32)>,
    pub(crate) snp: FakeSnp,
    pub(crate) tdx: FakeTdx,
}

/// See the module's documentation.
pub(crate) struct FakeKernel(RefCell<State>);

impl FakeKernel {
    pub(crate) fn new(vm_type: u64, host: Host) -> Self {
        Self(RefCell::new(State {
            host,
            vm_type,
            calls: Vec::new(),
            memory: FakeMemory::default(),
            vcpus: Vec::new(),
            enabled: BTreeMap::new(),
            messages: Vec::new(),
            snp: FakeSnp::default(),
            tdx: FakeTdx::default(),
        }))
    }

    pub(crate) fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// The state, with the call entered in the list.
    fn called(&self, name: &'static str) -> RefMut<'_, State> {
        let mut state = self.0.borrow_mut();
        state.calls.push(name);
        state
    }
}

/// A vCPU at reset, as KVM makes it.
fn reset_vcpu() -> FakeVcpu {
    let data = kvm_segment { limit: 0xFFFF, type_: 3, present: 1, s: 1, ..Default::default() };
    let code = kvm_segment { selector: 0xF000, base: 0xFFFF_0000, type_: 0xB, ..data };
    let system = |type_| kvm_segment { limit: 0xFFFF, type_, present: 1, ..Default::default() };
    let mut sregs = kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: system(0xB),
        ldt: system(2),
        cr0: 0x6000_0010,
        ..Default::default()
    };
    (sregs.gdt.limit, sregs.idt.limit) = (0xFFFF, 0xFFFF);
    let regs = kvm_regs { rip: 0xFFF0, rflags: 2, rdx: 0x600, ..Default::default() };
    FakeVcpu { sregs, regs, ..Default::default() }
}

impl TeeIoctls for FakeKernel {
    fn capability(&self, capability: u32) -> u32 {
        let host = &self.0.borrow().host;
        match capability {
            KVM_CAP_VM_TYPES => host.vm_types,
            KVM_CAP_GUEST_MEMFD => host.private_memory.into(),
            KVM_CAP_MEMORY_ATTRIBUTES => u32::from(host.private_memory) << 3,
            KVM_CAP_EXIT_HYPERCALL => 1 << 12,
            KVM_CAP_MAX_VCPUS => host.max_vcpus,
            _ => 0,
        }
    }

    fn enable_capability(&self, capability: u32, argument: u64) -> Answer {
        let mut state = self.called("ENABLE_CAP");
        if capability == KVM_CAP_SPLIT_IRQCHIP {
            // kvm_vm_ioctl_enable_cap: before any vCPU, at most 24 lines that stay
            refuse_unless(state.vcpus.is_empty(), libc::EINVAL)?;
        }
        state.enabled.insert(capability, argument);
        Ok(())
    }

    fn create_guest_memfd(&self, size: u64) -> Answer<u32> {
        self.called("CREATE_GUEST_MEMFD").memory.create(size)
    }

    fn set_memory_region(&self, slot: u32, gpa: u64, size: u64, guest_memfd: u32) -> Answer {
        self.called("SET_USER_MEMORY_REGION2").memory.set_region(slot, gpa, size, guest_memfd)
    }

    fn set_memory_attributes(&self, attributes: &kvm_memory_attributes) -> Answer {
        self.called("SET_MEMORY_ATTRIBUTES").memory.set_attributes(attributes)
    }

    fn discard(&self, gpa: u64, size: u64, side: Side) -> Answer {
        self.called("discard").memory.discard(gpa, size, side);
        Ok(())
    }

    fn write_shared(&self, gpa: u64, bytes: &[u8]) -> Answer {
        self.called("write").memory.write(gpa, bytes);
        Ok(())
    }

    fn read_shared(&self, gpa: u64, bytes: &mut [u8]) -> Answer {
        let state = self.called("read");
        // what was not written is zero
        bytes.fill(0);
        if let Some(written) = state.memory.shared.get(&gpa) {
            let len = written.len().min(bytes.len());
            bytes[..len].copy_from_slice(&written[..len]);
        }
        Ok(())
    }

    fn signal_msi(&self, address: u32, data: u32) -> Answer {
        self.called("SIGNAL_MSI").messages.push((address, data));
        Ok(())
    }

    fn create_vcpu(&self, vcpu: u32) -> Answer {
        let mut state = self.called("CREATE_VCPU");
        if state.vm_type == super::abi::VM_TYPE_TDX {
            // tdx_vcpu_create: after INIT_VM and before the end of the launch, with a split irqchip
            refuse_unless(state.tdx.is_initialised(), libc::EIO)?;
            refuse_unless(state.enabled.contains_key(&KVM_CAP_SPLIT_IRQCHIP), libc::EINVAL)?;
        }
        refuse_unless(state.vcpus.len() == vcpu as usize, libc::EEXIST)?;
        state.vcpus.push(reset_vcpu());
        Ok(())
    }

    fn set_cpuid(&self, vcpu: u32, cpuid: &CpuId) -> Answer {
        let mut state = self.called("SET_CPUID2");
        let vcpu = state.vcpus.get_mut(vcpu as usize).ok_or(INVALID)?;
        vcpu.x2apic = cpuid.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx >> 21 & 1 == 1);
        Ok(())
    }

    fn set_reset_state(&self, vcpu: u32) -> Answer {
        let state = self.called("SET_MSRS");
        refuse_unless(state.vm_type != super::abi::VM_TYPE_TDX, libc::EINVAL)?;
        refuse_unless(!state.snp.is_finished(), libc::EINVAL)?;
        state.vcpus.get(vcpu as usize).map(|_| ()).ok_or(INVALID)
    }

    fn sregs(&self, vcpu: u32) -> Answer<kvm_sregs> {
        let state = self.called("GET_SREGS");
        // registers of a TD are the module's
        refuse_unless(state.vm_type != super::abi::VM_TYPE_TDX, libc::EINVAL)?;
        state.vcpus.get(vcpu as usize).map(|vcpu| vcpu.sregs).ok_or(INVALID)
    }

    fn set_registers(&self, vcpu: u32, sregs: &kvm_sregs, regs: &kvm_regs) -> Answer {
        let mut state = self.called("SET_REGS");
        // after the launch the VMSA is encrypted
        refuse_unless(state.vm_type != super::abi::VM_TYPE_TDX && !state.snp.is_finished(), libc::EINVAL)?;
        let vcpu = state.vcpus.get_mut(vcpu as usize).ok_or(INVALID)?;
        (vcpu.sregs, vcpu.regs) = (*sregs, *regs);
        Ok(())
    }

    fn sev_attribute(&self, attribute: u64) -> Answer<u64> {
        let state = self.called("SEV_ATTRIBUTE");
        match attribute {
            0 => Ok(state.host.sev_features),
            1 => state.host.policy_bits.ok_or(Refusal::kernel(libc::ENXIO)),
            _ => Err(Refusal::kernel(libc::ENXIO)),
        }
    }

    fn sev_init2(&self, init: &kvm_sev_init) -> Answer {
        let state = &mut *self.called("SEV_INIT2");
        refuse_unless(state.vm_type == super::abi::VM_TYPE_SNP, libc::EINVAL)?;
        state.snp.init2(init, &state.host, state.vcpus.len())
    }

    fn snp_launch_start(&self, start: &kvm_sev_snp_launch_start) -> Answer {
        let state = &mut *self.called("SNP_LAUNCH_START");
        state.snp.launch_start(start, &state.host)
    }

    fn snp_launch_update(&self, update: &mut kvm_sev_snp_launch_update, source: &mut [Page]) -> Answer {
        let state = &mut *self.called("SNP_LAUNCH_UPDATE");
        state.snp.launch_update(update, source, &mut state.memory, &mut state.host)
    }

    fn snp_launch_finish(&self, finish: &kvm_sev_snp_launch_finish, id: Option<IdPages<'_>>) -> Answer {
        let state = &mut *self.called("SNP_LAUNCH_FINISH");
        state.snp.launch_finish(finish, id, &state.vcpus)
    }

    fn snp_enable_req_certs(&self) -> Answer {
        let state = self.called("SNP_ENABLE_REQ_CERTS");
        refuse_unless(state.host.certificates, libc::EINVAL)
    }

    fn tdx_capabilities(&self, capabilities: &mut TdxCapabilities) -> Answer {
        let state = self.called("TDX_CAPABILITIES");
        tdx::capabilities(capabilities, &state.host)
    }

    fn tdx_init_vm(&self, init: &TdxInitVm) -> Answer {
        let state = &mut *self.called("TDX_INIT_VM");
        refuse_unless(state.vm_type == super::abi::VM_TYPE_TDX, libc::EINVAL)?;
        state.tdx.init_vm(init, &state.host, state.vcpus.len())
    }

    fn tdx_init_vcpu(&self, vcpu: u32, _rcx: u64) -> Answer {
        let state = &mut *self.called("TDX_INIT_VCPU");
        refuse_unless(state.tdx.is_initialised(), libc::EINVAL)?;
        let vcpu = state.vcpus.get_mut(vcpu as usize).ok_or(INVALID)?;
        refuse_unless(!vcpu.td_initialised && vcpu.x2apic, libc::EINVAL)?;
        vcpu.td_initialised = true;
        Ok(())
    }

    fn tdx_init_mem_region(
        &self,
        vcpu: u32,
        region: &mut TdxInitMemRegion,
        flags: u32,
        source: &mut [Page],
    ) -> Answer {
        let state = &mut *self.called("TDX_INIT_MEM_REGION");
        let ready = state.vcpus.get(vcpu as usize).is_some_and(|vcpu| vcpu.td_initialised);
        refuse_unless(ready, libc::EINVAL)?;
        state.tdx.init_mem_region(region, flags, source, &mut state.memory, &state.host)
    }

    fn tdx_finalize(&self) -> Answer {
        self.called("TDX_FINALIZE_VM").tdx.finalize()
    }
}
