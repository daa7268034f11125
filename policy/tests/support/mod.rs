//! Manifests of the corpus, and what a node makes of them: a kubelet, a containerd and a shim in small, written for the tests alone and
//! without a line of the generator, so that both can be wrong only independently.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several tests, which may panic"
)]

pub mod mutations;
pub mod runtime;

use std::path::{Path, PathBuf};

use kata_cc_policy::AgentPolicy;
use kata_cc_policy::engine::Document;
use kata_cc_policy::generate::{Generated, ImageMap, Settings, generate};
use kata_cc_policy::manifest::{Manifest, Workload};

/// A manifest of the corpus.
pub struct Case {
    /// File name.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Read.
    pub manifest: Manifest,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Every manifest of the corpus, by name; with `KATA_CC_CORPUS` those whose name begins so.
pub fn corpus() -> Vec<Case> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "yaml"));
    if let Some(begin) = std::env::var_os("KATA_CC_CORPUS") {
        files.retain(|file| {
            file.file_name().unwrap().to_string_lossy().starts_with(&*begin.to_string_lossy())
        });
    }
    files.sort();
    let case = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let manifest = Manifest::read(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        Case { name, text, manifest }
    };
    files.into_iter().map(case).collect()
}

/// Images of the corpus.
pub fn images() -> ImageMap {
    ImageMap::parse(&std::fs::read_to_string(folder().join("images.json")).unwrap()).unwrap()
}

/// The policy of a workload.
pub fn policy(case: &Case, workload: &Workload) -> Generated {
    let settings = Settings::default();
    generate(&case.manifest, workload, &images(), &settings)
        .unwrap_or_else(|e| panic!("{} {}: {e}", case.name, workload.title))
}

/// One workload out of a text.
pub fn one(text: &str) -> (Case, Workload) {
    let manifest = Manifest::read(text).unwrap();
    let workload = manifest.workloads[0].clone();
    (Case { name: "test".to_owned(), text: text.to_owned(), manifest }, workload)
}

/// How often machine and interpreter were compared.
#[derive(Debug, Default)]
pub struct Agreement {
    pub allowed: usize,
    pub denied: usize,
    /// Allowed by the interpreter, the machine being undecided.
    pub left: usize,
    /// Of these, how often for which reason.
    pub why: std::collections::BTreeMap<String, usize>,
}

impl Agreement {
    /// Asks both; what differs, if anything does. They agree when they give the same value, state changes included, or the machine none.
    pub fn on(
        &mut self,
        policy: &mut AgentPolicy,
        request: &str,
        input: &serde_json::Value,
    ) -> Option<String> {
        let input = Document::from(input);
        let quick = policy.by_machine(request, &input).expect("the policy is a generated one");
        let quick = quick.map(|value| value.map(|value| value.to_json()));
        let slow = policy.by_interpreter(request, &input).map(|evaluation| evaluation.value);
        let allows = |value: &Option<serde_json::Value>| {
            value.as_ref().is_some_and(|value| *value == true || value["allowed"] == true)
        };
        match (&quick, slow.as_ref().is_ok_and(&allows)) {
            (Err(why), true) => {
                self.left += 1;
                *self.why.entry(format!("{why}")).or_default() += 1;
            }
            (_, true) => self.allowed += 1,
            (_, false) => self.denied += 1,
        }
        let same = quick.is_err() || quick == slow;
        (!same).then(|| format!("{request}: the machine says {quick:?}, the interpreter {slow:?}"))
    }
}
