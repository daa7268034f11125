//! Tests of Internet sockets.

#![allow(clippy::unwrap_used)]

use super::super::Net;
use super::super::host_tests::{context, send_to};
use super::super::socket::{Receive, create, option, set_option};
use super::*;
use crate::events::Events;

fn address(text: &str) -> Address {
    Address::Inet(text.parse().unwrap())
}

fn tcp(context: &Context) -> Arc<dyn Socket> {
    create(context, [libc::AF_INET, libc::SOCK_STREAM, 0]).unwrap()
}

fn udp(context: &Context, domain: i32) -> Arc<dyn Socket> {
    create(context, [domain, libc::SOCK_DGRAM, 0]).unwrap()
}

fn listener(context: &Context, at: &str, backlog: i32) -> Arc<dyn Socket> {
    let at = address(at);
    let domain = if matches!(at, Address::Inet(at) if at.is_ipv6()) { libc::AF_INET6 } else { libc::AF_INET };
    let socket = create(context, [domain, libc::SOCK_STREAM, 0]).unwrap();
    socket.bind(context, &at).unwrap();
    socket.listen(context, backlog).unwrap();
    socket
}

/// Connects, as a blocking call would.
fn connect(context: &Context, socket: &dyn Socket, to: &Address) -> Result<(), Errno> {
    match socket.connect(context, to) {
        Err(Errno::EINPROGRESS) => socket.connected().unwrap_or(Err(Errno::EAGAIN)),
        result => result,
    }
}

fn receive(socket: &dyn Socket, most: usize, flags: i32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; most];
    let received = socket.receive(&mut bytes.as_mut_slice(), Receive { flags })?;
    bytes.truncate(received.count);
    Ok(bytes)
}

fn set(context: &Context, socket: &dyn Socket, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    set_option(socket, context, [level, name], &value.to_ne_bytes())
}

/// A client and the server's end.
pub(in super::super) fn tcp_pair(context: &Context) -> [Arc<dyn Socket>; 2] {
    let listener = listener(context, "127.0.0.1:0", 4);
    let client = tcp(context);
    connect(context, client.as_ref(), &listener.local().unwrap()).unwrap();
    let server = listener.accept().unwrap();
    listener.close();
    [client, server]
}

#[test]
fn a_connection_has_names_at_both_ends() {
    let context = context(&Net::new());
    let listener = listener(&context, "[::]:8080", 1);
    let client = tcp(&context);
    assert_eq!(client.ready(), Events::HUP | Events::OUT | Events::WRNORM);
    assert_eq!(client.connect(&context, &address("127.0.0.9:8080")), Err(Errno::EINPROGRESS));
    assert_eq!(client.connect(&context, &address("127.0.0.9:8080")), Ok(()));
    assert_eq!(client.connect(&context, &address("127.0.0.9:8080")), Err(Errno::EISCONN));
    let server = listener.accept().unwrap();
    let Address::Inet(local) = client.local().unwrap() else { panic!() };
    assert_eq!(
        (local.ip().to_string().as_str(), (32_768..61_000).contains(&local.port())),
        ("127.0.0.1", true)
    );
    assert_eq!(client.peer(), Ok(address("127.0.0.9:8080")));
    assert_eq!(server.local(), Ok(address("[::ffff:127.0.0.9]:8080")));
    assert_eq!(server.peer(), Ok(address(&format!("[::ffff:127.0.0.1]:{}", local.port()))));
    assert_eq!(listener.accept().err(), Some(Errno::EAGAIN));
}

#[test]
fn nobody_listens() {
    let context = context(&Net::new());
    let client = tcp(&context);
    assert_eq!(client.connect(&context, &address("127.0.0.1:1")), Err(Errno::EINPROGRESS));
    let ready = Events::HUP | Events::ERR | Events::OUT | Events::WRNORM;
    assert_eq!(client.ready(), ready);
    let error = option(client.as_ref(), libc::SOL_SOCKET, libc::SO_ERROR, 4).unwrap();
    assert_eq!(error, libc::ECONNREFUSED.to_ne_bytes());
    let client = tcp(&context);
    assert_eq!(connect(&context, client.as_ref(), &address("127.0.0.1:1")), Err(Errno::ECONNREFUSED));
    assert_eq!(client.connect(&context, &address("10.0.0.1:1")), Err(Errno::ENETUNREACH));
    context.net.set_addresses(vec!["10.0.0.1".parse().unwrap()]);
    let listener = listener(&context, "10.0.0.1:1", 1);
    connect(&context, client.as_ref(), &address("10.0.0.1:1")).unwrap();
    drop(listener);
}

