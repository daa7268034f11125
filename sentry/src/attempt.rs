//! For tests: the sentry makes a host call that it never makes, as one would who took it over.

use anyhow::bail;

/// Makes the call of this name; comes back when the host carried it out or refused it.
pub(crate) fn forbidden_call(name: &str) -> anyhow::Result<()> {
    let (path, one, none) = (c"/etc/passwd".as_ptr() as u64, 1_u64, 0_u64);
    let arguments = match name {
        "openat" => [libc::AT_FDCWD as u64, path, none, none, none],
        "openat2" => [libc::AT_FDCWD as u64, path, none, none, none],
        "execve" => [c"/bin/true".as_ptr() as u64, none, none, none, none],
        "socket" => [libc::AF_INET as u64, libc::SOCK_STREAM as u64, none, none, none],
        "clone" => [libc::SIGCHLD as u64, none, none, none, none],
        "kill" => [one, libc::SIGTERM as u64, none, none, none],
        "mprotect" => [none, none, libc::PROT_EXEC as u64, none, none],
        "ptrace" | "mount" | "bpf" | "unshare" | "setns" | "pidfd_open" | "io_uring_setup" | "fork"
        | "chroot" | "perf_event_open" | "userfaultfd" | "add_key" | "reboot" | "open" | "connect"
        | "setuid" => [none; 5],
        _ => bail!("{name} is no call that is tried"),
    };
    let number = (0..500).find(|number| kata_cc_sentry::syscalls::names::name(*number) == Some(name));
    let Some(number) = number else { bail!("{name} is no call") };
    let [a, b, c, d, e] = arguments;
    // SAFETY: with the filter the process ends here. Without it the pointers are of strings that live, and the host refuses the calls or
    // what they do ends with this process.
    let result = unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e) };
    eprintln!("{name} was made: {result}");
    Ok(())
}
