//! How long a decision takes: `cargo bench --profile release -p kata-cc-policy`.
//!
//! A generated policy of 20 containers, requests as containerd 1.7 sends them, one thread. Beside it the interpreter alone (regorus, prepared
//! once) on the same text as it stands: what the agent adds to it, and what it saves. Printed are median and 99th percentile in µs.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic, and prints")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use kata_cc_policy::AgentPolicy;
use kata_cc_policy::engine::Document;
use serde_json::{Value, json};
use support::runtime::{Containerd, Node};

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

/// Median and 99th percentile.
fn measure(rounds: usize, mut work: impl FnMut()) -> (f64, f64) {
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

fn main() {
    let (case, workload) = support::one(&manifest());
    let generated = support::policy(&case, &workload);
    let images = support::images();
    let node =
        Node { manifest: &case.manifest, workload: &workload, images: &images, version: Containerd::V1_7 };
    let mut policy = AgentPolicy::new("policy.rego", &generated.text).unwrap();
    policy.check("CreateSandboxRequest", &node.create_sandbox()).unwrap();
    let asked = node.containers();
    for one in &asked {
        policy.check("CreateContainerRequest", &one.create).unwrap();
    }
    let last = asked.last().unwrap();
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
    let requests: Vec<(&str, Value)> = vec![
        ("CreateContainerRequest", last.create.clone()),
        ("RunImageRequest", last.image.clone().unwrap()),
        ("ExecProcessRequest", exec(&process)),
        ("ExecProcessRequest", exec(&terminal)),
        (
            "CopyFileRequest",
            json!({"path": "/run/kata-containers/shared/containers/x-hosts", "file_type": "Regular",
            "symlink_target": "", "file_size": 1, "file_mode": 33188, "dir_mode": 493, "uid": 0, "gid": 0, "offset": 0}),
        ),
        ("StartContainerRequest", json!({"container_id": id})),
        ("WaitProcessRequest", json!({"container_id": id, "exec_id": ""})),
    ];
    let mut engine = regorus::Engine::new();
    engine.add_policy("policy.rego".to_owned(), generated.text.clone()).unwrap();
    let state: serde_json::Map<String, Value> = asked
        .iter()
        .map(|one| {
            (
                format!("container {}", one.create["container_id"].as_str().unwrap()),
                one.container.clone().into(),
            )
        })
        .chain(asked.iter().map(|one| {
            let process = &one.create["OCI"]["Process"];
            let kept =
                ["Env", "User", "Capabilities", "NoNewPrivileges"].map(|name| (name, process[name].clone()));
            (
                format!("process {}", one.create["container_id"].as_str().unwrap()),
                kept.map(|(name, value)| (name.to_owned(), value)).into_iter().collect(),
            )
        }))
        .collect();
    engine.add_data(regorus::Value::from(json!({"pstate": state}))).unwrap();
    println!(
        "{} containers, policy of {} bytes; µs, median and 99th percentile of {ROUNDS}",
        asked.len(),
        generated.text.len()
    );
    println!("{:<24} {:>16} {:>20} {:>16}", "request", "decision", "with its conversion", "bare regorus");
    for (request, input) in &requests {
        let document = Document::from(input.clone());
        assert!(policy.would_allow_document(request, &document), "{request}");
        let alone = measure(ROUNDS, || assert!(policy.would_allow_document(request, &document)));
        let whole = measure(ROUNDS, || policy.would_allow(request, input).unwrap());
        let value = regorus::Value::from(input.clone());
        let bare = measure(ROUNDS / 10, || {
            engine.set_input(value.clone());
            drop(engine.eval_rule(format!("data.agent_policy.{request}")).unwrap());
        });
        let cell = |(median, late): (f64, f64)| format!("{median:.0} {late:.0}");
        println!("{request:<24} {:>16} {:>20} {:>16}", cell(alone), cell(whole), cell(bare));
    }
    let (median, late) = measure(100, || drop(AgentPolicy::new("policy.rego", &generated.text).unwrap()));
    println!("{:<24} {:>16}", "to prepare", format!("{median:.0} {late:.0}"));
}
