//! What guest and host do with a connection when both keep to the protocol.

use super::*;

#[test]
fn configuration() {
    let vm = Vm::new();
    assert_eq!(vm.guest.config::<8>(0), CID.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    for cid in [0, 1, 2, u32::MAX] {
        let uds = folder.path().join("v");
        let config = VsockConfig { id: "v".into(), cid, uds, local_ports: HashMap::new() };
        assert!(matches!(Vsock::new(config), Err(VsockError::ReservedCid(_))));
    }
    let config = VsockConfig { id: "v".into(), cid: 3, uds: vm.path(""), local_ports: HashMap::new() };
    assert!(matches!(Vsock::new(config), Err(VsockError::Socket { .. })));
    let path = vm.path("");
    assert!(path.exists());
    let Vm { guest, folder: _folder, .. } = vm;
    drop(guest);
    assert!(!path.exists());
}

#[test]
fn host_connects_and_both_talk() {
    let mut vm = Vm::new();
    let (mut client, port) = vm.open_from_host();
    assert!((1 << 30..1 << 31).contains(&port));
    client.write_all(b"ping").unwrap();
    let (header, data) = vm.expect(op::RW);
    assert_eq!((header.src_port, header.dst_port, data.as_slice()), (port, 1024, b"ping".as_slice()));
    vm.send_data(1024, port, b"pong");
    assert_eq!(read(&mut client), b"pong");
    assert_eq!(vm.guest.counter("opened_by_host"), 1);
}

#[test]
fn connect_line_in_pieces_and_data_behind_it() {
    let mut vm = Vm::new();
    let mut client = vm.client("");
    for byte in b"connect 1024\n" {
        assert!(vm.packet().is_none());
        client.write_all(&[*byte]).unwrap();
    }
    let (request, _) = vm.expect(op::REQUEST);
    vm.send(op::RESPONSE, 1024, request.src_port);
    drop(client);

    let mut client = vm.client("CONNECT 1024\nearly");
    // The first one hung up.
    vm.expect(op::SHUTDOWN);
    let (request, _) = vm.expect(op::REQUEST);
    assert!(vm.packet().is_none(), "no data before the guest has accepted");
    vm.send(op::RESPONSE, 1024, request.src_port);
    assert_eq!(vm.expect(op::RW).1, b"early");
    assert_eq!(read(&mut client), format!("OK {}\n", request.src_port).as_bytes());
}

#[test]
fn bad_connect_lines_are_hung_up_on() {
    let mut vm = Vm::new();
    for line in ["GET / HTTP/1.1\n", "CONNECT x\n", "CONNECT 11111111111111111111111111111111111\n", "\n"] {
        let mut client = vm.client(line);
        assert!(vm.packet().is_none());
        assert!(is_closed(&mut client), "{line:?}");
    }
    // A client that never finishes its line holds a slot, and nothing else; one that leaves frees it.
    let client = vm.client("CONN");
    assert!(vm.packet().is_none());
    assert_eq!(vm.guest.counter("connections"), 1);
    drop(client);
    assert!(vm.packet().is_none());
    assert_eq!(vm.guest.counter("connections"), 0);
}

#[test]
fn guest_refuses_the_host() {
    let mut vm = Vm::new();
    let mut client = vm.client("CONNECT 9\n");
    let (request, _) = vm.expect(op::REQUEST);
    vm.send(op::RST, 9, request.src_port);
    assert!(is_closed(&mut client));
    assert_eq!(vm.guest.counter("connections"), 0);
}

#[test]
fn client_that_leaves_before_the_answer() {
    let mut vm = Vm::new();
    let client = vm.client("CONNECT 9\n");
    let (request, _) = vm.expect(op::REQUEST);
    drop(client);
    assert_eq!(vm.expect(op::RST).0.src_port, request.src_port);
    assert_eq!(vm.guest.counter("connections"), 0);
}

#[test]
fn guest_connects_to_a_socket_of_the_host() {
    let mut vm = Vm::new();
    let listener = UnixListener::bind(vm.path("_1025")).unwrap();
    vm.send(op::REQUEST, 5000, 1025);
    vm.expect(op::RESPONSE);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    vm.send_data(5000, 1025, b"log line\n");
    assert_eq!(read(&mut stream), b"log line\n");
    stream.write_all(b"ok").unwrap();
    assert_eq!(vm.expect(op::RW).1, b"ok");
}

#[test]
fn guest_connects_to_a_service_inside() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    vm.send_data(5000, 1027, b"request");
    assert_eq!(read(&mut service), b"request");
    service.write_all(b"report").unwrap();
    drop(service);
    assert_eq!(vm.expect(op::RW).1, b"report");
    let (header, _) = vm.expect(op::SHUTDOWN);
    assert_eq!(header.flags, 3);
    assert_eq!(vm.guest.counter("connections"), 0);
}

