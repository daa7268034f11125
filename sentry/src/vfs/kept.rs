//! Files of the host that stay open for a while after the last guest closed them: to open one again takes the host, or who opens files for us,
//! longer than all that a guest does with a small file.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::sync::lock;

/// Most files that are kept.
const MOST: usize = 256;

/// The files that were opened last.
#[derive(Default)]
pub(super) struct Kept(Mutex<VecDeque<Arc<OwnedFd>>>);

impl Kept {
    /// Keeps one that has just been opened.
    pub(super) fn keep(&self, file: &Arc<OwnedFd>) {
        let fallen = {
            let mut files = lock(&self.0);
            files.push_back(Arc::clone(file));
            if files.len() > MOST { files.pop_front() } else { None }
        };
        // Closed without a lock held.
        drop(fallen);
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
