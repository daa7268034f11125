//! New namespaces and entering others: `clone`, `unshare`, `setns` (`kernel/nsproxy.c`, `man 2 setns`).

use std::sync::Arc;

use super::super::clone::flag;
use super::super::{Credentials, Task, capability, hooks, securebits};
use super::{AnyNamespace, Kind, Namespaces, PidNamespace, UserNamespace};
use crate::error::Errno;
use crate::vfs::FsContext;

/// `CAP_SYS_CHROOT`.
const CAP_SYS_CHROOT: u32 = 18;

impl Credentials {
    /// The same user in another namespace, where it has all capabilities (`set_cred_user_ns`).
    #[must_use]
    pub fn in_user_namespace(&self, space: Arc<UserNamespace>) -> Self {
        let root = Self::root();
        Self {
            effective: root.effective,
            permitted: root.permitted,
            bounding: root.bounding,
            inheritable: root.inheritable,
            ambient: root.ambient,
            securebits: self.securebits & !(securebits::ALL | securebits::LOCKS),
            user_ns: space,
            ..self.clone()
        }
    }
}

/// What a new task has, or one after `unshare`.
pub(in crate::task) struct New {
    /// Who it is, where that changes.
    pub(in crate::task) credentials: Option<Credentials>,
    /// Its namespaces, where they change.
    pub(in crate::task) namespaces: Option<Arc<Namespaces>>,
}

