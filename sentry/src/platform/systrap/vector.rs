//! The guest's vector registers: where the host put them when the guest trapped, or else in the stub's processor, which saves, loads and pushes
//! them when it is asked.
//!
//! What a signal's handler finds is put on its stack by the stub itself, and taken from there by it: these are some 50 cache lines, which would
//! change their processor twice.

use std::sync::LazyLock;

use super::layout::{at, context_address, op};
use super::thread::StubThread;
use super::turn::ends_before_stub;
use crate::error::Errno;

impl StubThread {
    /// As [`Thread::vector_state`](crate::platform::Thread::vector_state).
    pub(super) fn save_vector(&self) -> Result<Vec<u8>, Errno> {
        self.load_now();
        if self.context.load(at::FRAME) != 0 {
            let (offset, size) = self.framed_vector_state()?;
            let mut state = vec![0; size];
            self.context.read(offset, &mut state);
            return Ok(state);
        }
        self.ask(op::SAVE_VECTOR, &[])?;
        let mut state = vec![0; vector_size()];
        self.context.read(at::VECTOR, &mut state);
        Ok(state)
    }

    /// Bytes that [`push_vector_and_frame`](Self::push_vector_and_frame) puts on a stack.
    pub(super) fn pushed_vector(&self) -> Option<usize> {
        // A host's frame has it else.
        (self.context.load(at::FRAME) == 0).then(vector_size)
    }

    /// As [`Thread::push_frame`](crate::platform::Thread::push_frame).
    pub(super) fn push_vector_and_frame(&self, vector: u64, place: u64, frame: &[u8]) -> Result<(), Errno> {
        let size = self.pushed_vector().ok_or(Errno::ENOSYS)?;
        if !ends_before_stub(vector, size + 4)
            || !ends_before_stub(place, frame.len())
            || frame.len() > at::LATE_SIZE
        {
            return Err(Errno::EFAULT);
        }
        self.finish_late();
        self.load_now();
        self.context.write(at::LATE_BYTES, frame);
        match self.ask(op::PUSH, &[vector, size as u64, place, frame.len() as u64])? {
            0 => Ok(()),
            _ => Err(Errno::EFAULT),
        }
    }

    /// Bytes that [`load_vector_from`](Self::load_vector_from) takes.
    pub(super) fn loaded_vector(&self) -> Option<usize> {
        self.framed_vector_state().ok().map(|(_, size)| size)
    }

    /// As [`Thread::load_state`](crate::platform::Thread::load_state).
    pub(super) fn load_vector_from(&self, from: u64) -> Result<(), Errno> {
        let (offset, size) = self.framed_vector_state()?;
        if !ends_before_stub(from, size) || size <= 512 {
            return Err(Errno::EFAULT);
        }
        let to = context_address(self.slot) + offset as u64;
        // The frame's own description of itself, between the two, stays.
        let copied =
            self.copy(to, from, 464) == 464 && self.copy(to + 512, from + 512, size - 512) == size - 512;
        if copied { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// As [`Thread::set_vector_state`](crate::platform::Thread::set_vector_state).
    pub(super) fn load_vector(&self, state: &[u8]) -> Result<(), Errno> {
        if state.len() < 512 || state.len() > at::VECTOR_SIZE {
            return Err(Errno::EINVAL);
        }
        self.load_now();
        let mut whole = state.to_vec();
        // Bytes 464 to 511 are software's; 512 to 575 the header: without one, only what FXSAVE has is loaded.
        if whole.len() < 576 {
            whole.resize(576, 0);
            whole[512] = 3;
        }
        if self.context.load(at::FRAME) != 0 {
            let (offset, size) = self.framed_vector_state()?;
            let keep = size.min(whole.len());
            // The frame's own description of itself stays.
            self.context.write(offset, &whole[..464]);
            self.context.write(offset + 512, &whole[512..keep.max(512)]);
            return Ok(());
        }
        self.context.write(at::VECTOR, &whole);
        match self.ask(op::LOAD_VECTOR, &[])? {
            0 => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Where in the context the vector state of a signal frame lies, and its length. EFAULT where there is no frame.
    fn framed_vector_state(&self) -> Result<(usize, usize), Errno> {
        let here = context_address(self.slot);
        let inside = |address: u64| address.checked_sub(here).and_then(|offset| usize::try_from(offset).ok());
        let frame = inside(self.context.load(at::FRAME)).ok_or(Errno::EFAULT)?;
        if frame.checked_add(232).is_none_or(|end| end > at::WINDOW) || !frame.is_multiple_of(8) {
            return Err(Errno::EFAULT);
        }
        let state = inside(self.context.load(frame + 224)).ok_or(Errno::EFAULT)?;
        if state.checked_add(512).is_none_or(|end| end > at::WINDOW) || !state.is_multiple_of(8) {
            return Err(Errno::EFAULT);
        }
        // struct _fpx_sw_bytes at 464: magic1, extended_size, xfeatures, xstate_size.
        let size = (self.context.load(state + 480) & 0xffff_ffff) as usize;
        let size = if size < 576 { 512 } else { size };
        if state.checked_add(size).is_none_or(|end| end > at::WINDOW) {
            return Err(Errno::EFAULT);
        }
        Ok((state, size))
    }
}

/// Bytes of this processor's vector state (CPUID 0xd, `ebx` of leaf 0: what the features in force take).
fn vector_size() -> usize {
    // The instruction takes microseconds where the host is a virtual machine itself.
    static SIZE: LazyLock<usize> = LazyLock::new(|| core::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize);
    SIZE.clamp(576, at::VECTOR_SIZE)
}
