//! The agent's API, spoken without a runtime of its own: one question and one answer at a time on a Unix socket.
//!
//! ttrpc frames are ten bytes (length, stream, type, flags; big-endian) and a message (ttrpc, PROTOCOL.md).

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kata_cc_agent_protocol::agent as api;
use protobuf::Message;
use thiserror::Error;
use ttrpc::proto::{MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, Request, Response};

const SERVICE: &str = "grpc.AgentService";
/// Names of the sockets in a sandbox' folder. They are reached through a descriptor of the folder: its path may be too long for a socket.
pub const AGENT_SOCKET: &str = "agent.sock";
/// See [`AGENT_SOCKET`].
pub const STREAMS_SOCKET: &str = "streams.sock";
/// Largest answer.
const MOST: u32 = 4 << 20;
/// How long a call may take that should be answered at once.
const LIMIT: Duration = Duration::from_secs(60);

/// Why a call fails.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The sentry says no.
    #[error("{message}")]
    Refused {
        /// gRPC code.
        code: i32,
        /// Its words.
        message: String,
    },
    /// It cannot be asked.
    #[error("the sentry of the sandbox cannot be reached ({what}): {source}")]
    Unreachable {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: std::io::Error,
    },
    /// It answers what cannot be.
    #[error("the sentry's answer to {method} is not understood: {reason}")]
    Answer {
        /// What was asked.
        method: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl AgentError {
    /// Whether it says that there is no such container or process (NOT_FOUND, or INVALID_ARGUMENT for containers).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code: 5, .. })
            || matches!(self, Self::Refused { code: 3, message } if message.contains("does not exist"))
    }
}

/// Connects to a socket in a folder.
///
/// # Errors
/// What the host says.
pub fn connect(folder: &Path, name: &str) -> std::io::Result<UnixStream> {
    let folder = std::fs::File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// A connection.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    next: u32,
}

impl Agent {
    /// To the sentry whose sockets are in a folder.
    ///
    /// # Errors
    /// It does not listen there.
    pub fn connect(folder: &Path) -> Result<Self, AgentError> {
        let stream = connect(folder, AGENT_SOCKET)
            .map_err(|source| AgentError::Unreachable { what: "connecting", source })?;
        Ok(Self::over(stream))
    }

    /// Over a connection that is there.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, next: 1 }
    }

    /// Asks and waits for the answer, for a minute.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn call<A: Message>(
        &mut self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, AgentError> {
        self.call_within(method, request, Some(LIMIT))
    }

    /// The same, for as long as it takes without a limit.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn call_within<A: Message>(
        &mut self,
        method: &'static str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<A, AgentError> {
        self.call_when(method, request, limit, |_| Ok(()))
    }

    /// The same, where `wait` waits until there is an answer to read.
    ///
    /// # Errors
    /// See [`AgentError`]; what `wait` says.
    pub fn call_when<A: Message>(
        &mut self,
        method: &'static str,
        request: &impl Message,
        limit: Option<Duration>,
        wait: impl FnOnce(BorrowedFd<'_>) -> Result<(), AgentError>,
    ) -> Result<A, AgentError> {
        let unreachable = |what| move |source| AgentError::Unreachable { what, source };
        let odd = |reason: String| AgentError::Answer { method, reason };
        let stream_id = self.next;
        // Odd numbers are the client's.
        self.next = self.next.wrapping_add(2);
        let frame = frame(method, request, stream_id, limit).map_err(|error| odd(error.to_string()))?;
        self.stream.set_read_timeout(limit).map_err(unreachable("setting the time limit"))?;
        self.stream.write_all(&frame).map_err(unreachable("sending"))?;
        wait(self.stream.as_fd())?;
        let answer = loop {
            let (header, payload) = self.receive().map_err(unreachable("receiving"))?;
            // An answer to a question that was given up may come late.
            if header.0 == stream_id && header.1 == MESSAGE_TYPE_RESPONSE {
                break payload;
            }
        };
        let response = Response::parse_from_bytes(&answer).map_err(|error| odd(error.to_string()))?;
        if let Some(status) = response.status.as_ref()
            && status.code.value() != 0
        {
            return Err(AgentError::Refused { code: status.code.value(), message: status.message.clone() });
        }
        A::parse_from_bytes(&response.payload).map_err(|error| odd(error.to_string()))
    }

    /// Stream and type of a frame, and its message.
    fn receive(&mut self) -> std::io::Result<((u32, u8), Vec<u8>)> {
        let mut header = [0; 10];
        self.stream.read_exact(&mut header)?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if length > MOST {
            return Err(std::io::Error::other(format!("an answer of {length} bytes")));
        }
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(((u32::from_be_bytes([s0, s1, s2, s3]), kind), payload))
    }

    /// Waits for the end of a process; its exit code.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn wait(&mut self, container: &str, exec: &str) -> Result<u8, AgentError> {
        let mut request = api::WaitProcessRequest::new();
        request.container_id = container.to_owned();
        request.exec_id = exec.to_owned();
        let answer: api::WaitProcessResponse = self.call_within("WaitProcess", &request, None)?;
        Ok(u8::try_from(answer.status).unwrap_or(255))
    }

    /// Sends a signal to a process.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn signal(&mut self, container: &str, exec: &str, signal: u32) -> Result<(), AgentError> {
        let mut request = api::SignalProcessRequest::new();
        request.container_id = container.to_owned();
        request.exec_id = exec.to_owned();
        request.signal = signal;
        self.call::<protobuf::well_known_types::empty::Empty>("SignalProcess", &request).map(drop)
    }

    /// Tells a process the size of its terminal.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn resize(&mut self, container: &str, exec: &str, rows: u32, columns: u32) -> Result<(), AgentError> {
        let mut request = api::TtyWinResizeRequest::new();
        request.container_id = container.to_owned();
        request.exec_id = exec.to_owned();
        request.row = rows;
        request.column = columns;
        self.call::<protobuf::well_known_types::empty::Empty>("TtyWinResize", &request).map(drop)
    }
}

