//! Calls that change or ask about the caller's own memory.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use super::Entry;
use super::exec_rooms::{limits, mapped_file};
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::mm::{
    AreaFlags, Backing, MapRequest, PAGE, Protection, RemapRequest, Source, TASK_SIZE, barrier, page_up,
};
use crate::platform::generation;

pub(super) const CALLS: &[Entry] = &[
    Entry::partial(libc::SYS_mmap, "mmap", mmap, "huge pages: there are none"),
    Entry::full(libc::SYS_munmap, "munmap", munmap),
    Entry::full(libc::SYS_mprotect, "mprotect", mprotect),
    Entry::partial(libc::SYS_mremap, "mremap", mremap, "moving several areas at once (6.17)"),
    Entry::full(libc::SYS_brk, "brk", brk),
    Entry::partial(
        libc::SYS_madvise,
        "madvise",
        madvise,
        "hints about reading ahead and swapping do nothing",
    ),
    Entry::partial(libc::SYS_mincore, "mincore", mincore, "tells all pages resident"),
    Entry::full(libc::SYS_msync, "msync", msync),
    Entry::partial(libc::SYS_mlock, "mlock", mlock, "populates and counts, does not pin"),
    Entry::partial(libc::SYS_mlock2, "mlock2", mlock2, "populates and counts, does not pin"),
    Entry::partial(libc::SYS_mlockall, "mlockall", mlockall, "populates and counts, does not pin"),
    Entry::full(libc::SYS_munlock, "munlock", munlock),
    Entry::full(libc::SYS_munlockall, "munlockall", munlockall),
    Entry::partial(libc::SYS_membarrier, "membarrier", membarrier, "SYNC_CORE, RSEQ, GLOBAL_EXPEDITED"),
    Entry::full(libc::SYS_pkey_mprotect, "pkey_mprotect", pkey_mprotect),
    Entry::full(libc::SYS_pkey_alloc, "pkey_alloc", pkey_alloc),
    Entry::full(libc::SYS_pkey_free, "pkey_free", pkey_free),
    Entry::full(libc::SYS_remap_file_pages, "remap_file_pages", remap_file_pages),
    Entry::partial(libc::SYS_arch_prctl, "arch_prctl", arch_prctl, "the base of gs, faults of cpuid"),
];

/// A number of 32 bits as registers hold it.
fn int(register: u64) -> i32 {
    (register as u32).cast_signed()
}

fn protection(register: u64) -> Protection {
    Protection::from_bits_truncate(register as u32)
}

fn mmap(call: &mut Call<'_>, [address, length, prot, flags, fd, offset]: [u64; 6]) -> SysResult {
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL.into());
    }
    let flags = int(flags);
    let source = if flags & libc::MAP_ANONYMOUS != 0 {
        if flags & libc::MAP_HUGETLB != 0 {
            // There is no pool of huge pages, as on a Linux where none was set up.
            return Err(if length == 0 { Errno::EINVAL } else { Errno::ENOMEM }.into());
        }
        Source::Anonymous
    } else {
        let file = mapped_file(call, int(fd))?;
        if flags & libc::MAP_HUGETLB != 0 {
            return Err(Errno::EINVAL.into());
        }
        Source::File(file, offset)
    };
    let request = MapRequest { address, length, protection: protection(prot), flags, source };
    let limits = limits(call);
    Ok(call.task.space().map(call.thread, &request, &limits)?)
}

fn munmap(call: &mut Call<'_>, [address, length, ..]: [u64; 6]) -> SysResult {
    call.task.space().unmap(call.thread, address, length)?;
    Ok(0)
}

fn mprotect(call: &mut Call<'_>, [address, length, prot, ..]: [u64; 6]) -> SysResult {
    /// `PROT_SEM`: for atomic operations, which is no different.
    const PROT_SEM: i32 = 8;
    let prot_int = int(prot);
    let grows = prot_int & (libc::PROT_GROWSDOWN | libc::PROT_GROWSUP);
    let known = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC | PROT_SEM;
    if grows == libc::PROT_GROWSDOWN | libc::PROT_GROWSUP || !address.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL.into());
    }
    if length == 0 {
        return Ok(0);
    }
    if prot_int & !(known | grows) != 0 || prot >> 32 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let limits = limits(call);
    let space = call.task.space();
    space.protect(call.thread, address, length, protection(prot), grows, &limits)?;
    Ok(0)
}

