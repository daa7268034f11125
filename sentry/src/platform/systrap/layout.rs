//! Where the stub's own memory lies in every guest address space, and what is where in a *context*: the memory that one guest thread
//! shares with the sentry's thread that serves it.
//!
//! Guest code can write all of a context. What is read from it is checked, or hurts nobody but that guest.

/// First byte of the stub's code. Lower than the mmap area of any host process and higher than where programs are loaded, so that nothing
/// of the sentry lies there when the first stub is made from it.
pub(in crate::platform) const CODE: u64 = 0x6000_0000_0000;

/// Bytes of the stub's code.
pub(in crate::platform) const CODE_SIZE: u64 = 0x2000;

/// A page that stubs can only read: [`crate::platform::generation`].
pub(in crate::platform) const GENERATION: u64 = CODE + CODE_SIZE;

/// First context.
pub(in crate::platform) const CONTEXTS: u64 = CODE + 0x10_0000;

/// Bytes of one context. Contexts are aligned to it: the signal handler finds its own by rounding its stack pointer down.
pub(in crate::platform) const CONTEXT_SIZE: usize = 0x1_0000;

/// Most threads of one address space.
pub(in crate::platform) const MAX_THREADS: usize = 4096;

/// Bytes of all contexts of an address space. Only what is used takes memory.
pub(in crate::platform) const CONTEXTS_SIZE: usize = CONTEXT_SIZE * MAX_THREADS;

/// First byte behind all that is the stub's.
pub(in crate::platform) const END: u64 = CONTEXTS + CONTEXTS_SIZE as u64;

/// First address that no process has (`TASK_SIZE` with four levels of page tables).
pub(in crate::platform) const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// Address of a context in every guest.
pub(in crate::platform) fn context_address(slot: usize) -> u64 {
    CONTEXTS + (slot * CONTEXT_SIZE) as u64
}

