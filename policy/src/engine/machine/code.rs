//! regorus' instructions, and what is known of them before they run.

use std::collections::{BTreeMap, BTreeSet};

use regorus::Value;
use regorus::rvm::Instruction;
use regorus::rvm::instructions::{ChainedIndexParams, LiteralOrRegister};
use regorus::rvm::program::{Program, RuleInfo, RuleType};

use super::Undecided;
use super::builtins::Builtin;
use super::flow::{Flows, are_arguments, destinations, flow};
use super::run::{PLACES, RULES};

/// A program with what is known of it.
pub(super) struct Code {
    pub(super) program: Program,
    /// What each of the program's built-in functions is.
    pub(super) builtins: Vec<Builtin>,
    /// Places in the request, the data or a rule's value that the instructions name in full.
    pub(super) places: Vec<Place>,
    /// Of a chain of keys (by its index in the program), the place where it leads.
    pub(super) chains: Vec<Option<u16>>,
    /// How it goes on behind each instruction.
    pub(super) flow: Flows,
    /// The same of a lookup in the data.
    pub(super) lookups: Vec<Lookup>,
    /// Of each rule, whether it is of a kind that the machine evaluates.
    plain: Vec<bool>,
    /// Rules whose value is asked for, by their paths.
    entries: BTreeMap<String, u16>,
}

/// A place that is the same wherever it is named in an evaluation: looked up once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Input,
    Data,
    /// The value of a rule.
    Rule(u16),
    /// What `of` has under a literal key.
    Member {
        of: u16,
        key: u16,
    },
}

/// A lookup in the data.
#[derive(Clone, Copy)]
pub(super) enum Lookup {
    Place(u16),
    /// Some of its keys are in registers.
    Keys,
    /// It would lead to rules.
    Rules,
}

impl Code {
    pub(super) fn new(mut program: Program) -> Result<Self, Undecided> {
        chain_single_keys(&mut program);
        let entries =
            program.entry_points.iter().filter_map(|(path, pc)| match program.instructions.get(*pc) {
                Some(Instruction::CallRule { rule_index, .. }) => Some((path.clone(), *rule_index)),
                _ => None,
            });
        let entries = entries.collect();
        let mut reader = Reader { places: Vec::new(), known: [None; 256] };
        let lookups = program.instruction_data.virtual_data_document_lookup_params.iter();
        let lookups = lookups.map(|params| reader.lookup(&program, &params.path_components)).collect();
        let chains = reader.chains(&program)?;
        let flow = flow(&program, &chains)?;
        let builtins = Builtin::all(&program);
        if reader.places.len() > PLACES || program.rule_infos.len() > RULES {
            return Err(Undecided("too many places or rules"));
        }
        let plain =
            program.rule_infos.iter().map(|info| is_plain(info) && are_arguments(&program, info)).collect();
        Ok(Self { program, builtins, places: reader.places, chains, flow, lookups, plain, entries })
    }

    /// A rule that the machine evaluates.
    pub(super) fn rule(&self, rule: u16) -> Option<&RuleInfo> {
        let rule = usize::from(rule);
        self.plain.get(rule).filter(|plain| **plain).and_then(|_| self.program.rule_infos.get(rule))
    }

    /// Whether there are rules at or below a member of the data.
    pub(super) fn is_of_rules(&self, member: &Value) -> bool {
        self.program.rule_tree["data"][member] != Value::Undefined
    }

    /// The rule at a path.
    pub(super) fn entry(&self, path: &str) -> Option<u16> {
        self.entries.get(path).copied()
    }
}

/// Reads a program from its beginning to its end.
struct Reader {
    places: Vec<Place>,
    /// Registers of the body that is being read that hold what is at a place: the compiler gives each value of a body a register of its own.
    known: [Option<u16>; 256],
}

impl Reader {
    fn place(&mut self, place: Place) -> Option<u16> {
        let at = self.places.iter().position(|known| *known == place).unwrap_or_else(|| {
            self.places.push(place);
            self.places.len() - 1
        });
        u16::try_from(at).ok()
    }

    fn member(&mut self, of: Option<u16>, keys: &[LiteralOrRegister]) -> Option<u16> {
        keys.iter().fold(of, |of, key| match (of, key) {
            (Some(of), LiteralOrRegister::Literal(key)) => self.place(Place::Member { of, key: *key }),
            _ => None,
        })
    }

    /// A path in the data is one of rules as far as the rules' tree goes.
    fn lookup(&mut self, program: &Program, keys: &[LiteralOrRegister]) -> Lookup {
        let literal = |key: &LiteralOrRegister| match key {
            LiteralOrRegister::Literal(key) => program.literals.get(usize::from(*key)),
            LiteralOrRegister::Register(_) => None,
        };
        match keys.first().and_then(literal) {
            Some(first) if program.rule_tree["data"][first] == Value::Undefined => {
                let data = self.place(Place::Data);
                self.member(data, keys).map_or(Lookup::Keys, Lookup::Place)
            }
            _ => Lookup::Rules,
        }
    }

    /// Where each chain of keys leads.
    fn chains(&mut self, program: &Program) -> Result<Vec<Option<u16>>, Undecided> {
        let data = &program.instruction_data;
        let mut chains = vec![None; data.chained_index_params.len()];
        let mut written = BTreeSet::new();
        for instruction in &program.instructions {
            let place = match *instruction {
                Instruction::RuleInit { .. } | Instruction::RuleReturn {} => {
                    self.known = [None; 256];
                    written.clear();
                    continue;
                }
                Instruction::LoadInput { .. } => self.place(Place::Input),
                Instruction::LoadData { .. } => self.place(Place::Data),
                Instruction::CallRule { rule_index, .. } => self.place(Place::Rule(rule_index)),
                Instruction::ChainedIndex { params_index } => {
                    let params = data.get_chained_index_params(params_index).ok_or(MALFORMED)?;
                    let root = self.known.get(usize::from(params.root)).copied().flatten();
                    let place = self.member(root, &params.path_components);
                    *chains.get_mut(usize::from(params_index)).ok_or(MALFORMED)? = place;
                    place
                }
                _ => None,
            };
            for dest in destinations(instruction, data)?.into_iter().flatten().filter(|dest| *dest != 0) {
                if !written.insert(dest) {
                    return Err(Undecided("a register that is written in two places"));
                }
                *self.known.get_mut(usize::from(dest)).ok_or(MALFORMED)? = place;
            }
        }
        Ok(chains)
    }
}

/// One key is a chain of one.
fn chain_single_keys(program: &mut Program) {
    let chains = &mut program.instruction_data.chained_index_params;
    for instruction in &mut program.instructions {
        if let Instruction::IndexLiteral { dest, container, literal_idx } = *instruction
            && let Ok(params_index) = u16::try_from(chains.len())
        {
            let path_components = vec![LiteralOrRegister::Literal(literal_idx)];
            chains.push(ChainedIndexParams { dest, root: container, path_components });
            *instruction = Instruction::ChainedIndex { params_index };
        }
    }
}

const MALFORMED: Undecided = Undecided("an instruction without its parameters");

/// Whether a rule is of a kind that the machine evaluates: its value is in its first register, and the elements of a set have one body each.
fn is_plain(rule: &RuleInfo) -> bool {
    let bodies = |at_most: usize| rule.definitions.iter().all(|bodies| bodies.len() <= at_most);
    rule.result_reg == 0
        && match rule.rule_type {
            RuleType::Complete => true,
            RuleType::PartialSet => rule.function_info.is_none() && bodies(1),
            RuleType::PartialObject => false,
        }
}
