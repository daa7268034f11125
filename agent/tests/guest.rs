//! The agent as PID 1 of a booted guest, with a container's root on a block device.
//!
//! `KATA_CC_TEST_GUEST` names the API of a guest that is running (`tcp://…` or `unix://…`) and whose `/dev/vdc` holds an EROFS
//! image with busybox; without it the test says that it skips. The guest is off afterwards.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kata_cc_agent_protocol::agent::{
    CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, PauseContainerRequest,
    ReadStreamRequest, RemoveContainerRequest, ResumeContainerRequest, StartContainerRequest,
    StatsContainerRequest, Storage, WaitProcessRequest,
};
use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_agent_protocol::oci;

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(120))
}

fn request() -> CreateContainerRequest {
    let root = "/run/kata-containers/c1/rootfs";
    let mut r = CreateContainerRequest::new();
    r.container_id = "c1".to_owned();
    let mut storage = Storage::new();
    storage.driver = "mmioblk".to_owned();
    storage.source = "/dev/vdc".to_owned();
    storage.fstype = "erofs".to_owned();
    storage.options = vec!["ro".to_owned()];
    storage.mount_point = root.to_owned();
    r.storages.push(storage);
    let spec = r.OCI.mut_or_insert_default();
    spec.Root.mut_or_insert_default().Path = root.to_owned();
    let process = spec.Process.mut_or_insert_default();
    let script = "echo pid $$; echo written > /new && cat /new; cat /proc/self/cgroup; \
        cat /sys/fs/cgroup/memory.max; mknod /tmp/disk b 254 32 && cat /tmp/disk | head -c1; \
        echo x > /dev/null && echo null; sleep 3; exit 9";
    process.Args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    process.Env = vec!["PATH=/bin".to_owned()];
    let caps = process.Capabilities.mut_or_insert_default();
    for set in [&mut caps.Bounding, &mut caps.Effective, &mut caps.Permitted] {
        set.push("CAP_MKNOD".to_owned());
    }
    let linux = spec.Linux.mut_or_insert_default();
    linux.Resources.mut_or_insert_default().Memory.mut_or_insert_default().Limit = 64 << 20;
    for (destination, kind) in
        [("/proc", "proc"), ("/dev", "tmpfs"), ("/tmp", "tmpfs"), ("/sys/fs/cgroup", "cgroup")]
    {
        let mut mount = oci::Mount::new();
        mount.destination = destination.to_owned();
        (mount.source, mount.type_) = (kind.to_owned(), kind.to_owned());
        spec.Mounts.push(mount);
    }
    r
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_becomes_a_container() {
    let Ok(address) = std::env::var("KATA_CC_TEST_GUEST") else {
        eprintln!("skipped: KATA_CC_TEST_GUEST names no guest");
        return;
    };
    let client = AgentServiceClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap());
    let mut sandbox = CreateSandboxRequest::new();
    sandbox.sandbox_id = "s1".to_owned();
    client.create_sandbox(context(), &sandbox).await.unwrap();
    client.create_container(context(), &request()).await.unwrap();
    let mut start = StartContainerRequest::new();
    start.container_id = "c1".to_owned();
    client.start_container(context(), &start).await.unwrap();

    let mut pause = PauseContainerRequest::new();
    pause.container_id = "c1".to_owned();
    client.pause_container(context(), &pause).await.unwrap();
    let mut resume = ResumeContainerRequest::new();
    resume.container_id = "c1".to_owned();
    client.resume_container(context(), &resume).await.unwrap();
    let mut stats = StatsContainerRequest::new();
    stats.container_id = "c1".to_owned();
    let stats = client.stats_container(context(), &stats).await.unwrap();
    assert_eq!(stats.cgroup_stats.memory_stats.usage.limit, 64 << 20);
    assert!(stats.cgroup_stats.pids_stats.current > 0);

    let read = |stderr: bool| {
        let client = client.clone();
        async move {
            let mut text = String::new();
            loop {
                let mut r = ReadStreamRequest::new();
                (r.container_id, r.len) = ("c1".to_owned(), 4096);
                let data = match stderr {
                    true => client.read_stderr(context(), &r).await.unwrap().data,
                    false => client.read_stdout(context(), &r).await.unwrap().data,
                };
                if data.is_empty() {
                    return text;
                }
                text.push_str(&String::from_utf8_lossy(&data));
            }
        }
    };
    let (out, err) = (read(false).await, read(true).await);
    let mut wait = WaitProcessRequest::new();
    wait.container_id = "c1".to_owned();
    assert_eq!(client.wait_process(context(), &wait).await.unwrap().status, 9, "{out} {err}");
    assert!(out.starts_with("pid 1\nwritten\n0::/\n67108864\n"), "{out} {err}");
    assert!(out.ends_with("null\n"), "{out} {err}");
    assert!(err.contains("Operation not permitted"), "the device rules must forbid the disk: {out} {err}");

    let mut remove = RemoveContainerRequest::new();
    remove.container_id = "c1".to_owned();
    client.remove_container(context(), &remove).await.unwrap();
    client.destroy_sandbox(context(), &DestroySandboxRequest::new()).await.unwrap();
}
