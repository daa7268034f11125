//! What a container uses, in the form of runc's `events`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Groups;

/// Nanoseconds of a tick of `cpuacct.stat` (USER_HZ is 100).
const TICK: u64 = 10_000_000;

struct Files<'a>(&'a Groups);

impl Files<'_> {
    fn text(&self, controller: &str, file: &str) -> String {
        let folder = self.0.folder(controller).unwrap_or(Path::new("/nowhere"));
        std::fs::read_to_string(folder.join(file)).unwrap_or_default()
    }

    /// A number; `max` is the largest.
    fn number(&self, controller: &str, file: &str) -> u64 {
        let text = self.text(controller, file);
        if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or_default() }
    }

    /// Lines of a name and a number.
    fn table(&self, controller: &str, file: &str) -> BTreeMap<String, u64> {
        let text = self.text(controller, file);
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect()
    }
}

/// All of it.
#[must_use]
pub fn stats(groups: &Groups) -> Value {
    let files = Files(groups);
    let (cpu, memory, blkio) = if groups.is_unified() {
        (cpu_2(&files), memory_2(&files), blkio_2(&files))
    } else {
        (cpu_1(&files), memory_1(&files), blkio_1(&files))
    };
    let limit = Some(files.number("pids", "pids.max")).filter(|limit| *limit != u64::MAX);
    let mut pids = json!({"current": files.number("pids", "pids.current")});
    if let Some(limit) = limit {
        pids["limit"] = json!(limit);
    }
    json!({
        "cpu": cpu, "cpuset": {}, "memory": memory, "pids": pids, "blkio": blkio, "hugetlb": {}, "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn cpu_1(files: &Files<'_>) -> Value {
    let ticks = files.table("cpuacct", "cpuacct.stat");
    let of = |table: &BTreeMap<String, u64>, key: &str| table.get(key).copied().unwrap_or_default();
    let throttled = files.table("cpu", "cpu.stat");
    let each = files.text("cpuacct", "cpuacct.usage_percpu");
    let each: Vec<u64> = each.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    json!({
        "usage": {"total": files.number("cpuacct", "cpuacct.usage"), "percpu": each,
            "kernel": of(&ticks, "system").saturating_mul(TICK), "user": of(&ticks, "user").saturating_mul(TICK)},
        "throttling": {"periods": of(&throttled, "nr_periods"), "throttledPeriods": of(&throttled, "nr_throttled"),
            "throttledTime": of(&throttled, "throttled_time")},
    })
}

fn cpu_2(files: &Files<'_>) -> Value {
    let all = files.table("cpu", "cpu.stat");
    let of = |key: &str| all.get(key).copied().unwrap_or_default();
    let nanos = |key: &str| of(key).saturating_mul(1000);
    json!({
        "usage": {"total": nanos("usage_usec"), "kernel": nanos("system_usec"), "user": nanos("user_usec")},
        "throttling": {"periods": of("nr_periods"), "throttledPeriods": of("nr_throttled"),
            "throttledTime": nanos("throttled_usec")},
    })
}

fn memory_1(files: &Files<'_>) -> Value {
    let entry = |name: &str| {
        let number = |what: &str| files.number("memory", &format!("memory.{name}{what}"));
        json!({"limit": number("limit_in_bytes"), "usage": number("usage_in_bytes"),
            "max": number("max_usage_in_bytes"), "failcnt": number("failcnt")})
    };
    let raw = files.table("memory", "memory.stat");
    json!({"cache": raw.get("cache").copied().unwrap_or_default(), "usage": entry(""), "swap": entry("memsw."),
        "kernel": entry("kmem."), "kernelTCP": entry("kmem.tcp."), "raw": raw})
}

fn memory_2(files: &Files<'_>) -> Value {
    let entry = |limit: &str, usage: &str, peak: &str, failures: u64| {
        let number = |file: &str| files.number("memory", file);
        json!({"limit": number(limit), "usage": number(usage), "max": number(peak), "failcnt": failures})
    };
    let raw = files.table("memory", "memory.stat");
    let failures = files.table("memory", "memory.events").get("max").copied().unwrap_or_default();
    json!({"cache": raw.get("file").copied().unwrap_or_default(),
        "usage": entry("memory.max", "memory.current", "memory.peak", failures),
        "swap": entry("memory.swap.max", "memory.swap.current", "memory.swap.peak", 0),
        "kernel": {"failcnt": 0}, "kernelTCP": {"failcnt": 0}, "raw": raw})
}

fn entry(device: &str, op: &str, value: u64) -> Option<Value> {
    let (major, minor) = device.split_once(':')?;
    Some(
        json!({"major": major.parse::<u64>().ok()?, "minor": minor.parse::<u64>().ok()?, "op": op, "value": value}),
    )
}

fn blkio_1(files: &Files<'_>) -> Value {
    let lines = |file: &str| -> Vec<Value> {
        let text = files.text("blkio", file);
        let entries = text.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [device, op, value] = fields.as_slice() else { return None };
            entry(device, op, value.parse().ok()?)
        });
        entries.collect()
    };
    json!({"ioServiceBytesRecursive": lines("blkio.throttle.io_service_bytes_recursive"),
        "ioServicedRecursive": lines("blkio.throttle.io_serviced_recursive")})
}

