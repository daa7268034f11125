//! Mounts, names, open files.

/// Open files of a process, by number.
#[derive(Default)]
pub struct FdTable {}

/// Root, working folder and umask of a process.
#[derive(Default)]
pub struct FsContext {}
