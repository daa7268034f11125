//! cgroup v2: one folder a container under `/sys/fs/cgroup/kata-cc`, its limits, statistics, freezer, kill and
//! out-of-memory counter. Device access is in [`super::devices`].
//!
//! Conversions follow the OCI runtime-spec and crun's table: CPU shares 2…262144 map to weight 1…10000. Memory `swap` is
//! not taken: containers are never swapped, since the only swap there is lies on the host's disk, where the host could
//! change pages or bring older ones back unseen. It serves the file system of pulled images alone.
//!
//! I/O limits are best effort: a controller or a device that is absent is logged, not refused. All else that was
//! asked for and cannot be set is an error: a limit that is silently missing is worse than a failed start.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_cc_agent_protocol::agent;
use kata_cc_agent_protocol::oci::LinuxResources;
use thiserror::Error;
use tracing::{debug, warn};

/// Where the hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Parent of all containers.
const PARENT: &str = "kata-cc";
/// Magic of the cgroup2 file system (`CGROUP2_SUPER_MAGIC`).
const MAGIC: i64 = 0x6367_7270;
/// Limit of what is swapped out of a cgroup.
const SWAP: &str = "memory.swap.max";
/// Controllers to pass down, as far as the kernel has them.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Why a cgroup operation failed.
#[derive(Debug, Error)]
pub(crate) enum CgroupError {
    /// A file could not be read or written.
    #[error("cgroup file {path}: {source} (value {value:?})")]
    File {
        /// The file.
        path: PathBuf,
        /// What was to be written; empty when reading.
        value: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The hierarchy is missing.
    #[error("no cgroup v2 hierarchy at {ROOT}: limits cannot be applied")]
    Absent,
    /// The freezer did not settle.
    #[error("cgroup {0} did not reach the wanted freezer state")]
    Freezer(PathBuf),
}

/// A container's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

fn is_cgroup2() -> bool {
    nix::sys::statfs::statfs(ROOT).is_ok_and(|s| s.filesystem_type().0 == MAGIC)
}

/// Passes controllers down to the containers' parent. Called once.
pub(crate) fn prepare() -> Result<(), CgroupError> {
    if !is_cgroup2() {
        return Err(CgroupError::Absent);
    }
    let root = Path::new(ROOT);
    let parent = root.join(PARENT);
    fs::create_dir_all(&parent).map_err(|source| CgroupError::File {
        path: parent.clone(),
        value: String::new(),
        source,
    })?;
    for folder in [root, &parent] {
        let present = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        for name in CONTROLLERS {
            if !present.split_whitespace().any(|c| c == name) {
                debug!(controller = name, "cgroup controller is absent");
                continue;
            }
            let file = folder.join("cgroup.subtree_control");
            if let Err(e) = fs::write(&file, format!("+{name}")) {
                warn!(controller = name, error = %e, "cgroup controller cannot be passed down");
            }
        }
    }
    Ok(())
}

impl Cgroup {
    /// Makes the folder of container `id`; `None` where there is no cgroup v2 (tests outside a guest).
    pub(crate) fn create(id: &str) -> Result<Option<Self>, CgroupError> {
        if !is_cgroup2() {
            return Ok(None);
        }
        let path = Path::new(ROOT).join(PARENT).join(id);
        fs::create_dir_all(&path).map_err(|source| CgroupError::File {
            path: path.clone(),
            value: String::new(),
            source,
        })?;
        let cgroup = Self { path };
        cgroup.keep_from_swap()?;
        Ok(Some(cgroup))
    }