fn mremap(
    call: &mut Call<'_>,
    [address, old_length, new_length, flags, new_address, _]: [u64; 6],
) -> SysResult {
    if flags >> 32 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let request = RemapRequest { address, old_length, new_length, flags: int(flags), new_address };
    let limits = limits(call);
    Ok(call.task.space().remap(call.thread, &request, &limits)?)
}

fn brk(call: &mut Call<'_>, [address, ..]: [u64; 6]) -> SysResult {
    let limits = limits(call);
    Ok(call.task.space().set_break(call.thread, address, &limits))
}

fn madvise(call: &mut Call<'_>, [address, length, advice, ..]: [u64; 6]) -> SysResult {
    let result = call.task.space().advise(call.thread, address, length, int(advice));
    if int(advice) == libc::MADV_REMOVE {
        generation::changed();
    }
    result.map(|()| 0).map_err(Into::into)
}

fn mincore(call: &mut Call<'_>, [address, length, vector, ..]: [u64; 6]) -> SysResult {
    if address.is_multiple_of(PAGE) {
        call.check_range(address, length).map_err(|_| Errno::ENOMEM)?;
        call.check_range(vector, length.div_ceil(PAGE))?;
    }
    let pages = call.task.space().resident(address, length)?;
    let ones = [1; 4096];
    let mut done = 0;
    while done < pages {
        let part = (pages - done).min(ones.len() as u64);
        let at = vector.checked_add(done).ok_or(Errno::EFAULT)?;
        call.write(at, &ones[..part as usize])?;
        done += part;
    }
    Ok(0)
}

