//! What calls on containers and processes do.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_cc_agent_protocol::agent as api;
use kata_cc_sentry::control::message::{
    Answer, Ask, ContainerNumber, Descriptor, FailureKind, ProcessNumber, Size, Usage,
};
use kata_cc_sentry::defence::Strength;
use kata_cc_sentry::gofer;
use kata_cc_sentry::link::LinkError;
use nix::fcntl::{FcntlArg, fcntl};
use thiserror::Error;
use tokio::sync::Notify;

use super::idle;
use super::link::{CallError, Link};
use super::memory::Memory as HostMemory;
use super::network::Network;
use super::spec::{self, Around, Descriptors, SpecError, Streams};
use super::stream::{Stream, pipe};
use super::streams::{self, Given, GivenStreams, Parked};
use super::table::{Container, Pipes, Process, Table, TableError};
use super::terminal;

/// Why a call fails.
#[derive(Debug, Error)]
pub(crate) enum WorkError {
    /// There is no such container or process, or there is one already.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The sentry.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The pod's network.
    #[error("the network of the sandbox: {0}")]
    Network(#[from] LinkError),
    /// Of the host.
    #[error("{what}: {error}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// What the host says.
        error: std::io::Error,
    },
    /// Streams are not the agent API's.
    #[error("process {0} has the streams of whoever asked for it: they are not read and written here")]
    Direct(String),
    /// There is none.
    #[error("no tty")]
    NoTerminal,
    /// What the sentry answers is none of what could be.
    #[error("the sentry answers with something else than what was asked for")]
    Answer,
}

impl WorkError {
    /// Whether what is missing is a container or process of the sentry's own.
    pub(crate) fn failure(&self) -> Option<FailureKind> {
        match self {
            Self::Call(CallError::Refused(failure)) => Some(failure.kind),
            _ => None,
        }
    }
}

pub(super) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> WorkError {
    move |error| WorkError::Host { what, error }
}

/// Everything that calls need.
pub(crate) struct Monitor {
    pub(crate) link: Link,
    pub(crate) table: Arc<Table>,
    pub(crate) parked: Parked,
    pub(crate) strength: Strength,
    /// Most bytes of changes to a root.
    pub(crate) memory: Option<u64>,
    /// What the host does for want of memory.
    pub(crate) memory_of_host: Arc<HostMemory>,
    /// Interfaces of the pod.
    pub(crate) network: Network,
    /// Rung by DestroySandbox.
    pub(crate) destroyed: Notify,
    /// Processes that hold files of containers.
    pub(crate) gofers: Mutex<Vec<Gofer>>,
    /// The terminal of the host that this process has as its own, and whose size it is.
    pub(crate) followed: tokio::sync::Mutex<Option<(OwnedFd, ProcessNumber)>>,
}

/// A process' streams, as the request and as the table have them.
struct Connected {
    plan: Streams,
    more: Vec<(Descriptor, u32)>,
    pipes: Option<Pipes>,
    /// A terminal of the host.
    slave: Option<OwnedFd>,
}

/// A process that holds a container's files. It ends with the last use of them.
pub(crate) struct Gofer {
    /// `None`: nobody needs it any more.
    container: Option<String>,
    child: std::process::Child,
}

impl Gofer {
    /// Its container is gone, if it is that one. Whether it is still to be waited for.
    fn leave(&mut self, container: &str) -> bool {
        if self.container.as_deref() == Some(container) {
            self.container = None;
        }
        !self.has_ended()
    }

