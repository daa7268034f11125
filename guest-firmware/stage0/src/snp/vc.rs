//! The #VC exception: the processor tells the guest that an instruction would have gone to the host.
//!
//! stage0 runs no such instruction on purpose but CPUID, and answers that from the CPUID page. Everything else ends
//! the guest: a handler that emulates I/O, MSRs or MMIO is what WeSee (CVE-2024-25742) makes a host's arm of, by
//! raising #VC where nothing asked for it. For the same reason the instruction is looked at, not only the exit code.

use kata_cc_stage0_abi::Termination;

use super::cpuid::CpuidTable;
use crate::exception::{CPUID, Frame};

/// Exit code of CPUID (APM volume 2, appendix C).
const EXIT_CPUID: u64 = 0x72;
/// Exit code of an access to a page whose validation is gone (GHCB specification, section 2.3.3).
const EXIT_PAGE_NOT_VALIDATED: u64 = 0x404;

/// Answers the exception: registers of CPUID, and on behind it.
///
/// # Errors
/// With what the guest ends; nothing was changed then.
pub fn handle(
    frame: &mut Frame,
    exit_code: u64,
    instruction: [u8; 2],
    table: &CpuidTable<'_>,
) -> Result<(), Termination> {
    match exit_code {
        EXIT_CPUID if instruction == CPUID => {
            let answer = table.lookup(frame.rax as u32, frame.rcx as u32);
            // In 64-bit mode CPUID clears the upper halves.
            frame.rax = answer.eax.into();
            frame.rbx = answer.ebx.into();
            frame.rcx = answer.ecx.into();
            frame.rdx = answer.edx.into();
            frame.rip = frame.rip.wrapping_add(CPUID.len() as u64);
            Ok(())
        }
        EXIT_PAGE_NOT_VALIDATED => Err(Termination::ValidationFailed),
        _ => Err(Termination::UnexpectedException),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpuid::tests::milan;
    use super::*;

    fn at(leaf: u32) -> Frame {
        Frame {
            rax: 0xFFFF_FFFF_0000_0000 | u64::from(leaf),
            rcx: 0xAAAA_AAAA_0000_0000,
            rip: 0x1000,
            ..Frame::default()
        }
    }

    #[test]
    fn cpuid_is_answered_from_the_page() {
        let page = milan().page();
        let table = CpuidTable::parse(&page).expect("page");
        let mut frame = at(0);
        handle(&mut frame, EXIT_CPUID, CPUID, &table).expect("CPUID");
        let expected = Frame { rax: 0x10, rbx: 0x6874_7541, rcx: 0x444D_4163, rdx: 0x6974_6E65, rip: 0x1002 };
        assert_eq!(frame, expected, "upper halves are cleared");
        let mut frame = at(0x15);
        handle(&mut frame, EXIT_CPUID, CPUID, &table).expect("a leaf that is not there");
        assert_eq!(frame, Frame { rip: 0x1002, ..Frame::default() });
    }

    #[test]
    fn an_exception_that_the_host_made_up_ends_the_guest() {
        let page = milan().page();
        let table = CpuidTable::parse(&page).expect("page");
        let mut frame = at(0);
        let refused = handle(&mut frame, EXIT_CPUID, [0x48, 0x89], &table);
        assert_eq!((refused, frame), (Err(Termination::UnexpectedException), at(0)), "no CPUID stands there");
    }

    #[test]
    fn every_other_exit_code_ends_the_guest() {
        let page = milan().page();
        let table = CpuidTable::parse(&page).expect("page");
        for exit_code in (0..0x500).filter(|code| *code != EXIT_CPUID) {
            let mut frame = at(0);
            let expected = if exit_code == EXIT_PAGE_NOT_VALIDATED {
                Termination::ValidationFailed
            } else {
                Termination::UnexpectedException
            };
            assert_eq!(handle(&mut frame, exit_code, CPUID, &table), Err(expected), "{exit_code:#x}");
            assert_eq!(frame, at(0));
        }
    }
}
