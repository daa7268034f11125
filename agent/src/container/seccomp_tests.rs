//! The compiler against an interpreter of the instructions it emits, and against the kernel in a child process.

use proptest::prelude::*;

use super::*;

const ALLOW: u32 = 0x7fff_0000;

/// Classic BPF over a `struct seccomp_data`.
fn run(program: &[u64], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0_u64.to_ne_bytes());
    for a in args {
        data.extend(a.to_ne_bytes());
    }
    let (mut a, mut at) = (0_u32, 0_usize);
    loop {
        let i = program[at].to_ne_bytes();
        let code = u16::from_ne_bytes([i[0], i[1]]);
        let (jt, jf) = (usize::from(i[2]), usize::from(i[3]));
        let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
        at += 1;
        let branch = |yes: bool| if yes { jt } else { jf };
        match code {
            LD_ABS => {
                let from = k as usize;
                a = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
            }
            AND_K => a &= k,
            JA => at += k as usize,
            JEQ => at += branch(a == k),
            JGT => at += branch(a > k),
            JGE => at += branch(a >= k),
            RET => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
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
    let program = compile(&p).unwrap().unwrap().program;
    let at = |n: &str| run(&program, AUDIT_X86_64, number(n), [0; 6]);
    assert_eq!(at("write"), ALLOW);
    assert_eq!(at("clone3"), RET_ERRNO | 38);
    assert_eq!(at("ptrace"), RET_KILL_PROCESS);
    assert_eq!(at("mount"), RET_ERRNO | EPERM);
    assert_eq!(run(&program, AUDIT_X86_64, 9999, [0; 6]), RET_ERRNO | ENOSYS);
}

#[test]
fn other_architectures_are_killed_unless_listed() {
    let mut p = profile("SCMP_ACT_ERRNO", vec![call(&["read"], "SCMP_ACT_ALLOW", None, &[])]);
    let program = compile(&p).unwrap().unwrap().program;
    assert_eq!(run(&program, AUDIT_I386, 3, [0; 6]), RET_KILL_PROCESS);
    assert_eq!(run(&program, AUDIT_X86_64, X32_BIT, [0; 6]), RET_KILL_PROCESS);
    assert_eq!(run(&program, 0xc000_00b7, 63, [0; 6]), RET_KILL_PROCESS);
    p.Architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec();
    let program = compile(&p).unwrap().unwrap().program;
    assert_eq!(run(&program, AUDIT_I386, 3, [0; 6]), ALLOW);
    assert_eq!(run(&program, AUDIT_I386, 4, [0; 6]), RET_ERRNO | EPERM);
    assert_eq!(run(&program, AUDIT_X86_64, X32_BIT, [0; 6]), ALLOW);
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let args = [(0, "SCMP_CMP_EQ", 0, 0), (0, "SCMP_CMP_EQ", 8, 0), (0, "SCMP_CMP_EQ", u64::MAX, 0)];
    let p = profile("SCMP_ACT_ERRNO", vec![call(&["personality"], "SCMP_ACT_ALLOW", None, &args)]);
    let program = compile(&p).unwrap().unwrap().program;
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

#[test]
fn the_sandboxes_channels_are_shut_to_containers_and_nothing_else_is() {
    let guard = channels_shut().program;
    let run = |name, args| run(&guard, AUDIT_X86_64, number(name), args);
    let vsock = libc::AF_VSOCK.unsigned_abs().into();
    let no_family = RET_ERRNO | 97;
    assert_eq!(run("socket", [vsock, 1, 0, 0, 0, 0]), no_family);
    // The kernel takes an int: what stands in the upper half does not help.
    assert_eq!(run("socket", [vsock | 1 << 32, 1, 0, 0, 0, 0]), no_family);
    for family in (0..64).filter(|family| *family != vsock) {
        assert_eq!(run("socket", [family, 1, 0, 0, 0, 0]), ALLOW, "{family}");
    }
    assert_eq!(run("io_uring_setup", [8, 0, 0, 0, 0, 0]), RET_ERRNO | ENOSYS);
    for other in ["connect", "socketpair", "openat", "seccomp", "execve"] {
        assert_eq!(run(other, [vsock; 6]), ALLOW, "{other}");
    }
}

#[test]
fn the_kernel_runs_it() {
    let p = profile(
        "SCMP_ACT_ALLOW",
        vec![
            call(&["getppid"], "SCMP_ACT_ERRNO", Some(99), &[]),
            call(&["kill"], "SCMP_ACT_ERRNO", Some(77), &[(1, "SCMP_CMP_EQ", 12345, 0)]),
        ],
    );
    let filter = compile(&p).unwrap().unwrap();
    // A thread of its own: the filter stays with it.
    let seen = std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        crate::sys::install_seccomp(&filter.program, filter.flags).unwrap();
        // SAFETY: neither call touches memory.
        unsafe {
            let a = (libc::syscall(libc::SYS_getppid), *libc::__errno_location());
            let b = (libc::syscall(libc::SYS_kill, 0, 12345), *libc::__errno_location());
            let c = libc::syscall(libc::SYS_kill, std::process::id(), 0);
            (a, b, c)
        }
    });
    assert_eq!(seen.join().unwrap(), ((-1, 99), (-1, 77), 0));
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
        let program = compile(&p).unwrap().unwrap().program;
        let got = run(&program, AUDIT_X86_64, 0, [other, seen, 5, other, 0, 0]);
        prop_assert_eq!(got == ALLOW, holds(op, seen, value, two));
        let got = run(&program, AUDIT_X86_64, 0, [other, seen, 6, other, 0, 0]);
        prop_assert_eq!(got, RET_ERRNO | EPERM);
    }
}
