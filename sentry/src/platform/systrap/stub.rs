//! Stub processes as the sentry sees them: who they are, their contexts, and their end.
//!
//! A stub that forks tells the number of the new process, and guest code can make it tell any. By that number the sentry reads and writes
//! memory and kills: the sentry's own would be its end. So a number is taken only when it is that of a child which is no stub yet
//! ([`Processes::adopt`]), and the child is kept only when it has the contexts that were made for it ([`Processes::disown`]).

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, ftruncate};

use super::context::{Context, futex_wake};
use super::layout::{CONTEXTS_SIZE, MAX_THREADS, at, state};
use super::patch::Patches;
use super::remote::Process;
use crate::error::Errno;
use crate::sync::lock;

/// What a new stub is given, and the sentry keeps.
pub(super) struct Parts {
    /// The file with its contexts.
    pub(super) contexts: OwnedFd,
    /// The sentry's end of the socket by which it gets files.
    pub(super) socket: OwnedFd,
    /// Its own end.
    pub(super) its_socket: OwnedFd,
}

impl Parts {
    pub(super) fn new() -> Result<Self, Errno> {
        let contexts = memfd_create(c"contexts", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&contexts, i64::try_from(CONTEXTS_SIZE).map_err(|_| Errno::EINVAL)?)?;
        let (socket, its_socket) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        Ok(Self { contexts, socket, its_socket })
    }
}

/// The contexts that are in use, by number.
#[derive(Default)]
struct Slots {
    used: Vec<Option<Arc<Context>>>,
    live: usize,
}

/// A stub process: one guest address space.
pub(super) struct Stub {
    pid: Pid,
    contexts: OwnedFd,
    socket: Mutex<OwnedFd>,
    dead: AtomicBool,
    slots: Mutex<Slots>,
    patches: Mutex<Patches>,
    replacing: Mutex<()>,
    processes: Weak<Processes>,
}

impl Process for Stub {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }
}

