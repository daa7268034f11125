//! Reading an object field by field, with the path of each: what was not asked for is told, what is of another type is an error.
//!
//! By hand and not by serde's derivation, because a manifest has more fields than matter here, newer Kubernetes versions add some,
//! and a reader that panics or stops at them is of no use; one that passes them over in silence is worse.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::error::{ManifestError, Warning};

/// Where warnings are gathered.
pub(crate) type Warnings = RefCell<Vec<Warning>>;

/// An object of a manifest.
pub(crate) struct Fields<'a> {
    map: Option<&'a Map<String, Value>>,
    path: String,
    asked: RefCell<BTreeSet<&'a str>>,
    warnings: &'a Warnings,
}

type Read<T> = Result<T, ManifestError>;

impl<'a> Fields<'a> {
    /// The fields of `value`, which is an object, or null: then none.
    pub(crate) fn of(value: &'a Value, path: String, warnings: &'a Warnings) -> Read<Self> {
        let map = match value {
            Value::Object(map) => Some(map),
            Value::Null => None,
            other => return Err(wrong(&path, "an object", other)),
        };
        Ok(Self { map, path, asked: RefCell::default(), warnings })
    }

    /// Path of a field of this object.
    pub(crate) fn at(&self, key: &str) -> String {
        if self.path.is_empty() || self.path.ends_with(": ") {
            return format!("{}{key}", self.path);
        }
        format!("{}.{key}", self.path)
    }

    /// Path of this object.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Where this object's warnings go.
    pub(crate) fn warnings(&self) -> &'a Warnings {
        self.warnings
    }

    /// Tell something about a field.
    pub(crate) fn warn(&self, key: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Warning { path: self.at(key), message: message.into() });
    }

    /// The value of a field; none when it is null, as in Kubernetes.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        let (name, value) = self.map?.get_key_value(key)?;
        self.asked.borrow_mut().insert(name);
        (!value.is_null()).then_some(value)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Read<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(&self.at(key), expected, value))
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Read<Option<String>> {
        self.typed(key, "a text (numbers and booleans in quotes)", |v| v.as_str().map(str::to_owned))
    }

    /// A text that must be there.
    pub(crate) fn needed(&self, key: &str) -> Read<String> {
        self.text(key)?.ok_or_else(|| ManifestError::Missing { path: self.at(key) })
    }

    /// A truth value.
    pub(crate) fn boolean(&self, key: &str) -> Read<Option<bool>> {
        let read = |value: &Value| match value {
            Value::Bool(value) => Some(*value),
            Value::String(word) => match word.to_ascii_lowercase().as_str() {
                "yes" | "on" | "y" => Some(true),
                "no" | "off" | "n" => Some(false),
                _ => None,
            },
            _ => None,
        };
        self.typed(key, "true or false", read)
    }

    /// A number of a user or group.
    pub(crate) fn id(&self, key: &str) -> Read<Option<u32>> {
        self.typed(key, "a number from 0 to 4294967295", id)
    }

    /// Numbers of groups.
    pub(crate) fn ids(&self, key: &str) -> Read<Vec<u32>> {
        let expected = "a list of numbers from 0 to 4294967295";
        let read = |v: &Value| v.as_array()?.iter().map(id).collect();
        Ok(self.typed(key, expected, read)?.unwrap_or_default())
    }

    /// A list of texts; none where there is none (which is not the empty list).
    pub(crate) fn texts(&self, key: &str) -> Read<Option<Vec<String>>> {
        let read = |v: &Value| v.as_array()?.iter().map(|i| i.as_str().map(str::to_owned)).collect();
        self.typed(key, "a list of texts (numbers and booleans in quotes)", read)
    }

    /// An object from names to texts.
    pub(crate) fn map_of_texts(&self, key: &str) -> Read<BTreeMap<String, String>> {
        let pair = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
        let read = |v: &Value| v.as_object()?.iter().map(pair).collect();
        Ok(self.typed(key, "an object of texts (numbers and booleans in quotes)", read)?.unwrap_or_default())
    }

    /// An object from names to quantities, which are texts or numbers.
    pub(crate) fn quantities(&self, key: &str) -> Read<BTreeMap<String, String>> {
        let read =
            |v: &Value| v.as_object()?.iter().map(|(k, v)| Some((k.clone(), quantity_text(v)?))).collect();
        Ok(self.typed(key, "an object of quantities", read)?.unwrap_or_default())
    }

    /// A quantity: a text or a number.
    pub(crate) fn quantity(&self, key: &str) -> Read<Option<String>> {
        self.typed(key, "a quantity", quantity_text)
    }

    /// An object; without fields where there is none.
    pub(crate) fn object(&self, key: &str) -> Read<Self> {
        Fields::of(self.value(key).unwrap_or(&Value::Null), self.at(key), self.warnings)
    }

    /// An object, where there is one.
    pub(crate) fn maybe(&self, key: &str) -> Read<Option<Self>> {
        self.value(key).map(|value| Fields::of(value, self.at(key), self.warnings)).transpose()
    }

    /// A list of objects.
    pub(crate) fn objects(&self, key: &str) -> Read<Vec<Self>> {
        let list = self.typed(key, "a list of objects", Value::as_array)?;
        let each = |(i, value)| Fields::of(value, format!("{}[{i}]", self.at(key)), self.warnings);
        list.into_iter().flatten().enumerate().map(each).collect()
    }

    /// Passes over fields that decide nothing in a guest.
    pub(crate) fn ignore(&self, keys: &[&str]) {
        for key in keys {
            if let Some((name, _)) = self.map.and_then(|map| map.get_key_value(*key)) {
                self.asked.borrow_mut().insert(name);
            }
        }
    }

    /// Tells of every field that nobody asked for or passed over.
    pub(crate) fn done(self) {
        let asked = self.asked.take();
        for name in self.map.into_iter().flatten().map(|(name, _)| name) {
            if !asked.contains(name.as_str()) {
                self.warn(name, "this field is not known here: it has no part in the policy");
            }
        }
    }
}

