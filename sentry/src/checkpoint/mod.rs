//! Checkpoint and restore: a container is written to a file as it stands, and goes on in another sandbox (decision 0034).
//!
//! All tasks of the container are brought to a point between two instructions ([`crate::task::ControlGroup::park`]): a call that waits is
//! given up and made again later, as if by a signal that nobody has. Then what they are is written down ([`state`]) with what is in their memory
//! ([`memory`]), in files in memory ([`tree`]) and in open files ([`files`]). What cannot be kept is told, all of it at once, and the
//! container goes on.
//!
//! A container is restored into what the same bundle has made: root, volumes and mounts are there, and its first process is not made but read.
//! An image holds the container's secrets, and is untrusted when it comes back ([`image`]).

mod admission;
mod clock;
mod files;
mod image;
mod memory;
mod progress;
pub(crate) mod state;
mod tree;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;

pub(crate) use admission::Ceiling;
pub(crate) use files::Streams;
use files::{Files, Opened, Reopening, pick, walk};
pub use image::{ImageError, examine, examine_state};
use image::{Reader, Source, Writer};
use memory::SharedMemory;
pub(crate) use progress::Progress;
use state::{SavedFolders, SavedSpace, SavedTable, SavedThread, State};

use crate::container::Container;
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::loader::Vdso;
use crate::mm::{AddressSpace, MappedFile, Sources, VdsoPart};
use crate::platform::Thread;
use crate::sync::lock;
use crate::syscalls::map_again;
use crate::task::seccomp::Program;
use crate::task::{self, ControlGroup, Lists, Pid, Task, capability};
use crate::vfs::{Caller, FdTable, FsContext, Inode, Mount, OpenFile, Place};

/// Most things that one refusal names.
const TOLD_MAX: usize = 24;
/// Longest name of a machine (`__NEW_UTS_LEN`).
const NAME_MAX: usize = 64;

/// Why a container is not saved, or not restored.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// Something of it cannot be kept.
    #[error("what cannot be kept in an image: {}", list(.0))]
    Refused(Vec<String>),
    /// Some tasks do not come to a stop.
    #[error("these do not come to a stop: {}", list(.0))]
    Moving(Vec<String>),
    /// Something of the kernel or the host.
    #[error("{what}: {errno}")]
    Host {
        /// What was to be done.
        what: String,
        /// Why it cannot be.
        errno: Errno,
    },
    /// The image.
    #[error("the image: {0}")]
    Image(#[from] ImageError),
    /// It says what no container is like.
    #[error("the image: its state is none: {0}")]
    State(&'static str),
    /// It would let its processes do what the bundle does not.
    #[error("the image: its processes may more than the bundle lets them: {0}")]
    Rights(&'static str),
    /// The image has what is not the container's alone here.
    #[error(
        "the image has files of {0}, which is memory of all containers of the pod here: restore it where the container has that for itself"
    )]
    Shared(String),
    /// The bundle is another.
    #[error("the image is of a container with other mounts: {0}")]
    Mounts(String),
    /// A file that memory shows is another.
    #[error(
        "{0} has been changed since the checkpoint, and is in the memory of a process: give back the files of then"
    )]
    Changed(String),
    /// The host's kernel is another.
    #[error("the host's kernel has another vDSO than that of the checkpoint: restore it with that kernel")]
    Vdso,
    /// It had streams, and now has none.
    #[error("a process has the standard streams open, and they are a terminal now or none")]
    Streams,
}

impl CheckpointError {
    fn about(self, path: &[u8]) -> Self {
        match self {
            Self::State(what) => Self::Mounts(format!("{what}: {}", String::from_utf8_lossy(path))),
            other => other,
        }
    }
}

fn list(all: &[String]) -> String {
    let mut shown = all.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>();
    if all.len() > TOLD_MAX {
        shown.push(format!("and {} more", all.len() - TOLD_MAX));
    }
    shown.join("; ")
}

