//! A pseudoterminal (`drivers/tty/pty.c`): what a program writes to the slave the master reads, what the master writes is input.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use super::Terminal;
use super::devpts::Registry;
use super::discipline::{Discipline, Happened};
use super::sessions;
use super::termios::{Termios, flag};
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::task::signal::SignalInfo;
use crate::task::{Tasks, current};
use crate::vfs::Timestamp;
use crate::vfs::sync::lock;

/// Bytes on their way to the master.
const OUTPUT: usize = 16_384;
/// Bytes of the master that the discipline has no room for.
const PENDING: usize = 16_384;

/// Bits of a packet (`TIOCPKT`).
pub(super) mod packet {
    pub(crate) const FLUSH_READ: u8 = 1;
    pub(crate) const STOP: u8 = 4;
    pub(crate) const START: u8 = 8;
    pub(crate) const NO_STOP: u8 = 16;
    pub(crate) const DO_STOP: u8 = 32;
}

/// Owner and permissions of the slave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub changed: Timestamp,
}

/// A pseudoterminal.
pub struct Pair {
    number: u32,
    registry: Weak<Registry>,
    pub(super) owner: Mutex<Owner>,
    state: Mutex<State>,
    pub(super) slave_queue: WaitQueue,
    pub(super) master_queue: WaitQueue,
    /// Whose terminal it may be.
    tasks: Weak<Tasks>,
}

pub(super) struct State {
    pub line: Discipline,
    pending: VecDeque<u8>,
    output: VecDeque<u8>,
    pub size: [u8; 8],
    pub locked: bool,
    pub exclusive: bool,
    slaves: u32,
    /// The last slave was closed, and none opened since.
    closed: bool,
    master: bool,
    /// Slaves that were opened under another number were hung up.
    hangs: u64,
    /// Status of the next packet, where there are packets.
    pub packet: Option<u8>,
}

impl Pair {
    pub(super) fn new(number: u32, registry: &Arc<Registry>, uid: u32, gid: u32) -> Arc<Self> {
        let state = State {
            line: Discipline::default(),
            pending: VecDeque::new(),
            output: VecDeque::new(),
            size: [0; 8],
            locked: true,
            exclusive: false,
            slaves: 0,
            closed: false,
            master: true,
            hangs: 0,
            packet: None,
        };
        Arc::new(Self {
            number,
            registry: Arc::downgrade(registry),
            owner: Mutex::new(Owner { uid, gid, mode: 0o620, changed: Timestamp::now() }),
            state: Mutex::new(state),
            slave_queue: WaitQueue::new(),
            master_queue: WaitQueue::new(),
            tasks: current().map(|task| Arc::downgrade(task.tasks())).unwrap_or_default(),
        })
    }

    /// Its number: the name in `/dev/pts`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// As a terminal of a session.
    #[must_use]
    pub fn terminal(self: &Arc<Self>) -> Terminal {
        Terminal::Pair(Arc::downgrade(self))
    }

