//! Against frames that the host's kernel makes for this very process.

use std::sync::Arc;

use super::*;
use crate::platform::{Interrupt, Memory, MemoryCall, RemoteMemory, Trap};
use crate::task::signal::Payload;

/// A frame as the host's kernel made it.
struct HostFrame {
    /// Its address.
    place: u64,
    bytes: [u8; FRAME],
    /// Vector state with the mark behind it.
    vector: Vec<u8>,
}

/// Takes a frame of the host: the one place with `unsafe`.
mod host {
    use std::ffi::{c_int, c_void};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

    use super::{FPSTATE, FRAME, HostFrame, SW_RESERVED, UCONTEXT, eight, four};

    const ROOM: usize = 32 << 10;
    static ROOM_OF_HANDLER: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
    static PLACE: AtomicU64 = AtomicU64::new(0);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    extern "C" fn handler(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
        let room = ROOM_OF_HANDLER.load(Ordering::SeqCst);
        // SAFETY: the kernel put the frame where the context is; in front of the context is the return address. The frame points to
        // vector state, which says how long it is. `room` has ROOM bytes and belongs to the test that raised the signal.
        unsafe {
            let frame = context.cast::<u8>().sub(UCONTEXT);
            std::ptr::copy_nonoverlapping(frame, room, FRAME);
            let vector = frame.add(FPSTATE).cast::<*const u8>().read_unaligned();
            let length = vector.add(SW_RESERVED + 4).cast::<u32>().read_unaligned() as usize;
            std::ptr::copy_nonoverlapping(vector, room.add(FRAME), length.min(ROOM - FRAME));
            PLACE.store(frame as u64, Ordering::SeqCst);
        }
    }

    /// Raises `SIGUSR2` in the calling thread, and what its handler found.
    pub(super) fn frame() -> HostFrame {
        let _guard = ONE_AT_A_TIME.lock();
        let mut room = vec![0; ROOM];
        ROOM_OF_HANDLER.store(room.as_mut_ptr(), Ordering::SeqCst);
        // SAFETY: the handler does nothing but copy bytes to `room`, which lives until it is done.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()), 0);
            assert_eq!(libc::raise(libc::SIGUSR2), 0);
        }
        let mut bytes = [0; FRAME];
        bytes.copy_from_slice(&room[..FRAME]);
        let length = four(&room[FRAME..], SW_RESERVED + 4) as usize;
        assert!(eight(&bytes, FPSTATE) != 0 && length > 576);
        let vector = room[FRAME..FRAME + length].to_vec();
        HostFrame { place: PLACE.load(Ordering::SeqCst), bytes, vector }
    }
}

/// A thread with a piece of stack, wherever that is.
struct StackThread {
    base: u64,
    memory: std::cell::RefCell<Vec<u8>>,
    regs: Regs,
    vector: Vec<u8>,
}

impl StackThread {
    fn of(host: &HostFrame) -> Self {
        let mut regs = Regs::default();
        let bytes = &host.bytes;
        restore_registers(&mut regs, bytes);
        regs.eflags = eight(bytes, MCONTEXT + 17 * 8);
        let vector = host.vector[..host.vector.len() - 4].to_vec();
        let base = host.place - 4096;
        Self { base, memory: std::cell::RefCell::new(vec![0; 64 << 10]), regs, vector }
    }

    fn part(&self, address: u64, length: usize) -> std::ops::Range<usize> {
        let size = self.memory.borrow().len();
        match address.checked_sub(self.base).and_then(|start| usize::try_from(start).ok()) {
            Some(start) if start < size => start..(start + length).min(size),
            _ => 0..0,
        }
    }
}

impl Memory for StackThread {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        let part = self.part(address, to.len());
        to[..part.len()].copy_from_slice(&self.memory.borrow()[part.clone()]);
        part.len()
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        let part = self.part(address, from.len());
        self.memory.borrow_mut()[part.clone()].copy_from_slice(&from[..part.len()]);
        part.len()
    }
}

