//! JSON read strictly: no member twice, no deep nesting, no member that nobody knows. Errors name the member.
//!
//! Two readers that take different ones of two equal members see different documents (RFC 8259, section 4), which is how
//! checks are got round; and a member that is silently dropped is a mistake that nobody hears of. What a member holds that
//! is documented to hold anything (evidence, `extra-params`) is free, but for duplicates and depth.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use thiserror::Error;

/// Deepest nesting that is read. Real evidence has 6 levels.
pub const MAX_DEPTH: usize = 32;

/// Why a body was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum BodyError {
    /// Not JSON, not UTF-8, a member twice, or too deep; the text says where.
    #[error("the body is not JSON that is read here: {0}")]
    Json(String),
    /// A member that is not there.
    #[error("member {0} is missing")]
    Missing(String),
    /// A member that nobody knows.
    #[error("member {member} is not known here, known are {known}")]
    Unknown {
        /// Its path.
        member: String,
        /// What there may be.
        known: String,
    },
    /// A member of another kind, or with a value that does not go.
    #[error("member {member} is not understood: {why}")]
    Value {
        /// Its path.
        member: String,
        /// What is wrong.
        why: String,
    },
}

impl BodyError {
    /// The member that is wrong, where one is.
    #[must_use]
    pub fn member(&self) -> Option<&str> {
        match self {
            Self::Json(_) => None,
            Self::Missing(member) | Self::Unknown { member, .. } | Self::Value { member, .. } => Some(member),
        }
    }

    /// A wrong value.
    pub fn value(member: &str, why: impl Into<String>) -> Self {
        Self::Value { member: member.to_owned(), why: why.into() }
    }
}

/// Reads a whole document.
///
/// # Errors
/// [`BodyError::Json`].
pub fn parse(bytes: &[u8]) -> Result<Value, BodyError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let json = |e: serde_json::Error| BodyError::Json(e.to_string());
    let value = Strict { depth: 0 }.deserialize(&mut reader).map_err(json)?;
    reader.end().map_err(json)?;
    Ok(value)
}

/// One value at some depth.
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("it is nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(self.deeper()?)?;
            if all.contains_key(&name) {
                let name: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format_args!("member {name:?} is there twice")));
            }
            all.insert(name, value);
        }
        Ok(Value::Object(all))
    }
}

/// An object whose members are taken out one by one; what is left over at the end is unknown.
#[derive(Debug)]
pub struct Members {
    path: String,
    all: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Members {
    /// The object of `value`, which is the member `path` (empty for the document).
    ///
    /// # Errors
    /// When it is no object.
    pub fn of(path: &str, value: Value) -> Result<Self, BodyError> {
        match value {
            Value::Object(all) => Ok(Self { path: path.to_owned(), all, known: Vec::new() }),
            other if path.is_empty() => {
                Err(BodyError::Json(format!("expected an object, seen {}", kind(&other))))
            }
            other => Err(BodyError::value(path, format!("expected an object, seen {}", kind(&other)))),
        }
    }

    /// Whether a member is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// Path of a member, for errors.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A member that may be absent; `null` counts as absent.
    pub fn optional(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.all.remove(name).filter(|value| !value.is_null())
    }

    /// A member that must be there; it may be `null`.
    ///
    /// # Errors
    /// [`BodyError::Missing`].
    pub fn required(&mut self, name: &'static str) -> Result<Value, BodyError> {
        self.known.push(name);
        self.all.remove(name).ok_or_else(|| BodyError::Missing(self.path(name)))
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// When it is missing or no text.
    pub fn text(&mut self, name: &'static str) -> Result<String, BodyError> {
        match self.required(name)? {
            Value::String(text) => Ok(text),
            other => {
                Err(BodyError::value(&self.path(name), format!("expected a text, seen {}", kind(&other))))
            }
        }
    }

    /// The end: nothing may be left.
    ///
    /// # Errors
    /// [`BodyError::Unknown`] for the first that is.
    pub fn end(self) -> Result<(), BodyError> {
        let Some(name) = self.all.keys().next() else { return Ok(()) };
        let name: String = name.chars().take(64).filter(|c| !c.is_control()).collect();
        Err(BodyError::Unknown { member: self.path(&name), known: self.known.join(", ") })
    }
}

/// What a value is, in words.
#[must_use]
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_is_plain_json_is_read_as_it_is() {
        for text in [r#"{"a":[1,-1,1.5,true,null,"x\u00e9",{"b":{}}]}"#, "[]", "\"x\"", " 1 "] {
            assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn duplicates_depth_and_what_is_no_json_are_refused() {
        let why = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        assert!(why(br#"{"a":1,"a":1}"#).contains("member \"a\" is there twice"));
        assert!(why(br#"{"x":[{"b":1,"c":2,"b":3}]}"#).contains("\"b\" is there twice"));
        // The same name in another spelling.
        assert!(why(br#"{"a":1,"\u0061":2}"#).contains("twice"));
        let nested = |levels: usize| [vec![b'['; levels], vec![b']'; levels]].concat();
        parse(&nested(MAX_DEPTH)).unwrap();
        assert!(why(&nested(MAX_DEPTH + 2)).contains("deeper than 32"));
        assert!(why(&nested(1 << 20)).len() < 200);
        for bytes in
            [&b""[..], b"{", b"{}x", b"{'a':1}", b"\xff\xfe", b"{\"a\":\"\xc3\x28\"}", b"NaN", b"1e999"]
        {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn members_are_named() {
        let members = || Members::of("a", json!({"b": 1, "c": null, "d\u{7}": 2})).unwrap();
        assert_eq!(
            members().text("b").unwrap_err().to_string(),
            "member a.b is not understood: expected a text, seen a number"
        );
        assert_eq!(members().required("x").unwrap_err(), BodyError::Missing("a.x".to_owned()));
        let mut all = members();
        assert!(all.optional("b").is_some() && all.optional("c").is_none());
        let error = all.end().unwrap_err();
        assert_eq!(
            (error.member(), error.to_string().as_str()),
            (Some("a.d"), "member a.d is not known here, known are b, c")
        );
        assert!(
            Members::of("", json!([])).unwrap_err().to_string().contains("expected an object, seen an array")
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let strict = parse(&bytes);
            if let Ok(value) = strict {
                prop_assert_eq!(value, serde_json::from_slice::<Value>(&bytes).unwrap());
            }
        }
    }
}
