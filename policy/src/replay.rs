//! Requests put to a policy one after another: recorded ones, and cases that say what is to come of each.
//!
//! A recording has one JSON object a line, as Kata's agent writes it at log level debug: `{"kind": "CreateContainerRequest", "request": {…}}`.
//! Cases are YAML, to be kept beside the policy:
//!
//! ```yaml
//! cases:
//!   - name: the shop starts
//!     request: CreateContainerRequest
//!     input: {…}
//!     allow: true
//!   - name: with another command it does not
//!     like: the shop starts          # its request and input
//!     set: {/OCI/Process/Args: [sh]} # JSON pointers
//!     deny: command                  # the rule, or `true`
//! ```
//!
//! What a policy remembers of one it knows at the next; a denied one changes nothing.

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::agent::{AgentPolicy, Reason};
use crate::manifest::{ManifestError, yaml};

/// Largest recording, in lines.
pub const MAX_LINES: usize = 100_000;

/// Why requests cannot be put to a policy.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ReplayError {
    /// A line that is no request.
    #[error(
        "line {line} is no recorded request ({reason}): expected {{\"kind\": \"…Request\", \"request\": {{…}}}}"
    )]
    Line {
        /// Number, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// More than [`MAX_LINES`].
    #[error("the recording has more than {MAX_LINES} lines")]
    TooLong,
    /// No YAML.
    #[error(transparent)]
    Yaml(#[from] ManifestError),
    /// A case that cannot be put.
    #[error("case {name:?}: {reason}")]
    Case {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// A request with its input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Message, `CreateContainerRequest`.
    pub kind: String,
    /// As the agent sees it.
    pub input: Value,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The agent's words, where not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<String>,
    /// The policy's reasons.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

/// Puts a request to a policy; it remembers what it allows.
pub fn put(policy: &mut AgentPolicy, request: &Request) -> Answer {
    match policy.check(&request.kind, &request.input) {
        Ok(()) => Answer { allowed: true, denial: None, reasons: Vec::new() },
        Err(denial) => Answer {
            allowed: false,
            denial: Some(denial.to_string()),
            reasons: policy.reasons(&request.kind, &request.input),
        },
    }
}

/// Reads a recording.
///
/// # Errors
/// See [`ReplayError`].
pub fn recording(text: &str) -> Result<Vec<Request>, ReplayError> {
    let mut requests = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if number >= MAX_LINES {
            return Err(ReplayError::TooLong);
        }
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |reason: &str| ReplayError::Line { line: number + 1, reason: reason.to_owned() };
        let value: Value = serde_json::from_str(line).map_err(|e| wrong(&e.to_string()))?;
        let Value::Object(mut fields) = value else { return Err(wrong("no object")) };
        let kind = ["kind", "request_name", "ep"]
            .iter()
            .find_map(|key| fields.get(*key)?.as_str().map(str::to_owned));
        let kind = kind.ok_or_else(|| wrong("no kind"))?;
        let input = fields.remove("request").or_else(|| fields.remove("input"));
        requests.push(Request { kind, input: input.ok_or_else(|| wrong("no request"))? });
    }
    Ok(requests)
}

/// What is to come of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It is allowed.
    Allow,
    /// It is denied, by this rule if one is named.
    Deny(Option<String>),
}

/// A case.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Name.
    pub name: String,
    /// What is asked.
    pub request: Request,
    /// What is to come of it.
    pub expected: Expected,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Name.
    pub name: String,
    /// Whether it came as expected.
    pub passed: bool,
    /// What was expected.
    pub expected: Expected,
    /// What came.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Reads cases.
///
/// # Errors
/// See [`ReplayError`].
pub fn cases(text: &str) -> Result<Vec<Case>, ReplayError> {
    let mut all: Vec<Case> = Vec::new();
    for document in yaml::documents(text)? {
        let list = document.get("cases").and_then(Value::as_array).cloned().unwrap_or_default();
        for (number, value) in list.iter().enumerate() {
            let name = value
                .get("name")
                .and_then(Value::as_str)
                .map_or_else(|| format!("number {}", number + 1), str::to_owned);
            let wrong = |reason: String| ReplayError::Case { name: name.clone(), reason };
            let Value::Object(fields) = value else { return Err(wrong("it is no object".to_owned())) };
            let case = case(&name, fields, &all).map_err(wrong)?;
            all.push(case);
        }
    }
    Ok(all)
}

fn case(name: &str, fields: &Map<String, Value>, before: &[Case]) -> Result<Case, String> {
    let known = ["name", "request", "input", "like", "set", "allow", "deny"];
    if let Some(other) = fields.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("field {other} is not known, known are {}", known.join(", ")));
    }
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let mut request = match text("like") {
        Some(like) => {
            let other = before.iter().find(|case| case.name == like);
            other
                .map(|case| case.request.clone())
                .ok_or_else(|| format!("there is no case {like:?} before it"))?
        }
        None => Request { kind: String::new(), input: Value::Object(Map::new()) },
    };
    if let Some(kind) = text("request") {
        kind.clone_into(&mut request.kind);
    }
    if request.kind.is_empty() {
        return Err("it names no request".to_owned());
    }
    if let Some(input) = fields.get("input") {
        request.input = input.clone();
    }
    for (pointer, value) in fields.get("set").and_then(Value::as_object).into_iter().flatten() {
        set(&mut request.input, pointer, value).ok_or_else(|| format!("the input has no {pointer}"))?;
    }
    let expected = match (fields.get("allow"), fields.get("deny")) {
        (Some(Value::Bool(true)), None) => Expected::Allow,
        (None, Some(Value::Bool(true))) => Expected::Deny(None),
        (None, Some(Value::String(rule))) => Expected::Deny(Some(rule.clone())),
        _ => return Err("it needs either `allow: true`, or `deny: true` or `deny: <rule>`".to_owned()),
    };
    Ok(Case { name: name.to_owned(), request, expected })
}

