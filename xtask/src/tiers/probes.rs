//! One start of a sandbox, or several, and the figures that it gives.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::processes;
use super::runtimes::{Mode, Place, Runtime};

/// Programs in the root (`tests/programs/make-root` puts them there).
const MEASURE: &str = "/opt/bench/measure";
const PROGRAMS: &str = "/opt/bench/programs.sh";

/// The longest that one start may take: a build under the slowest runtime takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(300);
/// Of many sandboxes most must come up; how long the others may keep the clock waiting then.
const STILL: Duration = Duration::from_secs(30);

/// How figures come about. What each gives is named by keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// Starts of a static program: `first`, `run`.
    Start,
    /// Sandboxes that sleep: `pss_one`, `pss_each`, `cpu`.
    Idle,
    /// Sandboxes at once: `start_rate`, `pss_each`.
    Many,
    /// A part of `tests/bench-tiers/measure.c`, which prints keys and values.
    Measure(&'static str),
    /// A part of `tests/bench-tiers/programs.sh`, likewise.
    Program(&'static str),
}

/// Keys and values.
pub(super) type Values = Vec<(String, f64)>;

impl Probe {
    pub(super) fn name(self) -> String {
        match self {
            Self::Start => "start".into(),
            Self::Idle => "idle".into(),
            Self::Many => "many".into(),
            Self::Measure(part) | Self::Program(part) => part.into(),
        }
    }

    pub(super) fn run(self, place: &Place, runtime: Runtime, quick: bool) -> anyhow::Result<Values> {
        match self {
            Self::Start => start(place, runtime, if quick { 2 } else { 8 }),
            Self::Idle => idle(place, runtime, quick),
            Self::Many => many(place, runtime, if quick { 8 } else { 100 }),
            Self::Measure(part) => lines(place, runtime, MEASURE, part, quick),
            Self::Program(part) => lines(place, runtime, PROGRAMS, part, quick),
        }
    }
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

/// The value in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Waits for a command that was started; one that takes too long is ended.
fn ended(child: &mut Child, limit: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "ended with {status}");
            return Ok(());
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for the byte that a program writes when it runs, and says whether it came before the end. A runtime may stand still as it starts: then all
/// that was started is ended.
fn first_byte(reader: &mut (impl Read + AsFd)) -> anyhow::Result<bool> {
    if let Some(came) = byte_within(reader, LIMIT)? {
        return Ok(came);
    }
    processes::end_all()?;
    bail!("its program did not run within {LIMIT:?}")
}

/// The same; `None` when that time is over.
fn byte_within(reader: &mut (impl Read + AsFd), limit: Duration) -> anyhow::Result<Option<bool>> {
    let mut came = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    if poll(&mut came, PollTimeout::try_from(limit)?)? == 0 {
        return Ok(None);
    }
    Ok(Some(reader.read(&mut [0])? == 1))
}

fn start(place: &Place, runtime: Runtime, times: usize) -> anyhow::Result<Values> {
    let (mut first, mut run) = (Vec::new(), Vec::new());
    for number in 0..times {
        let mut command =
            place.start(runtime, &format!("start-{number}"), Mode::Wait, &[MEASURE, "first"])?;
        let begin = Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut output = child.stdout.take().context("its output is piped")?;
        let came = first_byte(&mut output)?;
        first.push(milliseconds(begin));
        let status = child.wait()?;
        run.push(milliseconds(begin));
        if !came || !status.success() {
            let mut told = String::new();
            child.stderr.take().context("its errors are piped")?.read_to_string(&mut told)?;
            bail!("{status}: {}", told.trim());
        }
    }
    Ok(vec![("first".into(), median(first)), ("run".into(), median(run))])
}

/// Figures that a program prints.
fn lines(place: &Place, runtime: Runtime, program: &str, part: &str, quick: bool) -> anyhow::Result<Values> {
    let mut words = vec![program, part];
    words.extend(quick.then_some("quick"));
    let command = place.start(runtime, part, Mode::Wait, &words)?;
    let (printed, errors) = collect(command)?;
    let values: Values = printed
        .lines()
        .filter_map(|line| {
            let (key, value) = line.trim().split_once(' ')?;
            Some((key.to_owned(), value.parse().ok()?))
        })
        .collect();
    ensure!(!values.is_empty(), "it printed no figures: {} {}", printed.trim(), errors.trim());
    Ok(values)
}

/// Both outputs of a command that succeeds.
fn collect(mut command: Command) -> anyhow::Result<(String, String)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("its output is piped")?;
    let mut errors = child.stderr.take().context("its errors are piped")?;
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        output.read_to_end(&mut text).map(|_| text)
    });
    let complaining = std::thread::spawn(move || {
        let mut text = Vec::new();
        errors.read_to_end(&mut text).map(|_| text)
    });
    let end = ended(&mut child, LIMIT);
    if end.is_err() {
        // others may hold the pipes
        processes::end_all()?;
    }
    let text = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| -> anyhow::Result<String> {
        let bytes = thread.join().map_err(|_| anyhow::anyhow!("a thread that reads panicked"))??;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (printed, errors) = (text(reading)?, text(complaining)?);
    end.with_context(|| format!("{}{}", printed.trim(), errors.trim()))?;
    Ok((printed, errors))
}

