//! The functions of the vDSO.
//!
//! They run in guests, at whatever address, and reach their data relative to themselves: its page lies right before the image, in which they
//! begin at [`super::image::TEXT`]. Each ends in a function of the host's vDSO, or in a system call where the host has none.
//!
//! `clock_gettime` adds what the sandbox' clock shows more than the host's. A program may be saved between two of its instructions and go on
//! in another sandbox, where host and difference are others. So it looks at the number of the data before and after: another one, and it begins anew.

use super::data;
use super::image::TEXT;
use crate::mm::PAGE;

core::arch::global_asm!(
    r#"
    .pushsection .text.kata_cc_vdso, "ax", @progbits
    .balign 16
    .globl kata_cc_vdso_begin
kata_cc_vdso_begin:
    .set .Lvdso_data, kata_cc_vdso_begin - {TEXT} - {PAGE}

    // int clock_gettime(clockid_t edi, struct timespec *rsi)
    .globl kata_cc_vdso_clock_gettime
kata_cc_vdso_clock_gettime:
    endbr64
    lea .Lvdso_data + {MONOTONIC}(%rip), %rdx
    cmp $1, %edi                    // CLOCK_MONOTONIC
    je .Lvdso_differs
    test %edi, %edi                 // CLOCK_REALTIME
    je .Lvdso_host_clock
    cmp $6, %edi                    // CLOCK_MONOTONIC_COARSE
    je .Lvdso_differs
    cmp $5, %edi                    // CLOCK_REALTIME_COARSE
    je .Lvdso_host_clock
    cmp $7, %edi                    // CLOCK_BOOTTIME: a sandbox does not sleep
    je .Lvdso_boottime
    cmp $11, %edi                   // CLOCK_TAI: a sandbox knows of no leap seconds
    je .Lvdso_tai
    cmp $4, %edi                    // CLOCK_MONOTONIC_RAW
    jne .Lvdso_call_clock
    lea .Lvdso_data + {RAW}(%rip), %rdx
    jmp .Lvdso_differs
.Lvdso_tai:
    xor %edi, %edi
.Lvdso_host_clock:
    mov .Lvdso_data + {CLOCK_GETTIME}(%rip), %rax
    test %rax, %rax
    jz .Lvdso_call_clock
    jmp *%rax
.Lvdso_call_clock:
    mov $228, %eax
    syscall
    ret
.Lvdso_boottime:
    mov $1, %edi
    // edi: a clock of the host's, rdx: what is added to it.
.Lvdso_differs:
    cmpq $0, .Lvdso_data + {CLOCK_GETTIME}(%rip)
    je .Lvdso_call_clock
    sub $56, %rsp
    .globl kata_cc_vdso_frame_begin
kata_cc_vdso_frame_begin:
    mov %rsi, 16(%rsp)
    mov %rdx, 24(%rsp)
    mov %edi, 32(%rsp)
.Lvdso_again:
    mov .Lvdso_data + {NUMBER}(%rip), %rax
    mov %rax, 40(%rsp)
    mov %rsp, %rsi
    call *.Lvdso_data + {CLOCK_GETTIME}(%rip)
    mov 24(%rsp), %rdx
    mov (%rsp), %rcx
    mov 8(%rsp), %r8
    add (%rdx), %rcx                // seconds
    add 8(%rdx), %r8                // nanoseconds
    mov 40(%rsp), %r9
    cmp .Lvdso_data + {NUMBER}(%rip), %r9
    jne .Lvdso_retry
    test %eax, %eax
    jnz .Lvdso_return
    cmp $1000000000, %r8
    jb .Lvdso_store
    sub $1000000000, %r8
    inc %rcx
.Lvdso_store:
    mov 16(%rsp), %rsi
    mov %rcx, (%rsi)
    mov %r8, 8(%rsi)
.Lvdso_return:
    add $56, %rsp
    .globl kata_cc_vdso_frame_end
kata_cc_vdso_frame_end:
    ret
    .globl kata_cc_vdso_retry
kata_cc_vdso_retry:
.Lvdso_retry:
    mov 32(%rsp), %edi
    jmp .Lvdso_again
    .globl kata_cc_vdso_clock_gettime_end
kata_cc_vdso_clock_gettime_end:

    // int gettimeofday(struct timeval *rdi, struct timezone *rsi)
    .balign 16
    .globl kata_cc_vdso_gettimeofday
kata_cc_vdso_gettimeofday:
    endbr64
    mov .Lvdso_data + {GETTIMEOFDAY}(%rip), %rax
    test %rax, %rax
    jz 1f
    jmp *%rax
1:  mov $96, %eax
    syscall
    ret
    .globl kata_cc_vdso_gettimeofday_end
kata_cc_vdso_gettimeofday_end:

    // time_t time(time_t *rdi)
    .balign 16
    .globl kata_cc_vdso_time
kata_cc_vdso_time:
    endbr64
    mov .Lvdso_data + {TIME}(%rip), %rax
    test %rax, %rax
    jz 1f
    jmp *%rax
1:  mov $201, %eax
    syscall
    ret
    .globl kata_cc_vdso_time_end
kata_cc_vdso_time_end:

    // int clock_getres(clockid_t edi, struct timespec *rsi)
    .balign 16
    .globl kata_cc_vdso_clock_getres
kata_cc_vdso_clock_getres:
    endbr64
    cmp $11, %edi
    ja 2f
    mov ${COARSE_CLOCKS}, %eax
    mov .Lvdso_data + {COARSE}(%rip), %rdx
    bt %edi, %eax
    jc 1f
    mov ${FINE_CLOCKS}, %eax
    mov $1, %edx
    bt %edi, %eax
    jnc 2f
1:  xor %eax, %eax
    test %rsi, %rsi
    jz 3f
    movq $0, (%rsi)
    mov %rdx, 8(%rsi)
3:  ret
2:  mov $229, %eax
    syscall
    ret
    .globl kata_cc_vdso_clock_getres_end
kata_cc_vdso_clock_getres_end:

    // int getcpu(unsigned *rdi, unsigned *rsi, void *rdx)
    .balign 16
    .globl kata_cc_vdso_getcpu
kata_cc_vdso_getcpu:
    endbr64
    mov .Lvdso_data + {GETCPU}(%rip), %rax
    test %rax, %rax
    jz 1f
    jmp *%rax
1:  mov $309, %eax
    syscall
    ret
    .globl kata_cc_vdso_getcpu_end
kata_cc_vdso_getcpu_end:

    .globl kata_cc_vdso_end
kata_cc_vdso_end:
    .popsection
"#,
    TEXT = const TEXT,
    PAGE = const PAGE,
    NUMBER = const data::NUMBER,
    CLOCK_GETTIME = const data::CLOCK_GETTIME,
    GETTIMEOFDAY = const data::GETTIMEOFDAY,
    TIME = const data::TIME,
    GETCPU = const data::GETCPU,
    COARSE = const data::COARSE,
    MONOTONIC = const data::MONOTONIC,
    RAW = const data::RAW,
    // CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE
    COARSE_CLOCKS = const 1 << 5 | 1 << 6,
    // CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI
    FINE_CLOCKS = const 1 | 1 << 1 | 1 << 4 | 1 << 7 | 1 << 11,
    options(att_syntax)
);

