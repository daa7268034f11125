//! Rego evaluation with limits: compile a policy text once, evaluate one of its rules many times.
//!
//! This is the only place that touches the Rego interpreter (regorus). It knows nothing of what a policy is
//! about: the agent's policy, the KBS resource policy and the attestation policy are built on it.
//!
//! Limits: text, line and line-length limits are checked before parsing; an evaluation that runs longer than
//! [`Limits::time`] is stopped (checked by the interpreter between steps); prints are cut at
//! [`MAX_PRINTS`] lines. Rego has no recursion and no I/O here (the `http` and `opa-runtime` built-ins are not
//! compiled in), so a policy can do nothing but compute.
//!
//! Both dialects are read: Rego v1 first, and, where that does not parse, v0 (`allow { ... }` without `if`), because
//! policies of both kinds are in circulation. The v1 error is reported when neither parses.
//!
//! "Undefined" (no rule body holds, or the package has no such rule) is `None`, never an error and never `false`:
//! what absence means is the caller's decision. Callers that gate access must treat it as denial.

mod functions;
mod machine;
mod prepared;
mod text;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{PolicyLengthConfig, Value};
use thiserror::Error;

pub use functions::{Document, Function, Lookup};
use functions::{InForce, Native, call, native, native_lookup};
pub use machine::Machine;
pub use prepared::Prepared;
pub(crate) use text::check_size;
use text::{locate, may_be_v0};

/// Most lines of `print` output that one evaluation returns.
pub const MAX_PRINTS: usize = 64;
/// Most characters of one `print` line that are kept.
pub const MAX_PRINT_CHARS: usize = 512;

/// Why a policy text was refused or could not be evaluated.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// The text exceeds a limit; it was not parsed.
    #[error("policy {name} exceeds a limit: {what} is {seen}, at most {limit} are read")]
    TooLarge {
        /// Name of the policy.
        name: String,
        /// What was counted: bytes, lines or columns.
        what: &'static str,
        /// How many there are.
        seen: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The text is not valid Rego.
    #[error("policy {name} does not compile{}: {message}", at(*line, *column))]
    Compile {
        /// Name of the policy.
        name: String,
        /// Line of the text, from 1, when known.
        line: Option<u32>,
        /// Column of that line, from 1, when known.
        column: Option<u32>,
        /// What the compiler says.
        message: String,
    },
    /// Evaluation failed: conflicting values, an unknown function, or the time limit.
    #[error("policy {name} failed in {rule}{}: {message}", at(*line, *column))]
    Evaluate {
        /// Name of the policy.
        name: String,
        /// Rule that was asked for.
        rule: String,
        /// Line of the text, from 1, when known.
        line: Option<u32>,
        /// Column of that line, from 1, when known.
        column: Option<u32>,
        /// What the interpreter says.
        message: String,
    },
    /// Input, data or result cannot be carried between JSON and Rego.
    #[error("policy {name}: {what} is not JSON that a policy can read: {message}")]
    Convert {
        /// Name of the policy.
        name: String,
        /// Which document.
        what: &'static str,
        /// Why.
        message: String,
    },
}

fn at(line: Option<u32>, column: Option<u32>) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!(" at line {line}, column {column}"),
        (Some(line), None) => format!(" at line {line}"),
        _ => String::new(),
    }
}

/// Bounds on a policy's text and on its evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of text.
    pub bytes: usize,
    /// Lines of text.
    pub lines: usize,
    /// Bytes of one line.
    pub columns: usize,
    /// Time of one evaluation. It guards against runaway policies, it is no latency promise.
    pub time: Duration,
    /// Instructions of one evaluation of a [`Machine`]; the interpreter has none.
    pub instructions: usize,
}

impl Default for Limits {
    /// 1 MiB, 20,000 lines, 16 KiB a line (generated policies have long lines), 5 s, and 100,000 instructions, which take some 2 ms.
    fn default() -> Self {
        Self {
            bytes: 1 << 20,
            lines: 20_000,
            columns: 16 << 10,
            time: Duration::from_secs(5),
            instructions: 100_000,
        }
    }
}