    fn keep_from_swap(&self) -> Result<(), CgroupError> {
        // A kernel without the file has no swap.
        match self.path.join(SWAP).exists() {
            true => self.write(SWAP, 0),
            false => Ok(()),
        }
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, file: &str, value: impl ToString) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        let value = value.to_string();
        fs::write(&path, &value).map_err(|source| CgroupError::File { path, value, source })
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path.join(file)).ok()
    }

    fn number(&self, file: &str) -> u64 {
        self.read(file).and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    }

    /// A limit file: `max` is "no limit", which Kata's messages express by the largest number.
    fn limit(&self, file: &str) -> u64 {
        match self.read(file) {
            Some(text) if text.trim() == "max" => u64::MAX,
            Some(text) => text.trim().parse().unwrap_or(0),
            None => 0,
        }
    }

    fn table(&self, file: &str) -> HashMap<String, u64> {
        parse_table(&self.read(file).unwrap_or_default())
    }

    /// Applies limits; called at creation and by UpdateContainer.
    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        for (file, value, required) in plan(resources) {
            match self.write(&file, &value) {
                Ok(()) => {}
                Err(e) if required => return Err(e),
                Err(e) => warn!(error = %e, "limit not applied"),
            }
        }
        Ok(())
    }

    /// Freezes or thaws all processes and waits until the kernel says so.
    pub(crate) async fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", u8::from(frozen))?;
        for _ in 0..500 {
            let state = self.table("cgroup.events").get("frozen").copied();
            if state == Some(u64::from(frozen)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(CgroupError::Freezer(self.path.clone()))
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", 1)
    }

    /// How often the kernel killed for lack of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.table("memory.events").get("oom_kill").copied().unwrap_or(0)
    }

    /// The file that changes on an out-of-memory kill.
    pub(crate) fn memory_events(&self) -> PathBuf {
        self.path.join("memory.events")
    }

    /// Removes the folder; processes in it must have ended, which may take the kernel a moment.
    pub(crate) async fn remove(&self) {
        for _ in 0..200 {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        warn!(cgroup = %self.path.display(), "cgroup could not be removed");
    }

    /// Statistics in Kata's form.
    pub(crate) fn stats(&self) -> agent::CgroupStats {
        let mut all = agent::CgroupStats::new();
        let cpu = self.table("cpu.stat");
        let at = |t: &HashMap<String, u64>, k: &str| t.get(k).copied().unwrap_or(0);
        let usage = all.cpu_stats.mut_or_insert_default();
        let times = usage.cpu_usage.mut_or_insert_default();
        times.total_usage = at(&cpu, "usage_usec").saturating_mul(1000);
        times.usage_in_usermode = at(&cpu, "user_usec").saturating_mul(1000);
        times.usage_in_kernelmode = at(&cpu, "system_usec").saturating_mul(1000);
        let throttling = usage.throttling_data.mut_or_insert_default();
        throttling.periods = at(&cpu, "nr_periods");
        throttling.throttled_periods = at(&cpu, "nr_throttled");
        throttling.throttled_time = at(&cpu, "throttled_usec").saturating_mul(1000);

        let detail = self.table("memory.stat");
        let events = self.table("memory.events");
        let memory = all.memory_stats.mut_or_insert_default();
        memory.cache = at(&detail, "file");
        let data = memory.usage.mut_or_insert_default();
        data.usage = self.number("memory.current");
        data.max_usage = self.number("memory.peak");
        data.limit = self.limit("memory.max");
        data.failcnt = at(&events, "max");
        let swap = memory.swap_usage.mut_or_insert_default();
        swap.usage = self.number("memory.swap.current");
        swap.limit = self.limit("memory.swap.max");
        memory.kernel_usage.mut_or_insert_default().usage = at(&detail, "kernel");
        memory.use_hierarchy = true;
        memory.stats = detail;

        let pids = all.pids_stats.mut_or_insert_default();
        pids.current = self.number("pids.current");
        pids.limit = match self.limit("pids.max") {
            u64::MAX => 0,
            limit => limit,
        };
        let io = all.blkio_stats.mut_or_insert_default();
        for line in self.read("io.stat").unwrap_or_default().lines() {
            add_io(io, line);
        }
        all
    }
}

fn parse_table(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|l| {
            let (key, value) = l.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

fn add_io(io: &mut agent::BlkioStats, line: &str) {
    let mut parts = line.split_whitespace();
    let Some((major, minor)) = parts.next().and_then(|d| d.split_once(':')) else {
        return;
    };
    let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
        return;
    };
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        let mut entry = agent::BlkioStatsEntry::new();
        (entry.major, entry.minor) = (major, minor);
        entry.value = value.parse().unwrap_or(0);
        entry.op = match key {
            "rbytes" | "rios" => "read",
            "wbytes" | "wios" => "write",
            "dbytes" | "dios" => "discard",
            _ => continue,
        }
        .to_owned();
        match key.ends_with("bytes") {
            true => io.io_service_bytes_recursive.push(entry),
            false => io.io_serviced_recursive.push(entry),
        }
    }
}

