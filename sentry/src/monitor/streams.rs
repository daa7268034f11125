//! The socket by which clients give the descriptors that a process is to have as its streams (`docs/sentry.md`, "Streams").
//!
//! One request and one answer on each connection: a line of JSON each, with descriptors beside it. What was given waits for the process.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::{SFlag, fstat};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::images;
use super::table::{TableError, check_id};
use super::terminal;
use super::work::Monitor;

/// Longest request.
const LINE_MAX: usize = 4096;
/// Descriptors of a process besides its streams.
pub(crate) const MORE_MAX: usize = 32;
/// How long a request may take to arrive.
const ARRIVES: Duration = Duration::from_secs(10);
/// How long descriptors wait for their process.
const KEPT: Duration = Duration::from_secs(120);
/// Processes whose descriptors wait.
const PARKED_MAX: usize = 256;

/// Why descriptors are not taken.
#[derive(Debug, Error)]
pub(crate) enum StreamsError {
    /// It is no request.
    #[error("{0}")]
    Request(String),
    /// A name is none.
    #[error(transparent)]
    Id(#[from] TableError),
    /// Of the host.
    #[error("{what}: {error}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        error: std::io::Error,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    container: String,
    #[serde(default)]
    exec: String,
    #[serde(default)]
    streams: Vec<Name>,
    #[serde(default)]
    terminal: bool,
    /// How many of the descriptors, the last ones, the process is to have from 3 on.
    #[serde(default)]
    more: usize,
    #[serde(default)]
    image: Option<Image>,
    /// Whether it is asked how far what is done with the image has come.
    #[serde(default)]
    progress: bool,
}

/// What is to be done with the image that comes.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Image {
    /// The container is written to it, and ends when it is kept.
    Checkpoint,
    /// The same, and it goes on.
    LeaveRunning,
    /// The container, when it is made, is made of it.
    Restore,
}

/// In place of the name of an exec: the image of a container that is to be restored.
pub(crate) const IMAGE: &str = "\0image";

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Stdin,
    Stdout,
    Stderr,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reply<'a> {
    Ok(bool),
    Written(bool),
    Progress(u64),
    Error(&'a str),
}

/// What a process gets.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) streams: GivenStreams,
    /// What it has from 3 on.
    pub(crate) more: Vec<OwnedFd>,
}

/// Its streams.
#[derive(Debug)]
pub(crate) enum GivenStreams {
    /// Input, output and errors, as far as they were given.
    Plain([Option<OwnedFd>; 3]),
    /// The slave of a terminal of the host.
    Terminal(OwnedFd),
    /// No stream: the image that a container is restored from.
    Image(OwnedFd),
}

/// What a request came to.
enum Handled {
    /// It waits for its process. The master of a terminal, where one was made.
    Parked(Option<OwnedFd>),
    /// A container is to be written to a file.
    Checkpoint { container: String, image: OwnedFd, goes_on: bool },
    /// How far has it come?
    Progress(String),
}

/// What waits for its process.
#[derive(Default)]
pub(crate) struct Parked(Mutex<HashMap<(String, String), (Instant, Given)>>);

impl Parked {
    fn put(&self, container: String, exec: String, given: Given) -> Result<(), StreamsError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (since, _)| since.elapsed() < KEPT);
        let key = (container, exec);
        if all.len() >= PARKED_MAX && !all.contains_key(&key) {
            return Err(StreamsError::Request(format!("{PARKED_MAX} processes are waited for already")));
        }
        all.insert(key, (Instant::now(), given));
        Ok(())
    }

    /// What was given for a process.
    pub(crate) fn take(&self, container: &str, exec: &str) -> Option<Given> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, given) = all.remove(&(container.to_owned(), exec.to_owned()))?;
        (since.elapsed() < KEPT).then_some(given)
    }

    /// Whether anything waits.
    pub(crate) fn any(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Closes what nobody took in time.
    pub(crate) fn sweep(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (since, _)| since.elapsed() < KEPT);
    }
}

