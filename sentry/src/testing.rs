//! A guest thread without a guest, for tests and fuzzing of what is above the platform: its memory is a vector.

use std::sync::{Arc, Mutex, PoisonError};

use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::kernel::Kernel;
use crate::platform::{Interrupt, Memory, MemoryCall, Platform, Regs, RemoteMemory, Thread, Trap};
use crate::syscalls::{Entry, NUMBERS, table};
use crate::task::{Credentials, Limits, NewProcess, Task};
use crate::vfs::{FdTable, FsContext};

/// Where the memory begins.
pub const BASE: u64 = 0x1_0000;

/// A thread whose memory is [`BASE`] to `BASE + size`. It never runs code; changes of memory succeed and do nothing.
pub struct FlatThread {
    memory: Arc<FlatMemory>,
    regs: Regs,
    fs_base: u64,
}

struct FlatMemory(Mutex<Vec<u8>>);

impl FlatThread {
    /// With so many bytes of memory, all 0.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { memory: Arc::new(FlatMemory(Mutex::new(vec![0; size]))), regs: Regs::default(), fs_base: 0 }
    }

    /// Another one with a copy of its memory.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { memory: Arc::new(FlatMemory(Mutex::new(copy))), regs: self.regs, fs_base: self.fs_base }
    }

    /// Another one with the same memory.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), regs: self.regs, fs_base: self.fs_base }
    }
}

impl FlatMemory {
    fn part(bytes: usize, address: u64, length: usize) -> std::ops::Range<usize> {
        match address.checked_sub(BASE).and_then(|start| usize::try_from(start).ok()) {
            Some(start) if start < bytes => start..start.saturating_add(length).min(bytes),
            _ => 0..0,
        }
    }
}

impl Memory for FlatMemory {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = Self::part(memory.len(), address, to.len());
        to[..part.len()].copy_from_slice(&memory[part.clone()]);
        part.len()
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = Self::part(memory.len(), address, from.len());
        memory[part.clone()].copy_from_slice(&from[..part.len()]);
        part.len()
    }
}

impl RemoteMemory for FlatMemory {}

impl Memory for FlatThread {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        self.memory.read(address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        self.memory.write(address, from)
    }
}

struct Nothing;

impl Interrupt for Nothing {
    fn interrupt(&self) {}
}

impl Thread for FlatThread {
    fn resume(&mut self) -> Trap {
        Trap::Gone
    }

    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn fs_base(&mut self) -> &mut u64 {
        &mut self.fs_base
    }

    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        Ok(Vec::new())
    }

    fn set_vector_state(&mut self, _state: &[u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno> {
        Ok(match call {
            MemoryCall::Map { address, .. } => *address,
            MemoryCall::Move { new_address, .. } => *new_address,
            _ => 0,
        })
    }

    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno> {
        let mut memory = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = FlatMemory::part(memory.len(), address, 4);
        let word: &mut [u8; 4] = (&mut memory[part]).try_into().map_err(|_| Errno::EFAULT)?;
        let seen = u32::from_le_bytes(*word);
        if seen == expected {
            *word = new.to_le_bytes();
        }
        Ok(seen)
    }

    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(self.copy()))
    }

    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(self.share()))
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::new(Nothing)
    }

    fn remote(&self) -> Arc<dyn RemoteMemory> {
        Arc::clone(&self.memory) as Arc<dyn RemoteMemory>
    }
}

/// Guests without code.
struct Flat;

/// Bytes of memory that each of them has.
const SIZE: usize = 1 << 20;

impl Platform for Flat {
    fn name(&self) -> &'static str {
        "flat"
    }

    fn new_address_space(&self) -> Result<Box<dyn Thread>, Errno> {
        Ok(Box::new(FlatThread::new(SIZE)))
    }

    fn guest_range(&self) -> std::ops::Range<u64> {
        BASE..BASE + SIZE as u64
    }
}

/// A platform whose guests have no code.
#[must_use]
pub fn flat() -> Box<dyn Platform> {
    Box::new(Flat)
}

/// A task with a [`FlatThread`] whose calls are made by a test.
pub struct Guest {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// The task.
    pub task: Arc<Task>,
    /// Its memory.
    pub thread: FlatThread,
    table: [Option<Entry>; NUMBERS],
    used: u64,
}

impl Guest {
    /// With so much memory, at this place in the tree of names.
    #[must_use]
    pub fn new(size: usize, fs: FsContext) -> Self {
        Self::with_files(size, FdTable::default(), fs)
    }

    /// With these open files besides.
    ///
    /// # Panics
    /// Never: a new kernel has room for a task.
    #[must_use]
    #[allow(clippy::unwrap_used, reason = "of tests")]
    pub fn with_files(size: usize, files: FdTable, fs: FsContext) -> Self {
        let kernel = Kernel::for_test();
        let new = NewProcess {
            credentials: Credentials::root(),
            limits: Limits::default(),
            files: Arc::new(files),
            fs: Arc::new(fs),
            space: Arc::default(),
            namespaces: None,
            container: 0,
        };
        let task = kernel.new_process(new).unwrap();
        Self { kernel, task, thread: FlatThread::new(size), table: table(), used: 0 }
    }

    /// Puts bytes into memory that nothing else is in; where.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = BASE + self.used;
        self.used = (self.used + bytes.len() as u64).next_multiple_of(16);
        assert_eq!(self.thread.write(address, bytes), bytes.len(), "the guest's memory is full");
        address
    }

    /// Puts text with its 0.
    pub fn text(&mut self, text: &str) -> u64 {
        self.put(&[text.as_bytes(), &[0]].concat())
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert_eq!(self.thread.read(address, &mut bytes), length);
        bytes
    }

    /// Makes a system call.
    ///
    /// # Errors
    /// What the call gives; ENOSYS where there is none of that number.
    pub fn call(&mut self, number: i64, arguments: &[u64]) -> SysResult {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let entry = self.table.get(number.unsigned_abs() as usize).copied().flatten();
        let entry = entry.ok_or(Errno::ENOSYS)?;
        let mut call = Call { kernel: &self.kernel, task: &self.task, thread: &mut self.thread };
        (entry.handler)(&mut call, all)
    }
}
