//! The TEEs as the image has them: the processor, the pages that are theirs, and how each gives up.

use core::cell::UnsafeCell;

use kata_cc_stage0::ending::{Ending, Way};
use kata_cc_stage0::plain::{self, Plain};
use kata_cc_stage0::platform::{PhysRange, PlatformError, Termination, layout};
use kata_cc_stage0::snp::{self, Snp};
use kata_cc_stage0::tdx::{self, Tdx};

use crate::exceptions;

/// Platforms as the boot block names them.
const KIND_SNP: u32 = 2;
const KIND_TDX: u32 = 4;
/// Where it does.
const KIND: u64 = layout::BOOT_BLOCK + 12;

// SAFETY: used under SEV-SNP only, on the first vCPU.
static SNP: snp::instructions::Processor = unsafe { snp::instructions::Processor::new() };
// SAFETY: used under TDX only, on the first vCPU.
pub(crate) static TDX: tdx::instructions::Processor = unsafe { tdx::instructions::Processor::new() };

/// A page of the working memory, which is never given out as memory of the guest's.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: only the first vCPU runs Rust; see the two uses.
unsafe impl Sync for Page {}

static GHCB: Page = Page(UnsafeCell::new([0; 4096]));
static EVENT_LOG: Page = Page(UnsafeCell::new([0; 4096]));

unsafe extern "C" {
    static stage0_working_end: u8;
    static stage0_ap_mailbox: u8;
}

fn page(start: u64) -> Result<PhysRange, Termination> {
    PhysRange::covering(start, 1).ok_or(Termination::Panic)
}

/// What the launch made private for the image: itself, and zeros behind it.
fn working_memory() -> Result<PhysRange, Termination> {
    PhysRange::new(layout::IMAGE, &raw const stage0_working_end as u64).ok_or(Termination::Panic)
}

/// The CPUID page of SNP.
pub(crate) fn cpuid_page() -> &'static [u8; 4096] {
    // SAFETY: a launch page under SNP, RAM otherwise; nothing writes it.
    unsafe { &*(layout::CPUID as *const [u8; 4096]) }
}

fn secrets_page() -> &'static [u8; 4096] {
    // SAFETY: as for the CPUID page.
    unsafe { &*(layout::SECRETS as *const [u8; 4096]) }
}

/// SEV-SNP. Called once.
pub(crate) fn snp() -> Result<Snp<'static, snp::instructions::Processor>, Termination> {
    // The address only: once shared, the page is no memory of Rust's.
    let ghcb = page(GHCB.0.get() as u64)?;
    Snp::new(&SNP, cpuid_page(), secrets_page(), working_memory()?, ghcb)
        .map_err(|why| PlatformError::from(why).into())
}

/// TDX. Called once.
pub(crate) fn tdx() -> Result<Tdx<'static, tdx::instructions::Processor>, Termination> {
    // SAFETY: the only reference to the page.
    let log = unsafe { &mut *EVENT_LOG.0.get() };
    let mailbox = page(&raw const stage0_ap_mailbox as u64)?;
    Tdx::new(&TDX, log, working_memory()?, mailbox).map_err(|why| PlatformError::from(why).into())
}

static ENDING: Ending = Ending::new();

/// Ends the guest from anywhere, as the measured boot block's platform does it; when that raises an exception, which
/// leads here again, in the next way.
pub(crate) fn terminate(why: Termination) -> ! {
    match ENDING.next(why) {
        Way::Platform(why) => platform_end(why),
        Way::Port(number) => plain::end(number),
        Way::Shutdown => exceptions::shutdown(),
    }
}

fn platform_end(why: Termination) -> ! {
    // SAFETY: a launch page, which nothing writes.
    match unsafe { (KIND as *const u32).read_volatile() } {
        KIND_SNP => snp::msr::terminate(&SNP, why),
        KIND_TDX => tdx::call::terminate(&TDX, why),
        // what the boot block says is not believed: this may be what it is refused for
        _ if Plain::default().is_trust_domain() => tdx::call::terminate(&TDX, why),
        _ => plain::end(why.code()),
    }
}
