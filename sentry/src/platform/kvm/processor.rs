//! Setting up a virtual processor: as an operating system would have it that runs a program of 64 bits.

use super::host::{Host, ask, ask_with};
use super::requests::{self, CONTROL, EFER, GDT, REGS_SIZE, RIP, SEGMENT, SREGS_SIZE, segment};
use super::shim::{Shim, VECTOR_CODE, VECTORS, place, selector};
use super::tables::ROOT;
use crate::error::Errno;
use crate::platform::systrap::layout::{at, context_address};
use crate::platform::systrap::thread::StubThread;

/// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;

/// EFER: SCE, LME, LMA, NXE.
const LONG_MODE: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
/// Where `syscall` of 32-bit code goes on AMD's processors.
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;

/// Flags that a call clears: TF, IF, DF, IOPL, NT, AC.
const CLEARED: u64 = 0x100 | 0x200 | 0x400 | 0x3000 | 0x4000 | 0x4_0000;

// Kinds of segments: type, present, dpl, db, s, l, g.
const KERNEL_CODE: [u8; 7] = [0xb, 1, 0, 0, 1, 1, 1];
const DATA: [u8; 7] = [3, 1, 0, 1, 1, 0, 1];
const USER_DATA: [u8; 7] = [3, 1, 3, 1, 1, 0, 1];
const TASK: [u8; 7] = [0xb, 1, 0, 0, 0, 0, 0];

/// What a new processor has and keeps.
pub(super) fn begin(stub: &StubThread, host: &Host, processor: u64) -> Result<(), Errno> {
    ask_with(stub, processor, requests::SET_CPUID2, &mut host.cpuid.clone())?;
    let run = context_address(stub.slot) + place::RUN as u64;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    let [protection, flags] = [protection, flags].map(|bits| u64::from(bits.cast_unsigned()));
    stub.call(libc::SYS_mmap, [run, 4096, protection, flags, processor, 0])?;
    // Its ticks are the host's, which the host's vDSO counts in: struct kvm_device_attr (KVM_VCPU_TSC_OFFSET), and the offset behind it.
    let offset = context_address(stub.slot) + at::WINDOW as u64 + 24;
    let mut attribute: Vec<u8> = [0, 0, offset, 0].iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    // Kernels before 5.16 have no such attribute.
    ask_with(stub, processor, requests::SET_DEVICE_ATTR, &mut attribute).map_err(|_| Errno::ENOSYS)?;
    Ok(())
}

/// Has a processor begin in the shim of its context, with vector state in the form of XSAVE.
pub(super) fn prepare(stub: &StubThread, host: &Host, processor: u64, vector: &[u8]) -> Result<(), Errno> {
    let shim = Shim::linked();
    write_context(stub, &shim)?;
    ask_with(stub, processor, requests::SET_XCRS, &mut requests::xcrs(host.xcr0))?;
    let mut sregs = [0; SREGS_SIZE];
    ask_with(stub, processor, requests::GET_SREGS, &mut sregs)?;
    let here = context_address(stub.slot);
    let data = segment(0, u32::MAX, selector::KERNEL_DATA, DATA);
    let user = segment(0, u32::MAX, 0, USER_DATA);
    let code = segment(0, u32::MAX, selector::KERNEL_CODE, KERNEL_CODE);
    let task = segment(here + place::TSS as u64, 0x67, selector::TASK, TASK);
    for (n, one) in [code, user, user, user, user, data, task].iter().enumerate() {
        sregs[n * SEGMENT..(n + 1) * SEGMENT].copy_from_slice(one);
    }
    let table = |base: usize, limit: u64| [here + base as u64, limit];
    let tables = [table(place::GDT, 127), table(place::IDT, 16 * VECTORS as u64 - 1)];
    let control = [CR0, 0, ROOT, host.cr4];
    for (n, word) in tables.as_flattened().iter().chain(&control).enumerate() {
        sregs[GDT + 8 * n..GDT + 8 * n + 8].copy_from_slice(&word.to_le_bytes());
    }
    sregs[EFER..EFER + 8].copy_from_slice(&LONG_MODE.to_le_bytes());
    ask_with(stub, processor, requests::SET_SREGS, &mut sregs)?;
    let star = u64::from(selector::USER_CODE_32) << 48 | u64::from(selector::KERNEL_CODE) << 32;
    let call = here + place::CODE as u64 + shim.call;
    let mut msrs = requests::msrs(&[(STAR, star), (LSTAR, call), (CSTAR, call), (FMASK, CLEARED)]);
    if ask_with(stub, processor, requests::SET_MSRS, &mut msrs)? != 4 {
        return Err(Errno::ENOSYS);
    }
    set_vector(stub, processor, vector)?;
    restart(stub, processor)
}

