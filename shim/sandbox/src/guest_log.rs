//! Collects what VMM, guest kernel and agent write into the sandbox's one log, and the agent's stages into its record.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::task::{JoinHandle, JoinSet};

use crate::log::{Log, MAX_LINE, Source, cut};
use crate::record::Recorder;

/// Stages that a guest may report; others stay log lines.
const GUEST_STAGES: [&str; 6] = ["attested", "key-released", "pulling", "pulled", "refused", "failed"];

/// Most log connections of a guest at a time. The agent has one, and a second while it makes a broken one anew; a guest
/// that holds more silences nobody but itself.
const MAX_CONNECTIONS: usize = 8;

/// Lines of the console that are told when the agent does not answer.
const CONSOLE_LINES: usize = 5;

/// What stands before the reason of a panic on the console (Linux, `kernel/panic.c`).
const PANIC: &str = "Kernel panic - not syncing: ";

/// What reasons of a panic mean to the node (`drivers/md/dm-verity-target.c`, `init/do_mounts.c`).
const HINTS: [(&str, &str); 3] = [
    (
        "dm-verity device corrupted",
        " (a block of the guest's root image is not what its seal vouches for: build or fetch the guest image again)",
    ),
    ("dm-verity device has I/O error", " (the node could not read the guest's root image: look at its disk)"),
    (
        "VFS: Unable to mount root fs",
        " (the guest's root image and its seal do not belong together, or its kernel has no dm-init, dm-verity or EROFS)",
    ),
];

/// How much of each, in bytes.
const MAX_CONSOLE_WORDS: usize = 512;

/// Most pulls that are remembered at a time; of more that a guest tells of the first count.
const MAX_PULLS: usize = 16;

/// How far the pull of an image was when the guest last told of it. The guest's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Bytes of its layers that had come.
    pub bytes: u64,
    /// Of how many.
    pub of: u64,
    /// After how many seconds.
    pub seconds: u64,
}

/// The last words worth repeating when a sandbox ends or a call fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastWords(Arc<Mutex<Words>>);

#[derive(Debug, Default)]
struct Words {
    refusal: Option<String>,
    error: Option<String>,
    /// Why the guest's kernel panicked: the first time, since nothing that is said afterwards counts more.
    panic: Option<String>,
    /// The last lines of the console, at most [`CONSOLE_LINES`].
    console: VecDeque<String>,
    /// Pulls that go on, by image.
    pulls: BTreeMap<String, Pull>,
}

impl LastWords {
    /// How far the pull of `image` is, when it goes on and takes long enough for the guest to tell of it.
    pub(crate) fn pull(&self, image: &str) -> Option<Pull> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pulls.get(image).copied()
    }

    /// Why it ended, by what weighs most: a panic of its kernel, a refusal, the last error.
    pub(crate) fn reason(&self) -> Option<String> {
        let panic = self.0.lock().unwrap_or_else(PoisonError::into_inner).panic.clone();
        panic.or_else(|| self.refusal()).or_else(|| self.error())
    }

    /// Why the guest refused something, if it said so.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refusal.clone()
    }

    /// The last error line of VMM or agent.
    pub(crate) fn error(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).error.clone()
    }

    /// The last lines that the guest's kernel printed.
    pub(crate) fn console(&self) -> String {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.console.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }

    fn note_console(&self, line: &str) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if words.console.len() >= CONSOLE_LINES {
            words.console.pop_front();
        }
        let line = cut(line, MAX_CONSOLE_WORDS);
        if let Some((_, why)) = line.split_once(PANIC)
            && words.panic.is_none()
        {
            let hint = HINTS.iter().find(|(begin, _)| why.starts_with(begin)).map_or("", |(_, hint)| hint);
            words.panic = Some(format!("the guest's kernel panicked: {why}{hint}"));
        }
        words.console.push_back(line.to_owned());
    }

    fn note(&self, line: &str) {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return };
        let text = |names: &[&str]| names.iter().find_map(|name| value[*name].as_str()).map(str::to_owned);
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(stage), Some(image)) = (value["stage"].as_str(), value["image"].as_str()) {
            words.note_pull(stage, image, &value);
        }
        if value["stage"] == "refused" || value["stage"] == "failed" {
            words.refusal = text(&["reason", "msg", "message"]);
        } else if text(&["level"]).is_some_and(|level| level.eq_ignore_ascii_case("error")) {
            words.error = text(&["msg", "message"]);
        }
    }
}

