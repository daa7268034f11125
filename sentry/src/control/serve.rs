//! The sentry's side: requests are carried out on the calling thread, those that take long by threads of their own, and ends of processes
//! told by another.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use super::link::{self, LinkError, Writer};
use super::message::{Failure, FailureKind, Request, Told};
use crate::containers::{Containers, Ended, News, Passed};
use crate::kernel::Kernel;

/// Stack of the thread that tells ends.
const STACK: usize = 128 << 10;
/// Stack of a thread that writes or reads an image: as large as that of the thread that creates containers.
const LONG_STACK: usize = 8 << 20;

/// Does what the monitor asks by this socket, until the monitor is gone.
///
/// # Errors
/// The monitor is not understood, or the host gives no thread.
pub fn serve(kernel: &Arc<Kernel>, socket: OwnedFd) -> Result<(), LinkError> {
    let (mut reader, writer) = link::open(socket)?;
    let writer = Arc::new(writer);
    let (news, ends) = channel();
    let containers = Arc::new(Containers::new(Arc::clone(kernel), news));
    let (told, of) = (Arc::clone(&writer), Arc::clone(&containers));
    std::thread::Builder::new()
        .name("ends".to_owned())
        .stack_size(STACK)
        .spawn(move || tell_ends(&of, &told, &ends))
        .map_err(|_| LinkError::Host(crate::error::Errno::EAGAIN))?;
    while let Some((request, descriptors)) = reader.request()? {
        let (number, passed) = (request.number, Passed::new(descriptors));
        let result = match containers.begin(&request.ask) {
            Ok(true) => match carry_out_aside(&containers, &writer, request, passed) {
                Ok(()) => continue,
                Err(failure) => Err(failure),
            },
            Ok(false) => containers.carry_out(request.ask, passed),
            Err(failure) => Err(failure),
        };
        writer.tell(&Told::Answer { number, result });
    }
    Ok(())
}

/// Has a thread of its own do something and answer.
fn carry_out_aside(
    containers: &Arc<Containers>,
    writer: &Arc<Writer>,
    Request { number, ask }: Request,
    passed: Passed,
) -> Result<(), Failure> {
    let (of, told) = (Arc::clone(containers), Arc::clone(writer));
    // Where there is no thread what it was to do is still here.
    let ask = Arc::new(ask);
    let asked = Arc::clone(&ask);
    let spawned =
        std::thread::Builder::new().name("image".to_owned()).stack_size(LONG_STACK).spawn(move || {
            let result = of.carry_out(Arc::unwrap_or_clone(asked), passed);
            told.tell(&Told::Answer { number, result });
        });
    spawned.map(drop).map_err(|error| {
        containers.not_begun(&ask);
        Failure { kind: FailureKind::Failed, text: format!("the host gives no thread for it: {error}") }
    })
}

fn tell_ends(containers: &Containers, writer: &Writer, ends: &Receiver<News>) {
    while let Ok(news) = ends.recv() {
        match news {
            News::Ended(Ended { process, status }) => {
                containers.ended(process);
                writer.tell(&Told::Ended { process, status });
            }
            News::Lost(container) => writer.tell(&Told::Lost(container)),
        }
    }
}
