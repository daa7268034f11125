//! The transport itself: registers in front, a [`VirtioDevice`] behind.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::registers::{CONFIG_SPACE, Register, status};
use crate::device::{ActivateError, Activation, PollSource, VirtioDevice, Work};
use crate::interrupt::{Interrupt, Notifier};
use crate::queue::{DeviceQueue, GuestFault, QueueSetup};
use crate::{Memory, feature};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"KACC");
/// Faults that are logged in full; later ones only at powers of two, so that a guest cannot fill the log.
const LOGGED_FAULTS: u64 = 8;

/// A virtio device on the MMIO bus.
pub struct MmioTransport {
    name: Arc<str>,
    device_type: u32,
    notifier: Arc<Notifier>,
    queue_events: Vec<EventFd>,
    inner: Mutex<Inner>,
    bad_access: AtomicU64,
    bad_notify: AtomicU64,
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    memory: Memory,
    offered: u64,
    max_sizes: Vec<u16>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    /// Between a successful `activate` and a reset or fault.
    active: bool,
    resets: u64,
    refused_writes: u64,
    faults: u64,
    last_fault: Option<GuestFault>,
}

impl MmioTransport {
    /// Puts a device on the bus. `line` is its interrupt.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        memory: Memory,
        line: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        let notifier = Arc::new(Notifier::new(line));
        device.bind(notifier.clone());
        let max_sizes = device.queue_sizes().to_vec();
        let queue_events = max_sizes
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<io::Result<Vec<_>>>()?;
        let mut inner = Inner {
            offered: device.features() | feature::VERSION_1,
            queues: Vec::new(),
            max_sizes,
            device,
            memory,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            active: false,
            resets: 0,
            refused_writes: 0,
            faults: 0,
            last_fault: None,
        };
        inner.clear();
        Ok(Self {
            name: inner.device.name().into(),
            device_type: inner.device.device_type(),
            notifier,
            queue_events,
            inner: Mutex::new(inner),
            bad_access: AtomicU64::new(0),
            bad_notify: AtomicU64::new(0),
        })
    }

    /// Offers further features of the transport's, before the guest sees the device.
    #[must_use]
    pub fn offering(self, features: u64) -> Self {
        self.lock().offered |= features;
        self
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Type of the device.
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// One event per queue: what an ioeventfd at [`QUEUE_NOTIFY`](super::QUEUE_NOTIFY) is connected to.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// What the I/O loop polls for the device's back end.
    pub fn poll_sources(&self) -> Vec<PollSource> {
        self.lock().device.poll_sources()
    }

    /// The guest's last offence, if any since the VM's start.
    pub fn last_fault(&self) -> Option<GuestFault> {
        self.lock().last_fault.clone()
    }

    /// The status register: what the driver and the device say of themselves.
    pub fn status(&self) -> u32 {
        self.lock().status
    }

    /// Counters of transport and device, names prefixed by the device's.
    pub fn counters(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        let mut counters = vec![
            ("bad_access", self.bad_access.load(Ordering::Relaxed)),
            ("bad_notify", self.bad_notify.load(Ordering::Relaxed)),
            ("interrupt_failures", self.notifier.failures()),
        ];
        {
            let inner = self.lock();
            counters.push(("guest_faults", inner.faults));
            counters.push(("refused_writes", inner.refused_writes));
            counters.push(("resets", inner.resets));
            counters.extend(inner.device.counters());
        }
        let name = self.name.clone();
        counters.into_iter().map(move |(counter, value)| (format!("{name}.{counter}"), value))
    }

    /// The guest reads `data.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config) = offset.checked_sub(CONFIG_SPACE) {
            if let (Ok(config), true) = (usize::try_from(config), offset < super::WINDOW) {
                self.lock().device.read_config(config, data);
            }
            return;
        }
        let (Ok(word), Some(register)) = (<&mut [u8; 4]>::try_from(data), Register::at(offset)) else {
            self.bad_access.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let value = match register {
            // Outside the lock: see the module documentation of `interrupt`.
            Register::InterruptStatus => self.notifier.status(),
            Register::Magic => MAGIC,
            Register::Version => 2,
            Register::DeviceId => self.device_type,
            Register::VendorId => VENDOR,
            register => self.lock().read_register(register),
        };
        *word = value.to_le_bytes();
    }

    /// The guest writes `data` at `offset` of the window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(config) = offset.checked_sub(CONFIG_SPACE) {
            if let (Ok(config), true) = (usize::try_from(config), offset < super::WINDOW) {
                self.lock().device.write_config(config, data);
            }
            return;
        }
        let (Ok(word), Some(register)) = (<[u8; 4]>::try_from(data), Register::at(offset)) else {
            self.bad_access.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let value = u32::from_le_bytes(word);
        match register {
            Register::InterruptAck => self.notifier.acknowledge(value),
            Register::QueueNotify => self.notify(value),
            Register::Status => self.write_status(value),
            register => self.lock().write_register(register, value),
        }
    }

    /// The I/O loop saw the event of a queue.
    pub fn handle_queue_event(&self, queue: usize) {
        let Some(event) = self.queue_events.get(queue) else { return };
        let _ = event.read();
        let mut inner = self.lock();
        if !inner.active {
            return;
        }
        match inner.device.queue_event(queue) {
            Ok(Work::Done) => {}
            Ok(Work::More) => self.kick(queue),
            Err(fault) => self.fail(&mut inner, fault),
        }
    }

    /// The I/O loop saw a descriptor of the back end. A device that has more to do than one event allows is called
    /// again as if its first queue had been notified.
    pub fn handle_poll_event(&self, token: u32) {
        let mut inner = self.lock();
        if !inner.active {
            return;
        }
        match inner.device.poll_event(token) {
            Ok(Work::Done) => {}
            Ok(Work::More) => self.kick(0),
            Err(fault) => self.fail(&mut inner, fault),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A device that panicked is a bug of ours; the others must be able to go on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self, queue: usize) {
        if let Some(event) = self.queue_events.get(queue) {
            // Fails only when the counter is full, and then the event is set anyway.
            let _ = event.write(1);
        }
    }

    fn notify(&self, queue: u32) {
        match usize::try_from(queue) {
            Ok(queue) if queue < self.queue_events.len() => self.kick(queue),
            _ => {
                self.bad_notify.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn write_status(&self, value: u32) {
        let mut inner = self.lock();
        if value == 0 {
            inner.device.reset();
            inner.clear();
            inner.resets += 1;
            self.notifier.reset();
            return;
        }
        if value & status::FAILED != 0 {
            inner.status |= status::FAILED;
            return;
        }
        // The device's own bit is not the driver's to write; Linux writes back what it read.
        let (now, wish) = (inner.status & !status::NEEDS_RESET, value & !status::NEEDS_RESET);
        let added = wish & !now;
        let expected = match now {
            0 => status::ACKNOWLEDGE,
            1 => status::DRIVER,
            3 => status::FEATURES_OK,
            11 => status::DRIVER_OK,
            _ => 0,
        };
        if now & !wish != 0 || added != expected || inner.status & status::NEEDS_RESET != 0 {
            if now != wish {
                inner.refused_writes += 1;
            }
            return;
        }
        match added {
            // Not set when refused: the driver reads back and gives up (section 3.1.1, step 6).
            status::FEATURES_OK if !inner.features_acceptable() => inner.refused_writes += 1,
            status::DRIVER_OK => self.activate(&mut inner),
            bit => inner.status |= bit,
        }
    }

    fn activate(&self, inner: &mut Inner) {
        inner.status |= status::DRIVER_OK;
        match inner.activate(&self.name, &self.notifier) {
            Ok(()) => {
                inner.active = true;
                self.notifier.driver_ok();
                // Buffers may have been made available, and the back end been ready, before this moment.
                (0..self.queue_events.len()).for_each(|queue| self.kick(queue));
            }
            Err(ActivateError::Queue(fault)) => {
                self.notifier.driver_ok();
                self.fail(inner, fault);
            }
            Err(error) => {
                tracing::error!(device = %self.name, %error, "device cannot be activated");
                inner.device.reset();
                inner.status |= status::NEEDS_RESET;
                self.notifier.driver_ok();
                self.notifier.config_changed();
            }
        }
    }

    fn fail(&self, inner: &mut Inner, fault: GuestFault) {
        inner.active = false;
        // Now, not when the driver resets: nobody handles the back end's events from here on, and a level-triggered
        // descriptor would keep the loop spinning.
        inner.device.reset();
        inner.status |= status::NEEDS_RESET;
        inner.faults += 1;
        if inner.faults <= LOGGED_FAULTS || inner.faults.is_power_of_two() {
            tracing::warn!(device = %self.name, queue = fault.queue, faults = inner.faults, "{fault}");
        }
        inner.last_fault = Some(fault);
        self.notifier.config_changed();
    }
}

impl Inner {
    fn clear(&mut self) {
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.active = false;
        self.queues =
            self.max_sizes.iter().map(|size| QueueSetup { size: *size, ..QueueSetup::default() }).collect();
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered == 0 && self.driver_features & feature::VERSION_1 != 0
    }

    fn activate(&mut self, name: &Arc<str>, notifier: &Arc<Notifier>) -> Result<(), ActivateError> {
        let ram = self.memory.memory();
        let event_idx = self.driver_features & feature::EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (setup, max)) in (0_u16..).zip(self.queues.iter().zip(&self.max_sizes)) {
            queues.push(DeviceQueue::new(name.clone(), index, *max, *setup, event_idx, &ram)?);
        }
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            features: self.driver_features,
            notifier: notifier.clone(),
        })
    }

    fn selected(&self) -> Option<(&QueueSetup, u16)> {
        let index = usize::try_from(self.queue_sel).ok()?;
        Some((self.queues.get(index)?, *self.max_sizes.get(index)?))
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::DeviceFeatures => match self.device_features_sel {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            Register::QueueSizeMax => self.selected().map_or(0, |(_, max)| u32::from(max)),
            Register::QueueReady => self.selected().map_or(0, |(queue, _)| u32::from(queue.ready)),
            Register::Status => self.status,
            Register::ShmLenLow | Register::ShmLenHigh | Register::ShmBaseLow | Register::ShmBaseHigh => {
                u32::MAX
            }
            Register::ConfigGeneration => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, register: Register, value: u32) {
        match register {
            Register::DeviceFeaturesSel => self.device_features_sel = value,
            Register::DriverFeaturesSel => self.driver_features_sel = value,
            Register::DriverFeatures => self.write_features(value),
            Register::QueueSel => self.queue_sel = value,
            Register::ShmSel => {}
            _ => self.write_queue_register(register, value),
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status != status::ACKNOWLEDGE | status::DRIVER {
            self.refused_writes += 1;
            return;
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            // Bits beyond 63 do not exist; accepting one of them is an offence that FEATURES_OK must see.
            _ if value != 0 => self.refused_writes += 1,
            _ => {}
        }
    }

    fn write_queue_register(&mut self, register: Register, value: u32) {
        let configurable = self.status == status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        let index = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        let queue = match self.queues.get_mut(index) {
            // A ready queue is frozen as well, until it is made unready.
            Some(queue) if configurable && (!queue.ready || register == Register::QueueReady) => queue,
            _ => {
                self.refused_writes += 1;
                return;
            }
        };
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match register {
            // Too large for u16 becomes 0, which activation refuses.
            Register::QueueSize => queue.size = u16::try_from(value).unwrap_or(0),
            Register::QueueReady => queue.ready = value == 1,
            Register::QueueDescLow => queue.desc = low(queue.desc),
            Register::QueueDescHigh => queue.desc = high(queue.desc),
            Register::QueueDriverLow => queue.avail = low(queue.avail),
            Register::QueueDriverHigh => queue.avail = high(queue.avail),
            Register::QueueDeviceLow => queue.used = low(queue.used),
            Register::QueueDeviceHigh => queue.used = high(queue.used),
            _ => self.refused_writes += 1,
        }
    }
}
