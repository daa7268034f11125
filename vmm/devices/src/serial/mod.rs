//! The two legacy ports that a Linux guest without firmware uses: a 16550A for the console and the
//! i8042's reset command.
//!
//! The console goes out only. A guest may print anything at any rate: bytes are gathered to lines before they
//! are written, a sink that would block (a FIFO whose reader sleeps) loses bytes instead of stopping the vCPU, and
//! both are counted. Nothing is fed back to the guest, and its loopback mode is bounded by the UART's FIFO
//! (CVE-2020-27173).

mod console;
mod reset;

#[cfg(test)]
mod tests;

pub use console::Serial;
pub use reset::ResetPort;

/// I/O port of COM1; eight registers.
pub const COM1: u16 = 0x3f8;
/// Interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;
/// Command and status port of the i8042.
pub const I8042_COMMAND: u16 = 0x64;
