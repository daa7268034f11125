//! The code of a stub: the signal handler into which guest code traps, and the loop that does what the sentry asks.
//!
//! It runs in the guest's address space, where it has no stack but the signal stack, no data but its thread's context, and never touches a
//! vector register, since those are the guest's. `rbx` points to the context everywhere. It lies on one page that guests can
//! read and run and not write; nothing secret is in it, and jumping into it gives a guest no call that its filter would not let through.
//!
//! An interrupt ([`super::layout::INTERRUPT`]) that comes while this code runs is not forgotten: the handler notes it in the context, and
//! `resume` looks at the note in a stretch that the handler restarts as "interrupted" when the signal comes in the middle of it.

use super::layout::{CONTEXTS, CONTEXTS_SIZE, END, INTERRUPT, TASK_SIZE, at, kind, op, state};

core::arch::global_asm!(
    r#"
    .pushsection .text.kata_cc_stub, "ax", @progbits
    .balign 4096
    .globl kata_cc_stub_begin
kata_cc_stub_begin:

    // First thing in a new stub that still has the sentry's memory: let go of it, but for the host's vDSO. rbx: context, r12: where that
    // begins, r13: where it ends.
    .globl kata_cc_stub_start
kata_cc_stub_start:
    mov $11, %eax                   // munmap
    xor %edi, %edi
    lea kata_cc_stub_begin(%rip), %rsi
    syscall
    mov $11, %eax
    movabs ${end}, %rdi
    mov %r12, %rsi
    sub %rdi, %rsi
    syscall
    mov $11, %eax
    mov %r13, %rdi
    movabs ${task_size}, %rsi
    sub %rdi, %rsi
    syscall
    wrgsbase %rbx
    xor %eax, %eax
    jmp .Ldone

    // rdi: signal, rsi: siginfo, rdx: ucontext.
    .globl kata_cc_stub_handler
kata_cc_stub_handler:
    mov %rsp, %rbx
    and $-0x10000, %rbx
    mov 168(%rdx), %rax             // rip
    lea kata_cc_stub_begin(%rip), %rcx
    cmp %rcx, %rax
    jb .Lguest
    lea kata_cc_stub_end(%rip), %rcx
    cmp %rcx, %rax
    jb .Lin_stub

.Lguest:
    mov %rdi, {SIGNAL}(%rbx)
    movslq 8(%rsi), %rax
    mov %rax, {CODE}(%rbx)
    mov 16(%rsi), %rax
    mov %rax, {ADDRESS}(%rbx)
    mov 192(%rdx), %rax
    mov %rax, {ERROR}(%rbx)
    mov 200(%rdx), %rax
    mov %rax, {EXCEPTION}(%rbx)
    mov %rdx, {FRAME}(%rbx)
    lea 40(%rdx), %rsi
    lea {REGS}(%rbx), %rdi
    mov $18, %ecx
    cld
    rep movsq
    rdfsbase %rax
    mov %rax, {FS_BASE}(%rbx)
    movq ${SIGNALLED}, {KIND}(%rbx)

    // Gives the turn to the sentry, and waits for it to come back.
.Lpost:
    mov ${SENTRY}, %eax
    xchg %eax, {STATE}(%rbx)
    cmpl $0, {SENTRY_SLEEPS}(%rbx)
    je .Lwait
    mov $202, %eax                  // futex(state, FUTEX_WAKE, 1)
    lea {STATE}(%rbx), %rdi
    mov $1, %esi
    mov $1, %edx
    syscall
.Lwait:
    mov {SPIN}(%rbx), %ecx
1:  cmpl ${SENTRY}, {STATE}(%rbx)
    jne .Lgo
    pause
    sub $1, %ecx
    ja 1b
2:  mov $1, %eax
    xchg %eax, {STUB_SLEEPS}(%rbx)
    cmpl ${SENTRY}, {STATE}(%rbx)
    jne 3f
    mov $202, %eax                  // futex(state, FUTEX_WAIT, SENTRY, no end)
    lea {STATE}(%rbx), %rdi
    xor %esi, %esi
    mov ${SENTRY}, %edx
    xor %r10d, %r10d
    syscall
    jmp 2b
3:  movl $0, {STUB_SLEEPS}(%rbx)
.Lgo:
    mov {OP}(%rbx), %rax
    cmp ${RESUME}, %rax
    je .Lresume
    cmp ${COPY}, %rax
    je .Lcopy
    cmp ${CALL}, %rax
    je .Lcall
    cmp ${COMPARE_EXCHANGE}, %rax
    je .Lcompare
    cmp ${SAVE_VECTOR}, %rax
    je .Lsave
    cmp ${LOAD_VECTOR}, %rax
    je .Lload
    cmp ${SPAWN}, %rax
    je .Lspawn
    cmp ${FORK}, %rax
    je .Lfork
    cmp ${MAP_FILE}, %rax
    je .Lmap_file
    jmp .Lend

    // From a replaced call site: rax: number, rcx: where to go on. The rest is the guest's. No signal frame, no trap.
    .globl kata_cc_stub_entry
kata_cc_stub_entry:
    mov %rbx, %gs:{REGS}+88
    mov %rsp, %gs:{REGS}+120
    rdgsbase %rbx
    lea {SCRATCH_STACK}(%rbx), %rsp
    pushfq
    pop %r11
    mov %r8, {REGS}(%rbx)
    mov %r9, {REGS}+8(%rbx)
    mov %r10, {REGS}+16(%rbx)
    mov %r11, {REGS}+24(%rbx)
    mov %r12, {REGS}+32(%rbx)
    mov %r13, {REGS}+40(%rbx)
    mov %r14, {REGS}+48(%rbx)
    mov %r15, {REGS}+56(%rbx)
    mov %rdi, {REGS}+64(%rbx)
    mov %rsi, {REGS}+72(%rbx)
    mov %rbp, {REGS}+80(%rbx)
    mov %rdx, {REGS}+96(%rbx)
    mov %rax, {REGS}+104(%rbx)
    mov %rcx, {REGS}+112(%rbx)
    mov %rcx, {REGS}+128(%rbx)
    mov %r11, {REGS}+136(%rbx)
    rdfsbase %rax
    mov %rax, {FS_BASE}(%rbx)
    movq $31, {SIGNAL}(%rbx)        // as if by SIGSYS
    movq ${SIGNALLED}, {KIND}(%rbx)
    jmp .Lpost

.Lcall:
    mov {ARGUMENTS}(%rbx), %rax
    mov {ARGUMENTS}+8(%rbx), %rdi
    mov {ARGUMENTS}+16(%rbx), %rsi
    mov {ARGUMENTS}+24(%rbx), %rdx
    mov {ARGUMENTS}+32(%rbx), %r10
    mov {ARGUMENTS}+40(%rbx), %r8
    mov {ARGUMENTS}+48(%rbx), %r9
    syscall
.Ldone:
    mov %rax, {RESULT}(%rbx)
    movq ${DONE}, {KIND}(%rbx)
    jmp .Lpost

.Lmap_file:
    mov $47, %eax                   // recvmsg
    mov {ARGUMENTS}(%rbx), %rdi
    mov {ARGUMENTS}+8(%rbx), %rsi
    mov {ARGUMENTS}+16(%rbx), %rdx
    syscall
    test %rax, %rax
    js .Ldone
    mov {DESCRIPTOR}(%rbx), %r12d
    mov $9, %eax                    // mmap
    mov {MAP_ARGUMENTS}(%rbx), %rdi
    mov {MAP_ARGUMENTS}+8(%rbx), %rsi
    mov {MAP_ARGUMENTS}+16(%rbx), %rdx
    mov {MAP_ARGUMENTS}+24(%rbx), %r10
    mov %r12, %r8
    mov {MAP_ARGUMENTS}+32(%rbx), %r9
    syscall
    mov %rax, %r13
    mov $3, %eax                    // close
    mov %r12, %rdi
    syscall
    mov %r13, %rax
    jmp .Ldone

.Lcopy:
    mov {ARGUMENTS}(%rbx), %rdi
    mov {ARGUMENTS}+8(%rbx), %rsi
    mov {ARGUMENTS}+16(%rbx), %rcx
    cld
.Lcopy_faults:
    rep movsb
.Lcopied:
    mov %rcx, %rax
    jmp .Ldone

.Lcompare:
    mov {ARGUMENTS}(%rbx), %rdi
    mov {ARGUMENTS}+8(%rbx), %rax
    mov {ARGUMENTS}+16(%rbx), %rcx
.Lcompare_faults:
    lock cmpxchg %ecx, (%rdi)
    mov %eax, %eax
    jmp .Ldone

.Lsave:
    mov $-1, %eax
    mov $-1, %edx
    xsave64 {VECTOR}(%rbx)
    xor %eax, %eax
    jmp .Ldone

.Lload:
    mov $-1, %eax
    mov $-1, %edx
.Lload_faults:
    xrstor64 {VECTOR}(%rbx)
    xor %eax, %eax
    jmp .Ldone

.Lfailed:
    mov $-1, %rax
    jmp .Ldone

.Lspawn:
    mov {ARGUMENTS}(%rbx), %rdi
    xor %esi, %esi
    xor %edx, %edx
    mov {ARGUMENTS}+24(%rbx), %r10
    xor %r8d, %r8d
    mov {ARGUMENTS}+40(%rbx), %r12
    mov $56, %eax                   // clone
    syscall
    test %rax, %rax
    jnz .Ldone
    mov %r12, %rbx
    jmp .Lchild

.Lfork:
    mov {ARGUMENTS}(%rbx), %rdi
    xor %esi, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    xor %r8d, %r8d
    mov {ARGUMENTS}+8(%rbx), %r12
    mov {ARGUMENTS}+16(%rbx), %r13
    mov $56, %eax
    syscall
    test %rax, %rax
    jnz .Ldone
    mov $9, %eax                    // mmap of its own contexts in place of its parent's
    movabs ${contexts}, %rdi
    mov ${contexts_size}, %esi
    mov $3, %edx
    mov $0x11, %r10d                // MAP_SHARED | MAP_FIXED
    mov %r12, %r8
    xor %r9d, %r9d
    syscall
    cmp %rdi, %rax
    jne .Lend
    mov $3, %eax                    // close
    mov %r12, %rdi
    syscall
    mov $3, %eax
    mov %r13, %rdi
    syscall
    mov $157, %eax                  // prctl(PR_SET_PDEATHSIG, SIGKILL)
    mov $1, %edi
    mov $9, %esi
    syscall
.Lchild:
    wrgsbase %rbx
    mov $131, %eax                  // sigaltstack
    lea {STACK_T}(%rbx), %rdi
    xor %esi, %esi
    syscall
    mov $14, %eax                   // rt_sigprocmask(SIG_SETMASK)
    mov $2, %edi
    lea {NO_SIGNALS}(%rbx), %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
    xor %eax, %eax
    jmp .Ldone

.Lresume:
    cmpq $0, {FRAME}(%rbx)
    jne .Lreturn
    // From here to the end of the stretch an interrupt means .Linterrupted, and a fault the guest's: its rip or fs is no address.
.Lresume_begin:
    cmpl $0, {INTERRUPTED}(%rbx)
    jne .Linterrupted
    wrgsbase %rbx
    mov {FS_BASE}(%rbx), %rax
    wrfsbase %rax
    lea {SCRATCH_STACK}(%rbx), %rsp
    pushq {REGS}+136(%rbx)
    popfq
    mov {REGS}(%rbx), %r8
    mov {REGS}+8(%rbx), %r9
    mov {REGS}+16(%rbx), %r10
    mov {REGS}+24(%rbx), %r11
    mov {REGS}+32(%rbx), %r12
    mov {REGS}+40(%rbx), %r13
    mov {REGS}+48(%rbx), %r14
    mov {REGS}+56(%rbx), %r15
    mov {REGS}+64(%rbx), %rdi
    mov {REGS}+72(%rbx), %rsi
    mov {REGS}+80(%rbx), %rbp
    mov {REGS}+96(%rbx), %rdx
    mov {REGS}+104(%rbx), %rax
    mov {REGS}+112(%rbx), %rcx
    mov {REGS}+120(%rbx), %rsp
    mov {REGS}+88(%rbx), %rbx
    jmp *%gs:{REGS}+128
.Lresume_end:

.Linterrupted:
    movq ${INTERRUPTED_KIND}, {KIND}(%rbx)
    jmp .Lpost

.Lresume_fault:
    movq $11, {SIGNAL}(%rbx)        // SIGSEGV, SI_KERNEL
    movq $0x80, {CODE}(%rbx)
    movq $0, {ADDRESS}(%rbx)
    movq $0, {ERROR}(%rbx)
    movq $13, {EXCEPTION}(%rbx)
    movq ${SIGNALLED}, {KIND}(%rbx)
    jmp .Lpost

    // The guest stopped by a signal: registers go back into its frame.
.Lreturn:
    mov {FRAME}(%rbx), %rdx
    movq $0, {FRAME}(%rbx)
    mov {FS_BASE}(%rbx), %rax
    wrfsbase %rax
    lea {REGS}(%rbx), %rsi
    lea 40(%rdx), %rdi
    mov $18, %ecx
    cld
    rep movsq
    mov %rdx, %rsp
    .globl kata_cc_stub_restorer
kata_cc_stub_restorer:
    mov $15, %eax                   // rt_sigreturn
    syscall

    // A signal while the stub's own code ran. rax: where.
.Lin_stub:
    cmp ${INTERRUPT}, %edi
    je .Linterrupt_in_stub
    cmp $31, %edi                   // SIGSYS: the filter refused what was asked
    je .Lrefused
    lea .Lcopied(%rip), %rdi
    lea .Lcopy_faults(%rip), %rcx
    cmp %rcx, %rax
    je .Lgo_on_at
    lea .Lfailed(%rip), %rdi
    lea .Lcompare_faults(%rip), %rcx
    cmp %rcx, %rax
    je .Lgo_on_at
    lea .Lload_faults(%rip), %rcx
    cmp %rcx, %rax
    je .Lgo_on_at
    lea .Lresume_fault(%rip), %rdi
    call .Lin_resume
    jc .Lset_context
    jmp .Lend
.Lrefused:
    movq $-1, 144(%rdx)             // rax: EPERM
    jmp .Lleave
.Linterrupt_in_stub:
    movl $1, {INTERRUPTED}(%rbx)
    lea .Linterrupted(%rip), %rdi
    call .Lin_resume
    jnc .Lleave
.Lset_context:
    mov %rbx, 128(%rdx)             // rbx
.Lgo_on_at:
    mov %rdi, 168(%rdx)             // rip
.Lleave:
    mov %rdx, %rsp
    mov $15, %eax
    syscall

    // Carry: rax lies between .Lresume_begin and .Lresume_end.
.Lin_resume:
    lea .Lresume_begin(%rip), %rcx
    mov %rax, %rsi
    sub %rcx, %rsi
    cmp $(.Lresume_end - .Lresume_begin), %rsi
    ret

.Lend:
    mov $231, %eax                  // exit_group
    mov $1, %edi
    syscall
    ud2
    .globl kata_cc_stub_end
kata_cc_stub_end:
    .popsection
"#,
    end = const END,
    task_size = const TASK_SIZE,
    contexts = const CONTEXTS,
    contexts_size = const CONTEXTS_SIZE,
    STATE = const at::STATE,
    STUB_SLEEPS = const at::STUB_SLEEPS,
    SENTRY_SLEEPS = const at::SENTRY_SLEEPS,
    INTERRUPTED = const at::INTERRUPTED,
    SPIN = const at::SPIN,
    OP = const at::OP,
    ARGUMENTS = const at::ARGUMENTS,
    RESULT = const at::RESULT,
    KIND = const at::KIND,
    SIGNAL = const at::SIGNAL,
    CODE = const at::CODE,
    ADDRESS = const at::ADDRESS,
    ERROR = const at::ERROR,
    EXCEPTION = const at::EXCEPTION,
    FRAME = const at::FRAME,
    FS_BASE = const at::FS_BASE,
    NO_SIGNALS = const at::NO_SIGNALS,
    STACK_T = const at::STACK_T,
    REGS = const at::REGS,
    SCRATCH_STACK = const at::SCRATCH_STACK,
    VECTOR = const at::VECTOR,
    SENTRY = const state::SENTRY,
    DONE = const kind::DONE,
    SIGNALLED = const kind::SIGNAL,
    INTERRUPTED_KIND = const kind::INTERRUPTED,
    RESUME = const op::RESUME,
    CALL = const op::CALL,
    COPY = const op::COPY,
    COMPARE_EXCHANGE = const op::COMPARE_EXCHANGE,
    SAVE_VECTOR = const op::SAVE_VECTOR,
    LOAD_VECTOR = const op::LOAD_VECTOR,
    SPAWN = const op::SPAWN,
    FORK = const op::FORK,
    MAP_FILE = const op::MAP_FILE,
    MAP_ARGUMENTS = const at::MAP_ARGUMENTS,
    DESCRIPTOR = const at::WINDOW + at::DESCRIPTORS,
    INTERRUPT = const INTERRUPT,
    options(att_syntax)
);