const _: () = assert!(CONTROL == GDT + 32);

/// Has a processor put the guest back, with the registers of its context.
pub(super) fn restart(stub: &StubThread, processor: u64) -> Result<(), Errno> {
    let mut regs = [0; REGS_SIZE];
    let rip = context_address(stub.slot) + place::CODE as u64 + Shim::linked().resume;
    regs[RIP..RIP + 8].copy_from_slice(&rip.to_le_bytes());
    regs[RIP + 8] = 2;
    ask_with(stub, processor, requests::SET_REGS, &mut regs).map(drop)
}

/// Whether a processor that is in the shim is about to put the guest back: it can do so anew.
pub(super) fn is_resuming(stub: &StubThread, processor: u64) -> Result<bool, Errno> {
    let mut regs = [0; REGS_SIZE];
    ask_with(stub, processor, requests::GET_REGS, &mut regs)?;
    let rip = regs[RIP..RIP + 8].try_into().map_or(0, u64::from_le_bytes);
    let shim = Shim::linked();
    let code = context_address(stub.slot) + place::CODE as u64;
    Ok((code + shim.resume..code + shim.bytes.len() as u64).contains(&rip))
}

/// Has a processor in ring 3 trap before its next instruction.
pub(super) fn trap(stub: &StubThread, processor: u64) -> Result<(), Errno> {
    let mut vector = super::shim::INTERRUPTED.to_le_bytes();
    ask_with(stub, processor, requests::INTERRUPT, &mut vector).map(drop)
}

/// Vector state, in the form of XSAVE.
pub(super) fn vector(stub: &StubThread, processor: u64) -> Result<Vec<u8>, Errno> {
    let mut state = vec![0; requests::XSAVE_SIZE];
    ask_with(stub, processor, requests::GET_XSAVE, &mut state)?;
    Ok(state)
}

/// Sets it: no more bytes than there are.
pub(super) fn set_vector(stub: &StubThread, processor: u64, state: &[u8]) -> Result<(), Errno> {
    let mut whole = state.to_vec();
    whole.resize(requests::XSAVE_SIZE, 0);
    ask_with(stub, processor, requests::SET_XSAVE, &mut whole).map(drop)
}

/// Runs a processor until it comes out.
pub(super) fn run(stub: &StubThread, processor: u64) -> Result<u64, Errno> {
    ask(stub, processor, requests::RUN, 0)
}

/// Tables of segments and interrupts, the task's state, and the shim.
fn write_context(stub: &StubThread, shim: &Shim) -> Result<(), Errno> {
    let context = &stub.context;
    let here = context_address(stub.slot);
    if shim.bytes.len() > place::CODE_SIZE {
        return Err(Errno::E2BIG);
    }
    context.write(place::CODE, shim.bytes);
    let task = here + place::TSS as u64;
    let low = 0x67 | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
    // Null, null, code and data of ring 0, code of 32 bits, data and code of ring 3, null, task; what `getcpu` of a vDSO looks at: CPU 0.
    let mut table = [0; 16];
    table[2] = 0x00af_9b00_0000_ffff;
    table[3] = 0x00cf_9300_0000_ffff;
    table[4] = 0x00cf_fb00_0000_ffff;
    table[5] = 0x00cf_f300_0000_ffff;
    table[6] = 0x00af_fb00_0000_ffff;
    table[8] = low;
    table[9] = task >> 32;
    table[15] = 0x0040_f500_0000_0000;
    for (n, entry) in table.iter().enumerate() {
        context.store(place::GDT + 8 * n, *entry);
    }
    // The stack of ring 0 lies at an odd place of the task's state.
    context.write(place::TSS + 4, &(here + place::STACK as u64).to_le_bytes());
    // The map of ports begins behind the end: ring 3 has none.
    context.write(place::TSS + 0x66, &0x68_u16.to_le_bytes());
    for vector in 0..VECTORS {
        let entry = here + place::CODE as u64 + shim.vectors + VECTOR_CODE * vector as u64;
        // Guests may make those of `int3` and `into` themselves.
        let kind: u64 = if vector == 3 || vector == 4 { 0xee } else { 0x8e };
        let low = entry & 0xffff
            | u64::from(selector::KERNEL_CODE) << 16
            | kind << 40
            | (entry >> 16 & 0xffff) << 48;
        context.store(place::IDT + 16 * vector, low);
        context.store(place::IDT + 16 * vector + 8, entry >> 32);
    }
    Ok(())
}
