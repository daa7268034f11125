//! `kata-cc-policy.yaml`, the manifest. Unknown members are refused; `kata-cc-policy.schema.json` beside this crate describes it for editors and
//! CI, and a test compares the two.

use std::collections::{BTreeMap, BTreeSet};

use kata_cc_policy::manifest::yaml;
use serde::{Deserialize, Serialize};

use crate::BundleError;
use crate::layout::MANIFEST;

/// The JSON Schema of the manifest.
pub const SCHEMA: &str = include_str!("../kata-cc-policy.schema.json");
/// The format that is read.
pub const FORMAT: u64 = 1;
/// Most characters of a name or version.
const MAX_NAME: usize = 64;

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout: 1.
    pub format: u64,
    /// What the bundle is called, in logs and statuses.
    pub name: String,
    /// What this state of it is called; people's word, the digest decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Keys that may sign reference values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust: Vec<TrustedKey>,
    /// Dangerous findings of the lint that somebody decided to live with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<Accepted>,
}

/// A key that may sign reference values: `[[reference_values.trusted]]` of the attestation service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// What the key is called in records and logs.
    pub name: String,
    /// File of the public key, `trust/NAME.pem`.
    pub key: String,
    /// Names of reference values that it may set; all without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Subject of an in-toto statement to the name of the reference value that its digest becomes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subjects: BTreeMap<String, String>,
    /// `builder.id` that a provenance must name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<String>,
}

/// A dangerous finding that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// The policy, `agent/NAME.rego`.
    pub file: String,
    /// Name of the check, as `policy lint` prints it.
    pub check: String,
    /// Why.
    pub why: String,
}

impl Manifest {
    /// Reads a manifest (YAML).
    ///
    /// # Errors
    /// [`BundleError::Syntax`], with the member that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let wrong = |why: String| BundleError::Syntax { path: MANIFEST.to_owned(), why };
        let text = std::str::from_utf8(bytes).map_err(|_| BundleError::NotText(MANIFEST.to_owned()))?;
        let mut documents = yaml::documents(text).map_err(|error| wrong(error.to_string()))?;
        let document = documents.pop().ok_or_else(|| wrong("it is empty".to_owned()))?;
        if !documents.is_empty() {
            return Err(wrong("it has several documents, expected one".to_owned()));
        }
        // Of a later format, that is what is to be told, not the members that it has more.
        if let Some(format) = document.get("format").filter(|format| format.as_u64() != Some(FORMAT)) {
            return Err(wrong(format!("format {format} is not read here, only {FORMAT}")));
        }
        let manifest: Self = serde_json::from_value(document).map_err(|error| wrong(error.to_string()))?;
        manifest.check().map_err(wrong)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let named = |what: &str, text: &str| {
            let fits = !text.is_empty()
                && text.chars().count() <= MAX_NAME
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
            if fits {
                return Ok(());
            }
            Err(format!("{what} must be 1 to {MAX_NAME} letters, digits and -_.+"))
        };
        named("name", &self.name)?;
        self.version.as_deref().map_or(Ok(()), |version| named("version", version))?;
        let mut names = BTreeSet::new();
        for key in &self.trust {
            named("trust[].name", &key.name)?;
            if !names.insert(&key.name) {
                return Err(format!("trust[] names {:?} twice", key.name));
            }
        }
        match self.accept.iter().find(|one| one.why.trim().is_empty()) {
            Some(one) => Err(format!("accept[] for {} says no why", one.file)),
            None => Ok(()),
        }
    }

    /// What it is called, with its version.
    #[must_use]
    pub fn title(&self) -> String {
        self.version.as_ref().map_or_else(|| self.name.clone(), |version| format!("{} {version}", self.name))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const FULL: &str = "format: 1\nname: shop\nversion: 2026.11+1\ntrust:\n  - {name: ci, key: trust/ci.pem, names: [a], subjects: {k: v}, builder: b}\n\
        accept:\n  - {file: agent/web.rego, check: open-request, why: a test bed}\n";

    fn refused(text: &str) -> String {
        Manifest::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(Manifest::parse(FULL.as_bytes()).unwrap().title(), "shop 2026.11+1");
        for (text, told) in [
            ("", "it is empty"),
            ("format: 2\nname: a\nnew: 1", "format 2 is not read here, only 1"),
            ("name: a", "missing field `format`"),
            ("format: 1\nname: a\ncolour: 1", "unknown field `colour`"),
            ("format: 1\nname: a b", "name must be"),
            ("format: 1\nname: a\n---\nformat: 1\nname: b", "several documents"),
            ("format: 1\nname: a\ntrust: [{name: x, key: k}, {name: x, key: l}]", "names \"x\" twice"),
            ("format: 1\nname: a\naccept: [{file: f, check: c, why: ' '}]", "says no why"),
        ] {
            assert!(refused(text).contains(told), "{text}: {}", refused(text));
        }
    }

    /// The members that a schema knows at a place, and those that must be there.
    fn of_schema(schema: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
        assert_eq!(schema["additionalProperties"], json!(false));
        let names = schema["properties"].as_object().unwrap().keys().cloned().collect();
        let required = schema["required"].as_array().unwrap().iter();
        (names, required.map(|name| name.as_str().unwrap().to_owned()).collect())
    }

    /// Takes members away from what is good, and adds one: what is refused must be what the schema says.
    fn compare(schema: &Value, place: &str) {
        let good: Value = yaml::documents(FULL).unwrap().pop().unwrap();
        let reads = |value: &Value| {
            let text = value.to_string();
            Manifest::parse(text.as_bytes()).is_ok()
        };
        let at = good.pointer(place).unwrap().as_object().unwrap().clone();
        let (names, required) = of_schema(schema);
        assert_eq!(
            at.keys().cloned().collect::<BTreeSet<_>>(),
            names,
            "the sample has all members of {place:?}"
        );
        for name in &names {
            let mut less = good.clone();
            less.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(name);
            assert_eq!(reads(&less), !required.contains(name), "{place}/{name}");
        }
        let mut more = good.clone();
        more.pointer_mut(place).unwrap()["zz"] = json!(1);
        assert!(reads(&good) && !reads(&more), "{place}");
    }

    #[test]
    fn the_schema_describes_what_is_read() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        compare(&schema, "");
        compare(&schema["properties"]["trust"]["items"], "/trust/0");
        compare(&schema["properties"]["accept"]["items"], "/accept/0");
        assert_eq!(schema["properties"]["format"]["const"], json!(FORMAT));
        assert_eq!(schema["properties"]["name"]["maxLength"], json!(MAX_NAME));
        assert_eq!(schema["properties"]["name"]["pattern"], "^[A-Za-z0-9_.+-]+$");
    }
}
