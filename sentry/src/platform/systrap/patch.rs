//! Call sites that are replaced by a jump into the stub, so that a call takes no trap.
//!
//! Most calls of programs are `mov $number, %eax; syscall`: seven bytes, as long as `jmp *slot`, an indirect jump through a word at an address
//! of 32 bits. Each site has a *slot* of its own in a table that lies low in the guest's memory; the word leads to the code behind
//! it, which puts number and return address where `syscall` would, and enters the stub.
//!
//! The C library's `syscall` has the number in a register, and its `read` gets 0 by `xor`: there it is `syscall; cmp $-4095, %rax` (or -4096), eight
//! bytes, that become the jump; the slot makes the comparison before it goes back. The jump is written so that its third byte, where the comparison was, begins an instruction
//! that no program may execute (`in`): who is about to compare, or jumps there, faults, and the comparison is made for it.
//!
//! Where a compiler put the address of an argument between number and call, as glibc has it where threads are made (`lea signals(%rip), %rsi; syscall`), the
//! `lea` becomes the jump, and what it does is done in the slot. The `syscall` stays where it is: who jumps to it traps, and nobody can be inside.
//!
//! **When a site may be replaced.** Its page must be private (a shared one would change the file) and not writable (code that is being made or
//! changed is let alone), and it has been met [`HITS`] times. Where other threads may run through it, it is changed in steps that each of them
//! may meet, and only when its beginning lies in one quadword. Code that jumps between the two instructions, or is restarted there after a
//! signal, meets a byte that is no instruction (`SLOTS >> 16`): the fault is taken for the call that it was. Code that reads itself sees the
//! change.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::layout::{CODE, at};
use super::stub_image::StubCode;

/// Where the table lies.
pub(super) const SLOTS: u64 = 0x6_0000;
/// Bytes of the table.
pub(super) const SLOTS_SIZE: u64 = 0x1_0000;
/// Bytes of a slot: the word (8), `movabs $return, %rcx` (10), `mov $number, %eax` (5), `jmp *entry(%rip)` (6); or, for a call that is answered
/// from the context, the word, `movabs $return, %rcx`, `mov %gs:answer, %rax` (9), `jmp *%rcx` (2).
const SLOT_SIZE: u64 = 32;
/// The first slot's place is the address of the stub's entry.
const ENTRY: u64 = SLOTS;
/// How often a call must be met before its site is replaced.
pub(super) const HITS: u32 = 16;
/// Most sites whose calls are counted.
const COUNTED: usize = 4096;
/// Bytes of a site.
pub(super) const SITE_SIZE: usize = 7;

/// Bytes of a site where the result is compared.
pub(super) const COMPARED_SIZE: usize = 8;
/// Behind its first byte of four, what a result is compared with: the lowest number of an error, or the highest of none.
const ERRORS: std::ops::RangeInclusive<i64> = -4096..=-4095;

/// What `syscall; cmp $number, %rax` compares with, where that is one of [`ERRORS`].
pub(super) fn comparison(site: [u8; COMPARED_SIZE]) -> Option<u64> {
    let [0x0f, 0x05, 0x48, 0x3d, number @ ..] = site else { return None };
    let number = i64::from(i32::from_le_bytes(number));
    ERRORS.contains(&number).then_some(number.cast_unsigned())
}

/// The sites of one address space.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Patches {
    hits: HashMap<u64, u32>,
    sites: HashSet<u64>,
    /// With what they compare.
    compared: HashMap<u64, u64>,
    /// Slots in use.
    slots: u64,
    /// Those that answer by themselves: where they lie, for which site, which call.
    answering: Vec<(u64, u64, u32)>,
    /// Nothing is answered any more.
    silent: bool,
    /// Nothing is replaced any more: somebody looks at the code.
    shown: bool,
    /// What was replaced, as long as it is.
    replaced: Vec<Replaced>,
    /// Sites that began with a breakpoint for a moment, while they were changed under running threads.
    guarded: HashSet<u64>,
    /// Every slot, with its site.
    places: Vec<(u64, u64, SlotKind)>,
}

/// A site that has been replaced.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Replaced {
    pub(super) site: u64,
    pub(super) old: Vec<u8>,
    pub(super) new: Vec<u8>,
}

/// What a slot does.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum SlotKind {
    /// Loads a number.
    Number,
    /// Loads the answer.
    Answer,
    /// Compares what came of the call.
    Comparison,
    /// Loads an address, which it has done from this place on.
    Address(u64),
}