/// Serves one connection.
pub(crate) async fn serve(connection: UnixStream, monitor: &Monitor) {
    let parked = &monitor.parked;
    let handled = match tokio::time::timeout(ARRIVES, receive(&connection)).await {
        Ok(received) => received.and_then(|(line, descriptors)| handle(&line, descriptors, parked)),
        Err(_) => Err(StreamsError::Request(format!("no whole request within {ARRIVES:?}"))),
    };
    let handled = match handled {
        Ok(Handled::Parked(master)) => Ok((Reply::Ok(true), master)),
        Ok(Handled::Checkpoint { container, image, goes_on }) => {
            let saved = images::checkpoint(&connection, monitor, &container, (image, goes_on)).await;
            saved.map(|()| (Reply::Ok(true), None))
        }
        Ok(Handled::Progress(container)) => match monitor.progress(&container).await {
            Ok(moved) => Ok((Reply::Progress(moved), None)),
            Err(error) => Err(StreamsError::Request(error.to_string())),
        },
        Err(error) => Err(error),
    };
    let answered = match handled {
        Ok((reply, master)) => answer(&connection, &reply, master.as_ref()).await,
        Err(error) => {
            tracing::warn!(%error, "what came by the streams socket is refused");
            answer(&connection, &Reply::Error(&error.to_string()), None).await
        }
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "who gave streams has gone away");
    }
}

/// Sends a line, with a descriptor where there is one.
pub(super) async fn answer(
    connection: &UnixStream,
    reply: &Reply<'_>,
    master: Option<&OwnedFd>,
) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    let numbers: Vec<RawFd> = master.iter().map(|fd| fd.as_raw_fd()).collect();
    let answered = connection.async_io(Interest::WRITABLE, || {
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(&line)], control, flags, None)?)
    });
    answered.await.map(drop)
}

/// A line and what came with it.
pub(super) async fn receive(connection: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>), StreamsError> {
    let host = |error| StreamsError::Host { what: "reading the request", error };
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let (bytes, came) =
            connection.async_io(Interest::READABLE, || part(connection)).await.map_err(host)?;
        if bytes.is_empty() {
            return Err(StreamsError::Request("the request is no whole line".to_owned()));
        }
        line.extend(bytes);
        descriptors.extend(came);
        if line.len() > LINE_MAX {
            return Err(StreamsError::Request(format!("the request is longer than {LINE_MAX} bytes")));
        }
        if descriptors.len() > 3 + MORE_MAX {
            let text = format!("more than three and {MORE_MAX} descriptors came");
            return Err(StreamsError::Request(text));
        }
        if line.last() == Some(&b'\n') {
            return Ok((line, descriptors));
        }
    }
}

fn part(connection: &UnixStream) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // Room for one more than there may be, so that too many are seen.
    let mut room = nix::cmsg_space!([RawFd; 4 + MORE_MAX]);
    let mut bytes = vec![0; LINE_MAX + 1];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let received = recvmsg::<()>(connection.as_raw_fd(), &mut slices, Some(&mut room), flags)?;
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel has just made these descriptors for this process.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    let count = received.bytes;
    bytes.truncate(count);
    Ok((bytes, descriptors))
}

/// Does what a request asks. The master of a terminal that was made for it.
fn handle(line: &[u8], mut descriptors: Vec<OwnedFd>, parked: &Parked) -> Result<Handled, StreamsError> {
    let request: Request = serde_json::from_slice(line)
        .map_err(|error| StreamsError::Request(format!("the request is none: {error}")))?;
    check_id(&request.container)?;
    if !request.exec.is_empty() {
        check_id(&request.exec)?;
    }
    if request.progress {
        return match descriptors.is_empty() {
            true => Ok(Handled::Progress(request.container)),
            false => Err(StreamsError::Request("who asks for progress gives no descriptors".to_owned())),
        };
    }
    if let Some(what) = request.image {
        return image(request, what, descriptors, parked);
    }
    let Some(streams) = descriptors.len().checked_sub(request.more).filter(|_| request.more <= MORE_MAX)
    else {
        let text =
            format!("{} further descriptors are told of, and {} came", request.more, descriptors.len());
        return Err(StreamsError::Request(text));
    };
    let more = descriptors.split_off(streams);
    more.iter().try_for_each(check)?;
    let (streams, master) = match request.terminal {
        true => terminal(&request, descriptors)?,
        false => (plain(&request, descriptors)?, None),
    };
    parked.put(request.container, request.exec, Given { streams, more })?;
    Ok(Handled::Parked(master))
}

