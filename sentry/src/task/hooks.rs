//! What other rooms do for tasks: the one place where `task` calls into `vfs` and `mm`.

use std::sync::{Arc, LazyLock};

use super::{Task, ThreadGroup};
use crate::error::Errno;
use crate::mm::AddressSpace;
use crate::mm::futex::{exit_robust_list, wake_at};
use crate::platform::Thread;
use crate::vfs::pidfd::PidFd;
pub(super) use crate::vfs::tty::{Sessions, session_ended};
use crate::vfs::{FdTable, FsContext};

/// A copy of open files, for a process that does not share them.
pub(super) fn fork_files(files: &Arc<FdTable>) -> Arc<FdTable> {
    Arc::new(files.copy())
}

/// No open files, for a task that ends.
pub(super) fn no_files() -> Arc<FdTable> {
    Arc::new(FdTable::default())
}

/// A descriptor of a new process (`CLONE_PIDFD`).
pub(super) fn insert_pidfd(files: &Arc<FdTable>, group: &Arc<ThreadGroup>) -> Result<i32, Errno> {
    files.insert(PidFd::open(group, false), true)
}

/// No memory, for a task that ends.
pub(super) fn no_space() -> Arc<AddressSpace> {
    static NONE: LazyLock<Arc<AddressSpace>> = LazyLock::new(Arc::default);
    Arc::clone(&NONE)
}

/// Closes what an `execve` closes.
pub(super) fn close_on_exec(files: &Arc<FdTable>) {
    files.close_on_exec();
}

/// A copy of root, working folder and umask.
pub(super) fn fork_fs(fs: &Arc<FsContext>) -> Arc<FsContext> {
    Arc::new(fs.copy())
}

/// A copy of an address space with one thread.
pub(super) fn fork_space(
    space: &Arc<AddressSpace>,
    thread: &mut dyn Thread,
) -> Result<(Arc<AddressSpace>, Box<dyn Thread>), Errno> {
    let (space, thread) = space.fork(thread)?;
    Ok((Arc::new(space), thread))
}

/// Wakes who waits for the word at an address of a task that ends (`CLONE_CHILD_CLEARTID`).
pub(super) fn wake_futex(space: &AddressSpace, address: u64) {
    wake_at(space, address, 1);
}

/// Gives back the robust futexes of a thread that ends.
pub(super) fn release_robust_futexes(task: &Task, thread: &mut dyn Thread) {
    let of = task.pid_namespace().meta().number();
    exit_robust_list(&task.space(), thread, (task.pid(), task.own_number(), of));
}
