//! Where an evaluation goes on behind each instruction, and on what condition: known before it runs.
//!
//! A condition on what an instruction has just made is checked with it. What only names a place is passed over when all that reads it knows
//! the place ([`Code::chains`](super::code::Code)).

use std::collections::BTreeSet;

use regorus::rvm::Instruction;
use regorus::rvm::instructions::{GuardMode, InstructionData, LiteralOrRegister};
use regorus::rvm::program::{Program, RuleInfo};

use super::Undecided;

const LARGE: Undecided = Undecided("a program that is too large");
const MALFORMED: Undecided = Undecided("an instruction without its parameters");

/// What must be true of the value that an instruction has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    None,
    Holds,
    Defined,
}

/// How it goes on behind an instruction.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    pub(super) test: Test,
    /// Literals that are loaded on the way: how many, and where they begin in [`Flows::loads`].
    pub(super) loads: u8,
    pub(super) first_load: u16,
    pub(super) next: u32,
}

/// All instructions, each with what is behind it. They are small and lie together, since an evaluation goes through some thousand of them.
pub(super) struct Flows {
    pub(super) of: Vec<(Instruction, Flow)>,
    /// Registers and literals.
    pub(super) loads: Vec<(u8, u16)>,
}

/// That of each instruction.
pub(super) fn flow(program: &Program, chains: &[Option<u16>]) -> Result<Flows, Undecided> {
    let idle = idle(program, chains)?;
    let mut loads = Vec::new();
    let flow = program.instructions.iter().enumerate().map(|(at, instruction)| {
        let made = match destinations(instruction, &program.instruction_data)? {
            [Some(made), None, None] if !matches!(instruction, Instruction::ComprehensionBegin { .. }) => {
                Some(made)
            }
            _ => None,
        };
        let test = match program.instructions.get(at + 1) {
            Some(Instruction::Guard { register, mode: GuardMode::Condition }) if made == Some(*register) => {
                Test::Holds
            }
            Some(Instruction::Guard { register, mode: GuardMode::NotUndefined })
                if made == Some(*register) =>
            {
                Test::Defined
            }
            _ => Test::None,
        };
        let mut next = if test == Test::None { at + 1 } else { at + 2 };
        let start = loads.len();
        loop {
            match program.instructions.get(next) {
                Some(Instruction::Load { dest, literal_idx }) => loads.push((*dest, *literal_idx)),
                _ if idle.get(next) == Some(&true) => {}
                _ => break,
            }
            next += 1;
        }
        let count = u8::try_from(loads.len() - start).map_err(|_| LARGE)?;
        let (first_load, next) =
            (u16::try_from(start).map_err(|_| LARGE)?, u32::try_from(next).map_err(|_| LARGE)?);
        Ok((*instruction, Flow { test, loads: count, first_load, next }))
    });
    let of = flow.collect::<Result<_, _>>()?;
    Ok(Flows { of, loads })
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
