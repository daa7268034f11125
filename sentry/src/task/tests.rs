//! Programs that make system calls, as closures: what they see of each other.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::platform::{Memory, MemoryCall, Regs, RemoteMemory, Trap};
use crate::task::signal::{SigAction, SignalSet};
use crate::testing::{BASE, FlatThread};

mod anything;
mod life;
mod signals;
mod tracing;

/// Where handlers are.
const HANDLER: u64 = 0x5000;
/// Top of the stack.
const STACK: u64 = BASE + 0x8000;

type Program = Box<dyn FnOnce(&Cpu) + Send>;

/// A guest thread whose code is a closure on a host thread of its own.
struct Guest {
    flat: FlatThread,
    regs: Arc<Mutex<Regs>>,
    copy: Regs,
    go: Sender<()>,
    traps: Receiver<Trap>,
    trap: Sender<Trap>,
    running: bool,
    children: Arc<Mutex<VecDeque<Program>>>,
}

/// What a program has.
struct Cpu {
    regs: Arc<Mutex<Regs>>,
    memory: Arc<dyn RemoteMemory>,
    go: Receiver<()>,
    trap: Sender<Trap>,
    children: Arc<Mutex<VecDeque<Program>>>,
    /// Signals that handlers were called for.
    handled: Mutex<Vec<i32>>,
}

impl Guest {
    fn new(flat: FlatThread, program: Program) -> Self {
        let (go, gone) = channel();
        let (trap, traps) = channel();
        let regs = Arc::new(Mutex::new(Regs { rsp: STACK, rip: 0x1000, ..Regs::default() }));
        let children = Arc::new(Mutex::new(VecDeque::new()));
        let cpu = Cpu {
            regs: Arc::clone(&regs),
            memory: flat.remote(),
            go: gone,
            trap: trap.clone(),
            children: Arc::clone(&children),
            handled: Mutex::default(),
        };
        std::thread::spawn(move || {
            if cpu.go.recv().is_ok() {
                cpu.handlers();
                program(&cpu);
                cpu.sys(libc::SYS_exit_group, &[0]);
            }
        });
        let copy = *lock(&regs);
        Self { flat, regs, copy, go, traps, trap, running: false, children }
    }

    fn child(&self, flat: FlatThread) -> Result<Box<dyn Thread>, Errno> {
        let program = lock(&self.children).pop_front().ok_or(Errno::ENOMEM)?;
        Ok(Box::new(Self::new(flat, program)))
    }
}

impl Cpu {
    /// Makes a system call.
    fn sys(&self, number: i64, arguments: &[i64]) -> i64 {
        let argument = |at: usize| arguments.get(at).copied().unwrap_or(0).cast_unsigned();
        let after = {
            let mut regs = lock(&self.regs);
            regs.rax = number.cast_unsigned();
            (regs.rdi, regs.rsi, regs.rdx) = (argument(0), argument(1), argument(2));
            (regs.r10, regs.r8, regs.r9) = (argument(3), argument(4), argument(5));
            regs.rip += 2;
            regs.rip
        };
        let mut number = number.cast_unsigned();
        loop {
            if !self.trap(number) {
                return i64::MIN;
            }
            self.handlers();
            let regs = lock(&self.regs);
            if regs.rip == after {
                return regs.rax.cast_signed();
            }
            assert_eq!(regs.rip, after - 2, "the call is made again");
            number = regs.rax;
            drop(regs);
            lock(&self.regs).rip = after;
        }
    }

    fn trap(&self, number: u64) -> bool {
        self.trap.send(Trap::Syscall { number }).is_ok() && self.go.recv().is_ok()
    }

    /// Runs handlers for as long as the registers say so.
    fn handlers(&self) {
        loop {
            {
                let mut regs = lock(&self.regs);
                if regs.rip != HANDLER {
                    return;
                }
                lock(&self.handled).push(i32::try_from(regs.rdi).unwrap());
                regs.rsp += 8;
                regs.rax = 15;
            }
            if !self.trap(15) {
                return;
            }
        }
    }

    fn handled(&self) -> Vec<i32> {
        std::mem::take(&mut *lock(&self.handled))
    }

    fn fork(&self, program: impl FnOnce(&Cpu) + Send + 'static) -> i64 {
        self.clone(libc::SIGCHLD.into(), program)
    }

    fn clone(&self, flags: i64, program: impl FnOnce(&Cpu) + Send + 'static) -> i64 {
        lock(&self.children).push_back(Box::new(program));
        self.sys(libc::SYS_clone, &[flags, 0, BASE.cast_signed() + 512, BASE.cast_signed() + 512])
    }

