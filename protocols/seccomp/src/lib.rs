//! An OCI seccomp profile → a classic BPF program.
//!
//! Source: OCI runtime-spec config-linux "Seccomp", seccomp(2), `linux/seccomp.h`, `linux/audit.h`. Own compiler and
//! not seccompiler: a profile has several actions and an errno of its own for each rule (that crate knows one
//! action for all matches), and several architectures.
//!
//! Meaning, as runc and libseccomp have it: rules whose action is the default do not count. The first rule of a call that has no
//! conditions decides it alone, whatever stands before or after it. Else the first rule whose conditions all hold decides, else the default
//! action. (libseccomp has an order of its own for rules with conditions whose actions differ, by argument and value, and refuses those
//! that differ in nothing else: where two such rules hold for one call, it may decide otherwise.) Several conditions on one argument are
//! alternatives (as in runc). Names that this kernel's table does not have are passed over. When the default is an errno, calls newer than the table answer
//! ENOSYS, so that C libraries fall back to older calls (as in runc).
//!
//! Layout: architecture, then for each a binary search for the number, then the rules of that call.

mod syscalls;

use std::collections::BTreeMap;

use kata_cc_agent_protocol::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall, linux_syscall};
use thiserror::Error;

use syscalls::Table;

/// `AUDIT_ARCH_X86_64`.
pub const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;
/// Numbers of the x32 ABI have this bit.
const X32_BIT: u32 = 0x4000_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;
/// The kernel's limit for a program.
const MAX_PROGRAM: usize = 4096;
/// Calls below which a linear search is used.
const LEAF: usize = 4;

const LD_ABS: u16 = 0x20;
const AND_K: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Why a profile is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SeccompError {
    /// An action that does not exist, or needs a listener.
    #[error("action {0:?} is not supported")]
    Action(String),
    /// An architecture that this machine does not run.
    #[error("architecture {0:?} is not supported here: x86_64, x86 and x32 are")]
    Architecture(String),
    /// A comparison that does not exist.
    #[error("comparison {0:?} does not exist")]
    Operator(String),
    /// A call has six arguments.
    #[error("argument index {0} is beyond the six arguments of a system call")]
    Index(u64),
    /// A flag that does not exist.
    #[error("flag {0:?} is not supported")]
    Flag(String),
    /// An errno beyond the kernel's largest.
    #[error("errno {0} is beyond 4095")]
    Errno(u32),
    /// The program does not fit into the kernel.
    #[error("the program has {0} instructions, the kernel takes {MAX_PROGRAM}")]
    TooLong(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

const fn op(code: u16, k: u32) -> Insn {
    Insn { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code, jt, jf, k }
}

impl Filter {
    /// What the kernel would make of a call: for tests of profiles. `None` where an instruction is none that this compiler writes.
    #[must_use]
    pub fn judge(&self, architecture: u32, number: u32, arguments: [u64; 6]) -> Option<u32> {
        let halves = |value: u64| [(value & 0xffff_ffff) as u32, (value >> 32) as u32];
        let mut data = vec![number, architecture, 0, 0];
        data.extend(arguments.into_iter().flat_map(halves));
        let (mut a, mut at) = (0_u32, 0_usize);
        loop {
            let Insn { code, jt, jf, k } = Insn::unpack(*self.program.get(at)?);
            at += 1;
            let branch = |yes: bool| usize::from(if yes { jt } else { jf });
            match code {
                LD_ABS => a = *data.get(k as usize / 4)?,
                AND_K => a &= k,
                JA => at += k as usize,
                JEQ => at += branch(a == k),
                JGT => at += branch(a > k),
                JGE => at += branch(a >= k),
                RET => return Some(k),
                _ => return None,
            }
        }
    }
}

impl Insn {
    fn unpack(packed: u64) -> Self {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = packed.to_ne_bytes();
        Self { code: u16::from_ne_bytes([c0, c1]), jt, jf, k: u32::from_ne_bytes([k0, k1, k2, k3]) }
    }

    fn pack(self) -> u64 {
        let [c0, c1] = self.code.to_ne_bytes();
        let [k0, k1, k2, k3] = self.k.to_ne_bytes();
        u64::from_ne_bytes([c0, c1, self.jt, self.jf, k0, k1, k2, k3])
    }
}

/// One alternative of a call: all conditions hold → this return value.
#[derive(Debug, Clone)]
struct Rule {
    conditions: Vec<Condition>,
    action: u32,
}

#[derive(Debug, Clone, Copy)]
struct Condition {
    index: u32,
    op: Op,
    value: u64,
    two: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    Masked,
}

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Instructions in the layout of `struct sock_filter`.
    pub program: Vec<u64>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// Compiles a profile; `None` when it allows everything.
///
/// # Errors
/// [`SeccompError`]: what the profile asks for that cannot be done.
pub fn compile(profile: &LinuxSeccomp) -> Result<Option<Filter>, SeccompError> {
    compile_with(profile, None)
}

/// The same with the errno of a default action `SCMP_ACT_ERRNO` (`defaultErrnoRet`, which the agent API has no field for).
///
/// # Errors
/// As [`compile`].
pub fn compile_with(
    profile: &LinuxSeccomp,
    default_errno: Option<u32>,
) -> Result<Option<Filter>, SeccompError> {
    let default = action(&profile.DefaultAction, default_errno)?;
    let (i386, x32) = architectures(profile)?;
    let flags = flags(profile)?;
    if profile.Syscalls.is_empty() && profile.DefaultAction == "SCMP_ACT_ALLOW" {
        return Ok(None);
    }
    let table = Table::x86_64();
    let native = calls(profile, default, &table)?;
    let mut body = Vec::new();
    if !x32 {
        // Not a call of x32: what a tracer leaves of a call that it has skipped. The kernel answers it itself.
        body.push(jump(JEQ, u32::MAX, 0, 1));
        body.push(op(RET, default));
        body.push(jump(JGE, X32_BIT, 0, 1));
        body.push(op(RET, RET_KILL_PROCESS));
    } else {
        body.push(op(AND_K, !X32_BIT));
    }
    body.extend(newer(default, &table));
    search(&native.into_iter().collect::<Vec<_>>(), default, &mut body);
    let mut code = vec![op(LD_ABS, 4)];
    section(&mut code, AUDIT_X86_64, body);
    if i386 {
        let table = Table::i386();
        let mut body: Vec<Insn> = newer(default, &table);
        search(&calls(profile, default, &table)?.into_iter().collect::<Vec<_>>(), default, &mut body);
        section(&mut code, AUDIT_I386, body);
    }
    code.push(op(RET, RET_KILL_PROCESS));
    if code.len() > MAX_PROGRAM {
        return Err(SeccompError::TooLong(code.len()));
    }
    Ok(Some(Filter { program: code.into_iter().map(Insn::pack).collect(), flags }))
}

/// `body` for one architecture: entered with the architecture in the accumulator, which is there again after it.
fn section(code: &mut Vec<Insn>, architecture: u32, body: Vec<Insn>) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    code.push(jump(JEQ, architecture, 1, 0));
    code.push(op(JA, length + 1));
    code.push(op(LD_ABS, 0));
    code.extend(body);
}

fn newer(default: u32, table: &Table) -> Vec<Insn> {
    if default & 0xffff_0000 != RET_ERRNO {
        return Vec::new();
    }
    vec![jump(JGT, table.last, 0, 1), op(RET, RET_ERRNO | ENOSYS)]
}

fn architectures(profile: &LinuxSeccomp) -> Result<(bool, bool), SeccompError> {
    let (mut i386, mut x32) = (false, false);
    for name in &profile.Architectures {
        match name.as_str() {
            "SCMP_ARCH_X86_64" => {}
            "SCMP_ARCH_X86" => i386 = true,
            "SCMP_ARCH_X32" => x32 = true,
            other => return Err(SeccompError::Architecture(other.to_owned())),
        }
    }
    Ok((i386, x32))
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    profile.Flags.iter().try_fold(0, |all, name| {
        Ok(all
            | match name.as_str() {
                // There is one thread when the filter is loaded: nothing to synchronise.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => 2,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 4,
                other => return Err(SeccompError::Flag(other.to_owned())),
            })
    })
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let value = errno.unwrap_or(EPERM);
    if value > 4095 {
        return Err(SeccompError::Errno(value));
    }
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => RET_ERRNO | value,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | value,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        other => return Err(SeccompError::Action(other.to_owned())),
    })
}

