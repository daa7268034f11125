//! The policies that lie in the guest's root, against requests as the shim makes them and as an attacker would.

use std::path::Path;

use kata_cc_agent_protocol::agent::{
    AddARPNeighborsRequest, CopyFileRequest, CreateContainerRequest, ExecProcessRequest, SetPolicyRequest,
    Storage, WriteStreamRequest,
};
use kata_cc_agent_protocol::oci;
use kata_cc_policy::AgentPolicy;
use protobuf::MessageDyn;
use serde_json::json;

use crate::image::Program;
use crate::image::tests::{pause, program};

fn policy(text: &str) -> AgentPolicy {
    AgentPolicy::new("test.rego", text).unwrap()
}

fn default() -> AgentPolicy {
    policy(include_str!("../policy/default.rego"))
}

fn check(policy: &mut AgentPolicy, request: &dyn MessageDyn) -> Result<(), String> {
    let name = request.descriptor_dyn().name().to_owned();
    policy.check(&name, &kata_cc_agent_protocol::json::message(request)).map_err(|e| e.to_string())
}

const SHM: &str = "/run/kata-containers/sandbox/shm";

/// A container's `config.json` as the shim sends it.
fn sent(spec: &str, image: &str) -> CreateContainerRequest {
    let root = "/run/kata-containers/c1/rootfs";
    let mut spec: serde_json::Value = serde_json::from_str(spec).unwrap();
    // The shim copies files of the host: one is enough, of any machine that runs tests.
    for mount in spec["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/etc/resolv.conf" {
            mount["source"] = "/etc/hostname".into();
        }
    }
    let mut request = CreateContainerRequest::new();
    request.container_id = "c1".to_owned();
    request.OCI = Some(kata_cc_sandbox::oci::convert("c1", &spec, root).unwrap().spec).into();
    let mut storage = Storage::new();
    storage.driver = "image_guest_pull".to_owned();
    storage.source = image.to_owned();
    storage.mount_point = root.to_owned();
    request.storages.push(storage);
    request
}

fn kata_cc_run() -> CreateContainerRequest {
    sent(include_str!("../tests/data/kata-cc-run.json"), "registry/image:1")
}

fn ctr_run() -> CreateContainerRequest {
    sent(include_str!("../tests/data/ctr-run-rootfs.json"), "registry/image:1")
}

fn cri_pause() -> CreateContainerRequest {
    sent(include_str!("../tests/data/cri-pause.json"), "pause")
}

fn container() -> CreateContainerRequest {
    kata_cc_run()
}

/// All questions about a container whose image is `image`, in the agent's order.
fn start(
    policy: &mut AgentPolicy,
    mut request: CreateContainerRequest,
    image: &Program,
) -> Result<(), String> {
    check(policy, &request)?;
    let spec = request.OCI.mut_or_insert_default();
    image.complete(spec);
    let names = request.string_user.as_ref();
    for rootfs in [None, Some(Path::new("/nowhere"))] {
        if let Some(input) = image.question("c1", "registry/image:1", &spec.Process, names, rootfs) {
            policy.check("RunImageRequest", &input).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// The image of the end-to-end tests.
fn busybox() -> Program {
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["cat", "/secret.txt"], "WorkingDir": "/"});
    program(&config)
}

/// A change to what the host sends.
type Change<'a> = &'a dyn Fn(&mut oci::Spec);

#[test]
fn what_the_host_sends_by_default_is_allowed() {
    start(&mut default(), kata_cc_run(), &busybox()).unwrap();
    start(&mut default(), ctr_run(), &busybox()).unwrap();
    start(&mut default(), cri_pause(), &pause()).unwrap();
    check(&mut default(), &ephemeral(SHM)).unwrap();
    let exec = include_str!("../policy/exec.rego");
    start(&mut policy(exec), kata_cc_run(), &busybox()).unwrap();
}

/// A sandbox container with the sandbox's shared memory.
fn ephemeral(mount_point: &str) -> CreateContainerRequest {
    let mut request = cri_pause();
    let mut storage = Storage::new();
    (storage.driver, storage.fstype) = ("ephemeral".to_owned(), "tmpfs".to_owned());
    storage.mount_point = mount_point.to_owned();
    request.storages.push(storage);
    request
}

#[test]
fn another_program_than_the_images_own_is_refused() {
    let refused = |change: Change<'_>, parts: [&str; 3]| {
        let mut request = ctr_run();
        change(request.OCI.mut_or_insert_default());
        let text = start(&mut default(), request, &busybox()).unwrap_err();
        for part in
            parts.iter().chain(&["RunImageRequest is blocked by policy", "policy.rego in its init-data"])
        {
            assert!(text.contains(part), "{part} not in {text}");
        }
    };
    let program = |s: &mut oci::Spec, words: &[&str]| {
        s.Process.mut_or_insert_default().Args = words.iter().map(|w| (*w).to_owned()).collect();
    };
    let own = "the image's own program";
    refused(&|s| program(s, &["cat", "/etc/passwd"]), [own, "process.Args", "/etc/passwd"]);
    refused(&|s| program(s, &["sh"]), [own, "process.Args", "sh"]);
    refused(&|s| program(s, &["cat", "/secret.txt", "/x"]), [own, "process.Args", "/x"]);
    for entry in [
        "LD_PRELOAD=/etc/hosts",
        "PATH=/tmp:/bin",
        "HOME=/tmp",
        "NODE_OPTIONS=--require=/x",
        "PYTHONPATH=/tmp",
        "LD_SERVICE_HOST=x",
        "TERM=../../tmp/x",
        "X_PORT=$(id)",
    ] {
        let set = |s: &mut oci::Spec| s.Process.mut_or_insert_default().Env.push(entry.to_owned());
        refused(&set, ["the image's own environment", "process.Env[0]", entry]);
    }
    let cwd = |s: &mut oci::Spec| s.Process.mut_or_insert_default().Cwd = "/tmp".to_owned();
    refused(&cwd, ["the image's own folder", "process.Cwd", "/tmp"]);
    let user = |s: &mut oci::Spec| s.Process.mut_or_insert_default().User.mut_or_insert_default().UID = 7;
    refused(&user, ["the image's own user", "process.User", "7"]);
    let group = |s: &mut oci::Spec| {
        s.Process.mut_or_insert_default().User.mut_or_insert_default().AdditionalGids.push(6);
    };
    refused(&group, ["the image's own groups", "process.User.AdditionalGids[0]", "6"]);
}

