//! A sealed secret makes its pod confidential: only an attested guest can open one, so on a weaker tier the pod is refused, rather than
//! started with a text where it expects a secret.

use serde_json::Value;

use crate::tier::{Demand, Refusal};

/// Beginning of every sealed secret (CoCo's confidential data hub).
const PREFIX: &str = "sealed.";

/// The variable of an environment (`NAME=value`) that holds a sealed secret.
#[must_use]
pub fn variable<'a>(environment: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    environment.into_iter().find_map(|entry| {
        let (name, value) = entry.split_once('=')?;
        value.starts_with(PREFIX).then_some(name)
    })
}

/// That of a container, whose specification (OCI runtime) is JSON.
pub(crate) fn variable_of(spec: &Value) -> Option<&str> {
    variable(spec["process"]["env"].as_array().into_iter().flatten().filter_map(Value::as_str))
}

/// Whether a file's first bytes are those of a sealed secret.
pub(crate) fn begins(contents: &[u8]) -> bool {
    contents.starts_with(PREFIX.as_bytes())
}

/// The refusal of a secret that stands in `place`.
pub(crate) fn refuse(place: &str) -> Refusal {
    let demand = Demand { sealed_secret: true, ..Demand::default() };
    let reason = demand.reason().unwrap_or_default();
    Refusal {
        reason: format!("{reason} ({place}), which needs the confidential tier"),
        advice: "use runtimeClassName kata-cc, or take the secret out".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_beginning_of_a_value_makes_a_sealed_secret() {
        let spec = |env: Value| json!({"process": {"env": env}});
        assert_eq!(variable_of(&spec(json!(["A=b", "KEY=sealed.x.y.z"]))), Some("KEY"));
        for none in [json!(["A=not sealed.x", "sealed.A=b", "B=sealed", "C"]), json!([]), Value::Null] {
            assert_eq!(variable_of(&spec(none)), None);
        }
        assert_eq!(variable_of(&json!({})), None);
        assert!(begins(b"sealed.x") && !begins(b"sealed") && !begins(b" sealed.x"));
    }
}