unsafe extern "C" {
    static kata_cc_vdso_begin: u8;
    static kata_cc_vdso_end: u8;
    static kata_cc_vdso_clock_gettime: u8;
    static kata_cc_vdso_clock_gettime_end: u8;
    static kata_cc_vdso_frame_begin: u8;
    static kata_cc_vdso_frame_end: u8;
    static kata_cc_vdso_retry: u8;
    static kata_cc_vdso_gettimeofday: u8;
    static kata_cc_vdso_gettimeofday_end: u8;
    static kata_cc_vdso_time: u8;
    static kata_cc_vdso_time_end: u8;
    static kata_cc_vdso_clock_getres: u8;
    static kata_cc_vdso_clock_getres_end: u8;
    static kata_cc_vdso_getcpu: u8;
    static kata_cc_vdso_getcpu_end: u8;
}

/// Bytes that `clock_gettime` has on the stack in its frame.
pub(super) const FRAME: u64 = 56;

/// A function: its name without `__vdso_`, and where in the code it is.
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Where in the code it has put [`FRAME`] bytes on the stack: at the first address, no more at the second, again at the third.
    pub(super) frame: Option<[u64; 3]>,
}

/// The code as it lies in the sentry.
pub(super) struct Code {
    pub(super) bytes: &'static [u8],
    pub(super) functions: [Function; 5],
}

impl Code {
    /// The code that this program was linked with.
    pub(super) fn linked() -> Self {
        let begin = &raw const kata_cc_vdso_begin;
        let offset = |symbol: *const u8| (symbol.addr() - begin.addr()) as u64;
        let size = (&raw const kata_cc_vdso_end).addr() - begin.addr();
        // SAFETY: both symbols are of one section, the second after the first; the bytes between are code, which nothing writes to.
        let bytes = unsafe { std::slice::from_raw_parts(begin, size) };
        let function = |name, start: *const u8, end: *const u8| Function {
            name,
            start: offset(start),
            end: offset(end),
            frame: None,
        };
        let frame = [
            offset(&raw const kata_cc_vdso_frame_begin),
            offset(&raw const kata_cc_vdso_frame_end),
            offset(&raw const kata_cc_vdso_retry),
        ];
        let (clock, clock_end) =
            (&raw const kata_cc_vdso_clock_gettime, &raw const kata_cc_vdso_clock_gettime_end);
        let (day, day_end) = (&raw const kata_cc_vdso_gettimeofday, &raw const kata_cc_vdso_gettimeofday_end);
        let (res, res_end) = (&raw const kata_cc_vdso_clock_getres, &raw const kata_cc_vdso_clock_getres_end);
        let functions = [
            Function { frame: Some(frame), ..function("clock_gettime", clock, clock_end) },
            function("gettimeofday", day, day_end),
            function("time", &raw const kata_cc_vdso_time, &raw const kata_cc_vdso_time_end),
            function("clock_getres", res, res_end),
            function("getcpu", &raw const kata_cc_vdso_getcpu, &raw const kata_cc_vdso_getcpu_end),
        ];
        Self { bytes, functions }
    }
}
