//! The monitor's end of the socket to the sentry. Whatever comes from there may be from somebody who took the sentry over: what is no answer
//! to a question is the end of it.

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_cc_sentry::control::frame::{self, ASKED_MAX, FrameError, Frames, TOLD_MAX};
use kata_cc_sentry::control::message::{Answer, Ask, ContainerNumber, Failure, ProcessNumber, Request, Told};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that wait to be sent.
const QUEUE: usize = 64;
/// Bytes that are read at once.
const PART: usize = 16 << 10;

/// Why something that was asked for was not done.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    /// The sentry says why.
    #[error("{}", .0.text)]
    Refused(Failure),
    /// The sentry is not there any more.
    #[error("{0}")]
    Gone(String),
    /// It is more than a request may be.
    #[error("the request is too large for the sentry: {0}")]
    Frame(#[from] FrameError),
}

struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// The way to the sentry.
#[derive(Clone)]
pub(crate) struct Link {
    outgoing: mpsc::Sender<Outgoing>,
    next: Arc<AtomicU64>,
    pending: Pending,
    gone: watch::Receiver<Option<String>>,
}

type Waiting = HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>;

#[derive(Clone, Default)]
struct Pending(Arc<Mutex<Waiting>>);

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the link needs to run: it ends with why nothing is heard any more.
pub(crate) struct Engine {
    socket: UnixStream,
    outgoing: mpsc::Receiver<Outgoing>,
    pending: Pending,
    gone: watch::Sender<Option<String>>,
}

/// A process that ended, with its status as `wait` tells it.
pub(crate) type Ended = (ProcessNumber, i32);

/// A link over this socket.
pub(crate) fn new(socket: OwnedFd) -> std::io::Result<(Link, Engine)> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    let (sender, outgoing) = mpsc::channel(QUEUE);
    let (told, gone) = watch::channel(None);
    let pending = Pending::default();
    let link = Link { outgoing: sender, next: Arc::default(), pending: pending.clone(), gone };
    Ok((link, Engine { socket, outgoing, pending, gone: told }))
}

impl Link {
    /// Asks the sentry for something, and waits for what comes of it.
    pub(crate) async fn ask(&self, ask: Ask, descriptors: Vec<OwnedFd>) -> Result<Answer, CallError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = frame::encode(&Request { number, ask }, descriptors.len(), ASKED_MAX)?;
        let (sender, answer) = oneshot::channel();
        self.pending.lock().insert(number, sender);
        // A caller that goes away leaves nobody who waits.
        let _forget = Forget { pending: &self.pending, number };
        if self.outgoing.send(Outgoing { bytes, descriptors }).await.is_err() {
            return Err(self.why().await);
        }
        match answer.await {
            Ok(result) => result.map_err(CallError::Refused),
            Err(_) => Err(self.why().await),
        }
    }

    async fn why(&self) -> CallError {
        CallError::Gone(self.ended().await)
    }

    /// Waits until the sentry is gone, and says why.
    pub(crate) async fn ended(&self) -> String {
        let mut gone = self.gone.clone();
        let reason = gone.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).unwrap_or_else(|| "the sentry is gone".to_owned())
    }
}

struct Forget<'a> {
    pending: &'a Pending,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.number);
    }
}

impl Engine {
    /// Carries requests and answers. Ends of processes go to `ended`, which says whether there is such a process, and containers that lost one to
    /// `lost`. Comes back with what was wrong when the socket is at its end.
    pub(crate) async fn run(
        &mut self,
        ended: impl Fn(Ended) -> bool,
        lost: impl Fn(ContainerNumber),
    ) -> String {
        let Self { socket, outgoing, pending, .. } = self;
        tokio::select! {
            error = write(socket, outgoing) => error,
            error = read(socket, pending, (ended, lost)) => error,
        }
    }

    /// Tells all who wait, and will, that the sentry is gone.
    pub(crate) fn close(self, reason: String) {
        self.gone.send_replace(Some(reason));
        self.pending.lock().clear();
    }
}

async fn write(socket: &UnixStream, outgoing: &mut mpsc::Receiver<Outgoing>) -> String {
    while let Some(Outgoing { bytes, descriptors }) = outgoing.recv().await {
        let mut left = bytes.as_slice();
        let mut descriptors = Some(descriptors);
        while !left.is_empty() {
            let numbers: Vec<_> = descriptors.iter().flatten().map(AsRawFd::as_raw_fd).collect();
            let sent = socket
                .async_io(Interest::WRITABLE, || {
                    let rights = [ControlMessage::ScmRights(&numbers)];
                    let control = if numbers.is_empty() { &[][..] } else { &rights };
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    let slices = [IoSlice::new(left)];
                    Ok(sendmsg::<()>(socket.as_raw_fd(), &slices, control, flags, None)?)
                })
                .await;
            match sent {
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(error) => return format!("the sentry cannot be asked: {error}"),
            }
            // They went with the first bytes.
            descriptors = None;
        }
    }
    "nobody asks any more".to_owned()
}

/// What is done with the end of a process, and with the loss of one.
type Hears<E, L> = (E, L);

