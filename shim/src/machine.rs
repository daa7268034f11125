//! The life of a container's processes as pure code: no I/O, no clock.
//!
//! A container is an init process and its execs. Every change goes through a method that either refuses it or
//! changes the state and returns the events containerd must hear, in the order in which it must hear them:
//! for each process created < started < exited < deleted, each at most once, and every exec exits before the init
//! process does (when init ends, the container's PID namespace ends with it).
//!
//! ```text
//! Created ──begin_start──▶ Starting ──started──▶ Running ⇄ Paused
//!    │                        │                     │        │
//!    └─────── exited ─────────┴─────── exited ──────┴────────┴──▶ Stopped ──delete──▶ (gone)
//! ```

use std::collections::BTreeMap;
use std::time::SystemTime;

use kata_cc_sandbox::Pull;
use thiserror::Error;

/// Exit code of a process whose end nobody saw.
pub const UNKNOWN_EXIT: u32 = 255;
/// Exit code of a process that was killed (128 + SIGKILL).
pub const KILLED_EXIT: u32 = 137;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can be started.
    Created,
    /// The guest is asked to start it.
    Starting,
    /// It runs.
    Running,
    /// Its container is frozen.
    Paused,
    /// It has ended.
    Stopped(Exit),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: u32,
    /// When.
    pub at: SystemTime,
}

/// What containerd must hear. An empty `exec` means init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its image is being pulled, which takes long.
    Pulling(String, Pull),
    /// The container exists.
    Created,
    /// Init runs.
    Started,
    /// An exec was recorded.
    ExecAdded(String),
    /// An exec runs.
    ExecStarted(String),
    /// A process has ended.
    Exited(String, Exit),
    /// The container is gone.
    Deleted(Exit),
    /// The container is frozen.
    Paused,
    /// The container goes on.
    Resumed,
    /// The guest's kernel killed a process of the container for want of memory.
    Oom,
}

/// Why a change was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// No such exec.
    #[error("exec {0:?} does not exist")]
    NotFound(String),
    /// The exec's id is taken.
    #[error("exec {0:?} already exists")]
    AlreadyExists(String),
    /// The process has ended (containerd takes this for success of a kill).
    #[error("process already finished")]
    Finished,
    /// The container's init process does not run.
    #[error("container is not running")]
    NotRunning,
    /// The process was not started yet.
    #[error("process is not started")]
    NotStarted,
    /// The process was started before.
    #[error("cannot start a running process")]
    StartedBefore,
    /// The process must end first.
    #[error("cannot delete a running process")]
    StillRunning,
    /// Pause needs a running container, resume a paused one.
    #[error("container is {0}")]
    WrongState(&'static str),
}

/// One container.
#[derive(Clone, Debug)]
pub struct Container {
    init: State,
    execs: BTreeMap<String, State>,
    oom: bool,
}

impl Container {
    /// A created container.
    #[must_use]
    pub fn new() -> (Self, Vec<Event>) {
        (Self { init: State::Created, execs: BTreeMap::new(), oom: false }, vec![Event::Created])
    }

    /// State of init (`""`) or an exec.
    pub fn state(&self, exec: &str) -> Result<State, Refusal> {
        if exec.is_empty() {
            return Ok(self.init);
        }
        self.execs.get(exec).copied().ok_or_else(|| Refusal::NotFound(exec.to_owned()))
    }

    /// Ids of the execs that run.
    #[must_use]
    pub fn running_execs(&self) -> Vec<String> {
        self.execs.iter().filter(|(_, state)| alive(**state)).map(|(id, _)| id.clone()).collect()
    }

    /// Whether memory ran out in it.
    #[must_use]
    pub fn saw_oom(&self) -> bool {
        self.oom
    }

    /// Record an exec.
    pub fn add_exec(&mut self, exec: &str) -> Result<Vec<Event>, Refusal> {
        if self.init != State::Running {
            return Err(Refusal::NotRunning);
        }
        if exec.is_empty() || self.execs.contains_key(exec) {
            return Err(Refusal::AlreadyExists(exec.to_owned()));
        }
        self.execs.insert(exec.to_owned(), State::Created);
        Ok(vec![Event::ExecAdded(exec.to_owned())])
    }

