//! What SEV-SNP adds to the processor, behind one trait: the logic of this folder runs on it, on hardware as in
//! tests. The only module of the folder with unsafe code.
//!
//! Sources: APM volume 3 (PVALIDATE, RMPADJUST, VMGEXIT), volume 2 section 15.36.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::platform::SHARED_WINDOW;

/// MSR through which guest and host speak before and beside the GHCB page (GHCB specification, section 2.3).
pub const MSR_GHCB: u32 = 0xC001_0130;
/// MSR that tells which SEV features are on. Reads of it cannot be intercepted (APM 15.34.10).
pub const MSR_SEV_STATUS: u32 = 0xC001_0131;

/// `RMPADJUST`: the page is the state of a vCPU from now on.
pub const RMPADJUST_VMSA: u64 = 1 << 16;
/// `RMPADJUST`: for privilege level 1. Only a level above it may ask, so the instruction also tells who is at 0.
pub const RMPADJUST_VMPL1: u64 = 1;

/// Size of a page as `PVALIDATE` and `RMPADJUST` take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PageSize {
    /// 4 KiB.
    Small = 0,
    /// 2 MiB.
    Large = 1,
}

/// What `PVALIDATE` answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pvalidate {
    /// EAX: 0 done, 1 wrong input, 6 the page is entered in another size.
    pub status: u32,
    /// CF: the page already was in the state asked for.
    pub unchanged: bool,
}

/// The instructions and the memory accesses of SEV-SNP.
///
/// Addresses are guest physical: private memory is mapped one to one, shared memory at [`SHARED_WINDOW`] above.
pub trait Instructions {
    /// `PVALIDATE`: sets or clears the validated bit of a page's RMP entry.
    fn pvalidate(&self, page: u64, size: PageSize, validate: bool) -> Pvalidate;
    /// `RMPADJUST` of a 4 KiB page: permissions of a lower privilege level, VMSA bit. Answers EAX.
    fn rmpadjust(&self, page: u64, attributes: u64) -> u32;
    /// `RDMSR`.
    fn read_msr(&self, msr: u32) -> u64;
    /// `WRMSR`.
    fn write_msr(&self, msr: u32, value: u64);
    /// `VMGEXIT`: gives control to the host, who reads what is in the GHCB MSR.
    fn vmgexit(&self);
    /// Waits for an interrupt, of which stage0 has none enabled.
    fn halt(&self);
    /// Reads eight bytes of shared memory, once: the host may change them at any time.
    fn read_shared(&self, address: u64) -> u64;
    /// Writes eight bytes of shared memory.
    fn write_shared(&self, address: u64, value: u64);
    /// Writes eight bytes of private memory.
    fn write_private(&self, address: u64, value: u64);
}

/// The processor itself.
///
/// Only the firmware image may make one: the methods trust that the page tables of stage0 are in force, that it runs
/// at privilege level 0, and that the addresses given are memory that belongs to whoever gives them.
#[derive(Debug)]
pub struct Processor(());

impl Processor {
    /// The processor that this code runs on.
    ///
    /// # Safety
    /// As the type says: stage0 runs alone, in ring 0, on its own page tables, under SEV-SNP.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl Instructions for Processor {
    fn pvalidate(&self, page: u64, size: PageSize, validate: bool) -> Pvalidate {
        let (status, carry): (u64, u8);
        // SAFETY: changes the RMP entry of a page, no register but the named and no memory content that Rust knows
        // of: callers validate pages before their first use and rescind those that hold nothing.
        unsafe {
            asm!(
                ".byte 0xF2, 0x0F, 0x01, 0xFF",
                "setc {carry}",
                carry = out(reg_byte) carry,
                inout("rax") page => status,
                in("ecx") size as u32,
                in("edx") u32::from(validate),
                options(nostack),
            );
        }
        Pvalidate { status: status as u32, unchanged: carry != 0 }
    }

    fn rmpadjust(&self, page: u64, attributes: u64) -> u32 {
        let status: u64;
        // SAFETY: as for `pvalidate`; lower privilege levels than this one have no code to run.
        unsafe {
            asm!(
                ".byte 0xF3, 0x0F, 0x01, 0xFE",
                inout("rax") page => status,
                in("rcx") PageSize::Small as u64,
                in("rdx") attributes,
                options(nostack),
            );
        }
        status as u32
    }

    fn read_msr(&self, msr: u32) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: the two MSRs of this module exist under SEV-SNP; reading has no side effect.
        unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
        u64::from(low) | u64::from(high) << 32
    }

    fn write_msr(&self, msr: u32, value: u64) {
        // SAFETY: only the GHCB MSR is written; it changes nothing until VMGEXIT.
        unsafe {
            asm!(
                "wrmsr",
                in("ecx") msr,
                in("eax") value as u32,
                in("edx") (value >> 32) as u32,
                options(nomem, nostack),
            );
        }
    }

    fn vmgexit(&self) {
        // SAFETY: the host cannot touch registers or private memory; what it does to shared memory is read volatile.
        // `rep vmmcall` is the encoding of VMGEXIT.
        unsafe { asm!("rep vmmcall", options(nostack)) };
    }

    fn halt(&self) {
        // SAFETY: stops this processor.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }

    fn read_shared(&self, address: u64) -> u64 {
        // SAFETY: callers name a page that they have made shared, mapped in the window; volatile, because the host
        // writes there too.
        unsafe { ((SHARED_WINDOW + address) as *const u64).read_volatile() }
    }

    fn write_shared(&self, address: u64, value: u64) {
        // SAFETY: as for `read_shared`.
        unsafe { ((SHARED_WINDOW + address) as *mut u64).write_volatile(value) }
    }

    fn write_private(&self, address: u64, value: u64) {
        // SAFETY: callers name a private page of their own, mapped one to one.
        unsafe { (address as *mut u64).write_volatile(value) }
    }
}
