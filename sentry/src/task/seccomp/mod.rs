//! What a task lets itself call (`man 2 seccomp`; `kernel/seccomp.c`).
//!
//! Every call of a task with a filter is judged before it is carried out. Numbers that its programs let through whatever the arguments are found
//! once, when a program is added ([`Allowed`]; `seccomp_cache_prepare` does the same): only the others are run through the programs. Calls that
//! a stub answers by itself are among the others, or the platform is told to answer no more in this address space
//! ([`Thread::stop_answering`](crate::platform::Thread::stop_answering)).

mod allowed;
mod program;

use std::sync::Arc;

pub(super) use allowed::{Allowed, Cached};
pub use program::{DATA, Instruction, LENGTH_MAX, Program};

use super::signal::{Payload, SignalInfo};
use super::{Credentials, Pid, Task, capability, lock};
use crate::error::{Errno, SysError};
use crate::platform::{ANSWERED, ByItself, REMEMBERED, Regs, Thread};

/// Instructions of all filters of a task, each counted with four more (`MAX_INSNS_PER_PATH`).
const ALL_MAX: usize = 32_768;

/// What becomes of a call, in the order of precedence (`include/uapi/linux/seccomp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Allow,
    /// The process ends.
    KillProcess,
    /// The thread ends.
    KillThread,
    /// SIGSYS with this number, and no call.
    Trap(u16),
    /// This error, and no call.
    Errno(u16),
    /// Who would decide is not there: ENOSYS.
    Nobody,
    /// The tracer decides, if there is one that wants to, and is told this number.
    Trace(u16),
    /// The thread ends by SIGKILL: what strict mode does.
    End,
}

/// Actions as programs return them.
pub mod action {
    #![allow(missing_docs, reason = "names as the header has them")]
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x3_0000;
    pub const ERRNO: u32 = 0x5_0000;
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
    /// All bits of an action; the rest is its number.
    pub const FULL: u32 = 0xffff_0000;
}

/// What a task lets itself call.
#[derive(Debug, Default, Clone)]
pub enum Filters {
    /// Anything.
    #[default]
    None,
    /// `read`, `write`, `exit` and `rt_sigreturn`.
    Strict,
    /// What all of these programs allow.
    Programs(Arc<Programs>),
}

/// Programs of a task.
#[derive(Debug)]
pub struct Programs {
    /// The newest last.
    all: Vec<Arc<Program>>,
    allowed: Allowed,
}

impl Programs {
    fn new(all: Vec<Arc<Program>>) -> Self {
        let allowed = all.iter().fold(Allowed::ALL, |allowed, program| allowed.and(program));
        Self { all, allowed }
    }

    /// These and one more.
    fn with(before: &Filters, program: Program) -> Self {
        let allowed = before.allowed().and(&program);
        let all = before.programs().iter().cloned().chain([Arc::new(program)]).collect();
        Self { all, allowed }
    }
}

impl Filters {
    /// One program, as whoever starts a process gives it.
    #[must_use]
    pub fn of(program: &Arc<Program>) -> Self {
        Self::Programs(Arc::new(Programs::new(vec![Arc::clone(program)])))
    }

    /// Numbers that are let through whatever the arguments.
    fn allowed(&self) -> Allowed {
        match self {
            Self::None => Allowed::ALL,
            // `read` and `write` are judged quickly enough.
            Self::Strict => Allowed::NONE,
            Self::Programs(programs) => programs.allowed,
        }
    }

