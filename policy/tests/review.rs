//! What a reviewer is told of generated policies, and the manifests with a policy in them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use kata_cc_policy::AgentPolicy;
use kata_cc_policy::annotate::annotate;
use kata_cc_policy::diff::{Effect, diff};
use kata_cc_policy::generate::{Settings, data_of, generate};
use kata_cc_policy::lint::{Severity, lint};
use serde_json::json;

#[test]
fn policies_of_the_corpus_say_what_they_were_made_to_say() {
    for case in support::corpus() {
        for workload in &case.manifest.workloads {
            let generated = support::policy(&case, workload);
            assert_eq!(data_of(&generated.text).as_ref(), Some(&generated.data), "{}", case.name);
            assert!(diff(&generated.data, &generated.data).is_empty());
            let found = lint("policy.rego", &generated.text).unwrap();
            let dangers: Vec<_> = found.iter().filter(|one| one.severity == Severity::Danger).collect();
            let privileged = generated.data.containers.values().any(|one| one.privileged);
            assert!(
                dangers.iter().all(|one| one.check == "privileged") && dangers.is_empty() != privileged,
                "{}: {dangers:?}",
                case.name
            );
            assert!(found.iter().all(|one| !["own-rules", "always-true"].contains(&one.check)), "{found:?}");
        }
    }
}

#[test]
fn the_policy_is_written_into_manifests_in_place() {
    let mut written = 0;
    for case in support::corpus() {
        for workload in &case.manifest.workloads {
            let Ok(after) = annotate(&case.text, workload, "a.example/b", "Q+/=") else { continue };
            written += 1;
            let lines = |text: &str| text.lines().map(str::trim).map(str::to_owned).collect::<Vec<_>>();
            let (before, now) = (lines(&case.text), lines(&after));
            let kept = before.iter().filter(|line| now.contains(line)).count();
            assert!(before.len() - kept <= 1, "{}: only the line of flow-form metadata changes", case.name);
        }
    }
    // one is JSON
    assert!(written >= 58 || std::env::var_os("KATA_CC_CORPUS").is_some(), "{written}");
}

const POD: &str = "kind: Pod\nmetadata: {name: p, namespace: n}\nspec:\n  containers:\n  - name: a\n    image: debian:12\n    \
                   command: [sleep, inf]\n    env: [{name: DB_PASSWORD, value: hunter2}, {name: K, value: v}]\n";

#[test]
fn findings_and_changes_are_told_in_words() {
    let (case, workload) = support::one(POD);
    let before = support::policy(&case, &workload);
    let mut settings = Settings::default();
    settings.open.exec = true;
    settings.open.logs = true;
    let changed = POD
        .replace("value: v}", "value: w}")
        .replace("[sleep, inf]", "[sleep, inf]\n    securityContext: {privileged: true}");
    let (case, workload) = support::one(&changed);
    let after = generate(&case.manifest, &workload, &support::images(), &settings).unwrap();
    let checks: Vec<&str> = lint("p", &after.text).unwrap().iter().map(|one| one.check).collect();
    for check in ["privileged", "open-request", "clear-secret", "image-by-tag"] {
        assert!(checks.contains(&check), "{check} not in {checks:?}");
    }
    let changes = diff(&before.data, &after.data);
    let told = |effect: Effect, field: &str| {
        assert!(
            changes.iter().any(|one| one.effect == effect && one.field == field),
            "{field} not in {changes:#?}"
        );
    };
    told(Effect::Wider, "open.exec");
    told(Effect::Wider, "privileged");
    told(Effect::Other, "env[\"K\"]");
    let back = diff(&after.data, &before.data);
    assert!(back.iter().any(|one| one.effect == Effect::Narrower && one.field == "open.exec"));
}

