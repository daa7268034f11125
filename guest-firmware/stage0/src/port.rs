//! The two instructions by which a guest without a TEE gives up.

use core::arch::asm;

/// Writes 32 bits to a port.
pub(crate) fn write(port: u16, value: u32) {
    // SAFETY: the only port written is the VMM's own; it changes no memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// Halts for good.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off the processor stays here, which is what is wanted.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
