//! The agent's policy: may this request of the (untrusted) host be carried out?
//!
//! Rules, inputs and outcomes are Kata's (package `agent_policy`, one rule for each request message, input = the
//! message as JSON, result a boolean or `{"allowed": bool, "ops": [JSON Patch]}`; the patches change
//! `data.pstate`, through which a policy remembers what it allowed before). Policies written for Kata work here.
//!
//! Everything else than a clear yes is a no: an undefined rule, a result of another type, a failing evaluation, a
//! patch that does not apply. `AllowRequestsFailingPolicy`, Kata's debugging aid that turns failures into consent,
//! is honoured only when the policy itself sets it to true.
//!
//! A denial names rule, request field and value. A policy can say which by a rule
//! `explain contains {"rule": …, "field": …, "value": …, "advice": …} if {…}`, where `advice` (what to do) may be left out; for policies without it the printed lines and
//! the request's own identifying fields are given.

use serde_json::{Value, json};
use thiserror::Error;

use crate::engine::{EngineError, Evaluation, Limits, Program};

/// Package of agent policies.
const PACKAGE: &str = "data.agent_policy";
/// Longest value repeated in a denial.
const MAX_VALUE: usize = 256;
/// Most bytes of remembered state: requests that are allowed can otherwise fill the guest's memory.
const MAX_STATE: usize = 4 << 20;
/// Fields that identify a request, in the order in which they are looked for.
const FIELDS: [&str; 6] = ["exec_id", "container_id", "path", "source", "hostname", "policy"];

/// Why a request is not carried out.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Denial {
    /// The policy says no, or does not say yes.
    #[error("{request} is blocked by policy: rule {rule}, field {field}, value {value}{more}")]
    Refused {
        /// Request message.
        request: String,
        /// Rule that refused.
        rule: String,
        /// Field of the request it looked at.
        field: String,
        /// What that field holds, shortened.
        value: String,
        /// What the policy printed, after ": ", and what to do, after "; ", as far as there is either.
        more: String,
    },
    /// The policy could not be evaluated.
    #[error("{request} is blocked by policy: {error}")]
    Failed {
        /// Request message.
        request: String,
        /// Why.
        error: EngineError,
    },
    /// The state change that came with the consent cannot be made.
    #[error("{request} is blocked by policy: its state change does not apply: {why}")]
    State {
        /// Request message.
        request: String,
        /// Which operation, and why.
        why: String,
    },
}

/// A policy with what it remembers.
#[derive(Debug, Clone)]
pub struct AgentPolicy {
    program: Program,
    data: Value,
}

impl AgentPolicy {
    /// Limits of Kata for agent policies: generated ones are long.
    fn limits() -> Limits {
        Limits { bytes: 16 << 20, lines: 200_000, columns: 64 << 10, ..Limits::default() }
    }

    /// Compiles a policy; `name` appears in errors. State starts empty.
    pub fn new(name: &str, text: &str) -> Result<Self, EngineError> {
        let program = Program::compile(name, text, &Self::limits())?;
        if program.package() != PACKAGE {
            return Err(EngineError::Compile {
                name: name.to_owned(),
                line: None,
                column: None,
                message: format!("package is {}, must be {PACKAGE}", program.package()),
            });
        }
        Ok(Self { program, data: json!({"pstate": {}}) })
    }

    /// Name given at compilation.
    pub fn name(&self) -> &str {
        self.program.name()
    }

    /// Whether the policy has a rule of this name, whatever it says.
    pub fn has_rule(&self, rule: &str) -> bool {
        self.program.has_rule(&format!("{PACKAGE}.{rule}"))
    }

    /// Decides on a request message (`CreateContainerRequest`) and takes over the state change of a consent.
    pub fn check(&mut self, request: &str, input: &Value) -> Result<(), Denial> {
        let ops = self.decide(request, input)?;
        self.remember(request, &ops)
    }

    /// Decides on a request that will be asked about again when more is known of it: a consent changes no state.
    pub fn would_allow(&self, request: &str, input: &Value) -> Result<(), Denial> {
        self.decide(request, input).map(|_| ())
    }

    /// The state changes of a consent.
    fn decide(&self, request: &str, input: &Value) -> Result<Vec<Value>, Denial> {
        let failed = |error| Denial::Failed { request: request.to_owned(), error };
        let result = self.evaluate(request, input);
        let (allowed, ops, prints) = match &result {
            Ok(e) => (allowed(e), ops(e), e.prints.clone()),
            Err(_) => (false, Vec::new(), Vec::new()),
        };
        if allowed {
            return Ok(ops);
        }
        let undecided = !matches!(&result, Ok(Evaluation { value: Some(_), .. }));
        if undecided && self.evaluate("AllowRequestsFailingPolicy", input).is_ok_and(|e| e.is_true()) {
            return Ok(Vec::new());
        }
        result.map_err(failed)?;
        Err(self.explain(request, input, &prints))
    }