    fn has_ended(&mut self) -> bool {
        // One that cannot be waited for is none of ours any more.
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Monitor {
    fn gofers(&self) -> MutexGuard<'_, Vec<Gofer>> {
        self.gofers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process that holds the files of a container: the way to it.
    fn start_gofer(&self, container: &str, exports: &[gofer::Export]) -> Result<OwnedFd, WorkError> {
        let started = gofer::spawn(Path::new("/proc/self/exe"), exports, self.strength);
        let started = started.map_err(host("starting the gofer, which holds the container's files"))?;
        self.gofers().push(Gofer { container: Some(container.to_owned()), child: started.child });
        Ok(started.socket)
    }

    /// A process of this one ended. A container without its files is of no use.
    pub(crate) async fn children_ended(&self) {
        let mut lost = Vec::new();
        self.gofers().retain_mut(|gofer| {
            let ended = gofer.has_ended();
            if ended {
                lost.extend(gofer.container.take());
            }
            !ended
        });
        for id in lost {
            tracing::error!(
                container = id,
                "the gofer, which holds the container's files, has ended: so does the container"
            );
            // One that is gone needs no end.
            let _ = self.signal(&id, "", libc::SIGKILL).await;
        }
    }

    /// Names the machine.
    pub(crate) async fn name(&self, host: Option<String>, domain: Option<String>) -> Result<(), WorkError> {
        if host.is_some() || domain.is_some() {
            self.link.ask(Ask::Names { host, domain }, Vec::new()).await?;
        }
        Ok(())
    }

    /// Makes a container and its first process.
    pub(crate) async fn create(&self, request: &api::CreateContainerRequest) -> Result<(), WorkError> {
        let id = request.container_id.as_str();
        super::table::check_id(id)?;
        let (container, number) = (ContainerNumber(self.table.number()), ProcessNumber(self.table.number()));

        let terminal = request.OCI.get_or_default().Process.get_or_default().Terminal;
        let mut descriptors = Descriptors::default();
        let connected = connect(self.parked.take(id, ""), terminal, &mut descriptors)?;
        let image = match self.parked.take(id, streams::IMAGE) {
            Some(Given { streams: GivenStreams::Image(image), .. }) => Some(descriptors.add(image)?),
            _ => None,
        };
        let files = descriptors.place()?;
        let around = Around { container, process: number, memory: self.memory, files, image };
        let mut planned = spec::container(request, &around, &connected.plan)?;
        planned.plan.process.more = connected.more;
        let said = planned.options.network;
        self.check_network(said).await?;
        let process = Process::new(number, "", terminal, connected.pipes);
        self.table.add(id, container, process)?;
        let made = async {
            descriptors.add(self.start_gofer(id, planned.exports.as_slice())?)?;
            self.name(planned.host, planned.domain).await?;
            let ask = Ask::Create(Box::new(planned.plan));
            match self.link.ask(ask, descriptors.into_inner()).await? {
                Answer::Process(_) => Ok(()),
                _ => Err(WorkError::Answer),
            }
        };
        let made = match made.await {
            // What nobody uses is not taken over.
            Ok(()) => match self.join_network(said).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    // The error is why there is no container; that it cannot be ended either says less.
                    let _ = self.done(Ask::Remove(container)).await;
                    // The end of its process is still told, and is no lie.
                    self.table.remove(id);
                    Err(error)
                }
            },
            Err(error) => Err(error),
        };
        match made {
            Ok(()) => {
                self.table.set_created(id, planned.options.umask);
                self.follow(connected.slave, number).await;
                Ok(())
            }
            Err(error) => {
                self.gofers().retain_mut(|gofer| gofer.leave(id));
                self.table.give_up(id);
                Err(error)
            }
        }
    }

    /// Runs another process in a container.
    pub(crate) async fn exec(&self, request: &api::ExecProcessRequest) -> Result<(), WorkError> {
        let (id, exec) = (request.container_id.as_str(), request.exec_id.as_str());
        let container = self.table.container(id)?;
        let named = request.string_user.as_ref().is_some_and(|user| !user.uid.is_empty());
        if named {
            spec::unsupported("string_user", "users are given by number")?;
        }
        let given = request.process.get_or_default();
        let number = ProcessNumber(self.table.number());
        let mut descriptors = Descriptors::default();
        let connected = connect(self.parked.take(id, exec), given.Terminal, &mut descriptors)?;
        let mut plan = spec::process(given, number, container.umask, &connected.plan)?;
        plan.more = connected.more;
        let process = Process::new(number, exec, given.Terminal, connected.pipes);
        self.table.add_exec(id, Arc::clone(&process))?;
        let ask = Ask::Exec(container.number, Box::new(plan));
        match self.link.ask(ask, descriptors.into_inner()).await {
            Ok(Answer::Process(_)) => {
                self.follow(connected.slave, number).await;
                Ok(())
            }
            other => {
                self.table.remove_exec(id, &process);
                Err(other.map_or_else(WorkError::Call, |_| WorkError::Answer))
            }
        }
    }