#[test]
fn a_full_backlog_lets_wait() {
    let context = context(&Net::new());
    let listener = listener(&context, "127.0.0.1:99", 0);
    let clients = [tcp(&context), tcp(&context), tcp(&context)];
    for client in &clients {
        assert_eq!(client.connect(&context, &address("127.0.0.1:99")), Err(Errno::EINPROGRESS));
    }
    assert_eq!(clients[0].connected(), Some(Ok(())));
    assert_eq!((clients[1].connected(), clients[1].ready()), (None, Events::empty()));
    assert_eq!(clients[1].connect(&context, &address("127.0.0.1:99")), Err(Errno::EALREADY));
    listener.accept().unwrap();
    assert_eq!(clients[1].connected(), Some(Ok(())));
    listener.close();
    assert_eq!(clients[2].connected(), Some(Err(Errno::ECONNREFUSED)));
    assert_eq!(receive(clients[1].as_ref(), 1, 0), Err(Errno::ECONNRESET));
}

#[test]
fn ports_are_taken() {
    let context = context(&Net::new());
    let first = listener(&context, "127.0.0.1:80", 1);
    let bind = |at: &str, reuse: &[i32]| {
        let at = address(at);
        let domain =
            if matches!(at, Address::Inet(at) if at.is_ipv6()) { libc::AF_INET6 } else { libc::AF_INET };
        let socket = create(&context, [domain, libc::SOCK_STREAM, 0]).unwrap();
        for name in reuse {
            set(&context, socket.as_ref(), libc::SOL_SOCKET, *name, 1).unwrap();
        }
        let result = socket.bind(&context, &at);
        socket.close();
        result
    };
    assert_eq!(bind("0.0.0.0:80", &[]), Err(Errno::EADDRINUSE));
    assert_eq!(bind("0.0.0.0:80", &[libc::SO_REUSEADDR]), Err(Errno::EADDRINUSE));
    assert_eq!(bind("[::]:80", &[]), Err(Errno::EADDRINUSE));
    assert_eq!(bind("[::1]:80", &[]), Ok(()));
    assert_eq!(bind("127.0.0.2:80", &[]), Ok(()));
    assert_eq!(bind("1.2.3.4:80", &[]), Err(Errno::EADDRNOTAVAIL));
    let client = tcp(&context);
    connect(&context, client.as_ref(), &address("127.0.0.1:80")).unwrap();
    let server = first.accept().unwrap();
    first.close();
    assert_eq!(bind("127.0.0.1:80", &[]), Err(Errno::EADDRINUSE));
    // The server closes first: TIME_WAIT is its.
    server.close();
    client.close();
    assert_eq!(bind("127.0.0.1:80", &[]), Err(Errno::EADDRINUSE));
}