/// Which files get which values; the flag says whether failing to write one is an error.
fn plan(resources: &LinuxResources) -> Vec<(String, String, bool)> {
    let mut plan = Vec::new();
    let mut put = |file: &str, value: String, required: bool| plan.push((file.to_owned(), value, required));
    let limit = |v: i64| if v < 0 { "max".to_owned() } else { v.to_string() };
    if let Some(cpu) = resources.CPU.as_ref() {
        if cpu.Shares != 0 {
            put("cpu.weight", weight_of_shares(cpu.Shares).to_string(), true);
        }
        if cpu.Quota != 0 || cpu.Period != 0 {
            let period = if cpu.Period == 0 { 100_000 } else { cpu.Period };
            let quota = if cpu.Quota <= 0 { "max".to_owned() } else { cpu.Quota.to_string() };
            put("cpu.max", format!("{quota} {period}"), true);
        }
        // Numbers of the host's processors mean nothing in the guest, which may have fewer.
        if !cpu.Cpus.is_empty() {
            put("cpuset.cpus", cpu.Cpus.clone(), false);
        }
        if !cpu.Mems.is_empty() {
            put("cpuset.mems", cpu.Mems.clone(), false);
        }
    }
    if let Some(memory) = resources.Memory.as_ref() {
        if memory.Limit != 0 {
            put("memory.max", limit(memory.Limit), true);
            // One oversized process must be reported as such, not a random victim of several.
            put("memory.oom.group", "0".to_owned(), false);
        }
        if memory.Reservation != 0 {
            put("memory.low", limit(memory.Reservation), true);
        }
    }
    if let Some(pids) = resources.Pids.as_ref()
        && pids.Limit != 0
    {
        put("pids.max", limit(pids.Limit), true);
    }
    if let Some(io) = resources.BlockIO.as_ref() {
        if io.Weight != 0 {
            let weight = 1 + (u64::from(io.Weight).clamp(10, 1000) - 10) * 9999 / 990;
            put("io.weight", format!("default {weight}"), false);
        }
        let throttles = [
            ("rbps", &io.ThrottleReadBpsDevice),
            ("wbps", &io.ThrottleWriteBpsDevice),
            ("riops", &io.ThrottleReadIOPSDevice),
            ("wiops", &io.ThrottleWriteIOPSDevice),
        ];
        for (key, devices) in throttles {
            for d in devices {
                put("io.max", format!("{}:{} {key}={}", d.Major, d.Minor, d.Rate), false);
            }
        }
    }
    for huge in &resources.HugepageLimits {
        let size = &huge.Pagesize;
        if size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            put(&format!("hugetlb.{size}.max"), huge.Limit.to_string(), false);
        }
    }
    plan
}

/// cgroup v1 shares (2…262144) as v2 weight (1…10000).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_span_the_weights() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
    }

    #[test]
    fn resources_become_files() {
        let mut r = LinuxResources::new();
        r.CPU.mut_or_insert_default().Quota = 50_000;
        r.Memory.mut_or_insert_default().Limit = 1 << 20;
        r.Memory.mut_or_insert_default().Swap = 3 << 20;
        r.Pids.mut_or_insert_default().Limit = -1;
        let plan = plan(&r);
        let value = |f: &str| plan.iter().find(|p| p.0 == f).map(|p| p.1.as_str());
        assert_eq!(value("cpu.max"), Some("50000 100000"));
        assert_eq!(value("memory.max"), Some("1048576"));
        // Nothing of the host's makes a container's memory go to the host's disk.
        assert_eq!(value(SWAP), None);
        assert_eq!(value("pids.max"), Some("max"));
    }

    #[test]
    fn a_container_is_not_swapped() {
        let path = std::env::temp_dir().join(format!("kata-cc-cgroup-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(SWAP), "max").unwrap();
        Cgroup { path: path.clone() }.keep_from_swap().unwrap();
        assert_eq!(fs::read_to_string(path.join(SWAP)).unwrap(), "0");
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn odd_statistics_are_skipped() {
        let mut io = agent::BlkioStats::new();
        for line in ["", "8:0", "x:y rbytes=1", "8:0 rbytes=5 wios=2 cost=9 nonsense"] {
            add_io(&mut io, line);
        }
        assert_eq!(io.io_service_bytes_recursive.len(), 1);
        assert_eq!(io.io_serviced_recursive[0].value, 2);
        assert_eq!(parse_table("a 1\nb\nc x\n").len(), 1);
    }
}
