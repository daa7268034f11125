//! The filter of a stub's system calls (`man 2 seccomp`).
//!
//! Whatever is not made by the stub's own code is a call of the guest's: SIGSYS. What the stub's code makes is let through when it can touch
//! nothing but the calling process: guest code can jump to the stub's `syscall` instructions with registers of its choice, so this
//! list, and not the code, is what confines a guest. One exception: whoever rings another one's bell ([`super::leaving`]) wakes it, and it sleeps again.

use libc::{BPF_JEQ, BPF_JGE, SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP, sock_filter};

use super::layout::{CODE, CODE_SIZE};
use super::sleepers::OPERATIONS;
use crate::bpf::{ARCH, AUDIT_ARCH_X86_64, Check, IP_HIGH, IP_LOW, jump, load, ret, rule};

/// Flags of the `clone` that makes a thread.
pub(in crate::platform) const SPAWN_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// Flags of the `clone` that makes a process: the sentry's child, as the one that makes it is.
pub(in crate::platform) const FORK_FLAGS: u64 = libc::CLONE_PARENT as u64 | libc::SIGCHLD as u64;

/// A call and what is asked of its arguments; without any it is let through as it is.
struct Rule(libc::c_long, &'static [(u32, Check)]);

const PROTECTION: u32 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC | libc::PROT_GROWSDOWN) as u32;

/// No huge pages of the host's pool, nothing locked, no device of synchronous writes.
const MAP_FLAGS: u32 = (libc::MAP_SHARED
    | libc::MAP_PRIVATE
    | libc::MAP_FIXED
    | libc::MAP_FIXED_NOREPLACE
    | libc::MAP_ANONYMOUS
    | libc::MAP_NORESERVE
    | libc::MAP_GROWSDOWN
    | libc::MAP_STACK
    | libc::MAP_POPULATE) as u32;

