//! How long a decision takes: `cargo bench --profile release -p kata-cc-policy`.
//!
//! A generated policy of 20 containers, requests as containerd 1.7 sends them, one thread: what the agent takes to decide, without and with
//! the conversion of the request, beside its interpreter alone and beside bare regorus (its interpreter, prepared once, on the text as it
//! stands). The container that is created is the last of the pod; the first is a row of its own, since what Kubernetes adds to all of them is
//! looked at in it. Printed are median and 99th percentile in µs.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic, and prints")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use kata_cc_policy::AgentPolicy;
use kata_cc_policy::engine::Document;
use serde_json::{Value, json};
use support::runtime::{Asked, Containerd, Node};

const ROUNDS: usize = 2_000;

/// A pod with 20 containers of a common chart.
fn manifest() -> String {
    let container = |n: usize| {
        format!(
            "    - name: c{n}\n      image: docker.io/bitnami/redis:7.4\n      args: [run, \"{n}\"]\n      env:\n\
             \x20       - {{name: A, value: \"1\"}}\n        - {{name: B, value: \"$(A)\"}}\n\
             \x20       - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}\n\
             \x20     livenessProbe: {{exec: {{command: [redis-cli, ping]}}}}\n\
             \x20     volumeMounts: [{{name: conf, mountPath: /conf}}, {{name: tmp, mountPath: /tmp}}]\n"
        )
    };
    let containers: String = (0..20).map(container).collect();
    format!(
        "kind: Pod\nmetadata: {{name: bench, namespace: default}}\nspec:\n  containers:\n{containers}  volumes:\n\
         \x20   - {{name: conf, configMap: {{name: conf}}}}\n    - {{name: tmp, emptyDir: {{medium: Memory}}}}\n"
    )
}

/// Median and 99th percentile, when it has run for a while: the first rounds fetch code and data, and build what patterns build as they match.
fn measure(rounds: usize, mut work: impl FnMut()) -> (f64, f64) {
    for _ in 0..rounds / 10 {
        work();
    }
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[rounds / 2], times[rounds * 99 / 100])
}

/// What a policy remembers of what it allowed, with the policy: by the operations that its consents bring.
fn start(text: &str, sandbox: &Value, containers: &[Asked]) -> (AgentPolicy, Value) {
    let mut policy = AgentPolicy::new("policy.rego", text).unwrap();
    let mut state = serde_json::Map::new();
    let created = containers.iter().map(|one| ("CreateContainerRequest", &one.create));
    for (request, input) in std::iter::once(("CreateSandboxRequest", sandbox)).chain(created) {
        let consent = policy.by_machine(request, &input.clone().into()).unwrap().unwrap().unwrap().to_json();
        for op in consent["ops"].as_array().unwrap() {
            let name = op["path"].as_str().unwrap().strip_prefix("/pstate/").unwrap();
            state.insert(name.to_owned(), op["value"].clone());
        }
        policy.check(request, input).unwrap();
    }
    (policy, state.into())
}

/// The requests that are measured, with a word for each.
fn requests(last: &Asked) -> Vec<(&'static str, &'static str, Value)> {
    let id = last.create["container_id"].clone();
    let mut process = last.create["OCI"]["Process"].clone();
    process["Args"] = json!(["redis-cli", "ping"]);
    // Somebody at a terminal: another environment than the container's own.
    let mut terminal = process.clone();
    terminal["Env"].as_array_mut().unwrap().push("TERM=xterm".into());
    let exec = |process: &Value| {
        json!({"container_id": id, "exec_id": "e", "string_user": null, "process": process,
            "stdin_port": 0, "stdout_port": 0, "stderr_port": 0})
    };
    let copy = json!({"path": "/run/kata-containers/shared/containers/x-hosts", "file_type": "Regular",
        "symlink_target": "", "file_size": 1, "file_mode": 33188, "dir_mode": 493, "uid": 0, "gid": 0, "offset": 0});
    vec![
        ("CreateContainerRequest", "", last.create.clone()),
        ("RunImageRequest", "", last.image.clone().unwrap()),
        ("ExecProcessRequest", "probe", exec(&process)),
        ("ExecProcessRequest", "terminal", exec(&terminal)),
        ("CopyFileRequest", "", copy),
        ("StartContainerRequest", "", json!({"container_id": id})),
        ("WaitProcessRequest", "", json!({"container_id": id, "exec_id": ""})),
    ]
}

