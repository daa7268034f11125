//! The machine against the interpreter: on generated rules it gives the same answers or none, to what nodes send, to what a host may try,
//! and to requests of which a part has another type; other rules have no machine.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says how much it tried")]

mod support;

use kata_cc_policy::AgentPolicy;
use kata_cc_policy::generate::is_generated;
use serde_json::{Value, json};
use support::mutations;
use support::runtime::{ALL, Asked, Containerd, Node};

/// What a host may put where something else is expected.
fn other_types() -> Vec<Option<Value>> {
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(""),
        json!("="),
        json!([]),
        json!([null]),
        json!([{}]),
        json!({}),
        json!({"x": 1}),
    ];
    // and nothing at all
    std::iter::once(None).chain(values.into_iter().map(Some)).collect()
}

/// Every place in a document, the document itself left out.
fn places(value: &Value, place: &str, all: &mut Vec<String>) {
    let mut add = |key: &str, child: &Value| {
        let place = format!("{place}/{}", key.replace('~', "~0").replace('/', "~1"));
        places(child, &place, all);
        all.push(place);
    };
    match value {
        Value::Object(members) => members.iter().for_each(|(key, child)| add(key, child)),
        Value::Array(items) => items.iter().enumerate().for_each(|(n, child)| add(&n.to_string(), child)),
        _ => {}
    }
}

fn replaced(value: &Value, place: &str, other: Option<Value>) -> Value {
    let mut value = value.clone();
    let (parent, key) = place.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    match (value.pointer_mut(parent).unwrap(), other) {
        (Value::Object(members), None) => drop(members.remove(&key)),
        (Value::Array(items), None) => drop(items.remove(key.parse().unwrap())),
        (Value::Object(members), Some(other)) => drop(members.insert(key, other)),
        (Value::Array(items), Some(other)) => items[key.parse::<usize>().unwrap()] = other,
        _ => unreachable!(),
    }
    value
}