/// What an evaluation yields.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Value of the rule; `None` when undefined.
    pub value: Option<serde_json::Value>,
    /// What the policy printed, in order, at most [`MAX_PRINTS`] lines.
    pub prints: Vec<String>,
}

impl Evaluation {
    /// Whether the rule is the boolean `true`. Anything else, also a string `"true"`, is not.
    pub fn is_true(&self) -> bool {
        self.value == Some(serde_json::Value::Bool(true))
    }
}

/// A compiled policy text. Cheap to clone, shareable between threads; evaluations do not influence each other.
#[derive(Clone)]
pub struct Program {
    name: String,
    package: String,
    engine: regorus::Engine,
    /// Rule that gathers the rules of [`Program::compile_rules`].
    gathered: Option<String>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("name", &self.name)
            .field("package", &self.package)
            .finish_non_exhaustive()
    }
}

impl Program {
    /// Compiles `text`. `name` appears in errors only.
    pub fn compile(name: &str, text: &str, limits: &Limits) -> Result<Self, EngineError> {
        Self::compile_with(name, text, limits, &[])
    }

    /// Compiles `text`, which may call the one-argument `functions`; each evaluation must then bring them
    /// ([`Program::evaluate_with`]).
    pub fn compile_with(
        name: &str,
        text: &str,
        limits: &Limits,
        functions: &[&str],
    ) -> Result<Self, EngineError> {
        Self::compile_rules(name, text, limits, functions, &[])
    }

    /// Compiles `text`, of which [`Program::evaluate_rules`] yields all of `rules` (`data.policy.allow`) in one evaluation:
    /// what they have in common is computed once.
    pub fn compile_rules(
        name: &str,
        text: &str,
        limits: &Limits,
        functions: &[&str],
        rules: &[&str],
    ) -> Result<Self, EngineError> {
        check_size(name, text, limits)?;
        let first = match Self::parse(name, text, limits, (functions, rules), false) {
            Ok(program) => return Ok(program),
            Err(e) => e,
        };
        if !may_be_v0(text) {
            return Err(first);
        }
        Self::parse(name, text, limits, (functions, rules), true).map_err(|_| first)
    }

