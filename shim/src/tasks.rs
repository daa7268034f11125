//! All containers of one pod: creating, deleting, and the pod's own life.
//!
//! A call that changes something runs in a task of its own, so a caller that goes away in the middle (ttrpc drops a
//! connection's handlers) leaves nothing half done. A container that is being created holds its id; `Shutdown` for
//! that id gives it up.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use kata_cc_containerd_protocol::mount::Mount;
use kata_cc_containerd_protocol::task_events::{TaskCreate, TaskIO};
use kata_cc_sandbox::Pull;
use oci_spec::runtime::Spec;
use protobuf::MessageField;
use tokio::sync::watch;

use crate::alive::prompt;
use crate::cell::{Cell, Parts, Proc};
use crate::error::TaskError;
use crate::events::{Details, Publisher};
use crate::flags::is_identifier;
use crate::grouping::{self, Kind};
use crate::guest::{ContainerRequest, GuestError, Launcher, Pod, PodRequest};
use crate::hooks;
use crate::machine::{Event, Exit, KILLED_EXIT, State, UNKNOWN_EXIT};
use crate::mounts;
use crate::stdio::Streams;

/// How often to look whether containerd still knows the server.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// A container to create, as containerd asks.
#[derive(Clone, Debug)]
pub struct Create {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What to mount as its root file system.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub streams: Streams,
}

/// Between two looks at how a pull goes on: the guest tells of one every ten seconds at most.
const PULL_PAUSE: Duration = Duration::from_secs(5);

/// Between two reports of memory running out: a guest could report without end.
const MEMORY_PAUSE: Duration = Duration::from_millis(250);

enum Slot {
    /// Being created from a bundle; told when the caller gives it up.
    Creating(watch::Sender<bool>, PathBuf),
    Ready(Arc<Cell>),
}

enum Sandbox {
    None,
    Running(Arc<dyn Pod>),
    Stopped,
}

/// The server's state.
pub struct Tasks {
    pub(crate) namespace: String,
    group: String,
    launcher: Arc<dyn Launcher>,
    publisher: Publisher,
    sandbox: tokio::sync::Mutex<Sandbox>,
    slots: Mutex<BTreeMap<String, Slot>>,
    done: watch::Sender<bool>,
}

