//! The real program as containerd runs it, up to the point where a virtual machine would be needed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};

use kata_cc_containerd_protocol::bootstrap::{BootstrapParams, BootstrapResult};
use kata_cc_containerd_protocol::introspection::RuntimeInfo;
use kata_cc_containerd_protocol::task_v2_ttrpc::TaskClient;
use kata_cc_containerd_protocol::task_v3::{
    ConnectRequest, CreateTaskRequest, DeleteResponse, ShutdownRequest,
};
use protobuf::Message;
use std::io::Write;
use std::process::Stdio;
use ttrpc::r#async::Client;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-kata-cc-v2");

fn shim(bundle: &Path, id: &str, action: &[&str], stdin: &[u8]) -> Output {
    let containerd = bundle.join("containerd.sock").display().to_string();
    let mut child = Command::new(SHIM)
        .args(["-namespace", "ns", "-address", &containerd, "-publish-binary", "/bin/false", "-id", id])
        .args(action)
        .current_dir(bundle)
        .env("KATA_CC_RUN_DIR", bundle.join("run"))
        .env("KATA_CC_STATE_DIR", bundle.join("state"))
        .env("KATA_CC_SHARE_DIR", bundle.join("share"))
        .env_remove("TTRPC_ADDRESS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

fn bundle(folder: &Path, id: &str, annotations: &str) -> std::path::PathBuf {
    let bundle = folder.join(id);
    std::fs::create_dir(&bundle).unwrap();
    let spec = format!(r#"{{"ociVersion":"1.0.2","annotations":{annotations},"root":{{"path":"rootfs"}}}}"#);
    std::fs::write(bundle.join("config.json"), spec).unwrap();
    bundle
}

fn bootstrap(folder: &Path, id: &str) -> Vec<u8> {
    let params = BootstrapParams {
        instance_id: id.into(),
        namespace: "ns".into(),
        socket_dir: Some(folder.join("s").display().to_string()),
        ..BootstrapParams::default()
    };
    params.write_to_bytes().unwrap()
}

#[tokio::test]
async fn start_serves_groups_and_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = bundle(folder.path(), "pod", r#"{"io.kubernetes.cri.container-type":"sandbox"}"#);
    let output = shim(&sandbox, "pod", &["start"], &bootstrap(folder.path(), "pod"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));

    // a member of the pod is served by the same process; the bundle differs, so does containerd's socket in this test
    let client = TaskClient::new(Client::connect(&answer.address).await.unwrap());
    let context = ttrpc::context::Context::default;
    let connect = ConnectRequest { id: "pod".into(), ..Default::default() };
    let connected = client.connect(context(), &connect).await.unwrap();
    let told: u32 = std::fs::read_to_string(sandbox.join("shim.pid")).unwrap().parse().unwrap();
    assert_eq!((connected.shim_pid, connected.task_pid), (told, 0));
    let again = shim(&sandbox, "pod", &["start"], &bootstrap(folder.path(), "pod"));
    assert_eq!(BootstrapResult::parse_from_bytes(&again.stdout).unwrap().address, answer.address);

    // no guest image is here: the creation fails, says why and leaves nothing
    let create =
        CreateTaskRequest { id: "pod".into(), bundle: sandbox.display().to_string(), ..Default::default() };
    let error = client.create(context(), &create).await.unwrap_err();
    assert!(matches!(&error, ttrpc::Error::RpcStatus(status) if !status.message.is_empty()), "{error:?}");
    let left = std::fs::read_dir(sandbox.join("run")).map(Iterator::count).unwrap_or_default();
    assert_eq!(left, 0, "{error:?}");

    let shutdown = ShutdownRequest { id: "pod".into(), ..Default::default() };
    client.shutdown(context(), &shutdown).await.unwrap();
    let socket = answer.address.trim_start_matches("unix://");
    while Path::new(socket).exists()
        || std::fs::read(format!("/proc/{told}/cmdline")).is_ok_and(|line| !line.is_empty())
    {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn delete_cleans_up_after_a_killed_server() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path(), "c1", "{}");
    let output = shim(&bundle, "c1", &["start"], &bootstrap(folder.path(), "c1"));
    let answer = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    let pid: i32 = std::fs::read_to_string(bundle.join("shim.pid")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let output = shim(&bundle, "c1", &["-bundle", &bundle.display().to_string(), "delete"], b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let deleted = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((i32::try_from(deleted.pid).unwrap(), deleted.exit_status), (pid, 137));
    assert!(!Path::new(answer.address.trim_start_matches("unix://")).exists());
}

#[tokio::test]
async fn a_server_whose_bundle_is_gone_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path(), "c1", "{}");
    let output = shim(&bundle, "c1", &["start"], &bootstrap(folder.path(), "c1"));
    let answer = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    let socket = answer.address.trim_start_matches("unix://");
    assert!(Path::new(socket).exists());
    std::fs::remove_dir_all(&bundle).unwrap();
    while Path::new(socket).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[test]
fn version_info_and_bad_flags() {
    let folder = tempfile::tempdir().unwrap();
    let version = Command::new(SHIM).arg("-v").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
    let info = Command::new(SHIM).arg("-info").stdin(Stdio::null()).output().unwrap();
    assert_eq!(RuntimeInfo::parse_from_bytes(&info.stdout).unwrap().name, "io.containerd.kata-cc.v2");
    let bad = shim(folder.path(), "../x", &["start"], b"");
    assert!(!bad.status.success());
    assert!(String::from_utf8_lossy(&bad.stderr).contains("not a containerd identifier"));
}
