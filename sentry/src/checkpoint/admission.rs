//! What the processes of an image may be: related to nobody else, and with no more rights than the bundle gives. An image may be forged.

use std::collections::{BTreeMap, BTreeSet};

use super::CheckpointError;
use super::state::{SavedCredentials, SavedProcess};
use crate::task::{Capabilities, Limits, Pid};

/// Most that the container's bundle lets a process do.
pub(crate) struct Ceiling {
    pub(crate) bounding: Capabilities,
    pub(crate) no_new_privileges: bool,
    /// Of these the hard ones count.
    pub(crate) limits: Limits,
    /// Most tasks, where there is a bound.
    pub(crate) tasks: Option<u64>,
    /// Most bytes of memory, where there is a bound.
    pub(crate) memory: Option<u64>,
}

impl Ceiling {
    /// Refuses an image that puts back so many bytes of memory, where the bundle gives less.
    pub(super) fn admit_memory(&self, (stored, zeros): (u64, u64)) -> Result<(), CheckpointError> {
        match self.memory {
            Some(most) if stored.saturating_add(zeros) > most => {
                Err(CheckpointError::Rights("its memory is more than the container may have"))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses processes that may more than `ceiling`, and those whose parents are no tree; relations to processes that are not in the image are
/// undone: nobody else's child, in nobody else's group or session.
pub(super) fn admit(processes: &mut [SavedProcess], ceiling: &Ceiling) -> Result<(), CheckpointError> {
    for process in &*processes {
        let threads = process.threads.iter().map(|thread| &thread.credentials);
        for credentials in threads.chain([&process.credentials]) {
            check_credentials(credentials, ceiling)?;
        }
        let over = |(number, (_, hard)): (u64, &(u64, u64))| {
            ceiling.limits.by_number(number).is_some_and(|most| *hard > most.hard)
        };
        if (0..).zip(&process.limits).any(over) {
            return Err(CheckpointError::Rights("a limit (rlimit) is higher"));
        }
    }
    // Those that ended and were not waited for have no threads, and count as little as they do in the container.
    let tasks: usize = processes.iter().map(|process| process.threads.len()).sum();
    if ceiling.tasks.is_some_and(|most| tasks as u64 > most) {
        return Err(CheckpointError::Rights("it has more tasks than the container may have"));
    }
    let ours: BTreeSet<Pid> = processes.iter().map(|process| process.pid).collect();
    let threads: BTreeSet<Pid> =
        processes.iter().flat_map(|process| &process.threads).map(|thread| thread.pid).collect();
    // Who leads a group or session whose leader is gone, or was never of this container.
    let (mut groups, mut sessions) = (BTreeMap::new(), BTreeMap::new());
    for process in &mut *processes {
        let lead = |leaders: &mut BTreeMap<Pid, Pid>, known: Pid| {
            let first = if ours.contains(&known) { known } else { process.pid };
            *leaders.entry(known).or_insert(first)
        };
        let (pgid, sid) = (lead(&mut groups, process.pgid), lead(&mut sessions, process.sid));
        (process.pgid, process.sid) = (pgid, sid);
        if !ours.contains(&process.parent) {
            process.parent = 0;
        }
        if !threads.contains(&process.parent_thread) {
            process.parent_thread = process.parent;
        }
    }
    let parents: BTreeMap<Pid, Pid> = processes.iter().map(|process| (process.pid, process.parent)).collect();
    for process in &*processes {
        let mut above = process.parent;
        let ends = (0..processes.len()).any(|_| {
            let ends = above == 0;
            above = parents.get(&above).copied().unwrap_or(0);
            ends
        });
        if !ends && above != 0 {
            return Err(CheckpointError::State("processes that descend from themselves"));
        }
    }
    Ok(())
}

fn check_credentials(saved: &SavedCredentials, ceiling: &Ceiling) -> Result<(), CheckpointError> {
    if saved.sets.iter().any(|set| set & !ceiling.bounding.0 != 0) {
        return Err(CheckpointError::Rights("a capability is not in the bundle's bounding set"));
    }
    if ceiling.no_new_privileges && !saved.no_new_privileges {
        return Err(CheckpointError::Rights("no_new_privs is missing"));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::checkpoint::state::SavedThread;

    fn process(pid: Pid, parent: Pid, pgid: Pid) -> SavedProcess {
        let credentials = SavedCredentials {
            uids: [0; 4],
            gids: [0; 4],
            groups: Vec::new(),
            sets: [1; 5],
            no_new_privileges: true,
            securebits: 0,
        };
        SavedProcess {
            pid,
            parent,
            parent_thread: parent,
            pgid,
            sid: pgid,
            number: pid,
            actions: Vec::new(),
            pending: crate::checkpoint::state::SavedPending::default(),
            zombie: Some(0),
            leader_status: 0,
            exit_signal: 0,
            execed: false,
            unkillable: false,
            credentials,
            limits: vec![(1, 5)],
            dumpable: 1,
            oom_score: 0,
            subreaper: false,
            started: Duration::ZERO,
            last_comm: Vec::new(),
            intervals: Vec::new(),
            threads: Vec::new(),
        }
    }

    fn ceiling() -> Ceiling {
        let (bounding, limits) = (Capabilities(3), Limits::default());
        Ceiling { bounding, no_new_privileges: true, limits, tasks: None, memory: None }
    }

    fn thread(of: &SavedProcess, pid: Pid) -> SavedThread {
        SavedThread {
            pid,
            number: pid,
            regs: Vec::new(),
            fs_base: 0,
            vector: Vec::new(),
            sequences: None,
            mask: 0,
            saved_mask: None,
            stack: (0, 0, 0),
            pending: crate::checkpoint::state::SavedPending::default(),
            parent_death: 0,
            credentials: of.credentials.clone(),
            comm: Vec::new(),
            clear_child_tid: 0,
            robust_list: 0,
            timer_slack: 0,
            personality: 0,
            nice: 0,
            io_priority: 0,
            scheduling: (0, 0),
            affinity: None,
            no_huge_pages: false,
            sleep: None,
            space: 0,
            table: 0,
            folders: 0,
        }
    }

    #[test]
    fn what_is_more_than_the_bundle_lets_a_container_have_is_refused() {
        let mut all = [process(5, 0, 5), process(6, 5, 5)];
        for (process, pids) in all.iter_mut().zip([5..8, 9..11]) {
            process.threads = pids.map(|pid| thread(process, pid)).collect();
        }
        admit(&mut all, &Ceiling { tasks: Some(5), ..ceiling() }).unwrap();
        let error = admit(&mut all, &Ceiling { tasks: Some(4), ..ceiling() }).unwrap_err().to_string();
        assert!(error.contains("more tasks"), "{error}");
        let bounded = Ceiling { memory: Some(100), ..ceiling() };
        bounded.admit_memory((60, 40)).unwrap();
        ceiling().admit_memory((u64::MAX, 1)).unwrap();
        for lengths in [(60, 41), (u64::MAX, u64::MAX)] {
            let error = bounded.admit_memory(lengths).unwrap_err().to_string();
            assert!(error.contains("its memory is more"), "{error}");
        }
    }

    #[test]
    fn who_may_more_than_the_bundle_says_is_refused() {
        type Change = fn(&mut SavedProcess, &mut Ceiling);
        let refused: [(Change, &str); 3] = [
            (|process, _| process.credentials.sets[3] = 4, "a capability"),
            (|process, _| process.credentials.no_new_privileges = false, "no_new_privs"),
            (
                |process, ceiling| {
                    ceiling.limits.set_by_number(0, crate::task::Limit { soft: 1, hard: 4 });
                    process.limits = vec![(1, 5)];
                },
                "a limit",
            ),
        ];
        for (change, words) in refused {
            let (mut one, mut ceiling) = (process(5, 0, 5), ceiling());
            change(&mut one, &mut ceiling);
            let error = admit(&mut [one], &ceiling).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        admit(&mut [process(5, 0, 5)], &ceiling()).unwrap();
    }

    #[test]
    fn relations_to_others_are_undone_and_rings_refused() {
        let mut all = [process(5, 900, 5), process(6, 5, 5), process(7, 5, 800), process(8, 7, 800)];
        admit(&mut all, &ceiling()).unwrap();
        let told = all.map(|one| (one.parent, one.parent_thread, one.pgid, one.sid));
        assert_eq!(told, [(0, 0, 5, 5), (5, 5, 5, 5), (5, 5, 7, 7), (7, 7, 7, 7)]);
        for mut ring in [vec![process(5, 5, 5)], vec![process(5, 0, 5), process(6, 7, 6), process(7, 6, 7)]] {
            let error = admit(&mut ring, &ceiling()).unwrap_err().to_string();
            assert!(error.contains("descend from themselves"), "{error}");
        }
    }
}
