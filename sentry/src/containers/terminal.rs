//! What is typed at a terminal of the host, or sent by a client, goes to a container's own terminal, and what is shown there comes back.
//!
//! One thread for each terminal carries both ways. It sleeps until there is news of either end, and ends when nobody can show anything any
//! more: the process that the terminal was made for ended, and nobody else has it open.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use crate::control::message::Size;
use crate::error::Errno;
use crate::events::{Events, Waiter, Wake};
use crate::sync::lock;
use crate::task::ThreadGroup;
use crate::vfs::host_io::HostIo;
use crate::vfs::tty::{Console, host_size};
use crate::vfs::{Caller, Flags, OpenFile};

/// Bytes that are carried at once.
const PART: usize = 4096;

/// A container's terminal with what it is connected to.
pub(super) struct Terminal {
    console: Console,
    /// A terminal of the host, whose size is this one's.
    host: Mutex<Option<OwnedFd>>,
    size: Mutex<Option<Size>>,
    ends: Mutex<Option<(Arc<OpenFile>, Arc<OpenFile>)>>,
    waiter: Arc<Waiter>,
}

impl Terminal {
    /// Connects a terminal with what is typed and what is shown.
    pub(super) fn open(console: Console, (input, output): (OwnedFd, OwnedFd)) -> Result<Arc<Self>, Errno> {
        let host = host_size(&output).and_then(|_| output.try_clone().ok());
        let input = HostIo::open(input, Flags::READ)?;
        let output = HostIo::open(output, Flags(libc::O_WRONLY.cast_unsigned()))?;
        let terminal = Self {
            console,
            host: Mutex::new(host),
            size: Mutex::default(),
            ends: Mutex::new(Some((input, output))),
            waiter: Waiter::new(),
        };
        terminal.follow_host();
        Ok(Arc::new(terminal))
    }

    /// Carries from now on, until `process` ended and the terminal is not used any more.
    pub(super) fn carry(self: &Arc<Self>, process: Arc<ThreadGroup>) -> Result<(), Errno> {
        let Some((input, output)) = lock(&self.ends).take() else { return Ok(()) };
        let terminal = Arc::clone(self);
        let thread = std::thread::Builder::new().name("terminal".to_owned()).stack_size(64 << 10);
        let work = move || {
            terminal.run(&process, &input, &output);
            // Who holds the other end of the host's terminal sees that this one is gone.
            drop(lock(&terminal.host).take());
        };
        thread.spawn(work).map(drop).map_err(|_| Errno::EAGAIN)
    }

    /// Changes its size.
    pub(super) fn resize(&self, size: Size) {
        *lock(&self.size) = Some(size);
        self.console.resize(size.rows, size.columns);
    }

    /// Takes over the size of the host's terminal where that has changed.
    fn follow_host(&self) {
        let Some((rows, columns)) = lock(&self.host).as_ref().and_then(host_size) else { return };
        let size = Size { rows, columns };
        if (rows, columns) != (0, 0) && *lock(&self.size) != Some(size) {
            self.resize(size);
        }
    }

    fn run(&self, process: &ThreadGroup, input: &Arc<OpenFile>, output: &Arc<OpenFile>) {
        let wake: Arc<dyn Wake> = Arc::clone(&self.waiter) as Arc<dyn Wake>;
        let master = self.console.master();
        for file in [input, output, master] {
            if let Some(queue) = file.file().queue() {
                queue.add(Events::IN | Events::OUT | Events::RDHUP, &wake);
            }
        }
        process.exit_events().add(Events::CHANGED, &wake);
        let (mut typed, mut shown) = (Carried::default(), Carried::default());
        loop {
            self.waiter.clear();
            let orphaned = process.exit_status().is_some();
            // Whether it is used is looked at before the last of it is read.
            let unused = orphaned && self.console.unused();
            let mut moved = typed.carry(input, master);
            if moved {
                self.follow_host();
            }
            if typed.broken && lock(&self.host).is_some() {
                // The host's terminal hung up, and so does this one.
                self.console.hang_up();
                return;
            }
            moved |= shown.carry(master, output);
            if !moved && (unused && shown.is_empty() || shown.broken && orphaned) {
                return;
            }
            if !moved {
                self.waiter.wait(None);
            }
        }
    }
}

/// Bytes on their way.
#[derive(Default)]
struct Carried {
    bytes: Vec<u8>,
    done: usize,
    /// Nobody takes them any more, or none come.
    broken: bool,
}

impl Carried {
    fn is_empty(&self) -> bool {
        self.broken || self.done >= self.bytes.len()
    }

    /// Carries what can be carried without waiting. Whether there was something.
    fn carry(&mut self, from: &OpenFile, to: &OpenFile) -> bool {
        if self.broken {
            return false;
        }
        let mut moved = false;
        if self.done >= self.bytes.len() {
            self.bytes.resize(PART, 0);
            match from.read(&mut self.bytes) {
                Ok(count) if count > 0 => {
                    self.bytes.truncate(count);
                    moved = true;
                }
                other => {
                    self.bytes = Vec::new();
                    // A master whose slave nobody has open may be opened again; its end is found out elsewhere.
                    self.broken = matches!(other, Ok(_) | Err(Errno::EBADF));
                }
            }
            self.done = 0;
        }
        while let Some(rest) = self.bytes.get(self.done..).filter(|rest| !rest.is_empty()) {
            match to.write(&Caller::root(), rest) {
                Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => break,
                Ok(count) => {
                    self.done = self.done.saturating_add(count);
                    moved = true;
                }
                // Nobody has the slave open now: what is typed is lost, as it is on Linux.
                Err(Errno::EIO) => {
                    self.done = self.bytes.len();
                    moved = true;
                }
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
        moved
    }
}
