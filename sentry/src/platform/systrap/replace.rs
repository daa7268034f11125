//! Replacing a call site in a guest that is stopped behind it; the plan is [`super::patch`]'s.

use std::sync::Arc;

use super::address::{Address, BEFORE, LOOKED_AT};
use super::interrupt::answer_of;
use super::layout::{at, kind};
use super::patch::{self, COMPARED_SIZE, Patch, Replaced, SITE_SIZE, SLOTS, SLOTS_SIZE};
use super::thread::StubThread;
use crate::error::Errno;
use crate::platform::Memory;

const WRITABLE: i32 = READABLE | libc::PROT_WRITE;
/// `int3`.
const BREAKPOINT: u8 = 0xcc;
const READABLE: i32 = libc::PROT_READ | libc::PROT_EXEC;

impl StubThread {
    /// The site behind which the guest stopped, when it is time to replace it: where most of its kinds begin.
    pub(super) fn replaceable_site(&self) -> Option<u64> {
        // Behind a signal's handler the guest goes on where it was before, not behind this call.
        if self.came_with & kind::TRAPPED == 0 || self.called == libc::SYS_rt_sigreturn.unsigned_abs() {
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
        let Some(first) = bytes.first_chunk::<SITE_SIZE>().filter(|_| read >= SITE_SIZE) else {
            return Err(Errno::EFAULT);
        };
        let last = bytes.last_chunk().filter(|_| read == bytes.len());
        // What is on its page is of the same mapping.
        let before = self.before_site(site);
        if let Some(number) = patch::number(before.map(|[.., last]| last), *first)
            && u64::from(number) == self.called
        {
            self.replace_numbered(site, first, number, protection)?;
        } else if let Some(old) = last
            && let Some(with) = patch::comparison(*old)
        {
            self.replace_compared(site + SITE_SIZE as u64 - 2, old, with, protection)?;
        } else if let Some(before) = before
            && let Some(load) = Address::read(site - BEFORE as u64, before, *first)
            && load.is_loaded(&self.peek_registers().0)
        {
            self.replace_address(site - BEFORE as u64, &load, protection)?;
        }
        drop(lock);
        Ok(())
    }

    /// What lies before a site, where that is of its page: so it is of the same mapping.
    fn before_site(&self, site: u64) -> Option<[u8; LOOKED_AT]> {
        let mut before = [0; LOOKED_AT];
        let place = site.checked_sub(LOOKED_AT as u64).filter(|place| place / 0x1000 == site / 0x1000)?;
        (self.read(place, &mut before) == LOOKED_AT).then_some(before)
    }

    fn replace_numbered(
        &mut self,
        site: u64,
        old: &[u8; SITE_SIZE],
        number: u32,
        protection: i32,
    ) -> Result<(), Errno> {
        let answer = answer_of(u64::from(number)).filter(|place| self.answered >> place & 1 != 0);
        let answer = answer.map(|place| at::ANSWERS + 8 * place);
        let Some(plan) = self.stub.patches().plan(site, number, answer) else { return Ok(()) };
        self.stub.patches().begin(site);
        if self.put(site, old, &plan, protection)? {
            self.stub.patches().done(site, old, &plan);
        } else {
            self.stub.patches().give_up(site);
        }
        Ok(())
    }

    fn replace_compared(
        &mut self,
        site: u64,
        old: &[u8; COMPARED_SIZE],
        with: u64,
        protection: i32,
    ) -> Result<(), Errno> {
        let Some(plan) = self.stub.patches().plan_compared(site, *old) else { return Ok(()) };
        self.stub.patches().begin_compared(site, with);
        if self.put(site, old, &plan, protection)? {
            self.stub.patches().done_compared(site, old, &plan);
        } else {
            self.stub.patches().give_up(site);
        }
        Ok(())
    }

    fn replace_address(&mut self, site: u64, load: &Address, protection: i32) -> Result<(), Errno> {
        let Some(plan) = self.stub.patches().plan_address(site, load) else { return Ok(()) };
        if self.put(site, load.old(), &plan, protection)? {
            self.stub.patches().done_address(site, &plan, load);
        }
        Ok(())
    }

    /// Writes slot and site. Whether the site has been replaced: where the host refuses a change of protection (it may have no room for more
    /// mappings, `vm.max_map_count` of `man 5 proc_sys_vm`), all is as before.
    fn put(&mut self, site: u64, old: &[u8], plan: &Patch, protection: i32) -> Result<bool, Errno> {
        if !self.put_slot(plan)? {
            return Ok(false);
        }
        let pages = pages_of(site, old.len());
        if let Err(errno) = self.set(pages, WRITABLE) {
            // Of two pages the first one may be changed.
            self.set(pages, protection)?;
            return refused(errno);
        }
        let written = match self.stub.is_single() {
            true if self.write(site, &plan.site_bytes) == old.len() => Ok(true),
            true => Err(Errno::EFAULT),
            false => self.replace_under_threads(site, old, &plan.site_bytes, pages),
        };
        if written.is_err() {
            // Half of it is there.
            self.set(pages, WRITABLE)?;
            self.put_all_back(site, old, pages)?;
        }
        self.set(pages, protection)?;
        Ok(written.unwrap_or(false))
    }

    /// Writes the slot, and the table where there is none. Whether it is there.
    fn put_slot(&mut self, plan: &Patch) -> Result<bool, Errno> {
        if let Some(table) = plan.table_bytes {
            if let Err(errno) = self.map(SLOTS, SLOTS_SIZE, WRITABLE, libc::MAP_PRIVATE, None) {
                return refused(errno);
            }
            if self.write(SLOTS, &table) != table.len() {
                return Err(Errno::EFAULT);
            }
        }
        // A mapping of its own: nothing of it is split.
        self.set((SLOTS, SLOTS_SIZE), WRITABLE)?;
        let slot = self.write(plan.slot, &plan.slot_bytes);
        self.set((SLOTS, SLOTS_SIZE), READABLE)?;
        Ok(slot == plan.slot_bytes.len())
    }

    /// `mprotect`.
    fn set(&self, (address, length): (u64, u64), protection: i32) -> Result<(), Errno> {
        #[cfg(test)]
        if let Err(errno) = tests::refuse() {
            if length == 0x2000 {
                self.protect(address, 0x1000, protection)?;
            }
            return Err(errno);
        }
        self.protect(address, length, protection).map(drop)
    }

    /// Whether these bytes are there.
    fn has(&self, site: u64, bytes: &[u8]) -> bool {
        let mut now = vec![0; bytes.len()];
        self.read(site, &mut now) == now.len() && now == bytes
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
        self.set((SLOTS, SLOTS_SIZE), WRITABLE)?;
        for (slot, plan) in &plans {
            if self.write(plan.slot, &plan.slot_bytes) != plan.slot_bytes.len() {
                return Err(Errno::EFAULT);
            }
            // All of the table lies below 4 GiB: the upper half of a word stays 0.
            let low = |address: u64| u32::try_from(address).map_err(|_| Errno::EFAULT);
            self.swap(*slot, low(slot + 8)?, low(plan.slot + 8)?)?;
        }
        self.set((SLOTS, SLOTS_SIZE), READABLE)?;
        drop(lock);
        Ok(())
    }

    /// Puts all sites of this address space back, replaces no more, and has the guest go on in its own code. Slots stay: others may be in them.
    /// `protection`: of the page of an address that is the guest's alone.
    pub(super) fn restore_sites(&mut self, protection: &dyn Fn(u64) -> Option<i32>) -> Result<(), Errno> {
        let stub = Arc::clone(&self.stub);
        let lock = stub.replacing();
        let replaced = self.stub.patches().show();
        for Replaced { site, old, new } in &replaced {
            let last = site + old.len() as u64 - 1;
            // The guest may have put something else there since, also what others have, too.
            if self.has(*site, new)
                && let (Some(first), Some(last)) = (protection(*site), protection(last))
            {
                self.put_back(*site, old, [first, last])?;
            }
        }
        drop(lock);
        self.take_registers();
        if let Some(rip) = self.stub.patches().original(self.regs.rip) {
            self.regs.rip = rip;
        }
        Ok(())
    }

    /// Puts a site back on pages that have these protections, the first and the last one.
    fn put_back(&mut self, site: u64, old: &[u8], protections: [i32; 2]) -> Result<(), Errno> {
        let pages = pages_of(site, old.len());
        let written = self.set(pages, WRITABLE).and_then(|()| self.put_all_back(site, old, pages));
        for (page, protection) in [pages.0, pages.0 + pages.1 - 0x1000].into_iter().zip(protections) {
            self.set((page, 0x1000), protection)?;
        }
        written
    }

    /// Puts back what a site was, on pages that can be written.
    fn put_all_back(&mut self, site: u64, old: &[u8], pages: (u64, u64)) -> Result<(), Errno> {
        match self.stub.is_single() {
            true => self.put_byte_by_byte(site, old, (0..old.len()).rev()),
            false => self.put_back_under_threads(site, old, pages),
        }
    }

    fn put_byte_by_byte(
        &mut self,
        site: u64,
        bytes: &[u8],
        order: impl IntoIterator<Item = usize>,
    ) -> Result<(), Errno> {
        for n in order {
            let byte = bytes.get(n..=n).ok_or(Errno::EFAULT)?;
            if self.write(site + n as u64, byte) != 1 {
                return Err(Errno::EFAULT);
            }
        }
        Ok(())
    }

    /// Puts a site back that other threads may be running through: its first byte becomes a breakpoint, at which they go on only when
    /// all is done ([`Patches::was_guarded`](patch::Patches::was_guarded)); then the rest from its end on, so that what is no instruction stays
    /// so until what follows it is there; at last the first byte. In between the host interrupts all threads, as above.
    fn put_back_under_threads(&mut self, site: u64, old: &[u8], pages: (u64, u64)) -> Result<(), Errno> {
        let inside = if old.len() == COMPARED_SIZE { 2 } else { 5 };
        self.guard(site)?;
        self.interrupt_all(pages)?;
        let rest = (1..old.len()).rev().filter(|n| *n != inside).chain(std::iter::once(inside));
        self.put_byte_by_byte(site, old, rest)?;
        self.interrupt_all(pages)?;
        self.put_byte_by_byte(site, old, 0..1)
    }

    /// Makes the first byte a breakpoint, at which threads wait for the end of a change.
    fn guard(&mut self, site: u64) -> Result<(), Errno> {
        self.stub.patches().guard(site);
        self.put_byte_by_byte(site, &[BREAKPOINT], 0..1)
    }

    /// Has the host interrupt all threads of the guest: these pages lose a permission for a moment.
    fn interrupt_all(&self, pages: (u64, u64)) -> Result<(), Errno> {
        self.set(pages, READABLE)?;
        self.set(pages, WRITABLE)
    }

    /// Whether the guest met a breakpoint that was there for a moment alone, while a site was changed.
    pub(super) fn met_guard(&self, rip: u64) -> bool {
        let site = rip.wrapping_sub(1);
        if !self.stub.patches().was_guarded(site) {
            return false;
        }
        // Until it is done; then there may be a breakpoint of a debugger's.
        let lock = self.stub.replacing();
        let mut byte = [0];
        let read = self.read(site, &mut byte);
        drop(lock);
        read == 1 && byte[0] != BREAKPOINT
    }

    /// Replaces a site that other threads may be running through, in steps that each of them may meet: its beginning becomes a jump to
    /// itself, by one store into an aligned quadword (AMD64 Architecture Programmer's Manual, volume 2, 7.6.1); what stood for the second
    /// instruction becomes none that may be executed, byte by byte; then the rest; at last the beginning. Between the steps the host
    /// interrupts all threads, since pages lose a permission: so none of them has fetched half of what is changed. Where the beginning lies
    /// across quadwords, it is guarded by a breakpoint instead. `false` where it was not what was read.
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
        let inside = if old.len() == COMPARED_SIZE { 2 } else { 5 };
        if site % 8 > 4 {
            if !self.has(site, old) {
                return Ok(false);
            }
            self.guard(site)?;
            self.put_byte_by_byte(site, new, std::iter::once(inside))?;
            self.interrupt_all(pages)?;
            self.put_byte_by_byte(site, new, (1..new.len()).filter(|n| *n != inside))?;
            self.interrupt_all(pages)?;
            self.put_byte_by_byte(site, new, 0..1)?;
            return Ok(true);
        }
        let word = u32::from_le_bytes;
        let first = word([*a, *b, *c, *d]);
        if self.swap(site, first, word([0xeb, 0xfe, *c, *d]))? != first {
            return Ok(false);
        }
        self.put_byte_by_byte(site, new, std::iter::once(inside))?;
        self.interrupt_all(pages)?;
        self.put_byte_by_byte(site, new, (2..new.len()).filter(|n| *n != inside))?;
        self.swap(site, word([0xeb, 0xfe, *g, *h]), word([*e, *f, *g, *h]))?;
        Ok(true)
    }
}

