//! Exceptions: #VC and #VE are answered where [`kata_cc_stage0`] has an answer; each other one, and each of these
//! without one, ends the guest by its number.
//!
//! The processor changes to a stack of their own (IST), so that nothing below the interrupted code's stack pointer
//! is overwritten: compiled code keeps things there. SSE registers are saved, because compiled code uses them. An
//! exception in a handler takes that stack from its top again: the handler that it interrupts only ends the guest, and
//! [`tee::terminate`] sees to it that this does not go round.
//! Interrupts stay off; one that the host injects all the same finds no gate beyond the 32 exceptions, which is a
//! #GP and so the end.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use kata_cc_stage0::exception::Frame;
use kata_cc_stage0::platform::{Termination, layout};
use kata_cc_stage0::snp::cpuid::CpuidTable;
use kata_cc_stage0::snp::vc;
use kata_cc_stage0::tdx::ve;

use crate::tee;

const VE: usize = 20;
const VC: usize = 29;
const VECTORS: usize = 32;
/// As the entry code and Linux's boot protocol have them.
const CODE: u64 = 0x10;
const TASK: u16 = 0x20;
/// Present, 64-bit interrupt gate, ring 0, first stack of the interrupt stack table.
const GATE: u64 = 0x8E01 << 32;

global_asm!(
    r#"
    .macro stage0_answer handler
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push qword ptr [rsp + 56]       // RIP, and below it the rest of a Frame
    push rdx
    push rcx
    push rbx
    push rax
    mov rdi, rsp
    mov rsi, [rsp + 88]             // error code
    push rbp
    mov rbp, rsp
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]
    cld
    call \handler
    fxrstor64 [rsp]
    mov rsp, rbp
    pop rbp
    pop rax
    pop rbx
    pop rcx
    pop rdx
    pop qword ptr [rsp + 56]        // RIP
    pop rsi
    pop rdi
    pop r8
    pop r9
    pop r10
    pop r11
    add rsp, 8
    iretq
    .endm

    .section .text.stage0_exceptions, "ax"
    .code64
stage0_vc:
    stage0_answer stage0_on_vc
stage0_ve:
    push 0                          // #VE has no error code
    stage0_answer stage0_on_ve
stage0_exception:
    and rsp, -16
    cld
    call stage0_on_exception
    ud2
    .text
"#
);

unsafe extern "C" {
    fn stage0_vc();
    fn stage0_ve();
    fn stage0_exception();
}

/// Tables that the processor reads. Written once, before they are loaded, on the one vCPU that runs Rust.
#[repr(C, align(16))]
struct Tables {
    gates: [[u64; 2]; VECTORS],
    segments: [u64; 6],
    /// 64-bit task state segment.
    task: [u32; 26],
    stack: [u64; 512],
}

struct Cell(UnsafeCell<Tables>);

// SAFETY: only the first vCPU runs Rust, and only `install` writes.
unsafe impl Sync for Cell {}

static TABLES: Cell = Cell(UnsafeCell::new(Tables {
    gates: [[0; 2]; VECTORS],
    segments: [0; 6],
    task: [0; 26],
    stack: [0; 512],
}));

/// Operand of LIDT and LGDT.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

fn gate(handler: unsafe extern "C" fn()) -> [u64; 2] {
    let at = handler as usize as u64;
    [at & 0xFFFF | CODE << 16 | GATE | (at >> 16 & 0xFFFF) << 48, at >> 32]
}

/// Makes the tables and loads them.
pub(crate) fn install() {
    // SAFETY: called once, before any exception is expected; nothing else refers to the tables.
    let tables = unsafe { &mut *TABLES.0.get() };
    tables.gates = [gate(stage0_exception); VECTORS];
    tables.gates[VC] = gate(stage0_vc);
    tables.gates[VE] = gate(stage0_ve);
    let stack = tables.stack.as_ptr_range().end as u64;
    tables.task[9] = stack as u32; // IST1
    tables.task[10] = (stack >> 32) as u32;
    tables.task[25] = 104 << 16; // no I/O permissions
    let task = tables.task.as_ptr() as u64;
    let descriptor = 103 | (task & 0xFF_FFFF) << 16 | 0x89 << 40 | (task >> 24 & 0xFF) << 56;
    tables.segments = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, descriptor, task >> 32];
    let gates = Pointer { limit: size_of_val(&tables.gates) as u16 - 1, base: tables.gates.as_ptr() as u64 };
    let segments =
        Pointer { limit: size_of_val(&tables.segments) as u16 - 1, base: tables.segments.as_ptr() as u64 };
    // SAFETY: the tables are static and right; selectors in use mean the same as before.
    unsafe {
        asm!(
            "lgdt [{segments}]",
            "ltr {task:x}",
            "lidt [{gates}]",
            segments = in(reg) &segments,
            task = in(reg) TASK,
            gates = in(reg) &gates,
        );
    }
}

/// Ends the guest without a word: no gate is left, so the exception becomes a shutdown.
pub(crate) fn shutdown() -> ! {
    let none = Pointer { limit: 0, base: 0 };
    // SAFETY: nothing runs afterwards.
    unsafe { asm!("lidt [{none}]", "ud2", none = in(reg) &none, options(noreturn, nostack)) }
}

/// The first two bytes of the instruction, if it is one of the firmware's.
fn instruction(rip: u64) -> [u8; 2] {
    if !(layout::IMAGE..layout::IMAGE_LIMIT).contains(&rip) {
        return [0; 2];
    }
    // SAFETY: the image is there, and does not change.
    unsafe { (rip as *const [u8; 2]).read_volatile() }
}

#[unsafe(no_mangle)]
extern "C" fn stage0_on_vc(frame: &mut Frame, exit_code: u64) {
    let answered = CpuidTable::parse(tee::cpuid_page())
        .map_err(|_| Termination::CpuidPage)
        .and_then(|table| vc::handle(frame, exit_code, instruction(frame.rip), &table));
    if let Err(why) = answered {
        tee::terminate(why);
    }
}

#[unsafe(no_mangle)]
extern "C" fn stage0_on_ve(frame: &mut Frame, _error_code: u64) {
    if let Err(why) = ve::handle(&tee::TDX, frame, instruction(frame.rip)) {
        tee::terminate(why);
    }
}

#[unsafe(no_mangle)]
extern "C" fn stage0_on_exception() -> ! {
    tee::terminate(Termination::UnexpectedException)
}