#[test]
fn time_wait_lets_who_reuses() {
    let context = context(&Net::new());
    let make = || {
        let socket = tcp(&context);
        set(&context, socket.as_ref(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        socket
    };
    let first = make();
    first.bind(&context, &address("0.0.0.0:80")).unwrap();
    first.listen(&context, 1).unwrap();
    let client = tcp(&context);
    connect(&context, client.as_ref(), &address("127.0.0.1:80")).unwrap();
    first.accept().unwrap().close();
    first.close();
    let second = make();
    assert_eq!(second.bind(&context, &address("0.0.0.0:80")), Ok(()));
    assert_eq!(second.bind(&context, &address("0.0.0.0:81")), Err(Errno::EINVAL));
}

#[test]
fn listeners_of_a_port_take_turns() {
    let context = context(&Net::new());
    let make = || {
        let socket = tcp(&context);
        set(&context, socket.as_ref(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
        socket.bind(&context, &address("0.0.0.0:80")).unwrap();
        socket.listen(&context, 9).unwrap();
        socket
    };
    let listeners = [make(), make()];
    let clients: Vec<_> = (0..8).map(|_| tcp(&context)).collect();
    for client in &clients {
        connect(&context, client.as_ref(), &address("127.0.0.1:80")).unwrap();
    }
    for listener in &listeners {
        assert!(listener.accept().is_ok());
    }
}

#[test]
fn resets() {
    let context = context(&Net::new());
    let [client, server] = tcp_pair(&context);
    let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    set_option(server.as_ref(), &context, [libc::SOL_SOCKET, libc::SO_LINGER], &linger).unwrap();
    assert_eq!(send_to(&context, server.as_ref(), b"last", None), Ok(4));
    server.close();
    assert_eq!(receive(client.as_ref(), 9, 0), Ok(b"last".to_vec()));
    assert_eq!(receive(client.as_ref(), 9, 0), Err(Errno::ECONNRESET));
    assert_eq!(receive(client.as_ref(), 9, 0), Ok(Vec::new()));
    assert_eq!(send_to(&context, client.as_ref(), b"x", None), Err(Errno::EPIPE));
}

/// Who sends much to a peer that closed has sent what fits when the reset comes, and not all.
#[test]
fn what_is_sent_to_nobody_is_at_most_what_fits() {
    let context = context(&Net::new());
    let [client, server] = tcp_pair(&context);
    set(&context, client.as_ref(), libc::SOL_SOCKET, libc::SO_SNDBUF, 5000).unwrap();
    set(&context, server.as_ref(), libc::SOL_SOCKET, libc::SO_RCVBUF, 5000).unwrap();
    server.close();
    assert_eq!(send_to(&context, client.as_ref(), &[0; 100_000], None), Ok(20_000));
    assert_eq!(send_to(&context, client.as_ref(), b"x", None), Err(Errno::EPIPE));
}

#[test]
fn urgent_data() {
    let context = context(&Net::new());
    let [client, server] = tcp_pair(&context);
    let send = |mut bytes: &[u8]| {
        let mut message = super::super::socket::Outgoing {
            source: &mut bytes,
            context: None,
            address: None,
            rights: None,
            sender: super::super::Identity::default(),
            controls: Vec::new(),
            flags: libc::MSG_OOB,
        };
        client.send(&mut message)
    };
    assert_eq!(send(b"ab!"), Ok(3));
    assert!(server.ready().contains(Events::PRI));
    assert_eq!((receive(server.as_ref(), 9, 0), server.at_mark()), (Ok(b"ab".to_vec()), Ok(true)));
    assert_eq!(receive(server.as_ref(), 9, libc::MSG_OOB), Ok(b"!".to_vec()));
    assert_eq!(receive(server.as_ref(), 9, 0), Err(Errno::EAGAIN));
    // Where it stands among the rest, it can be read as the rest, and then is gone.
    assert_eq!(set(&context, server.as_ref(), libc::SOL_SOCKET, libc::SO_OOBINLINE, 1), Ok(()));
    assert_eq!(send(b"cd"), Ok(2));
    assert_eq!(receive(server.as_ref(), 9, 0), Ok(b"c".to_vec()));
    assert!(server.ready().contains(Events::IN | Events::PRI));
    assert_eq!(receive(server.as_ref(), 9, 0), Ok(b"d".to_vec()));
    assert!(!server.ready().intersects(Events::IN | Events::PRI));
}

#[test]
fn options_have_ranges() {
    let context = context(&Net::new());
    let socket = tcp(&context);
    let set = |level, name, value| set(&context, socket.as_ref(), level, name, value);
    let tcp = libc::IPPROTO_TCP;
    assert_eq!(set(tcp, libc::TCP_NODELAY, 7), Ok(()));
    assert_eq!(option(socket.as_ref(), tcp, libc::TCP_NODELAY, 4), Ok(vec![1, 0, 0, 0]));
    assert_eq!(set(tcp, libc::TCP_KEEPIDLE, 0), Err(Errno::EINVAL));
    assert_eq!(set(libc::IPPROTO_IP, libc::IP_TTL, 256), Err(Errno::EINVAL));
    assert_eq!(set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1), Err(Errno::ENOPROTOOPT));
    assert_eq!(set(tcp, 9999, 1), Err(Errno::ENOPROTOOPT));
    assert_eq!(option(socket.as_ref(), tcp, libc::TCP_INFO, 232).unwrap()[0], 7);
}

#[test]
fn datagrams() {
    let context = context(&Net::new());
    let (one, other) = (udp(&context, libc::AF_INET), udp(&context, libc::AF_INET6));
    other.bind(&context, &address("[::]:53")).unwrap();
    set(&context, other.as_ref(), libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1).unwrap();
    let to = || Some(address("127.0.0.1:53"));
    assert_eq!(send_to(&context, one.as_ref(), b"query", None), Err(Errno::EDESTADDRREQ));
    assert_eq!(send_to(&context, one.as_ref(), b"query", to()), Ok(5));
    let mut bytes = [0; 3];
    let received = other.receive(&mut bytes.as_mut_slice(), Receive::default()).unwrap();
    assert_eq!((received.count, received.whole, received.flags), (3, 5, libc::MSG_TRUNC));
    assert_eq!(received.controls[0].data[10..], [0xff, 0xff, 127, 0, 0, 1, 1, 0, 0, 0]);
    let from = received.from.unwrap();
    assert_eq!(send_to(&context, other.as_ref(), b"answer", Some(from)), Ok(6));
    assert_eq!(receive(one.as_ref(), 9, 0), Ok(b"answer".to_vec()));
    // Connected: nobody else is heard, and refusals are told.
    one.connect(&context, &address("127.0.0.1:54")).unwrap();
    assert_eq!(send_to(&context, one.as_ref(), b"x", None), Ok(1));
    assert_eq!(receive(one.as_ref(), 9, 0), Err(Errno::ECONNREFUSED));
    assert_eq!(send_to(&context, one.as_ref(), b"x", Some(address("255.255.255.255:9"))), Err(Errno::EACCES));
    assert_eq!(send_to(&context, one.as_ref(), b"x", Some(address("8.8.8.8:9"))), Err(Errno::ENETUNREACH));
    assert_eq!(send_to(&context, one.as_ref(), &vec![0; 65_508], to()), Err(Errno::EMSGSIZE));
}

#[test]
fn groups() {
    let context = context(&Net::new());
    let (one, other) = (udp(&context, libc::AF_INET), udp(&context, libc::AF_INET));
    one.bind(&context, &address("0.0.0.0:5353")).unwrap();
    let membership = [224, 0, 0, 251, 127, 0, 0, 1];
    let join = [libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP];
    set_option(one.as_ref(), &context, join, &membership).unwrap();
    assert_eq!(set_option(one.as_ref(), &context, join, &membership), Err(Errno::EADDRINUSE));
    send_to(&context, other.as_ref(), b"who", Some(address("224.0.0.251:5353"))).unwrap();
    assert_eq!(receive(one.as_ref(), 9, 0), Ok(b"who".to_vec()));
}

#[test]
fn echo_answers() {
    let context = context(&Net::new());
    let socket = create(&context, [libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP]).unwrap();
    let request = [8, 0, 0, 0, 0, 0, 0, 1, b'h', b'i', b'!'];
    assert_eq!(send_to(&context, socket.as_ref(), &request, Some(address("127.0.0.1:0"))), Ok(11));
    let answer = receive(socket.as_ref(), 99, 0).unwrap();
    assert_eq!((answer[0], &answer[6..]), (0, &request[6..]));
    let Address::Inet(local) = socket.local().unwrap() else { panic!() };
    assert_eq!(answer[4..6], local.port().to_be_bytes());
}

#[test]
fn raw_sockets_need_a_capability() {
    let mut context = context(&Net::new());
    let raw = [libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP];
    assert_eq!(create(&context, [libc::AF_INET, libc::SOCK_RAW, 0]).err(), Some(Errno::EPROTONOSUPPORT));
    let socket = create(&context, raw).unwrap();
    let request = [8, 0, 0, 0, 0, 7, 0, 1, b'h', b'i'];
    assert_eq!(send_to(&context, socket.as_ref(), &request, Some(address("127.0.0.1:0"))), Ok(10));
    // The request, with its header, and the answer.
    let [asked, answered] = [0, 1].map(|_| receive(socket.as_ref(), 99, 0).unwrap());
    assert_eq!((asked[0], asked[20], &asked[24..]), (0x45, 8, &request[4..]));
    assert_eq!((answered.len(), answered[20], &answered[24..]), (30, 0, &request[4..]));
    // ICMP_FILTER: answers are not wanted.
    let filter = (1u32).to_ne_bytes();
    set_option(socket.as_ref(), &context, [libc::IPPROTO_RAW, 1], &filter).unwrap();
    assert_eq!(option(socket.as_ref(), libc::IPPROTO_RAW, 1, 4).as_deref(), Ok(filter.as_slice()));
    send_to(&context, socket.as_ref(), &request, Some(address("127.0.0.1:0"))).unwrap();
    assert_eq!(receive(socket.as_ref(), 99, 0).map(|bytes| bytes[20]), Ok(8));
    assert_eq!(receive(socket.as_ref(), 99, 0), Err(Errno::EAGAIN));
    socket.close();
    let mut credentials = crate::task::Credentials::root();
    credentials.effective = crate::task::Capabilities(0);
    context.caller.credentials = Arc::new(credentials);
    assert_eq!(create(&context, raw).err(), Some(Errno::EPERM));
    assert_eq!(create(&context, [libc::AF_PACKET, libc::SOCK_RAW, 3]).err(), Some(Errno::EPERM));
    assert_eq!(tcp(&context).bind(&context, &address("127.0.0.1:80")), Err(Errno::EACCES));
}

#[test]
fn texts_of_proc() {
    let context = context(&Net::new());
    let _listener = listener(&context, "127.0.0.1:8080", 1);
    let text = String::from_utf8(super::super::proc::tcp(&context.net)).unwrap();
    assert!(text.lines().nth(1).unwrap().starts_with("   0: 0100007F:1F90 00000000:0000 0A "), "{text}");
    assert_eq!(super::super::proc::tcp6(&context.net).iter().filter(|byte| **byte == b'\n').count(), 1);
}
