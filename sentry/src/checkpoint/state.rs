//! What an image says: the state of a container, as numbers and bytes alone.
//!
//! All of it may have been written by anybody. Numbers of files, address spaces and pipes are places in lists and are looked up, never
//! indexed; what has limits elsewhere is made by the same functions that guests reach.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::mm::{Strings, VdsoPart};
use crate::task::Pid;
use crate::time::Reading;

/// Bytes that lie elsewhere in the image: of memory or of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    /// Address, or offset in a file.
    pub(crate) at: u64,
    /// How many.
    pub(crate) length: u64,
    /// Where in the image's bytes; `None` for zeros.
    pub(crate) from: Option<u64>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// What the sandbox' clocks showed.
    pub(crate) time: Reading,
    /// Mappings of the host's vDSO.
    pub(crate) vdso: Vec<Range<u64>>,
    /// SHA-256 of its code.
    pub(crate) vdso_code: [u8; 32],
    /// Name of the machine and of its domain, where they are not those that the sandbox was given.
    pub(crate) names: Option<(Vec<u8>, Vec<u8>)>,
    /// Mounts by path and name of the file system.
    pub(crate) mounts: Vec<(Vec<u8>, Vec<u8>)>,
    /// What lies in memory of file systems, by the place in that list.
    pub(crate) trees: Vec<(u32, SavedTree)>,
    /// Pipes.
    pub(crate) pipes: Vec<SavedPipe>,
    /// Open files.
    pub(crate) files: Vec<SavedFile>,
    /// Tables of descriptors.
    pub(crate) tables: Vec<SavedTable>,
    /// Roots and working folders.
    pub(crate) folders: Vec<SavedFolders>,
    /// Memory that was shared when it was made.
    pub(crate) shared: Vec<SavedShared>,
    /// Address spaces.
    pub(crate) spaces: Vec<SavedSpace>,
    /// Processes, parents first.
    pub(crate) processes: Vec<SavedProcess>,
    /// Number of the container's first process.
    pub(crate) first: Pid,
}

impl State {
    /// All bytes that lie elsewhere in the image.
    pub(crate) fn extents(&self) -> impl Iterator<Item = &Extent> {
        let files = self.files.iter().filter_map(|file| match &file.kind {
            SavedKind::Memory { extents, .. } => Some(extents),
            _ => None,
        });
        let nodes = self.trees.iter().flat_map(|(_, tree)| &tree.nodes);
        let nodes = nodes.filter_map(|node| match &node.body {
            SavedBody::Regular { extents, .. } => Some(extents),
            _ => None,
        });
        let spaces = self.spaces.iter().map(|space| &space.extents);
        let shared = self.shared.iter().map(|shared| &shared.extents);
        files.chain(nodes).chain(spaces).chain(shared).flatten()
    }

    /// How many bytes are put back out of the image, and how many zeros.
    pub(crate) fn lengths(&self) -> (u64, u64) {
        self.extents().fold((0, 0), |(stored, zeros): (u64, u64), extent| match extent.from {
            Some(_) => (stored.saturating_add(extent.length), zeros),
            None => (stored, zeros.saturating_add(extent.length)),
        })
    }
}

/// An address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedSpace {
    pub(crate) range: Range<u64>,
    pub(crate) mmap_base: u64,
    pub(crate) stack_top: u64,
    pub(crate) heap: Range<u64>,
    pub(crate) program_data: u64,
    pub(crate) lock_future: bool,
    pub(crate) strings: Strings,
    pub(crate) barriers: u64,
    /// The file that runs in it.
    pub(crate) program: Option<u32>,
    pub(crate) areas: Vec<SavedArea>,
    /// What is in private areas, where it is not what the file has.
    pub(crate) extents: Vec<Extent>,
    /// What the platform keeps.
    pub(crate) kept: Vec<u8>,
}

/// An area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedArea {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) protection: u32,
    pub(crate) flags: u32,
    pub(crate) backing: SavedBacking,
}

/// Where its bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SavedBacking {
    Anonymous,
    Shared { id: u64, offset: u64 },
    File { file: u32, offset: u64 },
    Vdso { part: VdsoPart, offset: u64 },
}

/// Memory that was shared when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedShared {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) extents: Vec<Extent>,
}

/// A table of descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedTable {
    pub(crate) limit: u32,
    /// Number, file, whether an `execve` closes it.
    pub(crate) descriptors: Vec<(i32, u32, bool)>,
}

/// Root and working folder by path, and the umask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedFolders {
    pub(crate) root: Vec<u8>,
    pub(crate) folder: Vec<u8>,
    pub(crate) umask: u32,
}

/// A pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedPipe {
    pub(crate) capacity: u64,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// What is in it, and whether it is a packet.
    pub(crate) slots: Vec<(Vec<u8>, bool)>,
}

/// An open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedFile {
    pub(crate) flags: u32,
    pub(crate) position: u64,
    pub(crate) kind: SavedKind,
}

