//! What stage0 needs of the TEE (or of a machine without one).
//!
//! Order in which the boot calls it: [`Platform::init`] once, [`Platform::accept`] for every range before
//! its first access, [`Platform::unshare`] for what was shared at launch and has been read,
//! [`Platform::measured`] for each payload that proved to be the measured one,
//! [`Platform::prepare_aps`], [`Platform::handover`], [`Platform::leave`]. [`Platform::terminate`] at any time.
//!
//! How memory is reached is not the platform's business: the entry code maps every address twice, at
//! itself as private memory and at [`SHARED_WINDOW`] above itself as shared memory.

use core::arch::x86_64::CpuidResult;
use core::fmt;

pub use kata_cc_stage0_abi::{BootBlock, REASON_SET, Termination, layout};

/// Virtual address of physical address 0 as shared memory. The first 4 GiB are mapped there and at 0.
pub const SHARED_WINDOW: u64 = 1 << 39;

/// A range of guest-physical memory, made of whole pages, not empty, without overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    start: u64,
    end: u64,
}

impl PhysRange {
    /// From the first byte and the first byte after it; `None` if it is not made of whole pages.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        let aligned = start.is_multiple_of(layout::PAGE_SIZE) && end.is_multiple_of(layout::PAGE_SIZE);
        if aligned && start < end { Some(Self { start, end }) } else { None }
    }

    /// The pages that have at least one of `length` bytes from `start` on.
    #[must_use]
    pub fn covering(start: u64, length: u64) -> Option<Self> {
        let end = start.checked_add(length)?.checked_next_multiple_of(layout::PAGE_SIZE)?;
        Self::new(start & !(layout::PAGE_SIZE - 1), end)
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// First byte after it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Bytes.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.end - self.start
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// In steps of 2 MiB where address and length allow, else of 4 KiB; `true` marks a step of 2 MiB.
    pub fn steps(self) -> impl Iterator<Item = (u64, bool)> {
        let mut next = self.start;
        core::iter::from_fn(move || {
            if next >= self.end {
                return None;
            }
            let at = next;
            let large = at.is_multiple_of(layout::LARGE_PAGE) && self.end - at >= layout::LARGE_PAGE;
            next += if large { layout::LARGE_PAGE } else { layout::PAGE_SIZE };
            Some((at, large))
        })
    }
}

/// A payload, for the platform's own records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The kernel.
    Kernel,
    /// The initramfs.
    Initramfs,
    /// The command line.
    CommandLine,
}

/// What the platform wants the guest to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handover {
    /// SNP: the guest gets a CC blob that names secrets and CPUID page.
    pub cc_blob: bool,
    /// TDX: where the event log is and how long; the guest gets a CCEL table.
    pub event_log: Option<(u64, u32)>,
    /// TDX: where the mailbox is that wakes the other vCPUs; the MADT names it. Else the guest starts
    /// them itself: by INIT and SIPI, or on SNP by creating their state.
    pub ap_mailbox: Option<u64>,
    /// Whether memory that stage0 did not accept must be accepted by the guest. If not, all of it is
    /// plain RAM.
    pub lazy_memory: bool,
}

/// Why the platform could not do what it was asked. Each has its own number of [`Termination`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformError {
    /// The host did not make memory private.
    AcceptFailed,
    /// The host did not make memory shared.
    ShareFailed,
    /// Memory was validated already: one page at two addresses, or a replay.
    AlreadyValidated,
    /// The processor refused to validate memory.
    ValidationFailed,
    /// The CPUID page contradicts the processor or lacks a leaf.
    CpuidPage,
    /// The processor lacks what is needed.
    CpuidUnsupported,
    /// The host speaks no version of the GHCB protocol that is known here.
    GhcbProtocol,
    /// The host refused a call.
    HostCallFailed,
    /// The TDX module refused a call.
    TdxModule,
    /// The secrets page has an unknown version.
    SecretsPage,
    /// The processor's private or shared bit is not the boot block's.
    MemoryBitMismatch,
    /// The boot block names another platform.
    PlatformMismatch,
    /// The boot block names no TEE, and there is one.
    UnnamedTee,
    /// The event log is full.
    EventLog,
    /// The other vCPUs could not be made ready.
    ApStart,
}

impl PlatformError {
    /// The same, of a page state change that was to make memory shared.
    #[must_use]
    pub fn of_sharing(self) -> Self {
        match self {
            Self::AcceptFailed => Self::ShareFailed,
            other => other,
        }
    }
}

impl From<PlatformError> for Termination {
    fn from(error: PlatformError) -> Self {
        match error {
            PlatformError::AcceptFailed => Self::AcceptFailed,
            PlatformError::ShareFailed => Self::ShareFailed,
            PlatformError::AlreadyValidated => Self::AlreadyValidated,
            PlatformError::ValidationFailed => Self::ValidationFailed,
            PlatformError::CpuidPage => Self::CpuidPage,
            PlatformError::CpuidUnsupported => Self::CpuidUnsupported,
            PlatformError::GhcbProtocol => Self::GhcbProtocol,
            PlatformError::HostCallFailed => Self::HostCallFailed,
            PlatformError::TdxModule => Self::TdxModule,
            PlatformError::SecretsPage => Self::SecretsPage,
            PlatformError::MemoryBitMismatch => Self::MemoryBitMismatch,
            PlatformError::PlatformMismatch => Self::PlatformMismatch,
            PlatformError::UnnamedTee => Self::UnnamedTee,
            PlatformError::EventLog => Self::EventLog,
            PlatformError::ApStart => Self::ApStart,
        }
    }
}

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Termination::from(*self).words())
    }
}

