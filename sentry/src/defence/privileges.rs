//! Capabilities, descriptors and limits of the sentry's process.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Refused;
use crate::error::Errno;

/// `struct __user_cap_header_struct` (`include/uapi/linux/capability.h`).
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Two words of each set.
const VERSION: u32 = 0x2008_0522;

/// Most numbers of capabilities that are tried: the sets have so many bits.
const CAPABILITIES: u64 = 64;

fn check(step: &'static str, result: libc::c_long) -> Result<(), Refused> {
    let way_out = "is another filter of system calls in force?";
    Errno::result(result).map(drop).map_err(|errno| Refused { step, errno, way_out })
}

fn prctl(step: &'static str, option: i32, arguments: [u64; 2]) -> Result<(), Refused> {
    // SAFETY: the options used here take numbers and change nothing but what this thread or process may do.
    check(step, unsafe { libc::syscall(libc::SYS_prctl, option, arguments[0], arguments[1], 0, 0) })
}

/// Takes all capabilities out of all sets of this thread, and what threads and processes that it makes could get by a program's.
///
/// # Errors
/// A step that the host refuses.
pub fn drop_privileges() -> Result<(), Refused> {
    keep_capabilities(&[])
}

/// `CAP_CHOWN`, `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH`, `CAP_FOWNER`, `CAP_FSETID`, `CAP_SYS_ADMIN`, `CAP_SETFCAP`
/// (`include/uapi/linux/capability.h`): what gofers that a monitor starts need until they have settled.
pub(super) const OF_MONITOR: [u32; 7] = [0, 1, 2, 3, 4, 21, 31];
/// `CAP_NET_ADMIN`, `CAP_NET_RAW`: what a monitor needs besides that takes the pod's interfaces over, and gives them back.
pub(super) const OF_NETWORK: [u32; 2] = [12, 13];

/// The same for all capabilities but these. Of those it keeps what it has.
pub(crate) fn keep_capabilities(kept: &[u32]) -> Result<(), Refused> {
    for capability in (0..CAPABILITIES).filter(|number| !kept.iter().any(|kept| u64::from(*kept) == *number))
    {
        // Those that the host does not know, or that this thread may not take out: without any in its sets, and without new ones by a
        // program, it has none either way.
        let _ = prctl("the bounding set", libc::PR_CAPBSET_DROP, [capability, 0]);
    }
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as u64;
    prctl("ambient capabilities", libc::PR_CAP_AMBIENT, [clear, 0])?;
    let header = Header { version: VERSION, pid: 0 };
    // Effective, permitted and inheritable; then the same of capabilities from 32 on.
    let mut sets = [0_u32; 6];
    // SAFETY: both structures are as the version says, and live during the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    check("its capabilities", result)?;
    let low = kept.iter().filter(|number| **number < 32).fold(0, |all, number| all | 1 << number);
    let sets = [sets[1] & low, sets[1] & low, 0, 0, 0, 0];
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    check("no capabilities", result)?;
    prctl("no new privileges", libc::PR_SET_NO_NEW_PRIVS, [1, 0])
}

/// Closes all descriptors but the standard streams and these, which get numbers out of the way: at its start a program has no others of its
/// own.
pub(super) fn close_inherited(kept: &mut [OwnedFd]) -> Result<(), Refused> {
    const STEP: &str = "no inherited descriptors";
    const FIRST: RawFd = 64;
    let refused = |errno| Refused { step: STEP, errno, way_out: "raise the limit of open files" };
    for fd in kept.iter_mut() {
        let moved = fcntl(&*fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST)).map_err(refused)?;
        // SAFETY: the kernel has just made it.
        *fd = unsafe { OwnedFd::from_raw_fd(moved) };
    }
    let mut numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.sort_unstable();
    let mut from = 3;
    for number in numbers {
        close_range(STEP, from, number - 1)?;
        from = number + 1;
    }
    close_range(STEP, from, RawFd::MAX)
}

/// Closes all descriptors but the standard streams and this one.
pub(crate) fn close_all_but(kept: RawFd) -> Result<(), Refused> {
    const STEP: &str = "no inherited descriptors";
    close_range(STEP, 3, kept - 1)?;
    close_range(STEP, kept + 1, RawFd::MAX)
}

fn close_range(step: &'static str, first: RawFd, last: RawFd) -> Result<(), Refused> {
    if first > last {
        return Ok(());
    }
    // SAFETY: nothing in this process holds a descriptor of these numbers.
    check(step, unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// No dump of memory is written when it ends, and it may hold as many files as it is allowed to ask for.
pub(crate) fn limit() -> Result<(), Refused> {
    let refused = |errno| Refused { step: "limits of the process", errno, way_out: "raise its limits" };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(refused)
}

/// Nobody of the same user may look into this process. Stubs, whose memory it reads, are not concerned: they are copies from before.
pub(crate) fn hide_memory() -> Result<(), Refused> {
    prctl("memory that nobody else reads", libc::PR_SET_DUMPABLE, [0, 0])
}

/// As many arenas of the heap as the C library makes by itself (glibc's `malloc/arena.c`, `arena_get2`): it would look into the host's files
/// to count CPUs, at some moment.
pub(super) fn settle_heap() {
    #[cfg(target_env = "gnu")]
    {
        const FOR_EACH_CPU: usize = 8;
        let arenas = crate::outside::cpus().saturating_mul(FOR_EACH_CPU);
        // SAFETY: it takes numbers.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX))
        };
        shrink_a_heap();
    }
}

/// One arena of the heap for all threads: it never looks into the host's files.
pub(crate) fn single_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// The first time that a thread's heap shrinks the C library reads `vm.overcommit_memory` (`check_may_shrink_heap`), and remembers it: it
/// does so now, while it can.
#[cfg(target_env = "gnu")]
fn shrink_a_heap() {
    const PIECES: usize = 64;
    // Below what gets a mapping of its own, all together above what is given back (`M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`: 128 KiB).
    const PIECE: usize = 64 << 10;
    let shrinks = || drop(std::hint::black_box(vec![vec![1_u8; PIECE]; PIECES]));
    // What comes of it does not matter: at worst the library reads the file later, and the sentry says so and ends.
    let _ =
        std::thread::Builder::new().name("heap".to_owned()).spawn(shrinks).map(std::thread::JoinHandle::join);
}

/// A panic says where it was and nothing more: to name callers the standard library would open the program's own file.
pub(crate) fn plain_panics() {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: this process has one thread.
        unsafe { std::env::remove_var(name) };
    }
}