/// What has to be written to replace a site.
pub(super) struct Patch {
    /// Where the slot lies.
    pub(super) slot: u64,
    /// Its bytes.
    pub(super) slot_bytes: Vec<u8>,
    /// The site's new bytes.
    pub(super) site_bytes: Vec<u8>,
    /// Whether the table is not there yet: then this goes to its beginning.
    pub(super) table_bytes: Option<[u8; 8]>,
    /// Whether the call is answered without the sentry.
    pub(super) answers: bool,
    number: u32,
}

/// The number in `mov $number, %eax; syscall`, by the byte before it, which may make that another register's (REX.B without REX.W; Intel SDM, volume 2,
/// 2.2.1). What is no such instruction but looks like it is known by its number, which is not that of the call.
pub(super) fn number(before: Option<u8>, site: [u8; SITE_SIZE]) -> Option<u32> {
    match (before, site) {
        (Some(0x41 | 0x43 | 0x45 | 0x47), _) => None,
        (_, [0xb8, a, b, c, d, 0x0f, 0x05]) => Some(u32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}

impl Patches {
    /// A call trapped behind the site at this address; whether it is time to replace it.
    pub(super) fn met(&mut self, site: u64) -> bool {
        if self.shown || self.hits.len() >= COUNTED && !self.hits.contains_key(&site) {
            return false;
        }
        let hits = self.hits.entry(site).or_default();
        *hits = hits.saturating_add(1);
        // Asked again ever more rarely: it may not have been possible the first time.
        *hits >= HITS && hits.is_power_of_two()
    }

    /// Plans the replacement; `None` when the table is full. `answer` is where the context has the call's value, if it has.
    pub(super) fn plan(&self, site: u64, number: u32, answer: Option<usize>) -> Option<Patch> {
        let answer = answer.filter(|_| !self.silent);
        let slot = self.free_slot(SLOT_SIZE)?;
        let mut slot_bytes = (slot + 8).to_le_bytes().to_vec();
        slot_bytes.extend([0x48, 0xb9]);
        slot_bytes.extend((site + SITE_SIZE as u64).to_le_bytes());
        if let Some(answer) = answer {
            slot_bytes.extend([0x65, 0x48, 0x8b, 0x04, 0x25]);
            slot_bytes.extend(u32::try_from(answer).ok()?.to_le_bytes());
            slot_bytes.extend([0xff, 0xe1]);
        } else {
            slot_bytes.push(0xb8);
            slot_bytes.extend(number.to_le_bytes());
            jump_by_word(&mut slot_bytes, slot, ENTRY)?;
        }
        let patch = self.patch(slot, slot_bytes, jump_to(slot)?);
        Some(Patch { answers: answer.is_some(), number, ..patch })
    }

    /// The same for a site with a [`comparison`]. Where the call is made again, two bytes before the comparison in the slot, there is a `syscall`.
    pub(super) fn plan_compared(&self, site: u64, bytes: [u8; COMPARED_SIZE]) -> Option<Patch> {
        let slot = self.free_slot(2 * SLOT_SIZE)?;
        let comparison = slot + 8 + 10 + 6 + 2;
        let back = slot + 40;
        let mut slot_bytes = (slot + 8).to_le_bytes().to_vec();
        slot_bytes.extend([0x48, 0xb9]);
        slot_bytes.extend(comparison.to_le_bytes());
        jump_by_word(&mut slot_bytes, slot, ENTRY)?;
        slot_bytes.extend(bytes);
        jump_by_word(&mut slot_bytes, slot, back)?;
        slot_bytes.resize(40, 0);
        slot_bytes.extend((site + COMPARED_SIZE as u64).to_le_bytes());
        let [a, b, c, d] = u32::try_from(slot).ok()?.to_le_bytes();
        // The same jump as above by another of its encodings: an index register of none may have any scale.
        let site_bytes = vec![0xff, 0x24, 0xe5, a, b, c, d, 0x90];
        Some(self.patch(slot, slot_bytes, site_bytes))
    }

    /// The same for a site where an address is loaded last, as `load` does.
    pub(super) fn plan_address(&self, site: u64, load: &Address) -> Option<Patch> {
        let slot = self.free_slot(2 * SLOT_SIZE)?;
        let mut slot_bytes = (slot + 8).to_le_bytes().to_vec();
        slot_bytes.extend(load.bytes());
        slot_bytes.extend([0x48, 0xb9]);
        slot_bytes.extend((site + SITE_SIZE as u64 + 2).to_le_bytes());
        jump_by_word(&mut slot_bytes, slot, ENTRY)?;
        Some(self.patch(slot, slot_bytes, jump_to(slot)?))
    }

    /// For a call that is not answered by its slot.
    fn patch(&self, slot: u64, slot_bytes: Vec<u8>, site_bytes: Vec<u8>) -> Patch {
        Patch { slot, slot_bytes, site_bytes, table_bytes: self.table_bytes(), answers: false, number: 0 }
    }

    /// Bytes of the table that are in use, its first word included; 0 while there is none.
    pub(super) fn table_size(&self) -> Option<u64> {
        let size = if self.slots == 0 { 0 } else { self.slots.checked_add(1)?.checked_mul(SLOT_SIZE)? };
        (size <= SLOTS_SIZE).then_some(size)
    }

    /// What the first word of the table says.
    pub(super) fn entry() -> u64 {
        CODE + StubCode::linked().entry
    }

    fn free_slot(&self, size: u64) -> Option<u64> {
        let slot = SLOTS + (self.slots + 1) * SLOT_SIZE;
        (slot + size <= SLOTS + SLOTS_SIZE).then_some(slot)
    }

    fn table_bytes(&self) -> Option<[u8; 8]> {
        (self.slots == 0).then(|| (CODE + StubCode::linked().entry).to_le_bytes())
    }

    /// The site is about to be replaced: a thread that meets half of what is written there is inside of it.
    pub(super) fn begin(&mut self, site: u64) {
        self.sites.insert(site);
    }

    /// The same of a site that compares with this.
    pub(super) fn begin_compared(&mut self, site: u64, with: u64) {
        self.compared.insert(site, with);
    }

    /// It could not be replaced.
    pub(super) fn give_up(&mut self, site: u64) {
        self.sites.remove(&site);
        self.compared.remove(&site);
    }

    /// The site has been replaced as planned.
    pub(super) fn done(&mut self, site: u64, old: &[u8], plan: &Patch) {
        self.slots += 1;
        let kind = if plan.answers { SlotKind::Answer } else { SlotKind::Number };
        self.remember(site, old, plan, kind);
        if plan.answers {
            self.answering.push((plan.slot, site, plan.number));
        }
    }

    /// The site that compares has been replaced.
    pub(super) fn done_compared(&mut self, site: u64, old: &[u8], plan: &Patch) {
        self.slots += 2;
        self.remember(site, old, plan, SlotKind::Comparison);
    }

    /// The site that loads an address, as `load` does, has been replaced.
    pub(super) fn done_address(&mut self, site: u64, plan: &Patch, load: &Address) {
        self.slots += 2;
        self.remember(site, load.old(), plan, SlotKind::Address(8 + load.bytes().len() as u64));
    }

    fn remember(&mut self, site: u64, old: &[u8], plan: &Patch, kind: SlotKind) {
        self.replaced.push(Replaced { site, old: old.to_vec(), new: plan.site_bytes.clone() });
        self.places.push((plan.slot, site, kind));
    }

    /// Nothing is to be replaced any more: what has been, to be put back.
    pub(super) fn show(&mut self) -> Vec<Replaced> {
        self.shown = true;
        std::mem::take(&mut self.replaced)
    }

    /// A site is about to begin with a breakpoint, as it is changed while threads may run through it.
    pub(super) fn guard(&mut self, site: u64) {
        self.guarded.insert(site);
    }

    /// Whether it did, or just does.
    pub(super) fn was_guarded(&self, site: u64) -> bool {
        self.guarded.contains(&site)
    }

    /// Where in its own code a program is that is in a slot.
    pub(super) fn original(&self, rip: u64) -> Option<u64> {
        let within = |(slot, ..): &&(u64, u64, SlotKind)| rip.checked_sub(*slot).is_some_and(|at| at < 40);
        let (slot, site, kind) = self.places.iter().rev().find(within)?;
        // What was not loaded yet is loaded once more; only what a call changes anyhow has been.
        Some(match (kind, rip - slot) {
            (SlotKind::Number, 23..) => site + 5,
            (SlotKind::Answer, 27..) => site + 7,
            (SlotKind::Comparison, 32..) => site + 8,
            (SlotKind::Comparison, 26..) => site + 2,
            (SlotKind::Address(loaded), at) if at >= *loaded => site + SITE_SIZE as u64,
            _ => *site,
        })
    }

    /// Nothing is to be answered any more: the slots that still do, each with one that does not. `None` when the table is full.
    pub(super) fn silence(&mut self) -> Option<Vec<(u64, Patch)>> {
        self.silent = true;
        let mut plans = Vec::new();
        for (slot, site, number) in self.answering.clone() {
            let plan = self.plan(site, number, None)?;
            self.slots += 1;
            self.places.push((plan.slot, site, SlotKind::Number));
            plans.push((slot, plan));
        }
        self.answering.clear();
        Some(plans)
    }

    /// Whether code that faults at this address is a replaced site, entered where its `syscall` was.
    pub(super) fn entered_inside(&self, address: u64) -> bool {
        address.checked_sub(5).is_some_and(|site| self.sites.contains(&site))
    }

    /// Where code goes on that faults at this address since the comparison that was there has been replaced, and with what it compared.
    pub(super) fn behind_comparison(&self, address: u64) -> Option<(u64, u64)> {
        let site = address.checked_sub(2)?;
        self.compared.get(&site).map(|with| (site + COMPARED_SIZE as u64, *with))
    }
}

/// `jmp *slot`, by a word at an address of 32 bits.
fn jump_to(slot: u64) -> Option<Vec<u8>> {
    let [a, b, c, d] = u32::try_from(slot).ok()?.to_le_bytes();
    Some(vec![0xff, 0x24, 0x25, a, b, c, d])
}

/// `jmp *word(%rip)` at the end of what will lie at `slot`.
fn jump_by_word(bytes: &mut Vec<u8>, slot: u64, word: u64) -> Option<()> {
    bytes.extend([0xff, 0x25]);
    let behind = slot + bytes.len() as u64 + 4;
    bytes.extend(i32::try_from(word.cast_signed() - behind.cast_signed()).ok()?.to_le_bytes());
    Some(())
}

/// Flags after `cmp $with, %rax` (Intel SDM, volume 2, CMP).
pub(super) fn flags_of_comparison(rax: u64, with: u64, flags: u64) -> u64 {
    let difference = rax.wrapping_sub(with);
    let bit = |set: bool, n: u32| u64::from(set) << n;
    let overflow = ((rax ^ with) & (rax ^ difference)) >> 63 != 0;
    let kept = flags & !(0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x800);
    kept | bit(rax < with, 0)
        | bit((difference & 0xff).count_ones().is_multiple_of(2), 2)
        | bit((rax ^ with ^ difference) & 0x10 != 0, 4)
        | bit(difference == 0, 6)
        | bit(difference >> 63 != 0, 7)
        | bit(overflow, 11)
}

const _: () = {
    // What stands where `syscall` was must be no instruction: 0x06 is none in 64-bit mode.
    assert!(SLOTS >> 16 == 6 && SLOTS_SIZE <= 0x1_0000);
    assert!(at::REGS.is_multiple_of(8));
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const COMPARED: [u8; 8] = [0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff];

    #[test]
    fn only_comparisons_with_errors_are_sites() {
        let with = |low: u8| comparison([0x0f, 0x05, 0x48, 0x3d, low, 0xf0, 0xff, 0xff]);
        assert_eq!(
            (with(1), with(0)),
            (Some((-4095_i64).cast_unsigned()), Some((-4096_i64).cast_unsigned()))
        );
        assert_eq!((with(2), comparison([0x0f, 0x05, 0x48, 0x3c, 1, 0xf0, 0xff, 0xff])), (None, None));
    }

    #[test]
    fn only_a_number_and_a_call_are_a_site() {
        assert_eq!(number(None, [0xb8, 39, 0, 0, 0, 0x0f, 0x05]), Some(39));
        assert_eq!(number(Some(0x40), [0xb8, 39, 0, 0, 0, 0x0f, 0x05]), Some(39));
        // mov $39, %r8d
        assert_eq!(number(Some(0x41), [0xb8, 39, 0, 0, 0, 0x0f, 0x05]), None);
        assert_eq!(number(None, [0xb8, 39, 0, 0, 0, 0x0f, 0x34]), None);
        assert_eq!(number(None, [0x48, 39, 0, 0, 0, 0x0f, 0x05]), None);
    }

    #[test]
    fn what_answers_can_be_silenced() {
        let mut patches = Patches::default();
        for (site, answer) in [(0x1000, Some(at::ANSWERS)), (0x2000, None), (0x3000, Some(at::ANSWERS))] {
            let plan = patches.plan(site, 39, answer).unwrap();
            assert_eq!(plan.answers, answer.is_some());
            patches.done(site, &[], &plan);
        }
        let plans = patches.silence().unwrap();
        let moved: Vec<_> = plans.iter().map(|(old, plan)| (*old, plan.slot, plan.answers)).collect();
        let slot = |n: u64| SLOTS + n * SLOT_SIZE;
        assert_eq!(moved, [(slot(1), slot(4), false), (slot(3), slot(5), false)]);
        assert!(patches.silence().unwrap().is_empty());
        assert!(!patches.plan(0x4000, 39, Some(at::ANSWERS)).unwrap().answers);
    }

    #[test]
    fn what_was_replaced_is_told_once_and_who_is_in_a_slot_has_a_place() {
        let mut patches = Patches::default();
        let bytes = [0xb8, 39, 0, 0, 0, 0x0f, 0x05];
        let number = patches.plan(0x1000, 39, None).unwrap();
        patches.done(0x1000, &bytes, &number);
        let answer = patches.plan(0x2000, 39, Some(at::ANSWERS)).unwrap();
        patches.done(0x2000, &bytes, &answer);
        let compared = patches.plan_compared(0x3000, COMPARED).unwrap();
        patches.done_compared(0x3000, &COMPARED, &compared);
        let place = |slot: u64, at: &[u64]| {
            at.iter().map(|at| patches.original(slot + at).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(place(number.slot, &[8, 18, 23]), [0x1000, 0x1000, 0x1005]);
        assert_eq!(place(answer.slot, &[8, 18, 27]), [0x2000, 0x2000, 0x2007]);
        assert_eq!(place(compared.slot, &[8, 18, 24, 26, 32]), [0x3000, 0x3000, 0x3000, 0x3002, 0x3008]);
        assert_eq!(patches.original(0x3002), None);
        let shown = patches.show();
        assert_eq!(shown.iter().map(|one| one.site).collect::<Vec<_>>(), [0x1000, 0x2000, 0x3000]);
        assert_eq!((shown[0].old.as_slice(), &shown[2].new), (&bytes[..], &compared.site_bytes));
        assert!(patches.show().is_empty());
        assert!((0..64).all(|_| !patches.met(0x4000)), "nothing is replaced any more");
    }

    #[test]
    fn a_site_is_due_ever_more_rarely_and_slots_end() {
        let mut patches = Patches::default();
        let due: Vec<u32> = (1..100).filter(|_| patches.met(0x40_0000)).collect();
        assert_eq!(due, [16, 32, 64]);
        let mut planned = 0;
        while let Some(patch) =
            patches.plan(0x40_0000 + planned, 1, (planned % 32 == 0).then_some(at::ANSWERS))
        {
            assert_eq!(patch.table_bytes.is_some(), planned == 0);
            assert!(patch.slot_bytes.len() as u64 <= SLOT_SIZE);
            patches.begin(0x40_0000 + planned);
            assert!(patches.entered_inside(0x40_0005 + planned), "while it is written");
            patches.done(0x40_0000 + planned, &[], &patch);
            planned += 16;
        }
        assert_eq!(planned / 16, SLOTS_SIZE / SLOT_SIZE - 1);
        assert!(patches.entered_inside(0x40_0005));
        assert!(!patches.entered_inside(0x40_0006));
        assert!(patches.plan_compared(0x40_0000, COMPARED).is_none());
        let mut patches = Patches::default();
        let patch = patches.plan_compared(0x40_0000, COMPARED).unwrap();
        assert_eq!((patch.slot_bytes.len(), patch.site_bytes.len()), (48, COMPARED_SIZE));
        patches.begin_compared(0x40_0000, 5);
        assert!(patches.behind_comparison(0x40_0002).is_some(), "while it is written");
        patches.done_compared(0x40_0000, &COMPARED, &patch);
        assert_eq!(patches.behind_comparison(0x40_0002), Some((0x40_0008, 5)));
        assert_eq!(patches.behind_comparison(0x40_0003), None);
        assert!(patches.plan(0x40_0000, 1, None).unwrap().slot >= patch.slot + 2 * SLOT_SIZE);
        assert!(!patches.entered_inside(3));
        patches.begin(0x50_0000);
        patches.give_up(0x50_0000);
        assert!(!patches.entered_inside(0x50_0005));
    }

    /// As the processor does it.
    #[test]
    fn a_comparison_sets_the_flags_that_it_sets() {
        let errors = (-4095_i64).cast_unsigned();
        for rax in [0, 1, 7, u64::MAX, errors, errors - 1, errors + 1, 1 << 63, (1 << 63) - 1, 0xfff, 0x1000]
        {
            let (flags, others): (u64, u64);
            // SAFETY: compares a register and reads the flags by way of the stack.
            unsafe {
                core::arch::asm!("cmp rax, -4095", "pushfq", "pop {}", out(reg) flags, in("rax") rax);
                core::arch::asm!("cmp rax, -4096", "pushfq", "pop {}", out(reg) others, in("rax") rax);
            }
            let all = 0x8d5;
            assert_eq!(flags_of_comparison(rax, errors, 0x202 | all) & all, flags & all, "{rax:#x}");
            assert_eq!(flags_of_comparison(rax, errors - 1, 0x202) & all, others & all, "{rax:#x}");
        }
    }
}
