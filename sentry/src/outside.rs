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

fn file_of(process: nix::unistd::Pid, name: &str) -> Result<OwnedFd, Errno> {
    let name = format!("{process}/{name}");
    match HELD.get() {
        Some(all) => openat(&all.processes, name.as_str(), OPEN_FLAGS, Mode::empty()),
        None => nix::fcntl::open(format!("/proc/{name}").as_str(), OPEN_FLAGS, Mode::empty()),
    }
}

/// Pages of a process that are in memory and no file's, in a range of whole pages (`Documentation/admin-guide/mm/pagemap.rst`: an
/// entry of 64 bits for each; bit 63 present, 62 swapped, 61 page of a file or shared).
pub(crate) fn own_pages(
    process: nix::unistd::Pid,
    range: std::ops::Range<u64>,
) -> Result<Vec<std::ops::Range<u64>>, Errno> {
    const PAGE: u64 = 4096;
    let map = file_of(process, "pagemap")?;
    let mut part = vec![0; 256 << 10];
    let (mut at, mut found) = (range.start, Vec::<std::ops::Range<u64>>::new());
    while at < range.end {
        let want = usize::try_from((range.end - at) / PAGE * 8).unwrap_or(usize::MAX).min(part.len());
        let to = part.get_mut(..want).unwrap_or_default();
        let count = pread(&map, to, i64::try_from(at / PAGE * 8).map_err(|_| Errno::EINVAL)?)?;
        let (entries, _) = to.get(..count).unwrap_or_default().as_chunks::<8>();
        if entries.is_empty() {
            return Err(Errno::EFAULT);
        }
        for entry in entries {
            if u64::from_ne_bytes(*entry) >> 61 & 7 >= 2 && u64::from_ne_bytes(*entry) >> 61 & 1 == 0 {
                match found.last_mut() {
                    Some(last) if last.end == at => last.end = at + PAGE,
                    _ => found.push(at..at + PAGE),
                }
            }
            at += PAGE;
        }
    }
    Ok(found)
}

/// Memory of a process, whatever its protection.
pub(crate) fn read_memory(process: nix::unistd::Pid, address: u64, to: &mut [u8]) -> Result<usize, Errno> {
    let memory = file_of(process, "mem")?;
    let mut done = 0usize;
    while let Some(part) = to.get_mut(done..).filter(|part| !part.is_empty()) {
        let at = i64::try_from(address.saturating_add(done as u64)).map_err(|_| Errno::EINVAL)?;
        match pread(&memory, part, at) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(Errno::EINTR) => {}
            Err(errno) => return if done == 0 { Err(errno) } else { Ok(done) },
        }
    }
    Ok(done)
}
