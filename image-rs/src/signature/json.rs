//! JSON in which nothing is passed over: members that stand there twice are refused, and every fault names its path.
//!
//! A policy that two readers understand in two ways protects nothing, so containers-policy.json(5) refuses "unrecognized, duplicated or
//! otherwise invalid fields". serde_json alone would take the last of two members, and would not say where a fault is.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::error::PolicyError;

/// A JSON value; numbers are not told apart, since no policy has one.
#[derive(Debug)]
pub(super) enum Json {
    Null,
    Bool,
    Number,
    Text(String),
    List(Vec<Self>),
    Object(BTreeMap<String, Self>),
}

impl Json {
    /// Reads one value; anything after it is refused.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        serde_json::from_slice(bytes).map_err(|source| PolicyError::Json { source })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    fn other(&self, path: &str, expected: &str) -> PolicyError {
        PolicyError::at(path, self.kind(), expected)
    }

    pub(super) fn text(self, path: &str) -> Result<String, PolicyError> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(other.other(path, "a string")),
        }
    }

    pub(super) fn list(self, path: &str) -> Result<Vec<Self>, PolicyError> {
        match self {
            Self::List(list) if list.is_empty() => {
                Err(PolicyError::at(path, "an empty list", "at least one entry"))
            }
            Self::List(list) => Ok(list),
            other => Err(other.other(path, "a list")),
        }
    }

    pub(super) fn object(self, path: &str) -> Result<Members, PolicyError> {
        match self {
            Self::Object(left) => Ok(Members { path: path.to_owned(), left }),
            other => Err(other.other(path, "an object")),
        }
    }
}

/// Members of an object, taken one by one; what is left at the end is not known.
pub(super) struct Members {
    path: String,
    left: BTreeMap<String, Json>,
}

impl Members {
    /// The path of a member.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The path of the object.
    pub(super) fn here(&self) -> &str {
        &self.path
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Json> {
        self.left.remove(name)
    }

    /// All members that were not taken.
    pub(super) fn rest(self) -> BTreeMap<String, Json> {
        self.left
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, PolicyError> {
        let path = self.path(name);
        self.take(name).map(|value| value.text(&path)).transpose()
    }

    /// A string that must be there, and not be empty.
    pub(super) fn needed_text(&mut self, name: &str) -> Result<String, PolicyError> {
        match self.text(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            Some(_) => Err(PolicyError::at(&self.path(name), "an empty string", "a value")),
            None => Err(PolicyError::at(&self.path(name), "nothing", "a string")),
        }
    }

    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, PolicyError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(None) };
        let one = |(number, value): (usize, Json)| value.text(&format!("{path}[{number}]"));
        value.list(&path)?.into_iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
    }

    /// Refuses members that nobody took; `known` lists those that there can be.
    pub(super) fn finish(self, known: &str) -> Result<(), PolicyError> {
        match self.left.keys().next() {
            Some(name) => Err(PolicyError::at(&self.path(&cut(name)), "an unknown field", known)),
            None => Ok(()),
        }
    }
}

/// A text that others wrote, short enough for a message.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

struct Reader;

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Bool)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = from.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, value)) = from.next_entry::<String, Json>()? {
            if members.contains_key(&name) {
                return Err(de::Error::custom(format!("field {:?} is there twice", cut(&name))));
            }
            members.insert(name, value);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_is_there_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":2}"#, r#"[{"x":{"b":[],"b":[]}}]"#] {
            assert!(Json::parse(text.as_bytes()).unwrap_err().to_string().contains("is there twice"));
        }
        assert!(Json::parse(b"{} {}").is_err());
        assert!(Json::parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
