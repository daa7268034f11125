//! The #VE exception: the TDX module tells the guest that it does not answer an instruction itself.
//!
//! stage0 asks for nothing that the host would have to answer. CPUID leaves that the module leaves to the guest are zero
//! here, which is what a processor says to a leaf that it does not have; everything else ends the guest.

use kata_cc_stage0_abi::Termination;

use super::instructions::{Instructions, Registers};
use crate::exception::{CPUID, Frame};

/// TDG.VP.VEINFO.GET.
const LEAF_VE_INFO: u64 = 3;
/// Exit reason of CPUID (SDM volume 3, appendix C).
const EXIT_CPUID: u64 = 10;
/// Exit reason of an EPT violation: memory that was never accepted, or was taken away.
const EXIT_EPT_VIOLATION: u64 = 48;

/// Answers the exception.
///
/// # Errors
/// With what the guest ends; nothing was changed then.
pub fn handle(
    hardware: &impl Instructions,
    frame: &mut Frame,
    instruction: [u8; 2],
) -> Result<(), Termination> {
    let mut registers = Registers::default();
    // Also allows the next #VE: until it is asked, another one is a double fault.
    if hardware.tdcall(LEAF_VE_INFO, &mut registers) != 0 {
        return Err(Termination::TdxModule);
    }
    match registers.rcx & 0xFFFF_FFFF {
        EXIT_CPUID if instruction == CPUID => {
            *frame = Frame { rip: frame.rip.wrapping_add(CPUID.len() as u64), ..Frame::default() };
            Ok(())
        }
        EXIT_EPT_VIOLATION => Err(Termination::ValidationFailed),
        _ => Err(Termination::UnexpectedException),
    }
}