    /// `Seccomp` in `/proc/…/status`.
    #[must_use]
    pub fn mode(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Strict => 1,
            Self::Programs(_) => 2,
        }
    }

    /// How many programs there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.programs().len()
    }

    /// Whether it is this program, or none where that is `None`, and nothing else.
    pub(super) fn is_only(&self, program: Option<&Arc<Program>>) -> bool {
        match (self, program) {
            (Self::None, None) => true,
            (Self::Programs(programs), Some(program)) => {
                matches!(programs.all.as_slice(), [only] if Arc::ptr_eq(only, program))
            }
            _ => false,
        }
    }

    fn programs(&self) -> &[Arc<Program>] {
        match self {
            Self::Programs(programs) => &programs.all,
            _ => &[],
        }
    }

    /// Whether these are the other's first programs: whoever has them had the other's past.
    fn begins(&self, other: &Self) -> bool {
        let (own, other) = (self.programs(), other.programs());
        own.len() <= other.len() && own.iter().zip(other).all(|(one, two)| Arc::ptr_eq(one, two))
    }

    /// Judges a call (`seccomp_run_filters`).
    #[must_use]
    pub fn judge(&self, number: u64, regs: &Regs) -> Verdict {
        let programs = match self {
            Self::None => return Verdict::Allow,
            Self::Strict => {
                const ALLOWED: [i64; 4] =
                    [libc::SYS_read, libc::SYS_write, libc::SYS_exit, libc::SYS_rt_sigreturn];
                let allowed = ALLOWED.iter().any(|call| call.unsigned_abs() == number);
                return if allowed { Verdict::Allow } else { Verdict::End };
            }
            Self::Programs(programs) => &programs.all,
        };
        let data = data(number, regs);
        let rank = |value: u32| (value & action::FULL).cast_signed();
        let verdict = programs.iter().rev().fold(action::ALLOW, |least, program| {
            let value = program.run(&data);
            if rank(value) < rank(least) { value } else { least }
        });
        let low = (verdict & 0xffff) as u16;
        match verdict & action::FULL {
            action::ALLOW | action::LOG => Verdict::Allow,
            action::ERRNO => Verdict::Errno(low.min(4095)),
            action::TRAP => Verdict::Trap(low),
            action::TRACE => Verdict::Trace(low),
            action::USER_NOTIF => Verdict::Nobody,
            action::KILL_THREAD => Verdict::KillThread,
            _ => Verdict::KillProcess,
        }
    }
}

/// `struct seccomp_data`, in words.
fn data(number: u64, regs: &Regs) -> [u32; DATA / 4] {
    let halves = |value: u64| [(value & 0xffff_ffff) as u32, (value >> 32) as u32];
    let mut data = [0; DATA / 4];
    let head = [halves(number)[0], crate::bpf::AUDIT_ARCH_X86_64];
    let all = [regs.rip].into_iter().chain(regs.arguments()).flat_map(halves);
    for (place, word) in data.iter_mut().zip(head.into_iter().chain(all)) {
        *place = word;
    }
    data
}

/// Judges a call that a task is about to make: the number of the one that is made, which a tracer may have changed (`__seccomp_filter`).
pub(super) fn admit(task: &Arc<Task>, thread: &mut dyn Thread, number: u64) -> Result<u64, SysError> {
    let verdict = task.filters().judge(number, thread.regs());
    let Verdict::Trace(told) = verdict else {
        return refuse(task, thread.regs(), number, verdict).map_or(Ok(number), Err);
    };
    let number = super::ptrace::report_seccomp(task, thread, told)?;
    // What the tracer made of it is judged, too, but it is not asked once more.
    match task.filters().judge(number, thread.regs()) {
        Verdict::Trace(_) => Ok(number),
        verdict => refuse(task, thread.regs(), number, verdict).map_or(Ok(number), Err),
    }
}

/// What comes of a call that is judged so; `None`: it is made.
fn refuse(task: &Task, regs: &mut Regs, number: u64, verdict: Verdict) -> Option<SysError> {
    match verdict {
        Verdict::Allow | Verdict::Trace(_) => return None,
        Verdict::Errno(0) => {
            regs.rax = 0;
            return Some(SysError::RegistersSet);
        }
        Verdict::Errno(number) => {
            regs.rax = (-i64::from(number)).cast_unsigned();
            return Some(SysError::RegistersSet);
        }
        Verdict::Nobody => return Some(Errno::ENOSYS.into()),
        Verdict::Trap(told) => {
            regs.rax = number;
            task.force_signal(trapped(number, regs, told));
        }
        Verdict::KillThread if !task.is_alone() => {
            task.set_exit_status(libc::SIGSYS);
            return Some(SysError::Exit);
        }
        Verdict::KillThread | Verdict::KillProcess => {
            regs.rax = number;
            task.end_by(libc::SIGSYS);
        }
        Verdict::End => {
            task.set_exit_status(libc::SIGKILL);
            return Some(SysError::Exit);
        }
    }
    Some(SysError::RegistersSet)
}

/// SIGSYS for a call that is not made (`force_sig_seccomp`): where, which call, of which architecture.
fn trapped(number: u64, regs: &Regs, told: u16) -> SignalInfo {
    const SYS_SECCOMP: i32 = 1;
    let mut rest = Box::new([0; 112]);
    let call = ((number & 0xffff_ffff) as u32).to_le_bytes();
    let fields = [&regs.rip.to_le_bytes()[..], &call, &crate::bpf::AUDIT_ARCH_X86_64.to_le_bytes()].concat();
    for (place, byte) in rest.iter_mut().zip(fields) {
        *place = byte;
    }
    let payload = Payload::Raw(rest);
    SignalInfo { signal: libc::SIGSYS, errno: told.into(), code: SYS_SECCOMP, payload }
}

