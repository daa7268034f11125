//! What stops guest code that runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::requests;
use super::shim::place;
use crate::platform::Interrupt;
use crate::platform::systrap::interrupt::StubInterrupt;
use crate::platform::systrap::layout::context_address;
use crate::platform::systrap::remote::{Process, StubMemory};
use crate::platform::systrap::signal_thread;
use crate::platform::systrap::stub::Stub;
use crate::platform::systrap::thread::StubThread;

/// Interrupts one thread.
pub(super) struct KvmInterrupt {
    stub: Arc<Stub>,
    its: Arc<StubInterrupt>,
    memory: Arc<StubMemory<Stub>>,
    /// Where the stub has `struct kvm_run`.
    run: u64,
    /// Somebody wants it to stop.
    pub(super) requested: AtomicBool,
    /// Its processor runs, or is about to.
    pub(super) in_guest: AtomicBool,
}

/// Looks for a processor to come out between two calls to do so.
const LOOKS: u32 = 1000;

impl KvmInterrupt {
    pub(super) fn new(thread: &StubThread) -> Self {
        Self {
            stub: Arc::clone(&thread.stub),
            its: Arc::clone(&thread.interrupt),
            memory: Arc::clone(&thread.memory),
            run: context_address(thread.slot) + place::RUN as u64,
            requested: AtomicBool::new(false),
            in_guest: AtomicBool::new(false),
        }
    }

    /// Has the processor come out: at once if it is about to run, by a signal if it runs.
    fn kick(&self) {
        self.set_immediate_exit(true);
        signal_thread(self.stub.pid(), self.its.thread);
    }

    /// Whether a processor that is to run shall come back at once.
    pub(super) fn set_immediate_exit(&self, value: bool) {
        self.memory.write_own(self.run + requests::IMMEDIATE_EXIT as u64, &[u8::from(value)]);
    }

    /// A byte of `struct kvm_run`.
    pub(super) fn byte(&self, offset: usize) -> u8 {
        let mut byte = [0];
        self.memory.read_own(self.run + offset as u64, &mut byte);
        byte[0]
    }

    /// Waits until the processor does not run. Its thread waits for nothing that the caller holds meanwhile, and does not let it run again as
    /// long as the machine's tables are about to change.
    pub(super) fn come_out(&self) {
        let stays = || self.in_guest.load(Ordering::SeqCst) && !self.stub.is_dead();
        while stays() {
            self.kick();
            for _ in 0..LOOKS {
                if !stays() {
                    break;
                }
                std::thread::yield_now();
            }
        }
    }
}

impl Interrupt for KvmInterrupt {
    fn interrupt(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if self.in_guest.load(Ordering::SeqCst) && !self.stub.is_dead() {
            self.kick();
        }
    }

    fn rest(&self) {
        self.its.rest();
    }

    fn ends(&self) {
        // A processor that runs comes out by the interrupt; a stub that does not answer then is waited for no longer than any other.
        self.its.ends();
    }
}