#[test]
fn what_is_opened_is_open_and_no_more() {
    let (case, workload) = support::one(POD);
    let mut settings = Settings::default();
    settings.commands.push((Some("a".to_owned()), vec!["id".to_owned()]));
    let text =
        |settings: &Settings| generate(&case.manifest, &workload, &support::images(), settings).unwrap().text;
    let version = support::runtime::Containerd::V2_0;
    let images = support::images();
    let node =
        support::runtime::Node { manifest: &case.manifest, workload: &workload, images: &images, version };
    let asked = node.containers().pop().unwrap();
    let started = |settings: &Settings| {
        let mut policy = AgentPolicy::new("p", &text(settings)).unwrap();
        policy.check("CreateSandboxRequest", &node.create_sandbox()).unwrap();
        policy.check("CreateContainerRequest", &asked.create).unwrap();
        policy
    };
    let id = &asked.create["container_id"];
    let mut process = asked.create["OCI"]["Process"].clone();
    process["Args"] = json!(["id"]);
    let mut exec = json!({"container_id": id, "exec_id": "e", "string_user": null, "process": process,
        "stdin_port": 0, "stdout_port": 0, "stderr_port": 0});
    let output = json!({"container_id": id, "exec_id": "e", "len": 9});
    let own_output = json!({"container_id": id, "exec_id": "", "len": 9});
    let input = json!({"container_id": id, "exec_id": "e", "data": [1]});
    let mut policy = started(&settings);
    policy.check("ExecProcessRequest", &exec).unwrap();
    for closed in [&output, &own_output] {
        assert!(policy.check("ReadStreamRequest", closed).is_err());
    }
    assert!(policy.check("WriteStreamRequest", &input).is_err());
    exec["process"]["Args"] = json!(["sh"]);
    assert!(policy.check("ExecProcessRequest", &exec).is_err());
    settings.open.copy = true;
    let mut policy = started(&settings);
    assert!(policy.check("ExecProcessRequest", &exec).is_err());
    exec["process"]["Args"] = json!(["tar", "cf", "-", "/data"]);
    policy.check("ExecProcessRequest", &exec).unwrap();
    policy.check("ReadStreamRequest", &output).unwrap();
    assert!(policy.check("ReadStreamRequest", &own_output).is_err(), "the program's own output stays closed");
    settings.open.exec = true;
    settings.open.logs = true;
    let mut policy = started(&settings);
    exec["process"]["Args"] = json!(["sh"]);
    policy.check("ExecProcessRequest", &exec).unwrap();
    policy.check("ReadStreamRequest", &own_output).unwrap();
    policy.check("WriteStreamRequest", &input).unwrap();
    let root = {
        let mut root = exec.clone();
        root["process"]["Capabilities"]["Bounding"] = json!(["CAP_SYS_ADMIN"]);
        root
    };
    assert!(
        policy.check("ExecProcessRequest", &root).is_err(),
        "a command has the container's rights and no more"
    );
    // Other variables than the container's own are looked at, not refused as such.
    let with = |entry: &str| {
        let mut other = exec.clone();
        other["process"]["Env"].as_array_mut().unwrap().push(entry.into());
        other
    };
    policy.check("ExecProcessRequest", &with("TERM=xterm")).unwrap();
    let denial = policy.check("ExecProcessRequest", &with("LD_PRELOAD=/x")).unwrap_err().to_string();
    assert!(denial.contains("rule environment") && denial.contains("LD_PRELOAD"), "{denial}");
    // What was remembered goes with the container.
    policy.check("RemoveContainerRequest", &json!({"container_id": id})).unwrap();
    assert!(policy.check("ExecProcessRequest", &exec).is_err());
    let mut policy = started(&settings);
    let update = |devices: serde_json::Value| json!({"container_id": id, "resources": {"Devices": devices, "BlockIO": null, "Network": null, "CPU": {"Shares": 2}}});
    policy
        .check(
            "UpdateContainerRequest",
            &update(asked.create["OCI"]["Linux"]["Resources"]["Devices"].clone()),
        )
        .unwrap();
    let disk = json!([{"Allow": true, "Type": "b", "Major": 254, "Minor": 0, "Access": "rw"}]);
    let denial = policy.check("UpdateContainerRequest", &update(disk)).unwrap_err().to_string();
    assert!(denial.contains("limits only"), "{denial}");
    let elsewhere = {
        let mut other = exec.clone();
        other["container_id"] = "x".into();
        other
    };
    assert!(policy.check("ExecProcessRequest", &elsewhere).is_err());
}

/// Rules as Kata's genpolicy writes them: its package, both ways to say yes, state by patches, a large constant.
#[test]
fn policies_in_katas_dialect_run_unchanged() {
    let text = "package agent_policy\n\nimport future.keywords.in\nimport future.keywords.every\nimport input\n\n\
        default CreateContainerRequest := false\ndefault ExecProcessRequest := false\ndefault AllowRequestsFailingPolicy := false\n\
        default DestroySandboxRequest := true\n\n\
        CreateContainerRequest := {\"ops\": ops, \"allowed\": true} {\n    some idx, p_container in policy_data.containers\n    \
        input.OCI.Version == policy_data.common.version\n    p_container.OCI.Process.Args == input.OCI.Process.Args\n    \
        every env in input.OCI.Process.Env {\n        regex.match(p_container.env, env)\n    }\n    print(\"allowed\", idx)\n    \
        ops := [{\"op\": \"add\", \"path\": sprintf(\"/pstate/%v\", [input.container_id]), \"value\": idx}]\n}\n\n\
        ExecProcessRequest {\n    idx := data.pstate[input.container_id]\n    some command in policy_data.containers[idx].exec_commands\n    \
        command == input.process.Args\n}\n\n\
        policy_data := {\n  \"containers\": [\n    {\"OCI\": {\"Process\": {\"Args\": [\"/pause\"]}}, \"env\": \"^$\", \"exec_commands\": []},\n    \
        {\"OCI\": {\"Process\": {\"Args\": [\"sh\"]}}, \"env\": \"^A=[0-9]+$\", \"exec_commands\": [[\"id\"]]}\n  ],\n  \"common\": {\"version\": \"1.1.0\"}\n}\n";
    let mut policy = AgentPolicy::new("kata.rego", text).unwrap();
    let exec = json!({"container_id": "c1", "process": {"Args": ["id"]}});
    assert!(policy.check("ExecProcessRequest", &exec).is_err());
    let create = |env: &str| json!({"container_id": "c1", "OCI": {"Version": "1.1.0", "Process": {"Args": ["sh"], "Env": [env]}}});
    let denial = policy.check("CreateContainerRequest", &create("A=x")).unwrap_err().to_string();
    assert!(denial.starts_with("CreateContainerRequest is blocked by policy: "), "{denial}");
    policy.check("CreateContainerRequest", &create("A=7")).unwrap();
    policy.check("ExecProcessRequest", &exec).unwrap();
    assert!(policy.check("UndefinedRequest", &json!({})).is_err());
    policy.check("DestroySandboxRequest", &json!({})).unwrap();
    let open = text.replace("AllowRequestsFailingPolicy := false", "AllowRequestsFailingPolicy := true");
    AgentPolicy::new("kata.rego", &open).unwrap().check("UndefinedRequest", &json!({})).unwrap();
}