impl Task {
    /// Whether it is the only thread of its process.
    fn is_alone(&self) -> bool {
        self.tasks.tree().tasks_of(self.group.pid()).len() <= 1
    }

    /// Whether calls are judged.
    #[must_use]
    pub fn is_filtered(&self) -> bool {
        self.filtered.any()
    }

    /// Whether a call is to be judged: looked at before each one.
    #[must_use]
    pub(super) fn judges(&self, number: u64) -> bool {
        self.filtered.any() && !self.filtered.always_allows(number)
    }

    /// Whether calls that a platform may answer by itself are none that a program would refuse.
    #[must_use]
    pub fn lets_answer(&self) -> bool {
        self.lets_all(&ANSWERED)
    }

    /// What it may do without anybody looking.
    #[must_use]
    pub fn does_by_itself(&self) -> ByItself {
        let looked_at = !self.lets_answer() || self.is_traced();
        ByItself {
            remembers: !looked_at && self.lets_all(&REMEMBERED),
            waits: !looked_at && self.lets_all(&[libc::SYS_futex]),
        }
    }

    /// Whether it may make all of these calls, whatever their arguments, and nobody is told of them.
    fn lets_all(&self, calls: &[i64]) -> bool {
        !self.is_filtered() || calls.iter().all(|call| self.filtered.always_allows(call.unsigned_abs()))
    }

    /// What it lets itself call.
    #[must_use]
    pub fn filters(&self) -> Filters {
        lock(&self.filters).clone()
    }

    pub(crate) fn set_filters(&self, filters: Filters) {
        let mut held = lock(&self.filters);
        let (any, allowed) = (!matches!(filters, Filters::None), filters.allowed());
        *held = filters;
        self.filtered.set(any, allowed);
    }

    /// `SECCOMP_SET_MODE_STRICT`.
    ///
    /// # Errors
    /// EINVAL with a filter.
    pub fn filter_strictly(&self) -> Result<(), Errno> {
        if matches!(self.filters(), Filters::Programs(_)) {
            return Err(Errno::EINVAL);
        }
        self.set_filters(Filters::Strict);
        Ok(())
    }

    /// Whether a task may have a filter: one that gives nobody more than they had.
    #[must_use]
    pub fn may_filter(who: &Credentials) -> bool {
        who.no_new_privileges || who.capable_here(capability::SYS_ADMIN)
    }