fn frame(
    method: &str,
    message: &impl Message,
    stream_id: u32,
    limit: Option<Duration>,
) -> protobuf::Result<Vec<u8>> {
    let mut request = Request::new();
    SERVICE.clone_into(&mut request.service);
    method.clone_into(&mut request.method);
    request.payload = message.write_to_bytes()?;
    request.timeout_nano = limit.and_then(|limit| i64::try_from(limit.as_nanos()).ok()).unwrap_or_default();
    let body = request.write_to_bytes()?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(10 + body.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&stream_id.to_be_bytes());
    frame.extend_from_slice(&[MESSAGE_TYPE_REQUEST, 0]);
    frame.extend_from_slice(&body);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each question by a function of its message.
    fn served(answer: impl Fn(Request) -> Vec<u8> + Send + 'static) -> Agent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut peer = Agent::over(theirs);
            while let Ok(((stream, _), payload)) = peer.receive() {
                let body = answer(Request::parse_from_bytes(&payload).unwrap());
                let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
                frame.extend(stream.to_be_bytes());
                frame.extend([MESSAGE_TYPE_RESPONSE, 0]);
                frame.extend(body);
                // One for nobody first.
                let mut stray = 0u32.to_be_bytes().to_vec();
                stray.extend([0, 0, 0, 99, MESSAGE_TYPE_RESPONSE, 0]);
                peer.stream.write_all(&stray).unwrap();
                peer.stream.write_all(&frame).unwrap();
            }
        });
        Agent::over(ours)
    }

    #[test]
    fn questions_are_answered() {
        let mut agent = served(|request| {
            assert_eq!((request.service.as_str(), request.method.as_str()), (SERVICE, "WaitProcess"));
            let asked = api::WaitProcessRequest::parse_from_bytes(&request.payload).unwrap();
            let mut answer = api::WaitProcessResponse::new();
            answer.status = if asked.exec_id.is_empty() { 7 } else { 137 };
            let mut response = Response::new();
            response.payload = answer.write_to_bytes().unwrap();
            response.write_to_bytes().unwrap()
        });
        assert_eq!(agent.wait("c", "").unwrap(), 7);
        assert_eq!(agent.wait("c", "e").unwrap(), 137);
    }

    #[test]
    fn refusals_and_garbage_are_errors() {
        let mut agent = served(|_| {
            let mut response = Response::new();
            let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no e");
            response.status = Some(status).into();
            response.write_to_bytes().unwrap()
        });
        let error = agent.signal("c", "e", 9).unwrap_err();
        assert!(error.is_missing() && error.to_string() == "no e");
        let mut agent = served(|_| vec![0xff; 5]);
        assert!(matches!(agent.signal("c", "e", 9), Err(AgentError::Answer { method: "SignalProcess", .. })));
    }

    #[test]
    fn an_end_of_the_connection_is_one() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(Agent::over(ours).wait("c", ""), Err(AgentError::Unreachable { .. })));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[0xff; 10]).unwrap();
        let error = Agent::over(ours).wait("c", "").unwrap_err().to_string();
        assert!(error.contains("4294967295 bytes"), "{error}");
    }
}
