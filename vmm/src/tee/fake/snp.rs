//! SNP: KVM's side and the security processor's.

use kata_cc_snp::id_block::{IdAuth, IdBlock};
use kvm_bindings::{
    kvm_dtable, kvm_segment, kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
};

use super::memory::FakeMemory;
use super::{Answer, FakeVcpu, Host, refuse_unless, sha384};
use crate::tee::ioctls::{IdPages, Page, Refusal};

/// SEV firmware's status codes.
const INVALID_GUEST_STATE: u64 = 2;
const POLICY_FAILURE: u64 = 7;
const BAD_SIGNATURE: u64 = 0xA;
const BAD_MEASUREMENT: u64 = 0xB;
const INVALID_PARAM: u64 = 0x16;

#[derive(PartialEq, Eq, Clone, Copy, Debug)]
enum Phase {
    None,
    Initialised,
    Started,
    Finished,
}

pub(crate) struct FakeSnp {
    phase: Phase,
    features: u64,
    policy: u64,
    /// As the report of the guest would say it.
    pub(crate) digest: [u8; 48],
    pub(crate) host_data: [u8; 32],
    /// Pages measured, by type.
    pub(crate) updates: Vec<(u8, u64)>,
}

const fn firmware(status: u64) -> Refusal {
    Refusal { errno: libc::EIO, firmware: status }
}

impl Default for FakeSnp {
    fn default() -> Self {
        Self {
            phase: Phase::None,
            features: 0,
            policy: 0,
            digest: [0; 48],
            host_data: [0; 32],
            updates: Vec::new(),
        }
    }
}

impl FakeSnp {
    pub(super) fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// __sev_guest_init: once, before any vCPU, no flags, features within what is offered, GHCB version 2.
    pub(super) fn init2(&mut self, init: &kvm_sev_init, host: &Host, vcpus: usize) -> Answer {
        refuse_unless(vcpus == 0 && self.phase == Phase::None, libc::EINVAL)?;
        refuse_unless(init.flags == 0 && init.vmsa_features & !host.sev_features == 0, libc::EINVAL)?;
        refuse_unless(matches!(init.ghcb_version, 0 | 2), libc::EINVAL)?;
        self.features = init.vmsa_features | 1;
        self.phase = Phase::Initialised;
        Ok(())
    }

    /// snp_launch_start: once, no flags, bit 17, no unknown bits, SMT as the host has it.
    pub(super) fn launch_start(&mut self, start: &kvm_sev_snp_launch_start, host: &Host) -> Answer {
        refuse_unless(self.phase != Phase::None, libc::ENOTTY)?;
        refuse_unless(self.phase == Phase::Initialised && start.flags == 0, libc::EINVAL)?;
        let known = host.policy_bits.unwrap_or(0x1B_FFFF);
        refuse_unless(start.policy & !known == 0 && start.policy >> 17 & 1 == 1, libc::EINVAL)?;
        if host.smt && start.policy >> 16 & 1 == 0 {
            return Err(firmware(POLICY_FAILURE));
        }
        self.policy = start.policy;
        self.phase = Phase::Started;
        Ok(())
    }

    /// snp_launch_update and sev_gmem_post_populate.
    pub(super) fn launch_update(
        &mut self,
        call: &mut kvm_sev_snp_launch_update,
        source: &mut [Page],
        memory: &mut FakeMemory,
        host: &mut Host,
    ) -> Answer {
        refuse_unless(!matches!(self.phase, Phase::None | Phase::Initialised), libc::EINVAL)?;
        let aligned = call.len != 0 && call.len.is_multiple_of(4096);
        let known = matches!(call.type_, 1 | 3 | 4 | 5 | 6) && call.flags == 0;
        refuse_unless(aligned && known && memory.has_slot(call.gfn_start), libc::EINVAL)?;
        // contents for all types but zero
        refuse_unless(call.type_ == 3 || source.len() as u64 >= call.len / 4096, libc::EINVAL)?;
        refuse_unless(!host.stuck, libc::EAGAIN)?;
        let pages = call.len / 4096;
        let now = if host.pages_per_call == 0 { pages } else { pages.min(host.pages_per_call) };
        for (index, page) in (call.gfn_start..call.gfn_start + now).enumerate() {
            memory.check_populate(page)?;
            if self.phase == Phase::Finished {
                return Err(firmware(INVALID_GUEST_STATE));
            }
            if call.type_ == 6 && host.cpuid_corrections > 0 {
                host.cpuid_corrections -= 1;
                correct(&mut source[index]);
                return Err(firmware(INVALID_PARAM));
            }
            let contents = if call.type_ == 1 { sha384(&source[index].0) } else { [0; 48] };
            self.measure(call.type_, page * 4096, &contents);
            memory.populate(page);
            // the contents are encrypted in place on the way in: a caller must not count on them any more
            if let Some(page) = source.get_mut(index) {
                page.0.fill(0xEE);
            }
            call.gfn_start += 1;
            call.len -= 4096;
        }
        if call.len != 0 && host.says_eagain {
            return Err(Refusal::kernel(libc::EAGAIN));
        }
        Ok(())
    }

