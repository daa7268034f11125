//! A process' standard streams on containerd's side: FIFOs, files and logger programs.
//!
//! | given | meaning |
//! |---|---|
//! | empty | not wanted |
//! | a path, `fifo://path` | named pipe made by containerd's client |
//! | `file:///path` | appended to, made with mode 0644 |
//! | `binary:///program?key=value` | logger: gets stdout on 3, stderr on 4, closes 5 when it is ready |
//!
//! Output FIFOs are opened for reading and writing: that never waits for a reader, and a containerd that restarts
//! finds the pipe unbroken. Input FIFOs are opened without waiting; "no writer yet" is told from "writer has closed"
//! by waiting for the pipe's first event before the first read.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

use crate::logger::Logger;

/// What containerd asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether stdin and stdout are a terminal (then there is no stderr).
    pub terminal: bool,
}

/// Why the streams cannot be used.
#[derive(Debug, Error)]
pub enum StdioError {
    /// The scheme is none of those this shim knows.
    #[error("{0:?}: streams of this kind are not supported: use a FIFO path, file:// or binary://")]
    Scheme(String),
    /// Opening failed.
    #[error("cannot open {0}: {1}")]
    Open(String, io::Error),
    /// The logger program did not start.
    #[error("logger {0}: {1}")]
    Logger(String, String),
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Fifo(PathBuf),
    File(PathBuf),
    Binary(PathBuf, Vec<String>),
}

fn place(text: &str) -> Result<Place, StdioError> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(Place::Fifo(text.into())) };
    match scheme {
        "fifo" => Ok(Place::Fifo(rest.into())),
        "file" => Ok(Place::File(rest.split('?').next().unwrap_or_default().into())),
        "binary" => {
            let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
            Ok(Place::Binary(decode(path).into(), arguments(query)))
        }
        _ => Err(StdioError::Scheme(text.to_owned())),
    }
}

