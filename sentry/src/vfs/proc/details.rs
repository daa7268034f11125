//! The small texts of a process (`fs/proc/base.c`, `fs/proc/array.c`).

use std::fmt::Write as _;

use super::super::Caller;
use super::process::{View, has_resources};
use crate::error::Errno;
use crate::task::{Limit, capability};

type Read = Result<Vec<u8>, Errno>;
type Written = Result<(), Errno>;

/// A text that is empty.
pub(super) fn nothing(_: &View, _: &Caller) -> Read {
    Ok(Vec::new())
}

/// What cannot be read.
pub(super) fn unreadable(_: &View, _: &Caller) -> Read {
    Err(Errno::EINVAL)
}

/// What is for the kernel's own eyes.
pub(super) fn not_permitted(_: &View, _: &Caller) -> Read {
    Err(Errno::EPERM)
}

/// Of a security module that is not there.
pub(super) fn invalid(_: &View, _: &Caller) -> Read {
    Err(Errno::EINVAL)
}

/// Of a security module that is not there.
pub(super) fn invalid_write(_: &View, _: &Caller, _: &[u8]) -> Written {
    Err(Errno::EINVAL)
}

/// Takes anything, to no effect.
pub(super) fn ignore(_: &View, _: &Caller, _: &[u8]) -> Written {
    Ok(())
}

/// Takes nothing.
pub(super) fn refuse(_: &View, _: &Caller, _: &[u8]) -> Written {
    Err(Errno::EPERM)
}

/// A number with blanks around it.
fn parse<T: std::str::FromStr>(from: &[u8]) -> Result<T, Errno> {
    std::str::from_utf8(from).ok().and_then(|text| text.trim().parse().ok()).ok_or(Errno::EINVAL)
}

pub(super) fn autogroup(view: &View, _: &Caller) -> Read {
    Ok(format!("/autogroup-1 nice {}\n", view.task.as_ref().map_or(0, |task| task.nice())).into_bytes())
}

pub(super) fn cgroup(_: &View, _: &Caller) -> Read {
    Ok(b"0::/\n".to_vec())
}

pub(super) fn cpuset(_: &View, _: &Caller) -> Read {
    Ok(b"/\n".to_vec())
}

/// `children` of a thread: all of its process' are shown for the first.
pub(super) fn children(view: &View, _: &Caller) -> Read {
    let info = view.info()?;
    if view.pid() != info.pid {
        return Ok(Vec::new());
    }
    let seen = info.children.iter().map(|pid| view.shown(*pid)).filter(|pid| *pid > 0);
    Ok(seen.map(|pid| format!("{pid} ")).collect::<String>().into_bytes())
}

/// `clear_refs`: 1 to 5; nothing is counted that could be cleared.
pub(super) fn clear_refs(_: &View, _: &Caller, from: &[u8]) -> Written {
    if (1..=5).contains(&parse::<u32>(from)?) { Ok(()) } else { Err(Errno::EINVAL) }
}

pub(super) fn comm(view: &View, _: &Caller) -> Read {
    let mut name = view.comm();
    name.push(b'\n');
    Ok(name)
}

/// `comm`: for threads of the same process (`comm_write`).
pub(super) fn set_comm(view: &View, caller: &Caller, from: &[u8]) -> Written {
    if !view.is_of(caller) {
        return Err(Errno::EINVAL);
    }
    let name = from.strip_suffix(b"\n").unwrap_or(from);
    view.living()?.set_comm(name);
    Ok(())
}

pub(super) fn coredump_filter(_: &View, _: &Caller) -> Read {
    Ok(b"00000033\n".to_vec())
}

/// `io`: bytes are not counted.
pub(super) fn io(_: &View, _: &Caller) -> Read {
    let names = ["rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"];
    Ok(names.map(|name| format!("{name}: 0\n")).concat().into_bytes())
}

/// Names and units of limits, in the order of their numbers.
const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

pub(super) fn limits(view: &View, _: &Caller) -> Read {
    let limits = view.group.limits();
    let mut text = format!("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    let shown = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    for (number, (name, unit)) in (0..).zip(LIMITS) {
        let Limit { soft, hard } = limits.by_number(number).ok_or(Errno::EINVAL)?;
        let _ = write!(text, "{name:<25} {:<20} {:<20} ", shown(soft), shown(hard));
        let _ = if unit.is_empty() { writeln!(text) } else { writeln!(text, "{unit:<10}") };
    }
    Ok(text.into_bytes())
}

/// `loginuid` and `sessionid`: nobody logged in.
pub(super) fn loginuid(_: &View, _: &Caller) -> Read {
    Ok(b"4294967295".to_vec())
}

