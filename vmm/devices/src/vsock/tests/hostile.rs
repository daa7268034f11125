//! What either does when it does not.

use super::*;

#[test]
fn nobody_listens_and_nobody_knows() {
    let mut vm = Vm::new();
    vm.send(op::REQUEST, 5000, 4);
    let (reset, _) = vm.expect(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (4, 5000));
    for op in [op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 99] {
        vm.send(op, 5000, 1027);
        vm.expect(op::RST);
    }
    // Never a reset for a reset.
    vm.send(op::RST, 5000, 1027);
    assert!(vm.packet().is_none());
    assert_eq!(vm.guest.counter("refused"), 8);
}

#[test]
fn foreign_packets_are_dropped() {
    let mut vm = Vm::new();
    let good = vm.header(op::REQUEST, 5000, 1027);
    for header in [
        Header { src_cid: 4, ..good },
        Header { src_cid: 3 + (1 << 32), ..good },
        Header { dst_cid: 1, ..good },
        Header { dst_cid: 3, ..good },
        Header { kind: 2, ..good },
        Header { len: MAX_PACKET + 1, ..good },
        Header { len: 1, ..good },
        Header { len: u32::MAX, ..good },
    ] {
        vm.send_raw(&header, &[]);
        assert!(vm.packet().is_none());
    }
    assert_eq!(vm.guest.counter("tx_malformed"), 8);
    assert_eq!(vm.guest.counter("connections"), 0);
}

/// CVE-2019-18960: header and data descriptors were not bounded together, so that the device went beyond memory.
#[test]
fn cve_2019_18960_vsock_header_beyond_memory() {
    let header = Vm::new().header(op::REQUEST, 5000, 1027);
    // In memory, however cut: fine. Short: malformed. Beyond the end: a fault.
    for (parts, malformed, fault) in [
        ([(OUT, 1, false), (OUT + 1, 43, false)].as_slice(), 0, false),
        (&[(HIGH_END - 44, 44, false)], 0, false),
        (&[(OUT, 43, false)], 1, false),
        (&[(OUT, 44, true)], 1, false),
        (&[(HIGH_END - 43, 44, false)], 0, true),
        (&[(LOW_END - 20, 20, false), (LOW_END, 24, false)], 0, true),
        (&[(OUT, 44, false), (HIGH_END - 1, 2, false)], 0, true),
        (&[(u64::MAX - 20, 44, false)], 0, true),
        (&[(OUT, 44, false), (OUT, u32::MAX, false)], 0, true),
    ] {
        let mut vm = Vm::new();
        vm.guest.put(OUT, &header.bytes());
        vm.guest.put(HIGH_END - 44, &header.bytes());
        vm.guest.chain(TX, parts);
        vm.guest.notify(TX);
        assert_eq!(vm.guest.needs_reset(), fault, "{parts:?}");
        assert_eq!(vm.guest.counter("tx_malformed"), malformed, "{parts:?}");
        if let Some(fault) = vm.guest.transport.last_fault() {
            assert_eq!(fault.queue, TX);
            assert!(matches!(fault.kind, FaultKind::Address { .. } | FaultKind::ChainTooLarge { .. }));
        }
    }
}

#[test]
fn receive_buffers_that_hold_nothing_are_given_back() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    service.write_all(b"data").unwrap();
    vm.guest.pump();
    for parts in [[(IN, 43, true)].as_slice(), &[(IN, 44, false)], &[(IN, 44, true)], &[(IN, 0, true)]] {
        vm.guest.chain(RX, parts);
        vm.guest.notify(RX);
        assert_eq!(vm.guest.used(RX).first().map(|used| used.1), Some(0), "{parts:?}");
    }
    assert_eq!(vm.expect(op::RW).1, b"data");
    assert_eq!(vm.guest.counter("rx_too_small"), 4);
}

#[test]
fn host_never_sends_more_than_the_credit() {
    let mut vm = Vm::new();
    vm.buf_alloc = 10;
    let mut service = vm.open_from_guest();
    service.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(vm.expect(op::RW).1, b"0123456789");
    vm.expect(op::CREDIT_REQUEST);
    assert!(vm.packet().is_none());
    vm.fwd_cnt = 3;
    vm.send(op::CREDIT_UPDATE, 5000, 1027);
    assert_eq!(vm.expect(op::RW).1, b"abc");
    vm.expect(op::CREDIT_REQUEST);
    vm.fwd_cnt = 13;
    vm.send(op::CREDIT_UPDATE, 5000, 1027);
    assert_eq!(vm.expect(op::RW).1, b"def");
}

