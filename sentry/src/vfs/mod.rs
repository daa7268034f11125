//! Mounts, names, open files.
//!
//! | part | what it is |
//! |---|---|
//! | [`Inode`] | a file as its file system keeps it; one implementation for each file system |
//! | [`Dentry`] | a name in a file system, with its parent; folders remember names that were looked up |
//! | [`Mount`], [`Place`] | a file system at a place; a name seen through a mount |
//! | [`FsContext`], [`Walk`] | root and working folder of a process; from a path to a place |
//! | [`names`] | what changes names, with the checks of Linux' `fs/namei.c` |
//! | [`File`], [`OpenFile`] | what an open file does; an open file description with its flags and position |
//! | [`FdTable`] | open files of a process by number |
//!
//! **Nothing here waits.** What would wait gives EAGAIN; a system call waits in one place, on the file's queue.
//!
//! **Locks**, each taken before those below it, never the other way round:
//!
//! 1. [`FdTable`] (held for moments, nothing is called under it; a description that falls out is dropped after it is free);
//! 2. position of an open file;
//! 3. mounts of a namespace ([`mount::Namespace`]);
//! 4. renames of a file system, one at a time (as Linux' `s_vfs_rename_mutex`);
//! 5. names of a folder ([`Dentry`]): where a rename has two, that of the lower address first; `overlay` calls its layers under it;
//! 6. of an overlay: changes, one at a time; then which node a name has (`below` of a folder, `building`);
//! 7. what a file system keeps for a folder (two at a rename: lower inode number first), then for a file: entries or contents, then
//!    attributes, then extended attributes;
//! 8. leases of a file; record locks of a file; who is told of an open file by a signal; parent and name of a dentry; contents of a pipe;
//! 9. a wait queue. Under it only what [`crate::events::Wake`] allows: an epoll's list of ready files, then that epoll's own queue.

pub mod access;
pub mod anon;
mod attributes;
pub mod cgroup;
mod context;
mod dentry;
pub mod dev;
pub mod epoll;
pub mod erofs;
pub mod eventfd;
mod fd_table;
mod file;
mod folder;
mod generated;
pub mod host;
pub mod host_io;
mod inode;
pub mod inotify;
mod io_signal;
mod kept;
pub mod leases;
pub(crate) mod lock_list;
pub mod locks;
#[cfg(test)]
mod model;
pub mod mount;
pub mod names;
pub mod nsfs;
pub mod open;
pub mod overlay;
pub mod pidfd;
pub mod pipe;
pub mod proc;
pub mod signalfd;
pub mod sys;
pub mod timerfd;
pub mod tmpfs;
pub mod tty;
mod walk;
mod write_access;

pub use attributes::{AttributeChange, Attributes, FileKind, Timestamp, device, device_parts};
pub use context::{Caller, FsContext};
pub use dentry::{Dentry, Tree};
pub use fd_table::FdTable;
pub use file::{File, Flags, OpenFile, SeekTo};
pub use inode::{Content, DirEntry, FileSystem, FsStatus, Inode, NewNode, RenameMode, XattrMode};
pub use io_signal::{IoSignal, SignalOwner};
pub use mount::{Mount, MountFlags, Place};
pub use walk::{Last, Resolve, Walk};

use crate::sync;
pub use write_access::WriteAccess;

/// Longest name of a file (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// Symbolic links that one walk follows at most (`MAXSYMLINKS`).
pub const LINKS_MAX: u32 = 40;
