//! Which task the calling thread of the sentry serves (`current` of Linux): for files whose meaning depends on who reads them.

use std::cell::RefCell;
use std::sync::Arc;

use super::Task;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Task>>> = const { RefCell::new(None) };
}

/// The task that this thread of the sentry serves; `None` on threads that serve none.
#[must_use]
pub fn current() -> Option<Arc<Task>> {
    CURRENT.with(|current| current.try_borrow().ok().and_then(|task| task.clone()))
}

/// While it lives, the thread that made it serves a task.
pub struct Serving(Option<Arc<Task>>);

impl Serving {
    /// From now on this thread serves `task`.
    #[must_use]
    pub fn begin(task: &Arc<Task>) -> Self {
        Self(CURRENT.with(|current| current.replace(Some(Arc::clone(task)))))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let before = self.0.take();
        // Dropped outside of the cell: a task that goes takes files with it.
        let served = CURRENT.with(|current| current.replace(before));
        drop(served);
    }
}
