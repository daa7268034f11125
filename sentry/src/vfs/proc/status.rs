//! `stat`, `statm`, `status` of a process (`fs/proc/array.c`; `man 5 proc_pid_stat`, `proc_pid_status`).

use std::fmt::Write as _;
use std::time::Duration;

use super::super::Caller;
use super::super::generated::{cpus, mask, ranges};
use super::memory::resident;
use super::process::View;
use crate::error::Errno;
use crate::mm::{PAGE, Strings, Summary};
use crate::task::signal::SignalSet;
use crate::task::{CpuTimes, Credentials, ProcessInfo, Resource};

type Read = Result<Vec<u8>, Errno>;

/// Ticks in a second (`USER_HZ`).
pub(super) const TICKS: u128 = 100;

/// A time in ticks.
pub(super) fn ticks(time: Duration) -> u128 {
    time.as_nanos() / (1_000_000_000 / TICKS)
}

/// What state it is in, by letter: one that asks about itself runs, whatever else it does.
fn state(view: &View, caller: &Caller, info: &ProcessInfo) -> char {
    match (&view.task, info.state) {
        (None, _) => 'Z',
        (Some(task), _) if task.tracer().is_some_and(|(_, stands)| stands) => 't',
        (Some(_), other) if other != 'R' => other,
        // A call that goes on runs; so does a task that has not begun yet.
        (Some(task), _) if task.sleeps() && task.pid() != caller.process => 'S',
        _ => 'R',
    }
}

/// Memory of a process that lives.
#[derive(Default)]
struct Memory {
    summary: Summary,
    strings: Strings,
    resident: u64,
    file: u64,
}

impl Memory {
    fn of(view: &View) -> Option<Self> {
        let space = view.task.as_ref()?.space();
        let (resident, file) = resident(&space);
        Some(Self { summary: space.summary(), strings: space.strings(), resident, file })
    }
}

fn cpu_times(view: &View) -> (CpuTimes, CpuTimes) {
    match &view.task {
        Some(task) if view.of_thread => (task.cpu_times(), CpuTimes::default()),
        _ => (view.group.cpu_times(), view.group.children_cpu_times()),
    }
}

/// Signals as `stat` has them: the first 31, as a number.
fn low(set: SignalSet) -> u64 {
    set.0 & 0x7fff_ffff
}

/// `stat`: 52 fields.
pub(super) fn stat(view: &View, caller: &Caller) -> Read {
    /// `PF_RANDOMIZE`.
    const FLAGS: u32 = 0x40_0000;
    let info = view.info()?;
    let seen = view.may_be_seen_by(caller);
    let memory = Memory::of(view).unwrap_or_default();
    let (own, children) = cpu_times(view);
    let (nice, (policy, realtime)) = match &view.task {
        Some(task) => (task.nice(), task.scheduling()),
        None => (0, (0, 0)),
    };
    let priority = if realtime > 0 { -1 - realtime } else { 20 + nice };
    let (blocked, pending) = signals(view);
    let Summary { total, code_range, data_range, stack_end, heap, .. } = &memory.summary;
    let shown = |address: u64| if seen { address } else { 0 };
    let exit_signal = if view.of_thread && view.pid() != info.pid { -1 } else { info.exit_signal };
    let cpu = cpus().first().copied().unwrap_or(0);
    let mut text = format!("{} (", view.number()).into_bytes();
    text.extend(view.comm());
    let first = format!(
        ") {} {} {} {} 0 -1 {FLAGS} 0 0 0 0 {} {} {} {} {priority} {nice} {} 0 {} {total} {} {}",
        state(view, caller, &info),
        view.shown(info.parent),
        view.shown(info.pgid),
        view.shown(info.sid),
        ticks(own.user),
        ticks(own.system),
        ticks(children.user),
        ticks(children.system),
        info.threads.len(),
        ticks(view.group.started()),
        memory.resident / PAGE,
        view.group.limits().of(Resource::Resident).soft,
    );
    let second = format!(
        " {} {} {} 0 0 {} {} {} {} 0 0 0 {exit_signal} {cpu} {realtime} {policy} 0 0 0",
        shown(code_range.start),
        shown(code_range.end),
        shown(*stack_end),
        low(pending),
        low(blocked),
        low(info.ignored),
        low(info.handled),
    );
    let Strings { arguments, environment, .. } = &memory.strings;
    let third = format!(
        " {} {} {} {} {} {} {} {}\n",
        shown(data_range.start),
        shown(data_range.end),
        shown(heap.start),
        shown(arguments.start),
        shown(arguments.end),
        shown(environment.start),
        shown(environment.end),
        if seen { view.group.exit_status().unwrap_or(0) } else { 0 },
    );
    text.extend([first, second, third].concat().into_bytes());
    Ok(text)
}

