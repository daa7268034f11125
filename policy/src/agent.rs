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
//! `explain contains {"rule": …, "field": …, "value": …, "allowed": …, "advice": …} if {…}`, where `allowed` (what the field might hold) and
//! `advice` (what to do) may be left out; for policies without it the printed lines and the request's own identifying fields are given.
//!
//! A policy is analysed once, and again when its state changes, not at each request; its `policy_data`, where that is a constant, is taken
//! out of the text.

mod judge;
mod patch;

use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::constants;
use crate::engine::{Document, EngineError, Evaluation, Limits, Program};
use crate::generate;
use judge::Judge;
use patch::patch;

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
    #[error("{request} is blocked by policy: rule {rule}, field {field}, value {value}{allowed}{more}")]
    Refused {
        /// Request message.
        request: String,
        /// Rule that refused.
        rule: String,
        /// Field of the request it looked at.
        field: String,
        /// What that field holds, shortened.
        value: String,
        /// What it might hold, shortened, after ", allowed "; empty where the policy does not say.
        allowed: String,
        /// What the policy printed, after ": ", what to do, after "; ", and the rules that refuse as well, as far as there is any.
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

/// One reason of a denial, as the policy's `explain` gives it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reason {
    /// Rule that refused.
    pub rule: String,
    /// Field of the request.
    pub field: String,
    /// What it holds.
    pub value: Value,
    /// What it might hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Value>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Reason {
    fn read(value: &Value) -> Self {
        let text = |key: &str| match value.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "?".to_owned(),
        };
        Self {
            rule: text("rule"),
            field: text("field"),
            value: value.get("value").cloned().unwrap_or_else(|| "?".into()),
            allowed: value.get("allowed").cloned(),
            advice: value.get("advice").and_then(Value::as_str).map(str::to_owned),
        }
    }
}

/// A policy with what it remembers.
#[derive(Debug, Clone)]
pub struct AgentPolicy {
    judge: Judge,
    /// `{"pstate": …}`
    state: Value,
}

impl AgentPolicy {
    /// Limits of Kata for agent policies: generated ones are long.
    fn limits() -> Limits {
        Limits { bytes: 16 << 20, lines: 200_000, columns: 64 << 10, ..Limits::default() }
    }

    /// Compiles a policy; `name` appears in errors. State starts empty.
    pub fn new(name: &str, text: &str) -> Result<Self, EngineError> {
        Self::with_limits(name, text, &Self::limits())
    }

    fn with_limits(name: &str, text: &str, limits: &Limits) -> Result<Self, EngineError> {
        crate::engine::check_size(name, text, limits)?;
        let (program, constants) = match constants::take(text) {
            Some((text, value)) => {
                let program = Program::compile(name, &text, limits)?;
                (program, json!({constants::PLACE: {constants::POLICY_DATA: value}}))
            }
            None => (Program::compile(name, text, limits)?, json!({})),
        };
        if program.package() != PACKAGE {
            return Err(EngineError::Compile {
                name: name.to_owned(),
                line: None,
                column: None,
                message: format!("package is {}, must be {PACKAGE}", program.package()),
            });
        }
        let state = json!({"pstate": {}});
        let how = (generate::is_generated(text), limits);
        let judge = Judge::new(program, Document::from(constants), Document::from(state.clone()), how)?;
        Ok(Self { judge, state })
    }

    /// Name given at compilation.
    pub fn name(&self) -> &str {
        self.judge.program().name()
    }

    /// Whether the policy has a rule of this name, whatever it says.
    pub fn has_rule(&self, rule: &str) -> bool {
        self.judge.program().has_rule(&format!("{PACKAGE}.{rule}"))
    }

    /// Decides on a request message (`CreateContainerRequest`) and takes over the state change of a consent.
    pub fn check(&mut self, request: &str, input: &Value) -> Result<(), Denial> {
        let ops = self.decide(request, input)?;
        self.remember(request, &ops)
    }

    /// Decides on a request that will be asked about again when more is known of it: a consent changes no state.
    pub fn would_allow(&mut self, request: &str, input: &Value) -> Result<(), Denial> {
        self.decide(request, input).map(|_| ())
    }

    /// Whether a request is allowed, its input being in the interpreter's form: for measuring, and for whoever asks about one input often.
    /// State and the words of a denial are left out.
    pub fn would_allow_document(&mut self, request: &str, input: &Document) -> bool {
        self.judge.consent(request, input).is_some()
            || self.judge.by_interpreter(request, input).is_ok_and(|evaluation| allowed(&evaluation))
    }

