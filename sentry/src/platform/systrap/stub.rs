//! Stub processes as the sentry sees them: who they are, their contexts, and their end.
//!
//! A stub that forks tells the number of the new process, and guest code can make it tell any. By that number the sentry reads and writes
//! memory and kills: the sentry's own would be its end. So a number is taken only when it is that of a child which is no stub yet
//! ([`Processes::adopt`]), and nothing is done by it before the child is seen to have the contexts that were made for it ([`Stub::is_known`]).

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, ftruncate};

use super::context::{Context, futex_wake};
use super::layout::{CONTEXTS_SIZE, MAX_THREADS, at, context_address, state};
use super::patch::Patches;
use super::remote::{Process, StubMemory, word};
use super::resting::Resting;
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
        let (socket, its_socket) = sockets()?;
        Ok(Self { contexts, socket, its_socket })
    }
}

/// The ends of the socket by which a stub gets files: the sentry's, and its own.
pub(in crate::platform) fn sockets() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends files by the sentry's end.
pub(in crate::platform) fn send_files(socket: &OwnedFd, files: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let control = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &control, flags, None).map(drop)
}

/// The contexts that are in use, by number.
#[derive(Default)]
struct Slots {
    /// `None` where none was needed yet.
    all: Vec<Option<Slot>>,
    live: usize,
}

/// One context.
struct Slot {
    context: Arc<Context>,
    /// Nobody serves its thread any more. It is free once the host's kernel has ended that, and says so in its state.
    left: bool,
}

impl Slot {
    fn is_free(&self) -> bool {
        self.left && self.context.u32_at(at::STATE).load(Ordering::Acquire) == state::DEAD
    }
}

/// A stub process: one guest address space.
pub(in crate::platform) struct Stub {
    pid: Pid,
    contexts: OwnedFd,
    socket: Mutex<OwnedFd>,
    dead: AtomicBool,
    slots: Mutex<Slots>,
    first: OnceLock<Arc<Context>>,
    patches: Mutex<Patches>,
    replacing: Mutex<()>,
    resting: Mutex<Vec<Resting>>,
    processes: Weak<Processes>,
    /// What its contexts have at [`at::SECRET`] in its first slot; `None` of the first stub, which the sentry made by itself.
    secret: Option<(usize, u64)>,
    /// It was seen to have them.
    known: AtomicBool,
}

/// How long a new process may take until it has its contexts.
const BEGINNING: Duration = Duration::from_secs(10);

impl Process for Stub {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst) || !self.is_known()
    }

    fn kept(&self, memory: &StubMemory<Self>) -> Result<Vec<u8>, Errno> {
        let patches = self.patches().clone();
        super::kept::tell(&patches, memory)
    }
}