/// Offsets in a context. What passes with the turn has one cache line, so that a hand-over is one line that changes its processor; words
/// that one side looks at and the other seldom writes have lines of their own.
pub(in crate::platform) mod at {
    /// Whose turn it is: see [`super::state`]. 32 bits, a futex.
    pub(crate) const STATE: usize = 0x000;
    /// What is asked of who gets the turn: [`super::op`] for the stub, [`super::kind`] for the sentry. 32 bits.
    pub(crate) const WHAT: usize = 0x004;
    /// To the sentry: `rax` and the arguments of a call (`rdi`, `rsi`, `rdx`, `r10`, `r8`, `r9`), or the result of what was asked. To the stub:
    /// `rax` with which the guest goes on.
    pub(crate) const TURN: usize = 0x008;
    /// Not 0 while the stub sleeps, or is about to: the processor that it ran on at last, and one more ([`super::CPUNODE`]).
    pub(crate) const STUB_SLEEPS: usize = 0x040;
    /// Where another thread sleeps that the stub wakes when it is about to sleep ([`super::super::leaving`]); 0 for none.
    pub(crate) const WAKES: usize = 0x048;
    /// Not 0 while the sentry sleeps, or is about to: as for the stub, where the stub is to sleep at once if it wakes it on its own processor;
    /// else [`super::ANYWHERE`].
    pub(crate) const SENTRY_SLEEPS: usize = 0x080;
    /// Set by the stub's signal handler when an interrupt came while the stub itself ran.
    pub(crate) const INTERRUPTED: usize = 0x084;
    /// How often the stub looks at the state before it sleeps: where the sentry was awake, and where the stub had to wake it. 32 bits each.
    pub(crate) const SPIN: usize = 0x088;
    /// The latter.
    pub(crate) const SPIN_WOKEN: usize = 0x08c;
    /// Since when the guest sleeps in the host's kernel ([`super::super::sleepers`]), by the processor's clock; 0 while it does not.
    pub(crate) const WAITS_SINCE: usize = 0x090;
    /// How long it did before, in ticks of that.
    pub(crate) const WAITED: usize = 0x098;
    /// Arguments of what is asked: a system call's number and six arguments.
    pub(crate) const ARGUMENTS: usize = 0x0c0;
    /// `siginfo`: number, code, address.
    pub(crate) const SIGNAL: usize = 0x110;
    /// `si_code`.
    pub(crate) const CODE: usize = 0x118;
    /// `si_addr`.
    pub(crate) const ADDRESS: usize = 0x120;
    /// Error code of the exception.
    pub(crate) const ERROR: usize = 0x128;
    /// Number of the exception.
    pub(crate) const EXCEPTION: usize = 0x130;
    /// Address of the `ucontext` where the guest stopped by a signal; else 0.
    pub(crate) const FRAME: usize = 0x138;
    /// Base of `fs`.
    pub(crate) const FS_BASE: usize = 0x140;
    /// Eight bytes of 0: a signal mask.
    pub(crate) const NO_SIGNALS: usize = 0x148;
    /// A `stack_t` that names this context's signal stack.
    pub(crate) const STACK_T: usize = 0x150;
    /// 18 registers, see [`crate::platform::Regs`].
    pub(crate) const REGS: usize = 0x180;
    /// Values of calls that are answered without a hand-over, in the order of [`crate::platform::ANSWERED`].
    pub(crate) const ANSWERS: usize = 0x240;
    /// Which of them are there: a bit for each.
    pub(crate) const ANSWERED: usize = 0x2c0;
    /// Which of its users this context has, in the upper bits: what another one kept is not theirs.
    pub(crate) const USER: usize = 0x2c8;
    /// What the stub sleeps on: two `struct futex_waitv` (`include/uapi/linux/futex.h`: value, address, flags, 0), of its turn and of its bell.
    pub(crate) const WAITERS: usize = 0x2d0;
    /// Address of the bell; 0 where there is none.
    pub(crate) const BELL: usize = WAITERS + 24 + 8;
    const _: () = assert!(WAITERS + 48 <= SECRET);
    /// What only the sentry and who has this context can know.
    pub(crate) const SECRET: usize = 0x300;
    /// A stack of a few words grows down from here.
    pub(crate) const SCRATCH_STACK: usize = 0x400;
    /// What the stub fetched with a call ([`super::super::stage`]).
    pub(crate) const STAGE: usize = 0x400;
    /// Most bytes of it.
    pub(crate) const STAGE_SIZE: usize = 0x400;
    /// XSAVE area.
    pub(crate) const VECTOR: usize = 0x1000;
    /// Bytes of it.
    pub(crate) const VECTOR_SIZE: usize = 0x3000;
    /// Signal stack.
    pub(crate) const SIGNAL_STACK: usize = 0x4000;
    /// Bytes of it.
    pub(crate) const SIGNAL_STACK_SIZE: usize = 0x4000;
    /// Bytes that are copied between the guest's memory and the sentry.
    pub(crate) const WINDOW: usize = 0x8000;
    /// Bytes of it.
    pub(crate) const WINDOW_SIZE: usize = 0x4000;
    /// What is put into the guest's memory before it goes on: where to, how many bytes, and these.
    pub(crate) const LATE: usize = 0xc000;
    /// The bytes.
    pub(crate) const LATE_BYTES: usize = LATE + 16;
    /// Most of them.
    pub(crate) const LATE_SIZE: usize = 0x1000;
    /// In the first context: how many wait in the sentry for a word whose address has this hash. 32 bits each.
    pub(crate) const SLEEPERS: usize = 0xd100;
    /// So many.
    pub(crate) const SLEEPERS_COUNT: usize = 64;
    const _: () = assert!(LATE_BYTES + LATE_SIZE <= SLEEPERS && SLEEPERS + 4 * SLEEPERS_COUNT <= KEPT);
    /// Calls whose answers are kept ([`super::super::remember`]).
    pub(crate) const KEPT: usize = 0xe000;
    /// In the window, where files are received: control data of the message.
    pub(crate) const CONTROL: usize = 128;
    /// Where in that the descriptors are (behind `struct cmsghdr`).
    pub(crate) const DESCRIPTORS: usize = CONTROL + 16;
    /// In the window: mappings of [`super::op::MAP`], each six words: address, length, protection, flags, offset, and which of the files that
    /// come with the message, or -1.
    pub(crate) const MAPS: usize = 512;
    /// Most of them.
    pub(crate) const MAPS_COUNT: usize = 32;
    /// Most files that come with them.
    pub(crate) const FILES_COUNT: usize = 8;
    const _: () = assert!(DESCRIPTORS + 4 * FILES_COUNT <= MAPS && MAPS + 48 * MAPS_COUNT <= WINDOW_SIZE);
}

/// Places of registers in [`crate::platform::Regs`], as tables of the stub's code name them.
pub(super) mod register {
    pub(crate) const R8: u16 = 0;
    pub(crate) const R10: u16 = 2;
    pub(crate) const RDI: u16 = 8;
    pub(crate) const RSI: u16 = 9;
    pub(crate) const RDX: u16 = 12;
    /// A call's number.
    pub(crate) const RAX: u16 = 13;
}

/// Whose turn it is.
pub(super) mod state {
    /// The stub's thread is gone: the host's kernel clears the word when it ends.
    pub(crate) const DEAD: u32 = 0;
    /// The stub's: it runs the guest, or does what it was asked.
    pub(crate) const STUB: u32 = 1;
    /// The sentry's.
    pub(crate) const SENTRY: u32 = 2;
    /// The sentry's, and it will be long: the stub shall sleep.
    pub(crate) const LONG: u32 = 3;
    /// The stub's, once the thread that made its guest thread goes on ([`super::super::resting`]).
    pub(crate) const GIVEN: u32 = 4;
    /// The sentry's, which waits for the answer of a gofer: it will take longer than a call, and not long.
    pub(crate) const ASKS: u32 = 5;
}

