//! What `execve` and `mmap` need of other rooms: the one place where these families call into `task` and `vfs`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::leases;
use crate::call::Call;
use crate::error::{Errno, SysError};
use crate::loader::Program;
use crate::mm::{AddressSpace, FileIdentity, Limits, MappedFile};
use crate::platform::Thread;
use crate::task::{Credentials, Resource};
use crate::vfs::access::{self, EXECUTE};
use crate::vfs::open::Ready;
use crate::vfs::{
    Caller, FileKind, Flags, MountFlags, OpenFile, Place, Resolve, Walk, WriteAccess, device_parts,
};

/// `CAP_IPC_LOCK`.
const CAP_IPC_LOCK: u32 = 14;

/// What the caller may have of memory.
pub(super) fn limits(call: &Call<'_>) -> Limits {
    let limits = call.task.group().limits();
    let of = |resource| limits.of(resource).soft;
    Limits {
        address_space: of(Resource::AddressSpace),
        data: of(Resource::Data),
        stack: of(Resource::Stack),
        locked: of(Resource::LockedMemory),
        may_lock: call.task.credentials().capable(CAP_IPC_LOCK),
    }
}

/// An open file that is mapped or run.
pub(crate) struct Mapped(
    Arc<OpenFile>,
    #[expect(dead_code, reason = "nobody writes what runs")] Option<WriteAccess>,
);

impl MappedFile for Mapped {
    fn host_file(&self) -> Result<(Arc<OwnedFd>, u64), Errno> {
        self.0.file().host_file()
    }

    fn name(&self) -> Vec<u8> {
        match self.0.place() {
            Some(place) => {
                let mut name = place.absolute();
                if place.dentry.unlinked() {
                    name.extend_from_slice(b" (deleted)");
                }
                name
            }
            None => Vec::new(),
        }
    }

    fn place(&self) -> Option<Place> {
        self.0.place().cloned()
    }

    fn open_file(&self) -> Option<Arc<OpenFile>> {
        Some(Arc::clone(&self.0))
    }

    fn identity(&self) -> FileIdentity {
        let attributes = self.0.inode().attributes().ok();
        let (major, minor) = attributes.map_or((0, 0), |attributes| device_parts(attributes.device));
        FileIdentity { major, minor, inode: attributes.map_or(0, |attributes| attributes.inode) }
    }

    fn readable(&self) -> bool {
        self.0.flags().readable()
    }

    fn writable(&self) -> bool {
        self.0.flags().writable()
    }

    fn executable(&self) -> bool {
        !self.0.mount_flags().contains(MountFlags::NO_EXEC)
    }
}

impl Program for Mapped {
    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.0.file().read(to, offset)
    }

    fn set_ids(&self) -> (Option<u32>, Option<u32>) {
        let Ok(attributes) = self.0.inode().attributes() else { return (None, None) };
        if self.0.mount_flags().contains(MountFlags::NO_SUID) {
            return (None, None);
        }
        let user = attributes.mode & libc::S_ISUID != 0;
        // Without the group's x it asks for mandatory locking, of old.
        let group = attributes.mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP;
        (user.then_some(attributes.uid), group.then_some(attributes.gid))
    }
}

/// What an open file of the caller shows when it is mapped.
pub(super) fn mapped_file(call: &Call<'_>, fd: i32) -> Result<Arc<dyn MappedFile>, Errno> {
    Ok(Arc::new(Mapped(call.task.files().get(fd)?, None)))
}

/// An open file as something that is mapped, and, where it `runs`, that nobody may write meanwhile.
///
/// # Errors
/// ETXTBSY.
pub(crate) fn map_again(file: Arc<OpenFile>, runs: bool) -> Result<Arc<dyn MappedFile>, Errno> {
    let denied = if runs { WriteAccess::deny(file.inode())? } else { None };
    Ok(Arc::new(Mapped(file, denied)))
}

/// Opens a file to run it.
pub(super) fn open_program(
    call: &Call<'_>,
    directory: i32,
    path: &[u8],
    flags: i32,
) -> Result<Arc<dyn Program>, SysError> {
    let caller = Caller::of(call.task);
    let run = |place| {
        let ready = runnable(&caller, place)?;
        leases::wait(call, ready.inode(), Flags::READ)?;
        Ok(opened(&caller, ready)?)
    };
    if path.is_empty() {
        let file = call.task.files().find(directory)?;
        let place = file.place().cloned();
        return match place {
            Some(place) => run(place),
            None => Ok(Arc::new(Mapped(file, None))),
        };
    }
    let fs = call.task.fs();
    let start = if directory == libc::AT_FDCWD || path.starts_with(b"/") {
        fs.cwd()
    } else {
        call.task.files().find(directory)?.place().cloned().ok_or(Errno::ENOTDIR)?
    };
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    let place = Walk::new(&caller, &fs.root(), &start, path, Resolve::default())?.finish(follow)?;
    if place.dentry.inode().kind() == FileKind::Symlink {
        return Err(Errno::ELOOP.into());
    }
    run(place)
}

/// Opens a program that a walk has led to (`do_open_execat` in `fs/exec.c`), whoever has a lease of it.
pub(crate) fn run_place(caller: &Caller, place: Place) -> Result<Arc<dyn Program>, Errno> {
    opened(caller, runnable(caller, place)?)
}

/// A file that may be run.
fn runnable(caller: &Caller, place: Place) -> Result<Ready, Errno> {
    let attributes = place.dentry.inode().attributes()?;
    if attributes.kind != FileKind::Regular || place.mount.flags().contains(MountFlags::NO_EXEC) {
        return Err(Errno::EACCES);
    }
    access::check(caller, &attributes, EXECUTE)?;
    Ready::new(place, Flags::READ)
}

/// It is written by nobody now, and as long as it runs.
fn opened(caller: &Caller, ready: Ready) -> Result<Arc<dyn Program>, Errno> {
    let denied = WriteAccess::deny(ready.inode())?;
    Ok(Arc::new(Mapped(ready.finish(caller)?, denied)))
}

/// Whether a descriptor is closed by `execve`.
pub(super) fn closes_at_exec(call: &Call<'_>, fd: i32) -> bool {
    call.task.files().is_close_on_exec(fd).unwrap_or(true)
}

/// Who the task is once it runs that program, and what that rests on, which [`begin`] asks for.
pub(super) fn credentials_after(call: &Call<'_>, program: &dyn Program) -> (Credentials, bool) {
    // Who traces it would be who the file says, too.
    let covered = call.task.tracer_covers();
    let (user, group) = if covered { program.set_ids() } else { (None, None) };
    (call.task.credentials().after_exec(user, group), covered)
}

/// Ends the other threads of the process; `false` where the new credentials have to be made again.
pub(super) fn begin(call: &Call<'_>, covered: bool) -> Result<bool, SysError> {
    call.task.begin_exec(covered)
}

/// Puts the task on its new program.
pub(super) fn finish(
    call: &Call<'_>,
    space: AddressSpace,
    thread: Box<dyn Thread>,
    comm: &[u8],
    credentials: Credentials,
) {
    call.task.finish_exec(comm, credentials, || {
        drop(call.task.set_space(Arc::new(space)));
        call.task.replace_thread(thread);
    });
}
