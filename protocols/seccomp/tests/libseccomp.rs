//! The compiler against the real libseccomp, which is given rules as runc gives them: the same calls are decided the same way.
//!
//! It needs `cc` and libseccomp's headers; where one is missing nothing is tested, and that is said. Where libseccomp itself refuses a profile
//! there is nothing to compare, nor where rules with conditions of one call have different actions: it tries them in an order of its own. Nor where
//! there are several and one of them compares by order: libseccomp 2.5 puts halves of 64 bits of different rules together then, and so finds that
//! `arg1 > 1 && arg0 < 0xffffffff` holds for 0xffffffff and 0xffffffff.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kata_cc_agent_protocol::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall, linux_syscall};
use kata_cc_seccomp::{AUDIT_X86_64, Filter, compile_with};

const CALLS: [(&str, u32); 4] = [("read", 0), ("socket", 41), ("clone", 56), ("openat2", 437)];
/// Its name, its value (`seccomp.h`), and whether it has an errno.
type Action = (&'static str, u32, bool);
const ACTIONS: [Action; 5] = [
    ("SCMP_ACT_ALLOW", 0x7fff_0000, false),
    ("SCMP_ACT_ERRNO", 0x0005_0000, true),
    ("SCMP_ACT_KILL_PROCESS", 0x8000_0000, false),
    ("SCMP_ACT_TRAP", 0x0003_0000, false),
    ("SCMP_ACT_LOG", 0x7ffc_0000, false),
];
/// In the order of `enum scmp_compare`, which begins with 1.
const COMPARISONS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];
const VALUES: [u64; 8] = [0, 1, 2, 3, 1 << 32, 1 << 32 | 1, u64::MAX, 0xffff_ffff];

/// Numbers that are the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % most
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Argument, comparison, its two values.
type Condition = (u32, usize, u64, u64);

/// What a profile says of some calls.
#[derive(Debug, Clone)]
struct Rule {
    calls: Vec<(&'static str, u32)>,
    action: Action,
    errno: Option<u32>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone)]
struct Profile {
    default: Action,
    errno: Option<u32>,
    rules: Vec<Rule>,
}

fn value(action: Action, errno: Option<u32>) -> u32 {
    if action.2 { action.1 | errno.unwrap_or(1) } else { action.1 }
}

fn errno(dice: &mut Dice, action: Action) -> Option<u32> {
    if action.2 { dice.one_of(&[None, Some(1), Some(38)]) } else { None }
}

fn conditions(dice: &mut Dice) -> Vec<Condition> {
    let mut all = Vec::new();
    for _ in 0..dice.below(3) {
        let (index, comparison) = (dice.one_of(&[0, 1, 5]), dice.below(COMPARISONS.len()));
        let (a, b) = (dice.one_of(&VALUES), dice.one_of(&VALUES));
        // Not more than the mask leaves.
        all.push((index, comparison, a, a & b));
    }
    all
}

impl Profile {
    fn any(dice: &mut Dice) -> Self {
        let default = dice.one_of(&ACTIONS[..3]);
        let own = errno(dice, default);
        let conditional = dice.one_of(&ACTIONS);
        let conditional_errno = errno(dice, conditional);
        let mut rules = Vec::new();
        for _ in 0..=dice.below(5) {
            let mut calls = CALLS.to_vec();
            calls.retain(|_| dice.below(2) == 0);
            let conditions = conditions(dice);
            // Now and then the default's own.
            let (action, errno) = match (dice.below(4), conditions.is_empty()) {
                (0, _) => (default, own),
                (_, true) => {
                    let action = dice.one_of(&ACTIONS);
                    (action, errno(dice, action))
                }
                (_, false) => (conditional, conditional_errno),
            };
            rules.push(Rule { calls, action, errno, conditions });
        }
        Self { default, errno: own, rules }
    }

    /// Whether libseccomp can be believed about a call.
    fn is_clear(&self, number: u32) -> bool {
        let default = value(self.default, self.errno);
        let rules = self.rules.iter().filter(|rule| {
            let counts = value(rule.action, rule.errno) != default;
            counts && !rule.conditions.is_empty() && rule.calls.iter().any(|(_, other)| *other == number)
        });
        let by_order = |rule: &Rule| {
            rule.conditions.iter().any(|(_, comparison, ..)| (1..=5).contains(comparison) && *comparison != 3)
        };
        // Conditions on one argument are several rules.
        let alone = |rule: &Rule| rule.conditions.len() == 1;
        let found: Vec<&Rule> = rules.collect();
        !found.iter().any(|rule| by_order(rule)) || matches!(found.as_slice(), [one] if alone(one))
    }

