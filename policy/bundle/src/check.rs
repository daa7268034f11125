//! Whether a bundle's parts are what the services take, and do what the cases beside them say.
//!
//! Agent policies, the image policy and the resource policy are judged here by the code that guests and the key broker run. What only the
//! attestation service knows comes through [`Checks`], which that service implements.

use std::collections::{BTreeMap, BTreeSet};

use kata_cc_image::signature::Policy as ImagePolicy;
use kata_cc_policy::AgentPolicy;
use kata_cc_policy::engine::{Limits, Program};
use kata_cc_policy::lint;
use kata_cc_policy::replay;
use serde::Serialize;
use serde_json::Value;

use crate::cases;
use crate::layout::{IMAGE_POLICY, MANIFEST, Part, RESOURCE_POLICY};
use crate::{Bundle, BundleError};

/// Why the attestation service would not take something.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// What the attestation service knows.
pub trait Checks: Send + Sync {
    /// Whether it takes this text as policy `id`.
    ///
    /// # Errors
    /// Why not.
    fn attestation_policy(&self, id: &str, text: &str) -> Result<(), Fault>;

    /// The status (`affirming`, ...) that policy `id` with this text gives claims.
    ///
    /// # Errors
    /// Why it gives none.
    fn appraise(
        &self,
        id: &str,
        text: &str,
        claims: &Value,
        references: &BTreeMap<String, Value>,
    ) -> Result<String, Fault>;

    /// Whether it takes a reference value that ends at `expires` (RFC 3339).
    ///
    /// # Errors
    /// Why not.
    fn reference_value(&self, name: &str, value: &Value, expires: Option<&str>) -> Result<(), Fault>;

    /// Whether it takes this public key (PEM) as one that signs reference values.
    ///
    /// # Errors
    /// Why not.
    fn trusted_key(&self, pem: &[u8]) -> Result<(), Fault>;
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// To be known.
    Warning,
    /// The bundle is refused.
    Error,
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Which file, or which place of it.
    pub path: String,
    /// What it is.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl Bundle {
    /// Looks at every part and runs all cases. Gives what was found, errors first.
    pub fn check(&self, checks: &dyn Checks) -> Vec<Problem> {
        let mut found = Found { bundle: self, checks, problems: Vec::new() };
        found.agent();
        found.image();
        found.resource();
        found.references();
        found.attestation();
        found.trust();
        found.cases_without_policy();
        found.problems.sort_by_key(|one| std::cmp::Reverse(one.severity));
        found.problems
    }

    /// Refuses a bundle of which anything is wrong; gives what is only to be known.
    ///
    /// # Errors
    /// [`BundleError::Refused`] with the first problem.
    pub fn demand(&self, checks: &dyn Checks) -> Result<Vec<Problem>, BundleError> {
        let problems = self.check(checks);
        let mut errors = problems.iter().filter(|one| one.severity == Severity::Error);
        match errors.next() {
            None => Ok(problems),
            Some(first) => Err(BundleError::Refused { first: first.to_string(), others: errors.count() }),
        }
    }
}

