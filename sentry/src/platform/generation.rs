//! The generation of what paths lead to: a number that grows when any file, mount, folder or user of the sandbox changes, by a call of a program or
//! of the control plane, after somebody noted what a path led to. Answers that a stub keeps ([`super::Thread::remember`]) count as long as it is theirs.
//!
//! It lies on a page of its own that stubs have mapped and cannot write. Changes are many and answers few, so a change looks at first whether
//! anything was noted since the last ([`Words::noted`]), and only then writes to the line that every stub reads:
//!
//! - who notes: [`mark`] (reads the number, says that it is noted), *then* looks at files, then keeps what it saw with that number;
//! - who changes: changes, *then* calls [`changed`], which raises the number where it is noted, before its own call is over and before anybody is told
//!   of the change (`inotify`, signals).
//!
//! All of it is in one order for everybody (`SeqCst`). Where the change is looked at before it is noted, whoever noted saw what was changed.
//!
//! `unsafe`: the page's mapping.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::error::Errno;

/// Bytes of the page.
pub(in crate::platform) const SIZE: u64 = 0x1000;

/// When something was noted: what was seen from then on may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    /// The number.
    pub(in crate::platform) fn generation(self) -> u64 {
        self.0
    }
}

/// The numbers of all sandboxes of this process, of which there is one outside tests.
struct Words {
    /// On the page; begins at 1.
    generation: &'static AtomicU64,
    /// The last generation that somebody noted.
    noted: AtomicU64,
    /// The page; `None` where the host would not make it, and nobody keeps anything.
    page: Option<OwnedFd>,
}

fn words() -> &'static Words {
    static WORDS: OnceLock<Words> = OnceLock::new();
    WORDS.get_or_init(|| match make_page() {
        Ok((generation, page)) => Words { generation, noted: AtomicU64::new(0), page: Some(page) },
        Err(errno) => {
            tracing::warn!(%errno, "stubs keep no answers: the page with their generation could not be made");
            static ALONE: AtomicU64 = AtomicU64::new(1);
            Words { generation: &ALONE, noted: AtomicU64::new(0), page: None }
        }
    })
}

/// A page in memory that only the mapping made here can ever write.
fn make_page() -> Result<(&'static AtomicU64, OwnedFd), Errno> {
    let file = memfd_create(c"generation", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&file, SIZE.cast_signed())?;
    let size = std::num::NonZeroUsize::new(SIZE as usize).ok_or(Errno::EINVAL)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let page = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &file, 0) }?;
    let seals = SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE)
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    // SAFETY: the beginning of a page that is never unmapped, and that others can read alone.
    let generation = unsafe { AtomicU64::from_ptr(page.cast().as_ptr()) };
    generation.store(1, Ordering::SeqCst);
    Ok((generation, file))
}

/// The page, for a stub.
pub(in crate::platform) fn page() -> Option<&'static OwnedFd> {
    words().page.as_ref()
}

/// Begins to look at files, so that what is seen can be kept.
#[must_use]
pub fn mark() -> Mark {
    let words = words();
    let now = words.generation.load(Ordering::SeqCst);
    if words.noted.load(Ordering::SeqCst) < now {
        words.noted.fetch_max(now, Ordering::SeqCst);
    }
    Mark(now)
}

/// Something changed that a path leads to, or that is told of what it leads to, or who may see it. To be called when it has changed, and before
/// the call that changed it is over.
pub fn changed() {
    let words = words();
    let now = words.generation.load(Ordering::SeqCst);
    if words.noted.load(Ordering::SeqCst) >= now {
        // Where it fails another one raised it, after this change.
        let _ = words.generation.compare_exchange(now, now + 1, Ordering::SeqCst, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_ends_what_was_noted_before_it() {
        let before = mark();
        changed();
        let after = mark();
        assert!(after.generation() > before.generation());
    }

    #[test]
    fn who_has_the_page_cannot_write_to_it() {
        let page = page().expect("a page");
        let size = std::num::NonZeroUsize::new(SIZE as usize).expect("a size");
        // SAFETY: a new mapping, which is not used.
        let mapped = unsafe { mmap(None, size, ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, page, 0) };
        assert_eq!(mapped.err(), Some(Errno::EPERM));
        // SAFETY: as above.
        let mapped = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, page, 0) };
        let mapped = mapped.expect("to read");
        // SAFETY: the mapping made above, which nobody else knows.
        let made_writable = unsafe { nix::sys::mman::mprotect(mapped, SIZE as usize, ProtFlags::PROT_WRITE) };
        assert_eq!(made_writable, Err(Errno::EACCES));
        // SAFETY: as above.
        unsafe { nix::sys::mman::munmap(mapped, SIZE as usize) }.expect("unmapped");
    }
}
