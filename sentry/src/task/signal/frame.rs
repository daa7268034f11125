//! What a handler finds on its stack, byte for byte as Linux makes it on x86-64, and the way back.
//!
//! Sources: `x64_setup_rt_frame` and `rt_sigreturn` (`arch/x86/kernel/signal_64.c`), `get_sigframe` (`arch/x86/kernel/signal.c`),
//! `copy_fpstate_to_sigframe` (`arch/x86/kernel/fpu/signal.c`), `arch/x86/include/uapi/asm/sigcontext.h`.
//!
//! ```text
//! rsp → 0    where the handler returns to (sa_restorer)
//!       8    ucontext: flags, link, stack (24), mcontext (256), mask
//!       312  siginfo (128)
//!       440
//!  …    XSAVE area at a multiple of 64, then FP_XSTATE_MAGIC2
//! old rsp - 128
//! ```

use super::action::{SA_ONSTACK, SA_RESTORER, SS_AUTODISARM};
use super::{AltStack, SigAction, SignalInfo, SignalSet};
use crate::error::Errno;
use crate::platform::{Regs, Thread};

/// Bytes of `struct rt_sigframe`.
const FRAME: usize = 440;
/// Of `ucontext` in it.
const UCONTEXT: usize = 8;
/// Of `uc_stack`.
const STACK: usize = UCONTEXT + 16;
/// Of `uc_mcontext`.
const MCONTEXT: usize = UCONTEXT + 40;
/// Of the pointer to vector state.
const FPSTATE: usize = MCONTEXT + 184;
/// Of `uc_sigmask`.
const MASK: usize = UCONTEXT + 296;
/// Of `siginfo`.
const INFO: usize = UCONTEXT + 304;
/// Between a frame and its vector state at most, as Linux places them.
const GAP: usize = 64;
/// Below `rsp` a function may keep what it likes.
const RED_ZONE: u64 = 128;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const USER_CS: u16 = 0x33;
const USER_DS: u16 = 0x2b;

const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Of `struct _fpx_sw_bytes` in the area.
const SW_RESERVED: usize = 464;
/// Of the header of an XSAVE area; with it, an area is at least 576 bytes.
const XSAVE_HEADER: usize = 512;
const XSAVE_SMALLEST: usize = 576;
/// No vector state is larger, with all that processors have so far.
const XSAVE_LARGEST: usize = 16 << 10;

/// Flags that a program may set by `rt_sigreturn` (`FIX_EFLAGS`).
const SETTABLE_FLAGS: u64 = 0x5_0dd5;
/// Direction, resume, trap: not in force in a handler.
const CLEARED_FLAGS: u64 = 0x400 | 0x1_0000 | 0x100;

/// What a frame is made of.
pub struct Frame<'a> {
    /// The signal.
    pub info: &'a SignalInfo,
    /// What is done about it.
    pub action: SigAction,
    /// Blocked once the handler is done.
    pub mask: SignalSet,
    /// The other stack.
    pub stack: AltStack,
    /// Exception, error code and address of the last fault.
    pub fault: (u64, u64, u64),
}

/// Places of a frame.
struct Places {
    frame: u64,
    vector: u64,
}

fn places(regs: &Regs, frame: &Frame<'_>, vector: usize) -> Option<Places> {
    let mut sp = regs.rsp.checked_sub(RED_ZONE)?;
    let nested = frame.stack.in_use(sp);
    let mut entering = false;
    if frame.action.flags & SA_ONSTACK != 0 && frame.stack.state(sp) == 0 && frame.stack.size != 0 {
        sp = frame.stack.address.checked_add(frame.stack.size)?;
        entering = true;
    }
    let vector = if vector == 0 { sp } else { sp.checked_sub(vector as u64 + 4)? & !63 };
    let place = (vector.checked_sub(FRAME as u64)? & !15).checked_sub(8)?;
    if (nested || entering) && !frame.stack.contains(place) {
        return None;
    }
    Some(Places { frame: place, vector })
}

/// Makes the thread run the handler. The other stack as it is to be from now on.
///
/// # Errors
/// EFAULT where the frame cannot be written: there is no room, or the handler has nowhere to return to.
pub fn push_frame(thread: &mut dyn Thread, frame: &Frame<'_>) -> Result<AltStack, Errno> {
    if frame.action.flags & SA_RESTORER == 0 {
        return Err(Errno::EFAULT);
    }
    let disarm = frame.stack.flags & SS_AUTODISARM != 0;
    let stack = if disarm { AltStack::default() } else { frame.stack };
    let place = match thread.pushed_state() {
        Some(size) => push_at_once(thread, frame, size)?,
        None => push_by_steps(thread, frame)?,
    };
    let regs = thread.regs();
    regs.rdi = u64::from(frame.info.signal.cast_unsigned());
    regs.rsi = place + INFO as u64;
    regs.rdx = place + UCONTEXT as u64;
    regs.rax = 0;
    regs.rsp = place;
    regs.rip = frame.action.handler;
    regs.eflags &= !CLEARED_FLAGS;
    Ok(stack)
}

