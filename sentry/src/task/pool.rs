//! The sentry's own threads that serve guest threads. A few idle ones are kept: to make a thread takes the host longer than to wake one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::lock;
use crate::error::Errno;

/// Bytes of stack of each.
const STACK: usize = 256 << 10;
/// Idle ones that are kept.
const IDLE: usize = 32;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that serve guest threads.
#[derive(Default)]
pub struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    /// The kernel is gone: idle ones end.
    closed: bool,
}

impl Workers {
    /// Runs `job` on a thread of its own.
    ///
    /// # Errors
    /// EAGAIN when the host gives no thread.
    pub fn run(&self, job: Job) -> Result<(), Errno> {
        let mut state = lock(&self.shared.state);
        if state.idle > state.jobs.len() {
            state.jobs.push_back(job);
            // Whoever is woken does not meet the lock.
            drop(state);
            self.shared.work.notify_one();
            return Ok(());
        }
        drop(state);
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name("guest".into()).stack_size(STACK);
        builder.spawn(move || serve(&shared, job)).map(drop).map_err(|_| Errno::EAGAIN)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.work.notify_all();
    }
}

fn serve(shared: &Shared, first: Job) {
    let mut job = first;
    loop {
        job();
        let mut state = lock(&shared.state);
        if state.idle >= IDLE || state.closed {
            return;
        }
        state.idle += 1;
        job = loop {
            if let Some(job) = state.jobs.pop_front() {
                break job;
            }
            if state.closed {
                return;
            }
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.idle -= 1;
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
            while lock(&workers.shared.state).idle == 0 {
                std::thread::yield_now();
            }
        }
        assert!(seen.len() < 4, "{seen:?}");
    }
}