fn calls(
    profile: &LinuxSeccomp,
    default: u32,
    table: &Table,
) -> Result<BTreeMap<u32, Vec<Rule>>, SeccompError> {
    let mut all: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for syscall in &profile.Syscalls {
        let rules = alternatives(syscall)?;
        for number in syscall.Names.iter().filter_map(|n| table.number(n)) {
            for rule in rules.iter().filter(|rule| rule.action != default) {
                add(all.entry(number).or_default(), rule);
            }
        }
    }
    Ok(all)
}

/// One without conditions takes the place of all (`db_rule_add` in libseccomp's `src/db.c`).
fn add(known: &mut Vec<Rule>, rule: &Rule) {
    if known.iter().any(|known| known.conditions.is_empty()) {
        return;
    }
    if rule.conditions.is_empty() {
        known.clear();
    }
    known.push(rule.clone());
}

fn alternatives(syscall: &LinuxSyscall) -> Result<Vec<Rule>, SeccompError> {
    let errno = match &syscall.ErrnoRet {
        Some(linux_syscall::ErrnoRet::Errnoret(e)) => Some(*e),
        _ => None,
    };
    let action = action(&syscall.Action, errno)?;
    let conditions: Vec<Condition> = syscall.Args.iter().map(condition).collect::<Result<_, _>>()?;
    let repeated =
        conditions.iter().enumerate().any(|(n, c)| conditions.iter().take(n).any(|d| d.index == c.index));
    // A mask of nothing holds always: a rule that has no other condition has none.
    let rule = |mut conditions: Vec<Condition>| {
        conditions.retain(|c| !(c.op == Op::Masked && c.value == 0 && c.two == 0));
        Rule { conditions, action }
    };
    if repeated {
        return Ok(conditions.into_iter().map(|c| rule(vec![c])).collect());
    }
    Ok(vec![rule(conditions)])
}

