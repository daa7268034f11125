//! The policies that lie in the initramfs, against requests as the shim makes them and as an attacker would.

use kata_cc_agent_protocol::agent::{CreateContainerRequest, ExecProcessRequest, SetPolicyRequest, Storage};
use kata_cc_agent_protocol::oci;
use kata_cc_policy::AgentPolicy;
use protobuf::MessageDyn;

fn policy(text: &str) -> AgentPolicy {
    AgentPolicy::new("test.rego", text).unwrap()
}

fn default() -> AgentPolicy {
    policy(include_str!("../policy/default.rego"))
}

fn check(policy: &mut AgentPolicy, request: &dyn MessageDyn) -> Result<(), String> {
    let name = request.descriptor_dyn().name().to_owned();
    policy.check(&name, &crate::json::message(request)).map_err(|e| e.to_string())
}

fn container() -> CreateContainerRequest {
    let mut request = CreateContainerRequest::new();
    request.container_id = "c1".to_owned();
    let spec = request.OCI.mut_or_insert_default();
    spec.Root.mut_or_insert_default().Path = "/run/kata-containers/c1/rootfs".to_owned();
    spec.Linux.mut_or_insert_default();
    let mut proc = oci::Mount::new();
    proc.type_ = "proc".to_owned();
    proc.destination = "/proc".to_owned();
    spec.Mounts.push(proc);
    let mut storage = Storage::new();
    storage.driver = "image_guest_pull".to_owned();
    storage.source = "registry/image:1".to_owned();
    storage.mount_point = "/run/kata-containers/c1/rootfs".to_owned();
    request.storages.push(storage);
    request
}

#[test]
fn a_pulled_container_is_allowed() {
    check(&mut default(), &container()).unwrap();
}

#[test]
fn what_the_host_made_is_refused_by_rule_field_and_value() {
    let refused = |change: &dyn Fn(&mut CreateContainerRequest), parts: [&str; 3]| {
        let mut request = container();
        change(&mut request);
        let text = check(&mut default(), &request).unwrap_err();
        assert!(text.starts_with("CreateContainerRequest is blocked by policy: "), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} not in {text}");
        }
    };
    refused(
        &|r| {
            let mut storage = Storage::new();
            storage.driver = "mmioblk".to_owned();
            r.storages.push(storage);
        },
        ["storage drivers", "storages[1].driver", "mmioblk"],
    );
    refused(
        &|r| {
            let mut hook = oci::Hook::new();
            hook.Path = "/bin/evil".to_owned();
            r.OCI.mut_or_insert_default().Hooks.mut_or_insert_default().Prestart.push(hook);
        },
        ["no hooks", "OCI.Hooks.Prestart", "/bin/evil"],
    );
    refused(
        &|r| {
            let mut mount = oci::Mount::new();
            (mount.type_, mount.source) = ("bind".to_owned(), "/dev".to_owned());
            r.OCI.mut_or_insert_default().Mounts.push(mount);
        },
        ["bind sources", "OCI.Mounts[1].source", "/dev"],
    );
    refused(
        &|r| r.OCI.mut_or_insert_default().Root.mut_or_insert_default().Path = "/".to_owned(),
        ["root", "OCI.Root.Path", "/"],
    );
    refused(&|r| r.storages.clear(), ["root is a pulled image", "storages", "[]"]);
}

#[test]
fn exec_and_policy_changes_need_another_policy() {
    let mut exec = ExecProcessRequest::new();
    (exec.container_id, exec.exec_id) = ("c1".to_owned(), "e1".to_owned());
    let text = check(&mut default(), &exec).unwrap_err();
    assert!(text.contains("field exec_id, value \"e1\""), "{text}");
    check(&mut default(), &SetPolicyRequest::new()).unwrap_err();
    check(&mut policy(include_str!("../policy/exec.rego")), &exec).unwrap();
    check(&mut policy(include_str!("../policy/plain.rego")), &exec).unwrap();
}
