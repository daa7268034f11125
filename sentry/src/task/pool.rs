//! The sentry's own threads that serve guest threads. A few idle ones are kept: to make a thread takes the host longer than to wake one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::unistd::Pid;

use super::lock;
use crate::error::Errno;
use crate::events::{self, Sleeper};
use crate::platform;

/// Bytes of stack of each.
const STACK: usize = 256 << 10;
/// Idle ones that are kept.
const IDLE: usize = 32;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that serve guest threads.
#[derive(Default)]
pub struct Workers {
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    idle: Vec<Arc<Worker>>,
    /// The kernel is gone: idle ones end.
    closed: bool,
}

/// One that is idle, or was told what to do next.
struct Worker {
    thread: Pid,
    next: Mutex<Next>,
    told: Condvar,
    /// The processor where it began to sleep ([`platform::here`]).
    slept_at: AtomicU32,
}

#[derive(Default)]
enum Next {
    #[default]
    Unknown,
    Job(Job),
    End,
}

impl State {
    /// Takes one out: of those that slept on the caller's processor, if any did. That one is woken there, and the caller is about to leave it; one that is woken
    /// elsewhere is in the way of its own guest thread, which was made there.
    fn take(&mut self) -> Option<Arc<Worker>> {
        let here = platform::here();
        let place = self.idle.iter().rposition(|idle| idle.slept_at.load(Ordering::Relaxed) == here);
        place.map(|place| self.idle.remove(place)).or_else(|| self.idle.pop())
    }
}

impl Worker {
    fn new() -> Self {
        Self {
            thread: nix::unistd::gettid(),
            next: Mutex::default(),
            told: Condvar::new(),
            slept_at: AtomicU32::new(0),
        }
    }

    fn notify(&self) {
        self.told.notify_one();
    }

    fn tell(&self, next: Next) {
        *lock(&self.next) = next;
    }

    fn wait(&self) -> Next {
        let mut next = lock(&self.next);
        while matches!(*next, Next::Unknown) {
            next = self.told.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut *next)
    }
}

impl Sleeper for Worker {
    fn wake_up(&self) {
        if platform::would_crowd() {
            // Where its guest thread was made there is no place for it.
            platform::wake_here(self.thread, self.slept_at.load(Ordering::Relaxed), || self.notify());
        } else {
            self.notify();
        }
    }
}

impl Workers {
    /// Runs `job` on a thread of its own.
    ///
    /// # Errors
    /// EAGAIN when the host gives no thread.
    pub fn run(&self, job: Job) -> Result<(), Errno> {
        let idle = lock(&self.shared).take();
        if let Some(worker) = idle {
            worker.tell(Next::Job(job));
            worker.notify();
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name("guest".into()).stack_size(STACK);
        builder.spawn(move || serve(&shared, job)).map(drop).map_err(|_| Errno::EAGAIN)
    }

    /// An idle thread, if there is one, for a job that is told later.
    pub(super) fn reserve(&self) -> Option<Reserved> {
        let worker = lock(&self.shared).take();
        worker.map(|worker| Reserved { shared: Arc::clone(&self.shared), worker: Some(worker) })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        state.closed = true;
        for worker in state.idle.drain(..) {
            worker.tell(Next::End);
            worker.notify();
        }
    }
}

/// An idle thread that waits for a job.
pub(super) struct Reserved {
    shared: Arc<Mutex<State>>,
    /// Until it has one.
    worker: Option<Arc<Worker>>,
}

impl Reserved {
    /// Gives it its job. The thread may be woken a little later ([`events::wake_later`]).
    pub(super) fn run(mut self, job: Job) {
        if let Some(worker) = self.worker.take() {
            worker.tell(Next::Job(job));
            events::wake_later(&worker);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        let mut state = lock(&self.shared);
        if state.closed {
            worker.tell(Next::End);
            worker.notify();
        } else {
            state.idle.push(worker);
        }
    }
}

fn serve(shared: &Mutex<State>, first: Job) {
    let own = Arc::new(Worker::new());
    let mut job = first;
    loop {
        job();
        {
            let mut state = lock(shared);
            if state.idle.len() >= IDLE || state.closed {
                return;
            }
            own.slept_at.store(platform::here(), Ordering::Relaxed);
            state.idle.push(Arc::clone(&own));
        }
        match own.wait() {
            Next::Job(next) => job = next,
            Next::End | Next::Unknown => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn an_idle_thread_is_used_again() {
        let workers = Workers::default();
        let (sender, receiver) = mpsc::channel();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let sender = sender.clone();
            workers.run(Box::new(move || sender.send(nix::unistd::gettid().as_raw()).unwrap())).unwrap();
            seen.insert(receiver.recv().unwrap());
            while lock(&workers.shared).idle.is_empty() {
                std::thread::yield_now();
            }
        }
        assert!(seen.len() < 4, "{seen:?}");
    }
}
