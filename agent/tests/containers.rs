//! The real agent binary, driven over its API by a Unix socket, builds real containers from busybox.
//!
//! Needs root, namespaces and a static `/bin/busybox`; says why it skips otherwise. The agent runs in its own mount
//! and PID namespace with its own `/run`, so nothing is left on this machine. Without cgroup v2 at
//! `/sys/fs/cgroup` (build machines) limits are not tested; in the lab they are.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kata_cc_agent_protocol::agent::{
    CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GuestDetailsRequest, ReadStreamRequest, RemoveContainerRequest, SignalProcessRequest,
    StartContainerRequest, StatsContainerRequest, Storage, TtyWinResizeRequest, WaitProcessRequest,
    WriteStreamRequest,
};
use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_agent_protocol::health::CheckRequest;
use kata_cc_agent_protocol::health_ttrpc::HealthClient;
use kata_cc_agent_protocol::oci;
use ttrpc::context::Context;

struct Agent {
    child: Child,
    folder: PathBuf,
    client: AgentServiceClient,
    health: HealthClient,
}

fn context() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(120))
}

fn skip() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("needs /bin/busybox (Debian: busybox-static)");
    }
    let unshared = Command::new("unshare").args(["-m", "-p", "-f", "true"]).status();
    (!unshared.is_ok_and(|s| s.success())).then_some("needs mount and PID namespaces")
}

