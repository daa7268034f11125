//! The processes that a measurement starts, all of which descend from this one.
//!
//! Runtimes detach: what they leave running becomes a child of this process ([`adopt_orphans`]), so that its memory can be counted, and
//! it can be ended, without knowing how a runtime names its processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::runtimes::clean;

/// Orphans among the descendants come to this process instead of to the machine's first.
pub(super) fn adopt_orphans() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot take on orphans")
}

/// SIGINT and SIGTERM end all that was started, remove the folder of the runtimes, and then end this process. To be called before there are other threads;
/// what is started does not inherit it (the standard library gives new processes an empty mask).
#[allow(clippy::exit, reason = "a signal ends the program, wherever it is")]
pub(super) fn end_with_a_signal(work: PathBuf) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        // twice: the other thread may be starting one more
        for _ in 0..2 {
            if let Err(error) = end_all() {
                eprintln!("x: {error:#}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        clean(&work);
        eprintln!("\nx: ended by {signal}");
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// Every process by its number: its parent, and whether it has ended and nobody has taken notice.
fn all() -> anyhow::Result<BTreeMap<i32, (i32, bool)>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").context("cannot read /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // it may have ended since
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse::<i32>().ok()));
        if let (Some(state), Some(parent)) = (state, parent) {
            all.insert(pid, (parent, matches!(state, "Z" | "X")));
        }
    }
    Ok(all)
}

/// Every process that descends from this one and has not ended.
pub(super) fn descendants() -> anyhow::Result<Vec<i32>> {
    let living = all()?.into_iter().filter(|(_, (_, ended))| !ended);
    let parents = living.map(|(pid, (parent, _))| (pid, parent)).collect();
    Ok(below(i32::try_from(std::process::id())?, &parents))
}

/// Takes the ends of orphans: of all children that ended but for `own`, for which somebody waits. A runtime that deletes a
/// sandbox waits until its processes are no more.
pub(super) fn take_orphans(own: u32) -> anyhow::Result<()> {
    let (this, own) = (i32::try_from(std::process::id())?, i32::try_from(own)?);
    for (pid, (parent, ended)) in all()? {
        if ended && parent == this && pid != own {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }
    Ok(())
}

fn below(top: i32, parents: &BTreeMap<i32, i32>) -> Vec<i32> {
    let mut all = vec![top];
    let mut at = 0;
    while let Some(parent) = all.get(at).copied() {
        let children = parents.iter().filter(|(pid, of)| **of == parent && !all.contains(pid));
        let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
        all.extend(children);
        at += 1;
    }
    all.split_off(1)
}

/// Ends whatever still runs, and takes the ends.
pub(super) fn end_all() -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let running = descendants()?;
        for pid in &running {
            // it may have ended since
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        reap();
        if running.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < Duration::from_secs(30), "these processes do not end: {running:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Takes the ends of orphans. Only while no child that somebody still waits for is there.
fn reap() {
    while waitpid(None, Some(WaitPidFlag::WNOHANG))
        .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
    {}
}

/// MiB that these processes have, each page divided by how many share it.
pub(super) fn memory(pids: &[i32]) -> f64 {
    let of = |pid: &i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    pids.iter().filter_map(of).sum::<f64>() / 1024.0
}

/// Milliseconds that threads of these processes ran (`schedstat`: nanoseconds on a processor).
pub(super) fn processor_time(pids: &[i32]) -> f64 {
    let mut sum = 0.0;
    for pid in pids {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ran = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
            sum += ran.unwrap_or_default();
        }
    }
    sum / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_at_any_depth() {
        let parents = BTreeMap::from([(1, 0), (10, 1), (20, 10), (30, 20), (40, 1), (50, 40), (60, 10)]);
        let mut found = below(10, &parents);
        found.sort_unstable();
        assert_eq!(found, [20, 30, 60]);
        assert!(below(99, &parents).is_empty());
    }

    #[test]
    fn memory_and_time_are_those_of_a_process_that_lives() {
        let own = [i32::try_from(std::process::id()).unwrap()];
        assert!(memory(&own) > 0.1 && memory(&[-1]).abs() < f64::EPSILON);
        assert!(processor_time(&own) > 0.0);
    }
}
