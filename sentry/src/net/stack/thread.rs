//! The thread that receives, for all interfaces, and does what is due.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::device::FRAME;
use super::timers::Timers;
use super::{Interface, Stack};
use crate::error::Errno;
use crate::net::lock;

/// Frames of an interface that are taken before others have their turn.
const TURN: usize = 128;
/// How long an interface that is down is left alone.
const DOWN: Duration = Duration::from_secs(1);

/// Starts it.
pub(super) fn start(stack: &Arc<Stack>) -> Result<(), Errno> {
    let (timers, stack) = (Arc::clone(&stack.timers), Arc::downgrade(stack));
    let run = move || run(&timers, &stack);
    let thread = std::thread::Builder::new().name("network".to_owned()).spawn(run);
    thread.map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))
}

/// An interface, and until when it is left alone.
type Link = (Arc<Interface>, Option<Instant>);

fn run(timers: &Timers, stack: &Weak<Stack>) {
    let mut buffer = vec![0; FRAME];
    let mut links: Vec<Link> = Vec::new();
    loop {
        let Some(alive) = stack.upgrade() else { return };
        let now = Instant::now();
        let known = std::mem::take(&mut links);
        links = alive
            .interfaces()
            .into_iter()
            .map(|link| {
                let down =
                    known.iter().find(|(other, _)| Arc::ptr_eq(other, &link)).and_then(|(_, down)| *down);
                (link, down.filter(|until| *until > now))
            })
            .collect();
        let blocked = !lock(&alive.waiting).is_empty();
        let other = links.iter().filter_map(|(link, down)| {
            [lock(&link.neighbours).deadline(), *down].into_iter().flatten().min()
        });
        let until = timers.sleep(other.min());
        drop(alive);
        let ready = wait(timers, &links, blocked, until);
        let Some(alive) = stack.upgrade() else { return };
        timers.due(Instant::now()).iter().filter_map(Weak::upgrade).for_each(|connection| connection.tick());
        for ((link, down), events) in links.iter_mut().zip(ready) {
            if events.contains(PollFlags::POLLOUT) {
                let waiting = std::mem::take(&mut *lock(&alive.waiting));
                waiting.iter().filter_map(Weak::upgrade).for_each(|connection| connection.pump());
            }
            let news = PollFlags::POLLIN | PollFlags::POLLERR | PollFlags::POLLHUP;
            if events.intersects(news) && !receive(&alive, link, &mut buffer) {
                *down = Instant::now().checked_add(DOWN);
            }
        }
        alive.tick_neighbours();
    }
}

/// Sleeps until something comes, or something is due: what each interface has.
fn wait(timers: &Timers, links: &[Link], blocked: bool, until: Option<Instant>) -> Vec<PollFlags> {
    let wanted = if blocked { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
    let mut fds = vec![PollFd::new(timers.waker().fd(), PollFlags::POLLIN)];
    let up = links.iter().filter(|(_, down)| down.is_none());
    fds.extend(up.map(|(link, _)| PollFd::new(link.device.fd(), wanted)));
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        // Rounded up: else it would not be time yet.
        let left = until.saturating_duration_since(Instant::now()).saturating_add(Duration::from_micros(999));
        PollTimeout::try_from(left.as_millis().min(60_000)).unwrap_or(PollTimeout::ZERO)
    });
    if poll(&mut fds, timeout).is_err() {
        return vec![PollFlags::empty(); links.len()];
    }
    let mut events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
    if events.next().is_some_and(|events| !events.is_empty()) {
        timers.waker().clear();
    }
    links
        .iter()
        .map(|(_, down)| if down.is_none() { events.next() } else { None }.unwrap_or(PollFlags::empty()))
        .collect()
}

/// Takes what has come. `false` where the interface does not work now.
fn receive(stack: &Arc<Stack>, link: &Arc<Interface>, buffer: &mut [u8]) -> bool {
    for _ in 0..TURN {
        match link.device.receive(buffer) {
            Ok(Some(frame)) => stack.input(link, frame),
            Ok(None) => return true,
            // ENETDOWN and its like: told once by a packet socket.
            Err(errno) => {
                tracing::debug!(interface = link.name(), %errno, "an interface cannot be read");
                return false;
            }
        }
    }
    true
}
