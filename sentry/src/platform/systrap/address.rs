//! The `lea` of a call site where the address of an argument is loaded between number and call ([`super::patch`]).

use super::patch::SITE_SIZE;
use crate::platform::Regs;

/// Bytes of such a site before those that all kinds have.
pub(super) const BEFORE: usize = 2;
/// And one more, which may be a prefix of the first.
pub(super) const LOOKED_AT: usize = BEFORE + 1;

/// `lea distance(base), register`, seven bytes long, with a `syscall` behind it (Intel SDM, volume 2, 2.1.5 and LEA).
pub(super) struct Address {
    old: [u8; SITE_SIZE],
    /// The same for a slot, wherever that lies.
    bytes: Vec<u8>,
    /// Numbers of the registers: which is loaded, and from which.
    to: u8,
    base: Base,
    distance: i64,
}

/// From where.
#[derive(Clone, Copy)]
enum Base {
    Register(u8),
    /// The place behind it.
    Next(u64),
}

/// `REX.W`, and what makes the registers those from 8 on.
const REX: std::ops::RangeInclusive<u8> = 0x48..=0x4f;
/// Makes addresses those of 32 bits.
const ADDRESS_SIZE_PREFIX: u8 = 0x67;
/// Registers that a call changes: what they were is not known behind it.
const CHANGED: [u8; 3] = [0, 1, 11];

impl Address {
    /// The one that begins at `site`, two bytes before those that other sites have.
    pub(super) fn read(
        site: u64,
        [prefix, rex, lea]: [u8; LOOKED_AT],
        [modrm, a, b, c, d, call @ ..]: [u8; SITE_SIZE],
    ) -> Option<Self> {
        if prefix == ADDRESS_SIZE_PREFIX || !REX.contains(&rex) || (lea, call) != (0x8d, [0x0f, 0x05]) {
            return None;
        }
        let old = [rex, lea, modrm, a, b, c, d];
        let to = modrm >> 3 & 7 | (rex & 4) << 1;
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        let next = site.wrapping_add(SITE_SIZE as u64);
        let (base, bytes) = match (modrm >> 6, modrm & 7) {
            // `movabs $address, register`
            (0, 5) => {
                let mut load = vec![0x48 | rex >> 2 & 1, 0xb8 | to & 7];
                load.extend(next.wrapping_add_signed(distance).to_le_bytes());
                (Base::Next(next), load)
            }
            // Without an index.
            (2, base @ (0..=3 | 5..=7)) => (Base::Register(base | (rex & 1) << 3), old.to_vec()),
            _ => return None,
        };
        Some(Self { old, bytes, to, base, distance })
    }

    /// Whether it has just been done: bytes before a call may look like this and be the end of something else.
    pub(super) fn is_loaded(&self, regs: &Regs) -> bool {
        let from = match self.base {
            Base::Next(next) => Some(next),
            Base::Register(base) if base == self.to => None,
            Base::Register(base) => register(regs, base),
        };
        let address = from.map(|from| from.wrapping_add_signed(self.distance));
        address.is_some() && address == register(regs, self.to)
    }

    /// What stands at the site.
    pub(super) fn old(&self) -> &[u8; SITE_SIZE] {
        &self.old
    }

    /// What does the same in a slot.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A register by its number in instructions, as it was at a call.
fn register(regs: &Regs, number: u8) -> Option<u64> {
    let Regs { rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r12, r13, r14, r15, .. } = *regs;
    let all = [0, 0, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, 0, r12, r13, r14, r15];
    all.get(usize::from(number)).copied().filter(|_| !CHANGED.contains(&number))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::patch::{Patches, SLOTS};
    use super::*;

    const SITE: u64 = 0x40_0000;

    fn of(prefix: u8, rex: u8, modrm: u8, last: u8) -> Option<Address> {
        Address::read(SITE, [prefix, rex, 0x8d], [modrm, 0x10, 0, 0, 0x80, 0x0f, last])
    }

    #[test]
    fn an_address_is_loaded_in_the_slot_as_it_was_at_the_site() {
        let bytes = |rex, modrm| of(0x90, rex, modrm, 5).unwrap().bytes().to_vec();
        // lea -0x7ffffff0(%rip), %rsi; the same into %r9; then from %rbx.
        let absolute = (SITE + 7 + 0x10).wrapping_sub(1 << 31).to_le_bytes();
        assert_eq!(bytes(0x48, 0x35), [&[0x48, 0xbe], &absolute[..]].concat());
        assert_eq!(bytes(0x4c, 0x0d), [&[0x49, 0xb9], &absolute[..]].concat());
        assert_eq!(bytes(0x48, 0xb3), [0x48, 0x8d, 0xb3, 0x10, 0, 0, 0x80]);
        // Another instruction, with an index, of another length, of short addresses, without a call.
        for (prefix, rex, modrm, last) in
            [(0x90, 0x40, 0x35, 5), (0x90, 0x48, 0xb4, 5), (0x90, 0x48, 0x33, 5), (0x67, 0x48, 0x35, 5)]
        {
            assert!(of(prefix, rex, modrm, last).is_none());
        }
        assert!(of(0x90, 0x48, 0x35, 0x34).is_none());
    }

    #[test]
    fn what_is_not_loaded_is_no_address() {
        let distance = i64::from(0x8000_0010_u32.cast_signed());
        let loaded = |rex, modrm, regs: Regs| of(0x90, rex, modrm, 5).unwrap().is_loaded(&regs);
        let absolute = (SITE + 7).wrapping_add_signed(distance);
        assert!(loaded(0x48, 0x35, Regs { rsi: absolute, ..Regs::default() }));
        assert!(!loaded(0x48, 0x35, Regs { rsi: absolute + 1, ..Regs::default() }));
        assert!(loaded(0x4c, 0x0d, Regs { r9: absolute, ..Regs::default() }));
        let from_rbx = |rsi| Regs { rbx: 5, rsi, ..Regs::default() };
        assert!(loaded(0x48, 0xb3, from_rbx(5_u64.wrapping_add_signed(distance))));
        assert!(!loaded(0x48, 0xb3, from_rbx(5)));
        // From %r11 into %rsi, from %rsi into itself, into %rax: nobody knows.
        let all =
            Regs { rsi: distance.cast_unsigned(), r11: 0, rax: distance.cast_unsigned(), ..Regs::default() };
        assert!(!loaded(0x49, 0xb3, all) && !loaded(0x48, 0xb6, all) && !loaded(0x48, 0x83, all));
    }

    #[test]
    fn who_is_in_a_slot_has_a_place() {
        let mut patches = Patches::default();
        for modrm in [0xb3, 0x35] {
            let load = of(0x90, 0x48, modrm, 5).unwrap();
            let plan = patches.plan_address(SITE, &load).unwrap();
            assert!(plan.slot_bytes.len() <= 64 && plan.site_bytes.len() == SITE_SIZE);
            patches.done_address(SITE, &plan, &load);
            let place = |at| patches.original(plan.slot + at);
            let behind = 8 + load.bytes().len() as u64;
            assert_eq!([place(8), place(behind - 1), place(behind)], [SITE, SITE, SITE + 7].map(Some));
        }
        assert_eq!(patches.table_size(), Some(5 * 32));
        assert!(!patches.entered_inside(SITE + 5) && patches.original(SLOTS).is_none());
    }
}
