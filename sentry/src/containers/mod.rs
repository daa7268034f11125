//! Several containers in one sandbox, made, looked at and ended as the monitor asks ([`crate::control`]).
//!
//! A container is a tree of mounts of its own ([`root`]), a group of tasks that are held and counted together
//! ([`crate::task::ControlGroup`]), and processes that were started from outside ([`process`]): its first one, with whose end it ends, and
//! others. All containers have the kernel in common.
//!
//! **Locks**: the table of containers is held for moments and nothing is called under it but small locks of tasks; requests come from one
//! thread, and those that take long are carried out by others ([`images`]).

mod failure;
mod images;
mod network;
mod passed;
mod process;
mod root;
mod terminal;
mod usage;

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::checkpoint::{Names, Progress, Streams};
use crate::container::Container;
use crate::control::message::{
    Answer, Ask, ContainerNumber, ContainerPlan, Failure, FailureKind, ProcessNumber, ProcessPlan,
};
use crate::error::Errno;
use crate::events::{Events, Waiter, Wake};
use crate::kernel::Kernel;
use crate::platform::generation;
use crate::sync::lock;
use crate::task::seccomp::Program;
use crate::task::{ControlGroup, ThreadGroup};
use failure::{failed, failure, invalid};
use images::Image;
pub use passed::Passed;
use process::{Inside, Prepared};
use root::SharedMemory;
use terminal::Terminal;

/// Containers of a sandbox.
const CONTAINERS_MAX: usize = 256;
/// Processes that were started from outside and are not forgotten.
const PROCESSES_MAX: usize = 4096;
/// How long a container that is removed may take to end.
const ENDS: Duration = Duration::from_secs(10);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(1);

/// The end of a process that was started from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub process: ProcessNumber,
    /// Its status as `wait` tells it.
    pub status: i32,
}

/// What the monitor hears without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A process ended.
    Ended(Ended),
    /// A container lost a process to the host.
    Lost(ContainerNumber),
}

/// All containers.
pub struct Containers {
    kernel: Arc<Kernel>,
    shared: SharedMemory,
    state: Mutex<State>,
    news: Sender<News>,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<ContainerNumber, Entry>,
    processes: BTreeMap<ProcessNumber, Process>,
    /// What is done with images of containers.
    images: BTreeMap<ContainerNumber, Image>,
    /// Names of machine and domain that were given.
    named: Names,
}

struct Entry {
    container: Arc<Container>,
    group: Arc<ControlGroup>,
    /// What judges calls of its processes.
    filter: Option<Arc<Program>>,
    first: ProcessNumber,
    /// Until it is started.
    waiting: Option<Prepared>,
    /// What its first process had as 0, 1 and 2.
    streams: Streams,
}

struct Process {
    container: ContainerNumber,
    group: Arc<ThreadGroup>,
    terminal: Option<Arc<Terminal>>,
    /// Tells its end.
    _watch: Arc<dyn Wake>,
}

/// Waits for the end of a process, which it tells.
struct Watch {
    process: ProcessNumber,
    group: std::sync::Weak<ThreadGroup>,
    news: Sender<News>,
}

impl Wake for Watch {
    fn wake(&self, _: Events) {
        if let Some(status) = self.group.upgrade().and_then(|group| group.exit_status()) {
            // Who heard of it goes with the sandbox.
            let _ = self.news.send(News::Ended(Ended { process: self.process, status }));
        }
    }
}

impl Containers {
    /// None yet. What the monitor is to hear is sent to `news`.
    #[must_use]
    pub fn new(kernel: Arc<Kernel>, news: Sender<News>) -> Self {
        let named = names(&kernel);
        let state = State { named, ..State::default() };
        Self { kernel, shared: SharedMemory::default(), state: Mutex::new(state), news }
    }

    /// Does what the monitor asks.
    ///
    /// # Errors
    /// What the monitor is told.
    pub fn carry_out(&self, ask: Ask, passed: Passed) -> Result<Answer, Failure> {
        let result = self.do_as_asked(ask, passed);
        // Containers get folders and mounts; what programs of others saw of shared volumes may be so no more.
        generation::changed();
        result
    }

