//! The code of a stub: the signal handler into which guest code traps, and the loop that does what the sentry asks.
//!
//! It runs in the guest's address space, where it has no stack but the signal stack, no data but its thread's context, and never touches a
//! vector register, since those are the guest's. `rbx` points to the context everywhere. It lies on pages that guests can
//! read and run and not write; nothing secret is in it, and jumping into it gives a guest no call that its filter would not let through.
//!
//! An interrupt ([`super::layout::INTERRUPT`]) that comes while this code runs is not forgotten: the handler notes it in the context, and
//! `resume` looks at the note in a stretch that the handler restarts as "interrupted" when the signal comes in the middle of it.

use super::layout::{
    CODE, CONTEXTS, CONTEXTS_SIZE, CPUNODE, END, GENERATION, INTERRUPT, TASK_SIZE, at, kind, op, state,
};
use super::let_go::let_go;
use super::remember;
use super::sleepers;
use super::stage;
use super::stub_futex::how_it_waits;
use super::stub_kept::what_is_kept;
use super::stub_tasks::what_it_is_asked;
use super::stub_turn::how_it_waits_for_its_turn;
use super::waiting::ASKS;

core::arch::global_asm!(
    r#"
    .pushsection .text.kata_cc_stub, "ax", @progbits
    .balign 4096
    .globl kata_cc_stub_begin
kata_cc_stub_begin:

    // First thing in a new stub. rbx: context.
    .globl kata_cc_stub_start
kata_cc_stub_start:
"#,
    let_go!("kata_cc_stub_begin"),
    r#"
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
    mov %edi, %ebp
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
    cmp $31, %ebp                   // SIGSYS
    mov ${CALLED} + {TRAPPED}, %ebp
    je .Lcall_made
    movl ${SIGNALLED}, {WHAT}(%rbx)

"#,
    how_it_waits_for_its_turn!(),
    r#"
.Lgo:
    mov {WHAT}(%rbx), %eax
    cmp ${RESUME}, %eax
    je .Lresume
    cmp ${RESUME_LATE}, %eax
    je .Lresume_late
    cmp ${COPY}, %eax
    je .Lcopy
    cmp ${CALL}, %eax
    je .Lcall
    cmp ${RESUME_ALL}, %eax
    je .Lresume_all
    cmp ${COMPARE_EXCHANGE}, %eax
    je .Lcompare
    cmp ${SAVE_VECTOR}, %eax
    je .Lsave
    cmp ${LOAD_VECTOR}, %eax
    je .Lload
    cmp ${PUSH}, %eax
    je .Lpush
    cmp ${SPAWN}, %eax
    je .Lspawn
    cmp ${FORK}, %eax
    je .Lfork
    cmp ${MAP}, %eax
    je .Lmap
    cmp ${READ_FILE}, %eax
    je .Lread_file
    cmp ${RESUME_GIVING}, %eax
    je .Lresume_giving
    cmp ${RESUME_NEW}, %eax
    je .Lresume_new
    cmp ${REST}, %eax
    je .Lrest
    cmp ${SAVE_FOR}, %eax
    je .Lsave_for
    jmp .Lend

    // From a replaced call site: rax: number, rcx: where to go on. The rest is the guest's. No signal frame, no trap.
    .globl kata_cc_stub_entry
kata_cc_stub_entry:
    mov %rbx, %gs:{REGS}+88
    mov %rsp, %gs:{REGS}+120
    rdgsbase %rbx
    prefetchw {STAGE}(%rbx)
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
    mov ${CALLED}, %ebp

    // The guest makes a call; all its registers are in the context. ebp: kind. Fetches what the table says for that call, so that the sentry
    // finds it there: bits 0-3 how, 4-7 the register that holds the address, 8-15 the length (see `stage`).
.Lcall_made:
    mov {REGS}+104(%rbx), %rax
    cmp ${STAGED_CALLS}, %rax
    jae .Lcall_post
    lea kata_cc_stub_begin+{TABLE}(%rip), %rcx
    movzwl (%rcx,%rax,2), %ecx
    test %ecx, %ecx
    jz .Lcall_post
    mov %ecx, %edx
    shr $4, %edx
    and $15, %edx
    mov %ecx, %eax
    and $15, %eax
    cmp ${ANSWER}, %eax
    je .Lanswer
    cmp ${FUTEX}, %eax
    je .Lfutex
    mov {REGS}(%rbx,%rdx,8), %rsi
    test %rsi, %rsi
    jz .Lcall_post
    cmp ${TEXT}, %eax
    jne .Lsized
    mov %ecx, %r12d
    shr $8, %r12d                   // which of those whose answers are kept
    mov %esi, %ecx                  // up to the end of the page
    or $-4096, %ecx
    neg %ecx
    mov ${TEXT_SIZE}, %edx
    cmp %edx, %ecx
    cmova %edx, %ecx
    lea {STAGE}(%rbx), %rdi
    movabs $0x0101010101010101, %r10
    movabs $0x8080808080808080, %r11
    cld
.Ltext:                             // by words, up to the one with a byte of 0: each further line would change its processor
    cmp $8, %ecx
    jb .Ltext_end_faults
.Ltext_faults:
    mov (%rsi), %rax
    mov %rax, (%rdi)
    add $8, %rsi
    add $8, %rdi
    sub $8, %ecx
    mov %rax, %rdx
    sub %r10, %rdx
    not %rax
    and %rax, %rdx
    test %r11, %rdx
    jz .Ltext
    jmp 1f
.Ltext_end_faults:
    rep movsb
1:  lea {STAGE}(%rbx), %rax
    mov %edi, %ecx
    sub %eax, %ecx
    shl ${FETCHED_BIT}, %ecx
    or %ecx, %ebp
    or ${STAGED}, %ebp
    test %r12d, %r12d
    jz .Lcall_post
    jmp .Lkept
.Lsized:
    shr $8, %ecx
    mov %ecx, %edx
    and $0x7f, %edx
    test $0x80, %cl
    mov %rdx, %rdi
    jnz 1f
    and $15, %edx
    mov {REGS}(%rbx,%rdx,8), %rdi
    shr $4, %ecx
    shl %cl, %rdi
1:  test %rdi, %rdi
    jz .Lcall_post
    cmp ${PROBE}, %eax
    je .Lprobe
    cmp ${STAGE_SIZE}, %rdi
    ja .Lcall_post
    mov %edi, %ecx
    lea {STAGE}(%rbx), %rdi
    cld
.Lstage_faults:
    rep movsb
    or ${STAGED}, %ebp
    jmp .Lcall_post
.Lprobe:
    mov $4096, %ecx
    cmp %rcx, %rdi
    cmova %rcx, %rdi
    lea -1(%rsi,%rdi), %rcx
.Lprobe_faults:
    lock orb $0, (%rsi)
.Lprobe_faults_too:
    lock orb $0, (%rcx)
    or ${WRITABLE}, %ebp
.Lcall_post:
    mov {REGS}+104(%rbx), %rax
    mov {REGS}+64(%rbx), %rdi
    mov {REGS}+72(%rbx), %rsi
    mov {REGS}+96(%rbx), %rdx
    mov {REGS}+16(%rbx), %r10
    mov {REGS}(%rbx), %r8
    mov {REGS}+8(%rbx), %r9
    mov %ebp, {WHAT}(%rbx)
    mov %rax, {TURN}(%rbx)
    mov %rdi, {TURN}+8(%rbx)
    mov %rsi, {TURN}+16(%rbx)
    mov %rdx, {TURN}+24(%rbx)
    mov %r10, {TURN}+32(%rbx)
    mov %r8, {TURN}+40(%rbx)
    mov %r9, {TURN}+48(%rbx)
    jmp .Lpost

    // edx: which answer. Where the call trapped the sentry shall see it, and replace its site.
.Lanswer:
    test ${TRAPPED}, %ebp
    jnz .Lcall_post
    bt %edx, {ANSWERED}(%rbx)
    jnc .Lcall_post
    mov {ANSWERS}(%rbx,%rdx,8), %rax
    mov %rax, {REGS}+104(%rbx)
    jmp .Lresume_rax

"#,
    what_is_kept!(),
    how_it_waits!(),
    what_it_is_asked!(),
    r#"
.Lresume_late:
    kata_cc_write_late .Llate_faults
.Lresume:
    mov {TURN}(%rbx), %rax
    mov %rax, {REGS}+104(%rbx)
.Lresume_rax:
    cmpq $0, {FRAME}(%rbx)
    je .Lresume_some
    mov {FRAME}(%rbx), %rdx
    mov {REGS}+104(%rbx), %rax
    mov %rax, 144(%rdx)             // rax
    jmp .Lreturn

.Lresume_all:
    cmpq $0, {FRAME}(%rbx)
    jne .Lreturn_all
    // From here to the end of the stretch an interrupt means .Linterrupted, and a fault the guest's: its rip or fs is no address.
.Lresume_begin:
    wrgsbase %rbx
    mov {FS_BASE}(%rbx), %rax
    wrfsbase %rax
.Lresume_some:
    cmpl $0, {INTERRUPTED}(%rbx)
    jne .Linterrupted
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
    movl ${INTERRUPTED_KIND}, {WHAT}(%rbx)
    jmp .Lpost

.Lnot_written:
    movl ${NOT_WRITTEN}, {WHAT}(%rbx)
    jmp .Lpost

.Lresume_fault:
    movq $11, {SIGNAL}(%rbx)        // SIGSEGV, SI_KERNEL
    movq $0x80, {CODE}(%rbx)
    movq $0, {ADDRESS}(%rbx)
    movq $0, {ERROR}(%rbx)
    movq $13, {EXCEPTION}(%rbx)
    movl ${SIGNALLED}, {WHAT}(%rbx)
    jmp .Lpost

    // The guest stopped by a signal: registers go back into its frame.
.Lreturn_all:
    mov {FRAME}(%rbx), %rdx
    mov {FS_BASE}(%rbx), %rax
    wrfsbase %rax
    lea {REGS}(%rbx), %rsi
    lea 40(%rdx), %rdi
    mov $18, %ecx
    cld
    rep movsq
.Lreturn:
    movq $0, {FRAME}(%rbx)
    mov %rdx, %rsp
    .globl kata_cc_stub_restorer
kata_cc_stub_restorer:
    mov $15, %eax                   // rt_sigreturn
    syscall

    // A fault at one of these places (it happened at rax) goes on at `next`.
    .macro kata_cc_faults next, places:vararg
    lea \next(%rip), %rdi
    .irp place, \places
    lea \place(%rip), %rcx
    cmp %rcx, %rax
    je .Lgo_on_at
    .endr
    .endm

    // A signal while the stub's own code ran. rax: where.
.Lin_stub:
    cmp ${INTERRUPT}, %edi
    je .Linterrupt_in_stub
    cmp $31, %edi                   // SIGSYS: the filter refused what was asked
    je .Lrefused
    // Where it may fault goes on with what that means.
    kata_cc_faults .Lcall_post, .Ltext_faults, .Ltext_end_faults, .Lstage_faults, .Lkept_faults, .Lprobe_faults, .Lprobe_faults_too
    kata_cc_faults .Lnot_written, .Llate_faults
    kata_cc_faults .Lcopied, .Lcopy_faults
    kata_cc_faults .Lgive, .Lgiving_faults
    kata_cc_faults .Lfailed, .Lcompare_faults, .Lload_faults, .Lnew_faults, .Lpush_state_faults, .Lpush_mark_faults, .Lpush_frame_faults
    lea .Lresume_fault(%rip), %rdi
    call .Lin_resume
    jc .Lset_context
    jmp .Lend
.Lrefused:
    movq $-1, 144(%rdx)             // rax: EPERM
    jmp .Lleave
.Linterrupt_in_stub:
    movl $1, {INTERRUPTED}(%rbx)
    lea .Lwaits_begin(%rip), %rcx
    mov %rax, %rsi
    sub %rcx, %rsi
    lea .Lwaits_not(%rip), %rdi
    cmp $(.Lwaits_end - .Lwaits_begin), %rsi
    jb .Lgo_on_at
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
    WAKES = const at::WAKES,
    WAITERS = const at::WAITERS,
    BELL = const at::BELL,
    SENTRY_SLEEPS = const at::SENTRY_SLEEPS,
    CPUNODE = const CPUNODE,
    INTERRUPTED = const at::INTERRUPTED,
    SPIN = const at::SPIN,
    SPIN_WOKEN = const at::SPIN_WOKEN,
    WHAT = const at::WHAT,
    TURN = const at::TURN,
    ARGUMENTS = const at::ARGUMENTS,
    ANSWERS = const at::ANSWERS,
    ANSWERED = const at::ANSWERED,
    STAGE = const at::STAGE,
    STAGE_SIZE = const at::STAGE_SIZE,
    LATE = const at::LATE,
    LATE_BYTES = const at::LATE_BYTES,
    WAITS_SINCE = const at::WAITS_SINCE,
    WAITED = const at::WAITED,
    WAITS_BIT = const sleepers::WAITS.trailing_zeros(),
    SLEEPERS = const CONTEXTS + at::SLEEPERS as u64,
    SLEEPERS_COUNT = const at::SLEEPERS_COUNT,
    KEPT = const at::KEPT,
    USER = const at::USER,
    GENERATION = const GENERATION - CODE,
    KEEPS_BIT = const remember::KEEPS.trailing_zeros(),
    KEPT_CALLS = const remember::TABLE,
    KEPT_TEXT = const remember::TEXT_SIZE,
    KEPT_BYTES = const remember::entry::BYTES,
    FACTOR = const remember::FACTOR,
    PLACE_BITS = const 64 - remember::PLACES.trailing_zeros(),
    ENTRY_BITS = const remember::entry::SIZE.trailing_zeros(),
    TABLE = const stage::TABLE,
    STAGED_CALLS = const stage::CALLS,
    TEXT_SIZE = const stage::TEXT_SIZE,
    TEXT = const stage::TEXT,
    PROBE = const stage::PROBE,
    ANSWER = const stage::ANSWER,
    FUTEX = const stage::FUTEX,
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
    SIGNAL_STACK_END = const at::SIGNAL_STACK + at::SIGNAL_STACK_SIZE,
    SENTRY = const state::SENTRY,
    ASKS = const state::ASKS,
    ASKS_LOOKS = const ASKS,
    STUB = const state::STUB,
    DONE = const kind::DONE,
    SIGNALLED = const kind::SIGNAL,
    CALLED = const kind::CALL,
    TRAPPED = const kind::TRAPPED,
    STAGED = const kind::STAGED,
    FETCHED_BIT = const kind::FETCHED_BIT,
    WRITABLE = const kind::WRITABLE,
    NOT_WRITTEN = const kind::NOT_WRITTEN,
    INTERRUPTED_KIND = const kind::INTERRUPTED,
    RESUME = const op::RESUME,
    RESUME_ALL = const op::RESUME_ALL,
    RESUME_LATE = const op::RESUME_LATE,
    CALL = const op::CALL,
    COPY = const op::COPY,
    COMPARE_EXCHANGE = const op::COMPARE_EXCHANGE,
    SAVE_VECTOR = const op::SAVE_VECTOR,
    LOAD_VECTOR = const op::LOAD_VECTOR,
    PUSH = const op::PUSH,
    SPAWN = const op::SPAWN,
    FORK = const op::FORK,
    MAP = const op::MAP,
    READ_FILE = const op::READ_FILE,
    SAVE_FOR = const op::SAVE_FOR,
    RESUME_GIVING = const op::RESUME_GIVING,
    RESUME_NEW = const op::RESUME_NEW,
    REST = const op::REST,
    LONG = const state::LONG,
    GIVEN = const state::GIVEN,
    MAPS = const at::WINDOW + at::MAPS,
    DESCRIPTOR = const at::WINDOW + at::DESCRIPTORS,
    INTERRUPT = const INTERRUPT,
    options(att_syntax)
);
