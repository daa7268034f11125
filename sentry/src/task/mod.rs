//! Processes, threads, signals, credentials.

mod credentials;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use credentials::{Capabilities, Credentials};

use crate::events::Waiter;
use crate::mm::AddressSpace;
use crate::vfs::{FdTable, FsContext};

/// Number of a task as guests see it.
pub type Pid = i32;

/// Every task of a sandbox.
#[derive(Default)]
pub struct Tasks {
    by_pid: Mutex<BTreeMap<Pid, Arc<Task>>>,
}

impl Tasks {
    /// The task of this number.
    #[must_use]
    pub fn find(&self, pid: Pid) -> Option<Arc<Task>> {
        self.by_pid.lock().unwrap_or_else(PoisonError::into_inner).get(&pid).cloned()
    }
}

/// A thread of a guest process.
pub struct Task {
    pid: Pid,
    waiter: Arc<Waiter>,
    credentials: Mutex<Arc<Credentials>>,
    files: Mutex<Arc<FdTable>>,
    fs: Mutex<Arc<FsContext>>,
    space: Mutex<Arc<AddressSpace>>,
}

impl Task {
    /// A task that runs nothing, for tests of what tasks call.
    #[must_use]
    pub fn for_test(files: FdTable, fs: FsContext) -> Arc<Self> {
        Arc::new(Self {
            pid: 1,
            waiter: Waiter::new(),
            credentials: Mutex::new(Arc::new(Credentials::root())),
            files: Mutex::new(Arc::new(files)),
            fs: Mutex::new(Arc::new(fs)),
            space: Mutex::default(),
        })
    }

    /// Its number (`gettid`).
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What wakes it: set at every signal, and by whatever it waits for.
    #[must_use]
    pub fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Whether a signal is there that it does not block.
    #[must_use]
    pub fn signal_pending(&self) -> bool {
        false
    }

    /// Who it is. A change puts another one in place.
    #[must_use]
    pub fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its open files.
    #[must_use]
    pub fn files(&self) -> Arc<FdTable> {
        Arc::clone(&self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its root, its working folder, its umask.
    #[must_use]
    pub fn fs(&self) -> Arc<FsContext> {
        Arc::clone(&self.fs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its memory.
    #[must_use]
    pub fn space(&self) -> Arc<AddressSpace> {
        Arc::clone(&self.space.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
