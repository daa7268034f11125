//! A small assembler for filters of system calls (`man 2 seccomp`, `Documentation/userspace-api/seccomp_filter.rst`).

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter};

/// `AUDIT_ARCH_X86_64` (`include/uapi/linux/audit.h`).
pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

// Offsets in `struct seccomp_data`.
pub(crate) const NUMBER: u32 = 0;
pub(crate) const ARCH: u32 = 4;
pub(crate) const IP_LOW: u32 = 8;
pub(crate) const IP_HIGH: u32 = 12;

const fn argument_low(index: u32) -> u32 {
    16 + 8 * index
}

const fn argument_high(index: u32) -> u32 {
    20 + 8 * index
}

/// What is asked of one argument.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Check {
    /// All 64 bits are this.
    Is(u64),
    /// The low 32 bits are one of these, the high ones 0.
    OneOf(&'static [u32]),
    /// None but these of the low 32 bits, the high ones 0.
    Within(u32),
    /// Not negative as an `int`, the high bits 0: a descriptor and not `AT_FDCWD`; one process and not a group.
    Natural,
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Compares what was loaded with `k` and goes on after so many instructions.
pub(crate) fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | code | BPF_K) as u16, jt, jf, k }
}

/// Loads a word of `struct seccomp_data`.
pub(crate) fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

/// Ends the filter.
pub(crate) fn ret(action: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, action)
}

/// Falls through when the check holds, and ends with `refused` when it does not.
fn check(index: u32, check: &Check, refused: u32, program: &mut Vec<sock_filter>) {
    let high = match check {
        Check::Is(value) => (value >> 32) as u32,
        Check::OneOf(_) | Check::Within(_) | Check::Natural => 0,
    };
    program.extend([load(argument_high(index)), jump(BPF_JEQ, high, 1, 0), ret(refused)]);
    program.push(load(argument_low(index)));
    match check {
        Check::Is(value) => program.push(jump(BPF_JEQ, *value as u32, 1, 0)),
        Check::Within(bits) => program.push(jump(BPF_JSET, !bits, 0, 1)),
        Check::Natural => program.push(jump(BPF_JSET, 1 << 31, 0, 1)),
        Check::OneOf(values) => {
            for (n, value) in values.iter().enumerate() {
                // Over the comparisons that are left and the return.
                let left = values.len() - n;
                program.push(jump(BPF_JEQ, *value, left as u8, 0));
            }
        }
    }
    program.push(ret(refused));
}

/// One call: `admitted` when all checks hold, else `refused`. Other calls fall through.
pub(crate) fn rule(
    number: c_long,
    checks: &[(u32, Check)],
    admitted: u32,
    refused: u32,
    program: &mut Vec<sock_filter>,
) {
    let mut body = Vec::new();
    for (index, wanted) in checks {
        check(*index, wanted, refused, &mut body);
    }
    body.push(ret(admitted));
    program.push(load(NUMBER));
    program.push(jump(BPF_JEQ, number as u32, 0, body.len() as u8));
    program.append(&mut body);
}

/// Runs a filter as the kernel does.
#[cfg(test)]
pub(crate) fn run(program: &[sock_filter], number: i64, ip: u64, arguments: [u64; 6]) -> u32 {
    run_on(AUDIT_ARCH_X86_64, program, number, ip, arguments)
}

/// Runs a filter for a call of this architecture.
#[cfg(test)]
pub(crate) fn run_on(arch: u32, program: &[sock_filter], number: i64, ip: u64, arguments: [u64; 6]) -> u32 {
    use libc::BPF_JGE;
    let mut data = [0_u32; 16];
    data[0] = number as u32;
    data[1] = arch;
    data[2] = ip as u32;
    data[3] = (ip >> 32) as u32;
    for (n, argument) in arguments.iter().enumerate() {
        data[4 + 2 * n] = *argument as u32;
        data[5 + 2 * n] = (argument >> 32) as u32;
    }
    let (mut pc, mut a) = (0, 0);
    loop {
        let one = program[pc];
        pc += 1;
        match u32::from(one.code) {
            code if code == BPF_LD | BPF_W | BPF_ABS => a = data[one.k as usize / 4],
            code if code == BPF_RET | BPF_K => return one.k,
            code => {
                let holds = match code & 0xf0 {
                    BPF_JEQ => a == one.k,
                    BPF_JGE => a >= one.k,
                    BPF_JSET => a & one.k != 0,
                    other => panic!("{other:#x}"),
                };
                pc += usize::from(if holds { one.jt } else { one.jf });
            }
        }
    }
}
