//! The interpreter's virtual machine: a program compiled to instructions, some ten times faster than the interpreter.
//!
//! It is not the interpreter. What was seen to differ in regorus 0.14.1:
//!
//! - A rule body that fails (a set less an array, say) is taken for one that does not hold, where the interpreter ends the evaluation: a
//!   rule that forbids then forbids nothing.
//! - Definitions of a function that contradict each other make it undefined; for the interpreter that is an error.
//! - `x := y` with an undefined `y` goes on, and so does a function that is called with it: `not f(x)` may then hold. The array
//!   `[x | x := y]` has an undefined item, where the interpreter makes an empty one.
//!
//! Whoever asks the machine has to know its rules, and that the two agree on them; see `agent`.

use std::num::NonZeroU32;
use std::sync::Arc;

use regorus::Value;
use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::RegoVM;
use regorus::rvm::program::{Program as Code, RuleInfo};
use regorus::utils::limits::ExecutionTimerConfig;

use super::functions::Document;
use super::{EngineError, Limits, Program};

/// Steps between two looks at the clock.
const CLOCK_STEPS: NonZeroU32 = NonZeroU32::new(256).unwrap();

/// A program as instructions, with its data.
pub struct Machine {
    name: String,
    code: Arc<Code>,
    limits: Limits,
    data: Value,
    machine: RegoVM,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Clone for Machine {
    /// The instructions are shared, what is being evaluated is not.
    fn clone(&self) -> Self {
        let machine = load(&self.code, &self.limits, self.data.clone()).unwrap_or_default();
        let (name, code) = (self.name.clone(), Arc::clone(&self.code));
        Self { name, code, limits: self.limits, data: self.data.clone(), machine }
    }
}

impl Program {
    /// The rules at `paths`, and all that they need, as instructions; they have no data yet.
    ///
    /// # Errors
    /// When there is no such rule, or the text has something that the machine does not know: [`EngineError::Compile`].
    pub fn machine(&self, paths: &[&str], limits: &Limits) -> Result<Machine, EngineError> {
        let fail = |e: &dyn std::fmt::Display| EngineError::Compile {
            name: self.name.clone(),
            line: None,
            column: None,
            message: format!("for the machine: {e}"),
        };
        let first = paths.first().ok_or_else(|| fail(&"no rules"))?;
        let policy = self.engine.clone().compile_with_entrypoint(&Arc::from(*first)).map_err(|e| fail(&e))?;
        let code = Compiler::compile_from_policy(&policy, paths).map_err(|e| fail(&e))?;
        let code = Arc::new(lean(Arc::unwrap_or_clone(code)));
        let data = Value::new_object();
        let machine = load(&code, limits, data.clone()).map_err(|e| fail(&e))?;
        Ok(Machine { name: self.name.clone(), code, limits: *limits, data, machine })
    }
}

impl Machine {
    /// Replaces the data: the documents' members together, of a name in several of them the last.
    ///
    /// # Errors
    /// When a document is no object, or has a member where there is a rule: [`EngineError::Convert`].
    pub fn set_data(&mut self, documents: &[Document]) -> Result<(), EngineError> {
        let fail = |message: String| EngineError::Convert { name: self.name.clone(), what: "data", message };
        let mut data = Value::new_object();
        let members = data.as_object_mut().map_err(|e| fail(e.to_string()))?;
        for document in documents {
            for (key, value) in document.0.as_object().map_err(|e| fail(e.to_string()))?.iter() {
                members.insert(key.clone(), value.clone());
            }
        }
        self.machine.set_data(data.clone()).map_err(|e| fail(e.to_string()))?;
        self.data = data;
        Ok(())
    }

