//! OCI's `LinuxResources` as files of control groups (runtime-spec, config-linux.md "Control groups"; Linux, cgroup-v1/ and cgroup-v2.rst).

use std::path::Path;

use serde_json::Value;

use super::{CgroupError, Groups, write};
use crate::wire::list;

/// A file and what is written to it.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    controller: &'static str,
    /// Of the bundle.
    field: String,
    file: String,
    value: String,
}

#[derive(Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, controller: &'static str, field: &str, file: impl Into<String>, value: impl ToString) {
        let (field, file) = (field.to_owned(), file.into());
        self.0.push(Setting { controller, field, file, value: value.to_string() });
    }
}

/// Host tasks for each task of a guest: one of a stub, one of the sentry, and the processes and helpers that they need.
const TASKS: i64 = 4;
/// Those of a sandbox without guests.
const OWN_TASKS: i64 = 64;

/// Limits of a bundle as those of the host's group: the sentry itself counts and bounds what guests see (`pids`), and the host, which sees more tasks than
/// there are in the guest, must not stop it before.
#[must_use]
pub fn for_the_host(resources: &Value) -> Value {
    let mut resources = resources.clone();
    if let Some(limit @ 1..) = resources["pids"]["limit"].as_i64() {
        resources["pids"]["limit"] = limit.saturating_mul(TASKS).saturating_add(OWN_TASKS).into();
    }
    resources
}

/// Fills in what goes together with what is set, from what holds now: a quota is one of a period, swap one beside memory. So a change of one alone
/// leaves the other as it is.
pub(super) fn complete(groups: &Groups, resources: &Value) -> Value {
    let mut resources = resources.clone();
    let read = |controller: &str, file: &str| {
        let folder = groups.folder(controller)?;
        std::fs::read_to_string(folder.join(file)).ok()
    };
    let number = |text: Option<&str>| text?.trim().parse::<i64>().ok();
    let cpu = &resources["cpu"];
    let told = [set(&cpu["quota"]), set(&cpu["period"])];
    if let [Some(_), None] | [None, Some(_)] = told {
        let (quota, period) = if groups.is_unified() {
            let text = read("cpu", "cpu.max").unwrap_or_default();
            let mut fields = text.split_whitespace();
            (number(fields.next()), number(fields.next()))
        } else {
            let of = |file| number(read("cpu", file).as_deref());
            (of("cpu.cfs_quota_us").filter(|quota| *quota > 0), of("cpu.cfs_period_us"))
        };
        let [told_quota, told_period] = told;
        if let (None, Some(quota)) = (told_quota, quota) {
            resources["cpu"]["quota"] = quota.into();
        }
        if let (None, Some(period)) = (told_period, period) {
            resources["cpu"]["period"] = period.into();
        }
    }
    let memory = &resources["memory"];
    let alone = set(&memory["swap"]).is_some_and(|swap| swap > 0) && set(&memory["limit"]).is_none();
    if groups.is_unified()
        && alone
        && let Some(limit) = number(read("memory", "memory.max").as_deref())
    {
        resources["memory"]["limit"] = limit.into();
    }
    resources
}

/// Applies what is set.
pub(super) fn apply(groups: &Groups, resources: &Value) -> Result<(), CgroupError> {
    let settings = if groups.is_unified() { unified(resources)? } else { legacy(resources) };
    for setting in &settings.0 {
        let Some(folder) = groups.folder(setting.controller) else {
            return Err(no_controller(setting));
        };
        one(folder, setting)?;
    }
    Ok(())
}

fn no_controller(setting: &Setting) -> CgroupError {
    CgroupError::NoController {
        field: format!("linux.resources.{}", setting.field),
        controller: setting.controller.to_owned(),
    }
}