    fn do_as_asked(&self, ask: Ask, passed: Passed) -> Result<Answer, Failure> {
        match ask {
            Ask::Names { host, domain } => {
                self.name(host, domain);
                Ok(Answer::Done)
            }
            Ask::Create(plan) => self.create(&plan, passed),
            Ask::Start(container) => self.start(container),
            Ask::Exec(container, plan) => self.exec(container, &plan, passed),
            Ask::Signal(process, signal) => self.signal(process, signal),
            Ask::SignalAll(container, signal) => self.signal_all(container, signal),
            Ask::Freeze(container, frozen) => {
                lock(&self.state).is_idle(container)?;
                match self.group(container)?.freeze(&self.kernel.tasks, frozen) {
                    true => Ok(Answer::Done),
                    false => Err(failure(FailureKind::Failed, "some of its tasks do not stand still")),
                }
            }
            Ask::Checkpoint(container, image, goes_on) => self.checkpoint(container, image, goes_on, passed),
            Ask::Settle(container, kept) => self.settle(container, kept),
            Ask::Progress(container) => Ok(self.progress(container)),
            Ask::Limit(container, bounds) => {
                self.group(container)?.set_bounds(&bounds);
                Ok(Answer::Done)
            }
            Ask::Usage(container) => Ok(Answer::Usage(usage::of(&self.kernel, &self.group(container)?))),
            Ask::Processes(container) => {
                let group = self.group(container)?;
                let inner =
                    lock(&self.state).containers.get(&container).map(|found| Arc::clone(&found.container));
                let inner = inner.ok_or_else(no_container)?;
                let known: BTreeMap<_, _> = {
                    let state = lock(&self.state);
                    let processes = state.processes.iter();
                    processes.map(|(number, process)| (process.group.pid(), *number)).collect()
                };
                let seen_by = &inner.namespaces().pids_for_children;
                Ok(Answer::Processes(usage::processes(&self.kernel, &group, seen_by, &known)))
            }
            Ask::Resize(process, size) => {
                let terminal = self.process(process, |process| process.terminal.clone())?;
                terminal.ok_or_else(|| invalid("the process has no terminal"))?.resize(size);
                Ok(Answer::Done)
            }
            Ask::Remove(container) => self.remove(container),
            Ask::Forget(number) => {
                let gone = lock(&self.state).processes.remove(&number);
                gone.map(|_| Answer::Done).ok_or_else(no_process)
            }
            Ask::Attach(config, frames) => network::attach(&self.kernel.net, *config, passed, frames),
            Ask::Configure(config) => network::done(self.kernel.net.configure(*config)),
            Ask::Detach(name) => network::done(self.kernel.net.detach(&name)),
            Ask::OutOfMemory(container) => {
                self.group(container)?.count_out_of_memory();
                Ok(Answer::Done)
            }
        }
    }

    /// Names the machine, which all containers have in common.
    fn name(&self, host: Option<String>, domain: Option<String>) {
        {
            let mut uts = lock(self.kernel.tasks.first_namespaces().names.uts());
            uts.host = host.map_or_else(|| uts.host.clone(), String::into_bytes);
            uts.domain = domain.map_or_else(|| uts.domain.clone(), String::into_bytes);
        }
        lock(&self.state).named = names(&self.kernel);
    }

    fn group(&self, container: ContainerNumber) -> Result<Arc<ControlGroup>, Failure> {
        let state = lock(&self.state);
        state.containers.get(&container).map(|found| Arc::clone(&found.group)).ok_or_else(no_container)
    }

    fn process<T>(&self, number: ProcessNumber, look: impl FnOnce(&Process) -> T) -> Result<T, Failure> {
        lock(&self.state).processes.get(&number).map(look).ok_or_else(no_process)
    }

    fn create(&self, plan: &ContainerPlan, passed: Passed) -> Result<Answer, Failure> {
        let checked = {
            let state = lock(&self.state);
            if state.containers.contains_key(&plan.number) {
                Err(invalid("the number of the container is taken"))
            } else if state.containers.len() >= CONTAINERS_MAX {
                Err(failure(FailureKind::Full, "the sandbox has as many containers as it may"))
            } else {
                plan.image.map(|_| state.progress_of(plan.number)).transpose()
            }
        };
        let made = checked.and_then(|progress| self.make(plan, passed, progress.as_ref()));
        if plan.image.is_some() {
            lock(&self.state).images.remove(&plan.number);
        }
        made
    }