impl Stub {
    /// Whether it is the process that its contexts were made for: asked before anything is done by its number. Who made it need not wait for
    /// it to begin; who first uses it does.
    fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire) || self.shows_its_secret()
    }

    fn shows_its_secret(&self) -> bool {
        let Some((slot, secret)) = self.secret else { return true };
        let place = context_address(slot) + at::SECRET as u64;
        let begin = Instant::now();
        while !self.dead.load(Ordering::SeqCst) {
            match word(self.pid, place) {
                Some(found) if found == secret => {
                    self.known.store(true, Ordering::Release);
                    return true;
                }
                // Those of the process of which it is a copy.
                Some(_) if begin.elapsed() < BEGINNING => std::thread::yield_now(),
                // Another guest's process that was just made, or none of the stubs: it will not be killed.
                _ => {
                    if let Some(processes) = self.processes.upgrade() {
                        lock(&processes.by_pid).remove(&self.pid);
                    }
                    self.ended();
                }
            }
        }
        false
    }

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
        let free = |slot: &Option<Slot>| slot.as_ref().is_none_or(Slot::is_free);
        let slot = slots.all.iter().position(free).unwrap_or(slots.all.len());
        if slot >= MAX_THREADS {
            return Err(Errno::EAGAIN);
        }
        let known = slots.all.get(slot).and_then(Option::as_ref).map(|slot| Arc::clone(&slot.context));
        let context = match known {
            Some(context) => context,
            None => Arc::new(Context::map(self.contexts.as_fd(), slot)?),
        };
        slots.put(slot, &context);
        Ok((slot, context))
    }

    /// The first context, for what lies there of the whole address space.
    pub(super) fn first_context(&self) -> Option<&Context> {
        if self.first.get().is_none() {
            let known =
                lock(&self.slots).all.first().and_then(Option::as_ref).map(|slot| Arc::clone(&slot.context));
            let first = match known {
                Some(context) => context,
                None => Arc::new(Context::map(self.contexts.as_fd(), 0).ok()?),
            };
            let _ = self.first.set(first);
        }
        self.first.get().map(Arc::as_ref)
    }

    /// A context that no thread has, for other use of its memory.
    pub(in crate::platform) fn map_context(&self, slot: usize) -> Result<Context, Errno> {
        Context::map(self.contexts.as_fd(), slot)
    }

    /// Its threads that rest.
    pub(super) fn resting(&self) -> MutexGuard<'_, Vec<Resting>> {
        lock(&self.resting)
    }

    /// One that rested has a guest thread again.
    pub(super) fn enter(&self) {
        lock(&self.slots).live += 1;
    }

    /// A thread is about to end; `true` when it is the last.
    pub(super) fn leave(&self) -> bool {
        let mut slots = lock(&self.slots);
        slots.live -= 1;
        slots.live == 0
    }

    /// Gives a context back whose thread ends, or has never begun.
    pub(super) fn free_slot(&self, slot: usize) {
        if let Some(slot) = lock(&self.slots).all.get_mut(slot).and_then(Option::as_mut) {
            slot.left = true;
        }
    }

    /// Sends files to it; with the lock that is given back, nobody else sends or asks it to receive.
    pub(super) fn send_files(&self, files: &[BorrowedFd<'_>]) -> Result<MutexGuard<'_, OwnedFd>, Errno> {
        let socket = lock(&self.socket);
        send_files(&socket, files)?;
        Ok(socket)
    }

    /// Ends it, with whatever it does.
    pub(in crate::platform) fn kill(&self) {
        if let Some(processes) = self.processes.upgrade() {
            processes.kill(self.pid);
        }
    }

    fn ended(&self) {
        self.dead.store(true, Ordering::SeqCst);
        for slot in lock(&self.slots).all.iter().flatten() {
            let word = slot.context.u32_at(at::STATE);
            word.store(state::DEAD, Ordering::SeqCst);
            futex_wake(word);
        }
    }
}

impl Slots {
    fn put(&mut self, slot: usize, context: &Arc<Context>) {
        if self.all.len() <= slot {
            self.all.resize_with(slot + 1, || None);
        }
        self.all[slot] = Some(Slot { context: Arc::clone(context), left: false });
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
        (slot, secret): (usize, u64),
        patches: Patches,
    ) -> Result<(Arc<Stub>, Arc<Context>), Errno> {
        let (stub, context) = self.stub(pid, parts, slot, patches, Some((slot, secret)))?;
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

    /// Makes a stub of the first process, which the sentry itself made.
    pub(super) fn first(
        self: &Arc<Self>,
        pid: Pid,
        parts: Parts,
    ) -> Result<(Arc<Stub>, Arc<Context>), Errno> {
        let (stub, context) = self.stub(pid, parts, 0, Patches::default(), None)?;
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
        secret: Option<(usize, u64)>,
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
            first: OnceLock::new(),
            patches: Mutex::new(patches),
            replacing: Mutex::new(()),
            resting: Mutex::default(),
            processes: Arc::downgrade(self),
            secret,
            known: AtomicBool::new(secret.is_none()),
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