/// Sandboxes that run and sleep, until [`Sleepers::end`].
struct Sleepers<'a> {
    place: &'a Place,
    runtime: Runtime,
    names: Vec<String>,
    children: Vec<Child>,
    /// How many programs run, and when the last of them began to.
    running: (usize, Instant),
}

impl<'a> Sleepers<'a> {
    /// Starts so many at once; ends when all of their programs run.
    fn start(place: &'a Place, runtime: Runtime, count: usize) -> anyhow::Result<Self> {
        Self::start_most(place, runtime, count, count)
    }

    /// Starts so many at once; ends when all of their programs run, or at least so many of them and no other for a while.
    fn start_most(place: &'a Place, runtime: Runtime, count: usize, least: usize) -> anyhow::Result<Self> {
        let (mut reader, writer) = std::io::pipe()?;
        let running = (0, Instant::now());
        let mut all = Self { place, runtime, names: Vec::new(), children: Vec::new(), running };
        for number in 0..count {
            // None is the beginning of another: runsc takes that for it where that one is not there.
            let name = format!("sleep-{number:03}");
            let mut command = place.start(runtime, &name, Mode::Detach, &[MEASURE, "sleep"])?;
            all.children.push(command.stdout(writer.try_clone()?).stderr(Stdio::null()).spawn()?);
            all.names.push(name);
        }
        drop(writer);
        while all.running.0 < count {
            let came = if all.running.0 < least {
                first_byte(&mut reader)
            } else {
                match byte_within(&mut reader, STILL) {
                    Ok(None) => break,
                    Ok(Some(came)) => Ok(came),
                    Err(error) => Err(error),
                }
            };
            if matches!(came, Ok(true)) {
                all.running = (all.running.0 + 1, Instant::now());
            } else {
                all.end()?;
                bail!(
                    "{}",
                    came.err().map_or("ended before its program ran".into(), |error| error.to_string())
                );
            }
        }
        if all.running.0 < count {
            eprintln!(
                "\r\x1b[Kx: {} of {count} came up under {}: the others stand still, and are not counted",
                all.running.0,
                runtime.name()
            );
        } else if place.detaches(runtime) {
            for child in &mut all.children {
                ended(child, LIMIT)?;
            }
        }
        Ok(all)
    }

    fn end(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for name in &self.names {
            let removed = self.place.remove(self.runtime, name);
            result = result.and(removed);
        }
        for child in &mut self.children {
            // it may have ended, and its end may have been taken
            let _ = child.kill();
            let _ = child.wait();
        }
        processes::end_all()?;
        result
    }
}

fn idle(place: &Place, runtime: Runtime, quick: bool) -> anyhow::Result<Values> {
    let one = Sleepers::start(place, runtime, 1)?;
    std::thread::sleep(Duration::from_millis(300));
    let (seconds, pids) = (if quick { 1 } else { 5 }, processes::descendants()?);
    let (before, begin) = (processes::processor_time(&pids), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let cpu = (processes::processor_time(&pids) - before) / begin.elapsed().as_secs_f64();
    let pss = processes::memory(&processes::descendants()?);
    one.end()?;
    let eight = Sleepers::start(place, runtime, 8)?;
    std::thread::sleep(Duration::from_millis(300));
    let each = processes::memory(&processes::descendants()?) / 8.0;
    eight.end()?;
    Ok(vec![("pss_one".into(), pss), ("pss_each".into(), each), ("cpu".into(), cpu)])
}

fn many(place: &Place, runtime: Runtime, count: usize) -> anyhow::Result<Values> {
    let begin = Instant::now();
    let all = Sleepers::start_most(place, runtime, count, count - count / 10)?;
    let (running, last) = all.running;
    let rate = f64::from(u32::try_from(running)?) / last.duration_since(begin).as_secs_f64();
    // Those that stand still take memory, too.
    let each = processes::memory(&processes::descendants()?) / f64::from(u32::try_from(count)?);
    all.end()?;
    Ok(vec![("start_rate".into(), rate), ("pss_each".into(), each)])
}