    fn evaluate(&self, rule: &str, input: &Value) -> Result<Evaluation, EngineError> {
        let path = format!("{PACKAGE}.{rule}");
        self.program.evaluate(&path, input, &self.data)
    }

    fn remember(&mut self, request: &str, ops: &[Value]) -> Result<(), Denial> {
        if ops.is_empty() {
            return Ok(());
        }
        let state = |why: String| Denial::State { request: request.to_owned(), why };
        let mut next = self.data.clone();
        for op in ops {
            patch(&mut next, op).map_err(|why| state(format!("{op}: {why}")))?;
        }
        let size = next.to_string().len();
        if size > MAX_STATE {
            return Err(state(format!("{size} bytes, at most {MAX_STATE} are kept")));
        }
        self.data = next;
        Ok(())
    }

    fn explain(&self, request: &str, input: &Value, prints: &[String]) -> Denial {
        let refused = |rule: &str, field: &str, value: String, advice: Option<&str>| Denial::Refused {
            request: request.to_owned(),
            rule: rule.to_owned(),
            field: field.to_owned(),
            value,
            more: match prints {
                [] => String::new(),
                lines => format!(": {}", lines.join("; ")),
            } + &advice.map(|text| format!("; {text}")).unwrap_or_default(),
        };
        let with_name = merged(input, request);
        let explained = self.evaluate("explain", &with_name).ok().and_then(|e| e.value);
        if let Some(Value::Array(reasons)) = explained
            && let Some(reason) = reasons.first()
        {
            let text = |key: &str| match reason.get(key) {
                Some(Value::String(s)) => s.clone(),
                Some(other) => other.to_string(),
                None => "?".to_owned(),
            };
            let value = reason.get("value").map_or_else(|| "?".to_owned(), show);
            let advice = reason.get("advice").and_then(Value::as_str);
            return refused(&text("rule"), &text("field"), value, advice);
        }
        let rule = format!("{PACKAGE}.{request}");
        for field in FIELDS {
            match input.get(field) {
                Some(Value::String(text)) if !text.is_empty() => {
                    return refused(&rule, field, show(&Value::String(text.clone())), None);
                }
                _ => {}
            }
        }
        refused(&rule, "(whole request)", show(input), None)
    }
}

/// The input with the message's name in `request_name`, which `explain` rules need.
fn merged(input: &Value, request: &str) -> Value {
    let mut all = input.clone();
    if let Value::Object(fields) = &mut all {
        fields.insert("request_name".to_owned(), request.into());
    }
    all
}

fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn allowed(evaluation: &Evaluation) -> bool {
    match &evaluation.value {
        Some(Value::Object(fields)) => fields.get("allowed") == Some(&Value::Bool(true)),
        _ => evaluation.is_true(),
    }
}

fn ops(evaluation: &Evaluation) -> Vec<Value> {
    match evaluation.value.as_ref().and_then(|v| v.get("ops")) {
        Some(Value::Array(ops)) => ops.clone(),
        _ => Vec::new(),
    }
}