    /// Whether the master is open.
    #[must_use]
    pub fn is_there(&self) -> bool {
        lock(&self.state).master
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut lock(&self.state))
    }

    /// A slave is opened; under which number.
    pub(super) fn open_slave(&self, privileged: bool) -> Result<u64, Errno> {
        let mut state = lock(&self.state);
        if !state.master || state.locked {
            return Err(Errno::EIO);
        }
        if state.exclusive && !privileged {
            return Err(Errno::EBUSY);
        }
        state.slaves = state.slaves.checked_add(1).ok_or(Errno::ENFILE)?;
        state.closed = false;
        Ok(state.hangs)
    }

    pub(super) fn close_slave(&self, hangs: u64) {
        let mut state = lock(&self.state);
        if state.hangs != hangs {
            return;
        }
        state.slaves = state.slaves.saturating_sub(1);
        if state.slaves > 0 {
            return;
        }
        state.closed = true;
        state.exclusive = false;
        drop(state);
        self.master_queue.notify(Events::IN | Events::RDNORM | Events::HUP);
    }

    pub(super) fn close_master(self: &Arc<Self>) {
        lock(&self.state).master = false;
        self.hang_up();
    }

    /// Hangs up the slaves (`TIOCVHANGUP`, the end of the master).
    pub(super) fn hang_up(self: &Arc<Self>) {
        {
            let mut state = lock(&self.state);
            state.hangs = state.hangs.wrapping_add(1);
            state.slaves = 0;
            state.closed = true;
            state.pending.clear();
            state.line = Discipline::default();
        }
        let all = Events::IN | Events::RDNORM | Events::OUT | Events::WRNORM | Events::HUP | Events::ERR;
        self.slave_queue.notify(all);
        self.master_queue.notify(all);
        if let Some(tasks) = self.tasks.upgrade() {
            sessions::hang_up(&tasks, &self.terminal());
        }
    }

    /// Whether a slave that was opened under this number was hung up.
    pub(super) fn hung_up(&self, hangs: u64) -> bool {
        lock(&self.state).hangs != hangs
    }

    /// Does something to the discipline, and all that comes of it.
    pub(super) fn drive<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Discipline, &mut VecDeque<u8>, &mut Vec<Happened>) -> T,
    ) -> T {
        let mut told = Vec::new();
        let result = {
            let mut state = lock(&self.state);
            let State { line, output, pending, .. } = &mut *state;
            let result = change(line, output, &mut told);
            // Input that had no room may have it now.
            if !pending.is_empty() && told.is_empty() {
                let count = line.receive(pending.make_contiguous(), output, &mut told);
                pending.drain(..count);
            }
            for happened in &told {
                state.note(*happened);
            }
            result
        };
        self.master_queue.notify(Events::IN | Events::RDNORM | Events::PRI | Events::OUT | Events::WRNORM);
        self.slave_queue.notify(Events::IN | Events::RDNORM | Events::OUT | Events::WRNORM);
        for happened in told {
            if let Happened::Signal(signal) = happened {
                self.signal(signal);
            }
        }
        result
    }

    /// Sends a signal to the process group in front.
    pub(super) fn signal(self: &Arc<Self>, signal: i32) {
        let Some(tasks) = self.tasks.upgrade() else { return };
        if let Some((_, foreground)) = tasks.terminals().of(&self.terminal()) {
            tasks.signal_process_group(foreground, &SignalInfo::kernel(signal));
        }
    }

    /// The master writes.
    pub(super) fn input(self: &Arc<Self>, from: &[u8]) -> Result<usize, Errno> {
        {
            let state = lock(&self.state);
            if state.closed {
                return Err(Errno::EIO);
            }
            if state.pending.len() >= PENDING {
                return Err(Errno::EAGAIN);
            }
        }
        let waiting = self.with(|state| !state.pending.is_empty());
        let taken =
            if waiting { 0 } else { self.drive(|line, output, told| line.receive(from, output, told)) };
        let rest = from.get(taken..).unwrap_or_default();
        let kept = self.with(|state| {
            let room = PENDING.saturating_sub(state.pending.len()).min(rest.len());
            state.pending.extend(rest.iter().take(room));
            room
        });
        Ok(taken.saturating_add(kept))
    }

    /// The master reads: a packet where there are packets.
    pub(super) fn output(&self, to: &mut [u8]) -> Result<usize, Errno> {
        let mut state = lock(&self.state);
        let mut to = to;
        let mut extra = 0;
        if let Some(status) = &mut state.packet {
            let Some((first, rest)) = to.split_first_mut() else { return Ok(0) };
            *first = std::mem::take(status);
            if *first != 0 {
                return Ok(1);
            }
            (to, extra) = (rest, 1);
        }
        if state.output.is_empty() {
            return Err(if state.closed { Errno::EIO } else { Errno::EAGAIN });
        }
        let count = to.len().min(state.output.len());
        for (place, byte) in to.iter_mut().zip(state.output.drain(..count)) {
            *place = byte;
        }
        drop(state);
        self.slave_queue.notify(Events::OUT | Events::WRNORM);
        Ok(count.saturating_add(extra))
    }

    /// A slave writes.
    pub(super) fn write(&self, from: &[u8]) -> Result<usize, Errno> {
        let count = {
            let mut state = lock(&self.state);
            let State { line, output, .. } = &mut *state;
            line.write(from, output, OUTPUT)
        };
        if count == 0 && !from.is_empty() {
            return Err(Errno::EAGAIN);
        }
        self.master_queue.notify(Events::IN | Events::RDNORM);
        Ok(count)
    }

    pub(super) fn master_ready(&self) -> Events {
        let state = lock(&self.state);
        let mut ready = Events::empty();
        if !state.output.is_empty() {
            ready |= Events::IN | Events::RDNORM;
        }
        if state.packet.is_some_and(|status| status != 0) {
            ready |= Events::IN | Events::RDNORM | Events::PRI;
        }
        if state.pending.len() < PENDING {
            ready |= Events::OUT | Events::WRNORM;
        }
        if state.closed {
            ready |= Events::HUP;
        }
        ready
    }

    pub(super) fn slave_ready(&self) -> Events {
        let state = lock(&self.state);
        let (minimum, time) = state.line.termios().minimum_and_time();
        let mut ready = Events::empty();
        if state.line.readable(if time == 0 { minimum } else { 1 }) {
            ready |= Events::IN | Events::RDNORM;
        }
        if !state.line.is_stopped() && state.output.len() < OUTPUT / 2 {
            ready |= Events::OUT | Events::WRNORM;
        }
        ready
    }

    /// Changes the settings.
    pub(super) fn set_termios(self: &Arc<Self>, new: Termios, flush: bool) {
        let new = new.of_pty();
        let flows =
            |termios: &Termios| termios.i(flag::IXON) && termios.chars[8] == 0o21 && termios.chars[9] == 0o23;
        let (before, after) = (self.with(|state| flows(state.line.termios())), flows(&new));
        self.drive(|line, output, told| {
            if flush {
                line.flush_input();
            }
            line.set_termios(new, output, told);
        });
        self.with(|state| {
            if flush {
                state.pending.clear();
            }
            if let (Some(status), true) = (&mut state.packet, before != after) {
                *status &= !(packet::DO_STOP | packet::NO_STOP);
                *status |= if after { packet::DO_STOP } else { packet::NO_STOP };
            }
        });
        self.master_queue.notify(Events::IN | Events::PRI);
    }

    /// `TCFLSH` of what the slave reads, or of what it wrote.
    pub(super) fn flush(self: &Arc<Self>, input: bool, output: bool) {
        if input {
            self.with(|state| state.pending.clear());
            self.drive(|line, _, told| {
                line.flush_input();
                told.push(Happened::Flushed);
            });
        }
        if output {
            self.with(|state| state.output.clear());
            self.slave_queue.notify(Events::OUT | Events::WRNORM);
        }
    }

    /// Sends a character of the settings to the master (`tcflow(TCIOFF)`, `tcflow(TCION)`).
    pub(super) fn send_to_master(&self, place: usize) {
        self.with(|state| {
            let byte = state.line.termios().chars.get(place).copied().filter(|byte| *byte != 0);
            state.output.extend(byte.filter(|_| state.output.len() < OUTPUT));
        });
        self.master_queue.notify(Events::IN | Events::RDNORM);
    }

    /// Bytes that the master can read.
    pub(super) fn waiting(&self) -> u64 {
        lock(&self.state).output.len() as u64
    }
}

impl State {
    /// How many have the slave open.
    pub(super) fn slaves(&self) -> u32 {
        self.slaves
    }

    fn note(&mut self, happened: Happened) {
        let Some(status) = &mut self.packet else { return };
        *status |= match happened {
            Happened::Signal(_) => 0,
            Happened::Flushed => packet::FLUSH_READ,
            Happened::Stopped => {
                *status &= !packet::START;
                packet::STOP
            }
            Happened::Started => {
                *status &= !packet::STOP;
                packet::START
            }
        };
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.free(self.number);
        }
    }
}