fn msync(call: &mut Call<'_>, [address, length, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    let known = libc::MS_ASYNC | libc::MS_INVALIDATE | libc::MS_SYNC;
    if flags & !known != 0 || (flags & libc::MS_ASYNC != 0 && flags & libc::MS_SYNC != 0) {
        return Err(Errno::EINVAL.into());
    }
    let invalidate = flags & libc::MS_INVALIDATE != 0;
    let (files, whole) = call.task.space().files_in(address, length, invalidate)?;
    if flags & libc::MS_SYNC != 0 {
        for file in files {
            // What cannot be synchronised (memory files of some hosts) has nothing to lose.
            match nix::unistd::fdatasync(file.as_fd()) {
                Ok(()) | Err(Errno::EINVAL | Errno::EROFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    if whole { Ok(0) } else { Err(Errno::ENOMEM.into()) }
}

fn lock(call: &mut Call<'_>, address: u64, length: u64, on_fault: bool) -> SysResult {
    let limits = limits(call);
    call.task.space().lock(call.thread, address, length, on_fault, &limits)?;
    Ok(0)
}

fn mlock(call: &mut Call<'_>, [address, length, ..]: [u64; 6]) -> SysResult {
    lock(call, address, length, false)
}

fn mlock2(call: &mut Call<'_>, [address, length, flags, ..]: [u64; 6]) -> SysResult {
    let on_fault = u64::from(libc::MLOCK_ONFAULT);
    if flags & !on_fault != 0 {
        return Err(Errno::EINVAL.into());
    }
    lock(call, address, length, flags == on_fault)
}

fn mlockall(call: &mut Call<'_>, [flags, ..]: [u64; 6]) -> SysResult {
    let limits = limits(call);
    call.task.space().lock_all(call.thread, int(flags), &limits)?;
    Ok(0)
}

fn munlock(call: &mut Call<'_>, [address, length, ..]: [u64; 6]) -> SysResult {
    call.task.space().unlock(address, length)?;
    Ok(0)
}

fn munlockall(call: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    call.task.space().unlock_all();
    Ok(0)
}

/// `man 2 membarrier`. Guest threads are threads of another host process, so the host's expedited commands, which interrupt threads of
/// the calling process, would reach none of them. `MEMBARRIER_CMD_GLOBAL` of the host reaches every thread of the machine: it stands
/// for all commands that ask for a barrier and nothing else. Commands that also serialise cores or restart sequences are not told.
fn membarrier(call: &mut Call<'_>, [command, flags, ..]: [u64; 6]) -> SysResult {
    const QUERY: i32 = 0;
    const GLOBAL: i32 = 1;
    const PRIVATE: i32 = 1 << 3;
    const REGISTER_PRIVATE: i32 = 1 << 4;
    const GET_REGISTRATIONS: i32 = 1 << 9;
    let space = call.task.space();
    let registered = u64::from(REGISTER_PRIVATE.unsigned_abs());
    if !barrier::available() {
        // As of a kernel without CONFIG_MEMBARRIER.
        return Err(Errno::ENOSYS.into());
    }
    if flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    match int(command) {
        QUERY => Ok(u64::from((GLOBAL | PRIVATE | REGISTER_PRIVATE | GET_REGISTRATIONS).unsigned_abs())),
        REGISTER_PRIVATE => {
            space.barriers().fetch_or(registered, Ordering::SeqCst);
            Ok(0)
        }
        PRIVATE if space.barriers().load(Ordering::SeqCst) & registered == 0 => Err(Errno::EPERM.into()),
        GLOBAL | PRIVATE => {
            barrier::everywhere()?;
            Ok(0)
        }
        GET_REGISTRATIONS => Ok(space.barriers().load(Ordering::SeqCst)),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// As on a processor without protection keys: key -1 alone is one.
fn pkey_mprotect(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    if int(arguments[3]) == -1 { mprotect(call, arguments) } else { Err(Errno::EINVAL.into()) }
}

fn pkey_alloc(_: &mut Call<'_>, [flags, rights, ..]: [u64; 6]) -> SysResult {
    Err(if flags != 0 || rights & !3 != 0 { Errno::EINVAL } else { Errno::ENOSPC }.into())
}

fn pkey_free(_: &mut Call<'_>, _: [u64; 6]) -> SysResult {
    Err(Errno::EINVAL.into())
}

/// As Linux does it since 4.0: another mapping of the same file over the old one.
fn remap_file_pages(call: &mut Call<'_>, [start, size, prot, page, flags, _]: [u64; 6]) -> SysResult {
    let space = call.task.space();
    let start = start & !(PAGE - 1);
    let length = size & !(PAGE - 1);
    let end = start.checked_add(length).filter(|end| *end > start).ok_or(Errno::EINVAL)?;
    let offset = page.checked_mul(PAGE).ok_or(Errno::EINVAL)?;
    let area = space.area_at(start).filter(|area| end <= area.end).ok_or(Errno::EINVAL)?;
    let Backing::File { file, .. } = area.backing else { return Err(Errno::EINVAL.into()) };
    if prot != 0 || !area.flags.contains(AreaFlags::SHARED) {
        return Err(Errno::EINVAL.into());
    }
    let keep = int(flags) & libc::MAP_NONBLOCK;
    let request = MapRequest {
        address: start,
        length,
        protection: area.protection,
        flags: libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE | keep,
        source: Source::File(file, offset),
    };
    let limits = limits(call);
    space.map(call.thread, &request, &limits)?;
    Ok(0)
}

/// `man 2 arch_prctl`.
fn arch_prctl(call: &mut Call<'_>, [code, address, ..]: [u64; 6]) -> SysResult {
    const SET_GS: i32 = 0x1001;
    const SET_FS: i32 = 0x1002;
    const GET_FS: i32 = 0x1003;
    const GET_GS: i32 = 0x1004;
    const GET_CPUID: i32 = 0x1011;
    const SET_CPUID: i32 = 0x1012;
    match int(code) {
        SET_FS if address < TASK_SIZE => {
            *call.thread.fs_base() = address;
            Ok(0)
        }
        GET_FS => {
            let base = *call.thread.fs_base();
            call.write(address, &base.to_le_bytes())?;
            Ok(0)
        }
        SET_FS | SET_GS | GET_GS => Err(Errno::EPERM.into()),
        GET_CPUID => Ok(1),
        SET_CPUID => Err(Errno::ENODEV.into()),
        _ => Err(SysError::Errno(Errno::EINVAL)),
    }
}

/// Whether `length` bytes from `address` can be anything of a guest's at all.
pub(super) fn check_user(address: u64, length: u64) -> Result<(), Errno> {
    let end = address.checked_add(length).and_then(page_up).ok_or(Errno::EFAULT)?;
    if end > TASK_SIZE { Err(Errno::EFAULT) } else { Ok(()) }
}