/// Whatever does not hang on the image's own files is decided before its keys are asked for.
#[test]
fn a_refusal_does_not_wait_for_the_images_files() {
    let mut request = ctr_run();
    request.OCI.mut_or_insert_default().Process.mut_or_insert_default().User.mut_or_insert_default().UID = 7;
    let spec = request.OCI.mut_or_insert_default();
    let image = busybox();
    image.complete(spec);
    let asked = |spec: &oci::Spec, rootfs| {
        let input = image.question("c1", "registry/image:1", &spec.Process, None, rootfs).unwrap();
        let answer = default().check("RunImageRequest", &input).map_err(|e| e.to_string());
        (input["image"]["pulled"].clone(), answer)
    };
    // Who the user is the files tell.
    assert_eq!(asked(spec, None), (json!(false), Ok(())));
    let (pulled, refused) = asked(spec, Some(Path::new("/nowhere")));
    assert!(pulled == json!(true) && refused.unwrap_err().contains("the image's own user"));
    spec.Process.mut_or_insert_default().Args = vec!["sh".to_owned()];
    assert!(asked(spec, None).1.unwrap_err().contains("the image's own program"));
}

#[test]
fn what_kubernetes_adds_to_the_environment_is_allowed() {
    let mut request = ctr_run();
    request.OCI.mut_or_insert_default().Process.mut_or_insert_default().Env = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=web-0",
        "TERM=xterm-256color",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
        "KUBERNETES_PORT=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO=tcp",
        "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
    ]
    .map(str::to_owned)
    .to_vec();
    start(&mut default(), request.clone(), &busybox()).unwrap();
    // What the image says itself, it has decided.
    let decided =
        program(&json!({"Env": ["PATH=/bin", "KUBERNETES_SERVICE_HOST=own"], "Cmd": ["cat", "/secret.txt"]}));
    assert!(start(&mut default(), request, &decided).unwrap_err().contains("KUBERNETES_SERVICE_HOST"));
}

#[test]
fn a_pods_own_copy_adds_programs() {
    let mut request = ctr_run();
    let words = ["sh", "-c", "true"].map(str::to_owned).to_vec();
    request.OCI.mut_or_insert_default().Process.mut_or_insert_default().Args = words;
    let text =
        concat!(include_str!("../policy/default.rego"), "\nprograms contains [\"sh\", \"-c\", \"true\"]\n");
    start(&mut policy(text), request, &busybox()).unwrap();
    start(&mut policy(text), kata_cc_run(), &busybox()).unwrap();
}

