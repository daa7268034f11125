//! Calls of the TDX module and, through it, of the host.
//!
//! The module's answers can be believed. The host's cannot: of them only "done" and "done up to here" are used, and
//! "here" must lie where it can.

use kata_cc_stage0_abi::Termination;

use super::error::Error;
use super::instructions::{Instructions, Registers};
use crate::platform::{PhysRange, layout};

const LEAF_VMCALL: u64 = 0;
const LEAF_INFO: u64 = 1;
const LEAF_ACCEPT: u64 = 6;

/// Registers that a host call shares: R10 to R15.
const EXPOSE_R10_R15: u64 = 0xFC00;
/// RDX, RBX, RSI, RDI, R8, R9 too: the words of a fatal error.
const EXPOSE_MESSAGE: u64 = EXPOSE_R10_R15 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9;

const VMCALL_MAP_GPA: u64 = 0x1_0001;
const VMCALL_FATAL_ERROR: u64 = 0x1_0003;
/// Answer of MapGPA: done up to R11.
const VMCALL_RETRY: u64 = 1;

/// Upper halves of status codes (TDX module ABI, "TDCALL completion status codes").
const PAGE_ALREADY_ACCEPTED: u64 = 0x0000_0B0A;
const PAGE_SIZE_MISMATCH: u64 = 0xC000_0B0B;

/// How often in a row the host may come back from a mapping without progress.
const MAX_STALLS: u32 = 64;

fn module(hardware: &impl Instructions, leaf: u64, registers: &mut Registers) -> Result<(), Error> {
    match hardware.tdcall(leaf, registers) {
        0 => Ok(()),
        status => Err(Error::Module { leaf, status }),
    }
}

/// What the module tells of this trust domain and vCPU (TDG.VP.INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Width of guest physical addresses, the shared bit counted.
    pub address_width: u64,
    /// ATTRIBUTES.
    pub attributes: u64,
    /// vCPUs that exist.
    pub vcpus: u64,
    /// Number of this one.
    pub index: u64,
}

/// Asks the module.
pub fn info(hardware: &impl Instructions) -> Result<Info, Error> {
    let mut registers = Registers::default();
    module(hardware, LEAF_INFO, &mut registers)?;
    Ok(Info {
        address_width: registers.rcx & 0x3F,
        attributes: registers.rdx,
        vcpus: registers.r8 & 0xFFFF_FFFF,
        index: registers.r9 & 0xFFFF_FFFF,
    })
}

/// Has the host map a range as shared or as private (GHCI, MapGPA). `shared` is the shared bit, or 0 for private.
pub fn map_gpa(hardware: &impl Instructions, range: PhysRange, shared: u64) -> Result<(), Error> {
    let end = range.end() | shared;
    let (mut next, mut stalls) = (range.start() | shared, 0);
    while next < end {
        let mut registers = Registers {
            rcx: EXPOSE_R10_R15,
            r11: VMCALL_MAP_GPA,
            r12: next,
            r13: end - next,
            ..Registers::default()
        };
        module(hardware, LEAF_VMCALL, &mut registers)?;
        let Registers { r10: status, r11: reached, .. } = registers;
        match status {
            0 => return Ok(()),
            VMCALL_RETRY => {}
            refused => return Err(Error::MapGpa(refused)),
        }
        if !(next..end).contains(&reached) || !reached.is_multiple_of(layout::PAGE_SIZE) {
            return Err(Error::MapGpaCursor(reached));
        }
        stalls = if reached == next { stalls + 1 } else { 0 };
        if stalls > MAX_STALLS {
            return Err(Error::MapGpaStalled);
        }
        next = reached;
    }
    Ok(())
}

/// Accepts private memory that the host has added (TDG.MEM.PAGE.ACCEPT): the processor zeroes it, and from then on it is
/// the guest's. In steps of 2 MiB where the host has mapped such pages.
pub fn accept(hardware: &impl Instructions, range: PhysRange) -> Result<(), Error> {
    range.steps().try_for_each(|(page, large)| accept_page(hardware, page, large))
}

fn accept_page(hardware: &impl Instructions, page: u64, large: bool) -> Result<(), Error> {
    // Bits 2:0: 0 for 4 KiB, 1 for 2 MiB.
    let mut registers = Registers { rcx: page | u64::from(large), ..Registers::default() };
    let status = hardware.tdcall(LEAF_ACCEPT, &mut registers);
    match (status, status >> 32) {
        (0, _) => Ok(()),
        (_, PAGE_SIZE_MISMATCH) if large => (page..page + layout::LARGE_PAGE)
            .step_by(layout::PAGE_SIZE as usize)
            .try_for_each(|page| accept_page(hardware, page, false)),
        (_, PAGE_ALREADY_ACCEPTED) => Err(Error::AlreadyAccepted(page)),
        _ => Err(Error::Module { leaf: LEAF_ACCEPT, status }),
    }
}

/// Ends the guest with a number and up to 64 bytes of words (GHCI, ReportFatalError), and never goes on.
pub fn terminate(hardware: &impl Instructions, why: Termination) -> ! {
    let mut words = [0_u64; 8];
    for (word, bytes) in words.iter_mut().zip(why.name().as_bytes().chunks(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    let [r14, r15, rbx, rdi, rsi, r8, r9, rdx] = words;
    loop {
        let (r11, r12) = (VMCALL_FATAL_ERROR, why.code().into());
        let mut registers = Registers {
            rcx: EXPOSE_MESSAGE,
            r11,
            r12,
            r14,
            r15,
            rbx,
            rdi,
            rsi,
            r8,
            r9,
            rdx,
            ..Registers::default()
        };
        hardware.tdcall(LEAF_VMCALL, &mut registers);
        hardware.halt();
    }
}
