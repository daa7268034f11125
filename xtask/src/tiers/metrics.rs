//! What is measured, by which probe, and what is aimed at.

use serde::Serialize;

use super::probes::Probe;

/// What is aimed at. Ratios are ours divided by another one's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Aim {
    /// At most so many times runsc's under systrap.
    AtMost(f64),
    /// At least so many times runsc's under systrap.
    AtLeast(f64),
    /// At most so many times runsc's under systrap, and at most this value.
    AtMostAnd(f64, f64),
    /// At most this value.
    Below(f64),
    /// At least so many times runc's.
    OfRunc(f64),
}

impl Aim {
    /// In words.
    pub(super) fn words(self) -> String {
        match self {
            Self::AtMost(ratio) => format!("≤ {ratio} × systrap"),
            Self::AtLeast(ratio) => format!("≥ {ratio} × systrap"),
            Self::AtMostAnd(ratio, value) => format!("≤ {ratio} × systrap and ≤ {value}"),
            Self::Below(value) => format!("≤ {value}"),
            Self::OfRunc(ratio) => format!("≥ {ratio} × runc"),
        }
    }

    /// Whether it is met; `None` where what it compares with was not measured.
    pub(super) fn met(self, ours: f64, systrap: Option<f64>, runc: Option<f64>) -> Option<bool> {
        match self {
            Self::AtMost(ratio) => systrap.map(|peer| ours <= ratio * peer),
            Self::AtLeast(ratio) => systrap.map(|peer| ours >= ratio * peer),
            Self::AtMostAnd(ratio, value) => systrap.map(|peer| ours <= ratio * peer && ours <= value),
            Self::Below(value) => Some(ours <= value),
            Self::OfRunc(ratio) => runc.map(|peer| ours >= ratio * peer),
        }
    }
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Better {
    /// A time, or memory.
    Less,
    /// A rate.
    More,
}

/// One figure.
#[derive(Debug)]
pub(super) struct Metric {
    /// `group.name`.
    pub(super) name: &'static str,
    /// Name in what the probe gives.
    pub(super) key: &'static str,
    pub(super) probe: Probe,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) aim: Aim,
    /// One line for people.
    pub(super) what: &'static str,
}

const fn less(
    name: &'static str,
    key: &'static str,
    probe: Probe,
    unit: &'static str,
    aim: Aim,
    what: &'static str,
) -> Metric {
    Metric { name, key, probe, unit, better: Better::Less, aim, what }
}

const fn more(
    name: &'static str,
    key: &'static str,
    probe: Probe,
    unit: &'static str,
    aim: Aim,
    what: &'static str,
) -> Metric {
    Metric { name, key, probe, unit, better: Better::More, aim, what }
}

use Aim::{AtLeast, AtMost, AtMostAnd, Below, OfRunc};
use Probe::{Idle, Many, Measure, Program, Start};

/// Nowhere slower than runsc.
const NOT_SLOWER: Aim = AtMost(1.0);

