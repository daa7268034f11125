//! `inotify`.

use libc::{SYS_inotify_add_watch, SYS_inotify_init, SYS_inotify_init1, SYS_inotify_rm_watch};

use super::Entry;
use super::file_args::{CWD, caller, int, uint, walk};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::vfs::access::{self, READ};
use crate::vfs::inotify::{Inotify, mask};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_inotify_init, "inotify_init", inotify_init),
    Entry::full(SYS_inotify_init1, "inotify_init1", inotify_init1),
    Entry::partial(SYS_inotify_add_watch, "inotify_add_watch", inotify_add_watch, "IN_UNMOUNT"),
    Entry::full(SYS_inotify_rm_watch, "inotify_rm_watch", inotify_rm_watch),
];

fn inotify_init1(call: &mut Call<'_>, [flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    if flags & !(libc::IN_CLOEXEC | libc::IN_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = Inotify::open(call.task.credentials().uid, flags & libc::IN_NONBLOCK != 0)?;
    let fd = call.task.files().insert(file, flags & libc::IN_CLOEXEC != 0)?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn inotify_init(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    inotify_init1(call, [0; 6])
}

fn inotify_add_watch(call: &mut Call<'_>, [fd, path, wanted, ..]: [u64; 6]) -> SysResult {
    const KNOWN: u32 = mask::EVENTS
        | mask::UNMOUNT
        | mask::Q_OVERFLOW
        | mask::IGNORED
        | mask::ONLYDIR
        | mask::DONT_FOLLOW
        | mask::EXCL_UNLINK
        | mask::MASK_CREATE
        | mask::MASK_ADD
        | mask::ISDIR
        | mask::ONESHOT;
    let wanted = uint(wanted);
    if wanted & KNOWN == 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = call.task.files().get(int(fd))?;
    if wanted & mask::MASK_ADD != 0 && wanted & mask::MASK_CREATE != 0 {
        return Err(Errno::EINVAL.into());
    }
    let inotify = file.downcast::<Inotify>().ok_or(Errno::EINVAL)?;
    let caller = caller(call);
    let place = walk(call, &caller, CWD, path)?.finish(wanted & mask::DONT_FOLLOW == 0)?;
    if wanted & mask::ONLYDIR != 0 && !place.dentry.is_folder() {
        return Err(Errno::ENOTDIR.into());
    }
    access::check(&caller, &place.dentry.inode().attributes()?, READ)?;
    Ok(u64::from(inotify.watch(&place.dentry, wanted)?.cast_unsigned()))
}

fn inotify_rm_watch(call: &mut Call<'_>, [fd, watch, ..]: [u64; 6]) -> SysResult {
    let file = call.task.files().get(int(fd))?;
    file.downcast::<Inotify>().ok_or(Errno::EINVAL)?.unwatch(int(watch))?;
    Ok(0)
}
