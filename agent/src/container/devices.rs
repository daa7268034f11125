//! Device access: the rules of an OCI configuration as a `BPF_PROG_TYPE_CGROUP_DEVICE` program.
//!
//! Source: OCI runtime-spec config-linux "Allowed Device list" and `linux/bpf.h` (`struct bpf_cgroup_dev_ctx`:
//! `access_type` = access << 16 | device type, `major`, `minor`). Rules are tried from the last to the first, the
//! first that matches decides, none means denied; the standard devices of a container are always allowed. An
//! access is matched by an "allow" rule only when the rule covers all of it, by a "deny" rule when it covers any.
//!
//! The host's rules are not all: Kata's shims send none at all, so every container gets the standard list.

use std::os::fd::OwnedFd;

use kata_cc_agent_protocol::oci::{LinuxDevice, LinuxDeviceCgroup};

/// `BPF_DEVCG_ACC_*`.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
/// `BPF_DEVCG_DEV_*`.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;
/// Rules beyond this many are refused: a program has room for 4096 instructions everywhere.
const MAX_RULES: usize = 256;

/// One rule; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const fn allow(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

const ALL: u32 = MKNOD | READ | WRITE;
/// What every container may use (runc's list).
const STANDARD: [Rule; 11] = [
    allow(CHAR, None, None, MKNOD),
    allow(BLOCK, None, None, MKNOD),
    allow(CHAR, Some(1), Some(3), ALL),
    allow(CHAR, Some(1), Some(5), ALL),
    allow(CHAR, Some(1), Some(7), ALL),
    allow(CHAR, Some(1), Some(8), ALL),
    allow(CHAR, Some(1), Some(9), ALL),
    allow(CHAR, Some(5), Some(0), ALL),
    allow(CHAR, Some(5), Some(1), ALL),
    allow(CHAR, Some(5), Some(2), ALL),
    allow(CHAR, Some(136), None, ALL),
];

/// Attaches the program for these rules to `cgroup`; gives what must be kept to replace it.
pub(crate) fn attach(
    cgroup: &std::path::Path,
    rules: &[LinuxDeviceCgroup],
    nodes: &[LinuxDevice],
) -> std::io::Result<OwnedFd> {
    let folder = std::fs::File::open(cgroup)?;
    let program = crate::sys::load_device_program(&assemble(&rules_of(rules, nodes)?))?;
    crate::sys::attach_device_program(&folder, &program, None)?;
    Ok(program)
}

fn rules_of(rules: &[LinuxDeviceCgroup], nodes: &[LinuxDevice]) -> std::io::Result<Vec<Rule>> {
    if rules.len() + nodes.len() > MAX_RULES {
        return Err(std::io::Error::other(format!(
            "{} device rules, at most {MAX_RULES} are taken",
            rules.len() + nodes.len()
        )));
    }
    let number = |v: i64| u32::try_from(v).ok();
    let mut all = Vec::new();
    for rule in rules {
        let kind = match rule.Type.as_str() {
            "b" => Some(BLOCK),
            "c" => Some(CHAR),
            _ => None,
        };
        let access = rule.Access.chars().fold(0, |all, c| {
            all | match c {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => 0,
            }
        });
        // The wire cannot tell "not set" from 0: "any" is -1, and both 0 without a type mean any as well.
        let any = kind.is_none() && rule.Major == 0 && rule.Minor == 0;
        all.push(Rule {
            allow: rule.Allow,
            kind,
            major: number(rule.Major).filter(|_| !any),
            minor: number(rule.Minor).filter(|_| !any),
            access: if access == 0 { ALL } else { access },
        });
    }
    // A node that the configuration makes is of no use without access to it.
    for node in nodes {
        let kind = match node.Type.as_str() {
            "b" => BLOCK,
            "c" | "u" => CHAR,
            _ => continue,
        };
        all.push(allow(kind, number(node.Major), number(node.Minor), ALL));
    }
    all.extend(STANDARD);
    Ok(all)
}

/// One eBPF instruction (`struct bpf_insn`).
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    u64::from(code)
        | u64::from(dst | src << 4) << 8
        | u64::from(off.cast_unsigned()) << 16
        | u64::from(imm.cast_unsigned()) << 32
}