struct Found<'a> {
    bundle: &'a Bundle,
    checks: &'a dyn Checks,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn add(&mut self, severity: Severity, path: &str, message: impl std::fmt::Display) {
        let message = message.to_string();
        self.problems.push(Problem { severity, path: path.to_owned(), message });
    }

    fn error(&mut self, path: &str, message: impl std::fmt::Display) {
        self.add(Severity::Error, path, message);
    }

    fn agent(&mut self) {
        let bundle = self.bundle;
        let mut used = BTreeSet::new();
        for (name, text) in bundle.policies(Part::Agent) {
            let path = format!("agent/{name}.rego");
            match lint::lint(&path, text) {
                Err(error) => {
                    self.error(&path, error);
                    continue;
                }
                Ok(findings) => self.findings(&path, &findings, &mut used),
            }
            let beside = format!("agent/{name}.test.yaml");
            let Some(cases) = bundle.text(&beside) else { continue };
            match (replay::cases(cases), AgentPolicy::new(&path, text)) {
                (Err(error), _) => self.error(&beside, error),
                (_, Err(error)) => self.error(&path, error),
                (Ok(cases), Ok(_)) if cases.is_empty() => self.error(&beside, "it has no cases"),
                (Ok(cases), Ok(mut policy)) => {
                    for outcome in replay::run(&mut policy, &cases).iter().filter(|one| !one.passed) {
                        let came = outcome.answer.denial.as_deref().unwrap_or("it is allowed");
                        self.error(&beside, format!("case {:?} came otherwise: {came}", outcome.name));
                    }
                }
            }
        }
        for (number, accepted) in bundle.manifest().accept.iter().enumerate() {
            if !used.contains(&number) {
                let message =
                    format!("accept[{number}]: {} has no finding {}", accepted.file, accepted.check);
                self.add(Severity::Warning, MANIFEST, message);
            }
        }
    }

    /// Dangerous findings stop a bundle unless the manifest accepts them.
    fn findings(&mut self, path: &str, findings: &[lint::Finding], used: &mut BTreeSet<usize>) {
        for finding in findings.iter().filter(|one| one.severity == lint::Severity::Danger) {
            let accepted = self
                .bundle
                .manifest()
                .accept
                .iter()
                .position(|one| one.file == path && one.check == finding.check);
            let message = format!("{} [{}] at {}", finding.message, finding.check, finding.place);
            match accepted {
                Some(number) => {
                    used.insert(number);
                    self.add(Severity::Warning, path, format!("accepted: {message}"));
                }
                None => self.error(path, message),
            }
        }
    }

    fn image(&mut self) {
        if let Some(text) = self.bundle.image_policy()
            && let Err(error) = ImagePolicy::parse(text.as_bytes())
        {
            self.error(IMAGE_POLICY, error);
        }
    }

    fn resource(&mut self) {
        let Some(text) = self.bundle.resource_policy() else { return };
        let program = match Program::compile("resource-policy", text, &Limits::default()) {
            Ok(program) => program,
            Err(error) => return self.error(RESOURCE_POLICY, error),
        };
        if !program.has_rule("data.policy.allow") {
            // It compiles and denies everybody everything.
            self.error(RESOURCE_POLICY, "it has no rule data.policy.allow, so nobody would get anything");
        }
        let beside = "resource/policy.test.yaml";
        let Some(cases) = self.bundle.text(beside) else { return };
        match cases::resource(cases) {
            Err(why) => self.error(beside, why),
            Ok(cases) => {
                for case in cases {
                    if let Err(why) = case.put(&program) {
                        self.error(beside, format!("case {:?} came otherwise: {why}", case.name));
                    }
                }
            }
        }
    }

    fn references(&mut self) {
        for (path, file) in self.bundle.references() {
            for (name, value) in &file.values {
                if let Err(why) = self.checks.reference_value(name, value, file.expires.as_deref()) {
                    self.error(path, why);
                }
            }
        }
    }

    fn attestation(&mut self) {
        let (bundle, checks) = (self.bundle, self.checks);
        for (id, text) in bundle.policies(Part::Attestation) {
            let path = format!("attestation/{id}.rego");
            if let Err(why) = checks.attestation_policy(id, text) {
                self.error(&path, why);
                continue;
            }
            let beside = format!("attestation/{id}.test.yaml");
            let Some(cases) = bundle.text(&beside) else { continue };
            let cases = match cases::attestation(cases) {
                Ok(cases) => cases,
                Err(why) => {
                    self.error(&beside, why);
                    continue;
                }
            };
            for case in cases {
                let mut references = bundle.reference_values();
                references.extend(case.reference_values.clone());
                let came = checks.appraise(id, text, &case.claims, &references);
                let came = came.unwrap_or_else(|why| format!("no status: {why}"));
                if came != case.status {
                    let message =
                        format!("case {:?} came otherwise: expected {}, seen {came}", case.name, case.status);
                    self.error(&beside, message);
                }
            }
        }
    }

    fn trust(&mut self) {
        let bundle = self.bundle;
        for key in &bundle.manifest().trust {
            let at = format!("trust[] {:?}", key.name);
            match bundle.files().get(&key.key).filter(|_| key.key.starts_with("trust/")) {
                None => self.error(MANIFEST, format!("{at} names {}, which is not there", key.key)),
                Some(pem) => {
                    if let Err(why) = self.checks.trusted_key(pem) {
                        self.error(&key.key, why);
                    }
                }
            }
        }
        for path in bundle.files().keys().filter(|path| path.starts_with("trust/")) {
            if !bundle.manifest().trust.iter().any(|key| key.key == *path) {
                self.error(path, format!("no trust[] of {MANIFEST} names it"));
            }
        }
    }

    fn cases_without_policy(&mut self) {
        let bundle = self.bundle;
        for path in bundle.files().keys() {
            if let Some(stem) = path.strip_suffix(".test.yaml")
                && !bundle.files().contains_key(&format!("{stem}.rego"))
            {
                self.error(path, format!("there is no {stem}.rego to test"));
            }
        }
    }
}
