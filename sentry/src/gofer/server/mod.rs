//! The gofer's side: carries requests out on the host's files.
//!
//! Nothing that comes from the sentry is believed. A message that is none ends the gofer. A handle that is nobody's is EBADF; what an export
//! does not allow is EROFS, whatever the sentry should have checked; names are single names, looked up below a descriptor and along no link.

mod change;
mod handles;
mod host;
mod look;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;

use self::handles::{Handles, Held};
use self::host::Descriptors;
use super::channel::{Channel, pair};
use super::wire::{Malformed, Request, Writer, failure};
use crate::error::Errno;

/// Connections of one sentry at most: a thread for each.
const CONNECTIONS_MAX: usize = 16;
/// A thread's stack.
const STACK: usize = 256 << 10;

/// What is exported.
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    pub(super) writable: bool,
}

/// What all connections share.
pub(super) struct Server {
    roots: Vec<Root>,
    handles: Handles,
    descriptors: Descriptors,
    connections: std::sync::atomic::AtomicUsize,
}

/// What is sent back.
pub(super) struct Answer {
    message: Writer,
    file: Option<OwnedFd>,
}

impl Answer {
    fn new() -> Self {
        let mut message = Writer(Vec::with_capacity(256));
        message.u8(0);
        Self { message, file: None }
    }

    fn with(write: impl FnOnce(&mut Writer) -> &mut Writer) -> Self {
        let mut answer = Self::new();
        write(&mut answer.message);
        answer
    }
}

/// Why a connection ended.
pub(super) enum End {
    /// The sentry closed it.
    Closed,
    /// The sentry said what is no request.
    Malformed,
    /// Of the host.
    Failed(Errno),
}

impl From<Malformed> for End {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Errno> for End {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

impl Server {
    /// `descriptors` is `/proc/self/fd` and the working folder.
    pub(super) fn new(roots: Vec<Root>, descriptors: OwnedFd) -> Arc<Self> {
        Self::build(roots, Descriptors::here(descriptors))
    }

    /// In a process that has its root still.
    pub(super) fn within(roots: Vec<Root>) -> Result<Arc<Self>, Errno> {
        Ok(Self::build(roots, Descriptors::of_proc()?))
    }

    fn build(roots: Vec<Root>, descriptors: Descriptors) -> Arc<Self> {
        let connections = std::sync::atomic::AtomicUsize::new(1);
        Arc::new(Self { roots, handles: Handles::default(), descriptors, connections })
    }

    /// Answers what comes over a connection until it ends.
    pub(super) fn serve(self: &Arc<Self>, socket: OwnedFd) -> End {
        let mut channel = Channel::new(socket);
        loop {
            if let Err(end) = self.serve_one(&mut channel) {
                return end;
            }
        }
    }

    fn serve_one(self: &Arc<Self>, channel: &mut Channel) -> Result<(), End> {
        let request = match channel.receive() {
            Ok(Some(message)) if message.file.is_none() && !message.file_lost => {
                Request::decode(message.bytes)?
            }
            Ok(Some(_)) | Err(Errno::EMSGSIZE) => return Err(End::Malformed),
            Ok(None) => return Err(End::Closed),
            Err(errno) => return Err(errno.into()),
        };
        let answer = match request {
            Request::Close(handles) => {
                handles.iter().for_each(|handle| self.handles.remove(*handle));
                return Ok(());
            }
            Request::List { at, attributes } => match self.list(channel, &at, attributes) {
                Ok(()) => return Ok(()),
                Err(look::ListError::Channel(end)) => return Err(end),
                Err(look::ListError::Host(errno)) => Err(errno),
            },
            request => self.answer(request),
        };
        match answer {
            Ok(answer) => channel.send(&answer.message.0, answer.file.as_ref().map(AsFd::as_fd))?,
            Err(errno) => channel.send(&failure(errno), None)?,
        }
        Ok(())
    }

    fn answer(self: &Arc<Self>, request: Request) -> Result<Answer, Errno> {
        match request {
            Request::Attach(number) => self.attach(number),
            Request::Connect => self.connect(),
            Request::Walk(at, want) => self.walk(&at, want),
            Request::Status(handle) => self.status(handle),
            Request::Sync(handle) => self.sync(handle),
            Request::Xattr(at, name) => self.xattr(&at, &name),
            Request::Xattrs(at) => self.xattrs(&at),
            Request::Create { folder, name, made } => self.create(folder, &name, &made),
            Request::Temporary { folder, made } => self.temporary(folder, &made),
            Request::Link { folder, name, file } => self.link(folder, &name, file),
            Request::Unlink { folder, name, as_folder } => self.unlink(folder, &name, as_folder),
            Request::Rename { folder, name, to, to_name, mode } => {
                self.rename((folder, &name), (to, &to_name), mode)
            }
            Request::Change(handle, change) => self.change(handle, &change),
            Request::SetXattr { at, name, value, mode } => self.set_xattr(at, &name, &value, mode),
            Request::RemoveXattr(at, name) => self.remove_xattr(at, &name),
            // They were answered before.
            Request::Close(_) | Request::List { .. } => Err(Errno::EINVAL),
        }
    }

    fn attach(&self, number: u32) -> Result<Answer, Errno> {
        let root = usize::try_from(number).ok().and_then(|number| self.roots.get(number));
        let root = root.ok_or(Errno::ENOENT)?;
        let fd = nix::fcntl::fcntl(&root.fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(0))?;
        self.found_answer(host::descriptor(fd)?, root.writable)
    }

    /// A handle for a new descriptor, and what it stands for.
    fn found_answer(&self, fd: OwnedFd, writable: bool) -> Result<Answer, Errno> {
        let found = self.hold(fd, writable)?;
        Ok(Answer::with(|to| to.found(&found)))
    }

    fn connect(self: &Arc<Self>) -> Result<Answer, Errno> {
        use std::sync::atomic::Ordering::AcqRel;
        if self.connections.fetch_add(1, AcqRel) >= CONNECTIONS_MAX {
            self.connections.fetch_sub(1, AcqRel);
            return Err(Errno::ENFILE);
        }
        let (ours, theirs) = pair()?;
        let server = Arc::clone(self);
        let thread = std::thread::Builder::new().name("connection".to_owned()).stack_size(STACK);
        let serve = move || {
            let end = server.serve(ours);
            server.connections.fetch_sub(1, AcqRel);
            super::program::connection_ended(&end);
        };
        thread.spawn(serve).map_err(|_| Errno::EAGAIN)?;
        Ok(Answer { file: Some(theirs), ..Answer::new() })
    }

    /// The file that a handle stands for, to be changed.
    fn writable(&self, handle: super::wire::Handle) -> Result<Arc<Held>, Errno> {
        let held = self.handles.find(handle)?;
        if held.writable { Ok(held) } else { Err(Errno::EROFS) }
    }
}

/// Flags of what is held as a place only.
const PLACE: OFlag = OFlag::O_PATH;
