//! What only the first process of a machine does: file systems, loopback, and the end.
//!
//! The guest has no console user and no disk of its own: when the agent cannot go on, it says why on the console
//! and in the log, and switches the machine off. It never panics on purpose and never lets the kernel panic.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use crate::mounts::mount_at;

/// File system of a root that is a ramfs (`RAMFS_MAGIC`, linux/magic.h).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// Where the root is bound to get off the initial file system.
const NEW_ROOT: &str = "/.root";

/// Whether this process is the first of its machine or PID namespace.
pub(crate) fn is_pid1() -> bool {
    std::process::id() == 1
}

/// Mounts what every program expects. Paths that are mounted already are left alone.
pub(crate) fn mount_all() -> io::Result<()> {
    leave_initial_root()?;
    let tmpfs: [(&str, &[&str]); 2] =
        [("/run", &["nosuid", "nodev", "mode=0755"]), ("/tmp", &["nosuid", "nodev", "mode=1777"])];
    mount_at("proc", Path::new("/proc"), "proc", &["nosuid", "nodev", "noexec"])?;
    mount_at("sysfs", Path::new("/sys"), "sysfs", &["nosuid", "nodev", "noexec"])?;
    // The kernel mounts devtmpfs itself on a root image, without options.
    match mount_at("dev", Path::new("/dev"), "devtmpfs", &["nosuid", "mode=0755"]) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID;
            mount(None::<&str>, "/dev", None::<&str>, flags, None::<&str>)?;
        }
        other => other?,
    }
    mount_at("devpts", Path::new("/dev/pts"), "devpts", &["nosuid", "noexec", "mode=620", "ptmxmode=666"])?;
    mount_at("shm", Path::new("/dev/shm"), "tmpfs", &["nosuid", "nodev", "mode=1777"])?;
    for (path, options) in tmpfs {
        mount_at("tmpfs", Path::new(path), "tmpfs", options)?;
    }
    mount_at("cgroup2", Path::new("/sys/fs/cgroup"), "cgroup2", &["nosuid", "nodev", "noexec"])?;
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        // devtmpfs may have them.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

/// Of an initramfs, binds the initial root on a folder and moves it over itself: `pivot_root`, which containers need, refuses to
/// leave the kernel's own first mount. A root image was mounted over that by the kernel.
fn leave_initial_root() -> io::Result<()> {
    let kind = statfs("/")?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
        return Ok(());
    }
    let none = None::<&str>;
    fs::create_dir_all(NEW_ROOT)?;
    mount(Some("/"), NEW_ROOT, none, MsFlags::MS_BIND, none)?;
    nix::unistd::chdir(NEW_ROOT)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// Opens the console as standard streams when the kernel gave none.
pub(crate) fn open_console() {
    if fs::read_link("/proc/self/fd/2").is_ok() {
        return;
    }
    let console = fs::OpenOptions::new().read(true).write(true).open("/dev/console");
    if let Ok(console) = console {
        // Without a console the log still goes over vsock.
        let _ = nix::unistd::dup2_stdin(&console);
        let _ = nix::unistd::dup2_stdout(&console);
        let _ = nix::unistd::dup2_stderr(&console);
    }
}

/// Ends the machine: the reason to the kernel log and the agent's, then power-off.
pub(crate) fn power_off(reason: &str) -> ! {
    tracing::info!(reason, "power off");
    // Kernel messages reach the console and, in a crash, the host's view of it.
    let _ = fs::write("/dev/kmsg", format!("kata-cc-agent: power off: {reason}\n"));
    nix::unistd::sync();
    if !is_pid1() {
        end(1);
    }
    loop {
        // `panic=-1 reboot=k`: a reset is what the VMM takes for the end, power-off needs ACPI, which the VM lacks.
        let _ = reboot(RebootMode::RB_AUTOBOOT);
        let _ = reboot(RebootMode::RB_POWER_OFF);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Ends a test agent that is no PID 1.
#[allow(clippy::exit)]
pub(crate) fn end(code: i32) -> ! {
    std::process::exit(code)
}
