//! Entry points of the fuzz targets (`fuzz/fuzz_targets/device_*.rs`): each takes bytes and drives one device with
//! them, as a hostile driver would, after a proper start. Unit tests run them over seeds and arbitrary input.
//!
//! The bytes are a program of small operations (write a descriptor, offer a head, notify, write a register,
//! ...), so that short inputs already reach the devices. Whatever the program: no panic, and the loop comes to rest.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;

use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use crate::block::{Block, BlockConfig};
use crate::net::{Mac, Net, NetConfig};
use crate::rng::Rng;
use crate::test_utils::{DATA, FakeGuest, HIGH_END, LOW_END, SocketTap};
use crate::vsock::{Header, LocalPort, Vsock, VsockConfig};
use crate::{VirtioDevice, feature};

#[cfg(test)]
mod tests;

/// Most operations of one program.
const MAX_OPS: usize = 256;

/// Arbitrary accesses to the registers of a device with two queues.
pub fn mmio(data: &[u8]) {
    let guest = FakeGuest::cold(Box::new(Rng::new("fuzz")));
    let mut input = Input(data);
    for _ in 0..MAX_OPS {
        let Some(op) = input.u8() else { break };
        let offset = match op & 4 {
            0 => u64::from(input.u16()) % 0x200,
            _ => u64::from(input.u16()) & 0xfffc,
        };
        let bytes = input.u32().to_le_bytes();
        let width = usize::from(op >> 4).min(bytes.len());
        let mut word = bytes;
        match op & 3 {
            0 => guest.transport.read(offset, &mut word[..width]),
            1 => guest.transport.write(offset, &bytes[..width]),
            2 => guest.transport.write(offset, &bytes),
            _ => guest.pump(),
        }
    }
    guest.pump();
}

/// A hostile driver of virtio-rng.
pub fn rng(data: &[u8]) {
    drive(Box::new(Rng::new("fuzz")), data);
}

/// A hostile driver of virtio-blk, over a disk of 64 KiB.
pub fn block(data: &[u8]) {
    let Ok(file) = TempFile::new() else { return };
    let file = file.into_file();
    if file.set_len(64 << 10).is_err() {
        return;
    }
    let config = BlockConfig { id: "fuzz".into(), read_only: data.first().is_some_and(|b| b & 1 != 0) };
    if let Ok(block) = Block::new(config, Some(file)) {
        drive(Box::new(block), data);
    }
}

/// A hostile driver of virtio-net. The wire sends a frame, too.
pub fn net(data: &[u8]) {
    let Ok((tap, wire, _)) = SocketTap::pair() else { return };
    let _ = wire.send(&[0x5a; 1526]);
    let config = NetConfig { id: "fuzz".into(), mac: Mac([2, 0, 0, 0, 0, 1]) };
    drive(Box::new(Net::new(config, Box::new(tap))), data);
    let mut frame = [0; 2048];
    while wire.recv(&mut frame).is_ok() {}
}

/// A hostile driver of virtio-vsock, with a service on port 1027 and a client that asks for port 1.
pub fn vsock(data: &[u8]) {
    let Ok(folder) = TempDir::new() else { return };
    let service: LocalPort = Box::new(|| {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        std::io::Write::write_all(&mut &ours, b"hello")?;
        Ok(theirs)
    });
    let config = VsockConfig {
        id: "fuzz".into(),
        cid: 3,
        uds: folder.as_path().join("vsock"),
        local_ports: HashMap::from([(1027, service)]),
    };
    let Ok(device) = Vsock::new(config) else { return };
    let client = UnixStream::connect(folder.as_path().join("vsock"));
    if let Ok(mut client) = client.as_ref() {
        let _ = std::io::Write::write_all(&mut client, b"CONNECT 1\nhello");
    }
    drive(Box::new(device), data);
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8().unwrap_or(0), self.u8().unwrap_or(0)])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// An address worth trying: mostly buffers and rings, sometimes the edges of memory, sometimes anything.
    fn address(&mut self) -> u64 {
        let offset = u64::from(self.u16());
        match self.u8().unwrap_or(0) % 8 {
            0..=3 => DATA + offset,
            4 => offset,
            5 => LOW_END - (offset & 0xff),
            6 => HIGH_END - (offset & 0xff),
            _ => u64::MAX - offset * u64::from(self.u32()),
        }
    }

    /// A length: mostly small, sometimes huge.
    fn len(&mut self) -> u32 {
        match self.u8().unwrap_or(0) % 8 {
            0 => self.u32(),
            1 => 44,
            2 => 16,
            3 => 512,
            _ => u32::from(self.u16()) & 0xfff,
        }
    }
}

fn drive(device: Box<dyn VirtioDevice>, data: &[u8]) {
    let mut input = Input(data);
    let event_idx = input.u8().unwrap_or(0) & 2 != 0;
    let features = if event_idx { feature::EVENT_IDX } else { 0 };
    let mut guest = FakeGuest::boot(device, features);
    for _ in 0..MAX_OPS {
        let Some(op) = input.u8() else { break };
        let queue = u16::from(op >> 4) % guest.queues();
        match op & 15 {
            0 | 1 => {
                let (index, address, len) = (input.u16() % 18, input.address(), input.len());
                let (flags, next) = (u16::from(input.u8().unwrap_or(0)) & 7, input.u16() % 18);
                guest.desc(queue, index, address, len, flags, next);
            }
            2 | 3 => guest.offer(queue, input.u16() % 18),
            4 => guest.set_avail_index(queue, input.u16()),
            5 | 6 => guest.notify(queue),
            7 => guest.pump(),
            8 => {
                // A request of virtio-blk, or the head of anything else.
                let at = input.address();
                let header = [input.u32() & 15, 0, input.u32() & 0xff, 0];
                let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
                guest.put(at, &bytes);
            }
            9 | 10 => {
                let at = input.address();
                guest.put(at, &vsock_header(&mut input).bytes());
            }
            11 => {
                let (address, value) = (input.address(), input.u32());
                guest.put(address, &value.to_le_bytes());
            }
            12 => {
                let parts = [(input.address(), input.len(), false), (input.address(), input.len(), true)];
                guest.chain(queue, &parts[usize::from(op >> 7)..]);
            }
            13 => {
                let (offset, value) = (u64::from(input.u8().unwrap_or(0)) * 4, input.u32());
                guest.transport.write(offset, &value.to_le_bytes());
            }
            14 => {
                let mut data = [0; 8];
                guest.transport.read(u64::from(input.u16()) % 0x140, &mut data);
            }
            _ => guest.start(features),
        }
    }
    guest.pump();
    let _ = guest.transport.counters().count();
}

fn vsock_header(input: &mut Input<'_>) -> Header {
    let choice = input.u8().unwrap_or(0);
    Header {
        src_cid: if choice & 0x0f == 0x0f { 9 } else { 3 },
        dst_cid: if choice & 0xf0 == 0xf0 { 1 } else { 2 },
        src_port: u32::from(input.u8().unwrap_or(0)) % 4,
        // The service, the first port of connections from the host, or one where nobody listens.
        dst_port: [1027, 1 << 30, 9][usize::from(choice % 3)],
        len: input.len(),
        kind: if choice == 7 { 2 } else { 1 },
        op: u16::from(input.u8().unwrap_or(0)) % 9,
        flags: u32::from(input.u8().unwrap_or(0)) & 7,
        buf_alloc: input.u32(),
        fwd_cnt: u32::from(input.u16()),
    }
}