/// The file for tests differs from the default in what its head says, and in nothing else.
#[test]
fn the_exec_policy_is_the_default_one_otherwise() {
    let body = |text: &str| text.split_once("package agent_policy").unwrap().1.to_owned();
    let mut expected = body(include_str!("../policy/default.rego"));
    for name in ["ExecProcessRequest", "WriteStreamRequest", "RunImageRequest"] {
        expected = expected.replace(&format!("default {name} := false"), &format!("default {name} := true"));
    }
    assert_eq!(body(include_str!("../policy/exec.rego")), expected);
}

#[test]
fn standard_input_is_closed() {
    let mut write = WriteStreamRequest::new();
    write.container_id = "c1".to_owned();
    check(&mut default(), &write).unwrap();
    write.data = b"cat /secret.txt\n".to_vec();
    let text = check(&mut default(), &write).unwrap_err();
    assert!(text.contains("no standard input") && text.contains("policy.rego in its init-data"), "{text}");
    check(&mut policy(include_str!("../policy/exec.rego")), &write).unwrap();
    check(&mut default(), &AddARPNeighborsRequest::new()).unwrap_err();
}

#[test]
fn files_are_copied_below_their_folder_and_nowhere_else() {
    let asked = |path: &str| {
        let mut copy = CopyFileRequest::new();
        copy.path = path.to_owned();
        check(&mut default(), &copy)
    };
    let shared = "/run/kata-containers/shared/containers";
    // A projected volume as the kubelet writes it.
    for good in ["c1-hosts", "c1-token/..data", "c1-token/..2026_01_01_00_00_00.123/token"] {
        asked(&format!("{shared}/{good}")).unwrap();
    }
    for bad in [format!("{shared}/../c1/rootfs/bin/sh"), format!("{shared}/a/.."), "/etc/passwd".to_owned()] {
        assert!(asked(&bad).unwrap_err().contains("CopyFileRequest"), "{bad}");
    }
}

#[test]
fn what_gives_the_host_a_hand_in_the_container_is_refused() {
    let refused = |change: Change<'_>, parts: [&str; 3]| {
        let mut request = ctr_run();
        change(request.OCI.mut_or_insert_default());
        let text = check(&mut default(), &request).unwrap_err();
        for part in parts.iter().chain(&["policy.rego in its init-data"]) {
            assert!(text.contains(part), "{part} not in {text}");
        }
    };
    let capability = |s: &mut oci::Spec| {
        let process = s.Process.mut_or_insert_default();
        process.Capabilities.mut_or_insert_default().Bounding.push("CAP_SYS_ADMIN".to_owned());
    };
    refused(&capability, ["capabilities", "OCI.Process.Capabilities.Bounding", "CAP_SYS_ADMIN"]);
    let sysctl = |s: &mut oci::Spec| {
        let linux = s.Linux.mut_or_insert_default();
        linux.Sysctl.insert("net.ipv4.conf.all.route_localnet".to_owned(), "1".to_owned());
    };
    refused(&sysctl, ["kernel parameters", "OCI.Linux.Sysctl", "route_localnet"]);
    let device = |s: &mut oci::Spec| {
        let mut device = oci::LinuxDevice::new();
        (device.Path, device.Type) = ("/dev/sev-guest".to_owned(), "c".to_owned());
        s.Linux.mut_or_insert_default().Devices.push(device);
    };
    refused(&device, ["no devices", "OCI.Linux.Devices[0]", "sev-guest"]);
    let rule = |s: &mut oci::Spec| {
        let mut rule = oci::LinuxDeviceCgroup::new();
        (rule.Allow, rule.Access) = (true, "rwm".to_owned());
        s.Linux.mut_or_insert_default().Resources.mut_or_insert_default().Devices.push(rule);
    };
    refused(&rule, ["device rules", "OCI.Linux.Resources.Devices[10]", "rwm"]);
    let masks = |s: &mut oci::Spec| s.Linux.mut_or_insert_default().MaskedPaths.clear();
    refused(&masks, ["masked paths", "OCI.Linux.MaskedPaths", "/proc/kcore"]);
    let readonly = |s: &mut oci::Spec| s.Linux.mut_or_insert_default().ReadonlyPaths.clear();
    refused(&readonly, ["read-only paths", "OCI.Linux.ReadonlyPaths", "/proc/sys"]);
    let seccomp = |s: &mut oci::Spec| {
        let mut call = oci::LinuxSyscall::new();
        call.Names = vec!["setuid".to_owned()];
        call.ErrnoRet = Some(oci::linux_syscall::ErrnoRet::Errnoret(0));
        s.Linux.mut_or_insert_default().Seccomp.mut_or_insert_default().Syscalls.push(call);
    };
    refused(&seccomp, ["seccomp answers truly", "OCI.Linux.Seccomp.Syscalls[0]", "setuid"]);
}