    /// Lets the first process of a container run.
    pub(crate) async fn start(&self, id: &str) -> Result<(), WorkError> {
        let container = self.table.container(id)?;
        self.done(Ask::Start(container.number)).await?;
        idle::rest_later();
        Ok(())
    }

    async fn done(&self, ask: Ask) -> Result<(), WorkError> {
        match self.link.ask(ask, Vec::new()).await? {
            Answer::Done => Ok(()),
            _ => Err(WorkError::Answer),
        }
    }

    /// Sends a signal to a process; SIGKILL without a name of a process ends all of the container.
    pub(crate) async fn signal(&self, id: &str, exec: &str, signal: i32) -> Result<(), WorkError> {
        let process = self.table.process(id, exec)?;
        if process.has_ended() {
            return Ok(());
        }
        let ask = match (exec, signal) {
            ("", libc::SIGKILL) => Ask::SignalAll(self.table.container(id)?.number, signal),
            _ => Ask::Signal(process.number, signal),
        };
        self.done(ask).await
    }

    /// Waits for the end of a process: its code.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Result<i32, WorkError> {
        let process = self.table.process(id, exec)?;
        let code = tokio::select! {
            // An end that was told before the sentry's own counts.
            biased;
            code = process.ended() => code,
            reason = self.link.ended() => return Err(CallError::Gone(reason).into()),
        };
        if !exec.is_empty() && exec != id {
            // The sentry has nothing more to say of it.
            let _ = self.link.ask(Ask::Forget(process.number), Vec::new()).await;
        }
        process.set_waited();
        Ok(code)
    }

    /// Ends and forgets a container, also one that is still being made of an image.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), WorkError> {
        self.done(Ask::Remove(self.table.number_of(id)?)).await?;
        self.table.remove(id);
        self.gofers().retain_mut(|gofer| gofer.leave(id));
        Ok(())
    }

    /// Holds a container, or lets it go on.
    pub(crate) async fn freeze(&self, id: &str, frozen: bool) -> Result<(), WorkError> {
        let container = self.table.container(id)?;
        self.done(Ask::Freeze(container.number, frozen)).await
    }

    /// Writes a container to a file. Unless it is to go on at once it stands still until [`settle`](Self::settle).
    pub(crate) async fn checkpoint(&self, id: &str, image: OwnedFd, goes_on: bool) -> Result<(), WorkError> {
        let container = self.table.container(id)?;
        let mut descriptors = Descriptors::default();
        let ask = Ask::Checkpoint(container.number, descriptors.add(image)?, goes_on);
        match self.link.ask(ask, descriptors.into_inner()).await? {
            Answer::Done => Ok(()),
            _ => Err(WorkError::Answer),
        }
    }

    /// Whether the image of a container is kept: it ends, or goes on.
    pub(crate) async fn settle(&self, id: &str, kept: bool) -> Result<(), WorkError> {
        let container = self.table.container(id)?;
        self.done(Ask::Settle(container.number, kept)).await
    }

    /// How far what is done with a container's image has come.
    pub(crate) async fn progress(&self, id: &str) -> Result<u64, WorkError> {
        match self.link.ask(Ask::Progress(self.table.number_of(id)?), Vec::new()).await? {
            Answer::Progress(moved) => Ok(moved),
            _ => Err(WorkError::Answer),
        }
    }

    /// Changes bounds of a container.
    pub(crate) async fn update(&self, request: &api::UpdateContainerRequest) -> Result<(), WorkError> {
        let container = self.table.container(&request.container_id)?;
        let resources = request.resources.get_or_default();
        if resources.Memory.is_some() || resources.CPU.is_some() {
            tracing::info!(
                "bounds on memory and CPU are shown to the container; what holds them is the host's cgroup, which whoever \
                 started the sandbox changes"
            );
        }
        self.done(Ask::Limit(container.number, spec::bounds(resources))).await
    }

    /// What a container uses.
    pub(crate) async fn usage(&self, id: &str) -> Result<Usage, WorkError> {
        let container = self.table.container(id)?;
        match self.link.ask(Ask::Usage(container.number), Vec::new()).await? {
            Answer::Usage(usage) => Ok(usage),
            _ => Err(WorkError::Answer),
        }
    }

    /// Processes of a container, as JSON.
    pub(crate) async fn processes(&self, id: &str) -> Result<String, WorkError> {
        let container: Container = self.table.container(id)?;
        let Answer::Processes(entries) = self.link.ask(Ask::Processes(container.number), Vec::new()).await?
        else {
            return Err(WorkError::Answer);
        };
        let names = self.table.execs(&container);
        let entry = |entry: &kata_cc_sentry::control::message::ProcessEntry| {
            serde_json::json!({
                "pid": entry.pid,
                "ppid": entry.parent,
                "uid": entry.uid,
                "state": entry.state,
                "started_ns": entry.started,
                "cpu_ns": entry.cpu,
                "name": entry.name,
                "exec": entry.process.and_then(|number| names.get(&number)),
            })
        };
        Ok(serde_json::Value::Array(entries.iter().map(entry).collect()).to_string())
    }

    /// Sets the size of a process' terminal.
    pub(crate) async fn resize(
        &self,
        id: &str,
        exec: &str,
        rows: u32,
        columns: u32,
    ) -> Result<(), WorkError> {
        let process = self.table.process(id, exec)?;
        if !process.terminal {
            return Err(WorkError::NoTerminal);
        }
        let clip = |value| u16::try_from(value).unwrap_or(u16::MAX);
        self.done(Ask::Resize(process.number, Size { rows: clip(rows), columns: clip(columns) })).await
    }

    /// Writes to a process' input.
    pub(crate) async fn write(&self, id: &str, exec: &str, bytes: &[u8]) -> Result<(), WorkError> {
        let process = self.table.process(id, exec)?;
        let pipes = pipes(&process, id)?;
        let input = pipes.input.lock().await.clone();
        let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let input = input.ok_or_else(closed).map_err(host("the process' input"))?;
        input.write_all(bytes).await.map_err(host("the process' input"))
    }

    /// Ends a process' input.
    pub(crate) async fn close_input(&self, id: &str, exec: &str) -> Result<(), WorkError> {
        let process = self.table.process(id, exec)?;
        let pipes = pipes(&process, id)?;
        *pipes.input.lock().await = None;
        Ok(())
    }

    /// Reads a process' output; empty at its end.
    pub(crate) async fn read(
        &self,
        id: &str,
        exec: &str,
        errors: bool,
        most: u32,
    ) -> Result<Vec<u8>, WorkError> {
        let process = self.table.process(id, exec)?;
        let pipes = pipes(&process, id)?;
        let from = match (errors, &pipes.errors) {
            (false, _) => &pipes.output,
            (true, Some(errors)) => errors,
            (true, None) => return Ok(Vec::new()),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        from.read(most).await.map_err(host("the process' output"))
    }

    /// Hears of the size of a terminal of the host, if of no other yet.
    async fn follow(&self, slave: Option<OwnedFd>, number: ProcessNumber) {
        let Some(slave) = slave else { return };
        let mut followed = self.followed.lock().await;
        if followed.is_none() && terminal::follow(&slave) {
            *followed = Some((slave, number));
        }
    }

    /// The host's terminal may have another size.
    pub(crate) async fn size_changed(&self) {
        let followed = self.followed.lock().await;
        let Some((slave, number)) = followed.as_ref() else { return };
        if let Some((rows, columns)) = terminal::size(slave) {
            // Who ended has no terminal.
            let _ = self.done(Ask::Resize(*number, Size { rows, columns })).await;
        }
    }

    /// A process ended, and with it the use of its terminal.
    pub(crate) async fn leave_terminal(&self, number: ProcessNumber) {
        let mut followed = self.followed.lock().await;
        if let Some((slave, _)) = followed.take_if(|(_, of)| *of == number) {
            terminal::leave(&slave);
        }
    }
}

