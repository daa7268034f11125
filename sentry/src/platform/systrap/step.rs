//! Running a guest for one instruction: with the trap flag, which only the host's return from a signal may set. The stub's own code would
//! otherwise run under it, too.

use super::layout::{CODE, CODE_SIZE, at};
use super::thread::StubThread;
use crate::platform::{Regs, Thread, Trap};

/// `TF`.
pub(in crate::platform) const TRAP_FLAG: u64 = 0x100;

/// An address behind the stub's code where no memory ever is.
const NOWHERE: u64 = CODE + 4 * CODE_SIZE;

impl StubThread {
    /// Lets the guest run for one instruction.
    pub(super) fn step_guest(&mut self) -> Trap {
        self.take_registers();
        if let Some(trap) = self.stop_by_signal() {
            return trap;
        }
        self.stepping = true;
        let trap = self.run_guest();
        self.stepping = false;
        self.regs().eflags &= !TRAP_FLAG;
        trap
    }

    /// Sees to it that the guest is stopped in a signal's frame, out of which it goes on with any flags: where it is not, it runs to where it
    /// cannot. What else stopped it.
    fn stop_by_signal(&mut self) -> Option<Trap> {
        if self.context.load(at::FRAME) != 0 {
            return None;
        }
        let regs = self.regs;
        self.regs = Regs { rip: NOWHERE, ..regs };
        let trap = self.run_guest();
        self.take_registers();
        self.regs = regs;
        match trap {
            Trap::Fault { signal: libc::SIGSEGV, .. } if self.context.load(at::FRAME) != 0 => None,
            Trap::Interrupted => Some(Trap::Interrupted),
            _ => Some(Trap::Gone),
        }
    }
}
