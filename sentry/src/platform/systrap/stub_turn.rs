//! The part of a stub's code that gives the turn away, waits for it to come back, and sleeps where it does not come soon ([`super::waiting`] tells how soon).

/// Assembler for it. Entered at `.Lpost`, `.Lwait` with the number of looks in `r8d`, or `.Lsleep`. Goes on at `.Lgo`, which follows. Names in braces
/// are those of [`super::stub_code`].
macro_rules! how_it_waits_for_its_turn {
    () => {
        r#"
    // Gives the turn to the sentry, and waits for it to come back.
.Lpost:
    mov ${SENTRY}, %eax
    xchg %eax, {STATE}(%rbx)
    mov {SPIN}(%rbx), %r8d
    mov {SENTRY_SLEEPS}(%rbx), %ecx
    test %ecx, %ecx
    jz .Lwait
    mov {SPIN_WOKEN}(%rbx), %r8d
    mov ${CPUNODE}, %eax
    lsl %eax, %eax
    inc %eax
    cmp %eax, %ecx
    jne 1f
    xor %r8d, %r8d                  // it needs this processor
1:  mov $202, %eax                  // futex(state, FUTEX_WAKE, 1)
    lea {STATE}(%rbx), %rdi
    mov $1, %esi
    mov $1, %edx
    syscall
.Lwait:
    mov {STATE}(%rbx), %eax
    cmp ${STUB}, %eax
    je .Lgo
    cmp ${SENTRY}, %eax
    jne 2f
    pause
    sub $1, %r8d
    ja .Lwait
2:  cmp ${ASKS}, %eax
    jne .Lsleep
    mov ${ASKS_LOOKS}, %r8d
1:  mov {STATE}(%rbx), %eax
    cmp ${ASKS}, %eax
    jne 1f
    pause
    sub $1, %r8d
    ja 1b
    jmp .Lsleep
1:  mov {SPIN}(%rbx), %r8d
    jmp .Lwait
.Lsleep:
    mov ${CPUNODE}, %eax
    lsl %eax, %eax
    inc %eax
    xchg %eax, {STUB_SLEEPS}(%rbx)
    cmpq $0, {WAKES}(%rbx)
    je 4f
    xor %edi, %edi
    xchg %rdi, {WAKES}(%rbx)        // the sentry may do it instead
    test %rdi, %rdi
    jz 4f
    mov $202, %eax                  // futex(of another, FUTEX_WAKE, 1)
    mov $1, %esi
    mov $1, %edx
    syscall
4:  mov {STATE}(%rbx), %edx
    cmp ${STUB}, %edx
    je 3f
    mov %rdx, {WAITERS}(%rbx)
    xor %r10d, %r10d
    cmpq $0, {BELL}(%rbx)
    je 5f
    mov $449, %eax                  // futex_waitv(state and bell, 2, 0, no end)
    lea {WAITERS}(%rbx), %rdi
    mov $2, %esi
    xor %edx, %edx
    syscall
    test %rax, %rax
    jns 6f
    cmp $-4, %rax                   // EINTR
    je 6f
    cmp $-11, %rax                  // EAGAIN: another value, of its turn
    jne 7f
    mov {STATE}(%rbx), %eax
    cmp %eax, {WAITERS}(%rbx)
    jne 6f
7:  movq $0, {BELL}(%rbx)
    jmp 4b
5:  mov $202, %eax                  // futex(state, FUTEX_WAIT, what it is, no end)
    lea {STATE}(%rbx), %rdi
    xor %esi, %esi
    syscall
6:  mov {STATE}(%rbx), %eax
    cmp %eax, {WAITERS}(%rbx)
    je .Lsleep                      // nobody who knows of its turn woke it
    cmp ${SENTRY}, %eax
    jne .Lsleep
    mov {SPIN_WOKEN}(%rbx), %r8d    // woken before its turn, which comes soon
    test %r8d, %r8d
    jz .Lsleep
    movl $0, {STUB_SLEEPS}(%rbx)
    jmp .Lwait
3:  movl $0, {STUB_SLEEPS}(%rbx)
"#
    };
}
pub(super) use how_it_waits_for_its_turn;
