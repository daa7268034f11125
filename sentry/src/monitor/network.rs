//! The sandbox' network: the pod's interfaces are taken over here, where that is allowed, and handed to the sentry.
//!
//! **When.** Engines make the network before they create a container, or by hooks that run when this process is there already. So the
//! namespace is looked at when the first container has been made, before its program runs; and again with each further container, and when the host
//! tells of news: an engine may connect a container to a further network while it runs. News are looked at once nothing was new for a
//! moment ([`SETTLES`]), as addresses come before routes.
//!
//! **Whole or not at all.** Each interface is taken over by itself, and is the host's again where the sentry does not take it; the others are not
//! concerned. A first container that cannot be made for it leaves the whole network where it was. A namespace that processes outside the sandbox use
//! is left to them, unless it is said that it may be taken (`seize`).
//!
//! **Until when.** At the end the interfaces are given back as they were: plug-ins that take a network away look at them. Who kills this
//! process takes the namespace, too.
//!
//! What the sentry was told is known here, so that it need not be asked.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kata_cc_agent_protocol::types::{ARPNeighbor, Interface, Route};
use kata_cc_sentry::control::message::{Answer, Ask};
use kata_cc_sentry::link::{self, Change, Found, LinkError, Opened, Pod};
use kata_cc_sentry::net::stack::LinkConfig;

use super::addresses;
use super::spec::{Descriptors, SpecError, Wish, invalid, unsupported};
use super::stream::Stream;
use super::work::{Monitor, WorkError};

/// For so long nothing has to be new.
const SETTLES: Duration = Duration::from_millis(250);
/// And so long at most is waited for that.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a message that are looked at.
const MESSAGE: usize = 8192;
/// Of a container's specification.
const FIELD: &str = "annotation dev.kata-cc.sentry.network";

/// The network of a sandbox.
pub(crate) struct Network {
    wanted: link::Network,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    pod: Pod,
    /// As the sentry was told, with the longest packet of the host's side.
    links: Vec<(LinkConfig, u32)>,
}

/// Whether the pod's namespace is looked at.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not before there is a container.
    #[default]
    Waiting,
    /// It is.
    Followed,
    /// It is not, as the first container wants it.
    Declined,
    /// Not any more.
    Over,
}

impl Network {
    /// As the command line has it. Whether the pod's namespace may be taken over is said now.
    pub(crate) fn new(wanted: link::Network) -> Result<Self, LinkError> {
        let mut state = State::default();
        if let link::Network::Sandbox { seize } = wanted {
            state.pod = link::pod(seize)?;
        }
        Ok(Self { wanted, state: tokio::sync::Mutex::new(state) })
    }

    fn is_pods(&self) -> bool {
        matches!(self.wanted, link::Network::Sandbox { .. })
    }

    /// Whether a container can be had with what it says of the network.
    async fn check(&self, said: Option<Wish>) -> Result<(), SpecError> {
        let said = said.map(|wish| wish != Wish::None);
        let followed = match (self.is_pods(), self.state.lock().await.phase) {
            (true, Phase::Waiting) => return Ok(()),
            (true, phase) => phase == Phase::Followed,
            (false, _) if said == Some(true) => {
                return unsupported(FIELD, "the sandbox was not started with --network sandbox");
            }
            (false, _) => self.wanted != link::Network::None,
        };
        match said {
            Some(said) if said != followed => invalid(
                FIELD,
                "the network is that of the whole sandbox, whose first container says what it is",
            ),
            _ => Ok(()),
        }
    }
}

impl Monitor {
    /// Hands over what the command line names, and begins to listen for news of the pod's namespace.
    pub(crate) async fn begin_network(self: &Arc<Self>) -> Result<(), WorkError> {
        if self.network.is_pods() {
            let news = link::news().map_err(std::io::Error::from).and_then(Stream::new);
            let news = news.map_err(super::work::host("hearing of interfaces"))?;
            tokio::spawn(follow(Arc::downgrade(self), news));
            return Ok(());
        }
        let mut state = self.network.state.lock().await;
        for opened in link::open(&self.network.wanted)? {
            self.attach(&mut state, opened).await?;
        }
        Ok(())
    }

    /// Whether a container can be had with what it says of the network.
    pub(crate) async fn check_network(&self, said: Option<Wish>) -> Result<(), WorkError> {
        Ok(self.network.check(said).await?)
    }

    /// A container is made, and says this of the network.
    pub(crate) async fn join_network(&self, said: Option<Wish>) -> Result<(), WorkError> {
        let mut state = self.network.state.lock().await;
        let before = state.phase;
        if self.network.is_pods() && before == Phase::Waiting {
            state.phase = if said == Some(Wish::None) { Phase::Declined } else { Phase::Followed };
        }
        if said == Some(Wish::Sandbox { seize: true }) {
            state.pod.seize();
        }
        let looked = self.look(&mut state, true).await;
        if looked.is_err() && before == Phase::Waiting {
            // There is nobody to have it.
            for (config, _) in std::mem::take(&mut state.links) {
                // Where the sentry is gone, so is its interface.
                let _ = self.told(Ask::Detach(config.name), Vec::new()).await;
            }
            state.pod.give_all_back();
            state.phase = before;
        }
        looked
    }

