//! Confidential launches: SEV-SNP, TDX, their simulations, and none, behind one trait.
//!
//! A launch goes through the same steps on each ([`launch`]): the VM is prepared (capabilities, policy,
//! private memory), vCPUs are made in their measured first state, the measured pages are loaded, the launch is
//! finished. Each implementation of [`Tee`] takes its pages from one description (`kata-cc-measurement`), from
//! which the digest is predicted too.
//!
//! The kernel is reached through [`ioctls::TeeIoctls`] only. Tests drive whole launches against a fake of it
//! that refuses what the kernel refuses and keeps the digest as the hardware would.
//!
//! Sources: `Documentation/virt/kvm/x86/amd-memory-encryption.rst`, `intel-tdx.rst`, the kernel's
//! `arch/x86/kvm/svm/sev.c` and `vmx/tdx.c` (Linux 6.16) for what is refused and when.
//!
//! Not verified on hardware; `docs/security-model.md` says against what it was verified.

pub mod abi;
pub mod error;
pub mod exits;
pub mod ioctls;
pub mod kernel;
pub mod memory;
mod pages;
pub mod probe;
pub mod sim;
pub mod snp;
pub mod tdx;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use kvm_bindings::{KVM_CAP_GUEST_MEMFD, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_VM_TYPES, kvm_memory_attributes};

pub use error::TeeError;
use ioctls::TeeIoctls;
use memory::{Conversion, MemoryBook};

/// Which environment protects a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum TeeKind {
    None,
    SimSnp,
    Snp,
    SimTdx,
    Tdx,
}

impl TeeKind {
    /// Name in configurations and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SimSnp => "sim-snp",
            Self::Snp => "snp",
            Self::SimTdx => "sim-tdx",
            Self::Tdx => "tdx",
        }
    }

    /// Whether the guest has memory that the host cannot reach, so that KVM has to keep it apart.
    #[must_use]
    pub const fn has_private_memory(self) -> bool {
        matches!(self, Self::Snp | Self::Tdx)
    }

    /// Type of VM that KVM has to create.
    #[must_use]
    pub const fn vm_type(self) -> u64 {
        match self {
            Self::Snp => abi::VM_TYPE_SNP,
            Self::Tdx => abi::VM_TYPE_TDX,
            Self::None | Self::SimSnp | Self::SimTdx => 0,
        }
    }
}

/// One kind of environment and what this guest is launched from. Methods are called in the order in which
/// they stand here, each once but [`Tee::start_vcpu`]; [`launch`] does that.
pub trait Tee {
    /// Which environment.
    fn kind(&self) -> TeeKind;
    /// Number of vCPUs that the launch is described for; `None` when it does not matter.
    fn vcpus(&self) -> Option<u32>;
    /// Launch digest or MRTD that this launch will have, when there is one.
    fn predicted(&self) -> Option<[u8; 48]>;
    /// Prepares the VM, before any vCPU.
    ///
    /// # Errors
    /// What the host lacks or refused; the same for all methods.
    fn prepare(&mut self, io: &dyn TeeIoctls, book: &mut MemoryBook) -> Result<(), TeeError>;
    /// Puts a new vCPU into its first state.
    ///
    /// # Errors
    /// As above.
    fn start_vcpu(&mut self, io: &dyn TeeIoctls, vcpu: u32) -> Result<(), TeeError>;
    /// Loads the measured pages.
    ///
    /// # Errors
    /// As above.
    fn load(&mut self, io: &dyn TeeIoctls) -> Result<(), TeeError>;
    /// Ends the launch: nothing is measured any more, the guest may run. The digest as far as this side knows
    /// it.
    ///
    /// # Errors
    /// As above.
    fn finish(&mut self, io: &dyn TeeIoctls) -> Result<Option<[u8; 48]>, TeeError>;
}

/// Launches a guest with `vcpus` vCPUs; its digest.
///
/// # Errors
/// What the host lacks or refused. The VM is of no use then.
pub fn launch(
    tee: &mut dyn Tee,
    io: &dyn TeeIoctls,
    book: &mut MemoryBook,
    vcpus: u32,
) -> Result<Option<[u8; 48]>, TeeError> {
    if let Some(measured) = tee.vcpus().filter(|measured| *measured != vcpus) {
        return Err(TeeError::Vcpus { vcpus, measured });
    }
    tee.prepare(io, book)?;
    for vcpu in 0..vcpus {
        io.create_vcpu(vcpu).map_err(TeeError::refused("KVM_CREATE_VCPU"))?;
        tee.start_vcpu(io, vcpu)?;
    }
    tee.load(io)?;
    tee.finish(io)
}

