//! Replacing a call site in a guest that is stopped behind it; the plan is [`super::patch`]'s.

use std::sync::Arc;

use super::layout::{at, kind};
use super::patch::{self, COMPARED_SIZE, Patch, SITE_SIZE, SLOTS, SLOTS_SIZE};
use super::thread::{StubThread, answer_of};
use crate::error::Errno;
use crate::platform::Memory;

const WRITABLE: i32 = READABLE | libc::PROT_WRITE;
const READABLE: i32 = libc::PROT_READ | libc::PROT_EXEC;

impl StubThread {
    /// The site behind which the guest stopped, when it is time to replace it: as long as the longer of its two kinds begins before that.
    pub(super) fn replaceable_site(&self) -> Option<u64> {
        if self.came_with & kind::TRAPPED == 0 {
            return None;
        }
        let site = self.behind_site().checked_sub(SITE_SIZE as u64)?;
        self.stub.patches().met(site).then_some(site)
    }

    /// Where the guest goes on.
    fn behind_site(&self) -> u64 {
        if self.all { self.regs.rip } else { self.context.load(at::REGS + 8 * 16) }
    }

    /// Replaces it; its pages have this protection.
    pub(super) fn replace_site(&mut self, protection: i32) -> Result<(), Errno> {
        let site = self.behind_site().checked_sub(SITE_SIZE as u64).ok_or(Errno::EFAULT)?;
        // One at a time in an address space: pages are writable meanwhile.
        let stub = Arc::clone(&self.stub);
        let lock = stub.replacing();
        let mut bytes = [0; SITE_SIZE + COMPARED_SIZE - 2];
        let read = self.read(site, &mut bytes);
        let Some(first) = bytes.first_chunk().filter(|_| read >= SITE_SIZE) else {
            return Err(Errno::EFAULT);
        };
        if let Some(number) = patch::number(*first) {
            let answer = answer_of(u64::from(number)).filter(|place| self.answered >> place & 1 != 0);
            let answer = answer.map(|place| at::ANSWERS + 8 * place);
            let Some(plan) = self.stub.patches().plan(site, number, answer) else { return Ok(()) };
            self.stub.patches().begin(site);
            if self.put(site, first, &plan, protection)? {
                self.stub.patches().done(site, &plan);
            } else {
                self.stub.patches().give_up(site);
            }
        } else if let Some(old) = bytes.last_chunk().filter(|_| read == bytes.len())
            && let Some(with) = patch::comparison(*old)
        {
            let site = site + 5;
            let Some(plan) = self.stub.patches().plan_compared(site, *old) else { return Ok(()) };
            self.stub.patches().begin_compared(site, with);
            if self.put(site, old, &plan, protection)? {
                self.stub.patches().done_compared();
            } else {
                self.stub.patches().give_up(site);
            }
        }
        drop(lock);
        Ok(())
    }

    /// Writes slot and site. Whether the site has been replaced.
    fn put(&mut self, site: u64, old: &[u8], plan: &Patch, protection: i32) -> Result<bool, Errno> {
        if let Some(table) = plan.table_bytes {
            self.map(SLOTS, SLOTS_SIZE, WRITABLE, libc::MAP_PRIVATE, None)?;
            self.write(SLOTS, &table);
        }
        self.protect(SLOTS, SLOTS_SIZE, WRITABLE)?;
        let slot = self.write(plan.slot, &plan.slot_bytes);
        self.protect(SLOTS, SLOTS_SIZE, READABLE)?;
        let page = site & !0xfff;
        let pages = (page, ((site + old.len() as u64).next_multiple_of(0x1000)) - page);
        self.protect(pages.0, pages.1, WRITABLE)?;
        let whole = slot == plan.slot_bytes.len();
        let written = match whole {
            true if self.stub.is_single() => self.write(site, &plan.site_bytes) == old.len(),
            true => self.replace_under_threads(site, old, &plan.site_bytes, pages)?,
            false => false,
        };
        self.protect(pages.0, pages.1, protection)?;
        Ok(written)
    }

    /// Lets no call of this address space be answered without the sentry any more. Words of slots change one by one, each at once, so that
    /// other threads may run through them.
    pub(super) fn silence(&mut self) -> Result<(), Errno> {
        let stub = Arc::clone(&self.stub);
        let lock = stub.replacing();
        let plans = self.stub.patches().silence().ok_or(Errno::ENOMEM)?;
        if plans.is_empty() {
            return Ok(());
        }
        self.protect(SLOTS, SLOTS_SIZE, WRITABLE)?;
        for (slot, plan) in &plans {
            if self.write(plan.slot, &plan.slot_bytes) != plan.slot_bytes.len() {
                return Err(Errno::EFAULT);
            }
            // All of the table lies below 4 GiB: the upper half of a word stays 0.
            let low = |address: u64| u32::try_from(address).map_err(|_| Errno::EFAULT);
            self.swap(*slot, low(slot + 8)?, low(plan.slot + 8)?)?;
        }
        self.protect(SLOTS, SLOTS_SIZE, READABLE)?;
        drop(lock);
        Ok(())
    }

    /// Replaces a site that other threads may be running through, in steps that each of them may meet: its beginning becomes a jump to
    /// itself, by one store into an aligned quadword (AMD64 Architecture Programmer's Manual, volume 2, 7.6.1); what stood for the second
    /// instruction becomes none that may be executed, byte by byte; then the rest; at last the beginning. Between the steps the host
    /// interrupts all threads, since pages lose a permission: so none of them has fetched half of what is changed. `false` where the
    /// beginning lies across quadwords, or was not what was read.
    fn replace_under_threads(
        &mut self,
        site: u64,
        old: &[u8],
        new: &[u8],
        pages: (u64, u64),
    ) -> Result<bool, Errno> {
        let (Some([a, b, c, d]), Some([e, f, g, h])) = (old.first_chunk(), new.first_chunk()) else {
            return Ok(false);
        };
        if site % 8 > 4 {
            return Ok(false);
        }
        let word = u32::from_le_bytes;
        let first = word([*a, *b, *c, *d]);
        if self.swap(site, first, word([0xeb, 0xfe, *c, *d]))? != first {
            return Ok(false);
        }
        let inside = if old.len() == COMPARED_SIZE { 2 } else { 5 };
        let order = std::iter::once(inside).chain((2..new.len()).filter(|n| *n != inside));
        for n in order {
            if self.write(site + n as u64, &new[n..=n]) != 1 {
                return Err(Errno::EFAULT);
            }
            if n == inside {
                self.protect(pages.0, pages.1, READABLE)?;
                self.protect(pages.0, pages.1, WRITABLE)?;
            }
        }
        self.swap(site, word([0xeb, 0xfe, *g, *h]), word([*e, *f, *g, *h]))?;
        Ok(true)
    }
}