/// Advice that changes the caller's own pages: NORMAL to DONTNEED (0-4), FREE, REMOVE, DONTFORK, DOFORK, HUGEPAGE, NOHUGEPAGE, DONTDUMP,
/// DODUMP, WIPEONFORK, KEEPONFORK, COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE (`include/uapi/asm-generic/mman-common.h`).
const ADVICE: &[u32] = &[0, 1, 2, 3, 4, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

const RULES: &[Rule] = &[
    // Its turn, and private words of its guest.
    Rule(libc::SYS_futex, &[(1, Check::OneOf(OPERATIONS))]),
    // Its turn and its bell, or any other two words that its own process can read.
    Rule(libc::SYS_futex_waitv, &[(1, Check::Is(2)), (2, Check::Is(0)), (3, Check::Is(0))]),
    Rule(libc::SYS_rt_sigreturn, &[]),
    Rule(libc::SYS_mmap, &[(2, Check::Within(PROTECTION)), (3, Check::Within(MAP_FLAGS))]),
    Rule(libc::SYS_munmap, &[]),
    Rule(libc::SYS_mprotect, &[(2, Check::Within(PROTECTION))]),
    Rule(libc::SYS_madvise, &[(2, Check::OneOf(ADVICE))]),
    Rule(libc::SYS_mremap, &[]),
    // Of the one socket that it has: the other end is the sentry's.
    Rule(libc::SYS_recvmsg, &[(2, Check::Is((libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64))]),
    Rule(libc::SYS_close, &[]),
    // Of files that the sentry sent: what this process may read.
    Rule(libc::SYS_pread64, &[]),
    Rule(libc::SYS_clone, &[(0, Check::OneOf(&[SPAWN_FLAGS as u32, FORK_FLAGS as u32]))]),
    Rule(
        libc::SYS_prctl,
        &[(0, Check::Is(libc::PR_SET_PDEATHSIG as u64)), (1, Check::Is(libc::SIGKILL as u64))],
    ),
    Rule(libc::SYS_rt_sigprocmask, &[]),
    Rule(libc::SYS_sigaltstack, &[]),
    // Of the calling thread, in its own memory.
    Rule(libc::SYS_rseq, &[]),
    Rule(libc::SYS_exit, &[]),
    Rule(libc::SYS_exit_group, &[]),
];

/// The filter as a program for `SECCOMP_SET_MODE_FILTER`. `requests`: of `ioctl`, those that a stub makes whose guest's code runs elsewhere.
pub(in crate::platform) fn program(requests: &'static [u32]) -> Vec<sock_filter> {
    const { assert!(CODE as u32 == 0, "the low half of the code's addresses begins at 0") };
    let mut program = vec![
        load(ARCH),
        jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        ret(SECCOMP_RET_KILL_PROCESS),
        load(IP_HIGH),
        jump(BPF_JEQ, (CODE >> 32) as u32, 1, 0),
        ret(SECCOMP_RET_TRAP),
        load(IP_LOW),
        jump(BPF_JGE, CODE_SIZE as u32, 0, 1),
        ret(SECCOMP_RET_TRAP),
    ];
    for Rule(number, checks) in RULES {
        rule(*number, checks, SECCOMP_RET_ALLOW, SECCOMP_RET_TRAP, &mut program);
    }
    if !requests.is_empty() {
        let checks = [(1, Check::OneOf(requests))];
        rule(libc::SYS_ioctl, &checks, SECCOMP_RET_ALLOW, SECCOMP_RET_TRAP, &mut program);
    }
    program.push(ret(SECCOMP_RET_TRAP));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::run;

    const STUB: u64 = CODE + 0x123;
    const GUEST: u64 = 0x40_1000;

    #[test]
    fn a_guests_calls_trap_whatever_they_are() {
        let program = program(&[]);
        for number in 0..500 {
            for ip in [0, GUEST, CODE - 1, CODE + CODE_SIZE, CODE + (1 << 32), 0x123] {
                assert_eq!(run(&program, number, ip, [0; 6]), SECCOMP_RET_TRAP, "{number} {ip:#x}");
            }
        }
    }

    #[test]
    fn the_stubs_own_are_let_through_by_their_arguments() {
        let program = program(&[]);
        let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
        let receive = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        for (number, arguments) in [
            (libc::SYS_futex, [1, 0, 2, 0, 0, 0]),
            (libc::SYS_futex, [1, 1, 1, 0, 0, 0]),
            (libc::SYS_futex_waitv, [0x1000, 2, 0, 0, 0, 0]),
            (libc::SYS_mmap, [0x1000, 0x1000, 7, anonymous, u64::MAX, 0]),
            (libc::SYS_munmap, [0, 1, 0, 0, 0, 0]),
            (libc::SYS_madvise, [0, 0, 23, 0, 0, 0]),
            (libc::SYS_pread64, [4, 0x1000, 0x1000, 0, 0, 0]),
            (libc::SYS_recvmsg, [3, 0, receive, 0, 0, 0]),
            (libc::SYS_clone, [SPAWN_FLAGS, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [FORK_FLAGS, 0, 0, 0, 0, 0]),
            (libc::SYS_prctl, [1, 9, 0, 0, 0, 0]),
            (libc::SYS_rseq, [0x1000, 32, 0, 1, 0, 0]),
        ] {
            assert_eq!(run(&program, number, STUB, arguments), SECCOMP_RET_ALLOW, "{number} {arguments:x?}");
        }
    }

    #[test]
    fn what_reaches_beyond_the_process_is_refused_to_the_stub_too() {
        let program = program(&[]);
        let huge = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB) as u64;
        for (number, arguments) in [
            (libc::SYS_futex, [1, 134, 2, 0, 0, 0]),
            (libc::SYS_futex_waitv, [0x1000, 128, 0, 0, 0, 0]),
            (libc::SYS_futex_waitv, [0x1000, 2, 1, 0, 0, 0]),
            (libc::SYS_futex_waitv, [0x1000, 2, 0, 0x2000, 0, 0]),
            (libc::SYS_futex, [1, 9, 2, 0, 0, 0]),
            (libc::SYS_futex, [1, 1 << 32, 2, 0, 0, 0]),
            (libc::SYS_mmap, [0x1000, 0x1000, 7, huge, u64::MAX, 0]),
            (libc::SYS_mprotect, [0, 0, 8, 0, 0, 0]),
            (libc::SYS_madvise, [0, 0, 100, 0, 0, 0]),
            (libc::SYS_madvise, [0, 0, 12, 0, 0, 0]),
            (libc::SYS_recvmsg, [3, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [SPAWN_FLAGS | 1 << 40, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [SPAWN_FLAGS | libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
            (libc::SYS_prctl, [1, 15, 0, 0, 0, 0]),
            (libc::SYS_prctl, [4, 9, 0, 0, 0, 0]),
            (libc::SYS_openat, [0; 6]),
            (libc::SYS_read, [0; 6]),
            (libc::SYS_pwrite64, [0; 6]),
            (libc::SYS_sendmsg, [0; 6]),
            (libc::SYS_ioctl, [0, 0xae80, 0, 0, 0, 0]),
            (libc::SYS_process_vm_readv, [0; 6]),
            (libc::SYS_ptrace, [0; 6]),
        ] {
            assert_eq!(run(&program, number, STUB, arguments), SECCOMP_RET_TRAP, "{number} {arguments:x?}");
        }
    }

    #[test]
    fn requests_are_let_through_by_their_numbers() {
        const RUN: u32 = 0xae80;
        let program = program(&[RUN]);
        let request = |number: u64| [3, number, 0, 0, 0, 0];
        let answer = |ip, number| run(&program, libc::SYS_ioctl, ip, request(number));
        assert_eq!(answer(STUB, u64::from(RUN)), SECCOMP_RET_ALLOW);
        // Another, one of more bits, and by a guest.
        for (ip, number) in [(STUB, 0xae81), (STUB, u64::from(RUN) | 1 << 32), (GUEST, u64::from(RUN))] {
            assert_eq!(answer(ip, number), SECCOMP_RET_TRAP, "{ip:#x} {number:#x}");
        }
        assert_eq!(run(&program, libc::SYS_openat, STUB, [0; 6]), SECCOMP_RET_TRAP);
    }
}
