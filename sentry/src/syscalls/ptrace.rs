//! `ptrace` (`man 2 ptrace`; `kernel/ptrace.c`, `arch/x86/kernel/ptrace.c`).

use std::sync::Arc;

use super::Entry;
use super::file_args::{int, uint};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::Task;
use crate::task::ptrace::{Options, Resume, user};
use crate::task::signal::{SignalInfo, SignalSet};

pub(super) const CALLS: &[Entry] = &[Entry::partial(
    libc::SYS_ptrace,
    "ptrace",
    ptrace,
    "debug registers (breakpoints and watchpoints of the processor), single steps over blocks, filters and rseq of tracees",
)];

const TRACEME: u32 = 0;
const PEEKTEXT: u32 = 1;
const PEEKDATA: u32 = 2;
const PEEKUSER: u32 = 3;
const POKETEXT: u32 = 4;
const POKEDATA: u32 = 5;
const POKEUSER: u32 = 6;
const CONT: u32 = 7;
const KILL: u32 = 8;
const SINGLESTEP: u32 = 9;
const GETREGS: u32 = 12;
const SETREGS: u32 = 13;
const GETFPREGS: u32 = 14;
const SETFPREGS: u32 = 15;
const ATTACH: u32 = 16;
const DETACH: u32 = 17;
const SYSCALL: u32 = 24;
const SYSEMU: u32 = 31;
const SYSEMU_SINGLESTEP: u32 = 32;
const SETOPTIONS: u32 = 0x4200;
const GETEVENTMSG: u32 = 0x4201;
const GETSIGINFO: u32 = 0x4202;
const SETSIGINFO: u32 = 0x4203;
const GETREGSET: u32 = 0x4204;
const SETREGSET: u32 = 0x4205;
const SEIZE: u32 = 0x4206;
const INTERRUPT: u32 = 0x4207;
const LISTEN: u32 = 0x4208;
const PEEKSIGINFO: u32 = 0x4209;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const GET_SYSCALL_INFO: u32 = 0x420e;

/// `NT_PRSTATUS`, `NT_PRFPREG`, `NT_X86_XSTATE`.
const GENERAL: u64 = 1;
const FLOATING: u64 = 2;
const VECTOR: u64 = 0x202;

fn ptrace(call: &mut Call<'_>, [request, pid, address, data, ..]: [u64; 6]) -> SysResult {
    let (request, pid) = (uint(request), int(pid));
    match request {
        TRACEME => call.task.trace_me()?,
        ATTACH | SEIZE => {
            let other = call.task.find(pid).ok_or(Errno::ESRCH)?;
            let seize = if request == SEIZE { Some(seize_options(address, data)?) } else { None };
            call.task.attach(&other, seize)?;
        }
        _ => {
            // All but these want it to stand still.
            let still = !matches!(request, KILL | INTERRUPT);
            let other = call.task.tracee(pid, still)?;
            ask(call, &other, request, address, data)?;
            return match request {
                GET_SYSCALL_INFO => syscall_info(call, &other, address, data),
                PEEKSIGINFO => peek_signals(call, &other, address, data),
                _ => Ok(0),
            };
        }
    }
    Ok(0)
}

fn seize_options(address: u64, data: u64) -> Result<Options, Errno> {
    if address != 0 {
        return Err(Errno::EIO);
    }
    options(data).map_err(|_| Errno::EIO)
}

fn options(data: u64) -> Result<Options, Errno> {
    u32::try_from(data).ok().and_then(Options::from_bits).ok_or(Errno::EINVAL)
}

fn signal(data: u64) -> Result<i32, Errno> {
    i32::try_from(data).map_err(|_| Errno::EIO)
}

