//! The firmware image: entry, memory functions, and the choice of the platform. Everything else is in the
//! library. Built by `./x stage0` as a flat binary (`image.ld`).
#![no_std]
#![no_main]
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "the entry and the exit are assembly")]
#[path = "image/entry.rs"]
mod entry;
#[allow(unsafe_code, reason = "tables that the processor reads, handlers in assembly")]
#[path = "image/exceptions.rs"]
mod exceptions;
#[allow(unsafe_code, reason = "symbols that the compiler calls")]
#[path = "image/mem.rs"]
mod mem;
#[allow(unsafe_code, reason = "pages at fixed addresses")]
#[path = "image/tee.rs"]
mod tee;

use kata_cc_stage0::boot::{self, Entry};
use kata_cc_stage0::identity::IdentityMemory;
use kata_cc_stage0::plain::Plain;
use kata_cc_stage0::platform::{Platform, Termination};
use kata_cc_stage0_abi::PlatformKind;

/// Boots on the platform that the boot block names.
fn start(mut memory: IdentityMemory) -> Result<Entry, Termination> {
    let block = boot::boot_block(&mut memory)?;
    let (mut snp, mut tdx, mut plain);
    let mut platform: &mut dyn Platform = match block.platform {
        PlatformKind::Snp => {
            snp = tee::snp()?;
            &mut snp
        }
        PlatformKind::Tdx => {
            tdx = tee::tdx()?;
            &mut tdx
        }
        PlatformKind::Plain | PlatformKind::SimSnp | PlatformKind::SimTdx => {
            plain = Plain::default();
            &mut plain
        }
    };
    boot::boot(&mut platform, &mut memory, &block)
}

/// Called by the entry code, once, on the first vCPU.
fn run(memory: IdentityMemory) -> ! {
    exceptions::install();
    match start(memory) {
        Ok(entry) => entry::enter_linux(entry),
        Err(why) => tee::terminate(why),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    tee::terminate(Termination::Panic)
}
