//! What runs in ring 0 of a virtual machine: the code into which guest code traps, and that puts it back. It has no memory but its thread's
//! context, and reaches that relative to its own address: a copy of the code lies in each context, so no register has to point there.
//!
//! A guest that got into ring 0 would have what a stub of [`systrap`](super::super::systrap) gives its guest anyhow: the contexts and the memory of
//! its own address space. Nothing that is read from them is trusted.

use crate::platform::systrap::layout::at;

/// Where in a context things lie that only this platform has.
pub(super) mod place {
    /// `struct kvm_run` of the virtual processor: there in the stub; the sentry does not have it.
    pub(crate) const RUN: usize = 0xd000;
    /// Global descriptor table.
    pub(crate) const GDT: usize = 0xe000;
    /// Task state, of which the stack of ring 0 matters.
    pub(crate) const TSS: usize = 0xe080;
    /// Interrupt descriptor table.
    pub(crate) const IDT: usize = 0xe100;
    /// The stack of ring 0 grows down from here.
    pub(crate) const STACK: usize = 0xe400;
    /// Why the guest trapped: [`super::kind`]. 32 bits.
    pub(crate) const KIND: usize = 0xe400;
    /// Not 0: page tables have changed. 32 bits.
    pub(crate) const FLUSH: usize = 0xe410;
    /// Number of the exception.
    pub(crate) const VECTOR: usize = 0xe420;
    /// Its error code.
    pub(crate) const ERROR: usize = 0xe428;
    /// Address of a page fault.
    pub(crate) const CR2: usize = 0xe430;
    /// Where the exception came from: a selector.
    pub(crate) const CS: usize = 0xe438;
    /// Base of `gs`.
    pub(crate) const GS_BASE: usize = 0xe440;
    /// The shim's code.
    pub(crate) const CODE: usize = 0xf000;
    /// Most bytes of it.
    pub(crate) const CODE_SIZE: usize = 0x1000;
}

/// Why a guest trapped.
pub(super) mod kind {
    /// A system call.
    pub(crate) const CALL: u32 = 1;
    /// An exception, or an interrupt.
    pub(crate) const EXCEPTION: u32 = 2;
}

/// Vectors that there are: those of exceptions, and one of an interrupt.
pub(super) const VECTORS: usize = 33;

/// The interrupt by which guest code is stopped.
pub(super) const INTERRUPTED: u32 = 32;

/// Bytes of the code for each vector.
pub(super) const VECTOR_CODE: u64 = 16;

/// Selectors as Linux has them (`arch/x86/include/asm/segment.h`): guests see them in signal frames.
pub(super) mod selector {
    pub(crate) const KERNEL_CODE: u16 = 0x10;
    pub(crate) const KERNEL_DATA: u16 = 0x18;
    pub(crate) const USER_CODE_32: u16 = 0x23;
    pub(crate) const USER_DATA: u16 = 0x2b;
    pub(crate) const USER_CODE: u16 = 0x33;
    pub(crate) const TASK: u16 = 0x40;
}