/// What has no result of its own.
fn ask(call: &Call<'_>, other: &Arc<Task>, request: u32, address: u64, data: u64) -> Result<(), Errno> {
    let task = call.task;
    match request {
        CONT => task.resume_tracee(other, Resume::Continue, signal(data)?),
        SYSCALL => task.resume_tracee(other, Resume::Call, signal(data)?),
        SINGLESTEP => task.resume_tracee(other, Resume::Step, signal(data)?),
        SYSEMU => task.resume_tracee(other, Resume::Emulate, signal(data)?),
        SYSEMU_SINGLESTEP => task.resume_tracee(other, Resume::EmulateStep, signal(data)?),
        DETACH => task.detach(other, signal(data)?),
        KILL => {
            task.kill_tracee(other);
            Ok(())
        }
        INTERRUPT => task.interrupt_tracee(other),
        LISTEN => task.listen_to_tracee(other),
        SETOPTIONS => task.set_trace_options(other, options(data)?),
        GETEVENTMSG => call.write(data, &task.trace_message(other)?.to_le_bytes()),
        GETSIGINFO => call.write(data, &task.stop_info(other)?.to_bytes()),
        SETSIGINFO => {
            let bytes = call.read_array::<128>(data)?;
            let number = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let info = SignalInfo::from_bytes(number, &bytes).unwrap_or_else(|| SignalInfo::lost(number));
            task.set_stop_info(other, info)
        }
        GETSIGMASK | SETSIGMASK if address != 8 => Err(Errno::EINVAL),
        GETSIGMASK => call.write(data, &task.tracee_mask(other)?.0.to_le_bytes()),
        SETSIGMASK => task.set_tracee_mask(other, SignalSet(call.read_u64(data)?)),
        PEEKSIGINFO | GET_SYSCALL_INFO => Ok(()),
        PEEKTEXT | PEEKDATA => {
            let mut word = [0; 8];
            let got = read(other, address, &mut word)?;
            if got < word.len() { Err(Errno::EIO) } else { call.write(data, &word) }
        }
        POKETEXT | POKEDATA => {
            let written = write(other, address, &data.to_le_bytes())?;
            if written < 8 { Err(Errno::EIO) } else { Ok(()) }
        }
        _ => registers(call, other, request, address, data),
    }
}

/// Reads a tracee's memory, also what it cannot read itself.
fn read(other: &Arc<Task>, address: u64, to: &mut [u8]) -> Result<usize, Errno> {
    let space = other.space();
    let got = space.memory().map_or(0, |memory| memory.read(address, to));
    if got == to.len() {
        return Ok(got);
    }
    let mut bytes = vec![0; to.len()];
    let (got, bytes) = other.ask_tracee(move |thread| {
        let got = space.read_by_force(thread, address, &mut bytes);
        (got, bytes)
    })?;
    to.copy_from_slice(&bytes);
    Ok(got)
}

/// Writes a tracee's memory, also what it cannot write itself.
fn write(other: &Arc<Task>, address: u64, from: &[u8]) -> Result<usize, Errno> {
    let space = other.space();
    let written = space.memory().map_or(0, |memory| memory.write(address, from));
    if written == from.len() {
        return Ok(written);
    }
    let bytes = from.to_vec();
    other.ask_tracee(move |thread| space.write_by_force(thread, address, &bytes))
}

/// What has to do with registers.
fn registers(call: &Call<'_>, other: &Arc<Task>, request: u32, address: u64, data: u64) -> Result<(), Errno> {
    let task = call.task;
    match request {
        GETREGS => call.write(data, &task.with_registers(other, |shown| user::bytes(shown))?),
        SETREGS => {
            let bytes = call.read_array::<{ 8 * user::WORDS }>(data)?;
            task.with_registers(other, |shown| user::set_bytes(shown, &bytes))?
        }
        GETFPREGS => {
            let state = vector_state(other)?;
            call.write(data, state.get(..user::LEGACY).ok_or(Errno::EIO)?)
        }
        SETFPREGS => set_legacy(other, call.read_array::<{ user::LEGACY }>(data)?.to_vec()),
        GETREGSET | SETREGSET => register_set(call, other, request, address, data),
        PEEKUSER | POKEUSER if !address.is_multiple_of(8) || address > user::USER_SIZE - 8 => Err(Errno::EIO),
        PEEKUSER if address < user::SIZE => {
            let words = task.with_registers(other, |shown| user::words(shown))?;
            let word = usize::try_from(address / 8).ok().and_then(|at| words.get(at)).copied();
            call.write(data, &word.unwrap_or(0).to_le_bytes())
        }
        PEEKUSER => call.write(data, &0_u64.to_le_bytes()),
        POKEUSER if address < user::SIZE => {
            let at = usize::try_from(address / 8).map_err(|_| Errno::EIO)?;
            task.with_registers(other, |shown| user::set_word(shown, at, data))?
        }
        // There are none: that none is in use may be said.
        POKEUSER if user::DEBUG_REGISTERS.contains(&address) && data == 0 => Ok(()),
        POKEUSER if user::DEBUG_REGISTERS.contains(&address) => Err(Errno::ENOSPC),
        _ => Err(Errno::EIO),
    }
}

