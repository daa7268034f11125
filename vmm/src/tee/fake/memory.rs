//! guest_memfd, memory slots, attributes.

use std::collections::{BTreeMap, BTreeSet};

use kvm_bindings::kvm_memory_attributes;

use super::{Answer, INVALID, refuse_unless};
use crate::tee::ioctls::{Refusal, Side};

const PAGE: u64 = 4096;
const PRIVATE: u64 = 1 << 3;

#[derive(Default)]
pub(crate) struct FakeMemory {
    /// Sizes of the guest_memfds, and whether a slot has each.
    memfds: Vec<(u64, bool)>,
    /// Slot, start, bytes.
    slots: Vec<(u32, u64, u64)>,
    /// Private pages, by number.
    pub(crate) private: BTreeSet<u64>,
    /// Pages of guest_memfd that a launch has filled in.
    populated: BTreeSet<u64>,
    /// What was given back.
    pub(crate) discarded: Vec<(u64, u64, Side)>,
    /// Bytes in the process's own mapping.
    pub(crate) shared: BTreeMap<u64, Vec<u8>>,
}

impl FakeMemory {
    /// kvm_gmem_create: a size of whole pages.
    pub(super) fn create(&mut self, size: u64) -> Answer<u32> {
        refuse_unless(size != 0 && size.is_multiple_of(PAGE), libc::EINVAL)?;
        self.memfds.push((size, false));
        Ok(self.memfds.len() as u32 + 2)
    }

    /// kvm_set_memory_region and kvm_gmem_bind: whole pages, no overlap, a descriptor that is large enough and not
    /// bound already.
    pub(super) fn set_region(&mut self, slot: u32, gpa: u64, size: u64, memfd: u32) -> Answer {
        refuse_unless(gpa.is_multiple_of(PAGE) && size.is_multiple_of(PAGE) && size != 0, libc::EINVAL)?;
        let end = gpa.checked_add(size).ok_or(INVALID)?;
        let overlaps =
            |(other, start, bytes): &(u32, u64, u64)| *other == slot || (*start < end && gpa < start + bytes);
        refuse_unless(!self.slots.iter().any(overlaps), libc::EEXIST)?;
        let memfd = memfd.checked_sub(3).and_then(|index| self.memfds.get_mut(index as usize));
        let (bytes, bound) = memfd.ok_or(Refusal::kernel(libc::EBADF))?;
        refuse_unless(size <= *bytes, libc::EINVAL)?;
        refuse_unless(!*bound, libc::EEXIST)?;
        *bound = true;
        self.slots.push((slot, gpa, size));
        Ok(())
    }

    /// kvm_vm_ioctl_set_mem_attributes.
    pub(super) fn set_attributes(&mut self, call: &kvm_memory_attributes) -> Answer {
        let aligned = call.address.is_multiple_of(PAGE) && call.size.is_multiple_of(PAGE) && call.size != 0;
        let known = call.flags == 0 && call.attributes & !PRIVATE == 0;
        refuse_unless(aligned && known && call.address.checked_add(call.size).is_some(), libc::EINVAL)?;
        for page in call.address / PAGE..(call.address + call.size) / PAGE {
            if call.attributes == PRIVATE {
                self.private.insert(page);
            } else {
                self.private.remove(&page);
            }
        }
        Ok(())
    }

    pub(super) fn discard(&mut self, gpa: u64, size: u64, side: Side) {
        self.discarded.push((gpa, size, side));
    }

    pub(super) fn write(&mut self, gpa: u64, bytes: &[u8]) {
        self.shared.insert(gpa, bytes.to_vec());
    }

    /// Whether a slot with guest_memfd has the page (kvm_slot_has_gmem).
    pub(super) fn has_slot(&self, page: u64) -> bool {
        let gpa = page * PAGE;
        self.slots.iter().any(|(_, start, bytes)| (*start..start + bytes).contains(&gpa))
    }

    /// kvm_gmem_populate: the page is in a slot, private, and was not filled in before.
    pub(super) fn check_populate(&self, page: u64) -> Answer {
        refuse_unless(self.has_slot(page), libc::EFAULT)?;
        refuse_unless(self.private.contains(&page), libc::EINVAL)?;
        refuse_unless(!self.populated.contains(&page), libc::EEXIST)
    }

    pub(super) fn populate(&mut self, page: u64) {
        self.populated.insert(page);
    }
}