/// An image: a regular file, by one descriptor, and nothing else.
fn image(
    request: Request,
    what: Image,
    mut descriptors: Vec<OwnedFd>,
    parked: &Parked,
) -> Result<Handled, StreamsError> {
    let alone =
        request.exec.is_empty() && request.streams.is_empty() && request.more == 0 && !request.terminal;
    let (Some(image), true, true) = (descriptors.pop(), descriptors.is_empty(), alone) else {
        let text = "an image is one descriptor, of a container, without streams";
        return Err(StreamsError::Request(text.to_owned()));
    };
    let host = |errno: nix::errno::Errno| StreamsError::Host { what: "the image", error: errno.into() };
    let mode = SFlag::from_bits_truncate(fstat(image.as_fd()).map_err(host)?.st_mode & SFlag::S_IFMT.bits());
    if mode != SFlag::S_IFREG {
        return Err(StreamsError::Request("the image is no regular file".to_owned()));
    }
    let container = request.container;
    if what == Image::Restore {
        let given = Given { streams: GivenStreams::Image(image), more: Vec::new() };
        parked.put(container, IMAGE.to_owned(), given)?;
        return Ok(Handled::Parked(None));
    }
    Ok(Handled::Checkpoint { container, image, goes_on: what == Image::LeaveRunning })
}

fn plain(request: &Request, descriptors: Vec<OwnedFd>) -> Result<GivenStreams, StreamsError> {
    if request.streams.len() != descriptors.len() {
        let text = format!(
            "{} streams are named, and {} descriptors came",
            request.streams.len(),
            descriptors.len()
        );
        return Err(StreamsError::Request(text));
    }
    let mut places = [None, None, None];
    for (name, descriptor) in request.streams.iter().zip(descriptors) {
        check(&descriptor)?;
        let place = &mut places[*name as usize];
        if place.replace(descriptor).is_some() {
            return Err(StreamsError::Request("a stream is named twice".to_owned()));
        }
    }
    Ok(GivenStreams::Plain(places))
}

/// A folder of the host would lead to others.
fn check(descriptor: &OwnedFd) -> Result<(), StreamsError> {
    let host = |errno: nix::errno::Errno| StreamsError::Host { what: "a descriptor", error: errno.into() };
    let kind =
        SFlag::from_bits_truncate(fstat(descriptor.as_fd()).map_err(host)?.st_mode & SFlag::S_IFMT.bits());
    let known = [SFlag::S_IFIFO, SFlag::S_IFSOCK, SFlag::S_IFREG, SFlag::S_IFCHR];
    // An anonymous inode (an eventfd) has none.
    if known.contains(&kind) || kind.is_empty() {
        return Ok(());
    }
    Err(StreamsError::Request("a descriptor is neither file, pipe, socket nor terminal".to_owned()))
}

