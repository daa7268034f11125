//! An evaluation: instruction by instruction.
//!
//! Whatever is not plain ends it without an answer ([`Undecided`]).

use std::array::from_fn;
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regorus::Value;
use regorus::rvm::Instruction;
use regorus::rvm::instructions::{GuardMode, LiteralOrRegister};
use regorus::rvm::program::{RuleInfo, RuleType};
use regorus::value::Set;

use super::arena::{Arena, Keys, UNDEFINED, is_undefined, truth};
use super::builtins::difference;
use super::code::{Code, Lookup, Place};
use super::contexts::{Contexts, Step, nothing};
use super::flow::{Flow, Short, Test, What};
use super::values::{is_false, member};
use super::{Answer, Limits, Undecided};

/// Rules within rules at most. Rego has no recursion: this guards our stack all the same.
const DEPTH: usize = 64;
/// Instructions between two looks at the clock, the first of which starts it.
const CLOCK_STEPS: usize = 1024;

/// Registers of all rules that are evaluated at a time; places and rules of a program. These lie on the stack: allocating them would take
/// longer than many an evaluation.
const REGISTERS: usize = 512;
pub(super) const PLACES: usize = 384;
pub(super) const RULES: usize = 256;

const STEPS: Undecided = Undecided("the instruction limit");
const REQUEST: Undecided = Undecided("no request");
const PLACE: Undecided = Undecided("a place that is not there");

/// What an evaluation is about.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) code: &'a Code,
    /// None where it is asked what does not depend on a request.
    pub(super) input: Option<&'a Value>,
    pub(super) data: &'a Value,
    pub(super) arena: &'a Arena,
}

/// What does not depend on a request.
#[derive(Default)]
pub(super) struct Known {
    /// Values of rules.
    values: Vec<Option<Value>>,
    /// What is at places.
    places: Vec<Option<Value>>,
    /// Keys of the objects in them.
    pub(super) keys: Arc<Keys>,
}

impl Known {
    /// What can be said without a request: whatever looks at one is undecided.
    pub(super) fn new(code: &Code, data: &Value, limits: &Limits) -> Self {
        let arena = Arena::new(Arc::default());
        let none = Self::default();
        let mut run = Run::new(Question { code, input: None, data, arena: &arena }, &none, limits);
        let values: Vec<_> = (0..code.program.rule_infos.len()).map(|n| run.attempt(n, Run::rule)).collect();
        let places = (0..code.places.len()).map(|n| run.attempt(n, Run::place)).collect();
        let keys = Arc::new(Keys::within(values.iter().flatten()));
        Self { values, places, keys }
    }
}

