//! The firmware image: entry, memory functions, and the choice of the platform. Everything else is in the
//! library. Built by `./x stage0` as a flat binary (`image.ld`).
#![no_std]
#![no_main]
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "the entry and the exit are assembly")]
#[path = "image/entry.rs"]
mod entry;
#[allow(unsafe_code, reason = "symbols that the compiler calls")]
#[path = "image/mem.rs"]
mod mem;

use kata_cc_stage0::boot::{self, Entry};
use kata_cc_stage0::identity::IdentityMemory;
use kata_cc_stage0::plain::Plain;
use kata_cc_stage0::platform::{BootBlock, Platform, Termination};

/// Boots on the platform that the boot block names.
fn start(mut memory: IdentityMemory) -> Result<Entry, (Termination, Plain)> {
    let block = boot::boot_block(&mut memory).map_err(|why| (why, Plain))?;
    boot_on(Plain, &mut memory, &block)
}

/// A refusal comes back with the platform that can tell the host of it.
fn boot_on<P: Platform>(
    mut platform: P,
    memory: &mut IdentityMemory,
    block: &BootBlock,
) -> Result<Entry, (Termination, P)> {
    boot::boot(&mut platform, memory, block).map_err(|why| (why, platform))
}

/// Called by the entry code, once, on the first vCPU.
fn run(memory: IdentityMemory) -> ! {
    match start(memory) {
        Ok(entry) => entry::enter_linux(entry),
        Err((why, platform)) => platform.terminate(why),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    Plain.terminate(Termination::Panic)
}
