//! Waiting for children (`man 2 wait4`, `man 2 waitid`; `do_wait` in `kernel/exit.c`).

use bitflags::bitflags;

use super::exit::{Remains, reason};
use super::tree::{GroupState, Report};
use super::{CpuTimes, Pid, Task, Tree, lock};
use crate::error::Errno;

bitflags! {
    /// What is waited for, and how (`include/uapi/linux/wait.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct WaitOptions: u32 {
        /// `WNOHANG`.
        const NO_HANG = 1;
        /// `WUNTRACED`, `WSTOPPED`.
        const STOPPED = 2;
        /// `WEXITED`.
        const EXITED = 4;
        /// `WCONTINUED`.
        const CONTINUED = 8;
        /// `WNOWAIT`: it can be waited for again.
        const NO_WAIT = 0x0100_0000;
        /// `__WNOTHREAD`: children of the calling thread alone.
        const NO_THREAD = 0x2000_0000;
        /// `__WALL`: whatever signal they send.
        const ALL = 0x4000_0000;
        /// `__WCLONE`: those alone that do not send SIGCHLD.
        const CLONE = 0x8000_0000;
    }
}

/// Which children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitTarget {
    /// All.
    Any,
    /// This one.
    Pid(Pid),
    /// Those in this process group.
    Group(Pid),
}

/// News of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// Which, as the parent sees it.
    pub pid: Pid,
    /// Its real user.
    pub uid: u32,
    /// Status as `wait4` gives it.
    pub status: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_status`.
    pub number: i32,
    /// What it and those it waited for have used.
    pub times: CpuTimes,
}

impl Task {
    /// Looks once whether there is news of a child; `None` when there are such children, but no news.
    ///
    /// # Errors
    /// ECHILD when there is no such child.
    pub fn try_wait(&self, target: WaitTarget, options: WaitOptions) -> Result<Option<Waited>, Errno> {
        let mut remains = Remains::default();
        let mut tree = self.tasks.tree();
        let result = tree.wait(self, target, options, &mut remains);
        drop(tree);
        drop(remains);
        result
    }
}

impl Tree {
    fn wait(
        &mut self,
        task: &Task,
        target: WaitTarget,
        options: WaitOptions,
        remains: &mut Remains,
    ) -> Result<Option<Waited>, Errno> {
        let own = self.groups.get(&task.group().pid()).ok_or(Errno::ECHILD)?;
        let children = own.children.iter().copied().collect::<Vec<_>>();
        let mut any = false;
        // Stops of what this process traces itself are told as a tracer hears of them.
        let own = task.group().pid();
        let traced = |child: &Pid| {
            self.is_traced_by(*child, own)
                && self.groups.get(child).is_some_and(|state| state.zombie.is_none())
        };
        let hidden = children.iter().copied().filter(traced).collect::<Vec<_>>();
        for child in children {
            let Some(state) = self.groups.get_mut(&child) else { continue };
            if !is_meant(state, task, target, options) {
                continue;
            }
            // One that ended is none to wait for, unless its end is (`wait_consider_task`).
            any |= state.zombie.is_none() || options.contains(WaitOptions::EXITED);
            if state.zombie.is_some() && state.traced_end.is_some() || hidden.contains(&child) {
                // Its tracer hears of it first.
                continue;
            }
            if let Some(mut waited) = news(state, options) {
                // As the caller sees it: the number may be nobody's from here on.
                waited.pid = task.shown(waited.pid);
                if waited.code <= libc::CLD_DUMPED && !options.contains(WaitOptions::NO_WAIT) {
                    let mut sum = lock(&task.group().ended_children);
                    *sum = sum.plus(&waited.times);
                    drop(sum);
                    self.reap(child, remains);
                }
                return Ok(Some(waited));
            }
        }
        let (traces, news) = self.wait_for_tracees(task, target, options, remains);
        match news {
            Some(news) => Ok(Some(news)),
            None if any || traces => Ok(None),
            None => Err(Errno::ECHILD),
        }
    }
}

fn is_meant(child: &GroupState, task: &Task, target: WaitTarget, options: WaitOptions) -> bool {
    let named = match target {
        WaitTarget::Any => true,
        WaitTarget::Pid(pid) => child.group.pid() == pid,
        WaitTarget::Group(pgid) => child.pgid == pgid,
    };
    let by_clone = child.exit_signal != libc::SIGCHLD;
    let of_thread = !options.contains(WaitOptions::NO_THREAD) || child.parent_thread == task.pid();
    let of_kind = options.contains(WaitOptions::ALL) || by_clone == options.contains(WaitOptions::CLONE);
    named && of_thread && of_kind
}

/// What there is to say of a child; unless `NO_WAIT` a stop or going on is said once.
fn news(child: &mut GroupState, options: WaitOptions) -> Option<Waited> {
    let waited = |status, code, number, times| Waited {
        pid: child.group.pid(),
        uid: child.credentials.uid,
        status,
        code,
        number,
        times,
    };
    if let Some(status) = child.zombie {
        if !options.contains(WaitOptions::EXITED) {
            return None;
        }
        let (code, number) = reason(status);
        let times = lock(&child.group.ended_threads).plus(&child.group.children_cpu_times());
        return Some(waited(status, code, number, times));
    }
    let none = CpuTimes::default();
    let found = match child.report? {
        Report::Stopped(signal) if options.contains(WaitOptions::STOPPED) => {
            waited(signal << 8 | 0x7f, libc::CLD_STOPPED, signal, none)
        }
        Report::Continued if options.contains(WaitOptions::CONTINUED) => {
            waited(0xffff, libc::CLD_CONTINUED, libc::SIGCONT, none)
        }
        _ => return None,
    };
    if !options.contains(WaitOptions::NO_WAIT) {
        child.report = None;
    }
    Some(found)
}