fn one(folder: &Path, setting: &Setting) -> Result<(), CgroupError> {
    let path = folder.join(&setting.file);
    if !path.exists() {
        return Err(no_controller(setting));
    }
    match write(&path, &setting.value) {
        // A limit of memory with swap cannot be below that of memory alone, which may have to give way first.
        Err(_) if setting.file == "memory.limit_in_bytes" => {
            write(&folder.join("memory.memsw.limit_in_bytes"), "-1")?;
            write(&path, &setting.value)
        }
        other => other,
    }
}

/// A number that says something: 0 and absent do not.
pub(super) fn set(value: &Value) -> Option<i64> {
    value.as_i64().filter(|number| *number != 0)
}

fn legacy(resources: &Value) -> Settings {
    let mut all = Settings::default();
    let memory = &resources["memory"];
    for (name, file) in [
        ("limit", "memory.limit_in_bytes"),
        ("swap", "memory.memsw.limit_in_bytes"),
        ("reservation", "memory.soft_limit_in_bytes"),
        ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
    ] {
        if let Some(bytes) = set(&memory[name]) {
            all.add("memory", &format!("memory.{name}"), file, bytes);
        }
    }
    if let Some(swappiness) = memory["swappiness"].as_u64() {
        all.add("memory", "memory.swappiness", "memory.swappiness", swappiness);
    }
    if memory["disableOOMKiller"] == true {
        all.add("memory", "memory.disableOOMKiller", "memory.oom_control", 1);
    }
    let cpu = &resources["cpu"];
    // The period first: a quota is judged by it.
    for (name, file) in [
        ("shares", "cpu.shares"),
        ("period", "cpu.cfs_period_us"),
        ("quota", "cpu.cfs_quota_us"),
        ("realtimePeriod", "cpu.rt_period_us"),
        ("realtimeRuntime", "cpu.rt_runtime_us"),
    ] {
        if let Some(number) = set(&cpu[name]) {
            all.add("cpu", &format!("cpu.{name}"), file, number);
        }
    }
    cpuset(&mut all, cpu);
    pids(&mut all, resources);
    let block = &resources["blockIO"];
    if let Some(weight) = set(&block["weight"]) {
        all.add("blkio", "blockIO.weight", "blkio.bfq.weight", weight);
    }
    for (name, file) in [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
        ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
        ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
        ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
    ] {
        for device in list(block, name) {
            all.add(
                "blkio",
                &format!("blockIO.{name}"),
                file,
                format!("{} {}", numbers(device), device["rate"]),
            );
        }
    }
    for limit in list(resources, "hugepageLimits") {
        let size = limit["pageSize"].as_str().unwrap_or_default();
        let file = format!("hugetlb.{size}.limit_in_bytes");
        all.add("hugetlb", "hugepageLimits", file, &limit["limit"]);
    }
    if let Some(class) = set(&resources["network"]["classID"]) {
        all.add("net_cls", "network.classID", "net_cls.classid", class);
    }
    all
}

fn numbers(device: &Value) -> String {
    format!("{}:{}", device["major"], device["minor"])
}

fn cpuset(all: &mut Settings, cpu: &Value) {
    for (name, file) in [("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")] {
        if let Some(text) = cpu[name].as_str().filter(|text| !text.is_empty()) {
            all.add("cpuset", &format!("cpu.{name}"), file, text);
        }
    }
}

fn pids(all: &mut Settings, resources: &Value) {
    if let Some(limit) = set(&resources["pids"]["limit"]) {
        all.add("pids", "pids.limit", "pids.max", or_max(limit));
    }
}

fn or_max(number: i64) -> String {
    if number < 0 { "max".to_owned() } else { number.to_string() }
}

