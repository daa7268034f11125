//! One container as the server keeps it: its state machine, its processes' streams, and who waits for their ends.
//!
//! Everything here is behind one short lock that is never held across an `await`. Events are queued while it is held,
//! so their order in the queue is the order of the changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::{Process, Spec};
use tokio::sync::{Notify, watch};

use crate::events::{Details, Publisher};
use crate::grouping::Kind;
use crate::guest::Pod;
use crate::machine::{Container, Event, Exit};
use crate::stdio::{Opened, Streams};

/// What is kept of a process besides its state.
pub struct Proc {
    /// As containerd asked for them.
    pub streams: Streams,
    /// Opened ones, until the process starts.
    pub opened: Option<Opened>,
    /// What an exec runs.
    pub process: Option<Process>,
    /// Terminal size asked for before the start: rows, columns.
    pub size: Option<(u32, u32)>,
    /// Told when containerd closes the input.
    pub close_stdin: Arc<Notify>,
    /// How it ended.
    pub exit: watch::Sender<Option<Exit>>,
}

impl Proc {
    /// A process that was not started.
    #[must_use]
    pub fn new(streams: Streams, opened: Option<Opened>, process: Option<Process>) -> Self {
        Self {
            streams,
            opened,
            process,
            size: None,
            close_stdin: Arc::default(),
            exit: watch::Sender::new(None),
        }
    }
}

/// The part that changes.
pub struct Inner {
    /// State of all processes.
    pub machine: Container,
    /// By exec id; init is under the empty one.
    pub procs: HashMap<String, Proc>,
}

/// A container.
pub struct Cell {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What it is to its pod.
    pub kind: Kind,
    /// Its specification.
    pub spec: Spec,
    /// Its pod.
    pub pod: Arc<dyn Pod>,
    /// Where its root file system is mounted, if it is.
    pub mounted: Option<PathBuf>,
    publisher: Publisher,
    inner: Mutex<Inner>,
}

impl Cell {
    /// A created container; the event is queued.
    #[must_use]
    pub fn new(parts: Parts, publisher: Publisher, init: Proc, details: &Details) -> Arc<Self> {
        let (machine, events) = Container::new();
        for event in &events {
            publisher.publish(event, details);
        }
        let Parts { id, bundle, kind, spec, pod, mounted } = parts;
        let procs = HashMap::from([(String::new(), init)]);
        Arc::new(Self {
            id,
            bundle,
            kind,
            spec,
            pod,
            mounted,
            publisher,
            inner: Mutex::new(Inner { machine, procs }),
        })
    }

    /// The lock.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Change the state; the events are queued and the waiters told.
    pub fn apply(&self, change: impl FnOnce(&mut Container) -> Vec<Event>) {
        let mut inner = self.lock();
        let events = change(&mut inner.machine);
        self.announce(&inner, &events);
    }

    /// Change the state unless that is refused.
    pub fn try_apply<E>(&self, change: impl FnOnce(&mut Inner) -> Result<Vec<Event>, E>) -> Result<(), E> {
        let mut inner = self.lock();
        let events = change(&mut inner)?;
        self.announce(&inner, &events);
        Ok(())
    }

    /// Queue events and wake who waits for the ends among them.
    fn announce(&self, inner: &Inner, events: &[Event]) {
        let details = Details { container: self.id.clone(), pid: self.pod.pid(), create: None };
        for event in events {
            self.publisher.publish(event, &details);
            if let Event::Exited(exec, exit) = event
                && let Some(process) = inner.procs.get(exec)
            {
                process.exit.send_replace(Some(*exit));
            }
        }
    }

    /// Queue the last event.
    pub fn publish_last(&self, events: &[Event]) {
        let inner = self.lock();
        self.announce(&inner, events);
    }

    /// To learn how a process ends.
    #[must_use]
    pub fn exit_of(&self, exec: &str) -> Option<watch::Receiver<Option<Exit>>> {
        self.lock().procs.get(exec).map(|process| process.exit.subscribe())
    }
}

/// What a [`Cell`] is made of.
pub struct Parts {
    /// Container id.
    pub id: String,
    /// Bundle.
    pub bundle: PathBuf,
    /// What it is to its pod.
    pub kind: Kind,
    /// Specification.
    pub spec: Spec,
    /// Pod.
    pub pod: Arc<dyn Pod>,
    /// Mounted root file system.
    pub mounted: Option<PathBuf>,
}
