//! Replacing a call site in a guest that is stopped behind it; the plan is [`super::patch`]'s.

use std::sync::Arc;

use super::layout::at;
use super::patch::{self, SITE_SIZE, SLOTS, SLOTS_SIZE};
use super::thread::StubThread;
use crate::error::Errno;
use crate::platform::Memory;

const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

impl StubThread {
    /// The site behind which the guest stopped, when it is time to replace it.
    pub(super) fn replaceable_site(&self) -> Option<u64> {
        let site = self.regs.rip.checked_sub(SITE_SIZE as u64)?;
        let trapped = self.context.load(at::FRAME) != 0;
        (trapped && self.stub.patches().met(site)).then_some(site)
    }

    /// Replaces it; its pages have this protection.
    pub(super) fn replace_site(&mut self, protection: i32) -> Result<(), Errno> {
        let site = self.regs.rip.checked_sub(SITE_SIZE as u64).ok_or(Errno::EFAULT)?;
        // One at a time in an address space: pages are writable meanwhile.
        let stub = Arc::clone(&self.stub);
        let lock = stub.replacing();
        let mut bytes = [0; SITE_SIZE];
        if self.read(site, &mut bytes) != SITE_SIZE {
            return Err(Errno::EFAULT);
        }
        let Some(number) = patch::number(bytes) else { return Ok(()) };
        let answer = self.answers.iter().position(|answered| *answered == u64::from(number));
        let answer = answer.map(|n| at::ANSWERS + 8 * n);
        let Some(plan) = self.stub.patches().plan(site, number, answer) else { return Ok(()) };
        if let Some(table) = plan.table_bytes {
            self.map(SLOTS, SLOTS_SIZE, WRITABLE, libc::MAP_PRIVATE, None)?;
            self.write(SLOTS, &table);
        }
        self.protect(SLOTS, SLOTS_SIZE, WRITABLE)?;
        let slot = self.write(plan.slot, &plan.slot_bytes);
        self.protect(SLOTS, SLOTS_SIZE, libc::PROT_READ | libc::PROT_EXEC)?;
        let page = site & !0xfff;
        let length = ((site + SITE_SIZE as u64).next_multiple_of(0x1000)) - page;
        self.protect(page, length, WRITABLE)?;
        let whole = slot == plan.slot_bytes.len();
        let written = match whole {
            true if self.stub.is_single() => self.write(site, &plan.site_bytes) == SITE_SIZE,
            true => self.replace_under_threads(site, &bytes, &plan.site_bytes)?,
            false => false,
        };
        self.protect(page, length, protection)?;
        if written {
            self.stub.patches().done(site, &plan);
        }
        drop(lock);
        Ok(())
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
        self.protect(SLOTS, SLOTS_SIZE, libc::PROT_READ | libc::PROT_EXEC)?;
        drop(lock);
        Ok(())
    }

    /// Replaces a site that other threads may be running through, in steps that each of them may meet: its beginning becomes a jump to
    /// itself, by one store into an aligned quadword (AMD64 Architecture Programmer's Manual, volume 2, 7.6.1); what stood for
    /// `syscall` becomes no instruction, byte by byte; then the rest; at last the beginning. `false` where the beginning lies across
    /// quadwords, or was not what was read.
    fn replace_under_threads(
        &mut self,
        site: u64,
        old: &[u8; SITE_SIZE],
        new: &[u8; SITE_SIZE],
    ) -> Result<bool, Errno> {
        if site % 8 > 4 {
            return Ok(false);
        }
        let word = |bytes: [u8; 4]| u32::from_le_bytes(bytes);
        let [a, b, c, d, ..] = *old;
        let [e, f, g, h, ..] = *new;
        let waits = word([0xeb, 0xfe, c, d]);
        if self.swap(site, word([a, b, c, d]), waits)? != word([a, b, c, d]) {
            return Ok(false);
        }
        for n in [5, 6, 4] {
            if self.write(site + n as u64, &new[n..=n]) != 1 {
                return Err(Errno::EFAULT);
            }
        }
        self.swap(site, waits, word([e, f, g, h]))?;
        Ok(true)
    }
}
