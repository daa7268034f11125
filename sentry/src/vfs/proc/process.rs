//! Folders of processes and threads (`fs/proc/base.c`).

use std::sync::{Arc, Weak};

use super::super::generated::{self, Node, Source, Text, join};
use super::super::{
    AttributeChange, Attributes, Caller, DirEntry, File, FileKind, Flags, Inode, NewNode, Place, access,
};
use super::descriptors::{self, NAMESPACES};
use super::{Shared, details, memory, mounts, pid_of, status, users};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::task::{Credentials, Pid, PidNamespace, ProcessInfo, Task, ThreadGroup};

/// `CAP_SYS_PTRACE`.
const CAP_SYS_PTRACE: u32 = 19;

/// Whom a folder is about.
#[derive(Clone)]
pub(super) enum Subject {
    /// A process, also one that ended and was not waited for.
    Process(Weak<ThreadGroup>),
    /// A thread.
    Thread(Weak<Task>),
}

/// The one a folder is about, as long as it is there.
pub(super) struct View {
    pub(super) kernel: Arc<Kernel>,
    /// Whose numbers are shown.
    pub(super) pids: Arc<PidNamespace>,
    pub(super) group: Arc<ThreadGroup>,
    /// The thread, or one of the process; none once all ended.
    pub(super) task: Option<Arc<Task>>,
    /// Whether it is the thread alone that is meant.
    pub(super) of_thread: bool,
}

impl Subject {
    /// Looks whether it is still the one of its number.
    ///
    /// # Errors
    /// ESRCH.
    pub(super) fn view(&self, shared: &Shared) -> Result<View, Errno> {
        let kernel = shared.kernel()?;
        let pids = Arc::clone(&shared.pids);
        match self {
            Self::Process(group) => {
                let group = group.upgrade().ok_or(Errno::ESRCH)?;
                let now = kernel.tasks.find_group(group.pid());
                now.filter(|now| Arc::ptr_eq(now, &group)).ok_or(Errno::ESRCH)?;
                let task = kernel.tasks.find(group.pid()).or_else(|| {
                    let info = kernel.tasks.process_info(group.pid())?;
                    kernel.tasks.find(*info.threads.first()?)
                });
                let task = task.filter(|task| Arc::ptr_eq(task.group(), &group));
                Ok(View { kernel, pids, group, task, of_thread: false })
            }
            Self::Thread(task) => {
                let task = task.upgrade().ok_or(Errno::ESRCH)?;
                let now = kernel.tasks.find(task.pid());
                now.filter(|now| Arc::ptr_eq(now, &task)).ok_or(Errno::ESRCH)?;
                let group = Arc::clone(task.group());
                Ok(View { kernel, pids, group, task: Some(task), of_thread: true })
            }
        }
    }
}

impl View {
    /// Number of a task, process group or session as this mount shows it; 0 where it does not.
    pub(super) fn shown(&self, pid: Pid) -> Pid {
        self.pids.shown(pid)
    }

    /// Its number as this mount shows it.
    pub(super) fn number(&self) -> Pid {
        self.shown(self.pid())
    }

    /// Its number.
    pub(super) fn pid(&self) -> Pid {
        match &self.task {
            Some(task) if self.of_thread => task.pid(),
            _ => self.group.pid(),
        }
    }

    /// Its living task.
    ///
    /// # Errors
    /// ESRCH once all ended.
    pub(super) fn living(&self) -> Result<&Arc<Task>, Errno> {
        self.task.as_ref().ok_or(Errno::ESRCH)
    }

    /// What the tree of tasks knows of its process.
    ///
    /// # Errors
    /// ESRCH where it has gone meanwhile.
    pub(super) fn info(&self) -> Result<ProcessInfo, Errno> {
        self.kernel.tasks.process_info(self.group.pid()).ok_or(Errno::ESRCH)
    }

    /// Who it is.
    pub(super) fn credentials(&self) -> Result<Arc<Credentials>, Errno> {
        match &self.task {
            Some(task) => Ok(task.credentials()),
            None => Ok(self.info()?.credentials),
        }
    }

    /// Its name, also after its end.
    pub(super) fn comm(&self) -> Vec<u8> {
        self.task.as_ref().map_or_else(|| self.group.last_comm(), |task| task.comm())
    }

    /// Whether somebody is of this process.
    pub(super) fn is_of(&self, caller: &Caller) -> bool {
        let process = self.kernel.tasks.find(caller.process).map_or(caller.process, |t| t.group().pid());
        process == self.group.pid()
    }

