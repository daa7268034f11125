//! Where an evaluation keeps the values that it makes.
//!
//! Registers hold references: into the request, the policy's data, its literals, or here. So nothing is copied or counted when a register
//! is read or written; all goes when the evaluation is over.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::{Arc, LazyLock};

use regorus::Value;
use regorus::value::{Object, Set};

use super::Undecided;

/// Values of the first block, which is on the stack; each block has twice as many as the one before it.
const FIRST: usize = 128;
/// Blocks behind it at most: a hundred thousand values.
const BLOCKS: usize = 10;

/// What an item that is not there is.
pub(super) static UNDEFINED: Value = Value::Undefined;
static TRUE: Value = Value::Bool(true);
static FALSE: Value = Value::Bool(false);
static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::from(""));
static NUMBERS: LazyLock<Vec<Value>> = LazyLock::new(|| (0..256_usize).map(Value::from).collect());

/// Values that live as long as this does.
pub(super) struct Arena {
    first: [OnceCell<Value>; FIRST],
    blocks: [OnceCell<Box<[OnceCell<Value>]>>; BLOCKS],
    used: Cell<usize>,
    known: Arc<Keys>,
    /// Keys of objects, which rules ask for again and again: where the object is, and which of the values here they are.
    keys: RefCell<Vec<(usize, usize)>>,
    /// The list that was sorted last and what came of it: which of the values here they are. A process' sets of capabilities mostly are the same.
    sorted: Cell<Option<(usize, usize)>>,
}

/// Keys of the objects in a policy's data, by where these are. They are sets, and making one takes longer than looking at it.
#[derive(Default)]
pub(super) struct Keys(Vec<(usize, Value)>);

impl Keys {
    /// Of all objects within `values`, which must stay where they are.
    pub(super) fn within<'a>(values: impl Iterator<Item = &'a Value>) -> Self {
        let mut found = Vec::new();
        let mut rest: Vec<&Value> = values.collect();
        while let Some(value) = rest.pop() {
            match value {
                Value::Object(members) => {
                    found.push((std::ptr::from_ref::<Object>(members).addr(), set_of_keys(members)));
                    rest.extend(members.values());
                }
                Value::Array(items) => rest.extend(items.iter()),
                _ => {}
            }
        }
        found.sort_by_key(|(place, _)| *place);
        Self(found)
    }

    pub(super) fn of(&self, of: &Object) -> Option<&Value> {
        let place = std::ptr::from_ref(of).addr();
        let at = self.0.binary_search_by_key(&place, |(known, _)| *known).ok()?;
        self.0.get(at).map(|(_, keys)| keys)
    }
}

fn set_of_keys(of: &Object) -> Value {
    of.keys().cloned().collect::<Set>().into_value()
}

impl Arena {
    pub(super) fn new(known: Arc<Keys>) -> Self {
        Self {
            known,
            first: [const { OnceCell::new() }; FIRST],
            blocks: Default::default(),
            used: Cell::new(0),
            keys: RefCell::default(),
            sorted: Cell::default(),
        }
    }

    /// Keeps a value.
    pub(super) fn keep(&self, value: Value) -> Result<&Value, Undecided> {
        let used = self.used.get();
        self.used.set(used + 1);
        Ok(self.slot(used)?.get_or_init(|| value))
    }

    fn slot(&self, number: usize) -> Result<&OnceCell<Value>, Undecided> {
        self.first.get(number).map_or_else(|| self.behind(number), Ok)
    }

    /// The keys of an object. It lives as long as this does: no other comes to where it is.
    pub(super) fn keys<'a>(&'a self, of: &'a Object) -> Result<&'a Value, Undecided> {
        if let Some(keys) = self.known.of(of) {
            return Ok(keys);
        }
        let place = std::ptr::from_ref(of).addr();
        let known = self.keys.borrow().iter().find(|(known, _)| *known == place).map(|(_, number)| *number);
        if let Some(value) = known.and_then(|number| self.slot(number).ok()?.get()) {
            return Ok(value);
        }
        self.keys.borrow_mut().push((place, self.used.get()));
        self.keep(set_of_keys(of))
    }

    /// A list's items in their order.
    pub(super) fn sorted<'a>(&'a self, whole: &'a Value) -> Result<&'a Value, Undecided> {
        let Value::Array(items) = whole else { return Err(Undecided("what is no list is not sorted")) };
        if items.as_slice().is_sorted() {
            return Ok(whole);
        }
        let value = |number| self.slot(number).ok().and_then(OnceCell::get);
        if let Some((before, after)) = self.sorted.get()
            && value(before) == Some(whole)
            && let Some(after) = value(after)
        {
            return Ok(after);
        }
        let before = self.used.get();
        self.keep(whole.clone())?;
        let mut items = items.to_vec();
        items.sort();
        self.sorted.set(Some((before, self.used.get())));
        self.keep(Value::from(items))
    }

    #[cold]
    fn behind(&self, used: usize) -> Result<&OnceCell<Value>, Undecided> {
        let number = (used / FIRST + 1).ilog2();
        let size = FIRST << number;
        let block = number.checked_sub(1).and_then(|number| self.blocks.get(number as usize));
        let block = block.ok_or(Undecided("too many values"))?;
        let block = block.get_or_init(|| (0..size).map(|_| OnceCell::new()).collect());
        block.get(used + FIRST - size).ok_or(Undecided("a place that is not there"))
    }

    /// A text.
    pub(super) fn text(&self, text: &str) -> Result<&Value, Undecided> {
        if text.is_empty() { Ok(&EMPTY) } else { self.keep(Value::from(text)) }
    }

    /// A number, of which the small ones are there already.
    pub(super) fn number(&self, number: usize) -> Result<&Value, Undecided> {
        match NUMBERS.get(number) {
            Some(value) => Ok(value),
            None => self.keep(Value::from(number)),
        }
    }
}

pub(super) fn is_undefined(value: &Value) -> bool {
    matches!(value, Value::Undefined)
}

pub(super) fn truth(value: bool) -> &'static Value {
    if value { &TRUE } else { &FALSE }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn values_stay_where_they_are_and_their_number_is_limited() {
        let arena = Arena::new(Arc::default());
        let kept: Vec<&Value> = (0..3000_usize).map(|n| arena.keep(Value::from(n)).unwrap()).collect();
        assert!(kept.iter().enumerate().all(|(n, value)| **value == Value::from(n)));
        assert_eq!(
            (arena.number(7).unwrap(), arena.number(1 << 20).unwrap()),
            (&Value::from(7), &Value::from(1 << 20))
        );
        let more = (0..1 << 20).take_while(|_| arena.keep(Value::Null).is_ok()).count();
        assert!(more < 1 << 18, "{more}");
    }
}
