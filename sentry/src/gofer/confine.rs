//! What a gofer gives up before it serves: all of the host but what it exports.
//!
//! 1. Namespaces of its own, all but that of processes: a gofer makes none. Root stays in its namespace of users, since files belong to users
//!    there; anybody else has one in which there is nobody but themselves.
//! 2. Each export is a copy of the tree of mounts at it, on which devices cannot be opened and which, where it is exported so, cannot be
//!    written. So is `/proc/self/fd`, by whose names it opens again what it holds. Out of none of them a name leads.
//! 3. The root becomes an empty folder.
//! 4. Capabilities go but those by which one reads, or changes, files of others; no program gives new ones.
//! 5. A filter of system calls, in two parts: what looks, and what changes. A gofer that exports nothing to be written has the first only.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use libc::c_long;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{fchdir, getppid};
use thiserror::Error;

use super::Export;
use super::server::Root;
use crate::bpf::Check::{Is, Natural, OneOf, Within};
use crate::defence::calls::{
    FUTEX, HostCall, MAP_FLAGS, NO_CLONE3, PROTECTION, THREAD_FLAGS, any, only, table,
};
use crate::defence::{Refused, Strength, filter, namespaces, privileges, rooms};
use crate::error::Errno;
use crate::vfs::access::{
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP,
};

