//! The sentry: a Linux kernel in user space. Programs of a container run on it instead of on the host's kernel.
//!
//! Guest code runs in *stub* processes, which can do nothing but change their own address space (`platform`). Each system call of a
//! guest thread stops there and is carried out here, by the one host thread of the sentry that belongs to that guest thread: it reads
//! arguments out of the stub's memory, does the work on the kernel's own objects, and lets the guest go on. Nothing of this is
//! asynchronous: a call that has to wait blocks its thread on an [`events::Waiter`].
//!
//! | room | what is in it |
//! |---|---|
//! | [`platform`] | how guest code runs, stops, and is interrupted; its memory |
//! | [`mm`] | what lies where in an address space: areas, `brk`, `mmap` |
//! | [`task`] | processes, threads, signals, credentials, waiting for children |
//! | [`vfs`] | mounts, names, open files; one folder for each file system |
//! | [`net`] | sockets, and the sandbox's own network |
//! | [`link`] | takes the pod's interface over, before the defence |
//! | [`ipc`] | System V semaphores, messages, shared memory |
//! | [`loader`] | programs: ELF, scripts, the first stack |
//! | [`time`] | clocks and timers |
//! | [`defence`] | what the sentry gives up before a guest runs: namespaces, capabilities, host calls |
//! | [`gofer`] | the process that holds the host's files for it |
//! | [`say`] | lines on standard error, each in one piece |
//! | [`sandbox`] | a sandbox from outside: root, first process, end |
//! | [`fuzzing`] | what `fuzz/` drives |
//! | [`container`] | containers of a sandbox: namespaces, mounts, processes from outside |
//! | [`containers`] | several containers in one sandbox, as a monitor asks for them |
//! | [`checkpoint`] | a container as a file, and made anew of it |
//! | [`control`] | what the monitor asks and the sentry tells: messages, and the socket between them |
//! | [`syscalls`] | the table of system calls, a file for each family |
//!
//! What blocks where, and which lock is taken before which, stands in the documentation of each room.

mod aio;
mod bpf;
pub mod call;
pub mod checkpoint;
pub mod container;
pub mod containers;
pub mod control;
pub mod defence;
pub mod error;
pub mod events;
pub mod fuzzing;
pub mod gofer;
pub mod ipc;
pub mod kernel;
mod launch;
pub mod link;
pub mod loader;
pub mod mm;
pub mod net;
mod outside;
pub mod platform;
mod random;
pub mod sandbox;
pub mod say;
pub(crate) mod start;
mod sync;
pub mod syscalls;
pub mod task;
pub mod testing;
mod ticks;
pub mod time;
pub mod vfs;
