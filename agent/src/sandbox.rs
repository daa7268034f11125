//! The sandbox: everything that lives as long as the VM, and the life of its containers.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use kata_cc_agent_protocol::agent::{
    CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, RemoveContainerRequest, Storage,
};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use thiserror::Error;
use tokio::sync::{Mutex, RwLock, mpsc, watch};
use tracing::{info, warn};

use crate::container::cgroup::{Cgroup, CgroupError};
use crate::container::process::{self, SpawnError};
use crate::container::spec::{self, SpecError, Surroundings};
use crate::container::{Container, devices};
use crate::creating::{Creations, GivenUp};
use crate::paths;
use crate::reaper::Reaper;
use crate::stage::message::{Config as StageConfig, Exec, Kind};
use crate::storage::{self, StorageError};
use crate::unseal::{UnsealError, Unsealer};
use crate::volume::Volumes;

/// Out-of-memory events kept for GetOOMEvent (Kata's number).
const OOM_QUEUE: usize = 100;
/// Most containers, and most execs of one.
const MAX_CONTAINERS: usize = 512;

/// Why the sandbox refused or failed.
#[derive(Debug, Error)]
pub(crate) enum SandboxError {
    /// No container of that name.
    #[error("Invalid container id {0:?}")]
    NoContainer(String),
    /// No process of that name.
    #[error("no process {exec:?} in container {container:?}")]
    NoProcess {
        /// The container.
        container: String,
        /// The exec id.
        exec: String,
    },
    /// The name is taken.
    #[error("{0:?} exists already")]
    Exists(String),
    /// RemoveContainer came while it was being created.
    #[error("the creation of container {0:?} was given up")]
    GivenUp(String),
    /// A limit of the agent.
    #[error("too many containers or processes: at most {MAX_CONTAINERS}")]
    TooMany,
    /// `sandbox_pidns` without a container that has one.
    #[error("the sandbox's PID namespace was asked for and no container has made it")]
    NoPidNamespace,
    /// The configuration is refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The policy does not let this program run.
    #[error(transparent)]
    Denied(#[from] kata_cc_policy::Denial),
    /// A storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Guest pull failed or was refused.
    #[error(transparent)]
    Image(#[from] crate::image::PullError),
    /// A sealed secret was not opened.
    #[error("sealed secret: {0}")]
    Unseal(#[from] UnsealError),
    /// Limits failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A process could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> SandboxError {
    let what = what.into();
    move |source| SandboxError::Io { what, source }
}

/// State that changes.
#[derive(Debug, Default)]
struct State {
    id: String,
    containers: HashMap<String, Arc<Container>>,
    /// Mount point → number of users; `None` for those that stay until the sandbox ends.
    storages: HashMap<String, Option<usize>>,
    ipc: Option<PathBuf>,
    uts: Option<PathBuf>,
    /// First container made: its PID namespace is the sandbox's.
    first: Option<i32>,
}

/// The sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    state: RwLock<State>,
    /// Serialises what creates and removes. The policy is asked about either while it is held: what a policy notes of a container is then
    /// what becomes of it, whatever else the host asks meanwhile.
    making: Mutex<()>,
    creations: Creations,
    reaper: Reaper,
    confidential: bool,
    unsealer: Unsealer,
    volumes: Arc<Volumes>,
    oom_send: mpsc::Sender<String>,
    oom_receive: Mutex<mpsc::Receiver<String>>,
    /// True once the sandbox is destroyed.
    gone: watch::Sender<bool>,
}

impl Sandbox {
    /// An empty one.
    pub(crate) fn new(reaper: Reaper, confidential: bool, unsealer: Unsealer, volumes: Arc<Volumes>) -> Self {
        let (oom_send, oom_receive) = mpsc::channel(OOM_QUEUE);
        Self {
            state: RwLock::default(),
            making: Mutex::default(),
            creations: Creations::default(),
            reaper,
            confidential,
            unsealer,
            volumes,
            oom_send,
            oom_receive: Mutex::new(oom_receive),
            gone: watch::Sender::new(false),
        }
    }

    /// The container of that name.
    pub(crate) async fn container(&self, id: &str) -> Result<Arc<Container>, SandboxError> {
        let state = self.state.read().await;
        let found = state.containers.get(id).cloned();
        found.ok_or_else(|| SandboxError::NoContainer(id.to_owned()))
    }

    /// A process of a container.
    pub(crate) async fn process(
        &self,
        id: &str,
        exec: &str,
    ) -> Result<(Arc<Container>, Arc<process::Process>), SandboxError> {
        let container = self.container(id).await?;
        match container.process(exec).await {
            Some(process) => Ok((container, process)),
            None => Err(SandboxError::NoProcess { container: id.to_owned(), exec: exec.to_owned() }),
        }
    }

    /// The next container that ran out of memory; `None` when the sandbox is gone.
    pub(crate) async fn next_oom(&self) -> Option<String> {
        let mut gone = self.gone.subscribe();
        let next = async { self.oom_receive.lock().await.recv().await };
        tokio::select! {
            next = next => next,
            // A caller waits in `next` with the lock, so the end must come from beside it.
            _ = gone.wait_for(|gone| *gone) => None,
        }
    }

    /// CreateSandbox.
    pub(crate) async fn create(&self, request: &CreateSandboxRequest) -> Result<(), SandboxError> {
        let _making = self.making.lock().await;
        for folder in [paths::BASE, paths::SHARED, "/run/kata-containers/sandbox"] {
            fs::create_dir_all(folder).map_err(io(format!("make {folder}")))?;
        }
        // Containers must not be able to reach each other's bundles through a lax mode.
        let hostname = request.hostname.clone();
        let made = tokio::task::spawn_blocking(move || shared_namespaces(&hostname));
        let (ipc, uts) = made
            .await
            .map_err(std::io::Error::other)
            .and_then(|r| r)
            .map_err(io("make the sandbox's namespaces"))?;
        {
            let mut state = self.state.write().await;
            state.id.clone_from(&request.sandbox_id);
            (state.ipc, state.uts) = (Some(ipc), Some(uts));
        }
        for storage in &request.storages {
            self.hold(storage, None, None).await?;
        }
        if !request.dns.is_empty() {
            let text: String = request.dns.iter().map(|line| format!("{line}\n")).collect();
            fs::write(paths::RESOLV_CONF, &text).map_err(io("write resolv.conf"))?;
            // The guest's own name resolution; in a root image, which is read-only, a link leads to where it can be written.
            if crate::pid1::is_pid1() {
                let _ = fs::create_dir_all("/etc");
                let _ = fs::write("/etc/resolv.conf", text);
            }
        }
        info!(sandbox = request.sandbox_id, "sandbox created");
        Ok(())
    }

    /// Mounts a storage or counts one more user of it. True when it is this container's to release.
    async fn hold(
        &self,
        storage: &Storage,
        rootfs: Option<&str>,
        container: Option<&str>,
    ) -> Result<(), SandboxError> {
        let point = storage.mount_point.clone();
        if let Some(users) = self.state.write().await.storages.get_mut(&point) {
            if let Some(users) = users {
                *users += 1;
            }
            return Ok(());
        }
        storage::mount(storage, rootfs, container, &self.volumes).await?;
        let users = (!storage.shared).then_some(1);
        self.state.write().await.storages.insert(point, users);
        Ok(())
    }

    async fn release(&self, points: &[String]) {
        let mut state = self.state.write().await;
        for point in points.iter().rev() {
            match state.storages.get_mut(point) {
                Some(Some(users)) if *users > 1 => *users -= 1,
                Some(Some(_)) => {
                    state.storages.remove(point);
                    storage::unmount(point);
                    self.volumes.release(point).await;
                }
                Some(None) | None => {}
            }
        }
    }

    /// CreateContainer; asks the policy.
    pub(crate) async fn create_container(
        &self,
        request: CreateContainerRequest,
        images: &crate::image::Images,
        policy: &crate::gate::Gate,
    ) -> Result<(), SandboxError> {
        spec::check_id(&request.container_id)?;
        let id = request.container_id.clone();
        let creation = self.creations.begin(&id).ok_or_else(|| SandboxError::Exists(id.clone()))?;
        let given_up = creation.given_up();
        let making = given_up.unless(self.making.lock()).await;
        let _making = making.ok_or_else(|| SandboxError::GivenUp(id.clone()))?;
        {
            let state = self.state.read().await;
            if state.containers.contains_key(&request.container_id) {
                return Err(SandboxError::Exists(request.container_id));
            }
            if state.containers.len() >= MAX_CONTAINERS {
                return Err(SandboxError::TooMany);
            }
        }
        policy.check_message(&request).await?;
        let mut held = Vec::new();
        let made = self.build(request, images, policy, &mut held, &given_up).await;
        match made {
            Ok(container) => {
                let mut state = self.state.write().await;
                state.first.get_or_insert(container.init.pid);
                state.containers.insert(id, Arc::new(container));
                Ok(())
            }
            Err(e) => {
                // The first error is what counts; what is left behind is logged where it fails.
                self.release(&held).await;
                if let Ok(Some(cgroup)) = Cgroup::create(&id) {
                    let _ = cgroup.kill();
                    cgroup.remove().await;
                }
                remove_bundle(&paths::bundle(&id));
                Err(e)
            }
        }
    }

    async fn build(
        &self,
        mut request: CreateContainerRequest,
        images: &crate::image::Images,
        policy: &crate::gate::Gate,
        held: &mut Vec<String>,
        given_up: &GivenUp,
    ) -> Result<Container, SandboxError> {
        let id = request.container_id.clone();
        let Some(oci) = request.OCI.as_mut() else {
            return Err(SpecError::Missing("configuration").into());
        };
        let bundle = paths::bundle(&id);
        fs::create_dir_all(&bundle).map_err(io("make the bundle"))?;
        let root_path = oci.Root.as_ref().map(|r| r.Path.clone()).unwrap_or_default();
        let mut images_seen = 0;
        for storage in &request.storages {
            if storage.driver == "image_guest_pull" {
                let rootfs = storage::check_image(storage, &bundle, images_seen > 0)?;
                images_seen += 1;
                let examined = images.examine(storage, given_up).await?;
                let program = examined.program.clone();
                program.complete(oci);
                let names = request.string_user.as_ref();
                let process = oci.Process.as_ref().ok_or(SpecError::Missing("Process"))?;
                let question = |rootfs| program.question(&id, &storage.source, process, names, rootfs);
                // Before any key is asked for, and again when the image's own files tell who its user is.
                if let Some(question) = question(None) {
                    policy.check_image_ahead(&question).await?;
                }
                let pulled = images.root(examined, &bundle, given_up).await?;
                if let Some(question) = question(Some(&pulled.rootfs)) {
                    policy.check_image(&question).await?;
                }
                let source = pulled.rootfs.display().to_string();
                crate::mounts::mount_at(&source, &rootfs, "none", &["bind"])
                    .map_err(io("bind the pulled root"))?;
                let mut state = self.state.write().await;
                state.storages.insert(storage.mount_point.clone(), Some(1));
            } else {
                self.hold(storage, Some(&root_path), Some(&id)).await?;
            }
            held.push(storage.mount_point.clone());
        }
        let rootfs = root_folder(&bundle, &root_path)?;
        // After the policy was asked: what it, the host and the logs see is the sealed text.
        self.unsealer.environment(&mut oci.Process.mut_or_insert_default().Env).await?;
        self.unsealer.mounts(Path::new(paths::SHARED), &bundle, &mut oci.Mounts).await?;
        let around = self.surroundings(request.sandbox_pidns).await?;
        let mut create = spec::create(oci, &rootfs, &around)?;
        add_resolv_conf(&mut create);
        let linux = oci.Linux.clone().unwrap_or_default();
        let program = oci.Process.as_ref().ok_or(SpecError::Missing("Process"))?;
        let process = spec::process(program, Some(&linux), request.string_user.as_ref())?;
        let cgroup = Cgroup::create(&id)?;
        if let Some(cgroup) = &cgroup {
            let resources = linux.Resources.clone().unwrap_or_default();
            cgroup.apply(&resources)?;
            let program = devices::attach(cgroup.path(), &resources.Devices, &linux.Devices);
            // Attached, the program lives as long as the cgroup: the descriptor need not be kept.
            drop(program.map_err(io("attach the device rules"))?);
        }
        let config = StageConfig {
            cgroup: cgroup.as_ref().map(|c| c.path().to_owned()),
            process,
            kind: Kind::Create(Box::new(create)),
        };
        let init = self.prepare(config, None).await?;
        info!(container = id, pid = init.pid, "container created");
        Ok(Container {
            id,
            cgroup,
            init: Arc::new(init),
            execs: Mutex::default(),
            linux,
            bundle,
            storages: std::mem::take(held),
            started: AtomicBool::new(false),
            oom_told: AtomicU64::new(0),
        })
    }

    async fn surroundings(&self, sandbox_pidns: bool) -> Result<Surroundings, SandboxError> {
        let state = self.state.read().await;
        let pid = match (sandbox_pidns, state.first) {
            (false, _) => None,
            (true, Some(pid)) => Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))),
            (true, None) => return Err(SandboxError::NoPidNamespace),
        };
        Ok(Surroundings {
            ipc: state.ipc.clone(),
            uts: state.uts.clone(),
            pid,
            confidential: self.confidential,
        })
    }

    async fn prepare(
        &self,
        config: StageConfig,
        target: Option<Arc<process::Process>>,
    ) -> Result<process::Process, SandboxError> {
        let reaper = self.reaper.clone();
        let runtime = tokio::runtime::Handle::current();
        let prepared = tokio::task::spawn_blocking(move || {
            process::prepare(&reaper, &runtime, config, target.as_deref())
        });
        let prepared = prepared.await.map_err(std::io::Error::other);
        Ok(prepared.map_err(io("start a process"))??)
    }

    /// StartContainer.
    pub(crate) async fn start_container(&self, id: &str) -> Result<(), SandboxError> {
        let container = self.container(id).await?;
        container.init.start().await?;
        if crate::container::mark_started(&container) {
            container.watch_oom(self.oom_send.clone());
        }
        info!(container = id, "container started");
        Ok(())
    }

    /// ExecProcess.
    pub(crate) async fn exec(
        &self,
        container: Arc<Container>,
        mut request: ExecProcessRequest,
    ) -> Result<(), SandboxError> {
        spec::check_id(&request.exec_id)?;
        if let Some(process) = request.process.as_mut() {
            self.unsealer.environment(&mut process.Env).await?;
        }
        let program = request.process.as_ref().ok_or(SpecError::Missing("process"))?;
        let linux = &container.linux;
        let process = spec::process(program, Some(linux), request.string_user.as_ref())?;
        let mut namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        if linux.Namespaces.iter().any(|n| n.Type == "user") {
            namespaces |= CloneFlags::CLONE_NEWUSER;
        }
        let config = StageConfig {
            cgroup: container.cgroup.as_ref().map(|c| c.path().to_owned()),
            process,
            kind: Kind::Exec(Exec { namespaces: namespaces.bits() }),
        };
        let mut execs = container.execs.lock().await;
        if execs.contains_key(&request.exec_id) || request.exec_id == container.id {
            return Err(SandboxError::Exists(request.exec_id));
        }
        if execs.len() >= MAX_CONTAINERS {
            return Err(SandboxError::TooMany);
        }
        let process = self.prepare(config, Some(Arc::clone(&container.init))).await?;
        process.start().await?;
        info!(container = container.id, exec = request.exec_id, "process started");
        execs.insert(request.exec_id, Arc::new(process));
        Ok(())
    }

    /// WaitProcess: the status, and the out-of-memory event before it when there was one.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Result<i32, SandboxError> {
        let (container, process) = self.process(id, exec).await?;
        let code = process.wait().await;
        container.report_oom(&self.oom_send);
        if !exec.is_empty() && exec != container.id && process.drained() {
            container.execs.lock().await.remove(exec);
        }
        Ok(code)
    }

    /// RemoveContainer; asks the policy. One that is being created is given up first.
    pub(crate) async fn remove_container(
        &self,
        request: &RemoveContainerRequest,
        policy: &crate::gate::Gate,
    ) -> Result<(), SandboxError> {
        self.creations.give_up(&request.container_id);
        let _making = self.making.lock().await;
        policy.check_message(request).await?;
        self.take_down(&request.container_id).await
    }

    /// Ends a container; [`Self::making`] is held.
    async fn take_down(&self, id: &str) -> Result<(), SandboxError> {
        let container = self.container(id).await?;
        container.destroy().await;
        self.state.write().await.containers.remove(id);
        self.release(&container.storages).await;
        // A root that was bound into the bundle, then the folder.
        remove_bundle(&container.bundle);
        info!(container = id, "container removed");
        Ok(())
    }

    /// DestroySandbox: ends all containers.
    pub(crate) async fn destroy(&self) {
        self.creations.give_up_all();
        let _making = self.making.lock().await;
        let ids: Vec<String> = self.state.read().await.containers.keys().cloned().collect();
        for id in ids {
            if let Err(e) = self.take_down(&id).await {
                warn!(container = id, error = %e, "container not removed");
            }
        }
        self.gone.send_replace(true);
    }
}

