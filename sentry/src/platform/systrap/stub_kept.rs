//! The part of a stub's code that answers calls from what it keeps ([`super::remember`]).

/// Assembler for it. Entered at `.Lkept` with the call's registers in the context, its path in `STAGE`, `rdi` behind what was fetched
/// of it, the constants of the search for a 0 in `r10` and `r11`, and in `r12d` which of the calls it is, from 1 on.
/// Goes on at `.Lresume_rax` where it knows the answer, else at `.Lcall_post`. Names in braces are those of [`super::stub_code`].
macro_rules! what_is_kept {
    () => {
        r#"
    .macro kata_cc_hash word
    rol $5, %rdx
    xor \word, %rdx
    imul %r9, %rdx
    .endm

    // The register of the call that bits of r12d name.
    .macro kata_cc_register shift, to
    mov %r12d, %ecx
    shr $\shift, %ecx
    and $15, %ecx
    mov {REGS}(%rbx,%rcx,8), \to
    .endm

.Lkept:
    // Where the call trapped the sentry shall see it, and replace its site.
    test ${TRAPPED}, %ebp
    jnz .Lcall_post
    btq ${KEEPS_BIT}, {ANSWERED}(%rbx)
    jnc .Lcall_post
    mov %rdi, {SCRATCH_STACK}-64(%rbx) // behind what was fetched
    lea kata_cc_stub_begin+{KEPT_CALLS}-2(%rip), %rcx
    movzwl (%rcx,%r12,2), %r12d
    mov {REGS}+104(%rbx), %r13
    kata_cc_register 4, %r14
    kata_cc_register 8, %r15
    kata_cc_register 12, %r8
    movabs ${FACTOR}, %r9
    xor %edx, %edx
    kata_cc_hash %r13
    kata_cc_hash %r14
    kata_cc_hash %r15
    kata_cc_hash %r8
    lea {STAGE}(%rbx), %rsi
1:  mov (%rsi), %rax                // until there is a byte of 0 in a word
    mov %rax, %rdi
    sub %r10, %rdi
    mov %rax, %rcx
    not %rcx
    and %rcx, %rdi
    and %r11, %rdi
    jnz 2f
    kata_cc_hash %rax
    add $8, %rsi
    lea {STAGE}+{KEPT_TEXT}(%rbx), %rcx
    cmp %rcx, %rsi
    jb 1b
    jmp .Lcall_post
2:  bsf %rdi, %rcx
    shr $3, %ecx
    add %rsi, %rcx
    cmp {SCRATCH_STACK}-64(%rbx), %rcx
    jae .Lcall_post                 // of an earlier call's
    lea -1(%rdi), %rcx              // what comes behind it counts as 0
    xor %rdi, %rcx
    and %rcx, %rax
    mov %rax, (%rsi)
    kata_cc_hash %rax
    shr ${PLACE_BITS}, %rdx
    shl ${ENTRY_BITS}, %edx
    lea {KEPT}(%rbx,%rdx), %r9
    mov kata_cc_stub_begin+{GENERATION}(%rip), %rax
    add {USER}(%rbx), %rax
    cmp %rax, (%r9)
    jne .Lcall_post
    cmp %r13, 8(%r9)
    jne .Lcall_post
    cmp %r14, 16(%r9)
    jne .Lcall_post
    cmp %r15, 24(%r9)
    jne .Lcall_post
    cmp %r8, 32(%r9)
    jne .Lcall_post
    mov %rsi, %rdx                  // the last word of the path
    lea {STAGE}(%rbx), %rsi
    lea 56(%r9), %rdi
3:  mov (%rsi), %rax
    cmp (%rdi), %rax
    jne .Lcall_post
    add $8, %rsi
    add $8, %rdi
    cmp %rdx, %rsi
    jbe 3b
    mov 48(%r9), %rdx
    test %rdx, %rdx
    jz 4f
    kata_cc_register 0, %rdi
    mov %rdx, %rcx
    lea {KEPT_BYTES}(%r9), %rsi
.Lkept_faults:
    rep movsb
4:  mov 40(%r9), %rax
    mov %rax, {REGS}+104(%rbx)
    jmp .Lresume_rax

"#
    };
}
pub(super) use what_is_kept;
