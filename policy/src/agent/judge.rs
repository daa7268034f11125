//! Who answers what a policy says: the interpreter, and for generated policies a machine that is asked first.
//!
//! The machine is quick and not the interpreter ([`crate::engine::Machine`]). So it counts only when it consents, and only for the rules of
//! the generator, of which the tests show that it consents to nothing that the interpreter refuses. Where it does not consent, for whatever
//! reason, the interpreter decides and has the words; it is prepared with the state only then.

use serde_json::Value;

use super::PACKAGE;
use crate::engine::{Document, EngineError, Evaluation, Limits, Machine, Prepared, Program};
use crate::generate;

/// A policy with what it is asked on.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    program: Program,
    /// What of the text is constant.
    constants: Document,
    /// `{"pstate": …}`
    state: Document,
    /// Of a generated policy.
    machine: Option<Machine>,
    /// With constants and state; none while nobody has asked since the state changed.
    interpreter: Option<Prepared>,
}

impl Judge {
    /// `generated` when the text's rules are the generator's.
    pub(super) fn new(
        program: Program,
        constants: Document,
        state: Document,
        (generated, limits): (bool, &Limits),
    ) -> Result<Self, EngineError> {
        let machine = if generated { Some(machine(&program, limits)?) } else { None };
        let mut judge = Self { program, constants, state: Document::null(), machine, interpreter: None };
        judge.set_state(state)?;
        Ok(judge)
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// Replaces the state. For the machine that is all; the interpreter analyses the whole text again, so it is left for when it is asked,
    /// unless it alone decides: then it is to fail here.
    pub(super) fn set_state(&mut self, state: Document) -> Result<(), EngineError> {
        let data = [self.constants.clone(), state.clone()];
        match &mut self.machine {
            Some(machine) => {
                machine.set_data(&data)?;
                self.interpreter = None;
            }
            None => self.interpreter = Some(self.program.prepare(&data)?),
        }
        self.state = state;
        Ok(())
    }

    /// What the machine says where it consents; `None` says nothing.
    pub(super) fn consent(&mut self, request: &str, input: &Document) -> Option<Document> {
        self.by_machine(request, input)?.ok().flatten().filter(Document::is_consent)
    }

    /// What the machine says; `None` when the policy has none.
    pub(super) fn by_machine(
        &mut self,
        rule: &str,
        input: &Document,
    ) -> Option<Result<Option<Document>, EngineError>> {
        self.machine.as_mut().map(|machine| machine.evaluate(&format!("{PACKAGE}.{rule}"), input))
    }

    /// What the interpreter says.
    pub(super) fn by_interpreter(&mut self, rule: &str, input: &Document) -> Result<Evaluation, EngineError> {
        let interpreter = match &mut self.interpreter {
            Some(interpreter) => interpreter,
            none => none.insert(self.program.prepare(&[self.constants.clone(), self.state.clone()])?),
        };
        interpreter.evaluate(&format!("{PACKAGE}.{rule}"), input)
    }
}

fn machine(program: &Program, limits: &Limits) -> Result<Machine, EngineError> {
    let paths: Vec<String> = generate::requests().map(|request| format!("{PACKAGE}.{request}")).collect();
    program.machine(&paths.iter().map(String::as_str).collect::<Vec<_>>(), limits)
}

impl Document {
    /// True, or an object of which `allowed` is true.
    pub(super) fn is_consent(&self) -> bool {
        self.member("allowed").unwrap_or_else(|| self.clone()).is_true()
    }

    /// State changes that come with a consent.
    pub(super) fn ops(&self) -> Vec<Value> {
        match self.member("ops").map(|ops| ops.to_json()) {
            Some(Value::Array(ops)) => ops,
            _ => Vec::new(),
        }
    }
}