fn pipes<'a>(process: &'a Process, id: &str) -> Result<&'a Pipes, WorkError> {
    let name = if process.exec.is_empty() { id } else { &process.exec };
    process.pipes.as_ref().ok_or_else(|| WorkError::Direct(name.to_owned()))
}

/// What a process gets: what was given for it, or pipes.
fn connect(
    given: Option<Given>,
    terminal: bool,
    descriptors: &mut Descriptors,
) -> Result<Connected, WorkError> {
    let (given, more) = given.map_or((None, Vec::new()), |given| (Some(given.streams), given.more));
    let mut connected = connect_streams(given, terminal, descriptors)?;
    for one in more {
        let flags = fcntl(&one, FcntlArg::F_GETFL).map_err(std::io::Error::from);
        let flags = flags.map_err(host("a descriptor of a process"))?.cast_unsigned();
        let access = flags & libc::O_ACCMODE.cast_unsigned();
        connected.more.push((descriptors.add(one)?, access));
    }
    Ok(connected)
}

/// Streams of a process.
fn connect_streams(
    given: Option<GivenStreams>,
    terminal: bool,
    descriptors: &mut Descriptors,
) -> Result<Connected, WorkError> {
    let fail = || host("the streams of a process");
    match (given, terminal) {
        (Some(GivenStreams::Terminal(slave)), true) => {
            let (input, output) = (slave.try_clone().map_err(fail())?, slave.try_clone().map_err(fail())?);
            let plan = Streams::Terminal(descriptors.add(input)?, descriptors.add(output)?);
            Ok(Connected { more: Vec::new(), plan, pipes: None, slave: Some(slave) })
        }
        (Some(GivenStreams::Plain(given)), false) => {
            let mut places = [Descriptor(0); 3];
            for (number, (place, given)) in places.iter_mut().zip(given).enumerate() {
                let descriptor = given.map_or_else(|| nothing(number == 0), Ok).map_err(fail())?;
                *place = descriptors.add(descriptor)?;
            }
            Ok(Connected { more: Vec::new(), plan: Streams::Plain(places), pipes: None, slave: None })
        }
        (Some(_), _) => {
            let why = "is not what the streams socket was told for this process";
            Err(SpecError::Invalid { field: "process.terminal".to_owned(), why: why.to_owned() }.into())
        }
        (None, true) => {
            let (input, output) = (pipe().map_err(fail())?, pipe().map_err(fail())?);
            let plan = Streams::Terminal(descriptors.add(input.0)?, descriptors.add(output.1)?);
            let pipes = Pipes {
                input: tokio::sync::Mutex::new(Some(Arc::new(Stream::new(input.1).map_err(fail())?))),
                output: Stream::new(output.0).map_err(fail())?,
                errors: None,
            };
            Ok(Connected { more: Vec::new(), plan, pipes: Some(pipes), slave: None })
        }
        (None, false) => {
            let (input, output, errors) =
                (pipe().map_err(fail())?, pipe().map_err(fail())?, pipe().map_err(fail())?);
            let places = [descriptors.add(input.0)?, descriptors.add(output.1)?, descriptors.add(errors.1)?];
            let pipes = Pipes {
                input: tokio::sync::Mutex::new(Some(Arc::new(Stream::new(input.1).map_err(fail())?))),
                output: Stream::new(output.0).map_err(fail())?,
                errors: Some(Stream::new(errors.0).map_err(fail())?),
            };
            Ok(Connected { more: Vec::new(), plan: Streams::Plain(places), pipes: Some(pipes), slave: None })
        }
    }
}

fn nothing(input: bool) -> std::io::Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    options.read(input).write(!input).open("/dev/null").map(OwnedFd::from)
}
