//! `kbs`: what one core of the key broker does, over TLS, with evidence of a simulated platform that is verified in full.
//!
//! The broker is pinned to processor 0, the load (guests that sign reports and do their half of TLS) to the others. A handshake
//! is a new connection, `/auth`, `/attest`. The peer is the floor: the signatures and key agreements that a handshake needs,
//! measured bare, in this run, on one core. Latency is measured at 80 % of the throughput just seen, from the
//! moment at which a guest was due, so that waiting counts.

mod floor;
mod load;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::median_and_least;
use load::{Broker, Guest};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(6);
/// Guests that are busy at the same time.
const AT_ONCE: usize = 16;
/// Guests that read resources at the same time. Each release waits until its record is on disk, so fewer would measure the disk's
/// latency; what many wait for is written together.
const READERS: usize = 128;
const SESSIONS: usize = 10_000;

pub(crate) fn kbs() -> anyhow::Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus >= 2, "the load needs a processor besides the broker's, there is {cpus}");
    // The load keeps away from the broker's processor; threads made from here inherit it.
    let others: Vec<String> = (1..cpus).map(|cpu| cpu.to_string()).collect();
    let own = std::process::id().to_string();
    let pinned = Command::new("taskset").args(["-apc", &others.join(","), &own]).output()?;
    ensure!(pinned.status.success(), "taskset: {}", String::from_utf8_lossy(&pinned.stderr));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cpus - 1).enable_all().build()?;
    let rows = runtime.block_on(measure())?;
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

async fn measure() -> anyhow::Result<Vec<Value>> {
    let broker = Broker::start().await?;
    measure_all(&broker).await.inspect_err(|_| eprintln!("the broker's last words:\n{}", broker.last_words()))
}

async fn measure_all(broker: &Broker) -> anyhow::Result<Vec<Value>> {
    let floor = floor::measure()?;
    eprintln!("{}", floor.describe());
    // Warms caches of certificates and policies.
    Guest::attest(broker).await?;

    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let before = broker.cpu_seconds()?;
        let (count, seconds) = load::closed(AT_ONCE, ROUND, || Guest::attest(broker)).await?;
        let cost = (broker.cpu_seconds()? - before) / count as f64;
        eprintln!(
            "round {round}: {:.0} handshakes/s, {:.3} ms of the broker's core each",
            count as f64 / seconds,
            cost * 1e3
        );
        rates.push(count as f64 / seconds);
        costs.push(cost * 1e3);
    }
    let (rate, _) = median_and_least(rates.iter().copied());
    let mut latencies = load::open(rate * 0.8, ROUND * 2, || Guest::attest(broker)).await?;
    latencies.sort_by(f64::total_cmp);
    let percentile = |p: f64| latencies[((latencies.len() - 1) as f64 * p) as usize] * 1e3;

    let (mut gets, mut get_costs) = (Vec::new(), Vec::new());
    let readers = load::readers(broker, READERS).await?;
    for round in 0..ROUNDS {
        let before = broker.cpu_seconds()?;
        let (count, seconds) = load::resources(&readers, ROUND).await?;
        let cost = (broker.cpu_seconds()? - before) / count as f64;
        let per_second = count as f64 / seconds;
        eprintln!(
            "round {round}: {per_second:.0} resources/s, {:.3} ms of the broker's core each",
            cost * 1e3
        );
        gets.push(per_second);
        get_costs.push(cost * 1e3);
    }
    drop(readers);
    let mib = sessions(broker).await?;

    let floor_ms = floor.total() * 1e3;
    let best = |values: &[f64]| values.iter().copied().fold(f64::MIN, f64::max);
    let per_core = 1e3 / median_and_least(costs.iter().copied()).0;
    Ok(vec![
        row(
            "handshakes per second, one core",
            "1/s",
            &rates,
            (Some(1e3 / floor_ms), best(&rates)),
            (400.0, true),
        ),
        row(
            "handshakes per second of its CPU time",
            "1/s",
            &[per_core],
            (Some(1e3 / floor_ms), per_core),
            (400.0, true),
        ),
        row(
            "CPU time of a handshake",
            "ms",
            &costs,
            (Some(floor_ms), costs.iter().copied().fold(f64::MAX, f64::min)),
            (2.5, false),
        ),
        row("latency at 80 % load, p50", "ms", &[percentile(0.5)], (None, percentile(0.0)), (50.0, false)),
        row("latency at 80 % load, p99", "ms", &[percentile(0.99)], (None, percentile(0.0)), (50.0, false)),
        row("resources per second, one core", "1/s", &gets, (None, best(&gets)), (5000.0, true)),
        row(
            "CPU time of a resource",
            "ms",
            &get_costs,
            (Some(floor.resource() * 1e3), get_costs.iter().copied().fold(f64::MAX, f64::min)),
            (0.2, false),
        ),
        row(&format!("memory at {SESSIONS} sessions"), "MiB", &[mib], (None, mib), (100.0, false)),
    ])
}

/// MiB of the broker with [`SESSIONS`] attested guests.
async fn sessions(broker: &Broker) -> anyhow::Result<f64> {
    broker.restart_fresh().await?;
    let start = Instant::now();
    load::times(AT_ONCE, SESSIONS, || Guest::attest(broker)).await?;
    eprintln!("{SESSIONS} sessions in {:.0} s", start.elapsed().as_secs_f64());
    broker.resident_mib().context("the broker's memory")
}

/// A row for `./x bench`; `best` is the best of the rounds, `target` is a figure and whether more is better.
fn row(
    metric: &str,
    unit: &str,
    values: &[f64],
    (peer, best): (Option<f64>, f64),
    (target, more): (f64, bool),
) -> Value {
    let (ours, _) = median_and_least(values.iter().copied());
    json!({
        "metric": metric, "unit": unit, "ours": ours, "ours_min": best, "peer": peer, "peer_min": peer,
        "peer_name": "bare signatures and key agreements of a handshake (aws-lc), one core",
        "ratio": peer.map(|peer| ours / peer),
        "target": format!("{} {target}", if more { ">=" } else { "<=" }),
        "met": if more { ours >= target } else { ours <= target },
        "repeated": values.len(),
    })
}
