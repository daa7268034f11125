//! A stub that answers as it likes: for tests and fuzzing of what the sentry makes of it.
//!
//! There is no process. A thread plays the other side of the contexts: whatever it is asked, it writes what it was given to write, and
//! gives the turn back, or something that is no turn.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;

use super::context::{Context, futex_wake};
use super::layout::{CONTEXT_SIZE, at, state};
use super::patch::Patches;
use super::stub::{Parts, Processes};
use super::thread::{self, Place, StubThread};
use crate::error::Errno;
use crate::platform::Thread;

/// Contexts that it answers in: those of the first threads, more than anybody makes here.
const PLAYED: usize = 64;

/// What it does when it has the turn.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Words that it writes, and where in the context.
    pub writes: Vec<(u16, u64)>,
    /// What it leaves in place of the turn: 2 gives it back as it should.
    pub turn: u32,
    /// Words that it writes when the turn is not its own any more.
    pub late: Vec<(u16, u64)>,
}

impl Answer {
    /// As an honest stub answers: it has done what it was asked, and this is what came of it.
    #[must_use]
    pub fn done(result: u64) -> Self {
        // What the turn is given away for lies in the word of the turn itself, above it.
        let what = u64::from(super::layout::kind::DONE) << 32 | u64::from(state::STUB);
        let writes = vec![(at::TURN as u16, result), (at::STATE as u16, what)];
        Self { writes, turn: state::SENTRY, late: Vec::new() }
    }
}

/// A guest thread of such a stub.
pub struct Hostile {
    thread: Option<Box<dyn Thread>>,
    ended: Arc<AtomicBool>,
    other: Option<JoinHandle<()>>,
}

impl Hostile {
    /// With what it answers, in this order; afterwards it seems to have ended. Its first answer is to its start.
    ///
    /// # Errors
    /// What the host says; EAGAIN where its first answer is no turn.
    pub fn new(answers: Vec<Answer>) -> Result<Self, Errno> {
        let parts = Parts::new()?;
        let its_socket = parts.its_socket.try_clone().map_err(|_| Errno::EMFILE)?;
        let contexts: Vec<Context> =
            (0..PLAYED).map(|slot| Context::map(parts.contexts.as_fd(), slot)).collect::<Result<_, _>>()?;
        thread::prepare(contexts.first().ok_or(Errno::EINVAL)?, 0, 0, state::STUB);
        let processes = Arc::new(Processes::default());
        let (stub, context) = processes.pretend(parts)?;
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let other = std::thread::spawn(move || play(contexts, answers, &seen, &its_socket));
        let mut all = Self { thread: None, ended, other: Some(other) };
        let place = Place { stub, slot: 0, context };
        let thread = StubThread::begin(&processes, place, Pid::from_raw(i32::MAX), 0);
        let begun = thread.wait(0, super::turn::Patience::Guest);
        all.thread = Some(Box::new(thread));
        if begun { Ok(all) } else { Err(Errno::EAGAIN) }
    }

    /// The guest thread as the kernel sees it.
    ///
    /// # Panics
    /// Never: there is one until the end.
    #[must_use]
    #[allow(clippy::unwrap_used, reason = "it is there until the end")]
    pub fn thread(&mut self) -> &mut dyn Thread {
        self.thread.as_mut().unwrap().as_mut()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        drop(self.thread.take());
        self.ended.store(true, Ordering::SeqCst);
        let _ = self.other.take().map(JoinHandle::join);
    }
}

/// The first contexts in the files that were sent, which are those of a new process.
fn sent(socket: &OwnedFd) -> Vec<Context> {
    let (mut byte, mut control) = ([0], nix::cmsg_space!([std::os::fd::RawFd; 4]));
    let (mut data, flags) =
        ([IoSliceMut::new(&mut byte)], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC);
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), flags);
    let Some(messages) = received.ok().and_then(|received| received.cmsgs().ok().map(Vec::from_iter)) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for message in messages {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the host's kernel just made these descriptors for this process, and nobody else has them.
            files.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    // what is no memory cannot be mapped
    files.iter().filter_map(|file| Context::map(file.as_fd(), 0).ok()).collect()
}

/// The other side, until `ended`.
fn play(mut contexts: Vec<Context>, answers: Vec<Answer>, ended: &AtomicBool, socket: &OwnedFd) {
    let mut answers = answers.into_iter();
    while !ended.load(Ordering::SeqCst) {
        contexts.extend(sent(socket));
        // It does not wait for a new thread's turn to be given.
        let is_asked =
            |context: &&Context| matches!(turn(context).load(Ordering::SeqCst), state::STUB | state::GIVEN);
        let asked = contexts.iter().find(is_asked);
        let Some(context) = asked else {
            std::thread::yield_now();
            continue;
        };
        let answer = answers.next().unwrap_or(Answer { turn: state::DEAD, ..Answer::default() });
        write(context, &answer.writes);
        give(context, answer.turn);
        if !answer.late.is_empty() {
            write(context, &answer.late);
            // who sleeps on a word that changed would sleep for ever: no guest that does not let itself run is of interest
            futex_wake(turn(context));
        }
    }
    for context in &contexts {
        give(context, state::DEAD);
    }
}

fn turn(context: &Context) -> &std::sync::atomic::AtomicU32 {
    context.u32_at(at::STATE)
}

fn give(context: &Context, what: u32) {
    turn(context).store(what, Ordering::SeqCst);
    futex_wake(turn(context));
}

fn write(context: &Context, writes: &[(u16, u64)]) {
    for (offset, value) in writes {
        context.store(usize::from(*offset) & (CONTEXT_SIZE - 8), *value);
    }
}

impl Processes {
    /// A stub without a process: nothing has that number.
    fn pretend(self: &Arc<Self>, parts: Parts) -> Result<(Arc<super::stub::Stub>, Arc<Context>), Errno> {
        self.stub(Pid::from_raw(i32::MAX), parts, 0, Patches::default(), None)
    }
}