/// Makes what `flags` of `clone` ask for. `fs` is the new task's own where mounts are new: it then stands at the same places of the copy.
///
/// # Errors
/// EPERM, ENOSPC, EINVAL.
pub(in crate::task) fn for_clone(task: &Task, flags: u64, fs: &FsContext) -> Result<New, Errno> {
    let mut new = New { credentials: None, namespaces: None };
    if flags & (flag::NAMESPACES | flag::NEWTIME) == 0 {
        return Ok(new);
    }
    let mut who = task.credentials();
    if flags & flag::NEWUSER != 0 {
        // Out of a changed root a new namespace would be a way out.
        let mounts = &task.namespaces().mounts;
        if !task.fs().root().same(&mounts.root_place().down()) {
            return Err(Errno::EPERM);
        }
        let space = UserNamespace::new(&who)?;
        who = Arc::new(who.in_user_namespace(space));
        new.credentials = Some((*who).clone());
    }
    if flags & (flag::NAMESPACES & !flag::NEWUSER | flag::NEWTIME) == 0 {
        return Ok(new);
    }
    if !who.capable_here(capability::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    if flags & flag::NEWTIME != 0 {
        return Err(Errno::EINVAL);
    }
    let old = task.namespaces();
    let mut spaces = old.renewed(flags, &who.user_ns)?;
    if flags & flag::NEWPID != 0 {
        if !Arc::ptr_eq(&old.pids_for_children, task.pid_namespace()) {
            return Err(Errno::EINVAL);
        }
        spaces.pids_for_children = PidNamespace::below(&old.pids_for_children, &who.user_ns)?;
    }
    if flags & flag::NEWNS != 0 {
        spaces.mounts = old.mounts.copy(&who.user_ns, fs)?;
    }
    new.namespaces = Some(Arc::new(spaces));
    Ok(new)
}

/// Gives a task what it shared for itself (`man 2 unshare`).
///
/// # Errors
/// EINVAL for what it cannot have (memory, handlers, while others use them); EPERM, ENOSPC for namespaces.
pub fn unshare(task: &Task, flags: u64) -> Result<(), Errno> {
    const SYSVSEM: u64 = 0x4_0000;
    const ALONE: u64 = flag::THREAD | flag::SIGHAND | flag::VM;
    let known = flag::NAMESPACES | flag::NEWTIME | ALONE | flag::FS | flag::FILES | SYSVSEM;
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let alone = flags & (ALONE | flag::NEWUSER | flag::NEWPID) != 0;
    if alone && task.tasks().tree().tasks_of(task.group().pid()).len() > 1 {
        return Err(Errno::EINVAL);
    }
    let own_fs = flags & (flag::FS | flag::NEWNS | flag::NEWUSER) != 0;
    let fs = if own_fs { hooks::fork_fs(&task.fs()) } else { task.fs() };
    let new = for_clone(task, flags, &fs)?;
    if flags & (SYSVSEM | flag::NEWIPC) != 0 {
        task.namespaces().ipc.ipc().process_ended(task.group().pid());
    }
    if flags & flag::FILES != 0 {
        let own = hooks::fork_files(&task.files());
        drop(task.set_files(own));
    }
    if own_fs {
        drop(task.set_fs(fs));
    }
    if let Some(spaces) = new.namespaces {
        drop(task.set_namespaces(spaces));
    }
    if let Some(credentials) = new.credentials {
        task.set_credentials(credentials);
    }
    Ok(())
}

/// The namespace of a kind that a task is in.
#[must_use]
pub fn of_task(task: &Task, kind: Kind) -> AnyNamespace {
    let spaces = task.namespaces();
    match kind {
        Kind::Cgroup => AnyNamespace::Cgroup(Arc::clone(&spaces.cgroups)),
        Kind::Ipc => AnyNamespace::Ipc(Arc::clone(&spaces.ipc)),
        Kind::Mount => AnyNamespace::Mount(Arc::clone(&spaces.mounts)),
        Kind::Net => AnyNamespace::Net(Arc::clone(&spaces.net)),
        Kind::Pid => AnyNamespace::Pid(Arc::clone(task.pid_namespace())),
        Kind::User => AnyNamespace::User(Arc::clone(&task.credentials().user_ns)),
        Kind::Uts => AnyNamespace::Uts(Arc::clone(&spaces.names)),
        Kind::Time => AnyNamespace::Time,
    }
}

/// Those of another task that `flags` name, in the order in which they are entered: users first (`validate_nsset`).
///
/// # Errors
/// EINVAL for no flag, or one that is none.
pub fn all_of_task(task: &Task, flags: u64) -> Result<Vec<AnyNamespace>, Errno> {
    const ORDER: [Kind; 7] =
        [Kind::User, Kind::Mount, Kind::Uts, Kind::Ipc, Kind::Pid, Kind::Cgroup, Kind::Net];
    let known = ORDER.iter().fold(0, |flags, kind| flags | kind.flag());
    if flags == 0 || flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = ORDER.into_iter().filter(|kind| flags & kind.flag() != 0);
    Ok(wanted.map(|kind| of_task(task, kind)).collect())
}

/// Enters namespaces: all of them, or none (`man 2 setns`).
///
/// # Errors
/// EPERM without the capabilities; EINVAL for users while there are other threads or shared folders, and for processes that are not in the
/// task's own namespace.
pub fn enter(task: &Task, wanted: &[AnyNamespace]) -> Result<(), Errno> {
    let mut who = task.credentials();
    let mut spaces = (*task.namespaces()).clone();
    let mut users_changed = false;
    for namespace in wanted {
        if let AnyNamespace::User(space) = namespace {
            let alone = task.tasks().tree().tasks_of(task.group().pid()).len() <= 1 && !task.shares_fs();
            if *space == who.user_ns || !alone {
                return Err(Errno::EINVAL);
            }
            if !who.capable_in(space, capability::SYS_ADMIN) {
                return Err(Errno::EPERM);
            }
            who = Arc::new(who.in_user_namespace(Arc::clone(space)));
            users_changed = true;
            continue;
        }
        install(task, &who, namespace, &mut spaces)?;
    }
    if wanted.iter().any(|namespace| namespace.kind() == Kind::Mount) {
        let root = spaces.mounts.root_place().down();
        let fs = task.fs();
        fs.set_root(root.clone());
        fs.set_cwd(root);
    }
    drop(task.set_namespaces(Arc::new(spaces)));
    if users_changed {
        task.set_credentials((*who).clone());
    }
    Ok(())
}

fn install(
    task: &Task,
    who: &Credentials,
    namespace: &AnyNamespace,
    spaces: &mut Namespaces,
) -> Result<(), Errno> {
    let owner = namespace.owner().ok_or(Errno::EINVAL)?;
    let may = who.capable_in(&owner, capability::SYS_ADMIN) && who.capable_here(capability::SYS_ADMIN);
    if !may {
        return Err(Errno::EPERM);
    }
    match namespace {
        AnyNamespace::Uts(space) => spaces.names = Arc::clone(space),
        AnyNamespace::Ipc(space) => spaces.ipc = Arc::clone(space),
        AnyNamespace::Net(space) => spaces.net = Arc::clone(space),
        AnyNamespace::Cgroup(space) => spaces.cgroups = Arc::clone(space),
        AnyNamespace::Pid(space) => {
            if !space.is_within(task.pid_namespace()) {
                return Err(Errno::EINVAL);
            }
            spaces.pids_for_children = Arc::clone(space);
        }
        AnyNamespace::Mount(space) => {
            if !who.capable_here(CAP_SYS_CHROOT) {
                return Err(Errno::EPERM);
            }
            if task.shares_fs() {
                return Err(Errno::EINVAL);
            }
            spaces.mounts = Arc::clone(space);
        }
        AnyNamespace::User(_) | AnyNamespace::Time => {}
    }
    Ok(())
}