    /// Makes a container, of an image where there is one, whose reading `progress` tells.
    fn make(
        &self,
        plan: &ContainerPlan,
        mut passed: Passed,
        progress: Option<&Arc<Progress>>,
    ) -> Result<Answer, Failure> {
        let group = Arc::new(ControlGroup::default());
        let (news, number) = (self.news.clone(), plan.number);
        group.tell_losses(move || {
            // Who heard of it goes with the sandbox.
            let _ = news.send(News::Lost(number));
        });
        group.set_bounds(&plan.bounds);
        let container = root::build(&self.kernel, &self.shared, &group, plan, &mut passed)?;
        let root = container.root();
        let filter = plan.filter.as_deref().map(process::filter).transpose()?;
        let inside = Inside {
            kernel: &self.kernel,
            container: &container,
            root: &root,
            group: &group,
            filter: filter.as_ref(),
            first: true,
        };
        let prepared = match plan.image.zip(progress) {
            Some((image, progress)) => {
                let alone = self.is_alone(plan.number);
                let from = process::Origin { image: passed.take(image)?, alone, progress };
                process::restore(&inside, &plan.process, from, &mut passed)?
            }
            None => process::prepare(&inside, &plan.process, &mut passed)?,
        };
        let pid = prepared.task.own_number();
        let wanted = progress.map_or(Ok(()), |progress| images::is_wanted(progress));
        let adopted = wanted.and_then(|()| self.adopt(plan.number, plan.process.number, &prepared));
        if let Err(failure) = adopted {
            prepared.forget(&self.kernel);
            return Err(failure);
        }
        let streams = prepared.streams.clone();
        let (first, waiting) = (plan.process.number, Some(prepared));
        let entry = Entry { container, group, filter, first, waiting, streams };
        lock(&self.state).containers.insert(plan.number, entry);
        Ok(Answer::Process(pid))
    }

    /// Whether there is no other container, also none in the making.
    fn is_alone(&self, number: ContainerNumber) -> bool {
        let state = lock(&self.state);
        state.containers.keys().chain(state.images.keys()).all(|other| *other == number)
    }

    /// Remembers a process, whose end is told from now on.
    fn adopt(
        &self,
        container: ContainerNumber,
        number: ProcessNumber,
        prepared: &Prepared,
    ) -> Result<(), Failure> {
        let group = Arc::clone(prepared.task.group());
        let news = self.news.clone();
        let watch: Arc<dyn Wake> = Arc::new(Watch { process: number, group: Arc::downgrade(&group), news });
        let mut state = lock(&self.state);
        if state.processes.contains_key(&number) {
            return Err(invalid("the number of the process is taken"));
        }
        if state.processes.len() >= PROCESSES_MAX {
            return Err(failure(FailureKind::Full, "the sandbox remembers as many processes as it may"));
        }
        group.exit_events().add(Events::CHANGED, &watch);
        let terminal = prepared.terminal.clone();
        state.processes.insert(number, Process { container, group, terminal, _watch: watch });
        Ok(())
    }

    fn run(&self, prepared: Prepared) -> Result<(), Failure> {
        let Prepared { task, threads, terminal, .. } = prepared;
        let fail = |errno| failed("a thread for the process", errno);
        if let Some(terminal) = terminal {
            terminal.carry(Arc::clone(task.group())).map_err(fail)?;
        }
        for (of, thread) in threads {
            if let Err(errno) = crate::launch::run(&self.kernel, &of, thread) {
                // What of it runs already is not all of it.
                task.exit_group(libc::SIGKILL);
                return Err(fail(errno));
            }
        }
        Ok(())
    }

    fn start(&self, container: ContainerNumber) -> Result<Answer, Failure> {
        let waiting = {
            let mut state = lock(&self.state);
            let found = state.containers.get_mut(&container).ok_or_else(no_container)?;
            found.waiting.take().ok_or_else(|| invalid("the container was started already"))?
        };
        self.run(waiting)?;
        Ok(Answer::Done)
    }

    fn exec(
        &self,
        container: ContainerNumber,
        plan: &ProcessPlan,
        mut passed: Passed,
    ) -> Result<Answer, Failure> {
        let (inner, group, filter) = {
            let state = lock(&self.state);
            state.is_idle(container)?;
            let found = state.containers.get(&container).ok_or_else(no_container)?;
            let first = state.processes.get(&found.first);
            if first.is_none_or(|first| first.group.exit_status().is_some()) {
                return Err(invalid("the container's first process has ended"));
            }
            (Arc::clone(&found.container), Arc::clone(&found.group), found.filter.clone())
        };
        let root = inner.root();
        let inside = Inside {
            kernel: &self.kernel,
            container: &inner,
            root: &root,
            group: &group,
            filter: filter.as_ref(),
            first: false,
        };
        let prepared = process::prepare(&inside, plan, &mut passed)?;
        let pid = prepared.task.own_number();
        if let Err(failure) = self.adopt(container, plan.number, &prepared) {
            prepared.forget(&self.kernel);
            return Err(failure);
        }
        self.run(prepared)?;
        Ok(Answer::Process(pid))
    }

