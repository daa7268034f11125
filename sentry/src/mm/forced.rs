//! Memory that a guest itself could not read or write: for who looks into it from outside (`FOLL_FORCE` in `mm/gup.c`).

use super::{AddressSpace, Area, AreaFlags, PAGE, Protection, page_down};
use crate::platform::{MemoryCall, Thread};

use super::map::host_protection;

impl AddressSpace {
    /// Writes where the guest may not, as far as that changes nobody else's: private memory is copied. The bytes that could be written from
    /// the start. `thread` is one of this address space.
    pub fn write_by_force(&self, thread: &mut dyn Thread, address: u64, from: &[u8]) -> usize {
        let may = |area: &Area| {
            !area.flags.contains(AreaFlags::SHARED) || area.protection.contains(Protection::WRITE)
        };
        self.by_force(thread, address, from.len(), may, |thread, at, range| {
            from.get(range).map_or(0, |part| thread.write(at, part))
        })
    }

    /// Reads where the guest may not.
    pub fn read_by_force(&self, thread: &mut dyn Thread, address: u64, to: &mut [u8]) -> usize {
        let may = |area: &Area| !area.flags.contains(AreaFlags::NEVER_READ);
        self.by_force(thread, address, to.len(), may, |thread, at, range| {
            to.get_mut(range).map_or(0, |part| thread.read(at, part))
        })
    }

    /// Does something page by page, each of which can be read and, where that concerns nobody else, written meanwhile.
    fn by_force(
        &self,
        thread: &mut dyn Thread,
        address: u64,
        length: usize,
        may: impl Fn(&Area) -> bool,
        mut with: impl FnMut(&mut dyn Thread, u64, std::ops::Range<usize>) -> usize,
    ) -> usize {
        // Held all the while: nobody changes what is changed here.
        let layout = self.layout();
        let mut done = 0;
        while done < length {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some(area) = layout.areas.find(at).filter(|area| may(area)) else { break };
            let page = page_down(at);
            let part = length.saturating_sub(done).min(usize::try_from(page + PAGE - at).unwrap_or(0));
            let own = host_protection(area.protection);
            let private = !area.flags.contains(AreaFlags::SHARED);
            let open = own | libc::PROT_READ | if private { libc::PROT_WRITE } else { 0 };
            if protect(thread, page, open).is_none() {
                break;
            }
            let got = with(thread, at, done..done + part);
            if open != own && protect(thread, page, own).is_none() {
                break;
            }
            done += got;
            if got < part {
                break;
            }
        }
        done
    }
}

fn protect(thread: &mut dyn Thread, address: u64, protection: i32) -> Option<()> {
    thread.change_memory(&MemoryCall::Protect { address, length: PAGE, protection }).ok().map(|_| ())
}
