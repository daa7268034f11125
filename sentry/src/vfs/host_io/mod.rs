//! Descriptors of the host as open files of the container: its stdin, stdout and stderr.
//!
//! The host's descriptor may be shared with others, so its flags are left alone: before each read or write the host is asked whether it
//! would wait. News comes from one thread for all of them, which sleeps in an edge-triggered `epoll` of the host.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::sync::lock;
use super::tty::host;
use super::{File, FileKind, Flags, OpenFile, anon};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::events::{Events, WaitQueue};

/// What may be written at once where the host says that it would not wait (`PIPE_BUF`).
const ATOMIC: usize = 4096;

struct Watcher {
    epoll: Epoll,
    queues: Mutex<HashMap<u64, Weak<WaitQueue>>>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

static WATCHER: LazyLock<Result<&'static Watcher, Errno>> = LazyLock::new(|| {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let watcher: &Watcher = Box::leak(Box::new(Watcher { epoll, queues: Mutex::default() }));
    let thread = std::thread::Builder::new().name("host-io".into());
    thread.spawn(|| watch(watcher)).map_err(|_| Errno::EAGAIN)?;
    Ok(watcher)
});

fn watch(watcher: &Watcher) {
    let mut events = [EpollEvent::empty(); 16];
    loop {
        let count = match watcher.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        for event in events.iter().take(count) {
            let queue = lock(&watcher.queues).get(&event.data()).and_then(Weak::upgrade);
            if let Some(queue) = queue {
                let bits = event.events().bits().cast_unsigned();
                queue.notify(Events::from_bits_truncate(bits));
            }
        }
    }
}

/// A descriptor of the host.
#[derive(Clone)]
pub struct HostIo(Arc<Descriptor>);

struct Descriptor {
    fd: Arc<OwnedFd>,
    terminal: bool,
    /// `None` for what is always ready, like a regular file.
    watched: Option<(u64, Arc<WaitQueue>)>,
}

impl HostIo {
    /// Takes a descriptor of the host that is open for what `flags` say.
    ///
    /// # Errors
    /// Of the host.
    pub fn open(fd: OwnedFd, flags: Flags) -> Result<Arc<OpenFile>, Errno> {
        let kind = nix::sys::stat::fstat(&fd).ok().and_then(|status| FileKind::from_mode(status.st_mode));
        let file = Self::file(fd)?;
        let again = file.clone();
        let reopen = Box::new(move |_| Ok(Box::new(again.clone()) as Box<dyn File>));
        let inode = anon::of_host(kind.unwrap_or(FileKind::Fifo), reopen);
        Ok(OpenFile::nameless(inode, Box::new(file), flags))
    }

    /// As [`open`](Self::open), without a description.
    ///
    /// # Errors
    /// Of the host.
    pub(super) fn file(fd: OwnedFd) -> Result<Self, Errno> {
        let watcher = (*WATCHER)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(WaitQueue::new());
        lock(&watcher.queues).insert(number, Arc::downgrade(&queue));
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        let event = EpollEvent::new(interest | EpollFlags::EPOLLET, number);
        let watched = match watcher.epoll.add(&fd, event) {
            Ok(()) => Some((number, queue)),
            // Regular files are always ready; a descriptor that is watched already is polled only when somebody asks.
            Err(Errno::EPERM) => None,
            Err(errno) => {
                lock(&watcher.queues).remove(&number);
                return Err(errno);
            }
        };
        let terminal = host::is_terminal(&fd);
        Ok(Self(Arc::new(Descriptor { fd: Arc::new(fd), terminal, watched })))
    }

    fn poll(&self, wanted: PollFlags) -> Result<PollFlags, Errno> {
        let mut fds = [PollFd::new(self.0.fd.as_fd(), wanted)];
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }
}

impl File for HostIo {
    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        if self.poll(PollFlags::POLLIN)?.is_empty() {
            return Err(Errno::EAGAIN);
        }
        nix::unistd::read(&*self.0.fd, to)
    }

    fn write(&self, from: &[u8], _offset: u64) -> Result<usize, Errno> {
        if self.poll(PollFlags::POLLOUT)?.is_empty() {
            return Err(Errno::EAGAIN);
        }
        let most = if self.0.watched.is_some() { ATOMIC } else { usize::MAX };
        nix::unistd::write(&*self.0.fd, from.get(..most).unwrap_or(from))
    }

    fn ready(&self) -> Events {
        let wanted = PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI;
        let bits = self.poll(wanted).map_or(Events::ERR.bits(), |now| u32::from(now.bits().cast_unsigned()));
        let mut ready = Events::from_bits_truncate(bits);
        if ready.contains(Events::IN) {
            ready |= Events::RDNORM;
        }
        if ready.contains(Events::OUT) {
            ready |= Events::WRNORM;
        }
        ready
    }

    fn stream(&self) -> bool {
        true
    }

    fn control(&self, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
        if self.0.terminal {
            host::control(&self.0.fd, call, request, argument)
        } else {
            Err(Errno::ENOTTY.into())
        }
    }

    fn queue(&self) -> Option<&WaitQueue> {
        self.0.watched.as_ref().map(|(_, queue)| &**queue)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let (Some((number, _)), Ok(watcher)) = (&self.watched, &*WATCHER) {
            let _ = watcher.epoll.delete(&*self.fd);
            lock(&watcher.queues).remove(number);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::events::{Waiter, Wake};
    use crate::vfs::Caller;

    #[test]
    fn news_of_the_host_wakes() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let input = HostIo::open(reader, Flags::READ).unwrap();
        assert_eq!(input.read(&mut [0; 8]), Err(Errno::EAGAIN));
        let waiter = Waiter::new();
        let wake: Arc<dyn Wake> = waiter.clone();
        input.file().queue().unwrap().add(Events::IN, &wake);
        let output = HostIo::open(writer, Flags(1)).unwrap();
        assert_eq!(output.write(&Caller::root(), b"news"), Ok(4));
        assert!(waiter.wait(Some(Instant::now() + Duration::from_secs(10))));
        assert_eq!(input.read(&mut [0; 8]), Ok(4));
        drop(output);
        assert_eq!(input.read(&mut [0; 8]), Ok(0));
        assert!(input.file().ready().contains(Events::HUP));
    }
}
