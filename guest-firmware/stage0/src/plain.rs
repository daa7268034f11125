//! A machine without a TEE, or with a simulated one: memory is private when it is there, and the host is
//! told of a refusal by a write to a port.
//!
//! A boot block that names no TEE is refused in one: its launch digest is registered as a simulated guest's at most, and
//! this is the second lock. Under SNP the entry code finds out, before there are page tables (without the C-bit in them
//! every datum would be the host's). A trust domain has no such haste, since what lacks the shared bit is private.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

use crate::platform::{BootBlock, Handover, PhysRange, Platform, PlatformError, Termination, layout};
use crate::port;

/// Leaf in which the TDX module, and nobody else, answers with [`TDX_NAME`] (348551, "CPUID virtualization").
const LEAF_TDX: u32 = 0x21;
/// EBX, EDX, ECX.
const TDX_NAME: [[u8; 4]; 3] = [*b"Inte", *b"lTDX", *b"    "];

/// The CPUID instruction.
pub type Cpuid = fn(u32, u32) -> CpuidResult;

/// No TEE.
#[derive(Debug)]
pub struct Plain {
    cpuid: Cpuid,
}

impl Default for Plain {
    fn default() -> Self {
        Self { cpuid: |leaf, subleaf| __cpuid_count(leaf, subleaf) }
    }
}

impl Plain {
    /// Whether this is a trust domain, whatever the boot block says. A processor without the leaf answers with another
    /// one's content or with zeros (SDM volume 2, CPUID), so its number need not be asked for first.
    #[must_use]
    pub fn is_trust_domain(&self) -> bool {
        let CpuidResult { ebx, ecx, edx, .. } = (self.cpuid)(LEAF_TDX, 0);
        [ebx, edx, ecx].map(u32::to_le_bytes) == TDX_NAME
    }
}

/// Gives the host a [`Termination`]'s number by the port, and halts: what a VMM sees that does not know the port.
pub fn end(number: u8) -> ! {
    port::write(layout::TERMINATION_PORT, number.into());
    port::halt()
}

impl Platform for Plain {
    fn init(&mut self, block: &BootBlock) -> Result<(), PlatformError> {
        if self.is_trust_domain() {
            return Err(PlatformError::UnnamedTee);
        }
        // a TEE's launch that ends here was made for another image
        if block.platform.has_memory_bit() { Err(PlatformError::PlatformMismatch) } else { Ok(()) }
    }

    fn accept(&mut self, _: PhysRange) -> Result<(), PlatformError> {
        Ok(())
    }

    fn share(&mut self, _: PhysRange) -> Result<(), PlatformError> {
        Ok(())
    }

    fn unshare(&mut self, _: PhysRange) -> Result<(), PlatformError> {
        Ok(())
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        (self.cpuid)(leaf, subleaf)
    }

    fn handover(&self) -> Handover {
        Handover::default()
    }

    fn terminate(&self, why: Termination) -> ! {
        end(why.code())
    }
}

#[cfg(test)]
mod tests {
    use kata_cc_stage0_abi::{KernelKind, PlatformKind, Sealed};

    use super::*;

    fn begin(platform: PlatformKind, cpuid: Cpuid) -> Result<(), PlatformError> {
        Plain { cpuid }.init(&BootBlock {
            platform,
            vcpus: 1,
            memory_bit: 0,
            acpi_devices: false,
            kernel_kind: KernelKind::Vmlinux,
            kernel: Sealed::default(),
            initramfs: None,
            command_line: Sealed::default(),
        })
    }

    fn named(leaf: u32, name: &[u8; 12]) -> CpuidResult {
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        let (ebx, edx, ecx) = if leaf == 0x21 { (word(0), word(4), word(8)) } else { (0, 0, 0) };
        CpuidResult { eax: 0, ebx, ecx, edx }
    }

    #[test]
    fn a_boot_block_without_a_tee_is_refused_in_a_trust_domain() {
        for platform in [PlatformKind::Plain, PlatformKind::SimSnp, PlatformKind::SimTdx] {
            let refused = begin(platform, |leaf, _| named(leaf, b"IntelTDX    "));
            assert_eq!(refused, Err(PlatformError::UnnamedTee), "{platform:?}");
        }
    }

    #[test]
    fn elsewhere_it_is_not() {
        let others: [Cpuid; 4] = [
            |_, _| CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
            |_, _| CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 },
            |leaf, _| named(leaf, b"GenuineIntel"),
            |leaf, _| named(leaf, b"IntelTDX   \0"),
        ];
        for (number, cpuid) in others.into_iter().enumerate() {
            assert_eq!(begin(PlatformKind::Plain, cpuid), Ok(()), "{number}");
        }
        assert_eq!(begin(PlatformKind::Snp, others[0]), Err(PlatformError::PlatformMismatch));
        assert_eq!(begin(PlatformKind::Tdx, others[0]), Err(PlatformError::PlatformMismatch));
    }
}
