//! Cases beside the resource policy and beside attestation policies; those of agent policies are [`kata_cc_policy::replay`]'s.
//!
//! ```yaml
//! cases:                                   # resource/policy.test.yaml
//!   - name: the shop gets its key
//!     claims: {submods: {cpu0: {ear.status: affirming}}}
//!     resource: kbs:///shop/key/1          # kbs+plugin:///… for a plugin; query: {…}
//!     allow: true
//!   - name: but nobody's debug guest
//!     like: the shop gets its key
//!     set: {/submods/cpu0/ear.status: warning}
//!     deny: true
//! ```
//!
//! Of an attestation policy: `claims`, `reference_values` (over those of the bundle) and the `status` that is to come of them.

use std::collections::BTreeMap;

use kata_cc_policy::engine::Program;
use kata_cc_policy::manifest::yaml;
use kata_cc_policy::replay;
use serde::Deserialize;
use serde_json::{Value, json};

/// Most cases of a file.
const MAX_CASES: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    #[serde(default)]
    claims: Option<Value>,
    #[serde(default)]
    like: Option<String>,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    #[serde(default)]
    resource: Option<String>,
    #[serde(default)]
    query: BTreeMap<String, String>,
    #[serde(default)]
    allow: Option<bool>,
    #[serde(default)]
    deny: Option<bool>,
    #[serde(default)]
    reference_values: BTreeMap<String, Value>,
    #[serde(default)]
    status: Option<String>,
}

/// A question to the resource policy.
#[derive(Debug, Clone)]
pub(crate) struct ResourceCase {
    pub(crate) name: String,
    claims: Value,
    plugin: String,
    path: Vec<String>,
    query: BTreeMap<String, String>,
    allow: bool,
}

/// Claims for an attestation policy.
#[derive(Debug, Clone)]
pub(crate) struct AttestationCase {
    pub(crate) name: String,
    pub(crate) claims: Value,
    pub(crate) reference_values: BTreeMap<String, Value>,
    pub(crate) status: String,
}

/// All cases of a text with their claims; a `like`d one's are copied and changed.
fn read(text: &str) -> Result<Vec<(Raw, Value)>, String> {
    let mut all: Vec<(Raw, Value)> = Vec::new();
    for document in yaml::documents(text).map_err(|error| error.to_string())? {
        let list = document.get("cases").and_then(Value::as_array).cloned().unwrap_or_default();
        for value in list {
            let mut raw: Raw = serde_json::from_value(value).map_err(|error| format!("a case: {error}"))?;
            let wrong = |why: &str| format!("case {:?}: {why}", raw.name);
            let before = raw.like.as_ref().map(|like| {
                let found = all.iter().find(|(other, _)| other.name == *like);
                found.ok_or_else(|| wrong(&format!("there is no case {like:?} before it")))
            });
            let before = before.transpose()?;
            let mut claims = match (&raw.claims, before) {
                (Some(claims), _) => claims.clone(),
                (None, Some((_, claims))) => claims.clone(),
                (None, None) => return Err(wrong("it has no claims")),
            };
            for (pointer, value) in &raw.set {
                replay::set(&mut claims, pointer, value)
                    .ok_or_else(|| wrong(&format!("the claims have no {pointer}")))?;
            }
            if raw.resource.is_none() {
                raw.resource = before.and_then(|(other, _)| other.resource.clone());
            }
            all.push((raw, claims));
        }
    }
    if all.is_empty() {
        return Err("it has no cases".to_owned());
    }
    if all.len() > MAX_CASES {
        return Err(format!("it has more than {MAX_CASES} cases"));
    }
    Ok(all)
}

/// Plugin and path of a resource's address.
fn address(uri: &str) -> Option<(String, Vec<String>)> {
    let (scheme, path) = uri.split_once(":///")?;
    let plugin = if scheme == "kbs" { "resource" } else { scheme.strip_prefix("kbs+")? };
    Some((plugin.to_owned(), path.split('/').map(str::to_owned).collect()))
}

/// Cases of the resource policy.
pub(crate) fn resource(text: &str) -> Result<Vec<ResourceCase>, String> {
    let mut cases = Vec::new();
    for (raw, claims) in read(text)? {
        let wrong = |why: &str| format!("case {:?}: {why}", raw.name);
        if raw.status.is_some() || !raw.reference_values.is_empty() {
            return Err(wrong("status and reference_values are of attestation policies"));
        }
        let allow = match (raw.allow, raw.deny) {
            (Some(true), None) => true,
            (None, Some(true)) => false,
            _ => return Err(wrong("it needs either `allow: true` or `deny: true`")),
        };
        let uri = raw.resource.clone().ok_or_else(|| wrong("it names no resource"))?;
        let (plugin, path) = address(&uri).ok_or_else(|| {
            wrong(&format!("{uri:?} is no kbs:///repository/type/tag or kbs+plugin:///path"))
        })?;
        cases.push(ResourceCase { name: raw.name, claims, plugin, path, query: raw.query, allow });
    }
    Ok(cases)
}

/// Cases of an attestation policy.
pub(crate) fn attestation(text: &str) -> Result<Vec<AttestationCase>, String> {
    let mut cases = Vec::new();
    for (raw, claims) in read(text)? {
        let wrong = |why: &str| format!("case {:?}: {why}", raw.name);
        if raw.allow.is_some() || raw.deny.is_some() || raw.resource.is_some() || !raw.query.is_empty() {
            return Err(wrong("allow, deny, resource and query are of the resource policy"));
        }
        let status = raw.status.clone().ok_or_else(|| wrong("it has no status"))?;
        let reference_values = raw.reference_values;
        cases.push(AttestationCase { name: raw.name, claims, reference_values, status });
    }
    Ok(cases)
}

impl ResourceCase {
    /// Puts it, in the form in which the key broker asks.
    pub(crate) fn put(&self, program: &Program) -> Result<(), String> {
        let data = json!({"plugin": self.plugin, "resource-path": self.path, "query": self.query});
        let answer = program.evaluate("data.policy.allow", &self.claims, &data);
        let answer = answer.map_err(|error| error.to_string())?;
        match (self.allow, answer.is_true()) {
            (true, false) => Err("expected allowed, seen denied".to_owned()),
            (false, true) => Err("expected denied, seen allowed".to_owned()),
            _ => Ok(()),
        }
    }
}
