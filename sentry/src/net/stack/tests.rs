//! The stack with sockets above and a pair of host sockets instead of an interface below; and garbage.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::MsgFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, send, socketpair};
use proptest::prelude::*;
use smoltcp::wire::{ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol};

use super::*;
use crate::net::address::Address;
use crate::net::host_tests::{context, send_to};
use crate::net::socket::{Receive, Socket, create};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn config(name: &str, ip: &str) -> LinkConfig {
    let prefix = |text: &str, length| Prefix { ip: text.parse().unwrap(), length };
    LinkConfig {
        name: name.to_owned(),
        mac: MAC,
        mtu: 1500,
        offload: false,
        addresses: vec![prefix(ip, 24), prefix("fd00::2", 64)],
        routes: vec![],
        neighbours: vec![NeighbourConfig { ip: "10.9.0.1".parse().unwrap(), mac: OTHER, permanent: true }],
    }
}

/// Two sandboxes on one wire.
fn two() -> [Arc<Net>; 2] {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let nets = [Net::new(), Net::new()];
    let first = LinkConfig {
        mac: OTHER,
        addresses: vec![Prefix { ip: "10.9.0.1".parse().unwrap(), length: 24 }],
        neighbours: vec![],
        ..config("eth0", "10.9.0.1")
    };
    nets[0].attach(first, one).unwrap();
    nets[1].attach(config("eth0", "10.9.0.2"), other).unwrap();
    nets
}

/// A sandbox, and the other end of its wire.
fn one() -> (Arc<Net>, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let net = Net::new();
    net.attach(config("eth0", "10.9.0.2"), near).unwrap();
    (net, far)
}

fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn address(text: &str) -> Address {
    Address::Inet(text.parse().unwrap())
}

fn receive(socket: &dyn Socket, most: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; most];
    let received = socket.receive(&mut bytes.as_mut_slice(), Receive::default())?;
    bytes.truncate(received.count);
    Ok(bytes)
}

#[test]
fn two_sandboxes_talk_by_tcp() {
    let [one, other] = two();
    let contexts = [context(&one), context(&other)];
    let listener = create(&contexts[1], [libc::AF_INET, libc::SOCK_STREAM, 0]).unwrap();
    listener.bind(&contexts[1], &address("0.0.0.0:80")).unwrap();
    listener.listen(&contexts[1], 5).unwrap();
    let client = create(&contexts[0], [libc::AF_INET, libc::SOCK_STREAM, 0]).unwrap();
    assert_eq!(client.connect(&contexts[0], &address("10.9.0.2:80")), Err(Errno::EINPROGRESS));
    assert_eq!(eventually(|| client.connected()), Ok(()));
    let server = eventually(|| listener.accept().ok());
    assert_eq!(server.peer(), client.local());
    assert_eq!(client.peer(), Ok(address("10.9.0.2:80")));
    let bytes: Vec<u8> = (0..500_000_u32).map(|at| (at % 251) as u8).collect();
    let (mut sent, mut received) = (0, Vec::new());
    eventually(|| {
        if sent < bytes.len() {
            sent += send_to(&contexts[0], client.as_ref(), &bytes[sent..], None).unwrap_or(0);
        }
        received.extend(receive(server.as_ref(), 100_000).unwrap_or_default());
        (received.len() == bytes.len()).then_some(())
    });
    assert!(received == bytes);
    client.shutdown(libc::SHUT_WR).unwrap();
    assert_eq!(eventually(|| receive(server.as_ref(), 1).ok()), b"");
    assert_eq!(send_to(&contexts[1], server.as_ref(), b"bye", None), Ok(3));
    assert_eq!(eventually(|| receive(client.as_ref(), 9).ok()), b"bye");
    server.close();
    assert_eq!(eventually(|| receive(client.as_ref(), 9).ok()), b"");
    client.close();
    // Both are over; who closed first remembers it.
    let stacks = [&one, &other].map(|net| net.stack().unwrap());
    eventually(|| stacks.iter().all(|stack| lock(&stack.connections).is_empty()).then_some(()));
    assert_eq!(stacks[0].past().len() + stacks[1].past().len(), 1);
    eventually(|| (one.bytes.used() == 0 && other.bytes.used() == 0).then_some(()));
}

#[test]
fn nobody_listens_and_nobody_is_there() {
    let [one, _other] = two();
    let context = context(&one);
    let connect = |to: &str| {
        let client = create(&context, [libc::AF_INET, libc::SOCK_STREAM, 0]).unwrap();
        match client.connect(&context, &address(to)) {
            Err(Errno::EINPROGRESS) => eventually(|| client.connected()),
            result => result,
        }
    };
    assert_eq!(connect("10.9.0.2:81"), Err(Errno::ECONNREFUSED));
    assert_eq!(connect("10.9.0.77:81"), Err(Errno::EHOSTUNREACH));
    assert_eq!(connect("10.10.0.1:81"), Err(Errno::ENETUNREACH));
    assert!(lock(&one.stack().unwrap().connections).is_empty());
    assert_eq!(one.stack().unwrap().openings.load(Ordering::Relaxed), 0);
}

