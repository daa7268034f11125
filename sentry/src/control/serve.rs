//! The sentry's side: requests are carried out on the calling thread, ends of processes told by another.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use super::link::{self, LinkError, Writer};
use super::message::Told;
use crate::containers::{Containers, Ended, News, Passed};
use crate::kernel::Kernel;

/// Stack of the thread that tells ends.
const STACK: usize = 128 << 10;

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
        let result = containers.carry_out(request.ask, Passed::new(descriptors));
        writer.tell(&Told::Answer { number: request.number, result });
    }
    Ok(())
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
