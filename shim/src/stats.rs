//! The guest's counters in the form containerd wants: `io.containerd.cgroups.v2.Metrics`.
//!
//! The agent's messages have the shape of cgroup v1, with the v2 `memory.stat` keys in a map. CPU times travel in
//! nanoseconds and are shown in microseconds.

use std::collections::{BTreeMap, HashMap};

use kata_cc_agent_protocol::agent::{BlkioStats, MemoryStats, StatsContainerResponse};
use kata_cc_containerd_protocol::cgroups_v2 as wire;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// Convert.
#[must_use]
pub fn metrics(stats: &StatsContainerResponse, saw_oom: bool) -> Any {
    let cgroup = &stats.cgroup_stats;
    let cpu = &cgroup.cpu_stats;
    let metrics = wire::Metrics {
        pids: MessageField::some(wire::PidsStat {
            current: cgroup.pids_stats.current,
            limit: cgroup.pids_stats.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(wire::CPUStat {
            usage_usec: cpu.cpu_usage.total_usage / 1000,
            user_usec: cpu.cpu_usage.usage_in_usermode / 1000,
            system_usec: cpu.cpu_usage.usage_in_kernelmode / 1000,
            nr_periods: cpu.throttling_data.periods,
            nr_throttled: cpu.throttling_data.throttled_periods,
            throttled_usec: cpu.throttling_data.throttled_time / 1000,
            ..Default::default()
        }),
        memory: MessageField::some(memory(&cgroup.memory_stats)),
        memory_events: MessageField::some(wire::MemoryEvents {
            oom: u64::from(saw_oom),
            oom_kill: u64::from(saw_oom),
            max: cgroup.memory_stats.usage.failcnt,
            ..Default::default()
        }),
        io: MessageField::some(io(&cgroup.blkio_stats)),
        hugetlb: cgroup
            .hugetlb_stats
            .iter()
            .map(|(pagesize, one)| wire::HugeTlbStat {
                current: one.usage,
                max: one.max_usage,
                failcnt: one.failcnt,
                pagesize: pagesize.clone(),
                ..Default::default()
            })
            .collect(),
        network: stats
            .network_stats
            .iter()
            .map(|one| wire::NetworkStat {
                name: one.name.clone(),
                rx_bytes: one.rx_bytes,
                rx_packets: one.rx_packets,
                rx_errors: one.rx_errors,
                rx_dropped: one.rx_dropped,
                tx_bytes: one.tx_bytes,
                tx_packets: one.tx_packets,
                tx_errors: one.tx_errors,
                tx_dropped: one.tx_dropped,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    Any {
        type_url: "io.containerd.cgroups.v2.Metrics".to_owned(),
        // Writing to memory fails only for messages beyond 2 GiB.
        value: metrics.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

fn memory(memory: &MemoryStats) -> wire::MemoryStat {
    let stat = |key: &str| value(&memory.stats, key);
    wire::MemoryStat {
        anon: stat("anon"),
        file: stat("file").max(memory.cache),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        max_usage: memory.usage.max_usage,
        swap_usage: memory.swap_usage.usage,
        swap_limit: memory.swap_usage.limit,
        ..Default::default()
    }
}

fn value(stats: &HashMap<String, u64>, key: &str) -> u64 {
    stats.get(key).or_else(|| stats.get(&format!("total_{key}"))).copied().unwrap_or_default()
}

fn io(blkio: &BlkioStats) -> wire::IOStat {
    let mut devices: BTreeMap<(u64, u64), wire::IOEntry> = BTreeMap::new();
    let lists = [(&blkio.io_service_bytes_recursive, true), (&blkio.io_serviced_recursive, false)];
    for (entries, bytes) in lists {
        for entry in entries {
            let device = devices.entry((entry.major, entry.minor)).or_insert_with(|| wire::IOEntry {
                major: entry.major,
                minor: entry.minor,
                ..Default::default()
            });
            match (entry.op.to_ascii_lowercase().as_str(), bytes) {
                ("read", true) | ("rbytes", _) => device.rbytes = entry.value,
                ("write", true) | ("wbytes", _) => device.wbytes = entry.value,
                ("read", false) | ("rios", _) => device.rios = entry.value,
                ("write", false) | ("wios", _) => device.wios = entry.value,
                _ => (),
            }
        }
    }
    wire::IOStat { usage: devices.into_values().collect(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_reads_is_there() {
        let mut stats = StatsContainerResponse::new();
        let cgroup = stats.cgroup_stats.mut_or_insert_default();
        cgroup.cpu_stats.mut_or_insert_default().cpu_usage.mut_or_insert_default().total_usage = 5_000_000;
        cgroup.pids_stats.mut_or_insert_default().current = 3;
        let memory = cgroup.memory_stats.mut_or_insert_default();
        memory.usage.mut_or_insert_default().usage = 4096;
        memory.usage.mut_or_insert_default().limit = 8192;
        memory.stats.insert("inactive_file".into(), 1024);
        let any = metrics(&stats, true);
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let shown = wire::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((shown.cpu.usage_usec, shown.pids.current), (5000, 3));
        assert_eq!(
            (shown.memory.usage, shown.memory.usage_limit, shown.memory.inactive_file),
            (4096, 8192, 1024)
        );
        assert_eq!(shown.memory_events.oom_kill, 1);
    }
}
