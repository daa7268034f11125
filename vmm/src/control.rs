//! The control socket: one JSON request per line, one JSON reply per line, in order. One thread serves all
//! connections; it never waits for a client.
//!
//! Limits: 16 connections, 64 KiB per line, one second for a client to take a reply.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kata_cc_vmm_api::{ControlReply, ControlRequest};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::error::VmmError;
use crate::vm::{Outcome, Vm};

const MAX_CONNECTIONS: usize = 16;
const MAX_LINE: usize = 64 << 10;
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// The listening socket; removed when dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens. A socket that nobody listens on any more is replaced, any other file is not.
    ///
    /// # Errors
    /// When the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self, VmmError> {
        let failed = |source| VmmError::File { what: "control socket".into(), path: path.into(), source };
        let listener = bind_private(path).map_err(failed)?;
        Ok(Self { listener, path: path.into() })
    }

    /// Serves until `stop` is written to.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn serve(self, vm: Arc<Vm>, stop: Arc<EventFd>) -> Result<JoinHandle<()>, VmmError> {
        std::thread::Builder::new()
            .name("control".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let mut server = Server { socket: self, vm, clients: Vec::new() };
                if let Err(error) = server.run(&stop) {
                    tracing::error!(%error, "control socket failed");
                }
            })
            .map_err(VmmError::system("control thread"))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds a socket that only its owner can connect to.
pub(crate) fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(std::io::Error::other("is there and is not a socket"));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::from(std::io::ErrorKind::AddrInUse));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

struct Server {
    socket: ControlSocket,
    vm: Arc<Vm>,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Server {
    fn run(&mut self, stop: &EventFd) -> std::io::Result<()> {
        loop {
            // stop, listener, then the clients in order
            let ready = {
                let mut fds = vec![poll_fd(stop), poll_fd(&self.socket.listener)];
                fds.extend(self.clients.iter().map(|client| poll_fd(&client.stream)));
                match poll(&mut fds, PollTimeout::NONE) {
                    Err(nix::Error::EINTR) => continue,
                    other => other?,
                };
                fds.iter().map(|fd| fd.any().unwrap_or(true)).collect::<Vec<_>>()
            };
            if ready.first() == Some(&true) {
                return Ok(());
            }
            // from the last, so that removing one does not shift those that follow
            for index in (0..self.clients.len()).rev() {
                if ready.get(index + 2) == Some(&true) && !self.clients[index].serve(&self.vm) {
                    self.clients.swap_remove(index);
                }
            }
            if ready.get(1) == Some(&true) {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.socket.listener.accept() else {
            return;
        };
        if self.clients.len() >= MAX_CONNECTIONS {
            tracing::warn!("more than {MAX_CONNECTIONS} control connections: one more refused");
            return;
        }
        let usable =
            stream.set_nonblocking(false).is_ok() && stream.set_write_timeout(Some(REPLY_TIMEOUT)).is_ok();
        if usable {
            self.clients.push(Client { stream, input: Vec::new() });
        }
    }
}

fn poll_fd<F: AsFd>(fd: &F) -> PollFd<'_> {
    PollFd::new(fd.as_fd(), PollFlags::POLLIN)
}

impl Client {
    /// Reads what is there and answers each complete line; `false` when the connection is over.
    fn serve(&mut self, vm: &Vm) -> bool {
        let mut buffer = [0u8; 4096];
        let count = match self.stream.read(&mut buffer) {
            Ok(count) if count > 0 => count,
            _ => return false,
        };
        self.input.extend_from_slice(&buffer[..count]);
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if line.trim_ascii().is_empty() {
                continue;
            }
            let (reply, stop) = answer(vm, &line);
            if !self.send(&reply) {
                return false;
            }
            if stop {
                vm.end().now(Outcome::Stopped);
            }
        }
        if self.input.len() > MAX_LINE {
            self.send(&error("a request has more than 64 KiB"));
            return false;
        }
        true
    }

    fn send(&mut self, reply: &ControlReply) -> bool {
        let Ok(mut text) = serde_json::to_vec(reply) else {
            return false;
        };
        text.push(b'\n');
        self.stream.write_all(&text).is_ok()
    }
}

fn error(message: impl Into<String>) -> ControlReply {
    ControlReply::Error { message: message.into() }
}

/// The reply, and whether the VM has to end after it is sent.
fn answer(vm: &Vm, line: &[u8]) -> (ControlReply, bool) {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(e) => return (error(format!("not a request: {e}")), false),
    };
    tracing::debug!(?request, "control request");
    let done = |result: Result<(), String>| match result {
        Ok(()) => ControlReply::Done,
        Err(message) => {
            tracing::warn!(message, "control request refused");
            error(message)
        }
    };
    let reply = match request {
        ControlRequest::State => ControlReply::State(vm.state()),
        ControlRequest::Metrics => ControlReply::Metrics(vm.metrics()),
        ControlRequest::Pause => done(vm.pause()),
        ControlRequest::Resume => done(vm.resume()),
        ControlRequest::AttachBlock { slot, path } => done(vm.slots().attach(&slot, &path)),
        ControlRequest::DetachBlock { slot } => done(vm.slots().detach(&slot)),
        ControlRequest::Stop => return (ControlReply::Done, true),
    };
    (reply, false)
}
