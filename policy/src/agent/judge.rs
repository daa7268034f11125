//! Who answers what a policy says: the interpreter, and for generated policies a machine that is asked first.
//!
//! The machine is quick, and undecided where it is not sure ([`crate::engine::Machine`]). It counts only when it consents, and only for the rules
//! of the generator, of which the tests show that it says what the interpreter says. Where it does not consent, for whatever reason, the
//! interpreter decides and has the words; it is prepared with the state only then.

use serde_json::Value;

use super::PACKAGE;
use crate::engine::{Document, EngineError, Evaluation, Limits, Machine, Prepared, Program};
use crate::generate;

/// A policy with what it is asked on. A machine that cannot be made or used costs time, nothing else.
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
        let machine = if generated { machine(&program, limits).ok() } else { None };
        let mut judge = Self { program, constants, state: Document::null(), machine, interpreter: None };
        judge.set_state(state)?;
        Ok(judge)
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// Replaces the state. For the machine that is all; the interpreter analyses the whole text again, so it is left for when it is asked,
    /// unless it alone decides: then it is to fail here. A machine that does not take the state is not asked any more.
    pub(super) fn set_state(&mut self, state: Document) -> Result<(), EngineError> {
        let data = [self.constants.clone(), state.clone()];
        if self.machine.as_mut().is_some_and(|machine| machine.set_data(&data).is_err()) {
            self.machine = None;
        }
        self.interpreter = match self.machine {
            Some(_) => None,
            None => Some(self.program.prepare(&data)?),
        };
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
        self.machine.as_ref().map(|machine| machine.evaluate(&format!("{PACKAGE}.{rule}"), input))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::AgentPolicy;
    use super::*;
    use serde_json::json;

    /// The smallest policy that the generator could write.
    fn text() -> String {
        let container = json!({"kind": "container", "image": {"references": ["i"], "digests": ["d"]}, "user": {"uid": 1, "gid": 1, "groups": []},
            "capabilities": [], "privileged": false, "unmasked": false, "read_only_root": false, "no_new_privileges": false});
        let pod = json!({"workload": "Pod x", "namespace": null, "hostname": {"exactly": "x"}, "share_processes": false,
            "user_namespace": false, "service_variables": false, "sysctls": {}});
        let open = serde_json::to_value(generate::Open::default()).unwrap();
        let data = json!({"version": 1, "pod": pod, "open": open, "sandbox": container, "containers": {}});
        generate::render(&serde_json::from_value(data).unwrap())
    }

    fn policy(limits: &Limits) -> AgentPolicy {
        AgentPolicy::with_limits("policy.rego", &text(), limits).unwrap()
    }

    const REQUEST: &str = "UpdateInterfaceRequest";

    fn interface(name: &str) -> Value {
        json!({"interface": {"name": name, "device": name}})
    }

    #[test]
    fn a_limit_of_the_machine_leaves_the_decision_to_the_interpreter() {
        let mut quick = policy(&AgentPolicy::limits());
        assert!(quick.judge.consent(REQUEST, &interface("eth0").into()).is_some());
        let mut policy = policy(&Limits { instructions: 1, ..AgentPolicy::limits() });
        for (name, allowed) in [("eth0", true), ("lo", false)] {
            let input = Document::from(interface(name));
            assert!(policy.by_machine(REQUEST, &input).unwrap().is_err());
            assert!(policy.judge.consent(REQUEST, &input).is_none());
            assert_eq!(policy.would_allow(REQUEST, &interface(name)).is_ok(), allowed, "{name}");
            assert_eq!(policy.would_allow_document(REQUEST, &input), allowed, "{name}");
        }
    }

    #[test]
    fn the_interpreter_is_prepared_when_it_is_asked_and_knows_the_state() {
        let mut policy = policy(&AgentPolicy::limits());
        let sandbox = json!({"sandbox_id": "s", "storages": [], "hostname": "", "guest_hook_path": "", "kernel_modules": [], "sandbox_pidns": false});
        policy.check("CreateSandboxRequest", &sandbox).unwrap();
        assert!(policy.judge.interpreter.is_none());
        let denial = policy.check("CreateSandboxRequest", &sandbox).unwrap_err().to_string();
        assert!(denial.contains("rule one sandbox") && denial.contains("allowed \"s\""), "{denial}");
        assert!(policy.judge.interpreter.is_some());
        policy.check(REQUEST, &interface("eth0")).unwrap();
        assert!(policy.judge.interpreter.is_some(), "the state is the same");
    }

    #[test]
    fn what_the_machine_denies_or_leaves_undefined_is_not_final() {
        let mut policy = policy(&AgentPolicy::limits());
        for (request, input) in [
            (REQUEST, interface("lo")),
            ("NobodyHeardOfRequest", json!({})),
            ("ReadStreamRequest", json!({})),
        ] {
            assert!(policy.judge.consent(request, &input.clone().into()).is_none(), "{request}");
            assert!(policy.check(request, &input).is_err(), "{request}");
        }
    }
}
