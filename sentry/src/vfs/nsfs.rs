//! Namespaces as files (`man 7 namespaces`, `man 2 ioctl_nsfs`; `fs/nsfs.c`).

use std::sync::{Arc, LazyLock};

use super::anon;
use super::{Attributes, Caller, Dentry, File, FileKind, Flags, Inode, OpenFile, Place, Timestamp};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::namespaces::{AnyNamespace, Kind};
use crate::task::{Pid, PidNamespace};

/// Device of these files.
const DEVICE: u64 = 4;
/// `NSFS_MAGIC` is not told: [`anon::place`] has one file system for all.
const NS_GET_USERNS: u32 = 0xb701;
const NS_GET_PARENT: u32 = 0xb702;
const NS_GET_NSTYPE: u32 = 0xb703;
const NS_GET_OWNER_UID: u32 = 0xb704;
const NS_GET_MNTNS_ID: u32 = 0x8008_b705;
/// Four of a kind: from a namespace of processes and into it, of a thread and of a process.
const NS_GET_PID_FROM_PIDNS: u32 = 0x8004_b706;
const NS_GET_TGID_FROM_PIDNS: u32 = 0x8004_b707;
const NS_GET_PID_IN_PIDNS: u32 = 0x8004_b708;
const NS_GET_TGID_IN_PIDNS: u32 = 0x8004_b709;

/// A namespace as a file.
pub struct NamespaceInode(AnyNamespace);

impl NamespaceInode {
    /// Which.
    #[must_use]
    pub fn namespace(&self) -> &AnyNamespace {
        &self.0
    }

    /// What a link to it shows.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}:[{}]", self.0.kind().name(), self.0.number())
    }
}

/// The file of a namespace.
#[must_use]
pub fn place(namespace: AnyNamespace) -> Place {
    let inode: Arc<dyn Inode> = Arc::new(NamespaceInode(namespace));
    anon::place(&inode)
}

/// Whether a file is that of a namespace of mounts.
pub(super) fn is_of_mounts(dentry: &Dentry) -> bool {
    of_mounts(dentry).is_some()
}

/// Number of the namespace of mounts that a file is of.
#[must_use]
pub fn of_mounts(dentry: &Dentry) -> Option<u64> {
    let inode = dentry.inode().downcast::<NamespaceInode>()?;
    (inode.0.kind() == Kind::Mount).then(|| inode.0.number())
}

impl Inode for NamespaceInode {
    fn kind(&self) -> FileKind {
        FileKind::Regular
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        static MADE: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);
        Ok(Attributes {
            device: DEVICE,
            inode: self.0.number(),
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
        if flags.writable() { Err(Errno::EPERM) } else { Ok(Box::new(NamespaceFile(self.0.clone()))) }
    }
}

/// An open namespace.
pub struct NamespaceFile(AnyNamespace);

impl NamespaceFile {
    /// Which.
    #[must_use]
    pub fn namespace(&self) -> &AnyNamespace {
        &self.0
    }
}

fn open(call: &Call<'_>, namespace: AnyNamespace) -> SysResult {
    let place = place(namespace);
    let inode = Arc::clone(place.dentry.inode());
    let file = inode.open(Flags::READ, &Caller::of(call.task))?;
    let open = OpenFile::new(place, file, Flags::READ);
    Ok(u64::from(call.task.files().insert(open, true)?.cast_unsigned()))
}

impl NamespaceFile {
    /// The one whose users have capabilities in this one, or that this one lies in: for whoever is in it or around it (`ns_get_owner`).
    fn above(&self, call: &Call<'_>, parent: bool) -> Result<AnyNamespace, Errno> {
        let who = call.task.credentials();
        match &self.0 {
            AnyNamespace::Pid(space) if parent => {
                let above = space.parent().ok_or(Errno::EPERM)?;
                if !above.is_within(call.task.pid_namespace()) {
                    return Err(Errno::EPERM);
                }
                return Ok(AnyNamespace::Pid(Arc::clone(above)));
            }
            AnyNamespace::User(_) => {}
            _ if parent => return Err(Errno::EINVAL),
            _ => {}
        }
        let owner = self.0.owner().ok_or(Errno::EPERM)?;
        if owner.is_within(&who.user_ns) { Ok(AnyNamespace::User(owner)) } else { Err(Errno::EPERM) }
    }

    fn pids(&self) -> Result<&Arc<PidNamespace>, Errno> {
        match &self.0 {
            AnyNamespace::Pid(space) => Ok(space),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Number of a task in another namespace; `into`: it is named as the caller has it, and shown as this namespace has it.
    fn translate(&self, call: &Call<'_>, number: Pid, process: bool, into: bool) -> Result<Pid, Errno> {
        let (space, own) = (self.pids()?, call.task.pid_namespace());
        let (from, to) = if into { (own, space) } else { (space, own) };
        let task = from.named(number).and_then(|pid| call.task.tasks().find(pid)).ok_or(Errno::ESRCH)?;
        let pid = if process { task.group().pid() } else { task.pid() };
        Some(to.shown(pid)).filter(|pid| *pid != 0).ok_or(Errno::ESRCH)
    }
}

impl File for NamespaceFile {
    fn control(&self, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
        let number = || (argument & 0xffff_ffff) as u32;
        match request {
            NS_GET_USERNS => open(call, self.above(call, false)?),
            NS_GET_PARENT => open(call, self.above(call, true)?),
            NS_GET_NSTYPE => Ok(self.0.kind().flag()),
            NS_GET_OWNER_UID => {
                let AnyNamespace::User(space) = &self.0 else { return Err(Errno::EINVAL.into()) };
                let uid = call.task.credentials().user_ns.shown_uid(space.owner());
                call.write(argument, &uid.to_le_bytes())?;
                Ok(0)
            }
            NS_GET_MNTNS_ID => {
                let AnyNamespace::Mount(space) = &self.0 else { return Err(Errno::EINVAL.into()) };
                call.write(argument, &space.meta().number().to_le_bytes())?;
                Ok(0)
            }
            NS_GET_PID_FROM_PIDNS | NS_GET_TGID_FROM_PIDNS | NS_GET_PID_IN_PIDNS | NS_GET_TGID_IN_PIDNS => {
                let process = matches!(request, NS_GET_TGID_FROM_PIDNS | NS_GET_TGID_IN_PIDNS);
                let into = matches!(request, NS_GET_PID_IN_PIDNS | NS_GET_TGID_IN_PIDNS);
                let found = self.translate(call, number().cast_signed(), process, into)?;
                Ok(u64::from(found.cast_unsigned()))
            }
            _ => Err(Errno::ENOTTY.into()),
        }
    }
}
