//! The sentry's side: asks the gofer, and believes nothing but that its answers are about files.
//!
//! There are a few connections, each used by one thread at a time: what a thread asks is answered on its own connection, so nobody waits for
//! somebody else's file unless all are in use. The first answer that is none, or that does not come, ends them all: from then on everything
//! is EIO.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::PollTimeout;
use thiserror::Error;

use super::channel::Channel;
use super::wire::{
    Access, At, CLOSE_MAX, Found, Handle, Listed, Made, Malformed, Reader, Request, Want, XATTR_MAX, outcome,
};
use crate::error::Errno;
use crate::events;
use crate::sync::lock;
use crate::vfs::{AttributeChange, FsStatus, RenameMode, XattrMode};

/// Connections, as many as are of use where a request takes microseconds.
const CONNECTIONS: usize = 4;
/// How long an answer may take: a disk or a network of the host's may be behind it.
const PATIENCE: Duration = Duration::from_secs(300);
/// So many handles are given back at once.
const CLOSE_AT: usize = 64;
/// Entries of a folder that are listed at most.
const ENTRIES_MAX: usize = 1 << 22;
/// Most bytes of what a gofer says about why it does not start.
pub(super) const TEXT_MAX: usize = 4096;
/// First word of a gofer: which protocol it speaks.
pub(super) const VERSION: u32 = 1;

/// Why there is no gofer to be asked.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// It says so itself.
    #[error("the gofer does not start: {0}")]
    Refused(String),
    /// It ended, or said what is no word of the protocol.
    #[error("the gofer does not answer: {0}")]
    Lost(&'static str),
}

/// Why a gofer is of no more use.
enum Loss {
    Closed,
    Malformed,
    Silent,
    Failed(Errno),
}

impl From<Malformed> for Loss {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Errno> for Loss {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            Errno::EMSGSIZE => Self::Malformed,
            errno => Self::Failed(errno),
        }
    }
}

impl Loss {
    fn text(&self) -> &'static str {
        match self {
            Self::Closed => "it ended",
            Self::Malformed => "it said what is no answer",
            Self::Silent => "no answer came",
            Self::Failed(errno) => errno.desc(),
        }
    }
}

/// A gofer that can be asked.
pub struct Client {
    idle: Mutex<Vec<Channel>>,
    freed: Condvar,
    lost: AtomicBool,
    closing: Mutex<Vec<Handle>>,
    patience: PollTimeout,
}

