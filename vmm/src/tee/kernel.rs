//! [`TeeIoctls`] by the kernel.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kata_cc_devices::Memory;
use kvm_bindings::{
    CpuId, KVM_MEM_GUEST_MEMFD, KVM_X86_GRP_SEV, kvm_create_guest_memfd, kvm_device_attr, kvm_enable_cap,
    kvm_memory_attributes, kvm_msi, kvm_regs, kvm_sev_cmd, kvm_sev_init, kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start, kvm_sev_snp_launch_update, kvm_sregs, kvm_userspace_memory_region2,
    sev_cmd_id_KVM_SEV_INIT2, sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, sev_cmd_id_KVM_SEV_SNP_LAUNCH_START,
    sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use crate::error::VmmError;
use crate::kvm::start;

use super::abi::{
    SEV_SNP_ENABLE_REQ_CERTS, TdxCapabilities, TdxCmd, TdxCommand, TdxInitMemRegion, TdxInitVm,
};
use super::ioctls::{IdPages, Page, Refusal, Side, TeeIoctls};

#[allow(missing_docs, reason = "numbers of the kernel's calls, made by macros")]
mod calls {
    use super::{ioctl_iow_nr, ioctl_iowr_nr, kvm_device_attr};

    const KVMIO: u32 = 0xAE;
    ioctl_iowr_nr!(KVM_MEMORY_ENCRYPT_OP, KVMIO, 0xBA, libc::c_ulong);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xE2, kvm_device_attr);
}
use calls::{KVM_GET_DEVICE_ATTR, KVM_MEMORY_ENCRYPT_OP};

/// A guest_memfd and the guest range that it backs.
struct PrivateMemory {
    descriptor: OwnedFd,
    gpa: u64,
    size: u64,
}

/// A VM of the kernel's.
pub struct KernelIoctls {
    kvm: Kvm,
    vm: VmFd,
    /// `/dev/sev`, through which KVM checks that this process may use the security processor.
    sev: Option<File>,
    vcpus: Mutex<Vec<VcpuFd>>,
    private: Mutex<Vec<PrivateMemory>>,
    /// Shared halves of slots outside of RAM.
    extra: Mutex<Vec<MmapRegion>>,
    // mapped as long as KVM may use it
    memory: Memory,
}

impl KernelIoctls {
    /// As [`Self::create`], with `/dev/kvm` as it is here.
    ///
    /// # Errors
    /// As there.
    pub fn open(vm_type: u64, memory: Memory) -> Result<Self, Refusal> {
        Self::create(Kvm::new().map_err(refusal)?, vm_type, memory)
    }

    /// A VM of a type, with the shared half of its RAM. `/dev/sev` is opened when there is one.
    ///
    /// # Errors
    /// When KVM does not make such a VM.
    pub fn create(kvm: Kvm, vm_type: u64, memory: Memory) -> Result<Self, Refusal> {
        let vm = create_vm(&kvm, vm_type)?;
        let sev = File::options().read(true).write(true).open("/dev/sev").ok();
        Ok(Self {
            kvm,
            vm,
            sev,
            vcpus: Mutex::default(),
            private: Mutex::default(),
            extra: Mutex::default(),
            memory,
        })
    }

    /// `/dev/kvm`.
    pub(crate) const fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The VM.
    pub(crate) const fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// Its RAM: all of it, or the shared half.
    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The vCPUs, in order, to be run.
    #[must_use]
    pub fn take_vcpus(&self) -> Vec<VcpuFd> {
        std::mem::take(&mut *lock(&self.vcpus))
    }

    /// Address of the shared half of a slot in this process.
    fn shared_address(&self, gpa: u64, size: u64) -> Result<u64, Refusal> {
        let ram = self.memory.memory();
        let region = ram.iter().find(|region| {
            let start = region.start_addr().0;
            start <= gpa && gpa.saturating_add(size) <= start.saturating_add(region.len())
        });
        if let Some(region) = region {
            return Ok(region.as_ptr() as u64 + (gpa - region.start_addr().0));
        }
        let size = usize::try_from(size).map_err(|_| Refusal::kernel(libc::ENOMEM))?;
        let mapping = MmapRegion::<()>::new(size).map_err(|_| Refusal::kernel(libc::ENOMEM))?;
        let address = mapping.as_ptr() as u64;
        lock(&self.extra).push(mapping);
        Ok(address)
    }