/// Sets what is at a JSON pointer; a last step that an object has not is added, `-` adds to a list.
pub fn set(input: &mut Value, pointer: &str, value: &Value) -> Option<()> {
    if let Some(place) = input.pointer_mut(pointer) {
        *place = value.clone();
        return Some(());
    }
    let (parent, last) = pointer.rsplit_once('/')?;
    match input.pointer_mut(parent)? {
        Value::Object(fields) => {
            drop(fields.insert(last.replace("~1", "/").replace("~0", "~"), value.clone()))
        }
        Value::Array(items) if last == "-" => items.push(value.clone()),
        _ => return None,
    }
    Some(())
}

/// Puts all cases, in order.
pub fn run(policy: &mut AgentPolicy, cases: &[Case]) -> Vec<Outcome> {
    let each = |case: &Case| {
        let answer = put(policy, &case.request);
        let passed = match &case.expected {
            Expected::Allow => answer.allowed,
            Expected::Deny(None) => !answer.allowed,
            Expected::Deny(Some(rule)) => !answer.allowed && by_rule(&answer, rule),
        };
        Outcome { name: case.name.clone(), passed, expected: case.expected.clone(), answer }
    };
    cases.iter().map(each).collect()
}

/// Whether the rule is among the reasons, or, of a policy without reasons, in the words.
fn by_rule(answer: &Answer, rule: &str) -> bool {
    match answer.reasons.as_slice() {
        [] => answer.denial.as_deref().is_some_and(|words| words.contains(rule)),
        reasons => reasons.iter().any(|reason| reason.rule == rule),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use serde_json::json;

    const POLICY: &str = "package agent_policy\nimport rego.v1\ndefault ExecProcessRequest := false\n\
        ExecProcessRequest if input.process.Args == [\"id\"]\n\
        CreateContainerRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/x\", \"value\": 1}]} if not data.pstate.x\n\
        explain contains {\"rule\": \"commands\", \"field\": \"process.Args\", \"value\": 1} if input.process\n";

    #[test]
    fn cases_are_put_in_order_and_state_is_kept() {
        let text = "cases:\n- {name: a, request: ExecProcessRequest, input: {process: {Args: [id]}}, allow: true}\n\
            - {name: b, like: a, set: {/process/Args/0: sh}, deny: commands}\n\
            - {name: c, like: a, set: {/process/Args/-: x}, deny: other}\n\
            - {name: d, request: CreateContainerRequest, allow: true}\n- {name: e, like: d, deny: true}\n";
        let mut policy = AgentPolicy::new("t", POLICY).unwrap();
        let outcomes = run(&mut policy, &cases(text).unwrap());
        assert_eq!(outcomes.iter().map(|o| o.passed).collect::<Vec<_>>(), [true, true, false, true, true]);
        assert_eq!(outcomes[1].answer.reasons[0].field, "process.Args");
    }

    #[test]
    fn cases_that_cannot_be_put_are_refused() {
        for (text, word) in [
            ("cases: [{name: a, request: X}]", "needs either"),
            ("cases: [{name: a, allow: true}]", "names no request"),
            ("cases: [{name: a, like: b, allow: true}]", "no case \"b\""),
            ("cases: [{name: a, request: X, allow: true, permit: 1}]", "permit is not known"),
            ("cases: [{name: a, request: X, allow: true, set: {/a/b/c: 1}}]", "no /a/b/c"),
            ("cases: [1]", "no object"),
        ] {
            assert!(cases(text).unwrap_err().to_string().contains(word), "{text}");
        }
    }

    #[test]
    fn recordings_are_read_line_by_line() {
        let text = "{\"kind\": \"A\", \"request\": {\"x\": 1}}\n\n{\"ep\": \"B\", \"input\": {}}\n";
        let read = recording(text).unwrap();
        assert_eq!(read[0], Request { kind: "A".to_owned(), input: json!({"x": 1}) });
        assert_eq!(read[1].kind, "B");
        for bad in ["x", "[]", "{\"kind\": \"A\"}", "{\"request\": {}}"] {
            assert!(recording(bad).is_err(), "{bad}");
        }
    }
}