/// One operation of a JSON Patch (RFC 6902): `add`, `replace`, `remove`. Only `/pstate` may change.
fn patch(data: &mut Value, op: &Value) -> Result<(), String> {
    let text = |key: &str| op.get(key).and_then(Value::as_str);
    let path = text("path").ok_or("no path")?;
    if path != "/pstate" && !path.starts_with("/pstate/") {
        return Err(format!("path {path} is outside of /pstate"));
    }
    let (parent, last) = path.rsplit_once('/').ok_or("path has no parent")?;
    let key = last.replace("~1", "/").replace("~0", "~");
    let parent = data.pointer_mut(parent).ok_or("parent does not exist")?;
    let value = op.get("value").cloned();
    let kind = text("op").ok_or("no op")?;
    match (parent, kind) {
        (Value::Object(fields), "add") => {
            fields.insert(key, value.ok_or("no value")?);
        }
        (Value::Object(fields), "replace") => {
            let slot = fields.get_mut(&key).ok_or("nothing to replace")?;
            *slot = value.ok_or("no value")?;
        }
        (Value::Object(fields), "remove") => {
            fields.remove(&key).ok_or("nothing to remove")?;
        }
        (Value::Array(items), "add") => {
            let at = match key.as_str() {
                "-" => items.len(),
                n => n.parse().map_err(|_| "no index")?,
            };
            if at > items.len() {
                return Err("index beyond the end".to_owned());
            }
            items.insert(at, value.ok_or("no value")?);
        }
        (Value::Array(items), "replace" | "remove") => {
            let at: usize = key.parse().map_err(|_| "no index")?;
            let slot = items.get_mut(at).ok_or("no such item")?;
            if kind == "replace" {
                *slot = value.ok_or("no value")?;
            } else {
                items.remove(at);
            }
        }
        (_, other) => return Err(format!("operation {other} is not supported here")),
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn policy(text: &str) -> AgentPolicy {
        AgentPolicy::new("test.rego", &format!("package agent_policy\n{text}")).unwrap()
    }

    #[test]
    fn only_a_clear_yes_allows() {
        let mut p = policy(
            "default CreateSandboxRequest := true\nStartContainerRequest := \"true\"\n\
             ExecProcessRequest := {\"allowed\": false}\nPauseContainerRequest := 1",
        );
        p.check("CreateSandboxRequest", &json!({})).unwrap();
        for request in
            ["StartContainerRequest", "ExecProcessRequest", "PauseContainerRequest", "NobodyHeardOfRequest"]
        {
            let denial = p.check(request, &json!({})).unwrap_err().to_string();
            assert!(denial.starts_with(&format!("{request} is blocked by policy")), "{denial}");
        }
    }

    #[test]
    fn a_denial_names_rule_field_and_value() {
        let mut p = policy(
            "default ExecProcessRequest := false\n\
             ExecProcessRequest if input.process.Args == [\"id\"]\n\
             explain contains {\"rule\": \"exec_commands\", \"field\": \"process.Args\", \"value\": input.process.Args} if {\n\
             input.request_name == \"ExecProcessRequest\"\n }",
        );
        p.check("ExecProcessRequest", &json!({"process": {"Args": ["id"]}})).unwrap();
        let denial = p.check("ExecProcessRequest", &json!({"process": {"Args": ["sh"]}})).unwrap_err();
        assert_eq!(
            denial.to_string(),
            "ExecProcessRequest is blocked by policy: rule exec_commands, field process.Args, value [\"sh\"]"
        );
    }

    #[test]
    fn a_denial_says_what_to_do_where_the_policy_does() {
        let mut p = policy(
            "default ExecProcessRequest := false\n\
             explain contains {\"rule\": \"r\", \"field\": \"f\", \"value\": 1, \"advice\": \"ask\"} if true",
        );
        let denial = p.check("ExecProcessRequest", &json!({})).unwrap_err().to_string();
        assert!(denial.ends_with("rule r, field f, value 1; ask"), "{denial}");
    }

    #[test]
    fn a_rule_is_there_whatever_it_says() {
        let p = policy(
            "default RunImageRequest := false\nExecProcessRequest if input.x == 1\n\
             StartContainerRequest := {\"allowed\": input.y}",
        );
        for rule in ["RunImageRequest", "ExecProcessRequest", "StartContainerRequest"] {
            assert!(p.has_rule(rule), "{rule}");
        }
        assert!(!p.has_rule("RunImage") && !p.has_rule("CreateContainerRequest"));
    }

    #[test]
    fn without_explanation_the_request_identifies_itself_and_prints_are_shown() {
        let mut p = policy(
            "import rego.v1\ndefault CopyFileRequest := false\nCopyFileRequest if { print(\"path is bad\"); false }",
        );
        let denial = p.check("CopyFileRequest", &json!({"path": "/etc/passwd"})).unwrap_err();
        assert_eq!(
            denial.to_string(),
            "CopyFileRequest is blocked by policy: rule data.agent_policy.CopyFileRequest, \
             field path, value \"/etc/passwd\": test.rego:4: path is bad"
        );
    }

    #[test]
    fn state_is_remembered_and_confined() {
        let mut p = policy(
            "default CreateContainerRequest := {\"allowed\": false}\n\
             CreateContainerRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/done\", \"value\": true}]} if not data.pstate.done\n\
             PauseContainerRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/agent_policy/x\", \"value\": 1}]}",
        );
        p.check("CreateContainerRequest", &json!({})).unwrap();
        p.check("CreateContainerRequest", &json!({})).unwrap_err();
        let denial = p.check("PauseContainerRequest", &json!({})).unwrap_err();
        assert!(matches!(denial, Denial::State { .. }), "{denial}");
    }

    #[test]
    fn failing_requests_pass_only_when_the_policy_says_so() {
        let mut p = policy("AllowRequestsFailingPolicy := true");
        p.check("AnythingRequest", &json!({})).unwrap();
        let mut p = policy("AllowRequestsFailingPolicy := true\ndefault ExecProcessRequest := false");
        p.check("ExecProcessRequest", &json!({})).unwrap_err();
    }

    #[test]
    fn another_package_is_refused() {
        assert!(AgentPolicy::new("x", "package policy\nallow := true").is_err());
        assert!(AgentPolicy::new("x", "nonsense").is_err());
    }
}
