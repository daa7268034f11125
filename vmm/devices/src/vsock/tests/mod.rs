//! A guest that speaks vsock, for the tests below.

mod flow;
mod hostile;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::feature;
use crate::mmio::Register;
use crate::queue::FaultKind;
use crate::test_utils::*;

const RX: u16 = 0;
const TX: u16 = 1;
const CID: u64 = 3;
/// Where a packet to the host is built, and its data.
const OUT: u64 = DATA;
const OUT_DATA: u64 = DATA + 0x1000;
/// The one receive buffer.
const IN: u64 = 0x2_0000;
const IN_SIZE: u64 = 0x1_0000;

struct Vm {
    guest: FakeGuest,
    folder: TempDir,
    local: Arc<Mutex<Vec<UnixStream>>>,
    buffers: u64,
    /// What the guest tells of itself in each packet.
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Vm {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let local = Arc::new(Mutex::new(Vec::new()));
        let ends = local.clone();
        let service: LocalPort = Box::new(move || {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            ends.lock().unwrap().push(ours);
            Ok(theirs)
        });
        let device = Vsock::new(VsockConfig {
            id: "vsock".into(),
            cid: CID as u32,
            uds: folder.path().join("vsock"),
            local_ports: HashMap::from([(1027, service)]),
        })
        .unwrap();
        let guest = FakeGuest::boot(Box::new(device), feature::EVENT_IDX);
        Self { guest, folder, local, buffers: 0, buf_alloc: 1 << 20, fwd_cnt: 0 }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("vsock{suffix}"))
    }

    /// Sends a header and data as the guest.
    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        self.guest.put(OUT, &header.bytes());
        self.guest.put(OUT_DATA, data);
        let mut parts = vec![(OUT, HEADER_LEN as u32, false)];
        if !data.is_empty() {
            parts.push((OUT_DATA, data.len() as u32, false));
        }
        self.guest.chain(TX, &parts);
        self.guest.notify(TX);
    }

    fn header(&self, op: u16, guest_port: u32, host_port: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: 2,
            src_port: guest_port,
            dst_port: host_port,
            kind: 1,
            op,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    fn send(&mut self, op: u16, guest_port: u32, host_port: u32) {
        let header = self.header(op, guest_port, host_port);
        self.send_raw(&header, &[]);
    }

    fn send_data(&mut self, guest_port: u32, host_port: u32, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..self.header(op::RW, guest_port, host_port) };
        self.send_raw(&header, data);
    }

    fn shut(&mut self, guest_port: u32, host_port: u32, flags: u32) {
        let header = Header { flags, ..self.header(op::SHUTDOWN, guest_port, host_port) };
        self.send_raw(&header, &[]);
    }

    /// Gives one buffer and takes one packet, if there is any.
    fn packet(&mut self) -> Option<(Header, Vec<u8>)> {
        self.guest.pump();
        if self.buffers == 0 {
            self.guest.chain(RX, &[(IN, IN_SIZE as u32, true)]);
            self.buffers = 1;
        }
        self.guest.notify(RX);
        let used = self.guest.used(RX);
        let (_, len) = used.first()?;
        self.buffers = 0;
        let bytes = self.guest.take(IN, *len as usize);
        let (header, data) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (2, CID, 1));
        assert_eq!(header.len as usize, data.len());
        Some((header, data.to_vec()))
    }

    fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.packet().expect("a packet");
        assert_eq!(header.op, op, "{header:?}");
        (header, data)
    }

    fn client(&self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(self.path("")).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        client
    }

    /// A connection from the host to guest port 1024; returns the stream and the host port.
    fn open_from_host(&mut self) -> (UnixStream, u32) {
        let mut client = self.client("CONNECT 1024\n");
        let (request, _) = self.expect(op::REQUEST);
        assert_eq!(request.dst_port, 1024);
        self.send(op::RESPONSE, 1024, request.src_port);
        assert_eq!(read(&mut client), format!("OK {}\n", request.src_port).as_bytes());
        (client, request.src_port)
    }

    /// A connection from guest port 5000 to the service inside.
    fn open_from_guest(&mut self) -> UnixStream {
        self.send(op::REQUEST, 5000, 1027);
        let (response, _) = self.expect(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port, response.buf_alloc), (1027, 5000, BUFFER));
        self.local.lock().unwrap().pop().unwrap()
    }
}

/// All that is there now.
fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => data.extend_from_slice(&chunk[..n]),
            Err(_) => break,
        }
    }
    data
}

fn is_closed(stream: &mut UnixStream) -> bool {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(n) => n == 0,
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}