    /// The guest will be asked to start the process.
    pub fn begin_start(&mut self, exec: &str) -> Result<(), Refusal> {
        if !exec.is_empty() && self.init != State::Running {
            self.state(exec)?;
            return Err(Refusal::NotRunning);
        }
        match self.state(exec)? {
            State::Created => self.set(exec, State::Starting),
            State::Stopped(_) => return Err(Refusal::Finished),
            _ => return Err(Refusal::StartedBefore),
        }
        Ok(())
    }

    /// The guest has started it. A process that was already reported as ended stays so, without a late event.
    pub fn started(&mut self, exec: &str) -> Vec<Event> {
        if self.state(exec) != Ok(State::Starting) {
            return Vec::new();
        }
        // An exec that starts while its container is being frozen is frozen with it.
        let state = if self.init == State::Paused { State::Paused } else { State::Running };
        self.set(exec, if exec.is_empty() { State::Running } else { state });
        vec![if exec.is_empty() { Event::Started } else { Event::ExecStarted(exec.to_owned()) }]
    }

    /// The guest could not start it: it has ended without having run, and containerd (which got the error) hears no event.
    pub fn start_failed(&mut self, exec: &str, at: SystemTime) {
        if self.state(exec) == Ok(State::Starting) {
            self.set(exec, State::Stopped(Exit { code: UNKNOWN_EXIT, at }));
        }
    }

    /// A process has ended. When it is init, every exec that runs has ended too.
    ///
    /// A second report of the same end is nothing.
    pub fn exited(&mut self, exec: &str, exit: Exit) -> Vec<Event> {
        let mut events = Vec::new();
        if exec.is_empty() && !matches!(self.init, State::Stopped(_)) {
            for id in self.running_execs() {
                events.extend(self.exited(&id, Exit { code: KILLED_EXIT, at: exit.at }));
            }
        }
        // Init can be killed before it runs; an exec that was only recorded is no process.
        let ends =
            self.state(exec).is_ok_and(|state| alive(state) || (exec.is_empty() && state == State::Created));
        if ends {
            self.set(exec, State::Stopped(exit));
            events.push(Event::Exited(exec.to_owned(), exit));
        }
        events
    }

    /// Whether a signal may be sent to the process now.
    pub fn may_signal(&self, exec: &str) -> Result<(), Refusal> {
        match self.state(exec)? {
            State::Running | State::Paused | State::Starting => Ok(()),
            State::Created if exec.is_empty() => Ok(()),
            State::Created => Err(Refusal::NotStarted),
            State::Stopped(_) => Err(Refusal::Finished),
        }
    }

    /// Freeze.
    pub fn paused(&mut self) -> Result<Vec<Event>, Refusal> {
        self.may_pause()?;
        self.switch(State::Running, State::Paused);
        Ok(vec![Event::Paused])
    }

    /// Whether it can be frozen.
    pub fn may_pause(&self) -> Result<(), Refusal> {
        if self.init == State::Running { Ok(()) } else { Err(Refusal::WrongState("not running")) }
    }

    /// Go on.
    pub fn resumed(&mut self) -> Result<Vec<Event>, Refusal> {
        self.may_resume()?;
        self.switch(State::Paused, State::Running);
        Ok(vec![Event::Resumed])
    }

    /// Whether it is frozen.
    pub fn may_resume(&self) -> Result<(), Refusal> {
        if self.init == State::Paused { Ok(()) } else { Err(Refusal::WrongState("not paused")) }
    }

    /// Memory ran out.
    pub fn out_of_memory(&mut self) -> Vec<Event> {
        self.oom = true;
        vec![Event::Oom]
    }

    /// Remove an exec; its exit.
    pub fn delete_exec(&mut self, exec: &str) -> Result<Option<Exit>, Refusal> {
        let exit = match self.state(exec)? {
            State::Stopped(exit) => Some(exit),
            State::Created => None,
            _ => return Err(Refusal::StillRunning),
        };
        self.execs.remove(exec);
        Ok(exit)
    }