/// All, in the order of the report.
#[rustfmt::skip]
pub(super) const METRICS: &[Metric] = &[
    less("start.first_instruction", "first", Start, "ms", AtMost(0.3), "the runtime's start to the first byte that a static program writes"),
    less("start.run", "run", Start, "ms", NOT_SLOWER, "the runtime's start to its end"),
    less("idle.pss_one", "pss_one", Idle, "MiB", AtMostAnd(0.3, 10.0), "memory of all processes of one sandbox with a program that sleeps"),
    less("idle.pss_each_of_8", "pss_each", Idle, "MiB", AtMostAnd(0.3, 10.0), "the same, each of eight"),
    less("idle.cpu", "cpu", Idle, "ms/s", Below(0.5), "processor time of that one sandbox"),
    less("syscall.getpid", "getpid", Measure("syscalls"), "ns", AtMost(0.1), "a call that the stub may answer"),
    less("syscall.getppid", "getppid", Measure("syscalls"), "ns", AtMost(0.25), "the shortest call that the kernel answers"),
    less("syscall.number_in_register", "number_in_register", Measure("syscalls"), "ns", AtMost(0.6), "the same where code does not tell the number"),
    less("syscall.clock_gettime_vdso", "clock_vdso", Measure("syscalls"), "ns", NOT_SLOWER, "the clock by the vDSO"),
    less("syscall.clock_gettime_trapped", "clock_trapped", Measure("syscalls"), "ns", NOT_SLOWER, "the clock by a call"),
    less("syscall.write_dev_null", "write_null", Measure("syscalls"), "ns", NOT_SLOWER, "a byte to /dev/null"),
    less("syscall.raise_and_handle", "signal", Measure("syscalls"), "ns", NOT_SLOWER, "a signal to itself, handled"),
    less("memory.mmap_munmap", "mmap_munmap", Measure("memory"), "ns", AtMost(0.05), "16 KiB mapped and unmapped"),
    less("memory.fault_anonymous", "page_fault", Measure("memory"), "ns/page", NOT_SLOWER, "first write of a page"),
    less("memory.fault_file", "page_fault_file", Measure("memory"), "ns/page", NOT_SLOWER, "first read of a page of a mapped file"),
    less("file.open_read_close", "open_read_close", Measure("files"), "ns", AtMost(0.2), "a file of 1 KiB"),
    less("file.stat", "stat", Measure("files"), "ns", AtMost(0.2), "the same file"),
    less("file.stat_missing", "stat_missing", Measure("files"), "ns", AtMost(0.2), "a name that is not there"),
    less("file.create_write_unlink", "create_write_unlink", Measure("files"), "ns", NOT_SLOWER, "a file in /tmp"),
    less("file.pread_4k", "pread_4k", Measure("files"), "ns", NOT_SLOWER, "4 KiB of a cached file of 64 MiB"),
    more("file.read_sequential", "read_sequential", Measure("files"), "MiB/s", AtLeast(1.0), "the same file from its begin, 256 KiB each"),
    less("file.sqlite_commit", "sqlite_commit", Program("sqlite"), "ms", NOT_SLOWER, "an insert with its fsyncs, in /scratch"),
    less("process.fork_exec", "fork_exec", Measure("process"), "us", AtMost(0.2), "fork, /bin/true, wait"),
    less("process.vfork_exec", "vfork_exec", Measure("process"), "us", AtMost(0.2), "vfork, /bin/true, wait"),
    less("process.thread_create_join", "thread", Measure("process"), "us", AtMost(0.5), "a thread that ends at once"),
    less("process.futex_round_trip", "futex_round_trip", Measure("process"), "us", NOT_SLOWER, "two threads, a word"),
    less("process.pipe_round_trip", "pipe_round_trip", Measure("process"), "us", NOT_SLOWER, "two processes, two pipes"),
    less("process.unix_round_trip", "unix_round_trip", Measure("process"), "us", NOT_SLOWER, "two processes, two pairs of sockets"),
    less("net.tcp_round_trip", "tcp_round_trip", Measure("network"), "us", NOT_SLOWER, "two processes, one connection on loopback"),
    more("net.redis_set_plain", "redis_set", Program("redis"), "ops/s", AtLeast(4.0), "redis-benchmark, 20 clients"),
    more("net.redis_get_plain", "redis_get", Program("redis"), "ops/s", AtLeast(4.0), "the same"),
    more("net.redis_set_pipeline16", "redis_set_pipeline16", Program("redis"), "ops/s", AtLeast(3.0), "the same, 16 requests at once"),
    more("net.redis_get_pipeline16", "redis_get_pipeline16", Program("redis"), "ops/s", AtLeast(3.0), "the same"),
    more("net.nginx_1k", "nginx_1k", Program("nginx"), "req/s", AtLeast(5.0), "wrk, 16 connections, 1 KiB"),
    more("cpu.sysbench_1", "sysbench_1", Program("sysbench"), "events/s", OfRunc(0.99), "prime numbers, one thread"),
    more("cpu.sysbench_2", "sysbench_2", Program("sysbench"), "events/s", OfRunc(0.99), "the same, two threads"),
    less("app.build_c", "build", Program("build"), "s", AtMost(0.555), "make and gcc -O2, 13 files"),
    less("app.shell_200_pipelines", "shell_pipelines", Program("shell"), "s", AtMost(0.2), "bash: echo | tr | cat"),
    less("app.python_start", "python", Program("python"), "s", NOT_SLOWER, "python3 with four imports, the second time"),
    more("many.start_rate", "start_rate", Many, "1/s", AtLeast(1.0), "100 sandboxes at once: how many come up in a second"),
    less("many.pss_each_of_100", "pss_each", Many, "MiB", AtMostAnd(0.3, 10.0), "their memory, each"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_keys_too_within_a_probe() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        let keys: BTreeSet<_> = METRICS.iter().map(|metric| (metric.probe.name(), metric.key)).collect();
        assert_eq!(keys.len(), METRICS.len());
    }

    #[test]
    fn an_aim_is_met_at_its_edge_and_not_judged_without_a_peer() {
        assert_eq!(AtMost(0.25).met(25.0, Some(100.0), None), Some(true));
        assert_eq!(AtMost(0.25).met(26.0, Some(100.0), None), Some(false));
        assert_eq!(AtLeast(4.0).met(39.0, Some(10.0), None), Some(false));
        assert_eq!(AtMostAnd(0.3, 10.0).met(11.0, Some(100.0), None), Some(false));
        assert_eq!(Below(0.5).met(0.5, None, None), Some(true));
        assert_eq!(OfRunc(0.99).met(99.0, None, Some(100.0)), Some(true));
        assert_eq!(AtMost(1.0).met(1.0, None, Some(1.0)), None);
    }
}
