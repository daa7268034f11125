//! What the host tells in files about itself: the machine, and the stubs. The sentry reads it by descriptors that it holds, since its own
//! root is empty when guests run ([`crate::defence`]).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;

use crate::error::Errno;

/// Most bytes of one file: `cpuinfo` of a machine with a thousand CPUs is 1.5 MiB.
const MOST: usize = 16 << 20;

/// Files that are open from before the root is empty; reading them again tells what is new.
struct Held {
    cpuinfo: Option<File>,
    meminfo: Option<File>,
    processes: OwnedFd,
    cpus: OwnedFd,
}

static HELD: OnceLock<Held> = OnceLock::new();

/// Flags by which files in the folders of [`hold`] are opened; the filter lets no others through.
pub(crate) const OPEN_FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC);

/// Opens what is needed later. `processes` is the top of a `proc`, `cpus` the folder of the CPUs in a `/sys`.
pub(crate) fn hold(processes: OwnedFd, cpus: OwnedFd) {
    let open = |path| File::open(path).ok();
    let held = Held { cpuinfo: open("/proc/cpuinfo"), meminfo: open("/proc/meminfo"), processes, cpus };
    let _ = HELD.set(held);
}

fn text(fd: BorrowedFd<'_>) -> Option<String> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 64 << 10];
    while bytes.len() < MOST {
        match pread(fd, &mut part, i64::try_from(bytes.len()).ok()?) {
            Ok(0) => return String::from_utf8(bytes).ok(),
            Ok(count) => bytes.extend_from_slice(part.get(..count)?),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
    None
}

fn machine(path: &str, held: impl Fn(&Held) -> &Option<File>) -> Option<String> {
    match HELD.get() {
        Some(all) => text(held(all).as_ref()?.as_fd()),
        None => std::fs::read_to_string(path).ok(),
    }
}

/// The host's `/proc/cpuinfo`.
pub(crate) fn cpuinfo() -> Option<String> {
    machine("/proc/cpuinfo", |held| &held.cpuinfo)
}

/// The host's `/proc/meminfo`, as it is now.
pub(crate) fn meminfo() -> Option<String> {
    machine("/proc/meminfo", |held| &held.meminfo)
}

/// `/proc/PID/statm` of a process of ours.
pub(crate) fn memory_of(process: nix::unistd::Pid) -> Option<String> {
    below("/proc", |held| &held.processes, &format!("{process}/statm"))
}

/// A file of the host's `/sys/devices/system/cpu`.
pub(crate) fn cpu_file(name: &str) -> Option<String> {
    below("/sys/devices/system/cpu", |held| &held.cpus, name)
}

fn below(folder: &str, held: impl Fn(&Held) -> &OwnedFd, name: &str) -> Option<String> {
    match HELD.get() {
        Some(all) => text(openat(held(all), name, OPEN_FLAGS, Mode::empty()).ok()?.as_fd()),
        None => std::fs::read_to_string(format!("{folder}/{name}")).ok(),
    }
}

/// CPUs that this process may use. It is asked for once: the standard library reads files of the host for it each time.
pub(crate) fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}