    /// What the machine alone says of a rule, for comparing it with [`AgentPolicy::by_interpreter`]: `None` when the policy has no machine,
    /// since its rules are not the generator's; then its value, `None` when undefined, or why there is none.
    pub fn by_machine(
        &mut self,
        rule: &str,
        input: &Document,
    ) -> Option<Result<Option<Document>, EngineError>> {
        self.judge.by_machine(rule, input)
    }

    /// What the interpreter says of a rule.
    ///
    /// # Errors
    /// See [`EngineError::Evaluate`].
    pub fn by_interpreter(&mut self, rule: &str, input: &Document) -> Result<Evaluation, EngineError> {
        self.judge.by_interpreter(rule, input)
    }

    /// Why a request is denied, by the policy's own `explain`; empty when it has none or nothing to say.
    pub fn reasons(&mut self, request: &str, input: &Value) -> Vec<Reason> {
        let with_name = merged(input, request);
        let explained =
            self.judge.by_interpreter("explain", &Document::from(with_name)).ok().and_then(|e| e.value);
        let Some(Value::Array(values)) = explained else { return Vec::new() };
        let mut reasons: Vec<Reason> = values.iter().map(Reason::read).collect();
        reasons.sort_by(|a, b| (&a.field, &a.rule).cmp(&(&b.field, &b.rule)));
        reasons
    }

    /// The state changes of a consent.
    fn decide(&mut self, request: &str, input: &Value) -> Result<Vec<Value>, Denial> {
        let failed = |error| Denial::Failed { request: request.to_owned(), error };
        let document = Document::from(input);
        if let Some(consent) = self.judge.consent(request, &document) {
            return Ok(consent.ops());
        }
        let result = self.judge.by_interpreter(request, &document);
        let (allowed, ops, prints) = match &result {
            Ok(e) => (allowed(e), ops(e), e.prints.clone()),
            Err(_) => (false, Vec::new(), Vec::new()),
        };
        if allowed {
            return Ok(ops);
        }
        let undecided = !matches!(&result, Ok(Evaluation { value: Some(_), .. }));
        if undecided
            && self.judge.by_interpreter("AllowRequestsFailingPolicy", &document).is_ok_and(|e| e.is_true())
        {
            return Ok(Vec::new());
        }
        result.map_err(failed)?;
        Err(self.explain(request, input, &prints))
    }

    fn remember(&mut self, request: &str, ops: &[Value]) -> Result<(), Denial> {
        if ops.is_empty() {
            return Ok(());
        }
        let state = |why: String| Denial::State { request: request.to_owned(), why };
        let mut next = self.state.clone();
        for op in ops {
            patch(&mut next, op).map_err(|why| state(format!("{op}: {why}")))?;
        }
        let size = next.to_string().len();
        if size > MAX_STATE {
            return Err(state(format!("{size} bytes, at most {MAX_STATE} are kept")));
        }
        if next != self.state {
            self.judge
                .set_state(Document::from(&next))
                .map_err(|error| Denial::Failed { request: request.to_owned(), error })?;
            self.state = next;
        }
        Ok(())
    }

    fn explain(&mut self, request: &str, input: &Value, prints: &[String]) -> Denial {
        let refused = |rule: &str, field: &str, value: String, allowed: String, more: &str| Denial::Refused {
            request: request.to_owned(),
            rule: rule.to_owned(),
            field: field.to_owned(),
            value,
            allowed,
            more: match prints {
                [] => String::new(),
                lines => format!(": {}", lines.join("; ")),
            } + more,
        };
        let reasons = self.reasons(request, input);
        if let Some((reason, others)) = reasons.split_first() {
            let allowed = reason.allowed.as_ref().map(|allowed| format!(", allowed {}", show(allowed)));
            let mut more = reason.advice.as_ref().map(|text| format!("; {text}")).unwrap_or_default();
            let mut rules: Vec<&str> = others.iter().map(|other| other.rule.as_str()).collect();
            rules.sort_unstable();
            rules.dedup();
            rules.retain(|rule| *rule != reason.rule);
            if !rules.is_empty() {
                more += &format!("; refused as well by {}", rules.join(", "));
            }
            return refused(
                &reason.rule,
                &reason.field,
                show(&reason.value),
                allowed.unwrap_or_default(),
                &more,
            );
        }
        let rule = format!("{PACKAGE}.{request}");
        for field in FIELDS {
            match input.get(field) {
                Some(Value::String(text)) if !text.is_empty() => {
                    return refused(&rule, field, show(&Value::String(text.clone())), String::new(), "");
                }
                _ => {}
            }
        }
        refused(&rule, "(whole request)", show(input), String::new(), "")
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
