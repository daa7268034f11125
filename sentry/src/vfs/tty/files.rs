//! Both ends of a pseudoterminal as open files.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::control;
use super::devpts::Registry;
use super::pair::Pair;
use super::sessions;
use super::termios::flag;
use crate::call::{Call, Unready};
use crate::error::{Errno, SysError, SysResult};
use crate::events::{Events, WaitQueue};
use crate::task::Task;
use crate::vfs::{File, sync::lock};

/// The master.
pub(super) struct Master {
    pair: Arc<Pair>,
    registry: Arc<Registry>,
    /// One writer at a time: what is written in one go stays together.
    writing: Mutex<()>,
}

impl Master {
    pub(super) fn new(pair: &Arc<Pair>, registry: &Arc<Registry>) -> Self {
        Self { pair: Arc::clone(pair), registry: Arc::clone(registry), writing: Mutex::default() }
    }
}

impl File for Master {
    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        self.pair.output(to)
    }

    fn write(&self, from: &[u8], _offset: u64) -> Result<usize, Errno> {
        let writing = lock(&self.writing);
        let result = self.pair.input(from);
        drop(writing);
        result
    }

    fn ready(&self) -> Events {
        self.pair.master_ready()
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.pair.master_queue)
    }

    fn stream(&self) -> bool {
        true
    }

    fn available(&self) -> Result<u64, Errno> {
        Ok(self.pair.waiting())
    }

    fn control(&self, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
        control::master(&self.pair, &self.registry, call, request, argument)
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.pair.close_master();
    }
}

/// A slave.
pub(super) struct Slave {
    pair: Arc<Pair>,
    hangs: u64,
}

impl Slave {
    pub(super) fn new(pair: &Arc<Pair>, hangs: u64) -> Self {
        Self { pair: Arc::clone(pair), hangs }
    }

    fn hung_up(&self) -> bool {
        self.pair.hung_up(self.hangs)
    }

    /// Takes input, whatever there is of it.
    fn take(&self, to: &mut [u8]) -> usize {
        self.pair.drive(|line, _, _| line.read(to))
    }

    /// Takes input if there is enough of it.
    fn try_take(&self, to: &mut [u8], minimum: usize) -> Option<usize> {
        if self.hung_up() {
            return Some(0);
        }
        self.pair.with(|state| state.line.readable(minimum)).then(|| self.take(to))
    }

    /// Reads by `VMIN` and `VTIME` (`n_tty_read`; `man 3 termios`, "Canonical and noncanonical mode").
    fn wait(&self, call: &mut Call<'_>, to: &mut [u8], nonblocking: bool) -> Result<usize, SysError> {
        let termios = self.pair.with(|state| *state.line.termios());
        let raw = !termios.l(flag::ICANON);
        let (minimum, time) = if raw { termios.minimum_and_time() } else { (1, 0) };
        let enough = minimum.min(to.len()).max(1);
        let tenths = Duration::from_millis(u64::from(time).saturating_mul(100));
        let (first, between) = match (minimum, time) {
            (0, _) => (Some(tenths), None),
            (_, 0) => (None, None),
            _ => (None, Some(tenths)),
        };
        if let Some(count) = self.try_take(to, if nonblocking || first.is_some() { 1 } else { enough }) {
            return Ok(count);
        }
        if first == Some(Duration::ZERO) {
            return Ok(0);
        }
        if nonblocking {
            return Err(Errno::EAGAIN.into());
        }
        let queues = [(&self.pair.slave_queue, Events::IN)];
        let mut deadline = first.and_then(|first| Instant::now().checked_add(first));
        let mut wanted = if between.is_some() || first.is_some() { 1 } else { enough };
        loop {
            let seen = self.pair.with(|state| state.line.available());
            if between.is_some() && seen > 0 {
                (wanted, deadline) = (
                    enough.min(seen.saturating_add(1)),
                    between.and_then(|time| Instant::now().checked_add(time)),
                );
            }
            let ready = |_: &mut Call<'_>| {
                (self.hung_up() || self.pair.with(|state| state.line.readable(wanted))).then_some(())
            };
            match call.block(&queues, deadline, ready) {
                Ok(()) if self.hung_up() => return Ok(0),
                Ok(()) if wanted < enough && between.is_some() => {}
                // Somebody else may have been quicker.
                Ok(()) => {
                    if let Some(count) = self.try_take(to, 1) {
                        return Ok(count);
                    }
                }
                Err(Unready::TimedOut) => return Ok(self.take(to)),
                Err(Unready::Interrupted) => {
                    let there = raw && self.pair.with(|state| state.line.available()) > 0;
                    return if there { Ok(self.take(to)) } else { Err(Unready::Interrupted.into()) };
                }
            }
        }
    }

    /// Job control: whether the caller may read or write now.
    fn check(&self, task: &Task, writes: bool) -> Result<(), SysError> {
        if writes && !self.pair.with(|state| state.line.termios().l(flag::TOSTOP)) {
            return Ok(());
        }
        let signal = if writes { libc::SIGTTOU } else { libc::SIGTTIN };
        sessions::check(task, &self.pair.terminal(), signal)
    }
}

impl File for Slave {
    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        self.try_take(to, 1).ok_or(Errno::EAGAIN)
    }

    fn read_waiting(&self, call: &mut Call<'_>, to: &mut [u8], nonblocking: bool) -> Option<SysResult> {
        if self.hung_up() {
            return Some(Ok(0));
        }
        let task = Arc::clone(call.task);
        let result = self.check(&task, false).and_then(|()| self.wait(call, to, nonblocking));
        Some(result.map(|count| count as u64))
    }

    fn before_write(&self, call: &Call<'_>) -> Result<(), SysError> {
        if self.hung_up() { Err(Errno::EIO.into()) } else { self.check(call.task, true) }
    }

    fn write(&self, from: &[u8], _offset: u64) -> Result<usize, Errno> {
        if self.hung_up() { Err(Errno::EIO) } else { self.pair.write(from) }
    }

    fn ready(&self) -> Events {
        if self.hung_up() {
            let all = Events::IN | Events::RDNORM | Events::OUT | Events::WRNORM;
            return all | Events::HUP | Events::ERR;
        }
        self.pair.slave_ready()
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.pair.slave_queue)
    }

    fn stream(&self) -> bool {
        true
    }

    fn available(&self) -> Result<u64, Errno> {
        if self.hung_up() {
            return Err(Errno::EIO);
        }
        Ok(self.pair.with(|state| state.line.available()) as u64)
    }

    fn control(&self, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
        if self.hung_up() {
            return Err(if request == control::TIOCSPGRP { Errno::ENOTTY } else { Errno::EIO }.into());
        }
        control::slave(&self.pair, call, request, argument)
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        self.pair.close_slave(self.hangs);
    }
}