core::arch::global_asm!(
    r#"
    .pushsection .text.kata_cc_shim, "ax", @progbits
    .balign 4096
    .globl kata_cc_shim_begin
kata_cc_shim_begin:
    .set .Lshim_context, kata_cc_shim_begin - {CODE}

    // `syscall`: rcx is where the guest goes on, r11 its flags. Interrupts are off.
    .globl kata_cc_shim_call
kata_cc_shim_call:
    mov %rsp, .Lshim_context+{REGS}+120(%rip)
    mov %rcx, .Lshim_context+{REGS}+128(%rip)
    mov %r11, .Lshim_context+{REGS}+136(%rip)
    movl ${CALL}, .Lshim_context+{KIND}(%rip)
    jmp .Lshim_save

    // A place of 16 bytes for each vector; some have an error code by themselves.
    .balign 16
    .globl kata_cc_shim_vectors
kata_cc_shim_vectors:
    .set .Lshim_vector, 0
    .rept {VECTORS}
    .balign 16
    .if (.Lshim_vector == 8) || (.Lshim_vector == 10) || (.Lshim_vector == 11) || (.Lshim_vector == 12) || (.Lshim_vector == 13) || (.Lshim_vector == 14) || (.Lshim_vector == 17) || (.Lshim_vector == 21)
    .else
    pushq $0
    .endif
    pushq $.Lshim_vector
    jmp .Lshim_exception
    .set .Lshim_vector, .Lshim_vector + 1
    .endr

.Lshim_exception:
    popq .Lshim_context+{VECTOR}(%rip)
    popq .Lshim_context+{ERROR}(%rip)
    popq .Lshim_context+{REGS}+128(%rip)
    popq .Lshim_context+{CS}(%rip)
    popq .Lshim_context+{REGS}+136(%rip)
    popq .Lshim_context+{REGS}+120(%rip)
    mov %rax, .Lshim_context+{REGS}+104(%rip)
    mov %cr2, %rax
    mov %rax, .Lshim_context+{CR2}(%rip)
    mov .Lshim_context+{REGS}+104(%rip), %rax
    movl ${EXCEPTION}, .Lshim_context+{KIND}(%rip)
.Lshim_save:
    mov %r8, .Lshim_context+{REGS}(%rip)
    mov %r9, .Lshim_context+{REGS}+8(%rip)
    mov %r10, .Lshim_context+{REGS}+16(%rip)
    mov %r11, .Lshim_context+{REGS}+24(%rip)
    mov %r12, .Lshim_context+{REGS}+32(%rip)
    mov %r13, .Lshim_context+{REGS}+40(%rip)
    mov %r14, .Lshim_context+{REGS}+48(%rip)
    mov %r15, .Lshim_context+{REGS}+56(%rip)
    mov %rdi, .Lshim_context+{REGS}+64(%rip)
    mov %rsi, .Lshim_context+{REGS}+72(%rip)
    mov %rbp, .Lshim_context+{REGS}+80(%rip)
    mov %rbx, .Lshim_context+{REGS}+88(%rip)
    mov %rdx, .Lshim_context+{REGS}+96(%rip)
    mov %rax, .Lshim_context+{REGS}+104(%rip)
    mov %rcx, .Lshim_context+{REGS}+112(%rip)
    rdfsbase %rax
    mov %rax, .Lshim_context+{FS_BASE}(%rip)
    rdgsbase %rax
    mov %rax, .Lshim_context+{GS_BASE}(%rip)
    hlt

    // The registers of the context are loaded from here on: who is stopped before the last instruction may begin anew.
    .globl kata_cc_shim_resume
kata_cc_shim_resume:
    cmpl $0, .Lshim_context+{FLUSH}(%rip)
    je 1f
    mov %cr3, %rax
    mov %rax, %cr3
    movl $0, .Lshim_context+{FLUSH}(%rip)
1:  mov .Lshim_context+{FS_BASE}(%rip), %rax
    wrfsbase %rax
    mov .Lshim_context+{GS_BASE}(%rip), %rax
    wrgsbase %rax
    lea .Lshim_context+{STACK}-40(%rip), %rsp
    mov .Lshim_context+{REGS}+128(%rip), %rax
    mov %rax, (%rsp)
    movq ${USER_CODE}, 8(%rsp)
    mov .Lshim_context+{REGS}+136(%rip), %rax
    mov %rax, 16(%rsp)
    mov .Lshim_context+{REGS}+120(%rip), %rax
    mov %rax, 24(%rsp)
    movq ${USER_DATA}, 32(%rsp)
    mov .Lshim_context+{REGS}(%rip), %r8
    mov .Lshim_context+{REGS}+8(%rip), %r9
    mov .Lshim_context+{REGS}+16(%rip), %r10
    mov .Lshim_context+{REGS}+24(%rip), %r11
    mov .Lshim_context+{REGS}+32(%rip), %r12
    mov .Lshim_context+{REGS}+40(%rip), %r13
    mov .Lshim_context+{REGS}+48(%rip), %r14
    mov .Lshim_context+{REGS}+56(%rip), %r15
    mov .Lshim_context+{REGS}+64(%rip), %rdi
    mov .Lshim_context+{REGS}+72(%rip), %rsi
    mov .Lshim_context+{REGS}+80(%rip), %rbp
    mov .Lshim_context+{REGS}+88(%rip), %rbx
    mov .Lshim_context+{REGS}+96(%rip), %rdx
    mov .Lshim_context+{REGS}+104(%rip), %rax
    mov .Lshim_context+{REGS}+112(%rip), %rcx
    iretq
    .globl kata_cc_shim_end
kata_cc_shim_end:
    .popsection
"#,
    CODE = const place::CODE,
    REGS = const at::REGS,
    FS_BASE = const at::FS_BASE,
    GS_BASE = const place::GS_BASE,
    KIND = const place::KIND,
    FLUSH = const place::FLUSH,
    VECTOR = const place::VECTOR,
    ERROR = const place::ERROR,
    CR2 = const place::CR2,
    CS = const place::CS,
    STACK = const place::STACK,
    CALL = const kind::CALL,
    EXCEPTION = const kind::EXCEPTION,
    VECTORS = const VECTORS,
    USER_CODE = const selector::USER_CODE,
    USER_DATA = const selector::USER_DATA,
    options(att_syntax)
);

unsafe extern "C" {
    static kata_cc_shim_begin: u8;
    static kata_cc_shim_call: u8;
    static kata_cc_shim_vectors: u8;
    static kata_cc_shim_resume: u8;
    static kata_cc_shim_end: u8;
}

/// The code, and offsets in it.
pub(super) struct Shim {
    /// All of it.
    pub(super) bytes: &'static [u8],
    /// Where `syscall` leads.
    pub(super) call: u64,
    /// Where exceptions lead.
    pub(super) vectors: u64,
    /// Where a guest is put back, to the end.
    pub(super) resume: u64,
}

impl Shim {
    /// The code that this program was linked with.
    pub(super) fn linked() -> Self {
        let begin = &raw const kata_cc_shim_begin;
        let offset = |symbol: *const u8| symbol.addr() as u64 - begin.addr() as u64;
        let size = (&raw const kata_cc_shim_end).addr() - begin.addr();
        // SAFETY: both symbols are of one section, the second after the first; the bytes between are code, which nothing writes to.
        let bytes = unsafe { std::slice::from_raw_parts(begin, size) };
        Self {
            bytes,
            call: offset(&raw const kata_cc_shim_call),
            vectors: offset(&raw const kata_cc_shim_vectors),
            resume: offset(&raw const kata_cc_shim_resume),
        }
    }
}