#[test]
fn mounts_and_storages_are_what_they_say() {
    let refused = |mount: (&str, &str, &str, &str), parts: [&str; 3]| {
        let mut request = ctr_run();
        let spec = request.OCI.mut_or_insert_default();
        let mut added = oci::Mount::new();
        (added.type_, added.source) = (mount.0.to_owned(), mount.1.to_owned());
        (added.destination, added.options) = (mount.2.to_owned(), vec![mount.3.to_owned()]);
        spec.Mounts.push(added);
        let text = check(&mut default(), &request).unwrap_err();
        for part in parts {
            assert!(text.contains(part), "{part} not in {text}");
        }
    };
    let shared = "/run/kata-containers/shared/containers/evil";
    refused(
        ("tmpfs", shared, "/dev/shm", "ro,rbind"),
        ["one option at a time", "OCI.Mounts[7].options", "ro,rbind"],
    );
    refused(("tmpfs", shared, "/etc/hosts", "rbind"), ["mount types", "OCI.Mounts[7].type_", "tmpfs"]);
    refused(("tmpfs", "tmpfs", "/app", "ro"), ["mount destinations", "OCI.Mounts[7].destination", "/app"]);
    refused(("bind", shared, "/usr/bin/app", "rbind"), ["bind destinations", "destination", "/usr/bin/app"]);
    refused(("bind", SHM, "/usr/bin", "rbind"), ["bind destinations", "destination", "/usr/bin"]);
    let mut optioned = ephemeral(SHM);
    optioned.storages[1].options.push("ro,bind".to_owned());
    let text = check(&mut default(), &optioned).unwrap_err();
    assert!(text.contains("one option at a time") && text.contains("storages[1].options"), "{text}");
    let other = "/run/kata-containers/sandbox/p";
    refused(("bind", other, "/dev/shm", "rbind"), ["bind sources", "OCI.Mounts[7].source", other]);
    for point in
        ["/proc", "/run/kata-containers/shared/containers/p", "/run/kata-containers/sandbox/../c2/rootfs"]
    {
        let text = check(&mut default(), &ephemeral(point)).unwrap_err();
        assert!(text.contains("places of storages") && text.contains(point), "{text}");
        let mut request = ctr_run();
        let mut second = request.storages[0].clone();
        second.mount_point = point.to_owned();
        request.storages.push(second);
        let text = check(&mut default(), &request).unwrap_err();
        assert!(text.contains("places of storages") && text.contains("storages[1].mount_point"), "{text}");
    }
}

#[test]
fn the_policy_of_the_documentation_pins_image_program_and_environment() {
    let page = include_str!("../../docs/security.md");
    let (_, addition) = page.split_once("```rego\n# policy.rego\n").unwrap();
    let (addition, _) = addition.split_once("```").unwrap();
    let pinned = format!("{}\n{addition}", include_str!("../policy/default.rego"));
    let good = {
        let mut request = container();
        request.storages[0].source = format!("registry.example/shop@sha256:{}", "0".repeat(64));
        let process = request.OCI.mut_or_insert_default().Process.mut_or_insert_default();
        process.Args = ["/shop", "serve"].map(str::to_owned).to_vec();
        process.Env = vec!["SHOP=1".to_owned()];
        request
    };
    check(&mut policy(&pinned), &good).unwrap();
    let refused = |change: &dyn Fn(&mut CreateContainerRequest), rule: &str| {
        let mut request = good.clone();
        change(&mut request);
        check(&mut default(), &request).unwrap();
        let text = check(&mut policy(&pinned), &request).unwrap_err();
        assert!(text.contains(rule), "{rule} not in {text}");
    };
    let process = |request: &mut CreateContainerRequest, change: &dyn Fn(&mut oci::Process)| {
        change(request.OCI.mut_or_insert_default().Process.mut_or_insert_default());
    };
    refused(&|r| r.storages[0].source = "registry.example/shop:latest".to_owned(), "pinned image");
    refused(&|r| process(r, &|p| p.Args = vec!["/bin/sh".to_owned()]), "pinned program");
    refused(&|r| process(r, &|p| p.Env.push("LD_PRELOAD=/x".to_owned())), "pinned environment");
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
        ["bind sources", "OCI.Mounts[7].source", "/dev"],
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
