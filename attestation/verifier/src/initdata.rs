//! Init-data at the verifier: is this the document that the guest was launched with, and what does it say.
//!
//! The digest (by the document's own algorithm, over its exact bytes) is fitted to the TEE's field: SNP's
//! `HOST_DATA` has 32 bytes, TDX's `MRCONFIGID` 48. Published as `init_data_claims`: `aa.toml` and `cdh.toml` as JSON, `policy.rego` only
//! as `agent_policy_claims`, and only when a line begins with `policy_data := {` and goes on as a JSON object;
//! other entries as text. What the claims say is what the document says, no more: whoever wrote it chose its words, and a policy
//! text can show data that its rules do not look at. To know who wrote it, compare its digest (`init_data`). The format itself is [`kata_cc_kbs_protocol::initdata`].

use kata_cc_kbs_protocol::initdata::InitData;
use serde_json::{Map, Value};

use crate::Refusal;

/// Names of entries whose text is TOML.
const TOML_ENTRIES: [&str; 2] = ["aa.toml", "cdh.toml"];

const POLICY_ENTRY: &str = "policy.rego";

const POLICY_DATA_MARKER: &str = "policy_data := {";

/// What the guest says, or somebody else knows, it was launched with.
#[derive(Clone, Copy, Debug)]
pub enum ExpectedInitData<'a> {
    /// The document; its contents become claims.
    Toml(&'a str),
    /// Its digest only.
    Digest(&'a [u8]),
}

impl ExpectedInitData<'_> {
    /// Compares with the TEE's field, and gives the claims if the document is there. `name` is the TEE's
    /// name of the field, for the message.
    pub(crate) fn check(&self, name: &'static str, field: &[u8]) -> Result<Option<Value>, Refusal> {
        let (digest, claims) = self.digest()?;
        compare(name, field, &digest)?;
        Ok(claims)
    }

    /// The digest expected, and the claims if the document is there.
    pub(crate) fn digest(&self) -> Result<(Vec<u8>, Option<Value>), Refusal> {
        match self {
            Self::Digest(digest) => Ok((digest.to_vec(), None)),
            Self::Toml(text) => {
                let document = InitData::parse(text)?;
                Ok((document.digest(), Some(claims(&document))))
            }
        }
    }
}

fn compare(field: &'static str, seen: &[u8], digest: &[u8]) -> Result<(), Refusal> {
    // Cut to the field, or padded with zeros at its end.
    let mut expected = digest.to_vec();
    expected.resize(seen.len(), 0);
    if seen == expected {
        return Ok(());
    }
    Err(Refusal::InitData { field, seen: hex::encode(seen), expected: hex::encode(expected) })
}

/// Contents of the document as claims. TOML that does not parse is published as text: the policy decides.
#[must_use]
pub fn claims(document: &InitData) -> Value {
    let mut out = Map::new();
    for (name, text) in document.data() {
        if name == POLICY_ENTRY {
            if let Some(data) = policy_data(text) {
                out.insert("agent_policy_claims".to_owned(), data);
            }
        } else if TOML_ENTRIES.contains(&name.as_str()) {
            let value = toml::from_str::<Value>(text).unwrap_or_else(|_| text.as_str().into());
            out.insert(name.clone(), value);
        } else {
            out.insert(name.clone(), text.as_str().into());
        }
    }
    out.into()
}

/// The JSON object behind the marker; what follows it in the policy is not looked at. The marker begins a line, so that it is
/// no part of a comment; two of them say nothing that can be relied on.
fn policy_data(policy: &str) -> Option<Value> {
    let starts = policy.split_inclusive('\n').scan(0, |at, line| {
        let start = *at;
        *at += line.len();
        Some((start, line))
    });
    let mut found = starts.filter(|(_, line)| line.starts_with(POLICY_DATA_MARKER));
    let (start, _) = found.next().filter(|_| found.next().is_none())?;
    let object = policy.get(start + POLICY_DATA_MARKER.len() - 1..)?;
    serde_json::Deserializer::from_str(object).into_iter::<Value>().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_data_is_found_in_the_middle() {
        let policy = "package agent_policy\npolicy_data := {\"a\": [1, {\"b\": \"}\"}]}\nallow { true }\n";
        assert_eq!(policy_data(policy), Some(serde_json::json!({"a": [1, {"b": "}"}]})));
        assert_eq!(policy_data("policy_data := {a: 1}"), None, "not JSON");
        assert_eq!(policy_data("allow := true"), None);
    }

    #[test]
    fn policy_data_in_a_comment_or_string_or_twice_is_none() {
        let data = "policy_data := {\"a\": 1}\n";
        let object = Some(serde_json::json!({"a": 1}));
        assert_eq!(policy_data(data), object);
        assert_eq!(policy_data(&format!("# policy_data := {{\"a\": 2}}\n{data}")), object);
        assert_eq!(policy_data(&format!("x := `policy_data := {{}}`\n{data}")), object);
        assert_eq!(policy_data("#policy_data := {\"a\": 2}\n"), None);
        assert_eq!(policy_data(&format!("x := `\npolicy_data := {{\"a\": 2}}\n`\n{data}")), None);
    }
}
