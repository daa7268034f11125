//! Runs the monitor of one sandbox and speaks to its control socket.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use kata_cc_vmm_api::{ControlReply, ControlRequest, VmConfig, exit};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::cgroup::Cgroup;
use crate::process;

/// How long the monitor may take to answer on its control socket.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(20);

/// A started monitor.
#[derive(Debug)]
pub(crate) struct Vmm {
    /// The process.
    pub(crate) child: Child,
    /// Its id.
    pub(crate) pid: u32,
    /// When it started, see [`process::start_time`].
    pub(crate) start: u64,
}

/// Start the monitor in a network namespace, and in a control group where there is one.
pub(crate) fn start(
    program: &Path,
    config: &VmConfig,
    dir: &Path,
    netns: &Path,
    group: Option<&Cgroup>,
) -> std::io::Result<Vmm> {
    let file = dir.join("vmm.json");
    std::fs::write(&file, serde_json::to_vec_pretty(config)?)?;
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(&file)
        .arg("--die-with-parent")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    process::enter(&mut command, Some(netns), group.map(Cgroup::door).transpose()?)?;
    let child = spawn_from_lasting_thread(command)?;
    let pid = child.id().unwrap_or_default();
    Ok(Vmm { child, pid, start: process::start_time(pid).unwrap_or_default() })
}

/// Spawn from a thread that lives as long as this process.
///
/// The monitor asks to be killed when its parent dies, and to the kernel the parent is the *thread* that forked
/// (prctl(2), `PR_SET_PDEATHSIG`): a pool thread that the runtime retires would take the monitor along.
fn spawn_from_lasting_thread(mut command: Command) -> std::io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("vmm-parent".into());
        // Without the thread the channel is closed, and the first spawn says so.
        let _ = thread.spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    });
    let runtime = tokio::runtime::Handle::current();
    let (answer, child) = mpsc::channel();
    let job = move || {
        let _inside = runtime.enter();
        let _ = answer.send(command.spawn());
    };
    let lost = |_| std::io::Error::other("the thread that starts monitors is gone");
    spawner
        .send(Box::new(job))
        .map_err(|_| std::io::Error::other("the thread that starts monitors is gone"))?;
    child.recv().map_err(lost)?
}

/// One question to the control socket.
pub(crate) async fn ask(dir: &Path, request: &ControlRequest) -> std::io::Result<ControlReply> {
    let exchange = async {
        let mut stream = UnixStream::connect(control_socket(dir)).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        Ok(serde_json::from_str(&answer)?)
    };
    match tokio::time::timeout(CONTROL_TIMEOUT, exchange).await {
        Ok(reply) => reply,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// The control socket of a run-time folder.
pub(crate) fn control_socket(dir: &Path) -> PathBuf {
    dir.join("vmm.sock")
}

/// What an exit of the monitor means, in words.
pub(crate) fn exit_reason(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    if let Some(signal) = status.signal() {
        return format!("the virtual machine monitor was killed by signal {signal}");
    }
    match status.code().unwrap_or(exit::FAILED) {
        exit::OK => "the guest shut down".into(),
        exit::BAD_CONFIG => "the virtual machine monitor refused its configuration".into(),
        exit::GUEST_RESET => "the guest reset itself (its kernel or its agent failed)".into(),
        exit::NO_KVM => "KVM is missing or cannot run the guest: see `kata-cc doctor`".into(),
        exit::GUEST_FAULT => "the guest broke a device's contract and was stopped".into(),
        code => format!("the virtual machine monitor failed with exit code {code}"),
    }
}
