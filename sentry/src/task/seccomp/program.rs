//! Programs that judge calls: classic BPF (`Documentation/networking/filter.rst`), as far as `seccomp` lets it be (`seccomp_check_filter` in
//! `kernel/seccomp.c`, `bpf_check_classic` in `net/core/filter.c`).

use crate::error::Errno;

/// Instructions of a program (`BPF_MAXINSNS`).
pub const LENGTH_MAX: usize = 4096;
/// Bytes of `struct seccomp_data`.
pub const DATA: usize = 64;
/// Words of memory that a program has (`BPF_MEMWORDS`).
const WORDS: usize = 16;

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How far it jumps when its question is answered by yes.
    pub yes: u8,
    /// And by no.
    pub no: u8,
    /// Its number.
    pub k: u32,
}

impl Instruction {
    /// Out of the eight bytes that a program wrote.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [a, b, yes, no, k0, k1, k2, k3] = bytes;
        Self { code: u16::from_le_bytes([a, b]), yes, no, k: u32::from_le_bytes([k0, k1, k2, k3]) }
    }
}

/// Where a second operand comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operand {
    Number(u32),
    X,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    And,
    Or,
    Xor,
    Left,
    Right,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Equal,
    Greater,
    AtLeast,
    AnyBit,
}

/// An instruction that is known to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A word of the data, by its index.
    LoadData(usize),
    LoadNumber(u32),
    LoadWord(usize),
    LoadNumberX(u32),
    LoadWordX(usize),
    Store(usize),
    StoreX(usize),
    Calculate(Arithmetic, Operand),
    Negate,
    ToX,
    FromX,
    Jump(usize),
    Branch(Question, Operand, usize, usize),
    Return(u32),
    ReturnA,
}

/// A program that was looked through.
#[derive(Debug, PartialEq, Eq)]
pub struct Program(Vec<Step>);

fn step(instruction: Instruction, rest: usize) -> Result<Step, Errno> {
    let k = instruction.k;
    let operand = if instruction.code & 0x08 != 0 { Operand::X } else { Operand::Number(k) };
    let word = || usize::try_from(k).ok().filter(|word| *word < WORDS).ok_or(Errno::EINVAL);
    // `rest` instructions come after this one.
    let within = |distance: usize| if distance < rest { Ok(distance) } else { Err(Errno::EINVAL) };
    let calculate = |what: Arithmetic| Ok(Step::Calculate(what, operand));
    let shift = |what: Arithmetic| match operand {
        Operand::Number(by) if by >= 32 => Err(Errno::EINVAL),
        _ => Ok(Step::Calculate(what, operand)),
    };
    let branch = |question: Question| {
        let (yes, no) = (within(instruction.yes.into())?, within(instruction.no.into())?);
        Ok(Step::Branch(question, operand, yes, no))
    };
    let length = DATA as u32;
    match instruction.code {
        // BPF_LD | BPF_W | BPF_ABS
        0x20 if k.is_multiple_of(4) && k < length => Ok(Step::LoadData((k / 4) as usize)),
        0x80 => Ok(Step::LoadNumber(length)),
        0x81 => Ok(Step::LoadNumberX(length)),
        0x00 => Ok(Step::LoadNumber(k)),
        0x01 => Ok(Step::LoadNumberX(k)),
        0x60 => word().map(Step::LoadWord),
        0x61 => word().map(Step::LoadWordX),
        0x02 => word().map(Step::Store),
        0x03 => word().map(Step::StoreX),
        0x04 | 0x0c => calculate(Arithmetic::Add),
        0x14 | 0x1c => calculate(Arithmetic::Subtract),
        0x24 | 0x2c => calculate(Arithmetic::Multiply),
        0x34 if k == 0 => Err(Errno::EINVAL),
        0x34 | 0x3c => calculate(Arithmetic::Divide),
        0x44 | 0x4c => calculate(Arithmetic::Or),
        0x54 | 0x5c => calculate(Arithmetic::And),
        0x64 | 0x6c => shift(Arithmetic::Left),
        0x74 | 0x7c => shift(Arithmetic::Right),
        0xa4 | 0xac => calculate(Arithmetic::Xor),
        0x84 => Ok(Step::Negate),
        0x07 => Ok(Step::ToX),
        0x87 => Ok(Step::FromX),
        0x05 => within(usize::try_from(k).map_err(|_| Errno::EINVAL)?).map(Step::Jump),
        0x15 | 0x1d => branch(Question::Equal),
        0x25 | 0x2d => branch(Question::Greater),
        0x35 | 0x3d => branch(Question::AtLeast),
        0x45 | 0x4d => branch(Question::AnyBit),
        0x06 => Ok(Step::Return(k)),
        0x16 => Ok(Step::ReturnA),
        _ => Err(Errno::EINVAL),
    }
}