impl Agent {
    async fn start(name: &str) -> Option<Self> {
        if let Some(reason) = skip() {
            eprintln!("skipped: {reason}");
            return None;
        }
        let folder = PathBuf::from(format!("/tmp/kata-cc-agent-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("sock");
        let script = "set -e; mount -t proc proc /proc; mount -t tmpfs run /run; \
            mkdir -p /run/kata-containers; for c in c1 c2; do r=/run/kata-containers/$c/rootfs; \
            mkdir -p $r/bin $r/etc $r/proc $r/dev $r/sys $r/tmp; cp /bin/busybox $r/bin/; \
            /bin/busybox --install -s $r/bin; for l in $r/bin/*; do [ -L $l ] && ln -sf busybox $l; done; \
            echo 'root:x:0:0::/root:/bin/sh' > $r/etc/passwd; echo 'web:x:33:34::/www:/bin/sh' >> $r/etc/passwd; \
            echo 'web:x:34:' > $r/etc/group; done; \"$AGENT\" & wait";
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--ipc",
                "--uts",
                "--net",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                script,
            ])
            .env("AGENT", env!("CARGO_BIN_EXE_kata-cc-agent"))
            .env("KATA_AGENT_SERVER_ADDR", format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        for _ in 0..1000 {
            if let Ok(connection) =
                ttrpc::r#async::Client::connect(&format!("unix://{}", socket.display())).await
            {
                let client = AgentServiceClient::new(connection.clone());
                let health = HealthClient::new(connection);
                return Some(Self { child, folder, client, health });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("the agent does not listen: {}", std::fs::read_to_string(folder.join("log")).unwrap());
    }

    async fn sandbox(&self) {
        let mut r = CreateSandboxRequest::new();
        r.sandbox_id = "s1".to_owned();
        r.hostname = "pod-name".to_owned();
        r.dns = vec!["nameserver 10.9.8.7".to_owned()];
        self.client.create_sandbox(context(), &r).await.unwrap();
    }

    async fn create(&self, id: &str, spec: oci::Spec) -> ttrpc::Result<()> {
        let mut r = CreateContainerRequest::new();
        r.container_id = id.to_owned();
        r.OCI = Some(spec).into();
        self.client.create_container(context(), &r).await.map(drop)
    }

    async fn run(&self, id: &str, spec: oci::Spec) -> (i32, String, String) {
        self.create(id, spec).await.unwrap();
        let mut r = StartContainerRequest::new();
        r.container_id = id.to_owned();
        self.client.start_container(context(), &r).await.unwrap();
        self.finish(id, "").await
    }

    async fn finish(&self, id: &str, exec: &str) -> (i32, String, String) {
        let out = self.all(id, exec, false).await;
        let err = self.all(id, exec, true).await;
        let mut r = WaitProcessRequest::new();
        (r.container_id, r.exec_id) = (id.to_owned(), exec.to_owned());
        let status = self.client.wait_process(context(), &r).await.unwrap().status;
        (status, out, err)
    }

    async fn all(&self, id: &str, exec: &str, stderr: bool) -> String {
        let mut text = Vec::new();
        loop {
            let mut r = ReadStreamRequest::new();
            (r.container_id, r.exec_id, r.len) = (id.to_owned(), exec.to_owned(), 4096);
            let answer = match stderr {
                true => self.client.read_stderr(context(), &r).await,
                false => self.client.read_stdout(context(), &r).await,
            };
            let data = answer.unwrap().data;
            if data.is_empty() {
                return String::from_utf8_lossy(&text).into_owned();
            }
            text.extend(data);
        }
    }

    async fn remove(&self, id: &str) {
        let mut r = RemoveContainerRequest::new();
        r.container_id = id.to_owned();
        self.client.remove_container(context(), &r).await.unwrap();
    }

    async fn end(mut self) {
        self.client.destroy_sandbox(context(), &DestroySandboxRequest::new()).await.unwrap();
        let _ = self.child.wait();
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn spec(script: &str) -> oci::Spec {
    let mut spec = oci::Spec::new();
    spec.Version = "1.1.0".to_owned();
    let process = spec.Process.mut_or_insert_default();
    process.Args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    process.Env = vec!["PATH=/bin".to_owned()];
    process.Cwd = "/".to_owned();
    process.NoNewPrivileges = true;
    let linux = spec.Linux.mut_or_insert_default();
    for kind in ["pid", "mount", "ipc", "uts"] {
        let mut ns = oci::LinuxNamespace::new();
        ns.Type = kind.to_owned();
        linux.Namespaces.push(ns);
    }
    linux.MaskedPaths = vec!["/proc/kcore".to_owned(), "/proc/acpi".to_owned()];
    linux.ReadonlyPaths = vec!["/proc/sys".to_owned()];
    let mounts: [(&str, &str, &[&str]); 4] = [
        ("/proc", "proc", &[]),
        ("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/tmp", "tmpfs", &["nosuid"]),
    ];
    for (destination, kind, options) in mounts {
        let mut mount = oci::Mount::new();
        mount.destination = destination.to_owned();
        mount.source = kind.to_owned();
        mount.type_ = kind.to_owned();
        mount.options = options.iter().map(|o| (*o).to_owned()).collect();
        spec.Mounts.push(mount);
    }
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_isolated() {
    let Some(agent) = Agent::start("isolated").await else { return };
    agent.health.check(context(), &CheckRequest::new()).await.unwrap();
    let details = agent.client.get_guest_details(context(), &GuestDetailsRequest::new()).await.unwrap();
    assert!(details.agent_details.supports_seccomp);
    agent.sandbox().await;
    let script = "echo $$; hostname; cat /etc/resolv.conf; ls /; id -u; echo err >&2; \
        head -c1 /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/printk; echo x > /dev/null && echo null; \
        grep CapEff /proc/self/status; exit 7";
    let (status, out, err) = agent.run("c1", spec(script)).await;
    assert_eq!(status, 7, "{out} {err}");
    assert!(out.starts_with("1\npod-name\nnameserver 10.9.8.7\n"), "{out}");
    assert!(out.contains("CapEff:\t0000000000000000") && out.contains("null"), "{out}");
    assert!(err.contains("err") && err.contains("Read-only file system"), "{err}");
    assert!(!out.contains("lost+found"), "{out}");
    agent.remove("c1").await;
    agent.end().await;
}

fn pause_on(mount_point: &str) -> Storage {
    let mut storage = Storage::new();
    storage.driver = "image_guest_pull".to_owned();
    storage.source = "pause".to_owned();
    storage.mount_point = mount_point.to_owned();
    storage
}

/// An image is bound to the root of its container's bundle and to no other place of the guest.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_mounted_nowhere_else() {
    let Some(agent) = Agent::start("storages").await else { return };
    agent.sandbox().await;
    let table = || std::fs::read_to_string(format!("/proc/{}/mountinfo", agent.child.id())).unwrap();
    let before = table();
    let base = "/run/kata-containers";
    for point in ["/proc", "/etc", "/tmp"]
        .map(str::to_owned)
        .into_iter()
        .chain(["c2/.pause", "shared/containers/p", "sandbox/p", "image/c3"].map(|p| format!("{base}/{p}")))
    {
        let mut r = CreateContainerRequest::new();
        r.container_id = "c3".to_owned();
        r.OCI = Some(spec("true")).into();
        r.storages = vec![pause_on(&point)];
        let error = agent.client.create_container(context(), &r).await.unwrap_err().to_string();
        assert!(error.contains("is not this storage's") || error.contains("mount point"), "{point}: {error}");
        assert_eq!(table(), before, "{point}");
    }
    let mut r = CreateContainerRequest::new();
    r.container_id = "c3".to_owned();
    r.OCI = Some(spec("true")).into();
    r.storages = vec![pause_on(&format!("{base}/c3/rootfs"))];
    agent.client.create_container(context(), &r).await.unwrap();
    agent.remove("c3").await;
    assert_eq!(table(), before);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_exec_user_signals_and_failures() {
    let Some(agent) = Agent::start("exec").await else { return };
    agent.sandbox().await;
    let mut first = spec("cat; echo done");
    first.Process.mut_or_insert_default().User.mut_or_insert_default().UID = 12;
    agent.create("c1", first).await.unwrap();
    let mut r = StartContainerRequest::new();
    r.container_id = "c1".to_owned();
    agent.client.start_container(context(), &r).await.unwrap();

    let mut exec = ExecProcessRequest::new();
    (exec.container_id, exec.exec_id) = ("c1".to_owned(), "e1".to_owned());
    let mut program = spec("id -u; id -g; echo $HOME; ps | wc -l").Process.unwrap();
    program.User.mut_or_insert_default().Username = "web".to_owned();
    exec.process = Some(program).into();
    agent.client.exec_process(context(), &exec).await.unwrap();
    let (status, out, err) = agent.finish("c1", "e1").await;
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.starts_with("33\n34\n/www\n"), "{out}");

    exec.exec_id = "e2".to_owned();
    exec.process.mut_or_insert_default().Args = vec!["/no/such".to_owned()];
    let error = agent.client.exec_process(context(), &exec).await.unwrap_err().to_string();
    assert!(error.contains("/no/such") && error.contains("ENOENT"), "{error}");

    let mut write = WriteStreamRequest::new();
    (write.container_id, write.data) = ("c1".to_owned(), b"hello\n".to_vec());
    agent.client.write_stdin(context(), &write).await.unwrap();
    let mut close = CloseStdinRequest::new();
    close.container_id = "c1".to_owned();
    agent.client.close_stdin(context(), &close).await.unwrap();
    let (status, out, _) = agent.finish("c1", "c1").await;
    assert_eq!((status, out.as_str()), (0, "hello\ndone\n"));
    agent.remove("c1").await;

    agent.create("c2", spec("while true; do sleep 1; done")).await.unwrap();
    r.container_id = "c2".to_owned();
    agent.client.start_container(context(), &r).await.unwrap();
    let mut stats = StatsContainerRequest::new();
    stats.container_id = "c2".to_owned();
    agent.client.stats_container(context(), &stats).await.unwrap();
    let mut resize = TtyWinResizeRequest::new();
    resize.container_id = "c2".to_owned();
    assert!(
        agent.client.tty_win_resize(context(), &resize).await.unwrap_err().to_string().contains("no tty")
    );
    let mut kill = SignalProcessRequest::new();
    (kill.container_id, kill.exec_id, kill.signal) = ("c2".to_owned(), "c2".to_owned(), 15);
    agent.client.signal_process(context(), &kill).await.unwrap();
    let (status, ..) = agent.finish("c2", "").await;
    assert_eq!(status, 137);
    agent.remove("c2").await;
    kill.container_id = "gone".to_owned();
    let error = agent.client.signal_process(context(), &kill).await.unwrap_err().to_string();
    assert!(error.contains("Invalid container id"), "{error}");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_and_a_seccomp_profile() {
    let Some(agent) = Agent::start("tty").await else { return };
    agent.sandbox().await;
    let mut with_tty = spec("tty; stty size; mkdir /tmp/x || echo refused");
    let process = with_tty.Process.mut_or_insert_default();
    process.Terminal = true;
    let size = process.ConsoleSize.mut_or_insert_default();
    (size.Height, size.Width) = (33, 77);
    let linux = with_tty.Linux.mut_or_insert_default();
    let profile = linux.Seccomp.mut_or_insert_default();
    profile.DefaultAction = "SCMP_ACT_ALLOW".to_owned();
    let mut rule = oci::LinuxSyscall::new();
    rule.Names = ["mkdir", "mkdirat"].map(str::to_owned).to_vec();
    rule.Action = "SCMP_ACT_ERRNO".to_owned();
    profile.Syscalls.push(rule);
    let (status, out, _) = agent.run("c1", with_tty).await;
    assert_eq!(status, 0);
    assert!(out.contains("/dev/pts/0") && out.contains("33 77") && out.contains("refused"), "{out}");
    agent.remove("c1").await;

    let mut bad = spec("true");
    bad.Process.mut_or_insert_default().Args = vec!["nonsense".to_owned()];
    agent.create("c2", bad).await.unwrap();
    let mut r = StartContainerRequest::new();
    r.container_id = "c2".to_owned();
    let error = agent.client.start_container(context(), &r).await.unwrap_err().to_string();
    assert!(error.contains("executable file not found"), "{error}");
    agent.remove("c2").await;
    agent.end().await;
}
