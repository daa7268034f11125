//! How guest code runs and traps. One trait for all platforms; what is above it does not know which one it is.
//!
//! **The bargain.** A guest address space is a host process of its own, the *stub*, whose filter of system calls lets through only calls
//! that can touch nothing but that process' own memory (`mmap`, `munmap`, `mprotect`, `mremap`, `madvise`, and what threads need). So the
//! sentry may let the stub make such calls for it although guest code in the same address space could make them, too, or spoil
//! them: whatever comes out, it concerns that guest program alone. For the same reason **nothing that is read from a stub's memory is ever
//! trusted**, registers included: they are numbers that a guest chose.
//!
//! The host does what it is good at: page tables, copy-on-write at `fork`, page cache of mapped files. What an address means is kept in
//! [`crate::mm`].

mod by_itself;
pub mod generation;
mod host_vdso;
mod interrupt;
pub mod kvm;
pub mod ptrace;
pub mod systrap;

pub use by_itself::{ANSWERED, ByItself, REMEMBERED};
pub use host_vdso::HostVdso;
pub use interrupt::Interrupt;
pub(crate) use systrap::{here, rest, wake_here, would_crowd};

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::error::Errno;

/// Registers of a guest thread, in the order of `gregset_t` (`REG_R8` first), so that a signal frame's can be copied as they are.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of registers")]
pub struct Regs {
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rsp: u64,
    pub rip: u64,
    pub eflags: u64,
}

impl Regs {
    /// How many there are.
    pub const COUNT: usize = 18;

    /// All, in their order.
    #[must_use]
    pub fn to_array(&self) -> [u64; Self::COUNT] {
        [
            self.r8,
            self.r9,
            self.r10,
            self.r11,
            self.r12,
            self.r13,
            self.r14,
            self.r15,
            self.rdi,
            self.rsi,
            self.rbp,
            self.rbx,
            self.rdx,
            self.rax,
            self.rcx,
            self.rsp,
            self.rip,
            self.eflags,
        ]
    }

    /// From all, in their order.
    #[must_use]
    pub fn from_array(all: [u64; Self::COUNT]) -> Self {
        let [r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags] = all;
        Self { r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags }
    }

    /// Arguments of a system call, first to sixth.
    #[must_use]
    pub fn arguments(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }
}

/// Why a guest thread stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// It makes a system call. `rip` is behind the instruction; `rax` holds the number.
    Syscall {
        /// Number of the call.
        number: u64,
    },
    /// Its code did what no code may: a signal of the guest's kernel.
    Fault {
        /// SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP.
        signal: i32,
        /// `si_code`.
        code: i32,
        /// `si_addr`.
        address: u64,
        /// Number of the exception and its error code, as a signal frame tells them.
        exception: (u64, u64),
    },
    /// Somebody called [`Interrupt::interrupt`].
    Interrupted,
    /// The stub is gone: the guest destroyed it, or the host did (memory).
    Gone,
}