impl Words {
    fn note_pull(&mut self, stage: &str, image: &str, told: &Value) {
        let number = |name: &str| told[name].as_u64().unwrap_or_default();
        match stage {
            "pulling" if self.pulls.len() < MAX_PULLS || self.pulls.contains_key(image) => {
                let pull = Pull { bytes: number("bytes"), of: number("of"), seconds: number("seconds") };
                self.pulls.insert(image.to_owned(), pull);
            }
            "pulled" | "refused" | "failed" => drop(self.pulls.remove(image)),
            _ => {}
        }
    }
}

/// Collects one line after another from a stream, each at most [`MAX_LINE`] long.
async fn lines(from: impl AsyncRead + Unpin, mut each: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_LINE as u64 + 1;
        match (&mut from).take(limit).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches(['\n', '\r']);
                if !text.is_empty() {
                    each(text);
                }
            }
        }
    }
}

/// Reads the VMM's standard error.
pub(crate) fn follow_vmm(
    from: impl AsyncRead + Unpin + Send + 'static,
    log: Log,
    words: LastWords,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        lines(from, |line| {
            words.note(line);
            log.add_foreign(Source::Vmm, line);
        })
        .await;
    })
}

/// Listens for the agent's log lines; whoever in the guest connects is heard, [`MAX_CONNECTIONS`] at a time.
///
/// # Errors
/// When the socket cannot be bound.
pub(crate) fn follow_agent(
    socket: &Path,
    log: Log,
    words: LastWords,
    record: Recorder,
) -> std::io::Result<JoinHandle<()>> {
    let listener = UnixListener::bind(socket)?;
    Ok(tokio::spawn(async move {
        // Dropped with this task, and every connection with it.
        let mut connections = JoinSet::new();
        let mut told = false;
        while let Ok((stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            if connections.len() >= MAX_CONNECTIONS {
                if !std::mem::replace(&mut told, true) {
                    let more = format!("more than {MAX_CONNECTIONS} log connections of the guest: refused");
                    log.add(Source::Shim, "warn", &more);
                }
                continue;
            }
            let (log, words, record) = (log.clone(), words.clone(), record.clone());
            connections.spawn(async move {
                lines(stream, |line| {
                    words.note(line);
                    record_stage(line, &record);
                    log.add_foreign(Source::Agent, line);
                })
                .await;
            });
        }
    }))
}

fn record_stage(line: &str, record: &Recorder) {
    let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(line) else { return };
    let Some(Value::String(stage)) = fields.remove("stage") else { return };
    if !GUEST_STAGES.contains(&stage.as_str()) {
        return;
    }
    for own in ["t", "source", "level"] {
        fields.remove(own);
    }
    record.guest_stage(&stage, Value::Object(fields));
}

/// Makes the guest's serial console, a FIFO at `path`, and reads it. The agent's own lines come by vsock and are passed
/// over here.
///
/// No file: a guest that prints for ever fills nothing. What is worth keeping is in the log, which has a bound; a line that
/// comes faster than it is read here is lost by the monitor, and counted there.
///
/// # Errors
/// When the FIFO cannot be made.
pub(crate) fn follow_console(path: &Path, log: Log, words: LastWords) -> std::io::Result<JoinHandle<()>> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    // A writer of our own: without one the FIFO would be at its end before the monitor has opened it.
    let console = pipe::OpenOptions::new().read_write(true).open_receiver(path)?;
    Ok(tokio::spawn(async move {
        lines(console, |line| {
            words.note_console(line);
            console_line(line, &log);
        })
        .await;
    }))
}

