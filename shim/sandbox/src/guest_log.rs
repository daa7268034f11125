//! Collects what VMM, guest kernel and agent write into the sandbox's one log, and the agent's stages into its record.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::log::{Log, MAX_LINE, Source};
use crate::record::Recorder;

/// Stages that a guest may report; others stay log lines.
const GUEST_STAGES: [&str; 5] = ["attested", "key-released", "pulled", "refused", "failed"];

/// Most log connections of a guest at a time. The agent has one, and a second while it makes a broken one anew; a guest
/// that holds more silences nobody but itself.
const MAX_CONNECTIONS: usize = 8;

/// The last words worth repeating when a sandbox ends or a call fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastWords(Arc<Mutex<Words>>);

#[derive(Debug, Default)]
struct Words {
    refusal: Option<String>,
    error: Option<String>,
}

impl LastWords {
    /// Why the guest refused something, if it said so.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refusal.clone()
    }

    /// The last error line of VMM or agent.
    pub(crate) fn error(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).error.clone()
    }

    fn note(&self, line: &str) {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return };
        let text = |names: &[&str]| names.iter().find_map(|name| value[*name].as_str()).map(str::to_owned);
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if value["stage"] == "refused" || value["stage"] == "failed" {
            words.refusal = text(&["reason", "msg", "message"]);
        } else if text(&["level"]).is_some_and(|level| level.eq_ignore_ascii_case("error")) {
            words.error = text(&["msg", "message"]);
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

/// Follows the console file as it grows. The agent's own lines come by vsock and are passed over here.
pub(crate) fn follow_console(path: PathBuf, log: Log) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut read = 0_u64;
        let mut rest = Vec::new();
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let Ok(mut file) = tokio::fs::File::open(&path).await else { continue };
            if tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(read)).await.is_err() {
                continue;
            }
            let mut new = Vec::new();
            let Ok(count) = file.take(1 << 20).read_to_end(&mut new).await else { continue };
            read += count as u64;
            rest.extend_from_slice(&new);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                console_line(&line, &log);
            }
            if rest.len() > MAX_LINE {
                console_line(&std::mem::take(&mut rest), &log);
            }
        }
    })
}

fn console_line(line: &[u8], log: &Log) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    let from_agent = text.starts_with('{') && text.contains("\"source\":\"agent\"");
    if !text.is_empty() && !from_agent {
        log.add(Source::Kernel, "info", text);
    }
}

/// The last lines of the console, for an error message.
pub(crate) fn console_end(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

#[cfg(test)]
mod tests {
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
