//! Intel TDX: what stage0 asks of the TDX module and of the host, and what it does not believe.
//!
//! | module | what |
//! |---|---|
//! | [`instructions`] | TDCALL and CPUID as a trait; the only unsafe code |
//! | [`call`] | TDG.VP.INFO, MapGPA, TDG.MEM.PAGE.ACCEPT, ReportFatalError |
//! | [`ve`] | the #VE exception |
//! | [`event_log`] | the event log; what goes where: [`kata_cc_stage0_abi::Measured`] |
//! | [`sha384`] | digests of events |
//!
//! Sources: Intel 348551 (module ABI), 344426 (GHCI), 344991 (virtual firmware design guide); Linux arch/x86/coco/tdx for
//! what a kernel expects. Not yet run on hardware: `docs/stage0-snp-tdx.md`.

pub mod call;
mod error;
pub mod event_log;
pub mod instructions;
pub mod sha384;
pub mod ve;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod platform_tests;

use core::arch::x86_64::CpuidResult;

use kata_cc_stage0_abi::{EV_EVENT_TAG, EventData, Measured, PlatformKind};

pub use self::error::Error;
use self::event_log::EventLog;
use self::instructions::{AlignedDigest, Instructions};
use crate::platform::{
    BootBlock, Handover, Payload, PhysRange, Platform, PlatformError, Termination, layout,
};
use crate::private_pages::PrivatePages;

/// ATTRIBUTES: accesses to private pages that the host took away end the guest. Without it they raise #VE, by which a
/// host could run a handler of the guest at any instruction of its choice.
const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;

/// First address that stage0 has not mapped.
const MAPPED_END: u64 = 4 << 30;

/// TDG.MR.RTMR.EXTEND.
const LEAF_EXTEND: u64 = 2;

/// Stage0 under TDX.
#[derive(Debug)]
pub struct Tdx<'a, H> {
    hardware: &'a H,
    log: EventLog<'a>,
    mailbox: PhysRange,
    pages: PrivatePages,
    /// The shared bit as a number, once `init` has checked it.
    shared: Option<u64>,
    aps: bool,
}

impl<'a, H: Instructions> Tdx<'a, H> {
    /// Before [`Platform::init`].
    ///
    /// `working_memory` is what the launch made private for the image: image and zeros behind it. `mailbox` is a page of
    /// it, `log` private memory; both stay reserved when the guest runs.
    ///
    /// # Errors
    /// When the mailbox is not a page of the working memory, or the log's place is too small for its header.
    pub fn new(
        hardware: &'a H,
        log: &'a mut [u8],
        working_memory: PhysRange,
        mailbox: PhysRange,
    ) -> Result<Self, Error> {
        let mut pages = PrivatePages::default();
        pages.enter(working_memory)?;
        for page in [layout::BOOT_BLOCK, layout::RESET_PAGE]
            .into_iter()
            .filter_map(|page| PhysRange::covering(page, 1))
        {
            pages.enter(page)?;
        }
        if mailbox.length() != layout::PAGE_SIZE || !working_memory.contains(mailbox) {
            return Err(Error::Range(mailbox.start()));
        }
        Ok(Self { hardware, log: EventLog::new(log)?, mailbox, pages, shared: None, aps: false })
    }

    fn begin(&mut self, block: &BootBlock) -> Result<(), Error> {
        if block.platform != PlatformKind::Tdx {
            return Err(Error::Platform);
        }
        let info = call::info(self.hardware)?;
        if !matches!(info.address_width, 48 | 52) {
            return Err(Error::AddressWidth(info.address_width));
        }
        let bit = info.address_width - 1;
        if bit != u64::from(block.memory_bit) {
            return Err(Error::SharedBit(bit));
        }
        if info.attributes & ATTRIBUTE_SEPT_VE_DISABLE == 0 {
            return Err(Error::PageExceptions(info.attributes));
        }
        if info.index != 0 {
            return Err(Error::NotFirst(info.index));
        }
        if info.vcpus != u64::from(block.vcpus) {
            return Err(Error::Vcpus(info.vcpus));
        }
        self.shared = Some(1 << bit);
        let page = block.to_page().map_err(|_| Error::Platform)?;
        self.measure(Measured::BootBlock, &Measured::block_event(&page))
    }

    /// Writes the event, then extends the register: a log without room refuses before anything is measured.
    fn measure(&mut self, what: Measured, data: &EventData) -> Result<(), Error> {
        let digest = sha384::sha384(data.bytes());
        self.log.event(what.log_index(), EV_EVENT_TAG, &digest, data.bytes())?;
        match self.hardware.extend(what.register(), &AlignedDigest(digest)) {
            0 => Ok(()),
            status => Err(Error::Module { leaf: LEAF_EXTEND, status }),
        }
    }

    fn make_private(&mut self, range: PhysRange) -> Result<(), Error> {
        self.mapped(range)?;
        self.pages.enter(range)?;
        call::map_gpa(self.hardware, range, 0)?;
        call::accept(self.hardware, range)
    }

    fn make_shared(&mut self, range: PhysRange) -> Result<(), Error> {
        let shared = self.mapped(range)?;
        if range.overlaps(self.mailbox) {
            return Err(Error::Range(range.start()));
        }
        self.pages.remove(range)?;
        call::map_gpa(self.hardware, range, shared)
    }

    /// The shared bit, if the range can be used.
    fn mapped(&self, range: PhysRange) -> Result<u64, Error> {
        if range.end() > MAPPED_END {
            return Err(Error::Range(range.start()));
        }
        self.shared.ok_or(Error::NotReady)
    }
}

impl<H: Instructions> Platform for Tdx<'_, H> {
    fn init(&mut self, block: &BootBlock) -> Result<(), PlatformError> {
        Ok(self.begin(block)?)
    }

    fn accept(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        Ok(self.make_private(range)?)
    }

    fn share(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.make_shared(range).map_err(|error| PlatformError::from(error).of_sharing())
    }

    fn unshare(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        // Whether it was shared or never used: the host adds fresh pages, and the guest accepts them.
        Ok(self.make_private(range)?)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.hardware.cpuid(leaf, subleaf)
    }

    fn measured(&mut self, payload: Payload, sha256: &[u8; 32]) -> Result<(), PlatformError> {
        let what = match payload {
            Payload::Kernel => Measured::Kernel,
            Payload::Initramfs => Measured::Initramfs,
            Payload::CommandLine => Measured::CommandLine,
        };
        Ok(self.measure(what, &what.payload_event(sha256))?)
    }

    fn prepare_aps(&mut self, vcpus: u32) -> Result<(), PlatformError> {
        // The others wait at the mailbox since they came to the entry, or will when the host lets them run: a page of
        // zeros names none of them.
        for offset in (0..layout::PAGE_SIZE).step_by(8) {
            self.hardware.write_private(self.mailbox.start() + offset, 0);
        }
        self.aps = vcpus > 1;
        Ok(())
    }

    fn handover(&self) -> Handover {
        let (log, length) = self.log.place();
        Handover {
            cc_blob: false,
            event_log: u32::try_from(length).ok().map(|length| (log, length)),
            ap_mailbox: self.aps.then(|| self.mailbox.start()),
            lazy_memory: true,
        }
    }

    fn terminate(&self, why: Termination) -> ! {
        call::terminate(self.hardware, why)
    }
}