    /// PAGE_INFO (firmware ABI, 8.17.2).
    fn measure(&mut self, page_type: u8, gpa: u64, contents: &[u8; 48]) {
        self.updates.push((page_type, gpa));
        let mut info = self.digest.to_vec();
        info.extend(contents);
        info.extend([0x70, 0, page_type, 0, 0, 0, 0, 0]);
        info.extend(gpa.to_le_bytes());
        self.digest = sha384(&info);
    }

    /// snp_launch_finish: measures the vCPUs, then the firmware compares with the ID block.
    pub(super) fn launch_finish(
        &mut self,
        call: &kvm_sev_snp_launch_finish,
        id: Option<IdPages<'_>>,
        vcpus: &[FakeVcpu],
    ) -> Answer {
        refuse_unless(
            !matches!(self.phase, Phase::None | Phase::Initialised) && call.flags == 0,
            libc::EINVAL,
        )?;
        if self.phase == Phase::Finished {
            return Err(firmware(INVALID_GUEST_STATE));
        }
        // an enabled block without an address is a fault when the kernel copies it
        refuse_unless(id.is_some() == (call.id_block_en == 1), libc::EFAULT)?;
        for vcpu in vcpus {
            self.measure(2, 0xFFFF_FFFF_F000, &sha384(&vmsa(vcpu, self.features)));
        }
        if let Some((block, auth)) = id {
            let block = IdBlock::parse(block).map_err(|_| firmware(INVALID_PARAM))?;
            let auth = IdAuth::parse(auth).map_err(|_| firmware(INVALID_PARAM))?;
            auth.verify(&block).map_err(|_| firmware(BAD_SIGNATURE))?;
            if block.launch_digest != self.digest {
                return Err(firmware(BAD_MEASUREMENT));
            }
            if block.policy.0 != self.policy {
                return Err(firmware(POLICY_FAILURE));
            }
        }
        self.host_data = call.host_data;
        self.phase = Phase::Finished;
        Ok(())
    }
}

/// The firmware writes values that it would accept.
fn correct(page: &mut Page) {
    page.0[16 + 32] ^= 1;
}

/// sev_es_sync_vmsa: the registers that user space set, and what KVM adds to them.
fn vmsa(vcpu: &FakeVcpu, features: u64) -> Vec<u8> {
    let FakeVcpu { sregs, regs, .. } = vcpu;
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let segment = |s: &kvm_segment| {
        let attributes = u16::from(s.type_)
            | u16::from(s.s) << 4
            | u16::from(s.dpl) << 5
            | u16::from(s.present) << 7
            | u16::from(s.avl) << 8
            | u16::from(s.l) << 9
            | u16::from(s.db) << 10
            | u16::from(s.g) << 11;
        let mut bytes = s.selector.to_le_bytes().to_vec();
        bytes.extend(attributes.to_le_bytes());
        bytes.extend(s.limit.to_le_bytes());
        bytes.extend(s.base.to_le_bytes());
        bytes
    };
    let table = |t: &kvm_dtable| {
        let mut bytes = vec![0; 4];
        bytes.extend(u32::from(t.limit).to_le_bytes());
        bytes.extend(t.base.to_le_bytes());
        bytes
    };
    for (at, s) in [
        (0x00, &sregs.es),
        (0x10, &sregs.cs),
        (0x20, &sregs.ss),
        (0x30, &sregs.ds),
        (0x40, &sregs.fs),
        (0x50, &sregs.gs),
        (0x70, &sregs.ldt),
        (0x90, &sregs.tr),
    ] {
        put(at, &segment(s));
    }
    put(0x60, &table(&sregs.gdt));
    put(0x80, &table(&sregs.idt));
    for (at, value) in [
        (0xD0, sregs.efer | 0x1000),
        (0x148, sregs.cr4 | 0x40),
        (0x150, sregs.cr3),
        (0x158, sregs.cr0),
        (0x160, 0x400),
        (0x168, 0xFFFF_0FF0),
        (0x170, regs.rflags),
        (0x178, regs.rip),
        (0x1D8, regs.rsp),
        (0x1F8, regs.rax),
        (0x240, sregs.cr2),
        (0x268, 0x0007_0406_0007_0406),
        (0x308, regs.rcx),
        (0x310, regs.rdx),
        (0x318, regs.rbx),
        (0x328, regs.rbp),
        (0x330, regs.rsi),
        (0x338, regs.rdi),
        (0x340, regs.r8),
        (0x348, regs.r9),
        (0x350, regs.r10),
        (0x358, regs.r11),
        (0x360, regs.r12),
        (0x368, regs.r13),
        (0x370, regs.r14),
        (0x378, regs.r15),
        (0x3B0, features),
        (0x3E8, 1),
        (0x408, 0x1F80),
        (0x410, 0x37F),
    ] {
        put(at, &u64::to_le_bytes(value));
    }
    page
}
