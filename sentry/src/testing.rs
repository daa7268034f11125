//! A guest thread without a guest, for tests and fuzzing of what is above the platform: its memory is a vector.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Errno;
use crate::platform::{Interrupt, Memory, MemoryCall, Regs, RemoteMemory, Thread, Trap};

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
        let mut bytes = [0; 4];
        if self.read(address, &mut bytes) != 4 {
            return Err(Errno::EFAULT);
        }
        let seen = u32::from_le_bytes(bytes);
        if seen == expected {
            self.write(address, &new.to_le_bytes());
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