    fn signal(&self, number: ProcessNumber, signal: i32) -> Result<Answer, Failure> {
        let (container, group) =
            self.process(number, |process| (process.container, Arc::clone(&process.group)))?;
        let first = {
            let state = lock(&self.state);
            state.containers.get(&container).is_some_and(|found| found.first == number)
        };
        let info = self.kernel.tasks.process_info(group.pid());
        let unhandled = |info: crate::task::ProcessInfo| {
            !info.handled.has(libc::SIGTERM) && !info.ignored.has(libc::SIGTERM)
        };
        // As Kata's agent does: a first process without a handler would not hear of it.
        let signal = match signal {
            libc::SIGTERM if first && info.is_some_and(unhandled) => libc::SIGKILL,
            signal => signal,
        };
        send(&group, signal)?;
        if first && signal == libc::SIGKILL {
            self.let_end(container)?;
        }
        Ok(Answer::Done)
    }

    fn signal_all(&self, container: ContainerNumber, signal: i32) -> Result<Answer, Failure> {
        let group = self.group(container)?;
        for process in group.processes(&self.kernel.tasks) {
            send(&process, signal)?;
        }
        if signal == libc::SIGKILL {
            self.let_end(container)?;
        }
        Ok(Answer::Done)
    }

    /// A first process that was not started and was killed: it runs to its end, without a first instruction.
    fn let_end(&self, container: ContainerNumber) -> Result<(), Failure> {
        let waiting = lock(&self.state).containers.get_mut(&container).and_then(|found| found.waiting.take());
        waiting.map_or(Ok(()), |waiting| self.run(waiting))
    }

    /// A process ended: what else there is of its container ends with the first one.
    pub fn ended(&self, process: ProcessNumber) {
        let group = {
            let state = lock(&self.state);
            let container = state.processes.get(&process).map(|process| process.container);
            let container = container.and_then(|container| state.containers.get(&container));
            container.filter(|container| container.first == process).map(|found| Arc::clone(&found.group))
        };
        if let Some(group) = group {
            group.close();
            self.kill(&group);
        }
    }

    fn kill(&self, group: &Arc<ControlGroup>) {
        for process in group.processes(&self.kernel.tasks) {
            // Who is gone is gone.
            let _ = process.send_from_outside(libc::SIGKILL);
        }
    }

    /// Kills all of a group, which makes no tasks any more, and waits until they are gone.
    fn end(&self, group: &Arc<ControlGroup>) -> Result<(), Failure> {
        let (begin, nobody) = (Instant::now(), Waiter::new());
        while !group.tasks(&self.kernel.tasks).is_empty() {
            if begin.elapsed() > ENDS {
                return Err(failure(FailureKind::Failed, "its processes do not end"));
            }
            self.kill(group);
            // The host's call to sleep is not one that the sentry makes.
            nobody.wait(Some(Instant::now() + PAUSE));
        }
        Ok(())
    }

    fn remove(&self, number: ContainerNumber) -> Result<Answer, Failure> {
        self.call_off(number)?;
        let (group, waiting) = {
            let mut state = lock(&self.state);
            let found = state.containers.get_mut(&number).ok_or_else(no_container)?;
            (Arc::clone(&found.group), found.waiting.take())
        };
        group.close();
        if let Some(waiting) = waiting {
            waiting.forget(&self.kernel);
        }
        group.freeze(&self.kernel.tasks, false);
        self.end(&group)?;
        let mut state = lock(&self.state);
        let container = state.containers.remove(&number);
        state.processes.retain(|_, process| process.container != number);
        drop(state);
        // What is mounted goes without a lock.
        drop(container);
        Ok(Answer::Done)
    }
}

/// Names of machine and domain.
fn names(kernel: &Kernel) -> Names {
    let uts = lock(kernel.tasks.first_namespaces().names.uts());
    (uts.host.clone(), uts.domain.clone())
}

fn send(group: &ThreadGroup, signal: i32) -> Result<(), Failure> {
    if !(0..=crate::task::signal::SIGNALS).contains(&signal) {
        return Err(invalid(&format!("signal {signal} does not exist")));
    }
    if signal == 0 {
        return Ok(());
    }
    match group.send_from_outside(signal) {
        // Who ended needs none.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(failed("the signal", errno)),
    }
}

fn no_container() -> Failure {
    failure(FailureKind::Missing, "there is no such container")
}

fn no_process() -> Failure {
    failure(FailureKind::Missing, "there is no such process")
}
