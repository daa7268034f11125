//! A fake guest in plain memory: sets a device up through its registers, builds virtqueues, rings the doorbell
//! and looks at what came back. Used by unit tests and fuzz targets; nothing of it belongs in a VMM.
//!
//! Memory: 2 MiB at 0 and 64 KiB at [`HIGH`], with a hole between. Rings at `0x1000 + queue * 0x4000`, buffers of the tests from
//! [`DATA`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::mmio::{Register, status};
use crate::net::TapBackend;
use crate::{GuestRam, IoLoop, Memory, MmioTransport, VirtioDevice, feature};

/// End of the first region.
pub const LOW_END: u64 = 2 << 20;
/// The second region.
pub const HIGH: u64 = 16 << 20;
/// End of the second region.
pub const HIGH_END: u64 = HIGH + (64 << 10);
/// Where tests put their buffers.
pub const DATA: u64 = 1 << 20;

/// Descriptor flag: there is a next one.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Size that the fake guest gives each queue.
pub const SIZE: u16 = 16;

/// The guest's memory.
pub fn memory() -> Memory {
    let ranges = [(GuestAddress(0), LOW_END as usize), (GuestAddress(HIGH), (HIGH_END - HIGH) as usize)];
    Memory::new(GuestMemoryMmap::from_ranges(&ranges).expect("anonymous memory for a test"))
}

/// Where the rings of a queue are: descriptor table, available ring, used ring.
pub fn rings(queue: u16) -> (u64, u64, u64) {
    let base = 0x1000 + u64::from(queue) * 0x4000;
    (base, base + 0x1000, base + 0x2000)
}

/// A driver and its device.
pub struct FakeGuest {
    /// Guest memory.
    pub memory: Memory,
    /// The device.
    pub transport: Arc<MmioTransport>,
    io: IoLoop,
    irq: EventFd,
    next_desc: Vec<u16>,
    seen_used: Vec<u16>,
}

impl FakeGuest {
    /// A device that the driver has not touched.
    pub fn cold(device: Box<dyn VirtioDevice>) -> Self {
        let memory = memory();
        let queues = device.queue_sizes().len();
        let irq = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let line = Arc::new(irq.try_clone().expect("eventfd"));
        let transport = Arc::new(MmioTransport::new(device, memory.clone(), line).expect("eventfd"));
        let mut io = IoLoop::new().expect("epoll");
        io.add(transport.clone()).expect("epoll");
        Self { memory, transport, io, irq, next_desc: vec![0; queues], seen_used: vec![0; queues] }
    }

    /// A device that runs, with the given features beside `VERSION_1`.
    pub fn boot(device: Box<dyn VirtioDevice>, features: u64) -> Self {
        let mut guest = Self::cold(device);
        guest.start(features);
        guest
    }

