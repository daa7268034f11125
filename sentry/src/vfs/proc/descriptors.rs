//! Links that are no paths: `cwd`, `root`, `exe`, `fd/N`, `ns/…`; and `fdinfo/N` (`fs/proc/fd.c`, `fs/proc/namespaces.c`, `fs/nsfs.c`).

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use super::super::anon::{self, AnonInode};
use super::super::{Attributes, Caller, File, FileKind, Flags, Inode, OpenFile, Place, Timestamp};
use super::process::View;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::kernel::Kernel;

/// A kind of namespaces.
pub(super) struct Namespace {
    /// Its name in `ns`.
    pub(super) name: &'static str,
    /// What the link shows it to be.
    kind: &'static str,
    /// Number of the one that there is (`include/linux/proc_ns.h`; above these as the kernel counts on).
    number: u64,
}

const fn space(name: &'static str, kind: &'static str, number: u64) -> Namespace {
    Namespace { name, kind, number }
}

/// All kinds, in the order of the folder.
pub(super) static NAMESPACES: &[Namespace] = &[
    space("cgroup", "cgroup", 4_026_531_835),
    space("ipc", "ipc", 4_026_531_839),
    space("mnt", "mnt", 4_026_531_841),
    space("net", "net", 4_026_531_840),
    space("pid", "pid", 4_026_531_836),
    space("pid_for_children", "pid", 4_026_531_836),
    space("time", "time", 4_026_531_834),
    space("time_for_children", "time", 4_026_531_834),
    space("user", "user", 4_026_531_837),
    space("uts", "uts", 4_026_531_838),
];

/// A namespace as a file.
struct NamespaceInode(&'static Namespace);

impl Inode for NamespaceInode {
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        static MADE: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);
        Ok(Attributes {
            device: 4,
            inode: self.0.number,
            kind: FileKind::Regular,
            mode: 0o444,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            accessed: *MADE,
            modified: *MADE,
            changed: *MADE,
            created: None,
        })
    }

    fn open(self: Arc<Self>, flags: Flags, _caller: &Caller) -> Result<Box<dyn File>, Errno> {
        if flags.writable() { Err(Errno::EPERM) } else { Ok(Box::new(NamespaceFile(self.0))) }
    }
}

/// An open namespace. It cannot be entered; what it is can be asked (`man 2 ioctl_nsfs`).
struct NamespaceFile(&'static Namespace);

/// Those above a namespace: EPERM, as they are out of sight.
const NS_GET_USERNS: u32 = 0xb701;
const NS_GET_PARENT: u32 = 0xb702;
/// Its flag of `clone`.
const NS_GET_NSTYPE: u32 = 0xb703;

impl File for NamespaceFile {
    fn control(&self, _call: &mut Call<'_>, request: u32, _argument: u64) -> SysResult {
        match request {
            NS_GET_USERNS | NS_GET_PARENT => Err(Errno::EPERM.into()),
            NS_GET_NSTYPE => Ok(match self.0.kind {
                "cgroup" => 0x200_0000,
                "ipc" => 0x800_0000,
                "mnt" => 0x2_0000,
                "net" => 0x4000_0000,
                "pid" => 0x2000_0000,
                "time" => 0x80,
                "user" => 0x1000_0000,
                _ => 0x400_0000,
            }),
            _ => Err(Errno::ENOTTY.into()),
        }
    }
}

/// Where `ns/…` leads.
pub(super) fn namespace(index: usize) -> Result<Place, Errno> {
    let space = NAMESPACES.get(index).ok_or(Errno::ENOENT)?;
    let inode: Arc<dyn Inode> = Arc::new(NamespaceInode(space));
    Ok(anon::place(&inode))
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
    if let Some(NamespaceInode(space)) = inode.downcast::<NamespaceInode>() {
        return format!("{}:[{}]", space.kind, space.number).into_bytes();
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
    let closes = view.living()?.files().is_close_on_exec(fd).unwrap_or(false);
    let close = if closes { libc::O_CLOEXEC.cast_unsigned() } else { 0 };
    let large = 0o100_000;
    let mut text = format!(
        "pos:\t{}\nflags:\t0{:o}\nmnt_id:\t{}\nino:\t{}\n",
        file.position_if_free().unwrap_or(0),
        file.flags().0 | close | large,
        file.place().map_or(15, |place| place.mount.id()),
        file.inode().attributes().map_or(0, |attributes| attributes.inode),
    );
    let _ = text.write_str(&file.file().details());
    Ok(text.into_bytes())
}