/// Blocked signals, and those that are pending for the thread.
fn signals(view: &View) -> (SignalSet, SignalSet) {
    view.task.as_ref().map_or_else(Default::default, |task| (task.signal_mask(), task.pending_signals().0))
}

/// `statm`: pages.
pub(super) fn statm(view: &View, _: &Caller) -> Read {
    let memory = Memory::of(view).unwrap_or_default();
    let Summary { total, code, data, stack, .. } = memory.summary;
    let pages = |bytes: u64| bytes / PAGE;
    Ok(format!(
        "{} {} {} {} 0 {} 0\n",
        pages(total),
        pages(memory.resident),
        pages(memory.file),
        pages(code),
        pages(data.saturating_add(stack)),
    )
    .into_bytes())
}

/// `status`: keys and values.
pub(super) fn status(view: &View, caller: &Caller) -> Read {
    let info = view.info()?;
    let who = view.credentials()?;
    let mut text = b"Name:\t".to_vec();
    for byte in view.comm() {
        match byte {
            b'\n' => text.extend(b"\\n"),
            b'\\' => text.extend(b"\\\\"),
            other => text.push(other),
        }
    }
    text.push(b'\n');
    let mut rest = String::new();
    identity(view, caller, &info, &who, &mut rest);
    if let Some(memory) = Memory::of(view) {
        sizes(&memory, &mut rest);
    }
    if view.task.is_some() {
        rest.push_str("CoreDumping:\t0\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\n");
    }
    let _ = writeln!(rest, "Threads:\t{}", info.threads.len());
    of_signals(view, &info, &mut rest);
    privileges(view, &who, &mut rest);
    placement(view, &mut rest);
    text.extend(rest.into_bytes());
    Ok(text)
}

fn identity(view: &View, caller: &Caller, info: &ProcessInfo, who: &Credentials, text: &mut String) {
    if let Some(task) = &view.task {
        let _ = writeln!(text, "Umask:\t{:04o}", task.fs().umask());
    }
    let letter = state(view, caller, info);
    let state = match letter {
        'R' => "R (running)",
        'T' => "T (stopped)",
        't' => "t (tracing stop)",
        'Z' => "Z (zombie)",
        _ => "S (sleeping)",
    };
    let (pid, open) = (view.number(), view.task.as_ref().map_or(0, |task| task.files().all().len()));
    let table = if view.task.is_some() { open.next_power_of_two().max(64) } else { 0 };
    let users = &caller.credentials.user_ns;
    let groups: String = who.groups.iter().map(|group| format!("{} ", users.shown_gid(*group))).collect();
    let space = view.group.pid_namespace();
    let tracer = view.task.as_ref().and_then(|task| task.tracer()).map_or(0, |(pid, _)| view.shown(pid));
    let nested = |pid: i32| {
        let numbers = view.pids.all_shown(space, pid);
        numbers.iter().map(|number| format!("\t{number}")).collect::<String>()
    };
    let _ = write!(
        text,
        "State:\t{state}\nTgid:\t{}\nNgid:\t0\nPid:\t{pid}\nPPid:\t{}\nTracerPid:\t{tracer}\n\
         Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\nFDSize:\t{table}\nGroups:\t{groups}{}\n\
         NStgid:{}\nNSpid:{}\nNSpgid:{}\nNSsid:{}\nKthread:\t0\n",
        view.shown(info.pid),
        view.shown(info.parent),
        users.shown_uid(who.uid),
        users.shown_uid(who.euid),
        users.shown_uid(who.suid),
        users.shown_uid(who.fsuid),
        users.shown_gid(who.gid),
        users.shown_gid(who.egid),
        users.shown_gid(who.sgid),
        users.shown_gid(who.fsgid),
        if groups.is_empty() { " " } else { "" },
        nested(info.pid),
        nested(view.pid()),
        nested(info.pgid),
        nested(info.sid),
    );
}