fn console_line(line: &str, log: &Log) {
    let from_agent = line.starts_with('{') && line.contains("\"source\":\"agent\"");
    if !from_agent {
        log.add(Source::Kernel, "info", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    #[test]
    fn the_guest_records_only_the_stages_that_are_its_own() {
        let records = tempfile::tempdir().unwrap();
        let record = Recorder::create(records.path(), "x").unwrap();
        record_stage(r#"{"t":"2020","stage":"attested","tee":"sim-snp"}"#, &record);
        record_stage(r#"{"stage":"measured","launch_digest":"00"}"#, &record);
        record_stage("not json", &record);
        let stages = crate::record::read(record.dir()).unwrap();
        assert_eq!(stages.len(), 1);
        assert_eq!(stages[0].detail, serde_json::json!({"tee": "sim-snp"}));
        assert_ne!(stages[0].t, "2020");
        assert!(stages[0].guest);
    }

    #[test]
    fn refusals_and_errors_are_remembered() {
        let words = LastWords::default();
        words.note(r#"{"stage":"refused","reason":"init-data differs"}"#);
        words.note(r#"{"level":"ERROR","message":"no kvm"}"#);
        assert_eq!(words.refusal().as_deref(), Some("init-data differs"));
        assert_eq!(words.error().as_deref(), Some("no kvm"));
        assert_eq!(words.reason(), words.refusal());
        words.note_console("[    1.2] Kernel panic - not syncing: dm-verity device corrupted");
        words.note_console("[    1.3] Kernel panic - not syncing: Attempted to kill init!");
        words.note(r#"{"level":"ERROR","message":"vcpu ended"}"#);
        let reason = words.reason().unwrap();
        assert!(
            reason.starts_with("the guest's kernel panicked: dm-verity device corrupted (a block of"),
            "{reason}"
        );
    }

    async fn eventually(mut so: impl FnMut() -> bool) -> bool {
        for _ in 0..200 {
            if so() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn the_console_is_read_as_it_comes_and_kept_nowhere_but_in_the_log() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let (log, words) = (Log::open(dir.path()).unwrap(), LastWords::default());
        let task = follow_console(&path, log, words.clone()).unwrap();
        // As the monitor opens it, and again after it has ended once: the reader stays.
        for round in 0..2 {
            let mut monitor = std::fs::File::options().append(true).open(&path).unwrap();
            let agents = r#"{"source":"agent","msg":"x"}"#;
            write!(monitor, "round {round}\r\n\n{agents}\n").unwrap();
            for n in 0..4 {
                writeln!(monitor, "line {n}").unwrap();
            }
        }
        let kernel = || {
            let lines = crate::log::read(dir.path()).unwrap().filter(|line| line.source == Source::Kernel);
            lines.map(|line| line.msg).collect::<Vec<_>>()
        };
        assert!(eventually(|| kernel().len() == 10).await, "{:?}", kernel());
        assert_eq!(kernel()[..2], ["round 0", "line 0"]);
        assert!(words.console().ends_with("line 0 | line 1 | line 2 | line 3"), "{}", words.console());
        assert_eq!(words.console().split(" | ").count(), CONSOLE_LINES);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        task.abort();
    }

    #[tokio::test]
    async fn a_silent_connection_does_not_silence_others_and_there_are_not_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, log) = (dir.path().join("log"), Log::open(dir.path()).unwrap());
        let record = Recorder::create(&dir.path().join("records"), "x").unwrap();
        let task = follow_agent(&socket, log, LastWords::default(), record).unwrap();
        let mut open = Vec::new();
        for n in 0..MAX_CONNECTIONS {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            if n > 0 {
                stream.write_all(format!("{{\"msg\":\"line {n}\"}}\n").as_bytes()).await.unwrap();
            }
            open.push(stream);
        }
        let count =
            || crate::log::read(dir.path()).unwrap().filter(|line| line.source == Source::Agent).count();
        assert!(eventually(|| count() == MAX_CONNECTIONS - 1).await, "{} lines", count());
        let mut refused = UnixStream::connect(&socket).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(2), refused.read_u8()).await;
        assert!(ended.expect("it was left open").is_err());
        // One goes, and there is room again.
        drop(open.pop());
        let again = async {
            loop {
                let mut stream = UnixStream::connect(&socket).await.unwrap();
                let _ = stream.write_all(b"{\"msg\":\"again\"}\n").await;
                if tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), again).await.unwrap();
        assert!(eventually(|| crate::log::read(dir.path()).unwrap().any(|line| line.msg == "again")).await);
        task.abort();
    }
}
