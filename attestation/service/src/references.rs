//! Reference values: what they are, where they came from, and when they end.
//!
//! A record is Trustee's (version, name, value, expiration), with its origin besides. An expired value does not match, as if
//! it were not there (Trustee stores the expiration and does not look at it); whoever asks why is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use kata_cc_policy::engine::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Version of a record that Trustee writes.
const RECORD_VERSION: &str = "0.1.0";
/// Most characters of a name.
pub const MAX_NAME: usize = 255;
/// Most bytes of one value, as JSON.
pub const MAX_VALUE: usize = 256 << 10;
/// Most names.
pub const MAX_NAMES: usize = 10_000;

/// Why a reference value was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ReferenceError {
    /// The name.
    #[error("reference value name {0:?} must be 1 to {MAX_NAME} bytes without control characters")]
    Name(String),
    /// The value has no use: nothing is equal to it.
    #[error("value of {0} is or holds null, to which no claim is equal: delete the value instead")]
    Null(String),
    /// The value is too large.
    #[error("value of {name} has {bytes} bytes, at most {MAX_VALUE} are kept")]
    TooLarge {
        /// Name.
        name: String,
        /// How many.
        bytes: usize,
    },
    /// Too many names.
    #[error("there would be {0} reference values, at most {MAX_NAMES} are kept")]
    TooMany(usize),
    /// The time of expiry.
    #[error("expiration {0:?} is no time in RFC 3339, e.g. 2030-01-31T00:00:00Z")]
    Expiration(String),
    /// A signed message that is older than what is there.
    #[error("{name} was last set or deleted at {newer}, the message was signed at {signed}: it is a replay")]
    Replay {
        /// Name.
        name: String,
        /// When it changed.
        newer: String,
        /// When the message was signed.
        signed: String,
    },
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `rvps` (message of an administrator), `signed` (signed message), `manifest` (`kata-cc measure`), `in-toto`.
    pub kind: String,
    /// Name of the trusted key that signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// What it was taken from: the builder and subject of a provenance, the kernel of a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it was signed, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_at: Option<i64>,
}

impl Source {
    /// A message of an administrator.
    pub fn administrator() -> Self {
        Self { kind: "rvps".to_owned(), signer: None, detail: None, signed_at: None }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(signer) = &self.signer {
            write!(f, " by {signer}")?;
        }
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, " ({detail})"))
    }
}

/// One reference value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of the record.
    pub version: String,
    /// Name that policies ask for.
    pub name: String,
    /// A value, or an array of those that are good.
    pub value: Value,
    /// When it ends, RFC 3339; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    /// Where it came from.
    pub source: Source,
    /// Who registered it.
    pub registered_by: String,
    /// When, RFC 3339.
    pub registered_at: String,
}

/// Reads a time in RFC 3339 as seconds since 1970.
pub fn parse_time(text: &str) -> Result<i64, ReferenceError> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map(OffsetDateTime::unix_timestamp)
        .map_err(|_| ReferenceError::Expiration(text.chars().take(64).collect()))
}

/// Seconds since 1970 in RFC 3339.
pub fn format_time(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

/// Checks a name and a value as they are registered.
pub fn check(name: &str, value: &Value) -> Result<(), ReferenceError> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(ReferenceError::Name(name.chars().take(64).collect()));
    }
    if value.is_null() || value.as_array().is_some_and(|all| all.iter().any(Value::is_null)) {
        return Err(ReferenceError::Null(name.to_owned()));
    }
    let bytes = value.to_string().len();
    if bytes > MAX_VALUE {
        return Err(ReferenceError::TooLarge { name: name.to_owned(), bytes });
    }
    Ok(())
}

impl Record {
    /// A record as of now.
    pub fn new(name: &str, value: Value, expires: Option<i64>, source: Source, by: &str) -> Self {
        Self {
            version: RECORD_VERSION.to_owned(),
            name: name.to_owned(),
            value,
            expiration: expires.map(format_time),
            source,
            registered_by: by.to_owned(),
            registered_at: crate::now_rfc3339(),
        }
    }

    /// Reads what the store holds. Older versions stored the value alone.
    pub fn from_stored(name: &str, bytes: &[u8]) -> Self {
        if let Ok(record) = serde_json::from_slice::<Self>(bytes) {
            return record;
        }
        let value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
        let mut record = Self::new(name, value, None, Source::administrator(), "unknown");
        record.registered_at = String::new();
        record
    }

    /// When it ends, seconds since 1970. A time that cannot be read has passed.
    pub fn expires(&self) -> Option<i64> {
        self.expiration.as_deref().map(|text| parse_time(text).unwrap_or(0))
    }

    /// Whether it has ended.
    pub fn is_expired(&self, now: i64) -> bool {
        self.expires().is_some_and(|end| end <= now)
    }

    /// As the API shows it.
    pub fn describe(&self, now: i64) -> Value {
        let mut value = json!(self);
        value["expired"] = json!(self.is_expired(now));
        value
    }
}