/// Policies of the corpus that have let their pods in, with what was asked.
fn started(mut each: impl FnMut(&str, &mut AgentPolicy, &Node<'_>, &[Asked], &Value)) {
    let images = support::images();
    for case in support::corpus() {
        for workload in &case.manifest.workloads {
            let generated = support::policy(&case, workload);
            let node =
                Node { manifest: &case.manifest, workload, images: &images, version: Containerd::V1_7 };
            let mut policy = AgentPolicy::new("policy.rego", &generated.text).unwrap();
            policy.check("CreateSandboxRequest", &node.create_sandbox()).unwrap();
            let asked = node.containers();
            for one in &asked {
                policy.check("CreateContainerRequest", &one.create).unwrap();
            }
            each(&case.name, &mut policy, &node, &asked, &serde_json::to_value(&generated.data).unwrap());
        }
    }
}

/// What is asked about a container while it runs.
fn requests(one: &Asked, data: &Value) -> Vec<(&'static str, Value)> {
    let id = json!({"container_id": one.create["container_id"], "exec_id": "", "data": []});
    let mut all = vec![("CreateContainerRequest", one.create.clone())];
    all.extend(one.image.clone().map(|image| ("RunImageRequest", image)));
    let mut args = vec![json!(["sh"])];
    for command in data["containers"][&one.container]["exec"].as_array().into_iter().flatten() {
        args.push(command["args"].clone());
    }
    for args in args {
        let mut process = one.create["OCI"]["Process"].clone();
        process["Args"] = args;
        let exec = |process: &Value| {
            json!({"container_id": one.create["container_id"], "exec_id": "e", "string_user": null, "process": process,
                "stdin_port": 0, "stdout_port": 0, "stderr_port": 0})
        };
        all.push(("ExecProcessRequest", exec(&process)));
        for variables in [&["TERM=xterm"][..], &["TERM=a b"], &["PATH=/tmp"], &["LD_PRELOAD=x", "TERM=xterm"]]
        {
            let mut other = process.clone();
            other["Env"].as_array_mut().unwrap().extend(variables.iter().map(|one| json!(one)));
            all.push(("ExecProcessRequest", exec(&other)));
            // not behind what the container has, but before it
            let variables = other["Env"].as_array_mut().unwrap();
            variables.rotate_right(1);
            all.push(("ExecProcessRequest", exec(&other)));
        }
        let mut less = process.clone();
        less["Env"].as_array_mut().unwrap().pop();
        all.push(("ExecProcessRequest", exec(&less)));
    }
    let named = ["StartContainerRequest", "WaitProcessRequest", "WriteStreamRequest", "ReadStreamRequest"];
    all.extend(named.map(|request| (request, id.clone())));
    all.push(("RemoveContainerRequest", id.clone()));
    let resources = json!({"Devices": [{"Allow": true, "Type": "c", "Major": 1, "Minor": 3, "Access": "rwm"}], "Network": null});
    all.push((
        "UpdateContainerRequest",
        json!({"container_id": one.create["container_id"], "resources": resources}),
    ));
    all
}

/// What is asked of the pod.
fn pod_requests(node: &Node<'_>) -> Vec<(&'static str, Value)> {
    let path = "/run/kata-containers/shared/containers/x-hosts";
    vec![
        ("CreateSandboxRequest", node.create_sandbox()),
        ("CopyFileRequest", json!({"path": path, "file_type": "Regular", "symlink_target": ""})),
        ("CopyFileRequest", json!({"path": path, "file_type": "Symlink", "symlink_target": "..data/x"})),
        ("UpdateInterfaceRequest", json!({"interface": {"name": "eth0", "device": "eth0"}})),
        (
            "UpdateRoutesRequest",
            json!({"routes": {"Routes": [{"device": "eth0", "dest": "0.0.0.0/0", "source": ""}]}}),
        ),
        (
            "SecureMountRequest",
            json!({"volume_type": "block-device", "options": {"key": "a"}, "mount_point": "/a"}),
        ),
    ]
}

#[test]
fn machine_and_interpreter_agree_on_the_corpus_and_on_what_a_host_may_try() {
    let (mut wrong, mut same) = (Vec::new(), support::Agreement::default());
    started(|case, policy, node, asked, data| {
        for version in ALL {
            for one in (Node { version, ..*node }).containers() {
                for (request, input) in requests(&one, data) {
                    wrong.extend(same.on(policy, request, &input).map(|why| format!("{case}: {why}")));
                }
            }
        }
        for one in asked {
            let of = match one.container.as_str() {
                "(sandbox)" => &data["sandbox"],
                name => &data["containers"][name],
            };
            for mutation in mutations::of(one, of, &data["pod"]) {
                let why = same.on(policy, mutation.request, &mutation.input);
                wrong.extend(why.map(|why| format!("{case} {}: {why}", mutation.name)));
            }
        }
        for (request, input) in pod_requests(node) {
            wrong.extend(same.on(policy, request, &input).map(|why| format!("{case}: {why}")));
        }
    });
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{same:?}");
    // what nodes send is decided by the machine, but for commands that need the interpreter's functions
    assert!(same.left * 100 < same.allowed, "{same:?}");
    assert!(same.allowed > 1000 && same.denied > 1000 || std::env::var_os("KATA_CC_CORPUS").is_some());
}

/// Where one of the two fails on a value, the other could go on: each part of a request in turn is given another type. All of them with
/// `KATA_CC_ALL_TYPES`, otherwise as many as a test may take.
#[test]
fn machine_and_interpreter_agree_whatever_type_a_part_of_a_request_has() {
    let step = match (std::env::var_os("KATA_CC_ALL_TYPES"), cfg!(debug_assertions)) {
        (Some(_), _) => 1,
        (None, true) => 1999,
        (None, false) => 199,
    };
    let (mut wrong, mut same, mut number) = (Vec::new(), support::Agreement::default(), 0);
    let others = other_types();
    started(|case, policy, node, asked, data| {
        let of_containers = asked.iter().flat_map(|one| requests(one, data));
        for (request, input) in of_containers.chain(pod_requests(node)) {
            let mut all = Vec::new();
            places(&input, "", &mut all);
            for (place, other) in all.iter().flat_map(|place| others.iter().map(move |other| (place, other)))
            {
                number += 1;
                if number % step == 0 {
                    let why = same.on(policy, request, &replaced(&input, place, other.clone()));
                    wrong.extend(why.map(|why| format!("{case} {place} {other:?}: {why}")));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{same:?} of {number}");
    assert!(same.allowed > 100 && same.denied > 100 || std::env::var_os("KATA_CC_CORPUS").is_some());
}

#[test]
fn rules_that_differ_by_one_character_have_no_machine() {
    let case = &support::corpus()[0];
    let text = support::policy(case, &case.manifest.workloads[0]).text;
    let has_machine = |text: &str| {
        let null = json!(null).into();
        AgentPolicy::new("policy.rego", text).unwrap().by_machine("WaitProcessRequest", &null).is_some()
    };
    assert!(is_generated(&text) && has_machine(&text));
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    for other in [
        changed("# Rules. They", "# rules. They"),
        changed("default ReadStreamRequest := false", "default ReadStreamRequest  := false"),
        changed("count(create_violations) == 0", "count(create_violations) >= 0"),
        changed("# open besides", "x := 1\n# open besides"),
        changed("package agent_policy", "package agent_policy "),
        changed("\"pod\": {", "\"pod\": {\"more\": 1,"),
        changed("\"privileged\": false", "\"privileged\": null"),
        format!("{text}\n"),
        format!("{text}default StartContainerRequest := true"),
        text.trim_end().to_owned(),
    ] {
        assert!(!is_generated(&other), "{other}");
        // some are no policies at all
        if AgentPolicy::new("policy.rego", &other).is_ok() {
            assert!(!has_machine(&other), "{other}");
        }
    }
    // what a policy says in its document is its own
    assert!(has_machine(&changed("\"exec\": false", "\"exec\": true")));
}
