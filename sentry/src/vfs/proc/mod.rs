//! `/proc` (`man 5 proc`; `fs/proc/*.c` of Linux).
//!
//! | part | what it is |
//! |---|---|
//! | [`process`] | folders of processes and threads: who may look, what is in them |
//! | `status` | `stat`, `statm`, `status` |
//! | `details` | the small texts of a process |
//! | `memory` | what is read out of a process' memory |
//! | `descriptors` | `fd`, `fdinfo`, `ns`, and links that are no paths |
//! | `mounts` | `mounts`, `mountinfo`, `mountstats` |
//! | `system`, `machine`, `net` | files of the whole system |
//! | `sysctl` | `/proc/sys` |
//!
//! **Nothing is kept.** A file of a process holds its process weakly and looks whether it is still the one of that number each time it is
//! asked something: what has gone is ENOENT to names and ESRCH to open files, as on Linux.
//!
//! **Locks.** A text is made under the position of the open file that is read and under no other lock of the file room. Whatever is asked of
//! tasks, tables of open files, address spaces and mounts is asked for moments, one after another: a text may tell of two moments,
//! as Linux' does. A position of an open file is only read where nobody holds it.

mod descriptors;
mod details;
mod machine;
mod memory;
mod mounts;
mod net;
mod process;
mod status;
mod sysctl;
mod system;
#[cfg(test)]
mod tests;
mod users;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

pub(super) use machine::MachineMemory;

use super::generated::{self, Branch, Node, Text};
use super::sync::lock;
use super::{
    Attributes, Caller, Dentry, DirEntry, FileKind, FileSystem, FsStatus, Inode, NewNode, Timestamp, Tree,
};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::task::{Pid, PidNamespace, ThreadGroup, current};

/// The process whose folder this is, for `pidfd_send_signal`; `None` where it is no such folder.
pub(crate) fn process_of_folder(inode: &dyn Inode) -> Option<Result<Arc<ThreadGroup>, Errno>> {
    process::process_of(inode)
}

/// `PROC_SUPER_MAGIC`.
const MAGIC: u64 = 0x9fa0;

/// What `/proc` shows the same wherever it is mounted.
#[derive(Default)]
pub struct State {
    /// Settings of `/proc/sys` that were written.
    settings: Mutex<BTreeMap<&'static str, Vec<u8>>>,
    boot_id: OnceLock<String>,
    boot_time: OnceLock<u64>,
    /// The most CPU time that was ever told: what is told never gets less, although processes go that nobody waits for.
    cpu: Mutex<(Duration, Duration)>,
    processes: Mutex<u64>,
}

/// What all files of one mount of it share.
struct Shared {
    files: Arc<generated::Shared>,
    kernel: Weak<Kernel>,
    /// Whose processes it shows.
    pids: Arc<PidNamespace>,
    system: OnceLock<Arc<Branch>>,
}

impl Shared {
    fn kernel(&self) -> Result<Arc<Kernel>, Errno> {
        self.kernel.upgrade().ok_or(Errno::ESRCH)
    }

    /// Files that belong to no process; put together when they are first asked for.
    fn system(&self) -> &Arc<Branch> {
        self.system.get_or_init(|| Arc::new(build(&self.kernel)))
    }
}

/// A text about the whole kernel.
type SystemText = fn(&Kernel) -> Vec<u8>;

/// A file of such a text.
fn system_file(kernel: &Weak<Kernel>, mode: u32, read: SystemText) -> Branch {
    let kernel = Weak::clone(kernel);
    Branch::File(
        mode,
        Box::new(move |_, _| {
            let kernel = Weak::clone(&kernel);
            Ok(Text::boxed(move || kernel.upgrade().map(|kernel| read(&kernel)).ok_or(Errno::ESRCH)))
        }),
    )
}

fn build(kernel: &Weak<Kernel>) -> Branch {
    let mut root = Branch::folder();
    for (path, mode, read) in system::FILES.iter().chain(machine::FILES).chain(net::FILES) {
        root.put(path, system_file(kernel, *mode, *read));
    }
    // `net` is the folder that each process has; the name at the top is a link to it.
    root.put("mounts", Branch::Link(b"self/mounts".to_vec()));
    for path in ["bus/pci", "driver", "fs", "irq", "sys/fs/binfmt_misc", "sys/debug", "tty/driver"] {
        root.put_folder(path);
    }
    sysctl::build(kernel, &mut root);
    root
}

/// The file system.
pub struct Proc {
    root: Arc<Root>,
}

impl Proc {
    /// One more of a kernel, ready to be mounted, with all its processes.
    #[must_use]
    pub fn tree(kernel: &Arc<Kernel>) -> Arc<Dentry> {
        Self::of_namespace(kernel, kernel.tasks.pids())
    }

    /// One with the processes of a namespace.
    #[must_use]
    pub fn of_namespace(kernel: &Arc<Kernel>, pids: &Arc<PidNamespace>) -> Arc<Dentry> {
        let shared = Shared {
            files: Arc::new(generated::Shared::new()),
            kernel: Arc::downgrade(kernel),
            pids: Arc::clone(pids),
            system: OnceLock::new(),
        };
        Tree::of(Box::new(Self { root: Arc::new(Root { shared: Arc::new(shared) }) }))
    }
}

