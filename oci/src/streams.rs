//! Handing descriptors of the host to the sentry, as the streams of a process that is about to be made (docs/sentry.md, "Streams").

use std::io::{BufRead, BufReader, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::agent::{self, AgentError, STREAMS_SOCKET};

/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest answer.
const MOST: u64 = 16384;

/// What a process gets.
#[derive(Clone, Copy, Debug)]
pub enum Streams<'a> {
    /// Its three streams.
    Pipes([BorrowedFd<'a>; 3]),
    /// A terminal of the host.
    Terminal(BorrowedFd<'a>),
}

/// Hands them over.
///
/// # Errors
/// See [`AgentError`].
pub fn hand_over(folder: &Path, container: &str, exec: &str, streams: Streams<'_>) -> Result<(), AgentError> {
    hand_over_with(folder, container, exec, streams, &[])
}

/// The same, with further descriptors, which the process has from 3 on.
///
/// # Errors
/// See [`AgentError`].
pub fn hand_over_with(
    folder: &Path,
    container: &str,
    exec: &str,
    streams: Streams<'_>,
    more: &[OwnedFd],
) -> Result<(), AgentError> {
    let (request, descriptors) = request(container, exec, streams, more);
    judge(&ask(folder, &request, &descriptors, LIMIT)?)
}

/// Asks something, and reads a line of answer.
///
/// # Errors
/// See [`AgentError`].
pub(crate) fn ask(
    folder: &Path,
    request: &str,
    descriptors: &[RawFd],
    limit: Duration,
) -> Result<String, AgentError> {
    let socket = connect(folder, limit)?;
    send(&socket, request, descriptors)?;
    receive(&mut BufReader::new(&socket))
}

pub(crate) fn connect(folder: &Path, limit: Duration) -> Result<UnixStream, AgentError> {
    let socket = agent::connect(folder, STREAMS_SOCKET).map_err(lost("connecting for streams"))?;
    socket.set_read_timeout(Some(limit)).map_err(lost("setting the time limit"))?;
    Ok(socket)
}

pub(crate) fn send(socket: &UnixStream, request: &str, descriptors: &[RawFd]) -> Result<(), AgentError> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights };
    let bytes = [IoSlice::new(request.as_bytes())];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None);
    let sent = sent.map_err(|errno| lost("handing over streams")(errno.into()))?;
    if sent != request.len() {
        return Err(lost("handing over streams")(std::io::ErrorKind::WriteZero.into()));
    }
    Ok(())
}

pub(crate) fn receive(from: &mut impl BufRead) -> Result<String, AgentError> {
    let mut line = String::new();
    from.take(MOST).read_line(&mut line).map_err(lost("receiving the answer"))?;
    Ok(line)
}

fn lost(what: &'static str) -> impl FnOnce(std::io::Error) -> AgentError {
    move |source| AgentError::Unreachable { what, source }
}

fn request(container: &str, exec: &str, streams: Streams<'_>, more: &[OwnedFd]) -> (String, Vec<RawFd>) {
    let (mut body, mut descriptors): (Value, Vec<RawFd>) = match streams {
        Streams::Pipes(all) => (
            json!({"container": container, "exec": exec, "streams": ["stdin", "stdout", "stderr"]}),
            all.iter().map(AsRawFd::as_raw_fd).collect(),
        ),
        Streams::Terminal(terminal) => {
            (json!({"container": container, "exec": exec, "terminal": true}), vec![terminal.as_raw_fd()])
        }
    };
    if !more.is_empty() {
        body["more"] = json!(more.len());
        descriptors.extend(more.iter().map(AsRawFd::as_raw_fd));
    }
    (format!("{body}\n"), descriptors)
}

fn judge(line: &str) -> Result<(), AgentError> {
    match said(line, "ok")? {
        Value::Bool(true) => Ok(()),
        _ => Err(AgentError::Answer { method: "streams", reason: format!("{line:?}") }),
    }
}

/// What an answer says of `key`.
pub(crate) fn said(line: &str, key: &str) -> Result<Value, AgentError> {
    let odd = |reason: String| AgentError::Answer { method: "streams", reason };
    let mut answer: Value = serde_json::from_str(line).map_err(|error| odd(format!("{line:?}: {error}")))?;
    match (answer.get_mut(key).map(Value::take), answer["error"].as_str()) {
        (Some(value), _) => Ok(value),
        (_, Some(message)) => Err(AgentError::Refused { code: 13, message: message.to_owned() }),
        _ => Err(odd(format!("{line:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn descriptors_travel_with_the_request() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(STREAMS_SOCKET)).unwrap();
        let served = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut text = [0; 256];
            let mut space = nix::cmsg_space!([RawFd; 3]);
            let mut parts = [std::io::IoSliceMut::new(&mut text)];
            let received = nix::sys::socket::recvmsg::<()>(
                peer.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::empty(),
            )
            .unwrap();
            let rights = received.cmsgs().unwrap().map(|message| match message {
                nix::sys::socket::ControlMessageOwned::ScmRights(all) => all.len(),
                _ => 0,
            });
            let count: usize = rights.sum();
            let length = received.bytes;
            peer.write_all(b"{\"ok\":true}\n").unwrap();
            (String::from_utf8_lossy(&text[..length]).into_owned(), count)
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        hand_over(dir.path(), "c", "e", Streams::Pipes([null.as_fd(); 3])).unwrap();
        let (text, count) = served.join().unwrap();
        assert_eq!(count, 3);
        let value: Value = serde_json::from_str(text.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(value, json!({"container": "c", "exec": "e", "streams": ["stdin", "stdout", "stderr"]}));
    }

    #[test]
    fn further_descriptors_come_last() {
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let more = [null];
        let (text, descriptors) = request("c", "", Streams::Terminal(more[0].as_fd()), &more);
        let value: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(value, json!({"container": "c", "exec": "", "terminal": true, "more": 1}));
        assert_eq!(descriptors, [more[0].as_raw_fd(); 2]);
    }

    #[test]
    fn answers_are_judged() {
        judge("{\"ok\":true}\n").unwrap();
        assert_eq!(judge("{\"error\":\"no\"}\n").unwrap_err().to_string(), "no");
        for odd in ["", "x", "{}", "{\"ok\":false}"] {
            assert!(matches!(judge(odd), Err(AgentError::Answer { .. })), "{odd}");
        }
    }
}
