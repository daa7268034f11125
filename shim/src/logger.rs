//! Logger programs (`binary://`): one per process, fed through pipes.
//!
//! The program gets stdout's data on descriptor 3, stderr's on 4, and closes 5 when it is ready; its environment is
//! `CONTAINER_ID` and `CONTAINER_NAMESPACE` only. When the process has ended and the pipes are closed, it has twelve
//! seconds to end before it is told to, and then killed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

const READY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(12);

/// A running logger.
#[derive(Debug)]
pub struct Logger {
    pid: Pid,
}

impl Logger {
    /// Start it and wait until it is ready; the pipes to write to.
    pub async fn start(
        program: &Path,
        arguments: &[String],
        container: &str,
        namespace: &str,
    ) -> io::Result<(Self, pipe::Sender, pipe::Sender)> {
        let stdout = high_pipe()?;
        let stderr = high_pipe()?;
        let ready = high_pipe()?;
        let given = [(&stdout.0, 3), (&stderr.0, 4), (&ready.1, 5)];
        let pid = spawn(program, arguments, container, namespace, &given)?;
        let logger = Self { pid };
        drop((stdout.0, stderr.0, ready.1));
        let mut ready = pipe::Receiver::from_owned_fd(ready.0)?;
        let mut byte = [0];
        // Closing means ready; a byte (binary-v2) does too.
        if tokio::time::timeout(READY, ready.read(&mut byte)).await.is_err() {
            logger.end(Duration::ZERO).await;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not get ready"));
        }
        Ok((logger, pipe::Sender::from_owned_fd(stdout.1)?, pipe::Sender::from_owned_fd(stderr.1)?))
    }

    /// Wait for its end, as long as it may take.
    pub async fn finish(self) {
        self.end(PATIENCE).await;
    }

    async fn end(self, patience: Duration) {
        let pid = self.pid;
        let mut gone = tokio::task::spawn_blocking(move || waitpid(pid, None).is_ok());
        for (patience, signal) in [(patience, Signal::SIGTERM), (Duration::from_secs(1), Signal::SIGKILL)] {
            if tokio::time::timeout(patience, &mut gone).await.is_ok() {
                return;
            }
            let _ = kill(pid, signal);
        }
        let _ = gone.await;
    }
}

/// Start the program with these descriptors.
fn spawn(
    program: &Path,
    arguments: &[String],
    container: &str,
    namespace: &str,
    given: &[(&OwnedFd, i32)],
) -> io::Result<Pid> {
    let mut actions = PosixSpawnFileActions::init()?;
    for (from, to) in given {
        actions.add_dup2(from.as_raw_fd(), *to)?;
    }
    let path = CString::new(program.as_os_str().as_bytes())?;
    let mut words = vec![path.clone()];
    for argument in arguments {
        words.push(CString::new(argument.as_bytes())?);
    }
    let variable = |name: &str, value: &str| CString::new(format!("{name}={value}"));
    let environment = [variable("CONTAINER_ID", container)?, variable("CONTAINER_NAMESPACE", namespace)?];
    Ok(posix_spawn(path.as_c_str(), &actions, &PosixSpawnAttr::init()?, &words, &environment)?)
}

/// A pipe whose descriptors do not collide with those the program is given.
fn high_pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    let mut low = Vec::new();
    loop {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        if read.as_raw_fd() > 5 && write.as_raw_fd() > 5 {
            return Ok((read, write));
        }
        low.push((read, write));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_logger_gets_both_streams_and_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let script = format!(
            "exec 5>&-; cat <&3 >{0}.1; cat <&4 >{0}.2; echo $CONTAINER_ID $CONTAINER_NAMESPACE $1 >{0}.3",
            out.display()
        );
        let arguments = ["-c".to_owned(), script, "sh".into(), "word".into()];
        let (logger, mut stdout, mut stderr) =
            Logger::start(Path::new("/bin/sh"), &arguments, "c1", "n1").await.unwrap();
        stdout.write_all(b"1").await.unwrap();
        stderr.write_all(b"2").await.unwrap();
        drop((stdout, stderr));
        logger.finish().await;
        let read = |n: u8| std::fs::read_to_string(format!("{}.{n}", out.display())).unwrap();
        assert_eq!((read(1).as_str(), read(2).as_str(), read(3).as_str()), ("1", "2", "c1 n1 word\n"));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error() {
        assert!(Logger::start(Path::new("/nowhere/logger"), &[], "c", "n").await.is_err());
    }
}
