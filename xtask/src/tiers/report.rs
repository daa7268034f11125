//! What was measured, as a table, as JSON, and as a page with plots.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::metrics::{Better, Metric};
use super::plot;
use super::probes::{Probe, Values};
use super::runtimes::Runtime;

/// A probe that did not give its figures.
#[derive(Debug, Serialize)]
pub(super) struct Failure {
    runtime: Runtime,
    probe: String,
    why: String,
}

impl Failure {
    pub(super) fn new(runtime: Runtime, probe: Probe, error: &anyhow::Error) -> Self {
        Self { runtime, probe: probe.name(), why: format!("{error:#}") }
    }

    /// In one line.
    pub(super) fn words(&self) -> String {
        format!("{} under {}: {}", self.probe, self.runtime.name(), self.why)
    }
}

/// Figures of one metric under one runtime.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Samples {
    /// One of each round.
    pub(super) all: Vec<f64>,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Samples {
    fn add(&mut self, value: f64) {
        self.all.push(value);
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        self.median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        self.min = sorted.first().copied().unwrap_or_default();
        self.max = sorted.last().copied().unwrap_or_default();
    }
}

/// A line of the table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) metric: &'static str,
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) values: BTreeMap<Runtime, Samples>,
    /// Ours divided by runsc's under systrap, of the medians.
    pub(super) ratio: Option<f64>,
    pub(super) aim: String,
    /// Whether the aim is met; none where it cannot be told.
    pub(super) met: Option<bool>,
    #[serde(skip)]
    source: &'static Metric,
}

impl Row {
    fn median(&self, runtime: Runtime) -> Option<f64> {
        self.values.get(&runtime).map(|samples| samples.median)
    }

    fn judge(&mut self, quick: bool) {
        let (ours, systrap) = (self.median(Runtime::Ours), self.median(Runtime::RunscSystrap));
        self.ratio = ours.zip(systrap).filter(|(_, peer)| *peer > 0.0).map(|(ours, peer)| ours / peer);
        let met = ours.and_then(|ours| self.source.aim.met(ours, systrap, self.median(Runtime::Runc)));
        self.met = met.filter(|_| !quick);
    }
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    pub(super) versions: Vec<String>,
    pub(super) machine: String,
    pub(super) runtimes: Vec<Runtime>,
    pub(super) rounds: u32,
    pub(super) quick: bool,
    pub(super) rows: Vec<Row>,
    pub(super) failures: Vec<Failure>,
}

impl Results {
    pub(super) fn new(
        metrics: &[&'static Metric],
        runtimes: &[Runtime],
        rounds: u32,
        quick: bool,
        versions: Vec<String>,
    ) -> Self {
        let row = |metric: &&'static Metric| Row {
            metric: metric.name,
            what: metric.what,
            unit: metric.unit,
            better: metric.better,
            values: BTreeMap::new(),
            ratio: None,
            aim: metric.aim.words(),
            met: None,
            source: metric,
        };
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let machine = format!("Linux {}, {processors} processors", kernel.trim());
        let rows = metrics.iter().map(row).collect();
        Self { versions, machine, runtimes: runtimes.to_vec(), rounds, quick, rows, failures: Vec::new() }
    }

    /// What one probe gave under one runtime.
    pub(super) fn add(&mut self, runtime: Runtime, probe: Probe, values: &Values) {
        for row in self.rows.iter_mut().filter(|row| row.source.probe == probe) {
            let found = values.iter().find(|(key, _)| *key == row.source.key);
            if let Some((_, value)) = found {
                row.values.entry(runtime).or_default().add(*value);
                row.judge(self.quick);
            }
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    /// Metrics whose aim is not met, or of which ours gave no figure.
    pub(super) fn missed(&self) -> Vec<&str> {
        let ours = self.runtimes.contains(&Runtime::Ours);
        let missed = |row: &&Row| row.met == Some(false) || (ours && row.median(Runtime::Ours).is_none());
        self.rows.iter().filter(missed).map(|row| row.metric).collect()
    }

    pub(super) fn print(&self) {
        print!("{:<32} {:>9}", "metric", "unit");
        for runtime in &self.runtimes {
            print!(" {:>13}", runtime.name());
        }
        println!(" {:>9}  {:<30} met", "ratio", "aim");
        for row in &self.rows {
            print!("{:<32} {:>9}", row.metric, row.unit);
            for runtime in &self.runtimes {
                print!(" {:>13}", row.median(*runtime).map_or_else(|| "-".into(), number));
            }
            let ratio = row.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
            println!(" {ratio:>9}  {:<30} {}", row.aim, verdict(row.met));
        }
        println!(
            "medians of {} rounds on {}; ratio: ours / runsc-systrap; {}",
            self.rounds,
            self.machine,
            self.versions.join("; ")
        );
        for failure in &self.failures {
            println!("FAILED: {}", failure.words());
        }
    }

    /// Writes `tiers.json` and `tiers.html` to a folder.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (json, page) = (folder.join("tiers.json"), folder.join("tiers.html"));
        std::fs::write(&json, serde_json::to_vec_pretty(self)?)?;
        std::fs::write(&page, plot::page(self))?;
        println!("written to {} and {}", json.display(), page.display());
        Ok(())
    }
}

pub(super) fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    }
}

/// With as many digits as say something.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::metrics::METRICS;
    use super::*;

    fn results(quick: bool) -> Results {
        let chosen: Vec<&'static Metric> =
            METRICS.iter().filter(|metric| metric.key == "getppid" || metric.key == "redis_set").collect();
        let mut results = Results::new(&chosen, &Runtime::ALL, 3, quick, vec!["v <1>".into()]);
        let probe = Probe::Measure("syscalls");
        for (value, peer) in [(200.0, 1000.0), (400.0, 1100.0), (100.0, 900.0)] {
            let own = vec![("getppid".into(), value), ("unknown".into(), 1.0)];
            results.add(Runtime::Ours, probe, &own);
            results.add(Runtime::RunscSystrap, probe, &vec![("getppid".into(), peer)]);
            // another probe's key of the same name
            results.add(Runtime::Ours, Probe::Idle, &vec![("getppid".into(), 1.0)]);
        }
        results
    }

    #[test]
    fn medians_ratios_and_verdicts() {
        let results = results(false);
        let row = &results.rows[0];
        assert_eq!((row.median(Runtime::Ours), row.ratio, row.met), (Some(200.0), Some(0.2), Some(true)));
        // redis was never measured
        assert_eq!(results.missed(), ["net.redis_set_plain"]);
        assert_eq!(results.rows[1].met, None);
    }

    #[test]
    fn a_quick_run_judges_nothing() {
        assert_eq!(self::results(true).rows[0].met, None);
    }

    #[test]
    fn the_page_stands_alone_and_quotes_what_it_is_given() {
        let mut results = results(false);
        results.fail(Failure {
            runtime: Runtime::Runc,
            probe: "files".into(),
            why: "<script>alert(1)</script>".into(),
        });
        let page = plot::page(&results);
        assert!(page.contains("<svg") && page.contains("syscall.getppid") && page.contains("v &lt;1&gt;"));
        assert!(!page.contains("<script") && !page.contains("http"), "{page}");
    }
}
