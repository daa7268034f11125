//! TDX: KVM's side and the module's.

use kvm_bindings::kvm_cpuid_entry2;

use super::memory::FakeMemory;
use super::{Answer, Host, refuse_unless, sha384};
use crate::tee::abi::{TdxCapabilities, TdxInitMemRegion, TdxInitVm};
use crate::tee::ioctls::{Page, Refusal};

/// TDX module: operand invalid (RCX tells which).
pub(crate) const OPERAND_INVALID: u64 = 0xC000_0100_0000_0000;

#[derive(PartialEq, Eq, Clone, Copy)]
enum Phase {
    None,
    Initialised,
    Runnable,
}

pub(crate) struct FakeTdx {
    phase: Phase,
    /// Everything that MRTD is the hash of.
    stream: Vec<u8>,
    pub(crate) mrtd: [u8; 48],
    pub(crate) attributes: u64,
    pub(crate) xfam: u64,
    pub(crate) mrconfigid: Option<[u8; 48]>,
}

impl Default for FakeTdx {
    fn default() -> Self {
        Self {
            phase: Phase::None,
            stream: Vec::new(),
            mrtd: [0; 48],
            attributes: 0,
            xfam: 0,
            mrconfigid: None,
        }
    }
}

/// tdx_get_capabilities: E2BIG when there is no room for all entries.
pub(super) fn capabilities(answer: &mut TdxCapabilities, host: &Host) -> Answer {
    let room = answer.cpuid.nent as usize;
    answer.cpuid.nent = host.td_cpuid.len() as u32;
    refuse_unless(host.td_cpuid.len() <= room, libc::E2BIG)?;
    answer.supported_attrs = host.td_attributes;
    answer.supported_xfam = host.td_xfam;
    answer.tdvmcall_info = host.tdvmcalls;
    answer.cpuid.entries[..host.td_cpuid.len()].copy_from_slice(&host.td_cpuid);
    Ok(())
}

impl FakeTdx {
    pub(super) fn is_initialised(&self) -> bool {
        self.phase == Phase::Initialised
    }

    /// tdx_td_init and setup_tdparams: once, before any vCPU, nothing reserved, attributes and XFAM within what
    /// is offered, no CPUID bit that may not be chosen.
    pub(super) fn init_vm(&mut self, init: &TdxInitVm, host: &Host, vcpus: usize) -> Answer {
        refuse_unless(self.phase == Phase::None, libc::EINVAL)?;
        refuse_unless(init.cpuid.nent <= 256, libc::E2BIG)?;
        refuse_unless(init.reserved == [0; 12] && init.cpuid.padding == 0, libc::EINVAL)?;
        refuse_unless(vcpus == 0, libc::EBUSY)?;
        refuse_unless(init.attributes & !host.td_attributes == 0, libc::EINVAL)?;
        refuse_unless(init.xfam & !host.td_xfam == 0 && init.xfam & 3 == 3, libc::EINVAL)?;
        let allowed = |entry: &kvm_cpuid_entry2| {
            host.td_cpuid.iter().any(|mask| {
                (mask.function, mask.index) == (entry.function, entry.index)
                    && entry.eax & !mask.eax == 0
                    && entry.ebx & !mask.ebx == 0
                    && entry.ecx & !mask.ecx == 0
                    && entry.edx & !mask.edx == 0
            })
        };
        if !init.cpuid.as_slice().iter().all(allowed) {
            return Err(Refusal { errno: libc::EINVAL, firmware: OPERAND_INVALID });
        }
        (self.attributes, self.xfam) = (init.attributes, init.xfam);
        self.mrconfigid = Some(init.mrconfigid);
        self.phase = Phase::Initialised;
        Ok(())
    }

    /// tdx_vcpu_init_mem_region: before the end, known flags, whole pages, page by page.
    pub(super) fn init_mem_region(
        &mut self,
        region: &mut TdxInitMemRegion,
        flags: u32,
        source: &[Page],
        memory: &mut FakeMemory,
        host: &Host,
    ) -> Answer {
        refuse_unless(self.phase == Phase::Initialised && flags & !1 == 0, libc::EINVAL)?;
        refuse_unless(region.gpa.is_multiple_of(4096) && region.nr_pages != 0, libc::EINVAL)?;
        refuse_unless(source.len() as u64 >= region.nr_pages, libc::EINVAL)?;
        // the shared bit of a guest with 48-bit addresses
        refuse_unless(region.gpa >> 47 == 0, libc::EINVAL)?;
        refuse_unless(!host.stuck, libc::EINTR)?;
        let most = if host.pages_per_call == 0 { u64::MAX } else { host.pages_per_call };
        for (done, page) in (0..).zip(source) {
            if region.nr_pages == 0 {
                break;
            }
            if done == most {
                return Err(Refusal::kernel(if host.says_eagain { libc::EAGAIN } else { libc::EINTR }));
            }
            memory.check_populate(region.gpa / 4096)?;
            memory.populate(region.gpa / 4096);
            self.entry(b"MEM.PAGE.ADD", region.gpa);
            for (index, chunk) in page.0.chunks(256).enumerate().filter(|_| flags & 1 == 1) {
                self.entry(b"MR.EXTEND", region.gpa + 256 * index as u64);
                self.stream.extend(chunk);
            }
            region.gpa += 4096;
            region.nr_pages -= 1;
        }
        Ok(())
    }

    fn entry(&mut self, what: &[u8], gpa: u64) {
        let mut line = what.to_vec();
        line.resize(16, 0);
        line.extend(gpa.to_le_bytes());
        line.resize(128, 0);
        self.stream.extend(line);
    }

    /// tdx_td_finalize: once.
    pub(super) fn finalize(&mut self) -> Answer {
        refuse_unless(self.phase == Phase::Initialised, libc::EINVAL)?;
        self.mrtd = sha384(&self.stream);
        self.phase = Phase::Runnable;
        Ok(())
    }
}
