//! The same operations on our sockets and on the host's: the same results.

#![allow(clippy::unwrap_used)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{self as host, AddressFamily, MsgFlags, Shutdown, SockFlag, SockType};
use proptest::prelude::*;

use super::*;
use crate::error::Errno;
use crate::vfs::{Caller, FsContext};

/// Two ends of ours, two of the host's.
type Pairs = ([Option<Arc<dyn Socket>>; 2], [Option<OwnedFd>; 2], Context);

#[derive(Debug, Clone)]
enum Operation {
    Send(bool, usize),
    Receive(bool, usize, bool),
    Shutdown(bool, u8),
    Close(bool),
    Ready(bool),
}

fn operation() -> impl Strategy<Value = Operation> {
    let size = prop_oneof![0usize..20, 1usize..5000];
    prop_oneof![
        4 => (any::<bool>(), size.clone()).prop_map(|(end, size)| Operation::Send(end, size)),
        4 => (any::<bool>(), 1usize..6000, any::<bool>())
            .prop_map(|(end, size, peek)| Operation::Receive(end, size, peek)),
        1 => (any::<bool>(), 0u8..3).prop_map(|(end, how)| Operation::Shutdown(end, how)),
        1 => any::<bool>().prop_map(Operation::Close),
        3 => any::<bool>().prop_map(Operation::Ready),
    ]
}

/// What an operation gave. Whether there is room to write is not compared: how much a message counts for is Linux' own affair.
type Outcome = Result<(usize, Vec<u8>), Errno>;

fn content(size: usize, step: usize) -> Vec<u8> {
    (0..size).map(|at| ((at + step) % 251) as u8).collect()
}

pub(super) fn context(net: &Arc<Net>) -> Context {
    let fs = FsContext::default();
    Context { net: Arc::clone(net), caller: Caller::root(), root: fs.root(), cwd: fs.cwd() }
}

pub(super) fn send_to(
    context: &Context,
    socket: &dyn Socket,
    mut bytes: &[u8],
    address: Option<address::Address>,
) -> Result<usize, Errno> {
    socket.send(&mut Outgoing {
        source: &mut bytes,
        context: Some(context),
        address,
        rights: None,
        sender: Identity::default(),
        controls: Vec::new(),
        flags: 0,
    })
}

fn ours(
    context: &Context,
    ends: &mut [Option<Arc<dyn Socket>>; 2],
    step: usize,
    operation: &Operation,
) -> Option<Outcome> {
    let end = |end: bool| ends[usize::from(end)].clone();
    Some(match operation {
        Operation::Send(which, size) => {
            let socket = end(*which)?;
            send_to(context, socket.as_ref(), &content(*size, step), None).map(|count| (count, Vec::new()))
        }
        Operation::Receive(which, size, peek) => {
            let mut bytes = vec![0; *size];
            let flags = libc::MSG_DONTWAIT | if *peek { libc::MSG_PEEK } else { 0 };
            let result = end(*which)?.receive(&mut bytes.as_mut_slice(), Receive { flags });
            result.map(|received| {
                bytes.truncate(received.count);
                (received.count, bytes)
            })
        }
        Operation::Shutdown(which, how) => end(*which)?.shutdown(i32::from(*how)).map(|()| (0, Vec::new())),
        Operation::Close(which) => {
            ends[usize::from(*which)].take()?.close();
            Ok((0, Vec::new()))
        }
        Operation::Ready(which) => {
            let ready = end(*which)?.ready().bits() & 0x1b;
            Ok((ready as usize, Vec::new()))
        }
    })
}

fn theirs(ends: &mut [Option<OwnedFd>; 2], step: usize, operation: &Operation) -> Option<Outcome> {
    let fd = |ends: &[Option<OwnedFd>; 2], end: bool| ends[usize::from(end)].as_ref().map(AsRawFd::as_raw_fd);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Some(match operation {
        Operation::Send(which, size) => {
            host::send(fd(ends, *which)?, &content(*size, step), flags).map(|count| (count, Vec::new()))
        }
        Operation::Receive(which, size, peek) => {
            let mut bytes = vec![0; *size];
            let peek = if *peek { MsgFlags::MSG_PEEK } else { MsgFlags::empty() };
            host::recv(fd(ends, *which)?, &mut bytes, flags | peek).map(|count| {
                bytes.truncate(count);
                (count, bytes)
            })
        }
        Operation::Shutdown(which, how) => {
            let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(*how)];
            host::shutdown(fd(ends, *which)?, how).map(|()| (0, Vec::new()))
        }
        Operation::Close(which) => {
            ends[usize::from(*which)].take()?;
            Ok((0, Vec::new()))
        }
        Operation::Ready(which) => {
            use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
            let end = ends[usize::from(*which)].as_ref()?;
            let all = PollFlags::from_bits_retain(0x1b);
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(end), all)];
            let _ = poll(&mut fds, PollTimeout::ZERO);
            let ready = fds[0].revents().map_or(0, |events| events.bits());
            Ok((usize::from(ready.unsigned_abs()), Vec::new()))
        }
    })
}

fn unix_pairs(kind: i32, host_kind: SockType) -> Pairs {
    let context = context(&Net::new());
    let pair = create_pair(&context, [libc::AF_UNIX, kind, 0]).unwrap();
    let (one, other) =
        host::socketpair(AddressFamily::Unix, host_kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (pair.map(Some), [Some(one), Some(other)], context)
}

fn tcp_pairs() -> Pairs {
    let context = context(&Net::new());
    let pair = super::inet::tests::tcp_pair(&context);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    // Else Nagle's algorithm decides when something arrives.
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (pair.map(Some), [Some(client.into()), Some(server.into())], context)
}

fn compare((mut own, mut host, context): Pairs, operations: &[Operation]) {
    for (step, operation) in operations.iter().enumerate() {
        let here = ours(&context, &mut own, step, operation);
        let there = theirs(&mut host, step, operation);
        assert_eq!(here, there, "step {step}: {operation:?}");
    }
    own.iter().flatten().for_each(|socket| socket.close());
    assert_eq!((context.net.bytes.used(), context.net.flight.used()), (0, 0));
}

/// Without [`Operation::Close`].
fn open_operation() -> impl Strategy<Value = Operation> {
    operation().prop_filter("nobody closes", |operation| !matches!(operation, Operation::Close(_)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn unix_streams(operations in proptest::collection::vec(operation(), 0..30)) {
        compare(unix_pairs(libc::SOCK_STREAM, SockType::Stream), &operations);
    }

    #[test]
    fn unix_packets(operations in proptest::collection::vec(operation(), 0..30)) {
        compare(unix_pairs(libc::SOCK_SEQPACKET, SockType::SeqPacket), &operations);
    }

    #[test]
    fn unix_datagrams(operations in proptest::collection::vec(operation(), 0..30)) {
        compare(unix_pairs(libc::SOCK_DGRAM, SockType::Datagram), &operations);
    }

    /// Without closing: what a second RST leaves behind depends on when the host's kernel sends it.
    #[test]
    fn tcp_connections(operations in proptest::collection::vec(open_operation(), 0..30)) {
        compare(tcp_pairs(), &operations);
    }
}