/// A guest without protection: plain memory, registers set by the VMM.
#[derive(Debug, Default)]
pub struct NoTee;

impl Tee for NoTee {
    fn kind(&self) -> TeeKind {
        TeeKind::None
    }

    fn vcpus(&self) -> Option<u32> {
        None
    }

    fn predicted(&self) -> Option<[u8; 48]> {
        None
    }

    fn prepare(&mut self, _: &dyn TeeIoctls, _: &mut MemoryBook) -> Result<(), TeeError> {
        Ok(())
    }

    fn start_vcpu(&mut self, _: &dyn TeeIoctls, _: u32) -> Result<(), TeeError> {
        Ok(())
    }

    fn load(&mut self, _: &dyn TeeIoctls) -> Result<(), TeeError> {
        Ok(())
    }

    fn finish(&mut self, _: &dyn TeeIoctls) -> Result<Option<[u8; 48]>, TeeError> {
        Ok(None)
    }
}

/// Checks that KVM makes such VMs and keeps private memory.
fn check_vm_type(
    io: &dyn TeeIoctls,
    vm_type: u64,
    what: &'static str,
    change: &'static str,
) -> Result<(), TeeError> {
    if io.capability(KVM_CAP_VM_TYPES) >> vm_type & 1 == 0 {
        return Err(TeeError::Lacks { what, change });
    }
    let private = u64::from(kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE);
    let attributes = u64::from(io.capability(KVM_CAP_MEMORY_ATTRIBUTES));
    if io.capability(KVM_CAP_GUEST_MEMFD) == 0 || attributes & private == 0 {
        let change = "run Linux 6.8 or later with CONFIG_KVM_GUEST_MEMFD";
        return Err(TeeError::Lacks { what: "guest_memfd with private memory attributes", change });
    }
    Ok(())
}

/// Lets the guest's requests to change pages come out to this process.
fn enable_conversions(io: &dyn TeeIoctls) -> Result<(), TeeError> {
    let wanted = 1u32 << abi::HC_MAP_GPA_RANGE;
    if io.capability(kvm_bindings::KVM_CAP_EXIT_HYPERCALL) & wanted == 0 {
        let change = "run Linux 5.14 or later";
        return Err(TeeError::Lacks { what: "KVM_CAP_EXIT_HYPERCALL for MAP_GPA_RANGE", change });
    }
    io.enable_capability(kvm_bindings::KVM_CAP_EXIT_HYPERCALL, wanted.into())
        .map_err(TeeError::refused("KVM_ENABLE_CAP KVM_CAP_EXIT_HYPERCALL"))
}

/// Memory slots with guest_memfd for all RAM, and all of it private but `shared` (start, bytes).
///
/// Private from the start, so that a guest that accepts its memory costs no exit per change; what the VMM hands
/// over is shared until the guest has copied it.
fn prepare_memory(io: &dyn TeeIoctls, book: &mut MemoryBook, shared: &[(u64, u64)]) -> Result<(), TeeError> {
    for (slot, ram) in (0u32..).zip(book.ram().to_vec()) {
        let size = ram.end - ram.start;
        let memfd = io.create_guest_memfd(size).map_err(TeeError::refused("KVM_CREATE_GUEST_MEMFD"))?;
        io.set_memory_region(slot, ram.start, size, memfd)
            .map_err(TeeError::refused("KVM_SET_USER_MEMORY_REGION2"))?;
        book.convert(&Conversion { gpa: ram.start, size, private: true })?;
    }
    for &(gpa, size) in shared {
        book.convert(&Conversion { gpa, size, private: false })?;
    }
    for range in book.private() {
        set_private(io, range.start, range.end - range.start, true)?;
    }
    Ok(())
}

fn set_private(io: &dyn TeeIoctls, address: u64, size: u64, private: bool) -> Result<(), TeeError> {
    let attributes = if private { kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE.into() } else { 0 };
    io.set_memory_attributes(&kvm_memory_attributes { address, size, attributes, flags: 0 })
        .map_err(TeeError::refused("KVM_SET_MEMORY_ATTRIBUTES"))
}

/// Serves a guest's request to change pages: enters it, tells the kernel, gives the stale pages back, so that
/// neither side keeps what the other must not see and memory is not held twice.
///
/// # Errors
/// When the request makes no sense (the guest is told so) or the kernel refuses it.
pub fn convert(io: &dyn TeeIoctls, book: &mut MemoryBook, change: &Conversion) -> Result<(), TeeError> {
    let mut next = book.clone();
    next.convert(change)?;
    set_private(io, change.gpa, change.size, change.private)?;
    *book = next;
    io.discard(change.gpa, change.size, change.stale_side()).map_err(TeeError::refused("giving pages back"))
}