fn vector_state(other: &Arc<Task>) -> Result<Vec<u8>, Errno> {
    other.ask_tracee(|thread| thread.vector_state())?.map(user::vector)
}

/// Sets what FXSAVE has of vector state, and leaves the rest.
fn set_legacy(other: &Arc<Task>, legacy: Vec<u8>) -> Result<(), Errno> {
    other.ask_tracee(move |thread| {
        let mut state = user::vector(thread.vector_state()?);
        let known = state.len().min(464);
        if legacy.len() < known {
            return Err(Errno::EINVAL);
        }
        state[..known].copy_from_slice(&legacy[..known]);
        if let Some(present) = state.get_mut(512) {
            *present |= 3;
        }
        thread.set_vector_state(&state)
    })?
}

fn register_set(
    call: &Call<'_>,
    other: &Arc<Task>,
    request: u32,
    kind: u64,
    vector: u64,
) -> Result<(), Errno> {
    let (base, length) = (call.read_u64(vector)?, call.read_u64(vector.wrapping_add(8))?);
    if !matches!(kind, GENERAL | FLOATING | VECTOR) || !length.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let present = match kind {
        GENERAL => call.task.with_registers(other, |shown| user::bytes(shown))?,
        FLOATING => vector_state(other)?.into_iter().take(user::LEGACY).collect(),
        _ => vector_state(other)?,
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(present.len());
    if request == GETREGSET {
        call.write(base, present.get(..length).unwrap_or_default())?;
    } else {
        let mut bytes = vec![0; length];
        call.read(base, &mut bytes)?;
        set_register_set(call, other, kind, bytes, present.len())?;
    }
    call.write(vector.wrapping_add(8), &(length as u64).to_le_bytes())
}

fn set_register_set(
    call: &Call<'_>,
    other: &Arc<Task>,
    kind: u64,
    bytes: Vec<u8>,
    whole: usize,
) -> Result<(), Errno> {
    match kind {
        GENERAL => call.task.with_registers(other, |shown| user::set_bytes(shown, &bytes))?,
        _ if bytes.len() != whole => Err(Errno::EINVAL),
        FLOATING => set_legacy(other, bytes),
        _ => other.ask_tracee(move |thread| thread.set_vector_state(&bytes))?,
    }
}

/// `struct ptrace_syscall_info`: how many bytes there are to tell.
fn syscall_info(call: &Call<'_>, other: &Arc<Task>, room: u64, data: u64) -> SysResult {
    let (operation, message) = call.task.call_stop_of(other)?;
    let shown = call.task.with_registers(other, |shown| *shown)?;
    let mut bytes = vec![operation, 0, 0, 0];
    bytes.extend(crate::bpf::AUDIT_ARCH_X86_64.to_le_bytes());
    bytes.extend(shown.regs.rip.to_le_bytes());
    bytes.extend(shown.regs.rsp.to_le_bytes());
    if operation == 1 || operation == 3 {
        bytes.extend(shown.called.to_le_bytes());
        bytes.extend(shown.regs.arguments().iter().flat_map(|argument| argument.to_le_bytes()));
    }
    match operation {
        2 => {
            let value = shown.regs.rax.cast_signed();
            bytes.extend(value.to_le_bytes());
            bytes.push(u8::from((-4095..0).contains(&value)));
        }
        3 => bytes.extend(u32::try_from(message).unwrap_or(0).to_le_bytes()),
        _ => {}
    }
    let told = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
    call.write(data, bytes.get(..told).unwrap_or_default())?;
    Ok(bytes.len() as u64)
}

/// `struct ptrace_peeksiginfo_args`: from which one on, of whom, how many. How many there were.
fn peek_signals(call: &Call<'_>, other: &Arc<Task>, arguments: u64, data: u64) -> SysResult {
    /// `PTRACE_PEEKSIGINFO_SHARED`.
    const SHARED: u32 = 1;
    let (from, flags, count) =
        (call.read_u64(arguments)?, call.read_u32(arguments + 8)?, call.read_u32(arguments + 12)?);
    let count = i32::try_from(count).map_err(|_| Errno::EINVAL)?;
    if flags & !SHARED != 0 {
        return Err(Errno::EINVAL.into());
    }
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let range = from..from.saturating_add(usize::try_from(count).unwrap_or(0));
    let signals = call.task.peek_signals(other, flags & SHARED != 0, range)?;
    for (at, info) in signals.iter().enumerate() {
        call.write(data.wrapping_add(128 * at as u64), &info.to_bytes())?;
    }
    Ok(signals.len() as u64)
}