fn host(what: &str) -> impl FnOnce(Errno) -> CheckpointError {
    move |errno| CheckpointError::Host { what: what.to_owned(), errno }
}

/// What of a container is saved.
pub(crate) struct Subject<'a> {
    pub(crate) kernel: &'a Arc<Kernel>,
    pub(crate) container: &'a Container,
    pub(crate) group: &'a Arc<ControlGroup>,
    /// Number of its first process.
    pub(crate) first: Pid,
    pub(crate) streams: &'a Streams,
    /// What judges calls of all its processes.
    pub(crate) filter: Option<&'a Arc<Program>>,
    /// Names of machine and domain that the sandbox was given.
    pub(crate) named: &'a Names,
    pub(crate) progress: &'a Arc<Progress>,
}

/// Names of a machine and its domain.
pub(crate) type Names = (Vec<u8>, Vec<u8>);

/// Mounts of a container, by path and file system.
fn mounts(container: &Container) -> Vec<(Vec<u8>, Arc<Mount>)> {
    let namespace = &container.namespaces().mounts;
    let root = namespace.root_place();
    let all = namespace.root().all().into_iter();
    all.map(|mount| (mount.root_place().path(&root).unwrap_or_default(), mount)).collect()
}

fn mount_name(mount: &Mount) -> Vec<u8> {
    mount.root().tree().fs.name().as_bytes().to_vec()
}

/// Numbers of what tasks share, and what was refused.
struct Shared<'a> {
    container: &'a Container,
    spaces: Vec<(Arc<AddressSpace>, Pid)>,
    tables: Vec<(Arc<FdTable>, Pid)>,
    folders: Vec<(Arc<FsContext>, Pid)>,
    filter: Option<&'a Arc<Program>>,
    refused: Vec<String>,
}

fn number<T>(list: &mut Vec<(Arc<T>, Pid)>, pid: Pid, one: &Arc<T>) -> u32 {
    let place = list.iter().position(|(known, _)| Arc::ptr_eq(known, one)).unwrap_or_else(|| {
        list.push((Arc::clone(one), pid));
        list.len() - 1
    });
    u32::try_from(place).unwrap_or(u32::MAX)
}

impl Shared<'_> {
    fn shown(&self, pid: Pid) -> Pid {
        self.container.namespaces().pids_for_children.shown(pid)
    }
}

impl Lists for Shared<'_> {
    fn space(&mut self, pid: Pid, space: &Arc<AddressSpace>) -> u32 {
        number(&mut self.spaces, pid, space)
    }

    fn table(&mut self, pid: Pid, table: &Arc<FdTable>) -> u32 {
        number(&mut self.tables, pid, table)
    }

    fn folders(&mut self, pid: Pid, folders: &Arc<FsContext>) -> u32 {
        number(&mut self.folders, pid, folders)
    }

    fn filter(&self) -> Option<&Arc<Program>> {
        self.filter
    }

    fn refuse(&mut self, pid: Pid, what: &str) {
        self.refused.push(format!("process {}: {what}", self.shown(pid)));
    }
}

/// Writes a container, whose tasks are frozen, to a file. They are parked while it is done, and are frozen afterwards.
pub(crate) fn save(subject: &Subject<'_>, image: OwnedFd) -> Result<(), CheckpointError> {
    let tasks = &subject.kernel.tasks;
    let moving = subject.group.park(tasks);
    let result = if moving.is_empty() {
        write(subject, image)
    } else {
        let name = |task: &Arc<Task>| {
            format!("process {} ({})", task.own_number(), String::from_utf8_lossy(&task.comm()))
        };
        Err(CheckpointError::Moving(moving.iter().map(name).collect()))
    };
    subject.group.unpark(tasks);
    result
}