/// An evaluation.
pub(super) struct Run<'a> {
    of: Question<'a>,
    registers: [&'a Value; REGISTERS],
    /// Where those of the rule that is evaluated begin, and where they end.
    base: usize,
    end: usize,
    contexts: Contexts<'a>,
    /// What is at the code's places, as far as it was looked up.
    places: [Option<&'a Value>; PLACES],
    /// Values of rules that are no functions.
    values: [Option<&'a Value>; RULES],
    /// Whether the body that is evaluated came to a value that is undefined.
    valueless: bool,
    depth: usize,
    /// That are left.
    steps: usize,
    time: Duration,
    deadline: Option<Instant>,
}

impl<'a> Run<'a> {
    pub(super) fn new(of: Question<'a>, known: &'a Known, limits: &Limits) -> Self {
        Self {
            of,
            registers: [&UNDEFINED; REGISTERS],
            base: 0,
            end: 0,
            contexts: Contexts::default(),
            places: from_fn(|n| known.places.get(n).and_then(Option::as_ref)),
            values: from_fn(|n| known.values.get(n).and_then(Option::as_ref)),
            valueless: false,
            depth: 0,
            steps: limits.instructions,
            time: limits.time,
            deadline: None,
        }
    }

    /// A value, if it can be said; what an evaluation that ended early left behind is taken away.
    fn attempt(&mut self, number: usize, what: fn(&mut Self, u16) -> Answer<'a>) -> Option<Value> {
        let steps = self.steps;
        let value = u16::try_from(number).ok().and_then(|number| what(self, number).ok());
        self.steps = steps;
        self.contexts.truncate(0);
        (self.base, self.end, self.depth) = (0, 0, 0);
        value.cloned()
    }

    /// The value of a rule that is no function.
    pub(super) fn rule(&mut self, rule: u16) -> Answer<'a> {
        if let Some(Some(value)) = self.values.get(usize::from(rule)) {
            return Ok(value);
        }
        let value = self.call(rule, &[])?;
        if let Some(known) = self.values.get_mut(usize::from(rule)) {
            *known = Some(value);
        }
        Ok(value)
    }

    /// The value of a rule or function.
    fn call(&mut self, rule: u16, arguments: &[&'a Value]) -> Answer<'a> {
        let info = self.of.code.rule(rule).ok_or(Undecided("a rule of another kind"))?;
        let parameters = info.function_info.as_ref().map_or(0, |function| function.num_params);
        if usize::try_from(parameters) != Ok(arguments.len()) || self.depth == DEPTH {
            return Err(Undecided("a function with other arguments, or too deep"));
        }
        // The arguments are there as arguments and as parameters.
        let (caller, base, kept) = (self.base, self.end, 2 * arguments.len() + 1);
        (self.base, self.end, self.depth) =
            (base, base + usize::from(info.num_registers).max(kept), self.depth + 1);
        let places = self.registers.get_mut(base + 1..).unwrap_or_default().iter_mut();
        for (place, value) in places.zip(arguments.iter().chain(arguments)) {
            *place = value;
        }
        let value = match info.rule_type {
            RuleType::PartialSet => self.elements(info)?,
            _ => self.complete(info, kept)?,
        };
        (self.base, self.end, self.depth) = (caller, base, self.depth - 1);
        match info.default_literal_index {
            Some(literal) if is_undefined(value) => self.literal(literal),
            _ => Ok(value),
        }
    }

    /// Registers as a body expects them: what is not kept is undefined.
    fn clear(&mut self, kept: usize) -> Result<(), Undecided> {
        self.registers
            .get_mut(self.base + kept..self.end)
            .ok_or(Undecided("too many registers"))?
            .fill(&UNDEFINED);
        Ok(())
    }

    /// A set, to which each body may add.
    fn elements(&mut self, info: &RuleInfo) -> Answer<'a> {
        self.set(0, &nothing().set)?;
        for body in info.definitions.iter().flatten() {
            self.clear(1)?;
            self.body(*body)?;
        }
        self.get(0)
    }

    /// The value of the first body of each definition that holds: the same of all. Bodies of a definition have registers of their own, but for
    /// the parameters, which are kept.
    fn complete(&mut self, info: &RuleInfo, kept: usize) -> Answer<'a> {
        let mut value = &UNDEFINED;
        for bodies in info.definitions.iter() {
            self.clear(kept)?;
            for (n, body) in bodies.iter().enumerate() {
                self.set(0, &UNDEFINED)?;
                self.valueless = false;
                let holds = self.body(*body)?;
                let said = self.get(0)?;
                if is_undefined(said) {
                    // Whether what is behind "else" is then looked at, others may say.
                    if (holds || self.valueless) && n + 1 < bodies.len() {
                        return Err(Undecided("a value that is undefined, and an else"));
                    }
                } else if is_undefined(value) {
                    value = said;
                } else if value != said {
                    return Err(Undecided("values that contradict each other"));
                }
                if holds {
                    break;
                }
            }
            if !is_undefined(value) && info.early_exit_on_first_success {
                break;
            }
        }
        Ok(value)
    }

    /// Whether a body holds.
    fn body(&mut self, start: u32) -> Result<bool, Undecided> {
        let floor = self.contexts.len();
        let code = self.of.code;
        let start = usize::try_from(start).map_err(|_| PLACE)?;
        let mut next = self.onwards(&code.flow.of.get(start).ok_or(PLACE)?.1)?;
        loop {
            let at = match next {
                Some(at) => at,
                None => match self.contexts.failed(floor, self.of.arena)? {
                    Some(step) => self.go(step)?,
                    None => return Ok(false),
                },
            };
            self.step()?;
            let (instruction, flow) = code.flow.of.get(at).ok_or(PLACE)?;
            let mut jump = None;
            let holds = match *instruction {
                Instruction::RuleReturn {} => {
                    self.contexts.truncate(floor);
                    return Ok(true);
                }
                Instruction::LoopStart { params_index } => {
                    let params =
                        self.of.code.program.instruction_data.get_loop_params(params_index).ok_or(PLACE)?;
                    let of = self.get(params.collection)?;
                    let step = self.contexts.start(params, of, self.of.arena)?;
                    jump = Some(step);
                    true
                }
                Instruction::LoopNext { .. } => {
                    let step = self.contexts.held(floor, self.of.arena)?;
                    jump = Some(step);
                    true
                }
                Instruction::ComprehensionEnd {} => {
                    let step = self.contexts.gathered(floor, self.of.arena)?;
                    jump = Some(step);
                    true
                }
                Instruction::Guard { register, mode } => {
                    let value = self.get(register)?;
                    match mode {
                        GuardMode::Not => is_false(value),
                        GuardMode::Condition => !is_false(value),
                        GuardMode::NotUndefined => !is_undefined(value),
                    }
                }
                Instruction::AssertEq { left, right } => {
                    let (left, right) = (self.get(left)?, self.get(right)?);
                    !is_undefined(left) && !is_undefined(right) && left == right
                }
                Instruction::Move { dest, src } => {
                    let value = self.get(src)?;
                    self.said(dest, value)?;
                    self.set(dest, value)?;
                    // An assignment of what is undefined does not hold.
                    !is_undefined(value) && (flow.test != Test::Holds || !is_false(value))
                }
                Instruction::ComprehensionYield { value_reg, key_reg } => {
                    let key = key_reg.map(|key| self.get(key)).transpose()?;
                    let value = self.get(value_reg)?;
                    self.contexts.add(floor, key, value)?;
                    true
                }
                other => flow.test.is_met(self.plain(other)?),
            };
            next = match jump {
                Some(step) => Some(self.go(step)?),
                None if holds => self.onwards(flow)?,
                None => None,
            };
        }
    }

    /// An instruction that makes a value.
    fn plain(&mut self, instruction: Instruction) -> Answer<'a> {
        let (dest, value) = match instruction {
            Instruction::Load { dest, literal_idx } => (dest, self.literal(literal_idx)?),
            Instruction::LoadTrue { dest } => (dest, truth(true)),
            Instruction::LoadFalse { dest } => (dest, truth(false)),
            Instruction::LoadBool { dest, value } => (dest, truth(value)),
            Instruction::LoadNull { dest } => (dest, &Value::Null),
            Instruction::LoadInput { dest } => (dest, self.of.input.ok_or(REQUEST)?),
            Instruction::LoadData { dest } => (dest, self.of.data),
            Instruction::CallRule { dest, rule_index } => (dest, self.rule(rule_index)?),
            Instruction::Not { dest, operand } => (dest, truth(is_false(self.get(operand)?))),
            Instruction::Eq { dest, left, right } => (dest, self.equal(left, right, true)?),
            Instruction::Ne { dest, left, right } => (dest, self.equal(left, right, false)?),
            Instruction::Lt { dest, left, right } => (dest, self.order(left, right, Ordering::is_lt)?),
            Instruction::Le { dest, left, right } => (dest, self.order(left, right, Ordering::is_le)?),
            Instruction::Gt { dest, left, right } => (dest, self.order(left, right, Ordering::is_gt)?),
            Instruction::Ge { dest, left, right } => (dest, self.order(left, right, Ordering::is_ge)?),
            Instruction::Contains { dest, collection, value } => (dest, self.contains(collection, value)?),
            Instruction::Index { dest, container, key } => {
                (dest, member(self.get(container)?, self.get(key)?))
            }
            Instruction::ChainedIndex { params_index } => return self.chain(params_index),
            Instruction::VirtualDataDocumentLookup { params_index } => return self.lookup(params_index),
            Instruction::BuiltinCall { params_index } => return self.builtin(params_index),
            Instruction::FunctionCall { params_index } => return self.function(params_index),
            Instruction::ComprehensionBegin { params_index } => {
                let params =
                    self.of.code.program.instruction_data.get_comprehension_begin_params(params_index);
                self.contexts.gather(params.ok_or(PLACE)?)?;
                return Ok(&UNDEFINED);
            }
            Instruction::Add { dest, left, right } => (dest, self.sum(left, right)?),
            Instruction::Sub { dest, left, right } => {
                let of = [self.get(left)?, self.get(right)?];
                let is_there = of.iter().all(|value| !is_undefined(value));
                (dest, if is_there { difference(of, self.of.arena)? } else { &UNDEFINED })
            }
            other => return self.make(other),
        };
        self.set(dest, value)
    }

    /// The members of collections.
    fn make(&mut self, instruction: Instruction) -> Answer<'a> {
        let program = &self.of.code.program;
        let (dest, value) = match instruction {
            Instruction::ArrayNew { dest } => (dest, &nothing().array),
            Instruction::SetNew { dest } => (dest, &nothing().set),
            Instruction::ArrayCreate { params_index } => {
                let params = program.instruction_data.get_array_create_params(params_index).ok_or(PLACE)?;
                let items = self.all(&params.elements)?.map(Value::from);
                (params.dest, self.keep(items)?)
            }
            Instruction::SetCreate { params_index } => {
                let params = program.instruction_data.get_set_create_params(params_index).ok_or(PLACE)?;
                let items =
                    self.all(&params.elements)?.map(|items| items.into_iter().collect::<Set>().into_value());
                (params.dest, self.keep(items)?)
            }
            Instruction::ObjectCreate { params_index } => {
                let params = program.instruction_data.get_object_create_params(params_index).ok_or(PLACE)?;
                let Value::Object(template) = self.literal(params.template_literal_idx)? else {
                    return Err(PLACE);
                };
                // It has all literal keys: a value takes its place.
                let mut members = regorus::value::Object::clone(template);
                let fields =
                    params.fields.iter().map(|(key, value)| Ok((self.get(*key)?, self.get(*value)?)));
                let literal = params.literal_key_fields.iter();
                let literal = literal.map(|(key, value)| Ok((self.literal(*key)?, self.get(*value)?)));
                for member in literal.chain(fields) {
                    let (key, value) = member?;
                    members.insert(key.clone(), value.clone());
                }
                let is_whole = members.iter().all(|(key, value)| !is_undefined(key) && !is_undefined(value));
                (params.dest, self.keep(is_whole.then(|| members.into_value()))?)
            }
            Instruction::SetAdd { set: 0, value } => {
                let (Value::Set(items), value) = (self.get(0)?, self.get(value)?) else {
                    return Err(Undecided("an element of what is no set"));
                };
                if is_undefined(value) {
                    return Err(Undecided("an element that is undefined"));
                }
                self.steps = self.steps.checked_sub(items.len()).ok_or(STEPS)?;
                let mut items = Set::clone(items);
                items.insert(value.clone());
                (0, self.of.arena.keep(items.into_value())?)
            }
            _ => return Err(Undecided("an instruction that it does not know")),
        };
        self.set(dest, value)
    }

    /// Values of registers, when all are defined.
    fn all(&self, registers: &[u8]) -> Result<Option<Vec<Value>>, Undecided> {
        let mut values = Vec::with_capacity(registers.len());
        for register in registers {
            match self.get(*register)? {
                Value::Undefined => return Ok(None),
                value => values.push(value.clone()),
            }
        }
        Ok(Some(values))
    }

    fn keep(&self, value: Option<Value>) -> Answer<'a> {
        value.map_or(Ok(&UNDEFINED), |value| self.of.arena.keep(value))
    }

    /// A chain of keys, from what is in a register.
    fn chain(&mut self, index: u16) -> Answer<'a> {
        let params = self.of.code.program.instruction_data.get_chained_index_params(index).ok_or(PLACE)?;
        let value = match self.of.code.chains.get(usize::from(index)) {
            Some(Some(place)) => self.place(*place)?,
            _ => {
                let mut value = self.get(params.root)?;
                for key in &params.path_components {
                    value = member(value, self.key(key)?);
                }
                value
            }
        };
        self.set(params.dest, value)
    }

    /// A path in the data.
    fn lookup(&mut self, index: u16) -> Answer<'a> {
        let params = &self.of.code.program.instruction_data;
        let params = params.get_virtual_data_document_lookup_params(index).ok_or(PLACE)?;
        let value = match self.of.code.lookups.get(usize::from(index)) {
            Some(Lookup::Place(place)) => self.place(*place)?,
            Some(Lookup::Keys) => {
                let mut value = self.of.data;
                for key in &params.path_components {
                    let key = self.key(key)?;
                    // The machine of regorus looks for a number as a text as well.
                    if matches!(key, Value::Number(_)) {
                        return Err(Undecided("a number as a key of data"));
                    }
                    value = member(value, key);
                }
                value
            }
            _ => return Err(Undecided("rules as data")),
        };
        self.set(params.dest, value)
    }

    #[inline(always)]
    fn key(&self, key: &LiteralOrRegister) -> Answer<'a> {
        match key {
            LiteralOrRegister::Literal(literal) => self.literal(*literal),
            LiteralOrRegister::Register(register) => self.get(*register),
        }
    }

    /// What is at a place.
    fn place(&mut self, place: u16) -> Answer<'a> {
        let at = usize::from(place);
        if let Some(Some(value)) = self.places.get(at) {
            return Ok(value);
        }
        let value = match self.of.code.places.get(at).ok_or(PLACE)? {
            Place::Input => self.of.input.ok_or(REQUEST)?,
            Place::Data => self.of.data,
            Place::Rule(rule) => self.rule(*rule)?,
            Place::Member { of, key } => member(self.place(*of)?, self.literal(*key)?),
        };
        if let Some(known) = self.places.get_mut(at) {
            *known = Some(value);
        }
        Ok(value)
    }

    fn builtin(&mut self, index: u16) -> Answer<'a> {
        let code = self.of.code;
        let params = code.program.instruction_data.get_builtin_call_params(index).ok_or(PLACE)?;
        let mut arguments = [&UNDEFINED; 8];
        let value = match self.arguments(params.arg_registers(), &mut arguments)? {
            Some(arguments) => {
                let builtin = code.builtins.get(usize::from(params.builtin_index)).ok_or(PLACE)?;
                builtin.call(arguments, self.of.arena)?
            }
            None => &UNDEFINED,
        };
        self.set(params.dest, value)
    }

    fn function(&mut self, index: u16) -> Answer<'a> {
        let params = self.of.code.program.instruction_data.get_function_call_params(index).ok_or(PLACE)?;
        let mut arguments = [&UNDEFINED; 8];
        let value = match self.arguments(params.arg_registers(), &mut arguments)? {
            Some(arguments) => self.call(params.func_rule_index, arguments)?,
            None => &UNDEFINED,
        };
        self.set(params.dest, value)
    }

    /// The arguments of a call; `None` when one is undefined, as the call then is.
    fn arguments<'b>(
        &self,
        registers: &[u8],
        into: &'b mut [&'a Value; 8],
    ) -> Result<Option<&'b [&'a Value]>, Undecided> {
        for (place, register) in into.iter_mut().zip(registers) {
            *place = self.get(*register)?;
            if is_undefined(place) {
                return Ok(None);
            }
        }
        Ok(into.get(..registers.len()))
    }

    /// Whether two values are equal, or are not; undefined when one of them is.
    fn equal(&self, left: u8, right: u8, equal: bool) -> Answer<'a> {
        let (left, right) = (self.get(left)?, self.get(right)?);
        match (left, right) {
            (Value::Undefined, _) | (_, Value::Undefined) => Ok(&UNDEFINED),
            _ => Ok(truth((left == right) == equal)),
        }
    }

    /// How two numbers are ordered; undefined when one of them is.
    fn order(&self, left: u8, right: u8, test: fn(Ordering) -> bool) -> Answer<'a> {
        match (self.get(left)?, self.get(right)?) {
            (Value::Undefined, _) | (_, Value::Undefined) => Ok(&UNDEFINED),
            (left @ Value::Number(_), right @ Value::Number(_)) => Ok(truth(test(left.cmp(right)))),
            _ => Err(Undecided("an order of what are no numbers")),
        }
    }

    /// The sum of two whole numbers; undefined when one of them is.
    fn sum(&self, left: u8, right: u8) -> Answer<'a> {
        match (self.get(left)?, self.get(right)?) {
            (Value::Undefined, _) | (_, Value::Undefined) => Ok(&UNDEFINED),
            (Value::Number(left), Value::Number(right)) => {
                let sum = left.as_i64().zip(right.as_i64()).and_then(|(left, right)| left.checked_add(right));
                let sum = sum.ok_or(Undecided("a sum of other numbers"))?;
                usize::try_from(sum)
                    .map_or_else(|_| self.of.arena.keep(Value::from(sum)), |sum| self.of.arena.number(sum))
            }
            _ => Err(Undecided("a sum of what are no numbers")),
        }
    }

    fn contains(&self, collection: u8, value: u8) -> Answer<'a> {
        match (self.get(collection)?, self.get(value)?) {
            (Value::Undefined, _) | (_, Value::Undefined) => Ok(&UNDEFINED),
            (Value::Set(items), value) => Ok(truth(items.contains(value))),
            (Value::Array(items), value) => Ok(truth(items.contains(value))),
            (Value::Object(members), value) => Ok(truth(members.values().any(|member| member == value))),
            _ => Err(Undecided("an item of what is no collection")),
        }
    }

    /// A body that says two things in two steps of a loop says none.
    #[inline(always)]
    fn said(&mut self, dest: u8, value: &Value) -> Result<(), Undecided> {
        if dest == 0 {
            self.valueless |= is_undefined(value);
            let before = self.get(0)?;
            if !is_undefined(before) && before != value {
                return Err(Undecided("values that contradict each other"));
            }
        }
        Ok(())
    }

    /// Does what is on the way to the next instruction that is not short, and says where that is; `None` where a condition does not hold.
    #[inline(always)]
    fn onwards(&mut self, flow: &Flow) -> Result<Option<usize>, Undecided> {
        let first = usize::from(flow.first_short);
        let shorts = self.of.code.flow.shorts.get(first..first + usize::from(flow.shorts)).ok_or(PLACE)?;
        for Short { what, dest, test } in shorts {
            self.step()?;
            let value = match *what {
                What::Literal(literal) => self.literal(literal)?,
                What::Place(place) => self.place(place)?,
                What::Rule(rule) => self.rule(rule)?,
                What::Truth(value) => truth(value),
                What::Register(register) => self.get(register)?,
                What::Not(register) => truth(is_false(self.get(register)?)),
                What::Equal(left, right) => self.equal(left, right, true)?,
                What::Unequal(left, right) => self.equal(left, right, false)?,
            };
            self.set(*dest, value)?;
            if !test.is_met(value) {
                return Ok(None);
            }
        }
        usize::try_from(flow.next).map(Some).map_err(|_| PLACE)
    }

    #[inline(always)]
    fn go(&mut self, step: Step<'a>) -> Result<usize, Undecided> {
        for (register, value) in step.set.into_iter().flatten() {
            self.set(register, value)?;
        }
        Ok(step.at)
    }

    #[inline(always)]
    fn step(&mut self) -> Result<(), Undecided> {
        self.steps = self.steps.checked_sub(1).ok_or(STEPS)?;
        if self.steps.is_multiple_of(CLOCK_STEPS) {
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.time);
            if Instant::now() > deadline {
                return Err(Undecided("the time limit"));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn get(&self, register: u8) -> Answer<'a> {
        self.registers.get(self.base + usize::from(register)).copied().ok_or(PLACE)
    }

    #[inline(always)]
    fn set(&mut self, register: u8, value: &'a Value) -> Answer<'a> {
        *self.registers.get_mut(self.base + usize::from(register)).ok_or(PLACE)? = value;
        Ok(value)
    }

    #[inline(always)]
    fn literal(&self, literal: u16) -> Answer<'a> {
        self.of.code.program.literals.get(usize::from(literal)).ok_or(PLACE)
    }
}