impl Program {
    /// Looks through a program: every instruction is known, jumps forward and within it, its end is a return, and no word of memory is read
    /// that may not have been written.
    ///
    /// # Errors
    /// EINVAL.
    pub fn new(instructions: &[Instruction]) -> Result<Self, Errno> {
        if instructions.is_empty() || instructions.len() > LENGTH_MAX {
            return Err(Errno::EINVAL);
        }
        let count = instructions.len();
        let steps = instructions.iter().enumerate().map(|(at, one)| step(*one, count - at - 1));
        let steps = steps.collect::<Result<Vec<_>, _>>()?;
        if !matches!(steps.last(), Some(Step::Return(_) | Step::ReturnA)) {
            return Err(Errno::EINVAL);
        }
        check_memory(&steps)?;
        Ok(Self(steps))
    }

    /// Its instructions.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// What it says of a call. A division by 0 ends it with 0.
    #[must_use]
    pub fn run(&self, data: &[u32; DATA / 4]) -> u32 {
        self.walk(|word| Some(data.get(word).copied().unwrap_or(0))).unwrap_or(0)
    }

    /// What it says of a number, whatever place and arguments of the call are; `None` where it looks at them
    /// (`seccomp_is_const_allow`, which knows fewer instructions).
    #[must_use]
    pub fn run_blind(&self, number: u32) -> Option<u32> {
        self.walk(|word| [number, crate::bpf::AUDIT_ARCH_X86_64].get(word).copied())
    }

    /// Runs it; `None` where a word of the call is not known that it asks for.
    fn walk(&self, data: impl Fn(usize) -> Option<u32>) -> Option<u32> {
        let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; WORDS]);
        let mut at = 0usize;
        // All jumps go forward, so this ends.
        while let Some(step) = self.0.get(at) {
            at += 1;
            let operand = |from: &Operand| match from {
                Operand::Number(number) => *number,
                Operand::X => x,
            };
            match step {
                Step::LoadData(word) => a = data(*word)?,
                Step::LoadNumber(number) => a = *number,
                Step::LoadNumberX(number) => x = *number,
                Step::LoadWord(word) => a = memory.get(*word).copied().unwrap_or(0),
                Step::LoadWordX(word) => x = memory.get(*word).copied().unwrap_or(0),
                Step::Store(word) => put(&mut memory, *word, a),
                Step::StoreX(word) => put(&mut memory, *word, x),
                Step::Calculate(what, from) => match calculate(*what, a, operand(from)) {
                    Some(value) => a = value,
                    None => return Some(0),
                },
                Step::Negate => a = a.wrapping_neg(),
                Step::ToX => x = a,
                Step::FromX => a = x,
                Step::Jump(distance) => at += distance,
                Step::Branch(question, from, yes, no) => {
                    let other = operand(from);
                    let answer = match question {
                        Question::Equal => a == other,
                        Question::Greater => a > other,
                        Question::AtLeast => a >= other,
                        Question::AnyBit => a & other != 0,
                    };
                    at += if answer { yes } else { no };
                }
                Step::Return(value) => return Some(*value),
                Step::ReturnA => return Some(a),
            }
        }
        Some(0)
    }
}

fn put(memory: &mut [u32; WORDS], word: usize, value: u32) {
    if let Some(place) = memory.get_mut(word) {
        *place = value;
    }
}

fn calculate(what: Arithmetic, a: u32, other: u32) -> Option<u32> {
    Some(match what {
        Arithmetic::Add => a.wrapping_add(other),
        Arithmetic::Subtract => a.wrapping_sub(other),
        Arithmetic::Multiply => a.wrapping_mul(other),
        Arithmetic::Divide => return a.checked_div(other),
        Arithmetic::And => a & other,
        Arithmetic::Or => a | other,
        Arithmetic::Xor => a ^ other,
        // As the processor shifts: by the low five bits.
        Arithmetic::Left => a.wrapping_shl(other),
        Arithmetic::Right => a.wrapping_shr(other),
    })
}