    /// One more program; with `all` for every thread of the process (`SECCOMP_FILTER_FLAG_TSYNC`). The thread that has other filters than
    /// this one, where that stands in the way.
    ///
    /// # Errors
    /// EINVAL in strict mode; ENOMEM: too many instructions.
    pub fn add_filter(&self, program: Program, all: bool) -> Result<Option<Pid>, Errno> {
        // Threads are made under this lock, too: none is missed.
        let tree = self.tasks.tree();
        let own = self.filters();
        if matches!(own, Filters::Strict) {
            return Err(Errno::EINVAL);
        }
        let counted = |program: &Program| program.length().saturating_add(4);
        let before = own.programs().iter().map(|program| counted(program)).sum::<usize>();
        if before.saturating_add(counted(&program)) > ALL_MAX {
            return Err(Errno::ENOMEM);
        }
        let others = if all { tree.tasks_of(self.group.pid()) } else { Vec::new() };
        let unlike = |task: &&Arc<Self>| {
            let theirs = task.filters();
            !std::ptr::eq(&***task, self) && (matches!(theirs, Filters::Strict) || !theirs.begins(&own))
        };
        if let Some(unlike) = others.iter().find(unlike) {
            return Ok(Some(unlike.pid()));
        }
        let new = Filters::Programs(Arc::new(Programs::with(&own, program)));
        let no_new_privileges = self.credentials().no_new_privileges;
        for task in others.iter().filter(|task| !std::ptr::eq(&***task, self)) {
            task.set_filters(new.clone());
            // Its stub answers numbers in registers until it is told not to. What else it does by itself it does no more when this call is over.
            task.forbid_by_itself();
            task.refresh_answers();
            if no_new_privileges {
                let mut who = lock(&task.credentials);
                *who = Arc::new(Credentials { no_new_privileges: true, ..(**who).clone() });
            }
        }
        self.set_filters(new);
        Ok(None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    fn returns(value: u32) -> Program {
        Program::new(&[Instruction { code: 0x06, yes: 0, no: 0, k: value }]).unwrap()
    }

    fn of(values: &[u32]) -> Filters {
        let all = values.iter().map(|value| Arc::new(returns(*value)));
        Filters::Programs(Arc::new(Programs::new(all.collect())))
    }

    #[test]
    fn the_strictest_program_decides() {
        let regs = Regs::default();
        let judge = |values: &[u32]| of(values).judge(1, &regs);
        assert_eq!(judge(&[action::ALLOW, action::ERRNO | 13]), Verdict::Errno(13));
        assert_eq!(
            judge(&[action::ERRNO | 1, action::ERRNO | 2]),
            Verdict::Errno(2),
            "the newest of the same"
        );
        assert_eq!(judge(&[action::ERRNO | 0xffff]), Verdict::Errno(4095));
        assert_eq!(judge(&[action::TRAP | 7, action::ERRNO]), Verdict::Trap(7));
        assert_eq!(judge(&[action::KILL_THREAD, action::TRAP]), Verdict::KillThread);
        assert_eq!(judge(&[action::KILL_PROCESS, action::KILL_THREAD]), Verdict::KillProcess);
        assert_eq!(judge(&[0x1234_0000]), Verdict::KillProcess, "an action that is not known");
        assert_eq!(judge(&[action::LOG]), Verdict::Allow);
        assert_eq!(judge(&[action::TRACE]), Verdict::Trace(0));
        assert_eq!(judge(&[action::USER_NOTIF]), Verdict::Nobody);
    }

    #[test]
    fn strict_is_four_calls() {
        let judge = |number: i64| Filters::Strict.judge(number.unsigned_abs(), &Regs::default());
        assert_eq!(judge(libc::SYS_write), Verdict::Allow);
        assert_eq!(judge(libc::SYS_exit_group), Verdict::End);
    }

    #[test]
    fn programs_see_number_place_and_arguments() {
        let regs = Regs { rip: 0x1_0000_0002, rdi: 3, ..Regs::default() };
        let words = data(39, &regs);
        assert_eq!(words[..6], [39, 0xc000_003e, 2, 1, 3, 0]);
    }

    #[test]
    fn what_is_always_allowed_is_known_of_all_programs() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        assert!(task.lets_answer());
        // All but `mkdir`, which asks for its argument.
        let load = |k: u32| Instruction { code: 0x20, yes: 0, no: 0, k };
        let ret = |k: u32| Instruction { code: 0x06, yes: 0, no: 0, k };
        let but = |number: i64, rest: &[Instruction]| {
            let number = u32::try_from(number).unwrap();
            let head = [load(0), Instruction { code: 0x15, yes: 1, no: 0, k: number }, ret(action::ALLOW)];
            Program::new(&[&head, rest].concat()).unwrap()
        };
        task.add_filter(
            but(libc::SYS_mkdir, &[load(24), Instruction { code: 0x16, yes: 0, no: 0, k: 0 }]),
            false,
        )
        .unwrap();
        let always = |number: i64| task.filtered.always_allows(number.unsigned_abs());
        assert!(task.is_filtered() && task.lets_answer() && always(libc::SYS_read));
        assert!(!always(libc::SYS_mkdir), "its argument decides");
        assert!(!always(100_000), "beyond what is kept");
        task.add_filter(but(libc::SYS_getppid, &[ret(action::ERRNO | 1)]), false).unwrap();
        assert!(!task.lets_answer() && !always(libc::SYS_getppid) && !always(libc::SYS_mkdir));
        assert!(always(libc::SYS_getpid));
        let judge = |number: i64| task.filters().judge(number.unsigned_abs(), &Regs::default());
        assert_eq!(judge(libc::SYS_getppid), Verdict::Errno(1));
        let other = Task::for_test(&kernel);
        other.set_filters(task.filters());
        assert!(!other.lets_answer());
        other.set_filters(Filters::Strict);
        assert!(!other.filtered.always_allows(libc::SYS_read.unsigned_abs()));
    }

    #[test]
    fn filters_add_up_and_have_a_bound() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        assert_eq!(task.add_filter(returns(action::ALLOW), false), Ok(None));
        assert_eq!((task.filters().count(), task.filters().mode()), (1, 2));
        assert_eq!(task.filter_strictly(), Err(Errno::EINVAL));
        let long = || {
            let ret = Instruction { code: 0x06, yes: 0, no: 0, k: action::ALLOW };
            Program::new(&vec![ret; LENGTH_MAX]).unwrap()
        };
        let mut added = 0;
        while task.add_filter(long(), true).is_ok() {
            added += 1;
        }
        assert_eq!(added, 7);
        let strict = Task::for_test(&kernel);
        assert_eq!(strict.filter_strictly(), Ok(()));
        assert_eq!(strict.add_filter(returns(0), false), Err(Errno::EINVAL));
    }
}
