//! Checks JSON against the published schemas. Knows the words that they use and refuses all others, so that no rule of a
//! schema is passed over in silence.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses a part; a test may panic"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder of the schemas.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verifier/schema")
}

/// A schema by the name of its file.
pub fn load(file: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What was met: every property that a value had, and every one that a schema has.
#[derive(Default)]
pub struct Seen {
    /// `file#path` of properties that were produced.
    pub produced: BTreeSet<String>,
}

/// Checks a value; the errors are paths with what is wrong.
pub fn check(file: &str, value: &Value, seen: &mut Seen) -> Vec<String> {
    let mut errors = Vec::new();
    Checker { file: file.to_owned(), seen, errors: &mut errors }.check(&load(file), value, "");
    errors
}

struct Checker<'a> {
    file: String,
    seen: &'a mut Seen,
    errors: &'a mut Vec<String>,
}

const WORDS: [&str; 11] = [
    "$schema",
    "$ref",
    "title",
    "description",
    "type",
    "required",
    "properties",
    "additionalProperties",
    "pattern",
    "enum",
    "items",
];

impl Checker<'_> {
    fn check(&mut self, schema: &Value, value: &Value, path: &str) {
        let words = schema.as_object().unwrap_or_else(|| panic!("{}: {path} is no schema", self.file));
        for word in words.keys() {
            assert!(
                WORDS.contains(&word.as_str()),
                "{}: {path} uses {word}, which is not checked",
                self.file
            );
        }
        if let Some(file) = schema["$ref"].as_str() {
            let target = load(file);
            Checker { file: file.to_owned(), seen: self.seen, errors: self.errors }.check(&target, value, "");
            return;
        }
        if let Some(kind) = schema.get("type")
            && !is(kind, value)
        {
            self.errors.push(format!("{}#{path}: {value} is not of type {kind}", self.file));
            return;
        }
        if let Some(allowed) = schema.get("enum")
            && !allowed.as_array().unwrap().contains(value)
        {
            self.errors.push(format!("{}#{path}: {value} is not among {allowed}", self.file));
        }
        if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
            && !matches(pattern, text)
        {
            self.errors.push(format!("{}#{path}: {text:?} does not match {pattern}", self.file));
        }
        if let Some(members) = value.as_object() {
            self.check_members(schema, members, path);
        }
        if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
            for value in values {
                self.check(items, value, &format!("{path}[]"));
            }
        }
    }

    fn check_members(&mut self, schema: &Value, members: &serde_json::Map<String, Value>, path: &str) {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for name in required.filter(|name| !members.contains_key(*name)) {
            self.errors.push(format!("{}#{path}: {name} is missing", self.file));
        }
        let Some(properties) = schema["properties"].as_object() else { return };
        assert_eq!(schema["additionalProperties"], false, "{}#{path} is open", self.file);
        for (name, value) in members {
            let path = format!("{path}/{name}");
            match properties.get(name) {
                None => self.errors.push(format!("{}#{path} is not in the schema", self.file)),
                Some(schema) => {
                    self.seen.produced.insert(format!("{}#{path}", self.file));
                    self.check(schema, value, &path);
                }
            }
        }
    }
}

fn is(kind: &Value, value: &Value) -> bool {
    if let Some(kinds) = kind.as_array() {
        return kinds.iter().any(|kind| is(kind, value));
    }
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("type {other} is not known"),
    }
}

/// Patterns of the form `^(class count)*$`: a class in brackets or one literal character, then nothing, `{n}`, `{m,n}`, `*` or `+`.
fn matches(pattern: &str, text: &str) -> bool {
    let inner = pattern
        .strip_prefix('^')
        .and_then(|p| p.strip_suffix('$'))
        .unwrap_or_else(|| panic!("{pattern} is not anchored"));
    let mut rest = inner;
    let mut left: Vec<char> = text.chars().rev().collect();
    while !rest.is_empty() {
        let (class, after): (Vec<char>, &str) = match rest.strip_prefix('[') {
            Some(body) => {
                let (class, after) = body.split_once(']').unwrap();
                (class.chars().collect(), after)
            }
            None => (vec![rest.chars().next().unwrap()], &rest[1..]),
        };
        let (least, most, after) = count(after);
        let mut taken = 0;
        while taken < most && left.last().is_some_and(|c| in_class(&class, *c)) {
            left.pop();
            taken += 1;
        }
        if taken < least {
            return false;
        }
        rest = after;
    }
    left.is_empty()
}

fn count(text: &str) -> (usize, usize, &str) {
    if let Some(body) = text.strip_prefix('{') {
        let (numbers, after) = body.split_once('}').unwrap();
        let (least, most) = numbers.split_once(',').unwrap_or((numbers, numbers));
        return (least.parse().unwrap(), most.parse().unwrap(), after);
    }
    match text.chars().next() {
        Some('*') => (0, usize::MAX, &text[1..]),
        Some('+') => (1, usize::MAX, &text[1..]),
        _ => (1, 1, text),
    }
}

fn in_class(class: &[char], c: char) -> bool {
    let ranges = class.windows(3).any(|window| window[1] == '-' && (window[0]..=window[2]).contains(&c));
    ranges || class.contains(&c)
}

/// Paths of all properties of a schema, with whether each is required.
pub fn properties(file: &str) -> Vec<(String, bool)> {
    fn walk(file: &str, schema: &Value, path: &str, out: &mut Vec<(String, bool)>) {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for name in &required {
            assert!(
                schema["properties"].get(*name).is_some(),
                "{file}#{path}: {name} is required and unknown"
            );
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}/{name}");
            out.push((format!("{file}#{path}"), required.contains(&name.as_str())));
            let described = property["description"].as_str().is_some_and(|text| text.ends_with('.'));
            assert!(described || property.get("$ref").is_some(), "{file}#{path} has no description");
            walk(file, property, &path, out);
        }
        if let Some(items) = schema.get("items") {
            walk(file, items, &format!("{path}[]"), out);
        }
    }
    let mut out = Vec::new();
    walk(file, &load(file), "", &mut out);
    out
}

#[test]
fn the_checker_finds_what_is_wrong() {
    assert!(
        matches("^[0-9a-f]{4}$", "00ff")
            && !matches("^[0-9a-f]{4}$", "00fg")
            && !matches("^[0-9a-f]{4}$", "00f")
    );
    assert!(matches("^[A-Za-z0-9+/]*={0,2}$", "ab+/==") && !matches("^[A-Za-z0-9+/]*={0,2}$", "a==="));
    assert!(matches("^[0-9]+$", "1") && !matches("^[0-9]+$", "") && !matches("^[0-9]+$", "1x"));
    let mut seen = Seen::default();
    let good = serde_json::json!({"svn": "1"});
    assert!(check("sampledevice.json", &good, &mut seen).is_empty());
    for bad in [
        serde_json::json!({}),
        serde_json::json!({"svn": 1}),
        serde_json::json!({"svn": "1", "x": 1}),
        serde_json::json!([]),
    ] {
        assert_eq!(check("sampledevice.json", &bad, &mut seen).len(), 1, "{bad}");
    }
}