    /// Resets and sets up: all of what a driver does up to `DRIVER_OK`.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        for queue in 0..self.queues() {
            self.set_up_queue(queue);
        }
        self.set(Register::Status, 15);
    }

    /// Resets and goes up to `FEATURES_OK`.
    pub fn negotiate(&mut self, features: u64) {
        let features = features | feature::VERSION_1;
        self.set(Register::Status, 0);
        self.set(Register::Status, status::ACKNOWLEDGE);
        self.set(Register::Status, 3);
        self.set(Register::DriverFeaturesSel, 0);
        self.set(Register::DriverFeatures, features as u32);
        self.set(Register::DriverFeaturesSel, 1);
        self.set(Register::DriverFeatures, (features >> 32) as u32);
        self.set(Register::Status, 11);
        self.next_desc.fill(0);
        self.seen_used.fill(0);
        for queue in 0..self.queues() {
            let (desc, avail, used) = rings(queue);
            for ring in [desc, avail, used] {
                self.put(ring, &[0; 0x1000]);
            }
        }
    }

    /// Writes the registers of a queue.
    pub fn set_up_queue(&self, queue: u16) {
        let (desc, avail, used) = rings(queue);
        self.set(Register::QueueSel, u32::from(queue));
        self.set(Register::QueueSize, u32::from(SIZE));
        self.set_queue_addresses(desc, avail, used);
        self.set(Register::QueueReady, 1);
    }

    /// Writes the address registers of the selected queue.
    pub fn set_queue_addresses(&self, desc: u64, avail: u64, used: u64) {
        for (low, high, address) in [
            (Register::QueueDescLow, Register::QueueDescHigh, desc),
            (Register::QueueDriverLow, Register::QueueDriverHigh, avail),
            (Register::QueueDeviceLow, Register::QueueDeviceHigh, used),
        ] {
            self.set(low, address as u32);
            self.set(high, (address >> 32) as u32);
        }
    }

    /// Number of queues.
    pub fn queues(&self) -> u16 {
        self.next_desc.len() as u16
    }

    /// Writes a register.
    pub fn set(&self, register: Register, value: u32) {
        self.transport.write(register as u64, &value.to_le_bytes());
    }

    /// Reads a register.
    pub fn get(&self, register: Register) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register as u64, &mut data);
        u32::from_le_bytes(data)
    }

    /// Reads the configuration space.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(0x100 + offset, &mut data);
        data
    }

    /// The memory as devices see it.
    pub fn ram(&self) -> impl std::ops::Deref<Target = GuestRam> + use<> {
        self.memory.memory()
    }

    /// Writes guest memory; what is outside is lost.
    pub fn put(&self, address: u64, data: &[u8]) {
        let _ = self.ram().write_slice(data, GuestAddress(address));
    }

    /// Reads guest memory.
    pub fn take(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let _ = self.ram().read_slice(&mut data, GuestAddress(address));
        data
    }

    /// Writes one descriptor.
    pub fn desc(&self, queue: u16, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = rings(queue).0 + 16 * u64::from(index);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes a head available.
    pub fn offer(&self, queue: u16, head: u16) {
        let avail = rings(queue).1;
        let index = self.avail_index(queue);
        self.put(avail + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.set_avail_index(queue, index.wrapping_add(1));
    }

    /// The available index.
    pub fn avail_index(&self, queue: u16) -> u16 {
        let bytes = self.take(rings(queue).1 + 2, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Sets the available index.
    pub fn set_avail_index(&self, queue: u16, index: u16) {
        self.put(rings(queue).1 + 2, &index.to_le_bytes());
    }

    /// Makes a chain of (address, length, device writes) available and returns its head.
    pub fn chain(&mut self, queue: u16, parts: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_desc[usize::from(queue)] % SIZE;
        let mut index = head;
        for (n, (address, len, write)) in parts.iter().enumerate() {
            let next = (index + 1) % SIZE;
            let more = if n + 1 < parts.len() { NEXT } else { 0 };
            let write = if *write { WRITE } else { 0 };
            self.desc(queue, index, *address, *len, more | write, next);
            index = next;
        }
        self.next_desc[usize::from(queue)] = index;
        self.offer(queue, head);
        head
    }

    /// Notifies a queue and runs the I/O loop until it is idle.
    pub fn notify(&self, queue: u16) {
        self.set(Register::QueueNotify, u32::from(queue));
        self.pump();
    }

    /// Runs the I/O loop until it is idle. No guest refills the rings meanwhile, so this ends.
    pub fn pump(&self) {
        for _ in 0..100_000 {
            if self.io.turn(0).expect("epoll") == 0 {
                return;
            }
        }
        panic!("the device is busy without end");
    }

    /// Used elements since the last call: (head, length).
    pub fn used(&mut self, queue: u16) -> Vec<(u32, u32)> {
        let ring = rings(queue).2;
        let index = self.take(ring + 2, 2);
        let index = u16::from_le_bytes([index[0], index[1]]);
        let mut elements = Vec::new();
        let seen = &mut self.seen_used[usize::from(queue)];
        let (from, to) = (*seen, index);
        *seen = index;
        for n in 0..to.wrapping_sub(from).min(SIZE) {
            let slot = u64::from(from.wrapping_add(n) % SIZE);
            let element = self.take(ring + 4 + 8 * slot, 8);
            let word = |at: usize| {
                u32::from_le_bytes([element[at], element[at + 1], element[at + 2], element[at + 3]])
            };
            elements.push((word(0), word(4)));
        }
        elements
    }

    /// How often the line was raised since the last call.
    pub fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    /// A counter of the device.
    pub fn counter(&self, name: &str) -> u64 {
        let name = format!("{}.{name}", self.transport.name());
        self.transport.counters().find(|(counter, _)| *counter == name).map_or(0, |(_, value)| value)
    }

    /// Whether the device waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.get(Register::Status) & status::NEEDS_RESET != 0
    }
}

/// Every value that a tap's offloads were set to.
pub type Offloads = Arc<Mutex<Vec<u32>>>;

/// A tap that is one end of a socket pair.
pub struct SocketTap {
    socket: UnixDatagram,
    offloads: Offloads,
}

impl SocketTap {
    /// The tap, the wire's other end, and the offloads that are set on it.
    pub fn pair() -> io::Result<(Self, UnixDatagram, Offloads)> {
        let (socket, wire) = UnixDatagram::pair()?;
        socket.set_nonblocking(true)?;
        wire.set_nonblocking(true)?;
        let offloads = Arc::new(Mutex::new(Vec::new()));
        Ok((Self { socket, offloads: offloads.clone() }, wire, offloads))
    }
}

impl TapBackend for SocketTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn set_offloads(&mut self, flags: u32) -> io::Result<()> {
        if let Ok(mut offloads) = self.offloads.lock() {
            offloads.push(flags);
        }
        Ok(())
    }
}
