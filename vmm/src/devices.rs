//! Makes the devices of a configuration: first everything is opened ([`OpenDevices::open`]), so that a bad
//! path or a missing tap is told before there is a VM, then the devices are put on the bus and wired to
//! KVM ([`OpenDevices::connect`]).
//!
//! Order on the bus, which fixes addresses and interrupts (`docs/design.md`): vsock, rng, block…, net….

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use kata_cc_boot::layout;
use kata_cc_devices::block::{Block, BlockConfig, Slot};
use kata_cc_devices::mmio::QUEUE_NOTIFY;
use kata_cc_devices::net::{Mac, Net, NetConfig, Tap};
use kata_cc_devices::rng::Rng;
use kata_cc_devices::serial::{COM1_IRQ, ResetPort, Serial};
use kata_cc_devices::vsock::{LocalPort, Vsock, VsockConfig};
use kata_cc_devices::{EventFd, IoLoop, MmioTransport, VirtioDevice, feature};
use kata_cc_vmm_api::VmConfig;

use crate::bus::{Bus, BusCounters};
use crate::error::VmmError;
use crate::files;
use crate::ioapic::IoApic;
use crate::kvm::Machine;
use crate::tee::TeeKind;

/// Block slots by id.
pub struct Slots(BTreeMap<String, (Slot, bool)>);

impl Slots {
    /// Puts a file into an empty slot.
    ///
    /// # Errors
    /// A sentence for whoever asked.
    pub fn attach(&self, id: &str, path: &Path) -> Result<(), String> {
        let (slot, read_only) = self.find(id)?;
        let file = files::open_block(path, *read_only)
            .map_err(|e| format!("block {id}: cannot open {}: {e}", path.display()))?;
        slot.attach(file).map_err(|e| e.to_string())
    }

    /// Empties a slot.
    ///
    /// # Errors
    /// A sentence for whoever asked.
    pub fn detach(&self, id: &str) -> Result<(), String> {
        let (slot, _) = self.find(id)?;
        slot.detach().map(drop).map_err(|e| e.to_string())
    }

    fn find(&self, id: &str) -> Result<&(Slot, bool), String> {
        self.0.get(id).ok_or_else(|| {
            let known: Vec<_> = self.0.keys().map(String::as_str).collect();
            format!("there is no block slot {id}; there are: {}", known.join(" "))
        })
    }
}

/// Devices whose files are open.
pub struct OpenDevices {
    virtio: Vec<Box<dyn VirtioDevice>>,
    slots: BTreeMap<String, (Slot, bool)>,
    console: Box<dyn Write + Send>,
}

/// Devices on the bus.
pub(crate) struct Connected {
    pub(crate) bus: Bus,
    pub(crate) slots: Slots,
    pub(crate) io: IoLoop,
}

fn refused(device: &str) -> impl Fn(&dyn std::fmt::Display) -> VmmError + '_ {
    move |reason| VmmError::Device { device: device.into(), reason: reason.to_string() }
}

impl OpenDevices {
    /// Opens what the configuration names. `local_ports` are the vsock ports served in this process.
    ///
    /// # Errors
    /// Names the device that cannot be made.
    pub fn open(config: &VmConfig, local_ports: HashMap<u32, LocalPort>) -> Result<Self, VmmError> {
        let console: Box<dyn Write + Send> = match &config.console {
            None => Box::new(std::io::sink()),
            Some(path) => files::open_console(path).map_err(|source| VmmError::File {
                what: "console".into(),
                path: path.clone(),
                source,
            })?,
        };
        let mut open = Self { virtio: Vec::new(), slots: BTreeMap::new(), console };
        if let Some(vsock) = &config.vsock {
            let device = Vsock::new(VsockConfig {
                id: "vsock".into(),
                local_ports,
                cid: vsock.cid,
                uds: vsock.uds.clone(),
            });
            open.virtio.push(Box::new(device.map_err(|e| refused("vsock")(&e))?));
        }
        if config.rng {
            open.virtio.push(Box::new(Rng::new("rng")));
        }
        open.blocks(config)?;
        open.nets(config)?;
        Ok(open)
    }

    fn blocks(&mut self, config: &VmConfig) -> Result<(), VmmError> {
        for block in &config.block {
            let file = match &block.path {
                None => None,
                Some(path) => Some(files::open_block(path, block.read_only).map_err(|source| {
                    VmmError::File { what: format!("block {}", block.id), path: path.clone(), source }
                })?),
            };
            let settings = BlockConfig { id: block.id.clone(), read_only: block.read_only };
            let device = Block::new(settings, file).map_err(|e| refused(&block.id)(&e))?;
            self.slots.insert(block.id.clone(), (device.slot(), block.read_only));
            self.virtio.push(Box::new(device));
        }
        Ok(())
    }

    fn nets(&mut self, config: &VmConfig) -> Result<(), VmmError> {
        for net in &config.net {
            let mac: Mac = net.mac.parse().map_err(|e| refused(&net.id)(&e))?;
            let tap = Tap::open(&net.tap).map_err(|e| refused(&net.id)(&e))?;
            let settings = NetConfig { id: net.id.clone(), mac };
            self.virtio.push(Box::new(Net::new(settings, Box::new(tap))));
        }
        Ok(())
    }

    /// Number of virtio devices.
    #[must_use]
    pub fn count(&self) -> usize {
        self.virtio.len()
    }

    /// Puts the devices on the bus.
    pub(crate) fn connect(self, machine: &Machine, kind: TeeKind) -> Result<Connected, VmmError> {
        let memory = machine.io().memory();
        // the driver of a confidential guest has to use memory that it shares, and to be told so
        let access = if kind == TeeKind::None { 0 } else { feature::ACCESS_PLATFORM };
        let mut io = IoLoop::new().map_err(VmmError::system("i/o loop"))?;
        let mut virtio = Vec::with_capacity(self.virtio.len());
        for (n, device) in self.virtio.into_iter().enumerate() {
            let name = device.name().to_owned();
            let Some((address, irq)) = layout::device(n) else {
                return Err(refused(&name)(&"no interrupt is left"));
            };
            let line = event()?;
            machine.connect_interrupt(&line, irq)?;
            let transport =
                MmioTransport::new(device, memory.clone(), Arc::new(line)).map_err(|e| refused(&name)(&e))?;
            let transport = transport.offering(access);
            for (queue, event) in (0u32..).zip(transport.queue_events()) {
                machine.connect_notification(event, address + QUEUE_NOTIFY, queue)?;
            }
            let transport = Arc::new(transport);
            io.add(Arc::clone(&transport)).map_err(|e| refused(&name)(&e))?;
            virtio.push(transport);
        }
        let serial_line = event()?;
        machine.connect_interrupt(&serial_line, COM1_IRQ)?;
        let bus = Bus {
            serial: Serial::new(Arc::new(serial_line), self.console),
            // the vCPU that writes the port sees the answer: nobody waits for this event
            reset: ResetPort::new(Arc::new(event()?)),
            virtio,
            ioapic: (kind == TeeKind::Tdx).then(|| IoApic::new(Box::new(Arc::clone(machine.io())))),
            counters: BusCounters::default(),
        };
        Ok(Connected { bus, slots: Slots(self.slots), io })
    }
}

fn event() -> Result<EventFd, VmmError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(VmmError::system("eventfd"))
}