/// IPC and UTS namespaces that outlive every container, held by bind mounts. Runs on a thread that ends with it.
fn shared_namespaces(hostname: &str) -> std::io::Result<(PathBuf, PathBuf)> {
    let hostname = hostname.to_owned();
    // Its own thread: unshare changes the thread, which must not go back to a pool.
    let thread = std::thread::Builder::new().name("namespaces".to_owned()).spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
        if !hostname.is_empty() {
            nix::unistd::sethostname(&hostname)?;
        }
        fs::create_dir_all(paths::NAMESPACES)?;
        let bind = |name: &str| -> std::io::Result<PathBuf> {
            let path = Path::new(paths::NAMESPACES).join(name);
            fs::write(&path, "")?;
            let source = PathBuf::from(format!("/proc/thread-self/ns/{name}"));
            nix::mount::mount(Some(&source), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(path)
        };
        Ok((bind("ipc")?, bind("uts")?))
    })?;
    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
}

/// The root folder: bound into the bundle unless it is there already.
fn root_folder(bundle: &Path, root: &str) -> Result<PathBuf, SandboxError> {
    let inside = bundle.join("rootfs");
    let given = Path::new(root);
    if given == inside || root.is_empty() {
        return Ok(inside);
    }
    storage::check_mount_point(root)?;
    crate::mounts::mount_at(root, &inside, "none", &["rbind"]).map_err(io("bind the root"))?;
    Ok(inside)
}

fn remove_bundle(bundle: &Path) {
    storage::unmount(&bundle.join("rootfs").display().to_string());
    let pulled = Path::new(paths::IMAGES).join(bundle.file_name().unwrap_or_default());
    if bundle.file_name().is_some() && pulled.is_dir() {
        crate::sealed_image::unmount(&pulled);
        // It frees the guest's memory; what stays goes with the guest.
        let _ = fs::remove_dir_all(pulled);
    }
    match fs::remove_dir_all(bundle) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            warn!(bundle = %bundle.display(), error = %e, "bundle not removed");
        }
        _ => {}
    }
}

/// Gives the container the sandbox's name servers unless it brings its own file.
fn add_resolv_conf(create: &mut crate::stage::message::Create) {
    const PATH: &str = "/etc/resolv.conf";
    let own = create.mounts.iter().any(|m| m.destination == PATH);
    if own || !Path::new(paths::RESOLV_CONF).exists() {
        return;
    }
    create.mounts.push(crate::stage::message::Mount {
        destination: PATH.to_owned(),
        source: paths::RESOLV_CONF.to_owned(),
        fstype: "bind".to_owned(),
        flags: MsFlags::MS_BIND.bits(),
        ..Default::default()
    });
}
