//! Where an evaluation goes on behind each instruction, and on what condition: known before it runs.
//!
//! A condition on what an instruction has just made is checked with it. What only names a place is passed over when all that reads it knows
//! the place ([`Code::chains`](super::code::Code)).

use std::collections::BTreeSet;

use regorus::Value;
use regorus::rvm::Instruction;
use regorus::rvm::instructions::{GuardMode, InstructionData, LiteralOrRegister};
use regorus::rvm::program::{Program, RuleInfo};

use super::Undecided;
use super::arena::is_undefined;
use super::values::is_false;

const LARGE: Undecided = Undecided("a program that is too large");
const MALFORMED: Undecided = Undecided("an instruction without its parameters");

/// What must be true of the value that an instruction has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    None,
    Holds,
    Defined,
}

impl Test {
    #[inline(always)]
    pub(super) fn is_met(self, value: &Value) -> bool {
        match self {
            Self::None => true,
            Self::Holds => !is_false(value),
            Self::Defined => !is_undefined(value),
        }
    }
}

/// An instruction that only looks at what is there, as most do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short {
    pub(super) what: What,
    pub(super) dest: u8,
    pub(super) test: Test,
}

/// What a short instruction puts into its register.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    Literal(u16),
    Place(u16),
    Rule(u16),
    Truth(bool),
    Register(u8),
    Not(u8),
    /// Whether two registers are equal.
    Equal(u8, u8),
    Unequal(u8, u8),
}

/// How it goes on behind an instruction.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    pub(super) test: Test,
    /// Short instructions on the way: how many, and where they begin in [`Flows::shorts`].
    pub(super) shorts: u8,
    pub(super) first_short: u16,
    pub(super) next: u32,
}

/// All instructions, each with what is behind it. They are small and lie together, since an evaluation goes through some thousand of them.
pub(super) struct Flows {
    pub(super) of: Vec<(Instruction, Flow)>,
    pub(super) shorts: Vec<Short>,
}

/// That of each instruction.
pub(super) fn flow(program: &Program, chains: &[Option<u16>]) -> Result<Flows, Undecided> {
    let idle = idle(program, chains)?;
    let mut shorts = Vec::new();
    let flow = program.instructions.iter().enumerate().map(|(at, instruction)| {
        let (test, mut next) = tested(program, at)?;
        let first = shorts.len();
        loop {
            if idle.get(next) == Some(&true) {
                next += 1;
            } else if let Some((dest, what)) = short(program, chains, next)? {
                let (test, behind) = tested(program, next)?;
                // What is undefined is not moved.
                let is_bare_move = matches!(what, What::Register(_)) && test == Test::None;
                shorts.push(Short { what, dest, test: if is_bare_move { Test::Defined } else { test } });
                next = behind;
            } else {
                break;
            }
        }
        let count = u8::try_from(shorts.len() - first).map_err(|_| LARGE)?;
        let (first_short, next) =
            (u16::try_from(first).map_err(|_| LARGE)?, u32::try_from(next).map_err(|_| LARGE)?);
        Ok((*instruction, Flow { test, shorts: count, first_short, next }))
    });
    let of = flow.collect::<Result<_, _>>()?;
    Ok(Flows { of, shorts })
}

/// The condition on what an instruction makes, and the place behind both.
fn tested(program: &Program, at: usize) -> Result<(Test, usize), Undecided> {
    let instruction = program.instructions.get(at).ok_or(MALFORMED)?;
    let made = match destinations(instruction, &program.instruction_data)? {
        [Some(made), None, None] if !matches!(instruction, Instruction::ComprehensionBegin { .. }) => made,
        _ => return Ok((Test::None, at + 1)),
    };
    Ok(match program.instructions.get(at + 1) {
        Some(Instruction::Guard { register, mode: GuardMode::Condition }) if made == *register => {
            (Test::Holds, at + 2)
        }
        Some(Instruction::Guard { register, mode: GuardMode::NotUndefined }) if made == *register => {
            (Test::Defined, at + 2)
        }
        _ => (Test::None, at + 1),
    })
}

