//! What each end does when the other is not what it should be.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::channel::{Channel, pair};
use super::client::Client;
use super::program;
use super::wire::{Access, At, Made, Malformed, Reader, Request, Want, failure};
use crate::error::Errno;
use crate::vfs::{AttributeChange, FileKind, RenameMode, Timestamp, XattrMode};

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![1u8..b'/', b'0'..=255], 1..255)
        .prop_filter("a name", |name| name != b"." && name != b"..")
}

fn at() -> impl Strategy<Value = At> {
    (any::<u64>(), prop::collection::vec(name(), 0..8)).prop_map(|(handle, names)| At { handle, names })
}

fn stamp() -> impl Strategy<Value = Option<Timestamp>> {
    prop::option::of((any::<i64>(), 0u32..1_000_000_000))
        .prop_map(|stamp| stamp.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds }))
}

fn made() -> impl Strategy<Value = Made> {
    (0u32..0o10000, any::<u32>(), any::<u32>(), prop::option::of(name())).prop_map(
        |(mode, uid, gid, target)| {
            let kind = if target.is_some() { FileKind::Symlink } else { FileKind::Fifo };
            Made { kind, mode, uid, gid, rdev: 7, target: target.unwrap_or_default() }
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let mode = prop::sample::select(vec![RenameMode::Replace, RenameMode::Keep, RenameMode::Exchange]);
    let want = prop::sample::select(vec![
        Want::Nothing,
        Want::Handle,
        Want::Open(Access::Read),
        Want::Open(Access::Write),
        Want::Peek,
    ]);
    let change = (prop::option::of(0u32..0o10000), prop::option::of(0u64..1 << 40), stamp(), stamp());
    let value = prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        any::<u32>().prop_map(Request::Attach),
        prop::collection::vec(any::<u64>(), 0..100).prop_map(Request::Close),
        (at(), want).prop_map(|(at, want)| Request::Walk(at, want)),
        (at(), any::<u32>()).prop_map(|(at, attributes)| Request::List { at, attributes }),
        (at(), name()).prop_map(|(at, name)| Request::Xattr(at, name)),
        (any::<u64>(), name(), made()).prop_map(|(folder, name, made)| Request::Create {
            folder,
            name,
            made
        }),
        (any::<u64>(), name(), any::<u64>(), name(), mode).prop_map(|(folder, name, to, to_name, mode)| {
            Request::Rename { folder, name, to, to_name, mode }
        }),
        (any::<u64>(), change).prop_map(|(handle, (mode, size, accessed, modified))| {
            let change = AttributeChange { mode, uid: mode, gid: None, size, accessed, modified };
            Request::Change(handle, change)
        }),
        (any::<u64>(), name(), value).prop_map(|(at, name, value)| Request::SetXattr {
            at,
            name,
            value,
            mode: XattrMode::Create
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_arrive_as_they_were_sent(request in request()) {
        let bytes = request.encode();
        let again = Request::decode(&bytes).unwrap();
        prop_assert_eq!(format!("{request:?}"), format!("{again:?}"));
        // Nothing may be left over, and nothing be missing.
        prop_assert!(Request::decode(&[&bytes[..], &[0]].concat()).is_err());
        prop_assert!(Request::decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn garbage_is_no_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(&bytes);
        let mut reader = Reader::new(&bytes);
        while reader.listed().is_ok() {}
    }
}

#[test]
fn names_that_lead_elsewhere_are_none() {
    for wrong in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'a'; 256]] {
        let at = At { handle: 1, names: vec![wrong.to_vec()] };
        let (name, to_name) = (wrong.to_vec(), b"a".to_vec());
        for request in [
            Request::Walk(at.clone(), Want::Nothing),
            Request::List { at, attributes: 0 },
            Request::Unlink { folder: 1, name: name.clone(), as_folder: false },
            Request::Link { folder: 1, name: name.clone(), file: 2 },
            Request::Rename { folder: 1, name: to_name, to: 1, to_name: name, mode: RenameMode::Replace },
        ] {
            assert_eq!(Request::decode(&request.encode()).err(), Some(Malformed), "{request:?}");
        }
    }
}

/// A gofer that gives connections, and these bytes for anything else.
fn liar(answer: Vec<u8>, file: bool) -> OwnedFd {
    let (ours, theirs) = pair().unwrap();
    let channel = Channel::new(theirs);
    channel.send(&program::ready(), None).unwrap();
    std::thread::spawn(move || lie(channel, &answer, file));
    ours
}

fn lie(mut channel: Channel, answer: &[u8], file: bool) {
    let file = file.then(|| tempfile::tempfile().unwrap());
    let file = file.as_ref().map(std::os::fd::AsFd::as_fd);
    std::thread::scope(|scope| {
        while let Ok(Some(message)) = channel.receive() {
            let sent = if message.bytes == Request::Connect.encode() {
                let (one, two) = pair().unwrap();
                scope.spawn(move || lie(Channel::new(two), answer, file.is_some()));
                channel.send(&[0], Some(std::os::fd::AsFd::as_fd(&one)))
            } else {
                channel.send(answer, file)
            };
            if sent.is_err() {
                break;
            }
        }
    });
}

/// Whatever comes instead of an answer, all requests fail from then on, at once.
#[test]
fn an_answer_that_is_none_is_an_error_for_ever() {
    let errno = |number: u32| [&[1][..], &number.to_le_bytes()].concat();
    for (answer, file) in [
        (vec![7], false),
        (vec![0], false),
        (vec![0; 500], false),
        (vec![0xff; 60_000], false),
        (failure(Errno::ENOENT), true),
        (errno(0), false),
        (errno(100_000), false),
        ([errno(2), vec![0]].concat(), false),
    ] {
        let client = Client::connect(liar(answer.clone(), file)).unwrap();
        assert_eq!(client.attach(0).err(), Some(Errno::EIO), "{answer:?}");
        assert!(client.is_lost());
        assert_eq!(client.list(At::handle(1), 0).err(), Some(Errno::EIO));
        assert_eq!(client.open(At::handle(1), Access::Read).err(), Some(Errno::EIO));
    }
    // What is no lie is told.
    let client = Client::connect(liar(failure(Errno::ENOENT), false)).unwrap();
    assert_eq!(client.attach(0).err(), Some(Errno::ENOENT));
    assert!(!client.is_lost());
}

#[test]
fn a_gofer_that_is_silent_is_not_waited_for_without_end() {
    let (ours, theirs) = pair().unwrap();
    let begin = Instant::now();
    let error = Client::connect_with(ours, Duration::from_millis(50)).err().unwrap();
    assert!(error.to_string().contains("no answer came"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(theirs);
    let (ours, theirs) = pair().unwrap();
    drop(theirs);
    assert!(Client::connect(ours).err().unwrap().to_string().contains("it ended"));
}

/// A gofer that goes ends what waits for it.
#[test]
fn all_who_wait_are_told_when_it_goes() {
    let (ours, theirs) = pair().unwrap();
    let gofer = std::thread::spawn(move || {
        let mut channel = Channel::new(theirs);
        channel.send(&program::ready(), None).unwrap();
        let mut others = Vec::new();
        while let Ok(Some(_)) = channel.receive() {
            if others.len() == 3 {
                break;
            }
            let (one, two) = pair().unwrap();
            others.push(two);
            channel.send(&[0], Some(std::os::fd::AsFd::as_fd(&one))).unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
    });
    let client = Client::connect(ours).unwrap();
    std::thread::scope(|scope| {
        let ask = || assert_eq!(client.attach(0).err(), Some(Errno::EIO));
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
        drop(gofer);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_request_that_is_none_ends_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let root = OwnedFd::from(std::fs::File::open(folder.path()).unwrap());
    for wrong in [
        vec![200],
        vec![0],
        vec![0; 100],
        Request::Walk(At { handle: 1, names: vec![b"..".to_vec()] }, Want::Nothing).encode(),
    ] {
        let socket = super::within(root.try_clone().unwrap(), true).unwrap();
        let mut channel = Channel::new(socket);
        channel.receive().unwrap().unwrap();
        channel.send(&wrong, None).unwrap();
        assert!(matches!(channel.receive(), Ok(None) | Err(Errno::ECONNRESET)), "{wrong:?}");
    }
}