fn cell((median, late): (f64, f64)) -> String {
    format!("{median:.0} {late:.0}")
}

/// A row: the agent's decision, with conversion, its interpreter alone, bare regorus.
fn row(
    policy: &mut AgentPolicy,
    engine: &mut regorus::Engine,
    (request, word, input): &(&'static str, &'static str, Value),
) {
    let document = Document::from(input.clone());
    assert!(policy.by_machine(request, &document).unwrap().unwrap().is_some(), "{request}");
    assert!(policy.would_allow_document(request, &document), "{request}");
    let alone = measure(ROUNDS, || assert!(policy.would_allow_document(request, &document)));
    let whole = measure(ROUNDS, || policy.would_allow(request, input).unwrap());
    let slow = measure(ROUNDS / 10, || drop(policy.by_interpreter(request, &document).unwrap()));
    let value = regorus::Value::from(input.clone());
    let bare = measure(ROUNDS / 10, || {
        engine.set_input(value.clone());
        drop(engine.eval_rule(format!("data.agent_policy.{request}")).unwrap());
    });
    let name = format!("{request} {word}");
    println!("{name:<30} {:>12} {:>18} {:>14} {:>14}", cell(alone), cell(whole), cell(slow), cell(bare));
}

fn main() {
    let (case, workload) = support::one(&manifest());
    let generated = support::policy(&case, &workload);
    let images = support::images();
    let node =
        Node { manifest: &case.manifest, workload: &workload, images: &images, version: Containerd::V1_7 };
    let (sandbox, asked) = (node.create_sandbox(), node.containers());
    let bare = |state: Value| {
        let mut engine = regorus::Engine::new();
        engine.add_policy("policy.rego".to_owned(), generated.text.clone()).unwrap();
        engine.add_data(regorus::Value::from(json!({"pstate": state}))).unwrap();
        engine
    };
    println!(
        "{} containers, policy of {} bytes; µs, median and 99th percentile of {ROUNDS}",
        asked.len(),
        generated.text.len()
    );
    println!(
        "{:<30} {:>12} {:>18} {:>14} {:>14}",
        "request", "decision", "with conversion", "interpreter", "bare regorus"
    );
    // the pause container is there
    let (mut policy, state) = start(&generated.text, &sandbox, &asked[..1]);
    row(&mut policy, &mut bare(state), &("CreateContainerRequest", "first", asked[1].create.clone()));
    let (mut policy, state) = start(&generated.text, &sandbox, &asked[..asked.len() - 1]);
    let last = asked.last().unwrap();
    let requests = requests(last);
    row(&mut policy, &mut bare(state), &requests[0]);
    let (mut policy, state) = start(&generated.text, &sandbox, &asked);
    let mut engine = bare(state);
    for request in &requests[1..] {
        row(&mut policy, &mut engine, request);
    }
    let alone = |words: &str, figures| println!("{words:<30} {:>12}", cell(figures));
    let gone = json!({"container_id": last.create["container_id"]});
    let twice = measure(200, || {
        policy.check("RemoveContainerRequest", &gone).unwrap();
        policy.check("CreateContainerRequest", &last.create).unwrap();
    });
    alone("removed and created again", twice);
    let prepared = measure(100, || drop(AgentPolicy::new("policy.rego", &generated.text).unwrap()));
    alone("to prepare", prepared);
}