    /// Whether somebody may look into it (`__ptrace_may_access` with `PTRACE_MODE_READ_FSCREDS`).
    pub(super) fn may_be_seen_by(&self, caller: &Caller) -> bool {
        let who = &caller.credentials;
        let Ok(other) = self.credentials() else { return false };
        if self.is_of(caller) || who.capable_in(&other.user_ns, CAP_SYS_PTRACE) {
            return true;
        }
        let same_user = [other.uid, other.euid, other.suid].iter().all(|uid| *uid == who.fsuid);
        let same_group = [other.gid, other.egid, other.sgid].iter().all(|gid| *gid == who.fsgid);
        let covers = other.permitted.0 & !who.effective.0 == 0 && other.user_ns == who.user_ns;
        same_user && same_group && covers && self.group.dumpable() == 1
    }
}

/// What an item of a folder is.
pub(super) enum What {
    /// A text.
    Text(fn(&View, &Caller) -> Result<Vec<u8>, Errno>),
    /// A text that can be written.
    Setting(fn(&View, &Caller) -> Result<Vec<u8>, Errno>, fn(&View, &Caller, &[u8]) -> Result<(), Errno>),
    /// A link that is no path.
    Link(fn(&View) -> Result<Place, Errno>),
    /// `mem`.
    Memory,
    /// `net`: the same for all.
    Net,
    /// Open files.
    Fd,
    /// About open files.
    FdInfo,
    /// Namespaces.
    Ns,
    /// Threads.
    Task,
    /// A folder of fixed items.
    Items(&'static [Item]),
}

/// Something in a folder of a process.
pub(super) struct Item {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    /// Whether it is there for whoever may look into the process only.
    pub(super) guarded: bool,
    pub(super) what: What,
}

impl Item {
    const fn new(name: &'static str, mode: u32, guarded: bool, what: What) -> Self {
        Self { name, mode, guarded, what }
    }
}

/// Who may what: columns are name, mode, guarded, kind. Of a thread's folder `task` is missing.
static ITEMS: &[Item] = &[
    Item::new("attr", 0o555, false, What::Items(ATTR)),
    Item::new("autogroup", 0o644, false, What::Setting(details::autogroup, details::ignore)),
    Item::new("auxv", 0o400, true, What::Text(memory::auxv)),
    Item::new("cgroup", 0o444, false, What::Text(details::cgroup)),
    Item::new("children", 0o444, false, What::Text(details::children)),
    Item::new("clear_refs", 0o200, false, What::Setting(details::unreadable, details::clear_refs)),
    Item::new("cmdline", 0o444, false, What::Text(memory::cmdline)),
    Item::new("comm", 0o644, false, What::Setting(details::comm, details::set_comm)),
    Item::new("coredump_filter", 0o644, false, What::Setting(details::coredump_filter, details::ignore)),
    Item::new("cpuset", 0o444, false, What::Text(details::cpuset)),
    Item::new("cwd", 0o777, true, What::Link(descriptors::cwd)),
    Item::new("environ", 0o400, true, What::Text(memory::environ)),
    Item::new("exe", 0o777, true, What::Link(descriptors::exe)),
    Item::new("fd", 0o500, false, What::Fd),
    Item::new("fdinfo", 0o555, true, What::FdInfo),
    Item::new("gid_map", 0o644, false, What::Setting(users::gid_map, users::set_gid_map)),
    Item::new("io", 0o400, true, What::Text(details::io)),
    Item::new("limits", 0o444, false, What::Text(details::limits)),
    Item::new("loginuid", 0o644, false, What::Setting(details::loginuid, details::refuse)),
    Item::new("maps", 0o444, true, What::Text(memory::maps)),
    Item::new("mem", 0o600, true, What::Memory),
    Item::new("mountinfo", 0o444, false, What::Text(mounts::mountinfo)),
    Item::new("mounts", 0o444, false, What::Text(mounts::mounts)),
    Item::new("mountstats", 0o400, false, What::Text(mounts::mountstats)),
    Item::new("net", 0o555, false, What::Net),
    Item::new("ns", 0o511, false, What::Ns),
    Item::new("numa_maps", 0o444, true, What::Text(memory::numa_maps)),
    Item::new("oom_adj", 0o644, false, What::Setting(details::oom_adj, details::set_oom_adj)),
    Item::new("oom_score", 0o444, false, What::Text(details::oom_score)),
    Item::new(
        "oom_score_adj",
        0o644,
        false,
        What::Setting(details::oom_score_adj, details::set_oom_score_adj),
    ),
    Item::new("pagemap", 0o400, true, What::Text(details::not_permitted)),
    Item::new("personality", 0o400, true, What::Text(details::personality)),
    Item::new("projid_map", 0o644, false, What::Setting(users::project_map, users::set_project_map)),
    Item::new("root", 0o777, true, What::Link(descriptors::root)),
    Item::new("sched", 0o644, false, What::Setting(details::sched, details::ignore)),
    Item::new("schedstat", 0o444, false, What::Text(details::schedstat)),
    Item::new("sessionid", 0o444, false, What::Text(details::loginuid)),
    Item::new("setgroups", 0o644, false, What::Setting(users::set_groups, users::write_set_groups)),
    Item::new("smaps", 0o444, true, What::Text(memory::smaps)),
    Item::new("smaps_rollup", 0o444, true, What::Text(memory::smaps_rollup)),
    Item::new("stack", 0o400, true, What::Text(details::stack)),
    Item::new("stat", 0o444, false, What::Text(status::stat)),
    Item::new("statm", 0o444, false, What::Text(status::statm)),
    Item::new("status", 0o444, false, What::Text(status::status)),
    Item::new("syscall", 0o400, true, What::Text(details::syscall)),
    Item::new("task", 0o555, false, What::Task),
    Item::new("timens_offsets", 0o644, false, What::Setting(details::timens_offsets, details::refuse)),
    Item::new("timers", 0o444, false, What::Text(details::nothing)),
    Item::new("timerslack_ns", 0o666, false, What::Setting(details::timer_slack, details::set_timer_slack)),
    Item::new("uid_map", 0o644, false, What::Setting(users::uid_map, users::set_uid_map)),
    Item::new("wchan", 0o444, false, What::Text(details::wchan)),
];

/// Labels of security modules, of which there are none: what is read or written is EINVAL (`proc_pid_attr_read`).
static ATTR: &[Item] = &[
    Item::new("current", 0o666, false, What::Setting(details::invalid, details::invalid_write)),
    Item::new("exec", 0o666, false, What::Setting(details::invalid, details::invalid_write)),
    Item::new("fscreate", 0o666, false, What::Setting(details::invalid, details::invalid_write)),
    Item::new("keycreate", 0o666, false, What::Setting(details::invalid, details::invalid_write)),
    Item::new("prev", 0o444, false, What::Text(details::invalid)),
    Item::new("sockcreate", 0o666, false, What::Setting(details::invalid, details::invalid_write)),
];

/// What a file in such a folder is.
#[derive(Clone, Copy)]
enum Spot {
    Top,
    Item(&'static Item),
    Fd(i32),
    FdInfo(i32),
    Namespace(usize),
}

/// A file in the folder of a process or thread, or that itself.
pub(super) struct ProcessNode {
    shared: Arc<Shared>,
    subject: Subject,
    path: Vec<u8>,
    spot: Spot,
}

/// The folder of a process; also of a thread, which no listing shows (`proc_pid_lookup`).
pub(super) fn of_process(shared: &Arc<Shared>, number: Pid, pid: Pid) -> Option<Arc<dyn Inode>> {
    let kernel = shared.kernel().ok()?;
    let subject = match kernel.tasks.find_group(pid) {
        Some(group) => Subject::Process(Arc::downgrade(&group)),
        None => Subject::Thread(Arc::downgrade(&kernel.tasks.find(pid)?)),
    };
    let path = format!("/{number}").into_bytes();
    Some(Arc::new(ProcessNode { shared: Arc::clone(shared), subject, path, spot: Spot::Top }))
}

/// The process whose folder this is; ESRCH where it is gone, `None` where it is no such folder (`tgid_pidfd_to_pid`).
pub(super) fn process_of(inode: &dyn Inode) -> Option<Result<Arc<ThreadGroup>, Errno>> {
    match inode.downcast::<ProcessNode>()? {
        ProcessNode { subject: Subject::Process(group), spot: Spot::Top, .. } => {
            Some(group.upgrade().ok_or(Errno::ESRCH))
        }
        _ => None,
    }
}

impl ProcessNode {
    fn view(&self) -> Result<View, Errno> {
        self.subject.view(&self.shared)
    }