impl Stub {
    /// Its replaced call sites.
    pub(super) fn patches(&self) -> MutexGuard<'_, Patches> {
        lock(&self.patches)
    }

    /// Held by who replaces a call site.
    pub(super) fn replacing(&self) -> MutexGuard<'_, ()> {
        lock(&self.replacing)
    }

    /// Whether it has one thread only.
    pub(super) fn is_single(&self) -> bool {
        lock(&self.slots).live == 1
    }

    /// Takes a free context.
    pub(super) fn take_slot(&self) -> Result<(usize, Arc<Context>), Errno> {
        let mut slots = lock(&self.slots);
        let slot = slots.used.iter().position(Option::is_none).unwrap_or(slots.used.len());
        if slot >= MAX_THREADS {
            return Err(Errno::EAGAIN);
        }
        let context = Arc::new(Context::map(self.contexts.as_fd(), slot)?);
        slots.put(slot, &context);
        Ok((slot, context))
    }

    /// A thread is about to end; `true` when it is the last.
    pub(super) fn leave(&self) -> bool {
        let mut slots = lock(&self.slots);
        slots.live -= 1;
        slots.live == 0
    }

    /// Gives a context back whose thread has ended: the host's kernel will not write to it any more.
    pub(super) fn free_slot(&self, slot: usize) {
        let used = lock(&self.slots).used.get_mut(slot).and_then(Option::take);
        drop(used);
    }

    /// Sends files to it; with the lock that is given back, nobody else sends or asks it to receive.
    pub(super) fn send_files(&self, files: &[BorrowedFd<'_>]) -> Result<MutexGuard<'_, OwnedFd>, Errno> {
        let socket = lock(&self.socket);
        let raw: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let message = [IoSlice::new(&[0])];
        let control = [ControlMessage::ScmRights(&raw)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_raw_fd(), &message, &control, flags, None)?;
        Ok(socket)
    }

    /// Ends it, with whatever it does.
    pub(super) fn kill(&self) {
        if let Some(processes) = self.processes.upgrade() {
            processes.kill(self.pid);
        }
    }

    fn ended(&self) {
        self.dead.store(true, Ordering::SeqCst);
        for context in lock(&self.slots).used.iter().flatten() {
            let word = context.u32_at(at::STATE);
            word.store(state::DEAD, Ordering::SeqCst);
            futex_wake(word);
        }
    }
}

impl Slots {
    fn put(&mut self, slot: usize, context: &Arc<Context>) {
        if self.used.len() <= slot {
            self.used.resize_with(slot + 1, || None);
        }
        self.used[slot] = Some(Arc::clone(context));
        self.live += 1;
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All stub processes. A thread of its own waits for their end, so that who waits for a stub learns of it.
#[derive(Default)]
pub(super) struct Processes {
    by_pid: Mutex<HashMap<Pid, Weak<Stub>>>,
}

impl Processes {
    /// Makes a stub of a process that another stub says it just made; its first context is that of `slot`, and its code has these sites
    /// replaced.
    ///
    /// # Errors
    /// EFAULT where the process is none of the sentry's children, or a stub already.
    pub(super) fn adopt(
        self: &Arc<Self>,
        pid: Pid,
        parts: Parts,
        slot: usize,
        patches: Patches,
    ) -> Result<(Arc<Stub>, Arc<Context>), Errno> {
        let (stub, context) = self.stub(pid, parts, slot, patches)?;
        let mut by_pid = lock(&self.by_pid);
        // Under the lock, so that it is not reaped in between. A thread is no child, nor is the sentry itself.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
        let is_child = pid.as_raw() > 0 && waitid(Id::Pid(pid), flags).is_ok();
        if !is_child || by_pid.contains_key(&pid) {
            return Err(Errno::EFAULT);
        }
        by_pid.insert(pid, Arc::downgrade(&stub));
        drop(by_pid);
        Ok((stub, context))
    }

    /// Forgets a stub that is none: it will not be killed.
    pub(super) fn disown(&self, stub: &Arc<Stub>) {
        lock(&self.by_pid).remove(&stub.pid);
    }

    /// Makes a stub of the first process, which the sentry itself made.
    pub(super) fn first(
        self: &Arc<Self>,
        pid: Pid,
        parts: Parts,
    ) -> Result<(Arc<Stub>, Arc<Context>), Errno> {
        let (stub, context) = self.stub(pid, parts, 0, Patches::default())?;
        lock(&self.by_pid).insert(pid, Arc::downgrade(&stub));
        Ok((stub, context))
    }

    /// A stub that nobody knows by its number.
    pub(super) fn stub(
        self: &Arc<Self>,
        pid: Pid,
        parts: Parts,
        slot: usize,
        patches: Patches,
    ) -> Result<(Arc<Stub>, Arc<Context>), Errno> {
        let context = Arc::new(Context::map(parts.contexts.as_fd(), slot)?);
        let mut slots = Slots::default();
        slots.put(slot, &context);
        let stub = Arc::new(Stub {
            pid,
            contexts: parts.contexts,
            socket: Mutex::new(parts.socket),
            dead: AtomicBool::new(false),
            slots: Mutex::new(slots),
            patches: Mutex::new(patches),
            replacing: Mutex::new(()),
            processes: Arc::downgrade(self),
        });
        Ok((stub, context))
    }

    /// Kills it unless it was reaped: its number may be somebody else's then.
    fn kill(&self, pid: Pid) {
        let by_pid = lock(&self.by_pid);
        if by_pid.contains_key(&pid) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Waits for the end of stubs, which are one process group, until there is none left.
    pub(super) fn reap(&self, group: Pid) {
        loop {
            // Looked at first and taken under the lock: no pid is killed that may already be another process.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
            let pid = match waitid(Id::PGid(group), flags) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => pid,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let ended = {
                let mut by_pid = lock(&self.by_pid);
                let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
                by_pid.remove(&pid)
            };
            if let Some(stub) = ended.and_then(|stub| stub.upgrade()) {
                stub.ended();
            }
        }
    }
}
