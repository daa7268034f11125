//! TDCALL and what else only the processor can do, behind one trait. The only module of the folder with unsafe code.
//!
//! Sources: Intel 348551 (TDX module ABI: TDG leaves), 344426 (GHCI: TDG.VP.VMCALL).
#![allow(unsafe_code)]

use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::arch::{asm, naked_asm};

/// The registers of a TDCALL beside RAX, in the order in which the assembly loads and stores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "named as the processor names them")]
pub struct Registers {
    pub rcx: u64,
    pub rdx: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rbx: u64,
    pub rdi: u64,
    pub rsi: u64,
}

/// A digest as TDG.MR.RTMR.EXTEND takes it: 48 bytes at a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct AlignedDigest(pub [u8; 48]);

/// What the TDX side of stage0 asks of the processor.
pub trait Instructions {
    /// TDCALL: leaf in RAX, the others in and out. Answers RAX, 0 for success.
    fn tdcall(&self, leaf: u64, registers: &mut Registers) -> u64;
    /// TDG.MR.RTMR.EXTEND. Answers RAX.
    fn extend(&self, register: u32, digest: &AlignedDigest) -> u64;
    /// CPUID. Most leaves are answered by the TDX module; the rest raise #VE.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// Waits for an interrupt, of which stage0 has none enabled.
    fn halt(&self);
    /// Writes eight bytes of private memory.
    fn write_private(&self, address: u64, value: u64);
}

/// The processor itself.
#[derive(Debug)]
pub struct Processor(());

impl Processor {
    /// The processor that this code runs on.
    ///
    /// # Safety
    /// stage0 runs in ring 0 on its own page tables, private memory mapped one to one, in a trust domain; whoever gives
    /// the addresses that the methods take owns that memory.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

/// A function that loads the registers, runs the instructions, and stores the registers: with TDCALL for the processor,
/// with something that can be seen for the test.
///
/// RDI: leaf, RSI: registers. RBX, RBP and R12 to R15 belong to the caller (System V); RBP is not given to the host.
macro_rules! with_registers {
    ($(#[$attribute:meta])* $name:ident, $($instruction:literal),+) => {
        $(#[$attribute])*
        #[unsafe(naked)]
        extern "sysv64" fn $name(leaf: u64, registers: &mut Registers) -> u64 {
            naked_asm!(
                "push rbx",
                "push r12",
                "push r13",
                "push r14",
                "push r15",
                "push rsi",
                "mov rax, rdi",
                "mov rcx, [rsi]",
                "mov rdx, [rsi + 8]",
                "mov r8, [rsi + 16]",
                "mov r9, [rsi + 24]",
                "mov r10, [rsi + 32]",
                "mov r11, [rsi + 40]",
                "mov r12, [rsi + 48]",
                "mov r13, [rsi + 56]",
                "mov r14, [rsi + 64]",
                "mov r15, [rsi + 72]",
                "mov rbx, [rsi + 80]",
                "mov rdi, [rsi + 88]",
                "mov rsi, [rsi + 96]",
                $($instruction,)+
                // RSI as it came back changes place with the pointer.
                "xchg rsi, [rsp]",
                "mov [rsi], rcx",
                "mov [rsi + 8], rdx",
                "mov [rsi + 16], r8",
                "mov [rsi + 24], r9",
                "mov [rsi + 32], r10",
                "mov [rsi + 40], r11",
                "mov [rsi + 48], r12",
                "mov [rsi + 56], r13",
                "mov [rsi + 64], r14",
                "mov [rsi + 72], r15",
                "mov [rsi + 80], rbx",
                "mov [rsi + 88], rdi",
                "pop rcx",
                "mov [rsi + 96], rcx",
                "pop r15",
                "pop r14",
                "pop r13",
                "pop r12",
                "pop rbx",
                "ret",
            )
        }
    };
}

with_registers!(
    /// TDCALL.
    tdcall,
    ".byte 0x66, 0x0F, 0x01, 0xCC"
);

impl Instructions for Processor {
    fn tdcall(&self, leaf: u64, registers: &mut Registers) -> u64 {
        tdcall(leaf, registers)
    }

    fn extend(&self, register: u32, digest: &AlignedDigest) -> u64 {
        /// TDG.MR.RTMR.EXTEND.
        const EXTEND: u64 = 2;
        let address = core::ptr::from_ref(digest) as u64;
        let mut registers = Registers { rcx: address, rdx: register.into(), ..Registers::default() };
        tdcall(EXTEND, &mut registers)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        __cpuid_count(leaf, subleaf)
    }

    fn halt(&self) {
        // SAFETY: stops this processor.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }

    fn write_private(&self, address: u64, value: u64) {
        // SAFETY: callers name private memory of their own, mapped one to one; see `Processor::new`.
        unsafe { (address as *mut u64).write_volatile(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    with_registers!(
        count,
        "lea rax, [rax + 100]",
        "lea rcx, [rcx + 1]",
        "lea rdx, [rdx + 2]",
        "lea r8, [r8 + 3]",
        "lea r9, [r9 + 4]",
        "lea r10, [r10 + 5]",
        "lea r11, [r11 + 6]",
        "lea r12, [r12 + 7]",
        "lea r13, [r13 + 8]",
        "lea r14, [r14 + 9]",
        "lea r15, [r15 + 10]",
        "lea rbx, [rbx + 11]",
        "lea rdi, [rdi + 12]",
        "lea rsi, [rsi + 13]"
    );

    #[test]
    fn each_register_goes_in_and_out_as_itself() {
        let mut registers = Registers {
            rcx: 1000,
            rdx: 2000,
            r8: 3000,
            r9: 4000,
            r10: 5000,
            r11: 6000,
            r12: 7000,
            r13: 8000,
            r14: 9000,
            r15: 10000,
            rbx: 11000,
            rdi: 12000,
            rsi: 13000,
        };
        assert_eq!(count(7, &mut registers), 107);
        let expected = Registers {
            rcx: 1001,
            rdx: 2002,
            r8: 3003,
            r9: 4004,
            r10: 5005,
            r11: 6006,
            r12: 7007,
            r13: 8008,
            r14: 9009,
            r15: 10010,
            rbx: 11011,
            rdi: 12012,
            rsi: 13013,
        };
        assert_eq!(registers, expected);
    }
}