    fn below(&self, name: &[u8], spot: Spot) -> Arc<dyn Inode> {
        let (shared, subject) = (Arc::clone(&self.shared), self.subject.clone());
        Arc::new(Self { shared, subject, path: join(&self.path, name), spot })
    }

    /// EACCES for whoever may not look into the process, where that matters.
    fn guard(&self, caller: &Caller, view: &View) -> Result<(), Errno> {
        let guarded = match self.spot {
            Spot::Top => false,
            Spot::Item(item) => item.guarded,
            Spot::Fd(_) | Spot::FdInfo(_) | Spot::Namespace(_) => true,
        };
        if guarded && !view.may_be_seen_by(caller) { Err(Errno::EACCES) } else { Ok(()) }
    }

    fn net(&self) -> Result<Node, Errno> {
        let branch = Arc::clone(self.shared.system().child(b"net").ok_or(Errno::ENOENT)?);
        Ok(Node { shared: Arc::clone(&self.shared.files), path: b"/net".to_vec(), branch })
    }

    fn thread(&self, view: &View, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let pid = pid_of(name).and_then(|number| view.pids.named(number)).ok_or(Errno::ENOENT)?;
        let task = view.kernel.tasks.find(pid).ok_or(Errno::ENOENT)?;
        if !Arc::ptr_eq(task.group(), &view.group) {
            return Err(Errno::ENOENT);
        }
        let subject = Subject::Thread(Arc::downgrade(&task));
        let (shared, path) = (Arc::clone(&self.shared), join(&self.path, name));
        Ok(Arc::new(Self { shared, subject, path, spot: Spot::Top }))
    }