impl Tasks {
    /// A server without containers for the pod `group`.
    #[must_use]
    pub fn new(
        namespace: String,
        group: String,
        launcher: Arc<dyn Launcher>,
        publisher: Publisher,
    ) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            group,
            launcher,
            publisher,
            sandbox: tokio::sync::Mutex::new(Sandbox::None),
            slots: Mutex::default(),
            done: watch::Sender::new(false),
        })
    }

    /// Returns when the server is to end.
    pub async fn finished(&self) {
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// Wait a short while for the last events to leave.
    pub async fn flush(&self) {
        self.publisher.flush(Duration::from_secs(2)).await;
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container.
    pub fn cell(&self, id: &str) -> Result<Arc<Cell>, TaskError> {
        match self.slots().get(id) {
            Some(Slot::Ready(cell)) => Ok(Arc::clone(cell)),
            _ => Err(TaskError::NoContainer(id.to_owned())),
        }
    }

    /// Create a container, and the pod when it is the first. Returns the pid to tell. After `patience` it is given up, and the error says
    /// what took so long.
    pub async fn create(
        self: &Arc<Self>,
        request: Create,
        patience: Option<Duration>,
    ) -> Result<u32, TaskError> {
        let (id, bundle) = (request.id.clone(), request.bundle.clone());
        let creating = self.create_in_time(request);
        let Some(patience) = patience else { return creating.await };
        match tokio::time::timeout(patience, creating).await {
            Ok(created) => created,
            Err(_) => {
                let doing = self.doing(&bundle);
                if !self.give_up(&id) {
                    // It was just done.
                    return self.cell(&id).map(|cell| cell.pod.pid());
                }
                let error = TaskError::TooLong { container: id, seconds: patience.as_secs(), doing };
                tracing::error!(%error, "a creation is given up");
                Err(error)
            }
        }
    }

    /// Publish how the pull of a container's image goes on, as the guest tells of it.
    async fn tell_of_pull(&self, pod: &dyn Pod, container: &ContainerRequest) -> Infallible {
        let Some(image) = &container.image else { return std::future::pending().await };
        let details = Details { container: container.id.clone(), pid: pod.pid(), create: None };
        let mut told = None;
        loop {
            tokio::time::sleep(PULL_PAUSE).await;
            let pull = pod.pull(image);
            if let (Some(pull), true) = (pull, pull != told) {
                self.publisher.publish(&Event::Pulling(image.clone(), pull), &details);
            }
            told = pull;
        }
    }

    /// What a creation from this bundle is waiting for, in words.
    fn doing(&self, bundle: &Path) -> String {
        // While a pod starts it is locked.
        let pod = match self.sandbox.try_lock().as_deref() {
            Ok(Sandbox::Running(pod)) => Arc::clone(pod),
            Ok(Sandbox::Stopped) => return "its guest has ended".to_owned(),
            Ok(Sandbox::None) | Err(_) => return "its guest is still starting".to_owned(),
        };
        let spec = load_spec(bundle).ok();
        let image = spec.and_then(|spec| grouping::image(&spec.annotations().clone()?).map(str::to_owned));
        let image = image.unwrap_or_else(|| "its image".to_owned());
        match pod.pull(&image) {
            Some(Pull { bytes, of, seconds }) => {
                format!(
                    "{image} is being pulled, {bytes} of {of} bytes had come after {seconds} s of the pull"
                )
            }
            None => format!("the guest prepares {image}"),
        }
    }

    async fn create_in_time(self: &Arc<Self>, request: Create) -> Result<u32, TaskError> {
        if !is_identifier(&request.id) {
            return Err(TaskError::Invalid(format!("container id {:?} is not an identifier", request.id)));
        }
        let given_up = {
            let mut slots = self.slots();
            if slots.contains_key(&request.id) {
                return Err(TaskError::Exists(request.id));
            }
            let given_up = watch::Sender::new(false);
            let told = given_up.subscribe();
            slots.insert(request.id.clone(), Slot::Creating(given_up, request.bundle.clone()));
            told
        };
        let tasks = Arc::clone(self);
        let created = tokio::spawn(async move {
            let id = request.id.clone();
            let too_late = given_up.clone();
            let result = tasks.create_reserved(request, given_up).await;
            let result = match result {
                Ok(cell) => tasks.keep(id.clone(), cell, &too_late).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(pid) => Ok(pid),
                Err(error) => {
                    tracing::error!(container = id, %error, "the container was not created");
                    let empty = {
                        let mut slots = tasks.slots();
                        slots.remove(&id);
                        slots.is_empty()
                    };
                    if empty {
                        tasks.stop_pod().await;
                    }
                    Err(error)
                }
            }
        });
        created.await.unwrap_or_else(|error| Err(TaskError::Internal(error.to_string())))
    }

    /// Takes a container that was created into the list, unless it was given up meanwhile.
    async fn keep(
        &self,
        id: String,
        cell: Arc<Cell>,
        given_up: &watch::Receiver<bool>,
    ) -> Result<u32, TaskError> {
        let undo =
            Undo { pod: Arc::clone(&cell.pod), id: id.clone(), mounted: cell.mounted.clone(), created: true };
        {
            let mut slots = self.slots();
            if !*given_up.borrow() {
                let pid = cell.pod.pid();
                tokio::spawn(watch_end(Arc::clone(&cell)));
                slots.insert(id, Slot::Ready(cell));
                return Ok(pid);
            }
        }
        undo.run().await;
        Err(TaskError::GivenUp(id))
    }

    async fn create_reserved(
        self: &Arc<Self>,
        request: Create,
        mut given_up: watch::Receiver<bool>,
    ) -> Result<Arc<Cell>, TaskError> {
        let spec = load_spec(&request.bundle)?;
        let annotations = spec.annotations().clone().unwrap_or_default();
        let kind = grouping::group(&request.id, &annotations).kind;
        let pod = self.pod(&request, &spec, kind, &mut given_up).await?;
        let mut undo = Undo { pod: Arc::clone(&pod), id: request.id.clone(), mounted: None, created: false };
        let made = async {
            let rootfs = root_folder(&request.bundle, &spec);
            if pod.uses_host_rootfs() && !request.rootfs.is_empty() {
                let (mounts, target) = (request.rootfs.clone(), rootfs.clone());
                let mounted = tokio::task::spawn_blocking(move || mounts::mount_all(&mounts, &target)).await;
                mounted.map_err(|error| TaskError::Internal(error.to_string()))??;
                undo.mounted = Some(rootfs.clone());
            }
            let opened = request.streams.open(&request.id, &self.namespace).await?;
            let container = ContainerRequest {
                id: request.id.clone(),
                bundle: request.bundle.clone(),
                image: grouping::image(&annotations).map(str::to_owned),
                spec: spec.clone(),
                kind,
                rootfs,
                terminal: request.streams.terminal,
            };
            hooks::run(hooks::When::Create, &spec, &request.id, &request.bundle, pod.pid()).await?;
            undo.created = true;
            tokio::select! {
                created = crate::alive::alive(&*pod, pod.create(&container)) => created?,
                () = told(&mut given_up) => return Err(TaskError::GivenUp(request.id.clone())),
                never = self.tell_of_pull(&*pod, &container) => match never {},
            }
            Ok(opened)
        }
        .await;
        match made {
            Err(error) => {
                undo.run().await;
                Err(error)
            }
            Ok(opened) => {
                let details = created_details(&request, pod.pid());
                let parts = Parts {
                    id: request.id,
                    bundle: request.bundle,
                    kind,
                    spec,
                    pod,
                    mounted: undo.mounted.take(),
                };
                let init = Proc::new(request.streams, Some(opened), None);
                Ok(Cell::new(parts, self.publisher.clone(), init, &details))
            }
        }
    }

    /// The pod, launched when there is none yet.
    async fn pod(
        self: &Arc<Self>,
        request: &Create,
        spec: &Spec,
        kind: Kind,
        given_up: &mut watch::Receiver<bool>,
    ) -> Result<Arc<dyn Pod>, TaskError> {
        let mut sandbox = self.sandbox.lock().await;
        match &*sandbox {
            Sandbox::Running(pod) => {
                return match pod.ended().now_or_never() {
                    Some(reason) => Err(GuestError::Unavailable(reason).into()),
                    None => Ok(Arc::clone(pod)),
                };
            }
            Sandbox::Stopped => {
                return Err(GuestError::FailedPrecondition("the sandbox has ended".to_owned()).into());
            }
            Sandbox::None => (),
        }
        let pod_request = PodRequest {
            id: self.group.clone(),
            namespace: self.namespace.clone(),
            bundle: request.bundle.clone(),
            spec: spec.clone(),
            kind,
        };
        let launcher = Arc::clone(&self.launcher);
        let mut launch = tokio::spawn(async move { launcher.launch(pod_request).await });
        let launched = tokio::select! {
            launched = &mut launch => Some(launched),
            () = told(given_up) => None,
        };
        let Some(launched) = launched else {
            // A launch must not be cut in two: let it finish, then end what it made.
            if let Ok(Ok(pod)) = launch.await {
                pod.stop().await;
            }
            return Err(TaskError::GivenUp(request.id.clone()));
        };
        let pod = launched.map_err(|error| TaskError::Internal(error.to_string()))??;
        *sandbox = Sandbox::Running(Arc::clone(&pod));
        tokio::spawn(Arc::clone(self).watch_memory(Arc::clone(&pod)));
        Ok(pod)
    }

    async fn watch_memory(self: Arc<Self>, pod: Arc<dyn Pod>) {
        let mut failures = 0;
        while failures < 5 {
            match crate::alive::alive(&*pod, pod.out_of_memory()).await {
                Ok(container) => {
                    if let Ok(cell) = self.cell(&container) {
                        tracing::warn!(container, "out of memory");
                        cell.apply(crate::machine::Container::out_of_memory);
                    }
                    tokio::time::sleep(MEMORY_PAUSE).await;
                }
                Err(GuestError::Unavailable(_)) => return,
                Err(error) => {
                    failures += 1;
                    tracing::debug!(%error, "no word about memory");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Delete a container that does not run; its pid and end.
    pub async fn delete(self: &Arc<Self>, id: &str) -> Result<(u32, Exit), TaskError> {
        let cell = {
            let mut slots = self.slots();
            let Some(Slot::Ready(cell)) = slots.get(id) else {
                return Err(TaskError::NoContainer(id.to_owned()));
            };
            cell.lock().machine.may_delete()?;
            let cell = Arc::clone(cell);
            slots.remove(id);
            cell
        };
        let tasks = Arc::clone(self);
        let deleted = tokio::spawn(async move { tasks.delete_taken(cell).await });
        deleted.await.map_err(|error| TaskError::Internal(error.to_string()))
    }

    async fn delete_taken(self: Arc<Self>, cell: Arc<Cell>) -> (u32, Exit) {
        let machine = {
            let inner = cell.lock();
            inner.machine.clone()
        };
        // A container that never ran ends now, so nobody waits for it for ever.
        cell.apply(|machine| machine.exited("", Exit { code: KILLED_EXIT, at: SystemTime::now() }));
        let _ = prompt(&*cell.pod, cell.pod.remove(&cell.id)).await;
        if let Some(target) = cell.mounted.clone() {
            let _ = tokio::task::spawn_blocking(move || mounts::unmount_all(&target)).await;
        }
        if let Err(error) =
            hooks::run(hooks::When::Stopped, &cell.spec, &cell.id, &cell.bundle, cell.pod.pid()).await
        {
            tracing::warn!(container = cell.id, %error, "a hook failed after the end");
        }
        let last = matches!(cell.kind, Kind::Sandbox | Kind::Single) || self.slots().is_empty();
        if last {
            self.stop_pod().await;
        }
        let (exit, events) = machine.deleted(SystemTime::now());
        cell.publish_last(&events);
        (cell.pod.pid(), exit)
    }

    /// End the pod; no container can be created any more.
    pub async fn stop_pod(&self) {
        let pod = {
            let mut sandbox = self.sandbox.lock().await;
            match std::mem::replace(&mut *sandbox, Sandbox::Stopped) {
                Sandbox::Running(pod) => Some(pod),
                Sandbox::Stopped => None,
                Sandbox::None => {
                    *sandbox = Sandbox::None;
                    None
                }
            }
        };
        if let Some(pod) = pod {
            pod.stop().await;
        }
    }

    /// Give up the creation of `id`; whether one is under way.
    fn give_up(&self, id: &str) -> bool {
        match self.slots().get(id) {
            Some(Slot::Creating(given_up, _)) => {
                given_up.send_replace(true);
                true
            }
            _ => false,
        }
    }

    /// End the server if no container is left. A creation of `id` that is under way is given up.
    pub async fn shutdown(self: &Arc<Self>, id: &str) {
        self.give_up(id);
        // containerd waits three seconds for the connection to close
        for _ in 0..50 {
            if !matches!(self.slots().get(id), Some(Slot::Creating(..))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let idle = !self.slots().iter().any(|(other, slot)| matches!(slot, Slot::Ready(_)) || other != id);
        if idle {
            self.stop_pod().await;
            self.done.send_replace(true);
        }
    }

    /// End the server when containerd has forgotten it: `start` or containerd was killed half-way, so nobody knows the
    /// address and no `delete` comes. The sign is a bundle that is gone; containerd removes it whenever it gives up.
    pub async fn watch_bundle(self: Arc<Self>, bundle: PathBuf) {
        loop {
            tokio::time::sleep(FORGOTTEN).await;
            let gone = !bundle.exists();
            let mut slots_in_use = false;
            for slot in self.slots().values() {
                slots_in_use = true;
                if let Slot::Creating(given_up, bundle) = slot
                    && !bundle.exists()
                {
                    given_up.send_replace(true);
                }
            }
            if gone && !slots_in_use {
                tracing::warn!("the bundle is gone and no container is left: nobody needs this server");
                self.stop_pod().await;
                self.done.send_replace(true);
                return;
            }
        }
    }

    /// The pod's process, 0 without pod.
    pub async fn pid(&self) -> u32 {
        match &*self.sandbox.lock().await {
            Sandbox::Running(pod) => pod.pid(),
            _ => 0,
        }
    }
}

async fn told(given_up: &mut watch::Receiver<bool>) {
    let _ = given_up.wait_for(|given_up| *given_up).await;
}

/// The exit code of a process whose sandbox is gone.
#[must_use]
pub(crate) fn end_code(machine: &crate::machine::Container) -> u32 {
    if machine.saw_oom() { KILLED_EXIT } else { UNKNOWN_EXIT }
}

/// When the sandbox ends, no process of it lives on: one that runs is reported by who waits for it, one that does not
/// run yet here.
async fn watch_end(cell: Arc<Cell>) {
    let reason = cell.pod.ended().await;
    tracing::info!(container = cell.id, reason, "the sandbox has ended");
    cell.apply(|machine| match machine.state("") {
        Ok(State::Created | State::Starting) => {
            machine.exited("", Exit { code: end_code(machine), at: SystemTime::now() })
        }
        _ => Vec::new(),
    });
}

/// What a failed creation takes back.
struct Undo {
    pod: Arc<dyn Pod>,
    id: String,
    mounted: Option<PathBuf>,
    created: bool,
}

impl Undo {
    async fn run(self) {
        if self.created {
            let _ = prompt(&*self.pod, self.pod.remove(&self.id)).await;
        }
        if let Some(target) = self.mounted {
            let _ = tokio::task::spawn_blocking(move || mounts::unmount_all(&target)).await;
        }
    }
}

fn load_spec(bundle: &Path) -> Result<Spec, TaskError> {
    let path = bundle.join("config.json");
    Spec::load(&path).map_err(|error| TaskError::Invalid(format!("cannot read {}: {error}", path.display())))
}

/// The container's root on the host: absolute, or within the bundle.
fn root_folder(bundle: &Path, spec: &Spec) -> PathBuf {
    let path = spec.root().as_ref().map(|root| root.path().clone());
    bundle.join(path.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| "rootfs".into()))
}

fn created_details(request: &Create, pid: u32) -> Details {
    let streams = &request.streams;
    let io = TaskIO {
        stdin: streams.stdin.clone(),
        stdout: streams.stdout.clone(),
        stderr: streams.stderr.clone(),
        terminal: streams.terminal,
        ..TaskIO::default()
    };
    let create = TaskCreate {
        bundle: request.bundle.display().to_string(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(io),
        ..TaskCreate::default()
    };
    Details { container: request.id.clone(), pid, create: Some(create) }
}