    /// `wait4`: the child and its status.
    fn wait(&self, pid: i64, options: i32) -> (i64, i32) {
        let status = BASE + 256;
        let got = self.sys(libc::SYS_wait4, &[pid, status.cast_signed(), options.into(), 0]);
        (got, self.read(status).cast_signed())
    }

    fn read(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        assert_eq!(self.memory.read(address, &mut bytes), 4);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> i64 {
        assert_eq!(self.memory.write(address, bytes), bytes.len());
        address.cast_signed()
    }

    /// Handles a signal by noting it.
    fn handle(&self, signal: i32, flags: u64) {
        let flags = flags | 0x0400_0000;
        self.action(signal, SigAction { handler: HANDLER, flags, ..SigAction::default() });
    }

    fn action(&self, signal: i32, action: SigAction) {
        let at = self.write(BASE, &action.to_bytes());
        assert_eq!(self.sys(libc::SYS_rt_sigaction, &[signal.into(), at, 0, 8]), 0);
    }

    fn mask(&self, how: i32, signals: &[i32]) {
        let at = self.write(BASE, &SignalSet::of(signals).0.to_le_bytes());
        assert_eq!(self.sys(libc::SYS_rt_sigprocmask, &[how.into(), at, 0, 8]), 0);
    }

    fn kill(&self, pid: i64, signal: i32) -> i64 {
        self.sys(libc::SYS_kill, &[pid, signal.into()])
    }

    fn pid(&self) -> i64 {
        self.sys(libc::SYS_getpid, &[])
    }

    fn exit(&self, code: i64) {
        self.sys(libc::SYS_exit, &[code]);
    }

    fn pause(&self) -> i64 {
        self.sys(libc::SYS_pause, &[])
    }
}

impl Memory for Guest {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        self.flat.read(address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        self.flat.write(address, from)
    }
}

struct Knock(Mutex<Sender<Trap>>);

impl Interrupt for Knock {
    fn interrupt(&self) {
        // A guest that is gone needs no interrupt.
        let _ = lock(&self.0).send(Trap::Interrupted);
    }
}

impl Thread for Guest {
    fn resume(&mut self) -> Trap {
        if !self.running {
            *lock(&self.regs) = self.copy;
            self.running = true;
            if self.go.send(()).is_err() {
                return Trap::Gone;
            }
        }
        let mut trap = self.traps.recv().unwrap_or(Trap::Gone);
        while trap == Trap::Interrupted {
            // A closure cannot be stopped between its calls: its registers are its own until the next one.
            match self.traps.recv_timeout(Duration::from_millis(50)) {
                Ok(next) => trap = next,
                Err(_) => return Trap::Interrupted,
            }
        }
        self.running = false;
        self.copy = *lock(&self.regs);
        trap
    }

    fn regs(&mut self) -> &mut Regs {
        &mut self.copy
    }

    fn fs_base(&mut self) -> &mut u64 {
        self.flat.fs_base()
    }

    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        Ok(Vec::new())
    }

    fn set_vector_state(&mut self, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        self.flat.change_memory(call)
    }

    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        self.flat.compare_exchange(address, expected, new)
    }

    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        let copy = self.flat.copy();
        self.child(copy)
    }

    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        let shared = self.flat.share();
        self.child(shared)
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::new(Knock(Mutex::new(self.trap.clone())))
    }

    fn remote(&self) -> Arc<dyn RemoteMemory> {
        self.flat.remote()
    }
}

/// Runs a program as the first process. Its status.
fn run_first(program: impl FnOnce(&Cpu) + Send + 'static) -> i32 {
    run_in(&Kernel::for_test(), program)
}

/// Runs a program as a process from outside. Its status.
fn run_in(kernel: &Arc<Kernel>, program: impl FnOnce(&Cpu) + Send + 'static) -> i32 {
    let task = Task::for_test(kernel);
    let failed = Arc::new(Mutex::new(None::<String>));
    let told = Arc::clone(&failed);
    let caught = move |cpu: &Cpu| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| program(cpu)));
        if result.is_err() {
            *lock(&told) = Some("the program failed".into());
            cpu.sys(libc::SYS_exit_group, &[99]);
        }
    };
    let guest = Guest::new(FlatThread::new(1 << 16), Box::new(caught));
    let (group, served) = (Arc::clone(task.group()), Arc::clone(kernel));
    kernel.workers.run(Box::new(move || run(&served, &task, Box::new(guest)))).unwrap();
    let status = group.wait_exited(Some(Instant::now() + Duration::from_secs(20)));
    assert_eq!(*lock(&failed), None);
    status.expect("the process ends")
}