    fn mode(&self, view: Option<&View>) -> u32 {
        match self.spot {
            Spot::Top => 0o555,
            Spot::Item(item) => item.mode,
            Spot::Fd(fd) => view.map_or(0o700, |view| descriptors::link_mode(view, fd)),
            Spot::FdInfo(_) => 0o400,
            Spot::Namespace(_) => 0o777,
        }
    }

    /// Where the link leads.
    fn target(&self, caller: &Caller) -> Result<Option<Place>, Errno> {
        if self.kind() != FileKind::Symlink {
            return Ok(None);
        }
        let view = self.view().map_err(|_| Errno::ENOENT)?;
        self.guard(caller, &view)?;
        match self.spot {
            Spot::Item(Item { what: What::Link(of), .. }) => of(&view).map(Some),
            Spot::Fd(fd) => descriptors::of_fd(&view, fd).map(Some),
            Spot::Namespace(index) => descriptors::namespace(&view, index).map(Some),
            _ => Ok(None),
        }
    }
}

fn entry(path: &[u8], name: &str, kind: FileKind) -> DirEntry {
    let name = name.as_bytes().to_vec();
    DirEntry { inode: generated::number(&join(path, &name)), name, kind }
}

fn kind_of(item: &Item) -> FileKind {
    match item.what {
        What::Text(_) | What::Setting(..) | What::Memory => FileKind::Regular,
        What::Link(_) => FileKind::Symlink,
        _ => FileKind::Folder,
    }
}

impl Inode for ProcessNode {
    fn kind(&self) -> FileKind {
        match self.spot {
            Spot::Top => FileKind::Folder,
            Spot::Item(item) => kind_of(item),
            Spot::Fd(_) | Spot::Namespace(_) => FileKind::Symlink,
            Spot::FdInfo(_) => FileKind::Regular,
        }
    }

    fn valid(&self) -> bool {
        let Ok(view) = self.view() else { return false };
        match self.spot {
            Spot::Fd(fd) | Spot::FdInfo(fd) => descriptors::is_open(&view, fd),
            _ => true,
        }
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let view = self.view().ok();
        let mut attributes = self.shared.files.attributes(&self.path, self.kind(), self.mode(view.as_ref()));
        // Whoever must not look into a process does not own its files either (`task_dump_owner`).
        let owned = |view: &&View| matches!(self.spot, Spot::Top) || view.group.dumpable() == 1;
        if let Some(view) = view.as_ref().filter(owned)
            && let Ok(who) = view.credentials()
        {
            (attributes.uid, attributes.gid) = (who.euid, who.egid);
        }
        if attributes.kind == FileKind::Symlink {
            attributes.size = 64;
        }
        Ok(attributes)
    }

    fn change(&self, wanted: &AttributeChange) -> Result<(), Errno> {
        generated::change(wanted)
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let view = self.view().map_err(|_| Errno::ENOENT)?;
        let items = match self.spot {
            Spot::Top => ITEMS,
            Spot::Item(Item { what, .. }) => match what {
                What::Items(items) => items,
                What::Net => return self.net()?.lookup(name),
                What::Task => return self.thread(&view, name),
                What::Fd | What::FdInfo => {
                    let fd = descriptors::number(name).filter(|fd| descriptors::is_open(&view, *fd));
                    let fd = fd.ok_or(Errno::ENOENT)?;
                    let spot = if matches!(what, What::Fd) { Spot::Fd(fd) } else { Spot::FdInfo(fd) };
                    return Ok(self.below(name, spot));
                }
                What::Ns => {
                    let index = NAMESPACES.iter().position(|space| space.name.as_bytes() == name);
                    return Ok(self.below(name, Spot::Namespace(index.ok_or(Errno::ENOENT)?)));
                }
                _ => return Err(Errno::ENOTDIR),
            },
            _ => return Err(Errno::ENOTDIR),
        };
        let item = items.iter().find(|item| item.name.as_bytes() == name);
        let item = item.filter(|item| item.is_in(view.of_thread)).ok_or(Errno::ENOENT)?;
        Ok(self.below(name, Spot::Item(item)))
    }