/// Keys and values in turn, sorted by key as Go's maps of containerd's own shim are not: a fixed order is kinder.
fn arguments(query: &str) -> Vec<String> {
    let mut sorted = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        sorted.insert(decode(key), decode(value));
    }
    sorted
        .into_iter()
        .flat_map(|(key, value)| if value.is_empty() { vec![key] } else { vec![key, value] })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = rest.clone().next().and_then(hex).zip(rest.clone().nth(1).and_then(hex));
        match (byte, pair) {
            (b'%', Some((high, low))) => {
                bytes.push(high * 16 + low);
                rest.nth(1);
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where output goes. Clones share the place.
#[derive(Clone, Debug)]
pub struct Sink(Arc<Mutex<Target>>);

#[derive(Debug)]
enum Target {
    Pipe(pipe::Sender),
    File(tokio::fs::File),
}

impl Sink {
    /// Write all of it, waiting for as long as the reader takes.
    pub async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        match &mut *self.0.lock().await {
            Target::Pipe(pipe) => pipe.write_all(data).await,
            Target::File(file) => {
                file.write_all(data).await?;
                file.flush().await
            }
        }
    }

    fn new(target: Target) -> Self {
        Self(Arc::new(Mutex::new(target)))
    }
}

/// The opened streams.
#[derive(Debug, Default)]
pub struct Opened {
    /// Standard input, until the pump takes it.
    pub stdin: Option<pipe::Receiver>,
    /// Standard output.
    pub stdout: Option<Sink>,
    /// Standard error.
    pub stderr: Option<Sink>,
    /// The logger that reads them, if there is one.
    pub logger: Option<Logger>,
}

impl Streams {
    /// Open them all.
    pub async fn open(&self, container: &str, namespace: &str) -> Result<Opened, StdioError> {
        let mut opened = Opened::default();
        if !self.stdin.is_empty() {
            let Place::Fifo(path) = place(&self.stdin)? else {
                return Err(StdioError::Scheme(self.stdin.clone()));
            };
            let stdin = pipe::OpenOptions::new().open_receiver(&path);
            opened.stdin = Some(stdin.map_err(|error| StdioError::Open(self.stdin.clone(), error))?);
        }
        let stderr = if self.terminal { "" } else { self.stderr.as_str() };
        for text in [self.stdout.as_str(), stderr] {
            if !text.is_empty()
                && opened.logger.is_none()
                && let Place::Binary(program, arguments) = place(text)?
            {
                let (logger, stdout, stderr) = Logger::start(&program, &arguments, container, namespace)
                    .await
                    .map_err(|error| StdioError::Logger(program.display().to_string(), error.to_string()))?;
                opened.logger = Some(logger);
                opened.stdout = Some(Sink::new(Target::Pipe(stdout)));
                opened.stderr = Some(Sink::new(Target::Pipe(stderr)));
            }
        }
        if opened.logger.is_none() {
            opened.stdout = output(&self.stdout).await?;
            opened.stderr =
                if stderr == self.stdout { opened.stdout.clone() } else { output(stderr).await? };
        }
        Ok(opened)
    }
}

async fn output(text: &str) -> Result<Option<Sink>, StdioError> {
    if text.is_empty() {
        return Ok(None);
    }
    let failed = |error| StdioError::Open(text.to_owned(), error);
    let target = match place(text)? {
        Place::Fifo(path) => open_fifo(&path).map(Target::Pipe).map_err(failed)?,
        Place::File(path) => {
            let mut options = tokio::fs::OpenOptions::new();
            let file = options.create(true).append(true).mode(0o644).open(path).await;
            Target::File(file.map_err(failed)?)
        }
        Place::Binary(..) => return Err(StdioError::Scheme(text.to_owned())),
    };
    Ok(Some(Sink::new(target)))
}

fn open_fifo(path: &Path) -> io::Result<pipe::Sender> {
    pipe::OpenOptions::new().read_write(true).open_sender(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes() {
        assert_eq!(place("/run/f").unwrap(), Place::Fifo("/run/f".into()));
        assert_eq!(place("fifo:///run/f").unwrap(), Place::Fifo("/run/f".into()));
        assert_eq!(place("file:///log?x=1").unwrap(), Place::File("/log".into()));
        let logger = place("binary:///bin/log%20er?b=2&a=1+x&flag").unwrap();
        let arguments = ["a", "1 x", "b", "2", "flag"].map(str::to_owned).to_vec();
        assert_eq!(logger, Place::Binary("/bin/log er".into(), arguments));
        assert!(matches!(place("ttrpc+unix:///x"), Err(StdioError::Scheme(_))));
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(decode("%zz%4"), "%zz%4");
        assert_eq!(decode("%41%"), "A%");
    }

    fn fifo(folder: &Path, name: &str) -> String {
        let path = folder.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    #[tokio::test]
    async fn output_waits_for_no_reader_and_survives_one() {
        let folder = tempfile::tempdir().unwrap();
        let streams = Streams { stdout: fifo(folder.path(), "out"), ..Streams::default() };
        let opened = streams.open("c", "n").await.unwrap();
        let sink = opened.stdout.unwrap();
        sink.write_all(b"one\n").await.unwrap();
        let mut reader = pipe::OpenOptions::new().open_receiver(&streams.stdout).unwrap();
        let mut buffer = [0; 4];
        tokio::io::AsyncReadExt::read_exact(&mut reader, &mut buffer).await.unwrap();
        assert_eq!(&buffer, b"one\n");
        drop(reader);
        sink.write_all(b"two\n").await.unwrap();
        let mut reader = pipe::OpenOptions::new().open_receiver(&streams.stdout).unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut reader, &mut buffer).await.unwrap();
        assert_eq!(&buffer, b"two\n", "what no reader took is kept for the next");
    }

    #[tokio::test]
    async fn the_same_path_is_one_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let both = format!("file://{}", path.display());
        let streams = Streams { stdout: both.clone(), stderr: both, ..Streams::default() };
        let opened = streams.open("c", "n").await.unwrap();
        opened.stdout.unwrap().write_all(b"a\n").await.unwrap();
        opened.stderr.unwrap().write_all(b"b\n").await.unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "a\nb\n");
    }

    #[tokio::test]
    async fn a_terminal_has_no_stderr_and_missing_pipes_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let streams = Streams { stderr: "/nowhere".into(), terminal: true, ..Streams::default() };
        assert!(streams.open("c", "n").await.unwrap().stderr.is_none());
        let missing = folder.path().join("none").display().to_string();
        let streams = Streams { stdout: missing, ..Streams::default() };
        assert!(matches!(streams.open("c", "n").await, Err(StdioError::Open(..))));
    }
}
