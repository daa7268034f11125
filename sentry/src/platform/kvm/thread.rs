//! A guest thread: a thread of a stub, and the virtual processor that it runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::interrupt::KvmInterrupt;
use super::machine::{Machine, Page};
use super::shim::{self, kind, place};
use super::{fault, processor, requests};
use crate::error::Errno;
use crate::platform::systrap::layout::{FLAGS, TASK_SIZE, at};
use crate::platform::systrap::remote::Process;
use crate::platform::systrap::step::TRAP_FLAG;
use crate::platform::systrap::thread::StubThread;
use crate::platform::{Interrupt, Memory, MemoryCall, Regs, RemoteMemory, Thread, Trap};

/// A guest thread.
pub(super) struct KvmThread {
    pub(super) stub: StubThread,
    pub(super) machine: Arc<Machine>,
    regs: Regs,
    fs_base: u64,
    /// The guest is to run for one instruction.
    stepping: bool,
    /// Descriptor of the processor, once there is one.
    processor: Option<u64>,
    /// What its vector state will be: as long as there is no processor.
    vector: Vec<u8>,
    interrupt: Arc<KvmInterrupt>,
    /// Tables of which generation the processor has seen.
    seen: Option<u64>,
}

/// Why a processor came out.
enum Out {
    Call,
    Exception,
    /// It was stopped: the registers are in the context.
    Stopped,
    /// The host could not give it memory that its tables have.
    Doubted,
    Gone,
}

/// So often the host may refuse a guest memory in a row that it then finds for the stub.
const DOUBTS: u32 = 16;

/// Bytes of what FXSAVE saves, and of these and XSAVE's header, which says what of the rest is there.
const LEGACY: usize = 512;
const WITH_HEADER: usize = 576;

