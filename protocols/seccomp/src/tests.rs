//! The compiler against an interpreter of the instructions that it emits.

use proptest::prelude::*;

use super::*;

const ALLOW: u32 = 0x7fff_0000;

fn run(filter: &Filter, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    filter.judge(arch, number, args).unwrap()
}

fn call(names: &[&str], action: &str, errno: Option<u32>, args: &[(u64, &str, u64, u64)]) -> LinuxSyscall {
    let mut s = LinuxSyscall::new();
    s.Names = names.iter().map(|n| (*n).to_owned()).collect();
    s.Action = action.to_owned();
    s.ErrnoRet = errno.map(linux_syscall::ErrnoRet::Errnoret);
    for (index, op, value, two) in args {
        let mut a = LinuxSeccompArg::new();
        (a.Index, a.Value, a.ValueTwo) = (*index, *value, *two);
        a.Op = (*op).to_owned();
        s.Args.push(a);
    }
    s
}

fn profile(default: &str, syscalls: Vec<LinuxSyscall>) -> LinuxSeccomp {
    let mut p = LinuxSeccomp::new();
    p.DefaultAction = default.to_owned();
    p.Syscalls = syscalls;
    p
}

fn number(name: &str) -> u32 {
    Table::x86_64().number(name).unwrap()
}

#[test]
fn each_rule_has_its_own_errno() {
    let p = profile(
        "SCMP_ACT_ERRNO",
        vec![
            call(&["read", "write", "close", "openat", "fstat", "mmap"], "SCMP_ACT_ALLOW", None, &[]),
            call(&["clone3"], "SCMP_ACT_ERRNO", Some(38), &[]),
            call(&["ptrace"], "SCMP_ACT_KILL_PROCESS", None, &[]),
        ],
    );
    let program = compile(&p).unwrap().unwrap();
    let at = |n: &str| run(&program, AUDIT_X86_64, number(n), [0; 6]);
    assert_eq!(at("write"), ALLOW);
    assert_eq!(at("clone3"), RET_ERRNO | 38);
    assert_eq!(at("ptrace"), RET_KILL_PROCESS);
    assert_eq!(at("mount"), RET_ERRNO | EPERM);
    assert_eq!(run(&program, AUDIT_X86_64, 9999, [0; 6]), RET_ERRNO | ENOSYS);
}

/// Rules with the default action do not count; one without conditions decides alone, and the first of several.
#[test]
fn a_rule_without_conditions_decides_alone() {
    let zero = [(0, "SCMP_CMP_EQ", 0, 0)];
    let refused = |args: &[(u64, &str, u64, u64)]| call(&["read"], "SCMP_ACT_ERRNO", Some(5), args);
    let plain = |action: &str| call(&["read"], action, None, &[]);
    let decided = |default: &str, calls: Vec<LinuxSyscall>| {
        let filter = compile(&profile(default, calls)).unwrap().unwrap();
        [0, 1].map(|first| run(&filter, AUDIT_X86_64, number("read"), [first, 0, 0, 0, 0, 0]))
    };
    let errno = "SCMP_ACT_ERRNO";
    assert_eq!(decided(errno, vec![refused(&zero), plain("SCMP_ACT_ALLOW")]), [ALLOW, ALLOW]);
    assert_eq!(decided(errno, vec![plain("SCMP_ACT_ALLOW"), refused(&zero)]), [ALLOW, ALLOW]);
    assert_eq!(decided(errno, vec![plain("SCMP_ACT_ALLOW"), plain("SCMP_ACT_TRAP")]), [ALLOW, ALLOW]);
    let allowed = call(&["read"], "SCMP_ACT_ALLOW", None, &zero);
    assert_eq!(decided("SCMP_ACT_ALLOW", vec![allowed, refused(&[])]), [RET_ERRNO | 5, RET_ERRNO | 5]);
    assert_eq!(decided("SCMP_ACT_ALLOW", vec![refused(&zero)]), [RET_ERRNO | 5, ALLOW]);
}

#[test]
fn the_default_may_have_an_errno() {
    let p = profile("SCMP_ACT_ERRNO", vec![call(&["read"], "SCMP_ACT_ALLOW", None, &[])]);
    let filter = compile_with(&p, Some(38)).unwrap().unwrap();
    assert_eq!(run(&filter, AUDIT_X86_64, number("mount"), [0; 6]), RET_ERRNO | ENOSYS);
    assert_eq!(compile_with(&p, Some(4096)), Err(SeccompError::Errno(4096)));
}

