//! Processes of the host: which one a number means, and its end.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process, named for good: numbers come round again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its number.
    pub pid: u32,
    /// Clock tick of its start.
    pub start: u64,
}

/// Clock tick at which a process started (`/proc/PID/stat`, field 22, proc(5)); none when it is gone or was not waited for yet.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name in field 2 may hold anything, also spaces and brackets
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Known {
    /// The one that has this number now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start: start_time(pid)? })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// Kills it if it is still the one, and waits for its end.
    pub fn kill(self) {
        if self.alive()
            && let Ok(raw) = i32::try_from(self.pid)
        {
            let _ = kill(Pid::from_raw(raw), Signal::SIGKILL);
            self.wait(Duration::from_secs(10));
        }
    }

    /// Asks it to end, if it is still the one, and kills it where it does not for so long.
    pub fn end(self, patience: Duration) {
        if self.alive()
            && let Ok(raw) = i32::try_from(self.pid)
        {
            let _ = kill(Pid::from_raw(raw), Signal::SIGTERM);
            self.wait(patience);
        }
        self.kill();
    }

    /// Waits for its end; whether it came.
    pub fn wait(self, limit: Duration) -> bool {
        until(limit, || !self.alive())
    }
}

/// Whether the root of this namespace of users is not the host's (user_namespaces(7)).
#[must_use]
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

/// Waits until something is so; whether it became so.
pub fn until(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if so() {
            return true;
        }
        if begun.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let known = Known::of(child.id()).unwrap();
        let other = Known { start: known.start + 1, ..known };
        assert!(known.alive() && !other.alive());
        other.kill();
        assert!(child.try_wait().unwrap().is_none(), "another process of that number is left alone");
        known.kill();
        assert!(!known.alive(), "one that was not waited for counts as gone");
        child.wait().unwrap();
    }

    #[test]
    fn who_does_not_end_when_asked_is_killed() {
        let script = "trap '' TERM; echo; while :; do sleep 0.01; done";
        let mut command = std::process::Command::new("sh");
        let mut child = command.args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        // It has begun to ignore the signal.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Known::of(child.id()).unwrap().end(Duration::from_millis(50));
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