impl FileSystem for Proc {
    fn name(&self) -> &'static str {
        "proc"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::clone(&self.root) as Arc<dyn Inode>
    }

    fn status(&self) -> Result<FsStatus, Errno> {
        Ok(FsStatus { magic: MAGIC, block_size: 4096, ..FsStatus::default() })
    }
}

/// The top folder.
struct Root {
    shared: Arc<Shared>,
}

/// A number as processes have them: no sign, no zeros before it.
fn pid_of(name: &[u8]) -> Option<Pid> {
    if !name.first().is_some_and(|digit| (b'1'..=b'9').contains(digit)) {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

impl Inode for Root {
    fn kind(&self) -> FileKind {
        FileKind::Folder
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let attributes = self.shared.files.attributes(b"", FileKind::Folder, 0o555);
        Ok(Attributes { inode: 1, modified: Timestamp::now(), ..attributes })
    }

    fn change(&self, wanted: &super::AttributeChange) -> Result<(), Errno> {
        generated::change(wanted)
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        if let Some(pid) = pid_of(name) {
            let task = self.shared.pids.named(pid).ok_or(Errno::ENOENT)?;
            return process::of_process(&self.shared, pid, task).ok_or(Errno::ENOENT);
        }
        match name {
            b"self" | b"thread-self" => {
                Ok(Arc::new(SelfLink { shared: Arc::clone(&self.shared), thread: name != b"self" }))
            }
            b"net" => Ok(Arc::new(Node {
                shared: Arc::clone(&self.shared.files),
                path: b"/net".to_vec(),
                branch: Arc::new(Branch::Link(b"self/net".to_vec())),
            })),
            _ => Ok(Arc::new(Node {
                shared: Arc::clone(&self.shared.files),
                path: generated::join(b"", name),
                branch: Arc::clone(self.shared.system().child(name).ok_or(Errno::ENOENT)?),
            })),
        }
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
        let mut entries = self.shared.system().list(b"");
        for entry in &mut entries {
            if entry.name == b"net" {
                entry.kind = FileKind::Symlink;
            }
        }
        let link = |name: &[u8]| DirEntry {
            name: name.to_vec(),
            inode: generated::number(&generated::join(b"", name)),
            kind: FileKind::Symlink,
        };
        entries.extend([link(b"self"), link(b"thread-self")]);
        let folder = |pid: Pid| {
            let name = pid.to_string().into_bytes();
            let inode = generated::number(&generated::join(b"", &name));
            DirEntry { name, inode, kind: FileKind::Folder }
        };
        let all = self.shared.kernel()?.tasks.processes().into_iter().map(|pid| self.shared.pids.shown(pid));
        let mut all: Vec<Pid> = all.filter(|pid| *pid > 0).collect();
        all.sort_unstable();
        entries.extend(all.into_iter().map(folder));
        Ok(entries)
    }
}

/// `self` and `thread-self`.
struct SelfLink {
    shared: Arc<Shared>,
    thread: bool,
}

impl Inode for SelfLink {
    fn kind(&self) -> FileKind {
        FileKind::Symlink
    }

    fn attributes(&self) -> Result<Attributes, Errno> {
        let path: &[u8] = if self.thread { b"/thread-self" } else { b"/self" };
        Ok(self.shared.files.attributes(path, FileKind::Symlink, 0o777))
    }

    fn readlink(&self, caller: &Caller) -> Result<Vec<u8>, Errno> {
        let kernel = self.shared.kernel()?;
        let shown = |pid: Pid| Some(self.shared.pids.shown(pid)).filter(|pid| *pid > 0).ok_or(Errno::ENOENT);
        let process = shown(caller.process)?;
        if kernel.tasks.find_group(caller.process).is_none() {
            return Err(Errno::ENOENT);
        }
        if !self.thread {
            return Ok(process.to_string().into_bytes());
        }
        // Whoever asks is a thread of the caller, unless it is no task at all.
        let own = current().filter(|task| task.group().pid() == caller.process);
        let task = own.or_else(|| kernel.tasks.find(caller.process)).ok_or(Errno::ENOENT)?;
        Ok(format!("{process}/task/{}", shown(task.pid())?).into_bytes())
    }
}

impl State {
    /// Settings of `/proc/sys`: what was written, if it was.
    fn setting(&self, path: &str) -> Option<Vec<u8>> {
        lock(&self.settings).get(path).cloned()
    }

    /// A number among them that was written; `None` where it is still what it was at first.
    pub(crate) fn number(&self, path: &str) -> Option<i64> {
        std::str::from_utf8(&self.setting(path)?).ok()?.parse().ok()
    }

    /// Writes one.
    pub(crate) fn set(&self, path: &'static str, value: Vec<u8>) {
        lock(&self.settings).insert(path, value);
    }
}
