//! What #VC ([`crate::snp::vc`]) and #VE ([`crate::tdx::ve`]) have in common: CPUID is the one instruction that both answer.

/// The CPUID instruction.
pub const CPUID: [u8; 2] = [0x0F, 0xA2];

/// The registers that CPUID reads and writes, as the exception's entry code saves them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// RAX
    pub rax: u64,
    /// RBX
    pub rbx: u64,
    /// RCX
    pub rcx: u64,
    /// RDX
    pub rdx: u64,
    /// RIP
    pub rip: u64,
}
