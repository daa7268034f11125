//! Images of containers, by the streams socket of their sandbox (docs/sentry.md, "Checkpoint and restore").
//!
//! How long writing or reading one takes is not known. So it is asked now and then how far it has come, and given up when that stays the same.

use std::io::BufReader;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::agent::AgentError;
use crate::streams;

/// How long the sandbox may take to answer at once.
const LIMIT: Duration = Duration::from_secs(30);
/// How long nothing may move.
const STALLS: Duration = Duration::from_secs(60);
/// Between two questions how far it has come.
const ASKED: Duration = Duration::from_secs(2);

/// Hands over the image that the container which is made next is made of.
///
/// # Errors
/// The sentry says no, or cannot be reached.
pub fn hand_over(folder: &Path, container: &str, image: BorrowedFd<'_>) -> Result<(), AgentError> {
    let request = format!("{}\n", json!({"container": container, "image": "restore"}));
    let line = streams::ask(folder, &request, &[image.as_raw_fd()], LIMIT)?;
    streams::said(&line, "ok").map(drop)
}

/// Has a container written to an image, and go on at once.
///
/// # Errors
/// The sentry says no, with all that cannot be kept, or cannot be reached.
pub fn save(folder: &Path, container: &str, image: BorrowedFd<'_>) -> Result<(), AgentError> {
    let socket = written(folder, container, image, "leave-running")?;
    streams::said(&streams::receive(&mut BufReader::new(&socket))?, "ok").map(drop)
}

/// Has a container written to an image, and ends it when `keep` has kept that. Without it, it goes on.
///
/// # Errors
/// What `keep` says; as [`save`]. Where the sentry refuses after `keep` the container has gone on, and the image is one of before.
pub fn save_and_end<E: From<AgentError>>(
    folder: &Path,
    container: &str,
    image: BorrowedFd<'_>,
    keep: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let socket = written(folder, container, image, "checkpoint")?;
    let mut from = BufReader::new(&socket);
    streams::said(&streams::receive(&mut from)?, "written")?;
    // Where this fails the socket is closed, and the container goes on.
    keep()?;
    streams::send(&socket, "{\"kept\":true}\n", &[])?;
    match streams::receive(&mut from) {
        // With the container its sandbox may have ended, and with that the socket.
        Ok(line) if line.is_empty() => Ok(()),
        Ok(line) => Ok(streams::said(&line, "ok").map(drop)?),
        Err(_) => Ok(()),
    }
}

/// Asks for an image to be written, and waits for the answer, which is there to be read.
fn written(
    folder: &Path,
    container: &str,
    image: BorrowedFd<'_>,
    what: &str,
) -> Result<UnixStream, AgentError> {
    let request = format!("{}\n", json!({"container": container, "image": what}));
    let socket = streams::connect(folder, LIMIT)?;
    streams::send(&socket, &request, &[image.as_raw_fd()])?;
    wait(folder, container, socket.as_fd())?;
    Ok(socket)
}

/// Waits until there is something to read, as long as what is done with the container's image goes on.
///
/// # Errors
/// Nothing moves any more; the sandbox does not answer.
pub fn wait(folder: &Path, container: &str, socket: BorrowedFd<'_>) -> Result<(), AgentError> {
    let request = format!("{}\n", json!({"container": container, "progress": true}));
    let moved = || {
        let line = streams::ask(folder, &request, &[], LIMIT)?;
        streams::said(&line, "progress")
    };
    wait_while(socket, moved, (ASKED, STALLS))
}

fn wait_while(
    socket: BorrowedFd<'_>,
    mut moved: impl FnMut() -> Result<Value, AgentError>,
    (asked, stalls): (Duration, Duration),
) -> Result<(), AgentError> {
    let (mut known, mut since) = (Value::Null, Instant::now());
    loop {
        if is_readable(socket, asked)? {
            return Ok(());
        }
        match moved() {
            Ok(now) if now != known => (known, since) = (now, Instant::now()),
            // It may not have begun.
            Ok(_) | Err(AgentError::Refused { .. }) if since.elapsed() < stalls => {}
            // The answer may have come while the question was under way.
            _ if is_readable(socket, Duration::ZERO)? => return Ok(()),
            Ok(_) => return Err(stalled()),
            Err(error) => return Err(error),
        }
    }
}

fn stalled() -> AgentError {
    let source = std::io::ErrorKind::TimedOut.into();
    AgentError::Unreachable { what: "waiting for the image: nothing of it moves any more", source }
}

fn is_readable(socket: BorrowedFd<'_>, within: Duration) -> Result<bool, AgentError> {
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], within) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(AgentError::Unreachable { what: "waiting for the image", source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TIMES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(300));

    #[test]
    fn what_moves_may_take_long_and_what_stands_still_may_not() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let begin = Instant::now();
        let mut asked = 0;
        let moved = || {
            asked += 1;
            // Four times as long as it may stand still.
            if begin.elapsed() > TIMES.1 * 4 {
                theirs.write_all(b"x").unwrap();
            }
            // It has not moved each time, and never stands still for so long.
            Ok(Value::from(asked / 2))
        };
        wait_while(ours.as_fd(), moved, TIMES).unwrap();
        assert!(asked > 4 && begin.elapsed() > TIMES.1 * 4, "{asked}");

        let (ours, _theirs) = UnixStream::pair().unwrap();
        let begin = Instant::now();
        let error = wait_while(ours.as_fd(), || Ok(Value::from(7)), TIMES).unwrap_err().to_string();
        assert!(error.contains("nothing of it moves any more"), "{error}");
        assert!(begin.elapsed() >= TIMES.1);
        let refused = || Err(AgentError::Refused { code: 13, message: "no".to_owned() });
        let error = wait_while(ours.as_fd(), refused, TIMES).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }

    #[test]
    fn an_answer_counts_more_than_a_question_that_failed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let moved = || {
            theirs.write_all(b"x").unwrap();
            Err(AgentError::Refused { code: 13, message: "no".to_owned() })
        };
        wait_while(ours.as_fd(), moved, TIMES).unwrap();
    }
}
