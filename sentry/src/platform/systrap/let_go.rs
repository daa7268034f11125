//! The first code of a new stub, whatever its platform.

/// Assembler for the first thing in a new stub that still has the sentry's memory: let go of it, but for the host's vDSO. `$begin`: the label at
/// the beginning of the stub's code; r12: where the vDSO begins, r13: where it ends. `end` and `task_size` are those of
/// [`super::layout`].
macro_rules! let_go {
    ($begin:literal) => {
        concat!(
            "mov $11, %eax\n", // munmap
            "xor %edi, %edi\n",
            "lea ",
            $begin,
            "(%rip), %rsi\n",
            "syscall\n",
            "mov $11, %eax\n",
            "movabs ${end}, %rdi\n",
            "mov %r12, %rsi\n",
            "sub %rdi, %rsi\n",
            "syscall\n",
            "mov $11, %eax\n",
            "mov %r13, %rdi\n",
            "movabs ${task_size}, %rsi\n",
            "sub %rdi, %rsi\n",
            "syscall\n",
        )
    };
}
pub(in crate::platform) use let_go;
