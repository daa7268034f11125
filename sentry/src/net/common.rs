//! What every socket has.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::options::Options;
use super::{Net, lock};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::task::{Credentials, Pid, current};
use crate::vfs::{FileKind, Inode, anon};

/// Who made a socket or sent a message (`struct ucred`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The process.
    pub pid: Pid,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

impl Identity {
    /// Nobody (`overflowuid`): of what was sent by nobody who is known.
    pub const NOBODY: Self = Self { pid: 0, uid: u32::MAX, gid: u32::MAX };

    /// Of a process.
    #[must_use]
    pub fn new(pid: Pid, credentials: &Credentials) -> Self {
        Self { pid, uid: credentials.euid, gid: credentials.egid }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c]: [[u8; 4]; 3] =
            bytes.get(..12).and_then(|bytes| bytes.as_chunks().0.try_into().ok())?;
        Some(Self { pid: i32::from_ne_bytes(a), uid: u32::from_ne_bytes(b), gid: u32::from_ne_bytes(c) })
    }

    /// As whoever asks sees it.
    pub(crate) fn bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        let Self { mut pid, mut uid, mut gid } = self;
        if let Some(task) = current() {
            let users = &task.credentials().user_ns;
            pid = if pid == 0 { 0 } else { task.shown(pid) };
            uid = if uid == u32::MAX { uid } else { users.shown_uid(uid) };
            gid = if gid == u32::MAX { gid } else { users.shown_gid(gid) };
        }
        let parts = [pid.cast_unsigned(), uid, gid];
        for (place, part) in bytes.chunks_exact_mut(4).zip(parts) {
            place.copy_from_slice(&part.to_ne_bytes());
        }
        bytes
    }
}

/// What every socket has.
pub struct Common {
    /// What it shares with the others.
    pub(crate) net: Arc<Net>,
    /// `AF_*`.
    pub(crate) domain: i32,
    /// `SOCK_*`, without flags.
    pub(crate) kind: i32,
    /// `IPPROTO_*`, or what the family has.
    pub(crate) protocol: i32,
    /// Who made it.
    pub(crate) owner: Identity,
    pub(crate) options: Mutex<Options>,
    inode: Arc<dyn Inode>,
    id: AtomicU64,
    error: AtomicI32,
    queue: WaitQueue,
}

impl Common {
    /// Of a new socket.
    ///
    /// # Errors
    /// ENOBUFS where there are too many.
    pub(crate) fn new(
        net: &Arc<Net>,
        [domain, kind, protocol]: [i32; 3],
        owner: Identity,
    ) -> Result<Arc<Self>, Errno> {
        if !net.sockets.take(1) {
            return Err(Errno::ENOBUFS);
        }
        let inode = anon::of_kind("socket", FileKind::Socket);
        let id = inode.attributes().map_or(0, |attributes| attributes.inode);
        Ok(Arc::new(Self {
            net: Arc::clone(net),
            domain,
            kind,
            protocol,
            owner,
            options: Mutex::new(Options::new(domain, kind)),
            inode,
            id: AtomicU64::new(id),
            error: AtomicI32::new(0),
            queue: WaitQueue::new(),
        }))
    }

    /// Number of its inode.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// Its inode.
    #[must_use]
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    /// Who waits for it.
    #[must_use]
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// How long receiving and sending wait at most (`SO_RCVTIMEO`, `SO_SNDTIMEO`); `None`: as long as it takes.
    #[must_use]
    pub fn timeouts(&self) -> [Option<std::time::Duration>; 2] {
        let options = lock(&self.options);
        [options.receive_timeout, options.send_timeout]
    }

    /// Tells those who wait.
    pub(crate) fn notify(&self, events: Events) {
        self.queue.notify(events);
    }

    /// Has an error to be fetched.
    pub(crate) fn fail(&self, errno: Errno) {
        self.error.store(errno as i32, Ordering::Release);
        self.notify(Events::ERR | Events::IN | Events::OUT | Events::HUP);
    }

    /// Fetches the error (`sock_error`).
    ///
    /// # Errors
    /// The pending error.
    pub(crate) fn take_error(&self) -> Result<(), Errno> {
        if self.error.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        match self.error.swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    /// Whether there is one.
    pub(crate) fn has_error(&self) -> bool {
        self.error.load(Ordering::Acquire) != 0
    }
}

impl Drop for Common {
    fn drop(&mut self) {
        self.net.sockets.give(1);
        self.net.forget(self.id());
    }
}