/// A change of a guest's memory.
#[derive(Debug)]
pub enum MemoryCall<'a> {
    /// `mmap` at exactly this address, in place of what is there.
    Map {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// `PROT_*`.
        protection: i32,
        /// Of `MAP_SHARED`, `MAP_PRIVATE`, `MAP_NORESERVE`, `MAP_GROWSDOWN`, `MAP_STACK`; what has to do with place and file is added.
        flags: i32,
        /// A host file, and where in it; `None` for memory of its own.
        file: Option<(BorrowedFd<'a>, u64)>,
    },
    /// `munmap`.
    Unmap {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// `mprotect`.
    Protect {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// `PROT_*`.
        protection: i32,
    },
    /// `mremap` to exactly `new_address`.
    Move {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// Where to; the same for growth in place.
        new_address: u64,
        /// Bytes there.
        new_length: u64,
        /// `MREMAP_DONTUNMAP`.
        keep: bool,
    },
    /// `madvise`.
    Advise {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// `MADV_*`; of these only those that change the caller's pages alone.
        advice: i32,
    },
}

/// Arguments of `rseq` that take back what those registered; of a call that takes back, nothing is left to do (`RSEQ_FLAG_UNREGISTER`).
pub(crate) fn taken_back([address, length, flags, signature]: [u64; 4]) -> Option<[u64; 4]> {
    const UNREGISTER: u64 = 1;
    (flags & UNREGISTER == 0).then_some([address, length, flags | UNREGISTER, signature])
}

/// Reading and writing a guest's memory. Both stop at the first byte that cannot be had and tell how many came before it.
pub trait Memory {
    /// Copies out of the guest; the number of bytes that could be read from the start.
    fn read(&self, address: u64, to: &mut [u8]) -> usize;

    /// Copies into the guest; the number of bytes that could be written from the start.
    fn write(&self, address: u64, from: &[u8]) -> usize;
}

/// A guest thread, owned by the sentry's thread that serves it.
pub trait Thread: Memory + Send {
    /// Lets guest code run until it traps.
    fn resume(&mut self) -> Trap;

    /// Lets the guest code of a new thread run already, whom nobody serves yet; the first [`resume`](Self::resume) is then called whatever comes,
    /// and waits until it traps. Whether it runs.
    fn start(&mut self) -> bool {
        false
    }

    /// As [`resume`](Self::resume), for one instruction: [`Trap::Fault`] by SIGTRAP with TRAP_TRACE behind it, unless it traps otherwise. A
    /// `syscall` is [`Trap::Syscall`], and nothing is run behind it.
    fn step(&mut self) -> Trap {
        self.resume()
    }

    /// Puts the guest's code back as its program has it ([`replace`](Self::replace)), and neither changes code of this address space nor
    /// answers calls of this thread from now on: somebody looks at it. `protection` tells that of the page of an address (`PROT_*`).
    ///
    /// # Errors
    /// When the host could not change a page's protection: the guest may have lost its code, and should end. EFAULT where the stub is gone.
    fn show_code(&mut self, protection: &dyn Fn(u64) -> Option<i32>) -> Result<(), Errno> {
        let _ = protection;
        Ok(())
    }

    /// What came with the call ([`read_early`](Self::read_early), [`says_writable`](Self::says_writable)) counts no more, and what was to be
    /// written late is written: somebody else looks at the guest's memory and may change it.
    fn forget_early(&mut self) {}

    /// Registers, as they were at the trap and as they will be at the next [`resume`](Self::resume).
    fn regs(&mut self) -> &mut Regs;

    /// Arguments of the call that it makes.
    fn arguments(&mut self) -> [u64; 6] {
        self.regs().arguments()
    }

    /// Where its code goes on behind the call that it makes; 0 where that is a place which was replaced, and code of its program.
    fn called_from(&mut self) -> u64 {
        self.regs().rip
    }

    /// The value that its call has for it (`rax`): as by [`regs`](Self::regs), which costs more.
    fn set_result(&mut self, value: u64) {
        self.regs().rax = value;
    }

    /// As [`read`](Memory::read), for an argument of the call that is read once: it may be what was there when the call was made.
    fn read_early(&self, address: u64, to: &mut [u8]) -> usize {
        self.read(address, to)
    }

    /// As [`read_early`](Self::read_early), of a text: it may be less than would fit where that has a 0 in it.
    fn read_text(&self, address: u64, to: &mut [u8]) -> usize {
        self.read_early(address, to)
    }

    /// As [`write`](Memory::write), for the last that a call does: before the guest goes on. Where it turns out then that not all can be
    /// written, the call gives EFAULT, whatever it gave before. `false` where nothing is done and it has to be written now.
    fn write_late(&self, address: u64, from: &[u8]) -> bool {
        let _ = (address, from);
        false
    }

    /// Whether the guest found out, when it made the call, that it can write there. It is the guest's word: what follows from it must
    /// concern the guest alone.
    fn says_writable(&self, address: u64, length: usize) -> bool {
        let _ = (address, length);
        false
    }

    /// Base of `fs` (thread-local storage).
    fn fs_base(&mut self) -> &mut u64;

    /// Vector state in the form of XSAVE, as a signal frame holds it; empty when it cannot be had.
    fn vector_state(&mut self) -> Result<Vec<u8>, Errno>;

    /// Bytes of vector state that [`push_frame`](Self::push_frame) puts on a stack; `None` where that is done step by step.
    fn pushed_state(&self) -> Option<usize> {
        None
    }

    /// Puts vector state at `vector`, with what tells a program how much there is of it and the mark behind it, and `frame` at `place`; the
    /// guest's own vector state is then as after a reset: all that a signal's handler finds, in one step.
    ///
    /// # Errors
    /// EFAULT where not all of it can be written; ENOSYS where [`pushed_state`](Self::pushed_state) is `None`.
    fn push_frame(&mut self, vector: u64, place: u64, frame: &[u8]) -> Result<(), Errno> {
        let _ = (vector, place, frame);
        Err(Errno::ENOSYS)
    }

    /// Bytes of vector state that [`load_state`](Self::load_state) takes; `None` where that is not possible now.
    fn loaded_state(&self) -> Option<usize> {
        None
    }

    /// Sets all of the vector state to what lies at `from` in the guest's memory, as [`set_vector_state`](Self::set_vector_state) does with bytes.
    ///
    /// # Errors
    /// EFAULT where it cannot be read; ENOSYS where [`loaded_state`](Self::loaded_state) is `None`.
    fn load_state(&mut self, from: u64) -> Result<(), Errno> {
        let _ = from;
        Err(Errno::ENOSYS)
    }

    /// Sets vector state: bytes that a guest may have chosen. What is no valid state is refused (EINVAL).
    fn set_vector_state(&mut self, state: &[u8]) -> Result<(), Errno>;

    /// What calls of [`ANSWERED`] give this thread from now on, by number: the platform may answer them by itself. A number that was never
    /// given is not answered.
    fn set_answers(&mut self, answers: &[(u64, u64)]) {
        let _ = answers;
    }

    /// What this thread may do without the sentry from now on.
    fn let_by_itself(&mut self, what: ByItself) {
        let _ = what;
    }

    /// Lets the platform answer the call that the guest makes by itself when the same thread makes it again, with the same text and the same other
    /// numbers: `result`, and before it these bytes for the buffer that the call names. As long as nothing changed since `mark`, and as it may
    /// ([`let_by_itself`](Self::let_by_itself)). For calls of [`REMEMBERED`], which look at a path and change nothing.
    fn remember(&mut self, mark: generation::Mark, result: i64, bytes: &[u8]) {
        let _ = (mark, result, bytes);
    }

    /// So many more, or less, of this address space wait in the sentry for a private word of its memory: to be told before the word is looked at.
    /// Wake-ups of such words come to the sentry as long as somebody does.
    fn count_sleepers(&mut self, address: u64, more: i32) {
        let _ = (address, more);
    }

    /// Wakes at most so many whose waits for a private word of this address space never came to the sentry, of those whose bits touch `bitset`. How
    /// many.
    fn wake_sleepers(&mut self, address: u64, count: usize, bitset: u32) -> usize {
        let _ = (address, count, bitset);
        0
    }

    /// Of those, wakes `wake` who wait for the first word, and has `count` of the others wait for the second, if the first has this value. How many
    /// of both.
    fn move_sleepers(&mut self, words: (u64, u64), counts: (usize, usize), value: Option<u32>) -> usize {
        let _ = (words, counts, value);
        0
    }

    /// Ticks ([`crate::ticks`]) for which guest code slept since [`clear_slept`](Self::clear_slept), so that they are not time of a processor. It is
    /// the guest's word.
    fn slept(&mut self) -> u64 {
        0
    }

    /// What it slept has been counted.
    fn clear_slept(&mut self) {}

    /// Lets no call of this address space be answered without the sentry from now on ([`set_answers`](Self::set_answers)).
    ///
    /// # Errors
    /// ENOMEM: there is no room for what that takes. EFAULT where the stub is gone.
    fn stop_answering(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    /// Changes this thread's address space. For [`MemoryCall::Map`] and [`MemoryCall::Move`] the address.
    ///
    /// # Errors
    /// What the host says: ENOMEM above all. EFAULT where the stub is gone.
    fn change_memory(&mut self, call: &MemoryCall<'_>) -> Result<u64, Errno>;

    /// From now on mappings that are made by [`map_kept`](Self::map_kept) may be put off, and made together: when memory is read or written,
    /// when anything else is asked, and at the latest when this is called with `false`. For an address space that nobody else has, and that is
    /// of no use when one of them fails.
    ///
    /// # Errors
    /// What the host said of a mapping that was put off.
    fn gather(&mut self, gather: bool) -> Result<(), Errno> {
        let _ = gather;
        Ok(())
    }

    /// As [`change_memory`](Self::change_memory) for a [`MemoryCall::Map`] of this file, which may be kept until it is done.
    ///
    /// # Errors
    /// The same, also of a mapping that was put off before.
    fn map_kept(&mut self, call: &MemoryCall<'_>, file: Option<&Arc<OwnedFd>>) -> Result<u64, Errno> {
        let _ = file;
        self.change_memory(call)
    }

    /// Reads a file of the host into the guest's memory, as the guest itself: it may get hold of the descriptor, and so do with the file whatever
    /// that allows. How many bytes there are now is the guest's word.
    ///
    /// # Errors
    /// What the host says; ENOSYS where the platform has no such way.
    fn read_file(
        &mut self,
        address: u64,
        length: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, Errno> {
        let _ = (address, length, file, offset);
        Err(Errno::ENOSYS)
    }

    /// Compares and swaps 32 bits of the guest's memory, atomically against guest code. What was there before.
    ///
    /// # Errors
    /// EFAULT.
    fn compare_exchange(&mut self, address: u64, expected: u32, new: u32) -> Result<u32, Errno>;

    /// `rseq` of this thread, with its four arguments: the host's kernel keeps the structure, which lies in the guest's own memory, and
    /// restarts sections. What `fork` hands on and threads do not have is as Linux has it, since both are the host's own.
    ///
    /// # Errors
    /// Those of `rseq`; ENOSYS where the platform cannot do it: a tracer that puts a handler of the guest in the place of a section keeps the
    /// host's kernel from seeing that the section was left.
    fn restartable(&mut self, arguments: [u64; 4]) -> Result<(), Errno> {
        let _ = arguments;
        Err(Errno::ENOSYS)
    }

    /// What is registered by [`restartable`](Self::restartable), as it was asked for.
    fn registered(&self) -> Option<[u64; 4]> {
        None
    }

    /// A new address space that is a copy of this one (`fork`), with one thread, whose registers are this one's.
    fn fork(&mut self) -> Result<Box<dyn Thread>, Errno>;

    /// A further thread in this address space, with this one's registers.
    fn spawn(&mut self) -> Result<Box<dyn Thread>, Errno>;

    /// Whether [`resume`](Self::resume) wakes whom the calling thread has put off to wake ([`crate::events::may_put_off`]), while the guest runs.
    fn wakes_put_off(&self) -> bool {
        false
    }

    /// The guest thread has ended. Called before anybody hears of that, who may then take away memory in which the host's kernel writes for it.
    fn retire(&mut self) {}

    /// Writes when the guest goes on, or now; where that cannot be done it is nothing to the guest.
    fn write_aside(&self, address: u64, from: &[u8]) {
        self.write(address, from);
    }

    /// What was to be done when the guest goes on is done now: it may be long until then.
    fn settle(&mut self) {}

    /// Another thread of the sentry will use it from now on, or for the next time.
    fn release(&mut self) {}

    /// Where a platform can make the calls of one place in the guest's code cheaper by changing that code: asked after a call that trapped.
    /// The address of the code, when it is time. The caller sees whether the code may be changed (a private mapping that the guest
    /// cannot write) and calls [`replace`](Self::replace) before it resumes.
    fn replaceable(&mut self) -> Option<u64> {
        None
    }

    /// Changes the code that [`replaceable`](Self::replaceable) told, in a page with this protection (`PROT_*`).
    ///
    /// # Errors
    /// When the host could not change the page's protection: the guest may have lost its code, and should end.
    fn replace(&mut self, protection: i32) -> Result<(), Errno> {
        let _ = protection;
        Ok(())
    }

    /// Takes over what [`RemoteMemory::kept`] told of another address space, which this one becomes a copy of: before guest code runs.
    ///
    /// # Errors
    /// EINVAL for what this platform did not tell; what the host says.
    fn set_kept(&mut self, kept: &[u8]) -> Result<(), Errno> {
        if kept.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// What interrupts this thread from elsewhere.
    fn interrupt(&self) -> Arc<dyn Interrupt>;

    /// The memory of this address space for other threads of the sentry; it reads nothing once the address space is gone.
    fn remote(&self) -> Arc<dyn RemoteMemory>;
}

/// Another thread's memory.
pub trait RemoteMemory: Memory + Send + Sync {
    /// Bytes of the address space that are in memory, and how many of them are files' or shared; `None` where nobody knows.
    fn resident(&self) -> Option<(u64, u64)> {
        None
    }

    /// The parts of a range of whole pages that are in memory and belong to this address space alone: anonymous pages, and pages of a private
    /// mapping that were written.
    ///
    /// # Errors
    /// What the host says; ENOSYS where nobody can know.
    fn own_pages(&self, range: std::ops::Range<u64>) -> Result<Vec<std::ops::Range<u64>>, Errno> {
        let _ = range;
        Err(Errno::ENOSYS)
    }

    /// As [`read`](Memory::read), whatever guest code may do there.
    fn read_protected(&self, address: u64, to: &mut [u8]) -> usize {
        self.read(address, to)
    }

    /// What the platform keeps in and about this address space for itself, for [`Thread::set_kept`]. No guest code may run meanwhile.
    ///
    /// # Errors
    /// EFAULT where the stub is gone.
    fn kept(&self) -> Result<Vec<u8>, Errno> {
        Ok(Vec::new())
    }
}

/// The platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Kind {
    /// Stubs under seccomp that pass their turn over shared memory: the quickest that runs everywhere.
    #[default]
    Systrap,
    /// Traced stubs: ten times slower, for hosts that do not let stubs have filters or handlers of their own.
    Ptrace,
    /// Ring 3 of virtual machines: guest code meets no kernel of the host's; for hosts with a `/dev/kvm` of their own.
    Kvm,
}

impl Kind {
    /// All, the one that is to be preferred first.
    pub const ALL: [Self; 3] = [Self::Systrap, Self::Ptrace, Self::Kvm];

    /// Starts it.
    ///
    /// # Errors
    /// What the host says.
    pub fn start(self) -> Result<Box<dyn Platform>, Errno> {
        Ok(match self {
            Self::Systrap => Box::new(systrap::Systrap::new()?),
            Self::Ptrace => Box::new(ptrace::Ptrace::new()?),
            Self::Kvm => Box::new(kvm::Kvm::new()?),
        })
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Systrap => "systrap",
            Self::Ptrace => "ptrace",
            Self::Kvm => "kvm",
        })
    }
}

/// Makes address spaces.
pub trait Platform: Send + Sync {
    /// Its name: `systrap`, `ptrace`, `kvm`.
    fn name(&self) -> &'static str;

    /// An empty address space with one thread, all registers 0.
    ///
    /// # Errors
    /// What the host says when no process can be made.
    fn new_address_space(&self) -> Result<Box<dyn Thread>, Errno>;

    /// Addresses that guests may use: from the lowest to the first that is not.
    fn guest_range(&self) -> std::ops::Range<u64>;

    /// The host's vDSO as every address space has it, outside of [`guest_range`](Self::guest_range).
    fn host_vdso(&self) -> Option<&HostVdso> {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
