//! Between fork and exec of a process that outlives us: control groups, the network namespace, a session of its own.
//!
//! Most of this crate's `unsafe` is here.
#![allow(unsafe_code, reason = "a hook between fork and exec, and two descriptors that come by number")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// The network of a process.
#[derive(Debug)]
pub(crate) enum Network {
    /// As it is here.
    Inherited,
    /// A new and empty namespace.
    New,
    /// That of a file.
    Of(File),
}

/// What happens between fork and exec.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Files of control groups to write `0` to: before any memory is taken, which stays charged to where it was taken (cgroups(7)).
    pub(crate) doors: Vec<File>,
    /// Its network.
    pub(crate) network: Network,
    /// The one descriptor beyond the standard streams that it keeps, with its number.
    pub(crate) keep: OwnedFd,
}

impl Entry {
    /// Makes a command do it.
    pub(crate) fn add_to(self, command: &mut Command) {
        let hook = move || {
            for door in &self.doors {
                nix::unistd::write(door, b"0")?;
            }
            match &self.network {
                Network::Inherited => {}
                Network::New => unshare(CloneFlags::CLONE_NEWNET)?,
                Network::Of(file) => setns(file, CloneFlags::CLONE_NEWNET)?,
            }
            nix::unistd::setsid()?;
            close_on_exec()?;
            let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
            nix::fcntl::fcntl(&self.keep, flags)?;
            Ok(())
        };
        // SAFETY: between fork and exec the hook makes system calls (write, unshare or setns, setsid, close_range, fcntl) on descriptors that
        // it owns; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(hook) };
    }

    /// The number under which the descriptor is kept.
    pub(crate) fn kept(&self) -> RawFd {
        self.keep.as_raw_fd()
    }
}

/// Nothing that an engine left open beyond the standard streams may stay open in what outlives us (close_range(2)).
fn close_on_exec() -> io::Result<()> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC takes numbers only and closes nothing now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A copy of a descriptor that this process was started with.
///
/// # Errors
/// It is not open, or this process opened it itself: what it opens is closed on exec, and what it was started with cannot be.
pub(crate) fn copied(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD looks whether the number is a descriptor.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl with F_DUPFD_CLOEXEC makes another descriptor and touches nothing else.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// A descriptor that this process was started with.
///
/// # Errors
/// It is a standard stream, or not open.
pub(crate) fn inherited(number: RawFd) -> io::Result<File> {
    if number < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream is not meant"));
    }
    // SAFETY: fcntl with F_GETFD looks whether the number is a descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, beyond the standard streams, and named on the command line by who started us for this very purpose.
    Ok(unsafe { File::from_raw_fd(number) })
}
