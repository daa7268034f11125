//! Starting a child in another network namespace and control group, and telling whether a process is still the one we know.
//!
//! The only `unsafe` of this crate: a `pre_exec` hook between fork and exec.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::process::Command;

/// The network namespace of a child.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Netns<'a> {
    /// That of a file.
    Of(&'a Path),
    /// A new and empty one.
    New,
    /// Ours.
    Inherited,
}

/// Make `command` start in a network namespace, in a session of its own, and in the control groups whose
/// `cgroup.procs` are `doors`: before it has taken any memory, which stays charged to where it was taken (cgroups(7)). With `bound` it is killed when the
/// thread that started it ends (prctl(2), `PR_SET_PDEATHSIG`).
pub(crate) fn enter(
    command: &mut Command,
    netns: Netns<'_>,
    doors: Vec<std::fs::File>,
    bound: bool,
) -> std::io::Result<()> {
    let fd: Option<OwnedFd> = match netns {
        Netns::Of(path) => Some(std::fs::File::open(path)?.into()),
        Netns::New | Netns::Inherited => None,
    };
    let new = matches!(netns, Netns::New);
    let hook = move || {
        for door in &doors {
            nix::unistd::write(door, b"0")?;
        }
        match &fd {
            Some(fd) => nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWNET)?,
            None if new => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?,
            None => {}
        }
        if bound {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        }
        // A signal for the terminal's group is not for the monitor.
        nix::unistd::setsid().map(drop).map_err(std::io::Error::from)
    };
    // SAFETY: between fork and exec the hook makes a few system calls (write, setns or unshare, prctl, setsid) on file descriptors that it
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
pub(crate) async fn kill_if_same(pid: u32, start: u64) {
    let Ok(raw) = i32::try_from(pid) else { return };
    if start_time(pid) != Some(start) {
        return;
    }
    let target = nix::unistd::Pid::from_raw(raw);
    let _ = nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGKILL);
    until(Duration::from_secs(2), || start_time(pid) != Some(start)).await;
}

/// Wait until something is so, at most `limit`; other tasks of the thread go on meanwhile.
pub(crate) async fn until(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if so() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_process_is_known_by_its_start() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        kill_if_same(child.id(), start + 1).await;
        assert!(child.try_wait().unwrap().is_none(), "another process of that number is left alone");
        kill_if_same(child.id(), start).await;
        assert!(!child.wait().unwrap().success());
        assert_eq!(start_time(child.id()), None);
    }

    /// One thread: were it blocked, the task that makes it so would never run.
    #[tokio::test(flavor = "current_thread")]
    async fn waiting_for_an_end_holds_nobody_up() {
        let gone = Arc::new(AtomicBool::new(false));
        let other = Arc::clone(&gone);
        tokio::spawn(async move { other.store(true, Ordering::SeqCst) });
        assert!(until(Duration::from_secs(2), || gone.load(Ordering::SeqCst)).await);
    }
}
