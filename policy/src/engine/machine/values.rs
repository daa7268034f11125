//! Values in the ways that an evaluation looks at them most: quicker than regorus' own, and the same.

use std::cmp::Ordering;

use regorus::value::Set;
use regorus::{Rc, Value};

use super::arena::UNDEFINED;

/// Most members that are gone through one by one: names mostly differ in length, which is quicker seen than their order.
const FEW: usize = 24;

/// What a value has under a key.
pub(super) fn member<'a>(of: &'a Value, key: &Value) -> &'a Value {
    match (of, key) {
        (Value::Object(members), Value::String(name)) if members.len() <= FEW => {
            let (length, first) = (name.len(), name.as_bytes().first());
            let is_it = |key: &Value| matches!(key, Value::String(key) if key.len() == length && key.as_bytes().first() == first && key == name);
            members.iter_sorted().find(|(key, _)| is_it(key)).map_or(&UNDEFINED, |(_, value)| value)
        }
        _ => &of[key],
    }
}

/// Undefined, or false.
#[inline(always)]
pub(super) fn is_false(value: &Value) -> bool {
    matches!(value, Value::Undefined | Value::Bool(false))
}

/// How two values are ordered; many are one and the same.
fn order(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::String(left), Value::String(right)) if Rc::ptr_eq(left, right) => Ordering::Equal,
        (Value::Object(left), Value::Object(right)) if Rc::ptr_eq(left, right) => Ordering::Equal,
        (Value::Array(left), Value::Array(right)) if Rc::ptr_eq(left, right) => Ordering::Equal,
        _ => left.cmp(right),
    }
}

/// What one set has and another has not.
pub(super) fn difference(left: &Set, right: &Set) -> Set {
    let mut others = right.iter_sorted().peekable();
    let is_other = |item: &Value| {
        loop {
            match others.peek().map(|other| order(other, item)) {
                Some(Ordering::Less) => drop(others.next()),
                Some(Ordering::Equal) => return true,
                _ => return false,
            }
        }
    };
    let mut is_other = is_other;
    left.iter_sorted().filter(|item| !is_other(item)).cloned().collect()
}

/// A set of characters.
pub(super) struct Characters<'a> {
    ascii: [bool; 128],
    all: &'a str,
}

impl<'a> Characters<'a> {
    pub(super) fn new(all: &'a str) -> Self {
        let mut ascii = [false; 128];
        for byte in all.bytes() {
            if let Some(has) = ascii.get_mut(usize::from(byte)) {
                *has = true;
            }
        }
        Self { ascii, all }
    }

    pub(super) fn has(&self, character: char) -> bool {
        let ascii = usize::try_from(u32::from(character)).ok().and_then(|code| self.ascii.get(code));
        ascii.copied().unwrap_or_else(|| self.all.contains(character))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3_i64..3).prop_map(Value::from),
            "[a-cö]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 32, 40, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_set(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(inner.clone(), inner, 0..40).prop_map(Value::from),
            ]
        })
    }

    fn sets() -> impl Strategy<Value = Set> {
        prop::collection::btree_set(values(), 0..8).prop_map(Set::from)
    }

    proptest! {
        #[test]
        fn members_are_those_of_regorus(of in values(), key in values()) {
            prop_assert_eq!(member(&of, &key), &of[&key]);
            if let Value::Object(members) = &of {
                for (key, value) in members.iter() {
                    prop_assert_eq!(member(&of, key), value);
                }
            }
        }

        #[test]
        fn differences_are_those_of_regorus(left in sets(), right in sets()) {
            prop_assert_eq!(difference(&left, &right), left.difference(&right));
            let both = left.union(&right);
            prop_assert_eq!(difference(&both, &right), both.difference(&right));
        }

        #[test]
        fn characters_are_those_of_a_text(all in "[a-zöü/.]{0,9}", one in "[a-zöü/.]") {
            for one in one.chars() {
                prop_assert_eq!(Characters::new(&all).has(one), all.contains(one));
            }
        }
    }
}
