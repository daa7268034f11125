//! The first stub of a platform: a copy of the sentry that lets go of everything. All others are copies of it.
//!
//! Between `fork` and the jump into the stub's code only calls to the kernel are made: the sentry may have other threads, whose locks
//! the copy would wait for without end.

use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ForkResult, Pid, fork, setpgid};

use super::filter;
use super::layout::{
    CODE, CODE_SIZE, CONTEXT_SIZE, CONTEXTS, CONTEXTS_SIZE, GENERATION, INTERRUPT, at, context_address,
};
use crate::error::Errno;
use crate::platform::generation;
use crate::platform::host_vdso::{self, HostVdso};

/// `struct sigaction` as the kernel takes it.
#[repr(C)]
struct KernelSigaction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

const SA_RESTORER: u64 = 0x0400_0000;

/// Signals by which guest code traps.
const TRAPS: [i32; 7] =
    [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGTRAP, libc::SIGILL, INTERRUPT];

/// Not blocked while a handler runs: the stub's own code may meet them when it does what it was asked.
const IN_HANDLER: [i32; 3] = [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS];

/// What a platform's first stub is made of.
pub(in crate::platform) struct First<'a> {
    /// Code of the stub, of at most [`CODE_SIZE`] bytes.
    pub(in crate::platform) code: &'a [u8],
    /// What lies behind it: offset and bytes.
    pub(in crate::platform) table: Option<(usize, Vec<u8>)>,
    /// Offset of its first instruction, which has the context's address in `rbx` and the range of the vDSO in `r12` and `r13`.
    pub(in crate::platform) start: u64,
    /// Where guest code traps by itself: offsets of the signal handler and of what it returns to. Else signals are a tracer's.
    pub(in crate::platform) handler: Option<(u64, u64)>,
    /// File with the contexts; without one there is private memory in place of the first.
    pub(in crate::platform) contexts: Option<BorrowedFd<'a>>,
    /// The stub's end of the socket by which it gets files.
    pub(in crate::platform) socket: BorrowedFd<'a>,
    /// Requests of `ioctl` that its filter lets through.
    pub(in crate::platform) requests: &'static [u32],
    /// The host's vDSO as this process has it, which stays.
    pub(in crate::platform) vdso: &'a HostVdso,
    /// The page of [`crate::platform::generation`].
    pub(in crate::platform) generation: Option<BorrowedFd<'a>>,
}

/// All that the copy needs, made before it is.
struct Prepared<'a> {
    code: OwnedFd,
    start: u64,
    action: Option<KernelSigaction>,
    filter: Vec<libc::sock_filter>,
    contexts: Option<i32>,
    socket: i32,
    vdso: &'a HostVdso,
    generation: Option<i32>,
}

fn prepare<'a>(first: &First<'a>) -> Result<Prepared<'a>, Errno> {
    assert!(first.code.len() as u64 <= CODE_SIZE, "the stub's code is {} bytes", first.code.len());
    let code = memfd_create(c"stub", MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(code);
    file.write_all(first.code).map_err(|_| Errno::ENOMEM)?;
    if let Some((place, table)) = &first.table {
        assert!(first.code.len() <= *place, "the stub's code is {} bytes", first.code.len());
        file.write_all_at(table, *place as u64).map_err(|_| Errno::ENOMEM)?;
    }
    file.set_len(CODE_SIZE).map_err(|_| Errno::ENOMEM)?;
    let mask = IN_HANDLER.iter().fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1)));
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER) as u64 | SA_RESTORER;
    let action = first.handler.map(|(handler, restorer)| KernelSigaction {
        handler: CODE + handler,
        flags,
        restorer: CODE + restorer,
        mask,
    });
    Ok(Prepared {
        code: file.into(),
        start: CODE + first.start,
        action,
        filter: filter::program(first.requests),
        contexts: first.contexts.map(|file| file.as_raw_fd()),
        socket: first.socket.as_raw_fd(),
        vdso: first.vdso,
        generation: first.generation.map(|page| page.as_raw_fd()),
    })
}

/// Makes the first stub, which keeps the host's vDSO and its data, and runs its code.
pub(in crate::platform) fn start(first: &First<'_>) -> Result<Pid, Errno> {
    let prepared = prepare(first)?;
    // SAFETY: the child makes system calls only, until it runs the stub's code.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            // All stubs are one process group: no terminal's signal reaches them, and who waits for them waits for nobody else. Both sides
            // say so, whichever is first.
            let _ = setpgid(child, child);
            Ok(child)
        }
        ForkResult::Child => become_stub(&prepared),
    }
}

/// Makes the first stub by `make`, from a thread of its own that then does `stay`: the host ends stubs together with the thread that made
/// the first one (`PR_SET_PDEATHSIG`), and so it must stay as long as the sentry does.
pub(in crate::platform) fn from_thread<T: Send + 'static>(
    make: impl FnOnce() -> Result<(Pid, T), Errno> + Send + 'static,
    stay: impl FnOnce(Pid) + Send + 'static,
) -> Result<(Pid, T), Errno> {
    let (started, first) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("stubs".to_owned())
        .stack_size(64 << 10)
        .spawn(move || {
            // Here and not later: capabilities are a thread's own, and stubs have those of the thread that makes the first.
            let dropped = crate::defence::drop_privileges().map_err(|refused| refused.errno);
            let made = dropped.and_then(|()| make());
            let pid = made.as_ref().ok().map(|(pid, _)| *pid);
            let _ = started.send(made);
            if let Some(pid) = pid {
                stay(pid);
            }
        })
        .map_err(|_| Errno::EAGAIN)?;
    first.recv().map_err(|_| Errno::EAGAIN)?
}