/// Words that are written on every way to a step (`check_load_and_stores`).
fn check_memory(steps: &[Step]) -> Result<(), Errno> {
    let mut known = vec![u16::MAX; steps.len()];
    let mut now = 0u16;
    let merge = |known: &mut Vec<u16>, at: usize, words: u16| {
        if let Some(place) = known.get_mut(at) {
            *place &= words;
        }
    };
    for (at, step) in steps.iter().enumerate() {
        now &= known.get(at).copied().unwrap_or(0);
        match step {
            Step::Store(word) | Step::StoreX(word) => now |= 1 << word,
            Step::LoadWord(word) | Step::LoadWordX(word) if now & (1 << word) == 0 => {
                return Err(Errno::EINVAL);
            }
            Step::Jump(distance) => {
                merge(&mut known, at + 1 + distance, now);
                now = u16::MAX;
            }
            Step::Branch(_, _, yes, no) => {
                merge(&mut known, at + 1 + yes, now);
                merge(&mut known, at + 1 + no, now);
                now = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn one(code: u16, yes: u8, no: u8, k: u32) -> Instruction {
        Instruction { code, yes, no, k }
    }

    fn run(program: &[Instruction], data: &[u32; 16]) -> u32 {
        Program::new(program).unwrap().run(data)
    }

    const RETURN_A: Instruction = Instruction { code: 0x16, yes: 0, no: 0, k: 0 };

    #[test]
    fn what_is_no_program_is_refused() {
        let ret = one(0x06, 0, 0, 0);
        for bad in [
            &[][..],
            &[one(0x20, 0, 0, 0)],
            &[one(0x20, 0, 0, 2), ret],
            &[one(0x20, 0, 0, 64), ret],
            &[one(0x28, 0, 0, 0), ret],
            &[one(0x34, 0, 0, 0), ret],
            &[one(0x94, 0, 0, 2), ret],
            &[one(0x64, 0, 0, 32), ret],
            &[one(0x60, 0, 0, 0), ret],
            &[one(0x02, 0, 0, 16), ret],
            &[one(0x05, 0, 0, 1), ret],
            &[one(0x15, 1, 0, 0), ret],
            &[one(0x05, 0, 0, u32::MAX), ret],
            // Written on one way only.
            &[one(0x15, 0, 1, 0), one(0x02, 0, 0, 3), one(0x60, 0, 0, 3), ret],
            &[one(0xff, 0, 0, 0), ret],
        ] {
            assert_eq!(Program::new(bad).err(), Some(Errno::EINVAL), "{bad:?}");
        }
        let both = [
            one(0x15, 0, 2, 0),
            one(0x02, 0, 0, 3),
            one(0x05, 0, 0, 1),
            one(0x02, 0, 0, 3),
            one(0x60, 0, 0, 3),
            ret,
        ];
        assert!(Program::new(&both).is_ok());
        assert_eq!(Program::new(&vec![ret; LENGTH_MAX + 1]).err(), Some(Errno::EINVAL));
    }

    #[test]
    fn what_a_number_alone_decides_is_known() {
        let load = |word: u32| one(0x20, 0, 0, word * 4);
        let by_number = [load(0), one(0x15, 0, 1, 39), one(0x06, 0, 0, 1), one(0x06, 0, 0, 2)];
        let program = Program::new(&by_number).unwrap();
        assert_eq!([program.run_blind(39), program.run_blind(40)], [Some(1), Some(2)]);
        // Of 39 the argument decides.
        let argument = [load(0), one(0x15, 0, 1, 39), load(4), RETURN_A];
        let program = Program::new(&argument).unwrap();
        assert_eq!([program.run_blind(39), program.run_blind(40)], [None, Some(40)]);
        let place = Program::new(&[load(2), one(0x06, 0, 0, 1)]).unwrap();
        assert_eq!(place.run_blind(1), None);
        assert_eq!(Program::new(&[load(1), RETURN_A]).unwrap().run_blind(1), Some(0xc000_003e));
    }

    #[test]
    fn programs_calculate() {
        let mut data = [0; 16];
        data[0] = 39;
        data[5] = 7;
        let load = |word: u32| one(0x20, 0, 0, word * 4);
        assert_eq!(run(&[load(0), RETURN_A], &data), 39);
        assert_eq!(run(&[load(5), one(0x07, 0, 0, 0), load(0), one(0x1c, 0, 0, 0), RETURN_A], &data), 32);
        assert_eq!(run(&[load(0), one(0x24, 0, 0, 2), one(0x64, 0, 0, 1), RETURN_A], &data), 156);
        assert_eq!(run(&[load(0), one(0x3c, 0, 0, 0), one(0x06, 0, 0, 9)], &data), 0, "a division by 0");
        assert_eq!(run(&[one(0x80, 0, 0, 0), RETURN_A], &data), 64);
        assert_eq!(
            run(&[load(5), one(0x02, 0, 0, 1), one(0x61, 0, 0, 1), one(0x87, 0, 0, 0), RETURN_A], &data),
            7
        );
        let question = |code: u16, k: u32| {
            run(&[load(0), one(code, 0, 1, k), one(0x06, 0, 0, 1), one(0x06, 0, 0, 2)], &data)
        };
        assert_eq!(
            [question(0x15, 39), question(0x15, 38), question(0x25, 38), question(0x25, 39)],
            [1, 2, 1, 2]
        );
        assert_eq!(
            [question(0x35, 39), question(0x35, 40), question(0x45, 1), question(0x45, 8)],
            [1, 2, 1, 2]
        );
        assert_eq!(run(&[load(5), one(0x84, 0, 0, 0), RETURN_A], &data), 7u32.wrapping_neg());
    }
}
