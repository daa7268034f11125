//! `serve`: a sandbox that is driven by the agent API.
//!
//! Two processes. The *sentry* runs guests, is defended, and knows no client. The *monitor* is here: it stays in the namespaces it was started
//! in, serves clients, opens files of the host for the sentry, and holds the ends of streams. A socket leads from one to the other
//! ([`kata_cc_sentry::control`]). It has one thread: the runtime is for waiting on many sockets, not for work.
//!
//! | file | what is in it |
//! |---|---|
//! | `service` | the agent API: codes and texts |
//! | `work` | what its calls do |
//! | `spec` | a specification as a plan for the sentry |
//! | `open` | files of the host |
//! | `streams` | descriptors that clients give |
//! | `stream`, `terminal` | pipes, terminals of the host |
//! | `table` | containers and processes by name |
//! | `network`, `addresses` | the pod's interfaces, and how the agent API tells of them |
//! | `link` | the socket to the sentry |
//! | `sockets` | sockets that clients come to |
//! | `idle` | what it lets go of when containers run |

mod addresses;
mod idle;
mod images;
mod link;
mod memory;
mod network;
mod open;
mod ready;
mod service;
mod sockets;
mod spec;
mod stream;
mod streams;
mod table;
mod terminal;
mod work;

use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use kata_cc_agent_protocol::agent_ttrpc::{AgentService, create_agent_service};
use kata_cc_agent_protocol::health_ttrpc::{Health, create_health};
use kata_cc_sentry::control;
use kata_cc_sentry::control::message::{Ask, ContainerNumber, ProcessNumber};
use kata_cc_sentry::defence::{Defence, SentryProcess, Served, Strength};
use kata_cc_sentry::kernel::Kernel;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::confinement::Confinement;
use link::Engine;
use service::Service;
use work::Monitor;

/// Exit code when the sentry was lost (`EX_SOFTWARE`).
const LOST: u8 = 70;
/// How long answers have to leave before the end.
const LEAVES: Duration = Duration::from_millis(100);
/// How often descriptors that nobody took are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How long the sentry may take to be there.
const STARTS: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Serve {
    /// Socket to make, where the agent API is served (ttrpc).
    #[arg(long, value_name = "PATH")]
    agent_socket: PathBuf,
    /// Socket to make, where descriptors are given to processes.
    #[arg(long, value_name = "PATH")]
    streams_socket: PathBuf,
    /// Name of the sandbox, for the log.
    #[arg(long, default_value = "sandbox", value_name = "ID")]
    id: String,
    /// Name of the machine, until a request says another.
    #[arg(long, default_value = "sandbox")]
    hostname: String,
    /// Most MiB of changes to each root that stay in memory.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Descriptor that gets one byte, and is closed, when clients can come.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<RawFd>,
    /// End with the first process of this container, and with its exit code.
    #[arg(long, value_name = "CONTAINER")]
    until: Option<String>,
    /// Milliseconds for which its end may still be asked for, where nobody did; 0 where everybody looks at this process instead.
    #[arg(long, value_name = "MS", default_value_t = 2000, requires = "until")]
    linger: u64,
    /// Network besides loopback: `sandbox`, all interfaces of the network namespace that it is started in, with their addresses and routes, from
    /// the first container on (`sandbox,seize`: also where processes outside the sandbox use it); `none`; or as `do` has it.
    #[arg(long, default_value = "none", value_name = "NETWORK")]
    network: kata_cc_sentry::link::Network,
    #[command(flatten)]
    confinement: Confinement,
}

/// Serves until it is asked to end.
pub(crate) fn run(options: Serve) -> anyhow::Result<u8> {
    table::check_id(&options.id).context("--id")?;
    if let Some(until) = &options.until {
        table::check_id(until).context("--until")?;
    }
    let strength = options.confinement.strength();
    let network = network::Network::new(options.network.clone()).context("--network")?;
    let ready = ready::Ready::take(options.ready_fd)?;
    ready::leave_streams().context("cannot put /dev/null in the place of the standard streams")?;
    match Defence::begin_served(strength, options.network != kata_cc_sentry::link::Network::None)
        .context("cannot defend the sentry")?
    {
        Served::Sentry(defence, control) => {
            match strength {
                Strength::Off => drop(ready),
                // It closed all that it was started with, and so this one's number may be another's.
                _ => ready.forget(),
            }
            sentry(&defence, control, &options)
        }
        Served::Monitor(sentry, control) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?;
            let ended = runtime.block_on(monitor(options, network, (sentry, control), ready));
            // Reads and waits of clients do not hold up the end.
            runtime.shutdown_background();
            ended
        }
    }
}