/// Where the frame is.
fn push_at_once(thread: &mut dyn Thread, frame: &Frame<'_>, size: usize) -> Result<u64, Errno> {
    let regs = *thread.regs();
    let places = places(&regs, frame, size).ok_or(Errno::EFAULT)?;
    let bytes = frame_bytes(&regs, frame, places.vector);
    thread.push_frame(places.vector, places.frame, &bytes)?;
    Ok(places.frame)
}

/// Where the frame is.
fn push_by_steps(thread: &mut dyn Thread, frame: &Frame<'_>) -> Result<u64, Errno> {
    let mut vector = thread.vector_state().unwrap_or_default();
    if !(XSAVE_SMALLEST..=XSAVE_LARGEST).contains(&vector.len()) {
        vector.clear();
    }
    let initial = initial_vector(&vector);
    mark_vector(&mut vector);
    let regs = *thread.regs();
    let length = vector.len().saturating_sub(4);
    let places = places(&regs, frame, if vector.is_empty() { 0 } else { length }).ok_or(Errno::EFAULT)?;
    let bytes = frame_bytes(&regs, frame, if vector.is_empty() { 0 } else { places.vector });
    if !vector.is_empty() && thread.write(places.vector, &vector) != vector.len() {
        return Err(Errno::EFAULT);
    }
    if thread.write(places.frame, &bytes) != bytes.len() {
        return Err(Errno::EFAULT);
    }
    if !initial.is_empty() {
        thread.set_vector_state(&initial)?;
    }
    Ok(places.frame)
}

fn frame_bytes(regs: &Regs, frame: &Frame<'_>, vector: u64) -> [u8; FRAME] {
    let mut bytes = [0; FRAME];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let with_vector = if vector == 0 { 0 } else { UC_FP_XSTATE };
    put(0, &frame.action.restorer.to_le_bytes());
    put(UCONTEXT, &(with_vector | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS).to_le_bytes());
    put(STACK, &frame.stack.to_bytes(frame.stack.flags));
    for (at, value) in regs.to_array().into_iter().enumerate() {
        put(MCONTEXT + at * 8, &value.to_le_bytes());
    }
    put(MCONTEXT + 144, &USER_CS.to_le_bytes());
    put(MCONTEXT + 150, &USER_DS.to_le_bytes());
    let (exception, error, address) = frame.fault;
    put(MCONTEXT + 152, &error.to_le_bytes());
    put(MCONTEXT + 160, &exception.to_le_bytes());
    put(MCONTEXT + 168, &frame.mask.0.to_le_bytes());
    put(MCONTEXT + 176, &address.to_le_bytes());
    put(FPSTATE, &vector.to_le_bytes());
    put(MASK, &frame.mask.0.to_le_bytes());
    put(INFO, &frame.info.to_bytes());
    bytes
}

fn four(bytes: &[u8], at: usize) -> u32 {
    let mut part = [0; 4];
    if let Some(from) = bytes.get(at..at.saturating_add(4)) {
        part.copy_from_slice(from);
    }
    u32::from_le_bytes(part)
}

fn eight(bytes: &[u8], at: usize) -> u64 {
    u64::from(four(bytes, at)) | u64::from(four(bytes, at + 4)) << 32
}