fn sizes(memory: &Memory, text: &mut String) {
    let Summary { total, locked, data, stack, code, library, .. } = memory.summary;
    let (resident, file) = (memory.resident, memory.file);
    for (key, bytes) in [
        ("VmPeak", total),
        ("VmSize", total),
        ("VmLck", locked),
        ("VmPin", 0),
        ("VmHWM", resident),
        ("VmRSS", resident),
        ("RssAnon", resident.saturating_sub(file)),
        ("RssFile", file),
        ("RssShmem", 0),
        ("VmData", data),
        ("VmStk", stack),
        ("VmExe", code),
        ("VmLib", library),
        // A page of tables for each 2 MiB in memory, and those above it.
        ("VmPTE", (resident >> 21).saturating_add(4).saturating_mul(PAGE)),
        ("VmSwap", 0),
        ("HugetlbPages", 0),
    ] {
        let _ = writeln!(text, "{key}:\t{:8} kB", bytes / 1024);
    }
}

fn of_signals(view: &View, info: &ProcessInfo, text: &mut String) {
    let limit = view.group.limits().of(Resource::PendingSignals).soft;
    let (own, shared) = view.task.as_ref().map_or_else(Default::default, |task| task.pending_signals());
    let blocked = view.task.as_ref().map_or(SignalSet::EMPTY, |task| task.signal_mask());
    let queued = own.0.count_ones() + shared.0.count_ones();
    let _ = writeln!(text, "SigQ:\t{queued}/{limit}");
    for (key, set) in [
        ("SigPnd", own),
        ("ShdPnd", shared),
        ("SigBlk", blocked),
        ("SigIgn", info.ignored),
        ("SigCgt", info.handled),
    ] {
        let _ = writeln!(text, "{key}:\t{:016x}", set.0);
    }
}

fn privileges(view: &View, who: &Credentials, text: &mut String) {
    for (key, set) in [
        ("CapInh", who.inheritable),
        ("CapPrm", who.permitted),
        ("CapEff", who.effective),
        ("CapBnd", who.bounding),
        ("CapAmb", who.ambient),
    ] {
        let _ = writeln!(text, "{key}:\t{:016x}", set.0);
    }
    let filters = view.task.as_ref().map(|task| task.filters()).unwrap_or_default();
    let _ = write!(
        text,
        "NoNewPrivs:\t{}\nSeccomp:\t{}\nSeccomp_filters:\t{}\nSpeculation_Store_Bypass:\tvulnerable\n\
         SpeculationIndirectBranch:\talways enabled\n",
        u8::from(who.no_new_privileges),
        filters.mode(),
        filters.count(),
    );
}

/// The CPUs that it may use.
fn allowed(view: &View) -> Vec<usize> {
    let Some(mask) = view.task.as_ref().and_then(|task| task.affinity()) else { return cpus().to_vec() };
    let is_set = |cpu: usize| mask.get(cpu / 8).is_some_and(|byte| byte & (1 << (cpu % 8)) != 0);
    (0..mask.len().saturating_mul(8)).filter(|cpu| is_set(*cpu)).collect()
}

fn placement(view: &View, text: &mut String) {
    let allowed = allowed(view);
    let _ = write!(
        text,
        "Cpus_allowed:\t{}\nCpus_allowed_list:\t{}\nMems_allowed:\t00000000,00000001\n\
         Mems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n",
        mask(&allowed),
        ranges(&allowed),
    );
}
