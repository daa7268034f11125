//! What other rooms do for tasks: the one place where `task` calls into `vfs` and `mm`.

use std::sync::Arc;

use super::Task;
use crate::error::Errno;
use crate::mm::AddressSpace;
use crate::platform::Thread;
use crate::vfs::{FdTable, FsContext};

/// A copy of open files, for a process that does not share them (hook: `files.copy()`).
pub(super) fn fork_files(_files: &Arc<FdTable>) -> Arc<FdTable> {
    Arc::new(FdTable::default())
}

/// No open files, for a task that ends.
pub(super) fn no_files() -> Arc<FdTable> {
    Arc::new(FdTable::default())
}

/// Closes what an `execve` closes (hook: `files.close_on_exec()`).
pub(super) fn close_on_exec(_files: &Arc<FdTable>) {}

/// A copy of root, working folder and umask (hook: `fs.copy()`).
pub(super) fn fork_fs(_fs: &Arc<FsContext>) -> Arc<FsContext> {
    Arc::new(FsContext::default())
}

/// A copy of an address space with one thread (hook: `space.fork(thread)`, which holds the areas still meanwhile).
pub(super) fn fork_space(
    _space: &Arc<AddressSpace>,
    thread: &mut dyn Thread,
) -> Result<(Arc<AddressSpace>, Box<dyn Thread>), Errno> {
    Ok((Arc::new(AddressSpace::default()), thread.fork()?))
}

/// Wakes one who waits for a futex (hook: `crate::mm::futex::wake_at(space, address, 1)`).
pub(super) fn wake_futex(_space: &Arc<AddressSpace>, _address: u64) {}

/// Gives back the robust futexes of a thread that ends (hook: `crate::mm::futex::exit_robust_list(&task.space(), thread, task.pid())`).
pub(super) fn release_robust_futexes(_task: &Task, _thread: &mut dyn Thread) {}
