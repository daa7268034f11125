//! What `execve` and `mmap` need of other rooms: the one place where these families call into `task` and `vfs`.

use std::sync::Arc;

use crate::call::Call;
use crate::error::{Errno, SysError};
use crate::loader::Program;
use crate::mm::{AddressSpace, Limits, MappedFile};
use crate::platform::Thread;
use crate::task::Credentials;

/// `CAP_IPC_LOCK`.
const CAP_IPC_LOCK: u32 = 14;

/// What the caller may have of memory (hook: the limits of its process, `task.group().limits()`).
pub(super) fn limits(call: &Call<'_>) -> Limits {
    Limits { may_lock: call.task.credentials().capable(CAP_IPC_LOCK), ..Limits::default() }
}

/// What an open file of the caller shows when it is mapped (hook: `task.files().get(fd)`, a [`MappedFile`]).
pub(super) fn mapped_file(_call: &Call<'_>, _fd: i32) -> Result<Arc<dyn MappedFile>, Errno> {
    Err(Errno::EBADF)
}

/// Opens a file to run it (hook: a walk, a check of `EXECUTE`, of a regular file and of `MS_NOEXEC`, `open_place`; with an empty path the
/// descriptor's own file).
pub(super) fn open_program(
    _call: &Call<'_>,
    _directory: i32,
    _path: &[u8],
    _flags: i32,
) -> Result<Arc<dyn Program>, Errno> {
    Err(Errno::ENOSYS)
}

/// Whether a descriptor is closed by `execve` (hook: `task.files().is_close_on_exec(fd)`).
pub(super) fn closes_at_exec(_call: &Call<'_>, _fd: i32) -> bool {
    false
}

/// Who the task is once it runs that program (hook: `credentials.after_exec(set_uid, set_gid)` with [`Program::set_ids`]).
pub(super) fn credentials_after(call: &Call<'_>, _program: &dyn Program) -> Credentials {
    call.task.credentials().as_ref().clone()
}

/// Ends the other threads of the process (hook: `task.begin_exec()`).
pub(super) fn begin(_call: &Call<'_>) -> Result<(), SysError> {
    Ok(())
}

/// Puts the task on its new program (hook: `task.set_space`, `task.replace_thread`, `task.finish_exec(comm, credentials)`).
pub(super) fn finish(
    _call: &Call<'_>,
    _space: AddressSpace,
    _thread: Box<dyn Thread>,
    _comm: &[u8],
    _credentials: Credentials,
) {
}
