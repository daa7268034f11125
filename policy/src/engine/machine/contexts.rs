//! Loops and comprehensions that an evaluation is in, the innermost last.
//!
//! A condition that does not hold ends a step of the innermost loop, or a comprehension that is in none.

use std::collections::btree_map::{BTreeMap, Entry};
use std::iter::Enumerate;
use std::sync::LazyLock;

use regorus::Value;
use regorus::rvm::instructions::{ComprehensionBeginParams, ComprehensionMode, LoopMode, LoopStartParams};
use regorus::value::{ArrayIter, Iter, Set};

use super::arena::{Arena, UNDEFINED, is_undefined, truth};
use super::{Answer, Undecided};

/// Collections without items.
pub(super) struct Nothing {
    pub(super) array: Value,
    pub(super) set: Value,
    pub(super) object: Value,
}

static NOTHING: LazyLock<Nothing> = LazyLock::new(|| Nothing {
    array: Value::new_array(),
    set: Value::new_set(),
    object: Value::new_object(),
});

pub(super) fn nothing() -> &'static Nothing {
    &NOTHING
}

/// What a loop has before it.
enum Items<'a> {
    Array(Enumerate<ArrayIter<'a>>),
    Set(<&'a Set as IntoIterator>::IntoIter),
    Object(Iter<'a>),
}

/// A loop.
pub(super) struct Loop<'a> {
    items: Items<'a>,
    mode: LoopMode,
    /// Whether a step has held.
    held: bool,
    key: u8,
    value: u8,
    result: u8,
    body: usize,
    end: usize,
}

/// A comprehension.
pub(super) struct Gather<'a> {
    mode: ComprehensionMode,
    items: Vec<&'a Value>,
    /// Of an object.
    keys: Vec<&'a Value>,
    result: u8,
    end: usize,
}

