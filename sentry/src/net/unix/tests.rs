//! Tests of UNIX sockets.

#![allow(clippy::unwrap_used)]

use super::super::control::Rights;
use super::super::host_tests::{context, send_to};
use super::super::socket::{Receive, SocketFile, create, create_pair};
use super::super::{Identity, Net};
use super::*;
use crate::events::Events;

fn unix(context: &Context, kind: i32) -> Arc<dyn Socket> {
    create(context, [libc::AF_UNIX, kind, 0]).unwrap()
}

fn path(text: &str) -> Address {
    Address::Unix(UnixName::Path(text.as_bytes().to_vec()))
}

fn receive(socket: &dyn Socket, most: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; most];
    let received = socket.receive(&mut bytes.as_mut_slice(), Receive::default())?;
    bytes.truncate(received.count);
    Ok(bytes)
}

#[test]
fn connects_by_path() {
    let context = context(&Net::new());
    let listener = unix(&context, libc::SOCK_STREAM);
    assert_eq!(listener.listen(&context, 1), Err(Errno::EINVAL));
    listener.bind(&context, &path("/s")).unwrap();
    assert_eq!(listener.bind(&context, &path("/t")), Err(Errno::EINVAL));
    assert_eq!(unix(&context, libc::SOCK_STREAM).bind(&context, &path("/s")), Err(Errno::EADDRINUSE));
    let client = unix(&context, libc::SOCK_STREAM);
    assert_eq!(client.connect(&context, &path("/s")), Err(Errno::ECONNREFUSED));
    assert_eq!(client.connect(&context, &path("/none")), Err(Errno::ENOENT));
    listener.listen(&context, 0).unwrap();
    assert_eq!(unix(&context, libc::SOCK_DGRAM).connect(&context, &path("/s")), Err(Errno::EPROTOTYPE));
    client.connect(&context, &path("/s")).unwrap();
    assert_eq!(client.connect(&context, &path("/s")), Err(Errno::EISCONN));
    assert_eq!(unix(&context, libc::SOCK_STREAM).connect(&context, &path("/s")), Err(Errno::EAGAIN));
    assert!(listener.ready().contains(Events::IN));
    let server = listener.accept().unwrap();
    assert_eq!((server.local(), client.peer()), (Ok(path("/s")), Ok(path("/s"))));
    assert_eq!(server.peer(), Ok(Address::Unix(UnixName::Unnamed)));
    assert_eq!(server.peer_identity().map(|identity| identity.uid), Some(0));
    assert_eq!(send_to(&context, client.as_ref(), b"hello", None), Ok(5));
    assert_eq!(receive(server.as_ref(), 9), Ok(b"hello".to_vec()));
    listener.close();
    let late = unix(&context, libc::SOCK_STREAM);
    assert_eq!(late.connect(&context, &path("/s")), Err(Errno::ECONNREFUSED));
}

#[test]
fn abstract_names_and_automatic_ones() {
    let context = context(&Net::new());
    let name = Address::Unix(UnixName::Abstract(b"a\0b".to_vec()));
    let one = unix(&context, libc::SOCK_DGRAM);
    one.bind(&context, &name).unwrap();
    let other = unix(&context, libc::SOCK_DGRAM);
    assert_eq!(other.bind(&context, &name), Err(Errno::EADDRINUSE));
    other.bind(&context, &Address::Unix(UnixName::Unnamed)).unwrap();
    assert_eq!(other.local(), Ok(Address::Unix(UnixName::Abstract(b"00000".to_vec()))));
    assert_eq!(send_to(&context, other.as_ref(), b"x", Some(name.clone())), Ok(1));
    let mut bytes = [0; 4];
    let received = one.receive(&mut bytes.as_mut_slice(), Receive::default()).unwrap();
    assert_eq!((received.count, received.from), (1, other.local().ok()));
    one.close();
    assert_eq!(send_to(&context, other.as_ref(), b"x", Some(name.clone())), Err(Errno::ECONNREFUSED));
    unix(&context, libc::SOCK_DGRAM).bind(&context, &name).unwrap();
}

#[test]
fn a_receiver_takes_eleven_messages_of_others() {
    let context = context(&Net::new());
    let one = unix(&context, libc::SOCK_DGRAM);
    one.bind(&context, &path("/d")).unwrap();
    let other = unix(&context, libc::SOCK_DGRAM);
    other.connect(&context, &path("/d")).unwrap();
    for _ in 0..11 {
        assert_eq!(send_to(&context, other.as_ref(), b"x", None), Ok(1));
    }
    assert_eq!(send_to(&context, other.as_ref(), b"x", None), Err(Errno::EAGAIN));
    assert!(!other.ready().contains(Events::OUT));
    receive(one.as_ref(), 1).unwrap();
    assert!(other.ready().contains(Events::OUT));
    assert_eq!(send_to(&context, other.as_ref(), &vec![0; 212_961], None), Err(Errno::EMSGSIZE));
}

