//! Files of the host that stay open for a while after the last guest closed them: to open one again takes the host, or who opens files for us,
//! longer than all that a guest does with a small file. Of small ones that never change what is in them stays, too.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::sync::lock;

/// Most files that are kept.
const MOST: usize = 256;

/// Bytes of a small file at most.
pub(super) const SMALL: usize = 4096;

/// Most small files of which the contents are kept.
const MOST_SMALL: usize = 32;

/// What was used last.
struct Last<T>(Mutex<VecDeque<T>>);

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Last<T> {
    fn keep(&self, one: T, most: usize) {
        let fallen = {
            let mut kept = lock(&self.0);
            kept.push_back(one);
            if kept.len() > most { kept.pop_front() } else { None }
        };
        // Closed without a lock held.
        drop(fallen);
    }
}

/// The files that were opened last.
#[derive(Default)]
pub(super) struct Kept {
    files: Last<Arc<OwnedFd>>,
    small: Last<Arc<Vec<u8>>>,
}

impl Kept {
    /// Keeps one that has just been opened.
    pub(super) fn keep(&self, file: &Arc<OwnedFd>) {
        self.files.keep(Arc::clone(file), MOST);
    }

    /// Keeps the contents of a small one.
    pub(super) fn keep_small(&self, contents: &Arc<Vec<u8>>) {
        self.small.keep(Arc::clone(contents), MOST_SMALL);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept() {
        let kept = Kept::default();
        let open = || Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let first = open();
        let weak = Arc::downgrade(&first);
        kept.keep(&first);
        drop(first);
        for _ in 1..MOST {
            kept.keep(&open());
        }
        assert!(weak.upgrade().is_some());
        kept.keep(&open());
        assert!(weak.upgrade().is_none());
    }
}
