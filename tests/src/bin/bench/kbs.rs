//! `kbs`: what one core of the key broker does, over TLS, with evidence of a simulated platform that is verified in full.
//!
//! The broker is pinned to processor 0, the load (guests that sign reports and do their half of TLS) to the others. A handshake
//! is a new connection, `/auth`, `/attest`. The peer is the floor: the signatures and key agreements that a handshake needs,
//! measured bare, in this run, on one core. Latency is measured while guests keep the broker's processor busy for 80 % of the time,
//! from the moment at which a guest was due, so that waiting counts. How many guests that are follows the machine, whose
//! speed changes by a third within seconds where others share it: a fixed number would be 110 % of it at times.

mod floor;
mod load;
mod steps;

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
/// Share of the broker's processor at which latency is measured.
const LOAD: f64 = 0.8;

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
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    let before_load = broker.steps().await?;
    for round in 0..ROUNDS {
        let before = broker.cpu_seconds()?;
        let (count, seconds) = load::closed(AT_ONCE, ROUND, || Guest::attest(broker)).await?;
        let cost = (broker.cpu_seconds()? - before) / count as f64;
        let rate = count as f64 / seconds;
        let latencies = load::open(broker, (LOAD, cost), ROUND, || Guest::attest(broker)).await?;
        let latency = Latency::of(latencies);
        eprintln!(
            "round {round}: {rate:.0} handshakes/s, {:.3} ms of the broker's core each; at 80 % {latency}",
            cost * 1e3
        );
        rates.push(rate);
        costs.push(cost * 1e3);
        medians.push(latency.percentile(0.5));
        tails.push(latency.percentile(0.99));
    }
    for line in broker.steps().await?.since(&before_load) {
        eprintln!("{line}");
    }

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
    let least = |values: &[f64]| values.iter().copied().fold(f64::MAX, f64::min);
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
        row("CPU time of a handshake", "ms", &costs, (Some(floor_ms), least(&costs)), (2.5, false)),
        row("latency at 80 % load, p50", "ms", &medians, (None, least(&medians)), (50.0, false)),
        row("latency at 80 % load, p99", "ms", &tails, (None, least(&tails)), (50.0, false)),
        row("resources per second, one core", "1/s", &gets, (None, best(&gets)), (5000.0, true)),
        row(
            "CPU time of a resource",
            "ms",
            &get_costs,
            (Some(floor.resource() * 1e3), least(&get_costs)),
            (0.2, false),
        ),
        row(&format!("memory at {SESSIONS} sessions"), "MiB", &[mib], (None, mib), (100.0, false)),
    ])
}

/// Latencies of guests in the order in which they were due, seconds.
struct Latency {
    sorted: Vec<f64>,
    /// How many of the slowest hundredth were due in each tenth of the time: all in one is a hiccup, evenly spread is the load.
    slowest: [usize; 10],
}

impl Latency {
    fn of(latencies: Vec<f64>) -> Self {
        let mut order: Vec<usize> = (0..latencies.len()).collect();
        order.sort_by(|a, b| latencies[*b].total_cmp(&latencies[*a]));
        let mut slowest = [0; 10];
        for n in order.iter().take(latencies.len() / 100) {
            slowest[n * 10 / latencies.len()] += 1;
        }
        let mut sorted = latencies;
        sorted.sort_by(f64::total_cmp);
        Self { sorted, slowest }
    }

    /// Milliseconds below which `part` of the guests were served.
    fn percentile(&self, part: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted.get((last as f64 * part) as usize).map_or(f64::NAN, |seconds| seconds * 1e3)
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (half, most) = (self.percentile(0.5), self.percentile(0.99));
        write!(f, "median {half:.0} ms, p99 {most:.0} ms (slowest by tenth of the time: {:?})", self.slowest)
    }
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