fn write(subject: &Subject<'_>, image: OwnedFd) -> Result<(), CheckpointError> {
    let Subject { kernel, container, first, streams, filter, named, progress, .. } = *subject;
    let mut out = Writer::new(image, progress)?;
    let mut shared = Shared {
        container,
        spaces: Vec::new(),
        tables: Vec::new(),
        folders: Vec::new(),
        filter,
        refused: Vec::new(),
    };
    let processes = task::save(kernel, (container.number(), container.namespaces()), &mut shared);
    for process in processes.iter().filter(|process| process.parent == 0 && process.pid != first) {
        shared.refuse(process.pid, "it was put into the container from outside (exec)");
    }
    if container.namespaces().ipc.ipc().any() {
        shared.refused.push("objects of System V IPC, or POSIX message queues".to_owned());
    }
    let root = container.root();
    let mut files = Files::default();
    let tables = tables(&mut shared, &mut files);
    let folders = shared.save_folders(&root);
    let mut spaces = shared.save_spaces(&mut files);
    let (files, pipes) = files.save(&mut out, (&root, streams), &mut shared.refused)?;
    if !shared.refused.is_empty() {
        return Err(CheckpointError::Refused(shared.refused));
    }
    let mut memory = SharedMemory::default();
    for (saved, (space, _)) in spaces.iter_mut().zip(&shared.spaces) {
        memory::save(&mut out, space, saved, &mut memory)?;
    }
    let mounts = mounts(container);
    let uts = lock(container.namespaces().names.uts()).clone();
    let names = Some((uts.host, uts.domain)).filter(|names| names != named);
    let state = State {
        time: kernel.clocks.reading(),
        vdso: clock::host_vdso(kernel).0,
        vdso_code: clock::host_vdso(kernel).1,
        names,
        trees: trees(&mut out, &mounts)?,
        mounts: mounts.into_iter().map(|(path, mount)| (path, mount_name(&mount))).collect(),
        pipes,
        files,
        tables,
        folders,
        shared: memory.into_saved(),
        spaces,
        processes,
        first,
    };
    Ok(out.finish(&state, kernel.platform.name())?)
}

/// What is in memory of each file system, once however often it is mounted.
fn trees(
    out: &mut Writer,
    mounts: &[(Vec<u8>, Arc<Mount>)],
) -> Result<Vec<(u32, state::SavedTree)>, CheckpointError> {
    let mut known = Vec::new();
    let mut trees = Vec::new();
    for (number, (_, mount)) in (0..).zip(mounts) {
        let tree = Arc::as_ptr(mount.root().tree());
        if !known.contains(&tree) {
            known.push(tree);
            trees.extend(tree::save(out, &tree::top(mount))?.map(|saved| (number, saved)));
        }
    }
    Ok(trees)
}

fn tables(shared: &mut Shared<'_>, files: &mut Files) -> Vec<SavedTable> {
    let mut saved = Vec::new();
    for (table, pid) in &shared.tables {
        let pid = shared.shown(*pid);
        let descriptors = table.all().into_iter().map(|(fd, file)| {
            let number = files.number(&file, || format!("process {pid}, descriptor {fd}"));
            (fd, number, table.is_close_on_exec(fd).unwrap_or(false))
        });
        saved.push(SavedTable { descriptors: descriptors.collect(), limit: table.limit() });
    }
    saved
}

