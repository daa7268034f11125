//! GetMetrics: Prometheus text with Kata's names; and network counters.

use std::fmt::Write;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use kata_cc_agent_protocol::agent::NetworkStats;

static SCRAPES: AtomicU64 = AtomicU64::new(0);

/// Counters of `/proc/net/dev`.
pub(crate) fn network_stats() -> Vec<NetworkStats> {
    parse_net_dev(&fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

fn parse_net_dev(text: &str) -> Vec<NetworkStats> {
    let mut all = Vec::new();
    for (name, rest) in text.lines().filter_map(|l| l.split_once(':')) {
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let name = name.trim();
        if name == "lo" || numbers.len() < 12 {
            continue;
        }
        let at = |n: usize| numbers.get(n).copied().unwrap_or(0);
        let mut stats = NetworkStats::new();
        name.clone_into(&mut stats.name);
        (stats.rx_bytes, stats.rx_packets, stats.rx_errors, stats.rx_dropped) = (at(0), at(1), at(2), at(3));
        (stats.tx_bytes, stats.tx_packets, stats.tx_errors, stats.tx_dropped) =
            (at(8), at(9), at(10), at(11));
        all.push(stats);
    }
    all
}

/// The whole text.
pub(crate) fn prometheus() -> String {
    let mut text = String::new();
    let scrapes = SCRAPES.fetch_add(1, Ordering::Relaxed) + 1;
    metric(&mut text, "kata_agent_scrape_count", "counter", &[("", scrapes as f64)]);
    agent(&mut text);
    guest(&mut text);
    text
}

fn metric(text: &mut String, name: &str, kind: &str, values: &[(&str, f64)]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# TYPE {name} {kind}");
    for (labels, value) in values {
        let _ = match labels.is_empty() {
            true => writeln!(text, "{name} {value}"),
            false => writeln!(text, "{name}{{{labels}}} {value}"),
        };
    }
}

fn number(path: &str, field: usize) -> Option<f64> {
    fs::read_to_string(path).ok()?.split_whitespace().nth(field)?.parse().ok()
}

fn agent(text: &mut String) {
    let page = 4096.0;
    let tick = 100.0;
    if let Some(pages) = number("/proc/self/statm", 0) {
        metric(text, "kata_agent_total_vm", "gauge", &[("", pages * page)]);
    }
    if let Some(pages) = number("/proc/self/statm", 1) {
        metric(text, "kata_agent_total_rss", "gauge", &[("", pages * page)]);
    }
    if let Some(threads) = number("/proc/self/stat", 19) {
        metric(text, "kata_agent_threads", "gauge", &[("", threads)]);
    }
    if let (Some(user), Some(system)) = (number("/proc/self/stat", 13), number("/proc/self/stat", 14)) {
        metric(text, "kata_agent_total_time", "gauge", &[("", (user + system) / tick)]);
    }
}

fn guest(text: &mut String) {
    let load = [("item=\"load1\"", 0), ("item=\"load5\"", 1), ("item=\"load15\"", 2)];
    let values: Vec<(&str, f64)> =
        load.iter().filter_map(|(l, n)| Some((*l, number("/proc/loadavg", *n)?))).collect();
    metric(text, "kata_guest_load", "gauge", &values);
    let table = |path: &str, separator: char| -> Vec<(String, f64)> {
        let content = fs::read_to_string(path).unwrap_or_default();
        let entry = |l: &str| {
            let (key, rest) = l.split_once(separator)?;
            let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
            Some((format!("item=\"{}\"", key.trim()), value))
        };
        content.lines().filter_map(entry).collect()
    };
    let borrow = |v: &'_ Vec<(String, f64)>| v.iter().map(|(l, n)| (l.clone(), *n)).collect::<Vec<_>>();
    for (name, path, separator) in
        [("kata_guest_meminfo", "/proc/meminfo", ':'), ("kata_guest_vm_stat", "/proc/vmstat", ' ')]
    {
        let values = borrow(&table(path, separator));
        let values: Vec<(&str, f64)> = values.iter().map(|(l, n)| (l.as_str(), *n)).collect();
        metric(text, name, "gauge", &values);
    }
    let stats = network_stats();
    let mut values = Vec::new();
    for s in &stats {
        for (item, value) in [
            ("recv_bytes", s.rx_bytes),
            ("recv_packets", s.rx_packets),
            ("sent_bytes", s.tx_bytes),
            ("sent_packets", s.tx_packets),
        ] {
            values.push((format!("interface=\"{}\",item=\"{item}\"", s.name), value as f64));
        }
    }
    let values: Vec<(&str, f64)> = values.iter().map(|(l, n)| (l.as_str(), *n)).collect();
    metric(text, "kata_guest_netdev_stat", "gauge", &values);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_counters_are_read() {
        let text = "Inter-| x\n face | y\n  lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\neth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\nbad: 1\n";
        let stats = parse_net_dev(text);
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].rx_bytes, stats[0].tx_dropped), (10, 7));
    }

    #[test]
    fn the_text_is_prometheus() {
        let text = prometheus();
        assert!(text.contains("# TYPE kata_agent_threads gauge"));
        assert!(text.contains("kata_guest_meminfo{item=\"MemTotal\"}"));
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
        }
    }
}