    /// Evaluates the rule at `path`, which must be among those that were named; `None` when it is undefined. Nothing stays for the next
    /// evaluation.
    ///
    /// # Errors
    /// When there is no such rule, time or instructions are used up, or something in the value is undefined: [`EngineError::Evaluate`].
    pub fn evaluate(&mut self, path: &str, input: &Document) -> Result<Option<Document>, EngineError> {
        let fail = |message: String| EngineError::Evaluate {
            name: self.name.clone(),
            rule: path.to_owned(),
            line: None,
            column: None,
            message: format!("in the machine: {message}"),
        };
        self.machine.set_input(input.0.clone());
        match self.machine.execute_entry_point_by_name(path).map(Document) {
            Ok(Document(Value::Undefined)) => Ok(None),
            Ok(value) if value.is_whole() => Ok(Some(value)),
            Ok(_) => Err(fail("a part of the value is undefined".to_owned())),
            Err(e) => Err(fail(e.to_string())),
        }
    }
}

fn load(code: &Arc<Code>, limits: &Limits, data: Value) -> regorus::rvm::vm::Result<RegoVM> {
    let mut machine = RegoVM::new();
    machine.load_program(Arc::clone(code));
    machine.set_max_instructions(limits.instructions);
    machine.set_execution_timer_config(Some(ExecutionTimerConfig {
        limit: limits.time,
        check_interval: CLOCK_STEPS,
    }));
    machine.set_data(data)?;
    Ok(machine)
}

/// Without what is there for messages: the machine copies what it knows of a rule each time that it calls it, names included.
fn lean(mut code: Code) -> Code {
    let plain = |rule: &RuleInfo| rule.else_bodies.iter().flatten().all(|is_else| !is_else);
    for rule in &mut code.rule_infos {
        rule.name = String::new();
        if let Some(function) = &mut rule.function_info {
            function.param_names = Vec::new();
        }
        // What is missing is taken for "none" and for "no else".
        if rule.destructuring_blocks.iter().all(Option::is_none) {
            rule.destructuring_blocks = Vec::new();
        }
        if plain(rule) {
            rule.else_bodies = Vec::new();
        }
    }
    code.instruction_spans = Vec::new();
    code.sources = Vec::new();
    code
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use serde_json::json;

    fn compiled(text: &str, limits: &Limits) -> (Program, Machine) {
        let program = Program::compile("test.rego", &format!("package policy\n{text}"), limits).unwrap();
        let machine = program.machine(&["data.policy.allow"], limits).unwrap();
        (program, machine)
    }

    fn ask(machine: &mut Machine, input: serde_json::Value) -> Result<Option<Document>, EngineError> {
        machine.evaluate("data.policy.allow", &Document::from(input))
    }

    #[test]
    fn evaluations_share_data_and_nothing_else() {
        let text = "default allow := false\nallow := input.y if input.x == data.a.x + data.b";
        let (_, mut machine) = compiled(text, &Limits::default());
        let ask =
            |machine: &mut Machine, x| ask(machine, json!({"x": x, "y": [1]})).unwrap().unwrap().to_json();
        assert_eq!(ask(&mut machine, 3), json!(false));
        machine.set_data(&[json!({"a": {"x": 1}}).into(), json!({"b": 2}).into()]).unwrap();
        assert_eq!(ask(&mut machine, 3), json!([1]));
        let mut copy = machine.clone();
        machine.set_data(&[json!({"a": {"x": 2}, "b": 2}).into()]).unwrap();
        assert_eq!((ask(&mut machine, 3), ask(&mut machine, 4)), (json!(false), json!([1])));
        assert_eq!(ask(&mut copy, 3), json!([1]));
        assert!(machine.set_data(&[json!([]).into()]).is_err());
        assert!(machine.set_data(&[json!({"policy": {"allow": true}}).into()]).is_err());
    }

    #[test]
    fn time_and_instructions_are_limited() {
        let text =
            "allow if { some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); i * j == -1 }";
        let unlimited = usize::MAX;
        for (limits, words) in [
            (
                Limits { time: Duration::from_millis(20), instructions: unlimited, ..Limits::default() },
                "time limit",
            ),
            (Limits { instructions: 1000, ..Limits::default() }, "instruction"),
        ] {
            let (_, mut machine) = compiled(text, &limits);
            let start = Instant::now();
            let error = ask(&mut machine, json!({})).unwrap_err().to_string().to_lowercase();
            assert!(error.contains(words), "{error}");
            assert!(start.elapsed() < Duration::from_secs(1), "{words}: {:?}", start.elapsed());
            // and the limit holds for a copy as well
            assert!(ask(&mut machine.clone(), json!({})).is_err(), "{words}");
        }
    }

    /// Why the machine is asked about rules alone that are known: if these agree one day, the words above this file are to be changed.
    #[test]
    fn it_is_not_the_interpreter_where_a_rule_fails() {
        for text in [
            // an item of what is no list
            "allow if count(wrong) == 0\nwrong contains 1 if { some x in input.list; x == 1 }",
            // a set less a list
            "allow if count(wrong) == 0\nwrong contains 1 if { {1} - input.text == {1} }",
            // definitions that contradict each other
            "allow if not f(1)\nf(x) := 1 if input.text\nf(x) := 2 if input.list",
        ] {
            let (program, mut machine) = compiled(text, &Limits::default());
            let input = json!({"list": 7, "text": "x"});
            let slow = program.evaluate("data.policy.allow", &input, &json!({}));
            assert!(slow.is_err(), "{text}: {slow:?}");
            assert!(ask(&mut machine, input).unwrap().is_some_and(|value| value.is_true()), "{text}");
        }
        let (program, mut machine) =
            compiled("allow if { x := input.none; not startswith(x, \"a\") }", &Limits::default());
        assert_eq!(program.evaluate("data.policy.allow", &json!({}), &json!({})).unwrap().value, None);
        assert!(ask(&mut machine, json!({})).unwrap().is_some_and(|value| value.is_true()));
    }

    #[test]
    fn a_value_that_is_undefined_in_part_is_none() {
        let (_, mut machine) =
            compiled("allow := {\"allowed\": true, \"ops\": [x | x := input.none]}", &Limits::default());
        let error = ask(&mut machine, json!({})).unwrap_err().to_string();
        assert!(error.contains("undefined"), "{error}");
        assert!(ask(&mut machine, json!({"none": 1})).unwrap().is_some());
    }
}