enum Context<'a> {
    Loop(Loop<'a>),
    Gather(Gather<'a>),
}

/// How an evaluation goes on: registers to be set, and the place of the next instruction.
pub(super) struct Step<'a> {
    pub(super) set: [Option<(u8, &'a Value)>; 2],
    pub(super) at: usize,
}

/// All that an evaluation is in.
#[derive(Default)]
pub(super) struct Contexts<'a>(Vec<Context<'a>>);

impl<'a> Contexts<'a> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Leaves those that are behind `length`.
    pub(super) fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// Begins a loop.
    pub(super) fn start(
        &mut self,
        params: &LoopStartParams,
        of: &'a Value,
        arena: &'a Arena,
    ) -> Result<Step<'a>, Undecided> {
        let (end, every) = (usize::from(params.loop_end), params.mode == LoopMode::Every);
        let (items, length) = match of {
            Value::Array(items) => (Items::Array(items.iter().enumerate()), items.len()),
            Value::Set(items) => (Items::Set(items.iter()), items.len()),
            Value::Object(members) => (Items::Object(members.iter_sorted()), members.len()),
            // Lists that are empty come as null as well. The interpreter fails at `some x in null` and not at `null[i]`, which are the same
            // instructions: the rules say of lists of the first kind that they are lists.
            Value::Undefined | Value::Null => {
                let result = if every { &UNDEFINED } else { truth(false) };
                return Ok(Step { set: [Some((params.result_reg, result)), None], at: end });
            }
            _ => return Err(Undecided("items of what is no collection")),
        };
        if length == 0 {
            return Ok(Step { set: [Some((params.result_reg, truth(every))), None], at: end });
        }
        self.0.push(Context::Loop(Loop {
            items,
            mode: params.mode,
            held: false,
            key: params.key_reg,
            value: params.value_reg,
            result: params.result_reg,
            body: usize::from(params.body_start),
            end,
        }));
        self.advance(arena)
    }

    /// The next step of the innermost context, which is a loop.
    fn advance(&mut self, arena: &'a Arena) -> Result<Step<'a>, Undecided> {
        let Some(Context::Loop(innermost)) = self.0.last_mut() else { return Err(Undecided("no loop")) };
        let item = match &mut innermost.items {
            Items::Array(items) => match items.next() {
                Some((n, value)) if innermost.key != innermost.value => Some((arena.number(n)?, value)),
                other => other.map(|(_, value)| (value, value)),
            },
            Items::Set(items) => items.next().map(|value| (value, value)),
            Items::Object(members) => members.next(),
        };
        if let Some((key, value)) = item {
            let set = [Some((innermost.key, key)), Some((innermost.value, value))];
            return Ok(Step { set, at: innermost.body });
        }
        let result = innermost.held || innermost.mode == LoopMode::Every;
        let step = Step { set: [Some((innermost.result, truth(result))), None], at: innermost.end };
        self.0.pop();
        Ok(step)
    }

    /// A step of the innermost loop has held.
    pub(super) fn held(&mut self, floor: usize, arena: &'a Arena) -> Result<Step<'a>, Undecided> {
        let inner = self.0.len() > floor;
        match self.0.last_mut() {
            Some(Context::Loop(innermost)) if inner => {
                innermost.held = true;
                if innermost.mode == LoopMode::Any {
                    let step = Step { set: [Some((innermost.result, truth(true))), None], at: innermost.end };
                    self.0.pop();
                    return Ok(step);
                }
                self.advance(arena)
            }
            _ => Err(Undecided("a step of no loop")),
        }
    }

    /// A condition does not hold; `None` where that is the whole body's.
    pub(super) fn failed(&mut self, floor: usize, arena: &'a Arena) -> Result<Option<Step<'a>>, Undecided> {
        if self.0.len() <= floor {
            return Ok(None);
        }
        match self.0.last() {
            Some(Context::Loop(innermost)) if innermost.mode == LoopMode::Every => {
                let step = Step { set: [Some((innermost.result, truth(false))), None], at: innermost.end };
                self.0.pop();
                Ok(Some(step))
            }
            Some(Context::Loop(_)) => self.advance(arena).map(Some),
            _ => self.gathered(floor, arena).map(Some),
        }
    }

    /// Begins a comprehension.
    pub(super) fn gather(&mut self, params: &ComprehensionBeginParams) -> Result<(), Undecided> {
        if params.collection_reg != params.result_reg {
            return Err(Undecided("a comprehension with items of its own"));
        }
        self.0.push(Context::Gather(Gather {
            mode: params.mode.clone(),
            items: Vec::new(),
            keys: Vec::new(),
            result: params.result_reg,
            end: usize::from(params.comprehension_end),
        }));
        Ok(())
    }

    /// Adds to the innermost comprehension.
    pub(super) fn add(
        &mut self,
        floor: usize,
        key: Option<&'a Value>,
        value: &'a Value,
    ) -> Result<(), Undecided> {
        let inner = self.0.get_mut(floor..).unwrap_or_default().iter_mut().rev();
        let gather = inner.into_iter().find_map(|context| match context {
            Context::Gather(gather) => Some(gather),
            Context::Loop(_) => None,
        });
        let gather = gather.ok_or(Undecided("no comprehension"))?;
        if is_undefined(value) || key.is_some_and(is_undefined) {
            return Err(Undecided("an item that is undefined"));
        }
        gather.items.push(value);
        match (&gather.mode, key) {
            (ComprehensionMode::Object, Some(key)) => gather.keys.push(key),
            (ComprehensionMode::Object, None) => return Err(Undecided("a member without a key")),
            _ => {}
        }
        Ok(())
    }

    /// Ends the innermost context, which is a comprehension.
    pub(super) fn gathered(&mut self, floor: usize, arena: &'a Arena) -> Result<Step<'a>, Undecided> {
        match self.0.pop() {
            Some(Context::Gather(gather)) if self.0.len() >= floor => {
                Ok(Step { set: [Some((gather.result, gather.value(arena)?)), None], at: gather.end })
            }
            _ => Err(Undecided("the end of no comprehension")),
        }
    }
}

impl<'a> Gather<'a> {
    fn value(&self, arena: &'a Arena) -> Answer<'a> {
        let items = self.items.iter().map(|value| (*value).clone());
        match self.mode {
            ComprehensionMode::Array if self.items.is_empty() => Ok(&nothing().array),
            ComprehensionMode::Set if self.items.is_empty() => Ok(&nothing().set),
            ComprehensionMode::Object if self.items.is_empty() => Ok(&nothing().object),
            ComprehensionMode::Array => arena.keep(Value::from(items.collect::<Vec<_>>())),
            ComprehensionMode::Set => arena.keep(items.collect::<Set>().into_value()),
            ComprehensionMode::Object => {
                let mut members = BTreeMap::new();
                for (key, value) in self.keys.iter().zip(items) {
                    match members.entry((*key).clone()) {
                        Entry::Vacant(place) => drop(place.insert(value)),
                        Entry::Occupied(place) if *place.get() == value => {}
                        Entry::Occupied(_) => {
                            return Err(Undecided("values of a key that contradict each other"));
                        }
                    }
                }
                arena.keep(Value::from(members))
            }
        }
    }
}