/// The state that a handler begins with (`fpu__clear_user_states`): every part as after a reset. Empty for none.
fn initial_vector(state: &[u8]) -> Vec<u8> {
    let mut initial = vec![0; state.len()];
    if !state.is_empty() {
        initial[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        initial[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        initial[28..32].copy_from_slice(&state[28..32]);
        // Which parts there are: a platform may ask for it as `ptrace` gives it.
        initial[SW_RESERVED..XSAVE_HEADER].copy_from_slice(&state[SW_RESERVED..XSAVE_HEADER]);
    }
    initial
}

/// Puts in what tells a program how much vector state there is, and the mark behind it.
fn mark_vector(state: &mut Vec<u8>) {
    if state.is_empty() {
        return;
    }
    let size = u32::try_from(state.len()).unwrap_or(u32::MAX);
    // A platform has the parts in use where `ptrace` or the host's own frame puts them; if not, what is in the header.
    let seen = if four(state, SW_RESERVED) == FP_XSTATE_MAGIC1 {
        eight(state, SW_RESERVED + 8)
    } else {
        eight(state, SW_RESERVED)
    };
    let present = eight(state, XSAVE_HEADER) | 3;
    let features = if seen == 0 { present } else { seen };
    state[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&present.to_le_bytes());
    let reserved = &mut state[SW_RESERVED..XSAVE_HEADER];
    reserved.fill(0);
    reserved[..4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    reserved[4..8].copy_from_slice(&size.saturating_add(4).to_le_bytes());
    reserved[8..16].copy_from_slice(&features.to_le_bytes());
    reserved[16..20].copy_from_slice(&size.to_le_bytes());
    state.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
}

/// Goes back to what a handler interrupted (`rt_sigreturn`): sets the registers, and gives mask and other stack.
///
/// # Errors
/// EFAULT where there is no frame, EINVAL where the vector state in it is none: the caller gets SIGSEGV.
pub fn pop_frame(thread: &mut dyn Thread) -> Result<(SignalSet, [u8; AltStack::SIZE]), Errno> {
    let place = thread.regs().rsp.checked_sub(8).ok_or(Errno::EFAULT)?;
    let stack = Stack::read(thread, place, FRAME + GAP + XSAVE_HEADER);
    let bytes = *stack.bytes.first_chunk().ok_or(Errno::EFAULT)?;
    restore_vector(thread, &stack, eight(&bytes, FPSTATE))?;
    restore_registers(thread.regs(), &bytes);
    let mask = SignalSet(eight(&bytes, MASK)).without(SignalSet::UNBLOCKABLE);
    let mut stack = [0; AltStack::SIZE];
    stack.copy_from_slice(&bytes[STACK..STACK + AltStack::SIZE]);
    Ok((mask, stack))
}

fn restore_registers(regs: &mut Regs, bytes: &[u8; FRAME]) {
    let restored = Regs::from_array(std::array::from_fn(|at| eight(bytes, MCONTEXT + at * 8)));
    let eflags = regs.eflags & !SETTABLE_FLAGS | restored.eflags & SETTABLE_FLAGS;
    *regs = Regs { eflags, ..restored };
}

/// The piece of the guest's stack on which a frame mostly is as a whole.
struct Stack {
    place: u64,
    bytes: Vec<u8>,
}

impl Stack {
    fn read(thread: &dyn Thread, place: u64, length: usize) -> Self {
        let mut bytes = vec![0; length];
        let read = thread.read(place, &mut bytes);
        bytes.truncate(read);
        Self { place, bytes }
    }

    /// As [`Memory::read`](crate::platform::Memory::read): what lies elsewhere is read there.
    fn get(&self, thread: &dyn Thread, address: u64, to: &mut [u8]) -> usize {
        let at = address.checked_sub(self.place).and_then(|at| usize::try_from(at).ok());
        match at.and_then(|at| self.bytes.get(at..at.checked_add(to.len())?)) {
            Some(bytes) => {
                to.copy_from_slice(bytes);
                to.len()
            }
            None => thread.read(address, to),
        }
    }
}

fn restore_vector(thread: &mut dyn Thread, stack: &Stack, place: u64) -> Result<(), Errno> {
    let mut old_part = [0; XSAVE_HEADER];
    if let Some(size) = thread.loaded_state()
        && place != 0
        && stack.get(thread, place, &mut old_part) == XSAVE_HEADER
        && has_extended(thread, stack, place, &old_part, size)
    {
        return thread.load_state(place);
    }
    let present = thread.vector_state().unwrap_or_default();
    if !(XSAVE_SMALLEST..=XSAVE_LARGEST).contains(&present.len()) {
        return Ok(());
    }
    if place == 0 {
        return thread.set_vector_state(&initial_vector(&present));
    }
    let mut state = vec![0; present.len()];
    let legacy = XSAVE_HEADER;
    if stack.get(thread, place, &mut state[..legacy]) != legacy {
        return Err(Errno::EFAULT);
    }
    if has_extended(thread, stack, place, &state, state.len()) {
        let rest = place.checked_add(legacy as u64).ok_or(Errno::EFAULT)?;
        let wanted = state.len() - legacy;
        if stack.get(thread, rest, &mut state[legacy..]) != wanted {
            return Err(Errno::EFAULT);
        }
    } else {
        // Only what FXSAVE knows is there: the rest is as after a reset.
        state[XSAVE_HEADER..].fill(0);
        state[XSAVE_HEADER] = 3;
    }
    state[SW_RESERVED..XSAVE_HEADER].copy_from_slice(&present[SW_RESERVED..XSAVE_HEADER]);
    thread.set_vector_state(&state)
}

/// Whether behind the old area there is the whole one, of the size that this processor has (`check_xstate_in_sigframe`).
fn has_extended(thread: &dyn Thread, stack: &Stack, place: u64, state: &[u8], size: usize) -> bool {
    let size = size as u64;
    let mut mark = [0; 4];
    four(state, SW_RESERVED) == FP_XSTATE_MAGIC1
        && u64::from(four(state, SW_RESERVED + 16)) == size
        && u64::from(four(state, SW_RESERVED + 4)) >= size
        && place.checked_add(size).is_some_and(|end| stack.get(thread, end, &mut mark) == 4)
        && u32::from_le_bytes(mark) == FP_XSTATE_MAGIC2
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
