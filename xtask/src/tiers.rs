//! `./x bench tiers`: the same programs from the same root folder under runc, gVisor's runsc (systrap, ptrace) and our sentry, side by side.
//!
//! Rounds are interleaved: in each, every probe runs once under each runtime before the next probe, and the first runtime is another one each time, so
//! that what else the machine does meets all alike. Told are medians of the rounds. Progress goes to standard error; the table to standard output; JSON
//! and a report with plots to `target/bench/tiers.{json,html}`. Nothing is left behind: state lies in a temporary folder, and
//! every process that was started descends from this one ([`processes`]) and is ended with it, also by a signal.

mod metrics;
mod plot;
mod probes;
mod processes;
mod report;
mod runtimes;

use anyhow::{Context, ensure};
use clap::Parser;

use crate::shell::{command, run, step};
use crate::{paths, programs};
use metrics::{METRICS, Metric};
use report::{Failure, Results};
use runtimes::{Place, Runtime};

/// What is measured, and how often.
#[derive(Parser)]
#[command(name = "x bench tiers", about = "runc, runsc and ours, side by side")]
struct Options {
    /// Only these groups of metrics (`start`, `net`), or metrics whose name contains one of these words.
    #[arg(long, value_delimiter = ',', value_name = "WORD,…")]
    metrics: Vec<String>,
    /// Only these runtimes.
    #[arg(long, value_delimiter = ',', value_enum)]
    runtimes: Vec<Runtime>,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A tenth of the work in each probe, and no verdict: shows that all of it runs.
    #[arg(long)]
    quick: bool,
    /// Start ours by `kata-cc-sentry do` instead of a bundle: what the kernel costs without its runtime.
    #[arg(long = "do")]
    by_do: bool,
    /// List the metrics and what is aimed at.
    #[arg(long)]
    list: bool,
}

/// Measures, with the words behind `./x bench tiers`.
pub(crate) fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let words = std::iter::once("x bench tiers").chain(arguments.iter().map(String::as_str));
    let options = Options::try_parse_from(words).unwrap_or_else(|error| error.exit());
    let chosen = chosen(&options.metrics)?;
    if options.list {
        for metric in chosen {
            println!("{:<32} {:<9} {:<34} {}", metric.name, metric.unit, metric.aim.words(), metric.what);
        }
        return Ok(());
    }
    run(&mut command(
        "cargo",
        &["build", "--release", "--locked", "--package", "kata-cc-sentry", "--package", "kata-cc-oci"],
    ))?;
    let place = Place::new(programs::root("bench")?, programs::runsc(), !options.by_do)?;
    let runtimes = runtimes(&options, &place)?;
    processes::adopt_orphans()?;
    processes::end_with_a_signal(place.work().to_owned())?;
    let mut results = Results::new(&chosen, &runtimes, options.rounds, options.quick, place.versions());
    let measured = measure(&place, &chosen, &runtimes, &options, &mut results);
    let ended = processes::end_all();
    measured?;
    ended?;
    results.print();
    results.write(&paths::root().join("target/bench"))?;
    if options.quick {
        println!("--quick: whether aims are met is not judged");
        return Ok(());
    }
    let missed = results.missed();
    ensure!(missed.is_empty(), "not met: {}", missed.join(", "));
    Ok(())
}

fn chosen(words: &[String]) -> anyhow::Result<Vec<&'static Metric>> {
    let group = |metric: &Metric| metric.name.split('.').next().unwrap_or_default();
    let mut chosen: Vec<&'static Metric> = Vec::new();
    for word in words {
        let of_group = METRICS.iter().any(|metric| group(metric) == word);
        let wanted = |metric: &&Metric| {
            if of_group { group(metric) == word } else { metric.name.contains(word) }
        };
        let before = chosen.len();
        chosen.extend(METRICS.iter().filter(wanted));
        ensure!(
            chosen.len() > before,
            "no metric's name contains {word:?}: `./x bench tiers --list` lists them"
        );
    }
    let in_order =
        METRICS.iter().filter(|metric| words.is_empty() || chosen.iter().any(|one| one.name == metric.name));
    Ok(in_order.collect())
}

/// Those asked for, or all that this machine has; what it lacks is told.
fn runtimes(options: &Options, place: &Place) -> anyhow::Result<Vec<Runtime>> {
    let all = if options.runtimes.is_empty() { Runtime::ALL.to_vec() } else { options.runtimes.clone() };
    let (there, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|runtime| place.has(*runtime));
    for runtime in missing {
        ensure!(options.runtimes.is_empty(), "{} is not on this machine", runtime.name());
        eprintln!("x: {} is not on this machine: it is NOT measured", runtime.name());
    }
    Ok(there)
}

fn measure(
    place: &Place,
    chosen: &[&'static Metric],
    runtimes: &[Runtime],
    options: &Options,
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut probes: Vec<probes::Probe> = Vec::new();
    for metric in chosen {
        if !probes.contains(&metric.probe) {
            probes.push(metric.probe);
        }
    }
    step(&format!(
        "measuring {} metrics by {} probes, {} rounds",
        chosen.len(),
        probes.len(),
        options.rounds
    ));
    for round in 0..options.rounds {
        for probe in &probes {
            for turn in 0..runtimes.len() {
                let at = (turn + round as usize) % runtimes.len();
                let runtime = *runtimes.get(at).context("there is no such turn")?;
                eprint!(
                    "\r\x1b[Kx: round {}/{} {} under {}",
                    round + 1,
                    options.rounds,
                    probe.name(),
                    runtime.name()
                );
                match probe.run(place, runtime, options.quick) {
                    Ok(values) => results.add(runtime, *probe, &values),
                    Err(error) => {
                        eprintln!("\r\x1b[Kx: {} under {}: {error:#}", probe.name(), runtime.name());
                        results.fail(Failure::new(runtime, *probe, &error));
                    }
                }
                // what a probe that failed left would be measured with the next one
                processes::end_all()?;
            }
        }
    }
    eprint!("\r\x1b[K");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_chosen_by_words_and_an_unknown_one_is_told() {
        assert_eq!(chosen(&[]).unwrap().len(), METRICS.len());
        let some = chosen(&["getppid".into(), "start".into()]).unwrap();
        let names: Vec<&str> = some.iter().map(|metric| metric.name).collect();
        assert_eq!(names, ["start.first_instruction", "start.run", "syscall.getppid"]);
        let refused = chosen(&["nothing".into()]).err().unwrap().to_string();
        assert!(refused.contains("\"nothing\"") && refused.contains("--list"), "{refused}");
    }
}