/// A system call that must succeed.
macro_rules! must {
    ($($argument:expr),+ $(,)?) => {
        // SAFETY: this process has one thread and nothing left to protect; each call is explained where it is made.
        if unsafe { libc::syscall($($argument),+) } == -1 {
            // SAFETY: ends this process.
            unsafe { libc::_exit(1) }
        }
    };
}

/// Moves the host's vDSO to the place where stubs have it, part by part. The range that it has then: where the host does not let it be moved, it
/// stays.
fn place_vdso(vdso: &HostVdso) -> Range<u64> {
    let range = vdso.range();
    for part in vdso.parts() {
        let (length, to) = (part.end - part.start, host_vdso::PLACE + (part.start - range.start));
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: nothing in this process uses it any more, and nothing lies at the new place.
        let moved = unsafe { libc::syscall(libc::SYS_mremap, part.start, length, length, flags, to) };
        if moved == -1 && part.start == range.start {
            return range;
        }
        if moved == -1 {
            // SAFETY: ends this process.
            unsafe { libc::_exit(1) }
        }
    }
    host_vdso::PLACE..host_vdso::PLACE + (range.end - range.start)
}

fn become_stub(prepared: &Prepared<'_>) -> ! {
    // No name of its own file is left after this: nothing of the sentry's files must stay open.
    let fixed = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    let code = libc::PROT_READ | libc::PROT_EXEC;
    must!(libc::SYS_mmap, CODE, CODE_SIZE, code, fixed, prepared.code.as_raw_fd(), 0_u64);
    if let Some(page) = prepared.generation {
        must!(libc::SYS_mmap, GENERATION, generation::SIZE, libc::PROT_READ, fixed, page, 0_u64);
    }
    let data = libc::PROT_READ | libc::PROT_WRITE;
    if let Some(contexts) = prepared.contexts {
        must!(libc::SYS_mmap, CONTEXTS, CONTEXTS_SIZE, data, fixed, contexts, 0_u64);
    } else {
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        must!(libc::SYS_mmap, CONTEXTS, CONTEXT_SIZE, data, private, -1, 0_u64);
    }
    must!(libc::SYS_dup2, prepared.socket, 0);
    must!(libc::SYS_close_range, 1_u32, u32::MAX, 0);
    must!(libc::SYS_setpgid, 0, 0);
    must!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    let nothing = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    must!(libc::SYS_setrlimit, libc::RLIMIT_CORE, &raw const nothing);
    unregister_rseq();
    let none = 0_u64;
    must!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0_u64, 8_u64);
    let stack = libc::stack_t {
        ss_sp: std::ptr::without_provenance_mut((context_address(0) as usize) + at::SIGNAL_STACK),
        ss_flags: 0,
        ss_size: at::SIGNAL_STACK_SIZE,
    };
    must!(libc::SYS_sigaltstack, &raw const stack, 0_u64);
    if let Some(action) = &prepared.action {
        for signal in TRAPS {
            must!(libc::SYS_rt_sigaction, signal, &raw const *action, 0_u64, 8_u64);
        }
    }
    let vdso = place_vdso(prepared.vdso);
    must!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64);
    let program = libc::sock_fprog {
        len: u16::try_from(prepared.filter.len()).unwrap_or(0),
        filter: prepared.filter.as_ptr().cast_mut(),
    };
    must!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_u64, &raw const program);
    // SAFETY: the stub's code is mapped there; it needs its context in rbx and nothing else, and does not come back.
    unsafe {
        core::arch::asm!(
            "mov rbx, rdi",
            "jmp rsi",
            in("rdi") context_address(0),
            in("rsi") prepared.start,
            in("r12") vdso.start,
            in("r13") vdso.end,
            options(noreturn)
        )
    }
}

unsafe extern "C" {
    /// Where the C library's registration lies, from the thread pointer.
    static __rseq_offset: isize;
    /// 0 when there is none.
    static __rseq_size: u32;
}

/// The kernel would write to the C library's area of restartable sequences after it is unmapped, and kill the process.
fn unregister_rseq() {
    const UNREGISTER: u64 = 1;
    const SIGNATURE: u64 = 0x5305_3053;
    const SIZE: u64 = 32;
    // SAFETY: both are constants after the start of the program.
    let (offset, size) = unsafe { (__rseq_offset, __rseq_size) };
    if size == 0 {
        return;
    }
    let pointer: usize;
    // SAFETY: reads the thread pointer, which lies at fs:0.
    unsafe { core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly)) };
    must!(libc::SYS_rseq, pointer.wrapping_add_signed(offset), SIZE, UNREGISTER, SIGNATURE);
}