impl Shared<'_> {
    fn save_folders(&mut self, top: &Place) -> Vec<SavedFolders> {
        let mut saved = Vec::new();
        for (folders, pid) in self.folders.clone() {
            let path = |place: &Place| place.path(top).filter(|_| !place.dentry.unlinked());
            match (path(&folders.root()), path(&folders.cwd())) {
                (Some(root), Some(folder)) => {
                    saved.push(SavedFolders { root, folder, umask: folders.umask() });
                }
                _ => self.refuse(pid, "its root or working folder has been removed or is not mounted"),
            }
        }
        saved
    }

    fn save_spaces(&mut self, files: &mut Files) -> Vec<SavedSpace> {
        let mut saved = Vec::new();
        for (space, pid) in self.spaces.clone() {
            let shown = self.shown(pid);
            let mut number = |mapped: &Arc<dyn MappedFile>, private: bool| {
                let place = || format!("process {shown}, memory that shows a file");
                let number = files.number(&mapped.open_file()?, place);
                if private {
                    files.is_mapped(number);
                }
                Some(number)
            };
            let transfers = !lock(space.asynchronous()).is_empty();
            match space.saved(&mut number) {
                Ok(_) if transfers => self.refuse(pid, "contexts of asynchronous transfers (io_setup)"),
                Ok(space) => saved.push(space),
                Err(name) => self.refuse(pid, &format!("memory that shows {name}")),
            }
        }
        saved
    }
}

/// Where a container is restored, which was made of its bundle and has no process yet.
pub(crate) struct Setting<'a> {
    pub(crate) kernel: &'a Arc<Kernel>,
    pub(crate) container: &'a Container,
    pub(crate) group: &'a Arc<ControlGroup>,
    /// Its streams, where they are no terminal.
    pub(crate) streams: &'a [Option<Arc<dyn Inode>>; 3],
    /// What its processes may do at most.
    pub(crate) ceiling: &'a Ceiling,
    /// Whether it is the only container of its sandbox, whose names are its own then.
    pub(crate) alone: bool,
    pub(crate) progress: &'a Arc<Progress>,
}

/// Tasks that were restored and do not run yet, the container's first process first.
pub(crate) struct Restored {
    pub(crate) first: Arc<Task>,
    pub(crate) tasks: Vec<Served>,
}

/// A task, and its guest thread.
type Served = (Arc<Task>, Box<dyn Thread>);

/// What mappings show, when they are made anew.
struct Shown {
    files: Vec<Arc<OpenFile>>,
    shared: BTreeMap<u64, (Arc<OwnedFd>, u64)>,
    vdso: Option<Vdso>,
    /// One for each file, so that neighbours are found to be alike.
    mapped: std::sync::Mutex<BTreeMap<(u32, bool), Arc<dyn MappedFile>>>,
}

impl Sources for Shown {
    fn file(&self, number: u32, runs: bool) -> Result<Arc<dyn MappedFile>, Errno> {
        if let Some(known) = lock(&self.mapped).get(&(number, runs)) {
            return Ok(Arc::clone(known));
        }
        let file = usize::try_from(number).ok().and_then(|number| self.files.get(number));
        let mapped = map_again(Arc::clone(file.ok_or(Errno::EINVAL)?), runs)?;
        lock(&self.mapped).insert((number, runs), Arc::clone(&mapped));
        Ok(mapped)
    }

    fn vdso(&self, part: VdsoPart) -> Result<Arc<dyn MappedFile>, Errno> {
        self.vdso.as_ref().map(|vdso| vdso.part(part)).ok_or(Errno::EINVAL)
    }

    fn shared(&self, number: u64) -> Result<(Arc<OwnedFd>, u64), Errno> {
        self.shared.get(&number).map(|(file, id)| (Arc::clone(file), *id)).ok_or(Errno::EINVAL)
    }
}