/// The register that a short instruction writes, and what it puts there; a rule's own value, in register 0, is looked at more closely.
fn short(program: &Program, chains: &[Option<u16>], at: usize) -> Result<Option<(u8, What)>, Undecided> {
    use Instruction as I;
    let short = match program.instructions.get(at) {
        Some(I::Load { dest, literal_idx }) => Some((*dest, What::Literal(*literal_idx))),
        Some(I::LoadBool { dest, value }) => Some((*dest, What::Truth(*value))),
        Some(I::LoadTrue { dest }) => Some((*dest, What::Truth(true))),
        Some(I::LoadFalse { dest }) => Some((*dest, What::Truth(false))),
        Some(I::CallRule { dest, rule_index }) => Some((*dest, What::Rule(*rule_index))),
        Some(I::Move { dest, src }) => Some((*dest, What::Register(*src))),
        Some(I::Not { dest, operand }) => Some((*dest, What::Not(*operand))),
        Some(I::Eq { dest, left, right }) => Some((*dest, What::Equal(*left, *right))),
        Some(I::Ne { dest, left, right }) => Some((*dest, What::Unequal(*left, *right))),
        Some(I::ChainedIndex { params_index }) => {
            let params = program.instruction_data.get_chained_index_params(*params_index).ok_or(MALFORMED)?;
            let place = chains.get(usize::from(*params_index)).copied().flatten();
            place.map(|place| (params.dest, What::Place(place)))
        }
        _ => None,
    };
    Ok(short.filter(|(dest, what)| *dest != 0 || !matches!(what, What::Register(_))))
}

/// Whether the parameters of a function are nothing but its arguments: each is moved to the register that is as many behind it as there are.
pub(super) fn are_arguments(program: &Program, info: &RuleInfo) -> bool {
    let Some(function) = &info.function_info else { return true };
    let Ok(count) = u8::try_from(function.num_params) else { return false };
    let is_plain = |start: &u32| {
        let start = usize::try_from(*start).unwrap_or(usize::MAX);
        let mut instructions = program.instructions.get(start..).unwrap_or_default().iter();
        let moved = (1..=count).all(|n| {
            let to = n.checked_add(count);
            matches!(instructions.next(), Some(Instruction::Move { dest, src }) if Some(*dest) == to && *src == n)
                && matches!(instructions.next(), Some(Instruction::Guard { register, mode: GuardMode::NotUndefined })
                    if Some(*register) == to)
        });
        moved && matches!(instructions.next(), Some(Instruction::DestructuringSuccess {}))
    };
    info.destructuring_blocks.len() == info.definitions.len()
        && info.destructuring_blocks.iter().all(|block| block.as_ref().is_some_and(is_plain))
}

/// Of each instruction, whether nothing comes of it.
fn idle(program: &Program, chains: &[Option<u16>]) -> Result<Vec<bool>, Undecided> {
    let mut idle = vec![false; program.instructions.len()];
    // registers that are read in the body, from its end on
    let mut read = BTreeSet::new();
    for (at, instruction) in program.instructions.iter().enumerate().rev() {
        let nothing = match instruction {
            Instruction::RuleReturn {} | Instruction::Return { .. } => {
                read.clear();
                false
            }
            Instruction::RuleInit { .. } => true,
            Instruction::LoadInput { dest }
            | Instruction::LoadData { dest }
            | Instruction::CallRule { dest, .. } => !read.contains(dest),
            _ => false,
        };
        *idle.get_mut(at).ok_or(MALFORMED)? = nothing;
        read.extend(sources(instruction, &program.instruction_data, chains)?);
    }
    Ok(idle)
}