/// What is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SavedKind {
    /// A file that has a name: `stamp` is what to expect of a file whose bytes are not in the image.
    Path {
        path: Vec<u8>,
        stamp: Option<Stamp>,
    },
    /// Standard input, output or errors of the first process.
    Stream(u8),
    /// An end of a pipe.
    Pipe(u32),
    EventFd {
        count: u64,
        semaphore: bool,
    },
    TimerFd {
        monotonic: bool,
        value: Duration,
        interval: Duration,
        expirations: u64,
    },
    SignalFd(u64),
    Epoll(Vec<SavedWatch>),
    /// A regular file that has no name (any more), or a memfd.
    Memory {
        mode: u32,
        owner: (u32, u32),
        size: u64,
        seals: u32,
        extents: Vec<Extent>,
    },
    /// A TCP socket that listens, is bound, or is neither.
    Tcp(SavedTcp),
    /// One whose connection is not kept: whoever has it finds it reset.
    Reset(i32),
}

/// A TCP socket without a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedTcp {
    pub(crate) domain: i32,
    pub(crate) local: Option<std::net::SocketAddr>,
    pub(crate) backlog: Option<u64>,
    pub(crate) options: crate::net::Options,
}

/// How a regular file of the host was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    pub(crate) modified: (i64, u32),
}

/// What an epoll waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedWatch {
    pub(crate) fd: i32,
    pub(crate) file: u32,
    pub(crate) events: Option<u32>,
    pub(crate) mode: u32,
    pub(crate) data: u64,
}

/// Files in memory: those that were made or changed, folders before what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedTree {
    pub(crate) nodes: Vec<SavedNode>,
}

/// A file, by its path from the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedNode {
    pub(crate) path: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) accessed: (i64, u32),
    pub(crate) modified: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) body: SavedBody,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SavedBody {
    /// A folder. `whole`: nothing else is in it than what the image has.
    Folder {
        whole: bool,
    },
    Regular {
        size: u64,
        extents: Vec<Extent>,
    },
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Device(u64),
    /// Another name of a file that came before.
    Link(Vec<u8>),
    /// What the layer below has is gone.
    Gone,
}

/// Who a thread is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedCredentials {
    /// Real, effective, saved, of the file system.
    pub(crate) uids: [u32; 4],
    pub(crate) gids: [u32; 4],
    pub(crate) groups: Vec<u32>,
    /// Effective, permitted, inheritable, bounding, ambient.
    pub(crate) sets: [u64; 5],
    pub(crate) no_new_privileges: bool,
    pub(crate) securebits: u32,
}

/// Signals that were sent and not taken: what is told of each, and the bits of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedPending {
    pub(crate) set: u64,
    pub(crate) queue: Vec<(i32, Vec<u8>)>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedProcess {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) parent_thread: Pid,
    pub(crate) pgid: Pid,
    pub(crate) sid: Pid,
    /// Its number in the container's namespace.
    pub(crate) number: Pid,
    /// Handler, flags, restorer and mask of each signal.
    pub(crate) actions: Vec<[u64; 4]>,
    pub(crate) pending: SavedPending,
    pub(crate) zombie: Option<i32>,
    pub(crate) leader_status: i32,
    pub(crate) exit_signal: i32,
    pub(crate) execed: bool,
    pub(crate) unkillable: bool,
    pub(crate) credentials: SavedCredentials,
    pub(crate) limits: Vec<(u64, u64)>,
    pub(crate) dumpable: u32,
    pub(crate) oom_score: i32,
    pub(crate) subreaper: bool,
    pub(crate) started: Duration,
    pub(crate) last_comm: Vec<u8>,
    /// Of `setitimer`, in the order of its numbers: what is left, and the interval.
    pub(crate) intervals: Vec<(Duration, Duration)>,
    pub(crate) threads: Vec<SavedThread>,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedThread {
    pub(crate) pid: Pid,
    pub(crate) number: Pid,
    pub(crate) regs: Vec<u64>,
    pub(crate) fs_base: u64,
    pub(crate) vector: Vec<u8>,
    /// Arguments of `rseq`.
    pub(crate) sequences: Option<[u64; 4]>,
    pub(crate) mask: u64,
    pub(crate) saved_mask: Option<u64>,
    pub(crate) stack: (u64, u64, u32),
    pub(crate) pending: SavedPending,
    pub(crate) parent_death: i32,
    pub(crate) credentials: SavedCredentials,
    pub(crate) comm: Vec<u8>,
    pub(crate) clear_child_tid: u64,
    pub(crate) robust_list: u64,
    pub(crate) timer_slack: u64,
    pub(crate) personality: u32,
    pub(crate) nice: i32,
    pub(crate) io_priority: u32,
    pub(crate) scheduling: (i32, i32),
    pub(crate) affinity: Option<Vec<u8>>,
    pub(crate) no_huge_pages: bool,
    /// What is left of a sleep that goes on, and where that is told.
    pub(crate) sleep: Option<(Duration, u64)>,
    /// Places of its address space, descriptors and folders in the lists.
    pub(crate) space: u32,
    pub(crate) table: u32,
    pub(crate) folders: u32,
}