/// Weights of version 1 (2 to 262144) as those of version 2 (1 to 10000).
pub(super) fn weight_of_shares(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Version 1 counts memory and swap together, version 2 swap alone.
pub(super) fn swap_alone(swap: i64, limit: Option<i64>) -> i64 {
    match limit {
        _ if swap < 0 => swap,
        Some(limit @ 1..) => (swap - limit).max(0),
        _ => swap,
    }
}

fn unified(resources: &Value) -> Result<Settings, CgroupError> {
    let mut all = Settings::default();
    let memory = &resources["memory"];
    let limit = set(&memory["limit"]);
    if let Some(bytes) = limit {
        all.add("memory", "memory.limit", "memory.max", or_max(bytes));
    }
    if let Some(swap) = set(&memory["swap"]) {
        all.add("memory", "memory.swap", "memory.swap.max", or_max(swap_alone(swap, limit)));
    }
    if let Some(bytes) = set(&memory["reservation"]) {
        all.add("memory", "memory.reservation", "memory.low", or_max(bytes));
    }
    let cpu = &resources["cpu"];
    if let Some(shares) = set(&cpu["shares"]) {
        all.add("cpu", "cpu.shares", "cpu.weight", weight_of_shares(shares));
    }
    if let (quota, period @ 1..) =
        (cpu["quota"].as_i64().unwrap_or_default(), cpu["period"].as_i64().unwrap_or(0))
    {
        let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        all.add("cpu", "cpu.quota", "cpu.max", format!("{quota} {period}"));
    } else if let Some(quota) = set(&cpu["quota"]) {
        all.add("cpu", "cpu.quota", "cpu.max", or_max(quota));
    }
    cpuset(&mut all, cpu);
    pids(&mut all, resources);
    let block = &resources["blockIO"];
    if let Some(weight) = set(&block["weight"]) {
        let weight = 1 + (weight.clamp(10, 1000) - 10) * 9999 / 990;
        all.add("io", "blockIO.weight", "io.weight", weight);
    }
    for (name, key) in [
        ("throttleReadBpsDevice", "rbps"),
        ("throttleWriteBpsDevice", "wbps"),
        ("throttleReadIOPSDevice", "riops"),
        ("throttleWriteIOPSDevice", "wiops"),
    ] {
        for device in list(block, name) {
            let value = format!("{} {key}={}", numbers(device), device["rate"]);
            all.add("io", &format!("blockIO.{name}"), "io.max", value);
        }
    }
    for limit in list(resources, "hugepageLimits") {
        let size = limit["pageSize"].as_str().unwrap_or_default();
        all.add("hugetlb", "hugepageLimits", format!("hugetlb.{size}.max"), &limit["limit"]);
    }
    for (file, value) in resources["unified"].as_object().into_iter().flatten() {
        if file.contains('/') || !file.contains('.') {
            return Err(CgroupError::Name(format!("unified: {file}")));
        }
        all.add("unified", &format!("unified.{file}"), file.clone(), value.as_str().unwrap_or_default());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(settings: &Settings) -> Vec<String> {
        settings.0.iter().map(|one| format!("{} {}", one.file, one.value)).collect()
    }

    fn all() -> Value {
        json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
            "cpu": {"shares": 1024, "quota": 5, "period": 10, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": 7},
            "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
            "devices": [{"allow": false}],
        })
    }

    #[test]
    fn version_1() {
        assert_eq!(
            lines(&legacy(&all())),
            [
                "memory.limit_in_bytes 1000",
                "memory.memsw.limit_in_bytes 1500",
                "memory.soft_limit_in_bytes 500",
                "cpu.shares 1024",
                "cpu.cfs_period_us 10",
                "cpu.cfs_quota_us 5",
                "cpuset.cpus 0-1",
                "cpuset.mems 0",
                "pids.max 7",
                "blkio.bfq.weight 500",
                "blkio.throttle.read_bps_device 8:0 9",
                "hugetlb.2MB.limit_in_bytes 4",
            ]
        );
        assert_eq!(lines(&legacy(&json!({"pids": {"limit": -1}}))), ["pids.max max"]);
        assert!(lines(&legacy(&json!({"memory": {"limit": 0}, "cpu": {"quota": 0}}))).is_empty());
    }

    #[test]
    fn version_2() {
        let mut resources = all();
        resources["unified"] = json!({"memory.high": "900"});
        assert_eq!(
            lines(&unified(&resources).unwrap()),
            [
                "memory.max 1000",
                "memory.swap.max 500",
                "memory.low 500",
                "cpu.weight 39",
                "cpu.max 5 10",
                "cpuset.cpus 0-1",
                "cpuset.mems 0",
                "pids.max 7",
                "io.weight 4950",
                "io.max 8:0 rbps=9",
                "hugetlb.2MB.max 4",
                "memory.high 900",
            ]
        );
        let unlimited = json!({"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1, "period": 100}});
        assert_eq!(
            lines(&unified(&unlimited).unwrap()),
            ["memory.max max", "memory.swap.max max", "cpu.max max 100"]
        );
        assert!(unified(&json!({"unified": {"../x.y": "1"}})).is_err());
    }

    #[test]
    fn the_host_counts_more_tasks_than_the_guest() {
        assert_eq!(
            for_the_host(&json!({"pids": {"limit": 100}, "x": 1})),
            json!({"pids": {"limit": 464}, "x": 1})
        );
        assert_eq!(for_the_host(&json!({"pids": {"limit": -1}})), json!({"pids": {"limit": -1}}));
        assert_eq!(for_the_host(&json!({"pids": {"limit": i64::MAX}}))["pids"]["limit"], i64::MAX);
    }

    #[test]
    fn weights_keep_their_ends() {
        assert_eq!((weight_of_shares(2), weight_of_shares(262_144), weight_of_shares(0)), (1, 10_000, 1));
    }

    #[test]
    fn what_goes_together_is_filled_in() {
        let dir = tempfile::tempdir().unwrap();
        let mut groups = Groups::default();
        groups.folders.insert(String::new(), dir.path().to_owned());
        let of = |resources: Value| complete(&groups, &resources);
        let quota = json!({"cpu": {"quota": 5}});
        assert_eq!(of(quota.clone()), quota, "nothing is known");
        std::fs::write(dir.path().join("cpu.max"), "33333 50000\n").unwrap();
        std::fs::write(dir.path().join("memory.max"), "1000\n").unwrap();
        assert_eq!(of(quota), json!({"cpu": {"quota": 5, "period": 50_000}}));
        assert_eq!(of(json!({"cpu": {"period": 7}})), json!({"cpu": {"quota": 33_333, "period": 7}}));
        let whole = json!({"cpu": {"quota": 5, "period": 7}, "memory": {"limit": 5, "swap": 7}});
        assert_eq!(of(whole.clone()), whole);
        assert_eq!(of(json!({"memory": {"swap": 1500}})), json!({"memory": {"limit": 1000, "swap": 1500}}));
        std::fs::write(dir.path().join("cpu.max"), "max 50000\n").unwrap();
        assert_eq!(of(json!({"cpu": {"period": 7}})), json!({"cpu": {"period": 7}}));
        groups.folders = [("cpu".to_owned(), dir.path().to_owned())].into();
        for (file, value) in [("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "50000")] {
            std::fs::write(dir.path().join(file), value).unwrap();
        }
        assert_eq!(complete(&groups, &json!({"cpu": {"quota": 5}}))["cpu"]["period"], 50_000);
        assert_eq!(complete(&groups, &json!({"cpu": {"period": 5}})), json!({"cpu": {"period": 5}}));
    }

    #[test]
    fn a_limit_without_its_controller_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut groups = Groups::default();
        groups.folders.insert(String::new(), dir.path().to_owned());
        let error = apply(&groups, &json!({"pids": {"limit": 7}})).unwrap_err().to_string();
        assert!(error.contains("linux.resources.pids.limit") && error.contains("controller pids"), "{error}");
        std::fs::write(dir.path().join("pids.max"), "").unwrap();
        apply(&groups, &json!({"pids": {"limit": 7}})).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("pids.max")).unwrap(), "7");
    }
}
