//! Guest code in stub processes under seccomp, which trap by SIGSYS and pass their turn over shared memory.
//!
//! One host thread of a stub for each guest thread, and one of the sentry that serves it: they take turns, by a word that both look at for a
//! while before they sleep on it ([`thread`]). Nothing runs when nothing happens. The stub's code ([`stub_code`]) does what the sentry asks of it,
//! such as `mmap`; its filter ([`filter`]) sees to it that neither it nor guest code can do anything to others. Address spaces are
//! copies of a first stub ([`zygote`]) or, at `fork`, of each other: the host's kernel does copy-on-write.
//!
//! What a stub says is what its guest wants it to say. So it can hurt that guest alone: see [`stub`] for the number of a new process, by
//! which memory is read and processes are killed. [`hostile`] is a stub for tests that says whatever it is told to.
//!
//! `unsafe` is in [`context`] (shared memory), [`hostile`] (descriptors that came), [`stub_image`] (the assembler's symbols), [`zygote`] (`fork`) and one `tgkill` in [`interrupt`].

mod address;
mod apart;
pub(super) mod context;
mod copy;
pub(super) mod filter;
pub mod hostile;
pub(super) mod interrupt;
mod kept;
pub(super) mod layout;
mod leaving;
pub(super) mod let_go;
mod patch;
mod put_off;
mod remember;
pub(in crate::platform) mod remote;
mod replace;
mod resting;
mod sleepers;
pub(super) mod spare;
mod stage;
pub(super) mod step;
pub(super) mod stub;
mod stub_code;
mod stub_futex;
mod stub_image;
mod stub_kept;
mod stub_tasks;
mod stub_turn;
pub(super) mod thread;
mod turn;
mod vector;
mod waiting;
pub(super) mod zygote;

pub(crate) use apart::{here, wake_here};
pub(super) use interrupt::signal_thread;
pub(crate) use layout::INTERRUPT;
pub(super) use stub::{send_files, sockets};
pub(super) use thread::{memory_call, result};
pub(crate) use waiting::{rest, would_crowd};

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use context::Context;
use nix::unistd::Pid;
use spare::Spare;
use stub::{Parts, Processes};
use stub_image::StubCode;
use thread::{Place, StubThread};
use zygote::First;

use crate::error::Errno;
use crate::platform::host_vdso::HostVdso;
use crate::platform::{Platform, Thread, generation};

/// Lowest address that a guest may use: above the table of replaced call sites.
pub(super) const LOWEST: u64 = patch::SLOTS + patch::SLOTS_SIZE;

/// The code of every stub: by it builds are told apart ([`crate::checkpoint`]).
pub(crate) fn code() -> Vec<u8> {
    stub_image::StubCode::linked().bytes.to_vec()
}

/// The platform. As long as it lives, one stub waits to be copied.
pub struct Systrap {
    spare: Arc<Spare>,
    vdso: HostVdso,
}

impl Systrap {
    /// Makes the first stub. The sentry's address space must not have been filled up to where the stub lies (0x600000000000), which no
    /// program of Linux does.
    ///
    /// # Errors
    /// What the host says: no processes left, seccomp or memfd not there.
    pub fn new() -> Result<Self, Errno> {
        let (first, vdso) = first_stub(&[])?;
        Ok(Self { spare: Spare::new(first), vdso })
    }
}

/// Makes a first stub, whose filter lets these requests of `ioctl` through; and the host's vDSO as it has it.
pub(super) fn first_stub(requests: &'static [u32]) -> Result<(StubThread, HostVdso), Errno> {
    apart::prepare();
    leaving::prepare();
    let vdso = HostVdso::of_host()?;
    let parts = Parts::new()?;
    thread::prepare(&Context::map(parts.contexts.as_fd(), 0)?, 0, 0, layout::state::STUB);
    let processes = Arc::new(Processes::default());
    let (pid, parts) = start(&processes, parts, vdso.clone(), requests)?;
    let (stub, context) = processes.first(pid, parts)?;
    let first = StubThread::begin(&processes, Place { stub, slot: 0, context }, pid, 0);
    if !first.wait(0, turn::Patience::Guest) {
        return Err(Errno::EAGAIN);
    }
    let vdso = vdso.found(|address| remote::word(pid, address));
    Ok((first, vdso))
}

/// Makes the first stub from a thread that then waits for the end of stubs.
fn start(
    processes: &Arc<Processes>,
    parts: Parts,
    vdso: HostVdso,
    requests: &'static [u32],
) -> Result<(Pid, Parts), Errno> {
    let reaper = Arc::clone(processes);
    let make = move || {
        let code = StubCode::linked();
        let pid = zygote::start(&First {
            code: code.bytes,
            table: Some((remember::TABLE, [remember::table(), stage::table()].concat())),
            start: code.start,
            handler: Some((code.handler, code.restorer)),
            contexts: Some(parts.contexts.as_fd()),
            socket: parts.its_socket.as_fd(),
            requests,
            vdso: &vdso,
            generation: generation::page().map(AsFd::as_fd),
        })?;
        Ok((pid, parts))
    };
    zygote::from_thread(make, move |group| reaper.reap(group))
}

impl Platform for Systrap {
    fn name(&self) -> &'static str {
        "systrap"
    }

    fn new_address_space(&self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(self.spare.take()?))
    }

    fn guest_range(&self) -> Range<u64> {
        LOWEST..layout::CODE
    }

    fn host_vdso(&self) -> Option<&HostVdso> {
        Some(&self.vdso)
    }
}

#[cfg(test)]
mod tests;
