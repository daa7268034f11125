//! Which containers and processes there are, by the names that clients know.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_cc_sentry::control::message::{ContainerNumber, ProcessNumber};
use thiserror::Error;
use tokio::sync::watch;

use super::stream::Stream;

/// Containers of a sandbox.
const CONTAINERS_MAX: usize = 256;
/// Processes besides the first one that a container remembers.
const EXECS_MAX: usize = 1024;
/// Longest name of a container or process.
const ID_MAX: usize = 128;

/// Why there is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum TableError {
    /// No such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// No such process in it.
    #[error("process {exec} does not exist in container {container}")]
    NoProcess {
        /// Of which container.
        container: String,
        /// Its name.
        exec: String,
    },
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// It is no name.
    #[error("{0:?} is no identifier: 1 to 128 letters, digits and \"_.-+\", a letter or digit first")]
    Id(String),
    /// There are as many as there may be.
    #[error("there are {0} {1} already")]
    Full(usize, &'static str),
}

/// Streams of a process that clients of the agent API read and write.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) input: tokio::sync::Mutex<Option<Arc<Stream>>>,
    pub(crate) output: Stream,
    /// A terminal has none.
    pub(crate) errors: Option<Stream>,
}

/// A process that was started from outside.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) number: ProcessNumber,
    pub(crate) exec: String,
    pub(crate) terminal: bool,
    /// `None`: it has descriptors of whoever asked for it.
    pub(crate) pipes: Option<Pipes>,
    /// Status as `wait` tells it.
    status: watch::Sender<Option<i32>>,
    waited: watch::Sender<bool>,
}

impl Process {
    /// One that runs, or will.
    pub(crate) fn new(number: ProcessNumber, exec: &str, terminal: bool, pipes: Option<Pipes>) -> Arc<Self> {
        let (status, waited) = (watch::Sender::new(None), watch::Sender::new(false));
        Arc::new(Self { number, exec: exec.to_owned(), terminal, pipes, status, waited })
    }

    /// It ended.
    pub(crate) fn set_ended(&self, status: i32) {
        self.status.send_if_modified(|known| {
            let news = known.is_none();
            known.get_or_insert(status);
            news
        });
    }

    /// Whether it ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.borrow().is_some()
    }

    /// Waits for its end: exit code, or 128 and the number of the signal.
    pub(crate) async fn ended(&self) -> i32 {
        let mut status = self.status.subscribe();
        let status = status.wait_for(Option::is_some).await.ok().and_then(|status| *status).unwrap_or(0);
        match status & 0x7f {
            0 => status >> 8 & 0xff,
            signal => 128 + signal,
        }
    }

    /// Somebody heard of its end.
    pub(crate) fn set_waited(&self) {
        self.waited.send_replace(true);
    }

    /// Waits until somebody heard of its end.
    pub(crate) async fn waited(&self) {
        let mut waited = self.waited.subscribe();
        let _ = waited.wait_for(|waited| *waited).await;
    }
}

/// A container.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) number: ContainerNumber,
    pub(crate) first: Arc<Process>,
    pub(crate) umask: u32,
    pub(crate) created: bool,
    execs: HashMap<String, Arc<Process>>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Table {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    containers: HashMap<String, Container>,
    processes: HashMap<ProcessNumber, Arc<Process>>,
    last: u32,
}

