//! Private and shared memory under SNP: the page state change that the host makes, the `PVALIDATE` that makes the
//! processor take it, in the one order that is safe.
//!
//! To private: the host assigns the pages (RMP), then the guest validates them. To shared: the guest gives up the
//! validation first, so that the host cannot keep the page assigned *and* valid with content of its choice.

use super::error::Error;
use super::ghcb::{BATCH, Ghcb, Step};
use super::instructions::{Instructions, PageSize, Pvalidate};
use super::msr::PageState;
use crate::platform::{PhysRange, layout};

/// PVALIDATE: done.
const SUCCESS: u32 = 0;
/// PVALIDATE: the RMP has the page in another size, as a host without a large page to give enters it.
const SIZE_MISMATCH: u32 = 6;

/// Makes shared or never used memory private.
pub fn make_private<H: Instructions>(
    hardware: &H,
    ghcb: &Ghcb<'_, H>,
    range: PhysRange,
) -> Result<(), Error> {
    in_batches(range, |steps| {
        ghcb.change_pages(steps, PageState::Private)?;
        steps.iter().try_for_each(|step| validate(hardware, *step, true))
    })
}

/// Makes private memory shared.
pub fn make_shared<H: Instructions>(hardware: &H, ghcb: &Ghcb<'_, H>, range: PhysRange) -> Result<(), Error> {
    in_batches(range, |steps| {
        steps.iter().try_for_each(|step| validate(hardware, *step, false))?;
        ghcb.change_pages(steps, PageState::Shared)
    })
}

/// Sets or takes away the validation of one step; of a large one in small steps when the RMP has it so.
pub fn validate(hardware: &impl Instructions, step: Step, valid: bool) -> Result<(), Error> {
    let size = if step.large { PageSize::Large } else { PageSize::Small };
    let Step { page, large } = step;
    match hardware.pvalidate(page, size, valid) {
        Pvalidate { status: SUCCESS, unchanged: false } => Ok(()),
        // The processor says that the page was in that state before. Nobody but stage0 can have put it there, and
        // stage0 did not: two addresses of the guest lead to one page, or an old page was put back.
        Pvalidate { status: SUCCESS, unchanged: true } => Err(Error::DoubleValidation(page)),
        Pvalidate { status: SIZE_MISMATCH, .. } if large => (page..page + layout::LARGE_PAGE)
            .step_by(layout::PAGE_SIZE as usize)
            .try_for_each(|page| validate(hardware, Step { page, large: false }, valid)),
        Pvalidate { status, .. } => Err(Error::Pvalidate { page, status }),
    }
}

/// Gives the range's steps to `change`, as many at a time as one page state change takes.
fn in_batches(range: PhysRange, mut change: impl FnMut(&[Step]) -> Result<(), Error>) -> Result<(), Error> {
    let mut batch = [Step::default(); BATCH];
    let mut steps = range.steps().map(|(page, large)| Step { page, large });
    loop {
        let mut filled = 0;
        for (slot, step) in batch.iter_mut().zip(&mut steps) {
            *slot = step;
            filled += 1;
        }
        match batch.get(..filled) {
            None | Some([]) => return Ok(()),
            Some(steps) => change(steps)?,
        }
    }
}