#[test]
fn two_sandboxes_talk_by_udp_in_parts() {
    let [one, other] = two();
    let contexts = [context(&one), context(&other)];
    let sockets = [0, 1].map(|at| create(&contexts[at], [libc::AF_INET, libc::SOCK_DGRAM, 0]).unwrap());
    sockets[1].bind(&contexts[1], &address("0.0.0.0:53")).unwrap();
    for size in [0, 1, 1472, 1473, 20_000] {
        let bytes = vec![size as u8; size];
        assert_eq!(
            send_to(&contexts[0], sockets[0].as_ref(), &bytes, Some(address("10.9.0.2:53"))),
            Ok(size)
        );
        assert!(eventually(|| receive(sockets[1].as_ref(), 30_000).ok()) == bytes, "{size}");
    }
    // Nobody has the port: who is connected is told.
    sockets[0].connect(&contexts[0], &address("10.9.0.2:54")).unwrap();
    assert_eq!(send_to(&contexts[0], sockets[0].as_ref(), b"x", None), Ok(1));
    eventually(|| (receive(sockets[0].as_ref(), 9) == Err(Errno::ECONNREFUSED)).then_some(()));
}

#[test]
fn arp_is_answered_for_own_addresses_alone() {
    let (_net, far) = one();
    let ask = |ip: &str| {
        let repr = ArpRepr::EthernetIpv4 {
            operation: smoltcp::wire::ArpOperation::Request,
            source_hardware_addr: smoltcp::wire::EthernetAddress(OTHER),
            source_protocol_addr: "10.9.0.1".parse().unwrap(),
            target_hardware_addr: smoltcp::wire::EthernetAddress([0; 6]),
            target_protocol_addr: ip.parse().unwrap(),
        };
        let mut bytes = vec![0; frame::IP + repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[frame::IP..]));
        frame::address(&mut bytes, OTHER, [0xff; 6], EthernetProtocol::Arp);
        send(far.as_raw_fd(), &bytes[device::HEADER..], MsgFlags::empty()).unwrap();
    };
    let mut answers = || {
        let mut bytes = [0; 2000];
        let count = recv(far.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        let frame = EthernetFrame::new_checked(&bytes[..count]).unwrap();
        (frame.ethertype() == EthernetProtocol::Arp).then(|| frame.dst_addr().0)
    };
    ask("10.9.0.3");
    ask("10.9.0.2");
    assert_eq!(eventually(&mut answers), OTHER);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(answers(), None);
}

#[test]
fn what_cannot_be_attached() {
    let (net, far) = one();
    assert!(matches!(
        net.attach(config("eth0", "10.9.0.5"), far.try_clone().unwrap()),
        Err(AttachError::Exists(_))
    ));
    assert!(matches!(
        net.attach(config("lo", "10.9.0.5"), far.try_clone().unwrap()),
        Err(AttachError::Config(_))
    ));
    let (blocking, _) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
    assert!(matches!(net.attach(config("eth1", "10.9.1.5"), blocking), Err(AttachError::Waits(_))));
    assert!(matches!(net.detach("eth1"), Err(AttachError::Missing(_))));
    assert!(net.is_own("10.9.0.2".parse().unwrap()));
    net.configure(LinkConfig { addresses: vec![], ..config("eth0", "10.9.0.2") }).unwrap();
    assert!(!net.is_own("10.9.0.2".parse().unwrap()));
    net.detach("eth0").unwrap();
    assert!(net.interfaces().is_empty());
}