#[test]
fn slow_reader_gets_everything_in_order() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    let (mut sent, mut told, mut received) = (0_u32, 0_u32, Vec::new());
    let total = 3 << 20;
    while received.len() < total {
        while (sent as usize) < total && sent - told + MAX_PACKET <= BUFFER {
            let chunk: Vec<u8> = (sent..sent + MAX_PACKET).map(|n| (n % 251) as u8).collect();
            vm.send_data(5000, 1027, &chunk);
            sent += MAX_PACKET;
        }
        let mut chunk = vec![0; 100_000];
        if let Ok(n) = service.read(&mut chunk) {
            received.extend_from_slice(&chunk[..n]);
        }
        while let Some((header, _)) = vm.packet() {
            assert_eq!((header.op, header.buf_alloc), (op::CREDIT_UPDATE, BUFFER));
            told = header.fwd_cnt;
        }
    }
    assert!(received.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
    assert_eq!(vm.guest.counter("backlog_bytes"), 0);
}

#[test]
fn large_transfer_to_the_guest_keeps_its_order() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    let total = 3 << 20;
    let data: Vec<u8> = (0..total).map(|n| (n % 251) as u8).collect();
    let (mut written, mut received) = (0, Vec::new());
    while received.len() < total {
        if let Ok(n) = service.write(&data[written..]) {
            written += n;
        }
        while let Some((header, chunk)) = vm.packet() {
            match header.op {
                op::RW => received.extend_from_slice(&chunk),
                op::CREDIT_REQUEST => {
                    vm.fwd_cnt = received.len() as u32;
                    vm.send(op::CREDIT_UPDATE, 5000, 1027);
                }
                other => panic!("unexpected operation {other}"),
            }
        }
    }
    assert_eq!(received, data);
}

#[test]
fn host_half_closes() {
    let mut vm = Vm::new();
    let (mut client, port) = vm.open_from_host();
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(vm.expect(op::RW).1, b"last words");
    assert_eq!(vm.expect(op::SHUTDOWN).0.flags, 2);
    // The other direction lives.
    vm.send_data(1024, port, b"answer");
    assert_eq!(read(&mut client), b"answer");
    drop(client);
    assert_eq!(vm.expect(op::SHUTDOWN).0.flags, 3);
    assert_eq!(vm.guest.counter("connections"), 0);
}

#[test]
fn guest_half_closes() {
    let mut vm = Vm::new();
    let (mut client, port) = vm.open_from_host();
    vm.send_data(1024, port, b"last words");
    vm.shut(1024, port, 2);
    assert_eq!(read(&mut client), b"last words");
    assert!(is_closed(&mut client));
    client.write_all(b"answer").unwrap();
    assert_eq!(vm.expect(op::RW).1, b"answer");
    // Data after its own shutdown is a breach.
    vm.send_data(1024, port, b"x");
    vm.expect(op::RST);
}

#[test]
fn guest_closes_and_gets_its_reset_once_all_is_delivered() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    let chunk = vec![7; MAX_PACKET as usize];
    let mut sent = 0;
    while vm.guest.counter("backlog_bytes") == 0 {
        vm.send_data(5000, 1027, &chunk);
        sent += chunk.len();
    }
    vm.shut(5000, 1027, 3);
    let mut received = 0;
    for _ in 0..1000 {
        received += read(&mut service).len();
        if let Some((header, _)) = vm.packet()
            && header.op == op::RST
        {
            break;
        }
    }
    received += read(&mut service).len();
    assert_eq!(received, sent);
    assert!(is_closed(&mut service));
    assert_eq!(vm.guest.counter("connections"), 0);
}

/// Linux resets by itself some seconds after a close; what it sent before still counts.
#[test]
fn guest_reset_after_shutdown_still_delivers() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    let chunk = vec![7; MAX_PACKET as usize];
    let mut sent = 0;
    while vm.guest.counter("backlog_bytes") == 0 {
        vm.send_data(5000, 1027, &chunk);
        sent += chunk.len();
    }
    vm.shut(5000, 1027, 3);
    vm.send(op::RST, 5000, 1027);
    let mut received = 0;
    for _ in 0..1000 {
        received += read(&mut service).len();
        vm.guest.pump();
    }
    assert_eq!(received, sent);
    assert_eq!(vm.guest.counter("connections"), 0);
}

/// The host reads no more but has sent something: the guest must still get it.
#[test]
fn host_that_stops_reading_does_not_lose_what_it_sent() {
    let mut vm = Vm::new();
    let (mut client, port) = vm.open_from_host();
    client.write_all(b"bye").unwrap();
    drop(client);
    vm.send_data(1024, port, b"too late");
    assert_eq!(vm.expect(op::RW).1, b"bye");
    assert_eq!(vm.expect(op::SHUTDOWN).0.flags, 3);
    vm.send_data(1024, port, b"much too late");
    vm.expect(op::RST);
}

/// A client that comes before the driver waits for it.
#[test]
fn client_waits_for_the_driver() {
    let mut vm = Vm::new();
    vm.guest.set(Register::Status, 0);
    let client = vm.client("CONNECT 1024\n");
    vm.guest.pump();
    assert_eq!(vm.guest.counter("connections"), 0);
    vm.guest.start(0);
    vm.buffers = 0;
    vm.expect(op::REQUEST);
    drop(client);
}

#[test]
fn many_clients_at_once() {
    let mut vm = Vm::new();
    let clients: Vec<_> = (0..100).map(|_| vm.client("CONNECT 1024\n")).collect();
    let mut ports = std::collections::HashSet::new();
    while let Some((header, _)) = vm.packet() {
        assert_eq!(header.op, op::REQUEST);
        assert!(ports.insert(header.src_port), "a host port was given twice");
    }
    assert_eq!(ports.len(), clients.len());
}