impl Thread for StackThread {
    fn resume(&mut self) -> Trap {
        Trap::Gone
    }
    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }
    fn fs_base(&mut self) -> &mut u64 {
        &mut self.regs.rax
    }
    fn vector_state(&mut self) -> Result<Vec<u8>, Errno> {
        Ok(self.vector.clone())
    }
    fn set_vector_state(&mut self, state: &[u8]) -> Result<(), Errno> {
        assert_eq!(state.len(), self.vector.len());
        self.vector = state.to_vec();
        Ok(())
    }
    fn change_memory(&mut self, _: &MemoryCall<'_>) -> Result<u64, Errno> {
        Err(Errno::ENOSYS)
    }
    fn compare_exchange(&mut self, _: u64, _: u32, _: u32) -> Result<u32, Errno> {
        Err(Errno::ENOSYS)
    }
    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno> {
        Err(Errno::ENOSYS)
    }
    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno> {
        Err(Errno::ENOSYS)
    }
    fn interrupt(&self) -> Arc<dyn Interrupt> {
        unreachable!("nobody interrupts it")
    }
    fn remote(&self) -> Arc<dyn RemoteMemory> {
        unreachable!("nobody else reads it")
    }
}

fn number(bytes: &[u8], at: usize) -> i32 {
    four(bytes, at).cast_signed()
}

/// What the host's frame was made of, read back out of it.
fn of_host(host: &HostFrame) -> (SignalInfo, SigAction, AltStack) {
    let bytes = &host.bytes;
    let payload = Payload::Kill { pid: number(bytes, INFO + 16), uid: four(bytes, INFO + 20) };
    let info = SignalInfo { signal: libc::SIGUSR2, errno: 0, code: number(bytes, INFO + 8), payload };
    let action = SigAction {
        handler: 0x1234_5678,
        flags: SA_RESTORER | 4,
        restorer: eight(bytes, 0),
        mask: SignalSet::EMPTY,
    };
    let (address, size) = (eight(bytes, STACK), eight(bytes, STACK + 16));
    (info, action, AltStack { address, size, flags: four(bytes, STACK + 8) })
}

#[test]
fn a_frame_is_the_hosts_byte_for_byte_and_in_the_same_place() {
    let host = host::frame();
    let mut thread = StackThread::of(&host);
    let (info, action, stack) = of_host(&host);
    assert_eq!(info.code, super::super::SI_TKILL);
    let bytes = &host.bytes;
    let fault = (eight(bytes, MCONTEXT + 160), eight(bytes, MCONTEXT + 152), eight(bytes, MCONTEXT + 176));
    let mask = SignalSet(eight(bytes, MASK));
    // As a platform has it from `ptrace`: the parts in use at the reserved place, without the marks.
    let features = eight(&thread.vector, SW_RESERVED + 8);
    thread.vector[SW_RESERVED..XSAVE_HEADER].fill(0);
    thread.vector[SW_RESERVED..SW_RESERVED + 8].copy_from_slice(&features.to_le_bytes());
    let before = thread.regs;
    assert_eq!(push_frame(&mut thread, &Frame { info: &info, action, mask, stack, fault }), Ok(stack));
    assert_eq!(thread.regs.rsp, host.place);
    let mut made = [0; FRAME];
    assert_eq!(thread.read(host.place, &mut made), FRAME);
    // Not written by the kernel, so whatever was on the stack: `__reserved1`, what `kill` has no use for in siginfo, and the gap behind
    // `ss_flags`.
    let mut theirs = host.bytes;
    for bytes in [&mut made, &mut theirs] {
        bytes[MCONTEXT + 192..MCONTEXT + 256].fill(0);
        bytes[INFO + 24..INFO + 128].fill(0);
        bytes[STACK + 12..STACK + 16].fill(0);
    }
    let differing = (0..FRAME).filter(|at| made[*at] != theirs[*at]).collect::<Vec<_>>();
    assert_eq!(differing, Vec::<usize>::new());
    let mut vector = vec![0; host.vector.len()];
    assert_eq!(thread.read(eight(&made, FPSTATE), &mut vector), vector.len());
    let differing = (0..vector.len()).filter(|at| vector[*at] != host.vector[*at]).collect::<Vec<_>>();
    assert_eq!(differing, Vec::<usize>::new());
    assert_eq!((thread.regs.rdi, thread.regs.rip), (12, action.handler));
    assert_eq!((thread.regs.rsi, thread.regs.rdx), (host.place + 312, host.place + 8));
    // And back: the handler's `ret` takes the first word.
    thread.regs.rsp += 8;
    thread.regs.rbx = 1;
    assert_eq!(pop_frame(&mut thread).map(|(mask, _)| mask), Ok(mask));
    assert_eq!(thread.regs, before);
}

