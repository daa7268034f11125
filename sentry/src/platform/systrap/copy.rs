//! Bytes between the sentry and a guest: copied by the stub's own hand while it is quick, by the host's kernel ([`super::remote`]) else.

use std::sync::atomic::Ordering;

use super::layout::{CODE, at, context_address, op};
use super::thread::StubThread;
use crate::platform::Memory;

/// A copy by the stub for which the sentry looks so often (some 4 us) takes longer than the host's kernel needs for one: the stub has to
/// wait for a processor...
const SLOW_COPY: u32 = 160;
/// ...and so many copies are then made by the host's kernel.
const SLOW_COPIES: u32 = 256;

/// Most bytes that the stub is asked to copy: of more, the lines that change their processor take longer than the host's kernel.
const COPIED: usize = 2048;
const _: () = assert!(COPIED <= at::WINDOW_SIZE);

impl Memory for StubThread {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        self.finish_late();
        if self.make_mappings().is_err() {
            return 0;
        }
        if !self.copies(address, to.len()) {
            return self.memory.read(address, to);
        }
        let window = context_address(self.slot) + at::WINDOW as u64;
        let copied = self.copy(window, address, to.len());
        self.context.read(at::WINDOW, &mut to[..copied]);
        copied
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        self.finish_late();
        if self.make_mappings().is_err() {
            return 0;
        }
        if !self.copies(address, from.len()) {
            return self.memory.write(address, from);
        }
        let window = context_address(self.slot) + at::WINDOW as u64;
        self.context.write(at::WINDOW, from);
        self.copy(address, window, from.len())
    }
}

impl StubThread {
    /// Whether the stub is to copy these bytes, and not the host's kernel: it is quicker as long as it is awake and has a processor.
    fn copies(&self, address: u64, length: usize) -> bool {
        let slow = self.slow_copies.get();
        if slow > 0 {
            self.slow_copies.set(slow - 1);
            return false;
        }
        let inside = address.checked_add(length as u64).is_some_and(|end| end <= CODE);
        let awake = self.context.u32_at(at::STUB_SLEEPS).load(Ordering::Relaxed) == 0;
        self.waiting.spins && inside && awake && (1..=COPIED).contains(&length)
    }

    /// Has the stub copy bytes; how many it could.
    pub(super) fn copy(&self, to: u64, from: u64, length: usize) -> usize {
        let Ok(left) = self.ask(op::COPY, &[to, from, length as u64]) else { return 0 };
        if self.waiting.looks.get() > SLOW_COPY {
            self.slow_copies.set(SLOW_COPIES);
        }
        length.saturating_sub(usize::try_from(left).unwrap_or(usize::MAX))
    }
}
