//! A process of a container as the agent sees it: its number, its exit, its streams; and how it is started.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Mutex;

use super::stream::Stream;
use crate::reaper::{Exit, Reaper};
use crate::stage::channel::Channel;
use crate::stage::message::{Config, FromAgent, FromStage};
use crate::sys;

/// Patience with a stage between two messages. Generous: under emulation everything is slow, and a stage that
/// hangs is a bug, not a condition to be quick about.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long output is awaited after the exit when somebody else still holds the stream open.
const DRAIN: Duration = Duration::from_millis(500);

/// The agent's own program, opened before the host could say anything. A path to it, `/proc/self/exe` too, is only as
/// good as the mounts on the way.
static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();

/// Opens the agent's program for the stages that [`prepare`] starts.
pub(crate) fn open_program() -> io::Result<()> {
    // A second call finds it opened.
    let _ = PROGRAM.set(std::fs::File::open("/proc/self/exe")?.into());
    Ok(())
}

fn start_stage(stdin: Stdio) -> io::Result<std::process::Child> {
    let program = PROGRAM.get().ok_or_else(|| io::Error::other("the agent's program is not open"))?;
    let mut command = Command::new("kata-cc-agent");
    command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::inherit()).current_dir("/");
    sys::run_descriptor(&mut command, program, [c"kata-cc-agent", c"init"]);
    command.spawn()
}

/// Why a process could not be started.
#[derive(Debug, Error)]
pub(crate) enum SpawnError {
    /// The stage said why.
    #[error("{0}")]
    Stage(String),
    /// The stage ended or talked nonsense.
    #[error("starting the process failed while waiting for {expected}: {seen}")]
    Protocol {
        /// What should have come.
        expected: &'static str,
        /// What came.
        seen: String,
    },
    /// Resources of the agent.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> SpawnError {
    move |source| SpawnError::Io { what, source }
}

/// A started or prepared process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Number in the guest.
    pub(crate) pid: i32,
    pidfd: OwnedFd,
    exit: Exit,
    stdin: Mutex<Option<Arc<Stream>>>,
    stdout: Option<Arc<Stream>>,
    stderr: Option<Arc<Stream>>,
    terminal: bool,
    /// Output streams that are read to their end.
    ends: std::sync::atomic::AtomicU8,
    /// Held until the start.
    channel: Mutex<Option<Channel>>,
}

struct Pipes {
    ours: [OwnedFd; 3],
    theirs: [OwnedFd; 3],
}

fn pipes() -> io::Result<Pipes> {
    let (stdin_r, stdin_w) = io::pipe()?;
    let (stdout_r, stdout_w) = io::pipe()?;
    let (stderr_r, stderr_w) = io::pipe()?;
    Ok(Pipes {
        ours: [stdin_w.into(), stdout_r.into(), stderr_r.into()],
        theirs: [stdin_r.into(), stdout_w.into(), stderr_w.into()],
    })
}

/// Starts a stage and brings it to the point where only [`Process::start`] is missing.
///
/// Blocking: to be called from the blocking pool. `target` is the process whose namespaces an exec joins.
pub(crate) fn prepare(
    reaper: &Reaper,
    runtime: &tokio::runtime::Handle,
    config: Config,
    target: Option<&Process>,
) -> Result<Process, SpawnError> {
    let (mut channel, theirs) = Channel::pair().map_err(io_error("make a socket pair"))?;
    channel.set_timeout(Some(PATIENCE)).map_err(io_error("set a timeout"))?;
    let terminal = config.process.terminal;
    let streams = match terminal {
        true => None,
        false => Some(pipes().map_err(io_error("make pipes"))?),
    };
    let (_, outer_exit) =
        reaper.spawn(|| start_stage(Stdio::from(theirs))).map_err(io_error("start the stage"))?;
    drop(outer_exit);
    let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
    if let Some(pipes) = &streams {
        fds.extend(pipes.theirs.iter().map(AsFd::as_fd));
    }
    fds.extend(target.iter().map(|t| t.pidfd.as_fd()));
    channel.send(&FromAgent::Config(Box::new(config)), &fds).map_err(io_error("send the configuration"))?;
    // The stage's parent reports the process, the forked child its readiness: either may come first.
    let (mut pid, mut ready) = (None, None);
    while pid.is_none() || ready.is_none() {
        match receive(&mut channel, "readiness")? {
            (FromStage::MapIds { pid }, _) => {
                map_ids(pid).map_err(io_error("write id maps"))?;
                channel.send(&FromAgent::IdsMapped, &[]).map_err(io_error("confirm id maps"))?;
            }
            (FromStage::Forked { pid: number }, _) => pid = Some(number),
            (FromStage::Ready, fds) => ready = Some(fds.into_iter().next()),
            (FromStage::Failed { message }, _) => return Err(SpawnError::Stage(message)),
        }
    }
    let master = ready.flatten();
    let pid =
        pid.ok_or(SpawnError::Protocol { expected: "the process number", seen: "readiness".to_owned() })?;
    let exit = reaper.adopt(pid);
    let pidfd =
        sys::pidfd_open(nix::unistd::Pid::from_raw(pid)).map_err(io_error("open the process descriptor"))?;
    let _in_runtime = runtime.enter();
    let stream = |fd| Stream::new(fd).map(Arc::new).map_err(io_error("watch a stream"));
    let (stdin, stdout, stderr) = match (streams, master) {
        (Some(Pipes { ours: [i, o, e], .. }), _) => (Some(stream(i)?), Some(stream(o)?), Some(stream(e)?)),
        (None, Some(master)) => {
            let master = stream(master)?;
            (Some(Arc::clone(&master)), Some(master), None)
        }
        (None, None) => {
            return Err(SpawnError::Protocol { expected: "the terminal", seen: "no descriptor".to_owned() });
        }
    };
    Ok(Process {
        pid,
        pidfd,
        exit,
        stdin: Mutex::new(stdin),
        stdout,
        stderr,
        terminal,
        ends: std::sync::atomic::AtomicU8::new(0),
        channel: Mutex::new(Some(channel)),
    })
}