/// The values that are in force for a while, in the form in which policies read them.
#[derive(Debug, Clone)]
pub struct InForce {
    /// From when, seconds since 1970.
    from: i64,
    /// Until when: the next expiry.
    until: i64,
    documents: Arc<BTreeMap<String, Document>>,
    /// `{"reference": {..}}`, for policies that were written for Trustee before `query_reference_value`.
    data: Document,
}

impl InForce {
    /// Those of `records` that have not ended at `now`.
    pub fn at(records: &BTreeMap<String, Record>, now: i64) -> Self {
        let valid = || records.values().filter(|record| !record.is_expired(now));
        let documents =
            valid().map(|record| (record.name.clone(), Document::from(record.value.clone()))).collect();
        let reference: serde_json::Map<_, _> =
            valid().map(|record| (record.name.clone(), record.value.clone())).collect();
        Self {
            from: now,
            until: valid().filter_map(Record::expires).min().unwrap_or(i64::MAX),
            documents: Arc::new(documents),
            data: Document::from(json!({"reference": reference})),
        }
    }

    /// Whether this is what is in force at `now`.
    pub fn holds_at(&self, now: i64) -> bool {
        (self.from..self.until).contains(&now)
    }

    /// Value by name.
    pub fn documents(&self) -> &Arc<BTreeMap<String, Document>> {
        &self.documents
    }

    /// All of them under `reference`.
    pub fn data(&self) -> &Document {
        &self.data
    }
}

/// What is known of a reference value that a comparison used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceUse {
    /// Name.
    pub name: String,
    /// `valid`, `expired` or `not-registered`.
    pub state: String,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// When it ends or ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
}

impl ReferenceUse {
    /// Of the value `name` at `now`.
    pub fn of(records: &BTreeMap<String, Record>, name: &str, now: i64) -> Self {
        let record = records.get(name);
        let state = match record {
            None => "not-registered",
            Some(record) if record.is_expired(now) => "expired",
            Some(_) => "valid",
        };
        Self {
            name: name.to_owned(),
            state: state.to_owned(),
            source: record.map(|record| record.source.clone()),
            expiration: record.and_then(|record| record.expiration.clone()),
        }
    }
}

/// `known` (one value, several, or none) with those of `more` that it has not.
pub fn union(known: Option<&Value>, more: &Value) -> Value {
    let list = |value: Option<&Value>| match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(all)) => all.clone(),
        Some(one) => vec![one.clone()],
    };
    let mut all = list(known);
    for value in list(Some(more)) {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    Value::Array(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, value: Value, expires: Option<i64>) -> (String, Record) {
        (name.to_owned(), Record::new(name, value, expires, Source::administrator(), "me"))
    }

    #[test]
    fn expired_values_are_not_in_force() {
        let records =
            BTreeMap::from([record("a", json!([1]), Some(2000)), record("b", json!("x"), Some(1000))]);
        let early = InForce::at(&records, 500);
        assert_eq!(early.documents().len(), 2);
        assert!(early.holds_at(999) && !early.holds_at(1000) && !early.holds_at(499));
        let late = InForce::at(&records, 1000);
        assert_eq!(late.documents().keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(late.documents()["a"], Document::from(json!([1])));
        assert!(late.holds_at(1999) && !late.holds_at(2000));
        assert_eq!(ReferenceUse::of(&records, "b", 1000).state, "expired");
        assert_eq!(ReferenceUse::of(&records, "a", 1000).state, "valid");
        assert_eq!(ReferenceUse::of(&records, "c", 1000).state, "not-registered");
    }

    #[test]
    fn records_survive_the_store_and_bare_values_are_read() {
        let (_, new) = record("a", json!(["x"]), Some(1_900_000_000));
        assert_eq!(Record::from_stored("a", &serde_json::to_vec(&new).unwrap()), new);
        assert_eq!(new.expiration.as_deref(), Some("2030-03-17T17:46:40Z"));
        let old = Record::from_stored("a", b"[1, 2]");
        assert_eq!((old.value.clone(), old.expires()), (json!([1, 2]), None));
        let mut odd = new;
        odd.expiration = Some("never".to_owned());
        assert!(odd.is_expired(0), "what cannot be read has ended");
    }

    #[test]
    fn only_what_can_be_equal_to_a_claim_is_kept() {
        for value in [json!(1), json!("x"), json!(true), json!(["a", 1]), json!([]), json!({"a": 1})] {
            check("n", &value).unwrap();
        }
        for value in [json!(null), json!(["a", null])] {
            assert!(matches!(check("n", &value), Err(ReferenceError::Null(_))), "{value}");
        }
        assert!(check("", &json!(1)).is_err() && check("a\nb", &json!(1)).is_err());
        assert!(check(&"x".repeat(256), &json!(1)).is_err());
        assert!(matches!(check("n", &json!("x".repeat(MAX_VALUE))), Err(ReferenceError::TooLarge { .. })));
    }

    #[test]
    fn values_are_added_once() {
        assert_eq!(union(None, &json!("a")), json!(["a"]));
        assert_eq!(union(Some(&json!("a")), &json!(["b", "a"])), json!(["a", "b"]));
    }
}
