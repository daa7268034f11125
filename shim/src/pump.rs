//! Moving a process' data between the guest and containerd's pipes.
//!
//! Output is always read to its end, also when nobody wants it: a full pipe would stop the process. The end of a process
//! is reported after its output was delivered; how long that may take is bounded by [`Progress`]: a reader that takes
//! nothing for ten seconds, or a guest that sends neither data nor the end for two, is waited for no longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::alive::alive;
use crate::guest::{GuestError, Output, Pod};
use crate::stdio::Sink;

/// What the guest takes in one write.
const CHUNK: usize = 32 << 10;
const READER_PATIENCE: Duration = Duration::from_secs(10);
const GUEST_PATIENCE: Duration = Duration::from_secs(2);
/// After `close`, how long the pipe must stay empty to be taken for empty.
const LEFTOVER: Duration = Duration::from_millis(100);

/// Which process' data is moved.
#[derive(Clone)]
pub struct Who {
    /// The sandbox.
    pub pod: Arc<dyn Pod>,
    /// Container.
    pub container: String,
    /// Exec, empty for init.
    pub exec: String,
}

/// Whether output still moves.
#[derive(Debug, Default)]
pub struct Progress {
    moved: AtomicU64,
    writing: AtomicBool,
}

/// Copy one output until its end.
pub async fn output(who: Who, which: Output, sink: Option<Sink>, progress: Arc<Progress>) {
    let mut sink = sink;
    loop {
        let read = alive(&*who.pod, who.pod.read(&who.container, &who.exec, which)).await;
        let data = match read {
            Ok(data) if data.is_empty() => return,
            Ok(data) => data,
            // The end of the sandbox, which is told elsewhere.
            Err(error @ GuestError::Unavailable(_)) => {
                tracing::debug!(container = who.container, exec = who.exec, %error, "output ended");
                return;
            }
            Err(error) => {
                tracing::warn!(container = who.container, exec = who.exec, %error, "output is lost");
                return;
            }
        };
        progress.moved.fetch_add(1, Ordering::Relaxed);
        progress.writing.store(true, Ordering::Relaxed);
        if let Some(place) = &sink
            && let Err(error) = place.write_all(&data).await
        {
            tracing::warn!(container = who.container, exec = who.exec, %error, "output is discarded from here on");
            sink = None;
        }
        progress.writing.store(false, Ordering::Relaxed);
        progress.moved.fetch_add(1, Ordering::Relaxed);
    }
}

/// Copy the input until its writer closes it, or until `close` is told and what was written before has been copied.
pub async fn input(who: Who, mut from: pipe::Receiver, close: Arc<Notify>) {
    let mut buffer = vec![0; CHUNK];
    let mut closing = false;
    loop {
        let read = if closing {
            match tokio::time::timeout(LEFTOVER, from.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => break,
            }
        } else {
            tokio::select! {
                read = from.read(&mut buffer) => read,
                () = close.notified() => {
                    closing = true;
                    continue;
                }
            }
        };
        let Ok(length @ 1..) = read else { break };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let write = who.pod.write_stdin(&who.container, &who.exec, rest);
            match alive(&*who.pod, write).await {
                Ok(taken @ 1..) => rest = rest.get(taken..).unwrap_or_default(),
                Ok(_) | Err(_) => return,
            }
        }
    }
    let _ = alive(&*who.pod, who.pod.close_stdin(&who.container, &who.exec)).await;
}

/// Wait until the outputs were delivered, or do not move any more.
pub async fn drain(outputs: Vec<JoinHandle<()>>, progress: &Progress) {
    for mut output in outputs {
        loop {
            let before = progress.moved.load(Ordering::Relaxed);
            let patience =
                if progress.writing.load(Ordering::Relaxed) { READER_PATIENCE } else { GUEST_PATIENCE };
            if tokio::time::timeout(patience, &mut output).await.is_ok() {
                break;
            }
            let writing = progress.writing.load(Ordering::Relaxed);
            let still = progress.moved.load(Ordering::Relaxed) == before;
            if still && !(writing && patience < READER_PATIENCE) {
                output.abort();
                break;
            }
        }
    }
}