impl core::error::Error for PlatformError {}

/// A TEE, or a machine without one.
pub trait Platform {
    /// Speaks to the host and to the processor for the first time: protocol versions, CPUID page, memory
    /// bit. Exceptions that the platform answers itself (#VC, #VE) may occur from here on.
    ///
    /// # Errors
    /// When the boot cannot go on.
    fn init(&mut self, block: &BootBlock) -> Result<(), PlatformError>;

    /// Makes memory that was never used private and usable, in steps of 2 MiB where possible. Never
    /// called twice for a page; the caller keeps that book. Contents afterwards: anything.
    ///
    /// # Errors
    /// When host or processor refuse, or the page was validated already.
    fn accept(&mut self, range: PhysRange) -> Result<(), PlatformError>;

    /// Makes private memory shared. Its content must have been wiped.
    ///
    /// # Errors
    /// When the host refuses.
    fn share(&mut self, range: PhysRange) -> Result<(), PlatformError>;

    /// Makes shared memory private and usable. Contents afterwards: anything.
    ///
    /// # Errors
    /// As [`Platform::accept`].
    fn unshare(&mut self, range: PhysRange) -> Result<(), PlatformError>;

    /// CPUID as far as it can be trusted: on SNP from the CPUID page. All zero for a leaf that is not
    /// there.
    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult;

    /// Takes note of a payload that proved to be the measured one (TDX: event log and RTMR).
    ///
    /// # Errors
    /// When the note cannot be taken.
    fn measured(&mut self, payload: Payload, sha256: &[u8; 32]) -> Result<(), PlatformError> {
        let _ = (payload, sha256);
        Ok(())
    }

    /// Makes the other vCPUs ready to be started by the guest.
    ///
    /// # Errors
    /// When they cannot be.
    fn prepare_aps(&mut self, vcpus: u32) -> Result<(), PlatformError> {
        let _ = vcpus;
        Ok(())
    }

    /// What the guest is to be told. Asked once, when all memory that the boot needs is accepted.
    fn handover(&self) -> Handover;

    /// Last call before the jump to the guest: gives back what was shared with the host for the
    /// firmware's own sake (SNP: the GHCB).
    ///
    /// # Errors
    /// When the host refuses.
    fn leave(&mut self) -> Result<(), PlatformError> {
        Ok(())
    }

    /// Gives up and tells the host why.
    fn terminate(&self, why: Termination) -> !;
}

/// So that the image has the boot's code once, for all platforms.
impl<P: Platform + ?Sized> Platform for &mut P {
    fn init(&mut self, block: &BootBlock) -> Result<(), PlatformError> {
        (**self).init(block)
    }

    fn accept(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        (**self).accept(range)
    }

    fn share(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        (**self).share(range)
    }

    fn unshare(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        (**self).unshare(range)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        (**self).cpuid(leaf, subleaf)
    }

    fn measured(&mut self, payload: Payload, sha256: &[u8; 32]) -> Result<(), PlatformError> {
        (**self).measured(payload, sha256)
    }

    fn prepare_aps(&mut self, vcpus: u32) -> Result<(), PlatformError> {
        (**self).prepare_aps(vcpus)
    }

    fn handover(&self) -> Handover {
        (**self).handover()
    }

    fn leave(&mut self) -> Result<(), PlatformError> {
        (**self).leave()
    }

    fn terminate(&self, why: Termination) -> ! {
        (**self).terminate(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_are_whole_pages() {
        assert_eq!(PhysRange::new(0, 4096).map(PhysRange::length), Some(4096));
        assert_eq!(PhysRange::new(0, 0), None);
        assert_eq!(PhysRange::new(4096, 0), None);
        assert_eq!(PhysRange::new(1, 4096), None);
        assert_eq!(PhysRange::new(0, 4097), None);
        assert_eq!(PhysRange::covering(4095, 2), PhysRange::new(0, 8192));
        assert_eq!(PhysRange::covering(4096, 0), None);
        assert_eq!(PhysRange::covering(u64::MAX - 10, 5), None);
        assert_eq!(PhysRange::covering(8, u64::MAX), None);
    }

    #[test]
    fn steps_are_large_where_they_can_be() {
        let steps = |start, end| PhysRange::new(start, end).expect("range").steps();
        let large: Vec<_> = steps(2 * MIB, 6 * MIB).collect();
        assert_eq!(large, [(2 * MIB, true), (4 * MIB, true)]);
        let mixed: Vec<_> = steps(2 * MIB - 4096, 4 * MIB + 4096).collect();
        assert_eq!(mixed, [(2 * MIB - 4096, false), (2 * MIB, true), (4 * MIB, false)]);
        assert_eq!(steps(MIB, 2 * MIB).count(), 256);
        assert!(steps(MIB, 3 * MIB).all(|(_, large)| !large));
    }

    #[test]
    fn overlap_and_containment() {
        let range = |start: u64, end: u64| PhysRange::new(start * 4096, end * 4096).expect("range");
        assert!(range(1, 3).overlaps(range(2, 4)));
        assert!(!range(1, 3).overlaps(range(3, 4)));
        assert!(range(1, 4).contains(range(1, 4)));
        assert!(!range(1, 4).contains(range(1, 5)));
    }
}
