//! Policies of common manifests: what a node sends for the pod is allowed, whatever its version, and what else a host may send is denied.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says how much it tried")]

mod support;

use kata_cc_policy::AgentPolicy;
use kata_cc_policy::generate::{ContainerData, PolicyData};
use serde_json::{Value, json};
use support::mutations;
use support::runtime::{ALL, Asked, Containerd, Node};

/// A policy that has let in the pod as a node of version 1.7 starts it: preparing one takes longer than asking it.
fn started(text: &str, node: &Node<'_>, place: &str) -> (AgentPolicy, Vec<Asked>) {
    let mut policy = AgentPolicy::new("policy.rego", text).unwrap();
    policy.check("CreateSandboxRequest", &node.create_sandbox()).unwrap_or_else(|e| panic!("{place}: {e}"));
    let asked = node.containers();
    for one in &asked {
        policy
            .check("CreateContainerRequest", &one.create)
            .unwrap_or_else(|e| panic!("{place} {}: {e}", one.container));
    }
    (policy, asked)
}

/// Whatever its version, a node's requests are allowed, and what else a host may send is denied.
#[test]
fn nodes_are_let_in_and_nobody_else() {
    let images = support::images();
    let (mut let_in, mut tried) = (0, 0);
    let mut wrong = Vec::new();
    for case in support::corpus() {
        for workload in &case.manifest.workloads {
            let generated = support::policy(&case, workload);
            let node =
                Node { manifest: &case.manifest, workload, images: &images, version: Containerd::V1_7 };
            let (mut policy, asked) = started(&generated.text, &node, &case.name);
            for version in ALL {
                let node = Node { version, ..node };
                for one in node.containers() {
                    wrong.extend(allowed(
                        &mut policy,
                        &one,
                        &format!("{} {version:?} {}", case.name, one.container),
                    ));
                    let_in += 1;
                }
            }
            for one in &asked {
                commands(&mut policy, &generated.data.containers.get(&one.container), one);
                tried += mutated(&mut policy, &generated.data, (one, &case.name), &mut wrong);
            }
            let first = json!({"container_id": asked[0].create["container_id"]});
            policy.check("RemoveContainerRequest", &first).unwrap();
            assert!(policy.check("StartContainerRequest", &first).is_err(), "{}: removed", case.name);
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("{let_in} containers were let in, {tried} changes were denied");
    assert!(tried >= 1000 || std::env::var_os("KATA_CC_CORPUS").is_some(), "{tried}");
}

fn allowed(policy: &mut AgentPolicy, asked: &Asked, place: &str) -> Option<String> {
    let id = json!({"container_id": asked.create["container_id"]});
    let mut questions = vec![("CreateContainerRequest", &asked.create), ("StartContainerRequest", &id)];
    questions.extend(asked.image.as_ref().map(|image| ("RunImageRequest", image)));
    let denied = |(request, input): &(&str, &Value)| policy.would_allow(request, input).err();
    questions.iter().find_map(denied).map(|denial| format!("{place}: {denial}"))
}

/// Denied with the right reason; how many were tried.
fn mutated(
    policy: &mut AgentPolicy,
    data: &PolicyData,
    (asked, case): (&Asked, &str),
    wrong: &mut Vec<String>,
) -> usize {
    let of = match asked.container.as_str() {
        "(sandbox)" => serde_json::to_value(&data.sandbox),
        name => serde_json::to_value(&data.containers[name]),
    };
    let mutations = mutations::of(asked, &of.unwrap(), &serde_json::to_value(&data.pod).unwrap());
    for mutation in &mutations {
        let words =
            policy.would_allow(mutation.request, &mutation.input).err().map(|denial| denial.to_string());
        // the first reason is in the words, the rules of all others are named behind it
        if words.as_ref().is_none_or(|words| !words.contains(mutation.rule)) {
            let place = format!("{case} {} {}", asked.container, mutation.name);
            wrong.push(format!("{place}: not refused by {:?}, but {words:?}", mutation.rule));
        }
    }
    mutations.len()
}

/// Probes and hooks run, nothing else does.
fn commands(policy: &mut AgentPolicy, data: &Option<&ContainerData>, asked: &Asked) {
    let Some(data) = data else { return };
    let mut process = asked.create["OCI"]["Process"].clone();
    process["Terminal"] = false.into();
    let mut request = json!({"container_id": asked.create["container_id"], "exec_id": "e1", "string_user": null,
        "process": process, "stdin_port": 0, "stdout_port": 0, "stderr_port": 0});
    for command in &data.exec {
        request["process"]["Args"] = json!(command.args);
        policy.check("ExecProcessRequest", &request).unwrap();
        variables(policy, data, &request);
    }
    request["process"]["Args"] = json!(["sh"]);
    let denial = policy.check("ExecProcessRequest", &request).unwrap_err().to_string();
    assert!(denial.contains("rule commands, field process.Args, value [\"sh\"], allowed ["), "{denial}");
}

/// A command has its container's variables, and what a terminal adds behind them, but none that is changed, left in another's place, or brought
/// back behind the one that counts.
fn variables(policy: &mut AgentPolicy, data: &ContainerData, request: &Value) {
    let with = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut request = request.clone();
        change(request["process"]["Env"].as_array_mut().unwrap());
        request
    };
    if !data.env.keys().chain(data.env_at_run_time.keys()).any(|entry| entry.starts_with("TERM")) {
        policy.check("ExecProcessRequest", &with(&|env| env.push("TERM=xterm".into()))).unwrap();
    }
    let mut refused: Vec<Value> = vec![with(&|env| env.insert(0, "LD_PRELOAD=/x".into()))];
    let evil = ["LD_PRELOAD=/x", "PATH=/tmp", "TERM=a b", ""].map(str::to_owned);
    for entry in data.env_overridden.iter().cloned().chain(evil).filter(|one| !data.env.contains_key(one)) {
        refused.push(with(&|env| env.push(entry.clone().into())));
        refused.push(with(&|env| env.extend([json!("TERM=xterm"), entry.clone().into()])));
    }
    if let Some(entry) = data.env.keys().next() {
        let changed = format!("{entry}x");
        refused
            .push(with(&|env| *env.iter_mut().find(|one| *one == entry).unwrap() = changed.clone().into()));
    }
    for request in refused {
        let denial = policy.check("ExecProcessRequest", &request).map_err(|denial| denial.to_string());
        assert!(
            denial.as_ref().is_err_and(|words| words.contains("rule environment")),
            "{denial:?} {}",
            request["process"]["Env"]
        );
    }
}

/// What Kubernetes adds is looked at in the first container of a pod; a container with an own variable of such a name has that one.
#[test]
fn a_variable_that_another_container_has_does_not_replace_ones_own() {
    let own = "{name: KUBERNETES_PORT, value: \"own\"}";
    let (case, workload) = support::one(&format!(
        "kind: Pod\nmetadata: {{name: a, namespace: default}}\nspec:\n  containers:\n    - {{name: a, image: docker.io/bitnami/redis:7.4}}\n    \
         - {{name: b, image: docker.io/bitnami/redis:7.4, env: [{own}]}}\n    - {{name: c, image: docker.io/bitnami/redis:7.4}}\n"
    ));
    let (generated, images) = (support::policy(&case, &workload), support::images());
    let node =
        Node { manifest: &case.manifest, workload: &workload, images: &images, version: Containerd::V1_7 };
    let (mut policy, asked) = started(&generated.text, &node, "one's own");
    let added = "KUBERNETES_PORT=tcp://10.96.0.1:443";
    for (container, allowed) in [("a", true), ("b", false), ("c", true)] {
        let one = asked.iter().find(|one| one.container == container).unwrap();
        let mut create = one.create.clone();
        create["OCI"]["Process"]["Env"].as_array_mut().unwrap().push(added.into());
        let answer = policy.would_allow("CreateContainerRequest", &create);
        assert_eq!(answer.is_ok(), allowed, "{container}: {answer:?}");
    }
}

/// Those of a pod's first container are looked at themselves: the form of a service's variable does not let in one that the loader might act on.
#[test]
fn a_first_containers_variables_are_none_of_the_loader() {
    let (case, workload) = support::one(
        "kind: Pod\nmetadata: {name: a, namespace: default}\nspec:\n  containers:\n    - {name: a, image: docker.io/bitnami/redis:7.4}\n",
    );
    let (generated, images) = (support::policy(&case, &workload), support::images());
    let node =
        Node { manifest: &case.manifest, workload: &workload, images: &images, version: Containerd::V1_7 };
    let mut policy = AgentPolicy::new("policy.rego", &generated.text).unwrap();
    let asked = node.containers();
    policy.check("CreateSandboxRequest", &node.create_sandbox()).unwrap();
    policy.check("CreateContainerRequest", &asked[0].create).unwrap();
    for (variable, allowed) in [("X_SERVICE_PORT=1", true), ("LD_X_SERVICE_PORT=1", false)] {
        let mut create = asked[1].create.clone();
        create["OCI"]["Process"]["Env"].as_array_mut().unwrap().push(variable.into());
        let answer =
            policy.would_allow("CreateContainerRequest", &create).map_err(|denial| denial.to_string());
        assert_eq!(answer.is_ok(), allowed, "{variable}: {answer:?}");
        assert!(allowed || answer.is_err_and(|words| words.contains("rule environment")), "{variable}");
    }
}

#[test]
fn every_request_that_is_not_named_is_denied() {
    let case = &support::corpus()[0];
    let generated = support::policy(case, &case.manifest.workloads[0]);
    let mut policy = AgentPolicy::new("policy.rego", &generated.text).unwrap();
    for request in [
        "AddARPNeighborsRequest",
        "AddSwapRequest",
        "CreateContainerRequest",
        "ExecProcessRequest",
        "GetMetricsRequest",
        "NobodyHeardOfRequest",
        "PauseContainerRequest",
        "ReadStreamRequest",
        "ReseedRandomDevRequest",
        "RunImageRequest",
        "SecureMountRequest",
        "SetGuestDateTimeRequest",
        "SetPolicyRequest",
        "StartContainerRequest",
        "WriteStreamRequest",
    ] {
        for input in
            [Value::Null, json!({}), json!({"container_id": "x", "data": [1], "process": {"Args": ["sh"]}})]
        {
            assert!(policy.check(request, &input).is_err(), "{request} {input}");
        }
    }
    for request in
        ["DestroySandboxRequest", "GetOOMEventRequest", "GuestDetailsRequest", "WaitProcessRequest"]
    {
        policy.check(request, &json!({})).unwrap();
    }
}