impl Client {
    /// Waits until the gofer at the other end is ready.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(socket: OwnedFd) -> Result<Arc<Self>, ConnectError> {
        Self::connect_with(socket, PATIENCE)
    }

    pub(super) fn connect_with(socket: OwnedFd, patience: Duration) -> Result<Arc<Self>, ConnectError> {
        let lost = |loss: Loss| ConnectError::Lost(loss.text());
        let mut channel = Channel::new(socket);
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        hello(&mut channel, patience).map_err(lost)?.map_err(ConnectError::Refused)?;
        let client = Self {
            idle: Mutex::new(vec![channel]),
            freed: Condvar::new(),
            lost: AtomicBool::new(false),
            closing: Mutex::default(),
            patience,
        };
        let failed = |_| ConnectError::Lost("it gives no further connection");
        let others = (1..CONNECTIONS).map(|_| client.ask_for_file(&Request::Connect, |_| Ok(())));
        let others = others.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        lock(&client.idle).extend(others.into_iter().map(|((), socket)| Channel::new(socket)));
        Ok(Arc::new(client))
    }

    /// Whether it is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn take(&self) -> Result<Channel, Errno> {
        let mut idle = lock(&self.idle);
        loop {
            if self.is_lost() {
                return Err(Errno::EIO);
            }
            if let Some(channel) = idle.pop() {
                return Ok(channel);
            }
            idle = self.freed.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put_back(&self, channel: Channel) {
        lock(&self.idle).push(channel);
        self.freed.notify_one();
    }

    fn lose(&self, loss: &Loss) -> Errno {
        if !self.lost.swap(true, Ordering::AcqRel) {
            tracing::error!("the gofer, which holds files of the host, is of no more use: {}", loss.text());
        }
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
        self.freed.notify_all();
        Errno::EIO
    }

    fn flush(&self, channel: &Channel) -> Result<(), Loss> {
        let handles = {
            let mut closing = lock(&self.closing);
            if closing.len() < CLOSE_AT {
                return Ok(());
            }
            std::mem::take(&mut *closing)
        };
        for part in handles.chunks(CLOSE_MAX) {
            channel.send(&Request::Close(part.to_vec()).encode(), None)?;
        }
        Ok(())
    }

    /// Sends a request and has `read` take what comes. The connection is used further only where it gives an answer.
    fn exchange<T>(
        &self,
        request: &Request,
        read: impl FnOnce(&mut Channel) -> Result<Result<T, Errno>, Loss>,
    ) -> Result<T, Errno> {
        events::wake_put_off();
        let mut channel = self.take()?;
        let _until_it_answers = events::Asks::begin();
        let answer = self
            .flush(&channel)
            .and_then(|()| Ok(channel.send(&request.encode(), None)?))
            .and_then(|()| read(&mut channel));
        match answer {
            Ok(answer) => {
                self.put_back(channel);
                answer
            }
            Err(loss) => {
                drop(channel);
                Err(self.lose(&loss))
            }
        }
    }

    fn ask<T>(
        &self,
        request: &Request,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Errno> {
        self.exchange(request, |channel| match next(channel, self.patience, read)? {
            (answer, None, false) => Ok(answer),
            _ => Err(Loss::Malformed),
        })
    }

    /// The same where a descriptor comes with the answer.
    fn ask_for_file<T>(
        &self,
        request: &Request,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<(T, OwnedFd), Errno> {
        self.exchange(request, |channel| match next(channel, self.patience, read)? {
            (Ok(answer), Some(file), false) => Ok(Ok((answer, file))),
            // This process has no number left for it.
            (Ok(_), None, true) => Ok(Err(Errno::ENFILE)),
            (Err(errno), None, false) => Ok(Err(errno)),
            _ => Err(Loss::Malformed),
        })
    }

    pub(crate) fn attach(&self, export: u32) -> Result<Found, Errno> {
        self.ask(&Request::Attach(export), with_handle)
    }

    /// Attributes of a file; the target of a link.
    pub(crate) fn look(&self, at: At) -> Result<Found, Errno> {
        self.ask(&Request::Walk(at, Want::Nothing), without_handle)
    }

    /// The same, and a descriptor to read it where it is a regular file and can be had.
    pub(crate) fn peek(&self, at: At) -> Result<(Found, Option<OwnedFd>), Errno> {
        let request = Request::Walk(at, Want::Peek);
        self.exchange(&request, |channel| match next(channel, self.patience, without_handle)? {
            (Ok(found), file, _) => Ok(Ok((found, file))),
            (Err(errno), None, false) => Ok(Err(errno)),
            _ => Err(Loss::Malformed),
        })
    }

    /// The same, with a handle.
    pub(crate) fn walk(&self, at: At) -> Result<Found, Errno> {
        self.ask(&Request::Walk(at, Want::Handle), with_handle)
    }

    /// Opens a regular file.
    pub(crate) fn open(&self, at: At, access: Access) -> Result<(Found, OwnedFd), Errno> {
        self.ask_for_file(&Request::Walk(at, Want::Open(access)), without_handle)
    }

    pub(crate) fn list(&self, at: At, attributes: u32) -> Result<Vec<Listed>, Errno> {
        self.exchange(&Request::List { at, attributes }, |channel| {
            let mut all = Vec::new();
            loop {
                let part = next(channel, self.patience, |from| {
                    let more = from.u8()? != 0;
                    while !from.is_empty() {
                        all.push(from.listed()?);
                    }
                    Ok(more)
                })?;
                match part {
                    (Err(errno), None, false) if all.is_empty() => return Ok(Err(errno)),
                    (Ok(false), None, false) => return Ok(Ok(all)),
                    (Ok(true), None, false) if all.len() <= ENTRIES_MAX => {}
                    _ => return Err(Loss::Malformed),
                }
            }
        })
    }

    pub(crate) fn status(&self, handle: Handle) -> Result<FsStatus, Errno> {
        self.ask(&Request::Status(handle), |from| {
            let (block_size, blocks, blocks_free) = (from.u64()?, from.u64()?, from.u64()?);
            let (files, files_free) = (from.u64()?, from.u64()?);
            Ok(FsStatus { magic: 0, block_size, blocks, blocks_free, files, files_free })
        })
    }

    pub(crate) fn sync(&self, handle: Handle) -> Result<(), Errno> {
        self.ask(&Request::Sync(handle), |_| Ok(()))
    }

    pub(crate) fn xattr(&self, at: At, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.ask(&Request::Xattr(at, name.to_vec()), |from| Ok(from.bytes(XATTR_MAX)?.to_vec()))
    }

    pub(crate) fn xattrs(&self, at: At) -> Result<Vec<Vec<u8>>, Errno> {
        let names = self.ask(&Request::Xattrs(at), |from| Ok(from.bytes(XATTR_MAX)?.to_vec()))?;
        Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// Makes a file. A regular one is opened as well.
    pub(crate) fn create(
        &self,
        folder: Handle,
        name: &[u8],
        made: Made,
    ) -> Result<(Found, Option<OwnedFd>), Errno> {
        let regular = made.kind == crate::vfs::FileKind::Regular;
        let request = Request::Create { folder, name: name.to_vec(), made };
        if regular {
            let (found, file) = self.ask_for_file(&request, with_handle)?;
            return Ok((found, Some(file)));
        }
        Ok((self.ask(&request, with_handle)?, None))
    }

    pub(crate) fn temporary(&self, folder: Handle, made: Made) -> Result<(Found, OwnedFd), Errno> {
        self.ask_for_file(&Request::Temporary { folder, made }, with_handle)
    }

    pub(crate) fn link(&self, folder: Handle, name: &[u8], file: Handle) -> Result<(), Errno> {
        self.ask(&Request::Link { folder, name: name.to_vec(), file }, |_| Ok(()))
    }

    /// Takes a name away; which file it stood for.
    pub(crate) fn unlink(&self, folder: Handle, name: &[u8], as_folder: bool) -> Result<(u64, u64), Errno> {
        let request = Request::Unlink { folder, name: name.to_vec(), as_folder };
        self.ask(&request, |from| Ok((from.u64()?, from.u64()?)))
    }

    /// Renames; which file the new name stood for.
    pub(crate) fn rename(
        &self,
        (folder, name): (Handle, &[u8]),
        (to, to_name): (Handle, &[u8]),
        mode: RenameMode,
    ) -> Result<(u64, u64), Errno> {
        let (name, to_name) = (name.to_vec(), to_name.to_vec());
        let request = Request::Rename { folder, name, to, to_name, mode };
        self.ask(&request, |from| Ok((from.u64()?, from.u64()?)))
    }

    pub(crate) fn change(&self, handle: Handle, change: &AttributeChange) -> Result<Found, Errno> {
        self.ask(&Request::Change(handle, *change), without_handle)
    }

    pub(crate) fn set_xattr(
        &self,
        at: Handle,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), Errno> {
        if value.len() > XATTR_MAX {
            return Err(Errno::E2BIG);
        }
        let (name, value) = (name.to_vec(), value.to_vec());
        self.ask(&Request::SetXattr { at, name, value, mode }, |_| Ok(()))
    }

    pub(crate) fn remove_xattr(&self, at: Handle, name: &[u8]) -> Result<(), Errno> {
        self.ask(&Request::RemoveXattr(at, name.to_vec()), |_| Ok(()))
    }

    /// Gives a handle back, at some time.
    pub(crate) fn close(&self, handle: Handle) {
        lock(&self.closing).push(handle);
    }
}

fn with_handle(from: &mut Reader<'_>) -> Result<Found, Malformed> {
    let found = from.found()?;
    if found.handle == 0 { Err(Malformed) } else { Ok(found) }
}

fn without_handle(from: &mut Reader<'_>) -> Result<Found, Malformed> {
    let found = from.found()?;
    if found.handle == 0 { Ok(found) } else { Err(Malformed) }
}

/// The next message: what it says, the descriptor that came with it, and whether one was lost.
#[allow(clippy::type_complexity)]
fn next<T>(
    channel: &mut Channel,
    patience: PollTimeout,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<(Result<T, Errno>, Option<OwnedFd>, bool), Loss> {
    if !channel.wait(patience)? {
        return Err(Loss::Silent);
    }
    let message = channel.receive()?.ok_or(Loss::Closed)?;
    let mut from = Reader::new(message.bytes);
    let answer = match outcome(&mut from)? {
        Ok(()) => Ok(read(&mut from)?),
        Err(errno) => Err(errno),
    };
    from.end()?;
    Ok((answer, message.file, message.file_lost))
}

/// The gofer's first message: that it is ready, or why it is not.
fn hello(channel: &mut Channel, patience: PollTimeout) -> Result<Result<(), String>, Loss> {
    if !channel.wait(patience)? {
        return Err(Loss::Silent);
    }
    let message = channel.receive()?.ok_or(Loss::Closed)?;
    let mut from = Reader::new(message.bytes);
    match from.u8()? {
        0 if from.u32()? == VERSION => Ok(Ok(from.end()?)),
        1 => Ok(Err(String::from_utf8_lossy(from.bytes(TEXT_MAX)?).into_owned())),
        _ => Err(Loss::Malformed),
    }
}
