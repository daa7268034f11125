//! Links that are no paths: `cwd`, `root`, `exe`, `fd/N`, `ns/…`; and `fdinfo/N` (`fs/proc/fd.c`, `fs/proc/namespaces.c`, `fs/nsfs.c`).

use std::fmt::Write as _;
use std::sync::Arc;

use super::super::anon::{self, AnonInode};
use super::super::nsfs::{self, NamespaceInode};
use super::super::{Caller, OpenFile, Place, lock_list};
use super::process::View;
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::task::current;
use crate::task::namespaces::{AnyNamespace, Kind, of_task};

/// A kind of namespaces.
pub(super) struct Namespace {
    /// Its name in `ns`.
    pub(super) name: &'static str,
    kind: Kind,
    /// That of children to come, where it is another.
    for_children: bool,
}

const fn space(name: &'static str, kind: Kind, for_children: bool) -> Namespace {
    Namespace { name, kind, for_children }
}

/// All kinds, in the order of the folder.
pub(super) static NAMESPACES: &[Namespace] = &[
    space("cgroup", Kind::Cgroup, false),
    space("ipc", Kind::Ipc, false),
    space("mnt", Kind::Mount, false),
    space("net", Kind::Net, false),
    space("pid", Kind::Pid, false),
    space("pid_for_children", Kind::Pid, true),
    space("time", Kind::Time, false),
    space("time_for_children", Kind::Time, true),
    space("user", Kind::User, false),
    space("uts", Kind::Uts, false),
];

/// Where `ns/…` leads.
pub(super) fn namespace(view: &View, index: usize) -> Result<Place, Errno> {
    let space = NAMESPACES.get(index).ok_or(Errno::ENOENT)?;
    let task = view.task.as_ref().ok_or(Errno::ENOENT)?;
    if space.kind == Kind::Pid && space.for_children {
        let pids = Arc::clone(&task.namespaces().pids_for_children);
        // One that has no process yet is not to be had (`pidns_for_children_get`).
        if pids.is_empty() {
            return Err(Errno::ENOENT);
        }
        return Ok(nsfs::place(AnyNamespace::Pid(pids)));
    }
    Ok(nsfs::place(of_task(task, space.kind)))
}

/// Where `cwd` leads.
pub(super) fn cwd(view: &View) -> Result<Place, Errno> {
    Ok(view.task.as_ref().ok_or(Errno::ENOENT)?.fs().cwd())
}

/// Where `root` leads.
pub(super) fn root(view: &View) -> Result<Place, Errno> {
    Ok(view.task.as_ref().ok_or(Errno::ENOENT)?.fs().root())
}

/// Where `exe` leads.
pub(super) fn exe(view: &View) -> Result<Place, Errno> {
    let task = view.task.as_ref().ok_or(Errno::ENOENT)?;
    task.space().program().and_then(|program| program.place()).ok_or(Errno::ENOENT)
}

/// A number as descriptors have them.
pub(super) fn number(name: &[u8]) -> Option<i32> {
    let digits = name.iter().all(u8::is_ascii_digit) && (name == b"0" || name.first() != Some(&b'0'));
    if digits { std::str::from_utf8(name).ok()?.parse().ok() } else { None }
}

/// Whether a descriptor is open. Holds no file while it looks: it is asked with folders locked.
pub(super) fn is_open(view: &View, fd: i32) -> bool {
    view.task.as_ref().is_some_and(|task| task.files().is_close_on_exec(fd).is_ok())
}

/// All descriptors.
pub(super) fn open_numbers(view: &View) -> Vec<i32> {
    let all = view.task.as_ref().map(|task| task.files().all()).unwrap_or_default();
    all.iter().map(|(fd, _)| *fd).collect()
}

fn file(view: &View, fd: i32) -> Result<Arc<OpenFile>, Errno> {
    view.task.as_ref().ok_or(Errno::ENOENT)?.files().find(fd).map_err(|_| Errno::ENOENT)
}

/// Mode of a link: what the description is open for.
pub(super) fn link_mode(view: &View, fd: i32) -> u32 {
    let Ok(flags) = file(view, fd).map(|file| file.flags()) else { return 0 };
    let mode = |may, mode| if may { mode } else { 0 };
    if flags.path() { 0o100 } else { mode(flags.readable(), 0o500) | mode(flags.writable(), 0o300) }
}

/// Where `fd/N` leads.
pub(super) fn of_fd(view: &View, fd: i32) -> Result<Place, Errno> {
    let file = file(view, fd)?;
    Ok(file.place().cloned().unwrap_or_else(|| anon::place(file.inode())))
}

/// What a link to there shows (`d_path`; `dynamic_dname` for what has no name).
pub(super) fn shown(kernel: &Kernel, caller: &Caller, target: &Place) -> Vec<u8> {
    let inode = target.dentry.inode();
    if let Some(anonymous) = inode.downcast::<AnonInode>() {
        return anonymous.label().into_bytes();
    }
    if let Some(namespace) = inode.downcast::<NamespaceInode>() {
        return namespace.label().into_bytes();
    }
    let root = kernel.tasks.find(caller.process).map(|task| task.fs().root());
    let path = root.and_then(|root| target.path(&root));
    let mut path = path.unwrap_or_else(|| match target.absolute() {
        // What is in no tree of mounts is a file in memory (`memfd_create`).
        nowhere if nowhere.is_empty() || nowhere == b"/anonymous" => b"/memfd:".to_vec(),
        path => path,
    });
    if target.dentry.unlinked() {
        path.extend_from_slice(b" (deleted)");
    }
    path
}

/// `fdinfo/N`.
pub(super) fn info(view: &View, fd: i32) -> Result<Vec<u8>, Errno> {
    let file = file(view, fd)?;
    let files = view.living()?.files();
    let closes = files.is_close_on_exec(fd).unwrap_or(false);
    let close = if closes { libc::O_CLOEXEC.cast_unsigned() } else { 0 };
    let large = 0o100_000;
    let mut text = format!(
        "pos:\t{}\nflags:\t0{:o}\nmnt_id:\t{}\nino:\t{}\n",
        file.position_if_free().unwrap_or(0),
        file.flags().0 | close | large,
        file.place().map_or(15, |place| place.mount.id()),
        file.inode().attributes().map_or(0, |attributes| attributes.inode),
    );
    let _ = text.write_str(&lock_list::of(&file, files.owner(), current().as_deref()));
    let _ = text.write_str(&file.file().details());
    Ok(text.into_bytes())
}
