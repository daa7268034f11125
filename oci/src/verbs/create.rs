//! `create`: from a bundle to a container whose program waits for `start`, or to nothing at all.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use kata_cc_agent_protocol::agent as api;
use protobuf::well_known_types::empty::Empty;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Context, check_terminal, preserved, write_pid};
use crate::agent::Agent;
use crate::arguments::Create;
use crate::bundle::Bundle;
use crate::cgroup::{Groups, Hierarchies, Inside, Wanted, for_the_host};
use crate::console::{self, Own};
use crate::error::{OciError, io};
use crate::grouping::{self, Kind};
use crate::hooks::{self, When};
use crate::images;
use crate::keeper::{self, Keeper};
use crate::monitor::{self, SENTRY_LOG};
use crate::process::Known;
use crate::store::{CONFIG, Folder, Locked, State};
use crate::streams::{self, Streams};
use crate::wire;

/// For so long a sandbox whose creation failed may give back what it took of its network; then it is killed.
const ENDS: Duration = Duration::from_secs(5);

/// Who takes the container's terminal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Terminal<'a> {
    /// An engine, over this socket; or there is none.
    Engine(Option<&'a Path>),
    /// The user's own.
    Own(&'a Own),
}

/// A container that was created.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) locked: Locked,
    pub(super) state: State,
    /// The process that stands for it.
    pub(super) child: Child,
}

/// What exists while a creation is under way.
struct Underway<'a> {
    context: &'a Context,
    bundle: &'a Bundle,
    locked: Locked,
    state: State,
    /// Descriptors that the program is to have from 3 on.
    more: Vec<OwnedFd>,
    process: Option<Process>,
    /// The image that it is made of.
    image: Option<std::fs::File>,
    /// Whether hooks have run that others undo.
    hooked: bool,
    /// Whether the container may be in a sandbox that stays.
    joined: bool,
}

/// The process that is told.
enum Process {
    Monitor(Child),
    Keeper(Keeper),
}

impl Process {
    fn id(&self) -> u32 {
        match self {
            Self::Monitor(child) => child.id(),
            Self::Keeper(keeper) => keeper.child.id(),
        }
    }
}

/// The verb.
pub(super) fn create(context: &Context, arguments: &Create) -> Result<u8, OciError> {
    let bundle = open_bundle(arguments)?;
    check_terminal(bundle.terminal(), true, arguments.console_socket.is_some())?;
    let terminal = Terminal::Engine(arguments.console_socket.as_deref());
    create_of(context, arguments, &bundle, terminal)?;
    Ok(0)
}

/// The bundle that is meant.
pub(super) fn open_bundle(arguments: &Create) -> Result<Bundle, OciError> {
    Ok(Bundle::open(arguments.bundle.as_deref().unwrap_or_else(|| Path::new(".")))?)
}

/// Creates a container; a failure leaves nothing behind.
pub(super) fn create_of(
    context: &Context,
    arguments: &Create,
    bundle: &Bundle,
    terminal: Terminal<'_>,
) -> Result<Created, OciError> {
    let image = match &arguments.image {
        Some(path) => {
            let what = || format!("cannot open the image {}", path.display());
            Some(std::fs::File::open(path).map_err(|error| io(what())(error))?)
        }
        None => None,
    };
    let more = preserved(arguments.preserve_fds)?;
    let locked = context.store.claim(&arguments.id)?;
    let state = new_state(&arguments.id, bundle);
    let mut underway =
        Underway { context, bundle, locked, state, more, process: None, image, hooked: false, joined: false };
    let made = underway.make(terminal).and_then(|()| {
        let pid = underway.process.as_ref().map(Process::id).unwrap_or_default();
        write_pid(arguments.pid_file.as_deref(), pid)
    });
    if let Err(error) = made {
        underway.undo();
        return Err(error);
    }
    let Underway { locked, state, process, .. } = underway;
    let child = match process {
        Some(Process::Monitor(child)) => child,
        Some(Process::Keeper(keeper)) => keeper.go(),
        None => return Err(OciError::Usage("a container without a process".into())),
    };
    Ok(Created { locked, state, child })
}

fn new_state(id: &str, bundle: &Bundle) -> State {
    let annotations = bundle.annotations();
    let group = grouping::group(id, &annotations.clone().into_iter().collect());
    State {
        id: id.to_owned(),
        sandbox: if group.kind == Kind::Member { group.id } else { id.to_owned() },
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs.clone(),
        created: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        annotations,
        process: Known { pid: 0, start: 0 },
        creating: true,
        started: false,
        paused: false,
        groups: None,
    }
}