    /// `KVM_MEMORY_ENCRYPT_OP` with a SEV command whose argument is `data`.
    #[allow(unsafe_code)]
    fn sev_command<T>(&self, id: u32, data: Option<&mut T>) -> Result<(), Refusal> {
        let sev = self.sev.as_ref().ok_or(Refusal::kernel(libc::ENODEV))?;
        let mut command = kvm_sev_cmd {
            id,
            data: data.map_or(0, |data| std::ptr::from_mut(data) as u64),
            sev_fd: sev.as_raw_fd() as u32,
            ..Default::default()
        };
        // SAFETY: the kernel reads and writes `command` and the structure that belongs to `id`, which callers in
        // this file pass; both live until it returns.
        let result = unsafe { self.vm.encrypt_op(&raw mut command) };
        result.map_err(|error| Refusal { errno: error.errno(), firmware: command.error.into() })
    }

    /// `KVM_MEMORY_ENCRYPT_OP` of TDX on the VM.
    #[allow(unsafe_code)]
    fn tdx_command(&self, id: TdxCommand, data: u64) -> Result<(), Refusal> {
        let mut command = TdxCmd { id: id as u32, flags: 0, data, hw_error: 0 };
        // SAFETY: as for SEV: `data` is 0 or the address of the command's structure, alive in the caller.
        let result = unsafe { self.vm.encrypt_op(&raw mut command) };
        result.map_err(|error| Refusal { errno: error.errno(), firmware: command.hw_error })
    }

    /// `KVM_MEMORY_ENCRYPT_OP` of TDX on a vCPU.
    #[allow(unsafe_code)]
    fn tdx_vcpu_command(&self, vcpu: u32, mut command: TdxCmd) -> Result<(), Refusal> {
        let vcpus = lock(&self.vcpus);
        let vcpu = vcpus.get(vcpu as usize).ok_or(Refusal::kernel(libc::ENOENT))?;
        // SAFETY: the kernel reads and writes `command` and, for INIT_MEM_REGION, the structure and the source
        // pages that the caller keeps alive and exclusive.
        let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_MEMORY_ENCRYPT_OP(), &mut command) };
        if result == 0 {
            return Ok(());
        }
        Err(Refusal { errno: last_errno(), firmware: command.hw_error })
    }

    fn with_vcpu<T>(
        &self,
        vcpu: u32,
        call: impl FnOnce(&VcpuFd) -> Result<T, kvm_ioctls::Error>,
    ) -> Result<T, Refusal> {
        let vcpus = lock(&self.vcpus);
        let vcpu = vcpus.get(vcpu as usize).ok_or(Refusal::kernel(libc::ENOENT))?;
        call(vcpu).map_err(refusal)
    }
}

/// How often `KVM_CREATE_VM` is tried again when a signal or load interrupts it.
const CREATE_ATTEMPTS: u32 = 5;