/// A name as the OCI runtime tools have them: it is part of no path here, but shown.
pub(crate) fn check_id(id: &str) -> Result<(), TableError> {
    let mut letters = id.chars();
    let first = letters.next().is_some_and(|letter| letter.is_ascii_alphanumeric());
    let rest = letters.all(|letter| letter.is_ascii_alphanumeric() || "_.-+".contains(letter));
    if first && rest && id.len() <= ID_MAX { Ok(()) } else { Err(TableError::Id(id.to_owned())) }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no container or process has had.
    pub(crate) fn number(&self) -> u32 {
        let mut state = self.lock();
        state.last = state.last.saturating_add(1);
        state.last
    }

    /// Takes a name for a container that is about to be made.
    pub(crate) fn add(
        &self,
        id: &str,
        number: ContainerNumber,
        first: Arc<Process>,
    ) -> Result<(), TableError> {
        check_id(id)?;
        let mut state = self.lock();
        if state.containers.contains_key(id) {
            return Err(TableError::Exists(format!("container {id}")));
        }
        if state.containers.len() >= CONTAINERS_MAX {
            return Err(TableError::Full(CONTAINERS_MAX, "containers"));
        }
        state.processes.insert(first.number, Arc::clone(&first));
        let container = Container { number, first, umask: 0o022, created: false, execs: HashMap::new() };
        state.containers.insert(id.to_owned(), container);
        Ok(())
    }

    /// It is made.
    pub(crate) fn set_created(&self, id: &str, umask: u32) {
        if let Some(container) = self.lock().containers.get_mut(id) {
            container.created = true;
            container.umask = umask;
        }
        self.changed.send_replace(());
    }

    /// A container that is made.
    pub(crate) fn container(&self, id: &str) -> Result<Container, TableError> {
        let state = self.lock();
        let found = state.containers.get(id).filter(|container| container.created);
        found.cloned().ok_or_else(|| TableError::NoContainer(id.to_owned()))
    }

    /// The name of a container.
    pub(crate) fn name(&self, number: ContainerNumber) -> Option<String> {
        let state = self.lock();
        state.containers.iter().find(|(_, container)| container.number == number).map(|(id, _)| id.clone())
    }

    /// All names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().containers.keys().cloned().collect()
    }

    /// The number of a container, also of one that is being made.
    pub(crate) fn number_of(&self, id: &str) -> Result<ContainerNumber, TableError> {
        let state = self.lock();
        let found = state.containers.get(id).map(|container| container.number);
        found.ok_or_else(|| TableError::NoContainer(id.to_owned()))
    }

    /// Forgets a container. The ends of its processes may still be on their way.
    pub(crate) fn remove(&self, id: &str) {
        let container = self.lock().containers.remove(id);
        drop(container);
    }

    /// Forgets a container that was not made.
    pub(crate) fn give_up(&self, id: &str) {
        let mut state = self.lock();
        if let Some(container) = state.containers.remove(id) {
            state.processes.remove(&container.first.number);
        }
    }

    /// Takes a name for a process that is about to be made. One that ended and was waited for gives its name away.
    pub(crate) fn add_exec(&self, id: &str, process: Arc<Process>) -> Result<(), TableError> {
        check_id(&process.exec)?;
        let mut state = self.lock();
        let state = &mut *state;
        let container = state.containers.get_mut(id).ok_or_else(|| TableError::NoContainer(id.to_owned()))?;
        let done = |process: &Arc<Process>| process.has_ended() && *process.waited.borrow();
        let taken = container.execs.get(&process.exec).is_some_and(|known| !done(known));
        if taken || process.exec == id {
            return Err(TableError::Exists(format!("process {} in container {id}", process.exec)));
        }
        if container.execs.len() >= EXECS_MAX {
            container.execs.retain(|_, process| !done(process));
        }
        if container.execs.len() >= EXECS_MAX {
            return Err(TableError::Full(EXECS_MAX, "processes"));
        }
        state.processes.insert(process.number, Arc::clone(&process));
        container.execs.insert(process.exec.clone(), process);
        Ok(())
    }

    /// Forgets a process that was not made.
    pub(crate) fn remove_exec(&self, id: &str, process: &Process) {
        let mut state = self.lock();
        state.processes.remove(&process.number);
        if let Some(container) = state.containers.get_mut(id) {
            container.execs.remove(&process.exec);
        }
    }

    /// A process by its names: no name of its own, or the container's, is the first one.
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, TableError> {
        let container = self.container(id)?;
        if exec.is_empty() || exec == id {
            return Ok(container.first);
        }
        let found = container.execs.get(exec).cloned();
        found.ok_or_else(|| TableError::NoProcess { container: id.to_owned(), exec: exec.to_owned() })
    }

    /// A process ended, whose number the sentry says. Whether there was one of which that was not known.
    pub(crate) fn ended(&self, number: ProcessNumber, status: i32) -> bool {
        let process = self.lock().processes.remove(&number);
        match process {
            Some(process) => {
                process.set_ended(status);
                true
            }
            None => false,
        }
    }

    /// How many containers there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().containers.len()
    }

    /// Names of processes by number, for those of one container.
    pub(crate) fn execs(&self, container: &Container) -> HashMap<ProcessNumber, String> {
        let first = (container.first.number, String::new());
        let execs = container.execs.iter().map(|(name, process)| (process.number, name.clone()));
        execs.chain([first]).collect()
    }

    /// Waits until there is a container of this name.
    pub(crate) async fn made(&self, id: &str) -> Container {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Ok(container) = self.container(id) {
                return container;
            }
            // The sender is this table's own.
            let _ = changed.changed().await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn process(number: u32, exec: &str) -> Arc<Process> {
        Process::new(ProcessNumber(number), exec, false, None)
    }

    #[test]
    fn names_are_taken_once() {
        let table = Table::default();
        for bad in ["", "..", "a/b", ".a", "a b", "-a", &"x".repeat(129)] {
            let refused = table.add(bad, ContainerNumber(1), process(1, ""));
            assert_eq!(refused, Err(TableError::Id(bad.to_owned())));
        }
        table.add("one", ContainerNumber(1), process(1, "")).unwrap();
        assert_eq!(table.container("one").err(), Some(TableError::NoContainer("one".into())), "not made yet");
        assert_eq!(table.number_of("one"), Ok(ContainerNumber(1)));
        assert_eq!(table.number_of("two"), Err(TableError::NoContainer("two".into())));
        table.set_created("one", 0o022);
        assert!(matches!(table.add("one", ContainerNumber(2), process(2, "")), Err(TableError::Exists(_))));
        table.add_exec("one", process(3, "e")).unwrap();
        assert!(matches!(table.add_exec("one", process(4, "e")), Err(TableError::Exists(_))));
        assert!(matches!(table.add_exec("one", process(4, "one")), Err(TableError::Exists(_))));
        assert_eq!(table.process("one", "").unwrap().number, ProcessNumber(1));
        assert_eq!(table.process("one", "one").unwrap().number, ProcessNumber(1));
        assert_eq!(table.process("one", "e").unwrap().number, ProcessNumber(3));
        assert!(matches!(table.process("one", "f"), Err(TableError::NoProcess { .. })));
        table.remove("one");
        assert!(table.ended(ProcessNumber(3), 0), "its end was on its way");
        assert!(!table.ended(ProcessNumber(3), 0));
        table.add("two", ContainerNumber(2), process(5, "")).unwrap();
        table.give_up("two");
        assert!(!table.ended(ProcessNumber(5), 0), "it never was");
    }

    #[test]
    fn an_end_is_told_once_and_a_name_is_free_again_when_it_was_heard() {
        let table = Table::default();
        table.add("one", ContainerNumber(1), process(1, "")).unwrap();
        table.set_created("one", 0o022);
        let first = process(2, "e");
        table.add_exec("one", Arc::clone(&first)).unwrap();
        assert!(table.ended(ProcessNumber(2), 9));
        assert!(!table.ended(ProcessNumber(2), 0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(first.ended()), 137);
        assert!(table.add_exec("one", process(3, "e")).is_err(), "nobody has heard of the end");
        first.set_waited();
        table.add_exec("one", process(4, "e")).unwrap();
        let (code, other) = (process(5, ""), process(6, ""));
        code.set_ended(7 << 8);
        other.set_ended(-1);
        assert_eq!(runtime.block_on(code.ended()), 7);
        assert!(runtime.block_on(other.ended()) <= 255);
    }
}