/// What the sentry's process does.
fn sentry(defence: &Defence, control: OwnedFd, options: &Serve) -> anyhow::Result<u8> {
    let platform = options.confinement.start_platform()?;
    let kernel = Kernel::new(platform);
    kernel.set_host_name(options.hostname.as_bytes());
    // It looks at the machine's memory, once, and cannot do so later.
    drop(kata_cc_sentry::vfs::tmpfs::Tmpfs::new(None));
    defence.enter(options.confinement.platform).context("cannot defend the sentry")?;
    control::serve(&kernel, control).context("the monitor is lost")?;
    Ok(0)
}

/// How the monitor ends.
enum End {
    /// It was asked to.
    Asked,
    /// A container did, with this code.
    Container(u8),
    /// The sentry did.
    Lost,
}

async fn monitor(
    options: Serve,
    network: network::Network,
    (sentry, control): (SentryProcess, OwnedFd),
    ready: ready::Ready,
) -> anyhow::Result<u8> {
    let (link, engine) = link::new(control).context("the socket to the sentry")?;
    let table = Arc::new(table::Table::default());
    let (ends, mut ended) = mpsc::unbounded_channel();
    let memory_of_host = Arc::new(memory::Memory::of_host());
    let losses =
        Losses { memory: Arc::clone(&memory_of_host), table: Arc::clone(&table), link: link.clone() };
    let lost = tokio::spawn(drive(engine, sentry, losses, ends));
    let monitor = Arc::new(Monitor {
        link: link.clone(),
        table,
        parked: streams::Parked::default(),
        strength: options.confinement.strength(),
        network,
        memory_of_host,
        memory: options.memory.map(|mib| mib << 20),
        destroyed: tokio::sync::Notify::new(),
        gofers: std::sync::Mutex::default(),
        followed: tokio::sync::Mutex::default(),
    });
    let begun = tokio::time::timeout(STARTS, monitor.name(Some(options.hostname.clone()), None)).await;
    begun.context("the sentry does not answer")?.context("the sentry does not start")?;
    monitor.begin_network().await.context("cannot take the network over")?;
    // Before anybody can know that it is there: who does may end it, and whoever it starts may end.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut hangup, mut resized) = (signal(SignalKind::hangup())?, signal(SignalKind::window_change())?);
    let mut children = signal(SignalKind::child())?;
    let clients = Clients::listen(&options, &monitor).await?;
    tracing::info!(id = options.id, "serving");
    ready.tell();
    let linger = Duration::from_millis(options.linger);
    let until = until(options.until.clone(), linger, &monitor);
    tokio::pin!(until);
    let mut sweep = tokio::time::interval(SWEEP);
    let end = loop {
        tokio::select! {
            () = monitor.destroyed.notified() => break End::Asked,
            _ = terminate.recv() => break End::Asked,
            _ = interrupt.recv() => break End::Asked,
            // A terminal of the host hung up: who has it hears of it another way.
            _ = hangup.recv() => {}
            _ = resized.recv() => monitor.size_changed().await,
            _ = children.recv() => monitor.children_ended().await,
            Some(number) = ended.recv() => monitor.leave_terminal(number).await,
            code = &mut until => break End::Container(code),
            reason = link.ended() => {
                tracing::error!(reason, "the sandbox is lost");
                break End::Lost;
            }
            _ = sweep.tick(), if monitor.parked.any() => monitor.parked.sweep(),
        }
    };
    // The last answers are still on their way.
    tokio::time::sleep(LEAVES.min(linger)).await;
    drop(clients);
    lost.abort();
    let _ = lost.await;
    monitor.give_network_back().await;
    Ok(code(&end, options.until.is_some()))
}

