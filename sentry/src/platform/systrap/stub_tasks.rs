//! The part of a stub's code that does what the sentry asks ([`super::layout::op`]), but for running the guest: calls of the host, mappings, files,
//! copies, vector registers, threads and processes.

/// Assembler for it. Entered at the label of each task with `rbx` at the context; goes on at `.Ldone`, which gives the turn back with `rax` as the
/// result, and is part of it. Names in braces are those of [`super::stub_code`].
macro_rules! what_it_is_asked {
    () => {
        r#"
    .macro kata_cc_receive_files
    mov $47, %eax                   // recvmsg
    mov {ARGUMENTS}(%rbx), %rdi
    mov {ARGUMENTS}+8(%rbx), %rsi
    mov {ARGUMENTS}+16(%rbx), %rdx
    syscall
    test %rax, %rax
    js .Ldone
    .endm

    // What is to be put into the guest's memory before it goes on; it may fault at the label.
    .macro kata_cc_write_late faults
    mov {LATE}(%rbx), %rdi
    mov {LATE}+8(%rbx), %rcx
    lea {LATE_BYTES}(%rbx), %rsi
    cld
\faults:
    rep movsb
    .endm

    .macro kata_cc_block_no_signals
    mov $14, %eax                   // rt_sigprocmask(SIG_SETMASK)
    mov $2, %edi
    lea {NO_SIGNALS}(%rbx), %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
    .endm

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
    mov %rax, {TURN}(%rbx)
    movl ${DONE}, {WHAT}(%rbx)
    jmp .Lpost

.Lmap:
    mov {ARGUMENTS}+24(%rbx), %r12  // files
    mov {ARGUMENTS}+32(%rbx), %r14  // mappings
    test %r12, %r12
    jz 1f
    kata_cc_receive_files
1:  lea {MAPS}(%rbx), %r15
2:  mov 40(%r15), %rax
    mov $-1, %r8
    test %rax, %rax
    js 3f
    mov {DESCRIPTOR}(%rbx,%rax,4), %r8d
3:  mov $9, %eax                    // mmap
    mov (%r15), %rdi
    mov 8(%r15), %rsi
    mov 16(%r15), %rdx
    mov 24(%r15), %r10
    mov 32(%r15), %r9
    syscall
    mov %rax, %r13
    cmp $-4095, %rax
    jae 4f
    add $48, %r15
    sub $1, %r14
    jnz 2b
4:  sub $1, %r12
    js 5f
    mov $3, %eax                    // close
    mov {DESCRIPTOR}(%rbx,%r12,4), %edi
    syscall
    jmp 4b
5:  mov %r13, %rax
    jmp .Ldone

.Lread_file:
    kata_cc_receive_files
    mov {DESCRIPTOR}(%rbx), %edi
    mov {ARGUMENTS}+24(%rbx), %rsi
    mov {ARGUMENTS}+32(%rbx), %rdx
    mov {ARGUMENTS}+40(%rbx), %r10
    mov $17, %eax                   // pread64
    syscall
    mov %rax, %r13
    mov {DESCRIPTOR}(%rbx), %edi
    mov $3, %eax                    // close
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

.Lsave_for:
    mov {ARGUMENTS}(%rbx), %rdi
    jmp 1f
.Lsave:
    mov %rbx, %rdi
1:  mov $-1, %eax
    mov $-1, %edx
    xsave64 {VECTOR}(%rdi)
    xor %eax, %eax
    jmp .Ldone

    // Whom the guest made begins once its number is where it looks for it. Where that cannot be written it begins all the same.
.Lresume_giving:
    kata_cc_write_late .Lgiving_faults
.Lgive:
    mov {ARGUMENTS}(%rbx), %rdi
    mov ${GIVEN}, %eax
    mov ${STUB}, %ecx
    lock cmpxchg %ecx, {STATE}(%rdi)
    jne .Lresume
    cmpl $0, {STUB_SLEEPS}(%rdi)
    je .Lresume
    mov $202, %eax                  // futex(its state, FUTEX_WAKE, all: the sentry's thread may be there already)
    add ${STATE}, %rdi
    mov $1, %esi
    mov $0x7fffffff, %edx
    syscall
    jmp .Lresume

.Lresume_new:
    mov $-1, %eax
    mov $-1, %edx
.Lnew_faults:
    xrstor64 {VECTOR}(%rbx)
    jmp .Lresume_all

    // Where its guest ended in a signal's frame, neither that frame nor its blocked signals are of any use.
.Lrest:
    lea {SCRATCH_STACK}(%rbx), %rsp
    kata_cc_block_no_signals
    mov ${LONG}, %eax
    xchg %eax, {STATE}(%rbx)
    jmp .Lsleep

.Lload:
    mov $-1, %eax
    mov $-1, %edx
.Lload_faults:
    xrstor64 {VECTOR}(%rbx)
    xor %eax, %eax
    jmp .Ldone

    // As `copy_fpstate_to_sigframe` of the host: what there is (`struct _fpx_sw_bytes`), and the mark behind it.
.Lpush:
    mov $-1, %eax
    mov $-1, %edx
    xsave64 {VECTOR}(%rbx)
    mov {ARGUMENTS}+8(%rbx), %rcx
    mov {VECTOR}+512(%rbx), %rax
    or $3, %rax
    mov %rax, {VECTOR}+512(%rbx)
    movl $0x46505853, {VECTOR}+464(%rbx)
    lea 4(%rcx), %edx
    mov %edx, {VECTOR}+468(%rbx)
    mov %rax, {VECTOR}+472(%rbx)
    mov %rcx, {VECTOR}+480(%rbx)
    mov {ARGUMENTS}(%rbx), %rdi
    lea {VECTOR}(%rbx), %rsi
    cld
.Lpush_state_faults:
    rep movsb
.Lpush_mark_faults:
    movl $0x46505845, (%rdi)
    mov {ARGUMENTS}+16(%rbx), %rdi
    mov {ARGUMENTS}+24(%rbx), %rcx
    lea {LATE_BYTES}(%rbx), %rsi
.Lpush_frame_faults:
    rep movsb
    lea {VECTOR}+464(%rbx), %rdi
    mov $14, %ecx
    xor %eax, %eax
    rep stosq
    movl $0x1f80, {VECTOR}+24(%rbx) // MXCSR, which is loaded whatever the header says
    jmp .Lload

.Lfailed:
    mov $-1, %rax
    jmp .Ldone

.Lspawn:
    mov {ARGUMENTS}(%rbx), %rdi
    mov {ARGUMENTS}+40(%rbx), %r12
    lea {SIGNAL_STACK_END}(%r12), %rsi // an interrupt may come before it has said where its signal stack is
    xor %edx, %edx
    mov {ARGUMENTS}+24(%rbx), %r10
    xor %r8d, %r8d
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
    mov {ARGUMENTS}+24(%rbx), %r14
    mov $56, %eax
    syscall
    test %rax, %rax
    jz 1f
    mov %rax, %r15
    mov $3, %eax                    // close
    mov %r12, %rdi
    syscall
    mov $3, %eax
    mov %r14, %rdi
    syscall
    mov %r15, %rax
    jmp .Ldone
1:
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
    kata_cc_block_no_signals
    mov {SPIN}(%rbx), %r8d
    jmp .Lwait
"#
    };
}
pub(super) use what_it_is_asked;
