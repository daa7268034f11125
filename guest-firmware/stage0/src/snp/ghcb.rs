//! The GHCB page: registers and a buffer in shared memory through which the guest asks the host (GHCB
//! specification, chapters 2 and 4), and the two exits that stage0 makes with it.
//!
//! Everything here can be changed by the host at any time. So: each word that the host answers with is read once,
//! what was asked stays in private memory, and of the host's answer nothing is used but "done up to here".

use super::error::Error;
use super::instructions::{Instructions, MSR_GHCB};
use super::msr::{PROTOCOL_VERSION, PageState};

const RAX: u64 = 0x1F8;
const EXIT_CODE: u64 = 0x390;
const EXIT_INFO1: u64 = 0x398;
const EXIT_INFO2: u64 = 0x3A0;
const SCRATCH: u64 = 0x3A8;
/// One bit for each eight bytes before it that the guest has set.
const VALID_BITMAP: u64 = 0x3F0;
const BUFFER: u64 = 0x800;
const ENTRIES: u64 = 0x808;
/// 0xFFA: version (u16), 0xFFC: usage (u32, 0 is this layout).
const VERSION_AND_USAGE: u64 = 0xFF8;

const EXIT_PAGE_STATE: u64 = 0x8000_0010;
const EXIT_AP_CREATION: u64 = 0x8000_0013;
/// Start the vCPU now.
const AP_CREATE: u64 = 1;

/// Entries that one page state change takes: what fits into the buffer.
pub const BATCH: usize = 253;
/// How often in a row the host may come back without having done anything. It may be interrupted; it may not keep
/// the guest here for ever and have that look like work.
const MAX_STALLS: u32 = 64;

/// A step of a page state change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Address of the page.
    pub page: u64,
    /// 2 MiB rather than 4 KiB.
    pub large: bool,
}

/// One exit: what the page says when the host reads it.
#[derive(Clone, Copy, Default)]
struct Exit {
    code: u64,
    info1: u64,
    info2: u64,
    rax: Option<u64>,
    scratch: Option<u64>,
}

/// The GHCB page of this vCPU, shared and registered.
#[derive(Debug)]
pub struct Ghcb<'h, H> {
    hardware: &'h H,
    address: u64,
}

impl<'h, H: Instructions> Ghcb<'h, H> {
    /// The page at this address.
    pub const fn new(hardware: &'h H, address: u64) -> Self {
        Self { hardware, address }
    }

    fn write(&self, offset: u64, value: u64) {
        self.hardware.write_shared(self.address + offset, value);
    }

    fn read(&self, offset: u64) -> u64 {
        self.hardware.read_shared(self.address + offset)
    }

    /// Clears the page: nothing of the guest is in it, nothing of the host's stays.
    pub fn clear(&self) {
        for offset in (0..0x1000).step_by(8) {
            self.write(offset, 0);
        }
    }

    /// Makes an exit. Gives SW_EXITINFO2 of the answer.
    ///
    /// The low half of SW_EXITINFO1 is 0 when the host did what was asked; 1: it asks the guest to raise an exception,
    /// which stage0 has no handler for and so no reason to believe; 2: it did not understand.
    fn exit(&self, exit: Exit) -> Result<u64, Error> {
        let fields = [
            (EXIT_CODE, Some(exit.code)),
            (EXIT_INFO1, Some(exit.info1)),
            (EXIT_INFO2, Some(exit.info2)),
            (RAX, exit.rax),
            (SCRATCH, exit.scratch),
        ];
        let mut valid = 0_u128;
        for (offset, value) in fields {
            self.write(offset, value.unwrap_or(0));
            valid |= u128::from(value.is_some()) << (offset / 8);
        }
        self.write(VALID_BITMAP, valid as u64);
        self.write(VALID_BITMAP + 8, (valid >> 64) as u64);
        self.write(VERSION_AND_USAGE, u64::from(PROTOCOL_VERSION) << 16);
        self.hardware.write_msr(MSR_GHCB, self.address);
        self.hardware.vmgexit();
        let (info1, info2) = (self.read(EXIT_INFO1), self.read(EXIT_INFO2));
        if info1 & 0xFFFF_FFFF == 0 { Ok(info2) } else { Err(Error::GhcbExit { info1, info2 }) }
    }

    /// Has the host change up to [`BATCH`] pages; returns when it says that all are.
    pub fn change_pages(&self, steps: &[Step], state: PageState) -> Result<(), Error> {
        let Some(last) = steps.len().checked_sub(1).filter(|last| *last < BATCH) else {
            return Err(Error::BatchSize(steps.len()));
        };
        for (offset, step) in (ENTRIES..).step_by(8).zip(steps) {
            self.write(offset, (state as u64) << 52 | u64::from(step.large) << 56 | step.page);
        }
        let end = last as u64;
        let (mut cursor, mut stalls) = (0, 0);
        self.write(BUFFER, end << 16);
        while cursor <= end {
            let scratch = Some(self.address + BUFFER);
            let failed = self.exit(Exit { code: EXIT_PAGE_STATE, scratch, ..Exit::default() })?;
            if failed != 0 {
                return Err(Error::PageState(failed));
            }
            let header = self.read(BUFFER);
            let reached = header & 0xFFFF;
            // The rest of the header is the guest's: end, and 32 reserved bits.
            if header >> 16 != end || !(cursor..=end + 1).contains(&reached) {
                return Err(Error::PageStateCursor(header));
            }
            stalls = if reached == cursor { stalls + 1 } else { 0 };
            if stalls > MAX_STALLS {
                return Err(Error::PageStateStalled);
            }
            cursor = reached;
        }
        Ok(())
    }

    /// Has the host run a vCPU from a state that the guest made.
    pub fn create_ap(&self, apic_id: u32, vmsa: u64, sev_features: u64) -> Result<(), Error> {
        let failed = self.exit(Exit {
            code: EXIT_AP_CREATION,
            info1: u64::from(apic_id) << 32 | AP_CREATE,
            info2: vmsa,
            rax: Some(sev_features),
            scratch: None,
        });
        // The answer leaves SW_EXITINFO2 as it was asked, so it says nothing.
        failed.map(drop)
    }
}
