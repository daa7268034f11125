//! What the sentry sees of the host's files: nothing but the container's root and its own processes.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root};

use super::Refused;
use crate::error::Errno;

/// The numbers of the descriptors under which processes and CPUs are found. They are the first that the sentry opens, and the filter relies
/// on them.
pub(super) const PROCESSES: RawFd = 3;
pub(super) const CPUS: RawFd = 4;

const WAY_OUT: &str = "is it confined by a container or AppArmor? give --allow-weak to go on without";

fn refused(step: &'static str) -> impl Fn(Errno) -> Refused {
    move |errno| Refused { step, errno, way_out: WAY_OUT }
}

/// What is mounted from now on is seen by nobody else, and nothing of the host's appears here.
pub(crate) fn make_private() -> Result<(), Refused> {
    let none: Option<&CStr> = None;
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(refused("private mounts"))
}

/// What is mounted from now on is seen by nobody else; what the host mounts appears here.
pub(super) fn follow_host() -> Result<(), Refused> {
    let none: Option<&CStr> = None;
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(refused("mounts that follow"))
}

/// A `proc` of its own processes, without anything else that a `proc` has; where the host has none for it, an empty file in its place.
pub(super) fn processes() -> Result<OwnedFd, Refused> {
    put(own_proc(), PROCESSES)
}

/// What `/sys` says of CPUs, as a tree of its own, out of which no name leads.
pub(super) fn cpus() -> Result<OwnedFd, Refused> {
    put(own_cpus(), CPUS)
}

/// Gives a tree this number, or an empty file where the host has no such tree.
fn put(tree: Result<OwnedFd, Errno>, number: RawFd) -> Result<OwnedFd, Refused> {
    let fd = match tree {
        Ok(fd) => fd,
        Err(errno) => {
            tracing::debug!("descriptor {number} has nothing in it: {errno}");
            memfd_create(c"nothing", MFdFlags::MFD_CLOEXEC).map_err(refused("a file in memory"))?
        }
    };
    if fd.as_raw_fd() == number {
        return Ok(fd);
    }
    // SAFETY: the number is nobody's: everything was closed before, and what was opened since has other numbers.
    let copy = unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) };
    Errno::result(copy).map_err(refused("a descriptor"))?;
    // SAFETY: it was made here.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn own_cpus() -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    own_tree(&open(c"/sys/devices/system/cpu", flags, Mode::empty())?, false)
}

/// A call that gives a descriptor.
fn descriptor(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// `include/uapi/linux/mount.h`
const FSOPEN_CLOEXEC: u64 = 1;
const FSCONFIG_SET_STRING: u64 = 1;
const FSCONFIG_CMD_CREATE: u64 = 6;
const FSMOUNT_CLOEXEC: u64 = 1;
const ATTRIBUTES: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

fn own_proc() -> Result<OwnedFd, Errno> {
    // SAFETY: the name lives during the call.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), FSOPEN_CLOEXEC) })?;
    let raw = context.as_raw_fd();
    let (key, value) = (c"subset".as_ptr(), c"pid".as_ptr());
    // SAFETY: key and value live during the call.
    let set = unsafe { libc::syscall(libc::SYS_fsconfig, raw, FSCONFIG_SET_STRING, key, value, 0) };
    Errno::result(set)?;
    let none = std::ptr::null::<u8>();
    // SAFETY: this command takes neither key nor value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, raw, FSCONFIG_CMD_CREATE, none, none, 0) };
    Errno::result(made)?;
    // SAFETY: numbers only.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, raw, FSMOUNT_CLOEXEC, ATTRIBUTES) })
}

/// A copy of the tree of mounts at a folder or file, in nobody's namespace. Devices in it cannot be opened.
pub(crate) fn detach(root: &OwnedFd, writable: bool) -> Result<OwnedFd, Refused> {
    own_tree(root, writable).map_err(refused("an exported folder in mounts of its own"))
}

fn own_tree(root: &OwnedFd, writable: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::AT_RECURSIVE.cast_unsigned()
        | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: the name lives during the call.
    let tree =
        unsafe { libc::syscall(libc::SYS_open_tree, root.as_raw_fd(), c"".as_ptr(), u64::from(flags)) };
    let tree = descriptor(tree)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | if writable { 0 } else { libc::MOUNT_ATTR_RDONLY },
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_RECURSIVE | libc::AT_EMPTY_PATH;
    let (raw, size) = (tree.as_raw_fd(), size_of_val(&attributes));
    // SAFETY: name and structure live during the call, and the size is the structure's.
    let set = unsafe {
        libc::syscall(libc::SYS_mount_setattr, raw, c"".as_ptr(), flags, &raw const attributes, size)
    };
    Errno::result(set)?;
    Ok(tree)
}

/// The working folder is the root.
pub(crate) fn leave_folder() -> Result<(), Refused> {
    chdir(c"/").map_err(refused("the root as working folder"))
}

/// Puts an empty folder in the place of everything (`man 2 pivot_root`, "pivot_root(".", ".")"). Stubs, which run already, get it too.
pub(crate) fn empty_root() -> Result<(), Refused> {
    // A folder that is there everywhere, and which nobody needs any more.
    const AT: &CStr = c"/proc";
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some(c"size=4k,nr_inodes=1,mode=555");
    mount(Some(c"empty"), AT, Some(c"tmpfs"), flags, options).map_err(refused("an empty folder"))?;
    chdir(AT).map_err(refused("the empty folder"))?;
    pivot_root(c".", c".").map_err(refused("the empty folder as root"))?;
    umount2(c".", MntFlags::MNT_DETACH).map_err(refused("letting go of the host's files"))?;
    chdir(c"/").map_err(refused("the empty folder"))
}
