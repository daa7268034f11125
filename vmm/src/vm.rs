//! A VM from its configuration to its end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kata_cc_boot::{Firmware, LaunchInput, LaunchPlan};
use kata_cc_devices::IoControl;
use kata_cc_vmm_api::{Phase, VmConfig, VmState, exit, port};
use kvm_ioctls::VcpuFd;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::bus::Bus;
use crate::confidential::Confidential;
use crate::devices::{Connected, OpenDevices, Slots};
use crate::digests::KnownFiles;
use crate::error::VmmError;
use crate::files::Content;
use crate::kvm::Machine;
use crate::sim::Processor;
use crate::threads::{self, Gate};
use crate::vcpu::World;
use crate::{config, launch, memory, vcpu};

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `stop` or SIGTERM.
    Stopped,
    /// The guest shut down.
    GuestShutdown,
    /// The guest reset itself.
    GuestReset,
    /// The guest did what no guest may do.
    GuestFault(String),
    /// KVM cannot go on with this guest.
    KvmFault(String),
    /// The VMM failed.
    Failed(String),
}

impl Outcome {
    /// Exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Stopped | Self::GuestShutdown => exit::OK,
            Self::GuestReset => exit::GUEST_RESET,
            Self::GuestFault(_) => exit::GUEST_FAULT,
            Self::KvmFault(_) => exit::NO_KVM,
            Self::Failed(_) => exit::FAILED,
        }
    }
}

/// A VM with its threads.
pub struct Vm {
    gate: Arc<Gate>,
    bus: Arc<Bus>,
    slots: Slots,
    io: IoControl,
    io_thread: Mutex<Option<JoinHandle<()>>>,
    phase: Mutex<Phase>,
    end: End,
    tee: &'static str,
    launch_digest: Option<String>,
    // keeps the VM alive as long as its vCPUs
    machine: Machine,
}

/// Where the first reason to end is kept.
#[derive(Clone)]
pub struct End {
    outcome: Arc<Mutex<Option<Outcome>>>,
    event: Arc<EventFd>,
}

impl End {
    fn new() -> Result<Self, VmmError> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(VmmError::system("eventfd"))?;
        Ok(Self { outcome: Arc::default(), event: Arc::new(event) })
    }

    /// Ends the VM; only the first reason counts.
    pub fn now(&self, outcome: Outcome) {
        lock(&self.outcome).get_or_insert(outcome);
        // fails only when the counter is full, and then it has been told
        let _ = self.event.write(1);
    }

    /// Readable once the VM has to end.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Why it ends.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        lock(&self.outcome).clone()
    }
}

impl Vm {
    /// Makes everything of a checked configuration; vCPUs wait for [`Vm::resume`].
    ///
    /// # Errors
    /// What could not be had; nothing is left behind then.
    pub fn create(config: &VmConfig) -> Result<Self, VmmError> {
        threads::install_wake_signal().map_err(VmmError::system("signal handler"))?;
        let kind = launch::kind(&config.tee);
        let kernel = Content::open("kernel", &config.boot.kernel, false)?;
        let initramfs = match &config.boot.initramfs {
            Some(path) => Some(Content::open("initramfs", path, false)?),
            None => None,
        };
        let firmware = match &config.boot.firmware {
            Some(path) => Some(Content::open("firmware", path, true)?),
            None => None,
        };
        let (platform, memory_bit) = launch::platform(&config.tee);
        let keys = || (kernel.key(), initramfs.as_ref().and_then(Content::key));
        let mut files = KnownFiles::new(config.boot.digest_cache.as_deref(), keys());
        let firmware_of = |image| Firmware::new(image, platform, memory_bit).with_hashes(files.hashes());
        let plan = LaunchPlan::new(&LaunchInput {
            kernel: kernel.bytes(),
            initramfs: initramfs.as_ref().map(Content::bytes),
            cmdline: &config.boot.cmdline,
            memory_mib: config.memory_mib,
            vcpus: config.vcpus,
            devices: config::device_count(config),
            firmware: firmware.as_ref().map(|image| firmware_of(image.bytes())),
        })?;
        files.keep(&plan.hashes, keys());
        let processor = Processor::create(config, &plan)?;
        let local_ports = processor.iter().map(|processor| (port::SIM_TEE, processor.local_port())).collect();
        let devices = OpenDevices::open(config, local_ports)?;
        let machine = Machine::create(kind, memory::create(config.memory_mib)?)?;
        let cpuid = |id| machine.cpuid(id, config.vcpus);
        let launched = launch::run(config, &plan, machine.io().as_ref(), &cpuid)?;
        if let Some(processor) = &processor
            && launched.digest != Some(*processor.launch_digest())
        {
            return Err(VmmError::SimTee("what was loaded has another digest than what was planned".into()));
        }
        let Connected { bus, slots, io } = devices.connect(&machine, kind)?;
        tracing::debug!(cmdline = plan.cmdline, format = ?plan.format, "guest loaded");

        let end = End::new()?;
        let vm = Self {
            gate: Arc::new(Gate::closed()),
            bus: Arc::new(bus),
            slots,
            io: io.control().map_err(VmmError::system("i/o loop"))?,
            io_thread: Mutex::new(None),
            phase: Mutex::new(Phase::Paused),
            end: end.clone(),
            tee: kind.name(),
            launch_digest: launched.digest.map(hex::encode),
            machine,
        };
        let handle = std::thread::Builder::new()
            .name("io".into())
            .spawn(move || {
                if let Err(error) = io.run() {
                    end.now(Outcome::Failed(format!("i/o loop: {error}")));
                }
            })
            .map_err(VmmError::system("i/o thread"))?;
        *lock(&vm.io_thread) = Some(handle);
        let confidential = Confidential::new(&config.tee, Arc::clone(vm.machine.io()), launched.book)?;
        vm.start_vcpus(launch::vcpus(kind, &plan, &vm.machine)?, confidential.as_ref())?;
        Ok(vm)
    }