fn receive(channel: &mut Channel, expected: &'static str) -> Result<(FromStage, Vec<OwnedFd>), SpawnError> {
    channel.receive().map_err(|e| SpawnError::Protocol {
        expected,
        seen: match e.kind() {
            io::ErrorKind::UnexpectedEof => "the stage ended without a word".to_owned(),
            io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
            _ => e.to_string(),
        },
    })
}

/// Identity for all ids: the container's root is the guest's root number, without the guest's privileges.
fn map_ids(pid: i32) -> io::Result<()> {
    let all = "0 0 4294967295\n";
    std::fs::write(format!("/proc/{pid}/uid_map"), all)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), all)
}

impl Process {
    /// Lets the prepared process run its program; an error is the program's failure to run.
    pub(crate) async fn start(&self) -> Result<(), SpawnError> {
        let Some(mut channel) = self.channel.lock().await.take() else {
            return Err(SpawnError::Protocol {
                expected: "a prepared process",
                seen: "it was started before".to_owned(),
            });
        };
        let joined = tokio::task::spawn_blocking(move || {
            channel.send(&FromAgent::Start, &[]).map_err(io_error("send the start"))?;
            match channel.receive::<FromStage>() {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                // A reset is an end too: the program took over without reading.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(()),
                Err(source) => Err(io_error("wait for the program")(source)),
                Ok((FromStage::Failed { message }, _)) => Err(SpawnError::Stage(message)),
                Ok((other, _)) => {
                    Err(SpawnError::Protocol { expected: "the program", seen: format!("{other:?}") })
                }
            }
        });
        joined.await.map_err(|e| SpawnError::Io { what: "start the program", source: io::Error::other(e) })?
    }

    /// Exit status, when it has ended.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        *self.exit.borrow()
    }

    /// Waits for the end.
    pub(crate) async fn wait(&self) -> i32 {
        // The sender lives in the reaper until the status is known.
        crate::reaper::wait(self.exit.clone()).await.unwrap_or(255)
    }

    /// Sends a signal; to one that has ended is no error.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        match sys::pidfd_send_signal(&self.pidfd, signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Whether the process has a handler for `signal` (or ignores it). Kata's rule turns SIGTERM for a first
    /// process without one into SIGKILL, because the kernel would discard it.
    pub(crate) fn catches(&self, signal: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let mask = |name: &str| {
            status.as_deref().ok().and_then(|s| {
                let line = s.lines().find_map(|l| l.strip_prefix(name))?;
                u64::from_str_radix(line.trim(), 16).ok()
            })
        };
        let bit = 1_u64 << (signal - 1).clamp(0, 63);
        // A blocked signal is kept for who waits for it.
        let kept = mask("SigCgt:").zip(mask("SigBlk:")).map(|(caught, blocked)| caught | blocked);
        kept.unwrap_or(u64::MAX) & bit != 0
    }

    /// Writes to stdin.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> io::Result<()> {
        let stream = self.stdin.lock().await.clone();
        match stream {
            Some(stream) => stream.write_all(data).await,
            None => Err(io::Error::new(io::ErrorKind::BrokenPipe, "stdin is closed")),
        }
    }

    /// Closes stdin. A terminal gets its end-of-file character instead, as with docker.
    pub(crate) async fn close_stdin(&self) {
        let stream = self.stdin.lock().await.take();
        if let (Some(stream), true) = (stream, self.terminal) {
            // The program may be gone; then nobody reads.
            let _ = stream.write_all(&[4]).await;
        }
    }

    /// Reads stdout, or what the terminal shows.
    pub(crate) async fn read_stdout(&self, most: usize) -> io::Result<Vec<u8>> {
        self.read(self.stdout.as_deref(), most).await
    }

    /// Reads stderr; a terminal has none.
    pub(crate) async fn read_stderr(&self, most: usize) -> io::Result<Vec<u8>> {
        self.read(self.stderr.as_deref(), most).await
    }

    async fn read(&self, stream: Option<&Stream>, most: usize) -> io::Result<Vec<u8>> {
        let Some(stream) = stream else {
            return Ok(Vec::new());
        };
        let over = async {
            self.wait().await;
            tokio::time::sleep(DRAIN).await;
        };
        let data = tokio::select! {
            biased;
            data = stream.read(most) => data,
            () = over => Ok(Vec::new()),
        };
        if data.as_ref().is_ok_and(Vec::is_empty) {
            let is_stderr = self.stderr.as_deref().is_some_and(|s| std::ptr::eq(s, stream));
            self.ends.fetch_or(1 << u8::from(is_stderr), Ordering::SeqCst);
        }
        data
    }

    /// Whether all output has been read.
    pub(crate) fn drained(&self) -> bool {
        let all = if self.stderr.is_some() { 0b11 } else { 0b01 };
        self.ends.load(Ordering::SeqCst) == all
    }

    /// Sets the terminal's size; `None` when there is no terminal.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Option<io::Result<()>> {
        let stream = self.stdout.as_deref().filter(|_| self.terminal)?;
        Some(sys::set_window_size(stream.fd(), rows, columns))
    }
}
