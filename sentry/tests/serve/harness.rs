//! A sandbox of its own for a test, and calls to it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kata_cc_agent_protocol::agent as api;
use kata_cc_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_cc_agent_protocol::oci;
use tokio::runtime::Runtime;
use ttrpc::r#async::Client;

/// The longest that one call may take.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) type Called<T> = Result<T, ttrpc::Error>;

pub(crate) struct Sandbox {
    pub(crate) child: Child,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) runtime: Runtime,
    pub(crate) client: AgentServiceClient,
}

/// Sockets of a sandbox.
pub(crate) fn sockets(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("agent.sock"), folder.join("streams.sock"))
}

pub(crate) fn command(folder: &Path, options: &[&str]) -> Command {
    let (agent, streams) = sockets(folder);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"));
    command.arg("serve").arg("--agent-socket").arg(agent).arg("--streams-socket").arg(streams);
    command.args(options).env("KATA_CC_LOG", "info").env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The same command in a network namespace that `ip netns` made.
pub(crate) fn inside(namespace: &str, command: &Command) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    inside.env("KATA_CC_LOG", "info").env_remove("NOTIFY_SOCKET");
    inside.stdin(Stdio::null()).stdout(Stdio::null());
    inside
}

impl Sandbox {
    /// With the log of the sandbox in the test's output.
    pub(crate) fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let command = command(folder.path(), options);
        Self::start_by(folder, command)
    }

    /// In a network namespace that `ip netns` made.
    pub(crate) fn start_in(namespace: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let command = inside(namespace, &command(folder.path(), options));
        Self::start_by(folder, command)
    }

    /// After a line of shell: `$0` and what follows are the command of the sandbox.
    pub(crate) fn start_after(line: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let command = command(folder.path(), options);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{line} && exec \"$0\" \"$@\""));
        shell.arg(command.get_program()).args(command.get_args());
        shell
            .env("KATA_CC_LOG", "info")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Self::start_by(folder, shell)
    }

    fn start_by(folder: tempfile::TempDir, mut command: Command) -> Self {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = command.stderr(log).spawn().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (agent, streams) = sockets(folder.path());
        let begin = Instant::now();
        // It is there before it is listened on.
        while UnixStream::connect(&streams).is_err() {
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
            assert!(begin.elapsed() < LIMIT && !log.contains("kata-cc-sentry: "), "{log}");
            std::thread::sleep(Duration::from_millis(2));
        }
        let address = format!("unix://{}", agent.display());
        let client = runtime.block_on(Client::connect(&address)).unwrap();
        Self { child, folder, runtime, client: AgentServiceClient::new(client) }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Makes a call, and shows the log where it fails to come back.
    pub(crate) fn call<T>(&self, call: impl Future<Output = Called<T>>) -> Called<T> {
        let limited = async { tokio::time::timeout(LIMIT, call).await };
        self.runtime.block_on(limited).unwrap_or_else(|_| panic!("no answer: {}", self.log()))
    }

    pub(crate) fn create(&self, id: &str, spec: &oci::Spec) -> Called<()> {
        let mut request = api::CreateContainerRequest::new();
        request.container_id = id.to_owned();
        request.OCI = Some(spec.clone()).into();
        self.call(self.client.create_container(context(), &request)).map(drop)
    }

    pub(crate) fn start_container(&self, id: &str) -> Called<()> {
        let request = api::StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.call(self.client.start_container(context(), &request)).map(drop)
    }

    /// Makes a container and lets it run.
    pub(crate) fn run(&self, id: &str, spec: &oci::Spec) {
        self.create(id, spec).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        self.start_container(id).unwrap();
    }

    /// Runs a program in a container to its end: its code and output.
    pub(crate) fn run_in(&self, id: &str, exec: &str, arguments: &[&str]) -> (i32, String) {
        self.exec(id, exec, &process(arguments)).unwrap();
        let output = self.output(id, exec);
        (self.wait(id, exec).unwrap(), output + &self.errors(id, exec))
    }

    pub(crate) fn exec(&self, id: &str, exec: &str, process: &oci::Process) -> Called<()> {
        let mut request = api::ExecProcessRequest::new();
        (request.container_id, request.exec_id) = (id.to_owned(), exec.to_owned());
        request.process = Some(process.clone()).into();
        self.call(self.client.exec_process(context(), &request)).map(drop)
    }

    pub(crate) fn wait(&self, id: &str, exec: &str) -> Called<i32> {
        let mut request = api::WaitProcessRequest::new();
        (request.container_id, request.exec_id) = (id.to_owned(), exec.to_owned());
        let answer = self.call(self.client.wait_process(context(), &request));
        answer.map(|answer| answer.status)
    }

    pub(crate) fn signal(&self, id: &str, exec: &str, signal: u32) -> Called<()> {
        let mut request = api::SignalProcessRequest::new();
        (request.container_id, request.exec_id) = (id.to_owned(), exec.to_owned());
        request.signal = signal;
        self.call(self.client.signal_process(context(), &request)).map(drop)
    }

    pub(crate) fn remove(&self, id: &str) -> Called<()> {
        let request = api::RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.call(self.client.remove_container(context(), &request)).map(drop)
    }

    pub(crate) fn write(&self, id: &str, exec: &str, bytes: &[u8]) -> Called<()> {
        let mut request = api::WriteStreamRequest::new();
        (request.container_id, request.exec_id) = (id.to_owned(), exec.to_owned());
        request.data = bytes.to_vec();
        let answer = self.call(self.client.write_stdin(context(), &request))?;
        assert_eq!(answer.len as usize, bytes.len());
        Ok(())
    }

    pub(crate) fn close_input(&self, id: &str, exec: &str) -> Called<()> {
        let mut request = api::CloseStdinRequest::new();
        (request.container_id, request.exec_id) = (id.to_owned(), exec.to_owned());
        self.call(self.client.close_stdin(context(), &request)).map(drop)
    }

    /// One part of an output.
    pub(crate) fn read(&self, id: &str, exec: &str, errors: bool) -> Called<Vec<u8>> {
        let mut request = api::ReadStreamRequest::new();
        (request.container_id, request.exec_id) = (id.to_owned(), exec.to_owned());
        request.len = 4096;
        let answer = match errors {
            false => self.call(self.client.read_stdout(context(), &request)),
            true => self.call(self.client.read_stderr(context(), &request)),
        };
        answer.map(|answer| answer.data)
    }

    fn all(&self, id: &str, exec: &str, errors: bool) -> String {
        let mut all = Vec::new();
        loop {
            let part = self.read(id, exec, errors).unwrap();
            if part.is_empty() {
                return String::from_utf8(all).unwrap();
            }
            all.extend(part);
        }
    }

    /// All of the standard output.
    pub(crate) fn output(&self, id: &str, exec: &str) -> String {
        self.all(id, exec, false)
    }

    pub(crate) fn errors(&self, id: &str, exec: &str) -> String {
        self.all(id, exec, true)
    }

    /// Reads until something is shown.
    pub(crate) fn read_until(&self, id: &str, exec: &str, wanted: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(wanted) {
            let part = self.read(id, exec, false).unwrap();
            assert!(!part.is_empty(), "{seen:?} is all, without {wanted:?}");
            seen.push_str(&String::from_utf8_lossy(&part));
        }
        seen
    }

    /// Waits for the end of the sandbox: its exit code.
    pub(crate) fn ended(&mut self) -> i32 {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(begin.elapsed() < LIMIT, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the sandbox by a call.
    pub(crate) fn end(mut self) -> i32 {
        self.call(self.client.destroy_sandbox(context(), &api::DestroySandboxRequest::new())).unwrap();
        let code = self.ended();
        let (agent, streams) = sockets(self.folder.path());
        assert!(!agent.exists() && !streams.exists(), "sockets are left behind");
        code
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_timeout(i64::try_from(LIMIT.as_nanos()).unwrap())
}

pub(crate) fn process(arguments: &[&str]) -> oci::Process {
    let mut process = oci::Process::new();
    process.Args = arguments.iter().map(|&argument| argument.to_owned()).collect();
    process.Env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    process.Cwd = "/".to_owned();
    let all = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    let all: Vec<String> = all.iter().map(|&name| name.to_owned()).collect();
    let sets = process.Capabilities.mut_or_insert_default();
    (sets.Bounding, sets.Effective, sets.Permitted) = (all.clone(), all.clone(), all);
    process
}

pub(crate) fn mount(kind: &str, at: &str, options: &str) -> oci::Mount {
    let mut mount = oci::Mount::new();
    (mount.type_, mount.source, mount.destination) = (kind.into(), kind.into(), at.into());
    mount.options = options.split(',').map(str::to_owned).collect();
    mount
}

/// A container with this machine's files, and mounts as engines give them.
pub(crate) fn spec(arguments: &[&str]) -> oci::Spec {
    let mut spec = oci::Spec::new();
    spec.Version = "1.2.0".to_owned();
    spec.Process = Some(process(arguments)).into();
    spec.Root.mut_or_insert_default().Path = "/".to_owned();
    spec.Mounts = vec![
        mount("proc", "/proc", "nosuid,noexec,nodev"),
        mount("tmpfs", "/dev", "nosuid,strictatime,mode=755,size=65536k"),
        mount("devpts", "/dev/pts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("tmpfs", "/dev/shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        mount("mqueue", "/dev/mqueue", "nosuid,noexec,nodev"),
        mount("sysfs", "/sys", "nosuid,noexec,nodev,ro"),
        mount("cgroup", "/sys/fs/cgroup", "nosuid,noexec,nodev,relatime,ro"),
        mount("tmpfs", "/tmp", "mode=1777"),
    ];
    let linux = spec.Linux.mut_or_insert_default();
    linux.MaskedPaths = ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(str::to_owned).to_vec();
    linux.ReadonlyPaths = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"].map(str::to_owned).to_vec();
    spec
}

/// The code of a call that fails.
pub(crate) fn code_of<T>(called: Called<T>) -> ttrpc::Code {
    match called {
        Ok(_) => ttrpc::Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(other) => panic!("{other}"),
    }
}

impl Sandbox {
    pub(crate) fn resize(&self, id: &str, exec: &str, rows: u32, columns: u32) -> Called<()> {
        let mut request = api::TtyWinResizeRequest::new();
        (request.container_id, request.exec_id) = (id.to_owned(), exec.to_owned());
        (request.row, request.column) = (rows, columns);
        self.call(self.client.tty_win_resize(context(), &request)).map(drop)
    }

    pub(crate) fn call_stats(&self, id: &str) -> Called<api::StatsContainerResponse> {
        let request = api::StatsContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.call(self.client.stats_container(context(), &request))
    }

    pub(crate) fn stats(&self, id: &str) -> api::StatsContainerResponse {
        self.call_stats(id).unwrap()
    }

    /// Holds a container, or lets it go on.
    pub(crate) fn pause(&self, id: &str, paused: bool) -> Called<()> {
        if paused {
            let request = api::PauseContainerRequest { container_id: id.to_owned(), ..Default::default() };
            return self.call(self.client.pause_container(context(), &request)).map(drop);
        }
        let request = api::ResumeContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.call(self.client.resume_container(context(), &request)).map(drop)
    }

    /// Processes of a container as JSON.
    pub(crate) fn processes(&self, id: &str) -> String {
        let mut request = api::GetDiagnosticDataRequest::new();
        (request.log_type, request.container_id) = ("processes".to_owned(), id.to_owned());
        self.call(self.client.get_diagnostic_data(context(), &request)).unwrap().data
    }
}
