//! Files that the gofer holds for the sentry.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::super::wire::Handle;
use crate::error::Errno;
use crate::sync::lock;
use crate::vfs::FileKind;

/// Most files that are held at once; descriptors may run out before.
const MOST: usize = 1 << 20;

/// A file, opened as a place only (`O_PATH`).
pub(super) struct Held {
    pub(super) fd: OwnedFd,
    pub(super) kind: FileKind,
    /// Whether what it was exported by lets it be changed.
    pub(super) writable: bool,
}

#[derive(Default)]
struct Slots {
    slots: Vec<(u32, Option<Arc<Held>>)>,
    free: Vec<u32>,
}

/// All of them by number. A number is that of a slot and how often the slot was used before, so that one which was given back is nobody's.
#[derive(Default)]
pub(super) struct Handles(Mutex<Slots>);

fn parts(handle: Handle) -> (usize, u32) {
    ((handle as u32) as usize, (handle >> 32) as u32)
}

impl Handles {
    /// EBADF for a number that is nobody's.
    pub(super) fn find(&self, handle: Handle) -> Result<Arc<Held>, Errno> {
        let (slot, used) = parts(handle);
        match lock(&self.0).slots.get(slot) {
            Some((now, Some(held))) if *now == used => Ok(Arc::clone(held)),
            _ => Err(Errno::EBADF),
        }
    }

    /// ENFILE where there are too many.
    pub(super) fn add(&self, held: Held) -> Result<Handle, Errno> {
        let mut inner = lock(&self.0);
        let slot = match inner.free.pop() {
            Some(slot) => slot,
            None if inner.slots.len() < MOST => {
                // A slot is used for the first time as number 1: no handle is 0.
                inner.slots.push((0, None));
                u32::try_from(inner.slots.len() - 1).map_err(|_| Errno::ENFILE)?
            }
            None => return Err(Errno::ENFILE),
        };
        let entry = inner.slots.get_mut(slot as usize).ok_or(Errno::ENFILE)?;
        entry.0 = entry.0.wrapping_add(1).max(1);
        entry.1 = Some(Arc::new(held));
        Ok(u64::from(entry.0) << 32 | u64::from(slot))
    }

    /// Lets go of a file.
    pub(super) fn remove(&self, handle: Handle) {
        let (slot, used) = parts(handle);
        let mut inner = lock(&self.0);
        let held = match inner.slots.get_mut(slot) {
            Some((now, held)) if *now == used => held.take(),
            _ => None,
        };
        if held.is_some() {
            inner.free.push(slot as u32);
        }
        drop(inner);
        drop(held);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_given_back_is_nobodys() {
        let handles = Handles::default();
        let held =
            || Held { fd: tempfile::tempfile().unwrap().into(), kind: FileKind::Regular, writable: true };
        let one = handles.add(held()).unwrap();
        assert!(one != 0 && handles.find(one).is_ok());
        handles.remove(one);
        let two = handles.add(held()).unwrap();
        assert_ne!(one, two);
        assert_eq!(handles.find(one).err(), Some(Errno::EBADF));
        handles.remove(one);
        assert!(handles.find(two).is_ok());
        for wrong in [0, u64::MAX, 7, two ^ 1 << 40] {
            assert_eq!(handles.find(wrong).err(), Some(Errno::EBADF));
            handles.remove(wrong);
        }
    }
}
