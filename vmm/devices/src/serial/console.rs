//! The 16550A.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use crate::interrupt::Interrupt;

/// Bytes kept until a line is complete.
const BUFFER: usize = 1024;

struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.raise()
    }
}

/// Gathers bytes to lines; never waits, never fails.
struct Sink {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    written: u64,
    lost: u64,
}

impl Sink {
    fn drain(&mut self) {
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.lost += rest.len() as u64;
        self.written += (self.buffer.len() - rest.len()) as u64;
        self.buffer.clear();
    }
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for &byte in data {
            self.buffer.push(byte);
            if byte == b'\n' || self.buffer.len() >= BUFFER {
                self.drain();
            }
        }
        Ok(data.len())
    }

    /// The UART calls this after every byte; lines are what we flush by.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A 16550A whose output goes to a writer. Shared between vCPU threads.
pub struct Serial {
    uart: Mutex<vm_superio::Serial<Line, NoEvents, Sink>>,
}

impl Serial {
    /// A UART that prints to `out` (open it non-blocking if it can block) and interrupts by `line`.
    pub fn new(line: Arc<dyn Interrupt>, out: Box<dyn Write + Send>) -> Self {
        let sink = Sink { out, buffer: Vec::with_capacity(BUFFER), written: 0, lost: 0 };
        Self { uart: Mutex::new(vm_superio::Serial::new(Line(line), sink)) }
    }

    /// The guest reads the register at `offset` (0 to 7) from the port's base.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        data.fill(0);
        // Only byte accesses exist on this bus.
        if let [byte] = data {
            *byte = self.lock().read(offset);
        }
    }

    /// The guest writes the register at `offset`.
    pub fn write(&self, offset: u8, data: &[u8]) {
        if let [byte] = data {
            // What can fail is the interrupt: the guest then polls.
            let _ = self.lock().write(offset, *byte);
        }
    }

    /// Writes out an incomplete last line, at the end of the VM.
    pub fn flush(&self) {
        self.lock().writer_mut().drain();
    }

    /// Counters since the VM's start.
    pub fn counters(&self) -> impl Iterator<Item = (String, u64)> + use<> {
        let uart = self.lock();
        let sink = uart.writer();
        [("serial.bytes".into(), sink.written), ("serial.lost_bytes".into(), sink.lost)].into_iter()
    }

    fn lock(&self) -> MutexGuard<'_, vm_superio::Serial<Line, NoEvents, Sink>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn input_fifo_len(&self) -> usize {
        self.lock().state().in_buffer.len()
    }
}
