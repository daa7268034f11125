//! Guest code in stub processes that the sentry traces (`man 2 ptrace`): each system call stops the stub before it is made
//! (`PTRACE_SYSEMU`), and the host's kernel switches to the sentry's thread and back. Slow, and it needs nothing else of a host.
//!
//! Stubs are made as those of [`super::systrap`] are, with the same filter, which here only what the sentry has them do meets: a call of
//! the guest's is never made at all. What they do for the sentry is set in registers, which guest code cannot change meanwhile.
//!
//! `unsafe` is in [`code`] (the assembler's symbols), [`vector`] (one request without a wrapper), and one union's field in [`thread`].

mod code;
mod stub;
mod thread;
mod tracee;
mod vector;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use code::Code;
use nix::unistd::Pid;
use stub::Stub;
use thread::Traced;

use super::host_vdso::HostVdso;
use super::systrap::zygote::{self, First};
use super::systrap::{LOWEST, layout, remote, sockets};
use crate::error::Errno;
use crate::platform::{Platform, Thread};
use crate::sync::lock;

/// The platform. As long as it lives, one stub waits to be copied.
pub struct Ptrace {
    first: Mutex<Traced>,
    vdso: HostVdso,
}

impl Ptrace {
    /// Makes the first stub, and traces it once.
    ///
    /// # Errors
    /// What the host says: EPERM where it does not let processes trace their children, ENOMEM, EAGAIN.
    pub fn new() -> Result<Self, Errno> {
        let code = Arc::new(Code::linked());
        let vdso = HostVdso::of_host()?;
        let (ours, its) = sockets()?;
        let pid = start(&code, its, &vdso)?;
        let mut first = Traced::new(&code, Arc::new(Stub::new(pid, ours)), pid, 0);
        first.try_out()?;
        let vdso = vdso.found(|address| remote::word(pid, address));
        Ok(Self { first: Mutex::new(first), vdso })
    }
}

/// Makes the first stub. Whoever traces a stub learns of its end: the thread that made the first has nothing more to do.
fn start(code: &Arc<Code>, socket: OwnedFd, vdso: &HostVdso) -> Result<Pid, Errno> {
    let (code, vdso) = (Arc::clone(code), vdso.clone());
    let make = move || {
        let pid = zygote::start(&First {
            code: code.bytes,
            start: code.start,
            table: None,
            handler: None,
            contexts: None,
            socket: socket.as_fd(),
            requests: &[],
            vdso: &vdso,
            generation: None,
        })?;
        Ok((pid, ()))
    };
    let stay = |_| {
        loop {
            std::thread::park();
        }
    };
    zygote::from_thread(make, stay).map(|(pid, ())| pid)
}

impl Platform for Ptrace {
    fn name(&self) -> &'static str {
        "ptrace"
    }

    fn new_address_space(&self) -> Result<Box<dyn Thread>, Errno> {
        let mut first = lock(&self.first);
        let made = first.fork();
        // Whoever needs the next one may be another thread.
        first.release();
        made
    }

    fn guest_range(&self) -> std::ops::Range<u64> {
        LOWEST..layout::CODE
    }

    fn host_vdso(&self) -> Option<&HostVdso> {
        Some(&self.vdso)
    }
}

#[cfg(test)]
mod tests;
