//! A machine without a TEE, or with a simulated one: memory is private when it is there, and the host is
//! told of a refusal by a write to a port.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

use crate::platform::{BootBlock, Handover, PhysRange, Platform, PlatformError, Termination, layout};
use crate::port;

/// No TEE.
#[derive(Debug, Default)]
pub struct Plain;

impl Platform for Plain {
    fn init(&mut self, block: &BootBlock) -> Result<(), PlatformError> {
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
        __cpuid_count(leaf, subleaf)
    }

    fn handover(&self) -> Handover {
        Handover::default()
    }

    fn terminate(&self, why: Termination) -> ! {
        port::write(layout::TERMINATION_PORT, why.code().into());
        // a VMM that does not know the port sees a guest that halted
        port::halt()
    }
}
