//! Files that come without a name: `pipe`, `eventfd`, `memfd_create`.

use libc::{SYS_eventfd, SYS_eventfd2, SYS_memfd_create, SYS_pipe, SYS_pipe2};

use super::Entry;
use super::file_args::{caller, int, uint};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::vfs::eventfd::EventFd;
use crate::vfs::pipe::Pipe;
use crate::vfs::tmpfs::{self, SEAL_EXEC, SEAL_SEAL};
use crate::vfs::{AttributeChange, Flags};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_pipe, "pipe", pipe),
    Entry::partial(SYS_pipe2, "pipe2", pipe2, "packets of O_DIRECT"),
    Entry::full(SYS_eventfd, "eventfd", eventfd),
    Entry::full(SYS_eventfd2, "eventfd2", eventfd2),
    Entry::partial(SYS_memfd_create, "memfd_create", memfd_create, "MFD_HUGETLB"),
];

fn pipe2(call: &mut Call<'_>, [to, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    if flags & !(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_DIRECT) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let files = call.task.files();
    let ends = Pipe::pair(Flags((flags & !libc::O_CLOEXEC).cast_unsigned()))?;
    let who = call.task.credentials();
    let owner = AttributeChange { uid: Some(who.fsuid), gid: Some(who.fsgid), ..AttributeChange::default() };
    ends[0].inode().change(&owner)?;
    let fds = files.insert_two(ends, flags & libc::O_CLOEXEC != 0)?;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&fds[0].to_le_bytes());
    bytes[4..].copy_from_slice(&fds[1].to_le_bytes());
    if let Err(errno) = call.write(to, &bytes) {
        for fd in fds {
            files.close(fd)?;
        }
        return Err(errno.into());
    }
    Ok(0)
}

fn pipe(call: &mut Call<'_>, [to, ..]: [u64; 6]) -> SysResult {
    pipe2(call, [to, 0, 0, 0, 0, 0])
}

fn eventfd2(call: &mut Call<'_>, [count, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    if flags & !(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = EventFd::open(uint(count), flags & libc::EFD_SEMAPHORE != 0, flags & libc::EFD_NONBLOCK != 0);
    let fd = call.task.files().insert(file, flags & libc::EFD_CLOEXEC != 0)?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn eventfd(call: &mut Call<'_>, [count, ..]: [u64; 6]) -> SysResult {
    eventfd2(call, [count, 0, 0, 0, 0, 0])
}

/// Longest name of a memfd, with its 0.
const NAME_MAX: usize = 250;

fn memfd_create(call: &mut Call<'_>, [name, flags, ..]: [u64; 6]) -> SysResult {
    let flags = uint(flags);
    let no_exec = flags & libc::MFD_NOEXEC_SEAL != 0;
    let known = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_NOEXEC_SEAL | libc::MFD_EXEC;
    if flags & !known != 0 || no_exec && flags & libc::MFD_EXEC != 0 {
        return Err(Errno::EINVAL.into());
    }
    call.read_text(name, NAME_MAX).map_err(|errno| match errno {
        Errno::ENAMETOOLONG => Errno::EINVAL,
        other => other,
    })?;
    let seals = match (no_exec, flags & libc::MFD_ALLOW_SEALING != 0) {
        (true, _) => SEAL_EXEC,
        (false, true) => 0,
        (false, false) => SEAL_SEAL,
    };
    let who = caller(call).credentials;
    let mode = if no_exec { 0o666 } else { 0o777 };
    let file = tmpfs::memfd(mode, who.fsuid, who.fsgid, seals)?;
    let fd = call.task.files().insert(file, flags & libc::MFD_CLOEXEC != 0)?;
    Ok(u64::from(fd.cast_unsigned()))
}