    fn parse(
        name: &str,
        text: &str,
        limits: &Limits,
        (functions, rules): (&[&str], &[&str]),
        v0: bool,
    ) -> Result<Self, EngineError> {
        let fail = |e: &dyn std::fmt::Display| {
            let (line, column, message) = locate(&e.to_string());
            EngineError::Compile { name: name.to_owned(), line, column, message }
        };
        let mut engine = regorus::Engine::new();
        engine.set_rego_v0(v0);
        engine.set_gather_prints(true);
        engine.set_strict_builtin_errors(false);
        engine.set_policy_length_config(PolicyLengthConfig {
            max_col: u32::try_from(limits.columns).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
            max_file_bytes: NonZeroUsize::new(limits.bytes).unwrap_or(NonZeroUsize::MIN),
            max_lines: NonZeroUsize::new(limits.lines).unwrap_or(NonZeroUsize::MIN),
        });
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: limits.time,
            check_interval: NonZeroU32::new(256).unwrap_or(NonZeroU32::MIN),
        });
        let package = engine.add_policy(name.to_owned(), text.to_owned()).map_err(|e| fail(&e))?;
        if !rules.is_empty() {
            engine.set_rego_v0(false);
            engine.add_policy("gathered rules".to_owned(), gathering(rules)).map_err(|e| fail(&e))?;
        }
        for function in functions {
            let stand_in = (*function).to_owned();
            engine
                .add_extension(
                    (*function).to_owned(),
                    1,
                    Box::new(move |arguments: Vec<Value>| Ok(call(&stand_in, &arguments))),
                )
                .map_err(|e| fail(&e))?;
        }
        // Scheduling problems and unsafe variables are found when the interpreter prepares itself, which a query on
        // nothing triggers. It is then ready for every evaluation.
        engine.eval_query("true".to_owned(), false).map_err(|e| fail(&e))?;
        let gathered = (!rules.is_empty()).then(|| format!("data.{GATHERING}.values"));
        Ok(Self { name: name.to_owned(), package, engine, gathered })
    }

    /// Name given at compilation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Package of the text with `data.` in front, e.g. `data.policy`.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// Whether there is a rule at `path`, also one that is undefined or fails for every input.
    pub fn has_rule(&self, path: &str) -> bool {
        !matches!(self.engine.clone().eval_rule(path.to_owned()), Err(e) if no_such_rule(&e))
    }

    /// Evaluates the rule at `path` (`data.policy.allow`).
    pub fn evaluate(
        &self,
        path: &str,
        input: &serde_json::Value,
        data: &serde_json::Value,
    ) -> Result<Evaluation, EngineError> {
        self.evaluate_with(path, input, data, &BTreeMap::new())
    }

    /// Like [`Program::evaluate`], with the functions that were declared at compilation. One that is missing is
    /// undefined for every argument.
    pub fn evaluate_with(
        &self,
        path: &str,
        input: &serde_json::Value,
        data: &serde_json::Value,
        functions: &BTreeMap<String, Function>,
    ) -> Result<Evaluation, EngineError> {
        let functions = functions.iter().map(|(name, function)| (name.clone(), native(function))).collect();
        let data = (!data.is_null()).then(|| Document::from(data.clone()));
        self.run(path, Value::from(input.clone()), data.as_ref(), functions)
    }

    /// Like [`Program::evaluate`], with an input that many evaluations share.
    pub fn evaluate_document(
        &self,
        path: &str,
        input: &Document,
        data: &Document,
    ) -> Result<Evaluation, EngineError> {
        self.run(path, input.0.clone(), Some(data), BTreeMap::new())
    }

    /// The values of the rules that were named at [`Program::compile_rules`], as an object from name to value; a rule that is
    /// undefined has no member.
    pub fn evaluate_rules(
        &self,
        input: &serde_json::Value,
        data: Option<&Document>,
        functions: &BTreeMap<String, Lookup>,
    ) -> Result<Evaluation, EngineError> {
        let Some(path) = &self.gathered else {
            return Ok(Evaluation { value: None, prints: Vec::new() });
        };
        let functions =
            functions.iter().map(|(name, function)| (name.clone(), native_lookup(function))).collect();
        let mut evaluation = self.run(path, Value::from(input.clone()), data, functions)?;
        evaluation.value = evaluation.value.map(object_of_pairs);
        Ok(evaluation)
    }

    fn run(
        &self,
        path: &str,
        input: Value,
        data: Option<&Document>,
        functions: BTreeMap<String, Native>,
    ) -> Result<Evaluation, EngineError> {
        let convert = |what: &'static str, message: String| EngineError::Convert {
            name: self.name.clone(),
            what,
            message,
        };
        let mut engine = self.engine.clone();
        if let Some(data) = data {
            engine.add_data(data.0.clone()).map_err(|e| convert("data", e.to_string()))?;
        }
        engine.set_input(input);
        let in_force = InForce::new(functions);
        let result = engine.eval_rule(path.to_owned());
        drop(in_force);
        outcome(&self.name, path, result, &mut engine)
    }
}

/// What the interpreter's answer says.
fn outcome<E: std::fmt::Display>(
    name: &str,
    path: &str,
    result: Result<Value, E>,
    engine: &mut regorus::Engine,
) -> Result<Evaluation, EngineError> {
    let mut prints = engine.take_prints().unwrap_or_default();
    let value = match result {
        Ok(Value::Undefined) => None,
        Ok(value) => Some(serde_json::to_value(&value).map_err(|e| EngineError::Convert {
            name: name.to_owned(),
            what: "result",
            message: e.to_string(),
        })?),
        Err(e) if no_such_rule(&e) => None,
        Err(e) => {
            let (line, column, message) = locate(&e.to_string());
            return Err(EngineError::Evaluate {
                name: name.to_owned(),
                rule: path.to_owned(),
                line,
                column,
                message,
            });
        }
    };
    prints.truncate(MAX_PRINTS);
    for line in &mut prints {
        if let Some((end, _)) = line.char_indices().nth(MAX_PRINT_CHARS) {
            line.truncate(end);
        }
    }
    Ok(Evaluation { value, prints })
}