/// Makes the tasks of an image.
pub(crate) fn restore(place: &Setting<'_>, image: OwnedFd) -> Result<Restored, CheckpointError> {
    let Setting { kernel, container, group, streams, ceiling, .. } = *place;
    let image = Reader::open(image, place.progress)?;
    let platform = kernel.platform.name();
    if image.platform() != platform {
        return Err(ImageError::Platform(image.platform().to_owned(), platform.to_owned()).into());
    }
    let mut state = image.state()?;
    // A program may have been stopped in it.
    if (&state.vdso, state.vdso_code) != (&clock::host_vdso(kernel).0, clock::host_vdso(kernel).1) {
        return Err(CheckpointError::Vdso);
    }
    admission::admit(&mut state.processes, ceiling)?;
    ceiling.admit_memory(state.lengths())?;
    if let Some(names) = state.names.take() {
        restore_names(place, names)?;
    }
    clock::restore(place, state.time)?;
    restore_files(&image, container, &state)?;
    let root = container.root();
    let reopening = Reopening { image: &image, kernel, root: &root, streams };
    let Opened { files } = reopening.open(&state)?;
    let tables = restore_tables(&state, &files)?;
    let folders = restore_folders(&state, &root)?;
    let shared = memory::restore_shared(&image, &state.shared)?;
    let shown = Shown { files, shared, vdso: kernel.vdso(), mapped: std::sync::Mutex::default() };
    let mut spaces = Vec::new();
    let mut threads = Vec::new();
    for saved in &state.spaces {
        let (space, thread) = restore_space(kernel, &image, saved, &shown)?;
        spaces.push(Arc::new(space));
        threads.push(Some(thread));
    }
    let room = task::Room {
        kernel,
        namespaces: container.namespaces(),
        container: container.number(),
        control_group: group,
        spaces: &spaces,
        tables: &tables,
        folders: &folders,
    };
    let tasks = task::restore(&room, &state.processes).map_err(|errno| match errno {
        Errno::EEXIST => CheckpointError::Host {
            what: "numbers of its processes are taken in this sandbox".to_owned(),
            errno,
        },
        errno => host("its processes")(errno),
    })?;
    let saved: BTreeMap<Pid, &SavedThread> = state
        .processes
        .iter()
        .flat_map(|process| &process.threads)
        .map(|thread| (thread.pid, thread))
        .collect();
    let given = give_threads(&tasks, &saved, threads).and_then(|tasks| {
        let first = tasks.iter().find(|(task, _)| task.pid() == state.first);
        let first = first.map(|(task, _)| Arc::clone(task));
        first
            .map(|first| Restored { first, tasks })
            .ok_or(CheckpointError::State("its first process is not there"))
    });
    given.inspect_err(|_| task::forget(kernel, &state.processes))
}

/// Names the machine as the container had it. In a pod of several containers that is the pod's name, and stays.
fn restore_names(place: &Setting<'_>, (host, domain): Names) -> Result<(), CheckpointError> {
    if host.len() > NAME_MAX || domain.len() > NAME_MAX {
        return Err(CheckpointError::State("the name of the machine"));
    }
    // As `sethostname` asks for (`man 2 sethostname`).
    if !place.ceiling.bounding.has(capability::SYS_ADMIN) {
        return Err(CheckpointError::Rights(
            "it has named the machine, for which it may not have CAP_SYS_ADMIN",
        ));
    }
    if place.alone {
        let mut uts = lock(place.container.namespaces().names.uts());
        (uts.host, uts.domain) = (host, domain);
    }
    Ok(())
}

fn restore_files<S: Source>(
    image: &Reader<S>,
    container: &Container,
    state: &State,
) -> Result<(), CheckpointError> {
    let mounts = mounts(container);
    let now: Vec<_> = mounts.iter().map(|(path, mount)| (path.clone(), mount_name(mount))).collect();
    if now != state.mounts {
        let differs = |(path, _): &&(Vec<u8>, Vec<u8>)| {
            let of = |all: &[(Vec<u8>, Vec<u8>)]| {
                all.iter()
                    .filter(|(other, _)| other == path)
                    .map(|(_, name)| name.clone())
                    .collect::<Vec<_>>()
            };
            of(&now) != of(&state.mounts)
        };
        let first = now.iter().chain(&state.mounts).find(differs);
        let path = first
            .map_or_else(|| "their order".to_owned(), |(path, _)| String::from_utf8_lossy(path).into_owned());
        return Err(CheckpointError::Mounts(path));
    }
    for (number, tree) in &state.trees {
        let (path, mount) = pick(&mounts, *number)?;
        if tree::is_shared(mount.root()) {
            return Err(CheckpointError::Shared(String::from_utf8_lossy(path).into_owned()));
        }
        tree::restore(image, &tree::top(mount), tree)?;
    }
    Ok(())
}