fn create_vm(kvm: &Kvm, vm_type: u64) -> Result<VmFd, Refusal> {
    let mut attempt = 1;
    loop {
        match kvm.create_vm_with_type(vm_type) {
            Err(e) if e.errno() == libc::EINTR && attempt < CREATE_ATTEMPTS => {
                std::thread::sleep(std::time::Duration::from_micros(1 << attempt));
                attempt += 1;
            }
            other => return other.map_err(refusal),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refusal(error: kvm_ioctls::Error) -> Refusal {
    Refusal::kernel(error.errno())
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Pages that the kernel reads from; none for an empty source.
fn source_address(source: &mut [Page]) -> u64 {
    if source.is_empty() { 0 } else { source.as_mut_ptr() as u64 }
}

impl TeeIoctls for KernelIoctls {
    fn capability(&self, capability: u32) -> u32 {
        u32::try_from(self.vm.check_extension_raw(capability.into())).unwrap_or_default()
    }

    fn enable_capability(&self, capability: u32, argument: u64) -> Result<(), Refusal> {
        let enable = kvm_enable_cap { cap: capability, args: [argument, 0, 0, 0], ..Default::default() };
        self.vm.enable_cap(&enable).map_err(refusal)
    }

    #[allow(unsafe_code)]
    fn create_guest_memfd(&self, size: u64) -> Result<u32, Refusal> {
        let request = kvm_create_guest_memfd { size, ..Default::default() };
        let descriptor = self.vm.create_guest_memfd(request).map_err(refusal)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        lock(&self.private).push(PrivateMemory { descriptor: owned, gpa: 0, size: 0 });
        u32::try_from(descriptor).map_err(|_| Refusal::kernel(libc::EBADF))
    }

    #[allow(unsafe_code)]
    fn set_memory_region(&self, slot: u32, gpa: u64, size: u64, guest_memfd: u32) -> Result<(), Refusal> {
        let region = kvm_userspace_memory_region2 {
            slot,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: self.shared_address(gpa, size)?,
            guest_memfd_offset: 0,
            guest_memfd,
            ..Default::default()
        };
        // SAFETY: the mapping spans the region and lives as long as the VM: `self` owns both, and the memory of a
        // running VM is never replaced.
        unsafe { self.vm.set_user_memory_region2(region) }.map_err(refusal)?;
        for memory in lock(&self.private).iter_mut() {
            if u32::try_from(memory.descriptor.as_raw_fd()) == Ok(guest_memfd) {
                (memory.gpa, memory.size) = (gpa, size);
            }
        }
        Ok(())
    }

    fn set_memory_attributes(&self, attributes: &kvm_memory_attributes) -> Result<(), Refusal> {
        self.vm.set_memory_attributes(*attributes).map_err(refusal)
    }

    #[allow(unsafe_code)]
    fn discard(&self, gpa: u64, size: u64, side: Side) -> Result<(), Refusal> {
        let too_large = |_| Refusal::kernel(libc::EINVAL);
        let result = match side {
            Side::Private => {
                let private = lock(&self.private);
                let memory = private
                    .iter()
                    .find(|memory| memory.gpa <= gpa && gpa + size <= memory.gpa + memory.size)
                    .ok_or(Refusal::kernel(libc::ENOENT))?;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let offset = i64::try_from(gpa - memory.gpa).map_err(too_large)?;
                let length = i64::try_from(size).map_err(too_large)?;
                // SAFETY: a system call on a descriptor of ours; no memory of this process is touched.
                unsafe { libc::fallocate(memory.descriptor.as_raw_fd(), mode, offset, length) }
            }
            Side::Shared => {
                let address = self.shared_address(gpa, size)?;
                let length = usize::try_from(size).map_err(|_| Refusal::kernel(libc::EINVAL))?;
                // SAFETY: the range is whole pages of our own private mapping of guest memory, which is accessed
                // as volatile bytes only; it reads as zeros afterwards.
                unsafe { libc::madvise(address as *mut libc::c_void, length, libc::MADV_DONTNEED) }
            }
        };
        if result == 0 { Ok(()) } else { Err(Refusal::kernel(last_errno())) }
    }

    fn write_shared(&self, gpa: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let written = self.memory.memory().write_slice(bytes, GuestAddress(gpa));
        written.map_err(|_| Refusal::kernel(libc::EFAULT))
    }

    fn read_shared(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), Refusal> {
        let read = self.memory.memory().read_slice(bytes, GuestAddress(gpa));
        read.map_err(|_| Refusal::kernel(libc::EFAULT))
    }

    fn signal_msi(&self, address: u32, data: u32) -> Result<(), Refusal> {
        // how many took it: none is no error, since a vCPU may have its APIC off
        let message = kvm_msi { address_lo: address, data, ..Default::default() };
        self.vm.signal_msi(message).map(drop).map_err(refusal)
    }

    fn create_vcpu(&self, vcpu: u32) -> Result<(), Refusal> {
        let mut vcpus = lock(&self.vcpus);
        if vcpus.len() as u64 != u64::from(vcpu) {
            return Err(Refusal::kernel(libc::EINVAL));
        }
        vcpus.push(self.vm.create_vcpu(vcpu.into()).map_err(refusal)?);
        Ok(())
    }

    fn set_cpuid(&self, vcpu: u32, cpuid: &CpuId) -> Result<(), Refusal> {
        self.with_vcpu(vcpu, |vcpu| vcpu.set_cpuid2(cpuid))
    }

    fn set_reset_state(&self, vcpu: u32) -> Result<(), Refusal> {
        let vcpus = lock(&self.vcpus);
        let vcpu = vcpus.get(vcpu as usize).ok_or(Refusal::kernel(libc::ENOENT))?;
        start::set_msrs(vcpu).and_then(|()| start::set_lapic(vcpu)).map_err(|error| match error {
            VmmError::Kvm { source, .. } => refusal(source),
            _ => Refusal::kernel(libc::EINVAL),
        })
    }

    fn sregs(&self, vcpu: u32) -> Result<kvm_sregs, Refusal> {
        self.with_vcpu(vcpu, VcpuFd::get_sregs)
    }

    fn set_registers(&self, vcpu: u32, sregs: &kvm_sregs, regs: &kvm_regs) -> Result<(), Refusal> {
        self.with_vcpu(vcpu, |vcpu| {
            vcpu.set_sregs(sregs)?;
            vcpu.set_regs(regs)
        })
    }

    #[allow(unsafe_code)]
    fn sev_attribute(&self, attribute: u64) -> Result<u64, Refusal> {
        let mut value = 0u64;
        let request = kvm_device_attr {
            group: KVM_X86_GRP_SEV,
            attr: attribute,
            addr: std::ptr::from_mut(&mut value) as u64,
            flags: 0,
        };
        // SAFETY: attributes of this group are 64 bits wide; `value` lives until the call returns.
        let result = unsafe { ioctl_with_ref(&self.kvm, KVM_GET_DEVICE_ATTR(), &request) };
        if result == 0 { Ok(value) } else { Err(Refusal::kernel(last_errno())) }
    }

    fn sev_init2(&self, init: &kvm_sev_init) -> Result<(), Refusal> {
        self.sev_command(sev_cmd_id_KVM_SEV_INIT2, Some(&mut init.clone()))
    }

    fn snp_launch_start(&self, start: &kvm_sev_snp_launch_start) -> Result<(), Refusal> {
        self.sev_command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, Some(&mut start.clone()))
    }

    fn snp_launch_update(
        &self,
        update: &mut kvm_sev_snp_launch_update,
        source: &mut [Page],
    ) -> Result<(), Refusal> {
        // the kernel reads `len` bytes of the source
        if !source.is_empty() && (source.len() as u64) < update.len / 4096 {
            return Err(Refusal::kernel(libc::EINVAL));
        }
        update.uaddr = source_address(source);
        self.sev_command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, Some(update))
    }

    fn snp_launch_finish(
        &self,
        finish: &kvm_sev_snp_launch_finish,
        id: Option<IdPages<'_>>,
    ) -> Result<(), Refusal> {
        let (id_block_uaddr, id_auth_uaddr) =
            id.map_or((0, 0), |(block, auth)| (block.as_ptr() as u64, auth.as_ptr() as u64));
        let mut finish = kvm_sev_snp_launch_finish { id_block_uaddr, id_auth_uaddr, ..*finish };
        self.sev_command(sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, Some(&mut finish))
    }

    fn snp_enable_req_certs(&self) -> Result<(), Refusal> {
        self.sev_command(SEV_SNP_ENABLE_REQ_CERTS, None::<&mut u64>)
    }

    fn tdx_capabilities(&self, capabilities: &mut TdxCapabilities) -> Result<(), Refusal> {
        // the structure has room for every number of entries that the kernel writes
        self.tdx_command(TdxCommand::Capabilities, std::ptr::from_mut(capabilities) as u64)
    }

    fn tdx_init_vm(&self, init: &TdxInitVm) -> Result<(), Refusal> {
        self.tdx_command(TdxCommand::InitVm, std::ptr::from_ref(init) as u64)
    }

    fn tdx_init_vcpu(&self, vcpu: u32, rcx: u64) -> Result<(), Refusal> {
        let command = TdxCmd { id: TdxCommand::InitVcpu as u32, flags: 0, data: rcx, hw_error: 0 };
        self.tdx_vcpu_command(vcpu, command)
    }

    fn tdx_init_mem_region(
        &self,
        vcpu: u32,
        region: &mut TdxInitMemRegion,
        flags: u32,
        source: &mut [Page],
    ) -> Result<(), Refusal> {
        // the kernel reads `nr_pages` pages of the source
        if (source.len() as u64) < region.nr_pages {
            return Err(Refusal::kernel(libc::EINVAL));
        }
        region.source_addr = source_address(source);
        let data = std::ptr::from_mut(region) as u64;
        let id = TdxCommand::InitMemRegion as u32;
        self.tdx_vcpu_command(vcpu, TdxCmd { id, flags, data, hw_error: 0 })
    }

    fn tdx_finalize(&self) -> Result<(), Refusal> {
        self.tdx_command(TdxCommand::FinalizeVm, 0)
    }
}

#[cfg(test)]
mod tests {
    use kata_cc_devices::GuestRam;
    use kvm_bindings::{KVM_CAP_GUEST_MEMFD, KVM_CAP_VM_TYPES, KVM_X86_SW_PROTECTED_VM};

    use super::*;
    use crate::tee::memory::{Conversion, MemoryBook};
    use crate::tee::{convert, prepare_memory};

    const MIB: u64 = 1 << 20;

    /// A VM that KVM protects by software alone, where this kernel has such VMs: guest_memfd, slots and attributes
    /// are the same as under SNP and TDX.
    fn software_protected() -> Option<KernelIoctls> {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let plain = KernelIoctls::open(0, Memory::new(ram.clone())).ok()?;
        let types = plain.capability(KVM_CAP_VM_TYPES);
        if types >> KVM_X86_SW_PROTECTED_VM & 1 == 0 || plain.capability(KVM_CAP_GUEST_MEMFD) == 0 {
            return None;
        }
        KernelIoctls::open(KVM_X86_SW_PROTECTED_VM.into(), Memory::new(ram)).ok()
    }

    #[test]
    fn memory_is_made_private_and_given_back_by_the_real_kernel() {
        let Some(io) = software_protected() else {
            println!("skipped: this kernel has no software-protected VMs");
            return;
        };
        let mut book = MemoryBook::new(&[(0, 8 * MIB)]);
        prepare_memory(&io, &mut book, &[(2 * MIB, MIB)]).unwrap();
        io.write_shared(2 * MIB, &[7; 4096]).unwrap();
        let private = Conversion { gpa: 2 * MIB, size: MIB, private: true };
        convert(&io, &mut book, &private).unwrap();
        let mut seen = [1; 16];
        io.memory.memory().read_slice(&mut seen, GuestAddress(2 * MIB)).unwrap();
        assert_eq!(seen, [0; 16], "the shared copy is gone");
        convert(&io, &mut book, &Conversion { private: false, ..private }).unwrap();
        assert_eq!(book.check_shared(2 * MIB, MIB), Ok(()));
        assert_eq!(io.create_guest_memfd(100), Err(Refusal::kernel(libc::EINVAL)));
        let memfd = io.create_guest_memfd(MIB).unwrap();
        assert_eq!(io.set_memory_region(7, 4 * MIB, MIB, memfd), Err(Refusal::kernel(libc::EEXIST)));
    }

    #[test]
    fn what_this_host_lacks_is_an_error_and_no_panic() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let Ok(io) = KernelIoctls::open(0, Memory::new(ram)) else {
            println!("skipped: no KVM");
            return;
        };
        assert!(io.sev_init2(&kvm_sev_init::default()).is_err());
        assert!(io.tdx_finalize().is_err());
        assert_eq!(io.tdx_init_vcpu(0, 0), Err(Refusal::kernel(libc::ENOENT)));
        let mut update = kvm_sev_snp_launch_update { len: 8192, ..Default::default() };
        let short = io.snp_launch_update(&mut update, &mut [Page([0; 4096])]);
        assert_eq!(short, Err(Refusal::kernel(libc::EINVAL)), "the source is shorter than the range");
    }
}