    fn start_vcpus(
        &self,
        vcpus: Vec<VcpuFd>,
        confidential: Option<&Arc<Confidential>>,
    ) -> Result<(), VmmError> {
        for (id, vcpu) in (0..).zip(vcpus) {
            let end = self.end.clone();
            let world = World {
                id,
                bus: Arc::clone(&self.bus),
                gate: Arc::clone(&self.gate),
                confidential: confidential.cloned(),
            };
            vcpu::spawn(vcpu, world, move |outcome| end.now(outcome))
                .map_err(VmmError::system("vcpu thread"))?;
        }
        Ok(())
    }

    /// How to end the VM and how to know that it has ended.
    #[must_use]
    pub const fn end(&self) -> &End {
        &self.end
    }

    /// Block slots.
    #[must_use]
    pub const fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Stops vCPUs, then devices.
    ///
    /// # Errors
    /// A sentence for whoever asked.
    pub fn pause(&self) -> Result<(), String> {
        let mut phase = lock(&self.phase);
        if *phase == Phase::Paused {
            return Ok(());
        }
        if !self.gate.pause() {
            return Err("the vm is being stopped".into());
        }
        self.io.pause().map_err(|e| format!("i/o loop: {e}"))?;
        *phase = Phase::Paused;
        tracing::info!("paused");
        Ok(())
    }

    /// Lets devices, then vCPUs go on.
    ///
    /// # Errors
    /// A sentence for whoever asked.
    pub fn resume(&self) -> Result<(), String> {
        let mut phase = lock(&self.phase);
        if *phase == Phase::Running {
            return Ok(());
        }
        self.io.resume().map_err(|e| format!("i/o loop: {e}"))?;
        if !self.gate.resume() {
            return Err("the vm is being stopped".into());
        }
        *phase = Phase::Running;
        Ok(())
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> VmState {
        VmState {
            phase: if self.end.outcome().is_some() { Phase::Stopped } else { *lock(&self.phase) },
            launch_digest: self.launch_digest.clone(),
            tee: self.tee.into(),
        }
    }

    /// Counters of all parts.
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<String, u64> {
        let mut metrics: BTreeMap<_, _> = self.bus.virtio.iter().flat_map(|d| d.counters()).collect();
        metrics.extend(self.bus.serial.counters());
        metrics.extend(self.bus.counters.list().map(|(name, value)| (name.to_owned(), value)));
        metrics
    }

    /// Takes everything down; no thread of it runs afterwards.
    pub fn shut_down(&self) {
        self.gate.stop();
        let _ = self.io.stop();
        if let Some(thread) = lock(&self.io_thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the i/o thread panicked");
        }
        *lock(&self.phase) = Phase::Stopped;
        self.bus.serial.flush();
        for device in &self.bus.virtio {
            if let Some(fault) = device.last_fault() {
                tracing::warn!(device = device.name(), "guest broke the device's contract: {fault}");
            }
        }
    }
}

impl Drop for Vm {
    /// After a failed start, too, no thread and no socket is left.
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