/// CVE-2026-23069: a peer that claims to have taken more than was sent made the credit wrap around to 4 GiB.
#[test]
fn cve_2026_23069_credit_does_not_wrap() {
    let mut vm = Vm::new();
    vm.buf_alloc = 100;
    vm.fwd_cnt = 1;
    let mut service = vm.open_from_guest();
    service.write_all(b"data").unwrap();
    vm.expect(op::CREDIT_REQUEST);
    assert!(vm.packet().is_none());
    // A shrunken buffer: less than what is in flight.
    vm.fwd_cnt = 0;
    vm.send(op::CREDIT_UPDATE, 5000, 1027);
    vm.expect(op::RW);
    vm.buf_alloc = 2;
    vm.send(op::CREDIT_UPDATE, 5000, 1027);
    service.write_all(b"more").unwrap();
    vm.expect(op::CREDIT_REQUEST);
    assert!(vm.packet().is_none());
}

#[test]
fn guest_that_exceeds_its_credit_is_reset() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    let chunk = vec![1; MAX_PACKET as usize];
    // The service does not read: first the socket fills, then the buffer, then it is over.
    let mut sent = 0;
    let reset = loop {
        vm.send_data(5000, 1027, &chunk);
        sent += 1;
        assert!(sent < 100, "no end");
        match vm.packet() {
            Some((header, _)) if header.op == op::RST => break header,
            Some((header, _)) => assert_eq!(header.op, op::CREDIT_UPDATE),
            None => {}
        }
        assert!(vm.guest.counter("backlog_bytes") <= u64::from(BUFFER));
    };
    assert_eq!(reset.dst_port, 5000);
    assert_eq!((vm.guest.counter("connections"), vm.guest.counter("backlog_bytes")), (0, 0));
    read(&mut service);
    assert!(is_closed(&mut service));
}

#[test]
fn second_request_for_a_connection_is_a_breach() {
    let mut vm = Vm::new();
    let mut service = vm.open_from_guest();
    vm.send(op::REQUEST, 5000, 1027);
    vm.expect(op::RST);
    assert!(is_closed(&mut service));
    let (mut client, port) = vm.open_from_host();
    vm.send(op::RESPONSE, 1024, port);
    vm.expect(op::RST);
    assert!(is_closed(&mut client));
}

#[test]
fn connections_are_limited() {
    let mut vm = Vm::new();
    for port in 0..=MAX_CONNECTIONS as u32 {
        vm.send(op::REQUEST, port, 1027);
        let expected = if (port as usize) < MAX_CONNECTIONS { op::RESPONSE } else { op::RST };
        vm.expect(expected);
    }
    assert_eq!(vm.guest.counter("connections"), MAX_CONNECTIONS as u64);
    // The host's clients as well.
    let mut client = vm.client("CONNECT 1\n");
    assert!(vm.packet().is_none());
    assert!(is_closed(&mut client));
    // A reset of the device drops all of them.
    vm.guest.set(Register::Status, 0);
    assert_eq!(vm.guest.counter("connections"), 0);
    assert!(vm.local.lock().unwrap().iter_mut().all(is_closed));
}

/// Without receive buffers, resets pile up to a limit, not beyond.
#[test]
fn reset_storm_is_bounded() {
    let mut vm = Vm::new();
    for port in 0..1000 {
        vm.send(op::RW, port, 9);
    }
    assert_eq!(vm.guest.counter("resets_dropped"), 1000 - 256);
    let mut resets = 0;
    while let Some((header, _)) = vm.packet() {
        assert_eq!(header.op, op::RST);
        resets += 1;
    }
    assert_eq!(resets, 256);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn header_round_trip(bytes in proptest::array::uniform32(any::<u8>()), rest in proptest::array::uniform12(any::<u8>())) {
        let mut all = [0; HEADER_LEN];
        all[..32].copy_from_slice(&bytes);
        all[32..].copy_from_slice(&rest);
        prop_assert_eq!(Header::parse(&all).bytes(), all);
    }
}
