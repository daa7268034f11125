//! Namespaces: `unshare`, `setns`.

use std::sync::Arc;

use super::Entry;
use super::file_args::int;
use super::special_files::{process_of, some_task};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::namespaces::{all_of_task, enter, unshare};
use crate::vfs::nsfs::NamespaceFile;

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::partial(libc::SYS_unshare, "unshare", sys_unshare, "CLONE_NEWTIME"),
    Entry::full(libc::SYS_setns, "setns", sys_setns),
];

fn sys_unshare(call: &mut Call<'_>, [flags, ..]: [u64; 6]) -> SysResult {
    unshare(call.task, flags)?;
    Ok(0)
}

fn sys_setns(call: &mut Call<'_>, [fd, flags, ..]: [u64; 6]) -> SysResult {
    let flags = u64::from(int(flags).cast_unsigned());
    let file = call.task.files().get(int(fd))?;
    if let Some(file) = file.downcast::<NamespaceFile>() {
        let namespace = file.namespace().clone();
        if flags != 0 && flags != namespace.kind().flag() {
            return Err(Errno::EINVAL.into());
        }
        enter(call.task, &[namespace])?;
        return Ok(0);
    }
    let Ok(group) = process_of(&file) else { return Err(Errno::EINVAL.into()) };
    let own = Arc::clone(call.task);
    // Flags are looked at before the process is.
    all_of_task(&own, flags)?;
    let other = some_task(call, &group)?;
    if !own.may_access(&other) {
        return Err(Errno::EPERM.into());
    }
    let wanted = all_of_task(&other, flags)?;
    enter(&own, &wanted)?;
    Ok(0)
}