#[test]
fn a_frame_that_a_program_made_up_sets_no_flags_of_the_kernel() {
    let host = host::frame();
    let mut thread = StackThread::of(&host);
    let mut forged = host.bytes;
    forged[MCONTEXT + 17 * 8..MCONTEXT + 18 * 8].copy_from_slice(&u64::MAX.to_le_bytes());
    forged[FPSTATE..FPSTATE + 8].fill(0);
    forged[MASK..MASK + 8].fill(0xff);
    assert_eq!(thread.write(host.place, &forged), FRAME);
    thread.regs.rsp = host.place + 8;
    thread.regs.eflags = 0x202;
    let (mask, _) = pop_frame(&mut thread).unwrap_or_default();
    assert_eq!(thread.regs.eflags, 0x202 | SETTABLE_FLAGS);
    assert!(!mask.has(libc::SIGKILL) && !mask.has(libc::SIGSTOP) && mask.has(libc::SIGTERM));
    // Without vector state it is as after a reset.
    assert_eq!((eight(&thread.vector, 0) & 0xffff, four(&thread.vector, 24)), (0x37f, 0x1f80));
}

#[test]
fn a_frame_goes_to_the_other_stack_and_not_beyond_it() {
    let host = host::frame();
    let (info, action, _) = of_host(&host);
    let action = SigAction { flags: action.flags | SA_ONSTACK, ..action };
    let mut thread = StackThread::of(&host);
    let stack = AltStack { address: host.place + 16_384, size: 8192, flags: SS_AUTODISARM };
    let frame = Frame { info: &info, action, mask: SignalSet::EMPTY, stack, fault: (0, 0, 0) };
    assert_eq!(push_frame(&mut thread, &frame), Ok(AltStack::default()));
    assert!(stack.contains(thread.regs.rsp));
    let small = AltStack { size: 256, flags: 0, ..stack };
    let mut thread = StackThread::of(&host);
    assert_eq!(push_frame(&mut thread, &Frame { stack: small, ..frame }), Err(Errno::EFAULT));
    let mut thread = StackThread::of(&host);
    let unrestored = SigAction { flags: 0, ..action };
    let frame = Frame { action: unrestored, stack: AltStack::default(), ..frame };
    assert_eq!(push_frame(&mut thread, &frame), Err(Errno::EFAULT));
}

#[test]
fn a_stack_pointer_at_the_end_of_the_world_is_no_panic() {
    let host = host::frame();
    let (info, action, _) = of_host(&host);
    for rsp in [0, 1, 127, 128, 129, 600, 4000, u64::MAX, u64::MAX - 7] {
        let mut thread = StackThread::of(&host);
        thread.regs.rsp = rsp;
        for stack in [AltStack::default(), AltStack { address: u64::MAX - 5, size: 4096, flags: 0 }] {
            let action = SigAction { flags: action.flags | SA_ONSTACK, ..action };
            let frame = Frame { info: &info, action, mask: SignalSet::ALL, stack, fault: (1, 2, 3) };
            assert!(push_frame(&mut thread, &frame).is_err());
        }
        thread.regs.rsp = rsp;
        assert!(pop_frame(&mut thread).is_err());
    }
}
