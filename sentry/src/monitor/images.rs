//! Writing a container to an image for whoever asked by the streams socket: in two steps, so that it ends only when the image is kept.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::streams::{self, Reply, StreamsError};
use super::work::{Monitor, WorkError};

/// How long it may take to keep an image that is whole: to give it its name.
const KEEPS: Duration = Duration::from_secs(60);

/// What is said of an image that is whole.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settled {
    kept: bool,
}

/// Writes a container to an image. Where it is not to go on, it ends when the other side says that the image is kept; without that, or
/// when the other side has gone away, it goes on.
pub(super) async fn checkpoint(
    connection: &UnixStream,
    monitor: &Monitor,
    container: &str,
    (image, goes_on): (OwnedFd, bool),
) -> Result<(), StreamsError> {
    let refused = |error: WorkError| StreamsError::Request(error.to_string());
    let saving = monitor.checkpoint(container, image, goes_on);
    tokio::pin!(saving);
    let saved = tokio::select! {
        // What is to be given up must have been asked for.
        biased;
        saved = &mut saving => saved,
        () = interrupted(connection) => {
            // Where it is done in this moment there is nothing to give up but what waits to be kept.
            let _ = monitor.settle(container, false).await;
            let saved = saving.await.map_err(refused);
            if saved.is_ok() && !goes_on {
                // Whole before it could be given up: nobody else says that the container goes on.
                let _ = monitor.settle(container, false).await;
            }
            let gone = "who asked for the image has gone away, or said something before it was asked".to_owned();
            return saved.and(Err(StreamsError::Request(gone)));
        }
    };
    saved.map_err(refused)?;
    if goes_on {
        return Ok(());
    }
    let kept = match streams::answer(connection, &Reply::Written(true), None).await {
        Ok(()) => is_kept(connection).await,
        Err(error) => Err(StreamsError::Host { what: "telling that the image is whole", error }),
    };
    monitor.settle(container, kept.is_ok()).await.map_err(refused)?;
    kept.map_err(|error| {
        StreamsError::Request(format!("the image is not kept, and the container goes on: {error}"))
    })
}

async fn is_kept(connection: &UnixStream) -> Result<(), StreamsError> {
    let received = tokio::time::timeout(KEEPS, streams::receive(connection)).await;
    let late = |_| StreamsError::Request(format!("nobody said within {KEEPS:?} that it is"));
    let (line, descriptors) = received.map_err(late)??;
    judge(&line, descriptors.len())
}

fn judge(line: &[u8], descriptors: usize) -> Result<(), StreamsError> {
    match serde_json::from_slice(line) {
        Ok(Settled { kept: true }) if descriptors == 0 => Ok(()),
        Ok(_) => Err(StreamsError::Request("so it was said".to_owned())),
        Err(error) => Err(StreamsError::Request(format!("what was said is nothing: {error}"))),
    }
}

/// Waits until the other side goes away, or says something.
async fn interrupted(connection: &UnixStream) {
    let look = || {
        let mut byte = [0];
        let flags = nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        Ok(nix::sys::socket::recv(std::os::fd::AsRawFd::as_raw_fd(connection), &mut byte, flags)?)
    };
    // An error is the end of it, too.
    let _ = connection.async_io(Interest::READABLE, look).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_kept_when_that_is_said_and_nothing_else() {
        judge(b"{\"kept\":true}\n", 0).unwrap();
        for (line, descriptors) in
            [("{\"kept\":false}\n", 0), ("{\"kept\":true}\n", 1), ("{}\n", 0), ("kept\n", 0), ("", 0)]
        {
            assert!(judge(line.as_bytes(), descriptors).is_err(), "{line}");
        }
    }

    #[tokio::test]
    async fn who_goes_away_or_speaks_too_early_is_noticed() {
        for words in [&b""[..], b"x"] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let quiet = tokio::time::timeout(Duration::from_millis(20), interrupted(&ours)).await;
            assert!(quiet.is_err());
            if !words.is_empty() {
                assert_eq!(theirs.try_write(words).unwrap(), 1);
                interrupted(&ours).await;
            }
            drop(theirs);
            interrupted(&ours).await;
        }
    }
}