fn terminal(
    request: &Request,
    mut descriptors: Vec<OwnedFd>,
) -> Result<(GivenStreams, Option<OwnedFd>), StreamsError> {
    let host = |what| move |error| StreamsError::Host { what, error };
    if !request.streams.is_empty() || descriptors.len() > 1 {
        return Err(StreamsError::Request("a terminal has one descriptor at most, and no names".to_owned()));
    }
    let (master, slave) = match descriptors.pop() {
        Some(slave) => (None, slave),
        None => {
            let (master, slave) = terminal::open().map_err(host("a terminal of the host"))?;
            (Some(master), slave)
        }
    };
    terminal::make_raw(&slave).map_err(host("the descriptor of a terminal"))?;
    Ok((GivenStreams::Terminal(slave), master))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn ask(line: &str, descriptors: usize, parked: &Parked) -> Result<Option<OwnedFd>, String> {
        let descriptors = (0..descriptors).map(|_| file()).collect();
        match handle(line.as_bytes(), descriptors, parked).map_err(|error| error.to_string())? {
            Handled::Parked(master) => Ok(master),
            Handled::Checkpoint { .. } => Err("a checkpoint".to_owned()),
            Handled::Progress(_) => Err("how far it is".to_owned()),
        }
    }

    #[test]
    fn what_was_given_is_taken_once() {
        let parked = Parked::default();
        let line = r#"{"container":"c","exec":"e","streams":["stdout","stdin"]}"#;
        assert!(ask(line, 2, &parked).unwrap().is_none());
        assert!(parked.take("c", "").is_none());
        let Some(Given { streams: GivenStreams::Plain([input, output, errors]), .. }) = parked.take("c", "e")
        else {
            panic!()
        };
        assert!(input.is_some() && output.is_some() && errors.is_none());
        assert!(parked.take("c", "e").is_none());
        ask(r#"{"container":"c","streams":["stdin"],"more":2}"#, 3, &parked).unwrap();
        assert_eq!(parked.take("c", "").unwrap().more.len(), 2);
    }

    #[test]
    fn a_terminal_is_made_where_none_came() {
        let parked = Parked::default();
        let master = ask(r#"{"container":"c","terminal":true}"#, 0, &parked).unwrap();
        assert!(master.is_some());
        assert!(matches!(parked.take("c", ""), Some(Given { streams: GivenStreams::Terminal(_), .. })));
        let error = ask(r#"{"container":"c","terminal":true}"#, 1, &parked).unwrap_err();
        assert!(error.contains("terminal"), "{error}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let parked = Parked::default();
        for (line, descriptors, named) in [
            ("", 0, "the request is none"),
            ("{}", 0, "container"),
            (r#"{"container":"../c"}"#, 0, "no identifier"),
            (r#"{"container":"c","exec":"a/b"}"#, 0, "no identifier"),
            (r#"{"container":"c","colour":1}"#, 0, "colour"),
            (r#"{"container":"c","streams":["stdin"]}"#, 0, "0 descriptors came"),
            (r#"{"container":"c"}"#, 1, "1 descriptors came"),
            (r#"{"container":"c","streams":["stdin","stdin"]}"#, 2, "twice"),
            (r#"{"container":"c","more":2}"#, 1, "2 further descriptors"),
            (r#"{"container":"c","more":33}"#, 33, "33 further descriptors"),
            (r#"{"container":"c","streams":["stdfoo"]}"#, 1, "stdfoo"),
            (r#"{"container":"c","terminal":true,"streams":["stdin"]}"#, 1, "at most"),
            (r#"{"container":"c","image":"checkpoint"}"#, 0, "one descriptor"),
            (r#"{"container":"c","image":"restore"}"#, 2, "one descriptor"),
            (r#"{"container":"c","progress":true}"#, 1, "gives no descriptors"),
            (r#"{"container":"c","progress":true}"#, 0, "how far"),
            (r#"{"container":"c","exec":"e","image":"restore"}"#, 1, "of a container"),
            (r#"{"container":"c","image":"restore"}"#, 1, "no regular file"),
            (r#"{"container":"c","image":"burn"}"#, 1, "burn"),
        ] {
            let error = ask(line, descriptors, &parked).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
        let folder = OwnedFd::from(std::fs::File::open("/").unwrap());
        let line = r#"{"container":"c","streams":["stdin"]}"#;
        assert!(handle(line.as_bytes(), vec![folder], &parked).is_err());
        assert!(parked.0.lock().unwrap().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_refused(line in ".{0,200}") {
            let parked = Parked::default();
            proptest::prop_assert!(ask(&line, 0, &parked).is_err());
        }
    }
}
