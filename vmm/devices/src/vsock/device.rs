//! The device: three queues around the muxer.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use vm_memory::GuestAddressSpace;

use super::muxer::Muxer;
use super::packet::{HEADER_LEN, MAX_PACKET};
use crate::device::{ActivateError, Activation, PollSource, VirtioDevice, Work};
use crate::feature;
use crate::queue::{Chain, DeviceQueue, GuestFault, Segment};

const QUEUE_SIZES: [u16; 3] = [256, 256, 256];
const RX: usize = 0;
const TX: usize = 1;
/// Packets per event and direction before the other devices have their turn.
const BUDGET: usize = 256;
/// The smallest CID that a guest may have.
const FIRST_GUEST_CID: u32 = 3;

/// A service inside the VMM: gives the host's end of a new connection.
pub type LocalPort = Box<dyn FnMut() -> io::Result<UnixStream> + Send>;

/// What a vsock device is made of.
pub struct VsockConfig {
    /// Name for logs and metrics.
    pub id: String,
    /// Guest's CID, 3 or more.
    pub cid: u32,
    /// Path of the socket for connections to the guest; must not exist, removed with the device.
    pub uds: PathBuf,
    /// Ports of the host that are served inside the VMM instead of by `<uds>_<port>`.
    pub local_ports: HashMap<u32, LocalPort>,
}

/// Why a vsock device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A reserved CID.
    #[error("vsock cid {0} is reserved; the guest's is 3 or more, and not 4294967295")]
    ReservedCid(u32),
    /// The socket cannot be made.
    #[error("vsock socket {} cannot be made ({source}); its folder must exist and the socket must not", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

struct Active {
    activation: Activation,
    rx: DeviceQueue,
    tx: DeviceQueue,
    /// Kept so that its rings stay in use; nothing is sent on it until there are snapshots.
    _event: DeviceQueue,
}

/// A virtio-vsock device.
pub struct Vsock {
    id: String,
    cid: u32,
    muxer: Muxer,
    active: Option<Active>,
    chain: Chain,
    parts: Vec<Segment>,
}

impl Vsock {
    /// Makes the device and its socket.
    pub fn new(config: VsockConfig) -> Result<Self, VsockError> {
        if config.cid < FIRST_GUEST_CID || config.cid == u32::MAX {
            return Err(VsockError::ReservedCid(config.cid));
        }
        let path = config.uds.clone();
        let muxer = Muxer::new(config.cid, config.uds, config.local_ports)
            .map_err(|source| VsockError::Socket { path, source })?;
        Ok(Self {
            id: config.id,
            cid: config.cid,
            muxer,
            active: None,
            chain: Chain::default(),
            parts: Vec::new(),
        })
    }

    fn send_to_guest(&mut self) -> Result<Work, GuestFault> {
        let Some(active) = &mut self.active else { return Ok(Work::Done) };
        let ram = active.activation.memory.memory();
        let mut used = false;
        let mut work = Work::Done;
        active.rx.disable_notification(&ram)?;
        let mut budget = BUDGET;
        while self.muxer.has_rx() {
            if budget == 0 {
                work = Work::More;
                break;
            }
            budget -= 1;
            if !active.rx.pop(&ram, &mut self.chain)? {
                if active.rx.enable_notification(&ram)? {
                    continue;
                }
                break;
            }
            let Some(len) = self.muxer.next_rx(&ram, &self.chain, &mut self.parts) else {
                active.rx.undo_pop(1);
                break;
            };
            active.rx.add_used(&ram, self.chain.head(), len)?;
            used = true;
        }
        if used && active.rx.needs_notification(&ram)? {
            active.activation.notifier.used();
        }
        Ok(work)
    }

    fn receive_from_guest(&mut self) -> Result<Work, GuestFault> {
        let Some(active) = &mut self.active else { return Ok(Work::Done) };
        let ram = active.activation.memory.memory();
        let mut used = false;
        let mut work = Work::More;
        active.tx.disable_notification(&ram)?;
        for _ in 0..BUDGET {
            if !active.tx.pop(&ram, &mut self.chain)? {
                if active.tx.enable_notification(&ram)? {
                    continue;
                }
                work = Work::Done;
                break;
            }
            self.muxer.handle_tx(&ram, &self.chain, &mut self.parts);
            active.tx.add_used(&ram, self.chain.head(), 0)?;
            used = true;
        }
        if used && active.tx.needs_notification(&ram)? {
            active.activation.notifier.used();
        }
        Ok(work)
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u32 {
        19
    }

    fn features(&self) -> u64 {
        // Streams are implied.
        feature::EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let cid = u64::from(self.cid).to_le_bytes();
        let from = cid.get(offset..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let backend = |what, source| ActivateError::Backend { device: self.id.clone(), what, source };
        let queues = (activation.queues.pop(), activation.queues.pop(), activation.queues.pop());
        let (Some(event), Some(mut tx), Some(rx)) = queues else {
            return Err(backend("find its queues", io::ErrorKind::InvalidInput.into()));
        };
        // Twice what a packet holds: longer is an offence, a little too long only malformed.
        tx.limit_chain_bytes(2 * (u64::from(MAX_PACKET) + HEADER_LEN as u64));
        self.muxer.listen().map_err(|source| backend("watch its socket", source))?;
        self.active = Some(Active { activation, rx, tx, _event: event });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.muxer.reset();
    }

    fn queue_event(&mut self, queue: usize) -> Result<Work, GuestFault> {
        match queue {
            RX => self.send_to_guest(),
            TX => {
                let work = self.receive_from_guest()?;
                self.muxer.accept_waiting();
                // What the packets led to: responses, resets, credit. If that has more, the rx queue is asked again.
                match self.send_to_guest()? {
                    Work::More => Ok(Work::More),
                    Work::Done => Ok(work),
                }
            }
            _ => Ok(Work::Done),
        }
    }

    fn poll_sources(&self) -> Vec<PollSource> {
        vec![PollSource { fd: self.muxer.fd(), token: 0, edge: false }]
    }

    fn poll_event(&mut self, _token: u32) -> Result<Work, GuestFault> {
        self.muxer.poll();
        self.send_to_guest()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = &self.muxer.counters;
        vec![
            ("connections", self.muxer.connections() as u64),
            ("backlog_bytes", self.muxer.backlog() as u64),
            ("opened_by_host", c.opened_by_host),
            ("opened_by_guest", c.opened_by_guest),
            ("refused", c.refused),
            ("tx_packets", c.tx_packets),
            ("tx_bytes", c.tx_bytes),
            ("tx_malformed", c.tx_malformed),
            ("rx_packets", c.rx_packets),
            ("rx_bytes", c.rx_bytes),
            ("rx_too_small", c.rx_too_small),
            ("resets_dropped", c.resets_dropped),
        ]
    }
}