/// Program for the rules, later ones first. Registers: 2 device type, 3 access, 4 major, 5 minor.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    const LDX_W: u8 = 0x61;
    const AND32_K: u8 = 0x54;
    const RSH32_K: u8 = 0x74;
    const MOV32_X: u8 = 0xbc;
    const MOV64_K: u8 = 0xb7;
    const JNE_K: u8 = 0x55;
    const JEQ_K: u8 = 0x15;
    const EXIT: u8 = 0x95;
    let mut code = vec![
        insn(LDX_W, 2, 1, 0, 0),
        insn(AND32_K, 2, 0, 0, 0xffff),
        insn(LDX_W, 3, 1, 0, 0),
        insn(RSH32_K, 3, 0, 0, 16),
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Conditions jump over what is left of the block, so it is built from its end.
        let mut block = vec![insn(EXIT, 0, 0, 0, 0), insn(MOV64_K, 0, 0, 0, rule.allow.into())];
        let skip = |block: &Vec<u64>| i16::try_from(block.len()).unwrap_or(i16::MAX);
        for (register, value) in [(5, rule.minor), (4, rule.major), (2, rule.kind)] {
            if let Some(value) = value {
                block.push(insn(JNE_K, register, 0, skip(&block), value.cast_signed()));
            }
        }
        if rule.access != ALL {
            let (mask, jump) = match rule.allow {
                // Anything outside of what is allowed: this rule does not match.
                true => (!rule.access & ALL, JNE_K),
                false => (rule.access, JEQ_K),
            };
            block.push(insn(jump, 1, 0, skip(&block), 0));
            block.push(insn(AND32_K, 1, 0, 0, mask.cast_signed()));
            block.push(insn(MOV32_X, 1, 3, 0, 0));
        }
        // A rule for everything decides always: the verifier refuses code that cannot be reached behind it.
        let decides = block.len() == 2;
        code.extend(block.into_iter().rev());
        if decides {
            return code;
        }
    }
    code.push(insn(MOV64_K, 0, 0, 0, 0));
    code.push(insn(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few instructions that [`assemble`] emits.
    fn run(code: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let mut r = [0_u64; 11];
        let mut at = 0;
        loop {
            let i = code[at];
            at += 1;
            let (dst, src) = ((i >> 8 & 15) as usize, (i >> 12 & 15) as usize);
            let (off, imm) = ((i >> 16) as u16 as usize, (i >> 32) as u32);
            match i as u8 {
                0x61 => {
                    r[dst] = u64::from(match off {
                        0 => access << 16 | kind,
                        4 => major,
                        _ => minor,
                    });
                }
                0x54 => r[dst] &= u64::from(imm),
                0x74 => r[dst] >>= imm,
                0xbc => r[dst] = r[src],
                0xb7 => r[dst] = u64::from(imm),
                0x55 if r[dst] != u64::from(imm) => at += off,
                0x15 if r[dst] == u64::from(imm) => at += off,
                0x55 | 0x15 => {}
                0x95 => return r[0] != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
        let mut r = LinuxDeviceCgroup::new();
        (r.Allow, r.Major, r.Minor) = (allow, major, minor);
        (r.Type, r.Access) = (kind.to_owned(), access.to_owned());
        r
    }

    #[test]
    fn without_rules_only_standard_devices_are_allowed() {
        let code = assemble(&rules_of(&[], &[]).unwrap());
        assert!(run(&code, CHAR, READ | WRITE, 1, 3));
        assert!(run(&code, CHAR, READ | WRITE, 136, 7));
        assert!(run(&code, BLOCK, MKNOD, 8, 0));
        assert!(!run(&code, BLOCK, READ, 254, 0));
        assert!(!run(&code, CHAR, READ, 1, 1));
    }

    #[test]
    fn deny_all_then_allow_one() {
        let rules = [rule(false, "a", -1, -1, "rwm"), rule(true, "c", 10, 200, "rw")];
        let code = assemble(&rules_of(&rules, &[]).unwrap());
        assert!(run(&code, CHAR, READ, 10, 200));
        assert!(!run(&code, CHAR, READ, 10, 201));
        assert!(!run(&code, BLOCK, READ, 10, 200));
    }

    #[test]
    fn an_allow_rule_must_cover_the_whole_access() {
        let rules = [rule(true, "b", 8, 0, "r")];
        let code = assemble(&rules_of(&rules, &[]).unwrap());
        assert!(run(&code, BLOCK, READ, 8, 0));
        assert!(!run(&code, BLOCK, READ | WRITE, 8, 0));
    }

    #[test]
    fn nothing_follows_a_rule_for_everything() {
        let rules =
            [rule(true, "c", 1, 1, "r"), rule(false, "a", -1, -1, "rwm"), rule(true, "c", 10, 200, "rw")];
        let all = assemble(&rules_of(&rules, &[]).unwrap());
        let kept = assemble(&rules_of(&rules[1..], &[]).unwrap());
        assert_eq!(all, kept, "the verifier refuses unreachable instructions");
    }

    #[test]
    fn a_privileged_container_may_use_all() {
        let rules = [rule(true, "a", -1, -1, "rwm")];
        let code = assemble(&rules_of(&rules, &[]).unwrap());
        assert!(run(&code, BLOCK, READ | WRITE, 254, 3));
    }

    #[test]
    fn later_denials_win() {
        let rules = [rule(true, "c", 10, 200, "rwm"), rule(false, "c", 10, 200, "w")];
        let code = assemble(&rules_of(&rules, &[]).unwrap());
        assert!(run(&code, CHAR, READ, 10, 200));
        assert!(!run(&code, CHAR, READ | WRITE, 10, 200));
    }

    #[test]
    fn too_many_rules_are_refused() {
        let rules = vec![rule(true, "c", 1, 1, "r"); MAX_RULES + 1];
        assert!(rules_of(&rules, &[]).is_err());
    }
}