/// Pages of a site: where they begin, and their length.
fn pages_of(site: u64, length: usize) -> (u64, u64) {
    let page = site & !0xfff;
    (page, (site + length as u64).next_multiple_of(0x1000) - page)
}

/// A change that the host refuses for want of room is not made; anything else is the end of the guest.
fn refused(errno: Errno) -> Result<bool, Errno> {
    if errno == Errno::ENOMEM { Ok(false) } else { Err(errno) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
pub(super) mod tests {
    use std::cell::Cell;

    use super::super::remote::Process;
    use super::super::tests::{PLATFORM, RX};
    use super::*;
    use crate::platform::tests::{TEXT, give_code};
    use crate::platform::{Memory, MemoryCall, Regs, Thread, Trap};

    thread_local! {
        /// How many changes of protection are still made before the host refuses one, and whether it refuses all after that.
        static REFUSES: Cell<(Option<u32>, bool)> = const { Cell::new((None, false)) };
    }

    /// As the host does without room for mappings, when it is this one's turn; of two pages it changes the first one all the same.
    pub(in super::super) fn refuse() -> Result<(), Errno> {
        let (left, all) = REFUSES.get();
        match left {
            None => Ok(()),
            Some(0) => {
                REFUSES.set((Some(0).filter(|_| all), all));
                Err(Errno::ENOMEM)
            }
            Some(left) => {
                REFUSES.set((Some(left - 1), all));
                Ok(())
            }
        }
    }

    /// `1: mov $39, %eax; syscall; jmp 1b`
    const LOOP: [u8; 9] = [0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    const RWX: i32 = RX | libc::PROT_WRITE;

    /// A guest with the loop at an address, of which it is time to replace the call; with another thread that never runs, too.
    fn guest(at: u64, threads: bool) -> (StubThread, Option<StubThread>) {
        let mut thread = PLATFORM.spare.take().unwrap();
        give_code(&mut thread, &[0x90]);
        let map = MemoryCall::Map {
            address: TEXT,
            length: 0x2000,
            protection: RWX,
            flags: libc::MAP_PRIVATE,
            file: None,
        };
        thread.change_memory(&map).unwrap();
        assert_eq!(thread.write(at, &LOOP), LOOP.len());
        protect(&mut thread, TEXT, 0x2000, RX);
        let other = threads.then(|| thread.spawn_thread().unwrap());
        thread.regs().rip = at;
        while thread.replaceable().is_none() {
            assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
        }
        (thread, other)
    }

    fn protect(thread: &mut StubThread, address: u64, length: u64, protection: i32) {
        thread.change_memory(&MemoryCall::Protect { address, length, protection }).unwrap();
    }

    /// How the host has a page of the guest: as in `/proc/PID/maps`.
    fn shown(thread: &StubThread, page: u64) -> String {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", thread.stub().pid())).unwrap();
        let of = |line: &&str| {
            let (range, _) = line.split_once(' ').unwrap();
            let (first, last) = range.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(first)..number(last)).contains(&page)
        };
        maps.lines().find(of).unwrap().split(' ').nth(1).unwrap().to_owned()
    }

    /// Whatever change of protection the host refuses: the site is replaced or is as it was, and nobody can write to its pages, or the guest
    /// is to end.
    #[test]
    fn a_host_without_room_leaves_a_site_whole() {
        // Within a page; across two; and with another thread, where the site's first bytes lie in one quadword.
        for (at, threads) in [(TEXT + 0x100, false), (TEXT + 0xffc, false), (TEXT + 0x100, true)] {
            let (mut as_before, mut replaced, mut ends) = (0, 0, 0);
            for (left, all) in (0..16).flat_map(|left| [(left, false), (left, true)]) {
                let (mut thread, _other) = guest(at, threads);
                REFUSES.set((Some(left), all));
                let result = thread.replace(RX);
                let met = REFUSES.take().0 != Some(left);
                let mut bytes = [0; SITE_SIZE];
                assert_eq!(thread.read(at, &mut bytes), SITE_SIZE);
                if result.is_err() {
                    ends += 1;
                    continue;
                }
                match bytes[0] {
                    0xb8 => as_before += 1,
                    _ => replaced += 1,
                }
                assert!(bytes == LOOP[..7] || bytes[..3] == [0xff, 0x24, 0x25], "{left} {all}: {bytes:x?}");
                assert!(met || bytes[0] == 0xff, "{left} {all}");
                for page in [TEXT, TEXT + 0x1000] {
                    assert_eq!(shown(&thread, page), "r-xp", "{left} {all}");
                }
                // And it goes on.
                assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
                assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
            }
            assert!(as_before > 0 && replaced > 0 && ends > 0, "{as_before} {replaced} {ends}");
        }
    }

    /// `1: mov $39, %eax; lea 0x10(%rip) or 0x10(%rbx), %rsi; syscall; jmp 1b`
    fn addressed(from: [u8; 2]) -> [u8; 16] {
        let [rex, modrm] = from;
        [0xb8, 39, 0, 0, 0, rex, 0x8d, modrm, 0x10, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf0]
    }

    /// Wherever it lies, and while others run through it, the call has the address that the program loads.
    #[test]
    fn a_call_behind_an_address_is_replaced() {
        for (place, from) in (0..9).flat_map(|place| [(place, [0x48, 0x35]), (place, [0x48, 0xb3])]) {
            // The last one lies across two pages.
            let at = TEXT + if place == 8 { 0xff8 } else { 0x100 + place };
            let expected = if from[1] == 0x35 { at + 12 + 0x10 } else { 0x7010 };
            let (mut thread, _) = guest(TEXT + 0x800, false);
            protect(&mut thread, TEXT, 0x2000, RWX);
            assert_eq!(thread.write(at, &addressed(from)), 16);
            protect(&mut thread, TEXT, 0x2000, RX);
            *thread.regs() = Regs { rip: at, rbx: 0x7000, ..*thread.regs() };
            let mut other = thread.spawn_thread().unwrap();
            let (mut child, registers) = (thread.spawn_thread().unwrap(), *thread.regs());
            for one in [&mut other, &mut child] {
                *one.regs() = registers;
            }
            let other = std::thread::spawn(move || {
                for _ in 0..2_000 {
                    assert_eq!(other.resume(), Trap::Syscall { number: 39 });
                    assert_eq!(other.arguments()[1], expected);
                }
            });
            let mut traps = 0;
            for _ in 0..100 {
                assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
                assert_eq!(thread.arguments()[1], expected);
                traps += u32::from(thread.came_with & kind::TRAPPED != 0);
                if thread.replaceable().is_some() {
                    thread.replace(RX).unwrap();
                }
            }
            other.join().unwrap();
            assert!(traps < 40 && !thread.has(at, &addressed(from)), "{place} {from:x?}: {traps}");
            // Who jumps to the call makes it.
            *child.regs() = Regs { rip: at + 12, rax: 40, rsi: 5, ..*child.regs() };
            assert_eq!(child.resume(), Trap::Syscall { number: 40 });
            assert_eq!((child.arguments()[1], child.came_with & kind::TRAPPED), (5, kind::TRAPPED));
            thread.show_code(&|_| Some(RX)).unwrap();
            assert!(thread.has(at, &addressed(from)), "{place}");
            assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
            assert_eq!(thread.arguments()[1], expected);
        }
    }

    /// `1: nop...; syscall; jmp 1b`, behind what looks like the number of a call, or like an address that is loaded.
    #[test]
    fn what_only_looks_like_a_site_is_left_alone() {
        // mov $39, %r8d, also where that is the call's number; movabs $0x27b8..., %rbx; the end of a movabs that looks like a lea.
        let looks: [(&[u8], u64); 4] = [
            (&[0x41, 0xb8, 39, 0, 0, 0], 40),
            (&[0x41, 0xb8, 39, 0, 0, 0], 39),
            (&[0x48, 0xbb, 1, 2, 3, 0xb8, 39, 0, 0, 0], 40),
            (&[0x48, 0xbb, 1, 0x48, 0x8d, 0x35, 0x10, 0, 0, 0], 40),
        ];
        for (look, number) in looks {
            let (mut thread, _) = guest(TEXT + 0x800, false);
            protect(&mut thread, TEXT, 0x2000, RWX);
            let back = (-(look.len() as i8) - 4).cast_unsigned();
            let code = [look, &[0x0f, 0x05, 0xeb, back]].concat();
            assert_eq!(thread.write(TEXT + 0x100, &code), code.len());
            protect(&mut thread, TEXT, 0x2000, RX);
            *thread.regs() = Regs { rip: TEXT + 0x100, rax: number, r8: 7, ..*thread.regs() };
            for _ in 0..100 {
                assert_eq!(thread.resume(), Trap::Syscall { number }, "{look:x?}");
                if thread.replaceable().is_some() {
                    thread.replace(RX).unwrap();
                }
                thread.set_result(number);
            }
            assert!(thread.has(TEXT + 0x100, &code), "{look:x?}");
        }
    }

    #[test]
    fn each_page_of_a_site_keeps_its_protection() {
        let at = TEXT + 0xffc;
        let (mut thread, _) = guest(at, false);
        thread.replace(RX).unwrap();
        // The guest has changed the second one since.
        protect(&mut thread, TEXT + 0x1000, 0x1000, RWX);
        let protection = |address: u64| Some(if address < TEXT + 0x1000 { RX } else { RWX });
        thread.show_code(&protection).unwrap();
        assert!(thread.has(at, &LOOP));
        let all = [TEXT, TEXT + 0x1000].map(|page| shown(&thread, page));
        assert_eq!(all, ["r-xp", "rwxp"]);
        // One of which a page is not the guest's alone is left as it is.
        let (mut thread, _) = guest(at, false);
        thread.replace(RX).unwrap();
        thread.show_code(&|address| (address < TEXT + 0x1000).then_some(RX)).unwrap();
        assert!(!thread.has(at, &LOOP));
    }
}