/// The exit code. With `until` it is that of the container, which was killed.
fn code(end: &End, until: bool) -> u8 {
    match (end, until) {
        (End::Container(code), _) => *code,
        (End::Asked, false) => 0,
        (End::Asked, true) => 143,
        (End::Lost, false) => LOST,
        (End::Lost, true) => 137,
    }
}

/// Containers that lose processes to the host.
struct Losses {
    memory: Arc<memory::Memory>,
    table: Arc<table::Table>,
    link: link::Link,
}

impl Losses {
    /// A container has lost one. Where the host counts it, that was for want of memory: else its own code ended it, or somebody on the host.
    fn hear(&self, container: ContainerNumber) {
        let Some(name) = self.table.name(container).filter(|_| self.memory.ran_out()) else { return };
        self.memory.tell(name);
        let link = self.link.clone();
        // Who reads its group's count sees it, too.
        tokio::spawn(async move {
            let _ = link.ask(Ask::OutOfMemory(container), Vec::new()).await;
        });
    }

    /// The sentry itself is lost. Whether that was for want of memory, which then concerns all containers.
    fn hear_of_all(&self) -> bool {
        let ran_out = self.memory.ran_out();
        if ran_out {
            self.table.names().into_iter().for_each(|name| self.memory.tell(name));
        }
        ran_out
    }
}

/// Carries messages until the sentry is lost, ends what is left of it, and tells why.
async fn drive(
    mut engine: Engine,
    sentry: SentryProcess,
    losses: Losses,
    ends: mpsc::UnboundedSender<ProcessNumber>,
) {
    // When this task is dropped the sentry is to end, too.
    let sentry = Killed(sentry);
    let ended = |(number, status)| {
        let known = losses.table.ended(number, status);
        // The receiver is gone at the end alone.
        let _ = ends.send(number);
        known
    };
    let seen = engine.run(ended, |container| losses.hear(container)).await;
    let why = if losses.hear_of_all() { ", killed by the host, as its memory was used up" } else { "" };
    sentry.0.kill();
    let how = match sentry.0.wait() {
        Ok(code) if code > 128 => format!("ended by signal {}", code - 128),
        Ok(code) => format!("ended with code {code}"),
        Err(errno) => format!("cannot be waited for: {errno}"),
    };
    engine.close(format!("the sentry is gone, and all containers with it: {seen}; its process {how}{why}"));
}

struct Killed(SentryProcess);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// The end of a container on which everything hangs, once somebody heard of it.
async fn until(container: Option<String>, linger: Duration, monitor: &Monitor) -> u8 {
    let Some(container) = container else { return std::future::pending().await };
    let first = monitor.table.made(&container).await.first;
    let code = first.ended().await;
    let _ = tokio::time::timeout(linger, first.waited()).await;
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// What clients come to.
struct Clients {
    _server: Server,
    streams: tokio::task::JoinHandle<()>,
    _names: [sockets::Name; 2],
}

impl Clients {
    async fn listen(options: &Serve, monitor: &Arc<Monitor>) -> anyhow::Result<Self> {
        if options.agent_socket == options.streams_socket {
            bail!("--agent-socket and --streams-socket are the same");
        }
        let listen = |path: &PathBuf| {
            sockets::listen(path).with_context(|| format!("cannot listen on {}", path.display()))
        };
        let (agent, agent_name) = listen(&options.agent_socket)?;
        let (streams, streams_name) = listen(&options.streams_socket)?;
        let service = Arc::new(Service(Arc::clone(monitor)));
        let api: Arc<dyn AgentService + Send + Sync> = service.clone();
        let health: Arc<dyn Health + Send + Sync> = service;
        let mut server = Server::new()
            .add_listener(Listener::new(sockets::connections(agent)))
            .register_service(create_agent_service(api))
            .register_service(create_health(health));
        server.start().await.context("start the server")?;
        let monitor = Arc::clone(monitor);
        let streams = tokio::spawn(async move {
            let mut connections = std::pin::pin!(sockets::connections(streams));
            while let Some(connection) = connections.next().await {
                let monitor = Arc::clone(&monitor);
                if let Ok(connection) = connection {
                    tokio::spawn(async move { streams::serve(connection, &monitor).await });
                }
            }
        });
        Ok(Self { _server: server, streams, _names: [agent_name, streams_name] })
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.streams.abort();
    }
}