    fn compiled(&self) -> Option<Filter> {
        let mut profile = LinuxSeccomp::new();
        profile.DefaultAction = self.default.0.to_owned();
        for rule in &self.rules {
            let mut call = LinuxSyscall::new();
            call.Names = rule.calls.iter().map(|(name, _)| (*name).to_owned()).collect();
            call.Action = rule.action.0.to_owned();
            call.ErrnoRet = rule.errno.map(linux_syscall::ErrnoRet::Errnoret);
            for (index, comparison, a, b) in &rule.conditions {
                let mut condition = LinuxSeccompArg::new();
                (condition.Index, condition.Value, condition.ValueTwo) = (u64::from(*index), *a, *b);
                condition.Op = COMPARISONS[*comparison].to_owned();
                call.Args.push(condition);
            }
            profile.Syscalls.push(call);
        }
        compile_with(&profile, self.errno).unwrap()
    }

    /// As runc calls libseccomp (`libcontainer/seccomp/seccomp_linux.go`): without rules that have the default's action; conditions on one argument
    /// are rules of their own.
    fn words(&self) -> String {
        let default = value(self.default, self.errno);
        let mut words = format!("{default}\n");
        for rule in &self.rules {
            let action = value(rule.action, rule.errno);
            if action == default {
                continue;
            }
            let all = &rule.conditions;
            let repeated = (1..all.len()).any(|at| all[..at].iter().any(|other| other.0 == all[at].0));
            let groups: Vec<&[Condition]> = if repeated { all.chunks(1).collect() } else { vec![all] };
            for (_, number) in &rule.calls {
                for group in &groups {
                    write!(words, "{action} {number} {}", group.len()).unwrap();
                    for (index, comparison, a, b) in *group {
                        write!(words, " {index} {} {a} {b}", comparison + 1).unwrap();
                    }
                    words.push('\n');
                }
            }
        }
        words
    }
}

/// The program that calls libseccomp; none where it cannot be made.
fn oracle(folder: &Path) -> Option<PathBuf> {
    let program = folder.join("oracle");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/libseccomp.c");
    let made = Command::new("cc").args(["-O1", "-o"]).arg(&program).args([source, "-lseccomp"]).output();
    match made {
        Ok(made) if made.status.success() => Some(program),
        Ok(made) => {
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            eprintln!("not tested: a program with libseccomp cannot be made: {said}");
            None
        }
        Err(error) => {
            eprintln!("not tested: this needs cc: {error}");
            None
        }
    }
}

/// What libseccomp makes of a profile; none where it refuses a rule.
fn asked(oracle: &Path, words: &str) -> Option<Filter> {
    let mut child = Command::new(oracle).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(words.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(3) {
        return None;
    }
    assert!(output.status.success(), "{}: {words}", output.status);
    let program = output.stdout.chunks(8).map(|insn| u64::from_ne_bytes(insn.try_into().unwrap())).collect();
    Some(Filter { program, flags: 0 })
}

#[test]
fn calls_are_decided_as_libseccomp_decides_them() {
    let folder = tempfile::tempdir().unwrap();
    let Some(oracle) = oracle(folder.path()) else { return };
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (mut compared, mut refused) = (0, 0);
    for _ in 0..1500 {
        let profile = Profile::any(&mut dice);
        let words = profile.words();
        let Some(ours) = profile.compiled() else { continue };
        let Some(theirs) = asked(&oracle, &words) else {
            refused += 1;
            continue;
        };
        for (name, number) in CALLS.into_iter().chain([("mount", 165)]) {
            if !profile.is_clear(number) {
                continue;
            }
            for _ in 0..40 {
                let arguments = [(); 6].map(|()| dice.one_of(&VALUES));
                let decided = |filter: &Filter| filter.judge(AUDIT_X86_64, number, arguments);
                assert!(decided(&theirs).is_some());
                assert_eq!(decided(&ours), decided(&theirs), "{name}{arguments:x?} by {profile:x?}\n{words}");
            }
        }
        compared += 1;
    }
    assert!(compared > 1000, "{compared} profiles were compared, {refused} refused by libseccomp");
}