    /// Looks what there is in the pod's namespace, and tells the sentry. What fails concerns its interface alone; the first failure is told.
    async fn look(&self, state: &mut State, complete: bool) -> Result<(), WorkError> {
        if state.phase != Phase::Followed {
            return Ok(());
        }
        let Found { changes, failed } = state.pod.look(complete)?;
        let mut failed: Vec<WorkError> = failed.into_iter().map(WorkError::from).collect();
        for change in changes {
            if let Err(error) = self.change(state, change).await {
                failed.push(error);
            }
        }
        let mut failed = failed.into_iter();
        let first = failed.next();
        failed.for_each(|error| tracing::warn!(%error, "an interface of the pod is not taken over"));
        first.map_or(Ok(()), Err)
    }

    /// Tells the sentry of a change. One that it does not take is undone.
    async fn change(&self, state: &mut State, change: Change) -> Result<(), WorkError> {
        match change {
            Change::Taken(opened) => {
                let name = opened.config.name.clone();
                self.attach(state, opened).await.inspect_err(|_| state.pod.undo(&name))?;
                tracing::info!(interface = name, "taken over");
            }
            Change::Changed(host) => {
                let named = |(known, _): &&mut (LinkConfig, u32)| known.name == host.name;
                let Some((known, most)) = state.links.iter_mut().find(named) else { return Ok(()) };
                let (name, mut next, mut longest) = (host.name.clone(), known.clone(), *most);
                addresses::add(&mut next, host, &mut longest);
                self.configure(known, next).await.inspect_err(|_| state.pod.undo(&name))?;
                *most = longest;
            }
            Change::Gone(name) => {
                state.links.retain(|(known, _)| known.name != name);
                self.told(Ask::Detach(name.clone()), Vec::new()).await?;
                tracing::info!(interface = name, "the interface is gone");
            }
        }
        Ok(())
    }

    async fn attach(&self, state: &mut State, opened: Opened) -> Result<(), WorkError> {
        let Opened { config, fd } = opened;
        let mut descriptors = Descriptors::default();
        let ask = Ask::Attach(Box::new(config.clone()), descriptors.add(fd)?);
        self.told(ask, descriptors.into_inner()).await?;
        let most = config.mtu;
        state.links.push((config, most));
        Ok(())
    }

    async fn configure(&self, known: &mut LinkConfig, next: LinkConfig) -> Result<(), WorkError> {
        self.told(Ask::Configure(Box::new(next.clone())), Vec::new()).await?;
        *known = next;
        Ok(())
    }

    async fn told(&self, ask: Ask, descriptors: Vec<OwnedFd>) -> Result<(), WorkError> {
        match self.link.ask(ask, descriptors).await? {
            Answer::Done => Ok(()),
            _ => Err(WorkError::Answer),
        }
    }

    /// Something is new in the pod's namespace.
    async fn news(&self) {
        let mut state = self.network.state.lock().await;
        if let Err(error) = self.look(&mut state, false).await {
            tracing::warn!(%error, "an interface of the pod is not taken over");
        }
    }

    /// The sandbox is at its end: the interfaces are the host's again.
    pub(crate) async fn give_network_back(&self) {
        let mut state = self.network.state.lock().await;
        state.phase = Phase::Over;
        state.pod.give_all_back();
    }

    /// Interfaces besides loopback.
    pub(crate) async fn interfaces(&self) -> Vec<Interface> {
        self.network.state.lock().await.links.iter().map(|(config, _)| addresses::show(config)).collect()
    }

    /// Their routes.
    pub(crate) async fn routes(&self) -> Vec<Route> {
        self.network
            .state
            .lock()
            .await
            .links
            .iter()
            .flat_map(|(config, _)| addresses::show_routes(config))
            .collect()
    }

    /// Gives an interface other addresses, and another MTU where that is said.
    pub(crate) async fn update_interface(&self, wanted: &Interface) -> Result<(), WorkError> {
        let mut state = self.network.state.lock().await;
        let found = addresses::find(&mut state.links, wanted)?;
        let next = addresses::update(&found.0, found.1, wanted)?;
        self.configure(&mut found.0, next).await
    }

    /// Adds routes; one that leads to the same with the same metric gives way.
    pub(crate) async fn update_routes(&self, wanted: &[Route]) -> Result<(), WorkError> {
        let mut state = self.network.state.lock().await;
        for route in wanted {
            let (known, _) = addresses::named(&mut state.links, "route.device", &route.device)?;
            let next = addresses::with_route(known, route)?;
            self.configure(known, next).await?;
        }
        Ok(())
    }

    /// Adds hardware addresses of neighbours.
    pub(crate) async fn add_neighbours(&self, wanted: &[ARPNeighbor]) -> Result<(), WorkError> {
        let mut state = self.network.state.lock().await;
        for neighbour in wanted {
            let (known, _) = addresses::named(&mut state.links, "neighbor.device", &neighbour.device)?;
            let next = addresses::with_neighbour(known, neighbour)?;
            self.configure(known, next).await?;
        }
        Ok(())
    }
}

/// Looks again whenever there are news, until the sandbox is gone.
async fn follow(monitor: Weak<Monitor>, news: Stream) {
    while heard(&news).await {
        let quiet = async { while tokio::time::timeout(SETTLES, heard(&news)).await.unwrap_or(false) {} };
        // Without a quiet moment it is looked, too.
        let _ = tokio::time::timeout(PATIENCE, quiet).await;
        let Some(monitor) = monitor.upgrade() else { return };
        monitor.news().await;
    }
}

/// Waits for a message. `false` where nothing will ever be heard.
async fn heard(news: &Stream) -> bool {
    match news.read(MESSAGE).await {
        Ok(_) => true,
        // There were more than it holds: of those, too, it is enough to know that there were some.
        Err(error) => error.raw_os_error() == Some(libc::ENOBUFS),
    }
}
