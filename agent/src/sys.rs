//! The system calls that neither nix nor caps wrap: all unsafe code of the agent is here.
//!
//! Every function takes and gives owned or borrowed descriptors, never bare numbers, and turns `errno` into
//! [`std::io::Error`]. Nothing here decides anything.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::{ForkResult, Pid};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Forks a process that has one thread, so that the child may run any code.
pub(crate) fn fork_single_threaded() -> io::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1);
    if threads != 1 {
        return Err(io::Error::other(format!("refusing to fork with {threads} threads")));
    }
    // SAFETY: there is one thread, so no lock can be held by a thread that does not exist in the child.
    unsafe { nix::unistd::fork() }.map_err(io::Error::from)
}

/// Makes `command` run the program behind `program`, with these arguments and no environment, whatever its name says.
pub(crate) fn run_descriptor(
    command: &mut std::process::Command,
    program: &'static OwnedFd,
    arguments: [&'static std::ffi::CStr; 2],
) {
    use std::os::unix::process::CommandExt;
    let run = move || {
        let argv = [arguments[0].as_ptr(), arguments[1].as_ptr(), std::ptr::null()];
        let envp = [std::ptr::null::<libc::c_char>()];
        // SAFETY: both arrays end with null, hold static strings and outlive the call, which returns on failure only.
        unsafe {
            let fd = program.as_raw_fd();
            libc::syscall(
                libc::SYS_execveat,
                fd,
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        Err(io::Error::last_os_error())
    };
    // SAFETY: the closure allocates nothing and makes one system call, so it may run between fork and exec.
    unsafe { command.pre_exec(run) };
}

/// A process descriptor for `pid`.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: two integers; the result is a new descriptor owned by nobody else.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Sends `signal` to the process behind `pidfd`: cannot hit a process that got the same number later.
pub(crate) fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, a null siginfo is allowed.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Marks every descriptor from 3 up to be closed by `execve`.
pub(crate) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: three integers; sets a flag, closes nothing now.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Takes ownership of a descriptor that the kernel just put into this process (`SCM_RIGHTS`).
pub(crate) fn adopt_received(fd: RawFd) -> OwnedFd {
    // SAFETY: called by the receiver of an SCM_RIGHTS message only, once for each number in it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes the terminal on `fd` the controlling one of this session.
pub(crate) fn set_controlling_terminal(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Sets the size of a terminal.
pub(crate) fn set_window_size(fd: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) }.into()).map(drop)
}

/// Unlocks the other end of a pseudo terminal and gives its number.
pub(crate) fn unlock_pty(master: &OwnedFd) -> io::Result<u32> {
    let unlock: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    // SAFETY: both ioctls take a pointer to one int that outlives the call.
    unsafe {
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock).into())?;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number).into())?;
    }
    Ok(number)
}

/// Installs a seccomp filter on the calling thread. `program` is in the kernel's `sock_filter` layout.
pub(crate) fn install_seccomp(program: &[u64], flags: u32) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| {
            let bytes = i.to_ne_bytes();
            libc::sock_filter {
                code: u16::from_ne_bytes([bytes[0], bytes[1]]),
                jt: bytes[2],
                jf: bytes[3],
                k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            }
        })
        .collect();
    let len = u16::try_from(filter.len())
        .map_err(|_| io::Error::other("seccomp filter longer than 65535 instructions"))?;
    let fprog = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from a vector that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &fprog) }).map(drop)
}

/// Start of `union bpf_attr` for `BPF_PROG_LOAD`, as far as a device program needs it.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// Start of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct ProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a prefix of bpf_attr of the stated size; its pointers outlive the call (see callers).
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) })
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program.
pub(crate) fn load_device_program(program: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    let count = u32::try_from(program.len()).map_err(io::Error::other)?;
    let mut attr = ProgLoad {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let fd = bpf(PROG_LOAD, &mut attr)?;
    // SAFETY: a descriptor that the kernel just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a device program to a cgroup; `replace` takes the place of an earlier one.
pub(crate) fn attach_device_program(
    cgroup: &impl AsFd,
    program: &OwnedFd,
    replace: Option<&OwnedFd>,
) -> io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    const REPLACE: u32 = 4;
    let mut attr = ProgAttach {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | if replace.is_some() { REPLACE } else { 0 },
        replace_bpf_fd: replace.map_or(0, |p| p.as_raw_fd() as u32),
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

/// Mixes `data` into the kernel's entropy pool, credits none of it (it comes from the host), and reseeds.
pub(crate) fn reseed_random(data: &[u8]) -> io::Result<()> {
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let device = std::fs::OpenOptions::new().write(true).open("/dev/random")?;
    io::Write::write_all(&mut &device, data)?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }.into()).map(drop)
}

/// Gives `signal` its default action.
pub(crate) fn default_signal(signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }
        .map(drop)
        .map_err(io::Error::from)
}

/// Sets a resource limit.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: reads one rlimit64 that outlives the call; an unknown resource is an error.
    check(unsafe { libc::setrlimit64(resource, &limit) }.into()).map(drop)
}

/// Keeps this process's memory out of swap, which lies on the host's disk: encrypted, but the host could change it or bring
/// an older state back. Pages are locked as they are used: locking all that is mapped would fill stacks nobody uses.
pub(crate) fn lock_memory() -> io::Result<()> {
    // SAFETY: takes flags only, changes nothing that a program sees.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) }.into())
        .map(drop)
}

/// Lets the runtime watch a descriptor.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and always gives the same number for as long as it lives.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_counted() {
        let locked = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("VmLck:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        match lock_memory() {
            Ok(()) => assert!(locked() > 0),
            // Without the privilege there is a limit of some pages.
            Err(e) => eprintln!("skipped: {e}"),
        }
    }
}