/// Registers that an instruction writes, of those that the machine knows: at another one it stops.
pub(super) fn destinations(
    instruction: &Instruction,
    data: &InstructionData,
) -> Result<[Option<u8>; 3], Undecided> {
    use Instruction as I;
    let one = match *instruction {
        I::Load { dest, .. }
        | I::LoadTrue { dest }
        | I::LoadFalse { dest }
        | I::LoadNull { dest }
        | I::LoadBool { dest, .. }
        | I::LoadData { dest }
        | I::LoadInput { dest }
        | I::Move { dest, .. }
        | I::Add { dest, .. }
        | I::Sub { dest, .. }
        | I::Eq { dest, .. }
        | I::Ne { dest, .. }
        | I::Lt { dest, .. }
        | I::Le { dest, .. }
        | I::Gt { dest, .. }
        | I::Ge { dest, .. }
        | I::Not { dest, .. }
        | I::Index { dest, .. }
        | I::ArrayNew { dest }
        | I::SetNew { dest }
        | I::Contains { dest, .. }
        | I::CallRule { dest, .. } => dest,
        I::BuiltinCall { params_index: n } => data.get_builtin_call_params(n).ok_or(MALFORMED)?.dest,
        I::FunctionCall { params_index: n } => data.get_function_call_params(n).ok_or(MALFORMED)?.dest,
        I::ObjectCreate { params_index: n } => data.get_object_create_params(n).ok_or(MALFORMED)?.dest,
        I::ArrayCreate { params_index: n } => data.get_array_create_params(n).ok_or(MALFORMED)?.dest,
        I::SetCreate { params_index: n } => data.get_set_create_params(n).ok_or(MALFORMED)?.dest,
        I::ChainedIndex { params_index: n } => data.get_chained_index_params(n).ok_or(MALFORMED)?.dest,
        I::VirtualDataDocumentLookup { params_index: n } => {
            data.get_virtual_data_document_lookup_params(n).ok_or(MALFORMED)?.dest
        }
        I::ComprehensionBegin { params_index: n } => {
            data.get_comprehension_begin_params(n).ok_or(MALFORMED)?.result_reg
        }
        I::LoopStart { params_index: n } => {
            let params = data.get_loop_params(n).ok_or(MALFORMED)?;
            let key = (params.key_reg != params.value_reg).then_some(params.key_reg);
            return Ok([key, Some(params.value_reg), Some(params.result_reg)]);
        }
        // Conditions and ends; what adds to a set or comprehension; and what the machine stops at.
        _ => return Ok([None; 3]),
    };
    Ok([Some(one), None, None])
}

/// Registers that an instruction reads, of those that the machine knows.
fn sources(
    instruction: &Instruction,
    data: &InstructionData,
    chains: &[Option<u16>],
) -> Result<Vec<u8>, Undecided> {
    use Instruction as I;
    let registers = |keys: &[LiteralOrRegister]| {
        let register = |key: &LiteralOrRegister| match key {
            LiteralOrRegister::Register(register) => Some(*register),
            LiteralOrRegister::Literal(_) => None,
        };
        keys.iter().filter_map(register).collect::<Vec<u8>>()
    };
    Ok(match *instruction {
        I::Move { src, .. } => vec![src],
        I::Not { operand, .. } => vec![operand],
        I::Guard { register, .. } => vec![register],
        I::SetAdd { set, value } => vec![set, value],
        I::Return { value } => vec![value],
        I::Index { container, key, .. } => vec![container, key],
        I::Contains { collection, value, .. } => vec![collection, value],
        I::ComprehensionYield { value_reg, key_reg } => std::iter::once(value_reg).chain(key_reg).collect(),
        I::Add { left, right, .. }
        | I::Sub { left, right, .. }
        | I::Eq { left, right, .. }
        | I::Ne { left, right, .. }
        | I::Lt { left, right, .. }
        | I::Le { left, right, .. }
        | I::Gt { left, right, .. }
        | I::Ge { left, right, .. }
        | I::AssertEq { left, right } => vec![left, right],
        I::BuiltinCall { params_index: n } => {
            data.get_builtin_call_params(n).ok_or(MALFORMED)?.arg_registers().to_vec()
        }
        I::FunctionCall { params_index: n } => {
            data.get_function_call_params(n).ok_or(MALFORMED)?.arg_registers().to_vec()
        }
        I::ObjectCreate { params_index: n } => {
            let params = data.get_object_create_params(n).ok_or(MALFORMED)?;
            let literal = params.literal_key_fields.iter().map(|(_, value)| *value);
            literal.chain(params.fields.iter().flat_map(|(key, value)| [*key, *value])).collect()
        }
        I::ArrayCreate { params_index: n } => {
            data.get_array_create_params(n).ok_or(MALFORMED)?.elements.clone()
        }
        I::SetCreate { params_index: n } => data.get_set_create_params(n).ok_or(MALFORMED)?.elements.clone(),
        I::LoopStart { params_index: n } => vec![data.get_loop_params(n).ok_or(MALFORMED)?.collection],
        I::VirtualDataDocumentLookup { params_index: n } => {
            registers(&data.get_virtual_data_document_lookup_params(n).ok_or(MALFORMED)?.path_components)
        }
        I::ChainedIndex { params_index: n } => match chains.get(usize::from(n)) {
            Some(Some(_)) => Vec::new(),
            _ => {
                let params = data.get_chained_index_params(n).ok_or(MALFORMED)?;
                std::iter::once(params.root).chain(registers(&params.path_components)).collect()
            }
        },
        _ => Vec::new(),
    })
}
