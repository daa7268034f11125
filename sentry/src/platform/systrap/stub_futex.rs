//! The part of a stub's code by which guest threads wait for each other without the sentry: private futexes of one address space are the host's.
//!
//! A wait without a time-out and a wake-up are made as they are, by the guest's own thread, on the guest's own word. Others (time-outs, words in
//! files, locks with owners) are the sentry's, and so are the waits of calls that trap. Who waits in the sentry is counted, by a hash of
//! the address, in the first context (`SLEEPERS`) before the sentry looks at the word; a wake-up looks there after its guest changed the word, and is the
//! sentry's where somebody is counted. The sentry's own wake-ups go on to those who wait here ([`super::sleepers`]).
//!
//! An interrupt that comes before the host's call has begun is led away from it by the handler, as from the guest's code; one that comes during the
//! call ends it (EINTR). Either way the sentry gets the call, and does with it what Linux does.

/// Assembler for it. Entered at `.Lfutex` with the call's registers in the context. Goes on at `.Lresume_rax` with the answer, or at `.Lcall_post`.
/// Names in braces are those of [`super::stub_code`].
macro_rules! how_it_waits {
    () => {
        r#"
    .macro kata_cc_ticks
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    .endm

    .macro kata_cc_futex_arguments
    mov {REGS}+64(%rbx), %rdi
    mov {REGS}+72(%rbx), %rsi
    mov {REGS}+96(%rbx), %rdx
    mov {REGS}+8(%rbx), %r9
    .endm

.Lfutex:
    test ${TRAPPED}, %ebp
    jnz .Lcall_post
    btq ${WAITS_BIT}, {ANSWERED}(%rbx)
    jnc .Lcall_post
    mov {REGS}+72(%rbx), %esi
    mov %esi, %eax
    and $0xfffffeff, %eax           // without FUTEX_CLOCK_REALTIME, which is of a time-out
    cmp $129, %esi                  // FUTEX_WAKE, private
    je .Lwake
    cmp $138, %esi                  // FUTEX_WAKE_BITSET
    je .Lwake
    cmpq $0, {REGS}+16(%rbx)
    jne .Lcall_post
    cmp $128, %esi                  // FUTEX_WAIT
    je 1f
    cmp $137, %eax                  // FUTEX_WAIT_BITSET
    jne .Lcall_post
1:  kata_cc_ticks
    mov %rax, %r12
    mov %rax, {WAITS_SINCE}(%rbx)
    xor %r10d, %r10d
    kata_cc_futex_arguments
.Lwaits_begin:
    cmpl $0, {INTERRUPTED}(%rbx)
    jne .Lwaits_not
    mov $202, %eax
    syscall
.Lwaits_end:
    mov %rax, %r13
    kata_cc_ticks
    sub %r12, %rax
    add %rax, {WAITED}(%rbx)
    movq $0, {WAITS_SINCE}(%rbx)
    test %r13, %r13
    jz .Lfutex_answer
    cmp $-11, %r13                  // EAGAIN: another value
    je .Lfutex_answer
    jmp .Lcall_post
.Lwaits_not:
    movq $0, {WAITS_SINCE}(%rbx)
    jmp .Lcall_post

.Lwake:
    mov {REGS}+64(%rbx), %rcx
    shr $2, %ecx
    and ${SLEEPERS_COUNT} - 1, %ecx
    movabs ${SLEEPERS}, %rax
    lock orl $0, {SCRATCH_STACK}-64(%rbx) // what the guest wrote before, the sentry sees from now on
    cmpl $0, (%rax,%rcx,4)
    jne .Lcall_post
    kata_cc_futex_arguments
    mov $202, %eax
    syscall
    mov %rax, %r13
    test %rax, %rax
    js .Lcall_post
.Lfutex_answer:
    mov %r13, {REGS}+104(%rbx)
    jmp .Lresume_rax

"#
    };
}
pub(super) use how_it_waits;