fn restore_tables(state: &State, files: &[Arc<OpenFile>]) -> Result<Vec<Arc<FdTable>>, CheckpointError> {
    let mut tables = Vec::new();
    for saved in &state.tables {
        let table = FdTable::default();
        for (fd, file, close) in &saved.descriptors {
            let file = Arc::clone(pick(files, *file)?);
            table.replace(*fd, file, *close).map_err(host("a descriptor"))?;
        }
        table.set_limit(saved.limit);
        tables.push(Arc::new(table));
    }
    Ok(tables)
}

fn restore_folders(state: &State, top: &Place) -> Result<Vec<Arc<FsContext>>, CheckpointError> {
    let caller = Caller::root();
    let mut all = Vec::new();
    for saved in &state.folders {
        let find = |path: &[u8]| {
            let shown = format!("the folder {}", String::from_utf8_lossy(path));
            walk(&caller, top, path).map_err(|errno| CheckpointError::Host { what: shown, errno })
        };
        let folders = FsContext::new(find(&saved.root)?);
        folders.set_cwd(find(&saved.folder)?);
        folders.set_umask(saved.umask);
        all.push(Arc::new(folders));
    }
    Ok(all)
}

fn restore_space<S: Source>(
    kernel: &Kernel,
    image: &Reader<S>,
    saved: &SavedSpace,
    shown: &Shown,
) -> Result<(AddressSpace, Box<dyn Thread>), CheckpointError> {
    let mut thread = kernel.platform.new_address_space().map_err(host("an address space"))?;
    let range = kernel.platform.guest_range();
    if saved.range != range {
        return Err(CheckpointError::State("an address space"));
    }
    thread.set_kept(&saved.kept).map_err(host("what the platform keeps"))?;
    let mut failed = None;
    let mut fill = |space: &AddressSpace| {
        memory::fill(image, space, saved).map_err(|error| {
            failed = Some(error);
            Errno::EIO
        })
    };
    let space = AddressSpace::restored(saved, thread.as_mut(), &kernel.futexes, shown, &mut fill);
    match (space, failed) {
        (_, Some(error)) => Err(error.into()),
        (space, None) => Ok((space.map_err(host("an address space"))?, thread)),
    }
}

/// Gives each task a thread of its address space: the first one there is, and further ones made from it.
fn give_threads(
    tasks: &[Arc<Task>],
    saved: &BTreeMap<Pid, &SavedThread>,
    mut threads: Vec<Option<Box<dyn Thread>>>,
) -> Result<Vec<Served>, CheckpointError> {
    let mut given: Vec<Served> = Vec::new();
    let mut owners: BTreeMap<u32, usize> = BTreeMap::new();
    for task in tasks {
        let state = saved.get(&task.pid()).ok_or(CheckpointError::State("a thread"))?;
        let place = usize::try_from(state.space).unwrap_or(usize::MAX);
        let thread = match threads.get_mut(place).and_then(Option::take) {
            Some(thread) => {
                owners.insert(state.space, given.len());
                Ok(thread)
            }
            None => {
                let first = owners.get(&state.space).and_then(|place| given.get_mut(*place));
                first.ok_or(Errno::EINVAL).and_then(|(_, first)| first.spawn())
            }
        };
        given.push((Arc::clone(task), thread.map_err(host("a thread"))?));
    }
    for (task, thread) in &mut given {
        let state = saved.get(&task.pid()).ok_or(CheckpointError::State("a thread"))?;
        task::set_registers(thread.as_mut(), state).map_err(host("registers of a thread"))?;
        thread.release();
    }
    Ok(given)
}