fn quantity_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn wrong(path: &str, expected: &'static str, seen: &Value) -> ManifestError {
    let seen = match seen {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => other.to_string().chars().take(80).collect(),
    };
    ManifestError::Type { path: path.to_owned(), expected, seen }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_nobody_asked_for_is_told_with_its_path() {
        let warnings = Warnings::default();
        let value = json!({"a": "x", "new": 1, "old": 2, "list": [{"b": true, "c": 1}]});
        let fields = Fields::of(&value, "spec".to_owned(), &warnings).unwrap();
        assert_eq!(fields.text("a").unwrap().unwrap(), "x");
        fields.ignore(&["old", "absent"]);
        for item in fields.objects("list").unwrap() {
            assert_eq!(item.boolean("b").unwrap(), Some(true));
            item.done();
        }
        fields.done();
        let paths: Vec<String> = warnings.take().into_iter().map(|w| w.path).collect();
        assert_eq!(paths, ["spec.list[0].c", "spec.new"]);
    }

    #[test]
    fn another_type_is_an_error_with_its_path() {
        let warnings = Warnings::default();
        let value = json!({"a": 5, "b": ["x", 1], "c": {"d": true}, "e": -1, "n": null});
        let fields = Fields::of(&value, "spec".to_owned(), &warnings).unwrap();
        let text = |error: ManifestError| error.to_string();
        assert_eq!(
            text(fields.text("a").unwrap_err()),
            "spec.a: expected a text (numbers and booleans in quotes), seen 5"
        );
        assert!(text(fields.texts("b").unwrap_err()).contains("seen a list"));
        assert!(text(fields.map_of_texts("c").unwrap_err()).contains("spec.c"));
        assert!(text(fields.id("e").unwrap_err()).contains("seen -1"));
        assert_eq!(text(fields.needed("z").unwrap_err()), "spec.z is missing");
        assert_eq!(fields.text("n").unwrap(), None);
        assert!(Fields::of(&json!([]), String::new(), &warnings).is_err());
    }
}