fn blkio_2(files: &Files<'_>) -> Value {
    let text = files.text("io", "io.stat");
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut fields = line.split(' ');
        let device = fields.next().unwrap_or_default();
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match name {
                "rbytes" => bytes.extend(entry(device, "Read", value)),
                "wbytes" => bytes.extend(entry(device, "Write", value)),
                "rios" => operations.extend(entry(device, "Read", value)),
                "wios" => operations.extend(entry(device, "Write", value)),
                _ => {}
            }
        }
    }
    let mut all = Map::new();
    all.insert("ioServiceBytesRecursive".into(), bytes.into());
    all.insert("ioServicedRecursive".into(), operations.into());
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(files: &[(&str, &str)], unified: bool) -> (tempfile::TempDir, Groups) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let names: &[&str] = if unified { &[""] } else { &["cpu", "cpuacct", "memory", "pids", "blkio"] };
        let folders = names.iter().map(|name| ((*name).to_owned(), dir.path().to_owned())).collect();
        (dir, Groups { folders, ..Groups::default() })
    }

    #[test]
    fn version_2_is_told_in_the_same_form() {
        let (_dir, groups) = groups(
            &[
                ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 4\n"),
                ("memory.current", "10\n"),
                ("memory.max", "max\n"),
                ("memory.stat", "anon 1\nfile 2\n"),
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
                ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nx\n"),
            ],
            true,
        );
        let all = stats(&groups);
        assert_eq!(all["cpu"]["usage"]["total"], 5000);
        assert_eq!(all["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(all["memory"]["cache"], 2);
        assert_eq!(all["pids"], json!({"current": 3}));
        assert_eq!(
            all["blkio"]["ioServicedRecursive"][1],
            json!({"major": 8, "minor": 0, "op": "Write", "value": 4})
        );
    }

    #[test]
    fn version_1() {
        let (_dir, groups) = groups(
            &[
                ("cpuacct.usage", "7\n"),
                ("cpuacct.usage_percpu", "3 4 \n"),
                ("cpuacct.stat", "user 1\nsystem 2\n"),
                ("memory.usage_in_bytes", "10\n"),
                ("pids.max", "5\n"),
                ("blkio.throttle.io_serviced_recursive", "8:0 Read 3\nTotal 3\n"),
            ],
            false,
        );
        let all = stats(&groups);
        assert_eq!(
            all["cpu"]["usage"],
            json!({"total": 7, "percpu": [3, 4], "kernel": 20_000_000, "user": 10_000_000})
        );
        assert_eq!(all["memory"]["usage"]["usage"], 10);
        assert_eq!(all["pids"]["limit"], 5);
        assert_eq!(all["blkio"]["ioServicedRecursive"].as_array().unwrap().len(), 1);
    }
}
