//! The reset command of the keyboard controller, Linux's `reboot=k`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::interrupt::Interrupt;

/// "Pulse output line 0": resets the CPU.
const RESET: u8 = 0xfe;

/// An i8042 that knows one command.
pub struct ResetPort {
    event: Arc<dyn Interrupt>,
    seen: AtomicBool,
}

impl ResetPort {
    /// `event` is raised when the guest resets itself.
    pub fn new(event: Arc<dyn Interrupt>) -> Self {
        Self { event, seen: AtomicBool::new(false) }
    }

    /// The guest reads a port: status 0, "ready for a command, nothing to read".
    pub fn read(&self, data: &mut [u8]) {
        data.fill(0);
    }

    /// The guest writes port `0x64`; `true` when it asked for a reset.
    pub fn write(&self, data: &[u8]) -> bool {
        if data != [RESET] {
            return false;
        }
        self.seen.store(true, Ordering::SeqCst);
        let _ = self.event.raise();
        true
    }

    /// Whether the guest asked for a reset.
    pub fn requested(&self) -> bool {
        self.seen.load(Ordering::SeqCst)
    }
}