/// Package of our own that gathers rules of a policy.
const GATHERING: &str = "kata_cc_gathered";

/// A module with one rule: a set of pairs, name and value, of those of `rules` that are defined. (A partial object would do, but the
/// engine does not take its name for a rule's.)
fn gathering(rules: &[&str]) -> String {
    let mut text = format!("package {GATHERING}\n");
    for rule in rules {
        let name = rule.rsplit('.').next().unwrap_or(rule);
        text.push_str(&format!("values contains [\"{name}\", value] if value := {rule}\n"));
    }
    text
}

/// `[["a", 1], ["b", 2]]` as `{"a": 1, "b": 2}`.
fn object_of_pairs(pairs: serde_json::Value) -> serde_json::Value {
    let serde_json::Value::Array(pairs) = pairs else { return pairs };
    let members = pairs.into_iter().filter_map(|pair| match pair {
        serde_json::Value::Array(pair) => match <[_; 2]>::try_from(pair) {
            Ok([serde_json::Value::String(name), value]) => Some((name, value)),
            _ => None,
        },
        _ => None,
    });
    serde_json::Value::Object(members.collect())
}

fn no_such_rule(error: &impl std::fmt::Display) -> bool {
    error.to_string().contains("not a valid rule path")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;

    fn compile(text: &str) -> Result<Program, EngineError> {
        Program::compile("test.rego", text, &Limits::default())
    }

    #[test]
    fn evaluates_both_dialects() {
        for text in [
            "package policy\nimport rego.v1\ndefault allow := false\nallow if input.x == data.y",
            "package policy\ndefault allow = false\nallow {\n input.x == data.y\n}",
        ] {
            let program = compile(text).unwrap();
            assert_eq!(program.package(), "data.policy");
            let rule = "data.policy.allow";
            assert!(program.evaluate(rule, &json!({"x": 1}), &json!({"y": 1})).unwrap().is_true());
            assert!(!program.evaluate(rule, &json!({"x": 1}), &json!({"y": 2})).unwrap().is_true());
        }
    }

    #[test]
    fn undefined_is_not_an_error_and_not_true() {
        let program = compile("package policy\nallow if input.x").unwrap();
        for rule in ["data.policy.allow", "data.policy.nothing", "data.other.allow"] {
            let result = program.evaluate(rule, &json!({}), &json!(null)).unwrap();
            assert_eq!(result.value, None);
            assert!(!result.is_true());
        }
    }

    #[test]
    fn prints_are_collected_and_do_not_leak_into_the_next_evaluation() {
        let program = compile("package policy\nallow if { print(\"seen\", input.x); input.x == 2 }").unwrap();
        for x in [1, 2] {
            let result = program.evaluate("data.policy.allow", &json!({"x": x}), &json!({})).unwrap();
            assert_eq!(result.prints.len(), 1);
            assert!(result.prints[0].contains(&format!("seen {x}")), "{:?}", result.prints);
        }
    }

    #[test]
    fn compile_errors_carry_the_line() {
        let error = compile("package policy\n\nallow if {\n  input.x ==\n}\n").unwrap_err();
        assert!(matches!(error, EngineError::Compile { line: Some(4 | 5), .. }), "{error:?}");
        // An unknown function is only found where it is called.
        let program = compile("package policy\nallow if no_such_function(1)\n").unwrap();
        let error = program.evaluate("data.policy.allow", &json!({}), &json!({})).unwrap_err();
        assert!(matches!(error, EngineError::Evaluate { line: Some(2), .. }), "{error:?}");
    }

    #[test]
    fn a_broken_v1_text_is_not_taken_for_v0() {
        for text in [
            "package policy\nallow if { input.x == }",
            "package policy\nallow if\n{ input.x ==\n}",
            "package policy\nimport future.keywords.in\nallow if { input.x in [1] }\nbad {",
            "package policy\ndeny contains x { x := 1 }",
        ] {
            assert!(compile(text).is_err(), "{text}");
        }
        let old = "package policy\nimport future.keywords.if\nallow if { contains(input.x, \"a\") }\nother { true }";
        let program = compile(old).unwrap();
        let rule = "data.policy.allow";
        assert!(program.evaluate(rule, &json!({"x": "bab"}), &json!({})).unwrap().is_true());
        assert!(!program.evaluate(rule, &json!({"x": "b"}), &json!({})).unwrap().is_true());
    }

    #[test]
    fn limits_are_checked_before_parsing() {
        let limits = Limits { bytes: 10, ..Limits::default() };
        let error = Program::compile("p", "package policy", &limits).unwrap_err();
        assert!(matches!(error, EngineError::TooLarge { what: "bytes", seen: 14, limit: 10, .. }));
    }

    #[test]
    fn a_runaway_policy_is_stopped() {
        let limits = Limits { time: Duration::from_millis(50), ..Limits::default() };
        let text = "package policy\nallow if { some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == -1 }";
        let program = Program::compile("p", text, &limits).unwrap();
        let error = program.evaluate("data.policy.allow", &json!({}), &json!({})).unwrap_err();
        assert!(error.to_string().contains("time limit"), "{error}");
    }

    #[test]
    fn functions_are_called_per_evaluation() {
        let text = "package policy\nvalue := query_reference_value(\"svn\")\nallow if input.svn in query_reference_value(\"svn\")";
        let program =
            Program::compile_with("p", text, &Limits::default(), &["query_reference_value"]).unwrap();
        for known in [json!([1, 2]), json!([3])] {
            let answer = known.clone();
            let function: Function = Arc::new(move |name| (name == "svn").then(|| answer.clone()));
            let functions = BTreeMap::from([("query_reference_value".to_owned(), function)]);
            let run = |rule| program.evaluate_with(rule, &json!({"svn": 3}), &json!({}), &functions).unwrap();
            assert_eq!(run("data.policy.value").value, Some(known.clone()));
            assert_eq!(run("data.policy.allow").is_true(), known == json!([3]));
        }
    }

    #[test]
    fn rules_are_gathered_in_one_evaluation() {
        let rules = ["data.policy.a", "data.policy.b", "data.policy.none", "data.policy.undefined"];
        let v1 = "package policy\na := query(\"x\")\nb contains input.y\nundefined := 1 if input.z";
        let v0 = "package policy\na = query(\"x\")\nb[y] { y := input.y }\nundefined = 1 { input.z }";
        for text in [v1, v0] {
            let program = Program::compile_rules("p", text, &Limits::default(), &["query"], &rules).unwrap();
            let lookup: Lookup = Arc::new(|name| (name == "x").then(|| Document::from(json!([1, "2"]))));
            let functions = BTreeMap::from([("query".to_owned(), lookup)]);
            let run = |functions| program.evaluate_rules(&json!({"y": 3}), None, functions).unwrap().value;
            assert_eq!(run(&functions), Some(json!({"a": [1, "2"], "b": [3]})));
            // Those of the evaluation before are not in force any more.
            assert_eq!(run(&BTreeMap::new()), Some(json!({"b": [3]})));
        }
        let text = "package policy\nb := 1\nb := 2 if input.y";
        let program = Program::compile_rules("p", text, &Limits::default(), &[], &rules).unwrap();
        assert!(program.evaluate_rules(&json!({"y": 3}), None, &BTreeMap::new()).is_err());
        let data = Document::from(json!({"reference": {"x": [7]}}));
        let text = "package policy\na := data.reference.x";
        let program = Program::compile_rules("p", text, &Limits::default(), &[], &rules).unwrap();
        let value = program.evaluate_rules(&json!({}), Some(&data), &BTreeMap::new()).unwrap().value;
        assert_eq!(value, Some(json!({"a": [7]})));
    }

    #[test]
    fn large_numbers_survive() {
        let program = compile("package policy\nvalue := input.x").unwrap();
        for x in [json!(u64::MAX), json!(i64::MIN), json!("a\u{0}b"), json!([1, {"a": null}])] {
            let result = program.evaluate("data.policy.value", &json!({"x": x}), &json!({})).unwrap();
            assert_eq!(result.value, Some(x));
        }
    }
}
