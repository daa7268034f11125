//! From a device to the guest: the interrupt line and virtio's interrupt status register.
//!
//! The status lives in atomics outside the transport's lock, because the driver reads and acknowledges it
//! at every interrupt, and must not wait for a device that is busy with a disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// `InterruptStatus` bit: a buffer was used.
pub(crate) const USED: u32 = 1;
/// `InterruptStatus` bit: the configuration changed.
pub(crate) const CONFIG: u32 = 2;

/// An edge-triggered interrupt line to the guest.
pub trait Interrupt: Send + Sync {
    /// Raises the line once.
    fn raise(&self) -> io::Result<()>;
}

/// An irqfd. Open it non-blocking: a full counter means that the line is raised anyway.
impl Interrupt for EventFd {
    fn raise(&self) -> io::Result<()> {
        match self.write(1) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

/// Tells the driver that buffers were used or that the configuration changed.
pub struct Notifier {
    status: AtomicU32,
    driver_ok: AtomicBool,
    config_pending: AtomicBool,
    failures: AtomicU64,
    line: Arc<dyn Interrupt>,
}

impl Notifier {
    /// A notifier for one device.
    pub fn new(line: Arc<dyn Interrupt>) -> Self {
        Self {
            status: AtomicU32::new(0),
            driver_ok: AtomicBool::new(false),
            config_pending: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            line,
        }
    }

    /// Buffers were put into a used ring.
    pub fn used(&self) {
        self.raise(USED);
    }

    /// The configuration changed, or the device needs a reset. Before `DRIVER_OK` it is kept until then: a
    /// driver that has read the old value in its probe must still hear of the new one.
    pub fn config_changed(&self) {
        self.config_pending.store(true, Ordering::SeqCst);
        if self.driver_ok.load(Ordering::SeqCst) {
            self.flush_config();
        }
    }

    /// How often the line could not be raised.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(crate) fn driver_ok(&self) {
        self.driver_ok.store(true, Ordering::SeqCst);
        self.flush_config();
    }

    pub(crate) fn reset(&self) {
        self.driver_ok.store(false, Ordering::SeqCst);
        self.config_pending.store(false, Ordering::SeqCst);
        self.status.store(0, Ordering::SeqCst);
    }

    fn flush_config(&self) {
        if self.config_pending.swap(false, Ordering::SeqCst) {
            self.raise(CONFIG);
        }
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        if self.line.raise().is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}
