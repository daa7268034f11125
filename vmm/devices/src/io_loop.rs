//! One thread for all devices: polls queue notifications and back ends, and calls the devices.
//!
//! The descriptors are registered before the guest runs and never change. Each device does a bounded amount of
//! work per event; what is left comes back as another event behind those of the other devices.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::mmio::MmioTransport;

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// Token of the control event; devices count from 0.
const CONTROL: u64 = u64::MAX;
const EVENTS_PER_WAIT: usize = 32;

#[derive(Clone, Copy)]
enum Source {
    Queue { device: usize, queue: usize },
    Poll { device: usize, token: u32 },
}

struct Shared {
    wish: AtomicU8,
    /// What the loop is doing: `PAUSE` only once no device code runs.
    state: Mutex<u8>,
    changed: Condvar,
}

/// The event loop of all devices.
pub struct IoLoop {
    epoll: Epoll,
    wake: EventFd,
    shared: Arc<Shared>,
    devices: Vec<Arc<MmioTransport>>,
    sources: Vec<Source>,
}

/// Stops, pauses and resumes an [`IoLoop`] from other threads.
pub struct IoControl {
    wake: EventFd,
    shared: Arc<Shared>,
}

impl IoLoop {
    /// An empty loop.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let event = EpollEvent::new(EventSet::IN, CONTROL);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        let shared = Shared { wish: AtomicU8::new(RUN), state: Mutex::new(RUN), changed: Condvar::new() };
        Ok(Self { epoll, wake, shared: Arc::new(shared), devices: Vec::new(), sources: Vec::new() })
    }

    /// A handle for other threads.
    pub fn control(&self) -> io::Result<IoControl> {
        Ok(IoControl { wake: self.wake.try_clone()?, shared: self.shared.clone() })
    }

    /// Adds a device: its queue notifications and its back end.
    pub fn add(&mut self, transport: Arc<MmioTransport>) -> io::Result<()> {
        let device = self.devices.len();
        for (queue, event) in transport.queue_events().iter().enumerate() {
            self.register(event.as_raw_fd(), EventSet::IN, Source::Queue { device, queue })?;
        }
        for source in transport.poll_sources() {
            let edge = if source.edge { EventSet::EDGE_TRIGGERED } else { EventSet::empty() };
            let token = source.token;
            self.register(source.fd, EventSet::IN | edge, Source::Poll { device, token })?;
        }
        self.devices.push(transport);
        Ok(())
    }

    /// Runs until [`IoControl::stop`]. An error is one of `epoll` itself and ends the VM.
    pub fn run(self) -> io::Result<()> {
        let result = self.run_until_stopped();
        self.enter(STOP);
        result
    }

    fn run_until_stopped(&self) -> io::Result<()> {
        loop {
            match self.shared.wish.load(Ordering::SeqCst) {
                STOP => return Ok(()),
                PAUSE => self.park(),
                _ => {
                    self.turn(-1)?;
                }
            }
        }
    }

    /// Waits up to `timeout_ms` (-1: for ever) and handles what is ready; returns the number of events. For tests
    /// and for callers with a loop of their own.
    pub fn turn(&self, timeout_ms: i32) -> io::Result<usize> {
        let mut events = [EpollEvent::default(); EVENTS_PER_WAIT];
        let ready = match self.epoll.wait(timeout_ms, &mut events) {
            Ok(ready) => ready,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Err(e) => return Err(e),
        };
        for event in events.iter().take(ready) {
            if event.data() == CONTROL {
                let _ = self.wake.read();
                continue;
            }
            let source = usize::try_from(event.data()).ok().and_then(|n| self.sources.get(n));
            match source {
                Some(Source::Queue { device, queue }) => self.devices[*device].handle_queue_event(*queue),
                Some(Source::Poll { device, token }) => self.devices[*device].handle_poll_event(*token),
                None => {}
            }
        }
        Ok(ready)
    }

    fn register(&mut self, fd: RawFd, events: EventSet, source: Source) -> io::Result<()> {
        let event = EpollEvent::new(events, self.sources.len() as u64);
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        self.sources.push(source);
        Ok(())
    }

    fn enter(&self, state: u8) {
        *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.shared.changed.notify_all();
    }

    fn park(&self) {
        self.enter(PAUSE);
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        while self.shared.wish.load(Ordering::SeqCst) == PAUSE {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state = RUN;
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl IoControl {
    /// Ends the loop after the event in hand.
    pub fn stop(&self) -> io::Result<()> {
        self.wish(STOP)
    }

    /// Stops handling events; returns once no device code runs (or the loop has ended). The loop must be running.
    pub fn pause(&self) -> io::Result<()> {
        self.wish(PAUSE)?;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        while *state == RUN && self.shared.wish.load(Ordering::SeqCst) == PAUSE {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Goes on after [`IoControl::pause`]; nothing that happened in between is lost.
    pub fn resume(&self) -> io::Result<()> {
        self.wish(RUN)
    }

    fn wish(&self, wish: u8) -> io::Result<()> {
        {
            let _state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            // A stop is final.
            if self.shared.wish.load(Ordering::SeqCst) != STOP {
                self.shared.wish.store(wish, Ordering::SeqCst);
            }
        }
        self.shared.changed.notify_all();
        self.wake.write(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventFd;
    use crate::rng::Rng;
    use crate::test_utils::memory;

    #[test]
    fn pauses_resumes_and_stops() {
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let transport = Arc::new(MmioTransport::new(Box::new(Rng::new("rng")), memory(), line).unwrap());
        let mut io = IoLoop::new().unwrap();
        io.add(transport.clone()).unwrap();
        let control = io.control().unwrap();
        let thread = std::thread::spawn(move || io.run());
        for _ in 0..100 {
            control.pause().unwrap();
            // Parked: the event stays where it is.
            transport.queue_events()[0].write(1).unwrap();
            assert_eq!(transport.queue_events()[0].read().unwrap(), 1);
            control.resume().unwrap();
        }
        control.pause().unwrap();
        // A stop ends a paused loop, too, and is final.
        control.stop().unwrap();
        control.resume().unwrap();
        thread.join().unwrap().unwrap();
        control.pause().unwrap();
    }
}
