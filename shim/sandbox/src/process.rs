//! Starting a child in another network namespace, and telling whether a process is still the one we know.
//!
//! The only `unsafe` of this crate: a `pre_exec` hook between fork and exec.

use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::process::Command;

/// Make `command` start in the network namespace at `netns`, in a session of its own.
pub(crate) fn enter_network(command: &mut Command, netns: Option<&Path>) -> std::io::Result<()> {
    let fd: Option<OwnedFd> = netns.map(std::fs::File::open).transpose()?.map(OwnedFd::from);
    let hook = move || {
        if let Some(fd) = &fd
            && nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWNET).is_err()
        {
            return Err(std::io::Error::last_os_error());
        }
        // A signal for the terminal's group is not for the monitor.
        nix::unistd::setsid().map(drop).map_err(std::io::Error::from)
    };
    // SAFETY: between fork and exec the hook makes two system calls (setns, setsid) on a file descriptor that it
    // owns; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(hook) };
    Ok(())
}

/// Clock tick at which a process started (`/proc/PID/stat`, field 22); none when it is gone.
///
/// With the pid it names a process for good: pids come round again.
#[must_use]
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name in field 2 may hold anything, also spaces and brackets
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Kill a process if it is still the one that started at `start`, and wait until it is gone.
pub(crate) fn kill_if_same(pid: u32, start: u64) {
    let Ok(raw) = i32::try_from(pid) else { return };
    if start_time(pid) != Some(start) {
        return;
    }
    let target = nix::unistd::Pid::from_raw(raw);
    let _ = nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL);
    for _ in 0..200 {
        if start_time(pid) != Some(start) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        kill_if_same(child.id(), start + 1);
        assert!(child.try_wait().unwrap().is_none(), "another process of that number is left alone");
        kill_if_same(child.id(), start);
        assert!(!child.wait().unwrap().success());
        assert_eq!(start_time(child.id()), None);
    }
}