/// Why a gofer does not start.
#[derive(Debug, Error)]
pub(super) enum ConfineError {
    /// What is to be exported cannot be had.
    #[error("{}: {errno}", path.display())]
    Export { path: PathBuf, errno: Errno },
    /// A step of the defence.
    #[error("cannot defend itself: {0}")]
    Refused(#[from] Refused),
}

/// What is left.
pub(super) struct Confined {
    pub(super) roots: Vec<Root>,
    /// `/proc/self/fd`, which is the working folder.
    pub(super) descriptors: OwnedFd,
}

/// To read files of others and to look into their folders.
const READERS: &[u32] = &[CAP_DAC_READ_SEARCH];
/// To change them as their owners could.
const WRITERS: &[u32] =
    &[CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE, CAP_CHOWN, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP];

/// Calls of every gofer, those that are made most first.
const LOOKS: &[HostCall] = &[
    only(libc::SYS_recvmsg, &[(2, Is(libc::MSG_CMSG_CLOEXEC as u64))], "CMSG_CLOEXEC", "requests"),
    only(
        libc::SYS_sendmsg,
        &[(2, Is((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64))],
        "DONTWAIT, NOSIGNAL",
        "answers, with descriptors of opened files",
    ),
    only(
        libc::SYS_openat2,
        &[(0, Natural)],
        "below a descriptor",
        "files of exports (RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, which lie in memory)",
    ),
    only(libc::SYS_statx, &[(0, Natural)], "of or below a descriptor", "attributes"),
    any(libc::SYS_close, "files that are not used any more"),
    only(libc::SYS_readlinkat, &[(0, Natural)], "of or below a descriptor", "targets of links"),
    any(libc::SYS_getdents64, "names of folders"),
    only(
        libc::SYS_openat,
        &[(0, Natural)],
        "below a descriptor",
        "opening again what it holds, by its number in `/proc/self/fd`",
    ),
    only(libc::SYS_futex, &[(1, OneOf(FUTEX))], "WAIT, WAKE, WAIT_BITSET", "locks"),
    any(libc::SYS_poll, "room for an answer"),
    only(
        libc::SYS_newfstatat,
        &[(0, Natural), (3, Is(libc::AT_EMPTY_PATH as u64))],
        "of a descriptor",
        "the C library's `fstat`, when a folder is read",
    ),
    any(libc::SYS_fstat, "the same"),
    any(libc::SYS_fstatfs, "size of a file system"),
    any(libc::SYS_getxattr, "extended attributes, by numbers in `/proc/self/fd`"),
    any(libc::SYS_listxattr, "their names"),
    any(libc::SYS_fsync, "`fsync` of a folder"),
    only(
        libc::SYS_fcntl,
        &[(
            1,
            OneOf(&[
                libc::F_GETFD as u32,
                libc::F_SETFD as u32,
                libc::F_GETFL as u32,
                libc::F_DUPFD_CLOEXEC as u32,
            ]),
        )],
        "GETFD, SETFD, GETFL, DUPFD_CLOEXEC",
        "copies of descriptors; the C library's `fdopendir`",
    ),
    only(
        libc::SYS_socketpair,
        &[(0, Is(libc::AF_UNIX as u64)), (1, Is((libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64))],
        "AF_UNIX, SOCK_SEQPACKET",
        "a further connection of its sentry",
    ),
    only(libc::SYS_write, &[(0, Is(libc::STDERR_FILENO as u64))], "standard error", "what it has to say"),
    only(
        libc::SYS_mmap,
        &[(2, Within(PROTECTION)), (3, Within(MAP_FLAGS))],
        "nothing executable",
        "the heap; stacks of threads",
    ),
    only(libc::SYS_mprotect, &[(2, Within(PROTECTION))], "nothing executable", "the heap; stacks of threads"),
    any(libc::SYS_munmap, "the heap; stacks of threads"),
    any(libc::SYS_mremap, "the heap"),
    any(libc::SYS_brk, "the heap"),
    only(
        libc::SYS_madvise,
        &[(2, OneOf(&[libc::MADV_DONTNEED as u32, libc::MADV_FREE as u32]))],
        "DONTNEED, FREE",
        "the heap; stacks of threads that ended",
    ),
    only(libc::SYS_clone, &[(0, Is(THREAD_FLAGS))], "a thread", "a thread for each connection"),
    NO_CLONE3,
    any(libc::SYS_set_robust_list, "the C library's start of a thread"),
    any(libc::SYS_rseq, "the C library's start of a thread"),
    any(libc::SYS_sched_getaffinity, "the C library's start of a thread"),
    any(libc::SYS_gettid, "the C library's locks"),
    any(libc::SYS_getpid, "`abort`"),
    only(libc::SYS_tgkill, &[(0, Natural), (2, Is(libc::SIGABRT as u64))], "SIGABRT", "`abort`"),
    only(libc::SYS_prctl, &[(0, Is(libc::PR_SET_NAME as u64))], "SET_NAME", "names of threads"),
    any(libc::SYS_geteuid, "whether a new file is its own"),
    any(libc::SYS_getegid, "the same"),
    any(libc::SYS_getrandom, "seeds of the C library"),
    any(libc::SYS_clock_gettime, "where the vDSO has no clock"),
    any(libc::SYS_rt_sigaction, "`abort`"),
    any(libc::SYS_rt_sigprocmask, "making a thread; `abort`"),
    any(libc::SYS_rt_sigreturn, "end of a handler of signals"),
    any(libc::SYS_sigaltstack, "the standard library's threads"),
    any(libc::SYS_restart_syscall, "waiting that a stop of the process interrupted"),
    any(libc::SYS_exit, "end of a thread"),
    any(libc::SYS_exit_group, "its end"),
];

const fn below(number: c_long, why: &'static str) -> HostCall {
    only(number, &[(0, Natural)], "below a descriptor", why)
}

/// Further calls of a gofer that exports something to be written.
const CHANGES: &[HostCall] = &[
    below(libc::SYS_mkdirat, "`mkdir`"),
    below(libc::SYS_mknodat, "named pipes and sockets"),
    only(libc::SYS_symlinkat, &[(1, Natural)], "below a descriptor", "`symlink`"),
    only(libc::SYS_linkat, &[(0, Natural), (2, Natural)], "below descriptors", "`link`"),
    below(libc::SYS_unlinkat, "`unlink`, `rmdir`"),
    only(libc::SYS_renameat2, &[(0, Natural), (2, Natural)], "below descriptors", "`rename`"),
    only(
        libc::SYS_fchownat,
        &[(0, Natural), (4, Is(libc::AT_EMPTY_PATH as u64))],
        "of a descriptor",
        "owners",
    ),
    below(libc::SYS_fchmodat, "modes, by numbers in `/proc/self/fd`"),
    only(
        libc::SYS_utimensat,
        &[(0, Natural), (3, Is(libc::AT_EMPTY_PATH as u64))],
        "of a descriptor",
        "times",
    ),
    any(libc::SYS_ftruncate, "sizes"),
    any(libc::SYS_setxattr, "extended attributes, by numbers in `/proc/self/fd`"),
    any(libc::SYS_removexattr, "the same"),
];

/// Both tables for the documentation.
#[must_use]
pub fn markdown() -> String {
    format!("{}\n{}", table(LOOKS), table(CHANGES))
}

/// Opens the exports and gives everything else up. The process has one thread.
pub(super) fn enter(exports: &[Export], strength: Strength) -> Result<Confined, ConfineError> {
    privileges::plain_panics();
    let parent = getppid();
    let own_mounts = strength != Strength::Off && namespaces::leave(strength, true)?;
    if own_mounts {
        strength.judge(rooms::make_private())?;
    }
    let roots = exports.iter().map(|export| open_export(export, own_mounts, strength));
    let roots = roots.collect::<Result<Vec<_>, _>>()?;
    let descriptors = own_descriptors(own_mounts, strength)?;
    privileges::limit()?;
    umask(Mode::empty());
    if own_mounts {
        strength.judge(rooms::empty_root())?;
    }
    let failed =
        |step| move |errno| Refused { step, errno, way_out: "is another filter of system calls in force?" };
    fchdir(&descriptors).map_err(failed("`/proc/self/fd` as working folder"))?;
    if strength == Strength::Off {
        return Ok(Confined { roots, descriptors });
    }
    privileges::single_heap();
    let writes = exports.iter().any(|export| export.writable);
    strength.judge(privileges::keep_capabilities(if writes { WRITERS } else { READERS }))?;
    strength.judge(privileges::hide_memory())?;
    // A change of capabilities takes it back, so it comes after.
    set_pdeathsig(Signal::SIGKILL).map_err(failed("ending with its parent"))?;
    if getppid() != parent {
        return Err(failed("ending with its parent")(Errno::ESRCH).into());
    }
    let changes: &[HostCall] = if writes { CHANGES } else { &[] };
    strength.judge(filter::install_for_gofer(LOOKS.iter().chain(changes)))?;
    Ok(Confined { roots, descriptors })
}

fn open_export(export: &Export, own_mounts: bool, strength: Strength) -> Result<Root, ConfineError> {
    let fail = |errno| ConfineError::Export { path: export.path.clone(), errno };
    let fd = open(&export.path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
    let writable = export.writable;
    if !own_mounts {
        return Ok(Root { fd, writable });
    }
    match rooms::detach(&fd, writable) {
        Ok(fd) => Ok(Root { fd, writable }),
        Err(refused) => {
            strength.judge(Err(refused))?;
            Ok(Root { fd, writable })
        }
    }
}

fn own_descriptors(own_mounts: bool, strength: Strength) -> Result<OwnedFd, ConfineError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let path = PathBuf::from("/proc/self/fd");
    let fd = open(&path, flags, Mode::empty()).map_err(|errno| ConfineError::Export { path, errno })?;
    if !own_mounts {
        return Ok(fd);
    }
    match rooms::detach(&fd, true) {
        Ok(own) => Ok(own),
        Err(refused) => {
            strength.judge(Err(refused))?;
            Ok(fd)
        }
    }
}