/// Vector state of a new program: x87 and SSE as they begin.
fn initial_vector() -> Vec<u8> {
    let mut state = vec![0; WITH_HEADER];
    state[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    state[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    state[LEGACY] = 3;
    state
}

impl KvmThread {
    /// The first thread of a stub that nobody has used.
    pub(super) fn new(stub: StubThread, machine: Machine) -> Self {
        Self::with(stub, Arc::new(machine), initial_vector())
    }

    fn with(stub: StubThread, machine: Arc<Machine>, vector: Vec<u8>) -> Self {
        let interrupt = Arc::new(KvmInterrupt::new(&stub));
        machine.enter(&interrupt);
        Self {
            stub,
            machine,
            regs: Regs::default(),
            fs_base: 0,
            stepping: false,
            processor: None,
            vector,
            interrupt,
            seen: None,
        }
    }

    fn child(&mut self, stub: StubThread, machine: Arc<Machine>) -> Result<Self, Errno> {
        let vector = self.vector_state()?;
        let mut child = Self::with(stub, machine, vector);
        (child.regs, child.fs_base) = (self.regs, self.fs_base);
        // Only the shim has this one. The context may be one that another thread had.
        child.stub.context.store(place::GS_BASE, self.stub.context.load(place::GS_BASE));
        Ok(child)
    }

    /// Its processor, which is made when it first runs.
    fn processor(&mut self) -> Result<u64, Errno> {
        if let Some(known) = self.processor {
            return Ok(known);
        }
        let (made, new) = self.machine.processor(&self.stub)?;
        if new {
            processor::begin(&self.stub, &self.machine.host, made)?;
        }
        processor::prepare(&self.stub, &self.machine.host, made, &self.vector)?;
        self.interrupt.set_immediate_exit(false);
        self.processor = Some(made);
        Ok(made)
    }

    /// Puts the registers where the shim takes them from.
    fn put_registers(&self) {
        // No code of ring 0 runs under it: the processor takes it back where the guest traps.
        let trap = if self.stepping { TRAP_FLAG } else { 0 };
        let eflags = (self.regs.eflags & FLAGS) | 0x202 | trap;
        self.stub.context.set_regs(&Regs { eflags, ..self.regs });
        self.stub.context.store(at::FS_BASE, self.fs_base);
    }

    /// Takes them from where it puts them.
    fn take_registers(&mut self) {
        self.regs = self.stub.context.regs();
        self.fs_base = self.stub.context.load(at::FS_BASE);
    }

    /// Lets the guest run until its processor comes out; `None` where it was asked to stop before.
    fn run(&mut self, processor: u64) -> Option<Out> {
        let interrupt = Arc::clone(&self.interrupt);
        self.put_registers();
        let generation = loop {
            interrupt.in_guest.store(true, Ordering::SeqCst);
            if interrupt.requested.swap(false, Ordering::SeqCst) {
                interrupt.in_guest.store(false, Ordering::SeqCst);
                return None;
            }
            if let Some(generation) = self.machine.generation() {
                break generation;
            }
            interrupt.in_guest.store(false, Ordering::SeqCst);
            self.machine.wait();
        };
        // One that another thread had, too, may know older tables.
        if self.seen.replace(generation) != Some(generation) {
            self.stub.context.u32_at(place::FLUSH).store(1, Ordering::SeqCst);
        }
        let out = self.enter(processor);
        interrupt.in_guest.store(false, Ordering::SeqCst);
        Some(match out {
            Ok(out) => out,
            Err(Errno::EINTR) => self.take_out(processor, Out::Stopped),
            Err(Errno::EFAULT) if !self.stub.stub.is_dead() => self.take_out(processor, Out::Doubted),
            Err(error) => self.broken(error),
        })
    }

    /// Enters the machine once.
    fn enter(&mut self, processor: u64) -> Result<Out, Errno> {
        let kind = self.stub.context.u32_at(place::KIND);
        kind.store(0, Ordering::SeqCst);
        processor::run(&self.stub, processor)?;
        let out = match kind.load(Ordering::SeqCst) {
            kind::CALL => Out::Call,
            kind::EXCEPTION => Out::Exception,
            _ => return Ok(self.broken(Errno::EIO)),
        };
        self.take_registers();
        Ok(out)
    }

    /// Gets a processor that came out somewhere to where it can be entered anew.
    fn take_out(&mut self, processor: u64, why: Out) -> Out {
        self.interrupt.set_immediate_exit(false);
        let stopped = if self.interrupt.byte(requests::IF_FLAG) != 0 {
            processor::trap(&self.stub, processor).map(|()| false)
        } else {
            processor::is_resuming(&self.stub, processor)
        };
        match stopped {
            // In the shim, with what it was given still in the context.
            Ok(true) => match processor::restart(&self.stub, processor) {
                Ok(()) => return why,
                Err(error) => return self.broken(error),
            },
            Ok(false) => {}
            Err(error) => return self.broken(error),
        }
        loop {
            match self.enter(processor) {
                Ok(Out::Exception) if self.vector_number() == u64::from(shim::INTERRUPTED) => return why,
                Ok(out) => {
                    // It trapped by itself before; whoever asked for it is heard next time.
                    self.interrupt.requested.store(true, Ordering::SeqCst);
                    return out;
                }
                Err(Errno::EINTR) => self.interrupt.set_immediate_exit(false),
                Err(error) => return self.broken(error),
            }
        }
    }

    /// The host does not run it: what it says is for the operator.
    fn broken(&self, error: Errno) -> Out {
        if !self.stub.stub.is_dead() {
            let reason = self.interrupt.byte(requests::EXIT_REASON);
            self.machine.host.warn(Some(reason), error, "a virtual processor, whose guest ends");
        }
        Out::Gone
    }

    fn vector_number(&self) -> u64 {
        self.stub.context.load(place::VECTOR)
    }

    /// What an exception is to the guest's kernel; `None` where it goes on.
    fn exception(&mut self, processor: u64) -> Option<Trap> {
        let context = &self.stub.context;
        let (number, error) = (self.vector_number(), context.load(place::ERROR));
        if fault::is_call(&self.stub, self.regs.rip, number, error) {
            self.regs.rip = self.regs.rcx;
            self.regs.eflags = self.regs.r11;
            return Some(Trap::Syscall { number: self.regs.rax });
        }
        if context.load(place::CS) & 3 == 0 {
            return Some(self.gone());
        }
        if number != fault::PAGE_FAULT {
            let floating = |this: &Self| processor::vector(&this.stub, processor).unwrap_or_default();
            return fault::trap(number, error, self.regs.rip, || floating(self));
        }
        let address = context.load(place::CR2);
        match self.machine.page_fault(&self.stub, address, error) {
            Ok(Page::There) => None,
            Ok(Page::Refused(signal, code)) => {
                Some(Trap::Fault { signal, code, address, exception: (number, error) })
            }
            Err(error) => {
                self.broken(error);
                Some(self.gone())
            }
        }
    }

    fn gone(&self) -> Trap {
        self.stub.stub.kill();
        Trap::Gone
    }
}

impl Memory for KvmThread {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        self.stub.read(address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        self.stub.write(address, from)
    }
}

impl Thread for KvmThread {
    fn resume(&mut self) -> Trap {
        let processor = match self.processor() {
            Ok(processor) => processor,
            Err(error) => {
                self.broken(error);
                return self.gone();
            }
        };
        let mut doubts = 0;
        loop {
            // The shim would fault.
            if self.regs.rip >= TASK_SIZE || !fault::is_canonical(self.fs_base) {
                return fault::general_protection();
            }
            let Some(out) = self.run(processor) else { return Trap::Interrupted };
            match out {
                Out::Call => return Trap::Syscall { number: self.regs.rax },
                Out::Exception => {
                    if let Some(trap) = self.exception(processor) {
                        return trap;
                    }
                }
                Out::Stopped => {
                    if self.interrupt.requested.swap(false, Ordering::SeqCst) {
                        return Trap::Interrupted;
                    }
                }
                Out::Doubted if doubts < DOUBTS => {
                    doubts += 1;
                    if self.machine.doubt(&self.stub).is_err() {
                        return self.gone();
                    }
                }
                Out::Doubted => return fault::no_memory(),
                Out::Gone => return self.gone(),
            }
        }
    }

    fn step(&mut self) -> Trap {
        self.stepping = true;
        let trap = self.resume();
        self.stepping = false;
        self.regs.eflags &= !TRAP_FLAG;
        trap
    }

    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn fs_base(&mut self) -> &mut u64 {
        &mut self.fs_base
    }

    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        let mut state = match self.processor {
            Some(processor) => processor::vector(&self.stub, processor)?,
            None => self.vector.clone(),
        };
        state.resize(self.machine.host.vector_size, 0);
        Ok(state)
    }

    fn set_vector_state(&mut self, state: &[u8]) -> Result<(), Errno> {
        if state.len() < LEGACY || state.len() > requests::XSAVE_SIZE {
            return Err(Errno::EINVAL);
        }
        let mut whole = vec![0; state.len().max(WITH_HEADER)];
        // Bytes 464 to 511 are software's. Without a header only what FXSAVE has is loaded.
        whole[..464].copy_from_slice(&state[..464]);
        if state.len() < WITH_HEADER {
            whole[LEGACY] = 3;
        } else {
            whole[LEGACY..].copy_from_slice(&state[LEGACY..]);
        }
        // The host says what is no valid state.
        let processor = self.processor()?;
        processor::set_vector(&self.stub, processor, &whole).map_err(|_| Errno::EINVAL)
    }

    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        self.machine.change(&mut self.stub, call)
    }

    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        self.stub.compare_exchange(address, expected, new)
    }

    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        let (stub, machine) = self.machine.fork(&mut self.stub)?;
        Ok(Box::new(self.child(stub, Arc::new(machine))?))
    }

    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        let stub = self.stub.spawn_thread()?;
        if stub.slot >= self.machine.host.threads {
            return Err(Errno::EAGAIN);
        }
        let machine = Arc::clone(&self.machine);
        Ok(Box::new(self.child(stub, machine)?))
    }

    fn release(&mut self) {
        self.stub.release();
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }

    fn remote(&self) -> Arc<dyn RemoteMemory> {
        self.stub.remote()
    }
}