/// Sends a socket's file through another.
fn send_file(
    context: &Context,
    through: &dyn Socket,
    file: &Arc<crate::vfs::OpenFile>,
) -> Result<usize, Errno> {
    let rights = Rights::new(vec![Arc::clone(file)], &context.net.flight)?;
    let mut bytes = b"f".as_slice();
    through.send(&mut Outgoing {
        source: &mut bytes,
        context: Some(context),
        address: None,
        rights: Some(rights),
        sender: Identity::default(),
        controls: Vec::new(),
        flags: 0,
    })
}

#[test]
fn files_end_what_is_received_with_them() {
    let context = context(&Net::new());
    let [one, other] = create_pair(&context, [libc::AF_UNIX, libc::SOCK_STREAM, 0]).unwrap();
    let file = SocketFile::open(unix(&context, libc::SOCK_STREAM), false);
    send_to(&context, one.as_ref(), b"before", None).unwrap();
    send_file(&context, one.as_ref(), &file).unwrap();
    send_to(&context, one.as_ref(), b"after", None).unwrap();
    assert_eq!(context.net.flight.used(), 1);
    let mut bytes = [0; 99];
    let received = other.receive(&mut bytes.as_mut_slice(), Receive { flags: libc::MSG_PEEK }).unwrap();
    assert_eq!((received.count, received.peeked.len(), context.net.flight.used()), (7, 1, 1));
    let received = other.receive(&mut bytes.as_mut_slice(), Receive::default()).unwrap();
    assert_eq!((received.count, received.boundary), (7, true));
    assert!(received.rights.is_some_and(|rights| Arc::ptr_eq(&rights.files()[0], &file)));
    assert_eq!(context.net.flight.used(), 0);
    assert_eq!(receive(other.as_ref(), 99), Ok(b"after".to_vec()));
}

#[test]
fn files_in_flight_are_closed_one_by_one() {
    let context = context(&Net::new());
    let pair = || {
        let pair = create_pair(&context, [libc::AF_UNIX, libc::SOCK_STREAM, 0]).unwrap();
        pair.map(|socket| SocketFile::open(socket, false))
    };
    let [mut one, mut other] = pair();
    for _ in 0..10_000 {
        let [next, next_other] = pair();
        // Both ends of the last go through the next.
        for file in [&one, &other] {
            let through = next.downcast::<SocketFile>().unwrap().socket();
            send_file(&context, through.as_ref(), file).unwrap();
        }
        (one, other) = (next, next_other);
        if context.net.flight.used() > 16_000 {
            break;
        }
    }
    drop((one, other));
    assert_eq!((context.net.flight.used(), context.net.bytes.used()), (0, 0));
    assert_eq!(context.net.sockets.used(), 0);
}

#[test]
fn read_and_write() {
    let context = context(&Net::new());
    let pair = create_pair(&context, [libc::AF_UNIX, libc::SOCK_STREAM, 0]).unwrap();
    let [one, other] = pair.map(|socket| SocketFile::open(socket, false));
    let (one, other) = (one.file(), other.file());
    assert_eq!(other.read(&mut [], 0), Ok(0));
    assert_eq!(one.write(b"abc", 0), Ok(3));
    assert_eq!((other.available(), other.read(&mut [0; 2], 0), other.available()), (Ok(3), Ok(2), Ok(1)));
    let text = String::from_utf8(super::super::proc::unix(&context.net)).unwrap();
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn what_is_not_there() {
    let context = context(&Net::new());
    let make = |kind: [i32; 3]| create(&context, kind).err();
    assert_eq!(make([libc::AF_UNIX, libc::SOCK_STREAM, 5]), Some(Errno::EPROTONOSUPPORT));
    assert_eq!(make([libc::AF_UNIX, libc::SOCK_RDM, 0]), Some(Errno::ESOCKTNOSUPPORT));
    assert_eq!(make([libc::AF_VSOCK, libc::SOCK_STREAM, 0]), Some(Errno::EAFNOSUPPORT));
    assert_eq!(make([libc::AF_NETLINK, libc::SOCK_RAW, 9]), Some(Errno::EPROTONOSUPPORT));
    let pair = create_pair(&context, [libc::AF_INET, libc::SOCK_STREAM, 0]).err();
    assert_eq!((pair, context.net.sockets.used()), (Some(Errno::EOPNOTSUPP), 0));
}