/// The old scale, -17 to 15 (`oom_adj_read`).
pub(super) fn oom_adj(view: &View, _: &Caller) -> Read {
    let adjustment = view.group.oom_score_adjustment();
    let old = if adjustment == 1000 { 15 } else { adjustment * 17 / 1000 };
    Ok(format!("{old}\n").into_bytes())
}

pub(super) fn set_oom_adj(view: &View, caller: &Caller, from: &[u8]) -> Written {
    let old: i32 = parse(from)?;
    if old != -17 && !(-16..=15).contains(&old) {
        return Err(Errno::EINVAL);
    }
    adjust(view, caller, if old == 15 { 1000 } else { old * 1000 / 17 })
}

/// Badness of a process: a third of it is what it has more than nothing, as for one that uses no memory to speak of.
pub(super) fn oom_score(view: &View, _: &Caller) -> Read {
    let score = (1000 + view.group.oom_score_adjustment()).max(0) * 2 / 3;
    Ok(format!("{score}\n").into_bytes())
}

pub(super) fn oom_score_adj(view: &View, _: &Caller) -> Read {
    Ok(format!("{}\n", view.group.oom_score_adjustment()).into_bytes())
}

pub(super) fn set_oom_score_adj(view: &View, caller: &Caller, from: &[u8]) -> Written {
    let adjustment: i32 = parse(from)?;
    if !(-1000..=1000).contains(&adjustment) {
        return Err(Errno::EINVAL);
    }
    adjust(view, caller, adjustment)
}

/// Lowering needs a privilege (`__set_oom_adj`).
fn adjust(view: &View, caller: &Caller, adjustment: i32) -> Written {
    if adjustment < view.group.oom_score_adjustment() && !has_resources(caller) {
        return Err(Errno::EACCES);
    }
    view.group.set_oom_score_adjustment(adjustment);
    Ok(())
}

pub(super) fn personality(view: &View, _: &Caller) -> Read {
    Ok(format!("{:08x}\n", view.living()?.personality()).into_bytes())
}

/// The beginning of what `CONFIG_SCHED_DEBUG` gives (`proc_sched_show_task`).
pub(super) fn sched(view: &View, _: &Caller) -> Read {
    let task = view.living()?;
    let name = String::from_utf8_lossy(&task.comm()).into_owned();
    let threads = view.info()?.threads.len();
    let time = task.cpu_time();
    let mut text = format!("{name} ({}, #threads: {threads})\n{}\n", view.number(), "-".repeat(67));
    let (policy, priority) = task.scheduling();
    let milliseconds = format!("{}.{:06}", time.as_millis(), time.subsec_nanos() % 1_000_000);
    let priority = if priority > 0 { 99 - priority } else { 120 + task.nice() };
    for (key, value) in [
        ("se.sum_exec_runtime", milliseconds),
        ("nr_switches", "0".to_owned()),
        ("nr_voluntary_switches", "0".to_owned()),
        ("nr_involuntary_switches", "0".to_owned()),
        ("policy", policy.to_string()),
        ("prio", priority.to_string()),
    ] {
        let _ = writeln!(text, "{key:<45}:{value:>21}");
    }
    Ok(text.into_bytes())
}

/// Nanoseconds that it ran, that it waited, and how often it ran.
pub(super) fn schedstat(view: &View, _: &Caller) -> Read {
    let ran = view.task.as_ref().map_or(0, |task| task.cpu_time().as_nanos());
    Ok(format!("{ran} 0 {}\n", u8::from(ran > 0)).into_bytes())
}

/// `stack`: for CAP_SYS_ADMIN; what the sentry does for it is not shown.
pub(super) fn stack(_: &View, caller: &Caller) -> Read {
    if caller.credentials.capable(capability::SYS_ADMIN) { Ok(Vec::new()) } else { Err(Errno::EACCES) }
}

/// `syscall`: which one is not shown.
pub(super) fn syscall(view: &View, _: &Caller) -> Read {
    view.living()?;
    Ok(b"running\n".to_vec())
}

pub(super) fn timens_offsets(_: &View, _: &Caller) -> Read {
    Ok(b"monotonic           0         0\nboottime            0         0\n".to_vec())
}

pub(super) fn timer_slack(view: &View, _: &Caller) -> Read {
    Ok(format!("{}\n", view.living()?.timer_slack()).into_bytes())
}

pub(super) fn set_timer_slack(view: &View, caller: &Caller, from: &[u8]) -> Written {
    if !view.is_of(caller) && !caller.credentials.capable(capability::SYS_NICE) {
        return Err(Errno::EPERM);
    }
    let slack: u64 = parse(from)?;
    view.living()?.set_timer_slack(if slack == 0 { crate::task::TIMER_SLACK } else { slack });
    Ok(())
}

/// `wchan`: where it waits is not shown.
pub(super) fn wchan(_: &View, _: &Caller) -> Read {
    Ok(b"0".to_vec())
}