fn condition(arg: &LinuxSeccompArg) -> Result<Condition, SeccompError> {
    let op = match arg.Op.as_str() {
        "SCMP_CMP_NE" => Op::Ne,
        "SCMP_CMP_LT" => Op::Lt,
        "SCMP_CMP_LE" => Op::Le,
        "SCMP_CMP_EQ" => Op::Eq,
        "SCMP_CMP_GE" => Op::Ge,
        "SCMP_CMP_GT" => Op::Gt,
        "SCMP_CMP_MASKED_EQ" => Op::Masked,
        other => return Err(SeccompError::Operator(other.to_owned())),
    };
    let index = u32::try_from(arg.Index).ok().filter(|i| *i < 6);
    Ok(Condition {
        index: index.ok_or(SeccompError::Index(arg.Index))?,
        op,
        value: arg.Value,
        two: arg.ValueTwo,
    })
}

/// Search for the number in the accumulator; every path ends with a return.
fn search(calls: &[(u32, Vec<Rule>)], default: u32, code: &mut Vec<Insn>) {
    if calls.len() <= LEAF {
        for (number, rules) in calls {
            let body = rules_of(rules, default);
            code.push(jump(JEQ, *number, 1, 0));
            code.push(op(JA, u32::try_from(body.len()).unwrap_or(u32::MAX)));
            code.extend(body);
        }
        code.push(op(RET, default));
        return;
    }
    let (low, high) = calls.split_at(calls.len() / 2);
    let pivot = high.first().map_or(0, |c| c.0);
    let mut left = Vec::new();
    search(low, default, &mut left);
    code.push(jump(JGE, pivot, 0, 1));
    code.push(op(JA, u32::try_from(left.len()).unwrap_or(u32::MAX)));
    code.extend(left);
    search(high, default, code);
}

fn rules_of(rules: &[Rule], default: u32) -> Vec<Insn> {
    let mut code = Vec::new();
    for rule in rules {
        let mut checks: Vec<Check> = rule.conditions.iter().flat_map(|c| check(*c)).collect();
        let length = checks.len();
        // Past the last check comes the return; a failed check goes past that.
        for (at, c) in checks.iter_mut().enumerate() {
            let fail = u8::try_from(length - at).unwrap_or(u8::MAX);
            for target in [(&mut c.insn.jt, c.true_fails), (&mut c.insn.jf, c.false_fails)] {
                if target.1 {
                    *target.0 = fail;
                }
            }
        }
        code.extend(checks.into_iter().map(|c| c.insn));
        code.push(op(RET, rule.action));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(op(RET, default));
    code
}

/// An instruction of which one or the other outcome may mean "condition does not hold".
struct Check {
    insn: Insn,
    true_fails: bool,
    false_fails: bool,
}

fn check(c: Condition) -> Vec<Check> {
    let plain = |insn| Check { insn, true_fails: false, false_fails: false };
    let or_fail = |insn| Check { insn, true_fails: false, false_fails: true };
    let and_fail = |insn| Check { insn, true_fails: true, false_fails: false };
    let low = op(LD_ABS, 16 + 8 * c.index);
    let high = op(LD_ABS, 20 + 8 * c.index);
    let halves = |v: u64| ((v >> 32) as u32, (v & 0xffff_ffff) as u32);
    let (value_high, value_low) = halves(c.value);
    match c.op {
        Op::Eq => vec![
            plain(high),
            or_fail(jump(JEQ, value_high, 0, 0)),
            plain(low),
            or_fail(jump(JEQ, value_low, 0, 0)),
        ],
        Op::Ne => vec![
            plain(high),
            plain(jump(JEQ, value_high, 0, 2)),
            plain(low),
            and_fail(jump(JEQ, value_low, 0, 0)),
        ],
        Op::Ge | Op::Gt => {
            let last = if c.op == Op::Ge { JGE } else { JGT };
            vec![
                plain(high),
                plain(jump(JGT, value_high, 3, 0)),
                or_fail(jump(JEQ, value_high, 0, 0)),
                plain(low),
                or_fail(jump(last, value_low, 0, 0)),
            ]
        }
        Op::Lt | Op::Le => {
            let last = if c.op == Op::Lt { JGE } else { JGT };
            vec![
                plain(high),
                and_fail(jump(JGT, value_high, 0, 0)),
                plain(jump(JEQ, value_high, 0, 2)),
                plain(low),
                and_fail(jump(last, value_low, 0, 0)),
            ]
        }
        Op::Masked => {
            let (want_high, want_low) = halves(c.two);
            vec![
                plain(high),
                plain(op(AND_K, value_high)),
                or_fail(jump(JEQ, want_high, 0, 0)),
                plain(low),
                plain(op(AND_K, value_low)),
                or_fail(jump(JEQ, want_low, 0, 0)),
            ]
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