/// A router says that packets are too long: the connection that sent them, and those after it, send shorter ones (RFC 1191).
#[test]
fn packets_become_as_short_as_is_said() {
    let (net, far) = one();
    let (context, stack) = (context(&net), Arc::clone(net.stack().unwrap()));
    let to: std::net::IpAddr = "10.9.0.1".parse().unwrap();
    let client = create(&context, [libc::AF_INET, libc::SOCK_STREAM, 0]).unwrap();
    assert_eq!(client.connect(&context, &address("10.9.0.1:80")), Err(Errno::EINPROGRESS));
    let sent = eventually(|| {
        let mut bytes = [0; 2000];
        let count = recv(far.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        let frame = EthernetFrame::new_checked(&bytes[..count]).ok()?;
        (frame.ethertype() == EthernetProtocol::Ipv4).then(|| frame.payload().to_vec())
    });
    assert_eq!(stack.path(to, None).map(|path| path.mtu).ok(), Some(1500));
    let says = |quoted: &[u8], mtu: u16| {
        let [high, low] = mtu.to_be_bytes();
        let mut message = vec![3, 4, 0, 0, 0, 0, high, low];
        message.extend_from_slice(&quoted[..28]);
        let sum = frame::plain_checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let (router, own) = ("10.9.0.7".parse().unwrap(), "10.9.0.2".parse().unwrap());
        let packet = frame::Packet::new(router, own, smoltcp::wire::IpProtocol::Icmp);
        let mut bytes = Vec::new();
        let start = frame::begin(&mut bytes, &packet, message.len());
        bytes[start..].copy_from_slice(&message);
        frame::address(&mut bytes, OTHER, MAC, EthernetProtocol::Ipv4);
        send(far.as_raw_fd(), &bytes[device::HEADER..], MsgFlags::empty()).unwrap();
    };
    // Of a connection that there is not nothing is believed.
    let mut strange = sent.clone();
    strange[21] ^= 1;
    says(&strange, 900);
    says(&sent, 1000);
    eventually(|| (stack.path(to, None).ok()?.mtu == 1000).then_some(()));
    // Less than anybody needs is not believed.
    says(&sent, 100);
    eventually(|| (stack.path(to, None).ok()?.mtu == 552).then_some(()));
    client.close();
}

/// Frames that are nearly right: an Ethernet header for us, then IP headers that fit, then anything.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let rest = proptest::collection::vec(any::<u8>(), 0..200);
    (any::<[u8; 2]>(), 0u8..6, rest, any::<u8>(), any::<bool>()).prop_map(
        |(kind, shape, rest, protocol, right)| {
            let from = "10.9.0.1".parse().unwrap();
            let wide = shape % 2 == 1;
            let protocols = [1, 2, 6, 17, 58, 0, 43, 44, 60];
            let protocol = protocols.get(usize::from(protocol) % 12).copied().unwrap_or(protocol).into();
            let packet = if wide {
                Packet6::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap(), protocol)
            } else {
                Packet6::new(from, "10.9.0.2".parse().unwrap(), protocol)
            };
            let mut bytes = Vec::new();
            let start = frame::begin(&mut bytes, &packet, rest.len());
            bytes[start..].copy_from_slice(&rest);
            if shape >= 4 {
                bytes.truncate(frame::IP);
                bytes.extend(rest);
            }
            if right && rest_is_long(&bytes, start) && shape < 4 {
                seal(&mut bytes[start..], &packet);
            }
            let ethertype = match shape {
                0 | 2 => EthernetProtocol::Ipv4,
                1 | 3 => EthernetProtocol::Ipv6,
                4 => EthernetProtocol::Arp,
                _ => EthernetProtocol::from(u16::from_be_bytes(kind)),
            };
            frame::address(&mut bytes, OTHER, if shape == 2 { [0xff; 6] } else { MAC }, ethertype);
            bytes.split_off(device::HEADER)
        },
    )
}

use super::frame::Packet as Packet6;

fn rest_is_long(bytes: &[u8], start: usize) -> bool {
    bytes.len() >= start + 20
}

/// Puts right checksums, so that more of the code is reached.
fn seal(bytes: &mut [u8], packet: &Packet6) {
    use smoltcp::wire::IpProtocol::{Icmp, Icmpv6, Igmp, Tcp, Udp};
    let place = match packet.protocol {
        Tcp => 16,
        Udp => {
            let length = bytes.len() as u16;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            6
        }
        Icmp | Icmpv6 | Igmp => 2,
        _ => return,
    };
    if packet.protocol == Tcp {
        bytes[12] = bytes[12] & 0xf | 0x50;
    }
    bytes[place..place + 2].fill(0);
    let sum = if matches!(packet.protocol, Icmp | Igmp) {
        frame::plain_checksum(bytes)
    } else {
        frame::checksum(packet.from, packet.to, packet.protocol, bytes)
    };
    bytes[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_frames(frames in proptest::collection::vec(prop_oneof![
        4 => nearly(),
        1 => proptest::collection::vec(any::<u8>(), 0..200),
    ], 0..30), trusted: bool, datagrams in 0u16..50) {
        let (net, far) = one();
        let context = context(&net);
        let listener = create(&context, [libc::AF_INET6, libc::SOCK_STREAM, 0]).unwrap();
        listener.bind(&context, &address("[::]:257")).unwrap();
        listener.listen(&context, 5).unwrap();
        let stack = net.stack().unwrap();
        let link = stack.interfaces().pop().unwrap();
        for bytes in &frames {
            stack.input(&link, device::Frame { bytes, trusted, datagrams });
            let mut answer = [0; 4000];
            while recv(far.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).is_ok() {}
        }
        listener.close();
    }
}
