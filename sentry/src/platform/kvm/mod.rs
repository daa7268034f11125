//! Guest code in ring 3 of virtual machines, one for each address space (`/dev/kvm`).
//!
//! A stub as those of [`super::systrap`] owns the guest's memory, so the host does what it does there: copy-on-write, files, `fork`. But guest code
//! does not run in it: each thread of a stub runs a virtual processor whose memory is the stub's ([`machine`]). A few hundred bytes of code
//! in ring 0 ([`shim`]) put registers into the thread's context at a call or fault and halt, which gives the turn to the stub and it to
//! the sentry. Page tables are filled as pages are missed, by what the sentry mapped ([`tables`], [`ranges`]).
//!
//! Nothing of what a stub is guarded by is needed less: who breaks out of ring 3 has the contexts and the memory of one address space, as every guest
//! of `systrap` has. In turn guest code reaches neither the stub's code nor its calls at all.
//!
//! `unsafe` is in [`shim`] (the assembler's symbols).

mod fault;
mod host;
mod interrupt;
mod machine;
mod processor;
mod ranges;
mod requests;
mod shim;
mod tables;
mod thread;
mod told;

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use host::Host;
use machine::Machine;
use thread::KvmThread;

use super::host_vdso::HostVdso;
use super::systrap::spare::Spare;
use super::systrap::thread::StubThread;
use super::systrap::{LOWEST, first_stub, layout};
use crate::error::Errno;
use crate::platform::{Memory as _, MemoryCall, Platform, Thread, Trap};

/// The device.
const DEVICE: &str = "/dev/kvm";

/// So often it is tried whether the host remembers page tables: once it may have had another reason to forget them.
const LOOKS: u32 = 3;

/// The platform. As long as it lives, one stub waits to be copied.
pub struct Kvm {
    spare: Arc<Spare>,
    host: Arc<Host>,
    vdso: HostVdso,
}

impl Kvm {
    /// Makes the first stub, and has a guest make one call.
    ///
    /// # Errors
    /// ENOENT, ENXIO, EACCES, EPERM: of `/dev/kvm`. ENOSYS: it does not run a guest of this platform. Others: what the host says.
    pub fn new() -> Result<Self, Errno> {
        let device = std::fs::File::options().read(true).write(true).open(DEVICE);
        let device = device.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        let (first, vdso) = first_stub(requests::ALL)?;
        let [number] = first.give_files([device.as_fd()])?;
        let host = Arc::new(Host::new(&first, number)?);
        let platform = Self { spare: Spare::new(first), host, vdso };
        platform.try_out()?;
        Ok(platform)
    }

    fn address_space(&self) -> Result<KvmThread, Errno> {
        let stub: StubThread = self.spare.take()?;
        Ok(KvmThread::new(stub, Machine::new(&self.host, &self.vdso)))
    }

    /// Sees whether a guest runs: not every `/dev/kvm` has what it takes.
    fn try_out(&self) -> Result<(), Errno> {
        // mov %fs:0, %eax; syscall
        const CODE: [u8; 10] = [0x64, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x0f, 0x05];
        const PLACE: u64 = 0x40_0000;
        let mut thread = self.address_space()?;
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE;
        thread.change_memory(&MemoryCall::Map {
            address: PLACE,
            length: 4096,
            protection,
            flags,
            file: None,
        })?;
        thread.write(PLACE, &CODE);
        thread.write(PLACE + 64, &[7]);
        *thread.fs_base() = PLACE + 64;
        for looked in 0..=LOOKS {
            thread.regs().rip = PLACE;
            if thread.resume() != (Trap::Syscall { number: 7 }) {
                return Err(Errno::ENOSYS);
            }
            // It ran by what the host knew of tables that are no more.
            if looked > 0 && thread.machine.has_no_tables() {
                self.host.set_remembers();
                break;
            }
            thread.machine.forget_quietly();
        }
        Ok(())
    }
}

impl Platform for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn new_address_space(&self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(self.address_space()?))
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
