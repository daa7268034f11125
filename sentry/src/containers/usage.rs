//! What a container uses, and what runs in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::control::message::{ProcessEntry, ProcessNumber, Usage};
use crate::kernel::Kernel;
use crate::task::{ControlGroup, Pid, PidNamespace};

/// Processes that are told at most.
const LISTED: usize = 4096;

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn of(kernel: &Arc<Kernel>, group: &Arc<ControlGroup>) -> Usage {
    let times = group.cpu_times(&kernel.tasks);
    let tasks = group.tasks(&kernel.tasks);
    Usage {
        user: nanoseconds(times.user),
        system: nanoseconds(times.system),
        memory: group.memory_in_use(&kernel.tasks),
        tasks: tasks.len() as u64,
        most_tasks: group.most(),
    }
}

pub(super) fn processes(
    kernel: &Arc<Kernel>,
    group: &Arc<ControlGroup>,
    seen_by: &PidNamespace,
    known: &BTreeMap<Pid, ProcessNumber>,
) -> Vec<ProcessEntry> {
    let groups = group.processes(&kernel.tasks).into_iter().take(LISTED);
    let entry = |group: Arc<crate::task::ThreadGroup>| {
        let pid = group.pid();
        let info = kernel.tasks.process_info(pid)?;
        let task = kernel.tasks.find(pid);
        let running = task.as_ref().is_some_and(|task| task.runs());
        let state = if info.state == 'R' && !running { 'S' } else { info.state };
        let name = task.map_or_else(|| group.last_comm(), |task| task.comm());
        Some(ProcessEntry {
            pid: seen_by.shown(pid),
            parent: seen_by.shown(info.parent),
            uid: info.credentials.uid,
            state,
            started: nanoseconds(group.started()),
            cpu: nanoseconds(group.cpu_times().total()),
            name: String::from_utf8_lossy(&name).into_owned(),
            process: known.get(&pid).copied(),
        })
    };
    groups.filter_map(entry).collect()
}