impl Underway<'_> {
    fn make(&mut self, terminal: Terminal<'_>) -> Result<(), OciError> {
        let config = self.locked.folder.file(CONFIG);
        std::fs::write(&config, &self.bundle.text)
            .map_err(io(format!("cannot write {}", config.display())))?;
        let inside = self.charge()?;
        let folder = self.start_process()?;
        drop(inside);
        // Noted before anything else is done: a `create` that is killed now is deleted by what is known here.
        self.state.process =
            self.process.as_ref().and_then(|process| Known::of(process.id())).ok_or_else(|| {
                OciError::Sentry {
                    program: monitor::program(),
                    reason: monitor::last_words(&folder.file(SENTRY_LOG)),
                }
            })?;
        self.locked.write(&self.state)?;
        self.run_hooks()?;
        self.hand_streams(&folder, terminal)?;
        if let Some(image) = &self.image {
            images::hand_over(folder.path(), &self.state.id, image.as_fd())?;
        }
        self.joined = true;
        let mut agent = Agent::connect(folder.path())?;
        let request = self.request();
        let made: Result<Empty, _> = match &self.image {
            // A large one takes as long as it takes.
            Some(_) => agent.call_when("CreateContainer", &request, None, |socket| {
                images::wait(folder.path(), &self.state.id, socket)
            }),
            None => agent.call("CreateContainer", &request),
        };
        made.map_err(|error| self.explained(error.into()))?;
        self.state.creating = false;
        self.locked.write(&self.state)
    }

    /// Its control groups, and their limits. What is given back is kept until its process is in them.
    fn charge(&mut self) -> Result<Inside, OciError> {
        let linux = &self.bundle.spec["linux"];
        let wanted = Wanted {
            cgroups_path: linux["cgroupsPath"].as_str(),
            id: &self.state.id,
            annotations: &self.bundle.spec["annotations"],
        };
        let made = Hierarchies::of_host()
            .and_then(|hierarchies| Groups::make(&hierarchies, self.context.driver, &wanted));
        let limited = made.and_then(|(groups, inside)| {
            if let Err(error) = groups.limit(&for_the_host(&linux["resources"])) {
                drop(inside);
                groups.remove();
                return Err(error);
            }
            Ok((groups, inside))
        });
        match limited {
            Ok((groups, inside)) => {
                self.state.groups = Some(groups);
                Ok(inside)
            }
            Err(error) if error.is_permission() && self.context.may_lack_groups() => {
                self.context.log.warn(&format!("the container is not limited: {error}"));
                Ok(Inside::default())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The sentry, or for a further container of its sandbox a process that stands for it; the folder of the sandbox.
    fn start_process(&mut self) -> Result<Folder, OciError> {
        let state = &self.state;
        let groups = state.groups.as_ref();
        if state.sandbox == state.id {
            let folder = self.locked.folder.clone();
            let plan = monitor::Plan {
                folder: folder.path(),
                container: &state.id,
                spec: &self.bundle.spec,
                groups,
                mode: self.context.network,
                weak: self.context.weak,
            };
            if let Some(lacks) = plan.lacks_network() {
                self.context.log.warn(lacks);
            }
            self.process = Some(Process::Monitor(monitor::start(&plan)?));
            return Ok(folder);
        }
        let missing = || OciError::NoSandbox { id: state.id.clone(), sandbox: state.sandbox.clone() };
        let (folder, sandbox) = self.context.store.load(&state.sandbox).map_err(|_| missing())?;
        if !sandbox.process.alive() {
            return Err(missing());
        }
        self.process = Some(Process::Keeper(keeper::start(folder.path(), &state.id, "", groups)?));
        Ok(folder)
    }

    fn run_hooks(&mut self) -> Result<(), OciError> {
        let state = serde_json::to_value(self.state.shown("")).unwrap_or_default();
        self.hooked = true;
        for when in [When::CreateRuntime, When::CreateContainer] {
            hooks::run(when, &self.bundle.spec, &state)?;
        }
        Ok(())
    }

    fn hand_streams(&self, folder: &Folder, terminal: Terminal<'_>) -> Result<(), OciError> {
        let id = &self.state.id;
        let hand = |streams: Streams<'_>| streams::hand_over_with(folder.path(), id, "", streams, &self.more);
        match (terminal, self.bundle.terminal()) {
            (Terminal::Own(own), _) => hand(Streams::Terminal(own.terminal.as_fd()))?,
            (Terminal::Engine(Some(socket)), true) => {
                let slave = console::make(socket, &self.bundle.spec["process"])?;
                hand(Streams::Terminal(slave.as_fd()))?;
            }
            _ => {
                let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
                hand(Streams::Pipes([input.as_fd(), output.as_fd(), errors.as_fd()]))?;
            }
        }
        Ok(())
    }

    fn request(&self) -> api::CreateContainerRequest {
        let (id, spec) = (&self.state.id, &self.bundle.spec);
        let mut request = api::CreateContainerRequest::new();
        request.container_id.clone_from(id);
        request.exec_id.clone_from(id);
        request.OCI = Some(wire::for_sentry(id, spec, &self.bundle.rootfs.to_string_lossy())).into();
        request
    }

    /// A refusal with the sentry's own last words where it is gone.
    fn explained(&self, error: OciError) -> OciError {
        let gone = matches!(&error, OciError::Agent(crate::agent::AgentError::Unreachable { .. }));
        let words = monitor::last_words(&self.locked.folder.file(SENTRY_LOG));
        if gone && !words.is_empty() {
            return OciError::Sentry { program: monitor::program(), reason: words };
        }
        error
    }

    fn undo(self) {
        match self.process {
            Some(Process::Monitor(mut child)) => {
                // By itself it gives the interfaces of the network namespace back.
                if let Some(known) = Known::of(child.id()) {
                    known.end(ENDS);
                }
                let _ = child.kill();
                let _ = child.wait();
            }
            Some(Process::Keeper(keeper)) => {
                if self.joined {
                    let folder = self.context.store.folder_of(&self.state.sandbox);
                    let mut request = api::RemoveContainerRequest::new();
                    request.container_id.clone_from(&self.state.id);
                    let _ = Agent::connect(folder.path())
                        .and_then(|mut agent| agent.call::<Empty>("RemoveContainer", &request));
                }
                keeper.call_off();
            }
            None => {}
        }
        if let Some(groups) = &self.state.groups {
            groups.remove();
        }
        if self.hooked {
            let shown = serde_json::to_value(self.state.shown("")).unwrap_or_default();
            hooks::run_all(When::Poststop, &self.bundle.spec, &shown, |error| {
                self.context.log.warn(&error.to_string());
            });
        }
        if let Err(error) = self.locked.folder.remove() {
            self.context.log.warn(&error.to_string());
        }
    }
}
