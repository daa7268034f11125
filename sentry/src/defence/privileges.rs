//! Capabilities, descriptors and limits of the sentry's process.

use std::os::fd::RawFd;

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
    for capability in 0..CAPABILITIES {
        // Those that the host does not know, or that this thread may not take out: without any in its sets, and without new ones by a
        // program, it has none either way.
        let _ = prctl("the bounding set", libc::PR_CAPBSET_DROP, [capability, 0]);
    }
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as u64;
    prctl("ambient capabilities", libc::PR_CAP_AMBIENT, [clear, 0])?;
    let header = Header { version: VERSION, pid: 0 };
    let none = [0_u32; 6];
    // SAFETY: both structures are as the version says, and live during the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check("no capabilities", result)?;
    prctl("no new privileges", libc::PR_SET_NO_NEW_PRIVS, [1, 0])
}

/// Closes all descriptors but the standard streams and these: at its start a program has no others of its own.
pub(super) fn close_inherited(keep: &[RawFd]) -> Result<(), Refused> {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().map(Some).chain([None]) {
        let last = end.map_or(u32::MAX, |end| end.saturating_sub(1));
        if first <= last {
            // SAFETY: nothing in this process holds a descriptor above 2 yet, but those that are kept.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            check("no inherited descriptors", closed)?;
        }
        first = end.map_or(u32::MAX, |end| end.saturating_add(1));
    }
    Ok(())
}

/// No dump of memory is written when it ends, and it may hold as many files as it is allowed to ask for.
pub(super) fn limit() -> Result<(), Refused> {
    let refused = |errno| Refused { step: "limits of the process", errno, way_out: "raise its limits" };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(refused)
}

/// Nobody of the same user may look into this process. Stubs, whose memory it reads, are not concerned: they are copies from before.
pub(super) fn hide_memory() -> Result<(), Refused> {
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
pub(super) fn plain_panics() {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: this process has one thread.
        unsafe { std::env::remove_var(name) };
    }
}