    /// Whether the container can be deleted.
    pub fn may_delete(&self) -> Result<(), Refusal> {
        match self.init {
            State::Created | State::Stopped(_) => Ok(()),
            _ => Err(Refusal::StillRunning),
        }
    }

    /// The container is gone; a container that never ran has no exit code of its own and gets that of a killed one.
    pub fn deleted(self, at: SystemTime) -> (Exit, Vec<Event>) {
        let exit = match self.init {
            State::Stopped(exit) => exit,
            _ => Exit { code: KILLED_EXIT, at },
        };
        (exit, vec![Event::Deleted(exit)])
    }

    fn set(&mut self, exec: &str, state: State) {
        if exec.is_empty() {
            self.init = state;
        } else {
            self.execs.insert(exec.to_owned(), state);
        }
    }

    fn switch(&mut self, from: State, to: State) {
        for state in std::iter::once(&mut self.init).chain(self.execs.values_mut()) {
            if *state == from {
                *state = to;
            }
        }
    }
}

fn alive(state: State) -> bool {
    matches!(state, State::Starting | State::Running | State::Paused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: SystemTime = SystemTime::UNIX_EPOCH;

    fn exit(code: u32) -> Exit {
        Exit { code, at: T }
    }

    fn running() -> Container {
        let (mut container, _) = Container::new();
        container.begin_start("").unwrap();
        container.started("");
        container
    }

    #[test]
    fn the_plain_life() {
        let (mut container, events) = Container::new();
        assert_eq!(events, [Event::Created]);
        container.begin_start("").unwrap();
        assert_eq!(container.started(""), [Event::Started]);
        assert_eq!(container.exited("", exit(3)), [Event::Exited(String::new(), exit(3))]);
        assert_eq!(container.deleted(T), (exit(3), vec![Event::Deleted(exit(3))]));
    }

    #[test]
    fn execs_exit_before_init() {
        let mut container = running();
        container.add_exec("e").unwrap();
        container.begin_start("e").unwrap();
        container.started("e");
        let events = container.exited("", exit(0));
        assert_eq!(events, [Event::Exited("e".into(), exit(137)), Event::Exited(String::new(), exit(0))]);
        assert!(container.exited("e", exit(1)).is_empty(), "an exit is reported once");
    }

    #[test]
    fn refusals() {
        let mut container = running();
        assert_eq!(container.begin_start(""), Err(Refusal::StartedBefore));
        assert_eq!(container.may_delete(), Err(Refusal::StillRunning));
        assert_eq!(container.begin_start("x"), Err(Refusal::NotFound("x".into())));
        container.add_exec("e").unwrap();
        assert_eq!(container.add_exec("e"), Err(Refusal::AlreadyExists("e".into())));
        assert_eq!(container.may_signal("e"), Err(Refusal::NotStarted));
        assert_eq!(container.resumed(), Err(Refusal::WrongState("not paused")));
        container.paused().unwrap();
        assert_eq!(container.paused(), Err(Refusal::WrongState("not running")));
        assert_eq!(container.begin_start("e"), Err(Refusal::NotRunning));
        container.exited("", exit(0));
        assert_eq!(container.may_signal(""), Err(Refusal::Finished));
        assert_eq!(container.begin_start(""), Err(Refusal::Finished));
        assert_eq!(container.begin_start("e"), Err(Refusal::NotRunning));
        assert_eq!(container.add_exec("f"), Err(Refusal::NotRunning));
    }

    #[test]
    fn an_exit_during_start_is_not_followed_by_a_start() {
        let (mut container, _) = Container::new();
        container.begin_start("").unwrap();
        container.exited("", exit(255));
        assert!(container.started("").is_empty());
    }

    #[test]
    fn a_failed_start_is_an_end_without_event() {
        let (mut container, _) = Container::new();
        container.begin_start("").unwrap();
        container.start_failed("", T);
        assert_eq!(container.state(""), Ok(State::Stopped(exit(UNKNOWN_EXIT))));
        assert!(container.exited("", exit(0)).is_empty());
        assert_eq!(container.may_delete(), Ok(()));
    }

    /// Every order of operations, legal or not.
    #[derive(Clone, Debug)]
    enum Op {
        Add(u8),
        Begin(u8),
        Started(u8),
        Failed(u8),
        Exited(u8, u32),
        Pause,
        Resume,
        DeleteExec(u8),
        Delete,
    }

    fn name(which: u8) -> String {
        if which == 0 { String::new() } else { format!("e{which}") }
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1u8..3).prop_map(Op::Add),
            (0u8..3).prop_map(Op::Begin),
            (0u8..3).prop_map(Op::Started),
            (0u8..3).prop_map(Op::Failed),
            (0u8..3, 0u32..3).prop_map(|(which, code)| Op::Exited(which, code)),
            Just(Op::Pause),
            Just(Op::Resume),
            (1u8..3).prop_map(Op::DeleteExec),
            Just(Op::Delete),
        ]
    }

    fn check(ops: Vec<Op>) -> Result<(), TestCaseError> {
        let (mut container, mut events) = Container::new();
        let mut gone = false;
        for op in ops {
            let more = match op {
                Op::Add(which) => container.add_exec(&name(which)).unwrap_or_default(),
                Op::Begin(which) => {
                    container.begin_start(&name(which)).map(|()| Vec::new()).unwrap_or_default()
                }
                Op::Started(which) => container.started(&name(which)),
                Op::Failed(which) => {
                    container.start_failed(&name(which), T);
                    Vec::new()
                }
                Op::Exited(which, code) => container.exited(&name(which), exit(code)),
                Op::Pause => container.paused().unwrap_or_default(),
                Op::Resume => container.resumed().unwrap_or_default(),
                Op::DeleteExec(which) => {
                    // the same id may be used anew: its events start over
                    if container.delete_exec(&name(which)).is_ok() {
                        let id = name(which);
                        events.retain(|event| !of(event, &id));
                    }
                    Vec::new()
                }
                Op::Delete if container.may_delete().is_ok() => {
                    let (_, last) = container.clone().deleted(T);
                    gone = true;
                    last
                }
                Op::Delete => Vec::new(),
            };
            events.extend(more);
            if gone {
                break;
            }
        }
        ordered(&events)
    }

    fn of(event: &Event, id: &str) -> bool {
        matches!(event, Event::ExecAdded(e) | Event::ExecStarted(e) | Event::Exited(e, _) if e == id)
    }

    fn ordered(events: &[Event]) -> Result<(), TestCaseError> {
        let position = |wanted: &dyn Fn(&Event) -> bool| -> Result<Option<usize>, TestCaseError> {
            let found: Vec<usize> = (0..events.len()).filter(|at| wanted(&events[*at])).collect();
            prop_assert!(found.len() <= 1, "twice: {events:?}");
            Ok(found.first().copied())
        };
        let before =
            |first: Option<usize>, then: Option<usize>| first.is_none() || then.is_none() || first < then;
        let created = position(&|event| *event == Event::Created)?;
        let started = position(&|event| *event == Event::Started)?;
        let ended = position(&|event| matches!(event, Event::Exited(id, _) if id.is_empty()))?;
        let deleted = position(&|event| matches!(event, Event::Deleted(_)))?;
        prop_assert!(
            before(created, started) && before(started, ended) && before(ended, deleted),
            "{events:?}"
        );
        for which in 1..3 {
            let id = name(which);
            let added = position(&|event| matches!(event, Event::ExecAdded(e) if *e == id))?;
            let ran = position(&|event| matches!(event, Event::ExecStarted(e) if *e == id))?;
            let exited = position(&|event| matches!(event, Event::Exited(e, _) if *e == id))?;
            prop_assert!(before(added, ran) && before(ran, exited) && before(exited, ended), "{events:?}");
            prop_assert!(
                ran.is_none() || exited.is_some() || ended.is_none(),
                "exec outlives init: {events:?}"
            );
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn events_are_in_order_whatever_happens(ops in proptest::collection::vec(op(), 0..24)) {
            check(ops)?;
        }
    }
}