/// What the stub can be asked.
pub(super) mod op {
    /// Run the guest with all registers of the context.
    pub(crate) const RESUME_ALL: u32 = 1;
    /// Make a system call of the host.
    pub(crate) const CALL: u32 = 2;
    /// Copy bytes: to, from, length. The result is how many are left.
    pub(crate) const COPY: u32 = 3;
    /// Compare and swap 32 bits: address, expected, new. The result is what was there, or -1.
    pub(crate) const COMPARE_EXCHANGE: u32 = 4;
    /// Save vector registers to the context.
    pub(crate) const SAVE_VECTOR: u32 = 5;
    /// Load them from it. The result is 0, or -1 when they are no valid state.
    pub(crate) const LOAD_VECTOR: u32 = 6;
    /// `clone` of a thread: flags, -, -, place of the word that is cleared at its end, -, its context.
    pub(crate) const SPAWN: u32 = 7;
    /// `clone` of a process: flags, descriptor of the new contexts, descriptors that the new process and the old one close.
    pub(crate) const FORK: u32 = 8;
    /// Receives files and makes mappings: socket, message header, flags, how many files, how many mappings, of which there is one at least; they
    /// are at [`super::at::MAPS`]. The result is that of the last `mmap`, or of the first that failed.
    pub(crate) const MAP: u32 = 9;
    /// Run the guest as it stopped, with another `rax`.
    pub(crate) const RESUME: u32 = 10;
    /// The same, after what [`super::at::LATE`] says was put into its memory.
    pub(crate) const RESUME_LATE: u32 = 11;
    /// Put vector registers and a signal's frame into the guest's memory: where to and how many bytes of each; the frame is at
    /// [`super::at::LATE_BYTES`]. The registers are then as after a reset. The result is 0, or -1 where not all could be written.
    pub(crate) const PUSH: u32 = 12;
    /// Receives a file and reads it into the guest's memory: socket, message header, flags, where to, how many bytes, from which offset on. The
    /// result is that of `recvmsg` where it failed, else that of `pread64`.
    pub(crate) const READ_FILE: u32 = 13;
    /// Save vector registers to another context, whose address is the argument.
    pub(crate) const SAVE_FOR: u32 = 14;
    /// As [`RESUME_LATE`]; then the thread of another context, whose address is the argument, has its turn ([`super::state::GIVEN`]).
    pub(crate) const RESUME_GIVING: u32 = 15;
    /// As [`RESUME_ALL`], with the vector registers that are in the context, in a thread that rested.
    pub(crate) const RESUME_NEW: u32 = 16;
    /// Forget the guest, and sleep until there is another. No answer: the state is then [`super::state::LONG`].
    pub(crate) const REST: u32 = 17;
}

/// Why the stub gave the turn away.
pub(super) mod kind {
    /// What it was asked is done.
    pub(crate) const DONE: u32 = 0x101;
    /// The guest stopped by a signal that is no call.
    pub(crate) const SIGNAL: u32 = 0x102;
    /// It was interrupted before the guest ran.
    pub(crate) const INTERRUPTED: u32 = 0x103;
    /// The bytes of [`super::op::RESUME_LATE`] could not be written.
    pub(crate) const NOT_WRITTEN: u32 = 0x104;
    /// The guest makes a call. With any of the flags below.
    pub(crate) const CALL: u32 = 0x200;
    /// It trapped.
    pub(crate) const TRAPPED: u32 = 1;
    /// Something of what it points to was fetched.
    pub(crate) const STAGED: u32 = 2;
    /// What it points to can be written.
    pub(crate) const WRITABLE: u32 = 4;
    /// From this bit on, how many bytes of a text were fetched.
    pub(crate) const FETCHED_BIT: u32 = 16;
}

/// Selector of the segment whose limit tells number and node of the processor (`__CPUNODE_SEG` in `arch/x86/include/asm/segment.h`): what a
/// vDSO's `getcpu` asks where there is no RDPID.
pub(super) const CPUNODE: u32 = 0x7b;

/// No processor.
pub(super) const ANYWHERE: u32 = u32::MAX;

/// The host's signal by which a running guest thread is interrupted. Guests never see signals of the host.
pub(crate) const INTERRUPT: i32 = libc::SIGURG;

/// Flags that a guest may set: CF, PF, AF, ZF, SF, DF, OF, AC, ID.
pub(in crate::platform) const FLAGS: u64 =
    0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x400 | 0x800 | 0x4_0000 | 0x20_0000;