unsafe extern "C" {
    static kata_cc_stub_begin: u8;
    static kata_cc_stub_start: u8;
    static kata_cc_stub_handler: u8;
    static kata_cc_stub_restorer: u8;
    static kata_cc_stub_entry: u8;
    static kata_cc_stub_end: u8;
}

/// The code as it lies in the sentry, and where in it things begin.
pub(super) struct StubCode {
    /// All of it.
    pub(super) bytes: &'static [u8],
    /// Where a new stub begins.
    pub(super) start: u64,
    /// The signal handler.
    pub(super) handler: u64,
    /// What a signal handler returns to.
    pub(super) restorer: u64,
    /// Where replaced call sites lead.
    pub(super) entry: u64,
}

impl StubCode {
    /// The code that this program was linked with.
    pub(super) fn linked() -> Self {
        let begin = &raw const kata_cc_stub_begin;
        let offset = |symbol: *const u8| symbol.addr() as u64 - begin.addr() as u64;
        let size = (&raw const kata_cc_stub_end).addr() - begin.addr();
        // SAFETY: both symbols are of one section, the second after the first; the bytes between are code, which nothing writes to.
        let bytes = unsafe { std::slice::from_raw_parts(begin, size) };
        Self {
            bytes,
            start: offset(&raw const kata_cc_stub_start),
            handler: offset(&raw const kata_cc_stub_handler),
            restorer: offset(&raw const kata_cc_stub_restorer),
            entry: offset(&raw const kata_cc_stub_entry),
        }
    }
}