async fn read<E: Fn(Ended) -> bool, L: Fn(ContainerNumber)>(
    socket: &UnixStream,
    pending: &Pending,
    hears: Hears<E, L>,
) -> String {
    let mut frames = Frames::new(TOLD_MAX);
    let mut part = vec![0; PART];
    loop {
        let read = socket.async_io(Interest::READABLE, || socket.try_read(&mut part)).await;
        let count = match read {
            Ok(0) => return "it closed its socket".to_owned(),
            Ok(count) => count,
            Err(error) => return format!("its socket: {error}"),
        };
        frames.push(part.get(..count).unwrap_or_default());
        loop {
            match frames.take() {
                Ok(None) => break,
                Ok(Some(frame)) if frame.descriptors != 0 => return "it told of descriptors".to_owned(),
                Ok(Some(frame)) => match frame::decode(&frame.body) {
                    Ok(told) => {
                        if let Err(error) = hear(told, pending, &hears) {
                            return error;
                        }
                    }
                    Err(error) => return format!("it sent {error}"),
                },
                Err(error) => return format!("it sent {error}"),
            }
        }
    }
}

fn hear<E: Fn(Ended) -> bool, L: Fn(ContainerNumber)>(
    told: Told,
    pending: &Pending,
    (ended, lost): &Hears<E, L>,
) -> Result<(), String> {
    match told {
        Told::Answer { number, result } => {
            let waiting = pending.lock().remove(&number);
            // Who asked may have gone away; but nobody can have asked a question of a later number.
            if let Some(waiting) = waiting {
                let _ = waiting.send(result);
            }
            Ok(())
        }
        Told::Ended { process, status } if ended((process, status)) => Ok(()),
        Told::Lost(container) => {
            lost(container);
            Ok(())
        }
        Told::Ended { process, .. } => {
            Err(format!("it told the end of process {}, which there is not", process.0))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;

    use proptest::prelude::*;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn told(message: &Told) -> Vec<u8> {
        frame::encode(message, 0, TOLD_MAX).unwrap()
    }

    /// What becomes of a link when the sentry sends these bytes and ends.
    fn hears(bytes: &[u8], known: u32) -> String {
        let (monitor, mut sentry) = StdStream::pair().unwrap();
        sentry.write_all(bytes).unwrap();
        drop(sentry);
        runtime().block_on(async {
            let (_link, mut engine) = new(monitor.into()).unwrap();
            engine.run(|(process, _)| process.0 == known, |_| ()).await
        })
    }

    #[test]
    fn what_is_asked_is_answered() {
        let (monitor, mut sentry) = StdStream::pair().unwrap();
        let answer = runtime().block_on(async {
            let (link, mut engine) = new(monitor.into()).unwrap();
            let asks = async {
                let answers = link.ask(Ask::Start(ContainerNumber(1)), Vec::new());
                let sentry = async {
                    tokio::task::yield_now().await;
                    // A lie about another question changes nothing.
                    for number in [7, 0] {
                        sentry.write_all(&told(&Told::Answer { number, result: Ok(Answer::Done) })).unwrap();
                    }
                };
                tokio::join!(answers, sentry).0
            };
            tokio::select! {
                answer = asks => answer,
                reason = engine.run(|_| true, |_| ()) => panic!("{reason}"),
            }
        });
        assert!(matches!(answer, Ok(Answer::Done)));
        let mut bytes = [0; 64];
        let count = sentry.read(&mut bytes).unwrap();
        let request: Request = frame::decode(&bytes[frame::HEAD..count]).unwrap();
        assert_eq!(request, Request { number: 0, ask: Ask::Start(ContainerNumber(1)) });
    }

    #[test]
    fn a_loss_is_heard() {
        let (monitor, mut sentry) = StdStream::pair().unwrap();
        sentry.write_all(&told(&Told::Lost(ContainerNumber(5)))).unwrap();
        drop(sentry);
        let heard = std::cell::Cell::new(0);
        runtime().block_on(async {
            let (_link, mut engine) = new(monitor.into()).unwrap();
            engine.run(|_| true, |container| heard.set(container.0)).await
        });
        assert_eq!(heard.get(), 5);
    }

    #[test]
    fn a_sentry_that_lies_is_the_end_of_it() {
        let ended = |process, status| told(&Told::Ended { process: ProcessNumber(process), status });
        assert!(hears(&ended(3, 0), 3).contains("closed"));
        assert!(hears(&ended(4, 0), 3).contains("process 4, which there is not"));
        assert!(hears(&[0xff; 16], 3).contains("a message of"));
        assert!(hears(&[1, 0, 0, 0, 1, 0, 0, 0, 0], 3).contains("descriptors"));
        assert!(hears(&[2, 0, 0, 0, 0, 0, 0, 0, 99, 99], 3).contains("no message"));
    }

    #[test]
    fn who_waits_hears_that_the_sentry_is_gone() {
        let (monitor, sentry) = StdStream::pair().unwrap();
        let answer = runtime().block_on(async {
            let (link, mut engine) = new(monitor.into()).unwrap();
            let lost = async {
                drop(sentry);
                let reason = engine.run(|_| true, |_| ()).await;
                engine.close(format!("gone: {reason}"));
            };
            let (answer, ()) = tokio::join!(link.ask(Ask::Start(ContainerNumber(1)), Vec::new()), lost);
            let later = link.ask(Ask::Start(ContainerNumber(1)), Vec::new()).await;
            assert!(matches!(later, Err(CallError::Gone(reason)) if reason.starts_with("gone: ")));
            answer
        });
        assert!(matches!(answer, Err(CallError::Gone(reason)) if reason.starts_with("gone: ")));
    }

    proptest! {
        #[test]
        fn garbage_ends_the_link_and_nothing_else(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(!hears(&bytes, 1).is_empty());
        }
    }
}