    fn create(&self, _name: &[u8], _new: &NewNode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        // Not even a name that is free is found here (`proc_lookup`).
        Err(Errno::ENOENT)
    }

    fn unlink(&self, _name: &[u8]) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    fn rmdir(&self, _name: &[u8]) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    fn list(&self) -> Result<Vec<DirEntry>, Errno> {
        let view = self.view().map_err(|_| Errno::ENOENT)?;
        let all = |items: &[Item]| {
            let there = items.iter().filter(|item| item.is_in(view.of_thread));
            there.map(|item| entry(&self.path, item.name, kind_of(item))).collect()
        };
        let what = match self.spot {
            Spot::Top => return Ok(all(ITEMS)),
            Spot::Item(item) => &item.what,
            _ => return Err(Errno::ENOTDIR),
        };
        let numbers = |numbers: Vec<i32>, kind| {
            numbers.iter().map(|number| entry(&self.path, &number.to_string(), kind)).collect()
        };
        Ok(match what {
            What::Items(items) => all(items),
            What::Net => self.net()?.list()?,
            What::Task => {
                let threads = view.info()?.threads;
                numbers(threads.into_iter().map(|pid| view.shown(pid)).collect(), FileKind::Folder)
            }
            What::Fd => numbers(descriptors::open_numbers(&view), FileKind::Symlink),
            What::FdInfo => numbers(descriptors::open_numbers(&view), FileKind::Regular),
            What::Ns => {
                NAMESPACES.iter().map(|space| entry(&self.path, space.name, FileKind::Symlink)).collect()
            }
            _ => return Err(Errno::ENOTDIR),
        })
    }

    fn readlink(&self, caller: &Caller) -> Result<Vec<u8>, Errno> {
        let target = self.target(caller)?.ok_or(Errno::EINVAL)?;
        let kernel = self.shared.kernel()?;
        Ok(descriptors::shown(&kernel, caller, &target))
    }

    fn magic_link(&self, caller: &Caller) -> Option<Result<Place, Errno>> {
        self.target(caller).transpose()
    }

    fn open(self: Arc<Self>, flags: Flags, caller: &Caller) -> Result<Box<dyn File>, Errno> {
        let view = self.view().map_err(|_| Errno::ENOENT)?;
        if let Spot::Item(Item { what: What::Memory, .. }) = self.spot {
            // Looked up first: that of before an `execve` where who it is changes while it is asked.
            let memory = memory::Mem::of(&view);
            self.guard(caller, &view)?;
            return Ok(Box::new(memory?));
        }
        self.guard(caller, &view)?;
        if let Spot::Item(Item { name: "pagemap", .. }) = self.spot {
            return Err(Errno::EPERM);
        }
        if let Spot::Item(Item { what: What::Text(_), .. }) = self.spot
            && flags.writable()
        {
            return Err(Errno::EACCES);
        }
        Ok(Text::boxed(ProcessText { node: self, caller: caller.clone() }))
    }
}

impl Item {
    fn is_in(&self, thread: bool) -> bool {
        match self.name {
            "task" | "autogroup" | "coredump_filter" | "mountstats" | "timers" | "timerslack_ns" => !thread,
            "children" => thread,
            _ => true,
        }
    }
}

/// An open text of a process.
struct ProcessText {
    node: Arc<ProcessNode>,
    caller: Caller,
}

impl Source for ProcessText {
    fn read(&self) -> Result<Vec<u8>, Errno> {
        let view = self.node.view()?;
        match self.node.spot {
            Spot::Item(Item { what: What::Text(read) | What::Setting(read, _), .. }) => {
                read(&view, &self.caller)
            }
            Spot::FdInfo(fd) => descriptors::info(&view, fd),
            _ => Err(Errno::EINVAL),
        }
    }

    fn write(&self, from: &[u8]) -> Result<(), Errno> {
        match self.node.spot {
            Spot::Item(Item { what: What::Setting(_, write), .. }) => {
                write(&self.node.view()?, &self.caller, from)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Whether somebody may raise what others must not (`CAP_SYS_RESOURCE`).
pub(super) fn has_resources(caller: &Caller) -> bool {
    caller.credentials.capable(access::CAP_SYS_RESOURCE)
}
