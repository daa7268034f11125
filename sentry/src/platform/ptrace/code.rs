//! The code of a traced stub: places at which its tracer has it do something. It lies on one page that guests can read and run and not
//! write; a call that guest code makes by jumping here is a call of the guest's like any other, since its tracer stops it.

use crate::platform::systrap::layout::{END, TASK_SIZE};
use crate::platform::systrap::let_go::let_go;

core::arch::global_asm!(
    r#"
    .pushsection .text.kata_cc_traced, "ax", @progbits
    .balign 4096
    .globl kata_cc_traced_begin
kata_cc_traced_begin:

    // First thing in a new stub.
    .globl kata_cc_traced_start
kata_cc_traced_start:
    "#,
    let_go!("kata_cc_traced_begin"),
    r#"

    // Where a thread is while nobody traces it: it sleeps, on a word that nobody changes.
    .globl kata_cc_traced_park
kata_cc_traced_park:
    mov $202, %eax                  // futex(zero, FUTEX_WAIT, 0, no end)
    lea .Lzero(%rip), %rdi
    xor %esi, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    syscall
    jmp kata_cc_traced_park
    .globl kata_cc_traced_park_end
kata_cc_traced_park_end:

    // A system call, with registers that the tracer set.
    .globl kata_cc_traced_call
kata_cc_traced_call:
    syscall
    int3

    // A `clone`, likewise; the new one parks. A new process ends with the sentry, as the one that made it.
    .globl kata_cc_traced_clone
kata_cc_traced_clone:
    syscall
    test %eax, %eax
    jz 1f
    int3
1:  mov $157, %eax                  // prctl(PR_SET_PDEATHSIG, SIGKILL)
    mov $1, %edi
    mov $9, %esi
    syscall
    jmp kata_cc_traced_park

    // rdi: address, eax: expected, esi: new. eax: what was there.
    .globl kata_cc_traced_swap
kata_cc_traced_swap:
    lock cmpxchg %esi, (%rdi)
    int3

    .balign 4
.Lzero:
    .long 0
    .globl kata_cc_traced_end
kata_cc_traced_end:
    .popsection
    "#,
    end = const END,
    task_size = const TASK_SIZE,
    options(att_syntax)
);

unsafe extern "C" {
    static kata_cc_traced_begin: u8;
    static kata_cc_traced_start: u8;
    static kata_cc_traced_park: u8;
    static kata_cc_traced_park_end: u8;
    static kata_cc_traced_call: u8;
    static kata_cc_traced_clone: u8;
    static kata_cc_traced_swap: u8;
    static kata_cc_traced_end: u8;
}

/// The code, and offsets in it.
pub(super) struct Code {
    /// All of it.
    pub(super) bytes: &'static [u8],
    /// Where the first stub begins.
    pub(super) start: u64,
    /// Where a thread sleeps.
    pub(super) park: std::ops::Range<u64>,
    /// A system call.
    pub(super) call: u64,
    /// A `clone`.
    pub(super) clone: u64,
    /// A compare and swap.
    pub(super) swap: u64,
}

impl Code {
    /// The code that this program was linked with.
    pub(super) fn linked() -> Self {
        let begin = &raw const kata_cc_traced_begin;
        let offset = |symbol: *const u8| symbol.addr() as u64 - begin.addr() as u64;
        let size = (&raw const kata_cc_traced_end).addr() - begin.addr();
        // SAFETY: both symbols are of one section, the second after the first; the bytes between are code, which nothing writes to.
        let bytes = unsafe { std::slice::from_raw_parts(begin, size) };
        Self {
            bytes,
            start: offset(&raw const kata_cc_traced_start),
            park: offset(&raw const kata_cc_traced_park)..offset(&raw const kata_cc_traced_park_end),
            call: offset(&raw const kata_cc_traced_call),
            clone: offset(&raw const kata_cc_traced_clone),
            swap: offset(&raw const kata_cc_traced_swap),
        }
    }
}