#[test]
fn other_architectures_are_killed_unless_listed() {
    let mut p = profile("SCMP_ACT_ERRNO", vec![call(&["read"], "SCMP_ACT_ALLOW", None, &[])]);
    let program = compile(&p).unwrap().unwrap();
    assert_eq!(run(&program, AUDIT_I386, 3, [0; 6]), RET_KILL_PROCESS);
    assert_eq!(run(&program, AUDIT_X86_64, X32_BIT, [0; 6]), RET_KILL_PROCESS);
    assert_eq!(run(&program, 0xc000_00b7, 63, [0; 6]), RET_KILL_PROCESS);
    p.Architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec();
    let program = compile(&p).unwrap().unwrap();
    assert_eq!(run(&program, AUDIT_I386, 3, [0; 6]), ALLOW);
    assert_eq!(run(&program, AUDIT_I386, 4, [0; 6]), RET_ERRNO | EPERM);
    assert_eq!(run(&program, AUDIT_X86_64, X32_BIT, [0; 6]), ALLOW);
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let args = [(0, "SCMP_CMP_EQ", 0, 0), (0, "SCMP_CMP_EQ", 8, 0), (0, "SCMP_CMP_EQ", u64::MAX, 0)];
    let p = profile("SCMP_ACT_ERRNO", vec![call(&["personality"], "SCMP_ACT_ALLOW", None, &args)]);
    let program = compile(&p).unwrap().unwrap();
    let at = |v: u64| run(&program, AUDIT_X86_64, number("personality"), [v, 0, 0, 0, 0, 0]);
    assert_eq!((at(0), at(8), at(u64::MAX)), (ALLOW, ALLOW, ALLOW));
    assert_eq!(at(7), RET_ERRNO | EPERM);
}

#[test]
fn nonsense_is_refused_by_name() {
    let refuse = |p: &LinuxSeccomp| compile(p).unwrap_err();
    assert_eq!(refuse(&profile("ALLOW", vec![])), SeccompError::Action("ALLOW".to_owned()));
    let notify = profile("SCMP_ACT_ALLOW", vec![call(&["read"], "SCMP_ACT_NOTIFY", None, &[])]);
    assert!(matches!(refuse(&notify), SeccompError::Action(_)));
    let index = call(&["read"], "SCMP_ACT_ERRNO", None, &[(6, "SCMP_CMP_EQ", 0, 0)]);
    assert_eq!(refuse(&profile("SCMP_ACT_ALLOW", vec![index])), SeccompError::Index(6));
    let errno = call(&["read"], "SCMP_ACT_ERRNO", Some(5000), &[]);
    assert_eq!(refuse(&profile("SCMP_ACT_ALLOW", vec![errno])), SeccompError::Errno(5000));
    let mut arch = profile("SCMP_ACT_ALLOW", vec![]);
    arch.Architectures.push("SCMP_ARCH_AARCH64".to_owned());
    assert!(matches!(refuse(&arch), SeccompError::Architecture(_)));
}

#[test]
fn unknown_names_are_passed_over_and_all_allowed_needs_no_filter() {
    let p = profile("SCMP_ACT_ERRNO", vec![call(&["no_such_call", "read"], "SCMP_ACT_ALLOW", None, &[])]);
    compile(&p).unwrap().unwrap();
    assert_eq!(compile(&profile("SCMP_ACT_ALLOW", vec![])).unwrap(), None);
}

fn holds(op: &str, seen: u64, value: u64, two: u64) -> bool {
    match op {
        "SCMP_CMP_NE" => seen != value,
        "SCMP_CMP_LT" => seen < value,
        "SCMP_CMP_LE" => seen <= value,
        "SCMP_CMP_EQ" => seen == value,
        "SCMP_CMP_GE" => seen >= value,
        "SCMP_CMP_GT" => seen > value,
        _ => seen & value == two,
    }
}

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..4_u64,
        (0..4_u64).prop_map(|v| v << 32),
        (0..4_u64).prop_map(|v| v << 32 | 1)
    ]
}

proptest! {
    #[test]
    fn comparisons_are_64_bits_wide(
        op in prop::sample::select(vec![
            "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ",
        ]),
        value in numbers(), two in numbers(), seen in numbers(), other in numbers(),
    ) {
        let args = [(1, op, value, two), (2, "SCMP_CMP_EQ", 5, 0)];
        let p = profile("SCMP_ACT_ERRNO", vec![call(&["read"], "SCMP_ACT_ALLOW", None, &args)]);
        let program = compile(&p).unwrap().unwrap();
        let got = run(&program, AUDIT_X86_64, 0, [other, seen, 5, other, 0, 0]);
        prop_assert_eq!(got == ALLOW, holds(op, seen, value, two));
        let got = run(&program, AUDIT_X86_64, 0, [other, seen, 6, other, 0, 0]);
        prop_assert_eq!(got, RET_ERRNO | EPERM);
    }
}
