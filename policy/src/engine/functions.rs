//! What a policy is given besides its text: documents in the interpreter's form, and functions that it may call.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use regorus::Value;
use serde::Deserialize as _;

/// A function of one argument that a policy may call besides the built-in ones: JSON in, JSON out,
/// `None` for undefined.
pub type Function = Arc<dyn Fn(&serde_json::Value) -> Option<serde_json::Value> + Send + Sync>;

/// A JSON document in the interpreter's own form: made once, cloned for the price of a reference count. What does not change
/// between evaluations (reference values) is kept like this.
#[derive(Clone, PartialEq, Eq)]
pub struct Document(pub(super) Value);

impl Document {
    /// Null.
    #[must_use]
    pub fn null() -> Self {
        Self(Value::Null)
    }

    /// As JSON; null where JSON has no such value.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.0).unwrap_or_default()
    }

    /// A member of an object; `None` when it has none of that name, or is no object.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Self> {
        match &self.0[name] {
            Value::Undefined => None,
            value => Some(Self(value.clone())),
        }
    }

    /// Whether this is the boolean `true`.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.0 == Value::Bool(true)
    }
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Document(..)")
    }
}

impl From<serde_json::Value> for Document {
    fn from(value: serde_json::Value) -> Self {
        Self(Value::from(value))
    }
}

impl From<&serde_json::Value> for Document {
    /// Without a copy of the JSON in between.
    fn from(value: &serde_json::Value) -> Self {
        Self(Value::deserialize(value).unwrap_or(Value::Undefined))
    }
}

/// A function of one text that a policy may call; `None` for undefined. As [`Function`], but without conversions.
pub type Lookup = Arc<dyn Fn(&str) -> Option<Document> + Send + Sync>;

/// What the interpreter calls.
pub(super) type Native = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

thread_local! {
    /// Functions of the evaluation that runs on this thread. The interpreter is prepared once, with stand-ins that look here:
    /// functions that were bound to it instead would have to be bound, and it prepared, for each evaluation.
    static FUNCTIONS: RefCell<BTreeMap<String, Native>> = const { RefCell::new(BTreeMap::new()) };
}

/// Functions are in force as long as this lives; those of an outer evaluation are then in force again.
pub(super) struct InForce(BTreeMap<String, Native>);

impl InForce {
    pub(super) fn new(functions: BTreeMap<String, Native>) -> Self {
        Self(FUNCTIONS.replace(functions))
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        FUNCTIONS.set(std::mem::take(&mut self.0));
    }
}

/// Stand-in of the function `name`.
pub(super) fn call(name: &str, arguments: &[Value]) -> Value {
    let function = FUNCTIONS.with_borrow(|functions| functions.get(name).cloned());
    match (function, arguments.first()) {
        (Some(function), Some(argument)) => function(argument),
        _ => Value::Undefined,
    }
}

pub(super) fn native(function: &Function) -> Native {
    let function = Arc::clone(function);
    Arc::new(move |argument| match serde_json::to_value(argument) {
        Ok(argument) => function(&argument).map_or(Value::Undefined, Value::from),
        Err(_) => Value::Undefined,
    })
}

pub(super) fn native_lookup(lookup: &Lookup) -> Native {
    let lookup = Arc::clone(lookup);
    Arc::new(move |argument| match argument {
        Value::String(text) => lookup(text).map_or(Value::Undefined, |document| document.0),
        _ => Value::Undefined,
    })
}
